//! The lane is cut, closed and frozen, and the server restarted, and the flows inside live on.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use adit_integration::{
    adit::{ClientConfig, Pair, ServerConfig, User, Workdir},
    flows::{self, Download, comes_back},
    meters::wait_for,
    namespaces::{Lab, ORIGIN4, Place, SERVER4, runtime},
    origin::Origin,
    relay::{Relay, Weather},
    scene::{Couple, PROXY},
    skip::{Need, can_run},
    socks, stream,
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// How long a lane stays cut.
const CUT: Duration = Duration::from_secs(10);
/// The hang guard of everything that happens once the lane is back.
const PATIENCE: Duration = Duration::from_secs(90);
/// Far more than what kernels and rings hold between origin and reader.
const LENGTH: u64 = 256 << 20;

#[test]
fn download_survives_a_lane_frozen_for_10_s() {
    through_relay("tcp", Weather::Frozen);
}

#[test]
fn download_survives_a_lane_closed_for_10_s() {
    through_relay("tcp", Weather::Broken);
}

#[test]
fn download_survives_a_tls_lane_closed_for_10_s() {
    through_relay("tls", Weather::Broken);
}

#[test]
fn download_survives_packets_dropped_for_10_s() {
    through_lab(|lab| lab.server.cut(7443));
}

#[test]
fn download_survives_connections_reset_for_10_s() {
    through_lab(|lab| lab.server.reset(7443));
}

#[test]
fn lane_closed_again_and_again_carries_a_download() {
    let (mut pair, relay, proxy) = behind_relay("tcp");
    let origin = Origin::http(&Place::here(), LOOPBACK.into());
    let target = origin.address();
    runtime().block_on(async {
        let stream = socks::connect(proxy, target).await.expect("connects");
        let mut download = Download::start(stream, &format!("/bytes/{LENGTH}?seed=5"))
            .await
            .expect("begins");
        for part in 1..=5 {
            let read = tokio::time::timeout(PATIENCE, download.read_to(part * LENGTH / 8)).await;
            read.unwrap_or_else(|_| panic!("part {part} did not come"))
                .expect("the flow lives");
            relay.set(Weather::Broken);
            tokio::time::sleep(Duration::from_millis(200)).await;
            relay.set(Weather::Fair);
        }
        let got = tokio::time::timeout(PATIENCE, download.finish())
            .await
            .expect("ends in time")
            .expect("lives");
        assert_eq!(got, (LENGTH, stream::sha256(5, LENGTH)));
    });
    assert!(
        relay.records().len() >= 6,
        "{} connections",
        relay.records().len()
    );
    assert_eq!(pair.server.panics(), Vec::<String>::new());
    let (status, _) = pair.server.stop();
    assert!(status.success());
}

#[test]
fn client_started_before_its_server_connects_once_that_is_there() {
    let mut pair = Pair::start("tcp");
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    pair.server.stop();
    let (other, proxy) = pair.other("tcp", pair.port);
    thread::sleep(Duration::from_secs(2));
    pair.server = pair
        .workdir
        .start_server(&Place::here(), User::Same, &pair.server_config);
    comes_back(&Place::here(), proxy, echo.address(), PATIENCE);
    drop(other);
}

#[test]
fn client_is_back_within_5_s_of_a_restart() {
    let mut pair = Pair::start("tls");
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    comes_back(&Place::here(), pair.proxy, echo.address(), PATIENCE);
    for killed in [false, true] {
        if killed {
            pair.server.kill();
        } else {
            pair.server.stop();
        }
        pair.server = pair
            .workdir
            .start_server(&Place::here(), User::Same, &pair.server_config);
        comes_back(
            &Place::here(),
            pair.proxy,
            echo.address(),
            Duration::from_secs(5),
        );
    }
    assert_eq!(pair.client.panics(), Vec::<String>::new());
}

#[test]
fn idle_flow_of_a_tun_egress_goes_on_after_a_restart_of_the_server() {
    if !can_run(&[Need::Root, Need::Tun, Need::Tool("ip"), Need::Tool("nft")]) {
        return;
    }
    let (lab, workdir) = (Lab::new(), Workdir::new());
    let echo = Origin::echo(&lab.internet, (ORIGIN4, 7).into());
    let (server_config, client_config, proxy) = lab_configs(&workdir);
    let mut server = workdir.start_server(&lab.server, User::Same, &server_config);
    let _client = workdir.start_client(&lab.client, User::Nobody, &client_config);
    let target = echo.address();
    let (go, restarted) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let flow = lab.client.spawn(move || {
        runtime().block_on(async {
            let mut stream = socks::connect(proxy, target).await.expect("connects");
            flows::echo(&mut stream, b"before", PATIENCE)
                .await
                .expect("echoes");
            tell.send(()).expect("the test waits");
            restarted.recv().expect("the test goes on");
            flows::echo(&mut stream, b"after", PATIENCE)
                .await
                .expect("the flow lives");
            stream.into_std().expect("an open socket")
        })
    });
    told.recv_timeout(PATIENCE).expect("the flow began");
    let (status, _) = server.stop();
    assert!(status.success(), "{status}");
    let _server = workdir.start_server(&lab.server, User::Same, &server_config);
    comes_back(&lab.client, proxy, target, Duration::from_secs(5));
    go.send(()).expect("the flow's thread waits");
    let stream = flow.join().expect("the flow goes on");
    let alone = wait_for(PATIENCE, || (echo.open() == 1).then_some(()));
    assert!(
        alone.is_some(),
        "the origin still has the flow, and the one that came back is closed: {} are open",
        echo.open()
    );
    drop(stream);
}

/// Downloads through a relay that does its worst for [`CUT`] in the middle.
fn through_relay(scheme: &str, weather: Weather) {
    let (pair, relay, proxy) = behind_relay(scheme);
    let origin = Origin::http(&Place::here(), LOOPBACK.into());
    download_with(
        &Place::here(),
        proxy,
        origin.address(),
        || relay.set(weather),
        || relay.set(Weather::Fair),
    );
    assert_eq!(pair.server.panics(), Vec::<String>::new());
}

/// Downloads between hosts whose packets are filtered for [`CUT`] in the middle.
fn through_lab(cut: impl Fn(&Lab)) {
    if !can_run(&[Need::Root, Need::Tun, Need::Tool("ip"), Need::Tool("nft")]) {
        return;
    }
    let (lab, workdir) = (Lab::new(), Workdir::new());
    let origin = Origin::http(&lab.internet, (ORIGIN4, 80).into());
    let (server_config, client_config, proxy) = lab_configs(&workdir);
    let _server = workdir.start_server(&lab.server, User::Same, &server_config);
    let _client = workdir.start_client(&lab.client, User::Nobody, &client_config);
    download_with(
        &lab.client,
        proxy,
        origin.address(),
        || cut(&lab),
        || lab.server.mend(),
    );
}

/// A pair, and a second client whose lane goes through a relay; the first keeps out of the way.
fn behind_relay(scheme: &str) -> (PairAndOther, Relay, SocketAddr) {
    let pair = Pair::start(scheme);
    let relay = Relay::start((Ipv4Addr::LOCALHOST, pair.port).into());
    let (mut other, proxy) = pair.other(scheme, relay.address().port());
    other.expect_ready();
    (
        PairAndOther {
            server: pair.server,
            _client: pair.client,
            _other: other,
            _workdir: pair.workdir,
        },
        relay,
        proxy,
    )
}

struct PairAndOther {
    server: adit_integration::adit::Adit,
    _client: adit_integration::adit::Adit,
    _other: adit_integration::adit::Adit,
    _workdir: Workdir,
}

/// Server with egress `tun` at [`SERVER4`] port 7443, and client; returns their configurations and the proxy.
fn lab_configs(workdir: &Workdir) -> (std::path::PathBuf, std::path::PathBuf, SocketAddr) {
    let lanes = [format!("tcp://{SERVER4}:7443")];
    let server = ServerConfig {
        listen: lanes.to_vec(),
        ..ServerConfig::tun_egress()
    };
    let users = [User::Same, User::Nobody];
    let files = Couple::write(workdir, users, server, ClientConfig::to(&lanes));
    (files.server, files.client, PROXY)
}

/// Downloads [`LENGTH`] bytes, with the lane cut for [`CUT`] after an eighth of them.
fn download_with(
    place: &Place,
    proxy: SocketAddr,
    origin: SocketAddr,
    cut: impl Fn(),
    mend: impl Fn(),
) {
    let (tell, told) = std::sync::mpsc::channel();
    let download = place.spawn(move || {
        runtime().block_on(async {
            let stream = socks::connect(proxy, origin).await.expect("connects");
            let mut download = Download::start(stream, &format!("/bytes/{LENGTH}?seed=4"))
                .await
                .expect("begins");
            download.read_to(LENGTH / 8).await.expect("goes on");
            tell.send(()).expect("the test waits");
            let whole = tokio::time::timeout(CUT + PATIENCE, download.finish()).await;
            whole.expect("ends in time").expect("survives")
        })
    });
    told.recv_timeout(PATIENCE).expect("an eighth has come");
    cut();
    thread::sleep(CUT);
    assert!(!download.is_finished(), "the cut came too late to be felt");
    mend();
    let got = download.join().expect("the download survives");
    assert_eq!(got, (LENGTH, stream::sha256(4, LENGTH)));
}
