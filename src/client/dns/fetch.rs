//! Fetches a list over HTTP, through the tunnel, into a file.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::client::resolve::{Host, OriginError, Resolver};
use crate::config::MAX_LIST;

/// Why a list was not fetched.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum FetchError {
    /// The URL, or one that it led to, is none that can be fetched.
    #[error("{url} is not a URL that can be fetched")]
    Url {
        /// The URL.
        url: String,
    },
    /// The host cannot be reached.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// There are no authorities to check certificates by.
    #[error("this host has no certificate authorities to check https:// by")]
    NoAuthorities,
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The answer makes no sense.
    #[error("the host does not speak HTTP as it should: {0}")]
    Http(#[from] hyper::Error),
    /// The answer is not the list.
    #[error("the host answered {0}")]
    Status(StatusCode),
    /// The answer leads from one URL to another without end.
    #[error("more than {MAX_REDIRECTS} redirections")]
    Redirections,
    /// It is larger than any list.
    #[error("the list has more than {MAX_LIST} bytes")]
    TooLarge,
    /// Nothing came for a while, or it took too long in all.
    #[error("it took too long")]
    TimedOut,
    /// The copy cannot be written.
    #[error("cannot keep it: {0}")]
    Keep(#[source] io::Error),
    /// It holds no name: more likely the page of a captive portal than a list.
    #[error("what came holds no name")]
    NoNames,
}

/// Fetches `url` and writes it to `out`.
///
/// # Errors
/// It could not be fetched whole.
pub(super) async fn fetch(
    url: &str,
    resolver: &Resolver,
    tls: Option<Arc<rustls::ClientConfig>>,
    out: &mut impl Write,
) -> Result<(), FetchError> {
    match timeout(WHOLE_LIMIT, follow(url, resolver, tls, out)).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(FetchError::TimedOut),
    }
}

async fn follow(
    url: &str,
    resolver: &Resolver,
    tls: Option<Arc<rustls::ClientConfig>>,
    out: &mut impl Write,
) -> Result<(), FetchError> {
    let bad = |url: &str| FetchError::Url {
        url: url.to_owned(),
    };
    let mut url: Uri = url.parse().map_err(|_| bad(url))?;
    for _ in 0..=MAX_REDIRECTS {
        let host = url.host().ok_or_else(|| bad(&url.to_string()))?;
        let host = Host::parse(host.as_bytes()).map_err(|_| bad(&url.to_string()))?;
        let secure = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = resolver.connect(&host, port).await?.into_stream();
        let response = if secure {
            let name = match &host {
                Host::Ip(address) => ServerName::from(*address),
                Host::Name(name) => {
                    ServerName::try_from(name.clone()).map_err(|_| bad(&url.to_string()))?
                }
            };
            let config = tls.clone().ok_or(FetchError::NoAuthorities)?;
            let connecting = TlsConnector::from(config).connect(name, stream);
            let stream = timeout(IDLE_LIMIT, connecting)
                .await
                .map_err(|_| FetchError::TimedOut)??;
            ask(stream, &url).await?
        } else {
            ask(stream, &url).await?
        };
        let status = response.response.status();
        if status.is_success() {
            return response.save(out).await;
        }
        let target = response.response.headers().get(LOCATION);
        let Some(target) = target.filter(|_| status.is_redirection()) else {
            return Err(FetchError::Status(status));
        };
        let target = String::from_utf8_lossy(target.as_bytes()).into_owned();
        let next = joined(&url, &target).ok_or_else(|| bad(&target))?;
        // What was asked for over TLS is not taken without.
        if secure && next.scheme_str() != Some("https") {
            return Err(bad(&target));
        }
        url = next;
    }
    Err(FetchError::Redirections)
}

/// Where a redirection leads: to a whole URL, or a path of the same host.
fn joined(from: &Uri, target: &str) -> Option<Uri> {
    let whole = if target.starts_with('/') && !target.starts_with("//") {
        format!("{}://{}{target}", from.scheme_str()?, from.authority()?)
    } else if target.starts_with("//") {
        format!("{}:{target}", from.scheme_str()?)
    } else {
        target.to_owned()
    };
    let url: Uri = whole.parse().ok()?;
    matches!(url.scheme_str(), Some("http" | "https")).then_some(url)
}

/// An answer, and the task that moves its bytes.
struct Answered {
    response: Response<Incoming>,
    connection: tokio::task::JoinHandle<Result<(), hyper::Error>>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn ask<S>(stream: S, url: &Uri) -> Result<Answered, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, authority.rsplit('@').next().unwrap_or_default())
        .header(USER_AGENT, concat!("adit/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|_| FetchError::Url {
        url: url.to_string(),
    })?;
    let response = timeout(IDLE_LIMIT, sender.send_request(request)).await;
    match response {
        Ok(Ok(response)) => Ok(Answered {
            response,
            connection,
        }),
        Ok(Err(error)) => {
            connection.abort();
            Err(error.into())
        }
        Err(_elapsed) => {
            connection.abort();
            Err(FetchError::TimedOut)
        }
    }
}

impl Answered {
    async fn save(mut self, out: &mut impl Write) -> Result<(), FetchError> {
        let mut left = MAX_LIST;
        loop {
            let frame = timeout(IDLE_LIMIT, self.response.body_mut().frame()).await;
            let Some(frame) = frame.map_err(|_| FetchError::TimedOut)? else {
                return out.flush().map_err(FetchError::Keep);
            };
            if let Ok(data) = frame?.into_data() {
                let len = data.len() as u64;
                left = left.checked_sub(len).ok_or(FetchError::TooLarge)?;
                out.write_all(&data).map_err(FetchError::Keep)?;
            }
        }
    }
}

/// Redirections that are followed; release pages take two or three.
const MAX_REDIRECTS: usize = 5;
/// How long a host may be silent.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take in all: 128 MiB at 2 Mbit/s.
const WHOLE_LIMIT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_lead_to_urls_and_paths() {
        let from: Uri = "https://a.test:8443/x/list.txt".parse().unwrap();
        let to = |target: &str| joined(&from, target).map(|url| url.to_string());
        assert_eq!(to("/y"), Some("https://a.test:8443/y".to_owned()));
        assert_eq!(to("//b.test/y"), Some("https://b.test/y".to_owned()));
        assert_eq!(
            to("http://b.test/y?z"),
            Some("http://b.test/y?z".to_owned())
        );
        assert_eq!(to("ftp://b.test/y"), None);
        assert_eq!(to("y"), None);
    }
}
