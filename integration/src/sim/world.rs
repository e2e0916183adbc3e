//! The loop of events.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Instant,
};

use super::{
    ends::{End, Setting},
    measure::Trace,
    packet::{Inner, MAX_FLOWS, Packet, Side},
    report::{FlowReport, Report, Residual},
    scenario::{Scenario, Via},
    tunnel::Tunnel,
};
use crate::link::{Emulator, LinkError, Random};

/// A scenario under way.
#[derive(Debug)]
pub struct World<T> {
    scenario: Scenario,
    tunnel: T,
    /// Uplink and downlink.
    links: [Emulator<Carried>; 2],
    flows: Vec<Flow>,
    queue: Queue,
    /// Ends that may have something to send.
    restless: VecDeque<(usize, Side)>,
    tunnel_restless: bool,
    epoch: Instant,
    from: Instant,
    until: Instant,
    wire: [u64; 2],
    corrupt: u64,
}

/// What is on the link.
#[derive(Clone, Debug)]
enum Carried {
    Tunnel(Vec<u8>),
    Beside(Vec<u8>),
}

#[derive(Debug)]
struct Flow {
    /// The client's first.
    ends: [End; 2],
    restless: [bool; 2],
    traces: [Trace; 2],
    /// What the applications had read when measuring began.
    before: [u64; 2],
    start: Instant,
}

/// Who is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Link(Side),
    Tunnel,
    End(usize, Side),
    /// Measuring begins.
    Begin,
}

/// Events by time, then in the order in which they were scheduled.
#[derive(Debug)]
struct Queue {
    events: BinaryHeap<Reverse<(Instant, u64, Target)>>,
    sequence: u64,
    /// For each target the time of its only valid event.
    scheduled: Vec<Option<Instant>>,
}

impl<T: Tunnel> World<T> {
    /// Sets the scene: time begins at `epoch`.
    ///
    /// # Errors
    ///
    /// A link that is none.
    ///
    /// # Panics
    ///
    /// If there are more than 50,000 flows.
    pub fn new(epoch: Instant, scenario: Scenario, tunnel: T) -> Result<Self, LinkError> {
        assert!(
            scenario.flows.len() <= MAX_FLOWS,
            "a world of {} flows",
            scenario.flows.len()
        );
        let mut random = Random::new(scenario.seed);
        let links = [
            Emulator::new(scenario.link.up, random.next_u64())?,
            Emulator::new(scenario.link.down, random.next_u64())?,
        ];
        let (from, until) = (epoch + scenario.warm_up, epoch + scenario.duration);
        let mut queue = Queue::new(scenario.flows.len());
        let flows = scenario
            .flows
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let start = epoch + spec.start;
                let setting = Setting {
                    flow: index,
                    epoch,
                    from,
                    // the last messages have time to come back
                    until: until.checked_sub(LAST_WORDS).unwrap_or(until).max(from),
                    mtu: scenario.mtu,
                    super_packets: scenario.super_packets,
                };
                let ends = End::pair(spec, &setting, start, &mut random);
                for side in SIDES {
                    queue.schedule(Target::End(index, side), Some(start));
                }
                Flow {
                    ends,
                    restless: [false; 2],
                    traces: [Trace::new(from), Trace::new(from)],
                    before: [0; 2],
                    start,
                }
            })
            .collect();
        queue.schedule(Target::Begin, Some(from));
        Ok(Self {
            scenario,
            tunnel,
            links,
            flows,
            queue,
            restless: VecDeque::new(),
            tunnel_restless: true,
            epoch,
            from,
            until,
            wire: [0; 2],
            corrupt: 0,
        })
    }

    /// Lets everything happen, and says what was measured.
    pub fn run(&mut self) -> Report {
        let mut now = self.epoch;
        self.settle(now);
        while let Some((at, target)) = self.queue.pop() {
            if at > self.until {
                break;
            }
            // a tunnel that names a time in the past is woken now
            now = now.max(at);
            match target {
                Target::Begin => {
                    for flow in &mut self.flows {
                        flow.before = [flow.ends[0].read, flow.ends[1].read];
                    }
                }
                Target::Tunnel => {
                    self.tunnel.handle_timeout(now);
                    self.tunnel_restless = true;
                }
                Target::End(flow, side) => {
                    self.flows[flow].ends[side.index()].handle_timeout(now);
                    self.rouse(flow, side);
                }
                Target::Link(side) => self.arrive(now, side),
            }
            self.settle(now);
        }
        self.report()
    }

    /// The tunnel, such as for its own counters.
    pub fn tunnel(&self) -> &T {
        &self.tunnel
    }

    /// Takes from the link what has come over it from `side`.
    fn arrive(&mut self, now: Instant, side: Side) {
        while let Some(delivery) = self.links[side.index()].poll_delivery(now) {
            let to = side.other();
            match delivery.packet {
                Carried::Tunnel(datagram) => {
                    self.tunnel
                        .handle_datagram(now, to, datagram, delivery.marked);
                    self.tunnel_restless = true;
                }
                Carried::Beside(bytes) => self.deliver(
                    now,
                    to,
                    &Packet {
                        bytes,
                        segment: None,
                    },
                ),
            }
        }
    }

    /// Lets everybody send who has something to send, until nobody has.
    fn settle(&mut self, now: Instant) {
        loop {
            if let Some((flow, side)) = self.restless.pop_front() {
                self.flows[flow].restless[side.index()] = false;
                self.emit(now, flow, side);
            } else if std::mem::take(&mut self.tunnel_restless) {
                self.drain_tunnel(now);
            } else {
                break;
            }
        }
        for side in SIDES {
            let next = self.links[side.index()].poll_timeout();
            self.queue.schedule(Target::Link(side), next);
        }
    }

    fn emit(&mut self, now: Instant, index: usize, side: Side) {
        let via = self.scenario.flows[index].via;
        let flow = &mut self.flows[index];
        let end = &mut flow.ends[side.index()];
        while let Some((packet, ident, count)) = end.poll_transmit(now) {
            let trace = &mut flow.traces[side.index()];
            for offset in 0..count {
                trace.on_sent(now, ident.wrapping_add(offset));
            }
            match via {
                Via::Tunnel => {
                    self.tunnel.inject(now, side, packet);
                    self.tunnel_restless = true;
                }
                Via::Beside => {
                    let len = packet.bytes.len();
                    self.links[side.index()].send(now, len, false, Carried::Beside(packet.bytes));
                }
            }
        }
        let next = end.poll_timeout();
        self.queue.schedule(Target::End(index, side), next);
    }

    fn drain_tunnel(&mut self, now: Instant) {
        for side in SIDES {
            while let Some(datagram) = self.tunnel.poll_transmit(now, side) {
                let link = &mut self.links[side.index()];
                let len = datagram.bytes.len() + datagram.headers;
                if now >= self.from {
                    self.wire[side.index()] += len as u64 + u64::from(link.path().overhead);
                }
                link.send(now, len, datagram.ecn, Carried::Tunnel(datagram.bytes));
            }
            while let Some(packet) = self.tunnel.poll_deliver(now, side) {
                self.deliver(now, side, &packet);
            }
        }
        let next = self.tunnel.poll_timeout(now);
        self.queue.schedule(Target::Tunnel, next);
    }

    fn deliver(&mut self, now: Instant, side: Side, packet: &Packet) {
        let inner = Inner::read(&packet.bytes, packet.segment.is_none());
        let Some((inner, flow)) = inner
            .ok()
            .filter(|inner| inner.from == side.other())
            .and_then(|inner| Some((inner, self.flows.get_mut(inner.flow)?)))
        else {
            self.corrupt += 1;
            return;
        };
        let count = match packet.segment {
            None => 1,
            Some(size) => inner.payload().div_ceil(usize::from(size).max(1)).max(1) as u16,
        };
        let trace = &mut flow.traces[inner.from.index()];
        for offset in 0..count {
            trace.on_delivered(now, inner.ident.wrapping_add(offset));
        }
        flow.ends[side.index()].handle(now, &inner.transport);
        self.rouse(inner.flow, side);
    }

    fn rouse(&mut self, flow: usize, side: Side) {
        if !std::mem::replace(&mut self.flows[flow].restless[side.index()], true) {
            self.restless.push_back((flow, side));
        }
    }

    fn report(&mut self) -> Report {
        let measured = self.until.saturating_duration_since(self.from);
        let flows = std::mem::take(&mut self.flows);
        let reports = flows
            .into_iter()
            .zip(&self.scenario.flows)
            .map(|(mut flow, spec)| {
                let delivered = [0, 1].map(|index| flow.ends[index].read - flow.before[index]);
                for trace in &mut flow.traces {
                    trace.finish(self.until);
                }
                let residual = [0, 1].map(|index| {
                    let trace = &flow.traces[index];
                    Residual {
                        sent: trace.sent,
                        lost: trace.lost,
                        reordered: trace.reordered,
                        repeated: trace.repeated,
                    }
                });
                let p99_of_sent = [0, 1].map(|index| flow.traces[index].p99_of_sent());
                let completed = flow.ends.iter().find_map(|end| end.completed);
                let tcp = [flow.ends[0].tcp(), flow.ends[1].tcp()];
                let mut talk = (super::measure::Samples::default(), 0, 0);
                for end in &mut flow.ends {
                    if let Some(asker) = end.asker() {
                        asker.finish();
                        talk = (
                            std::mem::take(&mut asker.round_trips),
                            asker.sent,
                            asker.lost,
                        );
                    }
                }
                FlowReport {
                    spec: *spec,
                    delivered,
                    goodput: delivered[0].max(delivered[1]) as f64 * 8.0
                        / measured.as_secs_f64().max(1e-9),
                    completed: completed.map(|at| at.saturating_duration_since(flow.start)),
                    delay: flow.traces.map(|trace| trace.delays.percentiles()),
                    p99_of_sent,
                    residual,
                    echo: talk.0.percentiles(),
                    messages: talk.1,
                    unanswered: talk.2,
                    tcp,
                }
            });
        let links = [self.links[0].counters(), self.links[1].counters()];
        Report {
            flows: reports.collect(),
            links,
            wire: self.wire,
            measured,
            packets: links[0].sent + links[1].sent,
            corrupt: self.corrupt,
        }
    }
}

impl Queue {
    fn new(flows: usize) -> Self {
        Self {
            events: BinaryHeap::new(),
            sequence: 0,
            scheduled: vec![None; FIXED_TARGETS + 2 * flows],
        }
    }

    /// Wakes `target` at this time, unless it is woken earlier anyway: it then says itself when again.
    fn schedule(&mut self, target: Target, at: Option<Instant>) {
        let Some(at) = at else {
            return;
        };
        let slot = &mut self.scheduled[target.index()];
        if slot.is_some_and(|scheduled| scheduled <= at) {
            return;
        }
        *slot = Some(at);
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, target)));
    }

    fn pop(&mut self) -> Option<(Instant, Target)> {
        loop {
            let Reverse((at, _, target)) = self.events.pop()?;
            let slot = &mut self.scheduled[target.index()];
            // an event that was overtaken by an earlier one is void
            if *slot == Some(at) {
                *slot = None;
                return Some((at, target));
            }
        }
    }
}

impl Target {
    fn index(self) -> usize {
        match self {
            Self::Link(side) => side.index(),
            Self::Tunnel => 2,
            Self::Begin => 3,
            Self::End(flow, side) => FIXED_TARGETS + 2 * flow + side.index(),
        }
    }
}

const SIDES: [Side; 2] = [Side::Client, Side::Server];
/// The links, the tunnel and the beginning.
const FIXED_TARGETS: usize = 4;
/// How long before the end the last message is asked that counts.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);
