//! Throughput of one flow between two stacks and of each of them, and the cost of a packet among many flows.
//!
//! `cargo bench -p adit-netstack`
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_netstack::{Accept, Config, Event, FlowId, Offload, PacketSink, Stack};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A queue of packets that reuses its buffers.
struct Pipe {
    queue: VecDeque<(Vec<u8>, usize, Offload)>,
    spare: Vec<Vec<u8>>,
    limit: usize,
}

impl Pipe {
    fn new() -> Pipe {
        Pipe {
            queue: VecDeque::new(),
            spare: Vec::new(),
            limit: 16,
        }
    }

    fn deliver(&mut self, now: Instant, stack: &mut Stack) {
        while let Some((mut buffer, len, offload)) = self.queue.pop_front() {
            stack
                .handle_packet(now, &mut buffer[..len], offload)
                .unwrap();
            self.spare.push(buffer);
        }
    }
}

impl PacketSink for Pipe {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.queue.len() >= self.limit {
            return None;
        }
        if self.spare.is_empty() {
            self.spare.push(vec![0; 65_536]);
        }
        self.spare.last_mut()?.get_mut(..len)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        if let Some(buffer) = self.spare.pop() {
            self.queue.push_back((buffer, len, offload));
        }
    }
}

struct Pair {
    now: Instant,
    a: Stack,
    b: Stack,
    ab: Pipe,
    ba: Pipe,
}

impl Pair {
    fn new(config: &Config) -> Pair {
        let a = Config {
            addresses: vec!["10.86.0.2".parse().unwrap()],
            ..config.clone()
        };
        let b = Config {
            accept: Accept::Any,
            ..config.clone()
        };
        Pair {
            now: Instant::now(),
            a: Stack::new(a, 1),
            b: Stack::new(b, 2),
            ab: Pipe::new(),
            ba: Pipe::new(),
        }
    }

    fn turn(&mut self) {
        self.now += Duration::from_micros(10);
        self.a.poll_transmit(self.now, &mut self.ab);
        self.ab.deliver(self.now, &mut self.b);
        self.answer();
    }

    /// The way back, and what is due.
    fn answer(&mut self) {
        self.b.poll_transmit(self.now, &mut self.ba);
        self.ba.deliver(self.now, &mut self.a);
        if self.a.poll_timeout().is_some_and(|at| at <= self.now) {
            self.a.handle_timeout(self.now);
        }
        if self.b.poll_timeout().is_some_and(|at| at <= self.now) {
            self.b.handle_timeout(self.now);
        }
    }

    fn open(&mut self, port: u16) -> (FlowId, FlowId) {
        let remote = SocketAddr::new("203.0.113.7".parse().unwrap(), port);
        let flow = self.a.connect(self.now, remote).unwrap();
        let mut other = None;
        for _ in 0..3 {
            self.turn();
            while let Some(event) = self.b.poll_event() {
                if let Event::Incoming { flow, .. } = event {
                    self.b.accept(self.now, flow);
                    other = Some(flow);
                }
            }
            while self.a.poll_event().is_some() {}
        }
        (flow, other.unwrap())
    }
}

/// Bytes of one round.
const CHUNK: usize = 16 << 20;

/// Carries [`CHUNK`] bytes by a flow from `a` to `b`; returns how much of the time went out of the one stack, and how
/// much into the other.
fn carry(
    pair: &mut Pair,
    (flow, other): (FlowId, FlowId),
    source: &[u8],
    target: &mut [u8],
) -> Spent {
    let mut spent = Spent::default();
    let mut read = 0;
    while read < CHUNK {
        let began = Instant::now();
        while let Ok(_count) = pair.a.send(pair.now, flow, |room| {
            let count = room.len().min(source.len());
            room[..count].copy_from_slice(&source[..count]);
            (count, count)
        }) {}
        pair.now += Duration::from_micros(10);
        pair.a.poll_transmit(pair.now, &mut pair.ab);
        let left = Instant::now();
        pair.ab.deliver(pair.now, &mut pair.b);
        while let Ok(count) = pair.b.recv(pair.now, other, |bytes| {
            let count = bytes.len().min(target.len());
            target[..count].copy_from_slice(&bytes[..count]);
            (count, count)
        }) {
            read += count;
        }
        spent.out += left - began;
        spent.into += left.elapsed();
        pair.answer();
        while pair.a.poll_event().is_some() || pair.b.poll_event().is_some() {}
    }
    black_box(target);
    spent
}

#[derive(Default)]
struct Spent {
    out: Duration,
    into: Duration,
}

/// A name, and its part of the time.
type Stage = (&'static str, fn(Spent) -> Duration);

fn throughput(c: &mut Criterion) {
    let mut group = c.benchmark_group("one_flow");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.sample_size(20);
    let (source, mut target) = (vec![7; 1 << 20], vec![0; 1 << 20]);
    for (name, super_packets, send_ring) in [
        ("super_packets", true, 512 << 10),
        ("super_packets_send_ring_128k", true, 128 << 10),
        ("super_packets_send_ring_256k", true, 256 << 10),
        ("super_packets_send_ring_1m", true, 1 << 20),
        ("mtu_1400", false, 512 << 10),
    ] {
        let config = Config {
            super_packets,
            send_ring,
            ..Config::default()
        };
        let mut pair = Pair::new(&config);
        pair.ab.limit = if super_packets { 16 } else { 256 };
        let flows = pair.open(443);
        group.bench_function(name, |bencher| {
            bencher.iter(|| carry(&mut pair, flows, &source, &mut target));
        });
    }
    group.finish();
}

/// Each end by itself: an application's bytes to packets, and packets to an application's bytes. The acknowledgements are
/// neither's.
fn stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("stage");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.sample_size(20);
    let (source, mut target) = (vec![7; 1 << 20], vec![0; 1 << 20]);
    for (packets, super_packets) in [("super_packets", true), ("mtu_1400", false)] {
        let config = Config {
            super_packets,
            ..Config::default()
        };
        let mut pair = Pair::new(&config);
        pair.ab.limit = if super_packets { 16 } else { 256 };
        let flows = pair.open(443);
        let stages: [Stage; 2] = [("out", |spent| spent.out), ("in", |spent| spent.into)];
        for (stage, part) in stages {
            group.bench_function(BenchmarkId::new(stage, packets), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut round = || carry(&mut pair, flows, &source, &mut target);
                    (0..rounds).map(|_| part(round())).sum()
                });
            });
        }
    }
    group.finish();
}

fn many_flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("echo_of_64_bytes");
    for (count, active) in [(1usize, 1usize), (100, 64), (10_000, 64), (10_000, 10_000)] {
        let mut pair = Pair::new(&Config::default());
        let flows: Vec<_> = (0..count).map(|_| pair.open(443)).collect();
        // Those that are active are spread over all.
        let flows: Vec<_> = flows.iter().step_by(count / active).take(active).collect();
        let mut at = 0usize;
        let id = BenchmarkId::new(format!("open_{count}"), format!("active_{active}"));
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                // A stride, so that neither flows nor packets come in the order of memory.
                at = (at + 7919) % flows.len();
                let (flow, other) = *flows[at];
                pair.a
                    .send(pair.now, flow, |room| (room[..64].len(), ()))
                    .unwrap();
                pair.turn();
                let read = pair
                    .b
                    .recv(pair.now, other, |bytes| (bytes.len(), bytes.len()))
                    .unwrap();
                pair.b.send(pair.now, other, |_| (read, ())).unwrap();
                pair.turn();
                let echoed = pair.a.recv(pair.now, flow, |bytes| (bytes.len(), ()));
                echoed.unwrap();
                while pair.a.poll_event().is_some() || pair.b.poll_event().is_some() {}
            });
        });
    }
    group.finish();
}

criterion_group!(benches, throughput, stages, many_flows);
criterion_main!(benches);
