//! The controller with the window code, in virtual time, over channels that lose packets: what is
//! left missing, what it costs, and how long repair takes.
//!
//! `cargo test -p adit-fec --test redundancy -- --nocapture` prints the table of the documentation.

mod common;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use adit_fec::redundancy::PlanKind;
use adit_fec::{
    Class, LossReport, Mode, Prospect, Redundancy, Settings, StreamDecoder, StreamEncoder,
    WindowDecoder, WindowEncoder,
};
use common::Channel;
use proptest::prelude::*;

const WINDOW: usize = 512;
const EQUATIONS: usize = 128;
/// The shard is the number alone: contents are other tests' matter.
const SHARD: usize = 8;
/// Length of a bulk packet, as the controller is told it.
const BULK: usize = 1_400;
const RTT: Duration = Duration::from_millis(50);
const REPORT_EACH: Duration = Duration::from_micros(6_250);

/// One direction: a sender with its controller, the channel, and a receiver that reports.
struct Direction {
    now: Instant,
    channel: Channel,
    redundancy: Redundancy,
    encoder: WindowEncoder<Vec<u8>>,
    decoder: WindowDecoder<Vec<u8>>,
    delay_rising: bool,
    /// The round-trip time that reports tell.
    rtt: Duration,
    /// When each source was sent, by number.
    sent_at: Vec<Instant>,
    lens: Vec<usize>,
    parity_bytes: u64,
    parity: u64,
    copies: u64,
    copy_bytes: u64,
    /// How much later than the source what repaired it was sent, for those that needed it.
    delays: Vec<Duration>,
    next_report: Instant,
    report: LossReport,
    in_burst: bool,
    given_up: BTreeSet<u64>,
    reports: VecDeque<(Instant, LossReport)>,
}

impl Direction {
    fn new(channel: Channel, settings: Settings) -> Self {
        let now = Instant::now();
        let decoder = vec![0; WindowDecoder::<Vec<u8>>::work_len(WINDOW, EQUATIONS, SHARD)];
        Self {
            now,
            channel,
            redundancy: Redundancy::new(now, settings),
            encoder: WindowEncoder::new(vec![0; WINDOW * SHARD], WINDOW, SHARD).expect("legal"),
            decoder: WindowDecoder::new(decoder, 0, WINDOW, EQUATIONS, SHARD).expect("legal"),
            delay_rising: false,
            rtt: RTT,
            sent_at: Vec::new(),
            lens: Vec::new(),
            parity_bytes: 0,
            parity: 0,
            copies: 0,
            copy_bytes: 0,
            delays: Vec::new(),
            next_report: now + REPORT_EACH,
            report: LossReport::default(),
            in_burst: false,
            given_up: BTreeSet::new(),
            reports: VecDeque::new(),
        }
    }

    fn auto(loss: f64, burst: f64, seed: u64) -> Self {
        Self::new(Channel::new(loss, burst, seed), Settings::default())
    }

    /// Sends one source now.
    fn send(&mut self, bytes: usize, class: Class) {
        let number = self.sent_at.len() as u64;
        let shard = number.to_be_bytes();
        self.sent_at.push(self.now);
        self.lens.push(bytes);
        self.encoder.push(number, &shard).expect("in order");
        self.redundancy.on_source(self.now, number, bytes, class);
        if !self.loses() {
            self.decoder.handle_source(number, &shard);
        }
        self.send_repairs();
    }

    fn send_repairs(&mut self) {
        while let Some(plan) = self.redundancy.poll_repair(self.now) {
            let mut parity = [0; SHARD];
            let span = usize::from(plan.span);
            let made = self.encoder.repair(plan.first, span, plan.key, &mut parity);
            made.expect("a plan is possible");
            let covered = plan.first as usize..plan.first as usize + span;
            let longest = self.lens[covered].iter().max().copied().unwrap_or(0);
            match plan.kind {
                PlanKind::Parity => {
                    self.parity += 1;
                    self.parity_bytes += longest as u64;
                }
                PlanKind::Copy => {
                    self.copies += 1;
                    self.copy_bytes += longest as u64;
                }
            }
            if !self.loses() {
                self.decoder
                    .handle_repair(plan.first, span, plan.key, &parity);
            }
            while let Some((number, shard)) = self.decoder.poll_repaired() {
                assert_eq!(shard, number.to_be_bytes());
                let sent_at = self.sent_at[number as usize];
                self.delays.push(self.now - sent_at);
            }
        }
    }

    fn loses(&mut self) -> bool {
        let lost = self.channel.loses();
        self.report.sent += 1;
        self.report.lost += u32::from(lost);
        self.report.bursts += u32::from(lost && !self.in_burst);
        self.in_burst = lost;
        lost
    }

    /// Lets time pass: timers, reports.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let report = self.reports.front().map(|(at, _)| *at);
            let timer = self.redundancy.poll_timeout().map(|at| at.max(self.now));
            let next = [Some(self.next_report), report, timer];
            let next = next.into_iter().flatten().min().expect("reports go on");
            if next > until {
                break;
            }
            self.now = next;
            if next == self.next_report {
                self.make_report();
            } else if Some(next) == report {
                let (_, report) = self.reports.pop_front().expect("the first");
                self.redundancy.on_report(self.now, &report);
            } else {
                self.send_repairs();
                let timer = self.redundancy.poll_timeout();
                assert!(
                    timer.is_none_or(|at| at > self.now),
                    "a timer that stays due"
                );
            }
        }
        self.now = until;
    }

    fn make_report(&mut self) {
        for (number, prospect) in self.decoder.missing() {
            if prospect == Prospect::Hopeless && self.given_up.insert(number) {
                self.report.unrepaired += 1;
            }
        }
        self.given_up = self.given_up.split_off(&self.decoder.window().start);
        let mut report = std::mem::take(&mut self.report);
        report.rtt = self.rtt;
        report.delay_rising = self.delay_rising;
        // Seen half a round trip after it was sent, reported half a one later.
        self.reports.push_back((self.now + RTT, report));
        self.next_report += REPORT_EACH;
    }

    fn bulk(&mut self, packets: usize) {
        for _ in 0..packets {
            self.send(BULK, Class::Bulk);
            self.wait(Duration::from_micros(250));
        }
    }

    /// Returns how many sources never came.
    fn residual(&self) -> u64 {
        self.decoder.stats().lost + self.decoder.missing_len() as u64
    }

    fn delay(&mut self, quantile: f64) -> Duration {
        self.delays.sort_unstable();
        let at = (self.delays.len() as f64 * quantile) as usize;
        self.delays.get(at).copied().unwrap_or_default()
    }
}

#[test]
fn residual_loss_and_overhead_stay_within_their_bounds_at_every_loss() {
    const PACKETS: usize = 1_000_000;
    println!(
        "| loss | repair bytes per source byte | span | missing before a resend | after one | \
         repaired after: median | 90 % | 99 % |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (loss, burst, most_overhead, most_missing) in [
        (0.0, 1.0, 0.0, 0.0),
        (0.001, 1.0, 0.0, 1.0),
        (0.002, 1.0, 0.001, 1.0),
        (0.005, 1.0, 0.03, 2e-4),
        (0.01, 1.0, 0.04, 2e-4),
        (0.03, 1.0, 0.09, 2e-4),
        (0.05, 1.0, 0.12, 2e-4),
        (0.1, 1.0, 0.22, 2e-4),
        (0.2, 1.0, 0.43, 2e-4),
        (0.01, 2.0, 0.06, 1e-3),
        (0.02, 2.0, 0.09, 1e-3),
        (0.05, 2.0, 0.16, 1e-3),
        (0.01, 4.0, 0.08, 1e-3),
        (0.02, 4.0, 0.12, 1e-3),
        (0.05, 4.0, 0.2, 1e-3),
    ] {
        let mut direction = Direction::auto(loss, burst, 1);
        direction.bulk(PACKETS);
        let overhead = direction.parity_bytes as f64 / (PACKETS * BULK) as f64;
        let missing = direction.residual() as f64 / PACKETS as f64;
        println!(
            "| {} | {overhead:.4} | {} | {missing:.1e} | {:.1e} | {:.1?} | {:.1?} | {:.1?} |",
            direction.channel.name(),
            direction.redundancy.span(),
            missing * loss,
            direction.delay(0.5),
            direction.delay(0.9),
            direction.delay(0.99),
        );
        assert!(overhead <= most_overhead, "{overhead}");
        assert!(missing <= most_missing, "{missing}");
    }
}

#[test]
fn slower_flows_are_repaired_as_far_as_a_resend_is_not_as_quick() {
    println!(
        "| packets a second | loss | parity per source | span | missing | median | 90 % | 99 % |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (each_us, loss, burst, most_overhead, most_missing) in [
        (100, 0.05, 1.0, 0.17, 1e-3),
        (1_000, 0.01, 1.0, 0.17, 1e-3),
        (1_000, 0.05, 1.0, 0.17, 1e-3),
        (1_000, 0.05, 4.0, 0.3, 1e-2),
        (4_000, 0.05, 1.0, 0.2, 1e-2),
        (10_000, 0.05, 1.0, 0.2, 5e-2),
        (50_000, 0.05, 1.0, 0.0, 6e-2),
    ] {
        let mut direction = Direction::auto(loss, burst, 2);
        for _ in 0..100_000 {
            direction.send(BULK, Class::Bulk);
            direction.wait(Duration::from_micros(each_us));
        }
        let overhead = direction.parity as f64 / 1e5;
        let missing = direction.residual() as f64 / 1e5;
        println!(
            "| {} | {} | {overhead:.4} | {} | {missing:.1e} | {:.1?} | {:.1?} | {:.1?} |",
            1_000_000 / each_us,
            direction.channel.name(),
            direction.redundancy.span(),
            direction.delay(0.5),
            direction.delay(0.9),
            direction.delay(0.99),
        );
        assert!(overhead <= most_overhead, "{overhead}");
        assert!(missing <= most_missing, "{missing}");
    }
}

#[test]
fn a_train_of_packets_is_repaired_though_nothing_follows_it() {
    println!("| train | loss | parity per source | missing | median | 90 % |");
    println!("|---|---|---|---|---|---|");
    for (train, loss, most_overhead, most_missing) in [
        (3, 0.05, 0.18, 3e-2),
        (5, 0.05, 0.18, 2e-2),
        (10, 0.05, 0.18, 8e-3),
        (32, 0.01, 0.07, 1e-3),
        (32, 0.05, 0.17, 1e-3),
        (32, 0.1, 0.30, 1e-3),
        (100, 0.05, 0.16, 1e-3),
    ] {
        let mut direction = Direction::auto(loss, 1.0, 3);
        let trains = 100_000 / train;
        for _ in 0..trains {
            direction.bulk(train);
            direction.wait(RTT);
        }
        let sent = (trains * train) as f64;
        let overhead = direction.parity as f64 / sent;
        let missing = direction.residual() as f64 / sent;
        let median = direction.delay(0.5);
        println!(
            "| {train} | {} | {overhead:.4} | {missing:.1e} | {median:.1?} | {:.1?} |",
            direction.channel.name(),
            direction.delay(0.9),
        );
        assert!(overhead <= most_overhead, "{overhead}");
        assert!(missing <= most_missing, "{missing}");
        assert!(median < Duration::from_millis(12), "{median:?}");
    }
}

#[test]
fn a_stream_of_a_small_packet_each_20_ms_is_copied_within_128_kbit_a_second() {
    const PACKETS: usize = 100_000;
    println!(
        "| loss | copies per packet | kbit/s | not there at once | later than 10 ms | 25 ms | missing |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (loss, burst, most_copies, most_late, most_missing) in [
        (0.0, 1.0, 0.01, 0.0, 0.0),
        (0.002, 1.0, 0.2, 2.5e-3, 2.5e-3),
        (0.01, 1.0, 1.1, 1e-3, 1e-4),
        (0.05, 1.0, 1.2, 4e-3, 1e-4),
        (0.1, 1.0, 1.5, 1.3e-2, 1e-3),
        (0.05, 4.0, 1.5, 5e-2, 1.5e-2),
    ] {
        let mut direction = Direction::auto(loss, burst, 4);
        for _ in 0..PACKETS {
            direction.send(230, Class::Thin);
            direction.wait(Duration::from_millis(20));
        }
        let late = |ms| {
            let late = direction
                .delays
                .iter()
                .filter(|delay| delay.as_millis() >= ms);
            (late.count() as u64 + direction.residual()) as f64 / PACKETS as f64
        };
        let copies = direction.copies as f64 / PACKETS as f64;
        let seconds = PACKETS as f64 / 50.0;
        let kbit = direction.copy_bytes as f64 * 8.0 / 1e3 / seconds;
        let missing = direction.residual() as f64 / PACKETS as f64;
        println!(
            "| {} | {copies:.3} | {kbit:.1} | {:.4} | {:.4} | {:.4} | {missing:.1e} |",
            direction.channel.name(),
            late(1),
            late(10),
            late(25),
        );
        assert!(copies <= most_copies && kbit <= 128.1, "{copies}, {kbit}");
        assert!(late(1) <= most_late, "{}", late(1));
        assert!(missing <= most_missing, "{missing}");
        assert!(direction.parity < 1_000, "copies do: {}", direction.parity);
    }
}

#[test]
fn thin_packets_beside_bulk_cost_at_most_15_percent_and_are_there_at_once() {
    let mut direction = Direction::auto(0.1, 1.0, 5);
    for at in 0..400_000 {
        // 4,000 packets a second, 200 of them thin.
        if at % 20 == 7 {
            direction.send(200, Class::Thin);
        } else {
            direction.send(BULK, Class::Bulk);
        }
        direction.wait(Duration::from_micros(250));
    }
    let stats = direction.redundancy.stats();
    assert!(
        (39_900..=40_000).contains(&stats.copies),
        "two each: {stats:?}"
    );
    assert_eq!(stats.copies_over_budget, 0);
    assert!(stats.copy_bytes * 100 < stats.source_bytes * 15);
    assert!((direction.residual() as f64) < 1e-4 * 400_000.0);
}

#[test]
fn parity_begins_within_a_few_round_trips_of_loss_and_ends_seconds_after_it() {
    for (loss, round_trips) in [(0.1, 3), (0.05, 4), (0.02, 10), (0.01, 20)] {
        let mut direction = Direction::auto(0.0, 1.0, 6);
        direction.bulk(40_000);
        assert_eq!(direction.parity + direction.copies, 0, "nothing was lost");
        direction.channel.loss = loss;
        let began = direction.now;
        while direction.parity == 0 {
            direction.bulk(1);
        }
        let waited = direction.now - began;
        assert!(waited <= round_trips * RTT, "{loss}: {waited:?}");
        direction.bulk(400);
        let ratio = direction.redundancy.ratio();
        assert!(ratio > loss, "{loss}: {ratio}");

        direction.bulk(40_000);
        direction.channel.loss = 0.0;
        let ended = direction.now;
        while direction.redundancy.ratio() > 0.0 {
            direction.bulk(1);
        }
        let waited = direction.now - ended;
        assert!(waited < Duration::from_secs(9), "{loss}: {waited:?}");
        let before = direction.parity;
        direction.bulk(40_000);
        assert_eq!(direction.parity, before);
    }
}

#[test]
fn bursts_ask_for_longer_spans_and_more_repairs() {
    let mut random = Direction::auto(0.03, 1.0, 7);
    let mut bursts = Direction::auto(0.03, 4.0, 7);
    random.bulk(40_000);
    bursts.bulk(40_000);
    let (random, bursts) = (random.redundancy, bursts.redundancy);
    assert!(
        (1.0..1.2).contains(&random.burst_len()),
        "{}",
        random.burst_len()
    );
    assert!(
        (3.0..5.0).contains(&bursts.burst_len()),
        "{}",
        bursts.burst_len()
    );
    assert!(bursts.span() > random.span() * 3 / 2);
    assert!(bursts.ratio() > random.ratio() * 1.3);
}

#[test]
fn losses_of_a_full_queue_get_no_parity_beyond_those_of_the_air() {
    // The air loses 1 %; for 2 s of each 4 a queue is full and loses 10 %.
    let mut direction = Direction::auto(0.01, 1.0, 8);
    direction.bulk(40_000);
    let calm = direction.redundancy.ratio();
    for _ in 0..4 {
        direction.channel.loss = 0.1;
        direction.delay_rising = true;
        direction.bulk(4_000);
        let congested = direction.redundancy.ratio();
        assert!(congested < calm / 2.0, "{congested} where it was {calm}");
        direction.bulk(4_000);
        direction.channel.loss = 0.01;
        direction.delay_rising = false;
        direction.bulk(8_000);
        let after = direction.redundancy.ratio();
        assert!((0.7..1.4).contains(&(after / calm)), "{after} after {calm}");
    }
}

#[test]
fn losses_that_happen_to_meet_a_queue_take_no_parity_away() {
    for loss in [0.01, 0.05] {
        let mut calm = Direction::auto(loss, 1.0, 16);
        let mut flagged = Direction::auto(loss, 1.0, 16);
        calm.bulk(40_000);
        for at in 0..1_600 {
            flagged.delay_rising = at % 10 < 3;
            flagged.bulk(25);
        }
        let (calm, flagged) = (calm.parity as f64, flagged.parity as f64);
        assert!(flagged > calm * 0.8, "{flagged} where it would be {calm}");
    }
}

#[test]
fn a_queue_that_overflows_begins_no_repair_however_slow_the_link() {
    // A lane with 1 packet each 20 ms, whose queue others fill for 4 s of each 5.
    let mut direction = Direction::auto(0.0, 1.0, 19);
    for at in 0..10_000 {
        let full = at % 250 >= 50;
        direction.delay_rising = full;
        direction.channel.loss = if full { 0.15 } else { 0.0 };
        direction.send(BULK, Class::Bulk);
        direction.wait(Duration::from_millis(20));
    }
    let (parity, sent) = (direction.parity as f64, 1e4);
    assert!(parity < 0.02 * sent, "{parity}");
    // Nor are packets copied into a queue that drops them.
    let before = direction.copies;
    for at in 0..1_000 {
        let full = at % 250 >= 50;
        direction.delay_rising = full;
        direction.channel.loss = if full { 0.15 } else { 0.0 };
        direction.send(200, Class::Thin);
        direction.wait(Duration::from_millis(20));
    }
    let copies = direction.copies - before;
    assert!(copies < 50, "{copies}");
}

#[test]
fn where_a_resend_is_as_quick_as_parity_little_loss_gets_none() {
    for (rtt_ms, loss, parity, copies) in [
        (10, 0.02, false, false),
        (20, 0.02, false, true),
        (20, 0.05, true, true),
        (40, 0.02, true, true),
    ] {
        let mut direction = Direction::auto(loss, 1.0, 20);
        direction.rtt = Duration::from_millis(rtt_ms);
        // Whatever the link is, it is unknown at first.
        direction.bulk(4_000);
        let before = (direction.parity, direction.copies);
        for _ in 0..400 {
            direction.bulk(99);
            direction.send(200, Class::Thin);
        }
        let found = (direction.parity > before.0, direction.copies > before.1);
        assert_eq!(found, (parity, copies), "{rtt_ms} ms, {loss}");
    }
}

#[test]
fn parity_that_is_not_wanted_rests_and_copies_go_on() {
    let mut direction = Direction::auto(0.05, 1.0, 22);
    direction.bulk(8_000);
    let mut grew = |wanted| {
        direction.redundancy.set_parity(wanted);
        let before = (direction.parity, direction.copies);
        for _ in 0..40 {
            direction.bulk(99);
            direction.send(200, Class::Thin);
        }
        (direction.parity > before.0, direction.copies > before.1)
    };
    assert_eq!(grew(false), (false, true));
    assert_eq!(grew(true), (true, true));
}

#[test]
fn rising_delay_alone_takes_no_parity_away() {
    let mut direction = Direction::auto(0.05, 1.0, 9);
    direction.bulk(40_000);
    let calm = direction.redundancy.ratio();
    direction.delay_rising = true;
    for _ in 0..10 {
        direction.bulk(4_000);
        let rising = direction.redundancy.ratio();
        assert!(
            (0.7..1.4).contains(&(rising / calm)),
            "{rising} after {calm}"
        );
    }
}

#[test]
fn small_packets_among_large_ones_do_not_multiply_the_bytes_of_parity() {
    let mut direction = Direction::auto(0.05, 1.0, 10);
    for at in 0..200_000 {
        let bytes = if at % 10 == 0 { BULK } else { 60 };
        direction.send(bytes, Class::Bulk);
        direction.wait(Duration::from_micros(250));
    }
    let stats = direction.redundancy.stats();
    assert_eq!(stats.parity_bytes, stats.parity * BULK as u64);
    let overhead = stats.parity_bytes as f64 / stats.source_bytes as f64;
    assert!((0.1..0.18).contains(&overhead), "{overhead}");
    assert!(stats.parity_over_cap > 0);
}

#[test]
fn a_large_packet_now_and_then_takes_no_parity_from_small_ones_once_it_left_the_span() {
    let mut direction = Direction::auto(0.05, 1.0, 17);
    for at in 0..100_000 {
        let bytes = if at % 1_000 == 0 { BULK } else { 60 };
        direction.send(bytes, Class::Bulk);
        direction.wait(Duration::from_micros(250));
    }
    let stats = direction.redundancy.stats();
    assert!(
        stats.parity_bytes * 100 < stats.source_bytes * 18,
        "{stats:?}"
    );
    assert!(stats.parity > 8_000, "{stats:?}");
}

#[test]
fn a_new_span_takes_hold_at_once() {
    let mut direction = Direction::auto(0.05, 1.0, 18);
    direction.bulk(20_000);
    assert!(direction.redundancy.span() > 100);
    direction.redundancy.set(Settings {
        max_span: 20,
        ..Settings::default()
    });
    assert_eq!(direction.redundancy.span(), 20);
    direction.bulk(1_000);
    let stats = direction.redundancy.stats();
    assert_eq!(stats.parity_bytes, stats.parity * BULK as u64);
}

#[test]
fn off_sends_nothing_and_fixed_sends_what_it_says() {
    let settings = |mode| Settings {
        mode,
        ..Settings::default()
    };
    let mut off = Direction::new(Channel::new(0.1, 1.0, 11), settings(Mode::Off));
    off.bulk(20_000);
    off.send(200, Class::Urgent);
    assert_eq!((off.parity, off.copies), (0, 0));
    assert_eq!(off.redundancy.poll_timeout(), None);

    let mode = Mode::Fixed {
        repairs: 4,
        sources: 20,
        span: 40,
    };
    for loss in [0.0, 0.1] {
        let mut fixed = Direction::new(Channel::new(loss, 1.0, 11), settings(mode));
        fixed.bulk(20_000);
        fixed.send(200, Class::Urgent);
        assert_eq!((fixed.parity, fixed.copies), (4_000, 0));
        assert_eq!(fixed.redundancy.span(), 40);
    }
}

#[test]
fn urgent_packets_are_copied_before_anything_is_known_and_never_on_a_clean_link() {
    let mut direction = Direction::auto(0.0, 1.0, 12);
    for _ in 0..3 {
        direction.send(60, Class::Urgent);
    }
    assert_eq!(direction.copies, 3);
    direction.bulk(20_000);
    for _ in 0..3 {
        direction.send(60, Class::Urgent);
    }
    assert_eq!(direction.copies, 3);
}

#[test]
fn a_second_copy_waits_some_milliseconds() {
    let mut direction = Direction::auto(0.2, 1.0, 13);
    direction.bulk(20_000);
    direction.wait(Duration::from_secs(1));
    let before = direction.copies;
    direction.send(60, Class::Urgent);
    assert_eq!(direction.copies, before + 1);
    direction.wait(Duration::from_millis(4));
    assert_eq!(direction.copies, before + 1);
    direction.wait(Duration::from_millis(2));
    assert_eq!(direction.copies, before + 2);
}

#[test]
fn loss_on_a_link_that_always_queues_is_repaired_like_any_other() {
    let mut direction = Direction::auto(0.05, 1.0, 14);
    direction.delay_rising = true;
    direction.bulk(80_000);
    assert!(direction.redundancy.ratio() > 0.08);
    assert!((direction.residual() as f64) < 1e-3 * 80_000.0);
}

#[test]
fn fixed_repairs_cover_the_last_packets_too() {
    let mode = Mode::Fixed {
        repairs: 1,
        sources: 10,
        span: 10,
    };
    let settings = Settings {
        mode,
        ..Settings::default()
    };
    let mut direction = Direction::new(Channel::new(0.0, 1.0, 15), settings);
    direction.bulk(13);
    assert_eq!(direction.parity, 1);
    direction.wait(Duration::from_millis(6));
    assert_eq!(direction.parity, 2);
    // That was on credit: the next ten bring none.
    direction.bulk(10);
    assert_eq!(direction.parity, 2);
    assert!(direction.redundancy.poll_timeout().is_some());
}

#[test]
fn what_stays_unrepaired_moves_the_ratio_up_and_slowly_back() {
    let start = Instant::now();
    let mut now = start;
    let mut redundancy = Redundancy::new(now, Settings::default());
    let mut number = 0;
    let mut run = |redundancy: &mut Redundancy, reports: u32, unrepaired: u32| {
        for _ in 0..reports {
            for _ in 0..25 {
                now += Duration::from_micros(250);
                redundancy.on_source(now, number, BULK, Class::Bulk);
                number += 1;
                while redundancy.poll_repair(now).is_some() {}
            }
            let report = LossReport {
                sent: 25,
                lost: 1,
                bursts: 1,
                unrepaired,
                delay_rising: false,
                rtt: RTT,
            };
            redundancy.on_report(now, &report);
        }
        redundancy.ratio()
    };
    let usual = run(&mut redundancy, 1_000, 0);
    let more = run(&mut redundancy, 100, 1);
    assert!(more > usual * 1.15, "{more} after {usual}");
    let later = run(&mut redundancy, 40_000, 0);
    assert!((later / usual - 1.0).abs() < 0.01, "{later} after {usual}");
}

/// A sender that starts finds the end of the queue before there was any calm to compare with.
#[test]
fn what_overflowed_at_the_beginning_is_not_remembered_as_the_links_loss() {
    let mut now = Instant::now();
    let mut redundancy = Redundancy::new(now, Settings::default());
    let mut report = |redundancy: &mut Redundancy, lost, delay_rising| {
        now += RTT;
        let report = LossReport {
            sent: 20,
            lost,
            bursts: lost / 2,
            unrepaired: 0,
            delay_rising,
            rtt: RTT,
        };
        redundancy.on_report(now, &report);
        now
    };
    for _ in 0..20 {
        report(&mut redundancy, 8, true);
    }
    for _ in 0..100 {
        report(&mut redundancy, 0, false);
    }
    for number in 0..50 {
        let now = report(&mut redundancy, 0, false);
        redundancy.on_source(now, number, 200, Class::Thin);
        assert_eq!(redundancy.poll_repair(now), None, "{number}");
    }
}

#[test]
fn settings_and_reports_beyond_all_bounds_do_no_harm() {
    let now = Instant::now();
    for cap in [f32::NAN, f32::INFINITY, -1.0, 9.0] {
        let settings = Settings {
            cap,
            max_span: 0,
            mode: Mode::Auto,
        };
        let mut redundancy = Redundancy::new(now, settings);
        for number in [0, 1, 2, 7, 3, u64::MAX - 1, u64::MAX] {
            let report = LossReport {
                sent: 1,
                lost: u32::MAX,
                bursts: u32::MAX,
                unrepaired: u32::MAX,
                delay_rising: number % 2 == 0,
                rtt: Duration::MAX,
            };
            redundancy.on_report(now, &report);
            redundancy.on_source(now, number, usize::MAX, Class::Urgent);
            redundancy.on_source(now, number + u64::from(number < 9), 0, Class::Bulk);
            for _ in 0..100 {
                let Some(plan) = redundancy.poll_repair(now + Duration::from_secs(1)) else {
                    break;
                };
                assert_eq!(plan.span, 1);
            }
            redundancy.set(settings);
        }
        assert!((0.0..=1.0).contains(&redundancy.ratio()));
    }
}

proptest! {
    #[test]
    fn a_plan_covers_what_was_sent_and_no_more_than_it_may(
        max_span in 1..300_u16,
        fixed in prop::option::of((0..30_u16, 0..30_u16, 0..300_u16)),
        steps in prop::collection::vec((0..12_u8, 0..40_u16, 0..8_u8), 1..300),
    ) {
        let mode = fixed.map_or(Mode::Auto, |(repairs, sources, span)| Mode::Fixed {
            repairs,
            sources,
            span,
        });
        let settings = Settings { mode, max_span, ..Settings::default() };
        let mut now = Instant::now();
        let mut redundancy = Redundancy::new(now, settings);
        let (mut began, mut next, mut last_key) = (0, 0_u64, None);
        for (step, amount, other) in steps {
            match step {
                0 => now += Duration::from_millis(amount.into()),
                1 => {
                    // A gap.
                    next += u64::from(amount);
                    if amount > 0 {
                        began = next;
                        redundancy.on_source(now, next, 100, Class::Bulk);
                        next += 1;
                    }
                }
                2 => {
                    let report = LossReport {
                        sent: 10 * u32::from(amount),
                        lost: u32::from(other) * u32::from(amount) / 4,
                        bursts: u32::from(amount) / 4,
                        unrepaired: u32::from(other % 2),
                        delay_rising: other == 7,
                        rtt: Duration::from_millis(u64::from(amount)),
                    };
                    redundancy.on_report(now, &report);
                }
                _ => {
                    let class = match other {
                        0 => Class::Urgent,
                        1 => Class::Thin,
                        _ => Class::Bulk,
                    };
                    for _ in 0..amount {
                        redundancy.on_source(now, next, 30 * usize::from(amount), class);
                        next += 1;
                        now += Duration::from_micros(100 * u64::from(other));
                    }
                }
            }
            let mut plans = 0;
            while let Some(plan) = redundancy.poll_repair(now) {
                let end = plan.first + u64::from(plan.span);
                prop_assert!(plan.span >= 1 && plan.span <= max_span, "{:?}", plan);
                prop_assert!(plan.first >= began && end <= next, "{:?} of {}..{}", plan, began, next);
                prop_assert!(last_key != Some(plan.key));
                last_key = Some(plan.key);
                plans += 1;
                prop_assert!(plans <= 150, "polling ends");
            }
            prop_assert!(redundancy.poll_timeout().is_none_or(|at| at > now), "a timer that stays due");
        }
    }
}
