//! Systematic erasure codes over GF(2^8): parity shards from which lost source shards are repaired.
//!
//! The crate is pure. It does no input or output, reads no clock, starts no thread and, after a codec
//! was made, allocates nothing.
//!
//! It has two codes and a controller:
//!
//! - **blocks** ([`Codec`]): k sources and r parity shards, any k of which give back the sources; this
//!   page is about them. [`interleave`] uses them over a numbered stream;
//! - the sliding **[`window`]**: each repair covers the sources sent last. Over a stream it repairs more and
//!   sooner than blocks do at the same overhead ([measured](algorithm#why-a-window-and-not-blocks)), and is
//!   the one to use there;
//! - **[`redundancy`]** says how many repairs to send over what and when, by what the receiver reports.
//!
//! # Theory of operation
//!
//! A **block** is a run of k **source** shards, for instance the packets that a sender puts on a lossy
//! link. Sources are sent as they are (the code is *systematic*): nothing waits for the code where
//! nothing is lost. Beside them the sender computes up to r **parity** shards, or rows. Whoever has
//! any k of the k + r shards has all the sources.
//!
//! ```text
//!  sender                                              receiver
//!  s0 ─┬──────────────────────────────────────────────▶ s0 ─────────┐
//!  s1 ─┼───────────────────────────────────── lost      –           │
//!  s2 ─┼──────────────────────────────────────────────▶ s2 ─────────┤
//!      │ add_source(index, shard)                                   │ repair(sources, parity)
//!      ▼                                                            ▼
//!  ┌─ Encoder ─────────┐   parity(0)                            ┌─ Decoder ─┐
//!  │ row 0 += 1·s      ├──────────────────────────▶ p0 ────────▶│           ├──▶ s1
//!  │ row 1 += c(1,j)·s ├───────────────────────────── lost      └───────────┘
//!  └───────────────────┘   parity(1)
//! ```
//!
//! The coefficient of source j in row i depends on i and j alone ([`coefficient`]). So:
//!
//! - parity **accumulates**: each source is added to every row when it is sent, and then forgotten by
//!   the encoder; there is no burst of work at a block's end;
//! - a block may **close at any k**, and any number of its rows may be sent, also later;
//! - row 0 is plain XOR, so that a block with one parity row costs no multiplication.
//!
//! The order of calls is [`Encoder::begin`], [`Encoder::add_source`] for each source, and
//! [`Encoder::parity`] for each row wanted; and, at the other end, [`Decoder::repair`] with all that
//! arrived of a block. The decoder keeps nothing between calls. A call that fails returns numbers, not
//! shards, and may be repeated when more has come.
//!
//! # Shapes
//!
//! Sources of a block may differ in length. Each counts as padded with zeros to the longest, whose
//! length is that of the parity, and is repaired with its padding. So what is coded must carry its own
//! length: `length ‖ packet` rather than `packet`.
//!
//! A decoder is told k by how many entries it is given. It trusts what it is given: a shard under the
//! wrong index or from another block repairs to garbage without an error, since an erasure code at its
//! limit has nothing left to check with. Shards must be authenticated before they come here.
//!
//! # Limits
//!
//! | what | limit | why |
//! |---|---|---|
//! | k + r | [`MAX_SHARDS`], 256 | each shard needs a point of its own in the field |
//! | k | 1 to [`MAX_SOURCES`], 255 | a block has at least one row |
//! | sources repaired at once | 128 | as many rows are needed, k + r being at most 256 |
//! | encoder's work space | rows · longest shard, in bytes | lent by the caller |
//! | decoder's work space | missing sources · parity length, in bytes | lent by the caller |
//!
//! # Example
//!
//! ```
//! use adit_fec::{Codec, Decoder, Encoder, ReedSolomon};
//!
//! let codec = ReedSolomon::new();
//! let packets: [&[u8]; 3] = [b"\x05hello", b"\x03you", b"\x05there"];
//!
//! let mut encoder = codec.encoder(vec![0; 2 * 1300]);
//! encoder.begin(2, 1300)?;
//! for (index, packet) in packets.iter().enumerate() {
//!     encoder.add_source(index, packet)?;
//! }
//! let parity = [(0, encoder.parity(0)?), (1, encoder.parity(1)?)];
//!
//! let mut decoder = codec.decoder(vec![0; 2 * 1300]);
//! let repaired = decoder.repair(&[None, None, Some(packets[2])], &parity)?;
//! assert_eq!(repaired.source(0), Some(&b"\x05hello"[..]));
//! assert_eq!(repaired.source(1), Some(&b"\x03you\0\0"[..]));
//!
//! // Two lost and one row: no repair, and nothing wrong.
//! assert!(decoder.repair(&[None, None, Some(packets[2])], &parity[..1]).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Modules
//!
//! [`ReedSolomon`] is the codec for blocks. Over a stream both codes are a [`StreamEncoder`] and a
//! [`StreamDecoder`]: [`WindowEncoder`] and [`WindowDecoder`], or those of [`interleave`]. All run on the fastest [`kernel`] that the processor has, found
//! at run time. [`reference`](mod@reference) is the block code written slowly and plainly, without tables or
//! formulas in common, and [`window::reference`] the window's decoder; tests hold one against the other.
//! [`algorithm`] has the mathematics and the proofs. [`Redundancy`] is the controller.
//!
//! # Speed
//!
//! Gigabytes of source data per second and core, encoding / worst repair (r sources lost), by k + r and
//! shard size in bytes:
//!
//! | kernel | 10+2 × 200 | 20+4 × 200 | 50+10 × 200 | 10+2 × 1300 | 20+4 × 1300 | 50+10 × 1300 |
//! |---|---|---|---|---|---|---|
//! | `gfni-avx512` | 12 / 8.7 | 4.3 / 5.6 | 2.1 / 2.2 | 33 / 26 | 15 / 15 | 6.3 / 5.7 |
//! | `gfni-avx2` | 8.7 / 6.7 | 4.4 / 4.3 | 2.0 / 2.0 | 22 / 23 | 14 / 13 | 5.2 / 5.3 |
//! | `avx2` | 9.1 / 6.1 | 4.1 / 3.8 | 1.9 / 1.5 | 25 / 16 | 9.8 / 8.6 | 4.1 / 3.7 |
//! | `ssse3` | 7.4 / 4.8 | 3.6 / 2.6 | 1.3 / 1.2 | 12 / 8.5 | 4.9 / 4.2 | 1.9 / 1.7 |
//! | `scalar` | 2.4 / 1.3 | 0.9 / 0.7 | 0.3 / 0.3 | 2.8 / 1.6 | 1.0 / 0.8 | 0.4 / 0.3 |
//! | `reed-solomon-erasure` | 1.5 / 1.7 | 0.9 / 1.0 | 0.3 / 0.4 | 1.5 / 2.0 | 0.9 / 1.0 | 0.4 / 0.4 |
//!
//! The better of two short runs of `cargo bench -p adit-fec` on an Intel Xeon of the Emerald Rapids
//! generation that was not idle: the other run was slower by a sixth in the median and by four fifths
//! at most. The last line is the crate of that name, version 6, without its optional C code. In time,
//! 20 + 4 × 1300 takes 1.8 µs to encode and 1.7 µs to repair with the fastest kernel: 90 ns for each
//! source sent.
#![deny(unsafe_code)]

pub mod interleave;
pub mod kernel;
pub mod redundancy;
pub mod reed_solomon;
pub mod reference;
pub mod window;

mod codec;
mod gf256;
mod stream;

#[doc = include_str!("algorithm.md")]
pub mod algorithm {}

pub use codec::{
    BeginError, Codec, Decoder, Encoder, MAX_SHARDS, MAX_SOURCES, ParityError, RepairError,
    Repaired, SourceError, Work,
};
pub use gf256::FIELD_POLYNOMIAL;
pub use redundancy::{Class, LossReport, Mode, Redundancy, RepairPlan, Settings};
pub use reed_solomon::{ReedSolomon, coefficient};
pub use stream::{
    DecoderStats, PushError, RepairOutcome, SourceOutcome, SpanError, StreamDecoder, StreamEncoder,
    StreamError,
};
pub use window::{Prospect, WindowDecoder, WindowEncoder};
