//! The task that owns a namespace's device and the netstack behind it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Config, Delivery, Event, FlowId, Offload, Rejection, Stack, Unreachable,
};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::book::{Ask, PART};
use super::datagrams::{Arrival, Speakers};
use super::device::{Device, Read};
use super::flows::{Outcome, open};
use super::table::{Enclosures, GATEWAYS, Offer};
use crate::client::dns::Dns;
use crate::client::proxy::{Context as Proxy, OriginStream};
use crate::client::rules::{InForce, Judged};
use crate::io::attempts::Attempts;
use crate::io::clock;
use crate::io::relay::{Endpoint, ReadySet, Relay, Ties};
use crate::io::tun::Tun;
use crate::io::turns::Turns;
use crate::status::Counters;

/// One namespace that shares this client.
pub(super) struct Enclosure {
    device: Device,
    stack: Stack,
    relay: Relay,
    ready: Arc<ReadySet>,
    proxy: Arc<Proxy>,
    dns: Dns,
    opening: Attempts<FlowId, Outcome>,
    /// The other halves of flows whose handshakes have not ended.
    opened: HashMap<FlowId, (OriginStream, Judged)>,
    speakers: Speakers,
    queries: FuturesUnordered<Query>,
    /// Streams of queries.
    streams: JoinSet<()>,
    rules: Pin<Box<dyn Future<Output = InForce> + Send>>,
    leave: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When it ends at the latest, once nobody needs it any more.
    until: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    gave_way: bool,
    /// Asks for its numbers.
    asked: mpsc::Receiver<Ask>,
    stats: EnclosureStats,
}

/// What an [`Enclosure`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EnclosureStats {
    /// Flows that were opened.
    pub(crate) opened: u64,
    /// Flows that could not be, or may not.
    pub(crate) refused: u64,
    /// Questions dropped: too many under way.
    pub(crate) queries_dropped: u64,
    /// What came for closed ports of the gateway.
    pub(crate) gateway_refused: u64,
    /// Datagrams and replies that could not be written.
    pub(crate) unsent: u64,
}

impl Enclosure {
    pub(super) fn new(
        tun: Tun,
        offer: &Offer,
        enclosures: &Enclosures,
        asked: mpsc::Receiver<Ask>,
        leave: CancellationToken,
    ) -> Self {
        let config = Config {
            mtu: offer.mtu,
            addresses: GATEWAYS.to_vec(),
            accept: Accept::Any,
            incoming: true,
            max_flows: MAX_FLOWS,
            ..Config::default()
        };
        let mut stack = Stack::new(config, rand::random());
        stack.set_memory(Box::new(enclosures.share.part()));
        let ready = ReadySet::new();
        let proxy = Arc::clone(&enclosures.proxy);
        Self {
            device: Device::new(tun, Arc::clone(&enclosures.pool)),
            stack,
            relay: Relay::new(ready.clone()),
            ready,
            dns: enclosures.dns.clone(),
            opening: Attempts::new(),
            opened: HashMap::new(),
            speakers: Speakers::new(Arc::clone(&proxy)),
            queries: FuturesUnordered::new(),
            streams: JoinSet::new(),
            rules: Box::pin(changed(proxy.settings.rules.clone())),
            leave: Box::pin(leave.cancelled_owned()),
            until: None,
            timer: Box::pin(tokio::time::sleep_until(clock::now().into())),
            gave_way: false,
            asked,
            stats: EnclosureStats::default(),
            proxy,
        }
    }

    /// Serves the namespace until it is left, or gone, and what it has sent is passed on; returns what was counted.
    pub(super) async fn run(mut self) -> Counters {
        // As the driver's: its turns are bounded by itself.
        tokio::task::unconstrained(poll_fn(|cx| self.poll(cx))).await;
        self.counters()
    }

    /// What was counted, of all parts.
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        counters.add(PART, &self.stats);
        counters.add("commands_device", &self.device.stats());
        counters.add("commands_datagrams", &self.speakers.stats());
        counters.add("commands_netstack", self.stack.stats());
        counters.add("commands_relay", self.relay.stats());
        counters
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // While there is always something to move, nothing else would look at what is due.
        let now = clock::now();
        if std::mem::take(&mut self.gave_way) && self.arm(cx, now) {
            self.handle_timeout(now);
        }
        let turns = Turns::begin();
        loop {
            let now = clock::now();
            if turns.are_over(now) {
                break;
            }
            self.ready.register(cx);
            let mut any = self.poll_device(cx, now);
            any |= self.poll_rules(cx, now);
            any |= self.poll_opening(cx, now);
            any |= self.poll_events(now, turns);
            any |= self
                .relay
                .poll_ready(now, &mut self.stack, READY_PER_TURN, turns);
            while self.relay.poll_ended().is_some() {}
            any |= self.poll_queries(cx);
            any |= self.poll_arrivals(cx);
            any |= self.poll_asked(cx);
            self.stack.poll_transmit(now, &mut self.device);
            if self.is_over(cx, now) {
                return Poll::Ready(());
            }
            if !any {
                if !self.arm(cx, now) {
                    return Poll::Pending;
                }
                self.handle_timeout(clock::now());
            }
        }
        self.gave_way = true;
        Turns::give_way(cx);
        Poll::Pending
    }

    // ---- what the command sends --------------------------------------------------------

    fn poll_device(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        for read in 0..BATCH {
            let Some(read_packet) = self.device.poll_read(cx) else {
                return read > 0;
            };
            let Read {
                mut buffer,
                packet,
                offload,
            } = read_packet;
            if let Some(packet) = buffer.get_mut(packet) {
                self.handle_packet(now, packet, offload);
            }
            self.device.give_back(buffer);
        }
        true
    }

    fn handle_packet(&mut self, now: Instant, packet: &mut [u8], offload: Offload) {
        match self.stack.handle_packet(now, packet, offload) {
            Ok(Delivery::Absorbed | Delivery::UdpFailed { .. }) | Err(_) => {}
            Ok(Delivery::Udp {
                local,
                remote,
                payload,
                segment,
            }) => {
                // An empty payload is one empty datagram.
                let empty = payload.is_empty().then_some(payload);
                for payload in payload.chunks(segment).chain(empty) {
                    if !GATEWAYS.contains(&local.ip()) {
                        self.speakers.send_udp(now, remote, local, payload);
                    } else if local.port() != DNS_PORT {
                        self.stats.gateway_refused += 1;
                    } else if self.queries.len() >= MAX_QUERIES {
                        self.stats.queries_dropped += 1;
                    } else {
                        let (dns, query) = (self.dns.clone(), payload.to_vec());
                        let rules = self.proxy.settings.rules.now();
                        self.queries.push(Box::pin(async move {
                            let payload = dns.answer_datagram(&query, &rules).await?;
                            Some(Arrival::Udp {
                                from: local,
                                to: remote,
                                payload,
                            })
                        }));
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
                if request {
                    let (from, to) = ((remote, ident), (local, sequence));
                    self.speakers.send_echo(now, from, to, payload);
                }
            }
        }
    }

    // ---- TCP ---------------------------------------------------------------------------

    fn poll_events(&mut self, now: Instant, turns: Turns) -> bool {
        let mut any = false;
        while let Some(event) = self.stack.poll_event() {
            any = true;
            match event {
                Event::Incoming { flow, local, .. } => self.incoming(now, flow, local),
                Event::Established { flow } => self.established(flow),
                Event::Progress { flow } => {
                    self.relay.pump(now, &mut self.stack, flow);
                }
                Event::Closed { flow, .. } => {
                    self.opening.give_up(flow);
                    self.opened.remove(&flow);
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

    fn incoming(&mut self, now: Instant, flow: FlowId, to: SocketAddr) {
        if self.until.is_some() {
            self.stack.reject(now, flow, Rejection::Reset);
        } else if !GATEWAYS.contains(&to.ip()) {
            self.opening.begin(flow, open(Arc::clone(&self.proxy), to));
        } else if to.port() == DNS_PORT {
            self.stack.accept(now, flow);
        } else {
            self.stats.gateway_refused += 1;
            let why = Unreachable::AdminProhibited;
            self.stack.reject(now, flow, Rejection::Unreachable(why));
        }
    }

    fn poll_opening(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        while let Poll::Ready((flow, outcome)) = self.opening.poll_outcome(cx) {
            any = true;
            match outcome {
                Ok(opened) => {
                    self.stats.opened += 1;
                    self.opened.insert(flow, opened);
                    self.stack.accept(now, flow);
                }
                Err(rejection) => {
                    self.stats.refused += 1;
                    self.stack.reject(now, flow, rejection);
                }
            }
        }
        any
    }

    fn established(&mut self, flow: FlowId) {
        match self.opened.remove(&flow) {
            Some((stream, judged)) => {
                let ties = Ties {
                    terms: Some(Box::new(judged)),
                    watch: None,
                };
                let endpoint = Endpoint::Pipe(Box::new(stream));
                self.relay.attach_tied(flow, endpoint, Vec::new(), ties);
            }
            // The gateway's port 53 has no other half.
            None => {
                let (near, far) = tokio::io::duplex(DNS_PIPE);
                let (dns, rules) = (self.dns.clone(), self.proxy.settings.rules.clone());
                // Ends with the pipe, whose other end the relay drops with the flow.
                self.streams
                    .spawn(async move { dns.serve_stream(far, &rules).await });
                let endpoint = Endpoint::Pipe(Box::new(near));
                self.relay.attach(flow, endpoint, Vec::new());
            }
        }
    }

    fn poll_rules(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Poll::Ready(rules) = self.rules.as_mut().poll(cx) else {
            return false;
        };
        self.rules = Box::pin(changed(rules));
        self.relay.end_unfit(now, &mut self.stack);
        let unfit = self
            .opened
            .iter()
            .filter(|(_, (_, judged))| !judged.holds());
        for flow in unfit.map(|(flow, _)| *flow).collect::<Vec<_>>() {
            self.opened.remove(&flow);
            self.stack.abort(now, flow);
            self.stack.release(now, flow);
        }
        true
    }

    // ---- what the command is sent ------------------------------------------------------

    fn poll_queries(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(answer)) = self.queries.poll_next_unpin(cx) {
            any = true;
            if let Some(answer) = answer {
                self.deliver(answer);
            }
        }
        while let Poll::Ready(Some(done)) = self.streams.poll_join_next(cx) {
            if done.is_err() {
                tracing::warn!("a stream of queries of a command ended by a panic");
            }
        }
        any
    }

    fn poll_arrivals(&mut self, cx: &mut Context<'_>) -> bool {
        for taken in 0..BATCH {
            let Some(arrival) = self.speakers.poll_arrival(cx) else {
                return taken > 0;
            };
            self.deliver(arrival);
        }
        true
    }

    fn deliver(&mut self, arrival: Arrival) {
        let (stack, device) = (&mut self.stack, &mut self.device);
        let sent = match arrival {
            Arrival::Udp { from, to, payload } => stack.send_udp(device, from, to, &payload),
            Arrival::Echo {
                from,
                to,
                ident,
                sequence,
                payload,
            } => stack.send_echo(device, from, to, false, ident, sequence, &payload),
        };
        self.stats.unsent += u64::from(sent.is_err());
    }

    fn poll_asked(&mut self, cx: &mut Context<'_>) -> bool {
        let Poll::Ready(Some(ask)) = self.asked.poll_recv(cx) else {
            return false;
        };
        // Whoever asked may have lost patience.
        let _ = ask.send(self.counters());
        true
    }

    // ---- time, and the end -------------------------------------------------------------

    /// Whether nobody needs it any more, and nothing is left to be passed on or the time for that is over.
    fn is_over(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.until.is_none()
            && (self.device.is_gone() || self.leave.as_mut().poll(cx).is_ready())
        {
            self.until = Some(now + LEAVE);
        }
        self.until
            .is_some_and(|until| now >= until || self.opening.is_empty() && self.stack.is_empty())
    }

    /// Sets the timer; returns whether something is due already.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let due = self
            .stack
            .poll_timeout()
            .into_iter()
            .chain(self.until)
            .min();
        let due = due.unwrap_or(now + IDLE_TICK);
        if due <= now {
            return true;
        }
        self.timer.as_mut().reset(due.into());
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
        if self.stack.is_empty() {
            self.device.rest();
        }
    }
}

/// Waits for a change of rules and gives them back.
async fn changed(mut rules: InForce) -> InForce {
    rules.changed().await;
    rules
}

type Query = Pin<Box<dyn Future<Output = Option<Arrival>> + Send>>;

/// TCP flows of one command, each with two pipes of 64 KiB beside its rings.
pub const MAX_FLOWS: usize = 4096;

/// Questions by UDP of one command that wait for an answer.
pub const MAX_QUERIES: usize = 1024;

/// How long what a command has sent may take to be passed on after its end.
pub const LEAVE: Duration = Duration::from_secs(5);

/// Packets read, and datagrams written, in one turn.
const BATCH: usize = 64;

/// Pipes served in one turn.
const READY_PER_TURN: usize = 256;

/// With nothing to wait for, it looks around this often.
const IDLE_TICK: Duration = Duration::from_secs(60);

/// Where the gateway answers names.
const DNS_PORT: u16 = 53;

/// What a pipe to the resolver holds each way: one message of the largest size.
const DNS_PIPE: usize = 64 * 1024;
