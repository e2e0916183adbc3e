//! Asks over HTTP/1.1 for the connection itself: a WebSocket's upgrade, a proxy's CONNECT.
//!
//! One request goes out, the head of one answer comes back, and either the connection is ours from there on or it is of
//! no more use. hyper reads and bounds the head; no body is read. The caller bounds the time.

use std::future::poll_fn;
use std::pin::pin;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// What a request has brought.
#[derive(Debug)]
pub(super) enum Taken<S> {
    /// The connection, and what came behind the answer's head.
    Over {
        /// The answer.
        answer: Response<()>,
        /// The connection.
        stream: S,
        /// What was read too much.
        early: Bytes,
    },
    /// An answer that gives nothing.
    Refused(Response<()>),
}

/// Sends `request` on a fresh connection and takes the connection over if the answer gives it.
///
/// # Errors
///
/// The connection has failed, or what came is no HTTP.
pub(super) async fn take_over<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Taken<S>, hyper::Error> {
    let (mut sender, mut connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut sending = pin!(sender.send_request(request));
    let mut driving = pin!(poll_fn(|cx| connection.poll_without_shutdown(cx)));
    let (answer, over) = tokio::select! {
        biased;
        answer = &mut sending => (answer?, false),
        driven = &mut driving => {
            driven?;
            (sending.await?, true)
        }
    };
    let (head, _body) = answer.into_parts();
    let gives = head.extensions.get::<hyper::upgrade::OnUpgrade>().is_some();
    let answer = Response::from_parts(head, ());
    if !gives {
        return Ok(Taken::Refused(answer));
    }
    if !over {
        driving.await?;
    }
    let parts = connection.into_parts();
    Ok(Taken::Over {
        answer,
        stream: parts.io.into_inner(),
        early: parts.read_buf,
    })
}

/// The most of an answer's head that is read: the least that hyper takes.
pub(super) const MAX_HEAD: usize = 8 * 1024;
