//! What every code over a numbered stream offers: traits, outcomes, counters, and what can go wrong.
//!
//! A block codec ([`codec`](crate::Codec)) is handed all that arrived of a block at once. A stream
//! has no such moment: shards carry running numbers, come late or twice, and each repair says which
//! numbers it covers. Two codes speak this language: the sliding [`window`](crate::window) and
//! [interleaved](crate::interleave) blocks.

/// Makes repairs over the sources that were pushed last.
pub trait StreamEncoder {
    /// Takes a source shard under its number; numbers rise by one.
    ///
    /// A number above the next one is a gap: what was held is forgotten and the stream goes on from
    /// it.
    ///
    /// # Errors
    /// Leaves the encoder as it was when the shard is too long or the number was already passed.
    fn push(&mut self, number: u64, shard: &[u8]) -> Result<(), PushError>;

    /// Writes the parity of the sources `first` to `first + span - 1` under `key` and returns its
    /// length in bytes, which is that of the longest of them.
    ///
    /// The same numbers under another key give another, independent parity.
    ///
    /// # Errors
    /// Some of the sources are not held (any more), the code knows no such key or span, or `out` is
    /// too short.
    fn repair(&self, first: u64, span: usize, key: u16, out: &mut [u8])
    -> Result<usize, SpanError>;
}

/// Repairs missing sources of a numbered stream from whatever arrives, in any order.
///
/// One of the two `handle` calls, then [`poll_repaired`](Self::poll_repaired) until `None`.
/// It trusts what it is given: shards must be authenticated before they come here. Input that
/// contradicts itself is counted and dropped as far as that shows; none makes it panic.
pub trait StreamDecoder {
    /// Takes a source that arrived.
    fn handle_source(&mut self, number: u64, shard: &[u8]) -> SourceOutcome;

    /// Takes a repair that arrived, as [`StreamEncoder::repair`] made it.
    fn handle_repair(&mut self, first: u64, span: usize, key: u16, parity: &[u8]) -> RepairOutcome;

    /// Returns the next repaired source: its number and its bytes, with zeros behind them if it was
    /// shorter than what covered it.
    ///
    /// Each number comes at most once, and not at all if it left the window before it was asked for.
    fn poll_repaired(&mut self) -> Option<(u64, &[u8])>;

    /// Returns what was counted since the decoder was made.
    fn stats(&self) -> DecoderStats;
}

/// What became of a source that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceOutcome {
    /// It was missing until now.
    New,
    /// It had arrived or had been repaired before.
    Known,
    /// It lies before the window, or before where the stream began.
    Expired,
    /// It is longer than the decoder's shards.
    Malformed,
}

/// What became of a repair that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairOutcome {
    /// It says something new: a source is repaired by it, or will be with more of its kind.
    Useful,
    /// All it says was known.
    Redundant,
    /// It covers sources that lie before the window, which are gone.
    Expired,
    /// It covers nothing, more than the window holds, or shards longer than itself.
    Malformed,
}

/// What a decoder counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DecoderStats {
    /// Sources that arrived while missing.
    pub sources: u64,
    /// Sources that arrived though known; those that parity had brought before are among them.
    pub sources_known: u64,
    /// Sources dropped because they lay before the window.
    pub sources_expired: u64,
    /// Sources dropped because they were too long.
    pub sources_malformed: u64,
    /// Repairs that said something new.
    pub repairs_useful: u64,
    /// Repairs dropped because they said nothing new.
    pub repairs_redundant: u64,
    /// Repairs dropped because some of what they cover lay before the window.
    pub repairs_expired: u64,
    /// Repairs dropped because they contradicted the decoder's limits or themselves.
    pub repairs_malformed: u64,
    /// Repairs dropped, after they had been useful, to make room for newer ones.
    pub repairs_displaced: u64,
    /// Sources repaired.
    pub repaired: u64,
    /// Sources that left the window missing.
    pub lost: u64,
}

/// Why an encoder does not take a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The shard is longer than the encoder's shards.
    #[error("shard of {len} bytes where at most {capacity} fit")]
    TooLong {
        /// The shard's length in bytes.
        len: usize,
        /// The longest that fits, in bytes.
        capacity: usize,
    },
    /// The number is below the next one.
    #[error("source {number} after source {next} was to come")]
    Passed {
        /// The number given.
        number: u64,
        /// The lowest number that would do.
        next: u64,
    },
}

/// Why there is no such repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// Some of the sources are not held.
    #[error(
        "{span} sources from {first} where those from {held_first} to before {held_end} are held"
    )]
    NotHeld {
        /// The first number asked for.
        first: u64,
        /// How many were asked for.
        span: usize,
        /// The first number held.
        held_first: u64,
        /// One more than the last number held.
        held_end: u64,
    },
    /// The code makes no repair over such a span under such a key.
    #[error("no repair over {span} sources under key {key}")]
    Unsupported {
        /// How many sources were asked for.
        span: usize,
        /// The key given.
        key: u16,
    },
    /// The parity does not fit.
    #[error("{available} bytes for parity of {needed}")]
    OutTooSmall {
        /// The parity's length in bytes.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
}

/// Why a code over a stream cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The window or one of its parts is empty or too large.
    #[error("{what} of {value}, where it is 1 to {max}")]
    OutOfRange {
        /// What is out of range.
        what: &'static str,
        /// The value given.
        value: usize,
        /// The largest that is possible.
        max: usize,
    },
    /// The work space is too small.
    #[error("work space of {available} bytes where {needed} are needed")]
    WorkTooSmall {
        /// Bytes needed.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
}

/// Checks that `value` is 1 to `max`.
pub(crate) fn in_range(what: &'static str, value: usize, max: usize) -> Result<(), StreamError> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(StreamError::OutOfRange { what, value, max })
    }
}

/// Checks that a work space holds `needed` bytes.
pub(crate) fn check_work(needed: usize, available: usize) -> Result<(), StreamError> {
    if needed <= available {
        Ok(())
    } else {
        Err(StreamError::WorkTooSmall { needed, available })
    }
}
