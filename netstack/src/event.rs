//! What the stack tells its driver: flow ids, events, causes, deliveries.

use std::net::{IpAddr, SocketAddr};

use crate::icmp::Unreachable;

/// Names a flow. A stale id, of a flow that is gone, names nothing and harms nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl FlowId {
    /// Gives a small number that no other living flow of the stack has, for tables of the driver's own.
    pub fn index(self) -> usize {
        self.slot as usize
    }
}

/// Something that happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer opens a flow, and waits for [`accept`](crate::Stack::accept) or [`reject`](crate::Stack::reject).
    Incoming {
        /// The flow.
        flow: FlowId,
        /// Whom the peer called.
        local: SocketAddr,
        /// The peer.
        remote: SocketAddr,
    },
    /// The handshake is done.
    Established {
        /// The flow.
        flow: FlowId,
    },
    /// There is something to read, or the peer's end of stream, or room to send after `send` said
    /// [`SendError::Full`](crate::SendError::Full). At most one is queued for each flow; the driver reads until
    /// `Empty` and sends until `Full`, or until it can take no more itself.
    Progress {
        /// The flow.
        flow: FlowId,
    },
    /// The flow has failed. What had arrived can still be read. The driver releases it.
    Closed {
        /// The flow.
        flow: FlowId,
        /// Why.
        cause: Cause,
    },
}

/// Says why a flow ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The peer answered the SYN with a reset.
    #[error("connection refused")]
    Refused,
    /// The peer reset an open flow, or took back one that was not accepted yet.
    #[error("connection reset by the peer")]
    Reset,
    /// Nothing was heard for too long.
    #[error("timed out")]
    TimedOut,
    /// The network said that there is no way.
    #[error("unreachable: {0:?}")]
    Unreachable(Unreachable),
    /// The driver aborted it.
    #[error("aborted")]
    Aborted,
    /// The stack lost the address that the flow was made with.
    #[error("local address is gone")]
    AddressLost,
    /// No memory could be mapped for it.
    #[error("out of memory")]
    NoMemory,
    /// The TCP implementation failed in it.
    #[error("internal failure")]
    Internal,
}

/// Says how to answer a flow that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// With a reset: the peer sees "connection refused".
    Reset,
    /// With an ICMP error in the name of the address that was called.
    Unreachable(Unreachable),
    /// Not at all.
    Silent,
}

/// What [`handle_packet`](crate::Stack::handle_packet) made of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery<'a> {
    /// It was for a flow, or was answered inside.
    Absorbed,
    /// Datagrams for the driver.
    Udp {
        /// Whom they are for.
        local: SocketAddr,
        /// Whom they are from.
        remote: SocketAddr,
        /// Their payload: one datagram, or several of `segment` bytes each, the last possibly shorter.
        payload: &'a [u8],
        /// Payload bytes per datagram; at least 1, so that `payload.chunks(segment)` works. An empty `payload` is one
        /// empty datagram.
        segment: usize,
    },
    /// An echo request for an address that is not our own, or an echo reply.
    Echo {
        /// True for a request.
        request: bool,
        /// Whom it is for.
        local: IpAddr,
        /// Whom it is from.
        remote: IpAddr,
        /// Its identifier.
        ident: u16,
        /// Its sequence number.
        sequence: u16,
        /// Its payload.
        payload: &'a [u8],
    },
    /// The network says that a datagram of ours did not get through.
    UdpFailed {
        /// Whom it was from.
        local: SocketAddr,
        /// Whom it was for.
        remote: SocketAddr,
        /// Why.
        why: Unreachable,
    },
}

/// Says why `connect` made no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no own address of the remote's family.
    #[error("no own address of the family of {remote}")]
    NoAddress {
        /// Whom to connect to.
        remote: IpAddr,
    },
    /// The remote is unspecified, multicast or broadcast, or its port is zero.
    #[error("{remote} cannot be connected to")]
    BadAddress {
        /// Whom to connect to.
        remote: SocketAddr,
    },
    /// The limit of flows is reached.
    #[error("all {limit} flows are in use")]
    TooManyFlows {
        /// The limit.
        limit: usize,
    },
    /// All ports toward this remote are in use or at rest.
    #[error("no free port toward {remote}")]
    NoPort {
        /// Whom to connect to.
        remote: SocketAddr,
    },
    /// No memory could be mapped, or the soft bound of memory is reached.
    #[error("no memory for the rings of a flow")]
    NoMemory,
}

/// Says why `recv` gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// Nothing has arrived; [`Event::Progress`] will tell.
    #[error("nothing to read")]
    Empty,
    /// The peer has ended its stream, and all of it was read.
    #[error("end of stream")]
    Finished,
    /// The flow has failed.
    #[error("flow failed: {0}")]
    Failed(Cause),
    /// There is no such flow.
    #[error("no such flow")]
    Unknown,
}

/// Says why `send` took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The send ring is full, or the flow is not established yet; [`Event::Progress`] will tell.
    #[error("send ring is full")]
    Full,
    /// The stream was finished by us.
    #[error("stream is finished")]
    Closed,
    /// The flow has failed.
    #[error("flow failed: {0}")]
    Failed(Cause),
    /// There is no such flow.
    #[error("no such flow")]
    Unknown,
}

/// Says why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendUdpError {
    /// The sink is full.
    #[error("sink is full")]
    Full,
    /// The payload does not fit a datagram.
    #[error("payload of {len} bytes exceeds {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The most.
        max: usize,
    },
    /// The two addresses are not of one family.
    #[error("addresses of two families")]
    Family,
}
