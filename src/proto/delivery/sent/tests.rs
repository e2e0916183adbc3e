//! The sending end, without a link and over one that does as it likes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::proto::delivery::Received;
use crate::wire::{Ranges, RepairCounts, Span};

const RTT: Duration = Duration::from_millis(50);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A sender and what it was told.
struct Bench {
    sent: Sent<u64>,
    now: Instant,
    start: Instant,
    next: u64,
    fates: Vec<(u64, Fate)>,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            sent: Sent::new(now, RTT),
            now,
            start: now,
            next: 0,
            fates: Vec::new(),
        }
    }

    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let next = self.next;
            (self
                .sent
                .handle_sent(self.now, next, 1000, Class::Data, true, next))
            .unwrap();
            self.next += 1;
        }
    }

    /// A report that names these numbers, which ascend; the highest took 30 ms there.
    fn report(&mut self, numbers: &[u64], one_way: Duration) -> Sample {
        let highest = *numbers.last().unwrap();
        let mut ranges: Option<Ranges> = None;
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for &number in numbers {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                Some(_) | None => runs.push((number, number)),
            }
        }
        for (first, last) in runs.into_iter().rev() {
            let (newest, oldest) = (highest - last, highest - first);
            match &mut ranges {
                None => ranges = Some(Ranges::new(oldest)),
                Some(ranges) => assert!(ranges.push(Span { newest, oldest })),
            }
        }
        let arrival = self.now.duration_since(self.start) - RTT + one_way;
        let report = Report {
            highest: highest as u32,
            arrival: arrival.as_micros() as u32,
            ranges: ranges.unwrap(),
            ..Report::default()
        };
        let fates = &mut self.fates;
        (self.sent).handle_report(self.now, &report, &mut |n, fate| fates.push((n, fate)))
    }

    fn timeout(&mut self) -> Due {
        let fates = &mut self.fates;
        self.sent
            .handle_timeout(self.now, &mut |n, fate| fates.push((n, fate)))
    }

    fn of(&self, fate: Fate) -> Vec<u64> {
        let of = self.fates.iter().filter(|(_, found)| *found == fate);
        of.map(|(number, _)| *number).collect()
    }
}

#[test]
fn what_arrived_is_delivered_once_and_in_order() {
    let mut bench = Bench::new();
    bench.send(5);
    assert_eq!(bench.sent.in_flight(), 5000);
    bench.now += RTT;
    bench.report(&[0, 1, 2], ms(25));
    bench.report(&[0, 1, 2, 3, 4], ms(25));
    assert_eq!(bench.of(Fate::Delivered), [0, 1, 2, 3, 4]);
    assert_eq!(bench.sent.in_flight(), 0);
    assert_eq!(bench.sent.round_trip(), RTT);
    assert_eq!(bench.sent.poll_timeout(), None);
}

#[test]
fn three_later_datagrams_prove_a_loss() {
    let mut bench = Bench::new();
    bench.send(6);
    bench.now += RTT;
    bench.report(&[1, 2], ms(25));
    assert!(bench.of(Fate::Lost).is_empty());
    bench.report(&[1, 2, 3], ms(25));
    assert_eq!(bench.of(Fate::Lost), [0]);
    assert_eq!(bench.sent.in_flight(), 2000);
    assert_eq!(bench.sent.counts().lost, 1);
}

#[test]
fn time_proves_a_loss_that_too_few_later_datagrams_show() {
    let mut bench = Bench::new();
    bench.send(2);
    bench.now += RTT;
    bench.report(&[1], ms(25));
    let due = bench.sent.poll_timeout().unwrap();
    assert_eq!(due, bench.start + RTT * 9 / 8);
    assert!(matches!(bench.timeout(), Due::Nothing));
    bench.now = due;
    assert!(matches!(bench.timeout(), Due::Lost(sample) if sample.datagrams_lost == 1));
    assert_eq!(bench.of(Fate::Lost), [0]);
}

#[test]
fn a_lost_tail_is_probed_for_at_doubling_intervals() {
    let mut bench = Bench::new();
    bench.send(1);
    bench.now += RTT;
    bench.report(&[0], ms(25));
    bench.send(1);
    let mut waits = Vec::new();
    for _ in 0..4 {
        let due = bench.sent.poll_timeout().unwrap();
        waits.push(due.duration_since(bench.now));
        bench.now = due;
        assert!(matches!(bench.timeout(), Due::Probe));
    }
    // RTT + 4 · RTT / 2 + 25 ms.
    assert_eq!(waits, [ms(175), ms(350), ms(700), ms(1400)]);
    assert!(bench.of(Fate::Lost).is_empty());
}

#[test]
fn what_comes_late_raises_the_threshold() {
    let mut bench = Bench::new();
    bench.send(10);
    bench.now += RTT;
    bench.report(&[1, 2, 3, 4], ms(25));
    assert_eq!(bench.of(Fate::Lost), [0]);
    let sample = bench.report(&[0, 1, 2, 3, 4], ms(25));
    assert_eq!(bench.of(Fate::Late), [0]);
    assert_eq!(sample.came_late, 1000);
    assert_eq!((bench.sent.loss().lost, bench.sent.loss().late), (0, 1));
    // Four behind is now still possible.
    bench.report(&[0, 1, 2, 3, 4, 6, 7, 8, 9], ms(25));
    assert_eq!(bench.of(Fate::Lost), [0]);
}

#[test]
fn the_queue_is_seen_one_way() {
    let mut bench = Bench::new();
    bench.send(3);
    bench.now += RTT;
    bench.report(&[0], ms(25));
    assert_eq!(bench.sent.queueing_delay(), ms(0));
    bench.report(&[0, 1], ms(40));
    assert_eq!(bench.sent.queueing_delay(), ms(15));
}

#[test]
fn the_rate_is_that_of_arrival() {
    let mut bench = Bench::new();
    // 1,000 bytes each millisecond, which arrive as they were sent.
    let mut rate = None;
    for round in 0..400_u64 {
        bench.send(1);
        bench.now += ms(1);
        if let Some(arrived) = round.checked_sub(50) {
            let first = arrived.saturating_sub(5);
            let numbers: Vec<u64> = (first..=arrived).collect();
            rate = bench.report(&numbers, ms(25)).rate;
        }
    }
    let rate = rate.unwrap();
    assert!((980_000..1_020_000).contains(&rate), "{rate}");
}

#[test]
fn reports_do_not_fly_and_are_forgotten() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        let next = bench.next;
        (bench
            .sent
            .handle_sent(bench.now, next, 60, Class::Report, false, next))
        .unwrap();
        bench.next += 1;
    }
    assert_eq!(bench.sent.in_flight(), 0);
    assert_eq!(bench.sent.poll_timeout(), None);
    assert!(bench.sent.wants_report(bench.now));
    bench.now += RTT;
    bench.report(&[9], ms(25));
    bench.now += ms(1000);
    bench.send(1);
    bench.now += RTT;
    bench.report(&[10], ms(25));
    assert_eq!(bench.sent.ring.len(), 0);
}

#[test]
fn a_new_epoch_does_not_confuse_numbers() {
    let mut bench = Bench::new();
    bench.send(3);
    bench.next = 1 << 32;
    bench.send(3);
    bench.now += RTT;
    let epoch = 1 << 32;
    bench.report(&[1, 2, epoch, epoch + 1], ms(25));
    assert_eq!(bench.of(Fate::Delivered), [1, 2, epoch, epoch + 1]);
    assert_eq!(bench.of(Fate::Lost), [0]);
    let number = 5;
    assert_eq!(
        bench
            .sent
            .handle_sent(bench.now, number, 1, Class::Data, true, 0),
        Err(SentError::Number {
            number,
            next: epoch + 3
        })
    );
}

#[test]
fn what_is_abandoned_is_lost() {
    let mut bench = Bench::new();
    bench.send(3);
    let fates = &mut bench.fates;
    bench.sent.abandon(&mut |n, fate| fates.push((n, fate)));
    assert_eq!(bench.of(Fate::Lost), [0, 1, 2]);
    assert_eq!(bench.sent.in_flight(), 0);
    assert_eq!(bench.sent.poll_timeout(), None);
}

#[test]
fn what_is_tracked_is_bounded() {
    let mut bench = Bench::new();
    bench.send(MAX_TRACKED as u64);
    assert!(!bench.sent.has_room());
    let next = bench.next;
    assert_eq!(
        bench
            .sent
            .handle_sent(bench.now, next, 1, Class::Data, true, 0),
        Err(SentError::Full {
            tracked: MAX_TRACKED
        })
    );
    bench.now += RTT;
    let all: Vec<u64> = (0..MAX_TRACKED as u64).collect();
    bench.report(&all, ms(25));
    assert!(bench.sent.has_room());
    assert!(bench.sent.ring.capacity() <= IDLE_CAPACITY * 2);
}

#[test]
fn reports_beyond_their_bound_make_nothing_pass_for_lost() {
    let mut bench = Bench::new();
    let report = |bench: &mut Bench| {
        let next = bench.next;
        bench.next += 1;
        bench
            .sent
            .handle_sent(bench.now, next, 60, Class::Report, false, next)
    };
    for _ in 0..MAX_UNPERMITTED {
        assert_eq!(report(&mut bench), Ok(()));
    }
    for _ in 0..MAX_UNPERMITTED {
        assert_eq!(report(&mut bench), Ok(()), "the oldest makes room");
        bench.send(1);
    }
    assert_eq!(bench.sent.ring.len(), 2 * MAX_UNPERMITTED);
    bench.now += RTT;
    let all: Vec<u64> = (0..bench.next).collect();
    bench.report(&all, ms(25));
    assert_eq!(bench.of(Fate::Delivered).len(), 2 * MAX_UNPERMITTED);
    assert_eq!(bench.of(Fate::Lost), [0; 0]);
}

#[test]
fn what_leaves_between_too_many_others_has_no_fate() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        let next = bench.next;
        let tracked = bench
            .sent
            .handle_sent(bench.now, next, 1000, Class::Data, true, next);
        assert!(matches!(tracked, Ok(()) | Err(SentError::Scattered)));
        // A probe, which is not tracked.
        bench.next += 2;
    }
    let tracked = bench.sent.ring.len();
    assert!(tracked >= 10, "{tracked}");
    bench.now += RTT;
    let last = 2 * tracked as u64 - 2;
    bench.report(&(0..=last).collect::<Vec<_>>(), ms(25));
    assert_eq!(bench.of(Fate::Delivered).len(), tracked);
    assert_eq!(bench.of(Fate::Lost), [0; 0]);
    bench.send(1);
}

proptest! {
    /// Over a link that loses, delays and reorders as it likes, each content gets one fate, and
    /// all is accounted for.
    #[test]
    fn every_content_has_one_fate(
        steps in vec((0_u64..20_000, 0_u8..10, 0_u64..60_000), 1..400),
    ) {
        let start = Instant::now();
        let mut sent = Sent::new(start, RTT);
        let mut received = Received::new(start, RTT);
        let mut fates: Vec<Vec<Fate>> = Vec::new();
        let mut now = start;
        let mut flying: Vec<(Instant, u64)> = Vec::new();
        let mut back: Vec<(Instant, Report)> = Vec::new();
        for (number, (pause, luck, delay)) in (0_u64..).zip(steps) {
            now += Duration::from_micros(pause);
            fates.push(Vec::new());
            sent.handle_sent(now, number, 100, Class::Data, true, number as usize).unwrap();
            if luck > 1 {
                flying.push((now + Duration::from_micros(delay), number));
            }
            flying.retain(|(at, number)| {
                if *at <= now {
                    received.handle_datagram(now, *number, 100, false, Class::Data);
                }
                *at > now
            });
            if let Some(report) =
                received.poll_report(now, RepairCounts::default(), [], false)
                && luck != 5
            {
                back.push((now + Duration::from_micros(delay), report));
            }
            back.retain(|(at, report)| {
                if *at <= now {
                    sent.handle_report(now, report, &mut |n, fate| fates[n].push(fate));
                }
                *at > now
            });
            let _ = sent.handle_timeout(now, &mut |n: usize, fate| fates[n].push(fate));
            prop_assert!(sent.in_flight() <= (number + 1) * 100);
        }
        sent.abandon(&mut |n, fate| fates[n].push(fate));
        for fates in fates {
            prop_assert!(
                matches!(fates[..], [Fate::Delivered] | [Fate::Lost] | [Fate::Lost, Fate::Late]),
                "{fates:?}"
            );
        }
    }

    #[test]
    fn any_report_breaks_nothing(
        sizes in vec(0_u64..40, 1..20),
        reports in vec(
            (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(),
             vec((0_u64..1 << 40, 0_u64..1 << 40), 0..32)),
            1..20,
        ),
        low in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        for (size, (highest, arrival, age, first, spans)) in sizes.into_iter().zip(reports) {
            bench.send(size);
            bench.now += ms(size);
            let mut ranges = Ranges::new(first >> 2);
            for (gap, length) in spans {
                let newest = ranges.iter().next_back().unwrap().oldest + 2 + gap;
                let _ = ranges.push(Span { newest, oldest: newest + length });
            }
            let report = Report {
                highest: if low { highest % 50 } else { highest },
                arrival,
                age,
                datagrams: first,
                bytes: first,
                ecn_ce: first,
                ranges,
                ..Report::default()
            };
            let fates = &mut bench.fates;
            (bench.sent).handle_report(bench.now, &report, &mut |n, f| fates.push((n, f)));
            let _ = bench.timeout();
        }
    }
}
