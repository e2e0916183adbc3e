//! Coding allocates nothing once the codec was made.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use std::time::{Duration, Instant};

use adit_fec::interleave::{InterleavedDecoder, InterleavedEncoder, Interleaving};
use adit_fec::{
    Class, Codec, Decoder, Encoder, LossReport, Redundancy, ReedSolomon, Settings, StreamDecoder,
    StreamEncoder, WindowDecoder, WindowEncoder,
};

thread_local! {
    /// Allocations of this thread: the test harness has others.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; `pointer` came from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_block_is_encoded_and_repaired_without_an_allocation() {
    let before_making = ALLOCATIONS.get();
    let codec = ReedSolomon::new();
    let mut encoder = codec.encoder(vec![0; 4 * 1300]);
    let mut decoder = codec.decoder(vec![0; 4 * 1300]);
    let source = vec![0x5A; 1300];
    let made = ALLOCATIONS.get();
    assert!(made >= before_making + 3, "the allocator counts");

    for lost in 0..6 {
        encoder.begin(4, 1300).expect("a legal block");
        for index in 0..20 {
            encoder
                .add_source(index, &source[index..])
                .expect("a legal source");
        }
        let parity: [(usize, &[u8]); 4] =
            std::array::from_fn(|row| (row, encoder.parity(row).expect("a row of the block")));
        let received: [Option<&[u8]>; 20] =
            std::array::from_fn(|index| (index >= lost).then_some(&source[index..]));
        let repaired = decoder.repair(&received, &parity);
        assert_eq!(repaired.is_ok(), lost <= 4);
        for (index, shard) in repaired.iter().flat_map(|repaired| repaired.iter()) {
            assert_eq!(shard[..1300 - index], source[index..]);
        }
    }
    assert_eq!(ALLOCATIONS.get(), made);
}

/// Passes 4,000 packets through an encoder and a decoder, of which each 20th is lost, with a repair
/// after each tenth.
fn pass(
    encoder: &mut dyn StreamEncoder,
    decoder: &mut dyn StreamDecoder,
    mut plan: impl FnMut(u64) -> Option<(u64, usize, u16)>,
) {
    let source = [0x5A; 1300];
    let mut out = [0; 1300];
    for number in 0..4_000 {
        let shard = &source[number as usize % 100..];
        encoder.push(number, shard).expect("in order");
        if number % 20 != 3 {
            decoder.handle_source(number, shard);
        }
        if let Some((first, span, key)) = plan(number) {
            let len = encoder.repair(first, span, key, &mut out).expect("held");
            decoder.handle_repair(first, span, key, &out[..len]);
        }
        while let Some((number, shard)) = decoder.poll_repaired() {
            assert_eq!(
                shard[..1300 - number as usize % 100],
                source[number as usize % 100..]
            );
        }
    }
    assert_eq!(decoder.stats().repaired, 200);
}

#[test]
fn streams_are_coded_and_repaired_without_an_allocation() {
    let work = vec![0; WindowDecoder::<Vec<u8>>::work_len(128, 16, 1300)];
    let mut encoder = WindowEncoder::new(vec![0; 128 * 1300], 128, 1300).expect("legal");
    let mut decoder = WindowDecoder::new(work, 0, 128, 16, 1300).expect("legal");
    let made = ALLOCATIONS.get();
    pass(&mut encoder, &mut decoder, |number| {
        (number % 10 == 9).then(|| {
            let span = 50.min(number + 1);
            (number + 1 - span, span as usize, number as u16)
        })
    });
    assert_eq!(ALLOCATIONS.get(), made);

    let codec = ReedSolomon::new();
    let shape = Interleaving {
        sources: 10,
        rows: 1,
        depth: 2,
    };
    let mut encoder = InterleavedEncoder::new(&codec, shape, 1300).expect("legal");
    let mut decoder = InterleavedDecoder::new(&codec, shape, 64, 1300).expect("legal");
    let made = ALLOCATIONS.get();
    pass(&mut encoder, &mut decoder, |number| {
        let (first, index) = shape.place(number);
        (index == 9).then_some((first, shape.span(10), 0))
    });
    assert_eq!(ALLOCATIONS.get(), made);
}

#[test]
fn redundancy_is_decided_without_an_allocation() {
    let mut now = Instant::now();
    let mut redundancy = Redundancy::new(now, Settings::default());
    let made = ALLOCATIONS.get();
    let (mut repairs, mut next) = (0, 0);
    for round in 0..1_000 {
        for _ in 0..25 {
            let class = if next % 10 == 0 {
                Class::Thin
            } else {
                Class::Bulk
            };
            redundancy.on_source(now, next, 1_300, class);
            next += 1;
            while redundancy.poll_repair(now).is_some() {
                repairs += 1;
            }
            now += Duration::from_micros(250);
        }
        let report = LossReport {
            sent: 30,
            lost: 1 + round % 3,
            bursts: 1,
            rtt: Duration::from_millis(50),
            ..LossReport::default()
        };
        redundancy.on_report(now, &report);
    }
    assert!(repairs > 2_500, "{repairs}");
    assert_eq!(ALLOCATIONS.get(), made);
}
