//! RACK (RFC 8985): a segment is lost when one sent later has arrived and it has had its time.

use std::time::{Duration, Instant};

use super::{
    rtt::RoundTrip,
    scoreboard::{Scoreboard, Sent},
};

/// What was delivered last, and how much reordering is allowed for.
#[derive(Clone, Debug)]
pub(super) struct Rack {
    /// When the newest segment delivered was sent, and its end.
    newest: Option<(Instant, u64)>,
    /// Its round trip.
    rtt: Duration,
    reordering_seen: bool,
    /// The window of reordering, in quarters of the least round trip.
    steps: u32,
    /// Recoveries until the window goes back to one quarter.
    persists: u32,
    /// The window has grown in this round trip until this is acknowledged.
    grown_until: u64,
}

impl Rack {
    pub(super) fn new() -> Self {
        Self {
            newest: None,
            rtt: Duration::ZERO,
            reordering_seen: false,
            steps: 1,
            persists: 0,
            grown_until: 0,
        }
    }

    /// Takes the newest segment that an acknowledgement delivered (RFC 8985, section 6.2, step 2).
    pub(super) fn on_delivered(&mut self, now: Instant, segment: &Sent, min_rtt: Option<Duration>) {
        let rtt = now.saturating_duration_since(segment.sent);
        // probably the original, not the retransmission, was acknowledged
        if segment.retransmissions > 0 && min_rtt.is_some_and(|min| rtt < min) {
            return;
        }
        self.rtt = rtt;
        let candidate = (segment.sent, segment.end());
        if self.newest.is_none_or(|newest| candidate > newest) {
            self.newest = Some(candidate);
        }
    }

    pub(super) fn on_reordering(&mut self) {
        self.reordering_seen = true;
    }

    /// Takes a duplicate reported by the receiver: a retransmission was in vain, so more reordering is allowed for, a
    /// quarter of a round trip more in each.
    pub(super) fn on_duplicate(&mut self, una: u64, nxt: u64) {
        if una >= self.grown_until {
            self.steps = (self.steps + 1).min(MAX_STEPS);
            self.grown_until = nxt;
        }
        self.persists = PERSISTS;
    }

    pub(super) fn on_recovery_end(&mut self) {
        self.persists = self.persists.saturating_sub(1);
        if self.persists == 0 {
            self.steps = 1;
        }
    }

    /// Finds what is lost (step 5); returns how many segments, and when to ask again without an acknowledgement.
    pub(super) fn detect(
        &self,
        now: Instant,
        board: &mut Scoreboard,
        rtt: &RoundTrip,
        recovering: bool,
    ) -> (u32, Option<Instant>) {
        let Some(newest) = self.newest else {
            return (0, None);
        };
        let allowed = self.rtt + self.window(board.sacked(), rtt, recovering);
        let (count, next) = board.lose_oldest(|segment| {
            (segment.sent, segment.end()) < newest && segment.sent + allowed <= now
        });
        let next = next
            .filter(|segment| (segment.sent, segment.end()) < newest)
            .map(|segment| segment.sent + allowed);
        (count, next)
    }

    /// The window of reordering: none where three later segments have arrived and none was ever seen out of order
    /// (step 4).
    fn window(&self, sacked: u32, rtt: &RoundTrip, recovering: bool) -> Duration {
        if !self.reordering_seen && (recovering || sacked >= DUPLICATE_THRESHOLD) {
            return Duration::ZERO;
        }
        let least = rtt.min().unwrap_or_default();
        (least * self.steps / 4).min(rtt.smoothed().unwrap_or_default())
    }
}

/// RFC 8985: the window is kept for 16 recoveries.
const PERSISTS: u32 = 16;
/// The bound of Linux, an octet.
const MAX_STEPS: u32 = 255;
/// RFC 6675.
const DUPLICATE_THRESHOLD: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::tcp::{rate::RateSampler, scoreboard::Progress};

    const MS: Duration = Duration::from_millis(1);

    struct Scene {
        rack: Rack,
        board: Scoreboard,
        rtt: RoundTrip,
        start: Instant,
    }

    /// Ten segments sent a millisecond apart, over a round trip of 50 ms.
    fn scene() -> Scene {
        let start = Instant::now();
        let snapshot = RateSampler::new(start).on_send(start, true);
        let mut board = Scoreboard::default();
        for index in 0..10u32 {
            board.push(u64::from(index) * 100, 100, start + index * MS, snapshot);
        }
        let mut rtt = RoundTrip::new();
        rtt.sample(50 * MS);
        Scene {
            rack: Rack::new(),
            board,
            rtt,
            start,
        }
    }

    impl Scene {
        /// The segment `index` arrives; returns what is found lost then, and when to look again.
        fn arrives(&mut self, index: u32) -> (u32, Option<Duration>) {
            let now = self.start + (50 + index) * MS;
            let mut progress = Progress::default();
            let offset = u64::from(index) * 100;
            self.board.sack(offset, offset + 100, &mut progress);
            self.rack
                .on_delivered(now, &progress.newest.unwrap(), self.rtt.min());
            let (lost, timer) = self.rack.detect(now, &mut self.board, &self.rtt, false);
            (lost, timer.map(|timer| timer - self.start))
        }
    }

    #[test]
    fn third_segment_beyond_a_gap_finds_it_lost_where_nothing_was_reordered() {
        let mut scene = scene();
        assert_eq!(scene.arrives(1).0, 0);
        assert_eq!(scene.arrives(2).0, 0);
        assert_eq!(scene.arrives(3).0, 1);
        assert_eq!(scene.board.lost(), 1);
    }

    #[test]
    fn quarter_of_a_round_trip_is_waited_where_reordering_was_seen() {
        let mut scene = scene();
        scene.rack.on_reordering();
        for index in 1..4 {
            let (lost, timer) = scene.arrives(index);
            // sent at 0, a round trip of 50 ms, a window of 12.5
            assert_eq!((lost, timer), (0, Some(Duration::from_micros(62_500))));
        }
        let late = scene.start + 63 * MS;
        assert_eq!(
            scene
                .rack
                .detect(late, &mut scene.board, &scene.rtt, false)
                .0,
            1
        );
    }

    #[test]
    fn duplicates_widen_the_window_once_a_round_trip_and_recoveries_narrow_it() {
        let mut scene = scene();
        scene.rack.on_reordering();
        scene.rack.on_duplicate(100, 1000);
        scene.rack.on_duplicate(200, 1000);
        assert_eq!(scene.rack.window(3, &scene.rtt, true), 25 * MS);
        for _ in 0..PERSISTS {
            scene.rack.on_recovery_end();
        }
        assert_eq!(
            scene.rack.window(3, &scene.rtt, true),
            Duration::from_micros(12_500)
        );
    }
}
