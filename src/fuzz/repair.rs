//! What a peer sends as sources and repairs.

use adit_fec::interleave::{InterleavedDecoder, InterleavedEncoder, Interleaving};
use adit_fec::{ReedSolomon, StreamDecoder, StreamEncoder, WindowDecoder, WindowEncoder};

use super::input::Input;

/// Passes a script of sources and repairs, honest, lost, late or made up, through a decoder.
///
/// The script is `first number (8) ‖ window (1) ‖ equations or shape (1) ‖ steps`; the lowest bit of
/// the window chooses the code.
///
/// # Panics
///
/// What is repaired is not what was sent, as long as nothing was made up, or a bound is broken.
pub fn repair(data: &[u8]) {
    let mut input = Input::new(data);
    let first = (0..4).fold(0, |number, _| number << 16 | u64::from(input.number()));
    let (window, other) = (usize::from(input.byte()), usize::from(input.byte()));
    if window & 1 == 0 {
        let (window, equations) = (window / 2 + 1, other % 32 + 1);
        let work = vec![0; HELD * CAPACITY];
        let mut encoder = WindowEncoder::new(work, HELD, CAPACITY).expect("a legal window");
        let work = vec![0; WindowDecoder::<Vec<u8>>::work_len(window, equations, CAPACITY)];
        let decoder = WindowDecoder::new(work, first, window, equations, CAPACITY);
        let mut decoder = decoder.expect("a legal window");
        run(
            &mut input,
            first,
            &mut encoder,
            &mut decoder,
            |_, back, span| (back, span),
        );
        let held = decoder.window();
        assert!(held.end - held.start <= window as u64);
        assert_eq!(decoder.missing().count(), decoder.missing_len());
    } else {
        let shape = Interleaving {
            sources: other % 8 + 1,
            rows: other / 8 % 4 + 1,
            depth: other / 32 + 1,
        };
        let codec = ReedSolomon::new();
        let encoder = InterleavedEncoder::new(&codec, shape, CAPACITY);
        let mut encoder = encoder.expect("a legal shape");
        let decoder = InterleavedDecoder::new(&codec, shape, HELD, CAPACITY);
        let mut decoder = decoder.expect("a legal shape");
        run(
            &mut input,
            first,
            &mut encoder,
            &mut decoder,
            |next, back, span| {
                // The block of one of the last sources, as far as it was sent.
                let number = next.saturating_sub(1 + back);
                let (first, index) = shape.place(number);
                (
                    next - first,
                    if span == 0 { 0 } else { shape.span(index + 1) },
                )
            },
        );
    }
}

/// Runs the steps; `honest` turns how far back a repair begins and its span into one that is possible.
fn run(
    input: &mut Input<'_>,
    first: u64,
    encoder: &mut dyn StreamEncoder,
    decoder: &mut dyn StreamDecoder,
    honest: impl Fn(u64, u64, usize) -> (u64, usize),
) {
    let mut next = first;
    let mut made_up = false;
    while !input.is_empty() {
        match input.byte() % 8 {
            step @ 0..=2 => {
                if encoder.push(next, &shard(next)).is_err() {
                    return; // the numbers have come to their end
                }
                if step > 0 {
                    decoder.handle_source(next, &shard(next));
                }
                next += 1;
            }
            3 | 4 => {
                let (back, span) = (u64::from(input.byte()), usize::from(input.byte()));
                let (back, span) = honest(next, back, span);
                let (key, mut parity) = (input.byte().into(), [0; CAPACITY]);
                let first = next.saturating_sub(back);
                if let Ok(len) = encoder.repair(first, span, key, &mut parity) {
                    decoder.handle_repair(first, span, key, &parity[..len]);
                }
            }
            5 => {
                let number = next.saturating_sub(1 + u64::from(input.byte()));
                if number >= first {
                    decoder.handle_source(number, &shard(number));
                }
            }
            6 => {
                made_up = true;
                let number = next
                    .wrapping_add(u64::from(input.number()))
                    .wrapping_sub(1 << 15);
                decoder.handle_source(number, input.piece());
            }
            _ => {
                made_up = true;
                let number = next
                    .wrapping_add(u64::from(input.number()))
                    .wrapping_sub(1 << 15);
                let (span, key) = (input.number().into(), input.number());
                decoder.handle_repair(number, span, key, input.piece());
            }
        }
        while let Some((number, repaired)) = decoder.poll_repaired() {
            assert!(repaired.len() <= CAPACITY);
            if !made_up {
                let source = shard(number);
                let (start, padding) = repaired.split_at(source.len());
                assert_eq!(start, source);
                assert!(padding.iter().all(|&byte| byte == 0));
            }
        }
    }
}

/// Returns a source: any bytes, of any length, the last of which is not zero.
fn shard(number: u64) -> Vec<u8> {
    let len = 1 + (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 59) as usize % CAPACITY;
    (0..len as u64)
        .map(|at| (number.wrapping_mul(31) ^ (at * 97)) as u8 | 1)
        .collect()
}

const CAPACITY: usize = 16;

/// Sources that the encoder holds, and those that the decoder of blocks does.
const HELD: usize = 64;
