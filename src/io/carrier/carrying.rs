//! The session with its lanes, as a driver sees them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::Offload;
use tracing::debug;

use super::datagram::{Datagrams, Room};
use super::deliver::{Deliver, Packets};
use super::event::{CarrierEvent, CarrierStats, LaneLoss};
use super::several::Several;
use super::sink::{LaneSink, Room as SinkRoom};
use super::stream::{CarriedStream, QUIET};
use super::waiting::Waiting;
use crate::io::lane::{LaneStream, ReadMemory, StreamLane};
use crate::io::pool::{Buffer, Pool};
use crate::io::udp::{Inbox, Receiver};
use crate::proto::datapath::{DatapathStats, LaneCounts, Orphan, Spending};
use crate::proto::relayed::Relayed;
use crate::proto::spread::{Spread, SpreadStats};
use crate::proto::{Again, DatagramPath, LaneStats, PacketMeta, Session, SessionEvent, Traffic};
use crate::status::Tally;
use crate::wire::{LaneId, PACKET_HEADROOM, SEALED_HEADER_LEN, TAILROOM};

/// A session and the lanes that carry it.
#[derive(Debug)]
pub struct Carrier {
    session: Session,
    streams: Vec<CarriedStream>,
    /// For frames that arrive on them.
    memory: ReadMemory,
    datagrams: Datagrams,
    /// Packets of others that wait for stream lanes.
    waiting: Waiting,
    /// Which of the lanes side by side a packet takes; there while there are any.
    spread: Option<Box<Spread>>,
    /// Of what is copied.
    scratch: Vec<u8>,
    events: VecDeque<CarrierEvent>,
    control: Vec<u8>,
    /// Until when a session that has closed may keep its lanes for its last word.
    last_word: Option<Instant>,
    stats: CarrierStats,
    /// When it was last told that the network says a lane does not arrive.
    doubted: Option<Instant>,
    /// What the log was last told that the lanes carried, and when it is told again.
    logged: Traffic,
    log_at: Option<Instant>,
    /// What the sessions before this one have carried and counted.
    past: Box<Tally>,
}

impl Carrier {
    /// Carries `session` over `lane`, the one its handshake was made on.
    pub fn new(session: Session, id: LaneId, lane: StreamLane) -> Self {
        let mut carrier = Self::without_lanes(session, lane.pool().clone());
        let stream = CarriedStream::new(id, lane, false, &carrier.memory);
        carrier.streams.push(stream);
        carrier
    }

    /// Carries `session` over the datagrams that its handshake was made on; they are read from
    /// `receiver`, or left in the inbox where that is `None`: see [`Carrier::set_inbox`].
    pub fn over_datagrams(
        session: Session,
        id: LaneId,
        receiver: Option<Receiver>,
        pool: Arc<Pool>,
    ) -> Self {
        let mut carrier = Self::without_lanes(session, pool);
        carrier.datagrams.lanes.push(id);
        if let Some(receiver) = receiver {
            carrier.datagrams.read_from(receiver);
        }
        carrier
    }

    /// Takes datagrams for this session, joins among them, from `inbox` from now on.
    pub fn set_inbox(&mut self, inbox: Arc<Inbox>) {
        self.datagrams.set_inbox(inbox);
    }

    /// Adds a stream lane that the session knows already; returns false at [`MAX_LANES`].
    ///
    /// `after_join` tells that a handshake frame which followed the join in one flight is
    /// to be skipped.
    pub fn add_lane(&mut self, id: LaneId, lane: StreamLane, after_join: bool) -> bool {
        if self.lanes() >= MAX_LANES {
            return false;
        }
        let stream = CarriedStream::new(id, lane, after_join, &self.memory);
        self.streams.push(stream);
        true
    }

    /// Client: begins to join a datagram lane by `path`, read from `receiver`. What becomes of
    /// it is told by events; `None` when there can be no further lane.
    pub fn join_datagrams(
        &mut self,
        now: Instant,
        receiver: Receiver,
        path: DatagramPath,
    ) -> Option<LaneId> {
        if self.lanes() >= MAX_LANES {
            return None;
        }
        let lane = self.session.join_datagram(now, path)?;
        self.datagrams.read_from(receiver);
        self.datagrams.lanes.push(lane);
        Some(lane)
    }

    /// Returns the session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Returns the session for a change of its state.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Returns the number of lanes.
    pub fn lanes(&self) -> usize {
        self.streams.len() + self.datagrams.lanes.len()
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &CarrierStats {
        &self.stats
    }

    /// Returns what a datagram lane counted and thinks.
    pub fn lane_counts(&self, lane: LaneId) -> Option<LaneCounts> {
        self.datagrams.lane_counts(lane)
    }

    /// Returns what is spent on repair on the datagram lanes; `None` if there was never one.
    pub fn spending(&self) -> Option<Spending> {
        self.datagrams.spending()
    }

    /// Returns what queue and repair of the datagram lanes have counted.
    pub fn datapath_stats(&self) -> DatapathStats {
        self.datagrams.stats()
    }

    /// Returns what was counted of lanes side by side, since there were some.
    pub fn spread_stats(&self) -> SpreadStats {
        let spread = self.spread.as_deref();
        spread.map_or_else(SpreadStats::default, Spread::stats)
    }

    /// Returns what waits for stream lanes.
    pub(super) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Returns what the sessions before this one have carried and counted.
    pub(super) fn past(&self) -> &Tally {
        &self.past
    }

    /// Returns the connection of a stream lane.
    pub(super) fn stream_of(&self, id: LaneId) -> Option<&LaneStream> {
        let lane = self.streams.iter().find(|lane| lane.id == id)?;
        Some(lane.io.stream())
    }

    /// Tells the log what was counted, as when the session ends.
    pub fn log_counters(&self) {
        debug!(
            session = ?self.session.stats(),
            traffic = ?self.session.traffic(),
            datapath = ?self.datapath_stats(),
            carrier = ?self.stats(),
            waiting = ?self.waiting.stats(),
            expired = self.waiting.expired(),
            beside = ?self.spread_stats(),
            "counters"
        );
    }

    /// Replaces the session and its lanes by those of `fresh`, of the same client; the carrier's counters go
    /// on.
    pub fn replace(&mut self, fresh: Self) {
        self.log_counters();
        let mut past = std::mem::take(&mut self.past);
        past.add_ended(&self.tally_of_session());
        *self = Self {
            stats: self.stats,
            past,
            ..fresh
        };
    }

    /// Drops a lane without a word: its connection closes.
    pub fn remove_lane(&mut self, now: Instant, id: LaneId, cause: LaneLoss) {
        if self.has_lane(id) {
            self.lose(now, id, cause);
        } else {
            // One that was still to join.
            self.session.remove_lane(now, id);
        }
    }

    /// Reads every lane once and hands each opened packet to `deliver`, which gets the whole
    /// frame and where in it the packet stands; returns whether anything came in.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        deliver: impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> bool {
        self.poll_deliver(cx, now, &mut Packets(deliver))
    }

    /// The same where flows are relayed, too.
    pub fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        deliver: &mut impl Deliver,
    ) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.streams.len() {
            let lane = &mut self.streams[at];
            let id = lane.id;
            let mut arrived = std::mem::take(&mut lane.unread);
            let ended = match lane.io.poll_read(cx) {
                // Nothing is left to be read of a lane that cannot be written to.
                Poll::Pending => lane.broken.take().map(LaneLoss::from),
                Poll::Ready(Ok(0)) => Some(LaneLoss::Closed),
                Poll::Ready(Ok(_)) => {
                    arrived = true;
                    lane.quiet_at.get_or_insert(now + QUIET);
                    None
                }
                Poll::Ready(Err(error)) => Some(LaneLoss::from(error)),
            };
            // What arrived before the end still counts, a goodbye above all.
            let lost = if arrived {
                any = true;
                let received = lane.receive(
                    &mut self.session,
                    &mut self.datagrams,
                    now,
                    &mut self.stats,
                    deliver,
                );
                received.err().or(ended)
            } else {
                ended
            };
            let starved = self.streams[at].handle_read(now);
            self.stats.starved += u64::from(starved);
            match lost {
                Some(cause) => {
                    any = true;
                    self.lose(now, id, cause);
                }
                None => at += 1,
            }
        }
        let (session, stats) = (&mut self.session, &mut self.stats);
        any | self
            .datagrams
            .poll_receive(cx, now, session, stats, &mut |frame, range, offload| {
                deliver.packet(frame, range, offload);
            })
    }

    /// Writes what relayed flows have to say to the stream lane that takes packets, as long as it has room; returns
    /// whether they had anything.
    pub fn poll_flows(&mut self, now: Instant, flows: &mut Relayed) -> bool {
        let Some(id) = self.session.lane_for(now, PacketMeta::default()) else {
            return false;
        };
        let session = &mut self.session;
        let mut streams = self.streams.iter_mut();
        let Some(lane) = streams.find(|lane| lane.id == id && lane.broken.is_none()) else {
            return false;
        };
        flows.set_lane(id);
        flows.poll_transmit(|head, bytes| {
            let whole = SEALED_HEADER_LEN + head.len() + bytes.len() + TAILROOM;
            let sealed = lane.io.reserve(whole).is_some_and(|room| {
                let sealed = session.seal_flow(now, id, head, bytes, room);
                sealed.is_ok()
            });
            if sealed {
                lane.io.commit(whole);
            }
            sealed
        })
    }

    /// Lends room for packets on the lane that the session's scheduler names.
    pub fn sink(&mut self, now: Instant) -> LaneSink<'_> {
        let lane = self.session.lane_for(now, PacketMeta::default());
        if lane.is_some() && self.follow_spread(now) {
            let several = self.spread.as_deref_mut().map(|spread| {
                let several = Several::new(spread, &mut self.streams, &mut self.scratch);
                SinkRoom::Several(several)
            });
            return LaneSink {
                session: &mut self.session,
                room: several.unwrap_or(SinkRoom::None),
                stats: &mut self.stats,
                now,
            };
        }
        let room = match lane {
            Some(id) if self.datagrams.lanes.contains(&id) => {
                SinkRoom::Datagrams(&mut self.datagrams)
            }
            Some(id) => self
                .streams
                .iter_mut()
                .find(|lane| lane.id == id && lane.broken.is_none())
                .map_or(SinkRoom::None, SinkRoom::Stream),
            None => SinkRoom::None,
        };
        LaneSink {
            session: &mut self.session,
            room,
            stats: &mut self.stats,
            now,
        }
    }

    /// Returns whether packets of others are taken: as long as there is a lane. What it has no room for waits, at the cost
    /// of the flow that has most waiting.
    pub fn takes_packets(&mut self, now: Instant) -> bool {
        match self.session.lane_for(now, PacketMeta::default()) {
            Some(id) if self.datagrams.lanes.contains(&id) => self.datagrams.takes_packets(),
            Some(id) => {
                let lane = self.streams.iter().find(|lane| lane.id == id);
                lane.is_some_and(|lane| lane.broken.is_none())
            }
            None => false,
        }
    }

    /// Queues the packet in `buffer` (headroom, packet, tailroom); call only if [`Carrier::takes_packets`]. A packet that
    /// cannot be sealed is dropped and counted.
    pub fn push(&mut self, now: Instant, buffer: Buffer, offload: Offload) {
        let lane = self.session.lane_for(now, PacketMeta::default());
        let by_datagrams = lane.is_some_and(|id| self.datagrams.lanes.contains(&id));
        // What waits for datagram lanes that a stream has taken over from comes first.
        let is_first = self.waiting.is_empty() && (by_datagrams || self.datagrams.is_queue_empty());
        if is_first && self.has_room(now) {
            self.send(now, buffer, offload);
        } else {
            let rtt = lane.and_then(|id| self.session.rtt(id));
            self.waiting.push(now, buffer, offload, rtt);
        }
    }

    /// Sends one of the packets that wait, if the lanes have room: before our own stack, which may fill them in every turn.
    pub fn send_first(&mut self, now: Instant) -> bool {
        if self.waiting.is_empty() || !self.has_room(now) {
            return false;
        }
        let next = self.waiting.next(now, self.datagrams.pool());
        let any = next.is_some();
        if let Some((buffer, offload)) = next {
            self.send(now, buffer, offload);
        }
        any
    }

    /// Returns whether the scheduled lane, or one of several, has room for another packet.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
        let lane = self.session.lane_for(now, PacketMeta::default());
        if lane.is_some() && self.follow_spread(now) {
            let spread = self.spread.as_deref();
            return spread.is_some_and(|spread| spread.room(now, MAX_PACKET).is_some());
        }
        match lane {
            // It makes room itself, at the cost of the flow that has most in it.
            Some(id) if self.datagrams.lanes.contains(&id) => self.datagrams.takes_packets(),
            Some(id) => {
                let lane = self.streams.iter().find(|lane| lane.id == id);
                lane.is_some_and(|lane| lane.broken.is_none() && lane.io.writable_room())
            }
            None => false,
        }
    }

    /// Gives the packet to the lane that has room for it.
    fn send(&mut self, now: Instant, mut buffer: Buffer, offload: Offload) {
        let id = self.session.lane_for(now, PacketMeta::default());
        if id.is_some()
            && self.follow_spread(now)
            && let Some(spread) = self.spread.as_deref_mut()
        {
            let mut several = Several::new(spread, &mut self.streams, &mut self.scratch);
            if !several.push(now, &mut self.session, &mut self.stats, buffer, offload) {
                self.stats.unsealed += 1;
            }
            return;
        }
        let taken = match id {
            Some(id) if self.datagrams.lanes.contains(&id) => {
                self.datagrams.push(now, buffer, offload)
            }
            Some(id) => match self.streams.iter_mut().find(|lane| lane.id == id) {
                Some(lane) => {
                    let sealed = self.session.seal_packet(now, id, &mut buffer, offload);
                    // Full after all: a frame that was sealed and is not sent leaves a gap in the
                    // counters, no more.
                    sealed.is_ok() && lane.io.push(buffer).is_ok()
                }
                None => false,
            },
            None => false,
        };
        if !taken {
            self.stats.unsealed += 1;
        }
    }

    /// Lets the session speak, and writes what is queued; returns whether a lane broke, or
    /// has room again that it had not before: nothing else will wake those who wait for it.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let had_room = self.rooms(now);
        self.log_lanes(now);
        self.speak(cx, now);
        self.hand_over(now);
        while self.send_first(now) {}
        self.datagrams.poll_flush(cx, now, &mut self.session);
        let mut lost = false;
        let closed = self.session.closed();
        for lane in &mut self.streams {
            if let Poll::Ready(Err(error)) = lane.poll_write(cx, closed.is_some()) {
                lost = true;
                lane.broken = Some(error);
            }
        }
        if let Some(reason) = closed {
            let until = *self.last_word.get_or_insert(now + LAST_WORD);
            // Nobody answers a last datagram: it is said a few times, and that is all.
            if self.session.poll_timeout().is_none() || now >= until {
                while let Some(id) = self.datagrams.lanes.last().copied() {
                    lost = true;
                    self.lose(now, id, LaneLoss::SessionClosed(reason));
                }
            }
            while now >= until
                && let Some(id) = self.streams.last().map(|lane| lane.id)
            {
                lost = true;
                self.lose(now, id, LaneLoss::SessionClosed(reason));
            }
        }
        if let Some((lanes, feedback)) = self.datagrams.take_feedback(&mut self.session) {
            // Who is told asks whether it is true, and the network says it again.
            if self.doubted.is_none_or(|at| now >= at + DOUBTS_APART) {
                self.doubted = Some(now);
                let doubts = lanes.map(|lane| CarrierEvent::LaneDoubtful { lane, feedback });
                self.events.extend(doubts);
                lost = true;
            }
        }
        let more = !self.waiting.is_empty() && self.has_room(now);
        lost || more || self.rooms(now) & !had_room != 0
    }

    /// Returns when [`Carrier::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.streams.iter();
        let lanes = streams.filter_map(CarriedStream::poll_timeout).min();
        let over = self.session.closed().is_some() && self.lanes() == 0;
        let datagrams = self.datagrams.poll_timeout().filter(|_| !over);
        let last_word = self.last_word.filter(|_| !over);
        let spread = self.spread.as_deref().filter(|_| !over);
        let stall = spread.and_then(Spread::poll_timeout);
        [
            self.session.poll_timeout(),
            lanes,
            datagrams,
            self.waiting.poll_timeout().filter(|_| !over),
            last_word,
            stall,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due by `now`: the session's timers, and giving back what quiet lanes hold.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        for lane in &mut self.streams {
            lane.handle_timeout(now);
        }
        while let Some(lane) = self.streams.iter_mut().find_map(|lane| {
            let overdue = lane.is_overdue(now);
            overdue.then_some(lane.id)
        }) {
            self.stats.parts_given_up += 1;
            self.lose(now, lane, LaneLoss::PartHeld);
        }
        self.datagrams.handle_timeout(now);
        let has_lane = self.lanes() > 0;
        self.waiting.handle_timeout(now, has_lane);
        if let Some(spread) = self.spread.as_deref_mut() {
            spread.handle_timeout(now);
        }
    }

    /// Returns the next thing that became of the session or a lane.
    pub fn poll_event(&mut self, now: Instant) -> Option<CarrierEvent> {
        while let Some(event) = self.session.poll_event() {
            if let SessionEvent::LaneDead(id) = event {
                self.remove_lane(now, id, LaneLoss::Silent);
            } else {
                // Before the lanes that it costs.
                return Some(CarrierEvent::Session(event));
            }
        }
        self.events.pop_front()
    }

    fn without_lanes(session: Session, pool: Arc<Pool>) -> Self {
        Self {
            session,
            streams: Vec::with_capacity(1),
            memory: ReadMemory::of(pool.reads()),
            datagrams: Datagrams::new(pool),
            waiting: Waiting::default(),
            spread: None,
            scratch: Vec::new(),
            events: VecDeque::new(),
            control: Vec::new(),
            last_word: None,
            stats: CarrierStats::default(),
            doubted: None,
            logged: Traffic::default(),
            log_at: None,
            past: Box::default(),
        }
    }

    /// Tells the log, each [`LOG_EVERY`], of the lanes that carried anything. Nothing wakes for it: an idle
    /// session has nothing to tell.
    fn log_lanes(&mut self, now: Instant) {
        if now < *self.log_at.get_or_insert(now + LOG_EVERY) {
            return;
        }
        self.log_at = Some(now + LOG_EVERY);
        let traffic = self.session.traffic();
        for lane in traffic.busy_since(&self.logged) {
            self.log_lane(lane.id, &lane.stats);
        }
        self.logged = traffic;
    }

    fn log_lane(&self, id: LaneId, traffic: &LaneStats) {
        match self.datagrams.lane_counts(id) {
            Some(path) => {
                let mtu = self.session.mtu_stats(id);
                let datagram = self.session.max_datagram(id);
                debug!(lane = %id, ?traffic, ?path, ?mtu, ?datagram, "counters of a lane");
            }
            None => debug!(lane = %id, ?traffic, "counters of a lane"),
        }
    }

    /// Writes what the session has to say beside packets.
    fn speak(&mut self, cx: &mut Context<'_>, now: Instant) {
        self.control.clear();
        while let Some(id) = self.session.poll_control(now, &mut self.control) {
            let taken = match self.session.datagram_path(id) {
                Some(path) => {
                    let session = &self.session;
                    self.datagrams
                        .handle_control_sent(now, session, id, &self.control);
                    self.datagrams.send(cx, path, &self.control)
                }
                None => self
                    .streams
                    .iter_mut()
                    .find(|lane| lane.id == id)
                    .is_some_and(|lane| lane.io.push_control(&self.control)),
            };
            if !taken {
                self.stats.control_lost += 1;
            }
            self.control.clear();
        }
        while let Some((_, path)) = self.session.poll_probe(now, &mut self.control) {
            if !self.datagrams.send(cx, path, &self.control) {
                self.stats.control_lost += 1;
            }
        }
    }

    /// Moves what waits for datagram lanes to a stream lane that has taken their place.
    fn hand_over(&mut self, now: Instant) {
        let Some(id) = self.session.lane_for(now, PacketMeta::default()) else {
            return;
        };
        let Self {
            session,
            streams,
            datagrams,
            stats,
            ..
        } = self;
        let Some(lane) = streams
            .iter_mut()
            .find(|lane| lane.id == id && lane.broken.is_none())
        else {
            return;
        };
        datagrams.give_up_silent(session);
        datagrams.rescue(|orphan| {
            let Some(Orphan {
                number,
                offload,
                packet,
            }) = orphan
            else {
                return if lane.io.writable_room() {
                    Room::Left
                } else {
                    Room::Full
                };
            };
            let whole = PACKET_HEADROOM + packet.len() + TAILROOM;
            let sealed = lane.io.reserve(whole).is_some_and(|room| {
                room[PACKET_HEADROOM..PACKET_HEADROOM + packet.len()].copy_from_slice(packet);
                session
                    .seal_again(now, id, number, &mut room[..whole], offload, Again::Resend)
                    .is_ok()
            });
            if sealed {
                lane.io.commit(whole);
            } else {
                stats.unsealed += 1;
            }
            Room::Left
        });
        datagrams.drain(now, |packet, offload| {
            if packet.is_empty() {
                return if lane.io.writable_room() {
                    Room::Left
                } else {
                    Room::Full
                };
            }
            let whole = PACKET_HEADROOM + packet.len() + TAILROOM;
            let sealed = lane.io.reserve(whole).is_some_and(|room| {
                room[PACKET_HEADROOM..PACKET_HEADROOM + packet.len()].copy_from_slice(packet);
                session
                    .seal_packet(now, id, &mut room[..whole], offload)
                    .is_ok()
            });
            if sealed {
                lane.io.commit(whole);
            } else {
                stats.unsealed += 1;
            }
            Room::Left
        });
    }

    /// Tells the lanes side by side how they stand; returns whether there are any.
    fn follow_spread(&mut self, now: Instant) -> bool {
        let beside = self.session.beside();
        if beside.is_empty() {
            if let Some(spread) = self.spread.take() {
                debug!(counts = ?spread.stats(), "counters of lanes side by side");
            }
            return false;
        }
        let spread = self
            .spread
            .get_or_insert_with(|| Box::new(Spread::new(now, rand::random())));
        let streams = self.streams.iter();
        let members = streams.filter(|lane| lane.broken.is_none() && beside.contains(&lane.id));
        spread.handle_lanes(now, members.map(CarriedStream::view));
        true
    }

    /// Which lanes have room, as bits: the scheduled one, or each of several.
    pub(super) fn rooms(&mut self, now: Instant) -> u32 {
        let any = u32::from(self.has_room(now));
        let Some(spread) = self.spread.as_deref() else {
            return any;
        };
        let lanes = (1..u32::BITS).zip(spread.rooms());
        any | lanes.fold(0, |bits, (at, room)| bits | u32::from(room) << at)
    }

    fn has_lane(&self, id: LaneId) -> bool {
        self.datagrams.lanes.contains(&id) || self.streams.iter().any(|lane| lane.id == id)
    }

    fn lose(&mut self, now: Instant, id: LaneId, cause: LaneLoss) {
        if let Some(traffic) = self.session.lane_stats(id)
            // One that was never confirmed has carried nothing.
            && *traffic != LaneStats::default()
        {
            self.log_lane(id, traffic);
        }
        self.streams.retain(|lane| lane.id != id);
        self.datagrams.lanes.retain(|lane| *lane != id);
        self.session.remove_lane(now, id);
        self.datagrams.release(&self.session);
        self.stats.lanes_lost += 1;
        self.events.push_back(CarrierEvent::LaneLost {
            lane: id,
            cause,
            left: self.lanes(),
        });
    }
}

/// How long a session that has closed keeps its lanes if the far end does not read.
pub(super) const LAST_WORD: Duration = Duration::from_secs(1);

/// How far doubts are apart that are told: one is enough to look whether the lane lives.
const DOUBTS_APART: Duration = Duration::from_secs(1);

/// How often the log is told what busy lanes carry: a bad minute of a link shows when it began and when it was over,
/// and a thousand busy sessions of a server are a hundred lines a second.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The most lanes that carry one session at once: as many as the session has, so that neither refuses what the other
/// took.
pub const MAX_LANES: usize = crate::proto::MAX_LANES;

/// What a lane has to have room for: the longest packet there is.
const MAX_PACKET: usize = u16::MAX as usize;
