//! Goodput of stream lanes over loopback: frames of one super-packet and of one wire packet, on
//! bare TCP and under TLS, with and without a WebSocket between; and of their part that is ours, the cutting into frames.
//!
//! Each end has a thread of its own, as a client and a server have. (On one thread the kernel's
//! queues grow and drain in steps that have nothing to do with the lane, and figures differ by
//! four.)
//!
//! Baseline, in processor time rather than on the clock, since two shared cores measure little
//! else: 8 GiB in frames of 64 KiB take 2.1 s at both ends together on bare TCP and 5.6 s under
//! TLS, which is 33 and 12 Gbit/s for each core. Frames of 1,400 bytes cost the same under TLS.

use std::future::poll_fn;
use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::{Duration, Instant};

use adit::config::address::{Host, Scheme};
use adit::io::lane::{LaneStream, ReadMemory, StreamLane, prepare_socket};
use adit::io::pool::Pool;
use adit::io::tls::{Certificate, ClientTls, ServerTls, Verify};
use adit::io::websocket;
use adit::wire::SealedHeader;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

fn lanes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lane");
    group.measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Bytes(TRANSFER as u64));
    for scheme in [Scheme::Tcp, Scheme::Tls, Scheme::Ws, Scheme::Wss] {
        for frame in [65_536, 1_400] {
            group.bench_function(BenchmarkId::new(scheme.as_str(), frame), |bencher| {
                bencher.iter_custom(|rounds| transfer(scheme, frame, rounds * TRANSFER as u64));
            });
        }
    }
    group.finish();
}

/// Carries `total` bytes in frames of `frame` bytes and returns the time.
fn transfer(scheme: Scheme, frame: usize, total: u64) -> Duration {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let certificate = Certificate::throw_away(&[]).expect("generates");
    let server = ServerTls::new(certificate).expect("is of use");
    thread::scope(|scope| {
        scope.spawn(move || {
            runtime().block_on(async {
                let tcp = TcpStream::connect(address).await.expect("it listens");
                let tcp = prepared(tcp);
                let mut stream = LaneStream::Tcp(tcp);
                if scheme.is_tls() {
                    let client = ClientTls::new(&Verify::Unchecked).expect("needs nothing");
                    let host = Host::Name("localhost".to_owned());
                    stream = client.connect(&host, stream).await.expect("a handshake");
                }
                if scheme.is_websocket() {
                    let pool = Pool::new("bench", 4, 4);
                    let socket = websocket::connect(stream, "localhost", "/", pool).await;
                    stream = LaneStream::WebSocket(Box::new(socket.expect("a WebSocket")));
                }
                send(lane(stream), frame, total).await;
            });
        });
        runtime().block_on(async {
            listener.set_nonblocking(true).expect("open");
            let listener = TcpListener::from_std(listener).expect("open");
            let (tcp, _) = listener.accept().await.expect("it connects");
            let tcp = prepared(tcp);
            let mut stream = LaneStream::Tcp(tcp);
            if scheme.is_tls() {
                stream = server.accept(stream).await.expect("a handshake");
            }
            if scheme.is_websocket() {
                let pool = Pool::new("bench", 4, 4);
                let socket = websocket::accept(stream, "/", pool).await.expect("HTTP");
                let socket = socket.expect("it is asked for");
                stream = LaneStream::WebSocket(Box::new(socket));
            }
            let started = Instant::now();
            receive(lane(stream), total).await;
            started.elapsed()
        })
    })
}

/// What it costs to cut what arrives into frames and to read their headers, without the system calls: the stream is
/// copied from memory.
fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::Bytes(TRANSFER as u64));
    for frame in [65_581, 1_446] {
        let mut one = vec![0; frame];
        let header = SealedHeader {
            epoch: 0,
            counter: 0,
        };
        header.write(&mut one).expect("there is room");
        let source = Source {
            bytes: one.repeat((1 << 20) / frame + 1),
            at: 0,
        };
        let pool = Pool::new("bench", 1, 1);
        let memory = ReadMemory::of(pool.reads());
        let mut lane = StreamLane::new(source, pool);
        lane.set_frame_limit(66_000, memory);
        let mut cx = Context::from_waker(Waker::noop());
        group.bench_function(BenchmarkId::new("parsed", frame), |bencher| {
            bencher.iter(|| {
                let mut parsed = 0;
                while parsed < TRANSFER {
                    assert!(lane.poll_read(&mut cx).is_ready());
                    while let Some(frame) = lane.next_frame().expect("legal frames") {
                        black_box(SealedHeader::parse(frame).expect("a sealed frame"));
                        parsed += frame.len();
                    }
                }
            });
        });
    }
    group.finish();
}

/// The same bytes over and over.
struct Source {
    bytes: Vec<u8>,
    at: usize,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at == self.bytes.len() {
            self.at = 0;
        }
        let end = self.bytes.len().min(self.at + buf.remaining());
        buf.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Source {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

async fn send(mut lane: StreamLane, frame: usize, total: u64) {
    let header = u32::try_from(frame - 4).expect("small").to_be_bytes();
    let mut queued = 0;
    poll_fn(|cx| {
        loop {
            while queued < total
                && let Some(room) = lane.reserve(frame)
            {
                room[..4].copy_from_slice(&header);
                lane.commit(frame);
                queued += frame as u64;
            }
            ready!(lane.poll_flush(cx)).expect("the lane is open");
            if queued >= total {
                return Poll::Ready(());
            }
        }
    })
    .await;
}

async fn receive(mut lane: StreamLane, total: u64) {
    let mut received = 0;
    while received < total {
        let read = poll_fn(|cx| lane.poll_read(cx)).await;
        assert!(read.expect("the lane is open") > 0, "the lane ended");
        while let Some(frame) = lane.next_frame().expect("legal frames") {
            received += frame.len() as u64;
            black_box(frame);
        }
    }
}

fn lane(stream: LaneStream) -> StreamLane {
    let pool = Pool::new("bench", 64, 64);
    let memory = ReadMemory::of(pool.reads());
    let mut lane = StreamLane::new(stream, pool);
    lane.set_frame_limit(66_000, memory);
    lane
}

fn prepared(tcp: TcpStream) -> TcpStream {
    prepare_socket(&tcp).expect("a fresh socket");
    tcp
}

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}

/// Bytes of one round: enough to forget how a connection starts.
const TRANSFER: usize = 64 * 1024 * 1024;

criterion_group!(benches, lanes, frames);
criterion_main!(benches);
