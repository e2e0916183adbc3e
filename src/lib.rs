//! Adit: a VPN whose client needs no root.
//!
//! This is the architecture page: the parts, who may know whom, and how bytes travel. The
//! bytes themselves are drawn in [`wire`]; how the session behaves, in [`proto`].
//!
//! # The path
//!
//! ```text
//!  app ── SOCKS5 / HTTP ──▶ client (one unprivileged process)                server
//!                           ┌──────────────────────────────┐                 ┌──────────────────────────────┐
//!                           │ proxy ▶ netstack (smoltcp) ──┼── IP packets ──▶│ session ▶ router ▶ egress    │
//!                           │                              │   sealed,       │            │        ├ tun    │──▶ Internet
//!                           │            session ▶ lanes   ┼── over lanes ──▶│            │        └ user   │
//!                           └──────────────────────────────┘   tcp tls       │            └▶ other clients  │
//!                                                                            └──────────────────────────────┘
//! ```
//!
//! The **client** ends what applications send to its proxy in a userspace TCP/IP stack. What
//! crosses the tunnel is IP packets from a virtual address of its own. The **server** leases
//! that address and lets its packets out through an **egress**: `tun`, a real TUN device with
//! the kernel routing and masquerading, or `user`, the same netstack turned round, which opens
//! ordinary sockets and needs no privilege at all. Between them is one **session**:
//! authenticated, sealed, carried by **lanes**.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | packet | an IP packet inside the tunnel; a *super-packet* carries segmentation-offload metadata and is larger than a wire packet |
//! | segment | a TCP segment |
//! | frame | a typed unit on a lane: `length (4) ‖ type (1) ‖ body` on a stream lane |
//! | flow | one 5-tuple conversation and its state |
//! | session | what one client and one server agreed: keys, epochs, address, counters |
//! | lane | one path that carries a session: a TCP or TLS connection |
//! | lease | an inner address given to a client, with an expiry |
//! | egress | where packets leave the server: `tun` or `user` |
//! | origin | the Internet host a flow is for |
//! | uplink / downlink | client to server / server to client |
//! | seal / open | AEAD with the current epoch's key |
//!
//! # The parts
//!
//! | part | what it does | may wait | may do I/O |
//! |---|---|---|---|
//! | [`wire`] | bytes to meaning and back, without state | no | no |
//! | [`proto`] | the session: handshake, keys, replay, lanes, timers | no | no |
//! | `adit-netstack` | many TCP, UDP and ICMP flows over smoltcp | no | no |
//! | [`io`] | clock, pools, sockets, TLS, TUN, netlink | polls | yes |
//! | [`client`] | proxy, resolver, and the client's driver | the driver | through `io` |
//! | [`server`] | peers, leases, router, filter, egress, and its drivers | the drivers | through `io` |
//! | [`config`], [`cli`] | what the user says | no | files |
//!
//! `client` and `server` do not know each other; `adit-netstack` knows nothing of ours;
//! `proto` knows no socket. The cores are sans-IO: `handle_*` in, `poll_*` out, time is an
//! argument. A driver is one task that owns one state and loops: drain every input once, let
//! the cores speak, flush, and wait only when nothing moved.
//!
//! # Tasks
//!
//! The client has one driver ([`client::driver`]), which owns the session, its lanes, the
//! netstack and every proxied socket; one task per proxy connection exists only until its
//! request is answered and the socket handed to the driver. The server has one driver per
//! session ([`server::session`]) and one task that drains the TUN device
//! ([`server::egress::tun`]). There is no task per flow on the data path: a socket that would
//! block registers a waker that names its flow ([`io::relay`]).
//!
//! # Copies
//!
//! A downlink byte is copied five times between the origin's packet and the application, and
//! each copy is one that the kernel or the ring needs:
//!
//! 1. TUN device → pooled buffer (`read`), with room in front for the frame it will be;
//! 2. buffer, sealed in place → lane (`writev`);
//! 3. lane → the client's read buffer (`read`), opened in place;
//! 4. read buffer → the flow's receive ring (smoltcp);
//! 5. ring → the application's socket (`write`).
//!
//! Uplink is the mirror image: the socket is read into the flow's send ring, smoltcp writes
//! segments straight into the lane's write buffer, where they are sealed; the server opens
//! them in its read buffer and writes them to the TUN device from there, the virtio header
//! standing where the frame's header was.
//!
//! # What is bounded, and by what
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | connections before authentication | [`server::accept::MAX_STRANGERS`], [`server::accept::AUTHENTICATION_TIMEOUT`] | closed |
//! | a stranger's frame | [`wire::MAX_FRAME_PREAUTH`] | read and thrown away |
//! | packets waiting for one client | [`server::router::DOWNLINK_BYTES`] | dropped, counted |
//! | packets waiting for all clients | [`server::router::TOTAL_BYTES`] | dropped, counted |
//! | a lane's write queue | its high-water mark | back-pressure to the netstack |
//! | flows and half-open flows per session | configuration | refused |
//! | UDP mappings per session | [`server::egress::udp::MAX_MAPPINGS`] | the idlest is replaced |
//!
//! # After a lane is lost
//!
//! The client's flows do not notice: the netstack gets no room to send and waits. The client
//! dials again and sends, in one flight, a frame that joins the new lane to the session and a
//! fresh handshake. A server that still has the session takes the first, one that was
//! restarted answers the second and leases the same address again, because leases belong to
//! the client's key and instance and are kept on disk.

pub mod cli;
pub mod client;
pub mod config;
pub mod fuzz;
pub mod io;
pub mod proto;
pub mod server;
pub mod wire;
