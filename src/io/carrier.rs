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
//! No room in the lane means back-pressure: the sink answers `None`, `push` gives back.
//!
//! # Limits
//!
//! One call of `poll_receive` reads each lane at most once. At most [`MAX_LANES`] lanes.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::Instant;

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
            let lost = match lane.io.poll_read(cx) {
                Poll::Pending => None,
                Poll::Ready(Ok(0)) => Some(LaneLoss::Closed),
                Poll::Ready(Ok(_)) => {
                    any = true;
                    lane.quiet_at.get_or_insert(now + QUIET);
                    None
                }
                Poll::Ready(Err(error)) => Some(LaneLoss::Io(error)),
            };
            let lost = match lost {
                None if lane.unread || any => {
                    lane.unread = false;
                    lane.receive(&mut self.session, now, &mut self.stats, &mut deliver)
                        .err()
                }
                lost => lost,
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
            .and_then(|id| self.lanes.iter_mut().find(|lane| lane.id == id));
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
            .is_some_and(|lane| lane.io.writable_room())
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
                // Sealed frames may not be left out: the lane takes it even at its limit.
                if lane.io.push(buffer).is_err() {
                    self.stats.unsealed += 1;
                }
            }
            _ => self.stats.unsealed += 1,
        }
    }

    /// Lets the session speak, and writes what is queued; returns whether a lane was lost, or
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
        while at < self.lanes.len() {
            match self.lanes[at].io.poll_flush(cx) {
                Poll::Ready(Ok(())) | Poll::Pending => at += 1,
                Poll::Ready(Err(error)) => {
                    lost = true;
                    self.lose(now, at, LaneLoss::Io(error));
                }
            }
        }
        // A session that has closed by itself needs its lanes only for its last word.
        while let Some(reason) = self.session.closed()
            && !self.lanes.is_empty()
            && self.is_flushed()
        {
            lost = true;
            self.lose(now, self.lanes.len() - 1, LaneLoss::SessionClosed(reason));
        }
        lost || (!had_room && self.has_room(now))
    }

    /// Returns when [`Carrier::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let quiet = self.lanes.iter().filter_map(|lane| lane.quiet_at).min();
        self.session.poll_timeout().into_iter().chain(quiet).min()
    }

    /// Does what is due by `now`: the session's timers, and giving back what quiet lanes hold.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.session.handle_timeout(now);
        for lane in &mut self.lanes {
            lane.handle_timeout(now);
        }
    }

    /// Returns whether everything queued has been handed to the system.
    pub fn is_flushed(&self) -> bool {
        self.lanes.iter().all(|lane| lane.io.queued() == 0)
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
}

impl Carried {
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
                Ok(Opened::Packet { range, offload }) => deliver(frame, range, offload),
                Ok(Opened::Control | Opened::Skipped) => {}
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

/// How long a lane must be quiet before its read buffer is given back.
const QUIET: std::time::Duration = std::time::Duration::from_secs(5);

/// What may arrive meanwhile: keepalives and the odd small packet.
const QUIET_BYTES: u64 = 16 * 1024;

/// The most lanes that carry one session at once.
pub const MAX_LANES: usize = 8;
