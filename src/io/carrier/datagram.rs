//! The datagram lanes of a session: the sockets they use, what arrives, and what leaves.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use adit_netstack::{Cut, Offload, Packet};

use super::event::CarrierStats;
use super::stream::QUIET;
use crate::io::pool::{Buffer, Pool};
use crate::io::udp::{Feedback, Inbox, Receiver, SendBatch, Sender, Target, UdpIo};
use crate::proto::{DatagramPath, Opened, PacketMeta, Session};
use crate::wire::{
    BASE_DATAGRAM, DATAGRAM_PACKET_HEADROOM, DATAGRAM_PACKET_OVERHEAD, DatagramType, LaneId,
    PACKET_HEADROOM, Piece, TAILROOM, datagram_type,
};

/// The datagram lanes of a session.
#[derive(Debug)]
pub(super) struct Datagrams {
    pool: Arc<Pool>,
    /// Lanes that the session knows, joining ones included.
    pub(super) lanes: Vec<LaneId>,
    ports: Vec<Port>,
    inbox: Option<Arc<Inbox>>,
    /// Packets on their way into datagrams.
    staged: VecDeque<Staged>,
    /// Bytes of them.
    staged_bytes: usize,
    /// Lent to a netstack that has not committed yet.
    lent: Option<Buffer>,
    /// Where a packet that came in pieces is handed on from.
    whole: Vec<u8>,
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

/// A packet that is being cut into datagrams.
#[derive(Debug)]
struct Staged {
    buffer: Buffer,
    packet: Range<usize>,
    cut: Cut,
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
            staged: VecDeque::new(),
            staged_bytes: 0,
            lent: None,
            whole: Vec::new(),
            feedback: None,
        }
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
        let mut any = false;
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
                        take(
                            now,
                            session,
                            path,
                            datagram.bytes,
                            &mut self.whole,
                            stats,
                            deliver,
                        );
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
                let bytes = datagram.bytes;
                let taken = take(now, session, path, bytes, &mut self.whole, stats, deliver);
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

    /// Returns whether another packet may be staged.
    pub(super) fn has_room(&self) -> bool {
        self.staged_bytes < STAGED_BYTES
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

    /// Stages the packet in the room last lent; returns whether it is one.
    pub(super) fn commit(&mut self, len: usize, offload: Offload) -> bool {
        match self.lent.take() {
            Some(buffer) => self.stage(buffer, 0..len, offload),
            None => false,
        }
    }

    /// Stages the packet in a buffer with the head- and tailroom of a stream lane's frame;
    /// returns whether it is one.
    pub(super) fn push(&mut self, buffer: Buffer, offload: Offload) -> bool {
        let end = buffer.len().saturating_sub(TAILROOM);
        self.stage(buffer, PACKET_HEADROOM..end, offload)
    }

    fn stage(&mut self, buffer: Buffer, packet: Range<usize>, offload: Offload) -> bool {
        let Some(bytes) = buffer.get(packet.clone()) else {
            return false;
        };
        let Ok(parsed) = Packet::parse(bytes) else {
            return false;
        };
        let cut = Cut::new(&parsed, bytes, offload);
        self.staged_bytes += bytes.len();
        self.staged.push_back(Staged {
            buffer,
            packet,
            cut,
        });
        true
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
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        session: &mut Session,
        stats: &mut CarrierStats,
    ) {
        loop {
            let filled = self.fill(now, session, stats);
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
                // What everybody carries is not made less by what anybody says.
                let least = BASE_DATAGRAM;
                session.set_datagram_limit(*lane, mtu.saturating_sub(IP_UDP).max(least));
            }
        }
        Some((concerned.into_iter(), feedback))
    }

    /// Returns when [`Datagrams::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let used = self.ports.iter().filter_map(|port| port.used).min();
        used.map(|used| used + QUIET)
    }

    /// Gives back the buffers of sockets that are quiet.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for port in &mut self.ports {
            if port.used.is_some_and(|used| now >= used + QUIET) {
                port.used = None;
                if let Some(receiver) = port.receiver.as_mut() {
                    receiver.shrink();
                }
            }
        }
    }

    /// Seals pieces of what is staged until nothing is left (true) or the batch is full.
    fn fill(&mut self, now: Instant, session: &mut Session, stats: &mut CarrierStats) -> bool {
        while let Some(staged) = self.staged.front_mut() {
            let lane = session
                .lane_for(now, PacketMeta::default())
                .and_then(|lane| {
                    Some((
                        lane,
                        session.datagram_path(lane)?,
                        session.max_datagram(lane)?,
                    ))
                });
            let Some((lane, path, longest)) = lane else {
                // The lane has gone, or another kind has taken its place: TCP sends again.
                stats.unsealed += 1;
                self.unstage();
                continue;
            };
            let Some(port) = self
                .ports
                .iter_mut()
                .find(|port| port.sender.io().id() == path.socket)
            else {
                stats.unsealed += 1;
                self.unstage();
                continue;
            };
            let mtu = longest.saturating_sub(DATAGRAM_PACKET_OVERHEAD);
            match staged.seal_next(now, session, lane, mtu, path, &mut port.batch) {
                Sealed::One => {}
                Sealed::Done => self.unstage(),
                Sealed::Full => return false,
                Sealed::Lost => {
                    stats.too_long += 1;
                    self.unstage();
                }
            }
        }
        true
    }

    fn unstage(&mut self) {
        if let Some(staged) = self.staged.pop_front() {
            self.staged_bytes = self.staged_bytes.saturating_sub(staged.packet.len());
        }
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

/// What became of the next piece of a packet.
enum Sealed {
    /// It is in the batch, and more are to come.
    One,
    /// It was the last.
    Done,
    /// The batch has no room for it.
    Full,
    /// It cannot be sent.
    Lost,
}

impl Staged {
    fn seal_next(
        &mut self,
        now: Instant,
        session: &mut Session,
        lane: LaneId,
        mtu: usize,
        path: DatagramPath,
        batch: &mut SendBatch,
    ) -> Sealed {
        let Some(bytes) = self.buffer.get(self.packet.clone()) else {
            return Sealed::Lost;
        };
        let need = self.cut.next_len(mtu).max(mtu) + 2 * DATAGRAM_PACKET_OVERHEAD;
        let Some(room) = batch.reserve(need) else {
            return Sealed::Full;
        };
        let Some(inside) = room.get_mut(DATAGRAM_PACKET_HEADROOM..) else {
            return Sealed::Lost;
        };
        let Some((len, offload)) = self.cut.next(bytes, mtu, inside) else {
            return Sealed::Done;
        };
        let sealed = if len <= mtu {
            let whole = len + DATAGRAM_PACKET_OVERHEAD;
            let sealed = session.seal_packet(now, lane, &mut room[..whole], offload);
            sealed.map(|()| batch.commit(whole, target(path))).is_ok()
        } else {
            seal_halves(now, session, lane, (len, mtu), offload, path, batch)
        };
        match sealed {
            false => Sealed::Lost,
            true if self.cut.is_done() => Sealed::Done,
            true => Sealed::One,
        }
    }
}

/// Sends a packet of `len` bytes that stands in the batch's room in two pieces, the first of
/// which is `mtu` bytes long.
fn seal_halves(
    now: Instant,
    session: &mut Session,
    lane: LaneId,
    (len, mtu): (usize, usize),
    offload: Offload,
    path: DatagramPath,
    batch: &mut SendBatch,
) -> bool {
    let rest = len - mtu;
    let (first, last) = (
        mtu + DATAGRAM_PACKET_OVERHEAD,
        rest + DATAGRAM_PACKET_OVERHEAD,
    );
    let Some(room) = batch.reserve(first + last) else {
        return false;
    };
    let begin = DATAGRAM_PACKET_HEADROOM + mtu;
    room.copy_within(begin..begin + rest, first + DATAGRAM_PACKET_HEADROOM);
    let (one, other) = room.split_at_mut(first);
    let number = session.alloc_source();
    let sealed = session
        .seal_piece(now, lane, number, Piece::First, one, offload)
        .and_then(|()| session.seal_piece(now, lane, number, Piece::Last, other, offload));
    if sealed.is_err() {
        return false;
    }
    batch.commit(first, target(path));
    // It stands where the next room begins.
    if batch.reserve(last).is_some() {
        batch.commit(last, target(path));
    }
    true
}

/// Gives one datagram that arrived to the session, and what it brought to `deliver`.
fn take(
    now: Instant,
    session: &mut Session,
    path: DatagramPath,
    bytes: &mut [u8],
    whole: &mut Vec<u8>,
    stats: &mut CarrierStats,
    deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
) -> Taken {
    match datagram_type(bytes) {
        Some(DatagramType::Sealed) => {
            match session.open_datagram(now, path, bytes) {
                Ok(Opened::Packet { range, offload }) => deliver(bytes, range, offload),
                Ok(Opened::Control | Opened::Skipped) => {}
                Err(error) => {
                    tracing::trace!(%error, "a datagram did not open");
                    stats.refused_datagrams += 1;
                }
            }
            while let Some((packet, offload)) = session.poll_delivery() {
                whole.clear();
                whole.resize(PACKET_HEADROOM, 0);
                whole.extend_from_slice(packet);
                let range = PACKET_HEADROOM..whole.len();
                deliver(whole, range, offload);
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

/// Bytes of packets that may wait to be cut: one super-packet while another is being written.
const STAGED_BYTES: usize = 64 * 1024;

/// Messages taken from the inbox per turn.
const ARRIVALS_PER_TURN: usize = 64;

/// Bytes of the IP and UDP headers in front of a datagram, at most.
const IP_UDP: usize = 48;
