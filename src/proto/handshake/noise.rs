//! `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s` by `snow`, with randomness and X25519 of our own.
//!
//! Ours, because the session's generator must feed it (tests repeat, nothing else reads entropy),
//! because private keys must be erased, and because a public key of low order must be refused.
//! `snow` leaves its chaining key and DH results in freed memory. They are half of the hybrid
//! secret and worth nothing without the other half, the ML-KEM secret, which it never sees.

use std::cell::RefCell;

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use crate::proto::identity::{PresharedKey, PublicKey, SecretKey};
use crate::proto::random::Generator;

/// Builds the client's half.
pub(super) fn initiator(
    prologue: &[u8],
    secret: &SecretKey,
    peer: &PublicKey,
    generator: Generator,
) -> Result<HandshakeState, snow::Error> {
    builder(generator)?
        .prologue(prologue)?
        .local_private_key(secret.as_bytes())?
        .remote_public_key(peer.as_bytes())?
        .build_initiator()
}

/// Builds the server's half; its psk is set once message 1 has told who the client is.
pub(super) fn responder(
    prologue: &[u8],
    secret: &SecretKey,
    generator: Generator,
) -> Result<HandshakeState, snow::Error> {
    builder(generator)?
        .prologue(prologue)?
        .local_private_key(secret.as_bytes())?
        .build_responder()
}

/// Sets the pre-shared key, 32 zero bytes for none, as WireGuard does.
pub(super) fn set_psk(
    noise: &mut HandshakeState,
    psk: Option<&PresharedKey>,
) -> Result<(), snow::Error> {
    noise.set_psk(PSK_PLACE, psk.map_or(&[0; 32], |psk| psk.as_bytes()))
}

/// Takes the raw split (Noise, section 5.2) and the handshake hash, and erases the pre-shared key.
///
/// The first half of the split is the initiator's sending key at both ends.
pub(super) fn finish(noise: &mut HandshakeState) -> ([u8; 32], Zeroizing<[u8; 64]>) {
    let mut split = Zeroizing::new([0; 64]);
    let (mut first, mut second) = noise.dangerously_get_raw_split();
    split[..32].copy_from_slice(&first);
    split[32..].copy_from_slice(&second);
    first.zeroize();
    second.zeroize();
    let mut hash = [0; 32];
    hash.copy_from_slice(&noise.get_handshake_hash()[..32]);
    // Setting a psk at a fixed place with a fixed length cannot fail.
    let erased = noise.set_psk(PSK_PLACE, &[0; 32]);
    debug_assert!(erased.is_ok());
    (hash, split)
}

fn builder<'a>(generator: Generator) -> Result<Builder<'a>, snow::Error> {
    let params: NoiseParams = NAME.parse()?;
    let resolver = Resolver {
        generator: RefCell::new(Some(generator)),
    };
    Ok(Builder::with_resolver(params, Box::new(resolver)))
}

struct Resolver {
    generator: RefCell<Option<Generator>>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let generator = self.generator.borrow_mut().take()?;
        Some(Box::new(Randomness(generator)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Randomness(Generator);

impl Random for Randomness {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill(dest);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl X25519 {
    fn dalek(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(*self.secret)
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        self.secret.copy_from_slice(privkey);
        self.public = *x25519_dalek::PublicKey::from(&self.dalek()).as_bytes();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut *secret)?;
        self.set(&*secret);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.secret
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public: [u8; 32] = *pubkey.first_chunk().ok_or(snow::Error::Dh)?;
        let shared = self.dalek().diffie_hellman(&public.into());
        // A point of low order would make the result known to everybody (RFC 7748, section 6.1).
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out.get_mut(..32)
            .ok_or(snow::Error::Dh)?
            .copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

const NAME: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";

/// `psk2`: mixed in at the end of message 2 (Noise, section 9).
const PSK_PLACE: usize = 2;
