//! Proportional Rate Reduction (RFC 6937): how much leaves for each packet delivered while a loss is repaired.

/// One recovery, counted in packets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    prior_window: u32,
    threshold: u32,
    delivered: u32,
    sent: u32,
    window: u32,
}

impl Reduction {
    /// Begins a recovery that takes the window from `prior_window` to `threshold`.
    pub(super) fn new(prior_window: u32, threshold: u32, in_flight: u32) -> Self {
        Self {
            prior_window,
            threshold,
            delivered: 0,
            sent: 0,
            // the first retransmission leaves at once
            window: in_flight + 1,
        }
    }

    /// Takes note of packets delivered; `progress` says that the acknowledgement advanced and nothing more was found
    /// lost, in which case the reduction may catch up with slow start (Linux, and RFC 6937's SSRB).
    pub(super) fn on_ack(&mut self, delivered: u32, in_flight: u32, progress: bool) {
        self.delivered += delivered;
        let room = i64::from(self.threshold) - i64::from(in_flight);
        let behind = i64::from(self.delivered) - i64::from(self.sent);
        let allowed = if room < 0 {
            let share = (u64::from(self.threshold) * u64::from(self.delivered))
                .div_ceil(u64::from(self.prior_window.max(1)));
            share as i64 - i64::from(self.sent)
        } else {
            (behind.max(i64::from(delivered)) + i64::from(progress)).min(room)
        };
        let allowed = allowed.max(i64::from(self.sent == 0)).max(0);
        self.window = in_flight + u32::try_from(allowed).unwrap_or(u32::MAX - in_flight);
    }

    pub(super) fn on_send(&mut self) {
        self.sent += 1;
    }

    /// The window as it is now.
    pub(super) fn window(&self) -> u32 {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loss_in_a_hundred_leaves_the_window_at_the_threshold() {
        let mut reduction = Reduction::new(100, 70, 96);
        let (mut in_flight, mut sent) = (96u32, 0u32);
        for _ in 0..96 {
            in_flight -= 1;
            reduction.on_ack(1, in_flight, false);
            while in_flight < reduction.window() {
                in_flight += 1;
                sent += 1;
                reduction.on_send();
            }
        }
        assert!((69..=71).contains(&in_flight), "{in_flight}");
        // seven for ten delivered: spread over the round trip, not a pause and then a burst
        assert!((66..=71).contains(&sent), "{sent}");
    }

    #[test]
    fn many_losses_are_followed_by_slow_start_to_the_threshold_and_no_further() {
        let mut reduction = Reduction::new(100, 70, 10);
        let mut in_flight = 10u32;
        for _ in 0..200 {
            in_flight -= 1;
            reduction.on_ack(1, in_flight, true);
            while in_flight < reduction.window() {
                in_flight += 1;
                reduction.on_send();
            }
        }
        assert_eq!(in_flight, 70);
    }
}
