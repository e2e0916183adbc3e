//! `adit try`: the first command of the README, with what everybody has: curl and a browser.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use adit_integration::{
    adit::{Adit, Pair, User, Workdir},
    chromium::{self, Proxy},
    curl::{self, Via},
    flows,
    namespaces::{Place, runtime},
    origin::{Certificate, Origin, PAGE_RESULT},
    process,
    skip::{Need, can_run},
    socks::{self, SocksError},
    stream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// The hang guard of one exchange.
const SOON: Duration = Duration::from_secs(20);

/// `adit try` without any right, and an HTTP origin.
struct Scene {
    adit: Adit,
    proxy: SocketAddr,
    origin: Origin,
    workdir: Workdir,
}

impl Scene {
    fn new() -> Self {
        let workdir = Workdir::new();
        let (adit, proxy) = workdir.start_try(User::ordinary());
        Self {
            adit,
            proxy,
            origin: Origin::http(&Place::here(), LOOPBACK.into()),
            workdir,
        }
    }

    /// Every way that curl knows to go through the proxy.
    fn ways(&self) -> [Via; 4] {
        [
            Via::Socks5h(self.proxy),
            Via::Socks4a(self.proxy),
            Via::Http(self.proxy),
            Via::HttpTunnel(self.proxy),
        ]
    }

    fn get(&self, via: Via, path: &str, more: &[&str]) -> process::Finished {
        curl::get(&Place::here(), via, &self.origin.url(path), more)
    }
}

#[test]
fn curl_reaches_the_origin_by_every_protocol_of_the_proxy() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let mut scene = Scene::new();
    for via in scene.ways() {
        for path in [
            "/bytes/300000?seed=2",
            "/chunked/300000?seed=2",
            "/slow/5000?seed=2&pause=1",
        ] {
            let got = curl::download(&Place::here(), via, &scene.origin.url(path));
            let length = if path.starts_with("/slow") {
                5000
            } else {
                300_000
            };
            assert_eq!(
                (got.code, got.length),
                (0, length),
                "{via:?} {path}: {got:?}"
            );
            assert_eq!(got.sha256, stream::sha256(2, length), "{via:?} {path}");
        }
        let sent = curl::upload(&Place::here(), via, &scene.origin.url("/sink"), 3, 400_000);
        assert_eq!(
            sent.stdout.trim(),
            format!("400000 {}", stream::sha256(3, 400_000)),
            "{via:?}: {sent:?}"
        );
        let name = format!(
            "http://localhost:{}/bytes/10",
            scene.origin.address().port()
        );
        let named = curl::get(
            &Place::here(),
            via,
            &name,
            &["-o", "/dev/null", "-w", "%{http_code}"],
        );
        assert_eq!(named.stdout, "200", "{via:?}: {named:?}");
    }
    assert_eq!(scene.adit.panics(), Vec::<String>::new());
    let (status, took) = scene.adit.stop();
    assert!(
        status.success() && took < Duration::from_secs(3),
        "{status} after {took:?}"
    );
}

#[test]
fn https_goes_through_by_socks_and_by_connect() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let scene = Scene::new();
    let certificate = Certificate::new(&["127.0.0.1"]);
    let origin = Origin::https(&Place::here(), LOOPBACK.into(), &certificate);
    let file = scene.workdir.path().join("authority.pem");
    curl::write_authority(&file, &certificate.authority).expect("writes");
    let url = format!("https://{}/peer", origin.address());
    for via in [Via::Socks5h(scene.proxy), Via::Http(scene.proxy)] {
        let got = curl::get(
            &Place::here(),
            via,
            &url,
            &["--cacert", file.to_str().expect("text")],
        );
        assert!(
            got.status.success() && got.stdout.starts_with("127.0.0.1:"),
            "{via:?}: {got:?}"
        );
    }
}

#[test]
fn gibibyte_down_and_up_keeps_its_hash() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let length = 1 << 30;
    let mut scene = Scene::new();
    let url = scene.origin.url(&format!("/bytes/{length}?seed=11"));
    let got = curl::download(&Place::here(), Via::Socks5h(scene.proxy), &url);
    assert_eq!((got.code, got.length), (0, length), "{got:?}");
    assert_eq!(got.sha256, stream::sha256(11, length));
    let sent = curl::upload(
        &Place::here(),
        Via::Socks5h(scene.proxy),
        &scene.origin.url("/sink"),
        12,
        length,
    );
    assert_eq!(
        sent.stdout.trim(),
        format!("{length} {}", stream::sha256(12, length)),
        "{sent:?}"
    );
    let meters = scene.adit.meters();
    assert!(meters.resident < 300 << 20, "after 2 GiB: {meters}");
}

#[test]
fn chromium_loads_a_page_by_socks_and_by_http() {
    if !can_run(&[Need::Browser]) {
        return;
    }
    let scene = Scene::new();
    for proxy in [Proxy::Socks5(scene.proxy), Proxy::Http(scene.proxy)] {
        let before = scene.origin.total();
        let page = chromium::dump(&Place::here(), proxy, &scene.origin.url("/page.html"));
        assert!(page.stdout.contains(PAGE_RESULT), "{proxy:?}: {page:?}");
        assert!(scene.origin.total() > before);
    }
}

#[test]
fn plain_http_is_forwarded_as_rfc_9110_says() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let scene = Scene::new();
    let via = Via::Http(scene.proxy);
    // what concerns this hop only is not passed on, and nothing else is lost
    let seen = scene.get(
        via,
        "/request",
        &[
            "-H",
            "Connection: close, X-Hop",
            "-H",
            "X-Hop: 1",
            "-H",
            "X-End: 2",
            "-H",
            "Proxy-Connection: keep-alive",
        ],
    );
    let text = seen.stdout.to_lowercase();
    assert!(
        text.starts_with("get /request\n") && text.contains("x-end: 2"),
        "{text}"
    );
    assert!(
        !text.contains("x-hop") && !text.contains("proxy-connection"),
        "{text}"
    );
    assert!(
        text.contains(&format!("host: {}", scene.origin.address())),
        "{text}"
    );
    // methods, queries and bodies arrive as they were sent
    let sent = scene.get(via, "/request?a=b&c", &["-X", "PATCH", "--data", "x"]);
    assert!(
        sent.stdout.starts_with("PATCH /request?a=b&c\n"),
        "{sent:?}"
    );
    let head = scene.get(via, "/bytes/77", &["--head"]);
    assert!(
        head.stdout.to_lowercase().contains("content-length: 77"),
        "{head:?}"
    );
    let missing = scene.get(via, "/none", &["-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(missing.stdout, "404", "{missing:?}");
    let sized = scene.get(via, "/sink", &["-X", "POST", "--data", "abc"]);
    assert!(sized.stdout.starts_with("3 "), "{sized:?}");
}

#[test]
fn one_connection_to_the_http_proxy_serves_many_requests() {
    let scene = Scene::new();
    let address = scene.origin.address();
    runtime().block_on(async {
        let mut proxy = TcpStream::connect(scene.proxy)
            .await
            .expect("the proxy accepts");
        for round in 0..5 {
            let request = format!(
                "GET http://{address}/bytes/1000?seed={round} HTTP/1.1\r\nHost: {address}\r\n\r\n"
            );
            proxy.write_all(request.as_bytes()).await.expect("writes");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(
                    tokio::time::timeout(SOON, proxy.read_u8())
                        .await
                        .expect("in time")
                        .expect("reads"),
                );
            }
            assert!(
                head.starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&head)
            );
            let mut body = vec![0; 1000];
            proxy.read_exact(&mut body).await.expect("reads");
            let mut hasher = stream::Hasher::new();
            hasher.update(&body);
            assert_eq!(hasher.finish(), stream::sha256(round, 1000));
        }
    });
}

#[test]
fn answer_that_ends_early_ends_early_for_the_caller() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let scene = Scene::new();
    for via in scene.ways() {
        let got = curl::download(&Place::here(), via, &scene.origin.url("/broken/4000000"));
        assert_ne!(got.code, 0, "{via:?}: {got:?}");
        assert!(got.length < 4_000_000, "{via:?}: {got:?}");
    }
}

#[test]
fn half_close_passes_both_ways() {
    let scene = Scene::new();
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    runtime().block_on(async {
        let mut stream = socks::connect(scene.proxy, echo.address())
            .await
            .expect("connects");
        let mut sent = vec![0; 500_000];
        stream::Stream::new(8).fill(&mut sent);
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        let mut back = Vec::new();
        let (sending, reading) = tokio::join!(
            send,
            tokio::time::timeout(SOON, read.read_to_end(&mut back))
        );
        sending.expect("sends");
        reading.expect("the end comes in time").expect("reads");
        assert!(
            back == sent,
            "{} of {} bytes came back",
            back.len(),
            sent.len()
        );
    });
}

#[test]
fn socks_replies_tell_the_truth() {
    let scene = Scene::new();
    runtime().block_on(async {
        let refused = socks::connect(scene.proxy, SocketAddr::from(([127, 0, 0, 1], 1))).await;
        assert!(
            matches!(refused, Err(SocksError::Refused(socks::CONNECTION_REFUSED))),
            "{refused:?}"
        );
        // RFC 6761: this name never exists
        let unknown = socks::connect(scene.proxy, ("no-such-host.invalid", 80)).await;
        assert!(
            matches!(unknown, Err(SocksError::Refused(socks::HOST_UNREACHABLE))),
            "{unknown:?}"
        );
    });
}

#[test]
fn http_errors_of_the_proxy_tell_the_truth() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let scene = Scene::new();
    let code = |url: &str| {
        let more = ["-o", "/dev/null", "-w", "%{http_code}"];
        curl::get(&Place::here(), Via::Http(scene.proxy), url, &more).stdout
    };
    assert_eq!(code("http://127.0.0.1:1/"), "502");
    assert_eq!(code("http://no-such-host.invalid/"), "502");
}

#[test]
fn proxy_serves_its_own_configuration_file() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let scene = Scene::new();
    let url = format!("http://{}/proxy.pac", scene.proxy);
    let got = curl::get(&Place::here(), Via::Direct, &url, &["-i"]);
    assert!(
        got.stdout.contains("application/x-ns-proxy-autoconfig"),
        "{got:?}"
    );
    assert!(
        got.stdout.contains("FindProxyForURL") && got.stdout.contains(&scene.proxy.to_string()),
        "{got:?}"
    );
}

#[test]
fn udp_goes_through_a_socks_association() {
    let scene = Scene::new();
    let echoes: Vec<_> = (0..3)
        .map(|_| Origin::udp_echo(&Place::here(), LOOPBACK.into()))
        .collect();
    runtime().block_on(async {
        let mut association = socks::associate(scene.proxy).await.expect("associates");
        for size in [0, 1, 100, 1200, 1400, 4000, 9000] {
            let mut payload = vec![0; size];
            stream::Stream::new(size as u64).fill(&mut payload);
            for echo in &echoes {
                association
                    .send_to(&payload, echo.address())
                    .await
                    .expect("sends");
                let received = tokio::time::timeout(SOON, association.recv_from()).await;
                let (back, from) = received
                    .unwrap_or_else(|_| panic!("{size} bytes were lost"))
                    .expect("receives");
                assert_eq!(from, echo.address());
                assert!(back == payload, "{size} bytes came back as {}", back.len());
            }
        }
        // endpoint-independent: all origins saw one address
        let peers: Vec<_> = echoes.iter().filter_map(Origin::last_peer).collect();
        assert!(peers.windows(2).all(|pair| pair[0] == pair[1]), "{peers:?}");
        // the association ends with its control connection
        association.control().shutdown().await.expect("closes");
        let _ = association.control().read_to_end(&mut Vec::new()).await;
        let before = echoes[0].total();
        let _ = association.send_to(b"late", echoes[0].address()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(echoes[0].total(), before);
    });
}

#[test]
fn many_small_connections_one_after_the_other_and_at_once() {
    let scene = Scene::new();
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    let (proxy, target) = (scene.proxy, echo.address());
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime(), async {
        for round in 0..50 {
            once(proxy, target, round)
                .await
                .unwrap_or_else(|error| panic!("connection {round}: {error}"));
        }
        let tasks: Vec<_> = (0..200)
            .map(|round| tokio::task::spawn_local(once(proxy, target, round)))
            .collect();
        for (round, task) in tasks.into_iter().enumerate() {
            let result = task.await.expect("the task does not panic");
            result.unwrap_or_else(|error| panic!("connection {round} of 200 at once: {error}"));
        }
    });
    assert_eq!(echo.total(), 250);
}

async fn once(proxy: SocketAddr, target: SocketAddr, round: usize) -> io::Result<()> {
    let mut stream = socks::connect(proxy, target)
        .await
        .map_err(io::Error::other)?;
    flows::echo(&mut stream, &[u8::try_from(round % 256).unwrap_or(0)], SOON).await
}

#[test]
fn password_is_asked_for_where_one_is_set() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let pair = Pair::start_with("tcp", "", "proxy_user: me\nproxy_password: secret");
    let origin = Origin::http(&Place::here(), LOOPBACK.into());
    runtime().block_on(async {
        let none = socks::connect(pair.proxy, origin.address()).await;
        assert!(matches!(none, Err(SocksError::NoMethod)), "{none:?}");
        let wrong = socks::connect_as(pair.proxy, Some(("me", "guess")), origin.address()).await;
        assert!(matches!(wrong, Err(SocksError::WrongPassword)), "{wrong:?}");
        let right = socks::connect_as(pair.proxy, Some(("me", "secret")), origin.address()).await;
        assert!(right.is_ok(), "{right:?}");
    });
    let code = |via, more: &[&str]| {
        let more = [
            more,
            &["-o", "/dev/null", "-w", "%{http_code}/%{http_connect}"],
        ]
        .concat();
        curl::get(&Place::here(), via, &origin.url("/peer"), &more).stdout
    };
    assert_eq!(code(Via::Http(pair.proxy), &[]), "407/000");
    assert_eq!(code(Via::HttpTunnel(pair.proxy), &[]), "000/407");
    assert_eq!(
        code(Via::Http(pair.proxy), &["--proxy-user", "me:guess"]),
        "407/000"
    );
    assert_eq!(
        code(Via::Http(pair.proxy), &["--proxy-user", "me:secret"]),
        "200/000"
    );
    assert_eq!(
        code(Via::HttpTunnel(pair.proxy), &["--proxy-user", "me:secret"]),
        "200/200"
    );
}

#[test]
fn line_that_it_prints_for_curl_works() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let (workdir, origin) = (
        Workdir::new(),
        Origin::http(&Place::here(), LOOPBACK.into()),
    );
    let (mut adit, proxy) = workdir.start_try(User::ordinary());
    let line = adit
        .process()
        .wait_for_line(SOON, |line| {
            line.contains("curl ") && line.contains(&proxy.to_string())
        })
        .expect("a line for curl is printed");
    // the line as it stands, up to its URL, which a test must not call
    let line = &line[line.find("curl ").expect("it was found")..];
    let words: Vec<_> = line
        .split_whitespace()
        .skip(1)
        .filter(|word| !word.starts_with("http://") && !word.starts_with("https://"))
        .collect();
    let mut command = Place::here().command("curl");
    command
        .args(["--disable", "--noproxy", ""])
        .args(words)
        .arg(origin.url("/peer"))
        .stdin(Stdio::null());
    let got = process::run(command, SOON);
    assert!(got.stdout.contains("127.0.0.1:"), "{line}: {got:?}");
    // What runs is found without a word about it, and ends without a trace.
    let status = workdir.run_as(&Place::here(), User::ordinary(), &["status"]);
    assert!(status.stdout.contains(": connected, "), "{}", status.text());
    assert!(!adit.process().text().contains("WARN"));
    adit.stop();
    let status = workdir.run_as(&Place::here(), User::ordinary(), &["status"]);
    assert!(status.stderr.contains("runs: start"), "{}", status.text());
}
