//! Whose turn it is to send: flows go round.

use std::collections::VecDeque;

/// The order of turns; flows are named by their slots.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: VecDeque<usize>,
    /// Which slots wait.
    queued: Vec<bool>,
}

impl Turns {
    /// Queues a flow, unless it waits already.
    pub(super) fn add(&mut self, at: usize) {
        if self.queued.len() <= at {
            self.queued.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.queued[at], true) {
            self.waiting.push_back(at);
        }
    }

    /// Returns whose turn it is; it is to be told to [`Turns::finish`].
    pub(super) fn next(&self) -> Option<usize> {
        self.waiting.front().copied()
    }

    /// Takes note that the turn of the flow that was next is over.
    pub(super) fn finish(&mut self) {
        if let Some(at) = self.waiting.pop_front() {
            self.queued[at] = false;
        }
    }

    /// Forgets who waits.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.queued.fill(false);
    }
}
