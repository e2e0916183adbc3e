//! Holding back to see how long the path is, and what others leave of its queue.

use std::time::{Duration, Instant};

use super::{Bbr, Phase, volume};
use crate::proto::delivery::Sample;

impl Bbr {
    pub(super) fn look(&mut self, sample: &Sample) {
        self.model.begin_round(sample.delivered);
        self.phase = Phase::Probe {
            until: None,
            standing: None,
            since: self.model.rounds(),
        };
    }

    pub(super) fn in_probe(
        &mut self,
        sample: &Sample,
        until: Option<Instant>,
        standing: Option<Duration>,
        since: u64,
    ) {
        let Some(end) = until else {
            if sample.in_flight <= self.probe_window() {
                self.model.remeasure_length(sample.now);
                self.model.begin_round(sample.delivered);
                self.phase = Phase::Probe {
                    until: Some(sample.now + PROBE_TIME.max(self.smoothed)),
                    standing: None,
                    since: self.model.rounds(),
                };
            } else if self.model.rounds() > since + PROBE_PATIENCE {
                self.model.remeasure_length(sample.now);
                self.cruise(sample.now);
            }
            return;
        };
        let least = match (standing, sample.queue) {
            (Some(least), Some(queue)) => Some(least.min(queue)),
            (least, queue) => least.or(queue),
        };
        if sample.now < end {
            self.phase = Phase::Probe {
                until,
                standing: least,
                since,
            };
            return;
        }
        if least.is_some_and(|queue| queue <= self.drained()) {
            self.leave_rivalry();
        }
        let length = self.length();
        if let Some(rivalry) = &mut self.rivalry {
            rivalry.on_look(sample, length);
        }
        self.cruise(sample.now);
    }

    pub(super) fn probe_window(&self) -> u64 {
        let bdp = volume(self.model.bandwidth(), self.length());
        (bdp / 2).max(self.least())
    }
}

/// How long the lane holds back (BBR's ProbeRTTDuration), and rounds after which it is given up.
const PROBE_TIME: Duration = Duration::from_millis(200);
const PROBE_PATIENCE: u64 = 4;
