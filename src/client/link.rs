//! Which server to try when: the state machine between having no lane, one, and a better one.
//!
//! # Theory of operation
//!
//! Servers are ranked as the configuration lists them. Each is idle, being tried, or up (or both,
//! where its lane is silent):
//!
//! ```text
//!          poll_attempt            handle_connected
//!   Idle ───────────────▶ Trying ───────────────────▶ Up ──── handle_silent, handle_heard
//!    ▲ ▲  handle_failed      │                         │
//!    │ └─────────────────────┘                         │
//!    └──────── handle_lost, handle_closed, poll_retired ┘
//! ```
//!
//! Attempts go in **rounds**. A round has a goal and an order; the next server of it starts when the
//! one before has failed, or has had its head start:
//!
//! | goal | begins when | order |
//! |---|---|---|
//! | any lane | there is none | as listed; after a loss the one that was lost first, since it still has the session |
//! | another lane | the one in use is silent | the others as listed |
//! | a better lane | the one in use is not the best of the list, and some time has passed; at once where the silence was that of a server which did not know the session any more | those listed before it |
//!
//! The first connection of a round ends it. A worse lane than the newest is closed when that has
//! been up for [`SETTLE`], a silent one at once: both ends send on the lane that was made last, so
//! a lane that is to be used again is made again.
//!
//! A round for any lane that fails is followed by a pause, which doubles from [`BACKOFF_MIN`] to
//! [`BACKOFF_MAX`], less up to half of it at random, so that the clients of a server that was away
//! do not come back all at once. Rounds for a better lane are [`PROBE_MIN`] to [`PROBE_MAX`] apart.
//! A server that does not want us is tried again last, and one that has revoked us each [`REVOKED_PAUSE`]: only its
//! operator can change that.
//!
//! A change of the network ends the pause, and attempts too that began before the change: their
//! connections may be bound to an address that is gone.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::config::Scheme;
use crate::wire::CloseReason;

/// The reconnect state machine of a client.
#[derive(Debug)]
pub(super) struct Link {
    servers: Vec<Entry>,
    goal: Goal,
    /// Servers of the round that were not tried yet.
    queue: VecDeque<usize>,
    /// When the next of them starts, if nothing fails before.
    next_at: Instant,
    /// When to look for a better lane, while there is one that is not the best.
    probe_at: Option<Instant>,
    /// Rounds for a better lane that came to nothing.
    probes: u32,
    /// The server whose lane was made last.
    current: usize,
    /// Attempts in a row that came to nothing.
    failures: u32,
    /// Whether the last session was ended because the server lets us in no more, or each server that has answered the last
    /// round has said so.
    revoked: bool,
    /// The same of the round under way.
    round: Heard,
    rng: StdRng,
}

/// What the servers say of us that have answered in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Heard {
    #[default]
    Nothing,
    /// That they let us in no more.
    Revoked,
}

/// How things stand between us and one server.
#[derive(Clone, Copy, Debug)]
struct Entry {
    scheme: Scheme,
    /// Since when an attempt is under way.
    trying: Option<Instant>,
    lane: Option<Lane>,
}

/// The lane to a server.
#[derive(Clone, Copy, Debug)]
struct Lane {
    since: Instant,
    /// Since when nobody answers on it.
    silent: Option<Instant>,
    /// When it may be closed, since there is a newer one.
    retire_at: Option<Instant>,
}

/// What a round of attempts is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Any,
    Another,
    Better,
}

/// What a change of the network means for what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An attempt may be due, and one that was under way may be over.
    Retry,
    /// The server is to be asked whether it can still be reached.
    Probe,
}

impl Link {
    /// Makes a link that tries the first of the servers at once; `schemes` are how each is
    /// reached, `seed` is for the jitter.
    pub(super) fn new(now: Instant, schemes: impl IntoIterator<Item = Scheme>, seed: u64) -> Self {
        let entry = |scheme| Entry {
            scheme,
            trying: None,
            lane: None,
        };
        let servers: Vec<Entry> = schemes.into_iter().map(entry).collect();
        Self {
            queue: (0..servers.len()).collect(),
            servers,
            goal: Goal::Any,
            next_at: now,
            probe_at: None,
            probes: 0,
            current: 0,
            failures: 0,
            revoked: false,
            round: Heard::Nothing,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Returns the server to try now, once for each attempt that is due.
    pub(super) fn poll_attempt(&mut self, now: Instant) -> Option<usize> {
        if !self.is_busy() && self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.begin(Goal::Better, now, (0..self.current).collect());
        }
        if self.queue.is_empty() || now < self.next_at {
            return None;
        }
        let server = self.queue.pop_front()?;
        let entry = self.servers.get_mut(server)?;
        entry.trying = Some(now);
        self.next_at = now
            + match self.goal {
                Goal::Another => HEAD_START_ANOTHER,
                Goal::Any | Goal::Better if entry.scheme.is_stream() => HEAD_START_STREAM,
                Goal::Any | Goal::Better => HEAD_START_UDP,
            };
        Some(server)
    }

    /// Returns whether an attempt at `server` is still wanted.
    pub(super) fn is_trying(&self, server: usize) -> bool {
        self.servers.get(server).is_some_and(Entry::is_trying)
    }

    /// Returns whether the session may be made anew, because no lane of it is of use.
    pub(super) fn wants_fresh(&self) -> bool {
        match self.goal {
            Goal::Any | Goal::Another => true,
            Goal::Better => !self.servers.iter().any(Entry::is_up),
        }
    }

    /// An attempt has brought a lane: the others are not wanted any more.
    pub(super) fn handle_connected(&mut self, now: Instant, server: usize) {
        self.revoked = false;
        for entry in &mut self.servers {
            entry.trying = None;
            if let Some(lane) = &mut entry.lane {
                lane.retire_at = Some(if lane.silent.is_some() {
                    now
                } else {
                    now + SETTLE
                });
            }
        }
        if let Some(entry) = self.servers.get_mut(server) {
            entry.lane = Some(Lane {
                since: now,
                silent: None,
                retire_at: None,
            });
        }
        self.queue.clear();
        self.current = server;
        self.probes = 0;
        self.arm_probe(now);
    }

    /// An attempt has brought a lane of a new session: the lanes of the one before are gone.
    pub(super) fn handle_fresh(&mut self, now: Instant, server: usize) {
        for entry in &mut self.servers {
            entry.lane = None;
        }
        let was_silent = self.goal == Goal::Another;
        self.handle_connected(now, server);
        if was_silent {
            // The silence was the server's, which knew the session no more: nothing speaks against the ways before this.
            self.probe_at = self.probe_at.map(|_| now);
        }
    }

    /// An attempt has failed.
    pub(super) fn handle_failed(&mut self, now: Instant, server: usize) {
        let trying = self.servers.get_mut(server).map(|entry| &mut entry.trying);
        if trying.and_then(Option::take).is_none() {
            return;
        }
        self.next_at = self.next_at.min(now);
        if self.goal == Goal::Any {
            self.failures = self.failures.saturating_add(1);
        }
        self.end_round(now);
    }

    /// An attempt has failed: the server lets us in no more. Others of the list may be other servers.
    pub(super) fn handle_revoked(&mut self, now: Instant, server: usize) {
        if self.is_trying(server) && self.goal == Goal::Any {
            self.round = Heard::Revoked;
        }
        self.handle_failed(now, server);
    }

    /// The lane to `server` is lost; returns whether it was the last, which is news.
    pub(super) fn handle_lost(&mut self, now: Instant, server: usize) -> bool {
        let lane = self.servers.get_mut(server).map(|entry| &mut entry.lane);
        let Some(Lane { since, .. }) = lane.and_then(Option::take) else {
            return false;
        };
        if self.servers.iter().any(Entry::is_up) {
            if server == self.current {
                // What was to be closed in favour of this one is what is left.
                for lane in self
                    .servers
                    .iter_mut()
                    .filter_map(|entry| entry.lane.as_mut())
                {
                    lane.retire_at = None;
                }
                self.current = self.best_up();
                if self
                    .lane_mut(self.current)
                    .is_some_and(|lane| lane.silent.is_some())
                {
                    self.handle_silent(now, self.current);
                } else {
                    if self.goal == Goal::Another {
                        self.abandon();
                    }
                    self.arm_probe(now);
                }
            }
            return false;
        }
        self.probe_at = None;
        self.failures = if now >= since + STABLE {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let under_way = self.servers.iter().any(Entry::is_trying) || !self.queue.is_empty();
        if under_way && self.goal != Goal::Better {
            self.goal = Goal::Any;
        } else {
            self.abandon();
            let at = now + self.back_off();
            let order = self.order_from(server);
            self.begin(Goal::Any, at, order);
        }
        true
    }

    /// Nobody answers on the lane to `server`: another may do.
    pub(super) fn handle_silent(&mut self, now: Instant, server: usize) {
        let Some(lane) = self.lane_mut(server) else {
            return;
        };
        lane.silent.get_or_insert(now);
        if server != self.current || self.goal == Goal::Another && self.is_busy() {
            return;
        }
        self.abandon();
        self.probe_at = None;
        let others = self.others();
        self.begin(Goal::Another, now, others);
    }

    /// The lane to `server` was silent and is not any more.
    pub(super) fn handle_heard(&mut self, now: Instant, server: usize) {
        let Some(lane) = self.lane_mut(server) else {
            return;
        };
        lane.silent = None;
        if server == self.current && self.goal == Goal::Another {
            self.abandon();
            self.arm_probe(now);
        }
    }

    /// The server has closed the session.
    pub(super) fn handle_closed(&mut self, now: Instant, reason: CloseReason) {
        let mut lanes = self.servers.iter().filter_map(|entry| entry.lane);
        let stable = lanes.any(|lane| now >= lane.since + STABLE);
        let failures = if stable { 0 } else { self.failures };
        let first = match reason {
            // It may be back in a moment, with our address.
            CloseReason::ShuttingDown | CloseReason::Idle => self.current,
            CloseReason::Superseded
            | CloseReason::Revoked
            | CloseReason::PoolExhausted
            | CloseReason::TooManyInstances
            | CloseReason::ProtocolError
            | CloseReason::Unknown(_) => (self.current + 1) % self.servers.len().max(1),
        };
        for entry in &mut self.servers {
            entry.trying = None;
            entry.lane = None;
        }
        self.revoked = reason == CloseReason::Revoked;
        // At least the shortest pause: it is not there for us at this moment.
        self.failures = failures.saturating_add(1).max(self.round_len());
        self.probe_at = None;
        let at = now + self.back_off();
        // In a circle, so that one that refuses us comes last.
        let count = self.servers.len();
        let order = (0..count).map(|step| (first + step) % count).collect();
        self.begin(Goal::Any, at, order);
    }

    /// The way to the server may be another one now, or there may be one again.
    pub(super) fn handle_network_change(&mut self, now: Instant) -> Change {
        if self.servers.iter().any(Entry::is_up) {
            // What did not work before may work from here.
            self.probes = 0;
            self.probe_at = self.probe_at.map(|_| now + PROBE_MIN / 2);
            return Change::Probe;
        }
        // One that is as young has seen the network as it is now, or nearly.
        let mut old = false;
        for (index, entry) in self.servers.iter_mut().enumerate() {
            if entry
                .trying
                .take_if(|since| now >= *since + YOUNG)
                .is_some()
            {
                self.queue.push_back(index);
                old = true;
            }
        }
        if old || !self.servers.iter().any(Entry::is_trying) {
            self.next_at = now;
        }
        Change::Retry
    }

    /// Returns a server whose lane is to be closed, since a newer one has proven itself.
    pub(super) fn poll_retired(&mut self, now: Instant) -> Option<usize> {
        let due = |entry: &Entry| {
            let retire_at = entry.lane.and_then(|lane| lane.retire_at);
            retire_at.is_some_and(|at| at <= now)
        };
        let server = self.servers.iter().position(due)?;
        self.servers.get_mut(server)?.lane = None;
        Some(server)
    }

    /// Returns when [`Link::poll_attempt`] or [`Link::poll_retired`] is due; an attempt under way
    /// ends by itself.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let next = (!self.queue.is_empty()).then_some(self.next_at);
        let probe = self.probe_at.filter(|_| !self.is_busy());
        let lanes = self.servers.iter().filter_map(|entry| entry.lane);
        let retired = lanes.filter_map(|lane| lane.retire_at);
        retired.chain(next).chain(probe).min()
    }

    /// Returns how many attempts in a row came to nothing.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns whether the server has said that it lets us in no more, and has not since.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// Returns from when on the tunnel counts as down, since nobody answers on the lane that was made last.
    pub(super) fn down_at(&self) -> Option<Instant> {
        let current = self.servers.get(self.current)?;
        Some(current.lane?.silent? + GRACE)
    }

    /// Returns whether there is a lane.
    #[cfg(test)]
    fn is_up(&self) -> bool {
        self.servers.iter().any(Entry::is_up)
    }

    fn begin(&mut self, goal: Goal, at: Instant, order: VecDeque<usize>) {
        self.goal = goal;
        self.round = Heard::Nothing;
        self.queue = order;
        self.next_at = at;
        tracing::debug!(?goal, order = ?self.queue, "a round of attempts");
    }

    /// Gives up what is under way.
    fn abandon(&mut self) {
        self.queue.clear();
        for entry in &mut self.servers {
            entry.trying = None;
        }
    }

    /// Begins the next round if this one has come to nothing.
    fn end_round(&mut self, now: Instant) {
        if self.is_busy() {
            return;
        }
        match self.goal {
            Goal::Any => {
                // Where nobody has answered, what was said before holds.
                self.revoked |= self.round == Heard::Revoked;
                let at = now + self.back_off();
                let order = self.order_from(0);
                self.begin(Goal::Any, at, order);
            }
            Goal::Another => {
                let others = self.others();
                self.begin(Goal::Another, now + BACKOFF_ANOTHER, others);
            }
            Goal::Better => {
                self.probes = self.probes.saturating_add(1);
                self.arm_probe(now);
            }
        }
    }

    fn is_busy(&self) -> bool {
        !self.queue.is_empty() || self.servers.iter().any(Entry::is_trying)
    }

    /// Sets when to look for a better lane than the current one.
    fn arm_probe(&mut self, now: Instant) {
        let wait = PROBE_MAX.min(PROBE_MIN * 2u32.saturating_pow(self.probes.min(16)));
        let jitter = self.rng.random_range(0.75..=1.0);
        self.probe_at = (self.current > 0).then(|| now + wait.mul_f64(jitter));
    }

    /// The pause before the next round: none until one has failed.
    fn back_off(&mut self) -> Duration {
        let wait = match self.failures / self.round_len() {
            _ if self.revoked => REVOKED_PAUSE,
            0 => Duration::ZERO,
            rounds => BACKOFF_MAX.min(BACKOFF_MIN * 2u32.saturating_pow(rounds.min(16) - 1)),
        };
        let jitter = self.rng.random_range(0.5..=1.0);
        wait.mul_f64(jitter)
    }

    fn round_len(&self) -> u32 {
        u32::try_from(self.servers.len().max(1)).unwrap_or(u32::MAX)
    }

    /// All servers as listed, but `first` in front.
    fn order_from(&self, first: usize) -> VecDeque<usize> {
        let others = (0..self.servers.len()).filter(|index| *index != first);
        let first = Some(first).filter(|first| *first < self.servers.len());
        first.into_iter().chain(others).collect()
    }

    /// The servers that have no lane, as listed, and then the current one: it may have lost the
    /// session.
    fn others(&self) -> VecDeque<usize> {
        let count = self.servers.len();
        let idle = |index: &usize| !self.servers.get(*index).is_some_and(Entry::is_up);
        let current = Some(self.current).filter(|index| !idle(index));
        (0..count).filter(idle).chain(current).collect()
    }

    /// The first in the list of those that answer, or of those that do not.
    fn best_up(&self) -> usize {
        let lanes = self.servers.iter().enumerate();
        let up = lanes.filter_map(|(index, entry)| Some((entry.lane?.silent.is_some(), index)));
        up.min().map(|(_, index)| index).unwrap_or_default()
    }

    fn lane_mut(&mut self, server: usize) -> Option<&mut Lane> {
        self.servers.get_mut(server)?.lane.as_mut()
    }
}

impl Entry {
    const fn is_up(&self) -> bool {
        self.lane.is_some()
    }

    const fn is_trying(&self) -> bool {
        self.trying.is_some()
    }
}

/// The first pause between rounds.
const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// The longest pause: a server that comes back is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// The longest pause where the server lets us in no more.
pub(super) const REVOKED_PAUSE: Duration = Duration::from_secs(20);

/// How long a lane may be silent before the tunnel is said to be down, while others are tried: on a quiet lane that loses
/// much, some datagrams in a row say little.
const GRACE: Duration = Duration::from_millis(2500);

/// The pause between rounds while the lane in use is silent and may speak again.
const BACKOFF_ANOTHER: Duration = Duration::from_secs(1);

/// A link that was up for this long is tried again without a pause.
const STABLE: Duration = Duration::from_secs(5);

/// An attempt this young survives a change of the network: a change is reported some tenths
/// of a second after it, and a host whose network changes all the time must still connect.
const YOUNG: Duration = Duration::from_secs(2);

/// How long datagrams alone are tried: three Inits on a path that loses some, and a user who
/// waits for the next way does not notice.
const HEAD_START_UDP: Duration = Duration::from_millis(1500);

/// How long a connection alone is tried: with two losses of its SYN it is slower, and then the
/// next may well be faster.
const HEAD_START_STREAM: Duration = Duration::from_secs(3);

/// The same while applications wait because the lane in use is silent.
const HEAD_START_ANOTHER: Duration = Duration::from_millis(300);

/// How long the lane in use must have been up before an older one is closed.
const SETTLE: Duration = Duration::from_secs(3);

/// The first pause before a better lane is looked for.
const PROBE_MIN: Duration = Duration::from_secs(5);

/// The longest: a better way that heals is found within half a minute, attempt included.
const PROBE_MAX: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
