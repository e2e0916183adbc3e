//! What stays missing, and how long repair takes, with the two codes for streams at equal overhead.
//!
//! `cargo run --release -p adit-fec --example residual [packets]` prints the table of the documentation.
//! Both codes send the same share of repairs. Those of interleaved blocks leave where blocks end, spread
//! over the packets that follow; those of the window, evenly. Delays are in packets.

#[path = "../tests/common/mod.rs"]
mod common;

use adit_fec::interleave::{InterleavedDecoder, InterleavedEncoder, Interleaving};
use adit_fec::{ReedSolomon, StreamDecoder, StreamEncoder, WindowDecoder, WindowEncoder};
use common::Channel;

const SHARD: usize = 8;
const WINDOW: usize = 512;

/// What came of one run.
#[derive(Default)]
struct Outcome {
    packets: u64,
    missing: u64,
    delays: Vec<u64>,
}

impl Outcome {
    fn delay(&mut self, quantile: f64) -> u64 {
        self.delays.sort_unstable();
        let at = (self.delays.len() as f64 * quantile) as usize;
        self.delays.get(at).copied().unwrap_or(0)
    }
}

/// A repair that waits to be sent.
struct Planned {
    after: u64,
    first: u64,
    span: usize,
    key: u16,
    parity: Vec<u8>,
}

fn run(
    encoder: &mut dyn StreamEncoder,
    decoder: &mut dyn StreamDecoder,
    mut channel: Channel,
    packets: u64,
    mut plan: impl FnMut(u64) -> Vec<(u64, u64, usize, u16)>,
) -> Outcome {
    let mut waiting: Vec<Planned> = Vec::new();
    let mut outcome = Outcome {
        packets,
        ..Outcome::default()
    };
    for number in 0..packets {
        let shard = number.to_be_bytes();
        encoder.push(number, &shard).expect("in order");
        if !channel.loses() {
            decoder.handle_source(number, &shard);
        }
        for (after, first, span, key) in plan(number) {
            let mut parity = vec![0; SHARD];
            let len = encoder.repair(first, span, key, &mut parity);
            parity.truncate(len.expect("held"));
            waiting.push(Planned {
                after,
                first,
                span,
                key,
                parity,
            });
        }
        let due = |repair: &mut Planned| repair.after <= number;
        for repair in waiting.extract_if(.., due) {
            if !channel.loses() {
                decoder.handle_repair(repair.first, repair.span, repair.key, &repair.parity);
            }
        }
        while let Some((repaired, shard)) = decoder.poll_repaired() {
            assert_eq!(shard, repaired.to_be_bytes());
            outcome.delays.push(number - repaired);
        }
    }
    let stats = decoder.stats();
    outcome.missing = packets - stats.sources - stats.repaired;
    outcome
}

/// `rows` repairs over `sources`, in blocks of which `depth` take turns.
fn blocks(sources: usize, rows: usize, depth: usize, channel: Channel, packets: u64) -> Outcome {
    let shape = Interleaving {
        sources,
        rows,
        depth,
    };
    let codec = ReedSolomon::new();
    let mut encoder = InterleavedEncoder::new(&codec, shape, SHARD).expect("legal");
    let mut decoder = InterleavedDecoder::new(&codec, shape, WINDOW, SHARD).expect("legal");
    let each = (sources / rows) as u64;
    run(&mut encoder, &mut decoder, channel, packets, |number| {
        let (first, index) = shape.place(number);
        if index + 1 < sources {
            return Vec::new();
        }
        // The rows of the blocks that end here, one block's after another's, leave evenly until the next
        // group ends, each block's own as far apart from each other as that allows.
        let block = first % depth as u64;
        let row = |row: u64| {
            let turn = row * depth as u64 + block;
            (number + turn * each, first, shape.span(sources), row as u16)
        };
        (0..rows as u64).map(row).collect()
    })
}

/// `rows` repairs for each `sources`, each over the last `span`.
fn window(sources: u64, rows: u64, span: u64, channel: Channel, packets: u64) -> Outcome {
    let mut encoder = WindowEncoder::new(vec![0; WINDOW * SHARD], WINDOW, SHARD).expect("legal");
    let work = vec![0; WindowDecoder::<Vec<u8>>::work_len(WINDOW, 128, SHARD)];
    let mut decoder = WindowDecoder::new(work, 0, WINDOW, 128, SHARD).expect("legal");
    let mut key = 0_u16;
    run(&mut encoder, &mut decoder, channel, packets, |number| {
        let sent = number + 1;
        let repairs = sent * rows / sources - number * rows / sources;
        let over = span.min(sent);
        let mut plan = Vec::new();
        for _ in 0..repairs {
            key = key.wrapping_add(1);
            plan.push((number, sent - over, over as usize, key));
        }
        plan
    })
}

fn main() {
    let packets = std::env::args().nth(1);
    let packets = packets.map_or(1_000_000, |text| text.parse().expect("a number of packets"));
    println!("| loss | overhead | code | missing | repaired after: median | 90 % | 99 % packets |");
    println!("|---|---|---|---|---|---|---|");
    for (loss, burst, sources, rows) in [
        (0.01, 1.0, 20, 1),
        (0.03, 1.0, 20, 2),
        (0.05, 1.0, 20, 3),
        (0.1, 1.0, 20, 5),
        (0.01, 2.0, 20, 2),
        (0.03, 2.0, 20, 3),
        (0.05, 2.0, 20, 4),
        (0.01, 4.0, 20, 2),
        (0.03, 4.0, 20, 4),
        (0.05, 4.0, 20, 5),
    ] {
        let channel = Channel::new(loss, burst, 1);
        let percent = 100 * rows / sources;
        let mut codes = vec![
            (
                format!("{sources}+{rows}"),
                blocks(sources, rows, 1, channel.clone(), packets),
            ),
            (
                format!("{sources}+{rows} by 4"),
                blocks(sources, rows, 4, channel.clone(), packets),
            ),
            (
                format!("{}+{}", 4 * sources, 4 * rows),
                blocks(4 * sources, 4 * rows, 1, channel.clone(), packets),
            ),
        ];
        for span in [40, 80, 160] {
            let outcome = window(sources as u64, rows as u64, span, channel.clone(), packets);
            codes.push((format!("window of {span}"), outcome));
        }
        for (name, mut outcome) in codes {
            println!(
                "| {} | {percent} % | {name} | {:.1e} | {} | {} | {} |",
                channel.name(),
                outcome.missing as f64 / outcome.packets as f64,
                outcome.delay(0.5),
                outcome.delay(0.9),
                outcome.delay(0.99),
            );
        }
    }
}
