//! The proxy from outside: real sockets in front, the fake driver behind.

mod bad_input;
mod connect;
mod curl;
mod forward;
mod rules;
mod socks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::fake::FakeNet;
use super::{Credentials, ProxySettings, ProxyStats, serve};

/// A proxy over a fake network.
struct Proxy {
    net: FakeNet,
    address: SocketAddr,
    stats: Arc<ProxyStats>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start() -> Self {
        Self::with(ProxySettings::default()).await
    }

    async fn with_password() -> Self {
        Self::with(ProxySettings {
            credentials: Some(Credentials::new("user", "secret").unwrap()),
            ..ProxySettings::default()
        })
        .await
    }

    async fn with(settings: ProxySettings) -> Self {
        let net = FakeNet::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stats = Arc::clone(&settings.stats);
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(
            listener,
            settings,
            net.tunnel.clone(),
            net.resolver.clone(),
            stop.clone(),
        ));
        Self {
            net,
            address,
            stats,
            stop,
            task,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `request`, closes the sending half if told, and reads all of the answer.
    async fn ask(&self, request: impl AsRef<[u8]>) -> Vec<u8> {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        read_all(&mut stream).await
    }

    /// Stops the proxy and checks that nothing is left anywhere.
    async fn finish(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        assert_eq!(self.stats.panicked.value(), 0);
        self.net.settled().await;
    }
}

/// Reads until the end; a reset counts as one.
async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer));
        match read.await.expect("the proxy closes the connection") {
            Ok(0) | Err(_) => return all,
            Ok(len) => all.extend_from_slice(&buffer[..len]),
        }
    }
}

/// Reads exactly as many bytes as are expected and compares them.
async fn expect(stream: &mut TcpStream, expected: &[u8]) {
    let mut buffer = vec![0; expected.len()];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(
        buffer.escape_ascii().to_string(),
        expected.escape_ascii().to_string()
    );
}

/// Reads a head of an HTTP message, up to and with the empty line.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the head is whole"));
    }
    String::from_utf8(head).unwrap()
}

/// An origin that sends back what it gets, until the end.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// A port on which nobody listens.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
