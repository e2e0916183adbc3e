//! The sans-IO session: handshake, keys, lanes, scheduling and timers.

mod aead;
mod identity;
mod random;

pub use aead::AeadKind;
pub use identity::{KEY_LEN, KEY_TEXT_LEN, KeyTextError, PresharedKey, PublicKey, SecretKey};
