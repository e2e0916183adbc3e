//! The key schedule: from both halves of the hybrid handshake to one key per direction.
//!
//! ```text
//! secret = HKDF-Extract(salt: handshake hash, k1 ‖ k2 ‖ ML-KEM shared secret)      RFC 5869, 2.2
//! key    = HKDF-Expand(secret, "adit key" ‖ direction ‖ AEAD number, key length)   RFC 5869, 2.3
//! ```
//!
//! k1 and k2 are what Noise's `Split()` gives (section 5.2): k1 is the initiator's sending key,
//! whoever computes it, so both ends feed them in the same order. Direction is 0 for initiator to
//! responder, 1 for the other. Whoever wants the keys must break X25519 and ML-KEM.

use aws_lc_rs::hkdf;
use zeroize::Zeroizing;

use super::aead::{AeadKey, AeadKind};
use super::random::expand;

/// Which end of the handshake somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Began the handshake: the client.
    Initiator,
    /// Answered it: the server.
    Responder,
}

impl Role {
    const fn direction(self) -> u8 {
        match self {
            Self::Initiator => 0,
            Self::Responder => 1,
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

/// The keys of one epoch, as one end uses them.
#[derive(Debug)]
pub(super) struct EpochKeys {
    /// Seals what this end sends.
    pub(super) seal: AeadKey,
    /// Opens what the other end sends.
    pub(super) open: AeadKey,
}

/// What a finished handshake leaves for the key schedule. Erased on drop.
pub(super) struct HandshakeSecrets {
    /// Noise's handshake hash h: public, binds the transcript.
    pub(super) hash: [u8; 32],
    /// k1 ‖ k2 of Noise's `Split()`.
    pub(super) split: Zeroizing<[u8; 64]>,
    /// The ML-KEM shared secret.
    pub(super) kem: Zeroizing<[u8; 32]>,
}

impl HandshakeSecrets {
    /// Runs the key schedule for one end.
    pub(super) fn derive(&self, aead: AeadKind, role: Role) -> EpochKeys {
        let prk = self.extract();
        let key = |sender: Role| {
            let mut bytes = Zeroizing::new([0; 32]);
            let bytes = &mut bytes[..aead.key_len()];
            expand(&prk, &[LABEL, &[sender.direction(), aead.byte()]], bytes);
            AeadKey::new(aead, bytes)
        };
        EpochKeys {
            seal: key(role),
            open: key(role.other()),
        }
    }

    fn extract(&self) -> hkdf::Prk {
        let mut input = Zeroizing::new([0; 96]);
        input[..64].copy_from_slice(&*self.split);
        input[64..].copy_from_slice(&*self.kem);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &self.hash).extract(&*input)
    }
}

impl std::fmt::Debug for HandshakeSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandshakeSecrets(hidden)")
    }
}

const LABEL: &[u8] = b"adit key";

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> HandshakeSecrets {
        let mut split = Zeroizing::new([0x11; 64]);
        split[32..].fill(0x22);
        HandshakeSecrets {
            hash: [0x33; 32],
            split,
            kem: Zeroizing::new([0x44; 32]),
        }
    }

    fn seal(key: &AeadKey) -> [u8; 16] {
        key.seal([0; 12], b"", &mut []).unwrap()
    }

    #[test]
    fn one_end_opens_what_the_other_seals_and_never_its_own() {
        for aead in AeadKind::ALL {
            let client = secrets().derive(aead, Role::Initiator);
            let server = secrets().derive(aead, Role::Responder);
            assert_eq!(seal(&client.seal), seal(&server.open));
            assert_eq!(seal(&server.seal), seal(&client.open));
            assert_ne!(seal(&client.seal), seal(&client.open));
        }
    }

    #[test]
    fn every_input_changes_every_key() {
        let tags = |secrets: &HandshakeSecrets| {
            let keys = secrets.derive(AeadKind::Aes256Gcm, Role::Initiator);
            (seal(&keys.seal), seal(&keys.open))
        };
        let base = tags(&secrets());
        let mut hash = secrets();
        hash.hash[31] ^= 1;
        let mut first = secrets();
        first.split[0] ^= 1;
        let mut second = secrets();
        second.split[63] ^= 1;
        let mut kem = secrets();
        kem.kem[31] ^= 1;
        for changed in [hash, first, second, kem] {
            let (send, receive) = tags(&changed);
            assert!(send != base.0 && receive != base.1);
        }
    }
}
