//! One session's netstack on the server: the inner gateway, and the egress `user`.
//!
//! # Theory of operation
//!
//! Packets for the gateway's own addresses end here: echo requests are answered by the
//! netstack, port 53 is the DNS service, everything else is refused. With egress `user`
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
//! The SYN of a flow is answered only when the outer connect has succeeded, and with a reset
//! or the fitting ICMP error when it has failed, so that the client's proxy can tell its
//! application the truth.
//!
//! # Limits
//!
//! Flows and half-open flows per session as configured ([`LocalLimits`]); UDP mappings at
//! most [`super::egress::udp::MAX_MAPPINGS`], idle ones end after [`super::egress::udp::MAPPING_IDLE`]; DNS queries under way at most
//! [`MAX_QUERIES`]. Whatever exceeds a limit is dropped or refused, and counted.

use std::collections::HashMap;
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

use crate::io::relay::{Endpoint, ReadySet, Relay};
use crate::server::dns::DnsClient;
use crate::server::egress::echo::EchoSockets;
use crate::server::egress::udp::Mappings;

/// One session's netstack on the server and the sockets behind it.
pub struct Local {
    stack: Stack,
    relay: Relay,
    ready: Arc<ReadySet>,
    gateways: Vec<IpAddr>,
    egress: bool,
    connecting: FuturesUnordered<Connecting>,
    connected: HashMap<FlowId, TcpStream>,
    mappings: Mappings,
    echoes: EchoSockets,
    dns: DnsClient,
    queries: FuturesUnordered<Query>,
    stats: LocalStats,
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
    /// Outer connections that failed.
    pub connect_failed: u64,
    /// DNS queries answered over UDP.
    pub queries: u64,
    /// DNS queries dropped: too many under way.
    pub queries_dropped: u64,
    /// Datagrams for closed ports of the gateway.
    pub gateway_refused: u64,
    /// Answers dropped because the lane had no room.
    pub no_room: u64,
}

impl Local {
    /// Makes the netstack of a session whose gateway has these addresses; `egress` tells
    /// whether flows for other destinations are carried on by sockets.
    pub fn new(
        gateways: Vec<IpAddr>,
        mtu: u16,
        egress: bool,
        limits: LocalLimits,
        dns: DnsClient,
        seed: u64,
    ) -> Self {
        let config = Config {
            mtu,
            addresses: gateways.clone(),
            accept: if egress { Accept::Any } else { Accept::Own },
            incoming: true,
            max_flows: limits.flows,
            max_half_open: limits.half_open,
            ..Config::default()
        };
        let ready = ReadySet::new();
        Self {
            stack: Stack::new(config, seed),
            relay: Relay::new(ready.clone()),
            ready,
            gateways,
            egress,
            connecting: FuturesUnordered::new(),
            connected: HashMap::new(),
            mappings: Mappings::new(),
            echoes: EchoSockets::new(),
            dns,
            queries: FuturesUnordered::new(),
            stats: LocalStats::default(),
        }
    }

    /// Takes a packet that the destination policy has let through.
    pub fn handle_packet(&mut self, now: Instant, packet: &mut [u8], offload: Offload) {
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
                    } else if self.queries.len() >= MAX_QUERIES {
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
                    self.echoes
                        .send(now, remote, local, ident, sequence, payload);
                }
            }
            Ok(Delivery::UdpFailed { .. }) => {}
        }
    }

    /// Answers a packet that may not pass with an ICMP error from the gateway.
    pub fn refuse(&mut self, packet: &[u8], why: Unreachable) {
        self.stack.send_unreachable(packet, why);
    }

    /// Moves everything that can be moved; returns whether anything did.
    pub fn poll<S: PacketSink>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        sink: &mut S,
    ) -> bool {
        self.ready.register(cx);
        let mut any = self.poll_connecting(cx, now);
        any |= self.poll_events(now);
        any |= self.relay.poll_ready(now, &mut self.stack, READY_PER_TURN);
        any |= self.poll_queries(cx, sink);
        any |= self.mappings.poll(cx, now, &mut self.stack, sink);
        any |= self.echoes.poll(cx, now, &mut self.stack, sink);
        while self.relay.poll_ended().is_some() {}
        self.stack.poll_transmit(now, sink);
        any
    }

    /// Returns when [`Local::handle_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        [
            self.stack.poll_timeout(),
            self.mappings.poll_timeout(),
            self.echoes.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
        self.mappings.handle_timeout(now);
        self.echoes.handle_timeout(now);
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &LocalStats {
        &self.stats
    }

    /// Returns the netstack's counters.
    pub fn stack_stats(&self) -> &adit_netstack::Stats {
        self.stack.stats()
    }

    fn poll_events(&mut self, now: Instant) -> bool {
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
                    self.connected.remove(&flow);
                    self.relay.reset(flow);
                    self.stack.release(now, flow);
                }
            }
        }
        any
    }

    fn incoming(&mut self, now: Instant, flow: FlowId, local: SocketAddr) {
        if self.gateways.contains(&local.ip()) {
            if local.port() == DNS_PORT {
                self.stack.accept(now, flow);
            } else {
                self.stack.reject(now, flow, Rejection::Reset);
            }
        } else if self.egress {
            self.connecting.push(Box::pin(async move {
                let attempt = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(local));
                let result = attempt
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                (flow, result)
            }));
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
        while let Poll::Ready(Some((flow, result))) = self.connecting.poll_next_unpin(cx) {
            any = true;
            match result {
                Ok(socket) => {
                    self.stats.connected += 1;
                    // Without it, small writes of the client's wait for the origin's ACKs.
                    let _ = socket.set_nodelay(true);
                    if self.stack.addresses(flow).is_some() {
                        self.stack.accept(now, flow);
                        self.connected.insert(flow, socket);
                    }
                }
                Err(error) => {
                    self.stats.connect_failed += 1;
                    self.stack.reject(now, flow, rejection(&error));
                }
            }
        }
        any
    }

    fn poll_queries<S: PacketSink>(&mut self, cx: &mut Context<'_>, sink: &mut S) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(answer)) = self.queries.poll_next_unpin(cx) {
            any = true;
            let Some((local, remote, bytes)) = answer else {
                continue;
            };
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
            .field("flows", &self.relay.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

type Connecting = Pin<Box<dyn Future<Output = (FlowId, io::Result<TcpStream>)> + Send>>;
type Query = Pin<Box<dyn Future<Output = Option<(SocketAddr, SocketAddr, Vec<u8>)>> + Send>>;

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

/// The port of the DNS service on the gateway's addresses.
const DNS_PORT: u16 = 53;

/// What a pipe to the DNS service holds each way: one message of the largest size.
const DNS_PIPE: usize = 64 * 1024;

/// How long an outer connect may take; shorter than the client's own time-out for the
/// handshake through the tunnel, so that the answer still finds somebody.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// DNS queries of one session that may be under way.
pub const MAX_QUERIES: usize = 256;

/// Sockets served per turn before the lane gets its turn again.
const READY_PER_TURN: usize = 256;
