//! Tests of how much memory many flows hold, between two stacks on a simulated link.

#[path = "../../tests/world/mod.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use world::{Drain, ORIGIN4, Source, World, exchange};

use super::Stack;
use crate::event::{Cause, ConnectError, FlowId};
use crate::flow::State;
use crate::memory::Memory;

/// A memory of `most` bytes, and twice that at the hard bound.
#[derive(Clone, Debug)]
struct Bounded {
    held: Arc<AtomicUsize>,
    most: usize,
}

impl Bounded {
    fn new(most: usize) -> Bounded {
        Bounded {
            held: Arc::default(),
            most,
        }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Memory for Bounded {
    fn add(&mut self, len: usize) {
        self.held.fetch_add(len, Ordering::Relaxed);
    }

    fn sub(&mut self, len: usize) {
        let before = self.held.fetch_sub(len, Ordering::Relaxed);
        assert!(before >= len);
    }

    fn allowance(&self) -> usize {
        self.most.saturating_sub(self.held()) / 2
    }

    fn is_short(&self) -> bool {
        self.held() >= self.most
    }

    fn is_ample(&self) -> bool {
        self.held() <= self.most / 2
    }

    fn admits(&self, len: usize) -> bool {
        self.held() + len <= 2 * self.most
    }
}

/// A world whose stacks may hold so much each.
fn bounded(most: usize) -> (World, Bounded, Bounded) {
    let mut world = World::new();
    let (a, b) = (Bounded::new(most), Bounded::new(most));
    world.a.stack.set_memory(Box::new(a.clone()));
    world.b.stack.set_memory(Box::new(b.clone()));
    (world, a, b)
}

/// What all rings of a stack hold, added up.
fn sum(stack: &Stack) -> usize {
    let flows = stack.flows.iter().map(|(_, flow)| match &flow.state {
        State::Open(conn) => conn.held(),
        State::Waiting(_) | State::Failed(_) => 0,
    });
    flows.sum::<usize>() + stack.pool.held()
}

fn check(world: &World, a: &Bounded, b: &Bounded) {
    for (stack, memory) in [(&world.a.stack, a), (&world.b.stack, b)] {
        assert_eq!(stack.held(), sum(stack));
        assert_eq!(stack.held(), memory.held());
        let floors = 2 * stack.pool.page() * stack.len();
        let held = memory.held();
        assert!(held <= 2 * memory.most + floors, "{held}");
    }
}

struct Both {
    up: (Source, Drain),
    down: (Source, Drain),
}

impl Both {
    fn new(key: u64, (flow, other): (FlowId, FlowId), len: u64) -> Both {
        Both {
            up: (Source::new(flow, key, len), Drain::new(other, key)),
            down: (Source::new(other, key + 1, len), Drain::new(flow, key + 1)),
        }
    }

    fn write(&mut self, world: &mut World) {
        self.up.0.pump(world.now, &mut world.a.stack);
        self.down.0.pump(world.now, &mut world.b.stack);
    }

    fn read(&mut self, world: &mut World, most: usize) {
        self.up.1.pump(world.now, &mut world.b.stack, most);
        self.down.1.pump(world.now, &mut world.a.stack, most);
    }

    fn is_done(&self) -> bool {
        self.up.1.finished && self.down.1.finished
    }
}

#[test]
fn flows_that_nobody_reads_stay_below_the_bound_and_lose_nothing() {
    const FLOWS: u64 = 300;
    const EACH: u64 = 200_000;
    let (mut world, a, b) = bounded(1 << 20);
    let opened: Vec<_> = (0..FLOWS).map(|_| world.open(ORIGIN4)).collect();
    let mut flows: Vec<_> = (0..).map(|key| 2 * key).zip(opened).collect::<Vec<_>>();
    let mut flows: Vec<Both> = flows
        .drain(..)
        .map(|(key, ids)| Both::new(key, ids, EACH))
        .collect();
    for _ in 0..100 {
        for flow in &mut flows {
            flow.write(&mut world);
        }
        world.run(Duration::from_millis(100));
        check(&world, &a, &b);
    }
    assert!(a.is_short() && b.is_short());
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 443);
    let refused = world.a.stack.connect(world.now, remote);
    assert_eq!(refused, Err(ConnectError::NoMemory));
    assert_eq!(world.a.stack.stats().refused_for_memory, 1);

    let begun = world.now;
    while !flows.iter().all(Both::is_done) {
        for flow in &mut flows {
            flow.write(&mut world);
            flow.read(&mut world, usize::MAX);
        }
        world.run(Duration::from_millis(20));
        check(&world, &a, &b);
        assert!(world.now - begun < Duration::from_secs(100));
    }
    for flow in &flows {
        assert_eq!((flow.up.1.at, flow.down.1.at), (EACH, EACH));
        world.a.stack.release(world.now, flow.up.0.flow);
        world.b.stack.release(world.now, flow.down.0.flow);
    }
    world.run(Duration::from_secs(30));
    check(&world, &a, &b);
    assert_eq!((a.held(), b.held()), (0, 0));
    let (flow, other) = world.open(ORIGIN4);
    exchange(&mut world, flow, other, 4 << 20, Duration::from_secs(10));
}

#[test]
fn peer_of_a_stack_without_memory_is_refused() {
    let mut world = World::new();
    let mut memory = Bounded::new(1000);
    memory.add(1000);
    world.b.stack.set_memory(Box::new(memory.clone()));
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 443);
    let flow = world.a.stack.connect(world.now, remote).unwrap();
    world.run(Duration::from_secs(1));
    assert_eq!(world.a.closed(flow), Some(Cause::Refused));
    assert_eq!(world.b.stack.stats().refused_for_memory, 1);
    assert_eq!(world.b.stack.stats().dropped.memory, 1);
    memory.sub(1000);
    world.open(ORIGIN4);
}

#[test]
fn flows_that_hold_all_they_can_leave_some_for_the_next() {
    let (mut world, a, b) = bounded(4 << 20);
    for key in 0..8 {
        let ids = world.open(ORIGIN4);
        let mut flow = Both::new(key, ids, 64 << 20);
        // While it is read it comes to the widest window; then nobody reads any more.
        for turn in 0..100 {
            flow.write(&mut world);
            if turn < 50 {
                flow.read(&mut world, usize::MAX);
            }
            world.run(Duration::from_millis(5));
            check(&world, &a, &b);
        }
    }
    assert!(a.held() > 3 << 20, "{}", a.held());
    assert!(!a.is_short() && !b.is_short());
    let (flow, other) = world.open(ORIGIN4);
    exchange(&mut world, flow, other, 1 << 20, Duration::from_secs(10));
    check(&world, &a, &b);
}

#[test]
fn flow_that_waits_for_memory_alone_goes_on_when_there_is_some() {
    let (mut world, mut a, _) = bounded(1 << 20);
    let (flow, other) = world.open(ORIGIN4);
    world.run(Duration::from_secs(60));
    a.add(2 << 20);
    let mut source = Source::new(flow, 1, 100_000);
    source.pump(world.now, &mut world.a.stack);
    assert_eq!(source.at, 0);
    world.run(Duration::from_secs(1));
    a.sub(2 << 20);
    world.a.events.clear();
    world.run(Duration::from_secs(1));
    assert!(!world.a.events.is_empty(), "the driver is told");
    let mut drain = Drain::new(other, 1);
    world.until(Duration::from_secs(5), |world| {
        source.pump(world.now, &mut world.a.stack);
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.finished
    });
    assert_eq!(drain.at, 100_000);
}

#[test]
fn flights_longer_than_the_floor_cross_a_memory_that_is_full() {
    let (mut world, _, mut b) = bounded(1 << 20);
    let (flow, other) = world.open(ORIGIN4);
    b.add(2 << 20);
    let mut source = Source::new(flow, 1, 50_000);
    let mut drain = Drain::new(other, 1);
    let before = world.b.stack.stats().dropped.memory;
    world.until(Duration::from_secs(30), |world| {
        source.pump(world.now, &mut world.a.stack);
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        assert!(world.b.stack.held() <= 2 * world.b.stack.pool.page());
        drain.finished
    });
    assert_eq!(drain.at, 50_000);
    assert!(world.b.stack.stats().dropped.memory > before);
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Write(usize),
    Read(usize, usize),
    Release(usize),
    Lose(f64),
    Run(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Open),
        4 => any::<usize>().prop_map(Step::Write),
        4 => (any::<usize>(), 1_usize..300_000).prop_map(|(at, most)| Step::Read(at, most)),
        1 => any::<usize>().prop_map(Step::Release),
        1 => (0.0..0.3).prop_map(Step::Lose),
        4 => (1_u64..2000).prop_map(Step::Run),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens, what is counted is what rings hold, within the bounds, and nothing in the end; bytes stay right.
    #[test]
    fn what_is_held_is_the_sum(steps in prop::collection::vec(step(), 1..80), most in 16_usize..2048) {
        let (mut world, a, b) = bounded(most * 1024);
        let mut flows: Vec<Both> = Vec::new();
        let mut key = 0;
        for step in steps {
            let some = |at: usize| at % flows.len().max(1);
            match step {
                Step::Open => {
                    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 443);
                    let Ok(flow) = world.a.stack.connect(world.now, remote) else {
                        continue;
                    };
                    (world.ab.loss, world.ba.loss) = (0.0, 0.0);
                    world.run(Duration::from_secs(3));
                    if !world.a.is_established(flow) {
                        world.a.stack.release(world.now, flow);
                    } else {
                        let other = world.b.incoming().unwrap();
                        key += 2;
                        flows.push(Both::new(key, (flow, other), 1 << 30));
                    }
                }
                Step::Write(at) => {
                    let at = some(at);
                    if let Some(flow) = flows.get_mut(at) {
                        flow.write(&mut world);
                    }
                }
                Step::Read(at, most) => {
                    let at = some(at);
                    if let Some(flow) = flows.get_mut(at) {
                        flow.read(&mut world, most);
                    }
                }
                Step::Release(at) => {
                    let at = some(at);
                    if at < flows.len() {
                        let flow = flows.swap_remove(at);
                        world.a.stack.release(world.now, flow.up.0.flow);
                        world.b.stack.release(world.now, flow.down.0.flow);
                    }
                }
                Step::Lose(loss) => {
                    world.ab.loss = loss;
                    world.ba.loss = loss;
                }
                Step::Run(millis) => world.run(Duration::from_millis(millis)),
            }
            check(&world, &a, &b);
        }
        (world.ab.loss, world.ba.loss) = (0.0, 0.0);
        for flow in &flows {
            world.a.stack.abort(world.now, flow.up.0.flow);
            world.a.stack.release(world.now, flow.up.0.flow);
            world.b.stack.abort(world.now, flow.down.0.flow);
            world.b.stack.release(world.now, flow.down.0.flow);
        }
        world.run(Duration::from_secs(900));
        check(&world, &a, &b);
        prop_assert_eq!((a.held(), b.held()), (0, 0));
    }
}
