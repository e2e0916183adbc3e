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
        if self.next()? <= now {
            self.copies.pop_front()
        } else {
            None
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_link_affords_128_kbit_a_second_and_a_busy_one_15_percent() {
        for (each_us, bytes, most) in [(20_000, 200, 16_000.0), (250, 1_400, 0.15 * 5_600_000.0)] {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(now);
            let mut taken = 0.0;
            let seconds = 10;
            for _ in 0..seconds * 1_000_000 / each_us {
                now += Duration::from_micros(each_us);
                bucket.on_source(now, bytes);
                while bucket.take(100, Class::Urgent) {
                    taken += 100.0;
                }
            }
            let rate = taken / seconds as f64;
            let depth = most * DEPTH.as_secs_f64() / seconds as f64;
            assert!(
                rate <= most + depth && rate > 0.9 * most,
                "{rate} of {most}"
            );
        }
    }

    #[test]
    fn thin_packets_leave_a_quarter_of_the_bucket_to_urgent_ones() {
        let mut bucket = Bucket::new(Instant::now());
        while bucket.take(100, Class::Thin) {}
        let mut urgent = 0;
        while bucket.take(100, Class::Urgent) {
            urgent += 100;
        }
        assert_eq!(urgent, 1_000);
    }

    #[test]
    fn copies_leave_in_the_order_of_their_time_and_are_bounded() {
        let now = Instant::now();
        let copy = |after_ms, first| Copy {
            due: now + Duration::from_millis(after_ms),
            first,
            span: 1,
        };
        let mut waiting = Waiting::new();
        for (after_ms, first) in [(5, 1), (0, 2), (5, 3), (2, 4)] {
            assert!(waiting.push(copy(after_ms, first)));
        }
        let later = now + Duration::from_secs(1);
        assert_eq!(waiting.next(), Some(now));
        assert_eq!(waiting.pop(now), Some(copy(0, 2)));
        assert_eq!(waiting.pop(now), None);
        let rest: Vec<u64> = std::iter::from_fn(|| waiting.pop(later))
            .map(|copy| copy.first)
            .collect();
        assert_eq!(rest, [4, 1, 3]);
        for first in 0..MAX_WAITING as u64 {
            assert!(waiting.push(copy(0, first)));
        }
        assert!(!waiting.push(copy(0, 99)));
    }

    #[test]
    fn copies_begin_above_what_repair_is_worth_and_double_at_7_percent() {
        assert_eq!(
            [0.0, 0.002, 0.01, 0.05, 0.1, 0.5].map(copies),
            [0, 0, 1, 1, 2, 2]
        );
    }
}
