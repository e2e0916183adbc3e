//! The code written down as its definition says, slowly: what the fast one is tested against.
//!
//! It shares no table and no formula with the rest of the crate: products are long multiplication,
//! inverses are powers, and the decoder inverts the k x k matrix of the shards it has by
//! Gauss-Jordan elimination. It allocates as it pleases. Nothing that moves packets should use it.

use crate::codec::{
    BeginError, Codec, Decoder, Encoder, MAX_SHARDS, MAX_SOURCES, ParityError, RepairError,
    Repaired, SourceError, Work,
};
use crate::gf256::FIELD_POLYNOMIAL;

/// Multiplies two elements of GF(2^8) bit by bit.
pub fn multiply(a: u8, b: u8) -> u8 {
    let mut product = 0;
    for bit in (0..8).rev() {
        product <<= 1;
        if product & 0x100 != 0 {
            product ^= FIELD_POLYNOMIAL;
        }
        if b >> bit & 1 == 1 {
            product ^= u16::from(a);
        }
    }
    product as u8
}

/// Inverts an element of GF(2^8); zero, which has no inverse, gives `None`.
///
/// The 255th power of every other element is 1, so that the inverse is the 254th: a^2 · a^4 · … · a^128.
pub fn invert(a: u8) -> Option<u8> {
    let squares = std::iter::successors(Some(multiply(a, a)), |&b| Some(multiply(b, b)));
    (a != 0).then(|| squares.take(7).fold(1, multiply))
}

/// Returns the coefficient of source `column` in parity row `row`: y / (x + y) with the row's point
/// x = `row` and the column's y = 255 - `column`.
///
/// `None` where the two points are the same, which no block of at most 256 shards contains.
pub fn coefficient(row: u8, column: u8) -> Option<u8> {
    let (x, y) = (row, 255 - column);
    Some(multiply(y, invert(x ^ y)?))
}

/// Inverts a square matrix by Gauss-Jordan elimination; `None` if it is singular.
pub fn invert_matrix(matrix: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    let identity = |at: usize| (0..size).map(move |column| u8::from(column == at));
    let mut rows: Vec<Vec<u8>> = matrix
        .iter()
        .enumerate()
        .map(|(at, row)| row.iter().copied().chain(identity(at)).collect())
        .collect();
    for column in 0..size {
        let pivot = (column..size).find(|&row| rows[row][column] != 0)?;
        rows.swap(column, pivot);
        let scale = invert(rows[column][column])?;
        for value in &mut rows[column] {
            *value = multiply(*value, scale);
        }
        let pivot = rows[column].clone();
        for row in (0..size).filter(|&row| row != column) {
            let factor = rows[row][column];
            for (value, &above) in rows[row].iter_mut().zip(&pivot) {
                *value ^= multiply(factor, above);
            }
        }
    }
    Some(rows.into_iter().map(|row| row[size..].to_vec()).collect())
}

/// The slow codec.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Codec for Reference {
    type Encoder<W: Work> = ReferenceEncoder<W>;
    type Decoder<W: Work> = ReferenceDecoder<W>;

    fn encoder<W: Work>(&self, work: W) -> ReferenceEncoder<W> {
        ReferenceEncoder {
            work,
            rows: 0,
            capacity: 0,
            shard_len: 0,
            added: Vec::new(),
        }
    }

    fn decoder<W: Work>(&self, work: W) -> ReferenceDecoder<W> {
        ReferenceDecoder {
            work,
            repaired: Vec::new(),
        }
    }
}

/// The encoder of [`Reference`].
#[derive(Debug)]
pub struct ReferenceEncoder<W> {
    /// Row after row, each as long as the block's capacity.
    work: W,
    rows: usize,
    capacity: usize,
    shard_len: usize,
    /// The indices added.
    added: Vec<usize>,
}

impl<W: Work> Encoder for ReferenceEncoder<W> {
    fn begin(&mut self, rows: usize, shard_capacity: usize) -> Result<(), BeginError> {
        if !(1..MAX_SHARDS).contains(&rows) {
            return Err(BeginError::RowsOutOfRange {
                rows,
                max: MAX_SHARDS - 1,
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
        work.fill(0);
        (self.rows, self.capacity, self.shard_len) = (rows, shard_capacity, 0);
        self.added.clear();
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
        if self.added.contains(&index) {
            return Err(SourceError::Duplicate { index });
        }
        if shard.len() > self.capacity {
            return Err(SourceError::TooLong {
                len: shard.len(),
                capacity: self.capacity,
            });
        }
        for row in 0..self.rows {
            let factor = coefficient(row as u8, index as u8).expect("points of a block differ");
            for (at, &byte) in shard.iter().enumerate() {
                self.work.as_mut()[row * self.capacity + at] ^= multiply(factor, byte);
            }
        }
        self.added.push(index);
        self.shard_len = self.shard_len.max(shard.len());
        Ok(())
    }

    fn parity(&self, row: usize) -> Result<&[u8], ParityError> {
        if row >= self.rows {
            return Err(ParityError::RowOutOfRange {
                row,
                rows: self.rows,
            });
        }
        let sources = self.added.len();
        match self.added.iter().max() {
            Some(&highest) if highest >= sources => Err(ParityError::Gap { sources, highest }),
            _ => Ok(&self.work.as_ref()[row * self.capacity..][..self.shard_len]),
        }
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

/// The decoder of [`Reference`].
#[derive(Debug)]
pub struct ReferenceDecoder<W> {
    work: W,
    /// The indices of what was repaired last.
    repaired: Vec<u8>,
}

impl<W: Work> Decoder for ReferenceDecoder<W> {
    fn repair(
        &mut self,
        sources: &[Option<&[u8]>],
        parity: &[(usize, &[u8])],
    ) -> Result<Repaired<'_>, RepairError> {
        let missing = check(sources, parity)?;
        let len = if missing.is_empty() {
            0
        } else {
            parity[0].1.len()
        };
        let (needed, available) = (missing.len() * len, self.work.as_ref().len());
        if needed > available {
            return Err(RepairError::WorkTooSmall { needed, available });
        }

        // One equation for each of k shards that arrived: its row of the generator, and its bytes.
        let mut rows_left = parity.iter();
        let mut equations: Vec<(Vec<u8>, &[u8])> = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let columns = 0..sources.len();
            equations.push(match source {
                Some(shard) => (
                    columns.map(|column| u8::from(column == index)).collect(),
                    shard,
                ),
                None => {
                    let &(row, shard) = rows_left.next().expect("checked: parity for each");
                    let entry = |column| coefficient(row as u8, column as u8);
                    (
                        columns
                            .map(|column| entry(column).expect("checked: in range"))
                            .collect(),
                        shard,
                    )
                }
            });
        }
        let matrix: Vec<Vec<u8>> = equations.iter().map(|(row, _)| row.clone()).collect();
        let inverse = invert_matrix(&matrix).expect("any k shards determine the sources");

        for (at, &index) in missing.iter().enumerate() {
            for byte in 0..len {
                let terms = equations.iter().zip(&inverse[index]);
                let sum = terms.fold(0, |sum, ((_, shard), &factor)| {
                    sum ^ multiply(factor, shard.get(byte).copied().unwrap_or(0))
                });
                self.work.as_mut()[at * len + byte] = sum;
            }
        }
        self.repaired = missing.iter().map(|&index| index as u8).collect();
        Ok(Repaired::new(
            &self.repaired,
            len,
            &self.work.as_ref()[..needed],
        ))
    }
}

/// Checks what [`Decoder::repair`] was given and returns the missing indices.
fn check(sources: &[Option<&[u8]>], parity: &[(usize, &[u8])]) -> Result<Vec<usize>, RepairError> {
    let k = sources.len();
    if !(1..=MAX_SOURCES).contains(&k) {
        return Err(RepairError::SourcesOutOfRange {
            sources: k,
            max: MAX_SOURCES,
        });
    }
    for (at, &(row, shard)) in parity.iter().enumerate() {
        if row >= MAX_SHARDS - k {
            return Err(RepairError::RowOutOfRange {
                row,
                limit: MAX_SHARDS - k,
            });
        }
        if parity[..at].iter().any(|&(earlier, _)| earlier == row) {
            return Err(RepairError::DuplicateRow { row });
        }
        let (len, expected) = (shard.len(), parity[0].1.len());
        if len != expected {
            return Err(RepairError::ParityLength { row, len, expected });
        }
    }
    for (index, source) in sources.iter().enumerate() {
        if let (Some(source), Some(&(_, first))) = (source, parity.first())
            && source.len() > first.len()
        {
            let (len, parity_len) = (source.len(), first.len());
            return Err(RepairError::SourceTooLong {
                index,
                len,
                parity_len,
            });
        }
    }
    let missing: Vec<usize> = (0..k).filter(|&index| sources[index].is_none()).collect();
    if missing.len() > parity.len() {
        let (missing, parity) = (missing.len(), parity.len());
        return Err(RepairError::NotEnoughParity { missing, parity });
    }
    Ok(missing)
}
