//! The TCP flows that the hold knows: where each stands, in a bounded table.

use std::collections::VecDeque;

/// Names a flow in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowIndex(u16);

/// One direction of a TCP flow.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) hash: u64,
    /// The sequence number behind the latest that was delivered.
    pub(super) next: u32,
    /// The source number of the packet that made it so.
    pub(super) number: u64,
    /// The keys of the held packets, in the order of source numbers.
    pub(super) held: VecDeque<u32>,
    /// When it was looked for last, on the table's own clock.
    used: u64,
}

/// A table of flows: sets of eight, of which the least used makes way.
#[derive(Debug, Default)]
pub(super) struct Flows {
    /// Empty until the first flow comes.
    entries: Box<[Option<Flow>]>,
    clock: u64,
}

impl Flows {
    /// Finds a flow.
    pub(super) fn find(&mut self, hash: u64) -> Option<FlowIndex> {
        self.clock += 1;
        let set = set(hash);
        let entries = self.entries.get_mut(set..set + WAYS)?;
        let found = entries
            .iter_mut()
            .position(|entry| entry.as_ref().is_some_and(|flow| flow.hash == hash))?;
        if let Some(flow) = &mut entries[found] {
            flow.used = self.clock;
        }
        Some(FlowIndex((set + found) as u16))
    }

    /// Names the entry that a flow which is not there would get, and tells whether the flow that has it holds packets.
    pub(super) fn place(&mut self, hash: u64) -> (FlowIndex, bool) {
        if self.entries.is_empty() {
            self.entries = vec![None; FLOWS].into_boxed_slice();
        }
        let set = set(hash);
        let best = (set..set + WAYS)
            .min_by_key(|at| match &self.entries[*at] {
                None => (0, 0),
                Some(flow) if flow.held.is_empty() => (1, flow.used),
                Some(flow) => (2, flow.used),
            })
            .unwrap_or(set);
        let holds = (self.entries[best].as_ref()).is_some_and(|flow| !flow.held.is_empty());
        (FlowIndex(best as u16), holds)
    }

    /// Puts a flow that holds nothing into an entry.
    pub(super) fn put(&mut self, index: FlowIndex, hash: u64, next: u32, number: u64) {
        self.entries[usize::from(index.0)] = Some(Flow {
            hash,
            next,
            number,
            held: VecDeque::new(),
            used: self.clock,
        });
    }

    /// Forgets a flow that holds nothing.
    pub(super) fn remove(&mut self, index: FlowIndex) {
        self.entries[usize::from(index.0)] = None;
    }

    /// Gives back what flows that hold nothing have room for.
    pub(super) fn release_memory(&mut self) {
        for flow in self.entries.iter_mut().flatten() {
            if flow.held.is_empty() {
                flow.held = VecDeque::new();
            }
        }
    }

    pub(super) fn get(&self, index: FlowIndex) -> Option<&Flow> {
        self.entries.get(usize::from(index.0))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: FlowIndex) -> Option<&mut Flow> {
        self.entries.get_mut(usize::from(index.0))?.as_mut()
    }
}

fn set(hash: u64) -> usize {
    (hash >> 32) as usize % (FLOWS / WAYS) * WAYS
}

/// Flows that are known at most: those with data under way within some seconds, 20 KiB of them.
const FLOWS: usize = 512;
/// Flows of a set.
const WAYS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_used_flow_that_holds_nothing_makes_way() {
        let mut flows = Flows::default();
        assert_eq!(flows.find(0), None);
        for hash in 0..8 {
            let (index, holds) = flows.place(hash);
            assert!(!holds);
            flows.put(index, hash, 0, 0);
            flows.find(hash);
        }
        let zero = flows.find(0).unwrap();
        let one = flows.find(1).unwrap();
        let two = flows.find(2).unwrap();
        for hash in [0, 3, 4, 5, 6, 7] {
            flows.find(hash);
        }
        flows.get_mut(one).unwrap().held = [0].into();
        assert_eq!(flows.place(99), (two, false));
        for hash in 0..8 {
            let index = flows.find(hash).unwrap();
            flows.get_mut(index).unwrap().held = [0].into();
        }
        assert_eq!(flows.place(99), (zero, true));
        flows.remove(one);
        assert_eq!(flows.place(99), (one, false));
        assert_eq!(flows.find(1), None);
    }
}
