//! The AEADs a session may be sealed with.

/// An AEAD we speak; the number is the one on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AeadKind {
    /// AES-256-GCM (NIST SP 800-38D): the fastest where the processor has AES.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305 (RFC 8439): the fastest where it has not.
    ChaCha20Poly1305 = 2,
    /// AES-128-GCM (NIST SP 800-38D): a fifth faster than with 256 bits.
    Aes128Gcm = 3,
    /// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha); its 24-byte nonce is 12 zero bytes ‖ ours.
    XChaCha20Poly1305 = 4,
}

impl AeadKind {
    /// Every kind, in the order a server prefers them when hardware does not decide.
    pub const ALL: [Self; 4] = [
        Self::ChaCha20Poly1305,
        Self::Aes256Gcm,
        Self::Aes128Gcm,
        Self::XChaCha20Poly1305,
    ];

    /// Its name in configuration and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes128Gcm => "aes-128-gcm",
            Self::XChaCha20Poly1305 => "xchacha20-poly1305",
        }
    }
}
