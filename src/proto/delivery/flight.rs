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
    /// What the controller said last: it changes its mind only when it is told something.
    said: Said,
    pacer: Pacer,
    /// Datagrams to be sent whatever the window says.
    probes: u32,
    /// Bytes that left beyond the window or ahead of the pacer since something was delivered, and their pace.
    lent: u64,
    lent_pacer: Pacer,
}

/// What a controller says.
#[derive(Clone, Copy, Debug)]
struct Said {
    window: u64,
    rate: u64,
    datagram: u64,
}

impl Said {
    fn by(congestion: &dyn Congestion) -> Self {
        Self {
            window: congestion.window(),
            rate: congestion.pacing_rate(),
            datagram: congestion.datagram_size(),
        }
    }
}

impl<T: Copy> Flight<T> {
    /// Starts on a lane where nothing flies. `round_trip` is a first guess, as from the handshake.
    #[must_use]
    pub fn new(now: Instant, round_trip: Duration, congestion: Box<dyn Congestion>) -> Self {
        let said = Said::by(&*congestion);
        let mut pacer = Pacer::new(now);
        pacer.set_rate(said.rate, said.datagram);
        Self {
            sent: Sent::new(now, round_trip),
            congestion,
            said,
            pacer,
            probes: 0,
            lent: 0,
            lent_pacer: Pacer::new(now),
        }
    }

    /// Gives back what is kept for more datagrams than fly.
    pub fn release_memory(&mut self) {
        self.sent.release_memory();
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
        if self.sent.in_flight().saturating_add(bytes as u64) > self.said.window {
            return Permit::Full;
        }
        match self.pacer.release_at(now, bytes) {
            None => Permit::Now,
            Some(at) => Permit::At(at),
        }
    }

    /// Whether a datagram may leave that somebody waits for and that belongs to a flow of a low rate, although
    /// [`permit`](Self::permit) has said no; one that then leaves is told to [`handle_lent`](Self::handle_lent).
    ///
    /// What a lane keeps back for bulk, it would else keep such a flow waiting for: a round trip and more when the
    /// window has just shrunk. It may take an eighth of the lane's rate so, and a little between two reports.
    pub fn permit_thin(&mut self, now: Instant, bytes: usize) -> bool {
        let datagram = self.said.datagram;
        let rate = (self.said.rate / LENT_SHARE).max(LENT_RATE);
        self.lent_pacer.set_rate(rate, datagram);
        self.sent.has_room()
            && self.lent.saturating_add(bytes as u64) <= LENT_DATAGRAMS * datagram
            && self.lent_pacer.release_at(now, bytes).is_none()
    }

    /// Takes note that a datagram leaves by [`permit_thin`](Self::permit_thin).
    pub fn handle_lent(&mut self, now: Instant, bytes: usize) {
        self.lent = self.lent.saturating_add(bytes as u64);
        self.lent_pacer.handle_sent(now, bytes);
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
        let flying = self.sent.in_flight().saturating_add(bytes as u64);
        let permitted = class != Class::Report && flying <= self.said.window;
        let tracked = (self.sent).handle_sent(now, number, bytes, class, permitted, content);
        // It leaves all the same.
        self.pacer.handle_sent(now, bytes);
        if class != Class::Report {
            self.probes = self.probes.saturating_sub(1);
        }
        tracked
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
            self.lent = 0;
        }
        self.congestion.on_report(&sample);
        self.follow();
    }

    /// Does what is due. Returns whether a probe must be sent: a datagram of [`Class::Data`], which
    /// [`permit`](Self::permit) will allow.
    pub fn handle_timeout(&mut self, now: Instant, mut fate: impl FnMut(T, Fate)) -> bool {
        match self.sent.handle_timeout(now, &mut fate) {
            Due::Nothing => false,
            Due::Lost(sample) => {
                self.congestion.on_lost(&sample);
                self.follow();
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
        self.follow();
    }

    /// What flies: delays, loss, silence, counters.
    #[must_use]
    pub const fn sent(&self) -> &Sent<T> {
        &self.sent
    }

    /// Learns whether the flows inside see what the path loses.
    pub fn set_exposed(&mut self, exposed: bool) {
        self.congestion.set_exposed(exposed);
        self.follow();
    }

    /// The congestion controller.
    #[must_use]
    pub fn congestion(&self) -> &dyn Congestion {
        &*self.congestion
    }

    /// Asks the controller, which was told something.
    fn follow(&mut self) {
        self.said = Said::by(&*self.congestion);
        self.pacer.set_rate(self.said.rate, self.said.datagram);
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

/// The share of the lane's rate that thin flows may take out of their turn, and what they may take on any lane: four
/// calls.
const LENT_SHARE: u64 = 8;
const LENT_RATE: u64 = 64_000;

/// What they may take while nothing is heard of the far end: a call's worth of half a second.
const LENT_DATAGRAMS: u64 = 8;

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
    fn a_full_window_lets_thin_datagrams_pass_until_the_far_end_is_silent() {
        let (mut flight, mut now) = new();
        let mut next = 0;
        fill(&mut flight, &mut now, RTT, &mut next);
        let mut passed = 0;
        for _ in 0..200 {
            now += Duration::from_millis(20);
            assert_ne!(flight.permit(now, 1400), Permit::Now);
            if flight.permit_thin(now, 280) {
                flight
                    .handle_sent(now, next, 280, Class::Data, next)
                    .unwrap();
                flight.handle_lent(now, 280);
                next += 1;
                passed += 1;
            }
        }
        assert_eq!(passed, LENT_DATAGRAMS * 1400 / 280);
    }

    #[test]
    fn thin_datagrams_take_no_more_than_their_share_out_of_turn() {
        let (mut flight, start) = new();
        let mut passed = 0;
        for tick in 1..=1_000 {
            let now = start + Duration::from_millis(tick);
            while flight.permit_thin(now, 280) {
                flight.handle_lent(now, 280);
                flight.lent = 0;
                passed += 280;
            }
        }
        let share = flight.congestion.pacing_rate() / LENT_SHARE;
        assert!(
            (share * 9 / 10..share * 11 / 10 + 2800).contains(&passed),
            "{passed} of {share}"
        );
    }

    #[test]
    fn what_needs_no_permission_is_tracked_up_to_1024_until_the_far_end_reports() {
        let (mut flight, mut now) = new();
        let mut next = 0;
        fill(&mut flight, &mut now, RTT, &mut next);
        let mut beyond = |flight: &mut Flight<u64>, class| {
            let mut tracked = 0;
            for _ in 0..3_000 {
                tracked += u32::from(flight.handle_sent(now, next, 60, class, next).is_ok());
                next += 1;
            }
            tracked
        };
        assert_eq!(beyond(&mut flight, Class::Report), 1024);
        assert!(beyond(&mut flight, Class::Data) * 60 < 1400);
        // A probe that is not tracked is one all the same.
        assert!(flight.handle_timeout(now + RTT * 100, |_, _| {}));
        assert_eq!(flight.permit(now, 1400), Permit::Now);
        assert_eq!(beyond(&mut flight, Class::Data), 0);
        assert_eq!(flight.permit(now, 1400), Permit::Full);
        let answer = |flight: &mut Flight<u64>, highest, oldest| {
            let report = Report {
                highest,
                ranges: Ranges::new(oldest),
                ..Report::default()
            };
            flight.handle_report(now + RTT, &report, |_, _| {});
        };
        // One that tells little makes little room.
        answer(&mut flight, 35, 3);
        assert_eq!(beyond(&mut flight, Class::Report), 4);
        answer(&mut flight, 1024 + 31, 1024 + 31);
        // Where the oldest is one of them it makes room.
        assert_eq!(beyond(&mut flight, Class::Report), 3_000);
        flight.abandon(|_, _| {});
        assert_eq!(beyond(&mut flight, Class::Report), 1024);
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
