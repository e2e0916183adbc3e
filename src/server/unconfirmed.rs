//! How many sessions wait for their first sealed frame, altogether and of each client.
//!
//! A client whose handshakes are answered and never confirmed, because it is broken or means harm, fills its own share
//! and not everybody's. Beyond the share the newest is refused, not the oldest: one that waits may be confirmed in the
//! next moment, and is gone within [`CONFIRM_TIMEOUT`](super::datagrams::CONFIRM_TIMEOUT) if it is not, while one that is
//! refused has cost nothing yet, and its client asks again by itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::proto::PublicKey;

/// The sessions that wait. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Unconfirmed {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    of_client: HashMap<PublicKey, usize>,
}

impl Unconfirmed {
    /// Lets another session of the client with this key wait, for as long as the place is held.
    ///
    /// # Errors
    ///
    /// Which bound it would be beyond.
    pub fn admit(&self, client: PublicKey) -> Result<Place, Full> {
        let mut waiting = self.lock();
        if waiting.all >= MAX_UNCONFIRMED {
            return Err(Full::All);
        }
        let of_client = waiting.of_client.entry(client).or_default();
        if *of_client >= MAX_UNCONFIRMED_OF_CLIENT {
            return Err(Full::Client);
        }
        *of_client += 1;
        waiting.all += 1;
        Ok(Place {
            unconfirmed: self.clone(),
            client,
        })
    }

    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.lock().all
    }

    /// Returns whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn release(&self, client: PublicKey) {
        let mut waiting = self.lock();
        waiting.all = waiting.all.saturating_sub(1);
        if let Entry::Occupied(mut of_client) = waiting.of_client.entry(client) {
            *of_client.get_mut() -= 1;
            if *of_client.get() == 0 {
                of_client.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // The counts are whole between any two operations, whoever panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one session that waits; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    unconfirmed: Unconfirmed,
    client: PublicKey,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.unconfirmed.release(self.client);
    }
}

/// Why a session may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// [`MAX_UNCONFIRMED`] do.
    All,
    /// [`MAX_UNCONFIRMED_OF_CLIENT`] of the same client do.
    Client,
}

/// Sessions of a socket that may wait for their first sealed frame.
pub const MAX_UNCONFIRMED: usize = 1024;

/// Those of one client: its eight instances, each of which sends five Inits in the five seconds that one may wait.
pub const MAX_UNCONFIRMED_OF_CLIENT: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> PublicKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(key)
    }

    #[test]
    fn one_client_fills_its_share_and_no_more() {
        let unconfirmed = Unconfirmed::default();
        let mut places: Vec<Place> = (0..MAX_UNCONFIRMED_OF_CLIENT)
            .map(|_| unconfirmed.admit(client(1)).unwrap())
            .collect();
        assert_eq!(unconfirmed.admit(client(1)).unwrap_err(), Full::Client);
        let _other = unconfirmed.admit(client(2)).unwrap();
        // The first is confirmed, or its time is over.
        places.remove(0);
        places.push(unconfirmed.admit(client(1)).unwrap());
        assert_eq!(unconfirmed.admit(client(1)).unwrap_err(), Full::Client);
    }

    #[test]
    fn all_clients_together_fill_the_table_and_leave_nothing_behind() {
        let unconfirmed = Unconfirmed::default();
        let places: Vec<Place> = (0..MAX_UNCONFIRMED)
            .map(|number| unconfirmed.admit(client(number)).unwrap())
            .collect();
        assert_eq!(unconfirmed.admit(client(5000)).unwrap_err(), Full::All);
        assert_eq!(unconfirmed.len(), MAX_UNCONFIRMED);
        drop(places);
        assert!(unconfirmed.is_empty());
        assert!(unconfirmed.lock().of_client.is_empty());
    }
}
