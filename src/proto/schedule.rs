//! Which lane a packet takes, when, and in what portions: policy behind a trait.
//!
//! The session feeds the policy by `on_*` and asks it by getters. A fair queue stands in front of
//! [`Schedule::lane`], a pacer behind [`Schedule::release_at`], and the cut of large frames on slow
//! lanes in [`Schedule::frame_limit`].

use std::time::{Duration, Instant};

use adit_netstack::Offload;

use super::lane::LaneKind;
use crate::wire::{LaneId, MAX_FRAME};

/// What a policy may know of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketMeta {
    /// Bytes of the IP packet.
    pub len: usize,
    /// Hash of the flow it belongs to, 0 if unknown.
    pub flow: u64,
    /// Segmentation and checksum left undone.
    pub offload: Offload,
}

/// A scheduling policy.
pub trait Schedule: Send {
    /// A lane may be sent on from now.
    fn on_lane_up(&mut self, now: Instant, lane: LaneId, kind: LaneKind);

    /// A lane may no longer be sent on.
    fn on_lane_down(&mut self, now: Instant, lane: LaneId);

    /// Nobody answers on a lane just now; or, where `silent` is false, somebody does again.
    fn on_lane_silent(&mut self, now: Instant, lane: LaneId, silent: bool);

    /// A lane's smoothed round-trip time changed.
    fn on_rtt(&mut self, now: Instant, lane: LaneId, rtt: Duration);

    /// A packet of that many bytes was sealed for a lane.
    fn on_sent(&mut self, now: Instant, lane: LaneId, bytes: usize);

    /// The lane this packet should take, `None` while there is none.
    fn lane(&self, now: Instant, packet: &PacketMeta) -> Option<LaneId>;

    /// When a packet may leave on a lane; not after `now` means at once.
    fn release_at(&self, now: Instant, lane: LaneId) -> Instant;

    /// Largest frame a lane should be given now, in bytes; larger super-packets are cut.
    fn frame_limit(&self, lane: LaneId) -> usize;
}

/// Everything at once, whole, on the lane that was confirmed last of those on which somebody answers; on the last of all
/// where nobody does on any.
///
/// The newest, since a client that opens another lane does so because the older one fails it, and
/// the other end may take 20 s longer to notice. Not a silent one: an older lane may still stand beside it, and the two
/// ends may differ about which of two was confirmed last.
#[derive(Clone, Debug, Default)]
pub struct PassThrough {
    lanes: Vec<Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    lane: LaneId,
    silent: bool,
}

impl Schedule for PassThrough {
    fn on_lane_up(&mut self, _now: Instant, lane: LaneId, _kind: LaneKind) {
        self.lanes.retain(|known| known.lane != lane);
        let silent = false;
        self.lanes.push(Known { lane, silent });
    }

    fn on_lane_down(&mut self, _now: Instant, lane: LaneId) {
        self.lanes.retain(|known| known.lane != lane);
    }

    fn on_lane_silent(&mut self, _now: Instant, lane: LaneId, silent: bool) {
        if let Some(known) = self.lanes.iter_mut().find(|known| known.lane == lane) {
            known.silent = silent;
        }
    }

    fn on_rtt(&mut self, _now: Instant, _lane: LaneId, _rtt: Duration) {}

    fn on_sent(&mut self, _now: Instant, _lane: LaneId, _bytes: usize) {}

    fn lane(&self, _now: Instant, _packet: &PacketMeta) -> Option<LaneId> {
        let newest = || self.lanes.iter().rev();
        let speaks = newest().find(|known| !known.silent);
        speaks.or_else(|| newest().next()).map(|known| known.lane)
    }

    fn release_at(&self, now: Instant, _lane: LaneId) -> Instant {
        now
    }

    fn frame_limit(&self, _lane: LaneId) -> usize {
        MAX_FRAME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_lane_is_passed_over_while_another_speaks() {
        let now = Instant::now();
        let mut policy = PassThrough::default();
        let packet = PacketMeta::default();
        policy.on_lane_up(now, LaneId(0), LaneKind::Datagram);
        policy.on_lane_up(now, LaneId(1), LaneKind::Datagram);
        policy.on_lane_silent(now, LaneId(1), true);
        assert_eq!(policy.lane(now, &packet), Some(LaneId(0)));
        policy.on_lane_silent(now, LaneId(0), true);
        assert_eq!(policy.lane(now, &packet), Some(LaneId(1)), "all are silent");
        policy.on_lane_silent(now, LaneId(0), false);
        assert_eq!(policy.lane(now, &packet), Some(LaneId(0)));
        policy.on_lane_silent(now, LaneId(1), false);
        assert_eq!(policy.lane(now, &packet), Some(LaneId(1)));
    }

    #[test]
    fn the_lane_confirmed_last_is_taken_and_the_one_before_it_when_it_goes() {
        let now = Instant::now();
        let mut policy = PassThrough::default();
        let packet = PacketMeta::default();
        assert_eq!(policy.lane(now, &packet), None);
        policy.on_lane_up(now, LaneId(0), LaneKind::Stream);
        policy.on_lane_up(now, LaneId(3), LaneKind::Stream);
        policy.on_lane_up(now, LaneId(3), LaneKind::Stream);
        assert_eq!(policy.lane(now, &packet), Some(LaneId(3)));
        policy.on_lane_down(now, LaneId(3));
        assert_eq!(policy.lane(now, &packet), Some(LaneId(0)));
        policy.on_lane_down(now, LaneId(0));
        assert_eq!(policy.lane(now, &packet), None);
        assert_eq!(policy.release_at(now, LaneId(0)), now);
        assert_eq!(policy.frame_limit(LaneId(0)), MAX_FRAME);
    }
}
