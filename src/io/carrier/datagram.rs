//! The datagram lanes of a session: the sockets they use, what arrives, and what leaves.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use adit_fec::Settings as RepairSettings;
use adit_netstack::{Join, Offload, mark_congestion};

use super::event::CarrierStats;
use super::stream::QUIET;
use super::waiting::Queued;
use crate::io::pool::{Buffer, Pool};
use crate::io::udp::{EcnCodepoint, Feedback, Inbox, Receiver, SendBatch, Sender, Target, UdpIo};
use crate::proto::datapath::{
    DELIVERY_HEADROOM, Datapath, DatapathStats, LaneCounts, Orphan, Received, Spending,
};
use crate::proto::{DatagramPath, PacketMeta, Producer, QueuePacket, Session};
use crate::wire::{DEFAULT_MTU, DatagramType, LaneId, PACKET_HEADROOM, TAILROOM, datagram_type};

/// The datagram lanes of a session.
#[derive(Debug)]
pub(super) struct Datagrams {
    pool: Arc<Pool>,
    /// Lanes that the session knows, joining ones included.
    pub(super) lanes: Vec<LaneId>,
    ports: Vec<Port>,
    inbox: Option<Arc<Inbox>>,
    /// Queue, repair and pace of the lanes; there from the first lane on.
    datapath: Option<Box<Datapath<Queued>>>,
    /// Puts what arrives in one turn together again as the sender had it; empty between the turns.
    join: Option<Join>,
    /// When that was last of use; `None` while it holds no memory.
    joined: Option<Instant>,
    /// Lent to a netstack that has not committed yet.
    lent: Option<Buffer>,
    /// What the network said, and of which socket.
    feedback: Option<(u32, Feedback)>,
}

/// A socket and what leaves by it.
#[derive(Debug)]
struct Port {
    sender: Sender,
    batch: SendBatch,
    /// Where nobody else reads the socket.
    receiver: Option<Receiver>,
    /// When the receiver was last of use; `None` while it holds no buffers.
    used: Option<Instant>,
}

/// Whether a lane takes another packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It does.
    Left,
    /// Not now.
    Full,
}

/// What a datagram that arrived has done.
enum Taken {
    Nothing,
    /// A lane has joined.
    Joined(LaneId),
}

impl Datagrams {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            lanes: Vec::new(),
            ports: Vec::new(),
            inbox: None,
            datapath: None,
            join: None,
            joined: None,
            lent: None,
            feedback: None,
        }
    }

    /// Returns whether nothing waits for datagram lanes.
    pub(super) fn is_queue_empty(&self) -> bool {
        (self.datapath.as_deref()).is_none_or(|datapath| datapath.queue().is_empty())
    }

    /// Returns what lends buffers.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Takes what another task has read for this session from now on.
    pub(super) fn set_inbox(&mut self, inbox: Arc<Inbox>) {
        self.inbox = Some(inbox);
    }

    /// Has a socket that is read here.
    pub(super) fn read_from(&mut self, receiver: Receiver) {
        let io = receiver.io().clone();
        let port = self.port(&io);
        port.receiver = Some(receiver);
    }

    /// Forgets the sockets that no lane uses.
    pub(super) fn release(&mut self, session: &Session) {
        let lanes = &self.lanes;
        self.ports.retain(|port| {
            let id = port.sender.io().id();
            lanes
                .iter()
                .filter_map(|lane| session.datagram_path(*lane))
                .any(|path| path.socket == id)
        });
    }

    // ---- what arrives ------------------------------------------------------------------

    /// Reads each socket once and takes what is in the inbox; returns whether anything came.
    pub(super) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> bool {
        let mut join = self
            .join
            .take()
            .unwrap_or_else(|| Join::new(DELIVERY_HEADROOM));
        let before = join.stats();
        let any = self.poll_arrivals(cx, now, session, stats, &mut |frame, range, offload| {
            join.push(frame, range, offload, deliver);
        });
        join.flush(deliver);
        if join.stats().packets > before.packets {
            self.joined = Some(now);
        }
        stats.joined += join.stats().joined - before.joined;
        stats.super_packets += join.stats().super_packets - before.super_packets;
        self.join = Some(join);
        any
    }

    fn poll_arrivals(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> bool {
        let mut any = self.settle(now, session, deliver);
        for port in &mut self.ports {
            let Some(receiver) = port.receiver.as_mut() else {
                continue;
            };
            let socket = receiver.io().id();
            match receiver.poll_recv(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(feedback)) => {
                    any = true;
                    self.feedback = Some((socket, feedback));
                }
                Poll::Ready(Ok(())) => {
                    any = true;
                    port.used = Some(now);
                    while let Some(datagram) = receiver.next_datagram() {
                        // Our own address may change; the far end is who it is.
                        let path = DatagramPath {
                            remote: datagram.from,
                            local: None,
                            socket,
                        };
                        let arrived = Arrived {
                            path,
                            ecn_ce: datagram.ecn == Some(EcnCodepoint::Ce),
                            bytes: datagram.bytes,
                        };
                        let datapath = self.datapath.as_deref_mut();
                        take(now, session, datapath, arrived, stats, deliver);
                    }
                }
            }
        }
        any | self.poll_inbox(cx, now, session, stats, deliver)
    }

    fn poll_inbox(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> bool {
        let Some(inbox) = self.inbox.clone() else {
            return false;
        };
        for taken in 0..ARRIVALS_PER_TURN {
            let Poll::Ready(mut arrival) = inbox.poll_pop(cx) else {
                return taken > 0;
            };
            self.port(&arrival.io);
            let path = DatagramPath {
                remote: arrival.from,
                local: arrival.to,
                socket: arrival.io.id(),
            };
            for datagram in arrival.datagrams() {
                let arrived = Arrived {
                    path,
                    ecn_ce: datagram.ecn == Some(EcnCodepoint::Ce),
                    bytes: datagram.bytes,
                };
                // There is none before the first lane, which a join may bring.
                let datapath = self.datapath.as_deref_mut();
                let taken = take(now, session, datapath, arrived, stats, deliver);
                if let Taken::Joined(lane) = taken
                    && !self.lanes.contains(&lane)
                {
                    tracing::info!(%lane, "datagram lane joined");
                    self.lanes.push(lane);
                }
            }
        }
        true
    }

    // ---- what leaves -------------------------------------------------------------------

    /// Returns whether our own stack may add a packet: it waits where others are dropped from.
    pub(super) fn has_room(&self) -> bool {
        self.datapath
            .as_ref()
            .is_some_and(|datapath| datapath.room() > 0)
    }

    /// Returns whether packets of others are taken: always, once there is a queue.
    pub(super) fn takes_packets(&self) -> bool {
        self.datapath.is_some()
    }

    /// Lends room for a packet.
    pub(super) fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if !self.has_room() {
            return None;
        }
        if self.lent.as_ref().is_none_or(|lent| lent.capacity() < len) {
            self.lent = Some(self.pool.sized(len));
        }
        let lent = self.lent.as_mut()?;
        lent.reset();
        lent.get_mut(..len)
    }

    /// Queues the packet in the room last lent; returns whether it is one.
    pub(super) fn commit(&mut self, now: Instant, len: usize, offload: Offload) -> bool {
        match self.lent.take() {
            Some(buffer) => self.enqueue(now, buffer, 0..len, offload, Producer::Stack),
            None => false,
        }
    }

    /// Queues the packet in a buffer with the head- and tailroom of a stream lane's frame;
    /// returns whether it waits: a full queue drops from the flow that has most in it.
    pub(super) fn push(&mut self, now: Instant, buffer: Buffer, offload: Offload) -> bool {
        let end = buffer.len().saturating_sub(TAILROOM);
        self.enqueue(now, buffer, PACKET_HEADROOM..end, offload, Producer::Other)
    }

    fn enqueue(
        &mut self,
        now: Instant,
        buffer: Buffer,
        packet: Range<usize>,
        offload: Offload,
        producer: Producer,
    ) -> bool {
        let queued = Queued {
            buffer,
            packet,
            offload,
        };
        self.datapath
            .as_deref_mut()
            .is_some_and(|datapath| datapath.enqueue(now, queued, producer))
    }

    /// Does what is due, and hands on packets that were held for too long; returns whether anything was.
    fn settle(
        &mut self,
        now: Instant,
        session: &mut Session,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> bool {
        if self.datapath.is_none() && !self.lanes.is_empty() {
            // The last number there is has none after it; who sends it harms itself.
            let highest = session.highest_source();
            let next = highest.map_or(0, |highest| highest.saturating_add(1));
            let repair = RepairSettings {
                mode: session.settings().repair,
                ..RepairSettings::default()
            };
            self.datapath = Some(Box::new(Datapath::new(now, rand::random(), next, repair)));
        }
        let Some(datapath) = self.datapath.as_deref_mut() else {
            return false;
        };
        datapath.follow_lanes(session, now);
        let due = datapath.poll_timeout().is_some_and(|due| due <= now);
        if due {
            datapath.handle_timeout(session, now, deliver);
        }
        due
    }

    /// Takes a packet that came over a stream lane, for which others may be held.
    pub(super) fn take_packet(
        &mut self,
        now: Instant,
        session: &mut Session,
        packet: Received<'_>,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) {
        match self.datapath.as_deref_mut() {
            Some(datapath) => datapath.take(session, now, packet, deliver),
            None => deliver(packet.frame, packet.range, packet.offload),
        }
    }

    /// Takes note of a control frame that leaves on a lane.
    pub(super) fn handle_control_sent(
        &mut self,
        now: Instant,
        session: &Session,
        lane: LaneId,
        datagram: &[u8],
    ) {
        if let Some(datapath) = self.datapath.as_deref_mut() {
            datapath.handle_control_sent(session, now, lane, datagram);
        }
    }

    /// Gives up what flies on lanes that nobody answers on.
    pub(super) fn give_up_silent(&mut self, session: &mut Session) {
        if let Some(datapath) = self.datapath.as_deref_mut() {
            for lane in &self.lanes {
                if session.is_silent(*lane) {
                    session.count(*lane).outgoing.lost += datapath.abandon(*lane);
                }
            }
        }
    }

    /// Hands each packet of what was given up, if it is still held, to `write`, while that answers that
    /// there is room.
    pub(super) fn rescue(&mut self, mut write: impl FnMut(Option<Orphan<'_>>) -> Room) {
        let Some(datapath) = self.datapath.as_deref_mut() else {
            return;
        };
        while write(None) == Room::Left {
            let Some(orphan) = datapath.take_orphan() else {
                return;
            };
            write(Some(orphan));
        }
    }

    /// Writes what waits in the queue to `write`, packet by packet, until it has no more room: for a
    /// lane of another kind, which has taken over. It is lent each packet and what the packet owes,
    /// and answers whether it took it.
    pub(super) fn drain(&mut self, now: Instant, mut write: impl FnMut(&[u8], Offload) -> Room) {
        let Some(datapath) = self.datapath.as_deref_mut() else {
            return;
        };
        while !datapath.queue_mut().is_empty() {
            if write(&[], Offload::default()) == Room::Full {
                return;
            }
            let Some(mut taken) = datapath.queue_mut().take(now) else {
                return;
            };
            if !taken.cut.is_started() && !taken.mark {
                write(taken.packet.bytes(), taken.packet.offload());
                continue;
            }
            if taken.mark
                && let Some(bytes) = taken.packet.buffer.get_mut(taken.packet.packet.clone())
            {
                mark_congestion(bytes);
            }
            let mut piece = [0; ROOM];
            while let Some((len, offload)) =
                taken
                    .cut
                    .next(taken.packet.bytes(), usize::from(DEFAULT_MTU), &mut piece)
            {
                write(piece.get(..len).unwrap_or_default(), offload);
            }
        }
    }

    /// What queue and repair have counted; nothing if there was never a lane.
    pub(super) fn stats(&self) -> DatapathStats {
        self.datapath
            .as_ref()
            .map_or_else(DatapathStats::default, |datapath| datapath.stats())
    }

    /// What is spent on repair; `None` if there was never a lane.
    pub(super) fn spending(&self) -> Option<Spending> {
        Some(self.datapath.as_ref()?.spending())
    }

    /// What a lane has counted.
    pub(super) fn lane_counts(&self, lane: LaneId) -> Option<LaneCounts> {
        self.datapath.as_ref()?.lane_counts(lane)
    }

    /// Queues one whole datagram; returns whether there was room.
    pub(super) fn send(&mut self, cx: &mut Context<'_>, path: DatagramPath, bytes: &[u8]) -> bool {
        let Some(port) = self.port_of(path) else {
            return false;
        };
        if port.batch.reserve(bytes.len()).is_none()
            && port.sender.poll_flush(cx, &mut port.batch).is_pending()
        {
            return false;
        }
        let Some(room) = port.batch.reserve(bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        port.batch.commit(bytes.len(), target(path));
        true
    }

    /// Cuts and seals what is staged, and sends until nothing is left or the sockets are full.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, now: Instant, session: &mut Session) {
        loop {
            let filled = self.fill(now, session);
            let mut full = false;
            for port in &mut self.ports {
                full |= port.sender.poll_flush(cx, &mut port.batch).is_pending();
                if let Some(feedback) = port.sender.take_feedback() {
                    self.feedback = Some((port.sender.io().id(), feedback));
                }
            }
            if filled || full {
                return;
            }
        }
    }

    /// Takes what the network said last, and which lanes it concerns.
    pub(super) fn take_feedback(
        &mut self,
        session: &mut Session,
    ) -> Option<(impl Iterator<Item = LaneId>, Feedback)> {
        let (socket, feedback) = self.feedback.take()?;
        let concerned: Vec<LaneId> = self
            .lanes
            .iter()
            .copied()
            .filter(|lane| {
                let path = session.datagram_path(*lane);
                path.is_some_and(|path| path.socket == socket)
            })
            .collect();
        if let Feedback::TooBig { mtu: Some(mtu) } = feedback {
            for lane in &concerned {
                session.handle_too_big(*lane, mtu.saturating_sub(IP_UDP));
            }
        }
        Some((concerned.into_iter(), feedback))
    }

    /// Returns when [`Datagrams::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let ports = self.ports.iter().filter_map(|port| port.used);
        let used = ports.chain(self.joined).min();
        let quiet = used.map(|used| used + QUIET);
        let datapath = self
            .datapath
            .as_ref()
            .and_then(|datapath| datapath.poll_timeout());
        [quiet, datapath].into_iter().flatten().min()
    }

    /// Gives back what is held for arrivals where none come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.joined.take_if(|used| now >= *used + QUIET).is_some()
            && let Some(join) = &mut self.join
        {
            join.release_memory();
        }
        for port in &mut self.ports {
            if port.used.is_some_and(|used| now >= used + QUIET) {
                port.used = None;
                if let Some(receiver) = port.receiver.as_mut() {
                    receiver.shrink();
                }
            }
        }
    }

    /// Seals datagrams until there is nothing to send now (true) or the batch is full.
    fn fill(&mut self, now: Instant, session: &mut Session) -> bool {
        let Some(datapath) = self.datapath.as_deref_mut() else {
            return true;
        };
        datapath.follow_lanes(session, now);
        let best = session.lane_for(now, PacketMeta::default());
        let mut all = true;
        for lane in &self.lanes {
            let Some(path) = session.datagram_path(*lane) else {
                continue;
            };
            let Some(port) = self
                .ports
                .iter_mut()
                .find(|port| port.sender.io().id() == path.socket)
            else {
                continue;
            };
            loop {
                let Some(room) = port.batch.reserve(ROOM) else {
                    // If its socket is full as well, nothing can be done about what is due until that wakes us.
                    datapath.handle_blocked(*lane);
                    all = false;
                    break;
                };
                let packets = best == Some(*lane);
                let Some(len) = datapath.poll_datagram(session, now, *lane, packets, room) else {
                    break;
                };
                port.batch.commit(len, target(path));
            }
        }
        all
    }

    fn port(&mut self, io: &Arc<UdpIo>) -> &mut Port {
        let known = self
            .ports
            .iter()
            .position(|port| port.sender.io().id() == io.id());
        let at = known.unwrap_or_else(|| {
            self.ports.push(Port {
                sender: Sender::new(io.clone()),
                batch: SendBatch::new(self.pool.clone()),
                receiver: None,
                used: None,
            });
            self.ports.len() - 1
        });
        &mut self.ports[at]
    }

    fn port_of(&mut self, path: DatagramPath) -> Option<&mut Port> {
        self.ports
            .iter_mut()
            .find(|port| port.sender.io().id() == path.socket)
    }
}

/// A datagram that arrived.
struct Arrived<'a> {
    path: DatagramPath,
    /// It is marked Congestion Experienced.
    ecn_ce: bool,
    bytes: &'a mut [u8],
}

/// Gives one datagram that arrived to the session, and what it brought to `deliver`.
fn take(
    now: Instant,
    session: &mut Session,
    datapath: Option<&mut Datapath<Queued>>,
    arrived: Arrived<'_>,
    stats: &mut CarrierStats,
    deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
) -> Taken {
    let Arrived {
        path,
        ecn_ce,
        bytes,
    } = arrived;
    match datagram_type(bytes) {
        Some(DatagramType::Sealed) => {
            match datapath.map(|it| it.open(session, now, path, bytes, ecn_ce, deliver)) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::trace!(%error, "a datagram did not open");
                    stats.refused_datagrams += 1;
                }
                None => stats.stray_datagrams += 1,
            }
            Taken::Nothing
        }
        Some(DatagramType::Join) => match session.handle_join_datagram(now, path, bytes) {
            Ok(lane) => Taken::Joined(lane),
            Err(error) => {
                tracing::debug!(%error, "a join was refused");
                stats.refused_datagrams += 1;
                Taken::Nothing
            }
        },
        Some(
            DatagramType::Init
            | DatagramType::Reply
            | DatagramType::Challenge
            | DatagramType::Cookie,
        )
        | None => {
            stats.stray_datagrams += 1;
            Taken::Nothing
        }
    }
}

fn target(path: DatagramPath) -> Target {
    Target {
        to: path.remote,
        source: path.local,
        ecn: None,
    }
}

/// Room for one datagram: more than any path takes without fragments, but for jumbo frames.
const ROOM: usize = 2_048;

/// Messages taken from the inbox per turn.
const ARRIVALS_PER_TURN: usize = 64;

/// Bytes of the IP and UDP headers in front of a datagram, at most.
const IP_UDP: usize = 48;
