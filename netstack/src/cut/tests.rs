use proptest::prelude::*;

use super::*;
use crate::checksum::complete_checksum;
use crate::craft::{Craft, pattern};

/// Cuts a packet to its end.
fn cut(bytes: &[u8], offload: Offload, mtu: usize) -> Vec<(Vec<u8>, Offload)> {
    let packet = Packet::parse(bytes).unwrap();
    packet.check_offload(bytes, offload, 9_000).unwrap();
    let mut cut = Cut::new(&packet, bytes, offload);
    let mut out = vec![0xee; 70_000];
    let mut pieces = Vec::new();
    let mut left = cut.remaining();
    loop {
        let expected = cut.next_len(mtu);
        let Some((len, offload)) = cut.next(bytes, mtu, &mut out) else {
            break;
        };
        assert!(len <= expected, "{len} of {expected}");
        assert!(cut.remaining() < left);
        left = cut.remaining();
        pieces.push((out[..len].to_vec(), offload));
    }
    assert!(cut.is_done() && cut.next_len(mtu) == 0 && cut.remaining() == 0);
    pieces
}

const PARTIAL: Offload = Offload {
    gso: Gso::None,
    checksum: Checksum::Partial,
};

fn tcp(size: u16) -> Offload {
    Offload {
        gso: Gso::Tcp { size },
        checksum: Checksum::Partial,
    }
}

fn udp(size: u16) -> Offload {
    Offload {
        gso: Gso::Udp { size },
        checksum: Checksum::Partial,
    }
}

#[test]
fn a_tcp_super_packet_becomes_the_segments_its_sender_would_have_made() {
    for v6 in [false, true] {
        let whole = Craft {
            v6,
            sequence: u32::MAX - 1_000,
            flags: CWR | PSH | FIN | 0x10,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            ident: u16::MAX,
            payload: pattern(3_000),
            ..Craft::default()
        };
        let pieces = cut(&whole.build(), tcp(1_300), 1_400);
        let expected: Vec<_> = [
            (0..1_300, CWR | 0x10),
            (1_300..2_600, 0x10),
            (2_600..3_000, PSH | FIN | 0x10),
        ]
        .into_iter()
        .enumerate()
        .map(|(n, (range, flags))| Craft {
            sequence: whole.sequence.wrapping_add(range.start as u32),
            ident: whole.ident.wrapping_add(n as u16),
            flags,
            payload: whole.payload[range].to_vec(),
            ..whole.clone()
        })
        .map(|piece| (piece.build(), PARTIAL))
        .collect();
        assert_eq!(pieces, expected, "ipv6: {v6}");
    }
}

#[test]
fn datagrams_of_a_udp_super_packet_keep_their_boundaries_even_above_the_mtu() {
    for v6 in [false, true] {
        let whole = Craft {
            v6,
            protocol: protocol::UDP,
            payload: pattern(2_500),
            ..Craft::default()
        };
        for mtu in [1_400, 600] {
            let pieces = cut(&whole.build(), udp(1_200), mtu);
            let expected: Vec<_> = [0..1_200, 1_200..2_400, 2_400..2_500]
                .into_iter()
                .enumerate()
                .map(|(n, range)| Craft {
                    ident: whole.ident + n as u16,
                    payload: whole.payload[range].to_vec(),
                    ..whole.clone()
                })
                .map(|piece| (piece.build(), PARTIAL))
                .collect();
            assert_eq!(pieces, expected, "ipv6: {v6}");
        }
    }
}

#[test]
fn ordinary_packets_pass_as_they_are() {
    for (protocol, payload) in [(protocol::TCP, 0), (protocol::TCP, 900), (17, 0), (17, 900)] {
        let packet = Craft {
            protocol,
            payload: pattern(payload),
            ..Craft::default()
        }
        .build();
        for offload in [PARTIAL, Offload::default()] {
            assert_eq!(
                cut(&packet, offload, 1_000),
                [(packet.clone(), offload)],
                "{protocol} {payload}"
            );
        }
    }
}

#[test]
fn an_ordinary_tcp_packet_is_cut_where_the_lane_fits_less() {
    let whole = Craft {
        flags: PSH | 0x10,
        payload: pattern(1_300),
        ..Craft::default()
    };
    let mut full = whole.build();
    complete_checksum(&mut full).unwrap();
    let expected: Vec<_> = [(0..960, 0x10), (960..1_300, PSH | 0x10)]
        .into_iter()
        .enumerate()
        .map(|(n, (range, flags))| Craft {
            sequence: whole.sequence + range.start as u32,
            ident: whole.ident + n as u16,
            flags,
            payload: whole.payload[range].to_vec(),
            ..whole.clone()
        })
        .map(|piece| (piece.build(), PARTIAL))
        .collect();
    assert_eq!(cut(&whole.build(), PARTIAL, 1_000), expected);
    assert_eq!(cut(&full, Offload::default(), 1_000), expected);
}

#[test]
fn a_wrong_checksum_is_not_made_right_by_cutting() {
    let packet = Craft {
        payload: pattern(1_300),
        ..Craft::default()
    };
    let mut packet = packet.build();
    complete_checksum(&mut packet).unwrap();
    packet[700] ^= 1;
    let offload = Offload::default();
    assert_eq!(cut(&packet, offload, 1_000), [(packet.clone(), offload)]);
}

#[test]
fn what_cannot_be_cut_comes_out_whole_above_the_mtu() {
    for (protocol, flags) in [(17, 0), (protocol::TCP, SYN), (6, RST), (6, URG | 0x10)] {
        let packet = Craft {
            protocol,
            flags,
            payload: pattern(1_300),
            ..Craft::default()
        }
        .build();
        assert_eq!(
            cut(&packet, PARTIAL, 1_000),
            [(packet.clone(), PARTIAL)],
            "{protocol} {flags:#x}"
        );
    }
}

#[test]
fn a_super_packet_of_headers_alone_is_one_piece() {
    for (protocol, offload) in [(protocol::TCP, tcp(1_000)), (protocol::UDP, udp(1_000))] {
        let packet = Craft {
            protocol,
            ..Craft::default()
        }
        .build();
        assert_eq!(cut(&packet, offload, 1_400), [(packet, PARTIAL)]);
    }
}

#[test]
fn memory_that_is_too_short_loses_nothing() {
    let whole = Craft {
        payload: pattern(2_000),
        ..Craft::default()
    };
    let bytes = whole.build();
    let packet = Packet::parse(&bytes).unwrap();
    let mut cut = Cut::new(&packet, &bytes, tcp(1_000));
    let mut out = [0; 1_500];
    assert_eq!(cut.next(&bytes, 1_400, &mut out[..1_039]), None);
    assert!(!cut.is_done() && !cut.is_started());
    assert_eq!(cut.next(&bytes, 1_400, &mut out), Some((1_040, PARTIAL)));
    assert!(cut.is_started());
    assert_eq!(cut.skip(&bytes, 1_400), Some(1_040));
    assert!(cut.is_done());
    assert_eq!(cut.skip(&bytes, 1_400), None);
}

#[test]
fn bytes_of_another_packet_are_refused_and_nothing_panics() {
    let bytes = Craft {
        payload: pattern(2_000),
        ..Craft::default()
    }
    .build();
    let packet = Packet::parse(&bytes).unwrap();
    let mut out = [0; 1_500];
    let mut cut = Cut::new(&packet, &bytes, tcp(1_000));
    assert_eq!(cut.next(&bytes[..30], 1_400, &mut out), None);
    assert_eq!(cut.next(&[], 1_400, &mut out), None);
}

fn crafts() -> impl Strategy<Value = Craft> {
    (
        any::<(bool, bool, u32, u16, u8)>(),
        prop_oneof![Just(0usize), Just(4), Just(12), Just(40)],
        1usize..20_000,
    )
        .prop_map(
            |((v6, tcp, sequence, ident, bits), options, payload)| Craft {
                v6,
                protocol: if tcp { protocol::TCP } else { protocol::UDP },
                sequence,
                ident,
                tos: bits,
                flags: 0x10 | bits & (CWR | PSH | FIN | 0x40),
                options: vec![1; options],
                payload: pattern(payload),
                ..Craft::default()
            },
        )
}

proptest! {
    /// Against the obvious way: chunk the payload and build each packet from nothing.
    #[test]
    fn pieces_equal_packets_built_one_by_one(
        whole in crafts(),
        size in 320u16..8_900,
        mtu in 320usize..9_000,
    ) {
        let is_tcp = whole.protocol == protocol::TCP;
        let headers = if whole.v6 { 40 } else { 20 } + if is_tcp { 20 + whole.options.len() } else { 8 };
        let most = if is_tcp { usize::from(size).min(mtu - headers) } else { size.into() };
        let offload = if is_tcp { tcp(size) } else { udp(size) };
        let chunks: Vec<_> = whole.payload.chunks(most).collect();
        let expected: Vec<_> = chunks.iter().enumerate().map(|(n, chunk)| {
            let mut flags = whole.flags;
            if n > 0 {
                flags &= !CWR;
            }
            if n + 1 < chunks.len() {
                flags &= !(PSH | FIN);
            }
            Craft {
                sequence: whole.sequence.wrapping_add((n * most) as u32),
                ident: whole.ident.wrapping_add(n as u16),
                flags,
                payload: chunk.to_vec(),
                ..whole.clone()
            }
        }).map(|piece| (piece.build(), PARTIAL)).collect();
        let pieces = cut(&whole.build(), offload, mtu);
        for (piece, _) in &pieces {
            let mut piece = piece.clone();
            complete_checksum(&mut piece).unwrap();
            verify_checksum(&piece).unwrap();
        }
        prop_assert_eq!(pieces, expected);
    }

    /// Every piece may go to a lane of another size; the stream stays what it was.
    #[test]
    fn the_stream_survives_any_change_of_lane(
        v6 in any::<bool>(),
        payload in 1usize..30_000,
        mtus in proptest::collection::vec(300usize..2_000, 1..8),
    ) {
        let whole = Craft { v6, payload: pattern(payload), ..Craft::default() };
        let bytes = whole.build();
        let packet = Packet::parse(&bytes).unwrap();
        let mut cut = Cut::new(&packet, &bytes, tcp(1_300));
        let mut out = [0; 2_000];
        let headers = if v6 { 60 } else { 40 };
        let mut stream = Vec::new();
        for mtu in mtus.iter().copied().cycle() {
            let Some((len, _)) = cut.next(&bytes, mtu, &mut out) else { break };
            prop_assert!(len <= mtu);
            Packet::parse(&out[..len]).unwrap();
            let at = headers - 16;
            let sequence = u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
            prop_assert_eq!(sequence, whole.sequence + stream.len() as u32);
            stream.extend_from_slice(&out[headers..len]);
        }
        prop_assert_eq!(stream, whole.payload);
    }

    #[test]
    fn hostile_packets_and_claims_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 20..200),
        head in any::<[u8; 4]>(),
        size in any::<u16>(),
        kind in 0u8..3,
        mtu in 0usize..300,
    ) {
        let mut bytes = bytes;
        bytes[0] = if head[0] & 1 == 0 { 0x45 } else { 0x60 };
        if bytes[0] == 0x45 {
            let len = bytes.len() as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = if head[1] & 1 == 0 { 6 } else { 17 };
            rewrite_v4_checksum(&mut bytes);
        } else if bytes.len() >= 40 {
            let len = bytes.len() as u16 - 40;
            bytes[4..6].copy_from_slice(&len.to_be_bytes());
            bytes[6] = if head[1] & 1 == 0 { 6 } else { 17 };
        }
        let gso = match kind { 0 => Gso::None, 1 => Gso::Tcp { size }, _ => Gso::Udp { size } };
        let offload = Offload { gso, checksum: Checksum::Partial };
        if let Ok(packet) = Packet::parse(&bytes) {
            let mut cut = Cut::new(&packet, &bytes, offload);
            let mut out = [0; 300];
            let mut turns = 0;
            while !cut.is_done() {
                if cut.next(&bytes, mtu, &mut out).is_none() {
                    cut.skip(&bytes, mtu);
                }
                turns += 1;
                prop_assert!(turns <= 201);
            }
        }
    }
}
