//! The peers of a UDP forward, or those who speak within a command's namespace, and the task of each.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// Peers by their address. Each has a task, which gets its datagrams from a queue and ends by itself.
/// What is given for a peer is a payload, or what else a task needs.
#[derive(Debug)]
pub(super) struct Peers<T = Vec<u8>> {
    table: HashMap<SocketAddr, Peer<T>>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Peer<T> {
    datagrams: mpsc::Sender<T>,
    task: AbortHandle,
    used: Instant,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Its peer's task has it.
    Taken,
    /// The peer's queue is full.
    Full,
}

impl<T> Default for Peers<T> {
    fn default() -> Self {
        Self {
            table: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }
}

impl<T> Peers<T> {
    /// Gives a datagram to the task of `peer`; where there is none, one is made of what `open` returns, in the place of the
    /// peer that was silent for longest if there are too many.
    pub(super) fn give<F>(
        &mut self,
        now: Instant,
        peer: SocketAddr,
        payload: T,
        open: impl FnOnce(mpsc::Receiver<T>) -> F,
    ) -> Given
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let payload = match self.table.get_mut(&peer) {
            Some(known) => {
                known.used = now;
                match known.datagrams.try_send(payload) {
                    Ok(()) => return Given::Taken,
                    Err(mpsc::error::TrySendError::Full(_)) => return Given::Full,
                    // It has been idle for too long.
                    Err(mpsc::error::TrySendError::Closed(payload)) => payload,
                }
            }
            None => payload,
        };
        self.make_room(&peer);
        let (datagrams, queue) = mpsc::channel(PEER_QUEUE);
        let given = match datagrams.try_send(payload) {
            Ok(()) => Given::Taken,
            Err(_) => Given::Full,
        };
        let task = self.tasks.spawn(open(queue));
        self.table.insert(
            peer,
            Peer {
                datagrams,
                task,
                used: now,
            },
        );
        given
    }

    /// Waits for the end of a task, for ever if there is none; false for one that has panicked. Safe to cancel.
    pub(super) async fn ended(&mut self) -> bool {
        match self.tasks.join_next().await {
            Some(Err(error)) => !error.is_panic(),
            Some(Ok(())) => true,
            None => std::future::pending().await,
        }
    }

    /// As [`Peers::ended`], for a driver; pending where there is no task.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self.tasks.poll_join_next(cx) {
            Poll::Ready(Some(Err(error))) => Poll::Ready(!error.is_panic()),
            Poll::Ready(Some(Ok(()))) => Poll::Ready(true),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Ends the tasks of all peers.
    pub(super) async fn end(&mut self) {
        self.table.clear();
        self.tasks.shutdown().await;
    }

    fn make_room(&mut self, peer: &SocketAddr) {
        self.table.remove(peer);
        if self.table.len() < MAX_PEERS {
            return;
        }
        self.table.retain(|_, peer| !peer.datagrams.is_closed());
        while self.table.len() >= MAX_PEERS {
            let idlest = self.table.iter().min_by_key(|(_, peer)| peer.used);
            let Some(address) = idlest.map(|(address, _)| *address) else {
                return;
            };
            if let Some(peer) = self.table.remove(&address) {
                peer.task.abort();
            }
        }
    }
}

/// Peers of one forward or namespace, each with a socket or an inner port: what a busy service has, and a bound on descriptors.
pub const MAX_PEERS: usize = 1024;

/// Datagrams that wait for one peer's task: a burst.
pub const PEER_QUEUE: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn peer(number: usize) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], u16::try_from(number + 1).unwrap()))
    }

    #[tokio::test]
    async fn datagrams_of_a_peer_go_to_one_task_in_their_order() {
        let mut peers = Peers::default();
        let (seen, mut got) = mpsc::channel(16);
        for (number, from) in [(0, 1), (1, 2), (2, 1)] {
            let seen = seen.clone();
            let given = peers.give(
                Instant::now(),
                peer(from),
                vec![number],
                |mut queue| async move {
                    while let Some(payload) = queue.recv().await {
                        seen.send((from, payload[0])).await.unwrap();
                    }
                },
            );
            assert_eq!(given, Given::Taken);
        }
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(got.recv().await.unwrap());
        }
        all.sort_unstable();
        assert_eq!(all, [(1, 0), (1, 2), (2, 1)]);
        assert_eq!(peers.table.len(), 2);
    }

    #[tokio::test]
    async fn full_queue_is_told_and_an_ended_task_is_made_anew() {
        let mut peers = Peers::default();
        let now = Instant::now();
        let mut full = 0;
        for _ in 0..PEER_QUEUE + 3 {
            let given = peers.give(now, peer(0), vec![0], |queue| async move {
                // Read by nobody, for longer than the test takes.
                tokio::time::sleep(Duration::from_secs(3600)).await;
                drop(queue);
            });
            full += usize::from(given == Given::Full);
        }
        assert_eq!(full, 3);
        let ends = |_queue| async {};
        assert_eq!(peers.give(now, peer(1), vec![0], ends), Given::Taken);
        assert!(peers.ended().await);
        assert_eq!(peers.give(now, peer(1), vec![0], ends), Given::Taken);
        assert!(peers.ended().await, "a second task");
    }

    #[tokio::test]
    async fn one_peer_too_many_takes_the_place_of_the_most_silent() {
        let mut peers = Peers::default();
        let start = Instant::now();
        let alive = Arc::new(AtomicUsize::new(0));
        struct Guard(Arc<AtomicUsize>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        for number in 0..=MAX_PEERS {
            let at = start + Duration::from_millis(number as u64);
            alive.fetch_add(1, Ordering::SeqCst);
            let guard = Guard(alive.clone());
            peers.give(at, peer(number), vec![0], |mut queue| async move {
                let _guard = guard;
                while queue.recv().await.is_some() {}
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(peers.table.len(), MAX_PEERS);
        assert!(!peers.table.contains_key(&peer(0)));
        assert!(peers.ended().await, "its task is ended, which is no fault");
        assert_eq!(alive.load(Ordering::SeqCst), MAX_PEERS);
        peers.end().await;
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    }
}
