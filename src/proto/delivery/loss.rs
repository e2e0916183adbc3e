//! Loss statistics: what a redundancy controller wants to know of a lane.

use std::time::{Duration, Instant};

/// Counts of datagrams whose fate is known. All are cumulative: a controller takes differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossCounts {
    /// Datagrams that arrived or were lost.
    pub decided: u64,
    /// Those that were lost; less again by those that came after all.
    pub lost: u64,
    /// Runs of consecutive losses, so that `lost / bursts` is their mean length.
    pub bursts: u64,
    /// Losses at a time when the queue was near the longest seen lately: likely not random.
    pub congestive: u64,
    /// Datagrams decided at such times, lost or not.
    pub crowded: u64,
    /// Datagrams that were called lost and came after all.
    pub late: u64,
}

impl LossCounts {
    /// The counts since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            decided: self.decided.saturating_sub(earlier.decided),
            lost: self.lost.saturating_sub(earlier.lost),
            bursts: self.bursts.saturating_sub(earlier.bursts),
            congestive: self.congestive.saturating_sub(earlier.congestive),
            crowded: self.crowded.saturating_sub(earlier.crowded),
            late: self.late.saturating_sub(earlier.late),
        }
    }

    /// Share of decided datagrams that were lost, 0 to 1.
    #[must_use]
    pub fn rate(self) -> f64 {
        self.lost as f64 / self.decided.max(1) as f64
    }

    /// Mean length of a run of losses; 1 when there was none.
    #[must_use]
    pub fn mean_burst(self) -> f64 {
        (self.lost as f64 / self.bursts.max(1) as f64).max(1.0)
    }
}

/// Tells losses at a full queue from others.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    counts: LossCounts,
    /// Sequence of the last datagram that was lost.
    last: Option<u64>,
    /// The longest queue of this window and of the former.
    longest: Duration,
    former: Duration,
    began: Instant,
    /// The last queue seen, and the one before.
    queue: Duration,
    earlier: Duration,
    /// Mean difference between one queueing delay and the next: jitter (RFC 3550, section 6.4.1).
    jitter: Duration,
}

impl Statistics {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            counts: LossCounts::default(),
            last: None,
            longest: Duration::ZERO,
            former: Duration::ZERO,
            began: now,
            queue: Duration::ZERO,
            jitter: Duration::ZERO,
            earlier: Duration::ZERO,
        }
    }

    pub(super) fn on_queue(&mut self, now: Instant, queue: Duration) {
        if now.saturating_duration_since(self.began) >= QUEUE_WINDOW {
            self.began = now;
            self.former = self.longest;
            self.longest = Duration::ZERO;
        }
        self.longest = self.longest.max(queue);
        self.jitter = (self.jitter * 15 + queue.abs_diff(self.queue)) / 16;
        self.earlier = std::mem::replace(&mut self.queue, queue);
    }

    pub(super) fn on_delivered(&mut self) {
        self.counts.decided += 1;
        self.counts.crowded += u64::from(self.is_crowded());
    }

    pub(super) fn on_lost(&mut self, sequence: u64) {
        self.counts.decided += 1;
        self.counts.lost += 1;
        let follows = self
            .last
            .is_some_and(|last| last.wrapping_add(1) == sequence);
        self.counts.bursts += u64::from(!follows);
        self.last = Some(sequence);
        let crowded = u64::from(self.is_crowded());
        self.counts.congestive += crowded;
        self.counts.crowded += crowded;
    }

    pub(super) const fn on_late(&mut self) {
        self.counts.lost = self.counts.lost.saturating_sub(1);
        self.counts.late += 1;
    }

    pub(super) const fn counts(&self) -> LossCounts {
        self.counts
    }

    /// Whether the queue was near the longest seen lately when what is decided now was sent: one is decided
    /// by what follows it, and on a slow link the queue has changed by then.
    fn is_crowded(&self) -> bool {
        let full = self.longest.max(self.former) * 3 / 4;
        let noticed = QUEUE_NOTICED + self.jitter.min(MAX_JITTER);
        self.queue.max(self.earlier) >= full.max(noticed)
    }
}

/// The longest queue is remembered for one to two of these, some periods of a CUBIC flow's sawtooth.
const QUEUE_WINDOW: Duration = Duration::from_secs(10);

/// A queue shorter than this and the jitter is none: that much a push makes on an idle link.
const QUEUE_NOTICED: Duration = Duration::from_millis(6);

/// More jitter than this is not told from a queue.
const MAX_JITTER: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn neighbours_are_one_burst() {
        let mut statistics = Statistics::new(Instant::now());
        for sequence in [3, 4, 5, 9, 20, 21] {
            statistics.on_lost(sequence);
        }
        statistics.on_delivered();
        let counts = statistics.counts();
        assert_eq!((counts.lost, counts.bursts, counts.decided), (6, 3, 7));
        assert!((counts.mean_burst() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn only_losses_at_a_nearly_full_queue_are_congestive() {
        let now = Instant::now();
        let mut statistics = Statistics::new(now);
        for (queue, congestive) in [(5, 0), (100, 1), (40, 1), (80, 2), (5, 2)] {
            statistics.on_queue(now, ms(queue));
            statistics.on_queue(now, ms(queue));
            statistics.on_lost(queue);
            assert_eq!(statistics.counts().congestive, congestive, "{queue} ms");
        }
    }

    #[test]
    fn what_arrives_at_a_nearly_full_queue_is_counted_too() {
        let now = Instant::now();
        let mut statistics = Statistics::new(now);
        for (queue, crowded) in [(5, 0), (40, 1), (12, 2), (12, 2), (39, 3)] {
            statistics.on_queue(now, ms(queue));
            statistics.on_delivered();
            assert_eq!(statistics.counts().crowded, crowded, "{queue} ms");
        }
        assert_eq!(statistics.counts().congestive, 0);
    }

    #[test]
    fn a_shallow_queue_is_told_from_jitter_of_its_length() {
        let now = Instant::now();
        let (mut calm, mut shaky) = (Statistics::new(now), Statistics::new(now));
        for at in 0..100 {
            calm.on_queue(now, ms(8));
            shaky.on_queue(now, ms(at % 2 * 8));
        }
        for statistics in [&mut calm, &mut shaky] {
            statistics.on_queue(now, ms(8));
            statistics.on_lost(1);
        }
        assert_eq!(calm.counts().congestive, 1);
        assert_eq!(shaky.counts().congestive, 0);
    }

    #[test]
    fn what_comes_late_was_not_lost() {
        let mut statistics = Statistics::new(Instant::now());
        let before = statistics.counts();
        statistics.on_lost(1);
        statistics.on_late();
        let counts = statistics.counts().since(before);
        assert_eq!((counts.lost, counts.late, counts.decided), (0, 1, 1));
    }
}
