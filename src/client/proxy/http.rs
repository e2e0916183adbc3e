//! Serves one HTTP client: CONNECT, plain forwarding, and the proxy's own pages.
//!
//! hyper parses, so that no two readings of a message's length can differ. After a
//! CONNECT or an upgrade it gives the socket back with the bytes that it has read ahead.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::sleep;
use tracing::debug;

use super::forward::{self, Download, Origins};
use super::listen::Context;
use super::origin::{Opened, OriginStream};
use super::{linger, pac};
use crate::client::down::Down;
use crate::client::resolve::{Host, OriginError, ResolveError};
use crate::client::rules::Judged;
use crate::client::tunnel::ConnectError;

/// What the proxy answers with: its own words, or the origin's body.
pub(super) type Body = Either<Full<Bytes>, Download>;

/// The state of one HTTP connection.
pub(super) struct Session {
    pub(super) context: Arc<Context>,
    /// The address that the client reached us at.
    listener: SocketAddr,
    /// Held until the first request.
    handshake: Mutex<Option<OwnedSemaphorePermit>>,
    first_request: Notify,
    /// What to do once hyper has sent the answer and given the socket back.
    after: Mutex<Option<After>>,
    pub(super) origins: Origins,
}

/// What the connection becomes when it is no longer HTTP.
pub(super) enum After {
    /// CONNECT: the flow's bytes.
    Tunnel(Opened),
    /// 101: whatever the client and the origin have agreed to speak, while the rules have it.
    Upgrade(OnUpgrade, Judged),
}

/// Serves the connection until it is closed or its flow is attached.
pub(super) async fn serve(
    stream: TcpStream,
    context: &Arc<Context>,
    handshake: OwnedSemaphorePermit,
) {
    let stats = &context.settings.stats;
    let Ok(listener) = stream.local_addr() else {
        return stats.client_gone.add();
    };
    let session = Arc::new(Session {
        context: Arc::clone(context),
        listener,
        handshake: Mutex::new(Some(handshake)),
        first_request: Notify::new(),
        after: Mutex::new(None),
        origins: Origins::default(),
    });
    let service = service_fn(|request| {
        let session = Arc::clone(&session);
        Box::pin(async move { Ok::<_, Infallible>(session.handle(request).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.settings.idle_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(stream), service);
    let outcome = {
        let mut served = std::pin::pin!(poll_fn(|cx| connection.poll_without_shutdown(cx)));
        tokio::select! {
            biased;
            outcome = &mut served => Some(outcome),
            () = session.first_request.notified() => Some(served.await),
            () = sleep(context.settings.handshake_timeout) => None,
        }
    };
    let parts = connection.into_parts();
    let stream = parts.io.into_inner();
    match outcome {
        None => {
            stats.handshake_timed_out.add();
            return;
        }
        Some(Err(error)) => {
            debug!(%error, "http connection broken");
            stats.http_broken.add();
            // hyper has answered what it could not parse.
            return linger::close(stream).await;
        }
        Some(Ok(())) => {}
    }
    match session.take_after() {
        None => linger::close(stream).await,
        Some(After::Tunnel(opened)) => {
            stats.http_connects.add();
            opened.carry(stream, parts.read_buf.to_vec()).await;
        }
        Some(After::Upgrade(upgrade, judged)) => {
            stats.http_upgrades.add();
            tokio::select! {
                () = relay(stream, &parts.read_buf, upgrade) => {}
                () = judged.overruled() => stats.overruled.add(),
            }
        }
    }
}

impl Session {
    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        self.begun();
        if let Some(credentials) = &self.context.settings.credentials
            && request.uri().authority().is_some()
        {
            let presented = request.headers().get(hyper::header::PROXY_AUTHORIZATION);
            if !presented.is_some_and(|value| credentials.check_basic(value.as_bytes())) {
                self.context.settings.stats.unauthorized.add();
                return unauthorized();
            }
        }
        if *request.method() == Method::CONNECT {
            self.connect(&request).await
        } else if request.uri().authority().is_some() {
            forward::forward(self, request).await
        } else {
            self.own_page(&request)
        }
    }

    /// The first request is there: the connection counts as a handshake no more.
    fn begun(&self) {
        let permit = self
            .handshake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if permit.is_some() {
            self.first_request.notify_one();
        }
    }

    async fn connect(&self, request: &Request<Incoming>) -> Response<Body> {
        let target = request.uri().authority().and_then(|authority| {
            let host = Host::parse(authority.host().as_bytes()).ok()?;
            Some((host, authority.port_u16()?))
        });
        let Some((host, port)) = target else {
            return self.refuse(
                StatusCode::BAD_REQUEST,
                "CONNECT needs a host and a port, as in CONNECT example.com:443.",
            );
        };
        match self.context.open(&host, port).await {
            Ok(opened) => {
                self.set_after(After::Tunnel(opened));
                Response::new(Either::Left(Full::default()))
            }
            Err(error) => self.origin_failed(&host, port, &error),
        }
    }

    /// Answers a request that is not for an origin.
    fn own_page(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if !pac::PATHS.contains(&path) {
            return self.refuse(
                StatusCode::BAD_REQUEST,
                "This is an HTTP and SOCKS proxy, not a web server. Set it as the proxy of \
                 your browser or program, or have the browser load /proxy.pac from here.",
            );
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response =
                self.refuse(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD here.");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let with_password = self.context.settings.credentials.is_some();
        let file = pac::file(self.listener, with_password);
        let mut response = Response::new(Either::Left(Full::from(file)));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(pac::MEDIA_TYPE));
        response
    }

    /// Counts a request that the proxy does not serve, and answers it.
    pub(super) fn refuse(&self, status: StatusCode, text: &str) -> Response<Body> {
        self.context.settings.stats.http_refused.add();
        plain(status, format!("{text}\n"))
    }

    /// Counts a request whose origin cannot be reached, and answers it.
    pub(super) fn origin_failed(
        &self,
        host: &Host,
        port: u16,
        error: &OriginError,
    ) -> Response<Body> {
        self.context.count_failure(error);
        let (status, token, advice) = describe(error);
        let mut response = plain(status, format!("{host}:{port}: {error}.\n{advice}\n"));
        let status = format!("adit; error={token}");
        if let Ok(value) = HeaderValue::try_from(status) {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        response
    }

    pub(super) fn set_after(&self, after: After) {
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(after);
    }

    fn take_after(&self) -> Option<After> {
        self.after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Carries an upgraded connection until both sides have ended.
async fn relay(mut client: TcpStream, early: &[u8], upgrade: OnUpgrade) {
    let Ok(upgraded) = upgrade.await else {
        return;
    };
    // The only stream that origins are connected by.
    let Ok(parts) = upgraded.downcast::<TokioIo<OriginStream>>() else {
        return;
    };
    let mut origin = parts.io.into_inner();
    let copied = async {
        client.write_all(&parts.read_buf).await?;
        origin.write_all(early).await?;
        copy_bidirectional(&mut client, &mut origin).await
    };
    if let Err(error) = copied.await {
        debug!(%error, "upgraded connection broken");
    }
}

/// Makes an answer in the proxy's own words.
pub(super) fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn unauthorized() -> Response<Body> {
    let mut response = plain(
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "This proxy wants a user and a password.\n".to_owned(),
    );
    response.headers_mut().insert(
        PROXY_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"adit\", charset=\"UTF-8\""),
    );
    response
}

/// Returns status, `Proxy-Status` error type (RFC 9209 section 2.3) and what to do.
fn describe(error: &OriginError) -> (StatusCode, &'static str, &'static str) {
    match error {
        OriginError::Blocked(_) => (
            StatusCode::FORBIDDEN,
            "http_request_denied",
            "Change `rules:` of this client where it should be reached.",
        ),
        OriginError::Connect(error) => match error {
            ConnectError::Refused => (
                StatusCode::BAD_GATEWAY,
                "connection_refused",
                "Nothing listens on that port there, or a firewall says so.",
            ),
            ConnectError::Unreachable => (
                StatusCode::BAD_GATEWAY,
                "destination_ip_unroutable",
                "The host may be off; try later.",
            ),
            ConnectError::NetworkUnreachable => (
                StatusCode::BAD_GATEWAY,
                "destination_ip_unroutable",
                "The VPN server has no route there, or this host where a rule says direct.",
            ),
            ConnectError::NoAddress => (
                StatusCode::BAD_GATEWAY,
                "destination_ip_unroutable",
                "The VPN server gave out addresses of one family only.",
            ),
            ConnectError::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "connection_timeout",
                "The host may be off, or a firewall drops what is sent to it; try later.",
            ),
            ConnectError::NotAllowed => (
                StatusCode::FORBIDDEN,
                "destination_ip_prohibited",
                "Ask the VPN server's operator to add the destination to `allow:`.",
            ),
            ConnectError::TunnelDown(down) => tunnel_down(*down),
            ConnectError::TooManyFlows | ConnectError::PortTaken => (
                StatusCode::SERVICE_UNAVAILABLE,
                "connection_limit_reached",
                "Close some connections, or try later.",
            ),
        },
        OriginError::Resolve(error) => match error {
            ResolveError::Host => (
                StatusCode::BAD_GATEWAY,
                "dns_error",
                "Check the spelling of the name, and the resolver of this host.",
            ),
            ResolveError::InvalidName | ResolveError::NotFound => (
                StatusCode::BAD_GATEWAY,
                "dns_error",
                "Check the spelling of the name.",
            ),
            ResolveError::Onion => (
                StatusCode::BAD_GATEWAY,
                "dns_error",
                "Use a Tor proxy for this name.",
            ),
            ResolveError::NoAddress => (
                StatusCode::BAD_GATEWAY,
                "dns_error",
                "The host may be reachable by the other address family only.",
            ),
            ResolveError::ServerFailed { .. } | ResolveError::BadAnswer => (
                StatusCode::BAD_GATEWAY,
                "dns_error",
                "The VPN server's resolver has a problem with this name; try later.",
            ),
            ResolveError::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "dns_timeout",
                "The resolver is slow or cannot be reached; try later. It is the VPN server's, or this host's where a rule says direct.",
            ),
            ResolveError::NoNameServer => (
                StatusCode::BAD_GATEWAY,
                "dns_error",
                "Use addresses instead of names, or have the VPN server offer DNS.",
            ),
            ResolveError::TunnelDown(down) => tunnel_down(*down),
            ResolveError::Blocked => (
                StatusCode::FORBIDDEN,
                "http_request_denied",
                "A list under `dns: block:` of the client has the name; `adit dns NAME` says which.",
            ),
        },
    }
}

fn tunnel_down(down: Down) -> (StatusCode, &'static str, &'static str) {
    let what_to_do = if down.is_final() {
        "Ask whoever runs the VPN server for `adit clients restore` or a new invitation."
    } else {
        "The client keeps trying to reach the VPN server; `adit status` and its log say more."
    };
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "proxy_internal_error",
        what_to_do,
    )
}

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The largest head of a request, in bytes; browsers stay under 16 KiB, single sign-on
/// with large cookies does not.
pub const MAX_HEAD: usize = 64 * 1024;

/// The most header fields of a request.
pub const MAX_HEADERS: usize = 128;

/// The answer to a connection for which there is no room.
pub(super) const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: text/plain\r\nContent-Length: 49\r\nConnection: close\r\n\r\n\
    The proxy serves too many connections; try later\n";
