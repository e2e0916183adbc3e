//! Fetches a URL through an Adit server, with no proxy in between: the client as a library.
//!
//! ```text
//! cargo run --release --example fetch -- client.yaml https://example.com/ > page.html
//! ADIT_SERVER=tcp://vpn.example.com:7443 ADIT_SERVER_KEY=… ADIT_KEY_FILE=client.key \
//!     cargo run --release --example fetch -- http://example.com/ > page.html
//! ```
//!
//! What to take from it: a [`ClientConfig`] from a file and the environment, a [`Client`] that keeps itself
//! connected, and a stream to a host by name, resolved at the far end. The stream is an `AsyncRead` and
//! `AsyncWrite`, so that hyper and rustls run on it as they would on a socket.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use adit::client::resolve::Host;
use adit::client::run::Client;
use adit::config::{ClientConfig, Inputs};
use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, LOCATION};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let (file, url) = match &arguments[..] {
        [url] => (None, url),
        [file, url] => (Some(PathBuf::from(file)), url),
        _ => {
            eprintln!("usage: fetch [CLIENT.yaml] URL");
            return ExitCode::from(2);
        }
    };
    let url = url.to_string_lossy();
    match run(file.as_deref(), &url, &mut io::stdout().lock()).await {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fetch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Loads the configuration, connects, fetches and says goodbye; returns the length of the body.
///
/// # Errors
///
/// The configuration is wrong, or as [`fetch`].
pub(crate) async fn run(
    file: Option<&Path>,
    url: &str,
    out: &mut impl Write,
) -> anyhow::Result<u64> {
    let loaded = ClientConfig::load(Inputs {
        file,
        environment: &|name| env::var(name).ok(),
        flags: &[],
    })?;
    let client = Client::start(&loaded.config)?;
    let result = fetch(&client, url, out).await;
    client.close().await;
    result
}

/// Fetches `url` through `client` and writes the body to `out` as it comes; returns its length.
///
/// # Errors
///
/// The URL makes no sense, there is no session with the server, the origin cannot be reached, it
/// answers anything but success, or `out` cannot be written.
pub(crate) async fn fetch(client: &Client, url: &str, out: &mut impl Write) -> anyhow::Result<u64> {
    let url: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
    let name = url
        .host()
        .with_context(|| format!("{url} names no host"))?
        .trim_matches(['[', ']']);
    let secure = match url.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => bail!("{url}: only http:// and https:// are fetched"),
    };
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });

    tokio::time::timeout(SESSION_LIMIT, client.connected())
        .await
        .map_err(|_elapsed| {
            anyhow!(
                "no session within {SESSION_LIMIT:?}: is the server up, and does it know this key?"
            )
        })?
        .context("the tunnel has ended")?;
    let host = Host::parse(name.as_bytes()).with_context(|| name.to_owned())?;
    let flow = client.resolver().connect(&host, port).await;
    let stream = flow.with_context(|| format!("cannot connect to {name} port {port}"))?;
    let stream = stream.into_stream();
    if secure {
        let server = ServerName::try_from(name.to_owned())?;
        let tls = tls()?.connect(server, stream).await;
        let tls = tls.with_context(|| format!("TLS with {name} failed"))?;
        request(tls, &url, out).await
    } else {
        request(stream, &url, out).await
    }
}

/// Asks for `url` over a stream to its origin.
async fn request<S>(stream: S, url: &Uri, out: &mut impl Write) -> anyhow::Result<u64>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It moves the bytes while the answer is read here, and ends with it.
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().context("no host")?.as_str();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let request = Request::get(path)
        .header(HOST, host)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    if status.is_redirection() {
        let target = response.headers().get(LOCATION);
        let target = target.map_or("nowhere".into(), |value| {
            String::from_utf8_lossy(value.as_bytes())
        });
        bail!("{url}: {status}: redirects to {target}");
    }
    if !status.is_success() {
        bail!("{url}: {status}");
    }
    let mut length = 0;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the body broke off")?.into_data() {
            out.write_all(&data).context("cannot write the body")?;
            length += data.len() as u64;
        }
    }
    out.flush().context("cannot write the body")?;
    connection.abort();
    Ok(length)
}

/// TLS 1.3 with the origin, whose certificate the authorities of this host must vouch for.
fn tls() -> anyhow::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// How long the first session may take: several attempts, at several servers.
const SESSION_LIMIT: Duration = Duration::from_secs(20);
