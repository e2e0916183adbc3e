//! Routing rules end to end: what goes through the tunnel, what directly, what nowhere, and what a reload ends.

use std::{
    fs,
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use adit_integration::{
    adit::{Adit, ClientConfig, Pair, ServerConfig, User, Workdir, path},
    curl::{self, Via},
    dns::{Dns, Zone},
    flows,
    namespaces::{CLIENT4, EGRESS4, Lab, ORIGIN4, Place, SERVER4, runtime},
    origin::Origin,
    process::{self, Signal},
    scene::Couple,
    skip::{Need, can_run},
    socks::{self, SocksError},
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tool("ip"),
    Need::Tool("curl"),
    Need::Tool("setpriv"),
];
/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(20);
/// The proxy with the rules of the test.
const PROXY: SocketAddr = loopback(1080);
/// One without rules.
const PLAIN: SocketAddr = loopback(1081);
/// One that sends one name directly and blocks all else.
const HOME: SocketAddr = loopback(1082);

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// A lab in which the client host has a network of its own: the server's host is a neighbour there, with a web server and a
/// name server that the tunnel's server does not let clients reach.
struct Scene {
    lab: Lab,
    client: Adit,
    client_config: PathBuf,
    _server: Adit,
    workdir: Workdir,
    public_names: Dns,
    home_names: Dns,
    _origins: Vec<Origin>,
}

impl Scene {
    fn new(rules: &str) -> Self {
        Self::with(rules, "")
    }

    /// The same with further keys.
    fn with(rules: &str, more: &str) -> Self {
        let lab = Lab::new();
        let public = Zone::new()
            .address("public.example", 60, ORIGIN4)
            .address("x.ads.example", 60, ORIGIN4)
            .address("evil.example", 60, SERVER4);
        let public_names = Dns::start(&lab.internet, (ORIGIN4, 53).into(), public);
        lab.server.set_resolver(ORIGIN4.into());
        // whoever asks here what is not for it is led astray
        let home =
            Zone::new()
                .address("printer.home", 60, SERVER4)
                .address("public.example", 60, SERVER4);
        let home_names = Dns::start(&lab.server, (SERVER4, 53).into(), home);
        lab.client.set_resolver(SERVER4.into());
        let both = [(&lab.internet, ORIGIN4), (&lab.server, SERVER4)];
        let origins = both.into_iter().flat_map(|(place, ip)| {
            [
                Origin::http(place, (ip, 80).into()),
                Origin::echo(place, (ip, 7).into()),
                Origin::echo(place, (ip, 8).into()),
                Origin::udp_echo(place, (ip, 7).into()),
                Origin::udp_echo(place, (ip, 9).into()),
            ]
        });
        let origins = origins.collect();
        let workdir = Workdir::new();
        let lanes = [format!("tcp://{SERVER4}:7443")];
        let server = ServerConfig {
            listen: lanes.to_vec(),
            allow: Vec::new(),
            ..ServerConfig::user_egress()
        };
        let client = ClientConfig {
            more: format!(
                "rules: [{rules}]\nproxies:\n  - {{listen: '{PLAIN}', rules: []}}\n  - {{listen: '{HOME}', rules: [direct printer.home, block *]}}\n{more}"
            ),
            ..ClientConfig::to(&lanes)
        };
        let files = Couple::write(&workdir, [User::Nobody; 2], server, client);
        let server = workdir.start_server(&lab.server, User::Nobody, &files.server);
        let client = workdir.start_client(&lab.client, User::Nobody, &files.client);
        Self {
            lab,
            client,
            client_config: files.client,
            _server: server,
            workdir,
            public_names,
            home_names,
            _origins: origins,
        }
    }

    /// Whom a web server saw, or what curl says it met with.
    fn peer(&self, via: Via, host: &str) -> String {
        let url = format!("http://{host}/peer");
        let got = curl::get(&self.lab.client, via, &url, &["--silent", "--show-error"]);
        got.text()
    }

    /// Puts other rules into the file, has them read, and waits until they are in force.
    fn reload(&mut self, from: &str, to: &str, reads: usize) {
        let text = fs::read_to_string(&self.client_config).expect("an own file");
        assert!(text.contains(from), "{text}");
        let text = text.replace(from, to);
        self.workdir.file("client.yaml", &text);
        self.client.process().signal(Signal::User1);
        wait_for(&mut self.client, "configuration read again", reads);
    }
}

/// Waits until a line has been logged so many times.
fn wait_for(adit: &mut Adit, line: &str, times: usize) {
    let deadline = std::time::Instant::now() + SOON;
    let told = |adit: &mut Adit| {
        let lines = adit.process().lines();
        lines.iter().filter(|text| text.contains(line)).count()
    };
    while told(adit) < times {
        assert!(std::time::Instant::now() < deadline, "{line}: never told");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_request_goes_by_the_rules_of_its_proxy_and_no_name_leaks() {
    if !can_run(NEEDS) {
        return;
    }
    let scene =
        Scene::new("block *.ads.example, direct printer.home 10.77.1.0/24, block udp port 9");
    let tunnel = format!("{EGRESS4}:");
    let direct = format!("{CLIENT4}:");
    for via in [Via::Socks5h, Via::Socks4a, Via::Http, Via::HttpTunnel] {
        for (host, seen) in [
            ("public.example", &tunnel),
            (&ORIGIN4.to_string(), &tunnel),
            ("printer.home", &direct),
            (&SERVER4.to_string(), &direct),
        ] {
            let got = scene.peer(via(PROXY), host);
            assert!(
                got.starts_with(seen.as_str()),
                "{:?} {host}: {got}",
                via(PROXY)
            );
        }
        // Blocked by its name; and led by strangers to where only a direct rule for it would send it.
        for host in ["x.ads.example", "evil.example"] {
            let got = scene.peer(via(PROXY), host);
            let refused = ["403", "SOCKS", "block", "private address"];
            assert!(
                refused.iter().any(|word| got.contains(word)),
                "{:?} {host}: {got}",
                via(PROXY)
            );
        }
        let got = scene.peer(via(PLAIN), "public.example");
        assert!(got.starts_with(&tunnel), "{got}");
        let got = scene.peer(via(PLAIN), &SERVER4.to_string());
        assert!(!got.starts_with(&direct), "the server forbids it: {got}");
        let got = scene.peer(via(HOME), "printer.home");
        assert!(got.starts_with(&direct), "{got}");
        let got = scene.peer(via(HOME), "public.example");
        assert!(!got.starts_with(&tunnel), "{got}");
    }
    let blocked = scene.peer(Via::Http(HOME), "public.example");
    assert!(
        blocked.contains("a rule of this client blocks the destination"),
        "{blocked}"
    );
    let pac = curl::get(
        &scene.lab.client,
        Via::Direct,
        &format!("http://{HOME}/proxy.pac"),
        &[],
    );
    assert!(
        pac.stdout.contains(&format!("SOCKS5 {HOME}")),
        "{}",
        pac.stdout
    );

    datagrams_go_by_the_rules(&scene);

    let names = |dns: &Dns| -> Vec<String> {
        let mut names: Vec<_> = dns
            .asked()
            .into_iter()
            .map(|question| question.name)
            .collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(names(&scene.home_names), ["printer.home"]);
    assert_eq!(
        names(&scene.public_names),
        ["evil.example", "public.example"]
    );
}

/// What of these comes back has gone the way that it should: neither network reaches the other's hosts.
fn datagrams_go_by_the_rules(scene: &Scene) {
    scene.lab.client.block_on(|| async {
        let association = socks::associate(PROXY).await.expect("associates");
        // The two that are to be dropped go first, so that they would come back first.
        let dropped = [
            (
                "dropped",
                socks::Target::from(SocketAddr::from((ORIGIN4, 9))),
            ),
            ("dropped", ("x.ads.example", 7).into()),
        ];
        let sent = [
            (
                "tunnel",
                socks::Target::from(SocketAddr::from((ORIGIN4, 7))),
                ORIGIN4,
            ),
            ("direct", SocketAddr::from((SERVER4, 7)).into(), SERVER4),
            ("tunnel by name", ("public.example", 7).into(), ORIGIN4),
            ("direct by name", ("printer.home", 7).into(), SERVER4),
        ];
        for (payload, target) in dropped {
            let sent = association.send_to(payload.as_bytes(), target).await;
            sent.expect("the proxy takes it");
        }
        for (payload, target, from) in sent {
            let sent = association.send_to(payload.as_bytes(), target).await;
            sent.expect("the proxy takes it");
            let back = timeout(SOON, association.recv_from()).await;
            let (back, peer) = back
                .unwrap_or_else(|_| panic!("{payload}: no answer"))
                .expect("a datagram");
            assert_eq!(back, payload.as_bytes());
            assert_eq!(peer, (from, 7).into());
        }
    });
}

/// What `adit nc` gets of a web server that tells whom it sees, or what it says instead.
fn nc(scene: &Scene, host: &str) -> String {
    let mut command = scene.workdir.command(&scene.lab.client, User::Nobody);
    command.args(["nc", "-c", path(&scene.client_config), host, "80"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("adit runs");
    let mut stdin = child.stdin.take().expect("it was piped");
    let request = format!("GET /peer HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // one that is refused does not read it
    let _gone = stdin.write_all(request.as_bytes());
    // it is over when both ends have said theirs
    drop(stdin);
    let output = child.wait_with_output().expect("an own child");
    let said = [output.stdout, output.stderr].concat();
    format!(
        "{} {}",
        output.status.code().expect("it was not killed"),
        String::from_utf8_lossy(&said)
    )
}

#[test]
fn nc_goes_by_the_rules_and_a_forward_by_the_way_that_it_names() {
    if !can_run(NEEDS) {
        return;
    }
    let rules = "block *.ads.example, direct printer.home 10.77.1.0/24, block udp port 9";
    let mut scene = Scene::with(
        rules,
        &format!(
            "dns:\n  records: [nas.example A {SERVER4}]\nlocal_forwards: ['{}:{ORIGIN4}:80', '{}:{SERVER4}:80', '{}:x.ads.example:80']",
            loopback(2001),
            loopback(2002),
            loopback(2003),
        ),
    );
    let (tunnel, direct) = (format!("\n{EGRESS4}:"), format!("\n{CLIENT4}:"));
    for runs in [true, false] {
        if !runs {
            // A forward is no rule's business: the tunnel leads to what is blocked, and not to what is direct.
            let forwarded = |port: u16| scene.peer(Via::Direct, &loopback(port).to_string());
            let through = format!("{EGRESS4}:");
            for port in [2001, 2003] {
                let got = forwarded(port);
                assert!(got.starts_with(&through), "{port}: {got}");
            }
            let got = forwarded(2002);
            assert!(!got.contains(&CLIENT4.to_string()), "{got}");
            scene.client.stop();
        }
        for (host, seen) in [
            ("public.example", &tunnel),
            (&ORIGIN4.to_string(), &tunnel),
            ("printer.home", &direct),
            (&SERVER4.to_string(), &direct),
            // By a rule about networks alone, since a record of the file says where it is.
            ("nas.example", &direct),
        ] {
            let got = nc(&scene, host);
            assert!(got.starts_with("0 "), "{host}: {got}");
            assert!(got.contains(seen.as_str()), "{host}: {got}");
        }
        let got = nc(&scene, "x.ads.example");
        assert!(got.starts_with("1 "), "{got}");
        assert!(
            got.contains("a rule of this client blocks the destination"),
            "{got}"
        );
        let got = nc(&scene, "evil.example");
        assert!(got.contains("to a private address"), "{got}");
    }
    let asked = scene.home_names.asked();
    let strange = asked
        .iter()
        .find(|question| question.name != "printer.home");
    assert!(strange.is_none(), "{strange:?}");
}

/// A flow to an echo, through the proxy at hand.
async fn open(ip: Ipv4Addr, port: u16) -> TcpStream {
    let target = SocketAddr::from((ip, port));
    let mut stream = socks::connect(PROXY, target).await.expect("connects");
    flows::echo(&mut stream, b"begin", SOON)
        .await
        .expect("echoes");
    stream
}

#[test]
fn reload_ends_the_flows_that_new_rules_send_another_way_and_touches_no_other() {
    if !can_run(NEEDS) {
        return;
    }
    let rules = "direct 10.77.1.0/24";
    let mut scene = Scene::new(rules);
    let hold = |scene: &Scene| {
        scene.lab.client.block_on(|| async {
            let mut streams = Vec::new();
            for (ip, port) in [(ORIGIN4, 7), (SERVER4, 7), (ORIGIN4, 8), (SERVER4, 8)] {
                streams.push(open(ip, port).await.into_std().expect("an open socket"));
            }
            streams
        })
    };
    let mut streams = hold(&scene);
    // Of both ways, port 8 is concerned: one is blocked now, one is to go through the tunnel.
    let other = "block 11.0.0.0/24 port 8, tunnel 10.77.1.0/24 port 8, direct 10.77.1.0/24";
    scene.reload(rules, other, 1);
    let ended = streams.split_off(2);
    let kept = streams;
    let kept = scene.lab.client.block_on(move || async move {
        for stream in ended {
            let mut stream = TcpStream::from_std(stream).expect("an open socket");
            let read = timeout(SOON, stream.read(&mut [0; 8]))
                .await
                .expect("it ends");
            assert_eq!(
                read.map_err(|error| error.kind()),
                Err(ErrorKind::ConnectionReset)
            );
        }
        let blocked = socks::connect(PROXY, SocketAddr::from((ORIGIN4, 8))).await;
        assert!(
            matches!(blocked, Err(SocksError::Refused(2))),
            "{blocked:?}"
        );
        echo_on(kept).await
    });
    // A file that is wrong changes nothing, and is told with its place.
    fs::write(&scene.client_config, "rules: [drop everything]\n").expect("an own file");
    scene.client.process().signal(Signal::User1);
    wait_for(&mut scene.client, "all stays as it was", 1);
    let told = scene.client.process().text();
    assert!(
        told.contains("client.yaml:1:9: rules[0]: `drop` is no action"),
        "{told}"
    );
    scene.lab.client.block_on(move || async move {
        let blocked = socks::connect(PROXY, SocketAddr::from((ORIGIN4, 8))).await;
        assert!(
            matches!(blocked, Err(SocksError::Refused(2))),
            "{blocked:?}"
        );
        echo_on(kept).await
    });
    assert_eq!(scene.client.panics(), Vec::<String>::new());
}

/// Flows that go on.
async fn echo_on(streams: Vec<std::net::TcpStream>) -> Vec<std::net::TcpStream> {
    let mut kept = Vec::new();
    for stream in streams {
        let mut stream = TcpStream::from_std(stream).expect("an open socket");
        flows::echo(&mut stream, b"goes on", SOON)
            .await
            .expect("echoes");
        kept.push(stream.into_std().expect("an open socket"));
    }
    kept
}

#[test]
fn hang_up_reloads_what_has_no_terminal_and_ends_what_a_closed_one_had() {
    let pair = Pair::start_with("tcp", "", "rules: []");
    let echo = Origin::echo(&Place::here(), loopback(0));
    let (workdir, config) = (&pair.workdir, pair.client_config.clone());
    let text = fs::read_to_string(&config).expect("an own file");
    let free = adit_integration::adit::free_port();
    let (proxy, file) = (loopback(free), "service.yaml");
    let other = text.replace(&pair.proxy.to_string(), &proxy.to_string());
    let config = workdir.file(file, &other);
    let client = |prepare: &dyn Fn(&mut std::process::Command)| {
        let mut command = workdir.command(&Place::here(), User::Same);
        command.args(["client", "-c", path(&config), "--log-level", "info"]);
        prepare(&mut command);
        let mut adit = workdir.start_command("service", command);
        adit.expect_ready();
        adit
    };
    let mut service = client(&process::run_without_terminal);
    let blocked = other.replace("rules: []", "rules: [block *]\nlanes: 2");
    workdir.file(file, &blocked);
    service.process().signal(Signal::HangUp);
    wait_for(&mut service, "configuration read again", 1);
    let told = service.process().text();
    assert!(
        told.contains("not in force before a restart: lanes"),
        "{told}"
    );
    let refused = runtime().block_on(socks::connect(proxy, echo.address()));
    assert!(
        matches!(refused, Err(SocksError::Refused(2))),
        "{refused:?}"
    );
    let (status, _) = service.stop();
    assert!(status.success(), "{status}");

    let window = std::cell::RefCell::new(None);
    let mut terminal = client(&|command| {
        *window.borrow_mut() = Some(process::run_in_terminal(command));
    });
    drop(window);
    let status = terminal.process().wait(SOON);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}
