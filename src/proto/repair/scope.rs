//! What is repaired at all: not what the flows inside had better see for themselves.
//!
//! Repair pays where a flow slows down for a loss that says nothing of the queue. Two things tell that it does not:
//!
//! - **Rivals keep the queue full**, and what it drops is how all who share it are told to send less. Hidden from the
//!   flows inside, it leaves the lane alone to hold back for them, once for every loss of any of its flows and a report
//!   later than they would. Their own congestion control does that better, and gets what its like get. So beside rivals
//!   losses are left to them, unless the link loses enough of its own accord that this would decide what they get.
//! - **Our own queue drops** much of what they send, and they send no less: parity takes the place of packets, and spares
//!   nobody anything. What is lost is still sent again, which costs no more than their doing so.
//!
//! Packets of our own stack are not left to themselves: it is a weak sender over losses.

use std::time::{Duration, Instant};

use adit_fec::Mode;

/// What is repaired in a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairScope {
    /// All, by copies, parity and resends, as the redundancy controller asks for.
    All,
    /// All, but without parity.
    Resends,
    /// Thin packets, by their copies; where repair is off, nothing.
    Copies,
}

/// What there is to judge by.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Wire packets that the queue in front of the lane has let go, ever.
    pub sent: u64,
    /// Those that it has dropped to tell their senders that it stands, ever.
    pub dropped: u64,
    /// Packets that came from our own stack, ever.
    pub own: u64,
    /// Whether others keep the path's queue full.
    pub rivals: bool,
    /// Datagrams that the lane's share of the path keeps in flight.
    pub flying: f64,
    /// The share of datagrams that the link loses of its own accord.
    pub loss: f64,
}

/// Decides on the scope of repair in one direction.
#[derive(Debug)]
pub struct ScopeJudge {
    mode: Mode,
    scope: RepairScope,
    judged: Instant,
    /// What was counted when it was judged last.
    sent: u64,
    dropped: u64,
    own: u64,
    /// When our own stack sent last.
    own_at: Option<Instant>,
    /// Packets let go and dropped lately.
    recent_sent: f64,
    recent_dropped: f64,
}

impl ScopeJudge {
    /// Begins with what the mode says.
    #[must_use]
    pub fn new(now: Instant, mode: Mode) -> Self {
        let scope = match mode {
            Mode::Auto | Mode::Fixed { .. } => RepairScope::All,
            Mode::Off => RepairScope::Copies,
        };
        Self {
            mode,
            scope,
            judged: now,
            sent: 0,
            dropped: 0,
            own: 0,
            own_at: None,
            recent_sent: 0.0,
            recent_dropped: 0.0,
        }
    }

    /// Judges anew, each time that the lane with the packets was reported on.
    pub fn judge(&mut self, now: Instant, circumstances: &Circumstances) {
        self.count(now, circumstances);
        self.scope = match self.mode {
            Mode::Off => RepairScope::Copies,
            Mode::Fixed { .. } => RepairScope::All,
            Mode::Auto if circumstances.rivals && self.may_leave(now, circumstances) => {
                RepairScope::Copies
            }
            Mode::Auto if self.drops_much() => RepairScope::Resends,
            Mode::Auto => RepairScope::All,
        };
    }

    /// The scope of what is sent now.
    #[must_use]
    pub fn scope(&self) -> RepairScope {
        self.scope
    }

    fn count(&mut self, now: Instant, circumstances: &Circumstances) {
        let elapsed = now.saturating_duration_since(self.judged);
        let keep = (-elapsed.as_secs_f64() / HORIZON.as_secs_f64()).exp();
        let news = |now: u64, before: u64| now.saturating_sub(before) as f64;
        // Long ago there was a lane of another kind, and nothing to judge.
        self.recent_sent = (self.recent_sent + news(circumstances.sent, self.sent)) * keep;
        self.recent_dropped =
            (self.recent_dropped + news(circumstances.dropped, self.dropped)) * keep;
        if circumstances.own > self.own {
            self.own_at = Some(now);
        }
        self.judged = self.judged.max(now);
        (self.sent, self.dropped) = (circumstances.sent, circumstances.dropped);
        self.own = circumstances.own;
    }

    /// Whether losses can be left to the flows inside: the link's own would let them have a larger window than they
    /// have beside their rivals.
    fn may_leave(&self, now: Instant, circumstances: &Circumstances) -> bool {
        let own = (self.own_at).is_some_and(|at| now.saturating_duration_since(at) < HORIZON);
        let most = match self.scope {
            RepairScope::Copies => LOSSES_PER_WINDOWS_STAY,
            RepairScope::All | RepairScope::Resends => LOSSES_PER_WINDOWS,
        };
        !own && circumstances.flying * circumstances.flying * circumstances.loss <= most
    }

    fn drops_much(&self) -> bool {
        let (few, much) = match self.scope {
            RepairScope::Resends => (FEW_DROPS_STAY, MUCH_STAYS),
            RepairScope::All | RepairScope::Copies => (FEW_DROPS, MUCH),
        };
        self.recent_dropped > few && self.recent_dropped > much * self.recent_sent
    }
}

/// Drops are counted over this time: some of CoDel's intervals on a long path.
const HORIZON: Duration = Duration::from_secs(4);

/// Fewer drops are chance.
const FEW_DROPS: f64 = 10.0;

/// And fewer than this that they have ended, once there were more.
const FEW_DROPS_STAY: f64 = 5.0;

/// The share dropped of what is sent beyond which flows do not slow down for it. CUBIC flows through links of 1 to 180
/// Mbit/s have up to 1.7 %, and the more the slower the link; BBR flows on slow links 5 to 10 %.
const MUCH: f64 = 0.02;

/// And the share below which they do again: at drops of about that share parity would come and go.
const MUCH_STAYS: f64 = 0.015;

/// A flow that losses at random alone hold back has a window whose square times their share is 1.5 (Mathis et al. 1997),
/// CUBIC a larger one: it is left to itself while its place beside rivals is below six tenths of that.
const LOSSES_PER_WINDOWS: f64 = 0.5;

/// And until it is above eight tenths.
const LOSSES_PER_WINDOWS_STAY: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;

    const RIVALS: Circumstances = Circumstances {
        sent: 0,
        dropped: 0,
        own: 0,
        rivals: true,
        flying: 50.0,
        loss: 0.0,
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What is judged of the same circumstances for a second.
    fn judged(mode: Mode, circumstances: &Circumstances) -> RepairScope {
        let start = Instant::now();
        let mut judge = ScopeJudge::new(start, mode);
        for at in (0..1_000).step_by(20) {
            judge.judge(start + ms(at), circumstances);
        }
        judge.scope()
    }

    #[test]
    fn beside_rivals_losses_are_left_to_the_flows_unless_the_link_loses_much() {
        assert_eq!(judged(Mode::Auto, &RIVALS), RepairScope::Copies);
        let alone = Circumstances {
            rivals: false,
            ..RIVALS
        };
        assert_eq!(judged(Mode::Auto, &alone), RepairScope::All);
        let lossy = Circumstances {
            loss: 0.003,
            ..RIVALS
        };
        assert_eq!(judged(Mode::Auto, &lossy), RepairScope::All);
        let small = Circumstances {
            flying: 10.0,
            ..lossy
        };
        assert_eq!(judged(Mode::Auto, &small), RepairScope::Copies);
    }

    #[test]
    fn packets_of_our_own_stack_are_repaired_until_it_has_been_silent_for_4_s() {
        let start = Instant::now();
        let mut judge = ScopeJudge::new(start, Mode::Auto);
        let ours = Circumstances { own: 1, ..RIVALS };
        judge.judge(start, &ours);
        judge.judge(start + ms(3_999), &ours);
        assert_eq!(judge.scope(), RepairScope::All);
        judge.judge(start + ms(4_000), &ours);
        assert_eq!(judge.scope(), RepairScope::Copies);
    }

    #[test]
    fn parity_rests_while_the_queue_drops_more_than_2_percent() {
        for (dropped, scope) in [(1, RepairScope::All), (3, RepairScope::Resends)] {
            let start = Instant::now();
            let mut judge = ScopeJudge::new(start, Mode::Auto);
            let mut circumstances = Circumstances {
                rivals: false,
                ..RIVALS
            };
            for at in (0..2_000).step_by(20) {
                circumstances.sent += 100;
                circumstances.dropped += dropped;
                judge.judge(start + ms(at), &circumstances);
            }
            assert_eq!(judge.scope(), scope, "{dropped} of 100");
            // Nothing was dropped for long.
            for at in (2_000..12_000).step_by(20) {
                circumstances.sent += 100;
                judge.judge(start + ms(at), &circumstances);
            }
            assert_eq!(judge.scope(), RepairScope::All);
        }
    }

    #[test]
    fn parity_does_not_come_and_go_with_drops_of_about_2_percent() {
        let start = Instant::now();
        let mut judge = ScopeJudge::new(start, Mode::Auto);
        let mut circumstances = Circumstances {
            rivals: false,
            ..RIVALS
        };
        let (mut changes, mut scope) = (0, judge.scope());
        for at in (0..30_000).step_by(20) {
            circumstances.sent += 200;
            // Seconds of 2.5 % and of 1.5 %.
            circumstances.dropped += if at / 1_000 % 2 == 0 { 5 } else { 3 };
            judge.judge(start + ms(at), &circumstances);
            changes += u32::from(judge.scope() != scope);
            scope = judge.scope();
        }
        assert_eq!((changes, scope), (1, RepairScope::Resends));
    }

    #[test]
    fn what_the_queue_dropped_while_nothing_was_judged_counts_as_long_ago() {
        let start = Instant::now();
        let mut judge = ScopeJudge::new(start, Mode::Auto);
        let later = Circumstances {
            sent: 10_000,
            dropped: 1_000,
            rivals: false,
            ..RIVALS
        };
        judge.judge(start + ms(60_000), &later);
        assert_eq!(judge.scope(), RepairScope::All);
    }

    #[test]
    fn what_the_settings_fix_stays() {
        let fixed = Mode::Fixed {
            repairs: 1,
            sources: 10,
            span: 20,
        };
        let alone = Circumstances {
            rivals: false,
            ..RIVALS
        };
        assert_eq!(judged(fixed, &RIVALS), RepairScope::All);
        assert_eq!(judged(Mode::Off, &alone), RepairScope::Copies);
        let judge = ScopeJudge::new(Instant::now(), Mode::Off);
        assert_eq!(judge.scope(), RepairScope::Copies);
    }
}
