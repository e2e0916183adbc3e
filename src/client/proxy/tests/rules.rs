use super::*;
use crate::client::proxy::fake::{NameAnswer, Route};
use crate::client::rules::{InForce, Replace, Rules, listed};

/// A proxy with rules.
async fn with_rules(list: &[&str]) -> (Proxy, Replace) {
    let (replace, rules) = InForce::new(listed(list));
    let proxy = Proxy::with(ProxySettings {
        rules,
        ..ProxySettings::default()
    })
    .await;
    (proxy, replace)
}

/// A SOCKS5 request for a name or an address, without a password.
fn socks5(host: &str, port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 5, 1, 0];
    match host.parse::<std::net::Ipv4Addr>() {
        Ok(ip) => {
            request.push(1);
            request.extend(ip.octets());
        }
        Err(_) => {
            request.extend([3, u8::try_from(host.len()).unwrap()]);
            request.extend(host.as_bytes());
        }
    }
    request.extend(port.to_be_bytes());
    request
}

async fn socks_reply(proxy: &Proxy, host: &str, port: u16) -> (u8, TcpStream) {
    let mut stream = proxy.connect().await;
    stream.write_all(&socks5(host, port)).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    (answer[3], stream)
}

#[tokio::test]
async fn direct_flow_of_each_protocol_bypasses_the_tunnel() {
    let (proxy, _replace) = with_rules(&["direct 127.0.0.0/8"]).await;
    let origin = echo().await;
    let (code, mut stream) = socks_reply(&proxy, "127.0.0.1", origin.port()).await;
    assert_eq!(code, 0);
    stream.write_all(b"over").await.unwrap();
    expect(&mut stream, b"over").await;
    drop(stream);
    let mut stream = proxy.connect().await;
    let request = format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\nearly");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    expect(&mut stream, b"early").await;
    drop(stream);
    assert!(proxy.net.connects().is_empty(), "the tunnel saw none");
    assert_eq!(proxy.stats.direct.value(), 2);
    proxy.finish().await;
}

#[tokio::test]
async fn blocked_request_is_refused_in_words_and_asks_nobody() {
    let (proxy, _replace) = with_rules(&["block ads.test 203.0.113.0/24"]).await;
    proxy
        .net
        .name("elsewhere.test", NameAnswer::of(&["203.0.113.7"]));
    for host in ["ads.test", "x.ads.test", "203.0.113.1", "elsewhere.test"] {
        let (code, _stream) = socks_reply(&proxy, host, 80).await;
        assert_eq!(code, 2, "{host}");
        for request in [
            format!("CONNECT {host}:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        ] {
            let answer = String::from_utf8(proxy.ask(request).await).unwrap();
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
            assert!(answer.contains("error=http_request_denied"), "{answer}");
            assert!(answer.contains("a rule of this client blocks the destination"));
        }
    }
    let mut stream = proxy.connect().await;
    stream
        .write_all(b"\x04\x01\0\x50\0\0\0\x01\0ads.test\0")
        .await
        .unwrap();
    assert_eq!(read_all(&mut stream).await[..2], [0, 0x5b]);
    let asked = proxy.net.asked();
    assert!(
        asked.iter().all(|(name, _)| name == "elsewhere.test"),
        "{asked:?}"
    );
    assert!(proxy.net.connects().is_empty());
    assert_eq!(proxy.stats.blocked.value(), 13);
    assert_eq!(proxy.stats.origin_failed.value(), 0);
    proxy.finish().await;
}

#[tokio::test]
async fn addresses_that_are_blocked_are_passed_over_for_those_that_are_not() {
    let (proxy, _replace) = with_rules(&["block 203.0.113.0/24 2001:db8::/32"]).await;
    let origin = echo().await;
    let answer = NameAnswer::of(&["2001:db8::1", "203.0.113.7", "198.51.100.7"]);
    proxy.net.name("mixed.test", answer);
    proxy.net.route("198.51.100.7:80", Route::To(origin));
    let (code, mut stream) = socks_reply(&proxy, "mixed.test", 80).await;
    assert_eq!(code, 0);
    stream.write_all(b"x").await.unwrap();
    expect(&mut stream, b"x").await;
    let connects = proxy.net.connects();
    assert_eq!(connects, ["198.51.100.7:80".parse().unwrap()]);
    drop(stream);
    proxy.finish().await;
}

#[tokio::test]
async fn name_that_the_tunnel_rebinds_is_told_apart_from_a_blocked_one() {
    let (proxy, _replace) = with_rules(&["direct 192.168.0.0/16"]).await;
    proxy
        .net
        .name("evil.test", NameAnswer::of(&["192.168.1.1"]));
    let request = "GET http://evil.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(proxy.ask(request).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("resolves the name to a private address"));
    proxy.finish().await;
}

#[tokio::test]
async fn records_of_the_file_are_judged_by_their_addresses_and_nobody_is_asked_for_them() {
    let (proxy, _replace) =
        with_rules(&["block 192.0.2.0/24", "direct 127.0.0.2 dev.home www.home"]).await;
    proxy.net.records(&[
        // By a rule about its network alone, where what strangers say would be refused.
        "nas.home A 127.0.0.2",
        "spam.home A 192.0.2.1",
        // By a rule that names the name: this host's resolver knows nothing of it.
        "dev.home A 127.0.0.2",
        "www.home CNAME dev.home",
        // Through the tunnel.
        "far.home A 198.51.100.7",
    ]);
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["nas.home", "dev.home", "www.home"] {
        let (code, stream) = socks_reply(&proxy, host, port).await;
        assert_eq!(code, 0, "{host}");
        listener.accept().await.unwrap();
        drop(stream);
    }
    assert_eq!(socks_reply(&proxy, "spam.home", 80).await.0, 2);
    let origin = echo().await;
    proxy.net.route("198.51.100.7:80", Route::To(origin));
    let (code, stream) = socks_reply(&proxy, "far.home", 80).await;
    assert_eq!(code, 0);
    drop(stream);
    assert_eq!(proxy.net.connects(), ["198.51.100.7:80".parse().unwrap()]);
    assert!(proxy.net.asked().is_empty(), "{:?}", proxy.net.asked());
    assert_eq!(proxy.stats.direct.value(), 3);
    proxy.finish().await;
}

/// An origin that answers each request with its number on that connection, after the head.
async fn counting_web() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                for number in 1.. {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else {
                            return;
                        };
                        head.push(byte);
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn plain_http_request_is_judged_by_the_rules_of_its_time_and_keeps_what_they_do_not_concern()
{
    let (proxy, replace) = with_rules(&[]).await;
    let web = counting_web().await;
    let request = format!("GET http://{web}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut stream = proxy.connect().await;
    let number = async |stream: &mut TcpStream| {
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(stream).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream.read_u8().await.unwrap() - b'0'
    };
    assert_eq!(number(&mut stream).await, 1);
    assert_eq!(number(&mut stream).await, 2);
    replace.put(listed(&["block 203.0.113.0/24"]));
    assert_eq!(number(&mut stream).await, 3, "the same connection");
    replace.put(listed(&["direct 127.0.0.0/8"]));
    assert_eq!(number(&mut stream).await, 1, "another way");
    assert_eq!(number(&mut stream).await, 2);
    replace.put(listed(&["block *"]));
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(proxy.net.connects().len(), 1);
    drop(stream);
    proxy.finish().await;
}

#[tokio::test]
async fn upgraded_connection_ends_with_the_rules_that_let_it() {
    let (proxy, replace) = with_rules(&[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = listener.local_addr().unwrap();
    let origin = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut got = [0; 2];
        stream.read_exact(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
        read_all(&mut stream).await
    });
    let mut stream = proxy.connect().await;
    let request = format!(
        "GET http://{web}/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 101 "));
    replace.put(listed(&["block 203.0.113.0/24"]));
    stream.write_all(b"on").await.unwrap();
    expect(&mut stream, b"on").await;
    replace.put(listed(&["block 127.0.0.0/8"]));
    assert_eq!(read_all(&mut stream).await, b"");
    assert_eq!(origin.await.unwrap(), b"");
    assert_eq!(proxy.stats.overruled.value(), 1);
    replace.put(Rules::default());
    proxy.finish().await;
}
