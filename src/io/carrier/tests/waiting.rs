//! Packets of others that wait for a lane: nothing of them is lost on the way, whatever the lanes do.

use super::*;

/// A TCP segment of one flow that begins at `seq`, with so many bytes; the bytes tell where they stand in the stream.
fn segment(seq: u32, payload: usize) -> Vec<u8> {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x1f, 0x90, 0xc0, 0]);
    header[4..8].copy_from_slice(&seq.to_be_bytes());
    (header[12], header[13]) = (5 << 4, 0x10);
    let mut segment = packet(6, &header, payload);
    for (offset, byte) in segment[40..].iter_mut().enumerate() {
        *byte = at(seq as usize + offset);
    }
    segment
}

/// The byte of the stream at this place.
fn at(place: usize) -> u8 {
    (place % 251) as u8
}

/// Pushes super-packets of one flow, one behind the other.
fn push_bulk(carrier: &mut Carrier, now: Instant, count: usize) {
    for number in 0..count {
        let whole = segment((number * SUPER) as u32, SUPER);
        let mut buffer = pool().sized(PACKET_HEADROOM + whole.len() + TAILROOM);
        buffer[PACKET_HEADROOM..PACKET_HEADROOM + whole.len()].copy_from_slice(&whole);
        assert!(carrier.takes_packets(now));
        let offload = Offload {
            gso: Gso::Tcp { size: 1360 },
            checksum: Checksum::Partial,
        };
        carrier.push(now, buffer, offload);
    }
}

/// How many bytes of the stream have come.
fn came(packets: &[Vec<u8>]) -> usize {
    let bulk = packets.iter().filter(|packet| packet[0] == 0x45);
    bulk.map(|packet| packet.len() - 40).sum()
}

/// Makes sure that what has come is the stream, each byte of it once.
fn assert_whole(packets: &[Vec<u8>], count: usize) {
    let mut seen = vec![0; count * SUPER];
    for packet in packets.iter().filter(|packet| packet[0] == 0x45) {
        let seq = u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]) as usize;
        for (offset, byte) in packet[40..].iter().enumerate() {
            assert_eq!(*byte, at(seq + offset));
            seen[seq + offset] += 1;
        }
    }
    assert!(seen.iter().all(|times| *times == 1));
}

const SUPER: usize = 34 * 1360;

/// Few, so that a slow machine does not let the queue stand until CoDel drops something of it.
const FEW: usize = 3;

/// One turn of everybody, timers among them.
async fn turn(ends: &mut Datagrammers) {
    ends.turn().await;
    let now = Instant::now();
    for end in [&mut ends.client, &mut ends.server] {
        if end.poll_timeout().is_some_and(|due| due <= now) {
            end.handle_timeout(now);
        }
    }
    while ends.server.send_first(now) {}
}

#[tokio::test]
async fn bulk_behind_a_full_lane_arrives_whole_and_in_order() {
    const COUNT: usize = 20;
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    fill(&mut ends, now).await;
    push_bulk(&mut ends.server, now, COUNT);
    assert!(!ends.server.has_room(now), "all of it waits");
    while came(&ends.at_client) < COUNT * SUPER {
        ends.turn(now).await;
        while ends.server.send_first(now) {}
    }
    let bulk = ends.at_client.iter().filter(|packet| packet[0] == 0x45);
    let lengths: Vec<usize> = bulk.clone().map(Vec::len).collect();
    assert_eq!(lengths, [40 + SUPER; COUNT], "whole, each once");
    assert!(bulk.is_sorted_by_key(|packet| packet[24..28].to_vec()));
    assert_whole(&ends.at_client, COUNT);
    assert_eq!(ends.server.stats().unsealed, 0);
}

/// Joins a stream lane to a session over datagrams, whose packets go there from then on.
async fn join(ends: &mut Datagrammers) -> LaneId {
    let now = Instant::now();
    let (near, far) = tcp_pair().await;
    let (id, frame) = ends.client.session_mut().join_frame(now).unwrap();
    let joined = ends.server.session_mut().handle_join(now, &frame).unwrap();
    assert_eq!(joined, id);
    assert!(ends.client.add_lane(id, lane(near), false));
    assert!(ends.server.add_lane(id, lane(far), false));
    let has = |carrier: &Carrier| carrier.session().lanes().any(|lane| lane == id);
    while !has(&ends.client) || !has(&ends.server) {
        ends.turn().await;
    }
    id
}

#[tokio::test]
async fn what_waits_for_datagrams_arrives_when_a_stream_takes_over() {
    let mut ends = Datagrammers::new(Instant::now());
    ends.confirm().await;
    push_bulk(&mut ends.server, Instant::now(), FEW);
    join(&mut ends).await;
    while came(&ends.at_client) < FEW * SUPER {
        turn(&mut ends).await;
    }
    assert_whole(&ends.at_client, FEW);
    assert_eq!(ends.server.stats().unsealed, 0);
}

#[tokio::test]
async fn what_waits_for_a_stream_arrives_by_datagrams_when_the_stream_is_lost() {
    let mut ends = Datagrammers::new(Instant::now());
    ends.confirm().await;
    let id = join(&mut ends).await;
    let now = Instant::now();
    let preferred = |ends: &mut Datagrammers| {
        (ends.server.session_mut()).lane_for(now, crate::proto::PacketMeta::default())
    };
    while preferred(&mut ends) != Some(id) {
        ends.turn().await;
    }
    // Nobody reads: what finds room in the lane is lost with it, and what does not waits.
    let mut filled = 0;
    while ends.server.has_room(now) {
        let buffer = pool().sized(PACKET_HEADROOM + 60_000 + TAILROOM);
        ends.server.push(now, buffer, Offload::default());
        ends.server.poll_send(&mut cx(), now);
        filled += 1;
        assert!(filled < 1_000);
    }
    push_bulk(&mut ends.server, now, FEW);
    ends.server.remove_lane(now, id, LaneLoss::Silent);
    ends.client.remove_lane(now, id, LaneLoss::Silent);
    while came(&ends.at_client) < FEW * SUPER {
        turn(&mut ends).await;
    }
    assert_whole(&ends.at_client, FEW);
    assert_eq!(ends.server.stats().unsealed, 0);
}
