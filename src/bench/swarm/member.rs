//! The life of one member of the swarm: it connects, and then does what the phase says.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::unconstrained;

use super::client::{Client, Echoes, Turn};
use crate::client::connect::{ConnectFailure, Connected, Connector};
use crate::config::LaneAddr;
use crate::io::clock;

/// What all members of a swarm do at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connect; whoever has connected keeps quiet.
    Connect,
    /// Send echoes.
    Traffic,
    /// Keep quiet.
    Rest,
    /// Say goodbye.
    End,
}

/// What a member tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The server has given it its addresses.
    Connected {
        /// How long that took, from the beginning of the attempt.
        took: Duration,
    },
    /// An attempt has failed, and another follows.
    Again(String),
    /// It is not there, and will not be.
    Missing(String),
    /// It was there and is no more.
    Lost(String),
    /// Its first echo was answered.
    Served,
}

/// What a member needs.
pub(super) struct Member {
    /// How it connects.
    pub(super) connector: Arc<Connector>,
    /// Where to.
    pub(super) server: LaneAddr,
    /// As many as may connect at once.
    pub(super) gate: Arc<Semaphore>,
    /// What everybody does.
    pub(super) phase: watch::Receiver<Phase>,
    /// Whom it tells.
    pub(super) news: mpsc::Sender<News>,
    /// Where its echoes are counted.
    pub(super) echoes: Arc<Echoes>,
    /// How far apart they are.
    pub(super) every: Duration,
    /// When in each such span it sends its own.
    pub(super) offset: Duration,
}

impl Member {
    /// Lives until the phase is [`Phase::End`], or the session ends before.
    pub(super) async fn live(mut self) {
        let Some(client) = self.connect().await else {
            return;
        };
        let news = match self.follow(client).await {
            Ok(()) => return,
            Err(cause) => News::Lost(cause),
        };
        self.tell(news).await;
    }

    /// Connects, if need be a few times; `None` when that came to nothing.
    async fn connect(&self) -> Option<Client> {
        // The gate is never closed.
        let permit = self.gate.clone().acquire_owned().await.ok()?;
        for left in (0..ATTEMPTS).rev() {
            let began = clock::now();
            match self.attempt().await {
                Ok(client) => {
                    drop(permit);
                    let took = clock::now() - began;
                    self.tell(News::Connected { took }).await;
                    return Some(client);
                }
                Err(cause) if left > 0 => self.tell(News::Again(cause)).await,
                Err(cause) => self.tell(News::Missing(cause)).await,
            }
        }
        None
    }

    async fn attempt(&self) -> Result<Client, String> {
        let attempt = self.connector.clone();
        let attempt = attempt.attempt(self.server.clone(), None, true);
        let carrier = match attempt.await {
            Ok(Connected::Fresh(carrier)) => *carrier,
            Ok(Connected::Joined { .. } | Connected::Ways(_)) => {
                return Err("the server has joined a lane that nobody asked for".to_owned());
            }
            Err(error) => return Err(cause(&error)),
        };
        let mut client = Client::new(carrier);
        let turn = poll_fn(|cx| client.poll(cx, &self.echoes));
        match tokio::time::timeout(self.connector.time, turn).await {
            Ok(Turn::Configured) => Ok(client),
            Ok(Turn::Served | Turn::Closed) => Err("the session has ended at once".to_owned()),
            Ok(Turn::Lost(loss)) => Err(loss.to_string()),
            Err(_elapsed) => Err("the server has sent no configuration".to_owned()),
        }
    }

    /// Does what the phase says until the end.
    async fn follow(&mut self, mut client: Client) -> Result<(), String> {
        self.phase.mark_changed();
        loop {
            let turn = poll_fn(|cx| client.poll(cx, &self.echoes));
            let turn = tokio::select! {
                changed = self.phase.changed() => match changed {
                    Ok(()) => None,
                    // Nobody leads the swarm any more.
                    Err(_) => return Ok(()),
                },
                // The turns are bounded by the client itself.
                turn = unconstrained(turn) => Some(turn),
            };
            match turn {
                None => {
                    let phase = *self.phase.borrow_and_update();
                    self.enter(&mut client, phase);
                }
                // Sent once more: its lease is the same.
                Some(Turn::Configured) => {}
                Some(Turn::Served) => self.tell(News::Served).await,
                Some(Turn::Closed) => return Ok(()),
                Some(Turn::Lost(loss)) => return Err(loss.to_string()),
            }
        }
    }

    fn enter(&self, client: &mut Client, phase: Phase) {
        match phase {
            Phase::Connect => {}
            Phase::Traffic => client.begin(clock::now() + self.offset, self.every),
            Phase::Rest => client.rest(),
            Phase::End => client.close(),
        }
    }

    async fn tell(&self, news: News) {
        // Whoever does not listen any more has ended the swarm.
        let _ = self.news.send(news).await;
    }
}

/// Says why an attempt has failed in words that are the same for all members.
fn cause(error: &ConnectFailure) -> String {
    match error {
        ConnectFailure::Silent { server, .. } => format!(
            "{server}: no answer to the handshake: the server is down or too busy, or does not list the clients' keys, or \
             no {} comes through",
            server.scheme.as_str()
        ),
        ConnectFailure::Dial(_)
        | ConnectFailure::Io { .. }
        | ConnectFailure::Closed { .. }
        | ConnectFailure::Frame { .. }
        | ConnectFailure::Handshake { .. } => error.to_string(),
    }
}

/// How often a member tries to connect: a server that is busy may let one attempt fall.
const ATTEMPTS: usize = 3;
