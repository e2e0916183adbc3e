//! Datagrams: `type ‖ body`, one frame each, with clear headers that are short because there are
//! many of them.
//!
//! What is inside the seal is the same as on a stream lane, but for a packet's header, which is
//! five bytes instead of eleven: the low half of the source number, and no segment size, since a
//! datagram never carries a super-packet.

use adit_netstack::{Checksum, Gso, Offload};

use super::cookie::MAC_LEN;
use super::frame::FrameType;
use super::handshake::{HandshakeFormatError, HandshakeFrame, HandshakeKind, MAJOR};
use super::reader::{Reader, Short};
use super::sealed::{CHECKSUM_PARTIAL, LaneId, SessionId, TAG_LEN};

/// What a datagram is: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DatagramType {
    /// Message 1 of the handshake with its two MACs, client to server.
    Init = 0x01,
    /// Message 2 of the handshake, server to client.
    Reply = 0x02,
    /// The server wants message 1 again, with the value it sends here.
    Challenge = 0x03,
    /// A frame of a living session.
    Sealed = 0x04,
    /// A new lane of a living session, client to server.
    Join = 0x05,
    /// The server is under load and wants message 1 again, with a MAC by the cookie it sends here.
    Cookie = 0x06,
}

impl DatagramType {
    /// Reads a type byte; `None` for a number this version does not know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Init),
            0x02 => Some(Self::Reply),
            0x03 => Some(Self::Challenge),
            0x04 => Some(Self::Sealed),
            0x05 => Some(Self::Join),
            0x06 => Some(Self::Cookie),
            _ => None,
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// Returns the type of a datagram, `None` if it is empty or of an unknown type.
#[must_use]
pub fn datagram_type(datagram: &[u8]) -> Option<DatagramType> {
    DatagramType::from_byte(*datagram.first()?)
}

/// Message 1 in a datagram: `01 ‖ major ‖ kind ‖ Noise message 1 ‖ mac1 (16) ‖ mac2 (16)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitDatagram<'a> {
    /// Suite and purpose.
    pub kind: HandshakeKind,
    /// The Noise message.
    pub message: &'a [u8],
    /// Shows that the sender knows the server's public key.
    pub mac1: [u8; MAC_LEN],
    /// Shows that the sender receives what is sent to its address; zeros if it has no cookie.
    pub mac2: [u8; MAC_LEN],
}

impl<'a> InitDatagram<'a> {
    /// Reads an Init, having checked type, major version and kind. No cryptography.
    ///
    /// # Errors
    /// [`DatagramFormatError`], with what was found.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DatagramFormatError> {
        let (message, macs) = datagram
            .len()
            .checked_sub(2 * MAC_LEN)
            .and_then(|split| datagram.split_at_checked(split))
            .ok_or(DatagramFormatError::Short {
                len: datagram.len(),
            })?;
        let frame = HandshakeFrame::parse_datagram(message)?;
        if frame.frame_type != FrameType::HandshakeInit {
            return Err(DatagramFormatError::Type {
                found: frame.frame_type.byte(),
            });
        }
        let mut reader = Reader::new(macs);
        let short = |_: Short| DatagramFormatError::Short {
            len: datagram.len(),
        };
        Ok(Self {
            kind: frame.kind,
            message: frame.body,
            mac1: reader.array().map_err(short)?,
            mac2: reader.array().map_err(short)?,
        })
    }

    /// The same, as the handshake knows it on every lane.
    #[must_use]
    pub const fn frame(&self) -> HandshakeFrame<'a> {
        HandshakeFrame {
            frame_type: FrameType::HandshakeInit,
            kind: self.kind,
            body: self.message,
        }
    }
}

impl<'a> HandshakeFrame<'a> {
    /// Reads the clear bytes of a handshake datagram, having checked type, major version and kind;
    /// what follows is the body, the MACs of an Init included.
    ///
    /// # Errors
    /// [`DatagramFormatError`], with what was found.
    pub fn parse_datagram(datagram: &'a [u8]) -> Result<Self, DatagramFormatError> {
        let mut reader = Reader::new(datagram);
        let short = |_: Short| DatagramFormatError::Short {
            len: datagram.len(),
        };
        let found = reader.u8().map_err(short)?;
        let frame_type = match DatagramType::from_byte(found) {
            Some(DatagramType::Init) => FrameType::HandshakeInit,
            Some(DatagramType::Reply) => FrameType::HandshakeReply,
            Some(DatagramType::Challenge) => FrameType::Challenge,
            Some(DatagramType::Sealed | DatagramType::Join | DatagramType::Cookie) | None => {
                return Err(DatagramFormatError::Type { found });
            }
        };
        let major = reader.u8().map_err(short)?;
        if major != MAJOR {
            return Err(HandshakeFormatError::Version { found: major }.into());
        }
        let kind = reader.u8().map_err(short)?;
        // The keys of ML-KEM-1024 do not fit a datagram.
        let kind = HandshakeKind::from_byte(kind)
            .filter(|kind| *kind == HandshakeKind::Session768)
            .ok_or(HandshakeFormatError::Kind { found: kind })?;
        Ok(Self {
            frame_type,
            kind,
            body: reader.rest(),
        })
    }

    /// Appends the frame as a datagram: `type ‖ major ‖ kind ‖ body`. An Init lacks its MACs then.
    pub fn write_datagram(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.frame_type.byte(), MAJOR, self.kind.byte()]);
        out.extend_from_slice(self.body);
    }
}

/// The clear header of a sealed datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramHeader {
    /// Low byte of the epoch whose key seals the datagram.
    pub epoch: u8,
    /// Low byte of the lane's id.
    pub lane: u8,
    /// Low half of the session's id: [`SessionId::handle`].
    pub handle: u32,
    /// The datagram's counter on this lane, in this direction and epoch.
    pub counter: u32,
}

impl DatagramHeader {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DATAGRAM_HEADER_LEN] {
        let mut bytes = [0; DATAGRAM_HEADER_LEN];
        bytes[0] = DatagramType::Sealed.byte();
        bytes[1] = self.epoch;
        bytes[2] = self.lane;
        bytes[3..7].copy_from_slice(&self.handle.to_be_bytes());
        bytes[7..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    /// Reads the header of a sealed datagram, having checked that a type and a tag may follow.
    ///
    /// # Errors
    /// [`DatagramFormatError`], with what was found.
    pub fn parse(datagram: &[u8]) -> Result<Self, DatagramFormatError> {
        let len = datagram.len();
        let short = |_: Short| DatagramFormatError::Short { len };
        let mut reader = Reader::new(datagram);
        let found = reader.u8().map_err(short)?;
        if found != DatagramType::Sealed.byte() {
            return Err(DatagramFormatError::Type { found });
        }
        let header = Self {
            epoch: reader.u8().map_err(short)?,
            lane: reader.u8().map_err(short)?,
            handle: reader.u32().map_err(short)?,
            counter: reader.u32().map_err(short)?,
        };
        if reader.rest().len() < 1 + TAG_LEN {
            return Err(DatagramFormatError::Short { len });
        }
        Ok(header)
    }
}

/// Returns the handle of a sealed datagram, by which a server finds the session, without any proof
/// that it may; `None` if the bytes are no sealed datagram.
#[must_use]
pub fn datagram_handle(datagram: &[u8]) -> Option<u32> {
    DatagramHeader::parse(datagram)
        .ok()
        .map(|header| header.handle)
}

/// The clear header of a Join datagram, which is counter 0 of the new lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinDatagram {
    /// Low byte of the epoch whose key seals it.
    pub epoch: u8,
    /// The session to join.
    pub session: SessionId,
    /// The new lane.
    pub lane: LaneId,
}

impl JoinDatagram {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; JOIN_DATAGRAM_HEADER_LEN] {
        let mut bytes = [0; JOIN_DATAGRAM_HEADER_LEN];
        bytes[0] = DatagramType::Join.byte();
        bytes[1] = self.epoch;
        bytes[2..10].copy_from_slice(&self.session.0.to_be_bytes());
        bytes[10..].copy_from_slice(&self.lane.0.to_be_bytes());
        bytes
    }

    /// Reads the header of a Join, having checked its type and its one length,
    /// [`JOIN_DATAGRAM_LEN`].
    ///
    /// # Errors
    /// [`DatagramFormatError`], with what was found.
    pub fn parse(datagram: &[u8]) -> Result<Self, DatagramFormatError> {
        let len = datagram.len();
        let short = |_: Short| DatagramFormatError::Short { len };
        let mut reader = Reader::new(datagram);
        let found = reader.u8().map_err(short)?;
        if found != DatagramType::Join.byte() {
            return Err(DatagramFormatError::Type { found });
        }
        if len != JOIN_DATAGRAM_LEN {
            return Err(DatagramFormatError::JoinLength { len });
        }
        Ok(Self {
            epoch: reader.u8().map_err(short)?,
            session: SessionId(reader.u64().map_err(short)?),
            lane: LaneId(reader.u32().map_err(short)?),
        })
    }
}

/// Returns the session a Join datagram names, without any proof that it may; `None` if the bytes
/// are no Join.
#[must_use]
pub fn join_datagram_session(datagram: &[u8]) -> Option<SessionId> {
    JoinDatagram::parse(datagram)
        .ok()
        .map(|header| header.session)
}

/// What stands in front of an IP packet inside the seal of a datagram, after the inner type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramPacketHeader {
    /// Low half of the packet's source number: see [`expand_source`].
    pub source: u32,
    /// Whether the transport checksum was left undone.
    pub checksum: Checksum,
    /// Whether the sender keeps the packet for repair: it may be asked for, and parity may bring it.
    pub kept: bool,
    /// How much of the packet follows.
    pub piece: Piece,
}

/// How much of a packet a datagram carries. A packet longer than the lane takes is split in two,
/// which both bear its one source number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The front.
    First,
    /// The rest.
    Last,
}

impl DatagramPacketHeader {
    /// The header's bytes: source number (4) ‖ offload (1).
    #[must_use]
    pub fn to_bytes(self) -> [u8; DATAGRAM_PACKET_HEADER_LEN] {
        let checksum = match self.checksum {
            Checksum::Full => 0,
            Checksum::Partial => CHECKSUM_PARTIAL,
        };
        let piece = match self.piece {
            Piece::Whole => 0,
            Piece::First => PIECE_FIRST,
            Piece::Last => PIECE_LAST,
        };
        let kept = if self.kept { KEPT } else { 0 };
        let [a, b, c, d] = self.source.to_be_bytes();
        [a, b, c, d, checksum | kept | piece]
    }

    /// Reads the header off the front of a packet's body.
    ///
    /// # Errors
    /// [`DatagramFormatError`] for a truncated header or bits that mean nothing here, a super-packet's
    /// included.
    pub fn parse(body: &[u8]) -> Result<Self, DatagramFormatError> {
        let mut reader = Reader::new(body);
        let short = |_: Short| DatagramFormatError::Short { len: body.len() };
        let source = reader.u32().map_err(short)?;
        let bits = reader.u8().map_err(short)?;
        let checksum = match bits & CHECKSUM_PARTIAL {
            0 => Checksum::Full,
            _ => Checksum::Partial,
        };
        let piece = match bits & !(CHECKSUM_PARTIAL | KEPT) {
            0 => Piece::Whole,
            PIECE_FIRST => Piece::First,
            PIECE_LAST => Piece::Last,
            _ => return Err(DatagramFormatError::Offload { bits }),
        };
        Ok(Self {
            source,
            checksum,
            kept: bits & KEPT != 0,
            piece,
        })
    }

    /// What the packet's receiver is told.
    #[must_use]
    pub const fn offload(&self) -> Offload {
        Offload {
            gso: Gso::None,
            checksum: self.checksum,
        }
    }
}

/// Completes a source number of which the low half arrived: the number nearest to the one after
/// `highest`, the highest known so far (RFC 9000, appendix A.3, with 32 bits).
#[must_use]
pub const fn expand_source(low: u32, highest: Option<u64>) -> u64 {
    let expected = match highest {
        Some(highest) => highest.saturating_add(1),
        None => 0,
    };
    let candidate = (expected & !LOW_HALF) | low as u64;
    if candidate.saturating_add(HALF_WINDOW) <= expected {
        match candidate.checked_add(1 << 32) {
            Some(above) => above,
            None => candidate,
        }
    } else if candidate > expected.saturating_add(HALF_WINDOW) && candidate > LOW_HALF {
        candidate - (1 << 32)
    } else {
        candidate
    }
}

/// Why bytes are not the datagram they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramFormatError {
    /// There is no room for the header and what must follow it.
    #[error("datagram of {len} bytes is too short")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// Another type than is due, or an unknown one.
    #[error("datagram of type {found:#04x}")]
    Type {
        /// The type found.
        found: u8,
    },
    /// A Join has one length only.
    #[error("join datagram of {len} bytes, not {JOIN_DATAGRAM_LEN}")]
    JoinLength {
        /// Bytes there are.
        len: usize,
    },
    /// A cookie has one length only.
    #[error("cookie datagram of {len} bytes")]
    CookieLength {
        /// Bytes there are.
        len: usize,
    },
    /// Bits of the offload byte that mean nothing on a datagram lane.
    #[error("offload bits {bits:#04x} on a datagram lane")]
    Offload {
        /// The byte.
        bits: u8,
    },
    /// The clear bytes of a handshake are not right.
    #[error(transparent)]
    Handshake(#[from] HandshakeFormatError),
}

/// Bytes of a sealed datagram's clear header: type, epoch, lane, handle, counter.
pub const DATAGRAM_HEADER_LEN: usize = 11;

/// Bytes of a packet's header inside the seal of a datagram: source number (4), offload (1).
pub const DATAGRAM_PACKET_HEADER_LEN: usize = 5;

/// Bytes in front of a packet in its datagram: clear header, inner type, packet header.
pub const DATAGRAM_PACKET_HEADROOM: usize = DATAGRAM_HEADER_LEN + 1 + DATAGRAM_PACKET_HEADER_LEN;

/// Bytes a datagram has beside the packet it carries: 33, so that 1,400 make 1,433.
pub const DATAGRAM_PACKET_OVERHEAD: usize = DATAGRAM_PACKET_HEADROOM + TAG_LEN;

/// Bytes of a sealed datagram beside the body in it: clear header, inner type, tag.
pub const DATAGRAM_OVERHEAD: usize = DATAGRAM_HEADER_LEN + 1 + TAG_LEN;

/// Datagrams every path is taken to carry (RFC 9000, section 14): the longest that is sent before
/// a probe has shown that longer ones pass. Handshakes alone are longer, and may be fragmented.
pub const BASE_DATAGRAM: usize = 1200;

/// Bytes of a Join datagram: padded inside to [`BASE_DATAGRAM`], so that a lane that joins carries
/// that much, and so that no answer is longer than what it answers.
pub const JOIN_DATAGRAM_LEN: usize = BASE_DATAGRAM;

/// Bytes of a Join datagram's clear header: type, epoch, session, lane.
pub const JOIN_DATAGRAM_HEADER_LEN: usize = 14;

/// The counter of a datagram that may not be used: there would be no next one.
pub const DATAGRAM_COUNTER_LIMIT: u64 = u32::MAX as u64;

const KEPT: u8 = 0x20;
const PIECE_FIRST: u8 = 0x40;
const PIECE_LAST: u8 = 0x80;
const LOW_HALF: u64 = 0xFFFF_FFFF;
const HALF_WINDOW: u64 = 1 << 31;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sealed_header_is_11_bytes_as_drawn() {
        let header = DatagramHeader {
            epoch: 0x7F,
            lane: 3,
            handle: 0x1122_3344,
            counter: 0x0506_0708,
        };
        let mut datagram = header.to_bytes().to_vec();
        assert_eq!(datagram, [4, 0x7F, 3, 0x11, 0x22, 0x33, 0x44, 5, 6, 7, 8]);
        datagram.resize(DATAGRAM_OVERHEAD, 0);
        assert_eq!(DatagramHeader::parse(&datagram), Ok(header));
        assert_eq!(datagram_handle(&datagram), Some(0x1122_3344));
        datagram.pop();
        assert_eq!(
            DatagramHeader::parse(&datagram),
            Err(DatagramFormatError::Short { len: 27 })
        );
        assert_eq!(datagram_handle(&[]), None);
    }

    #[test]
    fn join_is_padded_and_its_header_is_14_bytes_as_drawn() {
        let header = JoinDatagram {
            epoch: 9,
            session: SessionId(0x1122_3344_5566_7788),
            lane: LaneId(3),
        };
        let mut datagram = header.to_bytes().to_vec();
        assert_eq!(
            datagram,
            [
                5, 9, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0, 0, 0, 3
            ]
        );
        assert_eq!(
            JoinDatagram::parse(&datagram),
            Err(DatagramFormatError::JoinLength { len: 14 })
        );
        datagram.resize(JOIN_DATAGRAM_LEN, 0);
        assert_eq!(JoinDatagram::parse(&datagram), Ok(header));
        assert_eq!(join_datagram_session(&datagram), Some(header.session));
        assert_eq!(join_datagram_session(&datagram[1..]), None);
    }

    #[test]
    fn a_packet_of_1400_bytes_makes_a_datagram_of_1433() {
        assert_eq!(DATAGRAM_PACKET_HEADROOM, 17);
        assert_eq!(DATAGRAM_PACKET_OVERHEAD + 1400, 1433);
    }

    #[test]
    fn packet_header_vectors() {
        for (header, bytes) in [
            (
                DatagramPacketHeader {
                    source: 0x0102_0304,
                    checksum: Checksum::Full,
                    kept: false,
                    piece: Piece::Whole,
                },
                [1, 2, 3, 4, 0],
            ),
            (
                DatagramPacketHeader {
                    source: u32::MAX,
                    checksum: Checksum::Partial,
                    kept: true,
                    piece: Piece::First,
                },
                [0xff, 0xff, 0xff, 0xff, 0x64],
            ),
            (
                DatagramPacketHeader {
                    source: 7,
                    checksum: Checksum::Full,
                    kept: false,
                    piece: Piece::Last,
                },
                [0, 0, 0, 7, 0x80],
            ),
        ] {
            assert_eq!(header.to_bytes(), bytes);
            assert_eq!(DatagramPacketHeader::parse(&bytes), Ok(header));
        }
        for bits in [1, 2, 3, 5, 8, 0x10, 0x18, 0xC0, 0xE4] {
            assert_eq!(
                DatagramPacketHeader::parse(&[0, 0, 0, 0, bits]),
                Err(DatagramFormatError::Offload { bits })
            );
        }
    }

    #[test]
    fn init_ends_with_both_macs() {
        let mut bytes = vec![1, 1, 1];
        bytes.extend_from_slice(b"noise");
        bytes.extend_from_slice(&[0xA1; 16]);
        bytes.extend_from_slice(&[0xA2; 16]);
        let init = InitDatagram::parse(&bytes).unwrap();
        assert_eq!(init.message, b"noise");
        assert_eq!((init.mac1, init.mac2), ([0xA1; 16], [0xA2; 16]));
        let mut again = Vec::new();
        init.frame().write_datagram(&mut again);
        assert_eq!(again, bytes[..8]);
        bytes[0] = 2;
        assert_eq!(
            InitDatagram::parse(&bytes),
            Err(DatagramFormatError::Type { found: 2 })
        );
    }

    #[test]
    fn keys_that_do_not_fit_a_datagram_are_refused_in_one() {
        let found = HandshakeKind::Session1024.byte();
        assert_eq!(
            HandshakeFrame::parse_datagram(&[2, 1, found]),
            Err(HandshakeFormatError::Kind { found }.into())
        );
        assert_eq!(
            HandshakeFrame::parse_datagram(&[2, 9, 1]),
            Err(HandshakeFormatError::Version { found: 9 }.into())
        );
    }

    #[test]
    fn a_source_number_is_completed_across_the_wrap() {
        assert_eq!(expand_source(0, None), 0);
        assert_eq!(expand_source(5, Some(3)), 5);
        assert_eq!(expand_source(u32::MAX, None), u64::from(u32::MAX));
        assert_eq!(
            expand_source(2, Some(u64::from(u32::MAX) - 1)),
            (1 << 32) + 2
        );
        assert_eq!(
            expand_source(u32::MAX, Some((1 << 32) + 4)),
            u64::from(u32::MAX)
        );
        assert_eq!(expand_source(0, Some(u64::MAX)), !LOW_HALF);
    }

    proptest! {
        #[test]
        fn a_number_within_2_31_of_the_expected_one_comes_back_whole(
            highest in any::<u64>(), distance in -(1i64 << 31) + 2..(1i64 << 31) - 2,
        ) {
            let number = highest.saturating_add_signed(distance);
            prop_assert_eq!(expand_source(number as u32, Some(highest)), number);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_what_parses_is_written_back(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            pad in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if pad {
                bytes.resize(JOIN_DATAGRAM_LEN, 0);
            }
            let _ = InitDatagram::parse(&bytes);
            let _ = datagram_handle(&bytes);
            let _ = join_datagram_session(&bytes);
            if let Ok(frame) = HandshakeFrame::parse_datagram(&bytes) {
                let mut again = Vec::new();
                frame.write_datagram(&mut again);
                prop_assert_eq!(&again, &bytes);
            }
            if let Ok(header) = DatagramHeader::parse(&bytes) {
                prop_assert_eq!(&header.to_bytes()[..], &bytes[..DATAGRAM_HEADER_LEN]);
            }
            if let Ok(header) = JoinDatagram::parse(&bytes) {
                prop_assert_eq!(&header.to_bytes()[..], &bytes[..JOIN_DATAGRAM_HEADER_LEN]);
            }
            if let Ok(header) = DatagramPacketHeader::parse(&bytes) {
                prop_assert_eq!(&header.to_bytes()[..], &bytes[..DATAGRAM_PACKET_HEADER_LEN]);
            }
        }
    }
}
