//! Lanes side by side on real connections, one of which nobody reads.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use super::*;

/// Joins a lane whose bytes pass while the gate is open; those that came before it was shut stay.
async fn join(ends: &mut Ends, now: Instant, gate: Arc<AtomicBool>) -> (LaneId, JoinHandle<()>) {
    let (near, middle) = tcp_pair().await;
    let (other, far) = tcp_pair().await;
    let relay = tokio::spawn(async move {
        let (mut from_client, mut to_client) = middle.into_split();
        let (mut from_server, mut to_server) = other.into_split();
        let back = tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        });
        let mut buffer = [0; 4096];
        loop {
            if !gate.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            match from_client.read(&mut buffer).await {
                Ok(len) if len > 0 => to_server.write_all(&buffer[..len]).await.unwrap(),
                Ok(_) | Err(_) => break,
            }
        }
        back.abort();
    });
    let (id, frame) = ends.client.session_mut().join_frame(now).unwrap();
    let joined = ends.server.session_mut().handle_join(now, &frame).unwrap();
    assert_eq!(joined, id);
    assert!(ends.client.add_lane(id, lane(near), false));
    assert!(ends.server.add_lane(id, lane(far), false));
    while !ends.client.session().lanes().any(|lane| lane == id) {
        ends.turn(now).await;
    }
    let first = LaneId::FIRST;
    assert!(ends.client.session_mut().stand_beside(first, first));
    assert!(ends.client.session_mut().stand_beside(id, first));
    while ends.server.session().beside().len() < 2 {
        ends.turn(now).await;
    }
    (id, relay)
}

/// A UDP packet of so many bytes of one letter, from a port of its own.
fn packet(port: u16, letter: u8, payload: usize) -> Vec<u8> {
    let mut packet = vec![letter; 28 + payload];
    packet[..20].fill(0);
    (packet[0], packet[8], packet[9]) = (0x45, 64, 17);
    packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let words = packet[..20].chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&9u16.to_be_bytes());
    packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
    packet[26..28].fill(0);
    packet
}

fn send(carrier: &mut Carrier, now: Instant, packet: &[u8]) -> bool {
    let mut sink = carrier.sink(now);
    let Some(room) = sink.reserve(packet.len()) else {
        return false;
    };
    room.copy_from_slice(packet);
    sink.commit(packet.len(), Offload::default());
    true
}

#[tokio::test]
async fn thin_packet_arrives_once_by_the_other_lane_while_one_is_stalled() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    let gate = Arc::new(AtomicBool::new(true));
    let (stalled, _relay) = join(&mut ends, now, gate.clone()).await;
    gate.store(false, Ordering::Relaxed);
    // One flow for each lane, and more of it than the stalled one's connection takes.
    let bulk = [packet(1, b'a', 30_000), packet(2, b'b', 30_000)];
    let mut given = [0; 2];
    for _ in 0..2_000 {
        for (flow, packet) in bulk.iter().enumerate() {
            given[flow] += usize::from(send(&mut ends.client, now, packet));
        }
        ends.turn(now).await;
        if ends.client.rooms(now).count_ones() == 2 {
            break;
        }
    }
    // The scheduled one has room, of the two one: the other is full.
    assert_eq!(ends.client.rooms(now).count_ones(), 2, "{given:?}");
    assert!(ends.client.has_room(now));
    ends.at_server.clear();
    let thin = packet(3, b'c', 200);
    assert!(send(&mut ends.client, now, &thin));
    while !ends.at_server.contains(&thin) {
        ends.turn(now).await;
    }
    assert_eq!(ends.client.spread_stats().thin, 1);
    assert_eq!(ends.client.spread_stats().copies, 1);
    // What was stalled comes after all, and the copy with it is dropped.
    gate.store(true, Ordering::Relaxed);
    let duplicates = |ends: &Ends| {
        let lane = ends.server.session().lane_stats(stalled).unwrap();
        lane.incoming.wasted
    };
    while duplicates(&ends) == 0 {
        ends.turn(now).await;
    }
    for _ in 0..20 {
        ends.turn(now).await;
    }
    let came = ends.at_server.iter().filter(|came| **came == thin).count();
    assert_eq!(came, 1);
    assert_eq!(duplicates(&ends), 1);
    let sent = ends.client.session().lane_stats(stalled).unwrap();
    let other = ends.client.session().lane_stats(LaneId::FIRST).unwrap();
    assert_eq!(sent.outgoing.copied + other.outgoing.copied, 1);
    assert_eq!(ends.client.stats().copies_refused, 0);
    assert_eq!(ends.client.stats().unsealed, 0);
}

#[tokio::test]
async fn server_sends_thin_packets_on_both_lanes_and_a_lane_that_goes_is_left() {
    let now = Instant::now();
    let mut ends = Ends::new(now).await;
    ends.confirm(now).await;
    let gate = Arc::new(AtomicBool::new(true));
    let (other, relay) = join(&mut ends, now, gate).await;
    let thin = packet(3, b'd', 200);
    let push = |ends: &mut Ends| {
        let mut buffer = pool().sized(PACKET_HEADROOM + thin.len() + TAILROOM);
        buffer[PACKET_HEADROOM..PACKET_HEADROOM + thin.len()].copy_from_slice(&thin);
        assert!(ends.server.has_room(now));
        ends.server.push(now, buffer, Offload::default());
    };
    push(&mut ends);
    assert_eq!(ends.server.spread_stats().copies, 1);
    let drops = |ends: &Ends| ends.client.session().stats().drops.duplicate_packets;
    while drops(&ends) == 0 {
        ends.turn(now).await;
    }
    assert_eq!(ends.at_client, std::slice::from_ref(&thin));
    relay.abort();
    let _ = relay.await;
    while ends.client.lanes() > 1 || ends.server.lanes() > 1 {
        ends.turn(now).await;
    }
    assert_eq!(ends.server.session().beside(), [LaneId::FIRST]);
    assert!(!ends.client.session().lanes().any(|lane| lane == other));
    push(&mut ends);
    while ends.at_client.len() < 2 {
        ends.turn(now).await;
    }
    assert_eq!(ends.server.spread_stats().copies, 1, "none beside it");
}
