//! `adit bench`: how fast a path is, and how many clients a server serves, for operators and for CI.
//!
//! # Theory of operation
//!
//! | command | what it does |
//! |---|---|
//! | `adit bench` | starts a server and a client on this host, and measures through the client's proxy ([`pair`]) |
//! | `adit bench --origin HOST:PORT --proxy PROXY` | measures through any SOCKS5 proxy, or straight ([`measure`]) |
//! | `adit bench origin` | is the far side of such a measure ([`origin`]) |
//! | `adit bench swarm` | puts thousands of simulated clients on a server ([`swarm`]) |
//!
//! ```text
//!  load ── SOCKS5 ──▶ client ═══ lane ═══▶ server ──▶ origin      adit bench
//!  load ── SOCKS5 ──▶ any proxy there is ───────────▶ origin      adit bench --proxy
//!  clients without a stack ═══ lanes ════▶ server                 adit bench swarm
//! ```
//!
//! What is measured is never in the process that measures: server and client are children, so that the CPU time and the
//! memory of each are its own, and one end that fails is seen. Children do not outlive the command
//! ([`io::child`](crate::io::child)).
//!
//! Figures are told, not judged. The command fails where there are none: the origin is not reached, a flow stands still, a
//! client is not served.
//!
//! # Limits
//!
//! Samples go to histograms of fixed size ([`Samples`]). The load and the origin share the machine with what they measure
//! unless they are told otherwise: figures of one run compare, those of two machines do not.

pub(crate) mod echo;
pub mod measure;
mod meters;
pub mod origin;
pub mod pair;
mod samples;
mod server;
pub mod swarm;
mod table;
pub mod way;

pub use origin::Origin;
pub use samples::{Quantiles, Samples};
