//! When to say something again that was said on a lane that loses.

use std::time::{Duration, Instant};

/// The schedule of one message: again after a while that doubles, a bounded number of times, until
/// it is answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    next: Option<Instant>,
    said: u32,
}

impl Retry {
    /// The message left at `now`, for the first time or again; `rtt` is that of its lane.
    pub(super) fn handle_sent(&mut self, now: Instant, rtt: Option<Duration>, most: u32) {
        self.said += 1;
        let first = rtt
            .map_or(UNKNOWN, |rtt| rtt * 3 / 2)
            .clamp(SHORTEST, LONGEST);
        let pause = (first * (1 << (self.said - 1).min(4))).min(LONGEST);
        self.next = (self.said < most).then(|| now + pause);
    }

    /// It was answered, or is no longer wanted.
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Takes the deadline if it has come: the message is to be sent again.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.next.take_if(|next| *next <= now).is_some()
    }

    /// When it is due again.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.next
    }
}

/// Times a message is sent in all where an answer is expected: half a minute. What is lost as
/// often as that finds no lane to go by, and whatever made it will make it anew.
pub(super) const UNTIL_ANSWERED: u32 = 16;

/// Times a Close is sent, which nobody answers: with a tenth of all datagrams lost, one session in
/// a thousand has to notice by itself.
pub(super) const CLOSES: u32 = 3;

/// The first pause where no round trip has been measured.
const UNKNOWN: Duration = Duration::from_millis(250);

/// The shortest pause: a reply may cost the other end a key exchange, and be queued.
const SHORTEST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_2_s_and_end() {
        let start = Instant::now();
        let mut retry = Retry::default();
        let mut pauses = Vec::new();
        let mut now = start;
        retry.handle_sent(now, None, UNTIL_ANSWERED);
        while let Some(next) = retry.deadline() {
            assert!(!retry.take_due(now));
            pauses.push((next - now).as_millis());
            now = next;
            assert!(retry.take_due(now));
            assert!(!retry.take_due(now), "once");
            retry.handle_sent(now, None, UNTIL_ANSWERED);
        }
        assert_eq!(pauses[..4], [250, 500, 1000, 2000]);
        assert_eq!(pauses.len(), UNTIL_ANSWERED as usize - 1);
    }

    #[test]
    fn a_measured_lane_is_asked_again_after_one_and_a_half_round_trips() {
        let now = Instant::now();
        let mut retry = Retry::default();
        retry.handle_sent(now, Some(Duration::from_millis(200)), UNTIL_ANSWERED);
        assert_eq!(retry.deadline(), Some(now + Duration::from_millis(300)));
        retry.stop();
        assert_eq!(retry.deadline(), None);
    }
}
