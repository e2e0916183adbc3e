//! What a session holds on the server that has carried a little and is idle now.
//!
//! Each server has a thread of its own, and what that thread allocates is counted, and what it frees. What is in the
//! pools, which all sessions share, counts as nobody's, and so do the rings of flows, which are mapped.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use adit::client::run::Client;
use adit::config::{
    CertificateCheck, ClientConfig, ClientEntry, ControlSocket, DnsConfig, EgressKind, LaneAddr,
    Limits, ListenAddr, ProcessConfig, Repair, Scheme, ServerConfig, TunConfig,
};
use adit::io::pool::{LARGE, SMALL};
use adit::proto::{PublicKey, SecretKey, budget};
use adit::server::run::Server;
use adit::server::shared::Shared;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

#[path = "path/flow.rs"]
mod flow;

use flow::{Flow, echo, in_time};

struct Counting;

thread_local! {
    /// Whose allocations these are, if they are counted.
    static COUNTED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Bytes that each server holds, by the size of the allocation in steps of [`STEP`]; the last is for all that are larger.
static HELD: [[AtomicIsize; STEPS]; CASES.len()] =
    [const { [const { AtomicIsize::new(0) }; STEPS] }; CASES.len()];

const STEP: usize = 64;
const STEPS: usize = 2048;

fn count(size: usize, change: isize) {
    if let Some(case) = COUNTED.with(Cell::get) {
        let step = (size / STEP).min(STEPS - 1);
        HELD[case][step].fetch_add(change, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is that of the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -(layout.size() as isize));
        // SAFETY: `pointer` came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A server on a thread that is counted.
struct Host {
    case: usize,
    shared: Arc<Shared>,
    listening: Vec<LaneAddr>,
    key: PublicKey,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<()>,
    _state: tempfile::TempDir,
}

impl Host {
    fn start(case: usize, scheme: Scheme, clients: &[SecretKey]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let secret = SecretKey::generate(&mut rand::rng());
        let key = secret.public();
        let config = config(secret, scheme, clients, state.path());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            COUNTED.with(|counted| counted.set(Some(case)));
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::start(config).await.unwrap();
                tell.send((server.shared().clone(), server.listening()))
                    .unwrap();
                server.run(stopped).await.unwrap();
            });
        });
        let (shared, listening) = told.recv().unwrap();
        Self {
            case,
            shared,
            listening,
            key,
            stop,
            thread,
            _state: state,
        }
    }

    /// What the server holds, without what is free in its pool.
    fn held(&self) -> isize {
        let held = HELD[self.case].iter();
        let all: isize = held.map(|held| held.load(Ordering::Relaxed)).sum();
        let free = self.shared.pool.stats();
        all - (free.small.free * SMALL + free.large.free * LARGE) as isize
    }

    /// The same by size.
    fn sizes(&self) -> String {
        let sizes = HELD[self.case].iter().enumerate();
        let held = sizes.map(|(step, held)| (step * STEP, held.load(Ordering::Relaxed)));
        let much = held.filter(|(_, held)| *held > 256 * SESSIONS as isize);
        much.map(|(size, held)| format!("\n{held} in pieces of {size}"))
            .collect()
    }

    fn end(self) {
        self.stop.cancel();
        self.thread.join().unwrap();
    }
}

fn config(
    secret: SecretKey,
    scheme: Scheme,
    clients: &[SecretKey],
    state: &std::path::Path,
) -> ServerConfig {
    let listen = vec![ListenAddr::new(
        scheme,
        SocketAddr::from(([127, 0, 0, 1], 0)),
    )];
    let clients = clients.iter().enumerate().map(|(number, key)| ClientEntry {
        name: format!("client {number}"),
        public_key: key.public(),
        address: None,
        address6: None,
        preshared_key: None,
    });
    ServerConfig {
        listen,
        secret_keys: vec![secret],
        network: Some("10.86.0.0/16".parse().unwrap()),
        network6: Some("fd86::/64".parse().unwrap()),
        egress: EgressKind::User,
        tun: TunConfig {
            name: "adit0".into(),
            masquerade: true,
        },
        mtu: 1400,
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        clients: clients.collect(),
        tls: None,
        tls_names: Vec::new(),
        public: Vec::new(),
        dns: Vec::new(),
        dns_records: Vec::new(),
        client_to_client: false,
        state_dir: state.to_path_buf(),
        max_clients: 1000,
        limits: Limits::default(),
        aead: Vec::new(),
        repair: Repair::Auto,
        threads: None,
        control: ControlSocket::Off,
        admin: None,
        log_level: None,
        process: ProcessConfig::default(),
    }
}

async fn connected(host: &Host, lanes: &[LaneAddr], key: &SecretKey) -> Client {
    let client = Client::start(&ClientConfig {
        servers: lanes.to_vec(),
        server_key: host.key,
        secret_key: key.clone(),
        preshared_key: None,
        proxy: SocketAddr::from(([127, 0, 0, 1], 0)),
        proxy_auth: None,
        rules: Vec::new(),
        proxies: Vec::new(),
        dns: DnsConfig::default(),
        tls: CertificateCheck::Unchecked,
        via: None,
        connect_timeout: Duration::from_secs(30),
        lanes: 1,
        forwards: Vec::new(),
        control: ControlSocket::Off,
        admin: None,
        log_level: None,
        memory: budget::CLIENT,
        tun: None,
        aead: Vec::new(),
        repair: Repair::Auto,
        threads: None,
        process: ProcessConfig::default(),
    });
    let client = client.unwrap();
    let config = in_time("a configuration", client.connected()).await;
    assert!(config.is_some());
    client
}

/// A flow that says a little, and a datagram that comes back.
async fn traffic(client: &Client, tcp: SocketAddr, udp: SocketAddr) {
    let tunnel = client.tunnel();
    let connected = in_time("a flow", tunnel.connect(tcp)).await.unwrap();
    Flow(connected.into_stream()).echo(1_000_000).await;
    let port = tunnel.bind_udp().await.unwrap();
    let mut back = [0; 100];
    port.try_send_to(b"a question", udp).unwrap();
    let received = poll_fn(|cx| port.poll_recv_from(cx, &mut back));
    assert_eq!(in_time("an answer", received).await.unwrap().0, 10);
}

async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 2000];
        while let Ok((len, from)) = socket.recv_from(&mut bytes).await {
            socket.send_to(&bytes[..len], from).await.unwrap();
        }
    });
    address
}

/// Sessions of each kind: what tables hold for more than there are is shared by that many.
const SESSIONS: usize = 50;

/// The most that a session may hold.
const MOST: isize = 64 * 1024;

/// The lane, and whether the client knows of datagrams beside: then its flows are not relayed, but cross in packets.
const CASES: [(Scheme, bool); 4] = [
    (Scheme::Tcp, false),
    (Scheme::Tcp, true),
    (Scheme::Tls, false),
    (Scheme::Udp, false),
];

async fn comes_to_rest(case: usize) {
    let (scheme, packets) = CASES[case];
    let secret = |_| SecretKey::generate(&mut rand::rng());
    let keys: Vec<SecretKey> = (0..=SESSIONS).map(secret).collect();
    let host = Host::start(case, scheme, &keys);
    let (tcp, udp) = (echo().await, udp_echo().await);
    let mut lanes = host.listening.clone();
    if packets {
        lanes.push("udp://127.0.0.1:9".parse().unwrap());
    }
    // What the first to come makes for all.
    let first = connected(&host, &lanes, &keys[SESSIONS]).await;
    traffic(&first, tcp, udp).await;
    first.close().await;
    in_time("the first to go", async {
        while !host.shared.registry.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let before = host.held();
    let of_each = || (host.held() - before) / SESSIONS as isize;
    let mut clients = Vec::new();
    for key in &keys[..SESSIONS] {
        clients.push(connected(&host, &lanes, key).await);
    }
    let fresh = of_each();
    for client in &clients {
        traffic(client, tcp, udp).await;
    }
    let busy = of_each();
    let rest = async {
        while of_each() > MOST {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let rested = tokio::time::timeout(PATIENCE, rest).await;
    let held = of_each();
    println!("{scheme:?}, packets {packets}: {fresh} fresh, {busy} busy, {held} idle");
    assert!(rested.is_ok(), "{held} bytes each:{}", host.sizes());
    assert_eq!(host.shared.registry.len(), SESSIONS);
    for client in clients {
        client.close().await;
    }
    host.end();
}

/// Three times as long as anything takes to be given back.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn session_that_is_idle_holds_64_kib_at_most() {
    futures_util::future::join_all((0..CASES.len()).map(comes_to_rest)).await;
}
