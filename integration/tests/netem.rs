//! The program over links that the kernel shapes: loss, delay and a rate, by `tc netem`.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::Duration,
};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir},
    flows::Download,
    link::Link,
    messages::{self, RoundTrips},
    namespaces::{Lab, ORIGIN4, SERVER4},
    netem,
    origin::Origin,
    scene::{Couple, PROXY},
    skip::{Need, can_run},
    socks, stream,
};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tool("ip"),
    Need::Tool("tc"),
    Need::Tool("nft"),
    Need::Tool("setpriv"),
    Need::Tool("unshare"),
    Need::Netem,
];
/// The hang guard of a transfer.
const PATIENCE: Duration = Duration::from_secs(120);

fn link(text: &str) -> Link {
    text.parse().expect("the description of a link")
}

#[test]
fn link_loses_what_it_says_in_each_direction() {
    if !can_run(NEEDS) {
        return;
    }
    netem::run("link_loses_what_it_says_in_each_direction", || {
        let lab = Lab::over(&link("loss=10,delay=5,rate=20"));
        const SENT: u32 = 1_000;
        let address = SocketAddr::from((SERVER4, 9000));
        let (ready, is_ready) = channel();
        let (all_sent, sending) = channel::<()>();
        let (all_answered, answering) = channel::<()>();
        let echo = lab.server.spawn(move || {
            let _until_the_end = all_answered;
            let socket = roomy(address);
            ready.send(()).expect("somebody waits");
            hear(&socket, &sending, |bytes, from| {
                socket.send_to(bytes, from).expect("sends");
            })
        });
        is_ready.recv().expect("the echo binds");
        let talk = lab.client.spawn(move || {
            let socket = roomy(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
            for number in 0..SENT {
                socket
                    .send_to(&number.to_be_bytes(), address)
                    .expect("sends");
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(all_sent);
            hear(&socket, &answering, |_, _| ())
        });
        let back = talk.join().expect("the client ends");
        let heard = echo.join().expect("the echo ends");
        // ten standard deviations of 1,000 packets at 10 % are 95
        assert!((805..=995).contains(&heard), "{heard} of {SENT}");
        let expected = heard * 9 / 10;
        assert!(back.abs_diff(expected) < 100, "{back} of {heard}");
    });
}

/// A socket with room for all that the test sends, so that only the link loses.
fn roomy(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("binds");
    set_socket_recv_buffer_size_force(&socket, 4 << 20).expect("gets the buffer");
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("has a time-out");
    socket
}

/// Counts what arrives until nothing more does although the other side has `ended`.
fn hear(socket: &UdpSocket, ended: &Receiver<()>, answer: impl Fn(&[u8], SocketAddr)) -> u32 {
    let mut heard = 0;
    let mut buffer = [0; 64];
    loop {
        let had_ended = ended.try_recv() == Err(TryRecvError::Disconnected);
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                heard += 1;
                answer(&buffer[..len], from);
            }
            Err(_) if had_ended => return heard,
            Err(_) => {}
        }
    }
}

#[test]
fn download_over_a_tcp_lane_keeps_its_hash_at_1_percent_loss() {
    if !can_run(NEEDS) {
        return;
    }
    netem::run(
        "download_over_a_tcp_lane_keeps_its_hash_at_1_percent_loss",
        || transfer("tcp", "loss=1,delay=10,rate=20", 2 << 20),
    );
}

#[test]
fn download_over_a_datagram_lane_keeps_its_hash_at_5_percent_loss_in_bursts() {
    if !can_run(NEEDS) {
        return;
    }
    netem::run(
        "download_over_a_datagram_lane_keeps_its_hash_at_5_percent_loss_in_bursts",
        || transfer("udp", "loss=5,burst=3,delay=10,rate=20", 4 << 20),
    );
}

#[test]
fn download_over_a_datagram_lane_keeps_its_hash_where_datagrams_overtake_each_other() {
    if !can_run(NEEDS) {
        return;
    }
    netem::run(
        "download_over_a_datagram_lane_keeps_its_hash_where_datagrams_overtake_each_other",
        || {
            transfer(
                "udp",
                "loss=1,delay=10,jitter=4,overtaking=1,duplicate=2,rate=20",
                4 << 20,
            )
        },
    );
}

#[test]
fn messages_over_one_and_three_tls_lanes_arrive_at_2_percent_loss() {
    if !can_run(NEEDS) {
        return;
    }
    netem::run(
        "messages_over_one_and_three_tls_lanes_arrive_at_2_percent_loss",
        || {
            // How long they take is for people to read, and decides nothing here.
            compare(|| Lab::over(&link(MESSAGES_LINK)));
        },
    );
}

#[test]
fn messages_over_one_and_three_tls_lanes_arrive_at_2_percent_loss_of_an_emulated_link() {
    if !can_run(&[Need::Root, Need::Tool("ip"), Need::Tool("ethtool")]) {
        return;
    }
    compare(|| Lab::emulated(&link(MESSAGES_LINK), 5));
}

/// 50 ms there and back.
const MESSAGES_LINK: &str = "loss=2,delay=25,rate=20";

/// Sends messages over one lane and over three, and prints what that makes of the time they take.
fn compare(lab: impl Fn() -> Lab) {
    let [one, three] = [1, 3].map(|lanes| talk(&lab(), lanes));
    let ratio = |one: &RoundTrips, three: &RoundTrips| {
        one.percentile(99.0).as_secs_f64() / three.percentile(99.0).as_secs_f64()
    };
    println!(
        "p99 of one lane to that of three: tcp {:.2}, udp {:.2}",
        ratio(&one.0, &three.0),
        ratio(&one.1, &three.1)
    );
}

/// Sends messages by TCP and by UDP over so many TLS lanes; all must come back as they were.
fn talk(lab: &Lab, lanes: u32) -> (RoundTrips, RoundTrips) {
    let count = std::env::var("ADIT_MESSAGES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(250);
    let tcp = Origin::echo(&lab.internet, (ORIGIN4, 7).into());
    let udp = Origin::udp_echo(&lab.internet, (ORIGIN4, 7).into());
    let (tcp, udp) = (tcp.address(), udp.address());
    let mut ends = connected(lab, "tls", format!("lanes: {lanes}"));
    let (by_tcp, by_udp) = lab.client.block_on(move || async move {
        // the other lanes need a few round trips, and more if they lose some of their own
        tokio::time::sleep(Duration::from_secs(3)).await;
        tokio::try_join!(
            messages::over_tcp(PROXY, tcp, count, PATIENCE),
            messages::over_udp(PROXY, udp, count, Duration::from_secs(10)),
        )
        .expect("messages pass")
    });
    println!("{lanes} lanes, tcp: {by_tcp}");
    println!("{lanes} lanes, udp: {by_udp}");
    assert_eq!((by_tcp.came(), by_udp.came()), (count, count));
    ends.stop();
    (by_tcp, by_udp)
}

/// A server with egress `user` and a client of it, both without privileges.
struct Ends {
    server: Adit,
    client: Adit,
    _workdir: Workdir,
}

impl Ends {
    fn stop(&mut self) {
        self.client.stop();
        self.server.stop();
    }
}

/// Connects them by a lane of this scheme; `more` is the client's.
fn connected(lab: &Lab, scheme: &str, more: String) -> Ends {
    let workdir = Workdir::new();
    let lanes = [format!("{scheme}://{SERVER4}:7443")];
    let server = ServerConfig {
        listen: lanes.to_vec(),
        ..ServerConfig::user_egress()
    };
    let client = ClientConfig {
        more,
        ..ClientConfig::to(&lanes)
    };
    let files = Couple::write(&workdir, [User::Nobody; 2], server, client);
    Ends {
        server: workdir.start_server(&lab.server, User::Nobody, &files.server),
        client: workdir.start_client(&lab.client, User::Nobody, &files.client),
        _workdir: workdir,
    }
}

/// Carries `length` bytes down over a lane of this scheme and checks them.
fn transfer(scheme: &str, path: &str, length: u64) {
    let lab = Lab::over(&link(path));
    let origin = Origin::http(&lab.internet, (ORIGIN4, 80).into());
    let target = origin.address();
    let mut ends = connected(&lab, scheme, String::new());
    let got = lab.client.block_on(move || async move {
        let stream = socks::connect(PROXY, target).await.expect("connects");
        let download = Download::start(stream, &format!("/bytes/{length}?seed=5"))
            .await
            .expect("begins");
        tokio::time::timeout(PATIENCE, download.finish())
            .await
            .expect("ends in time")
            .expect("lives")
    });
    assert_eq!(got, (length, stream::sha256(5, length)));
    ends.stop();
}
