//! The sending end: what was sent, and what else leaves on its account.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use adit_fec::redundancy::PlanKind;
use adit_fec::{
    Class, LossReport, Redundancy, RepairPlan, Settings, StreamEncoder, StreamError, WindowEncoder,
};

use super::incoming::DECODER_IDLE;
use crate::proto::stats::Again;
use crate::wire::{REPAIR_HEADER_LEN, RepairHeader, SHARD_PREFIX_LEN};

/// Holds the last source packets of a direction, makes repairs over them, and sends them again.
pub struct Outgoing {
    encoder: WindowEncoder<Vec<u8>>,
    redundancy: Redundancy,
    resends: VecDeque<u64>,
    /// When the first of those was asked for.
    asked_at: Instant,
    /// How often the packet in each place of the ring was sent again.
    resent: Box<[u8]>,
    /// When that was last.
    resent_at: Box<[Instant]>,
    /// The smoothed round-trip time; zero while unknown.
    round_trip: Duration,
    /// When the last repair was sent.
    repaired_at: Option<Instant>,
    /// The first number that the far end's decoder can know: it begins with what follows the first repair.
    decoded_from: u64,
    stats: OutgoingStats,
}

/// What leaves beside new packets. What it carries was written where [`Outgoing::poll`] was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// A packet once more.
    Source {
        /// Its number.
        number: u64,
        /// Its offload byte, as it was given.
        offload: u8,
        /// Bytes of the packet.
        len: usize,
        /// Why it is sent once more.
        again: Again,
    },
    /// A repair: header and parity.
    Repair {
        /// Bytes of both.
        len: usize,
    },
}

/// What an [`Outgoing`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutgoingStats {
    /// Packets that were sent again because the receiver asked.
    pub resent: u64,
    /// Packets that were sent again at once, because they could not wait for parity.
    pub copied: u64,
    /// Repairs that were sent.
    pub repairs: u64,
    /// Packets asked for that are not held, or no longer.
    pub resends_too_late: u64,
    /// Packets asked for more often than they are sent.
    pub resends_refused: u64,
    /// Packets asked for while too many others waited.
    pub resends_overflow: u64,
    /// Repairs left out because the lane fits less.
    pub repairs_too_long: u64,
    /// Packets too long to be held: neither sent again nor repaired.
    pub unheld: u64,
}

impl OutgoingStats {
    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: &Self) -> Self {
        Self {
            resent: self.resent + other.resent,
            copied: self.copied + other.copied,
            repairs: self.repairs + other.repairs,
            resends_too_late: self.resends_too_late + other.resends_too_late,
            resends_refused: self.resends_refused + other.resends_refused,
            resends_overflow: self.resends_overflow + other.resends_overflow,
            repairs_too_long: self.repairs_too_long + other.repairs_too_long,
            unheld: self.unheld + other.unheld,
        }
    }
}

impl Outgoing {
    /// Holds nothing yet.
    ///
    /// # Errors
    /// None with the sizes that are constants here.
    pub fn new(now: Instant, settings: Settings) -> Result<Self, StreamError> {
        let work = vec![0; WindowEncoder::<Vec<u8>>::work_len(RING, SHARD_CAPACITY)];
        Ok(Self {
            encoder: WindowEncoder::new(work, RING, SHARD_CAPACITY)?,
            redundancy: Redundancy::new(now, settings),
            resends: VecDeque::with_capacity(MAX_WAITING_RESENDS),
            asked_at: now,
            resent: vec![0; RING].into_boxed_slice(),
            resent_at: vec![now; RING].into_boxed_slice(),
            round_trip: Duration::ZERO,
            repaired_at: None,
            decoded_from: 0,
            stats: OutgoingStats::default(),
        })
    }

    /// Takes a packet that leaves now, under the next number.
    pub fn handle_source(
        &mut self,
        now: Instant,
        number: u64,
        offload: u8,
        packet: &[u8],
        class: Class,
    ) {
        let (packet, class) = match packet.len() {
            ..=MAX_HELD_PACKET => (packet, class),
            // It has its place all the same, an empty one: the others are repaired as if it were none.
            _ => {
                self.stats.unheld += 1;
                (&[][..], Class::Bulk)
            }
        };
        let shard_len = SHARD_PREFIX_LEN + packet.len();
        let Ok(shard) = self.encoder.reserve(number, shard_len) else {
            return;
        };
        let (head, body) = shard.split_at_mut(SHARD_PREFIX_LEN);
        let [high, low] = (packet.len() as u16).to_be_bytes();
        head.copy_from_slice(&[high, low, offload]);
        body.copy_from_slice(packet);
        self.resent[place(number)] = 0;
        self.redundancy.on_source(now, number, shard_len, class);
    }

    /// Takes what became of the datagrams since the last report.
    pub fn handle_report(&mut self, now: Instant, report: &LossReport) {
        self.round_trip = report.rtt;
        self.redundancy.on_report(now, report);
    }

    /// Takes the receiver's question for a packet, or the news of its loss; returns whether it is the first
    /// for this packet.
    pub fn handle_request(&mut self, now: Instant, number: u64) -> bool {
        if self.held(number).is_none() {
            self.stats.resends_too_late += 1;
        } else if self.resends.contains(&number) {
            // It is on its way already.
        } else if self.is_on_its_way(now, number) {
            // The question left before the resend can have come.
        } else if self.resent[place(number)] >= MAX_RESENDS_OF_ONE {
            self.stats.resends_refused += 1;
        } else if self.resends.len() >= MAX_WAITING_RESENDS {
            self.stats.resends_overflow += 1;
        } else {
            if self.resends.is_empty() {
                self.asked_at = now;
            }
            self.resends.push_back(number);
            return self.resent[place(number)] == 0;
        }
        false
    }

    /// Takes the news that a packet flew on a lane which was given up: nobody waits for what was sent again of it there,
    /// nor does that count.
    pub fn handle_abandoned(&mut self, number: u64) {
        if self.held(number).is_some() {
            self.resent[place(number)] = 0;
        }
    }

    /// Writes what is due next at `now` to the front of `out`, if anything is: what follows the
    /// inner type and source header of a packet, or the inner type of a repair. `out` is the room
    /// that a packet has on the lane. **Call until `None`.**
    pub fn poll(&mut self, now: Instant, out: &mut [u8]) -> Option<Extra> {
        while let Some(number) = self.resends.pop_front() {
            let Some(extra) = self.source(number, Again::Resend, out) else {
                self.stats.resends_too_late += 1;
                continue;
            };
            self.resent[place(number)] += 1;
            self.resent_at[place(number)] = now;
            self.stats.resent += 1;
            return Some(extra);
        }
        while let Some(plan) = self.redundancy.poll_repair(now) {
            if plan.kind == PlanKind::Copy && plan.span == 1 {
                if let Some(extra) = self.source(plan.first, Again::Copy, out) {
                    self.stats.copied += 1;
                    return Some(extra);
                }
                continue;
            }
            let plan = self.within_decoder(now, plan);
            match self.repair(plan, out) {
                Some(extra) => {
                    self.repaired_at = Some(now);
                    self.stats.repairs += 1;
                    return Some(extra);
                }
                None => self.stats.repairs_too_long += 1,
            }
        }
        None
    }

    /// When [`Outgoing::poll`] has something, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.resends.is_empty() {
            self.redundancy.poll_timeout()
        } else {
            Some(self.asked_at)
        }
    }

    /// Whether there is something to be sent again.
    #[must_use]
    pub fn has_resends(&self) -> bool {
        !self.resends.is_empty()
    }

    /// What was counted.
    #[must_use]
    pub const fn stats(&self) -> &OutgoingStats {
        &self.stats
    }

    /// Tells whether flows are held for what is sent again: the link loses too little for parity to spare them that.
    #[must_use]
    pub fn makes_flows_wait(&self) -> bool {
        self.ratio() == 0.0 && self.redundancy.calm_loss() > LITTLE
    }

    /// Tells whether parity is to be sent as the link's loss asks for.
    pub fn set_parity(&mut self, wanted: bool) {
        self.redundancy.set_parity(wanted);
    }

    /// The share of datagrams that the link loses, 0 while that is not worth parity.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.redundancy.loss()
    }

    /// Repairs sent for each source at present.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.redundancy.ratio()
    }

    /// A packet that is still held: its offload byte and its bytes.
    #[must_use]
    pub fn held(&self, number: u64) -> Option<(u8, &[u8])> {
        let shard = self.encoder.shard(number)?;
        let (head, packet) = shard.split_at_checked(SHARD_PREFIX_LEN)?;
        (!packet.is_empty()).then_some((head[2], packet))
    }

    /// Whether the packet was sent again less than a round trip ago, about.
    fn is_on_its_way(&self, now: Instant, number: u64) -> bool {
        let since = now.saturating_duration_since(self.resent_at[place(number)]);
        self.resent[place(number)] > 0 && since < self.round_trip * 7 / 8
    }

    /// Leaves out of a repair what the far end cannot know because its decoder was made only now: that would make it
    /// useless.
    fn within_decoder(&mut self, now: Instant, plan: RepairPlan) -> RepairPlan {
        let alive =
            (self.repaired_at).is_some_and(|at| now.saturating_duration_since(at) < DECODER_IDLE);
        if !alive {
            self.decoded_from = self.encoder.held().end;
        }
        let known = (plan.first + u64::from(plan.span)).saturating_sub(self.decoded_from);
        match u16::try_from(known) {
            Ok(known @ 1..) if known < plan.span => RepairPlan {
                first: self.decoded_from,
                span: known,
                ..plan
            },
            // Covered whole, or of no use but to say that repairs have begun.
            Ok(_) | Err(_) => plan,
        }
    }

    fn source(&self, number: u64, again: Again, out: &mut [u8]) -> Option<Extra> {
        let (offload, packet) = self.held(number)?;
        out.get_mut(..packet.len())?.copy_from_slice(packet);
        Some(Extra::Source {
            number,
            offload,
            len: packet.len(),
            again,
        })
    }

    fn repair(&self, plan: RepairPlan, out: &mut [u8]) -> Option<Extra> {
        let (head, parity) = out.split_at_mut_checked(REPAIR_HEADER_LEN)?;
        let len = self
            .encoder
            .repair(plan.first, plan.span.into(), plan.key, parity)
            .ok()?;
        let header = RepairHeader {
            first: plan.first as u32,
            span: plan.span,
            key: plan.key,
        };
        head.copy_from_slice(&header.to_bytes());
        Some(Extra::Repair {
            len: REPAIR_HEADER_LEN + len,
        })
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("held", &self.encoder.held())
            .field("resends", &self.resends.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

fn place(number: u64) -> usize {
    (number % RING as u64) as usize
}

/// Packets held: 128 ms at 50 Mbit/s, which is a question's way there and the resend's way back on a
/// long path.
pub const RING: usize = 512;

/// The longest shard: the prefix and the largest packet that a datagram lane carries whole.
pub const SHARD_CAPACITY: usize = 1_536;

/// The longest packet that is held. A longer one has an empty shard at both ends.
pub(super) const MAX_HELD_PACKET: usize = SHARD_CAPACITY - SHARD_PREFIX_LEN;

/// How often one packet is sent again. A second time, because the first is lost as often as any; a third, because on a
/// short path the hold waits for that as well, and at 3 % the first two are lost of each thousandth packet that is missing.
pub const MAX_RESENDS_OF_ONE: u8 = 3;

/// A link that loses less makes nobody wait: 50 Mbit/s then lose a packet in two seconds.
const LITTLE: f64 = 1e-4;

/// Resends that wait for the lane: a report's worth, twice.
pub const MAX_WAITING_RESENDS: usize = 128;
