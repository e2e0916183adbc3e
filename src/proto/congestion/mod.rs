//! How fast a datagram lane may send: congestion control and pacing.
//!
//! # Theory of operation
//!
//! A controller is told what was sent and what reports say ([`Sample`]), and answers with a window and a
//! pacing rate. One budget covers everything on the lane: sources, repair, resends, control.
//!
//! [`Bbr`] keeps a model of the path, as BBR does (draft-ietf-ccwg-bbr): its bandwidth is the highest delivery
//! rate of the last ten round trips, its length the lowest round-trip time; a
//! round trip counts for 20 ms at least. **Random loss is no
//! signal.** What is one: delay that rises, marks of congestion (ECN-CE), and more loss than the path had
//! while nothing was pushed.
//!
//! ```text
//!            queue, or no more bandwidth
//!  Startup ──────────────────────────────▶ Drain
//!  rate × 2 each round trip                  │ drained
//!                                            ▼      5 to 8 round trips
//!    Down ◀───────────── queue stands ──── Cruise ───────────▶ Up
//!    rate × 0.75                             ▲                  │ × 1.25, then more while
//!     │  │ drained                           │                  │ no queue appears
//!     │  └───────────────────────────────────┘                  │
//!     │  ▲                                                      │ queue, or loss
//!     │  └──────────────────────────────────────────────────────┘
//!     │ twice, or once after the start: the queue does not go, whatever we do
//!     ▼
//!   Rivalry: a window as CUBIC's, within BBR's bound     any ──10 s (rivalry: 5 s)──▶ Probe
//!                                                            of the least round trip
//! ```
//!
//! **Alone**, the lane holds the queue near zero: it pushes for a round trip, sees the queue grow by at most some
//! 15 ms, and lets it drain. Pacing makes up for random loss, so what is delivered fills the link.
//!
//! **Beside flows that keep the queue full**, holding back would give them everything. If twice in a row
//! the queue does not shrink although this lane sends far below its rate, others are filling it; one that the
//! start meets, and that does not shrink in two rounds of half the rate, shows it at once. The
//! lane then does as they do ([`rivalry`](self)): a CUBIC window (RFC 9438) that is cut when the queue
//! overflows, which is loss beyond the path's usual at a time when delay is near its highest; never when
//! loss comes alone. The window stays within twice bandwidth times least round trip, as BBR's own, so
//! beside BBR flows, which never make the queue overflow, it behaves as one of them. Every 5 s the lane looks what is left
//! of the queue when it holds back, at the same time as other lanes do, and goes back to keeping it short
//! when it is gone. That may have been its own part of the queue: if one stands again before anything was
//! pushed, the rivals are still there, and the lane takes its former window again. Where the flows inside see what
//! is lost and hold back themselves ([`Congestion::set_exposed`]), the window only bounds what they take together.
//!
//! **A queue of a few datagrams** overflows before any delay is seen. What the start loses there ends it.
//!
//! **Idle or limited by the application** the model keeps: samples taken then raise it, never lower it.
//!
//! # Limits
//!
//! A queue that BBRv1 flows keep overflowing, as they do with one shorter than their paths, leaves a lane as little
//! as it leaves CUBIC.
//!
//! Tried from 100 kbit/s to 20 Gbit/s; never less than 10 kbit/s and 4 datagrams in flight.

mod bbr;
mod filter;
#[cfg(test)]
mod link;
mod model;
mod pacer;
mod rivalry;
#[cfg(test)]
mod scenarios;

use std::fmt::Debug;
use std::time::Duration;

pub use bbr::{Bbr, INITIAL_DATAGRAMS};
pub use pacer::Pacer;

use super::delivery::Sample;

/// Decides how much may fly on a lane, and how fast it leaves.
pub trait Congestion: Debug + Send {
    /// A report was taken in.
    fn on_report(&mut self, sample: &Sample);

    /// Datagrams were called lost without a report.
    fn on_lost(&mut self, sample: &Sample);

    /// Datagrams are now at most `bytes` long.
    fn on_datagram_size(&mut self, bytes: u64);

    /// How long datagrams are at most.
    fn datagram_size(&self) -> u64;

    /// Bytes that may be in flight.
    fn window(&self) -> u64;

    /// Bytes per second that may leave; at least 1.
    fn pacing_rate(&self) -> u64;

    /// Whether the rate still grows toward what the path takes, or it is not known yet whose the queue is that the
    /// start met: what waits in front of the lane then waits for the controller, and its sender is not to blame.
    fn is_starting(&self) -> bool;

    /// Whether others keep the path's queue full, and this lane takes its part of it.
    fn has_rivals(&self) -> bool;

    /// Learns whether what the path loses is left to the flows inside, which then hold back for it themselves.
    fn set_exposed(&mut self, exposed: bool);

    /// What the controller thinks, for counters and logs.
    fn metrics(&self) -> Metrics;
}

/// What a controller thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// The state's name.
    pub state: &'static str,
    /// Bytes per second that the path is thought to deliver; 0 while unknown.
    pub bandwidth: u64,
    /// Lowest round-trip time.
    pub round_trip: Duration,
    /// Share of datagrams that the path loses of its own accord, in millionths.
    pub usual_loss: u32,
    /// Whether others keep the queue standing.
    pub rivalry: bool,
}
