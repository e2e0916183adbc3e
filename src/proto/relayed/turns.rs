//! Whose turn it is to send: flows with little to say first.
//!
//! As in fq_codel (RFC 8290, section 4.2) there are two lists. Who has at most [`QUANTUM`] to say, with what it said in this
//! round, goes with the thin ones, which are served first: a keystroke does not wait for the frames of all downloads. Who
//! has more goes with the others, each of which has one turn in a round. So nobody starves: what goes before one round of
//! the others is a quantum of each flow at most, less than a turn of theirs.

use std::collections::VecDeque;

/// The order of turns; flows are named by their slots.
#[derive(Debug, Default)]
pub(super) struct Turns {
    thin: VecDeque<usize>,
    bulk: VecDeque<usize>,
    places: Vec<Place>,
    round: u32,
    /// How many of `bulk` have not had their turn in this round.
    left: usize,
}

/// What is known of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    queued: bool,
    round: u32,
    /// What it said in that round.
    spent: usize,
}

impl Turns {
    /// Queues a flow with so many bytes to say, unless it waits already.
    pub(super) fn add(&mut self, at: usize, pending: usize) {
        if self.places.len() <= at {
            self.places.resize_with(at + 1, Place::default);
        }
        if std::mem::replace(&mut self.places[at].queued, true) {
            return;
        }
        if self.is_thin(at, pending) {
            self.thin.push_back(at);
        } else {
            self.bulk.push_back(at);
        }
    }

    /// Returns whose turn it is, by what each has to say now; it is to be told to [`Turns::finish`].
    pub(super) fn next(&mut self, pending: impl Fn(usize) -> usize) -> Option<usize> {
        while let Some(&at) = self.thin.front() {
            if self.is_thin(at, pending(at)) {
                return Some(at);
            }
            self.thin.pop_front();
            self.bulk.push_back(at);
        }
        let at = *self.bulk.front()?;
        if self.left == 0 {
            self.round = self.round.wrapping_add(1);
            self.left = self.bulk.len();
        }
        Some(at)
    }

    /// Takes note that the turn of the flow that was next is over, and what it said.
    pub(super) fn finish(&mut self, said: usize) {
        let at = match self.thin.pop_front() {
            Some(at) => at,
            None => {
                let Some(at) = self.bulk.pop_front() else {
                    return;
                };
                self.left = self.left.saturating_sub(1);
                at
            }
        };
        let place = &mut self.places[at];
        if place.round != self.round {
            (place.round, place.spent) = (self.round, 0);
        }
        place.spent += said;
        place.queued = false;
        if self.thin.is_empty() && self.bulk.is_empty() {
            // Nobody has waited for it.
            self.round = self.round.wrapping_add(1);
        }
    }

    /// Forgets who waits, and what was said.
    pub(super) fn clear(&mut self) {
        self.thin.clear();
        self.bulk.clear();
        self.places.fill(Place::default());
        (self.round, self.left) = (1, 0);
    }

    fn is_thin(&self, at: usize, pending: usize) -> bool {
        let place = &self.places[at];
        let spent = if place.round == self.round {
            place.spent
        } else {
            0
        };
        spent + pending <= QUANTUM
    }
}

/// What a flow may say in a round before others: the first window of a web page's answer (RFC 6928), and a quarter of what
/// a bulk flow says.
pub(super) const QUANTUM: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `turns` turns of flows that always have so much to say; returns who had them.
    fn serve(turns: &mut Turns, pending: &[usize], many: usize) -> Vec<usize> {
        let mut served = Vec::new();
        for _ in 0..many {
            let Some(at) = turns.next(|at| pending[at]) else {
                break;
            };
            served.push(at);
            turns.finish(pending[at].min(4 * QUANTUM));
            turns.add(at, pending[at]);
        }
        served
    }

    #[test]
    fn thin_flow_goes_before_bulk_that_waited_longer() {
        let mut turns = Turns::default();
        for at in 0..64 {
            turns.add(at, 1 << 20);
        }
        turns.add(64, 200);
        assert_eq!(turns.next(|at| [1 << 20, 200][at / 64]), Some(64));
    }

    #[test]
    fn thin_flows_that_never_stop_leave_bulk_its_turns() {
        let mut turns = Turns::default();
        let pending = [1 << 20, 1 << 20, 200, 4000];
        for (at, pending) in pending.iter().enumerate() {
            turns.add(at, *pending);
        }
        let served = serve(&mut turns, &pending, 3000);
        let of = |flow| served.iter().filter(|at| **at == flow).count();
        assert!(of(0).abs_diff(of(1)) <= 1);
        assert!(of(0) >= 30, "{}", of(0));
        assert!(of(2) * 200 <= (of(0) + 2) * 2 * QUANTUM);
        assert!(of(3) * 4000 <= (of(0) + 2) * 2 * QUANTUM);
    }

    #[test]
    fn flow_that_has_grown_while_it_waited_goes_with_the_others() {
        let mut turns = Turns::default();
        turns.add(0, 100);
        turns.add(1, 100);
        assert_eq!(turns.next(|at| [1 << 20, 100][at]), Some(1));
        turns.finish(100);
        assert_eq!(turns.next(|_| 1 << 20), Some(0));
    }

    #[test]
    fn bulk_flow_that_empties_and_comes_back_in_the_same_round_waits() {
        let mut turns = Turns::default();
        for at in 0..3 {
            turns.add(at, 1 << 20);
        }
        assert_eq!(turns.next(|_| 1 << 20), Some(0));
        turns.finish(4 * QUANTUM);
        turns.add(0, 100);
        assert_eq!(serve(&mut turns, &[100, 1 << 20, 1 << 20], 2), [1, 2]);
    }

    #[test]
    fn who_waits_is_queued_once() {
        let mut turns = Turns::default();
        turns.add(0, 1);
        turns.add(0, 1 << 20);
        assert_eq!(turns.next(|_| 1), Some(0));
        turns.finish(1);
        assert_eq!(turns.next(|_| 1), None);
    }
}
