//! Enrols this client's key at a server that has invited it.
//!
//! # Theory of operation
//!
//! ```text
//!  servers of the link ──▶ one attempt each, a moment apart ──▶ a guest's session ──▶ Enrol ──▶ Enrolled
//! ```
//!
//! The addresses of a link lead to one server, so the first answer counts, whatever it is. Two attempts may both be answered:
//! the same key is enrolled once. A server says nothing to whoever names an invitation that it does not know, nor to whom its
//! key does not fit, and so what is told when none answers is what it may be.
//!
//! # Limits
//!
//! An attempt may take [`Connector::time`], and the conversation after it [`ANSWER`].

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use thiserror::Error;
use tokio::time::{Sleep, sleep, timeout};
use tracing::{debug, info};

use super::connect::{ConnectFailure, Connected, Connector};
use super::run::connector;
use crate::config::{ClientConfig, LaneAddr};
use crate::io::carrier::{Carrier, CarrierEvent};
use crate::io::clock;
use crate::io::outside::Outside;
use crate::io::tls::ClientTlsError;
use crate::proto::{SessionEvent, invitation_id};
use crate::wire::{CloseReason, Token, Verdict};

/// Why the key is no client's.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The settings of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] ClientTlsError),
    /// There is nothing to run it on.
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    /// The server says no.
    #[error("{0}")]
    Refused(Verdict),
    /// No address of the server answered in a way that helps.
    #[error("{}", told(.0))]
    Unanswered(Vec<Attempt>),
}

/// What came of an attempt at one address.
#[derive(Debug)]
pub struct Attempt {
    /// The address.
    pub server: LaneAddr,
    /// What was wrong.
    pub failure: AttemptFailure,
}

/// What was wrong with an attempt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttemptFailure {
    /// There was no session.
    #[error(transparent)]
    Connect(#[from] ConnectFailure),
    /// There was one, which ended without an answer.
    #[error("the server ended the session without an answer: {0}")]
    Ended(String),
    /// There was one, and nothing came of it in time.
    #[error("no answer in {} s", ANSWER.as_secs())]
    Late,
}

/// Enrols the key of `config` by the invitation that `token` is of; returns the name that the server has given it.
///
/// # Errors
///
/// [`EnrolError`]. Where an answer was lost, the key may have been enrolled all the same; the same key may come again.
pub async fn enrol(config: &ClientConfig, token: &Token) -> Result<String, EnrolError> {
    let mut connector = connector(config, false, Outside::default())?;
    connector.handshake.invitation = Some(invitation_id(token));
    let connector = Arc::new(connector);
    let mut attempts = FuturesUnordered::new();
    let mut servers = config.servers.iter();
    let mut failed = Vec::new();
    loop {
        if let Some(server) = servers.next() {
            info!(%server, "asking to be enrolled");
            attempts.push(attempt(connector.clone(), server.clone(), token.clone()));
        } else if attempts.is_empty() {
            return Err(EnrolError::Unanswered(failed));
        }
        // The next address is tried when this one has failed, or is slow.
        let slow = async {
            sleep(APART).await;
            if servers.len() == 0 {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = slow => {}
            ended = attempts.next() => match ended {
                Some(Ok((Verdict::Enrolled, name))) => return Ok(name),
                Some(Ok((verdict, _))) => return Err(EnrolError::Refused(verdict)),
                Some(Err(attempt)) => {
                    debug!(server = %attempt.server, error = %attempt.failure, "not enrolled here");
                    failed.push(attempt);
                }
                None => {}
            },
        }
    }
}

async fn attempt(
    connector: Arc<Connector>,
    server: LaneAddr,
    token: Token,
) -> Result<(Verdict, String), Attempt> {
    let failed = |failure| Attempt {
        server: server.clone(),
        failure,
    };
    let connected = connector.attempt(server.clone(), None, true).await;
    let carrier = match connected.map_err(|error| failed(error.into()))? {
        Connected::Fresh(carrier) => *carrier,
        // Neither is what was asked for.
        Connected::Joined { .. } | Connected::Ways(_) => {
            let why = "the server joined a session that there is not".to_owned();
            return Err(failed(AttemptFailure::Ended(why)));
        }
    };
    let mut guest = Guest::new(carrier);
    (guest.carrier.session_mut()).enrol(clock::now(), token);
    let answer = timeout(ANSWER, poll_fn(|cx| guest.poll(cx))).await;
    match answer {
        Ok(Said::Enrolled(verdict, name)) => {
            guest.leave().await;
            Ok((verdict, name))
        }
        Ok(Said::Ended(why)) => Err(failed(AttemptFailure::Ended(why))),
        Err(_elapsed) => Err(failed(AttemptFailure::Late)),
    }
}

/// A guest's session, and what drives it.
struct Guest {
    carrier: Carrier,
    timer: Pin<Box<Sleep>>,
}

/// What has come of it.
enum Said {
    Enrolled(Verdict, String),
    Ended(String),
}

impl Guest {
    fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            timer: Box::pin(sleep(Duration::ZERO)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Said> {
        for _ in 0..TURNS {
            let now = clock::now();
            // Nothing is delivered to a guest.
            let mut any = self.carrier.poll_receive(cx, now, |_, _, _| {});
            any |= self.carrier.send_first(now);
            any |= self.carrier.poll_send(cx, now);
            while let Some(event) = self.carrier.poll_event(now) {
                match event {
                    CarrierEvent::Session(SessionEvent::Enrolled { verdict, name }) => {
                        return Poll::Ready(Said::Enrolled(verdict, name));
                    }
                    CarrierEvent::Session(SessionEvent::PeerClosed(reason)) => {
                        return Poll::Ready(Said::Ended(reason.to_string()));
                    }
                    CarrierEvent::LaneLost { left: 0, cause, .. } => {
                        return Poll::Ready(Said::Ended(cause.to_string()));
                    }
                    CarrierEvent::LaneLost { .. }
                    | CarrierEvent::LaneDoubtful { .. }
                    | CarrierEvent::Session(_) => any = true,
                }
            }
            if !any {
                let Some(due) = self.carrier.poll_timeout() else {
                    return Poll::Pending;
                };
                self.timer.as_mut().reset(due.into());
                if self.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.carrier.handle_timeout(clock::now());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Says goodbye, so that the server need not wait for more.
    async fn leave(&mut self) {
        let session = self.carrier.session_mut();
        session.close(clock::now(), CloseReason::ShuttingDown);
        let left = poll_fn(|cx| self.poll(cx));
        // It may find nobody any more.
        let _ = timeout(GOODBYE, left).await;
    }
}

/// What to tell somebody whom no address has answered.
fn told(attempts: &[Attempt]) -> String {
    let silent = |attempt: &Attempt| match &attempt.failure {
        AttemptFailure::Connect(ConnectFailure::Silent { .. }) => true,
        AttemptFailure::Connect(_) | AttemptFailure::Ended(_) | AttemptFailure::Late => false,
    };
    let mut lines: Vec<String> = Vec::new();
    for attempt in attempts {
        // What a connection says of itself names the server, and a silence is told below.
        lines.push(match &attempt.failure {
            _ if silent(attempt) => format!("{}: no answer", attempt.server),
            AttemptFailure::Connect(error) => error.to_string(),
            other @ (AttemptFailure::Ended(_) | AttemptFailure::Late) => {
                format!("{}: {other}", attempt.server)
            }
        });
    }
    let mut text = format!(
        "the server did not enrol this client\n  {}",
        lines.join("\n  ")
    );
    if attempts.iter().any(silent) {
        text.push_str(SILENCE);
    }
    text
}

/// A server does not answer whom it does not know.
const SILENCE: &str = "\nSilence may mean:
  - the invitation ended, was used or was withdrawn more than a week ago, or the link was changed on its way:
    ask for a new one (adit invite NAME)
  - the server has another key now, or was set up anew: ask for a new one, too
  - the server does not run, or something on the way lets nothing through to it";

/// Between attempts at the addresses of a link: most networks answer sooner.
const APART: Duration = Duration::from_secs(1);

/// How long a token's answer may take: as long as a server lets a guest stay.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Turns before the runtime gets the thread back.
const TURNS: usize = 32;
