//! A stream of small messages, as a call or a game sends them, and how long each takes to come back.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep_until, timeout},
};

use crate::socks;

/// How far messages are apart.
pub const APART: Duration = Duration::from_millis(20);

/// Bytes of a message.
pub const LENGTH: usize = 200;

/// How long the messages took that came back, the shortest first, and how many were sent.
#[derive(Clone, Debug)]
pub struct RoundTrips {
    sorted: Vec<Duration>,
    /// Messages sent.
    pub sent: usize,
}

impl RoundTrips {
    /// The time within which this share of the messages that came back did so; zero if none did.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.sorted.len() as f64 * percent / 100.0).ceil() as usize;
        let at = rank.clamp(1, self.sorted.len().max(1)) - 1;
        self.sorted.get(at).copied().unwrap_or_default()
    }

    /// How many came back.
    pub fn came(&self) -> usize {
        self.sorted.len()
    }

    fn of(took: &[Option<Duration>]) -> Self {
        let mut sorted: Vec<Duration> = took.iter().flatten().copied().collect();
        sorted.sort_unstable();
        Self {
            sorted,
            sent: took.len(),
        }
    }
}

impl std::fmt::Display for RoundTrips {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = |percent| self.percentile(percent).as_secs_f64() * 1_000.0;
        write!(
            f,
            "{} of {}, p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, most {:.0} ms",
            self.came(),
            self.sent,
            millis(50.0),
            millis(90.0),
            millis(99.0),
            millis(100.0)
        )
    }
}

/// Sends `count` messages through `proxy` to a TCP echo, and waits for all of them.
///
/// # Errors
///
/// What the connection says, or that not all came back `patience` after the last was sent, whole and in order.
pub async fn over_tcp(
    proxy: SocketAddr,
    target: SocketAddr,
    count: usize,
    patience: Duration,
) -> io::Result<RoundTrips> {
    let stream = socks::connect(proxy, target)
        .await
        .map_err(io::Error::other)?;
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let start = Instant::now();
    let sender = async {
        for number in 0..count {
            sleep_until((start + APART * number as u32).into()).await;
            writer.write_all(&message(number)).await?;
        }
        io::Result::Ok(())
    };
    let receiver = async {
        let mut took = Vec::with_capacity(count);
        for number in 0..count {
            let mut back = [0; LENGTH];
            reader.read_exact(&mut back).await?;
            if back != message(number) {
                return Err(io::Error::other(format!("message {number} is another")));
            }
            took.push(Some(since(start, number)));
        }
        Ok(took)
    };
    let limit = APART * count as u32 + patience;
    let both = async { tokio::try_join!(sender, receiver) };
    let ((), took) = timeout(limit, both).await??;
    Ok(RoundTrips::of(&took))
}

/// The same to a UDP echo; what has not come back by then is left out.
///
/// # Errors
///
/// What the sockets say, or that a datagram came back changed.
pub async fn over_udp(
    proxy: SocketAddr,
    target: SocketAddr,
    count: usize,
    patience: Duration,
) -> io::Result<RoundTrips> {
    let association = socks::associate(proxy).await.map_err(io::Error::other)?;
    let start = Instant::now();
    let sender = async {
        for number in 0..count {
            sleep_until((start + APART * number as u32).into()).await;
            association.send_to(&message(number), target).await?;
        }
        tokio::time::sleep(patience).await;
        io::Result::Ok(())
    };
    let mut took = vec![None; count];
    let receiver = async {
        let mut came = 0;
        while came < count {
            let (back, _) = association.recv_from().await?;
            let number = back.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            let number = number.and_then(|number| usize::try_from(number).ok());
            match number.and_then(|number| Some((number, took.get_mut(number)?))) {
                Some((number, slot)) if back == message(number) => {
                    // a second copy is no second message
                    came += usize::from(slot.is_none());
                    slot.get_or_insert_with(|| since(start, number));
                }
                Some(_) | None => return Err(io::Error::other("a datagram came back changed")),
            }
        }
        Ok(())
    };
    tokio::select! {
        done = receiver => done?,
        done = sender => done?,
    }
    Ok(RoundTrips::of(&took))
}

fn since(start: Instant, number: usize) -> Duration {
    start.elapsed().saturating_sub(APART * number as u32)
}

fn message(number: usize) -> [u8; LENGTH] {
    let mut message = [number as u8; LENGTH];
    message[..8].copy_from_slice(&(number as u64).to_be_bytes());
    message
}
