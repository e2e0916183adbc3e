//! What a doctor finds of a client, its server and the way between them.

use std::net::{Ipv4Addr, SocketAddr};

use adit_integration::{
    adit::{ClientConfig, Pair, ServerConfig, User, Workdir, free_port, path},
    namespaces::{Lab, Place, SERVER4},
    process::{Process, Signal},
    scene::wait_for,
    skip::{LAB, can_run},
};
use serde_json::Value;

use crate::found::{Found, LIMIT, files, next, strangers_key};

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
    if !can_run(LAB) {
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
    if !can_run(LAB) {
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
    if !can_run(LAB) {
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
    if !can_run(LAB) {
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
fn client_behind_a_proxy_is_looked_at_through_it_and_one_that_is_gone_is_named() {
    let user = User::ordinary();
    let here = Place::here();
    let lanes = ["udp", "tls"].map(|scheme| format!("{scheme}://127.0.0.1:{}", free_port()));
    let files = files(&lanes, ServerConfig::user_egress(), None);
    let _server = files.workdir.start_server(&here, user, &files.server);
    // any SOCKS proxy would do
    let (mut trial, proxy) = files.workdir.start_try(user);
    let text = std::fs::read_to_string(&files.client).expect("a file");
    let config = files
        .workdir
        .file("via.yaml", &format!("{text}via: socks5://{proxy}\n"));
    let through = Found::by(&files.workdir, &here, user, &config, &["--no-load"]);
    through.assert_status(0);
    through.assert("reach", "tls://", "ok");
    through.assert("round trip", "tls://", "ok");
    // Past the proxy goes nothing, no question of the doctor's either.
    assert_eq!(through.all("reach").len(), 1, "{:#}", through.document);
    through.says("configuration", "is left out");
    assert_eq!(through.about("choice", "")["figures"]["lane"], lanes[1]);

    assert!(trial.stop().0.success());
    let gone = Found::by(&files.workdir, &here, user, &config, &[]);
    gone.assert_status(1);
    let reach = gone.about("reach", "tls://");
    assert_eq!(reach["figures"]["trouble"], "proxy", "{reach}");
    assert!(next(reach).contains("`via`"), "{reach}");
}

#[test]
fn doctor_that_is_interrupted_leaves_no_session_behind() {
    let user = User::ordinary();
    let here = Place::here();
    let lane = format!("tcp://127.0.0.1:{}", free_port());
    let files = files(&[lane], ServerConfig::user_egress(), None);
    let _server = files.workdir.start_server(&here, user, &files.server);
    let sessions = || {
        let asked = ["status", "--json", "-c", path(&files.server)];
        let status = files.workdir.run_as(&here, user, &asked);
        let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
        status["sessions"].as_array().map_or(0, Vec::len)
    };
    let mut command = files.workdir.command(&here, user);
    command.args(["doctor", "-c", path(&files.client)]);
    let mut doctor = Process::spawn("doctor", command);
    wait_for("it measures", LIMIT, || sessions() == 1);
    doctor.signal(Signal::Interrupt);
    let status = doctor.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(130), "{}", doctor.text());
    // Without a goodbye the server would keep it for a minute.
    wait_for("the server keeps nothing", LIMIT / 2, || sessions() == 0);
}

#[test]
fn client_that_was_revoked_is_told_just_that() {
    let user = User::ordinary();
    let here = Place::here();
    let lane = format!("tcp://127.0.0.1:{}", free_port());
    let files = files(&[lane], ServerConfig::user_egress(), None);
    let _server = files.workdir.start_server(&here, user, &files.server);
    let revoke = ["clients", "revoke", "laptop", "-c", path(&files.server)];
    let revoked = files.workdir.run_as(&here, user, &revoke);
    assert!(revoked.status.success(), "{}", revoked.text());
    let client = Found::by(&files.workdir, &here, user, &files.client, &[]);
    client.assert_status(1);
    let reach = client.about("reach", "tcp://");
    assert!(
        reach["words"]
            .as_str()
            .expect("words")
            .contains("was revoked"),
        "{reach}"
    );
    assert!(next(reach).contains("adit clients restore"), "{reach}");
    for guess in ["firewall", "server_key", "pubkey"] {
        assert!(!reach.to_string().contains(guess), "{reach}");
    }
}
