//! Forwards of single ports in both directions, changed while the client runs, and `adit nc` under a real OpenSSH.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use adit_integration::{
    adit::{Adit, ClientConfig, Pair, ServerConfig, User, Workdir, free_port, path},
    curl::{self, Via},
    namespaces::{Lab, Place, SERVER4, runtime},
    origin::Origin,
    process::{self, Finished},
    relay::{Relay, Weather},
    scene::Couple,
    skip::{Need, can_run},
    socks, stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(30);
/// The client's inner address: the first of the pool.
const INNER: Ipv4Addr = Ipv4Addr::new(10, 86, 0, 2);

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn fetch(url: &str, more: &[&str]) -> Finished {
    curl::get(&Place::here(), Via::Direct, url, more)
}

/// Runs `adit forward` for the client of a pair.
fn forward(pair: &Pair, arguments: &[&str]) -> Finished {
    let config = ["-c", path(&pair.client_config)];
    (pair.workdir).run(&[&["forward"], arguments, &config[..]].concat())
}

fn listed(pair: &Pair) -> Vec<serde_json::Value> {
    let list = forward(pair, &["list", "--json"]);
    assert!(list.status.success(), "{}", list.text());
    serde_json::from_str(&list.stdout).expect("a JSON list")
}

/// Waits until the list says so.
fn until_listed(pair: &Pair, holds: impl Fn(&[serde_json::Value]) -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let list = listed(pair);
        if holds(&list) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{list:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn ports_and_sockets_of_the_configuration_lead_beyond_the_server() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let here = Place::here();
    let web = Origin::http(&here, loopback(0));
    let echo = Origin::udp_echo(&here, loopback(0));
    let [tcp, udp] = [free_port(), free_port()];
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("web.sock");
    let forwards = format!(
        "local_forwards:\n  - {tcp}:localhost:{web}\n  - {udp}:127.0.0.1:{echo}/udp\n  - unix:{}:127.0.0.1:{web}",
        path(&socket),
        web = web.address().port(),
        echo = echo.address().port(),
    );
    for scheme in ["tcp", "udp"] {
        let pair = Pair::start_with(scheme, "", &forwards);
        let by_port = fetch(&format!("http://127.0.0.1:{tcp}/bytes/5000?seed=1"), &[]);
        assert_eq!(by_port.status.code(), Some(0), "{}", by_port.stderr);
        let by_socket = fetch(
            "http://web/bytes/5000?seed=1",
            &["--unix-socket", path(&socket)],
        );
        assert_eq!(by_socket.status.code(), Some(0), "{}", by_socket.stderr);
        assert!(by_socket.stdout == by_port.stdout && !by_port.stdout.is_empty());
        let mode = fs::metadata(&socket).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o077, 0, "for its owner alone");

        let peers: Vec<UdpSocket> = (0..3)
            .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket"))
            .collect();
        for (number, peer) in (0_u8..).zip(&peers) {
            peer.set_read_timeout(Some(SOON)).expect("a time-out");
            peer.send_to(&[number; 700], loopback(udp)).expect("sends");
        }
        for (number, peer) in (0_u8..).zip(&peers) {
            let mut answer = [9; 1000];
            let length = peer.recv(&mut answer).expect("an answer");
            assert_eq!(answer[..length], [number; 700], "each gets its own");
        }
        until_listed(&pair, |list| {
            let number = |at: usize, key: &str| list[at][key].as_u64();
            number(0, "total") == Some(1)
                && number(1, "open") == Some(3)
                && number(2, "open") == Some(0)
        });
        drop(pair);
        // A killed client leaves its socket; the next takes its place.
        assert!(socket.exists());
    }
}

#[test]
fn forwards_come_and_go_while_the_client_runs() {
    let here = Place::here();
    let echo = Origin::echo(&here, loopback(0));
    let mut pair = Pair::start("tcp");
    assert_eq!(forward(&pair, &["list"]).stdout, "no forwards\n");

    let port = free_port();
    let spec = format!("{port}:127.0.0.1:{}", echo.address().port());
    let added = forward(&pair, &["add", "-L", &spec]);
    assert_eq!(
        added.stdout,
        format!("added 1: -L 127.0.0.1:{spec}\n"),
        "{}",
        added.stderr
    );
    let mut open = TcpStream::connect(loopback(port)).expect("it listens");
    open.set_read_timeout(Some(SOON)).expect("a time-out");
    let mut exchange = |text: &[u8; 4]| {
        open.write_all(text).expect("takes it");
        let mut answer = [0; 4];
        open.read_exact(&mut answer).expect("answers");
        assert_eq!(&answer, text);
    };
    exchange(b"ping");

    for (arguments, status, right) in [
        (
            &["add", "-L", &spec][..],
            1,
            "forward 1 listens there already",
        ),
        (
            &["add", "-L", "nonsense"],
            2,
            "-L: `nonsense` is not a forward: write [address:]port",
        ),
        (
            &["add", "-R", "80:unix:x"],
            2,
            "-R: `x` is not the absolute path",
        ),
        (&["rm", "7"], 1, "there is no forward 7"),
        (&["rm", "-R", "7:h:7"], 1, "there is no forward `-R 7:h:7`"),
    ] {
        let refused = forward(&pair, arguments);
        assert_eq!(refused.status.code(), Some(status), "{}", refused.text());
        assert!(refused.stderr.contains(right), "{}", refused.stderr);
    }
    let open_wide = forward(&pair, &["add", "-L", "0.0.0.0:0:127.0.0.1:9"]);
    assert!(
        open_wide
            .stdout
            .contains("warning: `0.0.0.0:0:127.0.0.1:9` can be reached from other hosts")
    );
    assert_eq!(listed(&pair).len(), 2);

    let removed = forward(&pair, &["rm", "-L", &spec]);
    assert!(
        removed.stdout.starts_with("removed 1: "),
        "{}",
        removed.text()
    );
    assert!(
        TcpStream::connect(loopback(port)).is_err(),
        "it listens no more"
    );
    exchange(b"pong");
    assert!(forward(&pair, &["rm", "2"]).status.success());

    pair.client.stop();
    let gone = forward(&pair, &["list"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        gone.stderr
            .contains("no client runs with the configuration"),
        "{}",
        gone.stderr
    );
    assert!(pair.client.panics().is_empty());
}

#[test]
fn forwards_of_flags_stay_while_those_of_the_file_change() {
    let mut pair = Pair::start("tcp");
    pair.client.stop();
    let before = fs::read_to_string(&pair.client_config).expect("the test's own file");
    let write = |port: u16| {
        let text = format!("{before}local_forwards: [\"{port}:127.0.0.1:9\"]\n");
        fs::write(&pair.client_config, text).expect("the test's own file");
    };
    let [given, first, second] = [free_port(), free_port(), free_port()];
    write(first);
    let flag = format!("{given}:127.0.0.1:9");
    let arguments = ["client", "-c", path(&pair.client_config), "-L", &flag];
    let mut client = (pair.workdir).start(&Place::here(), User::Same, "client", &arguments);
    client.expect_ready();
    let listens = |port: u16| TcpStream::connect(loopback(port)).is_ok();
    assert!(listens(given) && listens(first));
    write(second);
    let reload = ["reload", "-c", path(&pair.client_config)];
    let reloaded = pair.workdir.run(&reload);
    assert!(reloaded.status.success(), "{}", reloaded.text());
    assert!(listens(given) && listens(second) && !listens(first));
    // A flag has the place that the file wants, and that is said.
    let text = format!("{before}local_forwards: [\"{given}:127.0.0.1:10\"]\n");
    fs::write(&pair.client_config, text).expect("the test's own file");
    let reloaded = pair.workdir.run(&reload);
    assert!(
        reloaded.stdout.contains("is not in force"),
        "{}",
        reloaded.text()
    );
    assert!(listens(given) && !listens(second));
}

#[test]
fn client_that_runs_alone_is_found_without_its_configuration_and_another_is_not_disturbed() {
    let pair = Pair::start("tcp");
    let listed = pair.workdir.run(&["forward", "list"]);
    assert_eq!(listed.stdout, "no forwards\n", "{}", listed.stderr);
    // The same configuration once more: its proxy's port aside, it runs, and leaves the first one its socket.
    let proxy = loopback(free_port()).to_string();
    let arguments = ["client", "-c", path(&pair.client_config), "--proxy", &proxy];
    let mut second = (pair.workdir).start(&Place::here(), User::Same, "second", &arguments);
    second.expect_ready();
    let warned = second.process().text();
    assert!(
        warned.contains("no control socket") && warned.contains("another process listens there"),
        "{warned}"
    );
    second.stop();
    assert!(pair.workdir.run(&["forward", "list"]).status.success());

    let (mut other, _) = pair.other("tcp", pair.port);
    other.expect_ready();
    let both = pair.workdir.run(&["forward", "list"]);
    assert_eq!(both.status.code(), Some(2));
    assert!(
        both.stderr.contains("2 clients run: say which by -c FILE"),
        "{}",
        both.stderr
    );
    // Each is named by its socket, with what it is; and by that it is found.
    let sockets: Vec<&str> = (both.stderr.lines())
        .filter_map(|line| line.trim().strip_prefix("--control "))
        .filter_map(|rest| rest.split_once("   client "))
        .map(|(socket, _)| socket)
        .collect();
    assert_eq!(sockets.len(), 2, "{}", both.stderr);
    for socket in sockets {
        let found = pair.workdir.run(&["forward", "list", "--control", socket]);
        assert_eq!(found.stdout, "no forwards\n", "{}", found.stderr);
    }
}

#[test]
fn another_user_gives_no_orders() {
    if !can_run(&[Need::Root, Need::Tool("setpriv")]) {
        return;
    }
    let workdir = tempfile::tempdir().expect("a folder");
    fs::set_permissions(workdir.path(), PermissionsExt::from_mode(0o755)).expect("an own folder");
    let socket = workdir.path().join("control");
    let pair = Pair::start_with("tcp", "", &format!("control: {}", path(&socket)));
    let list = ["forward", "list", "--control", path(&socket)];
    assert!(pair.workdir.run(&list).status.success());
    let nobody = || pair.workdir.run_as(&Place::here(), User::Nobody, &list);
    let closed = nobody();
    assert_eq!(closed.status.code(), Some(1));
    assert!(
        closed.stderr.contains("Permission denied"),
        "{}",
        closed.stderr
    );
    // Were the file open to all, he would still be asked for.
    fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).expect("an own file");
    let closed = nobody();
    assert_eq!(closed.status.code(), Some(1));
    assert!(
        closed.stderr.contains("closed without an answer")
            || closed.stderr.contains("another user"),
        "{}",
        closed.stderr
    );
}

/// A pair whose client has a relay before its server, and another client, which may reach the first.
struct Peers {
    pair: Pair,
    lane: Relay,
    first: Adit,
    proxy: SocketAddr,
    _other: Adit,
}

impl Peers {
    fn start(forwards: &str) -> Self {
        let mut pair = Pair::start_with("tcp", "client_to_client: true", "");
        pair.client.stop();
        let lane = Relay::start(loopback(pair.port));
        let config = ClientConfig {
            server: vec![format!("tcp://{}", lane.address())],
            server_key: pair.server_key.public.clone(),
            proxy: pair.proxy,
            more: forwards.into(),
        };
        pair.client_config = pair
            .workdir
            .client("client.yaml", &pair.client_key, &config);
        let first = (pair.workdir).start_client(&Place::here(), User::Same, &pair.client_config);
        let said = |line: &str| line.contains("configured") && line.contains(&INNER.to_string());
        let mut peers = Self {
            lane,
            first,
            proxy: loopback(0),
            _other: {
                let (mut other, proxy) = pair.other("tcp", pair.port);
                other.expect_ready();
                pair.proxy = proxy;
                other
            },
            pair,
        };
        peers.proxy = peers.pair.proxy;
        let configured = peers.first.process().wait_for_line(SOON, said);
        assert!(
            configured.is_some(),
            "the first client has the first address"
        );
        peers
    }
}

#[test]
fn inner_port_serves_a_thousand_connections_of_a_peer_that_survive_a_cut_lane() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    process::raise_descriptor_limit();
    let here = Place::here();
    let web = Origin::http(&here, loopback(0));
    let echo = Origin::echo(&here, loopback(0));
    let closed = free_port();
    let peers = Peers::start(&format!(
        "remote_forwards: [\"80:localhost:{}\", \"7:127.0.0.1:{}\", \"9:127.0.0.1:{closed}\"]",
        web.address().port(),
        echo.address().port(),
    ));
    let url = format!("http://{INNER}/bytes/200000?seed=3");
    let got = curl::download(&here, Via::Socks5h(peers.proxy), &url);
    assert_eq!((got.code, got.length), (0, 200_000), "{}", got.stderr);
    assert_eq!(got.sha256, stream::sha256(3, 200_000));

    let (proxy, lane) = (peers.proxy, &peers.lane);
    runtime().block_on(async {
        let refused = |code| socks::SocksError::Refused(code).to_string();
        for port in [9, 1] {
            let answer = socks::connect(proxy, SocketAddr::from((INNER, port))).await;
            let error = answer.expect_err("nobody listens there").to_string();
            assert_eq!(
                error,
                refused(5),
                "port {port}: refused near the client, refused to the peer"
            );
        }
        let mut streams = Vec::new();
        for _ in 0..20 {
            let fifty = (0..50).map(|_| socks::connect(proxy, SocketAddr::from((INNER, 7))));
            for stream in futures_util::future::join_all(fifty).await {
                streams.push(stream.expect("connects"));
            }
        }
        let round = async |streams: &mut Vec<tokio::net::TcpStream>, seed: u32| {
            for (number, stream) in (seed..).zip(streams.iter_mut()) {
                stream
                    .write_all(&number.to_be_bytes())
                    .await
                    .expect("takes it");
            }
            for (number, stream) in (seed..).zip(streams.iter_mut()) {
                let answer = tokio::time::timeout(SOON, stream.read_u32()).await;
                assert_eq!(answer.expect("in time").expect("lives"), number);
            }
        };
        round(&mut streams, 0).await;
        assert_eq!(echo.open(), 1000);
        lane.set(Weather::Broken);
        tokio::time::sleep(Duration::from_millis(300)).await;
        lane.set(Weather::Fair);
        round(&mut streams, 1_000_000).await;
        assert_eq!(echo.total(), 1000, "the same connections");
        drop(streams);
    });
    until_listed(&peers.pair, |list| {
        let of = |at: usize, key: &str| list[at][key].as_u64();
        of(0, "total") == Some(1)
            && (of(1, "total"), of(1, "open")) == (Some(1000), Some(0))
            && list[2]["refused"]["Connection refused (os error 111)"].as_u64() == Some(1)
    });
    assert!(peers.first.panics().is_empty());
}

#[test]
fn inner_ports_lead_to_unix_sockets_and_udp_services_and_come_and_go() {
    let here = Place::here();
    let echo = Origin::udp_echo(&here, loopback(0));
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("service");
    let service = UnixListener::bind(&socket).expect("a socket");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = service.accept() {
            let mut question = String::new();
            let _ = stream.read_to_string(&mut question);
            let _ = write!(stream, "heard {question}");
        }
    });
    let peers = Peers::start("");
    let specs = [
        format!("22:unix:{}", path(&socket)),
        format!("53:127.0.0.1:{}/udp", echo.address().port()),
    ];
    for spec in &specs {
        let added = forward(&peers.pair, &["add", "-R", spec]);
        assert!(added.status.success(), "{}", added.text());
    }
    until_listed(&peers.pair, |list| {
        list.iter().all(|it| it["state"] == "listening")
    });
    let proxy = peers.proxy;
    let ask = async || {
        let mut stream = socks::connect(proxy, SocketAddr::from((INNER, 22))).await?;
        stream.write_all(b"you").await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, socks::SocksError>(answer)
    };
    runtime().block_on(async {
        assert_eq!(
            ask().await.expect("both halves end by themselves"),
            "heard you"
        );
        let association = socks::associate(proxy).await.expect("an association");
        let inner = SocketAddr::from((INNER, 53));
        for length in [1, 1000, 3000] {
            let payload = vec![7; length];
            association.send_to(&payload, inner).await.expect("sends");
            let answer = tokio::time::timeout(SOON, association.recv_from()).await;
            assert!(answer.is_ok(), "{length} bytes: {:?}", listed(&peers.pair));
            let (got, from) = answer.expect("in time").expect("an answer");
            assert_eq!((from, got), (inner, payload));
        }
    });
    let removed = forward(&peers.pair, &["rm", "-R", &specs[0], "-R", &specs[1]]);
    assert!(removed.status.success(), "{}", removed.text());
    runtime().block_on(async {
        assert!(matches!(ask().await, Err(socks::SocksError::Refused(5))));
    });
}

#[test]
fn web_server_near_the_client_is_reached_from_the_servers_side() {
    let needs = [
        Need::Root,
        Need::Tun,
        Need::Tool("ip"),
        Need::Tool("nft"),
        Need::Tool("setpriv"),
    ];
    if !can_run(&needs) || !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let lab = Lab::new();
    let workdir = Workdir::new();
    let lanes = [format!("udp://{SERVER4}:7443")];
    let server = ServerConfig {
        listen: lanes.to_vec(),
        ..ServerConfig::tun_egress()
    };
    let web = Origin::http(&lab.client, loopback(8000));
    let client = ClientConfig {
        more: "remote_forwards: 8080:127.0.0.1:8000".into(),
        ..ClientConfig::to(&lanes)
    };
    let files = Couple::write(&workdir, [User::Same, User::Nobody], server, client);
    let mut server = workdir.start_server(&lab.server, User::Same, &files.server);
    let mut client = workdir.start_client(&lab.client, User::Nobody, &files.client);
    let length = 8 << 20;
    let url = format!("http://{INNER}:8080/bytes/{length}?seed=4");
    let got = curl::download(&lab.server, Via::Direct, &url);
    assert_eq!((got.code, got.length), (0, length), "{}", got.stderr);
    assert_eq!(got.sha256, stream::sha256(4, length));
    assert!(web.last_peer().is_some_and(|peer| peer.ip().is_loopback()));
    let other = curl::get(
        &lab.server,
        Via::Direct,
        &format!("http://{INNER}:8081/"),
        &[],
    );
    assert_eq!(
        other.status.code(),
        Some(7),
        "no other port answers: {}",
        other.stderr
    );
    client.stop();
    server.stop();
}

/// An sshd on a free port of loopback that lets this user in by a key.
struct Ssh {
    sshd: process::Process,
    folder: tempfile::TempDir,
    port: u16,
}

const SSH: &[Need] = &[
    Need::Tool("sshd"),
    Need::Tool("ssh"),
    Need::Tool("scp"),
    Need::Tool("ssh-keygen"),
];

impl Ssh {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        for name in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f", path(&file(name))]);
            assert!(process::run(command, SOON).status.success());
        }
        fs::copy(file("user.pub"), file("authorized")).expect("an own folder");
        if process::is_root() {
            // Where the package's service has never run.
            fs::create_dir_all("/run/sshd").expect("root may");
        }
        let port = free_port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
            path(&file("host")),
            path(&file("authorized")),
        );
        fs::write(file("config"), config).expect("an own folder");
        // it wants its own absolute path, to run itself once more
        let mut command = Command::new(program("sshd"));
        command.args(["-D", "-e", "-f", path(&file("config"))]);
        let sshd = process::Process::spawn("sshd", command);
        let listens = sshd.wait_for_line(SOON, |line| line.contains("Server listening"));
        assert!(listens.is_some(), "{}", sshd.text());
        Self { sshd, folder, port }
    }

    /// `ssh` or `scp`, with `adit nc` of this configuration between it and the server.
    fn command(&self, program: &str, pair: &Pair) -> Command {
        let adit = pair.workdir.path().join("adit");
        let proxy = format!(
            "ProxyCommand={} nc -c {} %h %p",
            path(&adit),
            path(&pair.client_config)
        );
        let identity = format!("IdentityFile={}", path(&self.folder.path().join("user")));
        let port = format!("Port={}", self.port);
        let mut command = Command::new(program);
        command.args(["-F", "none", "-o", &proxy, "-o", &identity, "-o", &port]);
        for option in [
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        let runtime = pair.workdir.command(&Place::here(), User::Same);
        for (name, value) in runtime.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

fn program(name: &str) -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .expect("it was looked for")
}

#[test]
fn nc_carries_an_ssh_session_and_a_copy_with_a_running_client_and_without() {
    if !can_run(SSH) {
        return;
    }
    let ssh = Ssh::start();
    let mut pair = Pair::start("tcp");
    for runs in [true, false] {
        if !runs {
            pair.client.stop();
        }
        let mut session = ssh.command("ssh", &pair);
        session.args(["127.0.0.1", "cat; echo over; exit 7"]);
        session
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = session.spawn().expect("ssh runs");
        (child.stdin.take().expect("it was piped"))
            .write_all(b"through the tunnel\n")
            .expect("takes it");
        let output = child.wait_with_output().expect("an own child");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            said,
            "through the tunnel\nover\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(7));

        let length = std::env::var("ADIT_TEST_SCP").map_or(SCP, |mib| {
            mib.parse::<u64>()
                .expect("ADIT_TEST_SCP is a number of MiB")
                << 20
        });
        let [from, to] = ["from", "to"].map(|name| ssh.folder.path().join(name));
        let mut bytes = stream::Stream::new(8);
        let mut file = fs::File::create(&from).expect("an own folder");
        let mut buffer = vec![0; stream::CHUNK];
        while bytes.position() < length {
            bytes.fill(&mut buffer);
            file.write_all(&buffer).expect("room on the disk");
        }
        drop(file);
        let began = std::time::Instant::now();
        let mut copy = ssh.command("scp", &pair);
        copy.args(["-q", path(&from), &format!("127.0.0.1:{}", path(&to))]);
        let copied = process::run(copy, Duration::from_secs(300));
        assert!(
            copied.status.success(),
            "{}\n{}",
            copied.text(),
            ssh.sshd.text()
        );
        println!(
            "{} MiB by scp in {:.1} s",
            length >> 20,
            began.elapsed().as_secs_f32()
        );
        let same = Command::new("cmp")
            .args([&from, &to])
            .status()
            .expect("cmp runs");
        assert!(same.success(), "the copy differs");
    }
}

/// Bytes copied; `ADIT_TEST_SCP` says another number of MiB.
const SCP: u64 = 64 << 20;

#[test]
fn nc_passes_both_ends_on_by_themselves_and_its_status_tells_how_it_ended() {
    let here = Place::here();
    let echo = Origin::echo(&here, loopback(0));
    let mut pair = Pair::start("tcp");
    let nc = |pair: &Pair, port: u16, input: &[u8]| {
        let mut command = pair.workdir.command(&Place::here(), User::Same);
        let port = port.to_string();
        command.args(["nc", "-c", path(&pair.client_config), "127.0.0.1", &port]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("adit runs");
        let mut stdin = child.stdin.take().expect("it was piped");
        let input = input.to_vec();
        // ends when written, and while what comes is read
        let writing = thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("an own child");
        let _gone = writing.join();
        output
    };
    let text = vec![b'x'; 3 << 20];
    for runs in [true, false] {
        if !runs {
            pair.client.stop();
        }
        // The echo sends the last byte after it has heard our end.
        let echoed = nc(&pair, echo.address().port(), &text);
        assert_eq!(
            echoed.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&echoed.stderr)
        );
        assert!(echoed.stdout == text, "{} bytes came", echoed.stdout.len());
        let refused = nc(&pair, free_port(), b"");
        assert_eq!(refused.status.code(), Some(1));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("refused the connection"), "{said}");

        // A far end that says its word and goes, while our input stays open, ends it all.
        let greeter = std::net::TcpListener::bind(loopback(0)).expect("a port");
        let address = greeter.local_addr().expect("it is bound");
        let greeting = thread::spawn(move || {
            let (mut stream, _) = greeter.accept().expect("a caller");
            stream.write_all(b"bye").expect("takes it");
            stream
                .shutdown(std::net::Shutdown::Write)
                .expect("half of it");
            let mut rest = Vec::new();
            stream
                .read_to_end(&mut rest)
                .expect("the other half goes on");
            rest
        });
        let late = nc(&pair, address.port(), &text);
        assert_eq!(
            late.stdout,
            b"bye",
            "{}",
            String::from_utf8_lossy(&late.stderr)
        );
        assert_eq!(late.status.code(), Some(0));
        assert!(
            greeting.join().expect("no panic") == text,
            "what is sent after their end arrives"
        );
    }
    // Without a configuration and without a client there is nothing to go through.
    let lost = pair.workdir.run(&["nc", "127.0.0.1", "9"]);
    assert_eq!(lost.status.code(), Some(1));
    assert!(
        lost.stderr.contains("no client of this user runs"),
        "{}",
        lost.stderr
    );
}

#[test]
fn forward_that_cannot_be_had_keeps_the_client_from_starting() {
    let taken = std::net::TcpListener::bind(loopback(0)).expect("a port");
    let port = taken.local_addr().expect("it is bound").port();
    let pair = Pair::start("tcp");
    let refused = pair.workdir.run(&[
        "client",
        "-c",
        path(&pair.client_config),
        "--proxy",
        &loopback(free_port()).to_string(),
        "-L",
        &format!("{port}:h:80"),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    let right = format!("cannot listen on 127.0.0.1:{port} for `-L 127.0.0.1:{port}:h:80`");
    assert!(refused.stderr.contains(&right), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("choose another port"),
        "{}",
        refused.stderr
    );
}
