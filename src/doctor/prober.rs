//! Drives a session of its own to measure the way that carries it, by echoes to the inner gateway.
//!
//! ```text
//!  short echoes, 10 ms apart ───▶ round trips; on datagram lanes the session's own counts of what was lost
//!  long echoes, as many as fit ─▶ load each way, for as long and as many bytes as allowed
//! ```
//!
//! The gateway answers whatever the egress is, and needs no origin. A session is as any client's, with an instance of its
//! own: the client that may run has another, and keeps its session and its addresses.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::time::{Sleep, sleep_until, timeout};

use super::path::{Echoes, Ended, Load};
use super::volley::{PATIENCE, Pace, Volley};
use crate::bench::echo::{Echo, Ends};
use crate::io::carrier::{Carrier, CarrierEvent};
use crate::io::clock;
use crate::proto::SessionEvent;
use crate::wire::{CloseReason, InnerConfig, LaneId};

/// A session with a server, and the echoes that are under way.
pub(super) struct Prober {
    carrier: Carrier,
    config: Option<InnerConfig>,
    volleys: Vec<Volley>,
    timer: Pin<Box<Sleep>>,
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
    /// Takes over a session that has just been agreed on. From now on the server keeps something for it: whatever comes of
    /// it, [`Prober::leave`] is its end.
    pub(super) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            config: None,
            volleys: Vec::new(),
            timer: Box::pin(sleep_until(clock::now().into())),
        }
    }

    /// Waits until the server has given the session its addresses; returns the longest packet that it carries.
    pub(super) async fn configured(&mut self, limit: Duration) -> Result<u16, ProbeError> {
        self.drive(limit, |probe| probe.config.is_some()).await?;
        let config = self.config.as_ref().ok_or(ProbeError::Unconfigured)?;
        Ok(config.mtu)
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
        let pace = Pace {
            count,
            every,
            window: usize::MAX,
        };
        let echo = Echo::short(self.ends()?, SHORT);
        self.volleys = vec![Volley::new(echo, pace, clock::now())];
        let span = every * u32::try_from(count).unwrap_or(u32::MAX);
        self.drive(span + PATIENCE, Self::are_done).await?;
        let volley = self.volleys.pop();
        Ok(volley.map(Volley::into_echoes).unwrap_or_default())
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
        let ends = self.ends()?;
        let mtu = self.config.as_ref().map_or(0, |config| config.mtu);
        let long = Echo::filling(ends, LONG, mtu);
        let len = long.len();
        let began = clock::now();
        let filling = Pace {
            count: bytes / len as u64,
            every: Duration::ZERO,
            window: WINDOW / len,
        };
        let beside = Pace {
            count: u64::MAX,
            every: BESIDE_EVERY,
            window: usize::MAX,
        };
        self.volleys = vec![
            Volley::new(Echo::short(ends, BESIDE), beside, began),
            Volley::new(long, filling, began),
        ];
        let over = |probe: &Self| probe.volleys.last().is_none_or(Volley::is_done);
        self.drive(limit, over).await?;
        let Some(long) = self.volleys.pop() else {
            return Ok(Load::default());
        };
        let ended = if long.is_sent() {
            Ended::Bytes
        } else {
            Ended::Time
        };
        // What was given up came no more, and took no time.
        let took = long.last().map_or(limit, |last| last - began);
        let long = long.into_echoes();
        self.volleys.iter_mut().for_each(Volley::stop);
        // What is still under way was loaded by what was before it.
        self.drive(PATIENCE, Self::are_done).await?;
        let beside = self.volleys.pop();
        Ok(Load {
            sent_bytes: long.sent * len as u64,
            returned_bytes: (long.answered.len() * len) as u64,
            took,
            ended,
            echoes: beside.map(Volley::into_echoes).unwrap_or_default(),
        })
    }

    /// Says goodbye, so that the server keeps nothing for it.
    pub(super) async fn leave(mut self) {
        self.volleys.clear();
        let session = self.carrier.session_mut();
        session.close(clock::now(), CloseReason::ShuttingDown);
        // The lanes go when the server has heard it. It may find nobody any more.
        let _ = self
            .drive(GOODBYE, |probe| probe.carrier.lanes() == 0)
            .await;
    }

    fn ends(&self) -> Result<Ends, ProbeError> {
        let config = self.config.as_ref().ok_or(ProbeError::Unconfigured)?;
        Ends::of(config).ok_or(ProbeError::NoGateway)
    }

    fn are_done(&self) -> bool {
        self.volleys.iter().all(Volley::is_done)
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
            for volley in &mut self.volleys {
                any |= volley.send(&mut self.carrier, now);
            }
            any |= self.carrier.send_first(now);
            any |= self.carrier.poll_send(cx, now);
            if let Some(error) = self.ended(now) {
                return Poll::Ready(error);
            }
            if !any {
                let due = self.volleys.iter().filter_map(Volley::due);
                let Some(due) = due.chain(self.carrier.poll_timeout()).min() else {
                    return Poll::Pending;
                };
                self.timer.as_mut().reset(due.into());
                if self.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let now = clock::now();
                self.carrier.handle_timeout(now);
                self.volleys.iter_mut().for_each(|it| it.forget(now));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Self {
            carrier, volleys, ..
        } = self;
        carrier.poll_receive(cx, now, |frame, range, _| {
            let packet = frame.get(range).unwrap_or_default();
            // Whatever else comes is not for a session that has asked for nothing else.
            let _known = volleys.iter_mut().any(|it| it.handle(now, packet));
        })
    }

    /// Takes what the carrier tells; returns how the session has ended, if it has.
    fn ended(&mut self, now: Instant) -> Option<ProbeError> {
        while let Some(event) = self.carrier.poll_event(now) {
            match event {
                CarrierEvent::Session(SessionEvent::Configured(config)) => {
                    self.config = Some(config);
                }
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
}

/// What tells the echoes of a session apart.
const SHORT: u16 = 0xad18;
const LONG: u16 = 0xad19;
const BESIDE: u16 = 0xad1a;

/// How far apart short echoes are beside a load.
const BESIDE_EVERY: Duration = Duration::from_millis(20);

/// Bytes of long echoes under way: as much as an ordinary download has, and no flood for a slow line.
const WINDOW: usize = 1 << 20;

/// How long the goodbye may take.
pub(super) const GOODBYE: Duration = Duration::from_millis(500);

/// Turns before the runtime gets the thread back.
const TURNS: usize = 32;
