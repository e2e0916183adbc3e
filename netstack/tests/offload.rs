//! The rules for super-packets, one by one, and what the kernel is told about packets that keep them.

use std::net::SocketAddr;
use std::time::Instant;

use adit_netstack::{
    Accept, Checksum, Config, Gso, Offload, Packet, PacketError, PacketSink, Stack, VirtioFields,
    complete_checksum, verify_checksum, virtio_fields,
};

const TCP: Offload = Offload {
    gso: Gso::Tcp { size: 1300 },
    checksum: Checksum::Partial,
};

/// Builds a TCP or UDP packet with `payload` bytes of payload.
fn build(v6: bool, protocol: u8, payload: usize) -> Vec<u8> {
    let transport = if protocol == 6 { 20 } else { 8 };
    let header = if v6 { 40 } else { 20 };
    let len = header + transport + payload;
    let mut packet = vec![0x5a; len];
    if v6 {
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        packet[8..24].copy_from_slice(&[0xfd; 16]);
        packet[24..40].copy_from_slice(&[0x20; 16]);
    } else {
        packet[..20].copy_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        seal_v4(&mut packet);
    }
    let at = header;
    packet[at..at + transport].fill(0);
    packet[at + 1] = 80;
    packet[at + 3] = 90;
    if protocol == 6 {
        packet[at + 12] = 0x50;
        packet[at + 13] = 0x10;
    } else {
        packet[at + 4..at + 6].copy_from_slice(&((8 + payload) as u16).to_be_bytes());
    }
    packet
}

fn seal_v4(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let mut sum: u32 = packet[..header]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn check(packet: &[u8], offload: Offload) -> Result<(), PacketError> {
    Packet::parse(packet)
        .unwrap()
        .check_offload(packet, offload, 1400)
}

#[test]
fn honest_super_packets_are_accepted() {
    for v6 in [false, true] {
        for payload in [1, 1300, 1301, 60_000] {
            assert_eq!(check(&build(v6, 6, payload), TCP), Ok(()), "{payload}");
        }
        let udp = Offload {
            gso: Gso::Udp { size: 1200 },
            checksum: Checksum::Partial,
        };
        assert_eq!(check(&build(v6, 17, 12_345), udp), Ok(()));
    }
}

#[test]
fn ordinary_packets_end_at_the_mtu() {
    let plain = Offload::default();
    assert_eq!(check(&build(false, 6, 1360), plain), Ok(()));
    assert_eq!(
        check(&build(false, 6, 1361), plain),
        Err(PacketError::TooLong {
            len: 1401,
            mtu: 1400
        })
    );
    assert_eq!(check(&build(true, 6, 1340), plain), Ok(()));
    assert!(check(&build(true, 6, 1341), plain).is_err());
}

#[test]
fn segment_size_lies_between_one_and_the_mtu_less_headers() {
    for (v6, most) in [(false, 1360), (true, 1340)] {
        let large = build(v6, 6, 20_000);
        let small = build(v6, 6, 64);
        for (size, good) in [
            (0, false),
            (1, true),
            (488, true),
            (most, true),
            (most + 1, false),
            (65_535, false),
        ] {
            let offload = Offload {
                gso: Gso::Tcp { size },
                ..TCP
            };
            let packet = if size < 488 { &small } else { &large };
            let result = check(packet, offload);
            assert_eq!(result.is_ok(), good, "{size}: {result:?}");
        }
    }
}

#[test]
fn options_of_tcp_count_as_headers() {
    let mut packet = build(false, 6, 20_000);
    packet[32] = 0x80;
    let with = |size| Offload {
        gso: Gso::Tcp { size },
        ..TCP
    };
    assert_eq!(check(&packet, with(1348)), Ok(()));
    assert!(check(&packet, with(1349)).is_err());
}

#[test]
fn at_most_64_segments() {
    let with = |size| Offload {
        gso: Gso::Tcp { size },
        ..TCP
    };
    assert_eq!(check(&build(false, 6, 64 * 600), with(600)), Ok(()));
    assert_eq!(
        check(&build(false, 6, 64 * 600 + 1), with(600)),
        Err(PacketError::SegmentCount {
            segments: 65,
            max: 64
        })
    );
}

#[test]
fn super_packet_owes_its_checksum() {
    let full = Offload {
        checksum: Checksum::Full,
        ..TCP
    };
    assert_eq!(
        check(&build(false, 6, 20_000), full),
        Err(PacketError::SegmentChecksum)
    );
}

#[test]
fn flags_that_do_not_survive_cutting_are_refused() {
    for v6 in [false, true] {
        for bit in 0..8u8 {
            let mut packet = build(v6, 6, 20_000);
            let at = if v6 { 53 } else { 33 };
            packet[at] = 1 << bit;
            let good = matches!(1 << bit, 0x01 | 0x08 | 0x10 | 0x40 | 0x80);
            assert_eq!(check(&packet, TCP).is_ok(), good, "bit {bit}");
        }
    }
}

#[test]
fn data_offset_must_lie_in_the_packet() {
    let mut packet = build(false, 6, 20);
    for offset in 0..16u8 {
        packet[32] = offset << 4;
        let good = (5..=10).contains(&offset);
        assert_eq!(check(&packet, TCP).is_ok(), good, "offset {offset}");
    }
}

#[test]
fn protocol_must_be_the_one_claimed() {
    let udp = Offload {
        gso: Gso::Udp { size: 1200 },
        checksum: Checksum::Partial,
    };
    assert!(check(&build(false, 6, 20_000), udp).is_err());
    assert!(check(&build(false, 17, 20_000), TCP).is_err());
    let mut icmp = build(false, 6, 100);
    icmp[9] = 1;
    seal_v4(&mut icmp);
    let partial = Offload {
        gso: Gso::None,
        checksum: Checksum::Partial,
    };
    assert!(check(&icmp, partial).is_err());
    assert!(check(&icmp, TCP).is_err());
}

#[test]
fn length_of_udp_must_be_that_of_the_packet() {
    let udp = Offload {
        gso: Gso::Udp { size: 1200 },
        checksum: Checksum::Partial,
    };
    let mut packet = build(false, 17, 5000);
    packet[25] ^= 1;
    assert!(check(&packet, udp).is_err());
}

#[test]
fn fragments_and_extension_headers_get_no_offload() {
    let mut fragment = build(false, 6, 20_004);
    fragment[6] = 0x20;
    seal_v4(&mut fragment);
    assert_eq!(
        check(&fragment, TCP),
        Err(PacketError::OffloadShape { protocol: 6 })
    );
    let mut options = build(false, 6, 20_000);
    options[0] = 0x46;
    seal_v4(&mut options);
    assert_eq!(
        check(&options, TCP),
        Err(PacketError::OffloadShape { protocol: 6 })
    );
    // An IPv6 packet with a destination-options header in front of TCP.
    let mut extended = build(true, 6, 20_000);
    extended[6] = 60;
    let header = [6, 0, 1, 4, 0, 0, 0, 0];
    extended.splice(40..40, header);
    let len = (extended.len() - 40) as u16;
    extended[4..6].copy_from_slice(&len.to_be_bytes());
    assert_eq!(Packet::parse(&extended).unwrap().ports, Some((80, 90)));
    assert_eq!(
        check(&extended, TCP),
        Err(PacketError::OffloadShape { protocol: 6 })
    );
    let partial = Offload {
        gso: Gso::None,
        checksum: Checksum::Partial,
    };
    assert!(check(&extended[..], partial).is_err());
}

#[test]
fn kernel_is_told_what_the_packet_says() {
    let cases = [
        (false, 6, TCP.gso, 1, 40, 20, 16),
        (true, 6, TCP.gso, 4, 60, 40, 16),
        (false, 17, Gso::Udp { size: 1200 }, 5, 28, 20, 6),
        (true, 17, Gso::Udp { size: 1200 }, 5, 48, 40, 6),
    ];
    for (v6, protocol, gso, gso_type, hdr_len, csum_start, csum_offset) in cases {
        let mut packet = build(v6, protocol, 30_000);
        let parsed = Packet::parse(&packet).unwrap();
        let offload = Offload {
            gso,
            checksum: Checksum::Partial,
        };
        let gso_size = if protocol == 6 { 1300 } else { 1200 };
        let expected = VirtioFields {
            flags: 1,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        };
        assert_eq!(virtio_fields(&mut packet, &parsed, offload), Ok(expected));
        // What is in the field is the pseudo-header's sum: completing it as a device does gives the right checksum.
        let start = usize::from(csum_start);
        let mut sum: u32 = packet[start..]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
            .fold(0, |sum, word| {
                let sum = sum + word;
                (sum & 0xffff) + (sum >> 16)
            });
        sum = (sum & 0xffff) + (sum >> 16);
        let field = start + usize::from(csum_offset);
        packet[field..field + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        assert_eq!(verify_checksum(&packet), Ok(()));
        let completed = packet.clone();
        complete_checksum(&mut packet).unwrap();
        assert_eq!(packet, completed);
    }
}

#[test]
fn super_packet_of_one_segment_is_an_ordinary_packet_to_the_kernel() {
    let mut packet = build(false, 6, 1300);
    let parsed = Packet::parse(&packet).unwrap();
    let fields = virtio_fields(&mut packet, &parsed, TCP).unwrap();
    assert_eq!((fields.flags, fields.gso_type, fields.gso_size), (1, 0, 0));
}

#[test]
fn complete_packets_need_nothing_of_the_kernel() {
    let mut packet = build(false, 6, 100);
    complete_checksum(&mut packet).unwrap();
    let before = packet.clone();
    let parsed = Packet::parse(&packet).unwrap();
    let fields = virtio_fields(&mut packet, &parsed, Offload::default());
    assert_eq!((fields, packet), (Ok(VirtioFields::default()), before));
}

struct Check {
    room: Vec<u8>,
    count: usize,
    /// The sequence number after the last segment (over IPv6 and without options).
    end: u32,
}

impl PacketSink for Check {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.get_mut(..len)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        let packet = Packet::parse(&self.room[..len]).unwrap();
        packet
            .check_offload(&self.room[..len], offload, 1280)
            .unwrap();
        self.count += 1;
        let sequence = self.room[44..48].try_into().unwrap();
        self.end = u32::from_be_bytes(sequence).wrapping_add((len - 60) as u32);
    }
}

#[test]
fn own_packets_keep_the_rules_whatever_segment_size_the_peer_names() {
    for mss in [
        None,
        Some(0u16),
        Some(1),
        Some(48),
        Some(535),
        Some(536),
        Some(700),
        Some(1023),
        Some(1240),
        Some(9000),
    ] {
        let now = Instant::now();
        let mut stack = Stack::new(
            Config {
                mtu: 1280,
                addresses: vec!["fd86::1".parse().unwrap()],
                accept: Accept::Any,
                ..Config::default()
            },
            1,
        );
        // A SYN by hand, with or without the option.
        let mut syn = build(true, 6, 0);
        syn[53] = 0x02;
        syn[54..56].copy_from_slice(&[0xff, 0xff]);
        if let Some(mss) = mss {
            syn[52] = 0x60;
            syn.extend([2, 4]);
            syn.extend(mss.to_be_bytes());
            syn[5] += 4;
        }
        let partial = Offload {
            gso: Gso::None,
            checksum: Checksum::Partial,
        };
        stack.handle_packet(now, &mut syn, partial).unwrap();
        let Some(adit_netstack::Event::Incoming { flow, remote, .. }) = stack.poll_event() else {
            panic!("no flow");
        };
        assert_eq!(
            remote,
            SocketAddr::new(
                "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd".parse().unwrap(),
                80
            )
        );
        stack.accept(now, flow);
        let mut sink = Check {
            room: vec![0; 65_536],
            count: 0,
            end: 0,
        };
        stack.poll_transmit(now, &mut sink);
        assert_eq!(sink.count, 1);
        // Our SYN-ACK names what the inner MTU gives.
        assert_eq!(sink.room[60..64], [2, 4, 0x04, 0xc4]);
        let mut ack = build(true, 6, 0);
        let sequence = sink.room[44..48].try_into().unwrap();
        sink.end = u32::from_be_bytes(sequence).wrapping_add(1);
        for _ in 0..40 {
            ack[44..48].copy_from_slice(&1u32.to_be_bytes());
            ack[48..52].copy_from_slice(&sink.end.to_be_bytes());
            ack[54..56].copy_from_slice(&[0xff, 0xff]);
            let _ = stack.handle_packet(now, &mut ack.clone(), partial);
            let _ = stack.send(now, flow, |room| (room.len(), ()));
            stack.poll_transmit(now, &mut sink);
        }
        assert!(sink.count > 40, "{} packets with {mss:?}", sink.count);
    }
}
