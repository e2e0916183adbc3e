//! When a datagram that others overtook counts as lost (RFC 9002, section 6.1, and RFC 8985).

use std::time::Duration;

use super::rtt::GRANULARITY;

/// How far datagrams overtake each other on this path.
#[derive(Clone, Debug)]
pub(super) struct Reordering {
    packets: u64,
    /// Sixteenths of a round trip that a datagram may be late.
    sixteenths: u32,
    /// Losses since something came late.
    certain: u32,
}

impl Default for Reordering {
    fn default() -> Self {
        Self {
            packets: PACKET_THRESHOLD,
            sixteenths: LEAST_SIXTEENTHS,
            certain: 0,
        }
    }
}

impl Reordering {
    pub(super) fn on_late(&mut self, behind: u64) {
        self.packets = self.packets.max(behind + 1).min(MAX_PACKET_THRESHOLD);
        self.sixteenths = (self.sixteenths + 1).min(16);
        self.certain = 0;
    }

    /// A datagram was called lost. After many that stayed so, the path is thought to keep order better.
    pub(super) fn on_lost(&mut self) {
        self.certain += 1;
        if self.certain >= CERTAIN {
            self.certain = 0;
            self.packets = (self.packets / 2).max(PACKET_THRESHOLD);
            self.sixteenths = (self.sixteenths - 1).max(LEAST_SIXTEENTHS);
        }
    }

    pub(super) const fn packets(&self) -> u64 {
        self.packets
    }

    /// `kTimeThreshold` (RFC 9002, section 6.1.2), longer where reordering was seen.
    pub(super) fn patience(&self, round_trip: Duration) -> Duration {
        (round_trip + round_trip * self.sixteenths / 16).max(GRANULARITY)
    }

    /// Time by which the newer datagram must have been sent later before counting packets means
    /// anything, once there is reordering (RFC 8985, section 6.2).
    pub(super) fn least_time(&self, round_trip: Duration) -> Duration {
        if self.packets > PACKET_THRESHOLD {
            (round_trip / 16).min(MAX_REORDER_TIME)
        } else {
            Duration::ZERO
        }
    }
}

/// An eighth of a round trip (RFC 9002, section 6.1.2).
const LEAST_SIXTEENTHS: u32 = 2;

/// Losses without a late arrival after which thresholds shrink: some round trips' worth at a few percent.
const CERTAIN: u32 = 64;

/// `kPacketThreshold` (RFC 9002, section 6.1.1).
const PACKET_THRESHOLD: u64 = 3;

/// Beyond this only time tells loss from reordering.
const MAX_PACKET_THRESHOLD: u64 = 1024;

/// Bounds the wait for reordering on long paths.
const MAX_REORDER_TIME: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_grow_with_what_comes_late_and_shrink_again() {
        let round_trip = Duration::from_millis(160);
        let mut reordering = Reordering::default();
        assert_eq!(reordering.patience(round_trip), Duration::from_millis(180));
        for _ in 0..100 {
            reordering.on_late(40);
        }
        assert_eq!(reordering.packets(), 41);
        assert_eq!(reordering.patience(round_trip), Duration::from_millis(320));
        assert_eq!(reordering.least_time(round_trip), MAX_REORDER_TIME);
        for _ in 0..CERTAIN * 20 {
            reordering.on_lost();
        }
        assert_eq!(reordering.packets(), PACKET_THRESHOLD);
        assert_eq!(reordering.patience(round_trip), Duration::from_millis(180));
        assert_eq!(reordering.least_time(round_trip), Duration::ZERO);
    }
}
