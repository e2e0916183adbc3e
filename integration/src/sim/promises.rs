//! What a lane owes to those who wait: short delays beside bulk, and no goodput lost for it.
//!
//! More seeds, and the lines of fairness, are played by the program `delays`.

use std::time::{Duration, Instant};

use adit_fec::Settings as RepairSettings;

use super::{ControlKind, Report, Scenario, SessionTunnel, Traffic, World};

const BULK: Traffic = Traffic::Download {
    control: ControlKind::Cubic,
    bytes: None,
};

/// What comes of these flows through a session with repair `auto`.
fn play(link: &str, seed: u64, secs: u64, flows: &[Traffic]) -> Report {
    let mut scenario = Scenario::new(link.parse().unwrap(), seed);
    scenario.duration = Duration::from_secs(secs);
    scenario.mtu = 1400;
    for traffic in flows {
        scenario = scenario.with(*traffic);
    }
    let epoch = Instant::now();
    let tunnel = SessionTunnel::new(epoch, &scenario.link, RepairSettings::default(), seed);
    let report = World::new(epoch, scenario, tunnel).unwrap().run();
    println!("{link}, seed {seed}\n{report}\n");
    assert_eq!(report.corrupt, 0);
    report
}

/// Plays messages beside a bulk download at losses in percent, with the most milliseconds of their p99.
fn echo_beside_bulk(messages: Traffic, promised: &[(u32, u64)]) {
    for (loss, most) in promised {
        let link = format!("loss={loss},delay=25,rate=50,limit=100ms");
        let report = play(&link, 1, 10, &[BULK, messages]);
        let flow = &report.flows[1];
        assert!(
            flow.echo.p99 <= Duration::from_millis(*most),
            "{loss} %: {}",
            flow.echo
        );
        assert!(flow.unanswered <= 1, "{loss} %: {}", flow.unanswered);
        assert!(report.flows[0].goodput > 30e6, "{loss} %: {report}");
    }
}

#[test]
fn datagrams_beside_bulk_are_back_soon_at_any_random_loss() {
    let promised = [(0, 80), (1, 80), (3, 85), (5, 90), (10, 110)];
    echo_beside_bulk(Traffic::UdpMessages, &promised);
}

/// At 10 % some seeds miss 110 ms by little: what is lost twice holds up what follows on the stream.
#[test]
fn messages_on_a_stream_beside_bulk_are_back_soon() {
    let promised = [(0, 80), (1, 80), (3, 85), (5, 90)];
    echo_beside_bulk(Traffic::TcpMessages, &promised);
}

#[test]
fn deep_queue_stays_short_from_the_first_moment_on() {
    let flows = [BULK, Traffic::UdpMessages];
    let link = "delay=25,rate=20,limit=500ms";
    let report = play(link, 1, 14, &flows);
    let echo = report.flows[1].echo;
    assert!(echo.p99 <= Duration::from_millis(110), "{echo}");
    assert!(report.flows[0].goodput > 17e6, "{report}");
    let mut scenario = Scenario::new(link.parse().unwrap(), 2);
    scenario.warm_up = Duration::ZERO;
    scenario.mtu = 1400;
    let scenario = scenario
        .with(BULK)
        .with(Traffic::UdpMessages)
        .lasting(Duration::from_secs(6));
    let epoch = Instant::now();
    let tunnel = SessionTunnel::new(epoch, &scenario.link, RepairSettings::default(), 2);
    let report = World::new(epoch, scenario, tunnel).unwrap().run();
    let echo = report.flows[1].echo;
    assert!(echo.max <= Duration::from_millis(110), "{echo}");
}

#[test]
fn messages_alone_hardly_notice_losses() {
    for (loss, most, lost) in [(5, 68, 0), (10, 80, 1)] {
        let link = format!("loss={loss},delay=25,rate=50,limit=100ms");
        for traffic in [Traffic::UdpMessages, Traffic::TcpMessages] {
            for seed in 1..=2 {
                let report = play(&link, seed, 19, &[traffic]);
                let flow = &report.flows[0];
                assert_eq!(flow.messages, 750);
                assert!(flow.unanswered <= lost, "{report}");
                assert!(flow.echo.p50 <= Duration::from_millis(54), "{report}");
                assert!(flow.echo.p99 <= Duration::from_millis(most), "{report}");
            }
        }
    }
}

#[test]
fn inner_cubic_flow_fills_a_link_that_loses_nothing() {
    let report = play("delay=25,rate=50,limit=100ms", 1, 14, &[BULK]);
    // Of 1,475 bytes on the wire 1,348 are payload.
    let most = 50e6 * 1348.0 / 1475.0;
    assert!(report.goodput() > 0.96 * most, "{report}");
}
