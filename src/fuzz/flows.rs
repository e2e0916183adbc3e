//! Flows of packets from a peer that may number, order and shape them as it likes: joined, queued and held.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use adit_netstack::{Checksum, Cut, Gso, Join, Offload, Packet, protocol};

use super::input::Input;
use crate::proto::{
    FairQueue, Hold, HoldLimits, Offer, Producer, QueueLimits, QueuePacket, hold_time,
};

/// Joins the packets of a script, cuts what comes out, and compares the streams.
///
/// A packet is `shape (1) ‖ port (1) ‖ sequence (1) ‖ length (2)`; shape 0xff ends a batch.
///
/// # Panics
///
/// A byte or a packet is lost, made or moved within its flow.
pub fn netstack_join(data: &[u8]) {
    let mut input = Input::new(data);
    let mut join = Join::new(HEADROOM);
    let mut sent = BTreeMap::<_, Vec<Vec<u8>>>::new();
    let mut came = BTreeMap::<_, Vec<Vec<u8>>>::new();
    let mut sink = |frame: &mut [u8], range: std::ops::Range<usize>, offload| {
        let bytes = &frame[range];
        let packet = Packet::parse(bytes).expect("what is joined parses");
        let checked = packet.check_offload(bytes, offload, u16::MAX);
        assert_eq!(checked, Ok(()));
        for mut piece in cut(bytes, offload) {
            // Nobody looks at the identification of what must not be fragmented.
            piece[4..6].fill(0);
            seal(&mut piece);
            came.entry(flow(&piece)).or_default().push(piece);
        }
    };
    while !input.is_empty() {
        let shape = input.byte();
        if shape == 0xff {
            join.flush(&mut sink);
            continue;
        }
        let mut packet = script_packet(&mut input, shape);
        sent.entry(flow(&packet)).or_default().push(packet.clone());
        let range = 0..packet.len();
        join.push(&mut packet, range, PARTIAL, &mut sink);
    }
    join.flush(&mut sink);
    assert!(join.is_empty());
    assert!(sent == came);
}

/// Puts the packets of a script into a fair queue and takes them out, whole and in pieces.
///
/// A step is `0 ‖ segments (1) ‖ packet`, `1 ‖ mtu (2)` to send, `2` to take whole, `3 ‖ milliseconds (2)`.
///
/// # Panics
///
/// A bound is exceeded, a queue that is not empty has nothing to send, or more comes out than went in.
pub fn proto_queue(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = QueueLimits {
        bytes: 100_000,
        packets: 40,
        memory: 200_000,
        ..QueueLimits::default()
    };
    let mut queue = FairQueue::new(1, limits);
    let mut now = Instant::now();
    let mut out = vec![0; usize::from(u16::MAX)];
    let (mut added, mut sent) = (0u64, 0u64);
    while !input.is_empty() {
        match input.byte() % 4 {
            0 => {
                let (segments, shape) = (u16::from(input.byte() % 64), input.byte());
                let bytes = script_packet(&mut input, shape);
                let Ok(packet) = Packet::parse(&bytes) else {
                    continue;
                };
                let size = (bytes.len() as u16 / segments.max(1)).max(1);
                let gso = match packet.protocol {
                    protocol::TCP if segments > 0 => Gso::Tcp { size },
                    protocol::UDP if segments > 0 => Gso::Udp { size },
                    _ => Gso::None,
                };
                let offload = Offload { gso, ..PARTIAL };
                if packet.check_offload(&bytes, offload, u16::MAX).is_err() {
                    continue;
                }
                added += (bytes.len() - packet.header_len) as u64;
                let producer = if shape & 1 == 0 {
                    Producer::Other
                } else {
                    Producer::Stack
                };
                queue.enqueue(now, Waiting(bytes, offload), producer);
            }
            1 => {
                let mtu = usize::from(input.number()).max(576);
                let packet = queue.poll(now, mtu, &mut out);
                // Whatever CoDel drops, it stops when nothing more than a wire packet waits.
                assert!(packet.is_some() || queue.is_empty());
                if let Some(packet) = packet {
                    Packet::parse(&out[..packet.len]).expect("what is sent parses");
                    assert_eq!(packet.offload.gso, Gso::None);
                    sent += u64::from(packet.len > 0);
                }
            }
            2 => {
                if let Some(taken) = queue.take(now) {
                    assert!(!taken.cut.is_done());
                    sent += 1;
                }
            }
            _ => now += Duration::from_millis(input.number().into()),
        }
        assert!(queue.len_bytes() <= limits.bytes);
    }
    while queue.poll(now, 1_400, &mut out).is_some() {
        sent += 1;
    }
    assert!(queue.is_empty());
    assert_eq!(queue.len_bytes(), 0);
    assert!(sent <= added.max(1));
}

/// Offers the packets of a script to a hold.
///
/// A step is `milliseconds (1) ‖ source number (2) ‖ shape (1) ‖ packet`; at shape 0xff nothing is waited
/// for any more, or again.
///
/// # Panics
///
/// A packet comes out never, twice, changed or late, or a bound is exceeded.
pub fn proto_hold(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = HoldLimits {
        bytes: 20_000,
        packets: 20,
    };
    let mut hold = Hold::new(1, HEADROOM, limits);
    let wait = hold_time(Duration::from_millis(50), Duration::from_millis(10));
    hold.set_wait(wait);
    let mut waits = true;
    let mut now = Instant::now();
    let mut waiting = Vec::<(Vec<u8>, Instant)>::new();
    while !input.is_empty() {
        let until = now + Duration::from_millis(input.byte().into());
        let number = input.number();
        let shape = input.byte();
        while let Some(due) = hold.poll_timeout().filter(|due| *due <= until) {
            now = due.max(now);
            hold.handle_timeout(now);
            fetch(&mut hold, now - wait, &mut waiting);
        }
        now = until;
        if shape == 0xff {
            waits = !waits;
            hold.set_wait(if waits { wait } else { Duration::ZERO });
        } else {
            let packet = script_packet(&mut input, shape);
            if hold.offer(now, number.into(), &packet, PARTIAL) == Offer::Held {
                waiting.push((packet, now));
            }
        }
        fetch(&mut hold, now - wait, &mut waiting);
        assert!(hold.len_bytes() <= limits.bytes);
        assert!(waiting.len() <= limits.packets);
    }
    hold.handle_timeout(now + wait);
    fetch(&mut hold, now, &mut waiting);
    assert!(waiting.is_empty() && hold.is_empty());
}

/// Takes out what is ready; what is left has come after `oldest`.
fn fetch(hold: &mut Hold, oldest: Instant, waiting: &mut Vec<(Vec<u8>, Instant)>) {
    while let Some(delivery) = hold.poll_deliver() {
        let bytes = &delivery.frame[delivery.range];
        let at = waiting.iter().position(|(packet, _)| packet == bytes);
        waiting.remove(at.expect("what comes out was held"));
    }
    assert!(waiting.iter().all(|(_, since)| *since > oldest));
}

/// A packet in a queue.
struct Waiting(Vec<u8>, Offload);

impl QueuePacket for Waiting {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn offload(&self) -> Offload {
        self.1
    }
}

fn cut(bytes: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let packet = Packet::parse(bytes).expect("it was parsed before");
    let mut cut = Cut::new(&packet, bytes, offload);
    let mut out = vec![0; bytes.len()];
    let mut pieces = Vec::new();
    while let Some((len, _)) = cut.next(bytes, bytes.len(), &mut out) {
        pieces.push(out[..len].to_vec());
    }
    assert!(cut.is_done());
    pieces
}

/// The protocol and port that tell a script's flows apart.
fn flow(packet: &[u8]) -> [u8; 2] {
    [packet[9], packet[21]]
}

/// Builds an IPv4 packet from `port (1) ‖ sequence (1) ‖ length (2)`; `shape` is 0 to 3 for what it is, and its other
/// bits are flags.
fn script_packet(input: &mut Input<'_>, shape: u8) -> Vec<u8> {
    let (port, sequence) = (input.byte(), u32::from(input.byte()));
    let payload = usize::from(input.number() % 3_000);
    let (protocol, transport) = match shape & 3 {
        0 => (protocol::UDP, 8),
        _ => (protocol::TCP, 20),
    };
    let len = 20 + transport + payload;
    let mut packet = vec![0; len];
    packet[0] = 0x45;
    packet[1] = shape >> 6;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6] = DONT_FRAGMENT;
    packet[8..20].copy_from_slice(&[64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet[21] = port;
    if protocol == protocol::UDP {
        packet[24..26].copy_from_slice(&(8 + payload as u16).to_be_bytes());
    } else {
        packet[24..28].copy_from_slice(&(sequence * 500).to_be_bytes());
        packet[32] = 0x50;
        // ACK always; PSH, FIN and SYN or RST of some.
        packet[33] = match shape & 3 {
            1 => 0x10,
            2 => 0x10 | shape >> 2 & 0x0c,
            _ => 0x10 | shape >> 2 & 0x0b,
        };
    }
    seal(&mut packet);
    packet
}

/// Makes the checksum of an IPv4 header right.
fn seal(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let words = packet[..20].chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

const HEADROOM: usize = 10;
/// The flag in the upper byte of an IPv4 header's flags.
const DONT_FRAGMENT: u8 = 0x40;
const PARTIAL: Offload = Offload {
    gso: Gso::None,
    checksum: Checksum::Partial,
};
