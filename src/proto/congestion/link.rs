//! A bottleneck in virtual time, the lane under test, and the flows of others beside it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use super::{Bbr, Metrics};
use crate::proto::delivery::{Class, Flight, Permit, Received};
use crate::wire::{MAX_REPORT_LEN, RepairCounts, Report};

/// A FIFO with a rate and a limit, a way there and a way back.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Bits per second.
    pub(super) rate: f64,
    /// One way.
    pub(super) delay: Duration,
    /// How long a full queue takes.
    pub(super) queue: Duration,
    /// Share lost at random, before the queue, both ways.
    pub(super) loss: f64,
    /// Mean length of a run of losses on the way there; 1 where they are independent.
    pub(super) burst: f64,
    /// Added to the delay, evenly from nothing to this; order is kept unless `reorder`.
    pub(super) jitter: Duration,
    pub(super) reorder: bool,
    /// Marks instead of dropping once the queue is longer than this.
    pub(super) mark_above: Option<Duration>,
}

impl Default for Link {
    /// 50 Mbit/s, 50 ms, 100 ms of queue.
    fn default() -> Self {
        Self {
            rate: 50e6,
            delay: Duration::from_millis(25),
            queue: Duration::from_millis(100),
            loss: 0.0,
            burst: 1.0,
            jitter: Duration::ZERO,
            reorder: false,
            mark_above: None,
        }
    }
}

/// What a flow is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The lane under test, with always something to send.
    Lane,
    /// The same, with a datagram of that many bytes each so often.
    Thin(usize, Duration),
    /// A TCP flow with CUBIC, as Linux has it, and always something to send.
    Cubic,
    /// The same with BBRv1.
    Bbr1,
}

/// The simulation.
pub(super) struct Simulation {
    pub(super) link: Link,
    /// Queue in bytes as of `counted`.
    backlog: f64,
    counted: u64,
    last_arrival: u64,
    /// Within a run of losses.
    losing: bool,
    origin: Instant,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    payloads: BTreeMap<u64, Event>,
    order: u64,
    random: u64,
    pub(super) flows: Vec<Flow>,
}

enum Event {
    Wake,
    Arrive {
        number: u64,
        bytes: usize,
        marked: bool,
    },
    ReportDue,
    Report(Box<Report>),
    Ack(u64),
}

/// One flow and what was measured of it.
pub(super) struct Flow {
    machine: Machine,
    /// Bytes that arrived, headers included.
    pub(super) arrived: u64,
    /// Bytes that were dropped or lost.
    pub(super) dropped: u64,
    /// Queueing delay of each datagram that arrived: when, and how long, in nanoseconds.
    pub(super) queued: Vec<(u64, u64)>,
    pub(super) report_bytes: u64,
    wake: u64,
    report_wake: u64,
}

enum Machine {
    Lane {
        flight: Box<Flight<()>>,
        received: Box<Received>,
        number: u64,
        thin: Option<(usize, Duration)>,
        next: u64,
    },
    Cubic(Cubic),
    Bbr1(Bbr1),
}

impl Simulation {
    pub(super) fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            backlog: 0.0,
            counted: 0,
            last_arrival: 0,
            losing: false,
            origin: Instant::now(),
            now: 0,
            events: BinaryHeap::new(),
            payloads: BTreeMap::new(),
            order: 0,
            random: seed,
            flows: Vec::new(),
        }
    }

    /// Adds a flow that begins now.
    pub(super) fn add(&mut self, kind: Kind) -> usize {
        let now = self.instant();
        let guess = self.link.delay * 2;
        let seed = self.flows.len() as u64 + self.random;
        let lane = |thin| {
            let congestion = Bbr::new(now, PAYLOAD, guess, seed);
            Machine::Lane {
                flight: Box::new(Flight::new(now, guess, Box::new(congestion))),
                received: Box::new(Received::new(now, guess)),
                number: 0,
                thin,
                next: self.now,
            }
        };
        let machine = match kind {
            Kind::Lane => lane(None),
            Kind::Thin(bytes, each) => lane(Some((bytes, each))),
            Kind::Cubic => Machine::Cubic(Cubic::new()),
            Kind::Bbr1 => Machine::Bbr1(Bbr1::new(self.now)),
        };
        self.flows.push(Flow {
            machine,
            arrived: 0,
            dropped: 0,
            queued: Vec::new(),
            report_bytes: 0,
            wake: u64::MAX,
            report_wake: u64::MAX,
        });
        let flow = self.flows.len() - 1;
        self.push(self.now, flow, Event::Wake);
        flow
    }

    /// Turns a lane that sends all it can into a thin one, or back.
    pub(super) fn set_thin(&mut self, flow: usize, thin: Option<(usize, Duration)>) {
        let now = self.now;
        if let Machine::Lane {
            thin: slot, next, ..
        } = &mut self.flows[flow].machine
        {
            *slot = thin;
            *next = now;
        }
        self.push(now, flow, Event::Wake);
    }

    /// Ends a flow: it sends nothing more.
    pub(super) fn stop(&mut self, flow: usize) {
        match &mut self.flows[flow].machine {
            Machine::Lane { thin, next, .. } => {
                *thin = Some((PAYLOAD, Duration::from_secs(1 << 30)));
                *next = u64::MAX;
            }
            Machine::Cubic(cubic) => cubic.stopped = true,
            Machine::Bbr1(bbr) => bbr.stopped = true,
        }
    }

    /// Changes the rate; what waits stays.
    pub(super) fn set_rate(&mut self, rate: f64) {
        self.drain();
        self.link.rate = rate;
    }

    /// Runs for `span` of virtual time.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span.as_nanos() as u64;
        while let Some(&Reverse((at, order, flow))) = self.events.peek() {
            if at > end {
                break;
            }
            self.events.pop();
            self.now = self.now.max(at);
            let event = self.payloads.remove(&order).expect("pushed with the event");
            self.handle(flow, event);
        }
        self.now = end;
    }

    /// Bits per second that arrived over the next `span`.
    pub(super) fn measure(&mut self, span: Duration) -> Vec<f64> {
        let before: Vec<u64> = self.flows.iter().map(|flow| flow.arrived).collect();
        self.run(span);
        let rate = |(flow, before): (&Flow, u64)| {
            (flow.arrived - before) as f64 * 8.0 / span.as_secs_f64()
        };
        self.flows.iter().zip(before).map(rate).collect()
    }

    /// Mean and 99th percentile of a flow's queueing delay within the last `span`, in milliseconds.
    pub(super) fn queueing(&self, flow: usize, span: Duration) -> (f64, f64) {
        let since = self.now - span.as_nanos() as u64;
        let queued = &self.flows[flow].queued;
        let recent = &queued[queued.partition_point(|(at, _)| *at < since)..];
        let mut delays: Vec<u64> = recent.iter().map(|(_, delay)| *delay).collect();
        delays.sort_unstable();
        let mean = delays.iter().sum::<u64>() as f64 / delays.len().max(1) as f64;
        let high = delays.get(delays.len() * 99 / 100).copied().unwrap_or(0);
        (mean / 1e6, high as f64 / 1e6)
    }

    pub(super) fn metrics(&self, flow: usize) -> Metrics {
        self.flight(flow).congestion().metrics()
    }

    pub(super) fn flight(&self, flow: usize) -> &Flight<()> {
        match &self.flows[flow].machine {
            Machine::Lane { flight, .. } => flight,
            Machine::Cubic(_) | Machine::Bbr1(_) => panic!("not a lane"),
        }
    }

    fn instant(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now)
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_nanos() as u64
    }

    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn push(&mut self, at: u64, flow: usize, event: Event) {
        match event {
            Event::Wake if self.flows[flow].wake <= at => return,
            Event::ReportDue if self.flows[flow].report_wake <= at => return,
            Event::Wake => self.flows[flow].wake = at,
            Event::ReportDue => self.flows[flow].report_wake = at,
            Event::Arrive { .. } | Event::Report(_) | Event::Ack(_) => {}
        }
        self.order += 1;
        self.payloads.insert(self.order, event);
        self.events.push(Reverse((at, self.order, flow)));
    }

    fn drain(&mut self) {
        let elapsed = (self.now - self.counted) as f64 / 1e9;
        self.backlog = (self.backlog - elapsed * self.link.rate / 8.0).max(0.0);
        self.counted = self.now;
    }

    /// A datagram enters the link.
    fn transmit(&mut self, flow: usize, number: u64, payload: usize) {
        let bytes = payload + HEADERS;
        self.drain();
        let limit = self.link.queue.as_secs_f64() * self.link.rate / 8.0;
        let full = self.backlog + bytes as f64 > limit.max(2.0 * 1500.0);
        let loss = self.link.loss;
        // Gilbert's model: runs of losses, of geometric length.
        let turn = if self.link.burst <= 1.0 {
            loss
        } else if self.losing {
            1.0 - 1.0 / self.link.burst
        } else {
            loss / (1.0 - loss) / self.link.burst
        };
        self.losing = self.chance() < turn;
        if self.losing || full {
            self.flows[flow].dropped += bytes as u64;
            return;
        }
        let seconds = |bytes: f64| bytes * 8.0 / self.link.rate;
        let queued = (seconds(self.backlog) * 1e9) as u64;
        let marked = (self.link.mark_above).is_some_and(|above| queued > above.as_nanos() as u64);
        self.backlog += bytes as f64;
        let leaves = self.now + (seconds(self.backlog) * 1e9) as u64;
        let jitter = (self.chance() * self.link.jitter.as_nanos() as f64) as u64;
        let mut at = leaves + self.link.delay.as_nanos() as u64 + jitter;
        if !self.link.reorder {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        self.flows[flow].queued.push((self.now, queued));
        let event = Event::Arrive {
            number,
            bytes,
            marked,
        };
        self.push(at, flow, event);
    }

    fn handle(&mut self, flow: usize, event: Event) {
        let now = self.instant();
        match event {
            // An earlier one was set since.
            Event::Wake if self.flows[flow].wake != self.now => return,
            Event::ReportDue if self.flows[flow].report_wake != self.now => return,
            Event::Wake => self.flows[flow].wake = u64::MAX,
            Event::ReportDue => {
                self.flows[flow].report_wake = u64::MAX;
                self.report(flow);
                return;
            }
            Event::Arrive {
                number,
                bytes,
                marked,
            } => {
                self.flows[flow].arrived += bytes as u64;
                match &mut self.flows[flow].machine {
                    Machine::Lane { received, .. } => {
                        let payload = bytes - HEADERS;
                        received.handle_datagram(now, number, payload, marked, Class::Data);
                        self.report(flow);
                    }
                    Machine::Cubic(_) | Machine::Bbr1(_) => {
                        let at = self.now + self.link.delay.as_nanos() as u64;
                        self.push(at, flow, Event::Ack(number));
                    }
                }
                return;
            }
            Event::Report(report) => {
                if let Machine::Lane {
                    flight, received, ..
                } = &mut self.flows[flow].machine
                {
                    flight.handle_report(now, &report, |(), _| {});
                    received.handle_round_trip(flight.sent().round_trip());
                }
            }
            Event::Ack(number) => match &mut self.flows[flow].machine {
                Machine::Cubic(cubic) => cubic.on_ack(self.now, number),
                Machine::Bbr1(bbr) => bbr.on_ack(self.now, number),
                Machine::Lane { .. } => {}
            },
        }
        self.send(flow);
    }

    /// The receiver's end of a lane speaks if it is due.
    fn report(&mut self, flow: usize) {
        let now = self.instant();
        let Machine::Lane { received, .. } = &mut self.flows[flow].machine else {
            return;
        };
        let report = received.poll_report(now, RepairCounts::default(), [], false);
        let due = received.poll_timeout();
        if let Some(report) = report {
            let mut bytes = [0; MAX_REPORT_LEN];
            let len = report.write(&mut bytes).unwrap();
            self.flows[flow].report_bytes += (len + HEADERS + 14 + 28) as u64;
            if self.chance() >= self.link.loss {
                let jitter = (self.chance() * self.link.jitter.as_nanos() as f64) as u64;
                let at = self.now + self.link.delay.as_nanos() as u64 + jitter;
                let report = Report::parse(&bytes[..len]).unwrap();
                self.push(at, flow, Event::Report(Box::new(report)));
            }
        }
        if let Some(due) = due {
            let at = self.nanos(due).max(self.now);
            self.push(at, flow, Event::ReportDue);
        }
    }

    fn send(&mut self, flow: usize) {
        let now = self.instant();
        loop {
            let mut sent = None;
            let mut wake = None;
            match &mut self.flows[flow].machine {
                Machine::Lane {
                    flight,
                    number,
                    thin,
                    next,
                    ..
                } => {
                    let _ = flight.handle_timeout(now, |(), _| {});
                    let bytes = thin.map_or(PAYLOAD, |(bytes, _)| bytes);
                    if thin.is_some() && self.now < *next {
                        flight.handle_application_limited();
                        wake = (*next != u64::MAX).then_some(*next);
                    } else {
                        match flight.permit(now, bytes) {
                            Permit::Now => {
                                flight
                                    .handle_sent(now, *number, bytes, Class::Data, ())
                                    .unwrap();
                                sent = Some((*number, bytes));
                                *number += 1;
                                if let Some((_, each)) = thin {
                                    *next = self.now + each.as_nanos() as u64;
                                }
                            }
                            Permit::At(at) => {
                                let since = at.saturating_duration_since(self.origin);
                                wake = Some(since.as_nanos() as u64);
                            }
                            Permit::Full => {}
                        }
                    }
                    if let Some(due) = flight.poll_timeout() {
                        let due = due.saturating_duration_since(self.origin).as_nanos() as u64;
                        wake = Some(wake.map_or(due, |at: u64| at.min(due)));
                    }
                }
                Machine::Cubic(cubic) => {
                    sent = cubic.poll(self.now).map(|number| (number, PAYLOAD));
                    wake = Some(cubic.timeout());
                }
                Machine::Bbr1(bbr) => match bbr.poll(self.now) {
                    Ok(number) => sent = Some((number, PAYLOAD)),
                    Err(at) => wake = at,
                },
            }
            if let Some(at) = wake {
                self.push(at.max(self.now + 1), flow, Event::Wake);
            }
            match sent {
                Some((number, bytes)) => self.transmit(flow, number, bytes),
                None => return,
            }
        }
    }
}

/// A CUBIC sender with SACK, HyStart and no pacing; lost data is not told from new.
struct Cubic {
    window: f64,
    threshold: f64,
    former: f64,
    epoch: Option<u64>,
    reno: f64,
    flying: BTreeMap<u64, u64>,
    next: u64,
    recover: u64,
    lowest: f64,
    smoothed: f64,
    heard: u64,
    pair: bool,
    stopped: bool,
}

impl Cubic {
    fn new() -> Self {
        Self {
            window: 10.0,
            threshold: f64::MAX,
            former: 0.0,
            epoch: None,
            reno: 0.0,
            flying: BTreeMap::new(),
            next: 0,
            recover: 0,
            lowest: f64::MAX,
            smoothed: 0.1,
            heard: 0,
            pair: false,
            stopped: false,
        }
    }

    fn timeout(&self) -> u64 {
        self.heard + 1_000_000_000
    }

    fn poll(&mut self, now: u64) -> Option<u64> {
        if now >= self.timeout() {
            self.flying.clear();
            self.heard = now;
        }
        let free = self.window.floor() - self.flying.len() as f64;
        // Receivers acknowledge every second segment, so that senders send two at a time.
        if self.stopped || free < if self.pair { 1.0 } else { 2.0 } {
            return None;
        }
        self.pair = !self.pair;
        self.flying.insert(self.next, now);
        self.next += 1;
        Some(self.next - 1)
    }

    fn on_ack(&mut self, now: u64, number: u64) {
        self.heard = now;
        let Some(sent) = self.flying.remove(&number) else {
            return;
        };
        let sample = (now - sent) as f64 / 1e9;
        self.lowest = self.lowest.min(sample);
        self.smoothed += (sample - self.smoothed) / 8.0;
        let lost: Vec<u64> = (self.flying.range(..number.saturating_sub(2)))
            .map(|(lost, _)| *lost)
            .collect();
        let mut cut = false;
        for number in lost {
            self.flying.remove(&number);
            cut |= number >= self.recover;
        }
        if cut {
            self.recover = self.next;
            self.former = if self.window < self.former {
                self.window * 0.85
            } else {
                self.window
            };
            self.window = (self.window * 0.7).max(3.0);
            self.threshold = self.window;
            self.reno = self.window;
            self.epoch = Some(now);
            return;
        }
        if number < self.recover {
            return;
        }
        if self.window < self.threshold {
            self.window += 1.0;
            let late = self.lowest + (self.lowest / 8.0).clamp(0.004, 0.016);
            if sample > late && self.window > 16.0 {
                self.threshold = self.window;
                self.former = self.window;
                self.reno = self.window;
                self.epoch = Some(now);
            }
            return;
        }
        let elapsed = (now - self.epoch.unwrap_or(now)) as f64 / 1e9 + self.smoothed;
        let period = ((self.former - self.window.min(self.former)).max(0.0) / 0.4).cbrt();
        let period = self
            .epoch
            .map_or(0.0, |_| (self.former * 0.3 / 0.4).cbrt().max(period));
        let target = self.former + 0.4 * (elapsed - period).powi(3);
        let target = target.clamp(self.window, self.window * 1.5);
        self.window += (target - self.window) / self.window;
        self.reno += 0.53 / self.window;
        self.window = self.window.max(self.reno);
    }
}

/// A BBRv1 sender, as Linux has it, without its policer and aggregation parts.
struct Bbr1 {
    flying: BTreeMap<u64, (u64, u64, u64)>,
    next: u64,
    delivered: u64,
    delivered_at: u64,
    next_round: u64,
    rounds: u64,
    rates: Vec<(u64, f64)>,
    lowest: f64,
    lowest_at: u64,
    started: bool,
    drained: bool,
    full: (f64, u32),
    cycle: usize,
    cycle_at: u64,
    probe_until: Option<u64>,
    release: u64,
    heard: u64,
    stopped: bool,
}

impl Bbr1 {
    fn new(now: u64) -> Self {
        Self {
            flying: BTreeMap::new(),
            next: 0,
            delivered: 0,
            delivered_at: now,
            next_round: 0,
            rounds: 0,
            rates: Vec::new(),
            lowest: f64::MAX,
            lowest_at: now,
            started: false,
            drained: false,
            full: (0.0, 0),
            cycle: 2,
            cycle_at: now,
            probe_until: None,
            release: now,
            heard: now,
            stopped: false,
        }
    }

    /// Packets per second.
    fn rate(&self) -> f64 {
        self.rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max)
    }

    fn bdp(&self) -> f64 {
        self.rate() * self.lowest
    }

    fn gain(&self) -> f64 {
        if self.probe_until.is_some() {
            1.0
        } else if !self.started {
            2.885
        } else if !self.drained {
            1.0 / 2.885
        } else {
            [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0][self.cycle]
        }
    }

    fn poll(&mut self, now: u64) -> Result<u64, Option<u64>> {
        if now > self.heard + 1_000_000_000 {
            self.flying.clear();
            self.heard = now;
        }
        let window = if self.probe_until.is_some() {
            4.0
        } else if self.rates.is_empty() {
            10.0
        } else {
            let gain = if self.started { 2.0 } else { 2.885 };
            (gain * self.bdp() + 3.0).max(10.0)
        };
        if self.stopped || self.flying.len() as f64 >= window {
            return Err((!self.stopped).then_some(self.heard + 1_000_000_001));
        }
        if now < self.release {
            return Err(Some(self.release));
        }
        if self.flying.is_empty() {
            self.delivered_at = now;
        }
        let rate = if self.rates.is_empty() {
            200.0
        } else {
            self.rate()
        };
        self.release = now.max(self.release) + (1e9 / (self.gain() * rate)) as u64;
        self.flying
            .insert(self.next, (now, self.delivered, self.delivered_at));
        self.next += 1;
        Ok(self.next - 1)
    }

    fn on_ack(&mut self, now: u64, number: u64) {
        self.heard = now;
        let Some((sent, delivered, delivered_at)) = self.flying.remove(&number) else {
            return;
        };
        self.flying = self.flying.split_off(&number.saturating_sub(2));
        self.delivered += 1;
        self.delivered_at = now;
        let round_trip = (now - sent) as f64 / 1e9;
        let expired = now > self.lowest_at + 10_000_000_000;
        if round_trip <= self.lowest || expired {
            self.lowest = round_trip;
            self.lowest_at = now;
        }
        if expired && self.probe_until.is_none() && self.started {
            self.probe_until = Some(now + 200_000_000 + (round_trip * 1e9) as u64);
        }
        if self.probe_until.is_some_and(|until| now > until) {
            self.probe_until = None;
            self.lowest_at = now;
        }
        let round = delivered >= self.next_round;
        if round {
            self.next_round = self.delivered;
            self.rounds += 1;
        }
        let rate = (self.delivered - delivered) as f64 * 1e9 / (now - delivered_at).max(1) as f64;
        let rounds = self.rounds;
        self.rates
            .retain(|(at, old)| at + 10 >= rounds && *old > rate);
        self.rates.push((rounds, rate));
        if round && !self.started {
            if self.rate() > self.full.0 * 1.25 {
                self.full = (self.rate(), 0);
            } else {
                self.full.1 += 1;
                self.started = self.full.1 >= 3;
            }
        }
        let flying = self.flying.len() as f64;
        if self.started && !self.drained && flying <= self.bdp() {
            self.drained = true;
            self.cycle_at = now;
        }
        if self.drained {
            let elapsed = (now - self.cycle_at) as f64 / 1e9 > self.lowest;
            let step = match self.cycle {
                0 => elapsed && flying >= 1.25 * self.bdp(),
                1 => elapsed || flying <= self.bdp(),
                _ => elapsed,
            };
            if step {
                self.cycle = (self.cycle + 1) % 8;
                self.cycle_at = now;
            }
        }
    }
}

/// A common datagram's payload.
pub(super) const PAYLOAD: usize = 1433;

/// IPv4 and UDP.
const HEADERS: usize = 28;
