//! Says in the log which public key a client had that the server does not list.
//!
//! # Theory of operation
//!
//! Such a client hears nothing at all, so its operator can only ask the server's; and the one line
//! that helps, the key as it would stand in `clients:`, must be there without a change of the log
//! level. Nobody can cause it who does not know the server's public key, but whoever does can come
//! with a new key each time. So a line must be earned:
//!
//! - a key is named once in [`AGAIN_AFTER`];
//! - all keys together get [`BURST`] lines at once and one more each [`REFILL`].
//!
//! What was not said is counted, and the next line says how many.
//!
//! # Limits
//!
//! As many keys are remembered as can have been named within [`AGAIN_AFTER`]: [`MAX_NAMED`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

use crate::io::clock;
use crate::proto::PublicKey;

/// The keys that were named of late, for all of a server's listeners.
#[derive(Debug)]
pub struct Unlisted(Mutex<Notices>);

impl Unlisted {
    /// Begins with nothing said.
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Notices::new(now)))
    }

    /// Logs that a client with `key` was not answered, unless that was said just now or too much was.
    pub fn tell(&self, key: &PublicKey) {
        let news = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .news(clock::now(), key);
        if let Some(untold) = news {
            info!(
                public_key = %key,
                untold,
                "a client was not answered: its public key is not listed in `clients`, and was not enrolled"
            );
        }
    }
}

/// Which lines are due.
#[derive(Debug)]
struct Notices {
    /// Keys that were named less than [`AGAIN_AFTER`] ago, the oldest first.
    named: Vec<(PublicKey, Instant)>,
    /// Lines that may be written now.
    allowance: u32,
    /// Since when the allowance grows.
    since: Instant,
    /// Handshakes that were passed over since the last line.
    untold: u64,
}

impl Notices {
    fn new(now: Instant) -> Self {
        Self {
            named: Vec::with_capacity(MAX_NAMED),
            allowance: BURST,
            since: now,
            untold: 0,
        }
    }

    /// Returns how many were passed over since the last line when one is due now.
    fn news(&mut self, now: Instant, key: &PublicKey) -> Option<u64> {
        self.refill(now);
        self.named.retain(|(_, at)| now < *at + AGAIN_AFTER);
        let known = self.named.iter().any(|(named, _)| named == key);
        if known || self.allowance == 0 || self.named.len() >= MAX_NAMED {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.allowance -= 1;
        self.named.push((*key, now));
        Some(std::mem::take(&mut self.untold))
    }

    fn refill(&mut self, now: Instant) {
        while self.allowance < BURST && now >= self.since + REFILL {
            self.allowance += 1;
            self.since += REFILL;
        }
        // A full allowance does not grow while nobody comes.
        if self.allowance == BURST {
            self.since = now;
        }
    }
}

/// A client that keeps trying is not to fill the log, and who looks within a minute sees it.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A handful of new clients set up at once are all named.
const BURST: u32 = 4;

/// In the long run less than nine thousand lines a day, whoever knocks.
const REFILL: Duration = Duration::from_secs(10);

/// The burst, and what [`REFILL`] adds within [`AGAIN_AFTER`], with both ends.
const MAX_NAMED: usize = BURST as usize + 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    #[test]
    fn key_is_named_once_in_a_minute() {
        let start = Instant::now();
        let mut notices = Notices::new(start);
        assert_eq!(notices.news(start, &key(1)), Some(0));
        for second in 1..60 {
            let now = start + Duration::from_secs(second);
            assert_eq!(notices.news(now, &key(1)), None);
        }
        // What was passed over is said.
        assert_eq!(notices.news(start + AGAIN_AFTER, &key(1)), Some(59));
    }

    #[test]
    fn flood_of_new_keys_gets_a_burst_and_then_one_line_each_10_s() {
        let start = Instant::now();
        let mut notices = Notices::new(start);
        let mut lines = 0;
        for number in 0..100_000 {
            let now = start + Duration::from_millis(10) * number;
            lines += u32::from(notices.news(now, &key(number)).is_some());
            assert!(notices.named.len() <= MAX_NAMED);
        }
        // 1,000 s.
        assert_eq!(lines, BURST + 99);
    }

    #[test]
    fn quiet_hour_earns_no_more_than_a_burst() {
        let start = Instant::now();
        let mut notices = Notices::new(start);
        for number in 0..100 {
            notices.news(start, &key(number));
        }
        let later = start + Duration::from_secs(3600);
        let lines = (100..200).filter(|number| notices.news(later, &key(*number)).is_some());
        assert_eq!(lines.count(), BURST as usize);
    }
}
