//! The server's side of the handshake.

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use super::challenge::{ChallengeState, Freshness, NewestTimes, Whose};
use super::exchange::{ExchangeError, Heard};
use super::initiator::{capabilities, unix_micros};
use crate::proto::aead::{AeadKind, AeadOffer, aes_hardware};
use crate::proto::identity::{PresharedKey, PublicKey, SecretKey};
use crate::proto::keys::Role;
use crate::proto::random::Generator;
use crate::proto::session::{Agreement, FirstLane, Session, Settings};
use crate::wire::{
    FrameType, HandshakeFormatError, HandshakeFrame, INSTANCE_LEN, InvitationId, MINOR,
    NOISE_INIT_OVERHEAD, RefuseReason, SessionId,
};

/// Answers handshakes for one server. Shared by every connection; its one lock is held for a table
/// lookup, never during cryptography.
pub struct Responder {
    keys: Vec<ServerKey>,
    offer: AeadOffer,
    settings: Settings,
    times: Mutex<NewestTimes>,
    taken: Box<dyn Fn(SessionId) -> bool + Send + Sync>,
    invites: Box<dyn Fn(&InvitationId) -> bool + Send + Sync>,
}

impl Responder {
    /// Answers for `keys`, at most [`MAX_SERVER_KEYS`] (more are ignored): several while one
    /// replaces another. `started` is the wall clock at start: an older message 1 may be a replay.
    #[must_use]
    pub fn new(
        keys: Vec<SecretKey>,
        aead: &[AeadKind],
        settings: Settings,
        started: SystemTime,
    ) -> Self {
        let keys = keys
            .into_iter()
            .take(MAX_SERVER_KEYS)
            .map(|secret| ServerKey {
                public: secret.public(),
                secret,
            })
            .collect();
        Self {
            keys,
            offer: AeadOffer::new(aead, aes_hardware()),
            settings,
            times: Mutex::new(NewestTimes::new(unix_micros(started), MAX_INSTANCES)),
            taken: Box::new(|_| false),
            invites: Box::new(|_| false),
        }
    }

    /// Asks `taken` of every session id it draws, and draws again while it is: datagrams name a
    /// session by its [`SessionId::handle`] alone, so no two sessions of a server may share one.
    #[must_use]
    pub fn avoiding(mut self, taken: impl Fn(SessionId) -> bool + Send + Sync + 'static) -> Self {
        self.taken = Box::new(taken);
        self
    }

    /// Asks `invites` of every invitation that a message 1 names: whoever names one that is known is answered as a guest,
    /// whatever its key.
    #[must_use]
    pub fn inviting(
        mut self,
        invites: impl Fn(&InvitationId) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.invites = Box::new(invites);
        self
    }

    /// The public keys it answers for.
    pub fn public_keys(&self) -> impl Iterator<Item = PublicKey> + '_ {
        self.keys.iter().map(|key| key.public)
    }

    /// Takes a whole HandshakeInit frame from a connection that has not proven anything.
    ///
    /// `lookup` tells whether a key is a client's. The session is returned unconfirmed: it changes
    /// nothing about an older one of the same instance until [`SessionEvent::Confirmed`].
    ///
    /// # Errors
    /// [`Silence`]: answer nothing.
    ///
    /// [`SessionEvent::Confirmed`]: crate::proto::SessionEvent::Confirmed
    pub fn handle_init(
        &self,
        now: Instant,
        frame: &[u8],
        connection: &mut ChallengeState,
        rng: &mut impl rand::CryptoRng,
        lookup: impl FnOnce(&PublicKey) -> Option<ClientEntry>,
    ) -> Result<Answer, Silence> {
        let frame = HandshakeFrame::parse(frame)?;
        let generator = Generator::new(rng);
        self.answer(
            now,
            &frame,
            FirstLane::Stream,
            connection,
            generator,
            lookup,
        )
    }

    /// Answers a message 1, on whatever lane it came; [`Answer`] holds frames of that lane's form.
    pub(super) fn answer(
        &self,
        now: Instant,
        frame: &HandshakeFrame<'_>,
        lane: FirstLane,
        freshness: &mut impl Freshness,
        mut generator: Generator,
        lookup: impl FnOnce(&PublicKey) -> Option<ClientEntry>,
    ) -> Result<Answer, Silence> {
        check(frame)?;
        let (key, heard) = self.hear(frame, &mut generator)?;
        if heard.peer == key.public {
            return Err(Silence::Reflected);
        }
        let peer = heard.peer;
        let instance = heard.hello.instance;
        let guest = heard.hello.invitation.filter(|id| (self.invites)(id));
        let entry = match guest {
            // Nothing is shared with it yet but the link.
            Some(_) => ClientEntry::default(),
            None => lookup(&peer).ok_or(Silence::UnknownKey { key: peer })?,
        };
        let whose = Whose {
            peer,
            instance,
            last: self.times().last(peer, instance),
        };
        let answer = heard.hello.challenge.as_ref();
        let proven = answer.is_some_and(|answer| freshness.accept(&whose, answer));
        let whole = |frame_type, body: &[u8]| {
            let kind = frame.kind;
            let frame = HandshakeFrame {
                frame_type,
                kind,
                body,
            };
            match lane {
                FirstLane::Stream => frame.to_vec(),
                FirstLane::Datagram(_) => {
                    let mut datagram = Vec::new();
                    frame.write_datagram(&mut datagram);
                    datagram
                }
            }
        };
        let time = heard.hello.time;
        let fresh = if entry.revoked {
            self.times().is_fresh(peer, instance, time, proven)
        } else {
            self.times().admit(peer, instance, time, proven)
        };
        if !fresh {
            let challenge = freshness
                .issue(&whose, &mut generator)
                .ok_or(Silence::Stale { key: peer })?;
            return Ok(Answer::Challenge(whole(FrameType::Challenge, &challenge)));
        }
        let psk = entry.psk.as_ref();
        let offer = AeadOffer {
            spoken: heard.hello.aead_offered,
            hardware: heard.hello.aead_hardware,
        };
        let reply = |message: &[u8]| whole(FrameType::HandshakeReply, message);
        if entry.revoked {
            let reason = RefuseReason::Revoked;
            let message = heard.refuse(psk, reason, MINOR, capabilities(&self.settings))?;
            return Ok(Answer::Refuse {
                reply: reply(&message),
                reason,
                peer,
            });
        }
        let Some(aead) = self.offer.choose(offer) else {
            let reason = RefuseReason::Aead;
            let message = heard.refuse(psk, reason, MINOR, capabilities(&self.settings))?;
            return Ok(Answer::Refuse {
                reply: reply(&message),
                reason,
                peer,
            });
        };
        let id = self.free_id(&mut generator).ok_or(Silence::NoHandle)?;
        let hello = heard.hello;
        let both = capabilities(&self.settings) & hello.capabilities;
        let (message, secrets) = heard.accept(psk, MINOR, both, id.0, aead.byte())?;
        let Some(secrets) = secrets else {
            let reason = RefuseReason::EncapsulationKey;
            return Ok(Answer::Refuse {
                reply: reply(&message),
                reason,
                peer,
            });
        };
        let agreement = Agreement {
            role: Role::Responder,
            id,
            kind: frame.kind,
            secret: key.secret.clone(),
            peer,
            psk: entry.psk,
            instance,
            aead,
            peer_minor: hello.minor,
            capabilities: both,
            keys: secrets.derive(aead, Role::Responder),
            settings: self.settings,
            generator,
            first_lane: lane,
            guest: guest.is_some(),
        };
        let session = Box::new(Session::new(now, agreement));
        Ok(Answer::Accept {
            reply: reply(&message),
            session,
            peer,
            instance,
            client: entry.id,
            guest,
        })
    }

    /// Draws a session id whose handle no session has.
    fn free_id(&self, generator: &mut Generator) -> Option<SessionId> {
        (0..ID_DRAWS)
            .map(|_| SessionId(generator.u64()))
            .find(|id| !(self.taken)(*id))
    }

    fn hear(
        &self,
        frame: &HandshakeFrame<'_>,
        generator: &mut Generator,
    ) -> Result<(&ServerKey, Heard), Silence> {
        for key in &self.keys {
            match Heard::read(frame.kind, &[], &key.secret, frame.body, generator.child()) {
                Ok(heard) => return Ok((key, heard)),
                // Perhaps it is for another of our keys.
                Err(ExchangeError::Crypto) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Silence::Unreadable)
    }

    fn times(&self) -> std::sync::MutexGuard<'_, NewestTimes> {
        // The table is whole between any two of its operations, whoever panicked.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn check(frame: &HandshakeFrame<'_>) -> Result<(), Silence> {
    if frame.frame_type != FrameType::HandshakeInit {
        return Err(Silence::NotInit {
            found: frame.frame_type,
        });
    }
    let least = NOISE_INIT_OVERHEAD + frame.kind.encapsulation_key_len();
    if frame.body.len() < least {
        return Err(Silence::Short {
            len: frame.body.len(),
            least,
        });
    }
    Ok(())
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder")
            .field("keys", &self.keys)
            .field("offer", &self.offer)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct ServerKey {
    secret: SecretKey,
    public: PublicKey,
}

/// What the server knows of a client.
#[derive(Clone, Debug, Default)]
pub struct ClientEntry {
    /// The pre-shared key, if this client has one.
    pub psk: Option<PresharedKey>,
    /// The server's own number for the client, handed back in [`Answer::Accept`].
    pub id: usize,
    /// Whether it is a client no more: it is told so, and gets no session.
    pub revoked: bool,
}

/// What to answer to a message 1.
#[derive(Debug)]
#[non_exhaustive]
pub enum Answer {
    /// Its time is stale: send this whole frame, and keep the connection's [`ChallengeState`].
    Challenge(Vec<u8>),
    /// The client is known and cannot be served: send this whole frame and close.
    Refuse {
        /// The whole HandshakeReply frame.
        reply: Vec<u8>,
        /// Why, for the log.
        reason: RefuseReason,
        /// Who.
        peer: PublicKey,
    },
    /// There is a session, unconfirmed: send this whole frame.
    Accept {
        /// The whole HandshakeReply frame.
        reply: Vec<u8>,
        /// The session.
        session: Box<Session>,
        /// Whose it is.
        peer: PublicKey,
        /// Which run of that client.
        instance: [u8; INSTANCE_LEN],
        /// The number `lookup` gave.
        client: usize,
        /// The invitation that it names, if the session is a guest's.
        guest: Option<InvitationId>,
    },
}

/// Why a server says nothing. For counters and debug logs; a stranger learns none of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Silence {
    /// Not a handshake frame, of another major version, or of an unknown kind.
    #[error(transparent)]
    Format(#[from] HandshakeFormatError),
    /// A frame that a server sends: our own, come back, or somebody's mistake.
    #[error("{found:?} frame instead of message 1")]
    NotInit {
        /// Its type.
        found: FrameType,
    },
    /// Too short for any message 1 of its kind; refused before any cryptography.
    #[error("message 1 of {len} bytes, at least {least} are due")]
    Short {
        /// Bytes it has.
        len: usize,
        /// Bytes the shortest has.
        least: usize,
    },
    /// It does not open under any of our keys.
    #[error("message 1 does not open under our key")]
    Unreadable,
    /// It opens, and its payload is malformed.
    #[error("message 1 is malformed inside: {0}")]
    Payload(HandshakeFormatError),
    /// It was made with our own key.
    #[error("message 1 bears our own key")]
    Reflected,
    /// It opens, and its key is no client's.
    #[error("unknown key {key}")]
    UnknownKey {
        /// The key.
        key: PublicKey,
    },
    /// Its time is stale, and the connection has had its challenges.
    #[error("stale message 1 of {key}, challenges used up")]
    Stale {
        /// The key.
        key: PublicKey,
    },
    /// Every session id that was drawn has the handle of another session.
    #[error("no free session handle in {ID_DRAWS} draws")]
    NoHandle,
    /// Message 2 could not be made: the client's ephemeral key is of low order.
    #[error("message 2 could not be made")]
    Unanswerable,
}

impl From<ExchangeError> for Silence {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Format(error) => Self::Payload(error),
            ExchangeError::Crypto | ExchangeError::Kem | ExchangeError::Refused { .. } => {
                Self::Unanswerable
            }
        }
    }
}

/// Keys a server answers for: the current one and those it rotates from or to. Each costs a
/// Diffie-Hellman per stray message.
pub const MAX_SERVER_KEYS: usize = 4;

/// Session ids to draw before giving up: with a million sessions, one in four thousand is taken.
const ID_DRAWS: usize = 8;

/// (key, instance) pairs whose newest time is kept: 1,024 clients with 8 instances, 400 KiB.
const MAX_INSTANCES: usize = 8192;
