//! Flows that are relayed without a netstack, both ends in one process: what becomes of them when something goes wrong.

#[path = "path/mod.rs"]
mod path;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use adit::client::tunnel::ConnectError;
use adit::config::{Host, LaneAddr, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use path::Path;
use path::flow::{Flow, echo, in_time};
use path::network::Network;

/// A server, and a client of it by one lane through a network.
async fn through_a_network(scheme: Scheme) -> (Path, Network) {
    let mut network = None;
    let path = Path::start_behind(&[scheme], 16, async |listening| {
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

async fn outlives_lanes(scheme: Scheme) {
    let (path, network) = through_a_network(scheme).await;
    let origin = echo().await;
    let tunnel = path.client.tunnel();
    let idle = in_time("a flow", tunnel.connect(origin)).await.unwrap();
    let mut idle = Flow(idle.into_stream());
    idle.echo(200).await;
    let flow = in_time("a flow", tunnel.connect(origin)).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(flow.into_stream());
    let sent: Vec<u8> = (0..24_000_000u32).map(|i| (i % 251) as u8).collect();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    let mut cuts = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = in_time("bytes", reader.read(&mut buffer)).await.unwrap();
        if read == 0 {
            break;
        }
        received.extend_from_slice(&buffer[..read]);
        if received.len() > (cuts + 1) * 5_000_000 {
            cuts += 1;
            let lanes = network.has(1).await;
            for lane in lanes {
                lane.cut.store(true, Ordering::Relaxed);
            }
        }
    }
    writing.await.unwrap();
    assert_eq!(cuts, 4);
    assert!(received == sent, "{} of {}", received.len(), sent.len());
    idle.echo(100_000).await;
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_outlives_tcp_lanes_that_are_cut_in_the_middle_of_a_transfer() {
    outlives_lanes(Scheme::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_outlives_tls_lanes_that_are_cut_in_the_middle_of_a_transfer() {
    outlives_lanes(Scheme::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_outlives_websocket_lanes_that_are_cut_in_the_middle_of_a_transfer() {
    outlives_lanes(Scheme::Wss).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_is_asked_for_while_there_is_no_lane_is_made_when_there_is_one() {
    let (path, network) = through_a_network(Scheme::Tcp).await;
    let origin = echo().await;
    for lane in network.has(1).await {
        lane.cut.store(true, Ordering::Relaxed);
    }
    let flow = in_time("a flow", path.client.tunnel().connect(origin)).await;
    Flow(flow.unwrap().into_stream()).echo(200).await;
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_says_why() {
    let path = Path::start(Scheme::Tcp).await;
    path.connected().await;
    let tunnel = path.client.tunnel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let refused = in_time("a refusal", tunnel.connect(closed)).await;
    assert_eq!(refused.err(), Some(ConnectError::Refused));
    let private = "192.168.7.7:80".parse().unwrap();
    let denied = in_time("a refusal", tunnel.connect(private)).await;
    assert_eq!(denied.err(), Some(ConnectError::NotAllowed));
    // The server's own services, and other clients, are reached by packets, and refused there.
    let gateway = "10.86.0.1:80".parse().unwrap();
    let denied = in_time("a refusal", tunnel.connect(gateway)).await;
    assert_eq!(denied.err(), Some(ConnectError::NotAllowed));
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_beyond_the_limit_are_refused_and_those_below_it_live() {
    let path = Path::start(Scheme::Tcp).await;
    path.connected().await;
    let tunnel = path.client.tunnel();
    let origin = echo().await;
    let mut flows = Vec::new();
    for _ in 0..1000 {
        flows.push(in_time("a flow", tunnel.connect(origin)).await.unwrap());
    }
    let refused = in_time("a refusal", tunnel.connect(origin)).await;
    assert_eq!(refused.err(), Some(ConnectError::TooManyFlows));
    let last = flows.pop().unwrap();
    Flow(last.into_stream()).echo(200).await;
    // The one that has ended leaves its place to another, when the server knows.
    in_time("a place", async {
        while tunnel.connect(origin).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_of_the_origin_is_a_reset_for_the_application() {
    let path = Path::start(Scheme::Tcp).await;
    path.connected().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    let flow = in_time("a flow", path.client.tunnel().connect(origin)).await;
    let mut flow = flow.unwrap().into_stream();
    let (socket, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
    let error = in_time("a reset", flow.read(&mut [0; 8]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_goes_resets_the_origin() {
    let path = Path::start(Scheme::Tcp).await;
    path.connected().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = listener.local_addr().unwrap();
    let flow = in_time("a flow", path.client.tunnel().connect(origin)).await;
    let (mut socket, _) = listener.accept().await.unwrap();
    drop(flow);
    let error = in_time("a reset", socket.read(&mut [0; 8]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn end_of_the_server_is_a_reset_for_the_application() {
    let path = Path::start(Scheme::Tcp).await;
    path.connected().await;
    let origin = echo().await;
    let flow = in_time("a flow", path.client.tunnel().connect(origin)).await;
    let mut flow = Flow(flow.unwrap().into_stream());
    flow.echo(200).await;
    let Path { client, server, .. } = path;
    server.end().await;
    let error = in_time("a reset", flow.0.read(&mut [0; 8]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    client.close().await;
}
