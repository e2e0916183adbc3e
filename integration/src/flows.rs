//! What applications do with a connection, in process: download with pauses, echo, upload.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    namespaces::Place,
    socks,
    stream::{CHUNK, Hasher, Stream},
};

/// A download of known length that is read as the test wishes.
#[derive(Debug)]
pub struct Download {
    stream: TcpStream,
    hasher: Hasher,
    length: u64,
    buffer: Vec<u8>,
}

impl Download {
    /// Sends `GET path` over `stream` and reads the head of the answer, which must say how long it is.
    ///
    /// # Errors
    ///
    /// What the connection says, and [`io::ErrorKind::InvalidData`] for an answer that is not `200 OK`.
    pub async fn start(mut stream: TcpStream, path: &str) -> io::Result<Self> {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: origin.example\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        // a byte at a time, so that nothing of the body is taken
        while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .filter(|_| head.starts_with("http/1.1 200"))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, head.clone()))?;
        Ok(Self {
            stream,
            hasher: Hasher::new(),
            length,
            buffer: vec![0; CHUNK],
        })
    }

    /// Reads until `until` bytes have come in all, or the end; returns how many have.
    ///
    /// # Errors
    ///
    /// What the connection says, and [`io::ErrorKind::UnexpectedEof`] if it ends before the whole length has come.
    pub async fn read_to(&mut self, until: u64) -> io::Result<u64> {
        let until = until.min(self.length);
        while self.hasher.length() < until {
            let left = usize::try_from(until - self.hasher.length()).unwrap_or(usize::MAX);
            let room = left.min(CHUNK);
            let length = self.stream.read(&mut self.buffer[..room]).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.hasher.update(&self.buffer[..length]);
        }
        Ok(self.hasher.length())
    }

    /// Reads once, up to 64 KiB; returns how many bytes came, 0 at the end.
    ///
    /// # Errors
    ///
    /// What the connection says.
    pub async fn read_some(&mut self) -> io::Result<usize> {
        let length = self.stream.read(&mut self.buffer).await?;
        self.hasher.update(&self.buffer[..length]);
        Ok(length)
    }

    /// Reads the rest and returns the length and SHA-256 of the whole.
    ///
    /// # Errors
    ///
    /// As [`Download::read_to`].
    pub async fn finish(mut self) -> io::Result<(u64, String)> {
        self.read_to(u64::MAX).await?;
        Ok((self.hasher.length(), self.hasher.finish()))
    }
}

/// Sends `bytes` to an echo origin over `stream` and reads them back.
///
/// # Errors
///
/// What the connection says, [`io::ErrorKind::TimedOut`] after `limit`, [`io::ErrorKind::InvalidData`] if what
/// comes back is not what was sent.
pub async fn echo(stream: &mut TcpStream, bytes: &[u8], limit: Duration) -> io::Result<()> {
    let exchange = async {
        stream.write_all(bytes).await?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).await?;
        if back == bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    };
    timeout(limit, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Sends the first `length` bytes of the stream of `seed` to `POST /sink` over `stream`; returns what it answers.
///
/// # Errors
///
/// What the connection says.
pub async fn upload(stream: &mut TcpStream, seed: u64, length: u64) -> io::Result<String> {
    let head = format!(
        "POST /sink HTTP/1.1\r\nHost: origin.example\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut bytes = Stream::new(seed);
    let mut buffer = vec![0; CHUNK];
    while bytes.position() < length {
        let left = usize::try_from(length - bytes.position()).unwrap_or(usize::MAX);
        let part = &mut buffer[..left.min(CHUNK)];
        bytes.fill(part);
        stream.write_all(part).await?;
    }
    let mut answer = String::new();
    stream.take(8192).read_to_string(&mut answer).await?;
    Ok(answer
        .split("\r\n\r\n")
        .nth(1)
        .unwrap_or_default()
        .trim()
        .to_owned())
}

/// Waits until an echo works through `proxy`.
///
/// # Panics
///
/// If it does not within `limit`.
pub fn comes_back(place: &Place, proxy: SocketAddr, target: SocketAddr, limit: Duration) {
    let took = place.block_on(move || async move {
        let began = Instant::now();
        loop {
            let attempt = async {
                let mut stream = socks::connect(proxy, target).await.ok()?;
                echo(&mut stream, b"x", Duration::from_secs(2)).await.ok()
            };
            // one attempt that is lost with the old lane must not be the last
            let left = limit
                .saturating_sub(began.elapsed())
                .min(Duration::from_secs(3));
            if let Ok(Some(())) = timeout(left, attempt).await {
                return Some(began.elapsed());
            }
            if began.elapsed() >= limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    match took {
        Some(took) => println!("back after {took:?}"),
        None => panic!("not back after {limit:?}"),
    }
}
