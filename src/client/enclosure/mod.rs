//! The namespaces of other commands' processes that share this client: `adit run --share`, at the client's end.
//!
//! # Theory of operation
//!
//! ```text
//!  command ──▶ kernel of its namespace ──▶ TUN ──▶ Enclosure ─┬ TCP ─── netstack ── relay ──▶ Tunnel::connect, Direct::connect
//!                                           ▲                 ├ UDP ─── a task for each of its ports ──▶ UdpPort, DirectUdp
//!                                           │                 ├ ping ── a task for each identifier ────▶ UdpPort
//!                                           └─────────────────┴ the gateway's port 53 ──▶ Dns
//! ```
//!
//! The process of `adit run --share` makes the namespaces as every `adit run`, and hands the TUN device over by the [control
//! socket](super::control). A task reads and writes it from then on. As the server's egress `user` does, it is
//! every host of the Internet for the packets that come: it ends their TCP in a netstack of its own and passes on what they
//! carry, each flow and port by the client's [rules](super::rules), as its proxy would. So one session and its inner
//! address serve all commands and the proxy, whatever the server is, and what the rules say of an address holds for them, too.
//!
//! Flows come as addresses, so rules about networks and ports judge them. A name that rules block as such does not exist for
//! the command; rules that send names another way do not concern it.
//!
//! The command sees addresses that mean something in its namespace alone ([`Offer`]) and one name server, which is the
//! client's resolver with its lists, static records and upstreams. A SYN is answered when the flow stands, and refused as
//! the origin, the server or a rule has refused it; while there is no session it is not answered at all, so that the kernel
//! tries again.
//!
//! A task owns all of it, beside the driver's. Its UDP ports and identifiers of pings have tasks of their own, as the peers
//! of a [forward](super::forwards) have.
//!
//! # Nothing leaks
//!
//! The namespace has this one device and loopback. When the client ends, however it does, the device's last descriptor is
//! closed and the device is gone: the command has loopback and no other network.
//!
//! # The end
//!
//! The other process goes when the command has ended. What the command had sent by then has been acknowledged to it by the
//! netstack here, and is passed on for [`LEAVE`] at most; new flows are refused meanwhile.
//!
//! # Limits
//!
//! [`MAX_ENCLOSURES`] at a time; of each [`MAX_FLOWS`] TCP flows, [`MAX_PEERS`](super::forwards::MAX_PEERS) UDP ports and
//! as many identifiers, [`MAX_QUERIES`] questions by UDP, and [`ARRIVALS`] datagrams that wait to be written. Rings count
//! against the client's memory. Traceroute and errors about datagrams do not pass; TCP to a port of the client's own inner
//! address does not either.

mod book;
mod datagrams;
mod device;
mod flows;
mod serve;
mod table;

pub use book::Book;
pub(crate) use datagrams::SpeakerStats;
pub use datagrams::{ARRIVALS, ECHO_IDLE};
pub(crate) use device::DeviceStats as EndStats;
pub(crate) use serve::EnclosureStats;
pub use serve::{LEAVE, MAX_FLOWS, MAX_QUERIES};
pub use table::{EnclosureError, Enclosures, MAX_ENCLOSURES, Offer};
