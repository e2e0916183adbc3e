//! The sans-IO session: handshake, keys, lanes, scheduling and timers.

mod aead;
mod epoch;
mod handshake;
mod identity;
mod keys;
mod lane;
mod liveness;
mod outbox;
#[cfg(test)]
mod pair;
mod random;
mod rekey;
mod replay;
mod schedule;
mod session;
mod stats;
mod timers;

pub use aead::{AeadKind, AeadNameError, AeadOffer, aes_hardware};
pub use handshake::{
    Answer, ChallengeState, ClientConfig, ClientEntry, HandshakeError, Initiator, KemKind,
    MAX_CHALLENGES, MAX_SERVER_KEYS, Reply, Responder, Silence,
};
pub use identity::{KEY_LEN, KEY_TEXT_LEN, KeyTextError, PresharedKey, PublicKey, SecretKey};
pub use keys::Role;
pub use lane::LaneKind;
pub use liveness::LivenessLimits;
pub use rekey::RekeyLimits;
pub use replay::{ReplayWindow, Replayed, WINDOW};
pub use schedule::{PacketMeta, PassThrough, Schedule};
pub use session::{
    MAX_LANES, OpenError, Opened, Scope, SealError, Session, SessionEvent, Settings,
};
pub use stats::{Drops, LaneStats, Stats};
