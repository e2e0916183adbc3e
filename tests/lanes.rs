//! Several stream lanes under one session: what is thin goes on all, what is bulk is spread, and each may go.
//!
//! A relay stands in front of the server, as a network that holds up or cuts one connection and not the others.

#[path = "path/mod.rs"]
mod path;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adit::client::tunnel::FlowStream;
use adit::config::{Host, LaneAddr, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use path::Path;
use path::flow::{Flow, echo, in_time};

/// How far messages are apart: their flow is a slow one.
const APART: Duration = Duration::from_millis(20);

/// One connection through the network.
#[derive(Clone)]
struct Connection {
    frozen: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    /// Bytes carried, both ways.
    carried: Arc<AtomicU64>,
}

impl Connection {
    fn is_over(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Carries bytes one way until there is an end of it.
    async fn carry(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 16 * 1024];
        let tick = Duration::from_millis(1);
        while !self.is_over() {
            if self.frozen.load(Ordering::Relaxed) {
                tokio::time::sleep(tick).await;
                continue;
            }
            let Ok(read) = tokio::time::timeout(5 * tick, from.read(&mut buffer)).await else {
                continue;
            };
            let len = read.unwrap_or(0);
            // Frozen meanwhile: what was read stays here, as it would in a network.
            while self.frozen.load(Ordering::Relaxed) && !self.is_over() {
                tokio::time::sleep(tick).await;
            }
            if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
                break;
            }
            self.carried.fetch_add(len as u64, Ordering::Relaxed);
        }
        self.cut.store(true, Ordering::Relaxed);
    }
}

/// A network that carries connections to one server.
struct Network {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Connection>>>,
    task: JoinHandle<()>,
}

impl Network {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Connection>>> = Arc::default();
        let known = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else {
                    continue;
                };
                let connection = Connection {
                    frozen: Arc::default(),
                    cut: Arc::default(),
                    carried: Arc::default(),
                };
                known.lock().unwrap().push(connection.clone());
                let (from_client, to_client) = near.into_split();
                let (from_server, to_server) = far.into_split();
                tokio::spawn(connection.clone().carry(from_client, to_server));
                tokio::spawn(connection.carry(from_server, to_client));
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }

    fn connections(&self) -> Vec<Connection> {
        self.connections.lock().unwrap().clone()
    }

    /// Waits until so many connections have carried more than their handshakes.
    async fn has(&self, count: usize) -> Vec<Connection> {
        in_time("the lanes", async {
            loop {
                let living = self.connections().into_iter();
                let living: Vec<_> = living.filter(|one| !one.is_over()).collect();
                if living.len() >= count {
                    return living;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn flow(path: &Path, origin: SocketAddr) -> Flow<FlowStream> {
    let tunnel = path.client.tunnel();
    let connected = in_time("a flow", tunnel.connect(origin)).await;
    Flow(connected.expect("connects").into_stream())
}

/// A server, and a client of it by three lanes through a network.
async fn three(scheme: Scheme) -> (Path, Network) {
    let mut network = None;
    let path = Path::start_with(&[scheme], 16, 3, async |listening| {
        let Host::Ip(address) = listening[0].host else {
            panic!("a server listens on addresses");
        };
        let made = Network::to(SocketAddr::new(address, listening[0].port)).await;
        let lane = LaneAddr {
            port: made.address.port(),
            ..listening[0].clone()
        };
        network = Some(made);
        vec![lane]
    })
    .await;
    path.connected().await;
    (path, network.expect("it was made"))
}

/// Sends messages until the last lane to join carries them: both ends send on all of them then.
async fn settle(flow: &mut Flow<FlowStream>, lanes: &[Connection]) {
    let last = lanes.last().expect("there are lanes");
    let before = last.carried();
    in_time("the last lane", async {
        while last.carried() < before + 4_000 {
            flow.echo(200).await;
            tokio::time::sleep(APART).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_while_any_one_of_three_tls_lanes_is_held_up() {
    let (path, network) = three(Scheme::Tls).await;
    let origin = echo().await;
    let mut flow = flow(&path, origin).await;
    let lanes = network.has(3).await;
    settle(&mut flow, &lanes).await;
    for lane in &lanes {
        lane.frozen.store(true, Ordering::Relaxed);
        for _ in 0..50 {
            flow.echo(200).await;
            tokio::time::sleep(APART).await;
        }
        lane.frozen.store(false, Ordering::Relaxed);
        assert!(!lane.is_over(), "it was held up, and not given up");
    }
    assert_eq!(network.connections().len(), 3);
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lane_that_is_cut_is_opened_again_while_the_others_carry_on() {
    let (path, network) = three(Scheme::Tcp).await;
    let origin = echo().await;
    let mut flow = flow(&path, origin).await;
    for _ in 0..3 {
        let lanes = network.has(3).await;
        lanes[0].cut.store(true, Ordering::Relaxed);
        for _ in 0..20 {
            flow.echo(200).await;
        }
    }
    network.has(3).await;
    assert!(network.connections().len() >= 6);
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_in_bulk_are_spread_over_the_lanes_and_keep_their_bytes() {
    let (path, network) = three(Scheme::Tcp).await;
    let origin = echo().await;
    let lanes = network.has(3).await;
    let mut first = flow(&path, origin).await;
    settle(&mut first, &lanes).await;
    let flows = (0..6).map(|_| async {
        flow(&path, origin).await.echo(2_000_000).await;
    });
    futures_util::future::join_all(flows).await;
    for lane in &lanes {
        assert!(lane.carried() > 1_000_000, "{}", lane.carried());
    }
    path.end().await;
}
