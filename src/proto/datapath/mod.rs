//! What a session does with packets on its datagram lanes: queue, cut, number, repair, pace, report.
//!
//! # Theory of operation
//!
//! On a stream lane the kernel queues, repairs and paces. On a datagram lane all of that is ours:
//!
//! ```text
//!             enqueue ┌───────┐ poll ┌────────────┐ number ┌──────────┐ permit ┌──────┐ datagram
//!  packets ──────────▶│ fair  │─────▶│ one wire   │───────▶│ Outgoing │───────▶│Flight│──────────▶
//!                     │ queue │      │ packet     │        │ (repair) │        │ seal │
//!                     └───────┘      └────────────┘        └────┬─────┘        └──▲───┘
//!                                             parity, resends ──┘                 │ reports
//!                                                                              ┌──┴─────┐
//!  packets ◀───────────────────────────── Incoming (gaps, parity) ◀─── open ◀──│Received│◀──────────
//!          deliver                                                             └────────┘ datagram
//! ```
//!
//! Parts are machines of their own: the [queue](crate::proto::queue), [repair](crate::proto::repair),
//! [delivery](crate::proto::delivery) and [congestion](crate::proto::congestion). The [session](crate::proto::Session) holds the
//! keys and speaks control frames; this holds everything else of datagram lanes, and both are called
//! together by whoever drives them. One budget, the lane's, is spent by sources, repair and resends alike; reports
//! and control frames are counted in it and never wait for it. A thin packet whose turn has come goes before parity
//! and resends, and passes a full window within bounds ([`Flight`](crate::proto::delivery::Flight)).
//!
//! # Order of calls
//!
//! 1. [`Datapath::open`] for each datagram that arrives: it hands out packets at once;
//!    [`Datapath::enqueue`] for each packet to send.
//! 2. [`Datapath::poll_datagram`] for each lane until `None`: each is one whole datagram, which must
//!    be sent at once or counts as lost.
//! 3. [`Datapath::poll_timeout`], and [`Datapath::handle_timeout`] when that time has come.
//!
//! Control frames that [`Session::poll_control`](crate::proto::Session::poll_control) makes for a datagram lane are told to
//! [`Datapath::handle_control_sent`].
//!
//! # Limits
//!
//! Those of the parts. The ring of packets that were sent is given back when nothing was sent for
//! [`IDLE`].

mod lane;
mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use lane::LaneCounts;
pub use receive::{DELIVERY_HEADROOM, Received};
pub use send::{Datapath, DatapathDrops, DatapathStats, IDLE, Orphan, Spending};
