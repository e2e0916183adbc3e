//! Real sockets on the loopback interface.

use std::future::poll_fn;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn_udp::EcnCodepoint;

use super::*;
use crate::io::pool::{Pool, SMALL};

const V4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

/// A socket, what reads it and what it sends.
struct End {
    io: Arc<UdpIo>,
    receiver: Receiver,
    sender: Sender,
    batch: SendBatch,
}

impl End {
    fn new(io: UdpIo) -> Self {
        let io = Arc::new(io);
        Self {
            receiver: Receiver::new(io.clone(), Pool::new("test", 64, 32)),
            sender: Sender::new(io.clone()),
            batch: SendBatch::new(Pool::new("test", 1, 1)),
            io,
        }
    }

    fn bound(address: SocketAddr) -> Self {
        Self::new(UdpIo::bind(address, false).expect("a free port"))
    }

    fn put(&mut self, len: usize, fill: u8, target: Target) {
        let room = self.batch.reserve(len).expect("room");
        room.fill(fill);
        self.batch.commit(len, target);
    }

    async fn flush(&mut self) {
        poll_fn(|cx| self.sender.poll_flush(cx, &mut self.batch)).await;
    }

    /// Reads until `count` datagrams have come: length, first byte, ECN, sender.
    async fn read(&mut self, count: usize) -> Vec<(usize, u8, Option<EcnCodepoint>, SocketAddr)> {
        let mut got = Vec::new();
        while got.len() < count {
            if poll_fn(|cx| self.receiver.poll_recv(cx)).await.is_err() {
                continue;
            }
            while let Some(datagram) = self.receiver.next_datagram() {
                assert!(datagram.bytes.iter().all(|byte| *byte == datagram.bytes[0]));
                got.push((
                    datagram.bytes.len(),
                    datagram.bytes[0],
                    datagram.ecn,
                    datagram.from,
                ));
            }
        }
        got
    }
}

fn to(to: SocketAddr) -> Target {
    Target {
        to,
        source: None,
        ecn: None,
    }
}

/// Whether this host has IPv6 at all; one without has nothing to show.
fn has_v6() -> bool {
    std::net::UdpSocket::bind(V6).is_ok()
}

#[tokio::test]
async fn batch_of_equal_datagrams_arrives_whole_and_in_order() {
    for address in [V4, V6] {
        if address.is_ipv6() && !has_v6() {
            continue;
        }
        let (mut near, mut far) = (End::bound(address), End::bound(address));
        let target = to(far.io.local_addr());
        for fill in 0..40 {
            near.put(1433, fill, target);
        }
        near.put(77, 40, target);
        near.flush().await;
        assert!(near.batch.is_empty());
        let got = far.read(41).await;
        let lengths: Vec<usize> = got.iter().map(|datagram| datagram.0).collect();
        assert_eq!(lengths, [vec![1433; 40], vec![77]].concat());
        assert!(got.iter().map(|datagram| datagram.1).eq(0..41));
        assert!(
            got.iter()
                .all(|datagram| datagram.3.port() == near.io.local_addr().port())
        );
        let stats = near.io.stats();
        assert_eq!(stats.datagrams_sent, 41);
        assert_eq!(far.io.stats().datagrams_received, 41);
        if near.io.segments() > 1 {
            assert_eq!(stats.sends, 1, "one call for all of them");
        }
    }
}

#[tokio::test]
async fn datagrams_of_several_targets_and_lengths_share_a_batch() {
    let mut near = End::bound(V4);
    let (mut one, mut other) = (End::bound(V4), End::bound(V4));
    let targets = [to(one.io.local_addr()), to(other.io.local_addr())];
    for (len, fill, target) in [
        (100, 1, 0),
        (200, 2, 0),
        (200, 3, 1),
        (200, 4, 0),
        (50, 5, 0),
    ] {
        near.put(len, fill, targets[target]);
    }
    near.flush().await;
    let got = one.read(4).await;
    let seen: Vec<(usize, u8)> = got
        .iter()
        .map(|datagram| (datagram.0, datagram.1))
        .collect();
    assert_eq!(seen, [(100, 1), (200, 2), (200, 4), (50, 5)]);
    assert_eq!(other.read(1).await[0].1, 3);
}

#[test]
fn batch_groups_by_target_mark_and_length() {
    let mut batch = SendBatch::new(Pool::new("test", 1, 1));
    let target = to(V4);
    let marked = Target {
        ecn: Some(EcnCodepoint::Ect0),
        ..target
    };
    let put = |batch: &mut SendBatch, len: usize, target| {
        assert!(batch.reserve(len).is_some());
        batch.commit(len, target);
    };
    for (len, target) in [
        (100, target),
        (100, target),
        (60, target),
        // A shorter one was the last.
        (60, target),
        // Longer than the first.
        (61, target),
        (61, marked),
    ] {
        put(&mut batch, len, target);
    }
    let groups: Vec<(usize, usize)> = batch
        .groups
        .iter()
        .map(|group| (group.segment, group.count))
        .collect();
    assert_eq!(groups, [(100, 3), (60, 1), (61, 1), (61, 1)]);
    assert_eq!(batch.len(), 100 + 100 + 60 + 60 + 61 + 61);
}

#[test]
fn full_batch_gives_no_room() {
    let mut batch = SendBatch::new(Pool::new("test", 1, 1));
    let mut count = 0;
    while batch.reserve(1433).is_some() {
        batch.commit(1433, to(V4));
        count += 1;
    }
    assert_eq!(count, BATCH_BYTES / 1433);
    assert!(
        batch
            .groups
            .iter()
            .all(|group| group.end - group.start <= 65_487)
    );
    batch.clear();
    // Nothing but different lengths: the groups are the bound.
    let mut count = 0;
    while batch.reserve(500).is_some() {
        batch.commit(100 + count, to(V4));
        count += 1;
    }
    assert!(count < BATCH_BYTES / 500, "{count}");
    batch.clear();
    assert!(batch.is_empty());
    assert!(batch.reserve(BATCH_BYTES).is_some());
    assert!(batch.reserve(usize::MAX).is_none());
}

#[tokio::test]
async fn flushed_batch_holds_no_memory_though_room_was_reserved_for_nothing() {
    let mut near = End::bound(V4);
    let pool = Pool::new("test", 1, 1);
    near.batch = SendBatch::new(pool.clone());
    assert!(near.batch.reserve(100).is_some());
    near.flush().await;
    assert_eq!(pool.stats().large.outstanding, 0);
}

#[tokio::test]
async fn marks_arrive() {
    let (mut near, mut far) = (End::bound(V4), End::bound(V4));
    let marked = Target {
        ecn: Some(EcnCodepoint::Ect0),
        ..to(far.io.local_addr())
    };
    near.put(10, 1, marked);
    near.put(10, 2, to(far.io.local_addr()));
    near.flush().await;
    let got = far.read(2).await;
    assert_eq!(got[0].2, Some(EcnCodepoint::Ect0));
    assert_eq!(got[1].2, None);
}

#[tokio::test]
async fn answer_leaves_from_the_address_that_was_asked() {
    // 127.0.0.2 is the host's too; without care the answer would come from 127.0.0.1.
    let asked: SocketAddr = "127.0.0.2:0".parse().expect("an address");
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    for bound in [any, dual] {
        if bound.is_ipv6() && !has_v6() {
            continue;
        }
        let mut server = End::bound(bound);
        let mut client = End::bound(V4);
        let asked = SocketAddr::new(asked.ip(), server.io.local_addr().port());
        client.put(5, 7, to(asked));
        client.flush().await;
        poll_fn(|cx| server.receiver.poll_recv(cx))
            .await
            .expect("a datagram");
        let datagram = server.receiver.next_datagram().expect("one");
        let answer = Target {
            to: datagram.from,
            source: datagram.to,
            ecn: None,
        };
        assert_eq!(datagram.to.map(|ip| ip.to_canonical()), Some(asked.ip()));
        server.put(6, 8, answer);
        server.flush().await;
        assert_eq!(client.read(1).await[0].3, asked, "bound to {bound}");
    }
}

#[tokio::test]
async fn whole_messages_are_taken_with_their_buffers() {
    let (mut near, mut far) = (End::bound(V4), End::bound(V4));
    let target = to(far.io.local_addr());
    for fill in 0..8 {
        near.put(1000, fill, target);
    }
    near.put(9, 8, target);
    near.flush().await;
    let inbox = Inbox::new();
    let mut seen = Vec::new();
    while seen.len() < 9 {
        poll_fn(|cx| far.receiver.poll_recv(cx))
            .await
            .expect("datagrams");
        while let Some(arrival) = far.receiver.take_message() {
            if arrival.buffer.len() <= SMALL {
                assert_eq!(arrival.buffer.capacity(), SMALL);
            }
            assert!(inbox.push(arrival));
        }
        let cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(mut arrival) = inbox.poll_pop(&cx) {
            assert_eq!(arrival.from, near.io.local_addr());
            seen.extend(
                arrival
                    .datagrams()
                    .map(|datagram| (datagram.bytes.len(), datagram.bytes[0])),
            );
        }
    }
    let expected: Vec<(usize, u8)> = (0..8).map(|fill| (1000, fill)).chain([(9, 8)]).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn full_inbox_drops_and_counts() {
    let pool = Pool::new("test", 1, 1);
    let io = Arc::new(UdpIo::bind(V4, false).expect("a free port"));
    let arrival = |pool: &Arc<Pool>| Arrival {
        buffer: pool.large(),
        stride: 1000,
        from: V4,
        to: None,
        ecn: None,
        io: io.clone(),
    };
    let inbox = Inbox::new();
    let mut taken = 0;
    while inbox.push(arrival(&pool)) {
        taken += 1;
    }
    assert_eq!(taken, INBOX_MEMORY / pool.large().capacity());
    assert_eq!(inbox.dropped(), pool.large().len().div_ceil(1000) as u64);
    let cx = Context::from_waker(Waker::noop());
    assert!(inbox.poll_pop(&cx).is_ready());
    assert!(inbox.push(arrival(&pool)), "there is room again");
}

#[tokio::test]
async fn refused_port_is_heard_of_and_ends_nothing() {
    let gone = End::bound(V4).io.local_addr();
    let mut near = End::new(UdpIo::for_remote(gone).expect("a socket"));
    near.put(10, 1, to(gone));
    near.flush().await;
    let said = poll_fn(|cx| near.receiver.poll_recv(cx)).await;
    assert_eq!(said, Err(Feedback::Refused));
    // The next one there is not swallowed by it.
    let mut far = End::bound(V4);
    near.put(10, 2, to(far.io.local_addr()));
    near.flush().await;
    assert_eq!(far.read(1).await[0].1, 2);
}

#[test]
fn firewall_of_this_host_is_told_from_a_network_that_cannot_be_reached() {
    let said = |errno| Feedback::of_error(&std::io::Error::from_raw_os_error(errno));
    assert_eq!(said(libc::EPERM), Some(Feedback::Forbidden));
    assert_eq!(said(libc::ENETUNREACH), Some(Feedback::Unreachable));
}

#[tokio::test]
async fn datagram_that_no_link_takes_is_said_to_be_too_big() {
    let mut far = End::bound(V4);
    let mut near = End::new(UdpIo::for_remote(far.io.local_addr()).expect("a socket"));
    let target = to(far.io.local_addr());
    // Above what IP can carry, whatever the link.
    near.put(65_530, 1, target);
    near.flush().await;
    assert!(matches!(
        near.sender.take_feedback(),
        Some(Feedback::TooBig { .. })
    ));
    assert_eq!(near.io.stats().too_big, 1);
    near.io.set_may_fragment(true).expect("an option");
    near.put(20_000, 2, target);
    near.io.set_may_fragment(false).expect("an option");
    near.flush().await;
    assert_eq!(far.read(1).await[0].0, 20_000);
    assert_eq!(near.sender.take_feedback(), None);
}

#[tokio::test]
async fn refused_segmentation_is_made_up_for_by_single_datagrams() {
    let (mut near, mut far) = (End::bound(V4), End::bound(V4));
    if near.io.segments() == 1 {
        return;
    }
    let target = to(far.io.local_addr());
    near.put(1000, 1, target);
    near.put(1000, 2, target);
    near.put(10, 3, target);
    // As after a first refusal.
    let (group, contents) = near.batch.front(1).expect("a group");
    assert_eq!((group.count, contents.len()), (1, 1000));
    let (end, count) = (group.end, group.count);
    near.batch.advance(end, count);
    let (group, contents) = near.batch.front(1).expect("a group");
    assert_eq!((group.count, contents[0]), (1, 2));
    near.flush().await;
    let fills: Vec<u8> = far
        .read(2)
        .await
        .iter()
        .map(|datagram| datagram.1)
        .collect();
    assert_eq!(fills, [2, 3]);
}

#[tokio::test]
async fn everybody_who_waits_for_a_full_socket_is_woken() {
    let io = Arc::new(UdpIo::bind(V4, false).expect("a free port"));
    let mut far = End::bound(V4);
    let target = to(far.io.local_addr());
    let mut ends: Vec<End> = (0..3)
        .map(|_| End {
            io: io.clone(),
            receiver: Receiver::new(io.clone(), Pool::new("test", 1, 1)),
            sender: Sender::new(io.clone()),
            batch: SendBatch::new(Pool::new("test", 1, 1)),
        })
        .collect();
    for (fill, end) in (0..).zip(&mut ends) {
        end.sender.blocked = true;
        end.put(10, fill, target);
    }
    let flushed = futures_util::future::join_all(ends.iter_mut().map(End::flush));
    tokio::time::timeout(Duration::from_secs(30), flushed)
        .await
        .expect("all of them");
    assert_eq!(far.read(3).await.len(), 3);
}
