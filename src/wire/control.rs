//! Control frames: what two ends of a session say to each other inside the seal, beside packets.

use super::config::{ConfigError, InnerConfig};
use super::enrol::{TOKEN_LEN, Token, Verdict, is_client_name};
use super::reader::{Reader, Short};
use super::sealed::{InnerType, LaneId};

/// A control frame, inside the seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// `time (8)`: the sender's own clock, opaque to the receiver.
    Ping {
        /// Microseconds of the sender's clock.
        time: u64,
    },
    /// `time (8)`: the time of the ping it answers.
    Pong {
        /// What the ping carried.
        time: u64,
    },
    /// `serial (4) ‖ fields`.
    Config {
        /// Counts the configurations of a session, so that a repeat is known as one.
        serial: u32,
        /// What the client shall use.
        config: InnerConfig,
    },
    /// `serial (4)`.
    ConfigOk {
        /// The configuration that arrived.
        serial: u32,
    },
    /// `reason (1)`.
    Close {
        /// Why the session ends.
        reason: CloseReason,
    },
    /// No body.
    RekeyAsk,
    /// `epoch (1) ‖ Noise message 1`.
    RekeyInit {
        /// Low byte of the epoch it is to begin.
        epoch: u8,
        /// The Noise message.
        message: &'a [u8],
    },
    /// `epoch (1) ‖ Noise message 2`.
    RekeyReply {
        /// Low byte of the epoch it begins.
        epoch: u8,
        /// The Noise message.
        message: &'a [u8],
    },
    /// `challenge (16)`.
    JoinOk {
        /// What the client must echo on the same lane.
        challenge: [u8; JOIN_CHALLENGE_LEN],
    },
    /// `challenge (16)`.
    JoinEcho {
        /// What the JoinOk carried.
        challenge: [u8; JOIN_CHALLENGE_LEN],
    },
    /// `token (32)`; of a guest only.
    Enrol {
        /// The invitation's secret.
        token: Token,
    },
    /// `verdict (1) ‖ name`; to a guest only.
    Enrolled {
        /// What the server made of the token.
        verdict: Verdict,
        /// The name of the client from now on; empty unless it was enrolled.
        name: &'a str,
    },
    /// `challenge (16)`; datagram lanes only, as are those below but the last.
    PathChallenge {
        /// What is to come back.
        challenge: [u8; PATH_CHALLENGE_LEN],
    },
    /// `challenge (16)`.
    PathResponse {
        /// What the PathChallenge carried.
        challenge: [u8; PATH_CHALLENGE_LEN],
    },
    /// `serial (1) ‖ part (1) ‖ bytes`: half of a control frame, type and body.
    Part {
        /// The same for both halves.
        serial: u8,
        /// Whether it is the second half.
        last: bool,
        /// The half itself.
        bytes: &'a [u8],
    },
    /// `serial (4) ‖ padding`.
    Probe {
        /// Tells probes apart.
        serial: u32,
        /// Bytes of zeros behind it.
        padding: usize,
    },
    /// `serial (4)`.
    ProbeOk {
        /// What the Probe carried.
        serial: u32,
    },
    /// `lane (4)`; stream lanes only.
    Beside {
        /// The first lane of the group that this one stands in, which may be itself.
        first: LaneId,
    },
}

impl<'a> Control<'a> {
    /// Reads the body of a control frame of type `kind`.
    ///
    /// # Errors
    /// [`ControlError`]: the type is not a control frame's, or the body is not exactly what the
    /// type says.
    pub fn parse(kind: InnerType, body: &'a [u8]) -> Result<Self, ControlError> {
        let mut reader = Reader::new(body);
        let short = |short: Short| ControlError::Short { kind, short };
        let control = match kind {
            InnerType::Ping => Self::Ping {
                time: reader.u64().map_err(short)?,
            },
            InnerType::Pong => Self::Pong {
                time: reader.u64().map_err(short)?,
            },
            InnerType::Config => {
                let serial = reader.u32().map_err(short)?;
                let config = InnerConfig::parse(reader.rest())?;
                return Ok(Self::Config { serial, config });
            }
            InnerType::ConfigOk => Self::ConfigOk {
                serial: reader.u32().map_err(short)?,
            },
            InnerType::Close => Self::Close {
                reason: CloseReason::from_byte(reader.u8().map_err(short)?),
            },
            InnerType::RekeyAsk => Self::RekeyAsk,
            InnerType::RekeyInit => {
                let epoch = reader.u8().map_err(short)?;
                return Ok(Self::RekeyInit {
                    epoch,
                    message: reader.rest(),
                });
            }
            InnerType::RekeyReply => {
                let epoch = reader.u8().map_err(short)?;
                return Ok(Self::RekeyReply {
                    epoch,
                    message: reader.rest(),
                });
            }
            InnerType::JoinOk => Self::JoinOk {
                challenge: reader.array().map_err(short)?,
            },
            InnerType::JoinEcho => Self::JoinEcho {
                challenge: reader.array().map_err(short)?,
            },
            InnerType::Enrol => Self::Enrol {
                token: Token::from_bytes(reader.array::<TOKEN_LEN>().map_err(short)?),
            },
            InnerType::Enrolled => {
                let verdict = Verdict::from_byte(reader.u8().map_err(short)?);
                let name = std::str::from_utf8(reader.rest()).unwrap_or_default();
                let fits = match verdict {
                    Verdict::Enrolled => is_client_name(name),
                    Verdict::Used
                    | Verdict::Late
                    | Verdict::WrongToken
                    | Verdict::Withdrawn
                    | Verdict::KnownKey
                    | Verdict::Full
                    | Verdict::NotKept
                    | Verdict::NameTaken
                    | Verdict::Unknown(_) => body.len() == 1,
                };
                return if fits {
                    Ok(Self::Enrolled { verdict, name })
                } else {
                    Err(ControlError::Name)
                };
            }
            InnerType::PathChallenge => Self::PathChallenge {
                challenge: reader.array().map_err(short)?,
            },
            InnerType::PathResponse => Self::PathResponse {
                challenge: reader.array().map_err(short)?,
            },
            InnerType::Part => {
                let serial = reader.u8().map_err(short)?;
                let last = match reader.u8().map_err(short)? {
                    0 => false,
                    1 => true,
                    found => return Err(ControlError::Part { found }),
                };
                return Ok(Self::Part {
                    serial,
                    last,
                    bytes: reader.rest(),
                });
            }
            InnerType::Probe => {
                let serial = reader.u32().map_err(short)?;
                let padding = reader.rest().len();
                return Ok(Self::Probe { serial, padding });
            }
            InnerType::ProbeOk => Self::ProbeOk {
                serial: reader.u32().map_err(short)?,
            },
            InnerType::Beside => Self::Beside {
                first: LaneId(reader.u32().map_err(short)?),
            },
            InnerType::Packet
            | InnerType::Join
            | InnerType::FlowOpen
            | InnerType::FlowData
            | InnerType::FlowCredit
            | InnerType::FlowFin
            | InnerType::FlowReset
            | InnerType::Repair
            | InnerType::Report => return Err(ControlError::NotControl { kind }),
        };
        match reader.rest().len() {
            0 => Ok(control),
            extra => Err(ControlError::Long { kind, extra }),
        }
    }

    /// The type byte this frame travels under.
    #[must_use]
    pub const fn inner_type(&self) -> InnerType {
        match self {
            Self::Ping { .. } => InnerType::Ping,
            Self::Pong { .. } => InnerType::Pong,
            Self::Config { .. } => InnerType::Config,
            Self::ConfigOk { .. } => InnerType::ConfigOk,
            Self::Close { .. } => InnerType::Close,
            Self::RekeyAsk => InnerType::RekeyAsk,
            Self::RekeyInit { .. } => InnerType::RekeyInit,
            Self::RekeyReply { .. } => InnerType::RekeyReply,
            Self::JoinOk { .. } => InnerType::JoinOk,
            Self::JoinEcho { .. } => InnerType::JoinEcho,
            Self::Enrol { .. } => InnerType::Enrol,
            Self::Enrolled { .. } => InnerType::Enrolled,
            Self::PathChallenge { .. } => InnerType::PathChallenge,
            Self::PathResponse { .. } => InnerType::PathResponse,
            Self::Part { .. } => InnerType::Part,
            Self::Probe { .. } => InnerType::Probe,
            Self::ProbeOk { .. } => InnerType::ProbeOk,
            Self::Beside { .. } => InnerType::Beside,
        }
    }

    /// Appends type and body, as they stand inside the seal.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(self.inner_type().byte());
        match self {
            Self::Ping { time } | Self::Pong { time } => out.extend_from_slice(&time.to_be_bytes()),
            Self::Config { serial, config } => {
                out.extend_from_slice(&serial.to_be_bytes());
                config.write(out);
            }
            Self::ConfigOk { serial } => out.extend_from_slice(&serial.to_be_bytes()),
            Self::Close { reason } => out.push(reason.byte()),
            Self::RekeyAsk => {}
            Self::RekeyInit { epoch, message } | Self::RekeyReply { epoch, message } => {
                out.push(*epoch);
                out.extend_from_slice(message);
            }
            Self::JoinOk { challenge }
            | Self::JoinEcho { challenge }
            | Self::PathChallenge { challenge }
            | Self::PathResponse { challenge } => out.extend_from_slice(challenge),
            Self::Enrol { token } => out.extend_from_slice(token.as_bytes()),
            Self::Enrolled { verdict, name } => {
                out.push(verdict.byte());
                out.extend_from_slice(name.as_bytes());
            }
            Self::Part {
                serial,
                last,
                bytes,
            } => {
                out.extend_from_slice(&[*serial, u8::from(*last)]);
                out.extend_from_slice(bytes);
            }
            Self::Probe { serial, padding } => {
                out.extend_from_slice(&serial.to_be_bytes());
                out.resize(out.len() + padding, 0);
            }
            Self::ProbeOk { serial } => out.extend_from_slice(&serial.to_be_bytes()),
            Self::Beside { first } => out.extend_from_slice(&first.0.to_be_bytes()),
        }
    }
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The program that says so is stopping.
    ShuttingDown,
    /// The same instance has a newer session.
    Superseded,
    /// The client is no longer in the server's configuration.
    Revoked,
    /// The server has no address left to give.
    PoolExhausted,
    /// The client's key runs as many instances as it may.
    TooManyInstances,
    /// The other end broke the protocol.
    ProtocolError,
    /// Nothing was heard for too long.
    Idle,
    /// A reason this version does not know.
    Unknown(u8),
}

impl CloseReason {
    /// Reads a reason byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::ShuttingDown,
            2 => Self::Superseded,
            3 => Self::Revoked,
            4 => Self::PoolExhausted,
            5 => Self::TooManyInstances,
            6 => Self::ProtocolError,
            7 => Self::Idle,
            other => Self::Unknown(other),
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::ShuttingDown => 1,
            Self::Superseded => 2,
            Self::Revoked => 3,
            Self::PoolExhausted => 4,
            Self::TooManyInstances => 5,
            Self::ProtocolError => 6,
            Self::Idle => 7,
            Self::Unknown(byte) => byte,
        }
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ShuttingDown => f.write_str("the other end is shutting down"),
            Self::Superseded => f.write_str("superseded by a newer session of the same instance"),
            Self::Revoked => f.write_str("the key is no longer accepted"),
            Self::PoolExhausted => f.write_str("the server has no free address"),
            Self::TooManyInstances => f.write_str("too many instances run with this key"),
            Self::ProtocolError => f.write_str("protocol error"),
            Self::Idle => f.write_str("nothing was heard for too long"),
            Self::Unknown(byte) => write!(f, "reason {byte}"),
        }
    }
}

/// Why the inside of a sealed frame is not a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The body ends within a field.
    #[error("{kind:?} frame: {short}")]
    Short {
        /// The frame's type.
        kind: InnerType,
        /// The field that did not fit.
        short: Short,
    },
    /// Bytes are left behind the last field.
    #[error("{kind:?} frame has {extra} bytes too many")]
    Long {
        /// The frame's type.
        kind: InnerType,
        /// Bytes left.
        extra: usize,
    },
    /// The type is none of a control frame.
    #[error("{kind:?} is not a control frame")]
    NotControl {
        /// The frame's type.
        kind: InnerType,
    },
    /// The part of a Part frame is neither 0 nor 1.
    #[error("part {found} of a control frame, which has two")]
    Part {
        /// The byte found.
        found: u8,
    },
    /// An Enrolled frame has no name where there must be one, or the other way round.
    #[error("an Enrolled frame whose name does not fit its verdict")]
    Name,
    /// The fields of a Config frame are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Bytes of the challenge in a JoinOk: 128 bits cannot be guessed.
pub const JOIN_CHALLENGE_LEN: usize = 16;

/// Bytes of the challenge in a PathChallenge: 128 bits cannot be guessed.
pub const PATH_CHALLENGE_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vectors() -> Vec<(Control<'static>, Vec<u8>)> {
        let challenge = [0xC0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let with = |kind: u8, body: &[u8]| [&[kind], body].concat();
        vec![
            (
                Control::Ping { time: 0x0102 },
                with(2, &[0, 0, 0, 0, 0, 0, 1, 2]),
            ),
            (Control::Pong { time: u64::MAX }, with(3, &[0xff; 8])),
            (
                Control::Config {
                    serial: 7,
                    config: InnerConfig::default(),
                },
                with(4, &[0, 0, 0, 7, 6, 0, 2, 0x05, 0x78]),
            ),
            (Control::ConfigOk { serial: 7 }, with(5, &[0, 0, 0, 7])),
            (
                Control::Close {
                    reason: CloseReason::ShuttingDown,
                },
                with(6, &[1]),
            ),
            (
                Control::Close {
                    reason: CloseReason::Unknown(99),
                },
                with(6, &[99]),
            ),
            (Control::RekeyAsk, with(7, &[])),
            (
                Control::RekeyInit {
                    epoch: 1,
                    message: b"noise",
                },
                with(8, b"\x01noise"),
            ),
            (
                Control::RekeyReply {
                    epoch: 1,
                    message: b"reply",
                },
                with(9, b"\x01reply"),
            ),
            (Control::JoinOk { challenge }, with(0x0B, &challenge)),
            (Control::JoinEcho { challenge }, with(0x0C, &challenge)),
            (Control::PathChallenge { challenge }, with(0x0E, &challenge)),
            (Control::PathResponse { challenge }, with(0x0F, &challenge)),
            (
                Control::Part {
                    serial: 9,
                    last: true,
                    bytes: b"half",
                },
                with(0x15, b"\x09\x01half"),
            ),
            (
                Control::Probe {
                    serial: 0x0102,
                    padding: 3,
                },
                with(0x16, &[0, 0, 1, 2, 0, 0, 0]),
            ),
            (
                Control::ProbeOk { serial: 0x0102 },
                with(0x17, &[0, 0, 1, 2]),
            ),
            (
                Control::Enrol {
                    token: Token::from_bytes([0x7A; 32]),
                },
                with(0x0D, &[0x7A; 32]),
            ),
            (
                Control::Enrolled {
                    verdict: Verdict::Enrolled,
                    name: "laptop",
                },
                with(0x18, b"\x00laptop"),
            ),
            (
                Control::Enrolled {
                    verdict: Verdict::Late,
                    name: "",
                },
                with(0x18, &[2]),
            ),
            (
                Control::Beside {
                    first: LaneId(0x0304),
                },
                vec![0x98, 0, 0, 3, 4],
            ),
        ]
    }

    #[test]
    fn control_vectors() {
        for (control, bytes) in vectors() {
            let mut out = Vec::new();
            control.write(&mut out);
            assert_eq!(out, bytes, "{control:?}");
            let kind = InnerType::from_byte(bytes[0]).unwrap();
            assert_eq!(Control::parse(kind, &bytes[1..]), Ok(control));
        }
    }

    #[test]
    fn fixed_bodies_are_refused_one_byte_short_and_one_byte_long() {
        for (control, bytes) in vectors() {
            let kind = control.inner_type();
            if matches!(
                kind,
                InnerType::Config
                    | InnerType::RekeyInit
                    | InnerType::RekeyReply
                    | InnerType::Part
                    | InnerType::Probe
                    | InnerType::Enrolled
            ) {
                continue;
            }
            let mut long = bytes.clone();
            long.push(0);
            assert_eq!(
                Control::parse(kind, &long[1..]),
                Err(ControlError::Long { kind, extra: 1 })
            );
            if bytes.len() > 1 {
                let cut = Control::parse(kind, &bytes[1..bytes.len() - 1]);
                assert!(
                    matches!(cut, Err(ControlError::Short { .. })),
                    "{control:?}: {cut:?}"
                );
            }
        }
    }

    #[test]
    fn verdict_and_name_must_fit() {
        for body in [
            &b""[..],
            b"\x00",
            b"\x00two words",
            b"\x00\xff",
            b"\x01laptop",
            b"\x01\xff",
        ] {
            let parsed = Control::parse(InnerType::Enrolled, body);
            assert!(parsed.is_err(), "{body:?}: {parsed:?}");
        }
    }

    #[test]
    fn every_close_reason_survives_its_byte() {
        for byte in 0..=255 {
            assert_eq!(CloseReason::from_byte(byte).byte(), byte);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic_and_what_parses_is_written_back(
            kind in any::<u8>(),
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Some(kind) = InnerType::from_byte(kind)
                && let Ok(control) = Control::parse(kind, &body)
            {
                let mut out = Vec::new();
                control.write(&mut out);
                let again = Control::parse(kind, &out[1..]);
                prop_assert_eq!(again, Ok(control));
            }
        }
    }
}
