//! Encoding and the worst repair, per kernel, block and shard size, beside another implementation.
//!
//! `cargo bench -p adit-fec`; figures are bytes of source data per second.

use std::hint::black_box;

use adit_fec::{Codec, Decoder, Encoder, ReedSolomon, kernel};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reed_solomon_erasure::galois_8;

/// Sources and parity rows: what a link at low loss needs, at a few per cent, and in bulk.
const BLOCKS: [(usize, usize); 3] = [(10, 2), (20, 4), (50, 10)];

/// A call's packet and a full one.
const SHARD_LENS: [usize; 2] = [200, 1300];

fn sources(k: usize, len: usize) -> Vec<Vec<u8>> {
    (0..k)
        .map(|j| {
            (0..len)
                .map(|i| (i * 31 + j * 17 + i * i / 5) as u8)
                .collect()
        })
        .collect()
}

fn shapes() -> impl Iterator<Item = (usize, usize, usize, String)> {
    BLOCKS.into_iter().flat_map(|(k, rows)| {
        SHARD_LENS
            .into_iter()
            .map(move |len| (k, rows, len, format!("{k}+{rows}x{len}")))
    })
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for (k, rows, len, shape) in shapes() {
        let sources = sources(k, len);
        group.throughput(Throughput::Bytes((k * len) as u64));
        for kernel in kernel::available() {
            let mut encoder = ReedSolomon::with_kernel(kernel).encoder(vec![0; rows * len]);
            group.bench_function(BenchmarkId::new(kernel.name(), &shape), |bencher| {
                bencher.iter(|| {
                    encoder.begin(rows, len).expect("a legal block");
                    for (index, source) in sources.iter().enumerate() {
                        encoder
                            .add_source(index, black_box(source))
                            .expect("a legal source");
                    }
                    black_box(encoder.parity(rows - 1).expect("a row of the block"));
                });
            });
        }
        let oracle = galois_8::ReedSolomon::new(k, rows).expect("a legal block");
        let mut parity = vec![vec![0; len]; rows];
        group.bench_function(
            BenchmarkId::new("reed-solomon-erasure", &shape),
            |bencher| {
                bencher.iter(|| {
                    oracle
                        .encode_sep(black_box(&sources), &mut parity)
                        .expect("legal")
                });
            },
        );
    }
}

/// As many sources are lost as there are rows, spread over the block.
fn repair(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("repair");
    for (k, rows, len, shape) in shapes() {
        let sources = sources(k, len);
        let mut encoder = ReedSolomon::new().encoder(vec![0; rows * len]);
        encoder.begin(rows, len).expect("a legal block");
        for (index, source) in sources.iter().enumerate() {
            encoder.add_source(index, source).expect("a legal source");
        }
        let parity: Vec<(usize, &[u8])> = (0..rows)
            .map(|row| (row, encoder.parity(row).expect("a row of the block")))
            .collect();
        let lost = |index: usize| index.is_multiple_of(k / rows);
        let received: Vec<Option<&[u8]>> = sources
            .iter()
            .enumerate()
            .map(|(index, source)| (!lost(index)).then_some(&source[..]))
            .collect();
        assert_eq!(
            received.iter().filter(|source| source.is_none()).count(),
            rows
        );

        group.throughput(Throughput::Bytes((k * len) as u64));
        for kernel in kernel::available() {
            let mut decoder = ReedSolomon::with_kernel(kernel).decoder(vec![0; rows * len]);
            group.bench_function(BenchmarkId::new(kernel.name(), &shape), |bencher| {
                bencher.iter(|| {
                    let repaired = decoder.repair(black_box(&received), &parity);
                    black_box(repaired.expect("enough parity").len())
                });
            });
        }
        let oracle = galois_8::ReedSolomon::new(k, rows).expect("a legal block");
        let mut shards: Vec<(Vec<u8>, bool)> = sources
            .iter()
            .cloned()
            .map(|source| (source, true))
            .collect();
        shards.resize(k + rows, (vec![0; len], true));
        let mut whole: Vec<&mut [u8]> =
            shards.iter_mut().map(|(shard, _)| &mut shard[..]).collect();
        oracle.encode(&mut whole).expect("legal");
        group.bench_function(
            BenchmarkId::new("reed-solomon-erasure", &shape),
            |bencher| {
                bencher.iter(|| {
                    for (index, (_, present)) in shards[..k].iter_mut().enumerate() {
                        *present = !lost(index);
                    }
                    oracle
                        .reconstruct_data(black_box(&mut shards))
                        .expect("enough parity");
                });
            },
        );
    }
}

criterion_group!(benches, encode, repair);
criterion_main!(benches);
