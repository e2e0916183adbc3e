//! Delays, percentiles, and which packets never came out.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Samples of a time, to the microsecond.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<u32>);

/// The distribution of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// How many samples.
    pub count: usize,
    /// The median.
    pub p50: Duration,
    /// 95 % lie below.
    pub p95: Duration,
    /// 99 % lie below.
    pub p99: Duration,
    /// The greatest.
    pub max: Duration,
}

impl Samples {
    pub(super) fn push(&mut self, time: Duration) {
        self.0
            .push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    pub(super) fn percentiles(mut self) -> Percentiles {
        self.0.sort_unstable();
        let at = |share: f64| {
            let rank = (self.0.len() as f64 * share).ceil() as usize;
            let value = self.0.get(rank.max(1) - 1).copied().unwrap_or(0);
            Duration::from_micros(value.into())
        };
        Percentiles {
            count: self.0.len(),
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("-");
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{:.1}/{:.1}/{:.1}",
            ms(self.p50),
            ms(self.p99),
            ms(self.max)
        )
    }
}

/// Follows the packets of one flow in one direction by the number in their IP header.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    slots: Vec<Slot>,
    /// From when on packets count.
    from: Instant,
    highest: Option<u16>,
    pub(super) delays: Samples,
    pub(super) sent: u64,
    pub(super) lost: u64,
    pub(super) reordered: u64,
    pub(super) repeated: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    ident: u16,
    sent: Option<Instant>,
}

impl Trace {
    pub(super) fn new(from: Instant) -> Self {
        Self {
            slots: Vec::new(),
            from,
            highest: None,
            delays: Samples::default(),
            sent: 0,
            lost: 0,
            reordered: 0,
            repeated: 0,
        }
    }

    /// Takes note of a packet that goes in.
    pub(super) fn on_sent(&mut self, now: Instant, ident: u16) {
        if self.slots.is_empty() {
            let empty = Slot {
                ident: 0,
                sent: None,
            };
            self.slots.resize(SLOTS, empty);
        }
        let from = self.from;
        let slot = &mut self.slots[usize::from(ident) % SLOTS];
        if slot.sent.is_some_and(|sent| sent >= from) {
            self.lost += 1;
        }
        *slot = Slot {
            ident,
            sent: Some(now),
        };
        self.sent += u64::from(now >= from);
    }

    /// Takes note of a packet that comes out.
    pub(super) fn on_delivered(&mut self, now: Instant, ident: u16) {
        let slot = self.slots.get_mut(usize::from(ident) % SLOTS);
        let Some(sent) = slot
            .filter(|slot| slot.ident == ident)
            .and_then(|slot| slot.sent.take())
        else {
            self.repeated += 1;
            return;
        };
        let late = self
            .highest
            .is_some_and(|highest| (ident.wrapping_sub(highest) as i16) < 0);
        if late {
            self.reordered += u64::from(sent >= self.from);
        } else {
            self.highest = Some(ident);
        }
        if sent >= self.from {
            self.delays.push(now.saturating_duration_since(sent));
        }
    }

    /// The time within which 99 % of what counts came out; `None` if more than 1 % never did.
    ///
    /// **Only after [`Trace::finish`].** What never came is later than all that came: where repair brings late what would
    /// have been missing, a percentile of arrivals alone would call that worse than nothing.
    pub(super) fn p99_of_sent(&self) -> Option<Duration> {
        let rank = (self.sent as f64 * 0.99).ceil() as usize;
        let mut delays = self.delays.0.clone();
        delays.sort_unstable();
        let micros = delays.get(rank.max(1) - 1)?;
        Some(Duration::from_micros((*micros).into()))
    }

    /// Counts what has not come out as lost, but for what went in so late that it may still.
    pub(super) fn finish(&mut self, now: Instant) {
        for slot in &self.slots {
            match slot.sent {
                Some(sent) if sent >= self.from => {
                    if now.saturating_duration_since(sent) > GRACE {
                        self.lost += 1;
                    } else {
                        self.sent -= 1;
                    }
                }
                Some(_) | None => {}
            }
        }
    }
}

/// More than what is under way at 1 Gbit/s and 150 ms; a power of two, so that the numbers wrap into the same slots.
const SLOTS: usize = 1 << 14;
/// No queue and no repair takes so long.
const GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn percentiles_of_a_hundred_milliseconds_are_their_ranks() {
        let mut samples = Samples::default();
        for ms in (1..=100u32).rev() {
            samples.push(ms * MS);
        }
        let percentiles = samples.percentiles();
        assert_eq!((percentiles.p50, percentiles.p95), (50 * MS, 95 * MS));
        assert_eq!((percentiles.p99, percentiles.max), (99 * MS, 100 * MS));
        assert_eq!(Samples::default().percentiles(), Percentiles::default());
    }

    #[test]
    fn lost_late_and_repeated_packets_are_told_apart() {
        let start = Instant::now();
        let mut trace = Trace::new(start);
        for ident in 0..4 {
            trace.on_sent(start, ident);
        }
        for ident in [0, 2, 1, 2] {
            trace.on_delivered(start + 25 * MS, ident);
        }
        trace.on_sent(start + 2900 * MS, 4);
        trace.finish(start + 3000 * MS);
        assert_eq!(
            (trace.sent, trace.lost, trace.reordered, trace.repeated),
            (4, 1, 1, 1)
        );
        assert_eq!(trace.delays.percentiles().max, 25 * MS);
    }

    #[test]
    fn what_never_came_is_later_than_all_that_came() {
        let start = Instant::now();
        for (lost, p99) in [(0, Some(99)), (1, Some(100)), (2, None)] {
            let mut trace = Trace::new(start);
            for ident in 0..100 + lost {
                trace.on_sent(start, ident);
            }
            for ident in 0..100 {
                trace.on_delivered(start + (u32::from(ident) + 1) * MS, ident);
            }
            trace.finish(start + Duration::from_secs(10));
            assert_eq!(trace.p99_of_sent(), p99.map(|ms: u32| ms * MS), "{lost}");
        }
    }

    #[test]
    fn numbers_may_wrap() {
        let start = Instant::now();
        let mut trace = Trace::new(start);
        for number in 0..200_000u32 {
            trace.on_sent(start, number as u16);
            if number % 10 != 0 {
                trace.on_delivered(start, number as u16);
            }
        }
        trace.finish(start + Duration::from_secs(10));
        assert_eq!(
            (trace.sent, trace.lost, trace.reordered),
            (200_000, 20_000, 0)
        );
    }

    #[test]
    fn what_goes_in_while_warming_up_does_not_count() {
        let start = Instant::now();
        let mut trace = Trace::new(start + MS);
        trace.on_sent(start, 0);
        trace.on_sent(start, 1);
        trace.on_delivered(start + MS, 1);
        trace.finish(start + Duration::from_secs(10));
        assert_eq!((trace.sent, trace.lost), (0, 0));
        assert_eq!(trace.delays.percentiles().count, 0);
    }
}
