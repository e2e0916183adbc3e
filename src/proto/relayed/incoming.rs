//! One direction in: bytes that came, of which only what the socket does not take is held.

use super::bytes::{Bytes, Spares};
use super::{RENEW, WINDOW};

/// What has arrived of a flow.
///
/// ```text
///  delivered           received             limit
///    │── waits for the ───│── may still come ──│
///        socket
/// ```
#[derive(Debug)]
pub(super) struct Incoming {
    waiting: Bytes,
    received: u64,
    limit: u64,
    /// What the last Credit acknowledged.
    told: u64,
    ended: bool,
    /// For what the far end was asked again; it is asked once.
    asked: Option<u64>,
}

/// What a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Bytes are new, or the end is.
    News,
    /// All of it was there already.
    Duplicate,
    /// It lies beyond a gap; `ask` tells whether the far end is to be asked for what is missing.
    Gap {
        /// It has not been asked yet.
        ask: bool,
    },
}

/// Data beyond the limit or the end, or another end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BeyondBounds;

impl Incoming {
    /// Begins with the window lent in full.
    pub(super) fn new() -> Self {
        Self {
            waiting: Bytes::default(),
            received: 0,
            limit: WINDOW,
            told: 0,
            ended: false,
            asked: None,
        }
    }

    /// Takes bytes; `take` is offered what is new, unless other bytes wait, and says how much of it the socket took.
    pub(super) fn handle_data(
        &mut self,
        spares: &mut Spares,
        offset: u64,
        bytes: &[u8],
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Result<Arrival, BeyondBounds> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(BeyondBounds)?;
        if end > self.limit || (self.ended && end > self.received) {
            return Err(BeyondBounds);
        }
        let Some(known) = self.received.checked_sub(offset) else {
            return Ok(self.gap());
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let fresh = match bytes.get(known..) {
            Some(fresh) if !fresh.is_empty() => fresh,
            Some(_) | None => return Ok(Arrival::Duplicate),
        };
        self.received = end;
        let taken = if self.waiting.is_empty() {
            take(fresh).min(fresh.len())
        } else {
            0
        };
        self.waiting.extend(spares, &fresh[taken..]);
        Ok(Arrival::News)
    }

    /// Takes the end.
    pub(super) fn handle_fin(&mut self, offset: u64) -> Result<Arrival, BeyondBounds> {
        if offset > self.limit || offset < self.received || (self.ended && offset != self.received)
        {
            return Err(BeyondBounds);
        }
        if offset > self.received {
            return Ok(self.gap());
        }
        if self.ended {
            return Ok(Arrival::Duplicate);
        }
        self.ended = true;
        Ok(Arrival::News)
    }

    /// Bytes that wait for the socket, as many as stand together.
    pub(super) fn waiting(&self) -> &[u8] {
        self.waiting.piece(0)
    }

    /// Takes note that the socket took `len` of them.
    pub(super) fn consume(&mut self, spares: &mut Spares, len: usize) {
        self.waiting.consume(spares, len);
    }

    /// Whether a Credit would lend so much more that it is worth a frame.
    pub(super) fn is_credit_worth(&self) -> bool {
        !self.ended && self.target() - self.limit >= RENEW
    }

    /// What the next Credit says: what was received, and the limit.
    pub(super) fn credit(&self) -> (u64, u64) {
        (self.acknowledged(), self.target().max(self.limit))
    }

    /// Takes note that it was said.
    pub(super) fn handle_credit_sent(&mut self) {
        (self.told, self.limit) = self.credit();
    }

    /// Whether something has arrived that the far end keeps because nobody told it.
    pub(super) fn is_untold(&self) -> bool {
        self.told < self.acknowledged()
    }

    /// Lets the far end be asked once more: the question may be lost.
    pub(super) fn forget_question(&mut self) {
        self.asked = None;
    }

    /// Whether the end has come.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn clear(&mut self, spares: &mut Spares) {
        self.waiting.clear(spares);
    }

    /// Bytes that wait for the socket.
    pub(super) fn held(&self) -> usize {
        self.waiting.len()
    }

    fn gap(&mut self) -> Arrival {
        let ask = self.asked.replace(self.received) != Some(self.received);
        Arrival::Gap { ask }
    }

    fn acknowledged(&self) -> u64 {
        self.received + u64::from(self.ended)
    }

    fn target(&self) -> u64 {
        self.received - self.waiting.len() as u64 + WINDOW
    }
}
