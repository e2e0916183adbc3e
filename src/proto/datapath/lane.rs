//! One datagram lane: what flies on it, what arrived on it, and what its loss tells repair.

use std::time::{Duration, Instant};

use adit_fec::LossReport;

use crate::proto::congestion::{Bbr, Metrics};
use crate::proto::delivery::{Flight, LossCounts, Missed, Permit, Received, SentCounts};
use crate::wire::LaneId;

/// A datagram lane of a [`Datapath`](super::Datapath).
#[derive(Debug)]
pub(super) struct DatapathLane {
    pub(super) id: LaneId,
    pub(super) flight: Flight<Datagram>,
    pub(super) received: Received,
    /// Longest datagram.
    pub(super) datagram: usize,
    /// What window and pacer last said of the next datagram.
    pub(super) permit: Permit,
    /// A probe is to be sent, whatever there is to say.
    pub(super) probe: bool,
    /// Its socket takes nothing, and wakes whoever waits for it when it does again.
    pub(super) blocked: bool,
    /// What repair was told of its losses.
    told: LossCounts,
}

/// What a datagram was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    /// Bytes.
    pub(super) len: u16,
    pub(super) content: Content,
}

/// What a datagram carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A packet for the first time.
    Source {
        /// Its number.
        number: u64,
    },
    /// A packet again.
    Resend {
        /// Its number.
        number: u64,
    },
    /// Parity.
    Repair,
    /// A control frame.
    Control,
    /// A report.
    Report,
}

/// What a lane counted and thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneCounts {
    /// What was sent.
    pub sent: SentCounts,
    /// What was lost of it.
    pub loss: LossCounts,
    /// Datagrams that arrived.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Those that did not.
    pub missed: Missed,
    /// Smoothed round-trip time.
    pub round_trip: Duration,
    /// How long datagrams wait on the way out.
    pub queueing_delay: Duration,
    /// What congestion control thinks.
    pub congestion: Metrics,
}

impl DatapathLane {
    /// Starts on an unknown path.
    pub(super) fn new(
        now: Instant,
        id: LaneId,
        datagram: usize,
        round_trip: Duration,
        seed: u64,
    ) -> Self {
        let bbr = Bbr::new(now, datagram, round_trip, seed);
        Self {
            id,
            flight: Flight::new(now, round_trip, Box::new(bbr)),
            received: Received::new(now, round_trip),
            datagram,
            permit: Permit::Now,
            probe: false,
            blocked: false,
            told: LossCounts::default(),
        }
    }

    /// When something is to leave, if nothing else happens: not while the socket takes nothing.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        let leaving = [self.received.poll_timeout(), self.release()];
        leaving
            .into_iter()
            .flatten()
            .min()
            .filter(|_| !self.blocked)
    }

    /// When the pacer lets the next datagram go, if that is what it waits for.
    fn release(&self) -> Option<Instant> {
        match self.permit {
            Permit::At(at) => Some(at),
            Permit::Now | Permit::Full => None,
        }
    }

    /// What the lane's losses since the last call mean for repair; `unrepaired` packets were asked
    /// for since.
    pub(super) fn loss_report(&mut self, unrepaired: u32) -> LossReport {
        let sent = self.flight.sent();
        let counts = sent.loss();
        let news = counts.since(self.told);
        self.told = counts;
        let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        LossReport {
            sent: narrow(news.decided),
            lost: narrow(news.lost),
            bursts: narrow(news.bursts),
            unrepaired,
            // Most of what is lost while the queue is near its longest was dropped there. Where nothing was
            // lost that is told as well, or the queue's share of losses would seem larger than it is, and the
            // path's smaller.
            delay_rising: if news.lost > 0 {
                news.congestive * 2 > news.lost
            } else {
                news.crowded * 2 > news.decided
            },
            rtt: sent.round_trip(),
        }
    }

    pub(super) fn counts(&self) -> LaneCounts {
        let sent = self.flight.sent();
        let (received, received_bytes) = self.received.totals();
        LaneCounts {
            sent: sent.counts(),
            loss: sent.loss(),
            received,
            received_bytes,
            missed: self.received.missed(),
            round_trip: sent.round_trip(),
            queueing_delay: sent.queueing_delay(),
            congestion: self.flight.congestion().metrics(),
        }
    }
}
