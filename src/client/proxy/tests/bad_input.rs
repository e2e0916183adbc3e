use super::*;
use tokio::io::ErrorKind;

/// What a client gets.
enum Gets {
    /// These bytes and the end.
    Exactly(&'static [u8]),
    /// An HTTP answer with this status, and the end.
    Status(&'static str),
}

#[tokio::test]
async fn bad_input_gets_the_clear_answer_and_hurts_nobody() {
    use Gets::{Exactly, Status};
    let long_line = [b"GET /".to_vec(), vec![b'a'; 80 * 1024]].concat();
    let many_headers = [
        b"GET http://127.0.0.1:1/ HTTP/1.1\r\n".to_vec(),
        b"A: b\r\n".repeat(200),
        b"\r\n".to_vec(),
    ]
    .concat();
    let unending_user = [
        b"\x04\x01\x00\x50\x7f\x00\x00\x01".to_vec(),
        vec![b'u'; 2000],
    ]
    .concat();
    let cases: Vec<(&str, &[u8], Gets)> = vec![
        ("socks5: no methods", b"\x05\x00", Exactly(b"\x05\xff")),
        ("socks5: only GSSAPI", b"\x05\x01\x01", Exactly(b"\x05\xff")),
        (
            "socks5: request of another version",
            b"\x05\x01\x00\x04\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
            Exactly(b"\x05\x00\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: BIND",
            b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
            Exactly(b"\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: unknown command",
            b"\x05\x01\x00\x05\x99\x00\x01\x7f\x00\x00\x01\x00\x50",
            Exactly(b"\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: unknown address type",
            b"\x05\x01\x00\x05\x01\x00\x02\x7f\x00\x00\x01\x00\x50",
            Exactly(b"\x05\x00\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: empty name",
            b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50",
            Exactly(b"\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: name with a zero byte",
            b"\x05\x01\x00\x05\x01\x00\x03\x03a\x00b\x00\x50",
            Exactly(b"\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: name that is not UTF-8",
            b"\x05\x01\x00\x05\x01\x00\x03\x02\xff\xfe\x00\x50",
            Exactly(b"\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks5: .onion",
            b"\x05\x01\x00\x05\x01\x00\x03\x07a.onion\x00\x50",
            Exactly(b"\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks4: BIND",
            b"\x04\x02\x00\x50\x7f\x00\x00\x01\x00",
            Exactly(b"\x00\x5b\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks4: user without an end",
            &unending_user,
            Exactly(b"\x00\x5b\x00\x00\x00\x00\x00\x00"),
        ),
        (
            "socks4a: empty name",
            b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
            Exactly(b"\x00\x5b\x00\x00\x00\x00\x00\x00"),
        ),
        ("http: garbage", b"\x00\x01\x02\x03\r\n\r\n", Status("400")),
        ("http: TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", Status("400")),
        ("http: SSH", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Status("400")),
        ("http: HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Exactly(b"")),
        ("http: unknown version", b"GET / HTTP/9.9\r\n\r\n", Status("400")),
        ("http: line too long", &long_line, Status("431")),
        ("http: too many headers", &many_headers, Status("431")),
        ("http: origin form", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        ("http: asterisk form", b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        ("http: PAC by POST", b"POST /proxy.pac HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("405")),
        ("http: https in absolute form", b"GET https://x/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        ("http: ftp", b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        ("http: host is no name", b"GET http://a..b/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        ("http: CONNECT without port", b"CONNECT x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        ("http: CONNECT to a path", b"CONNECT /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", Status("400")),
        (
            "http: two lengths",
            b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            Status("400"),
        ),
        (
            "http: negative length",
            b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            Status("400"),
        ),
        (
            "http: unknown transfer coding last",
            b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, x\r\n\r\n",
            Status("400"),
        ),
        (
            "http: space before the colon",
            b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost : x\r\n\r\n",
            Status("400"),
        ),
        (
            "http: bare carriage return in a field",
            b"GET http://127.0.0.1:1/ HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
            Status("400"),
        ),
        (
            "http: folded field",
            b"GET http://127.0.0.1:1/ HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            Status("400"),
        ),
    ];
    let proxy = Proxy::start().await;
    let origin = echo().await;
    let mut bystander = proxy.connect().await;
    let connect = format!("CONNECT {origin} HTTP/1.1\r\nHost: x\r\n\r\n");
    bystander.write_all(connect.as_bytes()).await.unwrap();
    read_head(&mut bystander).await;
    for (what, input, gets) in &cases {
        let answer = proxy.ask(input).await;
        match gets {
            Exactly(bytes) => assert_eq!(
                answer.escape_ascii().to_string(),
                bytes.escape_ascii().to_string(),
                "{what}"
            ),
            Status(status) => {
                let line = String::from_utf8_lossy(&answer);
                assert!(
                    line.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{what}: {line}"
                );
            }
        }
        bystander.write_all(b"still here").await.unwrap();
        expect(&mut bystander, b"still here").await;
    }
    assert_eq!(proxy.net.connects(), [origin]);
    drop(bystander);
    proxy.finish().await;
}

#[tokio::test]
async fn input_cut_off_anywhere_ends_the_connection_and_leaks_nothing() {
    let proxy = Proxy::start().await;
    let inputs: [&[u8]; 4] = [
        b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.com\x00\x50",
        b"\x04\x01\x00\x50\x00\x00\x00\x01user\0example.com\0",
        b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"",
    ];
    for input in inputs {
        for end in 0..input.len() {
            let mut stream = proxy.connect().await;
            stream.write_all(&input[..end]).await.unwrap();
            stream.shutdown().await.unwrap();
            read_all(&mut stream).await;
        }
    }
    assert!(proxy.net.connects().is_empty());
    proxy.finish().await;
}

/// Settings under which time-outs come soon.
fn hasty() -> ProxySettings {
    ProxySettings {
        handshake_timeout: Duration::from_millis(150),
        ..ProxySettings::default()
    }
}

#[tokio::test]
async fn silence_and_slow_drip_are_ended_by_the_handshake_time_out() {
    let proxy = Proxy::with(hasty()).await;
    let inputs: [&[u8]; 4] = [
        b"",
        b"\x05\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\x04\x01\x00\x50\x7f\x00\x00\x01uuuuuuuuuuuuuuuuuuuuuuuu",
        b"GET http://example.com/ HTTP/1.1\r\nA: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    ];
    for (n, input) in (1..).zip(inputs) {
        let mut stream = proxy.connect().await;
        let (mut read, mut write) = stream.split();
        let drip = async {
            for byte in input {
                if write.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            std::future::pending().await
        };
        let mut buffer = [0; 256];
        let ended = async {
            loop {
                match read.read(&mut buffer).await {
                    Ok(0) => return,
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                    Err(error) => panic!("{error}"),
                    Ok(_) => {}
                }
            }
        };
        tokio::select! {
            () = ended => {}
            () = drip => {}
        }
        while proxy.stats.handshake_timed_out.value() < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(proxy.stats.handshake_timed_out.value(), 4);
    proxy.finish().await;
}

#[tokio::test]
async fn connection_beyond_the_limit_is_told_so_and_the_place_is_given_back() {
    let proxy = Proxy::with(ProxySettings {
        max_handshakes: 1,
        ..ProxySettings::default()
    })
    .await;
    let holder = proxy.connect().await;
    while proxy.stats.accepted.value() < 1 {
        tokio::task::yield_now().await;
    }
    // What is sent may come later than the refusal: then the close is all there is.
    for _ in 0..20 {
        let answer = proxy.ask("GET http://x/ HTTP/1.1\r\n\r\n").await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503 "));
    }
    assert_eq!(proxy.stats.refused_full.value(), 20);
    drop(holder);
    while proxy.stats.client_gone.value() < 1 {
        tokio::task::yield_now().await;
    }
    let answer = proxy
        .ask("GET /proxy.pac HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    proxy.finish().await;
}

#[tokio::test]
async fn busy_answer_has_the_length_that_it_says() {
    let answer = std::str::from_utf8(super::super::http::BUSY).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
}

#[tokio::test]
async fn stopping_ends_idle_and_busy_connections() {
    let proxy = Proxy::start().await;
    let mut idle = proxy.connect().await;
    let mut half = proxy.connect().await;
    half.write_all(b"\x05").await.unwrap();
    while proxy.stats.accepted.value() < 2 {
        tokio::task::yield_now().await;
    }
    proxy.finish().await;
    assert!(read_all(&mut idle).await.is_empty());
    assert!(read_all(&mut half).await.is_empty());
}

#[tokio::test]
async fn driver_that_has_gone_is_a_general_failure() {
    let proxy = Proxy::start().await;
    proxy.net.end_driver();
    let answer = proxy
        .ask(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
        .await;
    assert_eq!(answer[..4], [5, 0, 5, 1]);
    proxy.stop.cancel();
    proxy.task.await.unwrap();
}
