//! What the parts of a lane tell each other.

use std::time::{Duration, Instant};

/// What a datagram wants of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A report: it carries something beside reports.
    Data,
    /// A report, though it carries nothing but a report that asks for one.
    Asking,
    /// Nothing: it carries only a report that does not ask. It does not count as in flight.
    Report,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Delivered,
    /// It is taken for lost.
    Lost,
    /// It was taken for lost and has arrived after all.
    Late,
}

/// What a congestion controller is told once a report was taken in, or once datagrams were called lost by
/// a timer.
///
/// Bytes are those of datagrams that count as in flight.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was made.
    pub now: Instant,
    /// Delivery rate in bytes per second over about one round trip, unless it cannot be told.
    pub rate: Option<u64>,
    /// Whether the application held the sender back when the newest datagram delivered left.
    pub application_limited: bool,
    /// Bytes delivered when the newest datagram delivered left: it ends a round trip if these
    /// were all delivered when the round began.
    pub prior_delivered: u64,
    /// Bytes in flight just after that datagram left.
    pub sent_in_flight: u64,
    /// Bytes delivered since that datagram left.
    pub volume: u64,
    /// Bytes delivered, ever.
    pub delivered: u64,
    /// Bytes lost, ever, those that came late included.
    pub lost: u64,
    /// Bytes this report says are delivered.
    pub newly_delivered: u64,
    /// Bytes newly called lost.
    pub newly_lost: u64,
    /// Bytes delivered that had been called lost.
    pub came_late: u64,
    /// Datagrams newly marked Congestion Experienced.
    pub newly_marked: u64,
    /// Datagrams whose fate became known.
    pub datagrams_decided: u64,
    /// Those of them that were lost.
    pub datagrams_lost: u64,
    /// Runs of consecutive losses among these.
    pub loss_bursts: u64,
    /// Bytes in flight now.
    pub in_flight: u64,
    /// Round-trip time of the newest datagram.
    pub round_trip: Option<Duration>,
    /// How long that datagram waited in queues on the way out.
    pub queue: Option<Duration>,
    /// The least of the last few of these, which jitter does not move.
    pub standing: Option<Duration>,
    /// Smoothed round-trip time.
    pub smoothed_round_trip: Duration,
    /// The lowest round-trip time of the last 10 to 20 s.
    pub lowest_round_trip: Duration,
}

impl Sample {
    pub(in crate::proto) const fn new(now: Instant) -> Self {
        Self {
            now,
            rate: None,
            application_limited: false,
            prior_delivered: 0,
            sent_in_flight: 0,
            volume: 0,
            delivered: 0,
            lost: 0,
            newly_delivered: 0,
            newly_lost: 0,
            came_late: 0,
            newly_marked: 0,
            datagrams_decided: 0,
            datagrams_lost: 0,
            loss_bursts: 0,
            in_flight: 0,
            round_trip: None,
            queue: None,
            standing: None,
            smoothed_round_trip: Duration::ZERO,
            lowest_round_trip: Duration::ZERO,
        }
    }
}
