//! What a carrier says of its session and lanes.

use std::time::Instant;

use super::carrying::Carrier;
use crate::proto::{LaneKind, PacketMeta};
use crate::status::{Inner, LaneReport, Numbers, Tally, Transport};
use crate::wire::LaneId;

impl Carrier {
    /// Returns what the session and those before it in this carrier have carried and counted.
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally_of_session();
        tally.add_ended(self.past());
        // It goes on over all of them.
        tally.counters.add("carrier", self.stats());
        tally
    }

    /// The same of the present session alone, without what the carrier itself counts.
    pub(super) fn tally_of_session(&self) -> Tally {
        let stats = self.session().stats();
        let mut tally = Tally {
            numbers: Numbers {
                inner: Inner {
                    inner_sent_bytes: stats.packet_bytes_sealed + stats.flow_bytes_sealed,
                    inner_received_bytes: stats.packet_bytes_opened + stats.flow_bytes_opened,
                    inner_sent: stats.packets_sealed + stats.flow_frames_sealed,
                    inner_received: stats.packets_opened + stats.flow_frames_opened,
                },
                carried: self.session().carried().into(),
            },
            ..Tally::default()
        };
        let counters = &mut tally.counters;
        counters.add("session", stats);
        counters.add("datapath", &self.datapath_stats());
        counters.add("queue_streams", &self.waiting().stats());
        counters.drops("queue_streams", "expired", self.waiting().expired());
        counters.add("spread", &self.spread_stats());
        tally
    }

    /// Lists the lanes there are, the one that takes packets marked.
    pub fn lane_reports(&mut self, now: Instant) -> Vec<LaneReport> {
        let in_use = self.session_mut().lane_for(now, PacketMeta::default());
        let session = self.session();
        let lanes = session.traffic().lanes.into_iter();
        lanes
            .map(|lane| LaneReport {
                lane: lane.id.0,
                transport: match lane.kind {
                    LaneKind::Datagram => Transport::Udp,
                    LaneKind::Stream => self.transport(lane.id),
                },
                in_use: in_use == Some(lane.id),
                rtt_seconds: session.rtt(lane.id).map(|rtt| rtt.as_secs_f64()),
                carried: lane.stats.into(),
            })
            .collect()
    }

    fn transport(&self, id: LaneId) -> Transport {
        let stream = self.stream_of(id);
        stream.map_or(Transport::Tcp, |stream| stream.transport())
    }
}
