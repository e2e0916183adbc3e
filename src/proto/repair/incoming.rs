//! The receiving end: repaired packets, and what is still missing.

use std::time::{Duration, Instant};

use adit_fec::{DecoderStats, RepairOutcome, StreamDecoder, StreamError, WindowDecoder};

use super::gaps::{GapLimits, Gaps};
use super::outgoing::{MAX_HELD_PACKET, RING, SHARD_CAPACITY};
use crate::wire::{LaneId, RepairHeader, SHARD_PREFIX_LEN};

/// Repairs missing packets of a direction and knows which are missing still.
pub struct Incoming {
    gaps: Gaps,
    decoder: Option<WindowDecoder<Vec<u8>>>,
    /// When the last repair came.
    repaired_at: Instant,
    shard: Vec<u8>,
    past: IncomingStats,
}

/// A packet that parity brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived<'a> {
    /// Its number.
    pub number: u64,
    /// The lane that it was missing on; `None` if it was given up.
    pub missed: Option<LaneId>,
    /// Its offload byte, as the sender gave it: a claim to check.
    pub offload: u8,
    /// The packet.
    pub packet: &'a [u8],
}

/// What an [`Incoming`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncomingStats {
    /// Packets repaired.
    pub repaired: u64,
    /// Repairs that brought something.
    pub repairs_useful: u64,
    /// Repairs that brought nothing new, or came too late.
    pub repairs_wasted: u64,
    /// Repairs that contradicted themselves.
    pub repairs_malformed: u64,
    /// Repaired shards that are no packet: of those too long to be held, or malformed.
    pub malformed: u64,
}

impl Incoming {
    /// Expects the direction to go on with number `first`.
    #[must_use]
    pub fn new(now: Instant, first: u64, limits: GapLimits) -> Self {
        Self {
            gaps: Gaps::new(first, limits),
            decoder: None,
            repaired_at: now,
            shard: Vec::new(),
            past: IncomingStats::default(),
        }
    }

    /// Follows the round-trip time.
    pub fn set_limits(&mut self, limits: GapLimits) {
        self.gaps.set_limits(limits);
    }

    /// Takes a packet that came over a lane, for the first time; returns whether that was before it was
    /// given up.
    pub fn handle_source(
        &mut self,
        now: Instant,
        lane: LaneId,
        number: u64,
        offload: u8,
        packet: &[u8],
    ) -> bool {
        let in_time = self.gaps.handle_received(now, lane, number);
        let Some(decoder) = &mut self.decoder else {
            return in_time;
        };
        // Of one that the sender could not hold, parity covers an empty shard.
        let packet = match packet.len() {
            ..=MAX_HELD_PACKET => packet,
            _ => &[],
        };
        let [high, low] = (packet.len() as u16).to_be_bytes();
        self.shard.clear();
        self.shard.extend_from_slice(&[high, low, offload]);
        self.shard.extend_from_slice(packet);
        decoder.handle_source(number, &self.shard);
        in_time
    }

    /// Takes a repair whose covered numbers begin with `first`, the whole of
    /// [`RepairHeader::first`]; returns what it was good for. **Then call [`Incoming::poll_repaired`] until
    /// `None`.**
    ///
    /// # Errors
    /// None with the sizes that are constants here.
    pub fn handle_repair(
        &mut self,
        now: Instant,
        first: u64,
        header: RepairHeader,
        parity: &[u8],
    ) -> Result<RepairOutcome, StreamError> {
        self.repaired_at = now;
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => {
                // What came before it began is unknown to it, so it begins with what is to come.
                let len = WindowDecoder::<Vec<u8>>::work_len(RING, EQUATIONS, SHARD_CAPACITY);
                let from = self.gaps.next();
                let work = vec![0; len];
                none.insert(WindowDecoder::new(
                    work,
                    from,
                    RING,
                    EQUATIONS,
                    SHARD_CAPACITY,
                )?)
            }
        };
        Ok(decoder.handle_repair(first, header.span.into(), header.key, parity))
    }

    /// Returns the next packet that was repaired, with what came on `lane`.
    pub fn poll_repaired(&mut self, now: Instant, lane: LaneId) -> Option<Arrived<'_>> {
        let Self {
            decoder,
            gaps,
            past,
            shard,
            ..
        } = self;
        let decoder = decoder.as_mut()?;
        loop {
            let (number, bytes) = decoder.poll_repaired()?;
            let missed = gaps.handle_repaired(now, lane, number);
            if let Some(found) = parse(bytes) {
                let (offload, packet) = found;
                shard.clear();
                shard.extend_from_slice(packet);
                return Some(Arrived {
                    number,
                    missed,
                    offload,
                    packet: shard,
                });
            }
            past.malformed += 1;
            // It was too long to be held, and is missing all the same.
            if let Some(missed) = missed {
                gaps.give_up(missed, 1);
            }
        }
    }

    /// What is missing.
    #[must_use]
    pub const fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// What is missing, to ask for it.
    pub fn gaps_mut(&mut self) -> &mut Gaps {
        &mut self.gaps
    }

    /// Gives up gaps that are hopeless by `now`, and a decoder that nobody sends repairs to;
    /// returns whether there were such gaps.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.repaired_at) >= DECODER_IDLE
            && let Some(decoder) = self.decoder.take()
        {
            self.past = self.past.with(decoder.stats());
        }
        self.gaps.handle_timeout(now)
    }

    /// When [`Incoming::handle_timeout`] is due; [`Gaps::question_at`] says when a question is.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let idle = self
            .decoder
            .as_ref()
            .map(|_| self.repaired_at + DECODER_IDLE);
        [idle, self.gaps.poll_timeout()].into_iter().flatten().min()
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> IncomingStats {
        self.decoder
            .as_ref()
            .map_or(self.past, |decoder| self.past.with(decoder.stats()))
    }
}

impl IncomingStats {
    fn with(self, decoder: DecoderStats) -> Self {
        Self {
            repaired: self.repaired + decoder.repaired,
            repairs_useful: self.repairs_useful + decoder.repairs_useful,
            repairs_wasted: self.repairs_wasted
                + decoder.repairs_redundant
                + decoder.repairs_expired,
            repairs_malformed: self.repairs_malformed + decoder.repairs_malformed,
            malformed: self.malformed,
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("missing", &self.gaps.len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// Takes a shard apart: offload byte and packet. What follows the packet is padding.
fn parse(shard: &[u8]) -> Option<(u8, &[u8])> {
    let (head, rest) = shard.split_at_checked(SHARD_PREFIX_LEN)?;
    let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
    let packet = rest.get(..len).filter(|packet| !packet.is_empty())?;
    Some((head[2], packet))
}

/// Repairs that a decoder works with: a burst of as many losses can be mended.
pub const EQUATIONS: usize = 64;

/// How long a decoder waits for another repair: sources pause, and links have quiet minutes, but a
/// megabyte for each of a thousand idle clients is better given back.
pub const DECODER_IDLE: Duration = Duration::from_secs(10);
