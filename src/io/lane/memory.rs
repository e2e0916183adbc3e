//! How much the read buffers of all lanes may hold: one bounded pool, which sessions and lanes have parts of.
//!
//! # Theory of operation
//!
//! A frame is opened only when it is whole, and until then its bytes stand in the lane's buffer. Every lane has a little
//! of its own, which takes any frame but a super-packet's ([`FLOOR`]); what it has beyond that is counted, for its
//! session and for the whole process ([`Budget`]), and is asked for in one of two ways:
//!
//! - **To grow** ([`Grant::grow`]), because the far end fills the buffer and larger reads cost less. Granted up to half of
//!   what is left, so that few lanes have all they can use and many have equal parts.
//! - **For a frame** ([`Grant::claim`]) that has begun to come and is longer than the buffer. Granted up to the hard bound,
//!   twice the other, for the whole frame at once, though the buffer grows only as its bytes come: whoever has it can
//!   finish his frame, and so give the memory back. Lanes that had a part of theirs each would wait for each other.
//!
//! A lane whose claim is refused is not read: its peer's connection fills up, and the claim is made again soon. Where
//! memory is short, lanes give back what no frame needs with their next read, and a frame that does not get on costs its
//! lane (see [carriers](crate::io::carrier)). Where it is not, a lane that sits on a part of a frame is ended for its
//! silence, since nothing opens on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::inbound::{FRAME_LIMIT_AT_FIRST, LENGTH};
use crate::proto::budget::{Budget, Share};

/// One session's part of the memory that read buffers hold. Clones are the same.
#[derive(Clone, Debug)]
pub struct ReadMemory(Arc<Mutex<Share>>);

impl ReadMemory {
    /// Makes a part of `all`, in which nothing is held.
    #[must_use]
    pub fn of(all: &Arc<Budget>) -> Self {
        Self(Arc::new(Mutex::new(Share::new(all.clone(), OF_SESSION))))
    }

    /// Returns whether lanes are to make do with what their frames need.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.lock().is_short()
    }

    fn lock(&self) -> MutexGuard<'_, Share> {
        // A share is whole between any two of its operations, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one buffer holds beyond its floor; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Grant {
    memory: ReadMemory,
    held: usize,
}

impl Grant {
    pub(super) fn new(memory: ReadMemory) -> Self {
        Self { memory, held: 0 }
    }

    /// Asks for `capacity` bytes in all, to read more at once.
    pub(super) fn grow(&mut self, capacity: usize) -> bool {
        self.ask(capacity, |share, beyond, _| beyond <= share.allowance())
    }

    /// Asks for `capacity` bytes in all, which a frame needs.
    pub(super) fn claim(&mut self, capacity: usize) -> bool {
        self.ask(capacity, |share, _, more| share.admits(more))
    }

    /// Takes note that `capacity` bytes in all are enough.
    pub(super) fn settle(&mut self, capacity: usize) {
        let enough = capacity.saturating_sub(FLOOR);
        if enough < self.held {
            self.memory.lock().sub(self.held - enough);
            self.held = enough;
        }
    }

    /// Returns how many bytes it has in all.
    pub(super) fn capacity(&self) -> usize {
        FLOOR + self.held
    }

    pub(super) fn is_short(&self) -> bool {
        self.memory.is_short()
    }

    fn ask(&mut self, capacity: usize, may: impl FnOnce(&Share, usize, usize) -> bool) -> bool {
        let beyond = capacity.saturating_sub(FLOOR);
        let Some(more) = beyond.checked_sub(self.held).filter(|more| *more > 0) else {
            return true;
        };
        let mut share = self.memory.lock();
        let granted = may(&share, beyond, more);
        if granted {
            share.add(more);
            self.held = beyond;
        }
        granted
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.settle(FLOOR);
    }
}

/// What every read buffer may hold: a frame as long as those before authentication, which are longer than any of a packet
/// of the wire.
pub(super) const FLOOR: usize = LENGTH + FRAME_LIMIT_AT_FIRST;

/// What the read buffers of a process hold beyond their floors, at most: 80 bulk transfers with a buffer of full size, or
/// a thousand lanes in the middle of a super-packet, to which twice as much is open.
pub const READ_MEMORY: usize = 64 << 20;

/// The same for one session: four bulk lanes side by side have buffers of full size, and all lanes that it may have are
/// in the middle of a super-packet.
const OF_SESSION: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::inbound::Inbound;
    use super::*;

    /// The longest frame that a lane accepts, which takes 66,004 bytes.
    const LIMIT: usize = 66_000;

    /// A lane, and what its peer sends on it.
    struct Lane {
        inbound: Inbound,
        stream: Vec<u8>,
        sent: usize,
        frames: usize,
    }

    impl Lane {
        fn new(memory: &ReadMemory, lengths: &[usize]) -> Self {
            let mut inbound = Inbound::new();
            inbound.set_limit(LIMIT, memory.clone());
            let mut stream = Vec::new();
            for len in lengths {
                stream.extend_from_slice(&(*len as u32).to_be_bytes());
                stream.resize(stream.len() + len, 7);
            }
            Self {
                inbound,
                stream,
                sent: 0,
                frames: 0,
            }
        }

        /// Reads once, `most` bytes at most; returns whether anything came.
        fn read(&mut self, most: usize) -> bool {
            let rest = &self.stream[self.sent..];
            let room = self.inbound.room();
            let len = room.len().min(most).min(rest.len());
            room[..len].copy_from_slice(&rest[..len]);
            self.inbound.advance(len);
            self.sent += len;
            while self.inbound.next_frame().expect("legal").is_some() {
                self.frames += 1;
            }
            len > 0
        }

        /// Sends until so much of the stream has come; returns whether it has.
        fn send(&mut self, until: usize) -> bool {
            while self.sent < until && self.read(until - self.sent) {}
            self.sent == until
        }

        fn beyond(&self) -> usize {
            self.inbound.capacity() - FLOOR
        }
    }

    /// Lanes of as many sessions, each of which is sent such frames.
    fn lanes(all: &Arc<Budget>, count: usize, lengths: &[usize]) -> Vec<Lane> {
        let lane = |_| Lane::new(&ReadMemory::of(all), lengths);
        (0..count).map(lane).collect()
    }

    /// What three of the longest frames take, of which the third is beyond the soft bound.
    const THREE: usize = 100_000;

    #[test]
    fn frame_for_which_there_is_no_memory_comes_when_another_is_whole() {
        let all = Budget::new(THREE);
        let mut lanes = lanes(&all, 4, &[LIMIT]);
        let half = LIMIT / 2;
        let began: Vec<bool> = lanes.iter_mut().map(|lane| lane.send(half)).collect();
        assert_eq!(began, [true, true, true, false]);
        assert!(lanes[3].inbound.is_starved());
        assert!(!lanes[3].inbound.holds_part() && lanes[2].inbound.holds_part());
        assert_eq!(lanes[3].beyond(), 0);
        assert!(lanes[0].send(LIMIT + LENGTH) && lanes[0].frames == 1);
        assert!(!lanes[3].send(half), "its buffer is still as large");
        lanes[0].read(0);
        assert!(lanes[3].send(LIMIT + LENGTH) && lanes[3].frames == 1);
        drop(lanes);
        assert_eq!(all.held(), 0);
    }

    #[test]
    fn frames_of_the_wire_need_none() {
        let all = Budget::new(THREE);
        let mut held = lanes(&all, 3, &[LIMIT]);
        assert!(held.iter_mut().all(|lane| lane.send(LIMIT)));
        let memory = ReadMemory::of(&all);
        assert!(memory.is_short());
        let mut lane = Lane::new(&memory, &[1_426; 100]);
        assert!(lane.send(1_430 * 100) && lane.frames == 100);
        assert_eq!(lane.beyond(), 0);
    }

    #[test]
    fn whoever_has_begun_can_finish_so_that_all_do() {
        let all = Budget::new(THREE);
        let mut lanes = lanes(&all, 50, &[LIMIT; 3]);
        while lanes.iter().any(|lane| lane.frames < 3) {
            let (before, mut any) = (all.held(), false);
            for lane in &mut lanes {
                any |= lane.read(500);
            }
            // Who was the last to read may have given back what the others wait for.
            assert!(any || all.held() < before, "they wait for each other");
        }
        lanes.iter_mut().for_each(|lane| lane.inbound.shrink());
        assert_eq!(all.held(), 0);
    }

    #[test]
    fn buffers_in_bulk_shrink_to_their_frames_where_memory_is_short() {
        let all = Budget::new(2 << 20);
        let mut lane = Lane::new(&ReadMemory::of(&all), &[60_000; 200]);
        assert!(lane.send(60_004 * 100 + 40_000));
        assert!(lane.beyond() > 400_000, "{}", lane.beyond());
        let mut parts = lanes(&all, 40, &[LIMIT]);
        assert!(parts.iter_mut().all(|lane| lane.send(LIMIT)));
        assert!(lane.inbound.is_short() && !lane.read(0));
        assert_eq!(lane.beyond(), 60_004 - FLOOR);
        assert!(lane.send(60_004 * 200) && lane.frames == 200);
    }

    #[test]
    fn session_that_takes_all_it_may_leaves_the_others_theirs() {
        let all = Budget::new(READ_MEMORY);
        let greedy = ReadMemory::of(&all);
        let mut lanes: Vec<Lane> = (0..200).map(|_| Lane::new(&greedy, &[LIMIT])).collect();
        let began = lanes
            .iter_mut()
            .filter_map(|lane| lane.send(LIMIT).then_some(()));
        assert!(began.count() < 200);
        assert!(all.held() <= 2 * OF_SESSION && all.held() + LIMIT > 2 * OF_SESSION);
        assert!(greedy.is_short());
        let mut lane = Lane::new(&ReadMemory::of(&all), &[60_000; 100]);
        assert!(lane.send(60_004 * 100) && !lane.inbound.is_short());
        assert!(lane.beyond() > 400_000, "{}", lane.beyond());
    }

    proptest! {
        #[test]
        fn all_buffers_together_keep_to_the_bound_and_every_frame_comes(
            most in 70_000..400_000_usize,
            lanes in prop::collection::vec(prop::collection::vec(1..=LIMIT, 1..8), 1..12),
            portions in prop::collection::vec(1..100_000_usize, 1..20),
        ) {
            let all = Budget::new(most);
            // Two lanes of each session.
            let sessions: Vec<ReadMemory> = lanes.iter().map(|_| ReadMemory::of(&all)).collect();
            let mut lanes: Vec<(usize, Lane)> = lanes
                .iter()
                .enumerate()
                .map(|(at, lengths)| (lengths.len(), Lane::new(&sessions[at / 2], lengths)))
                .collect();
            let mut portions = portions.iter().cycle();
            while lanes.iter().any(|(count, lane)| lane.frames < *count) {
                let (before, mut any) = (all.held(), false);
                for at in 0..lanes.len() {
                    any |= lanes[at].1.read(*portions.next().expect("cyclic"));
                    let held: usize = lanes.iter().map(|(_, lane)| lane.beyond()).sum();
                    prop_assert!(held <= all.held() && all.held() <= 2 * most);
                }
                prop_assert!(any || all.held() < before, "they wait for each other");
            }
            drop(lanes);
            prop_assert_eq!(all.held(), 0);
        }
    }
}
