//! The whole path in one process: client, lane, server with egress `user`, and an origin.

use std::net::SocketAddr;
use std::time::Duration;

use adit::client::run::Client;
use adit::config::{
    CertificateCheck, ClientConfig, ClientEntry, EgressKind, LaneAddr, Limits, ListenAddr, Scheme,
    ServerConfig, TunConfig,
};
use adit::proto::SecretKey;
use adit::server::run::{RunError, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Path {
    client: Client,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), RunError>>,
    _state: tempfile::TempDir,
}

async fn path(scheme: Scheme) -> Path {
    let state = tempfile::tempdir().unwrap();
    let server_key = SecretKey::generate(&mut rand::rng());
    let client_key = SecretKey::generate(&mut rand::rng());
    let server = Server::start(ServerConfig {
        listen: vec![ListenAddr {
            scheme,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        }],
        secret_keys: vec![server_key.clone()],
        network: Some("10.86.0.0/24".parse().unwrap()),
        network6: Some("fd86::/64".parse().unwrap()),
        egress: EgressKind::User,
        tun: TunConfig {
            name: "adit0".into(),
            masquerade: true,
        },
        mtu: 1400,
        allow: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        clients: vec![ClientEntry {
            name: "test".into(),
            public_key: client_key.public(),
            address: None,
            address6: None,
            preshared_key: None,
        }],
        tls: None,
        dns: Vec::new(),
        client_to_client: false,
        state_dir: state.path().to_path_buf(),
        max_clients: 16,
        limits: Limits {
            flows_per_client: 1000,
            half_open_per_client: 100,
        },
        aead: Vec::new(),
    })
    .await
    .unwrap();
    let address: LaneAddr = server.listening()[0].clone();
    let stop = CancellationToken::new();
    let server = tokio::spawn(server.run(stop.clone()));
    let client = Client::start(&ClientConfig {
        servers: vec![address],
        server_key: server_key.public(),
        secret_key: client_key,
        preshared_key: None,
        proxy: SocketAddr::from(([127, 0, 0, 1], 0)),
        proxy_auth: None,
        tls: CertificateCheck::Unchecked,
        connect_timeout: Duration::from_secs(5),
        aead: Vec::new(),
    })
    .unwrap();
    Path {
        client,
        stop,
        server,
        _state: state,
    }
}

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
    let path = path(scheme).await;
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
    path.client.close().await;
    path.stop.cancel();
    path.server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_tcp_lane() {
    bytes_go_both_ways(Scheme::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_tls_lane() {
    bytes_go_both_ways(Scheme::Tls).await;
}
