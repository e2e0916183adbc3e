//! The cookie datagram, and what the two MACs of an Init are made of.

use super::datagram::{DatagramFormatError, DatagramType};
use super::reader::{Reader, Short};
use super::sealed::TAG_LEN;

/// A cookie on its way to a client: `06 ‖ nonce (24) ‖ AEAD{cookie (16)} ‖ tag (16)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// Nonce of XChaCha20-Poly1305; random.
    pub nonce: [u8; COOKIE_NONCE_LEN],
    /// The cookie, sealed, with the mac1 it answers as associated data.
    pub sealed: [u8; COOKIE_LEN],
    /// The tag.
    pub tag: [u8; TAG_LEN],
}

impl CookieReply {
    /// The whole datagram.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; COOKIE_REPLY_LEN] {
        let mut bytes = [0; COOKIE_REPLY_LEN];
        bytes[0] = DatagramType::Cookie.byte();
        bytes[1..25].copy_from_slice(&self.nonce);
        bytes[25..41].copy_from_slice(&self.sealed);
        bytes[41..].copy_from_slice(&self.tag);
        bytes
    }

    /// Reads a whole datagram.
    ///
    /// # Errors
    /// [`DatagramFormatError`] for another type or length.
    pub fn parse(datagram: &[u8]) -> Result<Self, DatagramFormatError> {
        let len = datagram.len();
        let short = |_: Short| DatagramFormatError::CookieLength { len };
        let mut reader = Reader::new(datagram);
        let found = reader.u8().map_err(short)?;
        if found != DatagramType::Cookie.byte() {
            return Err(DatagramFormatError::Type { found });
        }
        let reply = Self {
            nonce: reader.array().map_err(short)?,
            sealed: reader.array().map_err(short)?,
            tag: reader.array().map_err(short)?,
        };
        if !reader.is_empty() {
            return Err(DatagramFormatError::CookieLength { len });
        }
        Ok(reply)
    }
}

/// Bytes of mac1 and mac2: WireGuard's 128 bits.
pub const MAC_LEN: usize = 16;

/// Bytes of a cookie, which is the key of mac2.
pub const COOKIE_LEN: usize = 16;

/// Bytes of the nonce a cookie is sealed with: long enough to be drawn at random.
pub const COOKIE_NONCE_LEN: usize = 24;

/// Bytes of a cookie datagram, 57.
pub const COOKIE_REPLY_LEN: usize = 1 + COOKIE_NONCE_LEN + COOKIE_LEN + TAG_LEN;

/// What is hashed in front of the server's public key for the key of mac1.
pub const MAC1_LABEL: &[u8] = b"adit mac1";

/// What is hashed in front of the server's public key for the key that seals cookies.
pub const COOKIE_LABEL: &[u8] = b"adit cookie";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cookie_is_57_bytes_as_drawn() {
        let reply = CookieReply {
            nonce: [0xA1; 24],
            sealed: [0xA2; 16],
            tag: [0xA3; 16],
        };
        let bytes = reply.to_bytes();
        assert_eq!(bytes.len(), 57);
        assert_eq!(
            bytes.to_vec(),
            [&[6][..], &[0xA1; 24], &[0xA2; 16], &[0xA3; 16]].concat()
        );
        assert_eq!(CookieReply::parse(&bytes), Ok(reply));
        assert_eq!(
            CookieReply::parse(&[&bytes[..], &[0]].concat()),
            Err(DatagramFormatError::CookieLength { len: 58 })
        );
        assert_eq!(
            CookieReply::parse(&bytes[..56]),
            Err(DatagramFormatError::CookieLength { len: 56 })
        );
        assert_eq!(
            CookieReply::parse(&[4]),
            Err(DatagramFormatError::Type { found: 4 })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 50..64)) {
            if let Ok(reply) = CookieReply::parse(&bytes) {
                prop_assert_eq!(&reply.to_bytes()[..], &bytes[..]);
            }
        }
    }
}
