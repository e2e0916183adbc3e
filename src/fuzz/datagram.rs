//! Datagrams: the wire format, strangers, and two sessions over a way that anybody can write to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_netstack::{Checksum, Offload};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::input::Input;
use super::session::at;
use crate::proto::{
    Answer, ClientConfig, ClientEntry, CookieJar, DatagramInitiator, DatagramPath,
    DatagramResponder, LoadLimits, Opened, Reception, Responder, SecretKey, Session, Settings,
    invitation_id,
};
use crate::wire::{
    CookieReply, DATAGRAM_HEADER_LEN, DATAGRAM_PACKET_HEADER_LEN, DATAGRAM_PACKET_HEADROOM,
    DATAGRAM_PACKET_OVERHEAD, DatagramHeader, DatagramPacketHeader, HandshakeFrame, InitDatagram,
    JOIN_DATAGRAM_HEADER_LEN, JoinDatagram, LaneId, Piece, TAILROOM, Token, datagram_handle,
    datagram_type, expand_source, join_datagram_session,
};

/// Parses a datagram in every way that there is.
///
/// # Panics
///
/// What was parsed is not what would be written.
pub fn wire_datagram(datagram: &[u8]) {
    let _ = datagram_type(datagram);
    if let Ok(frame) = HandshakeFrame::parse_datagram(datagram) {
        let mut again = Vec::new();
        frame.write_datagram(&mut again);
        assert_eq!(again, datagram);
    }
    if let Ok(init) = InitDatagram::parse(datagram) {
        let mut again = Vec::new();
        init.frame().write_datagram(&mut again);
        again.extend_from_slice(&init.mac1);
        again.extend_from_slice(&init.mac2);
        assert_eq!(again, datagram);
    }
    if let Ok(cookie) = CookieReply::parse(datagram) {
        assert_eq!(cookie.to_bytes()[..], *datagram);
    }
    if let Ok(header) = JoinDatagram::parse(datagram) {
        assert_eq!(header.to_bytes()[..], datagram[..JOIN_DATAGRAM_HEADER_LEN]);
        assert_eq!(join_datagram_session(datagram), Some(header.session));
    }
    if let Ok(header) = DatagramHeader::parse(datagram) {
        assert_eq!(header.to_bytes()[..], datagram[..DATAGRAM_HEADER_LEN]);
        assert_eq!(datagram_handle(datagram), Some(header.handle));
        let body = &datagram[DATAGRAM_HEADER_LEN + 1..];
        if let Ok(header) = DatagramPacketHeader::parse(body) {
            assert_eq!(header.to_bytes()[..], body[..DATAGRAM_PACKET_HEADER_LEN]);
            let number = expand_source(header.source, Some(1 << 40));
            assert_eq!(number as u32, header.source);
            assert!(number.abs_diff(1 << 40) <= 1 << 31);
        }
    }
}

/// Gives `what (1) ‖ length (2) ‖ datagram`, over and over, to a server from strangers.
///
/// With the first bit of `what` set the MACs of an Init are put behind it, as by somebody who knows
/// the server's key.
///
/// # Panics
///
/// A stranger gets a session, or an answer that is not much shorter than what it sent.
pub fn proto_strangers(data: &[u8]) {
    let mut rng = StdRng::seed_from_u64(1);
    let server = SecretKey::generate(&mut rng);
    let mut jar = CookieJar::new(&server.public());
    let responder = Responder::new(vec![server], &[], Settings::default(), at(0));
    let limits = LoadLimits {
        inits_per_second: 2,
        unconfirmed: 2,
    };
    let mut strangers = DatagramResponder::new(Arc::new(responder), limits, &mut rng);
    let mut input = Input::new(data);
    let mut now = Instant::now();
    while !input.is_empty() {
        let what = input.byte();
        let mut datagram = input.piece().to_vec();
        if what & 1 != 0 {
            jar.finish(now, &mut datagram);
        }
        let from = path(u16::from(what >> 1));
        let reception = strangers.handle(now, from, &datagram, 0, |_| None);
        match reception {
            Reception::Answer(answer) => {
                assert!(answer.as_bytes().len() * 10 < datagram.len());
                jar.handle_reply(now, answer.as_bytes());
            }
            Reception::Handshake(answer) => panic!("a stranger was answered: {answer:?}"),
            Reception::Sealed { .. } | Reception::Join { .. } | Reception::Drop(_) => {}
        }
        now += Duration::from_millis(u64::from(what));
    }
}

/// Plays `what (1) ‖ length (2) ‖ bytes`, over and over, between a client and a server with a session
/// over datagrams.
///
/// # Panics
///
/// Bytes that nobody sealed open or end the session, or a packet comes out twice or other than it
/// went in.
pub fn proto_datagrams(data: &[u8]) {
    let mut rng = StdRng::seed_from_u64(2);
    let mut now = Instant::now();
    let (mut client, mut server) = pair(now, &mut rng);
    run(now, &mut client, &mut server);
    let mut lane = LaneId::FIRST;
    let mut input = Input::new(data);
    let mut former = Vec::new();
    // Whoever has the keys may send halves that fit nothing.
    let mut rude = false;
    while !input.is_empty() {
        let what = input.byte();
        let bytes = input.piece();
        let (from, to) = if what & 1 == 0 {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        match (what >> 1) & 7 {
            // Anybody can send anything from anywhere, and it ends nothing.
            0 => {
                let closed = to.closed();
                let mut datagram = bytes.to_vec();
                let _ = to.handle_join_datagram(now, path(9), &datagram);
                assert!(to.open_datagram(now, path(9), &mut datagram).is_err());
                assert_eq!(to.closed(), closed);
            }
            // A datagram that was changed on its way, then as it was, then again.
            1 => {
                if let Some(sealed) = seal(now, from, lane, b"a packet") {
                    let mut changed = sealed.clone();
                    if let [place, change, ..] = bytes
                        && *change != 0
                    {
                        let place = usize::from(*place) % changed.len();
                        changed[place] ^= change;
                        assert!(to.open_datagram(now, path(9), &mut changed).is_err());
                    }
                    let mut whole = sealed.clone();
                    let first = to.open_datagram(now, path(1), &mut whole);
                    if let Ok(Opened::Packet { range, .. }) = &first {
                        assert_eq!(&whole[range.clone()], b"a packet");
                    }
                    let mut again = sealed.clone();
                    assert!(to.open_datagram(now, path(1), &mut again).is_err());
                    if first.is_ok() {
                        former = sealed;
                    }
                }
            }
            // A packet, whole or in two, from where the last byte says.
            2 => send(now, from, to, lane, bytes, rude),
            // An old datagram from elsewhere.
            3 => {
                let mut copy = former.clone();
                assert!(to.open_datagram(now, path(7), &mut copy).is_err());
            }
            // A peer that has the keys and no manners.
            4 => {
                rude = true;
                if let Some(mut datagram) = from.seal_anything(now, lane, bytes) {
                    let _ = to.open_datagram(now, path(u16::from(what >> 4)), &mut datagram);
                    while to.poll_delivery().is_some() {}
                }
            }
            5 => {
                now += Duration::from_millis(bytes.len() as u64 * 16);
                client.handle_timeout(now);
                server.handle_timeout(now);
            }
            6 => {
                if let Some(fresh) = client.join_datagram(now, path(1)) {
                    lane = fresh;
                }
            }
            _ => run(now, &mut client, &mut server),
        }
        while client.poll_event().is_some() {}
        while server.poll_event().is_some() {}
    }
    run(now, &mut client, &mut server);
}

fn send(
    now: Instant,
    from: &mut Session,
    to: &mut Session,
    lane: LaneId,
    bytes: &[u8],
    rude: bool,
) {
    let Some(most) = from.max_datagram(lane) else {
        return;
    };
    let path = path(u16::from(bytes.last().copied().unwrap_or(1)));
    let most = most - DATAGRAM_PACKET_OVERHEAD;
    if bytes.len() <= most {
        if let Some(mut datagram) = seal(now, from, lane, bytes)
            && let Ok(Opened::Packet { range, .. }) = to.open_datagram(now, path, &mut datagram)
        {
            assert_eq!(&datagram[range], bytes);
        }
        return;
    }
    let bytes = &bytes[..bytes.len().min(2 * most)];
    let number = from.alloc_source(bytes.len());
    let (front, rest) = bytes.split_at(most);
    let mut opened = 0;
    for (piece, half) in [(Piece::Last, rest), (Piece::First, front)] {
        let mut datagram = room(half);
        let header = DatagramPacketHeader {
            source: number as u32,
            checksum: Checksum::Full,
            kept: false,
            piece,
        };
        let sealed = from.seal_piece(now, lane, header, &mut datagram);
        if sealed.is_ok() && to.open_datagram(now, path, &mut datagram).is_ok() {
            opened += 1;
        }
    }
    if let Some((_, packet, _)) = to.poll_delivery() {
        assert!(rude || (opened, packet) == (2, bytes));
    }
    assert!(to.poll_delivery().is_none());
}

fn pair(now: Instant, rng: &mut StdRng) -> (Session, Session) {
    pair_of(now, rng, None)
}

/// A client and a server, or a guest who was invited by `token`.
pub(super) fn pair_of(now: Instant, rng: &mut StdRng, token: Option<&Token>) -> (Session, Session) {
    let server = SecretKey::generate(rng);
    let mut config = ClientConfig::new(SecretKey::generate(rng), server.public(), [7; 8]);
    config.invitation = token.map(invitation_id);
    let known = config.invitation;
    let responder = Responder::new(vec![server], &[], Settings::default(), at(0))
        .inviting(move |id| Some(*id) == known);
    let mut strangers = DatagramResponder::new(Arc::new(responder), LoadLimits::default(), rng);
    let mut initiator =
        DatagramInitiator::new(now, &config, path(1), rng).expect("the keys fit a datagram");
    let mut init = Vec::new();
    let sent = initiator.poll_transmit(now, at(100), &mut init);
    assert_eq!(sent, Ok(true), "the first Init is due at once");
    let entry = |_: &_| {
        Some(ClientEntry {
            psk: None,
            id: 1,
            revoked: false,
        })
    };
    let reception = strangers.handle(now, path(1), &init, 0, entry);
    let Reception::Handshake(Answer::Accept { reply, session, .. }) = reception else {
        panic!("an honest client is accepted");
    };
    let Ok(Some(client)) = initiator.handle(now, &reply) else {
        panic!("an honest server is believed");
    };
    (*client, *session)
}

/// Delivers what both have to say to each other, for a bounded number of turns. What goes to another
/// address than the first is lost.
fn run(now: Instant, client: &mut Session, server: &mut Session) {
    for _ in 0..64 {
        let there = carry(now, client, server);
        let back = carry(now, server, client);
        if !there && !back {
            return;
        }
    }
    panic!("two sessions never stop talking");
}

pub(super) fn carry(now: Instant, from: &mut Session, to: &mut Session) -> bool {
    let mut out = Vec::new();
    let mut spoke = false;
    while let Some(lane) = from.poll_control(now, &mut out) {
        spoke = true;
        if from.datagram_path(lane) == Some(path(1)) {
            let _ = to.handle_join_datagram(now, path(1), &out);
            let _ = to.open_datagram(now, path(1), &mut out);
        }
    }
    while let Some((_, way)) = from.poll_probe(now, &mut out) {
        spoke = true;
        if way == path(1) {
            let _ = to.open_datagram(now, path(1), &mut out);
        }
    }
    spoke
}

/// Seals a packet; `None` where the session does not send any more.
fn seal(now: Instant, from: &mut Session, lane: LaneId, packet: &[u8]) -> Option<Vec<u8>> {
    let mut datagram = room(packet);
    from.seal_packet(now, lane, &mut datagram, Offload::default())
        .ok()?;
    Some(datagram)
}

fn room(packet: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; DATAGRAM_PACKET_HEADROOM];
    datagram.extend_from_slice(packet);
    datagram.resize(datagram.len() + TAILROOM, 0);
    datagram
}

pub(super) fn path(port: u16) -> DatagramPath {
    DatagramPath::to(SocketAddr::from(([192, 0, 2, 1], port)))
}
