//! The proof that a server has read a request for a WebSocket (RFC 6455, section 4.2.2).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt as _;

/// Makes the key of a request.
pub(super) fn generate() -> String {
    STANDARD.encode(rand::rng().random::<[u8; 16]>())
}

/// Returns what the answer to a request with `key` says.
pub(super) fn accept(key: &[u8]) -> String {
    let text = [key, GUID].concat();
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text))
}

/// Tells whether `key` is one: 16 bytes in base64.
pub(super) fn is_key(key: &[u8]) -> bool {
    STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// What the standard adds to the key.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_is_that_of_the_standard() {
        // RFC 6455, section 1.3.
        let accepted = accept(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key(generate().as_bytes()));
        assert!(!is_key(b"short") && !is_key(b"c2hvcnQ="));
    }
}
