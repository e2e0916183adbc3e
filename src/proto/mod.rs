//! The sans-IO session: handshake, keys, lanes, scheduling and timers.
//!
//! # Theory of operation
//!
//! Nothing here opens a socket, reads a clock or draws entropy of its own accord: time is an
//! argument, randomness a seed given to a constructor (only ML-KEM draws its own, in aws-lc). Bytes
//! go in and out through memory that the caller owns. What the bytes mean is drawn in
//! [`wire`](crate::wire).
//!
//! ```text
//!  client                                                         server
//!  Initiator::new ──────────── HandshakeInit ───────────▶ Responder::handle_init
//!        │                  [ ◀── Challenge, Init ──▶ ]              │ Answer::Accept
//!  Initiator::handle ◀──────── HandshakeReply ──────────────────────┤
//!        │ Reply::Established                                        │
//!        ▼                                                           ▼
//!     Session  (open) ───────── sealed Ping ───────────▶ Session (unconfirmed)
//!        │            ◀──────── sealed Pong, Config ────────      │ Confirmed
//!        ▼                                                           ▼
//!     seal_packet ◀═════════════ packets ═════════════════════▶ seal_packet
//! ```
//!
//! Over datagrams [`DatagramInitiator`] stands for the initiator and repeats itself,
//! [`DatagramResponder`] stands in front of the responder and sorts what strangers send; the
//! session is the same.
//!
//! ## States
//!
//! A **session** is `Unconfirmed` (server only: nothing of the client has opened, so it may be a
//! replay, and nothing is sent), `Open`, or `Closed` with a reason (only Close frames still leave).
//!
//! A **lane** is `Joining` (client: Join sent), `Unproven` (server: the handshake's own, nothing
//! opened yet), `Challenged` (server: JoinOk sent, the echo is to come), `Confirmed`, or `Dead`.
//! Packets pass on confirmed lanes only. A session without one lives on: how long is the driver's
//! to say, and a client comes back by [`Session::join_frame`].
//!
//! A **datagram lane** is beside that silent or not, is at one path and may be about to take
//! another (see `path`), and knows how long a datagram it carries (see `mtud`). What it says is
//! lost now and then, so control frames are said again until they are answered.
//!
//! **Relayed flows** ([`relayed`]) are frames of their own on stream lanes: [`Session::seal_flow`], and
//! [`Opened::Flow`] where both ends said in the handshake that they relay.
//!
//! A **guest's** session ([`Session::is_guest`]) is for a key that is no client's yet and names an invitation that the server knows
//! ([`Responder::inviting`]): [`Session::enrol`], [`SessionEvent::Enrol`], [`Session::answer_enrol`],
//! [`SessionEvent::Enrolled`], and nothing else.
//!
//! Stream lanes may stand **side by side** (see [`Session::beside`]); [`spread`] says which of them a packet takes.
//!
//! An **epoch** is next, current or former; a rekey makes one the other (see `epoch`).
//!
//! ## Order of calls
//!
//! One mutation, then a complete drain:
//!
//! 1. one of [`Session::open`], [`Session::open_datagram`], [`Session::seal_packet`], [`Session::seal_flow`],
//!    [`Session::handle_join`], [`Session::handle_join_datagram`], [`Session::join_frame`],
//!    [`Session::join_datagram`], [`Session::remove_lane`], [`Session::configure`],
//!    [`Session::close`], [`Session::handle_timeout`]; several of the first four in a row are one
//!    mutation;
//! 2. after [`Session::open_datagram`], [`Session::poll_delivery`] until `None`;
//! 3. [`Session::poll_control`] until `None`: each frame is sealed then, so it must be written to
//!    its lane in that order, and before any packet sealed later for that lane. A datagram goes to
//!    [`Session::datagram_path`];
//! 4. with datagram lanes, [`Session::poll_probe`] until `None`: each goes where it says;
//! 5. [`Session::poll_event`] until `None`;
//! 6. [`Session::poll_timeout`], and [`Session::handle_timeout`] when that time has come.
//!
//! A server finds the session of a datagram by its [`datagram_handle`](crate::wire::datagram_handle)
//! and has no two sessions with the same ([`Responder::avoiding`]). Of one client several may be
//! unconfirmed at once, one for each Init that was answered: they are kept until one of them is
//! confirmed or [`SessionEvent::LaneDead`] says that nothing came.
//!
//! A closed session with datagram lanes says Close three times within a second: it is to be kept,
//! and its timeouts handled, until [`Session::poll_timeout`] has nothing.
//!
//! When [`Session::open`] fails, [`OpenError::scope`] says whether the frame, the lane or the
//! session ends with it. A frame sealed and not sent is a gap in counters, which does no harm; a
//! frame sent out of order on a stream lane kills the lane.
//!
//! ## Limits
//!
//! [`MAX_LANES`] lanes a session, [`WINDOW`] source numbers of reordering, 128 control frames
//! waiting, [`MAX_CHALLENGES`] challenges a connection, [`MAX_SERVER_KEYS`] keys a server, 8,192
//! (key, instance) pairs whose newest time is known. A session holds 4 KiB of replay window and no
//! buffers; a datagram lane holds 4 KiB more for each epoch it opened frames of, four at most, and
//! the session half of at most 32 packets. Handshakes over datagrams are bounded by
//! [`LoadLimits`] and by 16,384 addresses that are told apart under load.
//!
//! ## Who may know what
//!
//! Key material is erased when it goes: identities, epochs, shared secrets, generator seeds. Two
//! libraries keep copies out of reach: `snow` its chaining key, the compiler what it spills to the
//! stack. Neither is enough for a session's keys without the ML-KEM secret, which aws-lc erases.
//! Challenges and keys are compared in constant time, and `Debug` prints none of them.

mod aead;
pub mod budget;
pub mod congestion;
mod cookie;
pub mod datapath;
pub mod delivery;
mod epoch;
mod handshake;
mod hold;
mod identity;
mod invitation;
mod keys;
mod lane;
mod liveness;
mod load;
mod lossy;
#[cfg(test)]
mod lossy_pair;
mod mtud;
mod outbox;
#[cfg(test)]
mod pair;
mod path;
mod pieces;
mod queue;
mod random;
mod rekey;
pub mod relayed;
pub mod repair;
mod replay;
mod retry;
mod schedule;
mod session;
pub mod spread;
mod stats;
mod timers;

pub use aead::{AeadKind, AeadNameError, AeadOffer, aes_hardware};
pub use cookie::{CookieChecker, CookieJar, Verdict};
pub use handshake::{
    Answer, ChallengeState, ClientConfig, ClientEntry, DatagramInitiator, DatagramResponder,
    HandshakeError, Initiator, KemKind, MAX_CHALLENGES, MAX_SERVER_KEYS, Reception, Reply,
    Responder, Short, Silence, StrangerDrop, StrangerStats,
};
pub use hold::{Delivery, Hold, HoldLimits, HoldStats, MAX_HOLD, Offer, hold_time};
pub use identity::{KEY_LEN, KEY_TEXT_LEN, KeyTextError, PresharedKey, PublicKey, SecretKey};
pub use invitation::{TOKEN_HASH_LEN, draw_token, invitation_id, token_hash};
pub use keys::Role;
pub use lane::LaneKind;
pub use liveness::LivenessLimits;
pub use load::{LOAD_LASTS, Load, LoadLimits};
pub use mtud::MtuStats;
pub use path::DatagramPath;
pub use queue::{
    Class, FairQueue, Producer, QueueDrops, QueueLimits, QueuePacket, QueueStats, Taken,
    WirePacket, flow_hash,
};
pub use rekey::RekeyLimits;
pub use replay::{ReplayWindow, Replayed, WINDOW};
pub use schedule::{PacketMeta, PassThrough, Schedule};
pub use session::{
    MAX_LANES, OpenError, Opened, Scope, SealError, Session, SessionEvent, Settings,
};
pub use stats::{Again, Drops, IncomingLane, LaneStats, LaneTraffic, OutgoingLane, Stats, Traffic};
