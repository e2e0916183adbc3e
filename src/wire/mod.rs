//! Bytes to meaning and back, without state: the wire format, drawn once.

mod config;
mod control;
mod frame;
mod handshake;
mod reader;
mod sealed;

pub use config::{ConfigError, DEFAULT_MTU, InnerConfig, MAX_DNS, MAX_MTU, MIN_MTU};
pub use control::{CloseReason, Control, ControlError, JOIN_CHALLENGE_LEN};
pub use frame::{
    FrameFormatError, FrameType, LENGTH_LEN, MAX_FRAME, MAX_FRAME_PREAUTH, frame_type, split, write,
};
pub use handshake::{
    CHALLENGE_LEN, HandshakeFormatError, HandshakeFrame, HandshakeKind, INSTANCE_LEN, InitPayload,
    MAJOR, MINOR, NOISE_INIT_OVERHEAD, NOISE_REPLY_OVERHEAD, RefuseReason, ReplyPayload, prologue,
};
pub use reader::{Reader, Short};
pub use sealed::{
    InnerType, JOIN_HEADER_LEN, JOIN_LEN, JoinHeader, LaneId, NONCE_LEN, PACKET_HEADER_LEN,
    PACKET_HEADROOM, PacketHeader, PacketHeaderError, SEALED_HEADER_LEN, SealedFormatError,
    SealedHeader, SessionId, TAG_LEN, TAILROOM, is_skippable, join_session_id, nonce,
};
