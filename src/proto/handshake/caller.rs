//! The client's side of the handshake over datagrams, which are lost, late and copied.
//!
//! An Init that goes unanswered is followed by another after 250 ms, 500 ms, 1 s and then every 2 s,
//! each a little early or late so that clients of a server that restarts do not speak in step. Each
//! is a new message 1: a copy of the former would have a time the server knows, and be challenged,
//! at the price of a round trip. The answers to the last four are good, since on a path of half a
//! second the answer to the first comes after the second has left.
//!
//! Whoever can send from the server's address can send nonsense, so nothing that fails to open ends the
//! handshake; only the server's own refusal does. A cookie or a challenge brings the next Init forward, a
//! bounded number of times. That nobody takes what is sent, anybody may say too, so it is believed once it was said of
//! several Inits in a row, and nothing was heard of the server meanwhile.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use super::challenge::MAX_CHALLENGES;
use super::exchange::{ExchangeError, Opening};
use super::initiator::{Caller, ClientConfig, HandshakeError, parse_challenge};
use crate::proto::cookie::CookieJar;
use crate::proto::path::DatagramPath;
use crate::proto::session::{FirstLane, Session};
use crate::wire::{
    CHALLENGE_LEN, DatagramFormatError, DatagramType, FrameType, HandshakeFrame, HandshakeKind,
    datagram_type,
};

/// A handshake under way over datagrams.
#[derive(Debug)]
pub struct DatagramInitiator {
    caller: Caller,
    path: DatagramPath,
    jar: CookieJar,
    openings: VecDeque<Opening>,
    challenge: Option<[u8; CHALLENGE_LEN]>,
    next: Instant,
    sent: u32,
    /// Inits in a row that the network says nobody took.
    refused: u32,
    /// How many were sent when it said so last.
    refused_at: u32,
    hurried: u8,
    complaint: Option<HandshakeError>,
}

impl DatagramInitiator {
    /// Begins a handshake by `path`; its first Init is due at once.
    ///
    /// # Errors
    /// [`HandshakeError::TooLong`] for ML-KEM-1024.
    pub fn new(
        now: Instant,
        config: &ClientConfig,
        path: DatagramPath,
        rng: &mut impl rand::CryptoRng,
    ) -> Result<Self, HandshakeError> {
        let caller = Caller::new(config, rng);
        match caller.kind() {
            HandshakeKind::Session768 => {}
            HandshakeKind::Session1024 | HandshakeKind::Epoch768 | HandshakeKind::Epoch1024 => {
                return Err(HandshakeError::TooLong);
            }
        }
        Ok(Self {
            caller,
            path,
            jar: CookieJar::new(&config.server),
            openings: VecDeque::with_capacity(MAX_OPENINGS),
            challenge: None,
            next: now,
            sent: 0,
            refused: 0,
            refused_at: 0,
            hurried: 0,
            complaint: None,
        })
    }

    /// Writes the Init that is due, if one is, into `out`, which it clears first; says whether it
    /// did. It is longer than [`BASE_DATAGRAM`](crate::wire::BASE_DATAGRAM), so it must be sent
    /// without forbidding fragments.
    ///
    /// # Errors
    /// [`HandshakeError::ServerKey`] when the server's key can be nobody's.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        now_unix: SystemTime,
        out: &mut Vec<u8>,
    ) -> Result<bool, HandshakeError> {
        out.clear();
        if now < self.next {
            return Ok(false);
        }
        let (opening, message) = self.caller.open(now_unix, self.challenge)?;
        if self.openings.len() >= MAX_OPENINGS {
            self.openings.pop_front();
        }
        self.openings.push_back(opening);
        HandshakeFrame {
            frame_type: FrameType::HandshakeInit,
            kind: self.caller.kind(),
            body: &message,
        }
        .write_datagram(out);
        self.jar.finish(now, out);
        let pause = (FIRST_PAUSE * (1 << self.sent.min(8))).min(LONGEST_PAUSE);
        // Between 7/8 and 9/8 of it.
        let jitter = self.caller.generator().u64() % 256;
        self.next = now + pause * 7 / 8 + pause * (jitter as u32) / 1024;
        self.sent = self.sent.saturating_add(1);
        Ok(true)
    }

    /// When [`DatagramInitiator::poll_transmit`] has something next. It never gives up: how long to
    /// try is the driver's to say.
    #[must_use]
    pub const fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Takes a datagram that came from the server's address; the session, if there is one now. Its
    /// first lane is the path the handshake ran over.
    ///
    /// # Errors
    /// [`HandshakeError`] if the server itself refuses; what does not open is ignored.
    pub fn handle(
        &mut self,
        now: Instant,
        datagram: &[u8],
    ) -> Result<Option<Box<Session>>, HandshakeError> {
        match datagram_type(datagram) {
            Some(DatagramType::Cookie) => {
                if self.jar.handle_reply(now, datagram) {
                    self.refused = 0;
                    self.hurry(now);
                }
                Ok(None)
            }
            Some(DatagramType::Reply) => self.handle_reply(now, datagram),
            Some(DatagramType::Challenge) => {
                let frame = HandshakeFrame::parse_datagram(datagram);
                if let Ok(challenge) = frame.map(|frame| parse_challenge(frame.body)) {
                    match challenge {
                        Ok(challenge) => {
                            self.challenge = Some(challenge);
                            self.hurry(now);
                        }
                        Err(error) => self.complaint = Some(error),
                    }
                }
                Ok(None)
            }
            Some(DatagramType::Init | DatagramType::Sealed | DatagramType::Join) | None => Ok(None),
        }
    }

    /// The network says that nobody takes what is sent to the server. Returns whether that is to be believed: after
    /// [`MAX_REFUSED`] Inits in a row of which it was said, whatever it says of one.
    pub const fn handle_refused(&mut self) -> bool {
        if self.refused_at != self.sent {
            self.refused_at = self.sent;
            self.refused += 1;
        }
        self.refused >= MAX_REFUSED
    }

    /// Takes what there was to say against the last answer that was ignored, for whoever wants to know why nothing
    /// comes about. Anybody may have sent it.
    pub const fn take_complaint(&mut self) -> Option<HandshakeError> {
        self.complaint.take()
    }

    fn handle_reply(
        &mut self,
        now: Instant,
        datagram: &[u8],
    ) -> Result<Option<Box<Session>>, HandshakeError> {
        let frame = match HandshakeFrame::parse_datagram(datagram) {
            Ok(frame) => frame,
            Err(DatagramFormatError::Handshake(error)) => {
                self.complaint = Some(error.into());
                return Ok(None);
            }
            Err(_) => return Ok(None),
        };
        for opening in self.openings.iter_mut().rev() {
            match opening.finish(frame.body) {
                Ok(agreed) => {
                    self.openings.clear();
                    let lane = FirstLane::Datagram(self.path);
                    return self.caller.establish(now, agreed, lane).map(Some);
                }
                // It opened: the server itself says so.
                Err(error @ ExchangeError::Refused { .. }) => return Err(error.into()),
                Err(error @ (ExchangeError::Format(_) | ExchangeError::Kem)) => {
                    return Err(error.into());
                }
                Err(ExchangeError::Crypto) => {}
            }
        }
        self.complaint = Some(HandshakeError::Rejected);
        Ok(None)
    }

    fn hurry(&mut self, now: Instant) {
        if self.hurried < MAX_HURRIES {
            self.hurried += 1;
            self.next = now;
        }
    }
}

/// Openings whose answer would do. Each holds a decapsulation key, 2.5 KB.
const MAX_OPENINGS: usize = 4;

/// Inits brought forward by a cookie or a challenge: a cookie and two challenges, as on a stream.
const MAX_HURRIES: u8 = MAX_CHALLENGES + 1;

/// Inits refused in a row before the handshake is given up. The third leaves after 0.75 s: a port that is closed is told
/// in half of what datagrams have as their head start, and one word of somebody else's ends nothing.
const MAX_REFUSED: u32 = 3;

/// Before the second Init: most round trips are shorter.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Between Inits in the end.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
