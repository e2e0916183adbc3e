//! What a session counts, as plain numbers; one place elsewhere exports them.

use std::ops::AddAssign;

use super::delivery::Fate;
use super::lane::LaneKind;
use crate::wire::LaneId;

/// Counters of a session since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets sealed.
    pub packets_sealed: u64,
    /// Bytes of IP packets sealed.
    pub packet_bytes_sealed: u64,
    /// Packets opened and delivered.
    pub packets_opened: u64,
    /// Bytes of IP packets opened and delivered.
    pub packet_bytes_opened: u64,
    /// Frames of relayed flows sealed.
    pub flow_frames_sealed: u64,
    /// Bytes of relayed flows sealed, those that were sent again included.
    pub flow_bytes_sealed: u64,
    /// Frames of relayed flows opened.
    pub flow_frames_opened: u64,
    /// Bytes of relayed flows opened.
    pub flow_bytes_opened: u64,
    /// Control frames sealed.
    pub control_sealed: u64,
    /// Control frames opened.
    pub control_opened: u64,
    /// Epochs begun after the first.
    pub rekeys: u64,
    /// Rekeys begun again for want of an answer.
    pub rekey_retries: u64,
    /// Lanes joined.
    pub lanes_joined: u64,
    /// Lanes given up for want of an answer.
    pub lanes_dead: u64,
    /// Control frames sent again on lanes that lose.
    pub control_resent: u64,
    /// Times a lane fell silent.
    pub lanes_silent: u64,
    /// Times a lane moved to another address.
    pub lanes_moved: u64,
    /// What was dropped, by reason.
    pub drops: Drops,
}

/// What was dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Frames that are none: header, length or type wrong.
    pub malformed_frames: u64,
    /// Frames on a lane that does not exist or is dead.
    pub unknown_lane: u64,
    /// Frames of an epoch that is not, or no longer, open.
    pub unknown_epoch: u64,
    /// Frames whose counter did not increase.
    pub replayed_counter: u64,
    /// Frames that did not open.
    pub failed_opens: u64,
    /// Packets whose header inside the seal is malformed, or that are empty.
    pub malformed_packets: u64,
    /// Packets whose source number came before.
    pub duplicate_packets: u64,
    /// Packets whose source number is older than the window.
    pub stale_packets: u64,
    /// Frames of unknown type that may be skipped.
    pub skipped_frames: u64,
    /// Frames of unknown type that may not; each ended its session.
    pub unknown_frames: u64,
    /// Control frames that were malformed or out of place; each ended its session.
    pub bad_control: u64,
    /// Rekey messages that did not fit: late, or for another epoch.
    pub stray_rekeys: u64,
    /// Pongs nobody asked for, and echoes of the wrong challenge.
    pub stray_answers: u64,
    /// Frames after the session was closed.
    pub after_close: u64,
    /// Join frames refused.
    pub refused_joins: u64,
    /// Control frames not sent because their queue was full.
    pub control_overflow: u64,
    /// Control frames not sent because their lane went away.
    pub control_without_lane: u64,
    /// Control frames not sent because the epoch has sealed all it may.
    pub control_without_key: u64,
    /// Halves of packets whose other half did not come in time.
    pub lost_pieces: u64,
    /// Packets put together from halves that nobody fetched before too many others were.
    pub unfetched_packets: u64,
    /// Events not reported because nobody took them.
    pub event_overflow: u64,
}

/// What the lanes of a session carried, up to one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All lanes together since the session began, those that have gone included.
    pub total: LaneStats,
    /// Each lane there is.
    pub lanes: Vec<LaneTraffic>,
}

impl Traffic {
    /// The lanes that carried more since `earlier` than what keeps a lane alive and measures it.
    pub fn busy_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = &'a LaneTraffic> {
        self.lanes.iter().filter(|lane| {
            let known = earlier.lanes.iter().find(|known| known.id == lane.id);
            let before = known.map_or_else(LaneStats::default, |known| known.stats);
            lane.stats.is_busier_than(&before)
        })
    }
}

/// What one lane carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneTraffic {
    /// Which one.
    pub id: LaneId,
    /// Its kind.
    pub kind: LaneKind,
    /// What was counted.
    pub stats: LaneStats,
}

/// Counters of one lane since it was joined, or the sums of several: of each direction what this end knows.
///
/// The packets that the far end counts as sent ([`OutgoingLane::packets`]) go one way each here:
/// [`IncomingLane::packets`] `+` [`repaired`](IncomingLane::repaired) `+` [`residual`](IncomingLane::residual) `-`
/// [`late`](IncomingLane::late), but for those that are missing still. On a single lane that holds for the lane, on
/// several for their sum: a packet may be sent again on another. What is missing is known from the session's first
/// datagram lane on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Away from here.
    pub outgoing: OutgoingLane,
    /// To here.
    pub incoming: IncomingLane,
}

/// Counters of what left on a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutgoingLane {
    /// Frames or datagrams of every kind.
    pub sent: u64,
    /// Their bytes, headers and tags included.
    pub sent_bytes: u64,
    /// Packets that left for the first time.
    pub packets: u64,
    /// Datagrams of those sent that were called lost; none on a stream lane.
    pub lost: u64,
    /// Those of them that arrived after all.
    pub late: u64,
    /// Packets sent again because they were asked for or lost.
    pub resent: u64,
    /// Packets sent twice because they could not wait for that.
    pub copied: u64,
    /// Parity.
    pub repairs: u64,
}

/// Counters of what came on a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncomingLane {
    /// Frames or datagrams of every kind that opened.
    pub received: u64,
    /// Their bytes, headers and tags included.
    pub received_bytes: u64,
    /// Frames and datagrams that did not open.
    pub failed_opens: u64,
    /// Packets that came for the first time.
    pub packets: u64,
    /// Packets missing on this lane that parity brought back.
    pub repaired: u64,
    /// Packets that had come before, and parity that said nothing new.
    pub wasted: u64,
    /// Packets missing on this lane that were given up.
    pub residual: u64,
    /// Packets that came, or that parity brought, after they were given up.
    pub late: u64,
}

/// Why a packet is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It was asked for or lost.
    Resend,
    /// It cannot wait for that: a copy leaves at once.
    Copy,
}

impl LaneStats {
    fn is_busier_than(&self, earlier: &Self) -> bool {
        let quiet = Self {
            outgoing: OutgoingLane {
                sent: self.outgoing.sent,
                sent_bytes: self.outgoing.sent_bytes,
                ..earlier.outgoing
            },
            incoming: IncomingLane {
                received: self.incoming.received,
                received_bytes: self.incoming.received_bytes,
                ..earlier.incoming
            },
        };
        *self != quiet
    }
}

impl OutgoingLane {
    /// Counts a packet that was sent again.
    pub fn count_again(&mut self, again: Again) {
        match again {
            Again::Resend => self.resent += 1,
            Again::Copy => self.copied += 1,
        }
    }

    /// Counts what became of a datagram.
    pub fn count_fate(&mut self, fate: Fate) {
        match fate {
            Fate::Delivered => {}
            Fate::Lost => self.lost += 1,
            Fate::Late => self.late += 1,
        }
    }
}

impl IncomingLane {
    /// Counts a packet that came, for the first time (`new`) or again.
    pub fn count_packet(&mut self, new: bool) {
        if new {
            self.packets += 1;
        } else {
            self.wasted += 1;
        }
    }
}

impl AddAssign for LaneStats {
    fn add_assign(&mut self, other: Self) {
        let Self { outgoing, incoming } = other;
        self.outgoing.sent += outgoing.sent;
        self.outgoing.sent_bytes += outgoing.sent_bytes;
        self.outgoing.packets += outgoing.packets;
        self.outgoing.lost += outgoing.lost;
        self.outgoing.late += outgoing.late;
        self.outgoing.resent += outgoing.resent;
        self.outgoing.copied += outgoing.copied;
        self.outgoing.repairs += outgoing.repairs;
        self.incoming.received += incoming.received;
        self.incoming.received_bytes += incoming.received_bytes;
        self.incoming.failed_opens += incoming.failed_opens;
        self.incoming.packets += incoming.packets;
        self.incoming.repaired += incoming.repaired;
        self.incoming.wasted += incoming.wasted;
        self.incoming.residual += incoming.residual;
        self.incoming.late += incoming.late;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(lanes: &[(u32, LaneStats)]) -> Traffic {
        let lanes = lanes.iter().map(|(id, stats)| LaneTraffic {
            id: LaneId(*id),
            kind: LaneKind::Datagram,
            stats: *stats,
        });
        Traffic {
            lanes: lanes.collect(),
            ..Traffic::default()
        }
    }

    fn busy(now: &Traffic, earlier: &Traffic) -> Vec<u32> {
        now.busy_since(earlier).map(|lane| lane.id.0).collect()
    }

    #[test]
    fn pings_and_reports_make_no_lane_busy_but_packets_do_and_what_becomes_of_them() {
        let mut stats = LaneStats::default();
        stats.incoming.count_packet(true);
        let before = traffic(&[(1, stats), (2, stats)]);
        stats.outgoing.sent += 1;
        stats.outgoing.sent_bytes += 40;
        stats.incoming.received += 1;
        stats.incoming.received_bytes += 40;
        assert_eq!(busy(&traffic(&[(1, stats), (2, stats)]), &before), [0; 0]);
        let mut came = stats;
        came.incoming.count_packet(false);
        assert_eq!(busy(&traffic(&[(1, stats), (2, came)]), &before), [2]);
        let mut lost = stats;
        lost.outgoing.count_fate(Fate::Lost);
        assert_eq!(busy(&traffic(&[(1, lost), (2, stats)]), &before), [1]);
        // One that was not there before.
        assert_eq!(busy(&traffic(&[(3, stats)]), &before), [3]);
        assert_eq!(
            busy(&traffic(&[(3, LaneStats::default())]), &before),
            [0; 0]
        );
    }
}
