//! The fast codec: parity by one multiply-and-add per source and row, repair by a closed formula.

use crate::codec::{
    BeginError, Codec, Decoder, Encoder, MAX_SHARDS, MAX_SOURCES, ParityError, RepairError,
    Repaired, SourceError, Work,
};
use crate::gf256::{EXP, LOG, ORDER, divide};
use crate::kernel::{self, Kernel};

/// Systematic Reed-Solomon code with a Cauchy generator, over whichever kernel is the fastest here.
///
/// See [`algorithm`](crate::algorithm) for the mathematics.
#[derive(Clone, Copy, Debug)]
pub struct ReedSolomon {
    kernel: &'static dyn Kernel,
}

impl ReedSolomon {
    /// Takes the fastest kernel of this processor.
    pub fn new() -> Self {
        Self::with_kernel(kernel::best())
    }

    /// Takes the given kernel, for measurements and comparisons.
    pub fn with_kernel(kernel: &'static dyn Kernel) -> Self {
        Self { kernel }
    }

    /// Returns the kernel in use.
    pub fn kernel(&self) -> &'static dyn Kernel {
        self.kernel
    }
}

impl Default for ReedSolomon {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec for ReedSolomon {
    type Encoder<W: Work> = ReedSolomonEncoder<W>;
    type Decoder<W: Work> = ReedSolomonDecoder<W>;

    fn encoder<W: Work>(&self, mut work: W) -> ReedSolomonEncoder<W> {
        work.as_mut().fill(0);
        ReedSolomonEncoder {
            kernel: self.kernel,
            work,
            rows: 0,
            capacity: 0,
            shard_len: 0,
            added: IndexSet::default(),
        }
    }

    fn decoder<W: Work>(&self, work: W) -> ReedSolomonDecoder<W> {
        ReedSolomonDecoder {
            kernel: self.kernel,
            work,
            missing: [0; MAX_SOURCES],
        }
    }
}

/// Returns the coefficient of source `column` in parity row `row`.
///
/// With the row's point x = `row` and the column's point y = 255 - `column` it is y / (x + y), which
/// depends on neither k nor r, is never zero, and is 1 throughout row 0.
///
/// `None` where `row + column` is 255 or above: no block of 256 shards has both.
pub const fn coefficient(row: usize, column: usize) -> Option<u8> {
    if row >= MAX_SHARDS || column >= MAX_SHARDS || row + column >= MAX_SHARDS - 1 {
        return None;
    }
    let (x, y) = (row_point(row), column_point(column));
    Some(divide(y, x ^ y))
}

/// The encoder of [`ReedSolomon`].
#[derive(Debug)]
pub struct ReedSolomonEncoder<W> {
    kernel: &'static dyn Kernel,
    /// Row after row, `capacity` bytes each. Whatever is not the first `shard_len` bytes of a row is
    /// zero, so that a longer source finds its parity's end clean and a new block clears no more than
    /// the former one used.
    work: W,
    rows: usize,
    capacity: usize,
    shard_len: usize,
    added: IndexSet,
}

impl<W: Work> Encoder for ReedSolomonEncoder<W> {
    fn begin(&mut self, rows: usize, shard_capacity: usize) -> Result<(), BeginError> {
        const MAX_ROWS: usize = MAX_SHARDS - 1;
        if rows == 0 || rows > MAX_ROWS {
            return Err(BeginError::RowsOutOfRange {
                rows,
                max: MAX_ROWS,
            });
        }
        let work = self.work.as_mut();
        let needed = rows.saturating_mul(shard_capacity);
        if needed > work.len() {
            return Err(BeginError::WorkTooSmall {
                needed,
                available: work.len(),
            });
        }
        for row in 0..self.rows {
            work[row * self.capacity..][..self.shard_len].fill(0);
        }
        self.rows = rows;
        self.capacity = shard_capacity;
        self.shard_len = 0;
        self.added = IndexSet::default();
        Ok(())
    }

    fn add_source(&mut self, index: usize, shard: &[u8]) -> Result<(), SourceError> {
        let limit = if self.rows == 0 {
            0
        } else {
            MAX_SHARDS - self.rows
        };
        if index >= limit {
            return Err(SourceError::IndexOutOfRange { index, limit });
        }
        if self.added.contains(index) {
            return Err(SourceError::Duplicate { index });
        }
        if shard.len() > self.capacity {
            return Err(SourceError::TooLong {
                len: shard.len(),
                capacity: self.capacity,
            });
        }
        self.added.insert(index);
        self.shard_len = self.shard_len.max(shard.len());
        if shard.is_empty() {
            return Ok(());
        }
        let y = column_point(index);
        let rows = self
            .work
            .as_mut()
            .chunks_exact_mut(self.capacity)
            .take(self.rows);
        for (row, parity) in rows.enumerate() {
            self.kernel
                .mul_add(parity, shard, divide(y, row_point(row) ^ y));
        }
        Ok(())
    }

    fn parity(&self, row: usize) -> Result<&[u8], ParityError> {
        if row >= self.rows {
            return Err(ParityError::RowOutOfRange {
                row,
                rows: self.rows,
            });
        }
        let (sources, end) = (self.added.len(), self.added.end());
        if end > sources {
            return Err(ParityError::Gap {
                sources,
                highest: end - 1,
            });
        }
        Ok(&self.work.as_ref()[row * self.capacity..][..self.shard_len])
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn sources(&self) -> usize {
        self.added.len()
    }

    fn shard_len(&self) -> usize {
        self.shard_len
    }
}

/// The decoder of [`ReedSolomon`].
#[derive(Debug)]
pub struct ReedSolomonDecoder<W> {
    kernel: &'static dyn Kernel,
    /// The repaired shards, one after another.
    work: W,
    /// The indices of the missing sources, lowest first; as many as the last block had.
    missing: [u8; MAX_SOURCES],
}

impl<W: Work> Decoder for ReedSolomonDecoder<W> {
    fn repair(
        &mut self,
        sources: &[Option<&[u8]>],
        parity: &[(usize, &[u8])],
    ) -> Result<Repaired<'_>, RepairError> {
        let k = sources.len();
        if k == 0 || k > MAX_SOURCES {
            return Err(RepairError::SourcesOutOfRange {
                sources: k,
                max: MAX_SOURCES,
            });
        }
        let shard_len = check_parity(k, parity)?;
        let mut count = 0;
        for (index, source) in (0..=u8::MAX).zip(sources) {
            match (source, shard_len) {
                (Some(source), Some(parity_len)) if source.len() > parity_len => {
                    let (index, len) = (usize::from(index), source.len());
                    return Err(RepairError::SourceTooLong {
                        index,
                        len,
                        parity_len,
                    });
                }
                (Some(_), _) => {}
                (None, _) => {
                    self.missing[count] = index;
                    count += 1;
                }
            }
        }
        let missing = &self.missing[..count];
        let Some(parity) = parity.get(..count) else {
            return Err(RepairError::NotEnoughParity {
                missing: count,
                parity: parity.len(),
            });
        };
        let shard_len = if count == 0 {
            0
        } else {
            shard_len.unwrap_or(0)
        };
        let (needed, available) = (count * shard_len, self.work.as_ref().len());
        let Some(repaired) = self.work.as_mut().get_mut(..needed) else {
            return Err(RepairError::WorkTooSmall { needed, available });
        };
        if needed > 0 {
            repaired.fill(0);
            solve(self.kernel, sources, parity, missing, shard_len, repaired);
        }
        Ok(Repaired::new(
            missing,
            shard_len,
            &self.work.as_ref()[..needed],
        ))
    }
}

/// Checks the parity of a block of `k` sources and returns its length, `None` if there is no parity.
fn check_parity(k: usize, parity: &[(usize, &[u8])]) -> Result<Option<usize>, RepairError> {
    let limit = MAX_SHARDS - k;
    let mut seen = IndexSet::default();
    let mut shard_len = None;
    for &(row, shard) in parity {
        if row >= limit {
            return Err(RepairError::RowOutOfRange { row, limit });
        }
        if seen.contains(row) {
            return Err(RepairError::DuplicateRow { row });
        }
        seen.insert(row);
        let (len, expected) = (shard.len(), *shard_len.get_or_insert(shard.len()));
        if len != expected {
            return Err(RepairError::ParityLength { row, len, expected });
        }
    }
    Ok(shard_len)
}

/// Adds every shard that arrived, times its coefficient, to every missing source.
///
/// `parity` holds as many rows as are `missing`, and `repaired` as many zeroed shards of `shard_len`
/// bytes. The coefficients are those of [`algorithm`](crate::algorithm#repair), computed as
/// logarithms: one part depends on the missing source, one on the shard that arrived, and one on
/// both.
fn solve(
    kernel: &dyn Kernel,
    sources: &[Option<&[u8]>],
    parity: &[(usize, &[u8])],
    missing: &[u8],
    shard_len: usize,
    repaired: &mut [u8],
) {
    const MAX_MISSING: usize = MAX_SHARDS / 2;
    let mut row_points = [0; MAX_MISSING];
    let mut targets = [(0, 0); MAX_MISSING];
    let mut missing_points = [0; MAX_MISSING];
    for (point, &(row, _)) in row_points.iter_mut().zip(parity) {
        *point = row_point(row);
    }
    for (point, &index) in missing_points.iter_mut().zip(missing) {
        *point = column_point(usize::from(index));
    }
    let row_points = &row_points[..parity.len()];
    let missing_points = &missing_points[..missing.len()];

    for (target, &y) in targets.iter_mut().zip(missing_points) {
        let divisor = log_product(y, missing_points) + log(y);
        *target = (y, quotient(log_product(y, row_points), divisor));
    }
    let targets = &targets[..missing.len()];
    let mut add = |shard: &[u8], point: u8, weight: usize| {
        for (sum, &(y, gain)) in repaired.chunks_exact_mut(shard_len).zip(targets) {
            let coefficient = EXP[gain + weight + ORDER - log(point ^ y)];
            kernel.mul_add(sum, shard, coefficient);
        }
    };
    for (index, source) in sources.iter().enumerate() {
        if let Some(shard) = source {
            let y = column_point(index);
            let dividend = log(y) + log_product(y, missing_points);
            add(shard, y, quotient(dividend, log_product(y, row_points)));
        }
    }
    for (&(_, shard), &x) in parity.iter().zip(row_points) {
        add(
            shard,
            x,
            quotient(log_product(x, missing_points), log_product(x, row_points)),
        );
    }
}

/// Returns the point of a parity row in the field.
const fn row_point(row: usize) -> u8 {
    row as u8
}

/// Returns the point of a source in the field: from the other end, so that no pair of a block's
/// shards meets as long as there are at most 256 of them.
const fn column_point(column: usize) -> u8 {
    255 - column as u8
}

/// Returns the logarithm of an element, 0 for zero.
fn log(element: u8) -> usize {
    usize::from(LOG[usize::from(element)])
}

/// Returns the unreduced logarithm of the product of the differences between `point` and every other
/// of `points`.
fn log_product(point: u8, points: &[u8]) -> usize {
    points.iter().map(|other| log(point ^ other)).sum()
}

/// Returns the logarithm, below 255, of a quotient whose unreduced logarithms are given.
fn quotient(dividend: usize, divisor: usize) -> usize {
    // A block has fewer than 256 points, each with a logarithm below 255, beside one factor more.
    const ABOVE_ANY_DIVISOR: usize = ORDER * MAX_SHARDS;
    (dividend + ABOVE_ANY_DIVISOR - divisor) % ORDER
}

/// A set of indices below 256.
#[derive(Clone, Copy, Debug, Default)]
struct IndexSet([u64; MAX_SHARDS / 64]);

impl IndexSet {
    fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// Returns how many indices there are.
    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns one more than the highest index, 0 if there is none.
    fn end(&self) -> usize {
        let words = self.0.iter().enumerate().rev();
        let mut used = words.filter(|&(_, &word)| word != 0);
        used.next().map_or(0, |(at, word)| {
            (at + 1) * 64 - word.leading_zeros() as usize
        })
    }
}
