//! What sessions that have ended have carried and counted, by client and in all.
//!
//! A session enters its client into the book when it begins and adds its numbers when it ends, so that a client's
//! numbers grow as long as it is listed, and those of the program for ever. Whoever is listed no more is forgotten; what it
//! has carried stays in the sums.
//!
//! # Limits
//!
//! One account per listed client that has had a session; of them [`MAX_LABELLED`] may be named in metrics, those that came
//! first.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::proto::PublicKey;
use crate::status::{MAX_LABELLED, Numbers, Tally};
use crate::wire::SessionId;

/// The book.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    accounts: HashMap<PublicKey, Account>,
    labelled: usize,
    all: Tally,
    /// Sessions that have ended since a report was begun, while one is.
    ended: Option<HashSet<SessionId>>,
}

/// What there is of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Sessions that have ended.
    pub ended: u64,
    /// What they have carried.
    pub numbers: Numbers,
    /// Whether its name is a label.
    pub labelled: bool,
}

impl Ledger {
    /// Opens the account of a client that has a session.
    pub fn open(&self, key: &PublicKey) {
        let mut book = self.lock();
        if !book.accounts.contains_key(key) {
            let labelled = book.labelled < MAX_LABELLED;
            book.labelled += usize::from(labelled);
            let account = Account {
                labelled,
                ..Account::default()
            };
            book.accounts.insert(*key, account);
        }
    }

    /// Enters a session of this client that has ended.
    pub fn enter(&self, id: SessionId, key: &PublicKey, tally: &Tally) {
        let mut book = self.lock();
        if let Some(ended) = &mut book.ended {
            ended.insert(id);
        }
        book.all.add_ended(tally);
        if let Some(account) = book.accounts.get_mut(key) {
            account.ended += 1;
            account.numbers.add(&tally.numbers);
        }
    }

    /// Enters what was counted of a session that no client has had.
    pub fn enter_refused(&self, tally: &Tally) {
        self.lock().all.add_ended(tally);
    }

    /// Closes the account of a client that is listed no more.
    pub fn close(&self, key: &PublicKey) {
        let mut book = self.lock();
        let closed = book.accounts.remove(key);
        book.labelled -= usize::from(closed.is_some_and(|account| account.labelled));
    }

    /// Begins a report: from now on it is remembered which sessions end.
    pub fn begin_report(&self) {
        self.lock().ended = Some(HashSet::new());
    }

    /// Ends it: returns every account, the sums of all that has ended, and which sessions have ended since it began. Those
    /// are in the sums, whatever they have said of themselves.
    pub fn end_report(&self) -> (HashMap<PublicKey, Account>, Tally, HashSet<SessionId>) {
        let mut book = self.lock();
        let ended = book.ended.take().unwrap_or_default();
        (book.accounts.clone(), book.all.clone(), ended)
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Carried, Kind};

    fn key(number: u32) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn tally(bytes: u64) -> Tally {
        let carried = Carried {
            sent_bytes: bytes,
            ..Carried::default()
        };
        let mut tally = Tally {
            numbers: Numbers {
                carried,
                ..Numbers::default()
            },
            ..Tally::default()
        };
        tally.counters.drops("queue", "codel", 1);
        tally
    }

    #[test]
    fn numbers_of_a_client_go_with_it_and_those_of_all_stay() {
        let ledger = Ledger::default();
        ledger.open(&key(1));
        ledger.enter(SessionId(1), &key(1), &tally(5));
        ledger.enter(SessionId(1), &key(1), &tally(6));
        let (accounts, _, _) = ledger.end_report();
        assert_eq!(accounts[&key(1)].ended, 2);
        assert_eq!(accounts[&key(1)].numbers.carried.sent_bytes, 11);
        ledger.close(&key(1));
        // Its last session says its end later.
        ledger.enter(SessionId(1), &key(1), &tally(7));
        ledger.enter_refused(&tally(0));
        let (accounts, all, _) = ledger.end_report();
        assert!(accounts.is_empty());
        assert_eq!(all.numbers.carried.sent_bytes, 18);
        assert_eq!(all.counters.value(Kind::Drop, "queue", "codel"), 4);
    }

    #[test]
    fn as_many_names_as_may_be_are_labels_and_a_place_is_given_back() {
        let ledger = Ledger::default();
        let bound = u32::try_from(MAX_LABELLED).unwrap();
        for number in 0..bound + 1 {
            ledger.open(&key(number));
        }
        let labelled = |number| ledger.end_report().0[&key(number)].labelled;
        assert!(labelled(0) && labelled(bound - 1) && !labelled(bound));
        ledger.close(&key(0));
        ledger.open(&key(bound + 1));
        assert!(labelled(bound + 1) && !labelled(bound));
    }

    #[test]
    fn session_that_ends_while_a_report_is_made_is_told_and_no_other() {
        let ledger = Ledger::default();
        ledger.open(&key(1));
        ledger.enter(SessionId(1), &key(1), &tally(1));
        ledger.begin_report();
        ledger.enter(SessionId(2), &key(1), &tally(1));
        let (_, all, ended) = ledger.end_report();
        assert_eq!(ended, HashSet::from([SessionId(2)]));
        assert_eq!(all.numbers.carried.sent_bytes, 2);
        ledger.enter(SessionId(3), &key(1), &tally(1));
        assert!(ledger.end_report().2.is_empty());
    }
}
