//! Beside rivals: from when they are met until they have left.

use super::{Bbr, Phase, volume};
use crate::proto::congestion::model::Round;
use crate::proto::congestion::rivalry::Rivalry;
use crate::proto::delivery::Sample;

impl Bbr {
    pub(super) fn meet_rivals(&mut self) {
        let rate = self.model.highest_bandwidth();
        let window = volume(rate, self.smoothed).max(self.least());
        self.enter_rivalry(Rivalry::new(window));
    }

    pub(super) fn enter_rivalry(&mut self, rivalry: Rivalry) {
        self.model.unbound();
        self.rivalry = Some(rivalry);
    }

    /// The queue was gone when this lane held back. That may have been for this lane's share of it: if it
    /// comes back before anything was pushed, the rivals are still there.
    pub(super) fn leave_rivalry(&mut self) {
        let share = self.model.highest_bandwidth();
        self.model.bound(share - share / 10);
        self.parole = self.rivalry.take();
        self.crowded = 0;
    }

    pub(super) fn in_rivalry(&mut self, sample: &Sample, ended: Option<&Round>) {
        let probing = matches!(self.phase, Phase::Probe { .. });
        let bandwidth = self.model.highest_bandwidth();
        let longest = self.model.longest_queue();
        let full = self.model.round().longest >= longest * 3 / 4 && longest > self.full();
        let (slack, drained) = (self.slack(), self.drained());
        let Some(rivalry) = &mut self.rivalry else {
            return;
        };
        let bound = rivalry.left().map_or(u64::MAX, |left| {
            (volume(bandwidth, left).saturating_mul(2)).saturating_add(slack)
        });
        let used = sample.sent_in_flight.saturating_mul(4) >= rivalry.window().saturating_mul(3);
        if used && !probing && !sample.application_limited {
            rivalry.on_delivered(sample, self.datagram, bound);
        }
        let (decided, lost) = rivalry.on_sample(sample);
        let overflow = full && self.model.is_unusual(decided, lost, 0.0);
        if (overflow || sample.newly_marked > 0) && !probing {
            rivalry.on_overflow(sample, self.datagram);
        }
        if let Some(round) = ended
            && rivalry.on_round(round.standing.is_some_and(|queue| queue <= drained))
        {
            self.leave_rivalry();
        }
    }

    /// The window beside rivals: where the flows inside take their place themselves, only a bound.
    pub(super) fn place(&self, rivalry: &Rivalry) -> u64 {
        if self.exposed {
            rivalry.window().saturating_mul(EXPOSED_GAIN)
        } else {
            rivalry.window()
        }
    }
}

/// Flows inside that hold back themselves may take as much as two of CUBIC would: an equal share for one of them, and
/// for many what is still fair.
const EXPOSED_GAIN: u64 = 2;
