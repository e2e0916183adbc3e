//! What bounds a fair queue, and how its aims follow the lane.

use std::time::Duration;

use super::codel::Law;

/// Bounds one session's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLimits {
    /// Bytes that still wait to be sent.
    pub bytes: usize,
    /// Packets, each super-packet one.
    pub packets: usize,
    /// Bytes of memory behind them: a super-packet takes all of its own until its last piece is sent.
    pub memory: usize,
    /// The least wait that CoDel calls a queue (RFC 8289 §4.2).
    pub target: Duration,
}

impl Default for QueueLimits {
    /// 4 MiB or 4,096 packets, which is 34 ms at 1 Gbit/s and a round trip of 100 ms at 330 Mbit/s; 8 MiB of memory;
    /// a target of 5 ms.
    fn default() -> QueueLimits {
        QueueLimits {
            bytes: 4 << 20,
            packets: 4_096,
            memory: 8 << 20,
            target: Duration::from_millis(5),
        }
    }
}

/// What is known of the lane that the queue is sent on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Bytes each second; 0 if unknown.
    pub(super) rate: u64,
    /// The round trip; zero if unknown.
    pub(super) rtt: Duration,
    /// Flows need a round trip's queue to keep the lane busy.
    pub(super) patient: bool,
}

impl Pace {
    /// The law for packets of `mtu` bytes.
    ///
    /// The interval is to be a round trip of the flows, of which the lane is a part (RFC 8289 §4.3), and the time in
    /// which their queue shrinks once they know: with less, what was sent before they could answer is dropped from
    /// again, and CUBIC cuts its window twice for one queue. Two round trips of the lane hold both. The target is a
    /// part of the lane's round trip, since each flow has a queue of its own and disturbs nobody with it, and never
    /// less than two packets take: a queue of one is no queue. It is a whole round trip beside rivals, where a flow's
    /// window must outlast the lane's cuts and its own, and while losses are sent again, for each of which a flow hears
    /// nothing for a round trip.
    pub(super) fn law(&self, mtu: usize, limits: &QueueLimits) -> Law {
        let packets = match self.rate {
            0 => Duration::ZERO,
            rate => Duration::from_micros((2 * mtu as u64).saturating_mul(1_000_000) / rate),
        };
        let trip = if self.patient {
            self.rtt.min(MOST_PATIENT_TARGET)
        } else {
            (self.rtt * 3 / 10).min(MOST_TARGET)
        };
        Law {
            target: limits.target.max(trip).max(packets),
            interval: (self.rtt * 2).clamp(LEAST_INTERVAL, MOST_INTERVAL),
        }
    }

    /// The bytes that an own stack may have waiting.
    pub(super) fn room(&self, mtu: usize) -> usize {
        let ahead = self.rate / (1_000 / STACK_AHEAD_MS);
        usize::try_from(ahead)
            .unwrap_or(usize::MAX)
            .max(2 * WIRE_BATCH * mtu)
    }
}

/// RFC 8289 §4.3: 100 ms serve paths of the Internet from 10 ms to 1 s.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// The most that a round trip makes of the target. CUBIC gives up 30 % of its window when it is told, so the queue that
/// keeps a lane busy is near three tenths of a round trip. In a model (the tests have a smaller one) one flow of 50 Mbit/s
/// and 50 ms got 93 % of the lane with a target of 5 ms, 97 with 10, 99 with 15. At 200 ms it would take 60; 30 got 94,
/// and people notice more.
const MOST_TARGET: Duration = Duration::from_millis(30);
/// The same beside rivals, whose queue on the path is as long. A CUBIC flow's window is 1.4 times the lane's before one
/// cut and 2 before two. In the simulator, with one CUBIC flow that came first on 50 Mbit/s, 50 ms and a queue of as much,
/// a lane got 26 % of an equal share with the usual target, 53 with half a round trip, 59 with a whole one and no more
/// with 200 ms. And one flow of 50 Mbit/s and 50 ms that loses 0.1 % got 39 Mbit/s with the usual target while all of it
/// was sent again, 43 with a whole round trip; with 0.2 % 36 and 42.
const MOST_PATIENT_TARGET: Duration = Duration::from_millis(100);
/// Beyond it a lane is dead, or measured wrong.
const MOST_INTERVAL: Duration = Duration::from_secs(1);
/// What an own stack may run ahead of the lane: long enough that a driver that wakes each millisecond or two never
/// finds nothing to send, short enough that nothing waits that a newer packet should overtake.
const STACK_AHEAD_MS: u64 = 10;
/// Packets that leave in one turn even on a slow lane; two batches are the least that keep it busy.
const WIRE_BATCH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn law(rate: u64, rtt_ms: u64) -> Law {
        let rtt = Duration::from_millis(rtt_ms);
        let patient = false;
        Pace { rate, rtt, patient }.law(1_400, &QueueLimits::default())
    }

    #[test]
    fn a_short_lane_aims_at_5_ms_within_100() {
        let expected = Law {
            target: Duration::from_millis(5),
            interval: Duration::from_millis(100),
        };
        assert_eq!(law(0, 0), expected);
        assert_eq!(law(6_250_000, 10), expected);
    }

    #[test]
    fn a_long_lane_may_hold_three_tenths_of_its_round_trip_up_to_30_ms() {
        assert_eq!(law(6_250_000, 50).target, Duration::from_millis(15));
        assert_eq!(law(6_250_000, 200).target, Duration::from_millis(30));
        assert_eq!(law(6_250_000, 200).interval, Duration::from_millis(400));
        assert_eq!(law(6_250_000, 60_000).interval, MOST_INTERVAL);
    }

    #[test]
    fn where_it_is_patient_a_lane_may_hold_a_round_trip_up_to_100_ms() {
        let law = |rtt_ms| {
            let pace = Pace {
                rate: 6_250_000,
                rtt: Duration::from_millis(rtt_ms),
                patient: true,
            };
            pace.law(1_400, &QueueLimits::default())
        };
        assert_eq!(law(50).target, Duration::from_millis(50));
        assert_eq!(law(300).target, MOST_PATIENT_TARGET);
        assert_eq!(law(300).interval, Duration::from_millis(600));
    }

    #[test]
    fn a_slow_lane_may_hold_two_packets() {
        assert_eq!(law(14_000, 50).target, Duration::from_millis(200));
    }

    #[test]
    fn an_own_stack_runs_10_ms_ahead_and_two_batches_at_least() {
        let rtt = Duration::ZERO;
        let room = |rate| {
            let patient = false;
            Pace { rate, rtt, patient }.room(1_400)
        };
        assert_eq!(room(0), 22_400);
        assert_eq!(room(12_500_000), 125_000);
    }
}
