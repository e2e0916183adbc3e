//! Messages over one and over several TCP lanes: the program's own choice of lanes, over TCP as Linux speaks it.
//!
//! Each lane is a connection of its own over the one link; a message is a packet, framed and written to the lanes that
//! [`Spread`] chooses, and has come when the first of them has brought its last byte. The far end sends it back alike.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use adit::{
    proto::spread::{LaneView, Spread},
    wire::{LaneId, PACKET_HEADROOM, TAILROOM},
};

use super::{
    ControlKind, Percentiles, Side, TcpSettings,
    measure::Samples,
    packet::{Inner, Message, Segment, Transport},
    tcp::Connection,
};
use crate::link::{Emulator, Link};

/// What a message takes: 200 bytes, and an IP packet around them.
const PAYLOAD: usize = 200;
const APART: Duration = Duration::from_millis(20);
/// A record of TLS around a frame.
const RECORD: usize = 22;
/// Ethernet, IP and TCP with timestamps.
const HEADERS: usize = 66;

/// One end of all lanes.
struct End {
    side: Side,
    spread: Spread,
    lanes: Vec<Lane>,
    /// Messages that have come.
    came: Vec<bool>,
}

struct Lane {
    connection: Connection,
    written: u64,
    /// Where in what the far end wrote its frames end, and which messages they are.
    expected: VecDeque<(u64, u64)>,
    read: u64,
}

struct Bench {
    now: Instant,
    ends: [End; 2],
    links: [Emulator<(usize, Segment)>; 2],
}

impl Bench {
    fn new(lanes: usize, link: &Link, seed: u64) -> Self {
        let now = Instant::now();
        let settings = TcpSettings {
            control: ControlKind::Cubic,
            mtu: 1_500,
            super_packets: false,
        };
        let end = |side: Side| End {
            side,
            spread: Spread::new(now, seed),
            lanes: (0..lanes as u64)
                .map(|lane| Lane {
                    connection: match side {
                        Side::Client => Connection::connect(now, now, settings, seed ^ lane << 8),
                        Side::Server => Connection::listen(now, now, settings, seed ^ lane << 9),
                    },
                    written: 0,
                    expected: VecDeque::new(),
                    read: 0,
                })
                .collect(),
            came: Vec::new(),
        };
        let emulator = |path, seed| Emulator::new(path, seed).unwrap();
        Self {
            now,
            ends: [end(Side::Client), end(Side::Server)],
            links: [
                emulator(link.up, seed.wrapping_mul(2)),
                emulator(link.down, seed.wrapping_mul(2) + 1),
            ],
        }
    }

    /// Writes a message to the lanes that it is to take.
    fn send(&mut self, from: Side, number: u64) {
        let now = self.now;
        let end = &mut self.ends[from.index()];
        let packet = Inner {
            flow: 1,
            from: end.side,
            ident: number as u16,
            transport: Transport::Udp(Message {
                number,
                payload: PAYLOAD,
            }),
        }
        .write();
        let views: Vec<LaneView> = (0..end.lanes.len())
            .map(|lane| LaneView {
                id: LaneId(lane as u32),
                queued: 0,
                taken: end.lanes[lane].written,
            })
            .collect();
        end.spread.handle_lanes(now, views.into_iter());
        let offered = end.spread.room(now, packet.len()).unwrap();
        let choice = end.spread.choose(now, offered, &packet);
        let frame = PACKET_HEADROOM + packet.len() + TAILROOM + RECORD;
        for lane in choice.lanes() {
            self.ends[from.index()]
                .spread
                .handle_given(now, *lane, frame, 0);
            let at = lane.0 as usize;
            let sender = &mut self.ends[from.index()].lanes[at];
            sender.connection.write(frame as u64);
            sender.written += frame as u64;
            let written = sender.written;
            self.ends[from.other().index()].lanes[at]
                .expected
                .push_back((written, number));
        }
    }

    /// Moves what can move now; returns the messages that came for the first time, and where.
    fn turn(&mut self) -> Vec<(Side, u64)> {
        let now = self.now;
        let mut news = Vec::new();
        for side in [Side::Client, Side::Server] {
            while let Some(delivery) = self.links[side.other().index()].poll_delivery(now) {
                let (at, segment) = delivery.packet;
                let end = &mut self.ends[side.index()];
                let lane = &mut end.lanes[at];
                lane.read += lane.connection.handle_segment(now, &segment);
                while let Some((_, number)) =
                    lane.expected.pop_front_if(|(until, _)| *until <= lane.read)
                {
                    let at = number as usize;
                    if end.came.len() <= at {
                        end.came.resize(at + 1, false);
                    }
                    if !std::mem::replace(&mut end.came[at], true) {
                        news.push((side, number));
                    }
                }
            }
        }
        news
    }

    fn flush(&mut self) {
        let now = self.now;
        for side in [Side::Client, Side::Server] {
            for (at, lane) in self.ends[side.index()].lanes.iter_mut().enumerate() {
                lane.connection.handle_timeout(now);
                while let Some(outgoing) = lane.connection.poll_transmit(now) {
                    let len = HEADERS + outgoing.segment.payload;
                    self.links[side.index()].send(now, len, false, (at, outgoing.segment));
                }
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let links = self.links.iter().filter_map(Emulator::poll_timeout);
        let lanes = self.ends.iter().flat_map(|end| &end.lanes);
        let due = lanes.filter_map(|lane| lane.connection.poll_timeout());
        links.chain(due).min()
    }
}

/// How long messages take one way and there and back, after two seconds for the handshakes.
fn measure(lanes: usize, link: &Link, seed: u64, count: u64) -> [Percentiles; 2] {
    let mut bench = Bench::new(lanes, link, seed);
    let start = bench.now + Duration::from_secs(2);
    let end = start + APART * count as u32 + Duration::from_secs(30);
    let sent_at = |number: u64| start + APART * number as u32;
    let mut number = 0;
    let mut samples = [Samples::default(), Samples::default()];
    bench.flush();
    loop {
        let message = (number < count).then(|| sent_at(number));
        let Some(next) = bench.next().into_iter().chain(message).min() else {
            break;
        };
        if next > end {
            break;
        }
        bench.now = bench.now.max(next);
        if message.is_some_and(|at| at <= bench.now) {
            bench.send(Side::Client, number);
            number += 1;
        }
        for (side, came) in bench.turn() {
            let took = bench.now.saturating_duration_since(sent_at(came));
            match side {
                Side::Server => {
                    samples[0].push(took);
                    bench.send(Side::Server, came);
                }
                Side::Client => samples[1].push(took),
            }
        }
        bench.flush();
    }
    samples.map(Samples::percentiles)
}

#[test]
fn three_lanes_halve_the_99th_percentile_of_messages_at_2_percent_loss() {
    let link: Link = "loss=2,delay=25,rate=20".parse().unwrap();
    for seed in 1..=5 {
        let [one, two, three] = [1, 2, 3].map(|lanes| measure(lanes, &link, seed, 3_000));
        for (what, at) in [("one way", 0), ("there and back", 1)] {
            println!(
                "seed {seed}, {what}: p50/p99/max of one lane {}, of two {}, of three {}",
                one[at], two[at], three[at]
            );
            assert_eq!((one[at].count, three[at].count), (3_000, 3_000));
            assert!(three[at].p99 * 2 <= one[at].p99, "seed {seed}, {what}");
        }
    }
}
