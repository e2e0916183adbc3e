//! Systematic erasure codes over GF(2^8): parity shards from which lost source shards are repaired.
//!
//! The crate is pure. It does no input or output, reads no clock, starts no thread and, after a codec
//! was made, allocates nothing.
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
//! [`ReedSolomon`] is the codec to use. It runs on the fastest [`kernel`] that the processor has, found
//! at run time. [`reference`] is the same code written slowly and plainly, without tables or formulas
//! in common; tests hold one against the other. [`algorithm`] has the mathematics and the proofs.
//!
//! # Speed
//!
//! Figures come with the benchmarks.
#![deny(unsafe_code)]

pub mod kernel;
pub mod reed_solomon;
pub mod reference;

mod codec;
mod gf256;

#[doc = include_str!("algorithm.md")]
pub mod algorithm {}

pub use codec::{
    BeginError, Codec, Decoder, Encoder, MAX_SHARDS, MAX_SOURCES, ParityError, RepairError,
    Repaired, SourceError, Work,
};
pub use gf256::FIELD_POLYNOMIAL;
pub use reed_solomon::{ReedSolomon, coefficient};
