//! One relayed flow: its two directions, and what it has to say.

use std::net::SocketAddr;
use std::time::Instant;

use super::incoming::Incoming;
use super::outgoing::Outgoing;
use crate::wire::RelayedId;

/// A flow.
#[derive(Debug)]
pub(super) struct Flow {
    /// Tells it from others that had the same place in the table.
    pub(super) serial: u32,
    /// Its number in frames: a client gives it with the Open.
    pub(super) id: Option<RelayedId>,
    /// Where it leads.
    pub(super) remote: SocketAddr,
    pub(super) state: State,
    pub(super) out: Outgoing,
    pub(super) inc: Incoming,
    /// A Credit is to be sent.
    pub(super) credit: CreditDue,
    /// It stands among those whose acknowledgement is due later.
    pub(super) late: bool,
    /// Its owner is to be told of progress.
    pub(super) told: bool,
    /// Its owner found no room, and is to be told of some.
    pub(super) wants_room: bool,
    /// It stands among those that wait for memory.
    pub(super) starved: bool,
    /// Its owner has let go; what was sent is still to be acknowledged.
    pub(super) released: bool,
}

/// How far a flow has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Client: not answered yet. `said` is whether the Open was sent on this lane.
    Opening {
        /// When the client gives up.
        until: Instant,
        /// The Open was sent.
        said: bool,
    },
    /// Server: its owner has not answered yet.
    Asked,
    /// It stands.
    Open,
    /// It is over; its owner has to let go.
    Over,
}

/// Whether a Credit is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CreditDue {
    /// None.
    No,
    /// One.
    Yes,
    /// One that asks for what is missing.
    Again,
}

impl Flow {
    pub(super) fn new(serial: u32, remote: SocketAddr, state: State) -> Self {
        Self {
            serial,
            id: None,
            remote,
            state,
            out: Outgoing::default(),
            inc: Incoming::new(),
            credit: CreditDue::No,
            late: false,
            told: false,
            wants_room: false,
            starved: false,
            released: false,
        }
    }

    /// Whether both ends have everything, and know it.
    pub(super) fn is_complete(&self) -> bool {
        self.released
            && self.out.is_acknowledged()
            && self.inc.has_ended()
            && self.credit == CreditDue::No
    }
}
