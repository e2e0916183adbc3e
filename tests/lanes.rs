//! Several stream lanes under one session: what is thin goes on all, what is bulk is spread, and each may go.
//!
//! A relay stands in front of the server, as a network that holds up or cuts one connection and not the others.

#[path = "path/mod.rs"]
mod path;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use adit::client::tunnel::FlowStream;
use adit::config::{Host, LaneAddr, Scheme};
use path::Path;
use path::flow::{Flow, echo, in_time};
use path::network::{Connection, Network};

/// How far messages are apart: their flow is a slow one.
const APART: Duration = Duration::from_millis(20);

/// How long a lane is held up at most: less than what makes a client give it up.
const HELD_UP: Duration = Duration::from_millis(1_200);

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
        let since = Instant::now();
        for _ in 0..50 {
            flow.echo(200).await;
            tokio::time::sleep(APART).await;
            // For longer than the messages take on a machine that is not busy, the client would look for another way.
            if since.elapsed() > HELD_UP {
                break;
            }
        }
        lane.frozen.store(false, Ordering::Relaxed);
        assert!(!lane.is_over(), "it was held up, and not given up");
    }
    assert!(!lanes.iter().any(Connection::is_over));
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
