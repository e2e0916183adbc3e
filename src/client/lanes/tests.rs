//! Attempts that join, are answered late, or not at all, on a carrier without a network.

use std::net::SocketAddr;
use std::time::UNIX_EPOCH;

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::io::carrier::CarrierEvent;
use crate::io::dial::Dialer;
use crate::io::lane::{LaneStream, StreamLane};
use crate::io::pool::Pool;
use crate::io::tls::{ClientTls, Verify};
use crate::io::udp::{Receiver, UdpIo};
use crate::proto::{
    Answer, ChallengeState, ClientConfig, ClientEntry, DatagramPath, Initiator, PacketMeta, Reply,
    Responder, SecretKey, Session, Settings,
};
use crate::wire::{DatagramType, datagram_type};

fn lanes(now: Instant, handshake: ClientConfig, pool: Arc<Pool>) -> Lanes {
    lanes_to("udp://127.0.0.1:9", now, handshake, pool)
}

fn lanes_to(server: &str, now: Instant, handshake: ClientConfig, pool: Arc<Pool>) -> Lanes {
    let connector = Connector {
        servers: vec![server.parse().unwrap()],
        dialer: Dialer::new(ClientTls::new(&Verify::Unchecked).unwrap()),
        handshake,
        time: Duration::from_secs(1),
        lanes: 1,
        source: None,
        doubted: Arc::default(),
        pool,
    };
    Lanes::new(now, Arc::new(connector), 7)
}

fn sessions(now: Instant) -> (ClientConfig, Session, Session) {
    let mut rng = rand::rng();
    let secret = SecretKey::generate(&mut rng);
    let config = ClientConfig::new(SecretKey::generate(&mut rng), secret.public(), *b"instance");
    let responder = Responder::new(vec![secret], &[], Settings::default(), UNIX_EPOCH);
    let unix = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let (mut initiator, init) = Initiator::new(&config, unix, &mut rng).unwrap();
    let mut challenge = ChallengeState::default();
    let entry = |_: &_| Some(ClientEntry::default());
    let answer = responder.handle_init(now, &init, &mut challenge, &mut rng, entry);
    let Ok(Answer::Accept { reply, session, .. }) = answer else {
        panic!("{answer:?}");
    };
    let Ok(Reply::Established(client)) = initiator.handle(now, unix, &reply) else {
        panic!("no session");
    };
    (config, *client, *session)
}

async fn stream(pool: Arc<Pool>) -> StreamLane {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await;
    StreamLane::new(LaneStream::Tcp(near.unwrap()), pool)
}

/// Hands over what one end has to say; `path` is what each datagram came by.
fn carry(now: Instant, from: &mut Session, to: &mut Session) {
    let mut out = Vec::new();
    while let Some(lane) = from.poll_control(now, &mut out) {
        let Some(path) = from.datagram_path(lane) else {
            to.open(now, lane, &mut out).unwrap();
            continue;
        };
        match datagram_type(&out) {
            Some(DatagramType::Join) => {
                to.handle_join_datagram(now, path, &out).unwrap();
            }
            Some(_) | None => {
                to.open_datagram(now, path, &mut out).unwrap();
            }
        }
    }
}

/// A client with a session whose first lane both ends use, the server's end, and an attempt that joins by so many
/// ways.
async fn joining(now: Instant, ways: u16) -> (Lanes, Option<Carrier>, Session) {
    let pool = Pool::new("test", 4, 4);
    let (config, client, mut server) = sessions(now);
    let mut lanes = lanes(now, config, pool.clone());
    let mut carrier = Carrier::new(client, LaneId::FIRST, stream(pool.clone()).await);
    carry(now, carrier.session_mut(), &mut server);
    carry(now, &mut server, carrier.session_mut());
    assert_eq!(lanes.link.poll_attempt(now), Some(0));
    let mut joining = Vec::new();
    for port in 0..ways {
        let remote = ([127, 0, 0, 1], 9 + port).into();
        let io = Arc::new(UdpIo::for_remote(remote).unwrap());
        let path = DatagramPath {
            socket: io.id(),
            ..DatagramPath::to(remote)
        };
        let receiver = Receiver::new(io, pool.clone());
        joining.extend(carrier.join_datagrams(now, receiver, path));
    }
    assert_eq!(joining.len(), usize::from(ways));
    lanes.attempts.push(Attempt {
        server: 0,
        future: None,
        joining,
        deadline: None,
        greets: false,
        quiet_at: None,
    });
    (lanes, Some(carrier), server)
}

fn handle_events(now: Instant, lanes: &mut Lanes, carrier: &mut Option<Carrier>) {
    while let Some(event) = carrier.as_mut().and_then(|one| one.poll_event(now)) {
        if let CarrierEvent::Session(event) = event {
            lanes.handle_event(now, carrier, &event);
        }
    }
}

#[tokio::test]
async fn of_two_ways_that_answer_at_once_the_one_stays_that_the_server_uses() {
    let now = Instant::now();
    let (mut lanes, mut carrier, mut server) = joining(now, 2).await;
    // Both are answered, and both echoes leave, before the driver looks at events.
    let client = carrier.as_mut().unwrap().session_mut();
    carry(now, client, &mut server);
    carry(now, &mut server, client);
    carry(now, client, &mut server);
    handle_events(now, &mut lanes, &mut carrier);
    let used = server.lane_for(now, PacketMeta::default()).unwrap();
    let session = carrier.as_ref().unwrap().session();
    assert!(session.lanes().any(|lane| lane == used), "{used} is gone");
    assert_eq!(lanes.server_of(used), Some(0));
}

/// Takes away what the session has to say, as a way does that is closed.
fn lose(now: Instant, session: &mut Session) {
    let mut out = Vec::new();
    while session.poll_control(now, &mut out).is_some() {}
}

#[tokio::test]
async fn session_is_resumed_though_a_fresh_one_is_offered_first() {
    let now = Instant::now();
    let (mut lanes, mut carrier, mut server) = joining(now, 1).await;
    lose(now, carrier.as_mut().unwrap().session_mut());
    let (_, fresh, _) = sessions(now);
    let fresh = Carrier::new(fresh, LaneId::FIRST, stream(Pool::new("fresh", 4, 4)).await);
    let former = carrier.as_ref().unwrap().session().id();
    lanes.ended(now, &mut carrier, 0, Ok(Connected::Fresh(Box::new(fresh))));
    let client = carrier.as_mut().unwrap().session_mut();
    carry(now, client, &mut server);
    carry(now, &mut server, client);
    handle_events(now, &mut lanes, &mut carrier);
    lanes.handle_timeout(now + RESUME_PATIENCE, &mut carrier);
    let session = carrier.as_ref().unwrap().session();
    assert_eq!(session.id(), former);
    assert!(session.lanes().any(|lane| lanes.server_of(lane) == Some(0)));
}

#[tokio::test]
async fn fresh_session_begins_where_repeated_joins_stay_unanswered() {
    let now = Instant::now();
    let (mut lanes, mut carrier, _) = joining(now, 1).await;
    let (_, fresh, _) = sessions(now);
    let id = fresh.id();
    let fresh = Carrier::new(fresh, LaneId::FIRST, stream(Pool::new("fresh", 4, 4)).await);
    lanes.ended(now, &mut carrier, 0, Ok(Connected::Fresh(Box::new(fresh))));
    assert_ne!(carrier.as_ref().unwrap().session().id(), id);
    assert!(
        lanes
            .poll_timeout()
            .is_some_and(|due| due <= now + RESUME_PATIENCE)
    );
    lanes.handle_timeout(now + RESUME_PATIENCE, &mut carrier);
    assert_eq!(carrier.as_ref().unwrap().session().id(), id);
}

#[tokio::test]
async fn fresh_session_that_was_offered_is_not_begun_once_the_server_has_closed_the_former() {
    let now = Instant::now();
    for reason in [CloseReason::Revoked, CloseReason::ShuttingDown] {
        let (mut lanes, mut carrier, _) = joining(now, 1).await;
        let (_, fresh, _) = sessions(now);
        let fresh = Carrier::new(fresh, LaneId::FIRST, stream(Pool::new("fresh", 4, 4)).await);
        lanes.ended(now, &mut carrier, 0, Ok(Connected::Fresh(Box::new(fresh))));
        lanes.handle_closed(now, reason);
        let mut carrier = None;
        lanes.handle_timeout(now + RESUME_PATIENCE, &mut carrier);
        assert!(
            carrier.is_none(),
            "{reason}: when to come back is the link's to say"
        );
        assert!(lanes.poll_timeout().is_some(), "it does say when");
    }
}

#[tokio::test]
async fn people_are_told_once_and_soon_that_nobody_answers() {
    let now = Instant::now();
    let (config, ..) = sessions(now);
    for server in [
        "udp://127.0.0.1:9",
        "tcp://127.0.0.1:9",
        "tls://127.0.0.1:9",
    ] {
        let mut lanes = lanes_to(server, now, config.clone(), Pool::new("test", 4, 4));
        assert_eq!(lanes.link.poll_attempt(now), Some(0));
        lanes.start(now, &mut None, 0);
        assert_eq!(lanes.poll_timeout(), Some(now + QUIET));
        lanes.handle_timeout(now + QUIET, &mut None);
        assert!(!lanes.notices.unanswered(0), "it has been told");
        assert_eq!(lanes.poll_timeout(), None);
        assert!(lanes.link.is_trying(0), "the attempt goes on");
    }
}

#[tokio::test]
async fn lane_that_leaves_from_another_address_of_this_host_asks_what_its_way_carries() {
    let now = Instant::now();
    let (mut lanes, mut carrier, mut server) = joining(now, 1).await;
    let client = carrier.as_mut().unwrap().session_mut();
    carry(now, client, &mut server);
    carry(now, &mut server, client);
    carry(now, client, &mut server);
    handle_events(now, &mut lanes, &mut carrier);
    let session = carrier.as_mut().unwrap().session_mut();
    let pings = |session: &mut Session| {
        let mut out = Vec::new();
        std::iter::from_fn(|| session.poll_control(now, &mut out)).count()
    };
    pings(session);
    let remote: SocketAddr = ([127, 0, 0, 1], 9).into();
    assert_eq!(lanes.sources.known, [(remote, remote.ip())]);
    lanes.sources.follow(now, session);
    assert_eq!(pings(session), 0, "nothing has changed");
    lanes.sources.known = vec![(remote, [192, 0, 2, 1].into())];
    lanes.sources.follow(now, session);
    assert_eq!(pings(session), 1);
    assert_eq!(lanes.sources.known, [(remote, remote.ip())]);
}
