//! `adit bench`: how fast a path is, and how many clients a server serves, for operators and for CI.
//!
//! # Theory of operation
//!
//! | command | what it measures |
//! |---|---|
//! | `adit bench swarm` | thousands of simulated clients against a server ([`swarm`]) |
//!
//! Figures are told, not judged. What is judged is whether there are any: a client that is not served makes the
//! command fail.

mod meters;
mod samples;
mod server;
pub mod swarm;
mod table;

pub use samples::{Quantiles, Samples};
