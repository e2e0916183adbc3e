//! What passes by: sequence numbers that smoltcp keeps to itself and the stack needs.

use std::time::{Duration, Instant};

use super::Conn;
use crate::rings::Ring;
use crate::segment::{ACK, RST, SYN, Segment, before};

impl Conn {
    /// Says whether an ICMP error that quotes this sequence number can be about something in flight (RFC 5927 §4).
    pub(crate) fn in_flight(&self, sequence: u32) -> bool {
        self.sent_next
            .is_some_and(|next| !before(sequence, self.sent_una) && before(sequence, next))
    }

    /// Gives the memory of rings back that are empty since `idle`; says how many.
    pub(crate) fn give_back(&mut self, now: Instant, idle: Duration) -> u64 {
        if now.saturating_duration_since(self.heard) < idle {
            return 0;
        }
        let nothing_out_of_order = match (self.seen_end, self.ack_sent) {
            (Some(seen), Some(acked)) => !before(acked, seen),
            (None, _) => true,
            (Some(_), None) => false,
        };
        let mut count = 0;
        if self.receive_warm && self.socket.tcp().recv_queue() == 0 && nothing_out_of_order {
            self.receive_warm = false;
            count += u64::from(self.socket.give_back(Ring::Receive));
        }
        if self.send_warm && self.socket.tcp().send_queue() == 0 {
            self.send_warm = false;
            count += u64::from(self.socket.give_back(Ring::Send));
        }
        count
    }

    /// Gives the sequence number and the acknowledgement of a segment that the peer must answer (RFC 9293 §3.8.4);
    /// none for a flow that is not idle, which hears from its peer anyway.
    ///
    /// It is the last byte that the peer has acknowledged, whatever that was, and lies outside of the peer's window:
    /// nothing but its arrival counts, not even the window it names.
    pub(crate) fn probe(&self) -> Option<(u32, u32)> {
        let next = self.sent_next?;
        let idle = self.established
            && self.failed.is_none()
            && self.time_wait_since.is_none()
            && !self.is_gone()
            && self.send_queue() == 0
            && next == self.sent_una;
        idle.then_some((next.wrapping_sub(1), self.ack_sent?))
    }

    /// Says whether a segment reaches beyond what our SYN has promised.
    ///
    /// smoltcp 0.14 takes the window of its SYN for a scaled one until it has sent another segment, and then accepts
    /// more than its ring can hold, which ends in a failed assertion.
    pub(super) fn exceeds_first_window(&self, parsed: Segment) -> bool {
        let end = parsed.end();
        self.window_unscaled
            && parsed.payload > 0
            && self
                .peer_first
                .is_some_and(|first| before(first.wrapping_add(u32::from(u16::MAX)), end))
    }

    pub(super) fn note_arrival(&mut self, parsed: Segment) {
        if parsed.has(ACK)
            && let Some(next) = self.sent_next
            && before(self.sent_una, parsed.ack)
            && !before(next, parsed.ack)
        {
            self.sent_una = parsed.ack;
        }
        if parsed.has(RST) {
            return;
        }
        if let Some(acked) = self.ack_sent
            && parsed.end().wrapping_sub(acked) > MAX_WINDOW
        {
            // No window reaches there, so none of it is in the ring; and a mark half of all numbers further on would
            // turn comparisons with it round.
            return;
        }
        match self.seen_end {
            Some(end) if !before(end, parsed.end()) => {}
            Some(_) | None => self.seen_end = Some(parsed.end()),
        }
    }

    pub(super) fn note_departure(&mut self, parsed: Segment) {
        if parsed.has(RST) {
            return;
        }
        if parsed.has(SYN) {
            self.window_unscaled = true;
        } else if parsed.payload != 1 {
            // Probes carry one byte, and smoltcp does not note the window that they tell.
            self.window_unscaled = false;
        }
        if parsed.has(ACK) {
            self.ack_sent = Some(parsed.ack);
        }
        match self.sent_next {
            None => {
                self.sent_una = parsed.sequence;
                self.sent_next = Some(parsed.end());
            }
            Some(next) if before(next, parsed.end()) => self.sent_next = Some(parsed.end()),
            Some(_) => {}
        }
    }
}

/// RFC 7323 §2.3: the largest window that can be told.
const MAX_WINDOW: u32 = 1 << 30;
