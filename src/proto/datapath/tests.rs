//! Two ends over a bottleneck that loses, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use adit_fec::{LossReport, Mode, Settings as RepairSettings};
use adit_netstack::Offload;
use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use super::*;
use crate::proto::lossy_pair::{LossyPair, Way};
use crate::proto::path::DatagramPath;
use crate::proto::queue::{Producer, QueuePacket};
use crate::proto::repair::Circumstances;
use crate::proto::session::{Session, Settings};
use crate::proto::stats::{LaneStats, Stats};
use crate::wire::{DatagramHeader, LaneId, Ranges, Report};

const LANE: LaneId = LaneId::FIRST;

/// A packet that owns its bytes.
#[derive(Debug)]
struct Owned(Vec<u8>);

impl QueuePacket for Owned {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn offload(&self) -> Offload {
        Offload::default()
    }
}

/// One direction of the link: a rate, a queue, a delay, random loss ahead of the queue.
struct Link {
    rate: f64,
    queue: Duration,
    delay: Duration,
    loss: f64,
    burst: f64,
    bad: bool,
    free_at: Instant,
    rng: StdRng,
    sent: u64,
    bytes: u64,
    dropped: u64,
    /// Those that met random loss.
    lost: u64,
}

impl Link {
    /// When a datagram of that length arrives, if it does.
    fn send(&mut self, now: Instant, len: usize) -> Option<Instant> {
        // IPv4, UDP and Ethernet headers.
        let bytes = len as u64 + 42;
        self.sent += 1;
        let draw: f64 = self.rng.random();
        // A two-state chain whose mean stay in the bad state is `burst` packets.
        self.bad = if self.bad {
            draw >= 1.0 / self.burst
        } else {
            draw < self.loss / (1.0 - self.loss) / self.burst
        };
        if self.bad {
            self.lost += 1;
            return None;
        }
        let start = self.free_at.max(now);
        if start - now > self.queue {
            self.dropped += 1;
            return None;
        }
        self.bytes += bytes;
        self.free_at = start + Duration::from_secs_f64(bytes as f64 * 8.0 / self.rate);
        Some(self.free_at + self.delay)
    }
}

struct End {
    session: Session,
    datapath: Datapath<Owned>,
    path: DatagramPath,
    delivered: u64,
    bytes: u64,
    /// One-way delays of thin packets.
    thin: Vec<Duration>,
}

/// A datagram under way: when it arrives, its place among others of that time, at which end, its bytes.
type Flying = (Instant, u64, usize, Vec<u8>);

/// What a run came to.
#[derive(Debug)]
struct Outcome {
    mbits: f64,
    /// Bytes on the wire per byte of packet delivered.
    overhead: f64,
    /// Share of packets never delivered.
    residual: f64,
    thin_p50: Duration,
    thin_p99: Duration,
    thin_lost: usize,
    dropped: u64,
    /// What the link took, and what of that did not arrive.
    taken: u64,
    lost: u64,
    delivered: u64,
    /// Packets whose fate the receiver does not know yet.
    missing: u64,
    /// What both ends counted.
    sender: Counted,
    receiver: Counted,
}

/// What one end counted.
#[derive(Debug)]
struct Counted {
    session: Stats,
    datapath: DatapathStats,
    /// Since there were packets.
    lane: LaneStats,
    before: LaneStats,
}

impl Counted {
    fn new(end: &End, before: LaneStats) -> Self {
        Self {
            session: end.session.stats().clone(),
            datapath: end.datapath.stats(),
            lane: end.session.carried(),
            before,
        }
    }
}

/// Runs a bulk sender and a thin stream in one direction for `secs`.
fn run(loss: f64, burst: f64, mode: Mode, secs: u64) -> Outcome {
    let mut pair = LossyPair::confirmed(Way::default(), Settings::default(), 5);
    pair.pass(Duration::from_secs(3));
    let start = pair.now;
    let (client, server) = (
        pair.client.take().expect("is there"),
        pair.server.take().expect("is there"),
    );
    let repair = RepairSettings {
        mode,
        ..RepairSettings::default()
    };
    let end = |mut session: Session| {
        let path = session.datagram_path(LANE).expect("a datagram lane");
        let from = session.highest_source().map_or(0, |highest| highest + 1);
        let mut datapath = Datapath::new(start, 9, from, repair);
        datapath.follow_lanes(&mut session, start);
        End {
            session,
            datapath,
            path,
            delivered: 0,
            bytes: 0,
            thin: Vec::new(),
        }
    };
    let mut ends = [end(server), end(client)];
    let before = [0, 1].map(|at: usize| ends[at].session.carried());
    let link = |seed| Link {
        rate: 50e6,
        queue: Duration::from_millis(100),
        delay: Duration::from_millis(25),
        loss,
        burst,
        bad: false,
        free_at: start,
        rng: StdRng::seed_from_u64(seed),
        sent: 0,
        bytes: 0,
        dropped: 0,
        lost: 0,
    };
    let mut links = [link(1), link(2)];
    let mut flying: BinaryHeap<Reverse<Flying>> = BinaryHeap::new();
    let mut order = 0;
    let mut now = start;
    let stop = start + Duration::from_secs(secs);
    let mut next_thin = start;
    let mut thin_sent: VecDeque<Instant> = VecDeque::new();
    let (mut bulk_sent, mut thin_number) = (0_u64, 0_u32);
    while now < stop + Duration::from_millis(500) {
        // The server sends all it may, and a small packet each 20 ms.
        if now < stop {
            while ends[0].datapath.room() > 0 {
                let packet = udp_packet(1, bulk_sent as u32, 1_400);
                bulk_sent += 1;
                assert!(
                    ends[0]
                        .datapath
                        .enqueue(now, Owned(packet), Producer::Stack)
                );
            }
            if now >= next_thin {
                next_thin += Duration::from_millis(20);
                thin_sent.push_back(now);
                let packet = udp_packet(2, thin_number, 228);
                thin_number += 1;
                ends[0]
                    .datapath
                    .enqueue(now, Owned(packet), Producer::Other);
            }
        }
        for from in [0, 1] {
            let mut out = [0; 2_048];
            let mut control = Vec::new();
            let end = &mut ends[from];
            while let Some(lane) = end.session.poll_control(now, &mut control) {
                end.datapath
                    .handle_control_sent(&end.session, now, lane, &control);
                order += 1;
                if let Some(at) = links[from].send(now, control.len()) {
                    flying.push(Reverse((at, order, 1 - from, control.clone())));
                }
            }
            while let Some(len) =
                end.datapath
                    .poll_datagram(&mut end.session, now, LANE, true, &mut out)
            {
                order += 1;
                if let Some(at) = links[from].send(now, len) {
                    flying.push(Reverse((at, order, 1 - from, out[..len].to_vec())));
                }
            }
            while end.session.poll_event().is_some() {}
        }
        // The next thing that happens.
        let mut next = stop + Duration::from_secs(1);
        if now < stop {
            next = next.min(next_thin);
        }
        if let Some(Reverse((at, ..))) = flying.peek() {
            next = next.min(*at);
        }
        for end in &ends {
            for due in [end.session.poll_timeout(), end.datapath.poll_timeout()] {
                next = due.map_or(next, |due| next.min(due));
            }
        }
        now = next.max(now + Duration::from_micros(1));
        while flying.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, _, to, mut datagram))) = flying.pop() else {
                break;
            };
            let End {
                session,
                datapath,
                path,
                delivered,
                bytes,
                thin,
            } = &mut ends[to];
            let mut deliver = |frame: &mut [u8], range: std::ops::Range<usize>, _: Offload| {
                take(&frame[range], now, &thin_sent, delivered, bytes, thin);
            };
            datapath
                .open(session, now, *path, &mut datagram, false, &mut deliver)
                .expect("opens");
        }
        for end in &mut ends {
            let End {
                session,
                datapath,
                delivered,
                bytes,
                thin,
                ..
            } = end;
            let mut deliver = |frame: &mut [u8], range: std::ops::Range<usize>, _: Offload| {
                take(&frame[range], now, &thin_sent, delivered, bytes, thin);
            };
            if session.poll_timeout().is_some_and(|due| due <= now) {
                session.handle_timeout(now);
            }
            datapath.handle_timeout(session, now, &mut deliver);
        }
    }
    let [server, client] = &mut ends;
    let next = client.datapath.incoming.gaps().next();
    let unseen = server.session.next_source() - next;
    client.thin.sort_unstable();
    let sent = server.session.stats().packets_sealed;
    let percentile = |share: f64| {
        let at = (client.thin.len() as f64 * share) as usize;
        client.thin.get(at).copied().unwrap_or(Duration::MAX)
    };
    Outcome {
        mbits: client.bytes as f64 * 8.0 / 1e6 / secs as f64,
        overhead: links[0].bytes as f64 / client.bytes as f64,
        residual: 1.0 - client.delivered as f64 / sent as f64,
        thin_p50: percentile(0.5),
        thin_p99: percentile(0.99),
        thin_lost: thin_sent.len() - client.thin.len(),
        dropped: links[0].dropped,
        taken: links[0].sent,
        lost: links[0].lost + links[0].dropped,
        delivered: client.delivered,
        missing: unseen + client.datapath.stats().missing as u64,
        sender: Counted::new(server, before[0]),
        receiver: Counted::new(client, before[1]),
    }
}

fn take(
    packet: &[u8],
    now: Instant,
    thin_sent: &VecDeque<Instant>,
    delivered: &mut u64,
    bytes: &mut u64,
    thin: &mut Vec<Duration>,
) {
    *delivered += 1;
    *bytes += packet.len() as u64;
    let number = u32::from_be_bytes(packet[28..32].try_into().expect("four bytes"));
    if packet.len() < 1_000 {
        thin.push(now - thin_sent[number as usize]);
    }
}

/// A UDP packet of `len` bytes from `port`, whose payload begins with a number.
fn udp_packet(port: u16, number: u32, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    let sum: u32 = (packet[..20].chunks(2))
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum & 0xFFFF) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&9_u16.to_be_bytes());
    packet[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    packet[28..32].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Runs 8 s of it and checks what came out: the least Mbit/s of packets, the most bytes on the wire
/// (those that are lost ahead of it left out) for each byte delivered.
fn check(loss: f64, burst: f64, mode: Mode, least: f64, most: f64) -> Outcome {
    let outcome = run(loss, burst, mode, 8);
    println!("loss {loss}, burst {burst}, {mode:?}: {outcome:?}");
    assert!(outcome.mbits >= least, "{outcome:?}");
    assert!(outcome.overhead <= most, "{outcome:?}");
    outcome
}

#[test]
fn without_loss_the_link_is_full_and_nothing_is_repaired() {
    let outcome = check(0.0, 1.0, Mode::Auto, 45.0, 1.06);
    assert_eq!((outcome.residual, outcome.thin_lost), (0.0, 0));
    assert_eq!(outcome.dropped, 0);
}

#[test]
fn small_packet_leaves_at_once_though_bulk_waits_for_the_window() {
    let mut pair = LossyPair::confirmed(Way::default(), Settings::default(), 5);
    pair.pass(Duration::from_secs(3));
    let mut session = pair.server.take().expect("is there");
    let mut now = pair.now;
    let mut datapath = Datapath::new(now, 9, 0, RepairSettings::default());
    datapath.follow_lanes(&mut session, now);
    for number in 0..200 {
        let packet = udp_packet(1, number, 1_200);
        datapath.enqueue(now, Owned(packet), Producer::Other);
    }
    let mut out = [0; 2_048];
    let mut poll = |datapath: &mut Datapath<Owned>, now| {
        datapath.poll_datagram(&mut session, now, LANE, true, &mut out)
    };
    // Nobody reports: the first window leaves, and then nothing.
    for _ in 0..200 {
        while poll(&mut datapath, now).is_some() {}
        now += Duration::from_millis(1);
    }
    assert!(datapath.stats().queue.sent < 100);
    for _ in 0..5 {
        let packet = udp_packet(2, 0, 228);
        datapath.enqueue(now, Owned(packet), Producer::Other);
        let sent = poll(&mut datapath, now);
        assert!(sent.is_some_and(|len| len < 300), "{sent:?}");
        assert_eq!(poll(&mut datapath, now), None);
        now += Duration::from_millis(20);
    }
}

#[test]
fn random_loss_is_repaired_and_costs_little_more_than_itself() {
    for (loss, least, most) in [
        (0.01, 43.0, 1.11),
        (0.03, 41.0, 1.14),
        (0.05, 40.0, 1.16),
        (0.1, 38.5, 1.21),
    ] {
        let outcome = check(loss, 1.0, Mode::Auto, least, most);
        assert!(outcome.residual <= 2e-4, "{outcome:?}");
        assert_eq!(outcome.thin_lost, 0);
        // The way takes 25 ms: half of the small packets have hardly waited for anything.
        assert!(outcome.thin_p50 < Duration::from_millis(30), "{outcome:?}");
        assert!(outcome.thin_p99 < Duration::from_millis(90), "{outcome:?}");
    }
}

#[test]
fn losses_in_bursts_are_repaired_too() {
    for (loss, least, most) in [(0.02, 34.0, 1.25), (0.05, 28.0, 1.4)] {
        let outcome = check(loss, 4.0, Mode::Auto, least, most);
        assert!(outcome.residual <= 5e-4, "{outcome:?}");
    }
}

#[test]
fn without_repair_what_is_lost_stays_lost_and_nothing_is_added() {
    let outcome = check(0.05, 1.0, Mode::Off, 43.0, 1.06);
    assert!(
        outcome.residual > 0.04 && outcome.residual < 0.06,
        "{outcome:?}"
    );
    assert!(outcome.thin_lost > 5);
}

#[test]
fn what_the_ends_count_adds_up_to_what_the_link_did() {
    for (loss, burst, mode) in [
        (0.0, 1.0, Mode::Auto),
        (0.05, 1.0, Mode::Auto),
        (0.05, 4.0, Mode::Auto),
        (0.05, 1.0, Mode::Off),
    ] {
        let outcome = run(loss, burst, mode, 4);
        let Outcome {
            sender, receiver, ..
        } = &outcome;
        let (sent, came) = (sender.lane.outgoing, receiver.lane.incoming);
        // Each packet went one way.
        assert_eq!(sent.packets, sender.session.packets_sealed, "{outcome:?}");
        assert_eq!(
            sent.packets + came.late,
            came.packets + came.repaired + came.residual + outcome.missing,
            "{outcome:?}"
        );
        assert_eq!(came.packets + came.repaired, outcome.delivered);
        // And so did each datagram.
        let left = sent.sent - sender.before.outgoing.sent;
        let arrived = came.received - receiver.before.incoming.received;
        assert_eq!(left, outcome.taken, "{outcome:?}");
        assert_eq!(arrived, outcome.taken - outcome.lost, "{outcome:?}");
        // A report that is lost may be the last to name what arrived, and the last losses have nothing behind
        // them that would show them.
        let noticed = sent.lost - sent.late;
        assert!(
            noticed.abs_diff(outcome.lost) * 20 <= outcome.lost,
            "{outcome:?}"
        );
        // What repair sent, and what of it was of no use.
        let extra = sender.datapath.outgoing;
        assert_eq!(
            (sent.resent, sent.copied, sent.repairs),
            (extra.resent, extra.copied, extra.repairs)
        );
        let drops = &receiver.session.drops;
        let again = drops.duplicate_packets + drops.stale_packets;
        let wasted = again + receiver.datapath.incoming.repairs_wasted;
        assert_eq!(came.wasted, wasted, "{outcome:?}");
        let repairs = sent.resent + sent.repairs + came.repaired;
        match mode {
            Mode::Auto => assert_eq!(repairs > 0, loss > 0.0, "{outcome:?}"),
            Mode::Off | Mode::Fixed { .. } => {
                assert_eq!((repairs, came.wasted), (0, 0), "{outcome:?}");
                assert!(came.residual > 0, "{outcome:?}");
            }
        }
        // Nothing was sent the other way.
        assert_eq!(sender.lane.incoming.packets, 0);
        assert_eq!(receiver.lane.outgoing.packets, 0);
    }
}

#[test]
fn what_confirms_a_lane_is_the_first_that_has_arrived_on_it() {
    let mut pair = LossyPair::new(Way::default(), Settings::default(), 5);
    while pair.client.is_none() {
        pair.pass(Duration::from_millis(1));
    }
    let (server, client) = (pair.pending.pop(), pair.client.take());
    let (mut server, mut client) = (server.expect("it waits"), client.expect("is there"));
    let now = pair.now;
    let mut sender = Datapath::new(now, 9, 0, RepairSettings::default());
    sender.follow_lanes(&mut client, now);
    let mut receiver = Datapath::<Owned>::new(now, 9, 0, RepairSettings::default());
    receiver.follow_lanes(&mut server, now);
    sender.enqueue(now, Owned(udp_packet(1, 0, 100)), Producer::Other);
    let mut out = [0; 2_048];
    let len = sender.poll_datagram(&mut client, now, LANE, true, &mut out);
    let datagram = &mut out[..len.expect("a datagram")];
    let mut delivered = 0;
    receiver
        .open(
            &mut server,
            now,
            DatagramPath::to(pair.client_at),
            datagram,
            false,
            &mut |_, _, _| delivered += 1,
        )
        .expect("it opens");
    assert_eq!(delivered, 1);
    assert!(server.is_confirmed());
    let counts = receiver.lane_counts(LANE).expect("the lane is known");
    assert_eq!(counts.received, 1);
}

/// The server's end of a session of one datagram lane, and the client's.
fn ends(repair: RepairSettings) -> (Instant, Session, Datapath<Owned>, Session) {
    let mut pair = LossyPair::confirmed(Way::default(), Settings::default(), 5);
    pair.pass(Duration::from_secs(3));
    let (server, client) = (pair.server.take(), pair.client.take());
    let (mut server, client) = (server.expect("is there"), client.expect("is there"));
    let mut datapath = Datapath::new(pair.now, 9, 0, repair);
    datapath.follow_lanes(&mut server, pair.now);
    (pair.now, server, datapath, client)
}

/// Sends so many packets and returns how many datagrams that made.
fn send(session: &mut Session, datapath: &mut Datapath<Owned>, now: Instant, packets: u32) -> u32 {
    for number in 0..packets {
        let packet = udp_packet(1, number, 1_200);
        datapath.enqueue(now, Owned(packet), Producer::Other);
    }
    polled(session, datapath, now, true)
}

/// Polls until there is none, and returns how many datagrams came.
fn polled(
    session: &mut Session,
    datapath: &mut Datapath<Owned>,
    now: Instant,
    packets: bool,
) -> u32 {
    let mut out = [0; 2_048];
    let mut count = 0;
    while datapath
        .poll_datagram(session, now, LANE, packets, &mut out)
        .is_some()
    {
        count += 1;
    }
    count
}

#[test]
fn resends_that_no_lane_may_send_wake_nobody() {
    let (mut now, mut session, mut datapath, _) = ends(RepairSettings::default());
    send(&mut session, &mut datapath, now, 2);
    now += Duration::from_millis(10);
    let ask = |datapath: &mut Datapath<Owned>, now| {
        let outgoing = datapath.outgoing.as_mut().expect("there were packets");
        assert!(outgoing.handle_request(now, 0));
    };
    // A lane of another kind takes the packets now.
    assert_eq!(polled(&mut session, &mut datapath, now, false), 0);
    ask(&mut datapath, now);
    assert_eq!(polled(&mut session, &mut datapath, now, false), 0);
    assert!(datapath.poll_timeout() > Some(now));
    // And this one again.
    assert_eq!(polled(&mut session, &mut datapath, now, true), 1);
    // Nobody reports, and the window is full.
    let (mut now, mut session, mut datapath, _) = ends(RepairSettings::default());
    for _ in 0..200 {
        send(&mut session, &mut datapath, now, 1);
        now += Duration::from_millis(1);
    }
    ask(&mut datapath, now);
    assert_eq!(polled(&mut session, &mut datapath, now, true), 0);
    assert!(datapath.poll_timeout() > Some(now));
}

#[test]
fn what_is_to_leave_by_a_socket_that_takes_nothing_wakes_nobody() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    let due = now + Duration::from_secs(1);
    let class = crate::proto::delivery::Class::Data;
    datapath.lanes[0]
        .received
        .handle_datagram(now, 1, 100, false, class);
    assert!(datapath.poll_timeout().is_some_and(|at| at < due));
    datapath.handle_blocked(LANE);
    assert_eq!(datapath.poll_timeout(), None);
    // It does again.
    assert_eq!(polled(&mut session, &mut datapath, due, false), 1);
    datapath.lanes[0]
        .received
        .handle_datagram(due, 2, 100, false, class);
    assert!(datapath.poll_timeout().is_some());
}

#[test]
fn a_control_frame_is_probe_enough() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    let mut out = Vec::new();
    let mut pings = |session: &mut Session, datapath: &mut Datapath<Owned>| {
        polled(session, datapath, now, false);
        let mut count = 0;
        while let Some(lane) = session.poll_control(now, &mut out) {
            datapath.handle_control_sent(session, now, lane, &out);
            count += 1;
        }
        count
    };
    assert_eq!(pings(&mut session, &mut datapath), 0);
    datapath.lanes[0].probe = true;
    assert_eq!(pings(&mut session, &mut datapath), 1);
    // Said of its own accord, and then a probe is due.
    session.ping(LANE);
    datapath.lanes[0].probe = true;
    let mut frame = Vec::new();
    assert_eq!(session.poll_control(now, &mut frame), Some(LANE));
    datapath.handle_control_sent(&session, now, LANE, &frame);
    assert_eq!(pings(&mut session, &mut datapath), 0);
}

#[test]
fn questions_that_no_lane_can_put_wake_nobody_and_others_take_a_lane_that_can() {
    let (mut now, mut session, mut datapath, mut client) = ends(RepairSettings::default());
    let mut deliver = |_: &mut [u8], _: std::ops::Range<usize>, _: Offload| {};
    let mut sender = Datapath::new(now, 9, 0, RepairSettings::default());
    sender.follow_lanes(&mut client, now);
    datapath.set_kept(true);
    // The first of three packets comes over a lane of another kind, and so does the third.
    for number in [0, 2] {
        let mut packet = udp_packet(1, number, 228);
        let range = 0..packet.len();
        let received = Received {
            lane: LaneId(2),
            number: number.into(),
            frame: &mut packet,
            range,
            offload: Offload::default(),
        };
        datapath.take(&mut session, now, received, &mut deliver);
    }
    for _ in 0..20 {
        now += Duration::from_millis(1);
        datapath.handle_timeout(&mut session, now, &mut deliver);
        assert_eq!(polled(&mut session, &mut datapath, now, true), 0);
        assert!(datapath.poll_timeout() > Some(now));
    }
    // Something comes over the first lane, nothing over the last.
    let path = session.datagram_path(LANE).expect("a datagram lane");
    let mut out = [0; 2_048];
    sender.enqueue(now, Owned(udp_packet(1, 3, 228)), Producer::Other);
    client.alloc_source(0);
    client.alloc_source(0);
    client.alloc_source(0);
    let len = sender.poll_datagram(&mut client, now, LANE, true, &mut out);
    let datagram = &mut out[..len.expect("there is a packet")];
    datapath
        .open(&mut session, now, path, datagram, false, &mut deliver)
        .expect("opens");
    let round_trip = Duration::from_millis(50);
    let last = lane::DatapathLane::new(now, LaneId(9), 1_200, round_trip, 1);
    datapath.lanes.push(last);
    now += Duration::from_millis(2);
    datapath.handle_timeout(&mut session, now, &mut deliver);
    assert_eq!(polled(&mut session, &mut datapath, now, true), 1);
    assert_eq!(datapath.stats().asked, 1);
    assert!(datapath.poll_timeout() > Some(now));
}

#[test]
fn what_leaves_again_is_worth_waiting_for_only_where_packets_are() {
    for (rivals, kept) in [(false, true), (true, false)] {
        let (now, mut session, mut datapath, mut client) = ends(RepairSettings::default());
        let circumstances = Circumstances {
            sent: 0,
            dropped: 0,
            own: 0,
            rivals,
            flying: 10.0,
            loss: 0.0,
        };
        datapath.judge.judge(now, &circumstances);
        let mut out = [0; 2_048];
        // The packet itself is lost, its copy comes.
        datapath.enqueue(now, Owned(udp_packet(1, 0, 228)), Producer::Other);
        let mut poll = || datapath.poll_datagram(&mut session, now, LANE, true, &mut out);
        assert!(poll().is_some());
        let len = poll().expect("there is a copy");
        assert_eq!(datapath.stats().outgoing.copied, 1);
        let path = client.datagram_path(LANE).expect("a datagram lane");
        let mut receiver = Datapath::<Owned>::new(now, 9, 0, RepairSettings::default());
        receiver.follow_lanes(&mut client, now);
        receiver.kept = !kept;
        let mut deliver = |_: &mut [u8], _: std::ops::Range<usize>, _: Offload| {};
        receiver
            .open(&mut client, now, path, &mut out[..len], false, &mut deliver)
            .expect("opens");
        assert_eq!(receiver.kept, kept);
    }
}

#[test]
fn a_lane_that_carries_no_packets_sets_no_pace() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    send(&mut session, &mut datapath, now, 2);
    let other = LaneId(9);
    let round_trip = Duration::from_millis(1);
    let lane = lane::DatapathLane::new(now, other, 1_200, round_trip, 1);
    datapath.lanes.push(lane);
    let before = (datapath.room(), datapath.round_trip);
    datapath.handle_report(&mut session, now, other, &Report::default());
    assert_eq!((datapath.room(), datapath.round_trip), before);
    datapath.carrier = Some(other);
    datapath.handle_report(&mut session, now, other, &Report::default());
    assert!(datapath.room() > before.0 && datapath.round_trip == round_trip);
}

#[test]
fn a_lane_that_carries_no_packets_tells_repair_nothing() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    send(&mut session, &mut datapath, now, 2);
    let other = LaneId(9);
    let round_trip = Duration::from_secs(1);
    let lane = lane::DatapathLane::new(now, other, 1_200, round_trip, 1);
    datapath.lanes.push(lane);
    let mut resends = |datapath: &mut Datapath<Owned>, after_ms, lane| {
        let now = now + Duration::from_millis(after_ms);
        datapath.handle_report(&mut session, now, lane, &Report::default());
        let outgoing = datapath.outgoing.as_mut().expect("there were packets");
        outgoing.handle_request(now, 0);
        polled(&mut session, datapath, now, true)
    };
    assert_eq!(resends(&mut datapath, 20, other), 1);
    // By the other lane's round trip that resend would still be on its way.
    assert_eq!(resends(&mut datapath, 500, other), 1);
}

#[test]
fn what_flew_on_a_dead_lane_leaves_again_though_some_of_it_is_forgotten() {
    let (mut now, mut session, mut datapath, _) = ends(RepairSettings::default());
    assert_eq!(send(&mut session, &mut datapath, now, 2), 2);
    datapath.outgoing = None;
    now += Duration::from_millis(10);
    assert_eq!(send(&mut session, &mut datapath, now, 2), 2);
    datapath.abandon(LANE);
    now += Duration::from_millis(10);
    assert_eq!(polled(&mut session, &mut datapath, now, true), 2);
    assert_eq!(datapath.stats().outgoing.resends_too_late, 2);
}

#[test]
fn what_a_far_end_never_reports_on_is_tracked_no_further_and_counted() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    let mut out = [0; 2_048];
    datapath.enqueue(now, Owned(udp_packet(1, 0, 228)), Producer::Other);
    let len = datapath.poll_datagram(&mut session, now, LANE, true, &mut out);
    let datagram = &mut out[..len.expect("there is a packet")];
    let header = DatagramHeader::parse(datagram).expect("is one");
    // It asks for answers without end.
    for counter in header.counter + 1..header.counter + 5_000 {
        let next = DatagramHeader { counter, ..header }.to_bytes();
        datagram[..next.len()].copy_from_slice(&next);
        datapath.handle_control_sent(&session, now, LANE, datagram);
    }
    let tracked = datapath.lane_counts(LANE).expect("is there").sent.datagrams;
    let drops = datapath.stats().drops;
    assert_eq!((tracked + drops.unanswered, drops.untracked), (5_000, 0));
    assert!(tracked < 1_300, "{tracked}");
}

#[test]
fn what_a_dead_lane_had_just_sent_again_leaves_on_another() {
    let (mut now, mut session, mut datapath, _) = ends(RepairSettings::default());
    assert_eq!(send(&mut session, &mut datapath, now, 2), 2);
    let first = session.next_source() - 2;
    for number in [first, first, first, first + 1] {
        now += Duration::from_millis(200);
        let outgoing = datapath.outgoing.as_mut().expect("there were packets");
        let rtt = Duration::from_millis(50);
        let report = LossReport {
            rtt,
            ..LossReport::default()
        };
        outgoing.handle_report(now, &report);
        outgoing.handle_request(now, number);
        assert_eq!(polled(&mut session, &mut datapath, now, true), 1);
    }
    datapath.abandon(LANE);
    now += Duration::from_millis(1);
    // One was sent again as often as may be, the other a moment ago.
    assert_eq!(polled(&mut session, &mut datapath, now, true), 2);
    assert_eq!(datapath.stats().outgoing.resends_refused, 0);
}

#[test]
fn the_second_half_of_a_packet_goes_with_its_lane_and_is_counted() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    datapath.lanes[0].datagram = 1_200;
    let mut out = [0; 2_048];
    datapath.enqueue(now, Owned(udp_packet(1, 0, 1_400)), Producer::Other);
    let first = datapath.poll_datagram(&mut session, now, LANE, true, &mut out);
    assert_eq!(first, Some(1_200));
    session.remove_lane(now, LANE);
    datapath.follow_lanes(&mut session, now);
    assert_eq!(datapath.stats().drops.halves, 1);
}

#[test]
fn a_packet_too_long_for_two_datagrams_is_counted_and_leaves_no_hole() {
    let (now, mut session, mut datapath, _) = ends(RepairSettings::default());
    datapath.lanes[0].datagram = 1_200;
    let next = session.next_source();
    datapath.enqueue(now, Owned(udp_packet(1, 0, 2_400)), Producer::Other);
    datapath.enqueue(now, Owned(udp_packet(1, 1, 228)), Producer::Other);
    let mut out = [0; 4_096];
    let len = datapath.poll_datagram(&mut session, now, LANE, true, &mut out);
    assert!(len.is_some_and(|len| len < 300), "{len:?}");
    assert_eq!(session.next_source(), next + 1);
    assert_eq!(datapath.stats().drops.too_long, 1);
}

/// A report that so many datagrams came, up to the one with the number.
fn came_up_to(highest: u32, oldest: u64) -> Report {
    Report {
        highest,
        ranges: Ranges::new(oldest),
        ..Report::default()
    }
}

#[test]
fn what_is_called_lost_when_its_time_is_up_counts_for_the_path_mtu() {
    let (mut now, mut session, mut datapath, _) = ends(RepairSettings::default());
    let long = session.max_datagram(LANE).expect("a datagram lane");
    // One long datagram more that is lost, and they pass no longer.
    for _ in 0..9 {
        session.handle_datagram_acknowledged(LANE, 100);
        session.handle_datagram_lost(LANE, long);
    }
    // A long packet is lost and a short one behind it arrives, too near to overtake it.
    let mut out = [0; 2_048];
    let mut counter = 0;
    for len in [1_400, 228] {
        datapath.enqueue(now, Owned(udp_packet(1, 0, len)), Producer::Other);
        let polled = datapath.poll_datagram(&mut session, now, LANE, true, &mut out);
        let header = DatagramHeader::parse(&out[..polled.expect("there is a packet")]);
        counter = header.expect("is one").counter;
    }
    now += Duration::from_millis(50);
    datapath.handle_report(&mut session, now, LANE, &came_up_to(counter, 0));
    let lost = |datapath: &Datapath<Owned>| datapath.lane_counts(LANE).map(|lane| lane.sent.lost);
    assert_eq!(lost(&datapath), Some(0));
    now = datapath.lanes[0].flight.poll_timeout().expect("one flies");
    let mut deliver = |_: &mut [u8], _: std::ops::Range<usize>, _: Offload| {};
    datapath.handle_timeout(&mut session, now, &mut deliver);
    assert_eq!(lost(&datapath), Some(1));
    assert!(session.max_datagram(LANE) < Some(long));
}
