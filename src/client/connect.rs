//! Makes a lane to the server and proves on it who both ends are.
//!
//! # Theory of operation
//!
//! One attempt: resolve the name anew, connect, TLS where the address says so, then send
//! the handshake's first message, and in front of it, if there is a session to go on with,
//! a frame that joins the new lane to it. Both leave in one flight. A server that still has
//! the session answers the join and never looks at the handshake; one that does not (it was
//! restarted) is silent about the join and answers the handshake.
//!
//! # Limits
//!
//! An attempt may take [`Connector::time`], of which the handshake gets at least
//! [`HANDSHAKE_LEAST`]. A server that wants proof of freshness may ask for it twice.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::config::LaneAddr;
use crate::io::clock;
use crate::io::dial::{DialError, dial};
use crate::io::lane::{FrameError, ReadError, StreamLane};
use crate::io::pool::Pool;
use crate::io::tls::ClientTls;
use crate::proto::{ClientConfig, HandshakeError, Initiator, Reply, Session};
use crate::wire::{FrameType, LaneId, frame_type};

/// Everything an attempt needs, whichever server it goes to.
#[derive(Debug)]
pub struct Connector {
    /// Where the server is, in the order to try.
    pub servers: Vec<LaneAddr>,
    /// How TLS lanes check the server's certificate.
    pub tls: ClientTls,
    /// Who we are and whom we expect.
    pub handshake: ClientConfig,
    /// How long an attempt may take, from the name to the handshake's answer.
    pub time: Duration,
    /// Buffers for the lanes.
    pub pool: Arc<Pool>,
}

/// What an attempt has brought.
#[derive(Debug)]
pub enum Connected {
    /// A fresh session.
    Fresh {
        /// The session, not yet configured.
        session: Box<Session>,
        /// Its first lane.
        lane: StreamLane,
    },
    /// Another lane of the session there was.
    Joined {
        /// The lane.
        lane: StreamLane,
        /// Its number.
        id: LaneId,
        /// The server's first frame on it, still sealed.
        first: Vec<u8>,
    },
}

/// Why an attempt has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection failed during the handshake.
    #[error("{server}: the connection failed during the handshake: {error}")]
    Io {
        /// The server.
        server: LaneAddr,
        /// What failed.
        error: io::Error,
    },
    /// The server closed the connection before it had answered.
    #[error("{server}: closed the connection without an answer")]
    Closed {
        /// The server.
        server: LaneAddr,
    },
    /// The server did not answer.
    #[error(
        "{server}: no answer to the handshake: either this is not an Adit server, or `server_key` \
         is not its key, or it does not list this client's public key {public_key}"
    )]
    Silent {
        /// The server.
        server: LaneAddr,
        /// Our public key, as the server should list it.
        public_key: String,
    },
    /// The answer was no frame.
    #[error("{server}: what answers there does not speak Adit: {error}")]
    Frame {
        /// The server.
        server: LaneAddr,
        /// What was wrong.
        error: FrameError,
    },
    /// The answer was wrong.
    #[error("{server}: {error}")]
    Handshake {
        /// The server.
        server: LaneAddr,
        /// What was wrong.
        error: HandshakeError,
    },
}

impl Connector {
    /// Makes one attempt at `server`; `join` is a lane number and the frame that joins it
    /// to the session there is.
    ///
    /// # Errors
    ///
    /// Whatever kept the attempt from succeeding, with the server's address.
    pub async fn attempt(
        self: Arc<Self>,
        server: LaneAddr,
        join: Option<(LaneId, Vec<u8>)>,
    ) -> Result<Connected, ConnectFailure> {
        let start = clock::now();
        let stream = dial(&server, &self.tls, self.time).await?;
        let lane = StreamLane::new(stream, self.pool.clone());
        let left = self.time.saturating_sub(clock::now() - start);
        let exchange = self.exchange(&server, lane, join);
        match timeout(left.max(HANDSHAKE_LEAST), exchange).await {
            Ok(result) => result,
            Err(_) => Err(ConnectFailure::Silent {
                server,
                public_key: self.handshake.secret.public().to_string(),
            }),
        }
    }

    async fn exchange(
        &self,
        server: &LaneAddr,
        mut lane: StreamLane,
        join: Option<(LaneId, Vec<u8>)>,
    ) -> Result<Connected, ConnectFailure> {
        let failed = |error| ConnectFailure::Io {
            server: server.clone(),
            error,
        };
        let wrong = |error| ConnectFailure::Handshake {
            server: server.clone(),
            error,
        };
        let (mut initiator, init) =
            Initiator::new(&self.handshake, clock::unix(), &mut rand::rng()).map_err(wrong)?;
        if let Some((_, frame)) = &join {
            lane.push_control(frame);
        }
        lane.push_control(&init);
        loop {
            lane.flush().await.map_err(failed)?;
            let Some(frame) = lane.read_frame().await.map_err(|error| match error {
                ReadError::Io(error) => failed(error),
                ReadError::Frame(error) => ConnectFailure::Frame {
                    server: server.clone(),
                    error,
                },
            })?
            else {
                return Err(ConnectFailure::Closed {
                    server: server.clone(),
                });
            };
            if let (Some((id, _)), Some(FrameType::Sealed)) = (&join, frame_type(&frame)) {
                return Ok(Connected::Joined {
                    lane,
                    id: *id,
                    first: frame,
                });
            }
            match initiator.handle(clock::now(), clock::unix(), &frame) {
                Ok(Reply::Established(session)) => {
                    return Ok(Connected::Fresh { session, lane });
                }
                Ok(Reply::Retry(again)) => {
                    lane.push_control(&again);
                }
                Err(error) => {
                    return Err(ConnectFailure::Handshake {
                        server: server.clone(),
                        error,
                    });
                }
            }
        }
    }
}

/// What the handshake's answer gets of an attempt at least, however long dialling took: two
/// round trips of a very slow link.
pub const HANDSHAKE_LEAST: Duration = Duration::from_secs(2);
