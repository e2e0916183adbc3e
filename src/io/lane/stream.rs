//! The lane itself: a byte stream, its read buffer and its write queue.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::inbound::{FRAME_LIMIT_AT_FIRST, FrameError, Inbound};
use super::memory::ReadMemory;
use super::outbound::{CONTROL_ALLOWANCE, HIGH_WATER, MAX_SLICES, Outbound};
use super::socket::LaneStream;
use crate::io::pool::{Buffer, Pool};

/// Carries frames over a byte stream, polled by the driver that owns it.
///
/// `S` is a [`LaneStream`] but in tests.
pub struct StreamLane<S = LaneStream> {
    stream: S,
    inbound: Inbound,
    outbound: Outbound,
    /// Bytes were written to the stream since it was last flushed.
    unflushed: bool,
    stats: LaneStats,
}

impl<S: AsyncRead + AsyncWrite + Unpin> StreamLane<S> {
    /// Starts a lane on a connected stream, with the frame limit for peers that nobody knows
    /// yet.
    pub fn new(stream: S, pool: Arc<Pool>) -> Self {
        StreamLane {
            stream,
            inbound: Inbound::new(),
            outbound: Outbound::new(pool),
            unflushed: false,
            stats: LaneStats::default(),
        }
    }

    /// Sets the largest value of a frame's length field that is accepted from now on.
    ///
    /// It starts at [`FRAME_LIMIT_AT_FIRST`]. Raising it says that the peer is authenticated and
    /// worth memory: the buffers may grow from then on, the read buffer as far as `memory` lets it.
    pub fn set_frame_limit(&mut self, limit: usize, memory: ReadMemory) {
        self.inbound.set_limit(limit, memory);
        if limit > FRAME_LIMIT_AT_FIRST {
            self.outbound.use_large_chunks();
        }
    }

    /// Reads once from the stream and returns how many bytes came; 0 is the end of the stream.
    ///
    /// All frames are to be taken by [`StreamLane::next_frame`] between two calls. When they
    /// were not and there is no room left, nothing is read and the number of bytes that wait is
    /// returned. A lane that [is starved](StreamLane::is_starved) afterwards is pending, and nothing
    /// wakes whoever waits for it: call again soon.
    ///
    /// # Errors
    ///
    /// What the stream reports; the lane is of no more use.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.inbound.room().is_empty() {
            if self.inbound.is_starved() {
                return Poll::Pending;
            }
            return Poll::Ready(Ok(self.inbound.len()));
        }
        let room = self.inbound.spare();
        let mut buf = ReadBuf::new(room);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        if read == 0 {
            self.inbound.finish();
        } else {
            self.inbound.advance(read);
        }
        self.stats.reads += 1;
        self.stats.bytes_read += read as u64;
        Poll::Ready(Ok(read))
    }

    /// Hands out the next whole frame that has arrived, with its four length bytes, in place.
    ///
    /// # Errors
    ///
    /// A length field that is zero or above the limit, or a stream that ended inside a frame;
    /// the lane cannot go on.
    pub fn next_frame(&mut self) -> Result<Option<&mut [u8]>, FrameError> {
        let frame = self.inbound.next_frame()?;
        if frame.is_some() {
            self.stats.frames_read += 1;
        }
        Ok(frame)
    }

    /// Where in the read buffer the last frame that was handed out ended.
    pub fn handed_out(&self) -> usize {
        self.inbound.handed_out()
    }

    /// Lends bytes of frames that were handed out since the last read, by their place in the read buffer.
    pub fn again(&self, range: Range<usize>) -> &[u8] {
        self.inbound.again(range)
    }

    /// Returns room for a frame of exactly `len` bytes, to be queued by [`StreamLane::commit`].
    ///
    /// `None` is back-pressure: [`HIGH_WATER`] bytes are queued already. A frame longer than a
    /// large buffer is refused too.
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if !self.writable_room() {
            self.stats.refused += 1;
        }
        self.outbound.reserve(len, 0)
    }

    /// Returns room for a control frame of exactly `len` bytes, also somewhat above
    /// [`HIGH_WATER`]: a full lane still has to answer a ping.
    pub fn reserve_control(&mut self, len: usize) -> Option<&mut [u8]> {
        self.outbound.reserve(len, CONTROL_ALLOWANCE)
    }

    /// Queues the first `len` bytes of what was last reserved.
    pub fn commit(&mut self, len: usize) {
        self.outbound.commit(len);
    }

    /// Queues a buffer that holds one whole frame, without a copy.
    ///
    /// # Errors
    ///
    /// Gives the buffer back when [`HIGH_WATER`] bytes are queued already.
    pub fn push(&mut self, buffer: Buffer) -> Result<(), Buffer> {
        let pushed = self.outbound.push(buffer);
        if pushed.is_err() {
            self.stats.refused += 1;
        }
        pushed
    }

    /// Writes what is queued until the stream takes no more.
    ///
    /// `Ready` means that the stream has taken everything; `Pending` that it wakes the driver
    /// when it takes more. One call writes at most what was queued when it began.
    ///
    /// # Errors
    ///
    /// What the stream reports; the lane is of no more use.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = if stream.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = self.outbound.slices(&mut slices);
                ready!(stream.poll_write_vectored(cx, &slices[..count]))?
            } else {
                ready!(stream.poll_write(cx, self.outbound.front()))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.advance(written);
            self.unflushed = true;
            self.stats.writes += 1;
            self.stats.bytes_written += written as u64;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is queued and closes the sending side; the peer reads the end of the stream.
    ///
    /// # Errors
    ///
    /// What the stream reports.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    /// Gives back the memory that an idle lane does not need; it grows again when it is used.
    pub fn shrink(&mut self) {
        self.inbound.shrink();
        self.outbound.shrink();
    }

    /// Tells whether it was not read, because there is no memory for the frame that is coming.
    pub fn is_starved(&self) -> bool {
        self.inbound.is_starved()
    }

    /// Tells whether a part of a frame has come and takes memory that others could use.
    pub fn holds_part(&self) -> bool {
        self.inbound.holds_part()
    }

    /// Tells whether memory for frames that are coming is short.
    pub fn is_short(&self) -> bool {
        self.inbound.is_short()
    }

    /// Returns the pool that its write buffers come from.
    pub fn pool(&self) -> &Arc<Pool> {
        self.outbound.pool()
    }

    /// Returns how many bytes are queued for writing.
    pub fn queued(&self) -> usize {
        self.outbound.len()
    }

    /// Tells whether [`StreamLane::reserve`] and [`StreamLane::push`] accept a frame now.
    pub fn writable_room(&self) -> bool {
        self.outbound.len() < HIGH_WATER
    }

    /// Returns the stream, for its addresses and socket options.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Gives the stream back and forgets what was read and queued.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Returns the counters.
    pub fn stats(&self) -> LaneStats {
        LaneStats {
            bytes_moved: self.inbound.moved(),
            read_buffer: self.inbound.capacity(),
            ..self.stats
        }
    }
}

impl<S> std::fmt::Debug for StreamLane<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamLane")
            .field("queued", &self.outbound.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// The counters of a stream lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Reads from the stream that were not pending.
    pub reads: u64,
    /// Bytes read from the stream.
    pub bytes_read: u64,
    /// Whole frames handed out.
    pub frames_read: u64,
    /// Bytes moved inside the read buffer.
    pub bytes_moved: u64,
    /// The present size of the read buffer in bytes.
    pub read_buffer: usize,
    /// Writes to the stream that were not pending.
    pub writes: u64,
    /// Bytes the stream took.
    pub bytes_written: u64,
    /// Frames refused because the queue was full.
    pub refused: u64,
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::io::lane::prepare_socket;

    const LIMIT: usize = 66_000;

    fn frame(len: usize, seed: usize) -> Vec<u8> {
        let mut frame = u32::try_from(len).expect("small").to_be_bytes().to_vec();
        frame.extend((0..len).map(|i| (i + seed) as u8));
        frame
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(future)
    }

    fn lane<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> StreamLane<S> {
        let pool = Pool::new("test", 16, 16);
        let memory = ReadMemory::of(pool.reads());
        let mut lane = StreamLane::new(stream, pool);
        lane.set_frame_limit(LIMIT, memory);
        lane
    }

    /// Drives both ends until `expected` frames have crossed from `from` to `to`.
    async fn carry<A, B>(
        from: &mut StreamLane<A>,
        to: &mut StreamLane<B>,
        frames: &[Vec<u8>],
    ) -> Vec<Vec<u8>>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let mut waiting = frames.iter().peekable();
        let mut got = Vec::new();
        poll_fn(|cx| {
            loop {
                let mut progress = false;
                while let Some(frame) = waiting.peek() {
                    let Some(room) = from.reserve(frame.len()) else {
                        break;
                    };
                    room.copy_from_slice(frame);
                    from.commit(frame.len());
                    waiting.next();
                }
                let before = from.queued();
                if let Poll::Ready(flushed) = from.poll_flush(cx) {
                    flushed.expect("the pipe is open");
                }
                progress |= from.queued() < before;
                if let Poll::Ready(read) = to.poll_read(cx) {
                    assert!(read.expect("the pipe is open") > 0, "the pipe ended");
                    progress = true;
                    while let Some(frame) = to.next_frame().expect("legal frames") {
                        got.push(frame.to_vec());
                    }
                }
                if got.len() == frames.len() {
                    return Poll::Ready(());
                }
                if !progress {
                    return Poll::Pending;
                }
            }
        })
        .await;
        got
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (near, far) = (near.expect("connects"), far.expect("accepts").0);
        prepare_socket(&near).expect("a fresh socket takes the options");
        prepare_socket(&far).expect("a fresh socket takes the options");
        (near, far)
    }

    #[test]
    fn frames_cross_a_real_tcp_connection() {
        block_on(async {
            let (near, far) = tcp_pair().await;
            let mut near = lane(LaneStream::Tcp(near));
            let mut far = lane(LaneStream::Tcp(far));
            let frames: Vec<Vec<u8>> = (0..400)
                .map(|i| frame([1, 40, 1_426, 9_000, LIMIT][i % 5], i))
                .collect();
            assert!(carry(&mut near, &mut far, &frames).await == frames);
            assert!(carry(&mut far, &mut near, &frames).await == frames);
            let stats = near.stats();
            let total: usize = frames.iter().map(Vec::len).sum();
            assert_eq!(stats.bytes_written, total as u64);
            assert_eq!(stats.bytes_read, total as u64);
            assert_eq!(stats.frames_read, 400);
        });
    }

    #[test]
    fn pushed_buffers_cross_a_real_tcp_connection() {
        block_on(async {
            let (near, far) = tcp_pair().await;
            let pool = Pool::new("test", 16, 16);
            let mut near = lane(LaneStream::Tcp(near));
            let mut far = lane(LaneStream::Tcp(far));
            let frames: Vec<Vec<u8>> = (0..3).map(|i| frame(60_000, i)).collect();
            for frame in &frames {
                let mut buffer = pool.large();
                buffer.truncate(frame.len());
                buffer.copy_from_slice(frame);
                near.push(buffer).expect("below the mark");
            }
            let mut got = Vec::new();
            while got.len() < 3 {
                poll_fn(|cx| {
                    let _ = near.poll_flush(cx).map(|done| done.expect("open"));
                    far.poll_read(cx)
                })
                .await
                .expect("open");
                while let Some(frame) = far.next_frame().expect("legal") {
                    got.push(frame.to_vec());
                }
            }
            assert!(got == frames);
            assert_eq!(pool.stats().large.outstanding, 0);
        });
    }

    #[test]
    fn oversize_frame_is_an_error_on_a_fresh_lane() {
        block_on(async {
            let (mut raw, stream) = duplex(100_000);
            let mut lane: StreamLane<DuplexStream> =
                StreamLane::new(stream, Pool::new("test", 1, 1));
            raw.write_all(&frame(2049, 0)).await.expect("room");
            poll_fn(|cx| lane.poll_read(cx)).await.expect("bytes came");
            assert!(matches!(
                lane.next_frame(),
                Err(FrameError::TooLong {
                    length: 2049,
                    limit: 2048
                })
            ));
            assert!(lane.stats().read_buffer <= 2052);
        });
    }

    #[test]
    fn raised_limit_holds_for_bytes_already_buffered() {
        block_on(async {
            let (mut raw, stream) = duplex(100_000);
            let mut lane = StreamLane::new(stream, Pool::new("test", 1, 1));
            let large = frame(3000, 1);
            let both = [frame(10, 0), large.clone()].concat();
            raw.write_all(&both).await.expect("room");
            poll_fn(|cx| lane.poll_read(cx)).await.expect("bytes came");
            assert!(lane.next_frame().expect("legal").is_some());
            lane.set_frame_limit(LIMIT, ReadMemory::of(lane.pool().reads()));
            loop {
                if let Some(frame) = lane.next_frame().expect("legal now") {
                    assert_eq!(frame, large);
                    break;
                }
                poll_fn(|cx| lane.poll_read(cx)).await.expect("bytes came");
            }
        });
    }

    #[test]
    fn half_closed_peer_still_receives() {
        block_on(async {
            let (near, far) = tcp_pair().await;
            let mut near = lane(LaneStream::Tcp(near));
            let mut far = lane(LaneStream::Tcp(far));
            let last = frame(100, 3);
            near.reserve(last.len())
                .expect("empty")
                .copy_from_slice(&last);
            near.commit(last.len());
            poll_fn(|cx| near.poll_shutdown(cx)).await.expect("open");
            let mut got = Vec::new();
            while poll_fn(|cx| far.poll_read(cx)).await.expect("clean end") > 0 {
                while let Some(frame) = far.next_frame().expect("legal") {
                    got.push(frame.to_vec());
                }
            }
            assert_eq!(got, std::slice::from_ref(&last));
            assert_eq!(far.next_frame(), Ok(None));
            let back = carry(&mut far, &mut near, std::slice::from_ref(&last)).await;
            assert_eq!(back, [last]);
        });
    }

    #[test]
    fn stream_cut_inside_a_frame_is_truncated() {
        block_on(async {
            let (mut raw, stream) = duplex(1000);
            let mut lane = lane(stream);
            raw.write_all(&frame(100, 0)[..60]).await.expect("room");
            drop(raw);
            while poll_fn(|cx| lane.poll_read(cx)).await.expect("open") > 0 {}
            assert_eq!(lane.next_frame(), Err(FrameError::Truncated { have: 60 }));
        });
    }

    #[test]
    fn peer_that_does_not_read_pushes_back() {
        block_on(async {
            let (mut raw, stream) = duplex(10_000);
            let mut lane = lane(stream);
            let one = frame(1_426, 0);
            let mut accepted = 0;
            loop {
                let flushed = poll_fn(|cx| Poll::Ready(lane.poll_flush(cx))).await;
                let Some(room) = lane.reserve(one.len()) else {
                    assert!(flushed.is_pending());
                    break;
                };
                room.copy_from_slice(&one);
                lane.commit(one.len());
                accepted += one.len();
            }
            assert!(!lane.writable_room());
            assert!(accepted <= HIGH_WATER + one.len() + 10_000);
            assert_eq!(lane.stats().refused, 1);

            let mut sink = vec![0; accepted];
            let (read, flushed) =
                tokio::join!(raw.read_exact(&mut sink), poll_fn(|cx| lane.poll_flush(cx)),);
            assert_eq!(read.expect("open"), accepted);
            flushed.expect("open");
            assert!(lane.writable_room());
            assert_eq!(sink, one.repeat(accepted / one.len()));
        });
    }

    #[test]
    fn undrained_frames_are_no_end_of_stream() {
        block_on(async {
            let (mut raw, stream) = duplex(100_000);
            let mut lane = StreamLane::new(stream, Pool::new("test", 1, 1));
            raw.write_all(&frame(500, 0).repeat(20))
                .await
                .expect("room");
            for _ in 0..5 {
                let read = poll_fn(|cx| lane.poll_read(cx)).await.expect("open");
                assert!(read > 0);
            }
            assert!(lane.next_frame().expect("legal").is_some());
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn frames_cross_a_pipe_of_any_size(
            lens in prop::collection::vec(1..5000_usize, 1..30),
            large in prop::collection::vec(60_000..=LIMIT, 0..3),
            pipe in 1..70_000_usize,
        ) {
            let frames: Vec<Vec<u8>> = lens
                .iter()
                .chain(&large)
                .chain(&lens)
                .enumerate()
                .map(|(i, len)| frame(*len, i))
                .collect();
            let got = block_on(async {
                let (near, far) = duplex(pipe);
                carry(&mut lane(near), &mut lane(far), &frames).await
            });
            prop_assert!(got == frames);
        }
    }
}
