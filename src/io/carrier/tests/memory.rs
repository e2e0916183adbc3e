//! What becomes of lanes when memory for frames that are coming is short.

use super::*;
use crate::io::lane::READ_MEMORY;
use crate::proto::budget::Share;

/// Somebody else who has taken so many bytes.
fn other(pool: &Pool, bytes: usize) -> Share {
    let mut share = Share::new(pool.reads().clone(), READ_MEMORY);
    share.add(bytes);
    share
}

#[tokio::test]
async fn part_of_a_frame_costs_its_lane_after_5_s_where_memory_is_short_and_nothing_where_not() {
    let now = Instant::now();
    let (_, server) = sessions(now);
    let (mut near, far) = tcp_pair().await;
    let pool = pool();
    let lane = StreamLane::new(LaneStream::Tcp(far), pool.clone());
    let mut server = Carrier::new(server, LaneId::FIRST, lane);
    let mut half = 60_000_u32.to_be_bytes().to_vec();
    half.resize(30_000, 7);
    near.write_all(&half).await.unwrap();
    let mut read = false;
    while server.poll_receive(&mut cx(), now, |_, _, _| {}) || !read {
        tokio::time::sleep(Duration::from_millis(1)).await;
        read = pool.reads().held() + 2052 >= half.len();
    }
    let later = |secs| now + Duration::from_secs(secs);
    assert!(server.poll_timeout().is_some_and(|due| due <= later(5)));
    server.handle_timeout(later(5));
    assert_eq!(server.lanes(), 1, "there is enough");
    let other = other(&pool, READ_MEMORY);
    assert!(server.poll_timeout().is_some_and(|due| due <= later(6)));
    server.handle_timeout(later(6));
    assert_eq!((server.lanes(), server.stats().parts_given_up), (0, 1));
    let mut events = std::iter::from_fn(|| server.poll_event(later(6)));
    assert!(events.any(|event| matches!(
        event,
        CarrierEvent::LaneLost {
            cause: LaneLoss::PartHeld,
            left: 0,
            ..
        }
    )));
    assert_eq!(pool.reads().held(), other.held());
}

#[tokio::test]
async fn lane_that_finds_no_memory_is_read_when_there_is_some() {
    let now = Instant::now();
    let pool = pool();
    let mut ends = Ends::new(now).await;
    let (client, server) = sessions(now);
    let (near, far) = tcp_pair().await;
    let far = StreamLane::new(LaneStream::Tcp(far), pool.clone());
    ends.client = Carrier::new(client, LaneId::FIRST, lane(near));
    ends.server = Carrier::new(server, LaneId::FIRST, far);
    ends.confirm(now).await;
    let other = other(&pool, 2 * READ_MEMORY);
    let mut sink = ends.client.sink(now);
    sink.reserve(60_000).unwrap().fill(9);
    sink.commit(60_000, Offload::default());
    while ends.server.stats().starved == 0 {
        ends.turn(now).await;
    }
    let soon = now + Duration::from_millis(50);
    assert!(ends.server.poll_timeout().is_some_and(|due| due <= soon));
    assert!(ends.at_server.is_empty());
    drop(other);
    while ends.at_server.is_empty() {
        ends.turn(soon).await;
    }
    assert_eq!(ends.at_server, [vec![9; 60_000]]);
    assert_eq!(ends.server.lanes(), 1);
}
