//! The queue itself: whose turn it is, what leaves, and what is dropped.

use std::time::{Duration, Instant};

use adit_netstack::{Cut, Offload, Packet, is_ecn_capable, mark_congestion};
use slab::Slab;

use super::classify::{Class, classify, flow_hash};
use super::flows::{FlowIndex, Flows, List};
use super::limits::{Pace, QueueLimits};
use super::stats::QueueStats;

/// A packet that can wait in a fair queue.
pub trait QueuePacket {
    /// The IP packet, the same bytes at every call.
    fn bytes(&self) -> &[u8];

    /// What the packet owes, checked by [`Packet::check_offload`].
    fn offload(&self) -> Offload;

    /// The bytes of memory that the packet occupies.
    fn memory(&self) -> usize {
        self.bytes().len()
    }
}

/// Who made a packet, and so how it is told to send less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Producer {
    /// Our own stack: it waits for [`FairQueue::room`], and CoDel passes it by.
    Stack,
    /// Anybody else: a kernel, an application's datagrams. CoDel drops or marks.
    Other,
}

/// What was written by [`FairQueue::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WirePacket {
    /// How many bytes; more than the MTU if the packet cannot be cut.
    pub len: usize,
    /// What it owes; never segmentation.
    pub offload: Offload,
    /// How dear it is.
    pub class: Class,
    /// The hash of its flow.
    pub flow: u64,
    /// How long it has waited.
    pub wait: Duration,
    /// It was marked instead of dropped.
    pub marked: bool,
}

/// What was taken whole by [`FairQueue::take`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Taken<P> {
    /// The packet.
    pub packet: P,
    /// How far it has been cut: what remains is still to be sent, by [`Cut::next`] unless
    /// [`Cut::is_started`] is false.
    pub cut: Cut,
    /// It is to be marked ([`mark_congestion`]), instead of having lost a segment.
    pub mark: bool,
    /// How dear it is.
    pub class: Class,
    /// The hash of its flow.
    pub flow: u64,
    /// How long it has waited.
    pub wait: Duration,
}

/// A packet in the queue.
#[derive(Debug)]
struct Waiting<P> {
    packet: P,
    cut: Cut,
    since: Instant,
    hash: u64,
    class: Class,
    producer: Producer,
    /// CoDel has had its piece of this packet.
    judged: bool,
    /// It came when the queue was filling, and is to say so.
    mark: bool,
    /// The next of its flow.
    next: Option<u32>,
}

/// Fair queueing by flow with CoDel (RFC 8290), in bytes, for packets of type `P`.
#[derive(Debug)]
pub struct FairQueue<P> {
    seed: u64,
    limits: QueueLimits,
    pace: Pace,
    /// The lane's rate still grows: a queue that stands is not its flow's fault.
    starting: bool,
    flows: Flows,
    packets: Slab<Waiting<P>>,
    /// Bytes still to be sent, and of them our own stack's.
    bytes: usize,
    stack_bytes: usize,
    /// Bytes of memory behind the packets.
    memory: usize,
    /// The MTU of the lane that was sent on last.
    mtu: usize,
    stats: QueueStats,
}

impl<P: QueuePacket> FairQueue<P> {
    /// Makes an empty queue; `seed` keeps strangers from making flows that share a queue.
    #[must_use]
    pub fn new(seed: u64, limits: QueueLimits) -> FairQueue<P> {
        FairQueue {
            seed,
            limits,
            pace: Pace {
                rate: 0,
                rtt: Duration::ZERO,
                patient: false,
            },
            starting: false,
            flows: Flows::new(),
            packets: Slab::new(),
            bytes: 0,
            stack_bytes: 0,
            memory: 0,
            mtu: USUAL_MTU,
            stats: QueueStats::default(),
        }
    }

    /// Gives back what is kept for packets and flows, unless some wait: for when none have come for longer than a flow is
    /// worth remembering.
    pub fn release_memory(&mut self) {
        if self.packets.is_empty() {
            self.packets = Slab::new();
            self.flows = Flows::new();
        }
    }

    /// Learns what the lane does: bytes each second and its least round-trip time, each 0 if unknown.
    ///
    /// CoDel's target and interval and [`FairQueue::room`] follow.
    pub fn set_pace(&mut self, bytes_per_s: u64, rtt: Duration) {
        self.pace = Pace {
            rate: bytes_per_s,
            rtt,
            ..self.pace
        };
    }

    /// Learns whether flows need a queue of a round trip to keep the lane busy.
    ///
    /// CoDel's target is higher then. Beside others who keep the path's queue full, the lane's own window is cut now and
    /// then, and a flow that is told to halve its window each time as well never takes the place that the lane has won.
    /// While losses are sent again, their flows are held for a round trip each, in which they send nothing.
    pub fn set_patient(&mut self, patient: bool) {
        self.pace.patient = patient;
    }

    /// Learns whether the lane's rate still grows toward what its path takes.
    ///
    /// CoDel drops nothing then: a flow that was told to halve its window now would take seconds to fill the lane
    /// that is ready for it a round trip later.
    pub fn set_starting(&mut self, starting: bool) {
        self.starting = starting;
    }

    /// Puts a packet at the end of its flow; returns whether it waits there now.
    ///
    /// Bytes that are no IP packet are dropped. A full queue drops from its fattest flow, which may be this one.
    pub fn enqueue(&mut self, now: Instant, packet: P, producer: Producer) -> bool {
        let bytes = packet.bytes();
        let Ok(parsed) = Packet::parse(bytes) else {
            self.stats.drops.malformed += 1;
            return false;
        };
        let hash = flow_hash(&parsed, self.seed);
        let (index, shared) = self.flows.find(now, hash);
        let flow = self.flows.get_mut(index);
        let low_rate = flow.meter.add(now, bytes.len());
        let class = classify(&parsed, bytes, low_rate);
        let cut = Cut::new(&parsed, bytes, packet.offload());
        let len = cut.remaining();
        self.memory += packet.memory();
        self.bytes += len;
        if producer == Producer::Stack {
            self.stack_bytes += len;
        }
        let key = self.packets.insert(Waiting {
            packet,
            cut,
            since: now,
            hash,
            class,
            producer,
            judged: false,
            mark: false,
            next: None,
        });
        // The slab is bounded by `limits.packets` and one.
        let key = key as u32;
        let flow = self.flows.get_mut(index);
        flow.bytes += len;
        let was_empty = flow.ends.is_none();
        match &mut flow.ends {
            Some((_, last)) => {
                let before = std::mem::replace(last, key);
                self.packets[before as usize].next = Some(key);
            }
            None => flow.ends = Some((key, key)),
        }
        let unspent = flow.deficit > 0;
        match self.flows.list(index) {
            List::Idle => {
                self.flows.get_mut(index).deficit = self.quantum();
                self.flows.move_to(now, index, List::New);
            }
            // Its turn is not used up: it waits for nobody who has used theirs.
            List::Old if was_empty && unspent => self.flows.move_to(now, index, List::New),
            List::New | List::Old => {}
        }
        self.stats.enqueued += 1;
        self.stats.own += u64::from(producer == Producer::Stack);
        self.stats.shared += u64::from(shared);
        self.press(now, index, key);
        self.shed();
        self.packets.contains(key as usize)
    }

    /// Writes the next wire packet to the start of `out`, or says that there is none.
    ///
    /// `mtu` is the longest IP packet that the lane carries, `out` at least as long as the longest packet that was
    /// enqueued without being a super-packet: what does not fit it is dropped.
    pub fn poll(&mut self, now: Instant, mtu: usize, out: &mut [u8]) -> Option<WirePacket> {
        self.mtu = mtu;
        loop {
            let index = self.turn(now)?;
            let key = self.head(index)?;
            let mark = match self.judge(now, index, key) {
                Judgement::Send => false,
                Judgement::Mark => true,
                Judgement::Drop => {
                    self.skip(index, key, mtu);
                    self.stats.drops.codel += 1;
                    continue;
                }
            };
            let waiting = &mut self.packets[key as usize];
            let before = waiting.cut.remaining();
            let Some((len, offload)) = waiting.cut.next(waiting.packet.bytes(), mtu, out) else {
                self.skip(index, key, mtu);
                self.stats.drops.too_long += 1;
                continue;
            };
            let marked = mark && out.get_mut(..len).is_some_and(mark_congestion);
            let packet = WirePacket {
                len,
                offload,
                class: waiting.class,
                flow: waiting.hash,
                wait: now.saturating_duration_since(waiting.since),
                marked,
            };
            self.settle(index, key, before);
            self.charge(index, len);
            self.stats.marked += u64::from(marked);
            return Some(packet);
        }
    }

    /// Takes the next packet as it is, for a lane that carries super-packets.
    ///
    /// One that was begun by [`FairQueue::poll`] or has lost a segment to CoDel comes with what is left to cut. The
    /// flow is charged all of it.
    pub fn take(&mut self, now: Instant) -> Option<Taken<P>> {
        // A turn is to last for one; what is cut to wire packets again has the MTU there was.
        let mtu = std::mem::replace(&mut self.mtu, usize::from(u16::MAX));
        let taken = self.take_whole(now);
        self.mtu = mtu;
        taken
    }

    fn take_whole(&mut self, now: Instant) -> Option<Taken<P>> {
        loop {
            let index = self.turn(now)?;
            let key = self.head(index)?;
            let mark = match self.judge(now, index, key) {
                Judgement::Send => false,
                Judgement::Mark => true,
                Judgement::Drop => {
                    self.skip(index, key, usize::MAX);
                    self.stats.drops.codel += 1;
                    continue;
                }
            };
            let len = self.packets[key as usize].cut.remaining();
            let waiting = self.withdraw(index, key);
            self.charge(index, len);
            self.stats.marked += u64::from(mark);
            return Some(Taken {
                packet: waiting.packet,
                cut: waiting.cut,
                mark,
                class: waiting.class,
                flow: waiting.hash,
                wait: now.saturating_duration_since(waiting.since),
            });
        }
    }

    /// Drops what has waited since `before` or longer; returns how many packets, and since when the oldest of those left
    /// waits.
    ///
    /// For packets whose lane is gone: nobody takes them, so CoDel sees none of them.
    pub fn expire(&mut self, before: Instant) -> (u64, Option<Instant>) {
        let (mut expired, mut oldest) = (0, None);
        for index in self.flows.indices() {
            while let Some(key) = self.head(index) {
                let since = self.packets[key as usize].since;
                if since > before {
                    oldest = Some(oldest.map_or(since, |oldest: Instant| oldest.min(since)));
                    break;
                }
                self.withdraw(index, key);
                expired += 1;
            }
        }
        (expired, oldest)
    }

    /// Tells whether the packet whose turn is next is thin: then it need not wait for what bulk must wait for.
    pub fn is_next_thin(&mut self, now: Instant) -> bool {
        let next = self.turn(now).and_then(|index| self.head(index));
        next.is_some_and(|key| self.packets[key as usize].class == Class::Thin)
    }

    /// Says how many bytes our own stack may still add: what the lane sends in about 10 ms, or two small batches,
    /// less what waits of it. It may add one packet as long as this is not zero.
    #[must_use]
    pub fn room(&self) -> usize {
        self.pace.room(self.mtu).saturating_sub(self.stack_bytes)
    }

    /// Says how many bytes wait, as wire packets with their headers.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Tells whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Returns what was counted.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.stats
    }

    /// What a flow may send in a turn: one wire packet, and on a fast lane what it sends in [`TURN_US`].
    fn quantum(&self) -> i64 {
        let packet = (self.mtu + WIRE_OVERHEAD) as u64;
        let turn = (self.pace.rate / (1_000_000 / TURN_US)).min(MOST_TURN);
        packet.max(turn) as i64
    }

    /// Finds the flow that has something to send and the right to.
    fn turn(&mut self, now: Instant) -> Option<FlowIndex> {
        loop {
            let (index, list) = self.flows.front()?;
            let quantum = self.quantum();
            let flow = self.flows.get_mut(index);
            if flow.deficit <= 0 {
                flow.deficit += quantum;
                self.flows.move_to(now, index, List::Old);
            } else if flow.ends.is_some() {
                return Some(index);
            } else {
                flow.codel.handle_empty();
                // RFC 8290 §4.2: a new flow that ran empty passes the old ones once before it may be new again.
                let to = match list {
                    List::New if !self.flows.is_empty(List::Old) => List::Old,
                    List::New | List::Old | List::Idle => List::Idle,
                };
                self.flows.move_to(now, index, to);
            }
        }
    }

    /// The first packet of a flow that [`FairQueue::turn`] has found.
    fn head(&self, index: FlowIndex) -> Option<u32> {
        self.flows.get(index).ends.map(|(head, _)| head)
    }

    fn judge(&mut self, now: Instant, index: FlowIndex, key: u32) -> Judgement {
        let waiting = &mut self.packets[key as usize];
        if waiting.judged || waiting.producer == Producer::Stack {
            return Judgement::Send;
        }
        if waiting.mark {
            waiting.judged = true;
            return Judgement::Mark;
        }
        if self.starting {
            self.flows.get_mut(index).codel.handle_empty();
            return Judgement::Send;
        }
        let wait = now.saturating_duration_since(waiting.since);
        let law = self.pace.law(self.mtu, &self.limits);
        let codel = &mut self.flows.get_mut(index).codel;
        if !codel.judge(now, wait, self.bytes, self.mtu, law) {
            return Judgement::Send;
        }
        waiting.judged = true;
        if is_ecn_capable(waiting.packet.bytes()) {
            Judgement::Mark
        } else {
            Judgement::Drop
        }
    }

    /// Passes over the next piece of a packet.
    fn skip(&mut self, index: FlowIndex, key: u32, mtu: usize) {
        let waiting = &mut self.packets[key as usize];
        let before = waiting.cut.remaining();
        waiting.cut.skip(waiting.packet.bytes(), mtu);
        self.settle(index, key, before);
    }

    /// Takes what a packet has become shorter by from the sums, and the packet from its flow if nothing is left.
    fn settle(&mut self, index: FlowIndex, key: u32, before: usize) {
        let waiting = &self.packets[key as usize];
        let gone = before - waiting.cut.remaining();
        self.bytes -= gone;
        if waiting.producer == Producer::Stack {
            self.stack_bytes -= gone;
        }
        self.flows.get_mut(index).bytes -= gone;
        if waiting.cut.is_done() {
            self.remove(index, key);
        }
    }

    /// Takes the first packet of a flow out of the queue, and what it has left to send from the sums.
    fn withdraw(&mut self, index: FlowIndex, key: u32) -> Waiting<P> {
        let waiting = self.remove(index, key);
        let len = waiting.cut.remaining();
        self.bytes -= len;
        self.flows.get_mut(index).bytes -= len;
        if waiting.producer == Producer::Stack {
            self.stack_bytes -= len;
        }
        waiting
    }

    /// Takes the first packet of a flow out of the queue.
    fn remove(&mut self, index: FlowIndex, key: u32) -> Waiting<P> {
        let waiting = self.packets.remove(key as usize);
        self.memory -= waiting.packet.memory();
        let flow = self.flows.get_mut(index);
        flow.ends = flow
            .ends
            .and_then(|(_, last)| waiting.next.map(|next| (next, last)));
        waiting
    }

    fn charge(&mut self, index: FlowIndex, len: usize) {
        self.flows.get_mut(index).deficit -= (len + WIRE_OVERHEAD) as i64;
        self.stats.sent += 1;
        self.stats.sent_bytes += len as u64;
    }

    /// Drops from the fattest flow, oldest pieces first, until all bounds hold.
    fn shed(&mut self) {
        while self.is_over() {
            let Some(index) = self.flows.fattest() else {
                return;
            };
            // Half of a flow at a time, since finding it takes a look at all.
            let enough = self.flows.get(index).bytes / 2;
            while self.is_over() && self.flows.get(index).bytes >= enough {
                let Some((key, _)) = self.flows.get(index).ends else {
                    break;
                };
                self.skip(index, key, usize::MAX);
                self.stats.drops.overflow += 1;
            }
        }
    }

    /// Has a packet that has just come tell its sender that the queue fills, while there is still room.
    ///
    /// CoDel looks at how long packets wait, and a fast lane's queue is full before that is long; from a flow that takes
    /// marks nothing need be dropped then.
    fn press(&mut self, now: Instant, index: FlowIndex, key: u32) {
        if !self.is_pressed() {
            return;
        }
        let waiting = &mut self.packets[key as usize];
        if waiting.class == Class::Thin
            || waiting.producer == Producer::Stack
            || !is_ecn_capable(waiting.packet.bytes())
        {
            return;
        }
        let marked = &mut self.flows.get_mut(index).marked;
        let rest = PRESSED_REST.max(self.pace.rtt);
        if marked.is_none_or(|marked| now.saturating_duration_since(marked) >= rest) {
            *marked = Some(now);
            waiting.mark = true;
        }
    }

    /// Says whether so much waits that something will have to be dropped soon.
    fn is_pressed(&self) -> bool {
        let full = |now: usize, most: usize| now > most / 4 * 3;
        full(self.bytes, self.limits.bytes)
            || full(self.packets.len(), self.limits.packets)
            || full(self.memory, self.limits.memory)
    }

    fn is_over(&self) -> bool {
        self.bytes > self.limits.bytes
            || self.packets.len() > self.limits.packets
            || self.memory > self.limits.memory
    }
}

/// What CoDel says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Send,
    Mark,
    Drop,
}

/// What a wire packet takes beside itself: 33 bytes inside and around the seal, 28 of IPv4 and UDP. Counting it keeps
/// a flow of tiny packets from taking more of the wire than its share.
const WIRE_OVERHEAD: usize = 61;
/// The inner MTU that is usual, before a lane says what it carries.
const USUAL_MTU: usize = 1_400;

/// How long a flow that was marked because the queue is filling is not marked for that again, unless the lane's round trip is
/// longer: its sender answers one mark in a round trip (RFC 3168 §6.1.2), and what is on its way was sent before it did.
const PRESSED_REST: Duration = Duration::from_millis(10);

/// How long a flow's turn lasts on a fast lane, in microseconds. Wire packets of one flow that leave together are sealed,
/// sent and joined again together; those of 64 flows in turn would each be one packet to the far end's stack. On lanes
/// below 120 Mbit/s a packet takes longer.
const TURN_US: u64 = 100;

/// The most bytes of a turn, so that 64 flows have theirs in a few milliseconds where a lane could be faster still.
const MOST_TURN: u64 = 32 * 1024;

#[cfg(test)]
mod cubic;
#[cfg(test)]
pub(super) mod tests;
#[cfg(test)]
pub(in crate::proto) use tests::craft;
