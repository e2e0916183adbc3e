//! Handshakes over datagrams: what strangers get, and what clients do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, RngExt as _, SeedableRng, rngs::StdRng};

use super::*;
use crate::proto::aead::AeadKind;
use crate::proto::cookie::CookieJar;
use crate::proto::identity::SecretKey;
use crate::proto::load::LoadLimits;
use crate::proto::pair::{client_config, client_secret, responder, server_secret, unix};
use crate::proto::path::DatagramPath;
use crate::proto::session::{Session, Settings};
use crate::wire::{HandshakeFormatError, HandshakeKind, InitDatagram, RefuseReason, SessionId};

fn strangers() -> DatagramResponder {
    with(responder(Settings::default()), LoadLimits::default())
}

fn with(responder: Responder, limits: LoadLimits) -> DatagramResponder {
    DatagramResponder::new(Arc::new(responder), limits, &mut StdRng::seed_from_u64(9))
}

fn from(number: u32) -> DatagramPath {
    let [a, b, c, d] = number.to_be_bytes();
    DatagramPath::to(SocketAddr::from(([10 ^ a, b, c, d], 4000)))
}

fn caller(now: Instant, seed: u64) -> DatagramInitiator {
    let mut rng = StdRng::seed_from_u64(seed);
    DatagramInitiator::new(now, &client_config(), from(0), &mut rng).unwrap()
}

fn init(caller: &mut DatagramInitiator, now: Instant, clock: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let due = caller.poll_timeout().max(now);
    assert!(caller.poll_transmit(due, unix(clock), &mut out).unwrap());
    out
}

fn known(key: &crate::proto::PublicKey) -> Option<ClientEntry> {
    (*key == client_secret().public()).then(ClientEntry::default)
}

fn accepted(reception: Reception) -> (Vec<u8>, Box<Session>) {
    let Reception::Handshake(Answer::Accept { reply, session, .. }) = reception else {
        panic!("{reception:?}");
    };
    (reply, session)
}

#[test]
fn garbage_from_anywhere_is_counted_and_answered_by_nothing() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let mut rng = StdRng::seed_from_u64(1);
    let mut bytes = vec![0; 1500];
    for number in 0..20_000 {
        rng.fill_bytes(&mut bytes);
        // Half of them look like the front of an Init.
        if number % 2 == 0 {
            bytes[..3].copy_from_slice(&[1, 1, 1]);
        }
        let len = rng.random_range(0..bytes.len());
        let reception = strangers.handle(now, from(number), &bytes[..len], 0, |_| panic!("asked"));
        match reception {
            Reception::Drop(_) | Reception::Sealed { .. } | Reception::Join { .. } => {}
            Reception::Answer(_) | Reception::Handshake(_) => panic!("{reception:?}"),
        }
    }
    let stats = strangers.stats();
    assert!(stats.wrong_mac > 500 && stats.malformed > 5000, "{stats:?}");
    assert_eq!((stats.answered, stats.cookies, stats.challenges), (0, 0, 0));
    // What costs a hash is no load: no cookie is asked for.
    let first = init(&mut caller(now, 1), now, 100);
    accepted(strangers.handle(now, from(1), &first, 0, known));
}

#[test]
fn a_client_gets_through_a_flood_from_strangers_who_know_the_servers_key() {
    let (mut strangers, start) = (strangers(), Instant::now());
    let mut jar = CookieJar::new(&server_secret().public());
    let mut forged = vec![1, 1, 1];
    forged.resize(3 + 1304, 0x5A);
    jar.finish(start, &mut forged);
    let flood = |strangers: &mut DatagramResponder, now, first: u32| {
        for number in first..first + 2000 {
            let reception = strangers.handle(now, from(number), &forged, 0, |_| panic!("asked"));
            match reception {
                Reception::Drop(StrangerDrop::Silence(_)) => {}
                Reception::Answer(answer) => assert!(answer.as_bytes().len() * 20 < forged.len()),
                Reception::Sealed { .. }
                | Reception::Join { .. }
                | Reception::Handshake(_)
                | Reception::Drop(_) => panic!("{reception:?}"),
            }
        }
    };
    flood(&mut strangers, start, 1000);
    let mut caller = caller(start, 2);
    let first = init(&mut caller, start, 100);
    let Reception::Answer(cookie) = strangers.handle(start, from(5), &first, 0, known) else {
        panic!("no cookie under load");
    };
    flood(&mut strangers, start, 9000);
    assert!(caller.handle(start, cookie.as_bytes()).unwrap().is_none());
    assert_eq!(caller.poll_timeout(), start, "the cookie is used at once");
    let second = init(&mut caller, start, 101);
    let (reply, _) = accepted(strangers.handle(start, from(5), &second, 0, known));
    assert!(caller.handle(start, &reply).unwrap().is_some());
    let stats = strangers.stats();
    assert_eq!(stats.silent, 200, "read without a cookie in that second");
    assert_eq!(stats.cookies, 3801);
}

#[test]
fn many_unconfirmed_sessions_are_load() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let first = init(&mut caller(now, 3), now, 100);
    let half = LoadLimits::default().unconfirmed;
    let reception = strangers.handle(now, from(1), &first, half + 1, known);
    assert!(matches!(reception, Reception::Answer(Short::Cookie(_))));
    let later = now + Duration::from_secs(2);
    accepted(strangers.handle(later, from(1), &first, half, known));
}

#[test]
fn an_address_with_a_cookie_has_its_share_and_no_more() {
    let limits = LoadLimits {
        inits_per_second: 0,
        unconfirmed: 0,
    };
    let mut strangers = with(responder(Settings::default()), limits);
    let now = Instant::now();
    let mut caller = caller(now, 4);
    let first = init(&mut caller, now, 100);
    let Reception::Answer(cookie) = strangers.handle(now, from(1), &first, 0, known) else {
        panic!("no cookie");
    };
    caller.handle(now, cookie.as_bytes()).unwrap();
    for number in 0..20 {
        let next = init(&mut caller, now, 101 + number);
        let reception = strangers.handle(now, from(1), &next, 0, known);
        let limited = matches!(reception, Reception::Drop(StrangerDrop::Limited));
        assert_eq!(limited, number >= 5, "{number}: {reception:?}");
    }
    assert_eq!(strangers.stats().limited, 15);
}

#[test]
fn an_unknown_key_hears_nothing() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let first = init(&mut caller(now, 5), now, 100);
    let reception = strangers.handle(now, from(1), &first, 0, |_| None);
    assert!(matches!(
        reception,
        Reception::Drop(StrangerDrop::Silence(Silence::UnknownKey { .. }))
    ));
}

#[test]
fn every_answer_is_shorter_than_its_init() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let mut caller = caller(now, 6);
    let stale = init(&mut caller, now, 10);
    let Reception::Answer(challenge) = strangers.handle(now, from(1), &stale, 0, known) else {
        panic!("not challenged");
    };
    assert_eq!(challenge.as_bytes().len(), 35);
    caller.handle(now, challenge.as_bytes()).unwrap();
    let proven = init(&mut caller, now, 11);
    let parsed = InitDatagram::parse(&proven).unwrap();
    assert_eq!(parsed.kind, HandshakeKind::Session768);
    assert_eq!((stale.len(), proven.len()), (1339, 1371));
    let (reply, _) = accepted(strangers.handle(now, from(1), &proven, 0, known));
    assert!(reply.len() < stale.len());
    assert!(reply.len() <= crate::wire::BASE_DATAGRAM);
}

#[test]
fn the_answer_to_a_challenge_is_good_once_and_from_its_address() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let mut caller = caller(now, 7);
    // The server knows a newer time of this instance.
    let newer = init(&mut caller, now, 200);
    accepted(strangers.handle(now, from(1), &newer, 0, known));
    let stale = init(&mut caller, now, 100);
    let Reception::Answer(challenge) = strangers.handle(now, from(1), &stale, 0, known) else {
        panic!("not challenged");
    };
    caller.handle(now, challenge.as_bytes()).unwrap();
    let proven = init(&mut caller, now, 101);
    let elsewhere = strangers.handle(now, from(2), &proven, 0, known);
    assert!(matches!(elsewhere, Reception::Answer(_)));
    accepted(strangers.handle(now, from(1), &proven, 0, known));
    let copy = strangers.handle(now, from(1), &proven, 0, known);
    assert!(matches!(copy, Reception::Answer(_)), "{copy:?}");
}

#[test]
fn copies_of_answers_to_challenges_are_worth_nothing_however_many_there_are() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let newer = init(&mut caller(now, 7), now, 200);
    accepted(strangers.handle(now, from(1), &newer, 0, known));
    let mut copies = Vec::new();
    // The same instance, whose clock went back, begins a few sessions.
    for clock in [101, 103, 105] {
        let mut caller = caller(now, 7);
        let stale = init(&mut caller, now, clock);
        let Reception::Answer(challenge) = strangers.handle(now, from(1), &stale, 0, known) else {
            panic!("not challenged");
        };
        caller.handle(now, challenge.as_bytes()).unwrap();
        let proven = init(&mut caller, now, clock + 1);
        accepted(strangers.handle(now, from(1), &proven, 0, known));
        copies.push(proven);
    }
    for copy in copies.iter().chain(&copies) {
        let again = strangers.handle(now, from(1), copy, 0, known);
        assert!(matches!(again, Reception::Answer(_)), "{again:?}");
    }
}

#[test]
fn a_refusal_ends_the_handshake_and_nonsense_does_not() {
    let now = Instant::now();
    let mut caller = caller(now, 8);
    let first = init(&mut caller, now, 100);
    let mut rng = StdRng::seed_from_u64(8);
    for kind in 0..8 {
        let mut nonsense = vec![kind, 1, 1];
        nonsense.extend((0..1200).map(|_| rng.random::<u8>()));
        assert!(caller.handle(now, &nonsense).unwrap().is_none());
        assert!(
            caller
                .handle(now, &nonsense[..kind.into()])
                .unwrap()
                .is_none()
        );
    }
    assert!(
        caller
            .handle(now, &[&[2, 1, 1][..], &[7; 1151]].concat())
            .unwrap()
            .is_none()
    );
    assert_eq!(caller.take_complaint(), Some(HandshakeError::Rejected));
    assert_eq!(caller.take_complaint(), None);
    assert!(caller.handle(now, &[2, 9, 1, 0]).unwrap().is_none());
    assert_eq!(
        caller.take_complaint(),
        Some(HandshakeError::Format(HandshakeFormatError::Version {
            found: 9
        }))
    );
    let picky = Responder::new(
        vec![server_secret()],
        &[AeadKind::XChaCha20Poly1305],
        Settings::default(),
        unix(50),
    );
    let reception = with(picky, LoadLimits::default()).handle(now, from(1), &first, 0, known);
    let Reception::Handshake(Answer::Refuse { reply, .. }) = reception else {
        panic!("{reception:?}");
    };
    assert!(matches!(
        caller.handle(now, &reply),
        Err(HandshakeError::Refused {
            reason: RefuseReason::Aead,
            ..
        })
    ));
}

#[test]
fn no_two_sessions_of_a_server_share_a_handle() {
    let drawn = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&drawn);
    let responder = responder(Settings::default())
        .avoiding(move |_: SessionId| count.fetch_add(1, Ordering::Relaxed) % 10 < 3);
    let mut strangers = with(responder, LoadLimits::default());
    let now = Instant::now();
    let mut caller = caller(now, 9);
    let first = init(&mut caller, now, 100);
    accepted(strangers.handle(now, from(1), &first, 0, known));
    assert_eq!(drawn.load(Ordering::Relaxed), 4);
    let crowded = super::super::pair::responder(Settings::default()).avoiding(|_| true);
    let reception = with(crowded, LoadLimits::default()).handle(now, from(1), &first, 0, known);
    assert!(matches!(
        reception,
        Reception::Drop(StrangerDrop::Silence(Silence::NoHandle))
    ));
}

#[test]
fn that_nobody_is_there_is_believed_of_three_inits_in_a_row_and_not_of_one() {
    let (mut strangers, now) = (
        with(
            responder(Settings::default()),
            LoadLimits {
                inits_per_second: 0,
                unconfirmed: 0,
            },
        ),
        Instant::now(),
    );
    let mut caller = caller(now, 14);
    let mut first = Vec::new();
    for clock in 100..102 {
        first = init(&mut caller, now, clock);
        for _ in 0..10 {
            assert!(!caller.handle_refused(), "however often it is said of one");
        }
    }
    // The server's own word, which only it can say, counts for more.
    let Reception::Answer(cookie) = strangers.handle(now, from(0), &first, 0, known) else {
        panic!("no cookie");
    };
    caller.handle(now, cookie.as_bytes()).unwrap();
    for clock in 102..104 {
        init(&mut caller, now, clock);
        assert!(!caller.handle_refused());
    }
    init(&mut caller, now, 104);
    assert!(caller.handle_refused());
}

#[test]
fn keys_too_long_for_a_datagram_are_refused_before_anything_is_sent() {
    let mut config = client_config();
    config.kem = KemKind::MlKem1024;
    let mut rng = StdRng::seed_from_u64(10);
    let made = DatagramInitiator::new(Instant::now(), &config, from(0), &mut rng);
    assert!(matches!(made, Err(HandshakeError::TooLong)));
}

#[test]
fn inits_leave_at_a_quarter_a_half_one_and_then_every_two_seconds() {
    let start = Instant::now();
    let mut caller = caller(start, 11);
    let mut pauses = Vec::new();
    for number in 0..8 {
        let before = caller.poll_timeout();
        let now = before;
        let bytes = init(&mut caller, now, 100 + number);
        let mut out = bytes;
        assert!(!caller.poll_transmit(now, unix(100), &mut out).unwrap());
        assert!(out.is_empty());
        pauses.push((caller.poll_timeout() - before).as_millis());
    }
    for (pause, due) in pauses
        .iter()
        .zip([250, 500, 1000, 2000, 2000, 2000, 2000, 2000])
    {
        assert!((due * 7 / 8..=due * 9 / 8).contains(pause), "{pauses:?}");
    }
}

#[test]
fn cookies_and_challenges_hurry_a_handshake_a_bounded_number_of_times() {
    let (mut strangers, now) = (strangers(), Instant::now());
    let mut caller = caller(now, 12);
    let mut hurried = 0;
    let mut first = init(&mut caller, now, 10);
    for clock in 11..20 {
        let Reception::Answer(challenge) =
            strangers.handle(now, from(clock as u32), &first, 0, known)
        else {
            panic!("not challenged");
        };
        caller.handle(now, challenge.as_bytes()).unwrap();
        hurried += u32::from(caller.poll_timeout() == now);
        first = init(&mut caller, now, clock);
    }
    assert_eq!(hurried, 3);
}

#[test]
fn a_server_with_two_keys_answers_for_both() {
    let now = Instant::now();
    let old = SecretKey::from_bytes([0x52; 32]);
    let responder = Responder::new(
        vec![server_secret(), old.clone()],
        &[],
        Settings::default(),
        unix(50),
    );
    let mut strangers = with(responder, LoadLimits::default());
    let mut config = client_config();
    config.server = old.public();
    let mut rng = StdRng::seed_from_u64(13);
    let mut caller = DatagramInitiator::new(now, &config, from(0), &mut rng).unwrap();
    let first = init(&mut caller, now, 100);
    let (reply, _) = accepted(strangers.handle(now, from(1), &first, 0, known));
    assert!(caller.handle(now, &reply).unwrap().is_some());
}
