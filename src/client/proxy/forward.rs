//! Forwards plain HTTP requests to their origins.
//!
//! Bodies stream in both directions with the back-pressure of both connections. The
//! connections to origins belong to the client's connection: they are used again for its
//! later requests, and end with it. Informational responses other than 100 and 101 are
//! not passed on.
//!
//! An origin that answers before it wants the body that a client keeps back for its 100 gets
//! none, and no other request either: the connection, on which a body is still due, is closed
//! with the last byte of the answer.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http_body_util::Either;
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HeaderValue, TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};
use tracing::debug;

use super::headers::{self, Forwards};
use super::http::{After, Body, MAX_HEAD, MAX_HEADERS, Session, plain};
use crate::client::resolve::Host;
use crate::client::rules::Judged;

/// The connections to origins of one client's connection.
#[derive(Default)]
pub(super) struct Origins {
    inner: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    /// Idle ones, the last used last.
    idle: Vec<(Origin, Connection)>,
    /// hyper's tasks for all of them; dropping the set ends them.
    tasks: JoinSet<()>,
}

/// Whom a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    host: Host,
    port: u16,
}

impl Origins {
    fn take(&self, origin: &Origin) -> Option<Connection> {
        let mut pool = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // A request is judged by the rules of its own time.
        pool.idle.retain(|(_, kept)| kept.judged.holds());
        let at = pool.idle.iter().position(|(to, _)| to == origin)?;
        Some(pool.idle.remove(at).1)
    }

    fn give_back(&self, origin: Origin, connection: Connection) {
        let mut pool = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        pool.idle.retain(|(_, kept)| !kept.sender.is_closed());
        if pool.idle.len() >= MAX_IDLE {
            pool.idle.remove(0);
        }
        pool.idle.push((origin, connection));
    }

    fn run(&self, connection: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut pool = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        while pool.tasks.try_join_next().is_some() {}
        pool.tasks.spawn(connection)
    }
}

/// Forwards one request and returns the answer, the origin's or the proxy's own.
pub(super) async fn forward(session: &Session, request: Request<Incoming>) -> Response<Body> {
    let received = request.version();
    let (mut parts, body) = request.into_parts();
    let (origin, host) = match target(&parts.uri) {
        Ok(target) => target,
        Err(text) => return session.refuse(StatusCode::BAD_REQUEST, text),
    };
    if matches!(parts.method, Method::OPTIONS | Method::TRACE) {
        match headers::count_forwards(&mut parts.headers) {
            Forwards::On => {}
            Forwards::Here => return last_recipient(&parts),
            Forwards::Malformed => {
                let text = "The Max-Forwards field is not a number.";
                return session.refuse(StatusCode::BAD_REQUEST, text);
            }
        }
    }
    let wants = headers::upgrade(&parts.headers).filter(|_| received == Version::HTTP_11);
    prepare(&mut parts, received, host, &body, wants.clone());
    let gate = expects_continue(&parts).then(|| Arc::new(Gate::default()));
    session.context.settings.stats.http_forwards.add();

    let answer = exchange(session, &origin, parts, Upload::new(body, gate.clone())).await;
    let (mut response, connection) = match answer {
        Ok(answer) => answer,
        Err(refusal) => return *refusal,
    };
    // Where the body stays here, the origin still waits for it.
    let used_up = gate.is_some_and(|gate| gate.shut());
    let close = used_up.then(|| Close(connection.task.clone()));
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // RFC 9110 section 7.8: not before it has said 100 and read the request.
    if switched && (wants.is_none() || used_up) {
        let text = format!(
            "{}:{}: the origin switched protocols unasked, or before it had the request.\n",
            origin.host, origin.port
        );
        return plain(StatusCode::BAD_GATEWAY, text);
    }
    let speaks = headers::upgrade(response.headers());
    let version = response.version();
    headers::strip(response.headers_mut());
    headers::add_via(response.headers_mut(), version);
    *response.version_mut() = Version::HTTP_11;
    if switched {
        let protocol = speaks
            .or(wants)
            .unwrap_or(HeaderValue::from_static("unknown"));
        headers::set_upgrade(response.headers_mut(), protocol);
        let upgrade = hyper::upgrade::on(&mut response);
        session.set_after(After::Upgrade(upgrade, connection.judged));
    } else if close.is_none() {
        session.origins.give_back(origin, connection);
    }
    response.map(|body| {
        Either::Right(Download {
            body,
            _close: close,
        })
    })
}

/// Reads an absolute-form target: the origin, and the `Host` field that names it.
fn target(uri: &Uri) -> Result<(Origin, HeaderValue), &'static str> {
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err("Only http:// can be forwarded; for https:// the client must use CONNECT.");
    }
    let authority = uri.authority().ok_or("The request names no host.")?;
    let host = Host::parse(authority.host().as_bytes())
        .map_err(|_| "The request's host is neither a host name nor an address.")?;
    let port = match authority.port_u16() {
        Some(port) => port,
        None if ends_with_host(authority) => HTTP_PORT,
        None => return Err("The request's port is not a number from 1 to 65535."),
    };
    // Without the user and password that the target may have (RFC 9110 section 4.2.4).
    let field = if port == HTTP_PORT {
        host.to_string()
    } else {
        format!("{host}:{port}")
    };
    let field = HeaderValue::try_from(field).map_err(|_| "The request's host is malformed.")?;
    Ok((Origin { host, port }, field))
}

/// Whether nothing but perhaps an empty port follows the host: the parser passes over what is
/// no port.
fn ends_with_host(authority: &Authority) -> bool {
    authority
        .as_str()
        .trim_end_matches(':')
        .ends_with(authority.host())
}

/// Turns the client's request into the one for the origin.
fn prepare(
    parts: &mut Parts,
    received: Version,
    host: HeaderValue,
    body: &Incoming,
    upgrade: Option<HeaderValue>,
) {
    headers::strip(&mut parts.headers);
    headers::add_via(&mut parts.headers, received);
    headers::set_host(&mut parts.headers, host);
    if let Some(protocol) = upgrade {
        headers::set_upgrade(&mut parts.headers, protocol);
    }
    if !body.is_end_stream() && !parts.headers.contains_key(CONTENT_LENGTH) {
        // Said here, since hyper would leave the body of a GET out otherwise.
        parts
            .headers
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
}

fn expects_continue(parts: &Parts) -> bool {
    parts
        .headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A connection to an origin.
struct Connection {
    sender: SendRequest<Upload>,
    judged: Judged,
    /// hyper's, which has the socket.
    task: AbortHandle,
}

/// Closes a connection when it is dropped.
struct Close(AbortHandle);

impl Drop for Close {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Answer = (Response<Incoming>, Connection);

/// Sends the request over a kept connection, or a new one, and waits for the answer.
async fn exchange(
    session: &Session,
    origin: &Origin,
    parts: Parts,
    body: Upload,
) -> Result<Answer, Box<Response<Body>>> {
    let mut request = request(parts, body);
    if let Some(mut kept) = session.origins.take(origin)
        && matches!(timeout(REUSE_LIMIT, kept.sender.ready()).await, Ok(Ok(())))
    {
        // The origin may have closed the connection just now. A request that is safe to
        // repeat, and has no body, is repeated on a new one (RFC 9112 section 9.3.1).
        let repeatable = request.method().is_safe() && request.body().is_end_stream();
        let spare = repeatable.then(|| request_head(&request));
        match kept.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, kept)),
            Err(mut failure) => match (failure.take_message(), spare) {
                (Some(unsent), _) => request = unsent,
                (None, Some(spare)) => request = spare,
                (None, None) => return Err(broken(session, origin, failure.error())),
            },
        }
    }
    let mut connection = open(session, origin).await?;
    match connection.sender.send_request(request).await {
        Ok(response) => Ok((response, connection)),
        Err(error) => Err(broken(session, origin, &error)),
    }
}

fn request(parts: Parts, body: Upload) -> Request<Upload> {
    let gate = body.gate.clone();
    let mut request = Request::from_parts(parts, body);
    if let Some(gate) = gate {
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                gate.open();
            }
        });
    }
    request
}

/// Copies a request that has no body.
fn request_head(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}

async fn open(session: &Session, origin: &Origin) -> Result<Connection, Box<Response<Body>>> {
    let Origin { host, port } = origin;
    let opened = (session.context.open(host, *port).await)
        .map_err(|error| Box::new(session.origin_failed(host, *port, &error)))?;
    let (stream, judged) = opened.into_stream();
    let (sender, connection) = Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(ORIGIN_BUFFER)
        .preserve_header_case(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(session, origin, &error))?;
    let (terms, stats) = (judged.clone(), Arc::clone(&session.context.settings.stats));
    let task = session.origins.run(async move {
        tokio::select! {
            outcome = connection.with_upgrades() => if let Err(error) = outcome {
                debug!(%error, "connection to an origin broken");
            },
            () = terms.overruled() => stats.overruled.add(),
        }
    });
    Ok(Connection {
        sender,
        judged,
        task,
    })
}

/// Answers for an origin that was reached but did not answer as HTTP should.
fn broken(session: &Session, origin: &Origin, error: &hyper::Error) -> Box<Response<Body>> {
    session.context.settings.stats.origin_failed.add();
    let Origin { host, port } = origin;
    let what = if error.is_parse() {
        "the origin's answer is not HTTP"
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        "the origin closed the connection without an answer"
    } else {
        "the connection to the origin broke"
    };
    debug!(%error, "no answer from an origin");
    let text = format!("{host}:{port}: {what}.\nTry again; if it stays, the origin is at fault.\n");
    Box::new(plain(StatusCode::BAD_GATEWAY, text))
}

/// Answers an OPTIONS or TRACE request that may go no further.
fn last_recipient(parts: &Parts) -> Response<Body> {
    if parts.method == Method::OPTIONS {
        return plain(StatusCode::OK, String::new());
    }
    // RFC 9110 section 9.3.8: the request as received, without what is secret.
    let mut echo = format!("{} {} {:?}\r\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        if *name == AUTHORIZATION || *name == COOKIE || name.as_str().starts_with("proxy-") {
            continue;
        }
        echo.push_str(name.as_str());
        echo.push_str(": ");
        echo.push_str(&String::from_utf8_lossy(value.as_bytes()));
        echo.push_str("\r\n");
    }
    echo.push_str("\r\n");
    let mut response = plain(StatusCode::OK, echo);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("message/http"));
    response
}

/// The client's body on its way to the origin.
#[derive(Default)]
struct Upload {
    body: Option<Incoming>,
    gate: Option<Arc<Gate>>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    fn new(body: Incoming, gate: Option<Arc<Gate>>) -> Self {
        Self {
            body: Some(body),
            patience: gate.as_ref().map(|_| Box::pin(sleep(CONTINUE_PATIENCE))),
            gate,
        }
    }

    /// Waits until the origin wants the body; the client is told to go on by the first
    /// poll of it that follows.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(gate) = &self.gate else {
            return Poll::Ready(());
        };
        if let Some(patience) = &mut self.patience
            && patience.as_mut().poll(cx).is_ready()
        {
            // An origin that knows no 100 is not asked twice (RFC 9110 section 10.1.1).
            gate.open();
        }
        if gate.poll_open(cx).is_pending() {
            return Poll::Pending;
        }
        self.gate = None;
        self.patience = None;
        Poll::Ready(())
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.poll_gate(cx).is_pending() {
            return Poll::Pending;
        }
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// The origin's body on its way to the client.
pub(super) struct Download {
    body: Incoming,
    /// Where the connection serves nobody afterwards.
    _close: Option<Close>,
}

impl hyper::body::Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Keeps a body back until the origin has said 100, or that it does not want it.
#[derive(Debug, Default)]
struct Gate {
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Gate {
    const WAITING: u8 = 0;
    const OPEN: u8 = 1;
    /// The final answer came first: the body is not wanted.
    const SHUT: u8 = 2;

    fn open(&self) {
        self.leave_waiting(Self::OPEN);
        self.waker.wake();
    }

    /// Returns whether the body is kept back for good.
    fn shut(&self) -> bool {
        self.leave_waiting(Self::SHUT) == Self::SHUT
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.state.load(Ordering::Acquire) == Self::OPEN {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Decides, unless it is decided; returns the decision.
    fn leave_waiting(&self, to: u8) -> u8 {
        self.state
            .compare_exchange(Self::WAITING, to, Ordering::AcqRel, Ordering::Acquire)
            .map_or_else(|decided| decided, |_waiting| to)
    }
}

/// Idle connections to origins that one client's connection keeps.
const MAX_IDLE: usize = 8;

/// How long a kept connection may take to be ready again; it is after the last byte of
/// the former answer.
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// How long a body is kept back for an origin's 100; curl waits as long.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// hyper's read buffer towards origins: large answers come in large pieces.
const ORIGIN_BUFFER: usize = 4 * MAX_HEAD;

const HTTP_PORT: u16 = 80;
