//! Source numbers that have not come, while it still matters.
//!
//! # Theory of operation
//!
//! Source packets are numbered without holes, so a number above the next expected one leaves a
//! **gap**. Each missing number then goes one way:
//!
//! ```text
//!                     arrives, repaired, or resent
//!            ┌───────────────────────────────────────────▶ filled
//!            │
//!  missing ──┤ [`GapLimits::ask_after`], and again
//!            ├────────────────▶ asked for ─────────────────▶ filled
//!            │                      │
//!            └──────────────────────┴─────────────────────▶ hopeless
//!                     [`GapLimits::give_up_after`]
//! ```
//!
//! Parity usually comes first, which is why a number is asked for only after a while. Each question
//! stands in two reports, should one be lost, and is put again when a round trip brought no answer. Where packets overtake
//! each other it is asked for only after what is late has usually come. A number that is hopeless holds nobody back any
//! more; should it come all the same, it is delivered like any other.
//!
//! The sender keeps so many packets and no more, which on a fast path are few milliseconds' worth. So what so many others
//! have followed that the sender will soon have forgotten it, [`GapLimits::ask_behind`], is asked for at once, and again when
//! as many more have followed and a round trip has passed.
//!
//! # Limits
//!
//! [`MAX_GAPS`] numbers are known as missing. A jump that would make more forgets the oldest,
//! which become hopeless at once: after it there is nothing left to wait for in their order.
//!
//! A missing number belongs to the lane of the packet before it: when a lane dies, what it lost shows on the next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::LaneId;

/// How long a gap is left to parity, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GapLimits {
    /// From when a number is missed until it is asked for.
    pub ask_after: Duration,
    /// From a question to its repetition.
    pub ask_again: Duration,
    /// After how many later numbers one is asked for before its time, and again; never if none.
    pub ask_behind: Option<u64>,
    /// From a question until its answer can have come.
    pub answer_after: Duration,
    /// From when a number is missed until it is hopeless.
    pub give_up_after: Duration,
    /// What comes within this time of being missed was on its way all along: no resend is so quick.
    pub late_within: Duration,
}

/// The missing numbers of one direction.
#[derive(Debug)]
pub struct Gaps {
    limits: GapLimits,
    /// Whether what is missed now is asked for.
    asking: bool,
    /// Where the direction begins.
    first: u64,
    /// The number after the highest that came; `None` after the last there is.
    next: Option<u64>,
    /// The lane that the highest came on.
    lane: Option<LaneId>,
    /// In the order of numbers, which is that of being missed.
    missing: VecDeque<Missing>,
    /// How long after it was missed what was late came, lately at most.
    lateness: Duration,
    /// How many became hopeless, of which lane, and nobody was told yet.
    hopeless: Vec<(LaneId, u64)>,
    asked: u64,
}

impl Gaps {
    /// Knows nothing yet. The direction begins with number `first`.
    #[must_use]
    pub fn new(first: u64, limits: GapLimits) -> Self {
        Self {
            limits,
            asking: true,
            first,
            next: Some(first),
            lane: None,
            missing: VecDeque::new(),
            lateness: Duration::ZERO,
            hopeless: Vec::new(),
            asked: 0,
        }
    }

    /// Changes the limits, of gaps that are open too: they follow the round-trip time.
    pub fn set_limits(&mut self, limits: GapLimits) {
        self.limits = limits;
    }

    /// Gives back what no missing number needs.
    pub fn release_memory(&mut self) {
        self.missing.shrink_to_fit();
    }

    /// Sets whether what is missed from now on is asked for. What is missing when it no longer is, is asked for no more:
    /// its loss was left to others, and is when it is known as such by all.
    pub fn set_asking(&mut self, asking: bool) {
        self.asking = asking;
        if !asking {
            for missing in &mut self.missing {
                missing.questions = MAX_QUESTIONS;
            }
        }
    }

    /// Takes note of a number that parity brought, completed by what came on `lane`; returns the lane that
    /// it was missing on, `None` if it was given up.
    pub fn handle_repaired(&mut self, now: Instant, lane: LaneId, number: u64) -> Option<LaneId> {
        if number < self.next() {
            Some(self.fill(number)?.lane)
        } else {
            self.handle_received(now, lane, number);
            Some(lane)
        }
    }

    /// Takes note of a number that came over a lane, for the first time; returns whether that was before it
    /// was given up.
    pub fn handle_received(&mut self, now: Instant, lane: LaneId, number: u64) -> bool {
        let next = self.next.unwrap_or(number);
        if number < next {
            let filled = self.fill(number);
            if let Some(missing) = filled {
                self.note_lateness(now.saturating_duration_since(missing.since));
            }
            return filled.is_some() || number < self.first;
        }
        let before = self.lane.replace(lane).unwrap_or(lane);
        let gap = number - next;
        let kept = gap.min(MAX_GAPS as u64);
        self.give_up(before, gap - kept);
        for missed in number - kept..number {
            if self.missing.len() == MAX_GAPS {
                self.give_up_oldest();
            }
            self.missing.push_back(Missing {
                number: missed,
                lane: before,
                since: now,
                asked: None,
                followed_from: missed,
                questions: if self.asking { 0 } else { MAX_QUESTIONS },
            });
        }
        self.next = number.checked_add(1);
        true
    }

    /// Takes how many numbers were given up on a lane since the last call. **Call until `None`.**
    pub fn poll_hopeless(&mut self) -> Option<(LaneId, u64)> {
        self.hopeless.pop()
    }

    /// The number after the highest that came.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next.unwrap_or(u64::MAX)
    }

    /// How many numbers are missing and not hopeless.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.missing.len()
    }

    /// Questions since the beginning.
    #[must_use]
    pub const fn asked(&self) -> u64 {
        self.asked
    }

    /// Gives every number that should be asked for at `now` to `ask`, lowest first, until it
    /// answers false; those it took are not due again before [`GapLimits::ask_again`].
    pub fn poll_ask(&mut self, now: Instant, mut ask: impl FnMut(u64) -> bool) {
        let (limits, next) = (self.patient_limits(), self.next());
        for missing in &mut self.missing {
            if missing.ask_at(&limits, next).is_none_or(|at| at > now) {
                continue;
            }
            if !ask(missing.number) {
                return;
            }
            missing.asked = Some(now);
            missing.followed_from = next;
            missing.questions += 1;
            self.asked += 1;
        }
    }

    /// Forgets the numbers that are hopeless by `now`; returns whether there were any.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let before = self.missing.len();
        while let Some(oldest) = self.missing.front()
            && oldest.since + self.limits.give_up_after <= now
        {
            self.give_up_oldest();
        }
        before != self.missing.len()
    }

    /// When the end of a hope is due: [`Gaps::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.missing.front()?.since + self.limits.give_up_after)
    }

    /// When a question is due: [`Gaps::poll_ask`], once a report can be made.
    #[must_use]
    pub fn question_at(&self) -> Option<Instant> {
        let (limits, next) = (self.patient_limits(), self.next());
        self.missing
            .iter()
            .filter_map(|missing| missing.ask_at(&limits, next))
            .min()
    }

    fn give_up_oldest(&mut self) {
        if let Some(oldest) = self.missing.pop_front() {
            self.give_up(oldest.lane, 1);
        }
    }

    /// Counts numbers that nothing will bring.
    pub(super) fn give_up(&mut self, lane: LaneId, numbers: u64) {
        match self.hopeless.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, count)) => *count += numbers,
            None if numbers > 0 => self.hopeless.push((lane, numbers)),
            None => {}
        }
    }

    fn fill(&mut self, number: u64) -> Option<Missing> {
        let at = self.position(number).ok()?;
        self.missing.remove(at)
    }

    /// Learns how far the path reorders: up at once, down with what comes sooner.
    fn note_lateness(&mut self, late: Duration) {
        if late < self.limits.late_within {
            let step = self.lateness.saturating_sub(late) / LATENESS_FADES;
            self.lateness = late.max(self.lateness - step);
        }
    }

    /// The limits, with questions put off where what is missing often just comes later.
    fn patient_limits(&self) -> Patient {
        let patience = (self.lateness * 5 / 4).min(self.limits.late_within);
        Patient {
            limits: GapLimits {
                ask_after: self.limits.ask_after.max(patience),
                ..self.limits
            },
            patience,
        }
    }

    fn position(&self, number: u64) -> Result<usize, usize> {
        self.missing
            .binary_search_by_key(&number, |missing| missing.number)
    }
}

/// The most numbers that are known as missing: a second of 10 % loss at 100 Mbit/s.
pub const MAX_GAPS: usize = 1024;

/// How often a number is asked for: twice, in two reports each time, since a report is lost as often as
/// any packet, and so is the answer to the first question. The answer to a third would come after the hold
/// has ended; where the round trip is shorter than reports are apart, each of the four is a question of its own.
const MAX_QUESTIONS: u8 = 4;

/// From a question to its repetition in a later report. The sender ignores it while its answer flies.
const REPEATED_AFTER: Duration = Duration::from_millis(8);

/// How many that are less late it takes until the latest is nearly forgotten.
const LATENESS_FADES: u32 = 32;

#[derive(Clone, Copy, Debug)]
struct Missing {
    number: u64,
    lane: LaneId,
    since: Instant,
    asked: Option<Instant>,
    /// From where it is counted how many have followed: its own number, or the next when it was asked for last.
    followed_from: u64,
    questions: u8,
}

/// Limits where packets come late.
#[derive(Clone, Copy, Debug)]
struct Patient {
    limits: GapLimits,
    /// How long what is missing may just be late.
    patience: Duration,
}

impl Missing {
    /// When it is asked for, if it is; `next` is the number after the highest that came.
    fn ask_at(&self, Patient { limits, patience }: &Patient, next: u64) -> Option<Instant> {
        if self.questions >= MAX_QUESTIONS {
            return None;
        }
        let in_time = match self.asked {
            None => self.since + limits.ask_after,
            Some(asked) if self.questions % 2 == 1 => asked + REPEATED_AFTER,
            Some(asked) => asked + limits.ask_again,
        };
        let followed = next.saturating_sub(self.followed_from);
        if limits.ask_behind.is_none_or(|behind| followed < behind) {
            return Some(in_time);
        }
        let early = match self.asked {
            None => self.since + *patience,
            Some(asked) => asked + limits.answer_after,
        };
        Some(in_time.min(early))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: GapLimits = GapLimits {
        ask_after: Duration::from_millis(10),
        ask_again: Duration::from_millis(60),
        ask_behind: None,
        answer_after: Duration::from_millis(50),
        give_up_after: Duration::from_millis(150),
        late_within: Duration::from_millis(37),
    };

    const LANE: LaneId = LaneId::FIRST;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn missing(gaps: &Gaps) -> Vec<u64> {
        gaps.missing.iter().map(|missing| missing.number).collect()
    }

    fn asked(gaps: &mut Gaps, now: Instant) -> Vec<u64> {
        let mut numbers = Vec::new();
        gaps.poll_ask(now, |number| {
            numbers.push(number);
            true
        });
        numbers
    }

    #[test]
    fn numbers_in_order_leave_no_gap() {
        let now = Instant::now();
        let mut gaps = Gaps::new(0, LIMITS);
        for number in 0..100 {
            gaps.handle_received(now, LANE, number);
        }
        assert_eq!(gaps.len(), 0);
        assert_eq!((gaps.poll_timeout(), gaps.question_at()), (None, None));
    }

    #[test]
    fn a_gap_is_asked_for_twice_in_two_reports_and_given_up_after_150_ms() {
        let start = Instant::now();
        let mut gaps = Gaps::new(0, LIMITS);
        gaps.handle_received(start, LANE, 0);
        gaps.handle_received(start, LANE, 3);
        assert_eq!(missing(&gaps), [1, 2]);
        assert_eq!(gaps.question_at(), Some(start + ms(10)));
        assert_eq!(asked(&mut gaps, start + ms(9)), [0; 0]);
        assert_eq!(asked(&mut gaps, start + ms(10)), [1, 2]);
        assert_eq!(asked(&mut gaps, start + ms(17)), [0; 0]);
        assert_eq!(asked(&mut gaps, start + ms(18)), [1, 2]);
        assert_eq!(asked(&mut gaps, start + ms(77)), [0; 0]);
        gaps.handle_received(start + ms(77), LANE, 2);
        assert_eq!(asked(&mut gaps, start + ms(78)), [1]);
        assert_eq!(asked(&mut gaps, start + ms(86)), [1]);
        assert_eq!(asked(&mut gaps, start + ms(149)), [0; 0]);
        assert_eq!(gaps.question_at(), None);
        assert_eq!(gaps.poll_timeout(), Some(start + ms(150)));
        assert!(!gaps.handle_timeout(start + ms(149)));
        assert!(gaps.handle_timeout(start + ms(150)));
        assert_eq!((gaps.len(), gaps.asked()), (0, 6));
        assert_eq!(gaps.poll_hopeless(), Some((LANE, 1)));
        assert_eq!(gaps.poll_hopeless(), None);
    }

    #[test]
    fn what_the_sender_will_soon_have_forgotten_is_asked_for_before_its_time() {
        let start = Instant::now();
        let mut gaps = Gaps::new(
            0,
            GapLimits {
                ask_behind: Some(100),
                answer_after: ms(2),
                ..LIMITS
            },
        );
        let receive = |gaps: &mut Gaps, after: Duration, numbers: std::ops::Range<u64>| {
            for number in numbers {
                gaps.handle_received(start + after, LANE, number);
            }
            gaps.question_at().map(|at| at <= start + after)
        };
        receive(&mut gaps, ms(0), 0..1);
        assert_eq!(receive(&mut gaps, ms(0), 2..100), Some(false));
        assert_eq!(receive(&mut gaps, ms(1), 100..101), Some(true));
        assert_eq!(asked(&mut gaps, start + ms(1)), [1]);
        // As many more have followed, but no answer can have come.
        assert_eq!(receive(&mut gaps, ms(2), 101..250), Some(false));
        assert_eq!(receive(&mut gaps, ms(3), 250..251), Some(true));
        assert_eq!(asked(&mut gaps, start + ms(3)), [1]);
        // Where fewer follow, time decides as it does elsewhere.
        assert_eq!(receive(&mut gaps, ms(4), 251..252), Some(false));
        assert_eq!(gaps.question_at(), Some(start + ms(3 + 60)));
        receive(&mut gaps, ms(9), 252..600);
        assert_eq!(asked(&mut gaps, start + ms(9)), [1]);
        receive(&mut gaps, ms(12), 600..900);
        assert_eq!(asked(&mut gaps, start + ms(12)), [1]);
        receive(&mut gaps, ms(15), 900..1_300);
        assert_eq!(gaps.question_at(), None);
    }

    #[test]
    fn where_packets_overtake_each_other_nobody_asks_for_what_is_only_late() {
        let mut now = Instant::now();
        let mut gaps = Gaps::new(0, LIMITS);
        let mut asked_for = 0;
        for number in (0..2_000).step_by(2) {
            // Of two the second comes first, and the first 18 ms later.
            gaps.handle_received(now, LANE, number + 1);
            now += ms(11);
            asked_for += asked(&mut gaps, now).len();
            now += ms(7);
            gaps.handle_received(now, LANE, number);
        }
        assert!(asked_for <= 2, "{asked_for}");
        // What parity brought says nothing of how late packets come, nor does a resend.
        let mut gaps = Gaps::new(0, LIMITS);
        gaps.handle_received(now, LANE, 2);
        gaps.handle_repaired(now + ms(18), LANE, 1);
        gaps.handle_received(now + ms(60), LANE, 0);
        gaps.handle_received(now + ms(61), LANE, 4);
        assert_eq!(asked(&mut gaps, now + ms(71)), [3]);
    }

    #[test]
    fn what_is_left_to_the_flows_inside_is_asked_for_neither_again_nor_later() {
        let start = Instant::now();
        let mut gaps = Gaps::new(0, LIMITS);
        gaps.handle_received(start, LANE, 0);
        gaps.handle_received(start, LANE, 3);
        assert_eq!(asked(&mut gaps, start + ms(10)), [1, 2]);
        gaps.set_asking(false);
        gaps.handle_received(start + ms(12), LANE, 5);
        assert_eq!(gaps.question_at(), None);
        assert_eq!(asked(&mut gaps, start + ms(100)), [0; 0]);
        gaps.set_asking(true);
        assert_eq!(gaps.question_at(), None);
        gaps.handle_received(start + ms(100), LANE, 7);
        assert_eq!(asked(&mut gaps, start + ms(110)), [6]);
        // It is missing all the same, and late if it comes.
        assert_eq!(missing(&gaps), [1, 2, 4, 6]);
    }

    #[test]
    fn what_the_report_has_no_room_for_is_asked_for_next_time() {
        let start = Instant::now();
        let mut gaps = Gaps::new(0, LIMITS);
        gaps.handle_received(start, LANE, 5);
        let mut room = 2;
        gaps.poll_ask(start + ms(10), |_| {
            room -= 1;
            room >= 0
        });
        assert_eq!(asked(&mut gaps, start + ms(11)), [2, 3, 4]);
    }

    #[test]
    fn a_jump_keeps_the_newest_1024_and_gives_up_the_rest() {
        let now = Instant::now();
        let mut gaps = Gaps::new(0, LIMITS);
        gaps.handle_received(now, LANE, 5);
        gaps.handle_received(now, LANE, u64::MAX - 1);
        assert_eq!(gaps.len(), MAX_GAPS);
        assert_eq!(missing(&gaps)[0], u64::MAX - 1 - MAX_GAPS as u64);
        // All below those but 5, which came.
        let jump = u64::MAX - 1 - MAX_GAPS as u64;
        assert_eq!(gaps.poll_hopeless(), Some((LANE, jump - 1)));
        gaps.handle_received(now, LANE, u64::MAX);
        gaps.handle_received(now, LANE, u64::MAX);
        assert_eq!(gaps.len(), MAX_GAPS);
    }

    #[test]
    fn what_a_lane_lost_is_its_own_though_it_shows_on_the_next() {
        let start = Instant::now();
        let other = LaneId(7);
        let mut gaps = Gaps::new(0, LIMITS);
        assert!(gaps.handle_received(start, LANE, 0));
        // 1 to 4 were the last that were sent on the one lane, and 6 the second on the other.
        assert!(gaps.handle_received(start, other, 5));
        assert!(gaps.handle_received(start, other, 7));
        assert_eq!(gaps.handle_repaired(start, other, 2), Some(LANE));
        assert!(gaps.handle_received(start, other, 3));
        assert!(gaps.handle_timeout(start + ms(150)));
        let mut lost = [gaps.poll_hopeless(), gaps.poll_hopeless()];
        lost.sort_unstable();
        assert_eq!(lost, [Some((LANE, 2)), Some((other, 1))]);
        assert_eq!(gaps.poll_hopeless(), None);
        // Both came after all, on whichever lane.
        assert!(!gaps.handle_received(start + ms(160), LANE, 6));
        assert_eq!(gaps.handle_repaired(start + ms(160), LANE, 1), None);
    }

    #[test]
    fn what_is_older_than_the_direction_was_never_given_up() {
        let now = Instant::now();
        let mut gaps = Gaps::new(10, LIMITS);
        assert!(gaps.handle_received(now, LANE, 10));
        assert!(gaps.handle_received(now, LANE, 9));
        assert_eq!(gaps.poll_hopeless(), None);
    }

    proptest! {
        #[test]
        fn missing_is_what_lies_below_the_highest_and_did_not_come(
            numbers in prop::collection::vec(0_u64..900, 1..300),
        ) {
            let now = Instant::now();
            let mut gaps = Gaps::new(0, LIMITS);
            let mut seen = BTreeSet::new();
            for number in numbers {
                gaps.handle_received(now, LANE, number);
                seen.insert(number);
                let highest = *seen.last().expect("one came");
                let expected: Vec<u64> = (0..highest).filter(|n| !seen.contains(n)).collect();
                prop_assert_eq!(missing(&gaps), expected);
            }
        }
    }
}
