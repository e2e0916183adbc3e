//! The sending half, and what both halves share.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use adit_fec::{Class as RepairClass, Mode, Settings as RepairSettings};
use adit_netstack::{Checksum, Gso, Offload};

use super::lane::{Content, Datagram, DatapathLane, LaneCounts};
use super::receive::DELIVERY_HEADROOM;
use crate::proto::delivery::{Class, Permit, SentError};
use crate::proto::hold::{Hold, HoldLimits, HoldStats, hold_time};
use crate::proto::queue::{self, FairQueue, Producer, QueueLimits, QueuePacket, QueueStats};
use crate::proto::repair::{
    Extra, GapLimits, Incoming, IncomingStats, Outgoing, OutgoingStats, RING, RepairScope,
    ScopeJudge,
};
use crate::proto::session::Session;
use crate::wire::{
    DATAGRAM_HEADER_LEN, DATAGRAM_PACKET_HEADROOM, DatagramHeader, DatagramPacketHeader, InnerType,
    LaneId, MAX_REPORT_LEN, Piece, REPAIR_HEADER_LEN, RepairCounts, SHARD_PREFIX_LEN, TAG_LEN,
};

/// The datagram lanes of one session, and the packets on them.
pub struct Datapath<P> {
    /// Random: what its parts are seeded with.
    seed: u64,
    pub(super) queue: FairQueue<P>,
    repair: RepairSettings,
    pub(super) outgoing: Option<Box<Outgoing>>,
    pub(super) judge: ScopeJudge,
    /// The lane that takes packets; `None` while one of another kind does.
    pub(super) carrier: Option<LaneId>,
    /// What former ones of those counted.
    past: OutgoingStats,
    /// When a packet was last sent.
    sourced_at: Instant,
    /// When a packet was last sent or came; `None` while nothing is held on that account.
    pub(super) used_at: Option<Instant>,
    pub(super) incoming: Incoming,
    pub(super) hold: Hold,
    pub(super) lanes: Vec<DatapathLane>,
    /// Packets that flew on lanes which were given up, to be sent again on another.
    orphans: VecDeque<u64>,
    /// The second piece of a packet that no datagram takes whole, and its lane.
    rest: Option<(LaneId, Rest)>,
    /// Room for it.
    spare: Vec<u8>,
    /// Whether the far end keeps what it sends: what is missing is worth waiting and asking for.
    pub(super) kept: bool,
    pub(super) round_trip: Duration,
    pub(super) scratch: Vec<u8>,
    pub(super) drops: DatapathDrops,
}

/// A packet whose lane was given up while it flew.
#[derive(Clone, Copy, Debug)]
pub struct Orphan<'a> {
    /// Its source number.
    pub number: u64,
    /// What it owes.
    pub offload: Offload,
    /// The packet.
    pub packet: &'a [u8],
}

/// What a [`Datapath`] counted, over all its lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DatapathStats {
    /// The queue in front of the lanes.
    pub queue: QueueStats,
    /// What was sent beside new packets.
    pub outgoing: OutgoingStats,
    /// What parity brought.
    pub incoming: IncomingStats,
    /// Packets missing now.
    pub missing: usize,
    /// Packets asked for.
    pub asked: u64,
    /// What the hold did.
    pub hold: HoldStats,
    /// What was dropped.
    pub drops: DatapathDrops,
}

/// What a [`Datapath`] spends on repair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spending {
    /// What is repaired.
    pub scope: RepairScope,
    /// The share of datagrams that the link loses, 0 while that is not worth parity.
    pub loss: f64,
    /// Repairs sent for each source.
    pub parity: f64,
}

/// What a [`Datapath`] dropped, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatapathDrops {
    /// Packets that could not be sealed.
    pub unsealed: u64,
    /// Packets too long for two datagrams of the lane.
    pub too_long: u64,
    /// Second halves of packets whose lane was gone, or had to wait too long, before they could leave.
    pub halves: u64,
    /// Reports that were malformed.
    pub malformed_reports: u64,
    /// Repairs that were malformed.
    pub malformed_repairs: u64,
    /// Datagrams that were sent and not tracked, because too many were.
    pub untracked: u64,
    /// Those that were not, because the far end has answered too few that needed no permission.
    pub unanswered: u64,
}

/// A piece that waits for the next datagram.
#[derive(Debug)]
struct Rest {
    number: u64,
    checksum: Checksum,
    bytes: Vec<u8>,
}

impl<P: QueuePacket> Datapath<P> {
    /// Starts without a lane. `seed` is random; `next_source` is the number that the far end's next
    /// packet will have.
    #[must_use]
    pub fn new(now: Instant, seed: u64, next_source: u64, repair: RepairSettings) -> Self {
        // Until the far end says that it keeps what it sends, nothing is worth waiting or asking for.
        let mut hold = Hold::new(seed, DELIVERY_HEADROOM, HoldLimits::default());
        hold.set_wait(Duration::ZERO);
        let mut incoming = Incoming::new(now, next_source, gap_limits(FIRST_ROUND_TRIP));
        incoming.gaps_mut().set_asking(false);
        Self {
            seed,
            queue: FairQueue::new(seed, QueueLimits::default()),
            repair,
            outgoing: None,
            judge: ScopeJudge::new(now, repair.mode),
            carrier: None,
            past: OutgoingStats::default(),
            sourced_at: now,
            used_at: None,
            incoming,
            hold,
            lanes: Vec::new(),
            orphans: VecDeque::new(),
            rest: None,
            spare: Vec::new(),
            kept: false,
            round_trip: FIRST_ROUND_TRIP,
            scratch: Vec::new(),
            drops: DatapathDrops::default(),
        }
    }

    /// Follows the session's confirmed datagram lanes: new ones are added, those that have gone
    /// forgotten, and each takes datagrams as long as its path is known to carry.
    pub fn follow_lanes(&mut self, session: &mut Session, now: Instant) {
        while let Some(id) = self
            .lanes
            .iter()
            .find(|lane| session.max_datagram(lane.id).is_none())
            .map(|lane| lane.id)
        {
            session.count(id).outgoing.lost += self.abandon(id);
            self.lanes.retain(|lane| lane.id != id);
            self.drop_rest(|lane| lane == id);
        }
        for id in session.lanes() {
            let Some(datagram) = session.max_datagram(id) else {
                continue;
            };
            if self.lanes.iter().any(|lane| lane.id == id) {
                self.set_datagram(id, datagram);
            } else {
                self.add_lane(now, id, datagram, session.rtt(id));
            }
        }
    }

    /// Gives up on what flies on a lane that nobody answers on: its packets are sent again on
    /// whichever lane packets take next. Returns how many datagrams that were.
    pub fn abandon(&mut self, id: LaneId) -> u64 {
        let Some(lane) = self.lanes.iter_mut().find(|lane| lane.id == id) else {
            return 0;
        };
        let (orphans, outgoing) = (&mut self.orphans, &mut self.outgoing);
        let mut flew = 0;
        lane.flight.abandon(|Datagram { content, .. }, _| {
            flew += 1;
            match content {
                Content::Source { number } | Content::Resend { number } => {
                    if orphans.len() == RING {
                        orphans.pop_front();
                    }
                    orphans.push_back(number);
                    if let Some(outgoing) = outgoing {
                        outgoing.handle_abandoned(number);
                    }
                }
                Content::Repair | Content::Control | Content::Report => {}
            }
        });
        flew
    }

    /// Takes a packet that flew on a lane which was given up, if it is still held: for a lane of
    /// another kind.
    pub fn take_orphan(&mut self) -> Option<Orphan<'_>> {
        let outgoing = self.outgoing.as_deref()?;
        loop {
            let number = self.orphans.pop_front()?;
            if let Some((offload, packet)) = outgoing.held(number) {
                return Some(Orphan {
                    number,
                    offload: plain(checksum_of(offload)),
                    packet,
                });
            }
        }
    }

    /// Adds a lane that takes datagrams of `datagram` bytes at most.
    fn add_lane(
        &mut self,
        now: Instant,
        id: LaneId,
        datagram: usize,
        round_trip: Option<Duration>,
    ) {
        let round_trip = round_trip.unwrap_or(FIRST_ROUND_TRIP);
        self.lanes.retain(|lane| lane.id != id);
        self.lanes
            .push(DatapathLane::new(now, id, datagram, round_trip, self.seed));
    }

    /// Takes note of how long a lane's datagrams are at most, as path MTU discovery finds it.
    fn set_datagram(&mut self, id: LaneId, datagram: usize) {
        if let Some(lane) = self.lane_mut(id)
            && lane.datagram != datagram
        {
            lane.datagram = datagram;
            lane.flight.set_datagram_size(datagram);
        }
    }

    /// Puts a packet into the queue; returns whether it waits there now.
    pub fn enqueue(&mut self, now: Instant, packet: P, producer: Producer) -> bool {
        self.queue.enqueue(now, packet, producer)
    }

    /// Bytes that our own stack may still add to the queue.
    #[must_use]
    pub fn room(&self) -> usize {
        self.queue.room()
    }

    /// The queue: a lane of another kind takes what waits in it from here.
    pub fn queue(&self) -> &FairQueue<P> {
        &self.queue
    }

    /// Returns the queue, to take packets out of it.
    pub fn queue_mut(&mut self) -> &mut FairQueue<P> {
        &mut self.queue
    }

    /// Writes the next datagram for a lane to the front of `out` and returns its length; `None` when
    /// there is none, or none may leave before [`Datapath::poll_timeout`]. `packets` says whether the
    /// lane is the one that packets take; `out` holds a datagram of the lane.
    pub fn poll_datagram(
        &mut self,
        session: &mut Session,
        now: Instant,
        id: LaneId,
        packets: bool,
        out: &mut [u8],
    ) -> Option<usize> {
        let index = self.lanes.iter().position(|lane| lane.id == id)?;
        if packets {
            self.carrier = Some(id);
        } else if self.carrier == Some(id) {
            self.carrier = None;
        }
        self.lanes[index].blocked = false;
        if let Some(len) = self.poll_report(session, now, index, out) {
            return Some(len);
        }
        let lane = &mut self.lanes[index];
        let thin = packets && self.queue.is_next_thin(now);
        lane.permit = lane.flight.permit(now, lane.datagram);
        match lane.permit {
            Permit::Now => {}
            Permit::At(_) | Permit::Full => {
                // Somebody waits for it, and it is no part of what fills the lane.
                let lent =
                    thin && self.rest.is_none() && lane.flight.permit_thin(now, SMALL_DATAGRAM);
                let len = lent.then(|| self.poll_source(session, now, index, out))??;
                self.lanes[index].flight.handle_lent(now, len);
                return Some(len);
            }
        }
        let sent = self.poll_rest(session, now, index, out).or_else(|| {
            if !packets {
                None
            } else if thin {
                // It would wait for the parity of bulk.
                self.poll_source(session, now, index, out)
                    .or_else(|| self.poll_extra(session, now, index, out))
            } else {
                self.poll_extra(session, now, index, out)
                    .or_else(|| self.poll_source(session, now, index, out))
            }
        });
        let lane = &mut self.lanes[index];
        match sent {
            Some(_) => lane.probe = false,
            None if lane.probe => {
                // Nothing else to probe with: a ping is answered, and acknowledged.
                lane.probe = false;
                session.ping(id);
            }
            None => lane.flight.handle_application_limited(),
        }
        sent
    }

    /// Takes note of a control frame that the session sealed for a lane and that leaves now.
    pub fn handle_control_sent(
        &mut self,
        session: &Session,
        now: Instant,
        id: LaneId,
        datagram: &[u8],
    ) {
        if let Some(index) = self.lanes.iter().position(|lane| lane.id == id) {
            // It is answered, as a probe is.
            self.lanes[index].probe = false;
            self.note_sent(session, now, index, datagram, Class::Data, Content::Control);
        }
    }

    /// Takes note that the socket of a lane takes nothing: what is to leave waits for [`Datapath::poll_datagram`], and wakes
    /// nobody until then.
    pub fn handle_blocked(&mut self, id: LaneId) {
        if let Some(lane) = self.lane_mut(id) {
            lane.blocked = true;
        }
    }

    /// When something is due that nothing else will bring about.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let lanes =
            (self.lanes.iter()).flat_map(|lane| [lane.flight.poll_timeout(), lane.leaves_at()]);
        let extra = self
            .outgoing
            .as_ref()
            .and_then(|outgoing| outgoing.poll_timeout())
            // While the lane that it goes on lets nothing go, or there is none, nothing can be done about it.
            .filter(|_| {
                self.carrier()
                    .is_some_and(|lane| lane.permit == Permit::Now && !lane.blocked)
            });
        let idle = self.outgoing.as_ref().map(|_| self.sourced_at + IDLE);
        lanes
            .chain([
                extra,
                idle,
                self.used_at.map(|at| at + IDLE),
                self.incoming.poll_timeout(),
                self.question_at(),
                self.hold.poll_timeout(),
            ])
            .flatten()
            .min()
    }

    /// Counters of a lane.
    #[must_use]
    pub fn lane_counts(&self, id: LaneId) -> Option<LaneCounts> {
        let lane = self.lanes.iter().find(|lane| lane.id == id)?;
        Some(lane.counts())
    }

    /// What is spent on repair now, as the losses of the lane that takes packets call for it.
    #[must_use]
    pub fn spending(&self) -> Spending {
        let outgoing = self.outgoing.as_deref();
        Spending {
            scope: self.judge.scope(),
            loss: outgoing.map_or(0.0, Outgoing::loss),
            parity: outgoing.map_or(0.0, Outgoing::ratio),
        }
    }

    /// What was counted, over all lanes.
    #[must_use]
    pub fn stats(&self) -> DatapathStats {
        DatapathStats {
            queue: self.queue.stats(),
            outgoing: self.outgoing_stats(),
            incoming: self.incoming.stats(),
            missing: self.incoming.gaps().len(),
            asked: self.incoming.gaps().asked(),
            hold: self.hold.stats(),
            drops: self.drops,
        }
    }

    /// Gives back what a sender that sends nothing holds, and what is kept for packets where none come or go.
    pub(super) fn rest_when_idle(&mut self, now: Instant) {
        if now.saturating_duration_since(self.sourced_at) >= IDLE {
            self.past = self.outgoing_stats();
            self.outgoing = None;
        }
        let idle = |at: &mut Instant| now.saturating_duration_since(*at) >= IDLE;
        if self.used_at.take_if(idle).is_some() {
            self.queue.release_memory();
            self.hold.release_memory();
            self.incoming.gaps_mut().release_memory();
            for lane in &mut self.lanes {
                lane.flight.release_memory();
            }
        }
    }

    fn carrier(&self) -> Option<&DatapathLane> {
        let id = self.carrier?;
        self.lanes.iter().find(|lane| lane.id == id)
    }

    /// Whether what is sent now is kept, and worth the far end's waiting and asking for it.
    fn keeps(&self) -> bool {
        self.outgoing.is_some()
            && match self.judge.scope() {
                RepairScope::All | RepairScope::Resends => true,
                RepairScope::Copies => false,
            }
    }

    fn outgoing_stats(&self) -> OutgoingStats {
        self.outgoing
            .as_ref()
            .map_or(self.past, |outgoing| self.past.plus(outgoing.stats()))
    }

    pub(super) fn lane_mut(&mut self, id: LaneId) -> Option<&mut DatapathLane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    fn poll_report(
        &mut self,
        session: &mut Session,
        now: Instant,
        index: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let lane = &mut self.lanes[index];
        if lane.received.poll_timeout().is_none_or(|due| due > now) {
            return None;
        }
        let came = session.carried().incoming;
        let counts = RepairCounts {
            repaired: came.repaired,
            residual: came.residual,
            wasted: came.wasted,
        };
        let mut missing = [0; crate::wire::MAX_MISSING];
        let mut count = 0;
        self.incoming.gaps_mut().poll_ask(now, |number| {
            let Some(slot) = missing.get_mut(count) else {
                return false;
            };
            *slot = number;
            count += 1;
            true
        });
        let wants = lane.flight.sent().wants_report(now);
        let report =
            lane.received
                .poll_report(now, counts, missing[..count].iter().copied(), wants);
        let report = report?;
        let body = out.get_mut(DATAGRAM_HEADER_LEN + 1..)?;
        let room = body.len().min(MAX_REPORT_LEN);
        let len = report.write(&mut body[..room]).ok()?;
        let class = if report.asks {
            Class::Asking
        } else {
            Class::Report
        };
        let whole = DATAGRAM_HEADER_LEN + 1 + len + TAG_LEN;
        let id = self.lanes[index].id;
        let sealed = session.seal_inside(now, id, InnerType::Report, len, out);
        if sealed.is_err() {
            self.drops.unsealed += 1;
            return None;
        }
        self.note_sent(session, now, index, &out[..whole], class, Content::Report);
        Some(whole)
    }

    fn poll_extra(
        &mut self,
        session: &mut Session,
        now: Instant,
        index: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let lane = &self.lanes[index];
        let (id, datagram) = (lane.id, lane.datagram);
        // Told of a copy that comes in place of its packet, the far end would wait and ask for others too.
        let kept = self.keeps();
        let outgoing = self.outgoing.as_mut()?;
        while !outgoing.has_resends()
            && let Some(orphan) = self.orphans.pop_front()
        {
            outgoing.handle_request(now, orphan);
        }
        loop {
            // A repair's header is longer than a packet's: both begin where the latter's ends.
            let at = DATAGRAM_HEADER_LEN + 1;
            let most = datagram.min(out.len()).checked_sub(TAG_LEN)?;
            let packet_at = DATAGRAM_PACKET_HEADROOM;
            let body = out.get_mut(packet_at..most)?;
            let extra = outgoing.poll(now, body)?;
            let (whole, content, sealed) = match extra {
                Extra::Source {
                    number,
                    offload,
                    len,
                    again,
                } => {
                    let whole = packet_at + len + TAG_LEN;
                    let room = &mut out[..whole];
                    let header = DatagramPacketHeader {
                        source: number as u32,
                        checksum: checksum_of(offload),
                        kept,
                        piece: Piece::Whole,
                    };
                    let sealed = session.seal_piece(now, id, header, room).map(|()| {
                        session.count(id).outgoing.count_again(again);
                    });
                    (whole, Content::Resend { number }, sealed)
                }
                Extra::Repair { len } => {
                    out.copy_within(packet_at..packet_at + len, at);
                    let whole = at + len + TAG_LEN;
                    let sealed = session.seal_inside(now, id, InnerType::Repair, len, out);
                    let sealed = sealed.map(|_| session.count(id).outgoing.repairs += 1);
                    (whole, Content::Repair, sealed)
                }
            };
            if sealed.is_err() {
                self.drops.unsealed += 1;
                continue;
            }
            self.note_sent(session, now, index, &out[..whole], Class::Data, content);
            return Some(whole);
        }
    }

    fn poll_source(
        &mut self,
        session: &mut Session,
        now: Instant,
        index: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let lane = &self.lanes[index];
        let (id, datagram) = (lane.id, lane.datagram);
        let mtu = datagram.checked_sub(PACKET_OVERHEAD)?;
        loop {
            let room = out.get_mut(DATAGRAM_PACKET_HEADROOM..)?;
            let packet = self.queue.poll(now, mtu, room)?;
            let from = DATAGRAM_PACKET_HEADROOM;
            let most = datagram - from - TAG_LEN;
            if packet.len > 2 * most {
                // Before it has a number, which the far end would wait for.
                self.drops.too_long += 1;
                continue;
            }
            let number = session.alloc_source(packet.len);
            let checksum = packet.offload.checksum;
            self.sourced_at = now;
            self.used_at = Some(now);
            let class = match packet.class {
                queue::Class::Thin => RepairClass::Thin,
                queue::Class::Bulk => RepairClass::Bulk,
            };
            if let Some(outgoing) = outgoing(&mut self.outgoing, now, self.repair) {
                let bytes = &out[from..from + packet.len];
                outgoing.handle_source(now, number, offload_byte(checksum), bytes, class);
            }
            let mut len = packet.len;
            let mut piece = Piece::Whole;
            if packet.len > most {
                // One of another lane, which takes packets no more and is full.
                self.drop_rest(|_| true);
                let mut bytes = std::mem::take(&mut self.spare);
                bytes.extend_from_slice(&out[from + most..from + packet.len]);
                self.rest = Some((
                    id,
                    Rest {
                        number,
                        checksum,
                        bytes,
                    },
                ));
                (len, piece) = (most, Piece::First);
            }
            let whole = from + len + TAG_LEN;
            let room = &mut out[..whole];
            let header = DatagramPacketHeader {
                source: number as u32,
                checksum,
                kept: self.keeps(),
                piece,
            };
            if session.seal_piece(now, id, header, room).is_err() {
                self.drops.unsealed += 1;
                self.drop_rest(|_| piece == Piece::First);
                continue;
            }
            session.count(id).outgoing.packets += 1;
            self.note_sent(
                session,
                now,
                index,
                &out[..whole],
                Class::Data,
                Content::Source { number },
            );
            return Some(whole);
        }
    }

    fn poll_rest(
        &mut self,
        session: &mut Session,
        now: Instant,
        index: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        let id = self.lanes[index].id;
        let (_, rest) = self.rest.take_if(|(lane, _)| *lane == id)?;
        let whole = DATAGRAM_PACKET_HEADROOM + rest.bytes.len() + TAG_LEN;
        let header = DatagramPacketHeader {
            source: rest.number as u32,
            checksum: rest.checksum,
            kept: self.keeps(),
            piece: Piece::Last,
        };
        let sealed = out.get_mut(..whole).is_some_and(|room| {
            room[DATAGRAM_PACKET_HEADROOM..whole - TAG_LEN].copy_from_slice(&rest.bytes);
            session.seal_piece(now, id, header, room).is_ok()
        });
        let content = Content::Source {
            number: rest.number,
        };
        self.spare = rest.bytes;
        self.spare.clear();
        if !sealed {
            self.drops.unsealed += 1;
            return None;
        }
        self.note_sent(session, now, index, &out[..whole], Class::Data, content);
        Some(whole)
    }

    /// Drops the piece that waits, if its lane is such a one.
    fn drop_rest(&mut self, gone: impl FnOnce(LaneId) -> bool) {
        if let Some((_, rest)) = self.rest.take_if(|(lane, _)| gone(*lane)) {
            self.drops.halves += 1;
            self.spare = rest.bytes;
            self.spare.clear();
        }
    }

    fn note_sent(
        &mut self,
        session: &Session,
        now: Instant,
        index: usize,
        datagram: &[u8],
        class: Class,
        content: Content,
    ) {
        let Ok(header) = DatagramHeader::parse(datagram) else {
            return;
        };
        // What is sealed is sealed in the current epoch.
        let number = session.epoch() << 32 | u64::from(header.counter);
        let lane = &mut self.lanes[index];
        // One that is not tracked has no fate: it is neither lost nor in flight, which does no harm.
        let len = datagram.len();
        let sent = Datagram {
            len: u16::try_from(len).unwrap_or(u16::MAX),
            content,
        };
        match lane.flight.handle_sent(now, number, len, class, sent) {
            Ok(()) => {}
            Err(SentError::Unanswered { .. }) => self.drops.unanswered += 1,
            Err(SentError::Full { .. } | SentError::Scattered | SentError::Number { .. }) => {
                self.drops.untracked += 1;
            }
        }
    }
}

impl<P> std::fmt::Debug for Datapath<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("lanes", &self.lanes.len())
            .field("outgoing", &self.outgoing)
            .field("incoming", &self.incoming)
            .field("drops", &self.drops)
            .finish_non_exhaustive()
    }
}

/// The ring of what was sent, made anew after a pause; not where nothing is ever repaired.
fn outgoing(
    outgoing: &mut Option<Box<Outgoing>>,
    now: Instant,
    repair: RepairSettings,
) -> Option<&mut Outgoing> {
    if outgoing.is_none() && repair.mode != Mode::Off {
        *outgoing = Outgoing::new(now, repair).ok().map(Box::new);
    }
    outgoing.as_deref_mut()
}

/// The offload byte of a shard.
pub(super) const fn offload_byte(checksum: Checksum) -> u8 {
    match checksum {
        Checksum::Full => 0,
        Checksum::Partial => 1,
    }
}

/// What an offload byte of a shard says. Any other bit is the future's.
pub(super) const fn checksum_of(offload: u8) -> Checksum {
    match offload & 1 {
        0 => Checksum::Full,
        _ => Checksum::Partial,
    }
}

/// The offload of a packet that is no super-packet.
pub(super) const fn plain(checksum: Checksum) -> Offload {
    Offload {
        gso: Gso::None,
        checksum,
    }
}

/// How long gaps wait, by the round-trip time.
pub(super) fn gap_limits(round_trip: Duration) -> GapLimits {
    GapLimits {
        // Parity brings most of what it brings within this time; a resend asked for sooner is mostly wasted.
        ask_after: (round_trip / 4).clamp(LEAST_ASK_AFTER, Duration::from_millis(15)),
        // From the repetition of the first question: its answer has come, or was lost.
        ask_again: round_trip + Duration::from_millis(8),
        // On a longer path what goes by so fast is forgotten before any question comes.
        ask_behind: (round_trip / 4 < LEAST_ASK_AFTER).then_some(ASK_BEHIND),
        answer_after: round_trip,
        // Two and a half round trips bring the answer to the second question.
        give_up_after: hold_time(round_trip, REPAIR_SPAN),
        // Smoothed, so that a shorter one is possible.
        late_within: round_trip * 3 / 4,
    }
}

/// What a packet costs beside itself: header, tag, and what repair needs on top, so that parity over
/// the longest packet fits a datagram too.
const PACKET_OVERHEAD: usize =
    DATAGRAM_HEADER_LEN + 1 + REPAIR_HEADER_LEN + SHARD_PREFIX_LEN + TAG_LEN;

/// What a thin packet takes at most on the wire, but for large ones of DNS: [`queue::Class::Thin`].
const SMALL_DATAGRAM: usize = 640;

/// Below a few milliseconds reports, which carry the questions, would cost more than they bring.
const LEAST_ASK_AFTER: Duration = Duration::from_millis(4);

/// The far end keeps [`RING`] packets: with as many again for the question's way, this leaves two more chances.
const ASK_BEHIND: u64 = RING as u64 / 4;

/// A guess until there is a measurement: half the world away.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(100);

/// Within what time the packets that one repair covers are sent, about.
const REPAIR_SPAN: Duration = Duration::from_millis(30);

/// After how long without a packet to send the ring of those sent is given back.
pub const IDLE: Duration = Duration::from_secs(20);
