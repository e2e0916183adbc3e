//! What lives behind the client's inner address: the netstack, and who uses it.
//!
//! # Theory of operation
//!
//! An [`Inside`] does what the [tunnel's commands](super::tunnel::Command) ask of the netstack and
//! keeps whose is what: a flow belongs to its [`HandleId`] until its socket is attached, then to
//! the relay; a UDP port belongs to its handle; an association, to [`Associations`].
//!
//! ```text
//!  connect ──▶ Connecting ── Established ──▶ Open ── attach ──▶ the relay's (Piped: its owner
//!                  │                          │                 still holds a handle)
//!                  └── Closed, abort ─────────┴── abort ──▶ released
//!
//!  a peer's SYN for a port that is listened on
//!              ──▶ Incoming ── attach ──▶ Accepting ── Established ──▶ the relay's
//!                  └── refuse, Closed, abort ─┴── Closed, abort ──▶ released
//! ```
//!
//! Where the session [relays flows](crate::proto::relayed), a flow to the world outside has no place in the netstack: it
//! goes the same way through this table, and through a relay of its own. Flows into the session's own networks, and all
//! else, stay the netstack's.
//!
//! Datagrams leave when the lane has room, before the flows do: a lane that is full of one
//! flow's bytes must not cost a DNS query.
//!
//! # Limits
//!
//! Flows and ports are bounded by the netstack; at most [`MAX_OUTGOING`] datagrams wait for room.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Cause, Config, ConnectError as StackError, Delivery, Event, FlowId, Offload,
    PacketSink, Rejection, Stack, Unreachable,
};
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::associate::Associations;
use super::resolve::NameQueries;
use super::rules::Judged;
use super::tunnel::{Arrivals, Attachment, ConnectError, Datagram, HandleId, Refusal, Reply};
use crate::io::carrier::has_room;
use crate::io::memory;
use crate::io::relay::{Endpoint, FlowWatch, ReadySet, Relay, Terms, Ties};
use crate::io::turns::Turns;
use crate::proto::Role;
use crate::proto::budget::Share;
use crate::proto::relayed::{Pieces, Relayed, RelayedEvent, RelayedKey};
use crate::status::Counters;
use crate::wire::{FlowFrame, InnerConfig, ResetReason, SessionId};

/// What lives behind the inner address: the netstack, and who uses it.
#[derive(Debug)]
pub(super) struct Inside {
    stack: Stack,
    relay: Relay,
    ready: Arc<ReadySet>,
    relayed: Relayed,
    relayed_relay: Relay<Relayed>,
    relayed_ready: Arc<ReadySet>,
    /// The session there is, and whether it relays flows.
    session: Option<(SessionId, bool)>,
    /// The session's own networks.
    networks: Vec<IpNet>,
    flows: HashMap<HandleId, Slot>,
    handles: HashMap<Carried, HandleId>,
    ports: HashMap<HandleId, u16>,
    inbound: HashMap<u16, mpsc::Sender<Datagram>>,
    listeners: HashMap<HandleId, u16>,
    /// Identifiers of echo requests.
    echoes: HashMap<HandleId, u16>,
    /// Whom the replies to each are for.
    replies: HashMap<u16, mpsc::Sender<Datagram>>,
    /// Whom the flows of peers to a port are offered to.
    arrivals: HashMap<u16, Arrivals>,
    /// Datagrams of our own ports that wait for room.
    outgoing: VecDeque<Outgoing>,
    /// Those who wait until no flow is left.
    idle: Vec<Reply>,
    associations: Associations,
    stats: InsideStats,
}

/// What an [`Inside`] has dropped, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InsideStats {
    /// Datagrams of our own that were not sent: too many waited already, or there is no address
    /// of their family.
    pub(crate) udp_not_sent: u64,
    /// Datagrams for a port whose owner was behind.
    pub(crate) udp_queue_full: u64,
    /// Connections to a port of our inner address on which nobody listens any more.
    pub(crate) incoming_refused: u64,
    /// Connections not answered, because too many wait for whoever listens: their peers try again.
    pub(crate) incoming_full: u64,
}

/// A flow whose handle is still held outside.
#[derive(Debug)]
enum Slot {
    Connecting {
        flow: Carried,
        reply: Reply,
    },
    Open {
        flow: Carried,
    },
    Piped {
        flow: Carried,
    },
    /// A peer's, which has had no answer yet.
    Incoming {
        flow: FlowId,
    },
    /// A peer's, which has had an answer; its socket waits for the handshake to end.
    Accepting {
        flow: FlowId,
        endpoint: Endpoint,
        watch: FlowWatch,
    },
}

/// Who keeps a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Carried {
    /// The netstack.
    Inside(FlowId),
    /// The table of those that are relayed.
    Relayed(RelayedKey),
}

impl Inside {
    /// What was counted, for the log at the end.
    pub(super) fn counters(&self) -> impl std::fmt::Debug + '_ {
        (
            self.stack.stats(),
            &self.stats,
            self.relay.stats(),
            self.relayed.stats(),
            self.relayed_relay.stats(),
            self.associations.stats(),
        )
    }

    /// Adds what was counted, of all parts, to `counters`.
    pub(super) fn count(&self, counters: &mut Counters) {
        counters.add("netstack", self.stack.stats());
        counters.add("inside", &self.stats);
        counters.add("relay", self.relay.stats());
        counters.add("relayed_flows", &self.relayed.stats());
        counters.add("relayed_relay", self.relayed_relay.stats());
        counters.add("associations", self.associations.stats());
        let (now, direct) = (self.associations.len(), self.associations.direct_sockets());
        counters.count_now("associations", "now", now);
        counters.count_now("associations", "direct_sockets_now", direct);
    }

    /// How many TCP flows there are.
    pub(super) fn flow_count(&self) -> usize {
        self.stack.len() + self.relayed.len()
    }

    /// Makes the inside of a session with this configuration; its flows hold as much as `share` lets them.
    pub(super) fn new(
        config: &InnerConfig,
        resolver: NameQueries,
        share: Share,
        seed: u64,
    ) -> Self {
        let stack_config = Config {
            mtu: config.mtu,
            addresses: config.addresses(),
            accept: Accept::Own,
            connect_timeout: CONNECT_TIMEOUT,
            ..Config::default()
        };
        let max_flows = stack_config.max_flows;
        let (ready, relayed_ready) = (ReadySet::new(), ReadySet::new());
        let mut stack = Stack::new(stack_config, seed);
        stack.set_memory(Box::new(share.part()));
        Self {
            stack,
            relay: Relay::new(ready.clone()),
            ready,
            relayed: Relayed::new(Role::Initiator, max_flows, share),
            relayed_relay: Relay::new(relayed_ready.clone()),
            relayed_ready,
            session: None,
            networks: networks(config),
            flows: HashMap::new(),
            handles: HashMap::new(),
            ports: HashMap::new(),
            inbound: HashMap::new(),
            listeners: HashMap::new(),
            echoes: HashMap::new(),
            replies: HashMap::new(),
            arrivals: HashMap::new(),
            outgoing: VecDeque::new(),
            idle: Vec::new(),
            associations: Associations::new(resolver, seed),
            stats: InsideStats::default(),
        }
    }

    /// Takes the addresses of another session; flows of addresses that are gone end.
    ///
    /// A server that was away may have cost a flow its origin: the host resets what arrives meanwhile, and the `user`
    /// egress forgets everything. So each idle flow asks for a sign of life, or it would wait for data for ever.
    pub(super) fn set_addresses(&mut self, now: Instant, config: &InnerConfig) {
        self.networks = networks(config);
        self.stack.set_addresses(config.addresses());
        self.stack.probe(now);
    }

    /// Ends every flow, and opens none until there are addresses again: the server serves this client no more, and an
    /// application that waited would wait for nothing.
    pub(super) fn end_all(&mut self, now: Instant) {
        self.stack.set_addresses(Vec::new());
        self.follow_session(now, None);
    }

    /// Follows the session there is, by its name, and whether it relays flows. The flows that another one relayed are
    /// over; those not answered yet are asked for again.
    pub(super) fn follow_session(&mut self, now: Instant, session: Option<(SessionId, bool)>) {
        if self.session == session {
            return;
        }
        self.session = session;
        self.relayed.reset_all(now);
        if session.is_some_and(|(_, relays)| !relays) {
            for (flow, _) in self.handles.iter() {
                if let Carried::Relayed(key) = flow {
                    self.relayed.fail(*key, ResetReason::Aborted);
                }
            }
        }
    }

    /// Whether a flow to there is relayed: one that leaves the tunnel, and that the netstack would not refuse.
    fn is_relayed(&self, remote: SocketAddr) -> bool {
        let ip = remote.ip();
        let is_host = match ip {
            IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
        };
        self.session.is_some_and(|(_, relays)| relays)
            && is_host
            && remote.port() != 0
            && self.stack.own_address(ip).is_some()
            && !self.networks.iter().any(|network| network.contains(&ip))
    }

    /// Opens a flow; the reply follows when it stands or has failed.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        handle: HandleId,
        remote: SocketAddr,
        reply: Reply,
    ) {
        if self.is_relayed(remote) {
            match self.relayed.connect(now, remote) {
                Some(flow) => {
                    let flow = Carried::Relayed(flow);
                    self.flows.insert(handle, Slot::Connecting { flow, reply });
                    self.handles.insert(flow, handle);
                }
                None => reply.send(Err(ConnectError::TooManyFlows)),
            }
            return;
        }
        match self.stack.connect(now, remote) {
            Ok(flow) => {
                let flow = Carried::Inside(flow);
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

    /// Binds a flow to its application.
    ///
    /// A flow that has ended with its inner address meanwhile shows as a reset: to the application,
    /// an orderly end would mean that the origin had nothing to say. The same becomes of one that rules, which have
    /// changed since it was `judged`, send another way.
    pub(super) fn attach(
        &mut self,
        now: Instant,
        handle: HandleId,
        attachment: Attachment,
        early: Vec<u8>,
        judged: Option<Box<Judged>>,
    ) {
        let is_pipe = matches!(attachment, Attachment::Pipe(_));
        let (endpoint, watch) = match attachment {
            Attachment::Tcp(socket) => (Endpoint::Tcp(socket), None),
            Attachment::Pipe(pipe) => (Endpoint::Pipe(Box::new(pipe)), None),
            Attachment::Watched { endpoint, watch } => (endpoint, Some(watch)),
        };
        if judged.as_ref().is_some_and(|judged| !judged.holds()) {
            self.abort(now, handle);
        }
        let (flow, watch) = match (self.flows.remove(&handle), watch) {
            (Some(Slot::Open { flow }), watch) => {
                if is_pipe {
                    self.flows.insert(handle, Slot::Piped { flow });
                } else {
                    self.handles.remove(&flow);
                }
                (flow, watch)
            }
            (Some(Slot::Incoming { flow }), Some(watch)) => {
                let accepting = Slot::Accepting {
                    flow,
                    endpoint,
                    watch,
                };
                self.flows.insert(handle, accepting);
                self.stack.accept(now, flow);
                return;
            }
            // Nobody attaches twice; what was not open has ended.
            (
                Some(
                    Slot::Connecting { .. }
                    | Slot::Piped { .. }
                    | Slot::Incoming { .. }
                    | Slot::Accepting { .. },
                )
                | None,
                _,
            ) => {
                endpoint.reset();
                return;
            }
        };
        let ties = Ties {
            terms: judged.map(|judged| judged as Box<dyn Terms>),
            watch,
        };
        match flow {
            Carried::Inside(flow) => self.relay.attach_tied(flow, endpoint, early, ties),
            Carried::Relayed(flow) => {
                (self.relayed_relay).attach_tied(flow, endpoint, early, ties);
            }
        }
    }

    /// Ends the flows that rules, which have changed, send another way.
    pub(super) fn end_unfit(&mut self, now: Instant) {
        self.relay.end_unfit(now, &mut self.stack);
        self.relayed_relay.end_unfit(now, &mut self.relayed);
    }

    /// Ends a flow whose owner has gone, in whatever state it is.
    pub(super) fn abort(&mut self, now: Instant, handle: HandleId) {
        let flow = match self.flows.remove(&handle) {
            Some(Slot::Connecting { flow, .. } | Slot::Open { flow } | Slot::Piped { flow }) => {
                flow
            }
            Some(Slot::Incoming { flow }) => {
                self.handles.remove(&Carried::Inside(flow));
                self.stack.reject(now, flow, Rejection::Reset);
                return;
            }
            Some(Slot::Accepting { flow, endpoint, .. }) => {
                endpoint.reset();
                Carried::Inside(flow)
            }
            None => return,
        };
        self.handles.remove(&flow);
        match flow {
            Carried::Inside(flow) => {
                self.relay.reset(flow);
                self.stack.abort(now, flow);
                self.stack.release(now, flow);
            }
            Carried::Relayed(flow) => {
                self.relayed_relay.reset(flow);
                self.relayed.abort(flow);
                self.relayed.release(flow);
            }
        }
    }

    /// Listens on a TCP port.
    pub(super) fn listen(&mut self, handle: HandleId, port: u16, arrivals: Arrivals, reply: Reply) {
        if !self.stack.listen(port) {
            reply.send(Err(ConnectError::PortTaken));
            return;
        }
        self.listeners.insert(handle, port);
        self.arrivals.insert(port, arrivals);
        reply.send(Ok(()));
    }

    /// Listens on a TCP port no more; the flows of those who came go on.
    pub(super) fn unlisten(&mut self, handle: HandleId) {
        if let Some(port) = self.listeners.remove(&handle) {
            self.arrivals.remove(&port);
            self.stack.unlisten(port);
        }
    }

    /// Tells a peer why there is no flow.
    pub(super) fn refuse(&mut self, now: Instant, handle: HandleId, refusal: Refusal) {
        let rejection = match refusal {
            Refusal::Refused => Rejection::Reset,
            Refusal::Unreachable => Rejection::Unreachable(Unreachable::Host),
        };
        if let Some(Slot::Incoming { flow }) = self.flows.remove(&handle) {
            self.handles.remove(&Carried::Inside(flow));
            self.stack.reject(now, flow, rejection);
        }
    }

    /// Tells when no flow is left, those that close in the background among them.
    pub(super) fn tell_when_idle(&mut self, reply: Reply) {
        self.idle.retain(|waiting| !waiting.is_abandoned());
        self.idle.push(reply);
    }

    /// Offers a peer's flow to whoever listens there.
    fn arrived(&mut self, now: Instant, flow: FlowId, local: SocketAddr, remote: SocketAddr) {
        let Some(arrivals) = self.arrivals.get(&local.port()) else {
            self.stats.incoming_refused += 1;
            self.stack.reject(now, flow, Rejection::Reset);
            return;
        };
        match arrivals.offer(remote) {
            Some(handle) => {
                self.flows.insert(handle, Slot::Incoming { flow });
                self.handles.insert(Carried::Inside(flow), handle);
            }
            None => {
                self.stats.incoming_full += 1;
                self.stack.reject(now, flow, Rejection::Silent);
            }
        }
    }

    /// Binds a UDP port, of that number or any.
    pub(super) fn bind_udp(
        &mut self,
        handle: HandleId,
        number: Option<u16>,
        inbound: mpsc::Sender<Datagram>,
        reply: Reply,
    ) {
        let port = match number {
            Some(number) if !self.stack.bind_udp_port(number) => {
                reply.send(Err(ConnectError::PortTaken));
                return;
            }
            Some(number) => Some(number),
            None => self.stack.bind_udp(),
        };
        match port {
            Some(port) => {
                self.ports.insert(handle, port);
                self.inbound.insert(port, inbound);
                reply.send(Ok(()));
            }
            None => reply.send(Err(ConnectError::TooManyFlows)),
        }
    }

    /// Takes an identifier of echo requests that nobody has.
    pub(super) fn bind_echo(
        &mut self,
        handle: HandleId,
        inbound: mpsc::Sender<Datagram>,
        reply: Reply,
    ) {
        let mut tries = (0..IDENT_TRIES).map(|_| rand::random());
        let ident = tries.find(|ident| !self.replies.contains_key(ident));
        match ident.filter(|_| self.replies.len() < MAX_IDENTS) {
            Some(ident) => {
                self.echoes.insert(handle, ident);
                self.replies.insert(ident, inbound);
                reply.send(Ok(()));
            }
            None => reply.send(Err(ConnectError::TooManyFlows)),
        }
    }

    /// Frees a UDP port or an identifier; what of it still waits for room is dropped.
    pub(super) fn unbind_udp(&mut self, handle: HandleId) {
        self.outgoing.retain(|waiting| waiting.handle != handle);
        if let Some(port) = self.ports.remove(&handle) {
            self.inbound.remove(&port);
            self.stack.unbind_udp(port);
        }
        if let Some(ident) = self.echoes.remove(&handle) {
            self.replies.remove(&ident);
        }
    }

    /// Queues a datagram of one of our ports.
    pub(super) fn send_udp(&mut self, handle: HandleId, remote: SocketAddr, payload: Vec<u8>) {
        let from = match (self.ports.get(&handle), self.echoes.get(&handle)) {
            (Some(&port), _) => Sender::Port(port),
            (None, Some(&ident)) => Sender::Ident(ident),
            (None, None) => return,
        };
        if self.outgoing.len() >= MAX_OUTGOING {
            self.stats.udp_not_sent += 1;
            return;
        }
        self.outgoing.push_back(Outgoing {
            handle,
            from,
            remote,
            payload,
        });
    }

    /// Lends the SOCKS5 UDP relays, and the netstack that they need.
    pub(super) fn associations(&mut self) -> (&mut Associations, &mut Stack) {
        (&mut self.associations, &mut self.stack)
    }

    /// Takes a packet from the server.
    pub(super) fn handle_packet(&mut self, now: Instant, packet: &mut [u8], offload: Offload) {
        match self.stack.handle_packet(now, packet, offload) {
            Ok(Delivery::Absorbed | Delivery::UdpFailed { .. }) | Err(_) => {}
            Ok(Delivery::Echo {
                request,
                remote,
                ident,
                sequence,
                payload,
                ..
            }) => {
                // Requests are answered by the netstack; replies may be to nobody any more.
                let asked = self.replies.get(&ident).filter(|_| !request);
                let datagram = Datagram {
                    remote: SocketAddr::new(remote, sequence),
                    payload: payload.to_vec(),
                };
                if asked.is_some_and(|inbound| inbound.try_send(datagram).is_err()) {
                    self.stats.udp_queue_full += 1;
                }
            }
            Ok(Delivery::Udp {
                local,
                remote,
                payload,
                segment,
            }) => {
                if let Some(inbound) = self.inbound.get(&local.port()) {
                    // An empty payload is one empty datagram.
                    let empty = payload.is_empty().then_some(payload);
                    for payload in payload.chunks(segment).chain(empty) {
                        let datagram = Datagram {
                            remote,
                            payload: payload.to_vec(),
                        };
                        if inbound.try_send(datagram).is_err() {
                            self.stats.udp_queue_full += 1;
                        }
                    }
                } else {
                    self.associations.deliver(local.port(), remote, payload);
                }
            }
        }
    }

    /// Takes a frame of a relayed flow from the server, and the bytes behind its fields.
    pub(super) fn handle_flow(&mut self, now: Instant, frame: &FlowFrame, bytes: Pieces<'_>) {
        let relay = &mut self.relayed_relay;
        (self.relayed).handle_frame(now, frame, bytes, |flow, bytes| relay.offer(flow, bytes));
    }

    /// Lends the relayed flows, to say what they have to say.
    pub(super) fn relayed(&mut self) -> &mut Relayed {
        &mut self.relayed
    }

    /// Moves what can be moved, of each kind something and no more than `turns` has time for; returns whether anything was.
    ///
    /// `sink` is room in a lane, if there is a session; `linked` tells whether it has a lane at all.
    pub(super) fn poll<S: PacketSink>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        turns: Turns,
        sink: Option<&mut S>,
        linked: bool,
    ) -> bool {
        self.ready.register(cx);
        self.relayed_ready.register(cx);
        let mut any = false;
        while let Some(event) = self.stack.poll_event() {
            any = true;
            self.handle_event(now, event, linked);
            if turns.are_over_by_now() {
                break;
            }
        }
        any |= (self.relay).poll_ready(now, &mut self.stack, READY_PER_TURN, turns);
        while let Some(event) = self.relayed.poll_event() {
            any = true;
            self.handle_relayed(now, event, linked);
            if turns.are_over_by_now() {
                break;
            }
        }
        any |= (self.relayed_relay).poll_ready(now, &mut self.relayed, READY_PER_TURN, turns);
        loop {
            let inside = self.relay.poll_ended().map(Carried::Inside);
            let ended = inside.or_else(|| self.relayed_relay.poll_ended().map(Carried::Relayed));
            let Some(flow) = ended else { break };
            if let Some(handle) = self.handles.remove(&flow) {
                self.flows.remove(&handle);
            }
        }
        if !self.idle.is_empty() && self.stack.is_empty() && self.relayed.is_empty() {
            for reply in self.idle.drain(..) {
                reply.send(Ok(()));
            }
        }
        let mut sink = sink;
        if let Some(sink) = sink.as_deref_mut() {
            any |= self.poll_outgoing(sink);
        }
        any | (self.associations).poll(cx, now, &mut self.stack, sink)
    }

    /// Lets the netstack put what it has to say into `sink`.
    pub(super) fn poll_transmit<S: PacketSink>(&mut self, now: Instant, sink: &mut S) {
        self.stack.poll_transmit(now, sink);
    }

    fn poll_outgoing<S: PacketSink>(&mut self, sink: &mut S) -> bool {
        let mut any = false;
        while !self.outgoing.is_empty() && has_room(sink) {
            let Some(Outgoing {
                from,
                remote,
                payload,
                ..
            }) = self.outgoing.pop_front()
            else {
                break;
            };
            any = true;
            let stack = &mut self.stack;
            let (to, sequence) = (remote.ip(), remote.port());
            let sent = stack.own_address(to).is_some_and(|own| {
                let sent = match from {
                    Sender::Port(port) => {
                        let from = SocketAddr::new(own, port);
                        stack.send_udp(sink, from, remote, &payload)
                    }
                    Sender::Ident(ident) => {
                        stack.send_echo(sink, own, to, true, ident, sequence, &payload)
                    }
                };
                sent.is_ok()
            });
            if !sent {
                self.stats.udp_not_sent += 1;
            }
        }
        any
    }

    fn handle_event(&mut self, now: Instant, event: Event, linked: bool) {
        match event {
            Event::Incoming {
                flow,
                local,
                remote,
            } => self.arrived(now, flow, local, remote),
            Event::Established { flow } => self.established(Carried::Inside(flow)),
            Event::Progress { flow } => {
                self.relay.pump(now, &mut self.stack, flow);
            }
            Event::Closed { flow, cause } => {
                self.relay.reset(flow);
                self.closed(now, Carried::Inside(flow), connect_error(cause, linked));
            }
        }
    }

    fn handle_relayed(&mut self, now: Instant, event: RelayedEvent, linked: bool) {
        match event {
            // Only a server is asked.
            RelayedEvent::Incoming { flow, .. } => {
                self.relayed.refuse(flow, ResetReason::NotAllowed);
            }
            RelayedEvent::Established { flow } => self.established(Carried::Relayed(flow)),
            RelayedEvent::Progress { flow } => {
                self.relayed_relay.pump(now, &mut self.relayed, flow);
            }
            RelayedEvent::Closed { flow, reason } => {
                self.relayed_relay.reset(flow);
                self.closed(now, Carried::Relayed(flow), relayed_error(reason, linked));
            }
        }
    }

    fn established(&mut self, flow: Carried) {
        let Some(&handle) = self.handles.get(&flow) else {
            return;
        };
        match self.flows.remove(&handle) {
            Some(Slot::Connecting { reply, .. }) => {
                self.flows.insert(handle, Slot::Open { flow });
                reply.send(Ok(()));
            }
            Some(Slot::Accepting {
                flow,
                endpoint,
                watch,
            }) => {
                self.handles.remove(&Carried::Inside(flow));
                let ties = Ties {
                    terms: None,
                    watch: Some(watch),
                };
                (self.relay).attach_tied(flow, endpoint, Vec::new(), ties);
            }
            Some(slot @ (Slot::Open { .. } | Slot::Piped { .. } | Slot::Incoming { .. })) => {
                self.flows.insert(handle, slot);
            }
            None => {}
        }
    }

    fn release(&mut self, now: Instant, flow: Carried) {
        match flow {
            Carried::Inside(flow) => self.stack.release(now, flow),
            Carried::Relayed(flow) => self.relayed.release(flow),
        }
    }

    fn closed(&mut self, now: Instant, flow: Carried, error: ConnectError) {
        let Some(&handle) = self.handles.get(&flow) else {
            self.release(now, flow);
            return;
        };
        match self.flows.remove(&handle) {
            Some(Slot::Connecting { reply, .. }) => {
                reply.send(Err(error));
            }
            // Its owner has not attached yet, and learns it when it does.
            Some(Slot::Open { flow }) => {
                self.flows.insert(handle, Slot::Open { flow });
                return;
            }
            Some(Slot::Accepting { endpoint, .. }) => endpoint.reset(),
            // Who was offered it learns it when it is accepted.
            Some(Slot::Piped { .. } | Slot::Incoming { .. }) | None => {}
        }
        self.handles.remove(&flow);
        self.release(now, flow);
    }

    /// Returns when [`Inside::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let relayed = self.relayed.poll_timeout();
        self.stack.poll_timeout().into_iter().chain(relayed).min()
    }

    /// Does what is due by `now`.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
        self.relayed.handle_timeout(now);
        if self.relayed.is_at_rest() && self.relayed_relay.burst_is_over() {
            memory::give_back();
        }
        // Asked in this order: the burst is over when its addresses have rested, too.
        if self.stack.is_empty() && self.stack.stats().waits_now == 0 && self.relay.burst_is_over()
        {
            memory::give_back();
        }
    }
}

/// A datagram that waits for room.
#[derive(Debug)]
struct Outgoing {
    handle: HandleId,
    from: Sender,
    /// Whom to; of an echo request, with its sequence number.
    remote: SocketAddr,
    payload: Vec<u8>,
}

/// What a datagram is sent from.
#[derive(Clone, Copy, Debug)]
enum Sender {
    /// A UDP port.
    Port(u16),
    /// An identifier of echo requests.
    Ident(u16),
}

/// What a proxy tells its application about a flow that could not be opened.
fn connect_error(cause: Cause, linked: bool) -> ConnectError {
    match cause {
        Cause::Refused | Cause::Reset => ConnectError::Refused,
        // Without a lane it is not the origin that did not answer.
        Cause::TimedOut if !linked => ConnectError::TunnelDown,
        Cause::TimedOut => ConnectError::TimedOut,
        Cause::Unreachable(Unreachable::AdminProhibited) => ConnectError::NotAllowed,
        Cause::Unreachable(Unreachable::Network) => ConnectError::NetworkUnreachable,
        Cause::Unreachable(Unreachable::Port) => ConnectError::Refused,
        Cause::Unreachable(_) => ConnectError::Unreachable,
        Cause::NoMemory => ConnectError::TooManyFlows,
        Cause::Aborted | Cause::AddressLost | Cause::Internal | _ => ConnectError::TunnelDown,
    }
}

/// The same about a flow that was to be relayed.
fn relayed_error(reason: ResetReason, linked: bool) -> ConnectError {
    match reason {
        ResetReason::Refused => ConnectError::Refused,
        ResetReason::HostUnreachable => ConnectError::Unreachable,
        ResetReason::NetworkUnreachable => ConnectError::NetworkUnreachable,
        // Without a lane it is not the origin that did not answer.
        ResetReason::TimedOut if !linked => ConnectError::TunnelDown,
        ResetReason::TimedOut => ConnectError::TimedOut,
        ResetReason::NotAllowed => ConnectError::NotAllowed,
        ResetReason::TooMany => ConnectError::TooManyFlows,
        ResetReason::Aborted
        | ResetReason::Unknown
        | ResetReason::Violation
        | ResetReason::Other(_) => ConnectError::TunnelDown,
    }
}

/// The networks that the session's own addresses are in.
fn networks(config: &InnerConfig) -> Vec<IpNet> {
    let v4 = config.v4.map(|(ip, prefix)| (IpAddr::V4(ip), prefix));
    let v6 = config.v6.map(|(ip, prefix)| (IpAddr::V6(ip), prefix));
    let networks = v4.into_iter().chain(v6);
    networks
        .filter_map(|(ip, prefix)| IpNet::new(ip, prefix).ok())
        .collect()
}

/// Sockets served per turn.
const READY_PER_TURN: usize = 256;

/// Datagrams that may wait for room: the queries of a browser's start.
const MAX_OUTGOING: usize = 256;

/// Identifiers of echo requests: a command that pings each host of a network at once.
const MAX_IDENTS: usize = 1024;

/// Random ones are tried until one is free: one in sixty-four is taken at most.
const IDENT_TRIES: usize = 16;

/// How long the handshake of a flow may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;

    use super::*;
    use crate::client::resolve::NameQuery;
    use crate::client::rules::{InForce, Rules, Way, listed};
    use crate::client::tunnel::{Command, Commands, Listener, Tunnel, tunnel};
    use crate::proto::budget::{HARD, SESSION};

    /// A lane that has room or not.
    #[derive(Default)]
    struct Wire {
        full: bool,
        room: Vec<u8>,
        packets: Vec<(Vec<u8>, Offload)>,
    }

    impl PacketSink for Wire {
        fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
            if self.full {
                return None;
            }
            self.room.resize(len, 0);
            Some(&mut self.room[..len])
        }

        fn commit(&mut self, len: usize, offload: Offload) {
            self.packets.push((self.room[..len].to_vec(), offload));
        }
    }

    const FIRST: HandleId = HandleId::numbered(1);

    fn inside() -> (Inside, mpsc::Receiver<NameQuery>) {
        let config = InnerConfig {
            v4: Some(([10, 86, 0, 2].into(), 24)),
            ..InnerConfig::default()
        };
        let (names, asked) = mpsc::channel(1);
        (
            Inside::new(&config, names, Share::alone(SESSION / HARD), 1),
            asked,
        )
    }

    fn origin() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 80))
    }

    fn turn(inside: &mut Inside, now: Instant, wire: &mut Wire, linked: bool) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let any = inside.poll(&mut cx, now, Turns::for_test(false), Some(wire), linked);
        inside.poll_transmit(now, wire);
        any
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[test]
    fn datagram_waits_for_room_in_the_lane() {
        let (mut inside, _asked) = inside();
        let (now, mut wire) = (Instant::now(), Wire::default());
        let (reply, mut answer) = Reply::pair();
        let (inbound, _datagrams) = mpsc::channel(1);
        inside.bind_udp(FIRST, None, inbound, reply);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        wire.full = true;
        inside.send_udp(FIRST, origin(), b"query".to_vec());
        assert!(!turn(&mut inside, now, &mut wire, true), "nothing can move");
        wire.full = false;
        assert!(turn(&mut inside, now, &mut wire, true));
        assert_eq!(wire.packets.len(), 1);
        assert!(wire.packets[0].0.ends_with(b"query"));
        assert!(!turn(&mut inside, now, &mut wire, true));
    }

    #[test]
    fn datagrams_that_wait_are_bounded_and_end_with_their_port() {
        let (mut inside, _asked) = inside();
        let (now, mut wire) = (Instant::now(), Wire::default());
        let (inbound, _datagrams) = mpsc::channel(1);
        inside.bind_udp(FIRST, None, inbound, Reply::pair().0);
        for _ in 0..MAX_OUTGOING + 3 {
            inside.send_udp(FIRST, origin(), vec![0; 10]);
        }
        assert_eq!(inside.outgoing.len(), MAX_OUTGOING);
        assert_eq!(inside.stats.udp_not_sent, 3);
        inside.unbind_udp(FIRST);
        turn(&mut inside, now, &mut wire, true);
        assert!(wire.packets.is_empty());
    }

    #[test]
    fn flow_that_times_out_says_whose_fault_it_was() {
        for (linked, expected) in [
            (true, ConnectError::TimedOut),
            (false, ConnectError::TunnelDown),
        ] {
            let (mut inside, _asked) = inside();
            let (now, mut wire) = (Instant::now(), Wire::default());
            let (reply, mut answer) = Reply::pair();
            inside.connect(now, FIRST, origin(), reply);
            turn(&mut inside, now, &mut wire, linked);
            let later = now + CONNECT_TIMEOUT;
            inside.handle_timeout(later);
            turn(&mut inside, later, &mut wire, linked);
            assert_eq!(answer.try_recv(), Ok(Err(expected)));
            assert!(inside.flows.is_empty() && inside.handles.is_empty());
            assert!(inside.stack.is_empty());
        }
    }

    #[test]
    fn turn_without_time_does_one_thing_and_the_next_does_the_rest() {
        let (mut inside, _asked) = inside();
        let (now, mut wire) = (Instant::now(), Wire::default());
        let mut answers = Vec::new();
        for number in 1..=3 {
            let (reply, answer) = Reply::pair();
            inside.connect(now, HandleId::numbered(number), origin(), reply);
            answers.push(answer);
        }
        turn(&mut inside, now, &mut wire, true);
        let later = now + CONNECT_TIMEOUT;
        inside.handle_timeout(later);
        let mut cx = Context::from_waker(Waker::noop());
        for done in 1..=3 {
            let turns = Turns::for_test(true);
            assert!(inside.poll(&mut cx, later, turns, Some(&mut wire), true));
            let answered = answers
                .iter_mut()
                .filter(|it| !it.is_empty() || it.is_terminated());
            assert_eq!(answered.count(), done);
        }
        assert!(!turn(&mut inside, later, &mut wire, true));
    }

    #[test]
    fn echo_request_leaves_by_its_identifier_and_its_reply_comes_back() {
        let (mut inside, _asked) = inside();
        let (now, mut wire) = (Instant::now(), Wire::default());
        let (reply, mut answer) = Reply::pair();
        let (inbound, mut replies) = mpsc::channel(1);
        inside.bind_echo(FIRST, inbound, reply);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        let to = SocketAddr::new(origin().ip(), 7);
        inside.send_udp(FIRST, to, b"ping".to_vec());
        assert!(turn(&mut inside, now, &mut wire, true));
        let (mut packet, _) = wire.packets.remove(0);
        assert_eq!(packet[20], 8, "an echo request");
        assert_eq!(
            (&packet[26..28], &packet[28..]),
            (&[0, 7][..], &b"ping"[..])
        );
        // A reply is the request with its ends swapped; the type's change is the checksum's, too.
        let (source, destination) = (packet[12..16].to_vec(), packet[16..20].to_vec());
        packet[12..16].copy_from_slice(&destination);
        packet[16..20].copy_from_slice(&source);
        packet[20] = 0;
        let whole = Offload::default();
        let sum = u32::from(u16::from_be_bytes([packet[22], packet[23]])) + 0x0800;
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[22..24].copy_from_slice(&(sum as u16).to_be_bytes());
        inside.handle_packet(now, &mut packet.clone(), whole);
        let datagram = replies.try_recv().unwrap();
        assert_eq!((datagram.remote, &datagram.payload[..]), (to, &b"ping"[..]));
        // Nobody asks any more.
        inside.unbind_udp(FIRST);
        inside.handle_packet(now, &mut packet, whole);
        assert!(replies.try_recv().is_err());
        assert!(inside.echoes.is_empty() && inside.replies.is_empty());
    }

    #[test]
    fn flow_whose_asker_goes_leaves_nothing_behind() {
        let (mut inside, _asked) = inside();
        let (now, mut wire) = (Instant::now(), Wire::default());
        inside.connect(now, FIRST, origin(), Reply::pair().0);
        turn(&mut inside, now, &mut wire, true);
        inside.abort(now, FIRST);
        turn(&mut inside, now, &mut wire, true);
        assert!(inside.flows.is_empty() && inside.handles.is_empty());
        assert!(inside.stack.is_empty());
    }

    /// The inside and an origin that accepts, with nothing lost between them.
    struct Path {
        inside: Inside,
        origin: Stack,
        now: Instant,
        asked: mpsc::Receiver<NameQuery>,
    }

    impl Path {
        fn new() -> Self {
            let (inside, asked) = inside();
            let config = Config {
                accept: Accept::Any,
                addresses: vec![[10, 86, 0, 1].into()],
                ..Config::default()
            };
            Self {
                inside,
                origin: Stack::new(config, 2),
                now: Instant::now(),
                asked,
            }
        }

        /// Lets both speak until neither has anything to say; returns what the origin was told.
        fn settle(&mut self) -> Vec<Event> {
            let mut events = Vec::new();
            loop {
                let mut up = Wire::default();
                turn(&mut self.inside, self.now, &mut up, true);
                let quiet = up.packets.is_empty();
                for (mut packet, offload) in up.packets {
                    let _ = self.origin.handle_packet(self.now, &mut packet, offload);
                }
                while let Some(event) = self.origin.poll_event() {
                    if let Event::Incoming { flow, .. } = event {
                        self.origin.accept(self.now, flow);
                    }
                    events.push(event);
                }
                let mut down = Wire::default();
                self.origin.poll_transmit(self.now, &mut down);
                if quiet && down.packets.is_empty() {
                    return events;
                }
                for (mut packet, offload) in down.packets {
                    self.inside.handle_packet(self.now, &mut packet, offload);
                }
            }
        }

        fn open(&mut self) -> FlowId {
            let (reply, mut answer) = Reply::pair();
            self.inside.connect(self.now, FIRST, origin(), reply);
            let events = self.settle();
            assert_eq!(answer.try_recv(), Ok(Ok(())));
            let flow = events.iter().find_map(|event| match event {
                Event::Established { flow } => Some(*flow),
                Event::Incoming { .. } | Event::Progress { .. } | Event::Closed { .. } => None,
            });
            flow.expect("the origin has the flow too")
        }
    }

    #[tokio::test]
    async fn attached_flow_moves_bytes_and_ends_with_both_halves() {
        let mut path = Path::new();
        let far = path.open();
        let (socket, mut application) = tcp_pair().await;
        path.inside.attach(
            Instant::now(),
            FIRST,
            Attachment::Tcp(socket),
            b"early ".to_vec(),
            None,
        );
        application.write_all(b"bytes").await.unwrap();
        application.shutdown().await.unwrap();
        let mut received = Vec::new();
        while received != b"early bytes" {
            tokio::task::yield_now().await;
            path.settle();
            let _ = path.origin.recv(path.now, far, |ring| {
                received.extend_from_slice(ring);
                (ring.len(), ())
            });
        }
        path.origin
            .send(path.now, far, |ring| {
                ring[..6].copy_from_slice(b"answer");
                (6, ())
            })
            .unwrap();
        path.origin.finish(path.now, far);
        while !path.inside.relay.is_empty() {
            tokio::task::yield_now().await;
            path.settle();
        }
        let mut answer = Vec::new();
        application.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        assert!(path.inside.flows.is_empty() && path.inside.handles.is_empty());
        assert!(path.asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn flow_that_the_origin_resets_is_reset_for_the_application() {
        let mut path = Path::new();
        let far = path.open();
        let (socket, mut application) = tcp_pair().await;
        path.inside.attach(
            Instant::now(),
            FIRST,
            Attachment::Tcp(socket),
            Vec::new(),
            None,
        );
        path.settle();
        path.origin.abort(path.now, far);
        path.settle();
        let error = application.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(path.inside.stack.is_empty() && path.inside.relay.is_empty());
    }

    #[tokio::test]
    async fn application_that_resets_resets_the_flow() {
        let mut path = Path::new();
        let far = path.open();
        let (socket, application) = tcp_pair().await;
        path.inside.attach(
            Instant::now(),
            FIRST,
            Attachment::Tcp(socket),
            Vec::new(),
            None,
        );
        path.settle();
        Endpoint::Tcp(application).reset();
        let closed = |event: &Event| matches!(event, Event::Closed { flow, .. } if *flow == far);
        while !path.settle().iter().any(closed) {
            tokio::task::yield_now().await;
        }
        assert!(path.inside.relay.is_empty() && path.inside.stack.is_empty());
    }

    #[tokio::test]
    async fn flow_that_ended_before_it_was_attached_shows_as_a_reset() {
        let (mut inside, _asked) = inside();
        let (socket, mut application) = tcp_pair().await;
        inside.attach(
            Instant::now(),
            FIRST,
            Attachment::Tcp(socket),
            Vec::new(),
            None,
        );
        let error = application.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn end_of_the_inside_shows_as_a_reset() {
        let mut path = Path::new();
        path.open();
        let (socket, mut application) = tcp_pair().await;
        path.inside.attach(
            Instant::now(),
            FIRST,
            Attachment::Tcp(socket),
            Vec::new(),
            None,
        );
        path.settle();
        drop(path);
        let error = application.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn changed_rules_reset_the_flows_that_they_concern_at_both_ends_and_no_others() {
        let (replace, rules) = InForce::new(Rules::default());
        for (attached_after, list, goes_on) in [
            (false, &["block 192.0.2.2", "direct 10.0.0.0/8"][..], true),
            (false, &["block 192.0.2.1 port 80"], false),
            (false, &["direct *"], false),
            (true, &["block a.example"], true),
            (true, &["block 192.0.2.1"], false),
        ] {
            replace.put(Rules::default());
            let mut path = Path::new();
            let far = path.open();
            let judged = Box::new(Judged::new(&rules, None, origin(), Way::Tunnel));
            let (socket, mut application) = tcp_pair().await;
            if attached_after {
                replace.put(listed(list));
            }
            let attachment = Attachment::Tcp(socket);
            (path.inside).attach(path.now, FIRST, attachment, Vec::new(), Some(judged));
            replace.put(listed(list));
            path.inside.end_unfit(path.now);
            let closed =
                |event: &Event| matches!(event, Event::Closed { flow, .. } if *flow == far);
            let ended = path.settle().iter().any(closed);
            assert_eq!(ended, !goes_on, "{list:?}");
            if goes_on {
                application.write_all(b"on").await.unwrap();
                let mut received = Vec::new();
                while received != b"on" {
                    tokio::task::yield_now().await;
                    path.settle();
                    let _ = path.origin.recv(path.now, far, |ring| {
                        received.extend_from_slice(ring);
                        (ring.len(), ())
                    });
                }
            } else {
                let error = application.read(&mut [0; 8]).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                assert!(path.inside.relay.is_empty() && path.inside.stack.is_empty());
                assert!(path.inside.flows.is_empty() && path.inside.handles.is_empty());
            }
        }
    }
    /// The inside of a path, a port on which somebody listens, and a peer who has called it.
    struct Called {
        path: Path,
        listener: Listener,
        commands: Commands,
        tunnel: Tunnel,
        peers: FlowId,
    }

    impl Called {
        async fn new() -> Self {
            let mut path = Path::new();
            let (tunnel, mut commands) = tunnel(watch::channel(None).1);
            let listening = tunnel.listen(8080);
            let (listener, ()) = tokio::join!(listening, async {
                let command = commands.recv().await.expect("asked");
                order(&mut path, command);
            });
            let remote = SocketAddr::from(([10, 86, 0, 2], 8080));
            let peers = path.origin.connect(path.now, remote).unwrap();
            assert!(path.settle().is_empty(), "nothing is answered yet");
            Self {
                path,
                listener: listener.unwrap(),
                commands,
                tunnel,
                peers,
            }
        }

        /// Does what was ordered last, and returns what the peer hears.
        async fn obey(&mut self) -> Vec<Event> {
            let command = self.commands.recv().await.expect("ordered");
            order(&mut self.path, command);
            self.path.settle()
        }

        fn refused(&self) -> Event {
            Event::Closed {
                flow: self.peers,
                cause: Cause::Refused,
            }
        }
    }

    fn order(path: &mut Path, command: Command) {
        let (inside, now) = (&mut path.inside, path.now);
        match command {
            Command::Listen {
                listener,
                port,
                arrivals,
                reply,
            } => inside.listen(listener, port, arrivals, reply),
            Command::Unlisten { listener } => inside.unlisten(listener),
            Command::Attach {
                flow,
                attachment,
                early,
                judged,
            } => inside.attach(now, flow, attachment, early, judged),
            Command::Abort { flow } => inside.abort(now, flow),
            Command::Refuse { flow, refusal } => inside.refuse(now, flow, refusal),
            Command::Connect { .. }
            | Command::BindUdp { .. }
            | Command::BindEcho { .. }
            | Command::SendUdp { .. }
            | Command::UnbindUdp { .. }
            | Command::Associate { .. }
            | Command::Dissociate { .. }
            | Command::Idle { .. }
            | Command::JudgeAgain
            | Command::Look { .. }
            | Command::Resolved { .. } => panic!("no order of a listener's: {command:?}"),
        }
    }

    #[tokio::test]
    async fn peer_is_answered_when_there_is_a_socket_for_it() {
        let mut called = Called::new().await;
        let flow = called.listener.accept().await.unwrap();
        assert_eq!(flow.remote().ip(), IpAddr::from([10, 86, 0, 1]));
        let (socket, mut service) = tcp_pair().await;
        let open = Arc::default();
        let mut watch = FlowWatch::new(Arc::clone(&open));
        let mut fate = watch.fate();
        flow.accept(Endpoint::Tcp(socket), watch);
        let events = called.obey().await;
        let flow = called.peers;
        assert!(events.contains(&Event::Established { flow }), "{events:?}");
        let Called {
            mut path, peers, ..
        } = called;
        let sent = path.origin.send(path.now, peers, |ring| {
            ring[..5].copy_from_slice(b"hello");
            (5, ())
        });
        sent.unwrap();
        path.origin.finish(path.now, peers);
        path.settle();
        let mut heard = String::new();
        service.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        assert_eq!(open.load(std::sync::atomic::Ordering::Relaxed), 1);
        drop(service);
        while fate.try_recv().is_err() {
            tokio::task::yield_now().await;
            path.settle();
        }
        assert_eq!(open.load(std::sync::atomic::Ordering::Relaxed), 0);
        assert!(path.inside.flows.is_empty() && path.inside.handles.is_empty());
    }

    #[tokio::test]
    async fn peer_hears_why_there_is_no_socket_for_it() {
        for refusal in [Some(Refusal::Refused), Some(Refusal::Unreachable), None] {
            let mut called = Called::new().await;
            let flow = called.listener.accept().await.unwrap();
            match refusal {
                Some(refusal) => flow.refuse(refusal),
                None => drop(flow),
            }
            let events = called.obey().await;
            let unreachable = Event::Closed {
                flow: called.peers,
                cause: Cause::Unreachable(Unreachable::Host),
            };
            let heard = if refusal == Some(Refusal::Unreachable) {
                unreachable
            } else {
                called.refused()
            };
            assert!(events.contains(&heard), "{refusal:?}: {events:?}");
            let inside = &called.path.inside;
            assert!(inside.flows.is_empty() && inside.handles.is_empty());
            assert!(inside.stack.is_empty());
        }
    }

    #[tokio::test]
    async fn peer_that_has_gone_costs_the_socket_that_was_made_for_it() {
        let mut called = Called::new().await;
        let flow = called.listener.accept().await.unwrap();
        called.path.origin.abort(called.path.now, called.peers);
        called.path.settle();
        let (socket, mut service) = tcp_pair().await;
        flow.accept(Endpoint::Tcp(socket), FlowWatch::new(Arc::default()));
        called.obey().await;
        let error = service.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn port_is_listened_on_once_and_refuses_when_its_listener_has_gone() {
        let mut called = Called::new().await;
        let (again, ()) = tokio::join!(called.tunnel.listen(8080), async {
            let command = called.commands.recv().await.expect("asked");
            order(&mut called.path, command);
        });
        assert_eq!(again.unwrap_err(), ConnectError::PortTaken);
        let Called {
            mut path,
            listener,
            mut commands,
            tunnel: _tunnel,
            peers,
        } = called;
        // The one who waits was offered to it.
        drop(listener);
        let mut events = Vec::new();
        for _ in 0..2 {
            order(&mut path, commands.recv().await.expect("last words"));
            events.extend(path.settle());
        }
        let refused = |flow| Event::Closed {
            flow,
            cause: Cause::Refused,
        };
        assert!(events.contains(&refused(peers)), "{events:?}");
        let remote = SocketAddr::from(([10, 86, 0, 2], 8080));
        let late = path.origin.connect(path.now, remote).unwrap();
        assert!(path.settle().contains(&refused(late)));
        assert!(path.inside.listeners.is_empty() && path.inside.arrivals.is_empty());
    }
}
