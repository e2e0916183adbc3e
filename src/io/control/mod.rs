//! The control socket: a running program takes orders of its own user.
//!
//! # Theory of operation
//!
//! ```text
//!  adit forward add ──▶ {"version":1,"command":"forward.add","arguments":{…}}\n ──▶ Server ──▶ Commands::call
//!                   ◀── {"version":1,"ok":{…}}\n  or  {"version":1,"error":"…"}\n ◀──
//! ```
//!
//! A Unix stream socket, one JSON object a line. A connection may send one order after the other; each is answered
//! before the next is read. A program brings its orders as [`Commands`]; this module knows none of them, nor what a
//! client or a server is.
//!
//! An order may hand over one descriptor (SCM_RIGHTS, with the first byte of its line), and its answer may be in two
//! parts: what is known at once, and, in a line of its own, what is known only when something has ended. So `adit nc`
//! hands over one end of a socket pair, hears that the connection stands, and later how it has ended; the bytes in
//! between go through the pair and nobody's hands.
//!
//! # Where
//!
//! A program says where it listens as [`Wanted`], by the words `control:` of its configuration and a name of its own
//! that is made of its keys, so that whoever has the configuration finds it ([`Surroundings`] has the folders):
//! `client::control::place`, `server::control::place`. Whoever has no configuration takes the only one that lives.
//!
//! # Who may
//!
//! The socket is its owner's alone (0600, in a folder to which nobody else may write, made 0700), and whoever connects is asked for again by SO_PEERCRED: the
//! same user, or root. A foreigner's connection is closed without an answer, and counted. A caller looks at the other
//! end in the same way.
//!
//! # Limits
//!
//! A line has at most [`MAX_LINE`] bytes, that of an answer [`MAX_ANSWER`]; at most [`MAX_CONNECTIONS`] connections are served, and
//! [`MAX_HELD`] more that wait for an end; an order must be there within [`IDLE`] of the one before. What exceeds a limit
//! is answered with the reason, where there is a line to answer, and closed.

mod call;
mod line;
mod message;
mod place;
mod server;
mod stream;
mod sweep;

pub use call::{CallError, Caller};
pub use line::{Lines, MAX_ANSWER, MAX_LINE, TooLong};
pub use message::{Answer, BadRequest, Request, VERSION};
pub use place::{PlaceError, Surroundings, Wanted, short_key};
pub use server::{Commands, ControlStats, Done, IDLE, MAX_CONNECTIONS, MAX_HELD, serve};
pub use sweep::COMPANION;
