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

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _, consts};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInPlace as _;
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::aead::same_secret;
use super::identity::PublicKey;
use super::load::SourceLimiter;
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
    /// is, so that nothing need be kept. It is good until the secret changes, or what is in `who`.
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
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
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
pub(super) fn address_bytes(source: SocketAddr) -> ([u8; 16], [u8; 2]) {
    let address = match source.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    (address.octets(), source.port().to_be_bytes())
}

/// Life of the secret (WireGuard, section 5.4.7).
const SECRET_LIFE: Duration = Duration::from_secs(120);

/// How long a client uses a cookie: as long as the secret lives at most.
const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// Inits a cookie may answer: those of one schedule that may still be under way.
const REMEMBERED: usize = 4;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const SERVER: PublicKey = PublicKey::from_bytes([7; 32]);

    fn checker() -> CookieChecker {
        let other = PublicKey::from_bytes([8; 32]);
        CookieChecker::new(&[other, SERVER], &mut StdRng::seed_from_u64(1))
    }

    fn at(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 1234))
    }

    fn init(jar: &mut CookieJar, now: Instant) -> Vec<u8> {
        let mut init = b"\x01\x01\x01 noise".to_vec();
        jar.finish(now, &mut init);
        init
    }

    fn cookie(verdict: Verdict) -> CookieReply {
        match verdict {
            Verdict::NeedCookie(reply) => reply,
            Verdict::Pass | Verdict::Invalid | Verdict::Limited => panic!("{verdict:?}"),
        }
    }

    /// The two MACs as Python's `hashlib.blake2s` has them.
    #[test]
    fn macs_are_keyed_blake2s() {
        let mut jar = CookieJar::new(&SERVER);
        let now = Instant::now();
        let first = init(&mut jar, now);
        assert_eq!(hex(&first[9..25]), "1deeaeda4ce2ada58c42cbf5f007ce53");
        assert_eq!(first[25..], [0; 16]);
        jar.cookie = Some((Zeroizing::new([9; 16]), now));
        assert_eq!(
            hex(&init(&mut jar, now)[25..]),
            "bffd4297b760ab3c6e18e825b7c2968f"
        );
    }

    /// A cookie sealed by an implementation that shares nothing with this one.
    #[test]
    fn a_cookie_opens_as_the_draft_of_xchacha20_poly1305_has_it() {
        let mut jar = CookieJar::new(&SERVER);
        let now = Instant::now();
        init(&mut jar, now);
        let reply = unhex(
            "06000102030405060708090a0b0c0d0e0f1011121314151617d90164854004fc8c14525cfb71f3\
             09c5d3a8fe18713b4d0f100042a95212825a",
        );
        assert!(jar.handle_reply(now, &reply));
        assert_eq!(
            jar.cookie.as_ref().map(|(cookie, _)| **cookie),
            Some([0xC0; 16])
        );
    }

    #[test]
    fn without_load_mac1_is_enough_and_any_changed_byte_is_too_much() {
        let (mut checker, now) = (checker(), Instant::now());
        let init = init(&mut CookieJar::new(&SERVER), now);
        assert_eq!(checker.check(now, &init, at(1), || false), Verdict::Pass);
        for index in 0..init.len() - MAC_LEN {
            let mut changed = init.clone();
            changed[index] ^= 1;
            let verdict = checker.check(now, &changed, at(1), || panic!("asked"));
            assert_eq!(verdict, Verdict::Invalid, "byte {index}");
        }
        for len in 0..2 * MAC_LEN {
            let verdict = checker.check(now, &init[..len], at(1), || panic!("asked"));
            assert_eq!(verdict, Verdict::Invalid);
        }
        let stranger = CookieJar::new(&PublicKey::from_bytes([9; 32]));
        let other = self::init(&mut { stranger }, now);
        assert_eq!(
            checker.check(now, &other, at(1), || false),
            Verdict::Invalid
        );
    }

    #[test]
    fn under_load_only_a_cookie_of_that_address_and_this_secret_passes() {
        let (mut checker, now) = (checker(), Instant::now());
        let mut jar = CookieJar::new(&SERVER);
        let first = init(&mut jar, now);
        let reply = cookie(checker.check(now, &first, at(1), || true));
        assert!(jar.handle_reply(now, &reply.to_bytes()));
        let second = init(&mut jar, now);
        assert_eq!(checker.check(now, &second, at(1), || true), Verdict::Pass);
        cookie(checker.check(now, &second, at(2), || true));
        let mut other_port = at(1);
        other_port.set_port(1235);
        cookie(checker.check(now, &second, other_port, || true));
        let later = now + SECRET_LIFE;
        cookie(checker.check(later, &second, at(1), || true));
        assert_eq!(
            init(&mut jar, later)[25..],
            [0; 16],
            "the client forgot it too"
        );
    }

    #[test]
    fn a_cookie_for_another_init_is_none() {
        let (mut checker, now) = (checker(), Instant::now());
        let mut jar = CookieJar::new(&SERVER);
        let inits: Vec<_> = (0..REMEMBERED + 1)
            .map(|number| {
                let mut bytes = vec![1, 1, 1, number as u8];
                jar.finish(now, &mut bytes);
                bytes
            })
            .collect();
        let replies: Vec<_> = inits
            .iter()
            .map(|init| cookie(checker.check(now, init, at(1), || true)).to_bytes())
            .collect();
        let taken: Vec<_> = replies.iter().map(|r| jar.handle_reply(now, r)).collect();
        assert_eq!(taken, [false, true, true, true, true]);
        let mut changed = replies[4];
        changed[30] ^= 1;
        assert!(!jar.handle_reply(now, &changed));
        assert!(!jar.handle_reply(now, &changed[1..]));
    }

    #[test]
    fn a_challenge_is_of_one_address_one_client_and_one_secret() {
        let (mut checker, now) = (checker(), Instant::now());
        let first = checker.challenge(now, at(1), &[b"key", b"instance"]);
        assert_eq!(first, checker.challenge(now, at(1), &[b"key", b"instance"]));
        assert_ne!(first[..16], first[16..]);
        for other in [
            checker.challenge(now, at(2), &[b"key", b"instance"]),
            checker.challenge(now, at(1), &[b"yek", b"instance"]),
            checker.challenge(now + SECRET_LIFE, at(1), &[b"key", b"instance"]),
        ] {
            assert_ne!(other, first);
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }
}
