//! The controller: from loss and sources to repairs.

use std::time::{Duration, Instant};

use super::estimate::{Estimate, LossReport};
use super::thin::{Bucket, Copy, Waiting, copies};

/// Whether and how repairs are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As the link's loss asks for.
    #[default]
    Auto,
    /// None, and no copies.
    Off,
    /// So many for so many sources, whatever the link does, and no copies.
    Fixed {
        /// Repairs sent for each `sources`.
        repairs: u16,
        /// Sources for which there are `repairs`; 0 counts as 1.
        sources: u16,
        /// Sources that each repair covers, at most.
        span: u16,
    },
}

/// What the controller may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Whether and how repairs are sent.
    pub mode: Mode,
    /// The most sources that a repair covers; not above the encoder's window.
    pub max_span: u16,
    /// The most repair bytes for each source byte in [`Mode::Auto`], at any loss. At a given loss
    /// it is less: 6, 11.5, 16.5 and 30 % at 1, 3, 5 and 10 %.
    pub cap: f32,
}

impl Default for Settings {
    /// Auto, spans of up to 256, half as many repair bytes as source bytes at the very most.
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            max_span: 256,
            cap: 0.5,
        }
    }
}

impl Settings {
    /// Returns the settings with a span of at least 1, and a cap from 0 to 1.
    fn sane(self) -> Self {
        let cap = if self.cap.is_nan() { 0.0 } else { self.cap };
        Self {
            max_span: self.max_span.max(1),
            cap: cap.clamp(0.0, 1.0),
            ..self
        }
    }
}

/// What kind of packet a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One of many: parity may take its few milliseconds.
    Bulk,
    /// Of a flow that sends little at a time: a call, a game, a keystroke.
    Thin,
    /// One that others wait for: SYN, DNS.
    Urgent,
}

/// A repair to be sent: what the encoder's `repair` is to be called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPlan {
    /// The first source covered.
    pub first: u64,
    /// How many are covered: 1 or more, and never one that was not sent yet.
    pub span: u16,
    /// The key, another for each plan until all 65,536 were used.
    pub key: u16,
    /// Why it is sent.
    pub kind: PlanKind,
}

/// Why a repair is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanKind {
    /// At once, for a thin or urgent packet: the last that it covers. A copy of that packet does as
    /// well where `span` is 1.
    Copy,
    /// As parity.
    Parity,
}

/// What a controller counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedundancyStats {
    /// Sources it was told of.
    pub sources: u64,
    /// Bytes of them.
    pub source_bytes: u64,
    /// Repairs planned as parity.
    pub parity: u64,
    /// Bytes of those.
    pub parity_bytes: u64,
    /// Repairs planned as copies.
    pub copies: u64,
    /// Bytes of those.
    pub copy_bytes: u64,
    /// Copies not made because their bucket was empty.
    pub copies_over_budget: u64,
    /// Copies not made because too many waited, or their sources had gone.
    pub copies_dropped: u64,
    /// Times that parity was due and waited for its cap in bytes.
    pub parity_over_cap: u64,
}

/// Decides on the redundancy of one direction.
#[derive(Clone, Debug)]
pub struct Redundancy {
    settings: Settings,
    /// Whether parity is sent in [`Mode::Auto`].
    parity: bool,
    estimate: Estimate,
    bucket: Bucket,
    waiting: Waiting,
    /// The sources told of without a gap are `first..end`.
    first: u64,
    end: u64,
    key: u16,
    /// When the last sources were sent, source `number` at `number % RECENT`.
    recent: [Instant; RECENT],
    /// The lengths of the last `max_span` sources, source `number` at `number % max_span`.
    lens: Box<[u32]>,
    /// Sources a second, faded over [`RATE_HORIZON`], as of the last source.
    rate: f64,
    sourced: Instant,
    /// Repairs due; below zero when some were sent on credit.
    credit: f64,
    /// Repair bytes that the cap allows.
    allowance: f64,
    /// Sources since parity last covered them all, copied ones left out.
    uncovered: u32,
    /// When to cover those if no source comes.
    flush: Option<Instant>,
    /// The sources since the last pause, and the repairs sent for them.
    train: u32,
    train_began: Instant,
    train_repairs: u32,
    /// What z is multiplied by, moved by what stayed unrepaired.
    margin: f64,
    /// What follows from the last report and source.
    ratio: f64,
    span: u16,
    stats: RedundancyStats,
}

impl Redundancy {
    /// Makes a controller of a direction that nothing was sent in yet.
    pub fn new(now: Instant, settings: Settings) -> Self {
        let settings = settings.sane();
        let span = match settings.mode {
            Mode::Fixed { span, .. } => span.clamp(1, settings.max_span),
            Mode::Auto | Mode::Off => settings.max_span,
        };
        Self {
            settings,
            parity: true,
            estimate: Estimate::new(now),
            bucket: Bucket::new(now),
            waiting: Waiting::new(),
            first: 0,
            end: 0,
            key: 0,
            recent: [now; RECENT],
            lens: vec![0; settings.max_span.into()].into_boxed_slice(),
            rate: 0.0,
            sourced: now,
            credit: 0.0,
            allowance: 0.0,
            uncovered: 0,
            flush: None,
            train: 0,
            train_began: now,
            train_repairs: 0,
            margin: 1.0,
            ratio: 0.0,
            span,
            stats: RedundancyStats::default(),
        }
    }

    /// Changes the settings; what is due already stays due.
    pub fn set(&mut self, settings: Settings) {
        let longest = self.lens.iter().max().copied().unwrap_or(0);
        self.settings = settings.sane();
        if self.lens.len() != usize::from(self.settings.max_span) {
            // Whose length is no longer known counts as long as the longest.
            self.lens = vec![longest; self.settings.max_span.into()].into_boxed_slice();
        }
        if settings.mode == Mode::Off {
            self.waiting.clear();
            self.credit = 0.0;
            self.flush = None;
            self.uncovered = 0;
        }
        self.decide();
    }

    /// Says whether parity is wanted in [`Mode::Auto`], at first it is; copies are made in any case.
    pub fn set_parity(&mut self, wanted: bool) {
        self.parity = wanted;
        self.decide();
    }

    /// Takes a receiver's report.
    pub fn on_report(&mut self, now: Instant, report: &LossReport) {
        self.estimate.on_report(now, report);
        self.adjust_margin(report);
        self.decide();
    }

    /// Notes that source `number` of `bytes` leaves now.
    ///
    /// `bytes` is the shard's length. Numbers rise by one; after a gap what came before is no longer
    /// covered, as in the encoder. A number that was passed (a resend) is left out.
    pub fn on_source(&mut self, now: Instant, number: u64, bytes: usize, class: Class) {
        let Some(end) = number.checked_add(1).filter(|_| number >= self.end) else {
            return;
        };
        if number > self.end {
            self.first = number;
            self.uncovered = 0;
        }
        self.end = end;
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.recent[recent(number)] = now;
        let slot = self.len_slot(number);
        self.lens[slot] = len;
        self.note_rate(now);
        self.stats.sources += 1;
        self.stats.source_bytes += u64::from(len);
        self.bucket.on_source(now, bytes);
        match self.settings.mode {
            Mode::Off => {}
            Mode::Fixed { .. } => {
                self.decide();
                self.credit = (self.credit + self.ratio).min(MAX_CREDIT.max(self.ratio));
                self.expect_pause(now);
            }
            Mode::Auto => {
                let copied = match class {
                    Class::Bulk => false,
                    Class::Thin | Class::Urgent => self.copy(now, number, class),
                };
                self.on_source_in_auto(now, bytes, copied);
            }
        }
    }

    fn on_source_in_auto(&mut self, now: Instant, bytes: usize, copied: bool) {
        self.decide();
        if self.ratio == 0.0 {
            self.credit = self.credit.min(0.0);
            self.uncovered = 0;
            self.flush = None;
            return;
        }
        if copied {
            return;
        }
        let loss = self.estimate.loss();
        let burst = self.estimate.burst_len();
        self.credit = (self.credit + self.ratio).min(MAX_CREDIT);
        self.allowance += f64::from(self.cap(loss, burst)) * bytes as f64;
        self.allowance = self.allowance.min(MAX_ALLOWANCE);
        self.expect_pause(now);
    }

    /// Notes a source that parity has to cover, soon if none follows.
    fn expect_pause(&mut self, now: Instant) {
        self.uncovered = self.uncovered.saturating_add(1);
        self.flush = (self.ratio > 0.0).then(|| now + FLUSH_AFTER);
    }

    /// Returns the next repair to send, if one is due.
    pub fn poll_repair(&mut self, now: Instant) -> Option<RepairPlan> {
        while let Some(copy) = self.waiting.pop(now) {
            if copy.first
                >= self
                    .first
                    .max(self.end.saturating_sub(self.settings.max_span.into()))
            {
                self.stats.copies += 1;
                return Some(self.plan(copy.first, copy.span, PlanKind::Copy));
            }
            self.stats.copies_dropped += 1;
        }
        let due = self.credit >= 1.0 || self.flush_is_due(now);
        if !due || self.end == self.first {
            return None;
        }
        let span = u64::from(self.span).min(self.end - self.first);
        let len = self.longest(span);
        let bytes = f64::from(len);
        if self.settings.mode == Mode::Auto {
            if self.allowance >= bytes {
                self.allowance -= bytes;
            } else if self.credit >= 1.0 || !self.bucket.take(bytes as usize, Class::Thin) {
                // A few packets now and then are a thin flow too: their last repair is paid as one.
                self.stats.parity_over_cap += 1;
                self.flush = self.flush.filter(|&flush| flush > now);
                self.credit = self.credit.min(1.0);
                return None;
            }
        }
        self.credit -= 1.0;
        self.train_repairs += 1;
        self.uncovered = 0;
        self.stats.parity += 1;
        self.stats.parity_bytes += u64::from(len);
        Some(self.plan(self.end - span, span, PlanKind::Parity))
    }

    /// Returns when [`poll_repair`](Self::poll_repair) is to be called if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (self.waiting.next(), self.flush) {
            (Some(copy), Some(flush)) => Some(copy.min(flush)),
            (copy, flush) => copy.or(flush),
        }
    }

    /// Returns the share of datagrams lost that parity goes by; 0 while it is not worth any.
    pub fn loss(&self) -> f64 {
        self.estimate.loss()
    }

    /// Returns the share of datagrams that the link loses while no queue stands, also where that is not worth parity.
    pub fn calm_loss(&self) -> f64 {
        self.estimate.calm_loss()
    }

    /// Returns the mean length of the link's bursts of losses.
    pub fn burst_len(&self) -> f64 {
        self.estimate.burst_len()
    }

    /// Returns how many repairs are sent for each source at present, thin flows' copies apart.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// Returns how many sources a repair covers at present.
    pub fn span(&self) -> u16 {
        self.span
    }

    /// Returns what was counted since the controller was made.
    pub fn stats(&self) -> RedundancyStats {
        self.stats
    }

    /// Tells whether sources have paused and are short of repairs; if they are not, settles that.
    fn flush_is_due(&mut self, now: Instant) -> bool {
        if self.flush.is_none_or(|flush| flush > now) {
            return false;
        }
        let wanted = (f64::from(self.train.min(self.span.into())) * self.ratio).ceil();
        let short = self.uncovered > 0 || f64::from(self.train_repairs) < wanted;
        if short && self.credit > -MAX_BORROWED {
            return true;
        }
        self.flush = None;
        self.train = 0;
        self.train_repairs = 0;
        false
    }

    /// Plans the copies of a thin or urgent packet; tells whether there is one.
    fn copy(&mut self, now: Instant, number: u64, class: Class) -> bool {
        let loss = self.estimate.doubted_loss();
        // Among many packets a loss shows at once, and a short way brings a resend as soon as parity.
        let resent = self.rate > CROWDED_RATE
            && class == Class::Thin
            && loss <= RESEND_MOST
            && self.estimate.resends_within(RESEND_INSTEAD_OF_COPY);
        let wanted = if resent { 0 } else { copies(loss) };
        let (span, len) = self.company(now, number);
        let mut made = 0;
        for nth in 0..wanted {
            if !self.bucket.take(len as usize, class) {
                self.stats.copies_over_budget += u64::from(wanted - nth);
                break;
            }
            let copy = Copy {
                due: now + COPY_SPACING * nth,
                first: number - (span - 1),
                span,
            };
            if !self.waiting.push(copy) {
                self.stats.copies_dropped += u64::from(wanted - nth);
                break;
            }
            self.stats.copy_bytes += u64::from(len);
            made += 1;
        }
        made > 0
    }

    /// Returns over how many sources, this one the last, its copy goes, and how long that makes it.
    ///
    /// More than one where little else is sent, so that a copy brings the former ones too.
    fn company(&self, now: Instant, number: u64) -> (u64, u32) {
        let own = self.lens[self.len_slot(number)];
        let (mut span, mut longest) = (1, own);
        let most = COMPANY.min(self.settings.max_span.into());
        while span < most && number >= self.first.saturating_add(span) {
            let (sent, len) = (
                self.recent[recent(number - span)],
                self.lens[self.len_slot(number - span)],
            );
            let recently = now.saturating_duration_since(sent) <= COMPANY_WITHIN;
            if !recently || len > own.saturating_add(own / 4) {
                break;
            }
            longest = longest.max(len);
            span += 1;
        }
        // Of many packets in that time the last few are no help to each other: parity is.
        let crowded = self.rate > CROWDED_RATE;
        if crowded { (1, own) } else { (span, longest) }
    }

    fn plan(&mut self, first: u64, span: u64, kind: PlanKind) -> RepairPlan {
        self.key = self.key.wrapping_add(1);
        RepairPlan {
            first,
            span: u16::try_from(span).unwrap_or(u16::MAX),
            key: self.key,
            kind,
        }
    }

    /// Returns the length of the longest of the last `span` sources, of at most `max_span`.
    fn longest(&self, span: u64) -> u32 {
        let numbers = self.end - span..self.end;
        let lens = numbers.map(|number| self.lens[self.len_slot(number)]);
        lens.max().unwrap_or(0)
    }

    fn len_slot(&self, number: u64) -> usize {
        (number % self.lens.len() as u64) as usize
    }

    fn note_rate(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.sourced);
        self.sourced = self.sourced.max(now);
        if elapsed >= FLUSH_AFTER {
            self.train = 0;
            self.train_began = now;
            self.train_repairs = 0;
        }
        self.train = self.train.saturating_add(1);
        let horizon = RATE_HORIZON.as_secs_f64();
        self.rate = self.rate * (-elapsed.as_secs_f64() / horizon).exp() + 1.0 / horizon;
    }

    /// Works out span and ratio anew.
    fn decide(&mut self) {
        match self.settings.mode {
            Mode::Off => self.ratio = 0.0,
            Mode::Fixed {
                repairs,
                sources,
                span,
            } => {
                self.ratio = f64::from(repairs) / f64::from(sources.max(1));
                self.span = span.clamp(1, self.settings.max_span);
            }
            Mode::Auto => {
                let (loss, burst) = (self.estimate.loss(), self.estimate.burst_len());
                self.span = self.wanted_span(burst);
                let resent =
                    loss <= RESEND_MOST && self.estimate.resends_within(RESEND_INSTEAD_OF_PARITY);
                self.ratio = if self.parity && loss > 0.0 && self.span >= MIN_SPAN && !resent {
                    self.wanted_ratio(loss, burst)
                } else {
                    0.0
                };
            }
        }
    }

    fn wanted_span(&self, burst: f64) -> u16 {
        let at_rate = |time: Duration| self.rate * time.as_secs_f64();
        let span = at_rate(SPAN_TIME).max(at_rate(LONGEST_SPAN_TIME).min(FEW));
        // The first packets after a pause belong together whatever the rate was.
        let span = if self.sourced.saturating_duration_since(self.train_began) < LONGEST_SPAN_TIME {
            span.max(f64::from(self.train).min(FEW))
        } else {
            span
        };
        let span = span * (1.0 + (burst - 1.0) / 2.0);
        (span as u16).clamp(1, self.settings.max_span)
    }

    fn wanted_ratio(&self, loss: f64, burst: f64) -> f64 {
        let variance = loss * (1.0 - loss) * (2.0 * burst - 1.0) / f64::from(self.span);
        let deviations = (DEVIATIONS + (burst - 1.0) / 4.0).min(MOST_DEVIATIONS) * self.margin;
        let ratio = (loss + deviations * variance.sqrt()) / (1.0 - loss).max(0.5);
        let prompt = (1.0 / (self.rate * REPAIR_WITHIN.as_secs_f64())).min(PROMPT_AT_MOST);
        let ratio = ratio.max(prompt) * self.estimate.ease();
        ratio.min(self.cap(loss, burst).into())
    }

    /// Returns the most repair bytes for each source byte at such loss.
    fn cap(&self, loss: f64, burst: f64) -> f32 {
        // Bursts need more than the same loss one by one.
        let loss = (loss * (1.0 + (burst - 1.0) / 2.0)) as f32;
        let (from, to) = match CAPS.iter().position(|&(at, _)| loss < at) {
            Some(above) => (CAPS[above.saturating_sub(1)], CAPS[above]),
            None => (CAPS[CAPS.len() - 2], CAPS[CAPS.len() - 1]),
        };
        let slope = if to.0 > from.0 {
            (to.1 - from.1) / (to.0 - from.0)
        } else {
            0.0
        };
        (from.1 + slope * (loss - from.0)).clamp(0.0, self.settings.cap)
    }

    /// Moves the margin by what stayed unrepaired: up at once, down slowly.
    fn adjust_margin(&mut self, report: &LossReport) {
        let (unrepaired, sent) = self.estimate.unrepaired();
        let bearable = TARGET * sent;
        if report.unrepaired > 0 && unrepaired - unrepaired.sqrt() > bearable {
            self.margin = (self.margin + MARGIN_UP).min(MARGIN_MOST);
        } else if unrepaired + unrepaired.sqrt() < bearable {
            let step = MARGIN_DOWN * f64::from(report.sent);
            self.margin = (self.margin - step).max(1.0);
        }
    }
}

/// Returns where the time of a source is kept.
fn recent(number: u64) -> usize {
    (number % RECENT as u64) as usize
}

/// Times kept: at least of those that a copy may cover.
const RECENT: usize = 8;

/// The most sources that a copy covers: two or three messages of two flows and the acknowledgements between
/// them. Of messages each 20 ms by TCP and UDP at once, 1.2 % took 17 ms longer at 5 % loss where this was 3,
/// 0.5 % from 5 to 8; at 10 %, 1.6 % took 29 ms longer with 3, 0.6 % with 5 and 6, and 0.8 % with 8, since one
/// that stays missing spoils the copies of more others.
const COMPANY: u64 = 6;

/// How long ago a source may have been sent that a copy covers once more: what a call's receiver
/// waits for at the most.
const COMPANY_WITHIN: Duration = Duration::from_millis(125);

/// Packets a second beyond which parity comes soon enough to be a thin packet's second chance.
const CROWDED_RATE: f64 = 200.0;

/// On a round trip of this or less a resend comes hardly later than parity and costs no more than what
/// was lost, half of what parity does; and what it would spare them makes little difference to flows on
/// so short a way.
const RESEND_INSTEAD_OF_PARITY: Duration = Duration::from_millis(25);

/// On a round trip of this or less a resend is no later than what a call bears.
const RESEND_INSTEAD_OF_COPY: Duration = Duration::from_millis(15);

/// Beyond this loss too many resends get lost as well: two leave 3e-5 here.
const RESEND_MOST: f64 = 0.03;

/// Far enough for a second copy to fall outside most bursts, near enough to be of use.
const COPY_SPACING: Duration = Duration::from_millis(5);

/// Packets a second are counted over this time.
const RATE_HORIZON: Duration = Duration::from_millis(100);

/// The span in time where the rate is high: losses are mostly repaired in a third of it.
const SPAN_TIME: Duration = Duration::from_millis(30);

/// The span in time where the rate is low: beyond it a resend is as quick.
const LONGEST_SPAN_TIME: Duration = Duration::from_millis(60);

/// Sources that make a span worth its parity at a low rate.
const FEW: f64 = 40.0;

/// Over fewer sources a repair is a copy of each, at a delay.
const MIN_SPAN: u16 = 3;

/// Standard deviations of the loss over a span that repairs cover. With two, next to nothing stays
/// missing either, but one repair in a hundred takes half as long again.
const DEVIATIONS: f64 = 2.5;

/// Bursts get a quarter more for each packet of their length, up to this: fewer of them fall into a
/// span, so that their number varies by more than the square root says.
const MOST_DEVIATIONS: f64 = 3.5;

/// A repair is due within this time where the loss alone would ask for fewer.
const REPAIR_WITHIN: Duration = Duration::from_millis(10);

/// The most that promptness may cost.
const PROMPT_AT_MOST: f64 = 0.03;

/// Sources pause when none came for this long: some packets' time at any rate that parity is for.
const FLUSH_AFTER: Duration = Duration::from_millis(5);

/// Repairs due that are kept while none can be sent.
const MAX_CREDIT: f64 = 16.0;

/// Bytes that the cap allows are kept up to this: some repairs of any usual length.
const MAX_ALLOWANCE: f64 = 32_768.0;

/// Repairs sent ahead of what is due, when sources pause.
const MAX_BORROWED: f64 = 3.0;

/// Repair bytes for each source byte, at most, by loss: what the link's overhead leaves beside
/// headers, acknowledgements and resends.
const CAPS: [(f32, f32); 6] = [
    (0.0, 0.02),
    (0.01, 0.06),
    (0.03, 0.115),
    (0.05, 0.165),
    (0.10, 0.30),
    (0.20, 0.55),
];

/// The share of packets that may stay unrepaired before the one resend.
const TARGET: f64 = 5e-4;

/// A step up for each report of too much unrepaired, and the most.
const MARGIN_UP: f64 = 0.02;
const MARGIN_MOST: f64 = 1.5;

/// The way down for each packet sent: from the most to the least in 250,000.
const MARGIN_DOWN: f64 = 2e-6;
