//! The resolver over a fake tunnel, and the local resolver's sockets in front of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::listen::LocalResolver;
use super::policy::Lists;
use super::*;
use crate::client::proxy::fake::{FakeNet, NameAnswer, Route, Session};
use crate::config::{BlockedAnswer, DnsConfig};
use crate::io::outside::Outside;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, kind: RecordType) -> Question {
    Question::new(&name(text), kind)
}

fn config(records: &[&str]) -> DnsConfig {
    DnsConfig {
        records: records.iter().map(|text| text.parse().unwrap()).collect(),
        ..DnsConfig::default()
    }
}

fn blocking(names: &[&str]) -> Lists {
    let mut lists = Lists {
        labels: vec!["ads.txt".to_owned()],
        ..Lists::default()
    };
    for name in names {
        let inserted = lists.block.insert(name.as_bytes(), Scope::Subdomains, 0);
        inserted.unwrap();
    }
    lists
}

/// The code and the records of an answer: `NOERROR www.test.=CNAME,nas.test.=A`.
async fn told(dns: &Dns, text: &str, kind: RecordType) -> String {
    let reply = dns.answer(&question(text, kind)).await;
    let records: Vec<String> = reply
        .answers()
        .iter()
        .map(|record| format!("{}={}", record.name, record.data))
        .collect();
    format!("{:?} {}", reply.code(), records.join(","))
}

#[tokio::test]
async fn records_of_the_configuration_are_answered_without_asking() {
    let net = FakeNet::new().await;
    let records = [
        "nas.test A 192.0.2.1",
        "nas.test TXT hello",
        "*.dev.test AAAA 2001:db8::1",
        "www.test CNAME nas.test",
        "loop.test CNAME loop.test",
    ];
    let dns = Dns::new(&config(&records), net.tunnel.clone()).unwrap();
    for (text, kind, expected) in [
        ("NAS.test.", RecordType::A, "NoError nas.test.=192.0.2.1"),
        ("nas.test.", RecordType::TXT, "NoError nas.test.=hello"),
        ("nas.test.", RecordType::AAAA, "NoError "),
        ("nas.test.", RecordType::MX, "NoError "),
        (
            "a.dev.test.",
            RecordType::AAAA,
            "NoError a.dev.test.=2001:db8::1",
        ),
        (
            "www.test.",
            RecordType::A,
            "NoError www.test.=nas.test.,nas.test.=192.0.2.1",
        ),
        (
            "www.test.",
            RecordType::CNAME,
            "NoError www.test.=nas.test.",
        ),
        (
            "a.localhost.",
            RecordType::A,
            "NoError a.localhost.=127.0.0.1",
        ),
        ("localhost.", RecordType::AAAA, "NoError localhost.=::1"),
        ("localhost.", RecordType::MX, "NoError "),
        ("x.onion.", RecordType::A, "NXDomain "),
        ("x.invalid.", RecordType::A, "NXDomain "),
    ] {
        assert_eq!(told(&dns, text, kind).await, expected, "{text} {kind}");
    }
    // Aliases that go in circles end.
    let circle = told(&dns, "loop.test.", RecordType::A).await;
    assert!(
        circle.starts_with("NoError loop.test.=loop.test."),
        "{circle}"
    );
    assert!(net.asked().is_empty());
}

#[tokio::test]
async fn alias_of_the_configuration_is_followed_to_the_upstream_and_kept() {
    let net = FakeNet::new().await;
    net.name("far.test", NameAnswer::of(&["192.0.2.9"]));
    let dns = Dns::new(&config(&["www.test CNAME far.test"]), net.tunnel.clone()).unwrap();
    for _ in 0..2 {
        assert_eq!(
            told(&dns, "www.test.", RecordType::A).await,
            "NoError www.test.=far.test.,far.test.=192.0.2.9"
        );
    }
    assert_eq!(net.asked().len(), 1);
}

#[tokio::test]
async fn blocked_names_do_not_exist_or_lead_nowhere_and_are_counted() {
    let net = FakeNet::new().await;
    net.name("good.test", NameAnswer::of(&["192.0.2.9"]));
    let dns = Dns::plain(net.tunnel.clone());
    dns.change_policy(|policy| policy.with_lists(blocking(&["ads.test"])));
    let reply = dns.answer(&question("x.ads.test.", RecordType::A)).await;
    assert!(reply.is_blocked());
    assert_eq!(reply.code(), ResponseCode::NXDomain);
    assert_eq!(reply.authorities().len(), 1);
    assert_eq!(
        told(&dns, "good.test.", RecordType::A).await,
        "NoError good.test.=192.0.2.9"
    );
    assert_eq!(dns.stats().blocked.load(Ordering::Relaxed), 1);
    let zero = DnsConfig {
        blocked: BlockedAnswer::Zero,
        ..config(&["alias.test CNAME www.ads.test"])
    };
    let dns = Dns::new(&zero, net.tunnel.clone()).unwrap();
    dns.change_policy(|policy| policy.with_lists(blocking(&["ads.test"])));
    for (text, kind, expected) in [
        ("ads.test.", RecordType::A, "NoError ads.test.=0.0.0.0"),
        ("ads.test.", RecordType::AAAA, "NoError ads.test.=::"),
        ("ads.test.", RecordType::TXT, "NoError "),
        (
            "alias.test.",
            RecordType::A,
            "NoError alias.test.=www.ads.test.,www.ads.test.=0.0.0.0",
        ),
    ] {
        assert_eq!(told(&dns, text, kind).await, expected);
    }
    assert_eq!(net.asked().len(), 1);
}

#[tokio::test]
async fn same_question_of_many_goes_out_once() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
    let dns = Dns::plain(net.tunnel.clone());
    let answers = (0..100).map(|_| told(&dns, "a.test.", RecordType::A));
    for answer in join_all(answers).await {
        assert_eq!(answer, "NoError a.test.=192.0.2.1");
    }
    assert_eq!(net.asked().len(), 1);
    assert_eq!(dns.stats().joined.load(Ordering::Relaxed), 99);
    let again = dns.from_memory(&question("A.Test.", RecordType::A));
    assert!(again.is_some());
    net.settled().await;
}

#[tokio::test]
async fn question_is_held_until_there_is_a_session() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
    net.configure(Session::Down);
    let dns = Dns::plain(net.tunnel.clone());
    let mut asking = Box::pin(told(&dns, "a.test.", RecordType::A));
    assert!(
        timeout(Duration::from_millis(100), asking.as_mut())
            .await
            .is_err()
    );
    net.configure(Session::Up);
    assert_eq!(asking.await, "NoError a.test.=192.0.2.1");
}

#[tokio::test]
async fn question_without_a_session_fails_within_the_limit_and_leaves_nothing() {
    let net = FakeNet::new().await;
    net.configure(Session::Down);
    let dns = Dns::plain(net.tunnel.clone());
    let began = Instant::now();
    let questions = ["a.test.", "b.test."].map(|text| question(text, RecordType::A));
    let (reply, other) = tokio::join!(dns.answer(&questions[0]), dns.answer(&questions[1]));
    assert!(began.elapsed() >= ANSWER_LIMIT);
    assert_eq!(reply.code(), ResponseCode::ServFail);
    assert_eq!(other.code(), ResponseCode::ServFail);
    assert_eq!(dns.stats().failed.load(Ordering::Relaxed), 2);
    assert!(net.asked().is_empty());
}

#[tokio::test]
async fn silent_upstream_is_passed_over_and_the_one_that_answers_is_asked_first_then() {
    let net = FakeNet::new().await;
    net.name(
        "a.test",
        NameAnswer::Addresses {
            ttl: 0,
            addresses: vec![IpAddr::from([192, 0, 2, 1])],
        },
    );
    // Nobody is behind the first; the connection to it never stands.
    net.route("192.0.2.99:853", Route::Silent);
    let upstreams = ["tls://192.0.2.99", "10.86.0.1"];
    let config = DnsConfig {
        upstream: upstreams.iter().map(|text| text.parse().unwrap()).collect(),
        ..DnsConfig::default()
    };
    let dns = Dns::over(
        &config,
        net.tunnel.clone(),
        Some(Arc::new(tls_client(None))),
        Outside::default(),
    );
    let began = Instant::now();
    assert_eq!(
        told(&dns, "a.test.", RecordType::A).await,
        "NoError a.test.=192.0.2.1"
    );
    assert!(began.elapsed() >= Duration::from_secs(2));
    let began = Instant::now();
    assert_eq!(
        told(&dns, "a.test.", RecordType::A).await,
        "NoError a.test.=192.0.2.1"
    );
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn split_rule_asks_another_upstream_through_the_tunnel() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
    let (acceptor, client) = tls_pair(&["corp.example"], &[]);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    net.route("192.0.2.53:853", Route::To(server.local_addr().unwrap()));
    net.name("corp.example", NameAnswer::of(&["192.0.2.53"]));
    let served = tokio::spawn(serve_tls(server, acceptor));
    let config = DnsConfig {
        split: vec!["corp.test=tls://corp.example".parse().unwrap()],
        ..DnsConfig::default()
    };
    let dns = Dns::over(
        &config,
        net.tunnel.clone(),
        Some(Arc::new(client)),
        Outside::default(),
    );
    let answers = join_all((0..50).map(|n| {
        let dns = &dns;
        async move { told(dns, &format!("n{n}.corp.test."), RecordType::A).await }
    }));
    for (n, answer) in answers.await.into_iter().enumerate() {
        assert_eq!(answer, format!("NoError n{n}.corp.test.=192.0.2.77"));
    }
    assert_eq!(
        told(&dns, "a.test.", RecordType::A).await,
        "NoError a.test.=192.0.2.1"
    );
    assert_eq!(dns.stats().split.load(Ordering::Relaxed), 50);
    // All went over one connection; only its own name and the other were asked beside.
    assert_eq!(net.connects(), ["192.0.2.53:853".parse().unwrap()]);
    assert_eq!(net.asked().len(), 2);
    served.abort();
}

#[tokio::test]
async fn name_server_with_another_certificate_is_not_believed() {
    let net = FakeNet::new().await;
    let (acceptor, client) = tls_pair(&["other.example"], &[]);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    net.route("192.0.2.53:853", Route::To(server.local_addr().unwrap()));
    let served = tokio::spawn(serve_tls(server, acceptor));
    let config = DnsConfig {
        upstream: vec!["tls://192.0.2.53".parse().unwrap()],
        ..DnsConfig::default()
    };
    let dns = Dns::over(
        &config,
        net.tunnel.clone(),
        Some(Arc::new(client)),
        Outside::default(),
    );
    assert_eq!(told(&dns, "a.test.", RecordType::A).await, "ServFail ");
    served.abort();
}

#[tokio::test]
async fn dns_over_https_is_asked_by_its_url() {
    let net = FakeNet::new().await;
    let (acceptor, client) = tls_pair(&["doh.example"], &[b"h2"]);
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    net.route("192.0.2.54:8443", Route::To(server.local_addr().unwrap()));
    net.name("doh.example", NameAnswer::of(&["192.0.2.54"]));
    let served = tokio::spawn(serve_https(server, acceptor));
    let config = DnsConfig {
        upstream: vec!["https://doh.example:8443/my-query".parse().unwrap()],
        ..DnsConfig::default()
    };
    let dns = Dns::over(
        &config,
        net.tunnel.clone(),
        Some(Arc::new(client)),
        Outside::default(),
    );
    let answers = join_all((0..50).map(|n| {
        let dns = &dns;
        async move { told(dns, &format!("n{n}.test."), RecordType::A).await }
    }));
    for (n, answer) in answers.await.into_iter().enumerate() {
        assert_eq!(answer, format!("NoError n{n}.test.=192.0.2.77"));
    }
    assert_eq!(net.connects(), ["192.0.2.54:8443".parse().unwrap()]);
    served.abort();
}

/// A certificate for these names, an acceptor that has it, and a client that trusts it.
fn tls_pair(names: &[&str], alpn: &[&[u8]]) -> (TlsAcceptor, rustls::ClientConfig) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (
        TlsAcceptor::from(Arc::new(server)),
        tls_client(Some(certificate)),
    )
}

fn tls_client(trusted: Option<rustls::pki_types::CertificateDer<'static>>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(certificate) = trusted {
        roots.add(certificate).unwrap();
    }
    rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Says of every name that it is at 192.0.2.77.
fn seventy_seven(query: &[u8]) -> Vec<u8> {
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};
    let query = Message::from_vec(query).unwrap();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    let asked = query.queries[0].clone();
    let data = RData::A(A([192, 0, 2, 77].into()));
    answer.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
    answer.add_query(asked);
    answer.to_vec().unwrap()
}

async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that does not believe us goes away.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            while let Ok(len) = stream.read_u16().await {
                let mut query = vec![0; usize::from(len)];
                stream.read_exact(&mut query).await.unwrap();
                let answer = seventy_seven(&query);
                stream
                    .write_u16(u16::try_from(answer.len()).unwrap())
                    .await
                    .unwrap();
                stream.write_all(&answer).await.unwrap();
                stream.flush().await.unwrap();
            }
        });
    }
}

async fn serve_https(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    assert_eq!(request.uri().path(), "/my-query");
                    let mut body = request.into_body();
                    let mut query = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        query.extend_from_slice(&data);
                    }
                    let response = hyper::Response::builder()
                        .header("content-type", "application/dns-message")
                        .body(())
                        .unwrap();
                    let mut out = respond.send_response(response, false).unwrap();
                    out.send_data(seventy_seven(&query).into(), true).unwrap();
                });
            }
        });
    }
}

/// A local resolver on loopback.
struct Local {
    address: SocketAddr,
    dns: Dns,
    stop: CancellationToken,
}

impl Local {
    fn new(dns: Dns) -> Self {
        let resolver = LocalResolver::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stop) = (resolver.address(), CancellationToken::new());
        tokio::spawn(resolver.serve(dns.clone(), stop.clone()));
        Self { address, dns, stop }
    }

    async fn socket(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    async fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        let socket = self.socket().await;
        socket.send(query).await.unwrap();
        let mut buffer = vec![0; 4096];
        let received = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
        let len = received.ok()?.unwrap();
        buffer.truncate(len);
        Some(buffer)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn query(id: u16, text: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), RecordType::A));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

#[tokio::test]
async fn datagrams_are_answered_in_the_capitals_in_which_they_ask() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
    let local = Local::new(Dns::plain(net.tunnel.clone()));
    for (id, text) in [(7, "a.test."), (8, "A.TesT.")] {
        let answer = Message::from_vec(&local.ask(&query(id, text, None)).await.unwrap()).unwrap();
        assert_eq!(answer.metadata.id, id);
        assert!(answer.queries[0].name().eq_case(&name(text)));
        assert_eq!(answer.answers.len(), 1);
    }
    assert_eq!(net.asked().len(), 1);
    assert_eq!(local.dns.stats().cached.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn long_answer_is_cut_in_a_datagram_and_whole_on_a_stream() {
    let net = FakeNet::new().await;
    let many: Vec<String> = (0..60).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    net.name("many.test", NameAnswer::of(&many));
    let local = Local::new(Dns::plain(net.tunnel.clone()));
    let answer = local.ask(&query(1, "many.test.", None)).await.unwrap();
    assert!(Message::from_vec(&answer).unwrap().metadata.truncation);
    let answer = local
        .ask(&query(1, "many.test.", Some(4096)))
        .await
        .unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 60);
    // Several at once on one connection, answered as they come.
    let mut stream = TcpStream::connect(local.address).await.unwrap();
    let mut sent = Vec::new();
    for (id, text) in [(1, "many.test."), (2, "none.test."), (3, "localhost.")] {
        let query = query(id, text, None);
        sent.extend(u16::try_from(query.len()).unwrap().to_be_bytes());
        sent.extend(query);
    }
    stream.write_all(&sent).await.unwrap();
    let mut counts = [None; 3];
    for _ in 0..3 {
        let len = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        counts[usize::from(answer.metadata.id) - 1] = Some(answer.answers.len());
    }
    assert_eq!(counts, [Some(60), Some(0), Some(1)]);
}

#[tokio::test]
async fn what_is_no_question_is_refused_and_counted() {
    let net = FakeNet::new().await;
    let local = Local::new(Dns::plain(net.tunnel.clone()));
    let mut cut = query(9, "a.test.", None);
    cut.truncate(20);
    let answer = local.ask(&cut).await.unwrap();
    assert_eq!(answer, [0, 9, 0x81, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(local.dns.stats().refused.load(Ordering::Relaxed), 1);
    assert!(net.asked().is_empty());
}

#[tokio::test]
async fn sender_beyond_his_share_loses_datagrams_and_is_served_what_is_known() {
    let net = FakeNet::new().await;
    net.configure(Session::Down);
    let local =
        Local::new(Dns::new(&config(&["nas.test A 192.0.2.1"]), net.tunnel.clone()).unwrap());
    let socket = local.socket().await;
    for number in 0..MAX_OF_SENDER + 10 {
        socket
            .send(&query(1, &format!("n{number}.test."), None))
            .await
            .unwrap();
        if number % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let answer = local.ask(&query(2, "nas.test.", None)).await.unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    assert_eq!(local.dns.stats().dropped_sender.load(Ordering::Relaxed), 10);
}
