//! Several stream lanes at once: which of them a packet takes, and which are sent a copy.
//!
//! # Theory of operation
//!
//! A stream lane loses nothing, but it is late: a segment that TCP lost holds up everything behind it on that lane, for
//! a round trip and a half if what follows shows the loss, for 200 ms and more if a time-out has to. On one lane nothing
//! helps against that. Over several, which are seldom held up at the same time, **late counts as lost**, and what
//! cannot wait is sent more than once:
//!
//! ```text
//!             ┌ thin: on the first, and copies on up to two more ──▶ lane a ──┐
//!  packet ────┤                                                   ▶ lane b ──┼──▶ the first to come counts
//!             └ bulk: on its flow's own lane, in order ───────────▶ lane c ──┘
//! ```
//!
//! - **Thin** is what a slow flow sends: a call, a game, keystrokes, DNS, what begins and ends any flow, and
//!   acknowledgements. Not by the size of the packet, as the fair queue has it: what a flow had to keep back for a while
//!   comes in one long packet, and on one lane alone that would be overtaken by what follows on others. It goes on [`MAX_COPIES`] lanes, those with least on them, all with one source
//!   number; the far end drops what comes again by that number, as it does anyway. A copy is parity of the simplest
//!   code: one for one, nothing to wait for. Longer codes would have the packet wait for others to share a parity
//!   with, and these come 20 ms apart.
//! - **Bulk** is everything else. A flow stays on one lane, so that its packets come in the order in which they left:
//!   TCP inside takes what is overtaken for lost. Each new flow takes the lane with least on it. So one flow is as fast
//!   as one lane, and several are as fast as all lanes together. A flow goes to another lane when it has paused for
//!   [`PAUSE`], or when its lane has taken nothing for [`STALL`]: what it gets then is out of order, once.
//!
//! No flow waits for the lane of another. The own stack asks by flow ([`Spread::admit`]) and passes over those whose
//! lane is full; what comes without a flow to hold back takes another lane then.
//!
//! # What it costs
//!
//! Three times the bytes of what is thin: for each flow at most thrice 256 kbit/s, for all of them together [`COPY_RATE`]
//! beside the first sendings; beyond it thin packets go once, which is counted. Flows on other lanes than the own cost
//! nothing. With one lane nothing here is used.
//!
//! # Limits
//!
//! 512 flows are remembered, in sets of four, in memory only while there are several lanes; of a fifth in a set, the
//! one that is idle longest is forgotten, and takes a lane anew. At most [`MAX_LANES`](super::MAX_LANES) lanes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_netstack::{Packet, protocol};

use super::queue::{LOW_BYTES, Meter, flow_hash, flow_hash_of};
use crate::wire::LaneId;

/// Chooses lanes for packets.
#[derive(Debug)]
pub struct Spread {
    seed: u64,
    lanes: Vec<LaneLoad>,
    flows: Box<[Option<Flow>]>,
    /// Bytes of copies that may be sent now.
    credit: usize,
    credited: Instant,
    stats: SpreadStats,
}

/// A lane as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneView {
    /// Which one.
    pub id: LaneId,
    /// Bytes that wait for the connection to take them.
    pub queued: usize,
    /// Bytes that it has taken, ever.
    pub taken: u64,
}

/// The lanes a packet takes: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    lanes: [LaneId; MAX_COPIES],
    len: usize,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpreadStats {
    /// Thin packets.
    pub thin: u64,
    /// Copies of them beside the first sending.
    pub copies: u64,
    /// Bytes of the copies.
    pub copy_bytes: u64,
    /// Thin packets that were sent once, because copies had used up their share.
    pub uncopied: u64,
    /// Other packets.
    pub bulk: u64,
    /// Times a flow went to another lane without a pause.
    pub moved: u64,
}

/// A lane as it is known here.
#[derive(Clone, Copy, Debug)]
struct LaneLoad {
    view: LaneView,
    /// When its connection last took something, or had nothing to take.
    moved_at: Instant,
    /// Bytes given to it of late, halved each [`HALF`].
    recent: u64,
    halved: Instant,
    /// It has taken nothing for [`STALL`].
    stalled: bool,
}

/// A flow as it is known here.
#[derive(Clone, Copy, Debug)]
struct Flow {
    hash: u64,
    meter: Meter,
    used: Instant,
    /// The lane of its bulk, and when that was last sent.
    home: Option<(LaneId, Instant)>,
}

impl Spread {
    /// Knows no lane yet. `seed` keeps strangers from making flows that are taken for one another.
    #[must_use]
    pub fn new(now: Instant, seed: u64) -> Self {
        Self {
            seed,
            lanes: Vec::new(),
            flows: Box::default(),
            credit: COPY_BURST,
            credited: now,
            stats: SpreadStats::default(),
        }
    }

    /// Learns how the lanes stand: all of them, before packets are given to them.
    pub fn handle_lanes(&mut self, now: Instant, lanes: impl Iterator<Item = LaneView> + Clone) {
        self.lanes
            .retain(|known| lanes.clone().any(|view| view.id == known.view.id));
        for view in lanes {
            match self.lane_mut(view.id) {
                Some(known) => known.follow(now, view),
                None => self.lanes.push(LaneLoad {
                    view,
                    moved_at: now,
                    recent: 0,
                    halved: now,
                    stalled: false,
                }),
            }
        }
        if self.lanes.is_empty() {
            // Whatever is known of flows is about lanes that are gone.
            self.flows = Box::default();
        }
    }

    /// Says on which lane a TCP flow of our own stack may write a packet now; `None` while its lane is full, or all are.
    #[must_use]
    pub fn admit(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Option<LaneId> {
        let hash = flow_hash_of(source, destination, protocol::TCP, self.seed);
        let known = self.set(hash).iter().flatten();
        let home = known
            .filter(|flow| flow.hash == hash)
            .find_map(|flow| flow.home_at(now));
        match home.and_then(|home| self.lane(home)) {
            Some(lane) if lane.has_room() => Some(lane.view.id),
            Some(lane) if !lane.stalled => None,
            Some(_) | None => self.best(now, LaneLoad::has_room),
        }
    }

    /// Returns the lane with least on it that takes a packet of `len` bytes at most: a short one also where a long one
    /// has to wait.
    #[must_use]
    pub fn room(&self, now: Instant, len: usize) -> Option<LaneId> {
        if len <= SHORT {
            self.best(now, LaneLoad::has_short_room)
        } else {
            self.best(now, LaneLoad::has_room)
        }
    }

    /// Chooses the lanes for a packet, for which [`Spread::room`] or [`Spread::admit`] has found room on `offered`.
    pub fn choose(&mut self, now: Instant, offered: LaneId, packet: &[u8]) -> Choice {
        let Ok(parsed) = Packet::parse(packet) else {
            return Choice::one(offered);
        };
        let hash = flow_hash(&parsed, self.seed);
        let flow = self.find(now, hash);
        let slow = flow.meter.count(now, packet.len()) <= SLOW_BYTES;
        let home = flow.home_at(now);
        if slow && parsed.fragment.is_none() && packet.len() <= MAX_COPIED {
            self.stats.thin += 1;
            self.thin(now, offered, home, packet.len())
        } else {
            self.stats.bulk += 1;
            Choice::one(self.bulk(now, offered, hash, home))
        }
    }

    /// Takes note that a packet was given to a lane, and of what waits there now.
    pub fn handle_given(&mut self, now: Instant, lane: LaneId, bytes: usize, queued: usize) {
        if let Some(lane) = self.lane_mut(lane) {
            lane.cool(now);
            lane.recent += bytes as u64;
            if lane.view.queued == 0 {
                lane.moved_at = now;
            }
            lane.view.queued = queued;
        }
    }

    /// Takes note of a copy that was sent.
    pub fn handle_copied(&mut self, bytes: usize) {
        self.stats.copies += 1;
        self.stats.copy_bytes += bytes as u64;
    }

    /// Returns for each lane whether it has room.
    pub fn rooms(&self) -> impl Iterator<Item = bool> + '_ {
        self.lanes.iter().map(LaneLoad::has_room)
    }

    /// When flows may leave a lane that takes nothing: [`Spread::handle_timeout`] is due, and the stack to be asked.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.lanes.iter().filter(|lane| lane.is_waiting());
        waiting.map(|lane| lane.moved_at + STALL).min()
    }

    /// Takes note of the lanes that are stalled by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            lane.stalled |= lane.is_waiting() && now >= lane.moved_at + STALL;
        }
    }

    /// Returns what was counted.
    #[must_use]
    pub fn stats(&self) -> SpreadStats {
        self.stats
    }

    fn thin(&mut self, now: Instant, offered: LaneId, home: Option<LaneId>, len: usize) -> Choice {
        let mut choice = Choice::one(offered);
        if self.lanes.len() < 2 {
            return choice;
        }
        self.earn(now);
        // What the flow has under way goes before it on its own lane.
        let home = home.filter(|home| self.lane(*home).is_some_and(LaneLoad::has_short_room));
        if let Some(home) = home.filter(|home| *home != offered) {
            choice.push(home);
        }
        while choice.len < MAX_COPIES
            && let Some(next) = self.best(now, |lane| {
                lane.has_short_room() && !choice.lanes().contains(&lane.view.id)
            })
        {
            choice.push(next);
        }
        let cost = len * (choice.len - 1);
        if cost > self.credit {
            self.stats.uncopied += 1;
            return Choice::one(offered);
        }
        self.credit -= cost;
        choice
    }

    fn bulk(&mut self, now: Instant, offered: LaneId, hash: u64, home: Option<LaneId>) -> LaneId {
        let stays = home
            .and_then(|home| self.lane(home))
            .filter(|lane| lane.has_short_room() && !lane.stalled);
        let lane = match (stays, home) {
            (Some(lane), _) => lane.view.id,
            (None, Some(home)) => {
                self.stats.moved += u64::from(home != offered);
                offered
            }
            (None, None) => offered,
        };
        self.find(now, hash).home = Some((lane, now));
        lane
    }

    fn earn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.credited);
        let earned = passed.as_micros().saturating_mul(COPY_RATE as u128) / 1_000_000;
        if earned > 0 {
            self.credited = now;
            let earned = usize::try_from(earned).unwrap_or(COPY_BURST);
            self.credit = self.credit.saturating_add(earned).min(COPY_BURST);
        }
    }

    /// The lane with least on it of those that will do; stalled ones last.
    fn best(&self, now: Instant, mut will_do: impl FnMut(&LaneLoad) -> bool) -> Option<LaneId> {
        let lanes = self.lanes.iter().filter(|lane| will_do(lane));
        let best = lanes.min_by_key(|lane| {
            let recent = lane.recent_at(now);
            (lane.stalled, lane.view.queued, recent, lane.view.id)
        });
        best.map(|lane| lane.view.id)
    }

    fn lane(&self, id: LaneId) -> Option<&LaneLoad> {
        self.lanes.iter().find(|lane| lane.view.id == id)
    }

    fn lane_mut(&mut self, id: LaneId) -> Option<&mut LaneLoad> {
        self.lanes.iter_mut().find(|lane| lane.view.id == id)
    }

    fn set(&self, hash: u64) -> &[Option<Flow>] {
        let at = set_of(hash);
        self.flows.get(at..at + WAYS).unwrap_or_default()
    }

    /// Finds a flow, or makes it in place of the one of its set that is idle longest.
    fn find(&mut self, now: Instant, hash: u64) -> &mut Flow {
        if self.flows.is_empty() {
            self.flows = vec![None; FLOWS].into_boxed_slice();
        }
        let at = set_of(hash);
        let set = &mut self.flows[at..at + WAYS];
        let found = set
            .iter()
            .position(|way| way.is_some_and(|flow| flow.hash == hash));
        let way = found.unwrap_or_else(|| {
            let used = |way: &usize| set[*way].map(|flow| flow.used);
            (0..WAYS).min_by_key(used).unwrap_or_default()
        });
        if found.is_none() {
            set[way] = None;
        }
        let flow = set[way].get_or_insert_with(|| Flow {
            hash,
            meter: Meter::new(now),
            used: now,
            home: None,
        });
        flow.used = now;
        flow
    }
}

impl LaneLoad {
    fn follow(&mut self, now: Instant, view: LaneView) {
        if view.queued == 0 || view.taken != self.view.taken || self.view.queued == 0 {
            self.moved_at = now;
            self.stalled = false;
        }
        self.view = view;
    }

    fn is_waiting(&self) -> bool {
        self.view.queued > 0 && !self.stalled
    }

    fn has_room(&self) -> bool {
        self.view.queued < LONG_WATER
    }

    fn has_short_room(&self) -> bool {
        self.view.queued < SHORT_WATER
    }

    fn halvings(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.halved).as_millis() / HALF.as_millis();
        u32::try_from(passed).unwrap_or(u32::MAX)
    }

    fn recent_at(&self, now: Instant) -> u64 {
        self.recent.checked_shr(self.halvings(now)).unwrap_or(0)
    }

    fn cool(&mut self, now: Instant) {
        self.recent = self.recent_at(now);
        self.halved += HALF * self.halvings(now).min(MOST_HALVINGS);
        if self.recent == 0 {
            self.halved = now;
        }
    }
}

impl Flow {
    /// The lane that it stays on, if it has sent in bulk of late.
    fn home_at(&self, now: Instant) -> Option<LaneId> {
        let (lane, at) = self.home?;
        (now.saturating_duration_since(at) < PAUSE).then_some(lane)
    }
}

impl Choice {
    fn one(lane: LaneId) -> Self {
        Self {
            lanes: [lane; MAX_COPIES],
            len: 1,
        }
    }

    fn push(&mut self, lane: LaneId) {
        if let Some(slot) = self.lanes.get_mut(self.len) {
            *slot = lane;
            self.len += 1;
        }
    }

    /// The lane that the packet itself takes.
    #[must_use]
    pub fn first(&self) -> LaneId {
        self.lanes[0]
    }

    /// All of them, the first in front.
    #[must_use]
    pub fn lanes(&self) -> &[LaneId] {
        &self.lanes[..self.len]
    }
}

fn set_of(hash: u64) -> usize {
    (hash >> 32) as usize % (FLOWS / WAYS) * WAYS
}

/// On how many lanes a thin packet goes at most, the first included. At 2 % loss a stream of messages each 20 ms finds
/// a lane held up a tenth of the time: two at once are that often enough to show in the 99th percentile, three are not.
pub const MAX_COPIES: usize = 3;

/// The longest packet that is copied: what a flow of messages each 20 ms has kept back for half a second.
pub const MAX_COPIED: usize = 8_192;

/// What a slow flow sends within the meter's half a second at most: twice what is a low rate elsewhere, since a flow
/// that was held up sends for a while what it has kept back beside what is new.
const SLOW_BYTES: u64 = 2 * LOW_BYTES;

/// What copies may take beside first sendings: about 1 Mbit/s, five calls with two copies each.
pub const COPY_RATE: usize = 128 * 1_024;

/// What of it may be saved up: the beginnings of the flows of a web page.
const COPY_BURST: usize = 64 * 1_024;

/// After how long without bulk a flow takes the lane that suits best then: what it sent before has come, or its TCP has
/// given it up.
pub const PAUSE: Duration = Duration::from_secs(1);

/// After how long without a byte taken a lane is left by its flows: a loss and the loss of what mended it take half
/// a second, and to leave costs the flow a cut of its window.
pub const STALL: Duration = Duration::from_secs(1);

/// Bytes that may wait for a lane when a long packet is added: enough to keep its connection busy until the next turn,
/// since the kernel has twice that, and the least that a thin packet has to wait behind.
const LONG_WATER: usize = 64 * 1_024;

/// The same for short ones: all that a lane takes.
const SHORT_WATER: usize = 256 * 1_024;

/// Up to what length a packet is short: not cut from a stream, and so with nobody to hold back.
const SHORT: usize = 2_048;

const HALF: Duration = Duration::from_millis(250);
/// Whatever was recent is nothing after so many.
const MOST_HALVINGS: u32 = 64;
const FLOWS: usize = 512;
const WAYS: usize = 4;

#[cfg(test)]
mod tests;
