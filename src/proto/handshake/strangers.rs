//! The server's side of datagrams that belong to nobody yet: what each is, and what it is answered.
//!
//! ```text
//!  datagram ──▶ Sealed ──▶ handle ─────────────────────────▶ the registry's session, if it has one
//!           ──▶ Join ────▶ session id ─────────────────────▶ the same
//!           ──▶ Init ──▶ length ──▶ mac1 ──▶ mac2 if under load ──▶ Noise ──▶ known key? fresh?
//!                          │          │           │ 57 bytes          │          │      │ 35 bytes
//!                        dropped   dropped     Cookie            dropped   dropped   Challenge
//! ```
//!
//! Nothing is kept for anybody before an Init has opened under the server's key, bears a client's
//! key, and is fresh. Every answer is shorter than what it answers, so nobody can have the server
//! shout at somebody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::challenge::{Freshness, Whose};
use super::responder::{Answer, ClientEntry, Responder, Silence};
use crate::proto::aead::same_secret;
use crate::proto::cookie::{CookieChecker, Verdict};
use crate::proto::identity::PublicKey;
use crate::proto::load::{Load, LoadLimits};
use crate::proto::path::DatagramPath;
use crate::proto::random::Generator;
use crate::proto::session::FirstLane;
use crate::wire::{
    CHALLENGE_LEN, COOKIE_REPLY_LEN, DatagramFormatError, DatagramHeader, DatagramType,
    InitDatagram, JoinDatagram, SessionId, datagram_type,
};

/// Sorts and answers datagrams for one server. One for each listening socket or one for all.
#[derive(Debug)]
pub struct DatagramResponder {
    responder: Arc<Responder>,
    checker: CookieChecker,
    load: Load,
    generator: Generator,
    stats: StrangerStats,
}

impl DatagramResponder {
    /// Answers Inits as `responder` does, which may serve stream lanes as well.
    #[must_use]
    pub fn new(
        responder: Arc<Responder>,
        limits: LoadLimits,
        rng: &mut impl rand::CryptoRng,
    ) -> Self {
        let keys: Vec<PublicKey> = responder.public_keys().collect();
        Self {
            checker: CookieChecker::new(&keys, rng),
            load: Load::new(limits),
            generator: Generator::new(rng),
            stats: StrangerStats::default(),
            responder,
        }
    }

    /// Says what a datagram is, and what to do with it. `unconfirmed` is how many sessions wait for
    /// their first sealed frame, `lookup` tells whether a key is a client's.
    pub fn handle(
        &mut self,
        now: Instant,
        path: DatagramPath,
        datagram: &[u8],
        unconfirmed: usize,
        lookup: impl FnOnce(&PublicKey) -> Option<ClientEntry>,
    ) -> Reception {
        let sorted = match datagram_type(datagram) {
            Some(DatagramType::Sealed) => DatagramHeader::parse(datagram)
                .map(|header| Reception::Sealed {
                    handle: header.handle,
                })
                .map_err(StrangerDrop::Format),
            Some(DatagramType::Join) => JoinDatagram::parse(datagram)
                .map(|header| Reception::Join {
                    session: header.session,
                })
                .map_err(StrangerDrop::Format),
            Some(DatagramType::Init) => self.handle_init(now, path, datagram, unconfirmed, lookup),
            Some(
                found @ (DatagramType::Reply | DatagramType::Challenge | DatagramType::Cookie),
            ) => Err(StrangerDrop::Format(DatagramFormatError::Type {
                found: found.byte(),
            })),
            None => Err(StrangerDrop::Format(match datagram.first() {
                Some(found) => DatagramFormatError::Type { found: *found },
                None => DatagramFormatError::Short { len: 0 },
            })),
        };
        match sorted {
            Ok(reception) => reception,
            Err(reason) => {
                self.stats.count(&reason);
                Reception::Drop(reason)
            }
        }
    }

    /// What was answered and dropped.
    #[must_use]
    pub const fn stats(&self) -> &StrangerStats {
        &self.stats
    }

    fn handle_init(
        &mut self,
        now: Instant,
        path: DatagramPath,
        datagram: &[u8],
        unconfirmed: usize,
        lookup: impl FnOnce(&PublicKey) -> Option<ClientEntry>,
    ) -> Result<Reception, StrangerDrop> {
        let init = InitDatagram::parse(datagram)?;
        let frame = init.frame();
        // The hash of a datagram costs less than knowing whether it is worth one, but not much.
        super::responder::check(&frame)?;
        let load = &mut self.load;
        let loaded = || load.handle_init(now, unconfirmed);
        match self.checker.check(now, datagram, path.remote, loaded) {
            Verdict::Pass => {}
            Verdict::NeedCookie(reply) => {
                self.stats.cookies += 1;
                return Ok(Reception::Answer(Short::Cookie(reply.to_bytes())));
            }
            Verdict::Invalid => return Err(StrangerDrop::Mac),
            Verdict::Limited => return Err(StrangerDrop::Limited),
        }
        let mut freshness = AddressChallenge {
            checker: &mut self.checker,
            now,
            source: path.remote,
        };
        let generator = self.generator.child();
        let lane = FirstLane::Datagram(path);
        let answer = self
            .responder
            .answer(now, &frame, lane, &mut freshness, generator, lookup)?;
        match answer {
            Answer::Challenge(datagram) => {
                self.stats.challenges += 1;
                Ok(Reception::Answer(Short::Handshake(datagram)))
            }
            Answer::Refuse { .. } | Answer::Accept { .. } => {
                self.stats.answered += 1;
                Ok(Reception::Handshake(answer))
            }
        }
    }
}

/// What a datagram is.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reception {
    /// Of a session with this handle, if there is one: give it to
    /// [`Session::open_datagram`](crate::proto::Session::open_datagram).
    Sealed {
        /// Low half of the session's id.
        handle: u32,
    },
    /// A new lane of this session, if there is one: give it to
    /// [`Session::handle_join_datagram`](crate::proto::Session::handle_join_datagram).
    Join {
        /// The session's id.
        session: SessionId,
    },
    /// Send this to where it came from, and keep nothing.
    Answer(Short),
    /// A client: refused, or with a session, as on a stream. Send the reply.
    Handshake(Answer),
    /// Nothing, for this reason.
    Drop(StrangerDrop),
}

/// A short answer that nothing is kept for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Short {
    /// A cookie.
    Cookie([u8; COOKIE_REPLY_LEN]),
    /// A challenge.
    Handshake(Vec<u8>),
}

impl Short {
    /// The whole datagram.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Cookie(bytes) => bytes,
            Self::Handshake(bytes) => bytes,
        }
    }
}

/// Why a datagram of a stranger was dropped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StrangerDrop {
    /// It is none of ours.
    #[error(transparent)]
    Format(#[from] DatagramFormatError),
    /// Its mac1 was made without our public key.
    #[error("mac1 is wrong")]
    Mac,
    /// Its address has had its share of handshakes.
    #[error("too many handshakes from one address")]
    Limited,
    /// It is an Init that is answered by silence.
    #[error(transparent)]
    Silence(#[from] Silence),
}

/// What strangers were answered, and what was dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrangerStats {
    /// Handshakes answered.
    pub answered: u64,
    /// Challenges sent.
    pub challenges: u64,
    /// Cookies sent.
    pub cookies: u64,
    /// Datagrams that are none of ours.
    pub malformed: u64,
    /// Inits with a wrong mac1.
    pub wrong_mac: u64,
    /// Inits from an address that had its share.
    pub limited: u64,
    /// Inits that do not open, bear an unknown key, or are otherwise answered by silence.
    pub silent: u64,
}

impl StrangerStats {
    fn count(&mut self, reason: &StrangerDrop) {
        match reason {
            StrangerDrop::Format(_) => self.malformed += 1,
            StrangerDrop::Mac => self.wrong_mac += 1,
            StrangerDrop::Limited => self.limited += 1,
            StrangerDrop::Silence(_) => self.silent += 1,
        }
    }
}

/// Challenges that are a MAC over who is asked, so that nothing is kept; and over what was accepted last, so that an
/// answer, once accepted, is worth nothing any more, and neither is a copy of it.
struct AddressChallenge<'a> {
    checker: &'a mut CookieChecker,
    now: Instant,
    source: SocketAddr,
}

impl AddressChallenge<'_> {
    fn expected(&mut self, whose: &Whose) -> [u8; CHALLENGE_LEN] {
        let last = whose.last.to_be_bytes();
        let who: [&[u8]; 3] = [whose.peer.as_bytes(), &whose.instance, &last];
        self.checker.challenge(self.now, self.source, &who)
    }
}

impl Freshness for AddressChallenge<'_> {
    fn issue(&mut self, whose: &Whose, _generator: &mut Generator) -> Option<[u8; CHALLENGE_LEN]> {
        Some(self.expected(whose))
    }

    fn accept(&mut self, whose: &Whose, answer: &[u8; CHALLENGE_LEN]) -> bool {
        same_secret(&self.expected(whose), answer)
    }
}
