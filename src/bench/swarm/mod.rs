//! Thousands of simulated clients against one server.
//!
//! # Theory of operation
//!
//! Each client is a real session on a lane of its own, made by the same code as the client's ([`Connector`]): real
//! handshakes and real sealed frames, without a netstack or a proxy. What it sends is small and answered by the server
//! itself: echo requests to the inner gateway. Its driver is a task, as the server's is.
//!
//! ```text
//!  Connect ── all are there, or missing ──▶ Traffic ── time ──▶ Rest ── idle ──▶ End
//!  CPU of handshakes                        CPU, round trips    memory of an idle client
//! ```
//!
//! The phases are common to all: whoever has connected waits for the others in silence. At most so many as the gate
//! admits connect at once; one that fails tries again twice. A session that is lost is not made again, but counted.
//!
//! A server that is not named is started as a child process, so that what the clients use is not counted as its own.
//! Each client has an address of its own there, of 127.1.0.0/16: a server under load takes 20 handshakes a second over
//! datagrams from one address ([`proto::Load`](crate::proto::Load)), so a swarm connects to one elsewhere no faster than
//! that over UDP.
//! What is read of the child is its CPU time and its resident memory; what the kernel holds for its sockets is not in either.
//!
//! [`Connector`]: crate::client::connect::Connector
//!
//! # Limits
//!
//! One client is one descriptor here and, on stream lanes, one at the server; eight share a key, as a server allows. A
//! client has at most as many echoes under way as it sends within the three seconds after which one is lost.

mod client;
mod member;
mod report;
mod run;

pub use report::{EchoReport, ServerReport, SwarmReport};
pub use run::{SwarmOptions, Target, There, run};
