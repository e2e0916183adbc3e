//! What happens to a connection before anybody knows who it is.
//!
//! # Theory of operation
//!
//! A connection gets one bounded buffer and [`AUTHENTICATION_TIMEOUT`]. Where the lane is a WebSocket, whoever does not ask
//! for it rightly gets 404 for all of that time ([`websocket::accept`](fn@websocket::accept)). Its first frames may
//! be a join, which is passed to the session it names, or a handshake, which is answered if
//! it is in order. Everything else, garbage, other protocols, replays, is read and thrown
//! away without a word until the time is over: a stranger learns nothing, not even where
//! its mistake was.
//!
//! # Limits
//!
//! At most [`MAX_STRANGERS`] such connections at once; one more waits in the kernel's backlog.
//! While more than half of that many are there, newcomers get only [`CROWDED_TIMEOUT`], so
//! that a crowd of silent ones cannot keep clients out for long. A frame of a stranger is at
//! most [`crate::wire::MAX_FRAME_PREAUTH`] bytes. A connection may ask to join once, and is not
//! listened to any more after a handshake that is not in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::{debug, trace};

use super::leases::Owner;
use super::registry::{Join, Joined};
use super::session::{Guest, SessionDriver};
use super::shared::Shared;
use crate::config::ListenAddr;
use crate::io::clock;
use crate::io::lane::{LaneStream, StreamLane};
use crate::io::websocket;
use crate::proto::{Answer, ChallengeState, Silence};
use crate::wire::{FrameType, frame_type, join_session_id};

/// What became of connections before they were known.
#[derive(Debug, Default)]
pub struct AcceptStats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Handshakes answered.
    pub handshakes: AtomicU64,
    /// Lanes that joined a session.
    pub joins: AtomicU64,
    /// Joins whose proof did not hold, or whose session is not there or has no room.
    pub joins_refused: AtomicU64,
    /// Handshakes that were not in order.
    pub handshakes_refused: AtomicU64,
    /// Challenges sent.
    pub challenges: AtomicU64,
    /// Connections that sent something that is no frame, or no request.
    pub garbage: AtomicU64,
    /// Connections that were not known in time, or closed before.
    pub unknown: AtomicU64,
    /// TLS handshakes that failed.
    pub tls_failed: AtomicU64,
}

/// Serves one accepted connection until it is a lane, or its time is over.
pub async fn serve(
    shared: Arc<Shared>,
    at: Arc<ListenAddr>,
    socket: TcpStream,
    permit: OwnedSemaphorePermit,
    crowded: bool,
) {
    shared.accept_stats.accepted.fetch_add(1, Ordering::Relaxed);
    let stop = shared.stop.clone();
    let known = tokio::select! {
        () = stop.cancelled() => return,
        known = timeout(
            if crowded { CROWDED_TIMEOUT } else { AUTHENTICATION_TIMEOUT },
            authenticate(&shared, &at, socket, permit),
        ) => known,
    };
    match known {
        Ok(Some(driver)) => driver.run().await,
        Ok(None) => {}
        Err(_) => {
            shared.accept_stats.unknown.fetch_add(1, Ordering::Relaxed);
            trace!("a connection was not known in time");
        }
    }
}

async fn authenticate(
    shared: &Arc<Shared>,
    at: &ListenAddr,
    socket: TcpStream,
    permit: OwnedSemaphorePermit,
) -> Option<SessionDriver> {
    let stats = &shared.accept_stats;
    let stream = open(shared, at, socket).await?;
    let mut lane = StreamLane::new(stream, shared.pool.clone());
    let mut challenge = ChallengeState::default();
    let mut asked_to_join = false;
    loop {
        let frame = match lane.read_frame().await {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                stats.unknown.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            Err(error) => {
                stats.garbage.fetch_add(1, Ordering::Relaxed);
                trace!(%error, "not a frame");
                return discard(lane).await;
            }
        };
        match frame_type(&frame) {
            // Each costs a session's driver time: no client sends a second one.
            Some(FrameType::Join) if asked_to_join => {
                stats.joins_refused.fetch_add(1, Ordering::Relaxed);
                return discard(lane).await;
            }
            Some(FrameType::Join) => {
                asked_to_join = true;
                let joins = join_session_id(&frame).and_then(|id| shared.registry.find(id));
                let Some(joins) = joins else {
                    stats.joins_refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                match Join::ask(&joins, frame, lane).await {
                    Joined::Taken => {
                        stats.joins.fetch_add(1, Ordering::Relaxed);
                        return None;
                    }
                    Joined::Refused(given_back) => {
                        stats.joins_refused.fetch_add(1, Ordering::Relaxed);
                        lane = *given_back;
                    }
                    Joined::Gone => {
                        stats.joins_refused.fetch_add(1, Ordering::Relaxed);
                        return None;
                    }
                }
            }
            Some(FrameType::HandshakeInit) => {
                let answer = shared.responder.handle_init(
                    clock::now(),
                    &frame,
                    &mut challenge,
                    &mut rand::rng(),
                    |key| shared.handshake_entry(key),
                );
                match answer {
                    Ok(Answer::Challenge(frame)) => {
                        stats.challenges.fetch_add(1, Ordering::Relaxed);
                        lane.push_control(&frame);
                        lane.flush().await.ok()?;
                    }
                    Ok(Answer::Accept {
                        reply,
                        session,
                        peer,
                        instance,
                        guest,
                        ..
                    }) => {
                        let guest = match guest.map(|id| Guest::admit(shared, id)) {
                            Some(None) => return discard(lane).await,
                            Some(Some(guest)) => Some(guest),
                            None => None,
                        };
                        stats.handshakes.fetch_add(1, Ordering::Relaxed);
                        lane.push_control(&reply);
                        return SessionDriver::new(
                            shared.clone(),
                            *session,
                            lane,
                            Owner {
                                key: peer,
                                instance,
                            },
                            permit,
                            guest,
                        );
                    }
                    Ok(Answer::Refuse {
                        reply,
                        reason,
                        peer,
                    }) => {
                        stats.handshakes_refused.fetch_add(1, Ordering::Relaxed);
                        shared.tell_refused(&peer, reason);
                        lane.push_control(&reply);
                        lane.flush().await.ok()?;
                        return None;
                    }
                    Err(silence) => {
                        stats.handshakes_refused.fetch_add(1, Ordering::Relaxed);
                        debug!(%silence, "a handshake was not answered");
                        if let Silence::UnknownKey { key } = &silence {
                            shared.unlisted.tell(key);
                        }
                        // What follows a wrong one is not worth the price of another.
                        return discard(lane).await;
                    }
                }
            }
            Some(_) | None => {
                stats.garbage.fetch_add(1, Ordering::Relaxed);
                return discard(lane).await;
            }
        }
    }
}

/// Puts on a connection what lanes have there: TLS, a WebSocket.
async fn open(shared: &Shared, at: &ListenAddr, socket: TcpStream) -> Option<LaneStream> {
    let stats = &shared.accept_stats;
    let mut stream = LaneStream::Tcp(socket);
    if at.scheme.is_tls() {
        stream = match shared.tls()?.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                stats.tls_failed.fetch_add(1, Ordering::Relaxed);
                debug!(%error, "a TLS handshake failed");
                return None;
            }
        };
    }
    if !at.scheme.is_websocket() {
        return Some(stream);
    }
    match websocket::accept(stream, &at.path, shared.pool.clone()).await {
        Ok(Some(socket)) => Some(LaneStream::WebSocket(Box::new(socket))),
        Ok(None) => {
            stats.unknown.fetch_add(1, Ordering::Relaxed);
            None
        }
        Err(error) => {
            stats.garbage.fetch_add(1, Ordering::Relaxed);
            trace!(%error, "not a request");
            None
        }
    }
}

/// Reads and throws away what a stranger sends until it leaves or its time is over: closing
/// at the first wrong byte would tell it where that was.
async fn discard(lane: StreamLane) -> Option<SessionDriver> {
    let mut stream = lane.into_stream();
    let mut waste = [0u8; 512];
    while stream.read(&mut waste).await.is_ok_and(|n| n > 0) {}
    None
}

/// How long a connection may stay unknown: a TLS handshake and three round trips over the
/// slowest link we care about.
pub const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(15);

/// The same while the place is crowded: what an honest client on an ordinary link needs.
pub const CROWDED_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections that may be unknown at the same time: 1,024 handshakes take about a second,
/// and their buffers 4 MiB.
pub const MAX_STRANGERS: usize = 1024;
