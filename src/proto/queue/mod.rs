//! The fair queue in front of the lanes: every flow its turn, none a standing queue.
//!
//! # Theory of operation
//!
//! ```text
//!              parse, hash ┌──────────────── new flows ─▶ f7 ─▶ f2 ────────────────┐ poll
//!  packet ──▶ classify ──▶ │ 1,024 flows, each a queue of packets and a CoDel       │ ──▶ one wire packet
//!  enqueue      meter      └──────────────── old flows ─▶ f1 ─▶ f9 ─▶ f4 ──────────┘     in lent memory
//! ```
//!
//! It is FQ-CoDel (RFC 8290) over CoDel (RFC 8289), with these differences:
//!
//!  - **Super-packets are sent piece by piece.** The head of a flow is cut one wire packet at a time
//!    ([`adit_netstack::Cut`]), and the flow is charged what the piece takes on the wire. So 64 KiB of bulk
//!    stand in nobody's way, and a super-packet may wait half cut while others have their turn.
//!  - **A turn on a fast lane is a run of packets**, what the lane sends in 100 µs: what leaves together is joined again at
//!    the far end, and its stack handles one super-packet instead of ten packets.
//!  - **CoDel drops one segment** of a super-packet, at most, and marks instead where the packet is
//!    ECN-capable (RFC 3168).
//!  - **A queue that fills marks before it drops.** From three quarters of a bound on, what comes of ECN-capable bulk flows is
//!    marked, once in a while for each flow: on a fast lane the bound is reached long before anything has waited for CoDel's
//!    target.
//!  - **CoDel's target follows the round trip**, since nobody waits behind the queue of another flow.
//!  - **CoDel rests while the lane starts**: a queue that stands then waits for the lane's rate to grow, and not for
//!    its flow to send less.
//!  - **Flows are told apart by sets of eight** (as CAKE does): two flows share a queue only when eight others
//!    of their set are active. A flow that is not remembered any more has been idle for two seconds at least,
//!    or idlest among its set.
//!  - **A flow that has sent less than its turn stays a new flow**: a call beside a hundred downloads would
//!    otherwise wait a round of theirs for each packet but its first. It cannot take more than its turn so, because it
//!    spends the same deficit.
//!  - **Our own stack is held back, not dropped from.** What it sends ([`Producer::Stack`]) passes CoDel by;
//!    [`FairQueue::room`] says how much more it may send.
//!
//! # Classes
//!
//! A packet is [`Class::Thin`] when it is small or of DNS, and its flow sends at a low rate. A pure
//! acknowledgement is not: the next one makes good its loss. Redundancy is spent on thin packets first. The turn
//! of a flow does not depend on its class.
//!
//! # Limits
//!
//! [`QueueLimits`] bound bytes, packets and memory; beyond them the fattest flow loses its oldest pieces. At
//! most 1,024 flows of about 150 bytes are remembered, and no more than were active at a time. Nothing is
//! allocated per packet once warm.

mod classify;
mod codel;
mod fair;
mod flows;
mod limits;
mod meter;
mod stats;

#[cfg(test)]
pub(super) use fair::craft;

pub(super) use classify::flow_hash_of;
pub use classify::{Class, flow_hash};
pub use fair::{FairQueue, Producer, QueuePacket, Taken, WirePacket};
pub use limits::QueueLimits;
pub(super) use meter::{LOW_BYTES, Meter};
pub use stats::{QueueDrops, QueueStats};
