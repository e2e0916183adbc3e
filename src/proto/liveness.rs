//! Whether somebody still answers on a lane: pings, and when to give up.
//!
//! A ping is due when nothing was received for [`LivenessLimits::quiet`], or for
//! [`LivenessLimits::unanswered`] after the first frame that was sent since. Whatever is received
//! counts as an answer. A ping unanswered for [`LivenessLimits::patience`] means the lane is dead:
//! a silent peer is lost after 20 s, or 15 s if there was something to say to it.

use std::time::{Duration, Instant};

/// When to ping, and when to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessLimits {
    /// Silence after which to ping.
    pub quiet: Duration,
    /// The same while something that was sent is unanswered.
    pub unanswered: Duration,
    /// How long a ping may go unanswered.
    pub patience: Duration,
}

impl Default for LivenessLimits {
    /// 10 s, 5 s, 10 s: below the 30 s after which the worst NATs forget a mapping.
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(10),
            unanswered: Duration::from_secs(5),
            patience: Duration::from_secs(10),
        }
    }
}

/// The state of one lane.
#[derive(Clone, Debug)]
pub(super) struct Liveness {
    limits: LivenessLimits,
    heard: Instant,
    said: Option<Instant>,
    ping: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(now: Instant, limits: LivenessLimits) -> Self {
        Self {
            limits,
            heard: now,
            said: None,
            ping: None,
        }
    }

    /// Something opened.
    pub(super) fn handle_received(&mut self, now: Instant) {
        self.heard = now;
        self.said = None;
        self.ping = None;
    }

    /// Something was sent that wants an answer. Returns whether the deadline moved.
    pub(super) fn handle_sent(&mut self, now: Instant) -> bool {
        let first = self.said.is_none();
        if first {
            self.said = Some(now);
        }
        first
    }

    /// A ping, or a challenge that must be answered like one, is on its way.
    pub(super) fn handle_ping_sent(&mut self, now: Instant) {
        self.ping.get_or_insert(now);
    }

    /// What is due now.
    pub(super) fn poll(&self, now: Instant) -> Due {
        if now < self.deadline() {
            return Due::Nothing;
        }
        match self.ping {
            Some(_) => Due::GiveUp,
            None => Due::Ping,
        }
    }

    /// When something will be due, if nothing happens.
    pub(super) fn deadline(&self) -> Instant {
        if let Some(ping) = self.ping {
            return ping + self.limits.patience;
        }
        let quiet = self.heard + self.limits.quiet;
        self.said
            .map_or(quiet, |said| quiet.min(said + self.limits.unanswered))
    }
}

/// What a lane's silence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// All is well.
    Nothing,
    /// Ask whether anybody is there.
    Ping,
    /// Nobody is.
    GiveUp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_silent_peer_is_given_up_after_20_s() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        assert_eq!(liveness.poll(start + secs(9)), Due::Nothing);
        assert_eq!(liveness.poll(start + secs(10)), Due::Ping);
        liveness.handle_ping_sent(start + secs(10));
        assert_eq!(liveness.poll(start + secs(19)), Due::Nothing);
        assert_eq!(liveness.poll(start + secs(20)), Due::GiveUp);
    }

    #[test]
    fn unanswered_data_brings_the_ping_forward_to_5_s_after_the_first_of_it() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        assert!(liveness.handle_sent(start + secs(1)));
        assert!(!liveness.handle_sent(start + secs(4)));
        assert_eq!(liveness.deadline(), start + secs(6));
        liveness.handle_received(start + secs(5));
        assert_eq!(liveness.deadline(), start + secs(15));
    }

    #[test]
    fn a_second_ping_gives_no_more_time() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        liveness.handle_ping_sent(start);
        liveness.handle_ping_sent(start + secs(9));
        assert_eq!(liveness.poll(start + secs(10)), Due::GiveUp);
    }

    #[test]
    fn anything_received_answers_the_ping() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        liveness.handle_ping_sent(start);
        liveness.handle_received(start + secs(9));
        assert_eq!(liveness.poll(start + secs(18)), Due::Nothing);
        assert_eq!(liveness.poll(start + secs(19)), Due::Ping);
    }
}
