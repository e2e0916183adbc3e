//! The write queue of a stream lane: frames in, slices for one vectored write out.
//!
//! Small frames share a chunk contiguously; a buffer that already holds one whole frame is
//! queued as it is. A write that took only a part of a chunk leaves an offset in it. A chunk goes
//! back to its pool when its last byte is written.
//!
//! Nothing is copied but a frame of at most [`MOVED_AT_MOST`] bytes that was written to a chunk of
//! its own because room for a larger one had been asked for: it moves to the chunk before, else a
//! queue of such frames would hold, and take from the allocator, forty times its bytes.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use crate::io::pool::{Buffer, LARGE, Pool, SMALL};

/// How many bytes may be queued before a lane refuses more.
///
/// Four super-packets: enough that one vectored write per turn keeps the kernel's queue full,
/// little enough that the queues which are fair and measured stay in front of the lane.
pub const HIGH_WATER: usize = 256 * 1024;

/// How far above [`HIGH_WATER`] control frames may still be queued, in bytes.
///
/// A few dozen pings or one rekey fit; a peer that reads nothing cannot make it more.
pub const CONTROL_ALLOWANCE: usize = 16 * 1024;

/// How many slices one vectored write is given at most.
///
/// The kernel's limit is 1,024; the queue's bytes are used up before that with whole chunks.
pub(super) const MAX_SLICES: usize = 64;

/// The longest frame that is moved to the chunk before its own.
///
/// A sixteenth of a chunk and more: a queue up to [`HIGH_WATER`] then takes at most 64 of them. Copying so much costs
/// a tenth of what zeroing a new chunk does.
const MOVED_AT_MOST: usize = 4 * 1024;

/// Holds what is to be written, in order.
pub(super) struct Outbound {
    pool: Arc<Pool>,
    chunks: VecDeque<Chunk>,
    queued: usize,
    reserved: usize,
    /// Large chunks are for lanes whose peer is authenticated.
    large: bool,
}

impl Outbound {
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(super) fn new(pool: Arc<Pool>) -> Outbound {
        Outbound {
            pool,
            chunks: VecDeque::new(),
            queued: 0,
            reserved: 0,
            large: false,
        }
    }

    /// Lets small frames share large chunks from now on.
    pub(super) fn use_large_chunks(&mut self) {
        self.large = true;
    }

    /// Returns room for a frame of `len` bytes behind everything queued; `None` when `above` the
    /// high-water mark there is no more, or no chunk could ever hold it.
    pub(super) fn reserve(&mut self, len: usize, above: usize) -> Option<&mut [u8]> {
        self.reserved = 0;
        if self.queued >= HIGH_WATER + above || len > LARGE {
            return None;
        }
        let fits = self.chunks.back().is_some_and(|last| last.room() >= len);
        if !fits {
            let buffer = if self.large || len > SMALL {
                self.pool.large()
            } else {
                self.pool.small()
            };
            self.chunks.push_back(Chunk::shared(buffer));
        }
        self.reserved = len;
        let chunk = self.chunks.back_mut()?;
        Some(&mut chunk.buffer[chunk.end..chunk.end + len])
    }

    /// Queues the first `len` bytes of what was last reserved.
    pub(super) fn commit(&mut self, len: usize) {
        let len = len.min(std::mem::take(&mut self.reserved));
        let Some(mut last) = self.chunks.pop_back() else {
            return;
        };
        let moved = last.end == 0
            && len <= MOVED_AT_MOST
            && (self.chunks.back_mut()).is_some_and(|former| former.take(&last.buffer[..len]));
        if !moved {
            last.end += len;
        }
        self.queued += len;
        self.chunks.push_back(last);
    }

    /// Queues a whole buffer, or returns it when the queue is above the high-water mark.
    pub(super) fn push(&mut self, buffer: Buffer) -> Result<(), Buffer> {
        self.reserved = 0;
        if self.queued >= HIGH_WATER {
            return Err(buffer);
        }
        self.queued += buffer.len();
        self.chunks.push_back(Chunk::whole(buffer));
        Ok(())
    }

    /// Fills `slices` with what is to be written next and returns how many there are.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let waiting = self.chunks.iter().map(Chunk::waiting);
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(waiting.filter(|b| !b.is_empty())) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// Returns the longest contiguous bytes to be written next.
    pub(super) fn front(&self) -> &[u8] {
        let mut waiting = self.chunks.iter().map(Chunk::waiting);
        waiting.find(|bytes| !bytes.is_empty()).unwrap_or_default()
    }

    /// Takes note that the next `written` bytes are on their way.
    pub(super) fn advance(&mut self, written: usize) {
        let mut written = written.min(self.queued);
        self.queued -= written;
        while let Some(chunk) = self.chunks.front_mut() {
            let taken = written.min(chunk.end - chunk.start);
            chunk.start += taken;
            written -= taken;
            if chunk.start < chunk.end {
                break;
            }
            self.reserved = 0;
            self.chunks.pop_front();
        }
    }

    /// Gives back a chunk that was reserved and never used; what waits stays.
    pub(super) fn shrink(&mut self) {
        if self.queued == 0 {
            self.reserved = 0;
            self.chunks.clear();
        }
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.queued
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0
    }
}

struct Chunk {
    buffer: Buffer,
    /// What waits is `start..end`.
    start: usize,
    end: usize,
    /// Further frames may be put behind `end`.
    shared: bool,
}

impl Chunk {
    fn shared(mut buffer: Buffer) -> Chunk {
        buffer.reset();
        Chunk {
            buffer,
            start: 0,
            end: 0,
            shared: true,
        }
    }

    fn whole(buffer: Buffer) -> Chunk {
        Chunk {
            start: 0,
            end: buffer.len(),
            buffer,
            shared: false,
        }
    }

    fn room(&self) -> usize {
        if self.shared {
            self.buffer.len() - self.end
        } else {
            0
        }
    }

    /// Copies a whole frame behind what waits; false if there is no room for it.
    fn take(&mut self, frame: &[u8]) -> bool {
        if self.room() < frame.len() {
            return false;
        }
        self.buffer[self.end..self.end + frame.len()].copy_from_slice(frame);
        self.end += frame.len();
        true
    }

    fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outbound() -> Outbound {
        let mut outbound = Outbound::new(Pool::new("test", 8, 8));
        outbound.use_large_chunks();
        outbound
    }

    fn put(outbound: &mut Outbound, bytes: &[u8]) -> bool {
        let Some(room) = outbound.reserve(bytes.len(), 0) else {
            return false;
        };
        room.copy_from_slice(bytes);
        outbound.commit(bytes.len());
        true
    }

    #[test]
    fn small_frames_share_one_slice() {
        let mut outbound = outbound();
        for i in 0..10 {
            assert!(put(&mut outbound, &[i; 100]));
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        assert_eq!(outbound.slices(&mut slices), 1);
        assert_eq!(slices[0].len(), 1000);
    }

    #[test]
    fn pushed_buffer_keeps_its_place_between_small_frames() {
        let mut outbound = outbound();
        put(&mut outbound, &[1; 10]);
        let mut buffer = outbound.pool.large();
        buffer.truncate(20);
        buffer.fill(2);
        outbound.push(buffer).expect("the queue is nearly empty");
        put(&mut outbound, &[3; 10]);
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = outbound.slices(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(all, [vec![1; 10], vec![2; 20], vec![3; 10]].concat());
    }

    #[test]
    fn uncommitted_room_sends_nothing() {
        let mut outbound = outbound();
        outbound.reserve(500, 0).expect("room").fill(9);
        assert!(outbound.is_empty());
        outbound.commit(0);
        outbound.commit(500);
        assert!(outbound.is_empty());
        put(&mut outbound, &[1; 4]);
        assert_eq!(outbound.front(), [1; 4]);
    }

    #[test]
    fn commit_takes_no_more_than_was_reserved() {
        let mut outbound = outbound();
        outbound.reserve(5, 0).expect("room").fill(9);
        outbound.commit(500);
        assert_eq!(outbound.len(), 5);
    }

    #[test]
    fn queue_above_the_high_water_mark_refuses_until_it_is_written() {
        let mut outbound = outbound();
        let frame = vec![0; 60_000];
        let mut accepted = 0;
        while put(&mut outbound, &frame) {
            accepted += 1;
        }
        assert_eq!(accepted, HIGH_WATER.div_ceil(60_000));
        assert!(outbound.push(outbound.pool.small()).is_err());
        assert!(outbound.reserve(100, CONTROL_ALLOWANCE).is_none());
        outbound.advance(60_000);
        assert!(put(&mut outbound, &frame));
    }

    #[test]
    fn control_frames_have_an_allowance_above_the_mark() {
        let mut outbound = outbound();
        while put(&mut outbound, &[0; 1024]) {}
        assert_eq!(outbound.len(), HIGH_WATER);
        let mut control = 0;
        while outbound.reserve(64, CONTROL_ALLOWANCE).is_some() {
            outbound.commit(64);
            control += 64;
        }
        assert_eq!(control, CONTROL_ALLOWANCE);
    }

    #[test]
    fn frame_larger_than_any_chunk_is_refused() {
        assert!(outbound().reserve(LARGE + 1, 0).is_none());
        assert!(outbound().reserve(LARGE, 0).is_some());
    }

    #[test]
    fn written_chunks_go_back_to_the_pool() {
        let mut outbound = outbound();
        put(&mut outbound, &[1; 60_000]);
        put(&mut outbound, &[1; 60_000]);
        assert_eq!(outbound.pool.stats().large.outstanding, 2);
        outbound.advance(60_001);
        assert_eq!(outbound.pool.stats().large.outstanding, 1);
        outbound.advance(59_999);
        assert_eq!(outbound.pool.stats().large.outstanding, 0);
    }

    #[test]
    fn small_frames_share_chunks_although_room_for_large_ones_is_reserved() {
        let mut outbound = outbound();
        let mut sent = Vec::new();
        for i in 0..150 {
            let frame = [i; 1_426];
            outbound.reserve(65_000, 0).expect("room")[..frame.len()].copy_from_slice(&frame);
            outbound.commit(frame.len());
            sent.extend_from_slice(&frame);
        }
        // 150 of them are three and a quarter chunks; one more is reserved.
        assert_eq!(outbound.pool.stats().large.outstanding, 5);
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = outbound.slices(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
        assert!(all == sent);
        outbound.advance(all.len());
        assert_eq!(outbound.pool.stats().large.outstanding, 0);
    }

    #[test]
    fn chunk_that_was_only_reserved_goes_back_when_the_queue_shrinks() {
        let mut outbound = outbound();
        outbound.reserve(500, 0).expect("room").fill(9);
        outbound.shrink();
        assert_eq!(outbound.pool.stats().large.outstanding, 0);
        outbound.commit(500);
        assert!(outbound.is_empty(), "the room is gone");
        put(&mut outbound, &[1; 500]);
        outbound.shrink();
        assert_eq!(outbound.front(), [1; 500]);
    }

    #[test]
    fn lane_before_authentication_takes_small_chunks() {
        let mut outbound = Outbound::new(Pool::new("test", 8, 8));
        put(&mut outbound, &[1; 1400]);
        let stats = outbound.pool.stats();
        assert_eq!((stats.small.outstanding, stats.large.outstanding), (1, 0));
    }

    proptest! {
        #[test]
        fn any_writes_take_the_bytes_in_order(
            frames in prop::collection::vec((1..3000_usize, any::<bool>()), 1..60),
            writes in prop::collection::vec(1..5000_usize, 1..20),
        ) {
            let mut outbound = outbound();
            let mut sent = Vec::new();
            let mut received = Vec::new();
            let mut writes = writes.iter().cycle();
            for (i, (len, push)) in frames.iter().enumerate() {
                let bytes = vec![i as u8; *len];
                if *push {
                    let mut buffer = outbound.pool.large();
                    buffer.truncate(*len);
                    buffer.copy_from_slice(&bytes);
                    prop_assert!(outbound.push(buffer).is_ok());
                } else {
                    let most = if i % 2 == 0 { *len } else { 65_000 };
                    let room = outbound.reserve(most, 0);
                    room.expect("below the mark")[..*len].copy_from_slice(&bytes);
                    outbound.commit(*len);
                }
                sent.extend_from_slice(&bytes);
                if i % 3 == 0 {
                    let n = outbound.front().len().min(*writes.next().expect("cyclic"));
                    received.extend_from_slice(&outbound.front()[..n]);
                    outbound.advance(n);
                }
            }
            while !outbound.is_empty() {
                let n = {
                    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                    let count = outbound.slices(&mut slices);
                    let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
                    let n = all.len().min(*writes.next().expect("cyclic"));
                    received.extend_from_slice(&all[..n]);
                    n
                };
                outbound.advance(n);
            }
            prop_assert_eq!(received, sent);
            prop_assert_eq!(outbound.pool.stats().large.outstanding, 0);
        }
    }
}
