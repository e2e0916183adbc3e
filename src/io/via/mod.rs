//! Through somebody's proxy: asks it for a connection to the server.
//!
//! ```text
//!  Dialer ── TCP (TLS for https://) ──▶ proxy ── TCP ──▶ server
//!     └─ CONNECT host:port, Basic      (http, https)   ┐ then the bytes are the lane's: TLS, WebSocket,
//!     └─ SOCKS5, user and password     (socks5)        ┘ or frames as they are
//! ```
//!
//! The proxy resolves the server's name; here only the proxy's own is resolved. A lane through a proxy is a lane like
//! others from then on: the proxy sees whom it leads to, and what TLS and the session have sealed.
//!
//! # What is bounded
//!
//! The head of a proxy's answer ([`http`](super::http)), a SOCKS answer by its own form (262 bytes), and all of it by the time that
//! [`dial`](super::dial) gives. Nothing is kept behind it: no server of ours speaks before it is spoken to, so what
//! comes behind an answer is the proxy's own and ends the attempt.

mod connect;
pub mod socks;

use std::io;

use hyper::StatusCode;
use thiserror::Error;

use super::lane::LaneStream;
use crate::config::{Host, ProxyAddr, ProxyScheme};

/// Asks `proxy`, to which `stream` leads, for a connection to `host`.
///
/// # Errors
///
/// What the proxy says instead. The caller bounds the time.
pub async fn ask(
    stream: LaneStream,
    proxy: &ProxyAddr,
    host: &Host,
    port: u16,
) -> Result<LaneStream, ViaError> {
    match proxy.scheme {
        ProxyScheme::Http | ProxyScheme::Https => {
            connect::ask(stream, proxy.login.as_ref(), host, port).await
        }
        ProxyScheme::Socks5 => socks::ask(stream, proxy.login.as_ref(), host, port).await,
    }
}

/// Why a proxy gives no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ViaError {
    /// It lets nobody through without a password.
    #[error(
        "it wants a user and a password: write them in `via`, as in http://USER:PASSWORD@HOST:PORT"
    )]
    WantsLogin,
    /// The user or the password is wrong.
    #[error("it does not accept the user and the password that `via` gives it")]
    WrongLogin,
    /// It asks for the password in a way that is not known here.
    #[error("it takes passwords only by {schemes}, and Adit gives them by Basic")]
    Schemes {
        /// What it takes.
        schemes: String,
    },
    /// It does not let anybody go there.
    #[error("it does not allow connections to port {port} of the server ({status}){}", allowed(*.port))]
    Forbidden {
        /// The port.
        port: u16,
        /// What it answers.
        status: StatusCode,
    },
    /// What answers is a web server, by the look of it.
    #[error("it makes no connections for others ({status}): is it a proxy, and its port right?")]
    NoProxy {
        /// What it answers.
        status: StatusCode,
    },
    /// It does not reach the server.
    #[error("it does not reach the server ({status})")]
    Unreached {
        /// What it answers.
        status: StatusCode,
    },
    /// It answers something else.
    #[error("it answers {status}")]
    Status {
        /// What it answers.
        status: StatusCode,
    },
    /// What answers is no HTTP.
    #[error("what answers there is no HTTP proxy")]
    NotHttp,
    /// A SOCKS proxy refuses.
    #[error("{0}")]
    Socks(#[from] socks::SocksError),
    /// It closed the connection.
    #[error("it closed the connection without an answer")]
    Closed,
    /// It sent more than its answer.
    #[error("it sent {bytes} bytes behind its answer, before the server could")]
    Early {
        /// How many.
        bytes: usize,
    },
    /// The server's name cannot be asked for.
    #[error("the server's host cannot stand in a request")]
    Address,
    /// The connection has failed.
    #[error("the connection to it failed: {0}")]
    Io(#[from] io::Error),
}

/// Says which port would do.
fn allowed(port: u16) -> &'static str {
    if port == HTTPS {
        ""
    } else {
        ": most proxies allow 443 alone, so let the server listen there"
    }
}

/// What proxies let pass, since it is the web's.
const HTTPS: u16 = 443;

#[cfg(test)]
mod tests;
