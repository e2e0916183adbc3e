//! Which lanes packets take.

use std::net::SocketAddr;

use super::*;
use crate::proto::queue::craft::{tcp, udp};

const PUSH_ACK: u8 = 0x18;
const ACK: u8 = 0x10;

struct Bench {
    now: Instant,
    spread: Spread,
    views: Vec<LaneView>,
}

impl Bench {
    fn new(lanes: u32) -> Self {
        let now = Instant::now();
        let view = |id| LaneView {
            id: LaneId(id),
            queued: 0,
            taken: 0,
        };
        let mut bench = Self {
            now,
            spread: Spread::new(now, 5),
            views: (0..lanes).map(view).collect(),
        };
        bench.tell();
        bench
    }

    fn tell(&mut self) {
        let views = self.views.iter().copied();
        self.spread.handle_lanes(self.now, views);
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        if self.spread.poll_timeout().is_some_and(|at| at <= self.now) {
            self.spread.handle_timeout(self.now);
        }
        self.tell();
    }

    fn queue(&mut self, lane: usize, queued: usize) {
        self.views[lane].queued = queued;
        self.tell();
    }

    /// Gives a packet to the lanes it is to take, whose connections take it at once.
    fn send(&mut self, packet: &[u8]) -> Vec<u32> {
        let offered = self.spread.room(self.now, packet.len()).expect("room");
        let choice = self.spread.choose(self.now, offered, packet);
        for lane in choice.lanes() {
            let queued = self.views[lane.0 as usize].queued;
            self.spread
                .handle_given(self.now, *lane, packet.len(), queued);
        }
        choice.lanes().iter().map(|lane| lane.0).collect()
    }

    fn sorted(&mut self, packet: &[u8]) -> Vec<u32> {
        let mut lanes = self.send(packet);
        lanes.sort_unstable();
        lanes
    }
}

/// Bulk at once, since it is too long to be copied.
fn bulk(port: u16) -> Vec<u8> {
    tcp(port, ACK, 9_000)
}

#[test]
fn messages_each_20_ms_go_on_three_lanes_for_ever() {
    let mut bench = Bench::new(3);
    for _ in 0..1_000 {
        assert_eq!(bench.sorted(&tcp(1, PUSH_ACK, 200)), [0, 1, 2]);
        assert_eq!(bench.sorted(&udp(2, 200)), [0, 1, 2]);
        bench.pass(20);
    }
    assert_eq!(bench.spread.stats().thin, 2_000);
    assert_eq!(bench.spread.stats().uncopied, 0);
}

#[test]
fn what_a_slow_flow_has_kept_back_is_copied_whole() {
    let mut bench = Bench::new(3);
    for _ in 0..10 {
        assert_eq!(bench.sorted(&tcp(1, PUSH_ACK, 5_000)), [0, 1, 2]);
        bench.pass(500);
    }
}

#[test]
fn flow_that_is_no_longer_slow_goes_on_on_a_lane_that_its_copies_took() {
    let mut bench = Bench::new(3);
    for _ in 0..10 {
        assert_eq!(bench.send(&tcp(1, ACK, 1_460)).len(), 3);
    }
    let home = bench.send(&tcp(1, ACK, 1_460));
    assert_eq!(home.len(), 1);
    for _ in 0..20 {
        assert_eq!(bench.send(&tcp(1, ACK, 1_460)), home);
    }
    // Slow again, and what it has under way is in front of what it sends now.
    bench.pass(990);
    assert_eq!(bench.sorted(&tcp(1, ACK, 100)), [0, 1, 2]);
}

#[test]
fn one_lane_alone_gets_no_copies() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.send(&udp(1, 200)), [0]);
    assert_eq!(bench.send(&bulk(1)), [0]);
}

#[test]
fn of_many_lanes_those_with_least_on_them_get_the_copies() {
    let mut bench = Bench::new(8);
    for lane in 0..5 {
        bench.queue(lane, 10_000);
    }
    assert_eq!(bench.sorted(&udp(1, 200)), [5, 6, 7]);
    bench.queue(6, SHORT_WATER);
    bench.queue(2, 5_000);
    assert_eq!(bench.sorted(&udp(1, 200)), [2, 5, 7]);
}

#[test]
fn what_a_flow_sends_in_bulk_stays_on_one_lane_and_flows_share_the_lanes() {
    let mut bench = Bench::new(3);
    let mut homes = Vec::new();
    for port in 0..3 {
        let home = bench.send(&bulk(port));
        for _ in 0..50 {
            assert_eq!(bench.send(&bulk(port)), home);
        }
        homes.extend(home);
    }
    homes.sort_unstable();
    assert_eq!(homes, [0, 1, 2]);
    assert_eq!(bench.spread.stats().moved, 0);
}

#[test]
fn acknowledgements_of_a_slow_flow_are_copied_and_those_of_a_fast_one_stay_on_its_lane() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.send(&tcp(1, ACK, 0)).len(), 3);
    for _ in 0..1_000 {
        bench.send(&tcp(1, ACK, 0));
    }
    let home = bench.send(&tcp(1, ACK, 0));
    assert_eq!(home.len(), 1);
    assert_eq!(bench.send(&tcp(1, ACK, 0)), home);
}

#[test]
fn flow_whose_lane_is_full_waits_and_others_do_not() {
    let mut bench = Bench::new(2);
    let source: SocketAddr = "10.0.0.1:1".parse().unwrap();
    let other: SocketAddr = "10.0.0.1:2".parse().unwrap();
    let destination: SocketAddr = "10.0.0.2:9".parse().unwrap();
    let home = bench.send(&bulk(1))[0];
    let admitted = |bench: &mut Bench, source| bench.spread.admit(bench.now, source, destination);
    assert_eq!(admitted(&mut bench, source), Some(LaneId(home)));
    bench.queue(home as usize, LONG_WATER);
    assert_eq!(admitted(&mut bench, source), None);
    let free = LaneId(1 - home);
    assert_eq!(admitted(&mut bench, other), Some(free));
    // What is thin does not wait for it either.
    assert_eq!(bench.send(&udp(3, 200))[0], free.0);
    bench.queue(home as usize, 0);
    assert_eq!(admitted(&mut bench, source), Some(LaneId(home)));
}

#[test]
fn flows_leave_a_lane_that_takes_nothing_for_1_s_and_only_such_a_one() {
    let mut bench = Bench::new(2);
    let home = bench.send(&bulk(1))[0];
    bench.queue(home as usize, 10_000);
    for _ in 0..20 {
        bench.pass(100);
        bench.views[home as usize].taken += 1;
        bench.tell();
        assert_eq!(bench.send(&bulk(1)), [home]);
    }
    for _ in 0..9 {
        bench.pass(100);
        assert_eq!(bench.send(&bulk(1)), [home]);
    }
    let due = bench.spread.poll_timeout().expect("a stall is looked for");
    assert!(due <= bench.now + STALL);
    bench.pass(100);
    assert_eq!(bench.send(&bulk(1)), [1 - home]);
    assert_eq!(bench.send(&bulk(1)), [1 - home]);
    assert_eq!(bench.spread.stats().moved, 1);
    assert_eq!(bench.spread.poll_timeout(), None, "that is known now");
    assert_eq!(bench.send(&udp(2, 200))[0], 1 - home, "and comes last");
}

#[test]
fn flow_that_has_paused_takes_the_lane_with_least_on_it() {
    let mut bench = Bench::new(2);
    let home = bench.send(&bulk(1))[0];
    bench.queue(home as usize, 5_000);
    assert_eq!(bench.send(&bulk(1)), [home]);
    bench.views[home as usize].taken = 1;
    bench.pass(1_000);
    assert_eq!(bench.send(&bulk(1)), [1 - home]);
    assert_eq!(bench.spread.stats().moved, 0);
}

#[test]
fn flow_whose_lane_is_gone_takes_another() {
    let mut bench = Bench::new(3);
    let home = bench.send(&bulk(1))[0];
    bench.views.retain(|view| view.id != LaneId(home));
    bench.tell();
    let offered = bench.spread.room(bench.now, 1_400).unwrap();
    let choice = bench.spread.choose(bench.now, offered, &bulk(1));
    assert_ne!(choice.first(), LaneId(home));
    assert_eq!(choice.lanes().len(), 1);
}

#[test]
fn copies_of_all_flows_together_take_1_mbit_per_s_at_most() {
    let mut bench = Bench::new(3);
    let start = bench.now;
    let mut extra = 0;
    while bench.now < start + Duration::from_secs(10) {
        for port in 0..40 {
            let packet = udp(port, 200);
            extra += (bench.send(&packet).len() - 1) * packet.len();
        }
        bench.pass(20);
    }
    assert!(extra <= 10 * COPY_RATE + COPY_BURST, "{extra}");
    assert!(extra >= 9 * COPY_RATE, "{extra}");
    assert!(bench.spread.stats().uncopied > 0);
}

#[test]
fn without_a_lane_that_has_room_there_is_none() {
    let mut bench = Bench::new(2);
    bench.queue(0, LONG_WATER);
    bench.queue(1, LONG_WATER);
    assert_eq!(bench.spread.room(bench.now, 65_000), None);
    assert!(
        bench.spread.room(bench.now, 228).is_some(),
        "a short one has"
    );
    bench.queue(0, SHORT_WATER);
    assert_eq!(bench.spread.room(bench.now, 228), Some(LaneId(1)));
    bench.queue(1, SHORT_WATER);
    assert_eq!(bench.spread.room(bench.now, 228), None);
}

#[test]
fn however_many_flows_come_512_are_remembered() {
    let mut bench = Bench::new(2);
    for port in 0..20_000 {
        bench.send(&bulk(port));
    }
    assert_eq!(bench.spread.flows.len(), FLOWS);
}
