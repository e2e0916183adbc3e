//! The sending half of a connection: what leaves when, what is lost, and what that does to the window.
//!
//! ```text
//!            RACK finds a loss                     timeout
//!   Open ───────────────────────▶ Recovery ───────────────────▶ Loss
//!    ▲  ◀─────────────────────────┘   all of what was sent before is acknowledged,
//!    └────────────────────────────────┘  or nothing was lost after all (undo)
//! ```

use std::time::{Duration, Instant};

use super::{
    control::{Acked, Control, ControlKind, Phase},
    prr::Reduction,
    rack::Rack,
    rate::RateSampler,
    rtt::{MIN_TIMEOUT, RoundTrip},
    scoreboard::{Progress, Scoreboard},
};

/// The sending half.
#[derive(Debug)]
pub(super) struct Sender {
    board: Scoreboard,
    rtt: RoundTrip,
    rack: Rack,
    sampler: RateSampler,
    control: Box<dyn Control>,
    mss: u32,
    una: u64,
    nxt: u64,
    /// What the application has written.
    written: u64,
    /// What the receiver has room for.
    edge: u64,
    phase: Phase,
    /// What had been sent when the phase began.
    high: u64,
    reduction: Option<Reduction>,
    undo: Option<Undo>,
    timeout_at: Option<Instant>,
    reorder_at: Option<Instant>,
    probe_at: Option<Instant>,
    probe_due: bool,
    probe: Option<Probe>,
    next_send: Option<Instant>,
    /// Something could leave but for pacing.
    paced: bool,
    window_limited: bool,
    /// The last acknowledgement was of originals that had been sent again: nothing more is until another comes.
    doubted: bool,
    counters: TcpCounters,
}

/// What a reduction needs to be taken back.
#[derive(Clone, Copy, Debug)]
struct Undo {
    /// What was acknowledged when the phase began: duplicates below tell of retransmissions before it.
    marker: u64,
    /// Retransmissions that no duplicate has been reported for.
    outstanding: u32,
    /// The timestamp of the first retransmission.
    stamp: Option<u32>,
}

/// A tail loss probe under way.
#[derive(Clone, Copy, Debug)]
struct Probe {
    end: u64,
    retransmission: bool,
}

/// An acknowledgement, in offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledgement<'a> {
    pub(super) una: u64,
    pub(super) edge: u64,
    pub(super) blocks: &'a [(u64, u64)],
    /// The timestamp echoed.
    pub(super) echo: Option<u32>,
    /// It carries no data and does not change the window.
    pub(super) bare: bool,
}

/// Segments to send as one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transmit {
    pub(super) start: u64,
    pub(super) len: u32,
}

/// What a sender has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Segments sent, all of them.
    pub segments: u64,
    /// Of these, sent again.
    pub retransmitted: u64,
    /// Times that acknowledgements told of a loss and the window was reduced.
    pub recoveries: u64,
    /// Times that the retransmission timeout passed.
    pub timeouts: u64,
    /// Reductions taken back because nothing had been lost.
    pub undone: u64,
    /// Tail loss probes.
    pub probes: u64,
}

impl Sender {
    pub(super) fn new(now: Instant, control: ControlKind, mss: u32, seed: u64) -> Self {
        Self {
            board: Scoreboard::default(),
            rtt: RoundTrip::new(),
            rack: Rack::new(),
            sampler: RateSampler::new(now),
            control: control.start(now, seed),
            mss,
            una: 0,
            nxt: 0,
            written: 0,
            edge: 0,
            phase: Phase::Open,
            high: 0,
            reduction: None,
            undo: None,
            timeout_at: None,
            reorder_at: None,
            probe_at: None,
            probe_due: false,
            probe: None,
            next_send: None,
            paced: false,
            window_limited: false,
            doubted: false,
            counters: TcpCounters::default(),
        }
    }

    /// Takes the round trip of the handshake.
    pub(super) fn on_handshake(&mut self, rtt: Duration, edge: u64, mss: u32) {
        self.rtt.sample(rtt);
        self.edge = self.edge.max(edge);
        self.mss = self.mss.min(mss);
    }

    /// Adds bytes to the stream.
    pub(super) fn write(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Takes an acknowledgement.
    pub(super) fn handle_ack(&mut self, now: Instant, ack: &Acknowledgement<'_>) {
        if ack.una > self.nxt || ack.una < self.una {
            return;
        }
        self.edge = self.edge.max(ack.edge);
        let mut progress = Progress::default();
        let lost_before = self.board.lost();
        let duplicate = self.take_sack(ack, &mut progress);
        self.board.ack(ack.una, &mut progress);
        let advanced = ack.una > self.una;
        self.una = ack.una;
        self.measure(now, &progress);
        let late = advanced && self.is_late(ack);
        self.doubted = late && self.is_partial() && self.board.sent_again() > 0;
        let mut found = 0;
        if !self.doubted {
            (found, self.reorder_at) = self.detect(now);
        }
        let sample = self.sampler.on_delivered(
            now,
            progress.delivered,
            progress
                .newest
                .as_ref()
                .map(|segment| (segment.sent, segment.snapshot)),
            self.rtt.min(),
        );
        self.judge_probe(now, ack, &progress, duplicate);
        self.advance_phase(now, late && !self.doubted, duplicate);
        let in_flight = self.board.in_flight();
        if let Some(reduction) = self.reduction.as_mut() {
            let newly_lost = self.board.lost() > lost_before || found > 0;
            reduction.on_ack(progress.delivered, in_flight, advanced && !newly_lost);
        }
        self.control.on_ack(&Acked {
            now,
            delivered: progress.delivered,
            lost: found,
            in_flight,
            total_delivered: self.sampler.delivered(),
            una: self.una,
            nxt: self.nxt,
            rtt: progress
                .newest_original
                .map(|sent| now.saturating_duration_since(sent)),
            smoothed: self.rtt.smoothed(),
            rate: sample,
            window_limited: self.window_limited,
            phase: self.phase,
        });
        if advanced {
            self.rtt.forget_backoff();
        }
        if advanced || progress.delivered > 0 {
            self.arm(now);
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.doubted &= self.timeout_at.is_none_or(|at| at > now);
        if self.reorder_at.is_some_and(|at| at <= now) {
            let (_, timer) = self.detect(now);
            self.reorder_at = timer;
            self.begin_recovery(now);
        }
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.probe_due = !self.board.is_empty() && self.probe.is_none();
        }
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.time_out(now);
        }
    }

    /// Says when [`Sender::handle_timeout`] or [`Sender::poll_transmit`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let paced = if self.paced { self.next_send } else { None };
        [self.timeout_at, self.reorder_at, self.probe_at, paced]
            .into_iter()
            .flatten()
            .min()
    }

    /// Gives what may leave now; `stamp` is the timestamp it will carry. With `whole` several segments may leave as
    /// one super-packet.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        stamp: u32,
        whole: bool,
    ) -> Option<Transmit> {
        self.paced = false;
        if std::mem::take(&mut self.probe_due)
            && let Some(transmit) = self.send_probe(now, stamp)
        {
            return Some(transmit);
        }
        let window = self.window();
        let has_data = self.nxt < self.written;
        let has_lost = self.board.lost() > 0 && !self.doubted;
        if self.board.in_flight() >= window {
            if has_lost || has_data {
                self.window_limited = true;
            }
            return None;
        }
        if has_lost {
            if self.is_paced(now) {
                return None;
            }
            return self.send_again(now, stamp);
        }
        if !has_data {
            self.window_limited = false;
            self.sampler.on_app_limited(self.board.in_flight());
            return None;
        }
        let first = self.next_len()?;
        if self.is_paced(now) {
            return None;
        }
        let start = self.nxt;
        self.send_new(now, first);
        let most = if whole { self.burst() } else { 1 };
        let mut count = 1;
        // only the last segment of a super-packet may be shorter than the others
        while count < most && first == self.mss && self.board.in_flight() < window {
            match self.next_len() {
                Some(len) if self.nxt < self.written => {
                    self.send_new(now, len);
                    count += 1;
                    if len < self.mss {
                        break;
                    }
                }
                Some(_) | None => break,
            }
        }
        self.arm_after_send(now);
        Some(Transmit {
            start,
            len: (self.nxt - start) as u32,
        })
    }

    pub(super) fn una(&self) -> u64 {
        self.una
    }

    pub(super) fn nxt(&self) -> u64 {
        self.nxt
    }

    pub(super) fn mss(&self) -> u32 {
        self.mss
    }

    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.rtt.min()
    }

    pub(super) fn counters(&self) -> TcpCounters {
        self.counters
    }

    /// Marks what has arrived out of order; says whether a duplicate was reported (RFC 2883).
    fn take_sack(&mut self, ack: &Acknowledgement<'_>, progress: &mut Progress) -> bool {
        let (first, rest) = match ack.blocks.split_first() {
            None => return false,
            Some(split) => split,
        };
        let within = |outer: &(u64, u64)| first.0 >= outer.0 && first.1 <= outer.1;
        let duplicate = first.1 <= ack.una || rest.first().is_some_and(within);
        if duplicate {
            self.rack.on_duplicate(ack.una, self.nxt);
            if let Some(undo) = self.undo.as_mut().filter(|undo| first.1 > undo.marker) {
                undo.outstanding = undo.outstanding.saturating_sub(1);
            }
        }
        for (start, end) in ack.blocks.iter().skip(usize::from(duplicate)) {
            self.board.sack(*start, *end, progress);
        }
        duplicate
    }

    fn measure(&mut self, now: Instant, progress: &Progress) {
        if let Some(sent) = progress.oldest_original
            && !progress.retransmitted
        {
            self.rtt.sample(now.saturating_duration_since(sent));
        }
        if progress.reordered {
            self.rack.on_reordering();
        }
        if let Some(newest) = &progress.newest {
            self.rack.on_delivered(now, newest, self.rtt.min());
        }
    }

    fn detect(&mut self, now: Instant) -> (u32, Option<Instant>) {
        let recovering = match self.phase {
            Phase::Open => false,
            Phase::Recovery | Phase::Loss => true,
        };
        self.rack
            .detect(now, &mut self.board, &self.rtt, recovering)
    }

    /// RFC 8985, section 7.4: a probe that was needed tells of a loss that nothing else will tell of.
    fn judge_probe(
        &mut self,
        now: Instant,
        ack: &Acknowledgement<'_>,
        progress: &Progress,
        duplicate: bool,
    ) {
        let Some(probe) = self.probe else {
            return;
        };
        if ack.una < probe.end {
            return;
        }
        let needed = probe.retransmission && !duplicate && ack.una > probe.end;
        let twice = ack.bare && !progress.advanced && progress.delivered == 0;
        if !probe.retransmission || duplicate || needed || twice {
            self.probe = None;
        }
        if needed && self.phase == Phase::Open {
            self.control.on_loss(now, self.board.in_flight());
            self.control.on_recovered(now);
        }
    }

    /// Tells whether what was acknowledged is the original, not what was sent again (RFC 3522).
    fn is_late(&self, ack: &Acknowledgement<'_>) -> bool {
        let stamp = self.undo.and_then(|undo| undo.stamp);
        (ack.echo.zip(stamp)).is_some_and(|(echo, stamp)| (echo.wrapping_sub(stamp) as i32) < 0)
    }

    /// Tells whether a recovery goes on although the acknowledgement advanced. While segments sent again are in
    /// flight, Linux then takes nothing back, and sends new segments only (`tcp_try_undo_partial`).
    fn is_partial(&self) -> bool {
        match self.phase {
            Phase::Open | Phase::Loss => false,
            Phase::Recovery => self.una < self.high,
        }
    }

    fn advance_phase(&mut self, now: Instant, late: bool, duplicate: bool) {
        let in_vain = duplicate
            && self
                .undo
                .is_some_and(|undo| undo.stamp.is_some() && undo.outstanding == 0);
        if late || in_vain {
            self.take_back(now);
        }
        match self.phase {
            Phase::Open => {}
            Phase::Recovery | Phase::Loss => {
                if self.una >= self.high {
                    self.open(now);
                }
            }
        }
        self.begin_recovery(now);
    }

    fn begin_recovery(&mut self, now: Instant) {
        match self.phase {
            Phase::Open => {}
            Phase::Recovery | Phase::Loss => return,
        }
        if self.board.lost() == 0 {
            return;
        }
        let (prior, in_flight) = (self.control.window(), self.board.in_flight());
        self.control.on_loss(now, in_flight);
        self.reduction = self
            .control
            .uses_reduction()
            .then(|| Reduction::new(prior, self.control.window(), in_flight));
        self.begin_phase(Phase::Recovery);
        self.counters.recoveries += 1;
    }

    fn begin_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.high = self.nxt;
        self.probe_at = None;
        self.undo = Some(Undo {
            marker: self.una,
            outstanding: self.board.sent_again(),
            stamp: None,
        });
    }

    fn open(&mut self, now: Instant) {
        self.phase = Phase::Open;
        self.reduction = None;
        self.control.on_recovered(now);
        self.rack.on_recovery_end();
    }

    fn take_back(&mut self, now: Instant) {
        self.undo = None;
        self.counters.undone += 1;
        self.board.forgive();
        self.control.on_undo();
        self.open(now);
    }

    fn time_out(&mut self, now: Instant) {
        self.timeout_at = None;
        if self.board.is_empty() {
            return;
        }
        let again = self.phase == Phase::Loss && self.una < self.high;
        self.board.lose_all();
        self.control.on_timeout(now, again);
        self.reduction = None;
        if again {
            self.high = self.nxt;
        } else {
            self.begin_phase(Phase::Loss);
        }
        self.reorder_at = None;
        self.probe = None;
        self.rtt.back_off();
        self.counters.timeouts += 1;
        self.next_send = None;
        self.timeout_at = Some(now + self.rtt.timeout());
    }

    fn window(&self) -> u32 {
        self.reduction
            .map_or_else(|| self.control.window(), |reduction| reduction.window())
    }

    /// How long the next new segment is; none if there is no data, no room at the receiver or in the send buffer.
    fn next_len(&mut self) -> Option<u32> {
        let left = self.written - self.nxt;
        let len = left.min(u64::from(self.mss));
        if len == 0 {
            return None;
        }
        let end = self.nxt + len;
        if end > self.edge || end - self.una > SEND_BUFFER {
            self.window_limited = false;
            return None;
        }
        Some(len as u32)
    }

    fn is_paced(&mut self, now: Instant) -> bool {
        if self.control.pacing_rate().is_none() {
            return false;
        }
        self.paced = self.next_send.is_some_and(|at| at > now);
        self.paced
    }

    fn spend(&mut self, now: Instant) {
        if let Some(rate) = self.control.pacing_rate() {
            let from = self.next_send.map_or(now, |at| at.max(now));
            self.next_send = Some(from + Duration::from_secs_f64(1.0 / rate.max(1.0)));
        }
        if let Some(reduction) = self.reduction.as_mut() {
            reduction.on_send();
        }
        self.counters.segments += 1;
    }

    fn send_new(&mut self, now: Instant, len: u32) {
        let snapshot = self.sampler.on_send(now, self.board.in_flight() == 0);
        self.board.push(self.nxt, len, now, snapshot);
        self.nxt += u64::from(len);
        self.spend(now);
    }

    fn send_again(&mut self, now: Instant, stamp: u32) -> Option<Transmit> {
        let snapshot = self.sampler.on_send(now, self.board.in_flight() == 0);
        let (start, len) = self.board.retransmit(now, snapshot)?;
        self.spend(now);
        self.on_retransmission(stamp);
        self.timeout_at.get_or_insert(now + self.rtt.timeout());
        Some(Transmit { start, len })
    }

    fn send_probe(&mut self, now: Instant, stamp: u32) -> Option<Transmit> {
        self.counters.probes += 1;
        self.timeout_at = Some(now + self.rtt.timeout());
        if self.nxt < self.written
            && let Some(len) = self.next_len()
        {
            let start = self.nxt;
            self.send_new(now, len);
            self.probe = Some(Probe {
                end: self.nxt,
                retransmission: false,
            });
            return Some(Transmit { start, len });
        }
        let snapshot = self.sampler.on_send(now, false);
        let (start, len) = self.board.probe(now, snapshot)?;
        self.spend(now);
        self.on_retransmission(stamp);
        self.probe = Some(Probe {
            end: self.nxt,
            retransmission: true,
        });
        Some(Transmit { start, len })
    }

    fn on_retransmission(&mut self, stamp: u32) {
        self.counters.retransmitted += 1;
        if let Some(undo) = self.undo.as_mut() {
            undo.outstanding += 1;
            undo.stamp.get_or_insert(stamp);
        }
    }

    /// Starts the timers anew after progress.
    fn arm(&mut self, now: Instant) {
        if self.board.is_empty() {
            self.timeout_at = None;
            self.probe_at = None;
            return;
        }
        self.timeout_at = Some(now + self.rtt.timeout());
        self.schedule_probe(now);
    }

    fn arm_after_send(&mut self, now: Instant) {
        self.timeout_at.get_or_insert(now + self.rtt.timeout());
        self.schedule_probe(now);
    }

    /// RFC 8985, section 7.2.
    fn schedule_probe(&mut self, now: Instant) {
        self.probe_at = None;
        if self.phase != Phase::Open || self.board.sacked() > 0 || self.probe.is_some() {
            return;
        }
        let Some(smoothed) = self.rtt.smoothed() else {
            return;
        };
        // one segment alone may wait for a delayed acknowledgement
        let patience = if self.board.len() == 1 {
            MIN_TIMEOUT
        } else {
            PROBE_SLACK
        };
        let at = now + smoothed * 2 + patience;
        if self.timeout_at.is_none_or(|timeout| at < timeout) {
            self.probe_at = Some(at);
        }
    }

    /// How many segments Linux puts in one super-packet: a millisecond's worth, two at least.
    fn burst(&self) -> u32 {
        let smoothed = self
            .rtt
            .smoothed()
            .unwrap_or(MIN_TIMEOUT)
            .as_secs_f64()
            .max(1e-6);
        let rate = self
            .control
            .pacing_rate()
            .unwrap_or_else(|| 1.2 * f64::from(self.control.window()) / smoothed);
        ((rate / 1000.0) as u32).clamp(2, MAX_BURST.min(65_000 / self.mss.max(1)))
    }
}

/// tcp_wmem's maximum of Linux, half of it being bookkeeping.
const SEND_BUFFER: u64 = 2 << 20;
/// Two ticks of a kernel with 1,000.
const PROBE_SLACK: Duration = Duration::from_millis(2);
/// What the tunnel's own bound on segments in a super-packet allows.
const MAX_BURST: u32 = 44;

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1_000;
    const RTT: Duration = Duration::from_millis(100);

    /// A sender that has sent its first ten segments, at its stamp 0.
    fn sender(now: Instant) -> Sender {
        let mut sender = Sender::new(now, ControlKind::Cubic, MSS, 1);
        sender.on_handshake(RTT, 1 << 20, MSS);
        sender.write(1 << 20);
        assert_eq!(starts(&mut sender, now, 0).len(), 10);
        sender
    }

    /// Where the packets begin that leave now.
    fn starts(sender: &mut Sender, now: Instant, stamp: u32) -> Vec<u64> {
        std::iter::from_fn(|| sender.poll_transmit(now, stamp, false))
            .map(|transmit| transmit.start)
            .collect()
    }

    fn ack(sender: &mut Sender, now: Instant, una: u64, blocks: &[(u64, u64)], echo: u32) {
        let ack = Acknowledgement {
            una,
            edge: 1 << 20,
            blocks,
            echo: Some(echo),
            bare: true,
        };
        sender.handle_ack(now, &ack);
    }

    #[test]
    fn originals_that_were_late_stop_retransmissions_and_later_take_the_reduction_back() {
        let start = Instant::now();
        let mut sender = sender(start);
        let now = start + RTT;
        // The first five seem lost.
        ack(&mut sender, now, 0, &[(5_000, 10_000)], 0);
        for start in [0, 1_000] {
            let again = sender.poll_transmit(now, 100, false);
            assert_eq!(again.map(|transmit| transmit.start), Some(start));
        }
        // The original of the first comes, while the second flies again.
        ack(&mut sender, now, 1_000, &[(5_000, 10_000)], 0);
        assert_eq!(sender.counters().undone, 0);
        let sent = starts(&mut sender, now, 101);
        assert!(sent.iter().all(|start| *start >= 10_000), "{sent:?}");
        ack(&mut sender, now, 2_000, &[(5_000, 10_000)], 0);
        assert_eq!(sender.counters().undone, 1);
    }

    #[test]
    fn duplicates_take_back_the_reduction_that_sent_them_and_no_later_one() {
        let start = Instant::now();
        let mut sender = sender(start);
        let now = start + RTT;
        ack(&mut sender, now, 0, &[(1_000, 10_000)], 0);
        assert_eq!(starts(&mut sender, now, 100)[0], 0);
        ack(&mut sender, now, 10_000, &[], 100);
        starts(&mut sender, now, 101);
        // The next loss, and a duplicate of what was sent again before.
        let now = now + RTT;
        ack(&mut sender, now, 10_000, &[(11_000, 15_000)], 101);
        assert_eq!(starts(&mut sender, now, 200)[0], 10_000);
        ack(
            &mut sender,
            now,
            10_000,
            &[(0, 1_000), (11_000, 15_000)],
            101,
        );
        assert_eq!(sender.counters().undone, 0);
        ack(&mut sender, now, 15_000, &[(10_000, 11_000)], 200);
        assert_eq!(sender.counters().undone, 1);
    }
}
