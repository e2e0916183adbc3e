//! A stream lane of a session.

use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::datagram::Datagrams;
use super::deliver::Deliver;
use super::event::{CarrierStats, LaneLoss};
use crate::io::lane::StreamLane;
use crate::proto::datapath::Received;
use crate::proto::spread::LaneView;
use crate::proto::{Opened, Scope, Session};
use crate::wire::{FrameType, LaneId, MAX_FRAME, frame_type};

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
}

impl CarriedStream {
    pub(super) fn new(id: LaneId, mut io: StreamLane, after_join: bool) -> Self {
        io.set_frame_limit(MAX_FRAME);
        Self {
            id,
            io,
            after_join,
            unread: true,
            read_before: 0,
            quiet_at: None,
            broken: None,
            shut: false,
        }
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

    pub(super) fn receive(
        &mut self,
        session: &mut Session,
        datagrams: &mut Datagrams,
        now: Instant,
        stats: &mut CarrierStats,
        deliver: &mut impl Deliver,
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
                }) => deliver.flow(&fields, &frame[range]),
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

/// How long a lane must be quiet before its read buffer is given back.
pub(super) const QUIET: Duration = Duration::from_secs(5);

/// What may arrive meanwhile: keepalives and the odd small packet.
const QUIET_BYTES: u64 = 16 * 1024;
