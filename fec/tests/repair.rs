//! Whole blocks: what is lost is repaired, or refused, and the fast codec equals the reference.

use adit_fec::reference::Reference;
use adit_fec::{
    BeginError, Codec, Decoder, Encoder, MAX_SHARDS, ParityError, ReedSolomon, RepairError,
    SourceError, kernel,
};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

/// A block with what became of it.
#[derive(Clone, Debug)]
struct Block {
    sources: Vec<Vec<u8>>,
    rows: usize,
    /// The shards that arrive, by number: sources first, then parity rows.
    arrived: Vec<usize>,
}

impl Block {
    fn parity(&self, codec: &impl Codec) -> Vec<Vec<u8>> {
        parity_of(codec, &self.sources, self.rows)
    }

    /// The block as the decoder gets it.
    fn received<'a>(&'a self, parity: &'a [Vec<u8>]) -> Received<'a> {
        let k = self.sources.len();
        let arrived = |number: &usize| self.arrived.contains(number);
        let source = |index: usize| arrived(&index).then_some(&self.sources[index][..]);
        let rows = (0..self.rows).filter(|row| arrived(&(k + row)));
        (
            (0..k).map(source).collect(),
            rows.map(|row| (row, &parity[row][..])).collect(),
        )
    }

    /// The missing sources with the padding that they are repaired with.
    fn missing(&self) -> Vec<(usize, Vec<u8>)> {
        let len = longest(&self.sources);
        let lost = |&(index, _): &(usize, &Vec<u8>)| !self.arrived.contains(&index);
        let padded = |(index, source): (usize, &Vec<u8>)| {
            (
                index,
                source
                    .iter()
                    .copied()
                    .chain(std::iter::repeat(0))
                    .take(len)
                    .collect(),
            )
        };
        self.sources
            .iter()
            .enumerate()
            .filter(lost)
            .map(padded)
            .collect()
    }
}

type Received<'a> = (Vec<Option<&'a [u8]>>, Vec<(usize, &'a [u8])>);
type Outcome = Result<Vec<(usize, Vec<u8>)>, RepairError>;

fn longest(shards: &[Vec<u8>]) -> usize {
    shards.iter().map(Vec::len).max().unwrap_or(0)
}

fn parity_of(codec: &impl Codec, sources: &[Vec<u8>], rows: usize) -> Vec<Vec<u8>> {
    let capacity = longest(sources);
    let mut encoder = codec.encoder(vec![0xEE; rows * capacity]);
    encoder.begin(rows, capacity).expect("a legal block");
    for (index, source) in sources.iter().enumerate() {
        encoder.add_source(index, source).expect("a legal source");
    }
    assert_eq!(
        (encoder.sources(), encoder.shard_len(), encoder.rows()),
        (sources.len(), capacity, rows)
    );
    (0..rows)
        .map(|row| encoder.parity(row).expect("a row of the block").to_vec())
        .collect()
}

fn repair(codec: &impl Codec, work: usize, (sources, parity): &Received<'_>) -> Outcome {
    let mut decoder = codec.decoder(vec![0xEE; work]);
    let repaired = decoder.repair(sources, parity)?;
    assert_eq!(repaired.len(), repaired.iter().len());
    assert_eq!(repaired.is_empty(), repaired.iter().next().is_none());
    Ok(repaired
        .iter()
        .map(|(index, shard)| (index, shard.to_vec()))
        .collect())
}

/// Sources and a number of rows; most blocks are small, as on a link, some as large as can be.
fn sizes() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        6 => (1..=30_usize, 1..=10_usize),
        2 => (1..=120_usize, 1..=40_usize),
        1 => (1..MAX_SHARDS).prop_map(|k| (k, MAX_SHARDS - k)),
    ]
}

fn contents() -> impl Strategy<Value = (Vec<Vec<u8>>, usize)> {
    (sizes(), 0..=90_usize).prop_flat_map(|((k, rows), len)| {
        let source = prop_oneof![
            3 => prop::collection::vec(any::<u8>(), len),
            1 => prop::collection::vec(any::<u8>(), 0..=len),
        ];
        (prop::collection::vec(source, k), Just(rows))
    })
}

/// A block of which as many shards are lost as `lost` picks from the number of rows.
fn block(lost: impl Fn(usize) -> usize) -> impl Strategy<Value = Block> {
    let drawn = contents().prop_map(move |(sources, rows)| (lost(rows), sources, rows));
    drawn.prop_flat_map(|(lost, sources, rows)| {
        let all = sources.len() + rows;
        let arrived = subsequence((0..all).collect::<Vec<_>>(), all.saturating_sub(lost));
        arrived.prop_map(move |arrived| Block {
            sources: sources.clone(),
            rows,
            arrived,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_r_erasures_of_a_block_are_repaired(block in block(|rows| rows)) {
        let codec = ReedSolomon::new();
        let parity = block.parity(&codec);
        let work = block.rows * longest(&block.sources);
        let outcome = repair(&codec, work, &block.received(&parity));
        prop_assert_eq!(outcome, Ok(block.missing()));
    }

    #[test]
    fn more_erasures_than_parity_are_refused(
        block in block(|rows| rows + 1),
        extra: Index,
    ) {
        let codec = ReedSolomon::new();
        let parity = block.parity(&codec);
        // One or more than one too many.
        let mut block = block;
        block.arrived.truncate(block.arrived.len() - extra.index(block.arrived.len() + 1));
        let received = block.received(&parity);
        let missing = block.missing().len();
        let rows = received.1.len();
        let outcome = repair(&codec, block.sources.len() * longest(&block.sources), &received);
        prop_assert!(missing > rows);
        prop_assert_eq!(outcome, Err(RepairError::NotEnoughParity { missing, parity: rows }));
    }

    #[test]
    fn every_kernel_equals_the_reference(block in block(|rows| rows)) {
        let parity = block.parity(&Reference);
        let received = block.received(&parity);
        let work = block.rows * longest(&block.sources);
        // The reference inverts a k x k matrix by long multiplication: large blocks take too long.
        let slow = block.sources.len() > 40;
        let expected = if slow { Ok(block.missing()) } else { repair(&Reference, work, &received) };
        for kernel in kernel::available() {
            let codec = ReedSolomon::with_kernel(kernel);
            prop_assert_eq!(&block.parity(&codec), &parity, "{:?}", kernel);
            prop_assert_eq!(&repair(&codec, work, &received), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn any_rows_in_any_order_repair_the_same(
        block in block(|rows| rows / 2),
        order in prop::collection::vec(any::<Index>(), 40),
    ) {
        let codec = ReedSolomon::new();
        let parity = block.parity(&codec);
        let mut received = block.received(&parity);
        for (at, other) in order.iter().enumerate().take(received.1.len()) {
            let other = other.index(received.1.len());
            received.1.swap(at, other);
        }
        let outcome = repair(&codec, block.rows * longest(&block.sources), &received);
        prop_assert_eq!(outcome, Ok(block.missing()));
    }

    #[test]
    fn a_block_closes_at_any_k((sources, rows) in contents(), at: Index) {
        let capacity = longest(&sources);
        let mut encoder = ReedSolomon::new().encoder(vec![0; rows * capacity]);
        encoder.begin(rows, capacity).expect("a legal block");
        let k = 1 + at.index(sources.len());
        for (index, source) in sources[..k].iter().enumerate() {
            encoder.add_source(index, source).expect("a legal source");
        }
        let parity = parity_of(&ReedSolomon::new(), &sources[..k], rows);
        for (row, expected) in parity.iter().enumerate() {
            prop_assert_eq!(encoder.parity(row), Ok(&expected[..]));
        }
    }

    #[test]
    fn sources_in_any_order_give_the_same_parity(
        (sources, rows) in contents(),
        order in prop::collection::vec(any::<Index>(), 255),
    ) {
        let mut indices: Vec<_> = (0..sources.len()).collect();
        for (at, other) in order.iter().enumerate().take(sources.len()) {
            indices.swap(at, other.index(sources.len()));
        }
        let capacity = longest(&sources);
        let mut encoder = ReedSolomon::new().encoder(vec![0; rows * capacity]);
        encoder.begin(rows, capacity).expect("a legal block");
        for index in indices {
            encoder.add_source(index, &sources[index]).expect("a legal source");
        }
        let parity = parity_of(&ReedSolomon::new(), &sources, rows);
        for (row, expected) in parity.iter().enumerate() {
            prop_assert_eq!(encoder.parity(row), Ok(&expected[..]));
        }
    }

    #[test]
    fn nothing_of_a_block_shows_in_the_next(
        (former, former_rows) in contents(),
        (sources, rows) in contents(),
    ) {
        let (before, capacity) = (longest(&former), longest(&sources));
        let work = (former_rows * before).max(rows * capacity);
        let mut encoder = ReedSolomon::new().encoder(vec![0xEE; work]);
        encoder.begin(former_rows, before).expect("a legal block");
        for (index, source) in former.iter().enumerate() {
            encoder.add_source(index, source).expect("a legal source");
        }
        encoder.begin(rows, capacity).expect("a legal block");
        prop_assert_eq!((encoder.sources(), encoder.shard_len()), (0, 0));
        for (index, source) in sources.iter().enumerate() {
            encoder.add_source(index, source).expect("a legal source");
        }
        let parity = parity_of(&Reference, &sources, rows);
        for (row, expected) in parity.iter().enumerate() {
            prop_assert_eq!(encoder.parity(row), Ok(&expected[..]));
        }
    }

    /// Shapes that no encoder made: the answer is the reference's, or its error, and never a panic.
    #[test]
    fn any_shapes_give_what_the_reference_gives(
        sources in prop::collection::vec(
            prop::option::weighted(0.8, prop::collection::vec(any::<u8>(), 0..12)), 0..12),
        parity in prop::collection::vec(
            (0..260_usize, prop::collection::vec(any::<u8>(), 8..=10)), 0..6),
        same_length: bool,
        low_rows: bool,
        work in 0..60_usize,
    ) {
        let mut parity = parity;
        for (at, (row, shard)) in parity.iter_mut().enumerate() {
            if same_length {
                shard.resize(11, 7);
            }
            if low_rows {
                *row = at * 3 % 7;
            }
        }
        let received: Received<'_> = (
            sources.iter().map(Option::as_deref).collect(),
            parity.iter().map(|(row, shard)| (*row, &shard[..])).collect(),
        );
        let fast = repair(&ReedSolomon::new(), work, &received);
        prop_assert_eq!(fast, repair(&Reference, work, &received));
    }
}

/// Known answers, computed apart from this crate: who changes one of them changes the wire format.
#[test]
fn parity_is_that_of_the_wire() {
    let sources: [&[u8]; 4] = [
        &[0, 7, 14, 21, 28],
        &[14, 21, 28, 35, 42, 49, 56, 63],
        &[54, 61, 68],
        &[120, 127, 134, 141, 148, 155, 162, 169],
    ];
    let parity: [[u8; 8]; 4] = [
        [0x40, 0x50, 0xd0, 0xbb, 0xa2, 0xaa, 0x9a, 0x96],
        [0x6f, 0x4b, 0x10, 0xb2, 0x5b, 0x74, 0x8b, 0xf9],
        [0x1d, 0xe8, 0xc5, 0xab, 0x73, 0x97, 0x38, 0x5e],
        [0x42, 0x52, 0x28, 0x5c, 0x33, 0x0e, 0xd2, 0x74],
    ];
    let sources: Vec<_> = sources.iter().map(|source| source.to_vec()).collect();
    assert_eq!(parity_of(&ReedSolomon::new(), &sources, 4), parity);
    assert_eq!(parity_of(&Reference, &sources, 4), parity);
}

#[test]
fn the_largest_blocks_are_repaired_from_parity_alone() {
    for (k, rows) in [(128, 128), (1, 255), (2, 254), (127, 129)] {
        let sources: Vec<Vec<u8>> = (0..k)
            .map(|j| (0..20).map(|i| (i * 31 + j * j + 5 * j) as u8).collect())
            .collect();
        let codec = ReedSolomon::new();
        let block = Block {
            sources,
            rows,
            arrived: (k..k + rows).collect(),
        };
        let parity = block.parity(&codec);
        let mut received = block.received(&parity);
        received.1.reverse();
        assert_eq!(
            repair(&codec, k * 20, &received),
            Ok(block.missing()),
            "{k}+{rows}"
        );
    }
}

#[test]
fn one_row_under_255_sources_repairs_any_one() {
    let sources: Vec<Vec<u8>> = (0..255_u8).map(|j| vec![j, j.wrapping_mul(3), 1]).collect();
    let codec = ReedSolomon::new();
    for lost in 0..255 {
        let arrived = (0..256).filter(|&number| number != lost).collect();
        let block = Block {
            sources: sources.clone(),
            rows: 1,
            arrived,
        };
        let parity = block.parity(&codec);
        assert_eq!(
            repair(&codec, 3, &block.received(&parity)),
            Ok(block.missing())
        );
    }
}

#[test]
fn a_whole_block_needs_no_parity_and_no_work_space() {
    let mut decoder = ReedSolomon::new().decoder(Vec::new());
    let repaired = decoder
        .repair(&[Some(b"a"), Some(b"bcd")], &[])
        .expect("nothing is missing");
    assert!(repaired.is_empty());
    assert_eq!(repaired.source(0), None);
}

#[test]
fn empty_sources_are_repaired_as_empty() {
    let mut encoder = ReedSolomon::new().encoder(Vec::new());
    encoder.begin(1, 0).expect("a legal block");
    encoder.add_source(0, &[]).expect("a legal source");
    encoder.add_source(1, &[]).expect("a legal source");
    let parity = encoder.parity(0).expect("a row of the block");
    assert!(parity.is_empty());
    let mut decoder = ReedSolomon::new().decoder(Vec::new());
    let repaired = decoder
        .repair(&[Some(&[]), None], &[(0, parity)])
        .expect("enough parity");
    assert_eq!(repaired.source(1), Some(&[][..]));
}

#[test]
fn work_space_may_be_borrowed() {
    let mut work = [0; 8];
    let mut encoder = ReedSolomon::new().encoder(&mut work[..]);
    encoder.begin(2, 4).expect("a legal block");
    encoder.add_source(0, b"abcd").expect("a legal source");
    assert_eq!(encoder.parity(0), Ok(&b"abcd"[..]));
}

fn encoder_errors(codec: &impl Codec) {
    let mut encoder = codec.encoder(vec![0; 100]);
    assert_eq!(
        encoder.add_source(0, b"a"),
        Err(SourceError::IndexOutOfRange { index: 0, limit: 0 })
    );
    assert_eq!(
        encoder.parity(0),
        Err(ParityError::RowOutOfRange { row: 0, rows: 0 })
    );
    for rows in [0, 256, usize::MAX] {
        assert_eq!(
            encoder.begin(rows, 1),
            Err(BeginError::RowsOutOfRange { rows, max: 255 })
        );
    }
    for (rows, capacity, needed) in [(2, 51, 102), (101, 1, 101), (3, usize::MAX, usize::MAX)] {
        let error = BeginError::WorkTooSmall {
            needed,
            available: 100,
        };
        assert_eq!(encoder.begin(rows, capacity), Err(error));
    }

    encoder.begin(2, 50).expect("a legal block");
    assert_eq!(
        encoder.add_source(254, b"a"),
        Err(SourceError::IndexOutOfRange {
            index: 254,
            limit: 254
        })
    );
    assert_eq!(
        encoder.add_source(0, &[1; 51]),
        Err(SourceError::TooLong {
            len: 51,
            capacity: 50
        })
    );
    encoder.add_source(2, b"abc").expect("a legal source");
    assert_eq!(
        encoder.add_source(2, b"abc"),
        Err(SourceError::Duplicate { index: 2 })
    );
    assert_eq!(
        encoder.parity(1),
        Err(ParityError::Gap {
            sources: 1,
            highest: 2
        })
    );
    assert_eq!(
        encoder.begin(0, 1),
        Err(BeginError::RowsOutOfRange { rows: 0, max: 255 })
    );
    encoder.add_source(1, b"b").expect("a legal source");
    encoder.add_source(0, b"a").expect("a legal source");
    assert_eq!(
        encoder.parity(2),
        Err(ParityError::RowOutOfRange { row: 2, rows: 2 })
    );
    let sum = [b'a' ^ b'b' ^ b'a', b'b', b'c'];
    assert_eq!(
        encoder.parity(0),
        Ok(&sum[..]),
        "what was refused left the block as it was"
    );
}

#[test]
fn the_encoder_refuses_with_numbers_and_keeps_the_block() {
    encoder_errors(&ReedSolomon::new());
    encoder_errors(&Reference);
}

fn decoder_errors(codec: &impl Codec) {
    let mut decoder = codec.decoder(vec![0; 5]);
    let mut error = |sources: &[Option<&[u8]>], parity: &[(usize, &[u8])]| {
        decoder
            .repair(sources, parity)
            .map(|repaired| repaired.len())
            .unwrap_err()
    };
    assert_eq!(
        error(&[], &[]),
        RepairError::SourcesOutOfRange {
            sources: 0,
            max: 255
        }
    );
    let many = vec![Some(&b"a"[..]); 256];
    assert_eq!(
        error(&many, &[]),
        RepairError::SourcesOutOfRange {
            sources: 256,
            max: 255
        }
    );
    assert_eq!(
        error(&[None, Some(b"a")], &[(254, b"p")]),
        RepairError::RowOutOfRange {
            row: 254,
            limit: 254
        }
    );
    assert_eq!(
        error(&[None, None], &[(3, b"p"), (3, b"p")]),
        RepairError::DuplicateRow { row: 3 }
    );
    assert_eq!(
        error(&[None, None], &[(3, b"p"), (1, b"pp")]),
        RepairError::ParityLength {
            row: 1,
            len: 2,
            expected: 1
        }
    );
    assert_eq!(
        error(&[None, Some(b"ab")], &[(3, b"p")]),
        RepairError::SourceTooLong {
            index: 1,
            len: 2,
            parity_len: 1
        }
    );
    assert_eq!(
        error(&[None, None], &[(3, b"p")]),
        RepairError::NotEnoughParity {
            missing: 2,
            parity: 1
        }
    );
    assert_eq!(
        error(&[None, None], &[(3, b"ppp"), (4, b"qqq")]),
        RepairError::WorkTooSmall {
            needed: 6,
            available: 5
        }
    );
}

#[test]
fn the_decoder_refuses_with_numbers() {
    decoder_errors(&ReedSolomon::new());
    decoder_errors(&Reference);
}
