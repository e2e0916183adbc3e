//! Whatever the network sends, nothing panics, nothing grows without bound, and honest flows go on.

mod world;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit_netstack::{
    Checksum, Config, Event, Gso, Offload, Packet, PacketSink, Stack, complete_checksum, too_big,
    unreachable, verify_checksum, virtio_fields,
};
use proptest::prelude::*;
use world::{ORIGIN4, ORIGIN6, Side, World, client_config, exchange, network_config};

fn offload() -> impl Strategy<Value = Offload> {
    let gso = prop_oneof![
        Just(Gso::None),
        any::<u16>().prop_map(|size| Gso::Tcp { size }),
        any::<u16>().prop_map(|size| Gso::Udp { size }),
        (500..1500u16).prop_map(|size| Gso::Tcp { size }),
    ];
    let checksum = prop_oneof![Just(Checksum::Full), Just(Checksum::Partial)];
    (gso, checksum).prop_map(|(gso, checksum)| Offload { gso, checksum })
}

/// Makes the fixed parts of headers right often enough that parsing goes deep.
fn repaired(mut bytes: Vec<u8>, version: u8, protocol: u8) -> Vec<u8> {
    let len = bytes.len() as u16;
    if version == 4 && bytes.len() >= 20 {
        bytes[0] = 0x40 | (5 + bytes[0] % 4);
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes[9] = protocol;
        bytes[10..12].fill(0);
        let header = usize::from(bytes[0] & 0x0f) * 4;
        if bytes.len() >= header {
            let mut sum: u32 = bytes[..header]
                .chunks(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
                .sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            bytes[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
    } else if version == 6 && bytes.len() >= 40 {
        bytes[0] = 0x60;
        bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        bytes[6] = protocol;
    }
    bytes
}

fn packet() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop_oneof![
        Just(1),
        Just(6),
        Just(17),
        Just(58),
        Just(44),
        Just(0),
        Just(43),
        Just(60),
        any::<u8>()
    ];
    (
        proptest::collection::vec(any::<u8>(), 0..200),
        3..8u8,
        protocol,
    )
        .prop_map(|(bytes, version, protocol)| repaired(bytes, version, protocol))
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in packet(), offload in offload(), mtu in any::<u16>()) {
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert!(packet.header_len <= bytes.len());
            let accepted = packet.check_offload(&bytes, offload, mtu).is_ok();
            let mut copy = bytes.clone();
            let fields = virtio_fields(&mut copy, &packet, offload);
            if accepted {
                let fields = fields.unwrap();
                prop_assert!(usize::from(fields.csum_start + fields.csum_offset) <= bytes.len());
                prop_assert!(usize::from(fields.hdr_len) <= bytes.len());
            }
            let mut copy = bytes.clone();
            if complete_checksum(&mut copy).is_ok() {
                prop_assert_eq!(verify_checksum(&copy), Ok(()));
            }
            let mut out = Vec::new();
            if unreachable(&bytes, packet.destination, adit_netstack::Unreachable::Port, &mut out) {
                prop_assert_eq!(verify_checksum(&out), Ok(()));
            }
            if too_big(&bytes, packet.destination, mtu, &mut out) {
                prop_assert_eq!(verify_checksum(&out), Ok(()));
            }
        }
    }

    #[test]
    fn any_packets_are_handled(
        packets in proptest::collection::vec((packet(), offload()), 1..40),
        any_destination in any::<bool>(),
    ) {
        let config = if any_destination { network_config() } else { client_config() };
        let mut side = Side::new(Config { incoming: true, ..config }, 1);
        let mut now = Instant::now();
        let mut sink = Hole(vec![0; 65_536]);
        for (mut bytes, offload) in packets {
            side.handle(now, &mut bytes, offload);
            side.events(now);
            side.stack.poll_transmit(now, &mut sink);
            now += Duration::from_millis(300);
            side.stack.handle_timeout(now);
        }
        prop_assert_eq!(side.stack.stats().internal_failures, 0);
    }

    /// An insider who sees every packet rewrites headers at will, so that sequence numbers, windows, flags, lengths
    /// and options of living flows are wrong in every way.
    #[test]
    fn flows_withstand_rewritten_segments(
        seed in any::<u64>(),
        v6 in any::<bool>(),
        super_packets in any::<bool>(),
    ) {
        tamper(seed, v6, super_packets)?;
    }
}

struct Hole(Vec<u8>);

impl PacketSink for Hole {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.0.get_mut(..len)
    }

    fn commit(&mut self, _len: usize, _offload: Offload) {}
}

fn tamper(seed: u64, v6: bool, super_packets: bool) -> Result<(), TestCaseError> {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    let mut rng = StdRng::seed_from_u64(seed);
    let small = |config: Config| Config {
        super_packets,
        receive_ring: 65_536,
        send_ring: 65_536,
        incoming: true,
        ..config
    };
    let mut world = World::with(small(client_config()), small(network_config()));
    let remote = SocketAddr::new(if v6 { ORIGIN6 } else { ORIGIN4 }.parse().unwrap(), 80);
    let mut flows = vec![world.a.stack.connect(world.now, remote).unwrap()];
    for round in 0..150 {
        if round % 10 == 9 && round < 140 {
            flows.extend(world.a.stack.connect(world.now, remote));
        }
        world.drain();
        for event in std::mem::take(&mut world.b.events) {
            if let Event::Incoming { flow, .. } = event {
                flows.push(flow);
            }
        }
        // Both stacks may hold flows of the same index: ids are tried on both.
        for flow in flows.clone() {
            for stack in [&mut world.a.stack, &mut world.b.stack] {
                match rng.random_range(0..40) {
                    0 => stack.finish(world.now, flow),
                    1 if round > 100 => stack.abort(world.now, flow),
                    2 if round > 100 => stack.release(world.now, flow),
                    3..=20 => {
                        let count = rng.random_range(0..30_000);
                        let _ = stack.send(world.now, flow, |room| (room.len().min(count), ()));
                    }
                    _ => {
                        let count = rng.random_range(0..70_000);
                        let _ = stack.recv(world.now, flow, |bytes| (bytes.len().min(count), ()));
                    }
                }
            }
        }
        world.drain();
        let later = world.now + Duration::from_millis(10);
        for up in [true, false] {
            let (link, side) = if up {
                (&mut world.ab, &mut world.b)
            } else {
                (&mut world.ba, &mut world.a)
            };
            while let Some((packet, offload)) = link.pop(later) {
                for _ in 0..1 + rng.random_range(0..10) / 9 {
                    let mut copy = packet.clone();
                    let tcp = if v6 { 40 } else { 20 };
                    if rng.random_bool(0.2) {
                        for _ in 0..rng.random_range(1..4) {
                            match rng.random_range(0..8) {
                                // Near misses of sequence, acknowledgement and window reach furthest.
                                0 => nudge(
                                    &mut copy[tcp + 4..tcp + 8],
                                    rng.random_range(-70_000..70_000),
                                ),
                                1 => nudge(
                                    &mut copy[tcp + 8..tcp + 12],
                                    rng.random_range(-70_000..70_000),
                                ),
                                2 => copy[tcp + 13] ^= 1 << rng.random_range(0..8),
                                3 => copy[tcp + 14..tcp + 16]
                                    .copy_from_slice(&rng.random::<u16>().to_be_bytes()),
                                4 => copy[tcp + 14..tcp + 16].fill(0),
                                5 => nudge(&mut copy[tcp + 4..tcp + 8], rng.random()),
                                6 => {
                                    let at = rng.random_range(tcp..copy.len());
                                    copy[at] = rng.random();
                                }
                                _ => copy[tcp + 13] = rng.random(),
                            }
                        }
                    }
                    if round < 100 {
                        // A reset ends the flow, and with it what can be found.
                        copy[tcp + 13] &= !0x04;
                    }
                    side.handle(world.now, &mut copy, offload);
                }
            }
        }
        world.now += Duration::from_millis(rng.random_range(0..400));
    }
    let (a, b) = (world.a.stack.stats(), world.b.stack.stats());
    prop_assert_eq!(
        (a.internal_failures, b.internal_failures),
        (0, 0),
        "seed {}",
        seed
    );
    Ok(())
}

fn nudge(field: &mut [u8], by: i32) {
    let value = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&value.wrapping_add_signed(by).to_be_bytes());
}

#[test]
fn syn_flood_is_bounded_and_honest_flows_go_on() {
    let mut world = World::with(
        client_config(),
        Config {
            max_half_open: 100,
            ..network_config()
        },
    );
    let (flow, other) = world.open(ORIGIN4);
    world.b.accept = false;
    let mut attacker = Stack::new(
        Config {
            addresses: vec!["10.86.0.66".parse().unwrap()],
            ..client_config()
        },
        9,
    );
    for port in 1..1000u16 {
        let now = world.now;
        let remote = SocketAddr::new(ORIGIN4.parse().unwrap(), port);
        attacker.connect(now, remote).unwrap();
        let mut take = Take::default();
        attacker.poll_transmit(now, &mut take);
        for (mut packet, offload) in take.packets {
            world.b.handle(now, &mut packet, offload);
        }
    }
    let stats = world.b.stack.stats();
    assert_eq!(
        (stats.half_open_now, stats.dropped.half_open_full),
        (100, 899)
    );
    world.b.events.clear();
    exchange(&mut world, flow, other, 1 << 20, Duration::from_secs(20));
}

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

#[test]
fn stack_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Stack>();
}

/// A seed that once made smoltcp accept more than its ring holds: a probe had been sent after the SYN.
#[test]
fn window_of_the_syn_is_not_taken_for_a_scaled_one_after_a_probe() {
    tamper(15_576_412_915_465_895_343, false, false).unwrap();
}
