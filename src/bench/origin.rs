//! The far side of measures: a source, a sink, and echoes, on one port.
//!
//! # The protocol
//!
//! The first byte of a TCP connection says what it is for:
//!
//! | byte | then |
//! |---|---|
//! | `d` | the origin sends until the other end closes |
//! | `u` | the other end sends; the origin says every [`TELL_EVERY`], and at the end, how many bytes have come, as u64 (big-endian) |
//! | `e` | each byte comes back |
//!
//! A datagram that begins with [`REQUEST`] comes back with [`ANSWER`] in its place: what answers is no request, so that
//! two origins do not keep each other busy. Everything else is closed or dropped without a word, and counted.
//!
//! # Limits
//!
//! [`MAX_CONNECTIONS`] at once, beyond which new ones are closed; each is closed when nothing moves for [`IDLE`], and after
//! [`LONGEST`]. It reaches nothing and knows nothing: whoever finds it can have bytes, and no more.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::io::clock;

/// An origin that listens.
#[derive(Debug)]
pub struct Origin {
    listener: TcpListener,
    datagrams: UdpSocket,
    address: SocketAddr,
    stats: Arc<OriginStats>,
}

/// What an origin did not serve.
#[derive(Debug, Default)]
pub struct OriginStats {
    /// Connections closed, since there were too many.
    pub too_many: AtomicU64,
    /// Connections that asked for nothing that there is, or failed, or stood still.
    pub unserved: AtomicU64,
    /// Datagrams that were no requests.
    pub strange_datagrams: AtomicU64,
    /// Answers that the network did not take.
    pub unanswered_datagrams: AtomicU64,
}

/// Why there is no origin.
#[derive(Debug, Error)]
#[error("cannot listen on {address} over {over}: {error}")]
pub struct OriginError {
    address: SocketAddr,
    over: &'static str,
    error: io::Error,
}

impl Origin {
    /// Listens on one port over TCP and UDP; port 0 is any that is free.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, OriginError> {
        let mut tries = if address.port() == 0 { PORTS_TRIED } else { 1 };
        loop {
            let failed = |over| {
                move |error| OriginError {
                    address,
                    over,
                    error,
                }
            };
            let listener = TcpListener::bind(address).await.map_err(failed("TCP"))?;
            let address = listener.local_addr().map_err(failed("TCP"))?;
            tries -= 1;
            match UdpSocket::bind(address).await.map_err(failed("UDP")) {
                Ok(datagrams) => {
                    return Ok(Self {
                        listener,
                        datagrams,
                        address,
                        stats: Arc::default(),
                    });
                }
                // Somebody has that port over UDP alone.
                Err(_) if tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what it counts.
    #[must_use]
    pub fn stats(&self) -> Arc<OriginStats> {
        self.stats.clone()
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let stats = self.stats;
        tokio::select! {
            () = stop.cancelled() => {}
            () = answer_connections(&self.listener, &stats) => {}
            () = answer_datagrams(&self.datagrams, &stats) => {}
        }
        debug!(counters = ?stats, "counters of the origin");
    }
}

async fn answer_connections(listener: &TcpListener, stats: &Arc<OriginStats>) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else {
            // No descriptor is left: some are given back in a moment.
            sleep(PAUSE).await;
            continue;
        };
        let Ok(seat) = seats.clone().try_acquire_owned() else {
            stats.too_many.fetch_add(1, Relaxed);
            continue;
        };
        let stats = stats.clone();
        connections.spawn(async move {
            let served = timeout(LONGEST, serve(stream)).await;
            if !matches!(served, Ok(Ok(()))) {
                stats.unserved.fetch_add(1, Relaxed);
            }
            drop(seat);
        });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    if moving(stream.read(&mut kind)).await? == 0 {
        return Ok(());
    }
    match kind {
        [DOWNLOAD] => send(&mut stream).await,
        [UPLOAD] => receive(&mut stream).await,
        [ECHO] => echo(&mut stream).await,
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

async fn send(stream: &mut TcpStream) -> io::Result<()> {
    let block = block();
    loop {
        match moving(stream.write(&block)).await {
            Ok(_) => {}
            Err(error) if is_the_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn receive(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    let mut come = 0_u64;
    let mut told = clock::now();
    loop {
        let len = match moving(stream.read(&mut buffer)).await {
            Ok(len) => len,
            Err(error) if is_the_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        come += len as u64;
        let now = clock::now();
        if len == 0 || now >= told + TELL_EVERY {
            told = now;
            moving(stream.write_all(&come.to_be_bytes())).await?;
        }
        if len == 0 {
            return Ok(());
        }
    }
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let len = match moving(stream.read(&mut buffer)).await {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if is_the_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        moving(stream.write_all(&buffer[..len])).await?;
    }
}

async fn answer_datagrams(socket: &UdpSocket, stats: &OriginStats) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is about an answer that did not arrive.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        match buffer.get_mut(..len) {
            Some(datagram) if datagram.starts_with(REQUEST) => {
                datagram[..ANSWER.len()].copy_from_slice(ANSWER);
                if socket.send_to(datagram, from).await.is_err() {
                    stats.unanswered_datagrams.fetch_add(1, Relaxed);
                }
            }
            Some(_) | None => {
                stats.strange_datagrams.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Waits for what is to move within [`IDLE`].
async fn moving<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(IDLE, step).await?
}

/// A measure ends by closing, in the middle of whatever there is.
fn is_the_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// What is sent: nothing that could be made shorter on the way.
pub(super) fn block() -> Vec<u8> {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};
    let mut block = vec![0; BLOCK];
    StdRng::seed_from_u64(1).fill_bytes(&mut block);
    block
}

/// Asks for bytes.
pub(super) const DOWNLOAD: u8 = b'd';
/// Announces bytes.
pub(super) const UPLOAD: u8 = b'u';
/// Asks for each byte to come back.
pub(super) const ECHO: u8 = b'e';

/// Begins a datagram that is to come back.
pub const REQUEST: &[u8; 8] = b"adit-req";
/// Begins one that has come back.
pub const ANSWER: &[u8; 8] = b"adit-ans";

/// How often an upload is told how far it has come.
pub const TELL_EVERY: Duration = Duration::from_millis(20);

/// Connections at once: the flows of some measures beside each other.
pub const MAX_CONNECTIONS: usize = 4096;

/// How long a connection may stand still.
pub const IDLE: Duration = Duration::from_secs(60);

/// How long a connection may last: an hour's measure and its beginning.
pub const LONGEST: Duration = Duration::from_secs(3720);

/// Bytes in one write or read, as many as a super-packet has.
pub(super) const BLOCK: usize = 64 * 1024;

/// How long nothing is accepted when that has failed.
const PAUSE: Duration = Duration::from_millis(10);

/// How many free ports are tried until one is free over UDP too.
const PORTS_TRIED: u32 = 16;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The hang guard.
    const SOON: Duration = Duration::from_secs(20);

    fn with_origin<F: Future>(test: impl FnOnce(SocketAddr, Arc<OriginStats>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let origin = Origin::bind((Ipv4Addr::LOCALHOST, 0).into()).await;
            let origin = origin.expect("loopback");
            let (address, stats) = (origin.address(), origin.stats());
            let stop = CancellationToken::new();
            let serving = tokio::spawn(origin.serve(stop.clone()));
            let tested = timeout(SOON, test(address, stats)).await;
            assert!(tested.is_ok(), "it hangs");
            stop.cancel();
            serving.await.expect("it ends in order");
        });
    }

    async fn asked(address: SocketAddr, kind: u8) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(&[kind]).await.expect("open");
        stream
    }

    #[test]
    fn bytes_come_go_and_return() {
        with_origin(async |address, _| {
            let mut down = asked(address, DOWNLOAD).await;
            let mut taken = vec![0; 3 * BLOCK];
            down.read_exact(&mut taken).await.expect("bytes");
            assert_eq!(taken[..BLOCK], block());
            assert_eq!(taken[..BLOCK], taken[2 * BLOCK..]);

            let mut up = asked(address, UPLOAD).await;
            up.write_all(&taken).await.expect("open");
            up.shutdown().await.expect("open");
            let mut told = Vec::new();
            up.read_to_end(&mut told).await.expect("numbers");
            let last = told.last_chunk().expect("a number");
            assert_eq!(u64::from_be_bytes(*last), taken.len() as u64);

            let mut echo = asked(address, ECHO).await;
            for byte in [0, 7, 255] {
                echo.write_all(&[byte]).await.expect("open");
                assert_eq!(echo.read_u8().await.expect("an echo"), byte);
            }
        });
    }

    #[test]
    fn what_asks_for_nothing_that_there_is_gets_nothing() {
        with_origin(async |address, stats| {
            let mut strange = asked(address, b'G').await;
            let mut got = Vec::new();
            strange.read_to_end(&mut got).await.expect("it is closed");
            assert!(got.is_empty());
            while stats.unserved.load(Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        });
    }

    #[test]
    fn datagrams_come_back_once() {
        with_origin(async |address, stats| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
            let socket = socket.expect("a socket");
            socket.connect(address).await.expect("loopback");
            // What has come back already, and what nobody asked for, stay away.
            socket.send(b"adit-ans5").await.expect("loopback");
            socket.send(b"hello").await.expect("loopback");
            socket.send(b"adit-req7").await.expect("loopback");
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).await.expect("an answer");
            assert_eq!(&buffer[..len], b"adit-ans7");
            assert_eq!(stats.strange_datagrams.load(Relaxed), 2);
        });
    }

    #[test]
    fn address_that_is_taken_is_said() {
        with_origin(async |address, _| {
            let error = Origin::bind(address).await.expect_err("it is taken");
            let text = error.to_string();
            let begin = format!("cannot listen on {address} over TCP: ");
            assert!(text.starts_with(&begin), "{text}");
        });
    }
}
