//! What was sent and is not yet acknowledged: the scoreboard of RFC 6675, by segments.
//!
//! A segment is `InFlight` (the original or its last retransmission), `Sacked`, or `Lost` and waiting to be sent again.
//! Offsets count the bytes of the stream from 0, so that nothing wraps.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Instant,
};

use super::rate::Snapshot;

/// The retransmission queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Scoreboard {
    segments: VecDeque<Sent>,
    in_flight: u32,
    sacked: u32,
    /// Offsets of the segments that wait to be sent again.
    lost: BTreeSet<u64>,
    /// By time of the last transmission; entries of segments sent again since, or no longer in flight, are stale.
    by_time: VecDeque<(Instant, u64)>,
    /// The end of the highest segment sacked.
    highest_sacked: u64,
}

/// One segment.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) start: u64,
    pub(super) len: u32,
    /// When it was sent last.
    pub(super) sent: Instant,
    pub(super) retransmissions: u32,
    pub(super) snapshot: Snapshot,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    Sacked,
    Lost,
}

/// What one acknowledgement told.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Segments delivered that were not known to be.
    pub(super) delivered: u32,
    /// The cumulative acknowledgement advanced.
    pub(super) advanced: bool,
    /// Of the segments delivered and sent only once: when the first and the last of them were sent.
    pub(super) oldest_original: Option<Instant>,
    pub(super) newest_original: Option<Instant>,
    /// Of all segments delivered, the one sent last.
    pub(super) newest: Option<Sent>,
    /// An original arrived after one that was sent later: the path reorders.
    pub(super) reordered: bool,
    /// Segments that had been sent again were acknowledged.
    pub(super) retransmitted: bool,
}

impl Sent {
    pub(super) fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
}

impl Scoreboard {
    /// Adds a new segment at the end.
    pub(super) fn push(&mut self, start: u64, len: u32, now: Instant, snapshot: Snapshot) {
        self.segments.push_back(Sent {
            start,
            len,
            sent: now,
            retransmissions: 0,
            snapshot,
            state: State::InFlight,
        });
        self.by_time.push_back((now, start));
        self.in_flight += 1;
    }

    /// Takes a cumulative acknowledgement.
    pub(super) fn ack(&mut self, una: u64, progress: &mut Progress) {
        let highest = self.highest_sacked;
        while self
            .segments
            .front()
            .is_some_and(|segment| segment.end() <= una)
        {
            let Some(segment) = self.segments.pop_front() else {
                break;
            };
            progress.advanced = true;
            match segment.state {
                State::Sacked => {
                    self.sacked -= 1;
                    continue;
                }
                State::InFlight => self.in_flight -= 1,
                State::Lost => {
                    self.lost.remove(&segment.start);
                }
            }
            progress.take(segment, highest);
        }
    }

    /// Takes a range that has arrived above the cumulative acknowledgement.
    pub(super) fn sack(&mut self, start: u64, end: u64, progress: &mut Progress) {
        let highest = self.highest_sacked;
        let from = self
            .segments
            .partition_point(|segment| segment.start < start);
        for index in from..self.segments.len() {
            let Some(segment) = self.segments.get_mut(index) else {
                break;
            };
            if segment.end() > end {
                break;
            }
            match segment.state {
                State::Sacked => continue,
                State::InFlight => self.in_flight -= 1,
                State::Lost => {
                    self.lost.remove(&segment.start);
                }
            }
            segment.state = State::Sacked;
            self.sacked += 1;
            self.highest_sacked = self.highest_sacked.max(segment.end());
            let segment = segment.clone();
            progress.take(segment, highest);
        }
    }

    /// Declares every segment lost that is neither sacked nor waiting already; returns how many.
    pub(super) fn lose_all(&mut self) -> u32 {
        let before = self.lost.len();
        for segment in &mut self.segments {
            if segment.state == State::InFlight {
                segment.state = State::Lost;
                self.lost.insert(segment.start);
            }
        }
        self.in_flight = 0;
        (self.lost.len() - before) as u32
    }

    /// Declares segments lost, in the order they were sent last, as long as `is_lost` says so; gives the segment that
    /// ended this.
    pub(super) fn lose_oldest(
        &mut self,
        mut is_lost: impl FnMut(&Sent) -> bool,
    ) -> (u32, Option<&Sent>) {
        let mut count = 0;
        while let Some((sent, start)) = self.by_time.front().copied() {
            let Some(index) = self.find(start) else {
                self.by_time.pop_front();
                continue;
            };
            let segment = &mut self.segments[index];
            if segment.state != State::InFlight || segment.sent != sent {
                self.by_time.pop_front();
                continue;
            }
            if !is_lost(segment) {
                return (count, self.segments.get(index));
            }
            segment.state = State::Lost;
            self.in_flight -= 1;
            self.lost.insert(start);
            self.by_time.pop_front();
            count += 1;
        }
        (count, None)
    }

    /// Sends the lowest lost segment again; says where it lies.
    pub(super) fn retransmit(&mut self, now: Instant, snapshot: Snapshot) -> Option<(u64, u32)> {
        let start = self.lost.pop_first()?;
        let index = self.find(start)?;
        self.in_flight += 1;
        Some(self.send_again(index, now, snapshot))
    }

    /// Sends the last segment in flight again, as a probe.
    pub(super) fn probe(&mut self, now: Instant, snapshot: Snapshot) -> Option<(u64, u32)> {
        let index = self
            .segments
            .iter()
            .rposition(|segment| segment.state == State::InFlight)?;
        Some(self.send_again(index, now, snapshot))
    }

    /// Takes back every verdict of loss: the acknowledgements were only late.
    pub(super) fn forgive(&mut self) {
        for start in std::mem::take(&mut self.lost) {
            if let Some(index) = self.find(start) {
                self.segments[index].state = State::InFlight;
                self.in_flight += 1;
                let entry = (self.segments[index].sent, start);
                let at = self.by_time.partition_point(|other| other.0 <= entry.0);
                self.by_time.insert(at, entry);
            }
        }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many segments are in flight for the second time or more.
    pub(super) fn sent_again(&self) -> u32 {
        let again =
            |segment: &&Sent| segment.state == State::InFlight && segment.retransmissions > 0;
        self.segments.iter().filter(again).count() as u32
    }

    pub(super) fn sacked(&self) -> u32 {
        self.sacked
    }

    pub(super) fn lost(&self) -> u32 {
        self.lost.len() as u32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    fn send_again(&mut self, index: usize, now: Instant, snapshot: Snapshot) -> (u64, u32) {
        let segment = &mut self.segments[index];
        segment.state = State::InFlight;
        segment.sent = now;
        segment.retransmissions += 1;
        segment.snapshot = snapshot;
        self.by_time.push_back((now, segment.start));
        (segment.start, segment.len)
    }

    fn find(&self, start: u64) -> Option<usize> {
        let index = self
            .segments
            .partition_point(|segment| segment.start < start);
        (self.segments.get(index)?.start == start).then_some(index)
    }
}

impl Progress {
    fn take(&mut self, segment: Sent, highest_sacked: u64) {
        self.delivered += 1;
        if segment.retransmissions == 0 {
            if segment.end() < highest_sacked {
                self.reordered = true;
            }
            let sent = segment.sent;
            self.oldest_original = Some(self.oldest_original.map_or(sent, |other| other.min(sent)));
            self.newest_original = Some(self.newest_original.map_or(sent, |other| other.max(sent)));
        } else {
            self.retransmitted = true;
        }
        let newer = self
            .newest
            .as_ref()
            .is_none_or(|newest| (newest.sent, newest.end()) < (segment.sent, segment.end()));
        if newer {
            self.newest = Some(segment);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sim::tcp::rate::RateSampler;

    const MS: Duration = Duration::from_millis(1);

    fn board(count: u64) -> (Scoreboard, Instant, Snapshot) {
        let start = Instant::now();
        let snapshot = RateSampler::new(start).on_send(start, true);
        let mut board = Scoreboard::default();
        for index in 0..count {
            board.push(index * 100, 100, start + index as u32 * MS, snapshot);
        }
        (board, start, snapshot)
    }

    #[test]
    fn each_segment_is_delivered_once_whatever_is_repeated() {
        let (mut board, ..) = board(10);
        let mut progress = Progress::default();
        board.sack(300, 500, &mut progress);
        board.sack(300, 600, &mut progress);
        board.ack(400, &mut progress);
        board.ack(1000, &mut progress);
        assert_eq!(
            (progress.delivered, board.in_flight(), board.sacked()),
            (10, 0, 0)
        );
        assert!(board.is_empty());
    }

    #[test]
    fn half_covered_segments_are_not_sacked() {
        let (mut board, ..) = board(10);
        let mut progress = Progress::default();
        board.sack(150, 450, &mut progress);
        assert_eq!(board.sacked(), 2);
    }

    #[test]
    fn late_original_below_the_highest_sacked_is_reordering() {
        let (mut board, ..) = board(10);
        let mut progress = Progress::default();
        board.sack(300, 400, &mut progress);
        assert!(!progress.reordered);
        board.ack(300, &mut progress);
        assert!(progress.reordered);
    }

    #[test]
    fn oldest_are_lost_first_and_sent_again_from_the_lowest() {
        let (mut board, start, snapshot) = board(10);
        let mut progress = Progress::default();
        board.sack(500, 600, &mut progress);
        let (count, next) = board.lose_oldest(|segment| segment.sent < start + 3 * MS);
        assert_eq!((count, next.map(|segment| segment.start)), (3, Some(300)));
        assert_eq!((board.lost(), board.in_flight()), (3, 6));
        assert_eq!(board.retransmit(start + 60 * MS, snapshot), Some((0, 100)));
        // what was sent again is the newest now
        let (count, next) = board.lose_oldest(|segment| segment.sent < start + 50 * MS);
        assert_eq!((count, next.map(|segment| segment.start)), (6, Some(0)));
    }

    #[test]
    fn forgiven_segments_are_in_flight_again_in_the_order_of_sending() {
        let (mut board, start, _) = board(4);
        assert_eq!(board.lose_all(), 4);
        board.forgive();
        assert_eq!((board.in_flight(), board.lost()), (4, 0));
        let (count, next) = board.lose_oldest(|segment| segment.sent < start + MS);
        assert_eq!((count, next.map(|segment| segment.start)), (1, Some(100)));
    }
}
