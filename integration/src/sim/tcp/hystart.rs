//! HyStart++ (RFC 9406): leaves slow start when the round trip grows, by way of a slower phase that may be wrong.

use std::time::Duration;

/// What slow start is doing.
#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    phase: Phase,
    /// The round ends when this is acknowledged.
    round_end: u64,
    last_round_min: Option<Duration>,
    round_min: Option<Duration>,
    samples: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Standard,
    Conservative {
        /// The round trip that ended the standard phase.
        baseline: Duration,
        rounds: u32,
    },
    Done,
}

/// What slow start may do with an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Growth {
    /// Grow by this for each packet acknowledged.
    By(f64),
    /// Slow start is over.
    Stop,
}

impl HyStart {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Standard,
            round_end: 0,
            last_round_min: None,
            round_min: None,
            samples: 0,
        }
    }

    /// Takes an acknowledgement up to `una`, when `nxt` is what will be sent next.
    pub(super) fn on_ack(&mut self, una: u64, nxt: u64, rtt: Option<Duration>) -> Growth {
        if una > self.round_end {
            self.begin_round(nxt);
        }
        if let Some(rtt) = rtt {
            self.round_min = Some(self.round_min.map_or(rtt, |min| min.min(rtt)));
            self.samples += 1;
        }
        let seen = self.round_min.filter(|_| self.samples >= SAMPLES);
        match self.phase {
            Phase::Standard => {
                if let (Some(now), Some(last)) = (seen, self.last_round_min) {
                    let threshold = (last / 8).clamp(MIN_RISE, MAX_RISE);
                    if now >= last + threshold {
                        self.phase = Phase::Conservative {
                            baseline: now,
                            rounds: 0,
                        };
                    }
                }
                Growth::By(1.0)
            }
            Phase::Conservative { baseline, .. } => {
                if seen.is_some_and(|now| now < baseline) {
                    self.phase = Phase::Standard;
                }
                Growth::By(1.0 / CONSERVATIVE_DIVISOR)
            }
            Phase::Done => Growth::Stop,
        }
    }

    fn begin_round(&mut self, nxt: u64) {
        self.round_end = nxt;
        self.last_round_min = self.round_min.take().or(self.last_round_min);
        self.samples = 0;
        if let Phase::Conservative { baseline, rounds } = self.phase {
            self.phase = if rounds + 1 > CONSERVATIVE_ROUNDS {
                Phase::Done
            } else {
                Phase::Conservative {
                    baseline,
                    rounds: rounds + 1,
                }
            };
        }
    }
}

/// N_RTT_SAMPLE.
const SAMPLES: u32 = 8;
/// MIN_RTT_THRESH.
const MIN_RISE: Duration = Duration::from_millis(4);
/// MAX_RTT_THRESH.
const MAX_RISE: Duration = Duration::from_millis(16);
/// CSS_GROWTH_DIVISOR.
const CONSERVATIVE_DIVISOR: f64 = 4.0;
/// CSS_ROUNDS.
const CONSERVATIVE_ROUNDS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Plays one round of `packets` with this round trip; returns the last advice.
    fn round(hystart: &mut HyStart, una: &mut u64, packets: u64, rtt: Duration) -> Growth {
        let nxt = *una + packets;
        let mut growth = Growth::Stop;
        for _ in 0..packets {
            *una += 1;
            growth = hystart.on_ack(*una, nxt, Some(rtt));
        }
        growth
    }

    #[test]
    fn steady_round_trip_never_ends_slow_start() {
        let (mut hystart, mut una) = (HyStart::new(), 0);
        for _ in 0..20 {
            assert_eq!(round(&mut hystart, &mut una, 20, 50 * MS), Growth::By(1.0));
        }
    }

    #[test]
    fn rising_round_trip_slows_growth_and_ends_it_after_five_rounds() {
        let (mut hystart, mut una) = (HyStart::new(), 0);
        round(&mut hystart, &mut una, 20, 50 * MS);
        round(&mut hystart, &mut una, 20, 50 * MS);
        assert_eq!(round(&mut hystart, &mut una, 40, 60 * MS), Growth::By(0.25));
        let mut rounds = 0;
        while round(&mut hystart, &mut una, 40, 60 * MS) != Growth::Stop {
            rounds += 1;
            assert!(rounds < 10);
        }
        assert!((4..=6).contains(&rounds), "{rounds}");
    }

    #[test]
    fn round_trip_that_falls_again_resumes_slow_start() {
        let (mut hystart, mut una) = (HyStart::new(), 0);
        round(&mut hystart, &mut una, 20, 50 * MS);
        round(&mut hystart, &mut una, 40, 60 * MS);
        round(&mut hystart, &mut una, 40, 50 * MS);
        assert_eq!(round(&mut hystart, &mut una, 40, 50 * MS), Growth::By(1.0));
    }
}
