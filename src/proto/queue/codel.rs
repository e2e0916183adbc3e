//! CoDel (RFC 8289): tells from how long packets wait whether a queue stands, and when to say so to its sender.

use std::time::{Duration, Instant};

/// What CoDel aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Law {
    /// The wait that is good queueing.
    pub(super) target: Duration,
    /// How long waits must stay above it before the first drop: about a round trip of the flows' ends.
    pub(super) interval: Duration,
}

/// The state of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Codel {
    /// When waits will have been above the target for an interval.
    first_above: Option<Instant>,
    /// When the next drop is due; kept after dropping has ended, to see how long ago that was.
    drop_next: Option<Instant>,
    /// Drops since dropping began.
    count: u32,
    /// The count with which dropping began.
    first_count: u32,
    dropping: bool,
}

impl Codel {
    /// Judges the packet at the head of a queue before it leaves: true to drop it, or to mark it and let it go.
    ///
    /// `wait` is how long it has waited, `backlog` how many bytes wait in all, it included, and `mtu` the bytes
    /// below which no queue stands. After a drop the next head is judged too (RFC 8289 §5.5).
    pub(super) fn judge(
        &mut self,
        now: Instant,
        wait: Duration,
        backlog: usize,
        mtu: usize,
        law: Law,
    ) -> bool {
        let standing = self.is_standing(now, wait, backlog, mtu, law);
        if !self.dropping {
            if standing {
                self.begin(now, law);
            }
            return standing;
        }
        if !standing {
            self.dropping = false;
            return false;
        }
        match self.drop_next {
            Some(due) if now >= due => {
                self.count = self.count.saturating_add(1);
                self.drop_next = Some(due + spacing(law, self.count));
                true
            }
            Some(_) | None => false,
        }
    }

    /// Forgets that a queue stood: there is none.
    pub(super) fn handle_empty(&mut self) {
        self.first_above = None;
    }

    fn is_standing(
        &mut self,
        now: Instant,
        wait: Duration,
        backlog: usize,
        mtu: usize,
        law: Law,
    ) -> bool {
        if wait < law.target || backlog <= mtu {
            self.first_above = None;
            return false;
        }
        match self.first_above {
            None => {
                self.first_above = Some(now + law.interval);
                false
            }
            Some(due) => now >= due,
        }
    }

    fn begin(&mut self, now: Instant, law: Law) {
        self.dropping = true;
        // RFC 8289 §5.5: a queue that stood a moment ago begins with the rate that was needed then.
        let needed = self.count.saturating_sub(self.first_count);
        let recent = self
            .drop_next
            .is_some_and(|due| now.saturating_duration_since(due) < 16 * law.interval);
        self.count = if needed > 1 && recent { needed } else { 1 };
        self.first_count = self.count;
        self.drop_next = Some(now + spacing(law, self.count));
    }
}

/// The time between drops (RFC 8289 §3.3): it falls with the root of their number, so that TCP's rate falls linearly.
fn spacing(law: Law, count: u32) -> Duration {
    law.interval.div_f64(f64::from(count.max(1)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: Law = Law {
        target: Duration::from_millis(5),
        interval: Duration::from_millis(100),
    };

    /// Judges a packet each millisecond that has waited as long as `wait` says; gives the milliseconds of drops.
    fn drops(
        codel: &mut Codel,
        start: Instant,
        range: std::ops::Range<u32>,
        wait: u32,
    ) -> Vec<u32> {
        let wait = Duration::from_millis(wait.into());
        let mut dropped = Vec::new();
        for ms in range {
            let now = start + Duration::from_millis(ms.into());
            if codel.judge(now, wait, 10_000, 1_400, LAW) {
                dropped.push(ms);
            }
        }
        dropped
    }

    #[test]
    fn waits_below_the_target_never_drop() {
        let mut codel = Codel::default();
        assert!(drops(&mut codel, Instant::now(), 0..5_000, 4).is_empty());
    }

    #[test]
    fn a_last_packet_is_never_dropped() {
        let mut codel = Codel::default();
        let start = Instant::now();
        for ms in 0..1_000 {
            let now = start + Duration::from_millis(ms);
            let wait = Duration::from_secs(1);
            assert!(!codel.judge(now, wait, 1_400, 1_400, LAW));
        }
    }

    #[test]
    fn the_first_drop_comes_after_an_interval_and_the_next_ever_faster() {
        let mut codel = Codel::default();
        let dropped = drops(&mut codel, Instant::now(), 0..600, 20);
        // 100, then + 100, + 100/√2, + 100/√3, … as in RFC 8289 §3.3.
        assert_eq!(dropped, [100, 200, 271, 329, 379, 424, 464, 502, 538, 571]);
    }

    #[test]
    fn one_good_wait_ends_dropping() {
        let mut codel = Codel::default();
        let start = Instant::now();
        drops(&mut codel, start, 0..300, 20);
        assert!(drops(&mut codel, start, 300..301, 1).is_empty());
        assert!(drops(&mut codel, start, 301..401, 20).is_empty());
    }

    #[test]
    fn a_queue_that_stands_again_soon_is_dropped_from_at_the_former_rate() {
        let start = Instant::now();
        let mut soon = Codel::default();
        drops(&mut soon, start, 0..1_000, 20);
        let mut late = soon;
        drops(&mut soon, start, 1_000..1_001, 1);
        let again = drops(&mut soon, start, 1_001..1_301, 20);
        assert_eq!(again[0], 1_101);
        assert!(again[1] - again[0] < 40, "{again:?}");
        drops(&mut late, start, 1_000..1_001, 1);
        let again = drops(&mut late, start, 4_000..4_300, 20);
        assert_eq!(again[..2], [4_100, 4_200]);
    }

    #[test]
    fn an_empty_queue_begins_anew() {
        let mut codel = Codel::default();
        let start = Instant::now();
        assert!(drops(&mut codel, start, 0..99, 20).is_empty());
        codel.handle_empty();
        assert!(drops(&mut codel, start, 99..199, 20).is_empty());
        assert_eq!(drops(&mut codel, start, 199..200, 20), [199]);
    }
}
