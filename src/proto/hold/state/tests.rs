use std::collections::BTreeMap;

use adit_netstack::{Checksum, Gso};
use proptest::prelude::*;

use super::*;

const OFFLOAD: Offload = Offload {
    gso: Gso::None,
    checksum: Checksum::Partial,
};
/// Room for a device's header.
const HEADROOM: usize = 10;
const WAIT: Duration = Duration::from_millis(100);
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// Builds an IPv4 packet of `protocol` from `port` with `payload` bytes.
fn packet(protocol: u8, port: u16, sequence: u32, flags: u8, payload: usize) -> Vec<u8> {
    let transport = if protocol == 6 { 20 } else { 8 };
    let mut packet = vec![0; 20 + transport];
    let len = (packet.len() + payload) as u16;
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8..20].copy_from_slice(&[64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let words = packet[..20].chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    if protocol == 6 {
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[32] = 0x50;
        packet[33] = flags;
    }
    packet.resize(usize::from(len), 0xab);
    packet
}

fn data(port: u16, sequence: u32) -> Vec<u8> {
    packet(6, port, sequence, ACK, 100)
}

/// A hold under a clock of its own, whose packets are delivered into a list of numbers.
struct Bench {
    now: Instant,
    start: Instant,
    hold: Hold,
    delivered: Vec<u64>,
}

impl Bench {
    fn new() -> Bench {
        Bench::limited(HoldLimits::default())
    }

    fn limited(limits: HoldLimits) -> Bench {
        let now = Instant::now();
        let mut hold = Hold::new(3, HEADROOM, limits);
        hold.set_wait(WAIT);
        Bench {
            now,
            start: now,
            hold,
            delivered: Vec::new(),
        }
    }

    /// Offers a packet and returns the numbers that are delivered then.
    fn offer(&mut self, number: u64, packet: &[u8]) -> Vec<u64> {
        let from = self.delivered.len();
        if self.hold.offer(self.now, number, packet, OFFLOAD) == Offer::Deliver {
            self.delivered.push(number);
        }
        self.drain();
        self.delivered[from..].to_vec()
    }

    fn drain(&mut self) {
        self.check();
        while let Some(delivery) = self.hold.poll_deliver() {
            assert_eq!(delivery.range.start, HEADROOM);
            assert_eq!(delivery.offload, OFFLOAD);
            Packet::parse(&delivery.frame[delivery.range]).unwrap();
            self.delivered.push(delivery.number);
        }
    }

    /// Compares lists and sums with the packets.
    fn check(&self) {
        let (mut count, mut bytes) = (0, 0);
        for (at, index) in self.hold.holding.iter().enumerate() {
            assert!(!self.hold.holding[..at].contains(index));
            let held = &self.hold.flows.get(*index).unwrap().held;
            assert!(!held.is_empty());
            let frames = held
                .iter()
                .map(|key| &self.hold.packets[*key as usize].frame);
            assert!(frames.clone().is_sorted_by_key(|frame| frame.number));
            count += held.len();
            bytes += frames.map(|frame| frame.bytes.len()).sum::<usize>();
        }
        assert_eq!((count, bytes), (self.hold.packets.len(), self.hold.bytes));
        let released: usize = self
            .hold
            .released
            .iter()
            .map(|frame| frame.bytes.len())
            .sum();
        assert_eq!(released, self.hold.released_bytes);
    }

    /// Lets time pass, with its timeouts, and returns the numbers that are delivered then.
    fn pass(&mut self, ms: u64) -> Vec<u64> {
        let from = self.delivered.len();
        let until = self.now + Duration::from_millis(ms);
        while let Some(due) = self.hold.poll_timeout().filter(|due| *due <= until) {
            assert!(due >= self.now);
            self.now = due;
            self.hold.handle_timeout(due);
            self.drain();
        }
        self.now = until;
        self.delivered[from..].to_vec()
    }
}

#[test]
fn long_packets_leave_no_memory_behind_that_short_ones_would_hold() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    bench.offer(2, &packet(6, 1, 200, ACK, 60_000));
    bench.offer(3, &packet(6, 1, 60_200, ACK, 100));
    assert_eq!(bench.offer(1, &data(1, 100)), [1, 2, 3]);
    let spare = bench.hold.spare.iter().map(Vec::capacity);
    assert_eq!((spare.clone().count(), spare.max()), (1, Some(150)));
}

#[test]
fn segments_behind_a_gap_wait_for_its_repair_and_follow_it() {
    let mut bench = Bench::new();
    assert_eq!(bench.offer(0, &data(1, 0)), [0]);
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    assert!(bench.offer(3, &data(1, 300)).is_empty());
    assert_eq!(bench.hold.len_bytes(), 2 * (140 + HEADROOM));
    assert_eq!(bench.offer(1, &data(1, 100)), [1, 2, 3]);
    assert_eq!(bench.offer(4, &data(1, 400)), [4]);
    assert!(bench.hold.is_empty());
    let stats = bench.hold.stats();
    assert_eq!((stats.offered, stats.held, stats.repaired), (5, 2, 2));
}

#[test]
fn sequence_numbers_wrap() {
    let mut bench = Bench::new();
    let start = u32::MAX - 149;
    bench.offer(0, &data(1, start));
    assert!(bench.offer(2, &data(1, start.wrapping_add(200))).is_empty());
    assert_eq!(bench.offer(1, &data(1, start.wrapping_add(100))), [1, 2]);
}

#[test]
fn a_gap_that_was_another_flows_holds_nobody() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    // Number 1 is missing, but the flow continues where it was.
    assert_eq!(bench.offer(2, &data(1, 100)), [2]);
    assert_eq!(bench.offer(3, &data(1, 200)), [3]);
}

#[test]
fn a_hole_that_came_with_the_flow_holds_nobody() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    assert_eq!(bench.offer(1, &data(1, 500)), [1]);
    // A gap before the flow's latest packet does not count either.
    bench.offer(3, &data(1, 600));
    assert_eq!(bench.offer(4, &data(1, 900)), [4]);
}

#[test]
fn filling_the_gap_by_other_flows_ends_the_wait() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    // The flow came with a hole, and two numbers are missing: it could have been them.
    assert!(bench.offer(3, &data(1, 500)).is_empty());
    assert_eq!(bench.offer(1, &packet(17, 9, 0, 0, 10)), [1]);
    assert_eq!(bench.offer(2, &data(2, 0)), [2, 3]);
    assert_eq!(bench.hold.stats().cleared, 1);
}

#[test]
fn everything_but_tcp_data_passes_at_once() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    for (number, packet) in [
        (4, packet(17, 1, 0, 0, 100)),
        (6, packet(1, 1, 0, 0, 100)),
        (8, packet(6, 1, 300, ACK, 0)),
        (10, data(2, 0)),
        (12, vec![1, 2, 3]),
    ] {
        assert_eq!(bench.offer(number, &packet), [number]);
    }
    assert_eq!(bench.hold.len_bytes(), 140 + HEADROOM);
}

#[test]
fn a_retransmission_passes_at_once() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 1_000));
    bench.offer(1, &data(1, 1_100));
    assert_eq!(bench.offer(3, &data(1, 1_000)), [3]);
    assert!(bench.offer(4, &data(1, 1_300)).is_empty());
    assert_eq!(bench.offer(5, &data(1, 1_200)), [5, 4]);
}

#[test]
fn a_gap_is_hopeless_after_the_wait_and_not_before() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    assert!(bench.pass(50).is_empty());
    assert!(bench.offer(3, &data(1, 300)).is_empty());
    assert!(bench.pass(49).is_empty());
    assert_eq!(bench.pass(1), [2, 3]);
    assert_eq!(bench.hold.stats().expired, 2);
    // What follows does not wait for it any more, and what was missing may still come.
    assert_eq!(bench.offer(4, &data(1, 400)), [4]);
    assert_eq!(bench.offer(1, &data(1, 100)), [1]);
}

#[test]
fn an_offer_sees_that_a_gap_is_hopeless_and_keeps_the_order() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    bench.now += WAIT;
    assert_eq!(bench.offer(3, &data(1, 300)), [2, 3]);
}

#[test]
fn each_gap_has_its_own_wait() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    bench.pass(60);
    assert!(bench.offer(4, &data(1, 400)).is_empty());
    assert_eq!(bench.pass(40), [2]);
    assert!(bench.pass(59).is_empty());
    assert_eq!(bench.pass(1), [4]);
}

#[test]
fn what_is_held_is_released_when_nothing_is_waited_for_any_more() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    assert!(bench.offer(4, &data(1, 400)).is_empty());
    bench.hold.set_wait(Duration::ZERO);
    assert_eq!(bench.hold.poll_timeout(), Some(bench.now));
    bench.hold.handle_timeout(bench.now);
    bench.drain();
    assert_eq!(bench.delivered, [0, 2, 4]);
}

#[test]
fn a_wait_of_zero_holds_nothing() {
    let mut bench = Bench::new();
    bench.hold.set_wait(Duration::ZERO);
    bench.offer(0, &data(1, 0));
    assert_eq!(bench.offer(2, &data(1, 200)), [2]);
    assert_eq!(bench.hold.stats().held, 0);
}

#[test]
fn a_new_flow_and_a_reset_let_the_old_one_go_first() {
    for flags in [SYN, RST | ACK] {
        let mut bench = Bench::new();
        bench.offer(0, &data(1, 0));
        assert!(bench.offer(2, &data(1, 200)).is_empty());
        let control = packet(6, 1, 90_000, flags, 0);
        assert_eq!(bench.offer(4, &control), [2, 4]);
        let next = 90_000 + u32::from(flags == SYN);
        assert_eq!(bench.offer(6, &data(1, next)), [6]);
        assert!(bench.offer(8, &data(1, next + 200)).is_empty());
    }
}

#[test]
fn the_oldest_go_when_there_is_no_room() {
    let limits = HoldLimits {
        bytes: 3 * (140 + HEADROOM),
        ..HoldLimits::default()
    };
    let mut bench = Bench::limited(limits);
    bench.offer(0, &data(1, 0));
    bench.offer(1, &data(2, 0));
    assert!(bench.offer(3, &data(1, 200)).is_empty());
    assert!(bench.offer(5, &data(2, 200)).is_empty());
    assert!(bench.offer(7, &data(1, 400)).is_empty());
    // The oldest is of flow 1; flow 2 goes on waiting.
    assert_eq!(bench.offer(9, &data(1, 600)), [3]);
    assert_eq!(bench.hold.stats().overflowed, 1);
    assert_eq!(bench.offer(4, &data(2, 100)), [4, 5]);
    let limits = HoldLimits {
        packets: 2,
        ..limits
    };
    let mut bench = Bench::limited(limits);
    bench.offer(0, &data(1, 0));
    assert!(bench.offer(2, &data(1, 200)).is_empty());
    assert!(bench.offer(4, &data(1, 400)).is_empty());
    assert_eq!(bench.offer(6, &data(1, 600)), [2]);
}

#[test]
fn packets_that_nobody_fetches_do_not_pile_up() {
    let limits = HoldLimits {
        bytes: 10 * (140 + HEADROOM),
        ..HoldLimits::default()
    };
    let mut bench = Bench::limited(limits);
    let mut number = 0;
    for round in 0..100 {
        let port = round % 50;
        for sequence in [0, 200, 400] {
            let _ = bench
                .hold
                .offer(bench.now, number, &data(port, sequence), OFFLOAD);
            number += 2;
            bench.now += Duration::from_millis(30);
        }
    }
    assert!(bench.hold.released_bytes + bench.hold.bytes <= 3 * limits.bytes);
}

#[test]
fn a_packet_that_comes_late_finds_its_place_among_any_number() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    for number in (2..1_000).filter(|number| number % 100 != 0) {
        assert!(
            bench
                .offer(number, &data(1, 100 * number as u32))
                .is_empty()
        );
    }
    for late in [500, 100, 900] {
        assert!(bench.offer(late, &data(1, 100 * late as u32)).is_empty());
    }
    assert_eq!(bench.offer(1, &data(1, 100)), Vec::from_iter(1..200));
    for late in [300, 400, 600, 700, 800] {
        assert!(bench.offer(late, &data(1, 100 * late as u32)).is_empty());
    }
    assert_eq!(
        bench.offer(200, &data(1, 20_000)),
        Vec::from_iter(200..1_000)
    );
    assert_eq!(bench.hold.stats().evicted, 0);
}

#[test]
fn buffers_are_used_again_and_given_back_after_ten_idle_seconds() {
    let mut bench = Bench::new();
    bench.offer(0, &data(1, 0));
    for round in 0..50u64 {
        let at = 300 * round as u32;
        assert!(bench.offer(3 * round + 2, &data(1, at + 200)).is_empty());
        assert!(bench.offer(3 * round + 3, &data(1, at + 300)).is_empty());
        assert_eq!(bench.offer(3 * round + 1, &data(1, at + 100)).len(), 3);
    }
    assert_eq!(bench.hold.spare.len(), 2);
    bench.pass(9_999);
    assert_eq!(bench.hold.spare.len(), 2);
    bench.pass(10);
    assert_eq!(bench.hold.spare.len(), 0);
    assert_eq!(bench.hold.poll_timeout(), None);
}

#[test]
fn the_time_to_hope_grows_with_the_round_trip_up_to_150_ms() {
    let ms = Duration::from_millis;
    assert_eq!(hold_time(ms(50), ms(10)), ms(135));
    assert_eq!(hold_time(ms(300), ms(10)), MAX_HOLD);
}

/// One packet's way over a link: what it is, and when it comes.
#[derive(Clone, Debug)]
struct Way {
    /// 0 is a flow of datagrams, the others are TCP.
    flow: u16,
    payload: usize,
    /// Milliseconds after the packet before it.
    after: u64,
    /// None if it is lost, else milliseconds on the way.
    delay: Option<u64>,
}

fn ways(most_delay: u64) -> impl Strategy<Value = Vec<Way>> {
    let delay = prop_oneof![
        12 => Just(Some(0u64)),
        2 => (0..most_delay).prop_map(Some),
        1 => Just(None),
    ];
    let way = (0u16..5, 0usize..300, 0u64..8, delay);
    proptest::collection::vec(
        way.prop_map(|(flow, payload, after, delay)| Way {
            flow,
            payload,
            after,
            delay,
        }),
        1..250,
    )
}

/// What a run over a link gave.
struct Run {
    /// Numbers in the order of arrival, with their times.
    arrived: Vec<(u64, u64)>,
    /// Numbers in the order of delivery, with their times.
    delivered: Vec<(u64, u64)>,
    /// Of each number.
    packets: Vec<(u16, Vec<u8>)>,
    hold: Hold,
}

/// Sends packets over a link and through a hold.
fn run(ways: &[Way], limits: HoldLimits) -> Run {
    let mut bench = Bench::limited(limits);
    let mut sequences = BTreeMap::<u16, u32>::new();
    let mut packets = Vec::new();
    let mut arrivals = Vec::new();
    let mut time = 0;
    for (number, way) in ways.iter().enumerate() {
        time += way.after;
        let bytes = if way.flow == 0 {
            packet(17, 9, 0, 0, way.payload)
        } else {
            let sequence = sequences.entry(way.flow).or_insert(u32::MAX - 5_000);
            let bytes = packet(6, way.flow, *sequence, ACK, way.payload);
            *sequence = sequence.wrapping_add(way.payload as u32);
            bytes
        };
        packets.push((way.flow, bytes));
        if let Some(delay) = way.delay {
            arrivals.push((time + delay, number as u64));
        }
    }
    arrivals.sort();
    let mut delivered = Vec::new();
    for (time, number) in &arrivals {
        let before = bench.now.duration_since(bench.start).as_millis() as u64;
        for ms in before..*time {
            let numbers = bench.pass(1);
            delivered.extend(numbers.into_iter().map(|number| (number, ms + 1)));
        }
        let numbers = bench.offer(*number, &packets[*number as usize].1);
        delivered.extend(numbers.into_iter().map(|number| (number, *time)));
        assert!(bench.hold.len_bytes() <= limits.bytes);
        assert!(bench.hold.packets.len() <= limits.packets);
    }
    let before = bench.now.duration_since(bench.start).as_millis() as u64;
    for ms in before..before + 200 {
        let numbers = bench.pass(1);
        delivered.extend(numbers.into_iter().map(|number| (number, ms + 1)));
    }
    Run {
        arrived: arrivals
            .into_iter()
            .map(|(time, number)| (number, time))
            .collect(),
        delivered,
        packets,
        hold: bench.hold,
    }
}

fn is_data(packet: &[u8]) -> bool {
    packet[9] == 6 && packet.len() > 40
}

proptest! {
    /// Over any link and under any bounds: everything comes out once, in time, and no two segments of a flow change
    /// places that had come in order; all else passes at once.
    #[test]
    fn nothing_is_lost_late_or_put_out_of_order(
        ways in ways(300),
        bytes in prop_oneof![Just(usize::MAX), 500usize..5_000],
        count in prop_oneof![Just(usize::MAX), 1usize..20],
    ) {
        let run = run(&ways, HoldLimits { bytes, packets: count });
        prop_assert!(run.hold.is_empty());
        let arrived: BTreeMap<u64, (usize, u64)> = run.arrived.iter().enumerate()
            .map(|(at, (number, time))| (*number, (at, *time))).collect();
        let delivered: BTreeMap<u64, (usize, u64)> = run.delivered.iter().enumerate()
            .map(|(at, (number, time))| (*number, (at, *time))).collect();
        prop_assert_eq!(run.delivered.len(), run.arrived.len());
        prop_assert!(arrived.keys().eq(delivered.keys()));
        for (number, (at, time)) in &arrived {
            let (flow, packet) = &run.packets[*number as usize];
            let (out, out_time) = delivered[number];
            prop_assert!(out_time - time <= WAIT.as_millis() as u64, "{} waited", number);
            if !is_data(packet) {
                prop_assert_eq!(out_time, *time, "{} waited", number);
                continue;
            }
            for (other, (other_at, _)) in arrived.range(number + 1..) {
                let (other_flow, other_packet) = &run.packets[*other as usize];
                if other_flow == flow && is_data(other_packet) && at < other_at {
                    prop_assert!(out < delivered[other].0, "{} and {} changed places", number, other);
                }
            }
        }
        let stats = run.hold.stats();
        let released = stats.repaired + stats.cleared + stats.expired + stats.overflowed + stats.evicted;
        prop_assert!(released <= stats.held);
    }

    /// Where everything comes within the wait and there is room, a TCP receiver sees no reordering at all.
    #[test]
    fn repairs_in_time_leave_no_trace(ways in ways(90)) {
        let mut ways = ways;
        for way in &mut ways {
            way.delay = way.delay.or(Some(90));
        }
        // A flow's first segment makes it known.
        for flow in 1..5 {
            if let Some(first) = ways.iter_mut().find(|way| way.flow == flow && way.payload > 0) {
                first.delay = Some(0);
            }
        }
        let run = run(&ways, HoldLimits::default());
        let mut last = [None; 5];
        for (number, _) in &run.delivered {
            let (flow, packet) = &run.packets[*number as usize];
            if is_data(packet) {
                prop_assert!(last[usize::from(*flow)] < Some(*number), "{} of flow {}", number, flow);
                last[usize::from(*flow)] = Some(*number);
            }
        }
    }

    /// A peer that numbers, resets and repeats as it likes loses order, not packets.
    #[test]
    fn hostile_numbers_and_segments_never_panic_or_vanish(
        steps in proptest::collection::vec(
            (any::<u64>(), 0u64..40, any::<u32>(), 0u16..40, 0u8..8, 0u64..60),
            1..300,
        ),
    ) {
        let limits = HoldLimits { bytes: 2_000, packets: 10 };
        let mut bench = Bench::limited(limits);
        let mut offered = Vec::new();
        for (wild, near, sequence, port, kind, ms) in steps {
            let number = if kind == 0 { wild } else { near };
            let flags = match kind { 1 => SYN, 2 => RST, _ => ACK };
            let bytes = packet(6, port, if kind > 4 { sequence % 1_000 } else { sequence }, flags, 50);
            bench.offer(number, &bytes);
            offered.push(number);
            if kind == 7 {
                bench.hold.set_wait(if wild % 2 == 0 { Duration::ZERO } else { WAIT });
                bench.hold.handle_timeout(bench.now);
                bench.drain();
            }
            bench.pass(ms);
            prop_assert!(bench.hold.len_bytes() <= limits.bytes && bench.hold.packets.len() <= limits.packets);
        }
        bench.pass(1_000);
        offered.sort_unstable();
        bench.delivered.sort_unstable();
        prop_assert_eq!(offered, bench.delivered);
    }
}
