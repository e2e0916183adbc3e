//! Frames of flows that are relayed without a netstack.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::reader::{Reader, Short};
use super::sealed::InnerType;

/// Names a relayed flow within its session; chosen by the client, upwards, and never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayedId(pub u32);

/// The fields of a flow's frame: all of it but the bytes that a [`FlowFrame::Data`] carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowFrame {
    /// The client asks for a connection to `destination`, and lends room for `window` bytes.
    Open {
        /// The flow, a new one.
        flow: RelayedId,
        /// Where it is to lead.
        destination: SocketAddr,
        /// How many bytes of it the client takes at first.
        window: u32,
    },
    /// Bytes of the flow; they follow the fields.
    Data {
        /// The flow.
        flow: RelayedId,
        /// How many bytes of its direction came before these.
        offset: u64,
    },
    /// What has arrived of the other direction, and how much of it may come. The server's first says that the connection
    /// stands.
    Credit {
        /// The flow.
        flow: RelayedId,
        /// Bytes that have arrived, the Fin as one more: none of them has to be kept.
        received: u64,
        /// Up to which offset bytes may be sent.
        limit: u64,
        /// Something that came after `received` was dropped: it has to be sent again from there.
        again: bool,
    },
    /// The end of the flow in this direction.
    Fin {
        /// The flow.
        flow: RelayedId,
        /// How many bytes there were.
        offset: u64,
    },
    /// The flow is over in both directions, or never was.
    Reset {
        /// The flow.
        flow: RelayedId,
        /// Why.
        reason: ResetReason,
    },
}

impl FlowFrame {
    /// Reads the fields of a frame of this type; returns them and the bytes behind them, of which only a Data frame has
    /// any.
    ///
    /// # Errors
    /// [`FlowFrameError`] for a type that is none of these, truncated or surplus bytes, or a value out of its range.
    pub fn parse(kind: InnerType, body: &[u8]) -> Result<(Self, &[u8]), FlowFrameError> {
        let mut reader = Reader::new(body);
        let flow = RelayedId(reader.u32()?);
        let frame = match kind {
            InnerType::FlowOpen => {
                let ip = match reader.u8()? {
                    FAMILY_4 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?)),
                    FAMILY_6 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?)),
                    found => return Err(FlowFrameError::Value { found }),
                };
                Self::Open {
                    flow,
                    destination: SocketAddr::new(ip, reader.u16()?),
                    window: reader.u32()?,
                }
            }
            InnerType::FlowData => Self::Data {
                flow,
                offset: reader.u64()?,
            },
            InnerType::FlowCredit => Self::Credit {
                flow,
                received: reader.u64()?,
                limit: reader.u64()?,
                again: match reader.u8()? {
                    0 => false,
                    1 => true,
                    found => return Err(FlowFrameError::Value { found }),
                },
            },
            InnerType::FlowFin => Self::Fin {
                flow,
                offset: reader.u64()?,
            },
            InnerType::FlowReset => Self::Reset {
                flow,
                reason: ResetReason::from_byte(reader.u8()?),
            },
            InnerType::Packet
            | InnerType::Ping
            | InnerType::Pong
            | InnerType::Config
            | InnerType::ConfigOk
            | InnerType::Close
            | InnerType::RekeyAsk
            | InnerType::RekeyInit
            | InnerType::RekeyReply
            | InnerType::Join
            | InnerType::JoinOk
            | InnerType::JoinEcho
            | InnerType::Enrol
            | InnerType::Enrolled
            | InnerType::PathChallenge
            | InnerType::PathResponse
            | InnerType::Part
            | InnerType::Probe
            | InnerType::ProbeOk
            | InnerType::Repair
            | InnerType::Report
            | InnerType::Beside => {
                return Err(FlowFrameError::Type { found: kind });
            }
        };
        let rest = reader.rest();
        let is_data = kind == InnerType::FlowData;
        // Without bytes it would cost work and bring nothing.
        if is_data == rest.is_empty() {
            return Err(FlowFrameError::Length { len: body.len() });
        }
        Ok((frame, rest))
    }

    /// Writes type and fields to the front of `out` and returns how many bytes they take.
    pub fn write(&self, out: &mut [u8; MAX_FLOW_HEAD]) -> usize {
        let mut head = Head { out, len: 0 };
        head.put(&[self.inner_type().byte()]);
        head.put(&self.flow().0.to_be_bytes());
        match self {
            Self::Open {
                destination,
                window,
                ..
            } => {
                match destination.ip() {
                    IpAddr::V4(ip) => {
                        head.put(&[FAMILY_4]);
                        head.put(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        head.put(&[FAMILY_6]);
                        head.put(&ip.octets());
                    }
                }
                head.put(&destination.port().to_be_bytes());
                head.put(&window.to_be_bytes());
            }
            Self::Data { offset, .. } | Self::Fin { offset, .. } => head.put(&offset.to_be_bytes()),
            Self::Credit {
                received,
                limit,
                again,
                ..
            } => {
                head.put(&received.to_be_bytes());
                head.put(&limit.to_be_bytes());
                head.put(&[u8::from(*again)]);
            }
            Self::Reset { reason, .. } => head.put(&[reason.byte()]),
        }
        head.len
    }

    /// The type byte that goes with it.
    #[must_use]
    pub const fn inner_type(&self) -> InnerType {
        match self {
            Self::Open { .. } => InnerType::FlowOpen,
            Self::Data { .. } => InnerType::FlowData,
            Self::Credit { .. } => InnerType::FlowCredit,
            Self::Fin { .. } => InnerType::FlowFin,
            Self::Reset { .. } => InnerType::FlowReset,
        }
    }

    /// The flow that it is about.
    #[must_use]
    pub const fn flow(&self) -> RelayedId {
        match self {
            Self::Open { flow, .. }
            | Self::Data { flow, .. }
            | Self::Credit { flow, .. }
            | Self::Fin { flow, .. }
            | Self::Reset { flow, .. } => *flow,
        }
    }
}

/// Why a flow is over, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// An end of it was reset, or has gone.
    Aborted,
    /// The destination refused the connection.
    Refused,
    /// The destination's host cannot be reached.
    HostUnreachable,
    /// The destination's network cannot be reached.
    NetworkUnreachable,
    /// The destination did not answer in time.
    TimedOut,
    /// The server's policy forbids the destination.
    NotAllowed,
    /// A limit of flows is reached, or of what they hold.
    TooMany,
    /// Who says so does not know the flow, or no longer.
    Unknown,
    /// The other end broke the rules of the flow.
    Violation,
    /// A later version's.
    Other(u8),
}

impl ResetReason {
    /// Reads a reason.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Aborted,
            2 => Self::Refused,
            3 => Self::HostUnreachable,
            4 => Self::NetworkUnreachable,
            5 => Self::TimedOut,
            6 => Self::NotAllowed,
            7 => Self::TooMany,
            8 => Self::Unknown,
            9 => Self::Violation,
            other => Self::Other(other),
        }
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Aborted => 1,
            Self::Refused => 2,
            Self::HostUnreachable => 3,
            Self::NetworkUnreachable => 4,
            Self::TimedOut => 5,
            Self::NotAllowed => 6,
            Self::TooMany => 7,
            Self::Unknown => 8,
            Self::Violation => 9,
            Self::Other(other) => other,
        }
    }
}

/// Why the body of a flow's frame is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlowFrameError {
    /// The frame is of another kind.
    #[error("{found:?} frame where one of a flow is due")]
    Type {
        /// Its type.
        found: InnerType,
    },
    /// The body ends within its fields.
    #[error("flow frame ends early: {0}")]
    Short(#[from] Short),
    /// Bytes are left over, or a Data frame has none.
    #[error("flow frame of {len} bytes")]
    Length {
        /// Bytes of the body.
        len: usize,
    },
    /// An address family or a flag that is none.
    #[error("flow frame with a field of {found:#04x}")]
    Value {
        /// The value found.
        found: u8,
    },
}

struct Head<'a> {
    out: &'a mut [u8; MAX_FLOW_HEAD],
    len: usize,
}

impl Head<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// The most that type and fields take: those of an Open to an IPv6 address.
pub const MAX_FLOW_HEAD: usize = 1 + 4 + 1 + 16 + 2 + 4;

/// What type and fields of a Data frame take.
pub const FLOW_DATA_HEAD: usize = 1 + 4 + 8;

/// The most bytes that one Data frame carries: a read of a socket, about a super-packet, so that no flow holds a lane
/// longer than a packet would.
pub const MAX_FLOW_DATA: usize = 64 * 1024;

const FAMILY_4: u8 = 4;
const FAMILY_6: u8 = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = FlowFrame> {
        let flow = || any::<u32>().prop_map(RelayedId);
        prop_oneof![
            (flow(), any::<IpAddr>(), any::<u16>(), any::<u32>()).prop_map(
                |(flow, ip, port, window)| FlowFrame::Open {
                    flow,
                    destination: SocketAddr::new(ip, port),
                    window,
                }
            ),
            (flow(), any::<u64>()).prop_map(|(flow, offset)| FlowFrame::Data { flow, offset }),
            (flow(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
                |(flow, received, limit, again)| FlowFrame::Credit {
                    flow,
                    received,
                    limit,
                    again,
                }
            ),
            (flow(), any::<u64>()).prop_map(|(flow, offset)| FlowFrame::Fin { flow, offset }),
            (flow(), any::<u8>()).prop_map(|(flow, byte)| FlowFrame::Reset {
                flow,
                reason: ResetReason::from_byte(byte),
            }),
        ]
    }

    fn written(frame: &FlowFrame) -> Vec<u8> {
        let mut out = [0; MAX_FLOW_HEAD];
        let len = frame.write(&mut out);
        let mut bytes = out[..len].to_vec();
        if frame.inner_type() == InnerType::FlowData {
            bytes.push(7);
        }
        bytes
    }

    #[test]
    fn open_is_written_as_drawn() {
        let frame = FlowFrame::Open {
            flow: RelayedId(0x0102_0304),
            destination: "192.0.2.1:443".parse().unwrap(),
            window: 0x10_0000,
        };
        let bytes = [0x10, 1, 2, 3, 4, 4, 192, 0, 2, 1, 1, 0xBB, 0, 0x10, 0, 0];
        assert_eq!(written(&frame), bytes);
    }

    #[test]
    fn data_frame_has_bytes_and_no_other_has() {
        let body = [0; 12];
        assert!(FlowFrame::parse(InnerType::FlowData, &body).is_err());
        let (_, rest) = FlowFrame::parse(InnerType::FlowData, &[0; 15]).unwrap();
        assert_eq!(rest.len(), 3);
        assert!(FlowFrame::parse(InnerType::FlowFin, &body).is_ok());
        assert!(FlowFrame::parse(InnerType::FlowFin, &[0; 13]).is_err());
        assert!(FlowFrame::parse(InnerType::Packet, &body).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_shorter(frame in frames()) {
            let bytes = written(&frame);
            let (kind, body) = bytes.split_first().unwrap();
            let kind = InnerType::from_byte(*kind).unwrap();
            prop_assert_eq!(FlowFrame::parse(kind, body).map(|(frame, _)| frame), Ok(frame));
            for end in 0..body.len() {
                prop_assert!(FlowFrame::parse(kind, &body[..end]).is_err());
            }
        }
    }
}
