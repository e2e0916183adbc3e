//! The handshake, frame by frame.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::exchange::{ExchangeError, Heard, Hello, Opening};
use super::{
    Answer, ChallengeState, ClientConfig, ClientEntry, HandshakeError, Initiator, KemKind, Reply,
    Responder, Silence,
};
use crate::proto::aead::AeadKind;
use crate::proto::identity::{PresharedKey, PublicKey, SecretKey};
use crate::proto::pair::{client_config, client_secret, responder, server_secret, unix};
use crate::proto::random::Generator;
use crate::proto::session::{Session, Settings};
use crate::wire::{
    FrameType, HandshakeFormatError, HandshakeKind, LENGTH_LEN, MAX_FRAME_PREAUTH, RefuseReason,
};

/// A server, and what a connection to it holds.
struct Server {
    responder: Responder,
    rng: StdRng,
    psk: Option<PresharedKey>,
    revoked: bool,
    known: PublicKey,
}

impl Server {
    fn new() -> Self {
        Self::with(responder(Settings::default()))
    }

    fn with(responder: Responder) -> Self {
        let rng = StdRng::seed_from_u64(11);
        Self {
            responder,
            rng,
            psk: None,
            revoked: false,
            known: client_secret().public(),
        }
    }

    fn take(&mut self, frame: &[u8], conn: &mut ChallengeState) -> Result<Answer, Silence> {
        let (known, psk, revoked) = (self.known, self.psk.clone(), self.revoked);
        self.responder
            .handle_init(Instant::now(), frame, conn, &mut self.rng, |key| {
                (*key == known).then_some(ClientEntry {
                    psk,
                    id: 7,
                    revoked,
                })
            })
    }

    /// On a connection of its own.
    fn take_new(&mut self, frame: &[u8]) -> Result<Answer, Silence> {
        self.take(frame, &mut ChallengeState::default())
    }
}

fn begin(config: &ClientConfig, secs: u64) -> (Initiator, Vec<u8>) {
    Initiator::new(config, unix(secs), &mut StdRng::seed_from_u64(secs)).unwrap()
}

fn finish(initiator: &mut Initiator, frame: &[u8]) -> Result<Reply, HandshakeError> {
    initiator.handle(Instant::now(), unix(100), frame)
}

fn accepted(answer: Result<Answer, Silence>) -> (Vec<u8>, Box<Session>) {
    match answer {
        Ok(Answer::Accept { reply, session, .. }) => (reply, session),
        other => panic!("{other:?}"),
    }
}

fn challenged(answer: Result<Answer, Silence>) -> Vec<u8> {
    match answer {
        Ok(Answer::Challenge(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

fn established(reply: Result<Reply, HandshakeError>) -> Box<Session> {
    match reply {
        Ok(Reply::Established(session)) => session,
        other => panic!("{other:?}"),
    }
}

fn retried(reply: Result<Reply, HandshakeError>) -> Vec<u8> {
    match reply {
        Ok(Reply::Retry(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_ends_agree_on_session_and_cipher_and_know_each_other() {
    let mut server = Server::new();
    let (mut initiator, init) = begin(&client_config(), 100);
    let Ok(Answer::Accept {
        reply,
        session,
        peer,
        instance,
        client,
        guest: None,
    }) = server.take_new(&init)
    else {
        panic!("not accepted");
    };
    assert_eq!(
        (peer, instance, client),
        (client_secret().public(), *b"instance", 7)
    );
    let ours = established(finish(&mut initiator, &reply));
    assert_eq!((ours.id(), ours.aead()), (session.id(), session.aead()));
    assert_eq!(*ours.peer(), server_secret().public());
    assert_eq!(*session.peer(), client_secret().public());
    assert!(ours.is_confirmed() && !session.is_confirmed());
    assert_eq!(
        finish(&mut initiator, &reply).unwrap_err(),
        HandshakeError::Finished
    );
}

#[test]
fn message_lengths_are_as_drawn_and_fit_before_authentication() {
    for (kem, init_len, reply_len) in [
        (KemKind::MlKem768, 1311, 1158),
        (KemKind::MlKem1024, 1695, 1638),
    ] {
        let config = ClientConfig {
            kem,
            ..client_config()
        };
        let (mut initiator, init) = begin(&config, 100);
        let (reply, _) = accepted(Server::new().take_new(&init));
        assert_eq!((init.len(), reply.len()), (init_len, reply_len));
        assert!(init.len() <= MAX_FRAME_PREAUTH + LENGTH_LEN);
        established(finish(&mut initiator, &reply));
    }
}

#[test]
fn every_cipher_can_be_chosen_by_either_end() {
    for kind in AeadKind::ALL {
        let config = ClientConfig {
            aead: vec![kind],
            ..client_config()
        };
        let all = Responder::new(
            vec![server_secret()],
            &AeadKind::ALL,
            Settings::default(),
            unix(50),
        );
        let (_, init) = begin(&config, 100);
        let (_, session) = accepted(Server::with(all).take_new(&init));
        assert_eq!(session.aead(), kind);
    }
}

#[test]
fn without_a_common_cipher_the_client_is_told() {
    let config = ClientConfig {
        aead: vec![AeadKind::XChaCha20Poly1305],
        ..client_config()
    };
    let (mut initiator, init) = begin(&config, 100);
    let Ok(Answer::Refuse {
        reply,
        reason,
        peer,
    }) = Server::new().take_new(&init)
    else {
        panic!("not refused");
    };
    assert_eq!(
        (reason, peer),
        (RefuseReason::Aead, client_secret().public())
    );
    let refused = HandshakeError::Refused { reason, minor: 0 };
    assert_eq!(finish(&mut initiator, &reply).unwrap_err(), refused);
}

#[test]
fn client_that_was_revoked_is_told_by_a_server_that_knows_its_secrets_and_by_no_replay() {
    let psk = PresharedKey::from_bytes([3; 32]);
    let config = ClientConfig {
        psk: Some(psk.clone()),
        ..client_config()
    };
    let mut server = Server::new();
    server.psk = Some(psk);
    let (_, heard_before) = begin(&config, 100);
    accepted(server.take_new(&heard_before));
    server.revoked = true;
    let (mut initiator, init) = begin(&config, 101);
    let Ok(Answer::Refuse { reply, reason, .. }) = server.take_new(&init) else {
        panic!("not refused");
    };
    assert_eq!(reason, RefuseReason::Revoked);
    let refused = HandshakeError::Refused { reason, minor: 0 };
    assert_eq!(finish(&mut initiator, &reply).unwrap_err(), refused);
    // Who repeats what he has recorded learns nothing that he would not have learned before.
    let replayed = server.take_new(&heard_before);
    assert!(matches!(replayed, Ok(Answer::Challenge(_))), "{replayed:?}");
    // Nothing is kept of what it says: neither times of a far future nor instances fill a table that clients share.
    let again = server.take_new(&init);
    assert!(matches!(again, Ok(Answer::Refuse { .. })), "{again:?}");
}

#[test]
fn a_preshared_key_must_be_the_same_at_both_ends() {
    let key = |byte| Some(PresharedKey::from_bytes([byte; 32]));
    let cases = [
        (key(1), key(1), true),
        (key(1), key(2), false),
        (None, key(1), false),
    ];
    for (client, servers, same) in cases.clone().into_iter().chain([(key(1), None, false)]) {
        let mut server = Server::new();
        server.psk = servers;
        let (mut initiator, init) = begin(
            &ClientConfig {
                psk: client,
                ..client_config()
            },
            100,
        );
        let (reply, _) = accepted(server.take_new(&init));
        let result = finish(&mut initiator, &reply);
        assert_eq!(result.is_ok(), same);
        if !same {
            assert_eq!(result.unwrap_err(), HandshakeError::Rejected);
        }
    }
}

#[test]
fn a_client_with_another_servers_key_gets_silence() {
    let server = SecretKey::from_bytes([9; 32]).public();
    let (_, init) = begin(
        &ClientConfig {
            server,
            ..client_config()
        },
        100,
    );
    assert_eq!(
        Server::new().take_new(&init).unwrap_err(),
        Silence::Unreadable
    );
}

#[test]
fn an_unknown_client_gets_silence() {
    let secret = SecretKey::from_bytes([9; 32]);
    let key = secret.public();
    let (_, init) = begin(
        &ClientConfig {
            secret,
            ..client_config()
        },
        100,
    );
    assert_eq!(
        Server::new().take_new(&init).unwrap_err(),
        Silence::UnknownKey { key }
    );
}

#[test]
fn a_server_answers_for_the_key_it_rotates_from_and_the_one_it_rotates_to() {
    let new = SecretKey::from_bytes([8; 32]);
    let keys = vec![new.clone(), server_secret()];
    let mut server = Server::with(Responder::new(keys, &[], Settings::default(), unix(50)));
    for (time, key) in [(100, new.public()), (101, server_secret().public())] {
        let (mut initiator, init) = begin(
            &ClientConfig {
                server: key,
                ..client_config()
            },
            time,
        );
        let (reply, _) = accepted(server.take_new(&init));
        established(finish(&mut initiator, &reply));
    }
}

#[test]
fn another_major_version_is_silence_at_the_server_and_named_at_the_client() {
    let (mut initiator, mut init) = begin(&client_config(), 100);
    let (mut reply, _) = accepted(Server::new().take_new(&init));
    init[5] = 2;
    let version = HandshakeFormatError::Version { found: 2 };
    assert_eq!(
        Server::new().take_new(&init).unwrap_err(),
        Silence::Format(version)
    );
    reply[5] = 2;
    let error = finish(&mut initiator, &reply).unwrap_err();
    assert_eq!(error, HandshakeError::Format(version));
    assert_eq!(
        error.to_string(),
        "the server's answer is not understood: protocol version 2, not 1"
    );
}

#[test]
fn reflected_messages_are_refused() {
    let (mut initiator, init) = begin(&client_config(), 100);
    let (reply, _) = accepted(Server::new().take_new(&init));
    // To who sent them.
    let found = FrameType::HandshakeInit;
    assert_eq!(
        finish(&mut initiator, &init).unwrap_err(),
        HandshakeError::Unexpected { found }
    );
    let found = FrameType::HandshakeReply;
    assert_eq!(
        Server::new().take_new(&reply).unwrap_err(),
        Silence::NotInit { found }
    );
    // A server that calls itself.
    let config = ClientConfig {
        secret: server_secret(),
        ..client_config()
    };
    let mut server = Server::new();
    server.known = server_secret().public();
    let (_, init) = begin(&config, 100);
    assert_eq!(server.take_new(&init).unwrap_err(), Silence::Reflected);
}

#[test]
fn a_replayed_message_1_is_challenged_and_its_replayer_cannot_answer() {
    let mut server = Server::new();
    let (mut initiator, init) = begin(&client_config(), 100);
    let (reply, _) = accepted(server.take_new(&init));
    let mut conn = ChallengeState::default();
    let first = challenged(server.take(&init, &mut conn));
    let second = challenged(server.take(&init, &mut conn));
    assert_ne!(first, second);
    let key = client_secret().public();
    assert_eq!(
        server.take(&init, &mut conn).unwrap_err(),
        Silence::Stale { key }
    );
    // The session that was agreed first is none the worse.
    established(finish(&mut initiator, &reply));
}

#[test]
fn a_client_whose_clock_went_back_answers_the_challenge() {
    let mut server = Server::new();
    // Before the server's start, which is second 50; then before its own last handshake.
    for time in [40, 30] {
        let (mut initiator, init) = begin(&client_config(), time);
        let mut conn = ChallengeState::default();
        let challenge = challenged(server.take(&init, &mut conn));
        assert_eq!(challenge.len(), 4 + 3 + 32);
        let again = initiator.handle(Instant::now(), unix(time), &challenge);
        let (reply, session) = accepted(server.take(&retried(again), &mut conn));
        assert_eq!(
            established(finish(&mut initiator, &reply)).id(),
            session.id()
        );
    }
}

#[test]
fn an_answer_is_worth_nothing_on_another_connection_or_twice() {
    let mut server = Server::new();
    let (mut initiator, init) = begin(&client_config(), 40);
    let mut conn = ChallengeState::default();
    let challenge = challenged(server.take(&init, &mut conn));
    let again = retried(initiator.handle(Instant::now(), unix(40), &challenge));
    challenged(server.take_new(&again));
    accepted(server.take(&again, &mut conn));
    challenged(server.take(&again, &mut conn));
}

#[test]
fn the_reply_to_a_message_1_that_was_given_up_does_not_serve() {
    let mut server = Server::new();
    let (mut initiator, init) = begin(&client_config(), 100);
    let (stale_reply, _) = accepted(server.take_new(&init));
    let challenge = challenged(server.take_new(&init));
    retried(finish(&mut initiator, &challenge));
    assert_eq!(
        finish(&mut initiator, &stale_reply).unwrap_err(),
        HandshakeError::Rejected
    );
}

#[test]
fn a_client_lets_itself_be_challenged_twice() {
    let mut server = Server::new();
    let (mut initiator, init) = begin(&client_config(), 40);
    let challenge = challenged(server.take_new(&init));
    retried(finish(&mut initiator, &challenge));
    retried(finish(&mut initiator, &challenge));
    let error = finish(&mut initiator, &challenge).unwrap_err();
    assert_eq!(error, HandshakeError::TooManyChallenges);
    let mut short = challenge[..38].to_vec();
    short[3] -= 1;
    let (mut other, _) = begin(&client_config(), 40);
    let error = finish(&mut other, &short).unwrap_err();
    assert_eq!(error, HandshakeError::Challenge { len: 31 });
}

#[test]
fn instances_of_a_key_have_clocks_of_their_own() {
    let mut server = Server::new();
    let (_, init) = begin(&client_config(), 100);
    accepted(server.take_new(&init));
    let (_, init) = begin(
        &ClientConfig {
            instance: [2; 8],
            ..client_config()
        },
        90,
    );
    accepted(server.take_new(&init));
    let (_, init) = begin(&client_config(), 90);
    challenged(server.take_new(&init));
}

#[test]
fn a_server_key_of_low_order_is_refused_before_anything_is_sent() {
    for low in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let key = PublicKey::from_bytes(low);
        let config = ClientConfig {
            server: key,
            ..client_config()
        };
        let error = Initiator::new(&config, unix(100), &mut StdRng::seed_from_u64(1)).unwrap_err();
        assert_eq!(error, HandshakeError::ServerKey { key });
    }
}

#[test]
fn a_message_1_changed_at_any_byte_gets_silence() {
    let mut server = Server::new();
    let (_, init) = begin(&client_config(), 100);
    for index in 0..init.len() {
        let mut changed = init.clone();
        changed[index] ^= 0x40;
        assert!(server.take_new(&changed).is_err(), "byte {index}");
    }
    accepted(server.take_new(&init));
}

#[test]
fn a_message_1_cut_at_any_length_gets_silence_without_a_diffie_hellman() {
    let mut server = Server::new();
    let (_, init) = begin(&client_config(), 100);
    for len in 0..init.len() {
        let mut cut = init[..len].to_vec();
        assert!(
            matches!(server.take_new(&cut), Err(Silence::Format(_))),
            "{len} bytes"
        );
        if let Some(field) = cut.first_chunk_mut::<4>() {
            *field = (len as u32 - 4).to_be_bytes();
            let silence = server.take_new(&cut).unwrap_err();
            let cheap = matches!(silence, Silence::Format(_) | Silence::Short { .. });
            // The last 24 bytes are those of a challenge flag and times, which only a message that
            // opens can tell.
            assert!(cheap || len >= init.len() - 24, "{len} bytes: {silence}");
        }
    }
    let long = vec![1; MAX_FRAME_PREAUTH + LENGTH_LEN + 1];
    let len = long.len();
    let too_long = Silence::Format(HandshakeFormatError::Long { len });
    assert_eq!(server.take_new(&long).unwrap_err(), too_long);
}

fn hello() -> Hello {
    Hello {
        minor: 0,
        capabilities: 0,
        aead_offered: 1,
        aead_hardware: 0,
        instance: [0; 8],
        time: 1,
        challenge: None,
        invitation: None,
    }
}

fn generator() -> Generator {
    Generator::new(&mut StdRng::seed_from_u64(5))
}

fn open(kind: HandshakeKind, context: &[u8]) -> (Opening, Vec<u8>) {
    let server = server_secret().public();
    Opening::start(
        kind,
        context,
        &client_secret(),
        &server,
        None,
        &hello(),
        generator(),
    )
    .unwrap()
}

#[test]
fn a_message_2_changed_or_cut_anywhere_is_refused_and_the_right_one_still_serves() {
    let kind = HandshakeKind::Session768;
    let (mut opening, init) = open(kind, &[]);
    let heard = Heard::read(kind, &[], &server_secret(), &init, generator()).unwrap();
    let (reply, secrets) = heard.accept(None, 0, 0, 42, 1).unwrap();
    for index in 0..reply.len() {
        let mut changed = reply.clone();
        changed[index] ^= 1;
        assert_eq!(
            opening.finish(&changed).unwrap_err(),
            ExchangeError::Crypto,
            "byte {index}"
        );
        assert_eq!(
            opening.finish(&reply[..index]).unwrap_err(),
            ExchangeError::Crypto
        );
    }
    let agreed = opening.finish(&reply).unwrap();
    let secrets = secrets.unwrap();
    assert_eq!(agreed.session, 42);
    assert_eq!(agreed.secrets.hash, secrets.hash);
    assert_eq!(agreed.secrets.split, secrets.split);
    assert_eq!(agreed.secrets.kem, secrets.kem);
    assert_ne!(secrets.split[..32], secrets.split[32..]);
}

#[test]
fn a_message_1_serves_only_its_own_kind_and_context() {
    let kind = HandshakeKind::Epoch768;
    let (_, init) = open(kind, &[1; 16]);
    let read = |kind, context: &[u8]| {
        Heard::read(kind, context, &server_secret(), &init, generator()).map(|heard| heard.peer)
    };
    assert_eq!(read(kind, &[1; 16]), Ok(client_secret().public()));
    assert_eq!(read(kind, &[2; 16]), Err(ExchangeError::Crypto));
    assert_eq!(
        read(HandshakeKind::Session768, &[]),
        Err(ExchangeError::Crypto)
    );
    assert_eq!(
        read(HandshakeKind::Session768, &[1; 16]),
        Err(ExchangeError::Crypto)
    );
}

#[test]
fn two_handshakes_never_agree_on_the_same_keys() {
    let kind = HandshakeKind::Session768;
    let secrets = || {
        // With the same generator the X25519 half is the same, and the ML-KEM half is drawn anew.
        let (_, init) = open(kind, &[]);
        let heard = Heard::read(kind, &[], &server_secret(), &init, generator()).unwrap();
        heard.accept(None, 0, 0, 42, 1).unwrap().1.unwrap()
    };
    let (one, other) = (secrets(), secrets());
    assert_ne!(one.kem, other.kem);
    assert_ne!(one.hash, other.hash);
    assert_eq!(one.split, other.split);
}

#[test]
fn debug_output_bears_no_secret() {
    let psk = PresharedKey::from_bytes([0x77; 32]);
    let config = ClientConfig {
        psk: Some(psk.clone()),
        ..client_config()
    };
    let mut server = Server::new();
    server.psk = Some(psk.clone());
    let (mut initiator, init) = begin(&config, 100);
    let before = format!("{initiator:?} {:?}", server.responder);
    let answer = server.take_new(&init).unwrap();
    let answered = format!("{answer:?}");
    let (reply, _) = accepted(Ok(answer));
    let after = format!("{config:?} {:?}", finish(&mut initiator, &reply));
    let mut bytes = format!("{:?}", [0x77u8; 32]);
    bytes.truncate(40);
    for text in [before, answered, after] {
        for secret in [
            client_secret().to_base64(),
            server_secret().to_base64(),
            psk.to_base64(),
        ] {
            assert!(!text.contains(&**secret));
        }
        // Few enough to show a secret that is cut short, and more than random bytes bring by chance.
        for byte in [193, 81] {
            assert!(!text.contains(&format!("{byte}, {byte}, {byte}, {byte}")));
        }
        assert!(!text.contains(&bytes));
    }
}

#[test]
fn equal_messages_at_the_same_moment_are_accepted_once() {
    let server = responder(Settings::default());
    let (_, init) = begin(&client_config(), 100);
    let accepted = std::thread::scope(|scope| {
        let answer = |seed| {
            let (server, init) = (&server, &init);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                let mut conn = ChallengeState::default();
                let entry = |_: &PublicKey| Some(ClientEntry::default());
                server.handle_init(Instant::now(), init, &mut conn, &mut rng, entry)
            })
        };
        let threads: Vec<_> = (0..4).map(answer).collect();
        let answers = threads.into_iter().map(|thread| thread.join().unwrap());
        answers
            .filter(|answer| matches!(answer, Ok(Answer::Accept { .. })))
            .count()
    });
    assert_eq!(accepted, 1);
}

#[test]
fn a_time_before_1970_or_far_away_is_no_trouble() {
    for time in [unix(0) - Duration::from_secs(9), unix(u64::MAX >> 20)] {
        let (mut initiator, init) =
            Initiator::new(&client_config(), time, &mut StdRng::seed_from_u64(1)).unwrap();
        let mut server = Server::new();
        let mut conn = ChallengeState::default();
        let init = match server.take(&init, &mut conn).unwrap() {
            Answer::Challenge(challenge) => {
                retried(initiator.handle(Instant::now(), time, &challenge))
            }
            Answer::Accept { .. } | Answer::Refuse { .. } => continue,
        };
        accepted(server.take(&init, &mut conn));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic_and_get_no_answer(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..2060),
        honest in any::<bool>(),
        kind in 1u8..3,
        frame_type in 1u8..4,
    ) {
        if honest && bytes.len() > 7 {
            let length = bytes.len() as u32 - 4;
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            bytes[4..7].copy_from_slice(&[frame_type, 1, kind]);
        }
        prop_assert!(Server::new().take_new(&bytes).is_err());
        let (mut initiator, _) = begin(&client_config(), 100);
        let is_challenge = bytes.len() == 39 && bytes[4] == 3;
        prop_assert!(finish(&mut initiator, &bytes).is_err() || is_challenge);
    }
}
