//! Who is who: X25519 keys and pre-shared keys, and their text form.
//!
//! The text is that of WireGuard: 32 bytes as 44 characters of base64 (RFC 4648, section 4, with
//! padding), so that keys made for one serve the other.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::random::Generator;

/// A private X25519 key (RFC 7748). Erased on drop; never printed by `Debug`.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<[u8; KEY_LEN]>);

impl SecretKey {
    /// Draws a new key.
    #[must_use]
    pub fn generate(rng: &mut impl rand::CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        Generator::new(rng).fill(&mut *bytes);
        Self(bytes)
    }

    /// Takes the 32 bytes of a key as they are; clamping happens when it is used.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Computes the public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519_dalek::PublicKey::from(&self.to_dalek()).as_bytes())
    }

    /// The text form, to be written to a key file. Erased on drop.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    fn to_dalek(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(*self.0)
    }
}

impl PartialEq for SecretKey {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for SecretKey {}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl FromStr for SecretKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        decode(text).map(Self)
    }
}

/// A public X25519 key: who somebody is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Whether nobody can have it: it is one of the few points with which every secret key agrees on zero (RFC 7748,
    /// section 6.1).
    #[must_use]
    pub fn is_nobodys(&self) -> bool {
        let any = x25519_dalek::StaticSecret::from([1; KEY_LEN]);
        !any.diffie_hellman(&x25519_dalek::PublicKey::from(self.0))
            .was_contributory()
    }

    /// Takes the 32 bytes of a key as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

/// A secret that client and server share beside their keys; mixed in as the psk of Noise (section
/// 9).
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<[u8; KEY_LEN]>);

impl PresharedKey {
    /// Draws a new key.
    #[must_use]
    pub fn generate(rng: &mut impl rand::CryptoRng) -> Self {
        let SecretKey(bytes) = SecretKey::generate(rng);
        Self(bytes)
    }

    /// Takes the 32 bytes of a key as they are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The text form, to be written to a key file. Erased on drop.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }

    pub(super) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl PartialEq for PresharedKey {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for PresharedKey {}

impl std::fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        decode(text).map(Self)
    }
}

/// Why a text is not a key. Says what was found, never the text itself, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyTextError {
    /// The text has another length than 44 characters.
    #[error("found {found} characters, a key is {KEY_TEXT_LEN} of base64")]
    Length {
        /// Characters found.
        found: usize,
    },
    /// A character is none of base64.
    #[error("character {position} is {found:?}, which is not base64")]
    Character {
        /// Counted from 1.
        position: usize,
        /// The character.
        found: char,
    },
    /// The characters are right, but they are not 32 bytes.
    #[error("the {KEY_TEXT_LEN} characters do not end as 32 bytes of base64 do, with one \"=\"")]
    Ending,
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyTextError> {
    let found = text.chars().count();
    if found != KEY_TEXT_LEN {
        return Err(KeyTextError::Length { found });
    }
    let foreign = |(_, found): &(usize, char)| {
        !(found.is_ascii_alphanumeric() || matches!(found, '+' | '/' | '='))
    };
    if let Some((index, found)) = text.chars().enumerate().find(foreign) {
        return Err(KeyTextError::Character {
            position: index + 1,
            found,
        });
    }
    // The decoder asks for room by estimate, one byte more than it writes.
    let mut buffer = Zeroizing::new([0; KEY_LEN + 1]);
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    match STANDARD.decode_slice(text, &mut *buffer) {
        Ok(KEY_LEN) => bytes.copy_from_slice(&buffer[..KEY_LEN]),
        Ok(_) | Err(_) => {
            buffer.zeroize();
            return Err(KeyTextError::Ending);
        }
    }
    Ok(bytes)
}

/// Bytes of every key (RFC 7748, section 5).
pub const KEY_LEN: usize = 32;

/// Characters of a key's text: 32 bytes in base64 with padding.
pub const KEY_TEXT_LEN: usize = 44;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// RFC 7748, section 6.1: Alice's keys.
    const ALICE_SECRET: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66,
        0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9,
        0x2c, 0x2a,
    ];
    const ALICE_PUBLIC: [u8; 32] = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7,
        0x5a, 0x0d, 0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b,
        0x4e, 0x6a,
    ];

    #[test]
    fn public_key_of_rfc_7748() {
        assert_eq!(
            SecretKey::from_bytes(ALICE_SECRET).public().as_bytes(),
            &ALICE_PUBLIC
        );
    }

    #[test]
    fn text_is_44_characters_and_comes_back() {
        let public = PublicKey::from_bytes(ALICE_PUBLIC);
        assert_eq!(
            public.to_string(),
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
        );
        assert_eq!(public.to_string().parse(), Ok(public));
        let secret = SecretKey::from_bytes(ALICE_SECRET);
        assert_eq!(secret.to_base64().parse(), Ok(secret));
    }

    #[test]
    fn a_wrong_text_is_told_what_was_found() {
        let error = |text: &str| text.parse::<PublicKey>().unwrap_err();
        assert_eq!(error(""), KeyTextError::Length { found: 0 });
        assert_eq!(error("abc"), KeyTextError::Length { found: 3 });
        let text = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(
            error(&text.replace("73", "7_")),
            KeyTextError::Character {
                position: 24 - 4,
                found: '_'
            }
        );
        assert_eq!(error(&text.replace('=', "A")), KeyTextError::Ending);
        assert_eq!(error(&"=".repeat(44)), KeyTextError::Ending);
        assert_eq!(error(&text.replace("o=", "p=")), KeyTextError::Ending);
    }

    #[test]
    fn debug_never_prints_secrets() {
        let secret = SecretKey::from_bytes(ALICE_SECRET);
        assert_eq!(format!("{secret:?}"), "SecretKey(hidden)");
        assert_eq!(
            format!("{:?}", PresharedKey::from_bytes([1; 32])),
            "PresharedKey(hidden)"
        );
    }

    #[test]
    fn generated_keys_differ() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_ne!(SecretKey::generate(&mut rng), SecretKey::generate(&mut rng));
        assert_ne!(
            PresharedKey::generate(&mut rng),
            PresharedKey::generate(&mut rng)
        );
    }

    proptest! {
        #[test]
        fn every_key_comes_back_from_its_text(bytes: [u8; 32]) {
            let key = PublicKey::from_bytes(bytes);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{40,48}") {
            let _ = text.parse::<PublicKey>();
            let _ = text.parse::<SecretKey>();
        }
    }
}
