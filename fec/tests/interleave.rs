//! Interleaved blocks: a block is repaired as soon as as many rows as missing sources came, whatever
//! the order, and nothing wrong ever comes out.

use std::collections::BTreeSet;

use adit_fec::interleave::{InterleavedDecoder, InterleavedEncoder, Interleaving};
use adit_fec::{
    PushError, ReedSolomon, RepairOutcome, SourceOutcome, SpanError, StreamDecoder, StreamEncoder,
    reference,
};
use proptest::prelude::*;

const CAPACITY: usize = 12;

fn shard(number: u64) -> Vec<u8> {
    let len = 1 + (number.wrapping_mul(0x9E37_79B9) >> 7) as usize % (CAPACITY - 1);
    let mut shard: Vec<u8> = (0..len as u64)
        .map(|at| (number.wrapping_mul(31) ^ at.wrapping_mul(97)) as u8)
        .collect();
    shard[0] = len as u8;
    shard
}

#[track_caller]
fn assert_is(number: u64, repaired: &[u8]) {
    let source = shard(number);
    let (start, padding) = repaired.split_at(source.len());
    assert_eq!(start, source, "source {number}");
    assert!(padding.iter().all(|&byte| byte == 0), "source {number}");
}

fn shapes() -> impl Strategy<Value = Interleaving> {
    (1..12_usize, 1..5_usize, 1..5_usize).prop_map(|(sources, rows, depth)| Interleaving {
        sources,
        rows,
        depth,
    })
}

proptest! {
    #[test]
    fn a_block_is_repaired_exactly_when_enough_of_it_came(
        shape in shapes(),
        groups in 1..4_usize,
        fates in prop::collection::vec((any::<bool>(), 0..200_u16), 200),
    ) {
        let codec = ReedSolomon::new();
        let slow = reference::Reference;
        let count = (groups * shape.group()) as u64;
        let window = count as usize;
        let mut encoder = InterleavedEncoder::new(&codec, shape, CAPACITY).expect("legal");
        let mut slow_encoder = InterleavedEncoder::new(&slow, shape, CAPACITY).expect("legal");
        let mut decoder = InterleavedDecoder::new(&codec, shape, window, CAPACITY).expect("legal");

        // Everything that is sent, and of it what arrives, shuffled.
        let mut fates = fates.into_iter().cycle();
        let mut arrivals = Vec::new();
        for number in 0..count {
            encoder.push(number, &shard(number)).expect("in order");
            slow_encoder.push(number, &shard(number)).expect("in order");
            let (arrives, when) = fates.next().expect("a cycle");
            if arrives {
                arrivals.push((when, number, None));
            }
            let (first, index) = shape.place(number);
            for row in 0..shape.rows as u16 {
                let (arrives, when) = fates.next().expect("a cycle");
                if index + 1 == shape.sources && arrives {
                    let (mut out, mut slow_out) = ([0; CAPACITY], [0; CAPACITY]);
                    let span = shape.span(shape.sources);
                    let len = encoder.repair(first, span, row, &mut out).expect("held");
                    let slow_len = slow_encoder.repair(first, span, row, &mut slow_out);
                    prop_assert_eq!(Ok(len), slow_len);
                    prop_assert_eq!(out, slow_out);
                    arrivals.push((when, first, Some((row, out[..len].to_vec()))));
                }
            }
        }
        arrivals.sort_by_key(|(when, _, _)| *when);

        let mut came: BTreeSet<u64> = BTreeSet::new();
        let mut rows: BTreeSet<(u64, u16)> = BTreeSet::new();
        let mut repaired: BTreeSet<u64> = BTreeSet::new();
        for (_, number, parity) in arrivals {
            match parity {
                None => {
                    let outcome = decoder.handle_source(number, &shard(number));
                    let known = repaired.contains(&number);
                    let expected = if known { SourceOutcome::Known } else { SourceOutcome::New };
                    prop_assert_eq!(outcome, expected);
                    came.insert(number);
                }
                Some((row, parity)) => {
                    let span = shape.span(shape.sources);
                    decoder.handle_repair(number, span, row, &parity);
                    rows.insert((number, row));
                }
            }
            while let Some((number, bytes)) = decoder.poll_repaired() {
                assert_is(number, bytes);
                prop_assert!(repaired.insert(number));
            }
            for first in (0..count).filter(|&number| shape.place(number) == (number, 0)) {
                let block = (0..shape.sources).map(|at| first + (at * shape.depth) as u64);
                let missing: Vec<u64> = block.filter(|number| !came.contains(number)).collect();
                let rows = rows.range((first, 0)..=(first, u16::MAX)).count();
                // Sources that came after their repair still count as repaired.
                let all = missing.iter().all(|number| repaired.contains(number));
                prop_assert_eq!(missing.len() <= rows || missing.is_empty(), all, "block {}", first);
            }
        }
    }

    #[test]
    fn nothing_makes_a_decoder_panic_or_forget_its_bounds(
        shape in shapes(),
        spare in 0..30_usize,
        first in prop_oneof![Just(0), Just(u64::MAX - 60), any::<u64>()],
        input in prop::collection::vec(
            (any::<bool>(), 0..120_u64, prop_oneof![0..60_usize, Just(usize::MAX)], 0..6_u16, 0..15_usize),
            0..80,
        ),
    ) {
        let codec = ReedSolomon::new();
        let window = shape.group() + spare;
        let mut decoder = InterleavedDecoder::new(&codec, shape, window, CAPACITY).expect("legal");
        for (source, ahead, span, key, len) in input {
            let number = first.wrapping_add(ahead);
            let bytes = vec![key as u8 + 1; len];
            if source {
                decoder.handle_source(number, &bytes);
            } else {
                decoder.handle_repair(number, span, key, &bytes);
                let (first, _) = shape.place(number);
                decoder.handle_repair(first, shape.span(1 + span % shape.sources), key, &bytes);
            }
            while let Some((_, bytes)) = decoder.poll_repaired() {
                prop_assert!(bytes.len() <= CAPACITY);
            }
        }
    }
}

const SHAPE: Interleaving = Interleaving {
    sources: 4,
    rows: 2,
    depth: 3,
};

#[test]
fn a_burst_as_long_as_depth_times_rows_comes_back() {
    let codec = ReedSolomon::new();
    let mut encoder = InterleavedEncoder::new(&codec, SHAPE, CAPACITY).expect("legal");
    let mut decoder = InterleavedDecoder::new(&codec, SHAPE, 24, CAPACITY).expect("legal");
    let mut out = [0; CAPACITY];
    for number in 0..12 {
        encoder.push(number, &shard(number)).expect("in order");
        if !(3..9).contains(&number) {
            decoder.handle_source(number, &shard(number));
        }
    }
    for first in 0..3 {
        for row in 0..2 {
            let len = encoder
                .repair(first, SHAPE.span(4), row, &mut out)
                .expect("held");
            let outcome = decoder.handle_repair(first, SHAPE.span(4), row, &out[..len]);
            assert_eq!(outcome, RepairOutcome::Useful);
        }
    }
    let mut repaired = BTreeSet::new();
    while let Some((number, bytes)) = decoder.poll_repaired() {
        assert_is(number, bytes);
        repaired.insert(number);
    }
    assert_eq!(repaired, (3..9).collect());
}

#[test]
fn a_block_may_be_closed_early_and_its_rows_over_fewer_sources_give_way() {
    let codec = ReedSolomon::new();
    let mut encoder = InterleavedEncoder::new(&codec, SHAPE, CAPACITY).expect("legal");
    let mut decoder = InterleavedDecoder::new(&codec, SHAPE, 24, CAPACITY).expect("legal");
    let mut out = [0; CAPACITY];
    // Block 0 has the sources 0, 3, 6 and 9.
    for number in 0..7 {
        encoder.push(number, &shard(number)).expect("in order");
    }
    let len = encoder
        .repair(0, SHAPE.span(3), 0, &mut out)
        .expect("three so far");
    decoder.handle_source(0, &shard(0));
    decoder.handle_source(3, &shard(3));
    decoder.handle_repair(0, SHAPE.span(3), 0, &out[..len]);
    let (number, bytes) = decoder.poll_repaired().expect("one missing, one row");
    assert_eq!(number, 6);
    assert_is(6, bytes);

    for number in 7..10 {
        encoder.push(number, &shard(number)).expect("in order");
    }
    assert!(encoder.repair(0, SHAPE.span(3), 0, &mut out).is_err());
    let len = encoder
        .repair(0, SHAPE.span(4), 1, &mut out)
        .expect("all four");
    decoder.handle_repair(0, SHAPE.span(4), 1, &out[..len]);
    let (number, bytes) = decoder.poll_repaired().expect("one missing, one row");
    assert_eq!(number, 9);
    assert_is(9, bytes);
}

#[test]
fn what_is_no_repair_of_a_block_is_refused() {
    let codec = ReedSolomon::new();
    let mut encoder = InterleavedEncoder::new(&codec, SHAPE, CAPACITY).expect("legal");
    let mut out = [0; CAPACITY];
    for number in 0..10 {
        encoder.push(number, &shard(number)).expect("in order");
    }
    let passed = PushError::Passed {
        number: 3,
        next: 10,
    };
    assert_eq!(encoder.push(3, &[1]), Err(passed));
    for (first, span, key) in [(3, 4, 0), (0, 0, 0), (0, 9, 0), (0, 13, 0), (0, 10, 2)] {
        let unsupported = SpanError::Unsupported { span, key };
        assert_eq!(encoder.repair(first, span, key, &mut out), Err(unsupported));
    }
    assert!(matches!(
        encoder.repair(12, 1, 0, &mut out),
        Err(SpanError::NotHeld { .. })
    ));
    for shape in [
        Interleaving {
            sources: 0,
            ..SHAPE
        },
        Interleaving { rows: 253, ..SHAPE },
        Interleaving {
            depth: 300,
            ..SHAPE
        },
    ] {
        assert!(InterleavedEncoder::new(&codec, shape, CAPACITY).is_err());
    }
    assert!(InterleavedDecoder::new(&codec, SHAPE, 11, CAPACITY).is_err());
}
