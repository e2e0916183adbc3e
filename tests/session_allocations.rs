//! Sealing and opening packets must not allocate once a session is warm: it has had as many as its replay windows reach
//! back, which have their memory then.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use adit::proto::{
    AeadKind, Answer, ChallengeState, ClientConfig, ClientEntry, DatagramInitiator, DatagramPath,
    DatagramResponder, Initiator, LoadLimits, Opened, Reception, Reply, Responder, SecretKey,
    Session, Settings, WINDOW,
};
use adit::wire::{
    DATAGRAM_PACKET_HEADROOM, DatagramPacketHeader, LaneId, PACKET_HEADROOM, Piece, TAILROOM,
};
use adit_netstack::Offload;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(run: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    run();
    ALLOCATIONS.with(Cell::get) - before
}

fn ends(aead: AeadKind) -> (ClientConfig, Responder) {
    let mut rng = rand::rng();
    let secret = SecretKey::generate(&mut rng);
    let mut config =
        ClientConfig::new(SecretKey::generate(&mut rng), secret.public(), *b"instance");
    config.aead = vec![aead];
    let responder = Responder::new(
        vec![secret],
        &AeadKind::ALL,
        Settings::default(),
        UNIX_EPOCH,
    );
    (config, responder)
}

fn sessions(aead: AeadKind) -> (Instant, Session, Session) {
    let now = Instant::now();
    let unix = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let mut rng = rand::rng();
    let (config, responder) = ends(aead);
    let (mut initiator, init) = Initiator::new(&config, unix, &mut rng).unwrap();
    let mut connection = ChallengeState::default();
    let entry = |_: &_| Some(ClientEntry::default());
    let answer = responder.handle_init(now, &init, &mut connection, &mut rng, entry);
    let Ok(Answer::Accept { reply, session, .. }) = answer else {
        panic!("{answer:?}")
    };
    let Ok(Reply::Established(client)) = initiator.handle(now, unix, &reply) else {
        panic!("not established");
    };
    (now, *client, *session)
}

#[test]
fn sealing_and_opening_packets_allocate_nothing() {
    for aead in AeadKind::ALL {
        let (now, mut client, mut server) = sessions(aead);
        let mut frame = Vec::new();
        while let Some(lane) = client.poll_control(now, &mut frame) {
            server.open(now, lane, &mut frame).unwrap();
        }
        let mut frame = vec![0x45; PACKET_HEADROOM + 1400 + TAILROOM];
        let mut exchange = |count: u64| {
            for _ in 0..count {
                let offload = Offload::default();
                client
                    .seal_packet(now, LaneId::FIRST, &mut frame, offload)
                    .unwrap();
                let opened = server.open(now, LaneId::FIRST, &mut frame).unwrap();
                assert!(matches!(opened, Opened::Packet { .. }));
            }
        };
        exchange(WINDOW);
        assert_eq!(allocations(|| exchange(1000)), 0, "{aead}");
    }
}

fn path() -> DatagramPath {
    DatagramPath::to(SocketAddr::from(([192, 0, 2, 1], 51820)))
}

/// Both ends over datagrams, after they have confirmed each other.
fn sessions_over_datagrams(aead: AeadKind) -> (Instant, Session, Session) {
    let now = Instant::now();
    let unix = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let mut rng = rand::rng();
    let (config, responder) = ends(aead);
    let mut strangers =
        DatagramResponder::new(Arc::new(responder), LoadLimits::default(), &mut rng);
    let mut initiator = DatagramInitiator::new(now, &config, path(), &mut rng).unwrap();
    let mut out = Vec::new();
    assert!(initiator.poll_transmit(now, unix, &mut out).unwrap());
    let entry = |_: &_| Some(ClientEntry::default());
    let reception = strangers.handle(now, path(), &out, 0, entry);
    let Reception::Handshake(Answer::Accept { reply, session, .. }) = reception else {
        panic!("{reception:?}")
    };
    let mut client = initiator.handle(now, &reply).unwrap().unwrap();
    let mut server = session;
    for _ in 0..4 {
        while client.poll_control(now, &mut out).is_some()
            || client.poll_probe(now, &mut out).is_some()
        {
            server.open_datagram(now, path(), &mut out).unwrap();
        }
        while server.poll_control(now, &mut out).is_some()
            || server.poll_probe(now, &mut out).is_some()
        {
            client.open_datagram(now, path(), &mut out).unwrap();
        }
    }
    (now, *client, *server)
}

#[test]
fn sealing_and_opening_datagrams_allocate_nothing() {
    for aead in AeadKind::ALL {
        let (now, mut client, mut server) = sessions_over_datagrams(aead);
        let mut datagram = vec![0x45; DATAGRAM_PACKET_HEADROOM + 1400 + TAILROOM];
        let offload = Offload::default();
        let mut exchange = |pieces: [Piece; 2], whole: u32| {
            for _ in 0..1000 {
                let number = client.alloc_source(1400);
                let mut packets = 0;
                for piece in pieces {
                    client
                        .seal_piece(
                            now,
                            LaneId::FIRST,
                            DatagramPacketHeader {
                                source: number as u32,
                                checksum: offload.checksum,
                                kept: false,
                                piece,
                            },
                            &mut datagram,
                        )
                        .unwrap();
                    let opened = server.open_datagram(now, path(), &mut datagram).unwrap();
                    packets += u32::from(matches!(opened, Opened::Packet { .. }));
                    while server.poll_delivery().is_some() {
                        packets += 1;
                    }
                }
                assert_eq!(packets, whole);
            }
        };
        let halves = [Piece::First, Piece::Last];
        for _ in 0..=WINDOW / 1000 {
            exchange([Piece::Whole; 2], 1);
        }
        // A packet sent twice, delivered once; then packets in two, for which memory is kept.
        assert_eq!(allocations(|| exchange([Piece::Whole; 2], 1)), 0, "{aead}");
        exchange(halves, 1);
        assert_eq!(allocations(|| exchange(halves, 1)), 0, "{aead}");
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1);
}
