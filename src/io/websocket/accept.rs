//! The server's side: answers whoever asks for the WebSocket, and others like any web server.
//!
//! What is not a request for a WebSocket at the right path gets 404, whatever it is, and may ask again until its time is
//! over: without the path, a stranger does not learn that there is anything but an empty web server.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connect::{VERSION, WEBSOCKET, names};
use super::frame::Role;
use super::key;
use super::stream::WebSocket;
use crate::io::http::MAX_HEAD;
use crate::io::pool::Pool;

/// Serves HTTP until somebody asks for the WebSocket at `path`; `None` when the connection has ended before.
///
/// # Errors
///
/// The connection has failed, or what came is no HTTP. The caller bounds the time.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    path: &str,
    pool: Arc<Pool>,
) -> Result<Option<WebSocket<S>>, hyper::Error> {
    let asked = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let key = wanted(&request, path);
        if key.is_some() {
            asked.store(true, Ordering::Relaxed);
        }
        ready(Ok::<_, Infallible>(
            key.and_then(upgrade).unwrap_or_else(nothing_here),
        ))
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .half_close(true)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    poll_fn(|cx| connection.poll_without_shutdown(cx)).await?;
    let parts = connection.into_parts();
    let socket = || WebSocket::new(parts.io.into_inner(), Role::Server, &parts.read_buf, pool);
    Ok(asked.load(Ordering::Relaxed).then(socket))
}

/// Returns the key of a request for the WebSocket.
fn wanted<B>(request: &Request<B>, path: &str) -> Option<HeaderValue> {
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY)?;
    let version = headers.get(SEC_WEBSOCKET_VERSION)?;
    let asks = request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.uri().path() == path
        && names(headers, &UPGRADE, WEBSOCKET)
        && names(headers, &CONNECTION, "upgrade")
        && version.as_bytes() == VERSION.as_bytes()
        && key::is_key(key.as_bytes());
    asks.then(|| key.clone())
}

fn upgrade(key: HeaderValue) -> Option<Response<Full<Bytes>>> {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(UPGRADE, WEBSOCKET)
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, key::accept(key.as_bytes()))
        .body(Full::default())
        .ok()
}

fn nothing_here() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(NOT_FOUND));
    *answer.status_mut() = StatusCode::NOT_FOUND;
    let html = HeaderValue::from_static("text/html");
    answer.headers_mut().insert(CONTENT_TYPE, html);
    answer
}

/// The page of a web server that has none.
const NOT_FOUND: &str = "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n<center><h1>404 Not Found</h1></center>\r\n</body>\r\n</html>\r\n";

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::super::connect::{ConnectError, connect};
    use super::*;

    const ASK: &str = "Host: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn pool() -> Arc<Pool> {
        Pool::new("test", 4, 4)
    }

    /// What a server at `/adit` answers to `request`, and whether it took it for a WebSocket's.
    async fn answer(request: &str) -> (String, bool) {
        let (mut near, far) = duplex(20_000);
        let request = request.as_bytes().to_vec();
        let asking = async move {
            near.write_all(&request).await.expect("room");
            near.shutdown().await.expect("open");
            let mut answer = String::new();
            near.read_to_string(&mut answer).await.expect("text");
            answer
        };
        let serving = async { accept(far, "/adit", pool()).await.ok().flatten().is_some() };
        tokio::join!(asking, serving)
    }

    #[tokio::test]
    async fn right_request_is_answered_as_the_standard_says() {
        let (answer, taken) = answer(&format!("GET /adit HTTP/1.1\r\n{ASK}")).await;
        assert!(taken && answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(
            answer.contains("Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn every_other_request_gets_the_same_404() {
        let date = |answer: &str| {
            let lines = answer.lines().filter(|line| !line.starts_with("Date: "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (plain, _) = answer("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(plain.starts_with("HTTP/1.1 404 Not Found\r\n"), "{plain}");
        for request in [
            format!("GET /other HTTP/1.1\r\n{ASK}"),
            format!("GET /adit/ HTTP/1.1\r\n{ASK}"),
            format!("POST /adit HTTP/1.1\r\n{ASK}"),
            "GET /adit HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
            format!("GET /adit HTTP/1.1\r\n{}", ASK.replace("13", "8")),
            format!("GET /adit HTTP/1.1\r\n{}", ASK.replace("dGhl", "")),
            format!(
                "GET /adit HTTP/1.1\r\n{}",
                ASK.replace("WebSocket\r", "h2c\r")
            ),
        ] {
            let (answer, taken) = answer(&request).await;
            assert!(!taken, "{request}");
            assert_eq!(date(&answer), date(&plain), "{request}");
        }
    }

    #[tokio::test]
    async fn head_that_does_not_end_is_refused() {
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(15_000));
        let (answer, taken) = answer(&endless).await;
        assert!(!taken && answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[tokio::test]
    async fn both_ends_meet_and_bytes_go_both_ways() {
        let (near, far) = duplex(100);
        let (near, far) = tokio::join!(
            connect(near, "vpn.example.com", "/adit", pool()),
            accept(far, "/adit", pool())
        );
        let (mut near, mut far) = (
            near.expect("it is there"),
            far.expect("HTTP").expect("asked"),
        );
        let mut got = [0; 5];
        near.write_all(b"hello").await.expect("open");
        far.read_exact(&mut got).await.expect("open");
        far.write_all(&got).await.expect("open");
        got = [0; 5];
        near.read_exact(&mut got).await.expect("open");
        assert_eq!(&got, b"hello");
    }

    /// How a client fails that is answered so.
    async fn failure(answer: &'static str) -> String {
        let (near, mut far) = duplex(10_000);
        let answering = async move {
            let mut request = vec![0; 2000];
            let read = far.read(&mut request).await.expect("a request");
            assert!(request[..read].starts_with(b"GET /adit HTTP/1.1\r\n"));
            far.write_all(answer.as_bytes()).await.expect("room");
        };
        let asking = connect::<DuplexStream>(near, "h", "/adit", pool());
        let (outcome, ()) = tokio::join!(asking, answering);
        outcome.expect_err("no WebSocket").to_string()
    }

    #[tokio::test]
    async fn each_failure_says_what_may_be_the_matter() {
        for (answer, words) in [
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                "answers 404 Not Found: either the path is not that",
            ),
            (
                "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100\r\n\r\n",
                "does not reach the Adit server",
            ),
            (
                "HTTP/1.1 301 Moved\r\nLocation: https://www.h/\r\n\r\n",
                "it is at https://www.h/ instead",
            ),
            ("HTTP/1.1 403 No\r\n\r\n", "does not let this host"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                "answers 200 OK",
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n", "is no web server"),
            ("", "closed the connection without an answer"),
            (
                "HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
                "knows no WebSockets",
            ),
        ] {
            let said = failure(answer).await;
            assert!(said.contains(words), "{answer}: {said}");
        }
        let (near, _far) = duplex(100);
        let odd = connect(near, "h", "no path", pool()).await;
        assert!(matches!(odd, Err(ConnectError::Address)));
    }
}
