//! A link with loss, delay, a rate and a queue: described once, emulated here or by the kernel.
//!
//! # Theory of operation
//!
//! A [`Link`] is a description: two [`Path`]s, one for each direction, written as a short text such as
//! `loss=5,burst=4,delay=25,rate=50,limit=100ms` (see [`Link`]'s `FromStr`). Four things bring it to life:
//!
//! | what | where |
//! |---|---|
//! | [`Emulator`] | one direction, sans-IO, seeded: for virtual time and for the relay below |
//! | [`UdpLink`] | a relay of datagrams between ordinary sockets, through two emulators; needs no privilege |
//! | [`WireLink`] | a thread between two network devices, through two emulators; needs root |
//! | [`Link::netem_arguments`] | the same link for `tc qdisc … netem`, where the kernel has it |
//!
//! A packet passes the parts of an [`Emulator`] in this order, which is netem's:
//!
//! ```text
//!            duplicate?   lost?      queue full?   share of the rate    delay ± jitter
//!  send() ──────┬──────────┬─────────────┬──────────────┬────────────────────┬──────▶ poll_delivery()
//!               └▶ twice   └▶ gone       └▶ gone        └▶ gone, if          └▶ no delay, if reordered
//!                                                          losses come `after`
//! ```
//!
//! So a lost packet takes no share of the rate, as with netem, unless `after` is set: then it is lost behind the
//! bottleneck, having paid for it, as on a radio link beyond a wired one. The queue is what waits for the rate and
//! nothing else; a packet that is under way for its delay takes no room in it.
//!
//! # Limits
//!
//! An emulator holds at most [`MAX_UNDER_WAY`] packets, queued and under way together. Equal seeds and equal calls give
//! equal outcomes. Time must not go backwards between calls.

mod emulator;
mod loss;
mod netem;
mod path;
mod random;
mod text;
mod udp;
mod wire;

pub use emulator::{Counters, Delivery, Emulator, Fate, MAX_UNDER_WAY};
pub use netem::NetemArguments;
pub use path::{Limit, Link, LinkError, Loss, Path};
pub use random::Random;
pub use text::LinkTextError;
pub use udp::{MAX_CLIENTS, UdpCounters, UdpLink};
pub use wire::{WireCounters, WireLink, without_offload};
