//! Standing one's ground beside flows that keep the queue full: a CUBIC window (RFC 9438).

use std::time::{Duration, Instant};

use crate::proto::delivery::Sample;

/// The window while others keep the queue standing.
///
/// It is CUBIC's, since what one wants beside CUBIC flows is what CUBIC gets. It differs in two ways:
/// it is cut when the queue overflows, not for every loss; and until the first overflow it grows by a
/// quarter each round trip, since what it starts from is what others left.
#[derive(Clone, Debug)]
pub(super) struct Rivalry {
    /// Bytes.
    window: f64,
    /// The window at the last overflow.
    former: f64,
    /// When that was; `None` before the first.
    cut: Option<Instant>,
    /// Seconds from a cut until the window is as before.
    period: f64,
    /// What Reno's window would be.
    reno: f64,
    /// What must be delivered before losses speak of the window as it is.
    recovered: u64,
    /// Datagrams decided and lost in this round, of those sent since the last cut.
    decided: u64,
    lost: u64,
    /// The round trip when this lane holds back, once that was seen: what rivals leave.
    left: Option<Duration>,
    /// Rounds in which there was no queue.
    empty: u32,
    /// The window has reached its bound.
    bounded: bool,
}

impl Rivalry {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window: window as f64,
            former: window as f64,
            cut: None,
            period: 0.0,
            reno: 0.0,
            recovered: 0,
            decided: 0,
            lost: 0,
            left: None,
            empty: 0,
            bounded: false,
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window as u64
    }

    /// Whether the window still grows from what others left to what it may be.
    pub(super) const fn is_starting(&self) -> bool {
        self.cut.is_none() && !self.bounded
    }

    /// Grows, since the window was in use, up to `bound`.
    pub(super) fn on_delivered(&mut self, sample: &Sample, datagram: u64, bound: u64) {
        if sample.prior_delivered < self.recovered {
            return;
        }
        let (now, round_trip) = (sample.now, sample.smoothed_round_trip);
        let bound = bound as f64;
        let datagram = datagram.max(1) as f64;
        let delivered = sample.newly_delivered as f64;
        match self.cut {
            None => self.window += delivered / 4.0,
            Some(cut) => {
                // RFC 9438, section 4.2: the target one round trip ahead.
                let ahead = now.saturating_duration_since(cut) + round_trip;
                let from_plateau = ahead.as_secs_f64() - self.period;
                let target = self.former + SCALE * from_plateau.powi(3) * datagram;
                let target = target.clamp(self.window, self.window * 1.5);
                self.window += (target - self.window) * delivered / self.window.max(datagram);
                // Section 4.3.
                self.reno += RENO_INCREASE * datagram * delivered / self.window.max(datagram);
                self.window = self.window.max(self.reno);
            }
        }
        self.bounded = self.window > bound;
        if self.bounded {
            self.window = bound;
            self.reno = self.reno.min(bound);
        }
        self.window = self.window.max(datagram * MIN_DATAGRAMS);
    }

    /// Counts what was decided; returns how many and how many of them lost since the round began, but
    /// nothing of what was sent before the last cut, which was its reason.
    pub(super) fn on_sample(&mut self, sample: &Sample) -> (u64, u64) {
        if sample.prior_delivered < self.recovered {
            return (0, 0);
        }
        self.decided += sample.datagrams_decided;
        self.lost += sample.datagrams_lost;
        (self.decided, self.lost)
    }

    /// The queue has overflowed.
    pub(super) fn on_overflow(&mut self, sample: &Sample, datagram: u64) {
        if sample.prior_delivered < self.recovered {
            return;
        }
        let datagram = datagram.max(1) as f64;
        // Section 4.7: a flow that had less than before makes room for a new one.
        let fast = self.cut.is_some() && self.window < self.former;
        self.former = if fast {
            self.window * (1.0 + KEPT) / 2.0
        } else {
            self.window
        };
        self.window = (self.window * KEPT).max(datagram * MIN_DATAGRAMS);
        self.reno = self.window;
        self.period = ((self.former - self.window).max(0.0) / (SCALE * datagram)).cbrt();
        self.cut = Some(sample.now);
        self.recovered = sample.delivered.saturating_add(1);
        (self.decided, self.lost) = (0, 0);
    }

    /// This lane held back, and the round trip was that. What it loses while it takes its place again is
    /// no sign that the window is too large.
    pub(super) const fn on_look(&mut self, sample: &Sample, round_trip: Duration) {
        self.left = Some(round_trip);
        self.recovered = sample.delivered.saturating_add(self.window as u64);
    }

    /// The round trip that rivals leave, once it is known.
    pub(super) const fn left(&self) -> Option<Duration> {
        self.left
    }

    /// Ends a round. Returns whether the queue was gone for so long that there is no rival any more.
    pub(super) const fn on_round(&mut self, queue_gone: bool) -> bool {
        (self.decided, self.lost) = (0, 0);
        self.empty = if queue_gone { self.empty + 1 } else { 0 };
        self.empty >= EMPTY_ROUNDS
    }
}

/// CUBIC's C, in datagrams per second cubed (RFC 9438, section 5.1).
const SCALE: f64 = 0.4;

/// CUBIC's beta: what is left of the window after a cut (section 4.6).
const KEPT: f64 = 0.7;

/// Reno's increase that matches this beta: 3 (1 − β) / (1 + β) (section 4.3).
const RENO_INCREASE: f64 = 3.0 * (1.0 - KEPT) / (1.0 + KEPT);

/// A window of less has no losses that later datagrams would show.
const MIN_DATAGRAMS: f64 = 4.0;

/// A CUBIC flow that has just cut its window leaves the queue empty for a moment only.
const EMPTY_ROUNDS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_until_the_window_reaches_its_bound_or_the_queue_overflows() {
        let mut sample = Sample::new(Instant::now());
        sample.newly_delivered = 10_000;
        let mut rivalry = Rivalry::new(100_000);
        rivalry.on_delivered(&sample, 1_400, u64::MAX);
        assert!(rivalry.is_starting());
        let mut other = rivalry.clone();
        rivalry.on_delivered(&sample, 1_400, 50_000);
        assert!(!rivalry.is_starting());
        other.on_overflow(&sample, 1_400);
        assert!(!other.is_starting());
    }
}
