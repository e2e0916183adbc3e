//! The sliding window: what a repair costs to make, and a packet to receive, by span, overhead and shard
//! size.
//!
//! `cargo bench -p adit-fec --bench window`; times are per repair made and per source received.

use std::hint::black_box;

use adit_fec::{StreamDecoder, StreamEncoder, WindowDecoder, WindowEncoder, kernel};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A call's packet and a full one.
const SHARD_LENS: [usize; 2] = [200, 1_400];

const SPANS: [usize; 3] = [40, 120, 256];

/// Sources for each repair: 20 %, 10 % and 5 % overhead. Half as many sources are lost.
const SOURCES_PER_REPAIR: [u64; 3] = [5, 10, 20];

const WINDOW: usize = 512;

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window/repair");
    for len in SHARD_LENS {
        for span in SPANS {
            for kernel in kernel::available() {
                let work = vec![0; WINDOW * len];
                let encoder = WindowEncoder::with_kernel(kernel, work, WINDOW, len);
                let mut encoder = encoder.expect("legal");
                for number in 0..WINDOW as u64 {
                    encoder
                        .push(number, &vec![number as u8 | 1; len])
                        .expect("in order");
                }
                let mut out = vec![0; len];
                let mut key = 0_u16;
                group.throughput(Throughput::Bytes((span * len) as u64));
                let id = BenchmarkId::new(kernel.name(), format!("{span}x{len}"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        key = key.wrapping_add(1);
                        black_box(encoder.repair(100, span, key, &mut out).expect("held"))
                    });
                });
            }
        }
    }
}

/// The time for each source of a stream in which every other repair brings one back.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window/receive");
    group.throughput(Throughput::Elements(1));
    for len in SHARD_LENS {
        for span in SPANS {
            for each in SOURCES_PER_REPAIR {
                let work = vec![0; WindowDecoder::<Vec<u8>>::work_len(WINDOW, 64, len)];
                let mut decoder = WindowDecoder::new(work, 0, WINDOW, 64, len).expect("legal");
                // All sources are zero, and so is all parity: the time is the same for any bytes.
                let shard = vec![0_u8; len];
                let out = vec![0_u8; len];
                let mut number = 0_u64;
                let mut key = 0_u16;
                let id = BenchmarkId::new(kernel::best().name(), format!("{span}x{len}/1:{each}"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        let lost = number >= span as u64 && number % (2 * each) == 2;
                        if !lost {
                            black_box(decoder.handle_source(number, black_box(&shard)));
                        }
                        number += 1;
                        if number.is_multiple_of(each) && number >= span as u64 {
                            key = key.wrapping_add(1);
                            decoder.handle_repair(number - span as u64, span, key, black_box(&out));
                        }
                        while let Some((number, shard)) = decoder.poll_repaired() {
                            black_box((number, shard));
                        }
                    });
                });
            }
        }
    }
}

/// The time for a repair that meets as many rows as there may be, each with all that is missing.
fn worst(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window/worst repair");
    for len in SHARD_LENS {
        for equations in [16, 64] {
            let work = vec![0; WindowDecoder::<Vec<u8>>::work_len(WINDOW, equations, len)];
            let mut decoder = WindowDecoder::new(work, 0, WINDOW, equations, len).expect("legal");
            let (shard, parity) = (vec![0; len], vec![0; len]);
            for number in (2 * equations as u64)..WINDOW as u64 {
                decoder.handle_source(number, &shard);
            }
            let mut key = 0_u16;
            let mut repair = move || {
                key = key.wrapping_add(1);
                decoder.handle_repair(0, WINDOW / 2, key, black_box(&parity))
            };
            for _ in 0..equations {
                repair();
            }
            let id = BenchmarkId::new(kernel::best().name(), format!("{equations} rows x{len}"));
            group.bench_function(id, |bencher| bencher.iter(&mut repair));
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_millis(500)).warm_up_time(std::time::Duration::from_millis(200));
    targets = encode, decode, worst
}
criterion_main!(benches);
