//! How much parity to send, over what, and when: one controller for each direction of a session.
//!
//! # Theory of operation
//!
//! The sender tells the controller of every source ([`Redundancy::on_source`]) and passes on what the
//! receiver reports ([`Redundancy::on_report`]). It asks after each, and at
//! [`Redundancy::poll_timeout`], for repairs to send: [`Redundancy::poll_repair`] until `None`. A
//! [`RepairPlan`] names the sources to cover and a key; the encoder makes it.
//!
//! ```text
//!  reports ──▶ estimate: loss, bursts ──▶ ratio of repairs to sources, span ─┐
//!  sources ──▶ packet rate ─────────────▲        │                           ├──▶ RepairPlan
//!         └──▶ bulk: credit grows by the ratio ──┘ a repair at each whole one, and one when sources pause
//!         └──▶ thin, urgent: copies at once, from a bucket of their own ─────┘
//! ```
//!
//! **Estimate.** Losses are counted over two horizons: about two seconds, which gives the figure, and
//! a few round trips, which lets it rise at once. Repair begins when the loss is above 0.2 % beyond
//! doubt (four standard deviations) and ends when the longer horizon falls below that: what is lost
//! there is cheaper to send again. Losses that come only while delay rises are a queue's, not
//! the air's: they do not raise the figure, and parity is halved each round trip that they last.
//!
//! **Ratio.** Of n sources np are lost on average, with a variance of np(1 - p)(2b - 1) when losses
//! come in bursts of mean length b. The ratio r is what covers the mean and z standard deviations of it
//! over the span, of repairs that get lost as well:
//!
//! ```text
//! r = (p + z · sqrt(p (1 - p) (2b - 1) / span)) / (1 - p)
//! ```
//!
//! It is capped by the loss (see [`Settings`]), in bytes as well as in repairs: a repair is
//! as long as the longest source it covers. What the receiver reports lost after repair
//! moves z.
//!
//! **Span.** What is sent in 30 ms, longer at low rates, longer still for bursts. A longer span needs
//! fewer repairs; the delay of a repair hardly depends on it, since most losses are mended by the next
//! repair or two.
//!
//! **Pauses.** When sources stop for a few milliseconds the last of them would wait for repairs
//! that never come. Those they are short of are sent then, on credit.
//!
//! **Thin flows** (a call, a game, a keystroke) and urgent packets (SYN, DNS) cannot wait for
//! parity over other packets. Each gets a repair of its own at once: over itself, and over the
//! packet or two before it when little else is sent, which costs no more and gives the former ones
//! a second chance. From 7 % on there is another some milliseconds later. They are paid from a bucket of
//! 15 % of the bytes sent, or 128 kbit/s. They start before anything is known about the
//! link, and end when it has shown to be clean.
//!
//! # Limits
//!
//! A controller holds a few hundred bytes and the lengths of the last few sources; at most
//! [`MAX_WAITING`] copies wait. It counts what it does not send ([`RedundancyStats`]).

mod controller;
mod estimate;
mod thin;

pub use controller::{Class, Mode, PlanKind, Redundancy, RedundancyStats, RepairPlan, Settings};
pub use estimate::LossReport;
pub use thin::MAX_WAITING;
