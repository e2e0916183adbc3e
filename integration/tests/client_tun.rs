//! `adit client --tun`: the whole host in the tunnel, and as it was when that is over.

use std::{net::IpAddr, path::PathBuf, process::Command, time::Duration};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    curl::{self, Via},
    dns::{Dns, Zone},
    namespaces::{
        CLIENT4, CLIENT6, EGRESS4, EGRESS6, Lab, ORIGIN4, ORIGIN6, PRIVATE4, SERVER4, SERVER6,
    },
    origin::Origin,
    process::{self, Finished, Process},
    scene::{self, Couple, Internet, PROXY},
    skip::{Need, can_run},
    sniff::Sniffer,
};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// What all of these need.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tun,
    Need::Tool("ip"),
    Need::Tool("nft"),
    Need::Tool("curl"),
    Need::Tool("ping"),
    Need::Tool("dig"),
];
/// The hang guard of one step.
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7443;

/// An address of the server host that the client has no route to but the default one.
const FAR: &str = "12.0.0.1";

/// A lab with a server, and a client host whose own way to the Internet leads nowhere, and is watched.
struct Scene {
    lab: Lab,
    _server: Adit,
    client_config: PathBuf,
    workdir: Workdir,
    dns: Dns,
    four: Origin,
    six: Origin,
}

impl Scene {
    /// `lane` is where the server is reached, `more` are further lines of the client's configuration.
    fn new(lane: &str, more: &str) -> Self {
        Self::with(lane, more, ServerConfig::tun_egress())
    }

    fn with(lane: &str, more: &str, config: ServerConfig) -> Self {
        let lab = Lab::new();
        let Internet { dns, four, six } = Internet::of(&lab, |zone| zone);
        let workdir = Workdir::new();
        let scheme = lane.split("://").next().expect("a scheme");
        let server = ServerConfig {
            listen: vec![format!("{scheme}://0.0.0.0:{PORT}")],
            ..config
        };
        let client = ClientConfig {
            more: more.to_owned(),
            ..ClientConfig::to(&[lane.to_owned()])
        };
        let files = Couple::write(&workdir, [User::Same; 2], server, client);
        // its own /etc and state folder; a way out by which leaks would leave; a name server that is not the tunnel's
        lab.client.shell(&format!(
            "mkdir {0}/etc; cp -a /etc/. {0}/etc; mount --bind {0}/etc /etc; mount -t tmpfs tmpfs /var/lib
             printf 'nameserver {SERVER4}\\noptions timeout:1 attempts:1\\n' > /etc/resolv.conf
             ip route add default via {SERVER4} dev c0; ip -6 route add default via {SERVER6} dev c0",
            lab.client.folder().expect("a host of the lab").display()
        ));
        // its own link-local addresses are not there at once
        wait_for("duplicates are looked for", || {
            let addresses = lab.client.run("ip -6 address show dev c0 scope link");
            addresses.contains("fe80") && !addresses.contains("tentative")
        });
        let server = workdir.start_server(&lab.server, User::Same, &files.server);
        Self {
            lab,
            _server: server,
            client_config: files.client,
            workdir,
            dns,
            four,
            six,
        }
    }

    fn udp(more: &str) -> Self {
        Self::new(&format!("udp://{SERVER4}:{PORT}"), more)
    }

    /// Starts the client, and returns it when the host goes through the tunnel.
    fn client(&self) -> Adit {
        let mut adit = self.begin();
        adit.expect_ready();
        adit
    }

    /// The inner addresses that the host has.
    fn addresses(&self) -> String {
        let shown = "ip -brief address show dev adit0 scope global";
        self.lab.client.run(shown)
    }

    fn begin(&self) -> Adit {
        self.workdir.start(
            &self.lab.client,
            User::Same,
            "client",
            &[
                "client",
                "--tun",
                "-c",
                path(&self.client_config),
                "--log-level",
                "debug",
            ],
        )
    }

    fn adit(&self, arguments: &[&str]) -> Finished {
        self.workdir.run_as(&self.lab.client, User::Same, arguments)
    }

    /// What a program of the client host sees at the origin; empty if it does not get there.
    fn seen(&self, url: &str) -> String {
        let mut curl = self.lab.client.command("curl");
        curl.args(["-sS", "-m", "15", url]);
        process::run(curl, SOON).stdout
    }

    /// Everything of the client host that a tunnel changes, as it is told byte for byte.
    fn host(&self) -> String {
        self.lab.client.shell(
            "for f in -4 -6; do ip $f rule; ip $f route show table all; done; ip -o link; nft list ruleset
             ls -lai --time-style=full-iso /etc | grep resolv; cat /etc/resolv.conf
             cat /proc/sys/net/ipv4/conf/all/src_valid_mark /proc/sys/net/ipv4/ip_forward",
        )
    }
}

#[track_caller]
fn wait_for(what: &str, done: impl FnMut() -> bool) {
    scene::wait_for(what, SOON, done);
}

#[test]
fn whole_host_goes_through_the_tunnel_and_is_as_it_was_afterwards() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let before = scene.host();
    let mut client = scene.client();
    let mut sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
    for (url, through) in [
        (scene.four.url("/peer"), [&four, &four]),
        (scene.six.url("/peer"), [&six, &six]),
        ("http://four.example/peer".into(), [&four, &four]),
        ("http://both.example/peer".into(), [&four, &six]),
    ] {
        let got = scene.seen(&url);
        assert!(
            through.iter().any(|peer| got.starts_with(peer.as_str())),
            "{url}: {got:?}"
        );
    }
    place.run(&format!("ping -c 2 -i 0.2 {ORIGIN4}"));
    place.run(&format!("ping -c 2 -i 0.2 {ORIGIN6}"));
    assert_eq!(
        place.run("dig +short four.example").trim(),
        ORIGIN4.to_string()
    );
    let asked = scene.dns.asked();
    assert!(
        asked
            .iter()
            .all(|question| question.peer.ip() == IpAddr::from(EGRESS4)),
        "{asked:?}"
    );
    // the proxy works beside it, by a session of its own
    let got = curl::get(place, Via::Socks5h(PROXY), "http://four.example/peer", &[]);
    assert!(got.stdout.starts_with(&four), "{got:?}");
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(sniffer.tunnelled() > 0);
    // what the host has routes of its own for is reached as ever
    sniffer.forget();
    place.run(&format!("ping -c 1 {SERVER4}"));
    wait_for("the neighbour is pinged", || !sniffer.strange().is_empty());

    // both sessions are shown, that of the host and that of the proxy
    let shown = scene.adit(&["status", "-c", path(&scene.client_config)]);
    for carries in ["\nhost  ", "\nproxy "] {
        assert!(shown.stdout.contains(carries), "{}", shown.text());
    }
    // another is refused in words
    let second = scene.workdir.file(
        "second.yaml",
        &std::fs::read_to_string(&scene.client_config).expect("the test wrote it"),
    );
    let refused = scene.adit(&[
        "client",
        "--tun",
        "-c",
        path(&second),
        "--proxy",
        "127.0.0.1:1081",
    ]);
    assert!(
        refused.stderr.contains("is in use by process") && refused.stderr.contains("without --tun"),
        "{refused:?}"
    );
    let mut elsewhere = place.command(scene.workdir.path().join("adit"));
    elsewhere
        .args([
            "client",
            "--tun",
            "-c",
            path(&second),
            "--proxy",
            "127.0.0.1:1081",
        ])
        .env("ADIT_TUN_STATE_DIR", scene.workdir.path().join("elsewhere"));
    let refused = process::run(elsewhere, SOON);
    assert!(
        refused
            .stderr
            .contains("another adit client leads this host"),
        "{refused:?}"
    );
    // nor is what a living one has changed undone
    let refused = scene.adit(&["cleanup", "-c", path(&scene.client_config)]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(
        refused.stderr.contains("is in use by process"),
        "{refused:?}"
    );
    assert!(scene.seen(&scene.four.url("/peer")).starts_with(&four));

    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}

#[test]
fn killed_client_is_cleaned_up_after_byte_for_byte() {
    if !can_run(NEEDS) {
        return;
    }
    let kill_switch = "tun: {kill_switch: true, exclude: [192.168.0.0/16]}";
    let split = "tun: {routes: [11.0.0.0/24], dns: true}";
    for (what, more, is_link) in [
        ("plain", "tun: true", false),
        ("symbolic link", "tun: true", true),
        ("kill switch", kill_switch, false),
        ("split", split, false),
    ] {
        let scene = Scene::udp(more);
        if is_link {
            scene.lab.client.shell(
                "mkdir /etc/elsewhere; mv /etc/resolv.conf /etc/elsewhere/stub; ln -s elsewhere/stub /etc/resolv.conf",
            );
        }
        let before = scene.host();
        // by the command
        let mut client = scene.client();
        assert_ne!(scene.host(), before);
        let addresses = scene.addresses();
        client.kill();
        let left = scene.host();
        assert_ne!(left, before, "{what}");
        let cleaned = scene.adit(&["cleanup"]);
        assert!(cleaned.status.success(), "{what}: {cleaned:?}");
        assert!(
            cleaned.stdout.contains("undone: /etc/resolv.conf"),
            "{cleaned:?}"
        );
        assert_eq!(scene.host(), before, "{what}: {cleaned:?}");
        let again = scene.adit(&["cleanup"]);
        assert!(
            again.stdout.contains("nothing was left behind") && again.stdout.contains("looked in "),
            "{again:?}"
        );
        // by the next start, which is killed as well, and by one more
        let mut client = scene.client();
        assert_eq!(scene.addresses(), addresses, "{what}: as before the kill");
        client.kill();
        let mut client = scene.client();
        assert_eq!(scene.addresses(), addresses, "{what}: as before the kill");
        assert!(
            scene
                .seen(&scene.four.url("/peer"))
                .starts_with(&format!("{EGRESS4}:"))
        );
        assert!(client.stop().0.success());
        assert_eq!(scene.host(), before, "{what}");
    }
}

/// A program that tries everything that could leak, over and over, until the file `end` is there.
fn restless(scene: &Scene) -> (Process, PathBuf) {
    let end = scene.workdir.path().join("end");
    let mut command: Command = scene.lab.client.command("bash");
    command.args([
        "-c",
        &format!(
            "export RES_OPTIONS='timeout:1 attempts:1'
             until test -e {end}; do
               curl -sS -m 1 {four} & curl -sS -m 1 {six} & curl -sS -m 1 http://four.example/ & getent ahosts both.example &
               ping -c 1 -W 1 {ORIGIN4} & ping -c 1 -W 1 {ORIGIN6} & ping -c 1 -W 1 {SERVER4} & ping -c 1 -W 1 {SERVER6} &
               dig +tries=1 +time=1 @{SERVER4} four.example & dig +tries=1 +time=1 @{SERVER6} four.example &
               ping -I c0 -c 1 -W 1 {ORIGIN4} & curl -sS -m 1 --interface c0 {six} &
               (echo x > /dev/udp/{SERVER4}/53) & (echo x > /dev/udp/224.0.0.251/5353) & wait; echo round
             done 2>&1",
            end = end.display(),
            four = scene.four.url("/peer"),
            six = scene.six.url("/peer"),
        ),
    ]);
    (Process::spawn("restless programs", command), end)
}

fn rounds(process: &Process) -> usize {
    process
        .lines()
        .iter()
        .filter(|line| *line == "round")
        .count()
}

#[test]
fn nothing_leaks_with_the_kill_switch_while_the_tunnel_is_down_or_the_client_dead() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: {kill_switch: true}");
    let place = &scene.lab.client;
    let before = scene.host();
    let sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    // the sniffer sees what there is to see
    place.try_run(&format!("ping -c 1 -W 1 {ORIGIN4}"));
    place.try_run(&format!("ping -c 1 -W 1 {ORIGIN6}"));
    wait_for("both families are seen to leak", || {
        let strange = sniffer.strange();
        let to = |address: IpAddr| {
            strange
                .iter()
                .any(|line| line.contains(&format!("→ {address}")))
        };
        to(ORIGIN4.into()) && to(ORIGIN6.into())
    });
    drop(sniffer);

    let mut client = scene.client();
    let sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    let (mut process, end) = restless(&scene);
    let through = format!("{EGRESS4}:");
    assert!(
        process
            .wait_for_line(SOON, |line| line.starts_with(&through))
            .is_some(),
        "{}",
        process.text()
    );
    assert_eq!(sniffer.strange(), Vec::<String>::new(), "while it is up");
    // cut at the other side, so that the client's own datagrams are seen to go on
    scene.lab.server.cut_datagrams(PORT);
    let begun = rounds(&process);
    wait_for("it is restless while cut", || rounds(&process) > begun + 4);
    assert_eq!(sniffer.strange(), Vec::<String>::new(), "while it is cut");
    assert!(sniffer.tunnelled() > 0);
    scene.lab.server.mend();
    wait_for("the tunnel is back", || {
        scene.seen(&scene.four.url("/peer")).starts_with(&through)
    });

    client.kill();
    let begun = rounds(&process);
    wait_for("it is restless with the client dead", || {
        rounds(&process) > begun + 3
    });
    // a start that finds what is left has no gap
    let mut client = scene.client();
    let begun = rounds(&process);
    wait_for("it is restless with the next client", || {
        rounds(&process) > begun + 2
    });
    client.kill();
    assert_eq!(sniffer.strange(), Vec::<String>::new(), "after a crash");
    std::fs::write(end, "").expect("writes into its own folder");
    assert!(process.wait(SOON).is_some());
    drop(sniffer);
    let cleaned = scene.adit(&["cleanup", "-c", path(&scene.client_config)]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(scene.host(), before);
}

#[test]
fn kill_switch_stays_when_the_tunnel_fails_and_when_no_other_can_start() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: {kill_switch: true}");
    let place = &scene.lab.client;
    let before = scene.host();
    let mut client = scene.client();
    let is_closed = || {
        let table = place.run("nft list ruleset").contains("chain leaving");
        let ping = format!("ping -c 1 -W 1 {SERVER4}");
        assert_eq!(table, !place.try_run(&ping).status.success());
        table
    };
    // somebody takes the device away: the client cannot go on
    place.run("ip link del adit0");
    assert!(
        client
            .process()
            .wait(SOON)
            .is_some_and(|status| !status.success())
    );
    assert!(is_closed());
    // nor can the next begin
    place.shell("mount -t tmpfs tmpfs /dev/net");
    let refused = scene.adit(&["client", "--tun", "-c", path(&scene.client_config)]);
    assert!(
        refused.stderr.contains("the kill switch stays"),
        "{refused:?}"
    );
    assert!(is_closed());
    place.run("umount /dev/net");
    assert!(scene.adit(&["cleanup"]).status.success());
    assert_eq!(scene.host(), before);
    // an end in order takes it away, too
    let mut client = scene.client();
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}

#[test]
fn nobody_without_privilege_can_disturb_the_lock_on_the_host() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let before = scene.host();
    // who looks at names of sockets could be kept out by whoever has the name, and lets nobody in any more
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let held = place.spawn(move || {
        let name = SocketAddrUnix::new_abstract_name(b"adit.host-tunnel").expect("a name");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            socket.expect("a socket")
        };
        let listener = open();
        bind(&listener, &name).expect("it is free");
        listen(&listener, 0).expect("listens");
        let mut waiting = Vec::new();
        loop {
            let caller = open();
            if connect(&caller, &name).is_err() {
                break;
            }
            waiting.push(caller);
        }
        assert!(!waiting.is_empty());
        let _ended = wait.recv();
        drop(listener);
    });
    let mut client = scene.client();
    let seen = scene.seen(&scene.four.url("/peer"));
    assert!(seen.starts_with(&format!("{EGRESS4}:")), "{seen:?}");
    // an ordinary user can neither take it nor release it
    for line in [
        "add table inet adit_host_lock",
        "delete table inet adit_host_lock",
        "flush ruleset",
    ] {
        let mut nft = scene.workdir.program_as(place, User::Nobody, "nft");
        nft.args(line.split(' '));
        let refused = process::run(nft, SOON);
        assert!(!refused.status.success(), "{line}: {}", refused.text());
    }
    let mut second = place.command(scene.workdir.path().join("adit"));
    (second.args(["client", "--tun", "-c", path(&scene.client_config)]))
        .args(["--proxy", "127.0.0.1:1081"])
        .env("ADIT_TUN_STATE_DIR", scene.workdir.path().join("elsewhere"));
    let second = process::run(second, SOON);
    let why = "another adit client leads this host";
    assert!(second.stderr.contains(why), "{}", second.text());
    drop(done);
    held.join().expect("no panic");
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
}

#[test]
fn interface_that_somebody_switches_off_is_switched_on_again() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let mut client = scene.client();
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let routes = || sorted(place.shell("for f in -4 -6; do ip $f route show table all; done"));
    let before = routes();
    place.run("ip link set adit0 down");
    wait_for("it is up, with its routes", || routes() == before);
    let seen = scene.seen(&scene.four.url("/peer"));
    assert!(seen.starts_with(&format!("{EGRESS4}:")), "{seen:?}");
    assert!(client.stop().0.success());
}

#[test]
fn root_that_becomes_an_ordinary_user_keeps_what_the_tunnel_needs() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("tun: true\nuser: 10001:10001");
    let before = scene.host();
    let mut client = scene.client();
    let through = format!("{EGRESS4}:");
    assert!(scene.seen("http://four.example/peer").starts_with(&through));
    assert!(client.stop().0.success());
    assert_eq!(scene.host(), before);
    let mut client = scene.client();
    client.kill();
    let cleaned = scene.adit(&["cleanup"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(scene.host(), before);
}

#[test]
fn ipv6_does_not_leak_beside_a_tunnel_that_has_none() {
    if !can_run(NEEDS) {
        return;
    }
    let config = ServerConfig {
        network6: "off".into(),
        ..ServerConfig::tun_egress()
    };
    let scene = Scene::with(&format!("udp://{SERVER4}:{PORT}"), "", config);
    let place = &scene.lab.client;
    let mut client = scene.client();
    let sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    let six = place.try_run(&format!("curl -sS -m 2 {}", scene.six.url("/peer")));
    assert!(!six.status.success(), "{six:?}");
    let ping = place.try_run(&format!("ping -c 1 -W 1 {ORIGIN6}"));
    assert!(!ping.status.success(), "{ping:?}");
    assert!(
        scene
            .seen(&scene.four.url("/peer"))
            .starts_with(&format!("{EGRESS4}:"))
    );
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(client.stop().0.success());
}

#[test]
fn split_tunnel_carries_what_is_listed_and_leaves_the_rest_outside() {
    if !can_run(NEEDS) {
        return;
    }
    let config = ServerConfig {
        allow: vec!["10.77.2.0/24".into()],
        ..ServerConfig::tun_egress()
    };
    let more = format!(
        "tun: {{routes: [11.0.0.0/24, 10.77.0.0/16], exclude: [\"{SERVER4}\", 10.77.3.0/24]}}"
    );
    let scene = Scene::with(&format!("udp://{SERVER4}:{PORT}"), &more, config);
    let place = &scene.lab.client;
    let _client = scene.client();
    let mut sniffer = Sniffer::start_on(place, "c0", SERVER4.into(), PORT);
    assert!(
        scene
            .seen(&scene.four.url("/peer"))
            .starts_with(&format!("{EGRESS4}:"))
    );
    place.run(&format!("ping -c 1 {PRIVATE4}"));
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    // outside: an exclusion within a network of the list, another family, and whatever is not listed
    place.run(&format!("ping -c 1 {SERVER4}"));
    for address in [
        "10.77.3.1".to_owned(),
        ORIGIN6.to_string(),
        "12.0.0.1".to_owned(),
    ] {
        sniffer.forget();
        place.try_run(&format!("ping -c 1 -W 1 {address}"));
        wait_for("it goes outside", || {
            sniffer
                .strange()
                .iter()
                .any(|line| line.contains(&format!("→ {address}")))
        });
    }
    // names stay the host's own to ask, unless it was said otherwise
    assert!(
        place
            .run("cat /etc/resolv.conf")
            .contains(&SERVER4.to_string())
    );
}

#[test]
fn tunnel_goes_on_when_an_interface_comes_back_with_another_address() {
    if !can_run(NEEDS) {
        return;
    }
    for scheme in ["udp", "tcp"] {
        let scene = Scene::new(&format!("{scheme}://{SERVER4}:{PORT}"), "");
        let place = &scene.lab.client;
        let _client = scene.client();
        let mut curl = place.command("curl");
        let url = scene.four.url("/bytes/4000000?seed=9");
        curl.args([
            "-sS",
            "--limit-rate",
            "500k",
            "-m",
            "60",
            "-w",
            "\n%{http_code} %{size_download}",
            "-o",
            "/dev/null",
            &url,
        ]);
        let mut flow = Process::spawn("curl", curl);
        wait_for("the flow stands", || {
            place.run("ss -Htn").contains(&ORIGIN4.to_string())
        });
        place.shell(&format!(
            "ip link set c0 down; ip address del {CLIENT4}/24 dev c0; ip address add 10.77.1.77/24 dev c0; ip link set c0 up
             ip route add default via {SERVER4} dev c0"
        ));
        assert!(
            flow.wait(Duration::from_secs(90))
                .is_some_and(|status| status.success()),
            "{scheme}: {}",
            flow.text()
        );
        let is_whole = |line: &str| line == "200 4000000";
        assert!(
            flow.wait_for_line(SOON, is_whole).is_some(),
            "{}",
            flow.text()
        );
        assert!(
            scene
                .seen("http://four.example/peer")
                .starts_with(&format!("{EGRESS4}:"))
        );
    }
}

#[test]
fn lanes_are_answered_through_a_strict_reverse_path_filter() {
    if !can_run(NEEDS) {
        return;
    }
    for scheme in ["udp", "tcp"] {
        // a server that is reached by the default route, as servers are
        let scene = Scene::new(&format!("{scheme}://{FAR}:{PORT}"), "");
        let place = &scene.lab.client;
        scene
            .lab
            .server
            .run(&format!("ip address add {FAR}/32 dev s0"));
        let filter = |name: &str, value: u8| {
            place.shell(&format!(
                "echo {value} > /proc/sys/net/ipv4/conf/all/{name}"
            ));
        };
        filter("rp_filter", 1);
        let mut client = scene.client();
        let through = format!("{EGRESS4}:");
        let goes = || scene.seen(&scene.four.url("/peer")).starts_with(&through);
        assert!(goes(), "{scheme}");
        // and it is that which makes it so; of an open TCP connection the kernel remembers the way
        if scheme == "udp" {
            filter("src_valid_mark", 0);
            assert!(!goes());
            filter("src_valid_mark", 1);
            wait_for("the lane is back", goes);
        }
        assert!(client.stop().0.success());
    }
}

/// Has the server host speak to a service of the client host from `from`, to which only the default route leads.
fn answered(scene: &Scene, from: &str, to: &str) -> bool {
    let ping = format!("ping -I {from} -c 1 -W 2 {to}");
    let url = match to.contains(':') {
        true => format!("http://[{to}]/peer"),
        false => format!("http://{to}/peer"),
    };
    let curl = format!("curl -sS -m 5 --interface {from} {url}");
    let is_pinged = scene.lab.server.try_run(&ping).status.success();
    let is_served = scene.lab.server.try_run(&curl).stdout.contains(from);
    assert_eq!(is_pinged, is_served, "{to}");
    is_served
}

#[test]
fn whoever_speaks_to_the_host_from_outside_is_answered_there_but_for_a_kill_switch() {
    if !can_run(NEEDS) {
        return;
    }
    const FAR6: &str = "fd12::1";
    for (more, is_answered) in [("", true), ("tun: {kill_switch: true}", false)] {
        let scene = Scene::udp(more);
        let (place, server) = (&scene.lab.client, &scene.lab.server);
        server.run(&format!("ip address add {FAR}/32 dev s0"));
        server.run(&format!("ip -6 address add {FAR6}/128 dev s0 nodad"));
        let _four = Origin::http(place, (CLIENT4, 80).into());
        let _six = Origin::http(place, (CLIENT6, 80).into());
        place.shell("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
        let both = |want: bool, when: &str| {
            assert_eq!(answered(&scene, FAR, &CLIENT4.to_string()), want, "{when}");
            assert_eq!(answered(&scene, FAR6, &CLIENT6.to_string()), want, "{when}");
        };
        both(true, "before");
        let mut client = scene.client();
        both(is_answered, "with the tunnel");
        // what the host begins goes through the tunnel all the same
        let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
        assert!(scene.seen(&scene.four.url("/peer")).starts_with(&four));
        assert!(scene.seen(&scene.six.url("/peer")).starts_with(&six));
        assert!(client.stop().0.success());
        both(true, "afterwards");
    }
}

#[test]
fn rules_that_somebody_takes_away_come_back() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let mut client = scene.client();
    let rules = || place.shell("ip -4 rule; ip -6 rule");
    let ours = rules();
    // as systemd-networkd does with rules that it has not made
    for family in ["-4", "-6"] {
        for priority in [6865, 6866, 6867] {
            place.run(&format!("ip {family} rule del priority {priority}"));
        }
        wait_for("the rules are back", || rules() == ours);
    }
    assert!(client.stop().0.success());
}

#[test]
fn name_servers_that_somebody_writes_meanwhile_are_kept_and_come_back() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let mut client = scene.client();
    let ours = place.run("cat /etc/resolv.conf");
    assert!(ours.contains("nameserver 10.86.0.1"), "{ours}");
    // as a DHCP client does when it has another address
    place.shell(
        "ip address add 10.77.1.78/24 dev c0; sleep 1
         echo nameserver 192.0.2.1 > /etc/resolv.conf.new; mv /etc/resolv.conf.new /etc/resolv.conf",
    );
    wait_for("the tunnel's are back", || {
        place.run("cat /etc/resolv.conf") == ours
    });
    // in place, and with nothing else that changes
    place.shell("echo nameserver 192.0.2.1 > /etc/resolv.conf");
    wait_for("the tunnel's are back again", || {
        place.run("cat /etc/resolv.conf") == ours
    });
    assert_eq!(
        place.run("dig +short four.example").trim(),
        ORIGIN4.to_string()
    );
    assert!(client.stop().0.success());
    assert_eq!(place.run("cat /etc/resolv.conf"), "nameserver 192.0.2.1\n");
    assert!(!place.run("ls -a /etc").contains(".resolv"));
}

#[test]
fn file_of_a_container_is_written_to_and_gets_its_content_back() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    // what container engines do: a mount that no other file can take the name of
    place.shell("cp /etc/resolv.conf /etc/mounted; mount --bind /etc/mounted /etc/resolv.conf");
    let before = scene.host();
    let mut client = scene.client();
    assert_eq!(
        place.run("dig +short four.example").trim(),
        ORIGIN4.to_string()
    );
    client.kill();
    assert!(
        place
            .run("cat /etc/resolv.conf")
            .contains("nameserver 10.86.0.1")
    );
    let cleaned = scene.adit(&["cleanup"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(
        place.run("cat /etc/resolv.conf"),
        place.run("cat /etc/mounted")
    );
    let kept = place.shell("find /var/lib/adit -type f ! -name lock ! -name host.instance");
    assert_eq!(kept, "", "but by which instance the next one goes on");
    // the file was written to: all but its times is as before
    let timeless = |text: &str| -> Vec<String> {
        (text
            .lines()
            .filter(|line| !line.contains("-rw-"))
            .map(str::to_owned))
        .collect()
    };
    assert_eq!(timeless(&scene.host()), timeless(&before));
}

#[test]
fn host_asks_the_local_resolver_where_there_is_one() {
    if !can_run(NEEDS) {
        return;
    }
    let more = "dns: {listen: \"127.0.0.1:53\", records: [nas.home A 192.0.2.7]}";
    let scene = Scene::udp(more);
    let place = &scene.lab.client;
    let mut client = scene.client();
    assert!(
        place
            .run("cat /etc/resolv.conf")
            .contains("nameserver 127.0.0.1")
    );
    assert_eq!(place.run("dig +short nas.home").trim(), "192.0.2.7");
    assert!(
        scene
            .seen("http://four.example/peer")
            .starts_with(&format!("{EGRESS4}:"))
    );
    assert!(client.stop().0.success());
    // a file has no word for another port
    let refused = scene.adit(&[
        "client",
        "--tun",
        "-c",
        path(&scene.client_config),
        "--dns",
        "127.0.0.1:5353",
    ]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("set `dns: 127.0.0.1:53`"),
        "{refused:?}"
    );
}

#[test]
fn server_is_found_again_by_name_outside_the_tunnel() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::new(
        &format!("tcp://vpn.example:{PORT}"),
        "tun: {kill_switch: true}",
    );
    let zone = Zone::new().address("vpn.example", 0, SERVER4);
    let outside = Dns::start(&scene.lab.server, (SERVER4, 53).into(), zone);
    let _client = scene.client();
    assert!(
        scene
            .seen("http://four.example/peer")
            .starts_with(&format!("{EGRESS4}:"))
    );
    let asked = outside.asked().len();
    assert!(asked > 0);
    scene.lab.server.reset(PORT);
    wait_for("the name is asked for again", || {
        outside.asked().len() > asked
    });
    scene.lab.server.mend();
    wait_for("the tunnel is back", || {
        scene
            .seen("http://four.example/peer")
            .starts_with(&format!("{EGRESS4}:"))
    });
    // and for nothing else
    let asked = outside.asked();
    assert!(
        asked.iter().all(|question| question.name == "vpn.example"),
        "{asked:?}"
    );
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    if !can_run(NEEDS) || !can_run(&[Need::Tool("setpriv")]) {
        return;
    }
    let scene = Scene::udp("");
    let before = scene.host();
    let place = &scene.lab.client;
    let config = path(&scene.client_config);
    scene
        .workdir
        .give(&scene.workdir.path().join("client.key"), User::Nobody);
    let state = scene.workdir.state("nobody", User::Nobody);
    let mut command = scene.workdir.command(place, User::Nobody);
    command
        .args(["client", "--tun", "-c", config])
        .env("ADIT_TUN_STATE_DIR", &state);
    let refused = process::run(command, SOON);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused:?}");
    place.shell("mount -t tmpfs tmpfs /dev/net");
    let refused = scene.adit(&["client", "--tun", "-c", config]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("modprobe tun"), "{refused:?}");
    assert_eq!(scene.host(), before);
}
