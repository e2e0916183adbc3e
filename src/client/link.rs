//! When to try which server: the state machine between losing one and having one again.
//!
//! # Theory of operation
//!
//! ```text
//!            poll_attempt                handle_connected
//!  Waiting ───────────────▶ Trying ────────────────────────▶ Up
//!     ▲  ▲ handle_failed       │                             │
//!     │  └─────────────────────┘                             │
//!     └───────────────────── handle_lost, handle_closed ─────┘
//! ```
//!
//! A list of servers is gone through without a pause; then the back-off doubles from
//! [`BACKOFF_MIN`] to [`BACKOFF_MAX`], less up to half of it at random, so that the clients
//! of a server that was away do not come back all at once. A lane that is lost is made again
//! to the same server, which still has the session. A server that does not want us is tried
//! again last.
//!
//! A change of the network ends the back-off, and an attempt too that began before the
//! change: its connection may be bound to an address that is gone.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::wire::CloseReason;

/// The reconnect state machine of a client.
#[derive(Debug)]
pub(super) struct Link {
    state: State,
    servers: usize,
    /// Index of the server to try next.
    next: usize,
    /// Attempts in a row that came to nothing.
    failures: u32,
    rng: StdRng,
}

/// How things stand between us and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Trying { since: Instant },
    Up { since: Instant },
}

/// What a change of the network means for what is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing is to be done; an attempt may be due.
    Nothing,
    /// The attempt under way is to be dropped: the next one is due.
    Drop,
    /// The server is to be asked whether it can still be reached.
    Probe,
}

impl Link {
    /// Makes a link that tries the first of `servers` at once; `seed` is for the jitter.
    pub(super) fn new(now: Instant, servers: usize, seed: u64) -> Self {
        Self {
            state: State::Waiting { until: now },
            servers,
            next: 0,
            failures: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Returns the server to try, once when an attempt is due.
    pub(super) fn poll_attempt(&mut self, now: Instant) -> Option<usize> {
        match self.state {
            State::Waiting { until } if until <= now && self.servers > 0 => {
                self.state = State::Trying { since: now };
                Some(self.next)
            }
            State::Waiting { .. } | State::Trying { .. } | State::Up { .. } => None,
        }
    }

    /// The attempt has brought a lane.
    pub(super) fn handle_connected(&mut self, now: Instant) {
        self.state = State::Up { since: now };
    }

    /// The attempt has failed.
    pub(super) fn handle_failed(&mut self, now: Instant) {
        self.advance();
        self.retry(now, self.failures.saturating_add(1));
    }

    /// The last lane is lost; returns whether it was news.
    pub(super) fn handle_lost(&mut self, now: Instant) -> bool {
        let State::Up { since } = self.state else {
            return false;
        };
        let failures = if now >= since + STABLE {
            0
        } else {
            self.failures.saturating_add(1)
        };
        self.retry(now, failures);
        true
    }

    /// The server has closed the session.
    pub(super) fn handle_closed(&mut self, now: Instant, reason: CloseReason) {
        let failures = match self.state {
            State::Up { since } if now >= since + STABLE => 0,
            State::Up { .. } | State::Waiting { .. } | State::Trying { .. } => self.failures,
        };
        match reason {
            // It may be back in a moment, with our address.
            CloseReason::ShuttingDown | CloseReason::Idle => {}
            CloseReason::Superseded
            | CloseReason::Revoked
            | CloseReason::PoolExhausted
            | CloseReason::TooManyInstances
            | CloseReason::ProtocolError
            | CloseReason::Unknown(_) => self.advance(),
        }
        // At least the shortest back-off: it is not there for us at this moment.
        let round = u32::try_from(self.servers).unwrap_or(u32::MAX);
        self.retry(now, failures.saturating_add(1).max(round));
    }

    /// The way to the server may be another one now, or there may be one again.
    pub(super) fn handle_network_change(&mut self, now: Instant) -> Change {
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Waiting { until: now };
                Change::Nothing
            }
            // One that is as young has seen the network as it is now, or nearly.
            State::Trying { since } if now < since + YOUNG => Change::Nothing,
            State::Trying { .. } => {
                self.state = State::Waiting { until: now };
                Change::Drop
            }
            State::Up { .. } => Change::Probe,
        }
    }

    /// Returns when [`Link::poll_attempt`] is due; an attempt under way ends by itself.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } if self.servers > 0 => Some(until),
            State::Waiting { .. } | State::Trying { .. } | State::Up { .. } => None,
        }
    }

    /// Returns whether there is a lane.
    #[cfg(test)]
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Returns how many attempts in a row came to nothing.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn advance(&mut self) {
        self.next = (self.next + 1) % self.servers.max(1);
    }

    fn retry(&mut self, now: Instant, failures: u32) {
        self.failures = failures;
        let round = u32::try_from(self.servers.max(1)).unwrap_or(u32::MAX);
        let wait = match failures / round {
            0 => Duration::ZERO,
            rounds => BACKOFF_MAX.min(BACKOFF_MIN * 2u32.saturating_pow(rounds.min(16) - 1)),
        };
        let jitter = self.rng.random_range(0.5..=1.0);
        self.state = State::Waiting {
            until: now + wait.mul_f64(jitter),
        };
    }
}

/// The first pause between attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// The longest pause: a server that comes back is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// A link that was up for this long is tried again without a pause.
const STABLE: Duration = Duration::from_secs(5);

/// An attempt this young survives a change of the network: a change is reported some tenths
/// of a second after it, and a host whose network changes all the time must still connect.
const YOUNG: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(servers: usize) -> (Link, Instant) {
        let now = Instant::now();
        (Link::new(now, servers, 7), now)
    }

    fn wait(link: &Link, now: Instant) -> Duration {
        link.poll_timeout().expect("a next attempt") - now
    }

    #[test]
    fn first_attempt_is_due_at_once_and_only_once() {
        let (mut link, now) = link(1);
        assert_eq!(link.poll_timeout(), Some(now));
        assert_eq!(link.poll_attempt(now), Some(0));
        assert_eq!(link.poll_attempt(now), None);
        assert_eq!(link.poll_timeout(), None);
    }

    #[test]
    fn servers_are_tried_in_turn_without_a_pause_then_with_one() {
        let (mut link, now) = link(3);
        for server in [0, 1] {
            assert_eq!(link.poll_attempt(now), Some(server));
            link.handle_failed(now);
            assert_eq!(wait(&link, now), Duration::ZERO);
        }
        assert_eq!(link.poll_attempt(now), Some(2));
        link.handle_failed(now);
        let pause = wait(&link, now);
        assert!(
            pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MIN,
            "{pause:?}"
        );
        assert_eq!(link.poll_attempt(now + pause), Some(0));
    }

    #[test]
    fn back_off_ends_at_4_s() {
        let (mut link, now) = link(1);
        for _ in 0..100 {
            link.handle_failed(now);
            assert!(wait(&link, now) <= BACKOFF_MAX);
        }
        assert!(wait(&link, now) >= BACKOFF_MAX / 2);
    }

    #[test]
    fn stable_link_is_made_again_at_once_with_the_same_server() {
        let (mut link, now) = link(2);
        link.poll_attempt(now);
        link.handle_failed(now);
        assert_eq!(link.poll_attempt(now), Some(1));
        link.handle_connected(now);
        assert!(link.is_up());
        let later = now + STABLE;
        assert!(link.handle_lost(later));
        assert_eq!(link.poll_attempt(later), Some(1));
    }

    #[test]
    fn link_that_is_lost_at_once_again_and_again_is_backed_off() {
        let (mut link, mut now) = link(1);
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            now += wait(&link, now);
            assert_eq!(link.poll_attempt(now), Some(0));
            link.handle_connected(now);
            assert!(link.handle_lost(now));
            longest = wait(&link, now);
        }
        assert!(longest >= BACKOFF_MAX / 2, "{longest:?}");
    }

    #[test]
    fn loss_without_a_link_is_no_news() {
        let (mut link, now) = link(1);
        assert!(!link.handle_lost(now));
        link.poll_attempt(now);
        assert!(!link.handle_lost(now));
        assert_eq!(link.poll_timeout(), None, "the attempt goes on");
    }

    #[test]
    fn full_server_gives_way_to_the_next_one() {
        let (mut link, now) = link(2);
        link.poll_attempt(now);
        link.handle_connected(now);
        link.handle_closed(now, CloseReason::PoolExhausted);
        let pause = wait(&link, now);
        assert!(pause >= BACKOFF_MIN / 2, "{pause:?}");
        assert_eq!(link.poll_attempt(now + pause), Some(1));
    }

    #[test]
    fn server_that_restarts_is_tried_again_first() {
        let (mut link, now) = link(2);
        link.poll_attempt(now);
        link.handle_connected(now);
        let later = now + STABLE;
        link.handle_closed(later, CloseReason::ShuttingDown);
        let pause = wait(&link, later);
        assert!(
            pause >= BACKOFF_MIN / 2 && pause <= BACKOFF_MIN,
            "{pause:?}"
        );
        assert_eq!(link.poll_attempt(later + pause), Some(0));
    }

    #[test]
    fn server_that_refuses_every_session_is_backed_off() {
        let (mut link, mut now) = link(1);
        for _ in 0..10 {
            now += wait(&link, now);
            link.poll_attempt(now);
            link.handle_connected(now);
            link.handle_closed(now, CloseReason::TooManyInstances);
        }
        assert!(wait(&link, now) >= BACKOFF_MAX / 2);
    }

    #[test]
    fn change_of_the_network_ends_the_back_off() {
        let (mut link, now) = link(1);
        link.poll_attempt(now);
        link.handle_failed(now);
        assert_eq!(link.poll_attempt(now), None);
        assert_eq!(link.handle_network_change(now), Change::Nothing);
        assert_eq!(link.poll_attempt(now), Some(0));
    }

    #[test]
    fn change_of_the_network_drops_an_attempt_of_before() {
        let (mut link, now) = link(1);
        link.poll_attempt(now);
        assert_eq!(link.handle_network_change(now), Change::Nothing);
        assert_eq!(link.poll_attempt(now), None, "a young one goes on");
        let later = now + YOUNG;
        assert_eq!(link.handle_network_change(later), Change::Drop);
        assert_eq!(link.poll_attempt(later), Some(0));
    }

    #[test]
    fn change_of_the_network_probes_a_link_that_is_up() {
        let (mut link, now) = link(1);
        link.poll_attempt(now);
        link.handle_connected(now);
        assert_eq!(link.handle_network_change(now), Change::Probe);
        assert!(link.is_up());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Connected,
        Failed,
        Lost,
        Closed,
        Changed,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..5000u64).prop_map(Step::Pass),
            Just(Step::Connected),
            Just(Step::Failed),
            Just(Step::Lost),
            Just(Step::Closed),
            Just(Step::Changed),
        ]
    }

    proptest! {
        /// Whatever happens, a link that is not up and has nothing under way has a next attempt
        /// within the longest back-off, to a server that there is.
        #[test]
        fn link_never_gives_up(servers in 1..5usize, steps in prop::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut link = Link::new(now, servers, 1);
            let mut trying = false;
            for step in steps {
                match step {
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                    Step::Connected if trying => { link.handle_connected(now); trying = false; }
                    Step::Failed if trying => { link.handle_failed(now); trying = false; }
                    Step::Lost => { link.handle_lost(now); }
                    Step::Closed if link.is_up() => link.handle_closed(now, CloseReason::Revoked),
                    Step::Changed => trying &= link.handle_network_change(now) != Change::Drop,
                    Step::Connected | Step::Failed | Step::Closed => {}
                }
                if let Some(server) = link.poll_attempt(now) {
                    prop_assert!(server < servers);
                    prop_assert!(!trying);
                    trying = true;
                }
                if !trying && !link.is_up() {
                    let due = link.poll_timeout();
                    prop_assert!(due.is_some_and(|due| due <= now + BACKOFF_MAX), "{:?}", link);
                }
            }
        }
    }
}
