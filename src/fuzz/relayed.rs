//! Flows that are relayed without a netstack: two tables, the lanes between them, and a peer without manners.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::input::Input;
use crate::proto::Role;
use crate::proto::budget::{Budget, Share};
use crate::proto::relayed::{Pieces, Relayed, RelayedEvent, RelayedKey};
use crate::wire::{FlowFrame, InnerType, LaneId, MAX_FLOW_HEAD};

/// Plays `what (1) ‖ …`, over and over, between the tables of a client and a server.
///
/// # Panics
///
/// A bound is broken; or, as long as both ends are honest, bytes come out other than they went in, or an end finds fault
/// with the other.
pub fn relayed(data: &[u8]) {
    let mut now = Instant::now();
    let mut ends = [End::new(Role::Initiator), End::new(Role::Responder)];
    let mut lane = 0;
    let mut honest = true;
    for end in &mut ends {
        end.table.set_lane(LaneId(lane));
    }
    let mut input = Input::new(data);
    while !input.is_empty() {
        let what = input.byte();
        let (at, other) = (usize::from(what & 1), usize::from(!what & 1));
        let most = usize::from(input.byte());
        match (what >> 1) & 7 {
            0 => ends[0].connect(now),
            1 => ends[at].write(now, most * 1000),
            2 => {
                ends[at].say(most);
                let frames: Vec<_> = ends[at].sent.drain(..).collect();
                for frame in frames {
                    ends[other].handle(now, &frame, honest);
                }
            }
            3 => {
                honest = false;
                ends[at].handle(now, input.piece(), honest);
            }
            4 => ends[at].read(now, most * 1000, honest),
            5 => {
                // What was on its way on the old lane is lost.
                lane += 1;
                for end in &mut ends {
                    end.say(most);
                    end.sent.clear();
                    end.table.set_lane(LaneId(lane));
                }
            }
            6 => {
                now += Duration::from_millis(most as u64 * 100);
                for end in &mut ends {
                    end.table.handle_timeout(now);
                }
            }
            _ => ends[at].end(most),
        }
        for end in &mut ends {
            end.settle();
            assert!(end.table.len() <= FLOWS);
            assert!(end.table.held() <= 2 * MEMORY);
            assert!(!honest || end.table.stats().violations == 0);
            assert!(!honest || end.table.stats().gaps == 0);
        }
    }
}

struct End {
    table: Relayed,
    flows: Vec<RelayedKey>,
    /// How many bytes went in and came out.
    counts: HashMap<RelayedKey, (u64, u64)>,
    sent: VecDeque<Vec<u8>>,
}

impl End {
    fn new(role: Role) -> Self {
        Self {
            table: Relayed::new(role, FLOWS, Share::new(Budget::new(4 * MEMORY), MEMORY)),
            flows: Vec::new(),
            counts: HashMap::new(),
            sent: VecDeque::new(),
        }
    }

    fn connect(&mut self, now: Instant) {
        let destination = "192.0.2.1:80".parse().expect("an address");
        self.flows.extend(self.table.connect(now, destination));
    }

    fn say(&mut self, most: usize) {
        let sent = &mut self.sent;
        let mut left = most;
        self.table.poll_transmit(|head, bytes| {
            let said = left > 0;
            if said {
                left -= 1;
                sent.push_back([head, bytes].concat());
            }
            said
        });
    }

    /// Takes half of what comes at once.
    fn handle(&mut self, now: Instant, bytes: &[u8], honest: bool) {
        let Some((&kind, body)) = bytes.split_first() else {
            return;
        };
        let Some(kind) = InnerType::from_byte(kind) else {
            return;
        };
        let Ok((frame, rest)) = FlowFrame::parse(kind, body) else {
            assert!(!honest, "an honest frame was not read");
            return;
        };
        let mut head = [0; MAX_FLOW_HEAD];
        let len = frame.write(&mut head);
        assert_eq!([&head[..len], rest].concat(), bytes);
        let counts = &mut self.counts;
        // In pieces, as if several frames had brought it.
        let (front, back) = rest.split_at(rest.len() / 3);
        (self.table).handle_frame(now, &frame, Pieces::new(&[front, back]), |flow, bytes| {
            let mut left = bytes.len().div_ceil(2);
            let taken = left;
            for piece in bytes.iter() {
                let len = piece.len().min(left);
                check(counts, flow, &piece[..len], honest);
                left -= len;
            }
            taken
        });
    }

    fn write(&mut self, now: Instant, most: usize) {
        for flow in &self.flows {
            let written = &mut self.counts.entry(*flow).or_default().0;
            let _ = self.table.send(now, *flow, |room| {
                let len = room.len().min(most);
                for byte in &mut room[..len] {
                    *byte = pattern(*written);
                    *written += 1;
                }
                (len, ())
            });
        }
    }

    fn read(&mut self, now: Instant, most: usize, honest: bool) {
        for flow in &self.flows {
            let counts = &mut self.counts;
            let _ = self.table.recv(now, *flow, |bytes| {
                let len = bytes.len().min(most);
                check(counts, *flow, &bytes[..len], honest);
                (len, ())
            });
        }
    }

    /// Ends one of the flows, in one of the ways there are.
    fn end(&mut self, which: usize) {
        let Some(&flow) = self.flows.get(which / 4 % FLOWS) else {
            return;
        };
        match which % 4 {
            0 | 1 => self.table.finish(flow),
            2 => self.table.abort(flow),
            _ => {
                self.table.release(flow);
                self.flows.retain(|known| *known != flow);
            }
        }
    }

    fn settle(&mut self) {
        while let Some(event) = self.table.poll_event() {
            match event {
                RelayedEvent::Incoming { flow, .. } => {
                    if self.table.is_asked(flow) {
                        self.table.accept(flow);
                        self.flows.push(flow);
                    }
                }
                RelayedEvent::Established { .. } | RelayedEvent::Progress { .. } => {}
                RelayedEvent::Closed { flow, .. } => {
                    self.table.release(flow);
                    self.flows.retain(|known| *known != flow);
                }
            }
        }
    }
}

fn check(
    counts: &mut HashMap<RelayedKey, (u64, u64)>,
    flow: RelayedKey,
    bytes: &[u8],
    honest: bool,
) {
    let read = &mut counts.entry(flow).or_default().1;
    for byte in bytes {
        assert!(!honest || *byte == pattern(*read), "at {read}");
        *read += 1;
    }
}

/// The byte at an offset of any flow.
const fn pattern(offset: u64) -> u8 {
    (offset * 31 + offset / 251) as u8
}

/// Flows of each table.
const FLOWS: usize = 4;

/// What they may hold: so little that it runs short.
const MEMORY: usize = 1 << 20;
