//! Handshake frames: the clear bytes, the prologue, and the payloads inside the Noise messages.

use super::enrol::{INVITATION_ID_LEN, InvitationId};
use super::frame::{self, FrameFormatError, FrameType, MAX_FRAME_PREAUTH};
use super::reader::{Reader, Short};

/// Which key encapsulation goes with Noise, and what the handshake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HandshakeKind {
    /// A new session, ML-KEM-768 (FIPS 203).
    Session768 = 0x01,
    /// A new session, ML-KEM-1024; fits stream lanes only.
    Session1024 = 0x02,
    /// The next epoch of a session, ML-KEM-768; travels sealed.
    Epoch768 = 0x11,
    /// The next epoch of a session, ML-KEM-1024; travels sealed.
    Epoch1024 = 0x12,
}

impl HandshakeKind {
    /// Reads a kind byte; `None` for a number this version does not know.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Session768),
            0x02 => Some(Self::Session1024),
            0x11 => Some(Self::Epoch768),
            0x12 => Some(Self::Epoch1024),
            _ => None,
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// Whether this begins a session, and so may arrive in the clear.
    #[must_use]
    pub const fn begins_session(self) -> bool {
        match self {
            Self::Session768 | Self::Session1024 => true,
            Self::Epoch768 | Self::Epoch1024 => false,
        }
    }

    /// Bytes of the encapsulation key in message 1 (FIPS 203, table 3).
    #[must_use]
    pub const fn encapsulation_key_len(self) -> usize {
        match self {
            Self::Session768 | Self::Epoch768 => 1184,
            Self::Session1024 | Self::Epoch1024 => 1568,
        }
    }

    /// Bytes of the ciphertext in message 2 (FIPS 203, table 3).
    #[must_use]
    pub const fn ciphertext_len(self) -> usize {
        match self {
            Self::Session768 | Self::Epoch768 => 1088,
            Self::Session1024 | Self::Epoch1024 => 1568,
        }
    }
}

/// The clear bytes of a handshake frame, behind its type, and what follows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeFrame<'a> {
    /// The frame's type: HandshakeInit, HandshakeReply or Challenge.
    pub frame_type: FrameType,
    /// Suite and purpose.
    pub kind: HandshakeKind,
    /// The Noise message, or the challenge.
    pub body: &'a [u8],
}

impl<'a> HandshakeFrame<'a> {
    /// Reads the clear bytes of a whole frame, having checked length, type, major version and kind.
    /// No cryptography.
    ///
    /// # Errors
    /// [`HandshakeFormatError`], with what was found.
    pub fn parse(frame: &'a [u8]) -> Result<Self, HandshakeFormatError> {
        if frame.len() > MAX_FRAME_PREAUTH + frame::LENGTH_LEN {
            return Err(HandshakeFormatError::Long { len: frame.len() });
        }
        let (frame_type, body) = frame::split(frame)?;
        match frame_type {
            FrameType::HandshakeInit | FrameType::HandshakeReply | FrameType::Challenge => {}
            FrameType::Sealed | FrameType::Join => {
                return Err(HandshakeFormatError::NotHandshake { found: frame_type });
            }
        }
        let mut reader = Reader::new(body);
        let major = reader.u8()?;
        if major != MAJOR {
            return Err(HandshakeFormatError::Version { found: major });
        }
        let kind = reader.u8()?;
        let kind = HandshakeKind::from_byte(kind)
            .filter(|kind| kind.begins_session())
            .ok_or(HandshakeFormatError::Kind { found: kind })?;
        Ok(Self {
            frame_type,
            kind,
            body: reader.rest(),
        })
    }

    /// Returns the whole frame.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(frame::LENGTH_LEN + 3 + self.body.len());
        frame::write(&mut out, self.frame_type, |out| {
            out.extend_from_slice(&[MAJOR, self.kind.byte()]);
            out.extend_from_slice(self.body);
        });
        out
    }
}

/// Returns the Noise prologue: label ‖ major version ‖ kind ‖ context (Noise, section 6).
///
/// The context is empty for a new session, and the session id (8) ‖ the new epoch's number (8) for
/// a rekey, so that no message of one can serve in another.
#[must_use]
pub fn prologue(kind: HandshakeKind, context: &[u8]) -> Vec<u8> {
    let mut prologue = Vec::with_capacity(PROLOGUE_LABEL.len() + 2 + context.len());
    prologue.extend_from_slice(PROLOGUE_LABEL);
    prologue.extend_from_slice(&[MAJOR, kind.byte()]);
    prologue.extend_from_slice(context);
    prologue
}

/// What message 1 carries, encrypted.
///
/// `minor (1) ‖ capabilities (4) ‖ AEADs spoken (1) ‖ of them fast (1) ‖ instance (8) ‖ time (8) ‖
/// answers (1) ‖ challenge (0 or 32) ‖ encapsulation key ‖ invitation (0 or 16) ‖ anything a later minor version adds`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitPayload<'a> {
    /// Minor version of the client.
    pub minor: u8,
    /// What the client can do beyond this version: [`CAPABILITY_RELAYED`]. Whether it has [`CAPABILITY_INVITED`] follows from
    /// `invitation` alone when it is written.
    pub capabilities: u32,
    /// AEADs the client speaks, a bit each.
    pub aead_offered: u8,
    /// Those of them its hardware makes fast.
    pub aead_hardware: u8,
    /// Random name of this run of the client.
    pub instance: [u8; INSTANCE_LEN],
    /// Microseconds since 1970 by the client's clock.
    pub time: u64,
    /// The challenge this message answers.
    pub challenge: Option<[u8; CHALLENGE_LEN]>,
    /// The client's ML-KEM encapsulation key.
    pub encapsulation_key: &'a [u8],
    /// The invitation by which it wants to be enrolled.
    pub invitation: Option<InvitationId>,
}

impl<'a> InitPayload<'a> {
    /// Appends the payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let invited = if self.invitation.is_some() {
            CAPABILITY_INVITED
        } else {
            0
        };
        let capabilities = self.capabilities & !CAPABILITY_INVITED | invited;
        out.push(self.minor);
        out.extend_from_slice(&capabilities.to_be_bytes());
        out.extend_from_slice(&[self.aead_offered, self.aead_hardware]);
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&self.time.to_be_bytes());
        out.push(u8::from(self.challenge.is_some()));
        if let Some(challenge) = &self.challenge {
            out.extend_from_slice(challenge);
        }
        out.extend_from_slice(self.encapsulation_key);
        if let Some(InvitationId(id)) = &self.invitation {
            out.extend_from_slice(id);
        }
    }

    /// Reads the payload of a message 1 of the given kind.
    ///
    /// # Errors
    /// [`HandshakeFormatError`] when it is truncated or its answer flag is neither 0 nor 1.
    pub fn parse(kind: HandshakeKind, bytes: &'a [u8]) -> Result<Self, HandshakeFormatError> {
        let mut reader = Reader::new(bytes);
        let minor = reader.u8()?;
        let capabilities = reader.u32()?;
        let aead_offered = reader.u8()?;
        let aead_hardware = reader.u8()?;
        let instance = reader.array()?;
        let time = reader.u64()?;
        let challenge = match reader.u8()? {
            0 => None,
            1 => Some(reader.array()?),
            found => return Err(HandshakeFormatError::Flag { found }),
        };
        let encapsulation_key = reader.take(kind.encapsulation_key_len())?;
        let invitation = if capabilities & CAPABILITY_INVITED == 0 {
            None
        } else {
            Some(InvitationId(reader.array::<INVITATION_ID_LEN>()?))
        };
        Ok(Self {
            minor,
            capabilities,
            aead_offered,
            aead_hardware,
            instance,
            time,
            challenge,
            encapsulation_key,
            invitation,
        })
    }
}

/// What message 2 carries, encrypted.
///
/// `status (1) ‖ minor (1) ‖ capabilities (4) ‖ session (8) ‖ AEAD (1) ‖ ciphertext ‖ anything a
/// later minor version adds`; after a status other than 0 only `minor` and `capabilities` follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyPayload<'a> {
    /// There is a session.
    Accepted {
        /// Minor version of the server.
        minor: u8,
        /// What both can do beyond this version.
        capabilities: u32,
        /// The session's name.
        session: u64,
        /// Number of the AEAD chosen.
        aead: u8,
        /// The ML-KEM ciphertext.
        ciphertext: &'a [u8],
    },
    /// The server knows the client and will not serve it.
    Refused {
        /// Why.
        reason: RefuseReason,
        /// Minor version of the server.
        minor: u8,
        /// What the server can do beyond this version.
        capabilities: u32,
    },
}

impl<'a> ReplyPayload<'a> {
    /// Appends the payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Accepted {
                minor,
                capabilities,
                session,
                aead,
                ciphertext,
            } => {
                out.extend_from_slice(&[STATUS_ACCEPTED, *minor]);
                out.extend_from_slice(&capabilities.to_be_bytes());
                out.extend_from_slice(&session.to_be_bytes());
                out.push(*aead);
                out.extend_from_slice(ciphertext);
            }
            Self::Refused {
                reason,
                minor,
                capabilities,
            } => {
                out.extend_from_slice(&[reason.byte(), *minor]);
                out.extend_from_slice(&capabilities.to_be_bytes());
            }
        }
    }

    /// Reads the payload of a message 2 of the given kind.
    ///
    /// # Errors
    /// [`HandshakeFormatError`] when it is truncated.
    pub fn parse(kind: HandshakeKind, bytes: &'a [u8]) -> Result<Self, HandshakeFormatError> {
        let mut reader = Reader::new(bytes);
        let status = reader.u8()?;
        let minor = reader.u8()?;
        let capabilities = reader.u32()?;
        if status != STATUS_ACCEPTED {
            return Ok(Self::Refused {
                reason: RefuseReason::from_byte(status),
                minor,
                capabilities,
            });
        }
        let session = reader.u64()?;
        let aead = reader.u8()?;
        let ciphertext = reader.take(kind.ciphertext_len())?;
        Ok(Self::Accepted {
            minor,
            capabilities,
            session,
            aead,
            ciphertext,
        })
    }
}

/// Why a server that knows the client will not serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefuseReason {
    /// The client's minor version is older than the server supports.
    Version,
    /// They have no AEAD in common.
    Aead,
    /// The encapsulation key is not a valid one (FIPS 203, section 7.2).
    EncapsulationKey,
    /// The client was one of this server's, and has been revoked.
    Revoked,
    /// A reason this version does not know.
    Unknown(u8),
}

impl RefuseReason {
    /// Reads a status byte other than 0.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Version,
            2 => Self::Aead,
            3 => Self::EncapsulationKey,
            4 => Self::Revoked,
            other => Self::Unknown(other),
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Aead => 2,
            Self::EncapsulationKey => 3,
            Self::Revoked => 4,
            Self::Unknown(byte) => byte,
        }
    }
}

impl std::fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Version => f.write_str("the server does not speak this client's version"),
            Self::Aead => f.write_str("client and server have no cipher in common"),
            Self::EncapsulationKey => f.write_str("the server found the ML-KEM key invalid"),
            Self::Revoked => f.write_str("this client was revoked"),
            Self::Unknown(byte) => write!(f, "reason {byte}"),
        }
    }
}

/// Why bytes are not a handshake frame or payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeFormatError {
    /// The bytes are no frame at all.
    #[error(transparent)]
    Frame(#[from] FrameFormatError),
    /// The frame is longer than any before authentication.
    #[error("handshake frame of {len} bytes")]
    Long {
        /// Bytes there are.
        len: usize,
    },
    /// The frame belongs to a session.
    #[error("{found:?} frame where a handshake frame is due")]
    NotHandshake {
        /// The type found.
        found: FrameType,
    },
    /// The major version is another one.
    #[error("protocol version {found}, not {MAJOR}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The kind is unknown, or may not arrive in the clear.
    #[error("handshake kind {found:#04x}")]
    Kind {
        /// The kind found.
        found: u8,
    },
    /// A flag is neither 0 nor 1.
    #[error("flag {found} is neither 0 nor 1")]
    Flag {
        /// The byte found.
        found: u8,
    },
    /// The bytes end within a field.
    #[error("handshake: {0}")]
    Short(#[from] Short),
}

/// Major version: two ends with different ones cannot speak. Clear, and bound by the prologue.
pub const MAJOR: u8 = 1;

/// Capability bit of an end that relays flows without a netstack.
pub const CAPABILITY_RELAYED: u32 = 1;

/// Capability bit of a client that wants to be enrolled: message 1 names the invitation.
pub const CAPABILITY_INVITED: u32 = 2;

/// Minor version: additions that an older end can ignore. Encrypted.
pub const MINOR: u8 = 0;

/// Bytes of an instance id: 64 random bits do not repeat among the 8 instances of a key.
pub const INSTANCE_LEN: usize = 8;

/// Bytes of the server's challenge to a stale message 1: 256 bits cannot be guessed.
pub const CHALLENGE_LEN: usize = 32;

/// Bytes of Noise message 1 around its payload: ephemeral key, static key with tag, tag.
pub const NOISE_INIT_OVERHEAD: usize = 32 + 48 + 16;

/// Bytes of Noise message 2 around its payload: ephemeral key, tag.
pub const NOISE_REPLY_OVERHEAD: usize = 32 + 16;

const PROLOGUE_LABEL: &[u8] = b"adit handshake";
const STATUS_ACCEPTED: u8 = 0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn init_payload_vector() {
        let key = vec![0x55; 1184];
        let payload = InitPayload {
            minor: 3,
            capabilities: 0x0102_0304,
            aead_offered: 5,
            aead_hardware: 1,
            instance: *b"instance",
            time: 0x1112_1314_1516_1718,
            challenge: None,
            encapsulation_key: &key,
            invitation: None,
        };
        let mut out = Vec::new();
        payload.write(&mut out);
        let clear = [
            3, 1, 2, 3, 4, 5, 1, b'i', b'n', b's', b't', b'a', b'n', b'c', b'e',
        ];
        assert_eq!(out[..15], clear);
        assert_eq!(
            out[15..24],
            [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0]
        );
        assert_eq!(out.len(), 24 + 1184);
        assert_eq!(
            InitPayload::parse(HandshakeKind::Session768, &out),
            Ok(payload.clone())
        );

        let answering = InitPayload {
            challenge: Some([9; 32]),
            ..payload
        };
        out.clear();
        answering.write(&mut out);
        assert_eq!(out[23], 1);
        assert_eq!(out[24..56], [9; 32]);
        assert_eq!(
            InitPayload::parse(HandshakeKind::Session768, &out),
            Ok(answering)
        );
    }

    #[test]
    fn reply_payload_vectors() {
        let ciphertext = vec![0x66; 1088];
        let payload = ReplyPayload::Accepted {
            minor: 1,
            capabilities: 2,
            session: 0x0102_0304_0506_0708,
            aead: 4,
            ciphertext: &ciphertext,
        };
        let mut out = Vec::new();
        payload.write(&mut out);
        assert_eq!(out[..15], [0, 1, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 4]);
        assert_eq!(out.len(), 15 + 1088);
        assert_eq!(
            ReplyPayload::parse(HandshakeKind::Session768, &out),
            Ok(payload)
        );

        let refused = ReplyPayload::Refused {
            reason: RefuseReason::Aead,
            minor: 1,
            capabilities: 2,
        };
        out.clear();
        refused.write(&mut out);
        assert_eq!(out, [2, 1, 0, 0, 0, 2]);
        assert_eq!(
            ReplyPayload::parse(HandshakeKind::Session768, &out),
            Ok(refused)
        );
    }

    #[test]
    fn bytes_a_later_minor_version_adds_are_ignored() {
        let key = vec![1; 1184];
        let payload = InitPayload {
            minor: 9,
            capabilities: 0,
            aead_offered: 1,
            aead_hardware: 0,
            instance: [0; 8],
            time: 0,
            challenge: None,
            encapsulation_key: &key,
            invitation: None,
        };
        let mut out = Vec::new();
        payload.write(&mut out);
        out.extend_from_slice(b"later");
        assert_eq!(
            InitPayload::parse(HandshakeKind::Session768, &out),
            Ok(payload)
        );
    }

    #[test]
    fn frame_and_prologue_vectors() {
        let frame = HandshakeFrame {
            frame_type: FrameType::HandshakeInit,
            kind: HandshakeKind::Session1024,
            body: b"noise",
        };
        let bytes = frame.to_vec();
        assert_eq!(bytes, [0, 0, 0, 8, 1, 1, 2, b'n', b'o', b'i', b's', b'e']);
        assert_eq!(HandshakeFrame::parse(&bytes), Ok(frame));
        assert_eq!(
            prologue(HandshakeKind::Epoch768, &[7]),
            b"adit handshake\x01\x11\x07"
        );
    }

    #[test]
    fn other_versions_kinds_and_types_are_named() {
        let parse = HandshakeFrame::parse;
        assert_eq!(
            parse(&[0, 0, 0, 3, 1, 2, 1]),
            Err(HandshakeFormatError::Version { found: 2 })
        );
        assert_eq!(
            parse(&[0, 0, 0, 3, 1, 1, 9]),
            Err(HandshakeFormatError::Kind { found: 9 })
        );
        assert_eq!(
            parse(&[0, 0, 0, 3, 1, 1, 0x11]),
            Err(HandshakeFormatError::Kind { found: 0x11 })
        );
        assert_eq!(
            parse(&[0, 0, 0, 3, 4, 1, 1]),
            Err(HandshakeFormatError::NotHandshake {
                found: FrameType::Sealed
            })
        );
        assert_eq!(
            parse(&[0; 2053]),
            Err(HandshakeFormatError::Long { len: 2053 })
        );
    }

    #[test]
    fn the_largest_message_fits_before_authentication() {
        let kind = HandshakeKind::Session1024;
        let payload = 24 + CHALLENGE_LEN + kind.encapsulation_key_len();
        assert_eq!(3 + NOISE_INIT_OVERHEAD + payload, 1723);
        assert!(3 + NOISE_INIT_OVERHEAD + payload <= MAX_FRAME_PREAUTH);
        assert!(3 + NOISE_REPLY_OVERHEAD + 15 + kind.ciphertext_len() <= MAX_FRAME_PREAUTH);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2100)) {
            let _ = HandshakeFrame::parse(&bytes);
            for kind in [HandshakeKind::Session768, HandshakeKind::Epoch1024] {
                let _ = InitPayload::parse(kind, &bytes);
                let _ = ReplyPayload::parse(kind, &bytes);
            }
        }
    }
}
