//! The sending end of a datagram lane: what became of each datagram.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::loss::{LossCounts, Statistics};
use super::numbering::Numbering;
use super::received::MAX_REPORT_DELAY;
use super::reordering::Reordering;
use super::rtt::{OneWay, Recent, RoundTrip};
use super::{Class, Fate, Sample};
use crate::wire::{Report, expand};

/// The datagrams of one lane and direction, from their sending until their fate is known.
///
/// `T` says what a datagram carried, and is handed back with its fate.
#[derive(Clone, Debug)]
pub struct Sent<T> {
    origin: Instant,
    /// By order of sending; `front` is the sequence of the first.
    ring: VecDeque<Entry<T>>,
    front: u64,
    numbering: Numbering,
    /// Everything below is decided.
    undecided: u64,
    /// Of datagrams that want a report.
    in_flight: u64,
    /// Datagrams in flight, reports too, that no window has let go.
    unpermitted: usize,
    delivered: u64,
    /// By the receiver's clock, microseconds; `None` after a pause.
    delivered_at: Option<u64>,
    first_sent: Instant,
    lost: u64,
    /// Samples are limited by the application until this much was delivered.
    limited_until: Option<u64>,
    ecn_ce: u64,
    newest_delivered: Option<(u64, Instant)>,
    round_trip: RoundTrip,
    one_way: OneWay,
    queue: Duration,
    standing: Recent,
    statistics: Statistics,
    reordering: Reordering,
    loss_due: Option<Instant>,
    probes: u32,
    asked_at: Option<Instant>,
    counts: SentCounts,
}

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    sent: Instant,
    content: T,
    bytes: u32,
    state: State,
    class: Class,
    /// Whether the window has let it go.
    permitted: bool,
    /// Whether the application, not the lane, set the pace when it was sent.
    limited: bool,
    /// As they were when it was sent (draft-ietf-ccwg-bbr, section "Delivery Rate Samples").
    first_sent: Instant,
    delivered: u64,
    delivered_at: Option<u64>,
    in_flight: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flying,
    Delivered,
    Lost,
}

impl<T: Copy> Sent<T> {
    /// Starts when nothing was sent. `round_trip` is a first guess, as from the handshake.
    #[must_use]
    pub fn new(now: Instant, round_trip: Duration) -> Self {
        Self {
            origin: now,
            ring: VecDeque::new(),
            front: 0,
            numbering: Numbering::default(),
            undecided: 0,
            in_flight: 0,
            unpermitted: 0,
            delivered: 0,
            delivered_at: None,
            first_sent: now,
            lost: 0,
            limited_until: None,
            ecn_ce: 0,
            newest_delivered: None,
            round_trip: RoundTrip::new(round_trip),
            one_way: OneWay::new(),
            queue: Duration::ZERO,
            standing: Recent::default(),
            statistics: Statistics::new(now),
            reordering: Reordering::default(),
            loss_due: None,
            probes: 0,
            asked_at: None,
            counts: SentCounts::default(),
        }
    }

    /// Gives back what is kept for more datagrams than are tracked.
    pub fn release_memory(&mut self) {
        self.ring.shrink_to_fit();
    }

    /// Takes note of a datagram that leaves now.
    ///
    /// `number` is `epoch << 32 | counter` and higher than all before; `bytes` is the length of the UDP
    /// payload; `permitted` says whether a window, which only reports keep open, has let it go. Of others
    /// [`MAX_UNPERMITTED`] are tracked.
    ///
    /// # Errors
    /// [`SentError`]: the datagram is not tracked, and its content will have no fate.
    pub fn handle_sent(
        &mut self,
        now: Instant,
        number: u64,
        bytes: usize,
        class: Class,
        permitted: bool,
        content: T,
    ) -> Result<(), SentError> {
        if !self.has_room() {
            return Err(SentError::Full {
                tracked: self.ring.len(),
            });
        }
        if !permitted && self.unpermitted >= MAX_UNPERMITTED {
            // What became of the oldest report matters least.
            let oldest = (self.ring.front()).is_some_and(|entry| {
                entry.class == Class::Report && entry.state == State::Flying && !entry.permitted
            });
            if !oldest {
                return Err(SentError::Unanswered {
                    tracked: self.unpermitted,
                });
            }
            self.drop_front();
        }
        self.numbering.append(number, self.next())?;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if class != Class::Report {
            if self.in_flight == 0 {
                self.first_sent = now;
                self.delivered_at = None;
            }
            self.in_flight += u64::from(bytes);
            self.asked_at = Some(now);
        }
        self.unpermitted += usize::from(!permitted);
        self.counts.datagrams += 1;
        self.counts.bytes += u64::from(bytes);
        self.ring.push_back(Entry {
            sent: now,
            content,
            bytes,
            state: State::Flying,
            class,
            permitted,
            limited: self.limited_until.is_some(),
            first_sent: self.first_sent,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            in_flight: self.in_flight,
        });
        Ok(())
    }

    /// Takes a report in. `fate` is told what became of contents, oldest first among those delivered and
    /// among those lost. Returns what the congestion controller wants to know.
    pub fn handle_report(
        &mut self,
        now: Instant,
        report: &Report,
        fate: &mut impl FnMut(T, Fate),
    ) -> Sample {
        let before = self.statistics.counts();
        let (lost, late) = (self.lost, self.counts.late_bytes);
        let delivered = self.delivered;
        let newest = self.handle_ranges(report, fate);
        let age = Duration::from_micros(u64::from(report.age));
        let mut sample = Sample::new(now);
        if let Some(highest) = newest.highest {
            self.handle_highest(now, report.arrival, age, highest, &mut sample);
        }
        if let Some(newest) = newest.any {
            self.rate(now, age, newest, &mut sample);
            self.probes = 0;
            if newest.sent > self.newest_delivered.map_or(self.origin, |(_, at)| at) {
                self.first_sent = newest.sent;
            }
            if self
                .newest_delivered
                .is_none_or(|(at, _)| at < newest.sequence)
            {
                self.newest_delivered = Some((newest.sequence, newest.sent));
            }
        }
        if self
            .limited_until
            .is_some_and(|until| self.delivered > until)
        {
            self.limited_until = None;
        }
        let marked = report.ecn_ce.saturating_sub(self.ecn_ce);
        self.ecn_ce = self.ecn_ce.max(report.ecn_ce);
        self.find_lost(now, fate);
        self.forget(now);
        self.counts.reports += 1;
        sample.newly_delivered = self.delivered - delivered;
        sample.newly_lost = self.lost - lost;
        sample.came_late = self.counts.late_bytes - late;
        sample.newly_marked = marked;
        self.describe(before, &mut sample);
        sample
    }

    /// Does what is due: calls datagrams lost, or asks for a probe.
    pub fn handle_timeout(&mut self, now: Instant, fate: &mut impl FnMut(T, Fate)) -> Due {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return Due::Nothing;
        }
        if self.loss_due.is_some_and(|due| due <= now) {
            let before = self.statistics.counts();
            let lost = self.lost;
            self.find_lost(now, fate);
            self.forget(now);
            let mut sample = Sample::new(now);
            sample.newly_lost = self.lost - lost;
            self.describe(before, &mut sample);
            return Due::Lost(sample);
        }
        self.probes = self.probes.saturating_add(1);
        self.asked_at = Some(now);
        self.counts.probes += 1;
        Due::Probe
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.loss_due.is_some() {
            return self.loss_due;
        }
        let asked = self.asked_at.filter(|_| self.in_flight > 0)?;
        // RFC 9002, section 6.2.1.
        let patience = self.round_trip.timeout() + MAX_REPORT_DELAY;
        let backed_off = patience.saturating_mul(1 << self.probes.min(MAX_BACKOFF));
        Some(asked + backed_off.min(MAX_PROBE_INTERVAL.max(patience)))
    }

    /// Takes note that nothing more is there to send although the window has room: what is measured until
    /// all in flight has arrived says nothing about the lane's capacity.
    pub fn handle_application_limited(&mut self) {
        self.limited_until = Some((self.delivered + self.in_flight).max(1));
    }

    /// Gives up on all that is in flight, as when the lane is dead: it counts as lost, though not in
    /// [`loss`](Self::loss).
    pub fn abandon(&mut self, fate: &mut impl FnMut(T, Fate)) {
        for entry in &mut self.ring {
            if entry.state == State::Flying {
                entry.state = State::Lost;
                fate(entry.content, Fate::Lost);
            }
        }
        self.in_flight = 0;
        self.unpermitted = 0;
        self.undecided = self.next();
        self.loss_due = None;
    }

    /// Whether another datagram can be tracked.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ring.len() < MAX_TRACKED
    }

    /// Bytes sent whose fate is unknown, reports apart.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Smoothed round-trip time; the guess before there is a sample.
    #[must_use]
    pub const fn round_trip(&self) -> Duration {
        self.round_trip.smoothed()
    }

    /// The lowest round-trip time of the last 10 to 20 s.
    #[must_use]
    pub fn lowest_round_trip(&self) -> Duration {
        self.round_trip.lowest()
    }

    /// How long a datagram waits in queues on the way out, by the latest report.
    #[must_use]
    pub const fn queueing_delay(&self) -> Duration {
        self.queue
    }

    /// Whether the next report that leaves should ask for one: this end has sent only reports for a
    /// while, and knows neither their loss nor the round-trip time any more.
    #[must_use]
    pub fn wants_report(&self, now: Instant) -> bool {
        let pause = (self.round_trip.smoothed() * 4).max(SILENCE);
        (self.asked_at).is_none_or(|at| now.saturating_duration_since(at) >= pause)
    }

    /// Cumulative loss statistics.
    #[must_use]
    pub const fn loss(&self) -> LossCounts {
        self.statistics.counts()
    }

    /// Cumulative counters.
    #[must_use]
    pub const fn counts(&self) -> SentCounts {
        self.counts
    }

    /// Marks what the ranges name as delivered.
    fn handle_ranges(&mut self, report: &Report, fate: &mut impl FnMut(T, Fate)) -> Newest {
        let mut newest = Newest::default();
        let Some(highest) = expand(report.highest, self.numbering.next) else {
            self.counts.strange += 1;
            return newest;
        };
        let mut known = false;
        for span in report.ranges.iter().rev() {
            let Some(last) = highest.checked_sub(span.newest) else {
                continue;
            };
            let first = highest.saturating_sub(span.oldest);
            for (from, to) in self.numbering.sequences(first, last) {
                known |= to >= self.front;
                for sequence in from.max(self.front)..=to {
                    self.deliver(sequence, &mut newest, fate);
                }
            }
        }
        let top = self.numbering.sequences(highest, highest).next();
        newest.highest =
            (newest.any).filter(|any| top.is_some_and(|(sequence, _)| any.sequence == sequence));
        if !known && self.front < self.next() {
            self.counts.stale += 1;
        }
        newest
    }

    fn deliver(&mut self, sequence: u64, newest: &mut Newest, fate: &mut impl FnMut(T, Fate)) {
        let index = sequence.checked_sub(self.front);
        let Some(entry) = index
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.ring.get_mut(index))
        else {
            return;
        };
        let bytes = u64::from(entry.bytes);
        let counted = entry.class != Class::Report;
        match entry.state {
            State::Delivered => return,
            State::Flying => {
                self.unpermitted -= usize::from(!entry.permitted);
                self.statistics.on_delivered();
                if counted {
                    self.in_flight = self.in_flight.saturating_sub(bytes);
                }
                fate(entry.content, Fate::Delivered);
            }
            State::Lost => {
                self.statistics.on_late();
                if counted {
                    self.counts.late_bytes += bytes;
                }
                let behind = self
                    .newest_delivered
                    .map_or(0, |(newest, _)| newest.saturating_sub(sequence));
                self.reordering.on_late(behind);
                fate(entry.content, Fate::Late);
            }
        }
        entry.state = State::Delivered;
        if counted {
            self.delivered += bytes;
        }
        newest.any = Some(Delivered {
            sequence,
            sent: entry.sent,
            first_sent: entry.first_sent,
            delivered: entry.delivered,
            delivered_at: entry.delivered_at,
            in_flight: entry.in_flight,
            limited: entry.limited,
        });
    }

    /// Learns from the highest datagram when it is new: only of that one the time of arrival is known.
    fn handle_highest(
        &mut self,
        now: Instant,
        arrival: u32,
        age: Duration,
        highest: Delivered,
        sample: &mut Sample,
    ) {
        let arrived = self.one_way.unwrap(now, arrival);
        self.delivered_at = Some(arrived);
        let sent = micros(highest.sent.saturating_duration_since(self.origin));
        self.queue = self.one_way.on_sample(now, sent, arrived);
        self.statistics.on_queue(now, self.queue);
        let window = self.round_trip.smoothed().max(MAX_REPORT_DELAY);
        sample.queue = Some(self.queue);
        sample.standing = Some(self.standing.on_sample(now, self.queue, window));
        let round_trip = (now.saturating_duration_since(highest.sent)).saturating_sub(age);
        if !round_trip.is_zero() {
            self.round_trip.on_sample(now, round_trip);
            sample.round_trip = Some(round_trip);
        }
    }

    /// Delivery rate (draft-ietf-ccwg-bbr, section "Delivery Rate Samples"), with the intervals of
    /// arrival read off the receiver's clock, so that the way back does not blur them.
    fn rate(&self, now: Instant, age: Duration, newest: Delivered, sample: &mut Sample) {
        sample.prior_delivered = newest.delivered;
        sample.sent_in_flight = newest.in_flight;
        sample.application_limited = newest.limited;
        let sending = newest.sent.saturating_duration_since(newest.first_sent);
        let arriving = match (newest.delivered_at, self.delivered_at) {
            (Some(from), Some(to)) => Duration::from_micros(to.saturating_sub(from)),
            (None, _) | (_, None) => {
                (now.saturating_duration_since(newest.first_sent)).saturating_sub(age)
            }
        };
        let interval = sending.max(arriving);
        let volume = self.delivered.saturating_sub(newest.delivered);
        sample.volume = volume;
        // Shorter than a round trip cannot be: packets were called lost that were not.
        if interval.is_zero() || interval < self.round_trip.lowest() / 2 {
            return;
        }
        let rate = u128::from(volume) * 1_000_000_000 / interval.as_nanos();
        sample.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
    }

    /// RFC 9002, section 6.1, with thresholds that follow the reordering seen, as RFC 8985 has it.
    fn find_lost(&mut self, now: Instant, fate: &mut impl FnMut(T, Fate)) {
        self.loss_due = None;
        let Some((newest, newest_sent)) = self.newest_delivered else {
            return;
        };
        let base = self.round_trip.smoothed().max(self.round_trip.latest());
        let patience = self.reordering.patience(base);
        let mut all_decided = true;
        let mut sequence = self.undecided.max(self.front);
        while sequence < newest {
            let index = usize::try_from(sequence - self.front).unwrap_or(usize::MAX);
            let Some(entry) = self.ring.get_mut(index) else {
                break;
            };
            if entry.state == State::Flying {
                let due = entry.sent + patience;
                let overtaken = newest - sequence >= self.reordering.packets()
                    && (newest_sent.saturating_duration_since(entry.sent))
                        >= self.reordering.least_time(base);
                if overtaken || due <= now {
                    entry.state = State::Lost;
                    self.unpermitted -= usize::from(!entry.permitted);
                    self.statistics.on_lost(sequence);
                    self.reordering.on_lost();
                    self.counts.lost += 1;
                    if entry.class != Class::Report {
                        let bytes = u64::from(entry.bytes);
                        self.in_flight = self.in_flight.saturating_sub(bytes);
                        self.lost += bytes;
                    }
                    fate(entry.content, Fate::Lost);
                } else {
                    all_decided = false;
                    self.loss_due = Some(self.loss_due.map_or(due, |at| at.min(due)));
                }
            }
            sequence += 1;
            if all_decided {
                self.undecided = sequence;
            }
        }
    }

    /// Lets go of what is decided for good, oldest first. Lost datagrams may still come late.
    fn forget(&mut self, now: Instant) {
        let keep = (self.round_trip.smoothed() * 4).max(SILENCE);
        while let Some(entry) = self.ring.front() {
            let old = now.saturating_duration_since(entry.sent) > keep;
            let done = match entry.state {
                State::Delivered => true,
                State::Lost => old || self.ring.len() > MAX_TRACKED / 2,
                // A report is not answered while nothing else is sent.
                State::Flying => old && entry.class == Class::Report && self.in_flight == 0,
            };
            if !done {
                break;
            }
            self.drop_front();
        }
        if self.ring.is_empty() && self.ring.capacity() > IDLE_CAPACITY {
            self.ring.shrink_to(IDLE_CAPACITY);
        }
    }

    fn drop_front(&mut self) {
        if let Some(entry) = self.ring.pop_front() {
            self.unpermitted -= usize::from(entry.state == State::Flying && !entry.permitted);
            self.front += 1;
            self.undecided = self.undecided.max(self.front);
            self.numbering.forget(self.front);
        }
    }

    fn describe(&self, before: LossCounts, sample: &mut Sample) {
        let counts = self.statistics.counts().since(before);
        sample.datagrams_decided = counts.decided;
        sample.datagrams_lost = counts.lost;
        sample.loss_bursts = counts.bursts;
        sample.delivered = self.delivered;
        sample.lost = self.lost;
        sample.in_flight = self.in_flight;
        sample.smoothed_round_trip = self.round_trip.smoothed();
        sample.lowest_round_trip = self.round_trip.lowest();
    }

    fn next(&self) -> u64 {
        self.front + self.ring.len() as u64
    }
}

/// What a newly delivered datagram remembers of its sending.
#[derive(Clone, Copy, Debug)]
struct Delivered {
    sequence: u64,
    sent: Instant,
    first_sent: Instant,
    delivered: u64,
    delivered_at: Option<u64>,
    in_flight: u64,
    limited: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    any: Option<Delivered>,
    /// The same, if it is also the highest of the report.
    highest: Option<Delivered>,
}

/// What [`Sent::handle_timeout`] found due.
#[derive(Clone, Debug)]
#[must_use]
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is made"
)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Datagrams were called lost, as the sample says.
    Lost(Sample),
    /// Nothing was heard for too long: send a datagram that wants a report, whatever the window says,
    /// best one that carries something new or lost (RFC 9002, section 6.2.4).
    Probe,
}

/// Cumulative counters of a lane's sending end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentCounts {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams called lost.
    pub lost: u64,
    /// Bytes that were called lost and came after all.
    pub late_bytes: u64,
    /// Reports taken in.
    pub reports: u64,
    /// Reports about a datagram that was never sent: dropped.
    pub strange: u64,
    /// Reports that tell of nothing that is still tracked.
    pub stale: u64,
    /// Probes asked for.
    pub probes: u64,
}

/// Why a datagram is not tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SentError {
    /// Too many are.
    #[error("{tracked} datagrams are tracked already")]
    Full {
        /// How many.
        tracked: usize,
    },
    /// It needed no permission, and too many like it have had no answer.
    #[error("{tracked} datagrams that needed no permission have had no answer")]
    Unanswered {
        /// How many.
        tracked: usize,
    },
    /// Too many datagrams between those that are tracked are not.
    #[error("the numbers of the datagrams tracked have too many gaps")]
    Scattered,
    /// Its number was used before.
    #[error("datagram number {number} where at least {next} was due")]
    Number {
        /// The number.
        number: u64,
        /// The lowest it may be.
        next: u64,
    },
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Datagrams that are tracked, at most: 20 Gbit/s over 70 ms, in 15 MB. Their memory comes and goes
/// with use.
pub const MAX_TRACKED: usize = 1 << 17;

/// Datagrams in flight at most that needed no permission: reports, answers, probes, and what passes a full window. A
/// far end that reports has answered those of half a second and some round trips: hundreds, and only where a report
/// leaves each millisecond more, of which the oldest then go untold. For one that never does this bounds, with the
/// first window, what a lane costs: 0.3 MB.
pub const MAX_UNPERMITTED: usize = 1024;

/// Entries whose memory an idle lane keeps.
const IDLE_CAPACITY: usize = 1024;

/// Silence that a user notices, and shorter than which a busy link makes of its own.
const SILENCE: Duration = Duration::from_millis(500);

/// Doublings of the probe timeout.
const MAX_BACKOFF: u32 = 6;

/// A dead lane is asked this often at least, so that it is noticed when it heals.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
