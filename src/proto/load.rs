//! How much strangers may cost: when a server is under load, and what one address may have then.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Whether handshakes come faster than the server cares to answer strangers.
#[derive(Clone, Debug)]
pub struct Load {
    limits: LoadLimits,
    since: Option<Instant>,
    count: u32,
    until: Option<Instant>,
}

impl Load {
    /// Not under load.
    #[must_use]
    pub const fn new(limits: LoadLimits) -> Self {
        Self {
            limits,
            since: None,
            count: 0,
            until: None,
        }
    }

    /// An Init came; `unconfirmed` sessions wait for their first sealed frame. Whether the server
    /// is under load, which lasts [`LOAD_LASTS`] beyond its cause.
    pub fn handle_init(&mut self, now: Instant, unconfirmed: usize) -> bool {
        let over = |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.limits.inits_per_second || unconfirmed > self.limits.unconfirmed {
            self.until = Some(now + LOAD_LASTS);
        }
        self.is_loaded(now)
    }

    /// Whether the server is under load.
    #[must_use]
    pub fn is_loaded(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// From where on a server is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// Inits a second that are read without a cookie.
    pub inits_per_second: u32,
    /// Sessions that may be unconfirmed: half of what the server keeps at most.
    pub unconfirmed: usize,
}

impl Default for LoadLimits {
    /// 200 a second, which takes about a twentieth of a core; 512 unconfirmed, of 1,024.
    fn default() -> Self {
        Self {
            inits_per_second: 200,
            unconfirmed: 512,
        }
    }
}

/// A token bucket for each address (IPv4) or network of 64 bits (IPv6).
#[derive(Debug, Default)]
pub(super) struct SourceLimiter {
    buckets: HashMap<u64, Bucket>,
    swept: Option<Instant>,
}

impl SourceLimiter {
    /// Whether `source` may have another handshake read now.
    pub(super) fn take(&mut self, now: Instant, source: IpAddr) -> bool {
        let key = network(source);
        if !self.buckets.contains_key(&key) && !self.make_room(now) {
            return false;
        }
        self.buckets
            .entry(key)
            .or_insert(Bucket {
                filled: now,
                credit: BURST * TOKEN,
            })
            .take(now)
    }

    /// A bucket that has filled up again is as good as none. Looking for those costs a walk over
    /// the table, so it is done once a second at most.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.buckets.len() < MAX_SOURCES {
            return true;
        }
        let lately = |swept: Instant| now.saturating_duration_since(swept) < Duration::from_secs(1);
        if self.swept.is_some_and(lately) {
            return false;
        }
        self.swept = Some(now);
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        self.buckets.len() < MAX_SOURCES
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    filled: Instant,
    credit: Duration,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        self.credit = self.credit_at(now);
        self.filled = now;
        match self.credit.checked_sub(TOKEN) {
            Some(rest) => {
                self.credit = rest;
                true
            }
            None => false,
        }
    }

    fn credit_at(&self, now: Instant) -> Duration {
        let since = now.saturating_duration_since(self.filled);
        (self.credit.saturating_add(since)).min(BURST * TOKEN)
    }

    fn is_full(&self, now: Instant) -> bool {
        self.credit_at(now) >= BURST * TOKEN
    }
}

/// What a bucket is for: an IPv4 address, or the 64 bits that an IPv6 host's network has.
fn network(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

/// What a handshake costs: 20 a second, as in WireGuard's implementations.
const TOKEN: Duration = Duration::from_millis(50);

/// Handshakes at once from one address, as in WireGuard's implementations.
const BURST: u32 = 5;

/// Addresses that are told apart: half a megabyte. Beyond it, newcomers wait for a second.
const MAX_SOURCES: usize = 16_384;

/// How long load lasts beyond its cause, as in WireGuard's implementations.
pub const LOAD_LASTS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn an_address_gets_five_at_once_and_twenty_a_second() {
        let mut limiter = SourceLimiter::default();
        let now = Instant::now();
        let source = host(1);
        assert_eq!((0..100).filter(|_| limiter.take(now, source)).count(), 5);
        let later = |millis| now + Duration::from_millis(millis);
        assert!(!limiter.take(later(49), source));
        assert!(limiter.take(later(51), source));
        let second = (52..1052).filter(|ms| limiter.take(later(*ms), source));
        assert_eq!(second.count(), 20);
        assert!(limiter.take(later(52), host(2)));
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_and_mapped_addresses_do_not() {
        let address = |text: &str| text.parse().unwrap();
        let same = |a, b| network(address(a)) == network(address(b));
        assert!(same("2001:db8:0:1::1", "2001:db8:0:1:ffff::2"));
        assert!(!same("2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
    }

    #[test]
    fn the_table_of_addresses_is_bounded_and_forgets_who_has_waited() {
        let mut limiter = SourceLimiter::default();
        let now = Instant::now();
        let all = MAX_SOURCES as u32;
        assert!((0..all).all(|n| limiter.take(now, host(n))));
        assert!(!limiter.take(now, host(all)));
        let later = now + Duration::from_secs(1);
        assert!(limiter.take(later, host(all)));
        assert_eq!(limiter.buckets.len(), 1);
    }

    #[test]
    fn load_begins_above_the_rate_or_the_unconfirmed_and_lasts_a_second() {
        let limits = LoadLimits {
            inits_per_second: 3,
            unconfirmed: 2,
        };
        let now = Instant::now();
        let mut load = Load::new(limits);
        let later = |millis| now + Duration::from_millis(millis);
        let rising: Vec<_> = (0..5).map(|_| load.handle_init(now, 0)).collect();
        assert_eq!(rising, [false, false, false, true, true]);
        assert!(load.is_loaded(later(999)));
        assert!(!load.is_loaded(later(1000)));
        assert!(!load.handle_init(later(1000), 2));
        assert!(load.handle_init(later(1001), 3));
    }
}
