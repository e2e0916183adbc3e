//! The read buffer of a stream lane: bytes in, whole frames out, in place.
//!
//! All bytes are in one contiguous piece of memory. `start..end` has arrived and was not handed
//! out yet; what the socket sends next is written behind `end`. The part of a frame that ends a
//! read stays where it is; it is moved to the front only
//!  - when that is cheap, which is when it is at most a sixteenth of what was consumed in front
//!    of it (so that traffic which comes in small portions stays in the same warm memory), or
//!  - when the room behind it would not take the rest of the frame.
//!
//! Either way well below a tenth of the bytes is ever moved.
//!
//! The memory is zeroed when it is allocated (by the kernel, for the sizes that matter) and not
//! again, so that a read may be given all of it as an ordinary slice.
//!
//! How large the buffer may be is not its own to say: see [`memory`](super::memory). Where memory is
//! refused to it, bytes are moved more often; where it is refused for a frame that has begun, there is
//! no room until there is memory.

use std::ops::Range;

use thiserror::Error;

use super::memory::{FLOOR, Grant, ReadMemory};

/// The largest value of a frame's length field that a lane accepts at first: what the messages
/// before authentication may need.
pub const FRAME_LIMIT_AT_FIRST: usize = 2048;

/// Cuts a stream of bytes into frames.
pub(super) struct Inbound {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    limit: usize,
    /// What it may hold; there once the peer is authenticated.
    grant: Option<Grant>,
    /// There is no room, because there is no memory for the frame that is coming.
    starved: bool,
    finished: bool,
    /// The last read filled all the room it was given, and that was most of the buffer.
    filled: bool,
    /// The reads since the buffer's size was last judged, and the most it held after one.
    window: u32,
    peak: usize,
    /// Bytes moved to the front so far.
    moved: u64,
}

impl Inbound {
    pub(super) fn new() -> Inbound {
        Inbound {
            bytes: allocate(FLOOR),
            start: 0,
            end: 0,
            limit: FRAME_LIMIT_AT_FIRST,
            grant: None,
            starved: false,
            finished: false,
            filled: false,
            window: 0,
            peak: 0,
            moved: 0,
        }
    }

    /// Accepts frames up to `limit` from now on, which take what they need beyond the floor from `memory`.
    pub(super) fn set_limit(&mut self, limit: usize, memory: ReadMemory) {
        self.limit = limit;
        self.grant = Some(Grant::new(memory));
    }

    /// Returns the room for the next read, empty only when the frames that are there fill the
    /// buffer and have to be handed out first, or when it [is starved](Inbound::is_starved).
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.starved = false;
        self.judge_size();
        let room = self.bytes.len() - self.end;
        let tail = self.end - self.start;
        let cheap = tail * CHEAP_MOVE <= self.start;
        let cramped = room < self.missing().max(MIN_READ.min(self.bytes.len() / 8));
        if self.start > 0 && cheap {
            self.move_to_front();
        } else if self.start > 0 && cramped {
            // A dear move means that the buffer is small for such frames: a larger one moves
            // them more rarely.
            if !self.grow() {
                self.move_to_front();
            }
        } else if room == 0 && !self.grow() {
            self.grow_for_frame();
        }
        self.spare()
    }

    /// Returns the room there is, as [`Inbound::room`] has made it.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// Takes note that the next `read` bytes of [`Inbound::room`] were written.
    pub(super) fn advance(&mut self, read: usize) {
        let room = self.bytes.len() - self.end;
        let read = read.min(room);
        self.filled = read == room && room >= self.bytes.len() / 2;
        self.end += read;
        self.peak = self.peak.max(self.end - self.start);
        self.window = self.window.saturating_add(1);
    }

    /// Takes note that the peer will send no more.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    /// Hands out the next whole frame, with its length bytes.
    pub(super) fn next_frame(&mut self) -> Result<Option<&mut [u8]>, FrameError> {
        let have = self.end - self.start;
        let total = match self.frame_len()? {
            Some(total) if total <= have => total,
            Some(_) | None if have > 0 && self.finished => {
                return Err(FrameError::Truncated { have });
            }
            Some(_) | None => return Ok(None),
        };
        let frame = self.start..self.start + total;
        self.start = frame.end;
        Ok(Some(&mut self.bytes[frame]))
    }

    /// Where in the buffer the next frame begins, and the last that was handed out ended.
    pub(super) fn handed_out(&self) -> usize {
        self.start
    }

    /// Lends bytes of frames that were handed out since the last read, as their taker left them.
    pub(super) fn again(&self, range: Range<usize>) -> &[u8] {
        debug_assert!(range.end <= self.start, "not handed out yet");
        self.bytes.get(range).unwrap_or_default()
    }

    /// Gives back the memory that what is buffered does not need.
    pub(super) fn shrink(&mut self) {
        let needed = (self.end - self.start).max(FLOOR);
        self.filled = false;
        if needed < self.bytes.len() {
            self.resize(needed);
        }
        self.settle();
    }

    /// Tells whether there was no room, because there is no memory for the frame that is coming.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    /// Tells whether a part of a frame takes memory that others could use.
    pub(super) fn holds_part(&self) -> bool {
        !self.starved && self.coming() > FLOOR && self.reserved() > FLOOR
    }

    /// Tells whether memory is short for its session, or for all.
    pub(super) fn is_short(&self) -> bool {
        self.grant.as_ref().is_some_and(Grant::is_short)
    }

    /// How many bytes have arrived and were not handed out.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// The whole length of the frame that starts the buffer, once its length bytes are there.
    fn frame_len(&self) -> Result<Option<usize>, FrameError> {
        let Some(header) = self.bytes[self.start..self.end].first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*header);
        if length == 0 {
            return Err(FrameError::Empty);
        }
        match usize::try_from(length) {
            Ok(len) if len <= self.limit => Ok(Some(LENGTH + len)),
            Ok(_) | Err(_) => Err(FrameError::TooLong {
                length,
                limit: self.limit,
            }),
        }
    }

    /// How many bytes the frame at the start still lacks; 0 when it is complete or was refused.
    fn missing(&self) -> usize {
        match self.frame_len() {
            Ok(Some(total)) => total.saturating_sub(self.end - self.start),
            Ok(None) => LENGTH - (self.end - self.start),
            Err(_) => 0,
        }
    }

    /// The whole length of the frame that is coming, of which a part is there; 0 where none is.
    fn coming(&self) -> usize {
        match self.frame_len() {
            Ok(Some(total)) if total > self.end - self.start => total,
            Ok(_) | Err(_) => 0,
        }
    }

    /// How many bytes it may hold without asking.
    fn reserved(&self) -> usize {
        self.grant.as_ref().map_or(FLOOR, Grant::capacity)
    }

    /// Grows a buffer that the last read filled; shrinks one that a whole window of reads left
    /// mostly empty, and where memory is short any that is larger than its frame.
    fn judge_size(&mut self) {
        self.settle();
        if self.bytes.len() > FLOOR && self.is_short() {
            self.filled = false;
            let needed = self.coming().max(self.end - self.start).max(FLOOR);
            if needed < self.bytes.len() {
                self.resize(needed);
                self.settle();
            }
        } else if self.filled {
            self.filled = false;
            self.grow();
        } else if self.window >= SIZE_WINDOW {
            let wanted = (self.peak * SPARE).max(FLOOR);
            self.window = 0;
            self.peak = 0;
            if self.start == self.end && wanted * 2 <= self.bytes.len() {
                self.resize(wanted);
                self.settle();
            }
        }
    }

    /// Gives back what was granted and neither the buffer nor the frame that is coming needs.
    fn settle(&mut self) {
        let needed = self.bytes.len().max(self.coming());
        if let Some(grant) = &mut self.grant {
            grant.settle(needed);
        }
    }

    /// Makes the buffer a size larger, if it may be; returns whether it is.
    fn grow(&mut self) -> bool {
        let larger = self.larger();
        let granted = larger > self.bytes.len()
            && (self.grant.as_mut()).is_some_and(|grant| grant.grow(larger));
        if granted {
            self.resize(larger);
        }
        granted
    }

    /// Makes the buffer larger for the frame that fills it and is longer, or starves.
    fn grow_for_frame(&mut self) {
        let total = self.coming();
        if total <= self.bytes.len() {
            return;
        }
        if (self.grant.as_mut()).is_some_and(|grant| grant.claim(total)) {
            self.resize(self.larger().min(total));
        } else {
            self.starved = true;
        }
    }

    /// The next size up that the frame limit allows.
    fn larger(&self) -> usize {
        let max = if self.limit <= FRAME_LIMIT_AT_FIRST {
            FLOOR
        } else {
            MAX_CAPACITY.max(LENGTH + self.limit)
        };
        (self.bytes.len() * 4).min(max).max(self.bytes.len())
    }

    fn resize(&mut self, capacity: usize) {
        if capacity == self.bytes.len() {
            return;
        }
        let mut bytes = allocate(capacity);
        let held = self.end - self.start;
        bytes[..held].copy_from_slice(&self.bytes[self.start..self.end]);
        self.bytes = bytes;
        self.moved += held as u64;
        (self.start, self.end) = (0, held);
        self.window = 0;
        self.peak = 0;
    }

    fn move_to_front(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.moved += (self.end - self.start) as u64;
        (self.start, self.end) = (0, self.end - self.start);
    }
}

/// What is wrong with the bytes a peer sent as frames; the lane cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field exceeds what is accepted now.
    #[error("frame of length {length}, {limit} at most")]
    TooLong {
        /// The value of the length field.
        length: u32,
        /// The largest value that was acceptable.
        limit: usize,
    },
    /// The length field is zero: a frame has at least a type.
    #[error("frame without a type")]
    Empty,
    /// The stream ended inside a frame.
    #[error("stream ended {have} bytes into a frame")]
    Truncated {
        /// How much of the frame had arrived.
        have: usize,
    },
}

fn allocate(capacity: usize) -> Box<[u8]> {
    vec![0; capacity].into_boxed_slice()
}

/// The length field of a frame in bytes.
pub(super) const LENGTH: usize = 4;

/// The largest buffer: so many of the largest frames (66,004 bytes) that even when its room
/// always ends just before the last byte of one, less than a tenth of the bytes is moved. With
/// half a MiB, frames of 65,581 bytes do exactly that and 14 % are moved.
const MAX_CAPACITY: usize = 768 * 1024;

/// The part of a frame is moved to the front early when it is at most this part of the bytes
/// consumed in front of it.
const CHEAP_MOVE: usize = 16;

/// The least room worth a system call at the end of a large buffer.
const MIN_READ: usize = 16 * 1024;

/// A buffer is too large when it is twice as large as this times the most it held: with less
/// spare room the moves at its end would cost more than a tenth.
const SPARE: usize = 10;

/// How many reads decide whether the buffer is too large. On an idle lane, whose keepalive is
/// two reads in ten seconds, that is about three minutes.
const SIZE_WINDOW: u32 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::memory::READ_MEMORY;
    use super::*;
    use crate::proto::budget::Budget;

    fn memory() -> ReadMemory {
        ReadMemory::of(&Budget::new(READ_MEMORY))
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    }

    /// Feeds `bytes` in portions no larger than `portion` says and collects the frames.
    fn feed(inbound: &mut Inbound, bytes: &[u8], portions: &[usize]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut rest = bytes;
        let mut portions = portions.iter().cycle();
        while !rest.is_empty() {
            let room = inbound.room();
            assert!(!room.is_empty(), "no room although all frames are drained");
            let portion = portions.next().map_or(usize::MAX, |p| *p);
            let n = rest.len().min(portion).min(room.len());
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            inbound.advance(n);
            while let Some(frame) = inbound.next_frame().expect("the frames are legal") {
                frames.push(frame.to_vec());
            }
        }
        frames
    }

    #[test]
    fn frame_comes_whole_with_its_length_bytes() {
        let mut inbound = Inbound::new();
        let frames = feed(&mut inbound, &[0, 0, 0, 3, 9, 8, 7, 0, 0], &[usize::MAX]);
        assert_eq!(frames, [vec![0, 0, 0, 3, 9, 8, 7]]);
        assert_eq!(inbound.len(), 2);
    }

    #[test]
    fn oversize_frame_is_refused_before_anything_grows() {
        let mut inbound = Inbound::new();
        let before = inbound.capacity();
        let room = inbound.room();
        room[..4].copy_from_slice(&2049_u32.to_be_bytes());
        inbound.advance(4);
        assert_eq!(
            inbound.next_frame(),
            Err(FrameError::TooLong {
                length: 2049,
                limit: 2048
            })
        );
        let _ = inbound.room();
        assert_eq!(inbound.capacity(), before);
    }

    #[test]
    fn largest_length_field_is_refused() {
        let mut inbound = Inbound::new();
        inbound.set_limit(66_000, memory());
        inbound.room()[..4].copy_from_slice(&[0xff; 4]);
        inbound.advance(4);
        assert!(matches!(
            inbound.next_frame(),
            Err(FrameError::TooLong {
                length: u32::MAX,
                ..
            })
        ));
    }

    #[test]
    fn frame_without_a_type_is_refused() {
        let mut inbound = Inbound::new();
        inbound.room()[..4].fill(0);
        inbound.advance(4);
        assert_eq!(inbound.next_frame(), Err(FrameError::Empty));
    }

    #[test]
    fn stream_that_ends_inside_a_frame_is_truncated_and_else_is_not() {
        let mut inbound = Inbound::new();
        assert_eq!(feed(&mut inbound, &frame(b"abc"), &[3]).len(), 1);
        inbound.finish();
        assert_eq!(inbound.next_frame(), Ok(None));

        for cut in 1..7 {
            let mut inbound = Inbound::new();
            feed(&mut inbound, &frame(b"abc")[..cut], &[usize::MAX]);
            inbound.finish();
            assert_eq!(
                inbound.next_frame(),
                Err(FrameError::Truncated { have: cut })
            );
        }
    }

    #[test]
    fn unauthenticated_peer_cannot_grow_the_buffer() {
        let mut inbound = Inbound::new();
        let before = inbound.capacity();
        let stream: Vec<u8> = (0..100).flat_map(|_| frame(&[7; 2048])).collect();
        assert_eq!(feed(&mut inbound, &stream, &[usize::MAX]).len(), 100);
        assert_eq!(inbound.capacity(), before);
        assert!(before <= 2048 + 4);
    }

    #[test]
    fn steady_traffic_keeps_its_buffer() {
        for portion in [1_448, 16_384, 200_000] {
            let mut inbound = Inbound::new();
            inbound.set_limit(66_000, memory());
            let stream = frame(&[3; 60_000]).repeat(100);
            feed(&mut inbound, &stream, &[portion]);
            let settled = inbound.capacity();
            let moved = inbound.moved();
            feed(&mut inbound, &stream, &[portion]);
            assert_eq!(inbound.capacity(), settled);
            assert!(inbound.moved() - moved < stream.len() as u64 / 10);
        }
    }

    #[test]
    fn large_frame_grows_the_buffer_only_as_its_bytes_come() {
        let mut inbound = Inbound::new();
        inbound.set_limit(66_000, memory());
        inbound.room()[..4].copy_from_slice(&66_000_u32.to_be_bytes());
        inbound.advance(4);
        assert_eq!(inbound.next_frame(), Ok(None));
        let _ = inbound.room();
        assert_eq!(inbound.capacity(), 2052);
        let mut arrived = 4;
        while arrived < 60_000 {
            let room = inbound.room().len().min(1000);
            inbound.advance(room);
            arrived += room;
            assert!(inbound.capacity() <= (arrived * 4).max(2052 * 4));
        }
    }

    #[test]
    fn buffer_grows_under_load_and_shrinks_after_it() {
        let mut inbound = Inbound::new();
        inbound.set_limit(66_000, memory());
        let load: Vec<u8> = (0..200).flat_map(|_| frame(&[1; 60_000])).collect();
        feed(&mut inbound, &load, &[usize::MAX]);
        assert_eq!(inbound.capacity(), MAX_CAPACITY);
        let idle: Vec<u8> = (0..200).flat_map(|_| frame(&[1; 60])).collect();
        feed(&mut inbound, &idle, &[64]);
        assert_eq!(inbound.capacity(), 2052);
    }

    #[test]
    fn shrink_keeps_what_is_buffered() {
        let mut inbound = Inbound::new();
        inbound.set_limit(66_000, memory());
        let load: Vec<u8> = (0..100).flat_map(|_| frame(&[1; 60_000])).collect();
        feed(&mut inbound, &load, &[usize::MAX]);
        let last = frame(&[5; 5000]);
        feed(&mut inbound, &last[..4000], &[usize::MAX]);
        inbound.shrink();
        assert_eq!(inbound.capacity(), 4000);
        assert_eq!(feed(&mut inbound, &last[4000..], &[300]), [last]);
    }

    #[test]
    fn less_than_a_tenth_of_a_bulk_stream_is_moved() {
        for body in [65_577_usize, 65_000, 40_000, 9_000, 1_426, 100] {
            for portion in [usize::MAX, 300_000, 70_000, 16_384, 1_448] {
                let mut inbound = Inbound::new();
                inbound.set_limit(66_000, memory());
                let one = frame(&vec![3; body]);
                let stream = one.repeat(32_000_000 / one.len());
                feed(&mut inbound, &stream, &[portion]);
                let tenth = stream.len() as u64 / 10;
                assert!(
                    inbound.moved() < tenth,
                    "{} of {} bytes moved, frames of {body}, portions of {portion}",
                    inbound.moved(),
                    stream.len(),
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_frames(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 0..20),
            large in prop::collection::vec(0..20_usize, 0..3),
            portions in prop::collection::vec(1..5000_usize, 1..20),
        ) {
            let mut bodies = bodies;
            for at in large {
                let at = at.min(bodies.len());
                bodies.insert(at, vec![at as u8; 65_999]);
            }
            let frames: Vec<Vec<u8>> = bodies.iter().map(|body| frame(body)).collect();
            let mut inbound = Inbound::new();
            inbound.set_limit(66_000, memory());
            let got = feed(&mut inbound, &frames.concat(), &portions);
            prop_assert_eq!(got, frames);
            prop_assert_eq!(inbound.len(), 0);
        }

        #[test]
        fn garbage_never_panics_and_never_exceeds_the_bound(
            bytes in prop::collection::vec(any::<u8>(), 0..10_000),
            portion in 1..3000_usize,
        ) {
            let mut inbound = Inbound::new();
            let mut rest = &bytes[..];
            'stream: while !rest.is_empty() {
                let room = inbound.room();
                let n = rest.len().min(portion).min(room.len());
                room[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                inbound.advance(n);
                loop {
                    match inbound.next_frame() {
                        Ok(Some(frame)) => prop_assert!(frame.len() <= 2052),
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
            prop_assert!(inbound.capacity() <= 2052);
        }
    }
}
