//! Both ends of a tunnel in one process.

#![allow(dead_code, reason = "each program uses its part")]

pub(crate) mod flow;
pub(crate) mod network;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit::client::run::Client;
use adit::config::{
    CertificateCheck, ClientConfig, ClientEntry, ControlSocket, DnsConfig, EgressKind, LaneAddr,
    Limits, ListenAddr, ProcessConfig, Repair, Scheme, ServerConfig, TunConfig,
};
use adit::proto::{PublicKey, SecretKey, budget};
use adit::server::run::{RunError, Server};
use adit::server::shared::Shared;
use adit::wire::InnerConfig;
use tokio_util::sync::CancellationToken;

/// A server with egress `user` and a client that is connected to it, by a lane.
pub(crate) struct Path {
    pub(crate) client: Client,
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: LaneAddr,
    /// The server's public key, and the client's secret one.
    pub(crate) keys: (PublicKey, SecretKey),
    pub(crate) server: Running,
}

/// The server of a path.
pub(crate) struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), RunError>>,
    _state: tempfile::TempDir,
}

impl Path {
    /// Starts both ends on loopback, with keys of their own.
    pub(crate) async fn start(scheme: Scheme) -> Self {
        Self::start_for(scheme, 16).await
    }

    /// As [`Path::start`], with a client that knows of datagrams, too, where nobody answers: so its flows are not
    /// relayed, but cross in packets.
    pub(crate) async fn start_by_packets(scheme: Scheme) -> Self {
        let silent: LaneAddr = "udp://127.0.0.1:9".parse().unwrap();
        let network = async |listening: &[LaneAddr]| vec![listening[0].clone(), silent.clone()];
        Self::start_behind(&[scheme], 16, network).await
    }

    /// As [`Path::start`], with a server that lets so many clients in.
    pub(crate) async fn start_for(scheme: Scheme, max_clients: u32) -> Self {
        let straight = async |listening: &[LaneAddr]| listening.to_vec();
        Self::start_behind(&[scheme], max_clients, straight).await
    }

    /// The same with a server that listens by each of `schemes`, and a client that is told what
    /// `network` makes of where that is.
    pub(crate) async fn start_behind(
        schemes: &[Scheme],
        max_clients: u32,
        network: impl AsyncFnOnce(&[LaneAddr]) -> Vec<LaneAddr>,
    ) -> Self {
        Self::start_with(schemes, max_clients, 1, network).await
    }

    /// The same with a client that is to have so many lanes side by side.
    pub(crate) async fn start_with(
        schemes: &[Scheme],
        max_clients: u32,
        lanes: usize,
        network: impl AsyncFnOnce(&[LaneAddr]) -> Vec<LaneAddr>,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let server_key = SecretKey::generate(&mut rand::rng());
        let client_key = SecretKey::generate(&mut rand::rng());
        let server = Server::start(ServerConfig {
            listen: schemes
                .iter()
                .map(|scheme| ListenAddr::new(*scheme, SocketAddr::from(([127, 0, 0, 1], 0))))
                .collect(),
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
            tls_names: Vec::new(),
            public: Vec::new(),
            dns: Vec::new(),
            dns_records: Vec::new(),
            client_to_client: false,
            state_dir: state.path().to_path_buf(),
            max_clients,
            limits: Limits {
                flows_per_client: 1000,
                half_open_per_client: 100,
                ..Limits::default()
            },
            aead: Vec::new(),
            repair: Repair::Auto,
            threads: None,
            control: ControlSocket::Off,
            admin: None,
            log_level: None,
            process: ProcessConfig::default(),
        })
        .await
        .unwrap();
        let address: LaneAddr = server.listening()[0].clone();
        let servers = network(&server.listening()).await;
        let shared = server.shared().clone();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        let client = Client::start(&ClientConfig {
            servers,
            server_key: server_key.public(),
            secret_key: client_key.clone(),
            preshared_key: None,
            proxy: SocketAddr::from(([127, 0, 0, 1], 0)),
            proxy_auth: None,
            rules: Vec::new(),
            proxies: Vec::new(),
            dns: DnsConfig::default(),
            tls: CertificateCheck::Unchecked,
            via: None,
            connect_timeout: Duration::from_secs(5),
            lanes,
            aead: Vec::new(),
            repair: Repair::Auto,
            threads: None,
            process: ProcessConfig::default(),
            forwards: Vec::new(),
            control: ControlSocket::Off,
            admin: None,
            log_level: None,
            memory: budget::CLIENT,
            tun: None,
        })
        .unwrap();
        Path {
            client,
            shared,
            address,
            keys: (server_key.public(), client_key),
            server: Running {
                stop,
                task,
                _state: state,
            },
        }
    }

    /// Waits until the client has its configuration, ten seconds at most.
    pub(crate) async fn connected(&self) -> InnerConfig {
        tokio::time::timeout(Duration::from_secs(10), self.client.connected())
            .await
            .expect("connected in time")
            .expect("a configuration")
    }

    /// Ends both in order.
    pub(crate) async fn end(self) {
        self.client.close().await;
        self.server.end().await;
    }
}

impl Running {
    /// Ends the server in order.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}
