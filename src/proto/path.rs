//! Where the datagrams of a lane go, and how that changes while the session lives (RFC 9000,
//! section 9, cut down to two ends that seal everything).
//!
//! ```text
//!   datagrams from A, to A
//!        │  one opens that came from B and has the highest counter yet
//!        ▼
//!   to A still; PathChallenge to B, thrice at most        ──── nothing ────▶  B is forgotten
//!        │  PathResponse with the same 16 bytes
//!        ▼
//!   to B; one PathChallenge to A, which may be where the other end still is
//! ```
//!
//! A datagram that opens shows that the other end made it, not that it is where the datagram came
//! from: whoever stands between may send a copy from elsewhere, and be faster. So an address gets
//! at most three times the bytes that came from it until it has echoed, and what is forwarded from
//! elsewhere moves the lane for as long as it is faster, no longer: the next datagram from the old
//! address with a higher counter begins the way back.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::aead::same_secret;
use super::random::Generator;
use crate::wire::PATH_CHALLENGE_LEN;

/// Where a datagram came from, or goes to: opaque to the session, which only compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramPath {
    /// The other end.
    pub remote: SocketAddr,
    /// Our own address, where the socket has several.
    pub local: Option<IpAddr>,
    /// The driver's number for the socket.
    pub socket: u32,
}

impl DatagramPath {
    /// A path by the driver's only socket.
    #[must_use]
    pub const fn to(remote: SocketAddr) -> Self {
        Self {
            remote,
            local: None,
            socket: 0,
        }
    }

    /// Longest datagram that an Ethernet link takes to there: 1,500 bytes less IP and UDP headers.
    #[must_use]
    pub fn ethernet_datagram(&self) -> usize {
        match self.remote.ip().to_canonical() {
            IpAddr::V4(_) => 1500 - 20 - 8,
            IpAddr::V6(_) => 1500 - 40 - 8,
        }
    }
}

/// The path of one lane, and the one it may be about to take.
#[derive(Debug)]
pub(super) struct Paths {
    current: DatagramPath,
    candidate: Option<Candidate>,
    /// A probe of the path that was left, to be sent once.
    farewell: Option<(DatagramPath, [u8; PATH_CHALLENGE_LEN])>,
}

#[derive(Debug)]
struct Candidate {
    path: DatagramPath,
    challenge: [u8; PATH_CHALLENGE_LEN],
    received: u64,
    sent: u64,
    tries: u32,
    next: Instant,
}

impl Paths {
    pub(super) const fn new(current: DatagramPath) -> Self {
        Self {
            current,
            candidate: None,
            farewell: None,
        }
    }

    /// Where datagrams go.
    pub(super) const fn current(&self) -> DatagramPath {
        self.current
    }

    /// Sets the path of a lane that has not been used on another.
    pub(super) fn set(&mut self, path: DatagramPath) {
        *self = Self::new(path);
    }

    /// A datagram of `len` bytes opened that came by `path`; `newest` says that no later one has.
    pub(super) fn handle_opened(
        &mut self,
        now: Instant,
        path: DatagramPath,
        len: usize,
        newest: bool,
        generator: &mut Generator,
    ) {
        if path.remote == self.current.remote {
            // The other end is where it was: what came from elsewhere was a copy, or is over. Which
            // of our own addresses it speaks to is its own affair.
            if newest {
                self.current = path;
                self.candidate = None;
            }
            return;
        }
        match &mut self.candidate {
            Some(candidate) if candidate.path == path => {
                candidate.received = candidate.received.saturating_add(len as u64);
            }
            Some(_) | None if newest => {
                self.candidate = Some(Candidate {
                    path,
                    challenge: generator.array(),
                    received: len as u64,
                    sent: 0,
                    tries: 0,
                    next: now,
                });
            }
            Some(_) | None => {}
        }
    }

    /// An echo came; the path that was left, if it moves the lane.
    pub(super) fn handle_response(
        &mut self,
        echo: &[u8; PATH_CHALLENGE_LEN],
        generator: &mut Generator,
    ) -> Option<DatagramPath> {
        let echoes = |candidate: &mut Candidate| {
            candidate.tries > 0 && same_secret(&candidate.challenge, echo)
        };
        let candidate = self.candidate.take_if(echoes)?;
        let left = std::mem::replace(&mut self.current, candidate.path);
        self.farewell = Some((left, generator.array()));
        Some(left)
    }

    /// The next challenge to send, in a datagram of `len` bytes, and where to. Asked again after
    /// `patience` without an echo; given up after [`MAX_TRIES`].
    pub(super) fn poll(
        &mut self,
        now: Instant,
        len: usize,
        patience: Duration,
    ) -> Option<(DatagramPath, [u8; PATH_CHALLENGE_LEN])> {
        if let Some(farewell) = self.farewell.take() {
            return Some(farewell);
        }
        let candidate = self.candidate.as_mut().filter(|one| one.next <= now)?;
        if candidate.tries >= MAX_TRIES {
            self.candidate = None;
            return None;
        }
        candidate.next = now + patience;
        candidate.tries += 1;
        if candidate.sent + len as u64 > candidate.received * AMPLIFICATION {
            return None;
        }
        candidate.sent += len as u64;
        Some((candidate.path, candidate.challenge))
    }

    /// When [`Paths::poll`] has something next, or forgets something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.candidate.as_ref().map(|candidate| candidate.next)
    }
}

/// Challenges to an address that does not answer (RFC 9000, section 8.2.4, has three round trips).
const MAX_TRIES: u32 = 3;

/// Bytes to an address for each byte from it, until it has echoed (RFC 9000, section 8.2).
const AMPLIFICATION: u64 = 3;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(250);

    fn at(port: u16) -> DatagramPath {
        DatagramPath::to(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn generator() -> Generator {
        Generator::new(&mut StdRng::seed_from_u64(1))
    }

    fn is_due(paths: &Paths, now: Instant) -> bool {
        paths.farewell.is_some() || paths.deadline().is_some_and(|at| at <= now)
    }

    #[test]
    fn a_lane_moves_only_after_the_echo_and_probes_the_old_path_once() {
        let (now, mut generator) = (Instant::now(), generator());
        let mut paths = Paths::new(at(1));
        paths.handle_opened(now, at(2), 100, true, &mut generator);
        let (path, challenge) = paths.poll(now, 44, PATIENCE).unwrap();
        assert_eq!((path, paths.current()), (at(2), at(1)));
        assert_eq!(paths.handle_response(&[0; 16], &mut generator), None);
        assert_eq!(
            paths.handle_response(&challenge, &mut generator),
            Some(at(1))
        );
        assert_eq!(paths.current(), at(2));
        assert_eq!(paths.handle_response(&challenge, &mut generator), None);
        assert_eq!(paths.poll(now, 44, PATIENCE).map(|(to, _)| to), Some(at(1)));
        assert_eq!(paths.poll(now, 44, PATIENCE), None);
        assert_eq!(paths.deadline(), None);
    }

    #[test]
    fn a_datagram_that_was_overtaken_moves_nothing() {
        let (now, mut generator) = (Instant::now(), generator());
        let mut paths = Paths::new(at(1));
        paths.handle_opened(now, at(2), 100, false, &mut generator);
        assert!(!is_due(&paths, now));
        paths.handle_opened(now, at(2), 100, true, &mut generator);
        assert!(is_due(&paths, now));
        paths.handle_opened(now, at(1), 100, true, &mut generator);
        assert!(!is_due(&paths, now), "the other end is where it was");
    }

    #[test]
    fn an_address_gets_three_times_what_came_from_it_and_three_tries() {
        let (now, mut generator) = (Instant::now(), generator());
        let mut paths = Paths::new(at(1));
        paths.handle_opened(now, at(2), 28, true, &mut generator);
        assert!(paths.poll(now, 44, PATIENCE).is_some());
        assert!(
            paths.poll(now, 44, PATIENCE).is_none(),
            "not before its time"
        );
        assert!(
            paths.poll(now + PATIENCE, 44, PATIENCE).is_none(),
            "88 of 84"
        );
        paths.handle_opened(now, at(2), 28, false, &mut generator);
        assert!(paths.poll(now + PATIENCE * 2, 44, PATIENCE).is_some());
        assert!(paths.poll(now + PATIENCE * 3, 44, PATIENCE).is_none());
        assert_eq!(paths.deadline(), None, "given up");
    }

    #[test]
    fn which_of_our_addresses_the_other_end_speaks_to_is_followed_at_once() {
        let (now, mut generator) = (Instant::now(), generator());
        let mut paths = Paths::new(at(1));
        let mut other = at(1);
        other.local = Some(IpAddr::from([198, 51, 100, 7]));
        other.socket = 3;
        paths.handle_opened(now, other, 100, false, &mut generator);
        assert_eq!(paths.current(), at(1), "overtaken");
        paths.handle_opened(now, other, 100, true, &mut generator);
        assert_eq!(paths.current(), other);
        assert!(!is_due(&paths, now));
    }

    #[test]
    fn an_echo_before_any_challenge_left_is_none() {
        let (now, mut generator) = (Instant::now(), generator());
        let mut paths = Paths::new(at(1));
        paths.handle_opened(now, at(2), 100, true, &mut generator);
        let challenge = paths.candidate.as_ref().unwrap().challenge;
        assert_eq!(paths.handle_response(&challenge, &mut generator), None);
    }
}
