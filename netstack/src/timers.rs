//! One deadline for each flow, in a heap that knows where each flow stands in it.
//!
//! An indexed heap holds at most one entry per flow, so its size is bounded by the flows, which a heap with stale
//! entries is not. Deadlines that move later are not moved in the heap: when the earlier one comes, the flow says
//! anew when it wants to be called. A bulk flow restarts its retransmission timer with every acknowledgement, and
//! that then costs nothing here.

use std::time::Instant;

/// Deadlines by slot number.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: Vec<(Instant, u32)>,
    /// Slot to index in the heap, plus one; zero is absent.
    place: Vec<u32>,
}

impl Timers {
    /// Makes sure that `slot` is called at `at` or before.
    pub(crate) fn arm(&mut self, slot: u32, at: Instant) {
        let index = slot as usize;
        if index >= self.place.len() {
            self.place.resize(index + 1, 0);
        }
        match self.place[index].checked_sub(1) {
            Some(place) => {
                let place = place as usize;
                if at < self.heap[place].0 {
                    self.heap[place].0 = at;
                    self.up(place);
                }
            }
            None => {
                let place = self.heap.len();
                self.heap.push((at, slot));
                self.place[index] = place as u32 + 1;
                self.up(place);
            }
        }
    }

    /// Forgets `slot`.
    pub(crate) fn disarm(&mut self, slot: u32) {
        let Some(place) = self
            .place
            .get(slot as usize)
            .and_then(|place| place.checked_sub(1))
        else {
            return;
        };
        self.remove(place as usize);
    }

    /// Says when the earliest deadline is.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// Takes out one slot whose deadline has come.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        let (at, slot) = *self.heap.first()?;
        if at > now {
            return None;
        }
        self.remove(0);
        Some(slot)
    }

    fn remove(&mut self, place: usize) {
        let (_, slot) = self.heap.swap_remove(place);
        self.place[slot as usize] = 0;
        if let Some(&(_, moved)) = self.heap.get(place) {
            self.place[moved as usize] = place as u32 + 1;
            let place = self.up(place);
            self.down(place);
        }
    }

    fn up(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.swap(parent, place);
            place = parent;
        }
        place
    }

    fn down(&mut self, mut place: usize) {
        loop {
            let left = place * 2 + 1;
            let mut least = place;
            for child in [left, left + 1] {
                if child < self.heap.len() && self.heap[child].0 < self.heap[least].0 {
                    least = child;
                }
            }
            if least == place {
                return;
            }
            self.swap(least, place);
            place = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place[self.heap[a].1 as usize] = a as u32 + 1;
        self.place[self.heap[b].1 as usize] = b as u32 + 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u32, u64),
        Disarm(u32),
        Pop(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u32, 0..100u64).prop_map(|(slot, at)| Step::Arm(slot, at)),
            (0..20u32).prop_map(Step::Disarm),
            (0..100u64).prop_map(Step::Pop),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(steps in proptest::collection::vec(step(), 0..200)) {
            let start = Instant::now();
            let mut timers = Timers::default();
            let mut model = BTreeMap::<u32, u64>::new();
            for step in steps {
                match step {
                    Step::Arm(slot, at) => {
                        timers.arm(slot, start + Duration::from_millis(at));
                        let entry = model.entry(slot).or_insert(at);
                        *entry = at.min(*entry);
                    }
                    Step::Disarm(slot) => {
                        timers.disarm(slot);
                        model.remove(&slot);
                    }
                    Step::Pop(now) => {
                        let least = model.values().min().copied();
                        match timers.pop(start + Duration::from_millis(now)) {
                            Some(slot) => {
                                prop_assert_eq!(model.remove(&slot), least);
                                prop_assert!(least.is_some_and(|least| least <= now));
                            }
                            None => prop_assert!(least.is_none_or(|least| least > now)),
                        }
                    }
                }
                let least = model.values().min().map(|at| start + Duration::from_millis(*at));
                prop_assert_eq!(timers.next(), least);
                prop_assert_eq!(timers.heap.len(), model.len());
            }
        }
    }
}
