//! A stream lane of a session.

use std::io;
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::datagram::Datagrams;
use super::deliver::Deliver;
use super::event::{CarrierStats, LaneLoss};
use crate::io::lane::{ReadMemory, StreamLane};
use crate::proto::datapath::Received;
use crate::proto::relayed::Pieces;
use crate::proto::spread::LaneView;
use crate::proto::{Opened, Scope, Session};
use crate::wire::{FlowFrame, FrameType, LaneId, MAX_FRAME, frame_type};

#[derive(Debug)]
pub(super) struct CarriedStream {
    pub(super) id: LaneId,
    pub(super) io: StreamLane,
    pub(super) after_join: bool,
    /// Frames may stand in the read buffer since before the lane was handed over.
    pub(super) unread: bool,
    /// Bytes the lane had read when it was last looked at.
    pub(super) read_before: u64,
    /// When to look whether the lane is quiet; `None` while its buffers are small.
    pub(super) quiet_at: Option<Instant>,
    /// Why it cannot be written to any more; what it has received is still read, since a far end
    /// that hangs up may have said why.
    pub(super) broken: Option<io::Error>,
    /// Our side of the connection is shut: the far end has heard everything.
    pub(super) shut: bool,
    /// When to read again what was not read for want of memory.
    pub(super) again_at: Option<Instant>,
    /// The frame that has come in part and takes memory of all lanes.
    part: Option<Part>,
}

/// A frame that has come in part.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// How many have come before it, which tells it from others.
    number: u64,
    /// When to look whether it is to be given up.
    due: Instant,
}

impl CarriedStream {
    pub(super) fn new(
        id: LaneId,
        mut io: StreamLane,
        after_join: bool,
        memory: &ReadMemory,
    ) -> Self {
        io.set_frame_limit(MAX_FRAME, memory.clone());
        Self {
            id,
            io,
            after_join,
            unread: true,
            read_before: 0,
            quiet_at: None,
            broken: None,
            shut: false,
            again_at: None,
            part: None,
        }
    }

    /// Takes note of what the read buffer holds after it was read; returns whether it was not, for want of memory.
    pub(super) fn handle_read(&mut self, now: Instant) -> bool {
        let starved = self.io.is_starved();
        self.again_at = starved.then(|| now + AGAIN_AFTER);
        let number = self.io.stats().frames_read;
        self.part.take_if(|part| part.number != number);
        if !self.io.holds_part() {
            self.part = None;
        } else if self.part.is_none() {
            let due = now + PART_TIME;
            self.part = Some(Part { number, due });
        }
        starved
    }

    /// Returns whether it is to be given up: memory is short, and a frame that has some does not get on.
    pub(super) fn is_overdue(&mut self, now: Instant) -> bool {
        let Some(part) = self.part.as_mut().filter(|part| part.due <= now) else {
            return false;
        };
        part.due = now + PART_AGAIN;
        self.io.is_short()
    }

    /// Returns when [`CarriedStream::handle_timeout`] or [`CarriedStream::is_overdue`] is to be called, or the lane to be
    /// read.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let part = self.part.map(|part| part.due);
        [self.quiet_at, self.again_at, part]
            .into_iter()
            .flatten()
            .min()
    }

    /// How it stands among others.
    pub(super) fn view(&self) -> LaneView {
        LaneView {
            id: self.id,
            queued: self.io.queued(),
            taken: self.io.stats().bytes_written,
        }
    }

    /// Writes what is queued; for a session that has closed, then ends the stream.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, last: bool) -> Poll<io::Result<()>> {
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
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        // The driver reads after each time-out.
        self.again_at.take_if(|due| *due <= now);
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

    /// Hands on what the last read brought.
    pub(super) fn receive(
        &mut self,
        session: &mut Session,
        datagrams: &mut Datagrams,
        now: Instant,
        stats: &mut CarrierStats,
        deliver: &mut impl Deliver,
    ) -> Result<(), LaneLoss> {
        let mut run = Run::default();
        let received = self.receive_frames(session, datagrams, now, stats, deliver, &mut run);
        run.flush(&self.io, deliver);
        received
    }

    fn receive_frames(
        &mut self,
        session: &mut Session,
        datagrams: &mut Datagrams,
        now: Instant,
        stats: &mut CarrierStats,
        deliver: &mut impl Deliver,
        run: &mut Run,
    ) -> Result<(), LaneLoss> {
        while let Some(frame) = self.io.next_frame()? {
            if self.after_join && frame_type(frame) == Some(FrameType::HandshakeInit) {
                self.after_join = false;
                stats.surplus_handshakes += 1;
                continue;
            }
            match session.open(now, self.id, frame) {
                Ok(Opened::Packet {
                    number,
                    range,
                    offload,
                    ..
                }) => {
                    let packet = Received {
                        lane: self.id,
                        number,
                        frame,
                        range,
                        offload,
                    };
                    datagrams.take_packet(now, session, packet, &mut |frame, range, offload| {
                        deliver.packet(frame, range, offload);
                    });
                }
                Ok(Opened::Flow {
                    frame: fields,
                    range,
                }) => {
                    let before = frame.len() - range.end;
                    let len = range.len();
                    let end = self.io.handed_out() - before;
                    run.take(&self.io, &fields, end - len..end, deliver);
                }
                // Repair and reports are for datagram lanes: the session refuses them on others.
                Ok(
                    Opened::Repair { .. }
                    | Opened::Report { .. }
                    | Opened::Control
                    | Opened::Skipped,
                ) => {}
                Err(error) => match error.scope() {
                    // What is missing of a flow is said again on another lane, and never on this one.
                    Scope::Frame if session.relays() && session.closed().is_none() => {
                        return Err(error.into());
                    }
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

/// Data frames of one flow that follow one another, so that one write can take what all of them brought.
#[derive(Debug, Default)]
struct Run {
    first: Option<FlowFrame>,
    /// The offset that continues it.
    next: u64,
    /// Where in the read buffer the bytes stand.
    places: [Range<usize>; RUN],
    len: usize,
}

impl Run {
    /// Takes a frame whose bytes stand at `place`; hands on those before unless it continues them.
    fn take(
        &mut self,
        lane: &StreamLane,
        frame: &FlowFrame,
        place: Range<usize>,
        deliver: &mut impl Deliver,
    ) {
        let FlowFrame::Data { flow, offset } = *frame else {
            self.flush(lane, deliver);
            deliver.flow(frame, Pieces::new(&[lane.again(place)]));
            return;
        };
        let continues = self.len < RUN
            && offset == self.next
            && self.first.is_some_and(|first| first.flow() == flow);
        if !continues {
            self.flush(lane, deliver);
            self.first = Some(*frame);
        }
        self.next = offset.saturating_add(place.len() as u64);
        self.places[self.len] = place;
        self.len += 1;
    }

    /// Hands on what there is.
    fn flush(&mut self, lane: &StreamLane, deliver: &mut impl Deliver) {
        let Some(first) = self.first.take() else {
            return;
        };
        let mut pieces = [&[][..]; RUN];
        for (piece, place) in pieces.iter_mut().zip(&self.places[..self.len]) {
            *piece = lane.again(place.clone());
        }
        deliver.flow(&first, Pieces::new(&pieces[..self.len]));
        self.len = 0;
    }
}

/// Frames of a run: half a MiB, which is more than most sockets take at once.
const RUN: usize = 8;

/// How long a lane must be quiet before its read buffer is given back.
pub(super) const QUIET: Duration = Duration::from_secs(5);

/// What may arrive meanwhile: keepalives and the odd small packet.
const QUIET_BYTES: u64 = 16 * 1024;

/// How soon a lane that found no memory is tried again: a frame of others is whole, or their lane given up.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How long a frame may take memory of all lanes in part while that is short: a super-packet needs so long at 100 kbit/s,
/// and half of that was enough time to make room for others.
const PART_TIME: Duration = Duration::from_secs(5);

/// How soon after that it is looked at again, where there was memory enough.
const PART_AGAIN: Duration = Duration::from_secs(1);
