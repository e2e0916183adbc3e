use proptest::prelude::*;

use super::*;
use crate::checksum::complete_checksum;
use crate::craft::{Craft, pattern};
use crate::cut::Cut;

const PARTIAL: Offload = Offload {
    gso: Gso::None,
    checksum: Checksum::Partial,
};
/// Room for a device's header.
const HEADROOM: usize = 10;

type Change = fn(&mut Craft);
type Packets = Vec<(Vec<u8>, Offload)>;

/// Pushes one packet in a frame with a margin of its own; returns what came out.
fn push(join: &mut Join, packet: &[u8], offload: Offload) -> Packets {
    let mut frame = vec![0xee; 3];
    frame.extend_from_slice(packet);
    frame.extend([0xdd; 5]);
    let mut out = Vec::new();
    join.push(
        &mut frame,
        3..3 + packet.len(),
        offload,
        &mut |frame, range, offload| {
            assert!(range.start == 3 || range.start == HEADROOM);
            out.push((frame[range].to_vec(), offload));
        },
    );
    out
}

fn flush(join: &mut Join) -> Packets {
    let mut out = Vec::new();
    join.flush(&mut |frame, range, offload| {
        assert_eq!(range.start, HEADROOM);
        out.push((frame[range].to_vec(), offload));
    });
    assert!(join.is_empty());
    out
}

/// Joins one batch.
fn join(packets: &[Craft]) -> Packets {
    let mut join = Join::new(HEADROOM);
    let mut out = Vec::new();
    for packet in packets {
        out.extend(push(&mut join, &packet.build(), PARTIAL));
    }
    out.extend(flush(&mut join));
    out
}

/// Makes consecutive segments of one flow.
fn segments(first: &Craft, sizes: &[usize]) -> Vec<Craft> {
    let mut sequence = first.sequence;
    let mut made = Vec::new();
    for (n, size) in sizes.iter().enumerate() {
        let payload = pattern(*size);
        made.push(Craft {
            sequence,
            ident: first.ident.wrapping_add(n as u16),
            payload,
            ..first.clone()
        });
        sequence = sequence.wrapping_add(*size as u32);
    }
    made
}

fn lens(packets: &Packets) -> Vec<usize> {
    packets.iter().map(|(bytes, _)| bytes.len() - 40).collect()
}

#[test]
fn consecutive_segments_become_one_super_packet() {
    for v6 in [false, true] {
        let first = Craft {
            v6,
            sequence: u32::MAX - 1_500,
            flags: 0x10 | CWR,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            ..Craft::default()
        };
        let mut packets = segments(&first, &[1_000, 1_000, 400]);
        for packet in &mut packets[1..] {
            packet.flags = 0x10;
        }
        packets[2].flags |= PSH;
        let mut payload = pattern(1_000);
        payload.extend(pattern(1_000));
        payload.extend(pattern(400));
        let whole = Craft {
            flags: 0x10 | CWR | PSH,
            payload,
            ..first
        };
        let offload = Offload {
            gso: Gso::Tcp { size: 1_000 },
            checksum: Checksum::Partial,
        };
        assert_eq!(join(&packets), [(whole.build(), offload)], "ipv6: {v6}");
    }
}

#[test]
fn a_lone_packet_comes_out_as_it_went_in() {
    let mut packet = Craft {
        payload: pattern(700),
        ..Craft::default()
    }
    .build();
    complete_checksum(&mut packet).unwrap();
    let mut join = Join::new(HEADROOM);
    assert!(push(&mut join, &packet, Offload::default()).is_empty());
    assert!(!join.is_empty());
    assert_eq!(flush(&mut join), [(packet, Offload::default())]);
}

#[test]
fn complete_checksums_are_verified_before_joining() {
    let mut packets: Vec<_> = segments(&Craft::default(), &[900, 900, 900])
        .iter()
        .map(Craft::build)
        .collect();
    for packet in &mut packets {
        complete_checksum(packet).unwrap();
    }
    packets[1][300] ^= 1;
    let mut join = Join::new(HEADROOM);
    let mut out = Vec::new();
    for packet in &packets {
        out.extend(push(&mut join, packet, Offload::default()));
    }
    out.extend(flush(&mut join));
    let expected: Vec<_> = packets
        .into_iter()
        .map(|packet| (packet, Offload::default()))
        .collect();
    assert_eq!(out, expected);
}

#[test]
fn push_and_a_short_segment_end_a_super_packet() {
    let mut packets = segments(&Craft::default(), &[500; 6]);
    packets[1].flags |= PSH;
    assert_eq!(lens(&join(&packets)), [1_000, 2_000]);
    let packets = segments(&Craft::default(), &[500, 500, 499, 499, 500]);
    assert_eq!(lens(&join(&packets)), [1_499, 499, 500]);
}

#[test]
fn a_segment_with_push_and_none_before_it_does_not_wait_for_the_flush() {
    let packet = Craft {
        flags: 0x10 | PSH,
        payload: pattern(500),
        ..Craft::default()
    };
    let mut join = Join::new(HEADROOM);
    assert_eq!(push(&mut join, &packet.build(), PARTIAL).len(), 1);
    assert!(join.is_empty());
}

#[test]
fn a_super_packet_has_at_most_64_segments_and_max_joined_bytes() {
    let packets = segments(&Craft::default(), &[100; 130]);
    assert_eq!(lens(&join(&packets)), [6_400, 6_400, 200]);
    let packets = segments(&Craft::default(), &[1_360; 50]);
    let out = join(&packets);
    assert_eq!(lens(&out), [48 * 1_360, 2 * 1_360]);
    assert!(out[0].0.len() <= MAX_JOINED && out[0].0.len() + 1_360 > MAX_JOINED);
}

#[test]
fn whatever_differs_begins_a_new_super_packet() {
    let changes: [(&str, Change); 12] = [
        ("sequence", |packet| packet.sequence += 1),
        ("ack", |packet| packet.ack += 1),
        ("window", |packet| packet.window += 1),
        ("options", |packet| packet.options[5] ^= 1),
        ("options' length", |packet| packet.options = vec![1; 8]),
        ("ece", |packet| packet.flags |= ECE),
        ("cwr", |packet| packet.flags |= CWR),
        ("mark", |packet| packet.tos |= 3),
        ("ttl", |packet| packet.ttl -= 1),
        ("identification", |packet| packet.ident += 1),
        ("df", |packet| packet.dont_fragment = true),
        ("longer", |packet| packet.payload.push(1)),
    ];
    for (what, change) in changes {
        for v6 in [false, true] {
            if v6 && matches!(what, "identification" | "df") {
                continue;
            }
            let first = Craft {
                v6,
                dont_fragment: false,
                options: vec![1; 12],
                ..Craft::default()
            };
            let mut packets = segments(&first, &[600, 600]);
            assert_eq!(join(&packets).len(), 1);
            change(&mut packets[1]);
            let out: Vec<_> = join(&packets).into_iter().map(|(bytes, _)| bytes).collect();
            let expected: Vec<_> = packets.iter().map(Craft::build).collect();
            assert_eq!(out, expected, "{what}, ipv6: {v6}");
        }
    }
}

#[test]
fn control_segments_and_bare_acknowledgements_pass_behind_what_came_before() {
    for flags in [0x11, 0x12, 0x14, 0x30, 0x18] {
        let mut packets = segments(&Craft::default(), &[800, 800, 800]);
        packets[2].flags = flags;
        if flags == 0x18 {
            packets[2].payload.clear();
        }
        let out = join(&packets);
        assert_eq!(out.len(), 2, "{flags:#x}");
        assert_eq!(out[1], (packets[2].build(), PARTIAL), "{flags:#x}");
    }
}

#[test]
fn super_packets_that_come_in_pass_in_order() {
    let packets = segments(&Craft::default(), &[800, 2_000, 800]);
    let offload = Offload {
        gso: Gso::Tcp { size: 800 },
        checksum: Checksum::Partial,
    };
    let mut join = Join::new(HEADROOM);
    assert!(push(&mut join, &packets[0].build(), PARTIAL).is_empty());
    let out = push(&mut join, &packets[1].build(), offload);
    assert_eq!(lens(&out), [800, 2_000]);
    assert_eq!(out[1].1, offload);
    assert!(push(&mut join, &packets[2].build(), PARTIAL).is_empty());
}

#[test]
fn fragments_pass_behind_everything() {
    // All but the last fragment carry a multiple of eight bytes, TCP header included.
    let packets = segments(&Craft::default(), &[804, 804]);
    let mut fragment = packets[1].build();
    fragment[6] = 0x20;
    rewrite_v4_checksum(&mut fragment);
    let mut join = Join::new(HEADROOM);
    assert!(push(&mut join, &packets[0].build(), PARTIAL).is_empty());
    let out = push(&mut join, &fragment, Offload::default());
    assert_eq!(lens(&out), [804, 804]);
    assert!(join.is_empty());
}

#[test]
fn datagrams_overtake_what_is_being_joined() {
    let mut join = Join::new(HEADROOM);
    let packet = Craft {
        payload: pattern(800),
        ..Craft::default()
    };
    let datagram = Craft {
        protocol: protocol::UDP,
        payload: pattern(80),
        ..Craft::default()
    }
    .build();
    assert!(push(&mut join, &packet.build(), PARTIAL).is_empty());
    assert_eq!(push(&mut join, &datagram, PARTIAL), [(datagram, PARTIAL)]);
    assert!(push(&mut join, &[1, 2, 3], PARTIAL).len() == 1);
}

#[test]
fn the_ninth_flow_takes_the_slot_of_the_oldest() {
    let mut join = Join::new(HEADROOM);
    let packet = |port| Craft {
        ports: (port, 1),
        payload: pattern(100),
        ..Craft::default()
    };
    for port in 0..SLOTS as u16 {
        assert!(push(&mut join, &packet(port).build(), PARTIAL).is_empty());
    }
    let out = push(&mut join, &packet(99).build(), PARTIAL);
    assert_eq!(out, [(packet(0).build(), PARTIAL)]);
    let ports: Vec<_> = flush(&mut join)
        .iter()
        .map(|(bytes, _)| u16::from_be_bytes([bytes[20], bytes[21]]))
        .collect();
    assert_eq!(ports, [1, 2, 3, 4, 5, 6, 7, 99]);
}

#[test]
fn counters_and_memory_follow_what_is_joined() {
    let mut join = Join::new(HEADROOM);
    for packet in segments(&Craft::default(), &[800, 800, 800]) {
        push(&mut join, &packet.build(), PARTIAL);
    }
    let taken = join.slots[0].frame.capacity();
    join.release_memory();
    assert_eq!(join.slots[0].frame.capacity(), taken, "it is in use");
    flush(&mut join);
    let expected = JoinStats {
        packets: 3,
        joined: 3,
        super_packets: 1,
    };
    assert_eq!(join.stats(), expected);
    join.release_memory();
    assert_eq!(join.slots[0].frame.capacity(), 0);
}

/// Cuts what a join gave, as a stack would see it on the wire.
fn cut(bytes: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let packet = Packet::parse(bytes).unwrap();
    packet.check_offload(bytes, offload, 1_400).unwrap();
    let mut cut = Cut::new(&packet, bytes, offload);
    let mut out = [0; 1_500];
    let mut pieces = Vec::new();
    while let Some((len, _)) = cut.next(bytes, 1_400, &mut out) {
        pieces.push(out[..len].to_vec());
    }
    pieces
}

/// Takes away what a join does not keep: the identification of packets that must not be fragmented.
fn plain(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes[0] == 0x45 && bytes[6] & DONT_FRAGMENT != 0 {
        bytes[4..6].fill(0);
        rewrite_v4_checksum(&mut bytes);
    }
    bytes
}

/// What happens to the flow of a packet: mostly that its stream goes on.
#[derive(Clone, Debug)]
struct Move {
    flow: usize,
    payload: usize,
    kind: u8,
    batch_ends: bool,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = (
        prop_oneof![4 => 0usize..2, 1 => 2usize..12],
        prop_oneof![8 => Just(1_000usize), 1 => 0usize..1_340],
        prop_oneof![20 => Just(0u8), 10 => 1u8..14],
        proptest::bool::weighted(0.02),
    );
    proptest::collection::vec(
        one.prop_map(|(flow, payload, kind, batch_ends)| Move {
            flow,
            payload,
            kind,
            batch_ends,
        }),
        1..400,
    )
}

proptest! {
    #[test]
    fn what_comes_out_cut_again_is_what_went_in(moves in moves()) {
        let mut join = Join::new(HEADROOM);
        let mut flows: Vec<Craft> = (0..12u16)
            .map(|n| Craft {
                v6: n % 3 == 1,
                dont_fragment: n % 2 == 0,
                ports: (n, 1),
                sequence: u32::MAX - 5_000,
                ..Craft::default()
            })
            .collect();
        let mut sent = vec![Vec::new(); flows.len()];
        let mut got = vec![Vec::new(); flows.len()];
        let mut out = Vec::new();
        for step in moves {
            let flow = &mut flows[step.flow];
            match step.kind {
                1 => flow.sequence = flow.sequence.wrapping_sub(1_000),
                2 => flow.sequence = flow.sequence.wrapping_add(1_000),
                3 => flow.ack += 1,
                4 => flow.window ^= 1,
                5 => flow.tos ^= 2,
                6 => flow.ttl ^= 1,
                7 => flow.ident = flow.ident.wrapping_add(9),
                8 => flow.options = vec![1; (flow.options.len() + 4) % 40],
                _ => {}
            }
            let flags = match step.kind {
                9 => PSH,
                10 => CWR,
                11 => ECE,
                12 => 1,
                13 => PSH | CWR,
                _ => 0,
            };
            let room = 1_340 - flow.options.len();
            let packet = Craft {
                flags: ACK | flags,
                payload: pattern(step.payload.min(room)),
                ..flow.clone()
            };
            flow.sequence = flow.sequence.wrapping_add(packet.payload.len() as u32);
            flow.ident = flow.ident.wrapping_add(1);
            let bytes = packet.build();
            sent[step.flow].push(plain(bytes.clone()));
            out.extend(push(&mut join, &bytes, PARTIAL));
            if step.batch_ends {
                out.extend(flush(&mut join));
            }
        }
        out.extend(flush(&mut join));
        for (bytes, offload) in out {
            prop_assert!(bytes.len() <= MAX_JOINED);
            let at = if bytes[0] >> 4 == 6 { 40 } else { 20 };
            let flow = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            got[flow].extend(cut(&bytes, offload).into_iter().map(plain));
        }
        prop_assert_eq!(got, sent);
    }
}
