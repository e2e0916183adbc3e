//! The receiver's end: elimination of the missing sources, one repair at a time.

use std::collections::VecDeque;
use std::fmt;

use super::{MAX_EQUATIONS, MAX_WINDOW, coefficient};
use crate::codec::Work;
use crate::gf256::divide;
use crate::kernel::{self, Kernel};
use crate::stream::{
    DecoderStats, RepairOutcome, SourceOutcome, StreamDecoder, StreamError, check_work, in_range,
};

/// What a decoder can say about a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// Nothing of it or after it has come yet.
    Unseen,
    /// It arrived or was repaired.
    Known,
    /// It is missing, and repairs may bring it if they go on coming; where none came it stays so.
    Open,
    /// It is missing, and repairs to come will hardly bring it: they are expected to begin after it,
    /// and what is at hand does not determine it. Only a resend helps.
    Hopeless,
    /// It lies before the window.
    Expired,
}

/// Repairs missing sources of a stream by Gaussian elimination as sources and repairs arrive.
///
/// # What it keeps
///
/// The last `window` shards, and up to `equations` rows. A row is what is left of a repair once
/// everything known was subtracted: coefficients over missing sources only, and the bytes that their
/// sum must have. Rows are kept in reduced echelon form. The **pivot** of a row is the oldest source
/// in it, and no other row has that source. So:
///
/// - a source is determined exactly when its row has no other source left; it is repaired then, and
///   no other row changes;
/// - the oldest missing source is in one row at most: when it leaves the window that row goes with
///   it, and nothing else is lost;
/// - a repair that says nothing new is found by its coefficients alone, before any shard is touched.
///
/// Each repair costs one multiply-and-add per known source it covers and per row it meets.
pub struct WindowDecoder<W> {
    kernel: &'static dyn Kernel,
    /// `window` shards of `capacity` bytes, then `equations + 1` rows of `window + capacity`: the
    /// coefficient of source `number` at `number % window`, and the bytes.
    work: W,
    capacity: usize,
    /// The state of `number` is in `number % window`, for numbers in `base..end`.
    slots: Box<[Slot]>,
    base: u64,
    end: u64,
    /// How many of `base..end` are missing.
    missing: usize,
    /// Where repairs to come are expected to begin at the lowest: as far before the highest number
    /// covered as the longest of the last repairs reached.
    floor: u64,
    /// The highest number covered, and one.
    covered: u64,
    /// The spans of the last repairs, in no order; the next one replaces that at `span_at`.
    spans: [usize; RECENT_REPAIRS],
    span_at: usize,
    rows: Vec<Row>,
    /// Places for rows that are not in use: at least one.
    free: Vec<usize>,
    /// Numbers repaired and not asked for yet, at most `window`.
    repaired: VecDeque<u64>,
    stats: DecoderStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Missing,
    /// The shard's length; a repaired one may have zeros at its end.
    Known(usize),
}

#[derive(Clone, Copy, Debug)]
struct Row {
    /// The oldest source with a coefficient.
    pivot: u64,
    /// How many of the bytes are in use; those beyond hold anything and count as zero.
    len: usize,
    /// Where the row lies.
    place: usize,
    /// Whether it has changed since it was last looked at.
    touched: bool,
}

impl<W: Work> WindowDecoder<W> {
    /// Makes a decoder of the stream that begins with number `first`.
    ///
    /// It keeps the last `window` (1 to [`MAX_WINDOW`]) shards of at most `capacity` bytes and up to
    /// `equations` (1 to [`MAX_EQUATIONS`]) repairs at a time, in a work space of at least
    /// [`Self::work_len`]. The window should exceed the longest span by what repairs come later than
    /// their sources; as many sources can be missing at a time as there are equations.
    ///
    /// # Errors
    /// A size is out of range or the work space is too small.
    pub fn new(
        work: W,
        first: u64,
        window: usize,
        equations: usize,
        capacity: usize,
    ) -> Result<Self, StreamError> {
        Self::with_kernel(kernel::best(), work, first, window, equations, capacity)
    }

    /// Makes a decoder that runs on the given kernel, for measurements and comparisons.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kernel(
        kernel: &'static dyn Kernel,
        work: W,
        first: u64,
        window: usize,
        equations: usize,
        capacity: usize,
    ) -> Result<Self, StreamError> {
        in_range("window", window, MAX_WINDOW)?;
        in_range("number of equations", equations, MAX_EQUATIONS)?;
        in_range("shard capacity", capacity, isize::MAX as usize)?;
        let needed = Self::work_len(window, equations, capacity);
        check_work(needed, work.as_ref().len())?;
        Ok(Self {
            kernel,
            work,
            capacity,
            slots: vec![Slot::Missing; window].into_boxed_slice(),
            base: first,
            end: first,
            missing: 0,
            floor: first,
            covered: first,
            spans: [0; RECENT_REPAIRS],
            span_at: 0,
            rows: Vec::with_capacity(equations),
            free: (0..=equations).collect(),
            repaired: VecDeque::with_capacity(window),
            stats: DecoderStats::default(),
        })
    }

    /// Returns the bytes of work space that such a decoder needs.
    pub const fn work_len(window: usize, equations: usize, capacity: usize) -> usize {
        let rows = equations.saturating_add(1);
        window
            .saturating_mul(capacity)
            .saturating_add(rows.saturating_mul(window.saturating_add(capacity)))
    }

    /// Returns the numbers in the window: the last is the highest that was seen or covered.
    pub fn window(&self) -> std::ops::Range<u64> {
        self.base..self.end
    }

    /// Returns how many sources in the window are missing.
    pub fn missing_len(&self) -> usize {
        self.missing
    }

    /// Returns the missing sources in the window, the oldest first, each [`Prospect::Open`] or
    /// [`Prospect::Hopeless`].
    pub fn missing(&self) -> impl Iterator<Item = (u64, Prospect)> {
        let none_missing = self.missing == 0;
        let numbers = if none_missing { self.end } else { self.base }..self.end;
        numbers
            .filter(|&number| self.slots[self.slot(number)] == Slot::Missing)
            .map(|number| (number, self.prospect(number)))
    }

    /// Tells what is known about `number`.
    ///
    /// [`Prospect::Hopeless`] is a forecast: repairs to come are expected to end no earlier than those
    /// that came, and to be no longer than the longest of the last 32. One that was overtaken
    /// on the way may still bring the source.
    pub fn prospect(&self, number: u64) -> Prospect {
        if number < self.base {
            return Prospect::Expired;
        }
        if number >= self.end {
            return Prospect::Unseen;
        }
        if self.slots[self.slot(number)] != Slot::Missing {
            return Prospect::Known;
        }
        if number >= self.floor {
            return Prospect::Open;
        }
        // Suppose that repairs to come bring everything from the floor on. What is left below it
        // is in echelon form still, so this one is determined then if its row has no other source
        // below the floor.
        let alone = self.rows.iter().any(|row| {
            row.pivot == number
                && (number + 1..self.floor.min(self.end)).all(|other| self.entry(row, other) == 0)
        });
        if alone {
            Prospect::Open
        } else {
            Prospect::Hopeless
        }
    }

    /// Returns the shard of `number` if it is in the window and known; a repaired one may have
    /// zeros at its end.
    pub fn shard(&self, number: u64) -> Option<&[u8]> {
        if !(self.base..self.end).contains(&number) {
            return None;
        }
        let slot = self.slot(number);
        match self.slots[slot] {
            Slot::Known(len) => Some(&self.work.as_ref()[slot * self.capacity..][..len]),
            Slot::Missing => None,
        }
    }

    fn note_span(&mut self, end: u64, span: usize) {
        self.spans[self.span_at] = span;
        self.span_at = (self.span_at + 1) % RECENT_REPAIRS;
        self.covered = self.covered.max(end);
        let longest = self.spans.iter().max().copied().unwrap_or(0);
        self.floor = self.covered.saturating_sub(longest as u64);
    }

    /// Moves the window so that it ends with `end`, which takes along what it leaves behind.
    fn advance(&mut self, end: u64) {
        let window = self.slots.len() as u64;
        if end <= self.end {
            return;
        }
        if end - self.end >= window {
            let left = (end - window).saturating_sub(self.end);
            self.stats.lost = self.stats.lost.saturating_add(self.missing as u64 + left);
            while let Some(row) = self.rows.pop() {
                self.free.push(row.place);
            }
            self.slots.fill(Slot::Missing);
            self.missing = self.slots.len();
            (self.base, self.end) = (end - window, end);
            return;
        }
        while self.end < end {
            if self.end - self.base == window {
                self.expire_oldest();
            }
            let slot = self.slot(self.end);
            self.slots[slot] = Slot::Missing;
            self.missing += 1;
            self.end += 1;
        }
    }

    fn expire_oldest(&mut self) {
        let number = self.base;
        if self.slots[self.slot(number)] == Slot::Missing {
            self.missing -= 1;
            self.stats.lost += 1;
            if let Some(at) = self.rows.iter().position(|row| row.pivot == number) {
                self.release(at);
            }
        }
        self.base += 1;
    }

    /// Subtracts a source that came from every row that has it.
    fn substitute(&mut self, number: u64, shard: &[u8]) {
        let kernel = self.kernel;
        let slot = self.slot(number);
        let mut pivoted = None;
        let mut at = 0;
        while let Some(&row) = self.rows.get(at) {
            let (coefficients, bytes) = self.row_mut(row.place);
            let factor = std::mem::take(&mut coefficients[slot]);
            kernel.mul_add(&mut bytes[..row.len], shard, factor);
            if factor != 0 && exceeds(shard, row.len) {
                // A repair covered this source and was shorter: it lied, and the row with it. The
                // last row takes its place, which is behind any that was noted.
                self.stats.repairs_malformed += 1;
                self.release(at);
                continue;
            }
            self.rows[at].touched |= factor != 0;
            if row.pivot == number {
                pivoted = Some(at);
            }
            at += 1;
        }
        if let Some(at) = pivoted {
            self.pivot(at);
        }
        self.settle();
    }

    /// Sets up the coefficients of a repair in a free place, without what the rows say already.
    ///
    /// Returns whether anything is left.
    fn reduce(&mut self, place: usize, numbers: std::ops::Range<u64>, key: u16) -> bool {
        let kernel = self.kernel;
        let (coefficients, _) = self.row_mut(place);
        coefficients.fill(0);
        for number in numbers.clone() {
            let slot = self.slot(number);
            if self.slots[slot] == Slot::Missing {
                self.row_mut(place).0[slot] = coefficient(number, key);
            }
        }
        for at in 0..self.rows.len() {
            let row = self.rows[at];
            let Some(factor) = self.share(&row, &numbers, key) else {
                continue;
            };
            let window = self.slots.len();
            if let Some((target, from)) = self.rows_mut(place, row.place) {
                kernel.mul_add(&mut target[..window], &from[..window], factor);
            }
        }
        self.row_mut(place).0.iter().any(|&entry| entry != 0)
    }

    /// Returns how many times `row` has to be subtracted from a repair so that its pivot vanishes;
    /// `None` if the repair does not cover that.
    ///
    /// No row has another's pivot, so this is the same before and after other rows were subtracted.
    fn share(&self, row: &Row, numbers: &std::ops::Range<u64>, key: u16) -> Option<u8> {
        numbers
            .contains(&row.pivot)
            .then(|| divide(coefficient(row.pivot, key), self.entry(row, row.pivot)))
    }

    /// Adds the row whose coefficients [`reduce`](Self::reduce) left in `place`, with its bytes: the
    /// parity less the known sources and the other rows.
    fn add_row(&mut self, place: usize, numbers: std::ops::Range<u64>, key: u16, parity: &[u8]) {
        let kernel = self.kernel;
        let mut len = parity.len();
        let stride = self.stride();
        let (shards, rows) = self
            .work
            .as_mut()
            .split_at_mut(self.slots.len() * self.capacity);
        let bytes = &mut rows[place * stride + self.slots.len()..][..self.capacity];
        bytes[..len].copy_from_slice(parity);
        for number in numbers.clone() {
            let slot = (number % self.slots.len() as u64) as usize;
            if let Slot::Known(shard_len) = self.slots[slot] {
                let shard = &shards[slot * self.capacity..][..shard_len];
                kernel.mul_add(&mut bytes[..len], shard, coefficient(number, key));
            }
        }
        for at in 0..self.rows.len() {
            let row = self.rows[at];
            let Some(factor) = self.share(&row, &numbers, key) else {
                continue;
            };
            let window = self.slots.len();
            if let Some((target, from)) = self.rows_mut(place, row.place) {
                let (target, from) = (&mut target[window..], &from[window..]);
                len = add(kernel, (target, len), (from, row.len), factor);
            }
        }
        self.rows.push(Row {
            pivot: numbers.start,
            len,
            place,
            touched: true,
        });
        self.pivot(self.rows.len() - 1);
        self.settle();
    }

    /// Makes the oldest source of a row its pivot, and takes that out of all other rows; releases
    /// the row if it has no source left.
    fn pivot(&mut self, at: usize) {
        let kernel = self.kernel;
        let new = self.rows[at];
        let oldest = (new.pivot..self.end).find(|&number| self.entry(&new, number) != 0);
        let Some(pivot) = oldest else {
            self.release(at);
            return;
        };
        self.rows[at].pivot = pivot;
        let divisor = self.entry(&new, pivot);
        for other in 0..self.rows.len() {
            let row = self.rows[other];
            let entry = self.entry(&row, pivot);
            if other == at || entry == 0 {
                continue;
            }
            let factor = divide(entry, divisor);
            let window = self.slots.len();
            if let Some((target, from)) = self.rows_mut(row.place, new.place) {
                let (target, bytes) = target.split_at_mut(window);
                let (from, from_bytes) = from.split_at(window);
                kernel.mul_add(target, from, factor);
                let len = add(kernel, (bytes, row.len), (from_bytes, new.len), factor);
                self.rows[other].len = len;
                self.rows[other].touched = true;
            }
        }
    }

    /// Repairs the sources of all rows that have one only.
    fn settle(&mut self) {
        let mut at = 0;
        while let Some(row) = self.rows.get_mut(at) {
            let touched = std::mem::take(&mut row.touched);
            let row = *row;
            if touched && self.is_alone(&row) {
                self.deliver(&row);
                self.release(at);
            } else {
                at += 1;
            }
        }
    }

    /// Tells whether a row has no source but its pivot.
    fn is_alone(&self, row: &Row) -> bool {
        let others = self.coefficients(row).iter().filter(|&&entry| entry != 0);
        others.take(2).count() == 1
    }

    /// Takes the bytes of a row with one source as that source.
    fn deliver(&mut self, row: &Row) {
        let slot = self.slot(row.pivot);
        let inverse = divide(1, self.entry(row, row.pivot));
        let (stride, window) = (self.stride(), self.slots.len());
        let (shards, rows) = self.work.as_mut().split_at_mut(window * self.capacity);
        let bytes = &rows[row.place * stride + window..][..row.len];
        let shard = &mut shards[slot * self.capacity..][..row.len];
        shard.fill(0);
        self.kernel.mul_add(shard, bytes, inverse);
        self.slots[slot] = Slot::Known(row.len);
        self.missing -= 1;
        self.stats.repaired += 1;
        if self.repaired.len() == window {
            // Of more numbers than a window has, the first one lies before it.
            self.repaired.pop_front();
        }
        self.repaired.push_back(row.pivot);
    }

    fn release(&mut self, at: usize) {
        let row = self.rows.swap_remove(at);
        self.free.push(row.place);
    }

    /// Drops the row of the oldest source, which is the next to expire.
    fn displace(&mut self) {
        let rows = self.rows.iter().enumerate();
        if let Some((at, _)) = rows.min_by_key(|(_, row)| row.pivot) {
            self.stats.repairs_displaced += 1;
            self.release(at);
        }
    }

    fn slot(&self, number: u64) -> usize {
        (number % self.slots.len() as u64) as usize
    }

    /// Returns the bytes from one row to the next.
    fn stride(&self) -> usize {
        self.slots.len() + self.capacity
    }

    fn coefficients(&self, row: &Row) -> &[u8] {
        let rows = self.slots.len() * self.capacity;
        &self.work.as_ref()[rows + row.place * self.stride()..][..self.slots.len()]
    }

    fn entry(&self, row: &Row, number: u64) -> u8 {
        self.coefficients(row)[self.slot(number)]
    }

    /// Returns the coefficients and bytes in one place.
    fn row_mut(&mut self, place: usize) -> (&mut [u8], &mut [u8]) {
        let (window, stride) = (self.slots.len(), self.stride());
        let (_, rows) = self.work.as_mut().split_at_mut(window * self.capacity);
        rows[place * stride..][..stride].split_at_mut(window)
    }

    /// Returns what lies in two places, coefficients and bytes; `None` if they are the same.
    fn rows_mut(&mut self, a: usize, b: usize) -> Option<(&mut [u8], &[u8])> {
        let (window, stride) = (self.slots.len(), self.stride());
        let (_, rows) = self.work.as_mut().split_at_mut(window * self.capacity);
        let places = [a, b].map(|place| place * stride..(place + 1) * stride);
        let [a, b] = rows.get_disjoint_mut(places).ok()?;
        Some((a, b))
    }
}

impl<W: Work> StreamDecoder for WindowDecoder<W> {
    fn handle_source(&mut self, number: u64, shard: &[u8]) -> SourceOutcome {
        let (Some(end), true) = (number.checked_add(1), shard.len() <= self.capacity) else {
            self.stats.sources_malformed += 1;
            return SourceOutcome::Malformed;
        };
        if number < self.base {
            self.stats.sources_expired += 1;
            return SourceOutcome::Expired;
        }
        self.advance(end);
        let slot = self.slot(number);
        if self.slots[slot] != Slot::Missing {
            self.stats.sources_known += 1;
            return SourceOutcome::Known;
        }
        self.slots[slot] = Slot::Known(shard.len());
        self.missing -= 1;
        self.stats.sources += 1;
        self.work.as_mut()[slot * self.capacity..][..shard.len()].copy_from_slice(shard);
        if !self.rows.is_empty() {
            self.substitute(number, shard);
        }
        SourceOutcome::New
    }

    fn handle_repair(&mut self, first: u64, span: usize, key: u16, parity: &[u8]) -> RepairOutcome {
        let end = first.checked_add(span as u64);
        let possible = (1..=self.slots.len()).contains(&span) && parity.len() <= self.capacity;
        let (Some(end), true) = (end, possible) else {
            self.stats.repairs_malformed += 1;
            return RepairOutcome::Malformed;
        };
        if first >= self.base {
            self.advance(end);
        }
        if first < self.base {
            self.stats.repairs_expired += 1;
            return RepairOutcome::Expired;
        }
        self.note_span(end, span);
        let numbers = first..end;
        let (mut any_missing, mut too_short) = (false, false);
        for number in numbers.clone() {
            let slot = self.slot(number);
            match self.slots[slot] {
                Slot::Missing => any_missing = true,
                Slot::Known(len) => {
                    let shard = &self.work.as_ref()[slot * self.capacity..][..len];
                    too_short |= exceeds(shard, parity.len());
                }
            }
        }
        if too_short {
            self.stats.repairs_malformed += 1;
            return RepairOutcome::Malformed;
        }
        let Some(&place) = self.free.last().filter(|_| any_missing) else {
            self.stats.repairs_redundant += 1;
            return RepairOutcome::Redundant;
        };
        if !self.reduce(place, numbers.clone(), key) {
            self.stats.repairs_redundant += 1;
            return RepairOutcome::Redundant;
        }
        self.free.pop();
        if self.free.is_empty() {
            // Rows are as many as there may be. Without one of them this repair says as much or
            // more, so it is not redundant now either.
            self.displace();
            self.reduce(place, numbers.clone(), key);
        }
        self.stats.repairs_useful += 1;
        self.add_row(place, numbers, key, parity);
        RepairOutcome::Useful
    }

    fn poll_repaired(&mut self) -> Option<(u64, &[u8])> {
        while let Some(number) = self.repaired.pop_front() {
            if number >= self.base {
                return self.shard(number).map(|shard| (number, shard));
            }
        }
        None
    }

    fn stats(&self) -> DecoderStats {
        self.stats
    }
}

impl<W> fmt::Debug for WindowDecoder<W> {
    /// Shows numbers only: the shards are what users send.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowDecoder")
            .field("window", &(self.base..self.end))
            .field("missing", &self.missing)
            .field("rows", &self.rows.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// Tells whether a shard has anything but zeros beyond `len`: zeros are what repaired ones may end in.
fn exceeds(shard: &[u8], len: usize) -> bool {
    let beyond = shard.get(len..).unwrap_or_default();
    beyond.iter().any(|&byte| byte != 0)
}

/// Adds `factor` times the bytes `from` to `target`, each with the length in use, and returns the
/// length of the sum.
fn add(
    kernel: &dyn Kernel,
    (target, len): (&mut [u8], usize),
    (from, from_len): (&[u8], usize),
    factor: u8,
) -> usize {
    if from_len > len {
        target[len..from_len].fill(0);
    }
    kernel.mul_add(target, &from[..from_len], factor);
    len.max(from_len)
}

/// Repairs whose spans tell what is to come: short ones for single packets come among long ones.
const RECENT_REPAIRS: usize = 32;
