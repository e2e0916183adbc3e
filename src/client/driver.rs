//! The client's driver: one task that owns the session, its lanes, the netstack and every
//! proxied socket.
//!
//! # Theory of operation
//!
//! ```text
//!  Tunnel handles ── commands ──▶ ┌────────┐ ── connect, udp ──▶ ┌───────┐
//!  proxied sockets ◀── relay ───▶ │ driver │ ◀──── events ────── │ stack │
//!                                 └───┬────┘ ◀──── packets ────▶ └───────┘
//!                                  carrier: session + lanes ◀──▶ server
//! ```
//!
//! Each turn drains every input once, lets the netstack put what it has to say straight
//! into the lane's buffer, flushes, and only waits when nothing moved. A turn is bounded, so
//! the runtime gets the thread back.
//!
//! When to try which server is the business of a state machine of its own, `Link`; what
//! lives behind the inner address, of `Inside`. Losing the lane changes nothing about the
//! flows: the netstack gets no room to send, the flows wait, and the next lane carries them
//! on, because the server leases the same inner address to the same client and instance. Only
//! when the server gives another address are the flows of the old one ended.
//!
//! For `adit run` a [`Device`] stands where the netstack does: packets are moved between it and the session, and there
//! is nothing that could be asked for.
//!
//! # Limits
//!
//! Requests that come before the first session wait at most [`TUNNEL_WAIT`], and at most
//! `MAX_WAITING` of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::Offload;
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connect::Connector;
use super::device::Device;
use super::down::{Down, TUNNEL_WAIT};
use super::inside::Inside;
use super::lanes::Lanes;
use super::resolve::NameQueries;
use super::status::Look;
use super::tunnel::{Command, Commands, ConnectError, Reply};
use crate::io::carrier::{Carrier, CarrierEvent, Deliver, LaneLoss, LaneSink};
use crate::io::clock::{self, SuspendWatch};
use crate::io::network::NetworkWatch;
use crate::io::outside::Outside;
use crate::io::turns::Turns;
use crate::io::udp::{FORBIDDEN, Feedback};
use crate::proto::SessionEvent;
use crate::proto::budget::Share;
use crate::proto::relayed::Pieces;
use crate::status::{SessionReport, Tally};
use crate::wire::{CloseReason, FlowFrame, InnerConfig, LaneId};

/// The one task that owns what the client's tunnel is made of.
pub struct Driver {
    commands: Commands,
    commands_open: bool,
    inner: watch::Sender<Option<InnerConfig>>,
    network: Pin<Box<dyn Future<Output = NetworkWatch> + Send>>,
    stop: CancellationToken,
    lanes: Lanes,
    carrier: Option<Carrier>,
    inside: Option<Inside>,
    /// What packets go to and come from instead of the inside, if that is so.
    device: Option<Device>,
    /// What the netstack was made with.
    mtu: u16,
    waiting: VecDeque<Waiting>,
    resolver: NameQueries,
    /// What all flows may hold.
    share: Share,
    /// How what goes beside the tunnel leaves the host.
    outside: Outside,
    /// Until this is over nothing is connected to, and whoever asks how it is is answered.
    turn: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// The last run of turns ended with something left to move.
    gave_way: bool,
    timer: Pin<Box<Sleep>>,
    suspend: SuspendWatch,
    closing: Option<Instant>,
    /// What sessions that have ended have carried and counted.
    past: Tally,
    /// Since when the session has its addresses.
    began: Instant,
    /// It was told that this host's own firewall drops what is sent in this session.
    forbidden: bool,
    /// Why there is no tunnel, as the askers were told.
    down: Option<Down>,
    /// Why the server has ended the last session, if it would end the next for the same reason.
    refused: Option<Down>,
}

/// Why the driver has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop.
    Stopped,
    /// Nobody holds a handle to the tunnel any more.
    Abandoned,
}

impl Driver {
    /// Makes a driver that starts to connect when first polled.
    pub fn new(
        connector: Arc<Connector>,
        commands: Commands,
        inner: watch::Sender<Option<InnerConfig>>,
        resolver: NameQueries,
        network: NetworkWatch,
        share: Share,
        stop: CancellationToken,
    ) -> Self {
        let now = clock::now();
        let outside = connector.dialer.outside().clone();
        let lanes = Lanes::new(now, connector, rand::rng().random());
        Self {
            commands,
            commands_open: true,
            inner,
            network: Box::pin(next_change(network)),
            stop,
            lanes,
            carrier: None,
            inside: None,
            device: None,
            mtu: 0,
            waiting: VecDeque::new(),
            resolver,
            share,
            outside,
            turn: None,
            gave_way: false,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            suspend: SuspendWatch::new(),
            closing: None,
            past: Tally::default(),
            began: now,
            forbidden: false,
            down: Some(Down::Connecting),
            refused: None,
        }
    }

    /// Puts a device at the inner end, in place of a netstack: commands are not served then.
    #[must_use]
    pub fn over(self, device: Device) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    /// Waits with connecting until `turn` is over: another session of this client's key is to be the first.
    #[must_use]
    pub fn after(self, turn: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            turn: Some(Box::pin(turn)),
            ..self
        }
    }

    /// Drives the tunnel until it is told to stop.
    pub async fn run(mut self) -> Exit {
        let stop = self.stop.clone();
        let mut stopped = Box::pin(stop.cancelled_owned());
        // The turns are bounded by the driver itself; tokio's own budget would only make
        // sockets look blocked in the middle of one.
        tokio::task::unconstrained(std::future::poll_fn(move |cx| {
            if self.closing.is_none() && stopped.as_mut().poll(cx).is_ready() {
                self.begin_close();
            }
            self.poll(cx)
        }))
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Exit> {
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
            let mut any = self.poll_commands(cx, now);
            if !self.commands_open && self.closing.is_none() {
                self.begin_close();
            }
            any |= self.poll_network(cx, now);
            any |= self.poll_lanes(cx, now);
            self.follow_session(now);
            any |= self.poll_in(cx, now);
            any |= self.poll_inside(cx, now, turns);
            any |= self.poll_out(cx, now);
            any |= self.poll_session_events(now);
            if let Some(exit) = self.poll_exit(now) {
                return Poll::Ready(exit);
            }
            if !any {
                if !self.arm(cx, now) {
                    self.tell_down(now);
                    return Poll::Pending;
                }
                self.handle_timeout(clock::now());
            }
        }
        self.tell_down(now);
        self.gave_way = true;
        Turns::give_way(cx);
        Poll::Pending
    }

    // ---- commands ----------------------------------------------------------------------

    fn poll_commands(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        for _ in 0..COMMANDS_PER_TURN {
            if !self.commands_open {
                break;
            }
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(command)) => {
                    any = true;
                    self.handle_command(now, command);
                }
                Poll::Ready(None) => self.commands_open = false,
                Poll::Pending => break,
            }
        }
        any
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        // Also before there is a session.
        if let Command::Look { answer } = command {
            // Whoever asked may have gone meanwhile.
            let _gone = answer.send(Box::new(self.look(now)));
            return;
        }
        if let Some(down) = self.refused.filter(|down| down.is_final())
            && command.wants_tunnel()
        {
            if let Some(reply) = reply_of(command) {
                reply.send(Err(ConnectError::TunnelDown(down)));
            }
            return;
        }
        let Some(inside) = self.inside.as_mut() else {
            self.postpone(now, command);
            return;
        };
        inside.obey(now, &self.outside, command);
    }

    /// Keeps a request until there is a session, for a while.
    fn postpone(&mut self, now: Instant, command: Command) {
        match &command {
            Command::Connect { .. }
            | Command::BindUdp { .. }
            | Command::BindEcho { .. }
            | Command::Listen { .. }
            | Command::Associate { .. } => {
                if self.waiting.len() < MAX_WAITING && self.closing.is_none() {
                    self.waiting.push_back(Waiting {
                        until: now + TUNNEL_WAIT,
                        command,
                    });
                } else if let Some(reply) = reply_of(command) {
                    reply.send(Err(ConnectError::TunnelDown(Down::Ended)));
                }
            }
            // There is no flow before there is a session.
            Command::Idle { .. } => {
                if let Some(reply) = reply_of(command) {
                    reply.send(Ok(()));
                }
            }
            // About handles that were never granted.
            Command::Attach { .. }
            | Command::Abort { .. }
            | Command::SendUdp { .. }
            | Command::UnbindUdp { .. }
            | Command::Unlisten { .. }
            | Command::Refuse { .. }
            | Command::Dissociate { .. }
            | Command::JudgeAgain
            | Command::Look { .. }
            | Command::Resolved { .. } => {}
        }
    }

    fn give_up_waiting(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|w| now >= w.until) {
            if let Some(reply) = self.waiting.pop_front().and_then(|w| reply_of(w.command)) {
                reply.send(Err(ConnectError::TunnelDown(Down::Ended)));
            }
        }
    }

    /// Says how the session is, and what all sessions there were have counted.
    fn look(&mut self, now: Instant) -> Look {
        let mut tally = self.past.clone();
        let lanes = match self.carrier.as_mut() {
            Some(carrier) => {
                tally.add(&carrier.tally());
                carrier.lane_reports(now)
            }
            None => Vec::new(),
        };
        if let Some(inside) = &self.inside {
            inside.count(&mut tally.counters);
        }
        let held = u64::try_from(self.share.held_by_all()).unwrap_or(u64::MAX);
        tally.counters.level("flows", "held_bytes", held);
        let config = self.inner.borrow().clone();
        let session = self.carrier.as_ref().map(|carrier| {
            let of_session = carrier.tally();
            SessionReport {
                client: None,
                carries: None,
                addresses: config.map(|config| config.addresses()).unwrap_or_default(),
                age_seconds: now.saturating_duration_since(self.began).as_secs_f64(),
                flows: self.inside.as_ref().map_or(0, Inside::flow_count),
                rtt_seconds: lanes
                    .iter()
                    .find(|lane| lane.in_use)
                    .and_then(|lane| lane.rtt_seconds),
                lanes,
                total: of_session.numbers,
                drops: of_session.drops(),
            }
        });
        Look {
            session,
            tally,
            down: self.why_down(now),
            last_failure: self.lanes.last_failure(),
        }
    }

    /// Why nothing goes through the tunnel now.
    fn why_down(&self, now: Instant) -> Option<Down> {
        let was_up = self.inner.borrow().is_some();
        let has_lane = (self.carrier.as_ref())
            .is_some_and(|carrier| carrier.session().lanes().next().is_some());
        if self.refused.is_some() {
            self.refused
        } else if has_lane && was_up {
            (self.lanes.down_at().is_some_and(|at| at <= now)).then_some(Down::Silent)
        } else if self.lanes.is_refused() {
            Some(Down::Handshake)
        } else if was_up {
            Some(Down::Lost)
        } else {
            Some(Down::Connecting)
        }
    }

    /// Tells those who wait for the tunnel how it is, when that has changed.
    fn tell_down(&mut self, now: Instant) {
        let down = self.why_down(now);
        if down != self.down {
            debug!(?down, "the tunnel");
            self.down = down;
            self.commands.tell(down);
        }
    }

    // ---- the link to the server --------------------------------------------------------

    fn poll_network(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Poll::Ready(watch) = self.network.as_mut().poll(cx) else {
            return false;
        };
        self.network = Box::pin(next_change(watch));
        debug!("the network has changed");
        self.lanes.look_again(now, &mut self.carrier);
        true
    }

    fn poll_lanes(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.closing.is_some() || !self.has_turn(cx) {
            return false;
        }
        let any = self.lanes.poll(cx, now, &mut self.carrier);
        if self.lanes.is_revoked() && self.refused != Some(Down::Revoked) {
            self.revoked_at_the_door(now);
        }
        any
    }

    /// Every server that answers a handshake has said that it lets this client in no more.
    fn revoked_at_the_door(&mut self, now: Instant) {
        self.tell_revoked();
        // No server knows the session any more that there may have been.
        if let Some(carrier) = self.carrier.take() {
            self.past.add_ended(&carrier.tally());
        }
        self.end_by(now, CloseReason::Revoked);
    }

    fn tell_revoked(&self) {
        warn!(
            "this client was revoked: the server lets its key in no more, unless whoever runs it says `adit clients restore` or invites it anew; asking again every 20 s"
        );
    }

    /// Lets go of what waits for a session that the server has ended.
    fn end_by(&mut self, now: Instant, reason: CloseReason) {
        self.refused = Down::of(reason);
        if let Some(device) = self.device.as_mut() {
            device.handle_closed(reason);
        }
        if reason == CloseReason::Revoked {
            if let Some(inside) = self.inside.as_mut() {
                inside.end_all(now);
            }
            for waiting in std::mem::take(&mut self.waiting) {
                self.handle_command(now, waiting.command);
            }
        }
    }

    fn has_turn(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(turn) = self.turn.as_mut()
            && turn.as_mut().poll(cx).is_pending()
        {
            return false;
        }
        self.turn = None;
        true
    }

    fn lane_lost(&mut self, now: Instant, lane: LaneId, cause: &LaneLoss) {
        if self.closing.is_none() && self.lanes.handle_lost(now, &mut self.carrier, lane, cause) {
            info!(%cause, "lost the server; connecting again");
        }
    }

    fn poll_session_events(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(event) = self.carrier.as_mut().and_then(|c| c.poll_event(now)) {
            any = true;
            match event {
                CarrierEvent::LaneLost { lane, cause, .. } => self.lane_lost(now, lane, &cause),
                CarrierEvent::LaneDoubtful { lane, feedback } => {
                    debug!(%lane, ?feedback, "the network says a lane does not arrive");
                    let is_own = feedback == Feedback::Forbidden;
                    if is_own && !std::mem::replace(&mut self.forbidden, true) {
                        warn!(%lane, "{FORBIDDEN}: what is sent to the server; let it out");
                    }
                    if let Some(carrier) = self.carrier.as_mut() {
                        // Whether that is true shows sooner.
                        carrier.session_mut().probe();
                    }
                }
                CarrierEvent::Session(SessionEvent::Configured(config)) => {
                    self.configured(now, config);
                }
                CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => {
                    self.closed_by_server(now, reason);
                }
                CarrierEvent::Session(event) => {
                    self.lanes.handle_event(now, &mut self.carrier, &event);
                }
            }
        }
        any
    }

    fn closed_by_server(&mut self, now: Instant, reason: CloseReason) {
        match reason {
            CloseReason::ShuttingDown | CloseReason::Idle => {
                info!(%reason, "the server closed the session");
            }
            CloseReason::Revoked => self.tell_revoked(),
            CloseReason::Superseded
            | CloseReason::PoolExhausted
            | CloseReason::TooManyInstances
            | CloseReason::ProtocolError
            | CloseReason::Unknown(_) => warn!(%reason, "the server closed the session"),
        }
        if let Some(carrier) = self.carrier.take() {
            self.past.add_ended(&carrier.tally());
        }
        self.end_by(now, reason);
        if self.closing.is_none() {
            self.lanes.handle_closed(now, reason);
        }
    }

    fn configured(&mut self, now: Instant, config: InnerConfig) {
        info!(addresses = ?config.addresses(), mtu = config.mtu, "configured");
        self.began = now;
        self.refused = None;
        self.forbidden = false;
        self.tell_down(now);
        debug!(?config, "configuration of the session");
        match (self.device.as_ref(), self.inside.as_mut()) {
            // Its interface is somebody else's to configure.
            (Some(_), _) => {}
            (None, Some(inside)) if self.mtu == config.mtu => inside.set_addresses(now, &config),
            // The netstack of another MTU takes the place of the old one, whose flows end.
            (None, Some(_) | None) => {
                let seed = rand::rng().random();
                self.mtu = config.mtu;
                let share = self.share.part();
                if let Some(former) = &self.inside {
                    let mut counters = Tally::default();
                    former.count(&mut counters.counters);
                    self.past.add_ended(&counters);
                }
                self.inside = Some(Inside::new(&config, self.resolver.clone(), share, seed));
            }
        }
        self.inner.send_replace(Some(config));
        self.follow_session(now);
        for waiting in std::mem::take(&mut self.waiting) {
            // Its asker has gone, and said so while nobody knew of the request.
            if waiting.command.is_abandoned() {
                continue;
            }
            self.handle_command(now, waiting.command);
        }
    }

    // ---- packets -----------------------------------------------------------------------

    /// Tells the inside which session there is: flows that are relayed live and end with theirs.
    fn follow_session(&mut self, now: Instant) {
        if let Some(inside) = self.inside.as_mut() {
            let session = self.carrier.as_ref().map(Carrier::session);
            let session = session.map(|session| (session.id(), session.relays()));
            inside.follow_session(now, session);
        }
    }

    fn poll_in(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(carrier) = self.carrier.as_mut() else {
            return false;
        };
        let (inside, device) = (self.inside.as_mut(), self.device.as_mut());
        let mut inbound = Inbound {
            inside,
            device,
            now,
        };
        carrier.poll_deliver(cx, now, &mut inbound)
    }

    fn poll_inside(&mut self, cx: &mut Context<'_>, now: Instant, turns: Turns) -> bool {
        if let Some(device) = self.device.as_mut() {
            return device.poll(cx, now, self.carrier.as_mut());
        }
        let Some(inside) = self.inside.as_mut() else {
            return false;
        };
        match self.carrier.as_mut() {
            Some(carrier) => {
                let linked = carrier.session().lanes().next().is_some();
                inside.poll(cx, now, turns, Some(&mut carrier.sink(now)), linked)
            }
            None => inside.poll::<LaneSink<'_>>(cx, now, turns, None, false),
        }
    }

    fn poll_out(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(carrier) = self.carrier.as_mut() else {
            return false;
        };
        let mut any = false;
        if let Some(inside) = self.inside.as_mut() {
            inside.poll_transmit(now, &mut carrier.sink(now));
            any |= carrier.poll_flows(now, inside.relayed());
        }
        any | carrier.poll_send(cx, now)
    }

    // ---- time --------------------------------------------------------------------------

    /// Sets the timer; returns whether something is due already.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let due = [
            self.inside.as_ref().and_then(Inside::poll_timeout),
            self.device.as_ref().and_then(Device::poll_timeout),
            self.carrier.as_ref().and_then(Carrier::poll_timeout),
            (self.lanes.poll_timeout()).filter(|_| self.closing.is_none() && self.turn.is_none()),
            self.waiting.front().map(|waiting| waiting.until),
            self.closing,
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now + IDLE_TICK);
        if due <= now {
            return true;
        }
        self.timer.as_mut().reset(due.into());
        self.timer.as_mut().poll(cx).is_ready()
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(slept) = self.suspend.slept() {
            debug!(?slept, "the host was suspended");
            self.lanes.look_again(now, &mut self.carrier);
        }
        if let Some(inside) = self.inside.as_mut() {
            inside.handle_timeout(now);
        }
        if let Some(device) = self.device.as_mut() {
            let lanes = self.carrier.as_ref().map_or(0, Carrier::lanes);
            device.handle_timeout(now, lanes > 0);
        }
        if let Some(carrier) = self.carrier.as_mut() {
            carrier.handle_timeout(now);
        }
        self.lanes.handle_timeout(now, &mut self.carrier);
        self.give_up_waiting(now);
    }

    // ---- the end -----------------------------------------------------------------------

    fn begin_close(&mut self) {
        let now = clock::now();
        self.closing = Some(now + CLOSE_TIMEOUT);
        if let Some(carrier) = self.carrier.as_mut() {
            carrier.session_mut().close(now, CloseReason::ShuttingDown);
        }
        self.give_up_waiting(now + TUNNEL_WAIT);
    }

    fn poll_exit(&mut self, now: Instant) -> Option<Exit> {
        let deadline = self.closing?;
        // The carrier lets its lanes go when the server has heard the goodbye.
        let gone = self.carrier.as_ref().is_none_or(|c| c.lanes() == 0);
        if !gone && now < deadline {
            return None;
        }
        if let Some(inside) = &self.inside {
            debug!(counters = ?inside.counters(), "counters");
        }
        if let Some(device) = &self.device {
            debug!(counters = ?device.counters(), "counters");
        }
        if let Some(carrier) = &self.carrier {
            carrier.log_counters();
        }
        Some(if self.commands_open {
            Exit::Stopped
        } else {
            Exit::Abandoned
        })
    }
}

/// What arrives, for the inside or the device in its place.
struct Inbound<'a> {
    inside: Option<&'a mut Inside>,
    device: Option<&'a mut Device>,
    now: Instant,
}

impl Deliver for Inbound<'_> {
    fn packet(&mut self, frame: &mut [u8], range: Range<usize>, offload: Offload) {
        if let Some(device) = self.device.as_mut() {
            device.write(frame, range, offload);
        } else if let (Some(inside), Some(packet)) = (self.inside.as_mut(), frame.get_mut(range)) {
            inside.handle_packet(self.now, packet, offload);
        }
    }

    fn flow(&mut self, frame: &FlowFrame, bytes: Pieces<'_>) {
        if let Some(inside) = self.inside.as_mut() {
            inside.handle_flow(self.now, frame, bytes);
        }
    }
}

/// Waits for one change of the network and gives the watch back.
async fn next_change(mut watch: NetworkWatch) -> NetworkWatch {
    watch.changed().await;
    watch
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    command: Command,
}

fn reply_of(command: Command) -> Option<Reply> {
    match command {
        Command::Connect { reply, .. }
        | Command::BindUdp { reply, .. }
        | Command::BindEcho { reply, .. }
        | Command::Listen { reply, .. }
        | Command::Idle { reply }
        | Command::Associate { reply, .. } => Some(reply),
        Command::Attach { .. }
        | Command::Abort { .. }
        | Command::SendUdp { .. }
        | Command::UnbindUdp { .. }
        | Command::Unlisten { .. }
        | Command::Refuse { .. }
        | Command::Dissociate { .. }
        | Command::JudgeAgain
        | Command::Look { .. }
        | Command::Resolved { .. } => None,
    }
}

/// Commands taken per turn.
const COMMANDS_PER_TURN: usize = 64;

/// Requests kept until the first session: a browser's start, not a flood.
const MAX_WAITING: usize = 1024;

/// How long the last frame may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// With nothing to wait for, the driver looks around this often.
const IDLE_TICK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::task::Waker;

    use tokio::sync::mpsc;

    use super::*;
    use crate::client::tunnel::tunnel;
    use crate::io::dial::Dialer;
    use crate::io::netlink::Netlink;
    use crate::io::pool::Pool;
    use crate::io::tls::{ClientTls, Verify};
    use crate::io::tun::Tun;
    use crate::io::tun::tests::host::on_host;
    use crate::proto::{ClientConfig, SecretKey};

    /// A driver over a device of a namespace, whose server is nowhere; what must be kept comes with it.
    async fn over_a_device() -> (Driver, impl Sized) {
        let tun = Tun::open("adit0").unwrap();
        let config = InnerConfig {
            v4: Some(([10, 86, 0, 2].into(), 32)),
            ..InnerConfig::default()
        };
        let netlink = Netlink::over(Netlink::socket().unwrap()).unwrap();
        netlink.follow("adit0", &config).await.unwrap();
        let pool = Pool::new("test", 4, 4);
        let mut rng = rand::rng();
        let server = SecretKey::generate(&mut rng).public();
        let connector = Connector {
            servers: vec!["tcp://127.0.0.1:1".parse().unwrap()],
            dialer: Dialer::new(ClientTls::new(&Verify::Unchecked).unwrap()),
            handshake: ClientConfig::new(SecretKey::generate(&mut rng), server, *b"instance"),
            time: Duration::from_secs(1),
            lanes: 1,
            source: None,
            doubted: Arc::default(),
            pool: pool.clone(),
        };
        let (configured, inner) = watch::channel(None);
        let (handle, commands) = tunnel(inner);
        let driver = Driver::new(
            Arc::new(connector),
            commands,
            configured,
            mpsc::channel(1).0,
            NetworkWatch::new(),
            Share::alone(1 << 20),
            CancellationToken::new(),
        );
        let device = Device::new(tun, pool, watch::channel(None).0);
        (driver.over(device), (handle, netlink))
    }

    #[test]
    fn packets_that_wait_for_a_lane_for_too_long_are_dropped() {
        on_host(|| async {
            let (mut driver, _kept) = over_a_device().await;
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"first", "192.0.2.1:9").unwrap();
            let mut cx = Context::from_waker(Waker::noop());
            let now = Instant::now();
            while driver.device.as_ref().unwrap().poll_timeout().is_none() {
                driver.poll_inside(&mut cx, now, Turns::begin());
                tokio::task::yield_now().await;
            }
            let due = driver.device.as_ref().unwrap().poll_timeout().unwrap();
            assert!(due > now);
            // Whatever else is due, it is looked at by then.
            assert!(driver.arm(&mut cx, due));
            driver.handle_timeout(due);
            let device = driver.device.as_ref().unwrap();
            let (_, _, expired) = device.counters();
            assert!(expired >= 1 && device.poll_timeout().is_none(), "{expired}");
        });
    }
}
