//! UDP, echo, fragments and ICMP errors between two stacks, and single packets handed in.

mod world;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use adit_netstack::{
    Accept, Cause, Checksum, Config, Dropped, Event, Gso, Offload, Packet, PacketError, PacketSink,
    Stack, Unreachable, complete_checksum, protocol, too_big, unreachable, verify_checksum,
};
use world::{Got, ORIGIN4, ORIGIN6, Side, World, client_config, network_config};

const SECOND: Duration = Duration::from_secs(1);

fn own(origin: &str) -> IpAddr {
    if origin.contains(':') {
        world::A6.parse().unwrap()
    } else {
        world::A4.parse().unwrap()
    }
}

/// Takes packets without a link.
#[derive(Default)]
struct Take {
    room: Vec<u8>,
    packets: Vec<(Vec<u8>, Offload)>,
}

impl PacketSink for Take {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.resize(len.max(self.room.len()), 0);
        self.room.get_mut(..len)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        self.packets.push((self.room[..len].to_vec(), offload));
    }
}

fn transmitted(stack: &mut Stack, now: Instant) -> Vec<(Vec<u8>, Offload)> {
    let mut take = Take::default();
    stack.poll_transmit(now, &mut take);
    take.packets
}

#[test]
fn datagrams_of_every_length_pass_both_ways() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let port = world.a.stack.bind_udp().unwrap();
        let local = SocketAddr::new(own(origin), port);
        let remote = SocketAddr::new(origin.parse().unwrap(), 53);
        let most = if local.is_ipv4() { 65_507 } else { 65_487 };
        for len in [0, 1, 7, 1300, 1344, 1352, 1353, 1372, 1373, 4000, most] {
            let payload: Vec<u8> = (0..len).map(|at| world::byte(7, at as u64)).collect();
            world
                .a
                .stack
                .send_udp(&mut world.ab, local, remote, &payload)
                .unwrap();
            world.run(SECOND);
            let segment = payload.len().max(1);
            let got = Got::Udp {
                local: remote,
                remote: local,
                payload: payload.clone(),
                segment,
            };
            assert_eq!(world.b.got.pop(), Some(got), "{len} bytes up");
            world
                .b
                .stack
                .send_udp(&mut world.ba, remote, local, &payload)
                .unwrap();
            world.run(SECOND);
            let got = Got::Udp {
                local,
                remote,
                payload,
                segment,
            };
            assert_eq!(world.a.got.pop(), Some(got), "{len} bytes down");
        }
        assert!(world.ab.longest <= 1400 && world.ba.longest <= 1400);
        assert!(world.a.dropped.is_empty() && world.b.dropped.is_empty());
        let too_long = vec![0; most + 1];
        assert!(
            world
                .a
                .stack
                .send_udp(&mut world.ab, local, remote, &too_long)
                .is_err()
        );
    }
}

#[test]
fn any_endpoint_reaches_a_bound_port() {
    let mut world = World::new();
    let port = world.a.stack.bind_udp().unwrap();
    let local = SocketAddr::new(own(ORIGIN4), port);
    for stranger in ["198.51.100.1:9", "198.51.100.2:3478"] {
        let stranger: SocketAddr = stranger.parse().unwrap();
        world
            .b
            .stack
            .send_udp(&mut world.ba, stranger, local, b"x")
            .unwrap();
    }
    world.run(SECOND);
    assert_eq!(world.a.got.len(), 2);
}

#[test]
fn chosen_port_is_bound_once_and_heard() {
    let mut world = World::new();
    assert!(world.a.stack.bind_udp_port(5353));
    assert!(!world.a.stack.bind_udp_port(5353) && !world.a.stack.bind_udp_port(0));
    let local = SocketAddr::new(own(ORIGIN4), 5353);
    let stranger = "198.51.100.1:9".parse().unwrap();
    let sent = (world.b.stack).send_udp(&mut world.ba, stranger, local, b"x");
    sent.unwrap();
    world.run(SECOND);
    assert_eq!(world.a.got.len(), 1);
    world.a.stack.unbind_udp(5353);
    assert!(world.a.stack.bind_udp_port(5353), "it is free again");
}

#[test]
fn datagram_to_an_unbound_port_is_answered_port_unreachable() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let remote = SocketAddr::new(origin.parse().unwrap(), 500);
        let port = world.a.stack.bind_udp().unwrap();
        world.a.stack.unbind_udp(port);
        let local = SocketAddr::new(own(origin), port);
        world
            .b
            .stack
            .send_udp(&mut world.ba, remote, local, &[1; 2000])
            .unwrap();
        world.run(SECOND);
        assert_eq!(world.a.dropped, [Dropped::NoPort]);
        assert_eq!(
            world.b.got,
            [Got::UdpFailed {
                local: remote,
                remote: local,
                why: Unreachable::Port
            }]
        );
    }
}

#[test]
fn unreachable_about_a_datagram_reaches_its_sender() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let port = world.a.stack.bind_udp().unwrap();
        let local = SocketAddr::new(own(origin), port);
        let remote = SocketAddr::new(origin.parse().unwrap(), 53);
        let mut take = Take::default();
        world
            .a
            .stack
            .send_udp(&mut take, local, remote, b"question")
            .unwrap();
        let (packet, _) = take.packets.pop().unwrap();
        world.b.stack.send_unreachable(&packet, Unreachable::Host);
        world.run(SECOND);
        assert_eq!(
            world.a.got,
            [Got::UdpFailed {
                local,
                remote,
                why: Unreachable::Host
            }]
        );
        // The port is another's business once it is unbound.
        world.a.stack.unbind_udp(port);
        world.b.stack.send_unreachable(&packet, Unreachable::Host);
        world.run(SECOND);
        assert_eq!(world.a.dropped, [Dropped::IcmpUnmatched]);
    }
}

#[test]
fn echo_to_an_own_address_is_answered_inside_in_any_length() {
    for (from, to) in [(world::A4, "10.86.0.1"), (world::A6, "fd86::1")] {
        let mut world = World::new();
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        for len in [0, 56, 1400, 5000, 60_000] {
            let payload = vec![0xab; len];
            world
                .a
                .stack
                .send_echo(&mut world.ab, from, to, true, 7, 9, &payload)
                .unwrap();
            world.run(SECOND);
            let reply = Got::Echo {
                request: false,
                local: from,
                remote: to,
                ident: 7,
                sequence: 9,
                payload,
            };
            assert_eq!(world.a.got.pop(), Some(reply), "{len} bytes");
            assert_eq!(world.b.got, []);
        }
    }
}

#[test]
fn echo_to_an_origin_is_delivered() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let (from, to) = (own(origin), origin.parse().unwrap());
        world
            .a
            .stack
            .send_echo(&mut world.ab, from, to, true, 1, 2, b"ping")
            .unwrap();
        world.run(SECOND);
        let request = Got::Echo {
            request: true,
            local: to,
            remote: from,
            ident: 1,
            sequence: 2,
            payload: b"ping".to_vec(),
        };
        assert_eq!(world.b.got, [request]);
        world
            .b
            .stack
            .send_echo(&mut world.ba, to, from, false, 1, 2, b"ping")
            .unwrap();
        world.run(SECOND);
        assert!(matches!(
            world.a.got[..],
            [Got::Echo { request: false, .. }]
        ));
    }
}

/// Makes the fragments of a datagram to `a`.
fn fragments(origin: &str) -> (Side, Vec<Vec<u8>>) {
    let mut side = Side::new(client_config(), 1);
    let port = side.stack.bind_udp().unwrap();
    let mut other = Stack::new(network_config(), 2);
    let mut take = Take::default();
    let payload: Vec<u8> = (0..6000).map(|at| world::byte(1, at)).collect();
    let from = SocketAddr::new(origin.parse().unwrap(), 1);
    other
        .send_udp(
            &mut take,
            from,
            SocketAddr::new(own(origin), port),
            &payload,
        )
        .unwrap();
    (
        side,
        take.packets.into_iter().map(|(packet, _)| packet).collect(),
    )
}

#[test]
fn fragments_are_put_together_in_any_order() {
    for origin in [ORIGIN4, ORIGIN6] {
        for order in [[4, 3, 2, 1, 0], [0, 2, 4, 1, 3], [2, 0, 1, 4, 3]] {
            let (mut side, parts) = fragments(origin);
            assert_eq!(parts.len(), 5);
            let now = Instant::now();
            for index in order {
                side.handle(now, &mut parts[index].clone(), Offload::default());
            }
            let [Got::Udp { payload, .. }] = &side.got[..] else {
                panic!("{:?}", side.got)
            };
            assert!(
                payload
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| *byte == world::byte(1, at as u64))
            );
            assert_eq!(payload.len(), 6000);
        }
    }
}

#[test]
fn overlapping_fragment_drops_the_datagram() {
    for origin in [ORIGIN4, ORIGIN6] {
        let (mut side, parts) = fragments(origin);
        let now = Instant::now();
        for index in [0, 1, 1, 2, 3, 4] {
            side.handle(now, &mut parts[index].clone(), Offload::default());
        }
        assert_eq!(side.got, []);
        assert_eq!(side.dropped, [Dropped::Fragment]);
    }
}

#[test]
fn unfinished_datagrams_are_dropped_after_15_s() {
    let (mut side, parts) = fragments(ORIGIN4);
    let now = Instant::now();
    for part in &parts[..4] {
        side.handle(now, &mut part.clone(), Offload::default());
    }
    assert_eq!(side.stack.poll_timeout(), Some(now + 15 * SECOND));
    side.stack.handle_timeout(now + 15 * SECOND);
    assert_eq!(side.stack.stats().reassembly_dropped, 1);
    assert_eq!(side.stack.poll_timeout(), None);
    side.handle(now + 15 * SECOND, &mut parts[4].clone(), Offload::default());
    assert_eq!(side.got, []);
}

#[test]
fn flood_of_fragments_is_bounded() {
    let (mut side, _) = fragments(ORIGIN4);
    let mut other = Stack::new(network_config(), 3);
    let now = Instant::now();
    let from = SocketAddr::new(ORIGIN4.parse().unwrap(), 1);
    for _ in 0..1000 {
        let mut take = Take::default();
        other
            .send_udp(
                &mut take,
                from,
                SocketAddr::new(own(ORIGIN4), 1),
                &[0; 60_000],
            )
            .unwrap();
        for (mut packet, offload) in take.packets.drain(1..) {
            side.handle(now, &mut packet, offload);
        }
    }
    side.stack.handle_timeout(now + SECOND);
    assert!(side.stack.stats().reassembly_dropped >= 900);
    side.stack.handle_timeout(now + 20 * SECOND);
    assert_eq!(side.stack.stats().reassembly_dropped, 1000);
}

#[test]
fn datagrams_behind_one_header_are_told_apart() {
    let mut side = Side::new(network_config(), 1);
    let mut client = Stack::new(client_config(), 2);
    let mut take = Take::default();
    let local: SocketAddr = "10.86.0.2:4000".parse().unwrap();
    let remote: SocketAddr = "203.0.113.7:443".parse().unwrap();
    client
        .send_udp(&mut take, local, remote, &[0; 1300])
        .unwrap();
    // Make a super-packet of 3,000 bytes of payload from it.
    let (mut packet, _) = take.packets.pop().unwrap();
    packet.resize(20 + 8 + 3000, 1);
    packet[2..4].copy_from_slice(&3028u16.to_be_bytes());
    packet[24..26].copy_from_slice(&3008u16.to_be_bytes());
    packet[10..12].fill(0);
    let sum: u32 = packet[..20]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let offload = Offload {
        gso: Gso::Udp { size: 1200 },
        checksum: Checksum::Partial,
    };
    side.handle(Instant::now(), &mut packet, offload);
    assert_eq!(side.dropped, []);
    let [
        Got::Udp {
            payload,
            segment: 1200,
            ..
        },
    ] = &side.got[..]
    else {
        panic!("{:?}", side.got)
    };
    assert_eq!(payload.len(), 3000);
}

#[test]
fn wrong_checksums_are_dropped_and_owed_ones_are_not() {
    let mut client = Stack::new(client_config(), 2);
    let mut take = Take::default();
    let local: SocketAddr = "10.86.0.2:4000".parse().unwrap();
    client
        .send_udp(
            &mut take,
            local,
            "203.0.113.7:443".parse().unwrap(),
            b"hello",
        )
        .unwrap();
    let (packet, offload) = take.packets.pop().unwrap();
    assert_eq!(offload.checksum, Checksum::Partial);
    let full = Offload::default();
    let mut side = Side::new(network_config(), 1);
    let now = Instant::now();
    let mut completed = packet.clone();
    complete_checksum(&mut completed).unwrap();
    verify_checksum(&completed).unwrap();
    side.handle(now, &mut packet.clone(), offload);
    side.handle(now, &mut completed.clone(), full);
    assert_eq!((side.got.len(), side.dropped.len()), (2, 0));
    let last = completed.len() - 1;
    completed[last] ^= 1;
    side.handle(now, &mut completed, full);
    let wrong = PacketError::TransportChecksum {
        protocol: protocol::UDP,
    };
    assert_eq!(side.dropped, [Dropped::Malformed(wrong)]);
}

#[test]
fn destination_that_is_not_ours_is_dropped() {
    let mut world = World::with(
        client_config(),
        Config {
            accept: Accept::Own,
            ..network_config()
        },
    );
    let port = world.a.stack.bind_udp().unwrap();
    let local = SocketAddr::new(own(ORIGIN4), port);
    world
        .a
        .stack
        .send_udp(
            &mut world.ab,
            local,
            "203.0.113.7:53".parse().unwrap(),
            b"x",
        )
        .unwrap();
    world
        .a
        .stack
        .send_udp(&mut world.ab, local, "224.0.0.1:53".parse().unwrap(), b"x")
        .unwrap();
    world.run(SECOND);
    assert_eq!(world.b.dropped, [Dropped::NotOurs, Dropped::NotUnicast]);
    assert_eq!(world.ba.sent, 0);
}

#[test]
fn icmp_error_must_quote_what_was_sent() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut side = Side::new(client_config(), 1);
        let now = Instant::now();
        let remote = SocketAddr::new(origin.parse().unwrap(), 80);
        let flow = side.stack.connect(now, remote).unwrap();
        let (syn, _) = transmitted(&mut side.stack, now).pop().unwrap();
        let header = Packet::parse(&syn).unwrap().header_len;
        let mut error = Vec::new();
        let router: IpAddr = if remote.is_ipv4() {
            "198.51.100.9".parse().unwrap()
        } else {
            "2001:db8::9".parse().unwrap()
        };
        // Of a router that guesses the sequence number.
        let mut guessed = syn.clone();
        guessed[header + 4] ^= 0x55;
        assert!(unreachable(&guessed, router, Unreachable::Host, &mut error));
        side.handle(now, &mut error, Offload::default());
        assert_eq!(side.dropped, [Dropped::IcmpUnmatched]);
        // A segment size from an ICMP message is never believed.
        assert!(too_big(&syn, router, 600, &mut error));
        side.handle(now, &mut error, Offload::default());
        assert_eq!(side.dropped[1], Dropped::IcmpIgnored);
        side.events(now);
        assert_eq!(side.closed(flow), None);
        assert!(unreachable(&syn, router, Unreachable::Host, &mut error));
        side.handle(now, &mut error, Offload::default());
        side.events(now);
        assert_eq!(
            side.closed(flow),
            Some(Cause::Unreachable(Unreachable::Host))
        );
    }
}

#[test]
fn established_flow_is_not_ended_by_an_icmp_error() {
    let mut world = World::new();
    let (flow, _) = world.open(ORIGIN4);
    world.ab.cut = true;
    world
        .a
        .stack
        .send(world.now, flow, |room| {
            room[0] = 1;
            (1, ())
        })
        .unwrap();
    let (segment, _) = transmitted(&mut world.a.stack, world.now).pop().unwrap();
    let mut error = Vec::new();
    assert!(unreachable(
        &segment,
        ORIGIN4.parse().unwrap(),
        Unreachable::Port,
        &mut error
    ));
    world.a.handle(world.now, &mut error, Offload::default());
    assert_eq!(world.a.dropped, [Dropped::IcmpIgnored]);
    world.run(SECOND / 2);
    assert_eq!(world.a.closed(flow), None);
}

#[test]
fn no_icmp_error_about_errors_fragments_or_multicast() {
    let (_, parts) = fragments(ORIGIN4);
    let from = ORIGIN4.parse().unwrap();
    let mut out = Vec::new();
    assert!(
        unreachable(&parts[0], from, Unreachable::Host, &mut out),
        "a first fragment may be answered"
    );
    let mut second = Vec::new();
    assert!(
        !unreachable(&out, from, Unreachable::Host, &mut second),
        "an error"
    );
    assert!(
        !unreachable(&parts[1], from, Unreachable::Host, &mut out),
        "a later fragment"
    );
    assert!(out.is_empty());
    let mut client = Stack::new(client_config(), 2);
    for to in ["224.0.0.5:1", "255.255.255.255:1", "0.0.0.0:1"] {
        let mut take = Take::default();
        let local: SocketAddr = "10.86.0.2:4000".parse().unwrap();
        client
            .send_udp(&mut take, local, to.parse().unwrap(), b"x")
            .unwrap();
        assert!(
            !unreachable(&take.packets[0].0, from, Unreachable::Host, &mut out),
            "{to}"
        );
    }
}

#[test]
fn icmp_errors_are_limited_in_length_and_rate() {
    for (origin, most) in [(ORIGIN4, 576), (ORIGIN6, 1280)] {
        let mut stack = Stack::new(network_config(), 1);
        let (_, parts) = fragments(origin);
        let now = Instant::now();
        stack.handle_timeout(now);
        for _ in 0..200 {
            stack.send_unreachable(&parts[0], Unreachable::AdminProhibited);
        }
        let sent = transmitted(&mut stack, now);
        assert_eq!((sent.len(), stack.stats().icmp_errors_limited), (50, 150));
        assert_eq!(sent[0].0.len(), most);
        verify_checksum(&sent[0].0).unwrap();
    }
}

#[test]
fn segment_without_a_flow_is_reset_but_a_reset_is_not() {
    for origin in [ORIGIN4, ORIGIN6] {
        let mut world = World::new();
        let (flow, other) = world.open(origin);
        // The network's end forgets everything, as a restarted server does.
        world.b = Side::new(network_config(), 77);
        world
            .a
            .stack
            .send(world.now, flow, |room| {
                room[0] = 1;
                (1, ())
            })
            .unwrap();
        world.run(SECOND);
        assert_eq!(world.a.closed(flow), Some(Cause::Reset));
        assert_eq!(world.b.dropped, [Dropped::NoFlow]);
        assert_eq!(world.b.stack.stats().resets_sent, 1);
        let sent = world.ba.sent;
        // The client's end forgets too, and is sent a reset for a flow it does not know.
        let mut reset = Take::default();
        world.a.stack.poll_transmit(world.now, &mut reset);
        assert!(reset.packets.is_empty());
        assert_eq!(world.ba.sent, sent);
        let _ = other;
    }
}

#[test]
fn repeated_fin_in_time_wait_is_acknowledged() {
    let mut world = World::new();
    let (flow, other) = world.open(ORIGIN4);
    world.a.stack.release(world.now, flow);
    world.run(SECOND);
    // The last acknowledgement is lost.
    world.ab.cut = true;
    world.b.stack.release(world.now, other);
    world.run(SECOND / 10);
    assert_eq!((world.a.stack.len(), world.b.stack.len()), (0, 1));
    assert_eq!(world.a.stack.stats().waits_now, 1);
    world.ab.cut = false;
    world.run(5 * SECOND);
    assert_eq!(world.b.stack.len(), 0);
    assert_eq!(world.a.stack.stats().resets_sent, 0);
}

#[test]
fn syn_in_time_wait_begins_a_flow_whatever_its_sequence_number() {
    for sequence in [0u32, 1 << 30, 1 << 31, 3 << 30, u32::MAX] {
        let mut world = World::new();
        let (flow, other) = world.open(ORIGIN4);
        let (local, remote) = world.a.stack.addresses(flow).expect("a living flow");
        world.b.stack.release(world.now, other);
        world.run(SECOND);
        world.a.stack.release(world.now, flow);
        world.run(SECOND);
        while world.b.stack.poll_event().is_some() {}
        assert_eq!(world.b.stack.stats().waits_now, 1);

        let (IpAddr::V4(source), IpAddr::V4(destination)) = (local.ip(), remote.ip()) else {
            panic!("the origin is one of IPv4");
        };
        let mut syn = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        syn.extend(source.octets());
        syn.extend(destination.octets());
        syn.extend(local.port().to_be_bytes());
        syn.extend(remote.port().to_be_bytes());
        syn.extend(sequence.to_be_bytes());
        syn.extend([0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        let sum: u32 = syn[..20]
            .chunks(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        syn[10..12].copy_from_slice(&sum.to_be_bytes());
        let offload = Offload {
            checksum: Checksum::Partial,
            ..Offload::default()
        };
        world
            .b
            .stack
            .handle_packet(world.now, &mut syn, offload)
            .expect("taken");
        let event = world.b.stack.poll_event();
        assert!(
            matches!(event, Some(Event::Incoming { local, .. }) if local == remote),
            "{sequence}: {event:?}"
        );
    }
}
