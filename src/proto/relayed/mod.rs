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
//! Flows as given; each may keep [`WINDOW`] bytes that are not acknowledged, of which at most [`READ_AHEAD`] are not sent. What may come and wait for the socket begins
//! at [`FIRST_WINDOW`] and doubles, up to [`WINDOW`], each time the socket has taken a window's worth within
//! [`GROW_WITHIN`]: a receiver that sizes itself by what its application takes, as Linux's does (Fisk and Feng, Dynamic
//! Right-Sizing in TCP, 2001). A flow whose socket does not read never gets more.
//!
//! All flows share what the session may hold, and all sessions what the process may ([`budget`](crate::proto::budget)):
//!
//! - A queue holds memory only while it holds bytes: chunks, which count in full. Spare chunks count too; they are kept
//!   only while memory is ample, and are given back after [`SPARES_REST`] without use.
//! - A queue of bytes to send has its first chunk, of 4 KiB, at the soft bound too; more only while what it has is
//!   less than the allowance, by which alone windows grow. At the hard bound it has nothing, and asks again after
//!   [`AGAIN_AFTER`]. Otherwise whoever waits for room has sent something, and is woken when that is acknowledged.
//! - At the soft bound new flows are refused as too many ([`RelayedStats::refused_for_memory`]).
//! - Bytes that come and would be held beyond the hard bound end their flow ([`RelayedStats::ended_for_memory`]).
//!
//! A flow with less on its way than a quarter of the far end's window is acknowledged only after [`ACK_DELAY`], so with
//! many hundreds of flows that would each fill their queues a session carries all it may hold, 64 MiB, in each such
//! time and no more. Small arrivals are acknowledged after [`ACK_DELAY`], so that an
//! idle flow costs its sender nothing. A turn is one frame, of [`MAX_FLOW_DATA`](crate::wire::MAX_FLOW_DATA) bytes at most.

mod bytes;
mod flow;
mod incoming;
mod outgoing;
mod pieces;
mod table;
#[cfg(test)]
mod tests;
mod turns;

use std::time::Duration;

pub use pieces::Pieces;
pub use table::{Relayed, RelayedEvent, RelayedKey, RelayedStats};

/// Bytes of a flow, in one direction, that are on their way or wait at the far end: a netstack's receive ring.
pub const WINDOW: u64 = 1 << 20;

/// Bytes of a flow that are read from its socket before they can be sent. More would only wait here instead of in the
/// socket, and cost memory and cache; less would make reads smaller than the chunks of a flow in bulk.
pub const READ_AHEAD: usize = 256 * 1024;

/// With how much of that a receiver begins: what most flows never need more than, and as much as an initial window of TCP
/// (RFC 6928) brings in two round trips.
pub const FIRST_WINDOW: u64 = 64 * 1024;

/// How fast the socket has to take a window's worth for the window to double: longer than any round trip that serves, so
/// that a sender who waits for the window always has a wider one, and a flow that is slow by itself never.
pub const GROW_WITHIN: Duration = Duration::from_secs(1);

/// How long what has arrived may stay unacknowledged: long enough for one Credit to serve a conversation of small
/// messages, short enough that flows which come and go hold little.
pub const ACK_DELAY: Duration = Duration::from_millis(500);

/// How long a client waits for the answer to an Open: as long as for a handshake through the tunnel.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long spare chunks are kept without use: longer than a pause within a conversation.
pub const SPARES_REST: Duration = Duration::from_secs(2);

/// When a flow that found no memory at all tries again: others have to have given some back meanwhile.
pub const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Resets that wait for a lane. Whoever is not told learns it when it next says something.
const MAX_RESETS: usize = 4096;

/// Flows that wait to acknowledge. One that finds no place says it with its next Credit.
const MAX_TELLING: usize = 1 << 16;
