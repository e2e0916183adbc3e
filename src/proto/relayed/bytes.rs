//! A queue of bytes in chunks: what was sent and is not acknowledged, or came and was not taken.
//!
//! Memory is by use: a queue without bytes holds no chunk; the first is small, since most flows say little, and those
//! behind it are large. Chunks come from and go back to [`Spares`], which all flows of a session share, so that warm
//! flows allocate nothing.

use std::collections::VecDeque;

/// Bytes in order, in chunks.
#[derive(Debug, Default)]
pub(super) struct Bytes {
    chunks: VecDeque<Chunk>,
    len: usize,
}

#[derive(Debug)]
struct Chunk {
    room: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Bytes {
    /// Lends room behind the last byte, at most `most` bytes of it, to be filled and told to [`Bytes::advance`].
    pub(super) fn room(&mut self, spares: &mut Spares, most: usize) -> &mut [u8] {
        let full = |chunk: &Chunk| chunk.end == chunk.room.len();
        if most > 0 && self.chunks.back().is_none_or(full) {
            let room = spares.take(self.chunks.is_empty());
            self.chunks.push_back(Chunk {
                room,
                start: 0,
                end: 0,
            });
        }
        let Some(last) = self.chunks.back_mut() else {
            return &mut [];
        };
        let end = last.room.len().min(last.end.saturating_add(most));
        &mut last.room[last.end..end]
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
                spares.give(chunk.room);
            }
        }
    }

    /// Copies bytes behind the last one.
    pub(super) fn extend(&mut self, spares: &mut Spares, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = self.room(spares, bytes.len());
            let len = room.len();
            room.copy_from_slice(&bytes[..len]);
            self.advance(spares, len);
            bytes = &bytes[len..];
        }
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
}

/// Chunks that nobody uses, for the next who does.
#[derive(Debug, Default)]
pub(super) struct Spares {
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    made: u64,
}

impl Spares {
    fn take(&mut self, small: bool) -> Box<[u8]> {
        let (spare, len) = if small {
            (self.small.pop(), SMALL)
        } else {
            (self.large.pop(), LARGE)
        };
        spare.unwrap_or_else(|| {
            self.made += 1;
            vec![0; len].into_boxed_slice()
        })
    }

    fn give(&mut self, chunk: Box<[u8]>) {
        let spares = if chunk.len() == SMALL {
            &mut self.small
        } else {
            &mut self.large
        };
        if spares.len() < MOST_SPARES {
            spares.push(chunk);
        }
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        self.small = Vec::new();
        self.large = Vec::new();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Chunks that were allocated, ever.
    pub(super) const fn made(&self) -> u64 {
        self.made
    }
}

/// A chunk of a queue that was empty: a request, or the answer to a small one.
pub(super) const SMALL: usize = 4 * 1024;

/// A chunk of a queue that holds something: a frame's worth.
pub(super) const LARGE: usize = crate::wire::MAX_FLOW_DATA;

/// Chunks kept of each size: one window, so that a bulk flow, whose queue breathes by a quarter of it, allocates
/// nothing.
const MOST_SPARES: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn empty_queue_holds_no_chunk() {
        let (mut bytes, mut spares) = (Bytes::default(), Spares::default());
        bytes.extend(&mut spares, &[1; 100_000]);
        bytes.consume(&mut spares, 100_000);
        assert!(bytes.is_empty() && bytes.chunks.is_empty());
        assert_eq!(bytes.room(&mut spares, 9).len(), 9);
        bytes.advance(&mut spares, 0);
        assert!(bytes.chunks.is_empty());
        let made = spares.made();
        bytes.extend(&mut spares, &[1; 100_000]);
        assert_eq!(spares.made(), made, "the spares serve again");
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((1..200_000usize, 0..200_000usize), 1..20)
        ) {
            let (mut bytes, mut spares) = (Bytes::default(), Spares::default());
            let mut reference = VecDeque::new();
            for (at, (add, take)) in steps.into_iter().enumerate() {
                let added: Vec<u8> = (0..add).map(|n| (n * 7 + at) as u8).collect();
                bytes.extend(&mut spares, &added);
                reference.extend(added);
                bytes.consume(&mut spares, take);
                reference.drain(..take.min(reference.len()));
                prop_assert_eq!(bytes.len(), reference.len());
                let mut read = 0;
                while read < bytes.len() {
                    let piece = bytes.piece(read);
                    prop_assert!(piece.len() <= LARGE && !piece.is_empty());
                    prop_assert!(reference.iter().skip(read).take(piece.len()).eq(piece));
                    read += piece.len();
                }
            }
        }
    }
}
