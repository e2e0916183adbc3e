//! Forwards of single ports, in both directions, which may come and go while the client runs.
//!
//! # Theory of operation
//!
//! ```text
//!  -L  application ──▶ port or Unix socket here ──▶ Resolver::connect ──▶ Flow::attach_watched    (local)
//!      application ──▶ UDP port here ─ a task for each peer ─▶ UdpPort                            (datagrams)
//!  -R  peer ──▶ port of the inner address: Listener::accept ──▶ connect near here ──▶ IncomingFlow::accept  (remote)
//!      peer ──▶ inner UDP port ─ a task for each peer ─▶ UDP socket here                          (datagrams)
//! ```
//!
//! [`Forwards`] is the table, and a handle to it: `add` binds and spawns one task that listens, `remove` ends it. A
//! connection is a task only until both its ends stand; then the driver moves its bytes, as it does those of the proxy,
//! so a removed forward leaves its open connections alone, and costs none of them anything.
//!
//! A name behind `-L` is resolved beyond the server; one behind `-R` by this host, since the host is near it. A peer's
//! SYN is answered when the connection nearby stands: where that is refused, so is the peer's; where it cannot be had,
//! the peer hears "host unreachable". Of `-L` the kernel has accepted the application's connection already: it is reset.
//!
//! `-R` listens for as long as it is there, whatever session and inner address the client has meanwhile: flows live on
//! with the inner address, over cuts of lanes too, and where the netstack was made anew the port is asked for again.
//! Who can reach an inner address is the server's affair: see docs/client.md.
//!
//! A UDP forward gives each peer a socket, or an inner port, of its own, so that answers find their way back. It lasts
//! until nothing has passed for [`UDP_IDLE`].
//!
//! # Limits
//!
//! [`MAX_FORWARDS`](crate::config::MAX_FORWARDS) in all; of each, [`MAX_PENDING`] connections that do not stand yet and
//! [`MAX_PEERS`] UDP peers, of which each has at most [`PEER_QUEUE`] datagrams waiting. Flows that stand are bounded by
//! the netstack. What is refused or dropped is counted under its reason, and `adit forward list` tells.

mod counters;
mod datagrams;
mod local;
mod near;
mod remote;
mod table;

pub use super::peers::{MAX_PEERS, PEER_QUEUE};
pub use counters::{Counts, State};
pub use datagrams::UDP_IDLE;
pub use local::MAX_PENDING;
pub use table::{ForwardError, Forwards, Listed};
