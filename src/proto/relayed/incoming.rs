//! One direction in: bytes that came, of which only what the socket does not take is held.

use std::time::Instant;

use super::bytes::{Bytes, NoMemory, Spares};
use super::pieces::Pieces;
use super::{FIRST_WINDOW, GROW_WITHIN, WINDOW};

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
    window: u64,
    /// What the socket took since the window was last judged, and when that began.
    taken: u64,
    since: Option<Instant>,
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

/// Why the flow cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Data beyond the limit or the end, or another end.
    BeyondBounds,
    /// There is no memory for what the socket does not take.
    NoMemory,
}

impl From<NoMemory> for Fault {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl Incoming {
    /// Begins with the first window lent in full.
    pub(super) fn new() -> Self {
        Self {
            waiting: Bytes::default(),
            received: 0,
            limit: FIRST_WINDOW,
            window: FIRST_WINDOW,
            taken: 0,
            since: None,
            told: 0,
            ended: false,
            asked: None,
        }
    }

    /// Takes bytes; `take` is offered what is new, unless other bytes wait, and says how much of it the socket took.
    pub(super) fn handle_data(
        &mut self,
        now: Instant,
        spares: &mut Spares,
        offset: u64,
        bytes: Pieces<'_>,
        take: impl FnOnce(Pieces<'_>) -> usize,
    ) -> Result<Arrival, Fault> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(Fault::BeyondBounds)?;
        if end > self.limit || (self.ended && end > self.received) {
            return Err(Fault::BeyondBounds);
        }
        let Some(known) = self.received.checked_sub(offset) else {
            return Ok(self.gap());
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let fresh = bytes.skip(known);
        if fresh.is_empty() {
            return Ok(Arrival::Duplicate);
        }
        self.received = end;
        let taken = if self.waiting.is_empty() {
            take(fresh).min(fresh.len())
        } else {
            0
        };
        self.handle_taken(now, spares, taken);
        for piece in fresh.skip(taken).iter() {
            self.waiting.extend(spares, piece)?;
        }
        Ok(Arrival::News)
    }

    /// Takes the end.
    pub(super) fn handle_fin(&mut self, offset: u64) -> Result<Arrival, Fault> {
        if offset > self.limit || offset < self.received || (self.ended && offset != self.received)
        {
            return Err(Fault::BeyondBounds);
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
    pub(super) fn consume(&mut self, now: Instant, spares: &mut Spares, len: usize) {
        self.waiting.consume(spares, len);
        self.handle_taken(now, spares, len);
    }

    /// Whether a Credit would lend so much more that it is worth a frame.
    pub(super) fn is_credit_worth(&self) -> bool {
        !self.ended && self.target().saturating_sub(self.limit) >= self.window / RENEWALS
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

    fn gap(&mut self) -> Arrival {
        let ask = self.asked.replace(self.received) != Some(self.received);
        Arrival::Gap { ask }
    }

    /// Lets the window grow while the socket takes as much as it lets in.
    fn handle_taken(&mut self, now: Instant, spares: &Spares, len: usize) {
        if len == 0 || self.window == WINDOW {
            return;
        }
        let since = *self.since.get_or_insert(now);
        self.taken += len as u64;
        if self.taken < self.window {
            return;
        }
        let wider = self.window * 2;
        if now.saturating_duration_since(since) <= GROW_WITHIN
            && wider <= spares.share().allowance() as u64
        {
            self.window = wider;
        }
        (self.taken, self.since) = (0, None);
    }

    fn acknowledged(&self) -> u64 {
        self.received + u64::from(self.ended)
    }

    fn target(&self) -> u64 {
        self.received - self.waiting.len() as u64 + self.window
    }
}

/// Credits that a window is renewed by: each costs a frame, and a sender must not wait for one.
const RENEWALS: u64 = 4;
