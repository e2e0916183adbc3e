//! Why a frame was not sealed or opened, and how much ends with it.

use super::state::MAX_LANES;
use crate::proto::replay::Replayed;
use crate::wire::{
    CloseReason, ControlError, DatagramFormatError, FlowFrameError, InnerType, LaneId,
    SealedFormatError, SessionId,
};

/// Why a packet was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The buffer holds no packet, or more than a frame may.
    #[error("buffer of {len} bytes cannot be a frame")]
    Length {
        /// Bytes of the buffer.
        len: usize,
    },
    /// Server: nothing of the client has opened yet.
    #[error("the session is not confirmed")]
    Unconfirmed,
    /// The session is over.
    #[error("the session is closed: {reason}")]
    Closed {
        /// Why.
        reason: CloseReason,
    },
    /// The lane does not exist, is dead, or is not confirmed.
    #[error("lane {lane} cannot be sent on")]
    Lane {
        /// Which.
        lane: LaneId,
    },
    /// A packet is longer than a datagram of this lane takes: it is to go in two pieces.
    #[error("datagram of {len} bytes on a lane that takes {most}")]
    TooLong {
        /// Bytes it would have.
        len: usize,
        /// The most it may.
        most: usize,
    },
    /// The epoch has sealed all it may, and no rekey has come about.
    #[error("epoch {epoch} has sealed all it may")]
    Exhausted {
        /// Its number.
        epoch: u64,
    },
}

/// Why a frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The session is over.
    #[error("the session is closed: {reason}")]
    Closed {
        /// Why.
        reason: CloseReason,
    },
    /// The bytes are no sealed frame.
    #[error(transparent)]
    Format(#[from] SealedFormatError),
    /// The lane does not exist or is dead.
    #[error("lane {lane} does not exist")]
    Lane {
        /// Which.
        lane: LaneId,
    },
    /// The frame is of an epoch that does not open, or no longer.
    #[error("epoch {found} does not open")]
    Epoch {
        /// Its low byte.
        found: u8,
    },
    /// The counter did not increase.
    #[error("counter {found}, at least {least} is due")]
    Counter {
        /// The frame's.
        found: u64,
        /// The least that would do.
        least: u64,
    },
    /// The bytes are no datagram of a session.
    #[error(transparent)]
    Datagram(#[from] DatagramFormatError),
    /// A datagram's counter came before, or too long ago to tell.
    #[error("datagram: {0}")]
    Replayed(#[from] Replayed),
    /// A datagram's seal does not open. Anybody can send one.
    #[error("the datagram does not open ({failed} in this epoch)")]
    Forged {
        /// Failed opens in this epoch so far.
        failed: u64,
    },
    /// The seal does not open: not from the peer, or changed on the way.
    #[error("the frame does not open ({failed} in this epoch)")]
    Seal {
        /// Failed opens in this epoch so far.
        failed: u64,
    },
    /// A frame of unknown type that may not be skipped.
    #[error("unknown sealed frame type {kind:#04x}")]
    UnknownType {
        /// Its type.
        kind: u8,
    },
    /// A control frame is malformed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A frame of a relayed flow is malformed.
    #[error(transparent)]
    Flow(#[from] FlowFrameError),
    /// A control frame that this end does not take, or not now.
    #[error("{kind:?} frame out of place")]
    Misplaced {
        /// Its type.
        kind: InnerType,
    },
    /// A Join for another session.
    #[error("join for session {found}")]
    Session {
        /// Which.
        found: SessionId,
    },
    /// A Join with a lane id that is not new, or too far below the highest to tell: a replay.
    #[error("join with lane {found}, which is not new ({highest} was)")]
    LaneId {
        /// The one it names.
        found: LaneId,
        /// The highest there was.
        highest: LaneId,
    },
    /// A Join when the session has as many lanes as it may.
    #[error("{MAX_LANES} lanes are joined")]
    TooManyLanes,
}

impl OpenError {
    /// How much ends with the frame.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        match self {
            Self::Closed { .. }
            | Self::Epoch { .. }
            | Self::Lane { .. }
            | Self::Session { .. }
            | Self::LaneId { .. }
            | Self::TooManyLanes
            | Self::Datagram(_)
            | Self::Replayed(_)
            | Self::Forged { .. } => Scope::Frame,
            // On a stream nothing is lost or changed by accident: somebody meddles, or the peer
            // is broken. Either way the next frame is worth no more.
            Self::Format(_) | Self::Counter { .. } | Self::Seal { .. } => Scope::Lane,
            // The peer itself sealed it.
            Self::UnknownType { .. }
            | Self::Control(_)
            | Self::Flow(_)
            | Self::Misplaced { .. } => Scope::Session,
        }
    }
}

/// How much an error ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Only the frame is dropped.
    Frame,
    /// The lane is dead: close its connection and call
    /// [`Session::remove_lane`](super::Session::remove_lane).
    Lane,
    /// The session is closed: send what [`Session::poll_control`](super::Session::poll_control)
    /// still gives.
    Session,
}
