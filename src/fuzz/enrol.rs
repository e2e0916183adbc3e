//! Invitations: links, the roll that a server keeps, and guests.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::datagram::{carry, pair_of, path};
use super::input::Input;
use crate::config::{LINK_SCHEME, Link};
use crate::proto::{PublicKey, Session, SessionEvent, invitation_id};
use crate::server::roll::{Admission, Roll};
use crate::wire::{DATAGRAM_OVERHEAD, InnerType, LaneId, Token, Verdict};

/// Reads a link: as a text, and as what stands in one whose check is right.
///
/// # Panics
///
/// What was read is not what would be written, or a refusal has no words.
pub fn link(data: &[u8]) {
    let mut body = data.to_vec();
    let check = digest::digest(&digest::SHA256, data);
    body.extend_from_slice(check.as_ref().get(..4).unwrap_or_default());
    let whole = format!("{LINK_SCHEME}{}", URL_SAFE_NO_PAD.encode(&body));
    match whole.parse::<Link>() {
        Ok(link) => {
            let text = link.text().expect("it was read");
            // An address may be written in other ways than ours.
            assert_eq!(text.parse(), Ok(link));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for text in [text.to_owned(), format!("{LINK_SCHEME}{text}")] {
        match text.parse::<Link>() {
            Ok(link) => assert_eq!(link.text().expect("it was read").parse(), Ok(link)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Reads a saved roll, and plays a script of invitations, guests and orders.
///
/// # Panics
///
/// What was read is not what would be written, an invitation makes two clients, or a name is given twice.
pub fn roll(data: &[u8]) {
    match Roll::restore(data) {
        Ok(roll) => assert_eq!(Roll::restore(&roll.save()).ok(), Some(roll)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let mut script = Input::new(data);
    let (mut roll, mut now) = (Roll::default(), UNIX_EPOCH);
    // The keys that each token has made clients of; a token stands for one invitation.
    let mut made: Vec<(u8, PublicKey)> = Vec::new();
    let mut drawn = 0;
    while !script.is_empty() {
        let (what, token, key) = (script.byte() % 6, script.byte(), script.byte() % 8);
        let key = PublicKey::from_bytes([key; 32]);
        now += Duration::from_secs(u64::from(script.byte()));
        match what {
            0 => {
                let name = format!("n{}", token % 4);
                let lasts = Duration::from_secs(60 + u64::from(token));
                if roll.invite(now, &name, lasts, &secret(drawn)).is_ok() {
                    drawn += 1;
                }
            }
            1 | 2 => enrol(&mut roll, now, token, key, &mut made),
            3 => {
                roll.withdraw(now, &format!("n{}", token % 4));
            }
            4 if token % 2 == 0 => {
                roll.revoke(now, &key);
            }
            4 => {
                let _ = roll.readmit(now, &key);
            }
            _ => {
                let _ = roll.rename(now, &key, &format!("n{}", token % 4));
            }
        }
        let mut names: Vec<&str> = roll.clients().map(|(_, it)| it.name.as_str()).collect();
        names.sort_unstable();
        assert!(
            names.windows(2).all(|pair| pair[0] != pair[1]),
            "a name twice"
        );
        if drawn == u8::MAX {
            break;
        }
    }
    assert_eq!(Roll::restore(&roll.save()).ok(), Some(roll));
}

fn enrol(
    roll: &mut Roll,
    now: SystemTime,
    number: u8,
    key: PublicKey,
    made: &mut Vec<(u8, PublicKey)>,
) {
    let token = secret(number);
    let known = roll.knows(&invitation_id(&token));
    let id = invitation_id(&token);
    let judged = roll.judge(now, &id, &token, &key, false);
    if let Ok(Admission::New(_)) = judged {
        roll.enter(now, &id, key);
    }
    if judged.is_ok() {
        assert!(known && roll.client(&key).is_some());
        assert!(
            made.iter()
                .all(|(other, by)| *other != number || *by == key),
            "an invitation made two clients"
        );
        made.push((number, key));
    }
}

fn secret(number: u8) -> Token {
    Token::from_bytes([number; 32])
}

/// Plays a guest without manners, who has the keys of its session: `type (1) ‖ length (2) ‖ body`, again and again.
///
/// # Panics
///
/// The server's end hears anything of it but tokens, or delivers anything.
pub fn guest(data: &[u8]) {
    let now = Instant::now();
    let mut rng = StdRng::seed_from_u64(6);
    let (mut client, mut server) = pair_of(now, &mut rng, Some(&secret(1)));
    assert!(client.is_guest() && server.is_guest());
    let mut script = Input::new(data);
    talk(now, &mut client, &mut server);
    while !script.is_empty() {
        let (kind, body) = (script.byte(), script.piece());
        let Some(kind) = InnerType::from_byte(kind) else {
            continue;
        };
        let mut out = vec![0; body.len() + DATAGRAM_OVERHEAD];
        let sealed = client.seal_body(now, LaneId::FIRST, kind, body, &mut out);
        if sealed.is_ok() {
            // Whatever it is: nothing is delivered of a guest.
            let opened = server.open_datagram(now, path(1), &mut out);
            assert!(!matches!(
                opened,
                Ok(crate::proto::Opened::Packet { .. }
                    | crate::proto::Opened::Repair { .. }
                    | crate::proto::Opened::Flow { .. })
            ));
            assert!(server.poll_delivery().is_none());
        }
        talk(now, &mut client, &mut server);
    }
}

/// Lets both speak, and answers tokens; looks at what the server's end hears.
fn talk(now: Instant, client: &mut Session, server: &mut Session) {
    for _ in 0..64 {
        while let Some(event) = server.poll_event() {
            match event {
                SessionEvent::Enrol(_) => server.answer_enrol(Verdict::Used, ""),
                SessionEvent::Configured(_) | SessionEvent::Enrolled { .. } => {
                    panic!("a server hears {event:?}")
                }
                SessionEvent::Confirmed
                | SessionEvent::LaneConfirmed(_)
                | SessionEvent::LaneDead(_)
                | SessionEvent::LaneSilent(_)
                | SessionEvent::LaneHeard(_)
                | SessionEvent::LaneMoved(_)
                | SessionEvent::PeerClosed(_) => {}
            }
        }
        while client.poll_event().is_some() {}
        let there = carry(now, client, server);
        let back = carry(now, server, client);
        if !there && !back {
            return;
        }
    }
    panic!("two sessions never stop talking");
}
