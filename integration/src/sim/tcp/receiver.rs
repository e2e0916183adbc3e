//! The receiving half of a connection: what is acknowledged when, and how large the window is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The receiving half. Offsets count the bytes of the stream from 0.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    next: u64,
    /// Ranges that arrived beyond a gap, by their start.
    beyond: BTreeMap<u64, u64>,
    /// Starts of such ranges, the one that changed last first.
    recent: Vec<u64>,
    /// A range that arrived twice and has not been reported.
    duplicate: Option<(u64, u64)>,
    acked: u64,
    ack_now: bool,
    ack_at: Option<Instant>,
    /// Segments that are still acknowledged at once, so that the sender's slow start is not slowed.
    quick: u32,
    longest: u64,
    window: u64,
    edge: u64,
    round: Option<(Instant, u64)>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            next: 0,
            beyond: BTreeMap::new(),
            recent: Vec::new(),
            duplicate: None,
            acked: 0,
            ack_now: false,
            ack_at: None,
            quick: QUICK,
            longest: SHORTEST_FULL,
            window: INITIAL_WINDOW,
            edge: INITIAL_WINDOW,
            round: None,
        }
    }

    /// Takes a segment; returns how many bytes became readable.
    pub(super) fn handle_segment(
        &mut self,
        now: Instant,
        start: u64,
        len: u64,
        rtt: Option<Duration>,
    ) -> u64 {
        let end = start + len;
        self.longest = self.longest.max(len.min(LONGEST_FULL));
        if end <= self.next {
            self.duplicate = Some((start, end));
            self.ack_now = true;
            return 0;
        }
        if start > self.next {
            self.take_beyond(start, end);
            self.ack_now = true;
            return 0;
        }
        let before = self.next;
        self.next = end;
        let had_gap = !self.beyond.is_empty();
        while let Some((start, end)) = self
            .beyond
            .first_key_value()
            .map(|(start, end)| (*start, *end))
        {
            if start > self.next {
                break;
            }
            self.next = self.next.max(end);
            self.beyond.remove(&start);
            self.recent.retain(|other| *other != start);
        }
        if had_gap || self.quick > 0 || self.next - self.acked > self.longest {
            self.quick = self.quick.saturating_sub(1);
            self.ack_now = true;
        } else {
            self.ack_at.get_or_insert(now + DELAY);
        }
        self.tune(now, rtt);
        self.next - before
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_now = true;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.ack_at
    }

    /// Asks for an acknowledgement at once.
    pub(super) fn demand_ack(&mut self) {
        self.ack_now = true;
    }

    /// Says whether an acknowledgement is to leave at once.
    pub(super) fn wants_ack(&self) -> bool {
        self.ack_now
    }

    /// Takes note that a segment leaves which acknowledges everything; gives the ranges it reports, of which a
    /// duplicate comes first and tells itself by being below `next` or within the one after it (RFC 2883).
    pub(super) fn acknowledge(&mut self, mut report: impl FnMut(u64, u64)) {
        self.ack_now = false;
        self.ack_at = None;
        self.acked = self.next;
        let mut room = REPORTED;
        if let Some((start, end)) = self.duplicate.take() {
            report(start, end);
            room -= 1;
        }
        for start in &self.recent {
            if room == 0 {
                break;
            }
            if let Some(end) = self.beyond.get(start) {
                report(*start, *end);
                room -= 1;
            }
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many bytes the receiver has room for beyond [`Receiver::next`].
    pub(super) fn window(&mut self) -> u64 {
        // the edge never moves back
        self.edge = self.edge.max(self.next + self.window);
        self.edge - self.next
    }

    fn take_beyond(&mut self, start: u64, end: u64) {
        let covered = self
            .beyond
            .range(..=start)
            .next_back()
            .is_some_and(|(_, other)| *other >= end);
        if covered {
            self.duplicate = Some((start, end));
        }
        let (mut low, mut high) = (start, end);
        while let Some((other_start, other_end)) = self
            .beyond
            .range(..=high)
            .next_back()
            .map(|(start, end)| (*start, *end))
            .filter(|(_, other_end)| *other_end >= low)
        {
            low = low.min(other_start);
            high = high.max(other_end);
            self.beyond.remove(&other_start);
            self.recent.retain(|other| *other != other_start);
        }
        self.beyond.insert(low, high);
        self.recent.insert(0, low);
        self.recent.truncate(REPORTED);
    }

    /// Widens the window so that it is never what limits a sender: four times what came in a round trip.
    fn tune(&mut self, now: Instant, rtt: Option<Duration>) {
        let rtt = rtt.unwrap_or(UNKNOWN_RTT);
        match self.round {
            None => self.round = Some((now, self.next)),
            Some((since, from)) if now.saturating_duration_since(since) >= rtt => {
                let came = self.next - from;
                self.window = self
                    .window
                    .max(4 * came + 16 * self.longest)
                    .min(MAX_WINDOW);
                self.round = Some((now, self.next));
            }
            Some(_) => {}
        }
    }
}

/// TCP_DELACK_MIN of Linux.
const DELAY: Duration = Duration::from_millis(40);
/// TCP_MAX_QUICKACKS of Linux.
const QUICK: u32 = 16;
/// What fits beside timestamps.
const REPORTED: usize = 3;
/// What Linux takes for a full segment before it has seen a longer one.
const SHORTEST_FULL: u64 = 536;
/// A super-packet is several segments, and is acknowledged as such.
const LONGEST_FULL: u64 = 1460;
/// What Linux offers first.
const INITIAL_WINDOW: u64 = 65_535;
/// tcp_rmem's maximum of 6 MiB, half of which is bookkeeping.
const MAX_WINDOW: u64 = 3 << 20;
/// Until the handshake has told.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn reported(receiver: &mut Receiver) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        receiver.acknowledge(|start, end| ranges.push((start, end)));
        ranges
    }

    /// A receiver that no longer acknowledges at once.
    fn settled(now: Instant) -> Receiver {
        let mut receiver = Receiver::new();
        for index in 0..u64::from(QUICK) {
            receiver.handle_segment(now, index * 1000, 1000, None);
            assert!(receiver.wants_ack());
            reported(&mut receiver);
        }
        receiver
    }

    #[test]
    fn every_second_full_segment_is_acknowledged_and_a_lone_one_after_40_ms() {
        let now = Instant::now();
        let mut receiver = settled(now);
        receiver.handle_segment(now, 16_000, 1000, None);
        assert!(!receiver.wants_ack());
        assert_eq!(receiver.poll_timeout(), Some(now + 40 * MS));
        receiver.handle_segment(now, 17_000, 1000, None);
        assert!(receiver.wants_ack());
        reported(&mut receiver);
        receiver.handle_segment(now, 18_000, 1000, None);
        receiver.handle_timeout(now + 40 * MS);
        assert!(receiver.wants_ack());
    }

    #[test]
    fn newest_range_is_reported_first_and_three_at_most() {
        let now = Instant::now();
        let mut receiver = settled(now);
        for start in [20_000, 24_000, 28_000, 32_000, 25_000] {
            receiver.handle_segment(now, start, 1000, None);
        }
        assert_eq!(
            reported(&mut receiver),
            [(24_000, 26_000), (32_000, 33_000), (28_000, 29_000)]
        );
    }

    #[test]
    fn duplicates_are_reported_once_and_before_all_else() {
        let now = Instant::now();
        let mut receiver = settled(now);
        receiver.handle_segment(now, 20_000, 1000, None);
        receiver.handle_segment(now, 3000, 1000, None);
        assert_eq!(reported(&mut receiver), [(3000, 4000), (20_000, 21_000)]);
        receiver.handle_segment(now, 20_000, 1000, None);
        assert_eq!(
            reported(&mut receiver),
            [(20_000, 21_000), (20_000, 21_000)]
        );
        assert_eq!(reported(&mut receiver), [(20_000, 21_000)]);
    }

    #[test]
    fn window_grows_with_what_comes_in_a_round_trip_and_is_bounded() {
        let start = Instant::now();
        let mut receiver = Receiver::new();
        let mut next = 0;
        for round in 0..12u32 {
            for _ in 0..20 << round.min(10) {
                receiver.handle_segment(start + round * 50 * MS, next, 1448, Some(50 * MS));
                next += 1448;
            }
        }
        assert_eq!(receiver.window(), MAX_WINDOW);
    }

    proptest! {
        #[test]
        fn any_order_is_put_together(order in Just((0u64..60).collect::<Vec<_>>()).prop_shuffle()) {
            let now = Instant::now();
            let mut receiver = Receiver::new();
            let mut readable = 0;
            for index in &order {
                readable += receiver.handle_segment(now, index * 10, 10, None);
            }
            prop_assert_eq!((readable, receiver.next()), (600, 600));
            prop_assert!(receiver.beyond.is_empty() && receiver.recent.is_empty());
        }
    }
}
