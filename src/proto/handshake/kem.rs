//! The post-quantum half of the handshake: ML-KEM (FIPS 203) by aws-lc.

use aws_lc_rs::kem::{Algorithm, AlgorithmId, Ciphertext, DecapsulationKey, EncapsulationKey};
use aws_lc_rs::kem::{ML_KEM_768, ML_KEM_1024};
use zeroize::Zeroizing;

use crate::wire::HandshakeKind;

/// The client's key pair, used once.
pub(super) struct KemSecret(DecapsulationKey<AlgorithmId>);

impl KemSecret {
    /// Draws a key pair. The randomness is aws-lc's own, as FIPS 203 has it.
    pub(super) fn generate(kind: HandshakeKind) -> Result<Self, KemError> {
        DecapsulationKey::generate(algorithm(kind))
            .map(Self)
            .map_err(|_| KemError)
    }

    /// The public half, for message 1.
    pub(super) fn encapsulation_key(&self) -> Result<Vec<u8>, KemError> {
        let key = self.0.encapsulation_key().map_err(|_| KemError)?;
        let bytes = key.key_bytes().map_err(|_| KemError)?;
        Ok(bytes.as_ref().to_vec())
    }

    /// Gets the shared secret out of message 2. A forged ciphertext gives a random one (FIPS 203,
    /// section 6.3), and nothing sealed with it opens.
    pub(super) fn decapsulate(&self, ciphertext: &[u8]) -> Result<Zeroizing<[u8; 32]>, KemError> {
        let shared = self
            .0
            .decapsulate(Ciphertext::from(ciphertext))
            .map_err(|_| KemError)?;
        exact(shared.as_ref())
    }
}

/// Makes a shared secret for whoever holds the private half of `key`; returns it with its
/// ciphertext.
pub(super) fn encapsulate(
    kind: HandshakeKind,
    key: &[u8],
) -> Result<(Vec<u8>, Zeroizing<[u8; 32]>), KemError> {
    let key = EncapsulationKey::new(algorithm(kind), key).map_err(|_| KemError)?;
    let (ciphertext, shared) = key.encapsulate().map_err(|_| KemError)?;
    Ok((ciphertext.as_ref().to_vec(), exact(shared.as_ref())?))
}

/// A key or ciphertext that ML-KEM refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KemError;

fn exact(shared: &[u8]) -> Result<Zeroizing<[u8; 32]>, KemError> {
    let mut out = Zeroizing::new([0; 32]);
    if shared.len() != out.len() {
        return Err(KemError);
    }
    out.copy_from_slice(shared);
    Ok(out)
}

fn algorithm(kind: HandshakeKind) -> &'static Algorithm<AlgorithmId> {
    match kind {
        HandshakeKind::Session768 | HandshakeKind::Epoch768 => &ML_KEM_768,
        HandshakeKind::Session1024 | HandshakeKind::Epoch1024 => &ML_KEM_1024,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_get_the_same_secret_and_the_lengths_are_those_of_fips_203() {
        for kind in [HandshakeKind::Session768, HandshakeKind::Session1024] {
            let secret = KemSecret::generate(kind).unwrap();
            let key = secret.encapsulation_key().unwrap();
            assert_eq!(key.len(), kind.encapsulation_key_len());
            let (ciphertext, shared) = encapsulate(kind, &key).unwrap();
            assert_eq!(ciphertext.len(), kind.ciphertext_len());
            assert_eq!(secret.decapsulate(&ciphertext), Ok(shared));
        }
    }

    #[test]
    fn a_forged_ciphertext_gives_another_secret_and_a_short_one_none() {
        let kind = HandshakeKind::Session768;
        let secret = KemSecret::generate(kind).unwrap();
        let (mut ciphertext, shared) =
            encapsulate(kind, &secret.encapsulation_key().unwrap()).unwrap();
        ciphertext[0] ^= 1;
        assert_ne!(secret.decapsulate(&ciphertext), Ok(shared));
        assert_eq!(secret.decapsulate(&ciphertext[1..]), Err(KemError));
    }

    #[test]
    fn a_key_with_coefficients_out_of_range_is_refused() {
        // FIPS 203, section 7.2: the modulus check.
        assert!(encapsulate(HandshakeKind::Session768, &[0xFF; 1184]).is_err());
        assert!(encapsulate(HandshakeKind::Session768, &[0; 10]).is_err());
    }
}
