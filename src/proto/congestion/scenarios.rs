//! The controller on links in virtual time.

use std::time::Duration;

use super::link::{Kind, Link, Simulation};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A lane alone on `link`, started `warm` ago.
fn alone(link: &Link, seed: u64, warm: Duration) -> (Simulation, usize) {
    let mut sim = Simulation::new(link.clone(), seed);
    let lane = sim.add(Kind::Lane);
    sim.run(warm);
    (sim, lane)
}

/// Share of what the link lets through that a lane alone delivers in `span`; mean and 99th percentile of its
/// queue in milliseconds.
fn utilisation(link: &Link, seed: u64, span: Duration) -> (f64, f64, f64) {
    let (mut sim, lane) = alone(link, seed, s(3).max(link.delay * 40));
    let rate = sim.measure(span)[lane];
    let (mean, high) = sim.queueing(lane, span);
    (rate / link.rate, mean, high)
}

/// Shares of the link that two flows get, the second of which begins 3 s after the first.
fn shares(link: &Link, first: Kind, second: Kind, seed: u64) -> [f64; 2] {
    let mut sim = Simulation::new(link.clone(), seed);
    let first = sim.add(first);
    sim.run(s(3));
    let second = sim.add(second);
    sim.run(s(5));
    let rates = sim.measure(s(40));
    [rates[first] / link.rate, rates[second] / link.rate]
}

#[test]
fn alone_it_fills_the_link_and_keeps_the_queue_short_at_any_random_loss() {
    for (loss, least) in [(0.0, 0.97), (0.05, 0.96), (0.1, 0.96)] {
        let link = Link {
            loss,
            ..Link::default()
        };
        for seed in 1..=3 {
            let (share, mean, high) = utilisation(&link, seed, s(12));
            let found = format!("loss {loss}, seed {seed}: {share:.3}, {mean:.1} ms, {high:.1} ms");
            assert!(share > least && mean < 5.0 && high < 20.0, "{found}");
        }
    }
}

#[test]
fn an_application_that_never_fills_the_start_does_not_keep_the_queue_full() {
    // It sends a third more than the link takes, which is less than twice the rate: the start, which
    // waits for a plateau, sees each sample limited by the application.
    let link = Link {
        rate: 3e6,
        delay: ms(5),
        queue: ms(40),
        ..Link::default()
    };
    let mut sim = Simulation::new(link, 1);
    let lane = sim.add(Kind::Thin(1_200, Duration::from_micros(2_400)));
    sim.run(s(3));
    let rate = sim.measure(s(5))[lane];
    let (mean, _) = sim.queueing(lane, s(5));
    let state = sim.metrics(lane).state;
    assert!(state != "startup" && mean < 20.0, "{state}: {mean:.1} ms");
    assert!(rate > 0.93 * 3e6, "{rate}");
}

#[test]
fn a_start_that_overflows_a_queue_of_a_few_datagrams_ends() {
    // The application never fills the window of the start, and its bursts never wait for long.
    let link = Link {
        rate: 2e6,
        delay: ms(30),
        queue: ms(14),
        ..Link::default()
    };
    for seed in 1..=3 {
        let mut sim = Simulation::new(link.clone(), seed);
        let lane = sim.add(Kind::Thin(1_200, Duration::from_micros(3_600)));
        sim.run(s(5));
        let dropped = sim.flows[lane].dropped;
        let rate = sim.measure(s(10))[lane];
        let dropped = (sim.flows[lane].dropped - dropped) as f64 * 8.0 / 10.0;
        let state = sim.metrics(lane).state;
        let found = format!("seed {seed}, {state}: {rate:.0} arrive, {dropped:.0} dropped");
        assert!(state != "startup" && dropped < rate / 10.0, "{found}");
    }
}

#[test]
fn losses_in_bursts_are_no_congestion() {
    for loss in [0.02, 0.05] {
        let link = Link {
            loss,
            burst: 4.0,
            ..Link::default()
        };
        for seed in 1..=2 {
            let (share, mean, _) = utilisation(&link, seed, s(12));
            let found = format!("loss {loss}, seed {seed}: {share:.3}, {mean:.1} ms");
            assert!(share > 0.95 && mean < 5.0, "{found}");
        }
    }
}

#[test]
fn alone_it_fills_links_from_100_kbit_to_20_gbit() {
    // At the lowest rates a few datagrams are a long queue.
    let rates = [
        (1e5, ms(50), 0.95, 60.0, 30),
        (1e6, ms(50), 0.95, 15.0, 20),
        (2e7, ms(10), 0.97, 5.0, 10),
        (1e9, ms(10), 0.97, 5.0, 1),
        (2e10, ms(2), 0.95, 5.0, 1),
    ];
    for (rate, round_trip, least, most, span) in rates {
        let link = Link {
            rate,
            delay: round_trip / 2,
            queue: ms(if rate < 1e6 { 1000 } else { 100 }),
            ..Link::default()
        };
        let warm = if rate < 1e9 { s(10) } else { ms(200) };
        let (mut sim, lane) = alone(&link, 1, warm);
        let span = if rate < 1e10 { s(span) } else { ms(50) };
        let share = sim.measure(span)[lane] / rate;
        let (mean, _) = sim.queueing(lane, span);
        assert!(
            share > least && mean < most,
            "{rate:e}: {share:.3}, {mean:.1} ms"
        );
    }
}

#[test]
fn alone_it_fills_long_and_short_links_and_those_with_jitter() {
    let base = Link::default;
    let links = [
        (
            Link {
                delay: ms(100),
                ..base()
            },
            0.95,
        ),
        (
            Link {
                delay: ms(2),
                ..base()
            },
            0.97,
        ),
        (
            Link {
                delay: Duration::from_micros(100),
                ..base()
            },
            0.97,
        ),
        (
            Link {
                jitter: ms(2),
                ..base()
            },
            0.95,
        ),
        (
            Link {
                jitter: ms(10),
                ..base()
            },
            0.93,
        ),
        (
            Link {
                jitter: ms(10),
                reorder: true,
                ..base()
            },
            0.95,
        ),
        (
            Link {
                queue: ms(500),
                rate: 20e6,
                ..base()
            },
            0.97,
        ),
    ];
    for (link, least) in links {
        let (share, mean, high) = utilisation(&link, 1, s(10));
        let found = format!("{link:?}: {share:.3}, {mean:.1} ms, {high:.1} ms");
        assert!(share > least && mean < 10.0 && high < 30.0, "{found}");
    }
}

#[test]
fn a_shallow_queue_is_not_flooded() {
    for loss in [0.0, 0.05] {
        let link = Link {
            queue: ms(5),
            loss,
            ..Link::default()
        };
        let (mut sim, lane) = alone(&link, 1, s(3));
        let (arrived, dropped) = (sim.flows[lane].arrived, sim.flows[lane].dropped);
        let share = sim.measure(s(10))[lane] / link.rate;
        let arrived = (sim.flows[lane].arrived - arrived) as f64;
        let dropped = (sim.flows[lane].dropped - dropped) as f64;
        let lost = dropped / (arrived + dropped);
        assert!(
            share > 0.95 && lost < loss + 0.04,
            "{loss}: {share:.3}, {lost:.3}"
        );
    }
}

#[test]
fn marks_of_congestion_keep_the_queue_below_where_they_begin() {
    let link = Link {
        mark_above: Some(ms(5)),
        ..Link::default()
    };
    let (share, mean, high) = utilisation(&link, 1, s(10));
    assert!(
        share > 0.95 && mean < 5.0 && high < 15.0,
        "{share:.3}, {mean:.1} ms, {high:.1} ms"
    );
}

#[test]
fn starting_fills_the_link_within_a_second_and_overshoots_by_little() {
    let (mut sim, lane) = alone(&Link::default(), 1, s(1));
    let peak = sim.flows[lane].queued.iter().map(|(_, delay)| *delay).max();
    assert_eq!(sim.flows[lane].dropped, 0);
    assert!(peak < Some(65_000_000), "{peak:?}");
    let share = sim.measure(s(1))[lane] / sim.link.rate;
    assert!(share > 0.9, "{share}");
    let (mean, _) = sim.queueing(lane, s(1));
    assert!(mean < 10.0, "{mean}");
}

#[test]
fn beside_a_cubic_flow_each_gets_between_half_and_twice_an_equal_share() {
    for seed in 1..=2 {
        let [lane, cubic] = shares(&Link::default(), Kind::Lane, Kind::Cubic, seed);
        assert!(
            lane > 0.3 && cubic > 0.3,
            "lane first: {lane:.3}, {cubic:.3}"
        );
    }
    let [cubic, lane] = shares(&Link::default(), Kind::Cubic, Kind::Lane, 1);
    assert!(
        lane > 0.28 && cubic > 0.3,
        "cubic first: {lane:.3}, {cubic:.3}"
    );
}

#[test]
fn beside_a_bbr_flow_each_gets_between_half_and_twice_an_equal_share() {
    for loss in [0.0, 0.01] {
        let link = Link {
            loss,
            ..Link::default()
        };
        let [lane, bbr] = shares(&link, Kind::Lane, Kind::Bbr1, 1);
        assert!(lane > 0.3 && bbr > 0.3, "lane first: {lane:.3}, {bbr:.3}");
        let [bbr, lane] = shares(&link, Kind::Bbr1, Kind::Lane, 1);
        assert!(lane > 0.3 && bbr > 0.3, "bbr first: {lane:.3}, {bbr:.3}");
    }
}

#[test]
fn beside_cubic_on_other_queues_each_gets_between_half_and_twice_an_equal_share() {
    for queue in [20, 50, 300] {
        let link = Link {
            queue: ms(queue),
            ..Link::default()
        };
        let [lane, cubic] = shares(&link, Kind::Lane, Kind::Cubic, 1);
        assert!(
            lane > 0.27 && cubic > 0.27,
            "{queue} ms: {lane:.3}, {cubic:.3}"
        );
    }
}

#[test]
fn a_lane_that_meets_a_standing_queue_takes_its_part_within_3_s() {
    let mut sim = Simulation::new(Link::default(), 1);
    sim.add(Kind::Cubic);
    sim.run(s(15));
    let lane = sim.add(Kind::Lane);
    sim.run(s(3));
    let metrics = sim.metrics(lane);
    assert!(metrics.rivalry, "{metrics:?}");
}

#[test]
fn what_others_make_a_short_queue_lose_is_not_what_the_path_loses() {
    let link = Link {
        delay: ms(5),
        queue: ms(5),
        ..Link::default()
    };
    let mut sim = Simulation::new(link, 1);
    let lane = sim.add(Kind::Lane);
    sim.run(s(3));
    for _ in 0..3 {
        sim.add(Kind::Cubic);
    }
    sim.run(s(5));
    let rates = sim.measure(s(20));
    let metrics = sim.metrics(lane);
    let share = rates[lane] / sim.link.rate;
    let found = format!("{share:.3}, {metrics:?}");
    assert!(metrics.usual_loss < 2_000 && share < 0.5, "{found}");
}

#[test]
fn two_lanes_share_evenly_and_keep_the_queue_short() {
    for loss in [0.0, 0.05] {
        let link = Link {
            loss,
            ..Link::default()
        };
        let mut sim = Simulation::new(link.clone(), 1);
        let first = sim.add(Kind::Lane);
        sim.run(s(3));
        let second = sim.add(Kind::Lane);
        sim.run(s(10));
        let rates = sim.measure(s(30));
        let (one, two) = (rates[first] / link.rate, rates[second] / link.rate);
        let (mean, _) = sim.queueing(first, s(30));
        let found = format!("{loss}: {one:.3}, {two:.3}, {mean:.1} ms");
        assert!(one > 0.35 && two > 0.35 && one + two > 0.95, "{found}");
        assert!(mean < 15.0, "{found}");
        assert!(
            !sim.metrics(first).rivalry && !sim.metrics(second).rivalry,
            "{found}"
        );
    }
}

#[test]
fn when_rivals_leave_the_queue_is_short_again_within_10_s() {
    let mut sim = Simulation::new(Link::default(), 1);
    let lane = sim.add(Kind::Lane);
    sim.run(s(2));
    let cubic = sim.add(Kind::Cubic);
    sim.run(s(28));
    assert!(sim.metrics(lane).rivalry);
    sim.stop(cubic);
    sim.run(s(10));
    let share = sim.measure(s(5))[lane] / sim.link.rate;
    let (mean, high) = sim.queueing(lane, s(5));
    assert!(!sim.metrics(lane).rivalry);
    assert!(
        share > 0.95 && mean < 5.0 && high < 20.0,
        "{share:.3}, {mean:.1} ms, {high:.1} ms"
    );
}

#[test]
fn a_rate_four_times_higher_is_found_within_3_s() {
    for (rate, loss) in [(10e6, 0.0), (50e6, 0.05)] {
        let link = Link {
            rate,
            loss,
            ..Link::default()
        };
        let (mut sim, lane) = alone(&link, 1, s(5));
        sim.set_rate(rate * 4.0);
        sim.run(s(3));
        let share = sim.measure(s(3))[lane] / (rate * 4.0);
        assert!(share > 0.93, "{rate:e}, {loss}: {share:.3}");
    }
}

#[test]
fn a_rate_four_times_lower_is_respected_within_3_s() {
    for (rate, loss) in [(50e6, 0.0), (50e6, 0.05), (200e6, 0.0)] {
        let link = Link {
            rate,
            loss,
            ..Link::default()
        };
        let (mut sim, lane) = alone(&link, 1, s(5));
        sim.set_rate(rate / 4.0);
        sim.run(s(3));
        let share = sim.measure(s(4))[lane] / (rate / 4.0);
        let (mean, _) = sim.queueing(lane, s(4));
        assert!(
            share > 0.93 && mean < 15.0,
            "{rate:e}, {loss}: {share:.3}, {mean:.1} ms"
        );
    }
}

#[test]
fn an_application_that_never_fills_the_lane_leaves_no_queue_on_the_link() {
    // A little more than the link takes, which a lane that is still starting would let through for ever.
    let mut sim = Simulation::new(Link::default(), 1);
    let lane = sim.add(Kind::Thin(1_400, Duration::from_micros(200)));
    sim.run(s(3));
    let (mean, high) = sim.queueing(lane, s(2));
    assert!(mean < 10.0 && high < 25.0, "{mean:.1} ms, {high:.1} ms");
    assert_eq!(sim.flows[lane].dropped, 0);
}

#[test]
fn an_application_that_sends_little_does_not_lower_the_model() {
    let (mut sim, lane) = alone(&Link::default(), 1, s(5));
    let before = sim.metrics(lane).bandwidth;
    sim.set_thin(lane, Some((200, ms(20))));
    sim.run(s(30));
    let after = sim.metrics(lane).bandwidth;
    assert!(after * 10 > before * 9, "{before} {after}");
    sim.set_thin(lane, None);
    let share = sim.measure(s(1))[lane] / sim.link.rate;
    assert!(share > 0.9, "{share:.3}");
}

#[test]
fn bulk_that_follows_a_thin_flow_starts_as_fast_as_any() {
    let mut sim = Simulation::new(Link::default(), 1);
    let lane = sim.add(Kind::Thin(200, ms(20)));
    sim.run(s(20));
    sim.set_thin(lane, None);
    sim.run(ms(600));
    let share = sim.measure(s(1))[lane] / sim.link.rate;
    assert!(share > 0.9, "{share:.3}");
}

#[test]
fn a_thin_flow_waits_for_nothing() {
    let link = Link {
        loss: 0.05,
        ..Link::default()
    };
    let mut sim = Simulation::new(link, 1);
    let lane = sim.add(Kind::Thin(200, ms(20)));
    sim.run(s(20));
    let sent = sim.flight(lane).sent().counts().datagrams;
    assert!((1000..=1001).contains(&sent), "{sent}");
    assert!(sim.flight(lane).sent().in_flight() < 228 * 10);
}

#[test]
fn reports_of_a_bulk_flow_cost_less_than_one_percent() {
    for loss in [0.0, 0.1] {
        let link = Link {
            loss,
            ..Link::default()
        };
        let (sim, lane) = alone(&link, 1, s(10));
        let flow = &sim.flows[lane];
        let share = flow.report_bytes as f64 / flow.arrived as f64;
        assert!(share < 0.01, "{loss}: {share:.4}");
    }
}

#[test]
fn random_loss_is_counted_as_such_and_overflow_as_congestion() {
    let link = Link {
        loss: 0.05,
        ..Link::default()
    };
    let (sim, lane) = alone(&link, 1, s(20));
    let loss = sim.flight(lane).sent().loss();
    assert!((loss.rate() - 0.05).abs() < 0.005, "{loss:?}");
    assert!((loss.mean_burst() - 1.0 / 0.95).abs() < 0.05, "{loss:?}");
    assert!(loss.congestive * 4 < loss.lost, "{loss:?}");
    let usual = sim.metrics(lane).usual_loss;
    assert!((40_000..60_000).contains(&usual), "{usual}");

    let mut sim = Simulation::new(Link::default(), 1);
    let lane = sim.add(Kind::Lane);
    sim.add(Kind::Cubic);
    sim.run(s(60));
    let loss = sim.flight(lane).sent().loss();
    assert!(loss.lost > 0 && loss.congestive * 2 > loss.lost, "{loss:?}");
}

#[test]
fn a_link_that_went_dead_is_used_again_when_it_heals() {
    let (mut sim, lane) = alone(&Link::default(), 1, s(5));
    sim.link.loss = 1.0;
    sim.run(s(3));
    assert!(sim.flight(lane).sent().counts().probes >= 2);
    sim.link.loss = 0.0;
    sim.run(s(3));
    let probes = sim.flight(lane).sent().counts().probes;
    let share = sim.measure(s(2))[lane] / sim.link.rate;
    assert!(share > 0.95, "{share:.3}");
    assert_eq!(sim.flight(lane).sent().counts().probes, probes);
}
