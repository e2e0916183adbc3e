//! Lanes come and go: joins, echoes, pings, death.

use std::time::Instant;

use super::error::OpenError;
use super::event::SessionEvent;
use super::state::{MAX_LANES, Session, State};
use crate::proto::keys::Role;
use crate::proto::lane::{Lane, LaneState};
use crate::proto::liveness::Due;
use crate::proto::outbox::{Message, Route};
use crate::proto::path::DatagramPath;
use crate::proto::timers::Timer;
use crate::wire::{
    InnerType, JOIN_CHALLENGE_LEN, JOIN_HEADER_LEN, JOIN_LEN, JoinHeader, LaneId, nonce,
};

impl Session {
    /// Client: makes the whole Join frame for a new stream lane, to be sent as the first on a fresh
    /// connection. `None` when the session is closed or has [`MAX_LANES`].
    pub fn join_frame(&mut self, now: Instant) -> Option<(LaneId, Vec<u8>)> {
        if self.state != State::Open || self.role != Role::Initiator {
            return None;
        }
        if !self.make_room(now) {
            return None;
        }
        let lane = LaneId(self.highest_lane.0.checked_add(1)?);
        let mut joining = Lane::new(now, lane, LaneState::Joining, self.settings.liveness);
        let epoch = self.epochs.current();
        let counter = joining.next_counter(epoch.number);
        let mut frame = vec![0; JOIN_LEN];
        JoinHeader {
            epoch: epoch.low_byte(),
            session: self.id,
            lane,
        }
        .write(&mut frame)
        .ok()?;
        let (header, body) = frame.split_at_mut(JOIN_HEADER_LEN);
        let (text, tag) = body.split_at_mut(1);
        text[0] = InnerType::Join.byte();
        tag.copy_from_slice(
            &epoch
                .keys
                .seal
                .seal(nonce(lane, counter), header, text)
                .ok()?,
        );
        epoch.usage.add(JOIN_LEN);
        joining.liveness.handle_ping_sent(now);
        self.take_lane_id(lane);
        self.lanes.push(joining);
        self.arm_liveness(self.lanes.len() - 1);
        Some((lane, frame))
    }

    /// Server: takes a whole Join frame from a connection that has not proven anything. On success
    /// the lane exists, and its JoinOk is next from [`Session::poll_control`].
    ///
    /// # Errors
    /// [`OpenError`]; answer nothing. The session is none the worse for it.
    pub fn handle_join(&mut self, now: Instant, frame: &[u8]) -> Result<LaneId, OpenError> {
        let result = self.join(now, frame);
        if result.is_err() {
            self.stats.drops.refused_joins += 1;
        }
        result
    }

    /// Forgets a lane whose connection is gone.
    pub fn remove_lane(&mut self, now: Instant, lane: LaneId) {
        let Some(index) = self.lane_index(lane) else {
            return;
        };
        if self.lanes[index].is_confirmed() {
            self.schedule.on_lane_down(now, lane);
        }
        self.gone += self.lanes.swap_remove(index).stats;
        self.regroup();
        self.drop_waiting_for(lane);
        self.restart_rekey(now);
    }

    pub(super) fn join(&mut self, now: Instant, frame: &[u8]) -> Result<LaneId, OpenError> {
        if let State::Closed { reason } = self.state {
            return Err(OpenError::Closed { reason });
        }
        self.check_guest(InnerType::Join)?;
        let header = JoinHeader::parse(frame)?;
        if header.session != self.id {
            return Err(OpenError::Session {
                found: header.session,
            });
        }
        if self.role != Role::Responder {
            return Err(OpenError::Misplaced {
                kind: InnerType::Join,
            });
        }
        self.check_lane_id(header.lane)?;
        let (epoch, which) = self.epochs.find(header.epoch).ok_or(OpenError::Epoch {
            found: header.epoch,
        })?;
        let mut copy = [0; JOIN_LEN];
        copy.copy_from_slice(frame);
        let (aad, body) = copy.split_at_mut(JOIN_HEADER_LEN);
        if epoch
            .keys
            .open
            .open(nonce(header.lane, 0), aad, body)
            .is_err()
        {
            epoch.usage.failed_opens += 1;
            return Err(OpenError::Seal {
                failed: epoch.usage.failed_opens,
            });
        }
        if body[0] != InnerType::Join.byte() {
            return Err(OpenError::UnknownType { kind: body[0] });
        }
        let number = epoch.number;
        if !self.make_room(now) {
            return Err(OpenError::TooManyLanes);
        }
        let challenge = self.generator.array();
        let state = LaneState::Challenged { challenge };
        let limits = self.settings.liveness;
        let mut lane = Lane::new(now, header.lane, state, limits);
        lane.accept_counter(number, 0);
        self.take_lane_id(header.lane);
        self.lanes.push(lane);
        let index = self.lanes.len() - 1;
        self.handle_opened(now, index, which, frame.len(), true);
        self.arm_liveness(index);
        self.stats.lanes_joined += 1;
        self.queue(Route::Lane(header.lane), Message::JoinOk { challenge });
        Ok(header.lane)
    }

    pub(super) fn handle_join_ok(
        &mut self,
        now: Instant,
        index: usize,
        challenge: [u8; JOIN_CHALLENGE_LEN],
    ) -> Result<(), OpenError> {
        let lane = self.lanes[index].id;
        match self.lanes[index].state {
            LaneState::Joining => {
                self.queue(Route::Lane(lane), Message::JoinEcho { challenge });
                self.confirm_lane(now, index);
                Ok(())
            }
            // It came again, so its echo was lost.
            LaneState::Confirmed if self.lanes[index].lossy.is_some() => {
                self.queue(Route::Lane(lane), Message::JoinEcho { challenge });
                Ok(())
            }
            LaneState::Unproven
            | LaneState::Challenged { .. }
            | LaneState::Confirmed
            | LaneState::Dead => Err(OpenError::Misplaced {
                kind: InnerType::JoinOk,
            }),
        }
    }

    /// `from` is how it came, if in a datagram.
    pub(super) fn handle_join_echo(
        &mut self,
        now: Instant,
        index: usize,
        from: Option<DatagramPath>,
        challenge: &[u8; JOIN_CHALLENGE_LEN],
    ) {
        if self.lanes[index].accept_echo(from, challenge) {
            self.confirm_lane(now, index);
        } else {
            self.stats.drops.stray_answers += 1;
        }
    }

    /// Whether a lane id was never taken. Joins over several lanes overtake each other, so it need
    /// not be the highest.
    pub(super) fn check_lane_id(&self, lane: LaneId) -> Result<(), OpenError> {
        let taken = match self.highest_lane.0.checked_sub(lane.0) {
            None => false,
            Some(below) => below >= u64::BITS || self.lanes_taken & (1 << below) != 0,
        };
        match taken {
            false => Ok(()),
            true => Err(OpenError::LaneId {
                found: lane,
                highest: self.highest_lane,
            }),
        }
    }

    pub(super) fn take_lane_id(&mut self, lane: LaneId) {
        match lane.0.checked_sub(self.highest_lane.0) {
            Some(above) => {
                self.lanes_taken = self.lanes_taken.checked_shl(above).unwrap_or(0) | 1;
                self.highest_lane = lane;
            }
            None => {
                let below = self.highest_lane.0 - lane.0;
                self.lanes_taken |= 1u64.checked_shl(below).unwrap_or(0);
            }
        }
    }

    /// Makes room for another lane: dead ones go first, then the oldest that is not confirmed,
    /// since a client that joins again has given up on its earlier tries. `false` if all are
    /// confirmed.
    pub(super) fn make_room(&mut self, now: Instant) -> bool {
        if self.lanes.len() >= MAX_LANES {
            for dead in self.lanes.extract_if(.., |lane| lane.is_dead()) {
                self.gone += dead.stats;
            }
        }
        if self.lanes.len() < MAX_LANES {
            return true;
        }
        let waiting = self.lanes.iter().filter(|lane| !lane.is_confirmed());
        let Some(oldest) = waiting.map(|lane| lane.id).min() else {
            return false;
        };
        self.report(SessionEvent::LaneDead(oldest));
        self.remove_lane(now, oldest);
        true
    }

    pub(super) fn confirm_lane(&mut self, now: Instant, index: usize) {
        let lane = &mut self.lanes[index];
        lane.state = LaneState::Confirmed;
        if let Some(lossy) = &mut lane.lossy {
            lossy.retry.stop();
            lossy.mtu.begin();
            lane.liveness.quicken();
        }
        let (id, kind) = (lane.id, lane.kind);
        self.schedule.on_lane_up(now, id, kind);
        self.regroup();
        self.report(SessionEvent::LaneConfirmed(id));
        // Measures the lane; from a client it is also what confirms the session.
        self.queue(Route::Lane(id), Message::Ping);
        // What was under way on an older lane may be lost.
        self.send_config();
        self.restart_rekey(now);
    }

    pub(super) fn kill_lane(&mut self, now: Instant, lane: LaneId) {
        let Some(index) = self.lane_index(lane) else {
            return;
        };
        let lane = &mut self.lanes[index];
        let id = lane.id;
        if lane.is_confirmed() {
            self.schedule.on_lane_down(now, id);
        }
        lane.state = LaneState::Dead;
        self.regroup();
        self.drop_waiting_for(id);
    }

    pub(super) fn drop_waiting_for(&mut self, lane: LaneId) {
        let dropped = self
            .outbox
            .retain(|waiting| waiting.route != Route::Lane(lane));
        self.stats.drops.control_without_lane += dropped;
    }

    pub(super) fn check_lanes(&mut self, now: Instant) {
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            if lane.is_dead() {
                continue;
            }
            let id = lane.id;
            match lane.liveness.poll(now, self.speaks_elsewhere(id)) {
                Due::Nothing => {}
                Due::Silent => {
                    let lane = &mut self.lanes[index];
                    lane.liveness.handle_silent();
                    if let Some(lossy) = &mut lane.lossy {
                        lossy.mtu.handle_silence();
                    }
                    self.stats.lanes_silent += 1;
                    self.schedule.on_lane_silent(now, id, true);
                    self.report(SessionEvent::LaneSilent(id));
                }
                Due::Ping => {
                    self.queue(Route::Lane(id), Message::Ping);
                    self.lanes[index].liveness.handle_ping_sent(now);
                }
                Due::GiveUp => {
                    self.kill_lane(now, id);
                    self.stats.lanes_dead += 1;
                    self.report(SessionEvent::LaneDead(id));
                }
            }
        }
        let living = self.lanes.iter().filter(|lane| !lane.is_dead());
        let deadlines = living.map(|lane| {
            let elsewhere = self.speaks_elsewhere(lane.id);
            lane.liveness.deadline(elsewhere)
        });
        if let Some(deadline) = deadlines.min() {
            self.timers.set(Timer::Liveness, deadline);
        }
    }

    pub(super) fn arm_liveness(&mut self, index: usize) {
        let elsewhere = self.speaks_elsewhere(self.lanes[index].id);
        let deadline = self.lanes[index].liveness.deadline(elsewhere);
        self.timers.set_earlier(Timer::Liveness, deadline);
    }

    /// Whether the session has another lane that is confirmed and not silent.
    fn speaks_elsewhere(&self, lane: LaneId) -> bool {
        self.lanes
            .iter()
            .any(|other| other.id != lane && other.is_confirmed() && !other.liveness.is_silent())
    }

    pub(super) fn lane_index(&self, lane: LaneId) -> Option<usize> {
        self.lanes.iter().position(|known| known.id == lane)
    }
}
