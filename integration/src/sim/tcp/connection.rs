//! A connection: the handshake, and both halves with real sequence numbers, options and timestamps around them.

use std::time::{Duration, Instant};

use super::{
    control::ControlKind,
    receiver::Receiver,
    sender::{Acknowledgement, Sender, TcpCounters},
};
use crate::{
    link::Random,
    sim::packet::{IP_HEADER, SackBlocks, Segment, TCP_HEADER},
};

/// One end of a connection. It is never closed: a flow lasts as long as its world.
#[derive(Debug)]
pub(in crate::sim) struct Connection {
    state: State,
    sender: Sender,
    receiver: Receiver,
    settings: TcpSettings,
    /// The first sequence numbers of both streams.
    own_first: u32,
    peer_first: u32,
    /// What timestamps count from.
    epoch: Instant,
    /// The timestamp to echo.
    recent: u32,
}

/// How an end behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// The congestion control.
    pub control: ControlKind,
    /// The longest packet.
    pub mtu: u16,
    /// Leaves segmentation to whoever carries the packets, as a host does whose device offers it.
    pub super_packets: bool,
}

/// What leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) struct Outgoing {
    pub(in crate::sim) segment: Segment,
    /// Payload bytes of each segment, if it is a super-packet.
    pub(in crate::sim) size: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for a SYN.
    Listen,
    /// Has a SYN to send, first and again.
    Opening(Attempt),
    /// Has a SYN with an acknowledgement to send, first and again.
    Answering(Attempt),
    Established,
}

/// A segment of the handshake that is sent until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    first: Option<Instant>,
    again_at: Option<Instant>,
    count: u32,
}

impl Connection {
    /// Makes an end that begins.
    pub(in crate::sim) fn connect(
        epoch: Instant,
        now: Instant,
        settings: TcpSettings,
        seed: u64,
    ) -> Self {
        Self::new(epoch, now, settings, seed, State::Opening(Attempt::NEW))
    }

    /// Makes an end that waits.
    pub(in crate::sim) fn listen(
        epoch: Instant,
        now: Instant,
        settings: TcpSettings,
        seed: u64,
    ) -> Self {
        Self::new(epoch, now, settings, seed, State::Listen)
    }

    fn new(epoch: Instant, now: Instant, settings: TcpSettings, seed: u64, state: State) -> Self {
        let mut random = Random::new(seed);
        let mss = u32::from(settings.mtu) - (IP_HEADER + TCP_HEADER) as u32 - TIMESTAMPS;
        Self {
            state,
            sender: Sender::new(now, settings.control, mss, random.next_u64()),
            receiver: Receiver::new(),
            settings,
            own_first: random.next_u64() as u32,
            peer_first: 0,
            epoch,
            recent: 0,
        }
    }

    /// Adds bytes to the stream.
    pub(in crate::sim) fn write(&mut self, bytes: u64) {
        self.sender.write(bytes);
    }

    /// Takes a segment; returns how many bytes became readable.
    pub(in crate::sim) fn handle_segment(&mut self, now: Instant, segment: &Segment) -> u64 {
        match self.state {
            State::Listen => {
                if segment.syn && !segment.has_ack {
                    self.greet(segment);
                    self.state = State::Answering(Attempt::NEW);
                }
                0
            }
            State::Opening(attempt) => {
                if segment.syn && segment.has_ack && segment.ack == self.own_first.wrapping_add(1) {
                    self.greet(segment);
                    self.establish(now, attempt, segment);
                    return self.established(now, segment, true);
                }
                0
            }
            State::Answering(attempt) => {
                if segment.syn || !segment.has_ack {
                    return 0;
                }
                self.establish(now, attempt, segment);
                self.established(now, segment, false)
            }
            State::Established => {
                // a SYN again: the last acknowledgement of the handshake was lost
                self.established(now, segment, segment.syn)
            }
        }
    }

    /// Does what is due.
    pub(in crate::sim) fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Opening(attempt) | State::Answering(attempt) => {
                if attempt.again_at.is_some_and(|at| at <= now) {
                    attempt.again_at = None;
                }
            }
            State::Listen => {}
            State::Established => {
                self.sender.handle_timeout(now);
                self.receiver.handle_timeout(now);
            }
        }
    }

    /// Says when [`Connection::handle_timeout`] or [`Connection::poll_transmit`] has something to do.
    pub(in crate::sim) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Opening(attempt) | State::Answering(attempt) => attempt.again_at,
            State::Listen => None,
            State::Established => [self.sender.poll_timeout(), self.receiver.poll_timeout()]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// Gives the next segment that leaves now.
    pub(in crate::sim) fn poll_transmit(&mut self, now: Instant) -> Option<Outgoing> {
        let whole = |segment| Outgoing {
            segment,
            size: None,
        };
        match &mut self.state {
            State::Listen => None,
            State::Opening(attempt) => attempt.due(now).then(|| whole(self.syn(now, false))),
            State::Answering(attempt) => attempt.due(now).then(|| whole(self.syn(now, true))),
            State::Established => self.poll_established(now),
        }
    }

    pub(in crate::sim) fn counters(&self) -> TcpCounters {
        self.sender.counters()
    }

    fn greet(&mut self, segment: &Segment) {
        self.peer_first = segment.sequence;
        if let Some((value, _)) = segment.timestamps {
            self.recent = value;
        }
    }

    fn establish(&mut self, now: Instant, attempt: Attempt, segment: &Segment) {
        self.state = State::Established;
        // Karn: only an answer to the only attempt is a measurement
        let rtt = match attempt.first {
            Some(first) if attempt.count == 1 => now.saturating_duration_since(first),
            Some(_) | None => RETRY,
        };
        let mss = segment
            .mss
            .map_or(self.sender.mss(), |mss| u32::from(mss) - TIMESTAMPS);
        // the window of a SYN is not scaled
        self.sender
            .on_handshake(rtt, u64::from(segment.window), mss);
    }

    fn established(&mut self, now: Instant, segment: &Segment, answer: bool) -> u64 {
        if segment.has_ack && !segment.syn {
            self.take_ack(now, segment);
        }
        let mut readable = 0;
        if segment.payload > 0 {
            let next = self.receiver.next();
            let start = unwrap(
                next,
                segment
                    .sequence
                    .wrapping_sub(self.peer_first.wrapping_add(1)),
            );
            // what the last acknowledgement covered, or comes next, is newer than what is echoed now (RFC 7323)
            if let Some((value, _)) = segment.timestamps
                && start <= next
                && (value.wrapping_sub(self.recent) as i32) >= 0
            {
                self.recent = value;
            }
            let rtt = self.sender.min_rtt();
            readable = self
                .receiver
                .handle_segment(now, start, segment.payload as u64, rtt);
        }
        if answer {
            self.receiver.demand_ack();
        }
        readable
    }

    fn take_ack(&mut self, now: Instant, segment: &Segment) {
        let una = self.sender.una();
        let offset =
            |sequence: u32| unwrap(una, sequence.wrapping_sub(self.own_first.wrapping_add(1)));
        let mut blocks = [(0, 0); 4];
        let reported = segment.sack.as_slice();
        for (slot, (start, end)) in blocks.iter_mut().zip(reported) {
            *slot = (offset(*start), offset(*end));
        }
        let acknowledged = offset(segment.ack);
        self.sender.handle_ack(
            now,
            &Acknowledgement {
                una: acknowledged,
                edge: acknowledged + (u64::from(segment.window) << SCALE),
                blocks: &blocks[..reported.len()],
                echo: segment.timestamps.map(|(_, echo)| echo),
                bare: segment.payload == 0,
            },
        );
    }

    fn poll_established(&mut self, now: Instant) -> Option<Outgoing> {
        let stamp = self.stamp(now);
        if let Some(transmit) = self
            .sender
            .poll_transmit(now, stamp, self.settings.super_packets)
        {
            let size = (transmit.len > self.sender.mss()).then(|| self.sender.mss() as u16);
            let segment = self.segment(now, transmit.start, transmit.len as usize);
            return Some(Outgoing { segment, size });
        }
        self.receiver.wants_ack().then(|| Outgoing {
            segment: self.segment(now, self.sender.nxt(), 0),
            size: None,
        })
    }

    fn segment(&mut self, now: Instant, start: u64, payload: usize) -> Segment {
        let mut sack = SackBlocks::default();
        let first = self.peer_first.wrapping_add(1);
        let number = |offset: u64| first.wrapping_add(offset as u32);
        self.receiver
            .acknowledge(|start, end| sack.push((number(start), number(end))));
        Segment {
            sequence: self.own_first.wrapping_add(1).wrapping_add(start as u32),
            ack: number(self.receiver.next()),
            has_ack: true,
            window: u16::try_from(self.receiver.window() >> SCALE).unwrap_or(u16::MAX),
            timestamps: Some((self.stamp(now), self.recent)),
            sack,
            payload,
            ..Segment::default()
        }
    }

    fn syn(&mut self, now: Instant, answer: bool) -> Segment {
        Segment {
            sequence: self.own_first,
            ack: if answer {
                self.peer_first.wrapping_add(1)
            } else {
                0
            },
            syn: true,
            has_ack: answer,
            window: u16::try_from(self.receiver.window()).unwrap_or(u16::MAX),
            mss: Some(self.settings.mtu - (IP_HEADER + TCP_HEADER) as u16),
            scale: Some(SCALE),
            sack_permitted: true,
            timestamps: Some((self.stamp(now), self.recent)),
            ..Segment::default()
        }
    }

    /// Milliseconds, from 1 on.
    fn stamp(&self, now: Instant) -> u32 {
        (now.saturating_duration_since(self.epoch).as_millis() as u32).wrapping_add(1)
    }
}

impl Attempt {
    const NEW: Self = Self {
        first: None,
        again_at: None,
        count: 0,
    };

    fn due(&mut self, now: Instant) -> bool {
        if self.again_at.is_some() {
            return false;
        }
        self.first.get_or_insert(now);
        self.again_at = Some(now + RETRY * (1 << self.count.min(6)));
        self.count += 1;
        true
    }
}

/// The offset nearest to `near` whose low 32 bits are these; 0 for what lies before the stream.
fn unwrap(near: u64, low: u32) -> u64 {
    let ahead = low.wrapping_sub(near as u32) as i32;
    near.saturating_add_signed(i64::from(ahead))
}

/// TCP_TIMEOUT_INIT of Linux.
const RETRY: Duration = Duration::from_secs(1);
/// Bytes that timestamps take of each segment.
const TIMESTAMPS: u32 = 12;
/// What Linux offers for a receive buffer of 6 MiB.
const SCALE: u8 = 7;
