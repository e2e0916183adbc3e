//! What flows cost in memory, open and gone. One test, since it measures the whole process.

#![cfg(target_os = "linux")]

mod world;

use std::time::Duration;

use world::{Drain, ORIGIN4, Source, World};

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_is_used_while_needed_and_given_back() {
    let mut world = World::new();
    world.open(ORIGIN4);
    let before = resident();
    let flows: Vec<_> = (0..1000).map(|_| world.open(ORIGIN4)).collect();
    let open = resident();
    // Twice 1,000 flows; their rings would be 4 GiB.
    assert!(
        open - before < 40 * 1024,
        "2,000 idle flows take {} KiB",
        open - before
    );
    for (key, (flow, other)) in flows.iter().take(100).enumerate() {
        let mut source = Source::new(*flow, key as u64, 1 << 20);
        source.finish = false;
        let mut drain = Drain::new(*other, key as u64);
        world.until(Duration::from_secs(10), |world| {
            source.pump(world.now, &mut world.a.stack);
            drain.pump(world.now, &mut world.b.stack, usize::MAX);
            drain.at == 1 << 20
        });
    }
    let used = resident();
    assert!(
        used - open > 100 * 1024,
        "100 flows that moved 1 MiB touched {} KiB of rings",
        used - open
    );
    let counted = world.a.stack.held() + world.b.stack.held();
    assert!(
        (used - open) * 1024 < counted as u64 + (8 << 20),
        "{} KiB are in memory, {counted} bytes are counted",
        used - open
    );
    world.run(Duration::from_secs(30));
    assert_eq!(world.a.stack.held() + world.b.stack.held(), 0);
    let idle = resident();
    assert!(
        idle < open + open / 10 + 8 * 1024,
        "{open} KiB before the load, {idle} KiB 30 s after"
    );
    for (flow, other) in flows {
        world.a.stack.release(world.now, flow);
        world.b.stack.release(world.now, other);
    }
    world.run(Duration::from_secs(30));
    assert_eq!((world.a.stack.len(), world.b.stack.len()), (1, 1));
    let gone = resident();
    assert!(
        gone < before + before / 10 + 8 * 1024,
        "{before} KiB before the flows, {gone} KiB 30 s after"
    );
}
