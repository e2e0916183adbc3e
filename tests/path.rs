//! The whole path in one process: client, lane, server with egress `user`, and an origin.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use adit::client::connect::{Connected, Connector};
use adit::client::tunnel::ConnectError;
use adit::config::{LaneAddr, Scheme};
use adit::io::carrier::CarrierEvent;
use adit::io::clock;
use adit::io::dial::Dialer;
use adit::io::pool::Pool;
use adit::io::tls::{ClientTls, Verify};
use adit::proto::{ClientConfig as Handshake, SessionEvent};
use adit::wire::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "path/mod.rs"]
mod path;

use path::Path;
use path::flow::echo;

async fn bytes_go_both_ways(scheme: Scheme) {
    let path = Path::start(scheme).await;
    let origin = echo().await;
    assert_eq!(path.connected().await.mtu, 1400);
    let flow = path.client.tunnel().connect(origin).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(flow.into_stream());
    let sent: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&copy).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    writing.await.unwrap();
    assert!(received == sent, "{} of {}", received.len(), sent.len());
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_tcp_lane() {
    bytes_go_both_ways(Scheme::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_datagram_lane() {
    bytes_go_both_ways(Scheme::Udp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_tls_lane() {
    bytes_go_both_ways(Scheme::Tls).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_websocket_lane() {
    bytes_go_both_ways(Scheme::Ws).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_websocket_lane_inside_tls() {
    bytes_go_both_ways(Scheme::Wss).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_client_ends_for_all_who_hold_its_tunnel() {
    let path = Path::start(Scheme::Tcp).await;
    let origin = echo().await;
    path.connected().await;
    let tunnel = path.client.tunnel();
    drop(path.client);
    while !matches!(
        tunnel.connect(origin).await,
        Err(ConnectError::TunnelDown(_))
    ) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while !path.shared.registry.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    path.server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_says_so_before_it_hangs_up() {
    let path = Path::start_for(Scheme::Tls, 1).await;
    path.connected().await;
    let connector = Arc::new(second(&path, path.address.clone()));
    let attempt = connector.attempt(path.address.clone(), None, true);
    let Connected::Fresh(mut carrier) = attempt.await.unwrap() else {
        panic!("there is nothing to join");
    };
    let reason = std::future::poll_fn(|cx| {
        loop {
            let now = clock::now();
            let mut any = carrier.poll_receive(cx, now, |_, _, _| {});
            any |= carrier.poll_send(cx, now);
            while let Some(event) = carrier.poll_event(now) {
                any = true;
                if let CarrierEvent::Session(SessionEvent::PeerClosed(reason)) = event {
                    return Poll::Ready(Some(reason));
                }
                if let CarrierEvent::LaneLost { .. } = event {
                    return Poll::Ready(None);
                }
            }
            if !any {
                return Poll::Pending;
            }
        }
    })
    .await;
    assert_eq!(reason, Some(CloseReason::PoolExhausted));
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_at_a_tls_port_is_told_to_be_that() {
    let path = Path::start(Scheme::Tls).await;
    path.connected().await;
    let address = LaneAddr {
        scheme: Scheme::Tcp,
        ..path.address.clone()
    };
    let connector = Arc::new(second(&path, address.clone()));
    let error = connector.attempt(address, None, true).await.unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with(" (a tls:// port, perhaps?)"), "{text}");
    path.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_at_a_websocket_port_is_told_to_be_that() {
    let path = Path::start(Scheme::Ws).await;
    path.connected().await;
    let address = LaneAddr {
        scheme: Scheme::Tcp,
        ..path.address.clone()
    };
    let connector = Arc::new(second(&path, address.clone()));
    let error = connector.attempt(address, None, true).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with(" (a wss:// or ws:// port, perhaps?)"),
        "{text}"
    );
    path.end().await;
}

/// What a second client at `address` connects by.
fn second(path: &Path, address: LaneAddr) -> Connector {
    Connector {
        servers: vec![address],
        dialer: Dialer::new(ClientTls::new(&Verify::Unchecked).unwrap()),
        handshake: Handshake::new(path.keys.1.clone(), path.keys.0, *b"a second"),
        time: Duration::from_secs(5),
        lanes: 1,
        source: None,
        pool: Pool::new("second", 4, 4),
        doubted: Arc::default(),
    }
}
