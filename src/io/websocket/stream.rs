//! A WebSocket as a byte stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::decode::Decoder;
use super::frame::{Head, MAX_CONTROL, MAX_HEAD, Opcode, Role, mask};
use crate::io::pool::{Buffer, Pool};

/// Carries a byte stream in the binary messages of a WebSocket.
///
/// A message that is begun is finished by the bytes written next, so whoever writes must go on with the bytes that
/// were not taken: a lane's queue does.
pub struct WebSocket<S> {
    stream: S,
    pool: Arc<Pool>,
    role: Role,
    decoder: Decoder,
    /// What came together with the head of the HTTP handshake's answer.
    early: Vec<u8>,
    sending: Sending,
    control: Control,
    closing: Closing,
}

/// The message that is being sent.
enum Sending {
    /// None.
    Nothing,
    /// A server's: a part of the head, and so many bytes of payload that the writer still owes.
    Bare {
        head: [u8; MAX_HEAD],
        at: usize,
        len: usize,
        owed: usize,
    },
    /// A client's: head and payload, of which the stream has taken `at` bytes.
    Masked { bytes: Buffer, at: usize },
}

/// A control frame that waits for the end of a message, or is being sent.
struct Control {
    bytes: [u8; MAX_HEAD + MAX_CONTROL],
    at: usize,
    len: usize,
}

/// Whether there is more to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    /// There may be.
    Open,
    /// Nothing goes behind the close frame.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Begins behind the HTTP handshake, of which `early` was read too much.
    pub fn new(stream: S, role: Role, early: &[u8], pool: Arc<Pool>) -> Self {
        Self {
            stream,
            pool,
            role,
            decoder: Decoder::new(role),
            early: early.to_vec(),
            sending: Sending::Nothing,
            control: Control::NONE,
            closing: Closing::Open,
        }
    }

    /// Returns what is below.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Sends what is left of a client's message or of a control frame; what a server's message lacks is not here.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.sending {
                Sending::Masked { bytes, at } => {
                    let stream = Pin::new(&mut self.stream);
                    *at += taken(ready!(stream.poll_write(cx, &bytes[*at..]))?)?;
                    if *at == bytes.len() {
                        self.sending = Sending::Nothing;
                    }
                }
                Sending::Nothing if self.control.at < self.control.len => {
                    let stream = Pin::new(&mut self.stream);
                    let waiting = &self.control.bytes[self.control.at..self.control.len];
                    self.control.at += taken(ready!(stream.poll_write(cx, waiting))?)?;
                }
                Sending::Nothing | Sending::Bare { .. } => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Makes one masked message of the first bytes in `slices`; returns how many.
    fn put_masked(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let key: [u8; 4] = rand::rng().random();
        let total = length(slices);
        let (head, len) = head(Opcode::Binary, Some(key), total);
        let mut bytes = self.pool.sized(len + total);
        bytes[..len].copy_from_slice(&head[..len]);
        let mut at = len;
        for slice in slices {
            let taken = slice.len().min(bytes.len() - at);
            bytes[at..at + taken].copy_from_slice(&slice[..taken]);
            at += taken;
        }
        mask(&mut bytes[len..], key, 0);
        self.sending = Sending::Masked { bytes, at: 0 };
        total
    }

    /// Sends bytes of `slices` as they are, in a message that begins with them or began before; returns how many.
    fn poll_write_bare(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let Sending::Bare {
                head,
                at,
                len,
                owed,
            } = &mut self.sending
            else {
                ready!(self.poll_send(cx))?;
                let owed = length(slices);
                let (head, len) = head_of(owed);
                self.sending = Sending::Bare {
                    head,
                    at: 0,
                    len,
                    owed,
                };
                continue;
            };
            let mut both = [IoSlice::new(&[]); MAX_SLICES];
            both[0] = IoSlice::new(&head[*at..*len]);
            let (mut count, mut left) = (1, *owed);
            for slice in slices.iter().take(MAX_SLICES - 1) {
                let part = &slice[..slice.len().min(left)];
                both[count] = IoSlice::new(part);
                (count, left) = (count + 1, left - part.len());
                if left == 0 {
                    break;
                }
            }
            let stream = Pin::new(&mut self.stream);
            let written = taken(ready!(stream.poll_write_vectored(cx, &both[..count]))?)?;
            let of_head = written.min(*len - *at);
            let payload = written - of_head;
            *at += of_head;
            *owed -= payload;
            if *owed == 0 {
                self.sending = Sending::Nothing;
            }
            if payload > 0 {
                return Poll::Ready(Ok(payload));
            }
        }
    }

    /// Answers what was read; where there is no room for the answer now, the next write sends it first.
    fn answer(&mut self, cx: &mut Context<'_>) {
        let begun = 0 < self.control.at && self.control.at < self.control.len;
        if begun || self.closing == Closing::Closed {
            return;
        }
        if self.decoder.is_closed() {
            self.put_close();
        } else if let Some(ping) = self.decoder.take_ping() {
            self.put_control(Opcode::Pong, ping.payload());
        } else {
            return;
        }
        // What fails here fails again where it is told.
        let _ =
            self.poll_send(cx).is_ready() && Pin::new(&mut self.stream).poll_flush(cx).is_ready();
    }

    fn put_close(&mut self) {
        self.put_control(Opcode::Close, &NORMAL.to_be_bytes());
        self.closing = Closing::Closed;
    }

    fn put_control(&mut self, opcode: Opcode, payload: &[u8]) {
        let key = match self.role {
            Role::Client => Some(rand::rng().random()),
            Role::Server => None,
        };
        let (head, len) = head(opcode, key, payload.len());
        let end = len + payload.len();
        self.control.bytes[..len].copy_from_slice(&head[..len]);
        self.control.bytes[len..end].copy_from_slice(payload);
        if let Some(key) = key {
            mask(&mut self.control.bytes[len..end], key, 0);
        }
        (self.control.at, self.control.len) = (0, end);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if let Some(error) = this.decoder.failure() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
            if this.decoder.is_closed() || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if this.early.is_empty() {
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            } else {
                let taken = this.early.len().min(buf.remaining());
                buf.put_slice(&this.early[..taken]);
                this.early.drain(..taken);
            }
            let read = &mut buf.filled_mut()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let payload = match this.decoder.decode(read) {
                Ok(payload) => payload,
                Err(error) => {
                    buf.set_filled(before);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
            };
            buf.set_filled(before + payload);
            this.answer(cx);
            if payload > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if length(bufs) == 0 {
            return Poll::Ready(Ok(0));
        }
        if this.closing == Closing::Closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match this.role {
            Role::Server => this.poll_write_bare(cx, bufs),
            Role::Client => {
                ready!(this.poll_send(cx))?;
                let taken = this.put_masked(bufs);
                // They are taken: what the stream does not take now, it takes when it is flushed or written to next.
                match this.poll_send(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
                }
            }
        }
    }

    /// Many slices become one message.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        // A message that lacks its end cannot be followed by a close frame.
        if this.closing == Closing::Open && matches!(this.sending, Sending::Nothing) {
            this.put_close();
            ready!(this.poll_send(cx))?;
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl<S> std::fmt::Debug for WebSocket<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocket")
            .field("role", &self.role)
            .field("decoder", &self.decoder)
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

impl Control {
    const NONE: Self = Self {
        bytes: [0; MAX_HEAD + MAX_CONTROL],
        at: 0,
        len: 0,
    };
}

/// The length of the next message, of what waits in `slices`.
fn length(slices: &[IoSlice<'_>]) -> usize {
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    total.min(MAX_MESSAGE)
}

/// The head of a whole frame, and its length.
fn head(opcode: Opcode, mask: Option<[u8; 4]>, len: usize) -> ([u8; MAX_HEAD], usize) {
    let mut bytes = [0; MAX_HEAD];
    let head = Head {
        opcode,
        last: true,
        mask,
        len: len as u64,
    };
    let len = head.encode(&mut bytes);
    (bytes, len)
}

fn head_of(len: usize) -> ([u8; MAX_HEAD], usize) {
    head(Opcode::Binary, None, len)
}

/// A stream that takes nothing will never.
fn taken(written: usize) -> io::Result<usize> {
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(written)
}

/// The most bytes of payload in a message: with the longest head in front of them four whole records of TLS, and
/// little enough for any reverse proxy that looks at messages.
pub const MAX_MESSAGE: usize = 64 * 1024 - 8;

/// How many slices one write is given at most: the head, and what a lane gives.
const MAX_SLICES: usize = 65;

/// A close frame's status "normal closure" (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::io::lane::{ReadMemory, StreamLane};

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn pool() -> Arc<Pool> {
        Pool::new("test", 4, 4)
    }

    /// Both ends of a WebSocket, over a pipe that holds so many bytes.
    fn pair(room: usize) -> (WebSocket<DuplexStream>, WebSocket<DuplexStream>) {
        let (near, far) = duplex(room);
        (
            WebSocket::new(near, Role::Client, &[], pool()),
            WebSocket::new(far, Role::Server, &[], pool()),
        )
    }

    fn lane<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> StreamLane<S> {
        let pool = pool();
        let memory = ReadMemory::of(pool.reads());
        let mut lane = StreamLane::new(stream, pool);
        lane.set_frame_limit(66_000, memory);
        lane
    }

    #[test]
    fn early_bytes_are_read_first() {
        block_on(async {
            let (near, mut far) = duplex(100);
            let mut near = WebSocket::new(near, Role::Client, &[0x82, 5, b'e', b'a'], pool());
            far.write_all(b"rly\x82\x01!").await.expect("room");
            let mut got = [0; 6];
            near.read_exact(&mut got).await.expect("open");
            assert_eq!(&got, b"early!");
        });
    }

    #[test]
    fn ping_is_answered_by_a_reader_and_not_within_a_message() {
        block_on(async {
            let (near, mut far) = duplex(6);
            let mut near = WebSocket::new(near, Role::Server, &[], pool());
            let written =
                poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_write(cx, b"12345678")));
            // Two bytes of head, four of payload.
            assert!(matches!(written.await, Poll::Ready(Ok(4))));
            far.write_all(&[0x89, 0x81, 0, 0, 0, 0])
                .await
                .expect("room");
            let mut read = [0; 6];
            let mut buf = [0; 10];
            let reading = |near: &mut WebSocket<DuplexStream>, buf: &mut [u8]| {
                let mut buf = ReadBuf::new(buf);
                let waker = futures_util::task::noop_waker();
                let mut cx = Context::from_waker(&waker);
                Pin::new(near).poll_read(&mut cx, &mut buf).is_pending()
            };
            assert!(reading(&mut near, &mut buf));
            far.write_all(b"p").await.expect("room");
            assert!(reading(&mut near, &mut buf));
            far.read_exact(&mut read).await.expect("open");
            assert_eq!(&read, b"\x82\x081234");
            let (rest, read) = tokio::join!(
                async {
                    near.write_all(b"5678").await.expect("open");
                    near.flush().await.expect("open");
                },
                async {
                    let mut read = [0; 7];
                    far.read_exact(&mut read).await.expect("open");
                    read
                }
            );
            let () = rest;
            assert_eq!(&read, b"5678\x8a\x01p");
        });
    }

    #[test]
    fn close_ends_the_stream_and_is_answered() {
        block_on(async {
            let (mut near, mut far) = pair(1000);
            near.write_all(b"last words").await.expect("open");
            near.shutdown().await.expect("open");
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.expect("a clean end");
            assert_eq!(got, b"last words");
            assert!(far.write_all(b"x").await.is_err(), "nothing goes behind it");
            far.shutdown().await.expect("open");
            assert_eq!(near.read_to_end(&mut got).await.expect("clean"), 0);
        });
    }

    #[test]
    fn broken_rule_is_an_error_behind_what_was_right() {
        block_on(async {
            let (near, mut far) = duplex(100);
            let mut near = WebSocket::new(near, Role::Client, &[], pool());
            far.write_all(b"\x82\x02ok\x81\x04text")
                .await
                .expect("room");
            let mut got = [0; 10];
            assert_eq!(near.read(&mut got).await.expect("the first"), 2);
            let error = near.read(&mut got).await.expect_err("text");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("text"), "{error}");
        });
    }

    #[test]
    fn masks_differ_from_message_to_message() {
        block_on(async {
            let (near, mut far) = duplex(1000);
            let mut near = WebSocket::new(near, Role::Client, &[], pool());
            let mut keys = std::collections::HashSet::new();
            for _ in 0..20 {
                near.write_all(b"same").await.expect("room");
                let mut read = [0; 10];
                far.read_exact(&mut read).await.expect("open");
                assert_eq!(read[..2], [0x82, 0x84]);
                assert!(keys.insert(read[2..6].to_vec()));
                assert_ne!(&read[6..], b"same");
            }
        });
    }

    #[test]
    fn idle_client_holds_no_buffer() {
        block_on(async {
            let (near, mut far) = duplex(200_000);
            let pool = pool();
            let mut near = WebSocket::new(near, Role::Client, &[], pool.clone());
            near.write_all(&[7; 100_000]).await.expect("room");
            assert_eq!(pool.stats().large.outstanding, 0);
            let mut read = vec![0; 100_016];
            far.read_exact(&mut read).await.expect("two messages");
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn frames_of_lanes_cross_a_pipe_of_any_size(
            lens in prop::collection::vec(1..3000_usize, 1..20),
            large in prop::collection::vec(60_000..=66_000_usize, 0..3),
            room in 1..70_000_usize,
            up: bool,
        ) {
            let frames: Vec<Vec<u8>> = (lens.iter().chain(&large).chain(&lens))
                .enumerate()
                .map(|(i, len)| {
                    let mut frame = u32::try_from(*len).expect("small").to_be_bytes().to_vec();
                    frame.resize(4 + len, i as u8);
                    frame
                })
                .collect();
            let (client, server) = pair(room);
            let (client, server) = (lane(client), lane(server));
            let (mut from, mut to) = if up { (client, server) } else { (server, client) };
            let got = block_on(async {
                let (mut waiting, mut got) = (frames.iter().peekable(), Vec::new());
                poll_fn(|cx| loop {
                    while let Some(frame) = waiting.peek()
                        && let Some(place) = from.reserve(frame.len())
                    {
                        place.copy_from_slice(frame);
                        from.commit(frame.len());
                        waiting.next();
                    }
                    let flushed = from.poll_flush(cx).map(|flushed| flushed.expect("open"));
                    match to.poll_read(cx) {
                        Poll::Ready(read) => assert!(read.expect("open") > 0, "the pipe ended"),
                        Poll::Pending if got.len() == frames.len() => return Poll::Ready(()),
                        Poll::Pending if flushed.is_ready() && waiting.peek().is_some() => {}
                        Poll::Pending => return Poll::Pending,
                    }
                    while let Some(frame) = to.next_frame().expect("legal frames") {
                        got.push(frame.to_vec());
                    }
                })
                .await;
                got
            });
            prop_assert!(got == frames);
        }
    }
}
