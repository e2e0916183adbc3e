//! Round-trip times and the retransmission timeout (RFC 6298), with the numbers of Linux.

use std::time::Duration;

/// What is known of the round trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Option<Duration>,
    backoff: u32,
}

impl RoundTrip {
    pub(super) fn new() -> Self {
        Self {
            smoothed: None,
            variation: Duration::ZERO,
            min: None,
            backoff: 0,
        }
    }

    /// Takes a measurement of a segment that was sent once (Karn's algorithm).
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.min = Some(self.min.map_or(rtt, |min| min.min(rtt)));
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                let error = smoothed.abs_diff(rtt);
                self.variation = (self.variation * 3 + error) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
        self.backoff = 0;
    }

    /// Takes note that the timeout has passed: the next one is twice as long.
    pub(super) fn back_off(&mut self) {
        self.backoff += 1;
    }

    /// Takes note that something new was acknowledged.
    pub(super) fn forget_backoff(&mut self) {
        self.backoff = 0;
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    pub(super) fn min(&self) -> Option<Duration> {
        self.min
    }

    /// The retransmission timeout. Linux puts its floor of 200 ms under the term of the variation, not the sum.
    pub(super) fn timeout(&self) -> Duration {
        let base = self.smoothed.map_or(INITIAL_TIMEOUT, |smoothed| {
            smoothed + (self.variation * 4).max(MIN_TIMEOUT)
        });
        (base * (1 << self.backoff.min(10))).min(MAX_TIMEOUT)
    }
}

/// RFC 6298, section 2.1.
const INITIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// TCP_RTO_MIN of Linux.
pub(super) const MIN_TIMEOUT: Duration = Duration::from_millis(200);
/// TCP_RTO_MAX of Linux.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn steady_round_trip_of_50_ms_times_out_after_250() {
        let mut rtt = RoundTrip::new();
        assert_eq!(rtt.timeout(), 1000 * MS);
        for _ in 0..100 {
            rtt.sample(50 * MS);
        }
        assert_eq!(rtt.timeout().as_millis(), 250);
    }

    #[test]
    fn timeout_doubles_until_an_answer_comes() {
        let mut rtt = RoundTrip::new();
        rtt.sample(50 * MS);
        let first = rtt.timeout();
        rtt.back_off();
        rtt.back_off();
        assert_eq!(rtt.timeout(), first * 4);
        rtt.forget_backoff();
        assert_eq!(rtt.timeout(), first);
        for _ in 0..40 {
            rtt.back_off();
        }
        assert_eq!(rtt.timeout(), MAX_TIMEOUT);
    }

    #[test]
    fn variation_lengthens_the_timeout_and_the_minimum_stays() {
        let mut rtt = RoundTrip::new();
        for i in 0..100 {
            rtt.sample(if i % 2 == 0 { 50 * MS } else { 350 * MS });
        }
        assert!(rtt.timeout() > 600 * MS, "{:?}", rtt.timeout());
        assert_eq!(rtt.min(), Some(50 * MS));
    }
}
