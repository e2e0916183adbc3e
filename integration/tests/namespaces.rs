//! Three hosts: an unprivileged client, a server with either egress, and the Internet.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir},
    curl::{self, Via},
    dns::Dns,
    flows,
    meters::wait_for,
    namespaces::{
        CLIENT4, EGRESS4, EGRESS6, Lab, ORIGIN4, ORIGIN6, PRIVATE4, PRIVATE6, Place, SERVER4,
        SERVER6, runtime,
    },
    origin::Origin,
    process,
    scene::{Couple, Internet, PROXY, open_tun},
    skip::{LAB, Need, can_run},
    socks::{self, SocksError},
    stream,
};
use tokio::net::UdpSocket;

/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(20);

/// A lab with a server and a client that runs as an ordinary user.
struct Scene {
    lab: Lab,
    server: Adit,
    client: Adit,
    server_config: PathBuf,
    workdir: Workdir,
    dns: Dns,
    four: Origin,
    six: Origin,
}

impl Scene {
    fn new(lane: &str, user: User, config: ServerConfig) -> Self {
        let lab = Lab::new();
        let Internet { dns, four, six } = Internet::of(&lab, |zone| {
            zone.address("six.example", 60, ORIGIN6)
                .alias("alias.example", 60, "four.example")
                .address("inside.example", 60, PRIVATE4)
                .text("long.example", 60, vec!["x".repeat(200); 20])
        });
        let workdir = Workdir::new();
        let lanes = [lane.to_owned()];
        let listening = ServerConfig {
            listen: lanes.to_vec(),
            ..config
        };
        let files = Couple::write(
            &workdir,
            [user, User::Nobody],
            listening,
            ClientConfig::to(&lanes),
        );
        if user == User::NetAdmin {
            open_tun(&lab.server);
        }
        let server = workdir.start_server(&lab.server, user, &files.server);
        let client = workdir.start_client(&lab.client, User::Nobody, &files.client);
        Self {
            lab,
            server,
            client,
            server_config: files.server,
            workdir,
            dns,
            four,
            six,
        }
    }

    fn tun(more: &str) -> Self {
        let config = ServerConfig {
            more: more.into(),
            ..ServerConfig::tun_egress()
        };
        Self::new(&format!("tcp://{SERVER4}:7443"), User::Same, config)
    }

    fn user() -> Self {
        let config = ServerConfig {
            allow: Vec::new(),
            ..ServerConfig::user_egress()
        };
        Self::new(&format!("tcp://{SERVER4}:7443"), User::Nobody, config)
    }

    fn curl(&self, url: &str) -> process::Finished {
        curl::get(&self.lab.client, Via::Socks5h(PROXY), url, &[])
    }

    /// The code that SOCKS gives for an address; 0 for success.
    fn reply(&self, target: impl Into<socks::Target>) -> u8 {
        let target = target.into();
        self.lab.client.block_on(move || async move {
            match tokio::time::timeout(
                Duration::from_secs(60),
                socks::connect(PROXY, target.clone()),
            )
            .await
            {
                Ok(Ok(_)) => 0,
                Ok(Err(SocksError::Refused(code))) => code,
                other => panic!("{target:?}: {other:?}"),
            }
        })
    }
}

#[test]
fn both_families_and_names_leave_under_the_address_of_a_tun_server() {
    if can_run(LAB) && can_run(&[Need::Tun]) {
        everything_goes_through(&mut Scene::tun(""));
    }
}

#[test]
fn both_families_and_names_leave_under_the_address_of_a_user_server() {
    if can_run(LAB) {
        everything_goes_through(&mut Scene::user());
    }
}

#[test]
fn server_with_net_admin_alone_has_a_tun_egress() {
    if can_run(LAB) && can_run(&[Need::Tun]) {
        let lane = format!("tcp://{SERVER4}:7443");
        everything_goes_through(&mut Scene::new(
            &lane,
            User::NetAdmin,
            ServerConfig::tun_egress(),
        ));
    }
}

#[test]
fn lane_over_tls_and_ipv6_carries_everything() {
    if can_run(LAB) && can_run(&[Need::Tun]) {
        let lane = format!("tls://[{SERVER6}]:8443");
        everything_goes_through(&mut Scene::new(
            &lane,
            User::Same,
            ServerConfig::tun_egress(),
        ));
    }
}

fn everything_goes_through(scene: &mut Scene) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.client.process().pid()));
    let status = status.expect("the client lives");
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    assert_eq!(
        (field("CapEff:"), field("CapBnd:")),
        (Some("0000000000000000"), Some("0000000000000000"))
    );
    assert!(
        field("Uid:").is_some_and(|ids| ids.starts_with("65534")),
        "{status}"
    );

    // the Internet host sees the server, by either family
    let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
    for (url, seen) in [
        (scene.four.url("/peer"), [&four, &four]),
        (scene.six.url("/peer"), [&six, &six]),
        ("http://four.example/peer".into(), [&four, &four]),
        ("http://six.example/peer".into(), [&six, &six]),
        ("http://alias.example/peer".into(), [&four, &four]),
        ("http://both.example/peer".into(), [&four, &six]),
    ] {
        for via in [
            Via::Socks5h(PROXY),
            Via::Http(PROXY),
            Via::HttpTunnel(PROXY),
        ] {
            let got = curl::get(&scene.lab.client, via, &url, &[]);
            assert!(
                seen.iter()
                    .any(|peer| got.stdout.starts_with(peer.as_str())),
                "{via:?} {url}: {got:?}"
            );
        }
    }
    // names were asked for by the server, not by the client host, which could not
    let asked = scene.dns.asked();
    assert!(
        !asked.is_empty()
            && asked
                .iter()
                .all(|question| question.peer.ip() != IpAddr::V4(CLIENT4)),
        "{asked:?}"
    );
    assert!(
        asked
            .iter()
            .any(|question| question.kind == "AAAA" && question.name == "six.example"),
        "{asked:?}"
    );

    for origin in [&scene.four, &scene.six] {
        let length = 32 << 20;
        let url = origin.url(&format!("/bytes/{length}?seed=21"));
        let got = curl::download(&scene.lab.client, Via::Socks5h(PROXY), &url);
        assert_eq!(
            (got.code, &got.sha256),
            (0, &stream::sha256(21, length)),
            "{got:?}"
        );
        let sent = curl::upload(
            &scene.lab.client,
            Via::Socks5h(PROXY),
            &origin.url("/sink"),
            22,
            length,
        );
        assert_eq!(
            sent.stdout.trim(),
            format!("{length} {}", stream::sha256(22, length)),
            "{sent:?}"
        );
    }
    assert_eq!(
        (scene.server.panics(), scene.client.panics()),
        (vec![], vec![])
    );
}

#[test]
fn udp_and_dig_go_through_socks_with_a_tun_server() {
    if can_run(LAB) && can_run(&[Need::Tun, Need::Tool("dig")]) {
        udp_goes_through(&Scene::tun(""));
    }
}

#[test]
fn udp_and_dig_go_through_socks_with_a_user_server() {
    if can_run(LAB) && can_run(&[Need::Tool("dig")]) {
        udp_goes_through(&Scene::user());
    }
}

fn udp_goes_through(scene: &Scene) {
    let echoes = [ORIGIN4.into(), ORIGIN6.into()]
        .map(|ip: IpAddr| Origin::udp_echo(&scene.lab.internet, (ip, 7).into()));
    let targets = [echoes[0].address(), echoes[1].address()];
    scene.lab.client.block_on(move || async move {
        let association = socks::associate(PROXY).await.expect("associates");
        for target in targets {
            for size in [1_usize, 512, 1300, 3000] {
                let mut payload = vec![0; size];
                stream::Stream::new(size as u64).fill(&mut payload);
                // An echo longer than the tunnel's MTU costs the first try: routers do not cut
                // IPv6 packets but tell the origin to (RFC 8200 section 5).
                let tries = if size > 1300 && target.is_ipv6() {
                    3
                } else {
                    1
                };
                let mut received = None;
                for _ in 0..tries {
                    association.send_to(&payload, target).await.expect("sends");
                    let wait = SOON / tries;
                    if let Ok(got) = tokio::time::timeout(wait, association.recv_from()).await {
                        received = Some(got.expect("receives"));
                        break;
                    }
                }
                let (back, from) =
                    received.unwrap_or_else(|| panic!("{size} bytes to {target} were lost"));
                assert!(
                    from == target && back == payload,
                    "{} bytes from {from}",
                    back.len()
                );
            }
        }
        // a name as the target is resolved beyond the tunnel
        association
            .send_to(b"named", ("four.example", 7))
            .await
            .expect("sends");
        let received = tokio::time::timeout(SOON, association.recv_from())
            .await
            .expect("comes")
            .expect("receives");
        assert_eq!(received.0, b"named");
    });
    let seen =
        [echoes[0].last_peer(), echoes[1].last_peer()].map(|peer| peer.map(|peer| peer.ip()));
    assert_eq!(seen, [Some(EGRESS4.into()), Some(EGRESS6.into())]);

    // dig, by a forwarder that puts its datagrams into an association
    let (ready, bound) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let forwarder = scene.lab.client.spawn(move || {
        runtime().block_on(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 5300))
                .await
                .expect("binds");
            let association = socks::associate(PROXY).await.expect("associates");
            ready.send(()).expect("the test waits");
            tokio::select! { () = forward(socket, association) => {} _ = stopped => {} }
        });
    });
    bound.recv_timeout(SOON).expect("the forwarder is ready");
    let answer = scene
        .lab
        .client
        .run("dig +short +tries=1 +time=10 @127.0.0.1 -p 5300 both.example A");
    assert_eq!(answer.trim(), ORIGIN4.to_string());
    let answer = scene
        .lab
        .client
        .run("dig +short +tries=1 +time=10 @127.0.0.1 -p 5300 both.example AAAA");
    assert_eq!(answer.trim(), ORIGIN6.to_string());
    drop(stop);
    forwarder.join().expect("the forwarder ends");
}

/// Passes datagrams of local programs to the name server of the Internet host and back.
async fn forward(socket: UdpSocket, association: socks::Association) {
    let mut buffer = vec![0; 4096];
    let mut last = None;
    loop {
        tokio::select! {
            query = socket.recv_from(&mut buffer) => {
                let (length, from) = query.expect("receives");
                last = Some(from);
                association.send_to(&buffer[..length], SocketAddr::from((ORIGIN4, 53))).await.expect("sends");
            }
            answer = association.recv_from() => {
                let (answer, _) = answer.expect("receives");
                if let Some(last) = last {
                    socket.send_to(&answer, last).await.expect("sends");
                }
            }
        }
    }
}

#[test]
fn only_the_public_internet_is_reached_unless_allowed() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    for scene in [Scene::tun(""), Scene::user()] {
        let inside = Origin::http(&scene.lab.internet, (PRIVATE4, 80).into());
        let own = Origin::http(&scene.lab.server, (Ipv4Addr::UNSPECIFIED, 8080).into());
        for target in [
            (IpAddr::from(PRIVATE4), 80),
            (PRIVATE6.into(), 80),
            (EGRESS4.into(), 8080),
            (SERVER4.into(), 8080),
            (Ipv4Addr::LOCALHOST.into(), 8080),
            (Ipv4Addr::new(169, 254, 169, 254).into(), 80),
            ("::ffff:10.77.2.2".parse().expect("an address"), 80),
            ("64:ff9b::a4d:202".parse().expect("an address"), 80),
            ("2002:a4d:202::1".parse().expect("an address"), 80),
        ] {
            assert_eq!(
                scene.reply(SocketAddr::from(target)),
                socks::NOT_ALLOWED,
                "{target:?}"
            );
        }
        assert_eq!(scene.reply(("inside.example", 80)), socks::NOT_ALLOWED);
        assert_eq!(scene.reply(scene.four.address()), 0);
        assert_eq!((inside.total(), own.total()), (0, 0));
        assert_eq!(scene.server.panics(), Vec::<String>::new());
    }
}

#[test]
fn allowed_network_is_reached_with_either_egress() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let lane = format!("tcp://{SERVER4}:7443");
    let allow = vec!["10.77.2.0/24".to_owned(), "fd77:2::/64".to_owned()];
    for (user, config) in [
        (
            User::Same,
            ServerConfig {
                allow: allow.clone(),
                ..ServerConfig::tun_egress()
            },
        ),
        (
            User::Nobody,
            ServerConfig {
                allow: allow.clone(),
                ..ServerConfig::user_egress()
            },
        ),
    ] {
        let scene = Scene::new(&lane, user, config);
        for ip in [IpAddr::from(PRIVATE4), PRIVATE6.into()] {
            let inside = Origin::http(&scene.lab.internet, (ip, 80).into());
            let got = scene.curl(&inside.url("/bytes/100"));
            assert!(got.status.success() && inside.total() == 1, "{ip}: {got:?}");
        }
    }
}

#[test]
fn socks_replies_tell_what_the_internet_said() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    for scene in [Scene::tun(""), Scene::user()] {
        scene.lab.internet.nft(
            "table inet answers {
                chain in {
                    type filter hook input priority 0;
                    tcp dport 81 reject with icmpx type host-unreachable;
                    tcp dport 82 reject with icmpx type admin-prohibited;
                    tcp dport 83 drop;
                }
            }\n",
        );
        for ip in [IpAddr::from(ORIGIN4), ORIGIN6.into()] {
            let reply = |port| scene.reply(SocketAddr::from((ip, port)));
            assert_eq!(reply(9), socks::CONNECTION_REFUSED, "{ip}: nobody listens");
            assert_eq!(reply(81), socks::HOST_UNREACHABLE, "{ip}: host unreachable");
            let prohibited = reply(82);
            assert!(
                [socks::NOT_ALLOWED, socks::HOST_UNREACHABLE].contains(&prohibited),
                "{ip}: prohibited: {prohibited}"
            );
            let silent = reply(83);
            assert!(
                [socks::TTL_EXPIRED, socks::HOST_UNREACHABLE].contains(&silent),
                "{ip}: silence: {silent}"
            );
        }
        assert_eq!(scene.reply(("none.example", 80)), socks::HOST_UNREACHABLE);
    }
}

#[test]
fn long_answers_of_the_name_server_pass_over_tcp() {
    if !can_run(LAB) || !can_run(&[Need::Tun, Need::Tool("dig")]) {
        return;
    }
    let scene = Scene::tun("");
    // the gateway of the inner network answers for the server's resolver, also to programs that ask it themselves
    let answer = scene.lab.client.block_on(|| async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = socks::connect(PROXY, SocketAddr::from(([10, 86, 0, 1], 53))).await.expect("connects");
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04long\x07example\x00\x00\x10\x00\x01";
        stream.write_u16(u16::try_from(query.len()).expect("short")).await.expect("writes");
        stream.write_all(query).await.expect("writes");
        let length = stream.read_u16().await.expect("reads");
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.expect("reads");
        answer
    });
    assert!(
        answer.len() > 4000 && answer.starts_with(b"\x12\x34"),
        "{} bytes",
        answer.len()
    );
}

#[test]
fn server_host_is_as_before_after_a_stop() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let mut scene = Scene::tun("");
    assert!(scene.curl(&scene.four.url("/peer")).status.success());
    let running = snapshot(&scene.lab.server);
    let (status, took) = scene.server.stop();
    assert!(
        status.success() && took < Duration::from_secs(3),
        "{status} after {took:?}"
    );
    let stopped = snapshot(&scene.lab.server);
    // the same host, on which no server ever ran
    let untouched = snapshot(&Lab::new().server);
    assert_ne!(running, untouched, "the running server changes something");
    assert_same(&untouched, &stopped);
}

#[test]
fn server_host_is_as_before_after_a_kill_and_a_new_start() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let mut scene = Scene::tun("");
    assert!(scene.curl(&scene.four.url("/peer")).status.success());
    scene.server.kill();
    let mut server =
        scene
            .workdir
            .start_server(&scene.lab.server, User::Same, &scene.server_config);
    let (status, _) = server.stop();
    assert!(status.success(), "{status}");
    assert_same(&snapshot(&Lab::new().server), &snapshot(&scene.lab.server));
}

#[test]
fn server_whose_interface_is_switched_off_or_bared_puts_it_right_and_flows_go_on() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let scene = Scene::tun("");
    let place = &scene.lab.server;
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let state = || {
        let routes = "for f in -4 -6; do ip $f route show table all dev adit0; ip -br $f address show adit0; done
            cat /sys/class/net/adit0/mtu";
        sorted(place.shell(routes))
    };
    let before = state();
    for change in [
        "ip link set adit0 down",
        "ip address flush dev adit0",
        "ip link set adit0 mtu 1280",
    ] {
        place.run(change);
        let mended = wait_for(SOON, || (state() == before).then_some(()));
        assert!(mended.is_some(), "{change}: {:?}", state());
        for origin in [&scene.four, &scene.six] {
            let page = scene.curl(&origin.url("/peer"));
            assert!(page.status.success(), "{change}: {}", page.text());
        }
    }
}

#[test]
fn server_whose_host_switches_ipv6_off_says_so_and_has_it_again_with_the_host() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let mut scene = Scene::tun("");
    let addresses = |scene: &Scene| scene.lab.server.shell("ip -br address show adit0");
    let before = addresses(&scene);
    let come = |scene: &Scene| wait_for(SOON, || (addresses(scene) == before).then_some(()));
    // Off for this interface alone: a mistake.
    let sysctl = |scene: &Scene, set: &str| scene.lab.server.run(&format!("sysctl -qw {set}"));
    sysctl(&scene, "net.ipv6.conf.adit0.disable_ipv6=1");
    assert!(come(&scene).is_some(), "{}", addresses(&scene));
    let page = scene.curl(&scene.six.url("/peer"));
    assert!(page.status.success(), "{}", page.text());
    // Off for the host: its owner's wish.
    sysctl(&scene, "net.ipv6.conf.all.disable_ipv6=1");
    let words = "IPv6 has been switched off on this host";
    let said = || scene.server.process().text().contains(words).then_some(());
    assert!(wait_for(SOON, said).is_some());
    assert!(!addresses(&scene).contains("fd86"), "{}", addresses(&scene));
    let page = scene.curl(&scene.four.url("/peer"));
    assert!(page.status.success(), "{}", page.text());
    sysctl(&scene, "net.ipv6.conf.all.disable_ipv6=0");
    assert!(come(&scene).is_some(), "{}", addresses(&scene));
}

#[test]
fn server_whose_interface_is_deleted_says_so_leaves_nothing_and_starts_again() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let mut scene = Scene::tun("");
    assert!(scene.curl(&scene.four.url("/peer")).status.success());
    scene.lab.server.run("ip link del adit0");
    let status = scene.server.process().wait(SOON).expect("it ends");
    let said = scene.server.process().text();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("somebody has deleted the interface adit0"),
        "{said}"
    );
    assert_same(&snapshot(&Lab::new().server), &snapshot(&scene.lab.server));
    let (workdir, config) = (&scene.workdir, &scene.server_config);
    let _server = workdir.start_server(&scene.lab.server, User::Same, config);
    let page = wait_for(SOON, || {
        let page = scene.curl(&scene.four.url("/peer"));
        page.status.success().then_some(())
    });
    page.expect("the client comes back");
}

#[test]
fn forwarding_that_was_on_stays_on() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let (lab, workdir) = (Lab::new(), Workdir::new());
    lab.server.run("sysctl -qw net.ipv4.ip_forward=1");
    lab.server.nft(
        "table inet theirs {\nchain mine { type filter hook output priority 5; counter; }\n}\n",
    );
    let before = snapshot(&lab.server);
    let key = workdir.key("server.key", User::Same);
    let config = workdir.server(
        "server.yaml",
        &key,
        User::Same,
        &ServerConfig {
            listen: vec![format!("tcp://{SERVER4}:7443")],
            clients: vec![(
                "laptop".into(),
                workdir.key("client.key", User::Same).public,
            )],
            ..ServerConfig::tun_egress()
        },
    );
    let mut server = workdir.start_server(&lab.server, User::Same, &config);
    server.stop();
    assert_same(&before, &snapshot(&lab.server));
}

#[test]
fn two_servers_share_a_host() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let (lab, workdir) = (Lab::new(), Workdir::new());
    let key = workdir.key("server.key", User::Same);
    let client = workdir.key("client.key", User::Same).public;
    let mut servers: Vec<_> = [
        (7443, "adit0", "10.86.0.0/24", "fd86::/64"),
        (7444, "adit1", "10.87.0.0/24", "fd87::/64"),
    ]
    .into_iter()
    .map(|(port, device, network, network6)| {
        let config = workdir.server(
            &format!("{device}.yaml"),
            &key,
            User::Same,
            &ServerConfig {
                listen: vec![format!("tcp://{SERVER4}:{port}")],
                clients: vec![("laptop".into(), client.clone())],
                network: network.into(),
                network6: network6.into(),
                more: format!("tun: {{name: {device}}}"),
                ..ServerConfig::tun_egress()
            },
        );
        workdir.start_server(&lab.server, User::Same, &config)
    })
    .collect();
    // the first to go leaves the other its forwarding
    servers.remove(0).stop();
    assert_eq!(lab.server.run("sysctl -n net.ipv4.ip_forward").trim(), "1");
    assert!(lab.server.run("ip -o link show").contains("adit1"));
    servers.remove(0).stop();
    assert_same(&snapshot(&Lab::new().server), &snapshot(&lab.server));
}

#[test]
fn packets_between_clients_are_dropped_unless_allowed() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let (lab, workdir) = (Lab::new(), Workdir::new());
    let lane = format!("tcp://{SERVER4}:7443");
    let server_key = workdir.key("server.key", User::Same);
    let keys = ["one.key", "two.key"].map(|name| workdir.key(name, User::Nobody));
    let addresses = vec![Ipv4Addr::new(10, 86, 0, 8), Ipv4Addr::new(10, 86, 0, 9)];
    // the other client's stack refuses a connection that reaches it; that tells whether one does
    for (more, reply) in [
        ("", socks::NOT_ALLOWED),
        ("client_to_client: true", socks::CONNECTION_REFUSED),
    ] {
        let config = workdir.server(
            "server.yaml",
            &server_key,
            User::Same,
            &ServerConfig {
                listen: vec![lane.clone()],
                clients: vec![
                    ("one".into(), keys[0].public.clone()),
                    ("two".into(), keys[1].public.clone()),
                ],
                addresses: addresses.clone(),
                more: more.into(),
                ..ServerConfig::tun_egress()
            },
        );
        let _server = workdir.start_server(&lab.server, User::Same, &config);
        let _clients = [0_u16, 1].map(|index| {
            let config = workdir.client(
                &format!("client{index}.yaml"),
                &keys[usize::from(index)],
                &ClientConfig {
                    server: vec![lane.clone()],
                    server_key: server_key.public.clone(),
                    proxy: (Ipv4Addr::LOCALHOST, 1080 + index).into(),
                    more: String::new(),
                },
            );
            workdir.start_client(&lab.client, User::Nobody, &config)
        });
        let target = SocketAddr::from((addresses[1], 80));
        let result = lab.client.block_on(move || socks::connect(PROXY, target));
        assert!(
            matches!(result, Err(SocksError::Refused(code)) if code == reply),
            "{more:?}: {result:?}"
        );
    }
}

#[test]
fn open_flow_does_not_keep_the_server_from_stopping() {
    if !can_run(LAB) || !can_run(&[Need::Tun]) {
        return;
    }
    let mut scene = Scene::tun("");
    let echo = Origin::echo(&scene.lab.internet, (ORIGIN4, 7).into());
    let target = echo.address();
    let held = scene.lab.client.block_on(move || async move {
        let mut stream = socks::connect(PROXY, target).await.expect("connects");
        flows::echo(&mut stream, b"x", SOON).await.expect("echoes");
        stream.into_std().expect("an open socket")
    });
    let (status, took) = scene.server.stop();
    assert!(
        status.success() && took < Duration::from_secs(3),
        "{status} after {took:?}"
    );
    let (status, took) = scene.client.stop();
    assert!(
        status.success() && took < Duration::from_secs(3),
        "{status} after {took:?}"
    );
    drop(held);
}

/// Everything of a host that a server with egress `tun` may change, as text by kind.
fn snapshot(place: &Place) -> Vec<(&'static str, String)> {
    let clean = |text: String| {
        // what counts packets or seconds changes by itself
        let words = |line: &str| {
            let mut skip = 0;
            line.split_whitespace()
                .filter(|word| {
                    if matches!(*word, "packets" | "bytes" | "expires" | "handle") {
                        skip = 3;
                    }
                    skip = u8::saturating_sub(skip, 1);
                    skip == 0
                })
                .collect::<Vec<_>>()
                .join(" ")
        };
        text.lines().map(words).collect::<Vec<_>>().join("\n")
    };
    let mut devices: Vec<String> = place
        .run("ip -brief address show")
        .lines()
        .map(|line| {
            line.split_whitespace()
                .filter(|word| !word.starts_with("fe80:"))
                .collect::<Vec<_>>()
                .join(" ")
        })
        // an index of the other end differs from lab to lab
        .map(|line| {
            line.split_once('@').map_or(line.clone(), |(name, rest)| {
                format!(
                    "{name} {}",
                    rest.split_once(' ').map_or("", |(_, rest)| rest)
                )
            })
        })
        .collect();
    devices.sort();
    let routes = |text: String| {
        let mut lines: Vec<_> = clean(text)
            .lines()
            .filter(|line| !line.contains("fe80:"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines.join("\n")
    };
    let sysctls = place.shell("sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6)\\.(ip_forward|conf\\.)' | grep -vE 'mc_forwarding|stable_secret' | sort");
    vec![
        ("nftables", clean(place.run("nft list ruleset"))),
        ("routes", routes(place.run("ip -4 route show table all"))),
        ("routes6", routes(place.run("ip -6 route show table all"))),
        ("rules", place.run("ip rule show")),
        ("rules6", place.run("ip -6 rule show")),
        ("devices", devices.join("\n")),
        ("sysctls", sysctls),
    ]
}

/// # Panics
///
/// With the lines that differ, if any do.
fn assert_same(before: &[(&'static str, String)], after: &[(&'static str, String)]) {
    for ((kind, before), (_, after)) in before.iter().zip(after) {
        let gone: Vec<_> = before
            .lines()
            .filter(|line| !after.contains(line))
            .collect();
        let new: Vec<_> = after
            .lines()
            .filter(|line| !before.contains(line))
            .collect();
        assert!(before == after, "{kind}: gone {gone:#?}, new {new:#?}");
    }
}
