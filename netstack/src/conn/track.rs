//! What passes by: sequence numbers that smoltcp keeps to itself and the stack needs.

use super::Conn;
use crate::segment::{ACK, FIN, RST, SYN, Segment, before};

impl Conn {
    /// Says whether an ICMP error that quotes this sequence number can be about something in flight (RFC 5927 §4).
    pub(crate) fn in_flight(&self, sequence: u32) -> bool {
        self.sent_next
            .is_some_and(|next| !before(sequence, self.sent_una) && before(sequence, next))
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

    /// Says of a segment with nothing but what came before that it acknowledges something new all the same, and where
    /// smoltcp would believe that.
    ///
    /// smoltcp drops such a segment as a whole (RFC 9293 §3.10.7.4 lets it), and goes back with all that it sends when it
    /// sends again, acknowledgements too. When both ends do, neither would learn what the other has.
    pub(super) fn believes_at(&self, parsed: Segment) -> Option<u32> {
        let fin = u32::from(super::ended(self.state()));
        let next = self.receive_next()?.wrapping_add(fin);
        let is_old = before(parsed.sequence, next)
            && !before(next, parsed.end())
            && next.wrapping_sub(parsed.sequence) as usize <= self.socket.tcp().recv_capacity();
        let is_news = parsed.flags & (SYN | RST | FIN | ACK) == ACK
            && before(self.sent_una, parsed.ack)
            && self.sent_next.is_some_and(|sent| !before(sent, parsed.ack));
        (is_old && is_news).then_some(next)
    }

    /// Takes note of what a segment acknowledges, and of how far its bytes reach.
    pub(super) fn note_arrival(&mut self, parsed: Segment) {
        if parsed.has(ACK)
            && let Some(next) = self.sent_next
            && before(self.sent_una, parsed.ack)
            && !before(next, parsed.ack)
        {
            self.sent_una = parsed.ack;
        }
        let Some(next) = self.receive_next() else {
            return;
        };
        if self.seen_end.is_some_and(|seen| !before(next, seen)) {
            self.seen_end = None;
        }
        // What lies beyond the window was not taken, so that all that is ahead is near.
        let end = parsed.sequence.wrapping_add(parsed.payload as u32);
        if parsed.payload > 0 && before(self.seen_end.unwrap_or(next), end) {
            self.seen_end = Some(end);
        }
    }

    pub(super) fn note_departure(&mut self, parsed: Segment) {
        if parsed.has(RST) {
            return;
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
