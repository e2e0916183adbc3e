//! The names of the ciphers that a configuration may ask for.

/// A cipher that can seal a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aead {
    /// AES-256-GCM: the first choice where the processor has instructions for it.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): the first choice elsewhere.
    ChaCha20Poly1305,
    /// AES-128-GCM.
    Aes128Gcm,
    /// XChaCha20-Poly1305, with the long nonce.
    XChaCha20Poly1305,
}

impl Aead {
    /// Every cipher, in the order in which they are named to people.
    pub const ALL: [Self; 4] = [
        Self::Aes256Gcm,
        Self::ChaCha20Poly1305,
        Self::Aes128Gcm,
        Self::XChaCha20Poly1305,
    ];

    /// The name in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes128Gcm => "aes-128-gcm",
            Self::XChaCha20Poly1305 => "xchacha20-poly1305",
        }
    }
}
