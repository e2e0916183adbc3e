//! The client's lanes: attempts under way, and which server each lane leads to.
//!
//! # Theory of operation
//!
//! When to try which server is [`Link`]'s to say. This carries it out on the carrier:
//!
//! ```text
//!              ┌─ stream ───── connect, TLS, Join and Init in one flight ──▶ joined or fresh
//!  poll_attempt┤
//!              └─ datagrams ─┬ a session: ways ──▶ Join ── JOIN_ALONE ──▶ Join and Init ──▶ joined or fresh
//!                            └ none: Init ──▶ fresh
//! ```
//!
//! An Init beside the Join, as streams have it, would make the server begin a session that nobody
//! needs; so over datagrams it follows later, and only when the session has no lane that is of use. Its answer may be
//! the first sign that the way is open again, and says nothing of whether the server still has the session: so the
//! Joins are repeated then, and the fresh session is begun only if they stay unanswered for [`RESUME_PATIENCE`]. Where the
//! server answers by closing the session, the fresh one is dropped: whether and when to come back is the link's to say.
//! A lane joins by every family of addresses the server has; the first that is confirmed stays, or the last of those
//! that are confirmed at once.
//!
//! Of streams there may be several side by side: [`Beside`] says when another is opened beside the link's, and each
//! joins as above, without an Init.
//!
//! After a change of the network, lanes that leave from another address of this host than before look anew for what
//! their way carries. Changes that move nothing, of which there may be many, cost nothing.
//!
//! # Limits
//!
//! One attempt for each server of the list, two joining lanes for each attempt, and one attempt beside them.

mod beside;
mod sources;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use self::sources::Sources;
use super::beside::Beside;
use super::connect::{ConnectFailure, Connected, Connector, Way};
use super::link::{Change, Link};
use super::notices::Notices;
use crate::config::Scheme;
use crate::io::carrier::{Carrier, LaneLoss};
use crate::proto::SessionEvent;
use crate::wire::{CloseReason, LaneId};

/// The lanes of a client.
pub(super) struct Lanes {
    connector: Arc<Connector>,
    link: Link,
    attempts: Vec<Attempt>,
    /// Which server each lane leads to.
    known: Vec<(LaneId, usize)>,
    sources: Sources,
    beside: Beside,
    /// The attempt at a lane beside, and the lane.
    joining_beside: Option<(LaneId, Pending)>,
    /// What people have been told.
    notices: Notices,
    /// A fresh session that waits for joins.
    offer: Option<Offer>,
    /// What the last attempt came to, if there has been no other since.
    failure: Option<Failed>,
}

/// What an attempt came to that has brought nothing.
struct Failed {
    text: String,
    /// A server has answered, and the handshake came to nothing.
    refused: bool,
}

/// A fresh session, which the server begins with the first that the client sends in it.
struct Offer {
    server: usize,
    carrier: Box<Carrier>,
    until: Instant,
}

/// An attempt that has not come to anything yet.
type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What an attempt comes to.
type Outcome = Result<Connected, ConnectFailure>;

/// An attempt under way.
struct Attempt {
    server: usize,
    future: Option<Pending>,
    /// Lanes that it is to join to the session there is.
    joining: Vec<LaneId>,
    /// How long the joins may go unanswered.
    deadline: Option<Instant>,
    /// A fresh session is asked for besides.
    greets: bool,
    /// When people are told that nobody has answered.
    quiet_at: Option<Instant>,
}

impl Lanes {
    /// Begins with none; the first attempt is due at once. `seed` is for the jitter.
    pub(super) fn new(now: Instant, connector: Arc<Connector>, seed: u64) -> Self {
        let schemes = connector.servers.iter().map(|server| server.scheme);
        Self {
            link: Link::new(now, schemes, seed),
            beside: Beside::new(now, connector.lanes, seed ^ 1),
            joining_beside: None,
            notices: Notices::new(connector.servers.len()),
            sources: Sources::new(connector.dialer.outside().clone()),
            connector,
            attempts: Vec::new(),
            known: Vec::new(),
            offer: None,
            failure: None,
        }
    }

    /// Starts what is due and takes what has come about; returns whether anything has.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        carrier: &mut Option<Carrier>,
    ) -> bool {
        let mut any = false;
        while let Some(server) = self.link.poll_retired(now) {
            any = true;
            self.close_lane(now, carrier, server);
        }
        while let Some(server) = self.link.poll_attempt(now) {
            any = true;
            self.start(now, carrier, server);
        }
        let mut at = 0;
        while let Some(attempt) = self.attempts.get_mut(at) {
            let polled = attempt
                .future
                .as_mut()
                .map(|future| future.as_mut().poll(cx));
            match polled {
                Some(Poll::Ready(outcome)) => {
                    any = true;
                    attempt.future = None;
                    let server = attempt.server;
                    self.ended(now, carrier, server, outcome);
                    self.drop_unwanted(now, carrier);
                    // What is left may have changed places.
                    at = 0;
                }
                Some(Poll::Pending) | None => at += 1,
            }
        }
        any | self.poll_beside(cx, now, carrier)
    }

    /// Takes an event of the session.
    pub(super) fn handle_event(
        &mut self,
        now: Instant,
        carrier: &mut Option<Carrier>,
        event: &SessionEvent,
    ) {
        debug!(?event, "session");
        match event {
            SessionEvent::LaneConfirmed(lane) => self.confirmed(now, carrier, *lane),
            SessionEvent::LaneSilent(lane) => {
                if let Some(server) = self.server_of(*lane) {
                    let next = match self.connector.servers.len() {
                        1 => "nobody answers; trying again",
                        _ => "nobody answers; trying others",
                    };
                    info!(%lane, server = %self.connector.servers[server], "{next}");
                    self.link.handle_silent(now, server);
                }
            }
            SessionEvent::LaneHeard(lane) => {
                if let Some(server) = self.server_of(*lane) {
                    info!(%lane, server = %self.connector.servers[server], "the server answers again");
                    self.link.handle_heard(now, server);
                }
            }
            SessionEvent::LaneDead(_)
            | SessionEvent::LaneMoved(_)
            | SessionEvent::Confirmed
            | SessionEvent::Configured(_)
            | SessionEvent::Enrol(_)
            | SessionEvent::Enrolled { .. }
            | SessionEvent::PeerClosed(_) => {}
        }
        self.drop_unwanted(now, carrier);
    }

    /// A lane is gone; returns whether it was the last, which is news.
    pub(super) fn handle_lost(
        &mut self,
        now: Instant,
        carrier: &mut Option<Carrier>,
        lane: LaneId,
        cause: &LaneLoss,
    ) -> bool {
        debug!(%lane, %cause, "lane lost");
        if self.beside.handle_lost(now, lane) {
            info!(%lane, %cause, left = self.beside.lanes(), "lost one of several lanes");
            return false;
        }
        if let Some(known) = self.known.iter_mut().find(|(known, _)| *known == lane)
            && let Some(other) = self.beside.promote(known.1)
        {
            info!(%lane, %cause, left = self.beside.lanes(), "lost one of several lanes");
            known.0 = other;
            return false;
        }
        let mut failed = None;
        for attempt in &mut self.attempts {
            if attempt.joining.contains(&lane) {
                attempt.joining.retain(|joining| *joining != lane);
                if attempt.joining.is_empty() && attempt.future.is_none() {
                    failed = Some(attempt.server);
                }
            }
        }
        if let Some(server) = failed.filter(|_| self.offer.is_none()) {
            self.link.handle_failed(now, server);
        }
        let lost = self.server_of(lane);
        self.known.retain(|(known, _)| *known != lane);
        let news = lost.is_some_and(|server| self.link.handle_lost(now, server));
        self.drop_unwanted(now, carrier);
        news
    }

    /// The server has closed the session.
    pub(super) fn handle_closed(&mut self, now: Instant, reason: CloseReason) {
        self.known.clear();
        self.beside.forget();
        self.joining_beside = None;
        self.offer = None;
        self.link.handle_closed(now, reason);
        self.drop_unwanted(now, &mut None);
    }

    /// The way to the server may be another one now, or there may be one again.
    pub(super) fn look_again(&mut self, now: Instant, carrier: &mut Option<Carrier>) {
        match self.link.handle_network_change(now) {
            Change::Retry => self.drop_unwanted(now, carrier),
            Change::Probe => {
                if let Some(carrier) = carrier.as_mut() {
                    self.sources.follow(now, carrier.session_mut());
                    carrier.session_mut().probe();
                }
            }
        }
    }

    /// Returns when [`Lanes::handle_timeout`] or [`Lanes::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let attempts = self.attempts.iter();
        let deadlines = attempts.flat_map(|attempt| [attempt.deadline, attempt.quiet_at]);
        let others = [
            self.link.poll_timeout(),
            self.beside.poll_timeout(),
            self.offer.as_ref().map(|offer| offer.until),
        ];
        deadlines.chain(others).flatten().min()
    }

    /// Goes on from joins that nobody has answered.
    pub(super) fn handle_timeout(&mut self, now: Instant, carrier: &mut Option<Carrier>) {
        if let Some(offer) = self.offer.take_if(|offer| offer.until <= now) {
            self.begin(now, carrier, offer.server, *offer.carrier);
        }
        for attempt in &mut self.attempts {
            let quiet = attempt.quiet_at.take_if(|at| *at <= now).is_some();
            if quiet
                && self.known.is_empty()
                && !self.link.is_revoked()
                && self.notices.unanswered(attempt.server)
            {
                let server = &self.connector.servers[attempt.server];
                let way = if server.scheme.is_stream() {
                    "a firewall on the way drops it"
                } else {
                    "no UDP passes on the way"
                };
                info!(
                    %server,
                    "no answer yet; if it stays so: {way}, or the server is down, or this is not its address and port, or \
                     `server_key` is not its key, or this client's is not among its `clients`"
                );
            }
        }
        let mut at = 0;
        while let Some(attempt) = self.attempts.get_mut(at) {
            at += 1;
            if attempt
                .deadline
                .take_if(|deadline| *deadline <= now)
                .is_none()
            {
                continue;
            }
            let server = attempt.server;
            match self.connector.servers.get(server) {
                Some(address) if !attempt.greets && self.link.wants_fresh() => {
                    debug!(server = %address, "nobody answers the join; asking for a new session");
                    attempt.greets = true;
                    let connector = self.connector.clone();
                    attempt.future = Some(Box::pin(connector.attempt(address.clone(), None, true)));
                }
                Some(_) | None => {
                    debug!(server, "nobody answers the join");
                    self.link.handle_failed(now, server);
                }
            }
        }
        self.drop_unwanted(now, carrier);
    }

    /// Returns from when on the tunnel counts as down, since nobody answers on the lane in use.
    pub(super) fn down_at(&self) -> Option<Instant> {
        self.link.down_at()
    }

    /// Returns whether every server that answers says that it lets us in no more.
    pub(super) fn is_revoked(&self) -> bool {
        self.link.is_revoked()
    }

    /// Returns whether the last server that answered an attempt refused its handshake.
    pub(super) fn is_refused(&self) -> bool {
        self.failure.as_ref().is_some_and(|failed| failed.refused)
    }

    /// Returns what the last attempt came to, where it brought no lane.
    pub(super) fn last_failure(&self) -> Option<String> {
        self.failure.as_ref().map(|failed| failed.text.clone())
    }

    fn start(&mut self, now: Instant, carrier: &mut Option<Carrier>, server: usize) {
        let Some(address) = self.connector.servers.get(server).cloned() else {
            return;
        };
        let fresh = self.link.wants_fresh();
        if self.known.is_empty() && !self.link.is_revoked() && self.notices.connecting(server) {
            info!(server = %address, "connecting");
        } else {
            debug!(server = %address, fresh, failures = self.link.failures(), "connecting");
        }
        let connector = self.connector.clone();
        let session = carrier.as_mut().map(Carrier::session_mut);
        let open = session.filter(|session| session.closed().is_none());
        let mut attempt = Attempt {
            server,
            future: None,
            joining: Vec::new(),
            deadline: None,
            greets: fresh,
            quiet_at: open.is_none().then_some(now + QUIET),
        };
        attempt.future = Some(match (address.scheme, open) {
            (Scheme::Udp, Some(_)) => {
                attempt.greets = false;
                Box::pin(connector.ways(address))
            }
            (_, None) => Box::pin(connector.attempt(address, None, true)),
            (Scheme::Tcp | Scheme::Tls | Scheme::Wss | Scheme::Ws, Some(session)) => {
                let join = session.join_frame(now);
                attempt.joining.extend(join.as_ref().map(|(lane, _)| *lane));
                Box::pin(connector.attempt(address, join, fresh))
            }
        });
        self.attempts.push(attempt);
    }

    fn ended(
        &mut self,
        now: Instant,
        carrier: &mut Option<Carrier>,
        server: usize,
        outcome: Outcome,
    ) {
        match outcome {
            Ok(Connected::Fresh(fresh)) => {
                if self.repeat_joins(carrier, server) {
                    debug!(
                        server,
                        "a fresh session is offered; asking once more for the one there is"
                    );
                    self.offer = Some(Offer {
                        server,
                        carrier: fresh,
                        until: now + RESUME_PATIENCE,
                    });
                } else {
                    self.begin(now, carrier, server, *fresh);
                }
            }
            Ok(Connected::Joined {
                lane,
                id,
                mut first,
            }) => {
                let Some(carrier) = carrier.as_mut() else {
                    return self.link.handle_failed(now, server);
                };
                if let Err(error) = carrier.session_mut().open(now, id, &mut first) {
                    debug!(%error, "the answer to the join did not open");
                    return self.link.handle_failed(now, server);
                }
                carrier.add_lane(id, *lane, false);
                self.joined(now, carrier, server, id);
            }
            Ok(Connected::Ways(ways)) => self.join(now, carrier, server, ways),
            Err(error) => {
                let failures = self.link.failures();
                // One a minute is for people, the others for those who look closer.
                let is_news = self.known.is_empty() && !self.link.is_revoked();
                // What becomes of a revocation is told once it holds for all that answer.
                if is_news && !error.is_revocation() && self.notices.failed(now, server) {
                    warn!(%error, "cannot reach the server; trying on");
                } else {
                    debug!(%error, failures, "cannot reach the server");
                }
                self.failure = Some(Failed {
                    text: error.to_string(),
                    refused: matches!(error, ConnectFailure::Handshake { .. }),
                });
                if error.is_revocation() {
                    self.link.handle_revoked(now, server);
                } else {
                    self.link.handle_failed(now, server);
                }
            }
        }
    }

    /// Sends the datagram Joins to a server again; returns whether there are any.
    fn repeat_joins(&mut self, carrier: &mut Option<Carrier>, server: usize) -> bool {
        let attempt = self.attempts.iter().find(|one| one.server == server);
        let (Some(attempt), Some(carrier)) = (attempt, carrier.as_mut()) else {
            return false;
        };
        let session = carrier.session_mut();
        let mut any = false;
        for lane in &attempt.joining {
            any |= session.repeat_join(*lane);
        }
        any
    }

    /// Begins a fresh session in place of the one there may be.
    fn begin(
        &mut self,
        now: Instant,
        carrier: &mut Option<Carrier>,
        server: usize,
        fresh: Carrier,
    ) {
        info!(session = %fresh.session().id(), server = %self.connector.servers[server], "session established");
        let carrier = match carrier {
            Some(carrier) => {
                carrier.replace(fresh);
                carrier
            }
            None => carrier.insert(fresh),
        };
        self.known = vec![(LaneId::FIRST, server)];
        self.sources.follow(now, carrier.session_mut());
        for attempt in &mut self.attempts {
            // They were of the session before.
            attempt.joining.clear();
        }
        self.offer = None;
        self.notices.connected();
        self.failure = None;
        self.link.handle_fresh(now, server);
        self.beside.forget();
        self.joining_beside = None;
        self.begin_beside(now, carrier, server, LaneId::FIRST);
    }

    /// Joins a lane by each of the ways.
    fn join(&mut self, now: Instant, carrier: &mut Option<Carrier>, server: usize, ways: Vec<Way>) {
        let attempt = self.attempts.iter_mut().find(|one| one.server == server);
        let (Some(attempt), Some(carrier)) = (attempt, carrier.as_mut()) else {
            return self.link.handle_failed(now, server);
        };
        for Way { path, receiver } in ways {
            attempt
                .joining
                .extend(carrier.join_datagrams(now, receiver, path));
        }
        if attempt.joining.is_empty() {
            return self.link.handle_failed(now, server);
        }
        let patience = if self.link.wants_fresh() {
            JOIN_ALONE
        } else {
            JOIN_PATIENCE
        };
        attempt.deadline = Some(now + patience);
    }

    /// A datagram lane has been confirmed.
    fn confirmed(&mut self, now: Instant, carrier: &mut Option<Carrier>, lane: LaneId) {
        let attempt = self
            .attempts
            .iter_mut()
            .find(|attempt| attempt.joining.contains(&lane));
        if let Some(attempt) = attempt
            // A stream's answer comes by its attempt.
            && let Some(carrier) = carrier.as_mut()
            && carrier.session().datagram_path(lane).is_some()
        {
            attempt.joining.retain(|joining| *joining != lane);
            let server = attempt.server;
            let joining = &attempt.joining;
            if carrier
                .session()
                .lanes()
                .any(|other| joining.contains(&other))
            {
                // Another way has answered since, before anybody looked: the server has both echoes
                // and uses the lane that it confirmed last.
                return carrier.remove_lane(now, lane, LaneLoss::Replaced);
            }
            self.joined(now, carrier, server, lane);
        }
    }

    fn joined(&mut self, now: Instant, carrier: &mut Carrier, server: usize, lane: LaneId) {
        let before = self.known.iter().map(|(_, known)| *known).min();
        let resumed = match before {
            Some(before) if server < before => "session goes on by a better way",
            Some(_) | None => "session resumed",
        };
        info!(session = %carrier.session().id(), %lane, server = %self.connector.servers[server], "{resumed}");
        for attempt in &mut self.attempts {
            attempt.joining.retain(|joining| *joining != lane);
        }
        self.offer = None;
        // The lane there was to the same server is not needed any more.
        let former = self.known.iter().position(|(_, known)| *known == server);
        if let Some(former) = former {
            let (former, _) = self.known.swap_remove(former);
            carrier.remove_lane(now, former, LaneLoss::Replaced);
        }
        self.known.push((lane, server));
        self.sources.follow(now, carrier.session_mut());
        self.notices.connected();
        self.failure = None;
        self.link.handle_connected(now, server);
        self.begin_beside(now, carrier, server, lane);
    }

    fn close_lane(&mut self, now: Instant, carrier: &mut Option<Carrier>, server: usize) {
        if let Some(at) = self.known.iter().position(|(_, known)| *known == server) {
            let (lane, _) = self.known.swap_remove(at);
            if let Some(carrier) = carrier.as_mut() {
                carrier.remove_lane(now, lane, LaneLoss::Replaced);
            }
        }
    }

    /// Ends the attempts that the link does not want any more.
    fn drop_unwanted(&mut self, now: Instant, carrier: &mut Option<Carrier>) {
        let link = &self.link;
        self.attempts.retain(|attempt| {
            let wanted = link.is_trying(attempt.server);
            if !wanted && let Some(carrier) = carrier.as_mut() {
                for lane in &attempt.joining {
                    carrier.remove_lane(now, *lane, LaneLoss::Replaced);
                }
            }
            wanted
        });
    }

    fn server_of(&self, lane: LaneId) -> Option<usize> {
        let found = self.known.iter().find(|(known, _)| *known == lane);
        found.map(|(_, server)| *server)
    }
}

/// How long nobody answers an attempt before people hear of it: four Inits, and sooner than they wonder.
const QUIET: Duration = Duration::from_secs(3);

/// How long a join is waited for before a new session is asked for as well: a server that has the
/// session answers within a round trip, one that was restarted never does.
const JOIN_ALONE: Duration = Duration::from_millis(600);

/// How long a fresh session waits for joins that were repeated when it was offered: the way is open, so it takes a
/// round trip.
const RESUME_PATIENCE: Duration = Duration::from_millis(500);

/// How long a join is waited for while another lane serves: the session repeats it four times.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);
