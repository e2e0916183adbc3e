//! What it costs that another lane takes over relayed flows.
//!
//! `cargo bench --bench relayed`. Once for the change itself, in one piece while the session's driver does nothing else, and
//! once with all that is then said.

use std::hint::black_box;
use std::time::{Duration, Instant};

use adit::proto::Role;
use adit::proto::budget::{Budget, PROCESS, SESSION, Share};
use adit::proto::relayed::{Pieces, Relayed, RelayedEvent};
use adit::wire::{FlowFrame, LaneId, RelayedId};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// The flows of a server, open and idle.
fn table(flows: u32) -> Relayed {
    let share = Share::new(Budget::new(PROCESS), SESSION);
    let mut table = Relayed::new(Role::Responder, flows as usize, share);
    table.set_lane(LaneId(0));
    for flow in 0..flows {
        let open = FlowFrame::Open {
            flow: RelayedId(flow),
            destination: ([192, 0, 2, 1], 80).into(),
            window: 65_536,
        };
        table.handle_frame(Instant::now(), &open, Pieces::new(&[]), |_, _| 0);
    }
    while let Some(event) = table.poll_event() {
        if let RelayedEvent::Incoming { flow, .. } = event {
            table.accept(flow);
        }
    }
    table.poll_transmit(|_, _| true);
    table
}

fn lane_change(c: &mut Criterion) {
    let mut group = c.benchmark_group("lane_change");
    for flows in [100, 10_000] {
        group.bench_function(BenchmarkId::new("set_lane", flows), |b| {
            let mut table = table(flows);
            b.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for time in 0..times {
                    table.poll_transmit(|_, _| true);
                    let start = Instant::now();
                    table.set_lane(LaneId(time as u32 % 2 + 1));
                    took += start.elapsed();
                }
                took
            });
        });
        group.bench_function(BenchmarkId::new("all_said", flows), |b| {
            let (mut table, mut lane) = (table(flows), 0);
            b.iter(|| {
                lane += 1;
                table.set_lane(LaneId(lane));
                table.poll_transmit(|head, _| !black_box(head).is_empty());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lane_change);
criterion_main!(benches);
