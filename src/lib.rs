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
//!                           └──────────────────────────────┘  udp tcp tls    │            └▶ other clients  │
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
//! | datagram | a UDP payload between client and server |
//! | frame | a typed unit on a lane: `length (4) ‖ type (1) ‖ body` on a stream lane, `type ‖ body` on a datagram lane |
//! | flow | one 5-tuple conversation and its state |
//! | session | what one client and one server agreed: keys, epochs, address, counters |
//! | lane | one path that carries a session: a TCP or TLS connection, or a UDP address pair |
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
//! | [`fuzz`] | entry points for fuzzers | no | no |
//! | `adit-fec` | erasure codes for what comes next: lanes over UDP, and repair | no | no |
//!
//! `client` and `server` do not know each other; `adit-netstack` knows nothing of ours;
//! `proto` knows no socket. The cores are sans-IO: `handle_*` in, `poll_*` out, time is an
//! argument. A driver is one task that owns one state and loops: drain every input once, let
//! the cores speak, flush, and wait only when nothing moved.
//!
//! # Tasks
//!
//! | task | how many | owns |
//! |---|---|---|
//! | [`client::driver`] | one | the session, its lanes, the netstack, every proxied socket |
//! | [`client::connect`] | futures of the driver's task, one for each server of the list at most | a connection until its handshake is answered |
//! | [`client::proxy`] | one a connection, until its request is answered and the socket handed to the driver; plain HTTP stays, since its requests are rewritten | the application's socket |
//! | [`client::resolve`] | one for questions, at most 256 of them under way | the cache |
//! | [`server::run`] | one a listener | the listening socket |
//! | [`server::accept`] | one a connection, until it is known who calls | a stranger's socket |
//! | [`server::datagrams`] | two a socket: one that reads and sorts, one that answers handshakes | the socket's reading side; the handshakes' queue |
//! | [`server::session`] | one a session | the session, its lanes, and with egress `user` its netstack and its clients' sockets |
//! | [`server::local`] | one a TCP connection to the inner resolver; outer connects are futures of the session's task | the stream of queries |
//! | [`server::egress::tun`] | one | reading the TUN device |
//!
//! There is no task per flow on the data path: a socket that would block registers a waker that
//! names its flow ([`io::relay`]). Tasks speak over bounded queues; what crosses between a session and
//! the TUN device is buffers, never copies.
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
//! | connections before authentication | [`server::accept::MAX_STRANGERS`], [`server::accept::AUTHENTICATION_TIMEOUT`]; beyond half of them [`server::accept::CROWDED_TIMEOUT`] | wait in the kernel's backlog |
//! | a stranger's frame | [`wire::MAX_FRAME_PREAUTH`] | read and thrown away |
//! | a stranger's challenges | [`proto::MAX_CHALLENGES`] a connection | silence |
//! | newest handshake times that are remembered | 8,192 (key, instance) pairs | the oldest goes; older handshakes are then challenged |
//! | handshakes by datagrams that wait | [`server::datagrams::HANDSHAKES`] messages | dropped, counted |
//! | sessions begun by datagrams that no client has confirmed | [`server::datagrams::MAX_UNCONFIRMED`], for [`server::datagrams::CONFIRM_TIMEOUT`] | dropped, counted; cookies are asked for at half of that |
//! | datagrams that wait for a session | [`io::udp::INBOX_MEMORY`] of buffers | dropped, counted |
//! | sessions | `max_clients` | refused in words |
//! | instances of one client | 8 | refused in words |
//! | lanes of a session | [`proto::MAX_LANES`] | the oldest dead or joining one is replaced |
//! | a frame | [`wire::MAX_FRAME`] | the lane is closed |
//! | a stream lane's write queue | [`io::lane::HIGH_WATER`] | back-pressure to the netstack |
//! | packets that wait to be cut into datagrams | two super-packets | back-pressure to the netstack |
//! | reordering over all lanes | [`proto::WINDOW`] source numbers | dropped, counted |
//! | packets waiting for one client | [`server::router::DOWNLINK_BYTES`], [`server::router::DOWNLINK_MEMORY`] | dropped, counted |
//! | packets waiting for all clients | [`server::router::TOTAL_BYTES`] | dropped, counted |
//! | flows and half-open flows of a session | `limits:` of the configuration | reset |
//! | a flow's rings | 1 MiB each way, in memory only while used | the window closes |
//! | UDP mappings of a session | [`server::egress::udp::MAX_MAPPINGS`] | the idlest is replaced |
//! | pings of a session under way | [`server::egress::echo::MAX_ECHOES`] | dropped, counted |
//! | segments of a super-packet | 64 | dropped, counted |
//! | requests before the first session, at the client | 1,024 for 10 s | refused in words |
//! | answers of the resolver that are kept | [`client::resolve::CACHE_ENTRIES`] | the least used goes |
//!
//! # After a lane is lost
//!
//! A client that knows several ways goes to the next: datagrams before TLS before TCP, or whatever
//! order its list has (see `client::link`). A way that is
//! silent for a second is left while another answers, and gone back to when it answers again; a new
//! lane joins the session each time, and both ends send on the lane that joined last.
//!
//! The client's flows do not notice: the netstack gets no room to send and waits. The client
//! dials again and sends, in one flight, a frame that joins the new lane to the session and a
//! fresh handshake. A server that still has the session takes the first, one that was
//! restarted answers the second and leases the same address again, because leases belong to
//! the client's key and instance and are kept on disk.
//!
//! A session without a lane is kept for [`server::session::LINGER`]. With egress `tun` open flows
//! outlive even a restart of the server, since their state is in the client's netstack and in the kernel; with egress
//! `user` the server's half of a flow dies with the server.
//!
//! # Decisions that may surprise
//!
//! - **The newest handshake times are kept in memory, not on disk.** A message 1 older than the server's
//!   own start is treated as if it were a replay: it is challenged, and an honest client answers within a
//!   round trip. So a restart forgets nothing that matters, and no write to a disk stands in the way of a
//!   handshake.
//! - **Small segments are allowed in super-packets.** A floor of 536 bytes would refuse what kernels make: a path with
//!   an MSS of 500 yields segments of 488 with timestamps, and receive offload joins small segments of equal
//!   length. What bounds the work is the number of segments, at most 64.
//! - **A session's first lane is the connection of its handshake**; a client that comes back sends Join and a new
//!   handshake together, so that it need not know whether the server still has the session.
//! - **The inner MTU is a constant of the server**, pushed to the client, and does not follow the lane: on stream lanes
//!   it only sets how packets look to a TUN device and to the far end.
//! - **TLS is camouflage.** A client does not check certificates unless told to; a server makes its own. Whatever
//!   a lane is, the session inside authenticates both ends and seals everything, once more inside TLS too.
//! - **`user` ends TCP twice**, at the client and at the server, so that the kernel's TCP faces the Internet; `tun`
//!   carries the client's own segments to the origin.
//! - **The client's configuration has no lanes policy.** The list `server:` is tried in turn and one lane carries
//!   the session; using several at once is for the scheduler ([`proto::Schedule`]) to decide when there are lanes
//!   worth choosing between.

pub mod cli;
pub mod client;
pub mod config;
pub mod fuzz;
pub mod io;
pub mod proto;
pub mod server;
pub mod wire;
