//! The table of flows: identities, addresses, ports and limits.

mod world;

use std::net::SocketAddr;
use std::time::Duration;

use adit_netstack::{Cause, Config, ConnectError, RecvError, Rejection, SendError};
use world::{ORIGIN4, ORIGIN6, World, client_config, network_config};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn stale_ids_name_nothing() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    let now = world.now;
    world.a.stack.release(now, flow);
    world.b.stack.release(now, other);
    world.run(SECOND);
    let (again, _) = world.open(ORIGIN4);
    assert_eq!(again.index(), flow.index());
    assert_ne!(again, flow);
    assert_eq!(
        world.a.stack.recv(now, flow, |_| (0, ())),
        Err(RecvError::Unknown)
    );
    assert_eq!(
        world.a.stack.send(now, flow, |_| (0, ())),
        Err(SendError::Unknown)
    );
    world.a.stack.abort(now, flow);
    world.a.stack.finish(now, flow);
    world.a.stack.release(now, flow);
    world.a.stack.reject(now, flow, Rejection::Reset);
    world.run(SECOND);
    assert_eq!(world.a.closed(again), None);
    assert_eq!(world.a.stack.len(), 1);
}

#[test]
fn limits_of_flows_hold() {
    let mut world = World::with(
        Config {
            max_flows: 3,
            ..client_config()
        },
        Config {
            max_half_open: 2,
            ..network_config()
        },
    );
    world.b.accept = false;
    let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), 80);
    for _ in 0..3 {
        world.a.stack.connect(world.now, remote).unwrap();
    }
    assert_eq!(
        world.a.stack.connect(world.now, remote),
        Err(ConnectError::TooManyFlows { limit: 3 })
    );
    world.run(SECOND / 10);
    assert_eq!(world.b.stack.len(), 2);
    assert_eq!(world.b.stack.stats().dropped.half_open_full, 1);
}

#[test]
fn incoming_flows_to_own_addresses_are_reported_only_when_wanted() {
    for incoming in [false, true] {
        let mut world = World::with(
            client_config(),
            Config {
                accept: adit_netstack::Accept::Own,
                incoming,
                ..network_config()
            },
        );
        let flow = world
            .a
            .stack
            .connect(world.now, "10.86.0.1:22".parse().unwrap())
            .unwrap();
        world.until(SECOND, |world| {
            world.a.closed(flow).is_some() || world.a.is_established(flow)
        });
        assert_eq!(world.a.is_established(flow), incoming);
        assert_eq!(world.a.closed(flow), (!incoming).then_some(Cause::Refused));
    }
}

/// A stack `b` that takes packets for its own addresses alone.
fn own_only() -> World {
    let config = Config {
        accept: adit_netstack::Accept::Own,
        ..network_config()
    };
    World::with(client_config(), config)
}

#[test]
fn flows_are_reported_on_listened_ports_and_refused_on_others() {
    for gateway in ["10.86.0.1", "[fd86::1]"] {
        let mut world = own_only();
        assert!(world.b.stack.listen(8080));
        assert!(!world.b.stack.listen(8080), "it is listened on already");
        assert!(!world.b.stack.listen(0));
        let [there, not_there] = [8080, 8081].map(|port| {
            let remote = format!("{gateway}:{port}").parse().unwrap();
            world.a.stack.connect(world.now, remote).unwrap()
        });
        world.until(SECOND, |world| {
            world.a.closed(not_there).is_some() && world.a.is_established(there)
        });
        assert_eq!(world.a.closed(not_there), Some(Cause::Refused));
        assert_eq!(world.b.stack.stats().dropped.incoming_refused, 1);
    }
}

#[test]
fn port_that_is_not_listened_on_any_more_refuses_new_flows_and_keeps_open_ones() {
    let mut world = own_only();
    world.b.stack.listen(8080);
    let gateway: SocketAddr = "10.86.0.1:8080".parse().unwrap();
    let former = world.a.stack.connect(world.now, gateway).unwrap();
    world.until(SECOND, |world| world.a.is_established(former));
    world.b.stack.unlisten(8080);
    let late = world.a.stack.connect(world.now, gateway).unwrap();
    world.until(SECOND, |world| world.a.closed(late).is_some());
    assert_eq!(world.a.closed(late), Some(Cause::Refused));
    assert_eq!(world.a.closed(former), None);
    assert!(world.b.stack.listen(8080), "it is free again");
}

#[test]
fn listened_ports_outlive_a_new_lease() {
    let mut world = own_only();
    world.b.stack.listen(8080);
    world
        .b
        .stack
        .set_addresses(vec!["10.86.0.7".parse().unwrap()]);
    let remote = "10.86.0.7:8080".parse().unwrap();
    let flow = world.a.stack.connect(world.now, remote).unwrap();
    world.until(SECOND, |world| world.a.is_established(flow));
}

#[test]
fn new_lease_ends_flows_of_the_old_address() {
    let mut world = World::new();
    let (flow4, _) = world.open(ORIGIN4);
    let (flow6, _) = world.open(ORIGIN6);
    world.a.stack.set_addresses(vec![
        "10.86.0.9".parse().unwrap(),
        world::A6.parse().unwrap(),
    ]);
    world.run(SECOND);
    assert_eq!(world.a.closed(flow4), Some(Cause::AddressLost));
    assert_eq!(world.a.closed(flow6), None);
    world.a.stack.release(world.now, flow4);
    assert_eq!(world.a.stack.len(), 1);
}

#[test]
fn connect_needs_an_address_of_the_family_and_a_sane_remote() {
    let mut world = World::with(
        Config {
            addresses: vec![world::A4.parse().unwrap()],
            ..Config::default()
        },
        network_config(),
    );
    let mut connect = |remote: &str| world.a.stack.connect(world.now, remote.parse().unwrap());
    assert!(matches!(
        connect("[2001:db8::1]:80"),
        Err(ConnectError::NoAddress { .. })
    ));
    for remote in [
        "0.0.0.0:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "192.0.2.1:0",
    ] {
        assert!(
            matches!(connect(remote), Err(ConnectError::BadAddress { .. })),
            "{remote}"
        );
    }
}

#[test]
fn ports_of_ended_flows_rest_before_they_are_used_again() {
    let mut world = World::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..300 {
        let (flow, other) = world.open(ORIGIN4);
        let (local, _) = world.a.stack.addresses(flow).unwrap();
        assert!(
            seen.insert(local),
            "{local} is used twice within {:?}",
            world.elapsed()
        );
        world.a.stack.release(world.now, flow);
        world.b.stack.release(world.now, other);
        world.run(SECOND / 50);
    }
    assert!(world.elapsed() < 30 * SECOND);
    assert_eq!(world.a.stack.len(), 0);
}
