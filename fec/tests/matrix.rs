//! The generator matrix: its coefficients are as documented, and no square part of it is singular.

use adit_fec::reference::{self, invert_matrix, multiply};
use adit_fec::{MAX_SHARDS, coefficient};
use proptest::prelude::*;
use proptest::sample::subsequence;

fn submatrix(rows: &[usize], columns: &[usize]) -> Vec<Vec<u8>> {
    let entry = |row, column| coefficient(row, column).expect("within a block");
    rows.iter()
        .map(|&row| columns.iter().map(|&column| entry(row, column)).collect())
        .collect()
}

/// The subsets of `0..size` with `count` elements.
fn subsets(size: usize, count: usize) -> Vec<Vec<usize>> {
    let masks = (0..1_u32 << size).filter(|mask| mask.count_ones() as usize == count);
    masks
        .map(|mask| (0..size).filter(|bit| mask >> bit & 1 == 1).collect())
        .collect()
}

#[test]
fn row_0_is_plain_xor() {
    for column in 0..MAX_SHARDS - 1 {
        assert_eq!(coefficient(0, column), Some(1), "column {column}");
    }
}

#[test]
fn every_coefficient_is_the_quotient_of_its_definition_and_not_zero() {
    for row in 0..=255 {
        for column in 0..=255 {
            let in_a_block = usize::from(row) + usize::from(column) < MAX_SHARDS - 1;
            let found = coefficient(usize::from(row), usize::from(column));
            assert_eq!(found.is_some(), in_a_block, "row {row}, column {column}");
            if let Some(found) = found {
                assert_ne!(found, 0, "row {row}, column {column}");
                assert_eq!(Some(found), reference::coefficient(row, column));
                assert_eq!(multiply(found, row ^ (255 - column)), 255 - column);
            }
        }
    }
}

#[test]
fn no_coefficient_exists_outside_a_block() {
    for (row, column) in [
        (0, 255),
        (255, 0),
        (128, 127),
        (256, 0),
        (0, 256),
        (usize::MAX, 1),
    ] {
        assert_eq!(coefficient(row, column), None, "row {row}, column {column}");
    }
}

/// Known answers, computed apart from this crate: who changes one of them changes the wire format.
#[test]
fn coefficients_are_those_of_the_wire() {
    let known = [
        (1, 0, 0x7f),
        (1, 1, 0xfc),
        (1, 2, 0x7e),
        (2, 0, 0xe2),
        (2, 5, 0x85),
        (3, 19, 0xbf),
        (4, 0, 0xc8),
        (9, 49, 0x1b),
        (63, 100, 0x99),
        (127, 127, 0x7f),
        (254, 0, 0xff),
        (1, 253, 0xf5),
    ];
    for (row, column, value) in known {
        assert_eq!(
            coefficient(row, column),
            Some(value),
            "row {row}, column {column}"
        );
    }
}

#[test]
fn no_square_part_of_6_rows_and_8_columns_is_singular() {
    let mut tried = 0;
    for size in 1..=6 {
        for rows in subsets(6, size) {
            for columns in subsets(8, size) {
                let matrix = submatrix(&rows, &columns);
                assert!(
                    invert_matrix(&matrix).is_some(),
                    "rows {rows:?}, columns {columns:?}"
                );
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 3002, "14 over 6, less the empty one");
}

#[test]
fn no_2_by_2_part_of_the_first_16_rows_is_singular() {
    for first in 0..16 {
        for second in first + 1..16 {
            // The quotient of the two rows must be another one in each column.
            let mut seen = [false; 256];
            for column in 0..MAX_SHARDS - 16 {
                let [above, below] =
                    [first, second].map(|row| coefficient(row, column).expect("within a block"));
                let inverse = reference::invert(below).expect("not zero");
                let quotient = usize::from(multiply(above, inverse));
                let twice = std::mem::replace(&mut seen[quotient], true);
                assert!(!twice, "rows {first} and {second}, column {column}");
            }
        }
    }
}

/// Rows and columns of a random square part of a block with k + r = 256.
fn square() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    let block = (1..MAX_SHARDS).prop_map(|k| (k, MAX_SHARDS - k));
    let sized = block.prop_flat_map(|(k, r)| (Just((k, r)), 1..=k.min(r).min(40)));
    sized.prop_flat_map(|((k, r), size)| {
        let rows: Vec<_> = (0..r).collect();
        let columns: Vec<_> = (0..k).collect();
        (subsequence(rows, size), subsequence(columns, size))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_square_part_of_any_block_is_singular((rows, columns) in square()) {
        let matrix = submatrix(&rows, &columns);
        let inverse = invert_matrix(&matrix);
        prop_assert!(inverse.is_some());
        for (row, inverse_row) in inverse.expect("asserted").iter().enumerate() {
            for column in 0..matrix.len() {
                let terms = inverse_row.iter().zip(&matrix);
                let sum = terms.fold(0, |sum, (&a, b)| sum ^ multiply(a, b[column]));
                prop_assert_eq!(sum, u8::from(row == column));
            }
        }
    }
}
