//! What a session holds, and what can be asked of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::control::ConfigExchange;
use super::event::{Events, SessionEvent};
use super::retries::Retries;
use crate::proto::aead::AeadKind;
use crate::proto::epoch::{Epoch, Epochs};
use crate::proto::identity::{PresharedKey, PublicKey, SecretKey};
use crate::proto::keys::{EpochKeys, Role};
use crate::proto::lane::{Lane, LaneState};
use crate::proto::liveness::LivenessLimits;
use crate::proto::outbox::Outbox;
use crate::proto::path::DatagramPath;
use crate::proto::pieces::{Parts, Pieces};
use crate::proto::random::Generator;
use crate::proto::rekey::{Credentials, Rekey, RekeyLimits};
use crate::proto::replay::ReplayWindow;
use crate::proto::schedule::{PassThrough, Schedule};
use crate::proto::stats::{LaneStats, LaneTraffic, Stats, Traffic};
use crate::proto::timers::{Timer, Timers};
use crate::wire::{
    CAPABILITY_RELAYED, CloseReason, DEFAULT_MTU, HandshakeKind, INSTANCE_LEN, LaneId,
    PATH_CHALLENGE_LEN, SessionId, Token,
};

/// A session. Both roles are this one type.
///
/// **After every call that takes `&mut self`, drain [`Session::poll_control`] and
/// [`Session::poll_event`] until they have nothing, then look at [`Session::poll_timeout`].**
pub struct Session {
    pub(super) id: SessionId,
    pub(super) role: Role,
    pub(super) aead: AeadKind,
    /// Both ends relay flows.
    pub(super) relays: bool,
    /// It is for enrolment, and nothing else.
    pub(super) guest: bool,
    /// Client: what is to be enrolled with, until it is answered.
    pub(super) token: Option<Token>,
    pub(super) peer: PublicKey,
    pub(super) peer_minor: u8,
    pub(super) settings: Settings,
    pub(super) origin: Instant,
    pub(super) state: State,
    pub(super) epochs: Epochs,
    pub(super) rekey: Rekey,
    pub(super) generator: Generator,
    pub(super) lanes: Vec<Lane>,
    pub(super) highest_lane: LaneId,
    /// Which of the 64 lane ids from the highest down were taken, the highest in the lowest bit.
    pub(super) lanes_taken: u64,
    pub(super) next_source: u64,
    pub(super) sources: ReplayWindow,
    pub(super) config: ConfigExchange,
    pub(super) outbox: Outbox,
    pub(super) events: Events,
    pub(super) timers: Timers,
    pub(super) schedule: Box<dyn Schedule>,
    /// The lanes that carry packets side by side; see `Session::beside`.
    pub(super) beside: Vec<LaneId>,
    pub(super) stats: Stats,
    /// What lanes that have gone counted, together.
    pub(super) gone: LaneStats,
    /// Packets in pieces, and control frames in parts.
    pub(super) pieces: Pieces,
    pub(super) parts: Parts,
    pub(super) next_part: u8,
    pub(super) retries: Retries,
    /// Path challenges to be answered, and by which path.
    pub(super) path_answers: VecDeque<(LaneId, DatagramPath, [u8; PATH_CHALLENGE_LEN])>,
    pub(super) inner_mtu: usize,
}

impl Session {
    /// Begins with the first lane, over which the handshake ran.
    pub(in crate::proto) fn new(now: Instant, agreement: Agreement) -> Self {
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
            first_lane,
            guest,
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
        let limits = settings.liveness;
        let mut first = match first_lane {
            FirstLane::Stream => Lane::new(now, LaneId::FIRST, lane_state, limits),
            FirstLane::Datagram(path) => {
                Lane::datagram(now, LaneId::FIRST, path, lane_state, limits)
            }
        };
        if role == Role::Responder {
            // A client that is real pings at once.
            first.liveness.handle_ping_sent(now);
        }
        let mut session = Self {
            id,
            role,
            aead,
            relays: capabilities & CAPABILITY_RELAYED != 0 && !guest,
            guest,
            token: None,
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
            lanes_taken: 1,
            next_source: 0,
            sources: ReplayWindow::default(),
            config: ConfigExchange::default(),
            outbox: Outbox::default(),
            events: Events::default(),
            timers: Timers::default(),
            schedule: Box::new(PassThrough::default()),
            beside: Vec::new(),
            stats: Stats::default(),
            gone: LaneStats::default(),
            pieces: Pieces::default(),
            parts: Parts::default(),
            next_part: 0,
            retries: Retries::default(),
            path_answers: VecDeque::new(),
            inner_mtu: usize::from(DEFAULT_MTU),
        };
        session.limit_datagrams();
        session.arm_liveness(0);
        session.arm_rekey();
        if role == Role::Initiator {
            // The reply came over this lane, so the server is there.
            session.confirm_lane(now, 0);
        }
        session
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Liveness => self.check_lanes(now),
                Timer::Rekey => self.begin_rekey(now),
                Timer::RekeyRetry => {
                    if self.rekey.awaits_answer() {
                        self.stats.rekey_retries += 1;
                        self.rekey.reset();
                        self.begin_rekey(now);
                    }
                }
                Timer::FormerEpoch => self.epochs.erase_former(),
                Timer::Retry => self.check_retries(now),
                // Only says that Session::poll_probe has something.
                Timer::Probe => {}
            }
        }
    }

    /// When [`Session::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Takes the next event. **Call until `None`.**
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop()
    }

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

    /// Whether both ends relay flows without a netstack.
    #[must_use]
    pub const fn relays(&self) -> bool {
        self.relays
    }

    /// Whether it is a guest's: for enrolment, and nothing else.
    #[must_use]
    pub const fn is_guest(&self) -> bool {
        self.guest
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

    /// Limits and policies.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
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

    /// What all lanes carried, and each of them.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let lanes = self.lanes.iter().map(|lane| LaneTraffic {
            id: lane.id,
            kind: lane.kind,
            stats: lane.stats,
        });
        Traffic {
            total: self.carried(),
            lanes: lanes.collect(),
        }
    }

    /// What all lanes carried together, those that have gone included.
    #[must_use]
    pub fn carried(&self) -> LaneStats {
        let mut total = self.gone;
        for lane in &self.lanes {
            total += lane.stats;
        }
        total
    }

    /// The counters of a lane, or of those that have gone if it has: for whoever knows what became of
    /// what the session sealed and opened.
    pub(crate) fn count(&mut self, lane: LaneId) -> &mut LaneStats {
        match self.lanes.iter_mut().find(|known| known.id == lane) {
            Some(lane) => &mut lane.stats,
            None => &mut self.gone,
        }
    }

    pub(super) fn report(&mut self, event: SessionEvent) {
        if !self.events.push(event) {
            self.stats.drops.event_overflow += 1;
        }
    }

    pub(super) fn shut(&mut self, reason: CloseReason) {
        self.state = State::Closed { reason };
        self.outbox.retain(|_| false);
        self.timers.stop_all();
        self.stop_retries();
        self.path_answers.clear();
        self.rekey.reset();
    }

    pub(super) fn micros(&self, now: Instant) -> u64 {
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

/// Limits and time-outs of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// When keys are replaced.
    pub rekey: RekeyLimits,
    /// When to ping, and when to give up.
    pub liveness: LivenessLimits,
    /// How what is sent on datagram lanes is repaired.
    pub repair: adit_fec::Mode,
    /// Flows are relayed without a netstack, if the other end says so too.
    pub relayed: bool,
}

/// What a handshake hands to the session it made.
pub(in crate::proto) struct Agreement {
    pub(in crate::proto) role: Role,
    pub(in crate::proto) id: SessionId,
    pub(in crate::proto) kind: HandshakeKind,
    pub(in crate::proto) secret: SecretKey,
    pub(in crate::proto) peer: PublicKey,
    pub(in crate::proto) psk: Option<PresharedKey>,
    pub(in crate::proto) instance: [u8; INSTANCE_LEN],
    pub(in crate::proto) aead: AeadKind,
    pub(in crate::proto) peer_minor: u8,
    pub(in crate::proto) capabilities: u32,
    pub(in crate::proto) keys: EpochKeys,
    pub(in crate::proto) settings: Settings,
    pub(in crate::proto) generator: Generator,
    pub(in crate::proto) first_lane: FirstLane,
    pub(in crate::proto) guest: bool,
}

/// What the handshake ran over.
#[derive(Clone, Copy, Debug)]
pub(in crate::proto) enum FirstLane {
    /// A connection.
    Stream,
    /// Datagrams.
    Datagram(DatagramPath),
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Server: nothing of the client has opened, so it may be a replay. Nothing is sent.
    Unconfirmed,
    /// Both ends have the keys.
    Open,
    /// Over. Only Close frames still leave.
    Closed { reason: CloseReason },
}

/// Lanes of a session, joining ones included: a lane for each address of a few servers.
pub const MAX_LANES: usize = 16;
