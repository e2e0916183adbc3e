//! Datagram lanes: how they join, where they go, how much they carry.

use std::time::Instant;

use super::error::OpenError;
use super::event::SessionEvent;
use super::state::{Session, State};
use crate::proto::keys::Role;
use crate::proto::lane::{Lane, LaneState};
use crate::proto::lossy::{earliest, patience};
use crate::proto::mtud::MtuStats;
use crate::proto::outbox::{Message, Route};
use crate::proto::path::DatagramPath;
use crate::proto::timers::Timer;
use crate::wire::{
    Control, DATAGRAM_HEADER_LEN, DATAGRAM_OVERHEAD, InnerType, JOIN_DATAGRAM_HEADER_LEN,
    JOIN_DATAGRAM_LEN, JoinDatagram, LaneId, PATH_CHALLENGE_LEN, TAG_LEN, nonce,
};

impl Session {
    /// Client: begins a new datagram lane to `path`. Its Join is next from
    /// [`Session::poll_control`], and comes again from there until it is answered or the lane is
    /// given up. `None` when the session is closed or has [`MAX_LANES`](super::MAX_LANES).
    pub fn join_datagram(&mut self, now: Instant, path: DatagramPath) -> Option<LaneId> {
        if self.state != State::Open || self.role != Role::Initiator || !self.make_room(now) {
            return None;
        }
        // Datagrams name a lane by its low byte, so no two that live may share it.
        let free = |lane: &LaneId| {
            let low_byte = lane.0 as u8;
            !self.lanes.iter().any(|known| known.low_byte() == low_byte)
        };
        let first = self.highest_lane.0.checked_add(1)?;
        let lane = (first..u32::MAX).map(LaneId).find(free)?;
        let limits = self.settings.liveness;
        let mut joining = Lane::datagram(now, lane, path, LaneState::Joining, limits);
        joining.liveness.handle_ping_sent(now);
        self.take_lane_id(lane);
        self.lanes.push(joining);
        self.arm_liveness(self.lanes.len() - 1);
        self.queue(Route::Lane(lane), Message::Join);
        Some(lane)
    }

    /// Client: sends the Join of a datagram lane again now, if the lane is still joining; returns whether it is.
    pub fn repeat_join(&mut self, lane: LaneId) -> bool {
        let joins = self.lane_index(lane).is_some_and(|index| {
            let lane = &self.lanes[index];
            lane.lossy.is_some() && matches!(lane.state, LaneState::Joining)
        });
        if joins {
            self.queue(Route::Lane(lane), Message::Join);
        }
        joins
    }

    /// Server: takes a whole Join datagram that came by `path`. On success the lane exists, and its
    /// JoinOk is next from [`Session::poll_control`]; a repeated Join is answered again.
    ///
    /// # Errors
    /// [`OpenError`]; answer nothing. The session is none the worse for it.
    pub fn handle_join_datagram(
        &mut self,
        now: Instant,
        path: DatagramPath,
        datagram: &[u8],
    ) -> Result<LaneId, OpenError> {
        let result = self.join_by_datagram(now, path, datagram);
        if result.is_err() {
            self.stats.drops.refused_joins += 1;
        }
        result
    }

    /// A lane's datagrams take another way to the same address from now, since the host's network has changed: how long
    /// they may be is to be found out anew, and a ping has the other end follow.
    pub fn handle_way_changed(&mut self, now: Instant, lane: LaneId) {
        let Some(index) = self.lane_index(lane) else {
            return;
        };
        let Some(lossy) = &mut self.lanes[index].lossy else {
            return;
        };
        lossy.interface = lossy.paths.current().ethernet_datagram();
        lossy.mtu.restart();
        self.limit_datagrams();
        if self.lanes[index].is_confirmed() {
            self.queue(Route::Lane(lane), Message::Ping);
            self.arm_probes(now);
        }
    }

    /// Where the datagrams of a lane go: what [`Session::poll_control`] and the packets of the
    /// lane are to be sent to now. `None` for a lane that is no datagram lane.
    #[must_use]
    pub fn datagram_path(&self, lane: LaneId) -> Option<DatagramPath> {
        let lossy = self.lanes.get(self.lane_index(lane)?)?.lossy.as_ref()?;
        Some(lossy.paths.current())
    }

    /// The longest datagram a lane is known to carry, headers and tag included, IP and UDP headers
    /// not. `None` for a lane that is no datagram lane.
    #[must_use]
    pub fn max_datagram(&self, lane: LaneId) -> Option<usize> {
        let lossy = self.lanes.get(self.lane_index(lane)?)?.lossy.as_ref()?;
        Some(lossy.mtu.current())
    }

    /// Whether the search for what a lane carries is over, so that [`Session::max_datagram`] is not only what everybody
    /// carries. `None` for a lane that is no datagram lane.
    #[must_use]
    pub fn is_mtu_settled(&self, lane: LaneId) -> Option<bool> {
        let lossy = self.lanes.get(self.lane_index(lane)?)?.lossy.as_ref()?;
        Some(lossy.mtu.is_settled())
    }

    /// What the search for a lane's path MTU has done.
    #[must_use]
    pub fn mtu_stats(&self, lane: LaneId) -> Option<MtuStats> {
        let lossy = self.lanes.get(self.lane_index(lane)?)?.lossy.as_ref()?;
        Some(lossy.mtu.stats())
    }

    /// The network says that a lane carries no datagram of more than `bytes`. It may be anybody who says so: it is
    /// believed for the ten minutes until longer ones are tried again, and not below what everybody carries.
    pub fn handle_too_big(&mut self, lane: LaneId, bytes: usize) {
        if let Some(index) = self.lane_index(lane)
            && let Some(lossy) = &mut self.lanes[index].lossy
        {
            lossy.mtu.handle_too_big(bytes);
        }
    }

    /// The other end has a datagram of `len` bytes that was sent on the lane.
    pub fn handle_datagram_acknowledged(&mut self, lane: LaneId, len: usize) {
        if let Some(index) = self.lane_index(lane)
            && let Some(lossy) = &mut self.lanes[index].lossy
        {
            lossy.mtu.handle_acknowledged(len);
        }
    }

    /// A datagram of `len` bytes that was sent on the lane is lost; later ones are not. Too many
    /// long ones in a row, and the lane goes back to short ones.
    pub fn handle_datagram_lost(&mut self, lane: LaneId, len: usize) {
        if let Some(index) = self.lane_index(lane)
            && let Some(lossy) = &mut self.lanes[index].lossy
        {
            lossy.mtu.handle_lost(len);
        }
    }

    /// Whether nobody answers on a datagram lane just now.
    #[must_use]
    pub fn is_silent(&self, lane: LaneId) -> bool {
        self.lane_index(lane)
            .is_some_and(|index| self.lanes[index].liveness.is_silent())
    }

    /// Writes the next datagram that probes a path or its MTU into `out`, which it clears first,
    /// and returns the lane and where to send it, which need not be where the lane goes. Fragments
    /// must be forbidden for it. **Call until `None`, after [`Session::poll_control`].**
    pub fn poll_probe(
        &mut self,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Option<(LaneId, DatagramPath)> {
        if self.state != State::Open {
            return None;
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].lossy.is_none() || self.lanes[index].is_dead() {
                continue;
            }
            let Some(path) = self.write_probe(now, index, out) else {
                continue;
            };
            out.resize(out.len() + TAG_LEN, 0);
            if self.seal(now, index, out).is_ok() {
                self.stats.control_sealed += 1;
                return Some((self.lanes[index].id, path));
            }
            self.stats.drops.control_without_key += 1;
        }
        out.clear();
        self.arm_probes(now);
        None
    }

    /// Writes what is due on a lane up to where the tag will be.
    fn write_probe(
        &mut self,
        now: Instant,
        index: usize,
        out: &mut Vec<u8>,
    ) -> Option<DatagramPath> {
        out.clear();
        out.resize(DATAGRAM_HEADER_LEN, 0);
        let lane = &mut self.lanes[index];
        let id = lane.id;
        let confirmed = lane.is_confirmed();
        let wait = patience(lane.rtt.smoothed());
        let answer = self.path_answers.iter().position(|(to, ..)| *to == id);
        if let Some((_, path, challenge)) = answer.and_then(|at| self.path_answers.remove(at)) {
            Control::PathResponse { challenge }.write(out);
            return Some(path);
        }
        let lossy = lane.lossy.as_mut().filter(|_| confirmed)?;
        if let Some((path, challenge)) = lossy.paths.poll(now, CHALLENGE_DATAGRAM, wait) {
            Control::PathChallenge { challenge }.write(out);
            return Some(path);
        }
        if lane.liveness.is_silent() {
            return None;
        }
        let (len, serial) = lossy.mtu.poll(now, wait)?;
        let padding = len.saturating_sub(DATAGRAM_OVERHEAD + 4);
        Control::Probe { serial, padding }.write(out);
        Some(lossy.paths.current())
    }

    fn arm_probes(&mut self, now: Instant) {
        let mut next = None;
        for lane in self.lanes.iter().filter(|lane| lane.is_confirmed()) {
            if let Some(lossy) = &lane.lossy {
                next = earliest(next, lossy.paths.deadline());
                if !lane.liveness.is_silent() {
                    next = earliest(next, lossy.mtu.deadline(now));
                }
            }
        }
        match next {
            Some(at) => self.timers.set(Timer::Probe, at),
            None => self.timers.stop(Timer::Probe),
        }
    }

    pub(super) fn answer_path(
        &mut self,
        lane: LaneId,
        path: DatagramPath,
        challenge: [u8; PATH_CHALLENGE_LEN],
    ) {
        if self.path_answers.len() >= MAX_PATH_ANSWERS {
            self.path_answers.pop_front();
            self.stats.drops.control_overflow += 1;
        }
        self.path_answers.push_back((lane, path, challenge));
    }

    pub(super) fn handle_path_response(
        &mut self,
        now: Instant,
        index: usize,
        echo: &[u8; PATH_CHALLENGE_LEN],
    ) {
        let lane = &mut self.lanes[index];
        let Some(lossy) = &mut lane.lossy else { return };
        // The answer to the one probe of a path that was left has done its work by opening.
        if lossy
            .paths
            .handle_response(echo, &mut self.generator)
            .is_none()
        {
            return;
        }
        lossy.interface = lossy
            .interface
            .min(lossy.paths.current().ethernet_datagram());
        lossy.mtu.restart();
        let id = lane.id;
        self.stats.lanes_moved += 1;
        self.report(SessionEvent::LaneMoved(id));
        self.limit_datagrams();
        self.arm_probes(now);
    }

    pub(super) fn answer_probe(&mut self, index: usize, serial: u32) {
        let lane = self.lanes[index].id;
        self.queue(Route::Lane(lane), Message::ProbeOk { serial });
    }

    pub(super) fn handle_probe_ok(&mut self, now: Instant, index: usize, serial: u32) {
        if let Some(lossy) = &mut self.lanes[index].lossy {
            lossy.mtu.handle_answer(now, serial);
        }
    }

    /// Tries no longer datagrams than the interface takes, nor than a packet and its repair need.
    pub(super) fn limit_datagrams(&mut self) {
        let useful = self.inner_mtu + USEFUL_OVERHEAD;
        for lane in &mut self.lanes {
            if let Some(lossy) = &mut lane.lossy {
                lossy.mtu.set_ceiling(lossy.interface.min(useful));
            }
        }
    }

    /// Writes the Join of a lane, whole. The same epoch gives the same bytes: it is always counter
    /// 0 of a lane that has sent nothing else.
    pub(super) fn seal_join(&mut self, index: usize, out: &mut Vec<u8>) -> Option<()> {
        let lane = &mut self.lanes[index];
        let epoch = self.epochs.current();
        let header = JoinDatagram {
            epoch: epoch.low_byte(),
            session: self.id,
            lane: lane.id,
        };
        out.clear();
        out.resize(JOIN_DATAGRAM_LEN, 0);
        let (clear, body) = out.split_at_mut(JOIN_DATAGRAM_HEADER_LEN);
        clear.copy_from_slice(&header.to_bytes());
        let (text, tag) = body.split_at_mut(body.len() - TAG_LEN);
        text[0] = InnerType::Join.byte();
        let made = epoch.keys.seal.seal(nonce(lane.id, 0), clear, text).ok()?;
        tag.copy_from_slice(&made);
        lane.claim_counter_0(epoch.number);
        epoch.usage.add(JOIN_DATAGRAM_LEN);
        lane.stats.outgoing.sent += 1;
        lane.stats.outgoing.sent_bytes += JOIN_DATAGRAM_LEN as u64;
        Some(())
    }

    fn join_by_datagram(
        &mut self,
        now: Instant,
        path: DatagramPath,
        datagram: &[u8],
    ) -> Result<LaneId, OpenError> {
        if let State::Closed { reason } = self.state {
            return Err(OpenError::Closed { reason });
        }
        self.check_guest(InnerType::Join)?;
        let header = JoinDatagram::parse(datagram)?;
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
        let known = self.lane_index(header.lane);
        if known.is_none() {
            self.check_lane_id(header.lane)?;
        }
        let (epoch, which) = self.epochs.find(header.epoch).ok_or(OpenError::Epoch {
            found: header.epoch,
        })?;
        let mut copy = [0; JOIN_DATAGRAM_LEN];
        copy.copy_from_slice(datagram);
        let (aad, body) = copy.split_at_mut(JOIN_DATAGRAM_HEADER_LEN);
        let nonce = nonce(header.lane, 0);
        if epoch.keys.open.open(nonce, aad, body).is_err() {
            epoch.usage.failed_opens += 1;
            return Err(OpenError::Forged {
                failed: epoch.usage.failed_opens,
            });
        }
        if body[0] != InnerType::Join.byte() {
            return Err(OpenError::UnknownType { kind: body[0] });
        }
        let number = epoch.number;
        if let Some(index) = known {
            return self.join_again(index, path);
        }
        if !self.make_room(now) {
            return Err(OpenError::TooManyLanes);
        }
        self.retire_namesakes(now, header.lane);
        let challenge = self.generator.array();
        let state = LaneState::Challenged { challenge };
        let limits = self.settings.liveness;
        let mut lane = Lane::datagram(now, header.lane, path, state, limits);
        if let Some(lossy) = &mut lane.lossy {
            lossy.accept(number, 0);
        }
        self.take_lane_id(header.lane);
        self.lanes.push(lane);
        let index = self.lanes.len() - 1;
        self.handle_opened(now, index, which, datagram.len(), true);
        self.limit_datagrams();
        self.stats.lanes_joined += 1;
        if let Some(index) = self.lane_index(header.lane) {
            self.challenge_lane(index);
            self.arm_liveness(index);
        }
        Ok(header.lane)
    }

    /// The Join came again, so its answer was lost, unless it is a late copy. Whoever sent it from
    /// elsewhere gets less than it sent.
    fn join_again(&mut self, index: usize, path: DatagramPath) -> Result<LaneId, OpenError> {
        let lane = &mut self.lanes[index];
        let id = lane.id;
        let refused = OpenError::LaneId {
            found: id,
            highest: self.highest_lane,
        };
        let Some(lossy) = &mut lane.lossy else {
            return Err(refused);
        };
        match lane.state {
            LaneState::Challenged { .. } => {
                lossy.paths.set(path);
                self.challenge_lane(index);
                Ok(id)
            }
            LaneState::Confirmed => Ok(id),
            LaneState::Joining | LaneState::Unproven | LaneState::Dead => Err(refused),
        }
    }

    fn challenge_lane(&mut self, index: usize) {
        let lane = &self.lanes[index];
        if let Some(challenge) = lane.join_challenge() {
            self.queue(Route::Lane(lane.id), Message::JoinOk { challenge });
        }
    }

    /// Server: lanes whose low byte a new one takes are over, the client says.
    fn retire_namesakes(&mut self, now: Instant, lane: LaneId) {
        let low_byte = lane.0 as u8;
        let same = |known: &&Lane| {
            known.lossy.is_some() && !known.is_dead() && known.low_byte() == low_byte
        };
        let over: Vec<LaneId> = self.lanes.iter().filter(same).map(|lane| lane.id).collect();
        for id in over {
            self.kill_lane(now, id);
            self.report(SessionEvent::LaneDead(id));
        }
    }
}

/// Bytes of a sealed PathChallenge.
const CHALLENGE_DATAGRAM: usize = DATAGRAM_OVERHEAD + PATH_CHALLENGE_LEN;

/// Path challenges that wait for their answer to leave; they are drained after every call.
const MAX_PATH_ANSWERS: usize = 8;

/// What a datagram may need beside the longest packet: our headers, and for repair the parameters
/// and the length that is repaired with it.
const USEFUL_OVERHEAD: usize = 64;
