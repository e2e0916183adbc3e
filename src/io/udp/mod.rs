//! UDP sockets: batches in, batches out, with the kernel's offloads.
//!
//! ```text
//!  recvmmsg + GRO ──▶ [ message │ message │ … ] ──next_datagram──▶ one datagram after the other, in place
//!                       up to 64 KiB each, one sender and one stride
//!                                    └──take_message──▶ Inbox of a session (whole messages, by buffer)
//!
//!  sendmsg + GSO  ◀── [ ▮▮▮▮▮▮▯ │ ▮▮▮▯ ] ◀──SendBatch::reserve/commit── sealed straight into the batch
//!                       groups: one target, equal lengths, the last may be shorter
//! ```
//!
//! A [`UdpIo`] is a socket that many may send on and one reads. The server reads each of its
//! sockets in one task, which hands whole messages to the [`Inbox`] of the session that they
//! belong to; the client reads its own socket through a [`Receiver`]. Whoever sends has a
//! [`SendBatch`] and a [`Sender`], which waits for room in the socket without keeping others
//! from waiting for the same.
//!
//! Nothing here knows a frame or takes a protocol decision. What the network says about a path,
//! "too big", "refused", "unreachable", or that this host's own firewall drops it, is handed on as [`Feedback`]; anybody on the path can say
//! such things, so it is a hint and never a proof.
//!
//! # Kernel features
//!
//! By `quinn-udp`: segmentation offload both ways, ECN both ways, the address a datagram was
//! sent to, which answers leave from, and the "don't fragment" bit without the kernel's own
//! search for the path MTU. Each is used where it is there. When the kernel takes no segmented
//! send after all (a driver may refuse it), the batch is sent datagram by datagram from then on.
//!
//! # Limits
//!
//! A [`Receiver`] reads at most [`MESSAGES`] messages at once, a [`SendBatch`] holds
//! [`BATCH_BYTES`], an [`Inbox`] at most [`INBOX_MEMORY`] of buffers.

mod inbox;
mod receive;
mod send;
mod socket;
#[cfg(test)]
mod tests;

pub use inbox::{Arrival, INBOX_MEMORY, Inbox};
pub use quinn_udp::EcnCodepoint;
pub use receive::{Datagram, MESSAGES, Receiver};
pub use send::{BATCH_BYTES, SendBatch, Sender, Target};
pub use socket::{FORBIDDEN, Feedback, SOCKET_BUFFER, UdpIo, UdpStats};
