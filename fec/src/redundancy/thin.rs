//! Copies of thin and urgent packets: when they leave, and from what budget.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::controller::Class;

/// The most copies that may wait for their moment.
pub const MAX_WAITING: usize = 64;

/// A bucket of bytes for copies.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// Bytes that may be spent now.
    level: f64,
    filled: Instant,
    /// Bytes sent lately, faded over [`RATE_HORIZON`].
    sent: f64,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            level: FLOOR_RATE * DEPTH.as_secs_f64(),
            filled: now,
            sent: 0.0,
        }
    }

    /// Fills the bucket for the time gone, and notes `bytes` that are sent.
    pub(super) fn on_source(&mut self, now: Instant, bytes: usize) {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        let horizon = RATE_HORIZON.as_secs_f64();
        self.sent = self.sent * (-elapsed / horizon).exp() + bytes as f64;
        let rate = (SHARE * self.sent / horizon).max(FLOOR_RATE);
        let depth = rate * DEPTH.as_secs_f64();
        self.level = (self.level + rate * elapsed).min(depth);
    }

    /// Spends `bytes` if they are there; a thin packet leaves a quarter to urgent ones.
    pub(super) fn take(&mut self, bytes: usize, class: Class) -> bool {
        let reserve = match class {
            Class::Urgent => 0.0,
            Class::Bulk | Class::Thin => FLOOR_RATE * DEPTH.as_secs_f64() / 4.0,
        };
        let enough = self.level - reserve >= bytes as f64;
        if enough {
            self.level -= bytes as f64;
        }
        enough
    }
}

/// Copies that wait for their moment, the earliest first.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    copies: VecDeque<Copy>,
}

/// A copy to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) due: Instant,
    pub(super) first: u64,
    pub(super) span: u64,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            copies: VecDeque::with_capacity(MAX_WAITING),
        }
    }

    /// Adds a copy, unless too many wait.
    pub(super) fn push(&mut self, copy: Copy) -> bool {
        if self.copies.len() == MAX_WAITING {
            return false;
        }
        let later = self.copies.iter().rposition(|other| other.due <= copy.due);
        self.copies.insert(later.map_or(0, |at| at + 1), copy);
        true
    }

    /// Returns the next copy whose time has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Copy> {
        self.copies.pop_front_if(|copy| copy.due <= now)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.copies.front().map(|copy| copy.due)
    }

    pub(super) fn clear(&mut self) {
        self.copies.clear();
    }
}

/// Returns how many copies a thin or urgent packet gets at such loss.
pub(super) fn copies(loss: f64) -> u32 {
    if loss < COPY_FROM {
        0
    } else if loss < SECOND_COPY_FROM {
        1
    } else {
        2
    }
}

/// 128 kbit/s in bytes a second: a call's worth, on any link.
const FLOOR_RATE: f64 = 16_000.0;

/// Thin flows beside bulk may cost this share of the bytes.
const SHARE: f64 = 0.15;

/// How long unspent bytes are kept: a handful of DNS queries and SYNs at once.
const DEPTH: Duration = Duration::from_millis(250);

const RATE_HORIZON: Duration = Duration::from_secs(1);

/// Above what parity begins with, since the doubt about an unknown link is part of the figure: a
/// call of 50 packets a second stops being copied after 3 s without loss.
const COPY_FROM: f64 = 0.004;

/// One copy leaves 0.5 % there, which is what the 99th percentile of a round trip can bear.
const SECOND_COPY_FROM: f64 = 0.07;
