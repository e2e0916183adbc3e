//! The container image on a real Docker engine: what is in it, what it may do, and what it survives.

mod memory;
mod readme;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use adit_integration::{
    adit::{Key, User, Workdir, binary, path},
    curl::{self, Via},
    docker::{Engine, GATEWAY, IMAGE, PUBLIC, field},
    origin::Origin,
    process::{self, Finished},
    skip::{Need, can_run},
};

/// What every test here needs.
const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Tun,
    Need::Tool("dockerd"),
    Need::Tool("docker"),
    Need::Tool("curl"),
];
/// What a server with egress tun is given, and no more: NET_ADMIN to serve, the others to become an ordinary user.
const TUN: [&str; 12] = [
    "--cap-drop=ALL",
    "--cap-add=NET_ADMIN",
    "--cap-add=SETUID",
    "--cap-add=SETGID",
    "--cap-add=SETPCAP",
    "--cap-add=CHOWN",
    "--cap-add=DAC_OVERRIDE",
    "--device=/dev/net/tun",
    "--read-only",
    "--sysctl=net.ipv4.ip_forward=1",
    "--volume=server:/var/lib/adit",
    "--env=ADIT_CLIENT_TO_CLIENT=true",
];
/// What a client is given, and a server with egress user: nothing.
const NOTHING: [&str; 3] = ["--user=10001:10001", "--cap-drop=ALL", "--read-only"];

/// Makes the file of a server's clients.
fn write_clients(workdir: &Workdir, clients: &[(&str, &str)]) -> String {
    let entries: String = clients
        .iter()
        .enumerate()
        .map(|(index, (name, key))| {
            format!(
                "  - {{name: {name}, public_key: \"{key}\", address: 10.86.0.{}}}\n",
                index + 10
            )
        })
        .collect();
    let file = workdir.file("server.yaml", &format!("clients:\n{entries}"));
    format!("--volume={}:/etc/adit/server.yaml:ro", path(&file))
}

/// The public key that a container has printed at its first start.
fn public_key(engine: &Engine, name: &str) -> String {
    let line = engine.wait_for(name, "public key: ", 1);
    let key = line.rsplit("public key: ").next().unwrap_or_default();
    assert_eq!(key.len(), 44, "{line}");
    key.to_owned()
}

fn start_client(engine: &Engine, name: &str, server_key: &str, more: &[&str]) -> String {
    let key = format!("--env=ADIT_SERVER_KEY={server_key}");
    let volume = format!("--volume={name}:/var/lib/adit");
    let options = [
        &NOTHING[..],
        &[
            &key,
            &volume,
            "--env=ADIT_SERVER=udp://server:7443,tcp://server:7443",
            "--env=ADIT_PROXY=0.0.0.0:1080",
            "--env=ADIT_PROXY_OPEN=true",
        ],
        more,
    ];
    engine.start(name, &options.concat(), &["client"]);
    public_key(engine, name)
}

fn get(engine: &Engine, client: &str, url: &str) -> Finished {
    let proxy = SocketAddr::new(engine.address(client).into(), 1080);
    // the tunnel may have been up a moment ago, and be about to be again
    let patient = [
        "--fail",
        "--retry",
        "20",
        "--retry-all-errors",
        "--retry-max-time",
        "60",
    ];
    curl::get(&engine.place, Via::Socks5h(proxy), url, &patient)
}

#[track_caller]
fn assert_gets(engine: &Engine, client: &str, url: &str) {
    let got = get(engine, client, url);
    assert!(got.status.success(), "{client}, {url}: {}", got.text());
}

#[test]
fn image_serves_by_tun_and_outlives_all_that_docker_does_to_it() {
    if !can_run(&NEEDS) {
        return;
    }
    let engine = Engine::new();
    engine.build(binary());
    image_holds_the_program_and_the_authorities_alone(&engine);
    missing_sysctl_is_named(&engine);

    // Keys first: each end makes its own, and tells the public half.
    let workdir = Workdir::new();
    engine.start("keys", &TUN, &["server"]);
    let server_key = public_key(&engine, "keys");
    engine.docker(&["rm", "--force", "keys"]);
    let first = start_client(
        &engine,
        "first",
        &server_key,
        &[&format!("--env=ADIT_REMOTE_FORWARDS=8080:{GATEWAY}:9000")],
    );
    let second = start_client(&engine, "second", &server_key, &[]);
    let clients = write_clients(&workdir, &[("first", &first), ("second", &second)]);
    let options = [
        &TUN[..],
        &["--env=ADIT_CONFIG=/etc/adit/server.yaml", &clients],
    ]
    .concat();
    engine.start("server", &options, &["server"]);
    engine.wait_for("server", "ready: listening on", 1);
    assert!(
        !engine.logs("server").contains("public key: "),
        "the key in the volume is used again"
    );
    server_has_net_admin_alone(&engine);

    let origin = Origin::http(&engine.place, SocketAddr::new(PUBLIC.into(), 8000));
    let near = Origin::http(&engine.place, SocketAddr::new(GATEWAY.into(), 9000));
    let (page, forward) = (
        origin.url("/bytes/1000000"),
        "http://10.86.0.10:8080/bytes/1000000",
    );
    for client in ["first", "second"] {
        assert_gets(&engine, client, &page);
        let seen = origin.last_peer().map(|peer| peer.ip());
        assert_eq!(seen, Some(IpAddr::V4(engine.address("server"))), "{client}");
    }
    assert_gets(&engine, "second", forward);
    assert_eq!(near.total(), 1);
    // beside the tunnel nothing leads there: the inner network is nobody's outside
    let beside = curl::get(
        &engine.place,
        Via::Direct,
        forward,
        &["--connect-timeout", "2"],
    );
    assert!(!beside.status.success());

    stopped_cleanly_it_comes_back(&engine, &page, forward);
    killed_it_comes_back(&engine, &page);
    for client in ["first", "second"] {
        engine.docker(&["stop", client]);
        assert_eq!(
            engine.inspect(client, "{{.State.ExitCode}}"),
            "0",
            "{client}"
        );
    }
}

fn image_holds_the_program_and_the_authorities_alone(engine: &Engine) {
    let size: u64 = engine.inspect(IMAGE, "{{.Size}}").parse().expect("bytes");
    assert!(size < 20 << 20, "{size} bytes");
    engine.docker(&["create", "--name", "look", IMAGE]);
    let archive = engine.folder().join("image.tar");
    engine.docker(&["export", "--output", &archive.display().to_string(), "look"]);
    engine.docker(&["rm", "look"]);
    let mut tar = Command::new("tar");
    tar.arg("--list").arg("--file").arg(&archive);
    let listed = process::run(tar, Duration::from_secs(30)).stdout;
    let own = |name: &&str| {
        // what the engine puts into every container
        let engines = [
            ".dockerenv",
            "dev/",
            "proc/",
            "sys/",
            "etc/hostname",
            "etc/hosts",
        ];
        let engines_too = ["etc/resolv.conf", "etc/mtab"];
        !name.ends_with('/')
            && !engines
                .iter()
                .chain(&engines_too)
                .any(|theirs| name.starts_with(theirs))
    };
    let files: Vec<_> = listed.lines().filter(own).collect();
    assert_eq!(
        files,
        ["etc/ssl/certs/ca-certificates.crt", "usr/bin/adit"],
        "{listed}"
    );
}

fn missing_sysctl_is_named(engine: &Engine) {
    let mut options = TUN.to_vec();
    options.retain(|option| !option.starts_with("--sysctl"));
    options.push("--sysctl=net.ipv4.ip_forward=0");
    engine.start("refused", &options, &["server"]);
    assert_eq!(engine.wait_for_end("refused"), "1");
    let logs = engine.logs("refused");
    let told = ["net.ipv4.ip_forward=1", "docker run --sysctl"];
    assert!(told.iter().all(|text| logs.contains(text)), "{logs}");
    engine.docker(&["rm", "refused"]);
    engine.docker(&["volume", "rm", "server"]);
}

fn server_has_net_admin_alone(engine: &Engine) {
    let status = engine.status("server");
    let one = |name| {
        field(&status, name)
            .first()
            .copied()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(field(&status, "Uid:"), ["10001"; 4]);
    assert_eq!(field(&status, "Gid:"), ["10001"; 4]);
    assert!(field(&status, "Groups:").is_empty(), "{status}");
    // CAP_NET_ADMIN is number 12
    for set in ["CapPrm:", "CapEff:"] {
        assert_eq!(one(set), "0000000000001000", "{set}");
    }
    for set in ["CapInh:", "CapBnd:", "CapAmb:"] {
        assert_eq!(one(set), "0000000000000000", "{set}");
    }
    assert_eq!(one("NoNewPrivs:"), "1");
    for line in engine
        .logs("server")
        .lines()
        .filter(|line| line.starts_with('{'))
    {
        serde_json::from_str::<serde_json::Value>(line).expect("a log line is JSON");
    }
}

fn stopped_cleanly_it_comes_back(engine: &Engine, page: &str, forward: &str) {
    // Docker would kill it after that time, with status 137: far more than the two seconds that it takes
    engine.docker(&["stop", "--time", "20", "server"]);
    assert_eq!(engine.inspect("server", "{{.State.ExitCode}}"), "0");
    assert!(engine.logs("server").contains("server stopped"));
    engine.docker(&["start", "server"]);
    engine.wait_for("server", "ready: listening on", 2);
    for client in ["first", "second"] {
        assert_gets(engine, client, page);
    }
    assert_gets(engine, "second", forward);
}

fn killed_it_comes_back(engine: &Engine, page: &str) {
    engine.docker(&["kill", "server"]);
    assert_eq!(engine.inspect("server", "{{.State.ExitCode}}"), "137");
    engine.docker(&["start", "server"]);
    engine.wait_for("server", "ready: listening on", 3);
    for client in ["first", "second"] {
        assert_gets(engine, client, page);
    }
}

/// Makes `adit bench swarm` with eight clients for each key.
fn swarm(
    engine: &Engine,
    workdir: &Workdir,
    server: &str,
    server_key: &str,
    keys: &[Key],
) -> Command {
    let config = workdir.file(
        "swarm.yaml",
        &format!(
            "server: [\"{server}\"]\nserver_key: \"{server_key}\"\nkey_file: {}\n",
            keys[0].file.display()
        ),
    );
    let mut command = workdir.command(&engine.place, User::Same);
    let clients = (keys.len() * 8).to_string();
    command.args(["bench", "swarm", "-c", path(&config), "--clients", &clients]);
    for key in keys {
        command.arg("--key-file").arg(&key.file);
    }
    command
}

#[test]
fn server_without_any_right_serves_200_clients_in_64_mib() {
    if !can_run(&NEEDS) {
        return;
    }
    let engine = Engine::new();
    engine.build(binary());
    let workdir = Workdir::new();
    let own = workdir.key("server.key", User::Same);
    // the container's user reads it
    std::os::unix::fs::chown(&own.file, Some(10001), Some(10001)).expect("root gives files away");
    // eight clients for each key
    let keys: Vec<_> = (0..25)
        .map(|index| workdir.key(&format!("{index}.key"), User::Same))
        .collect();
    let entries: String = keys
        .iter()
        .enumerate()
        .map(|(index, key)| format!("  - {{name: c{index}, public_key: \"{}\"}}\n", key.public))
        .collect();
    let file = workdir.file("server.yaml", &format!("egress: user\nclients:\n{entries}"));
    let allow = format!("--env=ADIT_ALLOW={GATEWAY}/32");
    let config = format!("--volume={}:/etc/adit/server.yaml:ro", path(&file));
    let secret = format!("--volume={}:/etc/adit/key:ro", path(&own.file));
    let options = [
        &NOTHING[..],
        &[
            "--memory=64m",
            // Docker would give it as much again of the disk
            "--memory-swap=64m",
            "--env=ADIT_CONFIG=/etc/adit/server.yaml",
            "--env=ADIT_KEY_FILE=/etc/adit/key",
            "--env=ADIT_LISTEN=tcp://0.0.0.0:7443",
            &allow,
            &config,
            &secret,
        ],
    ]
    .concat();
    engine.start("server", &options, &["server"]);
    engine.wait_for("server", "ready: listening on", 1);
    let status = engine.status("server");
    assert_eq!(field(&status, "Uid:"), ["10001"; 4]);
    assert_eq!(field(&status, "CapEff:"), ["0000000000000000"]);
    let idle: u64 = field(&status, "VmRSS:")[0].parse().expect("KiB");
    assert!(idle < 15 << 10, "{idle} KiB");

    let server = format!("tcp://{}:7443", engine.address("server"));
    let mut swarm = swarm(&engine, &workdir, &server, &own.public, &keys);
    swarm.args(["--idle", "1", "--json"]);
    let swarm = process::run(swarm, Duration::from_secs(180));
    assert!(swarm.status.success(), "{}", swarm.text());
    let report: serde_json::Value =
        serde_json::from_str(swarm.stdout.trim()).expect("one object of JSON");
    assert_eq!(report["served"], 200, "{report:#}");
    assert_eq!(report["sessions_lost"], 0, "{report:#}");
    assert_eq!(engine.inspect("server", "{{.State.OOMKilled}}"), "false");
    assert_eq!(engine.inspect("server", "{{.State.Running}}"), "true");
    engine.docker(&["stop", "server"]);
    assert_eq!(engine.inspect("server", "{{.State.ExitCode}}"), "0");
}
