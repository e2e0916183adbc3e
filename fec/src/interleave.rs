//! Blocks of a [`Codec`] over a numbered stream, interleaved, so that a burst is shared out among
//! several of them.
//!
//! # Theory of operation
//!
//! The stream is cut into groups of `sources · depth` numbers, beginning with 0. A group holds `depth`
//! blocks that take turns: block j of a group that begins with number g has the sources g + j,
//! g + j + depth, g + j + 2 · depth and so on.
//!
//! ```text
//!  depth 3, 4 sources a block    ┌ group ────────────────────────────┐
//!  numbers                       0  1  2  3  4  5  6  7  8  9 10 11 │ 12 13 …
//!  block                         a  b  c  a  b  c  a  b  c  a  b  c │  d  e …
//! ```
//!
//! A repair is one parity row of one block: `first` is the block's first number, `key` the row, and
//! `span` reaches to its last source so far, so that it is a multiple of the depth and one. The block
//! may be closed early; it may not be repaired over once the next group has begun it anew.
//!
//! This is what the sliding [`window`](crate::window) was measured against. It takes less work to decode, and
//! repairs a block at its end, not before.

use std::collections::VecDeque;
use std::fmt;

use crate::codec::{Codec, Decoder, Encoder, MAX_SHARDS, MAX_SOURCES, RepairError};
use crate::stream::{
    DecoderStats, PushError, RepairOutcome, SourceOutcome, SpanError, StreamDecoder, StreamEncoder,
    StreamError, in_range,
};
use crate::window::MAX_WINDOW;

/// The shape of interleaved blocks, which both ends have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interleaving {
    /// Sources in a block that is not closed early, 1 to 255.
    pub sources: usize,
    /// Parity rows that a block may have; with the sources at most 256.
    pub rows: usize,
    /// Blocks that take turns, at least 1; with the sources at most [`MAX_WINDOW`] numbers a group.
    pub depth: usize,
}

impl Interleaving {
    fn check(&self) -> Result<(), StreamError> {
        in_range("sources of a block", self.sources, MAX_SOURCES)?;
        in_range("rows of a block", self.rows, MAX_SHARDS - self.sources)?;
        in_range("depth", self.depth, MAX_WINDOW / self.sources)
    }

    /// Returns how many numbers a group has.
    pub const fn group(&self) -> usize {
        self.sources.saturating_mul(self.depth)
    }

    /// Returns the block that has `number`, as the first number of the block, and the source's index
    /// in it.
    pub const fn place(&self, number: u64) -> (u64, usize) {
        let in_group = number % self.group() as u64;
        let depth = self.depth as u64;
        let index = in_group / depth;
        (number - index * depth, index as usize)
    }

    /// Returns the span of a repair over the first `sources` sources of a block.
    pub const fn span(&self, sources: usize) -> usize {
        sources.saturating_sub(1) * self.depth + 1
    }

    /// Returns over how many sources of a block a repair of such a span goes, `None` if there is no
    /// such repair.
    fn sources_of(&self, first: u64, span: usize) -> Option<usize> {
        let beyond = span.checked_sub(1)?;
        let sources = beyond / self.depth + 1;
        let whole = beyond % self.depth == 0 && sources <= self.sources;
        (whole && self.place(first) == (first, 0)).then_some(sources)
    }
}

/// The sender's end: an encoder for each block under way.
pub struct InterleavedEncoder<C: Codec> {
    shape: Interleaving,
    capacity: usize,
    blocks: Vec<Open<C::Encoder<Vec<u8>>>>,
    next: u64,
}

struct Open<E> {
    encoder: E,
    first: u64,
}

impl<C: Codec> InterleavedEncoder<C> {
    /// Makes an encoder of shards of at most `capacity` bytes.
    ///
    /// # Errors
    /// The shape is not possible.
    pub fn new(codec: &C, shape: Interleaving, capacity: usize) -> Result<Self, StreamError> {
        shape.check()?;
        in_range("shard capacity", capacity, isize::MAX as usize / MAX_SHARDS)?;
        let block = || Open {
            encoder: codec.encoder(vec![0; shape.rows * capacity]),
            first: u64::MAX,
        };
        Ok(Self {
            shape,
            capacity,
            blocks: (0..shape.depth).map(|_| block()).collect(),
            next: 0,
        })
    }
}

impl<C: Codec> StreamEncoder for InterleavedEncoder<C> {
    fn push(&mut self, number: u64, shard: &[u8]) -> Result<(), PushError> {
        let (len, capacity) = (shard.len(), self.capacity);
        if len > capacity {
            return Err(PushError::TooLong { len, capacity });
        }
        let passed = PushError::Passed {
            number,
            next: self.next,
        };
        if number < self.next || number == u64::MAX {
            return Err(passed);
        }
        self.next = number + 1;
        let (first, index) = self.shape.place(number);
        let block = &mut self.blocks[(number % self.shape.depth as u64) as usize];
        let begun = if index == 0 {
            block.encoder.begin(self.shape.rows, capacity).is_ok()
        } else {
            block.first == first
        };
        // After a gap the rest of a block that lacks its beginning is not coded.
        let added = begun && block.encoder.add_source(index, shard).is_ok();
        block.first = if added { first } else { u64::MAX };
        Ok(())
    }

    fn repair(
        &self,
        first: u64,
        span: usize,
        key: u16,
        out: &mut [u8],
    ) -> Result<usize, SpanError> {
        let unsupported = SpanError::Unsupported { span, key };
        let sources = self.shape.sources_of(first, span).ok_or(unsupported)?;
        let block = &self.blocks[(first % self.shape.depth as u64) as usize];
        if block.first != first || block.encoder.sources() != sources {
            return Err(SpanError::NotHeld {
                first,
                span,
                held_first: block.first,
                held_end: self.next,
            });
        }
        let parity = block.encoder.parity(key.into()).map_err(|_| unsupported)?;
        let (needed, available) = (parity.len(), out.len());
        let Some(out) = out.get_mut(..needed) else {
            return Err(SpanError::OutTooSmall { needed, available });
        };
        out.copy_from_slice(parity);
        Ok(needed)
    }
}

/// The receiver's end: the shards of the last numbers, and the parity of the blocks among them.
pub struct InterleavedDecoder<C: Codec> {
    shape: Interleaving,
    capacity: usize,
    /// Source `number` lies in slot `number % window`.
    shards: Vec<u8>,
    slots: Vec<Slot>,
    base: u64,
    end: u64,
    /// Parity of the blocks in the window; block b of group g at `(g · depth + b) % blocks`.
    blocks: Vec<Block>,
    parity: Vec<u8>,
    decoder: C::Decoder<Vec<u8>>,
    repaired: VecDeque<u64>,
    stats: DecoderStats,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    known: bool,
    len: usize,
}

/// The parity of one block: rows in the order of their arrival, all of one length.
#[derive(Clone, Debug)]
struct Block {
    first: u64,
    sources: usize,
    len: usize,
    rows: Vec<usize>,
}

impl<C: Codec> InterleavedDecoder<C> {
    /// Makes a decoder of shards of at most `capacity` bytes that keeps the last `window` of them: at
    /// least a group, at most [`MAX_WINDOW`].
    ///
    /// # Errors
    /// The shape or the window is not possible.
    pub fn new(
        codec: &C,
        shape: Interleaving,
        window: usize,
        capacity: usize,
    ) -> Result<Self, StreamError> {
        shape.check()?;
        in_range("window", window, MAX_WINDOW)?;
        in_range("group", shape.group(), window)?;
        in_range("shard capacity", capacity, isize::MAX as usize / MAX_WINDOW)?;
        // Of as many groups as a window can touch.
        let blocks = (window.div_ceil(shape.group()) + 1) * shape.depth;
        let block = Block {
            first: u64::MAX,
            sources: 0,
            len: 0,
            rows: Vec::new(),
        };
        let slot = Slot {
            known: false,
            len: 0,
        };
        let with_room = |mut block: Block| {
            block.rows = Vec::with_capacity(shape.rows);
            block
        };
        Ok(Self {
            shape,
            capacity,
            shards: vec![0; window * capacity],
            slots: vec![slot; window],
            base: 0,
            end: 0,
            blocks: (0..blocks).map(|_| with_room(block.clone())).collect(),
            parity: vec![0; blocks * shape.rows * capacity],
            decoder: codec.decoder(vec![0; shape.rows * capacity]),
            repaired: VecDeque::with_capacity(window),
            stats: DecoderStats::default(),
        })
    }

    fn slot(&self, number: u64) -> usize {
        (number % self.slots.len() as u64) as usize
    }

    fn is_known(&self, number: u64) -> bool {
        (self.base..self.end).contains(&number) && self.slots[self.slot(number)].known
    }

    /// Returns where the parity of a block is kept.
    fn block(&self, first: u64) -> usize {
        let group = first / self.shape.group() as u64;
        let depth = self.shape.depth as u64;
        let index = (group % self.blocks.len() as u64) * depth + first % depth;
        (index % self.blocks.len() as u64) as usize
    }

    fn advance(&mut self, end: u64) {
        let window = self.slots.len() as u64;
        if end.saturating_sub(self.end) > window {
            // None of the numbers skipped can be known any more.
            let missing = (self.base..self.end).filter(|&number| !self.is_known(number));
            let lost = missing.count() as u64 + (end - window - self.end);
            self.stats.lost = self.stats.lost.saturating_add(lost);
            (self.base, self.end) = (end - window, end - window);
        }
        while self.end < end {
            let slot = self.slot(self.end);
            if self.end - self.base == window {
                self.stats.lost += u64::from(!self.slots[slot].known);
                self.base += 1;
            }
            self.slots[slot].known = false;
            self.end += 1;
        }
    }

    fn keep(&mut self, number: u64, shard: &[u8]) {
        let slot = self.slot(number);
        self.slots[slot] = Slot {
            known: true,
            len: shard.len(),
        };
        self.shards[slot * self.capacity..][..shard.len()].copy_from_slice(shard);
    }

    /// Repairs the block that begins with `first` if enough of it came.
    fn try_repair(&mut self, first: u64) {
        let at = self.block(first);
        let Block {
            first: held,
            sources,
            len,
            ..
        } = self.blocks[at];
        let depth = self.shape.depth as u64;
        if held != first || sources == 0 || self.blocks[at].rows.is_empty() {
            return;
        }
        let mut shards: [Option<&[u8]>; MAX_SOURCES] = [None; MAX_SOURCES];
        for (index, shard) in shards[..sources].iter_mut().enumerate() {
            let number = first + index as u64 * depth;
            if self.is_known(number) {
                let slot = self.slot(number);
                let bytes = &self.shards[slot * self.capacity..][..self.slots[slot].len];
                // Zeros at the end of what was repaired are padding.
                let beyond = bytes.get(len..).unwrap_or_default();
                let padded = beyond.iter().all(|&byte| byte == 0);
                *shard = Some(if padded {
                    &bytes[..bytes.len().min(len)]
                } else {
                    bytes
                });
            }
        }
        let mut parity: [(usize, &[u8]); MAX_SHARDS] = [(0, &[]); MAX_SHARDS];
        let stored = at * self.shape.rows * self.capacity;
        for (nth, &row) in self.blocks[at].rows.iter().enumerate() {
            let bytes = &self.parity[stored + nth * self.capacity..][..len];
            parity[nth] = (row, bytes);
        }
        let parity = &parity[..self.blocks[at].rows.len()];
        match self.decoder.repair(&shards[..sources], parity) {
            Ok(repaired) => {
                let window = self.slots.len();
                for (index, shard) in repaired.iter() {
                    let number = first + index as u64 * depth;
                    let slot = (number % window as u64) as usize;
                    self.slots[slot] = Slot {
                        known: true,
                        len: shard.len(),
                    };
                    self.shards[slot * self.capacity..][..shard.len()].copy_from_slice(shard);
                    self.stats.repaired += 1;
                    if self.repaired.len() == window {
                        self.repaired.pop_front();
                    }
                    self.repaired.push_back(number);
                }
                self.blocks[at].rows.clear();
            }
            Err(RepairError::NotEnoughParity { .. }) => {}
            Err(_) => {
                self.stats.repairs_malformed += 1;
                self.blocks[at].rows.clear();
            }
        }
    }
}

impl<C: Codec> StreamDecoder for InterleavedDecoder<C> {
    fn handle_source(&mut self, number: u64, shard: &[u8]) -> SourceOutcome {
        if number == u64::MAX || shard.len() > self.capacity {
            self.stats.sources_malformed += 1;
            return SourceOutcome::Malformed;
        }
        if number < self.base {
            self.stats.sources_expired += 1;
            return SourceOutcome::Expired;
        }
        self.advance(number + 1);
        if self.is_known(number) {
            self.stats.sources_known += 1;
            return SourceOutcome::Known;
        }
        self.stats.sources += 1;
        self.keep(number, shard);
        self.try_repair(self.shape.place(number).0);
        SourceOutcome::New
    }

    fn handle_repair(&mut self, first: u64, span: usize, key: u16, parity: &[u8]) -> RepairOutcome {
        let row = usize::from(key);
        let end = first.checked_add(span as u64);
        let possible = row < self.shape.rows && parity.len() <= self.capacity;
        let sources = self.shape.sources_of(first, span).filter(|_| possible);
        let (Some(sources), Some(end)) = (sources, end) else {
            self.stats.repairs_malformed += 1;
            return RepairOutcome::Malformed;
        };
        if first >= self.base {
            self.advance(end);
        }
        if first < self.base {
            self.stats.repairs_expired += 1;
            return RepairOutcome::Expired;
        }
        let depth = self.shape.depth as u64;
        let mut numbers = (0..sources as u64).map(|index| first + index * depth);
        let at = self.block(first);
        let block = &self.blocks[at];
        let other = block.first != first || block.sources < sources;
        let known = !other && (block.sources > sources || block.rows.contains(&row));
        if known || numbers.all(|number| self.is_known(number)) {
            self.stats.repairs_redundant += 1;
            return RepairOutcome::Redundant;
        }
        let block = &mut self.blocks[at];
        if other {
            // Rows over fewer sources of the same block are other equations: they go.
            self.stats.repairs_displaced += block.rows.len() as u64;
            block.rows.clear();
            (block.first, block.sources, block.len) = (first, sources, parity.len());
        }
        if parity.len() != block.len || block.rows.len() == self.shape.rows {
            self.stats.repairs_malformed += 1;
            return RepairOutcome::Malformed;
        }
        let stored = (at * self.shape.rows + block.rows.len()) * self.capacity;
        self.parity[stored..][..parity.len()].copy_from_slice(parity);
        block.rows.push(row);
        self.stats.repairs_useful += 1;
        self.try_repair(first);
        RepairOutcome::Useful
    }

    fn poll_repaired(&mut self) -> Option<(u64, &[u8])> {
        while let Some(number) = self.repaired.pop_front() {
            if self.is_known(number) {
                let slot = self.slot(number);
                let shard = &self.shards[slot * self.capacity..][..self.slots[slot].len];
                return Some((number, shard));
            }
        }
        None
    }

    fn stats(&self) -> DecoderStats {
        self.stats
    }
}

impl<C: Codec> fmt::Debug for InterleavedEncoder<C> {
    /// Shows numbers only: the shards are what users send.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterleavedEncoder")
            .field("shape", &self.shape)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl<C: Codec> fmt::Debug for InterleavedDecoder<C> {
    /// Shows numbers only: the shards are what users send.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterleavedDecoder")
            .field("shape", &self.shape)
            .field("window", &(self.base..self.end))
            .finish_non_exhaustive()
    }
}
