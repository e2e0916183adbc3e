//! Opens lanes beside the link's and closes them, as [`Beside`](crate::client::beside::Beside) says.

use std::task::{Context, Poll};
use std::time::Instant;

use tracing::{debug, info};

use super::{Lanes, Outcome};
use crate::client::connect::{ConnectFailure, Connected};
use crate::io::carrier::{Carrier, LaneLoss};
use crate::proto::OpenError;
use crate::wire::LaneId;

impl Lanes {
    /// The link has a lane: others beside it are opened, or are not wanted any more.
    pub(super) fn begin_beside(
        &mut self,
        now: Instant,
        carrier: &mut Carrier,
        server: usize,
        lane: LaneId,
    ) {
        if let Some((joining, _)) = self.joining_beside.take() {
            carrier.remove_lane(now, joining, LaneLoss::Replaced);
        }
        let scheme = self
            .connector
            .servers
            .get(server)
            .map(|server| server.scheme);
        match scheme {
            Some(scheme) if scheme.is_stream() && self.beside.is_wanted() => {
                carrier.session_mut().stand_beside(lane, lane);
                self.beside.begin(now, server, lane);
            }
            Some(_) | None => self.beside.end(now),
        }
    }

    /// Opens the lanes beside the link's; returns whether anything has come about.
    pub(super) fn poll_beside(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        carrier: &mut Option<Carrier>,
    ) -> bool {
        let Some(carrier) = carrier
            .as_mut()
            .filter(|carrier| carrier.session().closed().is_none())
        else {
            self.joining_beside = None;
            return false;
        };
        let mut any = false;
        while let Some(lane) = self.beside.poll_retired(now) {
            any = true;
            carrier.remove_lane(now, lane, LaneLoss::Replaced);
        }
        if let Some(server) = self.beside.poll_attempt(now) {
            any = true;
            let address = self.connector.servers.get(server).cloned();
            match address.zip(carrier.session_mut().join_frame(now)) {
                Some((address, join)) => {
                    let lane = join.0;
                    debug!(%lane, server = %address, "opening another lane");
                    let attempt = self.connector.clone().attempt(address, Some(join), false);
                    self.joining_beside = Some((lane, Box::pin(attempt)));
                }
                None => self.beside.handle_failed(now),
            }
        }
        let Some((joining, future)) = &mut self.joining_beside else {
            return any;
        };
        let joining = *joining;
        let Poll::Ready(outcome) = future.as_mut().poll(cx) else {
            return any;
        };
        self.joining_beside = None;
        if let Err(error) = self.joined_beside(now, carrier, joining, outcome) {
            let failures = self.beside.failures();
            debug!(lane = %joining, %error, failures, "no other lane");
            carrier.remove_lane(now, joining, LaneLoss::Replaced);
            self.beside.handle_failed(now);
        }
        true
    }

    fn joined_beside(
        &mut self,
        now: Instant,
        carrier: &mut Carrier,
        joining: LaneId,
        outcome: Outcome,
    ) -> Result<(), NoLane> {
        let Connected::Joined {
            lane,
            id,
            mut first,
        } = outcome?
        else {
            return Err(NoLane::Other);
        };
        carrier.session_mut().open(now, id, &mut first)?;
        if id != joining || !carrier.add_lane(id, *lane, false) {
            return Err(NoLane::Other);
        }
        let Some(group) = self.beside.handle_joined(now, id) else {
            return Err(NoLane::Other);
        };
        carrier.session_mut().stand_beside(id, group);
        info!(session = %carrier.session().id(), lane = %id, lanes = self.beside.lanes(), "another lane carries the session");
        Ok(())
    }
}

/// Why there is no other lane.
#[derive(Debug, thiserror::Error)]
enum NoLane {
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    #[error("the answer to the join did not open: {0}")]
    Open(#[from] OpenError),
    #[error("there is no place for it")]
    Other,
}
