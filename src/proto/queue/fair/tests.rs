use std::collections::{BTreeMap, VecDeque};

use adit_netstack::{Checksum, Gso, complete_checksum, verify_checksum};
use proptest::prelude::*;

use super::*;
use craft::{seal, sequence, tcp, udp};

/// Builds IPv4 packets between two hosts.
pub(in crate::proto) mod craft {
    use adit_netstack::protocol;

    fn packet(protocol: u8, port: u16, header: &[u8], payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[8] = 64;
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 9]);
        packet.extend(header);
        packet.extend((0..payload).map(|i| i as u8));
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        seal(&mut packet);
        packet
    }

    /// A TCP segment from `port` without options.
    pub(in crate::proto) fn tcp(port: u16, flags: u8, payload: usize) -> Vec<u8> {
        let header = [0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 99, 0, 0, 0, 0];
        packet(protocol::TCP, port, &header, payload)
    }

    /// A UDP datagram from `port`.
    pub(in crate::proto) fn udp(port: u16, payload: usize) -> Vec<u8> {
        let [high, low] = (payload as u16 + 8).to_be_bytes();
        packet(protocol::UDP, port, &[high, low, 0, 0], payload)
    }

    /// Makes the checksum of an IPv4 header right.
    pub(in crate::proto::queue) fn seal(packet: &mut [u8]) {
        packet[10..12].fill(0);
        let words = packet[..20].chunks(2);
        let mut sum: u32 = words
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }

    /// The sequence number of a TCP segment.
    pub(in crate::proto::queue) fn sequence(packet: &[u8]) -> u32 {
        u32::from_be_bytes(packet[24..28].try_into().unwrap())
    }
}

/// A packet and what it owes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owned(pub(super) Vec<u8>, pub(super) Offload);

impl QueuePacket for Owned {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn offload(&self) -> Offload {
        self.1
    }
}

const MTU: usize = 1_400;
const PARTIAL: Offload = Offload {
    gso: Gso::None,
    checksum: Checksum::Partial,
};

fn plain(bytes: Vec<u8>) -> Owned {
    Owned(bytes, PARTIAL)
}

/// A TCP super-packet of full segments from `port`.
fn bulk(port: u16, segments: usize) -> Owned {
    let gso = Gso::Tcp { size: 1_360 };
    let checksum = Checksum::Partial;
    Owned(tcp(port, 0x10, segments * 1_360), Offload { gso, checksum })
}

fn queue() -> FairQueue<Owned> {
    FairQueue::new(7, QueueLimits::default())
}

fn port(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[20], packet[21]])
}

/// A queue under a clock of its own.
struct Bench {
    now: Instant,
    queue: FairQueue<Owned>,
    out: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            now: Instant::now(),
            queue: queue(),
            out: vec![0; 9_000],
        }
    }

    fn add(&mut self, packet: Owned) {
        assert!(self.queue.enqueue(self.now, packet, Producer::Other));
    }

    fn add_own(&mut self, packet: Owned) {
        assert!(self.queue.enqueue(self.now, packet, Producer::Stack));
    }

    /// The next wire packet.
    fn poll(&mut self) -> Option<(WirePacket, Vec<u8>)> {
        let packet = self.queue.poll(self.now, MTU, &mut self.out)?;
        Some((packet, self.out[..packet.len].to_vec()))
    }

    /// The port of the next wire packet.
    fn port(&mut self) -> u16 {
        self.poll().map_or(0, |(_, bytes)| port(&bytes))
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }
}

#[test]
fn a_super_packet_leaves_piece_by_piece_and_blocks_nobody() {
    let mut bench = Bench::new();
    bench.add(bulk(1, 45));
    assert_eq!(bench.port(), 1);
    bench.add(plain(udp(2, 200)));
    let (packet, bytes) = bench.poll().unwrap();
    assert_eq!((port(&bytes), packet.class), (2, Class::Thin));
    assert_eq!(packet.offload, PARTIAL);
    let mut stream = 1_360;
    while let Some((packet, bytes)) = bench.poll() {
        assert_eq!(sequence(&bytes), stream);
        assert_eq!((packet.len, packet.class), (MTU, Class::Bulk));
        stream += 1_360;
    }
    assert_eq!(stream, 45 * 1_360);
    assert!(bench.queue.is_empty());
    assert_eq!(bench.queue.len_bytes(), 0);
}

#[test]
fn flows_share_by_bytes_and_not_by_packets() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.add(bulk(1, 45));
    }
    for _ in 0..2_000 {
        bench.add(plain(udp(2, 139)));
    }
    let mut sent = BTreeMap::<u16, usize>::new();
    for _ in 0..1_000 {
        let (packet, bytes) = bench.poll().unwrap();
        *sent.entry(port(&bytes)).or_default() += packet.len + WIRE_OVERHEAD;
    }
    assert!(
        sent[&1].abs_diff(sent[&2]) <= 2 * (MTU + WIRE_OVERHEAD),
        "{sent:?}"
    );
}

#[test]
fn a_call_beside_a_hundred_downloads_never_waits_a_round() {
    let mut bench = Bench::new();
    for port in 100..200 {
        bench.add(bulk(port, 20));
    }
    // They have just begun, as the call is about to.
    for _ in 100..200 {
        bench.poll();
    }
    for _ in 0..40 {
        for _ in 0..40 {
            assert!(bench.port() >= 100);
        }
        bench.add(plain(udp(2, 200)));
        assert_eq!(bench.port(), 2);
    }
}

#[test]
fn a_call_waits_at_most_for_the_packet_on_the_wire_and_its_like() {
    let mut bench = Bench::new();
    bench.queue.set_pace(2_500_000, Duration::from_millis(50));
    let packet_time = Duration::from_micros(560);
    let start = bench.now;
    let (mut messages, mut longest) = (0, Duration::ZERO);
    while bench.now < start + Duration::from_secs(10) {
        for port in 100..110 {
            if bench.queue.packets.len() < 60 {
                bench.add(bulk(port, 20));
            }
        }
        // Two calls, each with a message every 20 ms.
        while start + messages / 2 * Duration::from_millis(20) <= bench.now {
            bench.add(plain(udp(1 + messages as u16 % 2, 200)));
            messages += 1;
        }
        let (packet, bytes) = bench.poll().unwrap();
        if port(&bytes) < 100 && bench.now > start + Duration::from_millis(100) {
            assert_eq!(packet.class, Class::Thin);
            longest = longest.max(packet.wait);
        }
        bench.now += packet_time * packet.len as u32 / MTU as u32;
    }
    assert!(longest <= 2 * packet_time, "{longest:?}");
}

#[test]
fn flows_that_always_have_one_more_packet_do_not_starve_a_download() {
    let mut bench = Bench::new();
    bench.queue.limits.bytes = usize::MAX;
    for _ in 0..40 {
        bench.add(bulk(1, 45));
    }
    for port in 2..52 {
        bench.add(plain(udp(port, 300)));
    }
    let (mut download, mut all) = (0, 0);
    for _ in 0..10_000 {
        let (packet, bytes) = bench.poll().unwrap();
        let wire = packet.len + WIRE_OVERHEAD;
        all += wire;
        match port(&bytes) {
            1 => download += wire,
            port => bench.add(plain(udp(port, 300))),
        }
    }
    assert!(download * 51 > all * 9 / 10, "{download} of {all}");
}

#[test]
fn turn_is_a_packet_on_a_slow_lane_and_a_run_of_them_on_a_fast_one() {
    for (rate, run) in [
        (0, 1),
        (6_250_000, 1),
        (125_000_000, 9),
        (1_250_000_000, 23),
    ] {
        let mut bench = Bench::new();
        bench.queue.set_pace(rate, Duration::from_millis(1));
        for port in 1..4 {
            bench.add(bulk(port, 45));
        }
        let mut runs = Vec::new();
        for _ in 0..3 * run {
            let (_, bytes) = bench.poll().unwrap();
            match runs.last_mut() {
                Some((last, count)) if *last == port(&bytes) => *count += 1,
                Some(_) | None => runs.push((port(&bytes), 1)),
            }
        }
        let (ports, counts): (Vec<u16>, Vec<usize>) = runs.into_iter().unzip();
        assert_eq!(ports, [1, 2, 3], "{rate}");
        // What a flow took beyond its turn is taken from its next.
        let most = counts.iter().max().copied();
        assert_eq!(most, Some(run), "{rate}: {counts:?}");
    }
}

#[test]
fn packets_of_a_flow_keep_their_order() {
    let mut bench = Bench::new();
    for n in 0..100u16 {
        let mut packet = tcp(1 + n % 3, 0x10, 500);
        packet[24..28].copy_from_slice(&u32::from(n).to_be_bytes());
        bench.add(plain(packet));
    }
    let mut last = [0; 4];
    while let Some((_, bytes)) = bench.poll() {
        let last = &mut last[usize::from(port(&bytes))];
        assert!(sequence(&bytes) >= *last);
        *last = sequence(&bytes);
    }
}

/// Keeps a queue standing for a second and returns how many segments of each super-packet were lost.
fn stand(bench: &mut Bench, make: impl Fn() -> Owned, own: bool) -> Vec<u32> {
    let mut lost = Vec::new();
    let mut expected = 0;
    for ms in 0..1_000 {
        if bench.queue.len_bytes() < 100_000 {
            if own {
                bench.add_own(make());
            } else {
                bench.add(make());
            }
        }
        bench.pass(1);
        if let Some((_, bytes)) = bench.poll() {
            let at = sequence(&bytes) / 1_360;
            if at < expected || ms == 0 {
                lost.push(0);
                expected = 0;
            }
            *lost.last_mut().unwrap() += at - expected;
            expected = at + 1;
        }
    }
    lost
}

#[test]
fn codel_drops_one_segment_of_a_super_packet_and_never_all() {
    let mut bench = Bench::new();
    let lost = stand(&mut bench, || bulk(1, 20), false);
    let drops = bench.queue.stats().drops.codel;
    assert!((10..40).contains(&drops), "{drops}");
    assert_eq!(u64::from(lost.iter().sum::<u32>()), drops);
    assert!(lost.iter().all(|lost| *lost <= 1), "{lost:?}");
}

#[test]
fn codel_drops_nothing_while_the_lane_still_starts_and_begins_anew_after() {
    let mut bench = Bench::new();
    bench.queue.set_starting(true);
    stand(&mut bench, || bulk(1, 20), false);
    assert_eq!(bench.queue.stats().drops.codel, 0);
    bench.queue.set_starting(false);
    bench.pass(1);
    bench.poll();
    assert_eq!(bench.queue.stats().drops.codel, 0, "no interval has passed");
    stand(&mut bench, || bulk(1, 20), false);
    assert!(bench.queue.stats().drops.codel > 5);
}

#[test]
fn thin_packet_is_known_to_be_next_before_it_is_taken() {
    let mut bench = Bench::new();
    assert!(!bench.queue.is_next_thin(bench.now));
    bench.add(bulk(1, 20));
    for _ in 0..10 {
        assert!(!bench.queue.is_next_thin(bench.now));
        bench.poll();
    }
    bench.add(plain(udp(2, 200)));
    assert!(bench.queue.is_next_thin(bench.now));
    assert_eq!(bench.port(), 2);
    assert!(!bench.queue.is_next_thin(bench.now));
    assert_eq!(bench.port(), 1);
}

#[test]
fn packets_that_understand_marks_are_marked_and_not_dropped() {
    let mut bench = Bench::new();
    let mut marked = 0;
    for _ in 0..1_000 {
        if bench.queue.len_bytes() < 100_000 {
            let mut packet = udp(1, 1_000);
            packet[1] = 0b10;
            seal(&mut packet);
            complete_checksum(&mut packet).unwrap();
            bench.add(Owned(packet, Offload::default()));
            continue;
        }
        bench.pass(1);
        let (packet, bytes) = bench.poll().unwrap();
        verify_checksum(&bytes).unwrap();
        assert_eq!(bytes[1], if packet.marked { 0b11 } else { 0b10 });
        marked += u64::from(packet.marked);
    }
    assert!(marked > 5);
    let stats = bench.queue.stats();
    assert_eq!((stats.marked, stats.drops.codel), (marked, 0));
}

/// A super-packet as [`bulk`], of a flow that takes marks.
fn capable(port: u16, segments: usize) -> Owned {
    let mut packet = bulk(port, segments);
    packet.0[1] = 0b10;
    seal(&mut packet.0);
    packet
}

#[test]
fn a_filling_queue_marks_what_comes_before_it_drops() {
    let mut bench = Bench::new();
    bench.queue.limits.bytes = 1_000_000;
    let mut marked = BTreeMap::<u16, Vec<usize>>::new();
    let mut queued = 0;
    while bench.queue.len_bytes() < 930_000 {
        bench.add(capable(queued as u16 % 4, 10));
        queued += 1;
    }
    // One that takes no marks, and one that is thin.
    bench.add(bulk(5, 10));
    let mut thin = udp(6, 100);
    thin[1] = 0b10;
    seal(&mut thin);
    bench.add(plain(thin));
    let mut count = 0;
    while let Some(taken) = bench.queue.take(bench.now) {
        count += 1;
        let place = marked.entry(port(taken.packet.bytes())).or_default();
        if taken.mark {
            place.push(count);
        }
    }
    for port in 0..4 {
        assert_eq!(marked[&port].len(), 1, "each flow is told once: {marked:?}");
    }
    assert!(marked[&5].is_empty() && marked[&6].is_empty());
    assert_eq!(count, queued + 2);
    let stats = bench.queue.stats();
    assert_eq!((stats.marked, stats.drops.overflow), (4, 0));
}

#[test]
fn a_flow_is_told_again_that_the_queue_fills_only_after_a_while() {
    let mut bench = Bench::new();
    bench.queue.limits.bytes = 1_000_000;
    let fill = |bench: &mut Bench| {
        while bench.queue.len_bytes() < 900_000 {
            bench.add(capable(1, 10));
        }
    };
    let mut told = Vec::new();
    for _ in 0..4 {
        fill(&mut bench);
        told.push(
            std::iter::from_fn(|| bench.queue.take(bench.now))
                .filter(|taken| taken.mark)
                .count(),
        );
        bench.pass(4);
    }
    assert_eq!(told, [1, 0, 0, 1]);
}

#[test]
fn codel_passes_our_own_stack_by_and_room_holds_it_back() {
    let mut bench = Bench::new();
    stand(&mut bench, || bulk(1, 20), true);
    assert_eq!(bench.queue.stats().drops.codel, 0);
    assert_eq!(bench.queue.room(), 0);
    let mut bench = Bench::new();
    let room = bench.queue.room();
    assert_eq!(room, 16 * MTU);
    bench.add(bulk(2, 45));
    assert_eq!(bench.queue.room(), room, "others' packets do not count");
    bench.add_own(bulk(1, 10));
    assert_eq!(bench.queue.room(), room - 10 * MTU);
    bench.queue.set_pace(12_500_000, Duration::from_millis(50));
    assert_eq!(bench.queue.room(), 125_000 - 10 * MTU);
    while bench.poll().is_some() {}
    assert_eq!(bench.queue.room(), 125_000);
}

#[test]
fn a_full_queue_drops_the_oldest_of_the_fattest_flow() {
    let mut bench = Bench::new();
    bench.queue.limits.bytes = 300_000;
    for _ in 0..4 {
        bench.add(bulk(1, 45));
    }
    bench.add(bulk(2, 20));
    for port in 3..100 {
        bench.add(plain(udp(port, 200)));
    }
    assert!(bench.queue.len_bytes() <= 300_000);
    let stats = bench.queue.stats();
    assert!(stats.drops.overflow > 0 && stats.drops.codel == 0);
    let mut sent = BTreeMap::<u16, usize>::new();
    let mut last = 0;
    while let Some((_, bytes)) = bench.poll() {
        *sent.entry(port(&bytes)).or_default() += 1;
        if port(&bytes) == 1 {
            last = sequence(&bytes);
        }
    }
    assert_eq!(sent.len(), 99);
    assert_eq!(sent[&2], 20);
    assert_eq!(sent[&1] as u64, 4 * 45 - stats.drops.overflow);
    assert_eq!(last, 44 * 1_360, "the newest are still there");
}

#[test]
fn packets_and_memory_are_bounded_too() {
    let mut bench = Bench::new();
    bench.queue.limits.packets = 10;
    for port in 1..100 {
        bench
            .queue
            .enqueue(bench.now, plain(udp(port, 100)), Producer::Other);
        assert!(bench.queue.packets.len() <= 10);
    }
    assert_eq!(bench.queue.stats().drops.overflow, 89);
    let mut bench = Bench::new();
    bench.queue.limits.memory = 200_000;
    for port in 1..50 {
        bench
            .queue
            .enqueue(bench.now, bulk(port, 45), Producer::Other);
        bench.poll();
        assert!(bench.queue.memory <= 200_000);
    }
}

#[test]
fn a_packet_larger_than_the_queue_is_refused() {
    let mut bench = Bench::new();
    bench.queue.limits.bytes = 20_000;
    assert!(
        !bench
            .queue
            .enqueue(bench.now, plain(udp(1, 30_000)), Producer::Other)
    );
    assert!(bench.queue.is_empty());
    bench.add(plain(udp(1, 300)));
}

#[test]
fn what_is_no_packet_is_dropped_and_counted() {
    let mut bench = Bench::new();
    assert!(
        !bench
            .queue
            .enqueue(bench.now, plain(vec![1, 2, 3]), Producer::Other)
    );
    assert_eq!(bench.queue.stats().drops.malformed, 1);
    assert!(bench.queue.is_empty());
}

#[test]
fn datagrams_above_the_mtu_are_given_whole_and_those_above_the_memory_dropped() {
    let mut bench = Bench::new();
    bench.add(plain(udp(1, 3_000)));
    bench.add(plain(udp(1, 9_500)));
    bench.add(plain(udp(1, 10)));
    assert_eq!(bench.poll().unwrap().0.len, 3_028);
    assert_eq!(bench.poll().unwrap().0.len, 38);
    assert_eq!(bench.queue.stats().drops.too_long, 1);
    assert_eq!(bench.queue.len_bytes(), 0);
}

#[test]
fn a_lane_of_super_packets_takes_them_whole_or_what_is_left_of_them() {
    let mut bench = Bench::new();
    bench.add(bulk(1, 10));
    bench.add(bulk(1, 20));
    assert_eq!(bench.port(), 1);
    let mut taken = bench.queue.take(bench.now).unwrap();
    assert!(taken.cut.is_started() && !taken.mark);
    let bytes = taken.packet.bytes();
    let (len, _) = taken.cut.next(bytes, MTU, &mut bench.out).unwrap();
    assert_eq!((len, sequence(&bench.out)), (MTU, 1_360));
    let taken = bench.queue.take(bench.now).unwrap();
    assert!(!taken.cut.is_started());
    assert_eq!(taken.packet, bulk(1, 20));
    assert!(bench.queue.take(bench.now).is_none());
    assert_eq!(bench.queue.len_bytes(), 0);
}

#[test]
fn a_packet_that_is_taken_whole_is_marked_by_whoever_takes_it() {
    let mut bench = Bench::new();
    let mut marked = 0;
    for _ in 0..200 {
        for _ in 0..2 {
            let mut packet = bulk(1, 5);
            packet.0[1] = 0b01;
            seal(&mut packet.0);
            bench.add(packet);
        }
        bench.pass(10);
        let taken = bench.queue.take(bench.now).unwrap();
        assert!(!taken.cut.is_started());
        marked += u64::from(taken.mark);
    }
    assert!(marked > 5);
    let stats = bench.queue.stats();
    assert_eq!((stats.marked, stats.drops.codel), (marked, 0));
}

#[test]
fn waits_are_measured_from_the_queue() {
    let mut bench = Bench::new();
    bench.add(plain(udp(1, 100)));
    bench.pass(3);
    bench.add(plain(udp(2, 100)));
    bench.pass(1);
    for wait in [4, 1] {
        let (packet, _) = bench.poll().unwrap();
        assert_eq!(packet.wait, Duration::from_millis(wait));
    }
}

/// A step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Add { flow: u16, kind: u8, size: usize },
    Poll { mtu: usize, times: usize },
    Take,
    Pass { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u16..20, 0u8..5, 0usize..50).prop_map(|(flow, kind, size)| Step::Add { flow, kind, size }),
        3 => (500usize..2_000, 1usize..40).prop_map(|(mtu, times)| Step::Poll { mtu, times }),
        1 => Just(Step::Take),
        1 => (0u64..200).prop_map(|ms| Step::Pass { ms }),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// Whatever happens: bounds hold, sums agree with what waits, the streams of flows come in order, and each byte
    /// leaves once or was dropped.
    #[test]
    fn the_queue_agrees_with_a_ledger(steps in steps(), seed in any::<u64>()) {
        let limits = QueueLimits { bytes: 150_000, packets: 60, memory: 250_000, ..QueueLimits::default() };
        let mut queue = FairQueue::new(seed, limits);
        let mut now = Instant::now();
        let mut out = vec![0; 3_000];
        // What is to come of each flow's stream of bytes; TCP only, so that all can be cut.
        let mut streams = BTreeMap::<u16, (u32, VecDeque<u32>)>::new();
        let (mut given, mut got) = (0u64, 0u64);
        for step in steps {
            match step {
                Step::Add { flow, kind, size } => {
                    let (start, _) = streams.entry(flow).or_default();
                    let mut packet = match kind {
                        0 => plain(tcp(flow, 0x18, size + 1)),
                        1 => plain(tcp(flow, 0x10, 1_360)),
                        _ => bulk(flow, size.min(45) + 1),
                    };
                    if size % 4 == 0 {
                        packet.0[1] = 0b01;
                        seal(&mut packet.0);
                    }
                    packet.0[24..28].copy_from_slice(&start.to_be_bytes());
                    *start += packet.0.len() as u32 - 40;
                    given += packet.0.len() as u64 - 40;
                    let producer = if size % 3 == 0 { Producer::Stack } else { Producer::Other };
                    queue.enqueue(now, packet, producer);
                }
                Step::Poll { mtu, times } => {
                    for _ in 0..times {
                        let Some(packet) = queue.poll(now, mtu, &mut out) else {
                            prop_assert!(queue.is_empty());
                            break;
                        };
                        prop_assert!(packet.len <= mtu);
                        let bytes = &out[..packet.len];
                        Packet::parse(bytes).unwrap();
                        let (_, seen) = streams.get_mut(&port(bytes)).unwrap();
                        if let Some(last) = seen.back() {
                            prop_assert!(sequence(bytes) >= *last);
                        }
                        seen.push_back(sequence(bytes) + packet.len as u32 - 40);
                        got += packet.len as u64 - 40;
                    }
                }
                Step::Take => {
                    if let Some(mut taken) = queue.take(now) {
                        let bytes = taken.packet.bytes();
                        while let Some((len, _)) = taken.cut.next(bytes, 1_400, &mut out) {
                            let (_, seen) = streams.get_mut(&port(&out)).unwrap();
                            if let Some(last) = seen.back() {
                                prop_assert!(sequence(&out) >= *last);
                            }
                            seen.push_back(sequence(&out) + len as u32 - 40);
                            got += len as u64 - 40;
                        }
                    }
                }
                Step::Pass { ms } => now += Duration::from_millis(ms),
            }
            let waiting: usize = queue.packets.iter().map(|(_, waiting)| waiting.cut.remaining()).sum();
            let of_stack: usize = queue.packets.iter()
                .filter(|(_, waiting)| waiting.producer == Producer::Stack)
                .map(|(_, waiting)| waiting.cut.remaining())
                .sum();
            let memory: usize = queue.packets.iter().map(|(_, waiting)| waiting.packet.0.len()).sum();
            let of_flows: usize = queue.flows.active().map(|flow| flow.bytes).sum();
            prop_assert_eq!((queue.bytes, queue.stack_bytes, queue.memory), (waiting, of_stack, memory));
            prop_assert_eq!(of_flows, waiting);
            prop_assert!(waiting <= 150_000 && memory <= 250_000 && queue.packets.len() <= 60);
        }
        while let Some(packet) = queue.poll(now, 1_400, &mut out) {
            got += packet.len as u64 - 40;
        }
        prop_assert!(queue.is_empty());
        let drops = queue.stats().drops;
        prop_assert_eq!((drops.malformed, drops.too_long), (0, 0));
        let lost = given - got;
        prop_assert!(lost <= (drops.codel + drops.overflow) * 1_960, "{} lost, {:?}", lost, drops);
        prop_assert!((lost == 0) == (drops.codel + drops.overflow == 0));
    }
}
