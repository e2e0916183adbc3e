//! What every block code offers: the traits, what they return, and what can go wrong.

use std::fmt;

/// The largest number of shards, source and parity together, in one block.
///
/// Each shard has a point of GF(2^8) of its own, and the field has 256 (see
/// [`algorithm`](crate::algorithm)). A block of k sources and r parity rows is possible whenever
/// k ≥ 1, r ≥ 1 and k + r ≤ 256.
pub const MAX_SHARDS: usize = 256;

/// The most source shards of a block that one parity row is left for.
pub const MAX_SOURCES: usize = MAX_SHARDS - 1;

/// Bytes that a codec computes in, lent by the caller: a `Vec<u8>`, a `&mut [u8]`, a pooled buffer.
///
/// Its length must not change while a codec holds it.
pub trait Work: AsRef<[u8]> + AsMut<[u8]> {}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Work for T {}

/// A systematic erasure code over blocks: makes encoders and decoders that understand each other.
///
/// Two codecs of this crate agree byte by byte; they differ in speed only.
pub trait Codec {
    /// The encoder, holding work space of type `W`.
    type Encoder<W: Work>: Encoder;
    /// The decoder, holding work space of type `W`.
    type Decoder<W: Work>: Decoder;

    /// Makes an encoder of no block yet; [`Encoder::begin`] opens one.
    ///
    /// `work` bounds the blocks: parity rows times the longest shard, in bytes. What it holds is
    /// overwritten.
    fn encoder<W: Work>(&self, work: W) -> Self::Encoder<W>;

    /// Makes a decoder.
    ///
    /// `work` bounds what can be repaired: missing sources times the parity's length, in bytes.
    fn decoder<W: Work>(&self, work: W) -> Self::Decoder<W>;
}

/// Accumulates parity source by source, so that a block can close after any of them.
///
/// Once per block: [`begin`](Encoder::begin), then [`add_source`](Encoder::add_source) for each
/// source as it is sent, then [`parity`](Encoder::parity) for as many of the rows as are wanted.
/// Sources may go on after that: parity always covers those added so far.
pub trait Encoder {
    /// Forgets the current block and opens one of `rows` parity rows (1 to 255) for sources of at
    /// most `shard_capacity` bytes.
    ///
    /// # Errors
    /// Leaves the encoder as it was when `rows` is out of range or `rows · shard_capacity` is more
    /// than the work space.
    fn begin(&mut self, rows: usize, shard_capacity: usize) -> Result<(), BeginError>;

    /// Adds source `index` (0 to 255 - rows) of the block, in any order, each index once.
    ///
    /// Sources may differ in length: each counts as padded with zeros to the longest one.
    ///
    /// # Errors
    /// Leaves the block as it was when the index is out of range or already there, or the shard is
    /// longer than the block's capacity.
    fn add_source(&mut self, index: usize, shard: &[u8]) -> Result<(), SourceError>;

    /// Returns parity row `row` over the sources added so far, as long as the longest of them.
    ///
    /// Row 0 is their XOR. The bytes lie in the work space until the block is changed.
    ///
    /// # Errors
    /// The block has no such row, or an index is left out below the highest one added.
    fn parity(&self, row: usize) -> Result<&[u8], ParityError>;

    /// Returns how many parity rows the block has; 0 before the first `begin`.
    fn rows(&self) -> usize;

    /// Returns how many sources the block holds.
    fn sources(&self) -> usize;

    /// Returns the length of the longest source so far, in bytes, which is that of all parity.
    fn shard_len(&self) -> usize;
}

/// Repairs the missing sources of a block from any k of its k + r shards.
pub trait Decoder {
    /// Computes every missing source of a block.
    ///
    /// `sources` is the block's k sources in order, `None` where one is missing, each at most as
    /// long as the parity. `parity` is what arrived of it, as row and bytes, all of one length and in
    /// any order; as many as there are missing sources are used, from the front.
    ///
    /// What is returned lies in the work space. Each repaired source has the parity's length: if it
    /// was shorter, zeros follow it, so that what is sent must say its own length.
    ///
    /// # Errors
    /// Nothing is returned when k is out of range, when a row is out of range for k or there twice,
    /// when lengths disagree, when fewer parity rows than missing sources came, or when the work
    /// space is too small.
    fn repair(
        &mut self,
        sources: &[Option<&[u8]>],
        parity: &[(usize, &[u8])],
    ) -> Result<Repaired<'_>, RepairError>;
}

/// The sources that a decoder repaired, in its work space.
#[derive(Clone, Copy)]
pub struct Repaired<'a> {
    indices: &'a [u8],
    shard_len: usize,
    bytes: &'a [u8],
}

impl<'a> Repaired<'a> {
    /// Takes shards of `shard_len` bytes, one after another, in the order of `indices`.
    pub(crate) fn new(indices: &'a [u8], shard_len: usize, bytes: &'a [u8]) -> Self {
        debug_assert_eq!(indices.len() * shard_len, bytes.len());
        Self {
            indices,
            shard_len,
            bytes,
        }
    }

    /// Returns the repaired sources with their indices, the lowest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, &'a [u8])> + use<'a> {
        let Self {
            indices,
            shard_len,
            bytes,
        } = *self;
        let shard = move |(at, &index): (usize, &u8)| {
            (
                usize::from(index),
                &bytes[at * shard_len..(at + 1) * shard_len],
            )
        };
        indices.iter().enumerate().map(shard)
    }

    /// Returns source `index` if it was repaired.
    pub fn source(&self, index: usize) -> Option<&'a [u8]> {
        self.iter()
            .find_map(|(at, shard)| (at == index).then_some(shard))
    }

    /// Returns how many sources were repaired.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Tells whether none was missing.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

impl fmt::Debug for Repaired<'_> {
    /// Shows numbers only: the shards are what users send.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repaired")
            .field("indices", &self.indices)
            .field("shard_len", &self.shard_len)
            .finish_non_exhaustive()
    }
}

/// Why a block cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// The number of parity rows leaves no row or no source.
    #[error("{rows} parity rows, where a block has 1 to {max}")]
    RowsOutOfRange {
        /// The rows asked for.
        rows: usize,
        /// The most that a block can have.
        max: usize,
    },
    /// The rows do not fit the work space.
    #[error("work space of {available} bytes where the block needs {needed}")]
    WorkTooSmall {
        /// Bytes that the rows take.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
}

/// Why a source cannot be added to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The block cannot hold a source of this index beside its parity rows.
    #[error("source {index} in a block of at most {limit} sources")]
    IndexOutOfRange {
        /// The index given.
        index: usize,
        /// The sources that the block can hold; 0 before it was opened.
        limit: usize,
    },
    /// The source was added before.
    #[error("source {index} added twice")]
    Duplicate {
        /// The index given.
        index: usize,
    },
    /// The source is longer than the block was opened for.
    #[error("source of {len} bytes in a block of shards of at most {capacity}")]
    TooLong {
        /// The source's length in bytes.
        len: usize,
        /// The longest that fits, in bytes.
        capacity: usize,
    },
}

/// Why there is no such parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParityError {
    /// The block was opened with fewer rows.
    #[error("parity row {row} of a block of {rows}")]
    RowOutOfRange {
        /// The row asked for.
        row: usize,
        /// The rows there are.
        rows: usize,
    },
    /// An index below the highest one was never added, so no decoder could know the block's size.
    #[error("{sources} sources added with indices up to {highest}")]
    Gap {
        /// The sources added.
        sources: usize,
        /// The highest index among them.
        highest: usize,
    },
}

/// Why a block cannot be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The block's number of sources leaves none, or no parity row.
    #[error("{sources} sources, where a block has 1 to {max}")]
    SourcesOutOfRange {
        /// The sources given, missing ones too.
        sources: usize,
        /// The most that a block can have.
        max: usize,
    },
    /// No block of so many sources has this parity row.
    #[error("parity row {row}, where a block of so many sources has at most {limit}")]
    RowOutOfRange {
        /// The row given.
        row: usize,
        /// The rows that a block of this many sources can have.
        limit: usize,
    },
    /// The same parity row was given twice.
    #[error("parity row {row} given twice")]
    DuplicateRow {
        /// The row given.
        row: usize,
    },
    /// The parity rows are not all of one length.
    #[error("parity row {row} of {len} bytes beside one of {expected}")]
    ParityLength {
        /// The row that differs.
        row: usize,
        /// Its length in bytes.
        len: usize,
        /// The length of the first parity given, in bytes.
        expected: usize,
    },
    /// A source is longer than the parity that should cover it.
    #[error("source {index} of {len} bytes under parity of {parity_len}")]
    SourceTooLong {
        /// The source's index.
        index: usize,
        /// Its length in bytes.
        len: usize,
        /// The parity's length in bytes.
        parity_len: usize,
    },
    /// More sources are missing than parity rows came: the block may be repaired when more come.
    #[error("{missing} sources missing with {parity} parity rows")]
    NotEnoughParity {
        /// The sources missing.
        missing: usize,
        /// The parity rows given.
        parity: usize,
    },
    /// The repaired sources do not fit the work space.
    #[error("work space of {available} bytes where the repair needs {needed}")]
    WorkTooSmall {
        /// Bytes that the missing sources take.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
}
