//! The command line: keys, configurations, readiness, signals, exit codes, logs.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    time::Duration,
};

use adit_integration::{
    adit::{Adit, Pair, ServerConfig, User, Workdir, free_port, path},
    curl::{self, Via},
    flows,
    namespaces::{Place, runtime},
    origin::Origin,
    process::{Signal, Stream},
    skip::{Need, can_run},
    socks,
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// The hang guard.
const SOON: Duration = Duration::from_secs(20);

/// A folder with keys and the configuration of a server with egress `user`.
struct Scene {
    workdir: Workdir,
    config: std::path::PathBuf,
    port: u16,
}

impl Scene {
    fn new() -> Self {
        let (workdir, port) = (Workdir::new(), free_port());
        let key = workdir.key("server.key", User::Same);
        let client = workdir.key("client.key", User::Same);
        let config = workdir.server(
            "server.yaml",
            &key,
            User::Same,
            &ServerConfig {
                listen: vec![format!("tcp://127.0.0.1:{port}")],
                clients: vec![("laptop".into(), client.public)],
                ..ServerConfig::user_egress()
            },
        );
        Self {
            workdir,
            config,
            port,
        }
    }
}

#[test]
fn version_and_help_are_answered() {
    let workdir = Workdir::new();
    let version = workdir.run(&["--version"]);
    assert!(
        version.status.success() && version.stdout.starts_with("adit "),
        "{version:?}"
    );
    let help = workdir.run(&["--help"]);
    for command in [
        "try", "server", "client", "keygen", "pubkey", "check", "bench",
    ] {
        assert!(
            help.stdout.contains(command),
            "{command} is missing in {}",
            help.stdout
        );
        let more = workdir.run(&[command, "--help"]);
        assert!(
            more.status.success() && !more.stdout.is_empty(),
            "{command}: {more:?}"
        );
    }
}

#[test]
fn mistyped_command_line_exits_with_2() {
    let workdir = Workdir::new();
    for arguments in [
        &["serve"][..],
        &["server", "--no-such-flag"],
        &["keygen", "-o"],
        &["try", "--log-level", "loud"],
    ] {
        let wrong = workdir.run(arguments);
        assert_eq!(wrong.status.code(), Some(2), "{arguments:?}: {wrong:?}");
        assert!(
            !wrong.stderr.is_empty() && !wrong.text().contains("panicked"),
            "{arguments:?}: {wrong:?}"
        );
    }
}

#[test]
fn flag_that_run_does_not_have_is_refused_and_not_taken_for_a_command() {
    let workdir = Workdir::new();
    for arguments in [
        &["run", "--no-such-flag", "true"][..],
        &["run", "-Z", "true"],
        &["run", "--no-such-flag=1", "--", "true"],
    ] {
        let wrong = workdir.run(arguments);
        assert_eq!(wrong.status.code(), Some(125), "{arguments:?}: {wrong:?}");
        assert!(
            wrong.stderr.contains("unexpected argument"),
            "{arguments:?}: {wrong:?}"
        );
    }
    // What follows the command is the command's, whatever it looks like.
    for arguments in [
        &["run", "true", "--no-such-flag", "-c"][..],
        &["run", "--", "true", "--wait"],
        &["run", "--", "--no-such-flag"],
    ] {
        let unconfigured = workdir.run(arguments);
        assert!(
            unconfigured.stderr.contains("no configuration"),
            "{arguments:?}: {unconfigured:?}"
        );
    }
}

#[test]
fn manual_page_is_printed_where_no_folder_is_named() {
    let page = Workdir::new().run(&["man"]);
    assert!(page.status.success(), "{page:?}");
    assert!(page.stdout.contains(".TH adit 1"), "{page:?}");
    assert!(page.stdout.contains(".SH SUBCOMMANDS"), "{page:?}");
}

#[test]
fn key_is_made_readable_by_its_owner_alone() {
    let workdir = Workdir::new();
    let file = workdir.path().join("new.key");
    let made = workdir.run(&["keygen", "-o", path(&file)]);
    assert!(made.status.success(), "{made:?}");
    let mode = fs::metadata(&file)
        .expect("it was written")
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(mode, 0o600);
    let public = made
        .stdout
        .split_whitespace()
        .find(|word| word.len() == 44)
        .expect("the public key is printed");
    let shown = workdir.run(&["pubkey", path(&file)]);
    assert_eq!(shown.stdout.trim(), public);
    let secret = fs::read_to_string(&file).expect("reads");
    assert_eq!(secret.trim().len(), 44);
    assert!(
        !made.text().contains(secret.trim()),
        "the secret key is printed"
    );
    // a key that exists is not overwritten
    let again = workdir.run(&["keygen", "-o", path(&file)]);
    assert!(
        !again.status.success() && again.stderr.contains("new.key"),
        "{again:?}"
    );
    assert_eq!(fs::read_to_string(&file).expect("reads"), secret);
    // two keys differ
    assert_ne!(workdir.key("other.key", User::Same).public, public);
}

#[test]
fn right_configuration_passes_the_check() {
    let scene = Scene::new();
    let checked = scene.workdir.run(&["check", path(&scene.config)]);
    assert!(checked.status.success(), "{checked:?}");
    let pair = Pair::start("tcp");
    let checked = pair.workdir.run(&["check", path(&pair.client_config)]);
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn ready_line_names_the_addresses() {
    let scene = Scene::new();
    let mut command = scene.workdir.command(&Place::here(), User::Same);
    command.args(["server", "-c", path(&scene.config)]);
    let mut server = adit_integration::process::Process::spawn("server", command);
    let lane = format!("127.0.0.1:{}", scene.port);
    let line = server.wait_for_line(SOON, |line| line.contains("ready") && line.contains(&lane));
    assert!(line.is_some(), "{}", server.text());
    server.signal(Signal::Terminate);
    assert!(server.wait(SOON).is_some_and(|status| status.success()));
}

#[test]
fn systemd_is_told() {
    let scene = Scene::new();
    let socket_path = scene.workdir.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path).expect("binds");
    socket.set_read_timeout(Some(SOON)).expect("sets");
    let mut command = scene.workdir.command(&Place::here(), User::Same);
    command
        .args(["server", "-c", path(&scene.config)])
        .env("NOTIFY_SOCKET", &socket_path);
    let mut server = adit_integration::process::Process::spawn("server", command);
    let mut buffer = [0; 1024];
    let mut next = || {
        let length = socket.recv(&mut buffer).expect("systemd is told in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(next().lines().any(|line| line == "READY=1"));
    server.signal(Signal::Terminate);
    assert!(next().lines().any(|line| line == "STOPPING=1"));
    assert!(server.wait(SOON).is_some_and(|status| status.success()));
}

#[test]
fn signals_end_both_ends_within_2_s_with_flows_open() {
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    for (signal, scheme) in [(Signal::Terminate, "tcp"), (Signal::Interrupt, "tls")] {
        let mut pair = Pair::start(scheme);
        let held = runtime().block_on(async {
            let mut streams = Vec::new();
            for _ in 0..20 {
                let mut stream = socks::connect(pair.proxy, echo.address())
                    .await
                    .expect("connects");
                flows::echo(&mut stream, b"x", SOON).await.expect("echoes");
                streams.push(stream.into_std().expect("an open socket"));
            }
            streams
        });
        for adit in [&mut pair.client, &mut pair.server] {
            adit.process().signal(signal);
            // two seconds are promised; the rest is the machine's
            let status = adit.process().wait(Duration::from_secs(4));
            assert!(
                status.is_some_and(|status| status.success()),
                "{signal:?}: {status:?}"
            );
            assert_eq!(adit.panics(), Vec::<String>::new());
        }
        drop(held);
    }
}

#[test]
fn second_signal_ends_at_once() {
    let mut pair = Pair::start("tcp");
    // a server that stands still does not answer the client's farewell
    pair.server.process().signal(Signal::Stop);
    pair.client.process().signal(Signal::Terminate);
    pair.client.process().signal(Signal::Terminate);
    assert!(
        pair.client.process().wait(Duration::from_secs(4)).is_some(),
        "the client lives on"
    );
    pair.server.process().signal(Signal::Continue);
    let (status, _) = pair.server.stop();
    assert!(status.success(), "{status}");
}

#[test]
fn json_logs_are_one_object_a_line() {
    let scene = Scene::new();
    let config = path(&scene.config);
    let arguments = [
        "server",
        "-c",
        config,
        "--log-format",
        "json",
        "--log-level",
        "debug",
    ];
    let mut server = scene
        .workdir
        .start(&Place::here(), User::Same, "server", &arguments);
    server.expect_ready();
    // something to log about
    drop(std::net::TcpStream::connect((
        Ipv4Addr::LOCALHOST,
        scene.port,
    )));
    let (status, _) = server.stop();
    assert!(status.success());
    let lines = server.process().lines_of(Stream::Error);
    assert!(!lines.is_empty(), "nothing was logged");
    for line in lines {
        let value: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{line:?} is not JSON: {error}"));
        assert!(
            value.get("level").is_some() && value.get("timestamp").is_some(),
            "{line}"
        );
    }
}

#[test]
fn log_level_silences() {
    let scene = Scene::new();
    let arguments = ["server", "-c", path(&scene.config), "--log-level", "error"];
    let mut server = scene
        .workdir
        .start(&Place::here(), User::Same, "server", &arguments);
    server.expect_ready();
    server.stop();
    assert_eq!(
        server.process().lines_of(Stream::Error),
        Vec::<String>::new()
    );
}

#[test]
fn environment_overrides_the_file_and_a_flag_both() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let pair = Pair::start("tcp");
    let origin = Origin::http(&Place::here(), LOOPBACK.into());
    let [by_environment, by_flag] = [free_port(), free_port()];
    for (port, flag) in [(by_environment, false), (by_flag, true)] {
        let mut command = pair.workdir.command(&Place::here(), User::Same);
        // the key of the second client, so that the first keeps its session
        command.args(["client", "-c", path(&pair.client_config)]);
        command.env("ADIT_KEY_FILE", &pair.other_key.file);
        command.env("ADIT_PROXY", format!("127.0.0.1:{by_environment}"));
        if flag {
            command.args(["--proxy", &format!("127.0.0.1:{by_flag}")]);
        }
        let mut client = pair.workdir.start_command("client", command);
        client.expect_ready();
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let got = curl::get(
            &Place::here(),
            Via::Socks5h(proxy),
            &origin.url("/peer"),
            &[],
        );
        assert!(got.status.success(), "{got:?}");
    }
}

#[test]
fn descriptor_limit_is_raised_to_the_hard_one() {
    let mut pair = Pair::start("tcp");
    for adit in [&mut pair.server, &mut pair.client] {
        let limits =
            fs::read_to_string(format!("/proc/{}/limits", adit.process().pid())).expect("it lives");
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .expect("the line is there");
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[3], words[4], "{line}");
    }
}

#[test]
fn proxy_beyond_loopback_needs_a_password() {
    let pair = Pair::start("tcp");
    let text = fs::read_to_string(&pair.client_config).expect("reads");
    let open = text.replace(&pair.proxy.to_string(), &format!("0.0.0.0:{}", free_port()));
    let config = pair.workdir.file("open.yaml", &open);
    let refused = pair.workdir.run(&["client", "-c", path(&config)]);
    assert!(
        !refused.status.success() && refused.stderr.contains("open.yaml:"),
        "{refused:?}"
    );
    for more in [
        "proxy_user: me\nproxy_password: secret\n",
        "proxy_open: true\n",
    ] {
        let config = pair.workdir.file("told.yaml", &format!("{open}{more}"));
        let checked = pair.workdir.run(&["check", path(&config)]);
        assert!(checked.status.success(), "{more}: {checked:?}");
    }
}

#[test]
fn lease_is_kept_across_restarts_of_the_server() {
    let mut pair = Pair::start("tcp");
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    // the newest address that a client logs
    let inner = |adit: &mut Adit| {
        let logged = |line: &str| line.contains("v4: Some((");
        let known = adit.process().wait_for_line(SOON, logged);
        let newest = adit
            .process()
            .lines()
            .into_iter()
            .rfind(|line| logged(line))
            .or(known);
        let line = newest.expect("the address is logged");
        let start = line.find("10.86.0.").expect("it is of the pool");
        let end = |c: char| !c.is_ascii_digit() && c != '.';
        let rest = &line[start..];
        rest[..rest.find(end).unwrap_or(rest.len())].to_owned()
    };
    let first = inner(&mut pair.client);
    // while the server is away and the client asleep, somebody else comes first
    pair.server.stop();
    pair.client.process().signal(Signal::Stop);
    pair.server = pair
        .workdir
        .start_server(&Place::here(), User::Same, &pair.server_config);
    let (mut other, _) = pair.other("tcp", pair.port);
    other.expect_ready();
    assert_ne!(inner(&mut other), first, "the lease was given away");
    pair.client.process().signal(Signal::Continue);
    flows::comes_back(&Place::here(), pair.proxy, echo.address(), SOON);
    assert_eq!(inner(&mut pair.client), first);
}
