//! The whole path in one process: client, lane, server with egress `user`, and an origin.

use std::net::SocketAddr;
use std::time::Duration;

use adit::config::Scheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[path = "path/mod.rs"]
mod path;

use path::Path;

/// An origin that sends back what it receives.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = socket.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

async fn bytes_go_both_ways(scheme: Scheme) {
    let path = Path::start(scheme).await;
    let origin = echo().await;
    let config = tokio::time::timeout(Duration::from_secs(10), path.client.connected())
        .await
        .expect("connected in time")
        .expect("a configuration");
    assert_eq!(config.mtu, 1400);
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
async fn bytes_go_both_ways_over_a_tls_lane() {
    bytes_go_both_ways(Scheme::Tls).await;
}
