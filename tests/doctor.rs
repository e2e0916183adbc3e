//! The doctor of a client in this process: its sessions end with it, and it ends in time.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit::config::{ClientConfig, Inputs, ServerConfig, write_key};
use adit::doctor::client::{Allowed, examine, wants};
use adit::doctor::running::Running;
use adit::doctor::{Check, Finding, LIMIT, Verdict};
use adit::io::control::{Caller, Request};
use adit::io::host::Traces;
use adit::proto::SecretKey;
use adit::server::run::{RunError, Server};
use serde_json::Map;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// A server, and the configuration of a client of it.
struct World {
    client: ClientConfig,
    control: PathBuf,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), RunError>>,
    folder: tempfile::TempDir,
}

impl World {
    async fn start(scheme: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (server_key, client_key) = (key(), key());
        write_key(&at("server.key"), &server_key, false).unwrap();
        let text = format!(
            "listen: [{scheme}://127.0.0.1:0]\nkey_file: server.key\negress: user\nstate_dir: state\n\
             control: {}\nclients:\n  - {{name: test, public_key: \"{}\"}}\n",
            at("control.sock").display(),
            client_key.public()
        );
        fs::write(at("server.yaml"), text).unwrap();
        let config = ServerConfig::load(inputs(&at("server.yaml")))
            .unwrap()
            .config;
        let server = Server::start(config).await.unwrap();
        let servers = server.listening()[0].to_string();
        let client = client(folder.path(), &[servers], &server_key, &client_key);
        let stop = CancellationToken::new();
        Self {
            client,
            control: at("control.sock"),
            server: tokio::spawn(server.run(stop.clone())),
            stop,
            folder,
        }
    }

    /// How many sessions the server has.
    async fn sessions(&self) -> usize {
        let control = self.control.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut caller = Caller::connect(&control).unwrap();
            let request = Request::new("status", Map::new());
            caller
                .call(&request, None, Duration::from_secs(20))
                .unwrap()
        });
        asked.await.unwrap()["sessions"].as_array().unwrap().len()
    }

    /// Waits until the server has so many, half as long as it keeps one that nobody has said goodbye of.
    async fn have(&self, sessions: usize) {
        let so = async {
            while self.sessions().await != sessions {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let so = timeout(Duration::from_secs(30), so).await;
        assert!(so.is_ok(), "not {sessions} sessions");
    }

    async fn end(self) {
        self.stop.cancel();
        self.server.await.unwrap().unwrap();
        drop(self.folder);
    }
}

fn key() -> SecretKey {
    SecretKey::generate(&mut rand::rng())
}

fn inputs(file: &Path) -> Inputs<'_> {
    Inputs {
        file: Some(file),
        environment: &|_| None,
        flags: &[],
    }
}

fn client(
    folder: &Path,
    servers: &[String],
    server_key: &SecretKey,
    own: &SecretKey,
) -> ClientConfig {
    let at = |name: &str| folder.join(name);
    write_key(&at("client.key"), own, false).unwrap();
    let text = format!(
        "server: [\"{}\"]\nserver_key: \"{}\"\nkey_file: client.key\nproxy: 127.0.0.1:0\n",
        servers.join("\", \""),
        server_key.public()
    );
    fs::write(at("client.yaml"), text).unwrap();
    ClientConfig::load(inputs(&at("client.yaml")))
        .unwrap()
        .config
}

async fn look(config: &ClientConfig, allowed: &Allowed) -> Vec<Finding> {
    let mut found = Vec::new();
    let running = Running::new(wants(config, None), Vec::new());
    let beside = (&running, Traces::default());
    examine(config, beside, allowed, &mut |finding| found.push(finding)).await;
    found
}

/// Whether the measurement was given up, for a reason with these words.
fn was_cut_off(found: &[Finding], words: &str) -> bool {
    found.iter().any(|one| {
        one.check == Check::RoundTrip
            && one.verdict == Verdict::Skipped
            && one.words.contains(words)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn session_of_a_measurement_that_is_stopped_ends_at_the_server() {
    for scheme in ["udp", "tcp"] {
        let world = World::start(scheme).await;
        let allowed = Allowed {
            load: true,
            until: Instant::now() + LIMIT,
            stop: CancellationToken::new(),
        };
        let stopped = async {
            world.have(1).await;
            allowed.stop.cancel();
        };
        let (found, ()) = tokio::join!(look(&world.client, &allowed), stopped);
        assert!(was_cut_off(&found, "stopped"), "{scheme}: {found:#?}");
        world.have(0).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_of_a_measurement_that_takes_too_long_ends_at_the_server() {
    let world = World::start("udp").await;
    // Echoes by datagrams alone take longer.
    let allowed = Allowed {
        load: true,
        until: Instant::now() + Duration::from_secs(3),
        stop: CancellationToken::new(),
    };
    let found = look(&world.client, &allowed).await;
    assert!(was_cut_off(&found, "time for everything"), "{found:#?}");
    world.have(0).await;
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn examination_is_over_in_its_time_where_all_ways_are_silent() {
    // Bound, and never read from: what connects is connected by the kernel, and hears nothing.
    let datagrams: Vec<UdpSocket> = (0..4)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    let streams: Vec<TcpListener> = (0..6)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let udp = datagrams
        .iter()
        .map(|at| format!("udp://{}", at.local_addr().unwrap()));
    let schemes = ["tcp", "tls", "ws", "wss"].into_iter().cycle();
    let streamed = streams.iter().zip(schemes);
    let streamed = streamed.map(|(at, scheme)| format!("{scheme}://{}", at.local_addr().unwrap()));
    let folder = tempfile::tempdir().unwrap();
    let servers: Vec<String> = udp.chain(streamed).collect();
    let config = client(folder.path(), &servers, &key(), &key());
    let began = Instant::now();
    let allowed = Allowed {
        load: true,
        until: began + LIMIT,
        stop: CancellationToken::new(),
    };
    let found = look(&config, &allowed).await;
    let took = began.elapsed();
    assert!(took <= LIMIT, "{took:?} of the clock that the waits go by");
    let reach: Vec<_> = found
        .iter()
        .filter(|one| one.check == Check::Reach)
        .collect();
    assert_eq!(reach.len(), servers.len());
    assert!(
        reach.iter().all(|one| one.verdict == Verdict::Failed),
        "{reach:#?}"
    );
    assert!(found.iter().any(|one| one.check == Check::Choice));
}
