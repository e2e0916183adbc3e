//! Flows that are relayed without a netstack: TCP whose ends are sockets at both ends of a stream lane.
//!
//! # Theory of operation
//!
//! Where the server ends its clients' flows itself (egress `user`), and every lane is a stream lane, reliable and in
//! order, a TCP of our own between the two proxied sockets would only cost: segments, acknowledgements, checksums, a
//! stack at each end. So the bytes cross as they are, in [frames](crate::wire::FlowFrame) of a flow each.
//!
//! ```text
//!  socket ── send ──▶ Outgoing (kept until acknowledged) ── poll_transmit ──▶ sealed into the lane
//!  socket ◀── take ── handle_frame ◀── opened in the lane's buffer
//!     ▲                   │ what the socket does not take
//!     └─── recv ─── Incoming
//! ```
//!
//! A [`Relayed`] is the table of one session's flows at one end. Its owner calls, as the netstack's does:
//!
//! 1. [`Relayed::handle_frame`] for every frame that opens; [`Relayed::connect`] for a new flow (client),
//!    [`Relayed::accept`] or [`Relayed::refuse`] for one that is asked for (server);
//! 2. [`Relayed::recv`], [`Relayed::send`], [`Relayed::finish`], [`Relayed::abort`], [`Relayed::release`];
//! 3. [`Relayed::poll_event`] until `None`;
//! 4. [`Relayed::set_lane`] with the lane that takes packets now, and [`Relayed::poll_transmit`];
//! 5. [`Relayed::poll_timeout`], and [`Relayed::handle_timeout`] when that time has come;
//! 6. [`Relayed::reset_all`] when the session has gone.
//!
//! # Lanes that change
//!
//! A lane loses nothing while it lives, but what was on its way when it broke is gone. So a sender keeps what is
//! not acknowledged; when another lane takes over, it goes back to the last acknowledged byte, and says the Opens that
//! were not answered again, in the order of their numbers. The receiver trims what it knows by its offset. A lane that is
//! left while it lives may still bring frames late: they are duplicates, and a Credit of an older state lowers nothing.
//! What lies beyond a gap (a frame was dropped because its epoch had gone) is dropped, counted, and asked for once.
//!
//! # Limits
//!
//! Flows as given; each may have [`WINDOW`] bytes in flight and as many waiting at the far end, renewed by [`RENEW`].
//! A queue holds memory only while it holds bytes. Small arrivals are acknowledged after [`ACK_DELAY`], so that an
//! idle flow costs its sender nothing. A turn is one frame, of [`MAX_FLOW_DATA`](crate::wire::MAX_FLOW_DATA) bytes at most.

mod bytes;
mod flow;
mod incoming;
mod outgoing;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use table::{Relayed, RelayedEvent, RelayedKey, RelayedStats};

/// Bytes of a flow, in one direction, that are on their way or wait at the far end: a netstack's receive ring.
pub const WINDOW: u64 = 1 << 20;

/// By how much a limit rises at least: each Credit costs a frame, and a sender must not wait for one.
pub const RENEW: u64 = WINDOW / 4;

/// How long what has arrived may stay unacknowledged: long enough for one Credit to serve a conversation of small
/// messages, short enough that flows which come and go hold little.
pub const ACK_DELAY: Duration = Duration::from_millis(500);

/// How long a client waits for the answer to an Open: as long as for a handshake through the tunnel.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Resets that wait for a lane. Whoever is not told learns it when it next says something.
const MAX_RESETS: usize = 4096;

/// Flows that wait to acknowledge. One that finds no place says it with its next Credit.
const MAX_TELLING: usize = 1 << 16;
