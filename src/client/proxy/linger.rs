//! Closes a connection so that the last answer arrives.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Ends the sending half, then reads for a moment what the client still sends.
///
/// Closing a socket with unread bytes resets the connection, and the reset can overtake
/// the answer that says why (RFC 9112 section 9.6).
pub(super) async fn close(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scratch = [0; 4096];
    let drain = async {
        let mut left = LIMIT_BYTES;
        while left > 0 {
            match stream.read(&mut scratch).await {
                Ok(0) | Err(_) => return,
                Ok(len) => left = left.saturating_sub(len),
            }
        }
    };
    // Running out of patience is one of the ways it ends.
    let _elapsed = timeout(LIMIT, drain).await;
}

/// What a client may have on its way when it is refused: a few windows of loopback.
const LIMIT_BYTES: usize = 1 << 20;

/// A client that reads its answer closes at once.
const LIMIT: Duration = Duration::from_secs(1);
