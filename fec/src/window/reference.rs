//! The window code's decoder as a textbook has it, slowly: what the fast one is tested against.
//!
//! It keeps every repair whole and solves the whole system anew whenever it is asked, with the
//! arithmetic of [`reference`](mod@crate::reference). It forgets nothing and bounds nothing. Nothing that moves
//! packets should use it.

use std::collections::{BTreeMap, BTreeSet};

use super::coefficient;
use crate::reference::{invert, multiply};

/// All that arrived of a stream.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    sources: BTreeMap<u64, Vec<u8>>,
    repairs: Vec<Repair>,
}

#[derive(Clone, Debug)]
struct Repair {
    numbers: std::ops::Range<u64>,
    key: u16,
    parity: Vec<u8>,
}

impl Reference {
    /// Takes a source that arrived.
    pub fn handle_source(&mut self, number: u64, shard: &[u8]) {
        self.sources.insert(number, shard.to_vec());
    }

    /// Takes a repair that arrived.
    pub fn handle_repair(&mut self, first: u64, span: usize, key: u16, parity: &[u8]) {
        self.repairs.push(Repair {
            numbers: first..first + span as u64,
            key,
            parity: parity.to_vec(),
        });
    }

    /// Returns every missing source that what arrived determines, with zeros behind it up to the
    /// longest parity.
    pub fn repaired(&self) -> BTreeMap<u64, Vec<u8>> {
        let covered = self
            .repairs
            .iter()
            .flat_map(|repair| repair.numbers.clone());
        let unknown: BTreeSet<u64> = covered
            .filter(|number| !self.sources.contains_key(number))
            .collect();
        let unknown: Vec<u64> = unknown.into_iter().collect();
        let len = self.repairs.iter().map(|repair| repair.parity.len()).max();
        let len = len.unwrap_or(0);

        // One equation a repair: coefficients of the unknown, then the bytes of their sum.
        let mut equations: Vec<Vec<u8>> = self
            .repairs
            .iter()
            .map(|repair| self.equation(repair, &unknown, len))
            .collect();
        let rank = eliminate(&mut equations, unknown.len());

        let mut repaired = BTreeMap::new();
        for equation in &equations[..rank] {
            let (coefficients, bytes) = equation.split_at(unknown.len());
            let mut nonzero = (0..unknown.len()).filter(|&column| coefficients[column] != 0);
            if let (Some(column), None) = (nonzero.next(), nonzero.next()) {
                repaired.insert(unknown[column], bytes.to_vec());
            }
        }
        repaired
    }

    fn equation(&self, repair: &Repair, unknown: &[u64], len: usize) -> Vec<u8> {
        let mut equation: Vec<u8> = unknown
            .iter()
            .map(|number| match repair.numbers.contains(number) {
                true => coefficient(*number, repair.key),
                false => 0,
            })
            .collect();
        for at in 0..len {
            let mut sum = repair.parity.get(at).copied().unwrap_or(0);
            for (&number, shard) in self.sources.range(repair.numbers.clone()) {
                let byte = shard.get(at).copied().unwrap_or(0);
                sum ^= multiply(coefficient(number, repair.key), byte);
            }
            equation.push(sum);
        }
        equation
    }
}

/// Brings rows to reduced echelon form in their first `columns` columns, with leading ones, and
/// returns their rank there: the rows beyond are zero in all those columns.
pub fn eliminate(rows: &mut [Vec<u8>], columns: usize) -> usize {
    let mut rank = 0;
    for column in 0..columns {
        let Some(pivot) = (rank..rows.len()).find(|&row| rows[row][column] != 0) else {
            continue;
        };
        rows.swap(rank, pivot);
        let scale = invert(rows[rank][column]).expect("a pivot is not zero");
        for value in &mut rows[rank] {
            *value = multiply(*value, scale);
        }
        let leading = rows[rank].clone();
        for row in (0..rows.len()).filter(|&row| row != rank) {
            let factor = rows[row][column];
            for (value, &above) in rows[row].iter_mut().zip(&leading) {
                *value ^= multiply(factor, above);
            }
        }
        rank += 1;
    }
    rank
}
