//! Decides which address to try when (Happy Eyeballs, RFC 8305), without doing it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::{OriginError, ResolveError};
use crate::client::tunnel::ConnectError;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The state of one connection attempt to a host.
///
/// Feed it with `handle_*`; then start what [`Race::poll_attempt`] gives, ask
/// [`Race::failure`], and wait for [`Race::poll_timeout`] or news.
#[derive(Debug)]
pub(super) struct Race {
    v6: Side,
    v4: Side,
    /// Whose turn it is.
    next: Family,
    /// Until when IPv4 waits for the AAAA answer.
    head_start: Option<Instant>,
    /// When another attempt may join those under way.
    stagger: Option<Instant>,
    in_flight: usize,
    resolve_error: Option<ResolveError>,
    connect_error: Option<ConnectError>,
}

/// What is known and untried of one family.
#[derive(Debug, Default)]
struct Side {
    asked: bool,
    addresses: VecDeque<IpAddr>,
}

impl Race {
    /// Starts a race whose addresses come as answers, one per family.
    pub(super) fn of_name() -> Self {
        let asked = || Side {
            asked: true,
            addresses: VecDeque::new(),
        };
        Self {
            v6: asked(),
            v4: asked(),
            next: Family::V6,
            head_start: None,
            stagger: None,
            in_flight: 0,
            resolve_error: None,
            connect_error: None,
        }
    }

    /// Starts a race between known addresses.
    pub(super) fn of_addresses(addresses: &[IpAddr]) -> Self {
        let mut race = Self::of_name();
        race.v6.asked = false;
        race.v4.asked = false;
        for address in addresses {
            race.side(Family::of(address)).addresses.push_back(*address);
        }
        race
    }

    /// Takes the answer of the name servers for one family.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        family: Family,
        answer: Result<Vec<IpAddr>, ResolveError>,
    ) {
        let side = self.side(family);
        side.asked = false;
        match answer {
            Ok(addresses) => {
                side.addresses.extend(addresses);
                if family == Family::V4 && self.v6.asked {
                    self.head_start = Some(now + RESOLUTION_DELAY);
                }
            }
            Err(error) => {
                self.resolve_error = Some(match self.resolve_error.take() {
                    Some(former) => former.or_more_telling(error),
                    None => error,
                });
            }
        }
    }

    /// Takes the failure of one attempt; the next may start at once.
    pub(super) fn handle_failure(&mut self, error: ConnectError) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.stagger = None;
        self.connect_error = Some(match self.connect_error {
            Some(former) if weight(former) >= weight(error) => former,
            Some(_) | None => error,
        });
    }

    /// Returns the next address to try now.
    pub(super) fn poll_attempt(&mut self, now: Instant) -> Option<IpAddr> {
        if self.in_flight > 0 && self.stagger.is_some_and(|at| now < at) {
            return None;
        }
        let only_v4_is_there = self.v6.asked && self.v6.addresses.is_empty();
        if only_v4_is_there && self.head_start.is_some_and(|at| now < at) {
            return None;
        }
        let family = self.next;
        let (family, address) = match self.side(family).addresses.pop_front() {
            Some(address) => (family, address),
            None => {
                let family = family.other();
                (family, self.side(family).addresses.pop_front()?)
            }
        };
        self.next = family.other();
        self.in_flight += 1;
        self.stagger = Some(now + ATTEMPT_DELAY);
        Some(address)
    }

    /// Returns when to ask [`Race::poll_attempt`] again, if no news comes before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.v6.addresses.is_empty() && self.v4.addresses.is_empty() {
            return None;
        }
        let stagger = self.stagger.filter(|_| self.in_flight > 0);
        let head_start = self
            .head_start
            .filter(|_| self.v6.asked && self.v6.addresses.is_empty());
        stagger.max(head_start)
    }

    /// Returns why the race is lost, once nothing is left to wait for.
    pub(super) fn failure(&self) -> Option<OriginError> {
        let open = self.in_flight > 0
            || [&self.v6, &self.v4]
                .iter()
                .any(|side| side.asked || !side.addresses.is_empty());
        if open {
            return None;
        }
        Some(match (self.connect_error, &self.resolve_error) {
            (Some(error), _) => OriginError::Connect(error),
            (None, Some(error)) => OriginError::Resolve(error.clone()),
            (None, None) => OriginError::Resolve(ResolveError::NoAddress),
        })
    }

    fn side(&mut self, family: Family) -> &mut Side {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// How much a failure tells about the origin: an answer from the origin itself first, a
/// property of the tunnel last.
fn weight(error: ConnectError) -> u8 {
    match error {
        ConnectError::NoAddress => 0,
        ConnectError::TunnelDown(_) => 1,
        ConnectError::TooManyFlows | ConnectError::PortTaken => 2,
        ConnectError::NetworkUnreachable => 3,
        ConnectError::Unreachable => 4,
        ConnectError::TimedOut => 5,
        ConnectError::NotAllowed => 6,
        ConnectError::Refused => 7,
    }
}

/// RFC 8305 section 3: how long an A answer waits for the AAAA answer.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// RFC 8305 section 5: the recommended delay between attempts.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn families_alternate_every_250_ms_ipv6_first() {
        let now = Instant::now();
        let mut race = Race::of_addresses(&[
            ip("192.0.2.1"),
            ip("192.0.2.2"),
            ip("2001:db8::1"),
            ip("2001:db8::2"),
        ]);
        let mut order = Vec::new();
        let mut at = now;
        while let Some(address) = race.poll_attempt(at) {
            order.push((at - now, address));
            assert_eq!(race.poll_attempt(at), None);
            match race.poll_timeout() {
                Some(next) => at = next,
                None => break,
            }
        }
        assert_eq!(
            order,
            [
                (ms(0), ip("2001:db8::1")),
                (ms(250), ip("192.0.2.1")),
                (ms(500), ip("2001:db8::2")),
                (ms(750), ip("192.0.2.2")),
            ]
        );
    }

    #[test]
    fn failed_attempt_is_followed_at_once() {
        let now = Instant::now();
        let mut race = Race::of_addresses(&[ip("2001:db8::1"), ip("192.0.2.1")]);
        assert_eq!(race.poll_attempt(now), Some(ip("2001:db8::1")));
        assert_eq!(race.poll_attempt(now), None);
        race.handle_failure(ConnectError::NetworkUnreachable);
        assert_eq!(race.poll_attempt(now), Some(ip("192.0.2.1")));
        assert_eq!(race.failure(), None);
        race.handle_failure(ConnectError::TimedOut);
        assert_eq!(
            race.failure(),
            Some(OriginError::Connect(ConnectError::TimedOut))
        );
    }

    #[test]
    fn a_answer_waits_50_ms_for_aaaa() {
        let now = Instant::now();
        let mut race = Race::of_name();
        assert_eq!(race.poll_attempt(now), None);
        race.handle_answer(now, Family::V4, Ok(vec![ip("192.0.2.1")]));
        assert_eq!(race.poll_attempt(now), None);
        assert_eq!(race.poll_timeout(), Some(now + ms(50)));
        assert_eq!(race.poll_attempt(now + ms(50)), Some(ip("192.0.2.1")));
        // AAAA comes later and joins the race when its turn comes.
        race.handle_answer(now + ms(60), Family::V6, Ok(vec![ip("2001:db8::1")]));
        assert_eq!(race.poll_attempt(now + ms(60)), None);
        assert_eq!(race.poll_timeout(), Some(now + ms(300)));
        assert_eq!(race.poll_attempt(now + ms(300)), Some(ip("2001:db8::1")));
    }

    #[test]
    fn aaaa_answer_starts_at_once_and_refused_aaaa_frees_a() {
        let now = Instant::now();
        let mut race = Race::of_name();
        race.handle_answer(now, Family::V6, Ok(vec![ip("2001:db8::1")]));
        assert_eq!(race.poll_attempt(now), Some(ip("2001:db8::1")));

        let mut race = Race::of_name();
        race.handle_answer(now, Family::V4, Ok(vec![ip("192.0.2.1")]));
        race.handle_answer(now, Family::V6, Err(ResolveError::NoAddress));
        assert_eq!(race.poll_attempt(now), Some(ip("192.0.2.1")));
    }

    #[test]
    fn error_told_is_the_most_telling_one() {
        let now = Instant::now();
        let mut race = Race::of_name();
        race.handle_answer(now, Family::V6, Err(ResolveError::NoAddress));
        assert_eq!(race.failure(), None);
        race.handle_answer(now, Family::V4, Err(ResolveError::NotFound));
        assert_eq!(
            race.failure(),
            Some(OriginError::Resolve(ResolveError::NotFound))
        );

        let mut race = Race::of_addresses(&[ip("2001:db8::1"), ip("192.0.2.1")]);
        race.poll_attempt(now);
        race.handle_failure(ConnectError::Refused);
        race.poll_attempt(now);
        race.handle_failure(ConnectError::NetworkUnreachable);
        assert_eq!(
            race.failure(),
            Some(OriginError::Connect(ConnectError::Refused))
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Answer(bool, u8),
        NoAnswer(bool),
        Fail,
        Wait(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (any::<bool>(), 1..5_u8).prop_map(|(six, n)| Step::Answer(six, n)),
            any::<bool>().prop_map(Step::NoAnswer),
            Just(Step::Fail),
            (0..400_u16).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: each address is tried once, and a race that
        /// is not over always has something to wait for.
        #[test]
        fn race_never_stalls(steps in proptest::collection::vec(step(), 0..40)) {
            let start = Instant::now();
            let mut now = start;
            let mut race = Race::of_name();
            let mut asked = [true, true];
            let (mut given, mut tried, mut failed) = (0_usize, 0_usize, 0_usize);
            for step in steps {
                match step {
                    Step::Answer(six, n) if asked[usize::from(six)] => {
                        asked[usize::from(six)] = false;
                        given += usize::from(n);
                        let (family, address) = if six {
                            (Family::V6, ip("2001:db8::1"))
                        } else {
                            (Family::V4, ip("192.0.2.1"))
                        };
                        race.handle_answer(now, family, Ok(vec![address; usize::from(n)]));
                    }
                    Step::NoAnswer(six) if asked[usize::from(six)] => {
                        asked[usize::from(six)] = false;
                        let family = if six { Family::V6 } else { Family::V4 };
                        race.handle_answer(now, family, Err(ResolveError::TimedOut));
                    }
                    Step::Fail if tried > failed => {
                        failed += 1;
                        race.handle_failure(ConnectError::TimedOut);
                    }
                    Step::Wait(millis) => now += ms(u64::from(millis)),
                    Step::Answer(..) | Step::NoAnswer(_) | Step::Fail => {}
                }
                while race.poll_attempt(now).is_some() {
                    tried += 1;
                }
                prop_assert!(tried <= given);
                if race.failure().is_none() {
                    let timer = race.poll_timeout();
                    prop_assert!(timer.is_none_or(|at| at > now));
                    prop_assert!(timer.is_some() || tried > failed || asked.contains(&true));
                } else {
                    prop_assert_eq!(tried, given);
                }
            }
        }
    }
}
