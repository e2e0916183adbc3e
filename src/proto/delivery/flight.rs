//! One direction of a datagram lane at its sender: delivery, congestion control and pacing as one.

use std::time::{Duration, Instant};

use super::{Class, Due, Fate, Sent, SentError};
use crate::proto::congestion::{Congestion, Pacer};
use crate::wire::Report;

/// What flies on a lane and what may follow.
#[derive(Debug)]
pub struct Flight<T> {
    sent: Sent<T>,
    congestion: Box<dyn Congestion>,
    pacer: Pacer,
    /// Datagrams to be sent whatever the window says.
    probes: u32,
}

impl<T: Copy> Flight<T> {
    /// Starts on a lane where nothing flies. `round_trip` is a first guess, as from the handshake.
    #[must_use]
    pub fn new(now: Instant, round_trip: Duration, congestion: Box<dyn Congestion>) -> Self {
        let mut pacer = Pacer::new(now);
        // What needs no permission, and so asks for no rate, may be the first that leaves.
        pacer.set_rate(congestion.pacing_rate(), congestion.datagram_size());
        Self {
            sent: Sent::new(now, round_trip),
            congestion,
            pacer,
            probes: 0,
        }
    }

    /// Whether a datagram of `bytes` may leave now.
    ///
    /// Datagrams of [`Class::Report`] need no permission, since they answer what others sent.
    pub fn permit(&mut self, now: Instant, bytes: usize) -> Permit {
        if !self.sent.has_room() {
            return Permit::Full;
        }
        if self.probes > 0 {
            return Permit::Now;
        }
        if self.sent.in_flight().saturating_add(bytes as u64) > self.congestion.window() {
            return Permit::Full;
        }
        self.pacer.set_rate(
            self.congestion.pacing_rate(),
            self.congestion.datagram_size(),
        );
        match self.pacer.release_at(now, bytes) {
            None => Permit::Now,
            Some(at) => Permit::At(at),
        }
    }

    /// Takes note of a datagram that leaves now; see [`Sent::handle_sent`].
    ///
    /// # Errors
    /// [`SentError`]: the datagram is not tracked, and its content will have no fate.
    pub fn handle_sent(
        &mut self,
        now: Instant,
        number: u64,
        bytes: usize,
        class: Class,
        content: T,
    ) -> Result<(), SentError> {
        let idle = self.sent.in_flight() == 0;
        self.sent.handle_sent(now, number, bytes, class, content)?;
        self.pacer.handle_sent(now, bytes);
        if class != Class::Report {
            self.probes = self.probes.saturating_sub(1);
            self.congestion.on_sent(now, bytes as u64, idle);
        }
        Ok(())
    }

    /// Takes note that a datagram was permitted and there is none to send.
    pub fn handle_application_limited(&mut self) {
        self.sent.handle_application_limited();
    }

    /// Takes a report in; `fate` is told what became of contents.
    pub fn handle_report(&mut self, now: Instant, report: &Report, mut fate: impl FnMut(T, Fate)) {
        let sample = self.sent.handle_report(now, report, &mut fate);
        if sample.newly_delivered > 0 {
            self.probes = 0;
        }
        self.congestion.on_report(&sample);
    }

    /// Does what is due. Returns whether a probe must be sent: a datagram of [`Class::Data`], which
    /// [`permit`](Self::permit) will allow.
    pub fn handle_timeout(&mut self, now: Instant, mut fate: impl FnMut(T, Fate)) -> bool {
        match self.sent.handle_timeout(now, &mut fate) {
            Due::Nothing => false,
            Due::Lost(sample) => {
                self.congestion.on_lost(&sample);
                false
            }
            Due::Probe => {
                self.probes = 1;
                true
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do. When the pacer releases is
    /// said by [`permit`](Self::permit).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sent.poll_timeout()
    }

    /// Gives up on all that is in flight, as when the lane is dead.
    pub fn abandon(&mut self, mut fate: impl FnMut(T, Fate)) {
        self.sent.abandon(&mut fate);
        self.probes = 0;
    }

    /// Takes note of how long datagrams are at most, as path MTU discovery finds it.
    pub fn set_datagram_size(&mut self, bytes: usize) {
        self.congestion.on_datagram_size(bytes as u64);
    }

    /// What flies: delays, loss, silence, counters.
    #[must_use]
    pub const fn sent(&self) -> &Sent<T> {
        &self.sent
    }

    /// The congestion controller.
    #[must_use]
    pub fn congestion(&self) -> &dyn Congestion {
        &*self.congestion
    }
}

/// Whether a datagram may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Permit {
    /// Now.
    Now,
    /// At that time, by the pacer.
    At(Instant),
    /// Not before a report has made room in the window, or a timeout.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::congestion::{Bbr, INITIAL_DATAGRAMS};
    use crate::wire::Ranges;

    const RTT: Duration = Duration::from_millis(50);

    fn new() -> (Flight<u64>, Instant) {
        let now = Instant::now();
        (
            Flight::new(now, RTT, Box::new(Bbr::new(now, 1400, RTT, 1))),
            now,
        )
    }

    /// Sends all that is permitted within `span`.
    fn fill(flight: &mut Flight<u64>, now: &mut Instant, span: Duration, next: &mut u64) {
        let end = *now + span;
        loop {
            match flight.permit(*now, 1400) {
                Permit::Now => {
                    flight
                        .handle_sent(*now, *next, 1400, Class::Data, *next)
                        .unwrap();
                    *next += 1;
                }
                Permit::At(at) if at <= end => *now = at,
                Permit::At(_) | Permit::Full => return,
            }
        }
    }

    #[test]
    fn it_starts_with_32_datagrams_within_a_round_trip() {
        let (mut flight, mut now) = new();
        let mut next = 0;
        fill(&mut flight, &mut now, RTT, &mut next);
        assert_eq!(next, INITIAL_DATAGRAMS);
        assert_eq!(flight.permit(now, 1400), Permit::Full);
    }

    #[test]
    fn a_full_window_yields_to_a_probe() {
        let (mut flight, mut now) = new();
        let mut next = 0;
        fill(&mut flight, &mut now, RTT, &mut next);
        now = flight.poll_timeout().unwrap();
        assert!(flight.handle_timeout(now, |_, _| {}));
        assert_eq!(flight.permit(now, 1400), Permit::Now);
        flight
            .handle_sent(now, next, 1400, Class::Data, next)
            .unwrap();
        assert_eq!(flight.permit(now, 1400), Permit::Full);
    }

    #[test]
    fn a_report_makes_room() {
        let (mut flight, mut now) = new();
        let mut next = 0;
        fill(&mut flight, &mut now, RTT, &mut next);
        now += RTT;
        let report = Report {
            highest: 31,
            ranges: Ranges::new(31),
            ..Report::default()
        };
        let mut delivered = 0;
        flight.handle_report(now, &report, |_, fate| {
            assert_eq!(fate, Fate::Delivered);
            delivered += 1;
        });
        assert_eq!(delivered, 32);
        fill(&mut flight, &mut now, RTT, &mut next);
        assert!(next >= 32 + 50, "{next}");
    }
}
