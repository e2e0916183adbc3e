//! What proves a message 1 fresh when its time does not: the newest time of every instance, and a
//! challenge that only a living client can answer.

use std::collections::HashMap;

use crate::proto::aead::same_secret;
use crate::proto::identity::PublicKey;
use crate::proto::random::Generator;
use crate::wire::{CHALLENGE_LEN, INSTANCE_LEN};

/// The challenges of one connection. Lives as long as the connection does before its handshake.
#[derive(Clone, Debug, Default)]
pub struct ChallengeState {
    outstanding: Option<[u8; CHALLENGE_LEN]>,
    issued: u8,
}

impl ChallengeState {
    /// Draws a challenge; `None` when the connection has had [`MAX_CHALLENGES`].
    pub(super) fn issue(&mut self, generator: &mut Generator) -> Option<[u8; CHALLENGE_LEN]> {
        if self.issued >= MAX_CHALLENGES {
            return None;
        }
        self.issued += 1;
        let challenge = generator.array();
        self.outstanding = Some(challenge);
        Some(challenge)
    }

    /// Takes an answer: right once, for the challenge issued last.
    pub(super) fn accept(&mut self, answer: &[u8; CHALLENGE_LEN]) -> bool {
        self.outstanding
            .take()
            .is_some_and(|challenge| same_secret(&challenge, answer))
    }
}

/// The newest time heard from every (key, instance), in microseconds since 1970.
#[derive(Debug)]
pub(super) struct NewestTimes {
    newest: HashMap<(PublicKey, [u8; INSTANCE_LEN]), u64>,
    floor: u64,
    limit: usize,
}

impl NewestTimes {
    /// Starts empty; anything before `floor` is stale, which is what a restart needs.
    pub(super) fn new(floor: u64, limit: usize) -> Self {
        Self {
            newest: HashMap::new(),
            floor,
            limit,
        }
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
        let fresh = proven || !self.is_stale(&key, &instance, time);
        if fresh {
            self.accept(key, instance, time);
        }
        fresh
    }

    fn is_stale(&self, key: &PublicKey, instance: &[u8; INSTANCE_LEN], time: u64) -> bool {
        time <= self
            .newest
            .get(&(*key, *instance))
            .copied()
            .unwrap_or(self.floor)
    }

    /// Remembers a time that was accepted. The table forgets its oldest entry when it is full, and
    /// from then on takes anything as old as that for stale.
    fn accept(&mut self, key: PublicKey, instance: [u8; INSTANCE_LEN], time: u64) {
        let entry = (key, instance);
        if self.newest.len() >= self.limit && !self.newest.contains_key(&entry) {
            let oldest = self.newest.iter().min_by_key(|(_, time)| **time);
            if let Some((oldest, time)) = oldest.map(|(entry, time)| (*entry, *time)) {
                self.newest.remove(&oldest);
                self.floor = self.floor.max(time);
            }
        }
        let floor = self.floor;
        let newest = self.newest.entry(entry).or_insert(floor);
        *newest = time.max(*newest);
    }
}

/// Challenges per connection: one is enough, the second forgives a message 1 that crossed it.
pub const MAX_CHALLENGES: u8 = 2;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const A: PublicKey = PublicKey::from_bytes([1; 32]);
    const B: PublicKey = PublicKey::from_bytes([2; 32]);

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
    fn a_challenge_is_answered_once_and_issued_twice() {
        let mut generator = Generator::new(&mut StdRng::seed_from_u64(1));
        let mut state = ChallengeState::default();
        let first = state.issue(&mut generator).unwrap();
        assert!(!ChallengeState::default().accept(&first));
        assert!(state.accept(&first));
        assert!(!state.accept(&first));
        let second = state.issue(&mut generator).unwrap();
        assert!(!state.accept(&first));
        assert!(
            !state.accept(&second),
            "a wrong answer spends the challenge"
        );
        assert_eq!(state.issue(&mut generator), None);
    }
}
