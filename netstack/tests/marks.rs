//! Explicit congestion notification (RFC 3168 §6.1), against a peer made by hand.

mod world;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use adit_netstack::{Checksum, Event, FlowId, Gso, Offload, PacketSink};
use world::{A4, A6, ORIGIN4, ORIGIN6, Side, client_config};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
/// The field in the IP header (RFC 3168 §5).
const CAPABLE: u8 = 0b10;
const MARKED: u8 = 0b11;

/// Keeps packets.
#[derive(Default)]
struct Sink {
    room: Vec<u8>,
    packets: Vec<Vec<u8>>,
}

impl PacketSink for Sink {
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.resize(len, 0);
        Some(&mut self.room)
    }

    fn commit(&mut self, len: usize, offload: Offload) {
        assert_eq!(offload.gso, Gso::None);
        self.packets.push(self.room[..len].to_vec());
    }
}

/// A stack, and a peer that speaks TCP by hand.
struct Scene {
    side: Side,
    now: Instant,
    origin: IpAddr,
    own: IpAddr,
    /// The stack's port, and what it will send next.
    port: u16,
    ack: u32,
    /// What the peer sends next.
    sequence: u32,
}

/// The fields of a TCP header that count here.
#[derive(Debug)]
struct Heard {
    ports: (u16, u16),
    sequence: u32,
    flags: u8,
}

impl Scene {
    fn new(v6: bool) -> Scene {
        let (own, origin) = if v6 { (A6, ORIGIN6) } else { (A4, ORIGIN4) };
        Scene {
            side: Side::new(client_config(), 1),
            now: Instant::now(),
            origin: origin.parse().unwrap(),
            own: own.parse().unwrap(),
            port: 0,
            ack: 0,
            sequence: 7_000,
        }
    }

    /// Takes what the stack sends.
    fn hear(&mut self) -> Vec<Heard> {
        self.side.stack.handle_timeout(self.now);
        self.side.events(self.now);
        let mut sink = Sink::default();
        self.side.stack.poll_transmit(self.now, &mut sink);
        let header = if self.own.is_ipv4() { 20 } else { 40 };
        let heard = |packet: Vec<u8>| {
            let traffic_class = if header == 20 {
                packet[1]
            } else {
                packet[0] << 4 | packet[1] >> 4
            };
            assert_eq!(traffic_class & 0b11, 0, "what we send cannot be marked");
            let tcp = &packet[header..];
            Heard {
                ports: (
                    u16::from_be_bytes([tcp[0], tcp[1]]),
                    u16::from_be_bytes([tcp[2], tcp[3]]),
                ),
                sequence: u32::from_be_bytes(tcp[4..8].try_into().unwrap()),
                flags: tcp[13],
            }
        };
        sink.packets.into_iter().map(heard).collect()
    }

    /// The flags of the only packet that the stack sends.
    fn heard_flags(&mut self) -> u8 {
        let heard = self.hear();
        let [heard] = heard.as_slice() else {
            panic!("one packet and not {heard:?}");
        };
        heard.flags
    }

    /// Lets time pass until the stack sends a packet by itself, and gives its flags.
    fn later_flags(&mut self) -> u8 {
        for _ in 0..10 {
            self.now = self.side.stack.poll_timeout().unwrap();
            match self.hear().as_slice() {
                [] => {}
                [heard] => return heard.flags,
                heard => panic!("one packet and not {heard:?}"),
            }
        }
        panic!("nothing is sent again");
    }

    /// Sends a segment to the stack.
    fn say(&mut self, flags: u8, ecn: u8, payload: usize) {
        let len = 20 + payload;
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut packet = match self.own {
            IpAddr::V4(_) => {
                let mut header = vec![0x45, ecn, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0];
                header[2..4].copy_from_slice(&(20 + len as u16).to_be_bytes());
                header
            }
            IpAddr::V6(_) => {
                let mut header = vec![0x60, ecn << 4, 0, 0, 0, 0, 6, 64];
                header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
                header
            }
        };
        packet.extend(octets(self.origin));
        packet.extend(octets(self.own));
        packet.extend(443_u16.to_be_bytes());
        packet.extend(self.port.to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.ack.to_be_bytes());
        packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(vec![7; payload]);
        if self.own.is_ipv4() {
            seal(&mut packet);
        }
        self.sequence += payload as u32 + u32::from(flags & (SYN | FIN) != 0);
        let offload = Offload {
            gso: Gso::None,
            checksum: Checksum::Partial,
        };
        self.side.handle(self.now, &mut packet, offload);
        assert!(self.side.dropped.is_empty(), "{:?}", self.side.dropped);
    }

    /// Has the stack connect; gives the flags of its SYN.
    fn connect(&mut self) -> (FlowId, u8) {
        let flow = self.side.stack.connect(self.now, (self.origin, 443).into());
        let heard = self.hear();
        self.port = heard[0].ports.0;
        self.ack = heard[0].sequence.wrapping_add(1);
        (flow.unwrap(), heard[0].flags)
    }

    /// Connects with a peer whose answer has these flags.
    fn connected(v6: bool, answer: u8) -> Scene {
        let mut scene = Scene::new(v6);
        let (flow, _) = scene.connect();
        scene.say(answer, 0, 0);
        scene.hear();
        assert!(scene.side.is_established(flow));
        scene
    }

    /// Sends enough to be answered at once, and gives the flags of the answer.
    fn answered(&mut self, flags: u8, ecn: u8) -> u8 {
        self.say(ACK | flags, ecn, 1_000);
        self.now += Duration::from_millis(10);
        self.heard_flags()
    }
}

/// Makes the checksum of an IPv4 header right.
fn seal(packet: &mut [u8]) {
    let words = packet[..20].chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[test]
fn the_first_syn_offers_marks_and_those_that_follow_do_not() {
    for v6 in [false, true] {
        let mut scene = Scene::new(v6);
        assert_eq!(scene.connect().1, SYN | ECE | CWR);
        for _ in 0..2 {
            assert_eq!(scene.later_flags(), SYN);
        }
    }
}

#[test]
fn a_mark_is_echoed_until_the_peer_says_that_it_sends_less() {
    for v6 in [false, true] {
        let mut scene = Scene::connected(v6, SYN | ACK | ECE);
        assert_eq!(scene.answered(0, CAPABLE) & (ECE | CWR), 0);
        assert_eq!(scene.answered(0, MARKED), ACK | ECE);
        assert_eq!(scene.answered(0, CAPABLE), ACK | ECE);
        assert_eq!(scene.answered(CWR, CAPABLE), ACK);
        assert_eq!(scene.answered(0, CAPABLE), ACK);
        // It may meet the next congestion on its way.
        assert_eq!(scene.answered(CWR, MARKED), ACK | ECE);
    }
}

#[test]
fn what_lies_outside_of_the_window_neither_marks_nor_takes_back_a_mark() {
    for v6 in [false, true] {
        let mut scene = Scene::connected(v6, SYN | ACK | ECE);
        scene.answered(0, CAPABLE);
        let next = scene.sequence;
        // All of it came before, up to the last byte; or it begins where the window ends, or far from there.
        let outside = |scene: &mut Scene, flags: u8, ecn: u8| {
            for sequence in [next - 1_000, next + (64 << 10), next + (1 << 30)] {
                scene.sequence = sequence;
                scene.say(ACK | flags, ecn, 1_000);
                scene.now += Duration::from_secs(2);
                scene.hear();
            }
            scene.sequence = next;
        };
        outside(&mut scene, 0, MARKED);
        assert_eq!(scene.answered(0, CAPABLE), ACK);
        let next = scene.sequence;
        assert_eq!(scene.answered(0, MARKED), ACK | ECE);
        outside(&mut scene, CWR, CAPABLE);
        scene.sequence = next + 1_000;
        assert_eq!(scene.answered(0, CAPABLE), ACK | ECE);
        // What reaches into the window from before it counts.
        scene.sequence -= 1;
        assert_eq!(scene.answered(CWR, CAPABLE), ACK);
        scene.sequence -= 1;
        assert_eq!(scene.answered(0, MARKED), ACK | ECE);
    }
}

#[test]
fn nothing_is_echoed_to_a_peer_that_has_not_agreed() {
    for answer in [SYN | ACK, SYN | ACK | ECE | CWR] {
        let mut scene = Scene::connected(false, answer);
        assert_eq!(scene.answered(0, MARKED), ACK);
    }
}

#[test]
fn windows_that_open_echo_marks_too() {
    let mut scene = Scene::connected(false, SYN | ACK | ECE);
    let Some(Event::Established { flow }) = scene.side.events.last().cloned() else {
        panic!("{:?}", scene.side.events);
    };
    for _ in 0..40 {
        scene.say(ACK, MARKED, 1_300);
    }
    scene.hear();
    let mut read = 0;
    while read < 40 * 1_300 {
        let count = scene
            .side
            .stack
            .recv(scene.now, flow, |bytes| (bytes.len(), bytes.len()));
        read += count.unwrap();
    }
    assert_eq!(scene.heard_flags(), ACK | ECE);
}

#[test]
fn a_peer_that_offers_marks_is_answered_once() {
    let mut scene = Scene::new(false);
    assert!(scene.side.stack.listen(8_080));
    scene.port = 8_080;
    scene.say(SYN | ECE | CWR, 0, 0);
    assert_eq!(scene.heard_flags(), SYN | ACK | ECE);
    assert_eq!(scene.later_flags(), SYN | ACK);

    let mut scene = Scene::new(false);
    assert!(scene.side.stack.listen(8_080));
    scene.port = 8_080;
    scene.say(SYN, 0, 0);
    assert_eq!(scene.heard_flags(), SYN | ACK);
}
