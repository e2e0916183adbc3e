//! `adit doctor` against real servers, real firewalls and real losses: what it finds, and that it harms nobody.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use adit_integration::{
    adit::{ClientConfig, Key, Pair, ServerConfig, User, Workdir, free_port, path},
    namespaces::{Lab, Place, SERVER4},
    process::{self, Finished},
    skip::{Need, can_run},
};
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tool("ip"),
    Need::Tool("nft"),
    Need::Tool("setpriv"),
];

/// The hang guard of one examination, which bounds itself to half of that.
const LIMIT: Duration = Duration::from_secs(60);

/// What a doctor has found.
struct Found {
    document: Value,
    finished: Finished,
}

impl Found {
    /// Examines; the way is loaded only if the test is about that.
    fn by(workdir: &Workdir, place: &Place, user: User, config: &Path, more: &[&str]) -> Self {
        let mut command = workdir.command(place, user);
        command
            .args(["doctor", "--json", "-c", path(config)])
            .args(more);
        let finished = process::run(command, LIMIT);
        let document = serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", finished.text()));
        Self { document, finished }
    }

    fn all(&self, check: &str) -> Vec<&Value> {
        let findings = self.document["findings"].as_array().expect("a list");
        findings
            .iter()
            .filter(|one| one["check"] == check)
            .collect()
    }

    /// The one finding of this check that is about that.
    fn about(&self, check: &str, about: &str) -> &Value {
        let all = self.all(check);
        let found = all.iter().find(|one| {
            one["about"].as_str().is_some_and(|at| at.contains(about)) || about.is_empty()
        });
        found.unwrap_or_else(|| panic!("no {check} about {about:?} in {:#}", self.document))
    }

    fn verdict(&self, check: &str, about: &str) -> &str {
        self.about(check, about)["verdict"]
            .as_str()
            .expect("a word")
    }

    fn assert(&self, check: &str, about: &str, verdict: &str) {
        assert_eq!(
            self.verdict(check, about),
            verdict,
            "{check} {about}: {:#}",
            self.document
        );
    }

    fn assert_status(&self, status: i32) {
        assert_eq!(
            self.finished.status.code(),
            Some(status),
            "{:#}",
            self.document
        );
    }
}

/// Keys and files of a server and a client.
struct Files {
    workdir: Workdir,
    server: PathBuf,
    client: PathBuf,
    client_key: Key,
}

/// Writes them for these lanes; both run as an ordinary user.
fn files(lanes: &[String], server: ServerConfig, server_key: Option<String>) -> Files {
    let workdir = Workdir::new();
    let user = User::ordinary();
    let [own, client_key] = ["server.key", "client.key"].map(|name| workdir.key(name, user));
    let config = ServerConfig {
        listen: lanes.to_vec(),
        clients: vec![("laptop".into(), client_key.public.clone())],
        ..server
    };
    let server = workdir.server("server.yaml", &own, user, &config);
    let config = ClientConfig {
        server: lanes.to_vec(),
        server_key: server_key.unwrap_or(own.public),
        proxy: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
        more: String::new(),
    };
    let client = workdir.client("client.yaml", &client_key, &config);
    Files {
        workdir,
        server,
        client,
        client_key,
    }
}

/// A key that no server has.
fn strangers_key(workdir: &Workdir) -> String {
    workdir.key("stranger.key", User::Same).public
}

#[test]
fn client_and_server_that_are_well_are_told_so_and_go_on() {
    let mut pair = Pair::start("udp");
    let here = Place::here();
    let client = Found::by(&pair.workdir, &here, User::Same, &pair.client_config, &[]);
    client.assert_status(0);
    for (check, about) in [
        ("configuration", "client.yaml"),
        ("key", ""),
        ("running", ""),
        ("reach", "udp://"),
        ("clock", ""),
        ("round trip", "udp://"),
        ("choice", ""),
    ] {
        client.assert(check, about, "ok");
    }
    // Whatever else this machine does, its loopback loses nothing.
    for direction in ["to the server", "from the server"] {
        let loss = &client.about("loss", direction)["figures"];
        assert!(loss["datagrams"].as_u64() > Some(300), "{loss}");
        assert_eq!(loss["lost"], 0, "{loss}");
    }
    let load = &client.about("bufferbloat", "udp://")["figures"];
    assert!(
        load["bytes"].as_u64() > Some(0) && load["bytes"].as_u64() <= Some(8 << 20),
        "{load}"
    );
    assert_eq!(client.about("running", "")["figures"]["running"], true);

    let server = Found::by(&pair.workdir, &here, User::Same, &pair.server_config, &[]);
    server.assert_status(0);
    for (check, about) in [
        ("running", ""),
        ("clients", ""),
        ("port", "udp://"),
        ("state folder", ""),
    ] {
        server.assert(check, about, "ok");
    }
    assert_eq!(server.document["kind"], "server");
    assert_eq!(server.about("clients", "")["figures"]["listed"], 2);

    // The session that was there is there, and the doctor's are not.
    let status = pair
        .workdir
        .run(&["status", "--json", "-c", path(&pair.server_config)]);
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(
        status["sessions"].as_array().map(Vec::len),
        Some(1),
        "{status:#}"
    );
    let known = &status["clients"]["known"][0];
    assert_eq!(known["sessions"], 1, "{status:#}");
    let log = pair.client.process().text();
    assert_eq!(log.matches("session established").count(), 1, "{log}");
    assert_eq!(pair.server.panics(), Vec::<String>::new());
}

#[test]
fn lines_for_people_name_what_fails_and_what_to_do() {
    let lane = format!("tcp://127.0.0.1:{}", free_port());
    let files = files(&[lane], ServerConfig::user_egress(), None);
    let told = files.workdir.run_as(
        &Place::here(),
        User::ordinary(),
        &["doctor", "--no-load", "-c", path(&files.client)],
    );
    assert_eq!(told.status.code(), Some(1), "{}", told.text());
    assert!(told.stdout.contains("\nfailed   reach "), "{}", told.text());
    assert!(
        told.stdout.contains("do: start the server there"),
        "{}",
        told.text()
    );
    assert!(
        told.stdout.contains("something does not work"),
        "{}",
        told.text()
    );
    // And a file that is not there is a wrong usage.
    let none = files.workdir.run(&["doctor", "-c", "/no/such.yaml"]);
    assert_eq!(none.status.code(), Some(2), "{}", none.text());
}

#[test]
fn server_that_is_down_is_refused_and_its_own_doctor_finds_it_ready() {
    let lane = format!("tcp://127.0.0.1:{}", free_port());
    let files = files(&[lane], ServerConfig::user_egress(), None);
    let here = Place::here();
    let client = Found::by(&files.workdir, &here, User::ordinary(), &files.client, &[]);
    client.assert_status(1);
    client.assert("reach", "tcp://", "failed");
    assert_eq!(client.about("reach", "")["figures"]["trouble"], "refused");
    client.assert("round trip", "", "skipped");
    let server = Found::by(&files.workdir, &here, User::ordinary(), &files.server, &[]);
    server.assert("running", "", "ok");
    server.assert("port", "tcp://", "ok");
    assert_eq!(server.about("running", "")["figures"]["running"], false);
}

#[test]
fn wrong_key_of_the_server_is_told_apart_from_a_server_that_is_down() {
    let port = free_port();
    let lanes = ["udp", "tcp"].map(|scheme| format!("{scheme}://127.0.0.1:{port}"));
    let stranger = strangers_key(&Workdir::new());
    let files = files(&lanes, ServerConfig::user_egress(), Some(stranger));
    let (here, user) = (Place::here(), User::ordinary());
    let _server = files.workdir.start_server(&here, user, &files.server);
    let client = Found::by(&files.workdir, &here, user, &files.client, &[]);
    client.assert_status(1);
    assert_eq!(
        client.about("reach", "tcp://")["figures"]["trouble"],
        "unanswered"
    );
    for lane in ["tcp://", "udp://"] {
        let next = client.about("reach", lane)["next"]
            .as_str()
            .expect("what to do");
        assert!(next.contains("server_key"), "{next}");
        assert!(next.contains(&files.client_key.public), "{next}");
    }
}

#[test]
fn name_that_does_not_resolve_is_named() {
    if !can_run(NEEDS) {
        return;
    }
    let lanes = vec!["tcp://no-such-server.invalid:7443".to_owned()];
    let workdir = Workdir::new();
    let key = workdir.key("client.key", User::Same);
    let config = workdir.client(
        "client.yaml",
        &key,
        &ClientConfig {
            server: lanes,
            server_key: strangers_key(&workdir),
            proxy: SocketAddr::from((Ipv4Addr::LOCALHOST, 1080)),
            more: String::new(),
        },
    );
    let place = Place::alone("client");
    let client = Found::by(&workdir, &place, User::Same, &config, &[]);
    client.assert_status(1);
    client.assert("name", "no-such-server.invalid", "failed");
    assert_eq!(client.about("reach", "")["figures"]["trouble"], "name");
}

#[test]
fn datagrams_that_are_blocked_are_a_warning_where_tls_passes() {
    if !can_run(NEEDS) {
        return;
    }
    let lab = Lab::new();
    lab.server.cut_datagrams(7443);
    let lanes = [
        format!("udp://{SERVER4}:7443"),
        format!("tls://{SERVER4}:8443"),
    ];
    let files = files(&lanes, ServerConfig::user_egress(), None);
    let user = User::Nobody;
    let _server = files.workdir.start_server(&lab.server, user, &files.server);
    let client = Found::by(
        &files.workdir,
        &lab.client,
        user,
        &files.client,
        &["--no-load"],
    );
    client.assert_status(0);
    client.assert("reach", "udp://", "warning");
    assert_eq!(
        client.about("reach", "udp://")["figures"]["trouble"],
        "silence"
    );
    let next = client.about("reach", "udp://")["next"]
        .as_str()
        .expect("what to do");
    assert!(next.contains("UDP to port 7443"), "{next}");
    client.assert("reach", "tls://", "ok");
    client.assert("loss", "", "skipped");
    client.assert("bufferbloat", "tls://", "skipped");
    assert_eq!(client.about("choice", "")["figures"]["lane"], lanes[1]);
}

#[test]
fn port_where_another_program_speaks_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let _ = stream.write_all(b"SSH-2.0-OpenSSH_10.0\r\n");
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    let files = files(
        &[format!("tcp://127.0.0.1:{port}")],
        ServerConfig::user_egress(),
        None,
    );
    let (here, user) = (Place::here(), User::ordinary());
    let client = Found::by(&files.workdir, &here, user, &files.client, &[]);
    client.assert_status(1);
    assert_eq!(client.about("reach", "")["figures"]["trouble"], "stranger");
    let server = Found::by(&files.workdir, &here, user, &files.server, &[]);
    server.assert_status(1);
    server.assert("port", "tcp://", "failed");
}

#[test]
fn forwarding_that_is_off_fails_for_whoever_cannot_turn_it_on() {
    if !can_run(NEEDS) {
        return;
    }
    let place = Place::alone("server");
    place.shell(
        "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    );
    let files = files(
        &["udp://127.0.0.1:7443".into()],
        ServerConfig::tun_egress(),
        None,
    );
    let nobody = Found::by(&files.workdir, &place, User::Nobody, &files.server, &[]);
    nobody.assert_status(1);
    nobody.assert("forwarding", "net.ipv4.ip_forward", "failed");
    nobody.assert("TUN", "", "failed");
    nobody.assert("nftables", "", "skipped");
    let next = nobody.about("forwarding", "net.ipv4")["next"]
        .as_str()
        .expect("what to do");
    assert!(next.contains("sysctl -w net.ipv4.ip_forward=1"), "{next}");
    let root = Found::by(&files.workdir, &place, User::Same, &files.server, &[]);
    root.assert("forwarding", "net.ipv4.ip_forward", "ok");
    root.assert("nftables", "", "ok");
    // Nothing was changed by looking.
    assert_eq!(place.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    assert!(!place.run("nft list tables").contains("adit"));
    assert!(!place.run("ip link").contains("adit"));
}

#[test]
fn firewall_that_would_drop_what_is_forwarded_is_named() {
    if !can_run(NEEDS) {
        return;
    }
    let place = Place::alone("server");
    place.nft(
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }\n}\n",
    );
    let files = files(
        &["udp://127.0.0.1:7443".into()],
        ServerConfig::tun_egress(),
        None,
    );
    let root = Found::by(&files.workdir, &place, User::Same, &files.server, &[]);
    let warned = root.all("nftables");
    let warned = warned.iter().find(|one| one["verdict"] == "warning");
    let words = warned.expect("a warning")["words"].as_str().expect("words");
    assert!(
        words.contains("FORWARD") && words.contains("iptables -I"),
        "{words}"
    );
}

/// A client and a server in a lab, over datagrams.
fn examined_over(before: impl FnOnce(&Lab)) -> Found {
    let lab = Lab::new();
    before(&lab);
    let files = files(
        &[format!("udp://{SERVER4}:7443")],
        ServerConfig::user_egress(),
        None,
    );
    let user = User::Nobody;
    let _server = files.workdir.start_server(&lab.server, user, &files.server);
    let found = Found::by(
        &files.workdir,
        &lab.client,
        user,
        &files.client,
        &["--no-load"],
    );
    found.assert_status(0);
    found
}

#[test]
fn path_that_carries_1300_bytes_is_told_so() {
    if !can_run(NEEDS) {
        return;
    }
    let found = examined_over(|lab| {
        lab.client.run("ip link set c0 mtu 1300");
        lab.server.run("ip link set s0 mtu 1300");
    });
    found.assert("path MTU", "udp://", "warning");
    let figures = &found.about("path MTU", "udp://")["figures"];
    let packet = figures["packet_bytes"].as_u64().expect("a number");
    // The search ends when it knows it to 16 bytes.
    assert!((1280..=1300).contains(&packet), "{figures}");
}

#[test]
fn losses_each_way_are_told_by_direction() {
    if !can_run(NEEDS) {
        return;
    }
    let found = examined_over(|lab| {
        let lossy = |percent: u32, port: &str| {
            format!(
                "table inet lossy {{ chain in {{ type filter hook input priority -300; \
                 udp {port} 7443 numgen random mod 100 < {percent} drop\n}}\n}}\n"
            )
        };
        lab.server.nft(&lossy(5, "dport"));
        lab.client.nft(&lossy(20, "sport"));
    });
    let percent = |direction| {
        let figures = &found.about("loss", direction)["figures"];
        assert!(figures["datagrams"].as_u64() > Some(300), "{figures}");
        assert!(
            figures["bursts"].as_u64() <= figures["lost"].as_u64(),
            "{figures}"
        );
        figures["percent"].as_f64().expect("a number")
    };
    let (up, down) = (percent("to the server"), percent("from the server"));
    assert!((1.0..12.0).contains(&up), "{up} % of 5");
    assert!((12.0..30.0).contains(&down), "{down} % of 20");
    found.assert("loss", "from the server", "warning");
}

#[test]
fn system_without_ping_sockets_is_told_at_the_start_once_and_by_the_doctor() {
    if !can_run(NEEDS) {
        return;
    }
    let place = Place::alone("server");
    place.shell("ip link set lo up; echo '1 0' > /proc/sys/net/ipv4/ping_group_range");
    let files = files(
        &["tcp://127.0.0.1:7443".into()],
        ServerConfig::user_egress(),
        None,
    );
    let user = User::Nobody;
    let mut server = files.workdir.start_server(&place, user, &files.server);
    let found = Found::by(&files.workdir, &place, user, &files.server, &[]);
    found.assert_status(0);
    found.assert("ping", "", "warning");
    let next = found.about("ping", "")["next"]
        .as_str()
        .expect("what to do");
    assert!(next.contains("net.ipv4.ping_group_range"), "{next}");
    server.stop();
    let log = server.process().text();
    assert_eq!(log.matches("clients cannot ping").count(), 1, "{log}");
    assert!(log.contains("net.ipv4.ping_group_range"), "{log}");
}
