//! Two sessions over an in-memory pipe with virtual time, for tests.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_netstack::Offload;
use rand::{SeedableRng, rngs::StdRng};

use super::handshake::{
    Answer, ChallengeState, ClientConfig, ClientEntry, Initiator, Reply, Responder,
};
use super::identity::SecretKey;
use super::session::{OpenError, Opened, Session, SessionEvent, Settings};
use crate::wire::{LaneId, PACKET_HEADROOM, TAILROOM};

/// A client, a server, and the frames under way between them on every lane.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) client: Session,
    pub(super) server: Session,
    pub(super) up: VecDeque<(LaneId, Vec<u8>)>,
    pub(super) down: VecDeque<(LaneId, Vec<u8>)>,
    pub(super) client_events: Vec<SessionEvent>,
    pub(super) server_events: Vec<SessionEvent>,
    pub(super) at_client: Vec<Vec<u8>>,
    pub(super) at_server: Vec<Vec<u8>>,
    /// Lanes on which nothing arrives any more.
    pub(super) cut: Vec<LaneId>,
    pub(super) errors: Vec<OpenError>,
}

impl Pair {
    /// After the handshake; nothing sealed has been exchanged yet.
    pub(super) fn new(settings: Settings) -> Self {
        let mut config = client_config();
        config.settings = settings;
        Self::with(&config, &responder(settings))
    }

    pub(super) fn with(config: &ClientConfig, responder: &Responder) -> Self {
        Self::seeded(config, responder, 3)
    }

    pub(super) fn seeded(config: &ClientConfig, responder: &Responder, seed: u64) -> Self {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut initiator, frame) = Initiator::new(config, unix(100), &mut rng).unwrap();
        let psk = config.psk.clone();
        let answer = responder.handle_init(
            now,
            &frame,
            &mut ChallengeState::default(),
            &mut rng,
            |_| {
                Some(ClientEntry {
                    psk,
                    id: 7,
                    revoked: false,
                })
            },
        );
        let Ok(Answer::Accept {
            reply,
            session: server,
            ..
        }) = answer
        else {
            panic!("{answer:?}");
        };
        let client = match initiator.handle(now, unix(100), &reply).unwrap() {
            Reply::Established(client) => *client,
            Reply::Retry(_) => panic!("challenged without need"),
        };
        Self {
            now,
            client,
            server: *server,
            up: VecDeque::new(),
            down: VecDeque::new(),
            client_events: Vec::new(),
            server_events: Vec::new(),
            at_client: Vec::new(),
            at_server: Vec::new(),
            cut: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// After both ends have confirmed each other.
    pub(super) fn confirmed(settings: Settings) -> Self {
        let mut pair = Self::new(settings);
        pair.run();
        pair
    }

    /// Delivers everything until nothing is under way.
    pub(super) fn run(&mut self) {
        for _ in 0..1000 {
            self.drain();
            if self.up.is_empty() && self.down.is_empty() {
                return;
            }
            while let Some((lane, mut frame)) = self.up.pop_front() {
                if !self.cut.contains(&lane) {
                    deliver(
                        &mut self.server,
                        self.now,
                        lane,
                        &mut frame,
                        &mut self.at_server,
                        &mut self.errors,
                    );
                }
            }
            while let Some((lane, mut frame)) = self.down.pop_front() {
                if !self.cut.contains(&lane) {
                    deliver(
                        &mut self.client,
                        self.now,
                        lane,
                        &mut frame,
                        &mut self.at_client,
                        &mut self.errors,
                    );
                }
            }
        }
        panic!("the two never stop talking");
    }

    /// Moves what both ends want to send to where it is under way, and takes their events.
    pub(super) fn drain(&mut self) {
        let mut out = Vec::new();
        while let Some(lane) = self.client.poll_control(self.now, &mut out) {
            self.up.push_back((lane, out.clone()));
        }
        while let Some(lane) = self.server.poll_control(self.now, &mut out) {
            self.down.push_back((lane, out.clone()));
        }
        self.client_events
            .extend(std::iter::from_fn(|| self.client.poll_event()));
        self.server_events
            .extend(std::iter::from_fn(|| self.server.poll_event()));
    }

    /// Lets time pass, and both ends do what falls due.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = [self.client.poll_timeout(), self.server.poll_timeout()];
            let next = due.into_iter().flatten().min().filter(|due| *due <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            self.client.handle_timeout(self.now);
            self.server.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    pub(super) fn client_sends(&mut self, lane: LaneId, packet: &[u8]) {
        let frame = sealed(&mut self.client, self.now, lane, packet);
        self.up.push_back((lane, frame));
    }

    pub(super) fn server_sends(&mut self, lane: LaneId, packet: &[u8]) {
        let frame = sealed(&mut self.server, self.now, lane, packet);
        self.down.push_back((lane, frame));
    }

    /// Joins a lane and lets everything that follows arrive.
    pub(super) fn join(&mut self) -> LaneId {
        let (lane, frame) = self.client.join_frame(self.now).unwrap();
        assert_eq!(self.server.handle_join(self.now, &frame), Ok(lane));
        self.run();
        lane
    }
}

fn deliver(
    session: &mut Session,
    now: Instant,
    lane: LaneId,
    frame: &mut [u8],
    packets: &mut Vec<Vec<u8>>,
    errors: &mut Vec<OpenError>,
) {
    match session.open(now, lane, frame) {
        Ok(Opened::Packet { range, .. }) => packets.push(frame[range].to_vec()),
        Ok(
            Opened::Repair { .. }
            | Opened::Report { .. }
            | Opened::Flow { .. }
            | Opened::Control
            | Opened::Skipped,
        ) => {}
        Err(error) => errors.push(error),
    }
}

pub(super) fn sealed(session: &mut Session, now: Instant, lane: LaneId, packet: &[u8]) -> Vec<u8> {
    let mut frame = room(packet);
    session
        .seal_packet(now, lane, &mut frame, Offload::default())
        .unwrap();
    frame
}

/// The packet with room in front of and behind it.
pub(super) fn room(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; PACKET_HEADROOM + packet.len() + TAILROOM];
    frame[PACKET_HEADROOM..PACKET_HEADROOM + packet.len()].copy_from_slice(packet);
    frame
}

pub(super) fn unix(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(secs)
}

pub(super) fn server_secret() -> SecretKey {
    SecretKey::from_bytes([0x51; 32])
}

pub(super) fn client_secret() -> SecretKey {
    SecretKey::from_bytes([0xC1; 32])
}

pub(super) fn client_config() -> ClientConfig {
    ClientConfig::new(client_secret(), server_secret().public(), *b"instance")
}

/// A server that started at second 50.
pub(super) fn responder(settings: Settings) -> Responder {
    Responder::new(vec![server_secret()], &[], settings, unix(50))
}
