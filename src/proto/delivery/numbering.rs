//! Datagram numbers and the order in which datagrams were sent.

use std::collections::VecDeque;

use super::SentError;

/// Maps datagram numbers, which jump when an epoch begins, to sequences, which do not.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbering {
    /// Number and sequence where each run of numbers begins.
    runs: VecDeque<(u64, u64)>,
    pub(super) next: u64,
}

impl Numbering {
    pub(super) fn append(&mut self, number: u64, sequence: u64) -> Result<(), SentError> {
        let next = self.next;
        if number < next {
            return Err(SentError::Number { number, next });
        }
        if number > next || self.runs.is_empty() {
            // Forgotten, a run would pass for lost.
            if self.runs.len() >= MAX_RUNS {
                return Err(SentError::Scattered);
            }
            self.runs.push_back((number, sequence));
        }
        self.next = number.saturating_add(1);
        Ok(())
    }

    /// The sequences of the numbers `first ..= last` that were used, as inclusive ranges.
    pub(super) fn sequences(
        &self,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = (u64, u64)> + use<> {
        let mut found = [None; MAX_RUNS];
        let mut above: Option<u64> = None;
        for (slot, (from, sequence)) in found.iter_mut().zip(self.runs.iter().rev()) {
            // Sequences of this run end where the next begins.
            let length = above.map_or(self.next.saturating_sub(*from), |above| above - sequence);
            let end = from.saturating_add(length);
            let (low, high) = (first.max(*from), last.min(end.saturating_sub(1)));
            if low <= high && length > 0 {
                *slot = Some((sequence + (low - from), sequence + (high - from)));
            }
            above = Some(*sequence);
        }
        found.into_iter().rev().flatten()
    }

    pub(super) fn forget(&mut self, front: u64) {
        while self
            .runs
            .get(1)
            .is_some_and(|(_, sequence)| *sequence <= front)
        {
            self.runs.pop_front();
        }
    }
}

/// Runs of numbers: a new one begins with each epoch, and after each datagram that is not tracked, as the probes of path
/// MTU discovery and of a new path are not. Those are some in a round trip, and epochs live for minutes.
const MAX_RUNS: usize = 16;
