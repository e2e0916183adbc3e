//! Repair of a direction: parity and resends at the sending end, gaps at the receiving one.
//!
//! # Theory of operation
//!
//! Source packets leave at once, unchanged, whatever repair does. Beside them
//!
//! ```text
//!  sender                                                    receiver
//!  [`Outgoing`]                                              [`Incoming`]
//!   source ──▶ ring of the last sources ── source ─────────▶ decoder ──▶ packet
//!                │      │                                      │
//!   reports ──▶ redundancy: parity due ── repair ────────────▶ elimination ──▶ packet repaired
//!                       │                                      │
//!   questions ◀─────────┼──────────────── report ◀─────────── [`Gaps`]: what is still missing
//!        └──▶ resend ───┴──────────────── source, again ─────▶ packet
//! ```
//!
//! Parity is computed over **shards**, `length (2) ‖ offload (1) ‖ packet`, inside the seal, so that
//! nothing forged enters a decoder. Everything names packets by their source number, which a packet
//! keeps on whichever lane and under whichever key it crosses.
//!
//! [`Outgoing`] holds what was sent; its parity is decided by [`adit_fec::Redundancy`]. A packet that
//! the receiver asks for is sent again, [`MAX_RESENDS_OF_ONE`] times at most. [`Incoming`] holds what
//! came, as long as the far end sends repairs: from the first of them on, which is why those that follow it cover
//! nothing older; who asks for what is missing is [`Gaps`]. What is better left to the
//! flows inside is judged by [`ScopeJudge`]; packets that are not to be waited for say so in their header.
//!
//! # Limits
//!
//! Either end holds [`RING`] shards of [`SHARD_CAPACITY`] bytes at most, in memory only once used, and a decoder
//! [`EQUATIONS`] repairs. [`MAX_WAITING_RESENDS`] resends wait. A decoder is given up when no repair came
//! for [`DECODER_IDLE`].

mod gaps;
mod incoming;
mod outgoing;
mod scope;
#[cfg(test)]
mod tests;

pub use gaps::{GapLimits, Gaps, MAX_GAPS};
pub use incoming::{Arrived, DECODER_IDLE, EQUATIONS, Incoming, IncomingStats};
pub use outgoing::{
    Extra, MAX_RESENDS_OF_ONE, MAX_WAITING_RESENDS, Outgoing, OutgoingStats, RING, SHARD_CAPACITY,
};
pub use scope::{Circumstances, RepairScope, ScopeJudge};
