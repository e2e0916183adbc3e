//! The hold itself: what is delivered at once, what waits, and what ends the wait.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use adit_netstack::{Offload, Packet};
use slab::Slab;

use super::flows::{FlowIndex, Flows};
use super::gaps::Gaps;
use super::segment::{Control, Segment, before};
use crate::proto::queue::flow_hash;

/// Says what becomes of a packet that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Offer {
    /// It is to be delivered now, before [`Hold::poll_deliver`] is asked.
    Deliver,
    /// It was copied and comes by [`Hold::poll_deliver`].
    Held,
}

/// Bounds one session's hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HoldLimits {
    /// Bytes of packets.
    pub bytes: usize,
    /// Packets.
    pub packets: usize,
}

impl Default for HoldLimits {
    /// 4 MiB or 4,096 packets: the longest hold of 220 Mbit/s.
    fn default() -> HoldLimits {
        HoldLimits {
            bytes: 4 << 20,
            packets: 4_096,
        }
    }
}

/// Counters of a hold since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HoldStats {
    /// Packets that were offered.
    pub offered: u64,
    /// Of them, those that were held.
    pub held: u64,
    /// Held packets released because what was missing before them came.
    pub repaired: u64,
    /// Released because nothing of their flow can be missing: what filled the gap was other flows'.
    pub cleared: u64,
    /// Released because a gap before them was too old, or given up.
    pub expired: u64,
    /// Released because there was no room for them, or for one before them.
    pub overflowed: u64,
    /// Released because their flow began anew, was reset, or made way for another.
    pub evicted: u64,
    /// The most bytes that were held at a time.
    pub most_bytes: u64,
}

/// A packet whose wait is over.
#[derive(Debug)]
#[non_exhaustive]
pub struct Delivery<'a> {
    /// A frame of the hold's own, with its headroom in front of the packet.
    pub frame: &'a mut [u8],
    /// Where in it the packet is.
    pub range: Range<usize>,
    /// What the packet owes.
    pub offload: Offload,
    /// Its source number.
    pub number: u64,
}

/// Holds back TCP segments behind gaps.
#[derive(Debug)]
pub struct Hold {
    seed: u64,
    headroom: usize,
    limits: HoldLimits,
    wait: Duration,
    gaps: Gaps,
    flows: Flows,
    /// Flows that hold packets.
    holding: Vec<FlowIndex>,
    packets: Slab<Held>,
    bytes: usize,
    /// Packets whose wait is over, in the order in which they are to be delivered.
    released: VecDeque<Frame>,
    released_bytes: usize,
    /// What was lent last.
    lent: Option<Frame>,
    spare: Vec<Vec<u8>>,
    /// When the spare buffers are given back if nothing is held until then.
    trim_at: Option<Instant>,
    stats: HoldStats,
}

/// A copy of a packet behind its headroom.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    offload: Offload,
    number: u64,
}

/// A packet that is held.
#[derive(Debug)]
struct Held {
    frame: Frame,
    segment: Segment,
}

/// Whether a segment has to wait.
enum Pass {
    /// In this flow.
    Wait(FlowIndex),
    /// It need not; the flow, if others may follow it now.
    Go(Option<FlowIndex>),
}

/// Why packets are released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// A packet came.
    Arrival,
    /// A gap was given up.
    Hopeless,
    /// There was no room for the packet before them.
    Overflow,
}

impl Hold {
    /// Makes an empty hold whose frames have `headroom` bytes in front of the packet, for a device's header.
    ///
    /// `seed` keeps strangers from making flows that are taken for one another.
    #[must_use]
    pub fn new(seed: u64, headroom: usize, limits: HoldLimits) -> Hold {
        Hold {
            seed,
            headroom,
            limits,
            wait: MAX_HOLD,
            gaps: Gaps::default(),
            flows: Flows::default(),
            holding: Vec::new(),
            packets: Slab::new(),
            bytes: 0,
            released: VecDeque::new(),
            released_bytes: 0,
            lent: None,
            spare: Vec::new(),
            trim_at: None,
            stats: HoldStats::default(),
        }
    }

    /// Sets how long a gap is hoped for, at most [`MAX_HOLD`]; [`hold_time`] computes it. Zero holds nothing.
    pub fn set_wait(&mut self, wait: Duration) {
        self.wait = wait.min(MAX_HOLD);
    }

    /// Takes note of a packet that came, in whatever way, and says whether it is to be delivered now.
    ///
    /// `number` is its source number, never seen before; `packet` one IP packet. What is no packet is delivered, for
    /// the receiver to refuse.
    pub fn offer(&mut self, now: Instant, number: u64, packet: &[u8], offload: Offload) -> Offer {
        self.stats.offered += 1;
        // What is released by time comes before this packet, what is released by it, behind it.
        self.expire(now);
        let filled = self.gaps.handle(now, number);
        if self.wait.is_zero() {
            self.gaps.expire(now, self.wait);
        }
        let parsed = Packet::parse(packet).ok();
        let segment = parsed.and_then(|parsed| {
            let segment = Segment::parse(&parsed, packet)?;
            Some((flow_hash(&parsed, self.seed), segment))
        });
        let Some((hash, segment)) = segment else {
            if filled {
                self.release(Why::Arrival);
            }
            return Offer::Deliver;
        };
        let (offer, flow) = match self.pass(hash, &segment, number) {
            Pass::Wait(index) => (self.keep(index, segment, number, packet, offload), None),
            // Packets released a moment ago may be of its flow.
            Pass::Go(flow) if self.released.is_empty() || self.is_crowded() => {
                (Offer::Deliver, flow)
            }
            Pass::Go(flow) => {
                let frame = self.copy(number, packet, offload);
                self.push_released(frame);
                (Offer::Held, flow)
            }
        };
        if filled {
            self.release(Why::Arrival);
        } else if let Some(flow) = flow {
            self.release_flow(flow, Why::Arrival);
        }
        self.shed();
        self.stats.held += u64::from(offer == Offer::Held);
        if self.packets.is_empty() {
            self.arm_trim(now);
        } else {
            self.trim_at = None;
        }
        offer
    }

    /// Lends the next packet whose wait is over. **Call until `None`** after every mutation.
    pub fn poll_deliver(&mut self) -> Option<Delivery<'_>> {
        if let Some(frame) = self.lent.take() {
            // Short packets would come to lie in the memory of long ones, until all of it was long.
            if frame.bytes.capacity() <= SPARE_LEN {
                self.spare.push(frame.bytes);
            }
        }
        let frame = self.released.pop_front()?;
        self.released_bytes -= frame.bytes.len();
        let frame = self.lent.insert(frame);
        Some(Delivery {
            range: self.headroom..frame.bytes.len(),
            frame: &mut frame.bytes,
            offload: frame.offload,
            number: frame.number,
        })
    }

    /// Says when [`Hold::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.packets.is_empty() {
            return self.trim_at;
        }
        self.gaps.oldest().map(|noticed| noticed + self.wait)
    }

    /// Gives up gaps that are too old, and memory that was not needed for long.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expire(now);
        if !self.packets.is_empty() {
            return;
        }
        self.arm_trim(now);
        if self.trim_at.is_some_and(|due| now >= due) {
            self.spare = Vec::new();
            self.flows.release_memory();
            self.trim_at = None;
        }
    }

    /// Gives back what is kept for flows that come and gaps that open, unless packets are held: for when none have come
    /// for long.
    pub fn release_memory(&mut self) {
        if self.packets.is_empty() {
            self.flows = Flows::default();
            self.gaps.release_memory();
        }
    }

    /// Says how many bytes are held.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Tells whether nothing is held and nothing waits to be delivered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty() && self.released.is_empty()
    }

    /// Returns what was counted.
    #[must_use]
    pub fn stats(&self) -> HoldStats {
        self.stats
    }

    /// Says whether a segment has to wait, and notes it if not.
    fn pass(&mut self, hash: u64, segment: &Segment, number: u64) -> Pass {
        let found = self.flows.find(hash);
        match (segment.control, found) {
            (Control::Data, Some(index)) if self.must_wait(index, segment, number) => {
                Pass::Wait(index)
            }
            (Control::Data, Some(index)) => {
                self.advance(index, segment, number);
                Pass::Go(Some(index))
            }
            (Control::Syn, Some(index)) => {
                self.evict(index);
                self.flows.put(index, hash, segment.end, number);
                Pass::Go(None)
            }
            (Control::Rst, Some(index)) => {
                self.evict(index);
                self.flows.remove(index);
                Pass::Go(None)
            }
            (Control::Data | Control::Syn, None) => {
                self.begin(hash, segment, number);
                Pass::Go(None)
            }
            (Control::Rst, None) => Pass::Go(None),
        }
    }

    /// Says whether something that the flow sent before a segment may still come.
    fn must_wait(&self, index: FlowIndex, segment: &Segment, number: u64) -> bool {
        self.flows.get(index).is_some_and(|flow| {
            before(flow.next, segment.sequence) && self.gaps.any_between(flow.number, number)
        })
    }

    /// Notes that a segment is delivered.
    fn advance(&mut self, index: FlowIndex, segment: &Segment, number: u64) {
        if let Some(flow) = self.flows.get_mut(index)
            && before(flow.next, segment.end)
        {
            flow.next = segment.end;
            flow.number = flow.number.max(number);
        }
    }

    /// Begins to know a flow.
    fn begin(&mut self, hash: u64, segment: &Segment, number: u64) {
        let (index, holds) = self.flows.place(hash);
        if holds {
            self.evict(index);
        }
        self.flows.put(index, hash, segment.end, number);
    }

    /// Holds a segment, in its flow's order of source numbers.
    fn keep(
        &mut self,
        index: FlowIndex,
        segment: Segment,
        number: u64,
        packet: &[u8],
        offload: Offload,
    ) -> Offer {
        if self.is_crowded() {
            // Nobody fetches what was released; then memory is dearer than order.
            return Offer::Deliver;
        }
        let frame = self.copy(number, packet, offload);
        let Some(flow) = self.flows.get_mut(index) else {
            return Offer::Deliver;
        };
        let packets = &self.packets;
        let at = (flow.held).partition_point(|key| packets[*key as usize].frame.number < number);
        self.bytes += frame.bytes.len();
        self.stats.most_bytes = self.stats.most_bytes.max(self.bytes as u64);
        let key = self.packets.insert(Held { frame, segment }) as u32;
        flow.held.insert(at, key);
        if flow.held.len() == 1 {
            self.holding.push(index);
        }
        Offer::Held
    }

    fn expire(&mut self, now: Instant) {
        if self.gaps.expire(now, self.wait) {
            self.release(Why::Hopeless);
        }
    }

    /// Releases every packet that need not wait any more.
    fn release(&mut self, why: Why) {
        let mut at = 0;
        while let Some(index) = self.holding.get(at).copied() {
            self.release_from(index, why);
            if self.first_held(index).is_some() {
                at += 1;
            } else {
                self.holding.swap_remove(at);
            }
        }
    }

    /// Releases packets of one flow that need not wait any more.
    fn release_flow(&mut self, index: FlowIndex, why: Why) {
        if self.first_held(index).is_some() {
            self.release_from(index, why);
            if self.first_held(index).is_none() {
                self.holding.retain(|holding| *holding != index);
            }
        }
    }

    /// Releases packets of one flow until one has to wait.
    fn release_from(&mut self, index: FlowIndex, why: Why) {
        let mut cleared = false;
        while let Some(key) = self.first_held(index) {
            let held = &self.packets[key as usize];
            let (segment, number) = (held.segment, held.frame.number);
            let flow = self.flows.get(index);
            if flow.is_some_and(|flow| before(flow.next, segment.sequence)) {
                if self.must_wait(index, &segment, number) {
                    return;
                }
                cleared = true;
            }
            match (why, cleared) {
                (Why::Arrival, false) => self.stats.repaired += 1,
                (Why::Arrival, true) => self.stats.cleared += 1,
                (Why::Hopeless, _) => self.stats.expired += 1,
                (Why::Overflow, _) => self.stats.overflowed += 1,
            }
            self.release_first(index);
        }
    }

    /// Releases all held packets of a flow, which is about to be another; its entry holds nothing then.
    fn evict(&mut self, index: FlowIndex) {
        while self.first_held(index).is_some() {
            self.release_first(index);
            self.stats.evicted += 1;
        }
        self.holding.retain(|holding| *holding != index);
    }

    /// Releases the oldest packets until the bounds hold.
    fn shed(&mut self) {
        while self.bytes > self.limits.bytes || self.packets.len() > self.limits.packets {
            let oldest = self.holding.iter().copied().min_by_key(|index| {
                self.first_held(*index)
                    .map(|key| self.packets[key as usize].frame.number)
            });
            let Some(index) = oldest else { return };
            self.release_first(index);
            self.stats.overflowed += 1;
            self.release(Why::Overflow);
        }
    }

    /// Moves the first held packet of a flow to those that are to be delivered.
    fn release_first(&mut self, index: FlowIndex) {
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        let Some(key) = flow.held.pop_front() else {
            return;
        };
        let held = self.packets.remove(key as usize);
        self.bytes -= held.frame.bytes.len();
        self.advance(index, &held.segment, held.frame.number);
        self.push_released(held.frame);
    }

    fn push_released(&mut self, frame: Frame) {
        self.released_bytes += frame.bytes.len();
        self.released.push_back(frame);
    }

    fn first_held(&self, index: FlowIndex) -> Option<u32> {
        self.flows.get(index)?.held.front().copied()
    }

    fn is_crowded(&self) -> bool {
        self.released_bytes > self.limits.bytes || self.released.len() > self.limits.packets
    }

    /// Has the spare buffers given back later; nothing is held now.
    fn arm_trim(&mut self, now: Instant) {
        if self.trim_at.is_none() && (!self.spare.is_empty() || !self.released.is_empty()) {
            self.trim_at = Some(now + IDLE);
        }
    }

    /// Copies a packet into a spare buffer.
    fn copy(&mut self, number: u64, packet: &[u8], offload: Offload) -> Frame {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.resize(self.headroom, 0);
        bytes.extend_from_slice(packet);
        Frame {
            bytes,
            offload,
            number,
        }
    }
}

/// Says how long a gap may be hoped for: a resend takes one and a half round trips to be asked for and to come, and a
/// round trip more where the first one was lost; a repair `span`, the time in which the packets that one repair covers
/// are sent; and never longer than [`MAX_HOLD`].
#[must_use]
pub fn hold_time(rtt: Duration, span: Duration) -> Duration {
    (rtt * 5 / 2).saturating_add(span).min(MAX_HOLD)
}

/// The longest hold: a sender that hears nothing for 200 ms beyond its round trip sends again (Linux; RFC 6298 has a
/// second), and a hold must not be taken for a loss itself.
pub const MAX_HOLD: Duration = Duration::from_millis(150);
/// The longest buffer that is used again: a wire packet's. Super-packets come over stream lanes, where gaps are rare.
const SPARE_LEN: usize = 2_048;
/// How long spare buffers are kept when nothing is held.
const IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
