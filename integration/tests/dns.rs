//! The client's local resolver, asked by `dig` on a host that has no other way to a name server than the tunnel.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    curl::{self, Via},
    dns::{Dns, Zone},
    namespaces::{Lab, ORIGIN4, ORIGIN6, Place, SERVER4},
    origin::Origin,
    scene::{Couple, PROXY},
    skip::{Need, can_run},
};
use tokio::net::UdpSocket;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tool("ip"),
    Need::Tool("nft"),
    Need::Tool("curl"),
    Need::Tool("dig"),
    Need::Tool("setpriv"),
];
const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5353);
/// Where the client's host has a resolver of its own, which only a split rule may ask.
const SYSTEM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), 53);
/// The port of the lane.
const LANE: u16 = 7443;
/// The hang guard of everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab with a server and a client that runs as an ordinary user, and name servers.
struct Scene {
    lab: Lab,
    _server: Adit,
    client: Adit,
    client_config: PathBuf,
    workdir: Workdir,
    /// Whom the server asks.
    dns: Dns,
    /// Whom a split rule names.
    corp: Dns,
    /// Whom the client's host asks.
    system: Dns,
}

impl Scene {
    fn new(zone: Zone, dns: &str) -> Self {
        let lab = Lab::new();
        let internet = Dns::start(&lab.internet, (ORIGIN4, 53).into(), zone);
        let corp = Zone::new().address("git.corp.example", 60, Ipv4Addr::new(10, 9, 8, 7));
        let corp = Dns::start(&lab.internet, (ORIGIN4, 5300).into(), corp);
        let system = Zone::new()
            .address("printer.lan", 60, Ipv4Addr::new(192, 168, 1, 9))
            .address("both.example", 60, Ipv4Addr::new(192, 168, 1, 66));
        let system = Dns::start(&lab.client, SYSTEM, system);
        lab.server.set_resolver(ORIGIN4.into());
        lab.client.set_resolver(SYSTEM.ip());
        watch(&lab.client);
        let workdir = Workdir::new();
        let lanes = [format!("tcp://{SERVER4}:{LANE}")];
        let server = ServerConfig {
            listen: lanes.to_vec(),
            allow: Vec::new(),
            more: "dns_records: [intra.example A 10.1.2.3, nas.home A 10.1.2.4]".into(),
            ..ServerConfig::user_egress()
        };
        workdir.file(
            "ads.txt",
            "! a list\n||ads.example^\n0.0.0.0 exact.example\na bad line\n",
        );
        workdir.file("good.txt", "good.ads.example\n");
        let cache = workdir.state("cache", User::Nobody);
        let client = ClientConfig {
            more: format!(
                "connect_timeout: 2s\ndns:\n  listen: {RESOLVER}\n  cache_dir: {}\n{dns}",
                cache.display()
            ),
            ..ClientConfig::to(&lanes)
        };
        let files = Couple::write(&workdir, [User::Nobody; 2], server, client);
        let server = workdir.start_server(&lab.server, User::Nobody, &files.server);
        let client = workdir.start_client(&lab.client, User::Nobody, &files.client);
        Self {
            lab,
            _server: server,
            client,
            client_config: files.client,
            workdir,
            dns: internet,
            corp,
            system,
        }
    }

    /// What dig prints, with these words behind the address of the resolver.
    fn dig(&self, words: &str) -> String {
        let (ip, port) = (RESOLVER.ip(), RESOLVER.port());
        let line = format!("dig +tries=1 +time=10 @{ip} -p {port} {words}");
        self.lab.client.run(&line)
    }

    /// The addresses and aliases of a name, a line each.
    fn short(&self, words: &str) -> String {
        self.dig(&format!("+short {words}")).trim().to_owned()
    }

    /// Packets of TCP and UDP that left the client's host beside the lane.
    fn leaked(&self) -> u64 {
        let told = self.lab.client.run("nft list counter inet watch beside");
        let packets = told
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1);
        packets
            .and_then(|word| word.parse().ok())
            .expect("a counter")
    }

    fn assert_no_leak(&self) {
        assert_eq!(self.leaked(), 0);
    }
}

/// Counts what leaves a host that is not a packet of the lane.
fn watch(place: &Place) {
    place.nft(&format!(
        "table inet watch {{
            counter beside {{ }}
            chain out {{
                type filter hook postrouting priority 300;
                oifname \"lo\" accept
                tcp dport {LANE} accept
                meta l4proto {{ tcp, udp }} counter name beside
            }}
        }}\n"
    ));
}

#[test]
fn dig_gets_all_kinds_of_answers_through_the_tunnel() {
    if !can_run(NEEDS) {
        return;
    }
    let many = (1..=60).fold(Zone::new(), |zone, last| {
        zone.address("many.example", 60, Ipv4Addr::new(192, 0, 2, last))
    });
    let zone = many
        .address("both.example", 60, ORIGIN4)
        .address("both.example", 60, ORIGIN6)
        .alias("one.example", 60, "two.example")
        .alias("two.example", 60, "both.example")
        .text("long.example", 60, vec!["x".repeat(200); 20])
        .text("both.example", 60, vec!["v=1".into()])
        .address("good.ads.example", 60, ORIGIN4);
    let scene = Scene::new(
        zone,
        "  records: [nas.home A 192.168.1.5, '*.dev.home AAAA 2001:db8::5', www.home CNAME both.example]
  split: ['corp.example=11.0.0.2:5300', lan=system]
  block: [ads.txt]
  allow: [good.txt]
",
    );
    assert_eq!(scene.short("both.example A"), ORIGIN4.to_string());
    assert_eq!(scene.short("both.example AAAA"), ORIGIN6.to_string());
    assert_eq!(scene.short("both.example TXT"), "\"v=1\"");
    assert_eq!(
        scene.short("one.example A"),
        format!("two.example.\nboth.example.\n{ORIGIN4}")
    );
    assert!(scene.dig("none.example A").contains("status: NXDOMAIN"));
    // The answer repeats the capitals of the question, also from the cache.
    let mixed = scene.dig("BoTh.eXaMpLe A");
    assert!(mixed.contains(";BoTh.eXaMpLe."), "{mixed}");
    assert!(mixed.contains("\nBoTh.eXaMpLe."), "{mixed}");

    // Cut without EDNS, whole with it or by TCP, and dig goes on by TCP by itself.
    let cut = scene.dig("+noedns +ignore many.example A");
    assert!(
        cut.contains("flags: qr tc rd ra") && cut.contains("ANSWER: 0"),
        "{cut}"
    );
    let whole = scene.dig("+bufsize=4096 +ignore many.example A");
    assert!(
        whole.contains("ANSWER: 60") && whole.contains("udp: 1232"),
        "{whole}"
    );
    assert!(scene.dig("+noedns many.example A").contains("ANSWER: 60"));
    assert_eq!(scene.short("long.example TXT").matches('x').count(), 4000);
    // Several questions on one connection.
    let stream =
        scene.dig("+tcp +keepopen +short both.example A @127.0.0.1 -p 5353 both.example AAAA");
    assert_eq!(stream.trim(), format!("{ORIGIN4}\n{ORIGIN6}"));
    assert!(
        scene
            .dig("+ednsopt=10:0011223344556677 both.example A")
            .contains("EDNS: version: 0")
    );
    let version = scene.dig("+edns=1 +noednsneg both.example A");
    assert!(version.contains("status: BADVERS"), "{version}");

    // What the configuration says.
    assert_eq!(scene.short("NAS.home A"), "192.168.1.5");
    assert_eq!(scene.short("intra.example A"), "10.1.2.3");
    assert!(scene.dig("nas.home AAAA").contains("status: NOERROR"));
    assert_eq!(scene.short("a.b.dev.home AAAA"), "2001:db8::5");
    assert_eq!(
        scene.short("www.home A"),
        format!("both.example.\n{ORIGIN4}")
    );
    let blocked = scene.dig("x.ads.example A");
    assert!(
        blocked.contains("status: NXDOMAIN") && blocked.contains("ads.txt"),
        "{blocked}"
    );
    assert!(scene.dig("exact.example A").contains("status: NXDOMAIN"));
    assert_eq!(scene.short("good.ads.example A"), ORIGIN4.to_string());
    assert_eq!(scene.short("git.corp.example A"), "10.9.8.7");
    assert_eq!(scene.short("printer.lan A"), "192.168.1.9");
    let asked = |dns: &Dns| -> Vec<String> {
        dns.asked()
            .into_iter()
            .map(|question| question.name)
            .collect()
    };
    assert_eq!(asked(&scene.corp), ["git.corp.example"]);
    assert_eq!(asked(&scene.system), ["printer.lan"]);
    let internet = asked(&scene.dns);
    for name in [
        "git.corp.example",
        "printer.lan",
        "nas.home",
        "x.ads.example",
    ] {
        assert!(!internet.iter().any(|asked| asked == name), "{name}");
    }
    proxy_agrees(&scene);
    command_tells(&scene);
    scene.assert_no_leak();
    // The counter counts: whoever asks the server's host directly is seen.
    scene
        .lab
        .client
        .try_run(&format!("dig +tries=1 +time=1 @{SERVER4} both.example"));
    assert!(scene.leaked() > 0);
}

/// What the proxy is asked for is found, and not found, by the same rules.
fn proxy_agrees(scene: &Scene) {
    let _origin = Origin::http(&scene.lab.internet, (ORIGIN4, 80).into());
    let get = |url: &str| {
        curl::get(
            &scene.lab.client,
            Via::Http(PROXY),
            url,
            &["-o", "/dev/null", "-w", "%{http_code}"],
        )
    };
    assert_eq!(get("http://www.home/bytes/10").stdout, "200");
    assert_eq!(get("http://good.ads.example/bytes/10").stdout, "200");
    assert_eq!(get("http://x.ads.example/bytes/10").stdout, "403");
}

/// `adit dns` says what is decided, why, and what the running client answers.
fn command_tells(scene: &Scene) {
    let say = |words: &[&str]| {
        let arguments = [&["dns", "-c", path(&scene.client_config)], words].concat();
        let told = scene
            .workdir
            .run_as(&scene.lab.client, User::Nobody, &arguments);
        assert!(told.status.success(), "{}", told.text());
        told.stdout
    };
    let blocked = say(&["x.ads.example"]);
    assert!(blocked.contains("ads.txt has ads.example"), "{blocked}");
    assert!(
        blocked.contains("127.0.0.1:5353 says: NXDOMAIN"),
        "{blocked}"
    );
    assert!(
        blocked.contains("rules: none decides, since it has no address"),
        "{blocked}"
    );
    let split = say(&["git.corp.example"]);
    assert!(
        split.contains("below corp.example are asked of 11.0.0.2:5300"),
        "{split}"
    );
    assert!(
        split.contains("git.corp.example. 60 A 10.9.8.7") || split.contains(" A 10.9.8.7"),
        "{split}"
    );
    let upstream = say(&["both.example", "aaaa"]);
    assert!(
        upstream.contains("no record, list or split is about this name"),
        "{upstream}"
    );
    assert!(
        upstream.contains("rules: through the tunnel (there is no rule)"),
        "{upstream}"
    );
    assert!(upstream.contains(&ORIGIN6.to_string()), "{upstream}");
    assert!(say(&["long.example", "TXT"]).contains("xxx"));
    let address = say(&["192.0.2.7"]);
    for told in [
        "192.0.2.7, an address: no name is resolved",
        "rules: through the tunnel (there is no rule)",
        "its name: 7.2.0.192.in-addr.arpa PTR",
        "the client on 127.0.0.1:5353 says: ",
    ] {
        assert!(address.contains(told), "{address}");
    }
}

#[test]
fn ten_thousand_questions_at_a_concurrency_of_100_are_all_answered() {
    if !can_run(NEEDS) {
        return;
    }
    let zone = (0..QUESTIONS).fold(Zone::new(), |zone, number| {
        zone.address(&format!("n{number}.example"), 60, address(number))
    });
    let mut scene = Scene::new(zone, "");
    let began = Instant::now();
    let answered = scene.lab.client.block_on(|| async {
        let askers = (0..ASKERS).map(|asker| async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            socket.connect(RESOLVER).await.expect("connects");
            let mut answered = 0;
            for number in (asker..QUESTIONS).step_by(ASKERS as usize) {
                answered += u32::from(is_answered(&socket, number).await);
            }
            answered
        });
        futures_util::future::join_all(askers)
            .await
            .into_iter()
            .sum::<u32>()
    });
    println!("{answered} answers in {:?}", began.elapsed());
    assert_eq!(answered, QUESTIONS);
    scene.assert_no_leak();
    let (status, _) = scene.client.stop();
    assert!(status.success());
}

/// Asks once, and says whether the right answer came.
async fn is_answered(socket: &UdpSocket, number: u32) -> bool {
    let mut query = vec![
        (number >> 8) as u8,
        number as u8,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    for label in [format!("n{number}"), "example".to_owned()] {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send(&query).await.expect("sends");
    let mut answer = [0; 512];
    match tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await {
        Ok(Ok(length)) => {
            answer[..2] == query[..2] && answer[..length].ends_with(&address(number).octets())
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xc633_0000 + number)
}

const QUESTIONS: u32 = 10_000;
const ASKERS: u32 = 100;

#[test]
fn nothing_leaves_beside_a_cut_tunnel_and_a_kept_list_serves_an_offline_start() {
    if !can_run(NEEDS) {
        return;
    }
    let zone = Zone::new()
        .address("both.example", 60, ORIGIN4)
        .address("late.example", 60, ORIGIN4)
        .address("lists.example", 60, ORIGIN4);
    let mut scene = Scene::new(
        zone,
        "  records: [nas.home A 192.168.1.5]
  block: ['http://lists.example:8080/list.txt']
",
    );
    serve_list(&scene.lab.internet);
    until(|| scene.dig("fetched.example A").contains("list.txt"));
    assert_eq!(scene.short("both.example A"), ORIGIN4.to_string());

    scene.lab.server.cut(LANE);
    let began = Instant::now();
    assert!(scene.dig("none.example A").contains("status: SERVFAIL"));
    assert!(began.elapsed() >= Duration::from_secs(4));
    until(|| scene.dig("none.example A").contains("the tunnel is down"));
    assert_eq!(scene.short("nas.home A"), "192.168.1.5");
    assert_eq!(scene.short("both.example A"), ORIGIN4.to_string());
    assert!(
        scene
            .dig("x.fetched.example A")
            .contains("status: NXDOMAIN")
    );
    // A question that waits is answered when the tunnel is back.
    scene.lab.server.mend();
    until(|| scene.short("late.example A") == ORIGIN4.to_string());

    scene.client.stop();
    scene.lab.server.cut(LANE);
    let arguments = [
        "client",
        "-c",
        path(&scene.client_config),
        "--log-level",
        "debug",
    ];
    let here = &scene.lab.client;
    scene.client = scene
        .workdir
        .start(here, User::Nobody, "client", &arguments);
    until(|| {
        let line = "dig +tries=1 +time=1 @127.0.0.1 -p 5353 fetched.example A";
        scene
            .lab
            .client
            .try_run(line)
            .stdout
            .contains("status: NXDOMAIN")
    });
    let down = scene.dig("both.example A");
    assert!(down.contains("status: SERVFAIL"), "{down}");
    assert!(down.contains("no server has answered yet"), "{down}");
    let asked = scene.system.asked();
    assert!(asked.is_empty(), "{asked:?}");
    scene.assert_no_leak();
}

/// Gives a list to everybody who asks, on port 8080.
fn serve_list(place: &Place) {
    let listener = place.spawn(|| TcpListener::bind((ORIGIN4, 8080)).expect("a port"));
    let listener = listener.join().expect("bound");
    std::thread::spawn(move || {
        let list = "# a list\nfetched.example\n";
        let mut answer = String::new();
        let _ = write!(
            answer,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}",
            list.len()
        );
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 2048];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

/// Waits until something is so.
fn until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "it never was");
        std::thread::sleep(Duration::from_millis(100));
    }
}
