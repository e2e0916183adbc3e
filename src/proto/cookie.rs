//! What a handshake over datagrams must show before it costs the server anything: WireGuard's mac1,
//! mac2 and cookie (WireGuard, section 5.4.4 and 5.4.7), with labels of our own.
//!
//! ```text
//!  mac1   = BLAKE2s(BLAKE2s("adit mac1" ‖ server key), everything before mac1)       keyed, 16 bytes
//!  mac2   = BLAKE2s(cookie, everything before mac2)                                  keyed, 16 bytes
//!  cookie = BLAKE2s(secret, "cookie" ‖ address ‖ port)                               keyed, 16 bytes
//!  reply  = XChaCha20-Poly1305(BLAKE2s("adit cookie" ‖ server key), nonce, cookie, AAD: mac1)
//! ```
//!
//! mac1 costs a stranger the knowledge of the server's public key, and the server one hash for what
//! was sent blindly. Under load the server also wants mac2, which only somebody who receives at the
//! address that the datagram claims can make: the cookie went there, sealed against whoever has not
//! seen the Init. Those are then held to a few handshakes a second for each address. The server keeps nothing for anybody: the
//! secret is drawn anew every two minutes, and whose cookie is of an earlier one gets another.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _, consts};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::aead::same_secret;
use super::identity::PublicKey;
use super::random::Generator;
use crate::wire::{
    CHALLENGE_LEN, COOKIE_LABEL, COOKIE_LEN, COOKIE_NONCE_LEN, CookieReply, MAC_LEN, MAC1_LABEL,
};

/// The server's half: judges Inits, makes cookies and challenges. No state for anybody but a
/// bounded table of addresses that have shown a cookie.
pub struct CookieChecker {
    keys: Vec<MacKeys>,
    secret: Zeroizing<[u8; 32]>,
    drawn: Option<Instant>,
    generator: Generator,
    limiter: SourceLimiter,
}

impl CookieChecker {
    /// Judges for a server with these public keys.
    #[must_use]
    pub fn new(keys: &[PublicKey], rng: &mut impl rand::CryptoRng) -> Self {
        Self {
            keys: keys.iter().map(MacKeys::new).collect(),
            secret: Zeroizing::new([0; 32]),
            drawn: None,
            generator: Generator::new(rng),
            limiter: SourceLimiter::default(),
        }
    }

    /// Judges an Init that came from `source`; `under_load` is asked if its mac1 is right.
    pub fn check(
        &mut self,
        now: Instant,
        datagram: &[u8],
        source: SocketAddr,
        under_load: impl FnOnce() -> bool,
    ) -> Verdict {
        let Some((before_mac2, mac2)) = split_mac(datagram) else {
            return Verdict::Invalid;
        };
        let Some((before_mac1, mac1)) = split_mac(before_mac2) else {
            return Verdict::Invalid;
        };
        let right = |keys: &&MacKeys| same_secret(&mac(&*keys.mac1, &[before_mac1]), mac1);
        let Some(keys) = self.keys.iter().position(|keys| right(&keys)) else {
            return Verdict::Invalid;
        };
        if !under_load() {
            return Verdict::Pass;
        }
        let cookie = self.cookie(now, source);
        if !same_secret(&mac(&*cookie, &[before_mac2]), mac2) {
            return self.reply(keys, &cookie, mac1);
        }
        if self.limiter.take(now, source.ip()) {
            Verdict::Pass
        } else {
            Verdict::Limited
        }
    }

    /// The challenge that whoever sends a stale Init from `source` is to answer: a MAC over who it
    /// is, so that nothing need be kept. It is good until the secret changes.
    pub(super) fn challenge(
        &mut self,
        now: Instant,
        source: SocketAddr,
        who: &[&[u8]],
    ) -> [u8; CHALLENGE_LEN] {
        self.rotate(now);
        let mut challenge = [0; CHALLENGE_LEN];
        for (half, bytes) in challenge.chunks_exact_mut(MAC_LEN).enumerate() {
            let (address, port) = address_bytes(source);
            let number = [half as u8];
            let mut input: Vec<&[u8]> = vec![b"challenge", &number, &address, &port];
            input.extend_from_slice(who);
            bytes.copy_from_slice(&mac(&*self.secret, &input));
        }
        challenge
    }

    fn cookie(&mut self, now: Instant, source: SocketAddr) -> Zeroizing<[u8; COOKIE_LEN]> {
        self.rotate(now);
        let (address, port) = address_bytes(source);
        Zeroizing::new(mac(&*self.secret, &[b"cookie", &address, &port]))
    }

    fn reply(&mut self, keys: usize, cookie: &[u8; COOKIE_LEN], mac1: &[u8]) -> Verdict {
        let nonce: [u8; COOKIE_NONCE_LEN] = self.generator.array();
        let mut sealed = *cookie;
        let Some(keys) = self.keys.get(keys) else {
            return Verdict::Invalid;
        };
        let made = keys
            .cookie
            .encrypt_in_place_detached(&XNonce::from(nonce), mac1, &mut sealed);
        // Fails only for a text longer than 256 GiB.
        let Ok(tag) = made else {
            return Verdict::Invalid;
        };
        let reply = CookieReply {
            nonce,
            sealed,
            tag: tag.into(),
        };
        Verdict::NeedCookie(reply)
    }

    fn rotate(&mut self, now: Instant) {
        let old = |drawn: Instant| now.saturating_duration_since(drawn) >= SECRET_LIFE;
        if self.drawn.is_none_or(old) {
            self.generator.fill(&mut *self.secret);
            self.drawn = Some(now);
        }
    }
}

impl std::fmt::Debug for CookieChecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CookieChecker").finish_non_exhaustive()
    }
}

/// What is to be done with an Init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Read it.
    Pass,
    /// Answer with this cookie, and forget it.
    NeedCookie(CookieReply),
    /// It was made without the server's key: forget it.
    Invalid,
    /// Its address has had its share for now: forget it.
    Limited,
}

/// The client's half: puts the MACs behind an Init, keeps the cookie it was given.
pub struct CookieJar {
    keys: MacKeys,
    sent: [Option<[u8; MAC_LEN]>; REMEMBERED],
    next: usize,
    cookie: Option<(Zeroizing<[u8; COOKIE_LEN]>, Instant)>,
}

impl CookieJar {
    /// For Inits to the server with this key.
    #[must_use]
    pub fn new(server: &PublicKey) -> Self {
        Self {
            keys: MacKeys::new(server),
            sent: [None; REMEMBERED],
            next: 0,
            cookie: None,
        }
    }

    /// Appends mac1 and mac2 to an Init that ends with its Noise message.
    pub fn finish(&mut self, now: Instant, init: &mut Vec<u8>) {
        let mac1 = mac(&*self.keys.mac1, &[init]);
        if let Some(slot) = self.sent.get_mut(self.next) {
            *slot = Some(mac1);
        }
        self.next = (self.next + 1) % REMEMBERED;
        init.extend_from_slice(&mac1);
        let young = |at: &Instant| now.saturating_duration_since(*at) < COOKIE_LIFE;
        self.cookie.take_if(|(_, at)| !young(at));
        let mac2 = self
            .cookie
            .as_ref()
            .map_or([0; MAC_LEN], |(cookie, _)| mac(&**cookie, &[init]));
        init.extend_from_slice(&mac2);
    }

    /// Takes a whole cookie datagram; whether it answers one of the last Inits.
    pub fn handle_reply(&mut self, now: Instant, datagram: &[u8]) -> bool {
        let Ok(reply) = CookieReply::parse(datagram) else {
            return false;
        };
        let opens = |mac1: &[u8; MAC_LEN]| {
            let mut cookie = Zeroizing::new(reply.sealed);
            let nonce = XNonce::from(reply.nonce);
            let tag = (&reply.tag).into();
            self.keys
                .cookie
                .decrypt_in_place_detached(&nonce, mac1, &mut *cookie, tag)
                .ok()
                .map(|()| cookie)
        };
        let cookie = self.sent.iter().flatten().find_map(opens);
        let opened = cookie.is_some();
        if let Some(cookie) = cookie {
            self.cookie = Some((cookie, now));
        }
        opened
    }
}

impl std::fmt::Debug for CookieJar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CookieJar").finish_non_exhaustive()
    }
}

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
struct SourceLimiter {
    buckets: HashMap<u64, Bucket>,
    swept: Option<Instant>,
}

impl SourceLimiter {
    /// Whether `source` may have another handshake read now.
    fn take(&mut self, now: Instant, source: IpAddr) -> bool {
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

/// The keys that come of a server's public key.
struct MacKeys {
    mac1: Zeroizing<[u8; 32]>,
    cookie: XChaCha20Poly1305,
}

impl MacKeys {
    fn new(server: &PublicKey) -> Self {
        let key = |label: &[u8]| -> [u8; 32] {
            let mut hash = Blake2s256::new();
            blake2::Digest::update(&mut hash, label);
            blake2::Digest::update(&mut hash, server.as_bytes());
            hash.finalize().into()
        };
        Self {
            mac1: Zeroizing::new(key(MAC1_LABEL)),
            cookie: XChaCha20Poly1305::new(&key(COOKIE_LABEL).into()),
        }
    }
}

/// Keyed BLAKE2s with 16 bytes of output (RFC 7693, section 2.9), over the parts in a row.
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut mac = Blake2sMac::<consts::U16>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("blake2s key of {} bytes", key.len()));
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

fn split_mac(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(bytes.len().checked_sub(MAC_LEN)?)
}

/// Address and port, in a form that no two addresses share.
fn address_bytes(source: SocketAddr) -> ([u8; 16], [u8; 2]) {
    let address = match source.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    (address.octets(), source.port().to_be_bytes())
}

/// What a bucket is for: an IPv4 address, or the 64 bits that an IPv6 host's network has.
fn network(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

/// Life of the secret (WireGuard, section 5.4.7).
const SECRET_LIFE: Duration = Duration::from_secs(120);

/// How long a client uses a cookie: as long as the secret lives at most.
const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// What a handshake costs: 20 a second, as in WireGuard's implementations.
const TOKEN: Duration = Duration::from_millis(50);

/// Handshakes at once from one address, as in WireGuard's implementations.
const BURST: u32 = 5;

/// Addresses that are told apart: half a megabyte. Beyond it, newcomers wait for a second.
const MAX_SOURCES: usize = 16_384;

/// Inits a cookie may answer: those of one schedule that may still be under way.
const REMEMBERED: usize = 4;

/// How long load lasts beyond its cause, as in WireGuard's implementations.
pub const LOAD_LASTS: Duration = Duration::from_secs(1);
