//! How a running program is: one report, shown as a table, as JSON, or as metrics.
//!
//! # Theory of operation
//!
//! ```text
//!  sessions, proxies, resolvers: plain structs ──Counted──▶ Counters ─┐
//!  lanes, packets, bytes ─────────────────────────────────▶ Tally ────┼─▶ Report ─┬─▶ adit status
//!  /proc ─────────────────────────────────────────────────────────────┘           └─▶ metrics (metrics.rs)
//! ```
//!
//! Each part of the program counts in a plain struct of its own and knows nothing of this. What all those structs hold,
//! and which number is a drop with its reason, stands in one place, `counted`. A report is made only when somebody asks:
//! a session is a task, and is asked over the queue by which it learns of new lanes; it answers between two turns with
//! copies of its numbers, some two hundred words. Nothing is added to the way of a packet.
//!
//! A session that has ended adds its numbers to its client's and to the sums of the program, so that what is counted never
//! goes down. A session that does not answer within [`PATIENCE`] is left out of the list, and counted as left out; the
//! sums lack it then, until the next report.
//!
//! # Metrics
//!
//! Prometheus' text format 0.0.4. Every family is declared once, in `metrics::FAMILIES`, with its type and its help, and
//! nothing else can be written. Labels are few and bounded: parts, reasons and transports are words of this program;
//! `client` is a name that the server's operator has given, of [`MAX_LABELLED`] clients at most, in the order in which they
//! came first; the others are summed up under an empty name. No address, no destination, no name that was asked for.
//!
//! # Limits
//!
//! A report lists at most [`MAX_SESSIONS`] sessions. The admin address serves a bounded number of connections
//! ([`crate::io::admin`]), and one report at a time is made.

mod counted;
mod counters;
pub mod metrics;
mod process;
mod report;
mod uses;

pub use counters::{Counted, Counter, Counters, Kind};
pub use process::{ProcessReport, tasks};
pub use report::{
    Carried, Carries, ClientReport, Clients, Forwarding, Inner, LaneReport, MAX_SESSIONS, Numbers,
    Outage, Program, Reloads, Report, SessionReport, Tally, Transport,
};
pub use uses::{Port, Uses, whole};

use std::time::Duration;

/// How long a session may take to answer: many times what a turn takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// Clients whose names are labels: what a Prometheus takes of one target without a thought.
pub const MAX_LABELLED: usize = 500;
