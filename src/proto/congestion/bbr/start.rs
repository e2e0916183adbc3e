//! The start: how it ends, and whose the queue is that it met.

use std::time::{Duration, Instant};

use super::flood::Flood;
use super::{Bbr, Phase, volume};
use crate::proto::congestion::model::Round;
use crate::proto::delivery::Sample;

/// What is kept while starting.
#[derive(Clone, Debug)]
pub(super) struct Start {
    /// Bytes that may fly.
    window: u64,
    flood: Flood,
    /// The round in which the queue began to stand.
    stands_since: Option<u64>,
}

impl Start {
    pub(super) fn new(datagram: u64) -> Self {
        Self {
            window: INITIAL_DATAGRAMS * datagram,
            flood: Flood::default(),
            stands_since: None,
        }
    }
}

impl Bbr {
    pub(super) fn in_startup(&mut self, sample: &Sample, ended: Option<&Round>) {
        // An application whose window grows slowly never fills a lane that may send at twice what it has seen, but it
        // does fill the link. A lane that has carried less than its first window has hardly made the queue, unless it
        // stays with that: the window may be more than a slow link and its queue hold.
        let initial = INITIAL_DATAGRAMS * self.datagram;
        let rounds = self.model.rounds();
        let queue = sample.standing.is_some_and(|queue| queue > self.full());
        if queue {
            self.start.stands_since.get_or_insert(rounds);
        } else if sample.standing.is_some() {
            self.start.stands_since = None;
        }
        let own = !sample.application_limited
            || volume(self.model.bandwidth(), self.length()) > initial
            || (self.start.stands_since).is_some_and(|since| rounds >= since + PATIENT_ROUNDS);
        if queue && own && rounds > 1 {
            self.drain(sample);
            return;
        }
        if ended.is_some_and(|round| self.start.flood.on_round(round)) {
            self.drain(sample);
            return;
        }
        if sample.application_limited {
            return;
        }
        self.start.window = self.start.window.saturating_add(sample.newly_delivered);
        let Some(round) = ended else { return };
        let bandwidth = self.model.highest_bandwidth();
        if bandwidth > self.plateau.0 + self.plateau.0 / 4 {
            self.plateau = (bandwidth, 0);
            return;
        }
        // A shallow queue overflows without delay; what is lost beyond chance shows it sooner.
        let heavy = round.lost * 4 > round.decided && round.decided > 20;
        self.plateau.1 += if heavy { 2 } else { 1 };
        if self.plateau.1 >= PLATEAU_ROUNDS {
            self.drain(sample);
        }
    }

    /// Bytes that may fly while starting.
    pub(super) fn start_window(&self) -> u64 {
        let model = volume(self.model.bandwidth(), self.length()).saturating_mul(2);
        let initial = INITIAL_DATAGRAMS * self.datagram;
        self.start
            .window
            .min(model.max(initial).saturating_add(self.slack()))
    }

    /// Bytes per second while starting. What the application has sent so far may be all the bandwidth there seems to be:
    /// until the path is known to be full the rate does not fall (draft-ietf-ccwg-bbr, section "Pacing Rate").
    pub(super) fn start_rate(&self) -> f64 {
        let bytes = (INITIAL_DATAGRAMS * self.datagram) as f64;
        let initial = STARTUP_GAIN * bytes / self.length().as_secs_f64().max(1e-6);
        initial.max(STARTUP_GAIN * self.model.bandwidth() as f64)
    }

    fn drain(&mut self, sample: &Sample) {
        self.model.begin_round(sample.delivered);
        self.phase = Phase::Drain {
            since: self.model.rounds(),
            began: sample.now,
            queue: sample.standing.unwrap_or(self.former_queue),
            emptied: false,
        };
    }

    /// The start has met a queue. If it is the lane's own, it goes as the lane holds back; if it stays, others are
    /// there, and what the lane waits longer is what its flows lose to them for many seconds.
    pub(super) fn in_drain(
        &mut self,
        sample: &Sample,
        since: u64,
        began: Instant,
        queue: Duration,
        emptied: bool,
    ) {
        let rounds = self.model.rounds().saturating_sub(since);
        let elapsed = sample.now.saturating_duration_since(began);
        let standing = sample.standing.unwrap_or(self.former_queue);
        let shrinks = queue.saturating_sub(standing) >= elapsed / 8;
        let short = standing <= self.full();
        let bdp = volume(self.model.bandwidth(), self.length());
        let emptied = emptied || sample.in_flight <= bdp;
        if standing <= self.drained() || emptied && (shrinks || short) || rounds >= DRAIN_ROUNDS {
            self.cruise(sample.now);
        } else if rounds >= TOLD_ROUNDS && !shrinks && !short && !sample.application_limited {
            self.meet_rivals();
            self.cruise(sample.now);
        } else {
            self.phase = Phase::Drain {
                since,
                began,
                queue,
                emptied,
            };
        }
    }
}

/// Datagrams that may fly before anything is known, as QUIC's and TCP's ten segments are for links of 2013.
pub const INITIAL_DATAGRAMS: u64 = 32;

/// Doubles the rate each round trip: 4 ln 2 (draft-ietf-ccwg-bbr, section "Startup").
const STARTUP_GAIN: f64 = 2.77;

/// Rounds without a quarter more bandwidth after which the path is full (same draft).
const PLATEAU_ROUNDS: u32 = 3;

/// Rounds of standing after which a queue is the lane's, however little it carries.
pub(super) const PATIENT_ROUNDS: u64 = 16;

/// A drain that has not ended by then never will: others have taken the place.
const DRAIN_ROUNDS: u64 = 4;

/// Rounds after which a drain at half the rate must be seen to shrink a queue of the lane's own: the first is that of
/// what was sent before.
const TOLD_ROUNDS: u64 = 2;
