//! Lanes side by side: which of them carry packets at once.
//!
//! A lane says by Beside that it stands in a group, named after the group's first lane. Packets go on the lane that was
//! confirmed last, as [`Schedule`](crate::proto::Schedule) has it; where that lane stands in a group, on all of it. So a
//! client that leaves a group for another way, or begins a new one, need not say what becomes of the old lanes: as
//! soon as a newer lane is confirmed, nothing is sent on them.

use super::state::{Session, State};
use crate::proto::keys::Role;
use crate::proto::lane::LaneKind;
use crate::proto::outbox::{Message, Route};
use crate::proto::schedule::PacketMeta;
use crate::wire::LaneId;

impl Session {
    /// Client: has a confirmed stream lane carry packets beside the others of the group whose first lane is `first`,
    /// and tells the server; returns false, and does nothing, for any other lane.
    pub fn stand_beside(&mut self, lane: LaneId, first: LaneId) -> bool {
        if self.state != State::Open || self.role != Role::Initiator {
            return false;
        }
        let found = self
            .lanes
            .iter_mut()
            .find(|known| known.id == lane && known.is_confirmed());
        let Some(found) = found.filter(|found| found.kind == LaneKind::Stream) else {
            return false;
        };
        found.group = Some(first);
        self.queue(Route::Lane(lane), Message::Beside { first });
        self.regroup();
        true
    }

    /// The lanes that packets may take at once, in the order of their ids; none where they take one lane alone.
    #[must_use]
    pub fn beside(&self) -> &[LaneId] {
        &self.beside
    }

    /// Finds the lanes beside the newest, after a lane has come, gone, or said where it stands.
    pub(super) fn regroup(&mut self) {
        let group = self
            .schedule
            .lane(self.origin, &PacketMeta::default())
            .and_then(|newest| self.lane_index(newest))
            .and_then(|index| self.lanes[index].group);
        self.beside.clear();
        if group.is_some() {
            let members = self
                .lanes
                .iter()
                .filter(|lane| lane.is_confirmed() && lane.group == group);
            self.beside.extend(members.map(|lane| lane.id));
            self.beside.sort_unstable();
        }
    }
}
