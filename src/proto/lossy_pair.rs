//! A client and a server over datagrams that are lost, late, copied and cut, with virtual time, for
//! tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_netstack::{Checksum, Offload};
use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use super::handshake::{
    Answer, ClientConfig, ClientEntry, DatagramInitiator, DatagramResponder, Reception, Responder,
    StrangerDrop,
};
use super::load::LoadLimits;
use super::pair::{client_config, responder, unix};
use super::path::DatagramPath;
use super::session::{OpenError, Opened, Session, SessionEvent, Settings};
use crate::wire::{
    DATAGRAM_PACKET_HEADROOM, DATAGRAM_PACKET_OVERHEAD, DatagramPacketHeader, DatagramType,
    InnerType, LaneId, Piece, TAILROOM, datagram_type,
};

/// What the way does to datagrams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    /// Of a thousand, how many are lost.
    pub(super) loss: u32,
    /// Of a thousand, how many come twice.
    pub(super) copies: u32,
    /// Longer sealed ones are lost. Handshakes may be fragmented.
    pub(super) mtu: usize,
    pub(super) cut: bool,
}

impl Default for Way {
    /// 25 ms, nothing lost, Ethernet.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(25),
            jitter: Duration::ZERO,
            loss: 0,
            copies: 0,
            mtu: 1472,
            cut: false,
        }
    }
}

impl Way {
    /// 5 % lost, 2 % twice, and late by up to 20 ms.
    pub(super) fn bad() -> Self {
        Self {
            jitter: Duration::from_millis(20),
            loss: 50,
            copies: 20,
            ..Self::default()
        }
    }
}

/// A datagram under way.
#[derive(Clone, Debug)]
pub(super) struct Flying {
    pub(super) at: Instant,
    number: u64,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// Both ends, and what is between them.
pub(super) struct LossyPair {
    pub(super) now: Instant,
    start: Instant,
    pub(super) way: Way,
    pub(super) rng: StdRng,
    pub(super) flying: Vec<Flying>,
    sent: u64,
    pub(super) client_at: SocketAddr,
    pub(super) initiator: Option<DatagramInitiator>,
    pub(super) strangers: DatagramResponder,
    pub(super) client: Option<Session>,
    pub(super) server: Option<Session>,
    /// Sessions of which nothing has opened yet: one for each Init that was answered.
    pub(super) pending: Vec<Session>,
    pub(super) client_events: Vec<SessionEvent>,
    pub(super) server_events: Vec<SessionEvent>,
    pub(super) at_client: Vec<Vec<u8>>,
    pub(super) at_server: Vec<Vec<u8>>,
    pub(super) errors: Vec<OpenError>,
    pub(super) dropped: Vec<StrangerDrop>,
    /// Seconds by which the client's clock is wrong.
    pub(super) clock: u64,
}

impl LossyPair {
    /// Before the handshake.
    pub(super) fn new(way: Way, settings: Settings, seed: u64) -> Self {
        let mut config = client_config();
        config.settings = settings;
        Self::with(way, &config, responder(settings), seed)
    }

    /// The same with a client and a server of the caller's.
    pub(super) fn with(way: Way, config: &ClientConfig, responder: Responder, seed: u64) -> Self {
        let now = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let client_at = address(1, 1000);
        let path = DatagramPath::to(server_at());
        let initiator = DatagramInitiator::new(now, config, path, &mut rng).unwrap();
        let responder = Arc::new(responder);
        let strangers = DatagramResponder::new(responder, LoadLimits::default(), &mut rng);
        Self {
            now,
            start: now,
            way,
            rng,
            flying: Vec::new(),
            sent: 0,
            client_at,
            initiator: Some(initiator),
            strangers,
            client: None,
            server: None,
            pending: Vec::new(),
            client_events: Vec::new(),
            server_events: Vec::new(),
            at_client: Vec::new(),
            at_server: Vec::new(),
            errors: Vec::new(),
            dropped: Vec::new(),
            clock: 100,
        }
    }

    /// After both ends have confirmed each other.
    pub(super) fn confirmed(way: Way, settings: Settings, seed: u64) -> Self {
        let mut pair = Self::new(way, settings, seed);
        for _ in 0..200 {
            pair.pass(Duration::from_millis(100));
            if pair.server.as_ref().is_some_and(Session::is_confirmed) && pair.client.is_some() {
                return pair;
            }
        }
        panic!("no session after 20 s");
    }

    pub(super) fn client(&mut self) -> &mut Session {
        self.client.as_mut().expect("the client has a session")
    }

    pub(super) fn server(&mut self) -> &mut Session {
        self.server.as_mut().expect("the server has a session")
    }

    /// Lets time pass, and everything that falls due happen.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1_000_000 {
            self.drain();
            let next = self.next().filter(|next| *next <= end);
            let Some(next) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            let due = self
                .flying
                .iter()
                .enumerate()
                .filter(|(_, f)| f.at <= self.now);
            let first = due
                .min_by_key(|(_, f)| (f.at, f.number))
                .map(|(index, _)| index);
            match first {
                Some(index) => {
                    let flying = self.flying.swap_remove(index);
                    self.arrive(flying);
                }
                None => {
                    for session in [&mut self.client, &mut self.server].into_iter().flatten() {
                        session.handle_timeout(self.now);
                    }
                }
            }
        }
        panic!("the two never stop talking");
    }

    /// Sends a packet from either end on a lane, in two pieces if it must be.
    pub(super) fn send(&mut self, up: bool, lane: LaneId, packet: &[u8]) {
        let now = self.now;
        let session = if up { self.client() } else { self.server() };
        let to = session.datagram_path(lane).unwrap().remote;
        let most = session.max_datagram(lane).unwrap() - DATAGRAM_PACKET_OVERHEAD;
        let mut datagrams = Vec::new();
        if packet.len() <= most {
            let mut buf = room(packet);
            session
                .seal_packet(now, lane, &mut buf, Offload::default())
                .unwrap();
            datagrams.push(buf);
        } else {
            let number = session.alloc_source(1);
            let (front, rest) = packet.split_at(most);
            for (piece, bytes) in [(Piece::First, front), (Piece::Last, rest)] {
                let mut buf = room(bytes);
                session
                    .seal_piece(
                        now,
                        lane,
                        DatagramPacketHeader {
                            source: number as u32,
                            checksum: Checksum::Full,
                            kept: false,
                            piece,
                        },
                        &mut buf,
                    )
                    .unwrap();
                datagrams.push(buf);
            }
        }
        for datagram in datagrams {
            self.fly(up, to, datagram);
        }
    }

    /// Puts a datagram on its way.
    pub(super) fn fly(&mut self, up: bool, to: SocketAddr, bytes: Vec<u8>) {
        let from = if up { self.client_at } else { server_at() };
        let sealed = matches!(
            datagram_type(&bytes),
            Some(DatagramType::Sealed | DatagramType::Join)
        );
        let too_long = sealed && bytes.len() > self.way.mtu;
        let lost = self.rng.random_range(0..1000) < self.way.loss;
        if self.way.cut || lost || too_long {
            return;
        }
        let copies = 1 + u64::from(self.rng.random_range(0..1000) < self.way.copies);
        for _ in 0..copies {
            let late = self
                .rng
                .random_range(0..=self.way.jitter.as_micros() as u64);
            self.sent += 1;
            self.flying.push(Flying {
                at: self.now + self.way.delay + Duration::from_micros(late),
                number: self.sent,
                from,
                to,
                bytes: bytes.clone(),
            });
        }
    }

    /// Moves what both ends want to send to where it is under way, and takes their events.
    pub(super) fn drain(&mut self) {
        let mut out = Vec::new();
        let wall = unix(self.clock) + (self.now - self.start);
        if let Some(initiator) = &mut self.initiator
            && initiator.poll_transmit(self.now, wall, &mut out).unwrap()
        {
            self.fly(true, server_at(), out.clone());
        }
        for up in [true, false] {
            let now = self.now;
            let mut leaving = Vec::new();
            let session = if up {
                &mut self.client
            } else {
                &mut self.server
            };
            let Some(session) = session else { continue };
            while let Some(lane) = session.poll_control(now, &mut out) {
                // A stream lane is not carried here.
                if let Some(path) = session.datagram_path(lane) {
                    leaving.push((path.remote, out.clone()));
                }
            }
            while let Some((_, path)) = session.poll_probe(now, &mut out) {
                leaving.push((path.remote, out.clone()));
            }
            let events = if up {
                &mut self.client_events
            } else {
                &mut self.server_events
            };
            events.extend(std::iter::from_fn(|| session.poll_event()));
            for (to, bytes) in leaving {
                self.fly(up, to, bytes);
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let sessions = [&self.client, &self.server].into_iter().flatten();
        let timers = sessions.filter_map(Session::poll_timeout);
        let flying = self.flying.iter().map(|flying| flying.at);
        let initiator = self.initiator.iter().map(DatagramInitiator::poll_timeout);
        timers.chain(flying).chain(initiator).min()
    }

    fn arrive(&mut self, flying: Flying) {
        let Flying {
            from,
            to,
            mut bytes,
            ..
        } = flying;
        if to == server_at() {
            self.arrive_at_server(from, &mut bytes);
        } else if to == self.client_at {
            self.arrive_at_client(&mut bytes);
        }
    }

    fn arrive_at_server(&mut self, from: SocketAddr, bytes: &mut [u8]) {
        let path = DatagramPath::to(from);
        let unconfirmed = self.pending.len();
        let entry = |_: &_| {
            Some(ClientEntry {
                psk: None,
                id: 7,
                revoked: false,
            })
        };
        let reception = self
            .strangers
            .handle(self.now, path, bytes, unconfirmed, entry);
        match reception {
            Reception::Sealed { handle } => {
                let named = |session: &Session| session.id().handle() == handle;
                let index = self.pending.iter().position(named);
                let pending = index.and_then(|index| self.pending.get_mut(index));
                let Some(session) = pending.or(self.server.as_mut().filter(|s| named(s))) else {
                    return;
                };
                let errors = &mut self.errors;
                open(session, self.now, path, bytes, &mut self.at_server, errors);
                // As a registry does: the one that is confirmed stays, the others go with time.
                if let Some(index) = index.filter(|index| self.pending[*index].is_confirmed()) {
                    assert!(self.server.is_none());
                    self.server = Some(self.pending.swap_remove(index));
                }
            }
            Reception::Join { session } => {
                if let Some(server) = self.server.as_mut().filter(|s| s.id() == session)
                    && let Err(error) = server.handle_join_datagram(self.now, path, bytes)
                {
                    self.errors.push(error);
                }
            }
            Reception::Answer(answer) => self.fly(false, from, answer.as_bytes().to_vec()),
            Reception::Handshake(Answer::Accept { reply, session, .. }) => {
                assert!(reply.len() < bytes.len());
                self.pending.push(*session);
                self.fly(false, from, reply);
            }
            Reception::Handshake(answer) => panic!("{answer:?}"),
            Reception::Drop(reason) => self.dropped.push(reason),
        }
    }

    fn arrive_at_client(&mut self, bytes: &mut [u8]) {
        if let Some(initiator) = &mut self.initiator
            && let Some(session) = initiator.handle(self.now, bytes).unwrap()
        {
            self.initiator = None;
            self.client = Some(*session);
            return;
        }
        if let Some(client) = &mut self.client
            && datagram_type(bytes) == Some(DatagramType::Sealed)
        {
            let path = DatagramPath::to(server_at());
            let errors = &mut self.errors;
            open(client, self.now, path, bytes, &mut self.at_client, errors);
        }
    }

    /// Seals bytes of any type at the client, as a peer without manners could.
    pub(super) fn seal(&mut self, up: bool, lane: LaneId, kind: InnerType, body: &[u8]) -> Vec<u8> {
        let now = self.now;
        let session = if up { self.client() } else { self.server() };
        let mut out = vec![0; 1500];
        let len = session.seal_body(now, lane, kind, body, &mut out).unwrap();
        out.truncate(len);
        out
    }
}

fn open(
    session: &mut Session,
    now: Instant,
    path: DatagramPath,
    datagram: &mut [u8],
    packets: &mut Vec<Vec<u8>>,
    errors: &mut Vec<OpenError>,
) {
    match session.open_datagram(now, path, datagram) {
        Ok(Opened::Packet { range, .. }) => packets.push(datagram[range].to_vec()),
        Ok(
            Opened::Repair { .. }
            | Opened::Report { .. }
            | Opened::Flow { .. }
            | Opened::Control
            | Opened::Skipped,
        ) => {}
        Err(error) => errors.push(error),
    }
    while let Some((_, packet, _)) = session.poll_delivery() {
        packets.push(packet.to_vec());
    }
}

/// The packet with a datagram lane's room in front of and behind it.
pub(super) fn room(packet: &[u8]) -> Vec<u8> {
    let mut buf = vec![0; DATAGRAM_PACKET_HEADROOM];
    buf.extend_from_slice(packet);
    buf.resize(buf.len() + TAILROOM, 0);
    buf
}

pub(super) fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], port))
}

pub(super) fn server_at() -> SocketAddr {
    address(254, 51820)
}
