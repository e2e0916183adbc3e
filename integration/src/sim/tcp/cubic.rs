//! CUBIC (RFC 9438).

use std::time::{Duration, Instant};

use super::{
    control::{Acked, Control, INITIAL_WINDOW, Phase},
    hystart::{Growth, HyStart},
};

/// The state of one connection, in segments.
#[derive(Clone, Debug)]
pub(super) struct Cubic {
    window: f64,
    threshold: f64,
    /// The window before the last reduction; less where it had not come up to the one before (fast convergence).
    w_max: f64,
    epoch: Option<Epoch>,
    hystart: Option<HyStart>,
    before: Option<Before>,
}

/// One growth from a reduction on.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    start: Instant,
    /// Seconds until the curve is flat.
    k: f64,
    origin: f64,
    /// What Reno would have.
    w_est: f64,
}

/// What a reduction that was in vain gives back.
#[derive(Clone, Copy, Debug)]
struct Before {
    window: f64,
    threshold: f64,
    w_max: f64,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Self {
            window: f64::from(INITIAL_WINDOW),
            threshold: f64::INFINITY,
            w_max: 0.0,
            epoch: None,
            hystart: Some(HyStart::new()),
            before: None,
        }
    }

    fn slow_start(&mut self, ack: &Acked) {
        let growth = match self.hystart.as_mut() {
            Some(hystart) => hystart.on_ack(ack.una, ack.nxt, ack.rtt),
            None => Growth::By(1.0),
        };
        match growth {
            Growth::By(factor) => {
                let most = f64::from(ack.delivered.min(BURST));
                self.window = (self.window + most * factor).min(self.threshold.max(self.window));
            }
            Growth::Stop => {
                self.threshold = self.window;
                self.hystart = None;
            }
        }
    }

    /// Section 4.2 to 4.5.
    fn avoid_congestion(&mut self, ack: &Acked) {
        let window = self.window;
        let epoch = *self.epoch.get_or_insert_with(|| {
            let k = ((self.w_max - window).max(0.0) / C).cbrt();
            Epoch {
                start: ack.now,
                k,
                origin: self.w_max.max(window),
                w_est: window,
            }
        });
        let elapsed = ack.now.saturating_duration_since(epoch.start);
        let ahead = elapsed + ack.smoothed.unwrap_or(Duration::ZERO);
        let curve = |t: f64| C * (t - epoch.k).powi(3) + epoch.origin;
        let target = curve(ahead.as_secs_f64()).clamp(window, 1.5 * window);
        let acked = f64::from(ack.delivered);
        let alpha = 3.0 * (1.0 - BETA) / (1.0 + BETA);
        let w_est = epoch.w_est + alpha * acked / window;
        if let Some(epoch) = self.epoch.as_mut() {
            epoch.w_est = w_est;
        }
        self.window = if curve(elapsed.as_secs_f64()) < w_est {
            window.max(w_est)
        } else {
            window + (target - window) / window * acked
        };
    }

    fn reduce(&mut self) {
        self.before = Some(Before {
            window: self.window,
            threshold: self.threshold,
            w_max: self.w_max,
        });
        self.epoch = None;
        self.hystart = None;
        // section 4.7
        self.w_max = if self.window < self.w_max {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.threshold = (self.window * BETA).max(2.0);
    }
}

impl Control for Cubic {
    fn on_ack(&mut self, ack: &Acked) {
        match ack.phase {
            Phase::Open | Phase::Loss => {}
            Phase::Recovery => return,
        }
        if !ack.window_limited || ack.delivered == 0 {
            return;
        }
        if self.window < self.threshold {
            self.slow_start(ack);
        } else {
            self.avoid_congestion(ack);
        }
    }

    fn on_loss(&mut self, _now: Instant, _in_flight: u32) {
        self.reduce();
        self.window = self.threshold;
    }

    fn on_recovered(&mut self, _now: Instant) {}

    fn on_timeout(&mut self, _now: Instant, again: bool) {
        if !again {
            self.reduce();
        }
        self.window = 1.0;
    }

    fn on_undo(&mut self) {
        if let Some(before) = self.before.take() {
            self.window = self.window.max(before.window);
            self.threshold = before.threshold;
            self.w_max = before.w_max;
            self.epoch = None;
        }
    }

    fn window(&self) -> u32 {
        self.window as u32
    }

    fn pacing_rate(&self) -> Option<f64> {
        None
    }

    fn uses_reduction(&self) -> bool {
        true
    }
}

/// Section 5: aggressiveness, in segments a second cubed.
const C: f64 = 0.4;
/// Section 4.6.
const BETA: f64 = 0.7;
/// RFC 9406: L for a sender that does not pace.
const BURST: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    /// Plays `rounds` round trips without loss.
    fn grow(cubic: &mut Cubic, now: &mut Instant, rounds: u32) {
        let mut una = 0;
        for _ in 0..rounds {
            let window = cubic.window();
            for _ in 0..window {
                una += 1;
                *now += RTT / window;
                cubic.on_ack(&Acked {
                    now: *now,
                    delivered: 1,
                    lost: 0,
                    in_flight: window,
                    total_delivered: una,
                    una,
                    nxt: una + u64::from(window),
                    rtt: Some(RTT),
                    smoothed: Some(RTT),
                    rate: None,
                    window_limited: true,
                    phase: Phase::Open,
                });
            }
        }
    }

    #[test]
    fn slow_start_doubles_each_round_trip() {
        let (mut cubic, mut now) = (Cubic::new(), Instant::now());
        grow(&mut cubic, &mut now, 5);
        assert_eq!(cubic.window(), 320);
    }

    #[test]
    fn window_is_back_after_k_seconds_and_flat_around_it() {
        let (mut cubic, mut now) = (Cubic::new(), Instant::now());
        grow(&mut cubic, &mut now, 7);
        let before = cubic.window();
        cubic.on_loss(now, before);
        assert_eq!(cubic.window(), (f64::from(before) * BETA) as u32);
        let k = (f64::from(before) * (1.0 - BETA) / C).cbrt();
        let start = now;
        while now - start < Duration::from_secs_f64(k) {
            grow(&mut cubic, &mut now, 1);
        }
        let ratio = f64::from(cubic.window()) / f64::from(before);
        assert!((0.97..1.03).contains(&ratio), "{ratio}");
    }

    #[test]
    fn small_windows_grow_as_renos_do() {
        let (mut cubic, mut now) = (Cubic::new(), Instant::now());
        grow(&mut cubic, &mut now, 1);
        cubic.on_loss(now, 20);
        let before = cubic.window;
        grow(&mut cubic, &mut now, 10);
        // 0.53 segments a round trip
        let grown = cubic.window - before;
        assert!((4.5..6.5).contains(&grown), "{grown}");
    }

    #[test]
    fn undo_gives_the_window_back() {
        let (mut cubic, mut now) = (Cubic::new(), Instant::now());
        grow(&mut cubic, &mut now, 4);
        let before = cubic.window();
        cubic.on_timeout(now, false);
        assert_eq!(cubic.window(), 1);
        cubic.on_undo();
        assert_eq!(cubic.window(), before);
    }

    #[test]
    fn application_limited_window_does_not_grow() {
        let (mut cubic, now) = (Cubic::new(), Instant::now());
        cubic.on_ack(&Acked {
            now,
            delivered: 5,
            lost: 0,
            in_flight: 0,
            total_delivered: 5,
            una: 5,
            nxt: 5,
            rtt: Some(RTT),
            smoothed: Some(RTT),
            rate: None,
            window_limited: false,
            phase: Phase::Open,
        });
        assert_eq!(cubic.window(), INITIAL_WINDOW);
    }
}
