//! TCP between two stacks: streams, endings, limits.

mod world;

use std::net::SocketAddr;
use std::time::Duration;

use adit_netstack::{Cause, Config, Event, RecvError, Rejection, SendError, Unreachable};
use world::{
    Drain, ORIGIN4, ORIGIN6, Side, Source, World, client_config, exchange, network_config,
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn ten_mebibytes_pass_both_ways_over_v4_in_super_packets() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    exchange(&mut world, flow, other, 10 << 20, 30 * SECOND);
    assert!(world.ab.super_packets > 100 && world.ba.super_packets > 100);
    assert!(world.a.dropped.is_empty() && world.b.dropped.is_empty());
}

#[test]
fn ten_mebibytes_pass_both_ways_over_v6_in_super_packets() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN6);
    exchange(&mut world, flow, other, 10 << 20, 30 * SECOND);
    assert!(world.ab.super_packets > 100 && world.ba.super_packets > 100);
    assert!(world.a.dropped.is_empty() && world.b.dropped.is_empty());
}

#[test]
fn plain_packets_stay_within_the_mtu() {
    for origin in [ORIGIN4, ORIGIN6] {
        let plain = |config: Config| Config {
            super_packets: false,
            mtu: 1280,
            ..config
        };
        let mut world = World::with(plain(client_config()), plain(network_config()));
        let (flow, other) = world.open(origin);
        exchange(&mut world, flow, other, 1 << 20, 30 * SECOND);
        assert_eq!(world.ab.super_packets + world.ba.super_packets, 0);
        assert_eq!(world.ab.longest, 1280);
        assert!(world.a.dropped.is_empty() && world.b.dropped.is_empty());
    }
}

#[test]
fn super_packets_leave_room_for_link_headers() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let (flow, other) = world.open(origin);
        exchange(&mut world, flow, other, 8 << 20, 30 * SECOND);
        let longest = world.ab.longest.max(world.ba.longest);
        // Of 65,536 bytes with the link header, Linux makes wire packets at once.
        assert!((60_000..65_536 - 60).contains(&longest), "{longest}");
    }
}

#[test]
fn flow_survives_loss_and_reordering() {
    for (seed, origin) in [ORIGIN4, ORIGIN6].into_iter().enumerate() {
        let plain = |config: Config| Config {
            super_packets: seed == 0,
            ..config
        };
        let mut world = World::with(plain(client_config()), plain(network_config()));
        let (flow, other) = world.open(origin);
        for link in [&mut world.ab, &mut world.ba] {
            link.loss = 0.02;
            link.reorder = 0.05;
        }
        exchange(&mut world, flow, other, 1 << 20, 600 * SECOND);
    }
}

#[test]
fn slow_start_doubles_per_round_trip_although_super_packets_are_acknowledged_at_once() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    for link in [&mut world.ab, &mut world.ba] {
        link.delay = Duration::from_millis(25);
    }
    let begun = world.now;
    let mut source = Source::new(flow, 1, 1 << 20);
    let mut drain = Drain::new(other, 1);
    world.until(60 * SECOND, |world| {
        source.pump(world.now, &mut world.a.stack);
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.finished
    });
    // From 13 KiB to 512 KiB in flight takes six round trips of 50 ms; growth by a segment each would take 370.
    assert!(
        world.now - begun < Duration::from_millis(50 * 9),
        "{:?}",
        world.now - begun
    );
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut up = (Source::new(flow, 5, 3000), Drain::new(other, 5));
    world.until(SECOND, |world| {
        up.0.pump(world.now, &mut world.a.stack);
        up.1.pump(world.now, &mut world.b.stack, usize::MAX);
        up.1.finished
    });
    assert_eq!(
        world.a.stack.send(world.now, flow, |_| (0, ())),
        Err(SendError::Closed)
    );
    let mut down = (Source::new(other, 6, 2 << 20), Drain::new(flow, 6));
    world.until(10 * SECOND, |world| {
        down.0.pump(world.now, &mut world.b.stack);
        down.1.pump(world.now, &mut world.a.stack, usize::MAX);
        down.1.finished
    });
    assert_eq!(down.1.at, 2 << 20);
}

#[test]
fn end_of_stream_comes_only_after_all_is_read() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(other, 9, 60_000);
    world.until(SECOND, |world| {
        source.pump(world.now, &mut world.b.stack);
        world.a.stack.recv_len(flow) == 60_000
    });
    // The peer's end is long here, and unread data too; both ends have closed by then.
    world.a.stack.finish(world.now, flow);
    world.run(30 * SECOND);
    let mut drain = Drain::new(flow, 9);
    drain.pump(world.now, &mut world.a.stack, 59_999);
    assert!(!drain.finished);
    drain.pump(world.now, &mut world.a.stack, usize::MAX);
    assert_eq!((drain.at, drain.finished), (60_000, true));
}

#[test]
fn released_flows_close_and_leave_nothing() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    exchange(&mut world, flow, other, 1 << 20, 10 * SECOND);
    world.a.stack.release(world.now, flow);
    world.b.stack.release(world.now, other);
    world.run(SECOND);
    assert_eq!((world.a.stack.len(), world.b.stack.len()), (0, 0));
    world.run(60 * SECOND);
    assert_eq!(
        world.a.stack.stats().waits_now + world.b.stack.stats().waits_now,
        0
    );
    assert!(world.a.stack.is_idle() && world.b.stack.is_idle());
}

#[test]
fn release_sends_what_is_queued() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 3, 400_000);
    source.finish = false;
    world.until(SECOND, |world| {
        source.pump(world.now, &mut world.a.stack);
        source.at == 400_000
    });
    assert!(world.a.stack.send_queue(flow) > 200_000);
    world.a.stack.release(world.now, flow);
    let mut drain = Drain::new(other, 3);
    world.until(10 * SECOND, |world| {
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.finished
    });
    assert_eq!(drain.at, 400_000);
}

#[test]
fn release_with_unread_data_resets_the_peer() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(other, 3, 1000);
    source.finish = false;
    source.pump(world.now, &mut world.b.stack);
    world.run(SECOND);
    world.a.stack.release(world.now, flow);
    world.run(SECOND);
    assert_eq!(world.b.closed(other), Some(Cause::Reset));
    assert_eq!(world.a.stack.len(), 0);
}

#[test]
fn data_after_release_resets_the_peer() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    world.a.stack.release(world.now, flow);
    world.run(SECOND);
    let mut source = Source::new(other, 3, 1000);
    source.finish = false;
    source.pump(world.now, &mut world.b.stack);
    world.run(SECOND);
    assert_eq!(world.b.closed(other), Some(Cause::Reset));
    assert_eq!(world.a.stack.len(), 0);
}

#[test]
fn released_flow_of_a_vanished_peer_is_freed_after_the_close_timeout() {
    let mut world = World::new();
    let (flow, _) = world.open(ORIGIN4);
    world.ab.cut = true;
    world.ba.cut = true;
    world.a.stack.release(world.now, flow);
    world.run(59 * SECOND);
    assert_eq!(world.a.stack.len(), 1);
    world.run(3 * SECOND);
    assert_eq!(world.a.stack.len(), 0);
}

#[test]
fn released_flow_whose_reset_finds_no_room_is_freed_after_the_close_timeout() {
    let mut world = World::new();
    let (open, _) = world.open(ORIGIN4);
    world.ab.full = true;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    let young = world.a.stack.connect(world.now, remote).unwrap();
    for flow in [open, young] {
        world.a.stack.abort(world.now, flow);
        world.a.stack.release(world.now, flow);
    }
    world.run(59 * SECOND);
    assert_eq!(world.a.stack.len(), 2, "the sink may have room again");
    world.run(2 * SECOND);
    assert_eq!(world.a.stack.len(), 0);
    assert!(!world.a.stack.wants_transmit());
}

#[test]
fn abort_resets_the_peer_and_what_arrived_before_stays_readable() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 7, 5000);
    source.finish = false;
    source.pump(world.now, &mut world.a.stack);
    world.run(SECOND);
    world.a.stack.abort(world.now, flow);
    world.run(SECOND);
    assert_eq!(world.b.closed(other), Some(Cause::Reset));
    let mut read = 0;
    while let Ok(count) = world
        .b
        .stack
        .recv(world.now, other, |bytes| (bytes.len(), bytes.len()))
    {
        read += count;
    }
    assert_eq!(read, 5000);
    let now = world.now;
    assert_eq!(
        world.b.stack.recv(now, other, |_| (0, ())),
        Err(RecvError::Failed(Cause::Reset))
    );
    assert_eq!(
        world.b.stack.send(now, other, |_| (0, ())),
        Err(SendError::Failed(Cause::Reset))
    );
    assert_eq!(
        world.a.stack.recv(now, flow, |_| (0, ())),
        Err(RecvError::Failed(Cause::Aborted))
    );
}

#[test]
fn rejections_tell_the_truth() {
    let cases = [
        (Rejection::Reset, Cause::Refused),
        (
            Rejection::Unreachable(Unreachable::Host),
            Cause::Unreachable(Unreachable::Host),
        ),
        (
            Rejection::Unreachable(Unreachable::Network),
            Cause::Unreachable(Unreachable::Network),
        ),
        (
            Rejection::Unreachable(Unreachable::AdminProhibited),
            Cause::Unreachable(Unreachable::AdminProhibited),
        ),
        (
            Rejection::Unreachable(Unreachable::Port),
            Cause::Unreachable(Unreachable::Port),
        ),
        (Rejection::Silent, Cause::TimedOut),
    ];
    for origin in [ORIGIN4, ORIGIN6] {
        for (rejection, cause) in cases {
            let mut world = World::new();
            world.b.accept = false;
            let remote = SocketAddr::new(origin.parse().unwrap(), 80);
            let flow = world.a.stack.connect(world.now, remote).unwrap();
            world.until(60 * SECOND, |world| {
                let now = world.now;
                while let Some(event) = world.b.events.pop() {
                    if let Event::Incoming { flow, local, .. } = event {
                        assert_eq!(local, remote);
                        world.b.stack.reject(now, flow, rejection);
                    }
                }
                world.a.closed(flow).is_some()
            });
            assert_eq!(world.a.closed(flow), Some(cause));
            assert_eq!(world.b.stack.len(), 0);
            world.a.stack.release(world.now, flow);
            assert_eq!(world.a.stack.len(), 0);
        }
    }
}

#[test]
fn nothing_is_answered_before_accept_and_repeated_syns_make_no_second_flow() {
    let mut world = World::new();
    world.b.accept = false;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    let flow = world.a.stack.connect(world.now, remote).unwrap();
    world.run(10 * SECOND);
    assert_eq!(world.ba.sent, 0);
    assert_eq!(world.ab.sent, 4, "SYNs at 0, 1, 3 and 7 s");
    assert_eq!((world.b.stack.len(), world.b.events.len()), (1, 1));
    assert_eq!(world.b.stack.stats().half_open_now, 1);
    let other = world.b.incoming().unwrap();
    world.b.stack.accept(world.now, other);
    world.until(SECOND, |world| world.a.is_established(flow));
    exchange(&mut world, flow, other, 100_000, 10 * SECOND);
}

#[test]
fn half_open_flow_expires_and_its_owner_hears() {
    let mut world = World::new();
    world.b.accept = false;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    world.a.stack.connect(world.now, remote).unwrap();
    world.run(33 * SECOND);
    let other = world.b.incoming().unwrap();
    assert_eq!(world.b.closed(other), Some(Cause::TimedOut));
    world.b.stack.release(world.now, other);
    assert_eq!(
        (world.b.stack.len(), world.b.stack.stats().half_open_now),
        (0, 0)
    );
}

#[test]
fn half_open_flow_ends_when_the_peer_takes_it_back() {
    let mut world = World::new();
    world.b.accept = false;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    let flow = world.a.stack.connect(world.now, remote).unwrap();
    world.run(SECOND / 10);
    let other = world.b.incoming().unwrap();
    // A client that gives up sends a reset.
    world.a.stack.abort(world.now, flow);
    world.run(SECOND / 10);
    assert_eq!(world.b.closed(other), Some(Cause::Reset));
}

#[test]
fn connect_times_out() {
    let mut world = World::new();
    world.ab.cut = true;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    let flow = world.a.stack.connect(world.now, remote).unwrap();
    world.until(60 * SECOND, |world| world.a.closed(flow).is_some());
    assert_eq!(world.a.closed(flow), Some(Cause::TimedOut));
    assert_eq!(world.elapsed(), 32 * SECOND);
}

#[test]
fn handshakes_behind_a_full_sink_time_out() {
    let mut world = World::new();
    world.ab.full = true;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    let flow = world.a.stack.connect(world.now, remote).unwrap();
    world.run(31 * SECOND);
    assert_eq!(world.a.closed(flow), None);
    world.run(2 * SECOND);
    assert_eq!(world.a.closed(flow), Some(Cause::TimedOut));

    let mut world = World::new();
    world.ba.full = true;
    world.a.stack.connect(world.now, remote).unwrap();
    world.run(33 * SECOND);
    let other = world.b.incoming().unwrap();
    assert_eq!(world.b.closed(other), Some(Cause::TimedOut));
}

#[test]
fn flow_survives_an_outage_of_ten_seconds() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 1, 20 << 20);
    let mut drain = Drain::new(other, 1);
    let mut cut_at = None;
    world.until(100 * SECOND, |world| {
        source.pump(world.now, &mut world.a.stack);
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        if drain.at > 5 << 20 && cut_at.is_none() {
            cut_at = Some(world.now);
            world.ab.cut = true;
            world.ba.cut = true;
        }
        if cut_at.is_some_and(|at| world.now >= at + 10 * SECOND) {
            world.ab.cut = false;
            world.ba.cut = false;
        }
        drain.finished
    });
    assert_eq!(drain.at, 20 << 20);
}

#[test]
fn fast_retransmission_that_finds_the_sink_full_is_sent_once_there_is_room() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 1, 0);
    source.finish = false;
    for part in 1..=8 {
        // The first segment is lost, and each of the others asks for it.
        world.ab.cut = part == 1;
        source.len = part * 1000;
        source.pump(world.now, &mut world.a.stack);
        world.drain();
    }
    world.ab.full = true;
    world.run(SECOND / 100);
    world.ab.full = false;
    let mut drain = Drain::new(other, 1);
    // Nothing else is left to be sent, and the retransmission time-out is a second.
    world.until(SECOND / 2, |world| {
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.at == 8000
    });
}

#[test]
fn two_ends_that_have_not_heard_what_the_other_has_find_out_at_once() {
    let plain = |config: Config| Config {
        super_packets: false,
        ..config
    };
    let mut world = World::with(plain(client_config()), plain(network_config()));
    let (flow, other) = world.open(ORIGIN4);
    let mut up = (Source::new(flow, 5, 30_000), Drain::new(other, 5));
    let mut down = (Source::new(other, 6, 30_000), Drain::new(flow, 6));
    for source in [&mut up.0, &mut down.0] {
        source.finish = false;
    }
    world.until(SECOND, |world| {
        up.0.pump(world.now, &mut world.a.stack);
        down.0.pump(world.now, &mut world.b.stack);
        up.1.pump(world.now, &mut world.b.stack, usize::MAX);
        down.1.pump(world.now, &mut world.a.stack, usize::MAX);
        up.1.at + down.1.at == 60_000
    });
    world.run(SECOND);
    for source in [&mut up.0, &mut down.0] {
        source.len += 10_000;
        source.finish = true;
    }
    up.0.pump(world.now, &mut world.a.stack);
    down.0.pump(world.now, &mut world.b.stack);
    world.drain();
    // All of it arrives, and no word of that, until both have begun to send again.
    world.ab.cut = true;
    world.ba.cut = true;
    world.run(SECOND * 3 / 2);
    assert_eq!(
        (world.b.stack.recv_len(other), world.a.stack.recv_len(flow)),
        (10_000, 10_000)
    );
    world.ab.cut = false;
    world.ba.cut = false;
    world.until(8 * SECOND, |world| {
        up.0.pump(world.now, &mut world.a.stack);
        down.0.pump(world.now, &mut world.b.stack);
        up.1.pump(world.now, &mut world.b.stack, usize::MAX);
        down.1.pump(world.now, &mut world.a.stack, usize::MAX);
        let queued = world.a.stack.send_queue(flow) + world.b.stack.send_queue(other);
        up.1.finished && down.1.finished && queued == 0
    });
}

#[test]
fn flow_with_unanswered_data_is_given_up_after_the_user_timeout() {
    let mut world = World::new();
    let (flow, _) = world.open(ORIGIN4);
    world.ab.cut = true;
    let mut source = Source::new(flow, 1, 100);
    source.finish = false;
    source.pump(world.now, &mut world.a.stack);
    world.run(299 * SECOND);
    assert_eq!(world.a.closed(flow), None);
    world.run(2 * SECOND);
    assert_eq!(world.a.closed(flow), Some(Cause::TimedOut));
}

#[test]
fn data_behind_a_full_sink_is_given_up_after_the_user_timeout() {
    let mut world = World::new();
    let (flow, _) = world.open(ORIGIN4);
    world.ab.full = true;
    let mut source = Source::new(flow, 1, 100);
    source.finish = false;
    source.pump(world.now, &mut world.a.stack);
    world.run(299 * SECOND);
    assert_eq!(world.a.closed(flow), None);
    world.run(2 * SECOND);
    assert_eq!(world.a.closed(flow), Some(Cause::TimedOut));
}

#[test]
fn idle_flow_outlives_hours_with_a_living_peer_and_not_with_a_dead_one() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    world.run(Duration::from_secs(5 * 3600));
    assert_eq!((world.a.closed(flow), world.b.closed(other)), (None, None));
    let sent = world.ab.sent;
    world.ab.cut = true;
    world.ba.cut = true;
    world.run(Duration::from_secs(2 * 3600 + 12 * 60));
    assert_eq!(world.a.closed(flow), Some(Cause::TimedOut));
    assert!(world.ab.sent - sent >= 8, "{} probes", world.ab.sent - sent);
}

#[test]
fn probed_idle_flow_ends_by_a_reset_where_its_peer_has_forgotten_it() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let flows: Vec<_> = (0..200).map(|_| world.open(origin).0).collect();
        world.run(SECOND);
        world.b = Side::new(network_config(), 99);
        world.run(60 * SECOND);
        let closed = |world: &World| {
            let ends = flows.iter().map(|flow| world.a.closed(*flow));
            ends.flatten().collect::<Vec<_>>()
        };
        assert_eq!(closed(&world), [], "nobody has asked");
        world.a.stack.probe(world.now);
        world.run(SECOND);
        assert_eq!(closed(&world), [Cause::Reset; 200]);
    }
}

#[test]
fn probe_costs_a_living_flow_nothing() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    world.run(SECOND);
    let (sent, answered) = (world.ab.sent, world.ba.sent);
    world.a.stack.probe(world.now);
    world.run(SECOND);
    assert_eq!((world.ab.sent - sent, world.ba.sent - answered), (1, 1));
    assert_eq!((world.a.closed(flow), world.b.closed(other)), (None, None));
    exchange(&mut world, flow, other, 1 << 20, 10 * SECOND);
}

#[test]
fn slow_reader_holds_the_sender_back_and_the_window_opens_again() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 1, 8 << 20);
    let mut drain = Drain::new(other, 1);
    for _ in 0..50 {
        source.pump(world.now, &mut world.a.stack);
        world.run(SECOND / 10);
    }
    // Nobody reads: the send ring and the window are full, and that is all that was taken.
    let received = world.b.stack.recv_len(other) as u64;
    assert_eq!(source.at, received + (1 << 20));
    // The first window, told in steps of 32 bytes once it is scaled.
    assert!(received > 65_535 - 32 && received <= 65_535);
    // A zero window for longer than any time-out is no reason to give up.
    world.run(900 * SECOND);
    assert_eq!(world.a.closed(flow), None);
    let reopened = world.now;
    while !drain.finished {
        source.pump(world.now, &mut world.a.stack);
        drain.pump(world.now, &mut world.b.stack, 4096);
        world.run(SECOND / 1000);
        assert!(world.now - reopened < 20 * SECOND, "at {}", drain.at);
    }
    assert_eq!(drain.at, 8 << 20);
}

#[test]
fn full_sink_holds_flows_back_and_loses_nothing() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 1, 300_000);
    let mut drain = Drain::new(other, 1);
    world.until(SECOND, |world| {
        source.pump(world.now, &mut world.a.stack);
        source.at > 100_000
    });
    world.ab.full = true;
    let sent = world.ab.sent;
    world.run(20 * SECOND);
    assert_eq!(world.ab.sent, sent);
    assert!(world.a.stack.wants_transmit());
    world.ab.full = false;
    let reopened = world.now;
    world.until(10 * SECOND, |world| {
        source.pump(world.now, &mut world.a.stack);
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.finished
    });
    // Nothing was lost, so nothing waits for a retransmission.
    assert!(
        world.now - reopened < SECOND / 2,
        "{:?}",
        world.now - reopened
    );
}

#[test]
fn narrow_sink_is_filled_by_turns() {
    let mut world = World::new();
    world.ab.capacity = 200_000;
    let mut bulk = Vec::new();
    for key in 0..16 {
        let (flow, other) = world.open(ORIGIN4);
        bulk.push((Source::new(flow, key, 1 << 20), Drain::new(other, key)));
    }
    world.until(100 * SECOND, |world| {
        for (source, drain) in &mut bulk {
            source.pump(world.now, &mut world.a.stack);
            drain.pump(world.now, &mut world.b.stack, usize::MAX);
        }
        let done: Vec<_> = bulk.iter().map(|(_, drain)| drain.at).collect();
        let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
        assert!(
            most - least <= 600_000,
            "one flow is {} bytes ahead",
            most - least
        );
        bulk.iter().all(|(_, drain)| drain.finished)
    });
}

#[test]
fn echoes_are_not_starved_by_bulk_flows() {
    let mut world = World::new();
    world.ab.capacity = 1 << 20;
    let mut bulk = Vec::new();
    for key in 0..64 {
        let (flow, other) = world.open(ORIGIN4);
        let mut source = Source::new(flow, key, u64::MAX);
        source.finish = false;
        bulk.push((source, Drain::new(other, key)));
    }
    let echoes: Vec<_> = (0..200).map(|_| world.open(ORIGIN6)).collect();
    let mut waiting = vec![false; echoes.len()];
    let mut rounds = vec![0u32; echoes.len()];
    let until = world.now + SECOND;
    world.until(2 * SECOND, |world| {
        let now = world.now;
        for (source, drain) in &mut bulk {
            source.pump(now, &mut world.a.stack);
            drain.pump(now, &mut world.b.stack, usize::MAX);
        }
        for (index, (flow, other)) in echoes.iter().enumerate() {
            if !waiting[index] {
                world
                    .a
                    .stack
                    .send(now, *flow, |room| {
                        room[..8].copy_from_slice(b"question");
                        (8, ())
                    })
                    .unwrap();
                waiting[index] = true;
            }
            if let Ok(count) = world
                .b
                .stack
                .recv(now, *other, |bytes| (bytes.len(), bytes.len()))
            {
                world
                    .b
                    .stack
                    .send(now, *other, |room| {
                        room[..count].fill(b'!');
                        (count, ())
                    })
                    .unwrap();
            }
            if world
                .a
                .stack
                .recv(now, *flow, |bytes| (bytes.len(), ()))
                .is_ok()
            {
                waiting[index] = false;
                rounds[index] += 1;
            }
        }
        now >= until
    });
    let least = *rounds.iter().min().unwrap();
    assert!(
        least > 100,
        "an echo flow had {least} rounds in a second of 2 ms round trips"
    );
    assert!(bulk.iter().all(|(_, drain)| drain.at > 1 << 20));
}

#[test]
fn idle_rings_are_given_back_and_used_again() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let mut up = (Source::new(flow, 5, 3 << 20), Drain::new(other, 5));
    up.0.finish = false;
    world.until(10 * SECOND, |world| {
        up.0.pump(world.now, &mut world.a.stack);
        up.1.pump(world.now, &mut world.b.stack, usize::MAX);
        up.1.at == 3 << 20
    });
    let before = world.b.stack.stats().rings_given_back;
    world.run(15 * SECOND);
    assert!(world.b.stack.stats().rings_given_back > before);
    up.0.len = 6 << 20;
    world.until(10 * SECOND, |world| {
        up.0.pump(world.now, &mut world.a.stack);
        up.1.pump(world.now, &mut world.b.stack, usize::MAX);
        up.1.at == 6 << 20
    });
}

#[test]
fn out_of_order_data_survives_the_sweep_for_idle_rings() {
    let plain = |config: Config| Config {
        super_packets: false,
        ..config
    };
    let mut world = World::with(plain(client_config()), plain(network_config()));
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 5, 10_000);
    source.finish = false;
    // The first segment is lost, the rest arrives and waits in the ring behind the gap.
    source.len = 1000;
    world.ab.cut = true;
    source.pump(world.now, &mut world.a.stack);
    world.drain();
    world.ab.cut = false;
    source.len = 2000;
    source.pump(world.now, &mut world.a.stack);
    world.drain();
    world.ab.cut = true;
    world.run(20 * SECOND);
    world.ab.cut = false;
    let mut drain = Drain::new(other, 5);
    world.until(60 * SECOND, |world| {
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.at == 2000
    });
}

#[test]
fn forged_sequence_number_does_not_hide_what_waits_behind_a_gap() {
    let plain = |config: Config| Config {
        super_packets: false,
        ..config
    };
    let mut world = World::with(plain(client_config()), plain(network_config()));
    let (flow, other) = world.open(ORIGIN4);
    let mut source = Source::new(flow, 5, 1000);
    source.finish = false;
    world.ab.cut = true;
    source.pump(world.now, &mut world.a.stack);
    world.drain();
    world.ab.cut = false;
    source.len = 2000;
    source.pump(world.now, &mut world.a.stack);
    world.a.stack.poll_transmit(world.now, &mut world.ab);
    let at = world.ab.next().unwrap();
    let (mut segment, offload) = world.ab.pop(at).unwrap();
    world.b.handle(at, &mut segment.clone(), offload);
    // Half of all sequence numbers further on, in a header of 20 bytes behind one of 20 bytes.
    let sequence = u32::from_be_bytes(segment[24..28].try_into().unwrap());
    let forged = sequence.wrapping_add((1 << 31) - 1500);
    segment[24..28].copy_from_slice(&forged.to_be_bytes());
    world.b.handle(at, &mut segment, offload);
    world.ab.cut = true;
    world.run(20 * SECOND);
    world.ab.cut = false;
    let mut drain = Drain::new(other, 5);
    world.until(60 * SECOND, |world| {
        drain.pump(world.now, &mut world.b.stack, usize::MAX);
        drain.at == 2000
    });
}

#[test]
fn small_segment_size_of_the_peer_is_respected() {
    for (mtu, super_packets) in [(1280, true), (1280, false)] {
        let mut world = World::with(
            Config {
                mtu: 9000,
                ..client_config()
            },
            Config {
                mtu,
                super_packets,
                ..network_config()
            },
        );
        let (flow, other) = world.open(ORIGIN6);
        exchange(&mut world, flow, other, 1 << 20, 10 * SECOND);
        assert!(world.b.dropped.is_empty(), "{:?}", world.b.dropped);
    }
}

#[test]
fn idle_stack_asks_to_be_called_only_for_its_keepalive() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    exchange(&mut world, flow, other, 1 << 20, 10 * SECOND);
    let (_idle, _) = world.open(ORIGIN6);
    world.a.stack.release(world.now, flow);
    world.b.stack.release(world.now, other);
    world.run(60 * SECOND);
    for stack in [&world.a.stack, &world.b.stack] {
        let next = stack.poll_timeout().unwrap();
        assert!(next - world.now > 3600 * SECOND, "{:?}", next - world.now);
    }
}

#[test]
fn first_flight_is_ten_segments() {
    for (origin, flight) in [(ORIGIN4, 13_600), (ORIGIN6, 13_400)] {
        let mut world = World::new();
        let (flow, other) = world.open(origin);
        for link in [&mut world.ab, &mut world.ba] {
            link.delay = Duration::from_millis(25);
        }
        let mut source = Source::new(flow, 1, 1 << 20);
        source.pump(world.now, &mut world.a.stack);
        assert_eq!(source.at, flight);
        world.run(Duration::from_millis(30));
        assert_eq!(world.b.stack.recv_len(other) as u64, flight);
        // CUBIC starts with 2 KiB and has grown by what the first flight brought over.
        world.run(Duration::from_millis(21));
        source.pump(world.now, &mut world.a.stack);
        world.run(Duration::from_millis(30));
        let arrived = world.b.stack.recv_len(other) as u64 - flight;
        assert_eq!(arrived, flight + 2048);
    }
}
