//! A controller with a model of the path (see the module's page for the states).

mod beside;
mod flood;
mod probe;
mod start;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use start::INITIAL_DATAGRAMS;

use self::start::Start;
use super::model::{Model, Round};
use super::rivalry::Rivalry;
use super::{Congestion, Metrics};
use crate::proto::delivery::Sample;

/// The controller.
#[derive(Clone, Debug)]
pub struct Bbr {
    model: Model,
    phase: Phase,
    /// Set while others keep the queue standing.
    rivalry: Option<Rivalry>,
    /// Pushes in a row after which the queue did not go.
    crowded: u32,
    /// When cruising began.
    cruising: Instant,
    /// In the last round the lane pushed, or the queue was long.
    pushed: bool,
    start: Start,
    /// The highest bandwidth of a round while starting or pushing, and rounds since it grew.
    plateau: (u64, u32),
    former_queue: Duration,
    /// Mean difference between one queueing delay and the next: jitter (RFC 3550, section 6.4.1).
    noise: Duration,
    /// What rivalry was like, until the lane pushes again without it.
    parole: Option<Rivalry>,
    first_guess: Duration,
    smoothed: Duration,
    datagram: u64,
    random: u64,
    /// The flows inside hold back for what the path loses.
    exposed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Startup,
    Drain {
        since: u64,
        began: Instant,
        queue: Duration,
        /// What the lane put there has left.
        emptied: bool,
    },
    Down {
        since: u64,
        began: Instant,
        queue: Duration,
    },
    Cruise {
        until: u64,
    },
    Up {
        since: u64,
        began: Instant,
        /// Rounds that brought more bandwidth and no queue.
        free: u32,
    },
    /// Holds back to see how long the path is.
    Probe {
        until: Option<Instant>,
        standing: Option<Duration>,
        since: u64,
    },
}

impl Bbr {
    /// Starts on an unknown path. `datagram` is the longest UDP payload, `round_trip` a first guess, as from
    /// the handshake, and `seed` spreads in time what many lanes would do at once.
    #[must_use]
    pub fn new(now: Instant, datagram: usize, round_trip: Duration, seed: u64) -> Self {
        let datagram = (datagram as u64).clamp(1, MAX_DATAGRAM);
        Self {
            model: Model::new(now),
            phase: Phase::Startup,
            rivalry: None,
            crowded: 0,
            cruising: now,
            pushed: true,
            start: Start::new(datagram),
            plateau: (0, 0),
            former_queue: Duration::ZERO,
            noise: Duration::ZERO,
            parole: None,
            first_guess: round_trip.max(MIN_GUESS),
            smoothed: round_trip.max(MIN_GUESS),
            datagram,
            random: seed,
            exposed: false,
        }
    }

    fn length(&self) -> Duration {
        self.model.length().unwrap_or(self.first_guess)
    }

    /// The time that a few datagrams take on the link: on slow links no queue is shorter.
    fn datagrams_time(&self, datagrams: u64) -> Duration {
        let bandwidth = self.model.highest_bandwidth().max(1);
        let nanos = u128::from(self.datagram * datagrams) * 1_000_000_000 / u128::from(bandwidth);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(MAX_DATAGRAM_TIME)
    }

    /// A queue that counts as none.
    fn drained(&self) -> Duration {
        (self.length() / 32).clamp(MIN_DRAINED, MAX_DRAINED)
            + self.datagrams_time(1)
            + self.jitter()
    }

    /// A queue that ends a push.
    fn full(&self) -> Duration {
        (self.length() / 8).clamp(MIN_FULL, MAX_FULL) + self.datagrams_time(2) + self.jitter()
    }

    /// A queue that must not stand.
    fn too_long(&self) -> Duration {
        (self.length() / 3).clamp(MIN_TOO_LONG, MAX_TOO_LONG)
            + self.datagrams_time(2)
            + self.jitter()
    }

    /// Delay that is no queue.
    fn jitter(&self) -> Duration {
        self.noise.min(MAX_JITTER)
    }

    /// By how much the lane pushes: by a quarter, less where a round trip of that makes a long queue,
    /// more while it finds bandwidth and no queue.
    fn push(&self, free: u32) -> f64 {
        match free {
            0 => 1.0 + (PUSH_QUEUE.as_secs_f64() / self.length().as_secs_f64()).clamp(0.06, 0.25),
            1 => 1.25,
            2 => 1.5,
            _ => 2.0,
        }
    }

    /// Makes up for what the path loses of its own accord.
    ///
    /// A little less than all of it: where loss follows the rate, as at a policer, it must not feed
    /// on itself.
    fn loss_factor(&self) -> f64 {
        1.0 / (1.0 - 0.95 * self.model.usual_loss())
    }

    fn cruise(&mut self, now: Instant) {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let rounds = CRUISE_ROUNDS + (mixed >> 32) % CRUISE_SPREAD;
        self.cruising = now;
        self.phase = Phase::Cruise {
            until: self.model.rounds() + rounds,
        };
    }

    fn up(&mut self, now: Instant, delivered: u64) {
        self.model.unbound();
        self.parole = None;
        self.model.begin_round(delivered);
        self.plateau = (self.model.highest_bandwidth(), 0);
        self.phase = Phase::Up {
            since: self.model.rounds(),
            began: now,
            free: 0,
        };
    }

    fn down(&mut self, now: Instant, sample: &Sample) {
        self.model.begin_round(sample.delivered);
        self.phase = Phase::Down {
            since: self.model.rounds(),
            began: now,
            queue: sample.standing.unwrap_or(self.former_queue),
        };
    }

    /// The queue of the last two samples, so that one that jitter held up does not end a push.
    fn queue_seen(&mut self, sample: &Sample) -> Option<Duration> {
        let queue = sample.queue?;
        let seen = queue.min(self.former_queue);
        self.noise = (self.noise * 15 + queue.abs_diff(self.former_queue)) / 16;
        self.former_queue = queue;
        Some(seen)
    }

    fn advance(&mut self, sample: &Sample, ended: Option<&Round>, seen: Option<Duration>) {
        match self.phase {
            Phase::Startup => self.in_startup(sample, ended),
            Phase::Drain {
                since,
                began,
                queue,
                emptied,
            } => self.in_drain(sample, since, began, queue, emptied),
            Phase::Down {
                since,
                began,
                queue,
            } => self.in_down(sample, since, began, queue),
            Phase::Cruise { until } => self.in_cruise(sample, ended, until),
            Phase::Up { since, began, free } => {
                self.in_up(sample, ended, seen, since, began, free);
            }
            Phase::Probe {
                until,
                standing,
                since,
            } => self.in_probe(sample, until, standing, since),
        }
    }

    fn in_down(&mut self, sample: &Sample, since: u64, began: Instant, queue: Duration) {
        let Some(standing) = sample.standing else {
            return;
        };
        let bdp = volume(self.model.bandwidth(), self.length());
        let rounds = self.model.rounds().saturating_sub(since);
        let gone = standing <= self.drained() && (sample.in_flight <= bdp || rounds >= 1);
        let nearly = standing <= self.full() && sample.in_flight <= bdp && rounds >= 1;
        if gone || nearly {
            self.crowded = 0;
            self.cruise(sample.now);
            return;
        }
        if rounds < DOWN_ROUNDS {
            return;
        }
        // Alone at half the rate or a quarter less, a queue shrinks by that share of the time.
        let elapsed = sample.now.saturating_duration_since(began);
        if queue.saturating_sub(standing) >= elapsed / 8 {
            if rounds >= MAX_DOWN_ROUNDS {
                self.cruise(sample.now);
            }
            return;
        }
        if sample.application_limited || standing <= self.full() {
            self.cruise(sample.now);
            return;
        }
        // It was not this lane's queue, and what came while it held back is not its share.
        self.model.unbound();
        self.crowded += 1;
        if self.crowded >= CROWDED {
            self.meet_rivals();
        }
        self.cruise(sample.now);
    }

    fn in_cruise(&mut self, sample: &Sample, ended: Option<&Round>, until: u64) {
        let Some(round) = ended else { return };
        if self.rivalry.is_some() {
            return;
        }
        let stands = round.standing.is_some_and(|queue| queue > self.too_long());
        let congested = stands
            || round.marked > 0
            || (self.model).is_unusual(round.decided, round.lost, LOSS_MARGIN);
        if stands && let Some(rivalry) = self.parole.take() {
            self.enter_rivalry(rivalry);
        } else if congested && !round.limited {
            // While a queue stands, the rate at which packets arrive is this lane's share.
            self.model.bound(round.rate);
            self.down(sample.now, sample);
        } else if self.model.rounds() >= until
            && !sample.application_limited
            && sample.now.saturating_duration_since(self.cruising) >= CRUISE_TIME
        {
            self.up(sample.now, sample.delivered);
        }
    }

    fn in_up(
        &mut self,
        sample: &Sample,
        ended: Option<&Round>,
        seen: Option<Duration>,
        since: u64,
        began: Instant,
        free: u32,
    ) {
        let elapsed = sample.now.saturating_duration_since(began);
        let queue = seen.is_some_and(|queue| queue > self.full()) && elapsed >= self.length() / 2;
        // What was sent when the push began is only now reported.
        let pushed = self.model.rounds() > since;
        let round = self.model.round();
        let lossy = pushed && (self.model).is_unusual(round.decided, round.lost, LOSS_MARGIN);
        let marked = round.marked > 0;
        if queue || lossy || marked {
            self.down(sample.now, sample);
            return;
        }
        let Some(round) = ended else { return };
        if round.limited {
            self.cruise(sample.now);
            return;
        }
        let rounds = self.model.rounds().saturating_sub(since);
        if rounds < 2 {
            return;
        }
        let bandwidth = self.model.highest_bandwidth();
        let grew = bandwidth > self.plateau.0 + self.plateau.0 / 32;
        if grew {
            self.plateau.0 = bandwidth;
            self.phase = Phase::Up {
                since,
                began,
                free: free + 1,
            };
        } else {
            self.plateau.1 += 1;
            if self.plateau.1 >= 2 {
                self.down(sample.now, sample);
            }
        }
    }

    /// Whether the queue was as long as it ever is: in a short one, what others make overflow is not what the path
    /// loses of its own accord.
    fn is_nearly_full(&self, round: &Round) -> bool {
        let longest = self.model.longest_queue();
        // Even jitter goes from nothing to three times its mean difference.
        longest > self.drained() + self.jitter() * 3 && round.longest >= longest * 3 / 4
    }

    /// Time that passes between an arrival and its report, and what bursts need, in bytes.
    fn slack(&self) -> u64 {
        let spacing = (self.length() / 8).clamp(REPORT_SPACING, MAX_REPORT_SPACING);
        volume(self.model.bandwidth(), spacing + BURST_TIME) + 3 * self.datagram
    }

    fn least(&self) -> u64 {
        LEAST_DATAGRAMS * self.datagram
    }

    fn on_round(&mut self, round: &Round) {
        let pushing = match self.phase {
            Phase::Startup | Phase::Up { .. } => true,
            Phase::Drain { .. }
            | Phase::Down { .. }
            | Phase::Cruise { .. }
            | Phase::Probe { .. } => false,
        };
        // Losses are known a round after what caused them.
        let pushing = pushing
            || match self.rivalry {
                Some(_) => round.longest >= self.model.longest_queue() / 2,
                None => round.longest > self.too_long() || self.is_nearly_full(round),
            };
        if !self.pushed && !pushing {
            self.model.on_calm(round);
        }
        self.pushed = pushing;
    }
}

impl Congestion for Bbr {
    fn on_report(&mut self, sample: &Sample) {
        self.smoothed = sample.smoothed_round_trip;
        let ended = self.model.on_sample(sample);
        let seen = self.queue_seen(sample);
        if let Some(round) = &ended {
            self.on_round(round);
        }
        self.in_rivalry(sample, ended.as_ref());
        self.advance(sample, ended.as_ref(), seen);
        let age = self.model.length_age(sample.now);
        let patience = match self.rivalry {
            Some(_) => RIVAL_LENGTH_AGE,
            None => LENGTH_AGE,
        };
        let due = age > patience && !sample.application_limited;
        // The start and its drain tell whose the queue is that hides the path's length; both end soon.
        let may_look = match self.phase {
            Phase::Startup | Phase::Drain { .. } | Phase::Probe { .. } => false,
            Phase::Down { .. } | Phase::Cruise { .. } | Phase::Up { .. } => true,
        };
        if due && may_look {
            self.look(sample);
        }
    }

    fn on_lost(&mut self, sample: &Sample) {
        self.model.on_lost(sample);
    }

    fn on_datagram_size(&mut self, bytes: u64) {
        self.datagram = bytes.clamp(1, MAX_DATAGRAM);
    }

    fn datagram_size(&self) -> u64 {
        self.datagram
    }

    fn window(&self) -> u64 {
        let bandwidth = self.model.bandwidth();
        let filling = |push: f64| {
            // What is lost flies on until it is missed, which is one more round trip.
            let unnoticed = 1.0 + 2.0 * self.model.usual_loss();
            let bdp = volume(bandwidth, self.length()) as f64;
            ((bdp * push * unnoticed) as u64)
                .saturating_add(self.slack() + volume(bandwidth, WINDOW_QUEUE))
        };
        let window = match (self.phase, &self.rivalry) {
            (Phase::Startup, _) => self.start_window(),
            (Phase::Probe { .. }, _) => self.probe_window(),
            (
                Phase::Drain { .. } | Phase::Down { .. } | Phase::Cruise { .. } | Phase::Up { .. },
                Some(rivalry),
            ) => self.place(rivalry),
            (Phase::Up { free, .. }, None) => filling(self.push(free).max(1.25)),
            (Phase::Drain { .. } | Phase::Down { .. } | Phase::Cruise { .. }, None) => {
                filling(1.25)
            }
        };
        window.max(self.least())
    }

    fn pacing_rate(&self) -> u64 {
        let bandwidth = self.model.bandwidth();
        let paced = |gain: f64| gain * bandwidth as f64 * self.loss_factor();
        let rate = match (self.phase, &self.rivalry) {
            (Phase::Startup, _) => self.start_rate(),
            (Phase::Probe { .. }, _) => bandwidth as f64,
            (
                Phase::Drain { .. } | Phase::Down { .. } | Phase::Cruise { .. } | Phase::Up { .. },
                Some(rivalry),
            ) => RIVALRY_GAIN * self.place(rivalry) as f64 / self.smoothed.as_secs_f64().max(1e-6),
            (Phase::Drain { emptied: true, .. } | Phase::Cruise { .. }, None) => paced(1.0),
            (Phase::Drain { emptied: false, .. }, None) => paced(0.5),
            (Phase::Down { since, .. }, None) => {
                let first = self.model.rounds().saturating_sub(since) < 2;
                paced(if first { 0.75 } else { 0.5 })
            }
            (Phase::Up { free, .. }, None) => paced(self.push(free)),
        };
        (rate as u64).max(MIN_RATE)
    }

    fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Startup | Phase::Drain { .. })
            || (self.rivalry.as_ref()).is_some_and(Rivalry::is_starting)
    }

    fn has_rivals(&self) -> bool {
        self.rivalry.is_some()
    }

    fn set_exposed(&mut self, exposed: bool) {
        self.exposed = exposed;
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            state: match self.phase {
                Phase::Startup => "startup",
                Phase::Drain { .. } => "drain",
                Phase::Down { .. } => "down",
                Phase::Cruise { .. } if self.rivalry.is_some() => "rivalry",
                Phase::Cruise { .. } => "cruise",
                Phase::Up { .. } => "up",
                Phase::Probe { .. } => "probe",
            },
            bandwidth: self.model.bandwidth(),
            round_trip: self.length(),
            usual_loss: (self.model.usual_loss() * 1e6) as u32,
            rivalry: self.rivalry.is_some(),
        }
    }
}

/// Bytes of a bandwidth in some time.
fn volume(bandwidth: u64, time: Duration) -> u64 {
    let bytes = u128::from(bandwidth) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Rounds between pushes, and how many more at random, so that lanes do not push together.
const CRUISE_ROUNDS: u64 = 5;
const CRUISE_SPREAD: u64 = 4;

/// And the least time: on a short path a push each few rounds would make a short queue overflow so often that the
/// windows of others never grow.
const CRUISE_TIME: Duration = Duration::from_millis(250);

/// Rounds of holding back after which a queue must have shrunk.
const DOWN_ROUNDS: u64 = 4;
const MAX_DOWN_ROUNDS: u64 = 20;

/// Times in a row that the queue did not shrink, after which others are thought to fill it.
const CROWDED: u32 = 2;

/// Bounds of a queue that counts as none.
const MIN_DRAINED: Duration = Duration::from_micros(1000);
const MAX_DRAINED: Duration = Duration::from_millis(5);

/// Bounds of a queue that ends a push.
const MIN_FULL: Duration = Duration::from_millis(3);
const MAX_FULL: Duration = Duration::from_millis(6);

/// More jitter than this is not told from a queue.
const MAX_JITTER: Duration = Duration::from_millis(10);

/// The queue that a round trip of pushing may make.
const PUSH_QUEUE: Duration = Duration::from_millis(6);

/// Bounds of a queue that must not stand for a whole round while nothing is pushed: below the 20 ms that a
/// user is promised, and on short paths below what one more flow puts there.
const MIN_TOO_LONG: Duration = Duration::from_millis(4);
const MAX_TOO_LONG: Duration = Duration::from_millis(12);

/// Queue for which the window leaves room.
const WINDOW_QUEUE: Duration = Duration::from_millis(15);

/// Loss beyond the usual that is congestion even without delay (BBRv3's LossThresh).
const LOSS_MARGIN: f64 = 0.02;

/// Age of the least round trip after which it is measured again: BBRv1's in general, BBRv3's beside
/// rivals, whose own probes are so spaced.
const LENGTH_AGE: Duration = Duration::from_secs(10);
const RIVAL_LENGTH_AGE: Duration = Duration::from_secs(5);

/// Beside rivals the window sets the rate; pacing only breaks up bursts.
const RIVALRY_GAIN: f64 = 1.2;

/// Reports are an eighth of a round trip apart, within these bounds.
const REPORT_SPACING: Duration = Duration::from_millis(5);
const MAX_REPORT_SPACING: Duration = Duration::from_millis(25);

/// The pacer's burst and as much for timers.
const BURST_TIME: Duration = Duration::from_millis(2);

/// A window of less has no losses that later datagrams would show (BBR's MinPipeCwnd).
const LEAST_DATAGRAMS: u64 = 4;

/// Guesses below this are none.
const MIN_GUESS: Duration = Duration::from_micros(100);

/// A link on which a datagram takes longer is taken for one on which it takes that.
const MAX_DATAGRAM_TIME: Duration = Duration::from_secs(1);

/// The longest UDP payload there is.
const MAX_DATAGRAM: u64 = 65_507;

/// 10 kbit/s: whatever happened, something is sent that may bring news.
const MIN_RATE: u64 = 1250;
