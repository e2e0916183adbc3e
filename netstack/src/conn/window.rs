//! The window that the peer is told: less than the ring, and more as the application reads.
//!
//! smoltcp tells all that its ring has free. What is told may not be taken back (RFC 9293 §3.8.6), so of ten thousand flows
//! that nobody reads each would fill its ring. Here the window begins small and doubles each time the application has
//! taken a quarter of it within a second: a receiver that sizes itself by what its application takes, as Linux's does (Fisk and
//! Feng, Dynamic Right-Sizing in TCP, 2001). So it is always ahead of a sender in slow start, and a flow that nobody reads
//! never gets more. It is written over smoltcp's as segments leave.
//!
//! ```text
//!   next          acknowledged        told            reach
//!    │── unread ──────│── may come ────│───────────────│── smoltcp would accept it ──▶
//! ```
//!
//! smoltcp tells of its own accord that its window has opened; it does not know of ours, so the stack does
//! ([`Window::update`]).

use std::time::{Duration, Instant};

use crate::segment::{self, ACK, RST, SYN, Segment, before};

/// What the peer of one flow may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// The first byte that the application has not read; none before the peer's SYN.
    next: Option<u32>,
    /// The first byte that the peer was not told it may send.
    told: u32,
    /// The first byte that smoltcp would not accept, as far as is known.
    reach: u32,
    /// What our SYN told.
    syn: u16,
    /// By how many bits what is told is shifted.
    shift: u8,
    /// How much may be sent beyond what was read, if memory allows.
    size: usize,
    capacity: usize,
    /// What the application has read since the window was last judged, and when that began.
    taken: usize,
    since: Option<Instant>,
    /// It has grown, and nothing was told since.
    grown: bool,
}

impl Window {
    /// Makes the window of a ring of `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Window {
        Window {
            next: None,
            told: 0,
            reach: 0,
            syn: 0,
            shift: 0,
            size: FIRST_WINDOW.min(capacity),
            capacity,
            taken: 0,
            since: None,
            grown: false,
        }
    }

    /// Learns from the peer's SYN from where it sends, and whether windows are scaled.
    pub(crate) fn begin(&mut self, syn: &[u8], sequence: u32) {
        if self.next.is_some() {
            return;
        }
        let first = sequence.wrapping_add(1);
        if segment::has_window_scale(syn) {
            // What smoltcp takes for a ring of this size.
            let bits = usize::BITS - self.capacity.leading_zeros();
            self.shift = bits.saturating_sub(16) as u8;
        }
        self.next = Some(first);
        self.told = first.wrapping_add(u32::from(self.syn));
        self.reach = first.wrapping_add(u32::from(u16::MAX));
    }

    /// Gives the first sequence number that the application has not read.
    pub(crate) fn next(&self) -> Option<u32> {
        self.next
    }

    /// Says whether a segment reaches beyond what the peer was told.
    ///
    /// A window that is full is probed so. And smoltcp 0.14 takes the window of its SYN for a scaled one until it has
    /// sent another segment, and then accepts more than its ring can hold, which ends in a failed assertion.
    pub(crate) fn is_exceeded_by(&self, parsed: Segment) -> bool {
        let end = parsed.sequence.wrapping_add(parsed.payload as u32);
        parsed.payload > 0 && !parsed.has(RST) && self.next.is_some() && before(self.told, end)
    }

    /// Says whether any of a segment lies in the window that the peer was told (RFC 9293 §3.10.7.4), while `queue` bytes wait
    /// to be read.
    pub(crate) fn accepts(&self, parsed: Segment, queue: usize) -> bool {
        let Some(next) = self.next else {
            return false;
        };
        let first = next.wrapping_add(queue as u32);
        if parsed.payload == 0 {
            return !before(parsed.sequence, first) && !before(self.told, parsed.sequence);
        }
        let end = parsed.sequence.wrapping_add(parsed.payload as u32);
        before(first, end) && before(parsed.sequence, self.told)
    }

    /// Takes note that the application has read `count` bytes; `most` is what memory allows the window to be.
    pub(crate) fn advance(&mut self, now: Instant, count: usize, most: usize) {
        let Some(next) = &mut self.next else {
            return;
        };
        *next = next.wrapping_add(count as u32);
        if count == 0 || self.size == self.capacity {
            return;
        }
        let since = *self.since.get_or_insert(now);
        self.taken += count;
        if self.taken < self.size / 4 {
            return;
        }
        let wider = (2 * self.size).min(self.capacity);
        if now.saturating_duration_since(since) <= GROW_WITHIN && wider <= most {
            self.size = wider;
            self.grown = true;
        }
        (self.taken, self.since) = (0, None);
    }

    /// Writes the window into a segment of smoltcp's.
    pub(crate) fn write(&mut self, segment: &mut [u8], parsed: Segment, most: usize) {
        let Some(field) = segment
            .get_mut(14..16)
            .and_then(<[u8]>::first_chunk_mut::<2>)
        else {
            return;
        };
        let own = u16::from_be_bytes(*field);
        let size = self.size.min(most);
        if parsed.has(RST) {
            return;
        }
        if parsed.has(SYN) {
            let tell = own.min(u16::try_from(size).unwrap_or(u16::MAX));
            *field = tell.to_be_bytes();
            self.syn = self.syn.max(tell);
            if let Some(next) = self.next {
                self.told = later(self.told, next.wrapping_add(u32::from(tell)));
            }
            return;
        }
        let Some(next) = self.next.filter(|_| parsed.has(ACK)) else {
            return;
        };
        let mut reach = parsed.ack.wrapping_add(u32::from(own) << self.shift);
        if parsed.payload == 1 {
            // Probes carry one byte, and smoltcp does not note the window that they tell.
            reach = earlier(reach, self.reach);
        } else {
            self.reach = later(self.reach, reach);
        }
        let goal = later(self.told, next.wrapping_add(size as u32));
        let tell = self.scaled(parsed.ack, earlier(goal, reach)).min(own);
        *field = tell.to_be_bytes();
        self.tell(parsed.ack, tell);
    }

    /// Says which window to tell at once while `queue` bytes wait to be read, and with which acknowledgement; none if
    /// that can wait for the next segment.
    pub(crate) fn update(&mut self, queue: usize, most: usize) -> Option<(u32, u16)> {
        let next = self.next?;
        let size = self.size.min(most);
        let ack = next.wrapping_add(queue as u32);
        let goal = earlier(later(self.told, next.wrapping_add(size as u32)), self.reach);
        let (last, new) = (distance(ack, self.told), distance(ack, goal));
        // Not for crumbs (RFC 9293 §3.8.6.2.2), nor while there is as much left as came free; but a sender in slow start
        // is not to wait for the acknowledgement of what it sends next.
        let opened = new.saturating_sub(last);
        if opened == 0 || !self.grown && (new < 2 * last || opened < size / 2) {
            return None;
        }
        let tell = self.scaled(ack, goal);
        self.tell(ack, tell);
        Some((ack, tell))
    }

    /// Gives what was told last, as an acknowledgement and the window from there.
    pub(crate) fn told(&self, queue: usize) -> Option<(u32, u16)> {
        let ack = self.next?.wrapping_add(queue as u32);
        Some((ack, self.scaled(ack, self.told)))
    }

    fn tell(&mut self, ack: u32, tell: u16) {
        let told = ack.wrapping_add(u32::from(tell) << self.shift);
        self.told = later(self.told, told);
        self.grown = false;
    }

    fn scaled(&self, ack: u32, end: u32) -> u16 {
        u16::try_from(distance(ack, end) >> self.shift).unwrap_or(u16::MAX)
    }
}

/// How far it is from `a` to `b`; nothing if `b` lies before.
fn distance(a: u32, b: u32) -> usize {
    if before(b, a) {
        0
    } else {
        b.wrapping_sub(a) as usize
    }
}

fn later(a: u32, b: u32) -> u32 {
    if before(a, b) { b } else { a }
}

fn earlier(a: u32, b: u32) -> u32 {
    if before(a, b) { a } else { b }
}

/// What a SYN can tell, since its window is not scaled; most flows never need more.
const FIRST_WINDOW: usize = 65_535;
/// How fast a quarter of a window has to be taken for it to double: longer than any round trip that serves, so that a sender who
/// waits for the window always has a wider one, and a flow that is slow by itself never.
const GROW_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const RING: usize = 1 << 20;
    const FIRST: u32 = u32::MAX - 1000;
    /// A SYN's header with no option but the window's scale.
    const SYN_HEADER: [u8; 24] = {
        let mut header = [0; 24];
        header[12] = 6 << 4;
        header[20] = 3;
        header[21] = 3;
        header[22] = 7;
        header
    };

    fn window() -> Window {
        let mut window = Window::new(RING);
        let syn = Segment::parse(&SYN_HEADER).unwrap();
        let mut own = SYN_HEADER;
        own[14..16].copy_from_slice(&[0xff; 2]);
        window.write(&mut own, Segment { flags: SYN, ..syn }, usize::MAX);
        assert_eq!(own[14..16], [0xff; 2]);
        window.begin(&SYN_HEADER, FIRST.wrapping_sub(1));
        window
    }

    /// Writes what is told when smoltcp acknowledges `ack` bytes of which `read` were read; returns the told end.
    fn told(window: &mut Window, ack: usize, read: usize, most: usize) -> usize {
        let mut header = [0; 20];
        header[12] = 5 << 4;
        header[13] = ACK;
        header[8..12].copy_from_slice(&FIRST.wrapping_add(ack as u32).to_be_bytes());
        let own = ((RING - (ack - read)) >> 5).min(usize::from(u16::MAX)) as u16;
        header[14..16].copy_from_slice(&own.to_be_bytes());
        let parsed = Segment::parse(&header).unwrap();
        window.write(&mut header, parsed, most);
        ack + (usize::from(u16::from_be_bytes([header[14], header[15]])) << 5)
    }

    fn data(at: usize, payload: usize) -> Segment {
        Segment {
            sequence: FIRST.wrapping_add(at as u32),
            ack: 0,
            flags: ACK,
            header: 20,
            payload,
        }
    }

    #[test]
    fn window_grows_by_what_is_read_in_time_and_not_otherwise() {
        let now = Instant::now();
        let mut window = window();
        assert_eq!(told(&mut window, 0, 0, RING), 65_535 & !31);
        assert_eq!(told(&mut window, 60_000, 0, RING), 60_000 + (5535 & !31));
        window.advance(now, 17_000, RING);
        assert_eq!(window.size, 2 * 65_535);
        let (_, tell) = window.update(43_000, RING).expect("the sender hears of it");
        assert_eq!(usize::from(tell) << 5, (17_000 + 2 * 65_535 - 60_000) & !31);
        window.advance(now, 1000, RING);
        window.advance(now + 2 * GROW_WITHIN, 40_000, RING);
        assert_eq!(window.size, 2 * 65_535, "that was slow");
        for _ in 0..20 {
            window.advance(now, window.size / 4, RING);
        }
        assert_eq!(window.size, RING);
    }

    #[test]
    fn window_that_was_told_is_not_taken_back_when_memory_is_short() {
        let mut window = window();
        let end = 1000 + ((65_535 - 1000) & !31);
        assert_eq!(told(&mut window, 1000, 0, 4096), end, "the SYN told it");
        window.advance(Instant::now(), 60_000, 4096);
        let end = told(&mut window, 60_000, 60_000, 4096);
        assert!((65_504..=65_535).contains(&end), "{end}");
        window.advance(Instant::now(), 5000, 4096);
        assert_eq!(told(&mut window, 65_000, 65_000, 4096), 65_000 + 4096);
    }

    #[test]
    fn what_lies_beyond_is_noticed() {
        let mut window = window();
        assert!(!window.is_exceeded_by(data(65_000, 535)));
        assert!(window.is_exceeded_by(data(65_000, 536)));
        assert!(!window.is_exceeded_by(data(70_000, 0)));
        window.advance(Instant::now(), 65_535, RING);
        let end = told(&mut window, 65_535, 65_535, RING);
        assert!(!window.is_exceeded_by(data(end - 1, 1)) && window.is_exceeded_by(data(end, 1)));
    }

    #[test]
    fn window_that_has_opened_by_half_is_told_at_once() {
        let mut window = window();
        told(&mut window, 65_504, 0, RING);
        assert_eq!(window.update(65_504, RING), None);
        let slow = Instant::now();
        window.advance(slow, 10_000, RING);
        assert_eq!(window.update(55_504, RING), None);
        window.advance(slow + 2 * GROW_WITHIN, 30_000, RING);
        assert_eq!(window.size, 65_535);
        let (ack, tell) = window.update(25_504, RING).unwrap();
        assert_eq!(ack, FIRST.wrapping_add(65_504));
        assert_eq!(usize::from(tell) << 5, 40_000 & !31);
        assert_eq!(window.update(25_504, RING), None, "it was told");
    }
}
