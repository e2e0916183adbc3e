//! What a reload puts into force, as openssl, dig and curl see it: a certificate, the server's resolvers, the client's lists;
//! by SIGHUP and by `adit reload`. Flows that stand do not notice, and a file with a mistake changes nothing.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use adit_integration::{
    adit::{Pair, free_port, path},
    curl::{self, Via},
    dns::{Dns, Zone},
    meters::wait_for,
    namespaces::{Place, runtime},
    origin::{Certificate, Origin},
    process::{self, Finished, Signal},
    skip::{Need, can_run},
    socks,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
};

/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(30);

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn order(pair: &Pair, command: &str, config: &Path, more: &[&str]) -> Finished {
    (pair.workdir).run(&[&[command, "-c", path(config)], more].concat())
}

fn status(pair: &Pair, config: &Path) -> Value {
    let shown = order(pair, "status", config, &["--json"]);
    assert!(shown.status.success(), "{}", shown.text());
    serde_json::from_str(&shown.stdout).expect("JSON")
}

fn reload(pair: &Pair, config: &Path) -> Finished {
    order(pair, "reload", config, &[])
}

#[track_caller]
fn takes(finished: &Finished, what: &str) {
    assert_eq!(finished.status.code(), Some(0), "{}", finished.text());
    assert!(
        finished.stdout.contains(what),
        "{what}: {}",
        finished.text()
    );
}

#[track_caller]
fn refuses(finished: &Finished, why: &str) {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.text());
    assert!(finished.stderr.contains(why), "{why}: {}", finished.text());
}

#[test]
fn key_that_has_become_a_pipe_that_nobody_writes_to_is_told_and_holds_up_nothing() {
    let origin = Origin::http(&Place::here(), loopback(0));
    let pair = Pair::start("tcp");
    let key = pair.workdir.path().join("client.key");
    fs::remove_file(&key).expect("an own file");
    let made = Command::new("mkfifo").arg(&key).status().expect("mkfifo");
    assert!(made.success());
    let config = pair.workdir.path().join("client.yaml");
    refuses(&reload(&pair, &config), "nothing came of it in 5s");
    let fetched = curl::get(
        &Place::here(),
        Via::Socks5h(pair.proxy),
        &origin.url("/bytes/5000?seed=1"),
        &[],
    );
    assert_eq!(fetched.status.code(), Some(0), "{}", fetched.stderr);
}

/// Sends the program of this configuration SIGHUP, or where this test has a terminal, in which that would end it, or runs under
/// `nohup`, SIGUSR1; waits until the configuration was read again.
fn hang_up(pair: &mut Pair, config: &Path) {
    let reloads = |pair: &Pair| status(pair, config)["reloads"]["applied"].as_u64();
    let before = reloads(pair);
    let has_terminal = fs::File::open("/dev/tty").is_ok();
    let signal = if has_terminal || is_hangup_ignored() {
        Signal::User1
    } else {
        Signal::HangUp
    };
    let adit = if config == pair.server_config {
        &mut pair.server
    } else {
        &mut pair.client
    };
    adit.process().signal(signal);
    let read = wait_for(SOON, || (reloads(pair) > before).then_some(()));
    read.expect("it is read again");
}

/// Says whether SIGHUP is ignored by this test, and so by what it starts.
fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("there is /proc");
    let mut masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigIgn:"));
    let mask = masks.next().expect("proc(5) has it").trim();
    u64::from_str_radix(mask, 16).expect("a mask") & 1 == 1
}

fn panicked(pair: &Pair) -> Vec<String> {
    [pair.server.panics(), pair.client.panics()].concat()
}

/// A flow through the tunnel that must outlive all reloads.
struct Flow {
    stream: TcpStream,
    runtime: Runtime,
    rounds: u8,
}

impl Flow {
    fn new(pair: &Pair, echo: &Origin) -> Self {
        let runtime = runtime();
        let stream = runtime.block_on(socks::connect(pair.proxy, echo.address()));
        Self {
            stream: stream.expect("a flow"),
            runtime,
            rounds: 0,
        }
    }

    /// Exchanges something.
    #[track_caller]
    fn goes_on(&mut self) {
        self.rounds += 1;
        let sent = [self.rounds; 5000];
        let mut got = [0; 5000];
        let exchange = async {
            self.stream.write_all(&sent).await?;
            self.stream.read_exact(&mut got).await
        };
        let done = self
            .runtime
            .block_on(async { tokio::time::timeout(SOON, exchange).await });
        done.expect("in time").expect("the flow stands");
        assert_eq!(got, sent);
    }
}

/// The SHA-256 of the certificate that is shown to whoever comes now, as openssl says it.
fn shown_certificate(port: u16) -> String {
    let script = format!(
        "openssl s_client -connect 127.0.0.1:{port} -servername vpn.example </dev/null 2>/dev/null \
         | openssl x509 -noout -fingerprint -sha256"
    );
    shell(&script)
}

fn certificate_in(file: &Path) -> String {
    shell(&format!(
        "openssl x509 -noout -fingerprint -sha256 -in {}",
        path(file)
    ))
}

fn shell(script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let finished = process::run(command, SOON);
    assert!(finished.status.success(), "{script}: {}", finished.text());
    finished.stdout.trim().to_owned()
}

/// Puts a new certificate in the place of the one that is there; gives its fingerprint.
fn write_certificate(pair_folder: &Path) -> String {
    let (chain, key) = Certificate::new(&["vpn.example"]).pem();
    let file = pair_folder.join("chain.pem");
    fs::write(&file, chain).expect("writes");
    fs::write(pair_folder.join("private.pem"), key).expect("writes");
    certificate_in(&file)
}

#[test]
fn new_certificate_is_shown_to_whoever_comes_and_lanes_that_stand_do_not_notice() {
    if !can_run(&[Need::Tool("openssl")]) {
        return;
    }
    let echo = Origin::echo(&Place::here(), loopback(0));
    let folder = tempfile_folder();
    let first = write_certificate(folder.path());
    let keys = format!(
        "tls: {{certificate: {0}/chain.pem, key: {0}/private.pem}}",
        folder.path().display()
    );
    let mut pair = Pair::start_with("tls", &keys, "");
    let config = pair.server_config.clone();
    let mut flow = Flow::new(&pair, &echo);
    flow.goes_on();
    let session = |pair: &Pair| status(pair, &config)["sessions"][0].clone();
    let lane = session(&pair)["lanes"][0]["lane"].clone();
    let stands = |pair: &Pair, flow: &mut Flow| {
        flow.goes_on();
        let lanes = session(pair)["lanes"].clone();
        assert_eq!(lanes.as_array().map(Vec::len), Some(1), "{lanes:#}");
        assert_eq!(lanes[0]["lane"], lane, "{lanes:#}");
    };
    assert_eq!(shown_certificate(pair.port), first);

    // The files have other content; the configuration is the same.
    let second = write_certificate(folder.path());
    assert_ne!(first, second);
    assert_eq!(
        shown_certificate(pair.port),
        first,
        "nobody has said so yet"
    );
    takes(&reload(&pair, &config), "tls: a new certificate");
    assert_eq!(shown_certificate(pair.port), second);
    stands(&pair, &mut flow);

    // A key of another certificate, half a file, none at all.
    let chain = fs::read(folder.path().join("chain.pem")).expect("reads");
    let other_key = Certificate::new(&["vpn.example"]).pem().1;
    let good_key = fs::read(folder.path().join("private.pem")).expect("reads");
    fs::write(folder.path().join("private.pem"), other_key).expect("writes");
    refuses(&reload(&pair, &config), "private.pem");
    fs::write(folder.path().join("private.pem"), good_key).expect("writes");
    fs::write(folder.path().join("chain.pem"), &chain[..chain.len() / 2]).expect("writes");
    refuses(&reload(&pair, &config), "chain.pem");
    fs::remove_file(folder.path().join("chain.pem")).expect("it is there");
    refuses(&reload(&pair, &config), "chain.pem");
    // by which the orders below find the server
    fs::write(folder.path().join("chain.pem"), &chain).expect("writes");
    assert_eq!(shown_certificate(pair.port), second);
    stands(&pair, &mut flow);

    let third = write_certificate(folder.path());
    hang_up(&mut pair, &config);
    assert_eq!(shown_certificate(pair.port), third);
    stands(&pair, &mut flow);
    // whoever comes now is served behind it
    let (mut other, proxy) = pair.other("tls", pair.port);
    other.expect_ready();
    let stream = flow.runtime.block_on(socks::connect(proxy, echo.address()));
    stream.expect("a flow of a new lane");
    assert_eq!(panicked(&pair), Vec::<String>::new());
}

fn tempfile_folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}

/// A name server on a port of its own, whose answers tell it from others.
fn name_server(last: u8, names: &[&str]) -> Dns {
    let zone = names.iter().fold(Zone::new(), |zone, name| {
        zone.address(name, 3600, Ipv4Addr::new(192, 0, 2, last))
    });
    Dns::start(&Place::here(), loopback(0), zone)
}

/// What `dig` says to a question: the addresses, or why there are none.
fn dig(resolver: SocketAddr, name: &str) -> String {
    let mut command = Command::new("dig");
    command.args([
        &format!("@{}", resolver.ip()),
        "-p",
        &resolver.port().to_string(),
        "+tries=1",
        "+time=15",
        "+noall",
        "+answer",
        "+comments",
        name,
        "A",
    ]);
    let finished = process::run(command, SOON);
    let text = finished.text();
    let field = |line: &str| line.split("status: ").nth(1).map(str::to_owned);
    let code = text.lines().find_map(field);
    let code = code.unwrap_or_else(|| panic!("{name}: {text}"));
    let addresses: Vec<&str> = (text.lines().filter(|line| !line.starts_with(';')))
        .filter_map(|line| line.split("\tA\t").nth(1))
        .collect();
    match code.split(',').next() {
        Some("NOERROR") => addresses.join(" "),
        code => code.unwrap_or_default().to_owned(),
    }
}

/// An address that nobody has, for UDP and TCP.
fn free_address() -> SocketAddr {
    loop {
        let address = loopback(free_port());
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

const NAMES: [&str; 8] = [
    "a.example",
    "b.example",
    "c.example",
    "d.example",
    "e.example",
    "f.example",
    "g.example",
    "h.example",
];

#[test]
fn resolvers_of_a_server_are_others_from_the_next_question_on() {
    if !can_run(&[Need::Tool("dig"), Need::Tool("curl")]) {
        return;
    }
    let echo = Origin::echo(&Place::here(), loopback(0));
    let (one, two) = (name_server(1, &NAMES), name_server(2, &NAMES));
    let resolver = free_address();
    let mut pair = Pair::start_with(
        "udp",
        &format!("dns: [\"{}\"]", one.address()),
        &format!("dns: {resolver}"),
    );
    let config = pair.server_config.clone();
    let mut flow = Flow::new(&pair, &echo);
    // each name once, since the client keeps answers
    let mut names = NAMES.iter();
    let mut next = || dig(resolver, names.next().expect("enough names"));
    let good = fs::read_to_string(&config).expect("reads");
    let other = good.replace(&one.address().to_string(), &two.address().to_string());
    assert_eq!(next(), "192.0.2.1");

    fs::write(&config, &other).expect("writes");
    assert_eq!(next(), "192.0.2.1", "nobody has said so yet");
    takes(&reload(&pair, &config), "in force: dns");
    assert_eq!(next(), "192.0.2.2");
    flow.goes_on();

    for (bad, why) in [
        (good.replace(&one.address().to_string(), "nobody"), "dns"),
        (good.replace("allow: [", "alow: ["), "alow"),
        (String::new(), "key_file"),
    ] {
        fs::write(&config, &bad).expect("writes");
        refuses(&reload(&pair, &config), why);
    }
    assert_eq!(next(), "192.0.2.2");
    flow.goes_on();

    fs::write(&config, &good).expect("writes");
    hang_up(&mut pair, &config);
    assert_eq!(next(), "192.0.2.1");
    flow.goes_on();
    assert_eq!(two.asked().len(), 2, "{:?}", two.asked());
    assert_eq!(panicked(&pair), Vec::<String>::new());
}

#[test]
fn lists_of_a_client_block_and_allow_other_names_from_the_next_question_on() {
    if !can_run(&[Need::Tool("dig"), Need::Tool("curl")]) {
        return;
    }
    let echo = Origin::echo(&Place::here(), loopback(0));
    let page = Origin::http(&Place::here(), loopback(0));
    let zone = NAMES.iter().fold(Zone::new(), |zone, name| {
        zone.address(name, 3600, IpAddr::V4(Ipv4Addr::LOCALHOST))
    });
    let names = Dns::start(&Place::here(), loopback(0), zone);
    let folder = tempfile_folder();
    let (block, allow) = (
        folder.path().join("block.txt"),
        folder.path().join("allow.txt"),
    );
    fs::write(&block, "a.example\n").expect("writes");
    fs::write(&allow, "nothing.example\n").expect("writes");
    let resolver = free_address();
    let mut pair = Pair::start_with(
        "tcp",
        &format!("dns: [\"{}\"]", names.address()),
        &format!("dns:\n  listen: {resolver}\n  block: [{}]\n", path(&block)),
    );
    let config = pair.client_config.clone();
    let mut flow = Flow::new(&pair, &echo);
    // the proxy asks the same lists, and its answer is what curl says
    let proxy = pair.proxy;
    let is_reached = |name: &str| {
        let url = format!("http://{name}:{}/peer", page.address().port());
        let got = curl::get(&Place::here(), Via::Socks5h(proxy), &url, &[]);
        let answer = dig(resolver, name);
        let (reached, known) = (got.status.success(), answer == "127.0.0.1");
        assert_eq!(reached, known, "{name}: {answer}, {}", got.text());
        assert!(known || answer == "NXDOMAIN", "{name}: {answer}");
        known
    };
    let state = || ["a.example", "b.example", "c.example"].map(is_reached);
    assert_eq!(state(), [false, true, true]);

    // Another list in the configuration.
    let good = fs::read_to_string(&config).expect("reads");
    let with_allow = good.replace(
        "  block:",
        &format!("  allow: [{}]\n  block:", path(&allow)),
    );
    fs::write(&allow, "a.example\n").expect("writes");
    fs::write(&config, &with_allow).expect("writes");
    takes(&reload(&pair, &config), "in force: dns.block and dns.allow");
    assert_eq!(state(), [true, true, true], "what is allowed wins");
    flow.goes_on();

    // The same list, with other names in it.
    fs::write(&block, "b.example\n").expect("writes");
    takes(&reload(&pair, &config), "in force: dns.block and dns.allow");
    assert_eq!(state(), [true, false, true]);
    takes(&reload(&pair, &config), "nothing has changed");

    // A mistake in the file, and a list that is not there.
    for (bad, why) in [
        (with_allow.replace("  allow:", "  alow:"), "alow"),
        (with_allow.replace("block.txt", "gone.txt"), "gone.txt"),
    ] {
        fs::write(&config, bad).expect("writes");
        refuses(&reload(&pair, &config), why);
        assert_eq!(state(), [true, false, true]);
    }
    flow.goes_on();

    fs::write(&block, "c.example\n").expect("writes");
    fs::write(&config, &good).expect("writes");
    hang_up(&mut pair, &config);
    assert_eq!(state(), [true, true, false]);
    flow.goes_on();
    assert_eq!(panicked(&pair), Vec::<String>::new());
}
