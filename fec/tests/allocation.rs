//! Coding allocates nothing once the codec was made.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use adit_fec::{Codec, Decoder, Encoder, ReedSolomon};

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
