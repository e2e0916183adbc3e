//! The client's driver: one task that owns the session, its lanes, the netstack and every
//! proxied socket.
//!
//! # Theory of operation
//!
//! ```text
//!  Tunnel handles ── commands ──▶ ┌────────┐ ── connect, udp ──▶ ┌───────┐
//!  proxied sockets ◀── relay ───▶ │ driver │ ◀──── events ────── │ stack │
//!                                 └───┬────┘ ◀──── packets ────▶ └───────┘
//!                                  carrier: session + lanes ◀──▶ server
//! ```
//!
//! Each turn drains every input once, lets the netstack put what it has to say straight
//! into the lane's buffer, flushes, and only waits when nothing moved. A turn is bounded, so
//! the runtime gets the thread back.
//!
//! The link to the server is a state machine of its own (`Link`): `Waiting` for the next
//! attempt, `Trying` one, `Up`. Losing the lane changes nothing about the flows: the netstack
//! gets no room to send, the flows wait, and the next lane carries them on, because the
//! server leases the same inner address to the same client and instance. Only when the
//! server gives another address are the flows of the old one ended.
//!
//! # Limits
//!
//! Requests that come before the first session wait at most `PATIENCE`, and at most
//! `MAX_WAITING` of them. Back-off between attempts doubles from `BACKOFF_MIN` to
//! `BACKOFF_MAX`, less up to half of it at random; a network change ends it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Cause, Config, ConnectError as StackError, Delivery, Event, FlowId, Offload, Rejection,
    Stack, Unreachable,
};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::associate::Associations;
use super::connect::{ConnectFailure, Connected, Connector};
use super::resolve::NameQueries;
use super::tunnel::{Attachment, Command, Commands, ConnectError, Datagram, HandleId, Reply};
use crate::io::carrier::{Carrier, CarrierEvent, LaneLoss};
use crate::io::clock::{self, SuspendWatch};
use crate::io::network::NetworkWatch;
use crate::io::relay::{Endpoint, ReadySet, Relay};
use crate::proto::SessionEvent;
use crate::wire::{CloseReason, InnerConfig, LaneId};

/// The one task that owns what the client's tunnel is made of.
pub struct Driver {
    connector: Arc<Connector>,
    commands: Commands,
    commands_open: bool,
    inner: watch::Sender<Option<InnerConfig>>,
    network: Pin<Box<dyn Future<Output = NetworkWatch> + Send>>,
    stop: CancellationToken,
    link: Link,
    /// Index of the server to try next.
    next_server: usize,
    carrier: Option<Carrier>,
    inside: Option<Inside>,
    waiting: VecDeque<Waiting>,
    resolver: NameQueries,
    timer: Pin<Box<Sleep>>,
    suspend: SuspendWatch,
    closing: Option<Instant>,
}

/// Why the driver has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop.
    Stopped,
    /// Nobody holds a handle to the tunnel any more.
    Abandoned,
}

impl Driver {
    /// Makes a driver that starts to connect when first polled.
    pub fn new(
        connector: Arc<Connector>,
        commands: Commands,
        inner: watch::Sender<Option<InnerConfig>>,
        resolver: NameQueries,
        network: NetworkWatch,
        stop: CancellationToken,
    ) -> Self {
        let now = clock::now();
        Self {
            connector,
            commands,
            commands_open: true,
            inner,
            network: Box::pin(next_change(network)),
            stop,
            link: Link::Waiting {
                until: now,
                failures: 0,
            },
            next_server: 0,
            carrier: None,
            inside: None,
            waiting: VecDeque::new(),
            resolver,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            suspend: SuspendWatch::new(),
            closing: None,
        }
    }

    /// Drives the tunnel until it is told to stop.
    pub async fn run(mut self) -> Exit {
        let stop = self.stop.clone();
        let mut stopped = Box::pin(stop.cancelled_owned());
        // The turns are bounded by the driver itself; tokio's own budget would only make
        // sockets look blocked in the middle of one.
        tokio::task::unconstrained(std::future::poll_fn(move |cx| {
            if self.closing.is_none() && stopped.as_mut().poll(cx).is_ready() {
                self.begin_close();
            }
            self.poll(cx)
        }))
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Exit> {
        for _ in 0..TURNS {
            let now = clock::now();
            let mut any = self.poll_commands(cx, now);
            any |= self.poll_network(cx, now);
            any |= self.poll_link(cx, now);
            any |= self.poll_in(cx, now);
            any |= self.poll_inside(cx, now);
            any |= self.poll_out(cx, now);
            any |= self.poll_session_events(now);
            if let Some(exit) = self.poll_exit(now) {
                return Poll::Ready(exit);
            }
            if !any {
                if !self.arm(cx, now) {
                    return Poll::Pending;
                }
                self.handle_timeout(clock::now());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    // ---- commands ----------------------------------------------------------------------

    fn poll_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        for _ in 0..COMMANDS_PER_TURN {
            if !self.commands_open {
                break;
            }
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(command)) => {
                    any = true;
                    self.handle_command(now, command);
                }
                Poll::Ready(None) => self.commands_open = false,
                Poll::Pending => break,
            }
        }
        any
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        let Some(inside) = self.inside.as_mut() else {
            self.postpone(now, command);
            return;
        };
        match command {
            Command::Connect {
                flow,
                remote,
                reply,
            } => inside.connect(now, flow, remote, reply),
            Command::Attach {
                flow,
                attachment,
                early,
            } => inside.attach(flow, attachment, early),
            Command::Abort { flow } => inside.abort(now, flow),
            Command::BindUdp {
                port,
                inbound,
                reply,
            } => inside.bind_udp(port, inbound, reply),
            Command::SendUdp {
                port,
                remote,
                payload,
            } => {
                if let Some(carrier) = self.carrier.as_mut() {
                    inside.send_udp(now, carrier, port, remote, &payload);
                } else {
                    inside.stats.udp_no_room += 1;
                }
            }
            Command::UnbindUdp { port } => inside.unbind_udp(port),
            Command::Associate {
                association,
                socket,
                client,
                alive,
                reply,
            } => {
                let outcome = inside.associations.insert(
                    &mut inside.stack,
                    association,
                    socket,
                    client,
                    alive,
                );
                reply.send(outcome);
            }
            Command::Dissociate { association } => {
                inside.associations.remove(&mut inside.stack, association);
            }
            Command::Resolved { query, addresses } => {
                if let Some(carrier) = self.carrier.as_mut() {
                    inside.associations.resolved(
                        &mut inside.stack,
                        &mut carrier.sink(now),
                        query,
                        addresses,
                    );
                }
            }
        }
    }

    /// Keeps a request until there is a session, for a while.
    fn postpone(&mut self, now: Instant, command: Command) {
        match &command {
            Command::Connect { .. } | Command::BindUdp { .. } | Command::Associate { .. } => {
                if self.waiting.len() < MAX_WAITING && self.closing.is_none() {
                    self.waiting.push_back(Waiting {
                        until: now + PATIENCE,
                        command,
                    });
                } else if let Some(reply) = reply_of(command) {
                    reply.send(Err(ConnectError::TunnelDown));
                }
            }
            // About handles that were never granted.
            Command::Attach { .. }
            | Command::Abort { .. }
            | Command::SendUdp { .. }
            | Command::UnbindUdp { .. }
            | Command::Dissociate { .. }
            | Command::Resolved { .. } => {}
        }
    }

    fn give_up_waiting(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|w| now >= w.until) {
            if let Some(reply) = self.waiting.pop_front().and_then(|w| reply_of(w.command)) {
                reply.send(Err(ConnectError::TunnelDown));
            }
        }
    }

    // ---- the link to the server --------------------------------------------------------

    fn poll_network(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Poll::Ready(watch) = self.network.as_mut().poll(cx) else {
            return false;
        };
        self.network = Box::pin(next_change(watch));
        debug!("the network has changed");
        self.look_again(now);
        true
    }

    /// The way to the server may be another one now, or there may be one again.
    fn look_again(&mut self, now: Instant) {
        match &mut self.link {
            Link::Waiting { until, .. } => *until = now,
            Link::Trying { .. } => {}
            Link::Up { .. } => {
                if let Some(carrier) = self.carrier.as_mut() {
                    carrier.session_mut().probe();
                }
            }
        }
    }

    fn poll_link(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        match &mut self.link {
            Link::Waiting { until, failures } => {
                if now < *until || self.closing.is_some() {
                    return false;
                }
                let failures = *failures;
                self.try_server(now, failures);
                true
            }
            Link::Trying {
                attempt,
                joining,
                failures,
            } => {
                let (failures, joining) = (*failures, *joining);
                match attempt.as_mut().poll(cx) {
                    Poll::Pending => false,
                    Poll::Ready(Ok(connected)) => {
                        self.connected(now, connected, failures);
                        true
                    }
                    Poll::Ready(Err(error)) => {
                        self.attempt_failed(now, &error, joining, failures);
                        true
                    }
                }
            }
            Link::Up { .. } => false,
        }
    }

    fn try_server(&mut self, now: Instant, failures: u32) {
        let servers = &self.connector.servers;
        let server = servers[self.next_server % servers.len()].clone();
        debug!(%server, failures, "connecting");
        let join = self
            .carrier
            .as_mut()
            .and_then(|carrier| carrier.session_mut().join_frame(now));
        self.link = Link::Trying {
            joining: join.as_ref().map(|(lane, _)| *lane),
            attempt: Box::pin(self.connector.clone().attempt(server, join)),
            failures,
        };
    }

    /// Forgets the lane that an attempt was to join.
    fn forget(&mut self, now: Instant, joining: Option<LaneId>) {
        if let Some((carrier, lane)) = self.carrier.as_mut().zip(joining) {
            carrier.session_mut().remove_lane(now, lane);
        }
    }

    fn connected(&mut self, now: Instant, connected: Connected, failures: u32) {
        match connected {
            Connected::Fresh { session, lane } => {
                info!(session = %session.id(), "session established");
                match &mut self.carrier {
                    Some(carrier) => carrier.replace(*session, LaneId::FIRST, lane),
                    None => self.carrier = Some(Carrier::new(*session, LaneId::FIRST, lane)),
                }
            }
            Connected::Joined {
                lane,
                id,
                mut first,
            } => {
                let Some(carrier) = self.carrier.as_mut() else {
                    return self.retry(now, failures + 1);
                };
                if let Err(error) = carrier.session_mut().open(now, id, &mut first) {
                    debug!(%error, "the answer to the join did not open");
                    carrier.session_mut().remove_lane(now, id);
                    return self.retry(now, failures + 1);
                }
                info!(session = %carrier.session().id(), lane = %id, "session resumed");
                carrier.add_lane(id, lane, false);
            }
        }
        self.link = Link::Up {
            since: now,
            failures,
        };
    }

    fn attempt_failed(
        &mut self,
        now: Instant,
        error: &ConnectFailure,
        joining: Option<LaneId>,
        failures: u32,
    ) {
        self.forget(now, joining);
        // The first failure is for people, the repetitions for those who look closer.
        if failures == 0 {
            warn!(%error, "cannot reach the server; trying on");
        } else {
            debug!(%error, failures, "cannot reach the server");
        }
        self.next_server = self.next_server.wrapping_add(1);
        self.retry(now, failures + 1);
    }

    fn retry(&mut self, now: Instant, failures: u32) {
        // A list of servers is gone through without a pause, then the back-off doubles.
        let rounds = failures / self.connector.servers.len() as u32;
        let wait = match rounds {
            0 => Duration::ZERO,
            rounds => BACKOFF_MAX.min(BACKOFF_MIN * 2u32.saturating_pow(rounds.min(16) - 1)),
        };
        let jitter = rand::rng().random_range(0.5..=1.0);
        self.link = Link::Waiting {
            until: now + wait.mul_f64(jitter),
            failures,
        };
    }

    fn lane_lost(&mut self, now: Instant, cause: &LaneLoss, left: usize) {
        if left > 0 || self.closing.is_some() {
            return;
        }
        if let Link::Up { since, failures } = self.link {
            info!(%cause, "lost the server; connecting again");
            let failures = if now >= since + STABLE {
                0
            } else {
                failures + 1
            };
            self.retry(now, failures);
        }
    }

    fn poll_session_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.carrier.as_mut().and_then(|c| c.poll_event(now)) {
            any = true;
            match event {
                CarrierEvent::LaneLost { cause, left, .. } => self.lane_lost(now, &cause, left),
                CarrierEvent::Session(SessionEvent::Configured(config)) => {
                    self.configured(now, config);
                }
                CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => {
                    self.closed_by_server(now, reason);
                }
                CarrierEvent::Session(event) => debug!(?event, "session"),
            }
        }
        any
    }

    fn closed_by_server(&mut self, now: Instant, reason: CloseReason) {
        match reason {
            CloseReason::ShuttingDown | CloseReason::Idle => {
                info!(%reason, "the server closed the session");
            }
            CloseReason::Superseded
            | CloseReason::Revoked
            | CloseReason::PoolExhausted
            | CloseReason::TooManyInstances
            | CloseReason::ProtocolError
            | CloseReason::Unknown(_) => warn!(%reason, "the server closed the session"),
        }
        self.carrier = None;
        let failures = match self.link {
            Link::Up { since, .. } if now >= since + STABLE => 0,
            Link::Up { failures, .. }
            | Link::Waiting { failures, .. }
            | Link::Trying { failures, .. } => failures,
        };
        if self.closing.is_none() {
            // At least the shortest back-off: it is not there at this moment.
            let servers = self.connector.servers.len() as u32;
            self.retry(now, failures.max(servers - 1) + 1);
        }
    }

    fn configured(&mut self, now: Instant, config: InnerConfig) {
        info!(mtu = config.mtu, "configured");
        debug!(?config, "configuration of the session");
        match self.inside.as_mut() {
            Some(inside) if inside.mtu == config.mtu => {
                inside.stack.set_addresses(config.addresses());
            }
            Some(_) | None => {
                if let Some(mut old) = self.inside.take() {
                    old.end();
                }
                self.inside = Some(Inside::new(&config, self.resolver.clone()));
            }
        }
        self.inner.send_replace(Some(config));
        for waiting in std::mem::take(&mut self.waiting) {
            // Its asker has gone, and said so while nobody knew of the request.
            if waiting.command.is_abandoned() {
                continue;
            }
            self.handle_command(now, waiting.command);
        }
    }

    // ---- packets -----------------------------------------------------------------------

    fn poll_in(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(carrier) = self.carrier.as_mut() else {
            return false;
        };
        let mut inside = self.inside.as_mut();
        carrier.poll_receive(cx, now, |frame, range, offload| {
            if let (Some(inside), Some(packet)) = (inside.as_mut(), frame.get_mut(range)) {
                inside.handle_packet(now, packet, offload);
            }
        })
    }

    fn poll_inside(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        match self.inside.as_mut() {
            Some(inside) => inside.poll(cx, now, self.carrier.as_mut()),
            None => false,
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(carrier) = self.carrier.as_mut() else {
            return false;
        };
        if let Some(inside) = self.inside.as_mut() {
            inside.stack.poll_transmit(now, &mut carrier.sink(now));
        }
        carrier.poll_send(cx, now)
    }

    // ---- time --------------------------------------------------------------------------

    /// Sets the timer; returns whether something is due already.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let due = [
            self.inside.as_mut().and_then(Inside::poll_timeout),
            self.carrier.as_ref().and_then(Carrier::poll_timeout),
            match &self.link {
                Link::Waiting { until, .. } if self.closing.is_none() => Some(*until),
                Link::Waiting { .. } | Link::Trying { .. } | Link::Up { .. } => None,
            },
            self.waiting.front().map(|waiting| waiting.until),
            self.closing,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now + IDLE_TICK);
        if due <= now {
            return true;
        }
        self.timer.as_mut().reset(due.into());
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(slept) = self.suspend.slept() {
            debug!(?slept, "the host was suspended");
            self.look_again(now);
        }
        if let Some(inside) = self.inside.as_mut() {
            inside.handle_timeout(now);
        }
        if let Some(carrier) = self.carrier.as_mut() {
            carrier.handle_timeout(now);
        }
        self.give_up_waiting(now);
    }

    // ---- the end -----------------------------------------------------------------------

    fn begin_close(&mut self) {
        let now = clock::now();
        self.closing = Some(now + CLOSE_TIMEOUT);
        if let Some(carrier) = self.carrier.as_mut() {
            carrier.session_mut().close(now, CloseReason::ShuttingDown);
        }
        self.give_up_waiting(now + PATIENCE);
    }

    fn poll_exit(&mut self, now: Instant) -> Option<Exit> {
        if !self.commands_open && self.closing.is_none() {
            self.begin_close();
        }
        let deadline = self.closing?;
        let flushed = self.carrier.as_ref().is_none_or(Carrier::is_flushed);
        (flushed || now >= deadline).then_some(if self.commands_open {
            Exit::Stopped
        } else {
            Exit::Abandoned
        })
    }
}

/// Waits for one change of the network and gives the watch back.
async fn next_change(mut watch: NetworkWatch) -> NetworkWatch {
    watch.changed().await;
    watch
}

/// How things stand between us and the server.
enum Link {
    Waiting {
        until: Instant,
        failures: u32,
    },
    Trying {
        attempt: Pin<Box<dyn Future<Output = Result<Connected, ConnectFailure>> + Send>>,
        joining: Option<LaneId>,
        failures: u32,
    },
    Up {
        since: Instant,
        failures: u32,
    },
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Link::Waiting { until, failures } => f
                .debug_struct("Waiting")
                .field("until", until)
                .field("failures", failures)
                .finish(),
            Link::Trying { failures, .. } => f
                .debug_struct("Trying")
                .field("failures", failures)
                .finish_non_exhaustive(),
            Link::Up { since, failures } => f
                .debug_struct("Up")
                .field("since", since)
                .field("failures", failures)
                .finish(),
        }
    }
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    command: Command,
}

fn reply_of(command: Command) -> Option<Reply> {
    match command {
        Command::Connect { reply, .. }
        | Command::BindUdp { reply, .. }
        | Command::Associate { reply, .. } => Some(reply),
        Command::Attach { .. }
        | Command::Abort { .. }
        | Command::SendUdp { .. }
        | Command::UnbindUdp { .. }
        | Command::Dissociate { .. }
        | Command::Resolved { .. } => None,
    }
}

/// What lives behind the inner address: the netstack, and who uses it.
#[derive(Debug)]
struct Inside {
    mtu: u16,
    stack: Stack,
    relay: Relay,
    ready: Arc<ReadySet>,
    flows: HashMap<HandleId, Slot>,
    handles: HashMap<FlowId, HandleId>,
    ports: HashMap<HandleId, u16>,
    inbound: HashMap<u16, mpsc::Sender<Datagram>>,
    associations: Associations,
    stats: InsideStats,
}

/// What an [`Inside`] has dropped, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InsideStats {
    /// Datagrams of our own that found no room in the lane.
    udp_no_room: u64,
    /// Datagrams for a port whose owner was behind.
    udp_queue_full: u64,
    /// Connections to our inner address: nothing listens there.
    incoming_refused: u64,
}

/// A flow whose handle is still held outside.
#[derive(Debug)]
enum Slot {
    Connecting { flow: FlowId, reply: Reply },
    Open { flow: FlowId },
    Piped { flow: FlowId },
}

impl Inside {
    fn new(config: &InnerConfig, resolver: NameQueries) -> Self {
        let stack_config = Config {
            mtu: config.mtu,
            addresses: config.addresses(),
            accept: Accept::Own,
            connect_timeout: CONNECT_TIMEOUT,
            ..Config::default()
        };
        let ready = ReadySet::new();
        Self {
            mtu: config.mtu,
            stack: Stack::new(stack_config, rand::rng().random()),
            relay: Relay::new(ready.clone()),
            ready,
            flows: HashMap::new(),
            handles: HashMap::new(),
            ports: HashMap::new(),
            inbound: HashMap::new(),
            associations: Associations::new(resolver),
            stats: InsideStats::default(),
        }
    }

    fn connect(&mut self, now: Instant, handle: HandleId, remote: SocketAddr, reply: Reply) {
        match self.stack.connect(now, remote) {
            Ok(flow) => {
                self.flows.insert(handle, Slot::Connecting { flow, reply });
                self.handles.insert(flow, handle);
            }
            Err(error) => reply.send(Err(match error {
                StackError::NoAddress { .. } => ConnectError::NoAddress,
                StackError::BadAddress { .. } => ConnectError::Unreachable,
                StackError::TooManyFlows { .. }
                | StackError::NoPort { .. }
                | StackError::NoMemory
                | _ => ConnectError::TooManyFlows,
            })),
        }
    }

    fn attach(&mut self, handle: HandleId, attachment: Attachment, early: Vec<u8>) {
        let Some(Slot::Open { flow }) = self.flows.remove(&handle) else {
            return;
        };
        let endpoint = match attachment {
            Attachment::Tcp(socket) => {
                self.handles.remove(&flow);
                Endpoint::Tcp(socket)
            }
            Attachment::Pipe(pipe) => {
                self.flows.insert(handle, Slot::Piped { flow });
                Endpoint::Pipe(Box::new(pipe))
            }
        };
        self.relay.attach(flow, endpoint, early);
    }

    fn abort(&mut self, now: Instant, handle: HandleId) {
        if let Some(Slot::Connecting { flow, .. } | Slot::Open { flow } | Slot::Piped { flow }) =
            self.flows.remove(&handle)
        {
            self.handles.remove(&flow);
            self.relay.reset(flow);
            self.stack.abort(now, flow);
            self.stack.release(now, flow);
        }
    }

    fn bind_udp(&mut self, handle: HandleId, inbound: mpsc::Sender<Datagram>, reply: Reply) {
        match self.stack.bind_udp() {
            Some(port) => {
                self.ports.insert(handle, port);
                self.inbound.insert(port, inbound);
                reply.send(Ok(()));
            }
            None => reply.send(Err(ConnectError::TooManyFlows)),
        }
    }

    fn unbind_udp(&mut self, handle: HandleId) {
        if let Some(port) = self.ports.remove(&handle) {
            self.inbound.remove(&port);
            self.stack.unbind_udp(port);
        }
    }

    fn send_udp(
        &mut self,
        now: Instant,
        carrier: &mut Carrier,
        handle: HandleId,
        remote: SocketAddr,
        payload: &[u8],
    ) {
        let Some(&port) = self.ports.get(&handle) else {
            return;
        };
        let sent = self.stack.own_address(remote.ip()).is_some_and(|own| {
            let from = SocketAddr::new(own, port);
            let mut sink = carrier.sink(now);
            self.stack
                .send_udp(&mut sink, from, remote, payload)
                .is_ok()
        });
        if !sent {
            self.stats.udp_no_room += 1;
        }
    }

    fn handle_packet(&mut self, now: Instant, packet: &mut [u8], offload: Offload) {
        match self.stack.handle_packet(now, packet, offload) {
            // Echo replies: nothing here asks.
            Ok(Delivery::Absorbed | Delivery::Echo { .. } | Delivery::UdpFailed { .. })
            | Err(_) => {}
            Ok(Delivery::Udp {
                local,
                remote,
                payload,
                ..
            }) => {
                if let Some(inbound) = self.inbound.get(&local.port()) {
                    let datagram = Datagram {
                        remote,
                        payload: payload.to_vec(),
                    };
                    if inbound.try_send(datagram).is_err() {
                        self.stats.udp_queue_full += 1;
                    }
                } else {
                    self.associations.deliver(local.port(), remote, payload);
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, carrier: Option<&mut Carrier>) -> bool {
        self.ready.register(cx);
        let mut any = false;
        while let Some(event) = self.stack.poll_event() {
            any = true;
            self.handle_event(now, event);
        }
        any |= self.relay.poll_ready(now, &mut self.stack, READY_PER_TURN);
        while let Some(flow) = self.relay.poll_ended() {
            if let Some(handle) = self.handles.remove(&flow) {
                self.flows.remove(&handle);
            }
        }
        if let Some(carrier) = carrier {
            let mut sink = carrier.sink(now);
            any |= self.associations.poll(cx, &mut self.stack, &mut sink);
        }
        any
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Incoming { flow, .. } => {
                self.stats.incoming_refused += 1;
                self.stack.reject(now, flow, Rejection::Reset);
            }
            Event::Established { flow } => {
                let Some(handle) = self.handles.get(&flow) else {
                    return;
                };
                if let Some(Slot::Connecting { reply, .. }) =
                    self.flows.insert(*handle, Slot::Open { flow })
                {
                    reply.send(Ok(()));
                }
            }
            Event::Progress { flow } => {
                self.relay.pump(now, &mut self.stack, flow);
            }
            Event::Closed { flow, cause } => self.closed(now, flow, cause),
        }
    }

    fn closed(&mut self, now: Instant, flow: FlowId, cause: Cause) {
        self.relay.reset(flow);
        let Some(&handle) = self.handles.get(&flow) else {
            self.stack.release(now, flow);
            return;
        };
        match self.flows.remove(&handle) {
            Some(Slot::Connecting { reply, .. }) => reply.send(Err(connect_error(cause))),
            // Its owner has not attached yet, and learns it when it does.
            Some(Slot::Open { flow }) => {
                self.flows.insert(handle, Slot::Open { flow });
                return;
            }
            Some(Slot::Piped { .. }) | None => {}
        }
        self.handles.remove(&flow);
        self.stack.release(now, flow);
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        self.stack.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
    }

    /// The inner address is gone: every flow ends.
    fn end(&mut self) {
        self.relay.reset_all();
        for (_, slot) in self.flows.drain() {
            if let Slot::Connecting { reply, .. } = slot {
                reply.send(Err(ConnectError::TunnelDown));
            }
        }
    }
}

/// What a proxy tells its application about a flow that could not be opened.
fn connect_error(cause: Cause) -> ConnectError {
    match cause {
        Cause::Refused | Cause::Reset => ConnectError::Refused,
        Cause::TimedOut => ConnectError::TimedOut,
        Cause::Unreachable(Unreachable::AdminProhibited) => ConnectError::NotAllowed,
        Cause::Unreachable(Unreachable::Network) => ConnectError::NetworkUnreachable,
        Cause::Unreachable(Unreachable::Port) => ConnectError::Refused,
        Cause::Unreachable(_) => ConnectError::Unreachable,
        Cause::NoMemory => ConnectError::TooManyFlows,
        Cause::Aborted | Cause::AddressLost | Cause::Internal | _ => ConnectError::TunnelDown,
    }
}

/// Turns before the runtime gets the thread back.
const TURNS: usize = 64;

/// Commands taken per turn.
const COMMANDS_PER_TURN: usize = 64;

/// Sockets served per turn.
const READY_PER_TURN: usize = 256;

/// Requests kept until the first session: a browser's start, not a flood.
const MAX_WAITING: usize = 1024;

/// How long they are kept: about as long as applications wait themselves.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first pause between attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// The longest pause: a server that comes back is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// A link that was up for this long is tried again without a pause.
const STABLE: Duration = Duration::from_secs(5);

/// How long the handshake of a flow may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the last frame may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// With nothing to wait for, the driver looks around this often.
const IDLE_TICK: Duration = Duration::from_secs(60);
