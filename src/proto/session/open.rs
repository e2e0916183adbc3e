//! Opening: frames from a lane become packets, or are dealt with.

use std::ops::Range;
use std::time::Instant;

use adit_netstack::Offload;

use super::error::{OpenError, Scope};
use super::event::SessionEvent;
use super::state::{Session, State};
use crate::proto::epoch::Which;
use crate::proto::keys::Role;
use crate::proto::lane::LaneState;
use crate::wire::{
    CloseReason, Control, FlowFrame, InnerType, LaneId, PACKET_HEADER_LEN, PACKET_HEADROOM,
    PacketHeader, SEALED_HEADER_LEN, SealedFormatError, SealedHeader, TAG_LEN, is_skippable, nonce,
};

impl Session {
    /// Opens a whole frame, in place, that arrived on a lane. Safe for bytes of any length.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::scope`] says whether the frame, its lane or the session ends.
    pub fn open(
        &mut self,
        now: Instant,
        lane: LaneId,
        frame: &mut [u8],
    ) -> Result<Opened, OpenError> {
        let result = self.open_frame(now, lane, frame);
        if let Err(error) = &result {
            self.handle_open_error(now, Some(lane), error);
        }
        result
    }

    pub(super) fn open_frame(
        &mut self,
        now: Instant,
        lane: LaneId,
        frame: &mut [u8],
    ) -> Result<Opened, OpenError> {
        if let State::Closed { reason } = self.state {
            return Err(OpenError::Closed { reason });
        }
        let header = SealedHeader::parse(frame)?;
        let index = self
            .lane_index(lane)
            .filter(|index| !self.lanes[*index].is_dead())
            .ok_or(OpenError::Lane { lane })?;
        let which = self.open_seal(index, header, frame)?;
        self.handle_opened(now, index, which, frame.len(), true);
        let (kind, body) = match frame.get(SEALED_HEADER_LEN..frame.len() - TAG_LEN) {
            Some([kind, body @ ..]) => (*kind, body),
            Some([]) | None => return Err(SealedFormatError::Short { len: frame.len() }.into()),
        };
        if let Some(kind) = InnerType::from_byte(kind) {
            self.check_guest(kind)?;
        }
        match InnerType::from_byte(kind) {
            Some(InnerType::Packet) => Ok(self.take_packet(index, body)),
            Some(kind) if self.relays && is_flow(kind) => {
                let (frame, bytes) = FlowFrame::parse(kind, body)?;
                match (&frame, self.role) {
                    (FlowFrame::Open { .. }, Role::Initiator) => {
                        return Err(OpenError::Misplaced { kind });
                    }
                    (FlowFrame::Open { .. }, Role::Responder)
                    | (
                        FlowFrame::Data { .. }
                        | FlowFrame::Credit { .. }
                        | FlowFrame::Fin { .. }
                        | FlowFrame::Reset { .. },
                        Role::Initiator | Role::Responder,
                    ) => {}
                }
                self.stats.flow_frames_opened += 1;
                self.stats.flow_bytes_opened += bytes.len() as u64;
                let end = SEALED_HEADER_LEN + 1 + body.len();
                Ok(Opened::Flow {
                    frame,
                    range: end - bytes.len()..end,
                })
            }
            Some(kind) if is_reserved(kind) => Err(OpenError::UnknownType { kind: kind.byte() }),
            Some(kind) => {
                let control = Control::parse(kind, body)?;
                self.handle_control(now, index, &control)?;
                self.stats.control_opened += 1;
                Ok(Opened::Control)
            }
            None if is_skippable(kind) => {
                self.stats.drops.skipped_frames += 1;
                Ok(Opened::Skipped)
            }
            None => Err(OpenError::UnknownType { kind }),
        }
    }

    /// Opens the seal; changes the counter only if it opens.
    pub(super) fn open_seal(
        &mut self,
        index: usize,
        header: SealedHeader,
        frame: &mut [u8],
    ) -> Result<Which, OpenError> {
        let lane = &mut self.lanes[index];
        let (epoch, which) = self.epochs.find(header.epoch).ok_or(OpenError::Epoch {
            found: header.epoch,
        })?;
        let counter = header.counter;
        lane.check_counter(epoch.number, counter)
            .map_err(|least| OpenError::Counter {
                found: counter,
                least,
            })?;
        let (aad, body) = frame.split_at_mut(SEALED_HEADER_LEN);
        if epoch
            .keys
            .open
            .open(nonce(lane.id, counter), aad, body)
            .is_err()
        {
            epoch.usage.failed_opens += 1;
            lane.stats.incoming.failed_opens += 1;
            return Err(OpenError::Seal {
                failed: epoch.usage.failed_opens,
            });
        }
        lane.accept_counter(epoch.number, counter);
        Ok(which)
    }

    /// What every frame that opens means, whatever is in it; `answers` says whether it shows that ours arrive.
    pub(super) fn handle_opened(
        &mut self,
        now: Instant,
        index: usize,
        which: Which,
        len: usize,
        answers: bool,
    ) {
        let lane = &mut self.lanes[index];
        let id = lane.id;
        let was_silent = if answers {
            lane.liveness.handle_received(now)
        } else {
            lane.liveness.handle_unasked(now);
            false
        };
        lane.stats.incoming.received += 1;
        lane.stats.incoming.received_bytes += len as u64;
        if was_silent {
            self.schedule.on_lane_silent(now, id, false);
            self.report(SessionEvent::LaneHeard(id));
        }
        self.handle_epoch_used(now, which);
        self.handle_client_proven();
        match self.lanes[index].state {
            LaneState::Unproven => self.confirm_lane(now, index),
            LaneState::Joining
            | LaneState::Challenged { .. }
            | LaneState::Confirmed
            | LaneState::Dead => {}
        }
    }

    pub(super) fn handle_client_proven(&mut self) {
        if self.state == State::Unconfirmed {
            self.state = State::Open;
            self.report(SessionEvent::Confirmed);
            self.send_config();
        }
    }

    fn take_packet(&mut self, index: usize, body: &[u8]) -> Opened {
        let drops = &mut self.stats.drops;
        let Ok(header) = PacketHeader::parse(body) else {
            drops.malformed_packets += 1;
            return Opened::Skipped;
        };
        let len = body.len() - PACKET_HEADER_LEN;
        if len == 0 {
            drops.malformed_packets += 1;
            return Opened::Skipped;
        }
        let new = self.take_source(header.source, len);
        self.lanes[index].stats.incoming.count_packet(new);
        if !new {
            return Opened::Skipped;
        }
        Opened::Packet {
            number: header.source,
            kept: false,
            range: PACKET_HEADROOM..PACKET_HEADROOM + len,
            offload: header.offload,
        }
    }

    /// `lane` is the one that ends if not only the frame does: none for a datagram, which anybody
    /// may have sent.
    pub(super) fn handle_open_error(
        &mut self,
        now: Instant,
        lane: Option<LaneId>,
        error: &OpenError,
    ) {
        let drops = &mut self.stats.drops;
        match error {
            OpenError::Closed { .. } => drops.after_close += 1,
            OpenError::Format(_) => drops.malformed_frames += 1,
            OpenError::Lane { .. } => drops.unknown_lane += 1,
            OpenError::Epoch { .. } => drops.unknown_epoch += 1,
            OpenError::Datagram(_) => drops.malformed_frames += 1,
            OpenError::Counter { .. } | OpenError::Replayed(_) => drops.replayed_counter += 1,
            OpenError::Seal { .. } | OpenError::Forged { .. } => drops.failed_opens += 1,
            OpenError::UnknownType { .. } => drops.unknown_frames += 1,
            OpenError::Control(_) | OpenError::Flow(_) | OpenError::Misplaced { .. } => {
                drops.bad_control += 1
            }
            OpenError::Session { .. } | OpenError::LaneId { .. } | OpenError::TooManyLanes => {}
        }
        if let OpenError::Seal { failed } | OpenError::Forged { failed } = error
            && *failed >= self.settings.rekey.failed_opens
        {
            self.close(now, CloseReason::ProtocolError);
        }
        match error.scope() {
            Scope::Frame => {}
            Scope::Lane => {
                if let Some(lane) = lane {
                    self.kill_lane(now, lane);
                }
            }
            Scope::Session => self.close(now, CloseReason::ProtocolError),
        }
    }
}

/// What a frame turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet, for the first time.
    Packet {
        /// Its source number.
        number: u64,
        /// Whether the other end keeps it, and those around it, for repair.
        kept: bool,
        /// Where in the frame it now is, in the clear.
        range: Range<usize>,
        /// Segmentation and checksum the sender left undone: a claim to check before use.
        offload: Offload,
    },
    /// Parity over packets, on a datagram lane.
    Repair {
        /// Where in the datagram its body now is, in the clear.
        range: Range<usize>,
    },
    /// What the other end received on a datagram lane.
    Report {
        /// Where in the datagram its body now is, in the clear.
        range: Range<usize>,
    },
    /// A frame of a relayed flow, on a stream lane.
    Flow {
        /// Its fields.
        frame: FlowFrame,
        /// Where in the frame the bytes behind them now are, in the clear.
        range: Range<usize>,
    },
    /// A control frame; the session has dealt with it.
    Control,
    /// Nothing to deliver: a duplicate, a malformed packet, or an unknown type that may be skipped.
    Skipped,
}

const fn is_flow(kind: InnerType) -> bool {
    kind.byte() >= InnerType::FlowOpen.byte() && kind.byte() <= InnerType::FlowReset.byte()
}

/// Whether frames of the type are not for here: flows only where both ends relay them.
pub(super) const fn is_reserved(kind: InnerType) -> bool {
    match kind {
        InnerType::FlowOpen
        | InnerType::FlowData
        | InnerType::FlowCredit
        | InnerType::FlowFin
        | InnerType::FlowReset
        | InnerType::Repair
        | InnerType::Report
        | InnerType::Join => true,
        InnerType::Packet
        | InnerType::Ping
        | InnerType::Pong
        | InnerType::Config
        | InnerType::ConfigOk
        | InnerType::Close
        | InnerType::RekeyAsk
        | InnerType::RekeyInit
        | InnerType::RekeyReply
        | InnerType::JoinOk
        | InnerType::JoinEcho
        | InnerType::Enrol
        | InnerType::Enrolled
        | InnerType::PathChallenge
        | InnerType::PathResponse
        | InnerType::Part
        | InnerType::Probe
        | InnerType::ProbeOk
        | InnerType::Beside => false,
    }
}
