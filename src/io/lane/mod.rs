//! Stream lanes: frames over TCP, TLS or a WebSocket, polled by a driver.
//!
//! ```text
//!  socket ──poll_read──▶ [ frame │ frame │ part of a fr… ]──next_frame──▶ opened in place
//!                          one contiguous buffer
//!
//!  socket ◀─poll_flush── [ small small small … ][ one pushed frame ][ one pushed frame ] …
//!                          a chunk they share     buffers handed over whole
//! ```
//!
//! A frame is `length (4, big endian) ‖ type (1) ‖ body`; `length` covers type and body. This
//! module knows no more of it than the length: what comes out of [`StreamLane::next_frame`] is
//! one whole frame with its length bytes (they are authenticated with the rest), mutable and in
//! place, so that it is opened where the kernel wrote it. What goes in by
//! [`StreamLane::reserve`] and [`StreamLane::commit`], or by [`StreamLane::push`], is one whole
//! frame too.
//!
//! # Order of calls
//!
//! A lane has no task and no channel; the driver that owns it calls it from one future:
//!
//! 1. [`StreamLane::poll_read`] until it is pending or the driver's budget is spent, and after
//!    each `Ready(Ok(n))` [`StreamLane::next_frame`] until it answers `Ok(None)`;
//! 2. whatever the frames lead to; it writes with `reserve`/`commit` or `push`;
//! 3. [`StreamLane::poll_flush`] once: everything queued goes out in as few vectored writes as
//!    the socket takes. `Pending` means that the socket is full; it wakes the driver.
//!
//! # Limits
//!
//! Before authentication ([`StreamLane::set_frame_limit`]) a lane costs one buffer of
//! [`FRAME_LIMIT_AT_FIRST`] + 4 bytes, whatever the peer sends. After that the buffer grows
//! fourfold each time the peer fills it, up to 768 KiB, and shrinks when the traffic no
//! longer needs it. A frame above the limit is an error before anything grows for it.
//!
//! What buffers have beyond that first size comes out of one bounded pool of memory
//! ([`ReadMemory`]). A lane that gets nothing of it for a frame that is coming is not read
//! ([`StreamLane::is_starved`]); its driver tries again after a moment.
//!
//! The write queue refuses ([`StreamLane::reserve`] answers `None`) above [`HIGH_WATER`]:
//! the sender of the packets is made to wait instead. Control frames have a small allowance
//! above it ([`StreamLane::reserve_control`]), so that a full lane still answers a ping.

mod exchange;
mod inbound;
mod memory;
mod outbound;
mod socket;
mod stream;

pub use exchange::ReadError;
pub use inbound::{FRAME_LIMIT_AT_FIRST, FrameError};
pub use memory::{READ_MEMORY, ReadMemory};
pub use outbound::{CONTROL_ALLOWANCE, HIGH_WATER};
pub use socket::{LaneStream, NOTSENT_LOWAT, keep_alive, prepare_socket};
pub use stream::{LaneStats, StreamLane};
