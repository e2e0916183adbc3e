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
//! there is cheaper to send again. Losses that come mostly while delay rises are a queue's, not
//! the air's: they neither begin repair nor raise the figure, and parity is halved each round trip that they last.
//! What the air loses is known from the time without them, of the last 20 s if there was little of late.
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
//! **Short ways.** On a round trip of 25 ms or less a resend of what was lost comes about as soon as parity and costs
//! half of it: up to 3 % there is no parity, and up to 15 ms no copy of a thin packet among many others.
//!
//! **Span.** What is sent in 30 ms, longer at low rates, longer still for bursts. A longer span needs
//! fewer repairs; the delay of a repair hardly depends on it, since most losses are mended by the next
//! repair or two.
//!
//! **Pauses.** When sources stop for a few milliseconds the last of them would wait for repairs
//! that never come. Those they are short of are sent then, on credit.
//!
//! **Thin flows** (a call, a game, a keystroke) and urgent packets (SYN, DNS) cannot wait for
//! parity over other packets. Each gets a repair of its own at once: over itself, and over up to five
//! packets before it when little else is sent, which costs no more and gives the former ones
//! a second chance. From 7 % on there is another some milliseconds later. They are paid from a bucket of
//! 15 % of the bytes sent, or 128 kbit/s. They start before anything is known about the
//! link, and end when it has shown to be clean.
//!
//! **Who knows better** that parity is of no use at present says so by [`Redundancy::set_parity`]; copies are made all
//! the same.
//!
//! # Measured
//!
//! In virtual time, 10^6 packets of 1,400 bytes at 4,000 a second for each line, round trip 50 ms, a
//! report each 6 ms; the first moments, when nothing is known of the link, are in the figures.
//! `cargo test -p adit-fec --test redundancy -- --nocapture` prints them.
//!
//! | loss | repair bytes per source byte | missing before a resend | after one | repaired after: median | 90 % | 99 % |
//! |---|---|---|---|---|---|---|
//! | 0 | 0 | 0 | 0 | | | |
//! | 0.1 % | 0 | 1.0e-3 | 1.0e-6 | | | |
//! | 0.2 % | 0 | 2.0e-3 | 4.0e-6 | | | |
//! | 0.5 % | 0.025 | 6.7e-5 | 3.4e-7 | 6 ms | 16 ms | 34 ms |
//! | 1 % | 0.033 | 5.2e-5 | 5.2e-7 | 5 ms | 17 ms | 38 ms |
//! | 3 % | 0.072 | 8.0e-6 | 2.4e-7 | 3 ms | 13 ms | 33 ms |
//! | 5 % | 0.107 | 1.3e-5 | 6.5e-7 | 2 ms | 11 ms | 29 ms |
//! | 10 % | 0.194 | 2.5e-5 | 2.5e-6 | 2 ms | 9 ms | 25 ms |
//! | 20 % | 0.385 | 3.4e-5 | 6.8e-6 | 1 ms | 8 ms | 22 ms |
//! | 1 % in bursts of 2 | 0.048 | 5.3e-4 | 5.3e-6 | 12 ms | 34 ms | 63 ms |
//! | 2 % in bursts of 2 | 0.071 | 1.7e-4 | 3.5e-6 | 10 ms | 33 ms | 69 ms |
//! | 5 % in bursts of 2 | 0.133 | 1.1e-5 | 5.5e-7 | 6 ms | 23 ms | 53 ms |
//! | 1 % in bursts of 4 | 0.062 | 6.7e-4 | 6.7e-6 | 23 ms | 57 ms | 83 ms |
//! | 2 % in bursts of 4 | 0.090 | 3.2e-4 | 6.4e-6 | 19 ms | 54 ms | 85 ms |
//! | 5 % in bursts of 4 | 0.169 | 1.3e-5 | 6.5e-7 | 11 ms | 36 ms | 73 ms |
//!
//! A stream of 230 bytes each 20 ms, and nothing else; shares of its packets:
//!
//! | loss | copies per packet | kbit/s | not there at once | later than 25 ms | never, without a resend |
//! |---|---|---|---|---|---|
//! | 0 | 0.001 | 0.1 | 0 | 0 | 0 |
//! | 0.2 % | 0.05 | 5 | 0.2 % | 0.2 % | 2.0e-3 |
//! | 1 % | 1.0 | 92 | 0.01 % | 0 | 0 |
//! | 5 % | 1.03 | 95 | 0.27 % | 0.03 % | 1.0e-5 |
//! | 10 % | 1.4 | 128 | 1.0 % | 0.13 % | 3.0e-5 |
//! | 5 % in bursts of 4 | 1.1 | 105 | 4.7 % | 3.9 % | 1.9e-3 |
//!
//! # Limits
//!
//! A controller holds a few hundred bytes and the lengths of the last sources, one span of them; at most
//! [`MAX_WAITING`] copies wait. It counts what it does not send ([`RedundancyStats`]).

mod controller;
mod estimate;
mod thin;

pub use controller::{Class, Mode, PlanKind, Redundancy, RedundancyStats, RepairPlan, Settings};
pub use estimate::LossReport;
pub use thin::MAX_WAITING;
