//! What a controller believes of the path: rounds, bandwidth, length, usual loss.

use std::time::{Duration, Instant};

use super::filter::Highest;
use crate::proto::delivery::Sample;

/// The model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    bandwidth: Highest,
    /// Rounds that say something of the bandwidth; those the application limited do not count.
    bandwidth_rounds: u64,
    /// A lower bandwidth that congestion showed, until the next push.
    bound: Option<u64>,
    length: Option<Duration>,
    /// When the length was last seen, or nearly.
    length_at: Instant,
    next_round: u64,
    round_began: Instant,
    rounds: u64,
    round: Round,
    usual: UsualLoss,
    longest: Duration,
    longest_former: Duration,
    longest_since: Instant,
}

/// What happened within one round trip.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    /// The least queue; `None` without a sample.
    pub(super) standing: Option<Duration>,
    /// The longest queue.
    pub(super) longest: Duration,
    /// The highest delivery rate.
    pub(super) rate: u64,
    /// Datagrams whose fate became known.
    pub(super) decided: u64,
    /// Those lost.
    pub(super) lost: u64,
    /// Runs of losses.
    pub(super) bursts: u64,
    /// Datagrams marked Congestion Experienced.
    pub(super) marked: u64,
    /// The application limited it.
    pub(super) limited: bool,
}

impl Model {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            bandwidth: Highest::default(),
            bandwidth_rounds: 0,
            bound: None,
            length: None,
            length_at: now,
            next_round: 0,
            round_began: now,
            rounds: 0,
            round: Round::default(),
            usual: UsualLoss::default(),
            longest: Duration::ZERO,
            longest_former: Duration::ZERO,
            longest_since: now,
        }
    }

    /// Takes a sample in. Returns the round that it ended, if it did.
    pub(super) fn on_sample(&mut self, sample: &Sample) -> Option<Round> {
        let lasted = sample.now.saturating_duration_since(self.round_began);
        let over = sample.newly_delivered > 0
            && sample.prior_delivered >= self.next_round
            && lasted >= LEAST_ROUND;
        let ended = over.then(|| {
            self.next_round = sample.delivered;
            self.round_began = sample.now;
            self.rounds += 1;
            let round = std::mem::take(&mut self.round);
            self.bandwidth_rounds += u64::from(!round.limited);
            round
        });
        if let Some(rate) = sample.rate
            && (!sample.application_limited || rate >= self.bandwidth.get())
        {
            self.bandwidth
                .on_sample(BANDWIDTH_ROUNDS, self.bandwidth_rounds, rate);
        }
        if let Some(round_trip) = sample.round_trip {
            self.on_round_trip(sample.now, round_trip);
        }
        if let Some(queue) = sample.queue {
            self.on_queue(sample.now, queue);
        }
        let round = &mut self.round;
        round.rate = round.rate.max(sample.rate.unwrap_or(0));
        round.decided += sample.datagrams_decided;
        round.lost += sample.datagrams_lost;
        round.bursts += sample.loss_bursts;
        round.marked += sample.newly_marked;
        round.limited |= sample.application_limited;
        ended
    }

    /// Datagrams were called lost without a report.
    pub(super) const fn on_lost(&mut self, sample: &Sample) {
        self.round.decided += sample.datagrams_decided;
        self.round.lost += sample.datagrams_lost;
        self.round.bursts += sample.loss_bursts;
    }

    /// Adds a round in which nothing was pushed to what the path is known to lose.
    pub(super) fn on_calm(&mut self, round: &Round) {
        self.usual.on_round(round);
    }

    /// Bytes per second; 0 while unknown.
    pub(super) fn bandwidth(&self) -> u64 {
        self.bound.map_or(self.bandwidth.get(), |bound| {
            bound.min(self.bandwidth.get())
        })
    }

    pub(super) const fn highest_bandwidth(&self) -> u64 {
        self.bandwidth.get()
    }

    /// Congestion showed that there is less.
    pub(super) fn bound(&mut self, rate: u64) {
        self.bound = Some(self.bound.map_or(rate, |bound| bound.min(rate)));
    }

    pub(super) const fn unbound(&mut self) {
        self.bound = None;
    }

    /// The lowest round-trip time; `None` before there was a sample.
    pub(super) const fn length(&self) -> Option<Duration> {
        self.length
    }

    /// How long ago the length was seen.
    pub(super) fn length_age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.length_at)
    }

    /// Believes the next samples, whatever the lowest was.
    pub(super) const fn remeasure_length(&mut self, now: Instant) {
        self.length = None;
        self.length_at = now;
    }

    /// Datagrams and share of loss that the path has of its own accord.
    pub(super) fn usual_loss(&self) -> f64 {
        self.usual.share()
    }

    /// Whether more was lost than the path loses, beyond what chance explains.
    pub(super) fn is_unusual(&self, decided: u64, lost: u64, margin: f64) -> bool {
        self.usual.is_exceeded(decided, lost, margin)
    }

    /// The round under way.
    pub(super) const fn round(&self) -> &Round {
        &self.round
    }

    pub(super) const fn rounds(&self) -> u64 {
        self.rounds
    }

    /// The longest queue of the last 10 to 20 s.
    pub(super) fn longest_queue(&self) -> Duration {
        self.longest.max(self.longest_former)
    }

    /// Begins a round, so that the next to end is one of what is sent from now on.
    pub(super) const fn begin_round(&mut self, delivered: u64) {
        self.next_round = delivered;
    }

    fn on_round_trip(&mut self, now: Instant, round_trip: Duration) {
        match self.length {
            Some(length) if round_trip > length => {
                if round_trip <= length + (length / 16).max(LENGTH_TOLERANCE) {
                    self.length_at = now;
                }
            }
            Some(_) | None => {
                self.length = Some(round_trip);
                self.length_at = now;
            }
        }
    }

    fn on_queue(&mut self, now: Instant, queue: Duration) {
        let round = &mut self.round;
        round.standing = Some(round.standing.map_or(queue, |least| least.min(queue)));
        round.longest = round.longest.max(queue);
        if now.saturating_duration_since(self.longest_since) >= LONGEST_WINDOW {
            self.longest_since = now;
            self.longest_former = self.longest;
            self.longest = Duration::ZERO;
        }
        self.longest = self.longest.max(queue);
    }
}

/// Share of datagrams that is lost while nothing is pushed.
#[derive(Clone, Debug, Default)]
struct UsualLoss {
    decided: f64,
    lost: f64,
    bursts: f64,
}

impl UsualLoss {
    fn on_round(&mut self, round: &Round) {
        self.decided += round.decided as f64;
        self.lost += round.lost as f64;
        self.bursts += round.bursts as f64;
        if self.decided > USUAL_DATAGRAMS {
            // Older rounds count for less and less.
            self.decided /= 2.0;
            self.lost /= 2.0;
            self.bursts /= 2.0;
        }
    }

    fn share(&self) -> f64 {
        if self.decided < USUAL_LEAST {
            return 0.0;
        }
        (self.lost / self.decided).clamp(0.0, USUAL_MOST)
    }

    fn is_exceeded(&self, decided: u64, lost: u64, margin: f64) -> bool {
        let decided = decided as f64;
        let expected = decided * self.share();
        // Three standard deviations of losses that come in runs of geometric length.
        let burst = (self.lost / self.bursts.max(1.0)).clamp(1.5, MAX_BURST);
        let chance = 3.0 * (expected * (2.0 * burst - 1.0)).sqrt();
        lost as f64 > expected + chance + decided * margin
    }
}

/// Bandwidth is the highest rate of this many rounds, of which one or two push.
const BANDWIDTH_ROUNDS: u64 = 10;

/// A round trip longer by this or a sixteenth still shows that the length is right.
const LENGTH_TOLERANCE: Duration = Duration::from_millis(1);

/// The longest queue is remembered for one to two of these: some periods of a CUBIC flow's sawtooth.
const LONGEST_WINDOW: Duration = Duration::from_secs(10);

/// Datagrams over which usual loss is taken: at 1 % it is then known to a sixth of its value.
const USUAL_DATAGRAMS: f64 = 4000.0;

/// With fewer, nothing is known.
const USUAL_LEAST: f64 = 100.0;

/// Longer runs of losses are outages, and tell nothing of what chance does.
const MAX_BURST: f64 = 20.0;

/// A path that loses more than this is not made better by sending more.
const USUAL_MOST: f64 = 0.3;
/// How long a round lasts at least. Short paths are on machines and links that stand still for some milliseconds now and
/// then, and in a round of one report neither a queue nor a rate is told from that.
const LEAST_ROUND: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports each 5 ms on a path without length: each brings the end of a round trip.
    #[test]
    fn round_of_a_short_path_is_not_one_report() {
        let start = Instant::now();
        let mut model = Model::new(start);
        let mut ended = Vec::new();
        for tick in 1..=40 {
            let now = start + Duration::from_millis(5 * tick);
            let sample = Sample {
                newly_delivered: 1000,
                prior_delivered: 1000 * (tick - 1),
                delivered: 1000 * tick,
                datagrams_decided: 1,
                ..Sample::new(now)
            };
            ended.extend(model.on_sample(&sample).map(|round| round.decided));
        }
        assert_eq!(model.rounds(), 10);
        assert!(ended[1..].iter().all(|decided| *decided == 4), "{ended:?}");
    }
}
