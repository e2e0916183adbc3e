//! Sealing and opening packets must not allocate once a session is warm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant, UNIX_EPOCH};

use adit::proto::{
    AeadKind, Answer, ChallengeState, ClientConfig, ClientEntry, Initiator, Opened, Reply,
    Responder, SecretKey, Session, Settings,
};
use adit::wire::{LaneId, PACKET_HEADROOM, TAILROOM};
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

fn sessions(aead: AeadKind) -> (Instant, Session, Session) {
    let now = Instant::now();
    let unix = UNIX_EPOCH + Duration::from_secs(1_000_000);
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
        let count = allocations(|| {
            for _ in 0..1000 {
                let offload = Offload::default();
                client
                    .seal_packet(now, LaneId::FIRST, &mut frame, offload)
                    .unwrap();
                let opened = server.open(now, LaneId::FIRST, &mut frame).unwrap();
                assert!(matches!(opened, Opened::Packet { .. }));
            }
        });
        assert_eq!(count, 0, "{aead}");
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(7)))), 1);
}
