//! A world in virtual time: endpoints as Linux has them, a tunnel, and a bottleneck that others use too.
//!
//! # Theory of operation
//!
//! ```text
//!   flow ends                                                        flow ends
//!  (client side)                                                   (server side)
//!       │ inject      ┌──────────── Tunnel ────────────┐   poll_deliver  ▲
//!       └────────────▶│ client end          server end │─────────────────┘
//!                     └────┬───────────────────────▲───┘
//!            poll_transmit │                       │ handle_datagram
//!                          ▼                       │
//!  cross traffic ─────▶ ══ Emulator, one for each direction ══ ─────▶ cross traffic
//! ```
//!
//! There are two tunnels: [`SessionTunnel`], two sessions of the program with a datagram lane between them, and
//! [`Direct`], none at all, by which the endpoints themselves are judged.
//!
//! A [`World`] owns the link (two emulators, see [`link`](crate::link)), a [`Tunnel`], and the ends of every flow of
//! its [`Scenario`]. A flow goes through the tunnel or [beside](Via::Beside) it; all share the bottleneck. The ends emit
//! and take real IPv4 packets with TCP or UDP, whose checksums are verified where they arrive; payloads are zeros.
//!
//! Nothing sleeps and no clock is read. Events are ordered by time, and by the order in which they were scheduled where
//! that is equal; all randomness comes from the scenario's seed. So equal scenarios give equal [`Report`]s, and a
//! failure is reproduced from the line it prints.
//!
//! # What it measures
//!
//! For each flow: goodput, one-way delay of its packets, round trips of its messages, and the losses its transport
//! sees: packets that went into the tunnel and never came out. For the link: bytes on the wire for each byte delivered.
//! Packets are told apart by the number in their IP header, which a tunnel must keep.
//!
//! # Limits
//!
//! 50,000 flows. Delays are known for the last 16,384 packets of a flow and direction.

#[cfg(test)]
mod beside;
mod ends;
mod measure;
mod packet;
#[cfg(test)]
mod promises;
mod report;
mod scenario;
mod session;
mod sweep;
mod talk;
mod tcp;
#[cfg(test)]
mod tests;
mod tunnel;
mod world;

pub use measure::Percentiles;
pub use packet::{Packet, PacketError, Side};
pub use report::{FlowReport, Report, Residual};
pub use scenario::{FlowSpec, Scenario, Traffic, Via};
pub use session::SessionTunnel;
pub use sweep::{Case, Grade, Outcome, Sweep, SweepResult, cases};
pub use tcp::{ControlKind, ControlNameError, TcpCounters, TcpSettings};
pub use tunnel::{Datagram, Direct, Tunnel};
pub use world::World;
