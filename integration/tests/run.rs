//! `adit run`: commands of an ordinary user, whose packets go through the tunnel or nowhere.

use std::{
    fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    dns::{Dns, Zone},
    namespaces::{EGRESS4, EGRESS6, Lab, ORIGIN4, ORIGIN6, PRIVATE4, SERVER4},
    origin::{Certificate, Origin},
    process::{self, Finished, Process, Signal},
    skip::{Need, can_run},
    sniff::Sniffer,
    stream,
    terminal::Terminal,
};

/// What all of these need.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tun,
    Need::Tool("ip"),
    Need::Tool("curl"),
    Need::Tool("setpriv"),
];
/// What users run.
const PROGRAMS: &[Need] = &[
    Need::Tool("dig"),
    Need::Tool("ping"),
    Need::Tool("git"),
    Need::Tool("iperf3"),
];
/// The hang guard of one step.
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7443;

/// A lab with a server, and a client host where an ordinary user may open a TUN device.
struct Scene {
    lab: Lab,
    server: Adit,
    server_config: PathBuf,
    client_config: PathBuf,
    /// Options of every `adit run`.
    options: Vec<String>,
    workdir: Workdir,
    dns: Dns,
    four: Origin,
    six: Origin,
}

impl Scene {
    fn new(scheme: &str, user: User, config: ServerConfig) -> Self {
        let lab = Lab::new();
        let zone = Zone::new()
            .address("both.example", 60, ORIGIN4)
            .address("both.example", 60, ORIGIN6)
            .address("four.example", 60, ORIGIN4);
        let dns = Dns::start(&lab.internet, (ORIGIN4, 53).into(), zone);
        lab.server.set_resolver(ORIGIN4.into());
        // what a command would ask if it came by it: nobody is there, and it would be seen
        lab.client.set_resolver(SERVER4.into());
        let four = Origin::http(&lab.internet, (ORIGIN4, 80).into());
        let six = Origin::http(&lab.internet, (ORIGIN6, 80).into());
        let workdir = Workdir::new();
        let server_key = workdir.key("server.key", user);
        let client_key = workdir.key("client.key", User::Nobody);
        let lane = format!("{scheme}://{SERVER4}:{PORT}");
        let server_config = workdir.server(
            "server.yaml",
            &server_key,
            user,
            &ServerConfig {
                listen: vec![lane.clone()],
                clients: vec![("laptop".into(), client_key.public.clone())],
                ..config
            },
        );
        let client_config = workdir.client(
            "client.yaml",
            &client_key,
            &ClientConfig {
                server: vec![lane],
                server_key: server_key.public,
                proxy: SocketAddr::from(([127, 0, 0, 1], 1080)),
                more: String::new(),
            },
        );
        // as distributions ship it; some machines let nobody else open it
        lab.client
            .shell("mount -t tmpfs tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200");
        // as systemd has it; without it the egress `user` has no sockets for pings
        lab.server
            .shell("echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range");
        let server = workdir.start_server(&lab.server, user, &server_config);
        Self {
            lab,
            server,
            server_config,
            client_config,
            options: Vec::new(),
            workdir,
            dns,
            four,
            six,
        }
    }

    fn user(scheme: &str) -> Self {
        let config = ServerConfig {
            allow: Vec::new(),
            ..ServerConfig::user_egress()
        };
        Self::new(scheme, User::Nobody, config)
    }

    fn tun(scheme: &str) -> Self {
        Self::new(scheme, User::Same, ServerConfig::tun_egress())
    }

    /// `adit run` with options before the command.
    fn command_with(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.workdir.command(&self.lab.client, User::Nobody);
        run.args(["run", "-c", path(&self.client_config)])
            .args(&self.options)
            .args(options)
            .arg("--")
            .args(command);
        run
    }

    /// Starts a client, with further lines in its configuration, that every `adit run` shares from then on.
    fn shared(&mut self, more: &str) -> Adit {
        let mut text = fs::read_to_string(&self.client_config).expect("the test wrote it");
        text.push_str(more);
        fs::write(&self.client_config, text).expect("the test's own file");
        self.options = vec!["--share".into()];
        self.workdir
            .start_client(&self.lab.client, User::Nobody, &self.client_config)
    }

    /// How many sessions the server has had.
    fn sessions(&mut self) -> usize {
        let text = self.server.process().text();
        text.lines()
            .filter(|line| line.contains("session up"))
            .count()
    }

    fn run(&self, command: &[&str]) -> Finished {
        process::run(self.command_with(&[], command), SOON)
    }

    fn shell(&self, script: &str) -> Finished {
        self.run(&["bash", "-c", script])
    }

    fn start(&self, script: &str) -> Process {
        let command = self.command_with(&[], &["bash", "-c", script]);
        Process::spawn("command", command)
    }

    /// A shell of the same user, which finds the program as `adit` and the configuration in `$C`.
    fn outside(&self) -> Command {
        let mut command = self
            .workdir
            .program_as(&self.lab.client, User::Nobody, "bash");
        let old = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{old}", self.workdir.path().display()))
            .env("C", &self.client_config);
        command
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asserts success, and returns what was printed.
#[track_caller]
fn printed(finished: Finished) -> String {
    assert!(finished.status.success(), "{finished:?}");
    finished.stdout
}

#[test]
fn commands_of_an_ordinary_user_go_through_a_server_with_egress_user() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        every_program_works(&Scene::user("tcp"));
    }
}

#[test]
fn commands_of_an_ordinary_user_go_through_a_server_with_egress_tun() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        every_program_works(&Scene::tun("udp"));
    }
}

fn every_program_works(scene: &Scene) {
    let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
    for (url, seen) in [
        (scene.four.url("/peer"), [&four, &four]),
        (scene.six.url("/peer"), [&six, &six]),
        ("http://four.example/peer".into(), [&four, &four]),
        ("http://both.example/peer".into(), [&four, &six]),
    ] {
        let got = printed(scene.run(&["curl", "-sS", "--max-time", "20", &url]));
        assert!(
            seen.iter().any(|peer| got.starts_with(peer.as_str())),
            "{url}: {got}"
        );
    }
    let asked = scene.dns.asked();
    let by_server = |peer: IpAddr| peer == IpAddr::from(EGRESS4);
    assert!(
        !asked.is_empty() && asked.iter().all(|question| by_server(question.peer.ip())),
        "{asked:?}"
    );

    let certificate = Certificate::new(&["four.example"]);
    let _tls = Origin::https(&scene.lab.internet, (ORIGIN4, 443).into(), &certificate);
    let authority = scene.workdir.file("authority.pem", &certificate.authority);
    let length = 16_u64 << 20;
    let url = format!("https://four.example/bytes/{length}?seed=5");
    let script = format!(
        "set -o pipefail; curl -sS --cacert {} '{url}' | sha256sum",
        authority.display()
    );
    let sum = printed(scene.shell(&script));
    assert_eq!(sum.split(' ').next(), Some(&*stream::sha256(5, length)));
    let script = format!(
        "head -c {length} /dev/zero | curl -sS --data-binary @- {}",
        scene.four.url("/sink")
    );
    let sunk = printed(scene.shell(&script));
    assert!(sunk.starts_with(&format!("{length} ")), "{sunk}");

    let script =
        format!("ping -c 3 -i 0.2 {ORIGIN4} && ping -c 1 {ORIGIN6} && ping -c 1 localhost");
    let pinged = printed(scene.shell(&script));
    assert!(
        pinged.contains("3 packets transmitted, 3 received"),
        "{pinged}"
    );
    let dug = printed(scene.run(&["dig", "+short", "four.example"]));
    assert_eq!(dug.trim(), ORIGIN4.to_string());
    let dug = printed(scene.run(&["dig", "+short", "+tcp", "both.example", "AAAA"]));
    assert_eq!(dug.trim(), ORIGIN6.to_string());

    clones(scene);
    calls(scene);

    // what is not allowed to go out is refused there, and said so
    let denied = scene.run(&["curl", "-sS", &format!("http://{PRIVATE4}/")]);
    assert_eq!(denied.status.code(), Some(7), "{denied:?}");
    assert_eq!(scene.server.panics(), Vec::<String>::new());
}

/// A second of a call's worth of datagrams each way, as iperf3 sends them, loses hardly any.
fn calls(scene: &Scene) {
    for direction in [&[][..], &["--reverse"]] {
        let mut server = scene.lab.internet.command("iperf3");
        server.args(["--server", "--one-off", "--forceflush"]);
        let server = Process::spawn("iperf3", server);
        let listens = |line: &str| line.contains("Server listening");
        assert!(server.wait_for_line(SOON, listens).is_some());
        let call = [
            "iperf3",
            "-u",
            "-c",
            "four.example",
            "-b",
            "2M",
            "-t",
            "1",
            "--json",
        ];
        let report = printed(scene.run(&[&call, direction].concat()));
        let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
        let sum = &report["end"]["sum"];
        let (packets, lost) = (&sum["packets"], &sum["lost_percent"]);
        assert!(
            packets.as_u64() > Some(100) && lost.as_f64().is_some_and(|lost| lost < 10.0),
            "{direction:?}: {sum}"
        );
    }
}

/// A repository of the Internet host comes whole by the protocol of git.
fn clones(scene: &Scene) {
    let place = &scene.lab.internet;
    let folder = place.folder().expect("a host of the lab").display();
    place.shell(&format!(
        "export HOME={folder} GIT_CONFIG_GLOBAL=/dev/null; cd {folder}; git init -q repository; cd repository;
         head -c 3000000 /dev/urandom > file; git add file; git -c user.name=t -c user.email=t@example commit -qm first"
    ));
    let mut daemon = place.command("git");
    daemon
        .args([
            "daemon",
            "--export-all",
            "--reuseaddr",
            "--informative-errors",
        ])
        .args([
            format!("--base-path={folder}"),
            format!("--listen={ORIGIN4}"),
        ])
        .env("HOME", format!("{folder}"))
        .args(["--verbose"]);
    let daemon = Process::spawn("git daemon", daemon);
    daemon.wait_for_line(SOON, |line| line.contains("Ready"));
    let into = scene.workdir.state("clones", User::Nobody);
    let script = format!(
        "cd {} && GIT_CONFIG_GLOBAL=/dev/null git clone -q git://four.example/repository && sha256sum < repository/file",
        into.display()
    );
    let sum = printed(scene.shell(&script));
    assert_eq!(
        sum,
        place.shell(&format!("sha256sum < {folder}/repository/file"))
    );
}

#[test]
fn command_is_the_process_that_was_started_under_its_own_user_and_without_capabilities() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    // identity, loopback, interfaces, descriptors
    let seen = printed(scene.shell(
        "id -u; id -g; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f2 | sort -u; ls /sys/class/net >/dev/null;
         ip -o link | cut -d: -f2 | tr -d ' \\n'; echo; ip -o -4 address show dev adit0 | grep -o 'inet [0-9.]*'; ls /proc/self/fd | tr '\\n' ' '",
    ));
    let mut outside = scene.outside();
    outside.args(["-c", "ls /proc/self/fd | tr '\\n' ' '"]);
    let descriptors = printed(process::run(outside, SOON));
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(
        lines,
        [
            "65534",
            "65534",
            "0000000000000000",
            "loadit0",
            "inet 10.86.0.2",
            &descriptors
        ],
        "{seen}"
    );
    let raw = scene.run(&["ip", "address", "add", "192.0.2.1/32", "dev", "adit0"]);
    assert!(!raw.status.success(), "{raw:?}");

    // exit statuses, and signals as the parent sees them
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        assert_eq!(scene.shell(script).status.code(), Some(code));
    }
    assert_eq!(
        scene.shell("kill -KILL $$").status.signal(),
        Some(libc::SIGKILL)
    );
    assert_eq!(
        scene.shell("kill -TERM $$").status.signal(),
        Some(libc::SIGTERM)
    );
    let missing = scene.run(&["no-such-command-anywhere"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(
        missing.stderr.contains("there is no such command"),
        "{missing:?}"
    );
    let unfit = scene.run(&["/etc/passwd"]);
    assert_eq!(unfit.status.code(), Some(126), "{unfit:?}");
    let broken = scene.workdir.file("broken.yaml", "server: nowhere\n");
    let mut command = scene.workdir.command(&scene.lab.client, User::Nobody);
    command.args(["run", "-c", path(&broken), "--", "true"]);
    let broken = process::run(command, SOON);
    assert_eq!(broken.status.code(), Some(125), "{broken:?}");
    assert!(broken.stderr.contains("broken.yaml:1:"), "{broken:?}");

    // a signal to the process that was started is one to the command
    let mut process =
        scene.start("trap 'echo caught; exit 3' USR1 TERM; echo set; while :; do sleep 0.05; done");
    assert!(process.wait_for_line(SOON, |line| line == "set").is_some());
    process.signal(Signal::Terminate);
    assert_eq!(process.wait(SOON).and_then(|status| status.code()), Some(3));
    assert!(
        process
            .wait_for_line(SOON, |line| line == "caught")
            .is_some()
    );

    // standard streams, and what is left of them with the tunnel process
    let mut command = scene.outside();
    command.args([
        "-c",
        "set -o pipefail; echo hello | adit run -c $C -- tr a-z A-Z 2>&1 | cat; adit run -c $C -- sh -c 'kill -9 $$'; echo $?",
    ]);
    let piped = process::run(command, SOON);
    assert!(
        piped.stdout.starts_with("HELLO\n") && piped.stdout.ends_with("137\n"),
        "{piped:?}"
    );
    let process = scene.start("echo up; sleep 100");
    assert!(process.wait_for_line(SOON, |line| line == "up").is_some());
    let tunnel = tunnel_process(&scene.client_config).expect("there is a tunnel process");
    let leads = |fd: u32| fs::read_link(format!("/proc/{tunnel}/fd/{fd}")).ok();
    assert_eq!(
        [leads(0), leads(1)],
        [Some("/dev/null".into()), Some("/dev/null".into())]
    );
    drop(process);
    wait_for("the tunnel process ends with the command", || {
        tunnel_process(&scene.client_config).is_none()
    });
}

/// The process of a tunnel with this configuration that is not a command yet.
fn tunnel_process(config: &Path) -> Option<u32> {
    let config = config.to_str()?;
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let folder = entry.ok()?.path();
        let name = fs::read_to_string(folder.join("comm")).ok()?;
        let arguments = fs::read_to_string(folder.join("cmdline")).ok()?;
        let ours = name.trim() == "adit-tunnel" && arguments.contains(config);
        ours.then(|| folder.file_name()?.to_str()?.parse().ok())?
    })
}

#[test]
fn ctrl_c_and_ctrl_z_are_the_commands_own() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    let mut shell = scene.outside();
    shell.args(["--norc", "--noprofile", "-i"]).env("PS1", "$ ");
    let mut terminal = Terminal::start(shell);
    terminal.expect("$ ", SOON);
    terminal.send("adit run -c $C -- sh -c 'echo be''gun; exec sleep 100'\n");
    terminal.expect("begun", SOON);
    terminal.send("\x03");
    terminal.send("echo code=$?\n");
    terminal.expect("code=130", SOON);
    terminal.send("adit run -c $C -- bash -c 'echo be''gun; read line; echo got $line; curl -sS http://four.example/peer'\n");
    terminal.expect("begun", SOON);
    terminal.send("\x1a");
    terminal.expect("Stopped", SOON);
    terminal.send("echo in''between\n");
    terminal.expect("inbetween", SOON);
    terminal.send("fg\n");
    terminal.expect("adit run", SOON);
    terminal.send("words\n");
    terminal.expect("got words", SOON);
    terminal.expect(&format!("{EGRESS4}:"), SOON);
    terminal.send("exit\n");
    assert!(terminal.wait(SOON).is_some_and(|status| status.success()));
}

#[test]
fn no_packet_of_a_command_leaves_outside_the_tunnel() {
    if !can_run(NEEDS) || !can_run(&[Need::Tool("nft"), Need::Tool("perl"), Need::Tool("ping")]) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let place = scene.lab.client.clone();
    // resolvers of the host, which would ask for whoever comes
    let asked = scene.workdir.state("asked", User::Nobody);
    place.shell("mount -t tmpfs tmpfs /run; mkdir -p /run/nscd /run/systemd/resolve /run/avahi-daemon /run/dbus");
    let mut traps = place.command("perl");
    traps.args([
        "-MIO::Socket::UNIX",
        "-MIO::Select",
        "-e",
        TRAPS,
        path(&asked),
    ]);
    let traps = Process::spawn("resolvers of the host", traps);
    assert!(
        traps
            .wait_for_line(SOON, |line| line == "listening")
            .is_some()
    );
    let mut sniffer = Sniffer::start(&place, SERVER4.into(), PORT);

    // both see what there is to see
    place.try_run("getent hosts trap.example");
    wait_for("the trap springs", || asked.join("nscd").exists());
    place.try_run("ping -c 1 -W 1 10.77.1.2");
    wait_for("the sniffer sees", || !sniffer.strange().is_empty());
    fs::remove_file(asked.join("nscd")).expect("it is there");
    // answers that are late
    std::thread::sleep(Duration::from_millis(300));
    sniffer.forget();

    let (cut, end) = (asked.join("cut"), asked.join("end"));
    let script = format!(
        "export RES_OPTIONS='timeout:1 attempts:1'
         restless() {{
           getent hosts four.example & getent ahosts both.example & curl -sS -m 1 {url} & curl -sS -m 1 http://10.77.1.2:9/ &
           ping -c 1 -W 1 10.77.1.2 & ping -c 1 -W 1 10.77.1.1 & wait; ls /run/nscd /run/systemd/resolve /run/avahi-daemon /run/dbus;
           (echo x > /dev/udp/10.77.1.2/53); (echo x > /dev/udp/224.0.0.251/5353)
         }} 2>&1
         echo running; until test -e {end}; do restless; test -e {cut} && echo restless while cut; sleep 0.1; done
         restless; curl -sS -m 5 {url} && echo alive",
        url = scene.four.url("/peer"),
        end = end.display(),
        cut = cut.display(),
    );
    // also while there is no tunnel yet
    scene.server.kill();
    let command = scene.command_with(&["--no-wait"], &["bash", "-c", &script]);
    let mut process = Process::spawn("command", command);
    assert!(
        process
            .wait_for_line(SOON, |line| line == "running")
            .is_some()
    );
    std::thread::sleep(Duration::from_millis(500));
    scene.server =
        scene
            .workdir
            .start_server(&scene.lab.server, User::Nobody, &scene.server_config);
    let through = format!("{EGRESS4}:");
    let got_through = |line: &str| line.starts_with(&through);
    assert!(
        process.wait_for_line(SOON, got_through).is_some(),
        "{}",
        process.text()
    );
    place.cut(PORT);
    fs::write(&cut, "").expect("writes into its own folder");
    assert!(
        process
            .wait_for_line(SOON, |line| line == "restless while cut")
            .is_some()
    );
    std::thread::sleep(Duration::from_secs(2));
    place.mend();
    fs::write(&end, "").expect("writes into its own folder");
    assert!(
        process
            .wait_for_line(SOON, |line| line == "alive")
            .is_some(),
        "{}",
        process.text()
    );
    assert!(process.wait(SOON).is_some());
    // and with the tunnel process killed
    let process = scene.start("echo running; sleep 0.5; curl -sS -m 2 http://11.0.0.2/peer; getent hosts four.example; ip -o link | wc -l");
    assert!(
        process
            .wait_for_line(SOON, |line| line == "running")
            .is_some()
    );
    let tunnel = tunnel_process(&scene.client_config).expect("there is a tunnel process");
    // SAFETY: a plain system call; the process was seen to be ours just now.
    unsafe { libc::kill(tunnel.cast_signed(), libc::SIGKILL) };
    assert!(
        process.wait_for_line(SOON, |line| line == "1").is_some(),
        "{}",
        process.text()
    );
    assert!(!process.text().contains(&through), "{}", process.text());

    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(sniffer.tunnelled() > 0);
    let sprung: Vec<_> = ["nscd", "resolved", "avahi", "bus"]
        .iter()
        .filter(|name| asked.join(name).exists())
        .collect();
    assert!(sprung.is_empty(), "{sprung:?} were asked");
}

/// Listens where resolvers do, and notes in a folder which of them was asked.
const TRAPS: &str = r#"
my %at = (nscd => "nscd/socket", resolved => "systemd/resolve/io.systemd.Resolve", avahi => "avahi-daemon/socket", bus => "dbus/system_bus_socket");
my $select = IO::Select->new; my %name;
for (keys %at) { my $s = IO::Socket::UNIX->new(Local => "/run/$at{$_}", Listen => 5) or die "$_: $!"; chmod 0777, "/run/$at{$_}"; $select->add($s); $name{$s} = $_ }
$| = 1; print "listening\n";
while (my @ready = $select->can_read) { for (@ready) {
    my $c = $_->accept; my $asked = "";
    # whoever starts the command may ask for users: of the name service cache, questions for hosts count (nscd-client.h)
    if ($name{$_} eq "nscd") { sysread($c, $asked, 8); my (undef, $type) = unpack("ll", $asked); next unless grep { $_ == $type } 4, 5, 6, 7, 13, 14 }
    open(my $f, ">", "$ARGV[0]/$name{$_}"); close $f } }
"#;

#[test]
fn several_commands_run_side_by_side_up_to_the_servers_limit() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    // one after the other there may be any number
    for _ in 0..9 {
        assert!(scene.run(&["true"]).status.success());
    }
    let script = "ip -o -4 address show dev adit0 | grep -o 'inet [0-9.]*'; exec sleep 100";
    let running: Vec<Process> = (0..8).map(|_| scene.start(script)).collect();
    let mut addresses: Vec<String> = running
        .iter()
        .map(|process| {
            let line = process.wait_for_line(SOON, |line| line.starts_with("inet"));
            line.unwrap_or_else(|| panic!("{}", process.text()))
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8, "{addresses:?}");
    let ninth = scene.run(&["true"]);
    assert_eq!(ninth.status.code(), Some(125), "{ninth:?}");
    assert!(
        ninth
            .stderr
            .contains("too many instances run with this key"),
        "{ninth:?}"
    );
    drop(running);
    // sessions of commands that were killed are closed too
    wait_for("there is room again", || {
        scene.run(&["true"]).status.success()
    });
}

#[test]
fn addresses_and_name_servers_follow_the_session() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let flag = scene.workdir.state("flags", User::Nobody).join("moved");
    let script = format!(
        "ask() {{ curl -sS -m 3 --retry 10 --retry-all-errors http://four.example/peer; }}
         ask; until test -e {}; do sleep 0.05; done
         until ip -o address show dev adit0 | grep -q 10.99.0.; do sleep 0.05; done
         ask; grep -o 'nameserver .*' /etc/resolv.conf; ip -o address show dev adit0 | grep -c inet",
        flag.display()
    );
    let mut process = scene.start(&script);
    let through = format!("{EGRESS4}:");
    let is_through = |line: &str| line.starts_with(&through);
    assert!(
        process.wait_for_line(SOON, is_through).is_some(),
        "{}",
        process.text()
    );
    scene.server.kill();
    let text = fs::read_to_string(&scene.server_config).expect("the test wrote it");
    let moved = text
        .replace("10.86.0.0/24", "10.99.0.0/24")
        .replace("fd86::/64", "fd99::/64");
    fs::write(&scene.server_config, moved).expect("the test's own file");
    scene.server =
        scene
            .workdir
            .start_server(&scene.lab.server, User::Nobody, &scene.server_config);
    fs::write(&flag, "").expect("writes into its own folder");
    assert!(process.wait(SOON).is_some(), "{}", process.text());
    // what it printed last is read a moment later
    process.wait_for_line(SOON, |line| line == "2");
    let lines = process.lines();
    let peers = lines.iter().filter(|line| is_through(line)).count();
    assert_eq!(peers, 2, "{lines:?}");
    assert!(
        lines.contains(&"nameserver 10.99.0.1".to_owned()),
        "{lines:?}"
    );
    assert_eq!(lines.last().map(String::as_str), Some("2"), "{lines:?}");
}

#[test]
fn closed_hosts_are_named_with_their_remedy() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::user("tcp");
    let place = &scene.lab.client;
    place.shell("chmod 600 /dev/net/tun");
    let refused = scene.run(&["true"]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("chmod 0666 /dev/net/tun"),
        "{refused:?}"
    );
    place.shell("rm /dev/net/tun");
    let refused = scene.run(&["true"]);
    assert!(refused.stderr.contains("modprobe tun"), "{refused:?}");
    place.shell("mknod -m 666 /dev/net/tun c 10 200");

    // a chroot, as some sandboxes are, forbids user namespaces
    let mut jailed = place.command("sh");
    jailed.args([
        "-ec",
        "mount --bind / /mnt; mount --rbind /proc /mnt/proc; mount --bind \"$0\" /mnt/tmp;
         exec chroot --userspec=65534:65534 /mnt /tmp/adit run -c /tmp/client.yaml -- true",
        path(scene.workdir.path()),
    ]);
    let text = fs::read_to_string(&scene.client_config).expect("the test wrote it");
    let inside = text.replace(path(scene.workdir.path()), "/tmp");
    scene.workdir.file("client.yaml", &inside);
    let refused = process::run(jailed, SOON);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused
            .stderr
            .contains("a chroot or a container forbids it"),
        "{refused:?}"
    );

    // a server that does not answer
    scene
        .workdir
        .file("client.yaml", &text.replace("7443", "7444"));
    let command = scene.command_with(&["--wait", "1s"], &["true"]);
    let alone = process::run(command, SOON);
    assert_eq!(alone.status.code(), Some(125), "{alone:?}");
    assert!(
        alone.stderr.contains("the tunnel is not up after 1 s"),
        "{alone:?}"
    );
}

#[test]
fn every_program_works_in_a_shared_session_with_egress_user() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        let mut scene = Scene::user("tcp");
        let _client = scene.shared("");
        every_program_works(&scene);
        assert_eq!(scene.sessions(), 1);
    }
}

#[test]
fn every_program_works_in_a_shared_session_with_egress_tun() {
    if can_run(NEEDS) && can_run(PROGRAMS) {
        let mut scene = Scene::tun("udp");
        let _client = scene.shared("");
        every_program_works(&scene);
        assert_eq!(scene.sessions(), 1);
    }
}

#[test]
fn commands_share_one_session_and_lose_their_network_with_its_client() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let mut sniffer = Sniffer::start(&scene.lab.client, SERVER4.into(), PORT);
    let mut client = scene.shared("");
    sniffer.forget();
    let over = scene.workdir.state("flags", User::Nobody).join("over");
    let script = format!(
        "ask() {{ curl -sS -m 5 http://four.example/peer; }}
         ask; until test -e {}; do sleep 0.05; done
         until test $(ip -o link | wc -l) = 1; do sleep 0.05; done
         ask; curl -sS -m 2 {}; ping -c 1 -W 1 {ORIGIN4}; ping -c 1 localhost >/dev/null && echo loopback left",
        over.display(),
        scene.four.url("/peer"),
    );
    // more than the sessions of one key may be
    let mut running: Vec<Process> = (0..12).map(|_| scene.start(&script)).collect();
    let through = format!("{EGRESS4}:");
    for process in &running {
        let line = process.wait_for_line(SOON, |line| line.starts_with(&through));
        assert!(line.is_some(), "{}", process.text());
    }
    assert_eq!(scene.sessions(), 1);
    client.kill();
    fs::write(&over, "").expect("writes into its own folder");
    for process in &mut running {
        assert!(process.wait(SOON).is_some(), "{}", process.text());
        let left = process.wait_for_line(SOON, |line| line == "loopback left");
        assert!(left.is_some(), "{}", process.text());
        let answers = process.lines();
        let answers = answers.iter().filter(|line| line.starts_with(&through));
        assert_eq!(answers.count(), 1, "{}", process.text());
        assert!(
            process.text().contains("the client has ended"),
            "{}",
            process.text()
        );
    }
    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(sniffer.tunnelled() > 0);
}

#[test]
fn shared_commands_wait_while_the_tunnel_is_cut_and_what_they_sent_last_arrives() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let place = scene.lab.client.clone();
    let mut sniffer = Sniffer::start(&place, SERVER4.into(), PORT);
    let _client = scene.shared("");
    sniffer.forget();
    let url = scene.four.url("/peer");
    let cut = scene.workdir.state("flags", User::Nobody).join("cut");
    let script = format!(
        "curl -sS -m 20 {url}; until test -e {}; do sleep 0.05; done; echo asking; curl -sS -m 25 {url} && curl -sS -m 20 http://four.example/peer && echo alive",
        cut.display()
    );
    let process = scene.start(&script);
    let through = format!("{EGRESS4}:");
    let got = |line: &str| line.starts_with(&through);
    assert!(
        process.wait_for_line(SOON, got).is_some(),
        "{}",
        process.text()
    );
    place.cut(PORT);
    fs::write(&cut, "").expect("writes into its own folder");
    let asks = |line: &str| line == "asking";
    assert!(process.wait_for_line(SOON, asks).is_some());
    std::thread::sleep(Duration::from_secs(3));
    place.mend();
    let alive = |line: &str| line == "alive";
    assert!(
        process.wait_for_line(SOON, alive).is_some(),
        "{}",
        process.text()
    );
    // a command that writes and is gone has its bytes delivered
    let listener = scene.lab.internet.spawn(|| {
        let listener = TcpListener::bind((ORIGIN4, 4000)).expect("a port of the lab");
        let (mut stream, _) = listener.accept().expect("somebody comes");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).map(|_| got.len())
    });
    let script = format!(
        "until exec 3>/dev/tcp/{ORIGIN4}/4000; do sleep 0.1; done; head -c 300000 /dev/zero >&3"
    );
    let sent = scene.shell(&script);
    assert!(sent.status.success(), "{sent:?}");
    let arrived = listener.join().expect("no panic");
    assert_eq!(arrived.expect("an end in order"), 300_000);
    assert_eq!(scene.sessions(), 1);
    assert_eq!(sniffer.strange(), Vec::<String>::new());
}

#[test]
fn shared_command_waits_for_a_server_that_is_down() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let _client = scene.shared("");
    scene.server.kill();
    let health = ["health", "-c", path(&scene.client_config)];
    wait_for("the client notices", || {
        let found = (scene.workdir).run_as(&scene.lab.client, User::Nobody, &health);
        !found.status.success()
    });
    let given_up = process::run(scene.command_with(&["--wait", "1s"], &["true"]), SOON);
    assert_eq!(given_up.status.code(), Some(125), "{given_up:?}");
    assert!(
        given_up.stderr.contains("does not reach its server"),
        "{given_up:?}"
    );
    // Where it is told not to wait, it does not.
    let at_once = process::run(scene.command_with(&["--no-wait"], &["true"]), SOON);
    assert!(at_once.status.success(), "{at_once:?}");
    let url = scene.four.url("/peer");
    let waiting = scene.start(&format!("curl -sS -m 20 {url}"));
    scene.server =
        (scene.workdir).start_server(&scene.lab.server, User::Nobody, &scene.server_config);
    let through = format!("{EGRESS4}:");
    let got = |line: &str| line.starts_with(&through);
    assert!(
        waiting.wait_for_line(SOON, got).is_some(),
        "{}",
        waiting.text()
    );
}

#[test]
fn rules_and_resolver_of_the_client_hold_for_commands_that_share_it() {
    if !can_run(NEEDS) || !can_run(&[Need::Tool("dig"), Need::Tool("ping")]) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let more = format!(
        "rules: [\"block {ORIGIN6}\", \"block ads.four.example\"]\ndns:\n  records: [\"here.example A {ORIGIN4}\"]\n  block: [{}]\n",
        scene.workdir.file("blocked", "both.example\n").display()
    );
    let mut client = scene.shared(&more);
    let got = printed(scene.run(&["curl", "-sS", "-m", "20", "http://here.example/peer"]));
    assert!(got.starts_with(&format!("{EGRESS4}:")), "{got}");
    let six = scene.six.url("/peer");
    let refused = scene.run(&["curl", "-sS", "-m", "20", &six]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let lost = scene.run(&["ping", "-c", "1", "-W", "1", &ORIGIN6.to_string()]);
    assert_eq!(lost.status.code(), Some(1), "{lost:?}");
    let blocked = printed(scene.run(&["dig", "both.example"]));
    assert!(blocked.contains("NXDOMAIN"), "{blocked}");
    let unnamed = printed(scene.run(&["dig", "ads.four.example"]));
    assert!(unnamed.contains("NXDOMAIN"), "{unnamed}");
    // other rules end a flow that they concern, and what they do not block any more goes through
    let script = format!("exec 3<>/dev/tcp/{ORIGIN4}/80; echo open; cat <&3; echo closed");
    let process = scene.start(&script);
    assert!(
        process.wait_for_line(SOON, |line| line == "open").is_some(),
        "{}",
        process.text()
    );
    let text = fs::read_to_string(&scene.client_config).expect("the test wrote it");
    let other = text.replace(&format!("block {ORIGIN6}"), &format!("block {ORIGIN4}"));
    fs::write(&scene.client_config, other).expect("the test's own file");
    client.process().signal(Signal::User1);
    assert!(
        process
            .wait_for_line(SOON, |line| line == "closed")
            .is_some(),
        "{}",
        process.text()
    );
    let got = printed(scene.run(&["curl", "-sS", "-m", "20", &six]));
    assert!(got.starts_with(&format!("[{EGRESS6}]:")), "{got}");
    let refused = scene.run(&["curl", "-sS", "-m", "20", &scene.four.url("/peer")]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
}

#[test]
fn client_that_cannot_be_shared_is_told_why() {
    if !can_run(NEEDS) {
        return;
    }
    let mut scene = Scene::user("tcp");
    scene.options = vec!["--share".into()];
    let none = scene.run(&["true"]);
    assert_eq!(none.status.code(), Some(125), "{none:?}");
    assert!(
        none.stderr
            .contains("no client runs with the configuration")
            && none.stderr.contains("without --share"),
        "{none:?}"
    );
    let bare = |scene: &Scene, options: &[&str]| {
        let mut run = scene.workdir.command(&scene.lab.client, User::Nobody);
        run.args(["run", "--share"])
            .args(options)
            .args(["--", "true"]);
        process::run(run, SOON)
    };
    let none = bare(&scene, &[]);
    assert!(
        none.stderr.contains("no client of this user runs"),
        "{none:?}"
    );

    // the only one is found without a configuration; of two, one must be named
    let first = scene.workdir.path().join("first");
    let second = scene.workdir.path().join("second");
    let _client = scene.shared("");
    assert!(bare(&scene, &[]).status.success());
    let other = fs::read_to_string(&scene.client_config)
        .expect("the test wrote it")
        .replace("1080", "1081");
    let with_socket = format!("{other}\ncontrol: {}\n", path(&first));
    let with_socket = scene.workdir.file("other.yaml", &with_socket);
    let mut root = scene
        .workdir
        .start_client(&scene.lab.client, User::Same, &with_socket);
    let foreign = bare(&scene, &["--control", path(&first)]);
    assert_eq!(foreign.status.code(), Some(125), "{foreign:?}");
    assert!(foreign.stderr.contains("Permission denied"), "{foreign:?}");
    root.kill();
    // an older one knows nothing of it
    let mut old = scene
        .workdir
        .program_as(&scene.lab.client, User::Nobody, "perl");
    fs::create_dir(&second).expect("the test's own folder");
    scene.workdir.give(&second, User::Nobody);
    let second = second.join("socket");
    old.args(["-MIO::Socket::UNIX", "-e", OLD_CLIENT, path(&second)]);
    let old = Process::spawn("old client", old);
    assert!(
        old.wait_for_line(SOON, |line| line == "listening")
            .is_some()
    );
    let refused = bare(&scene, &["--control", path(&second)]);
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("is it an older adit?"),
        "{refused:?}"
    );
}

/// Answers one order as a client does that does not know it.
const OLD_CLIENT: &str = r#"
my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die $!; $| = 1; print "listening\n";
while (my $c = $s->accept) { if (defined(my $line = <$c>)) {
    print $c qq({"version":1,"error":"this client does not know `session`: is it an older adit?"}\n) } }
"#;
