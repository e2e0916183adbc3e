//! Explicit congestion notification of one flow (RFC 3168 §6.1): offered in the first SYN, and marks echoed.
//!
//! ```text
//!   we: SYN ECE CWR ──▶  ◀── SYN ACK ECE :peer    agreed
//!         ◀── data, marked CE by a queue on the way
//!   we: ACK ECE ──▶, and so all that follow, until
//!         ◀── data with CWR: the peer has reduced its window
//! ```
//!
//! It saves what a queue would drop otherwise to be heard, and the round trip in which it is sent again. Only what comes
//! can be marked: what smoltcp sends does not say that it may be, since smoltcp could not answer an echo; it is held
//! back before the tunnel's queue instead.
//!
//! What lies outside of the receive window says nothing, neither by a mark nor by CWR (RFC 3168 §6.1.5): it is a copy of what came, or
//! somebody else's who guesses.
//!
//! A SYN that has to be sent again offers nothing (RFC 3168 §6.1.1.1), for paths that drop those that do.

use crate::cut::CWR;
use crate::ecn;
use crate::segment::{ACK, ECE, RST, SYN, Segment};

/// What one flow has agreed on, and whether its peer is still to learn of a mark.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Echo {
    /// A SYN of ours has left, with or without an answer to the peer's.
    begun: bool,
    /// The peer may send what can be marked.
    agreed: bool,
    /// A mark has come, and no word of a smaller window since.
    marked: bool,
}

impl Echo {
    /// Learns from the peer's SYN whether it offers or accepts marks.
    pub(crate) fn begin(&mut self, syn: Segment) {
        let wanted = if syn.has(ACK) { ECE } else { ECE | CWR };
        self.agreed = syn.flags & (ECE | CWR) == wanted;
    }

    /// Takes note of a packet that came within the window, with its IP header.
    pub(crate) fn note(&mut self, packet: &[u8], parsed: Segment) {
        // In this order: what reports a smaller window may have met the next congestion itself.
        if parsed.has(CWR) {
            self.marked = false;
        }
        if parsed.payload > 0 && ecn::is_marked(packet) {
            self.marked = true;
        }
    }

    /// The flag that an acknowledgement which leaves now carries.
    pub(crate) fn flag(&self) -> u8 {
        if self.agreed && self.marked { ECE } else { 0 }
    }

    /// Writes the flags into a segment of smoltcp's.
    pub(crate) fn write(&mut self, segment: &mut [u8], parsed: Segment) {
        let flags = if parsed.has(SYN) {
            let first = !std::mem::replace(&mut self.begun, true);
            match (first, parsed.has(ACK)) {
                (false, _) => 0,
                (true, false) => ECE | CWR,
                (true, true) if self.agreed => ECE,
                (true, true) => 0,
            }
        } else if parsed.has(ACK) && !parsed.has(RST) {
            self.flag()
        } else {
            0
        };
        if let Some(field) = segment.get_mut(13) {
            *field |= flags;
        }
    }
}
