//! The admin address: metrics and health over HTTP, on loopback alone.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the metrics, Prometheus' text format 0.0.4 |
//! | `/healthz` | 200: the program runs and answers |
//! | `/readyz` | 200 while it does its work, else 503; in words why |
//!
//! There is no password, since whoever can connect is on this host, and nothing can be changed here. A page in a browser
//! of this host could connect too, by a name that leads here: a request whose Host is no address and not `localhost` is
//! refused.
//!
//! # Limits
//!
//! At most [`MAX_CONNECTIONS`] connections, others wait in the kernel; each ends after [`IDLE`] without a request, and a
//! request's head has at most 8 KiB. An answer that is not taken within [`IDLE`] is dropped.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::http::MAX_HEAD;

/// A program that can be looked at.
pub trait Observed: Send + Sync + 'static {
    /// Tells whether it does its work, in words either way.
    fn ready(&self) -> impl Future<Output = Result<String, String>> + Send;

    /// Returns the type and the text of its metrics.
    fn metrics(&self) -> impl Future<Output = (&'static str, String)> + Send;
}

/// An admin address that is bound.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why the admin address cannot be had.
#[derive(Debug, Error)]
#[error("admin: cannot listen on {address}: {error}")]
pub struct AdminError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub error: io::Error,
}

impl Admin {
    /// Binds `address`; to be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let failed = |error| AdminError { address, error };
        let bound = || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bound().map_err(failed)
    }

    /// Returns where it listens, with the port it was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled.
    pub async fn serve(self, observed: Arc<impl Observed>, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        loop {
            let accept = async {
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                Some((place, self.listener.accept().await))
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = tasks.join_next() => {
                    if done.is_err() {
                        warn!("a connection to the admin address ended by a panic");
                    }
                    continue;
                }
                accepted = accept => accepted,
            };
            match accepted {
                Some((place, Ok((stream, _)))) => {
                    let observed = Arc::clone(&observed);
                    tasks.spawn(async move {
                        let _place = place;
                        connection(stream, &*observed).await;
                    });
                }
                Some((_, Err(error))) => {
                    debug!(%error, "the admin address accepts nobody for now");
                    sleep(ACCEPT_PAUSE).await;
                }
                None => break,
            }
        }
        tasks.shutdown().await;
    }
}

async fn connection(stream: TcpStream, observed: &impl Observed) {
    let service =
        service_fn(|request| async move { Ok::<_, Infallible>(answer(&request, observed).await) });
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    // A scraper keeps its connection for hours, and asks by another when this one is closed in order; one that is stuck
    // does not keep its place.
    for last in [false, true] {
        match timeout(LONGEST, served.as_mut()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => return debug!(%error, "a connection to the admin address ended"),
            Err(_elapsed) if last => return,
            Err(_elapsed) => served.as_mut().graceful_shutdown(),
        }
    }
}

async fn answer(request: &Request<Incoming>, observed: &impl Observed) -> Response<Full<Bytes>> {
    if !is_here(request) {
        let why = "this address is asked for by its number, or as localhost\n";
        return text(StatusCode::FORBIDDEN, PLAIN, why.to_owned());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, String::new());
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    match request.uri().path() {
        "/metrics" => {
            let (kind, metrics) = observed.metrics().await;
            text(StatusCode::OK, kind, metrics)
        }
        "/healthz" => text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => match observed.ready().await {
            Ok(state) => text(StatusCode::OK, PLAIN, format!("{state}\n")),
            Err(state) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{state}\n")),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            PLAIN,
            "there are /metrics, /healthz and /readyz\n".to_owned(),
        ),
    }
}

/// Whether a request names this host by an address, or by the one name that every host has.
fn is_here(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST) else {
        // HTTP/1.0 has none, and no browser speaks it.
        return true;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// Connections at once: a few scrapers and health checks.
pub const MAX_CONNECTIONS: usize = 16;

/// How long a connection may be without a request.
pub const IDLE: Duration = Duration::from_secs(60);

/// How long a connection is kept, and again as long to end in order.
const LONGEST: Duration = Duration::from_secs(600);

/// How long accepting rests when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Fake(bool);

    impl Observed for Fake {
        async fn ready(&self) -> Result<String, String> {
            let word = |word: &str| word.to_owned();
            if self.0 {
                Ok(word("up"))
            } else {
                Err(word("down"))
            }
        }

        async fn metrics(&self) -> (&'static str, String) {
            ("text/plain", "a_total 1\n".to_owned())
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_path_answers_and_a_name_from_elsewhere_is_refused() {
        for ready in [true, false] {
            let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let (address, stop) = (admin.address(), CancellationToken::new());
            let serving = tokio::spawn(admin.serve(Arc::new(Fake(ready)), stop.clone()));
            let get = async |path: &str, host: &str| {
                let head =
                    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
                ask(address, &head).await
            };
            let answer = get("/metrics", "127.0.0.1:9090").await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("a_total 1\n"));
            assert!(get("/healthz", "[::1]:80").await.ends_with("ok\n"));
            let (status, word) = if ready {
                ("200", "up\n")
            } else {
                ("503", "down\n")
            };
            let answer = get("/readyz", "localhost:9090").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with(word));
            assert!(get("/", "127.0.0.1").await.starts_with("HTTP/1.1 404"));
            assert!(
                get("/metrics", "evil.example:9090")
                    .await
                    .starts_with("HTTP/1.1 403")
            );
            let post = "POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
            stop.cancel();
            serving.await.unwrap();
        }
    }

    #[tokio::test]
    async fn silent_connections_keep_nobody_out_for_ever() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, stop) = (admin.address(), CancellationToken::new());
        let serving = tokio::spawn(admin.serve(Arc::new(Fake(true)), stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        drop(silent.pop());
        let head = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert!(ask(address, head).await.starts_with("HTTP/1.1 200"));
        stop.cancel();
        serving.await.unwrap();
    }
}
