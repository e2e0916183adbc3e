//! Drives a session of its own to measure the way that carries it, by echoes to the inner gateway.
//!
//! ```text
//!  short echoes, 10 ms apart ───▶ round trips; on datagram lanes the session's own counts of what was lost
//!  long echoes, as many as fit ─▶ load each way, for as long and as many bytes as allowed
//! ```
//!
//! The gateway answers whatever the egress is, and needs no origin. A session is as any client's, with an instance of its
//! own: the client that may run has another, and keeps its session and its addresses.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{Offload, PacketSink as _};
use thiserror::Error;
use tokio::time::{Sleep, sleep_until, timeout};

use super::path::{Echoes, Load};
use crate::bench::echo::{Echo, Ends};
use crate::io::carrier::{Carrier, CarrierEvent};
use crate::io::clock;
use crate::proto::SessionEvent;
use crate::wire::{CloseReason, InnerConfig, LaneId};

/// A session with a server, and the echoes that are under way.
pub(super) struct Prober {
    carrier: Carrier,
    config: InnerConfig,
    short: Flow,
    load: Option<Flow>,
    timer: Pin<Box<Sleep>>,
}

/// Echoes of one length.
struct Flow {
    echo: Echo,
    next: u16,
    /// When the next is due.
    at: Instant,
    every: Duration,
    /// How many more are to be sent.
    left: u64,
    /// How many may be under way.
    window: usize,
    waiting: VecDeque<(u16, Instant)>,
    sent: u64,
    answered: Vec<Duration>,
}

/// Why a session cannot be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum ProbeError {
    /// The server says so.
    #[error("the server closed the session: {0}")]
    Closed(CloseReason),
    /// Its one lane is gone.
    #[error("the session was lost: {0}")]
    Lost(String),
    /// No addresses came.
    #[error("the server has sent no configuration in time")]
    Unconfigured,
    /// There is nobody to send echoes to.
    #[error("the server has given no address of a gateway")]
    NoGateway,
}

impl Prober {
    /// Waits until the server has given the session its addresses.
    pub(super) async fn begin(mut carrier: Carrier, limit: Duration) -> Result<Self, ProbeError> {
        let mut timer = Box::pin(sleep_until(clock::now().into()));
        let configured = poll_fn(|cx| configured(cx, &mut carrier, &mut timer));
        let config = match timeout(limit, configured).await {
            Ok(config) => config?,
            Err(_elapsed) => return Err(ProbeError::Unconfigured),
        };
        let ends = Ends::of(&config).ok_or(ProbeError::NoGateway)?;
        Ok(Self {
            carrier,
            config,
            short: Flow::new(Echo::short(ends, SHORT)),
            load: None,
            timer,
        })
    }

    /// What the server has given.
    pub(super) fn config(&self) -> &InnerConfig {
        &self.config
    }

    /// The session with its lanes.
    pub(super) fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    /// Sends so many short echoes, so far apart, and waits for the last answers.
    pub(super) async fn echoes(
        &mut self,
        count: u64,
        every: Duration,
    ) -> Result<Echoes, ProbeError> {
        self.short.start(count, every, usize::MAX);
        let span = every * u32::try_from(count).unwrap_or(u32::MAX);
        self.drive(span + PATIENCE, |probe| probe.short.is_done())
            .await?;
        Ok(self.short.take())
    }

    /// Waits until the search for what a datagram lane carries is over.
    pub(super) async fn settle(&mut self, limit: Duration) -> Result<bool, ProbeError> {
        let settled = |probe: &Self| {
            let session = probe.carrier.session();
            session.is_mtu_settled(LaneId::FIRST).unwrap_or(true)
        };
        self.drive(limit, settled).await?;
        Ok(settled(self))
    }

    /// Sends as much as fits, `bytes` and `limit` at most, and short echoes beside it.
    pub(super) async fn load(&mut self, bytes: u64, limit: Duration) -> Result<Load, ProbeError> {
        let ends = Ends::of(&self.config).ok_or(ProbeError::NoGateway)?;
        let mut flow = Flow::new(Echo::filling(ends, LONG, self.config.mtu));
        let len = flow.echo.len();
        flow.start(bytes / len as u64, Duration::ZERO, WINDOW / len);
        self.load = Some(flow);
        self.short.start(u64::MAX, BESIDE, usize::MAX);
        let began = clock::now();
        let over = |probe: &Self| probe.load.as_ref().is_none_or(Flow::is_done);
        let driven = self.drive(limit, over).await;
        let took = clock::now() - began;
        let flow = self.load.take();
        self.short.left = 0;
        driven?;
        let (sent, returned) = flow.map_or((0, 0), |flow| (flow.sent, flow.answered.len()));
        // What is still under way was loaded by what was before it.
        self.drive(PATIENCE, |probe| probe.short.is_done()).await?;
        Ok(Load {
            sent_bytes: sent * len as u64,
            returned_bytes: (returned * len) as u64,
            took,
            echoes: self.short.take(),
        })
    }

    /// Says goodbye, so that the server keeps nothing for it.
    pub(super) async fn leave(mut self) {
        let session = self.carrier.session_mut();
        session.close(clock::now(), CloseReason::ShuttingDown);
        // It may find nobody any more.
        let _ = self.drive(GOODBYE, |_| false).await;
    }

    /// Drives the session until `done`, or until the time is over.
    async fn drive(
        &mut self,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), ProbeError> {
        let driven = poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending if done(self) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        timeout(limit, driven).await.unwrap_or(Ok(()))
    }

    /// Moves what can be moved; ready only when the session is no more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ProbeError> {
        for _ in 0..TURNS {
            let now = clock::now();
            let mut any = self.receive(cx, now);
            any |= self.short.send(&mut self.carrier, now);
            if let Some(load) = &mut self.load {
                any |= load.send(&mut self.carrier, now);
            }
            any |= self.carrier.send_first(now);
            any |= self.carrier.poll_send(cx, now);
            if let Some(error) = ended(&mut self.carrier, now, |_| {}) {
                return Poll::Ready(error);
            }
            if !any {
                let flows = [Some(&self.short), self.load.as_ref()];
                let due = flows.into_iter().flatten().filter_map(Flow::due);
                let due = due.chain(self.carrier.poll_timeout()).min();
                let Some(due) = due else {
                    return Poll::Pending;
                };
                self.timer.as_mut().reset(due.into());
                if self.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let now = clock::now();
                self.carrier.handle_timeout(now);
                self.short.forget(now);
                if let Some(load) = &mut self.load {
                    load.forget(now);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Self {
            carrier,
            short,
            load,
            ..
        } = self;
        carrier.poll_receive(cx, now, |frame, range, _| {
            let packet = frame.get(range).unwrap_or_default();
            let known = short.handle(now, packet);
            if let (false, Some(load)) = (known, load.as_mut()) {
                load.handle(now, packet);
            }
        })
    }
}

impl Flow {
    fn new(echo: Echo) -> Self {
        Self {
            echo,
            next: 0,
            at: clock::now(),
            every: Duration::ZERO,
            left: 0,
            window: 0,
            waiting: VecDeque::new(),
            sent: 0,
            answered: Vec::new(),
        }
    }

    fn start(&mut self, left: u64, every: Duration, window: usize) {
        self.left = left;
        self.every = every;
        self.window = window.clamp(1, usize::from(u16::MAX / 2));
        self.at = clock::now();
    }

    /// Sends what is due and fits; returns whether anything left.
    fn send(&mut self, carrier: &mut Carrier, now: Instant) -> bool {
        let mut any = false;
        while self.left > 0 && now >= self.at && self.waiting.len() < self.window {
            let mut sink = carrier.sink(now);
            let Some(room) = sink.reserve(self.echo.len()) else {
                // What comes late is not made up for: that would be a burst.
                self.at = now + self.every.max(FULL);
                return any;
            };
            self.echo.write_request(self.next, room);
            sink.commit(self.echo.len(), Offload::default());
            self.waiting.push_back((self.next, now));
            self.next = self.next.wrapping_add(1);
            self.left -= 1;
            self.sent += 1;
            self.at = (self.at + self.every).max(now);
            any = true;
            if !self.every.is_zero() {
                self.at = now + self.every;
            }
        }
        any
    }

    /// Takes a packet; returns whether it is an answer of this flow.
    fn handle(&mut self, now: Instant, packet: &[u8]) -> bool {
        let Some(sequence) = self.echo.read_reply(packet) else {
            return false;
        };
        if let Some(place) = self.waiting.iter().position(|(sent, _)| *sent == sequence)
            && let Some((_, at)) = self.waiting.remove(place)
        {
            self.answered.push(now - at);
        }
        true
    }

    /// Gives up what was not answered for long.
    fn forget(&mut self, now: Instant) {
        while let Some((_, at)) = self.waiting.front()
            && now >= *at + PATIENCE
        {
            self.waiting.pop_front();
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0 && self.waiting.is_empty()
    }

    fn due(&self) -> Option<Instant> {
        let wants = self.left > 0 && self.waiting.len() < self.window;
        let forgotten = self.waiting.front().map(|(_, at)| *at + PATIENCE);
        wants.then_some(self.at).into_iter().chain(forgotten).min()
    }

    fn take(&mut self) -> Echoes {
        self.left = 0;
        Echoes {
            sent: std::mem::take(&mut self.sent),
            answered: std::mem::take(&mut self.answered),
        }
    }
}

fn configured(
    cx: &mut Context<'_>,
    carrier: &mut Carrier,
    timer: &mut Pin<Box<Sleep>>,
) -> Poll<Result<InnerConfig, ProbeError>> {
    for _ in 0..TURNS {
        let now = clock::now();
        let mut any = carrier.poll_receive(cx, now, |_, _, _| {});
        any |= carrier.send_first(now);
        any |= carrier.poll_send(cx, now);
        let mut config = None;
        if let Some(error) = ended(carrier, now, |given| config = Some(given)) {
            return Poll::Ready(Err(error));
        }
        if let Some(config) = config {
            return Poll::Ready(Ok(config));
        }
        if !any {
            let Some(due) = carrier.poll_timeout() else {
                return Poll::Pending;
            };
            timer.as_mut().reset(due.into());
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            carrier.handle_timeout(clock::now());
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Takes what the carrier tells; returns how the session has ended, if it has.
fn ended(
    carrier: &mut Carrier,
    now: Instant,
    mut given: impl FnMut(InnerConfig),
) -> Option<ProbeError> {
    while let Some(event) = carrier.poll_event(now) {
        match event {
            CarrierEvent::Session(SessionEvent::Configured(config)) => given(config),
            CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => {
                return Some(ProbeError::Closed(reason));
            }
            CarrierEvent::LaneLost { left: 0, cause, .. } => {
                return Some(ProbeError::Lost(cause.to_string()));
            }
            CarrierEvent::LaneLost { .. }
            | CarrierEvent::LaneDoubtful { .. }
            | CarrierEvent::Session(_) => {}
        }
    }
    None
}

/// What tells the echoes of a session apart.
const SHORT: u16 = 0xad18;
const LONG: u16 = 0xad19;

/// How far apart short echoes are beside a load.
const BESIDE: Duration = Duration::from_millis(20);

/// When a lane that was full is tried again.
const FULL: Duration = Duration::from_millis(1);

/// Bytes of long echoes under way: as much as an ordinary download has, and no flood for a slow line.
const WINDOW: usize = 1 << 20;

/// After how long an echo counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Turns before the runtime gets the thread back.
const TURNS: usize = 32;
