//! The whole path in one process: client, lane, server with egress `user`, and an origin.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use adit::client::connect::{Connected, Connector};
use adit::client::run::Client;
use adit::client::tunnel::ConnectError;
use adit::config::{
    CertificateCheck, ClientConfig, ClientEntry, EgressKind, LaneAddr, Limits, ListenAddr, Repair,
    Scheme, ServerConfig, TunConfig,
};
use adit::io::carrier::CarrierEvent;
use adit::io::clock;
use adit::io::pool::Pool;
use adit::io::tls::{ClientTls, Verify};
use adit::proto::{ClientConfig as Handshake, PublicKey, SecretKey, SessionEvent};
use adit::server::run::{RunError, Server, Shared};
use adit::wire::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Path {
    client: Client,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), RunError>>,
    shared: Arc<Shared>,
    address: LaneAddr,
    keys: (PublicKey, SecretKey),
    _state: tempfile::TempDir,
}

async fn path(scheme: Scheme) -> Path {
    path_for(scheme, 16).await
}

/// A path whose server lets so many clients in.
async fn path_for(scheme: Scheme, max_clients: u32) -> Path {
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
        max_clients,
        limits: Limits {
            flows_per_client: 1000,
            half_open_per_client: 100,
        },
        aead: Vec::new(),
        repair: Repair::Auto,
    })
    .await
    .unwrap();
    let address: LaneAddr = server.listening()[0].clone();
    let shared = server.shared().clone();
    let stop = CancellationToken::new();
    let server = tokio::spawn(server.run(stop.clone()));
    let client = Client::start(&ClientConfig {
        servers: vec![address.clone()],
        server_key: server_key.public(),
        secret_key: client_key.clone(),
        preshared_key: None,
        proxy: SocketAddr::from(([127, 0, 0, 1], 0)),
        proxy_auth: None,
        tls: CertificateCheck::Unchecked,
        connect_timeout: Duration::from_secs(5),
        aead: Vec::new(),
        repair: Repair::Auto,
    })
    .unwrap();
    Path {
        client,
        stop,
        server,
        shared,
        address,
        keys: (server_key.public(), client_key),
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
async fn bytes_go_both_ways_over_a_datagram_lane() {
    bytes_go_both_ways(Scheme::Udp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_over_a_tls_lane() {
    bytes_go_both_ways(Scheme::Tls).await;
}

async fn connected(path: &Path) {
    tokio::time::timeout(Duration::from_secs(10), path.client.connected())
        .await
        .expect("connected in time")
        .expect("a configuration");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_client_ends_for_all_who_hold_its_tunnel() {
    let path = path(Scheme::Tcp).await;
    let origin = echo().await;
    connected(&path).await;
    let tunnel = path.client.tunnel();
    drop(path.client);
    while tunnel.connect(origin).await.err() != Some(ConnectError::TunnelDown) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while !path.shared.registry.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    path.stop.cancel();
    path.server.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_says_so_before_it_hangs_up() {
    let path = path_for(Scheme::Tls, 1).await;
    connected(&path).await;
    let connector = Arc::new(Connector {
        servers: vec![path.address.clone()],
        tls: ClientTls::new(&Verify::Unchecked).unwrap(),
        handshake: Handshake::new(path.keys.1.clone(), path.keys.0, *b"a second"),
        time: Duration::from_secs(5),
        pool: Pool::new("second", 4, 4),
    });
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
    path.client.close().await;
    path.stop.cancel();
    path.server.await.unwrap().unwrap();
}
