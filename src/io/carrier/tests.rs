//! Both ends of a session on real connections.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, UNIX_EPOCH};

use adit_netstack::{Checksum, Gso, Offload, PacketSink as _};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::carrying::LAST_WORD;
use super::*;
use crate::io::lane::{LaneStream, StreamLane};
use crate::io::pool::Pool;
use crate::io::udp::{Inbox, Receiver, UdpIo};
use crate::proto::{
    Answer, ChallengeState, ClientConfig, ClientEntry, DatagramInitiator, DatagramPath,
    DatagramResponder, Initiator, LoadLimits, Reception, Reply, Responder, SecretKey, Session,
    SessionEvent, Settings,
};
use crate::wire::{CloseReason, LaneId, PACKET_HEADROOM, TAILROOM};

/// Both ends of one session, each carried by its own end of a TCP connection.
struct Ends {
    client: Carrier,
    server: Carrier,
    at_client: Vec<Vec<u8>>,
    at_server: Vec<Vec<u8>>,
    events: Vec<CarrierEvent>,
}

fn sessions(now: Instant) -> (Session, Session) {
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
    (*client, *session)
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn lane(socket: TcpStream) -> StreamLane {
    StreamLane::new(LaneStream::Tcp(socket), pool())
}

fn pool() -> Arc<Pool> {
    Pool::new("test", 4, 4)
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Ends {
    async fn new(now: Instant) -> Self {
        let (client, server) = sessions(now);
        let (near, far) = tcp_pair().await;
        Self {
            client: Carrier::new(client, LaneId::FIRST, lane(near)),
            server: Carrier::new(server, LaneId::FIRST, lane(far)),
            at_client: Vec::new(),
            at_server: Vec::new(),
            events: Vec::new(),
        }
    }

    /// One turn of both drivers; the server's events are kept.
    async fn turn(&mut self, now: Instant) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let at = &mut self.at_client;
        self.client.poll_receive(&mut cx(), now, |frame, range, _| {
            at.push(frame[range].to_vec())
        });
        self.client.poll_send(&mut cx(), now);
        while self.client.poll_event(now).is_some() {}
        let at = &mut self.at_server;
        self.server.poll_receive(&mut cx(), now, |frame, range, _| {
            at.push(frame[range].to_vec())
        });
        self.server.poll_send(&mut cx(), now);
        while let Some(event) = self.server.poll_event(now) {
            self.events.push(event);
        }
    }

    async fn confirm(&mut self, now: Instant) {
        while !self.server.session().is_confirmed() || self.server.session().lanes().count() == 0 {
            self.turn(now).await;
        }
    }
}

#[tokio::test]
async fn packets_cross_both_ways() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    let mut sink = ends.client.sink(now);
    sink.reserve(5).unwrap().copy_from_slice(b"up it");
    sink.commit(5, Offload::default());
    let mut buffer = pool().sized(PACKET_HEADROOM + 4 + TAILROOM);
    buffer[PACKET_HEADROOM..PACKET_HEADROOM + 4].copy_from_slice(b"down");
    assert!(ends.server.has_room(now));
    ends.server.push(now, buffer, Offload::default());
    while ends.at_client.is_empty() || ends.at_server.is_empty() {
        ends.turn(now).await;
    }
    assert_eq!(ends.at_server, [b"up it"]);
    assert_eq!(ends.at_client, [b"down"]);
}

#[tokio::test]
async fn lane_stays_until_the_last_word_is_heard() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    ends.server
        .session_mut()
        .close(now, CloseReason::PoolExhausted);
    ends.server.poll_send(&mut cx(), now);
    assert_eq!(ends.server.lanes(), 1, "until the client has heard it");
    assert_eq!(
        heard(&mut ends.client, now).await,
        CloseReason::PoolExhausted
    );
    drop(ends.client);
    while ends.server.lanes() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        ends.server.poll_receive(&mut cx(), now, |_, _, _| {});
    }
}

/// Reads until the far end says that it has closed the session.
async fn heard(carrier: &mut Carrier, now: Instant) -> CloseReason {
    loop {
        carrier.poll_receive(&mut cx(), now, |_, _, _| {});
        while let Some(event) = carrier.poll_event(now) {
            match event {
                CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => return reason,
                CarrierEvent::LaneLost { cause, .. } => panic!("lost before: {cause}"),
                CarrierEvent::Session(_) | CarrierEvent::LaneDoubtful { .. } => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Fills the server's lane to its limit while the client reads nothing.
async fn fill(ends: &mut Ends, now: Instant) {
    loop {
        while ends.server.has_room(now) {
            let buffer = pool().sized(PACKET_HEADROOM + 60_000 + TAILROOM);
            ends.server.push(now, buffer, Offload::default());
        }
        ends.server.poll_send(&mut cx(), now);
        tokio::time::sleep(Duration::from_millis(5)).await;
        ends.server.poll_send(&mut cx(), now);
        if !ends.server.has_room(now) {
            return;
        }
    }
}

#[tokio::test]
async fn goodbye_of_a_client_with_unread_packets_is_heard() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    fill(&mut ends, now).await;
    ends.client
        .session_mut()
        .close(now, CloseReason::ShuttingDown);
    ends.client.poll_send(&mut cx(), now);
    assert_eq!(ends.client.lanes(), 1, "a close now would reset the lane");
    assert_eq!(
        heard(&mut ends.server, now).await,
        CloseReason::ShuttingDown
    );
    drop(ends.server);
    while ends.client.lanes() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        ends.client.poll_receive(&mut cx(), now, |_, _, _| {});
    }
}

#[tokio::test]
async fn goodbye_before_a_reset_is_heard_though_writing_fails_first() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    fill(&mut ends, now).await;
    ends.client
        .session_mut()
        .close(now, CloseReason::ShuttingDown);
    ends.client.poll_send(&mut cx(), now);
    // Packets stand unread in the client's socket, so this is a reset.
    drop(ends.client);
    tokio::time::sleep(Duration::from_millis(20)).await;
    while !ends.server.poll_send(&mut cx(), now) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!ends.server.has_room(now), "nothing can be written");
    assert_eq!(
        heard(&mut ends.server, now).await,
        CloseReason::ShuttingDown
    );
}

#[tokio::test]
async fn closed_session_keeps_a_lane_that_nobody_reads_for_1_s() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    fill(&mut ends, now).await;
    ends.server
        .session_mut()
        .close(now, CloseReason::ProtocolError);
    ends.server.poll_send(&mut cx(), now);
    assert_eq!(ends.server.lanes(), 1);
    let due = ends.server.poll_timeout().expect("an end to the patience");
    assert!(due <= now + LAST_WORD);
    ends.server.handle_timeout(due);
    assert!(ends.server.poll_send(&mut cx(), due), "a lane is lost");
    assert_eq!(ends.server.lanes(), 0);
    assert_eq!(ends.server.poll_timeout(), None);
}

#[tokio::test]
async fn goodbye_that_stood_in_the_buffer_at_the_handover_is_heard() {
    let now = Instant::now();
    let (mut client, server) = sessions(now);
    let (mut near, far) = tcp_pair().await;
    // All of the client's life in one flight: its proof, its goodbye, the end.
    let mut control = Vec::new();
    let mut flight = Vec::new();
    while client.poll_control(now, &mut control).is_some() {
        flight.extend_from_slice(&control);
    }
    client.close(now, CloseReason::ShuttingDown);
    while client.poll_control(now, &mut control).is_some() {
        flight.extend_from_slice(&control);
    }
    near.write_all(&flight).await.unwrap();
    near.shutdown().await.unwrap();
    let mut lane = lane(far);
    // As the conversation before the handover does when it waits for a handshake.
    std::future::poll_fn(|cx| lane.poll_read(cx)).await.unwrap();
    let mut server = Carrier::new(server, LaneId::FIRST, lane);
    tokio::time::sleep(Duration::from_millis(20)).await;
    server.poll_receive(&mut cx(), now, |_, _, _| {});
    let mut heard = false;
    while let Some(event) = server.poll_event(now) {
        heard |= matches!(event, CarrierEvent::Session(SessionEvent::PeerClosed(_)));
    }
    assert!(heard);
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn lane_that_ends_is_reported_once_and_the_session_lives_on() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    ends.events.clear();
    drop(std::mem::replace(
        &mut ends.client,
        Ends::new(now).await.client,
    ));
    while ends.events.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        ends.server.poll_receive(&mut cx(), now, |_, _, _| {});
        while let Some(event) = ends.server.poll_event(now) {
            ends.events.push(event);
        }
    }
    assert!(matches!(
        ends.events[..],
        [CarrierEvent::LaneLost { left: 0, .. }]
    ));
    assert_eq!(ends.server.session().closed(), None);
    assert!(!ends.server.has_room(now));
    assert!(ends.server.sink(now).reserve(100).is_none());
}

/// Both ends of one session over datagrams, in one inbox and one socket's receiver.
struct Datagrammers {
    client: Carrier,
    server: Carrier,
    inbox: Arc<Inbox>,
    reader: Receiver,
    at_client: Vec<Vec<u8>>,
    at_server: Vec<Vec<u8>>,
}

impl Datagrammers {
    fn new(now: Instant) -> Self {
        let mut rng = rand::rng();
        let secret = SecretKey::generate(&mut rng);
        let config =
            ClientConfig::new(SecretKey::generate(&mut rng), secret.public(), *b"instance");
        let responder = Responder::new(vec![secret], &[], Settings::default(), UNIX_EPOCH);
        let limits = LoadLimits::default();
        let mut responder = DatagramResponder::new(Arc::new(responder), limits, &mut rng);
        let unix = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let [near, far] = [0, 0].map(|port| {
            let io = UdpIo::bind(([127, 0, 0, 1], port).into(), false).expect("a free port");
            Receiver::new(Arc::new(io), pool())
        });
        let path = |from: &Receiver, to: &Receiver| DatagramPath {
            socket: from.io().id(),
            ..DatagramPath::to(to.io().local_addr())
        };
        let up = path(&near, &far);
        let mut initiator = DatagramInitiator::new(now, &config, up, &mut rng).unwrap();
        let mut init = Vec::new();
        assert!(initiator.poll_transmit(now, unix, &mut init).unwrap());
        let down = DatagramPath {
            local: Some([127, 0, 0, 1].into()),
            ..path(&far, &near)
        };
        let entry = |_: &_| Some(ClientEntry::default());
        let reception = responder.handle(now, down, &init, 0, entry);
        let Reception::Handshake(Answer::Accept { reply, session, .. }) = reception else {
            panic!("{reception:?}");
        };
        let client = initiator.handle(now, &reply).unwrap().expect("a session");
        let inbox = Arc::new(Inbox::new());
        let mut server = Carrier::over_datagrams(*session, LaneId::FIRST, None, pool());
        server.set_inbox(inbox.clone());
        Self {
            client: Carrier::over_datagrams(*client, LaneId::FIRST, Some(near), pool()),
            server,
            inbox,
            reader: far,
            at_client: Vec::new(),
            at_server: Vec::new(),
        }
    }

    /// One turn of both drivers and of the task that reads the server's socket.
    async fn turn(&mut self) {
        // The true time: datagrams are paced.
        let now = Instant::now();
        let at = &mut self.at_client;
        self.client.poll_receive(&mut cx(), now, |frame, range, _| {
            at.push(frame[range].to_vec());
        });
        self.client.poll_send(&mut cx(), now);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Poll::Ready(Ok(())) = self.reader.poll_recv(&mut cx()) {
            while let Some(arrival) = self.reader.take_message() {
                assert!(self.inbox.push(arrival));
            }
        }
        let at = &mut self.at_server;
        self.server.poll_receive(&mut cx(), now, |frame, range, _| {
            at.push(frame[range].to_vec());
        });
        self.server.poll_send(&mut cx(), now);
        while self.client.poll_event(now).is_some() || self.server.poll_event(now).is_some() {}
    }

    async fn confirm(&mut self) {
        let now = Instant::now();
        while !self.server.session().is_confirmed()
            || !self.server.has_room(now)
            || !self.client.has_room(now)
        {
            self.turn().await;
        }
    }
}

/// An IPv4 packet of `payload` behind `header` bytes of another protocol's header.
fn packet(protocol: u8, header: &[u8], payload: usize) -> Vec<u8> {
    let len = 20 + header.len() + payload;
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let sum: u32 = packet
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]))
        .sum();
    let sum = (sum & 0xFFFF) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    packet.extend_from_slice(header);
    packet.extend((0..payload).map(|i| (i % 251) as u8));
    packet
}

fn write(carrier: &mut Carrier, now: Instant, packet: &[u8], offload: Offload) {
    let mut sink = carrier.sink(now);
    sink.reserve(packet.len())
        .expect("room")
        .copy_from_slice(packet);
    sink.commit(packet.len(), offload);
}

#[tokio::test]
async fn super_packet_crosses_as_wire_packets_that_the_lane_carries() {
    let now = Instant::now();
    let mut ends = Datagrammers::new(now);
    ends.confirm().await;
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&1000u32.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = 0x10;
    let whole = packet(6, &header, 30_000);
    let offload = Offload {
        gso: Gso::Tcp { size: 1360 },
        checksum: Checksum::Partial,
    };
    write(&mut ends.client, now, &whole, offload);
    let mut down = pool().sized(PACKET_HEADROOM + whole.len() + TAILROOM);
    down[PACKET_HEADROOM..PACKET_HEADROOM + whole.len()].copy_from_slice(&whole);
    ends.server.push(now, down, offload);
    let payload = |packets: &[Vec<u8>]| -> usize { packets.iter().map(|p| p.len() - 40).sum() };
    while payload(&ends.at_server) < 30_000 || payload(&ends.at_client) < 30_000 {
        ends.turn().await;
    }
    let most = ends
        .client
        .session()
        .max_datagram(LaneId::FIRST)
        .expect("a lane");
    for (packets, to) in [
        (&mut ends.at_server, &ends.server),
        (&mut ends.at_client, &ends.client),
    ] {
        packets.sort_by_key(|packet| packet[24..28].to_vec());
        let joined: Vec<u8> = packets
            .iter()
            .flat_map(|packet| packet[40..].to_vec())
            .collect();
        assert!(joined == whole[40..]);
        // It was cut to what the lane carries; what came at once was put together again.
        let stats = to.stats();
        let cut = packets.len() as u64 + stats.joined - stats.super_packets;
        assert!(
            cut >= 30_000_u64.div_ceil(most.min(1400) as u64),
            "{stats:?}"
        );
        let whole = packets
            .iter()
            .filter(|packet| packet.len() > most.min(1400));
        assert!(whole.count() as u64 <= stats.super_packets);
    }
}

#[tokio::test]
async fn last_source_number_there_is_breaks_nothing() {
    let now = Instant::now();
    let mut ends = Datagrammers::new(now);
    // As over a stream lane, where numbers are sent whole.
    assert!(ends.server.session_mut().take_source(u64::MAX, 0));
    ends.turn().await;
    assert_eq!(ends.server.datapath_stats().missing, 0);
}

#[tokio::test]
async fn packet_longer_than_a_datagram_crosses_in_two_pieces() {
    let now = Instant::now();
    let mut ends = Datagrammers::new(now);
    ends.confirm().await;
    let most = ends
        .client
        .session()
        .max_datagram(LaneId::FIRST)
        .expect("a lane");
    // Of a protocol that nobody can cut.
    let whole = packet(253, &[], most + 100);
    write(&mut ends.client, now, &whole, Offload::default());
    while ends.at_server.is_empty() {
        ends.turn().await;
    }
    assert!(ends.at_server == [whole]);
    // It is one packet all the same.
    let (sent, came) = (
        ends.client.session().carried(),
        ends.server.session().carried(),
    );
    assert_eq!((sent.outgoing.packets, came.incoming.packets), (1, 1));
    // Three pieces there are not.
    let longer = packet(253, &[], 2 * 1500);
    write(&mut ends.client, now, &longer, Offload::default());
    ends.turn().await;
    let stats = ends.client.datapath_stats();
    assert_eq!(
        stats.drops.too_long + stats.queue.drops.too_long,
        1,
        "{stats:?}"
    );
}

#[tokio::test]
async fn datagram_sink_gives_no_room_while_the_stack_has_its_share_waiting() {
    let now = Instant::now();
    let mut ends = Datagrammers::new(now);
    ends.confirm().await;
    let one = packet(253, &[], 1_000);
    let mut waiting = 0;
    while ends.client.sink(now).reserve(one.len()).is_some() {
        write(&mut ends.client, now, &one, Offload::default());
        waiting += one.len();
        assert!(waiting < 1 << 20);
    }
    // Packets of others are taken still: the queue drops from the flow that has most in it.
    assert!(ends.client.has_room(now));
    while ends.client.sink(now).reserve(one.len()).is_none() {
        ends.turn().await;
    }
}

#[tokio::test]
async fn bytes_that_are_no_packet_are_not_staged() {
    let now = Instant::now();
    let mut ends = Datagrammers::new(now);
    ends.confirm().await;
    write(&mut ends.client, now, &[0; 100], Offload::default());
    assert_eq!(ends.client.stats().unsealed, 1);
    assert!(ends.client.has_room(now));
}

#[tokio::test]
async fn closed_session_says_so_and_lets_its_datagram_lane_go() {
    let mut now = Instant::now();
    let mut ends = Datagrammers::new(now);
    ends.confirm().await;
    ends.client
        .session_mut()
        .close(now, CloseReason::ShuttingDown);
    ends.client.poll_send(&mut cx(), now);
    tokio::time::sleep(Duration::from_millis(5)).await;
    while ends.server.session().closed().is_none() {
        ends.turn().await;
    }
    // The word is said again, and then that is all.
    while ends.client.lanes() > 0 {
        now = ends.client.poll_timeout().expect("an end");
        ends.client.handle_timeout(now);
        ends.client.poll_receive(&mut cx(), now, |_, _, _| {});
        ends.client.poll_send(&mut cx(), now);
    }
    assert_eq!(ends.client.poll_timeout(), None);
}

mod beside;
mod memory;
mod waiting;
