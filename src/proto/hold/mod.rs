//! The hold: keeps later segments of a TCP flow back while what is missing before them may still be repaired.
//!
//! # Theory of operation
//!
//! Packets carry source numbers, contiguous per direction. A number that is skipped is a **gap**: its packet was
//! lost, or comes later, by repair, by resend or by another path. A TCP receiver that sees the segment after the
//! lost one tells its sender, and the sender halves its window for a loss that parity mends a moment later. So the
//! segments behind the loss wait here for that moment. TCP delivers in order anyway: the application loses nothing.
//!
//! ```text
//!  offer ──▶ UDP, ICMP, pure ACK, fragment, unknown flow, SYN, RST ───────────────▶ deliver
//!     │      sequence number not beyond what the flow had ────────────────────────▶ deliver
//!     │      no number missing since the flow's latest packet ────────────────────▶ deliver
//!     └────▶ else: held ── contiguous │ gap filled │ gap too old │ no room ──▶ poll_deliver
//! ```
//!
//! A flow's entry has the sequence number its latest delivered packet ended with, and that packet's source number
//! *k*. A sender numbers packets in the order its flows sent them. So what the flow lacks before packet *n* can only
//! have had a number between *k* and *n*: once none of these is missing, the gap was other flows' packets, or the
//! flow came with it (lost before the tunnel), and waiting is over. If the first held packet of a flow is held
//! rightly, so are those behind it; only first ones are looked at.
//!
//! A gap is hopeless after [`Hold::set_wait`], counted from when it was noticed. A held packet came after every gap
//! below it was noticed, so none is held longer than that.
//!
//! # Order of calls
//!
//! Every packet that passed the replay window is offered, repaired and resent ones too, since each may end a gap.
//! After [`Hold::offer`] and [`Hold::handle_timeout`]: deliver the packet that was offered
//! if the answer says so, **then** [`Hold::poll_deliver`] until there is none, then sleep until
//! [`Hold::poll_timeout`].
//!
//! # Limits
//!
//! [`HoldLimits`] bound bytes and packets; beyond them the oldest packet is released, with what it lets go. 1,024
//! gaps and 512 flows are known at most: a forgotten gap is hopeless, a forgotten flow unknown. Packets are copied
//! into buffers of the hold's own only if they are held; buffers of wire packets are used again, and given back after
//! ten idle seconds.

mod flows;
mod gaps;
mod segment;
mod state;

pub use state::{Delivery, Hold, HoldLimits, HoldStats, MAX_HOLD, Offer, hold_time};
