//! The two messages, without frames, policy or time: what a new session and a rekey have in common.

use snow::HandshakeState;
use zeroize::Zeroizing;

use super::kem::{self, KemError, KemSecret};
use super::noise;
use crate::proto::identity::{PresharedKey, PublicKey, SecretKey};
use crate::proto::keys::HandshakeSecrets;
use crate::proto::random::Generator;
use crate::wire::{
    HandshakeFormatError, HandshakeKind, INSTANCE_LEN, InitPayload, InvitationId,
    MAX_FRAME_PREAUTH, NOISE_INIT_OVERHEAD, NOISE_REPLY_OVERHEAD, RefuseReason, ReplyPayload,
    prologue,
};

/// What the client says of itself in message 1.
#[derive(Clone, Copy, Debug)]
pub(in crate::proto) struct Hello {
    pub(in crate::proto) minor: u8,
    pub(in crate::proto) capabilities: u32,
    pub(in crate::proto) aead_offered: u8,
    pub(in crate::proto) aead_hardware: u8,
    pub(in crate::proto) instance: [u8; INSTANCE_LEN],
    pub(in crate::proto) time: u64,
    pub(in crate::proto) challenge: Option<[u8; 32]>,
    pub(in crate::proto) invitation: Option<InvitationId>,
}

/// The initiator between message 1 and message 2.
pub(in crate::proto) struct Opening {
    kind: HandshakeKind,
    noise: Box<HandshakeState>,
    kem: KemSecret,
}

impl Opening {
    /// Makes message 1.
    pub(in crate::proto) fn start(
        kind: HandshakeKind,
        context: &[u8],
        secret: &SecretKey,
        peer: &PublicKey,
        psk: Option<&PresharedKey>,
        hello: &Hello,
        generator: Generator,
    ) -> Result<(Self, Vec<u8>), ExchangeError> {
        let kem = KemSecret::generate(kind)?;
        let encapsulation_key = kem.encapsulation_key()?;
        let mut noise = noise::initiator(&prologue(kind, context), secret, peer, generator)?;
        noise::set_psk(&mut noise, psk)?;
        let mut payload = Vec::new();
        InitPayload {
            minor: hello.minor,
            capabilities: hello.capabilities,
            aead_offered: hello.aead_offered,
            aead_hardware: hello.aead_hardware,
            instance: hello.instance,
            time: hello.time,
            challenge: hello.challenge,
            encapsulation_key: &encapsulation_key,
            invitation: hello.invitation,
        }
        .write(&mut payload);
        let mut message = vec![0; NOISE_INIT_OVERHEAD + payload.len()];
        let len = noise.write_message(&payload, &mut message)?;
        message.truncate(len);
        Ok((
            Self {
                kind,
                noise: Box::new(noise),
                kem,
            },
            message,
        ))
    }

    /// Reads message 2. A message that does not fit leaves this as it was: the right one may
    /// follow.
    pub(in crate::proto) fn finish(&mut self, message: &[u8]) -> Result<Agreed, ExchangeError> {
        let mut payload = Zeroizing::new([0; MAX_FRAME_PREAUTH]);
        let len = self.noise.read_message(message, &mut *payload)?;
        let payload = payload.get(..len).ok_or(ExchangeError::Crypto)?;
        match ReplyPayload::parse(self.kind, payload)? {
            ReplyPayload::Refused {
                reason,
                minor,
                capabilities: _,
            } => Err(ExchangeError::Refused { reason, minor }),
            ReplyPayload::Accepted {
                minor,
                capabilities,
                session,
                aead,
                ciphertext,
            } => {
                let kem = self.kem.decapsulate(ciphertext)?;
                let (hash, split) = noise::finish(&mut self.noise);
                let secrets = HandshakeSecrets { hash, split, kem };
                Ok(Agreed {
                    minor,
                    capabilities,
                    session,
                    aead,
                    secrets,
                })
            }
        }
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What the initiator knows after message 2.
#[derive(Debug)]
pub(in crate::proto) struct Agreed {
    pub(in crate::proto) minor: u8,
    pub(in crate::proto) capabilities: u32,
    pub(in crate::proto) session: u64,
    pub(in crate::proto) aead: u8,
    pub(in crate::proto) secrets: HandshakeSecrets,
}

/// The responder between message 1 and message 2.
pub(in crate::proto) struct Heard {
    kind: HandshakeKind,
    noise: Box<HandshakeState>,
    encapsulation_key: Vec<u8>,
    /// Who sent message 1, proven by it.
    pub(in crate::proto) peer: PublicKey,
    /// What it says.
    pub(in crate::proto) hello: Hello,
}

impl Heard {
    /// Reads message 1. This is the first point at which a stranger costs a Diffie-Hellman.
    pub(in crate::proto) fn read(
        kind: HandshakeKind,
        context: &[u8],
        secret: &SecretKey,
        message: &[u8],
        generator: Generator,
    ) -> Result<Self, ExchangeError> {
        let mut noise = noise::responder(&prologue(kind, context), secret, generator)?;
        let mut payload = [0; MAX_FRAME_PREAUTH];
        let len = noise.read_message(message, &mut payload)?;
        let payload = payload.get(..len).ok_or(ExchangeError::Crypto)?;
        let peer = noise.get_remote_static().and_then(|key| key.first_chunk());
        let peer = PublicKey::from_bytes(*peer.ok_or(ExchangeError::Crypto)?);
        let init = InitPayload::parse(kind, payload)?;
        let hello = Hello {
            minor: init.minor,
            capabilities: init.capabilities,
            aead_offered: init.aead_offered,
            aead_hardware: init.aead_hardware,
            instance: init.instance,
            time: init.time,
            challenge: init.challenge,
            invitation: init.invitation,
        };
        let encapsulation_key = init.encapsulation_key.to_vec();
        Ok(Self {
            kind,
            noise: Box::new(noise),
            encapsulation_key,
            peer,
            hello,
        })
    }

    /// Makes the message 2 that accepts, and the secrets. An encapsulation key that ML-KEM refuses
    /// makes a message 2 that says so, and no secrets.
    pub(in crate::proto) fn accept(
        mut self,
        psk: Option<&PresharedKey>,
        minor: u8,
        capabilities: u32,
        session: u64,
        aead: u8,
    ) -> Result<(Vec<u8>, Option<HandshakeSecrets>), ExchangeError> {
        let Ok((ciphertext, kem)) = kem::encapsulate(self.kind, &self.encapsulation_key) else {
            let refusal = self.refuse(psk, RefuseReason::EncapsulationKey, minor, capabilities)?;
            return Ok((refusal, None));
        };
        let payload = ReplyPayload::Accepted {
            minor,
            capabilities,
            session,
            aead,
            ciphertext: &ciphertext,
        };
        let message = self.reply(psk, &payload)?;
        let (hash, split) = noise::finish(&mut self.noise);
        Ok((message, Some(HandshakeSecrets { hash, split, kem })))
    }

    /// Makes the message 2 that refuses.
    pub(in crate::proto) fn refuse(
        mut self,
        psk: Option<&PresharedKey>,
        reason: RefuseReason,
        minor: u8,
        capabilities: u32,
    ) -> Result<Vec<u8>, ExchangeError> {
        self.reply(
            psk,
            &ReplyPayload::Refused {
                reason,
                minor,
                capabilities,
            },
        )
    }

    fn reply(
        &mut self,
        psk: Option<&PresharedKey>,
        payload: &ReplyPayload<'_>,
    ) -> Result<Vec<u8>, ExchangeError> {
        noise::set_psk(&mut self.noise, psk)?;
        let mut bytes = Vec::new();
        payload.write(&mut bytes);
        let mut message = vec![0; NOISE_REPLY_OVERHEAD + bytes.len()];
        let len = self.noise.write_message(&bytes, &mut message)?;
        message.truncate(len);
        Ok(message)
    }
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heard")
            .field("kind", &self.kind)
            .field("peer", &self.peer)
            .field("hello", &self.hello)
            .finish_non_exhaustive()
    }
}

/// Why an exchange failed; each handshake turns it into an error of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proto) enum ExchangeError {
    /// It does not open: another key, another prologue, or bytes that changed on the way.
    Crypto,
    /// It opens and its payload is malformed.
    Format(HandshakeFormatError),
    /// ML-KEM refuses a key or ciphertext.
    Kem,
    /// The server knows the client and will not serve it.
    Refused { reason: RefuseReason, minor: u8 },
}

impl From<snow::Error> for ExchangeError {
    fn from(_: snow::Error) -> Self {
        Self::Crypto
    }
}

impl From<KemError> for ExchangeError {
    fn from(_: KemError) -> Self {
        Self::Kem
    }
}

impl From<HandshakeFormatError> for ExchangeError {
    fn from(error: HandshakeFormatError) -> Self {
        Self::Format(error)
    }
}
