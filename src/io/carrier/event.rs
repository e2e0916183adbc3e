//! What a carrier tells its driver.

use std::io;

use crate::io::udp::Feedback;
use crate::proto::{OpenError, SessionEvent};
use crate::wire::{CloseReason, LaneId};

/// What became of a session or of one of its lanes.
#[derive(Debug)]
#[non_exhaustive]
pub enum CarrierEvent {
    /// The session says so.
    Session(SessionEvent),
    /// The network says that datagrams of a lane do not arrive. Anybody could say so.
    LaneDoubtful {
        /// The lane.
        lane: LaneId,
        /// What was said.
        feedback: Feedback,
    },
    /// A lane is gone; how many are left.
    LaneLost {
        /// The lane.
        lane: LaneId,
        /// Why it is gone.
        cause: LaneLoss,
        /// The lanes that are left.
        left: usize,
    },
}

/// Why a lane is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneLoss {
    /// The far end closed the connection.
    #[error("the connection was closed by the far end")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// A frame's length field was not legal.
    #[error("a malformed frame arrived: {0}")]
    Frame(#[from] crate::io::lane::FrameError),
    /// A frame did not open.
    #[error("a frame did not open: {0}")]
    Open(#[from] OpenError),
    /// The session is over.
    #[error("the session is closed: {0}")]
    SessionClosed(CloseReason),
    /// Another lane has taken its place, or it was tried for beside one that serves.
    #[error("another lane serves instead")]
    Replaced,
    /// The far end no longer answers.
    #[error("the far end no longer answers")]
    Silent,
    /// It sat on a part of a frame while memory for such was short.
    #[error("a frame did not get on while memory for such was short")]
    PartHeld,
}

impl From<io::Error> for LaneLoss {
    /// A TLS connection that ends without TLS's own goodbye has ended, no more: what was cut off is the session's to notice.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Closed
        } else {
            Self::Io(error)
        }
    }
}

/// What a [`Carrier`](super::Carrier) has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarrierStats {
    /// Packets that could not be sealed (no key, too long) and were dropped.
    pub unsealed: u64,
    /// Control frames that a full lane did not take.
    pub control_lost: u64,
    /// Handshake frames that followed a join and were not needed.
    pub surplus_handshakes: u64,
    /// Copies of thin packets that a lane had no room for after all.
    pub copies_refused: u64,
    /// Lanes lost.
    pub lanes_lost: u64,
    /// Times that a lane was not read, because there was no memory for the frame that was coming.
    pub starved: u64,
    /// Lanes lost because they sat on a part of a frame while memory for such was short.
    pub parts_given_up: u64,
    /// Datagrams of no session, or in the wrong place.
    pub stray_datagrams: u64,
    /// Datagrams that did not open, or joins that were refused.
    pub refused_datagrams: u64,
    /// Packets that came as datagrams and were put together again.
    pub joined: u64,
    /// What they were put together to.
    pub super_packets: u64,
}
