//! The scene itself: origins, name server, namespaces, relay and clients do what other tests rely on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use adit_integration::{
    chromium::{self, Proxy},
    curl::{self, Via},
    dns::{Dns, Zone},
    namespaces::{self, Lab, ORIGIN4, ORIGIN6, Place, runtime},
    origin::{Certificate, Origin, PAGE_RESULT},
    relay::{Relay, Weather},
    skip::{Need, can_run},
    socks, stream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

#[test]
fn origin_serves_the_stream_that_the_test_can_hash() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let here = Place::here();
    let origin = Origin::http(&here, LOOPBACK.into());
    for path in ["bytes", "chunked", "slow"] {
        let url = origin.url(&format!("/{path}/10000?seed=5&pause=1"));
        let got = curl::download(&here, Via::Direct, &url);
        assert_eq!((got.code, got.length), (0, 10_000), "{got:?}");
        assert_eq!(got.sha256, stream::sha256(5, 10_000), "{path}");
    }
    let broken = curl::download(&here, Via::Direct, &origin.url("/broken/10000"));
    assert_ne!(broken.code, 0, "{broken:?}");
    let big = 64 << 20;
    let sent = curl::upload(&here, Via::Direct, &origin.url("/sink"), 9, big);
    assert_eq!(
        sent.stdout.trim(),
        format!("{big} {}", stream::sha256(9, big)),
        "{sent:?}"
    );
    let request = curl::get(
        &here,
        Via::Direct,
        &origin.url("/request"),
        &["-H", "X-Test: one"],
    );
    assert!(
        request.stdout.starts_with("GET /request\n") && request.stdout.contains("x-test: one"),
        "{request:?}"
    );
    assert_eq!(origin.total(), 6);
}

#[test]
fn https_origin_is_trusted_by_its_authority_only() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    let (here, workdir) = (Place::here(), tempfile::tempdir().expect("a folder"));
    let certificate = Certificate::new(&["localhost", "127.0.0.1"]);
    let origin = Origin::https(&here, LOOPBACK.into(), &certificate);
    let file = workdir.path().join("authority.pem");
    curl::write_authority(&file, &certificate.authority).expect("writes");
    let url = format!("https://127.0.0.1:{}/bytes/1000", origin.address().port());
    let trusted = curl::get(
        &here,
        Via::Direct,
        &url,
        &["--cacert", file.to_str().expect("text"), "-o", "/dev/null"],
    );
    assert!(trusted.status.success(), "{trusted:?}");
    let unknown = curl::get(&here, Via::Direct, &url, &[]);
    assert_eq!(unknown.status.code(), Some(60), "{unknown:?}");
}

#[test]
fn chromium_loads_the_page_with_all_its_parts() {
    if !can_run(&[Need::Browser]) {
        return;
    }
    let origin = Origin::http(&Place::here(), LOOPBACK.into());
    let page = chromium::dump(&Place::here(), Proxy::Direct, &origin.url("/page.html"));
    assert!(page.stdout.contains(PAGE_RESULT), "{page:?}");
}

#[test]
fn echoes_send_back() {
    let here = Place::here();
    let (tcp, udp) = (
        Origin::echo(&here, LOOPBACK.into()),
        Origin::udp_echo(&here, LOOPBACK.into()),
    );
    runtime().block_on(async {
        let mut stream = TcpStream::connect(tcp.address()).await.expect("connects");
        stream.write_all(b"hello").await.expect("writes");
        stream.shutdown().await.expect("half-closes");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("reads");
        assert_eq!(text, "hello");
        let socket = UdpSocket::bind(LOOPBACK).await.expect("binds");
        socket
            .send_to(b"datagram", udp.address())
            .await
            .expect("sends");
        let mut buffer = [0; 100];
        let (length, from) = socket.recv_from(&mut buffer).await.expect("receives");
        assert_eq!((&buffer[..length], from), (&b"datagram"[..], udp.address()));
    });
    assert_eq!((tcp.total(), udp.total()), (1, 1));
}

#[test]
fn hosts_of_a_lab_reach_only_their_neighbours() {
    if !can_run(&[
        Need::Root,
        Need::Tool("ip"),
        Need::Tool("nft"),
        Need::Tool("curl"),
    ]) {
        return;
    }
    let lab = Lab::new();
    let four = Origin::http(&lab.internet, (ORIGIN4, 80).into());
    let six = Origin::http(&lab.internet, (ORIGIN6, 80).into());
    for origin in [&four, &six] {
        let peer = curl::get(&lab.server, Via::Direct, &origin.url("/peer"), &[]);
        assert!(
            peer.stdout.contains("11.0.0.1:") || peer.stdout.contains("[2600:1f00::1]:"),
            "{peer:?}"
        );
        let none = curl::get(&lab.client, Via::Direct, &origin.url("/peer"), &[]);
        assert_eq!(none.status.code(), Some(7), "{none:?}");
    }
    let control = lab.server.run("ip route show 11.0.0.0/24");
    assert!(control.contains("congctl cubic"), "{control}");
    // two labs at once do not meet
    let other = Lab::new();
    let none = curl::get(&other.server, Via::Direct, &four.url("/peer"), &[]);
    assert_eq!(none.status.code(), Some(7), "{none:?}");
}

#[test]
fn lane_of_a_lab_can_be_cut_and_reset() {
    if !can_run(&[Need::Root, Need::Tool("ip"), Need::Tool("nft")]) {
        return;
    }
    let lab = Lab::new();
    let echo = Origin::echo(&lab.server, (namespaces::SERVER4, 7443).into());
    let address = echo.address();
    let (sender, mut commands) = tokio::sync::mpsc::unbounded_channel::<()>();
    let (answers, results) = std::sync::mpsc::channel();
    // says for each command whether a byte came back, or which error did
    let thread = lab.client.spawn(move || {
        runtime().block_on(async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            while commands.recv().await.is_some() {
                let echoed = async {
                    stream.write_all(b"x").await?;
                    stream.read_u8().await
                };
                let result = match tokio::time::timeout(Duration::from_secs(1), echoed).await {
                    Ok(Ok(byte)) => Ok(byte),
                    Ok(Err(error)) => Err(error.kind()),
                    Err(_) => Err(io::ErrorKind::TimedOut),
                };
                answers.send(result).expect("the test listens");
            }
        });
    });
    let ask = || {
        sender.send(()).expect("the thread runs");
        results.recv().expect("the thread answers")
    };
    assert_eq!(ask(), Ok(b'x'));
    lab.server.cut(7443);
    assert_eq!(ask(), Err(io::ErrorKind::TimedOut));
    // Without a moment in which the byte that was dropped could still be answered.
    lab.server.reset(7443);
    let broken = ask();
    assert!(
        matches!(broken, Err(kind) if kind != io::ErrorKind::TimedOut),
        "{broken:?}"
    );
    drop(sender);
    thread.join().expect("the thread ends");
}

#[test]
fn name_server_answers_what_its_zone_says() {
    if !can_run(&[Need::Root, Need::Tool("ip"), Need::Tool("dig")]) {
        return;
    }
    let lab = Lab::new();
    let zone = Zone::new()
        .address("www.example", 60, ORIGIN4)
        .address("www.example", 60, ORIGIN6)
        .alias("alias.example", 60, "www.example")
        .text("long.example", 60, vec!["x".repeat(200); 20]);
    let dns = Dns::start(&lab.internet, (ORIGIN4, 53).into(), zone);
    lab.server.set_resolver(ORIGIN4.into());
    let ask = |more: &str| lab.server.run(&format!("dig +tries=1 +time=5 {more}"));
    assert_eq!(ask("+short www.example A").trim(), "11.0.0.2");
    assert_eq!(ask("+short www.example AAAA").trim(), "2600:1f00::2");
    assert_eq!(
        ask("+short alias.example A").trim(),
        "www.example.\n11.0.0.2"
    );
    assert!(ask("none.example A").contains("NXDOMAIN"));
    let long = ask("long.example TXT");
    assert!(long.contains(&"x".repeat(200)), "{long}");
    let asked = dns.asked();
    assert!(
        asked
            .iter()
            .any(|question| question.tcp && question.name == "long.example"),
        "{asked:?}"
    );
    // and through the resolver of the host's own library
    let known = lab.server.run("getent ahosts www.example");
    assert!(
        known.contains("11.0.0.2") && known.contains("2600:1f00::2"),
        "{known}"
    );
}

#[test]
fn relay_records_freezes_breaks_mirrors_and_bends() {
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    let relay = Relay::start(echo.address());
    runtime().block_on(async {
        let quick = Duration::from_millis(300);
        let mut stream = TcpStream::connect(relay.address()).await.expect("connects");
        stream.write_all(b"a").await.expect("writes");
        assert_eq!(stream.read_u8().await.expect("reads"), b'a');
        relay.set(Weather::Frozen);
        stream.write_all(b"b").await.expect("writes");
        assert!(tokio::time::timeout(quick, stream.read_u8()).await.is_err());
        relay.set(Weather::Fair);
        assert_eq!(stream.read_u8().await.expect("reads"), b'b');
        relay.set(Weather::Broken);
        assert!(stream.read_u8().await.is_err());
        relay.set(Weather::Mirror);
        let mut stream = TcpStream::connect(relay.address()).await.expect("connects");
        stream.write_all(b"m").await.expect("writes");
        assert_eq!(stream.read_u8().await.expect("reads"), b'm');
        relay.set(Weather::Bend(1, 0x01));
        let mut stream = TcpStream::connect(relay.address()).await.expect("connects");
        stream.write_all(b"ab").await.expect("writes");
        let mut bent = [0; 2];
        stream.read_exact(&mut bent).await.expect("reads");
        assert_eq!(&bent, b"ac");
    });
    let records = relay.records();
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(
        (&records[0].up[..], &records[0].down[..]),
        (&b"ab"[..], &b"ab"[..])
    );
}

#[test]
fn socks_client_speaks_as_the_rfc_says() {
    let here = Place::here();
    let (tcp, udp) = (
        Origin::echo(&here, LOOPBACK.into()),
        Origin::udp_echo(&here, LOOPBACK.into()),
    );
    let (tcp, udp) = (tcp.address(), udp.address());
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime(), async move {
        let listener = TcpListener::bind(LOOPBACK).await.expect("binds");
        let proxy = listener.local_addr().expect("is bound");
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                tokio::task::spawn_local(async move { drop(small_proxy(stream).await) });
            }
        });
        let mut stream = socks::connect(proxy, tcp).await.expect("connects");
        stream.write_all(b"x").await.expect("writes");
        assert_eq!(stream.read_u8().await.expect("reads"), b'x');
        let refused = socks::connect(proxy, SocketAddr::from(([127, 0, 0, 1], 1))).await;
        assert!(
            matches!(refused, Err(socks::SocksError::Refused(5))),
            "{refused:?}"
        );
        let named = socks::connect(proxy, ("localhost", tcp.port())).await;
        assert!(
            matches!(named, Err(socks::SocksError::Refused(8))),
            "{named:?}"
        );
        let association = socks::associate(proxy).await.expect("associates");
        association.send_to(b"datagram", udp).await.expect("sends");
        assert_eq!(
            association.recv_from().await.expect("receives"),
            (b"datagram".to_vec(), udp)
        );
    });
}

/// Just enough of a proxy to try the client on: IPv4 only, 8 for every other kind of address.
async fn small_proxy(mut stream: TcpStream) -> io::Result<()> {
    let mut hello = [0; 3];
    stream.read_exact(&mut hello).await?;
    assert_eq!(hello, [5, 1, 0]);
    stream.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[3] != 1 {
        return stream.write_all(&[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]).await;
    }
    let mut address = [0; 6];
    stream.read_exact(&mut address).await?;
    let target = SocketAddr::from((
        [address[0], address[1], address[2], address[3]],
        u16::from_be_bytes([address[4], address[5]]),
    ));
    if head[1] == 1 {
        let Ok(mut origin) = TcpStream::connect(target).await else {
            return stream.write_all(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await;
        };
        stream.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 9]).await?;
        tokio::io::copy_bidirectional(&mut stream, &mut origin)
            .await
            .map(drop)
    } else {
        let relay = UdpSocket::bind(LOOPBACK).await?;
        let port = relay.local_addr()?.port().to_be_bytes();
        stream
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, port[0], port[1]])
            .await?;
        let mut buffer = [0; 1500];
        let (length, client) = relay.recv_from(&mut buffer).await?;
        assert_eq!(&buffer[..4], &[0, 0, 0, 1]);
        let origin = UdpSocket::bind(LOOPBACK).await?;
        let target = SocketAddr::from((
            [buffer[4], buffer[5], buffer[6], buffer[7]],
            u16::from_be_bytes([buffer[8], buffer[9]]),
        ));
        origin.send_to(&buffer[10..length], target).await?;
        let header = buffer[..10].to_vec();
        let length = origin.recv(&mut buffer).await?;
        relay
            .send_to(&[&header, &buffer[..length]].concat(), client)
            .await?;
        stream.read_u8().await.map(drop)
    }
}
