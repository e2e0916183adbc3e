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
//! ordinary sockets and needs no privilege at all. A command under `adit run` needs no proxy: the kernel's own stack, in a network
//! namespace of the command's, takes the netstack's place ([`client::device`]). Where the server ends the client's TCP anyway (`user`) and every lane
//! is a stream, TCP flows cross as they are, without a netstack ([`proto::relayed`]); packets are for the rest. Between them is one **session**:
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
//! | source / repair | a packet's datagram, sent unchanged / a parity datagram, from which lost sources are computed |
//! | window | the sources sent last, which a repair covers |
//! | shard | what parity is computed over: `length ‖ offload ‖ packet` |
//! | gap | a run of source numbers that did not come |
//! | hold | where later segments of a TCP flow wait while a gap before them may still be repaired |
//! | report | what a receiver says of a datagram lane: what came, what is missing |
//! | flow | one 5-tuple conversation and its state |
//! | session | what one client and one server agreed: keys, epochs, address, counters |
//! | lane | one path that carries a session: a TCP or TLS connection, a WebSocket on either, or a UDP address pair |
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
//! | `proto::invitation` | what the token of an invitation stands for | no | no |
//! | `proto::queue` | the fair queue in front of lanes: [`proto::FairQueue`] | no | no |
//! | `proto::hold` | the hold behind them: [`proto::Hold`] | no | no |
//! | [`proto::repair`] | what was sent and can be repaired or sent again, what came, what is missing | no | no |
//! | [`proto::delivery`] | reports, loss, round-trip time and delivery rate of a datagram lane | no | no |
//! | [`proto::congestion`] | how much may fly on it, and how fast it leaves | no | no |
//! | [`proto::budget`] | how much memory flows may hold, of a session and of the process | no | no |
//! | [`proto::relayed`] | flows that cross stream lanes without a netstack: bytes, credit, and what is sent again on another lane | no | no |
//! | [`proto::spread`] | which of several stream lanes a packet takes, and which get copies | no | no |
//! | [`proto::datapath`] | joins these five on a session's datagram lanes | no | no |
//! | `adit-netstack` | many TCP, UDP and ICMP flows over smoltcp | no | no |
//! | [`io`] | clock, pools, sockets, TLS, TUN, netlink, control sockets | polls | yes |
//! | [`io::websocket`] | WebSockets under stream lanes, what reverse proxies pass | polls | through what is below |
//! | [`io::via`] | asks a proxy for the connection to the server: CONNECT, SOCKS5 | until it is answered | through [`io::dial`] |
//! | [`client`] | proxy, resolver, forwards, and the client's driver | the driver | through `io` |
//! | [`client::down`] | why there is no tunnel now, in words for all who wait for it | no | no |
//! | [`client::rules`] | which way a request goes, and whether an open flow still may | no | no |
//! | [`client::enclosure`] | ends the packets of commands that share the client, and opens what they carry again | its task | the TUN devices that it was handed |
//! | [`client::enrol`] | makes a key a client's, by the link of an invitation | until it is answered | through [`io::carrier`] |
//! | [`server::roll`] | who is invited, who has enrolled, who is denied | no | no |
//! | [`server::enrolment`] | the roll on its disk, and in force beside the configuration | for the disk | one file |
//! | [`client::direct`] | what goes beside the tunnel, by sockets of the host | yes | yes |
//! | [`client::host`] | the whole host in the tunnel: which routes and rules follow from configuration and session, and who keeps them so | its task | through [`io::host`] |
//! | [`io::host`] | what is changed in a client's host, journaled and undone: policy routing, nftables, resolv.conf | no | yes |
//! | [`client::dns`] | who answers a name: rules, lists, cache, upstreams; and the local resolver | its listeners | through the tunnel, and sockets of its own |
//! | [`server`] | peers, leases, router, filter, egress, and its drivers | the drivers | through `io` |
//! | [`status`] | every counter in one place, a report of them, and that as metrics | no | /proc |
//! | [`reload`] | who asks for a configuration to be read again, and what came of it | whoever asks | no |
//! | [`config`], [`cli`] | what the user says | no | files |
//! | [`doctor`] | `adit doctor`: looks at a client or a server, judges in words; what judges is pure | its probes | through `io`, and sessions of its own |
//! | [`bench`](mod@bench) | `adit bench`: measures through a proxy, and swarms of simulated clients | its drivers | through `io` |
//! | [`fuzz`] | entry points for fuzzers | no | no |
//! | `adit-fec` | the erasure code of [`proto::repair`], and how much of it to send when | no | no |
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
//! | [`client::driver`] | one | the session, its lanes, the netstack, every proxied socket; of `adit run`, the TUN device instead |
//! | [`client::host`] | one, with `tun`, and one more [`client::driver`] with the TUN device | what the host was changed by, in [`io::host`] |
//! | [`client::enclosed`] | one, of `adit run`: on the same thread as the driver | the routing socket and resolv.conf of the command's namespace |
//! | [`client::shared`] | one, of `adit run --share`, and a thread that waits for the client | the connection to the client's control socket; the same two |
//! | [`client::enclosure`] | one a command that shares the client, one each of its UDP ports and identifiers of pings | the command's TUN device, the netstack behind it |
//! | [`client::connect`] | futures of the driver's task, one for each server of the list at most, and one for another lane beside the one there is | a connection until its handshake is answered |
//! | [`client::proxy`] | one a listener, and one a connection, until its request is answered and the socket handed to the driver; plain HTTP stays, since its requests are rewritten, and so does what goes [directly](client::direct) | the application's socket |
//! | [`cli`]: reload | one, where there is a configuration file | what of the configuration is in force |
//! | [`io::admin`] | one, and one a connection, where `admin:` says so | the admin address |
//! | [`client::resolve`] | one for names that the driver wants | the lookups under way |
//! | [`client::dns`] | one that listens, one a TCP connection to it, one that prefetches, one that fetches lists | the local resolver's sockets; answers under way |
//! | [`client::forwards`] | one a forward, one a connection until both its ends stand, one a UDP peer | what listens; a UDP peer's socket or inner port |
//! | [`io::control`] | one, and one a connection | the control socket; for `adit nc`, the news of how its flow has ended, and the flow itself where rules send it beside the tunnel |
//! | [`server::listening`] | one a listener | the listening socket |
//! | [`server::accept`] | one a connection, until it is known who calls | a stranger's socket |
//! | [`server::datagrams`] | two a socket: one that reads and sorts, one that answers handshakes | the socket's reading side; the handshakes' queue |
//! | [`server::session`] | one a session | the session, its lanes, and with egress `user` its netstack and its clients' sockets |
//! | [`server::local`] | one a TCP connection to the inner resolver; outer connects are futures of the session's task | the stream of queries |
//! | [`server::egress::tun`] | one | reading the TUN device |
//! | [`bench::swarm`] | one a simulated client | its session and its lane |
//!
//! A client runs on one thread, a server on half as many as there are processors: a session that is woken on the thread of
//! whoever brought its packets finds them in the cache, and one that another thread takes over does not (`threads` of the
//! configuration; measured in `docs/benchmarks.md`). A task with a flow in bulk gives way after a quarter of a
//! millisecond ([`io::turns`]), or it would learn of no other socket.
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
//! With `adit run` both ends are devices: client and server read a packet from the one and write it to the lane, and back.
//!
//! A relayed flow's byte is copied by the kernel alone, twice at each end: it is read from the socket into a queue of the
//! flow, and AES-GCM seals it from there into the lane's write buffer (ChaCha20 wants it copied first); it is opened in
//! the lane's read buffer and written to the socket from there. Only what the socket does not take goes to a queue.
//!
//! A command that shares a client costs two copies more each way, from its netstack to the driver's through a pipe.
//!
//! A WebSocket adds a move of what stands behind a head in a read, by the length of the head, and at a client that sends the
//! masked copy; a server sends its buffers as they are ([`io::websocket`]). TLS copies both ways, as any user of it.
//!
//! What a stream lane has no room for waits in a fair queue, in the buffer it was read into; of a super-packet that loses a
//! segment there, the others are copied.
//! On a datagram lane a packet waits in the fair queue, in a buffer of its own; each wire packet that is cut from it is
//! copied into the batch of datagrams, where it is sealed, and into the ring of what can be repaired. What arrives is
//! opened in place and delivered from there; it is copied besides while the far end sends repairs, and when it is held.
//!
//! # What is bounded, and by what
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | connections before authentication | [`server::accept::MAX_STRANGERS`], [`server::accept::AUTHENTICATION_TIMEOUT`]; beyond half of them [`server::accept::CROWDED_TIMEOUT`] | wait in the kernel's backlog |
//! | a stranger's frame | [`wire::MAX_FRAME_PREAUTH`] | read and thrown away |
//! | a stranger's requests over HTTP, where lanes are WebSockets | a head of 8 KiB each, 404 to each, until the time for authentication is over | 431, closed |
//! | a WebSocket's messages | none is kept, whatever its length; one head and one control frame of 125 bytes are | the lane is closed |
//! | what a client's WebSocket holds masked | [`io::websocket::MAX_MESSAGE`], until the socket has taken it | the lane's queue waits |
//! | a proxy's answer | 8 KiB by HTTP, 262 bytes by SOCKS5, within `connect_timeout` | the attempt has failed |
//! | a stranger's challenges | [`proto::MAX_CHALLENGES`] a connection | silence |
//! | newest handshake times that are remembered | 8,192 (key, instance) pairs | the oldest goes; older handshakes are then challenged |
//! | handshakes by datagrams that wait | [`server::datagrams::HANDSHAKES`] messages | dropped, counted |
//! | sessions begun by datagrams that no client has confirmed | [`server::unconfirmed::MAX_UNCONFIRMED`], of one client [`server::unconfirmed::MAX_UNCONFIRMED_OF_CLIENT`], for [`server::datagrams::CONFIRM_TIMEOUT`] | dropped, counted; cookies are asked for at half of the former |
//! | datagrams that wait for a session | [`io::udp::INBOX_MEMORY`] of buffers | dropped, counted |
//! | guests: sessions of those who were invited, until they have enrolled | 64, for [`server::session::GUEST_TIME`] | silence, counted |
//! | invitations, open and spent | [`server::roll::MAX_INVITATIONS`], spent ones for [`server::roll::KEPT`] | the oldest spent one is forgotten; else refused in words |
//! | clients that have enrolled | [`server::roll::MAX_ENROLLED`] | refused in words |
//! | of those that were revoked, what `restore` needs | [`server::roll::MAX_REVOKED`] | the one that was revoked first is forgotten |
//! | the wait for a key, password or configuration that is a pipe | five seconds | refused in words |
//! | a link | [`config::MAX_LINK_LEN`] characters, [`config::MAX_SERVERS`] addresses | refused in words |
//! | sessions | `max_clients` | refused in words |
//! | instances of one client | 8 | refused in words |
//! | lanes of a session | [`proto::MAX_LANES`] | the oldest dead or joining one is replaced |
//! | packets of a command that wait for a lane | [`proto::QueueLimits`] once more | dropped from the flow that has most there, counted |
//! | changes of the system that are journaled | [`io::journal::MAX_CHANGES`] | refused in words; nothing is changed then |
//! | names of servers whose last addresses are remembered, where the host goes through the tunnel | 64 | asked for each time |
//! | log lines of a tunnel process whose reader does not read | 256 | dropped |
//! | how long a command waits for its tunnel | `--wait`, a minute | not started, told why |
//! | how long a request waits for a tunnel that is down, to a name or an address | [`client::down::TUNNEL_WAIT`] | refused, told why |
//! | commands that share a client | [`client::enclosure::MAX_ENCLOSURES`] | refused in words, counted |
//! | of each, TCP flows; questions by UDP | [`client::enclosure::MAX_FLOWS`]; [`client::enclosure::MAX_QUERIES`] | reset; dropped, counted |
//! | of each, UDP ports, and identifiers of pings | [`client::forwards::MAX_PEERS`], idle for [`client::forwards::UDP_IDLE`] and [`client::enclosure::ECHO_IDLE`] | the most silent goes |
//! | what a command has sent and is gone | [`client::enclosure::LEAVE`] | reset |
//! | a frame | [`wire::MAX_FRAME`] | the lane is closed |
//! | flows whose lane is remembered, of several | 512 | the idlest of four takes a lane anew |
//! | copies of thin packets on other stream lanes | [`proto::spread::MAX_COPIES`] in all of each, [`proto::spread::COPY_RATE`] | sent once, counted |
//! | what stream lanes' read buffers hold beyond 2 KiB each | [`io::lane::READ_MEMORY`], and 4 MiB a session; twice that for frames that have begun | the lane is not read, counted; one that sits on a part of a frame is ended |
//! | a stream lane's write queue | [`io::lane::HIGH_WATER`] | back-pressure to the netstack |
//! | packets that wait for a datagram lane | [`proto::QueueLimits`]: 4 MiB, 4,096 packets, 8 MiB of memory | dropped from the flow that has most there, counted; the own netstack is pushed back before |
//! | flows that the fair queue tells apart | 1,024 | the idlest of eight is forgotten; two share a queue |
//! | packets that can be repaired or sent again | [`proto::repair::RING`] each way, given back after [`proto::datapath::IDLE`] (sent) and [`proto::repair::DECODER_IDLE`] (received) | the oldest goes, and is lost if it was |
//! | repairs of which too much is missing | [`proto::repair::EQUATIONS`] | another is displaced, counted |
//! | resends that wait | [`proto::repair::MAX_WAITING_RESENDS`]; of one packet [`proto::repair::MAX_RESENDS_OF_ONE`] | not sent again |
//! | packets that are held | [`proto::HoldLimits`]: 4 MiB, 4,096 packets, each for [`proto::MAX_HOLD`] at most | the oldest is delivered |
//! | flows and gaps that the hold knows | 512 and 1,024 | not held |
//! | datagrams in flight on a lane | [`proto::delivery::MAX_TRACKED`], and the window of [`proto::congestion`] | wait in the fair queue |
//! | those beyond the window, and reports | [`proto::delivery::MAX_UNPERMITTED`] | leave, and have no fate |
//! | a report | [`wire::MAX_RANGES`] ranges, [`wire::MAX_MISSING`] numbers asked for | told in the next |
//! | reordering over all lanes | [`proto::WINDOW`] source numbers | dropped, counted |
//! | packets waiting for one client, until its session takes them | [`server::router::DOWNLINK_BYTES`], [`server::router::DOWNLINK_MEMORY`] | dropped, counted |
//! | packets that wait for a session's stream lanes | [`proto::QueueLimits`]: 4 MiB, 4,096 packets, 16 MiB of memory | dropped from the flow that has most there, counted |
//! | packets waiting for all clients, in front of lanes too | [`server::router::TOTAL_BYTES`] | dropped, counted |
//! | flows and half-open flows of a session | `limits:` of the configuration | reset |
//! | a relayed flow's queues | [`proto::relayed::WINDOW`] each way, in memory only while used | the socket is not read; a peer that sends more is reset |
//! | what the flows of a process or session hold together | `limits:` of the configuration, half of what the control group allows at most; by default [`proto::budget::PROCESS`], [`proto::budget::SESSION`], at a client [`proto::budget::CLIENT`] | windows do not grow, sockets are hardly read; from half of it on new flows are refused; at it what comes is dropped and sent again (the netstack's flows), or its flow is reset (relayed ones); all counted |
//! | resets of relayed flows that wait for a lane | 4,096 | dropped, counted; told when the peer speaks of the flow |
//! | a flow's rings | 1 MiB each way, in memory only while used; the window begins with 64 KiB | the window closes, the socket is not read |
//! | UDP mappings of a session | [`server::egress::udp::MAX_MAPPINGS`] | the idlest is replaced |
//! | pings of a session under way | [`server::egress::echo::MAX_ECHOES`] | dropped, counted |
//! | segments of a super-packet | 64 | dropped, counted |
//! | connections to an origin of `adit bench` | [`bench::origin::MAX_CONNECTIONS`], for [`bench::origin::IDLE`] without a byte | closed, counted |
//! | requests before the first session, at the client | 1,024 for 10 s | refused in words |
//! | TCP flows beside the tunnel, of a client | [`client::direct::MAX_FLOWS`], of [`client::direct::BUFFER`] bytes each way | refused in words, counted |
//! | names that the host's resolver is asked for at once | [`client::direct::MAX_LOOKUPS`] | wait, [`client::resolve::LOOKUP_LIMIT`] at most |
//! | sockets beside the tunnel of a UDP association | one of each family | none needed |
//! | datagrams of associations with direct rules that wait for room in the lane | 256 | dropped, counted |
//! | rules of a proxy; further proxies | 1,000; 64 | refused in words at the start |
//! | answers of the resolver that are kept | [`client::dns::CACHE_ENTRIES`], [`client::dns::CACHE_BYTES`] | the least used goes |
//! | questions that upstreams are asked at a time | [`client::dns::MAX_ASKED`], for [`client::dns::ANSWER_LIMIT`] with the wait | wait, then SERVFAIL |
//! | questions to the local resolver that wait for an upstream | [`client::dns::MAX_DATAGRAMS`], of one address [`client::dns::MAX_OF_SENDER`] | dropped, counted; on streams left unread |
//! | connections to the local resolver | [`client::dns::MAX_STREAMS`] | closed, counted |
//! | names of lists, of each kind | [`client::dns::MAX_NAMES`]; a list has [`config::MAX_LIST`] bytes at most, and there are [`config::MAX_LISTS`] | left out, told; a file that is larger is refused in words |
//! | forwards of a client | [`config::MAX_FORWARDS`] | refused in words |
//! | connections of a forward that do not stand yet | [`client::forwards::MAX_PENDING`] | reset, counted (`-L`); wait (`-R`), at most 256 more, then their SYNs are not answered and come again |
//! | UDP peers of a forward | [`client::forwards::MAX_PEERS`], for [`client::forwards::UDP_IDLE`]; of each [`client::forwards::PEER_QUEUE`] datagrams | the most silent goes; dropped, counted |
//! | an examination by `adit doctor` | [`doctor::LIMIT`]; 1 MiB of echoes under way, 8 MB in all, while it loads the way | skipped, told; its session ends by a goodbye all the same |
//! | connections to a control socket | [`io::control::MAX_CONNECTIONS`], each idle for [`io::control::IDLE`]; [`io::control::MAX_HELD`] more that wait for an end | closed, counted |
//! | connections to the admin address | [`io::admin::MAX_CONNECTIONS`], each [`io::admin::IDLE`] without a request | wait in the kernel |
//! | reports of a program at a time | one of a server; a session has [`status::PATIENCE`] to answer | the next waits; the session is left out, told |
//! | names of clients in metrics | [`status::MAX_LABELLED`] | summed up under an empty name |
//! | files of killed programs in the folder of control sockets | they go when another of their kind starts, 256 at a time; an instance ten minutes after its socket | the next start takes the others |
//! | a line on a control socket | [`io::control::MAX_LINE`] | answered in words, closed |
//!
//! # After a lane is lost
//!
//! A client that knows several ways goes to the next: datagrams before TLS before TCP, or whatever
//! order its list has (see `client::link`). A way that is
//! silent for a second is left while another answers, and gone back to when it answers again; a new
//! lane joins the session each time, and both ends send on the lane that joined last, or on the group in which that stands.
//!
//! The client's flows do not notice: the netstack gets no room to send and waits; of relayed flows each end sends again
//! what the other has not acknowledged. The client
//! dials again and sends, in one flight, a frame that joins the new lane to the session and a
//! fresh handshake. A server that still has the session takes the first, one that was
//! restarted answers the second and leases the same address again, because leases belong to
//! the client's key and instance and are kept on disk. A client that was killed goes on as the same instance in its next
//! process ([`client::instance`]), so that the session it has left behind ends at once and its address is not held for it.
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
//! - **A rule about networks never makes a name leak**: names are resolved through the tunnel, and by the host only where a
//!   `direct` rule names the name; by nobody, where a record of the client's own file has it. What the tunnel resolves to a private address goes nowhere directly, since strangers
//!   would choose what is reached in the client's network ([`client::rules`]).
//! - **A flow keeps what it was judged by.** Rules that change end the flows that they send another way, and no others;
//!   so the driver asks each flow's judgement again instead of knowing rules itself.
//! - **TLS is camouflage.** A client does not check certificates unless told to; a server makes its own. Whatever
//!   a lane is, the session inside authenticates both ends and seals everything, once more inside TLS too.
//! - **The C library resolves no name.** hickory does, by /etc/resolv.conf and /etc/hosts ([`io::resolver`]): so a static
//!   program finds names in an empty container, no look-up needs a thread, and none outlives its time-out. What only modules of
//!   nsswitch.conf know, such as mDNS, is not found.
//! - **Root is left before the first thread**, not after the sockets are bound: ports below 1024 and the TUN device cost two
//!   capabilities, and what reads strangers' bytes never had the others ([`io::privilege`]).
//! - **The GNU C library, linked statically**, is what is released, for one binary that is tested and shipped; musl's allocator
//!   would cost throughput.
//! - **No library for WebSockets**: those there are hand out messages in memory of their own, and a lane wants a stream in
//!   its buffers ([`io::websocket`]). The handshakes are hyper's.
//! - **No datagram goes past a proxy**: where `via` leads to a server, its `udp://` address is left out, and a proxy is
//!   asked for names, so that the network sees what it would see of a browser.
//! - **Flows are relayed only where a session can use nothing but one stream lane at a time**: one that may move to
//!   datagrams needs packets that can be repaired, and lanes side by side carry copies of thin ones. Where a flow leads is
//!   judged by each of its frames, as by each packet, so that a policy that changes cuts both.
//! - **`user` ends TCP twice**, at the client and at the server, so that the kernel's TCP faces the Internet; `tun`
//!   carries the client's own segments to the origin.
//! - **`adit run` becomes the command.** The process that the shell started makes the namespaces and execs; the session is in a
//!   process beside it ([`io::namespace`]), from which nothing is relayed but packets. What the command cannot reach is not
//!   forbidden but not there.
//! - **Congestion is told by marks where a flow takes them.** The client's stack and the kernel of a command offer ECN, and a queue
//!   marks instead of dropping, before it is full too. Our own stack's packets cannot be marked: it waits for room instead.
//! - **A server's kernel works for clients on all processors** where it starts as root and stays root ([`io::tun`]): the thread that
//!   writes a packet would route it otherwise, beside sealing and opening.
//! - **A shared session is shared by flows, not by packets.** Commands under `adit run --share` could have addresses of their own in
//!   the session, but a session has one lease, and a server of before would not know of more; or packets could be
//!   translated at the client, with a table of every flow, port and ping in it. Instead the client ends their TCP in a
//!   netstack, as the egress `user` does, and opens it again as its proxy does ([`client::enclosure`]). Both ends of that were
//!   there; any server will do; the client's rules and resolver hold for commands, too; and where the session relays flows,
//!   these are. What it costs is two copies, traceroute, and errors about datagrams.
//! - **A host in the tunnel has two sessions**, its own and the proxy's ([`client::host`]): a device and a netstack behind one
//!   inner address would have to share its ports, and each packet be told from the other's. Nothing that exists changed, and
//!   the proxy's flows do not depend on the host's routes.
//! - **What the host's own routes say stays**: rules and tables of our own are asked before, and our sockets bear a mark that
//!   passes them by. The names of servers are asked by such sockets too, of the name servers that the host had before.
//! - **A host in the tunnel answers where it was asked.** Who begins to speak to one of its outer addresses gets the answer from
//!   there: else whoever starts the client over ssh loses the host. A mark on the connection tells these from all that the
//!   host begins, and a kill switch, which is asked for, does without it ([`io::nft::host`]). It stays where the tunnel ends
//!   by a fault.
//! - **The lanes policy is the order of a list.** `server:` ranks the ways to the server: a better one that answers is
//!   gone back to, and one way carries the session at a time, the one that joined last.
//! - **Several lanes at once are streams to one server**, as many as `lanes:` says, and the client says which stand together.
//!   Copies of what is thin, one for one, are all the parity there is: a longer code would wait for packets that come
//!   20 ms later. A flow in bulk stays on one lane ([`proto::spread`]), since TCP inside takes what was overtaken for
//!   lost; so one download is as fast as one lane.
//! - **`-R` has no word in the protocol.** A port of the inner address is a port like any host's: packets reach it, from
//!   whomever the server's own rules let through, and the client's netstack listens there. So nothing new is trusted, and
//!   other clients, the server's host and routed networks are told apart by what tells them apart anyway.
//! - **A session is asked for its numbers, and publishes none.** A report goes over the queue that brings new lanes, so nothing is
//!   added to the way of a packet, and it costs nothing while nobody looks ([`status`]).
//! - **A reload touches what has changed.** Each key is classified where configurations are put into force, without a
//!   default, so that a new one does not compile before it is known whether it can be followed ([`server::reload`]).
//! - **Who was revoked is told so in the handshake.** Strangers meet silence, and so did whoever had been a client: it could not
//!   tell a revocation from a blocked port, and neither could `adit doctor`. The answer is sealed for the client's key, is
//!   given to none but a key that the server has known, and costs less than any other, since nothing is kept of who gets no session,
//!   not even the time that it says; the roll keeps such keys on record, for `restore`, too.
//! - **The session of a whole host goes first, and nothing else waits for it.** The client's own session, which has its control
//!   socket, begins with it and asks for its lease when the host goes through the tunnel: a fixed address is the host's, and
//!   `adit status` answers while the kill switch lets nothing out.
//! - **`adit nc` hands its socket over.** The running client gets one end of a socket pair by the control socket and treats it
//!   as any proxied socket; how the flow ended is told beside the bytes, since a Unix socket knows no reset.
//! - **A source datagram is never held up or changed by repair.** Parity is sent beside it, and where nothing is lost it
//!   is not sent; so a lane that repairs costs no delay.
//! - **A guest's lane may be kept up.** Of somebody who was invited, nothing but the token means anything; but pings, probes, reports
//!   and path challenges are let through, since the lane below is an ordinary one and a stranger gains nothing by them.
//! - **Spent invitations are remembered for a week**, so that whoever comes late or second is told so in words. An id that was
//!   never known meets silence, as any stranger does.
//! - **A client's key is on its disk before the server hears of it**, and the same key is answered the same again; so nothing
//!   is lost wherever `adit join` or the server is killed, and no step has to be undone.
//! - **An interface that is deleted ends its server or client; one that is switched off is put right.** What others have written
//!   about the interface, rules and routes, goes with it, so whoever watches services has to see it ([`server::egress::watch`]).
//! - **The lock on a host's tunnel is an empty nftables table that its socket owns** ([`io::nft::lock`]): it has the reach of what
//!   it guards, one network namespace, ends with the process, and nobody without CAP_NET_ADMIN can take it or be in its way.
//! - **A program is known by what it says it has**, not by its key: several may share one. Its report names its file, state folder,
//!   device and ports ([`status::Uses`]), so that whoever looks at a file can tell its own program from a neighbour ([`doctor::running`]).
//! - **A doctor is a client.** It measures by sessions of its own, of an instance of its own, and reads what they count: so what it
//!   says of losses, path MTU and repair is what the program itself goes by. A handshake alone, by which it tries each way,
//!   changes nothing at a server ([`doctor`]).
//! - **The configuration is never written to** by a program that runs. Who enrols is kept beside the leases; who is listed by the
//!   operator and revoked is denied there, over restarts and reloads. `adit join --force` changes single keys of a client's,
//!   and reads the result again before it is written ([`config::edit_file`]).
//! - **Random loss does not slow a datagram lane down**, delay that rises does ([`proto::congestion`]). What TCP inside
//!   should not see is repaired below it, and the hold keeps TCP from noticing meanwhile; other packets are never
//!   held.

pub mod bench;
pub mod cli;
pub mod client;
pub mod config;
mod dns;
pub mod doctor;
pub mod fuzz;
pub mod io;
pub mod proto;
pub mod reload;
pub mod server;
pub mod status;
pub mod wire;
