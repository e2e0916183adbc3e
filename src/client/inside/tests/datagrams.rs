//! Datagrams and echo requests of the client's own.

use super::*;
use crate::client::inside::datagrams::MAX_OUTGOING;

#[test]
fn datagram_waits_for_room_in_the_lane() {
    let (mut inside, _asked) = inside();
    let (now, mut wire) = (Instant::now(), Wire::default());
    let (reply, mut answer) = Reply::pair();
    let (inbound, _datagrams) = mpsc::channel(1);
    inside.bind_udp(FIRST, None, inbound, reply);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    wire.full = true;
    inside.send_udp(now, FIRST, origin(), b"query".to_vec());
    assert!(!turn(&mut inside, now, &mut wire, true), "nothing can move");
    wire.full = false;
    assert!(turn(&mut inside, now, &mut wire, true));
    assert_eq!(wire.packets.len(), 1);
    assert!(wire.packets[0].0.ends_with(b"query"));
    assert!(!turn(&mut inside, now, &mut wire, true));
}

#[test]
fn datagrams_that_wait_are_bounded_and_end_with_their_port() {
    let (mut inside, _asked) = inside();
    let (now, mut wire) = (Instant::now(), Wire::default());
    let (inbound, _datagrams) = mpsc::channel(1);
    inside.bind_udp(FIRST, None, inbound, Reply::pair().0);
    for number in 0..MAX_OUTGOING + 3 {
        inside.send_udp(now, FIRST, origin(), number.to_be_bytes().to_vec());
    }
    assert_eq!(inside.outgoing.len(), MAX_OUTGOING);
    assert_eq!(inside.stats.udp_not_sent, 3);
    let mut oldest = Wire::default();
    turn(&mut inside, now, &mut oldest, true);
    assert!(oldest.packets[0].0.ends_with(&3_usize.to_be_bytes()));
    inside.send_udp(now, FIRST, origin(), vec![0; 10]);
    inside.unbind_udp(FIRST);
    turn(&mut inside, now, &mut wire, true);
    assert!(wire.packets.is_empty());
}

#[test]
fn datagram_that_has_waited_for_5_s_is_not_sent_any_more() {
    let (mut inside, _asked) = inside();
    let (now, mut wire) = (Instant::now(), Wire::default());
    let (inbound, _datagrams) = mpsc::channel(1);
    inside.bind_udp(FIRST, None, inbound, Reply::pair().0);
    inside.send_udp(now, FIRST, origin(), b"old".to_vec());
    let later = now + Duration::from_secs(5);
    inside.send_udp(later, FIRST, origin(), b"new".to_vec());
    assert!(turn(&mut inside, later, &mut wire, true));
    assert_eq!(wire.packets.len(), 1);
    assert!(wire.packets[0].0.ends_with(b"new"));
    assert_eq!(inside.stats.udp_not_sent, 1);
}

#[test]
fn echo_request_leaves_by_its_identifier_and_its_reply_comes_back() {
    let (mut inside, _asked) = inside();
    let (now, mut wire) = (Instant::now(), Wire::default());
    let (reply, mut answer) = Reply::pair();
    let (inbound, mut replies) = mpsc::channel(1);
    inside.bind_echo(FIRST, inbound, reply);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    let to = SocketAddr::new(origin().ip(), 7);
    inside.send_udp(now, FIRST, to, b"ping".to_vec());
    assert!(turn(&mut inside, now, &mut wire, true));
    let (mut packet, _) = wire.packets.remove(0);
    assert_eq!(packet[20], 8, "an echo request");
    assert_eq!(
        (&packet[26..28], &packet[28..]),
        (&[0, 7][..], &b"ping"[..])
    );
    // A reply is the request with its ends swapped; the type's change is the checksum's, too.
    let (source, destination) = (packet[12..16].to_vec(), packet[16..20].to_vec());
    packet[12..16].copy_from_slice(&destination);
    packet[16..20].copy_from_slice(&source);
    packet[20] = 0;
    let whole = Offload::default();
    let sum = u32::from(u16::from_be_bytes([packet[22], packet[23]])) + 0x0800;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[22..24].copy_from_slice(&(sum as u16).to_be_bytes());
    inside.handle_packet(now, &mut packet.clone(), whole);
    let datagram = replies.try_recv().unwrap();
    assert_eq!((datagram.remote, &datagram.payload[..]), (to, &b"ping"[..]));
    // Nobody asks any more.
    inside.unbind_udp(FIRST);
    inside.handle_packet(now, &mut packet, whole);
    assert!(replies.try_recv().is_err());
    assert!(inside.echoes.is_empty() && inside.replies.is_empty());
}
