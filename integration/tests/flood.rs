//! A flood of forged handshakes and garbage from many addresses costs a server no memory and keeps no client out.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use adit::{
    proto::{ClientConfig, DatagramInitiator, DatagramPath, PublicKey, SecretKey},
    wire::DatagramType,
};
use adit_integration::{
    adit::Pair, flows, meters::wait_for, namespaces::Place, origin::Origin, socks,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

/// Datagrams of each flood, at least.
const FORGED: u64 = 100_000;
/// Addresses they come from, each with a socket of its own.
const SOURCES: usize = 500;
/// Handshakes of clients that the server does not know, each right but for that; they are said again and again.
const STRANGERS: usize = 64;
/// Real clients that come during the flood.
const CLIENTS: usize = 8;
/// What the server may hold more after the second flood than after the first: pages of its allocator, no state.
const SLACK: u64 = 4 << 20;
/// The hang guard of one echo through the flood.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// What is sent, over and over.
struct Ammunition {
    /// Whole handshakes of unknown clients, and one of a client that the server knows.
    handshakes: Vec<Vec<u8>>,
}

impl Ammunition {
    fn new(pair: &Pair) -> Self {
        let server = pair.server_key.public.parse::<PublicKey>().expect("a key");
        let known = std::fs::read_to_string(&pair.client_key.file).expect("a key");
        let known = known.trim().parse::<SecretKey>().expect("a key");
        let mut rng = rand::rng();
        let mut keys: Vec<SecretKey> = (0..STRANGERS)
            .map(|_| SecretKey::generate(&mut rng))
            .collect();
        keys.push(known);
        let path = DatagramPath::to(SocketAddr::from((Ipv4Addr::LOCALHOST, pair.port)));
        let handshakes = keys
            .into_iter()
            .map(|key| {
                let config = ClientConfig::new(key, server, *b"recorded");
                let now = Instant::now();
                let mut initiator =
                    DatagramInitiator::new(now, &config, path, &mut rng).expect("a handshake");
                let mut init = Vec::new();
                let sent = initiator.poll_transmit(now, SystemTime::now(), &mut init);
                assert!(sent.expect("an Init"));
                init
            })
            .collect();
        Self { handshakes }
    }

    /// The next datagram: a handshake as it is, one with a wrong byte, one of the other types with made-up names, or
    /// garbage.
    fn load(&self, rng: &mut StdRng, datagram: &mut Vec<u8>) {
        datagram.clear();
        let kind = rng.random_range(0..5);
        match kind {
            0 | 1 => {
                let which = rng.random_range(0..self.handshakes.len());
                datagram.extend_from_slice(&self.handshakes[which]);
                if kind == 1 {
                    let at = rng.random_range(0..datagram.len());
                    datagram[at] ^= 1 << rng.random_range(0..8);
                }
            }
            _ => {
                datagram.resize(rng.random_range(1..1400), 0);
                rng.fill_bytes(datagram);
                datagram[0] = match kind {
                    2 => DatagramType::Sealed.byte(),
                    3 => DatagramType::Join.byte(),
                    _ => datagram[0],
                };
            }
        }
    }
}

/// Datagrams sent to a server from a thread of their own, as fast as they go, until told to stop.
struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn begin(ammunition: Arc<Ammunition>, port: u16, seed: u64) -> Self {
        let (sent, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, ends) = (sent.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(seed);
            let sockets: Vec<UdpSocket> = (0..SOURCES)
                .map(|_| {
                    let [b, c, d] = [rng.random(), rng.random(), rng.random_range(1..255)];
                    let from = (Ipv4Addr::new(127, b, c, d), 0);
                    let socket = UdpSocket::bind(from).expect("an address of loopback");
                    socket.set_nonblocking(true).expect("a socket");
                    socket
                })
                .collect();
            let mut datagram = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                for socket in &sockets {
                    ammunition.load(&mut rng, &mut datagram);
                    let to = (Ipv4Addr::LOCALHOST, port);
                    if socket.send_to(&datagram, to).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { sent, stop, thread }
    }

    /// Waits for the last of [`FORGED`] datagrams, and ends; returns how many there were.
    fn end(self) -> u64 {
        let enough = || (self.sent.load(Ordering::Relaxed) >= FORGED).then_some(());
        wait_for(PATIENCE, enough).expect("the flood flows");
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood ends");
        self.sent.load(Ordering::Relaxed)
    }
}

/// A flood, and clients that come in the midst of it; returns how many datagrams were sent.
fn wave(pair: &Pair, ammunition: &Arc<Ammunition>, target: SocketAddr, seed: u64) -> u64 {
    let flood = Flood::begin(ammunition.clone(), pair.port, seed);
    for nth in 0..CLIENTS {
        let began = Instant::now();
        let (mut client, proxy) = pair.other("udp", pair.port);
        client.expect_ready();
        let ready = began.elapsed();
        Place::here().block_on(move || async move {
            let mut stream = socks::connect(proxy, target).await.expect("connects");
            flows::echo(&mut stream, b"through the flood", PATIENCE)
                .await
                .expect("comes back");
        });
        println!(
            "client {nth}: ready {:.2} s after its start, an echo after {:.2} s",
            ready.as_secs_f32(),
            began.elapsed().as_secs_f32()
        );
        client.stop();
    }
    flood.end()
}

#[test]
fn forged_handshakes_cost_no_memory_and_keep_no_client_out() {
    let here = Place::here();
    let echo = Origin::echo(&here, LOOPBACK.into());
    let mut pair = Pair::start("udp");
    let ammunition = Arc::new(Ammunition::new(&pair));
    flows::comes_back(&here, pair.proxy, echo.address(), PATIENCE);

    // what a flood and those who come in it may fill is filled by the first
    let first = wave(&pair, &ammunition, echo.address(), 1);
    thread::sleep(Duration::from_secs(1));
    let before = pair.server.meters();
    let second = wave(&pair, &ammunition, echo.address(), 2);
    // the session that was there lives
    flows::comes_back(&here, pair.proxy, echo.address(), PATIENCE);
    let settled = wait_for(PATIENCE, || {
        let now = pair.server.meters();
        (now.resident <= before.resident + SLACK && now.descriptors <= before.descriptors)
            .then_some(now)
    });
    let after = settled.unwrap_or_else(|| {
        panic!(
            "after the first flood {before}, after the second {}",
            pair.server.meters()
        )
    });
    println!("{first} and {second} datagrams; {before}, then {after}");
    assert_eq!(pair.server.panics(), Vec::<String>::new());
    assert_eq!(pair.server.stop().0.code(), Some(0));
}
