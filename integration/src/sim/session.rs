//! The tunnel under test: two sessions with one datagram lane between them.
//!
//! The handshake, the confirmation and the first probes of the path happen before time begins, over a link that loses
//! nothing and is as long as the one of the scenario. From then on every datagram of both ends, control frames and
//! probes included, goes over the world's link.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adit::{
    proto::{
        Answer, ClientConfig, ClientEntry, DatagramInitiator, DatagramPath, DatagramResponder,
        LoadLimits, Producer, QueuePacket, Reception, Responder, SecretKey, Session, Settings,
        datapath::{Datapath, DatapathStats, LaneCounts},
    },
    wire::LaneId,
};
use adit_fec::Settings as RepairSettings;
use adit_netstack::{Checksum, Gso, Offload, complete_checksum};
use rand::{SeedableRng, rngs::StdRng};

use super::{
    packet::{Packet, Side},
    tunnel::{Datagram, Tunnel},
};
use crate::link::Link;

/// Two sessions and what drives them, without sockets.
pub struct SessionTunnel {
    ends: [End; 2],
    control: Vec<u8>,
    refused: u64,
}

/// One end.
struct End {
    session: Session,
    datapath: Datapath<Queued>,
    /// Where the other end is.
    path: DatagramPath,
    delivered: VecDeque<Packet>,
}

/// A packet in the queue in front of the lane.
#[derive(Debug)]
struct Queued {
    bytes: Vec<u8>,
    offload: Offload,
}

impl QueuePacket for Queued {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn offload(&self) -> Offload {
        self.offload
    }
}

impl SessionTunnel {
    /// Makes both ends, which know each other at `epoch`, as after some seconds of silence on `link`.
    ///
    /// # Panics
    ///
    /// If the two do not come to know each other in time: nothing was lost.
    pub fn new(epoch: Instant, link: &Link, repair: RepairSettings, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (client, server) = acquaint(epoch, link, &mut rng);
        let end = |mut session: Session, path, seed| {
            let next = session.highest_source().map_or(0, |highest| highest + 1);
            let mut datapath = Datapath::new(epoch, seed, next, repair);
            datapath.follow_lanes(&mut session, epoch);
            End {
                session,
                datapath,
                path,
                delivered: VecDeque::new(),
            }
        };
        Self {
            ends: [
                end(client, DatagramPath::to(server_address()), seed),
                end(
                    server,
                    DatagramPath::to(client_address()),
                    seed.wrapping_add(1),
                ),
            ],
            control: Vec::new(),
            refused: 0,
        }
    }

    /// Counters of the lane at one side.
    pub fn counts(&self, side: Side) -> Option<LaneCounts> {
        self.ends[side.index()].datapath.lane_counts(LANE)
    }

    /// What the datapath at one side counted, over all lanes.
    pub fn stats(&self, side: Side) -> DatapathStats {
        self.ends[side.index()].datapath.stats()
    }

    /// Datagrams that an end would not open; there should be none.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl Tunnel for SessionTunnel {
    fn inject(&mut self, now: Instant, side: Side, packet: Packet) {
        let offload = match packet.segment {
            None => Offload::default(),
            Some(size) => Offload {
                gso: Gso::Tcp { size },
                checksum: Checksum::Partial,
            },
        };
        let queued = Queued {
            bytes: packet.bytes,
            offload,
        };
        // what the queue refuses is lost to the endpoints, who notice
        self.ends[side.index()]
            .datapath
            .enqueue(now, queued, Producer::Other);
    }

    fn poll_transmit(&mut self, now: Instant, side: Side) -> Option<Datagram> {
        let End {
            session, datapath, ..
        } = &mut self.ends[side.index()];
        let datagram = |bytes| Datagram {
            bytes,
            headers: HEADERS,
            ecn: false,
        };
        if let Some(lane) = session.poll_control(now, &mut self.control) {
            datapath.handle_control_sent(session, now, lane, &self.control);
            return Some(datagram(self.control.clone()));
        }
        if session.poll_probe(now, &mut self.control).is_some() {
            return Some(datagram(self.control.clone()));
        }
        let mut out = vec![0; LONGEST];
        if let Some(len) = datapath.poll_datagram(session, now, LANE, true, &mut out) {
            out.truncate(len);
            return Some(datagram(out));
        }
        while session.poll_event().is_some() {}
        // the path MTU may have changed
        datapath.follow_lanes(session, now);
        None
    }

    fn handle_datagram(&mut self, now: Instant, side: Side, mut datagram: Vec<u8>, marked: bool) {
        let End {
            session,
            datapath,
            path,
            delivered,
            ..
        } = &mut self.ends[side.index()];
        let mut deliver = |frame: &mut [u8], range: Range<usize>, offload: Offload| {
            delivered.push_back(whole(&frame[range], offload));
        };
        let opened = datapath.open(session, now, *path, &mut datagram, marked, &mut deliver);
        self.refused += u64::from(opened.is_err());
    }

    fn poll_deliver(&mut self, _now: Instant, side: Side) -> Option<Packet> {
        self.ends[side.index()].delivered.pop_front()
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let due = self
            .ends
            .iter()
            .flat_map(|end| [end.session.poll_timeout(), end.datapath.poll_timeout()]);
        // a timer that is due and yet has nothing to do must not stop the time
        due.flatten().min().map(|due| due.max(now + LEAST_STEP))
    }

    fn handle_timeout(&mut self, now: Instant) {
        for End {
            session,
            datapath,
            delivered,
            ..
        } in &mut self.ends
        {
            if session.poll_timeout().is_some_and(|due| due <= now) {
                session.handle_timeout(now);
            }
            let mut deliver = |frame: &mut [u8], range: Range<usize>, offload: Offload| {
                delivered.push_back(whole(&frame[range], offload));
            };
            datapath.handle_timeout(session, now, &mut deliver);
        }
    }
}

/// A packet as an endpoint takes it: a kernel completes the checksum that is owed.
fn whole(bytes: &[u8], offload: Offload) -> Packet {
    let mut bytes = bytes.to_vec();
    let segment = match offload.gso {
        Gso::None => None,
        Gso::Tcp { size } | Gso::Udp { size } => Some(size),
    };
    if offload.checksum == Checksum::Partial && segment.is_none() {
        // what cannot be completed fails where it is verified
        let _ = complete_checksum(&mut bytes);
    }
    Packet { bytes, segment }
}

/// A datagram of the handshake under way.
struct Flying {
    at: Instant,
    up: bool,
    bytes: Vec<u8>,
}

/// Lets a client and a server find each other by `epoch`.
fn acquaint(epoch: Instant, link: &Link, rng: &mut StdRng) -> (Session, Session) {
    let settings = Settings::default();
    let (client_secret, server_secret) = (
        SecretKey::from_bytes([0xC1; 32]),
        SecretKey::from_bytes([0x51; 32]),
    );
    let mut config = ClientConfig::new(client_secret, server_secret.public(), *b"instance");
    config.settings = settings;
    let begin = epoch
        .checked_sub(BEFORE)
        .expect("the machine runs for longer than that");
    let wall =
        |now: Instant| STARTED + Duration::from_secs(100) + now.saturating_duration_since(begin);
    let responder = Responder::new(vec![server_secret], &[], settings, STARTED);
    let mut strangers = DatagramResponder::new(Arc::new(responder), LoadLimits::default(), rng);
    let path = DatagramPath::to(server_address());
    let mut initiator =
        DatagramInitiator::new(begin, &config, path, rng).expect("ML-KEM-768 fits a datagram");
    let (mut client, mut server) = (None::<Box<Session>>, None::<Box<Session>>);
    let mut flying: VecDeque<Flying> = VecDeque::new();
    let (mut now, mut out) = (begin, Vec::new());
    while now < epoch {
        let mut leaving = Vec::new();
        if client.is_none()
            && initiator
                .poll_transmit(now, wall(now), &mut out)
                .expect("the server's key is somebody's")
        {
            leaving.push((true, out.clone()));
        }
        for (up, session) in [(true, &mut client), (false, &mut server)] {
            let Some(session) = session else { continue };
            while session.poll_control(now, &mut out).is_some() {
                leaving.push((up, out.clone()));
            }
            while session.poll_probe(now, &mut out).is_some() {
                leaving.push((up, out.clone()));
            }
            while session.poll_event().is_some() {}
        }
        for (up, bytes) in leaving {
            let path = if up { &link.up } else { &link.down };
            if path.mtu == 0 || bytes.len() + HEADERS <= path.mtu as usize {
                let at = now + path.delay + path.transmission(bytes.len() + HEADERS);
                flying.push_back(Flying { at, up, bytes });
            }
        }
        let waiting = client.is_none().then(|| initiator.poll_timeout());
        let timers = [&client, &server].into_iter().flatten();
        let due = timers
            .filter_map(|session| session.poll_timeout())
            .chain(waiting);
        let next = due.chain(flying.iter().map(|flying| flying.at)).min();
        now = next.unwrap_or(epoch).max(now + LEAST_STEP).min(epoch);
        while let Some(index) = flying.iter().position(|flying| flying.at <= now) {
            let Some(mut arrived) = flying.remove(index) else {
                break;
            };
            if arrived.up {
                let path = DatagramPath::to(client_address());
                let entry = |_: &_| {
                    Some(ClientEntry {
                        psk: None,
                        id: 7,
                        revoked: false,
                    })
                };
                let reception = strangers.handle(now, path, &arrived.bytes, 0, entry);
                if let (Reception::Sealed { .. }, Some(server)) = (&reception, &mut server) {
                    let _ = server.open_datagram(now, path, &mut arrived.bytes);
                }
                // the first answer is the one that counts: an Init sent again meanwhile is answered by no one
                if let (Reception::Handshake(Answer::Accept { reply, session, .. }), None) =
                    (reception, &server)
                {
                    server = Some(session);
                    flying.push_back(Flying {
                        at: now + link.down.delay,
                        up: false,
                        bytes: reply,
                    });
                }
            } else if let Some(client) = &mut client {
                let path = DatagramPath::to(server_address());
                let _ = client.open_datagram(now, path, &mut arrived.bytes);
            } else if let Ok(Some(session)) = initiator.handle(now, &arrived.bytes) {
                client = Some(session);
            }
        }
        for session in [&mut client, &mut server].into_iter().flatten() {
            if session.poll_timeout().is_some_and(|due| due <= now) {
                session.handle_timeout(now);
            }
        }
    }
    match (client, server) {
        (Some(client), Some(server)) if server.is_confirmed() => (*client, *server),
        (client, server) => panic!(
            "no session after {BEFORE:?}: client {}, server {}",
            client.is_some(),
            server.is_some()
        ),
    }
}

fn client_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1000))
}

fn server_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 254], 51820))
}

/// The only lane.
const LANE: LaneId = LaneId::FIRST;
/// The headers of UDP and IPv4.
const HEADERS: usize = 28;
/// More than any datagram on Ethernet.
const LONGEST: usize = 2048;
/// Ten round trips of a satellite, and then time for probes.
const BEFORE: Duration = Duration::from_secs(8);
/// When the server's clock says that it started.
const STARTED: SystemTime = UNIX_EPOCH;
/// The finest that a driver's timer is.
const LEAST_STEP: Duration = Duration::from_micros(5);
