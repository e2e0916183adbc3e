//! The window code: whatever is lost, late, doubled or out of order, a source is repaired exactly
//! when the textbook's elimination determines it, and nothing wrong ever comes out.

use std::collections::{BTreeMap, BTreeSet};

use adit_fec::window::reference::Reference;
use adit_fec::{
    Prospect, RepairOutcome, SourceOutcome, StreamDecoder, StreamEncoder, WindowDecoder,
    WindowEncoder,
};
use proptest::prelude::*;

const CAPACITY: usize = 12;

fn encoder(window: usize) -> WindowEncoder<Vec<u8>> {
    WindowEncoder::new(vec![0; window * CAPACITY], window, CAPACITY).expect("legal")
}

fn decoder(first: u64, window: usize, equations: usize) -> WindowDecoder<Vec<u8>> {
    let work = vec![0xEE; WindowDecoder::<Vec<u8>>::work_len(window, equations, CAPACITY)];
    WindowDecoder::new(work, first, window, equations, CAPACITY).expect("legal")
}

/// A shard of any length that says its own length, as what is coded has to.
fn shard(number: u64) -> Vec<u8> {
    let len = 1 + (number.wrapping_mul(0x9E37_79B9) >> 7) as usize % (CAPACITY - 1);
    let mut shard: Vec<u8> = (0..len as u64)
        .map(|at| (number.wrapping_mul(31) ^ at.wrapping_mul(97) ^ number >> 3) as u8)
        .collect();
    shard[0] = len as u8;
    shard
}

/// Asserts that what was repaired is the shard with zeros behind it.
#[track_caller]
fn assert_is(number: u64, repaired: &[u8]) {
    let source = shard(number);
    let (start, padding) = repaired.split_at(source.len());
    assert_eq!(start, source, "source {number}");
    assert!(padding.iter().all(|&byte| byte == 0), "source {number}");
}

/// Something that arrives.
#[derive(Clone, Debug)]
enum Arrival {
    Source(u64),
    Repair { first: u64, span: usize, key: u16 },
}

/// What a sender of `count` sources sends, of which a mask loses some, in an order that is
/// somewhat shuffled.
fn arrivals(first: u64, window: usize) -> impl Strategy<Value = Vec<Arrival>> {
    let packet = (any::<u8>(), 1..=window, any::<bool>(), 0..40_usize);
    (prop::collection::vec(packet, 1..80), 20..230_u8).prop_map(move |(packets, survival)| {
        let mut sent = Vec::new();
        for (at, (fate, span, repair, delay)) in packets.into_iter().enumerate() {
            let number = first + at as u64;
            if fate < survival {
                let late = if delay > 36 { delay - 30 } else { 0 };
                sent.push((2 * at + late, Arrival::Source(number)));
            }
            if repair {
                let span = span.min(at + 1);
                let first = number + 1 - span as u64;
                let key = at as u16;
                sent.push((2 * at + 1, Arrival::Repair { first, span, key }));
            }
        }
        sent.sort_by_key(|(at, _)| *at);
        sent.into_iter().map(|(_, arrival)| arrival).collect()
    })
}

proptest! {
    #[test]
    fn exactly_what_the_reference_determines_is_repaired(
        arrivals in (0..2_u64).prop_flat_map(|top| arrivals(top * (1 << 60) + 5, 40)),
        base in Just(5_u64),
    ) {
        let first = match arrivals.first() {
            Some(Arrival::Source(number) | Arrival::Repair { first: number, .. }) => number & (1 << 60),
            None => 0,
        } + base;
        let mut encoder = encoder(128);
        let mut decoder = decoder(first, 200, 128);
        let mut reference = Reference::default();
        for number in first..first + 120 {
            encoder.push(number, &shard(number)).expect("in order");
        }
        let mut repaired = BTreeSet::new();
        for arrival in arrivals {
            match arrival {
                Arrival::Source(number) => {
                    let outcome = decoder.handle_source(number, &shard(number));
                    let known = repaired.contains(&number);
                    prop_assert_eq!(outcome == SourceOutcome::Known, known);
                    reference.handle_source(number, &shard(number));
                }
                Arrival::Repair { first, span, key } => {
                    let mut out = [0; CAPACITY];
                    let len = encoder.repair(first, span, key, &mut out).expect("held");
                    decoder.handle_repair(first, span, key, &out[..len]);
                    reference.handle_repair(first, span, key, &out[..len]);
                }
            }
            while let Some((number, bytes)) = decoder.poll_repaired() {
                assert_is(number, bytes);
                prop_assert!(repaired.insert(number), "{} twice", number);
            }
            for (number, bytes) in reference.repaired() {
                assert_is(number, &bytes);
                prop_assert!(repaired.contains(&number), "{} is determined", number);
            }
            for &number in &repaired {
                prop_assert_eq!(decoder.prospect(number), Prospect::Known);
            }
        }
        // Nothing more either: sources that came later do not undo what was determined.
        prop_assert_eq!(decoder.stats().repaired, repaired.len() as u64);
        prop_assert_eq!(decoder.stats().lost, 0);
    }

    #[test]
    fn a_small_window_repairs_nothing_wrong_and_all_that_lies_in_it(
        arrivals in arrivals(0, 12),
        window in 12..20_usize,
        equations in 1..6_usize,
    ) {
        let mut encoder = encoder(128);
        let mut small = decoder(0, window, equations);
        let mut whole = decoder(0, window, 64);
        for number in 0..120 {
            encoder.push(number, &shard(number)).expect("in order");
        }
        let mut bound = Bound::new(window as u64);
        let mut repaired = BTreeSet::new();
        for arrival in arrivals {
            match arrival {
                Arrival::Source(number) => {
                    small.handle_source(number, &shard(number));
                    let outcome = whole.handle_source(number, &shard(number));
                    prop_assert_eq!(outcome == SourceOutcome::Expired, !bound.source(number));
                }
                Arrival::Repair { first, span, key } => {
                    let mut out = [0; CAPACITY];
                    let len = encoder.repair(first, span, key, &mut out).expect("held");
                    small.handle_repair(first, span, key, &out[..len]);
                    let outcome = whole.handle_repair(first, span, key, &out[..len]);
                    let fits = bound.repair(first, span, key, &out[..len]);
                    prop_assert_eq!(outcome == RepairOutcome::Expired, !fits);
                }
            }
            while let Some((number, bytes)) = small.poll_repaired() {
                assert_is(number, bytes);
            }
            while let Some((number, bytes)) = whole.poll_repaired() {
                assert_is(number, bytes);
                repaired.insert(number);
            }
            // With room for all equations, expiry loses nothing that lies in the window.
            for number in bound.reference.repaired().into_keys() {
                if number >= bound.base() {
                    prop_assert!(repaired.contains(&number), "{} is determined", number);
                }
            }
        }
        prop_assert!(small.stats().repaired <= whole.stats().repaired);
    }

    #[test]
    fn prospects_are_what_all_further_repairs_would_bring(
        arrivals in arrivals(0, 30),
        cut in 0..120_usize,
    ) {
        let mut encoder = encoder(128);
        let mut decoder = decoder(0, 200, 128);
        let mut reference = Reference::default();
        for number in 0..120 {
            encoder.push(number, &shard(number)).expect("in order");
        }
        let (mut spans, mut covered, mut end) = (Vec::new(), 0, 0);
        for arrival in arrivals.into_iter().take(cut) {
            match arrival {
                Arrival::Source(number) => {
                    decoder.handle_source(number, &shard(number));
                    reference.handle_source(number, &shard(number));
                    end = end.max(number + 1);
                }
                Arrival::Repair { first, span, key } => {
                    let mut out = [0; CAPACITY];
                    let len = encoder.repair(first, span, key, &mut out).expect("held");
                    decoder.handle_repair(first, span, key, &out[..len]);
                    reference.handle_repair(first, span, key, &out[..len]);
                    spans.push(span as u64);
                    covered = covered.max(first + span as u64);
                    end = end.max(covered);
                }
            }
        }
        let missing: BTreeMap<u64, Prospect> = decoder.missing().collect();
        let longest = spans.iter().rev().take(32).max().copied().unwrap_or(0);
        let floor = covered - longest;
        // As if repairs to come had brought all that they can cover.
        for number in floor..end {
            reference.handle_source(number, &shard(number));
        }
        let would_come = reference.repaired();
        for number in 0..end {
            let prospect = decoder.prospect(number);
            prop_assert_eq!(missing.get(&number).copied().unwrap_or(Prospect::Known), prospect);
            if prospect == Prospect::Known {
                continue;
            }
            let open = number >= floor || would_come.contains_key(&number);
            let expected = if open { Prospect::Open } else { Prospect::Hopeless };
            prop_assert_eq!(prospect, expected, "source {}", number);
        }
        prop_assert_eq!(decoder.prospect(end), Prospect::Unseen);
        prop_assert_eq!(decoder.missing_len(), missing.len());
    }

    #[test]
    fn nothing_makes_a_decoder_panic_or_forget_its_bounds(
        window in 1..20_usize,
        equations in 1..5_usize,
        first in prop_oneof![Just(0), Just(u64::MAX - 30), any::<u64>()],
        input in prop::collection::vec(
            (any::<bool>(), 0..60_u64, prop_oneof![0..25_usize, Just(usize::MAX)], 0..4_u16, 0..15_usize),
            0..80,
        ),
    ) {
        let mut decoder = decoder(first, window, equations);
        let mut handled = 0;
        for (source, ahead, span, key, len) in input {
            let number = first.wrapping_add(ahead).wrapping_sub(5);
            let bytes = vec![key as u8 + 1; len];
            if source {
                decoder.handle_source(number, &bytes);
            } else {
                decoder.handle_repair(number, span, key, &bytes);
            }
            handled += 1;
            let held = decoder.window();
            prop_assert!(held.end - held.start <= window as u64);
            prop_assert!(decoder.missing_len() as u64 <= held.end - held.start);
            prop_assert_eq!(decoder.missing().count(), decoder.missing_len());
            if len % 3 == 0 {
                while let Some((number, bytes)) = decoder.poll_repaired() {
                    prop_assert!(held.contains(&number) && bytes.len() <= CAPACITY);
                }
            }
        }
        let stats = decoder.stats();
        let counted = stats.sources + stats.sources_known + stats.sources_expired
            + stats.sources_malformed + stats.repairs_useful + stats.repairs_redundant
            + stats.repairs_expired;
        prop_assert!(counted <= handled && handled <= counted + stats.repairs_malformed);
    }
}

/// The reference as a decoder with a bounded window would use it.
struct Bound {
    reference: Reference,
    window: u64,
    end: u64,
}

impl Bound {
    fn new(window: u64) -> Self {
        Self {
            reference: Reference::default(),
            window,
            end: 0,
        }
    }

    fn base(&self) -> u64 {
        self.end.saturating_sub(self.window)
    }

    /// Takes a source unless it came too late.
    fn source(&mut self, number: u64) -> bool {
        self.end = self.end.max(number + 1);
        let in_window = number >= self.base();
        if in_window {
            self.reference.handle_source(number, &shard(number));
        }
        in_window
    }

    /// Takes a repair unless it came too late.
    fn repair(&mut self, first: u64, span: usize, key: u16, parity: &[u8]) -> bool {
        let end = first + span as u64;
        if first >= self.base() {
            self.end = self.end.max(end);
        }
        let in_window = first >= self.base();
        if in_window {
            self.reference.handle_repair(first, span, key, parity);
        }
        in_window
    }
}

#[test]
fn a_hundred_lost_in_a_row_come_back_with_a_hundred_repairs() {
    let mut encoder = encoder(256);
    let mut decoder = decoder(0, 256, 128);
    for number in 0..256 {
        encoder.push(number, &shard(number)).expect("in order");
        if !(80..180).contains(&number) {
            decoder.handle_source(number, &shard(number));
        }
    }
    let mut out = [0; CAPACITY];
    let mut repairs = 0;
    while decoder.missing_len() > 0 {
        let len = encoder.repair(60, 196, repairs, &mut out).expect("held");
        decoder.handle_repair(60, 196, repairs, &out[..len]);
        repairs += 1;
    }
    // A random matrix of 100 rows is singular once in 255.
    assert!(repairs <= 102, "{repairs}");
    let mut repaired = 0;
    while let Some((number, bytes)) = decoder.poll_repaired() {
        assert_is(number, bytes);
        repaired += 1;
    }
    assert_eq!(repaired, 100);
}

#[test]
fn a_jump_far_ahead_leaves_all_behind_as_lost() {
    let mut decoder = decoder(0, 8, 4);
    decoder.handle_source(0, &shard(0));
    decoder.handle_source(2, &shard(2));
    assert_eq!(
        decoder.handle_source(1_000_000, &shard(1)),
        SourceOutcome::New
    );
    assert_eq!(decoder.window(), 999_993..1_000_001);
    assert_eq!(decoder.missing_len(), 7);
    assert_eq!(decoder.stats().lost, 999_993 - 2);
    assert_eq!(decoder.prospect(2), Prospect::Expired);
    assert_eq!(decoder.handle_source(3, &shard(3)), SourceOutcome::Expired);
}

#[test]
fn a_repair_shorter_than_what_it_covers_is_dropped_and_counted() {
    let mut decoder = decoder(0, 8, 4);
    decoder.handle_source(0, &[9; 5]);
    assert_eq!(
        decoder.handle_repair(0, 2, 1, &[7; 4]),
        RepairOutcome::Malformed
    );
    // The same lie found out later, when the source comes.
    assert_eq!(
        decoder.handle_repair(1, 2, 1, &[7; 4]),
        RepairOutcome::Useful
    );
    decoder.handle_source(2, &[9; 5]);
    assert_eq!(decoder.stats().repairs_malformed, 2);
    assert_eq!(decoder.poll_repaired(), None);
    assert_eq!(decoder.prospect(1), Prospect::Open);
}

#[test]
fn the_oldest_equation_makes_room_for_the_newest() {
    let mut encoder = encoder(16);
    let mut decoder = decoder(0, 16, 2);
    for number in 0..16 {
        encoder.push(number, &shard(number)).expect("in order");
    }
    let mut out = [0; CAPACITY];
    for (first, key) in [(0, 0), (4, 1), (8, 2)] {
        let len = encoder.repair(first, 2, key, &mut out).expect("held");
        let outcome = decoder.handle_repair(first, 2, key, &out[..len]);
        assert_eq!(outcome, RepairOutcome::Useful);
    }
    assert_eq!(decoder.stats().repairs_displaced, 1);
    for number in [0, 4, 8] {
        decoder.handle_source(number, &shard(number));
    }
    let mut repaired = Vec::new();
    while let Some((number, bytes)) = decoder.poll_repaired() {
        assert_is(number, bytes);
        repaired.push(number);
    }
    assert_eq!(repaired, [5, 9]);
}

#[test]
fn what_was_not_asked_for_before_it_expired_does_not_come() {
    let mut encoder = encoder(8);
    let mut decoder = decoder(0, 4, 2);
    encoder.push(0, &shard(0)).expect("the first");
    let mut out = [0; CAPACITY];
    let len = encoder.repair(0, 1, 0, &mut out).expect("held");
    decoder.handle_repair(0, 1, 0, &out[..len]);
    for number in 1..5 {
        decoder.handle_source(number, &shard(number));
    }
    assert_eq!(decoder.poll_repaired(), None);
    assert_eq!(decoder.stats().repaired, 1);
}

#[test]
fn a_short_repair_among_long_ones_makes_nothing_hopeless() {
    let mut encoder = encoder(128);
    let mut decoder = decoder(0, 128, 8);
    for number in 0..100 {
        encoder.push(number, &shard(number)).expect("in order");
        if !(10..14).contains(&number) {
            decoder.handle_source(number, &shard(number));
        }
    }
    let mut repair = |first, span, key| {
        let mut out = [0; CAPACITY];
        let len = encoder.repair(first, span, key, &mut out).expect("held");
        decoder.handle_repair(first, span, key, &out[..len]);
        decoder.prospect(12)
    };
    assert_eq!(repair(5, 40, 1), Prospect::Open);
    assert_eq!(repair(48, 1, 2), Prospect::Open);
    assert_eq!(repair(49, 1, 3), Prospect::Open);
    // Long ones begin behind it now.
    assert_eq!(repair(30, 40, 4), Prospect::Hopeless);
    // And short ones only, for long enough.
    for key in 5..40 {
        assert_eq!(repair(71, 1, key), Prospect::Hopeless);
    }
}
