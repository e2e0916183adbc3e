//! The sender's end: a ring of the last sources, and repairs computed from it.

use std::fmt;

use super::{MAX_WINDOW, coefficient};
use crate::codec::Work;
use crate::kernel::{self, Kernel};
use crate::stream::{PushError, SpanError, StreamEncoder, StreamError, check_work, in_range};

/// Holds the last sources of a stream and computes repairs over any run of them.
///
/// A repair costs one multiply-and-add per source it covers; a push, one copy.
pub struct WindowEncoder<W> {
    kernel: &'static dyn Kernel,
    /// Source `number` lies in slot `number % window`, `capacity` bytes a slot.
    work: W,
    capacity: usize,
    /// The length of each slot's shard.
    lens: Box<[usize]>,
    /// The sources held are `first..end`.
    first: u64,
    end: u64,
}

impl<W: Work> WindowEncoder<W> {
    /// Makes an encoder that holds the last `window` (1 to [`MAX_WINDOW`]) sources of at most
    /// `capacity` bytes, in a work space of at least [`Self::work_len`].
    ///
    /// # Errors
    /// A size is out of range or the work space is too small.
    pub fn new(work: W, window: usize, capacity: usize) -> Result<Self, StreamError> {
        Self::with_kernel(kernel::best(), work, window, capacity)
    }

    /// Makes an encoder that runs on the given kernel, for measurements and comparisons.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kernel(
        kernel: &'static dyn Kernel,
        work: W,
        window: usize,
        capacity: usize,
    ) -> Result<Self, StreamError> {
        in_range("window", window, MAX_WINDOW)?;
        in_range("shard capacity", capacity, isize::MAX as usize)?;
        check_work(Self::work_len(window, capacity), work.as_ref().len())?;
        Ok(Self {
            kernel,
            work,
            capacity,
            lens: vec![0; window].into_boxed_slice(),
            first: 0,
            end: 0,
        })
    }

    /// Returns the bytes of work space that such an encoder needs.
    pub const fn work_len(window: usize, capacity: usize) -> usize {
        window.saturating_mul(capacity)
    }

    /// Returns the numbers of the sources held.
    pub fn held(&self) -> std::ops::Range<u64> {
        self.first..self.end
    }

    /// Returns the shard of a source that is held.
    pub fn shard(&self, number: u64) -> Option<&[u8]> {
        if !self.held().contains(&number) {
            return None;
        }
        let slot = self.slot(number);
        Some(&self.work.as_ref()[slot * self.capacity..][..self.lens[slot]])
    }

    /// Takes source `number` of `len` bytes and lends the place where they belong, so that a shard of
    /// several parts need not be joined before; until they are written they are what was there.
    ///
    /// # Errors
    /// As [`StreamEncoder::push`].
    pub fn reserve(&mut self, number: u64, len: usize) -> Result<&mut [u8], PushError> {
        let capacity = self.capacity;
        if len > capacity {
            return Err(PushError::TooLong { len, capacity });
        }
        let next = self.end;
        let end = match number.checked_add(1) {
            Some(end) if number >= next => end,
            Some(_) | None => return Err(PushError::Passed { number, next }),
        };
        if number > next {
            self.first = number;
        }
        self.end = end;
        self.first = self.first.max(end.saturating_sub(self.lens.len() as u64));
        let slot = self.slot(number);
        self.lens[slot] = len;
        Ok(&mut self.work.as_mut()[slot * capacity..][..len])
    }

    fn slot(&self, number: u64) -> usize {
        (number % self.lens.len() as u64) as usize
    }
}

impl<W: Work> StreamEncoder for WindowEncoder<W> {
    fn push(&mut self, number: u64, shard: &[u8]) -> Result<(), PushError> {
        self.reserve(number, shard.len())?.copy_from_slice(shard);
        Ok(())
    }

    fn repair(
        &self,
        first: u64,
        span: usize,
        key: u16,
        out: &mut [u8],
    ) -> Result<usize, SpanError> {
        let end = first.checked_add(span as u64);
        let (true, Some(end)) = (
            first >= self.first && end.is_some_and(|end| end <= self.end),
            end,
        ) else {
            return Err(SpanError::NotHeld {
                first,
                span,
                held_first: self.first,
                held_end: self.end,
            });
        };
        if span == 0 {
            return Err(SpanError::Unsupported { span, key });
        }
        let longest = (first..end)
            .map(|number| self.lens[self.slot(number)])
            .max();
        let (needed, available) = (longest.unwrap_or(0), out.len());
        let Some(out) = out.get_mut(..needed) else {
            return Err(SpanError::OutTooSmall { needed, available });
        };
        out.fill(0);
        for number in first..end {
            let slot = self.slot(number);
            let shard = &self.work.as_ref()[slot * self.capacity..][..self.lens[slot]];
            self.kernel.mul_add(out, shard, coefficient(number, key));
        }
        Ok(needed)
    }
}

impl<W> fmt::Debug for WindowEncoder<W> {
    /// Shows numbers only: the shards are what users send.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowEncoder")
            .field("held", &(self.first..self.end))
            .field("window", &self.lens.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder(window: usize) -> WindowEncoder<Vec<u8>> {
        WindowEncoder::new(vec![0; window * 8], window, 8).expect("legal")
    }

    #[test]
    fn a_repair_over_one_source_is_that_source_times_its_coefficient() {
        let mut encoder = encoder(4);
        encoder.push(9, &[1, 2, 3]).expect("the first");
        let mut out = [0xFF; 8];
        assert_eq!(encoder.repair(9, 1, 5, &mut out), Ok(3));
        let expected = [1, 2, 3].map(|byte| crate::reference::multiply(byte, coefficient(9, 5)));
        assert_eq!(
            out,
            [
                expected[0],
                expected[1],
                expected[2],
                255,
                255,
                255,
                255,
                255
            ]
        );
    }

    #[test]
    fn the_last_sources_are_held_and_no_others() {
        let mut encoder = encoder(4);
        for number in 10..16 {
            encoder.push(number, &[number as u8]).expect("in order");
        }
        assert_eq!(encoder.held(), 12..16);
        let mut out = [0; 8];
        assert!(encoder.repair(12, 4, 0, &mut out).is_ok());
        let not_held = |first, span| SpanError::NotHeld {
            first,
            span,
            held_first: 12,
            held_end: 16,
        };
        for (first, span) in [(11, 4), (13, 4), (16, 1), (u64::MAX, 2), (12, usize::MAX)] {
            assert_eq!(
                encoder.repair(first, span, 0, &mut out),
                Err(not_held(first, span))
            );
        }
        assert_eq!(
            encoder.repair(13, 0, 3, &mut out),
            Err(SpanError::Unsupported { span: 0, key: 3 })
        );
    }

    #[test]
    fn a_gap_begins_the_window_anew_and_what_was_passed_is_refused() {
        let mut encoder = encoder(4);
        encoder.push(1, &[1]).expect("the first");
        encoder.push(2, &[2]).expect("the next");
        encoder.push(9, &[9]).expect("a gap");
        assert_eq!(encoder.held(), 9..10);
        let passed = PushError::Passed {
            number: 9,
            next: 10,
        };
        assert_eq!(encoder.push(9, &[9]), Err(passed));
        assert!(encoder.push(u64::MAX, &[9]).is_err());
        assert_eq!(encoder.held(), 9..10);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let mut encoder = encoder(4);
        assert_eq!(
            encoder.push(0, &[0; 9]),
            Err(PushError::TooLong {
                len: 9,
                capacity: 8
            })
        );
        encoder.push(0, &[0; 8]).expect("fits");
        assert_eq!(
            encoder.repair(0, 1, 0, &mut [0; 7]),
            Err(SpanError::OutTooSmall {
                needed: 8,
                available: 7
            })
        );
        assert_eq!(
            WindowEncoder::new(vec![0; 31], 4, 8).err(),
            Some(StreamError::WorkTooSmall {
                needed: 32,
                available: 31
            })
        );
        assert!(WindowEncoder::new(vec![0; 32], 0, 8).is_err());
        assert!(WindowEncoder::new(vec![0; 32], MAX_WINDOW + 1, 0).is_err());
    }
}
