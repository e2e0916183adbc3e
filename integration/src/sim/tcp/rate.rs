//! Samples of the delivery rate (draft-cheng-iccrg-delivery-rate-estimation), in packets.

use std::time::{Duration, Instant};

/// Counts what was delivered, and says how fast.
#[derive(Clone, Debug)]
pub(super) struct RateSampler {
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    /// Until so many are delivered, samples say what the application wrote and not what the path carries.
    app_limited: u64,
}

/// What was known when a packet was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    app_limited: bool,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateSample {
    /// Packets a second; none if the interval is too short to say.
    pub(super) rate: Option<f64>,
    /// What was delivered when the newest packet acknowledged was sent.
    pub(super) prior_delivered: u64,
    /// The sender had too little to send.
    pub(super) app_limited: bool,
}

impl RateSampler {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            app_limited: 0,
        }
    }

    /// Takes the state to keep with a packet that is sent now.
    pub(super) fn on_send(&mut self, now: Instant, nothing_in_flight: bool) -> Snapshot {
        if nothing_in_flight {
            self.first_sent = now;
            self.delivered_at = now;
        }
        Snapshot {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            app_limited: self.app_limited > 0,
        }
    }

    /// Takes note that the application left the window unused.
    pub(super) fn on_app_limited(&mut self, in_flight: u32) {
        self.app_limited = (self.delivered + u64::from(in_flight)).max(1);
    }

    /// Counts packets delivered; `newest` is the one of them that was sent last.
    pub(super) fn on_delivered(
        &mut self,
        now: Instant,
        packets: u32,
        newest: Option<(Instant, Snapshot)>,
        min_rtt: Option<Duration>,
    ) -> Option<RateSample> {
        if packets > 0 {
            self.delivered += u64::from(packets);
            self.delivered_at = now;
        }
        if self.app_limited > 0 && self.delivered > self.app_limited {
            self.app_limited = 0;
        }
        let (sent, snapshot) = newest?;
        self.first_sent = sent;
        let sending = sent.saturating_duration_since(snapshot.first_sent);
        let acking = now.saturating_duration_since(snapshot.delivered_at);
        let interval = sending.max(acking);
        let long_enough = !interval.is_zero() && min_rtt.is_none_or(|min| interval >= min);
        let count = self.delivered - snapshot.delivered;
        Some(RateSample {
            rate: long_enough.then(|| count as f64 / interval.as_secs_f64()),
            prior_delivered: snapshot.delivered,
            app_limited: snapshot.app_limited,
        })
    }

    /// How many packets were delivered so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn steady_stream_is_measured_at_its_rate() {
        let start = Instant::now();
        let mut sampler = RateSampler::new(start);
        let mut rates = Vec::new();
        let mut sent = Vec::new();
        // a packet each millisecond, acknowledged 50 ms later
        for step in 0..200u32 {
            let now = start + step * MS;
            sent.push((now, sampler.on_send(now, step == 0)));
            if step >= 50 {
                let newest = sent[step as usize - 50];
                let sample = sampler
                    .on_delivered(now, 1, Some(newest), Some(50 * MS))
                    .unwrap();
                rates.extend(sample.rate);
            }
        }
        let last = rates.last().unwrap();
        assert!((last - 1000.0).abs() < 1.0, "{last}");
    }

    #[test]
    fn samples_shorter_than_the_round_trip_say_nothing() {
        let start = Instant::now();
        let mut sampler = RateSampler::new(start);
        let snapshot = sampler.on_send(start, true);
        let sample =
            sampler.on_delivered(start + 10 * MS, 1, Some((start, snapshot)), Some(50 * MS));
        assert_eq!(sample.unwrap().rate, None);
    }

    #[test]
    fn what_is_sent_for_want_of_data_is_marked() {
        let start = Instant::now();
        let mut sampler = RateSampler::new(start);
        sampler.on_app_limited(0);
        let snapshot = sampler.on_send(start, true);
        let sample = sampler
            .on_delivered(start + 50 * MS, 1, Some((start, snapshot)), None)
            .unwrap();
        assert!(sample.app_limited);
        let snapshot = sampler.on_send(start + 60 * MS, true);
        sampler.on_delivered(start + 110 * MS, 1, Some((start + 60 * MS, snapshot)), None);
        let snapshot = sampler.on_send(start + 120 * MS, true);
        let newest = Some((start + 120 * MS, snapshot));
        let sample = sampler
            .on_delivered(start + 170 * MS, 1, newest, None)
            .unwrap();
        assert!(!sample.app_limited);
    }
}
