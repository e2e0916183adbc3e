//! Reports: what the receiver of a datagram lane saw, told to its sender.
//!
//! A report speaks of one lane and one direction. It repeats itself, so that losing one does no
//! harm: counters are cumulative, and a range is told in several reports. Numbers are written as
//! varints (RFC 9000, section 16) in their shortest form; any other form is refused, so a report has
//! one encoding.
//!
//! ```text
//!  0       1             5             9
//! ┌───────┬─────────────┬─────────────┬─────┬───────────┬───────┬────────┬──────────┬──────────┬────────┐
//! │ flags │ highest (4) │ arrival (4) │ age │ datagrams │ bytes │ ECN-CE │ repaired │ residual │ wasted │
//! └───────┴─────────────┴─────────────┴─────┴───────────┴───────┴────────┴──────────┴──────────┴────────┘
//! ┌────────┬───────┬─────────────────────┬─────────┬─────────────────────────────┐
//! │ ranges │ first │ ranges − 1 times:   │ missing │ if missing > 0:             │
//! │ (1)    │       │ gap, length         │ (1)     │ number (4), then the steps  │
//! └────────┴───────┴─────────────────────┴─────────┴─────────────────────────────┘
//! ```
//!
//! - **flags**: bit 0, the sender of the report asks for a report itself; the others are 0.
//! - **highest**: low 32 bits of the highest datagram number that arrived; **arrival**: when, in
//!   microseconds of the receiver's own clock, modulo 2^32; **age**: microseconds from then until
//!   the report was made.
//! - **first**: datagrams below *highest* that arrived without a gap. Each further range, going
//!   down: **gap**, numbers missing between it and the former, less one; **length**, numbers in it,
//!   less one.
//! - **missing**: source numbers that repair did not bring and the receiver wants again: low 32
//!   bits of the first, then the step to each next, less one.

use super::reader::{Reader, Short};

/// What a receiver says of the datagrams of one lane. The default is a report of nothing but
/// datagram 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether whoever sends this asks for a report of his own direction.
    pub asks: bool,
    /// Low 32 bits of the highest datagram number that arrived.
    pub highest: u32,
    /// When the highest arrived, in microseconds of the receiver's clock, modulo 2^32.
    pub arrival: u32,
    /// Microseconds between that arrival and the making of this report.
    pub age: u32,
    /// Datagrams that arrived, ever; at most [`MAX_VARINT`], like all counters.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that arrived with the mark Congestion Experienced (RFC 3168).
    pub ecn_ce: u64,
    /// What the session's repair did.
    pub repairs: RepairCounts,
    /// Which datagrams arrived.
    pub ranges: Ranges,
    /// Source packets to send again.
    pub missing: Missing,
}

impl Report {
    /// Reads the body of a report.
    ///
    /// # Errors
    /// [`ReportError`]: the body is not exactly a report in its one encoding.
    pub fn parse(body: &[u8]) -> Result<Self, ReportError> {
        let mut reader = Reader::new(body);
        let flags = reader.u8()?;
        if flags & !FLAG_ASKS != 0 {
            return Err(ReportError::Flags { flags });
        }
        let mut report = Self {
            asks: flags & FLAG_ASKS != 0,
            highest: reader.u32()?,
            arrival: reader.u32()?,
            ..Self::default()
        };
        let age = varint(&mut reader)?;
        report.age = u32::try_from(age).map_err(|_| ReportError::Age { age })?;
        for counter in [
            &mut report.datagrams,
            &mut report.bytes,
            &mut report.ecn_ce,
            &mut report.repairs.repaired,
            &mut report.repairs.residual,
            &mut report.repairs.wasted,
        ] {
            *counter = varint(&mut reader)?;
        }
        let ranges = usize::from(reader.u8()?);
        if ranges == 0 || ranges > MAX_RANGES {
            return Err(ReportError::Ranges { ranges });
        }
        let mut oldest = varint(&mut reader)?;
        report.ranges = Ranges::new(oldest);
        for _ in 1..ranges {
            let gap = varint(&mut reader)?;
            let length = varint(&mut reader)?;
            let newest = (oldest.checked_add(gap))
                .and_then(|sum| sum.checked_add(2))
                .ok_or(ReportError::Depth)?;
            oldest = newest.checked_add(length).ok_or(ReportError::Depth)?;
            if !report.ranges.push(Span { newest, oldest }) {
                return Err(ReportError::Depth);
            }
        }
        let missing = usize::from(reader.u8()?);
        if missing > MAX_MISSING {
            return Err(ReportError::Missing { missing });
        }
        if missing > 0 {
            let mut number = reader.u32()?;
            report.missing.push(number);
            for _ in 1..missing {
                let step = varint(&mut reader)?;
                number = (u32::try_from(step).ok())
                    .and_then(|step| step.checked_add(1))
                    .filter(|step| *step < MAX_STEP)
                    .map(|step| number.wrapping_add(step))
                    .ok_or(ReportError::Step { step })?;
                report.missing.push(number);
            }
        }
        match reader.rest().len() {
            0 => Ok(report),
            extra => Err(ReportError::Long { extra }),
        }
    }

    /// Writes the body to the front of `out` and returns its length, at most [`MAX_REPORT_LEN`].
    ///
    /// Counters beyond [`MAX_VARINT`], which no lane reaches, are written as that.
    ///
    /// # Errors
    /// [`ReportError::Room`] when `out` is too short; what it holds then is undefined.
    pub fn write(&self, out: &mut [u8]) -> Result<usize, ReportError> {
        let room = out.len();
        let mut writer = Writer { out, at: 0 };
        self.put(&mut writer).ok_or(ReportError::Room { room })?;
        Ok(writer.at)
    }

    fn put(&self, writer: &mut Writer<'_>) -> Option<()> {
        writer.bytes(&[if self.asks { FLAG_ASKS } else { 0 }])?;
        writer.bytes(&self.highest.to_be_bytes())?;
        writer.bytes(&self.arrival.to_be_bytes())?;
        writer.varint(u64::from(self.age))?;
        for counter in [
            self.datagrams,
            self.bytes,
            self.ecn_ce,
            self.repairs.repaired,
            self.repairs.residual,
            self.repairs.wasted,
        ] {
            writer.varint(counter)?;
        }
        writer.bytes(&[self.ranges.count])?;
        let mut above: Option<u64> = None;
        for span in self.ranges.iter() {
            if let Some(above) = above {
                writer.varint(span.newest.saturating_sub(above).saturating_sub(2))?;
            }
            writer.varint(span.oldest.saturating_sub(span.newest))?;
            above = Some(span.oldest);
        }
        writer.bytes(&[self.missing.count])?;
        let mut former: Option<u32> = None;
        for number in self.missing.low_bits() {
            match former {
                None => writer.bytes(&number.to_be_bytes())?,
                Some(former) => {
                    let step = number.wrapping_sub(former).saturating_sub(1);
                    writer.varint(u64::from(step))?;
                }
            }
            former = Some(number);
        }
        Some(())
    }
}

/// Cumulative counters of the receiving session's repair, over all its lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairCounts {
    /// Source packets that parity brought back.
    pub repaired: u64,
    /// Source packets given up.
    pub residual: u64,
    /// Source packets that came again when they were there, and parity that repaired nothing.
    pub wasted: u64,
}

/// A run of datagrams that arrived, as distances below the highest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Distance of its newest datagram; 0 is the highest itself.
    pub newest: u64,
    /// Distance of its oldest datagram, not less.
    pub oldest: u64,
}

/// Which datagrams arrived: 1 to [`MAX_RANGES`] runs, newest first, with a gap between any two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    spans: [Span; MAX_RANGES],
    count: u8,
}

impl Default for Ranges {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Ranges {
    /// Starts with the run of the highest datagram and the `below` before it.
    #[must_use]
    pub fn new(below: u64) -> Self {
        let mut spans = [Span::default(); MAX_RANGES];
        spans[0].oldest = below.min(MAX_VARINT);
        Self { spans, count: 1 }
    }

    /// Adds the next older run. Returns whether it was taken: there must be room and a gap, and no
    /// distance beyond [`MAX_VARINT`].
    pub fn push(&mut self, span: Span) -> bool {
        let fits = (self.iter().next_back())
            .is_some_and(|last| span.newest.saturating_sub(last.oldest) >= 2)
            && span.newest <= span.oldest
            && span.oldest <= MAX_VARINT;
        match self.spans.get_mut(usize::from(self.count)) {
            Some(slot) if fits => {
                *slot = span;
                self.count += 1;
                true
            }
            Some(_) | None => false,
        }
    }

    /// The runs, newest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Span> + '_ {
        self.spans.iter().take(usize::from(self.count)).copied()
    }
}

/// Source numbers to send again, ascending, at most [`MAX_MISSING`]; of each the low 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    numbers: [u32; MAX_MISSING],
    count: u8,
}

impl Default for Missing {
    fn default() -> Self {
        Self {
            numbers: [0; MAX_MISSING],
            count: 0,
        }
    }
}

impl Missing {
    /// Collects `numbers`, which ascend; what does not ascend, or lies 2^30 or more above its
    /// predecessor, is left out, and so is what there is no room for.
    pub fn collect(numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut missing = Self::default();
        let mut last: Option<u64> = None;
        for number in numbers {
            let ascends = last.is_none_or(|last| {
                number > last && number.saturating_sub(last) < u64::from(MAX_STEP)
            });
            if ascends {
                if !missing.push(number as u32) {
                    break;
                }
                last = Some(number);
            }
        }
        missing
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The whole numbers, given the one that the sender will use `next`; those never used are left out.
    pub fn below(&self, next: u64) -> impl Iterator<Item = u64> + '_ {
        self.low_bits().filter_map(move |low| expand(low, next))
    }

    fn low_bits(&self) -> impl Iterator<Item = u32> + '_ {
        self.numbers.iter().take(self.len()).copied()
    }

    fn push(&mut self, number: u32) -> bool {
        match self.numbers.get_mut(usize::from(self.count)) {
            Some(slot) => {
                *slot = number;
                self.count += 1;
                true
            }
            None => false,
        }
    }
}

/// Finds the highest number below `next` whose low 32 bits are `low`.
#[must_use]
pub fn expand(low: u32, next: u64) -> Option<u64> {
    let newest = next.checked_sub(1)?;
    let behind = (newest as u32).wrapping_sub(low);
    newest.checked_sub(u64::from(behind))
}

/// Why bytes are not a report, or a report does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The body ends within a field.
    #[error("report: {0}")]
    Short(#[from] Short),
    /// Bytes are left behind the last field.
    #[error("report has {extra} bytes too many")]
    Long {
        /// Bytes left.
        extra: usize,
    },
    /// Flags are set that have no meaning.
    #[error("report with flags {flags:#04x}")]
    Flags {
        /// The flags.
        flags: u8,
    },
    /// A varint is longer than it need be.
    #[error("report has {value} in a longer form than needed")]
    Varint {
        /// Its value.
        value: u64,
    },
    /// The age is not below 2^32 microseconds.
    #[error("report is {age} microseconds old")]
    Age {
        /// Microseconds.
        age: u64,
    },
    /// There are no ranges or too many.
    #[error("report has {ranges} ranges where 1 to {MAX_RANGES} may be")]
    Ranges {
        /// Their number.
        ranges: usize,
    },
    /// The ranges reach down by more than [`MAX_VARINT`].
    #[error("report's ranges reach too far down")]
    Depth,
    /// Too many source numbers are missing.
    #[error("report misses {missing} packets where at most {MAX_MISSING} may be")]
    Missing {
        /// Their number.
        missing: usize,
    },
    /// A step between missing numbers is too long to say which is the higher.
    #[error("report steps over {step} packets")]
    Step {
        /// The step, less one.
        step: u64,
    },
    /// There is no room to write it.
    #[error("report does not fit {room} bytes")]
    Room {
        /// Bytes there were.
        room: usize,
    },
}

/// Reads a varint in its shortest form.
fn varint(reader: &mut Reader<'_>) -> Result<u64, ReportError> {
    let first = reader.u8()?;
    let mut value = u64::from(first & 0x3f);
    let bytes = 1_usize << (first >> 6);
    for _ in 1..bytes {
        value = value << 8 | u64::from(reader.u8()?);
    }
    if varint_len(value) == bytes {
        Ok(value)
    } else {
        Err(ReportError::Varint { value })
    }
}

const fn varint_len(value: u64) -> usize {
    match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at.checked_add(bytes.len())?;
        self.out.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }

    fn varint(&mut self, value: u64) -> Option<()> {
        let value = value.min(MAX_VARINT);
        match varint_len(value) {
            1 => self.bytes(&[value as u8]),
            2 => self.bytes(&(value as u16 | 0x4000).to_be_bytes()),
            4 => self.bytes(&(value as u32 | 0x8000_0000).to_be_bytes()),
            _ => self.bytes(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
        }
    }
}

/// Bit 0 of the flags.
const FLAG_ASKS: u8 = 1;

/// Ranges of a report. At 10 % random loss they tell of 320 datagrams, which at 50 Mbit/s are 13
/// reports' worth: a range is told often enough to survive the loss of reports.
pub const MAX_RANGES: usize = 32;

/// Source numbers of a report that may be asked for again; more wait for the next one.
pub const MAX_MISSING: usize = 64;

/// Steps between missing numbers stay well below half the 32-bit circle, so that order is known, and
/// within four bytes.
const MAX_STEP: u32 = 1 << 30;

/// Largest number that a varint holds (RFC 9000, section 16).
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Longest body of a report, when all its numbers are as long as they can be; a common one has 40
/// to 80 bytes.
pub const MAX_REPORT_LEN: usize =
    1 + 4 + 4 + 8 + 6 * 8 + 1 + 8 + (MAX_RANGES - 1) * 16 + 1 + 4 + (MAX_MISSING - 1) * 4;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn body(report: &Report) -> Vec<u8> {
        let mut out = [0; MAX_REPORT_LEN];
        let len = report.write(&mut out).unwrap();
        out[..len].to_vec()
    }

    #[test]
    fn the_bytes_are_as_drawn() {
        let mut report = Report {
            asks: true,
            highest: 0x0102_0304,
            arrival: 0x0a0b_0c0d,
            age: 300,
            datagrams: 5,
            bytes: 70_000,
            ecn_ce: 1,
            repairs: RepairCounts {
                repaired: 2,
                residual: 3,
                wasted: 4,
            },
            ranges: Ranges::new(9),
            missing: Missing::collect([0x1_0000_0007, 0x1_0000_0008, 0x1_0000_000b]),
        };
        assert!(report.ranges.push(Span {
            newest: 11,
            oldest: 75
        }));
        assert_eq!(
            body(&report),
            [
                1, 1, 2, 3, 4, 10, 11, 12, 13, 0x41, 0x2c, 5, 0x80, 1, 0x11, 0x70, 1, 2, 3, 4, 2,
                9, 0, 0x40, 0x40, 3, 0, 0, 0, 7, 0, 2
            ]
        );
    }

    #[test]
    fn the_longest_report_has_the_longest_length() {
        let far = u64::from(MAX_STEP - 1);
        let mut report = Report {
            age: u32::MAX,
            datagrams: u64::MAX,
            bytes: u64::MAX,
            ecn_ce: u64::MAX,
            repairs: RepairCounts {
                repaired: u64::MAX,
                residual: u64::MAX,
                wasted: u64::MAX,
            },
            ranges: Ranges::new(1 << 40),
            missing: Missing::collect((0..MAX_MISSING as u64).map(|n| n * (far / 2))),
            ..Report::default()
        };
        let mut at = 1 << 40;
        for _ in 1..MAX_RANGES {
            let span = Span {
                newest: at + (1 << 40),
                oldest: at + (1 << 41),
            };
            assert!(report.ranges.push(span));
            at = span.oldest;
        }
        assert_eq!(body(&report).len(), MAX_REPORT_LEN);
        let read = Report::parse(&body(&report)).unwrap();
        assert_eq!(read.ranges, report.ranges);
        assert_eq!(read.missing, report.missing);
        assert_eq!(read.bytes, MAX_VARINT);
    }

    #[test]
    fn a_report_that_does_not_fit_is_refused() {
        let mut out = [0; 21];
        let room = out.len();
        let report = Report {
            missing: Missing::collect([1]),
            ..Report::default()
        };
        assert_eq!(
            report.write(&mut out),
            Err(ReportError::Room { room }),
            "its length is {}",
            body(&report).len()
        );
    }

    #[test]
    fn a_number_in_a_longer_form_is_refused() {
        let mut long = body(&Report::default());
        long.splice(9..10, [0x40, 0]);
        assert_eq!(Report::parse(&long), Err(ReportError::Varint { value: 0 }));
    }

    #[test]
    fn missing_numbers_keep_their_high_bits_at_the_sender() {
        let numbers = [0xffff_fffe, 0x1_0000_0001, 0x1_0000_0002];
        let missing = Missing::collect(numbers);
        assert_eq!(missing.below(0x1_0000_0010).collect::<Vec<_>>(), numbers);
        // Never sent: there is no such number below.
        assert_eq!(Missing::collect([7]).below(7).count(), 0);
    }

    #[test]
    fn at_most_64_numbers_are_missed_and_32_ranges_told() {
        assert_eq!(Missing::collect(0..1000).len(), MAX_MISSING);
        let mut ranges = Ranges::new(0);
        let taken = (1..100).filter(|n| {
            ranges.push(Span {
                newest: n * 2,
                oldest: n * 2,
            })
        });
        assert_eq!(taken.count(), MAX_RANGES - 1);
    }

    proptest! {
        #[test]
        fn what_parses_is_written_as_the_same_bytes(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(report) = Report::parse(&bytes) {
                prop_assert_eq!(body(&report), bytes);
            }
        }

        #[test]
        fn what_is_written_parses_as_the_same(
            asks in any::<bool>(),
            fixed in any::<(u32, u32, u32)>(),
            counters in any::<[u64; 6]>(),
            first in 0_u64..10_000,
            spans in vec((0_u64..1_000_000, 0_u64..1_000_000), 0..40),
            numbers in vec(1_u64..100_000, 0..80),
            flip in any::<(usize, u8)>(),
        ) {
            let [datagrams, bytes, ecn_ce, repaired, residual, wasted] = counters.map(|c| c >> 2);
            let mut at = 0;
            let numbers = numbers.iter().map(|step| { at += step; at });
            let mut report = Report {
                asks,
                highest: fixed.0,
                arrival: fixed.1,
                age: fixed.2,
                datagrams,
                bytes,
                ecn_ce,
                repairs: RepairCounts { repaired, residual, wasted },
                ranges: Ranges::new(first),
                missing: Missing::collect(numbers),
            };
            let mut oldest = first;
            for (gap, length) in spans {
                let span = Span { newest: oldest + 2 + gap, oldest: oldest + 2 + gap + length };
                if report.ranges.push(span) {
                    oldest = span.oldest;
                }
            }
            let mut written = body(&report);
            prop_assert_eq!(Report::parse(&written), Ok(report));
            for cut in 0..written.len() {
                prop_assert!(Report::parse(&written[..cut]).is_err());
            }
            let at = flip.0 % written.len();
            written[at] ^= flip.1;
            if let Ok(other) = Report::parse(&written) {
                prop_assert_eq!(body(&other), written);
            }
        }

        #[test]
        fn low_bits_name_the_newest_number_that_has_them(next in 1_u64.., back in 0_u64..1 << 32) {
            if let Some(number) = (next - 1).checked_sub(back) {
                prop_assert_eq!(expand(number as u32, next), Some(number));
            }
        }
    }
}
