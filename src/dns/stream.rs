//! Queries that come on a stream, each behind its length (RFC 1035, section 4.2.2), several at a time (RFC 7766).

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// How a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The peer closed it between two queries.
    Closed,
    /// It broke the framing, did not read, or was idle for too long.
    Cut,
}

/// Answers the queries of one stream in the order in which the answers come, at most `at_once` of them at a time, until
/// the peer closes it or is idle for 10 s; queries beyond them wait unread. `None` is no answer.
///
/// # Errors
/// The stream fails.
pub(crate) async fn serve_stream<S, A, F>(
    mut stream: S,
    at_once: usize,
    answer: A,
) -> io::Result<StreamEnd>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Vec<u8>) -> F,
    F: Future<Output = Option<Vec<u8>>>,
{
    let mut received = Vec::with_capacity(STREAM_READ);
    let mut answers = FuturesUnordered::new();
    let mut open = true;
    while open || !answers.is_empty() {
        while answers.len() < at_once
            && let Some(query) = take_query(&mut received)
        {
            answers.push(answer(query));
        }
        let room = open && answers.len() < at_once;
        let idle = answers.is_empty();
        tokio::select! {
            Some(answer) = answers.next(), if !idle => {
                let Some(answer) = answer.and_then(framed) else { continue };
                // A client that does not read its answers is as good as idle.
                let written = timeout(STREAM_IDLE, stream.write_all(&answer)).await;
                if !matches!(written, Ok(Ok(()))) {
                    break;
                }
            }
            read = timeout(STREAM_IDLE, stream.read_buf(&mut received)), if room => match read {
                Ok(Ok(0)) => open = false,
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                // An answer that is still under way keeps the stream open.
                Err(_elapsed) if !idle => {}
                Err(_elapsed) => break,
            }
        }
    }
    let end = if open || !received.is_empty() {
        StreamEnd::Cut
    } else {
        StreamEnd::Closed
    };
    match timeout(STREAM_IDLE, stream.shutdown()).await {
        Ok(result) => result.map(|()| end),
        Err(_elapsed) => Ok(end),
    }
}

/// Puts a message behind its length; `None` where it is longer than that can say.
fn framed(body: Vec<u8>) -> Option<Vec<u8>> {
    let len = u16::try_from(body.len()).ok()?;
    let mut framed = Vec::with_capacity(body.len() + 2);
    framed.extend_from_slice(&len.to_be_bytes());
    framed.extend_from_slice(&body);
    Some(framed)
}

/// Takes the first whole query out of what a stream has brought.
fn take_query(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = usize::from(u16::from_be_bytes(*received.first_chunk()?));
    if received.len() < len + 2 {
        return None;
    }
    let rest = received.split_off(len + 2);
    let mut query = std::mem::replace(received, rest);
    query.drain(..2);
    Some(query)
}

/// How long a stream may be without a query (RFC 7766, section 6.2.3: in the order of seconds).
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// Bytes read of a stream at once: several queries.
const STREAM_READ: usize = 2048;
