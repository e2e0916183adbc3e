//! The long-lived secrets of a peer: X25519 identities and pre-shared keys, 44 base64 characters each.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize as _, Zeroizing};

/// The public half of an identity: an X25519 point of 32 bytes, shown as 44 base64 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_LEN]);

/// The private half of an identity: an X25519 scalar of 32 bytes, erased when dropped.
///
/// `Debug` shows the public half only; there is no `Display`.
#[derive(Clone)]
pub struct SecretKey(StaticSecret);

/// A secret of 32 bytes that one client and the server share beside their identities; erased when dropped.
#[derive(Clone)]
pub struct PresharedKey(Zeroizing<[u8; KEY_LEN]>);

impl PublicKey {
    /// Takes the 32 bytes of a key as they are.
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Lends the 32 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl SecretKey {
    /// Makes a new key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(bytes.as_mut_slice());
        Self::from_bytes(*bytes)
    }

    /// Takes the 32 bytes of a key; the caller erases its own copy.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// Lends the 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        self.0.as_bytes()
    }

    /// Computes the public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// Writes the key as the 44 base64 characters that a key file holds.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.as_bytes()))
    }
}

impl PresharedKey {
    /// Takes the 32 bytes of a key; the caller erases its own copy.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Lends the 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self::from_bytes(*bytes))
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for PresharedKey {}

/// Why a text is not a key. It never repeats the text, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text has the wrong number of characters.
    #[error("a key has {KEY_CHARS} base64 characters, not {found}")]
    Length {
        /// How many characters were found.
        found: usize,
    },
    /// The text has the right length but is not base64 of 32 bytes.
    #[error("a key is {KEY_CHARS} base64 characters (A-Z a-z 0-9 + /) that end in `=`")]
    Encoding,
}

fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let found = text.chars().count();
    if found != KEY_CHARS {
        return Err(KeyError::Length { found });
    }
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    let mut decoded = STANDARD.decode(text).map_err(|_| KeyError::Encoding)?;
    let fits = decoded.len() == KEY_LEN;
    if fits {
        bytes.copy_from_slice(&decoded);
    }
    decoded.zeroize();
    if fits {
        Ok(bytes)
    } else {
        Err(KeyError::Encoding)
    }
}

/// Bytes in a key: the size of an X25519 scalar and point (RFC 7748, section 5).
pub const KEY_LEN: usize = 32;

/// Characters in the base64 form of 32 bytes, padding included.
const KEY_CHARS: usize = 44;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_and_public_keys_survive_their_text() {
        let key = SecretKey::generate();
        let again: SecretKey = key.to_base64().parse().expect("own text");
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
    }

    #[test]
    fn wrong_lengths_and_alphabets_are_told_apart() {
        assert_eq!(
            "abc".parse::<PublicKey>(),
            Err(KeyError::Length { found: 3 })
        );
        let odd = "!".repeat(KEY_CHARS);
        assert_eq!(odd.parse::<PublicKey>(), Err(KeyError::Encoding));
        let unpadded = "A".repeat(KEY_CHARS);
        assert_eq!(unpadded.parse::<PublicKey>(), Err(KeyError::Encoding));
    }

    #[test]
    fn debug_text_of_secrets_holds_no_secret() {
        let key = SecretKey::generate();
        assert!(!format!("{key:?}").contains(key.to_base64().as_str()));
        let shared = PresharedKey::from_bytes([7; KEY_LEN]);
        assert_eq!(format!("{shared:?}"), "PresharedKey(..)");
    }
}
