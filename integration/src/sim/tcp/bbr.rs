//! A model of BBR version 1, after tcp_bbr.c: without its detection of policers.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::control::{Acked, Control, INITIAL_WINDOW, Phase};
use crate::link::Random;

/// The state of one connection.
#[derive(Clone, Debug)]
pub(super) struct Bbr {
    mode: Mode,
    random: Random,
    /// The greatest delivery rates of the last ten round trips, falling, each with its round.
    rates: VecDeque<(u64, f64)>,
    round: u64,
    round_ends: u64,
    min_rtt: Option<Duration>,
    min_rtt_at: Instant,
    full_rate: f64,
    full_rounds: u32,
    full: bool,
    window: u32,
    prior_window: u32,
    /// The first round of a recovery sends one packet for each delivered.
    conserving: bool,
    phase: Phase,
    probe_until: Option<Instant>,
    probe_round_done: bool,
    delivered: u64,
    aggregation: Aggregation,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth { index: usize, since: Instant },
    ProbeRoundTrip,
}

/// How much more arrives at once than the rate explains: delayed and compressed acknowledgements.
#[derive(Clone, Copy, Debug)]
struct Aggregation {
    since: Instant,
    acked: u32,
    extra: [u32; 2],
    slot: usize,
    slot_rounds: u32,
}

impl Bbr {
    pub(super) fn new(now: Instant, seed: u64) -> Self {
        Self {
            mode: Mode::Startup,
            random: Random::new(seed),
            rates: VecDeque::new(),
            round: 0,
            round_ends: 0,
            min_rtt: None,
            min_rtt_at: now,
            full_rate: 0.0,
            full_rounds: 0,
            full: false,
            window: INITIAL_WINDOW,
            prior_window: 0,
            conserving: false,
            phase: Phase::Open,
            probe_until: None,
            probe_round_done: false,
            delivered: 0,
            aggregation: Aggregation {
                since: now,
                acked: 0,
                extra: [0; 2],
                slot: 0,
                slot_rounds: 0,
            },
        }
    }

    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// The product of rate and delay, times a gain, in segments, with room for what is sent in bursts.
    fn in_flight_for(&self, gain: f64) -> u32 {
        let Some(min_rtt) = self.min_rtt else {
            return INITIAL_WINDOW;
        };
        let product = self.rate() * min_rtt.as_secs_f64() * gain;
        let target = product.ceil() as u32 + QUANTUM;
        let probing = matches!(self.mode, Mode::ProbeBandwidth { index: 0, .. });
        target + if probing { 2 } else { 0 }
    }

    fn update_rate(&mut self, ack: &Acked) -> bool {
        let Some(sample) = ack.rate else {
            return false;
        };
        let new_round = sample.prior_delivered >= self.round_ends;
        if new_round {
            self.round_ends = ack.total_delivered;
            self.round += 1;
            self.conserving = false;
        }
        if let Some(rate) = sample.rate
            && (!sample.app_limited || rate >= self.rate())
        {
            while self.rates.back().is_some_and(|(_, other)| *other <= rate) {
                self.rates.pop_back();
            }
            self.rates.push_back((self.round, rate));
        }
        while self
            .rates
            .front()
            .is_some_and(|(round, _)| round + RATE_ROUNDS < self.round)
            && self.rates.len() > 1
        {
            self.rates.pop_front();
        }
        new_round
    }

    fn update_aggregation(&mut self, ack: &Acked, new_round: bool) {
        let state = &mut self.aggregation;
        if new_round {
            state.slot_rounds += 1;
            if state.slot_rounds >= AGGREGATION_ROUNDS {
                state.slot_rounds = 0;
                state.slot = 1 - state.slot;
                state.extra[state.slot] = 0;
            }
        }
        let rate = self.rates.front().map_or(0.0, |(_, rate)| *rate);
        let elapsed = ack.now.saturating_duration_since(state.since).as_secs_f64();
        let mut expected = (rate * elapsed) as u32;
        if state.acked <= expected || state.acked > 1 << 20 {
            state.acked = 0;
            state.since = ack.now;
            expected = 0;
        }
        state.acked += ack.delivered;
        let extra = (state.acked - expected.min(state.acked)).min(self.window);
        state.extra[state.slot] = state.extra[state.slot].max(extra);
    }

    /// The extra window for aggregation, at most what 100 ms carry.
    fn aggregation_window(&self) -> u32 {
        if !self.full {
            return 0;
        }
        let [a, b] = self.aggregation.extra;
        a.max(b).min((self.rate() * 0.1) as u32)
    }

    fn check_full(&mut self, ack: &Acked, new_round: bool) {
        let limited = ack.rate.is_some_and(|sample| sample.app_limited);
        if self.full || !new_round || limited {
            return;
        }
        if self.rate() >= self.full_rate * 1.25 {
            self.full_rate = self.rate();
            self.full_rounds = 0;
            return;
        }
        self.full_rounds += 1;
        self.full = self.full_rounds >= 3;
    }

    fn update_mode(&mut self, ack: &Acked) {
        match self.mode {
            Mode::Startup => {
                if self.full {
                    self.mode = Mode::Drain;
                }
            }
            Mode::Drain => {
                if ack.in_flight <= self.in_flight_for(1.0) {
                    self.probe_bandwidth(ack.now);
                }
            }
            Mode::ProbeBandwidth { index, since } => {
                let full_length =
                    ack.now.saturating_duration_since(since) > self.min_rtt.unwrap_or_default();
                let gain = CYCLE[index];
                let next = if gain > 1.0 {
                    full_length && (ack.lost > 0 || ack.in_flight >= self.in_flight_for(gain))
                } else if gain < 1.0 {
                    full_length || ack.in_flight <= self.in_flight_for(1.0)
                } else {
                    full_length
                };
                if next {
                    self.mode = Mode::ProbeBandwidth {
                        index: (index + 1) % CYCLE.len(),
                        since: ack.now,
                    };
                }
            }
            Mode::ProbeRoundTrip => {}
        }
    }

    fn probe_bandwidth(&mut self, now: Instant) {
        // any phase but the draining one
        let index = (2 + self.random.next_u64() as usize % (CYCLE.len() - 1)) % CYCLE.len();
        self.mode = Mode::ProbeBandwidth { index, since: now };
    }

    fn update_min_rtt(&mut self, ack: &Acked, new_round: bool) {
        let expired = ack.now.saturating_duration_since(self.min_rtt_at) > MIN_RTT_WINDOW;
        if let Some(rtt) = ack.rtt
            && (self.min_rtt.is_none_or(|min| rtt <= min) || expired)
        {
            self.min_rtt = Some(rtt);
            self.min_rtt_at = ack.now;
        }
        if expired && self.mode != Mode::ProbeRoundTrip {
            self.mode = Mode::ProbeRoundTrip;
            self.prior_window = self.prior_window.max(self.window);
            self.probe_until = None;
        }
        if self.mode != Mode::ProbeRoundTrip {
            return;
        }
        match self.probe_until {
            None => {
                if ack.in_flight <= MIN_WINDOW {
                    self.probe_until = Some(ack.now + PROBE_FOR);
                    self.probe_round_done = false;
                    self.round_ends = ack.total_delivered;
                }
            }
            Some(until) => {
                self.probe_round_done |= new_round;
                if self.probe_round_done && ack.now > until {
                    self.min_rtt_at = ack.now;
                    self.window = self.window.max(self.prior_window);
                    self.prior_window = 0;
                    if self.full {
                        self.probe_bandwidth(ack.now);
                    } else {
                        self.mode = Mode::Startup;
                    }
                }
            }
        }
    }

    fn update_window(&mut self, ack: &Acked) {
        let mut window = self.window;
        if ack.lost > 0 {
            window = window.saturating_sub(ack.lost).max(1);
        }
        if ack.phase == Phase::Recovery && self.phase != Phase::Recovery {
            self.conserving = true;
            self.round_ends = ack.total_delivered;
            window = ack.in_flight + ack.delivered;
        } else if self.phase != Phase::Open && ack.phase == Phase::Open {
            window = window.max(self.prior_window);
            self.prior_window = 0;
            self.conserving = false;
        }
        self.phase = ack.phase;
        if self.conserving {
            self.window = window.max(ack.in_flight + ack.delivered);
        } else {
            let target = self.in_flight_for(self.window_gain()) + self.aggregation_window();
            if self.full {
                window = (window + ack.delivered).min(target);
            } else if window < target || self.delivered < u64::from(INITIAL_WINDOW) {
                window += ack.delivered;
            }
            self.window = window.max(MIN_WINDOW);
        }
        if self.mode == Mode::ProbeRoundTrip {
            self.window = self.window.min(MIN_WINDOW);
        }
    }

    fn window_gain(&self) -> f64 {
        match self.mode {
            Mode::Startup | Mode::Drain => HIGH_GAIN,
            Mode::ProbeBandwidth { .. } => 2.0,
            Mode::ProbeRoundTrip => 1.0,
        }
    }

    fn pacing_gain(&self) -> f64 {
        match self.mode {
            Mode::Startup => HIGH_GAIN,
            Mode::Drain => 1.0 / HIGH_GAIN,
            Mode::ProbeBandwidth { index, .. } => CYCLE[index],
            Mode::ProbeRoundTrip => 1.0,
        }
    }
}

impl Control for Bbr {
    fn on_ack(&mut self, ack: &Acked) {
        self.delivered = ack.total_delivered;
        let new_round = self.update_rate(ack);
        self.update_aggregation(ack, new_round);
        self.check_full(ack, new_round);
        self.update_mode(ack);
        self.update_min_rtt(ack, new_round);
        self.update_window(ack);
    }

    fn on_loss(&mut self, _now: Instant, _in_flight: u32) {
        self.prior_window = self.prior_window.max(self.window);
    }

    fn on_recovered(&mut self, _now: Instant) {}

    fn on_timeout(&mut self, _now: Instant, _again: bool) {
        self.prior_window = self.prior_window.max(self.window);
        self.window = 1;
        self.full_rate = 0.0;
        self.phase = Phase::Loss;
    }

    fn on_undo(&mut self) {
        self.full_rate = 0.0;
        self.full_rounds = 0;
        self.window = self.window.max(self.prior_window);
        self.prior_window = 0;
    }

    fn window(&self) -> u32 {
        self.window
    }

    fn pacing_rate(&self) -> Option<f64> {
        if self.rate() > 0.0 {
            // a hundredth less than the rate, so that the queue drains
            return Some(self.rate() * self.pacing_gain() * 0.99);
        }
        let rtt = self.min_rtt.unwrap_or(Duration::from_millis(1));
        Some(HIGH_GAIN * f64::from(INITIAL_WINDOW) / rtt.as_secs_f64())
    }

    fn uses_reduction(&self) -> bool {
        false
    }
}

/// 2 / ln 2: the least gain that doubles the rate each round trip.
const HIGH_GAIN: f64 = 2.885;
/// One round trip above the rate, one below, six at it.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// How many round trips the greatest rate is remembered.
const RATE_ROUNDS: u64 = 10;
/// How long the least round trip is believed.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
/// How long the queue is left empty to measure it.
const PROBE_FOR: Duration = Duration::from_millis(200);
/// Enough for one acknowledgement of two segments while another is under way.
const MIN_WINDOW: u32 = 4;
/// What Linux adds for segments that leave together: three bursts of the least size.
const QUANTUM: u32 = 3;
/// How many rounds one half of the memory for aggregation covers.
const AGGREGATION_ROUNDS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tcp::rate::RateSample;

    const RTT: Duration = Duration::from_millis(50);

    fn ack(now: Instant, total: u64, rate: f64, in_flight: u32) -> Acked {
        Acked {
            now,
            delivered: 1,
            lost: 0,
            in_flight,
            total_delivered: total,
            una: total,
            nxt: total,
            rtt: Some(RTT),
            smoothed: Some(RTT),
            rate: Some(RateSample {
                rate: Some(rate),
                prior_delivered: total - 1,
                app_limited: false,
            }),
            window_limited: true,
            phase: Phase::Open,
        }
    }

    #[test]
    fn startup_ends_three_rounds_after_the_rate_stops_growing() {
        let start = Instant::now();
        let mut bbr = Bbr::new(start, 1);
        let mut total = 0;
        for rate in [100.0, 200.0, 400.0, 800.0, 1000.0, 1000.0, 1000.0] {
            total += 1;
            bbr.on_ack(&ack(start, total, rate, 1000));
            assert_eq!(bbr.mode, Mode::Startup);
        }
        total += 1;
        bbr.on_ack(&ack(start, total, 1000.0, 1000));
        assert_eq!(bbr.mode, Mode::Drain);
        assert!(bbr.pacing_rate().unwrap() < 400.0);
    }

    #[test]
    fn greatest_rate_is_forgotten_after_ten_rounds() {
        let start = Instant::now();
        let mut bbr = Bbr::new(start, 1);
        bbr.on_ack(&ack(start, 1, 1000.0, 10));
        for total in 2..=11 {
            bbr.on_ack(&ack(start, total, 500.0, 10));
            assert_eq!(bbr.rate(), 1000.0);
        }
        bbr.on_ack(&ack(start, 12, 500.0, 10));
        assert_eq!(bbr.rate(), 500.0);
    }

    #[test]
    fn round_trip_is_measured_anew_each_ten_seconds() {
        let start = Instant::now();
        let mut bbr = Bbr::new(start, 1);
        bbr.on_ack(&ack(start, 1, 1000.0, 10));
        let mut later = ack(start + Duration::from_secs(11), 2, 1000.0, 50);
        later.rtt = Some(2 * RTT);
        bbr.on_ack(&later);
        assert_eq!(bbr.mode, Mode::ProbeRoundTrip);
        assert_eq!(bbr.window(), MIN_WINDOW);
    }
}
