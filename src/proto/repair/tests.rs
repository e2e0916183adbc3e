//! Both ends of repair over a channel that loses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use adit_fec::{Class, LossReport, Mode, Settings, StreamEncoder, WindowEncoder};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::proto::random::Generator;
use crate::wire::{LaneId, RepairHeader};

const LANE: LaneId = LaneId::FIRST;

const LIMITS: GapLimits = GapLimits {
    ask_after: Duration::from_millis(20),
    ask_again: Duration::from_millis(60),
    ask_behind: None,
    answer_after: RTT,
    give_up_after: Duration::from_millis(150),
    late_within: Duration::from_millis(37),
};
const RTT: Duration = Duration::from_millis(50);
/// Between two packets: 4,000 a second, as 50 Mbit/s makes them.
const STEP: Duration = Duration::from_micros(250);

/// Two ends, what is under way between them, and what came out.
struct Scene {
    now: Instant,
    outgoing: Outgoing,
    incoming: Incoming,
    generator: Generator,
    loss_in_10000: u64,
    /// What arrives, when; a key of time and order.
    under_way: BTreeMap<(Instant, u64), Sent>,
    order: u64,
    delivered: BTreeMap<u64, Vec<u8>>,
    by_parity: u64,
    /// Since the last report: sent, lost, unrepaired.
    report: LossReport,
    reported: Instant,
}

enum Sent {
    Source { number: u64, packet: Vec<u8> },
    Repair(Vec<u8>),
    Question(u64),
}

fn packet(number: u64) -> Vec<u8> {
    let len = 40 + (number * 7_919 % 1_360) as usize;
    (0..len).map(|at| (number as usize + at) as u8).collect()
}

/// A repair under key 1 that covers one shard alone.
fn parity_of(number: u64, shard: &[u8]) -> Vec<u8> {
    let mut encoder = WindowEncoder::new(vec![0; 64], 1, 64).expect("sizes in range");
    encoder.push(number, shard).expect("fits");
    let mut parity = vec![0; 64];
    let len = encoder.repair(number, 1, 1, &mut parity).expect("is held");
    parity.truncate(len);
    parity
}

impl Scene {
    fn new(loss_in_10000: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            outgoing: Outgoing::new(now, Settings::default()).expect("constants"),
            incoming: Incoming::new(now, 0, LIMITS),
            generator: Generator::new(&mut StdRng::seed_from_u64(7)),
            loss_in_10000,
            under_way: BTreeMap::new(),
            order: 0,
            delivered: BTreeMap::new(),
            by_parity: 0,
            report: LossReport::default(),
            reported: now,
        }
    }

    fn put(&mut self, sent: Sent) {
        self.report.sent += 1;
        let draw = self.generator.u64();
        if draw % 10_000 < self.loss_in_10000 {
            self.report.lost += 1;
            return;
        }
        self.order += 1;
        self.under_way
            .insert((self.now + RTT / 2, self.order), sent);
    }

    fn send(&mut self, number: u64) {
        let packet = packet(number);
        self.outgoing
            .handle_source(self.now, number, 4, &packet, Class::Bulk);
        self.put(Sent::Source { number, packet });
        self.settle();
    }

    fn settle(&mut self) {
        let mut out = [0; 2_000];
        while let Some(extra) = self.outgoing.poll(self.now, &mut out) {
            match extra {
                Extra::Source {
                    number,
                    offload,
                    len,
                    again: _,
                } => {
                    assert_eq!(offload, 4);
                    let packet = out[..len].to_vec();
                    self.put(Sent::Source { number, packet });
                }
                Extra::Repair { len } => self.put(Sent::Repair(out[..len].to_vec())),
            }
        }
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                Sent::Source { number, packet } => {
                    if self.delivered.insert(number, packet.clone()).is_none() {
                        (self.incoming).handle_source(self.now, LANE, number, 4, &packet);
                    }
                }
                Sent::Repair(body) => {
                    let (header, parity) = RepairHeader::parse(&body).expect("is one");
                    self.incoming
                        .handle_repair(self.now, u64::from(header.first), header, parity)
                        .expect("constants");
                }
                Sent::Question(number) => {
                    let first = self.outgoing.handle_request(self.now, number);
                    self.report.unrepaired += u32::from(first);
                }
            }
            while let Some(arrived) = self.incoming.poll_repaired(self.now, LANE) {
                assert_eq!(arrived.offload, 4);
                self.by_parity += 1;
                let came = (arrived.number, arrived.packet.to_vec());
                assert!(self.delivered.insert(came.0, came.1).is_none());
            }
        }
        self.incoming.handle_timeout(self.now);
        let mut questions = Vec::new();
        self.incoming.gaps_mut().poll_ask(self.now, |number| {
            questions.push(number);
            true
        });
        for number in questions {
            self.order += 1;
            let at = self.now + RTT / 2;
            self.under_way
                .insert((at, self.order), Sent::Question(number));
        }
        if self.now - self.reported >= RTT / 8 {
            self.reported = self.now;
            let report = LossReport {
                bursts: self.report.lost,
                rtt: RTT,
                ..self.report
            };
            self.outgoing.handle_report(self.now, &report);
            self.report = LossReport::default();
        }
        self.now += STEP;
    }

    fn finish(&mut self) {
        for _ in 0..2_000 {
            self.settle();
        }
    }
}

#[test]
fn without_loss_nothing_is_sent_beside_the_packets() {
    let mut scene = Scene::new(0);
    for number in 0..20_000 {
        scene.send(number);
    }
    scene.finish();
    assert_eq!(scene.delivered.len(), 20_000);
    assert_eq!(*scene.outgoing.stats(), OutgoingStats::default());
    assert_eq!(scene.incoming.gaps().asked(), 0);
}

#[test]
fn at_5_percent_parity_brings_most_back_and_resends_the_rest() {
    let mut scene = Scene::new(500);
    for number in 0..40_000 {
        scene.send(number);
    }
    scene.finish();
    let delivered = scene.delivered.len() as u64;
    for (number, came) in &scene.delivered {
        assert_eq!(*came, packet(*number), "packet {number}");
    }
    let (out, into) = (scene.outgoing.stats(), scene.incoming.stats());
    println!("{delivered} of 40,000, {out:?}, {into:?}");
    // What two resends of a packet lose together is one in eight thousand of what parity left.
    assert!(40_000 - delivered <= 2, "{delivered}");
    assert!(into.repaired == scene.by_parity && scene.by_parity > 1_500);
    assert!(out.resent < 400, "{out:?}");
    let sent_beside = out.repairs + out.resent + out.copied;
    assert!(sent_beside < 40_000 * 22 / 100, "{out:?}");
}

#[test]
fn a_packet_is_sent_again_three_times_at_most_and_only_while_it_is_held() {
    let mut scene = Scene::new(0);
    for number in 0..600 {
        scene.send(number);
    }
    let mut out = [0; 2_000];
    for nth in 0..4 {
        let again = scene.outgoing.handle_request(scene.now, 599);
        assert_eq!(again, nth == 0, "only the first is news");
        assert!(!scene.outgoing.handle_request(scene.now, 599));
        while scene.outgoing.poll(scene.now, &mut out).is_some() {}
        // Until what was sent can have come, another question says nothing.
        scene.now += RTT / 2;
        scene.outgoing.handle_request(scene.now, 599);
        assert_eq!(scene.outgoing.poll(scene.now, &mut out), None);
        scene.now += RTT / 2;
    }
    scene
        .outgoing
        .handle_request(scene.now, 600 - RING as u64 - 1);
    let stats = scene.outgoing.stats();
    assert_eq!((stats.resent, stats.resends_refused), (3, 3));
    assert_eq!(stats.resends_too_late, 1);
}

#[test]
fn resends_that_wait_are_bounded() {
    let mut scene = Scene::new(0);
    for number in 0..400 {
        scene.send(number);
    }
    for number in 0..400 {
        scene.outgoing.handle_request(scene.now, number);
    }
    let stats = scene.outgoing.stats();
    assert_eq!(stats.resends_overflow, 400 - MAX_WAITING_RESENDS as u64);
}

#[test]
fn a_decoder_goes_when_no_repair_came_for_10_s_and_comes_back_with_the_next() {
    let mut scene = Scene::new(0);
    let header = RepairHeader {
        first: 0,
        span: 1,
        key: 1,
    };
    let parity = [0, 1].map(|number| parity_of(number, &[0, 1, 0, 9]));
    let start = scene.now;
    for _ in 0..2 {
        let mut incoming = Incoming::new(start, 0, LIMITS);
        incoming
            .handle_repair(start, 0, header, &parity[0])
            .expect("constants");
        let arrived = incoming
            .poll_repaired(start, LANE)
            .map(|arrived| arrived.number);
        assert_eq!(arrived, Some(0));
        assert_eq!(incoming.poll_timeout(), Some(start + DECODER_IDLE));
        incoming.handle_timeout(start + DECODER_IDLE);
        assert_eq!(incoming.poll_timeout(), None);
        assert_eq!(incoming.stats().repaired, 1);
        scene.incoming = incoming;
    }
    let again = RepairHeader { first: 1, ..header };
    scene
        .incoming
        .handle_repair(start + DECODER_IDLE, 1, again, &parity[1])
        .expect("constants");
    let arrived = scene
        .incoming
        .poll_repaired(start, LANE)
        .map(|arrived| arrived.number);
    assert_eq!(arrived, Some(1));
    assert_eq!(scene.incoming.stats().repaired, 2);
}

#[test]
fn parity_that_yields_no_packet_is_counted_and_dropped() {
    let now = Instant::now();
    let mut incoming = Incoming::new(now, 0, LIMITS);
    for (first, shard) in [(0, [0, 0, 0, 9]), (1, [0, 2, 0, 9]), (2, [255; 4])] {
        let header = RepairHeader {
            first,
            span: 1,
            key: 1,
        };
        incoming
            .handle_repair(now, first.into(), header, &parity_of(first.into(), &shard))
            .expect("constants");
        assert_eq!(incoming.poll_repaired(now, LANE), None);
    }
    let stats = incoming.stats();
    assert_eq!((stats.malformed, stats.repaired), (3, 3));
}

/// Two ends with a repair after each ten packets, over the last `span`.
fn fixed(now: Instant, span: u16) -> (Outgoing, Incoming) {
    let settings = Settings {
        mode: Mode::Fixed {
            repairs: 1,
            sources: 10,
            span,
        },
        ..Settings::default()
    };
    let outgoing = Outgoing::new(now, settings).expect("constants");
    (outgoing, Incoming::new(now, 0, LIMITS))
}

/// Sends a packet of that length, which comes or not, and returns what the parity that follows it brings back.
fn pass(
    now: Instant,
    (outgoing, incoming): &mut (Outgoing, Incoming),
    number: u64,
    len: usize,
    comes: bool,
) -> Vec<(u64, usize)> {
    let packet = vec![number as u8 | 1; len];
    outgoing.handle_source(now, number, 0, &packet, Class::Bulk);
    if comes {
        incoming.handle_source(now, LANE, number, 0, &packet);
    }
    let mut out = [0; 2_000];
    let mut repaired = Vec::new();
    while let Some(extra) = outgoing.poll(now, &mut out) {
        let Extra::Repair { len } = extra else {
            panic!("nobody asked for {extra:?}");
        };
        let (header, parity) = RepairHeader::parse(&out[..len]).expect("is one");
        incoming
            .handle_repair(now, u64::from(header.first), header, parity)
            .expect("constants");
        while let Some(arrived) = incoming.poll_repaired(now, LANE) {
            repaired.push((arrived.number, arrived.packet.len()));
        }
    }
    repaired
}

#[test]
fn a_packet_too_long_to_be_held_does_not_keep_the_others_from_being_repaired() {
    let now = Instant::now();
    let longest = SHARD_CAPACITY - crate::wire::SHARD_PREFIX_LEN;
    let mut ends = fixed(now, 10);
    let mut repaired = Vec::new();
    for number in 0..45 {
        let len = match number {
            17 | 33 => longest + 1,
            _ => longest,
        };
        let comes = !matches!(number, 12 | 25 | 33);
        repaired.extend(pass(now, &mut ends, number, len, comes));
    }
    assert_eq!(repaired, [(12, longest), (25, longest)]);
    let (outgoing, incoming) = &mut ends;
    // Nobody waits for the one that nothing will bring back.
    assert_eq!(incoming.gaps().len(), 0);
    assert!(outgoing.handle_request(now, 12) && !outgoing.handle_request(now, 17));
    let stats = outgoing.stats();
    assert_eq!((stats.unheld, stats.resends_too_late), (2, 1));
    let stats = incoming.stats();
    assert_eq!((stats.repaired, stats.malformed), (3, 1));
}

#[test]
fn parity_is_of_use_from_the_second_repair_on() {
    let mut now = Instant::now();
    let mut ends = fixed(now, 40);
    for from in [0, 25] {
        let mut repaired = Vec::new();
        for number in from..from + 25 {
            // The first repair is what makes the decoder, the second comes ten packets later.
            repaired.extend(pass(now, &mut ends, number, 100, number != from + 12));
        }
        assert_eq!(repaired, [(from + 12, 100)]);
        // It is given up in a pause, and another made.
        now += DECODER_IDLE;
        ends.1.handle_timeout(now);
    }
}
