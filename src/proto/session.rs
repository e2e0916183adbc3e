//! The session: what a client and a server do with each other from handshake to close.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use adit_netstack::Offload;

use super::aead::AeadKind;
use super::epoch::{Epoch, Epochs, Which, overlap};
use super::identity::{PresharedKey, PublicKey, SecretKey};
use super::keys::{EpochKeys, Role};
use super::lane::{Lane, LaneKind, LaneState};
use super::liveness::{Due, LivenessLimits};
use super::outbox::{Message, Outbox, Route};
use super::random::Generator;
use super::rekey::{Credentials, Rekey, RekeyLimits};
use super::replay::{ReplayWindow, Replayed};
use super::schedule::{PacketMeta, PassThrough, Schedule};
use super::stats::{LaneStats, Stats};
use super::timers::{Timer, Timers};
use crate::wire::{
    CloseReason, Control, ControlError, HandshakeKind, INSTANCE_LEN, InnerConfig, InnerType,
    JOIN_HEADER_LEN, JOIN_LEN, JoinHeader, LENGTH_LEN, LaneId, MAX_FRAME, PACKET_HEADER_LEN,
    PACKET_HEADROOM, PacketHeader, SEALED_HEADER_LEN, SealedFormatError, SealedHeader, SessionId,
    TAG_LEN, TAILROOM, is_skippable, nonce,
};

/// A session. Both roles are this one type.
///
/// **After every call that takes `&mut self`, drain [`Session::poll_control`] and
/// [`Session::poll_event`] until they have nothing, then look at [`Session::poll_timeout`].**
pub struct Session {
    id: SessionId,
    role: Role,
    aead: AeadKind,
    peer: PublicKey,
    peer_minor: u8,
    settings: Settings,
    origin: Instant,
    state: State,
    epochs: Epochs,
    rekey: Rekey,
    generator: Generator,
    lanes: Vec<Lane>,
    highest_lane: LaneId,
    next_source: u64,
    sources: ReplayWindow,
    config: ConfigExchange,
    outbox: Outbox,
    events: VecDeque<SessionEvent>,
    timers: Timers,
    schedule: Box<dyn Schedule>,
    stats: Stats,
}

/// Limits and time-outs of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// When keys are replaced.
    pub rekey: RekeyLimits,
    /// When to ping, and when to give up.
    pub liveness: LivenessLimits,
}

/// What a handshake hands to the session it made.
pub(super) struct Agreement {
    pub(super) role: Role,
    pub(super) id: SessionId,
    pub(super) kind: HandshakeKind,
    pub(super) secret: SecretKey,
    pub(super) peer: PublicKey,
    pub(super) psk: Option<PresharedKey>,
    pub(super) instance: [u8; INSTANCE_LEN],
    pub(super) aead: AeadKind,
    pub(super) peer_minor: u8,
    pub(super) capabilities: u32,
    pub(super) keys: EpochKeys,
    pub(super) settings: Settings,
    pub(super) generator: Generator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Server: nothing of the client has opened, so it may be a replay. Nothing is sent.
    Unconfirmed,
    /// Both ends have the keys.
    Open,
    /// Over. Only Close frames still leave.
    Closed { reason: CloseReason },
}

impl Session {
    /// Begins with the first lane, over which the handshake ran.
    pub(super) fn new(now: Instant, agreement: Agreement) -> Self {
        let Agreement {
            role,
            id,
            kind,
            secret,
            peer,
            psk,
            instance,
            aead,
            peer_minor,
            capabilities,
            keys,
            settings,
            generator,
        } = agreement;
        let aead_number = aead.byte();
        let rekey = Rekey::new(Credentials {
            secret,
            peer,
            psk,
            instance,
            kind,
            session: id,
            aead: aead_number,
            capabilities,
        });
        let (state, lane_state) = match role {
            Role::Initiator => (State::Open, LaneState::Joining),
            Role::Responder => (State::Unconfirmed, LaneState::Unproven),
        };
        let first = Lane::new(
            now,
            LaneId::FIRST,
            LaneKind::Stream,
            lane_state,
            settings.liveness,
        );
        let mut session = Self {
            id,
            role,
            aead,
            peer,
            peer_minor,
            settings,
            origin: now,
            state,
            epochs: Epochs::new(Epoch::new(now, 0, keys)),
            rekey,
            generator,
            lanes: vec![first],
            highest_lane: LaneId::FIRST,
            next_source: 0,
            sources: ReplayWindow::default(),
            config: ConfigExchange::default(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            timers: Timers::default(),
            schedule: Box::new(PassThrough::default()),
            stats: Stats::default(),
        };
        session.arm_liveness(0);
        session.arm_rekey();
        if role == Role::Initiator {
            // The reply came over this lane, so the server is there. Its ping lets the server
            // confirm the session, and measures the lane.
            session.confirm_lane(now, 0);
            session.queue(Route::Lane(LaneId::FIRST), Message::Ping);
        }
        session
    }

    /// Replaces the scheduling policy; it is told of the lanes there are.
    pub fn set_schedule(&mut self, now: Instant, mut schedule: Box<dyn Schedule>) {
        for lane in self.lanes.iter().filter(|lane| lane.is_confirmed()) {
            schedule.on_lane_up(now, lane.id, lane.kind);
        }
        self.schedule = schedule;
    }

    // ---- packets ----

    /// Seals a packet into a whole frame, in place, for a confirmed lane.
    ///
    /// `buf` is [`PACKET_HEADROOM`] bytes of room, the packet, and [`TAILROOM`] bytes of room; all
    /// of it is the frame afterwards. On an error nothing may be sent.
    ///
    /// # Errors
    /// [`SealError`], with what stands in the way.
    pub fn seal_packet(
        &mut self,
        now: Instant,
        lane: LaneId,
        buf: &mut [u8],
        offload: Offload,
    ) -> Result<(), SealError> {
        let len = buf
            .len()
            .checked_sub(PACKET_HEADROOM + TAILROOM)
            .filter(|len| *len > 0 && buf.len() - LENGTH_LEN <= MAX_FRAME)
            .ok_or(SealError::Length { len: buf.len() })?;
        match self.state {
            State::Open => {}
            State::Unconfirmed => return Err(SealError::Unconfirmed),
            State::Closed { reason } => return Err(SealError::Closed { reason }),
        }
        let index = self
            .lane_index(lane)
            .filter(|index| self.lanes[*index].is_confirmed())
            .ok_or(SealError::Lane { lane })?;
        let header = PacketHeader {
            source: self.next_source,
            offload,
        };
        buf[SEALED_HEADER_LEN] = InnerType::Packet.byte();
        buf[SEALED_HEADER_LEN + 1..PACKET_HEADROOM].copy_from_slice(&header.to_bytes());
        self.seal(now, index, buf)?;
        self.next_source += 1;
        self.stats.packets_sealed += 1;
        self.stats.packet_bytes_sealed += len as u64;
        if self.lanes[index].liveness.handle_sent(now) {
            self.arm_liveness(index);
        }
        self.schedule.on_sent(now, lane, buf.len());
        Ok(())
    }

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
            self.handle_open_error(now, lane, error);
        }
        result
    }

    /// Asks the policy which lane a packet should take; `None` while there is none.
    pub fn lane_for(&mut self, now: Instant, packet: PacketMeta) -> Option<LaneId> {
        match self.state {
            State::Open => self.schedule.lane(now, &packet),
            State::Unconfirmed | State::Closed { .. } => None,
        }
    }

    // ---- lanes ----

    /// Client: makes the whole Join frame for a new stream lane, to be sent as the first on a fresh
    /// connection. `None` when the session is closed or has [`MAX_LANES`].
    pub fn join_frame(&mut self, now: Instant) -> Option<(LaneId, Vec<u8>)> {
        if self.state != State::Open || self.role != Role::Initiator {
            return None;
        }
        if self.lanes.len() >= MAX_LANES {
            self.lanes.retain(|lane| !lane.is_dead());
        }
        if self.lanes.len() >= MAX_LANES {
            return None;
        }
        let lane = LaneId(self.highest_lane.0.checked_add(1)?);
        let mut joining = Lane::new(
            now,
            lane,
            LaneKind::Stream,
            LaneState::Joining,
            self.settings.liveness,
        );
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
        self.highest_lane = lane;
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
        self.lanes.swap_remove(index);
        self.drop_waiting_for(lane);
        self.restart_rekey(now);
    }

    // ---- control ----

    /// Asks on every confirmed lane whether the other end is there, without waiting for the
    /// keepalive: to be called when the host's network has changed.
    pub fn probe(&mut self) {
        let lanes: Vec<LaneId> = self.lanes().collect();
        for lane in lanes {
            self.queue(Route::Lane(lane), Message::Ping);
        }
    }

    /// Server: gives the client its configuration, once the session is confirmed, and again if it
    /// may have been lost. A newer one replaces it.
    pub fn configure(&mut self, config: InnerConfig) {
        self.config.serial = self.config.serial.wrapping_add(1);
        self.config.unacknowledged = Some(config);
        if self.state == State::Open {
            self.send_config();
        }
    }

    /// Ends the session; its Close frame is next from [`Session::poll_control`], for every lane.
    pub fn close(&mut self, _now: Instant, reason: CloseReason) {
        let confirmed = self.state == State::Open;
        if let State::Closed { .. } = self.state {
            return;
        }
        self.shut(reason);
        if confirmed {
            let lanes = self.lanes.iter().filter(|lane| lane.is_confirmed());
            for id in lanes.map(|lane| lane.id).collect::<Vec<_>>() {
                self.queue(Route::Lane(id), Message::Close { reason });
            }
        }
    }

    /// Writes the next whole control frame to send into `out`, which it clears first, and returns
    /// the lane to send it on. **Call until `None`.**
    pub fn poll_control(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<LaneId> {
        out.clear();
        loop {
            if self.outbox.is_empty() || self.state == State::Unconfirmed {
                return None;
            }
            let best = self.schedule.lane(now, &PacketMeta::default());
            let waiting = self.outbox.pop(|waiting| match waiting.route {
                Route::Lane(_) => true,
                Route::Best => best.is_some(),
            })?;
            let lane = match waiting.route {
                Route::Lane(lane) => lane,
                Route::Best => best?,
            };
            let Some(index) = self.lane_index(lane).filter(|i| !self.lanes[*i].is_dead()) else {
                self.stats.drops.control_without_lane += 1;
                continue;
            };
            let time = self.micros(now);
            if self
                .seal_control(now, index, &waiting.message, time, out)
                .is_err()
            {
                self.stats.drops.control_without_lane += 1;
                out.clear();
                continue;
            }
            return Some(lane);
        }
    }

    /// Takes the next event. **Call until `None`.**
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    // ---- time ----

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Liveness => self.check_lanes(now),
                Timer::Rekey => self.begin_rekey(now),
                Timer::RekeyRetry => {
                    if self.rekey.is_under_way() {
                        self.stats.rekey_retries += 1;
                        self.rekey.reset();
                        self.begin_rekey(now);
                    }
                }
                Timer::FormerEpoch => self.epochs.erase_former(),
            }
        }
    }

    /// When [`Session::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    // ---- what it is ----

    /// The session's name.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Which end this is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The AEAD that seals it.
    #[must_use]
    pub const fn aead(&self) -> AeadKind {
        self.aead
    }

    /// Whose session it is: the other end's public key.
    #[must_use]
    pub const fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// Minor protocol version of the other end.
    #[must_use]
    pub const fn peer_minor(&self) -> u8 {
        self.peer_minor
    }

    /// Number of the epoch that seals, from 0.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epochs.current_ref().number
    }

    /// Whether both ends have the keys: a server's session is unconfirmed until the client's first
    /// sealed frame has opened.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.state == State::Open
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub const fn closed(&self) -> Option<CloseReason> {
        match self.state {
            State::Closed { reason } => Some(reason),
            State::Unconfirmed | State::Open => None,
        }
    }

    /// The confirmed lanes, in no order.
    pub fn lanes(&self) -> impl Iterator<Item = LaneId> + '_ {
        self.lanes
            .iter()
            .filter(|lane| lane.is_confirmed())
            .map(|lane| lane.id)
    }

    /// Smoothed round-trip time of a lane; `None` until its first pong.
    #[must_use]
    pub fn rtt(&self, lane: LaneId) -> Option<Duration> {
        self.lanes
            .iter()
            .find(|known| known.id == lane)?
            .rtt
            .smoothed()
    }

    /// Counters since the session began.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counters of a lane.
    #[must_use]
    pub fn lane_stats(&self, lane: LaneId) -> Option<&LaneStats> {
        self.lanes
            .iter()
            .find(|known| known.id == lane)
            .map(|lane| &lane.stats)
    }

    // ---- sealing ----

    /// Seals a frame whose inside is in place between header and tag.
    fn seal(&mut self, now: Instant, index: usize, frame: &mut [u8]) -> Result<(), SealError> {
        let lane = &mut self.lanes[index];
        let epoch = self.epochs.current();
        if self.settings.rekey.is_spent(epoch) {
            return Err(SealError::Exhausted {
                epoch: epoch.number,
            });
        }
        let len = frame.len();
        let counter = lane.next_counter(epoch.number);
        SealedHeader {
            epoch: epoch.low_byte(),
            counter,
        }
        .write(frame)
        .map_err(|_| SealError::Length { len })?;
        let (header, body) = frame.split_at_mut(SEALED_HEADER_LEN);
        let (text, tag) = body.split_at_mut(body.len() - TAG_LEN);
        let made = epoch.keys.seal.seal(nonce(lane.id, counter), header, text);
        tag.copy_from_slice(&made.map_err(|_| SealError::Length { len })?);
        epoch.usage.add(len);
        lane.stats.frames_sealed += 1;
        lane.stats.bytes_sealed += len as u64;
        let worn = self.settings.rekey.is_worn(epoch);
        if worn && !self.rekey.is_under_way() {
            self.begin_rekey(now);
        }
        Ok(())
    }

    fn seal_control(
        &mut self,
        now: Instant,
        index: usize,
        message: &Message,
        time: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        out.resize(SEALED_HEADER_LEN, 0);
        message.write(time, out);
        out.resize(out.len() + TAG_LEN, 0);
        self.seal(now, index, out)?;
        self.stats.control_sealed += 1;
        let lane = &mut self.lanes[index];
        if let Message::Ping = message {
            lane.rtt.handle_ping(time);
        }
        if message.wants_answer() {
            lane.liveness.handle_ping_sent(now);
            self.arm_liveness(index);
        }
        Ok(())
    }

    // ---- opening ----

    fn open_frame(
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
        self.handle_opened(now, index, which, frame.len());
        let (kind, body) = match frame.get(SEALED_HEADER_LEN..frame.len() - TAG_LEN) {
            Some([kind, body @ ..]) => (*kind, body),
            Some([]) | None => return Err(SealedFormatError::Short { len: frame.len() }.into()),
        };
        match InnerType::from_byte(kind) {
            Some(InnerType::Packet) => Ok(self.take_packet(body)),
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
    fn open_seal(
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
            lane.stats.failed_opens += 1;
            return Err(OpenError::Seal {
                failed: epoch.usage.failed_opens,
            });
        }
        lane.accept_counter(epoch.number, counter);
        Ok(which)
    }

    /// What every frame that opens means, whatever is in it.
    fn handle_opened(&mut self, now: Instant, index: usize, which: Which, len: usize) {
        let lane = &mut self.lanes[index];
        lane.liveness.handle_received(now);
        lane.stats.frames_opened += 1;
        lane.stats.bytes_opened += len as u64;
        self.handle_epoch_used(now, which);
        self.handle_client_proven(now);
        match self.lanes[index].state {
            LaneState::Unproven => self.confirm_lane(now, index),
            LaneState::Joining
            | LaneState::Challenged { .. }
            | LaneState::Confirmed
            | LaneState::Dead => {}
        }
    }

    fn handle_epoch_used(&mut self, now: Instant, which: Which) {
        match which {
            Which::Former => {}
            Which::Next => {
                if self.epochs.confirm_next(now) {
                    self.handle_new_epoch();
                    self.arm_former(now);
                }
            }
            // The other end has switched too: what it sealed before is on its way at most.
            Which::Current => self.arm_former(now),
        }
    }

    fn handle_client_proven(&mut self, _now: Instant) {
        if self.state == State::Unconfirmed {
            self.state = State::Open;
            self.report(SessionEvent::Confirmed);
            self.send_config();
        }
    }

    fn take_packet(&mut self, body: &[u8]) -> Opened {
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
        match self.sources.take(header.source) {
            Ok(()) => {}
            Err(Replayed::Seen { .. }) => {
                drops.duplicate_packets += 1;
                return Opened::Skipped;
            }
            Err(Replayed::TooOld { .. }) => {
                drops.stale_packets += 1;
                return Opened::Skipped;
            }
        }
        self.stats.packets_opened += 1;
        self.stats.packet_bytes_opened += len as u64;
        Opened::Packet {
            range: PACKET_HEADROOM..PACKET_HEADROOM + len,
            offload: header.offload,
        }
    }

    fn handle_open_error(&mut self, now: Instant, lane: LaneId, error: &OpenError) {
        let drops = &mut self.stats.drops;
        match error {
            OpenError::Closed { .. } => drops.after_close += 1,
            OpenError::Format(_) => drops.malformed_frames += 1,
            OpenError::Lane { .. } => drops.unknown_lane += 1,
            OpenError::Epoch { .. } => drops.unknown_epoch += 1,
            OpenError::Counter { .. } => drops.replayed_counter += 1,
            OpenError::Seal { .. } => drops.failed_opens += 1,
            OpenError::UnknownType { .. } => drops.unknown_frames += 1,
            OpenError::Control(_) | OpenError::Misplaced { .. } => drops.bad_control += 1,
            OpenError::Session { .. } | OpenError::LaneId { .. } | OpenError::TooManyLanes => {}
        }
        if let OpenError::Seal { failed } = error
            && *failed >= self.settings.rekey.failed_opens
        {
            self.close(now, CloseReason::ProtocolError);
        }
        match error.scope() {
            Scope::Frame => {}
            Scope::Lane => self.kill_lane(now, lane),
            Scope::Session => self.close(now, CloseReason::ProtocolError),
        }
    }

    // ---- control frames ----

    fn handle_control(
        &mut self,
        now: Instant,
        index: usize,
        control: &Control<'_>,
    ) -> Result<(), OpenError> {
        let lane = self.lanes[index].id;
        match (control, self.role) {
            (Control::Ping { time }, _) => {
                // One pong says it all: a newer one takes the place of one that still waits.
                self.outbox.retain(|waiting| {
                    waiting.route != Route::Lane(lane)
                        || !matches!(waiting.message, Message::Pong { .. })
                });
                self.queue(Route::Lane(lane), Message::Pong { time: *time });
            }
            (Control::Pong { time }, _) => self.handle_pong(now, index, *time),
            (Control::Config { serial, config }, Role::Initiator) => {
                if self.config.received != Some(*serial) {
                    self.config.received = Some(*serial);
                    self.report(SessionEvent::Configured(config.clone()));
                }
                self.queue(Route::Best, Message::ConfigOk { serial: *serial });
            }
            (Control::ConfigOk { serial }, Role::Responder) => {
                if *serial == self.config.serial {
                    self.config.unacknowledged = None;
                }
            }
            (Control::Close { reason }, _) => {
                self.shut(*reason);
                self.report(SessionEvent::PeerClosed(*reason));
            }
            (Control::RekeyAsk, Role::Initiator) => {
                if !self.rekey.is_under_way() {
                    self.begin_rekey(now);
                }
            }
            (Control::RekeyInit { epoch, message }, Role::Responder) => {
                self.handle_rekey_init(now, *epoch, message);
            }
            (Control::RekeyReply { epoch, message }, Role::Initiator) => {
                self.handle_rekey_reply(now, *epoch, message);
            }
            (Control::JoinOk { challenge }, Role::Initiator) => {
                self.handle_join_ok(now, index, *challenge)?;
            }
            (Control::JoinEcho { challenge }, Role::Responder) => {
                if self.lanes[index].accept_echo(challenge) {
                    self.confirm_lane(now, index);
                } else {
                    self.stats.drops.stray_answers += 1;
                }
            }
            (
                Control::Config { .. }
                | Control::RekeyAsk
                | Control::RekeyReply { .. }
                | Control::JoinOk { .. },
                Role::Responder,
            )
            | (
                Control::ConfigOk { .. } | Control::RekeyInit { .. } | Control::JoinEcho { .. },
                Role::Initiator,
            ) => {
                return Err(OpenError::Misplaced {
                    kind: control.inner_type(),
                });
            }
        }
        Ok(())
    }

    fn handle_pong(&mut self, now: Instant, index: usize, time: u64) {
        let micros = self.micros(now);
        let lane = &mut self.lanes[index];
        match lane.rtt.handle_pong(time, micros) {
            Some(rtt) => self.schedule.on_rtt(now, lane.id, rtt),
            None => self.stats.drops.stray_answers += 1,
        }
    }

    fn handle_join_ok(
        &mut self,
        now: Instant,
        index: usize,
        challenge: [u8; crate::wire::JOIN_CHALLENGE_LEN],
    ) -> Result<(), OpenError> {
        let lane = self.lanes[index].id;
        match self.lanes[index].state {
            LaneState::Joining => {
                self.queue(Route::Lane(lane), Message::JoinEcho { challenge });
                self.confirm_lane(now, index);
                self.queue(Route::Lane(lane), Message::Ping);
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

    fn send_config(&mut self) {
        let serial = self.config.serial;
        if let Some(config) = self.config.unacknowledged.clone() {
            self.outbox
                .retain(|waiting| !matches!(waiting.message, Message::Config { .. }));
            self.queue(Route::Best, Message::Config { serial, config });
        }
    }

    fn queue(&mut self, route: Route, message: Message) {
        if !self.outbox.push(route, message) {
            self.stats.drops.control_overflow += 1;
        }
    }

    fn report(&mut self, event: SessionEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        } else {
            self.stats.drops.event_overflow += 1;
        }
    }

    fn shut(&mut self, reason: CloseReason) {
        self.state = State::Closed { reason };
        self.outbox.retain(|_| false);
        self.timers.stop_all();
        self.rekey.reset();
    }

    // ---- lanes ----

    fn join(&mut self, now: Instant, frame: &[u8]) -> Result<LaneId, OpenError> {
        if let State::Closed { reason } = self.state {
            return Err(OpenError::Closed { reason });
        }
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
        if header.lane <= self.highest_lane {
            return Err(OpenError::LaneId {
                found: header.lane,
                highest: self.highest_lane,
            });
        }
        self.lanes.retain(|lane| !lane.is_dead());
        if self.lanes.len() >= MAX_LANES {
            return Err(OpenError::TooManyLanes);
        }
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
        let challenge = self.generator.array();
        let state = LaneState::Challenged { challenge };
        let limits = self.settings.liveness;
        let mut lane = Lane::new(now, header.lane, LaneKind::Stream, state, limits);
        lane.accept_counter(number, 0);
        self.highest_lane = header.lane;
        self.lanes.push(lane);
        let index = self.lanes.len() - 1;
        self.handle_opened(now, index, which, frame.len());
        self.arm_liveness(index);
        self.stats.lanes_joined += 1;
        self.queue(Route::Lane(header.lane), Message::JoinOk { challenge });
        Ok(header.lane)
    }

    fn confirm_lane(&mut self, now: Instant, index: usize) {
        let lane = &mut self.lanes[index];
        lane.state = LaneState::Confirmed;
        let (id, kind) = (lane.id, lane.kind);
        self.schedule.on_lane_up(now, id, kind);
        self.report(SessionEvent::LaneConfirmed(id));
        // What was under way on an older lane may be lost.
        self.send_config();
        self.restart_rekey(now);
    }

    fn kill_lane(&mut self, now: Instant, lane: LaneId) {
        let Some(index) = self.lane_index(lane) else {
            return;
        };
        let lane = &mut self.lanes[index];
        let id = lane.id;
        if lane.is_confirmed() {
            self.schedule.on_lane_down(now, id);
        }
        lane.state = LaneState::Dead;
        self.drop_waiting_for(id);
    }

    fn drop_waiting_for(&mut self, lane: LaneId) {
        let dropped = self
            .outbox
            .retain(|waiting| waiting.route != Route::Lane(lane));
        self.stats.drops.control_without_lane += dropped;
    }

    fn check_lanes(&mut self, now: Instant) {
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            if lane.is_dead() {
                continue;
            }
            let id = lane.id;
            match lane.liveness.poll(now) {
                Due::Nothing => {}
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
        if let Some(deadline) = living.map(|lane| lane.liveness.deadline()).min() {
            self.timers.set(Timer::Liveness, deadline);
        }
    }

    fn arm_liveness(&mut self, index: usize) {
        let deadline = self.lanes[index].liveness.deadline();
        self.timers.set_earlier(Timer::Liveness, deadline);
    }

    fn lane_index(&self, lane: LaneId) -> Option<usize> {
        self.lanes.iter().position(|known| known.id == lane)
    }

    // ---- epochs ----

    fn arm_rekey(&mut self) {
        let due = self
            .settings
            .rekey
            .due(self.epochs.current_ref(), self.role);
        self.timers.set(Timer::Rekey, due);
    }

    /// Begins a rekey, or asks for one, if there is a lane to do it on.
    fn begin_rekey(&mut self, now: Instant) {
        if self.state != State::Open || !self.lanes.iter().any(Lane::is_confirmed) {
            return;
        }
        match self.role {
            Role::Responder => {
                if self.rekey.ask() {
                    self.queue(Route::Best, Message::RekeyAsk);
                }
            }
            Role::Initiator => {
                let number = self.epochs.next_number();
                // Fails only for a peer's key of low order, with which there would be no session.
                let Ok(message) = self.rekey.start(number, &mut self.generator) else {
                    return;
                };
                self.outbox
                    .retain(|waiting| !matches!(waiting.message, Message::RekeyInit { .. }));
                self.queue(
                    Route::Best,
                    Message::RekeyInit {
                        epoch: number as u8,
                        message,
                    },
                );
            }
        }
        self.timers
            .set(Timer::RekeyRetry, now + self.settings.rekey.patience);
    }

    /// A lane came or went: a rekey that was due, or under way, may begin anew.
    fn restart_rekey(&mut self, now: Instant) {
        let due = self
            .settings
            .rekey
            .due(self.epochs.current_ref(), self.role);
        if self.state == State::Open && (self.rekey.is_under_way() || due <= now) {
            self.rekey.reset();
            self.begin_rekey(now);
        }
    }

    fn handle_rekey_init(&mut self, now: Instant, low_byte: u8, message: &[u8]) {
        let number = self.epochs.next_number();
        let answer = self
            .rekey
            .handle_init(number, low_byte, message, &mut self.generator);
        let Some((reply, secrets)) = answer else {
            self.stats.drops.stray_rekeys += 1;
            return;
        };
        self.epochs
            .propose(now, secrets.derive(self.aead, self.role));
        for lane in &mut self.lanes {
            lane.reset_counters(number);
        }
        self.timers.stop(Timer::RekeyRetry);
        self.outbox
            .retain(|waiting| !matches!(waiting.message, Message::RekeyReply { .. }));
        self.queue(
            Route::Best,
            Message::RekeyReply {
                epoch: low_byte,
                message: reply,
            },
        );
    }

    fn handle_rekey_reply(&mut self, now: Instant, low_byte: u8, message: &[u8]) {
        let Some(secrets) = self.rekey.handle_reply(low_byte, message) else {
            self.stats.drops.stray_rekeys += 1;
            return;
        };
        self.epochs
            .advance(now, secrets.derive(self.aead, self.role));
        self.handle_new_epoch();
        // The first frame of the new epoch, so that the responder may use it too.
        self.queue(Route::Best, Message::Ping);
    }

    fn handle_new_epoch(&mut self) {
        self.rekey.reset();
        self.timers.stop(Timer::RekeyRetry);
        self.timers.stop(Timer::FormerEpoch);
        self.arm_rekey();
        self.stats.rekeys += 1;
    }

    /// The newer epoch is in use at both ends: the former one has a while to live.
    fn arm_former(&mut self, now: Instant) {
        if self.epochs.has_former() {
            let delays = self.lanes.iter().filter(|lane| !lane.is_dead());
            let largest = delays.filter_map(|lane| lane.rtt.smoothed()).max();
            self.timers
                .set_earlier(Timer::FormerEpoch, now + overlap(largest));
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("peer", &self.peer)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// What a frame turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet, for the first time.
    Packet {
        /// Where in the frame it now is, in the clear.
        range: Range<usize>,
        /// Segmentation and checksum the sender left undone: a claim to check before use.
        offload: Offload,
    },
    /// A control frame; the session has dealt with it.
    Control,
    /// Nothing to deliver: a duplicate, a malformed packet, or an unknown type that may be skipped.
    Skipped,
}

/// What happened to a session, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Server: the client's first sealed frame opened. An older session of the same instance may go.
    Confirmed,
    /// Client: the server gave a configuration, the first or a changed one.
    Configured(InnerConfig),
    /// A lane may be sent on.
    LaneConfirmed(LaneId),
    /// Nobody answered on a lane: close its connection and call [`Session::remove_lane`].
    LaneDead(LaneId),
    /// The other end closed the session.
    PeerClosed(CloseReason),
}

/// Why a packet was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The buffer holds no packet, or more than a frame may.
    #[error("buffer of {len} bytes cannot be a frame")]
    Length {
        /// Bytes of the buffer.
        len: usize,
    },
    /// Server: nothing of the client has opened yet.
    #[error("the session is not confirmed")]
    Unconfirmed,
    /// The session is over.
    #[error("the session is closed: {reason}")]
    Closed {
        /// Why.
        reason: CloseReason,
    },
    /// The lane does not exist, is dead, or is not confirmed.
    #[error("lane {lane} cannot be sent on")]
    Lane {
        /// Which.
        lane: LaneId,
    },
    /// The epoch has sealed all it may, and no rekey has come about.
    #[error("epoch {epoch} has sealed all it may")]
    Exhausted {
        /// Its number.
        epoch: u64,
    },
}

/// Why a frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The session is over.
    #[error("the session is closed: {reason}")]
    Closed {
        /// Why.
        reason: CloseReason,
    },
    /// The bytes are no sealed frame.
    #[error(transparent)]
    Format(#[from] SealedFormatError),
    /// The lane does not exist or is dead.
    #[error("lane {lane} does not exist")]
    Lane {
        /// Which.
        lane: LaneId,
    },
    /// The frame is of an epoch that does not open, or no longer.
    #[error("epoch {found} does not open")]
    Epoch {
        /// Its low byte.
        found: u8,
    },
    /// The counter did not increase.
    #[error("counter {found}, at least {least} is due")]
    Counter {
        /// The frame's.
        found: u64,
        /// The least that would do.
        least: u64,
    },
    /// The seal does not open: not from the peer, or changed on the way.
    #[error("the frame does not open ({failed} in this epoch)")]
    Seal {
        /// Failed opens in this epoch so far.
        failed: u64,
    },
    /// A frame of unknown type that may not be skipped.
    #[error("unknown sealed frame type {kind:#04x}")]
    UnknownType {
        /// Its type.
        kind: u8,
    },
    /// A control frame is malformed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A control frame that this end does not take, or not now.
    #[error("{kind:?} frame out of place")]
    Misplaced {
        /// Its type.
        kind: InnerType,
    },
    /// A Join for another session.
    #[error("join for session {found}")]
    Session {
        /// Which.
        found: SessionId,
    },
    /// A Join with a lane id that is not new: a replay.
    #[error("join with lane {found}, above {highest} is due")]
    LaneId {
        /// The one it names.
        found: LaneId,
        /// The highest there was.
        highest: LaneId,
    },
    /// A Join when the session has as many lanes as it may.
    #[error("{MAX_LANES} lanes are joined")]
    TooManyLanes,
}

impl OpenError {
    /// How much ends with the frame.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        match self {
            Self::Closed { .. }
            | Self::Epoch { .. }
            | Self::Lane { .. }
            | Self::Session { .. }
            | Self::LaneId { .. }
            | Self::TooManyLanes => Scope::Frame,
            // On a stream nothing is lost or changed by accident: somebody meddles, or the peer
            // is broken. Either way the next frame is worth no more.
            Self::Format(_) | Self::Counter { .. } | Self::Seal { .. } => Scope::Lane,
            // The peer itself sealed it.
            Self::UnknownType { .. } | Self::Control(_) | Self::Misplaced { .. } => Scope::Session,
        }
    }
}

/// How much an error ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Only the frame is dropped.
    Frame,
    /// The lane is dead: close its connection and call [`Session::remove_lane`].
    Lane,
    /// The session is closed: send what [`Session::poll_control`] still gives.
    Session,
}

/// The configuration as it goes from server to client.
#[derive(Debug, Default)]
struct ConfigExchange {
    /// Server: number of the newest.
    serial: u32,
    /// Server: the newest, until the client has it.
    unacknowledged: Option<InnerConfig>,
    /// Client: number of the last.
    received: Option<u32>,
}

const fn is_reserved(kind: InnerType) -> bool {
    match kind {
        InnerType::Enrol
        | InnerType::FlowOpen
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
        | InnerType::JoinEcho => false,
    }
}

/// Lanes of a session, joining ones included: a lane for each address of a few servers.
pub const MAX_LANES: usize = 16;

/// Events that may wait: a drained session has none.
const MAX_EVENTS: usize = 64;
