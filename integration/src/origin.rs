//! The Internet hosts that tests talk to: HTTP, HTTPS, TCP echo and UDP echo, each on a thread of its own.
//!
//! | path of the HTTP server | answer |
//! |---|---|
//! | `GET /bytes/N?seed=S` | the first N bytes of [`crate::stream::Stream`] S, with `Content-Length` |
//! | `GET /chunked/N?seed=S` | the same in chunks, length unsaid |
//! | `GET /slow/N?seed=S&pause=MS` | the same in pieces of 1 KiB, MS milliseconds apart |
//! | `GET /broken/N?seed=S` | promises N bytes, ends the connection after half of them |
//! | `POST /sink` | `LENGTH SHA256` of the body |
//! | `GET /`, `GET /page.html` | a page whose script writes what its style sheet, picture and data gave |
//! | `GET /peer` | address and port that the request came from |
//! | `* /request` | the request as it arrived: method, target, headers, one a line |
//!
//! An address is bound before `start` returns; port 0 takes a free one. A service ends when it is dropped.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{self, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, oneshot},
    time::Sleep,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    namespaces::{Place, runtime},
    stream::{self, Hasher, Stream},
};

/// A running origin.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What an origin has noticed about those who called.
#[derive(Debug, Default)]
struct Seen {
    open: AtomicUsize,
    total: AtomicU64,
    last: Mutex<Option<SocketAddr>>,
}

/// A certificate authority and one certificate of it, for an HTTPS origin.
#[derive(Debug)]
pub struct Certificate {
    /// The authority's certificate in PEM, for `curl --cacert`.
    pub authority: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
}

impl Origin {
    /// Starts an HTTP/1.1 server.
    ///
    /// # Panics
    ///
    /// If `bind` cannot be bound; so do the other constructors.
    pub fn http(place: &Place, bind: SocketAddr) -> Self {
        Self::tcp(place, bind, async |stream, peer| {
            serve_http(stream, peer).await
        })
    }

    /// Starts an HTTPS server with `certificate`, TLS 1.2 or 1.3, HTTP/1.1.
    pub fn https(place: &Place, bind: SocketAddr, certificate: &Certificate) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has both versions")
            .with_no_client_auth()
            .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())
            .expect("the certificate was made for this key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::tcp(place, bind, async move |stream, peer| {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve_http(stream, peer).await;
            }
        })
    }

    /// Starts a TCP server that sends back what it gets, and ends when the caller does.
    pub fn echo(place: &Place, bind: SocketAddr) -> Self {
        Self::tcp(place, bind, async |stream, _| {
            let _ = stream.set_nodelay(true);
            let _ = serve_echo(stream).await;
        })
    }

    /// Starts a TCP server that reads what it gets and adds to `taken` how many bytes that were.
    pub fn sink(place: &Place, bind: SocketAddr, taken: Arc<AtomicU64>) -> Self {
        Self::tcp(place, bind, async move |mut stream, _| {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                taken.fetch_add(length as u64, Ordering::Relaxed);
            }
        })
    }

    /// Starts a TCP server that accepts, and then neither reads nor writes until the caller goes.
    pub fn mute(place: &Place, bind: SocketAddr) -> Self {
        Self::tcp(place, bind, async |stream, _| {
            let mut byte = [0];
            while stream.peek(&mut byte).await.is_ok_and(|length| length > 0) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// Starts a UDP server that sends each datagram back to where it came from.
    pub fn udp_echo(place: &Place, bind: SocketAddr) -> Self {
        Self::start(place, async move || {
            let socket = UdpSocket::bind(bind).await?;
            let address = socket.local_addr()?;
            Ok((address, async move |seen: Arc<Seen>| {
                let mut buffer = vec![0; usize::from(u16::MAX)];
                loop {
                    let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                        continue;
                    };
                    seen.note(peer);
                    let _ = socket.send_to(&buffer[..length], peer).await;
                }
            }))
        })
    }

    /// Where the origin listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS/PATH`; `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::Relaxed)
    }

    /// How many connections, or datagrams, there have been.
    pub fn total(&self) -> u64 {
        self.seen.total.load(Ordering::Relaxed)
    }

    /// Whom the newest connection or datagram came from.
    pub fn last_peer(&self) -> Option<SocketAddr> {
        *self
            .seen
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tcp<S>(place: &Place, bind: SocketAddr, serve: S) -> Self
    where
        S: AsyncFn(TcpStream, SocketAddr) + Send + 'static,
    {
        Self::start(place, async move || {
            let listener = listen(bind)?;
            let address = listener.local_addr()?;
            Ok((address, async move |seen: Arc<Seen>| {
                let serve = std::rc::Rc::new(serve);
                let places = Arc::new(Semaphore::new(CONNECTIONS));
                loop {
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                        return;
                    };
                    let Ok((stream, peer)) = listener.accept().await else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    seen.note(peer);
                    seen.open.fetch_add(1, Ordering::Relaxed);
                    let seen = Arc::clone(&seen);
                    let serve = std::rc::Rc::clone(&serve);
                    tokio::task::spawn_local(async move {
                        serve(stream, peer).await;
                        seen.open.fetch_sub(1, Ordering::Relaxed);
                        drop(place);
                    });
                }
            }))
        })
    }

    /// Starts a service: `bind` gives its address and then what it does until it is dropped.
    fn start<B, R>(place: &Place, bind: B) -> Self
    where
        B: AsyncFnOnce() -> io::Result<(SocketAddr, R)> + Send + 'static,
        R: AsyncFnOnce(Arc<Seen>) + 'static,
    {
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = oneshot::channel();
        let (answer, bound) = std::sync::mpsc::channel();
        let shared = Arc::clone(&seen);
        let thread = place.spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime(), async move {
                match bind().await {
                    Ok((address, serve)) => {
                        let _ = answer.send(Ok(address));
                        tokio::select! { () = serve(shared) => {} _ = stopped => {} }
                    }
                    Err(error) => {
                        let _ = answer.send(Err(error));
                    }
                }
            });
        });
        let address = bound
            .recv()
            .expect("the origin's thread answers")
            .unwrap_or_else(|error| panic!("an origin cannot listen on {}: {error}", place.name()));
        Self {
            address,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Certificate {
    /// Makes an authority and a certificate for `names` (host names or addresses).
    ///
    /// # Panics
    ///
    /// If a name is neither.
    pub fn new(names: &[&str]) -> Self {
        Self::made(names, |_| {})
    }

    /// The same for one that ends at `end`.
    ///
    /// # Panics
    ///
    /// As [`Certificate::new`].
    pub fn ending(names: &[&str], end: SystemTime) -> Self {
        Self::made(names, |leaf| leaf.not_after = end.into())
    }

    fn made(names: &[&str], more: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let issuer_key = rcgen::KeyPair::generate().expect("the provider makes keys");
        let mut issuer = rcgen::CertificateParams::default();
        issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        issuer
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test authority");
        let authority = issuer
            .self_signed(&issuer_key)
            .expect("a certificate can be signed");
        let issuer = rcgen::Issuer::new(issuer, issuer_key);
        let key = rcgen::KeyPair::generate().expect("the provider makes keys");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut leaf = rcgen::CertificateParams::new(names).expect("names are valid");
        more(&mut leaf);
        let leaf = leaf
            .signed_by(&key, &issuer)
            .expect("a certificate can be signed");
        Self {
            authority: authority.pem(),
            chain: vec![leaf.der().clone()],
            key: rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der())
                .expect("a PKCS #8 key"),
        }
    }
}

impl Certificate {
    /// The certificate's chain and its key, each in PEM, for programs that take files.
    pub fn pem(&self) -> (String, String) {
        let block = |what: &str, der: &[u8]| {
            let text = STANDARD.encode(der);
            let lines: Vec<_> = text
                .as_bytes()
                .chunks(64)
                .map(String::from_utf8_lossy)
                .collect();
            format!(
                "-----BEGIN {what}-----\n{}\n-----END {what}-----\n",
                lines.join("\n")
            )
        };
        let chain = self.chain.iter().map(|one| block("CERTIFICATE", one));
        (chain.collect(), block("PRIVATE KEY", self.key.secret_der()))
    }
}

impl Seen {
    fn note(&self, peer: SocketAddr) {
        self.total.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
    }
}

/// A listener with a long queue: thousands of connections come at once.
fn listen(bind: SocketAddr) -> io::Result<TcpListener> {
    let socket = if bind.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    socket.listen(4096)
}

async fn serve_echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S, peer: SocketAddr) {
    let service =
        service_fn(move |request| async move { Ok::<_, Infallible>(answer(request, peer).await) });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).half_close(true);
    // an error here is the caller's doing, and the caller's to see
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

type Answer = Response<Either<Full<Bytes>, Seeded>>;

async fn answer(request: Request<Incoming>, peer: SocketAddr) -> Answer {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = |name: &str| {
        query.split('&').find_map(|pair| {
            pair.strip_prefix(name)?
                .strip_prefix('=')?
                .parse::<u64>()
                .ok()
        })
    };
    let seed = number("seed").unwrap_or(1);
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (kind, length) = (
        parts.next().unwrap_or_default(),
        parts.next().and_then(|n| n.parse::<u64>().ok()),
    );
    match (request.method(), kind, length) {
        (&Method::GET | &Method::HEAD, "bytes", Some(length)) => bytes(Seeded::new(seed, length)),
        (&Method::GET, "chunked", Some(length)) => bytes(Seeded {
            sized: false,
            ..Seeded::new(seed, length)
        }),
        (&Method::GET, "slow", Some(length)) => bytes(Seeded {
            piece: 1024,
            pause: Some(Duration::from_millis(number("pause").unwrap_or(20))),
            ..Seeded::new(seed, length)
        }),
        (&Method::GET, "broken", Some(length)) => bytes(Seeded {
            ends_at: length / 2,
            ..Seeded::new(seed, length)
        }),
        (&Method::POST | &Method::PUT, "sink", None) => sink(request.into_body()).await,
        (&Method::GET, "" | "page.html", None) => text("text/html; charset=utf-8", PAGE),
        (&Method::GET, "page.css", None) => text("text/css", "body { width: 321px; }"),
        (&Method::GET, "page.js", None) => text("text/javascript", SCRIPT),
        (&Method::GET, "page.svg", None) => text("image/svg+xml", PICTURE),
        (&Method::GET, "page.json", None) => text("application/json", r#"{"data": "fetched"}"#),
        (&Method::GET, "peer", None) => text("text/plain", &format!("{peer}\n")),
        (_, "request", None) => text("text/plain", &describe(&request)),
        _ => {
            let mut answer = text("text/plain", "no such path\n");
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    }
}

fn bytes(body: Seeded) -> Answer {
    let mut answer = Response::new(Either::Right(body));
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    answer
}

fn text(kind: &'static str, text: &str) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(Bytes::copy_from_slice(
        text.as_bytes(),
    ))));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

async fn sink(mut body: Incoming) -> Answer {
    let mut hasher = Hasher::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    hasher.update(&data);
                }
            }
            Err(error) => {
                return text(
                    "text/plain",
                    &format!("broken after {}: {error}\n", hasher.length()),
                );
            }
        }
    }
    text(
        "text/plain",
        &format!("{} {}\n", hasher.length(), hasher.finish()),
    )
}

fn describe(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    text
}

/// A body that is made as it is sent.
#[derive(Debug)]
struct Seeded {
    stream: Stream,
    length: u64,
    ends_at: u64,
    sized: bool,
    piece: usize,
    pause: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Seeded {
    fn new(seed: u64, length: u64) -> Self {
        let stream = Stream::new(seed);
        Self {
            stream,
            length,
            ends_at: length,
            sized: true,
            piece: stream::CHUNK,
            pause: None,
            sleep: None,
        }
    }
}

impl Body for Seeded {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(sleep) = &mut this.sleep {
            ready!(sleep.as_mut().poll(cx));
            this.sleep = None;
        }
        let left = this.ends_at - this.stream.position();
        if left == 0 {
            let broken = this.ends_at < this.length;
            return Poll::Ready(broken.then(|| Err(io::Error::other("ends early, as asked"))));
        }
        let mut piece = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(this.piece)];
        this.stream.fill(&mut piece);
        this.sleep = this.pause.map(|pause| Box::pin(tokio::time::sleep(pause)));
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.sized {
            SizeHint::with_exact(self.length - self.stream.position())
        } else {
            SizeHint::default()
        }
    }
}

/// Its script runs last, and says what arrived of everything else.
const PAGE: &str = r#"<!doctype html>
<html><head><meta charset="utf-8"><title>test page</title><link rel="stylesheet" href="/page.css"></head>
<body><p id="out">script has not run</p><img id="picture" src="/page.svg"><script src="/page.js"></script></body></html>
"#;

/// Waits for the picture and for data, then writes one line that only a whole page can.
const SCRIPT: &str = r#"
addEventListener("load", async () => {
  const data = (await (await fetch("/page.json")).json()).data;
  const style = getComputedStyle(document.body).width;
  const picture = document.getElementById("picture").naturalWidth;
  document.getElementById("out").textContent = ["whole", "page", style, picture, data].join(" ");
});
"#;

/// 12 pixels wide, which the script reads back.
const PICTURE: &str = r#"<svg xmlns="http://www.w3.org/2000/svg" width="12" height="7"/>"#;

/// What the script of the page writes when everything has arrived.
pub const PAGE_RESULT: &str = "whole page 321px 12 fetched";

/// Five times the largest number any test opens.
const CONNECTIONS: usize = 10_000;
