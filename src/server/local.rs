//! One session's netstack on the server: the inner gateway, and the egress `user`.
//!
//! # Theory of operation
//!
//! Packets for the gateway's own addresses end here: echo requests are answered by the
//! netstack, port 53 is the DNS service, everything else is refused as not allowed. With egress `user`
//! packets for the Internet end here too: each TCP flow, UDP mapping and echo request is
//! carried on by an ordinary socket.
//!
//! ```text
//!            ┌ gateway:53 ──▶ DnsClient
//!  packets ──┤ TCP  ── Incoming ─▶ connect(2) ─▶ accept / reject ─▶ Relay
//!            ├ UDP  ── mapping by the client's address and port ─▶ one socket a family
//!            └ echo ── ping socket
//! ```
//!
//! Where the session [relays flows](crate::proto::relayed), the client asks for connections by name of their address, and
//! their bytes go between the lane and the outer socket, through a relay of their own and no netstack. They count
//! against the same limits.
//!
//! The SYN of a flow is answered only when the outer connect has succeeded, and with a reset
//! or the fitting ICMP error when it has failed, so that the client's proxy can tell its
//! application the truth.
//!
//! # Limits
//!
//! Flows and half-open flows per session as configured ([`LocalLimits`]); UDP mappings at
//! most [`super::egress::udp::MAX_MAPPINGS`], idle ones end after [`super::egress::udp::MAPPING_IDLE`]; DNS queries under way at most
//! [`MAX_QUERIES`]. Whatever exceeds a limit is dropped or refused, and counted.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Config, Delivery, Event, FlowId, Offload, PacketSink, Rejection, Stack, Unreachable,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use tracing::debug;

use crate::io::attempts::Attempts;
use crate::io::carrier::has_room;
use crate::io::pool::Pool;
use crate::io::relay::{Endpoint, ReadySet, Relay};
use crate::io::turns::Turns;
use crate::proto::Role;
use crate::proto::budget::Share;
use crate::proto::relayed::{Pieces, Relayed, RelayedEvent, RelayedKey};
use crate::server::dns::DnsClient;
use crate::server::egress::echo::EchoSockets;
use crate::server::egress::udp::Mappings;
use crate::status::Counters;
use crate::wire::{FlowFrame, RelayedId, ResetReason};

/// One session's netstack on the server and the sockets behind it.
pub struct Local {
    stack: Stack,
    relay: Relay,
    ready: Arc<ReadySet>,
    relayed: Relayed,
    relayed_relay: Relay<Relayed>,
    relayed_ready: Arc<ReadySet>,
    limits: LocalLimits,
    gateways: Vec<IpAddr>,
    egress: bool,
    /// Outer connections that are being made.
    connecting: Attempts<Asker, io::Result<TcpStream>>,
    connected: HashMap<FlowId, TcpStream>,
    mappings: Mappings,
    echoes: EchoSockets,
    dns: DnsClient,
    queries: FuturesUnordered<Query>,
    /// Answers that wait for room.
    answers: VecDeque<Answer>,
    stats: LocalStats,
}

/// For whom an outer connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asker {
    /// A flow of the netstack.
    Inside(FlowId),
    /// A flow that is relayed.
    Relayed(RelayedKey),
}

/// What one session may hold open on the server.
#[derive(Clone, Copy, Debug)]
pub struct LocalLimits {
    /// TCP flows, open or closing.
    pub flows: usize,
    /// TCP flows whose outer connect has not succeeded yet.
    pub half_open: usize,
}

/// What a [`Local`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalStats {
    /// Outer connections that were made.
    pub connected: u64,
    /// Flows refused, because with the others of either kind they were too many.
    pub too_many: u64,
    /// Outer connections that failed.
    pub connect_failed: u64,
    /// DNS queries answered over UDP.
    pub queries: u64,
    /// DNS queries dropped: too many under way.
    pub queries_dropped: u64,
    /// Datagrams for closed ports of the gateway.
    pub gateway_refused: u64,
    /// Echo replies that answer no request of ours.
    pub echoes_ignored: u64,
    /// Errors of the client's about datagrams that it was sent: their senders do not learn of it.
    pub udp_failed: u64,
    /// Answers dropped because they are too long, or the lane had no room for all their fragments.
    pub no_room: u64,
}

impl Local {
    /// Makes the netstack of a session whose gateway has these addresses; `egress` tells
    /// whether flows for other destinations are carried on by sockets, and `share` how much all of them may hold.
    pub fn new(
        gateways: Vec<IpAddr>,
        mtu: u16,
        egress: bool,
        limits: LocalLimits,
        share: Share,
        dns: DnsClient,
        seed: u64,
    ) -> Self {
        let config = Config {
            mtu,
            addresses: gateways.clone(),
            // Also with egress `tun`, where only packets for the gateway come here: the netstack
            // would answer for those of its ports that nobody has bound.
            accept: Accept::Any,
            incoming: true,
            max_flows: limits.flows,
            max_half_open: limits.half_open,
            ..Config::default()
        };
        let (ready, relayed_ready) = (ReadySet::new(), ReadySet::new());
        let mut stack = Stack::new(config, seed);
        stack.set_memory(Box::new(share.part()));
        Self {
            stack,
            relay: Relay::new(ready.clone()),
            ready,
            relayed: Relayed::new(Role::Responder, limits.flows, share),
            relayed_relay: Relay::new(relayed_ready.clone()),
            relayed_ready,
            limits,
            gateways,
            egress,
            connecting: Attempts::new(),
            connected: HashMap::new(),
            mappings: Mappings::new(),
            echoes: EchoSockets::new(),
            dns,
            queries: FuturesUnordered::new(),
            answers: VecDeque::new(),
            stats: LocalStats::default(),
        }
    }

    /// Takes a packet that the destination policy has let through.
    pub fn handle_packet(&mut self, now: Instant, packet: &mut [u8], offload: Offload) {
        let mut forbidden = false;
        match self.stack.handle_packet(now, packet, offload) {
            Ok(Delivery::Absorbed) | Err(_) => {}
            Ok(Delivery::Udp {
                local,
                remote,
                payload,
                segment,
            }) => {
                if self.gateways.contains(&local.ip()) {
                    if local.port() != DNS_PORT {
                        self.stats.gateway_refused += 1;
                    } else if self.queries.len() + self.answers.len() >= MAX_QUERIES {
                        self.stats.queries_dropped += 1;
                    } else {
                        let (dns, query) = (self.dns.clone(), payload.to_vec());
                        self.queries.push(Box::pin(async move {
                            let answer = dns.answer_udp(&query).await?;
                            Some((local, remote, answer))
                        }));
                    }
                } else if self.egress {
                    for datagram in datagrams(payload, segment) {
                        self.mappings.send(now, remote, local, datagram);
                    }
                }
            }
            Ok(Delivery::Echo {
                request,
                local,
                remote,
                ident,
                sequence,
                payload,
            }) => {
                if self.egress && request {
                    forbidden = !(self.echoes).send(now, remote, local, ident, sequence, payload);
                } else {
                    self.stats.echoes_ignored += 1;
                }
            }
            Ok(Delivery::UdpFailed { .. }) => self.stats.udp_failed += 1,
        }
        if forbidden {
            // Silence would be taken for a loss.
            self.refuse(packet, Unreachable::AdminProhibited);
        }
    }

    /// Returns where a relayed flow leads that the client speaks of.
    pub fn flow_destination(&self, id: RelayedId) -> Option<SocketAddr> {
        let (_, destination) = self.relayed.remote_of(id)?;
        Some(destination)
    }

    /// Takes a frame of a relayed flow, and the bytes behind its fields; `allowed` says whether the destination policy
    /// lets the flow through.
    pub fn handle_flow(
        &mut self,
        now: Instant,
        frame: &FlowFrame,
        bytes: Pieces<'_>,
        allowed: bool,
    ) {
        let relay = &mut self.relayed_relay;
        (self.relayed).handle_frame(now, frame, bytes, |flow, bytes| {
            if allowed { relay.offer(flow, bytes) } else { 0 }
        });
        if !allowed && let Some((flow, _)) = self.relayed.remote_of(frame.flow()) {
            self.relayed.fail(flow, ResetReason::NotAllowed);
        }
    }

    /// Lends the relayed flows, to say what they have to say.
    pub fn relayed(&mut self) -> &mut Relayed {
        &mut self.relayed
    }

    /// Answers a packet that may not pass with an ICMP error from the gateway.
    pub fn refuse(&mut self, packet: &[u8], why: Unreachable) {
        self.stack.send_unreachable(packet, why);
    }

    /// Moves what can be moved, with buffers of `pool`, of each kind something and no more than `turns` has time for; returns
    /// whether anything was.
    pub fn poll<S: PacketSink>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        turns: Turns,
        pool: &Arc<Pool>,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        self.relayed_ready.register(cx);
        let mut any = self.poll_connecting(cx, now);
        any |= self.poll_events(now, turns);
        any |= self.poll_relayed(now, turns);
        any |= self
            .relay
            .poll_ready(now, &mut self.stack, READY_PER_TURN, turns);
        any |= (self.relayed_relay).poll_ready(now, &mut self.relayed, READY_PER_TURN, turns);
        any |= self.poll_queries(cx, sink);
        any |= self.mappings.poll(cx, now, pool, &mut self.stack, sink);
        any |= self.echoes.poll(cx, now, pool, &mut self.stack, sink);
        while self.relay.poll_ended().is_some() {}
        self.stack.poll_transmit(now, sink);
        any
    }

    /// Returns when [`Local::handle_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        [
            self.stack.poll_timeout(),
            self.relayed.poll_timeout(),
            self.mappings.poll_timeout(),
            self.echoes.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due by `now`; returns whether so many flows came and went that memory is to be given back.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.stack.handle_timeout(now);
        self.relayed.handle_timeout(now);
        self.mappings.handle_timeout(now);
        self.echoes.handle_timeout(now);
        let relayed = self.relayed.is_at_rest() && self.relayed_relay.burst_is_over();
        // Asked in this order: the burst is over when its addresses have rested, too.
        let inside = self.stack.is_empty()
            && self.stack.stats().waits_now == 0
            && self.relay.burst_is_over();
        relayed || inside
    }

    /// What was counted, of all parts, for the log at the end.
    pub fn counters(&self) -> impl std::fmt::Debug + '_ {
        (
            self.stack.stats(),
            &self.stats,
            self.relay.stats(),
            self.relayed.stats(),
            self.relayed_relay.stats(),
            self.mappings.stats(),
            self.echoes.stats(),
        )
    }

    /// Adds what was counted, of all parts, to `counters`.
    pub fn count(&self, counters: &mut Counters) {
        counters.add("netstack", self.stack.stats());
        counters.add("egress", &self.stats);
        counters.add("relay", self.relay.stats());
        counters.add("relayed_flows", &self.relayed.stats());
        counters.add("relayed_relay", self.relayed_relay.stats());
        counters.add("udp", self.mappings.stats());
        counters.add("echo", self.echoes.stats());
        let tcp = self.connecting.len()
            + self.connected.len()
            + self.relay.tcp_sockets()
            + self.relayed_relay.tcp_sockets();
        for (part, name, now) in [
            ("egress", "tcp_sockets_now", tcp),
            ("udp", "mappings_now", self.mappings.len()),
            ("udp", "sockets_now", self.mappings.sockets()),
            ("echo", "sockets_now", self.echoes.sockets()),
        ] {
            counters.count_now(part, name, now);
        }
    }

    /// How many TCP flows there are.
    pub fn flows(&self) -> usize {
        self.relayed.len() + self.stack.len()
    }

    fn poll_events(&mut self, now: Instant, turns: Turns) -> bool {
        let mut any = false;
        while let Some(event) = self.stack.poll_event() {
            any = true;
            match event {
                Event::Incoming { flow, local, .. } => self.incoming(now, flow, local),
                Event::Established { flow } => match self.connected.remove(&flow) {
                    Some(socket) => {
                        self.relay.attach(flow, Endpoint::Tcp(socket), Vec::new());
                    }
                    None => self.serve_dns(flow),
                },
                Event::Progress { flow } => {
                    self.relay.pump(now, &mut self.stack, flow);
                }
                Event::Closed { flow, .. } => {
                    self.connecting.give_up(Asker::Inside(flow));
                    self.connected.remove(&flow);
                    self.relay.reset(flow);
                    self.stack.release(now, flow);
                }
            }
            if turns.are_over_by_now() {
                break;
            }
        }
        any
    }

    fn poll_relayed(&mut self, now: Instant, turns: Turns) -> bool {
        let mut any = false;
        while let Some(event) = self.relayed.poll_event() {
            any = true;
            match event {
                RelayedEvent::Incoming { flow, destination } => {
                    // It may have been reset, or not been allowed.
                    if !self.relayed.is_asked(flow) {
                        continue;
                    }
                    if self.has_too_many() || self.relayed.half_open() > self.limits.half_open {
                        self.stats.too_many += 1;
                        self.relayed.refuse(flow, ResetReason::TooMany);
                    } else {
                        self.connect(Asker::Relayed(flow), destination);
                    }
                }
                // Only a client is told.
                RelayedEvent::Established { .. } => {}
                RelayedEvent::Progress { flow } => {
                    self.relayed_relay.pump(now, &mut self.relayed, flow);
                }
                RelayedEvent::Closed { flow, .. } => {
                    self.connecting.give_up(Asker::Relayed(flow));
                    self.relayed_relay.reset(flow);
                    self.relayed.release(flow);
                }
            }
            if turns.are_over_by_now() {
                break;
            }
        }
        any
    }

    /// Whether there are more flows of both kinds than a session may have; each kind has the limit for itself, too.
    fn has_too_many(&self) -> bool {
        self.relayed.len() + self.stack.len() > self.limits.flows
    }

    fn connect(&mut self, asker: Asker, destination: SocketAddr) {
        // Given up with its flow: the limit of half-open flows is theirs, too.
        self.connecting.begin(asker, async move {
            let attempt = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(destination));
            attempt
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
    }

    fn incoming(&mut self, now: Instant, flow: FlowId, local: SocketAddr) {
        if self.gateways.contains(&local.ip()) {
            if local.port() == DNS_PORT {
                self.stack.accept(now, flow);
            } else {
                // The server's own services are not the clients', whether somebody listens or not.
                let why = Unreachable::AdminProhibited;
                self.stack.reject(now, flow, Rejection::Unreachable(why));
            }
        } else if self.egress && self.has_too_many() {
            self.stats.too_many += 1;
            self.stack.reject(now, flow, Rejection::Reset);
        } else if self.egress {
            self.connect(Asker::Inside(flow), local);
        } else {
            self.stack.reject(now, flow, Rejection::Reset);
        }
    }

    fn serve_dns(&mut self, flow: FlowId) {
        let (inner, outer) = tokio::io::duplex(DNS_PIPE);
        let dns = self.dns.clone();
        // Ends with the pipe: the relay drops its end when the flow or the session ends.
        tokio::spawn(async move {
            if let Err(error) = dns.serve_stream(outer).await {
                debug!(%error, "a DNS stream failed");
            }
        });
        self.relay
            .attach(flow, Endpoint::Pipe(Box::new(inner)), Vec::new());
    }

    fn poll_connecting(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        while let Poll::Ready((asker, result)) = self.connecting.poll_outcome(cx) {
            any = true;
            match result {
                Ok(socket) => {
                    self.stats.connected += 1;
                    // Without it, small writes of the client's wait for the origin's ACKs.
                    let _ = socket.set_nodelay(true);
                    match asker {
                        Asker::Inside(flow) => {
                            if self.stack.addresses(flow).is_some() {
                                self.stack.accept(now, flow);
                                self.connected.insert(flow, socket);
                            }
                        }
                        Asker::Relayed(flow) => {
                            if self.relayed.is_asked(flow) {
                                self.relayed.accept(flow);
                                let endpoint = Endpoint::Tcp(socket);
                                self.relayed_relay.attach(flow, endpoint, Vec::new());
                            }
                        }
                    }
                }
                Err(error) => {
                    self.stats.connect_failed += 1;
                    match asker {
                        Asker::Inside(flow) => self.stack.reject(now, flow, rejection(&error)),
                        Asker::Relayed(flow) => self.relayed.refuse(flow, refusal(&error)),
                    }
                }
            }
        }
        any
    }

    fn poll_queries<S: PacketSink>(&mut self, cx: &mut Context<'_>, sink: &mut S) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(answer)) = self.queries.poll_next_unpin(cx) {
            any = true;
            self.answers.extend(answer);
        }
        // A lane that is full of one flow's bytes must not cost an answer.
        while !self.answers.is_empty() && has_room(sink) {
            let Some((local, remote, bytes)) = self.answers.pop_front() else {
                break;
            };
            any = true;
            self.stats.queries += 1;
            if self.stack.send_udp(sink, local, remote, &bytes).is_err() {
                self.stats.no_room += 1;
            }
        }
        any
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local")
            .field("egress", &self.egress)
            .field("flows", &(self.relay.len() + self.relayed_relay.len()))
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

type Query = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// From the gateway, to the client, the message.
type Answer = (SocketAddr, SocketAddr, Vec<u8>);

/// The datagrams of a delivery: one, or those of a super-packet.
fn datagrams(payload: &[u8], segment: usize) -> impl Iterator<Item = &[u8]> {
    // An empty datagram is one, too; `chunks` knows none.
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(segment.max(1)))
}

/// Says in TCP or ICMP what the outer connect failed of.
fn rejection(error: &io::Error) -> Rejection {
    let is = |kind| error.kind() == kind;
    if is(io::ErrorKind::ConnectionRefused) || is(io::ErrorKind::ConnectionReset) {
        Rejection::Reset
    } else if is(io::ErrorKind::NetworkUnreachable) {
        Rejection::Unreachable(Unreachable::Network)
    } else if is(io::ErrorKind::PermissionDenied) {
        Rejection::Unreachable(Unreachable::AdminProhibited)
    } else if is(io::ErrorKind::TimedOut) {
        // The client's own time-out then says what happened.
        Rejection::Silent
    } else {
        Rejection::Unreachable(Unreachable::Host)
    }
}

/// Says the same of a relayed flow.
fn refusal(error: &io::Error) -> ResetReason {
    let is = |kind| error.kind() == kind;
    if is(io::ErrorKind::ConnectionRefused) || is(io::ErrorKind::ConnectionReset) {
        ResetReason::Refused
    } else if is(io::ErrorKind::NetworkUnreachable) {
        ResetReason::NetworkUnreachable
    } else if is(io::ErrorKind::PermissionDenied) {
        ResetReason::NotAllowed
    } else if is(io::ErrorKind::TimedOut) {
        ResetReason::TimedOut
    } else {
        ResetReason::HostUnreachable
    }
}

/// The port of the DNS service on the gateway's addresses.
pub(super) const DNS_PORT: u16 = 53;

/// What a pipe to the DNS service holds each way: one message of the largest size.
const DNS_PIPE: usize = 64 * 1024;

/// How long an outer connect may take: as long as a client waits for the handshake through the
/// tunnel, since nobody is there for a later answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// DNS queries of one session that may be under way.
pub const MAX_QUERIES: usize = 256;

/// Sockets served per turn before the lane gets its turn again.
const READY_PER_TURN: usize = 256;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use adit_netstack::{Cause, Event as StackEvent};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::io::carrier::wire::Wire;
    use crate::io::tun::tests::host::{on_host, set_sysctl};
    use crate::proto::PublicKey;
    use crate::proto::budget::{HARD, SESSION};
    use crate::server::dns::DnsService;

    const GATEWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 86, 0, 1));

    /// A client's netstack and the server's, with nothing lost between them.
    struct Path {
        client: Stack,
        local: Local,
        pool: Arc<Pool>,
        now: Instant,
    }

    impl Path {
        fn new() -> Self {
            let dns = DnsService::new(&[SocketAddr::from(([127, 0, 0, 1], 9))]).unwrap();
            let limits = LocalLimits {
                flows: 100,
                half_open: 10,
            };
            let config = Config {
                addresses: vec![[10, 86, 0, 2].into()],
                ..Config::default()
            };
            Self {
                client: Stack::new(config, 1),
                local: Local::new(
                    vec![GATEWAY],
                    1400,
                    true,
                    limits,
                    Share::alone(SESSION / HARD),
                    dns.client(&PublicKey::from_bytes([1; 32])),
                    2,
                ),
                pool: Pool::new("test", 0, 1),
                now: Instant::now(),
            }
        }

        /// Lets both speak until neither has anything to say; returns what the client was told.
        fn settle(&mut self) -> Vec<StackEvent> {
            let mut events = Vec::new();
            loop {
                let mut up = Wire::default();
                self.client.poll_transmit(self.now, &mut up);
                let quiet = up.packets.is_empty();
                for (mut packet, offload) in up.packets {
                    self.local.handle_packet(self.now, &mut packet, offload);
                }
                let mut down = Wire::default();
                let mut cx = Context::from_waker(Waker::noop());
                let turns = Turns::for_test(false);
                let moved = (self.local).poll(&mut cx, self.now, turns, &self.pool, &mut down);
                if quiet && !moved && down.packets.is_empty() {
                    return events;
                }
                for (mut packet, offload) in down.packets {
                    let _ = self.client.handle_packet(self.now, &mut packet, offload);
                }
                events.extend(std::iter::from_fn(|| self.client.poll_event()));
            }
        }

        async fn event(&mut self) -> StackEvent {
            loop {
                if let Some(event) = self.settle().into_iter().next() {
                    return event;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// A listener whose backlog is full, so that a connect to it hangs; and what fills it.
    async fn silent() -> (SocketAddr, Vec<socket2::Socket>) {
        let listener =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut held = vec![listener];
        for _ in 0..4 {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // In progress, or in the backlog.
            let _ = socket.connect(&address);
            held.push(socket);
        }
        (address.as_socket().unwrap(), held)
    }

    #[tokio::test]
    async fn flow_is_answered_when_the_origin_has_accepted_and_bytes_cross() {
        let mut path = Path::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        let flow = path.client.connect(path.now, origin).unwrap();
        assert_eq!(path.event().await, StackEvent::Established { flow });
        let (mut socket, _) = listener.accept().await.unwrap();
        path.client
            .send(path.now, flow, |ring| {
                ring[..3].copy_from_slice(b"ask");
                (3, ())
            })
            .unwrap();
        path.client.finish(path.now, flow);
        path.settle();
        let mut asked = Vec::new();
        socket.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"ask");
        socket.write_all(b"answer").await.unwrap();
        drop(socket);
        let mut answer = Vec::new();
        while path.client.recv(path.now, flow, |_| (0, ()))
            != Err(adit_netstack::RecvError::Finished)
        {
            path.settle();
            let _ = path.client.recv(path.now, flow, |ring| {
                answer.extend_from_slice(ring);
                (ring.len(), ())
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(answer, b"answer");
        assert!(path.local.relay.is_empty() && path.local.connected.is_empty());
    }

    #[tokio::test]
    async fn refused_connect_is_a_reset_for_the_client() {
        let mut path = Path::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = listener.local_addr().unwrap();
        drop(listener);
        let flow = path.client.connect(path.now, origin).unwrap();
        let cause = Cause::Refused;
        assert_eq!(path.event().await, StackEvent::Closed { flow, cause });
        assert!(path.local.connecting.is_empty() && path.local.stack.is_empty());
    }

    #[tokio::test]
    async fn turn_without_time_answers_one_flow_and_the_next_turns_the_others() {
        let mut path = Path::new();
        let (mut up, mut cx) = (Wire::default(), Context::from_waker(Waker::noop()));
        for port in [80, 81, 82] {
            let closed = SocketAddr::new(GATEWAY, port);
            path.client.connect(path.now, closed).unwrap();
        }
        path.client.poll_transmit(path.now, &mut up);
        for (mut packet, offload) in up.packets {
            path.local.handle_packet(path.now, &mut packet, offload);
        }
        for _ in 0..3 {
            let (mut down, turns) = (Wire::default(), Turns::for_test(true));
            assert!((path.local).poll(&mut cx, path.now, turns, &path.pool, &mut down));
            assert_eq!(down.packets.len(), 1);
        }
        assert!(path.settle().len() <= 3 && path.local.stack.is_empty());
    }

    #[tokio::test]
    async fn client_that_resets_its_syn_takes_the_outer_connect_with_it() {
        let (origin, _held) = silent().await;
        let mut path = Path::new();
        // Far more than the limit of half-open flows, if they stayed.
        for _ in 0..50 {
            let flow = path.client.connect(path.now, origin).unwrap();
            path.settle();
            assert_eq!(path.local.connecting.len(), 1, "this one's connect hangs");
            path.client.abort(path.now, flow);
            path.client.release(path.now, flow);
            // No reset follows a SYN that was not answered; the time-out ends it all the same.
            let lost = path.local.stack.poll_timeout().unwrap();
            path.now = lost;
            path.local.handle_timeout(lost);
            path.settle();
            assert_eq!(path.local.connecting.len(), 0);
        }
    }

    #[test]
    fn ping_that_this_system_does_not_let_us_send_is_refused() {
        on_host(|| async {
            set_sysctl("net/ipv4/ping_group_range", "1 0");
            let mut path = Path::new();
            let (origin, client) = ([127, 0, 0, 1].into(), [10, 86, 0, 2].into());
            let mut up = Wire::default();
            (path.client)
                .send_echo(&mut up, client, origin, true, 7, 1, b"payload")
                .unwrap();
            let (mut request, offload) = up.packets.remove(0);
            path.local.handle_packet(path.now, &mut request, offload);
            let (mut down, turns) = (Wire::default(), Turns::for_test(false));
            let mut cx = Context::from_waker(Waker::noop());
            path.local
                .poll(&mut cx, path.now, turns, &path.pool, &mut down);
            let (answer, _) = &down.packets[0];
            // Communication administratively prohibited (RFC 1812, section 5.2.7.1), quoting the request.
            assert_eq!(answer[20..22], [3, 13]);
            assert_eq!(answer[28..48], request[..20]);
        });
    }

    #[tokio::test]
    async fn answer_to_a_query_waits_for_room() {
        let mut path = Path::new();
        let to = SocketAddr::from(([10, 86, 0, 2], 4000));
        let from = SocketAddr::new(GATEWAY, DNS_PORT);
        path.local.queries.push(Box::pin(
            async move { Some((from, to, b"answer".to_vec())) },
        ));
        let mut wire = Wire {
            full: true,
            ..Wire::default()
        };
        let mut cx = Context::from_waker(Waker::noop());
        let mut poll = |wire: &mut Wire| {
            let turns = Turns::for_test(false);
            path.local.poll(&mut cx, path.now, turns, &path.pool, wire)
        };
        poll(&mut wire);
        assert!(!poll(&mut wire), "no room");
        wire.full = false;
        assert!(poll(&mut wire));
        assert!(wire.packets[0].0.ends_with(b"answer"));
        assert_eq!(path.local.stats.no_room, 0);
    }
}
