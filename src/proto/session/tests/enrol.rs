//! Guests: what their sessions are good for, and nothing else.

use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::proto::handshake::{
    Answer, ChallengeState, ClientConfig, ClientEntry, Initiator, Responder, Silence,
};
use crate::proto::invitation::invitation_id;
use crate::proto::lossy_pair::{LossyPair, Way};
use crate::proto::pair::{Pair, client_config, responder, unix};
use crate::proto::session::{OpenError, Scope, SessionEvent, Settings};
use crate::wire::{CloseReason, InnerType, InvitationId, Token, Verdict};

const FIRST: LaneId = LaneId::FIRST;

fn token() -> Token {
    Token::from_bytes([7; 32])
}

/// A client that was invited, and a server that has invited it.
fn invited() -> (ClientConfig, Responder) {
    let config = ClientConfig {
        invitation: Some(invitation_id(&token())),
        ..client_config()
    };
    let known = invitation_id(&token());
    let responder = responder(Settings::default()).inviting(move |id| *id == known);
    (config, responder)
}

fn pair() -> Pair {
    let (config, responder) = invited();
    let mut pair = Pair::with(&config, &responder);
    pair.run();
    pair
}

fn answer(config: &ClientConfig, responder: &Responder, known: bool) -> Result<Answer, Silence> {
    let mut rng = StdRng::seed_from_u64(1);
    let (_, frame) = Initiator::new(config, unix(100), &mut rng).unwrap();
    let mut connection = ChallengeState::default();
    let entry = |_: &_| known.then(ClientEntry::default);
    responder.handle_init(Instant::now(), &frame, &mut connection, &mut rng, entry)
}

#[test]
fn known_invitation_makes_a_guest_of_any_key_and_an_unknown_one_of_none() {
    for known in [false, true] {
        let (config, responder) = invited();
        let Ok(Answer::Accept { session, guest, .. }) = answer(&config, &responder, known) else {
            panic!("not accepted");
        };
        assert!(session.is_guest());
        assert_eq!(guest, config.invitation);
    }
    let (_, responder) = invited();
    let unknown = ClientConfig {
        invitation: Some(InvitationId([9; 16])),
        ..client_config()
    };
    assert!(matches!(
        answer(&unknown, &responder, false),
        Err(Silence::UnknownKey { .. })
    ));
    // Somebody who is a client is served as one.
    let (_, responder) = invited();
    let Ok(Answer::Accept { session, guest, .. }) = answer(&unknown, &responder, true) else {
        panic!("not accepted");
    };
    assert!(!session.is_guest() && guest.is_none());
}

#[test]
fn guest_says_its_token_and_is_answered() {
    for (verdict, name) in [(Verdict::Enrolled, "laptop"), (Verdict::Used, "")] {
        let mut pair = pair();
        assert!(pair.client.is_guest() && pair.server.is_guest());
        pair.client.enrol(pair.now, token());
        pair.run();
        let asked = SessionEvent::Enrol(token());
        assert!(
            pair.server_events.contains(&asked),
            "{:?}",
            pair.server_events
        );
        pair.server.answer_enrol(verdict, "laptop");
        pair.run();
        let name = name.to_owned();
        let told = SessionEvent::Enrolled { verdict, name };
        assert!(
            pair.client_events.contains(&told),
            "{:?}",
            pair.client_events
        );
        assert!(pair.errors.is_empty());
    }
}

#[test]
fn whatever_else_a_guest_says_ends_its_session() {
    for kind in 0..=0xFF {
        let Some(kind) = InnerType::from_byte(kind) else {
            continue;
        };
        let harmless = matches!(
            kind,
            InnerType::Enrol
                | InnerType::Enrolled
                | InnerType::Ping
                | InnerType::Pong
                | InnerType::Close
                | InnerType::PathChallenge
                | InnerType::PathResponse
                | InnerType::Probe
                | InnerType::ProbeOk
                // On a stream lane it is of an unknown type, as for everybody.
                | InnerType::Report
        );
        if harmless {
            continue;
        }
        let mut pair = pair();
        let inside = [&[kind.byte()][..], &[0; 40]].concat();
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &inside);
        let error = pair.server.open(pair.now, FIRST, &mut frame).unwrap_err();
        assert_eq!(error, OpenError::Misplaced { kind });
        assert_eq!(error.scope(), Scope::Session);
        assert_eq!(pair.server.closed(), Some(CloseReason::ProtocolError));
    }
}

#[test]
fn guest_joins_no_lane() {
    let mut pair = pair();
    let (_, frame) = pair.client.join_frame(pair.now).unwrap();
    let kind = InnerType::Join;
    let refused = pair.server.handle_join(pair.now, &frame);
    assert_eq!(refused, Err(OpenError::Misplaced { kind }));
}

#[test]
fn client_that_is_none_has_no_token_to_say() {
    let mut pair = Pair::confirmed(Settings::default());
    pair.client.enrol(pair.now, token());
    pair.server.answer_enrol(Verdict::Enrolled, "laptop");
    pair.run();
    assert!(pair.errors.is_empty());
    for (kind, inside) in [
        (InnerType::Enrol, [&[0x0D][..], &[7; 32]].concat()),
        (InnerType::Enrolled, vec![0x18, 1]),
    ] {
        let mut pair = Pair::confirmed(Settings::default());
        let mut frame = seal_raw(&mut pair.client, pair.now, FIRST, &inside);
        let error = pair.server.open(pair.now, FIRST, &mut frame).unwrap_err();
        assert_eq!(error, OpenError::Misplaced { kind });
    }
}

#[test]
fn over_a_lane_that_loses_half_the_token_and_its_answer_arrive() {
    for seed in 0..20 {
        let way = Way {
            loss: 500,
            copies: 100,
            ..Way::default()
        };
        let (config, responder) = invited();
        let mut pair = LossyPair::with(way, &config, responder, seed);
        let mut asked = false;
        let mut told = false;
        for _ in 0..600 {
            pair.pass(millis(100));
            if pair.client.is_some() && !asked {
                asked = true;
                let now = pair.now;
                pair.client().enrol(now, token());
            }
            let events = std::mem::take(&mut pair.server_events);
            // However often it comes, the answer is the same.
            for event in events {
                if event == SessionEvent::Enrol(token()) {
                    pair.server().answer_enrol(Verdict::Enrolled, "laptop");
                }
            }
            let enrolled = |event: &SessionEvent| {
                matches!(
                    event,
                    SessionEvent::Enrolled {
                        verdict: Verdict::Enrolled,
                        ..
                    }
                )
            };
            told = pair
                .client_events
                .iter()
                .filter(|event| enrolled(event))
                .count()
                == 1;
            if told {
                break;
            }
        }
        assert!(told, "seed {seed}");
        let copy = |error: &OpenError| matches!(error, OpenError::Replayed(_));
        assert!(
            pair.errors.iter().all(copy),
            "seed {seed}: {:?}",
            pair.errors
        );
    }
}
