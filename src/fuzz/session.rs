//! The session: handshakes from strangers, and frames from peers with and without the keys.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adit_netstack::Offload;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::input::Input;
use crate::proto::{
    Answer, ChallengeState, ClientConfig, ClientEntry, Initiator, Opened, Reply, Responder,
    SecretKey, Session, Settings,
};
use crate::wire::{LaneId, PACKET_HEADROOM, TAILROOM};

/// Gives `length (2) ‖ frame`, over and over, to a server as one connection's handshakes.
///
/// # Panics
///
/// A stranger is answered.
pub fn proto_responder(data: &[u8]) {
    let mut rng = StdRng::seed_from_u64(1);
    let server = SecretKey::generate(&mut rng);
    let responder = Responder::new(vec![server], &[], Settings::default(), at(0));
    let mut connection = ChallengeState::default();
    let mut input = Input::new(data);
    let now = Instant::now();
    while !input.is_empty() {
        let frame = input.piece();
        let answer = responder.handle_init(now, frame, &mut connection, &mut rng, |_| None);
        assert!(answer.is_err(), "a stranger was answered");
    }
}

/// Plays `what (1) ‖ length (2) ‖ bytes`, over and over, between a client and a server with a session.
///
/// # Panics
///
/// Bytes that nobody sealed open, or a packet comes out other than it went in.
pub fn proto_session(data: &[u8]) {
    let mut rng = StdRng::seed_from_u64(2);
    let mut now = Instant::now();
    let (mut client, mut server) = pair(now, &mut rng);
    run(now, &mut client, &mut server);
    let mut lane = LaneId::FIRST;
    let mut input = Input::new(data);
    while !input.is_empty() {
        let what = input.byte();
        let bytes = input.piece();
        let (from, to) = if what & 1 == 0 {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        match (what >> 1) & 7 {
            // Anybody can write to the connection; it kills the lane, never the session.
            0 => {
                let mut frame = bytes.to_vec();
                let closed = to.closed();
                let _ = to.handle_join(now, &frame);
                assert!(to.open(now, lane, &mut frame).is_err());
                assert_eq!(to.closed(), closed);
            }
            // A frame that was changed on its way: the first byte says where, the second how.
            1 => {
                if let Some(mut frame) = seal(now, from, lane, b"a packet")
                    && let [place, change, ..] = bytes
                    && *change != 0
                {
                    let place = usize::from(*place) % frame.len();
                    if let Some(byte) = frame.get_mut(place) {
                        *byte ^= change;
                    }
                    assert!(to.open(now, lane, &mut frame).is_err());
                }
            }
            2 | 3 => {
                if let Some(mut frame) = seal(now, from, lane, bytes) {
                    match to.open(now, lane, &mut frame) {
                        Ok(Opened::Packet { range, .. }) => assert_eq!(&frame[range], bytes),
                        // The lane had died by what came before.
                        Ok(Opened::Control | Opened::Skipped) | Err(_) => {}
                        Ok(Opened::Repair { .. } | Opened::Report { .. } | Opened::Flow { .. }) => {
                            panic!("a packet was sealed")
                        }
                    }
                }
            }
            // A peer that has the keys and no manners.
            4 | 5 => {
                if let Some(mut frame) = from.seal_anything(now, lane, bytes) {
                    let _ = to.open(now, lane, &mut frame);
                }
            }
            6 => now += Duration::from_secs(bytes.len() as u64 % 64),
            _ => {
                client.handle_timeout(now);
                server.handle_timeout(now);
                // What was broken has killed the lane: the client comes back on a new one.
                client.remove_lane(now, lane);
                server.remove_lane(now, lane);
                if let Some((fresh, frame)) = client.join_frame(now)
                    && server.handle_join(now, &frame).is_ok()
                {
                    lane = fresh;
                }
                run(now, &mut client, &mut server);
            }
        }
        while client.poll_event().is_some() {}
        while server.poll_event().is_some() {}
    }
    run(now, &mut client, &mut server);
}

fn pair(now: Instant, rng: &mut StdRng) -> (Session, Session) {
    let server = SecretKey::generate(rng);
    let config = ClientConfig::new(SecretKey::generate(rng), server.public(), [7; 8]);
    let responder = Responder::new(vec![server], &[], Settings::default(), at(0));
    let (mut initiator, frame) =
        Initiator::new(&config, at(100), rng).expect("a handshake can begin");
    let entry = |_: &_| {
        Some(ClientEntry {
            psk: None,
            id: 1,
            revoked: false,
        })
    };
    let mut connection = ChallengeState::default();
    let answer = responder.handle_init(now, &frame, &mut connection, rng, entry);
    let Ok(Answer::Accept { reply, session, .. }) = answer else {
        panic!("an honest client is accepted");
    };
    let Ok(Reply::Established(client)) = initiator.handle(now, at(100), &reply) else {
        panic!("an honest server is believed");
    };
    (*client, *session)
}

/// Delivers what both have to say to each other, for a bounded number of turns.
fn run(now: Instant, client: &mut Session, server: &mut Session) {
    let mut frame = Vec::new();
    for _ in 0..64 {
        let mut quiet = true;
        while let Some(lane) = client.poll_control(now, &mut frame) {
            let _ = server.open(now, lane, &mut frame);
            frame.clear();
            quiet = false;
        }
        while let Some(lane) = server.poll_control(now, &mut frame) {
            let _ = client.open(now, lane, &mut frame);
            frame.clear();
            quiet = false;
        }
        if quiet {
            return;
        }
    }
    panic!("two sessions never stop talking");
}

/// Seals a packet; `None` where the session does not send any more.
fn seal(now: Instant, from: &mut Session, lane: LaneId, packet: &[u8]) -> Option<Vec<u8>> {
    let mut frame = vec![0; PACKET_HEADROOM];
    frame.extend_from_slice(packet);
    frame.resize(frame.len() + TAILROOM, 0);
    from.seal_packet(now, lane, &mut frame, Offload::default())
        .ok()?;
    Some(frame)
}

pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}
