//! The client's side: asks for a WebSocket.

use std::sync::Arc;

use http_body_util::Empty;
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, LOCATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Request, StatusCode};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::Role;
use super::key;
use super::stream::WebSocket;
use crate::io::http::{Taken, take_over};
use crate::io::pool::Pool;

/// Asks on a fresh connection for a WebSocket at `path` of `authority`, a host and its port where that is not the usual one.
///
/// # Errors
///
/// What came instead. The caller bounds the time.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    authority: &str,
    path: &str,
    pool: Arc<Pool>,
) -> Result<WebSocket<S>, ConnectError> {
    let key = key::generate();
    let request = Request::get(path)
        .header(HOST, authority)
        .header(UPGRADE, WEBSOCKET)
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_VERSION, VERSION)
        .body(Empty::new())
        .map_err(|_| ConnectError::Address)?;
    match take_over(stream, request).await? {
        Taken::Over {
            answer,
            stream,
            early,
        } => {
            let wanted = key::accept(key.as_bytes());
            let proof = answer.headers().get(SEC_WEBSOCKET_ACCEPT);
            if proof.is_none_or(|proof| proof.as_bytes() != wanted.as_bytes())
                || !names(answer.headers(), &UPGRADE, WEBSOCKET)
            {
                return Err(ConnectError::Proof);
            }
            Ok(WebSocket::new(stream, Role::Client, &early, pool))
        }
        Taken::Refused(answer) => Err(ConnectError::Refused {
            status: answer.status(),
            location: location(answer.headers()),
        }),
    }
}

/// Why there is no WebSocket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host or the path cannot be asked for.
    #[error("the host or the path cannot stand in a request")]
    Address,
    /// The connection has failed, or what answers is no web server.
    #[error("{}", words(.0))]
    Http(#[from] hyper::Error),
    /// The answer shows that nobody has read the request.
    #[error("what answers there knows no WebSockets")]
    Proof,
    /// A web server's answer, and no WebSocket.
    #[error("the web server there answers {status}{}", remedy(*.status, .location.as_deref()))]
    Refused {
        /// What it answers.
        status: StatusCode,
        /// Where it says that it is instead.
        location: Option<String>,
    },
}

fn words(error: &hyper::Error) -> String {
    if error.is_parse() {
        "what answers there is no web server".to_owned()
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        "it closed the connection without an answer".to_owned()
    } else {
        let cause = std::error::Error::source(error);
        cause.map_or_else(|| error.to_string(), ToString::to_string)
    }
}

/// Says what may be the matter.
fn remedy(status: StatusCode, location: Option<&str>) -> String {
    match (status.as_u16(), location) {
        (300..=399, Some(location)) => {
            format!(": it is at {location} instead, write that in `server`")
        }
        (401 | 403, _) => ": it does not let this host or client in".to_owned(),
        (400 | 404 | 405 | 426, _) => {
            ": either the path is not that of the server's `listen`, or a reverse proxy does not pass WebSockets on \
             (nginx: proxy_http_version 1.1, and the headers Upgrade and Connection)"
                .to_owned()
        }
        (429, _) => ": it was asked too often".to_owned(),
        (500..=599, _) => {
            ": the reverse proxy there does not reach the Adit server behind it".to_owned()
        }
        (_, _) => String::new(),
    }
}

/// Where an answer says that the page is; what cannot be shown is left out.
fn location(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(LOCATION)?.to_str().ok()?;
    (text.len() <= MAX_LOCATION).then(|| text.to_owned())
}

/// Tells whether a header has `token` in its list (RFC 9110, section 5.6.1).
pub(super) fn names(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// What an upgrade asks for.
pub(super) const WEBSOCKET: &str = "websocket";

/// The version of the protocol (RFC 6455, section 4.1).
pub(super) const VERSION: &str = "13";

/// The most of an address that is repeated in an error.
const MAX_LOCATION: usize = 200;
