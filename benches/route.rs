//! What it costs to find where a packet goes, by the number of sessions.
//!
//! `cargo bench --bench route`. Down: the destination is looked up and the packet queued for its session, and taken from
//! there. Up: the source is checked, and the destination judged. A datagram of a session is found its inbox by the
//! session's handle. No figure may grow with the number of sessions, but for the caches that they no longer fit.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use adit::config::{
    ControlSocket, EgressKind, Limits, ListenAddr, ProcessConfig, Repair, Scheme, ServerConfig,
    TunConfig,
};
use adit::io::pool::Pool;
use adit::proto::SecretKey;
use adit::server::datagrams::Inboxes;
use adit::server::router::{Downlink, Queued, Router};
use adit::server::run::Server;
use adit::server::shared::Way;
use adit::wire::SessionId;
use adit_netstack::{Offload, Packet};
use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::RngExt;
use rand::seq::SliceRandom;
use rustix::time::{ClockId, clock_gettime};

const SESSIONS: [u32; 5] = [10, 100, 1_000, 10_000, 100_000];

/// A packet of the wire.
const LEN: usize = 1_400;

/// The addresses of so many sessions, in no order.
fn addresses(sessions: u32) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = (0..sessions)
        .map(|session| Ipv4Addr::from_bits(0x0a56_0002 + session).into())
        .collect();
    addresses.shuffle(&mut rand::rng());
    addresses
}

/// Measures in processor time, which others that share the machine do not lengthen.
fn measure<T>(bencher: &mut Bencher<'_>, mut run: impl FnMut() -> T) {
    bencher.iter_custom(|times| {
        let began = processor_time();
        for _ in 0..times {
            black_box(run());
        }
        processor_time() - began
    });
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A datagram without a checksum, from one to the other.
fn packet(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        unreachable!("all are of one family")
    };
    let mut packet = vec![0; LEN];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&(LEN as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[24..26].copy_from_slice(&(LEN as u16 - 20).to_be_bytes());
    let words = packet[..20].chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let once = (sum & 0xffff) + (sum >> 16);
    let folded = (once & 0xffff) + (once >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

fn down(c: &mut Criterion) {
    let mut group = c.benchmark_group("route/down");
    let origin = IpAddr::from([192, 0, 2, 1]);
    for sessions in SESSIONS {
        let router = Router::new();
        let addresses = addresses(sessions);
        let downlinks: Vec<Arc<Downlink>> = addresses
            .iter()
            .map(|address| {
                let downlink = router.downlink();
                router.insert(*address, downlink.clone());
                downlink
            })
            .collect();
        let mut at = addresses.iter().zip(&downlinks).cycle();
        let packets: Vec<Vec<u8>> = addresses.iter().map(|to| packet(origin, *to)).collect();
        let mut arrivals = packets.iter().cycle();
        group.throughput(Throughput::Bytes(LEN as u64));
        group.bench_function(BenchmarkId::new("look-up", sessions), |b| {
            measure(b, || {
                let bytes = arrivals.next().expect("cyclic");
                let parsed = Packet::parse(black_box(bytes)).expect("a packet");
                router.route(parsed.destination).expect("a session")
            });
        });
        let pool = Pool::new("bench", 1, 1);
        let mut buffer = Some(pool.sized(LEN));
        let cx = Context::from_waker(Waker::noop());
        group.bench_function(BenchmarkId::new("queued and taken", sessions), |b| {
            measure(b, || {
                let (to, own) = at.next().expect("cyclic");
                let downlink = router.route(black_box(*to)).expect("a session");
                let buffer_of = buffer.take().expect("it came back");
                let offload = Offload::default();
                downlink.push(Queued {
                    buffer: buffer_of,
                    offload,
                });
                downlink.wake();
                if let Poll::Ready(queued) = own.poll_pop(&cx) {
                    buffer = Some(queued.buffer);
                }
            });
        });
    }
    group.finish();
}

fn up(c: &mut Criterion) {
    let mut group = c.benchmark_group("route/up");
    group.throughput(Throughput::Bytes(LEN as u64));
    let state = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = runtime.block_on(server(state.path()));
    let shared = server.shared();
    let origin = IpAddr::from([198, 41, 0, 4]);
    for sessions in SESSIONS {
        let addresses = addresses(sessions);
        let packets: Vec<Vec<u8>> = addresses.iter().map(|from| packet(*from, origin)).collect();
        let mut at = addresses.iter().zip(&packets).cycle();
        group.bench_function(BenchmarkId::new("judged", sessions), |b| {
            measure(b, || {
                let (own, bytes) = at.next().expect("cyclic");
                // Once for each packet, as where each comes alone.
                let policy = shared.policy();
                let parsed = Packet::parse(black_box(bytes)).expect("a packet");
                let way = shared.way(&policy, &[*own], &parsed);
                assert_eq!(way, Way::Out);
            });
        });
        let inboxes = Inboxes::default();
        let mut rng = rand::rng();
        let mut ids: Vec<SessionId> = std::iter::repeat_with(|| SessionId(rng.random()))
            .filter(|id| inboxes.open(*id).is_some())
            .take(sessions as usize)
            .collect();
        ids.shuffle(&mut rng);
        let mut ids = ids.iter().cycle();
        group.bench_function(BenchmarkId::new("inbox found", sessions), |b| {
            measure(b, || {
                assert!(inboxes.is_taken(*black_box(ids.next().expect("cyclic"))))
            });
        });
    }
    group.finish();
}

async fn server(state: &std::path::Path) -> Server {
    let config = ServerConfig {
        listen: vec![ListenAddr::new(
            Scheme::Tcp,
            SocketAddr::from(([127, 0, 0, 1], 0)),
        )],
        secret_keys: vec![SecretKey::generate(&mut rand::rng())],
        network: Some("10.86.0.0/15".parse().expect("a network")),
        network6: Some("fd86::/64".parse().expect("a network")),
        egress: EgressKind::User,
        tun: TunConfig {
            name: "adit0".into(),
            masquerade: true,
        },
        mtu: 1400,
        allow: vec!["192.168.0.0/16".parse().expect("a network")],
        clients: Vec::new(),
        tls: None,
        tls_names: Vec::new(),
        public: Vec::new(),
        dns: Vec::new(),
        dns_records: Vec::new(),
        client_to_client: false,
        state_dir: state.to_path_buf(),
        max_clients: 100_000,
        limits: Limits::default(),
        aead: Vec::new(),
        repair: Repair::Auto,
        threads: None,
        control: ControlSocket::Off,
        admin: None,
        log_level: None,
        process: ProcessConfig::default(),
    };
    Server::start(config).await.expect("a server")
}

criterion_group!(benches, down, up);
criterion_main!(benches);
