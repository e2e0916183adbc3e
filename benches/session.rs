//! What a session costs: sealing and opening a packet, and a whole handshake.
//!
//! `cargo bench --bench session`. Sealing and opening report bytes of IP packet per second.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit::proto::{
    AeadKind, Answer, ChallengeState, ClientConfig, ClientEntry, Initiator, KemKind, Opened, Reply,
    Responder, SecretKey, Session, Settings,
};
use adit::wire::{LaneId, PACKET_HEADROOM, TAILROOM};
use adit_netstack::Offload;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A lone ACK, a full wire packet, a super-packet.
const SIZES: [usize; 3] = [64, 1400, 65_535];

fn unix(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(secs)
}

fn responder() -> Responder {
    let secret = SecretKey::from_bytes([1; 32]);
    Responder::new(vec![secret], &AeadKind::ALL, Settings::default(), unix(0))
}

fn config(aead: Vec<AeadKind>) -> ClientConfig {
    let server = SecretKey::from_bytes([1; 32]).public();
    let mut config = ClientConfig::new(SecretKey::from_bytes([2; 32]), server, [0; 8]);
    config.aead = aead;
    config
}

fn handshake(responder: &Responder, config: &ClientConfig, secs: u64) -> (Session, Session) {
    let now = Instant::now();
    let mut rng = rand::rng();
    let (mut initiator, init) = Initiator::new(config, unix(secs), &mut rng).unwrap();
    let mut connection = ChallengeState::default();
    let entry = |_: &_| Some(ClientEntry::default());
    let answer = responder
        .handle_init(now, &init, &mut connection, &mut rng, entry)
        .unwrap();
    let Answer::Accept { reply, session, .. } = answer else {
        panic!("not accepted")
    };
    match initiator.handle(now, unix(secs), &reply).unwrap() {
        Reply::Established(client) => (*client, *session),
        Reply::Retry(_) => panic!("challenged"),
    }
}

/// Two sessions that have heard each other.
fn sessions(aead: AeadKind) -> (Instant, Session, Session) {
    let (mut client, mut server) = handshake(&responder(), &config(vec![aead]), 1);
    let now = Instant::now();
    let mut frame = Vec::new();
    while let Some(lane) = client.poll_control(now, &mut frame) {
        server.open(now, lane, &mut frame).unwrap();
    }
    (now, client, server)
}

fn packet(len: usize) -> Vec<u8> {
    vec![0x45; PACKET_HEADROOM + len + TAILROOM]
}

fn bench_seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for aead in AeadKind::ALL {
        let (now, mut client, _) = sessions(aead);
        for len in SIZES {
            let mut frame = packet(len);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new(aead.name(), len), |b| {
                b.iter(|| {
                    client
                        .seal_packet(
                            now,
                            LaneId::FIRST,
                            black_box(&mut frame),
                            Offload::default(),
                        )
                        .unwrap();
                });
            });
        }
    }
    group.finish();
}

fn bench_open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    for aead in AeadKind::ALL {
        let (now, mut client, mut server) = sessions(aead);
        for len in SIZES {
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new(aead.name(), len), |b| {
                b.iter_batched_ref(
                    || {
                        let mut frame = packet(len);
                        let offload = Offload::default();
                        client
                            .seal_packet(now, LaneId::FIRST, &mut frame, offload)
                            .unwrap();
                        frame
                    },
                    |frame| {
                        let opened = server.open(now, LaneId::FIRST, black_box(frame)).unwrap();
                        assert!(matches!(opened, Opened::Packet { .. }));
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

fn bench_handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let responder = responder();
    let mut secs = 1;
    for kem in [KemKind::MlKem768, KemKind::MlKem1024] {
        let config = ClientConfig {
            kem,
            ..config(Vec::new())
        };
        group.bench_function(BenchmarkId::new("both ends", format!("{kem:?}")), |b| {
            b.iter(|| {
                secs += 1;
                black_box(handshake(&responder, &config, secs))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench_seal, bench_open, bench_handshake);
criterion_main!(benches);
