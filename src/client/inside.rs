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
//! Flows and ports are bounded by the netstack; at most [`MAX_OUTGOING`](datagrams::MAX_OUTGOING) datagrams wait for room.

mod datagrams;
mod flows;
mod incoming;
mod orders;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use adit_netstack::{Accept, Config, Delivery, Event, Offload, PacketSink, Stack};
use ipnet::IpNet;
use tokio::sync::mpsc;

use self::datagrams::Outgoing;
use self::flows::{Carried, Slot, connect_error, relayed_error};
use super::associate::Associations;
use super::down::TUNNEL_WAIT;
use super::resolve::NameQueries;
use super::tunnel::{Arrivals, Datagram, HandleId, Reply};
use crate::io::memory;
use crate::io::relay::{ReadySet, Relay};
use crate::io::turns::Turns;
use crate::proto::Role;
use crate::proto::budget::Share;
use crate::proto::relayed::{Pieces, Relayed, RelayedEvent};
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
    /// Datagrams of our own that were not sent: too many waited, or for too long, or there is no
    /// address of their family.
    pub(crate) udp_not_sent: u64,
    /// Datagrams for a port whose owner was behind.
    pub(crate) udp_queue_full: u64,
    /// Connections to a port of our inner address on which nobody listens any more.
    pub(crate) incoming_refused: u64,
    /// Connections not answered, because too many wait for whoever listens: their peers try again.
    pub(crate) incoming_full: u64,
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

    /// Tells when no flow is left, those that close in the background among them.
    fn tell_when_idle(&mut self, reply: Reply) {
        self.idle.retain(|waiting| !waiting.is_abandoned());
        self.idle.push(reply);
    }

    /// Lends the SOCKS5 UDP relays, and the netstack that they need.
    fn associations(&mut self) -> (&mut Associations, &mut Stack) {
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
            any |= self.poll_outgoing(now, sink);
        }
        any | (self.associations).poll(cx, now, &mut self.stack, sink)
    }

    /// Lets the netstack put what it has to say into `sink`.
    pub(super) fn poll_transmit<S: PacketSink>(&mut self, now: Instant, sink: &mut S) {
        self.stack.poll_transmit(now, sink);
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

/// How long the handshake of a flow may take, and so wait for a tunnel that is down.
const CONNECT_TIMEOUT: Duration = TUNNEL_WAIT;

#[cfg(test)]
mod tests;
