//! CONNECT, of HTTP/1.1 (RFC 9110, section 9.3.6), with Basic authentication (RFC 7617).

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Empty;
use hyper::header::{HOST, HeaderMap, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use hyper::{Request, Response};
use zeroize::Zeroizing;

use super::ViaError;
use crate::config::{Host, ProxyAuth};
use crate::io::http::{Taken, take_over};
use crate::io::lane::LaneStream;

/// Asks for a connection to `host` as `login`.
pub(super) async fn ask(
    stream: LaneStream,
    login: Option<&ProxyAuth>,
    host: &Host,
    port: u16,
) -> Result<LaneStream, ViaError> {
    let target = format!("{host}:{port}");
    let mut request = Request::connect(&target).header(HOST, &target);
    if let Some(login) = login {
        request = request.header(PROXY_AUTHORIZATION, basic(login)?);
    }
    let request = request.body(Empty::new()).map_err(|_| ViaError::Address)?;
    match take_over(stream, request).await.map_err(failed)? {
        Taken::Over { stream, early, .. } if early.is_empty() => Ok(stream),
        Taken::Over { early, .. } => Err(ViaError::Early { bytes: early.len() }),
        Taken::Refused(answer) => Err(refused(&answer, login.is_some(), port)),
    }
}

/// The header that tells who asks; it is not shown where headers are.
fn basic(login: &ProxyAuth) -> Result<HeaderValue, ViaError> {
    let both = Zeroizing::new(format!("{}:{}", login.user, login.password.as_str()));
    let mut text = Zeroizing::new(String::from("Basic "));
    text.reserve_exact(both.len() * 4 / 3 + 4);
    STANDARD.encode_string(both.as_bytes(), &mut text);
    let mut value = HeaderValue::from_str(&text).map_err(|_| ViaError::Address)?;
    value.set_sensitive(true);
    Ok(value)
}

/// What an answer that gives nothing means.
fn refused(answer: &Response<()>, with_login: bool, port: u16) -> ViaError {
    let status = answer.status();
    match status.as_u16() {
        // Where the password is wrong tinyproxy answers 401, which is an origin's to say.
        401 | 407 => match schemes(answer.headers()) {
            Some(schemes) => ViaError::Schemes { schemes },
            None if with_login => ViaError::WrongLogin,
            None => ViaError::WantsLogin,
        },
        403 | 405 => ViaError::Forbidden { port, status },
        400 | 404 | 501 => ViaError::NoProxy { status },
        500..=599 => ViaError::Unreached { status },
        _ => ViaError::Status { status },
    }
}

/// The ways in which a proxy takes passwords, if Basic is not one of them.
fn schemes(headers: &HeaderMap) -> Option<String> {
    let mut schemes: Vec<&str> = Vec::new();
    for value in headers.get_all(PROXY_AUTHENTICATE) {
        let first = value.to_str().ok()?.split([' ', ',']).next()?;
        if first.eq_ignore_ascii_case("Basic") {
            return None;
        }
        let is_word = first.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if is_word && first.len() <= MAX_SCHEME && schemes.len() < MAX_SCHEMES {
            schemes.push(first);
        }
    }
    (!schemes.is_empty()).then(|| schemes.join(" or "))
}

fn failed(error: hyper::Error) -> ViaError {
    if error.is_parse() {
        return ViaError::NotHttp;
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return ViaError::Closed;
    }
    ViaError::Io(io::Error::other(error))
}

/// Ways to give a password that an error names.
const MAX_SCHEMES: usize = 4;

/// Letters of one of them: `Negotiate` is the longest that is common.
const MAX_SCHEME: usize = 20;
