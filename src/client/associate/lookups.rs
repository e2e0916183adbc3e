//! Datagrams whose names somebody is resolving.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::client::resolve::{Host, NameQueries, NameQuery};
use crate::client::rules::ResolvedBy;
use crate::client::tunnel::HandleId;

/// Names that a resolver was asked for, and the datagrams that wait for the answers.
#[derive(Debug)]
pub(super) struct Lookups {
    names: NameQueries,
    waiting: HashMap<u64, (Unresolved, Instant)>,
    next: u64,
}

/// A datagram that waits for its name's address.
#[derive(Debug)]
pub(super) struct Unresolved {
    pub(super) handle: HandleId,
    pub(super) host: Host,
    /// Who is asked.
    pub(super) by: ResolvedBy,
    pub(super) port: u16,
    pub(super) payload: Vec<u8>,
}

impl Lookups {
    /// Asks `names`, in queries that are numbered from `first_query` on.
    pub(super) fn new(names: NameQueries, first_query: u64) -> Self {
        Self {
            names,
            waiting: HashMap::new(),
            next: first_query,
        }
    }

    /// Asks for a name, and keeps its datagram until the answer is there; false if it cannot.
    pub(super) fn ask(&mut self, now: Instant, datagram: Unresolved) -> bool {
        if self.waiting.len() >= MAX_UNRESOLVED {
            // Those that no answer will come for any more.
            self.waiting.retain(|_, (_, until)| now < *until);
        }
        if self.waiting.len() >= MAX_UNRESOLVED {
            return false;
        }
        let query = NameQuery {
            query: self.next,
            host: datagram.host.clone(),
            by: datagram.by,
        };
        if self.names.try_send(query).is_err() {
            return false;
        }
        self.waiting
            .insert(self.next, (datagram, now + RESOLVE_TIMEOUT));
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Takes the datagram that waits for the answer to `query`.
    pub(super) fn take(&mut self, query: u64) -> Option<Unresolved> {
        self.waiting.remove(&query).map(|(datagram, _)| datagram)
    }

    /// Drops what waits for an association that is gone.
    pub(super) fn forget(&mut self, handle: HandleId) {
        self.waiting
            .retain(|_, (datagram, _)| datagram.handle != handle);
    }

    /// Returns the number of datagrams that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Datagrams that wait for a name.
const MAX_UNRESOLVED: usize = 256;

/// How long a datagram waits for its name: longer than the resolver tries.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn lookups_without_an_answer_make_room_in_the_end() {
        let (names, mut asked) = mpsc::channel(1);
        let mut lookups = Lookups::new(names, 7);
        let now = Instant::now();
        let datagram = || Unresolved {
            handle: HandleId::numbered(1),
            host: Host::parse(b"a.test").unwrap(),
            by: ResolvedBy::Tunnel,
            port: 53,
            payload: Vec::new(),
        };
        for _ in 0..MAX_UNRESOLVED {
            assert!(lookups.ask(now, datagram()));
            asked.try_recv().unwrap();
        }
        assert!(!lookups.ask(now, datagram()));
        assert!(lookups.ask(now + RESOLVE_TIMEOUT, datagram()));
        assert_eq!(lookups.len(), 1);
    }
}
