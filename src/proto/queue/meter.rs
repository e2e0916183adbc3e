//! Tells whether a flow sends at a low rate, in a few words per flow.

use std::time::{Duration, Instant};

/// Measures a flow's rate over the last window or two.
#[derive(Clone, Copy, Debug)]
pub(in crate::proto) struct Meter {
    /// When the present window began.
    start: Instant,
    /// Bytes in it.
    present: u32,
    /// Bytes in the one before.
    past: u32,
}

impl Meter {
    pub(in crate::proto) fn new(now: Instant) -> Meter {
        Meter {
            start: now,
            present: 0,
            past: 0,
        }
    }

    /// Counts a packet and says whether the flow's rate, this packet included, is low.
    pub(super) fn add(&mut self, now: Instant, bytes: usize) -> bool {
        self.count(now, bytes) <= LOW_BYTES
    }

    /// Counts a packet and says how many bytes the flow has sent within [`WINDOW`], this packet included.
    pub(in crate::proto) fn count(&mut self, now: Instant, bytes: usize) -> u64 {
        let elapsed = now.saturating_duration_since(self.start);
        if elapsed >= 2 * WINDOW {
            (self.start, self.present, self.past) = (now, 0, 0);
        } else if elapsed >= WINDOW {
            self.start += WINDOW;
            (self.past, self.present) = (self.present, 0);
        }
        self.present = self
            .present
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        let elapsed = now.saturating_duration_since(self.start).min(WINDOW);
        // The part of the past window that still lies within one window of now.
        let left = (WINDOW - elapsed).as_micros() as u64;
        let past = u64::from(self.past) * left / WINDOW.as_micros() as u64;
        past + u64::from(self.present)
    }
}

/// Long enough that a call's packets each 20 ms make an even rate, short enough that a transfer is known within a few
/// round trips.
const WINDOW: Duration = Duration::from_millis(500);

/// What a low rate may send in a window: 128 kbit/s, which holds a call with its headers and is what thin flows may
/// have of redundancy.
pub(in crate::proto) const LOW_BYTES: u64 = 8_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_228_bytes_each_20_ms_is_a_low_rate_for_ever() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        for n in 0..1_000 {
            assert!(meter.add(start + n * Duration::from_millis(20), 228), "{n}");
        }
    }

    #[test]
    fn a_transfer_is_known_after_8_kilobytes_and_forgotten_after_two_windows() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        for _ in 0..5 {
            assert!(meter.add(start, 1_400));
        }
        assert!(!meter.add(start, 1_400));
        assert!(!meter.add(start + WINDOW, 100));
        assert!(meter.add(start + 3 * WINDOW, 100));
    }

    #[test]
    fn a_rate_just_above_the_limit_is_not_low() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let mut low = true;
        for n in 0..200 {
            low = meter.add(start + n * Duration::from_millis(20), 400);
        }
        assert!(!low);
    }
}
