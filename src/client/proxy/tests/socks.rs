use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::client::down::Down;
use crate::client::proxy::fake::{NameAnswer, Route};
use crate::client::proxy::udp_header;
use crate::client::resolve::Host;
use crate::client::tunnel::ConnectError;
use tokio::net::UdpSocket;

const OK5: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

fn connect5(address: SocketAddr) -> Vec<u8> {
    let mut request = vec![5, 1, 0];
    match address.ip() {
        IpAddr::V4(ip) => {
            request.push(1);
            request.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            request.push(4);
            request.extend(ip.octets());
        }
    }
    request.extend(address.port().to_be_bytes());
    request
}

fn connect5_name(name: &str, port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    request.extend(name.as_bytes());
    request.extend(port.to_be_bytes());
    request
}

#[tokio::test]
async fn socks5_connect_carries_bytes_both_ways_and_half_closes() {
    let proxy = Proxy::start().await;
    let origin = echo().await;
    let mut stream = proxy.connect().await;
    stream.write_all(&[5, 1, 0]).await.unwrap();
    expect(&mut stream, &[5, 0]).await;
    stream.write_all(&connect5(origin)).await.unwrap();
    expect(&mut stream, OK5).await;
    stream.write_all(b"ping").await.unwrap();
    expect(&mut stream, b"ping").await;
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, b"last");
    assert_eq!(proxy.stats.socks_connects.value(), 1);
    proxy.finish().await;
}

#[tokio::test]
async fn data_sent_ahead_of_all_answers_reaches_the_origin() {
    let proxy = Proxy::start().await;
    let origin = echo().await;
    let mut stream = proxy.connect().await;
    let mut all = vec![5, 1, 0];
    all.extend(connect5(origin));
    all.extend(b"early data");
    stream.write_all(&all).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut expected = vec![5, 0];
    expected.extend(OK5);
    expected.extend(b"early data");
    assert_eq!(read_all(&mut stream).await, expected);
    proxy.finish().await;
}

#[tokio::test]
async fn socks5_name_is_resolved_through_the_tunnel() {
    let proxy = Proxy::start().await;
    let origin = echo().await;
    proxy
        .net
        .name("origin.test", NameAnswer::of(&["203.0.113.7"]));
    proxy.net.route("203.0.113.7:7", Route::To(origin));
    let mut stream = proxy.connect().await;
    let mut all = vec![5, 1, 0];
    all.extend(connect5_name("Origin.TEST", 7));
    stream.write_all(&all).await.unwrap();
    expect(&mut stream, &[5, 0]).await;
    expect(&mut stream, OK5).await;
    assert_eq!(proxy.net.asked().len(), 2);
    drop(stream);
    proxy.finish().await;
}

#[tokio::test]
async fn socks4_and_4a_connect() {
    let proxy = Proxy::start().await;
    let origin = echo().await;
    proxy
        .net
        .name("origin.test", NameAnswer::of(&["203.0.113.7"]));
    proxy.net.route("203.0.113.7:7", Route::To(origin));
    let mut by_address = vec![4, 1];
    by_address.extend(origin.port().to_be_bytes());
    by_address.extend([127, 0, 0, 1]);
    by_address.extend(b"me\0");
    let by_name = b"\x04\x01\x00\x07\x00\x00\x00\x01me\0origin.test\0".to_vec();
    for request in [by_address, by_name] {
        let mut stream = proxy.connect().await;
        stream.write_all(&request).await.unwrap();
        expect(&mut stream, &[0, 0x5a, 0, 0, 0, 0, 0, 0]).await;
        stream.write_all(b"x").await.unwrap();
        expect(&mut stream, b"x").await;
    }
    proxy.finish().await;
}

#[tokio::test]
async fn replies_tell_the_truth() {
    let proxy = Proxy::start().await;
    let failures = [
        (ConnectError::TunnelDown(Down::Lost), 1),
        (ConnectError::TooManyFlows, 1),
        (ConnectError::NotAllowed, 2),
        (ConnectError::NetworkUnreachable, 3),
        (ConnectError::NoAddress, 3),
        (ConnectError::Unreachable, 4),
        (ConnectError::Refused, 5),
        (ConnectError::TimedOut, 6),
    ];
    for (error, code) in failures {
        proxy.net.route("203.0.113.9:1", Route::Fails(error));
        let mut request = vec![5, 1, 0];
        request.extend(connect5("203.0.113.9:1".parse().unwrap()));
        let answer = proxy.ask(&request).await;
        assert_eq!(answer, [5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{error}");

        let answer = proxy.ask(b"\x04\x01\x00\x01\xcb\x00\x71\x09\0").await;
        assert_eq!(answer, [0, 0x5b, 0, 0, 0, 0, 0, 0], "{error}");
    }
    let refused = closed_port().await;
    let mut request = vec![5, 1, 0];
    request.extend(connect5(refused));
    assert_eq!(proxy.ask(&request).await[..4], [5, 0, 5, 5]);
    let mut request = vec![5, 1, 0];
    request.extend(connect5_name("no-such-name.test", 80));
    assert_eq!(proxy.ask(&request).await[..4], [5, 0, 5, 4]);
    assert_eq!(proxy.stats.origin_failed.value(), 18);
    proxy.finish().await;
}

#[tokio::test]
async fn password_is_wanted_checked_and_enough() {
    let proxy = Proxy::with_password().await;
    let origin = echo().await;
    let good = b"\x01\x04user\x06secret";
    let mut stream = proxy.connect().await;
    stream.write_all(&[5, 2, 0, 2]).await.unwrap();
    expect(&mut stream, &[5, 2]).await;
    stream.write_all(good).await.unwrap();
    expect(&mut stream, &[1, 0]).await;
    stream.write_all(&connect5(origin)).await.unwrap();
    expect(&mut stream, OK5).await;
    drop(stream);

    assert_eq!(proxy.ask([5, 1, 0]).await, [5, 0xff]);
    let wrong = b"\x05\x01\x02\x01\x04user\x06wrong!\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50";
    assert_eq!(proxy.ask(wrong).await, [5, 2, 1, 1]);
    let socks4 = b"\x04\x01\x00\x50\x7f\x00\x00\x01user\0";
    assert_eq!(proxy.ask(socks4).await, [0, 0x5b, 0, 0, 0, 0, 0, 0]);
    assert_eq!(proxy.stats.unauthorized.value(), 3);
    assert_eq!(proxy.net.connects(), [origin]);
    proxy.finish().await;
}

#[tokio::test]
async fn udp_relay_carries_datagrams_while_the_control_connection_lives() {
    let proxy = Proxy::start().await;
    let origin = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let origin_address = origin.local_addr().unwrap();
    let mut control = proxy.connect().await;
    let request = [5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    control.write_all(&request).await.unwrap();
    expect(&mut control, &[5, 0, 5, 0, 0, 1, 127, 0, 0, 1]).await;
    let relay = SocketAddr::from((Ipv4Addr::LOCALHOST, control.read_u16().await.unwrap()));

    let application = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut datagram = Vec::new();
    udp_header::encode(origin_address, &mut datagram);
    datagram.extend(b"question");
    application.send_to(&datagram, relay).await.unwrap();
    let mut buffer = [0; 128];
    let (len, from) = origin.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..len], b"question");
    origin.send_to(b"answer", from).await.unwrap();
    let (len, _) = application.recv_from(&mut buffer).await.unwrap();
    let (host, port, payload) = udp_header::decode(&buffer[..len]).unwrap();
    assert_eq!(host, Host::Ip(origin_address.ip()));
    assert_eq!((port, payload), (origin_address.port(), &b"answer"[..]));

    drop(control);
    proxy.net.settled().await;
    assert_eq!(proxy.stats.socks_associates.value(), 1);
    proxy.finish().await;
}

#[tokio::test]
async fn client_that_goes_while_connecting_takes_the_attempt_with_it() {
    let proxy = Proxy::start().await;
    proxy.net.route("203.0.113.9:1", Route::Silent);
    let mut stream = proxy.connect().await;
    let mut request = vec![5, 1, 0];
    request.extend(connect5("203.0.113.9:1".parse().unwrap()));
    stream.write_all(&request).await.unwrap();
    expect(&mut stream, &[5, 0]).await;
    while proxy.net.connects().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(stream);
    proxy.net.settled().await;
    proxy.finish().await;
}

#[tokio::test]
async fn two_hundred_clients_at_once_are_all_served() {
    let proxy = Arc::new(Proxy::start().await);
    let origin = echo().await;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..200_u32 {
        let proxy = Arc::clone(&proxy);
        clients.spawn(async move {
            let mut stream = proxy.connect().await;
            let mut request = vec![5, 1, 0];
            request.extend(connect5(origin));
            request.extend(n.to_be_bytes());
            stream.write_all(&request).await.unwrap();
            expect(&mut stream, &[5, 0]).await;
            expect(&mut stream, OK5).await;
            expect(&mut stream, &n.to_be_bytes()).await;
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    Arc::into_inner(proxy).unwrap().finish().await;
}
