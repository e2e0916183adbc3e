//! Sealed frames: the clear header that is authenticated with them, the nonce, and what is inside
//! the seal.

use adit_netstack::{Checksum, Gso, Offload};

use super::frame::{FrameType, LENGTH_LEN, MAX_FRAME};
use super::reader::{Reader, Short};

/// Names a lane within its session; the high half of every nonce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

impl LaneId {
    /// The lane the handshake ran over.
    pub const FIRST: Self = Self(0);
}

impl std::fmt::Display for LaneId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a session; random, chosen by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

impl SessionId {
    /// The low half, by which datagrams name the session; a server gives no two of its sessions the
    /// same.
    #[must_use]
    pub const fn handle(self) -> u32 {
        self.0 as u32
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The clear header of a sealed frame on a stream lane, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedHeader {
    /// Low byte of the epoch whose key seals the frame.
    pub epoch: u8,
    /// The frame's counter on this lane, in this direction and epoch.
    pub counter: u64,
}

impl SealedHeader {
    /// Writes length, type, epoch and counter to the front of `frame`, whose whole length it
    /// states.
    ///
    /// # Errors
    /// [`SealedFormatError`] when `frame` cannot hold a header and a tag, or exceeds [`MAX_FRAME`].
    pub fn write(self, frame: &mut [u8]) -> Result<(), SealedFormatError> {
        let len = frame.len();
        if len < SEALED_HEADER_LEN + 1 + TAG_LEN {
            return Err(SealedFormatError::Short { len });
        }
        let length = len - LENGTH_LEN;
        if length > MAX_FRAME {
            return Err(SealedFormatError::Long { length });
        }
        frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
        frame[4] = FrameType::Sealed.byte();
        frame[5] = self.epoch;
        frame[6..SEALED_HEADER_LEN].copy_from_slice(&self.counter.to_be_bytes());
        Ok(())
    }

    /// Reads the header of a whole sealed frame, having checked length and type.
    ///
    /// # Errors
    /// [`SealedFormatError`], with the numbers that disagree.
    pub fn parse(frame: &[u8]) -> Result<Self, SealedFormatError> {
        let len = frame.len();
        if len < SEALED_HEADER_LEN + 1 + TAG_LEN {
            return Err(SealedFormatError::Short { len });
        }
        let (kind, body) = super::frame::split(frame)?;
        if kind != FrameType::Sealed {
            return Err(SealedFormatError::NotSealed { found: kind });
        }
        if len - LENGTH_LEN > MAX_FRAME {
            return Err(SealedFormatError::Long {
                length: len - LENGTH_LEN,
            });
        }
        let mut reader = Reader::new(body);
        let epoch = reader.u8().map_err(|_| SealedFormatError::Short { len })?;
        let counter = reader.u64().map_err(|_| SealedFormatError::Short { len })?;
        Ok(Self { epoch, counter })
    }
}

/// The clear header of a Join frame, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinHeader {
    /// Low byte of the epoch whose key seals the frame.
    pub epoch: u8,
    /// The session to join.
    pub session: SessionId,
    /// The new lane. The frame is sealed as counter 0 of this lane.
    pub lane: LaneId,
}

impl JoinHeader {
    /// Writes length, type and header to the front of `frame`, whose whole length it states.
    ///
    /// # Errors
    /// [`SealedFormatError`] when `frame` is not exactly [`JOIN_LEN`] bytes.
    pub fn write(self, frame: &mut [u8]) -> Result<(), SealedFormatError> {
        let len = frame.len();
        if len != JOIN_LEN {
            return Err(SealedFormatError::JoinLength { len });
        }
        frame[..4].copy_from_slice(&((JOIN_LEN - LENGTH_LEN) as u32).to_be_bytes());
        frame[4] = FrameType::Join.byte();
        frame[5] = self.epoch;
        frame[6..14].copy_from_slice(&self.session.0.to_be_bytes());
        frame[14..JOIN_HEADER_LEN].copy_from_slice(&self.lane.0.to_be_bytes());
        Ok(())
    }

    /// Reads the header of a whole Join frame, having checked length and type.
    ///
    /// # Errors
    /// [`SealedFormatError`], with the numbers that disagree.
    pub fn parse(frame: &[u8]) -> Result<Self, SealedFormatError> {
        let len = frame.len();
        if len != JOIN_LEN {
            return Err(SealedFormatError::JoinLength { len });
        }
        let (kind, body) = super::frame::split(frame)?;
        if kind != FrameType::Join {
            return Err(SealedFormatError::NotJoin { found: kind });
        }
        let mut reader = Reader::new(body);
        let short = |_: Short| SealedFormatError::Short { len };
        let epoch = reader.u8().map_err(short)?;
        let session = SessionId(reader.u64().map_err(short)?);
        let lane = LaneId(reader.u32().map_err(short)?);
        Ok(Self {
            epoch,
            session,
            lane,
        })
    }
}

/// Returns the session a Join frame names, without any proof that it may; `None` if the bytes are
/// no Join frame.
#[must_use]
pub fn join_session_id(frame: &[u8]) -> Option<SessionId> {
    JoinHeader::parse(frame).ok().map(|header| header.session)
}

/// Builds the nonce of a frame: lane id (4) ‖ counter (8), big-endian.
#[must_use]
pub fn nonce(lane: LaneId, counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    let (high, low) = nonce.split_at_mut(4);
    high.copy_from_slice(&lane.0.to_be_bytes());
    low.copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// What a sealed frame is: the first byte inside the seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InnerType {
    /// An IP packet with its source number and offload metadata.
    Packet = 0x01,
    /// Asks for a [`InnerType::Pong`]; carries the sender's time.
    Ping = 0x02,
    /// Gives a ping's time back.
    Pong = 0x03,
    /// Addresses, gateway, DNS and MTU, server to client.
    Config = 0x04,
    /// Says that a Config arrived, client to server.
    ConfigOk = 0x05,
    /// The last frame of a session, with the reason.
    Close = 0x06,
    /// The responder asks the initiator to rekey.
    RekeyAsk = 0x07,
    /// Message 1 of a handshake for the next epoch.
    RekeyInit = 0x08,
    /// Message 2 of a handshake for the next epoch.
    RekeyReply = 0x09,
    /// Inside a Join frame only.
    Join = 0x0A,
    /// Answers a Join, on its lane, with a challenge.
    JoinOk = 0x0B,
    /// Gives the challenge of a JoinOk back.
    JoinEcho = 0x0C,
    /// The token of an invitation.
    Enrol = 0x0D,
    /// Asks whether the other end is at the address this was sent to; datagram lanes only.
    PathChallenge = 0x0E,
    /// Gives the value of a [`InnerType::PathChallenge`] back.
    PathResponse = 0x0F,
    /// Opens a flow that is relayed without a netstack.
    FlowOpen = 0x10,
    /// Bytes of such a flow.
    FlowData = 0x11,
    /// Room for more bytes of such a flow.
    FlowCredit = 0x12,
    /// The end of such a flow in one direction.
    FlowFin = 0x13,
    /// The abrupt end of such a flow.
    FlowReset = 0x14,
    /// Half of a control frame that is longer than a datagram.
    Part = 0x15,
    /// Asks whether a datagram of this length arrives.
    Probe = 0x16,
    /// Says that it did.
    ProbeOk = 0x17,
    /// What the server made of the token of an [`InnerType::Enrol`].
    Enrolled = 0x18,
    /// Parity over source packets.
    Repair = 0x20,
    /// What the receiver saw of loss and delay.
    Report = 0x21,
    /// Says that a lane carries packets beside others; who does not know it sends on the newest alone.
    Beside = 0x98,
}

impl InnerType {
    /// Reads a type byte; `None` for a number this version does not know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Packet),
            0x02 => Some(Self::Ping),
            0x03 => Some(Self::Pong),
            0x04 => Some(Self::Config),
            0x05 => Some(Self::ConfigOk),
            0x06 => Some(Self::Close),
            0x07 => Some(Self::RekeyAsk),
            0x08 => Some(Self::RekeyInit),
            0x09 => Some(Self::RekeyReply),
            0x0A => Some(Self::Join),
            0x0B => Some(Self::JoinOk),
            0x0C => Some(Self::JoinEcho),
            0x0D => Some(Self::Enrol),
            0x0E => Some(Self::PathChallenge),
            0x0F => Some(Self::PathResponse),
            0x10 => Some(Self::FlowOpen),
            0x11 => Some(Self::FlowData),
            0x12 => Some(Self::FlowCredit),
            0x13 => Some(Self::FlowFin),
            0x14 => Some(Self::FlowReset),
            0x15 => Some(Self::Part),
            0x16 => Some(Self::Probe),
            0x17 => Some(Self::ProbeOk),
            0x18 => Some(Self::Enrolled),
            0x20 => Some(Self::Repair),
            0x21 => Some(Self::Report),
            0x98 => Some(Self::Beside),
            _ => None,
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// Whether a frame of a type nobody knows may be skipped: its top bit is set.
#[must_use]
pub const fn is_skippable(inner_type: u8) -> bool {
    inner_type & SKIPPABLE != 0
}

/// What stands in front of an IP packet inside the seal, after the inner type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// The packet's number: per direction, contiguous, never reset.
    pub source: u64,
    /// Segmentation and checksum the sender left undone.
    pub offload: Offload,
}

impl PacketHeader {
    /// The header's bytes: source number (8) ‖ offload (1) ‖ segment size (2).
    #[must_use]
    pub fn to_bytes(self) -> [u8; PACKET_HEADER_LEN] {
        let (kind, size) = match self.offload.gso {
            Gso::None => (GSO_NONE, 0),
            Gso::Tcp { size } => (GSO_TCP, size),
            Gso::Udp { size } => (GSO_UDP, size),
        };
        let partial = match self.offload.checksum {
            Checksum::Full => 0,
            Checksum::Partial => CHECKSUM_PARTIAL,
        };
        let mut bytes = [0; PACKET_HEADER_LEN];
        bytes[..8].copy_from_slice(&self.source.to_be_bytes());
        bytes[8] = kind | partial;
        bytes[9..].copy_from_slice(&size.to_be_bytes());
        bytes
    }

    /// Reads the header off the front of a packet's body.
    ///
    /// # Errors
    /// [`PacketHeaderError`] for a truncated header, unknown bits, or a size that does not belong
    /// to its kind.
    pub fn parse(body: &[u8]) -> Result<Self, PacketHeaderError> {
        let mut reader = Reader::new(body);
        let short = |_: Short| PacketHeaderError::Short { len: body.len() };
        let source = reader.u64().map_err(short)?;
        let bits = reader.u8().map_err(short)?;
        let size = reader.u16().map_err(short)?;
        let gso = match (bits & GSO_MASK, size) {
            (GSO_NONE, 0) => Gso::None,
            (GSO_TCP, 1..) => Gso::Tcp { size },
            (GSO_UDP, 1..) => Gso::Udp { size },
            _ => return Err(PacketHeaderError::Offload { bits, size }),
        };
        let checksum = match bits & !GSO_MASK {
            0 => Checksum::Full,
            CHECKSUM_PARTIAL => Checksum::Partial,
            _ => return Err(PacketHeaderError::Offload { bits, size }),
        };
        Ok(Self {
            source,
            offload: Offload { gso, checksum },
        })
    }
}

/// Why a frame's clear header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealedFormatError {
    /// There is no room for header, inner type and tag.
    #[error("sealed frame of {len} bytes is shorter than its header and tag")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The frame is longer than any may be.
    #[error("frame length {length} exceeds {MAX_FRAME}")]
    Long {
        /// Value of the length field.
        length: usize,
    },
    /// A Join frame has one length only.
    #[error("join frame of {len} bytes, not {JOIN_LEN}")]
    JoinLength {
        /// Bytes there are.
        len: usize,
    },
    /// Another type where a sealed frame is due.
    #[error("{found:?} frame where a sealed frame is due")]
    NotSealed {
        /// The type found.
        found: FrameType,
    },
    /// Another type where a Join frame is due.
    #[error("{found:?} frame where a join frame is due")]
    NotJoin {
        /// The type found.
        found: FrameType,
    },
    /// The bytes are no frame at all.
    #[error(transparent)]
    Frame(#[from] super::frame::FrameFormatError),
}

/// Why the bytes before a packet are not its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketHeaderError {
    /// The body ends within the header.
    #[error("packet body of {len} bytes is shorter than its header")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// Unknown bits, or a segment size that does not belong to the kind.
    #[error("offload bits {bits:#04x} with segment size {size}")]
    Offload {
        /// The offload byte.
        bits: u8,
        /// The segment size.
        size: u16,
    },
}

/// Bytes of the clear header of a sealed frame: length (4), type (1), epoch (1), counter (8). All
/// of it is the AAD.
pub const SEALED_HEADER_LEN: usize = 14;

/// Bytes of the clear header of a Join frame: length (4), type (1), epoch (1), session (8), lane
/// (4). All of it is the AAD.
pub const JOIN_HEADER_LEN: usize = 18;

/// Bytes of a whole Join frame: header, inner type, tag.
pub const JOIN_LEN: usize = JOIN_HEADER_LEN + 1 + TAG_LEN;

/// Bytes of a packet's header inside the seal: source number (8), offload (1), segment size (2).
pub const PACKET_HEADER_LEN: usize = 11;

/// Bytes in front of a packet in its stream frame: clear header, inner type, packet header.
pub const PACKET_HEADROOM: usize = SEALED_HEADER_LEN + 1 + PACKET_HEADER_LEN;

/// Bytes behind a packet in its frame: the tag.
pub const TAILROOM: usize = TAG_LEN;

/// Bytes of an authentication tag: 128 bits in every AEAD we speak.
pub const TAG_LEN: usize = 16;

/// Bytes of a nonce (RFC 5116, section 3.1).
pub const NONCE_LEN: usize = 12;

const SKIPPABLE: u8 = 0x80;
const GSO_MASK: u8 = 0b011;
const GSO_NONE: u8 = 0;
const GSO_TCP: u8 = 1;
const GSO_UDP: u8 = 2;
pub(super) const CHECKSUM_PARTIAL: u8 = 0b100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sealed_header_is_14_bytes_as_drawn() {
        let mut frame = [0xAA; 40];
        SealedHeader {
            epoch: 0x7F,
            counter: 0x0102_0304_0506_0708,
        }
        .write(&mut frame)
        .unwrap();
        assert_eq!(frame[..14], [0, 0, 0, 36, 4, 0x7F, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            SealedHeader::parse(&frame),
            Ok(SealedHeader {
                epoch: 0x7F,
                counter: 0x0102_0304_0506_0708
            })
        );
    }

    #[test]
    fn join_header_is_18_bytes_as_drawn() {
        let mut frame = [0xAA; JOIN_LEN];
        let header = JoinHeader {
            epoch: 9,
            session: SessionId(0x1122_3344_5566_7788),
            lane: LaneId(3),
        };
        header.write(&mut frame).unwrap();
        assert_eq!(
            frame[..18],
            [
                0, 0, 0, 31, 5, 9, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 3
            ]
        );
        assert_eq!(JoinHeader::parse(&frame), Ok(header));
        assert_eq!(
            join_session_id(&frame),
            Some(SessionId(0x1122_3344_5566_7788))
        );
        assert_eq!(join_session_id(&frame[1..]), None);
    }

    #[test]
    fn nonce_is_lane_then_counter() {
        assert_eq!(
            nonce(LaneId(0x0A0B_0C0D), 0x01),
            [0x0A, 0x0B, 0x0C, 0x0D, 0, 0, 0, 0, 0, 0, 0, 1]
        );
    }

    #[test]
    fn a_packet_starts_after_26_bytes() {
        assert_eq!(PACKET_HEADROOM, 26);
        assert_eq!(TAILROOM, 16);
    }

    #[test]
    fn packet_header_vectors() {
        let vectors: [(PacketHeader, [u8; 11]); 3] = [
            (
                PacketHeader {
                    source: 1,
                    offload: Offload::default(),
                },
                [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
            ),
            (
                PacketHeader {
                    source: u64::MAX,
                    offload: Offload {
                        gso: Gso::Tcp { size: 1348 },
                        checksum: Checksum::Partial,
                    },
                },
                [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 5, 5, 0x44],
            ),
            (
                PacketHeader {
                    source: 2,
                    offload: Offload {
                        gso: Gso::Udp { size: 1200 },
                        checksum: Checksum::Full,
                    },
                },
                [0, 0, 0, 0, 0, 0, 0, 2, 2, 4, 0xB0],
            ),
        ];
        for (header, bytes) in vectors {
            assert_eq!(header.to_bytes(), bytes);
            assert_eq!(PacketHeader::parse(&bytes), Ok(header));
        }
    }

    #[test]
    fn offload_that_contradicts_itself_is_refused() {
        for (bits, size) in [
            (0u8, 1u16),
            (1, 0),
            (2, 0),
            (3, 0),
            (3, 100),
            (8, 0),
            (0x81, 1200),
            (4 | 8, 0),
        ] {
            let mut bytes = [0; 11];
            bytes[8] = bits;
            bytes[9..].copy_from_slice(&size.to_be_bytes());
            assert_eq!(
                PacketHeader::parse(&bytes),
                Err(PacketHeaderError::Offload { bits, size })
            );
        }
    }

    #[test]
    fn a_frame_longer_than_the_limit_is_neither_written_nor_read() {
        let mut frame = vec![0; MAX_FRAME + LENGTH_LEN + 1];
        let header = SealedHeader {
            epoch: 0,
            counter: 0,
        };
        assert_eq!(
            header.write(&mut frame),
            Err(SealedFormatError::Long {
                length: MAX_FRAME + 1
            })
        );
        frame[..4].copy_from_slice(&(MAX_FRAME as u32 + 1).to_be_bytes());
        frame[4] = FrameType::Sealed.byte();
        assert_eq!(
            SealedHeader::parse(&frame),
            Err(SealedFormatError::Long {
                length: MAX_FRAME + 1
            })
        );
        frame.truncate(MAX_FRAME + LENGTH_LEN);
        assert_eq!(header.write(&mut frame), Ok(()));
        assert_eq!(SealedHeader::parse(&frame), Ok(header));
    }

    #[test]
    fn every_inner_type_survives_its_byte_and_only_beside_is_skippable() {
        let known = (0..=255)
            .filter_map(InnerType::from_byte)
            .inspect(|t| assert_eq!(is_skippable(t.byte()), *t == InnerType::Beside))
            .count();
        assert_eq!(known, 27);
        for byte in 0..=255 {
            assert!(InnerType::from_byte(byte).is_none_or(|t| t.byte() == byte));
        }
    }

    proptest! {
        #[test]
        fn headers_of_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = SealedHeader::parse(&bytes);
            let _ = JoinHeader::parse(&bytes);
            let _ = join_session_id(&bytes);
            if let Ok(header) = PacketHeader::parse(&bytes) {
                prop_assert_eq!(&header.to_bytes()[..], &bytes[..PACKET_HEADER_LEN]);
            }
        }
    }
}
