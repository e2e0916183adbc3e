//! The receiving end of a datagram lane: what arrived, and when to say so.

use std::time::{Duration, Instant};

use super::Class;
use crate::wire::{MAX_RANGES, Missing, Ranges, RepairCounts, Report, Span};

/// What arrived on one lane, in one direction.
#[derive(Clone, Debug)]
pub struct Received {
    /// Zero of the clock that reports speak of.
    origin: Instant,
    runs: [Run; KEPT_RUNS],
    runs_len: usize,
    highest_at: Instant,
    datagrams: u64,
    bytes: u64,
    missed: Missed,
    ecn_ce: u64,
    round_trip: Duration,
    /// What no report told of yet.
    fresh: Fresh,
    reported_at: Option<Instant>,
    /// The highest numbers of the last reports, a ring: what lies below all of them was told often.
    floors: [u64; REPEATS],
    reports: u64,
    /// Bytes that reports beyond the regular ones may cost, in [`Self::SHARE`]ths.
    credit: u64,
}

/// Datagrams that did not arrive, as the numbers of those that did show it. All are cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Datagrams below the highest of their epoch that did not arrive; less again by those that came after all.
    pub datagrams: u64,
    /// Runs of them as they opened, so that `datagrams / runs` is about their mean length.
    pub runs: u64,
}

impl Missed {
    /// The counts since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            datagrams: self.datagrams.saturating_sub(earlier.datagrams),
            runs: self.runs.saturating_sub(earlier.runs),
        }
    }

    /// A datagram of `number` came, when `highest` was the highest before it. An epoch begins its numbers anew, and how
    /// many there were of the former is not known.
    fn note(&mut self, highest: u64, number: u64) {
        if highest >> 32 != number >> 32 {
            return;
        }
        match number.checked_sub(highest + 1) {
            Some(0) => {}
            Some(between) => {
                self.datagrams += between;
                self.runs += 1;
            }
            None => self.datagrams = self.datagrams.saturating_sub(1),
        }
    }
}

/// What arrived since the last report.
#[derive(Clone, Copy, Debug, Default)]
struct Fresh {
    /// Datagrams that want a report.
    datagrams: u32,
    /// When the first of them came.
    since: Option<Instant>,
    /// Among them is more than reports that ask for one.
    data: bool,
    /// When the first gap since opened.
    gap: Option<Instant>,
    /// Gaps that opened since.
    gaps: u32,
    /// The session wants something said now.
    urgent: bool,
}

/// A run of numbers that arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    first: u64,
    last: u64,
}

impl Received {
    /// One report of common length, sealed and with its IPv4, UDP and Ethernet headers.
    const REPORT_COST: u64 = 130;
    /// Reports beyond the regular ones cost at most one byte in this many received.
    const SHARE: u64 = 100;

    /// Starts when nothing has arrived. `round_trip` is a first guess, as from the handshake.
    #[must_use]
    pub fn new(now: Instant, round_trip: Duration) -> Self {
        Self {
            origin: now,
            runs: [Run::default(); KEPT_RUNS],
            runs_len: 0,
            highest_at: now,
            datagrams: 0,
            bytes: 0,
            missed: Missed::default(),
            ecn_ce: 0,
            round_trip,
            fresh: Fresh::default(),
            reported_at: None,
            floors: [0; REPEATS],
            reports: 0,
            credit: Self::REPORT_COST * Self::SHARE * MAX_CREDIT,
        }
    }

    /// Takes note of the lane's round-trip time, by which reports are spaced.
    pub fn handle_round_trip(&mut self, round_trip: Duration) {
        self.round_trip = round_trip;
    }

    /// Takes note of a datagram that opened, once: what arrives twice is stopped by the replay window.
    ///
    /// `number` is `epoch << 32 | counter`; `bytes` is the length of its UDP payload; `ecn_ce` says
    /// whether it was marked Congestion Experienced.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        number: u64,
        bytes: usize,
        ecn_ce: bool,
        class: Class,
    ) {
        let bytes = bytes as u64;
        self.datagrams += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.ecn_ce += u64::from(ecn_ce);
        self.credit =
            (self.credit.saturating_add(bytes)).min(Self::REPORT_COST * Self::SHARE * MAX_CREDIT);
        let above = self.highest();
        if let Some(highest) = above {
            self.missed.note(highest, number);
        }
        if above.is_none_or(|highest| number > highest) {
            self.highest_at = now;
            if above.is_some_and(|highest| number - highest > 1) {
                self.fresh.gap.get_or_insert(now);
                self.fresh.gaps += 1;
            }
        }
        self.insert(number);
        match class {
            Class::Data => self.fresh.data = true,
            Class::Asking => {}
            Class::Report => return,
        }
        self.fresh.datagrams = self.fresh.datagrams.saturating_add(1);
        self.fresh.since.get_or_insert(now);
    }

    /// Makes the next report due at once: the session misses packets that it has not asked for yet.
    pub fn handle_missing(&mut self) {
        self.fresh.urgent = true;
    }

    /// Whether [`handle_missing`](Self::handle_missing) was called since the last report.
    #[must_use]
    pub const fn is_urgent(&self) -> bool {
        self.fresh.urgent
    }

    /// Takes a report if one is due.
    ///
    /// `missing` are the source numbers to be sent again, ascending. `may_ask` says whether the sender
    /// of this direction's reports wants one himself ([`Sent::wants_report`](super::Sent::wants_report));
    /// he gets none for a report that answers nothing but such a question, else two idle ends would
    /// never fall silent.
    pub fn poll_report(
        &mut self,
        now: Instant,
        repairs: RepairCounts,
        missing: impl IntoIterator<Item = u64>,
        may_ask: bool,
    ) -> Option<Report> {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return None;
        }
        let highest = self.highest()?;
        let report = Report {
            asks: may_ask && self.fresh.data,
            highest: highest as u32,
            arrival: micros(self.highest_at.saturating_duration_since(self.origin)) as u32,
            age: u32::try_from(micros(now.saturating_duration_since(self.highest_at)))
                .unwrap_or(u32::MAX),
            datagrams: self.datagrams,
            bytes: self.bytes,
            ecn_ce: self.ecn_ce,
            repairs,
            ranges: self.ranges(highest),
            missing: Missing::collect(missing),
        };
        self.fresh = Fresh::default();
        self.reported_at = Some(now);
        self.credit = (self.credit).saturating_sub(Self::REPORT_COST * Self::SHARE);
        if let Some(slot) = self
            .floors
            .get_mut((self.reports % REPEATS as u64) as usize)
        {
            *slot = highest;
        }
        self.reports += 1;
        self.forget();
        Some(report)
    }

    /// When the next report is due; `None` while there is nothing to tell.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let since = match (self.fresh.since, self.fresh.urgent) {
            (Some(since), _) => since,
            // An urgent wish must not wait for data: the gap may be at the end of what was sent.
            (None, true) if self.runs_len > 0 => self.highest_at,
            (None, _) => return None,
        };
        let spaced = |space: Duration| self.reported_at.map_or(since, |at| (at + space).max(since));
        let patient = since + self.round_trip.clamp(MIN_INTERVAL, MAX_REPORT_DELAY);
        let regular = if self.fresh.datagrams >= 2 {
            patient.min(spaced(self.interval()))
        } else {
            patient
        };
        let early = if self.fresh.gaps >= FULL_OF_GAPS {
            Some(since)
        } else if self.fresh.urgent || self.fresh.datagrams >= MANY {
            Some(spaced(MIN_SPACE))
        } else {
            let affordable = self.credit >= Self::REPORT_COST * Self::SHARE;
            (self.fresh.gap.filter(|_| affordable))
                .map(|gap| (gap + self.reorder_allowance()).max(spaced(MIN_SPACE)))
        };
        Some(early.map_or(regular, |early| early.min(regular)))
    }

    /// The highest number that arrived.
    #[must_use]
    pub fn highest(&self) -> Option<u64> {
        self.runs().next().map(|run| run.last)
    }

    /// Datagrams and bytes that arrived, ever.
    #[must_use]
    pub const fn totals(&self) -> (u64, u64) {
        (self.datagrams, self.bytes)
    }

    /// Datagrams that did not arrive.
    #[must_use]
    pub const fn missed(&self) -> Missed {
        self.missed
    }

    /// Time between regular reports: an eighth of a round trip gives the sender's model eight samples
    /// in each; below 5 ms reports would cost more than they tell.
    fn interval(&self) -> Duration {
        (self.round_trip / 8).clamp(MIN_INTERVAL, MAX_REPORT_DELAY)
    }

    /// How long a gap may be mere reordering.
    fn reorder_allowance(&self) -> Duration {
        (self.round_trip / 16).clamp(MIN_SPACE, MAX_REORDER_ALLOWANCE)
    }

    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().take(self.runs_len).copied()
    }

    /// Newest first, down to what the last [`REPEATS`] reports all told.
    fn ranges(&self, highest: u64) -> Ranges {
        let floor = self.floor();
        let mut ranges = Ranges::default();
        for (index, run) in self.runs().take(MAX_RANGES).enumerate() {
            if run.last < floor {
                break;
            }
            let span = Span {
                newest: highest.saturating_sub(run.last),
                oldest: highest.saturating_sub(run.first),
            };
            if index == 0 {
                ranges = Ranges::new(span.oldest);
            } else if !ranges.push(span) {
                break;
            }
        }
        ranges
    }

    fn floor(&self) -> u64 {
        self.floors.iter().copied().min().unwrap_or(0)
    }

    fn insert(&mut self, number: u64) {
        // Nearly always the first or second run.
        let mut at = 0;
        while at < self.runs_len {
            let Some(run) = self.runs.get_mut(at) else {
                return;
            };
            if number > run.last {
                if number == run.last.wrapping_add(1) {
                    run.last = number;
                    self.join(at);
                    return;
                }
                break;
            }
            if number >= run.first {
                return;
            }
            if number == run.first - 1 {
                run.first = number;
                self.join(at + 1);
                return;
            }
            at += 1;
        }
        // The oldest falls off when all places are taken; what is older than all of them is told no more.
        let Some(tail) = self.runs.get_mut(at..).filter(|tail| !tail.is_empty()) else {
            return;
        };
        tail.rotate_right(1);
        if let Some(slot) = tail.first_mut() {
            *slot = Run {
                first: number,
                last: number,
            };
            self.runs_len = (self.runs_len + 1).min(KEPT_RUNS);
        }
    }

    /// Joins the run at `at` with the next newer one, if they touch.
    fn join(&mut self, at: usize) {
        let (Some(newer), Some(older)) = (
            at.checked_sub(1)
                .and_then(|index| self.runs.get(index))
                .copied(),
            self.runs.get(at).copied().filter(|_| at < self.runs_len),
        ) else {
            return;
        };
        if older.last.wrapping_add(1) == newer.first {
            if let Some(slot) = self.runs.get_mut(at - 1) {
                slot.first = older.first;
            }
            if let Some(tail) = self.runs.get_mut(at..self.runs_len) {
                tail.rotate_left(1);
            }
            self.runs_len -= 1;
        }
    }

    /// Lets go of runs that were told often enough, never of the newest.
    fn forget(&mut self) {
        let floor = self.floor();
        let told = self.runs().skip(1).take_while(|run| run.last >= floor);
        let kept = 1 + told.count();
        self.runs_len = self.runs_len.min(kept);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Longest that a report waits for more to tell. A sender's probe timeout allows for it, as QUIC's
/// `max_ack_delay` of the same length (RFC 9000, section 18.2).
pub const MAX_REPORT_DELAY: Duration = Duration::from_millis(25);

/// Regular reports are not closer than this.
const MIN_INTERVAL: Duration = Duration::from_millis(5);

/// No two reports are closer than this, unless there are more gaps to tell of than fit one.
const MIN_SPACE: Duration = Duration::from_millis(1);

/// Datagrams after which a report need not wait for its time: a fast lane's window must not be full of what has long
/// arrived. A report costs a three-thousandth of what so many take.
const MANY: u32 = 256;

/// Most links reorder by less, and a resend that waits for longer misses its use.
const MAX_REORDER_ALLOWANCE: Duration = Duration::from_millis(4);

/// Gaps since the last report that bring the next one: half of what a report can tell, so that at
/// 20 Gbit/s and 10 % loss nothing goes untold.
const FULL_OF_GAPS: u32 = MAX_RANGES as u32 / 2;

/// Reports that tell of the same datagram: at 10 % loss one in 10^8 datagrams that arrived goes
/// untold.
const REPEATS: usize = 8;

/// Runs kept: twice what a report tells, since reordering fills gaps from below.
const KEPT_RUNS: usize = 2 * MAX_RANGES;

/// Reports beyond the regular ones that may be saved up.
const MAX_CREDIT: u64 = 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn new() -> (Received, Instant) {
        let now = Instant::now();
        (Received::new(now, RTT), now)
    }

    fn take(received: &mut Received, now: Instant) -> Option<Report> {
        received.poll_report(now, RepairCounts::default(), [], false)
    }

    fn told(report: &Report) -> Vec<(u64, u64)> {
        let spans = report.ranges.iter().map(|s| (s.newest, s.oldest));
        spans.collect()
    }

    #[test]
    fn what_did_not_come_is_counted_by_gaps_and_what_comes_late_is_not_missed() {
        let mut missed = Missed::default();
        let mut highest = 5;
        for (number, datagrams, runs) in [(6, 0, 0), (9, 2, 1), (10, 2, 1), (8, 1, 1), (12, 2, 2)] {
            missed.note(highest, number);
            highest = highest.max(number);
            assert_eq!(
                (missed.datagrams, missed.runs),
                (datagrams, runs),
                "{number}"
            );
        }
        // Of the next epoch: how many there were of this one is not known.
        missed.note(highest, 1 << 32 | 7);
        assert_eq!((missed.datagrams, missed.runs), (2, 2));
        let earlier = Missed {
            datagrams: 1,
            runs: 2,
        };
        let since = missed.since(earlier);
        assert_eq!((since.datagrams, since.runs), (1, 0));
    }

    #[test]
    fn an_idle_lane_makes_no_report() {
        let (mut received, now) = new();
        assert_eq!(received.poll_timeout(), None);
        received.handle_datagram(now, 0, 100, false, Class::Report);
        assert_eq!(received.poll_timeout(), None);
        assert_eq!(take(&mut received, now + ms(1000)), None);
    }

    #[test]
    fn a_single_datagram_is_reported_within_25_ms() {
        let (mut received, now) = new();
        received.handle_datagram(now, 0, 100, false, Class::Data);
        assert_eq!(received.poll_timeout(), Some(now + ms(25)));
        assert_eq!(take(&mut received, now + ms(24)), None);
        let report = take(&mut received, now + ms(25)).unwrap();
        assert_eq!(report.age, 25_000);
        assert_eq!(report.datagrams, 1);
        assert_eq!(received.poll_timeout(), None);
    }

    #[test]
    fn two_datagrams_after_a_pause_are_reported_at_once() {
        let (mut received, now) = new();
        received.handle_datagram(now, 0, 100, false, Class::Data);
        received.handle_datagram(now, 1, 100, false, Class::Data);
        let report = take(&mut received, now).unwrap();
        assert_eq!(told(&report), [(0, 1)]);
    }

    #[test]
    fn bulk_is_reported_each_eighth_of_a_round_trip_and_costs_under_one_percent() {
        let (mut received, mut now) = new();
        let mut written = [0; crate::wire::MAX_REPORT_LEN];
        let (mut cost, mut reports) = (0, 0);
        for number in 0..40_000 {
            now += Duration::from_micros(250);
            if number % 20 != 7 {
                received.handle_datagram(now, number, 1433, false, Class::Data);
            }
            if let Some(report) = take(&mut received, now) {
                reports += 1;
                // Seal, UDP, IPv4 and Ethernet.
                cost += report.write(&mut written).unwrap() + 11 + 1 + 16 + 8 + 20 + 14;
            }
        }
        let regular = 10_000 * 8 / 50;
        assert!(reports >= regular, "{reports}");
        let share = cost as f64 / received.totals().1 as f64;
        assert!(share < 0.01, "{share}");
    }

    #[test]
    fn bulk_on_a_fast_lane_is_reported_each_millisecond() {
        let (mut received, start) = new();
        let mut reports = Vec::new();
        for number in 0..10_000 {
            let now = start + Duration::from_micros(2 * number);
            received.handle_datagram(now, number, 1433, false, Class::Data);
            reports.extend(take(&mut received, now).map(|report| report.datagrams));
        }
        assert!((19..=21).contains(&reports.len()), "{}", reports.len());
        assert!(
            reports[2..]
                .windows(2)
                .all(|pair| pair[1] - pair[0] <= 2 * u64::from(MANY))
        );
    }

    #[test]
    fn a_gap_is_told_after_an_allowance_for_reordering() {
        let (mut received, now) = new();
        received.handle_datagram(now, 0, 1433, false, Class::Data);
        received.handle_datagram(now, 1, 1433, false, Class::Data);
        take(&mut received, now).unwrap();
        let gap = now + Duration::from_micros(250);
        received.handle_datagram(gap, 3, 1433, false, Class::Data);
        assert_eq!(received.poll_timeout(), Some(gap + RTT / 16));
    }

    #[test]
    fn many_gaps_are_told_before_there_are_more_than_fit() {
        let (mut received, mut now) = new();
        let mut seen = BTreeSet::new();
        for number in (0..100_000_u64).filter(|n| n % 10 != 3) {
            now += Duration::from_nanos(600);
            received.handle_datagram(now, number, 1433, false, Class::Data);
            if let Some(report) = take(&mut received, now) {
                let top = received.highest().unwrap();
                for (newest, oldest) in told(&report) {
                    seen.extend(top - oldest..=top - newest);
                }
            }
        }
        let untold = (0..99_000_u64).filter(|n| n % 10 != 3 && !seen.contains(n));
        assert_eq!(untold.count(), 0);
    }

    #[test]
    fn a_wish_for_missing_packets_does_not_wait() {
        let (mut received, now) = new();
        received.handle_datagram(now, 0, 100, false, Class::Data);
        take(&mut received, now + ms(25)).unwrap();
        received.handle_missing();
        let report = received
            .poll_report(now + ms(26), RepairCounts::default(), [3, 4], false)
            .unwrap();
        assert_eq!(report.missing.below(9).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(received.poll_timeout(), None);
    }

    #[test]
    fn a_report_that_asks_is_answered_by_one_that_does_not() {
        let (mut received, now) = new();
        received.handle_datagram(now, 0, 100, false, Class::Asking);
        let poll = |received: &mut Received, now| {
            received
                .poll_report(now, RepairCounts::default(), [], true)
                .unwrap()
        };
        assert!(!poll(&mut received, now + ms(25)).asks);
        received.handle_datagram(now + ms(30), 1, 100, false, Class::Data);
        assert!(poll(&mut received, now + ms(60)).asks);
    }

    #[test]
    fn what_is_older_than_all_that_can_be_told_changes_nothing() {
        let (mut received, now) = new();
        for run in 1..=KEPT_RUNS as u64 {
            received.handle_datagram(now, run * 2, 100, false, Class::Data);
        }
        let runs = |received: &Received| -> Vec<(u64, u64)> {
            received.runs().map(|run| (run.first, run.last)).collect()
        };
        let before = runs(&received);
        assert_eq!(before.len(), KEPT_RUNS);
        received.handle_datagram(now, 0, 100, false, Class::Data);
        assert_eq!(runs(&received), before);
    }

    #[test]
    fn a_new_epochs_numbers_are_told_beside_the_old_ones() {
        let (mut received, now) = new();
        let next = 1 << 32;
        for number in [5, 6, next, next + 1] {
            received.handle_datagram(now, number, 100, false, Class::Data);
        }
        let report = take(&mut received, now + ms(25)).unwrap();
        assert_eq!(report.highest, 1);
        assert_eq!(told(&report), [(0, 1), (next - 5, next - 4)]);
    }

    proptest! {
        /// Runs are a set, whatever the order of arrival.
        #[test]
        fn what_is_told_is_what_arrived(numbers in vec(0_u64..60, 1..60)) {
            let (mut received, now) = new();
            let mut model = BTreeSet::new();
            for &number in &numbers {
                received.handle_datagram(now, number, 100, false, Class::Data);
                model.insert(number);
            }
            let report = take(&mut received, now + ms(50)).unwrap();
            let top = *model.last().unwrap();
            prop_assert_eq!(u64::from(report.highest), top);
            let told: BTreeSet<u64> = told(&report)
                .into_iter()
                .flat_map(|(newest, oldest)| top - oldest..=top - newest)
                .collect();
            prop_assert_eq!(told, model);
        }

        #[test]
        fn any_numbers_at_any_times_break_nothing(
            arrivals in vec((any::<u64>(), 0_u64..100_000, 0_u8..3), 0..300),
        ) {
            let (mut received, mut now) = new();
            for (number, pause, class) in arrivals {
                now += Duration::from_micros(pause);
                let class = [Class::Data, Class::Asking, Class::Report][usize::from(class)];
                received.handle_datagram(now, number >> (number % 64), 100, true, class);
                if let Some(report) = take(&mut received, now) {
                    let mut written = [0; crate::wire::MAX_REPORT_LEN];
                    let len = report.write(&mut written).unwrap();
                    prop_assert_eq!(Report::parse(&written[..len]), Ok(report));
                }
                prop_assert!(received.runs().count() <= KEPT_RUNS);
            }
        }
    }
}
