//! The client's side of the handshake.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::exchange::{Agreed, ExchangeError, Hello, Opening};
use crate::proto::aead::{AeadKind, AeadOffer, aes_hardware};
use crate::proto::identity::{PresharedKey, PublicKey, SecretKey};
use crate::proto::keys::Role;
use crate::proto::random::Generator;
use crate::proto::session::{Agreement, FirstLane, Session, Settings};
use crate::wire::{
    CAPABILITY_RELAYED, CHALLENGE_LEN, FrameType, HandshakeFormatError, HandshakeFrame,
    HandshakeKind, INSTANCE_LEN, InvitationId, MINOR, RefuseReason, SessionId,
};

/// Who the client is, whom it calls, and how.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The client's key.
    pub secret: SecretKey,
    /// The server's public key.
    pub server: PublicKey,
    /// A secret shared with the server beside the keys.
    pub psk: Option<PresharedKey>,
    /// Random name of this run of the client; keeps its leases apart from those of other runs.
    pub instance: [u8; INSTANCE_LEN],
    /// AEADs to offer; empty for AES-256-GCM and ChaCha20-Poly1305.
    pub aead: Vec<AeadKind>,
    /// Strength of the post-quantum half.
    pub kem: KemKind,
    /// Limits and time-outs of the session.
    pub settings: Settings,
    /// The invitation by which the key is to become a client's: the session is a guest's then, good for
    /// [`Session::enrol`] alone.
    pub invitation: Option<InvitationId>,
}

impl ClientConfig {
    /// Everything by default but the three values that have none.
    #[must_use]
    pub fn new(secret: SecretKey, server: PublicKey, instance: [u8; INSTANCE_LEN]) -> Self {
        Self {
            secret,
            server,
            psk: None,
            instance,
            aead: Vec::new(),
            kem: KemKind::default(),
            settings: Settings::default(),
            invitation: None,
        }
    }
}

/// The ML-KEM parameter set (FIPS 203, section 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KemKind {
    /// Category 3, 1,184-byte keys: message 1 fits one datagram.
    #[default]
    MlKem768,
    /// Category 5, 1,568-byte keys: stream lanes only.
    MlKem1024,
}

impl KemKind {
    const fn session(self) -> HandshakeKind {
        match self {
            Self::MlKem768 => HandshakeKind::Session768,
            Self::MlKem1024 => HandshakeKind::Session1024,
        }
    }
}

/// A handshake under way over a stream. Dropped when the connection it belongs to ends.
#[derive(Debug)]
pub struct Initiator {
    caller: Caller,
    opening: Option<Opening>,
    challenges: u8,
}

impl Initiator {
    /// Begins a handshake; returns it with the whole HandshakeInit frame to send.
    ///
    /// `now_unix` is the wall clock: the server takes a message older than one it knows for a
    /// replay and asks again.
    ///
    /// # Errors
    /// [`HandshakeError::ServerKey`] when the server's key can be nobody's.
    pub fn new(
        config: &ClientConfig,
        now_unix: SystemTime,
        rng: &mut impl rand::CryptoRng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let mut initiator = Self {
            caller: Caller::new(config, rng),
            opening: None,
            challenges: 0,
        };
        let frame = initiator.open(now_unix, None)?;
        Ok((initiator, frame))
    }

    /// Takes a whole frame the server sent on the connection.
    ///
    /// # Errors
    /// [`HandshakeError`]. The connection is of no more use after one.
    pub fn handle(
        &mut self,
        now: Instant,
        now_unix: SystemTime,
        frame: &[u8],
    ) -> Result<Reply, HandshakeError> {
        let frame = HandshakeFrame::parse(frame)?;
        if frame.kind != self.caller.kind() {
            return Err(HandshakeError::Kind { found: frame.kind });
        }
        match frame.frame_type {
            FrameType::HandshakeReply => self.establish(now, frame.body),
            FrameType::Challenge => self.retry(now_unix, frame.body),
            FrameType::HandshakeInit | FrameType::Sealed | FrameType::Join => {
                Err(HandshakeError::Unexpected {
                    found: frame.frame_type,
                })
            }
        }
    }

    fn open(
        &mut self,
        now_unix: SystemTime,
        challenge: Option<[u8; CHALLENGE_LEN]>,
    ) -> Result<Vec<u8>, HandshakeError> {
        let (opening, message) = self.caller.open(now_unix, challenge)?;
        self.opening = Some(opening);
        let frame = HandshakeFrame {
            frame_type: FrameType::HandshakeInit,
            kind: self.caller.kind(),
            body: &message,
        };
        Ok(frame.to_vec())
    }

    fn retry(&mut self, now_unix: SystemTime, body: &[u8]) -> Result<Reply, HandshakeError> {
        let challenge = parse_challenge(body)?;
        if self.opening.is_none() {
            return Err(HandshakeError::Finished);
        }
        if self.challenges >= super::challenge::MAX_CHALLENGES {
            return Err(HandshakeError::TooManyChallenges);
        }
        self.challenges += 1;
        self.open(now_unix, Some(challenge)).map(Reply::Retry)
    }

    fn establish(&mut self, now: Instant, message: &[u8]) -> Result<Reply, HandshakeError> {
        let mut opening = self.opening.take().ok_or(HandshakeError::Finished)?;
        let agreed = opening.finish(message)?;
        self.caller
            .establish(now, agreed, FirstLane::Stream)
            .map(Reply::Established)
    }
}

/// The client, as every message 1 and every session of it needs it.
#[derive(Debug)]
pub(super) struct Caller {
    config: ClientConfig,
    offer: AeadOffer,
    generator: Generator,
}

impl Caller {
    pub(super) fn new(config: &ClientConfig, rng: &mut impl rand::CryptoRng) -> Self {
        Self {
            config: config.clone(),
            offer: AeadOffer::new(&config.aead, aes_hardware()),
            generator: Generator::new(rng),
        }
    }

    pub(super) const fn kind(&self) -> HandshakeKind {
        self.config.kem.session()
    }

    pub(super) const fn generator(&mut self) -> &mut Generator {
        &mut self.generator
    }

    /// Makes a message 1.
    pub(super) fn open(
        &mut self,
        now_unix: SystemTime,
        challenge: Option<[u8; CHALLENGE_LEN]>,
    ) -> Result<(Opening, Vec<u8>), HandshakeError> {
        let hello = Hello {
            minor: MINOR,
            capabilities: capabilities(&self.config.settings),
            aead_offered: self.offer.spoken,
            aead_hardware: self.offer.hardware,
            instance: self.config.instance,
            time: unix_micros(now_unix),
            challenge,
            invitation: self.config.invitation,
        };
        Opening::start(
            self.kind(),
            &[],
            &self.config.secret,
            &self.config.server,
            self.config.psk.as_ref(),
            &hello,
            self.generator.child(),
        )
        .map_err(|_| HandshakeError::ServerKey {
            key: self.config.server,
        })
    }

    /// Makes the session that a message 2 agreed to.
    pub(super) fn establish(
        &mut self,
        now: Instant,
        agreed: Agreed,
        first_lane: FirstLane,
    ) -> Result<Box<Session>, HandshakeError> {
        let aead = AeadKind::from_byte(agreed.aead)
            .filter(|kind| self.offer.includes(*kind))
            .ok_or(HandshakeError::Aead { found: agreed.aead })?;
        let agreement = Agreement {
            role: Role::Initiator,
            id: SessionId(agreed.session),
            kind: self.kind(),
            secret: self.config.secret.clone(),
            peer: self.config.server,
            psk: self.config.psk.clone(),
            instance: self.config.instance,
            aead,
            peer_minor: agreed.minor,
            capabilities: capabilities(&self.config.settings) & agreed.capabilities,
            keys: agreed.secrets.derive(aead, Role::Initiator),
            settings: self.config.settings,
            generator: self.generator.child(),
            first_lane,
            guest: self.config.invitation.is_some(),
        };
        Ok(Box::new(Session::new(now, agreement)))
    }
}

pub(super) fn parse_challenge(body: &[u8]) -> Result<[u8; CHALLENGE_LEN], HandshakeError> {
    body.try_into()
        .map_err(|_| HandshakeError::Challenge { len: body.len() })
}

/// What a frame of the server led to.
#[derive(Debug)]
pub enum Reply {
    /// There is a session; its first lane is the connection the handshake ran over.
    Established(Box<Session>),
    /// The server wants proof that message 1 is fresh: send this whole frame.
    Retry(Vec<u8>),
}

/// Why a handshake failed, as the client sees it. A server that does not know the key, or finds
/// the message wrong in any way, says nothing at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The answer is no handshake frame of our version.
    #[error("the server's answer is not understood: {0}")]
    Format(#[from] HandshakeFormatError),
    /// The keys of ML-KEM-1024 do not fit a datagram.
    #[error("ml-kem-1024 does not fit a datagram")]
    TooLong,
    /// The answer is a frame that a client sends.
    #[error("the server answered with a {found:?} frame")]
    Unexpected {
        /// Its type.
        found: FrameType,
    },
    /// The answer is for another kind of handshake than was begun.
    #[error("the server answered a handshake of kind {found:?}, which was not begun")]
    Kind {
        /// The kind found.
        found: HandshakeKind,
    },
    /// The answer does not open: not the server whose key we have, another pre-shared key, or bytes
    /// changed on the way.
    #[error("the server's answer does not open: its key or the pre-shared key is another one")]
    Rejected,
    /// The server knows the client and will not serve it.
    #[error("the server refused: {reason} (it speaks minor version {minor})")]
    Refused {
        /// Why.
        reason: RefuseReason,
        /// The server's minor version.
        minor: u8,
    },
    /// A challenge of the wrong length.
    #[error("challenge of {len} bytes, not {CHALLENGE_LEN}")]
    Challenge {
        /// Bytes it has.
        len: usize,
    },
    /// The server keeps asking for fresh messages.
    #[error("the server asked for a fresh message more than twice")]
    TooManyChallenges,
    /// The server chose an AEAD that was not offered.
    #[error("the server chose cipher {found}, which was not offered")]
    Aead {
        /// Its number.
        found: u8,
    },
    /// The server's public key is of low order; it can be nobody's.
    #[error("the server's key {key} is not a valid one")]
    ServerKey {
        /// The key.
        key: PublicKey,
    },
    /// The handshake is over.
    #[error("the handshake is over")]
    Finished,
}

impl From<ExchangeError> for HandshakeError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Crypto | ExchangeError::Kem => Self::Rejected,
            ExchangeError::Format(error) => Self::Format(error),
            ExchangeError::Refused { reason, minor } => Self::Refused { reason, minor },
        }
    }
}

/// Microseconds since 1970; a clock before that counts as 1970, one beyond the year 586,000 as
/// that.
pub(super) fn unix_micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What an end with these settings can do beyond what every version 1 can.
pub(super) const fn capabilities(settings: &Settings) -> u32 {
    if settings.relayed {
        CAPABILITY_RELAYED
    } else {
        0
    }
}
