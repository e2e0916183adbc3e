use super::*;
use crate::client::proxy::fake::{FakeNet, NameAnswer, Route, Session};
use hickory_resolver::proto::op::ResponseCode;
use tokio::net::TcpListener;

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn listener() -> (TcpListener, Route) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = Route::To(listener.local_addr().unwrap());
    (listener, route)
}

#[tokio::test]
async fn both_families_are_asked_and_answers_kept() {
    let net = FakeNet::new().await;
    net.name(
        "a.test",
        NameAnswer::of(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]),
    );
    let expected = addresses(&["2001:db8::1", "192.0.2.1", "192.0.2.2"]);
    for _ in 0..5 {
        let found = net.resolver.lookup(&name("a.test")).await;
        assert_eq!(found, Ok(expected.clone()));
    }
    let mut asked = net.asked();
    asked.sort();
    assert_eq!(
        asked,
        [
            ("a.test".to_owned(), RecordType::A),
            ("a.test".to_owned(), RecordType::AAAA)
        ]
    );
    net.settled().await;
}

#[tokio::test]
async fn refusals_are_kept_too() {
    let net = FakeNet::new().await;
    for _ in 0..5 {
        let found = net.resolver.lookup(&name("none.test")).await;
        assert_eq!(found, Err(ResolveError::NotFound));
    }
    assert_eq!(net.asked().len(), 2);
}

#[tokio::test]
async fn answer_with_no_time_to_live_is_not_kept() {
    let net = FakeNet::new().await;
    let answer = NameAnswer::Addresses {
        ttl: 0,
        addresses: addresses(&["192.0.2.1", "2001:db8::1"]),
    };
    net.name("a.test", answer);
    for _ in 0..3 {
        net.resolver.lookup(&name("a.test")).await.unwrap();
    }
    assert_eq!(net.asked().len(), 6);
}

#[tokio::test]
async fn local_names_and_literals_are_never_asked() {
    let net = FakeNet::new().await;
    let loopback = addresses(&["::1", "127.0.0.1"]);
    let cases = [
        (name("localhost"), Ok(loopback.clone())),
        (name("some.localhost"), Ok(loopback)),
        (
            Host::parse(b"192.0.2.1").unwrap(),
            Ok(addresses(&["192.0.2.1"])),
        ),
        (name("x.onion"), Err(ResolveError::Onion)),
        (name("x.invalid"), Err(ResolveError::NotFound)),
    ];
    for (host, expected) in cases {
        assert_eq!(net.resolver.lookup(&host).await, expected, "{host}");
    }
    assert!(net.asked().is_empty());
}

#[tokio::test]
async fn only_families_of_the_session_are_asked() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1", "2001:db8::1"]));
    net.name("six.test", NameAnswer::of(&["2001:db8::1"]));
    net.configure(Session::WithoutIpv6);
    let found = net.resolver.lookup(&name("a.test")).await;
    assert_eq!(found, Ok(addresses(&["192.0.2.1"])));
    let found = net.resolver.lookup(&name("six.test")).await;
    assert_eq!(found, Err(ResolveError::NoAddress));
    assert!(net.asked().iter().all(|(_, kind)| *kind == RecordType::A));
}

#[tokio::test]
async fn answer_too_large_for_udp_comes_over_tcp() {
    let net = FakeNet::new().await;
    net.name("big.test", NameAnswer::OnlyTcp(addresses(&["192.0.2.1"])));
    let found = net.resolver.lookup(&name("big.test")).await;
    assert_eq!(found, Ok(addresses(&["192.0.2.1"])));
}

#[tokio::test]
async fn lost_query_is_repeated() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1", "2001:db8::1"]));
    net.lose_next_query();
    let found = net.resolver.lookup(&name("a.test")).await.unwrap();
    assert_eq!(found.len(), 2);
    net.settled().await;
}

#[tokio::test]
async fn name_server_failures_tell_what_they_are() {
    let net = FakeNet::new().await;
    net.name("fails.test", NameAnswer::Fails(ResponseCode::ServFail));
    net.name("refused.test", NameAnswer::Fails(ResponseCode::Refused));
    net.name("silent.test", NameAnswer::Silent);
    let found = net.resolver.lookup(&name("fails.test")).await;
    assert!(
        matches!(found, Err(ResolveError::ServerFailed { code: 2, .. })),
        "{found:?}"
    );
    let found = net.resolver.lookup(&name("refused.test")).await;
    assert!(
        matches!(found, Err(ResolveError::ServerFailed { code: 5, .. })),
        "{found:?}"
    );
    let found = net.resolver.lookup(&name("silent.test")).await;
    assert_eq!(found, Err(ResolveError::TimedOut));
    // Nobody was asked.
    net.configure(Session::Silent);
    let found = net.resolver.lookup(&name("silent.test")).await;
    assert_eq!(found, Err(ResolveError::TunnelDown(Down::Silent)));
    net.settled().await;
}

#[tokio::test]
async fn session_without_name_servers_or_without_a_driver_is_told_so() {
    let net = FakeNet::new().await;
    net.configure(Session::WithoutNameServer);
    let found = net.resolver.lookup(&name("a.test")).await;
    assert_eq!(found, Err(ResolveError::NoNameServer));
    net.configure(Session::Up);
    net.end_driver();
    let found = net.resolver.lookup(&name("a.test")).await;
    assert_eq!(found, Err(ResolveError::TunnelDown(Down::Ended)));
}

#[tokio::test]
async fn lookup_waits_for_the_session_to_be_configured() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
    net.configure(Session::Down);
    let host = name("a.test");
    let mut lookup = Box::pin(net.resolver.lookup(&host));
    assert!(futures_util::poll!(lookup.as_mut()).is_pending());
    net.configure(Session::Up);
    assert_eq!(lookup.await, Ok(addresses(&["192.0.2.1"])));
}

#[tokio::test(start_paused = true)]
async fn connection_to_a_name_waits_for_a_tunnel_that_is_down_as_one_to_an_address_does() {
    let net = FakeNet::new().await;
    // The origin says no: what is waited for is that it is asked at all.
    net.route("192.0.2.1:80", Route::Fails(ConnectError::Refused));
    net.name("a.test", NameAnswer::Silent);
    net.configure(Session::Silent);
    let host = name("a.test");
    let mut connect = Box::pin(net.resolver.connect(&host, 80));
    // Longer than one question is asked.
    let early = timeout(2 * LOOKUP_LIMIT, connect.as_mut()).await;
    assert!(early.is_err(), "{early:?}");
    net.name("a.test", NameAnswer::of(&["192.0.2.1"]));
    net.configure(Session::Up);
    let refused = OriginError::Connect(ConnectError::Refused);
    assert_eq!(connect.await.unwrap_err(), refused);
    // In the end it is given up, and one that waits in vain at once.
    net.name("b.test", NameAnswer::Silent);
    net.configure(Session::Silent);
    let began = Instant::now();
    let down = |down| OriginError::Resolve(ResolveError::TunnelDown(down));
    let given_up = net.resolver.connect(&name("b.test"), 80).await;
    assert_eq!(given_up.unwrap_err(), down(Down::Silent));
    assert!(began.elapsed() >= TUNNEL_WAIT);
}

#[tokio::test]
async fn silent_ipv6_does_not_hold_up_ipv4_and_is_given_up() {
    let net = FakeNet::new().await;
    let (_listener, route) = listener().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1", "2001:db8::1"]));
    net.route("[2001:db8::1]:80", Route::Silent);
    net.route("192.0.2.1:80", route);
    let flow = net.resolver.connect(&name("a.test"), 80).await.unwrap();
    assert_eq!(flow.remote(), "192.0.2.1:80".parse().unwrap());
    assert_eq!(
        net.connects(),
        [
            "[2001:db8::1]:80".parse().unwrap(),
            "192.0.2.1:80".parse().unwrap()
        ]
    );
    drop(flow);
    net.settled().await;
}

#[tokio::test]
async fn addresses_that_fail_are_passed_over() {
    let net = FakeNet::new().await;
    let (_listener, route) = listener().await;
    let all = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"];
    net.name("a.test", NameAnswer::of(&all));
    net.route("192.0.2.2:80", route);
    let flow = net.resolver.connect(&name("a.test"), 80).await.unwrap();
    assert_eq!(flow.remote(), "192.0.2.2:80".parse().unwrap());
    drop(flow);
    net.settled().await;
}

#[tokio::test]
async fn connect_tells_the_most_telling_failure() {
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["192.0.2.1", "2001:db8::1"]));
    net.route("192.0.2.1:80", Route::Fails(ConnectError::Refused));
    let failure = net.resolver.connect(&name("a.test"), 80).await;
    assert_eq!(
        failure.unwrap_err(),
        OriginError::Connect(ConnectError::Refused)
    );
    let failure = net.resolver.connect(&name("none.test"), 80).await;
    assert_eq!(
        failure.unwrap_err(),
        OriginError::Resolve(ResolveError::NotFound)
    );
    net.settled().await;
}

#[tokio::test]
async fn name_service_answers_the_driver_with_ipv4_first() {
    use crate::client::tunnel::Command;
    use tokio_util::sync::CancellationToken;
    let net = FakeNet::new().await;
    net.name("a.test", NameAnswer::of(&["2001:db8::1", "192.0.2.1"]));
    // Another tunnel, whose driver is this test.
    let (asker, mut commands) = crate::client::tunnel::tunnel(net.tunnel.inner());
    let stop = CancellationToken::new();
    let (queries, service) = name_service(
        net.resolver.clone(),
        crate::client::direct::Direct::new(),
        asker,
        stop.clone(),
    );
    let service = tokio::spawn(service);
    for (query, host) in [(1, name("a.test")), (2, name("none.test"))] {
        let by = ResolvedBy::Tunnel;
        queries.try_send(NameQuery { query, host, by }).unwrap();
        let Some(Command::Resolved {
            query: answered,
            found: answer,
        }) = commands.recv().await
        else {
            panic!("no answer");
        };
        assert_eq!(answered, query);
        match query {
            1 => {
                let addresses = addresses(&["192.0.2.1", "2001:db8::1"]);
                assert_eq!(answer, Ok(Found { addresses, by }));
            }
            _ => assert_eq!(answer, Err(ResolveError::NotFound)),
        }
    }
    stop.cancel();
    service.await.unwrap();
}
