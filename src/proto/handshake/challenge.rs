//! What proves a message 1 fresh when its time does not: the newest time of every instance, and a
//! challenge that only a living client can answer.

use std::collections::{BTreeSet, HashMap};

use crate::proto::aead::same_secret;
use crate::proto::identity::PublicKey;
use crate::proto::random::Generator;
use crate::wire::{CHALLENGE_LEN, INSTANCE_LEN};

/// Whose message 1 it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whose {
    pub(super) peer: PublicKey,
    pub(super) instance: [u8; INSTANCE_LEN],
    /// The time of its message 1 that was accepted last.
    pub(super) last: u64,
}

/// How a lane shows that a stale message 1 is no copy.
pub(super) trait Freshness {
    /// Makes a challenge; `None` when there were enough.
    fn issue(&mut self, whose: &Whose, generator: &mut Generator) -> Option<[u8; CHALLENGE_LEN]>;

    /// Takes an answer; whether it is right.
    fn accept(&mut self, whose: &Whose, answer: &[u8; CHALLENGE_LEN]) -> bool;
}

/// The challenges of one connection. Lives as long as the connection does before its handshake.
#[derive(Clone, Debug, Default)]
pub struct ChallengeState {
    outstanding: Option<[u8; CHALLENGE_LEN]>,
    issued: u8,
}

impl Freshness for ChallengeState {
    /// Draws a challenge; `None` when the connection has had [`MAX_CHALLENGES`].
    fn issue(&mut self, _whose: &Whose, generator: &mut Generator) -> Option<[u8; CHALLENGE_LEN]> {
        if self.issued >= MAX_CHALLENGES {
            return None;
        }
        self.issued += 1;
        let challenge = generator.array();
        self.outstanding = Some(challenge);
        Some(challenge)
    }

    /// Takes an answer: right once, for the challenge issued last.
    fn accept(&mut self, _whose: &Whose, answer: &[u8; CHALLENGE_LEN]) -> bool {
        self.outstanding
            .take()
            .is_some_and(|challenge| same_secret(&challenge, answer))
    }
}

/// The newest time heard from every (key, instance), in microseconds since 1970.
#[derive(Debug)]
pub(super) struct NewestTimes {
    newest: HashMap<Instance, Times>,
    /// The same by their newest times: a full table has to find its oldest entry for every newcomer.
    oldest: BTreeSet<(u64, Instance)>,
    floor: u64,
    limit: usize,
}

impl NewestTimes {
    /// Starts empty; anything before `floor` is stale, which is what a restart needs.
    pub(super) fn new(floor: u64, limit: usize) -> Self {
        Self {
            newest: HashMap::new(),
            oldest: BTreeSet::new(),
            floor,
            limit,
        }
    }

    /// The time accepted last from an instance, or before which everything is stale where nothing was.
    pub(super) fn last(&self, key: PublicKey, instance: [u8; INSTANCE_LEN]) -> u64 {
        let known = self.newest.get(&(key, instance));
        known.map_or(self.floor, |times| times.last)
    }

    /// Takes the time of a message 1, whose sender is `proven` alive or not; `false` if it might be
    /// a message seen before. Two equal messages at once get `true` once.
    pub(super) fn admit(
        &mut self,
        key: PublicKey,
        instance: [u8; INSTANCE_LEN],
        time: u64,
        proven: bool,
    ) -> bool {
        let fresh = self.is_fresh(key, instance, time, proven);
        if fresh {
            self.accept(key, instance, time);
        }
        fresh
    }

    /// As [`NewestTimes::admit`] says, and nothing is kept: of whoever gets no session in any case, who could otherwise fill
    /// the table with times of a far future, and have every client be asked for proof.
    pub(super) fn is_fresh(
        &self,
        key: PublicKey,
        instance: [u8; INSTANCE_LEN],
        time: u64,
        proven: bool,
    ) -> bool {
        let known = self.newest.get(&(key, instance));
        // A challenge of an address is good until one answer to it is accepted: of two at once, too.
        let repeated = known.is_some_and(|times| times.last == time);
        !repeated && (proven || !self.is_stale(&key, &instance, time))
    }

    fn is_stale(&self, key: &PublicKey, instance: &[u8; INSTANCE_LEN], time: u64) -> bool {
        time <= self
            .newest
            .get(&(*key, *instance))
            .map_or(self.floor, |times| times.newest)
    }

    /// Remembers a time that was accepted. The table forgets its oldest entry when it is full, and
    /// from then on takes anything as old as that for stale.
    fn accept(&mut self, key: PublicKey, instance: [u8; INSTANCE_LEN], time: u64) {
        let entry = (key, instance);
        if self.newest.len() >= self.limit
            && !self.newest.contains_key(&entry)
            && let Some((time, oldest)) = self.oldest.pop_first()
        {
            self.newest.remove(&oldest);
            self.floor = self.floor.max(time);
        }
        let floor = self.floor;
        let times = self.newest.entry(entry).or_insert(Times {
            newest: floor,
            last: floor,
        });
        self.oldest.remove(&(times.newest, entry));
        times.newest = time.max(times.newest);
        times.last = time;
        self.oldest.insert((times.newest, entry));
    }
}

/// A run of a client.
type Instance = (PublicKey, [u8; INSTANCE_LEN]);

/// What is known of one instance.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The newest time accepted.
    newest: u64,
    /// The time accepted last, which is older if the clock went back.
    last: u64,
}

/// Challenges per connection: one is enough, the second forgives a message 1 that crossed it.
pub const MAX_CHALLENGES: u8 = 2;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const A: PublicKey = PublicKey::from_bytes([1; 32]);
    const B: PublicKey = PublicKey::from_bytes([2; 32]);
    const WHOSE: Whose = Whose {
        peer: A,
        instance: [0; 8],
        last: 0,
    };

    #[test]
    fn a_time_is_fresh_once_and_an_older_one_never() {
        let mut times = NewestTimes::new(100, 8);
        assert!(times.is_stale(&A, &[0; 8], 100));
        assert!(!times.is_stale(&A, &[0; 8], 101));
        times.accept(A, [0; 8], 200);
        assert!(times.is_stale(&A, &[0; 8], 200));
        assert!(times.is_stale(&A, &[0; 8], 150));
        assert!(!times.is_stale(&A, &[0; 8], 201));
        assert!(!times.is_stale(&A, &[1; 8], 150));
        assert!(!times.is_stale(&B, &[0; 8], 150));
    }

    #[test]
    fn an_accepted_older_time_does_not_reopen_the_door() {
        let mut times = NewestTimes::new(0, 8);
        times.accept(A, [0; 8], 200);
        times.accept(A, [0; 8], 50);
        assert!(times.is_stale(&A, &[0; 8], 199));
    }

    #[test]
    fn a_proven_time_is_admitted_once_and_a_copy_of_the_proof_is_not() {
        let mut times = NewestTimes::new(100, 8);
        assert!(times.admit(A, [0; 8], 500, false));
        assert!(!times.admit(A, [0; 8], 300, false));
        assert!(times.admit(A, [0; 8], 300, true));
        assert!(!times.admit(A, [0; 8], 300, true));
        assert!(times.admit(A, [0; 8], 301, true));
    }

    #[test]
    fn a_forgotten_entry_raises_the_floor_to_its_time() {
        let mut times = NewestTimes::new(0, 2);
        times.accept(A, [0; 8], 500);
        times.accept(A, [1; 8], 700);
        times.accept(A, [2; 8], 900);
        assert_eq!(times.newest.len(), 2);
        assert!(times.is_stale(&A, &[0; 8], 500));
        assert!(!times.is_stale(&A, &[0; 8], 501));
    }

    #[test]
    fn who_is_heard_again_is_not_the_oldest_any_more() {
        let mut times = NewestTimes::new(0, 3);
        for (instance, time) in [(0, 500), (1, 600), (2, 700), (0, 900), (1, 100), (3, 1000)] {
            times.accept(A, [instance; 8], time);
        }
        // The second was accepted with an older time, which does not make it newer.
        assert_eq!(times.last(A, [1; 8]), 600);
        assert_eq!(times.last(A, [0; 8]), 900);
        assert_eq!((times.newest.len(), times.oldest.len()), (3, 3));
    }

    #[test]
    fn a_challenge_is_answered_once_and_issued_twice() {
        let mut generator = Generator::new(&mut StdRng::seed_from_u64(1));
        let mut state = ChallengeState::default();
        let first = state.issue(&WHOSE, &mut generator).unwrap();
        assert!(!ChallengeState::default().accept(&WHOSE, &first));
        assert!(state.accept(&WHOSE, &first));
        assert!(!state.accept(&WHOSE, &first));
        let second = state.issue(&WHOSE, &mut generator).unwrap();
        assert!(!state.accept(&WHOSE, &first));
        assert!(
            !state.accept(&WHOSE, &second),
            "a wrong answer spends the challenge"
        );
        assert_eq!(state.issue(&WHOSE, &mut generator), None);
    }
}
