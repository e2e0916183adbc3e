//! WebSockets under stream lanes: what makes a lane pass reverse proxies.
//!
//! ```text
//!  lane    frame frame frame frame frame …            a byte stream, as on TCP and TLS
//!            ╲      ╱       ╲   ╱                      cut anywhere
//!  here    head payload  head payload …                binary messages, RFC 6455
//!  below   TLS or TCP
//! ```
//!
//! A client asks for the path over HTTP/1.1 and gets the connection ([`connect`]); a server answers whoever asks
//! rightly, and everybody else like any web server that has nothing there ([`accept`]). After that a [`WebSocket`] is
//! a byte stream like the others, and a lane is not told that it is one. Where a message begins and ends means
//! nothing: the lane has frames of its own.
//!
//! # Theory of operation
//!
//! **Reading** goes straight into the lane's read buffer; [`Decoder`] takes the heads out in place, which moves what
//! stands behind one to the front by the length of the head, and unmasks. No message is ever put together, so its
//! length bounds no memory and needs no bound: a message of any length is read as it comes. What is kept is one head,
//! and one control frame (125 bytes).
//!
//! **Writing**: all that waits in the lane, up to [`MAX_MESSAGE`], becomes one message. A server sends the lane's own
//! buffers behind a head, in one vectored write and without a copy. A client must mask by a key that nobody can
//! foresee (RFC 6455, section 5.3): the copy that is masked is made into a buffer of the lane's pool, which goes back
//! as soon as the socket has taken it.
//!
//! **Control frames** go between two messages. A ping is answered, the newest if several wait. A close ends the
//! stream for the reader and is answered; nothing is sent behind it. We send no pings: the session asks after ten
//! seconds of silence ([`proto::LivenessLimits`](crate::proto::LivenessLimits)), well below the minute after which reverse proxies cut.
//!
//! **What breaks the rules** of RFC 6455 ends the connection: text, reserved bits (no extension is agreed on) and
//! opcodes, a frame that is masked where it must not be or the other way round, lengths that are not written in the
//! shortest way, fragments out of order.
//!
//! # Why no library
//!
//! tungstenite, fastwebsockets and soketto (MIT or Apache-2.0) hand out messages: each is put together
//! in memory of its own and copied from there, and is bounded for that reason. A lane wants a stream of bytes in
//! its own buffers, so what would be left of a library is the head of a frame: [`frame`]. The handshake is hyper's, which is
//! here already; SHA-1, which it wants of a server and which protects nothing, comes from aws-lc-rs.

mod accept;
mod connect;
mod decode;
pub mod frame;
mod key;
mod stream;

pub use accept::accept;
pub use connect::{ConnectError, connect};
pub use decode::{Decoder, Ping};
pub use stream::{MAX_MESSAGE, WebSocket};
