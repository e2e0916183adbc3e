//! A queue of bytes in chunks: what was sent and is not acknowledged, or came and was not taken.
//!
//! Memory is by use: a queue without bytes holds no chunk; the first is small, since most flows say little, those
//! behind it are large, and those of a queue in bulk are huge, so that one read fills several frames. Chunks come from and go back to [`Spares`], which all flows of a session share, so that warm
//! flows allocate nothing; they count against the session's [`Share`], filled or not.

use std::collections::VecDeque;

use super::WINDOW;
use crate::proto::budget::Share;

/// Bytes in order, in chunks.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    chunks: VecDeque<Chunk>,
    len: usize,
    /// What the chunks take.
    memory: usize,
}

#[derive(Debug)]
struct Chunk {
    room: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Bytes {
    /// Lends room behind the last byte, at most `most` bytes of it, to be filled and told to [`Bytes::advance`]. Beyond its
    /// first chunk the queue takes no more memory than its flow is allowed.
    pub(super) fn room(&mut self, spares: &mut Spares, most: usize) -> &mut [u8] {
        let len = self.next_chunk();
        let allowed = match len {
            SMALL => spares.share.admits(len),
            _ => self.memory + len <= spares.share.allowance(),
        };
        if most > 0 && self.is_full() && allowed {
            self.push(spares, len);
        }
        self.lend(most)
    }

    /// Takes note that the first `len` bytes of the room were filled; without any, the room is given back.
    pub(super) fn advance(&mut self, spares: &mut Spares, len: usize) {
        if let Some(last) = self.chunks.back_mut() {
            let len = len.min(last.room.len() - last.end);
            last.end += len;
            self.len += len;
            if last.start == last.end
                && let Some(chunk) = self.chunks.pop_back()
            {
                self.memory -= chunk.room.len();
                spares.give(chunk.room);
            }
        }
    }

    /// Copies bytes behind the last one.
    ///
    /// # Errors
    /// [`NoMemory`] at the hard bound of memory; some of the bytes may have been copied.
    pub(super) fn extend(&mut self, spares: &mut Spares, mut bytes: &[u8]) -> Result<(), NoMemory> {
        while !bytes.is_empty() {
            if self.is_full() {
                let len = self.next_chunk();
                if !spares.share.admits(len) {
                    return Err(NoMemory);
                }
                self.push(spares, len);
            }
            let room = self.lend(bytes.len());
            let len = room.len();
            room.copy_from_slice(&bytes[..len]);
            self.advance(spares, len);
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// The bytes that stand together from the `at`th on; none behind the last.
    pub(super) fn piece(&self, mut at: usize) -> &[u8] {
        for chunk in &self.chunks {
            let held = chunk.end - chunk.start;
            if at < held {
                return &chunk.room[chunk.start + at..chunk.end];
            }
            at -= held;
        }
        &[]
    }

    /// Drops the first `len` bytes, and gives back what held them.
    pub(super) fn consume(&mut self, spares: &mut Spares, len: usize) {
        let mut left = len.min(self.len);
        self.len -= left;
        while let Some(first) = self.chunks.front_mut() {
            let taken = left.min(first.end - first.start);
            first.start += taken;
            left -= taken;
            if first.start < first.end {
                return;
            }
            if let Some(chunk) = self.chunks.pop_front() {
                self.memory -= chunk.room.len();
                spares.give(chunk.room);
            }
        }
    }

    pub(super) fn clear(&mut self, spares: &mut Spares) {
        self.consume(spares, self.len);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn is_full(&self) -> bool {
        let full = |chunk: &Chunk| chunk.end == chunk.room.len();
        self.chunks.back().is_none_or(full)
    }

    /// How large the chunk is that comes next.
    fn next_chunk(&self) -> usize {
        match self.len {
            0 => SMALL,
            BULK.. => HUGE,
            _ => LARGE,
        }
    }

    fn push(&mut self, spares: &mut Spares, len: usize) {
        self.memory += len;
        self.chunks.push_back(Chunk {
            room: spares.take(len),
            start: 0,
            end: 0,
        });
    }

    /// The room that is left in the last chunk, at most `most` of it.
    fn lend(&mut self, most: usize) -> &mut [u8] {
        let Some(last) = self.chunks.back_mut() else {
            return &mut [];
        };
        let end = last.room.len().min(last.end.saturating_add(most));
        &mut last.room[last.end..end]
    }
}

/// The hard bound of memory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoMemory;

/// Chunks that nobody uses, for the next who does, and the account of all.
#[derive(Debug)]
pub(super) struct Spares {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    huge: Vec<Box<[u8]>>,
    /// What the chunks of all take.
    spare: usize,
    made: u64,
    /// The fewest there were of each size, small ones first, since the last [`Spares::rest`]: nobody needed them.
    fewest: [usize; 3],
    share: Share,
}

impl Spares {
    pub(super) const fn new(share: Share) -> Self {
        Self {
            small: Vec::new(),
            large: Vec::new(),
            huge: Vec::new(),
            spare: 0,
            made: 0,
            fewest: [0; 3],
            share,
        }
    }

    fn take(&mut self, len: usize) -> Box<[u8]> {
        let spare = self.of(len).pop();
        let left = self.of(len).len();
        let fewest = &mut self.fewest[size(len)];
        *fewest = left.min(*fewest);
        match spare {
            Some(spare) => {
                self.spare -= len;
                spare
            }
            None => {
                self.made += 1;
                self.share.add(len);
                vec![0; len].into_boxed_slice()
            }
        }
    }

    fn give(&mut self, chunk: Box<[u8]>) {
        let (len, ample) = (chunk.len(), self.share.is_ample());
        let spares = self.of(len);
        if ample && spares.len() < MOST_SPARES.min(MOST_SPARE / len) {
            spares.push(chunk);
            self.spare += len;
        } else {
            self.share.sub(len);
        }
    }

    fn of(&mut self, len: usize) -> &mut Vec<Box<[u8]>> {
        match size(len) {
            0 => &mut self.small,
            1 => &mut self.large,
            _ => &mut self.huge,
        }
    }

    /// Gives those spares back to the system that nobody needed since the last time.
    pub(super) fn rest(&mut self) {
        for len in [SMALL, LARGE, HUGE] {
            let surplus = self.fewest[size(len)];
            let spares = self.of(len);
            // The oldest of them: what was used last is in the cache.
            drop(spares.drain(..surplus.min(spares.len())));
            if spares.is_empty() {
                *spares = Vec::new();
            }
            self.fewest[size(len)] = self.of(len).len();
            self.spare -= surplus * len;
            self.share.sub(surplus * len);
        }
    }

    /// Whether there are any.
    pub(super) const fn is_empty(&self) -> bool {
        self.spare == 0
    }

    /// What the queues of all flows take.
    pub(super) const fn held(&self) -> usize {
        self.share.held() - self.spare
    }

    pub(super) const fn share(&self) -> &Share {
        &self.share
    }

    /// Chunks that were allocated, ever.
    pub(super) const fn made(&self) -> u64 {
        self.made
    }
}

/// Which of the sizes it is, small ones first.
const fn size(len: usize) -> usize {
    match len {
        SMALL => 0,
        HUGE => 2,
        _ => 1,
    }
}

/// A chunk of a queue that was empty: a request, or the answer to a small one.
pub(super) const SMALL: usize = 4 * 1024;

/// A chunk of a queue that holds something: a frame's worth.
pub(super) const LARGE: usize = crate::wire::MAX_FLOW_DATA;

/// A chunk of a queue in bulk: what a Credit makes room for at a time.
pub(super) const HUGE: usize = WINDOW as usize / 4;

/// A queue that holds so much is in bulk.
const BULK: usize = HUGE;

/// Bytes kept in chunks of each size, and how many they are at most. A bulk flow's queue breathes by a quarter of its
/// window: with this much 32 of them allocate nothing, and new memory, which the system hands out zeroed page by page, costs
/// more than all that is done with the bytes.
const MOST_SPARE: usize = 8 * WINDOW as usize;
const MOST_SPARES: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::budget::Budget;

    fn spares(most: usize) -> Spares {
        Spares::new(Share::new(Budget::new(1 << 30), most))
    }

    #[test]
    fn empty_queue_holds_no_chunk() {
        let (mut bytes, mut spares) = (Bytes::default(), spares(1 << 25));
        bytes.extend(&mut spares, &[1; 100_000]).unwrap();
        assert_eq!(spares.held(), SMALL + 2 * LARGE);
        bytes.consume(&mut spares, 100_000);
        assert_eq!(spares.held(), 0);
        assert!(bytes.is_empty() && bytes.chunks.is_empty());
        assert_eq!(bytes.room(&mut spares, 9).len(), 9);
        bytes.advance(&mut spares, 0);
        assert!(bytes.chunks.is_empty());
        let made = spares.made();
        bytes.extend(&mut spares, &[1; 100_000]).unwrap();
        assert_eq!(spares.made(), made, "the spares serve again");
    }

    #[test]
    fn spares_that_rest_are_given_back() {
        let (mut bytes, mut spares) = (Bytes::default(), spares(1 << 25));
        bytes.extend(&mut spares, &[1; 100_000]).unwrap();
        bytes.clear(&mut spares);
        spares.rest();
        assert_eq!(spares.share().held(), SMALL + 2 * LARGE, "just used");
        spares.rest();
        assert_eq!(spares.share().held(), 0);
    }

    #[test]
    fn short_of_memory_a_queue_has_its_first_chunk_and_no_spare_is_kept() {
        let mut spares = spares(2 * LARGE);
        let (mut full, mut bytes) = (Bytes::default(), Bytes::default());
        full.extend(&mut spares, &[1; 2 * LARGE]).unwrap();
        assert!(spares.share().is_short());
        assert_eq!(bytes.room(&mut spares, usize::MAX).len(), SMALL);
        bytes.advance(&mut spares, SMALL);
        assert!(bytes.room(&mut spares, usize::MAX).is_empty());
        let beyond = full.extend(&mut spares, &[1; 2 * LARGE]);
        assert_eq!(beyond, Err(NoMemory));
        assert!(spares.held() <= 4 * LARGE);
        bytes.clear(&mut spares);
        full.clear(&mut spares);
        assert!(spares.share().held() <= LARGE, "{}", spares.share().held());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((1..200_000usize, 0..200_000usize), 1..20)
        ) {
            let (mut bytes, mut spares) = (Bytes::default(), spares(1 << 25));
            let mut reference = Vec::new();
            for (at, (add, take)) in steps.into_iter().enumerate() {
                // A length that no chunk's is a multiple of.
                reference.extend((0..251u8).cycle().skip(at).take(add));
                bytes.extend(&mut spares, &reference[reference.len() - add..]).unwrap();
                bytes.consume(&mut spares, take);
                reference.drain(..take.min(reference.len()));
                prop_assert_eq!(bytes.len(), reference.len());
                let mut read = 0;
                while read < bytes.len() {
                    let piece = bytes.piece(read);
                    prop_assert!(piece.len() <= HUGE && !piece.is_empty());
                    prop_assert!(reference[read..].starts_with(piece));
                    read += piece.len();
                }
            }
        }
    }
}
