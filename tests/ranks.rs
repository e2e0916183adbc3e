//! The lanes of a client's list under a living session: the best that works is used.
//!
//! A relay for datagrams stands in front of the server, as a network that lets them pass or not,
//! and shows them to come from where it likes.

#[path = "path/mod.rs"]
mod path;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use adit::config::{Host, LaneAddr, Scheme};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use path::Path;
use path::flow::{Flow, echo, in_time};

/// A network that carries datagrams of one client to one server.
struct Network {
    address: SocketAddr,
    open: Arc<AtomicBool>,
    /// Bytes carried, both ways.
    carried: Arc<AtomicU64>,
    /// Changing it makes the client's datagrams come from another address.
    mapping: watch::Sender<u32>,
    task: JoinHandle<()>,
}

impl Network {
    async fn to(server: SocketAddr, open: bool) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = near.local_addr().unwrap();
        let open = Arc::new(AtomicBool::new(open));
        let carried = Arc::new(AtomicU64::new(0));
        let (mapping, mut changed) = watch::channel(0);
        let (gate, count) = (open.clone(), carried.clone());
        let task = tokio::spawn(async move {
            let mut far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let (mut up, mut down) = ([0; 2048], [0; 2048]);
            let mut client = None;
            loop {
                tokio::select! {
                    received = near.recv_from(&mut up) => {
                        // What the far end's host says of it is no datagram.
                        let Ok((len, from)) = received else { continue };
                        client = Some(from);
                        if gate.load(Ordering::Relaxed) {
                            count.fetch_add(len as u64, Ordering::Relaxed);
                            let _ = far.send_to(&up[..len], server).await;
                        }
                    }
                    received = far.recv_from(&mut down) => {
                        let Ok((len, _)) = received else { continue };
                        if gate.load(Ordering::Relaxed) && let Some(client) = client {
                            count.fetch_add(len as u64, Ordering::Relaxed);
                            let _ = near.send_to(&down[..len], client).await;
                        }
                    }
                    alive = changed.changed() => {
                        if alive.is_err() {
                            return;
                        }
                        far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                    }
                }
            }
        });
        Self {
            address,
            open,
            carried,
            mapping,
            task,
        }
    }

    fn lane(&self) -> LaneAddr {
        let host = Host::Ip(self.address.ip());
        LaneAddr::new(Scheme::Udp, host, self.address.port())
    }

    fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::Relaxed);
    }

    fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that listens for datagrams and TLS, and a client of it behind a network.
async fn both(open: bool) -> (Path, Network) {
    let mut network = None;
    let path = Path::start_behind(&[Scheme::Udp, Scheme::Tls], 16, async |listening| {
        let Host::Ip(address) = listening[0].host else {
            panic!("a server listens on addresses");
        };
        let server = SocketAddr::new(address, listening[0].port);
        let made = Network::to(server, open).await;
        let servers = vec![made.lane(), listening[1].clone()];
        network = Some(made);
        servers
    })
    .await;
    (path, network.expect("it was made"))
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_alone_carry_many_flows_at_once() {
    let path = Path::start(Scheme::Udp).await;
    let origin = echo().await;
    let tunnel = path.client.tunnel();
    let flows = (0..20).map(|_| async {
        let flow = tunnel.connect(origin).await.expect("connects");
        Flow(flow.into_stream()).echo(100_000).await;
    });
    futures_util::future::join_all(flows).await;
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_used_where_they_pass() {
    let (path, network) = both(true).await;
    let origin = echo().await;
    let mut flow = Flow(
        path.client
            .tunnel()
            .connect(origin)
            .await
            .unwrap()
            .into_stream(),
    );
    flow.echo(1_000_000).await;
    assert!(network.carried() > 2_000_000, "{}", network.carried());
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_takes_over_from_blocked_datagrams_and_gives_back_when_they_pass() {
    let (path, network) = both(false).await;
    let origin = echo().await;
    // It is connected, so it is by TLS.
    let mut flow = Flow(
        path.client
            .tunnel()
            .connect(origin)
            .await
            .unwrap()
            .into_stream(),
    );
    flow.echo(100_000).await;
    assert_eq!(network.carried(), 0);
    network.set_open(true);
    in_time("going back", async {
        while network.carried() < 200_000 {
            flow.echo(10_000).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // And over again, in the middle of things.
    network.set_open(false);
    for _ in 0..20 {
        flow.echo(50_000).await;
    }
    network.set_open(true);
    let before = network.carried();
    in_time("going back again", async {
        while network.carried() < before + 200_000 {
            flow.echo(10_000).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_goes_on_when_the_client_comes_from_another_address() {
    let (path, network) = both(true).await;
    let origin = echo().await;
    let mut flow = Flow(
        path.client
            .tunnel()
            .connect(origin)
            .await
            .unwrap()
            .into_stream(),
    );
    flow.echo(100_000).await;
    for mapping in 1..4 {
        network.mapping.send(mapping).expect("it carries");
        let before = network.carried();
        flow.echo(100_000).await;
        assert!(network.carried() > before + 200_000, "by datagrams still");
    }
    path.end().await;
}
