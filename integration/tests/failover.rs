//! Datagrams are blocked and let through again under a living session, and the client's address changes.

use std::time::{Duration, Instant};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir},
    flows::{self, Download},
    namespaces::{Lab, ORIGIN4, Place, SERVER4},
    origin::Origin,
    scene::{Couple, PROXY},
    skip::{Need, can_run},
    socks, stream,
};

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tool("ip"),
    Need::Tool("nft"),
    Need::Tool("setpriv"),
];
/// The hang guard of everything.
const PATIENCE: Duration = Duration::from_secs(90);
/// The server's port for datagrams.
const PORT: u16 = 7443;
const LENGTH: u64 = 192 << 20;

/// A server that takes datagrams and TLS, a client that is told both in this order, and an origin.
struct Scene {
    lab: Lab,
    server: Adit,
    client: Adit,
    origin: Origin,
    echo: Origin,
    _workdir: Workdir,
}

impl Scene {
    fn new(before: impl FnOnce(&Lab)) -> Self {
        let lab = Lab::new();
        before(&lab);
        let origin = Origin::http(&lab.internet, (ORIGIN4, 80).into());
        let echo = Origin::echo(&lab.internet, (ORIGIN4, 7).into());
        let workdir = Workdir::new();
        let lanes = [
            format!("udp://{SERVER4}:{PORT}"),
            format!("tls://{SERVER4}:8443"),
        ];
        let server = ServerConfig {
            listen: lanes.to_vec(),
            ..ServerConfig::user_egress()
        };
        let files = Couple::write(
            &workdir,
            [User::Nobody; 2],
            server,
            ClientConfig::to(&lanes),
        );
        let server = workdir.start_server(&lab.server, User::Nobody, &files.server);
        let client = workdir.start_client(&lab.client, User::Nobody, &files.client);
        Self {
            lab,
            server,
            client,
            origin,
            echo,
            _workdir: workdir,
        }
    }

    /// Datagrams that the server's host has got so far.
    fn datagrams(&self) -> u64 {
        let text = self.lab.server.shell("cat /proc/net/snmp");
        let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
        let (names, values) = (lines.next(), lines.next());
        names
            .zip(values)
            .and_then(|(names, values)| {
                let at = names
                    .split_whitespace()
                    .position(|name| name == "InDatagrams")?;
                values.split_whitespace().nth(at)?.parse().ok()
            })
            .expect("the kernel counts datagrams")
    }

    fn end(mut self) {
        self.client.stop();
        self.server.stop();
    }
}

#[test]
fn client_takes_tls_where_datagrams_are_blocked_from_the_start() {
    if !can_run(NEEDS) {
        return;
    }
    let began = Instant::now();
    let scene = Scene::new(|lab| lab.server.cut_datagrams(PORT));
    println!(
        "ready {:.1} s after the start of all",
        began.elapsed().as_secs_f32()
    );
    flows::comes_back(&scene.lab.client, PROXY, scene.echo.address(), PATIENCE);
    scene.end();
}

#[test]
fn download_survives_datagrams_that_are_blocked_and_let_through_again() {
    if !can_run(NEEDS) {
        return;
    }
    download_survives(|server| server.cut_datagrams(PORT));
}

#[test]
fn download_survives_datagrams_that_are_blocked_on_the_way_to_the_server_alone() {
    if !can_run(NEEDS) {
        return;
    }
    download_survives(|server| server.cut_datagrams_to(PORT));
}

/// Downloads while `block` keeps datagrams out, and lets them through again.
fn download_survives(block: fn(&Place)) {
    let scene = Scene::new(|_| {});
    let before = scene.datagrams();
    let target = scene.origin.address();
    let server = scene.lab.server.clone();
    let got = scene.lab.client.block_on(move || async move {
        let stream = socks::connect(PROXY, target).await.expect("connects");
        let mut download = Download::start(stream, &format!("/bytes/{LENGTH}?seed=5"))
            .await
            .expect("begins");
        let mut part = async |until, what: &str| {
            let began = Instant::now();
            tokio::time::timeout(PATIENCE, download.read_to(until))
                .await
                .unwrap_or_else(|_| panic!("{what}: nothing more came"))
                .expect("the flow lives");
            println!("{what}: {:.2} s", began.elapsed().as_secs_f32());
        };
        part(LENGTH / 4, "a quarter over datagrams").await;
        block(&server);
        part(LENGTH / 4 + (8 << 20), "8 MiB more after the block").await;
        part(LENGTH / 2, "the second quarter").await;
        tokio::time::timeout(PATIENCE, download.finish())
            .await
            .expect("ends in time")
            .expect("lives")
    });
    assert_eq!(got, (LENGTH, stream::sha256(5, LENGTH)));
    let carried = scene.datagrams() - before;
    // A download costs few datagrams uplink: acknowledgements and reports.
    assert!(carried > 100, "{carried} datagrams reached the server");

    scene.lab.server.mend();
    let began = Instant::now();
    let blocked = scene.datagrams();
    while scene.datagrams() < blocked + 20 {
        assert!(began.elapsed() < PATIENCE, "datagrams are not used again");
        flows::comes_back(&scene.lab.client, PROXY, scene.echo.address(), PATIENCE);
    }
    println!(
        "back on datagrams after {:.1} s",
        began.elapsed().as_secs_f32()
    );
    scene.end();
}

#[test]
fn flows_go_on_when_the_clients_address_changes() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::new(|_| {});
    let target = scene.echo.address();
    let client = scene.lab.client.clone();
    scene.lab.client.block_on(move || async move {
        let mut stream = socks::connect(PROXY, target).await.expect("connects");
        flows::echo(&mut stream, b"before", PATIENCE)
            .await
            .expect("comes back");
        client.run("ip address del 10.77.1.1/24 dev c0");
        client.run("ip address add 10.77.1.77/24 dev c0");
        let began = Instant::now();
        flows::echo(&mut stream, b"after", PATIENCE)
            .await
            .expect("comes back");
        println!(
            "an echo {:.2} s after the change",
            began.elapsed().as_secs_f32()
        );
    });
    scene.end();
}
