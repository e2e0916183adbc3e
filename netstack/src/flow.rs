//! One TCP flow as the stack keeps it: its addresses, its state, the events it owes.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::conn::Conn;
use crate::event::{Cause, FlowId};

/// The two ends of a flow, seen from this stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) local: (IpAddr, u16),
    pub(crate) remote: (IpAddr, u16),
}

impl Tuple {
    pub(crate) fn local(&self) -> SocketAddr {
        SocketAddr::from(self.local)
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        SocketAddr::from(self.remote)
    }
}

/// A flow in its slot.
pub(crate) struct Flow {
    pub(crate) tuple: Tuple,
    pub(crate) generation: u32,
    pub(crate) state: State,
    /// Begun by `connect`, so its port is ours to keep from being used again too early.
    pub(crate) outgoing: bool,
    /// The driver has forgotten it.
    pub(crate) released: Option<Instant>,
    /// It stands in the queue of flows that have something to send.
    pub(crate) dirty: bool,
    pub(crate) owed: Owed,
}

/// What a flow is doing.
pub(crate) enum State {
    /// A peer's SYN waits for the driver's word. Nothing was answered and no ring exists.
    Waiting(Syn),
    /// smoltcp has it.
    Open(Box<Conn>),
    /// It failed and there is nothing left to read.
    Failed(Cause),
}

/// A SYN that was not answered yet.
pub(crate) struct Syn {
    /// The whole packet, options included: it is handed to smoltcp when the flow is accepted.
    pub(crate) packet: Box<[u8]>,
    pub(crate) expires: Instant,
}

/// Events that the driver has not fetched yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Owed {
    /// The flow stands in the queue of flows that owe events.
    pub(crate) queued: bool,
    pub(crate) incoming: bool,
    pub(crate) established: bool,
    pub(crate) progress: bool,
    pub(crate) closed: Option<Cause>,
}

impl Owed {
    pub(crate) fn any(&self) -> bool {
        self.incoming || self.established || self.progress || self.closed.is_some()
    }
}

impl Flow {
    pub(crate) fn id(&self, slot: usize) -> FlowId {
        FlowId {
            slot: slot as u32,
            generation: self.generation,
        }
    }
}
