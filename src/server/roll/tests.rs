//! The roll, in virtual time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::proto::{PublicKey, invitation_id};
use crate::wire::{InvitationId, Token, Verdict};

const HOUR: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn token(number: u8) -> Token {
    Token::from_bytes([number; 32])
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

/// A roll with one open invitation, for an hour from 0 on.
fn inviting() -> (Roll, InvitationId) {
    let mut roll = Roll::default();
    assert_eq!(roll.invite(at(0), "laptop", HOUR, &token(1)), Ok(false));
    (roll, invitation_id(&token(1)))
}

/// As a server does with a guest's token.
fn enrol(
    roll: &mut Roll,
    now: SystemTime,
    id: &InvitationId,
    token: &Token,
    key: PublicKey,
    is_client: bool,
) -> (Verdict, Option<String>) {
    match roll.judge(now, id, token, &key, is_client) {
        Ok(Admission::New(name)) => {
            roll.enter(now, id, key);
            (Verdict::Enrolled, Some(name))
        }
        Ok(Admission::Again(name)) => (Verdict::Enrolled, Some(name)),
        Err(verdict) => (verdict, None),
    }
}

fn enrolled(name: &str) -> (Verdict, Option<String>) {
    (Verdict::Enrolled, Some(name.to_owned()))
}

#[test]
fn one_key_enrols_and_every_other_is_told_that_the_invitation_is_used() {
    let (mut roll, id) = inviting();
    assert!(roll.knows(&id));
    assert_eq!(
        enrol(&mut roll, at(5), &id, &token(1), key(1), false),
        enrolled("laptop")
    );
    for other in 2..20 {
        let refused = enrol(&mut roll, at(6), &id, &token(1), key(other), false);
        assert_eq!(refused, (Verdict::Used, None));
    }
    assert_eq!(roll.clients().count(), 1);
}

#[test]
fn same_key_may_come_again_also_after_the_end_but_not_after_it_was_revoked() {
    let (mut roll, id) = inviting();
    enrol(&mut roll, at(5), &id, &token(1), key(1), false);
    let before = roll.clone();
    assert_eq!(
        enrol(&mut roll, at(90_000), &id, &token(1), key(1), false),
        enrolled("laptop")
    );
    assert_eq!(roll, before, "a repeat changes nothing");
    assert!(roll.revoke(at(6), &key(1)));
    let refused = enrol(&mut roll, at(7), &id, &token(1), key(1), false);
    assert_eq!(refused, (Verdict::Used, None));
}

#[test]
fn invitation_is_good_until_its_last_second_and_not_in_the_next() {
    let (roll, id) = inviting();
    let last = enrol(&mut roll.clone(), at(3599), &id, &token(1), key(1), false);
    assert_eq!(last, enrolled("laptop"));
    let late = enrol(&mut roll.clone(), at(3600), &id, &token(1), key(1), false);
    assert_eq!(late, (Verdict::Late, None));
}

#[test]
fn wrong_token_changes_nothing_and_learns_nothing_of_the_state() {
    let (mut roll, id) = inviting();
    for bit in 0..256 {
        let mut bytes = [1; 32];
        bytes[bit / 8] ^= 1 << (bit % 8);
        let flipped = Token::from_bytes(bytes);
        assert!(!roll.knows(&invitation_id(&flipped)));
        let refused = enrol(&mut roll, at(5), &id, &flipped, key(9), false);
        assert_eq!(refused, (Verdict::WrongToken, None));
    }
    enrol(&mut roll, at(5), &id, &token(1), key(1), false);
    let refused = enrol(&mut roll, at(5), &id, &token(2), key(1), false);
    assert_eq!(refused, (Verdict::WrongToken, None));
}

#[test]
fn withdrawn_and_replaced_invitations_say_so() {
    let (mut roll, id) = inviting();
    assert_eq!(roll.invite(at(1), "laptop", HOUR, &token(2)), Ok(true));
    let refused = enrol(&mut roll, at(5), &id, &token(1), key(1), false);
    assert_eq!(refused, (Verdict::Withdrawn, None));
    assert!(roll.withdraw(at(5), "laptop"));
    assert!(!roll.withdraw(at(5), "laptop"));
    let second = invitation_id(&token(2));
    let refused = enrol(&mut roll, at(5), &second, &token(2), key(1), false);
    assert_eq!(refused, (Verdict::Withdrawn, None));
}

#[test]
fn key_that_is_a_client_already_does_not_spend_an_invitation() {
    let (mut roll, id) = inviting();
    let refused = enrol(&mut roll, at(5), &id, &token(1), key(1), true);
    assert_eq!(refused, (Verdict::KnownKey, None));
    assert_eq!(
        enrol(&mut roll, at(5), &id, &token(1), key(2), false),
        enrolled("laptop")
    );
}

#[test]
fn names_are_of_one_client_each() {
    let (mut roll, id) = inviting();
    enrol(&mut roll, at(5), &id, &token(1), key(1), false);
    let taken = roll.invite(at(6), "laptop", HOUR, &token(2));
    assert!(matches!(taken, Err(InviteError::Taken { .. })));
    let bad = roll.invite(at(6), "two words", HOUR, &token(2));
    assert!(matches!(bad, Err(InviteError::Name { .. })));
    for lasts in [Duration::from_secs(59), LONGEST + Duration::from_secs(1)] {
        assert_eq!(
            roll.invite(at(6), "b", lasts, &token(2)),
            Err(InviteError::Lasts)
        );
    }
    roll.invite(at(6), "phone", HOUR, &token(3)).unwrap();
    let rename = |roll: &mut Roll, name: &str| roll.rename(at(7), &key(1), name);
    assert!(matches!(
        rename(&mut roll, "phone"),
        Err(RenameError::Invited { .. })
    ));
    assert!(matches!(
        rename(&mut roll, "ü"),
        Err(RenameError::Name { .. })
    ));
    enrol(
        &mut roll,
        at(8),
        &invitation_id(&token(3)),
        &token(3),
        key(3),
        false,
    );
    assert!(matches!(
        rename(&mut roll, "phone"),
        Err(RenameError::Taken { .. })
    ));
    assert_eq!(rename(&mut roll, "desk"), Ok(()));
    assert_eq!(roll.client(&key(1)).unwrap().name, "desk");
    assert_eq!(roll.rename(at(9), &key(7), "x"), Err(RenameError::Gone));
}

#[test]
fn spent_invitations_are_told_for_a_week_and_then_forgotten() {
    let (mut roll, id) = inviting();
    let week = KEPT.as_secs();
    roll.invite(at(3600 + week - 1), "b", HOUR, &token(2))
        .unwrap();
    assert!(roll.knows(&id));
    roll.invite(at(3600 + week), "c", HOUR, &token(3)).unwrap();
    assert!(!roll.knows(&id));
}

#[test]
fn invitations_are_bounded_and_spent_ones_make_room() {
    let mut roll = Roll::default();
    let many = |number: usize| {
        let mut bytes = [3; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Token::from_bytes(bytes)
    };
    for number in 0..MAX_INVITATIONS {
        roll.invite(at(0), &format!("n{number}"), HOUR, &many(number))
            .unwrap();
    }
    let full = roll.invite(at(1), "more", HOUR, &many(5000));
    assert_eq!(full, Err(InviteError::TooMany));
    assert!(roll.withdraw(at(1), "n7"));
    roll.invite(at(1), "more", HOUR, &many(5000)).unwrap();
    assert_eq!(roll.invitations().count(), MAX_INVITATIONS);
    assert!(!roll.knows(&invitation_id(&many(7))));
}

#[test]
fn denied_keys_are_denied_until_they_are_allowed() {
    let mut roll = Roll::default();
    assert!(roll.deny(at(0), key(1)) && !roll.deny(at(1), key(1)));
    assert!(roll.denies(&key(1)) && !roll.denies(&key(2)));
    assert!(roll.allow(&key(1)) && !roll.allow(&key(1)));
    assert!(!roll.denies(&key(1)));
}

#[test]
fn revoked_client_is_on_record_and_what_it_was_when_it_is_readmitted() {
    let (mut roll, id) = inviting();
    enrol(&mut roll, at(5), &id, &token(1), key(1), false);
    let before = roll.clone();
    assert!(roll.revoke(at(6), &key(1)) && !roll.revoke(at(7), &key(1)));
    assert!(roll.client(&key(1)).is_none() && roll.remembers(&key(1)));
    // Its name is free meanwhile, and then it needs another.
    roll.invite(at(8), "laptop", HOUR, &token(2)).unwrap();
    let invited = roll.readmit(at(9), &key(1));
    assert!(matches!(invited, Err(ReadmitError::Invited { .. })));
    let second = invitation_id(&token(2));
    enrol(&mut roll, at(9), &second, &token(2), key(2), false);
    let taken = roll.readmit(at(9), &key(1)).unwrap_err().to_string();
    assert!(taken.contains(&key(1).to_string()), "{taken}");
    assert_eq!(roll.rename(at(10), &key(1), "desk"), Ok(()));
    assert_eq!(roll.readmit(at(11), &key(1)), Ok(()));
    assert_eq!(roll.client(&key(1)).unwrap().name, "desk");
    assert_eq!(roll.readmit(at(11), &key(1)), Err(ReadmitError::Gone));
    // Where nobody has taken its name, nothing is left of it all; by a new invitation, neither.
    let mut roll = before.clone();
    roll.revoke(at(6), &key(1));
    assert_eq!(roll.readmit(at(7), &key(1)), Ok(()));
    assert_eq!(roll, before);
    roll.revoke(at(6), &key(1));
    roll.invite(at(8), "laptop", HOUR, &token(2)).unwrap();
    enrol(&mut roll, at(9), &second, &token(2), key(1), false);
    assert!(roll.client(&key(1)).is_some() && !roll.remembers(&key(1)));
}

#[test]
fn revoked_clients_on_record_are_bounded_and_the_first_goes() {
    let mut roll = Roll::default();
    for number in 0..=MAX_REVOKED {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let (now, one) = (at(number as u64), PublicKey::from_bytes(bytes));
        roll.invite(now, "phone", HOUR, &Token::from_bytes(bytes))
            .unwrap();
        let token = Token::from_bytes(bytes);
        roll.enter(now, &invitation_id(&token), one);
        roll.revoke(now, &one);
    }
    assert_eq!(roll.revoked().count(), MAX_REVOKED);
    let oldest = roll.revoked().map(|(_, it)| it.revoked).min();
    assert_eq!(oldest, Some(at(1)));
}

#[test]
fn roll_survives_a_round_trip_and_holds_no_token() {
    let (mut roll, id) = inviting();
    roll.invite(at(0), "phone", HOUR, &token(2)).unwrap();
    roll.invite(at(0), "tablet", HOUR, &token(3)).unwrap();
    enrol(&mut roll, at(5), &id, &token(1), key(1), false);
    roll.withdraw(at(6), "phone");
    roll.deny(at(7), key(9));
    let third = invitation_id(&token(3));
    enrol(&mut roll, at(8), &third, &token(3), key(8), false);
    assert!(roll.revoke(at(9), &key(8)));
    let bytes = roll.save();
    assert_eq!(Roll::restore(&bytes).unwrap(), roll);
    let text = String::from_utf8(bytes).unwrap();
    for number in 1..=3 {
        use base64::Engine as _;
        let secret = base64::engine::general_purpose::STANDARD.encode([number; 32]);
        assert!(number == 1 || !text.contains(&secret), "{text}");
    }
    assert_eq!(
        Roll::restore(&Roll::default().save()).unwrap(),
        Roll::default()
    );
}

#[test]
fn what_makes_no_sense_is_refused_in_words() {
    let whole = String::from_utf8(inviting().0.save()).unwrap();
    for (text, right) in [
        (String::new(), "EOF"),
        (whole[..whole.len() / 2].to_owned(), "EOF"),
        (
            whole.replace("\"version\": 1", "\"version\": 2"),
            "version 2",
        ),
        (
            whole.replace("laptop", "lap top"),
            "`lap top` is not a client's name",
        ),
        (whole.replace("\"denied\"", "\"dented\""), "dented"),
        (
            whole.replace("1700000000", "99999999999999"),
            "seconds since 1970",
        ),
    ] {
        let error = Roll::restore(text.as_bytes()).expect_err(&text).to_string();
        assert!(error.contains(right), "{error}");
    }
}

proptest! {
    /// Whatever order guests come in, an invitation makes one client at most, and what is written is what is known.
    #[test]
    fn invitation_makes_one_client_at_most(
        orders in proptest::collection::vec((0u8..6, 0u8..4, 0u8..4, 0u64..9000), 1..60),
    ) {
        let mut roll = Roll::default();
        let mut now = 0;
        for (what, a, b, passed) in orders {
            now += passed / 10;
            match what {
                0 => {
                    let _ = roll.invite(at(now), &format!("n{a}"), HOUR, &token(b));
                }
                1 | 2 => {
                    let id = invitation_id(&token(a));
                    enrol(&mut roll, at(now), &id, &token(a), key(b), false);
                }
                3 => {
                    roll.withdraw(at(now), &format!("n{a}"));
                }
                4 if a > 1 => {
                    roll.revoke(at(now), &key(b));
                }
                4 => {
                    let _ = roll.readmit(at(now), &key(b));
                }
                _ => {
                    let _ = roll.rename(at(now), &key(b), &format!("n{a}"));
                }
            }
            let mut names: Vec<&str> = roll.clients().map(|(_, it)| it.name.as_str()).collect();
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            prop_assert_eq!(names.len(), count, "a name twice");
            prop_assert!(!roll.revoked().any(|(key, _)| roll.client(key).is_some()));
            prop_assert_eq!(&Roll::restore(&roll.save()).unwrap(), &roll);
        }
    }
}
