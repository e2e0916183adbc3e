//! One direction out: bytes that were read from a socket, kept until they are acknowledged.

use super::bytes::{Bytes, Spares};
use super::{READ_AHEAD, WINDOW};
use crate::wire::MAX_FLOW_DATA;

/// What is sent of a flow.
///
/// ```text
///  acked            next                written   ≤ limit, ≤ acked + WINDOW
///    │── sent, kept ─│── still to be sent ──│
/// ```
///
/// A Fin stands behind the last byte and counts as one more.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    kept: Bytes,
    acked: u64,
    next: u64,
    /// The furthest that was ever sent, the Fin included.
    highest: u64,
    limit: u64,
    fin: Fin,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fin {
    #[default]
    None,
    Due,
    Sent,
    Acknowledged,
}

/// A Credit that acknowledges what was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsent;

impl Outgoing {
    /// Lends room for more bytes; none while the far end's limit, our own, or that of memory is reached, or while there
    /// is enough to send.
    pub(super) fn room(&mut self, spares: &mut Spares) -> &mut [u8] {
        let most = self.permitted();
        self.kept.room(spares, most)
    }

    /// Whether there would be room, if there is memory.
    pub(super) fn has_room(&self) -> bool {
        self.permitted() > 0
    }

    /// How much more may be read. What may be read ahead comes by halves, so that reads are large.
    fn permitted(&self) -> usize {
        let pending = self.pending();
        if pending >= READ_AHEAD / 2 {
            return 0;
        }
        let most = self.limit.min(self.acked.saturating_add(WINDOW));
        let room = most.saturating_sub(self.written());
        usize::try_from(room)
            .unwrap_or(READ_AHEAD)
            .min(READ_AHEAD - pending)
    }

    /// Takes note that `len` bytes of the room were filled.
    pub(super) fn advance(&mut self, spares: &mut Spares, len: usize) {
        self.kept.advance(spares, len);
    }

    /// Ends the direction behind what was written.
    pub(super) fn finish(&mut self) {
        if self.fin == Fin::None {
            self.fin = Fin::Due;
        }
    }

    /// Takes a Credit; returns whether there is room that there was not before.
    pub(super) fn handle_credit(
        &mut self,
        spares: &mut Spares,
        received: u64,
        limit: u64,
        again: bool,
    ) -> Result<bool, Unsent> {
        if received > self.highest {
            return Err(Unsent);
        }
        let before = (self.acked, self.limit);
        let bytes = received.min(self.written());
        if bytes > self.acked {
            // Less than the window, which is what is kept.
            self.kept
                .consume(spares, usize::try_from(bytes - self.acked).unwrap_or(0));
            self.acked = bytes;
            self.next = self.next.max(bytes);
        }
        if received > self.written() {
            self.fin = Fin::Acknowledged;
        }
        self.limit = self.limit.max(limit);
        if again && received == self.acked {
            self.rewind();
        }
        Ok(before != (self.acked, self.limit))
    }

    /// Sends again what is not acknowledged: what was sent may be lost.
    pub(super) fn rewind(&mut self) {
        self.next = self.acked;
        if self.fin == Fin::Sent {
            self.fin = Fin::Due;
        }
    }

    /// The next bytes to send and their offset, at most a frame's worth.
    pub(super) fn piece(&self) -> Option<(u64, &[u8])> {
        let at = usize::try_from(self.next - self.acked).ok()?;
        let piece = self.kept.piece(at);
        let piece = &piece[..piece.len().min(MAX_FLOW_DATA)];
        (!piece.is_empty()).then_some((self.next, piece))
    }

    /// Takes note that the next `len` bytes were sent.
    pub(super) fn handle_sent(&mut self, len: usize) {
        self.next += len as u64;
        self.highest = self.highest.max(self.next);
    }

    /// The offset of the Fin, if it is to be sent now.
    pub(super) fn fin(&self) -> Option<u64> {
        (self.fin == Fin::Due && self.next == self.written()).then_some(self.next)
    }

    /// Takes note that the Fin was sent.
    pub(super) fn handle_fin_sent(&mut self) {
        self.fin = Fin::Sent;
        self.highest = self.highest.max(self.written() + 1);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.fin != Fin::None
    }

    /// Whether the far end has all of it, and knows that it is all.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.fin == Fin::Acknowledged
    }

    pub(super) fn clear(&mut self, spares: &mut Spares) {
        self.kept.clear(spares);
        *self = Self::default();
    }

    /// Bytes that are still to be sent.
    pub(super) fn pending(&self) -> usize {
        usize::try_from(self.written() - self.next).unwrap_or(usize::MAX)
    }

    /// Whether there is no room though the far end would take more and has nothing to acknowledge: nothing that it says
    /// brings any.
    pub(super) fn is_starved(&self) -> bool {
        self.kept.is_empty() && self.limit > self.written()
    }

    fn written(&self) -> u64 {
        self.acked + self.kept.len() as u64
    }
}
