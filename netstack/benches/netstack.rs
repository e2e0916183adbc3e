//! Throughput of one flow between two stacks, and the cost of a packet among many flows.
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

fn throughput(c: &mut Criterion) {
    const CHUNK: usize = 16 << 20;
    let mut group = c.benchmark_group("one_flow");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.sample_size(20);
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
        let (flow, other) = pair.open(443);
        group.bench_function(name, |bencher| {
            let source = vec![7u8; 1 << 20];
            let mut target = vec![0u8; 1 << 20];
            bencher.iter(|| {
                let mut read = 0;
                while read < CHUNK {
                    while let Ok(_count) = pair.a.send(pair.now, flow, |room| {
                        let count = room.len().min(source.len());
                        room[..count].copy_from_slice(&source[..count]);
                        (count, count)
                    }) {}
                    pair.turn();
                    while let Ok(count) = pair.b.recv(pair.now, other, |bytes| {
                        let count = bytes.len().min(target.len());
                        target[..count].copy_from_slice(&bytes[..count]);
                        (count, count)
                    }) {
                        read += count;
                    }
                    while pair.a.poll_event().is_some() || pair.b.poll_event().is_some() {}
                }
                black_box(&target);
            });
        });
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

criterion_group!(benches, throughput, many_flows);
criterion_main!(benches);
