//! The sliding-window code: each repair covers the sources sent last, so that there are no blocks.
//!
//! # Theory of operation
//!
//! A repair is a random linear combination over GF(2^8) of `span` consecutive sources, named by
//! their first number, their count and a key; the [`coefficient`] of each follows from its number
//! and the key. Consecutive repairs overlap: a source is covered by every repair sent until it leaves
//! the window. This is the code that RFC 8681 calls RLC, at full density.
//!
//! ```text
//!  sources   0  1  2  3  4  5  6  7  8  9 10 11 12 13 ─▶
//!  repairs   ╰──────── a ────────╯
//!                     ╰──────── b ────────╯
//!                              ╰──────── c ────────╯
//! ```
//!
//! What is lost is repaired when as many repairs came as sources are missing, counted over whatever
//! stretch: a run of losses that one repair cannot mend waits for the next few, while a block that
//! has lost more than its parity stays lost however many repairs its neighbours have to spare.
//!
//! [`WindowEncoder::push`](crate::StreamEncoder::push) takes each source when it is sent, and
//! [`repair`](crate::StreamEncoder::repair) computes over any run still held. The decoder takes both
//! in any order, and repairs come out of
//! [`poll_repaired`](crate::StreamDecoder::poll_repaired). [`WindowDecoder::prospect`] says which of the
//! missing may still come and which have to be asked for.
//!
//! [`mod@reference`] is the decoder as a textbook has it, for tests.
//!
//! # Limits
//!
//! | what | limit | why |
//! |---|---|---|
//! | sources held, and so a repair's span | [`MAX_WINDOW`] | memory, and the time a repair takes |
//! | repairs held by a decoder | [`MAX_EQUATIONS`] | elimination is quadratic in them; beyond it the oldest goes |
//! | encoder's work space | window · capacity, in bytes | lent by the caller |
//! | decoder's work space | window · capacity + (equations + 1) · (window + capacity), in bytes | lent by the caller |
//!
//! An encoder of 512 sources of 1,400 bytes has 0.7 MB, a decoder of 512 with 64 equations 0.8 MB.
//!
//! # Speed
//!
//! Microseconds by span and shard size: to make a repair with the kernels `gfni-avx512` / `avx2` /
//! `ssse3` / `scalar`, and to receive a source, everything included, with the first of them, when there
//! is a repair for each 20, 10 or 5 sources and half as many are lost:
//!
//! | span × bytes | a repair | a source: 5 % | 10 % | 20 % |
//! |---|---|---|---|---|
//! | 40 × 200 | 0.4 / 0.6 / 0.8 / 3.1 | 0.1 | 0.2 | 0.4 |
//! | 120 × 200 | 1.4 / 2.8 / 4.9 / 19 | 0.2 | 0.4 | 0.8 |
//! | 256 × 200 | 5.9 / 10 / 16 / 56 | 0.6 | 0.6 | 1.1 |
//! | 40 × 1400 | 2.9 / 5.3 / 8.8 / 53 | 0.9 | 1.1 | 1.4 |
//! | 120 × 1400 | 8.4 / 19 / 26 / 164 | 1.0 | 3.0 | 5.7 |
//! | 256 × 1400 | 18 / 32 / 54 / 507 | 0.8 | 1.7 | 6.5 |
//!
//! The worst that a repair can meet, 64 rows that all have all that is missing, takes 32 µs at 1,400
//! bytes. One run of `cargo bench -p adit-fec --bench window` on two cores of an Intel Xeon (Emerald
//! Rapids) on which ten other programs ran: alone it is two to three times as fast. At 4,000 packets a second
//! and 10 % overhead a sender spends 0.3 % of a core, a receiver 1.2 %.
//!
//! # Example
//!
//! ```
//! use adit_fec::{StreamDecoder, StreamEncoder, WindowDecoder, WindowEncoder};
//!
//! let mut encoder = WindowEncoder::new(vec![0; 8 * 100], 8, 100)?;
//! let decoder_work = vec![0; WindowDecoder::<Vec<u8>>::work_len(8, 4, 100)];
//! let mut decoder = WindowDecoder::new(decoder_work, 0, 8, 4, 100)?;
//!
//! for (number, packet) in [b"one", b"two", b"six"].iter().enumerate() {
//!     encoder.push(number as u64, *packet)?;
//! }
//! decoder.handle_source(0, b"one");
//! let mut parity = [0; 100];
//! let len = encoder.repair(0, 3, 0, &mut parity)?;
//! decoder.handle_repair(0, 3, 0, &parity[..len]);
//! assert_eq!(decoder.poll_repaired(), None); // two missing, one repair
//!
//! let len = encoder.repair(0, 3, 1, &mut parity)?;
//! decoder.handle_repair(0, 3, 1, &parity[..len]);
//! assert_eq!(decoder.poll_repaired(), Some((1, &b"two"[..])));
//! assert_eq!(decoder.poll_repaired(), Some((2, &b"six"[..])));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod coefficients;
mod decoder;
mod encoder;
pub mod reference;

pub use coefficients::coefficient;
pub use decoder::{Prospect, WindowDecoder};
pub use encoder::WindowEncoder;

/// The most sources in a window.
///
/// At 4,000 packets a second these are 256 ms, beyond what repair can be worth waiting for.
pub const MAX_WINDOW: usize = 1_024;

/// The most repairs that a decoder works with at a time.
///
/// As many sources can be missing at once and still be repaired. A window of 512 loses 26 of them at
/// 5 %; this leaves room for the worst bursts.
pub const MAX_EQUATIONS: usize = 256;
