//! The server's driver of one session: lanes on one side, egress on the other.
//!
//! # Theory of operation
//!
//! One task owns one session, its lanes, and its netstack ([`Local`]). Uplink packets go
//! from the lane through the filter straight to the TUN device, to the netstack, or to
//! another client's downlink. Downlink packets wait in the session's [`Downlink`] until the session
//! takes them, then in a fair queue until a lane has room, and are sealed in the buffer they were read into.
//!
//! A session is `Unconfirmed` until its first sealed frame has opened (at most
//! `CONFIRM_TIMEOUT`), then `Live`: it enters the registry, gets its lease, and its
//! addresses are pushed. A guest's is neither: it is there to say the token of an invitation, for [`GUEST_TIME`] at most.
//! Without a lane it waits for [`LINGER`] for its client to come back.
//!
//! # Limits
//!
//! The limits of its parts; one turn moves at most one read of each lane and
//! `DOWNLINK_PER_TURN` packets.

use std::net::IpAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{Offload, Packet, Unreachable, protocol};
use rand::RngExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::{Span, debug, debug_span, info, warn};

use super::datagrams;
use super::egress::Egress;
use super::filter::DestinationPolicy;
use super::leases::Owner;
use super::local::{DNS_PORT, Local};
use super::registry::{Ending, Entrant, Join, Joined, Order, addresses};
use super::router::{Downlink, Queued};
use super::shared::{Shared, Way};
use super::status::Look;
use super::unconfirmed::Place;
use crate::io::carrier::{Carrier, CarrierEvent, Deliver};
use crate::io::clock;
use crate::io::lane::StreamLane;
use crate::io::memory;
use crate::io::turns::Turns;
use crate::io::udp::Inbox;
use crate::proto::budget::Share;
use crate::proto::relayed::Pieces;
use crate::proto::{Session, SessionEvent};
use crate::status::{SessionReport, Tally};
use crate::wire::{
    CloseReason, FlowFrame, InvitationId, LaneId, PACKET_HEADROOM, TAILROOM, Token, Verdict,
};

/// The task that owns one session on the server.
pub struct SessionDriver {
    shared: Arc<Shared>,
    carrier: Carrier,
    /// What the carrier drains, for its counters.
    inbox: Arc<Inbox>,
    owner: Owner,
    span: Span,
    downlink: Arc<Downlink>,
    joins: mpsc::Receiver<Order>,
    sender: mpsc::Sender<Order>,
    /// How others tell it to end.
    ending: Ending,
    /// Resolves when they do.
    told_to_end: Pin<Box<WaitForCancellationFutureOwned>>,
    state: State,
    addresses: Vec<IpAddr>,
    local: Option<Local>,
    laneless_since: Option<Instant>,
    /// The same for the registry.
    laneless: Arc<AtomicBool>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The last run of turns ended with something left to move.
    gave_way: bool,
    timer: Pin<Box<Sleep>>,
    stats: UplinkStats,
    /// Its client's name when it began: whoever is taken out has none any more.
    client: String,
    began: Instant,
}

enum State {
    /// Nobody has proven yet that the handshake was not a replay.
    Unconfirmed {
        until: Instant,
        /// Given back once the session counts as a client's.
        _seat: Seat,
    },
    /// Somebody who was invited, and may say its token.
    Guest {
        until: Instant,
        invitation: InvitationId,
        _seat: Seat,
        _place: OwnedSemaphorePermit,
    },
    Live,
    /// It is told why it is not served.
    Refused,
    Ended,
}

/// What a session takes up while it is unconfirmed.
enum Seat {
    /// Of a stranger's connection.
    Connection { _permit: OwnedSemaphorePermit },
    /// Among the sessions of handshakes over datagrams.
    Datagrams { _place: Place },
}

/// Who wants to be enrolled by a session, and may have one for that.
#[derive(Debug)]
pub struct Guest {
    invitation: InvitationId,
    place: OwnedSemaphorePermit,
}

impl Guest {
    /// Takes a place for somebody who has named `invitation`; `None` while all are taken, which is counted.
    pub fn admit(shared: &Shared, invitation: InvitationId) -> Option<Self> {
        match shared.guests.clone().try_acquire_owned() {
            Ok(place) => Some(Self { invitation, place }),
            Err(_full) => {
                let crowded_out = &shared.guest_stats.crowded_out;
                crowded_out.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Uplink packets of one session, dropped or passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkStats {
    /// Packets passed on to the egress.
    pub passed: u64,
    /// Frames of relayed flows passed on to the egress.
    pub flow_frames: u64,
    /// Packets from an address that is not the client's.
    pub foreign_source: u64,
    /// Packets, or frames of flows, to where the policy lets nobody go.
    pub denied: u64,
    /// Packets to other clients while that is not allowed.
    pub to_client_denied: u64,
    /// Packets to an inner address that no session holds.
    pub to_nobody: u64,
    /// Packets to another client whose queue was full.
    pub to_client_full: u64,
    /// Bytes that are no IP packet.
    pub unreadable: u64,
    /// Packets that came before the session had its addresses.
    pub early: u64,
}

impl SessionDriver {
    /// Makes the driver of a session whose handshake has just been answered on `lane`; `None`
    /// when another session has its handle.
    pub fn new(
        shared: Arc<Shared>,
        session: Session,
        lane: StreamLane,
        owner: Owner,
        permit: OwnedSemaphorePermit,
        guest: Option<Guest>,
    ) -> Option<Self> {
        let carrier = Carrier::new(session, LaneId::FIRST, lane);
        let seat = Seat::Connection { _permit: permit };
        Self::driving(shared, carrier, owner, seat, CONFIRM_TIMEOUT, guest)
    }

    /// The same for a handshake over datagrams. From now on the session is found by those that
    /// follow.
    pub fn over_datagrams(
        shared: Arc<Shared>,
        session: Session,
        owner: Owner,
        place: Place,
        guest: Option<Guest>,
    ) -> Option<Self> {
        let pool = shared.pool.clone();
        let carrier = Carrier::over_datagrams(session, LaneId::FIRST, None, pool);
        let seat = Seat::Datagrams { _place: place };
        let patience = datagrams::CONFIRM_TIMEOUT;
        Self::driving(shared, carrier, owner, seat, patience, guest)
    }

    fn driving(
        shared: Arc<Shared>,
        mut carrier: Carrier,
        owner: Owner,
        seat: Seat,
        patience: Duration,
        guest: Option<Guest>,
    ) -> Option<Self> {
        let now = clock::now();
        let (sender, joins) = mpsc::channel(JOINS);
        let ending = Ending::default();
        let state = match guest {
            None => State::Unconfirmed {
                until: now + patience,
                _seat: seat,
            },
            Some(Guest { invitation, place }) => State::Guest {
                until: now + GUEST_TIME,
                invitation,
                _seat: seat,
                _place: place,
            },
        };
        let id = carrier.session().id();
        let span = debug_span!("session", %id);
        let inbox = shared.inboxes.open(id)?;
        carrier.set_inbox(inbox.clone());
        Some(Self {
            downlink: shared.router.downlink(),
            stopped: Box::pin(shared.stop.clone().cancelled_owned()),
            shared,
            carrier,
            inbox,
            owner,
            span,
            joins,
            sender,
            told_to_end: Box::pin(ending.ended()),
            ending,
            state,
            addresses: Vec::new(),
            local: None,
            laneless_since: None,
            laneless: Arc::default(),
            gave_way: false,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            stats: UplinkStats::default(),
            client: String::new(),
            began: now,
        })
    }

    /// Drives the session to its end.
    pub async fn run(mut self) {
        let span = self.span.clone();
        // The turns are bounded by the driver itself.
        tokio::task::unconstrained(std::future::poll_fn(|cx| {
            let _entered = span.enter();
            self.poll(cx)
        }))
        .await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // While there is always something to move, nothing else would look at what is due.
        let now = clock::now();
        if std::mem::take(&mut self.gave_way) && self.arm(cx, now) {
            self.handle_timeout(now);
        }
        let turns = Turns::begin();
        loop {
            let now = clock::now();
            if turns.are_over(now) {
                break;
            }
            let mut any = self.poll_orders(cx, now);
            any |= self.poll_in(cx, now);
            any |= self.carrier.send_first(now);
            // Before the downlink, which may fill the lane in every turn.
            any |= self.poll_local(cx, now, turns);
            any |= self.poll_downlink(cx, now);
            any |= self.carrier.poll_send(cx, now);
            any |= self.poll_events(now);
            if self.poll_end(now) {
                return Poll::Ready(());
            }
            if !any {
                if !self.arm(cx, now) {
                    return Poll::Pending;
                }
                self.handle_timeout(clock::now());
            }
        }
        self.gave_way = true;
        Turns::give_way(cx);
        Poll::Pending
    }

    // ---- from outside ------------------------------------------------------------------

    fn poll_orders(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        if self.carrier.session().closed().is_none() {
            let reason = if self.stopped.as_mut().poll(cx).is_ready() {
                Some(CloseReason::ShuttingDown)
            } else if self.told_to_end.as_mut().poll(cx).is_ready() {
                self.ending.reason()
            } else {
                None
            };
            if let Some(reason) = reason {
                self.close(now, reason);
                any = true;
            }
        }
        // Strangers can send joins as fast as they like.
        for _ in 0..JOINS {
            let Poll::Ready(Some(order)) = self.joins.poll_recv(cx) else {
                break;
            };
            any = true;
            match order {
                Order::Join(join) => self.join(now, join),
                // Whoever asked may have gone meanwhile.
                Order::Look(answer) => drop(answer.send(Box::new(self.look(now)))),
            }
        }
        any
    }

    fn join(&mut self, now: Instant, join: Join) {
        let Join {
            frame,
            lane,
            answer,
        } = join;
        let joined = match self.carrier.session_mut().handle_join(now, &frame) {
            Ok(id) => {
                self.laneless_since = None;
                if self.carrier.add_lane(id, *lane, true) {
                    info!(lane = %id, "lane joined");
                    Joined::Taken
                } else {
                    self.carrier.session_mut().remove_lane(now, id);
                    Joined::Gone
                }
            }
            Err(error) => {
                debug!(%error, "a join was refused");
                Joined::Refused(lane)
            }
        };
        // The connection may have ended meanwhile.
        let _ = answer.send(joined);
    }

    fn look(&mut self, now: Instant) -> Look {
        let lanes = self.carrier.lane_reports(now);
        let tally = self.tally();
        Look {
            id: self.carrier.session().id(),
            owner: self.owner,
            report: SessionReport {
                client: Some(self.shared.client_name(&self.owner.key)),
                carries: None,
                addresses: self.addresses.clone(),
                age_seconds: now.saturating_duration_since(self.began).as_secs_f64(),
                flows: self.local.as_ref().map_or(0, Local::flows),
                rtt_seconds: lanes
                    .iter()
                    .find(|lane| lane.in_use)
                    .and_then(|lane| lane.rtt_seconds),
                lanes,
                total: tally.numbers,
                drops: tally.drops(),
            },
            tally,
        }
    }

    /// All that it and its parts have counted.
    fn tally(&self) -> Tally {
        let mut tally = self.carrier.tally();
        let counters = &mut tally.counters;
        counters.add("uplink", &self.stats);
        let (full, total) = self.downlink.dropped();
        counters.drops("downlink", "full", full);
        counters.drops("downlink", "all_full", total);
        counters.drops("inbox", "full", self.inbox.dropped());
        if let Some(local) = &self.local {
            local.count(counters);
        }
        tally
    }

    /// Closes the session; the driver ends when its carrier has let the lanes go.
    fn close(&mut self, now: Instant, reason: CloseReason) {
        self.carrier.session_mut().close(now, reason);
    }

    // ---- uplink ------------------------------------------------------------------------

    fn poll_in(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let policy = self.shared.policy();
        let mut uplink = Uplink {
            shared: &self.shared,
            policy: &policy,
            addresses: &self.addresses,
            local: &mut self.local,
            stats: &mut self.stats,
            now,
        };
        let any = self.carrier.poll_deliver(cx, now, &mut uplink);
        // A datagram may have been a join.
        if self.carrier.lanes() > 0 {
            self.laneless_since = None;
        }
        any
    }

    // ---- downlink ----------------------------------------------------------------------

    fn poll_downlink(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        for _ in 0..DOWNLINK_PER_TURN {
            if !self.carrier.takes_packets(now) {
                break;
            }
            match self.downlink.poll_pop(cx) {
                Poll::Ready(Queued { buffer, offload }) => {
                    any = true;
                    self.carrier.push(now, buffer, offload);
                }
                Poll::Pending => break,
            }
        }
        any
    }

    fn poll_local(&mut self, cx: &mut Context<'_>, now: Instant, turns: Turns) -> bool {
        match self.local.as_mut() {
            Some(local) => {
                let any = local.poll(
                    cx,
                    now,
                    turns,
                    &self.shared.pool,
                    &mut self.carrier.sink(now),
                );
                any | self.carrier.poll_flows(now, local.relayed())
            }
            None => false,
        }
    }

    // ---- the session itself ------------------------------------------------------------

    fn poll_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.carrier.poll_event(now) {
            any = true;
            match event {
                CarrierEvent::LaneLost { lane, cause, left } => {
                    // Often the client's wish: it has moved to another.
                    debug!(%lane, %cause, left, "lane lost");
                    if left == 0 {
                        self.laneless_since = Some(now);
                    }
                }
                CarrierEvent::LaneDoubtful { lane, feedback } => {
                    debug!(%lane, ?feedback, "the network says a lane does not arrive");
                }
                CarrierEvent::Session(SessionEvent::Confirmed) => self.confirmed(now),
                CarrierEvent::Session(SessionEvent::Enrol(token)) => self.enrol(&token),
                CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => {
                    debug!(%reason, "the client closed the session");
                    self.end(true);
                }
                CarrierEvent::Session(SessionEvent::LaneMoved(lane)) => {
                    info!(%lane, "the client's address has changed");
                }
                CarrierEvent::Session(event) => debug!(?event, "session"),
            }
        }
        any
    }

    /// Answers a guest's token.
    fn enrol(&mut self, token: &Token) {
        let State::Guest { invitation, .. } = &self.state else {
            return;
        };
        let (key, enrolment) = (self.owner.key, &self.shared.enrolment);
        let (verdict, name) = enrolment.enrol(clock::unix(), invitation, token, key);
        let stats = &self.shared.guest_stats;
        if verdict == Verdict::Enrolled {
            stats.enrolled.fetch_add(1, Ordering::Relaxed);
            info!(client = name, public_key = %key, "a client has enrolled");
        } else {
            stats.refused.fetch_add(1, Ordering::Relaxed);
            info!(%verdict, "somebody who was invited has not been enrolled");
        }
        self.carrier.session_mut().answer_enrol(verdict, &name);
    }

    fn confirmed(&mut self, now: Instant) {
        if !matches!(self.state, State::Unconfirmed { .. }) {
            return;
        }
        self.state = State::Live;
        self.client = self.shared.client_name(&self.owner.key);
        let entrant = Entrant {
            id: self.carrier.session().id(),
            owner: self.owner,
            joins: self.sender.clone(),
            ending: self.ending.clone(),
            downlink: self.downlink.clone(),
            client: self.shared.client_name(&self.owner.key),
            laneless: self.laneless.clone(),
        };
        let entered = self.shared.registry.enter(entrant, clock::unix());
        // Whoever takes a client out does it in the other order, so that one of us sees the other.
        if self.shared.peers.find(&self.owner.key).is_none() {
            let (key, registry) = (&self.owner.key, &self.shared.registry);
            registry.end_all_of(key, CloseReason::Revoked, clock::unix());
        }
        match entered {
            Ok(lease) => {
                self.shared.ledger.open(&self.owner.key);
                self.addresses = addresses(&lease);
                let offer = self.shared.offer();
                let config = self.shared.inner_config(&lease, &offer);
                self.local = Some(Local::new(
                    self.shared.gateways.clone(),
                    config.mtu,
                    matches!(self.shared.egress, Egress::User),
                    offer.limits,
                    Share::new(self.shared.memory.clone(), offer.memory),
                    self.shared.dns.client(&self.owner.key),
                    rand::rng().random(),
                ));
                let client = self.shared.client_name(&self.owner.key);
                // Inner addresses, of our own giving: where the client is, is not said above debug.
                info!(client, addresses = ?self.addresses, "session up");
                self.carrier.session_mut().configure(config);
            }
            Err(error) => {
                let client = self.shared.client_name(&self.owner.key);
                warn!(client, %error, "a session is not served");
                self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
                self.state = State::Refused;
                self.close(now, error.close_reason());
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.carrier.handle_timeout(now);
        let over = (self.local.as_mut()).is_some_and(|local| local.handle_timeout(now));
        if over {
            self.shared.pool.give_back();
            memory::give_back();
        }
    }

    fn poll_end(&mut self, now: Instant) -> bool {
        let laneless = self.carrier.lanes() == 0;
        self.laneless.store(laneless, Ordering::Relaxed);
        let over = match &self.state {
            State::Ended => true,
            State::Unconfirmed { until, .. } | State::Guest { until, .. } => {
                now >= *until || self.carrier.lanes() == 0
            }
            State::Live | State::Refused => self
                .laneless_since
                .is_some_and(|since| now >= since + LINGER),
        };
        // Whoever closed it: the last word has left, or nobody wanted to read it.
        let closed = self.carrier.session().closed().is_some() && self.carrier.lanes() == 0;
        if over || closed {
            self.end(false);
            return true;
        }
        false
    }

    fn end(&mut self, left: bool) {
        let ledger = &self.shared.ledger;
        match self.state {
            State::Live => {
                ledger.enter(self.carrier.session().id(), &self.owner.key, &self.tally())
            }
            State::Unconfirmed { .. } | State::Guest { .. } | State::Refused => {
                ledger.enter_refused(&self.tally());
            }
            State::Ended => {}
        }
        if let State::Live = self.state {
            self.shared
                .registry
                .remove(self.carrier.session().id(), clock::unix(), left);
            self.shared.stats.ended.fetch_add(1, Ordering::Relaxed);
            info!(client = self.client, "session ended");
            let dropped = self.downlink.dropped();
            let inbox_dropped = self.inbox.dropped();
            debug!(uplink = ?self.stats, downlink_dropped = ?dropped, inbox_dropped, "counters");
            self.carrier.log_counters();
            if let Some(local) = &self.local {
                debug!(local = ?local.counters(), "counters");
            }
        }
        self.state = State::Ended;
    }

    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let due = [
            self.carrier.poll_timeout(),
            self.local.as_mut().and_then(Local::poll_timeout),
            self.laneless_since.map(|since| since + LINGER),
            match &self.state {
                State::Unconfirmed { until, .. } | State::Guest { until, .. } => Some(*until),
                State::Live | State::Refused | State::Ended => None,
            },
        ]
        .into_iter()
        .flatten()
        .min();
        match due {
            Some(due) if due <= now => true,
            Some(due) => {
                self.timer.as_mut().reset(due.into());
                self.timer.as_mut().poll(cx).is_ready()
            }
            None => false,
        }
    }
}

impl Drop for SessionDriver {
    fn drop(&mut self) {
        self.shared.inboxes.close(self.carrier.session().id());
        // A panic in a turn must not leave the session in the tables.
        match self.state {
            State::Live => self.end(false),
            State::Unconfirmed { .. } | State::Guest { .. } | State::Refused | State::Ended => {}
        }
    }
}

/// Where an uplink packet may go.
struct Uplink<'a> {
    shared: &'a Shared,
    policy: &'a DestinationPolicy,
    addresses: &'a [IpAddr],
    local: &'a mut Option<Local>,
    stats: &'a mut UplinkStats,
    now: Instant,
}

impl Deliver for Uplink<'_> {
    fn packet(&mut self, frame: &mut [u8], range: Range<usize>, offload: Offload) {
        self.handle(frame, range, offload);
    }

    /// Where a relayed flow leads is judged by each of its frames, as it is by each packet of others: the policy may
    /// change. Destinations inside are reached by packets alone.
    fn flow(&mut self, frame: &FlowFrame, bytes: Pieces<'_>) {
        let Some(local) = self.local.as_mut() else {
            self.stats.early += 1;
            return;
        };
        let destination = match frame {
            FlowFrame::Open { destination, .. } => Some(*destination),
            FlowFrame::Data { flow, .. }
            | FlowFrame::Credit { flow, .. }
            | FlowFrame::Fin { flow, .. }
            | FlowFrame::Reset { flow, .. } => local.flow_destination(*flow),
        };
        let allowed = destination.is_none_or(|destination| {
            let ip = destination.ip();
            !self.shared.gateways.contains(&ip)
                && !self.shared.is_inner(ip)
                && self.policy.allows(ip)
        });
        if allowed {
            self.stats.flow_frames += 1;
        } else {
            self.stats.denied += 1;
        }
        local.handle_flow(self.now, frame, bytes, allowed);
    }
}

impl Uplink<'_> {
    fn handle(&mut self, frame: &mut [u8], range: Range<usize>, offload: Offload) {
        let Some(local) = self.local.as_mut() else {
            self.stats.early += 1;
            return;
        };
        let Some(bytes) = frame.get_mut(range.clone()) else {
            return;
        };
        let Ok(packet) = Packet::parse(bytes) else {
            self.stats.unreadable += 1;
            return;
        };
        match (self.shared).way(self.policy, self.addresses, &packet) {
            Way::Foreign => self.stats.foreign_source += 1,
            Way::Gateway => {
                self.stats.passed += 1;
                match &self.shared.egress {
                    Egress::Tun(tun) if answers_the_host(bytes, &packet) => {
                        tun.send(frame, range, &packet, offload);
                    }
                    Egress::Tun(_) | Egress::User => {
                        local.handle_packet(self.now, bytes, offload);
                    }
                }
            }
            Way::Client => self.pass_to_client(frame, range, &packet, offload),
            Way::Denied => {
                self.stats.denied += 1;
                local.refuse(bytes, Unreachable::AdminProhibited);
            }
            Way::Out => {
                self.stats.passed += 1;
                match &self.shared.egress {
                    Egress::Tun(tun) => tun.send(frame, range, &packet, offload),
                    Egress::User => local.handle_packet(self.now, bytes, offload),
                }
            }
        }
    }

    fn pass_to_client(
        &mut self,
        frame: &mut [u8],
        range: Range<usize>,
        packet: &Packet,
        offload: Offload,
    ) {
        let Some(bytes) = frame.get(range) else {
            return;
        };
        if !self.shared.client_to_client.load(Ordering::Relaxed) {
            self.stats.to_client_denied += 1;
            if let Some(local) = self.local.as_mut() {
                local.refuse(bytes, Unreachable::AdminProhibited);
            }
            return;
        }
        if packet
            .check_offload(bytes, offload, self.shared.mtu)
            .is_err()
        {
            self.stats.unreadable += 1;
            return;
        }
        let Some(downlink) = self.shared.router.route(packet.destination) else {
            self.stats.to_nobody += 1;
            if let Some(local) = self.local.as_mut() {
                local.refuse(bytes, Unreachable::Host);
            }
            return;
        };
        let mut buffer = self
            .shared
            .pool
            .sized(PACKET_HEADROOM + bytes.len() + TAILROOM);
        buffer[PACKET_HEADROOM..PACKET_HEADROOM + bytes.len()].copy_from_slice(bytes);
        if downlink.push(Queued { buffer, offload }) {
            self.stats.passed += 1;
            downlink.wake();
        } else {
            self.stats.to_client_full += 1;
        }
    }
}

/// Whether a packet for the gateway may be about a connection that the host itself has opened to the client: with egress
/// `tun` the gateway's address is the host's own, and a port of the client may be meant for it.
///
/// A segment that opens a connection never is: what the host listens on stays out of the clients' reach. Of others the
/// kernel knows whether they belong to one of its connections.
fn answers_the_host(bytes: &[u8], packet: &Packet) -> bool {
    let transport = bytes.get(packet.header_len..).unwrap_or_default();
    let Some((_, destination)) = packet.ports else {
        // An error about what the host has sent: "unreachable" (RFC 792; RFC 4443, section 3.1).
        let unreachable = match packet.protocol {
            protocol::ICMP => Some(&3),
            protocol::ICMPV6 => Some(&1),
            _ => return false,
        };
        return packet.fragment.is_none() && transport.first() == unreachable;
    };
    let flags = transport.get(TCP_FLAGS).copied().unwrap_or(SYN);
    packet.protocol == protocol::TCP && destination != DNS_PORT && flags & (SYN | ACK | RST) != SYN
}

/// Where the flags of a segment are, and some of them (RFC 9293, section 3.1).
const TCP_FLAGS: usize = 13;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Joins of one client's new lanes that wait for the driver, and those served per turn.
const JOINS: usize = 8;

/// How long a handshake may stay without the client's first sealed frame.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guest may stay: a round trip for its token and one for the answer, again where they are lost.
pub const GUEST_TIME: Duration = Duration::from_secs(5);

/// How long a session waits for a client that has lost its last lane: long enough for a
/// change of network, short enough that a killed client does not hold memory for long.
pub const LINGER: Duration = Duration::from_secs(60);

/// Packets taken from the downlink queue per turn.
const DOWNLINK_PER_TURN: usize = 64;
