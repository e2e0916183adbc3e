//! The lanes beside the one that [`Link`](super::link::Link) made: how many there are, and when the next is opened.
//!
//! # Theory of operation
//!
//! The link knows one lane to each server, and makes it anew when it is lost. Where that lane is a stream and `lanes:`
//! asks for more, the others are opened one after the other to the same server. Together they are a **group**, named
//! after its first lane:
//!
//! ```text
//!  the link's lane is up ─▶ begin ─▶ poll_attempt ──▶ handle_joined ─┐
//!                                        ▲  ▲                        ├─▶ poll_attempt, until there are enough
//!                                        │  └─── handle_failed ◀─────┤     after a pause
//!                                        └────── handle_lost ◀───────┘     at once, if it had lived
//! ```
//!
//! When the link's own lane is lost and another of the group lives, that one takes its place ([`Beside::promote`]), and
//! the link hears nothing. When the link has gone to another server, or to datagrams, the group ends: its lanes are
//! closed [`SETTLE`] later, when what was under way on them has come.
//!
//! # Limits
//!
//! One attempt at a time. Attempts that fail are [`BACKOFF_MIN`] to [`BACKOFF_MAX`] apart, less up to half at random.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::wire::LaneId;

/// The state of the lanes beside the link's.
#[derive(Debug)]
pub(super) struct Beside {
    /// How many there are to be.
    wanted: usize,
    group: Option<Group>,
    /// An attempt is under way.
    trying: bool,
    next_at: Instant,
    /// Attempts in a row that came to nothing.
    failures: u32,
    /// Lanes of former groups, and when they are closed.
    retired: Vec<(Instant, LaneId)>,
    rng: StdRng,
}

#[derive(Debug)]
struct Group {
    server: usize,
    first: LaneId,
    /// All but the link's, and since when.
    lanes: Vec<(LaneId, Instant)>,
}

impl Beside {
    /// Begins without a group; `lanes` is how many there are to be in all, `seed` for the jitter.
    pub(super) fn new(now: Instant, lanes: usize, seed: u64) -> Self {
        Self {
            wanted: lanes.saturating_sub(1),
            group: None,
            trying: false,
            next_at: now,
            failures: 0,
            retired: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Whether there is to be more than one lane.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted > 0
    }

    /// The link has a stream lane to `server`, with which a group begins.
    pub(super) fn begin(&mut self, now: Instant, server: usize, first: LaneId) {
        self.end(now);
        if self.is_wanted() {
            self.group = Some(Group {
                server,
                first,
                lanes: Vec::new(),
            });
        }
        self.next_at = now;
        self.failures = 0;
    }

    /// The link has gone elsewhere.
    pub(super) fn end(&mut self, now: Instant) {
        self.trying = false;
        if let Some(group) = self.group.take() {
            let lanes = group.lanes.iter();
            self.retired
                .extend(lanes.map(|(lane, _)| (now + SETTLE, *lane)));
        }
    }

    /// The session is gone, and its lanes with it.
    pub(super) fn forget(&mut self) {
        self.group = None;
        self.trying = false;
        self.retired.clear();
    }

    /// Returns the server to open another lane to, once for each attempt that is due.
    pub(super) fn poll_attempt(&mut self, now: Instant) -> Option<usize> {
        let group = self.group.as_ref().filter(|_| self.lacks())?;
        if now < self.next_at {
            return None;
        }
        self.trying = true;
        Some(group.server)
    }

    /// The attempt has come to nothing.
    pub(super) fn handle_failed(&mut self, now: Instant) {
        self.trying = false;
        self.failures = self.failures.saturating_add(1);
        let wait = BACKOFF_MAX.min(BACKOFF_MIN * 2u32.saturating_pow(self.failures.min(16) - 1));
        self.next_at = now + wait.mul_f64(self.rng.random_range(0.5..=1.0));
    }

    /// The attempt has brought a lane; returns the first of the group it is to stand in, if there is one still.
    pub(super) fn handle_joined(&mut self, now: Instant, lane: LaneId) -> Option<LaneId> {
        self.trying = false;
        let group = self.group.as_mut()?;
        group.lanes.push((lane, now));
        Some(group.first)
    }

    /// A lane is gone; returns whether it was one of these.
    pub(super) fn handle_lost(&mut self, now: Instant, lane: LaneId) -> bool {
        let retired = self.retired.len();
        self.retired.retain(|(_, known)| *known != lane);
        let Some(group) = self.group.as_mut() else {
            return self.retired.len() < retired;
        };
        let Some(at) = group.lanes.iter().position(|(known, _)| *known == lane) else {
            return self.retired.len() < retired;
        };
        let (_, since) = group.lanes.swap_remove(at);
        if now >= since + STABLE {
            self.failures = 0;
            self.next_at = self.next_at.min(now);
        } else if !self.trying {
            self.handle_failed(now);
        }
        true
    }

    /// The link's own lane to `server` is gone: gives the one that takes its place, if there is one.
    pub(super) fn promote(&mut self, server: usize) -> Option<LaneId> {
        let group = self.group.as_mut().filter(|group| group.server == server)?;
        // The oldest has shown most.
        let oldest = (0..group.lanes.len()).min_by_key(|at| group.lanes[*at].1)?;
        Some(group.lanes.swap_remove(oldest).0)
    }

    /// Returns a lane of a former group that is to be closed.
    pub(super) fn poll_retired(&mut self, now: Instant) -> Option<LaneId> {
        let due = self.retired.iter().position(|(at, _)| *at <= now)?;
        Some(self.retired.swap_remove(due).1)
    }

    /// Returns when [`Beside::poll_attempt`] or [`Beside::poll_retired`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.lacks().then_some(self.next_at);
        let retired = self.retired.iter().map(|(at, _)| *at);
        retired.chain(next).min()
    }

    /// How many lanes there are, the link's included; 0 without a group.
    pub(super) fn lanes(&self) -> usize {
        let group = self.group.as_ref();
        group.map_or(0, |group| 1 + group.lanes.len())
    }

    /// Attempts in a row that came to nothing.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn lacks(&self) -> bool {
        let group = self.group.as_ref();
        !self.trying && group.is_some_and(|group| group.lanes.len() < self.wanted)
    }
}

/// The first pause after an attempt that came to nothing: the session has another lane.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(500);

/// The longest pause: a network that lets only some connections through is not asked all the time.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A lane that lived for this long is opened again without a pause.
const STABLE: Duration = Duration::from_secs(5);

/// How long the lanes of a group are kept after it has ended, as the link keeps its own.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: LaneId = LaneId::FIRST;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Three lanes to server 1, all up.
    fn whole() -> (Beside, Instant) {
        let now = Instant::now();
        let mut beside = Beside::new(now, 3, 7);
        beside.begin(now, 1, FIRST);
        for lane in [1, 2] {
            assert_eq!(beside.poll_attempt(now), Some(1));
            assert_eq!(beside.poll_attempt(now), None, "one at a time");
            assert_eq!(beside.handle_joined(now, LaneId(lane)), Some(FIRST));
        }
        assert_eq!(beside.lanes(), 3);
        assert_eq!(beside.poll_timeout(), None);
        (beside, now)
    }

    #[test]
    fn one_lane_asks_for_no_others() {
        let now = Instant::now();
        let mut beside = Beside::new(now, 1, 7);
        beside.begin(now, 0, FIRST);
        assert_eq!(beside.poll_attempt(now), None);
        assert_eq!(beside.poll_timeout(), None);
    }

    #[test]
    fn others_are_opened_one_after_the_other_until_there_are_enough() {
        whole();
    }

    #[test]
    fn lane_that_lived_is_opened_again_at_once_and_a_young_one_after_a_pause() {
        let (mut beside, now) = whole();
        let later = now + STABLE;
        assert!(beside.handle_lost(later, LaneId(1)));
        assert_eq!(beside.poll_attempt(later), Some(1));
        assert_eq!(beside.handle_joined(later, LaneId(3)), Some(FIRST));
        assert!(beside.handle_lost(later, LaneId(3)));
        assert_eq!(beside.poll_attempt(later), None);
        assert!(beside.poll_timeout().unwrap() <= later + BACKOFF_MIN);
        assert!(!beside.handle_lost(later, LaneId(9)), "none of these");
    }

    #[test]
    fn attempts_that_fail_are_at_most_30_s_apart() {
        let now = Instant::now();
        let mut beside = Beside::new(now, 2, 7);
        beside.begin(now, 0, FIRST);
        let mut later = now;
        for _ in 0..50 {
            assert_eq!(beside.poll_attempt(later), Some(0));
            beside.handle_failed(later);
            let next = beside.poll_timeout().unwrap();
            assert!(next > later && next <= later + BACKOFF_MAX);
            assert_eq!(beside.poll_attempt(later), None);
            later = next;
        }
        assert!(later >= now + secs(30) * 20, "and not much nearer");
    }

    #[test]
    fn lane_of_the_group_takes_the_place_of_the_links() {
        let (mut beside, now) = whole();
        assert_eq!(beside.promote(0), None, "another server's");
        assert_eq!(beside.promote(1), Some(LaneId(1)));
        assert_eq!(beside.poll_attempt(now), Some(1));
        assert_eq!(beside.handle_joined(now, LaneId(3)), Some(FIRST));
        assert_eq!(beside.lanes(), 3);
    }

    #[test]
    fn group_that_ends_keeps_its_lanes_for_3_s() {
        let (mut beside, now) = whole();
        beside.end(now);
        assert_eq!(beside.lanes(), 0);
        assert_eq!(beside.poll_attempt(now), None);
        assert_eq!(beside.poll_retired(now), None);
        assert_eq!(beside.poll_timeout(), Some(now + SETTLE));
        let later = now + SETTLE;
        let mut closed: Vec<_> = std::iter::from_fn(|| beside.poll_retired(later)).collect();
        closed.sort_unstable();
        assert_eq!(closed, [LaneId(1), LaneId(2)]);
        assert_eq!(beside.poll_timeout(), None);
    }

    #[test]
    fn what_joins_after_its_group_has_ended_is_not_wanted() {
        let now = Instant::now();
        let mut beside = Beside::new(now, 2, 7);
        beside.begin(now, 0, FIRST);
        assert_eq!(beside.poll_attempt(now), Some(0));
        beside.end(now);
        assert_eq!(beside.handle_joined(now, LaneId(1)), None);
    }
}
