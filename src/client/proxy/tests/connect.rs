use super::*;
use crate::client::down::Down;
use crate::client::proxy::fake::Route;
use crate::client::tunnel::ConnectError;

#[tokio::test]
async fn http_connect_carries_bytes_and_those_sent_ahead() {
    let proxy = Proxy::start().await;
    let origin = echo().await;
    let mut stream = proxy.connect().await;
    let request = format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\nearly");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.to_lowercase().contains("content-length"), "{head}");
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    expect(&mut stream, b"early").await;
    stream.write_all(b"more").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, b"more");
    assert_eq!(proxy.stats.http_connects.value(), 1);
    proxy.finish().await;
}

#[tokio::test]
async fn http_1_0_client_may_connect() {
    let proxy = Proxy::start().await;
    let origin = echo().await;
    let mut stream = proxy.connect().await;
    let request = format!("CONNECT {origin} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.contains(" 200 "), "{head}");
    stream.write_all(b"x").await.unwrap();
    expect(&mut stream, b"x").await;
    drop(stream);
    proxy.finish().await;
}

#[tokio::test]
async fn failed_connect_says_why_and_keeps_the_connection() {
    let proxy = Proxy::start().await;
    let cases = [
        (ConnectError::Refused, "502", "connection_refused"),
        (
            ConnectError::Unreachable,
            "502",
            "destination_ip_unroutable",
        ),
        (
            ConnectError::NetworkUnreachable,
            "502",
            "destination_ip_unroutable",
        ),
        (ConnectError::NoAddress, "502", "destination_ip_unroutable"),
        (ConnectError::TimedOut, "504", "connection_timeout"),
        (ConnectError::NotAllowed, "403", "destination_ip_prohibited"),
        (
            ConnectError::TunnelDown(Down::Lost),
            "503",
            "proxy_internal_error",
        ),
        (
            ConnectError::TooManyFlows,
            "503",
            "connection_limit_reached",
        ),
    ];
    let mut stream = proxy.connect().await;
    for (error, status, token) in cases {
        proxy.net.route("203.0.113.9:1", Route::Fails(error));
        let request = b"CONNECT 203.0.113.9:1 HTTP/1.1\r\nHost: 203.0.113.9:1\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        assert!(head.contains(&format!("error={token}")), "{head}");
        let length = head.split("content-length: ").nth(1).unwrap();
        let length = length.lines().next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains(&error.to_string()), "{body}");
    }
    drop(stream);
    proxy.finish().await;
}

#[tokio::test]
async fn http_password_is_wanted_and_checked() {
    let proxy = Proxy::with_password().await;
    let origin = echo().await;
    let connect = |field: &str| format!("CONNECT {origin} HTTP/1.1\r\nHost: x\r\n{field}\r\n");
    for field in ["", "Proxy-Authorization: Basic dXNlcjp3cm9uZw==\r\n"] {
        let mut stream = proxy.connect().await;
        stream.write_all(connect(field).as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
        assert!(head.contains("asic realm="), "{head}");
    }
    assert_eq!(proxy.stats.unauthorized.value(), 2);
    assert!(proxy.net.connects().is_empty());
    let mut stream = proxy.connect().await;
    let right = connect("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n");
    stream.write_all(right.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    drop(stream);
    proxy.finish().await;
}

#[tokio::test]
async fn pac_file_is_served_without_a_password_and_names_the_listener() {
    let proxy = Proxy::with_password().await;
    let answer = proxy
        .ask("GET /proxy.pac HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("application/x-ns-proxy-autoconfig"));
    assert!(answer.contains(&format!("\"PROXY {}\"", proxy.address)));
    proxy.finish().await;
}

#[tokio::test]
async fn client_that_goes_while_http_connects_takes_the_attempt_with_it() {
    let proxy = Proxy::start().await;
    proxy.net.route("203.0.113.9:1", Route::Silent);
    let mut stream = proxy.connect().await;
    let request = b"CONNECT 203.0.113.9:1 HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    while proxy.net.connects().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    proxy.net.settled().await;
    proxy.finish().await;
}
