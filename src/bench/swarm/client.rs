//! One simulated client: a real session on a real lane, without a netstack or a proxy.
//!
//! It is driven like the client's own session: frames in, echoes out, and waiting only when nothing moved. Nothing is
//! made anew that is lost: a swarm counts it.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use adit_netstack::{Offload, PacketSink as _};
use tokio::time::Sleep;

use crate::bench::echo::{Echo, Ends};
use crate::bench::samples::Samples;
use crate::io::carrier::{Carrier, CarrierEvent};
use crate::io::clock;
use crate::proto::SessionEvent;
use crate::wire::CloseReason;

/// A session with a server, and the echoes that are under way.
pub(super) struct Client {
    carrier: Carrier,
    echo: Option<Echo>,
    traffic: Option<Traffic>,
    /// The number of the next request.
    next: u16,
    served: Served,
    /// Requests that were not answered yet, the oldest first.
    waiting: VecDeque<(u16, Instant)>,
    timer: Pin<Box<Sleep>>,
}

/// What the echoes of all clients have come to.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    /// Requests that a lane has taken.
    pub(super) sent: AtomicU64,
    /// Requests that no lane had room for.
    pub(super) held: AtomicU64,
    /// How long those took that were answered.
    pub(super) answered: Mutex<Samples>,
}

impl Echoes {
    /// Lends the times, of which each is whole whoever panicked.
    pub(super) fn answered(&self) -> MutexGuard<'_, Samples> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to send.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    at: Instant,
    every: Duration,
}

/// Whether any echo was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    No,
    ToBeTold,
    Told,
}

/// What has become of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has its addresses.
    Configured,
    /// Its first echo was answered.
    Served,
    /// Its session is over, as it was told to end it.
    Closed,
    /// Its session is over.
    Lost(Loss),
}

/// Why a session has ended that should not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The server said so.
    Refused(CloseReason),
    /// Its one lane is gone.
    Lane(String),
    /// There is no gateway to send echoes to.
    NoGateway,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "the server closed the session: {reason}"),
            Self::Lane(cause) => write!(f, "the session was lost: {cause}"),
            Self::NoGateway => f.write_str("the server has given no address of a gateway"),
        }
    }
}

impl Client {
    /// Begins with a session whose handshake has just been answered. To be called within a runtime.
    pub(super) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            echo: None,
            traffic: None,
            next: 0,
            served: Served::No,
            waiting: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep_until(clock::now().into())),
        }
    }

    /// Sends an echo at `at`, and then `every` so often.
    pub(super) fn begin(&mut self, at: Instant, every: Duration) {
        self.traffic = Some(Traffic { at, every });
    }

    /// Sends nothing any more.
    pub(super) fn rest(&mut self) {
        self.traffic = None;
    }

    /// Ends the session in order.
    pub(super) fn close(&mut self) {
        let session = self.carrier.session_mut();
        session.close(clock::now(), CloseReason::ShuttingDown);
    }

    /// Drives the session until something has become of it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, echoes: &Echoes) -> Poll<Turn> {
        for _ in 0..TURNS {
            let now = clock::now();
            let mut any = self.receive(cx, now, echoes);
            if self.served == Served::ToBeTold {
                self.served = Served::Told;
                return Poll::Ready(Turn::Served);
            }
            any |= self.send(now, echoes);
            any |= self.carrier.poll_send(cx, now);
            if let Some(turn) = self.poll_events(now) {
                return Poll::Ready(turn);
            }
            if !any {
                if !self.arm(cx, now) {
                    return Poll::Pending;
                }
                self.carrier.handle_timeout(clock::now());
                self.forget(clock::now());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn receive(&mut self, cx: &mut Context<'_>, now: Instant, echoes: &Echoes) -> bool {
        let (echo, waiting, served) = (self.echo, &mut self.waiting, &mut self.served);
        self.carrier.poll_receive(cx, now, |frame, range, _| {
            let packet = frame.get(range).unwrap_or_default();
            let Some(sequence) = echo.and_then(|echo| echo.read_reply(packet)) else {
                return;
            };
            if *served == Served::No {
                *served = Served::ToBeTold;
            }
            if let Some(place) = waiting.iter().position(|(sent, _)| *sent == sequence)
                && let Some((_, at)) = waiting.remove(place)
            {
                echoes.answered().add(now - at);
            }
        })
    }

    /// Sends the echo that is due; returns whether there was one.
    fn send(&mut self, now: Instant, echoes: &Echoes) -> bool {
        let (Some(echo), Some(traffic)) = (self.echo, self.traffic.as_mut()) else {
            return false;
        };
        if now < traffic.at {
            return false;
        }
        // What comes late is not made up for: that would be a burst.
        traffic.at += traffic.every;
        if traffic.at <= now {
            traffic.at = now + traffic.every;
        }
        let mut sink = self.carrier.sink(now);
        let Some(room) = sink.reserve(echo.len()) else {
            echoes.held.fetch_add(1, Relaxed);
            return true;
        };
        echo.write_request(self.next, room);
        sink.commit(echo.len(), Offload::default());
        self.waiting.push_back((self.next, now));
        self.next = self.next.wrapping_add(1);
        echoes.sent.fetch_add(1, Relaxed);
        true
    }

    fn poll_events(&mut self, now: Instant) -> Option<Turn> {
        while let Some(event) = self.carrier.poll_event(now) {
            match event {
                CarrierEvent::Session(SessionEvent::Configured(config)) => {
                    self.echo = Ends::of(&config).map(|ends| Echo::short(ends, IDENT));
                    return Some(match self.echo {
                        Some(_) => Turn::Configured,
                        None => Turn::Lost(Loss::NoGateway),
                    });
                }
                CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => {
                    return Some(Turn::Lost(Loss::Refused(reason)));
                }
                CarrierEvent::LaneLost { left: 0, .. }
                    if self.carrier.session().closed().is_some() =>
                {
                    return Some(Turn::Closed);
                }
                CarrierEvent::LaneLost { left: 0, cause, .. } => {
                    return Some(Turn::Lost(Loss::Lane(cause.to_string())));
                }
                // Another lane is left, or a lane is silent that may be heard again.
                CarrierEvent::LaneLost { .. }
                | CarrierEvent::LaneDoubtful { .. }
                | CarrierEvent::Session(_) => {}
            }
        }
        None
    }

    /// Forgets echoes that were not answered for long: what comes later counts as lost.
    fn forget(&mut self, now: Instant) {
        while let Some((_, at)) = self.waiting.front()
            && now >= *at + PATIENCE
        {
            self.waiting.pop_front();
        }
    }

    /// Sets the timer; returns whether something is due already.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let due = [
            self.carrier.poll_timeout(),
            self.traffic.map(|traffic| traffic.at),
            self.waiting.front().map(|(_, at)| *at + PATIENCE),
        ];
        let Some(due) = due.into_iter().flatten().min() else {
            return false;
        };
        if due <= now {
            return true;
        }
        self.timer.as_mut().reset(due.into());
        self.timer.as_mut().poll(cx).is_ready()
    }
}

/// Each client has an address of its own: nothing else tells their echoes apart.
const IDENT: u16 = 0xad17;

/// Turns before the runtime gets the thread back.
const TURNS: usize = 32;

/// After how long an echo counts as lost: longer than any queue that anybody would call usable.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
