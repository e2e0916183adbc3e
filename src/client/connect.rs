//! Makes a lane to the server and proves on it who both ends are.
//!
//! # Theory of operation
//!
//! One attempt: resolve the name anew, connect, by way of a proxy if there is one, TLS and a WebSocket where the
//! address says so ([`Dialer`]), then send the handshake's first message, and in front of it, if there is a session to go on with,
//! a frame that joins the new lane to it. Both leave in one flight. A server that still has
//! the session answers the join and never looks at the handshake; one that does not (it was
//! restarted) is silent about the join and answers the handshake.
//!
//! Datagrams need no connection: a lane joins by one datagram, which the session itself repeats,
//! so all that is made here is a way to send it ([`Connector::ways`]), and a handshake
//! where there is no session to join. The addresses of a name are raced as connections are.
//!
//! # Limits
//!
//! An attempt may take [`Connector::time`], of which the handshake gets at least
//! [`HANDSHAKE_LEAST`]. A server that wants proof of freshness may ask for it twice.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep_until, timeout};

use crate::config::LaneAddr;
use crate::io::carrier::Carrier;
use crate::io::clock;
use crate::io::dial::{DialError, Dialer, race};
use crate::io::lane::{FrameError, ReadError, StreamLane};
use crate::io::pool::Pool;
use crate::io::udp::{FORBIDDEN, Feedback, Receiver, SendBatch, Sender, Target, UdpIo};
use crate::proto::{
    ClientConfig, DatagramInitiator, DatagramPath, HandshakeError, Initiator, Reply,
};
use crate::wire::{FrameType, LaneId, RefuseReason, frame_type};

/// Everything an attempt needs, whichever server it goes to.
#[derive(Debug)]
pub struct Connector {
    /// Where the server is, in the order to try.
    pub servers: Vec<LaneAddr>,
    /// How connections are made.
    pub dialer: Dialer,
    /// Who we are and whom we expect.
    pub handshake: ClientConfig,
    /// How long an attempt may take, from the name to the handshake's answer.
    pub time: Duration,
    /// How many lanes carry a session side by side where they are streams.
    pub lanes: usize,
    /// Which of this host's addresses datagrams are sent from; without, whichever it takes at the time.
    pub source: Option<IpAddr>,
    /// Set when a server took our time for stale: it began later than that, or has heard a later time of this instance.
    pub doubted: Arc<AtomicBool>,
    /// Buffers for the lanes.
    pub pool: Arc<Pool>,
}

/// What an attempt has brought.
#[derive(Debug)]
pub enum Connected {
    /// A fresh session, not yet configured, with its first lane.
    Fresh(Box<Carrier>),
    /// Another lane of the session there was.
    Joined {
        /// The lane.
        lane: Box<StreamLane>,
        /// Its number.
        id: LaneId,
        /// The server's first frame on it, still sealed.
        first: Vec<u8>,
    },
    /// Where another lane may be joined by datagrams.
    Ways(Vec<Way>),
}

/// A way for datagrams.
#[derive(Debug)]
pub struct Way {
    /// Where they go.
    pub path: DatagramPath,
    /// What comes back.
    pub receiver: Receiver,
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
        "{server}: no answer to the handshake: either {}this is not an Adit server, or `server_key` \
         is not its key, or it does not list this client's public key {public_key}",
        unheard(server)
    )]
    Silent {
        /// The server.
        server: LaneAddr,
        /// Our public key, as the server should list it.
        public_key: String,
    },
    /// The answer was no frame.
    #[error(
        "{server}: what answers there does not speak Adit: {error}{}",
        other_scheme(error)
    )]
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

impl ConnectFailure {
    /// Whether the server says that it lets this client in no more.
    pub const fn is_revocation(&self) -> bool {
        matches!(
            self,
            Self::Handshake {
                error: HandshakeError::Refused {
                    reason: RefuseReason::Revoked,
                    ..
                },
                ..
            }
        )
    }
}

impl Connector {
    /// Makes one attempt at `server`; `join` is a lane number and the frame that joins it
    /// to the session there is, and `fresh` says whether a new session would do as well.
    ///
    /// # Errors
    ///
    /// Whatever kept the attempt from succeeding, with the server's address.
    pub async fn attempt(
        self: Arc<Self>,
        server: LaneAddr,
        join: Option<(LaneId, Vec<u8>)>,
        fresh: bool,
    ) -> Result<Connected, ConnectFailure> {
        if !server.scheme.is_stream() {
            return self.datagrams(server).await;
        }
        let start = clock::now();
        let stream = self.dialer.dial(&server, &self.pool, self.time).await?;
        let lane = StreamLane::new(stream, self.pool.clone());
        let left = self.time.saturating_sub(clock::now() - start);
        let exchange = self.exchange(&server, lane, join, fresh);
        match timeout(left.max(HANDSHAKE_LEAST), exchange).await {
            Ok(result) => result,
            Err(_) => Err(ConnectFailure::Silent {
                server,
                public_key: self.handshake.secret.public().to_string(),
            }),
        }
    }

    /// Finds the ways to `server` by datagrams: one for each family that it and this host have.
    ///
    /// # Errors
    ///
    /// The name cannot be resolved, or there is no socket.
    pub async fn ways(self: Arc<Self>, server: LaneAddr) -> Result<Connected, ConnectFailure> {
        let mut ways: Vec<Way> = Vec::new();
        let mut failed = None;
        for remote in self.addresses(&server).await? {
            if ways
                .iter()
                .any(|way| way.path.remote.is_ipv4() == remote.is_ipv4())
            {
                continue;
            }
            match self.way(remote) {
                Ok(way) => ways.push(way),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if ways.is_empty() => Err(ConnectFailure::Io { server, error }),
            Some(_) | None => Ok(Connected::Ways(ways)),
        }
    }

    /// Returns where datagrams to `server` may be sent.
    async fn addresses(&self, server: &LaneAddr) -> Result<Vec<SocketAddr>, DialError> {
        if self.dialer.proxy_for(&server.host).is_some() {
            // Not past the proxy, which would tell the network what it is there to hide.
            return Err(DialError::NoDatagrams {
                addr: server.clone(),
            });
        }
        self.dialer.addresses(server, self.time).await
    }

    fn way(&self, remote: SocketAddr) -> io::Result<Way> {
        let io = Arc::new(match self.source {
            Some(source) => UdpIo::sending_from(source)?,
            None => UdpIo::for_remote(remote)?,
        });
        self.dialer.outside().prepare(&*io)?;
        let path = DatagramPath {
            socket: io.id(),
            ..DatagramPath::to(remote)
        };
        let receiver = Receiver::new(io, self.pool.clone());
        Ok(Way { path, receiver })
    }

    /// A handshake over datagrams with whichever address of `server` answers first.
    async fn datagrams(&self, server: LaneAddr) -> Result<Connected, ConnectFailure> {
        let deadline = clock::now() + self.time;
        let found = self.addresses(&server).await?;
        let complaint = Mutex::new(None);
        let greet = |remote| self.greet(remote, &complaint);
        let outcome = race(found, deadline.into(), greet).await;
        let outcome = outcome.map_err(|attempts| DialError::Connect {
            addr: server.clone(),
            attempts,
        });
        let complaint = complaint
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok((Ok(carrier), _)) => Ok(Connected::Fresh(carrier)),
            Ok((Err(error), _)) => Err(ConnectFailure::Handshake { server, error }),
            Err(error) if error.is_silence() => Err(match complaint {
                Some(error) => ConnectFailure::Handshake { server, error },
                None => ConnectFailure::Silent {
                    server,
                    public_key: self.handshake.secret.public().to_string(),
                },
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// A handshake over datagrams with one address; ends when it is answered. What there was to say against answers that
    /// did not do is left in `complaint`.
    async fn greet(
        &self,
        remote: SocketAddr,
        complaint: &Mutex<Option<HandshakeError>>,
    ) -> io::Result<Result<Box<Carrier>, HandshakeError>> {
        let Way { path, mut receiver } = self.way(remote)?;
        let io = receiver.io().clone();
        // An Init may be larger than the path takes whole.
        io.set_may_fragment(true)?;
        let mut sender = Sender::new(io.clone());
        let mut batch = SendBatch::new(self.pool.clone());
        let target = Target {
            to: remote,
            source: None,
            ecn: None,
        };
        let made = DatagramInitiator::new(clock::now(), &self.handshake, path, &mut rand::rng());
        let mut initiator = match made {
            Ok(initiator) => initiator,
            Err(error) => return Ok(Err(error)),
        };
        let mut init = Vec::new();
        loop {
            match initiator.poll_transmit(clock::now(), clock::unix(), &mut init) {
                Ok(true) => {
                    if let Some(room) = batch.reserve(init.len()) {
                        room.copy_from_slice(&init);
                        batch.commit(init.len(), target);
                    }
                    poll_fn(|cx| sender.poll_flush(cx, &mut batch)).await;
                    doubt(&mut initiator, remote, sender.take_feedback())?;
                }
                Ok(false) => {}
                Err(error) => return Ok(Err(error)),
            }
            let again = sleep_until(initiator.poll_timeout().into());
            tokio::select! {
                () = again => {}
                received = poll_fn(|cx| receiver.poll_recv(cx)) => {
                    doubt(&mut initiator, remote, received.err())?;
                }
            }
            while let Some(datagram) = receiver.next_datagram() {
                if datagram.from != remote {
                    continue;
                }
                match initiator.handle(clock::now(), datagram.bytes) {
                    Ok(Some(session)) => {
                        io.set_may_fragment(false)?;
                        let pool = self.pool.clone();
                        let (first, receiver) = (LaneId::FIRST, Some(receiver));
                        let carrier = Carrier::over_datagrams(*session, first, receiver, pool);
                        return Ok(Ok(Box::new(carrier)));
                    }
                    Ok(None) => {
                        if let Some(error) = initiator.take_complaint() {
                            *complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
    }

    async fn exchange(
        &self,
        server: &LaneAddr,
        mut lane: StreamLane,
        join: Option<(LaneId, Vec<u8>)>,
        fresh: bool,
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
        if fresh || join.is_none() {
            lane.push_control(&init);
        }
        loop {
            lane.flush().await.map_err(failed)?;
            let Some(frame) = lane.read_frame().await.map_err(|error| match error {
                ReadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    ConnectFailure::Closed {
                        server: server.clone(),
                    }
                }
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
                    lane: Box::new(lane),
                    id: *id,
                    first: frame,
                });
            }
            match initiator.handle(clock::now(), clock::unix(), &frame) {
                Ok(Reply::Established(session)) => {
                    let carrier = Carrier::new(*session, LaneId::FIRST, lane);
                    return Ok(Connected::Fresh(Box::new(carrier)));
                }
                Ok(Reply::Retry(again)) => {
                    self.doubted.store(true, Ordering::Relaxed);
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

/// Takes what the network says about a handshake that is sent to `remote`.
///
/// # Errors
///
/// Nobody is there, or there is no way, and that is to be believed.
fn doubt(
    initiator: &mut DatagramInitiator,
    remote: SocketAddr,
    feedback: Option<Feedback>,
) -> io::Result<()> {
    let said = match feedback {
        None => return Ok(()),
        Some(Feedback::TooBig { mtu }) => {
            tracing::debug!(%remote, mtu, "a handshake is too long for its way");
            return Ok(());
        }
        Some(Feedback::Refused) => io::ErrorKind::ConnectionRefused.into(),
        Some(Feedback::Unreachable) => io::ErrorKind::NetworkUnreachable.into(),
        Some(Feedback::Forbidden) => io::Error::new(io::ErrorKind::PermissionDenied, FORBIDDEN),
    };
    if initiator.handle_refused() {
        return Err(said);
    }
    tracing::debug!(%remote, %said, "the network says a handshake does not arrive");
    Ok(())
}

/// Adds what may be the matter where not even a connection shows that the server is there.
fn unheard(server: &LaneAddr) -> &'static str {
    if server.scheme.is_stream() {
        ""
    } else {
        "no UDP passes, or the server is down, or "
    }
}

/// Adds what may be the matter where a frame's length is the beginning of a TLS record, type 21 (alert) or 22
/// (handshake), version 3 (RFC 8446, section 5.1), or of an answer over HTTP.
fn other_scheme(error: &FrameError) -> &'static str {
    match error {
        FrameError::TooLong { length, .. } if matches!(length >> 16, 0x1503 | 0x1603) => {
            " (a tls:// port, perhaps?)"
        }
        FrameError::TooLong { length, .. } if length.to_be_bytes() == *b"HTTP" => {
            " (a wss:// or ws:// port, perhaps?)"
        }
        FrameError::TooLong { .. } | FrameError::Empty | FrameError::Truncated { .. } => "",
    }
}

/// What the handshake's answer gets of an attempt at least, however long dialling took: two
/// round trips of a very slow link.
pub const HANDSHAKE_LEAST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::io::tls::{ClientTls, Verify};
    use crate::proto::{
        Answer, ClientEntry, DatagramResponder, LoadLimits, PresharedKey, PublicKey, Reception,
        Responder, SecretKey, Settings,
    };

    #[test]
    fn silence_by_udp_may_be_the_way_and_by_a_connection_may_not() {
        let silent = |server: &str| {
            let server = server.parse().expect("an address");
            let public_key = "KEY".to_owned();
            ConnectFailure::Silent { server, public_key }.to_string()
        };
        assert!(
            silent("udp://h:1").contains("either no UDP passes, or the server is down, or this")
        );
        for stream in ["tcp://h:1", "tls://h:1", "wss://h:1", "ws://h:1"] {
            assert!(silent(stream).contains("either this is not an Adit server"));
        }
    }

    /// An attempt of two seconds at a server with `server_psk`, by a client that has none.
    async fn attempt_at(server_psk: Option<PresharedKey>) -> ConnectFailure {
        let mut rng = rand::rng();
        let (secret, own) = (SecretKey::generate(&mut rng), SecretKey::generate(&mut rng));
        let connector = Connector {
            servers: Vec::new(),
            dialer: Dialer::new(ClientTls::new(&Verify::Unchecked).unwrap()),
            handshake: ClientConfig::new(own, secret.public(), *b"instance"),
            time: Duration::from_secs(2),
            lanes: 1,
            source: None,
            doubted: Arc::default(),
            pool: Pool::new("test", 4, 4),
        };
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = format!("udp://{}", socket.local_addr().unwrap());
        let answering = async move {
            let responder = Responder::new(vec![secret], &[], Settings::default(), UNIX_EPOCH);
            let limits = LoadLimits::default();
            let mut strangers = DatagramResponder::new(Arc::new(responder), limits, &mut rng);
            let mut init = [0; 2048];
            loop {
                let (len, from) = socket.recv_from(&mut init).await.unwrap();
                let entry = |_: &PublicKey| {
                    server_psk.as_ref().map(|psk| ClientEntry {
                        psk: Some(psk.clone()),
                        ..ClientEntry::default()
                    })
                };
                let path = DatagramPath::to(from);
                let reception = strangers.handle(clock::now(), path, &init[..len], 0, entry);
                if let Reception::Handshake(Answer::Accept { reply, .. }) = reception {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        };
        let attempt = Arc::new(connector).attempt(server.parse().unwrap(), None, true);
        tokio::select! {
            outcome = attempt => outcome.expect_err("no session"),
            () = answering => unreachable!("it answers for ever"),
        }
    }

    #[tokio::test]
    async fn answer_by_udp_that_does_not_open_is_not_called_silence() {
        let psk = PresharedKey::from_bytes([7; 32]);
        let failure = attempt_at(Some(psk)).await;
        assert!(
            matches!(
                failure,
                ConnectFailure::Handshake {
                    error: HandshakeError::Rejected,
                    ..
                }
            ),
            "{failure}"
        );
        let failure = attempt_at(None).await;
        assert!(
            matches!(failure, ConnectFailure::Silent { .. }),
            "{failure}"
        );
    }
}
