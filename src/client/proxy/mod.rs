//! The local proxy: one port that speaks SOCKS5, SOCKS4, SOCKS4a and HTTP.
//!
//! ```text
//!             first byte
//!  accept ──▶ 05, 04 ──▶ socks (sans-IO) ──▶ CONNECT ────▶ Resolver::connect ─▶ Flow::attach
//!    │                          └──────────▶ ASSOCIATE ──▶ Tunnel::associate
//!    │        else ────▶ http (hyper) ─────▶ CONNECT ────▶ Resolver::connect ─▶ Flow::attach
//!    │                          ├──────────▶ http://… ───▶ forward (hyper client over FlowStream)
//!    │                          └──────────▶ /proxy.pac
//!    └ no room ─▶ refused in words
//! ```
//!
//! A connection is a task here only until its flow is up; then [`Flow::attach`] gives
//! the socket to the driver, which moves the bytes without a task. What stays is plain
//! HTTP, whose messages must be looked at, and the control connections of UDP relays.
//!
//! [Rules](crate::client::rules) judge each request first: `Resolver::connect` above is what those for the tunnel come to, each
//! address judged on its own; what goes directly is connected and copied by the connection's task.
//!
//! # Limits
//!
//! [`ProxySettings`] bounds the connections that the proxy holds, those that have not
//! said yet what they want, and the time they may take for it. SOCKS negotiations keep
//! less than 520 bytes, HTTP heads are bounded by [`http::MAX_HEAD`]; bodies stream with
//! back-pressure. Whoever is refused is told why, in the protocol that it speaks, and
//! counted in [`ProxyStats`].
//!
//! [`Flow::attach`]: crate::client::tunnel::Flow::attach

mod auth;
mod forward;
mod headers;
pub mod http;
mod linger;
mod listen;
mod origin;
mod pac;
pub mod socks;
mod socks_client;
mod stats;
pub mod udp_header;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use auth::{Credentials, CredentialsError};
pub(in crate::client) use listen::Context;
pub use listen::{ProxySettings, serve};
pub(in crate::client) use origin::OriginStream;
pub use stats::{Counter, ProxyStats};
