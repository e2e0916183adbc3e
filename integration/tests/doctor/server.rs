//! What a doctor finds of a server and its host.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
    time::{Duration, SystemTime},
};

use adit_integration::{
    adit::{ServerConfig, User, Workdir, free_port, path},
    namespaces::Place,
    origin::Certificate,
    skip::{LAB, can_run},
};

use crate::found::{Found, files, next};

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
    if !can_run(LAB) {
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
    if !can_run(LAB) {
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

#[test]
fn system_without_ping_sockets_is_told_at_the_start_once_and_by_the_doctor() {
    if !can_run(LAB) {
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
    // Also where flags have said all.
    let (key, state) = (files.workdir.path().join("server.key"), "flags.state");
    let state = files.workdir.path().join(state);
    std::fs::create_dir(&state).expect("a folder");
    files.workdir.give(&state, user);
    let arguments = [
        "server",
        "--listen",
        "tcp://127.0.0.1:7443",
        "--egress",
        "user",
    ];
    let more = ["--key-file", path(&key), "--state-dir", path(&state)];
    let mut flags = (files.workdir).start(&place, user, "flags", &[&arguments[..], &more].concat());
    flags.expect_ready();
    let found = Found::told(&files.workdir, &place, user, &[]);
    found.says("running", "started without a file");
    found.assert("ping", "", "warning");
    flags.stop();
    let log = server.process().text();
    assert_eq!(log.matches("clients cannot ping").count(), 1, "{log}");
    assert!(log.contains("net.ipv4.ping_group_range"), "{log}");
}

#[test]
fn certificate_is_told_to_be_renewed_before_it_ends_and_after() {
    let day = Duration::from_secs(24 * 60 * 60);
    let workdir = Workdir::new();
    let (user, here) = (User::Same, Place::here());
    let key = workdir.key("server.key", user);
    for (name, end, verdict, words) in [
        (
            "soon",
            SystemTime::now() + day * 5,
            "warning",
            "it expires on",
        ),
        (
            "over",
            SystemTime::now() - day,
            "failed",
            "it has expired on",
        ),
        ("fresh", SystemTime::now() + day * 90, "ok", "valid until"),
    ] {
        let (chain, secret) = Certificate::ending(&["vpn.example"], end).pem();
        let file = |kind: &str, text: &str| workdir.file(&format!("{name}.{kind}"), text);
        let (chain, secret) = (file("crt", &chain), file("pem", &secret));
        let tls = format!(
            "tls: {{certificate: {}, key: {}}}",
            chain.display(),
            secret.display()
        );
        let config = ServerConfig {
            listen: vec![format!("tls://127.0.0.1:{}", free_port())],
            more: tls,
            ..ServerConfig::user_egress()
        };
        let config = workdir.server(&format!("{name}.yaml"), &key, user, &config);
        let found = Found::by(&workdir, &here, user, &config, &[]);
        found.assert("certificate", &format!("{name}.crt"), verdict);
        found.says("certificate", words);
    }
}

#[test]
fn table_of_connections_that_is_nearly_full_fails_before_any_is_dropped() {
    if !can_run(LAB) {
        return;
    }
    let place = Place::alone("server");
    // The kernel follows connections from the first such rule on; its limit is the machine's, so that another is put in front.
    place.nft("table inet follow { chain in { type filter hook input priority 0; ct state new accept; }\n}\n");
    let files = files(
        &["udp://127.0.0.1:7443".into()],
        ServerConfig::tun_egress(),
        None,
    );
    for (count, max, verdict) in [
        (10, 262_144, "ok"),
        (150_000, 262_144, "warning"),
        (250_000, 262_144, "failed"),
        (10, 4096, "warning"),
    ] {
        let folder = files.workdir.path().display();
        place.shell(&format!(
            "for it in count:{count} max:{max}; do
                 name=nf_conntrack_${{it%%:*}}
                 echo ${{it##*:}} > {folder}/$name; mount --bind {folder}/$name /proc/sys/net/netfilter/$name
             done"
        ));
        let found = Found::by(&files.workdir, &place, User::Same, &files.server, &[]);
        found.assert("conntrack", "", verdict);
        let finding = found.about("conntrack", "");
        assert_eq!(finding["figures"]["max"], max, "{finding}");
        if verdict != "ok" {
            let wanted = format!("nf_conntrack_max={}", max * 4);
            assert!(next(finding).contains(&wanted), "{finding}");
        }
    }
}
