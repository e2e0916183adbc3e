//! One session and the lanes that carry it: frames in, packets out, and back.
//!
//! # Theory of operation
//!
//! Both drivers, the client's and the server's, own a [`Carrier`] and call it in turn:
//!
//! 1. [`Carrier::poll_receive`] reads each lane once, opens every whole frame in place and
//!    hands the packets to the driver; control frames end in the session.
//! 2. [`Carrier::sink`] lends the driver's netstack room in the lane's write buffer and
//!    seals each packet there, in place; [`Carrier::push`] takes a packet that already
//!    stands in a buffer of its own.
//! 3. [`Carrier::poll_send`] lets the session add its control frames and flushes each lane
//!    with one vectored write.
//! 4. [`Carrier::poll_event`] tells what became of the session and its lanes.
//!
//! A lane that fails in any way is removed and reported; the session lives on without it.
//! No room in the lane means back-pressure: the sink answers `None`.
//!
//! A session that has closed says its last word, ends its streams and reads on until the far end
//! has closed them too, for `LAST_WORD` at most: a connection that is closed while something
//! stands unread in it is reset, and what was said last may be lost with it.
//!
//! # Limits
//!
//! One call of `poll_receive` reads each lane at most once. At most [`MAX_LANES`] lanes.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{Offload, PacketSink};

use crate::io::lane::StreamLane;
use crate::io::pool::Buffer;
use crate::proto::{OpenError, Opened, PacketMeta, Scope, Session, SessionEvent};
use crate::wire::{
    CloseReason, DEFAULT_MTU, FrameType, LaneId, MAX_FRAME, PACKET_HEADROOM, TAILROOM, frame_type,
};

/// A session and the stream lanes that carry it.
#[derive(Debug)]
pub struct Carrier {
    session: Session,
    lanes: Vec<Carried>,
    events: VecDeque<CarrierEvent>,
    control: Vec<u8>,
    /// Until when a session that has closed may keep its lanes for its last word.
    last_word: Option<Instant>,
    stats: CarrierStats,
}

/// What became of a session or of one of its lanes.
#[derive(Debug)]
#[non_exhaustive]
pub enum CarrierEvent {
    /// The session says so.
    Session(SessionEvent),
    /// A lane is gone; how many are left.
    LaneLost {
        /// The lane.
        lane: LaneId,
        /// Why it is gone.
        cause: LaneLoss,
        /// The lanes that are left.
        left: usize,
    },
}

/// Why a lane is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneLoss {
    /// The far end closed the connection.
    #[error("the connection was closed by the far end")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// A frame's length field was not legal.
    #[error("a malformed frame arrived: {0}")]
    Frame(#[from] crate::io::lane::FrameError),
    /// A frame did not open.
    #[error("a frame did not open: {0}")]
    Open(#[from] OpenError),
    /// The session is over.
    #[error("the session is closed: {0}")]
    SessionClosed(CloseReason),
    /// The far end no longer answers.
    #[error("the far end no longer answers")]
    Silent,
}

/// What a [`Carrier`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarrierStats {
    /// Packets that could not be sealed (no key, too long) and were dropped.
    pub unsealed: u64,
    /// Control frames that a full lane did not take.
    pub control_lost: u64,
    /// Handshake frames that followed a join and were not needed.
    pub surplus_handshakes: u64,
    /// Lanes lost.
    pub lanes_lost: u64,
}

impl Carrier {
    /// Carries `session` over `lane`, the one its handshake was made on.
    pub fn new(session: Session, id: LaneId, lane: StreamLane) -> Self {
        let mut carrier = Self {
            session,
            lanes: Vec::with_capacity(1),
            events: VecDeque::new(),
            control: Vec::new(),
            last_word: None,
            stats: CarrierStats::default(),
        };
        carrier.carry(id, lane, false);
        carrier
    }

    /// Adds a lane that the session knows already; returns false at [`MAX_LANES`].
    ///
    /// `after_join` tells that a handshake frame which followed the join in one flight is
    /// to be skipped.
    pub fn add_lane(&mut self, id: LaneId, lane: StreamLane, after_join: bool) -> bool {
        if self.lanes.len() >= MAX_LANES {
            return false;
        }
        self.carry(id, lane, after_join);
        true
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
        self.lanes.len()
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &CarrierStats {
        &self.stats
    }

    /// Replaces the session and its lanes by a fresh one of the same client.
    pub fn replace(&mut self, session: Session, id: LaneId, lane: StreamLane) {
        self.lanes.clear();
        self.events.clear();
        self.last_word = None;
        self.session = session;
        self.carry(id, lane, false);
    }

    /// Drops a lane without a word: its connection closes.
    pub fn remove_lane(&mut self, now: Instant, id: LaneId, cause: LaneLoss) {
        match self.lanes.iter().position(|lane| lane.id == id) {
            Some(at) => self.lose(now, at, cause),
            // One that was still to join.
            None => self.session.remove_lane(now, id),
        }
    }

    /// Reads every lane once and hands each opened packet to `deliver`, which gets the whole
    /// frame and where in it the packet stands; returns whether anything came in.
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        mut deliver: impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.lanes.len() {
            let lane = &mut self.lanes[at];
            let mut arrived = std::mem::take(&mut lane.unread);
            let ended = match lane.io.poll_read(cx) {
                // Nothing is left to be read of a lane that cannot be written to.
                Poll::Pending => lane.broken.take().map(LaneLoss::Io),
                Poll::Ready(Ok(0)) => Some(LaneLoss::Closed),
                Poll::Ready(Ok(_)) => {
                    arrived = true;
                    lane.quiet_at.get_or_insert(now + QUIET);
                    None
                }
                Poll::Ready(Err(error)) => Some(LaneLoss::Io(error)),
            };
            // What arrived before the end still counts, a goodbye above all.
            let lost = if arrived {
                any = true;
                let received = lane.receive(&mut self.session, now, &mut self.stats, &mut deliver);
                received.err().or(ended)
            } else {
                ended
            };
            match lost {
                Some(cause) => {
                    any = true;
                    self.lose(now, at, cause);
                }
                None => at += 1,
            }
        }
        any
    }

    /// Lends room for packets on the lane that the session's scheduler names.
    pub fn sink(&mut self, now: Instant) -> LaneSink<'_> {
        let lane = self
            .session
            .lane_for(now, PacketMeta::default())
            .and_then(|id| self.lanes.iter_mut().find(|lane| lane.id == id))
            .filter(|lane| lane.broken.is_none());
        LaneSink {
            session: &mut self.session,
            lane,
            unsealed: &mut self.stats.unsealed,
            now,
        }
    }

    /// Returns whether the scheduled lane has room for another packet.
    pub fn has_room(&mut self, now: Instant) -> bool {
        self.session
            .lane_for(now, PacketMeta::default())
            .and_then(|id| self.lanes.iter().find(|lane| lane.id == id))
            .is_some_and(|lane| lane.broken.is_none() && lane.io.writable_room())
    }

    /// Seals the packet in `buffer` (headroom, packet, tailroom) and queues it; call only
    /// after [`Carrier::has_room`]. A packet that cannot be sealed is dropped and counted.
    pub fn push(&mut self, now: Instant, mut buffer: Buffer, offload: Offload) {
        let lane = self
            .session
            .lane_for(now, PacketMeta::default())
            .and_then(|id| self.lanes.iter_mut().find(|lane| lane.id == id));
        match lane {
            Some(lane)
                if self
                    .session
                    .seal_packet(now, lane.id, &mut buffer, offload)
                    .is_ok() =>
            {
                // Full after all: a frame that was sealed and is not sent leaves a gap in the counters, no more.
                if lane.io.push(buffer).is_err() {
                    self.stats.unsealed += 1;
                }
            }
            _ => self.stats.unsealed += 1,
        }
    }

    /// Lets the session speak, and writes what is queued; returns whether a lane broke, or
    /// has room again that it had not before: nothing else will wake those who wait for it.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let had_room = self.has_room(now);
        self.control.clear();
        while let Some(id) = self.session.poll_control(now, &mut self.control) {
            let taken = self
                .lanes
                .iter_mut()
                .find(|lane| lane.id == id)
                .is_some_and(|lane| lane.io.push_control(&self.control));
            if !taken {
                self.stats.control_lost += 1;
            }
            self.control.clear();
        }
        let mut lost = false;
        let mut at = 0;
        let closed = self.session.closed();
        while at < self.lanes.len() {
            let lane = &mut self.lanes[at];
            if let Poll::Ready(Err(error)) = lane.poll_write(cx, closed.is_some()) {
                lost = true;
                lane.broken = Some(error);
            }
            at += 1;
        }
        if let Some(reason) = closed {
            let until = *self.last_word.get_or_insert(now + LAST_WORD);
            while now >= until && !self.lanes.is_empty() {
                lost = true;
                self.lose(now, self.lanes.len() - 1, LaneLoss::SessionClosed(reason));
            }
        }
        lost || (!had_room && self.has_room(now))
    }

    /// Returns when [`Carrier::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let quiet = self.lanes.iter().filter_map(|lane| lane.quiet_at).min();
        let last_word = self.last_word.filter(|_| !self.lanes.is_empty());
        [self.session.poll_timeout(), quiet, last_word]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due by `now`: the session's timers, and giving back what quiet lanes hold.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        for lane in &mut self.lanes {
            lane.handle_timeout(now);
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

    fn carry(&mut self, id: LaneId, mut io: StreamLane, after_join: bool) {
        io.set_frame_limit(MAX_FRAME);
        self.lanes.push(Carried {
            id,
            io,
            after_join,
            unread: true,
            read_before: 0,
            quiet_at: None,
            broken: None,
            shut: false,
        });
    }

    fn lose(&mut self, now: Instant, at: usize, cause: LaneLoss) {
        let lane = self.lanes.swap_remove(at);
        self.session.remove_lane(now, lane.id);
        self.stats.lanes_lost += 1;
        self.events.push_back(CarrierEvent::LaneLost {
            lane: lane.id,
            cause,
            left: self.lanes.len(),
        });
    }
}

/// Room for packets in a lane's write buffer, sealed there as they are committed.
#[derive(Debug)]
pub struct LaneSink<'a> {
    session: &'a mut Session,
    lane: Option<&'a mut Carried>,
    unsealed: &'a mut u64,
    now: Instant,
}

impl PacketSink for LaneSink<'_> {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        let lane = self.lane.as_mut()?;
        let room = lane.io.reserve(PACKET_HEADROOM + len + TAILROOM)?;
        room.get_mut(PACKET_HEADROOM..PACKET_HEADROOM + len)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        let Some(lane) = self.lane.as_mut() else {
            return;
        };
        let whole = PACKET_HEADROOM + len + TAILROOM;
        let sealed = match lane.io.reserve(whole) {
            Some(room) => self
                .session
                .seal_packet(self.now, lane.id, &mut room[..whole], offload)
                .is_ok(),
            None => false,
        };
        if sealed {
            lane.io.commit(whole);
        } else {
            *self.unsealed += 1;
        }
    }
}

/// Returns whether `sink` has room for a packet: for those who would rather leave a datagram
/// where it is than read and drop it.
pub fn has_room<S: PacketSink>(sink: &mut S) -> bool {
    sink.reserve(usize::from(DEFAULT_MTU)).is_some()
}

#[derive(Debug)]
struct Carried {
    id: LaneId,
    io: StreamLane,
    after_join: bool,
    /// Frames may stand in the read buffer since before the lane was handed over.
    unread: bool,
    /// Bytes the lane had read when it was last looked at.
    read_before: u64,
    /// When to look whether the lane is quiet; `None` while its buffers are small.
    quiet_at: Option<Instant>,
    /// Why it cannot be written to any more; what it has received is still read, since a far end
    /// that hangs up may have said why.
    broken: Option<io::Error>,
    /// Our side of the connection is shut: the far end has heard everything.
    shut: bool,
}

impl Carried {
    /// Writes what is queued; for a session that has closed, then ends the stream.
    fn poll_write(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
        if self.broken.is_some() || self.shut {
            return Poll::Pending;
        }
        if !last {
            return self.io.poll_flush(cx);
        }
        let shut = self.io.poll_shutdown(cx);
        self.shut = shut.is_ready();
        shut
    }

    /// Gives the read buffer back if next to nothing came in for [`QUIET`].
    fn handle_timeout(&mut self, now: Instant) {
        if self.quiet_at.is_none_or(|due| now < due) {
            return;
        }
        let read = self.io.stats().bytes_read;
        if read - self.read_before < QUIET_BYTES {
            self.io.shrink();
            self.quiet_at = None;
        } else {
            self.quiet_at = Some(now + QUIET);
        }
        self.read_before = read;
    }

    fn receive(
        &mut self,
        session: &mut Session,
        now: Instant,
        stats: &mut CarrierStats,
        deliver: &mut impl FnMut(&mut [u8], Range<usize>, Offload),
    ) -> Result<(), LaneLoss> {
        while let Some(frame) = self.io.next_frame()? {
            if self.after_join && frame_type(frame) == Some(FrameType::HandshakeInit) {
                self.after_join = false;
                stats.surplus_handshakes += 1;
                continue;
            }
            match session.open(now, self.id, frame) {
                Ok(Opened::Packet { range, offload, .. }) => deliver(frame, range, offload),
                // Repair and reports are for datagram lanes: the session refuses them on others.
                Ok(
                    Opened::Repair { .. }
                    | Opened::Report { .. }
                    | Opened::Control
                    | Opened::Skipped,
                ) => {}
                Err(error) => match error.scope() {
                    // Of an epoch that is gone, after a long stall: the session counts it.
                    Scope::Frame => {}
                    Scope::Lane => return Err(error.into()),
                    // The session has closed, and its last word is still to be sent.
                    Scope::Session => return Ok(()),
                },
            }
        }
        Ok(())
    }
}

/// How long a session that has closed keeps its lanes if the far end does not read.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How long a lane must be quiet before its read buffer is given back.
const QUIET: Duration = Duration::from_secs(5);

/// What may arrive meanwhile: keepalives and the odd small packet.
const QUIET_BYTES: u64 = 16 * 1024;

/// The most lanes that carry one session at once.
pub const MAX_LANES: usize = 8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;
    use std::time::UNIX_EPOCH;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::io::lane::LaneStream;
    use crate::io::pool::Pool;
    use crate::proto::{
        Answer, ChallengeState, ClientConfig, ClientEntry, Initiator, Reply, Responder, SecretKey,
        Settings,
    };

    /// Both ends of one session, each carried by its own end of a TCP connection.
    struct Ends {
        client: Carrier,
        server: Carrier,
        at_client: Vec<Vec<u8>>,
        at_server: Vec<Vec<u8>>,
        events: Vec<CarrierEvent>,
    }

    fn sessions(now: Instant) -> (Session, Session) {
        let mut rng = rand::rng();
        let secret = SecretKey::generate(&mut rng);
        let config =
            ClientConfig::new(SecretKey::generate(&mut rng), secret.public(), *b"instance");
        let responder = Responder::new(vec![secret], &[], Settings::default(), UNIX_EPOCH);
        let unix = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (mut initiator, init) = Initiator::new(&config, unix, &mut rng).unwrap();
        let mut challenge = ChallengeState::default();
        let entry = |_: &_| Some(ClientEntry::default());
        let answer = responder.handle_init(now, &init, &mut challenge, &mut rng, entry);
        let Ok(Answer::Accept { reply, session, .. }) = answer else {
            panic!("{answer:?}");
        };
        let Ok(Reply::Established(client)) = initiator.handle(now, unix, &reply) else {
            panic!("no session");
        };
        (*client, *session)
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    fn lane(socket: TcpStream) -> StreamLane {
        StreamLane::new(LaneStream::Tcp(socket), pool())
    }

    fn pool() -> Arc<Pool> {
        Pool::new("test", 4, 4)
    }

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    impl Ends {
        async fn new(now: Instant) -> Self {
            let (client, server) = sessions(now);
            let (near, far) = tcp_pair().await;
            Self {
                client: Carrier::new(client, LaneId::FIRST, lane(near)),
                server: Carrier::new(server, LaneId::FIRST, lane(far)),
                at_client: Vec::new(),
                at_server: Vec::new(),
                events: Vec::new(),
            }
        }

        /// One turn of both drivers; the server's events are kept.
        async fn turn(&mut self, now: Instant) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let at = &mut self.at_client;
            self.client.poll_receive(&mut cx(), now, |frame, range, _| {
                at.push(frame[range].to_vec())
            });
            self.client.poll_send(&mut cx(), now);
            while self.client.poll_event(now).is_some() {}
            let at = &mut self.at_server;
            self.server.poll_receive(&mut cx(), now, |frame, range, _| {
                at.push(frame[range].to_vec())
            });
            self.server.poll_send(&mut cx(), now);
            while let Some(event) = self.server.poll_event(now) {
                self.events.push(event);
            }
        }

        async fn confirm(&mut self, now: Instant) {
            while !self.server.session().is_confirmed()
                || self.server.session().lanes().count() == 0
            {
                self.turn(now).await;
            }
        }
    }

    #[tokio::test]
    async fn packets_cross_both_ways() {
        let now = Instant::now();
        let mut ends = Ends::new(now).await;
        ends.confirm(now).await;
        let mut sink = ends.client.sink(now);
        sink.reserve(5).unwrap().copy_from_slice(b"up it");
        sink.commit(5, Offload::default());
        let mut buffer = pool().sized(PACKET_HEADROOM + 4 + TAILROOM);
        buffer[PACKET_HEADROOM..PACKET_HEADROOM + 4].copy_from_slice(b"down");
        assert!(ends.server.has_room(now));
        ends.server.push(now, buffer, Offload::default());
        while ends.at_client.is_empty() || ends.at_server.is_empty() {
            ends.turn(now).await;
        }
        assert_eq!(ends.at_server, [b"up it"]);
        assert_eq!(ends.at_client, [b"down"]);
    }

    #[tokio::test]
    async fn lane_stays_until_the_last_word_is_heard() {
        let now = Instant::now();
        let mut ends = Ends::new(now).await;
        ends.confirm(now).await;
        ends.server
            .session_mut()
            .close(now, CloseReason::PoolExhausted);
        ends.server.poll_send(&mut cx(), now);
        assert_eq!(ends.server.lanes(), 1, "until the client has heard it");
        assert_eq!(
            heard(&mut ends.client, now).await,
            CloseReason::PoolExhausted
        );
        drop(ends.client);
        while ends.server.lanes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            ends.server.poll_receive(&mut cx(), now, |_, _, _| {});
        }
    }

    /// Reads until the far end says that it has closed the session.
    async fn heard(carrier: &mut Carrier, now: Instant) -> CloseReason {
        loop {
            carrier.poll_receive(&mut cx(), now, |_, _, _| {});
            while let Some(event) = carrier.poll_event(now) {
                match event {
                    CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => return reason,
                    CarrierEvent::LaneLost { cause, .. } => panic!("lost before: {cause}"),
                    CarrierEvent::Session(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Fills the server's lane to its limit while the client reads nothing.
    async fn fill(ends: &mut Ends, now: Instant) {
        loop {
            while ends.server.has_room(now) {
                let buffer = pool().sized(PACKET_HEADROOM + 60_000 + TAILROOM);
                ends.server.push(now, buffer, Offload::default());
            }
            ends.server.poll_send(&mut cx(), now);
            tokio::time::sleep(Duration::from_millis(5)).await;
            ends.server.poll_send(&mut cx(), now);
            if !ends.server.has_room(now) {
                return;
            }
        }
    }

    #[tokio::test]
    async fn goodbye_of_a_client_with_unread_packets_is_heard() {
        let now = Instant::now();
        let mut ends = Ends::new(now).await;
        ends.confirm(now).await;
        fill(&mut ends, now).await;
        ends.client
            .session_mut()
            .close(now, CloseReason::ShuttingDown);
        ends.client.poll_send(&mut cx(), now);
        assert_eq!(ends.client.lanes(), 1, "a close now would reset the lane");
        assert_eq!(
            heard(&mut ends.server, now).await,
            CloseReason::ShuttingDown
        );
        drop(ends.server);
        while ends.client.lanes() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            ends.client.poll_receive(&mut cx(), now, |_, _, _| {});
        }
    }

    #[tokio::test]
    async fn goodbye_before_a_reset_is_heard_though_writing_fails_first() {
        let now = Instant::now();
        let mut ends = Ends::new(now).await;
        ends.confirm(now).await;
        fill(&mut ends, now).await;
        ends.client
            .session_mut()
            .close(now, CloseReason::ShuttingDown);
        ends.client.poll_send(&mut cx(), now);
        // Packets stand unread in the client's socket, so this is a reset.
        drop(ends.client);
        tokio::time::sleep(Duration::from_millis(20)).await;
        while !ends.server.poll_send(&mut cx(), now) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!ends.server.has_room(now), "nothing can be written");
        assert_eq!(
            heard(&mut ends.server, now).await,
            CloseReason::ShuttingDown
        );
    }

    #[tokio::test]
    async fn closed_session_keeps_a_lane_that_nobody_reads_for_1_s() {
        let now = Instant::now();
        let mut ends = Ends::new(now).await;
        ends.confirm(now).await;
        fill(&mut ends, now).await;
        ends.server
            .session_mut()
            .close(now, CloseReason::ProtocolError);
        ends.server.poll_send(&mut cx(), now);
        assert_eq!(ends.server.lanes(), 1);
        let due = ends.server.poll_timeout().expect("an end to the patience");
        assert!(due <= now + LAST_WORD);
        ends.server.handle_timeout(due);
        assert!(ends.server.poll_send(&mut cx(), due), "a lane is lost");
        assert_eq!(ends.server.lanes(), 0);
        assert_eq!(ends.server.poll_timeout(), None);
    }

    #[tokio::test]
    async fn goodbye_that_stood_in_the_buffer_at_the_handover_is_heard() {
        let now = Instant::now();
        let (mut client, server) = sessions(now);
        let (mut near, far) = tcp_pair().await;
        // All of the client's life in one flight: its proof, its goodbye, the end.
        let mut control = Vec::new();
        let mut flight = Vec::new();
        while client.poll_control(now, &mut control).is_some() {
            flight.extend_from_slice(&control);
        }
        client.close(now, CloseReason::ShuttingDown);
        while client.poll_control(now, &mut control).is_some() {
            flight.extend_from_slice(&control);
        }
        near.write_all(&flight).await.unwrap();
        near.shutdown().await.unwrap();
        let mut lane = lane(far);
        // As the conversation before the handover does when it waits for a handshake.
        std::future::poll_fn(|cx| lane.poll_read(cx)).await.unwrap();
        let mut server = Carrier::new(server, LaneId::FIRST, lane);
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.poll_receive(&mut cx(), now, |_, _, _| {});
        let mut heard = false;
        while let Some(event) = server.poll_event(now) {
            heard |= matches!(event, CarrierEvent::Session(SessionEvent::PeerClosed(_)));
        }
        assert!(heard);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn lane_that_ends_is_reported_once_and_the_session_lives_on() {
        let now = Instant::now();
        let mut ends = Ends::new(now).await;
        ends.confirm(now).await;
        ends.events.clear();
        drop(std::mem::replace(
            &mut ends.client,
            Ends::new(now).await.client,
        ));
        while ends.events.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            ends.server.poll_receive(&mut cx(), now, |_, _, _| {});
            while let Some(event) = ends.server.poll_event(now) {
                ends.events.push(event);
            }
        }
        assert!(matches!(
            ends.events[..],
            [CarrierEvent::LaneLost { left: 0, .. }]
        ));
        assert_eq!(ends.server.session().closed(), None);
        assert!(!ends.server.has_room(now));
        assert!(ends.server.sink(now).reserve(100).is_none());
    }
}
