//! Spreads datagrams over time.

use std::time::{Duration, Instant};

/// A schedule at which datagrams leave at a rate, in bursts that sending in batches can use.
///
/// Behind it is a token bucket: it holds a burst of 1 ms of the rate, at least two datagrams, at most
/// 64 KiB. A timer that fires late loses nothing, since the time between the promised moment
/// and the real one counts on top.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// Bytes per second.
    rate: u64,
    burst: u64,
    /// When the next byte would leave if there were no bursts.
    next: Instant,
    /// The moment last promised to a sender that had to wait.
    promised: Option<Instant>,
}

impl Pacer {
    /// Starts with nothing owed.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self {
            rate: 1,
            burst: MAX_BURST,
            next: now,
            promised: None,
        }
    }

    /// Sets the rate, in bytes per second, and the length of a datagram. What was sent already keeps its time.
    pub fn set_rate(&mut self, rate: u64, datagram: u64) {
        self.rate = rate.max(1);
        let least = datagram.saturating_mul(2).min(MAX_BURST);
        self.burst = (rate / 1000).clamp(least, MAX_BURST);
    }

    /// When `bytes` may leave: `None` means now.
    ///
    /// A later moment is one at which half a burst may leave, so that who waits for it is not woken for every
    /// datagram.
    pub fn release_at(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        self.catch_up(now);
        let full = now + self.time_of(self.burst);
        // A datagram may leave once the whole of it fits the bucket; one longer than the bucket, once that is full.
        let need = self.time_of((bytes as u64).min(self.burst));
        if self.next + need <= full {
            return None;
        }
        let batch = self.time_of((self.burst / 2).max(bytes as u64).min(self.burst));
        let at = (self.next + batch)
            .checked_sub(self.time_of(self.burst))
            .unwrap_or(now);
        self.promised = Some(at);
        Some(at.max(now + GRANULARITY))
    }

    /// Takes note of `bytes` that leave now.
    pub fn handle_sent(&mut self, now: Instant, bytes: usize) {
        self.catch_up(now);
        let latest = now + self.time_of(self.burst) + MAX_DEBT;
        self.next = (self.next + self.time_of(bytes as u64)).min(latest.max(self.next));
    }

    /// Unused time is lost, but for a late timer's.
    fn catch_up(&mut self, now: Instant) {
        let recent =
            (self.promised).filter(|promised| now.saturating_duration_since(*promised) <= MAX_LATE);
        self.next = self
            .next
            .max(recent.map_or(now, |promised| promised.min(now)));
    }

    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = match bytes.checked_mul(1_000_000_000) {
            Some(scaled) => scaled / self.rate,
            // More than 18 GB.
            None => return MAX_TIME,
        };
        Duration::from_nanos(nanos).min(MAX_TIME)
    }
}

/// What one system call sends with segmentation offload.
const MAX_BURST: u64 = 64 * 1024;

/// Timers of an event loop fire up to 1 ms late, and a busy process later.
const MAX_LATE: Duration = Duration::from_millis(5);

/// Waiting for less costs more than it spreads.
const GRANULARITY: Duration = Duration::from_micros(50);

/// What leaves without asking, as reports and probes do, holds others up for at most that.
const MAX_DEBT: Duration = Duration::from_millis(250);

/// Keeps times within what an `Instant` can hold, at rates that are no rates.
const MAX_TIME: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as the pacer lets it for `span`, waking `late` after each promise.
    fn sent(rate: u64, bytes: usize, span: Duration, late: Duration) -> (u64, u64) {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        pacer.set_rate(rate, bytes as u64);
        let (mut now, mut total, mut wakes) = (start, 0, 0);
        while now < start + span {
            match pacer.release_at(now, bytes) {
                None => {
                    pacer.handle_sent(now, bytes);
                    total += bytes as u64;
                }
                Some(at) => {
                    assert!(at > now);
                    now = at + late;
                    wakes += 1;
                }
            }
        }
        (total, wakes)
    }

    #[test]
    fn the_rate_is_kept_from_100_kbit_to_20_gbit() {
        for rate in [12_500, 1_250_000, 125_000_000, 2_500_000_000] {
            let span = Duration::from_secs(if rate > 1_000_000_000 { 1 } else { 20 });
            let (total, _) = sent(rate, 1400, span, Duration::ZERO);
            let share = total as f64 / (rate as f64 * span.as_secs_f64());
            assert!((0.99..1.02).contains(&share), "{rate}: {share}");
        }
    }

    #[test]
    fn a_timer_that_is_late_costs_no_rate() {
        for rate in [1_250_000, 12_500_000] {
            let span = Duration::from_secs(10);
            let (total, _) = sent(rate, 1400, span, Duration::from_millis(2));
            let share = total as f64 / (rate as f64 * span.as_secs_f64());
            assert!((0.98..1.02).contains(&share), "{rate}: {share}");
        }
    }

    #[test]
    fn at_high_rates_each_wake_sends_a_batch() {
        let (total, wakes) = sent(125_000_000, 1400, Duration::from_secs(1), Duration::ZERO);
        assert!(total / wakes > 30_000, "{} bytes a wake", total / wakes);
    }

    #[test]
    fn what_may_leave_at_once_is_bounded_after_any_pause() {
        for (rate, bound) in [(12_500, 2800), (6_250_000, 7000), (2_500_000_000, 66_000)] {
            let start = Instant::now();
            let mut pacer = Pacer::new(start);
            pacer.set_rate(rate, 1400);
            let now = start + Duration::from_secs(100);
            let mut burst = 0;
            while pacer.release_at(now, 1400).is_none() {
                pacer.handle_sent(now, 1400);
                burst += 1400;
            }
            assert!((2800..=bound).contains(&burst), "{rate}: {burst}");
        }
    }

    #[test]
    fn what_leaves_without_asking_holds_others_up_for_a_moment_only() {
        let start = Instant::now();
        let mut pacer = Pacer::new(start);
        pacer.set_rate(1250, 1400);
        for _ in 0..1000 {
            pacer.handle_sent(start, 100);
        }
        assert_eq!(
            pacer.release_at(start + Duration::from_millis(1371), 1400),
            None
        );
    }

    #[test]
    fn a_rate_of_nothing_breaks_nothing() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        for rate in [0, u64::MAX] {
            pacer.set_rate(rate, u64::MAX);
            for _ in 0..100 {
                let _ = pacer.release_at(now, usize::MAX);
                pacer.handle_sent(now, usize::MAX);
            }
        }
    }
}
