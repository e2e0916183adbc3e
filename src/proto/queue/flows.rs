//! The flows of a fair queue: found by hash in sets of eight, each in one list.

use std::time::{Duration, Instant};

use super::codel::Codel;
use super::meter::Meter;

/// Names a flow in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowIndex(u16);

/// The list that a flow stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// Flows without packets that are remembered for a while, the idlest first.
    Idle,
    /// Flows that have begun to send, or have not used their turn.
    New,
    /// The others that have packets, and those whose last was just sent.
    Old,
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) hash: u64,
    /// The first and the last of its packets.
    pub(super) ends: Option<(u32, u32)>,
    /// Bytes still to be sent.
    pub(super) bytes: usize,
    /// What is left of its turn in bytes.
    pub(super) deficit: i64,
    pub(super) codel: Codel,
    /// When it was last marked because the queue was filling.
    pub(super) marked: Option<Instant>,
    pub(super) meter: Meter,
    list: List,
    idle_since: Instant,
    /// Where the table refers to it.
    way: u16,
    previous: u16,
    next: u16,
}

/// A bounded table of flows.
#[derive(Debug)]
pub(super) struct Flows {
    /// Sets of [`WAYS`] references to flows.
    ways: Box<[u16]>,
    flows: Vec<Flow>,
    lists: [Ends; 3],
}

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u16,
    last: u16,
}

impl Flows {
    pub(super) fn new() -> Flows {
        let empty = Ends {
            first: NONE,
            last: NONE,
        };
        Flows {
            ways: vec![NONE; FLOWS].into_boxed_slice(),
            flows: Vec::new(),
            lists: [empty; 3],
        }
    }

    /// Finds the flow of a hash, or makes it; the second value tells whether it belongs to another hash, because
    /// all eight of the set have packets.
    pub(super) fn find(&mut self, now: Instant, hash: u64) -> (FlowIndex, bool) {
        // The ways of a set are taken with the low bits.
        let set = (hash >> 32) as usize % (FLOWS / WAYS) * WAYS;
        let mut empty = None;
        let mut idlest: Option<u16> = None;
        for way in set..set + WAYS {
            let index = self.ways[way];
            let Some(flow) = self.flows.get(usize::from(index)) else {
                empty = empty.or(Some(way));
                continue;
            };
            if flow.hash == hash {
                return (FlowIndex(index), false);
            }
            if flow.list == List::Idle
                && idlest
                    .is_none_or(|other| self.flows[usize::from(other)].idle_since > flow.idle_since)
            {
                idlest = Some(index);
            }
        }
        let index = match (empty, idlest) {
            (Some(way), _) => self.fill(now, way),
            (None, Some(index)) => index,
            (None, None) => {
                return (FlowIndex(self.ways[set + hash as usize % WAYS]), true);
            }
        };
        self.move_to(now, FlowIndex(index), List::Idle);
        let flow = &mut self.flows[usize::from(index)];
        flow.hash = hash;
        flow.codel = Codel::default();
        flow.marked = None;
        flow.meter = Meter::new(now);
        (FlowIndex(index), false)
    }

    /// The flow whose turn it is, and its list.
    pub(super) fn front(&self) -> Option<(FlowIndex, List)> {
        [List::New, List::Old].into_iter().find_map(|list| {
            let first = self.lists[list as usize].first;
            (first != NONE).then_some((FlowIndex(first), list))
        })
    }

    /// Moves a flow to the end of a list.
    pub(super) fn move_to(&mut self, now: Instant, index: FlowIndex, list: List) {
        self.unlink(index.0);
        if list == List::Idle {
            self.flows[usize::from(index.0)].idle_since = now;
        }
        self.link(index.0, list);
    }

    /// Tells whether a list has no flow.
    pub(super) fn is_empty(&self, list: List) -> bool {
        self.lists[list as usize].first == NONE
    }

    pub(super) fn list(&self, index: FlowIndex) -> List {
        self.flows[usize::from(index.0)].list
    }

    pub(super) fn get(&self, index: FlowIndex) -> &Flow {
        &self.flows[usize::from(index.0)]
    }

    pub(super) fn get_mut(&mut self, index: FlowIndex) -> &mut Flow {
        &mut self.flows[usize::from(index.0)]
    }

    /// The flow with most bytes waiting, if any has packets.
    pub(super) fn fattest(&self) -> Option<FlowIndex> {
        let flows = self.flows.iter().enumerate();
        flows
            .filter(|(_, flow)| flow.ends.is_some())
            .max_by_key(|(_, flow)| flow.bytes)
            .map(|(index, _)| FlowIndex(index as u16))
    }

    /// All flows, whether they have packets or not.
    pub(super) fn indices(&self) -> impl Iterator<Item = FlowIndex> + use<> {
        // Each flow has a way of its own, so there are at most FLOWS.
        (0..self.flows.len() as u16).map(FlowIndex)
    }

    /// All flows that have packets, for tests.
    #[cfg(test)]
    pub(super) fn active(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|flow| flow.ends.is_some())
    }

    /// Puts a flow into an empty way: one that has been idle for so long that nothing of it matters, or one more.
    fn fill(&mut self, now: Instant, way: usize) -> u16 {
        let idlest = self.lists[List::Idle as usize].first;
        let index = match self.flows.get(usize::from(idlest)) {
            Some(flow) if now.saturating_duration_since(flow.idle_since) >= MEMORY => {
                self.ways[usize::from(flow.way)] = NONE;
                idlest
            }
            Some(_) | None => {
                // Each flow has a way of its own, so there are at most FLOWS.
                let index = self.flows.len() as u16;
                self.flows.push(Flow {
                    hash: 0,
                    ends: None,
                    bytes: 0,
                    deficit: 0,
                    codel: Codel::default(),
                    marked: None,
                    meter: Meter::new(now),
                    list: List::Idle,
                    idle_since: now,
                    way: 0,
                    previous: NONE,
                    next: NONE,
                });
                self.link(index, List::Idle);
                index
            }
        };
        self.flows[usize::from(index)].way = way as u16;
        self.ways[way] = index;
        index
    }

    fn link(&mut self, index: u16, list: List) {
        let ends = &mut self.lists[list as usize];
        let last = std::mem::replace(&mut ends.last, index);
        if last == NONE {
            ends.first = index;
        } else {
            self.flows[usize::from(last)].next = index;
        }
        let flow = &mut self.flows[usize::from(index)];
        (flow.list, flow.previous, flow.next) = (list, last, NONE);
    }

    fn unlink(&mut self, index: u16) {
        let Flow {
            list,
            previous,
            next,
            ..
        } = self.flows[usize::from(index)];
        let ends = &mut self.lists[list as usize];
        if previous == NONE {
            ends.first = next;
        } else {
            self.flows[usize::from(previous)].next = next;
        }
        if next == NONE {
            ends.last = previous;
        } else {
            self.flows[usize::from(next)].previous = previous;
        }
    }
}

/// Flows that are told apart at most: RFC 8290 §5.2.4 has 1,024 queues.
const FLOWS: usize = 1_024;
/// Flows of a set. With eight, 100 active flows meet in one queue of 1,024 about never, where one way each would make
/// five of them meet.
const WAYS: usize = 8;
/// How long an idle flow is worth remembering: CoDel looks back 16 intervals of 100 ms, the meter a second.
const MEMORY: Duration = Duration::from_secs(2);
const NONE: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of one set.
    fn hash(n: u64) -> u64 {
        n
    }

    fn order(flows: &Flows, list: List) -> Vec<u16> {
        let mut order = Vec::new();
        let mut at = flows.lists[list as usize].first;
        while at != NONE {
            order.push(at);
            at = flows.flows[usize::from(at)].next;
        }
        order
    }

    #[test]
    fn a_flow_is_found_again_and_eight_of_a_set_are_told_apart() {
        let now = Instant::now();
        let mut flows = Flows::new();
        let found: Vec<_> = (0..8).map(|n| flows.find(now, hash(n))).collect();
        for (n, one) in found.iter().enumerate() {
            assert!(!one.1);
            assert_eq!(flows.find(now, hash(n as u64)), *one);
            assert_eq!(found.iter().filter(|other| *other == one).count(), 1);
        }
    }

    #[test]
    fn the_ninth_takes_the_idlest_and_shares_only_when_all_are_active() {
        let now = Instant::now();
        let mut flows = Flows::new();
        for n in 0..8 {
            let (index, _) = flows.find(now, hash(n));
            flows.move_to(now, index, List::New);
        }
        let (sharing, shared) = flows.find(now, hash(8));
        assert!(shared);
        assert_eq!(flows.get(sharing).hash, 0);
        let (five, _) = flows.find(now, hash(5));
        let (six, _) = flows.find(now, hash(6));
        flows.move_to(now + Duration::from_millis(1), five, List::Idle);
        flows.move_to(now, six, List::Idle);
        assert_eq!(flows.find(now, hash(8)), (six, false));
        assert_eq!(flows.find(now, hash(8)), (six, false));
    }

    #[test]
    fn a_flow_idle_for_two_seconds_makes_way_for_one_of_another_set() {
        let now = Instant::now();
        let mut flows = Flows::new();
        flows.find(now, 0);
        flows.find(now + MEMORY / 2, 1 << 32);
        assert_eq!(flows.flows.len(), 2);
        let (index, shared) = flows.find(now + MEMORY, 2 << 32);
        assert_eq!((index, shared), (FlowIndex(0), false));
        assert_eq!(flows.flows.len(), 2);
        assert_eq!(flows.ways.iter().filter(|way| **way != NONE).count(), 2);
        // The first is forgotten: another flow has its place, and so it takes one of its own.
        assert_eq!(flows.find(now + MEMORY, 0).0, FlowIndex(2));
    }

    #[test]
    fn however_many_flows_come_1024_are_remembered() {
        let now = Instant::now();
        let mut flows = Flows::new();
        for n in 0..50_000u64 {
            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (index, _) = flows.find(now, hash);
            if n % 3 == 0 {
                flows.move_to(now, index, List::Old);
            }
        }
        assert!(flows.flows.len() <= FLOWS);
        for (index, flow) in flows.flows.iter().enumerate() {
            assert_eq!(flows.ways[usize::from(flow.way)], index as u16);
        }
    }

    #[test]
    fn lists_keep_their_order() {
        let now = Instant::now();
        let mut flows = Flows::new();
        let index: Vec<_> = (0..4).map(|n| flows.find(now, n << 32).0).collect();
        for index in &index {
            flows.move_to(now, *index, List::New);
        }
        assert!(flows.is_empty(List::Idle) && flows.is_empty(List::Old));
        flows.move_to(now, index[1], List::Old);
        flows.move_to(now, index[3], List::Old);
        flows.move_to(now, index[0], List::New);
        assert_eq!(order(&flows, List::New), [2, 0]);
        assert_eq!(order(&flows, List::Old), [1, 3]);
        assert_eq!(flows.front(), Some((FlowIndex(2), List::New)));
        flows.move_to(now, index[2], List::Idle);
        flows.move_to(now, index[0], List::Idle);
        assert_eq!(flows.front(), Some((FlowIndex(1), List::Old)));
        assert_eq!(order(&flows, List::Idle), [2, 0]);
    }
}
