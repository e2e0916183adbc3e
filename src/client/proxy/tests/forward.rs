use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::*;
use crate::client::proxy::fake::NameAnswer;

/// An HTTP origin that says what it was asked.
struct Origin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Origin {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let service =
                    service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                let io = TokioIo::new(stream);
                tokio::spawn(http1::Builder::new().serve_connection(io, service));
            }
        });
        Self {
            address,
            connections,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Sends back the request's head and the length and sum of its body.
async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, mut body) = request.into_parts();
    let mut said = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        said.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let (mut len, mut sum) = (0, 0_u64);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.unwrap().into_data() {
            len += data.len();
            sum = data.iter().fold(sum, |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
            });
        }
    }
    said.push_str(&format!("body {len} {sum}\n"));
    Response::builder()
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("proxy-authenticate", "Basic")
        .header("x-end", "1")
        .body(Full::from(said))
        .unwrap()
}

fn pattern(len: usize) -> (Vec<u8>, u64) {
    let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
    let sum = bytes.iter().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    (bytes, sum)
}

/// A connection to the proxy that sends plain requests.
async fn http_client(proxy: &Proxy) -> client::SendRequest<Full<Bytes>> {
    let stream = proxy.connect().await;
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn request_is_forwarded_as_rfc_9110_says() {
    let proxy = Proxy::start().await;
    let origin = Origin::start().await;
    let mut client = http_client(&proxy).await;
    let request = Request::get(format!("http://u:p@{}/path?q=1", origin.address))
        .header("host", "elsewhere.test")
        .header("connection", "keep-alive, x-mine")
        .header("x-mine", "1")
        .header("proxy-authorization", "Basic dXNlcjpzZWNyZXQ=")
        .header("proxy-connection", "keep-alive")
        .header("te", "trailers")
        .header("x-end", "2")
        .body(Full::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers().clone();
    assert_eq!(headers.get("via").unwrap(), "1.1 adit");
    assert_eq!(headers.get("x-end").unwrap(), "1");
    for gone in ["x-hop", "proxy-authenticate", "connection"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    let said = text(response).await;
    assert!(said.starts_with("GET /path?q=1 HTTP/1.1\n"), "{said}");
    assert!(
        said.contains(&format!("host: {}\n", origin.address)),
        "{said}"
    );
    assert!(said.contains("via: 1.1 adit\n"), "{said}");
    assert!(said.contains("x-end: 2\n"), "{said}");
    for gone in ["x-mine", "proxy-", "te:", "elsewhere", "connection"] {
        assert!(!said.contains(gone), "{gone} in {said}");
    }
    drop(client);
    proxy.finish().await;
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let proxy = Proxy::start().await;
    let (first, second) = (Origin::start().await, Origin::start().await);
    let mut client = http_client(&proxy).await;
    for round in 0..10 {
        for origin in [&first, &second] {
            client.ready().await.unwrap();
            let request = Request::post(format!("http://{}/{round}", origin.address))
                .body(Full::from("abc"))
                .unwrap();
            let said = text(client.send_request(request).await.unwrap()).await;
            assert!(said.contains("body 3 "), "{said}");
        }
    }
    assert_eq!((first.connections(), second.connections()), (1, 1));
    assert_eq!(proxy.stats.accepted.value(), 1);
    assert_eq!(proxy.stats.http_forwards.value(), 20);
    drop(client);
    proxy.finish().await;
}

#[tokio::test]
async fn chunked_body_of_10_mib_arrives_whole() {
    let proxy = Proxy::start().await;
    let origin = Origin::start().await;
    let (bytes, sum) = pattern(10 << 20);
    let mut stream = proxy.connect().await;
    let head = format!(
        "POST http://{}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n",
        origin.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for chunk in bytes.chunks(30_011) {
        let size = format!("{:x}\r\n", chunk.len());
        stream.write_all(size.as_bytes()).await.unwrap();
        stream.write_all(chunk).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(read_all(&mut stream).await).unwrap();
    assert!(answer.contains("transfer-encoding: chunked\n"), "{answer}");
    assert!(
        answer.contains(&format!("body {} {sum}\n", bytes.len())),
        "{answer}"
    );
    proxy.finish().await;
}

#[tokio::test]
async fn chunked_body_of_a_get_is_not_lost() {
    let proxy = Proxy::start().await;
    let origin = Origin::start().await;
    let request = format!(
        "GET http://{}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        origin.address
    );
    let answer = String::from_utf8(proxy.ask(request).await).unwrap();
    assert!(answer.contains("body 3 "), "{answer}");
    proxy.finish().await;
}

/// An origin that answers its n-th connection with the n-th of these, byte for byte,
/// once it has read a head; the requests are kept.
async fn raw_origin(answers: &'static [&'static [u8]]) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            kept.lock().unwrap().push(head);
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = read_all(&mut stream).await;
        }
    });
    (address, heads)
}

async fn get(proxy: &Proxy, url: &str) -> String {
    let request = format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    String::from_utf8(proxy.ask(request).await).unwrap()
}

#[tokio::test]
async fn answers_of_all_framings_are_passed_on() {
    let proxy = Proxy::start().await;
    let (origin, _) = raw_origin(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ])
    .await;
    for _ in 0..4 {
        let answer = get(&proxy, &format!("http://{origin}/")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(
            [
                "hello",
                "5\r\nhello\r\n0\r\n\r\n",
                "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
            ]
            .contains(&body),
            "{answer}"
        );
    }
    proxy.finish().await;
}

#[tokio::test]
async fn head_and_304_have_a_length_and_no_body() {
    let proxy = Proxy::start().await;
    let (origin, _) = raw_origin(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
    ])
    .await;
    let request = format!("HEAD http://{origin}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = String::from_utf8(proxy.ask(request).await).unwrap();
    assert!(
        answer.to_lowercase().contains("content-length: 12345\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = get(&proxy, &format!("http://{origin}/")).await;
    assert!(answer.starts_with("HTTP/1.1 304 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    proxy.finish().await;
}

#[tokio::test]
async fn http_1_0_client_gets_a_body_that_ends_with_the_connection() {
    let proxy = Proxy::start().await;
    let (origin, heads) = raw_origin(&[
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ])
    .await;
    let request = format!("GET http://{origin}/ HTTP/1.0\r\n\r\n");
    let answer = String::from_utf8(proxy.ask(request).await).unwrap();
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(
        !answer.to_lowercase().contains("transfer-encoding"),
        "{answer}"
    );
    let head = heads.lock().unwrap()[0].to_lowercase();
    assert!(head.starts_with("get / http/1.1\r\n"), "{head}");
    assert!(head.contains("via: 1.0 adit\r\n"), "{head}");
    proxy.finish().await;
}

#[tokio::test]
async fn answer_cut_short_is_not_passed_on_as_whole() {
    let proxy = Proxy::start().await;
    let (origin, _) = raw_origin(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ])
    .await;
    for _ in 0..2 {
        let mut client = http_client(&proxy).await;
        let request = Request::get(format!("http://{origin}/"))
            .body(Full::default())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
    }
    proxy.finish().await;
}

#[tokio::test]
async fn answer_that_is_not_http_is_a_502_that_says_so() {
    let proxy = Proxy::start().await;
    let (origin, _) = raw_origin(&[
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ])
    .await;
    for _ in 0..4 {
        let answer = get(&proxy, &format!("http://{origin}/")).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains(&origin.to_string()), "{answer}");
    }
    proxy.finish().await;
}

#[tokio::test]
async fn kept_connection_that_the_origin_closed_is_replaced() {
    let proxy = Proxy::start().await;
    let (origin, heads) = raw_origin(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo",
    ])
    .await;
    let mut client = http_client(&proxy).await;
    for expected in ["one", "two"] {
        client.ready().await.unwrap();
        let request = Request::get(format!("http://{origin}/"))
            .body(Full::default())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(text(response).await, expected);
    }
    assert_eq!(heads.lock().unwrap().len(), 2);
    drop(client);
    proxy.finish().await;
}

#[tokio::test]
async fn upgraded_connection_carries_bytes_both_ways_and_those_sent_ahead() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let origin = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = read_head(&mut stream).await.to_lowercase();
        assert!(head.contains("connection: upgrade\r\n"), "{head}");
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("sec-websocket-key: k\r\n"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhello from the origin";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut stream = proxy.connect().await;
    let request = format!(
        "GET http://{address}/ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: websocket\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: a\r\n"), "{head}");
    expect(&mut stream, b"hello from the origin").await;
    stream.write_all(b"echo me").await.unwrap();
    expect(&mut stream, b"echo me").await;
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, b"");
    origin.await.unwrap();
    assert_eq!(proxy.stats.http_upgrades.value(), 1);
    proxy.finish().await;
}

#[tokio::test]
async fn body_waits_for_the_origin_when_the_client_expects_100() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let head = format!(
        "POST http://{address}/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
         Content-Length: 4\r\n\r\n"
    );
    let mut stream = proxy.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut origin, _) = listener.accept().await.unwrap();
    let seen = read_head(&mut origin).await.to_lowercase();
    assert!(seen.contains("expect: 100-continue\r\n"), "{seen}");
    origin
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    let interim = read_head(&mut stream).await;
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    stream.write_all(b"body").await.unwrap();
    expect(&mut origin, b"body").await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    origin.write_all(answer).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    expect(&mut stream, b"ok").await;
    drop((stream, origin));
    proxy.finish().await;
}

#[tokio::test]
async fn refused_expectation_reaches_the_client_without_a_100() {
    let proxy = Proxy::start().await;
    let (origin, _) =
        raw_origin(&[b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"]).await;
    let request = format!(
        "POST http://{origin}/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
         Content-Length: 99999999\r\n\r\n"
    );
    let answer = String::from_utf8(proxy.ask(request).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nno"), "{answer}");
    proxy.finish().await;
}

#[tokio::test]
async fn connection_whose_origin_did_not_want_the_body_ends_with_the_answer() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut stream = proxy.connect().await;
    let head = format!(
        "POST http://{address}/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
         Content-Length: 4\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut origin, _) = listener.accept().await.unwrap();
    read_head(&mut origin).await;
    // A client need not wait for ever (RFC 9110 section 10.1.1): its body is read, and goes nowhere.
    stream.write_all(b"body").await.unwrap();
    let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\n";
    origin.write_all(answer).await.unwrap();
    let refused = read_head(&mut stream).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    origin.write_all(b"no").await.unwrap();
    expect(&mut stream, b"no").await;
    assert_eq!(read_all(&mut origin).await, b"", "no body, and the end");
    let head = format!("GET http://{address}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut other, _) = listener.accept().await.unwrap();
    assert!(read_head(&mut other).await.starts_with("GET / "));
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    other.write_all(answer).await.unwrap();
    read_head(&mut stream).await;
    expect(&mut stream, b"ok").await;
    drop((stream, other));
    proxy.finish().await;
}

#[tokio::test]
async fn max_forwards_stops_at_the_proxy() {
    let proxy = Proxy::start().await;
    let origin = Origin::start().await;
    let ask = |method: &str, hops: &str| {
        proxy.ask(format!(
            "{method} http://{}/x HTTP/1.1\r\nHost: x\r\nMax-Forwards: {hops}\r\n\
             Cookie: secret\r\nConnection: close\r\n\r\n",
            origin.address
        ))
    };
    let answer = String::from_utf8(ask("TRACE", "0").await).unwrap();
    assert!(answer.contains("content-type: message/http"), "{answer}");
    assert!(answer.contains("TRACE http://"), "{answer}");
    assert!(!answer.contains("secret"), "{answer}");
    let answer = String::from_utf8(ask("OPTIONS", "0").await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(origin.connections(), 0);
    let answer = String::from_utf8(ask("OPTIONS", "1").await).unwrap();
    assert!(answer.contains("max-forwards: 0\n"), "{answer}");
    let answer = String::from_utf8(ask("OPTIONS", "x").await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    proxy.finish().await;
}

#[tokio::test]
async fn name_that_does_not_exist_is_a_502_that_says_so() {
    let proxy = Proxy::start().await;
    let answer = get(&proxy, "http://no-such-name.test/").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("the name does not exist"), "{answer}");
    assert!(answer.contains("adit; error=dns_error"), "{answer}");
    proxy.net.name("empty.test", NameAnswer::of(&[]));
    let answer = get(&proxy, "http://empty.test/").await;
    assert!(answer.contains("no address"), "{answer}");
    proxy.finish().await;
}

#[tokio::test]
async fn large_download_is_not_collected_when_the_client_does_not_read() {
    let proxy = Proxy::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    const LEN: usize = 64 << 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let origin = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunk = [7; 64 * 1024];
        while counted.load(Ordering::Relaxed) < LEN {
            stream.write_all(&chunk).await.unwrap();
            counted.fetch_add(chunk.len(), Ordering::Relaxed);
        }
    });
    let mut client = http_client(&proxy).await;
    let request = Request::get(format!("http://{address}/"))
        .body(Full::default())
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    // Until everybody has stopped: the origin waits because nobody reads.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < LEN, "{before} bytes were taken from the origin");
    let mut body = response.into_body();
    let mut len = 0;
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else {
            break;
        };
        len += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(len, LEN);
    origin.await.unwrap();
    drop(client);
    proxy.finish().await;
}
