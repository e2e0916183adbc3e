//! How long the path takes: round-trip time, and the queue seen by one-way delay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Smoothed round-trip time (RFC 9002, section 5).
///
/// Reports state their age exactly, so samples hold no delay of the receiver's.
#[derive(Clone, Debug)]
pub(super) struct RoundTrip {
    latest: Duration,
    smoothed: Duration,
    variance: Duration,
    lowest: WindowedLow,
    sampled: bool,
}

impl RoundTrip {
    /// Starts with a guess, which the first sample replaces.
    pub(super) fn new(guess: Duration) -> Self {
        Self {
            latest: guess,
            smoothed: guess,
            variance: guess / 2,
            lowest: WindowedLow::new(LOWEST_WINDOW),
            sampled: false,
        }
    }

    pub(super) fn on_sample(&mut self, now: Instant, sample: Duration) {
        self.latest = sample;
        self.lowest.on_sample(now, nanos(sample));
        if self.sampled {
            let error = self.smoothed.abs_diff(sample);
            self.variance = (self.variance * 3 + error) / 4;
            self.smoothed = (self.smoothed * 7 + sample) / 8;
        } else {
            self.sampled = true;
            self.smoothed = sample;
            self.variance = sample / 2;
        }
    }

    pub(super) const fn latest(&self) -> Duration {
        self.latest
    }

    pub(super) const fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// The lowest of 10 to 20 s; the guess before there is a sample.
    pub(super) fn lowest(&self) -> Duration {
        self.lowest.get().map_or(self.smoothed, |low| {
            Duration::from_nanos(u64::try_from(low).unwrap_or(0))
        })
    }

    /// Time after which silence is suspicious (RFC 9002, section 6.2.1), without the receiver's delay.
    pub(super) fn timeout(&self) -> Duration {
        self.smoothed + (self.variance * 4).max(GRANULARITY)
    }
}

/// How much longer datagrams take than the shortest way they took lately: the queue on the way out,
/// whatever the way back does.
///
/// The two ends' clocks need not agree; they may drift apart by 100 millionths, which moves the
/// estimate by 6 ms over the window of a minute.
#[derive(Clone, Debug)]
pub(super) struct OneWay {
    base: WindowedLow,
    /// The receiver's clock, unwrapped: low 32 bits as last heard, microseconds.
    clock: Option<(u64, Instant)>,
}

impl OneWay {
    pub(super) const fn new() -> Self {
        Self {
            base: WindowedLow::new(BASE_WINDOW),
            clock: None,
        }
    }

    /// Unwraps a reading of the receiver's clock. Readings go up and down by at most 35 minutes.
    pub(super) fn unwrap(&mut self, now: Instant, arrival: u32) -> u64 {
        let fresh = self.clock.filter(|(_, heard)| {
            // Beyond half of what 32 bits count it is unknown how often they went round.
            now.saturating_duration_since(*heard) < CLOCK_KNOWN
        });
        let at = match fresh {
            Some((last, _)) => {
                let step = arrival.wrapping_sub(last as u32) as i32;
                last.saturating_add_signed(i64::from(step))
            }
            None => {
                self.base = WindowedLow::new(BASE_WINDOW);
                // Room below for readings that come out of order.
                (1 << 32) | u64::from(arrival)
            }
        };
        self.clock = Some((at, now));
        at
    }

    /// Takes a datagram's departure by our clock and arrival by theirs, in microseconds. Returns the
    /// queueing delay.
    pub(super) fn on_sample(&mut self, now: Instant, sent: u64, arrived: u64) -> Duration {
        let delay = (arrived as i64).wrapping_sub(sent as i64);
        self.base.on_sample(now, delay);
        let base = self.base.get().unwrap_or(delay);
        Duration::from_micros(u64::try_from(delay.saturating_sub(base)).unwrap_or(0))
    }
}

/// The lowest value of the last one to two windows.
#[derive(Clone, Copy, Debug)]
struct WindowedLow {
    window: Duration,
    began: Option<Instant>,
    current: i64,
    former: Option<i64>,
}

impl WindowedLow {
    const fn new(window: Duration) -> Self {
        Self {
            window,
            began: None,
            current: i64::MAX,
            former: None,
        }
    }

    fn on_sample(&mut self, now: Instant, value: i64) {
        match self.began {
            Some(began) if now.saturating_duration_since(began) < self.window => {
                self.current = self.current.min(value);
            }
            Some(began) => {
                let stale = now.saturating_duration_since(began) >= self.window * 2;
                self.former = (!stale).then_some(self.current);
                self.began = Some(now);
                self.current = value;
            }
            None => {
                self.began = Some(now);
                self.current = value;
            }
        }
    }

    fn get(&self) -> Option<i64> {
        (self.began).map(|_| {
            self.former
                .map_or(self.current, |low| low.min(self.current))
        })
    }
}

/// The queue of the last few samples: its floor is what stands, whatever jitter adds.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    samples: VecDeque<(Instant, Duration)>,
}

impl Recent {
    /// Adds a sample and returns the lowest of those not older than `window`.
    pub(super) fn on_sample(
        &mut self,
        now: Instant,
        queue: Duration,
        window: Duration,
    ) -> Duration {
        while self.samples.len() >= RECENT
            || (self.samples.front())
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > window)
        {
            self.samples.pop_front();
        }
        self.samples.push_back((now, queue));
        let queues = self.samples.iter().map(|(_, queue)| *queue);
        queues.min().unwrap_or(queue)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The lowest round trip is forgotten after one to two of these, so that a longer route is believed.
const LOWEST_WINDOW: Duration = Duration::from_secs(10);

/// The shortest one-way delay is remembered for one to two of these. Longer than the round trip's,
/// since a competitor's queue may stand for many seconds and must not become the norm.
const BASE_WINDOW: Duration = Duration::from_secs(30);

/// Below half of 2^32 microseconds, which is 35.8 minutes.
const CLOCK_KNOWN: Duration = Duration::from_secs(30 * 60);

/// `kGranularity` (RFC 9002, section 6.1.2).
pub(super) const GRANULARITY: Duration = Duration::from_millis(1);

/// Samples of [`Recent`]: those of half a round trip, with reports each eighth.
const RECENT: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_first_sample_replaces_the_guess() {
        let now = Instant::now();
        let mut rtt = RoundTrip::new(ms(300));
        assert_eq!(rtt.lowest(), ms(300));
        rtt.on_sample(now, ms(50));
        assert_eq!((rtt.smoothed(), rtt.lowest()), (ms(50), ms(50)));
        rtt.on_sample(now, ms(90));
        assert_eq!((rtt.smoothed(), rtt.lowest()), (ms(55), ms(50)));
    }

    #[test]
    fn a_longer_route_is_believed_after_20_s() {
        let start = Instant::now();
        let mut rtt = RoundTrip::new(ms(50));
        for second in 0..40 {
            let sample = if second < 15 { ms(50) } else { ms(80) };
            rtt.on_sample(start + ms(1000 * second), sample);
            if second < 20 {
                assert_eq!(rtt.lowest(), ms(50), "{second}");
            }
        }
        assert_eq!(rtt.lowest(), ms(80));
    }

    #[test]
    fn the_queue_is_what_exceeds_the_shortest_way_whatever_the_clocks_say() {
        let now = Instant::now();
        for offset in [0_u32, 1 << 31, u32::MAX - 1000] {
            let mut way = OneWay::new();
            for (sent, delay, queue) in [(0, 30_000, 0), (7_000, 45_000, 15), (9_000, 25_000, 0)] {
                let arrived = way.unwrap(now, offset.wrapping_add(sent + delay));
                let found = way.on_sample(now, u64::from(sent), arrived);
                assert_eq!(found, ms(queue), "{offset}");
            }
        }
    }

    #[test]
    fn a_clock_not_heard_for_half_an_hour_begins_anew() {
        let now = Instant::now();
        let mut way = OneWay::new();
        let arrived = way.unwrap(now, 20_000);
        way.on_sample(now, 0, arrived);
        let later = now + Duration::from_secs(3600);
        let arrived = way.unwrap(later, 3_600_020_000_u64 as u32);
        assert_eq!(way.on_sample(later, 3_600_000_000, arrived), ms(0));
    }

    #[test]
    fn clocks_that_drift_do_not_look_like_a_queue() {
        let start = Instant::now();
        let mut way = OneWay::new();
        for second in 0..600_u64 {
            let now = start + ms(1000 * second);
            // 50 millionths fast.
            let theirs = second * 1_000_050 + 30_000;
            let arrived = way.unwrap(now, theirs as u32);
            let queue = way.on_sample(now, second * 1_000_000, arrived);
            assert!(queue <= ms(3), "{queue:?}");
        }
    }
}
