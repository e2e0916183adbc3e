//! The handshake: two messages, hybrid, from strangers to a [`Session`](super::Session).

mod caller;
mod challenge;
#[cfg(test)]
mod datagram_tests;
pub(super) mod exchange;
mod initiator;
mod kem;
mod noise;
mod responder;
mod strangers;
#[cfg(test)]
mod tests;

pub use caller::DatagramInitiator;
pub use challenge::{ChallengeState, MAX_CHALLENGES};
pub use initiator::{ClientConfig, HandshakeError, Initiator, KemKind, Reply};
pub use responder::{Answer, ClientEntry, MAX_SERVER_KEYS, Responder, Silence};
pub use strangers::{DatagramResponder, Reception, Short, StrangerDrop, StrangerStats};
