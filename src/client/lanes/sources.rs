//! From which address of this host the datagrams to each remote leave.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tracing::debug;

use crate::io::network::source_towards;
use crate::io::outside::Outside;
use crate::proto::Session;
use crate::wire::LaneId;

/// The address of this host towards each remote.
#[derive(Debug)]
pub(super) struct Sources {
    outside: Outside,
    pub(super) known: Vec<(SocketAddr, IpAddr)>,
}

impl Sources {
    /// Knows of none yet.
    pub(super) fn new(outside: Outside) -> Self {
        Self {
            outside,
            known: Vec::new(),
        }
    }

    /// Has datagram lanes whose way leads by another address of this host than before look for what it carries.
    pub(super) fn follow(&mut self, now: Instant, session: &mut Session) {
        let former = std::mem::take(&mut self.known);
        let lanes: Vec<LaneId> = session.lanes().collect();
        for lane in lanes {
            let Some(remote) = session.datagram_path(lane).map(|path| path.remote) else {
                continue;
            };
            let known = former.iter().find(|(known, _)| *known == remote);
            // Without a way, the one that comes back is compared with the one there was.
            let Some(source) = source_towards(remote, &self.outside)
                .ok()
                .or_else(|| known.map(|(_, source)| *source))
            else {
                continue;
            };
            if known.is_some_and(|(_, known)| *known != source) {
                debug!(%lane, "the lane leaves from another address of this host");
                session.handle_way_changed(now, lane);
            }
            self.known.push((remote, source));
        }
    }
}
