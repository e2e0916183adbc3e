//! `adit doctor`: looks at everything that a client or a server needs, in order, and says in plain words how it stands.
//!
//! # Theory of operation
//!
//! ```text
//!  configuration ─▶ running ─▶ left behind ─┬▶ client ─▶ names ─▶ a handshake by each way ─▶ a session by the best, and one
//!                                            │             (way)   by the other kind: round trip, loss, path MTU, load
//!                                            │                     (measure, prober, volley; path)
//!                                            └▶ server ─▶ what a start would refuse ─▶ what the host gives (host)
//!                                        │
//!                         each a Finding ▼ verdict, words, what to do, figures
//! ```
//!
//! What judges is pure: from what was measured to a [`Finding`], in [`way`], [`path`], [`clock`], [`host`], and of programs that
//! run or were killed in [`running`] and [`leftover`]. What measures asks the very parts that a client or a server runs by: the
//! connector and its dialer, sessions with their own counts of what was lost, their search for the path MTU and their controller
//! of repair; the server's sysctls, rules and sockets.
//!
//! Nothing is changed. A client's handshakes are by an instance of its own: one that runs keeps its session, its addresses
//! and its place. Only where a running client has a fixed address and no lane at the time is that address lent to the
//! doctor's session, as to any other instance of the same key. Such a session ends by a goodbye, also where the time is over or
//! somebody has stopped the doctor.
//!
//! # Limits
//!
//! Everything is over by [`LIMIT`]; each wait has a shorter one. The load is bounded in time and bytes, and can be left out.

pub mod client;
pub mod clock;
mod finding;
pub mod host;
pub mod leftover;
mod measure;
pub mod path;
mod prober;
pub mod program;
pub mod running;
pub mod server;
mod volley;
pub mod way;

use std::time::Duration;

pub use finding::{Check, Finding, Summary, Verdict};

/// How long an examination takes at most.
pub const LIMIT: Duration = Duration::from_secs(30);
