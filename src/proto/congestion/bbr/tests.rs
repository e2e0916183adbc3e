//! The controller by itself: what reports make of it.

use super::start::PATIENT_ROUNDS;
use super::*;

#[test]
fn little_that_the_application_sends_at_first_does_not_slow_what_follows() {
    let now = Instant::now();
    let round_trip = Duration::from_millis(50);
    let mut bbr = Bbr::new(now, 1_400, round_trip, 1);
    let first = bbr.pacing_rate();
    // A ping that left before there was anything to hold back, so that nothing says that there was no more to send.
    let mut sample = Sample::new(now + round_trip);
    sample.rate = Some(720);
    sample.newly_delivered = 36;
    sample.delivered = 36;
    sample.round_trip = Some(round_trip);
    bbr.on_report(&sample);
    assert_eq!(bbr.pacing_rate(), first);
    assert!(bbr.window() >= INITIAL_DATAGRAMS * 1_400);
}

#[test]
fn a_queue_is_the_lanes_own_after_16_rounds_of_it_however_long_the_lane_was_idle_before() {
    let mut now = Instant::now();
    let round_trip = Duration::from_millis(50);
    let mut bbr = Bbr::new(now, 1_400, round_trip, 1);
    let mut delivered = 0;
    let mut round = |bbr: &mut Bbr, bytes: u64, queue: Duration| {
        now += round_trip;
        let mut sample = Sample::new(now);
        sample.application_limited = true;
        sample.rate = Some(bytes * 20);
        sample.newly_delivered = bytes;
        sample.prior_delivered = delivered;
        delivered += bytes;
        sample.delivered = delivered;
        sample.round_trip = Some(round_trip + queue);
        (sample.queue, sample.standing) = (Some(queue), Some(queue));
        sample.smoothed_round_trip = round_trip;
        bbr.on_report(&sample);
        bbr.metrics().state
    };
    for _ in 0..100 {
        assert_eq!(round(&mut bbr, 60, Duration::ZERO), "startup");
    }
    for _ in 0..PATIENT_ROUNDS {
        let state = round(&mut bbr, 14_000, Duration::from_millis(60));
        assert_eq!(state, "startup");
    }
    assert_eq!(round(&mut bbr, 14_000, Duration::from_millis(60)), "drain");
}

#[test]
fn what_a_hostile_far_end_reports_makes_no_window_overflow() {
    let now = Instant::now();
    let mut bbr = Bbr::new(now, 1_400, Duration::from_millis(50), 1);
    let mut sample = Sample::new(now);
    sample.rate = Some(u64::MAX / 64);
    sample.round_trip = Some(Duration::from_secs(60));
    bbr.on_report(&sample);
    bbr.cruise(now);
    assert_eq!(bbr.window(), u64::MAX);
}

#[test]
fn the_start_that_meets_a_queue_after_a_pause_drains_it_before_it_looks_how_long_the_path_is() {
    let mut now = Instant::now();
    let round_trip = Duration::from_millis(50);
    let queue = Duration::from_millis(60);
    let mut bbr = Bbr::new(now, 1_400, round_trip, 1);
    let mut delivered = 0;
    let mut round = |bbr: &mut Bbr, pause: Duration, queue: Duration| {
        now += pause;
        let mut sample = Sample::new(now);
        sample.rate = Some(280_000);
        sample.newly_delivered = 14_000;
        sample.prior_delivered = delivered;
        delivered += 14_000;
        sample.delivered = delivered;
        sample.in_flight = 28_000;
        sample.round_trip = Some(round_trip + queue);
        (sample.queue, sample.standing) = (Some(queue), Some(queue));
        sample.smoothed_round_trip = round_trip;
        bbr.on_report(&sample);
        bbr.metrics().state
    };
    assert_eq!(round(&mut bbr, round_trip, Duration::ZERO), "startup");
    // Nothing was sent for longer than a round trip is believed. Others have filled the queue meanwhile, and keep it so.
    assert_eq!(round(&mut bbr, LENGTH_AGE * 2, queue), "drain");
    assert_eq!(round(&mut bbr, round_trip, queue), "drain");
    assert_eq!(round(&mut bbr, round_trip, queue), "probe");
    assert!(
        bbr.has_rivals(),
        "the queue did not shrink at half the rate"
    );
}
