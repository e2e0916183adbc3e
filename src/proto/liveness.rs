//! Whether somebody still answers on a lane: pings, and when to give up.
//!
//! A ping is due when nothing was received for [`LivenessLimits::quiet`], or for
//! [`LivenessLimits::unanswered`] after the first frame that was sent since. Whatever is received
//! counts as an answer. A ping unanswered for [`LivenessLimits::patience`] means the lane is dead:
//! a silent peer is lost after 20 s, or 15 s if there was something to say to it.
//!
//! A datagram lane breaks without a sound, and another may be there to take over, so it is watched
//! more closely, from the first frame that is sent until an answer opens:
//!
//! ```text
//!  sent    q = max(350 ms, 4 RTT)     3q/2        2q                        10 s after the ping
//!   │──────────────▶ ping ─────────▶ ping ──────▶ silent ── ping each s ──▶ dead
//!                                                             3 s if another lane speaks
//! ```
//!
//! Of what opens on a datagram lane, packets, parity and the far end's own questions show only that its way here is open:
//! they answer nothing. Where the way there is cut they may come for many seconds, and the lane is silent all the same. On a
//! stream lane whatever opens is an answer: what carries it tells of a way that is cut.
//!
//! What comes in bursts may end without anything of ours being unanswered: the last of it was acknowledged, and that
//! was reported. So a datagram lane that packets have come on is asked after 1 s of silence, and then after 2, 4 and 8,
//! before it counts as idle.

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
    quick: Option<Quick>,
}

/// What a lane that is watched closely has beside.
#[derive(Clone, Copy, Debug)]
struct Quick {
    rtt: Duration,
    /// Silence after which to ping, if there is nothing to say.
    quiet: Duration,
    /// When the last ping left, of those since `ping`.
    last: Option<Instant>,
    silent: bool,
}

impl Quick {
    fn pause(&self) -> Duration {
        (self.rtt * 4).clamp(QUICK, SLOW)
    }
}

impl Liveness {
    pub(super) fn new(now: Instant, limits: LivenessLimits) -> Self {
        Self {
            limits,
            heard: now,
            said: None,
            ping: None,
            quick: None,
        }
    }

    /// Watches closely from now.
    pub(super) fn quicken(&mut self) {
        self.quick = Some(Quick {
            rtt: Duration::ZERO,
            quiet: self.limits.quiet,
            last: None,
            silent: false,
        });
    }

    /// The round-trip time is known, or changed.
    pub(super) fn handle_rtt(&mut self, rtt: Duration) {
        if let Some(quick) = &mut self.quick {
            quick.rtt = rtt;
        }
    }

    /// Something opened that answers nothing.
    pub(super) fn handle_unasked(&mut self, now: Instant) {
        self.heard = now;
    }

    /// An answer opened; whether the lane had been silent.
    pub(super) fn handle_received(&mut self, now: Instant) -> bool {
        self.heard = now;
        self.said = None;
        self.ping = None;
        match &mut self.quick {
            Some(quick) => {
                quick.last = None;
                std::mem::take(&mut quick.silent)
            }
            None => false,
        }
    }

    /// What opened was a packet. Returns whether the deadline moved.
    pub(super) fn handle_packet(&mut self) -> bool {
        let Some(quick) = &mut self.quick else {
            return false;
        };
        let first = self.limits.quiet.min(QUIET_AFTER_PACKETS);
        std::mem::replace(&mut quick.quiet, first) > first
    }

    /// Silence was reported: once until an answer opens.
    pub(super) fn handle_silent(&mut self) {
        if let Some(quick) = &mut self.quick {
            quick.silent = true;
        }
    }

    /// Whether the lane is silent.
    pub(super) const fn is_silent(&self) -> bool {
        match &self.quick {
            Some(quick) => quick.silent,
            None => false,
        }
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
        let first = self.ping.is_none();
        self.ping.get_or_insert(now);
        if let Some(quick) = &mut self.quick {
            quick.last = Some(now);
            if first {
                quick.quiet = self.limits.quiet.min(quick.quiet * 2);
            }
        }
    }

    /// What is due now; `elsewhere` says that another lane speaks.
    pub(super) fn poll(&self, now: Instant, elsewhere: bool) -> Due {
        if self.dead_at(elsewhere).is_some_and(|at| at <= now) {
            Due::GiveUp
        } else if self.silent_at().is_some_and(|at| at <= now) {
            Due::Silent
        } else if self.ping_at().is_some_and(|at| at <= now) {
            Due::Ping
        } else {
            Due::Nothing
        }
    }

    /// When something will be due, if nothing happens.
    pub(super) fn deadline(&self, elsewhere: bool) -> Instant {
        let times = [self.dead_at(elsewhere), self.silent_at(), self.ping_at()];
        // Without a ping under way one is due, with one the lane is dead some day.
        times.into_iter().flatten().min().unwrap_or(self.heard)
    }

    fn dead_at(&self, elsewhere: bool) -> Option<Instant> {
        let patience = match self.quick {
            Some(_) if elsewhere => self.limits.patience.min(PATIENCE_ELSEWHERE),
            Some(_) | None => self.limits.patience,
        };
        self.ping.map(|ping| ping + patience)
    }

    fn silent_at(&self) -> Option<Instant> {
        let quick = self.quick.as_ref().filter(|quick| !quick.silent)?;
        let ping = self.ping?;
        let since = self.said.map_or(ping, |said| said.min(ping));
        Some(since + quick.pause() * 2)
    }

    fn ping_at(&self) -> Option<Instant> {
        match (self.ping, &self.quick) {
            (Some(ping), Some(quick)) => {
                let second = ping + quick.pause() / 2;
                let last = quick.last.unwrap_or(ping);
                Some(if last < second {
                    second
                } else {
                    last + PING_AGAIN
                })
            }
            (Some(_), None) => None,
            (None, quick) => {
                let (unanswered, quiet) = match quick {
                    Some(quick) => (quick.pause(), quick.quiet),
                    None => (self.limits.unanswered, self.limits.quiet),
                };
                let quiet = self.heard + quiet;
                Some(self.said.map_or(quiet, |said| quiet.min(said + unanswered)))
            }
        }
    }
}

/// What a lane's silence asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// All is well.
    Nothing,
    /// Ask whether anybody is there.
    Ping,
    /// Nobody has answered two pings: say so, and go on asking.
    Silent,
    /// Nobody is.
    GiveUp,
}

/// Shortest time before a datagram lane is asked: a delayed acknowledgement is no silence.
const QUICK: Duration = Duration::from_millis(350);

/// Longest: beyond it a lane is as good as silent, however long its round trip.
const SLOW: Duration = Duration::from_secs(3);

/// Silence after packets: with the pings that follow another lane takes over within two seconds.
const QUIET_AFTER_PACKETS: Duration = Duration::from_secs(1);

/// Between the pings of a silent lane, so that it is known soon when it speaks again.
const PING_AGAIN: Duration = Duration::from_secs(1);

/// Patience with a lane where another speaks.
const PATIENCE_ELSEWHERE: Duration = Duration::from_secs(3);

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
        assert_eq!(liveness.poll(start + secs(9), false), Due::Nothing);
        assert_eq!(liveness.poll(start + secs(10), false), Due::Ping);
        liveness.handle_ping_sent(start + secs(10));
        assert_eq!(liveness.poll(start + secs(19), false), Due::Nothing);
        assert_eq!(liveness.poll(start + secs(20), false), Due::GiveUp);
    }

    #[test]
    fn unanswered_data_brings_the_ping_forward_to_5_s_after_the_first_of_it() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        assert!(liveness.handle_sent(start + secs(1)));
        assert!(!liveness.handle_sent(start + secs(4)));
        assert_eq!(liveness.deadline(false), start + secs(6));
        liveness.handle_received(start + secs(5));
        assert_eq!(liveness.deadline(false), start + secs(15));
    }

    #[test]
    fn a_second_ping_gives_no_more_time() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        liveness.handle_ping_sent(start);
        liveness.handle_ping_sent(start + secs(9));
        assert_eq!(liveness.poll(start + secs(10), false), Due::GiveUp);
    }

    #[test]
    fn anything_received_answers_the_ping() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        liveness.handle_ping_sent(start);
        liveness.handle_received(start + secs(9));
        assert_eq!(liveness.poll(start + secs(18), false), Due::Nothing);
        assert_eq!(liveness.poll(start + secs(19), false), Due::Ping);
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A lane that is watched closely.
    fn watched(start: Instant, rtt: Duration) -> Liveness {
        let mut liveness = Liveness::new(start, LivenessLimits::default());
        liveness.quicken();
        liveness.handle_rtt(rtt);
        liveness
    }

    /// Lets time pass until a ping or silence is due, and does it.
    fn pass(liveness: &mut Liveness) -> Instant {
        let now = liveness.deadline(false);
        match liveness.poll(now, false) {
            Due::Ping => liveness.handle_ping_sent(now),
            Due::Silent => liveness.handle_silent(),
            due @ (Due::Nothing | Due::GiveUp) => panic!("{due:?} at its deadline"),
        }
        now
    }

    #[test]
    fn a_lane_watched_closely_is_silent_700_ms_after_unanswered_data() {
        let start = Instant::now();
        let mut liveness = watched(start, millis(50));
        liveness.handle_sent(start);
        let mut due = Vec::new();
        let mut now = start;
        while now < start + millis(2900) {
            now = pass(&mut liveness);
            due.push(((now - start).as_millis(), liveness.is_silent()));
        }
        assert_eq!(
            due,
            [
                (350, false),
                (525, false),
                (700, true),
                (1525, true),
                (2525, true),
                (3525, true)
            ]
        );
        assert_eq!(liveness.poll(start + millis(3350), true), Due::GiveUp);
        assert!(liveness.handle_received(start + millis(3800)));
        assert!(!liveness.is_silent());
        assert!(!liveness.handle_received(start + millis(3801)));
    }

    #[test]
    fn a_lane_that_packets_came_on_is_asked_soon_and_then_less_and_less() {
        let start = Instant::now();
        let mut liveness = watched(start, millis(50));
        liveness.handle_received(start);
        assert!(liveness.handle_packet());
        assert!(!liveness.handle_packet());
        let mut asked = Vec::new();
        let mut now = start;
        while asked.len() < 6 {
            let before = now;
            now = liveness.deadline(false);
            assert_eq!(liveness.poll(now, false), Due::Ping);
            liveness.handle_ping_sent(now);
            liveness.handle_received(now);
            asked.push((now - before).as_secs());
        }
        assert_eq!(asked, [1, 2, 4, 8, 10, 10]);
        // Cut between two bursts, it is silent within two seconds.
        liveness.handle_packet();
        let cut = now;
        while !liveness.is_silent() {
            now = pass(&mut liveness);
        }
        assert_eq!((now - cut).as_millis(), 1_700);
    }

    #[test]
    fn what_the_far_end_sends_of_its_own_accord_is_no_answer() {
        let start = Instant::now();
        let mut liveness = watched(start, millis(50));
        liveness.handle_sent(start);
        let mut pings = Vec::new();
        let mut now = start;
        let silent = loop {
            now += millis(10);
            liveness.handle_unasked(now);
            match liveness.poll(now, true) {
                Due::Nothing => {}
                Due::Ping => {
                    liveness.handle_ping_sent(now);
                    pings.push((now - start).as_millis());
                }
                Due::Silent => break now - start,
                Due::GiveUp => panic!("at {:?}", now - start),
            }
        };
        assert_eq!((pings, silent.as_millis()), (vec![350, 530], 700));
        liveness.handle_silent();
        liveness.handle_unasked(now);
        assert!(liveness.is_silent());
        assert!(liveness.handle_received(now));
    }

    #[test]
    fn a_long_round_trip_is_waited_for_four_times() {
        let start = Instant::now();
        let mut liveness = watched(start, millis(300));
        liveness.handle_sent(start);
        assert_eq!(liveness.deadline(false), start + millis(1200));
    }
}
