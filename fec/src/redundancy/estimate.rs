//! What the receiver's reports say about the link.

use std::time::{Duration, Instant};

/// What became of what was sent, counted since the report before.
///
/// Datagrams of every kind count in `sent` and `lost`: sources, repairs and resends share one fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossReport {
    /// Datagrams whose fate became known.
    pub sent: u32,
    /// Those of them that did not arrive.
    pub lost: u32,
    /// Runs of consecutive losses that began among them; `lost / bursts` is their mean length. Zero
    /// with losses is read as one run.
    pub bursts: u32,
    /// Sources that were still missing when repair could no longer bring them: what a resend was
    /// asked for, or what expired.
    pub unrepaired: u32,
    /// Whether the one-way delay was rising or well above its base at the time, be there losses or
    /// not.
    pub delay_rising: bool,
    /// The smoothed round-trip time.
    pub rtt: Duration,
}

/// Counts that fade with time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faded {
    pub(super) sent: f64,
    pub(super) lost: f64,
    pub(super) bursts: f64,
    pub(super) unrepaired: f64,
}

impl Faded {
    fn fade(&mut self, elapsed: Duration, horizon: Duration) {
        let keep = (-elapsed.as_secs_f64() / horizon.as_secs_f64()).exp();
        for count in [
            &mut self.sent,
            &mut self.lost,
            &mut self.bursts,
            &mut self.unrepaired,
        ] {
            *count *= keep;
        }
    }

    fn add(&mut self, report: &LossReport) {
        let lost = report.lost.min(report.sent);
        self.sent += f64::from(report.sent);
        self.lost += f64::from(lost);
        self.bursts += f64::from(report.bursts.clamp(lost.min(1), lost));
        self.unrepaired += f64::from(report.unrepaired);
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            bursts: self.bursts + other.bursts,
            unrepaired: self.unrepaired + other.unrepaired,
        }
    }

    /// Returns the share lost, moved by so many standard deviations of its estimate.
    fn share(&self, deviations: f64) -> f64 {
        if self.sent < 1.0 {
            return 0.0;
        }
        // Bursts rather than losses are what happens independently.
        let length = self.burst_len();
        let deviation = (self.lost * length).sqrt();
        ((self.lost + deviations * deviation) / self.sent).clamp(0.0, 1.0)
    }

    /// Tells whether so many losses would be a rare accident on a link that loses [`WORTH_REPAIR`].
    fn beyond_doubt(&self) -> bool {
        let expected = WORTH_REPAIR * self.sent;
        let burst = self.burst_len();
        // Two more, since a count this small strays further than the square root says.
        self.lost > expected + 4.0 * (expected * burst).sqrt() + 2.0 * burst
    }

    /// Tells whether more was lost than at `calm` times beyond what chance would have it; false where those are not
    /// known.
    fn exceeds(&self, calm: &Self, burst: f64) -> bool {
        // In share, and in number, since a few losses at a queue are soon chance.
        let share = self.share(0.0) > 1.5 * calm.share(0.0) + 0.01;
        let expected = self.sent * calm.share(0.0);
        let number = self.lost > expected + 3.0 * (expected * burst).sqrt() + burst;
        calm.sent >= KNOWN && share && number
    }

    /// Returns the mean length of a burst, 1 if there was none.
    fn burst_len(&self) -> f64 {
        if self.bursts > 0.0 {
            (self.lost / self.bursts).max(1.0)
        } else {
            1.0
        }
    }
}

/// The loss on the link as far as parity can help against it.
#[derive(Clone, Debug)]
pub(super) struct Estimate {
    updated: Instant,
    /// Over [`LONG`], reports without rising delay.
    calm: Faded,
    /// Over [`LONG`], reports with rising delay.
    rising: Faded,
    /// Over a few round trips, without rising delay if there were any such.
    short: Faded,
    /// Over [`MEMORY`], reports without rising delay: for what is decided by few packets, and for when there were few
    /// of these lately.
    calm_memory: Faded,
    /// Over [`MEMORY`], reports with rising delay. Whose these losses were is judged when it is asked: at the
    /// beginning, when the queue overflows first, nothing is known yet of calm times.
    rising_memory: Faded,
    /// Over [`MEMORY`], of the time that parity was sent as it should be.
    repairing: Faded,
    /// Whether loss has shown to be above [`WORTH_REPAIR`].
    active: bool,
    /// The smoothed round-trip time, once known.
    rtt: Option<Duration>,
    /// 1, and less while losses come with rising delay.
    ease: f64,
    eased: Option<Instant>,
}

impl Estimate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            updated: now,
            calm: Faded::default(),
            rising: Faded::default(),
            short: Faded::default(),
            calm_memory: Faded::default(),
            rising_memory: Faded::default(),
            repairing: Faded::default(),
            active: false,
            rtt: None,
            ease: 1.0,
            eased: None,
        }
    }

    pub(super) fn on_report(&mut self, now: Instant, report: &LossReport) {
        let elapsed = now.saturating_duration_since(self.updated);
        self.updated = self.updated.max(now);
        self.rtt = (!report.rtt.is_zero()).then_some(report.rtt);
        let short = report.rtt.saturating_mul(SHORT_ROUND_TRIPS);
        let short = short.clamp(SHORT_AT_LEAST, LONG);
        self.calm.fade(elapsed, LONG);
        self.rising.fade(elapsed, LONG);
        self.short.fade(elapsed, short);
        self.calm_memory.fade(elapsed, MEMORY);
        self.rising_memory.fade(elapsed, MEMORY);
        self.repairing.fade(elapsed, MEMORY);
        if !self.active {
            self.repairing = Faded::default();
        } else if !report.delay_rising && self.ease == 1.0 {
            self.repairing.add(report);
        }
        let (long, memory) = if report.delay_rising {
            (&mut self.rising, &mut self.rising_memory)
        } else {
            (&mut self.calm, &mut self.calm_memory)
        };
        long.add(report);
        memory.add(report);
        if !report.delay_rising || !self.knows_calm() {
            self.short.add(report);
        }
        self.ease_off(now, elapsed, report);

        if self.active {
            self.active = self.long().share(0.0) >= WORTH_REPAIR;
        }
        self.active |= self.long().beyond_doubt() || self.short.beyond_doubt();
    }

    /// Yields while a queue drops.
    fn ease_off(&mut self, now: Instant, elapsed: Duration, report: &LossReport) {
        let a_queue_drops = report.delay_rising && report.lost > 0 && self.queue_drops();
        if !a_queue_drops {
            self.ease = (self.ease + elapsed.as_secs_f64()).min(1.0);
        } else if self
            .eased
            .is_none_or(|eased| now.saturating_duration_since(eased) >= report.rtt)
        {
            self.ease = (self.ease / 2.0).max(EASE_AT_MOST);
            self.eased = Some(now);
        }
    }

    /// Tells whether there were enough reports without rising delay to go by those alone.
    fn knows_calm(&self) -> bool {
        self.calm.sent >= KNOWN || self.calm_memory.sent >= KNOWN
    }

    /// What is known of times without rising delay: of late, if that is enough.
    fn known_calm(&self) -> Faded {
        if self.calm.sent >= KNOWN {
            self.calm
        } else {
            self.calm_memory
        }
    }

    /// Tells whether losses come with rising delay beyond what chance would have it. Where it rises
    /// always, they are taken for the link's own.
    fn queue_drops(&self) -> bool {
        self.rising.exceeds(&self.known_calm(), self.burst_len())
    }

    /// Tells the same of the time that is remembered.
    fn queue_dropped(&self) -> bool {
        self.rising_memory
            .exceeds(&self.calm_memory, self.burst_len())
    }

    fn long(&self) -> Faded {
        if self.queue_drops() {
            self.known_calm()
        } else {
            self.calm.plus(&self.rising)
        }
    }

    /// Returns the share of datagrams lost, 0 while that is not worth repair.
    pub(super) fn loss(&self) -> f64 {
        if !self.active {
            return 0.0;
        }
        // The short horizon raises the figure only as far as it is sure of.
        self.long().share(0.0).max(self.short.share(-1.0))
    }

    /// Returns the share of datagrams that were lost at times without rising delay, be it ever so small; 0 while there
    /// were few such times.
    pub(super) fn calm_loss(&self) -> f64 {
        if self.knows_calm() {
            self.known_calm().share(0.0)
        } else {
            0.0
        }
    }

    /// Returns the loss to go by for a packet that is copied at little cost: with a doubt of one per
    /// cent that fades as the link shows itself. What a queue dropped counts as sent only.
    pub(super) fn doubted_loss(&self) -> f64 {
        let (calm, rising) = (&self.calm_memory, &self.rising_memory);
        let the_queues = self.queue_dropped();
        let lost = calm.lost + if the_queues { 0.0 } else { rising.lost };
        let memory = (lost + DOUBT_LOST) / (calm.sent + rising.sent + DOUBT_SENT);
        self.loss().max(memory)
    }

    /// Returns the mean length of a burst of losses.
    pub(super) fn burst_len(&self) -> f64 {
        self.calm.plus(&self.rising).burst_len()
    }

    /// Returns how many sources stayed unrepaired while parity was sent, and of how many datagrams.
    pub(super) fn unrepaired(&self) -> (f64, f64) {
        (self.repairing.unrepaired, self.repairing.sent)
    }

    /// Tells whether a resend comes within `time` of the packet it replaces, about.
    pub(super) fn resends_within(&self, time: Duration) -> bool {
        self.rtt.is_some_and(|rtt| rtt <= time)
    }

    /// Returns by what parity should be multiplied: less than 1 while a queue drops.
    pub(super) fn ease(&self) -> f64 {
        self.ease
    }
}

/// At 0.2 % a resend on request costs a sixth of the parity that would save it, and comes for one
/// packet in five hundred.
pub(super) const WORTH_REPAIR: f64 = 0.002;

/// A figure over 8,000 packets at 4,000 a second; after loss ends parity does so within seconds.
const LONG: Duration = Duration::from_secs(2);

/// What is lost begins to be repaired within about two round trips.
const SHORT_ROUND_TRIPS: u32 = 4;

/// So many datagrams without rising delay tell what is lost then, as far as that is worth repair.
const KNOWN: f64 = 50.0;

/// At short round trips reports are few, and a burst would be taken for the link.
const SHORT_AT_LEAST: Duration = Duration::from_millis(100);

/// A call of 50 packets a second shows the link 1,000 times within it.
const MEMORY: Duration = Duration::from_secs(20);

/// The doubt about a link that nothing is known about, as if so many had been lost of so many.
const DOUBT_LOST: f64 = 1.0;
const DOUBT_SENT: f64 = 100.0;

/// Parity is never eased by more: the loss may be of both kinds.
const EASE_AT_MOST: f64 = 0.125;
