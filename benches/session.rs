//! What a session costs: sealing and opening a packet, and a whole handshake.
//!
//! `cargo bench --bench session`. Sealing and opening report bytes of IP packet per second, and the server's side of
//! handshakes how many there are per second.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit::proto::{
    AeadKind, Answer, ChallengeState, ClientConfig, ClientEntry, DatagramInitiator, DatagramPath,
    DatagramResponder, Initiator, KemKind, LoadLimits, Opened, Reception, Reply, Responder,
    SecretKey, Session, Settings,
};
use adit::wire::{LaneId, PACKET_HEADROOM, TAILROOM};
use adit_netstack::Offload;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};

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

/// What one handshake costs the server, from message 1 to the session that the client's first sealed frame confirms;
/// elements a second are handshakes a second of one core. Each is another client's: the table of those that were heard
/// fills up, and then each newcomer takes the place of the oldest.
fn bench_server(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    let mut config = config(Vec::new());
    let mut number = 0_u64;
    let mut next = || {
        number += 1;
        config.instance = number.to_be_bytes();
        (config.clone(), unix(number))
    };
    let stream = responder();
    group.bench_function(BenchmarkId::new("server", "stream"), |b| {
        b.iter_custom(|times| (0..times).map(|_| over_stream(&stream, next())).sum());
    });
    // Without a limit for strangers, which is the cookies' cost.
    let limits = LoadLimits {
        inits_per_second: u32::MAX,
        ..LoadLimits::default()
    };
    let mut rng = rand::rng();
    let mut datagrams = DatagramResponder::new(Arc::new(responder()), limits, &mut rng);
    group.bench_function(BenchmarkId::new("server", "datagrams"), |b| {
        b.iter_custom(|times| {
            (0..times)
                .map(|_| over_datagrams(&mut datagrams, next()))
                .sum()
        });
    });
    group.finish();
}

/// What this thread has had of a processor: others that share it cost no handshakes.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn over_stream(responder: &Responder, (config, unix): (ClientConfig, SystemTime)) -> Duration {
    let (now, mut rng) = (Instant::now(), rand::rng());
    let (mut initiator, init) = Initiator::new(&config, unix, &mut rng).unwrap();
    let mut connection = ChallengeState::default();
    let began = processor_time();
    let answer = responder.handle_init(now, &init, &mut connection, &mut rng, |_| {
        Some(ClientEntry::default())
    });
    let answered = processor_time() - began;
    let Ok(Answer::Accept {
        reply, mut session, ..
    }) = answer
    else {
        panic!("{answer:?}")
    };
    let Ok(Reply::Established(mut client)) = initiator.handle(now, unix, &reply) else {
        panic!("not established")
    };
    let mut frame = Vec::new();
    let lane = client.poll_control(now, &mut frame).unwrap();
    let began = processor_time();
    session.open(now, lane, &mut frame).unwrap();
    let confirmed = processor_time() - began;
    assert!(session.is_confirmed());
    answered + confirmed
}

fn over_datagrams(
    responder: &mut DatagramResponder,
    (config, unix): (ClientConfig, SystemTime),
) -> Duration {
    let (now, mut rng) = (Instant::now(), rand::rng());
    let path = DatagramPath::to(([192, 0, 2, 1], 51820).into());
    let mut initiator = DatagramInitiator::new(now, &config, path, &mut rng).unwrap();
    let mut datagram = Vec::new();
    assert!(initiator.poll_transmit(now, unix, &mut datagram).unwrap());
    let began = processor_time();
    let reception = responder.handle(now, path, &datagram, 0, |_| Some(ClientEntry::default()));
    let answered = processor_time() - began;
    let Reception::Handshake(Answer::Accept {
        reply, mut session, ..
    }) = reception
    else {
        panic!("{reception:?}")
    };
    let mut client = initiator.handle(now, &reply).unwrap().unwrap();
    client.poll_control(now, &mut datagram).unwrap();
    let began = processor_time();
    session.open_datagram(now, path, &mut datagram).unwrap();
    let confirmed = processor_time() - began;
    assert!(session.is_confirmed());
    answered + confirmed
}

criterion_group!(
    benches,
    bench_seal,
    bench_open,
    bench_handshake,
    bench_server
);
criterion_main!(benches);
