//! When to replace an epoch's keys, and the handshake that does it.
//!
//! The initiator rekeys; the responder asks when the limits of what it sealed are reached, or when
//! the initiator is late. The handshake is the hybrid one again, whole, inside sealed control
//! frames, with the session's id and the epoch's number in its prologue.

use std::time::{Duration, Instant};

use super::epoch::Epoch;
use super::handshake::exchange::{ExchangeError, Heard, Hello, Opening};
use super::identity::{PresharedKey, PublicKey, SecretKey};
use super::keys::{HandshakeSecrets, Role};
use super::random::Generator;
use crate::wire::{HandshakeKind, INSTANCE_LEN, MINOR, SessionId};

/// When an epoch's keys are replaced. Tests lower them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RekeyLimits {
    /// Age.
    pub age: Duration,
    /// Frames sealed by one end.
    pub frames: u64,
    /// Bytes sealed by one end.
    pub bytes: u64,
    /// Failed opens after which the session ends.
    pub failed_opens: u64,
    /// How long to wait for the answer to a rekey, and for the initiator to begin one that is due.
    pub patience: Duration,
}

impl Default for RekeyLimits {
    /// 120 s, 2^32 frames, 2^38 bytes, 2^36 failed opens, 10 s.
    ///
    /// All far below where AES-GCM (NIST SP 800-38D; RFC 9001, appendix B) and
    /// ChaCha20-Poly1305 weaken; 120 s bounds what a stolen key opens.
    fn default() -> Self {
        Self {
            age: Duration::from_secs(120),
            frames: 1 << 32,
            bytes: 1 << 38,
            failed_opens: 1 << 36,
            patience: Duration::from_secs(10),
        }
    }
}

impl RekeyLimits {
    /// Whether an end has sealed enough with an epoch to want another.
    pub(super) const fn is_worn(&self, epoch: &Epoch) -> bool {
        epoch.usage.frames >= self.frames || epoch.usage.bytes >= self.bytes
    }

    /// Whether an end has sealed so much that packets must wait: a quarter beyond the limit.
    pub(super) const fn is_spent(&self, epoch: &Epoch) -> bool {
        let frames = self
            .frames
            .saturating_add(self.frames / 4)
            .saturating_add(SLACK_FRAMES);
        let bytes = self
            .bytes
            .saturating_add(self.bytes / 4)
            .saturating_add(SLACK_BYTES);
        epoch.usage.frames >= frames || epoch.usage.bytes >= bytes
    }

    /// Whether an end has sealed so much that nothing may follow: half beyond the limit. Between
    /// the two is room for control frames, so that a rekey can still come about.
    pub(super) const fn is_over(&self, epoch: &Epoch) -> bool {
        let frames = self
            .frames
            .saturating_add(self.frames / 2)
            .saturating_add(2 * SLACK_FRAMES);
        let bytes = self
            .bytes
            .saturating_add(self.bytes / 2)
            .saturating_add(2 * SLACK_BYTES);
        epoch.usage.frames >= frames || epoch.usage.bytes >= bytes
    }

    /// When the epoch is old enough: the responder gives the initiator the time to begin.
    pub(super) fn due(&self, epoch: &Epoch, role: Role) -> Instant {
        match role {
            Role::Initiator => epoch.since + self.age,
            Role::Responder => epoch.since + self.age + self.patience,
        }
    }
}

/// What a rekey handshake is made with: the same as the session's own.
pub(super) struct Credentials {
    pub(super) secret: SecretKey,
    pub(super) peer: PublicKey,
    pub(super) psk: Option<PresharedKey>,
    pub(super) instance: [u8; INSTANCE_LEN],
    pub(super) kind: HandshakeKind,
    pub(super) session: SessionId,
    pub(super) aead: u8,
    pub(super) capabilities: u32,
}

impl Credentials {
    fn context(&self, epoch: u64) -> [u8; 16] {
        let mut context = [0; 16];
        context[..8].copy_from_slice(&self.session.0.to_be_bytes());
        context[8..].copy_from_slice(&epoch.to_be_bytes());
        context
    }

    const fn epoch_kind(&self) -> HandshakeKind {
        match self.kind {
            HandshakeKind::Session768 | HandshakeKind::Epoch768 => HandshakeKind::Epoch768,
            HandshakeKind::Session1024 | HandshakeKind::Epoch1024 => HandshakeKind::Epoch1024,
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// The state of the rekey handshake.
#[derive(Debug)]
pub(super) struct Rekey {
    credentials: Credentials,
    state: State,
    /// Initiator: attempts begun. Responder: number of the newest it answered.
    attempt: u64,
    allowance: Allowance,
}

#[derive(Debug)]
enum State {
    /// Nothing is under way.
    Idle,
    /// Initiator: message 1 is out. It is kept for lanes that lose.
    Opened {
        epoch: u64,
        opening: Opening,
        message: Vec<u8>,
    },
    /// Responder: the initiator was asked.
    Asked,
    /// Responder: message 2 is out; a frame of the new epoch is to come. Both messages are kept,
    /// since message 1 comes again if message 2 was lost.
    Answered { message: Vec<u8>, reply: Vec<u8> },
}

/// What the responder makes of a message 1.
#[derive(Debug)]
pub(super) enum RekeyAnswer {
    /// A message 2 and the secrets that go with it.
    New {
        reply: Vec<u8>,
        secrets: HandshakeSecrets,
    },
    /// The message 2 of before, to the same message 1.
    Again { reply: Vec<u8> },
}

impl Rekey {
    pub(super) const fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            state: State::Idle,
            attempt: 0,
            allowance: Allowance::new(),
        }
    }

    /// Initiator: begins, or begins again; returns message 1.
    pub(super) fn start(
        &mut self,
        epoch: u64,
        generator: &mut Generator,
    ) -> Result<Vec<u8>, ExchangeError> {
        self.attempt += 1;
        let credentials = &self.credentials;
        let hello = Hello {
            minor: MINOR,
            capabilities: credentials.capabilities,
            aead_offered: 0,
            aead_hardware: 0,
            instance: credentials.instance,
            time: self.attempt,
            challenge: None,
            invitation: None,
        };
        let (opening, message) = Opening::start(
            credentials.epoch_kind(),
            &credentials.context(epoch),
            &credentials.secret,
            &credentials.peer,
            credentials.psk.as_ref(),
            &hello,
            generator.child(),
        )?;
        self.state = State::Opened {
            epoch,
            opening,
            message: message.clone(),
        };
        Ok(message)
    }

    /// Initiator: takes message 2. `None` if it answers nothing that is under way.
    pub(super) fn handle_reply(
        &mut self,
        low_byte: u8,
        message: &[u8],
    ) -> Option<HandshakeSecrets> {
        let State::Opened { epoch, opening, .. } = &mut self.state else {
            return None;
        };
        if *epoch as u8 != low_byte {
            return None;
        }
        let agreed = opening.finish(message).ok()?;
        let credentials = &self.credentials;
        self.state = State::Idle;
        let same = agreed.session == credentials.session.0 && agreed.aead == credentials.aead;
        same.then_some(agreed.secrets)
    }

    /// Responder: takes message 1 for the epoch that is next; returns message 2 and the secrets.
    pub(super) fn handle_init(
        &mut self,
        now: Instant,
        epoch: u64,
        low_byte: u8,
        message: &[u8],
        generator: &mut Generator,
    ) -> Option<RekeyAnswer> {
        if epoch as u8 != low_byte {
            return None;
        }
        if let State::Answered {
            message: answered,
            reply,
        } = &self.state
            && answered == message
        {
            let reply = reply.clone();
            return Some(RekeyAnswer::Again { reply });
        }
        if !self.allowance.take(now) {
            return None;
        }
        let credentials = &self.credentials;
        let heard = Heard::read(
            credentials.epoch_kind(),
            &credentials.context(epoch),
            &credentials.secret,
            message,
            generator.child(),
        )
        .ok()?;
        if heard.peer != credentials.peer || heard.hello.instance != credentials.instance {
            return None;
        }
        // Overtaken on another lane by a later attempt: the initiator waits for that one's answer.
        if heard.hello.time <= self.attempt {
            return None;
        }
        self.attempt = heard.hello.time;
        let (reply, secrets) = heard
            .accept(
                credentials.psk.as_ref(),
                MINOR,
                credentials.capabilities,
                credentials.session.0,
                credentials.aead,
            )
            .ok()?;
        let secrets = secrets?;
        self.state = State::Answered {
            message: message.to_vec(),
            reply: reply.clone(),
        };
        Some(RekeyAnswer::New { reply, secrets })
    }

    /// Responder: whether to ask now; once until the initiator begins or [`Rekey::reset`].
    pub(super) fn ask(&mut self) -> bool {
        match self.state {
            State::Idle => {
                self.state = State::Asked;
                true
            }
            State::Asked | State::Answered { .. } | State::Opened { .. } => false,
        }
    }

    /// Forgets what is under way.
    pub(super) fn reset(&mut self) {
        self.state = State::Idle;
    }

    /// Initiator: the message 1 that is not answered, and the low byte of its epoch.
    pub(super) fn pending(&self) -> Option<(u8, Vec<u8>)> {
        match &self.state {
            State::Opened { epoch, message, .. } => Some((*epoch as u8, message.clone())),
            State::Idle | State::Asked | State::Answered { .. } => None,
        }
    }

    /// Whether a new epoch is coming.
    pub(super) const fn is_under_way(&self) -> bool {
        match self.state {
            State::Opened { .. } | State::Asked | State::Answered { .. } => true,
            State::Idle => false,
        }
    }

    /// Whether this end waits for an answer, which a lost lane may have swallowed.
    pub(super) const fn awaits_answer(&self) -> bool {
        match self.state {
            State::Opened { .. } | State::Asked => true,
            State::Answered { .. } | State::Idle => false,
        }
    }
}

/// How many handshakes a responder still does: a few at once, then one a second, so that a client
/// cannot keep the server's processor busy with them.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: u64,
    counted: Option<Instant>,
}

impl Allowance {
    const fn new() -> Self {
        Self {
            left: HANDSHAKE_BURST,
            counted: None,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = self
            .counted
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if self.counted.is_none() || since >= Duration::from_secs(1) {
            self.left = self
                .left
                .saturating_add(since.as_secs())
                .min(HANDSHAKE_BURST);
            self.counted = Some(now);
        }
        let allowed = self.left > 0;
        self.left -= u64::from(allowed);
        allowed
    }
}

/// Handshakes at once: a rekey is begun anew whenever a lane comes or goes.
const HANDSHAKE_BURST: u64 = 8;

/// Room beyond a limit for what is sealed while the rekey is on.
const SLACK_FRAMES: u64 = 1 << 10;

/// The same in bytes.
const SLACK_BYTES: u64 = 1 << 26;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_handshakes_at_once_then_one_a_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new();
        assert_eq!((0..100).filter(|_| allowance.take(start)).count(), 8);
        let later = |millis| start + Duration::from_millis(millis);
        assert!(!allowance.take(later(999)));
        assert!(allowance.take(later(1000)));
        assert!(!allowance.take(later(1900)));
        assert_eq!(
            (0..100).filter(|_| allowance.take(later(60_000))).count(),
            8
        );
    }
}
