//! Echoes of one length that are sent one after the other, and what became of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use adit_netstack::{Offload, PacketSink as _};

use super::path::Echoes;
use crate::bench::echo::Echo;
use crate::io::carrier::Carrier;

/// How a volley is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How many.
    pub(super) count: u64,
    /// How far apart.
    pub(super) every: Duration,
    /// How many may be under way.
    pub(super) window: usize,
}

/// Echoes of one length.
#[derive(Debug)]
pub(super) struct Volley {
    echo: Echo,
    next: u16,
    /// When the next is due.
    at: Instant,
    every: Duration,
    /// How many more are to be sent.
    left: u64,
    window: usize,
    waiting: VecDeque<(u16, Instant)>,
    sent: u64,
    answered: Vec<Duration>,
    /// When the last answer came.
    last: Option<Instant>,
}

impl Volley {
    /// Makes one, of which the first is due now.
    pub(super) fn new(echo: Echo, pace: Pace, now: Instant) -> Self {
        let Pace {
            count,
            every,
            window,
        } = pace;
        Self {
            echo,
            next: 0,
            at: now,
            every,
            left: count,
            // Numbers of echoes have 16 bits, and come again.
            window: window.clamp(1, usize::from(u16::MAX / 2)),
            waiting: VecDeque::new(),
            sent: 0,
            answered: Vec::new(),
            last: None,
        }
    }

    /// Sends what is due and fits; returns whether anything left.
    pub(super) fn send(&mut self, carrier: &mut Carrier, now: Instant) -> bool {
        let mut any = false;
        while self.left > 0 && now >= self.at && self.waiting.len() < self.window {
            let mut sink = carrier.sink(now);
            let Some(room) = sink.reserve(self.echo.len()) else {
                // What comes late is not made up for: that would be a burst.
                self.at = now + self.every.max(FULL);
                return any;
            };
            self.echo.write_request(self.next, room);
            sink.commit(self.echo.len(), Offload::default());
            self.waiting.push_back((self.next, now));
            self.next = self.next.wrapping_add(1);
            self.left -= 1;
            self.sent += 1;
            self.at = now + self.every;
            any = true;
        }
        any
    }

    /// Takes a packet; returns whether it is an answer of this volley.
    pub(super) fn handle(&mut self, now: Instant, packet: &[u8]) -> bool {
        let Some(sequence) = self.echo.read_reply(packet) else {
            return false;
        };
        if let Some(place) = self.waiting.iter().position(|(sent, _)| *sent == sequence)
            && let Some((_, at)) = self.waiting.remove(place)
        {
            self.answered.push(now - at);
            self.last = Some(now);
        }
        true
    }

    /// Gives up what was not answered for long.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((_, at)) = self.waiting.front()
            && now >= *at + PATIENCE
        {
            self.waiting.pop_front();
        }
    }

    /// Sends no more.
    pub(super) fn stop(&mut self) {
        self.left = 0;
    }

    /// Whether all were sent.
    pub(super) fn is_sent(&self) -> bool {
        self.left == 0
    }

    /// Whether all were sent, and answered or given up.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.waiting.is_empty()
    }

    /// When it wants to be looked at again.
    pub(super) fn due(&self) -> Option<Instant> {
        let wants = self.left > 0 && self.waiting.len() < self.window;
        let forgotten = self.waiting.front().map(|(_, at)| *at + PATIENCE);
        wants.then_some(self.at).into_iter().chain(forgotten).min()
    }

    /// When the last answer came.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    /// What became of them.
    pub(super) fn into_echoes(self) -> Echoes {
        Echoes {
            sent: self.sent,
            answered: self.answered,
        }
    }
}

/// When a lane that was full is tried again.
const FULL: Duration = Duration::from_millis(1);

/// After how long an echo counts as lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
