//! Who may connect, and how that changes while the server runs.
//!
//! # Theory of operation
//!
//! A client is known by its key. It is listed in the configuration, or was enrolled later ([`Origin`]); a reload
//! replaces those of the file and leaves the others alone. One that is listed may be denied all the same, which a reload
//! does not change. Names are unique over both, since logs, metrics and orders
//! tell clients apart by them.
//!
//! Handshakes look their client up here, and a session looks once more when its first sealed frame has opened: a client
//! that was taken out in between is not served. Whoever takes a client out ends its sessions, too, as
//! [`orders`](super::orders) and [`reload`](super::reload) do.
//!
//! # Limits
//!
//! One entry per client. The lock is held for a look-up, or for a change of the table; nothing waits under it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::config::ClientEntry;
use crate::proto::{PresharedKey, PublicKey};

/// The clients of a server.
#[derive(Debug, Default)]
pub struct Peers {
    listed: RwLock<HashMap<PublicKey, Peer>>,
    /// Those that may not connect all the same.
    denied: RwLock<HashSet<PublicKey>>,
    /// Those that had enrolled and were revoked: they are told so, where nobody lists them any more.
    former: RwLock<HashSet<PublicKey>>,
}

/// A client that may connect.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What is known of it.
    pub entry: Arc<ClientEntry>,
    /// How it came here.
    pub origin: Origin,
}

/// How a client came to be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// By the configuration.
    File,
    /// By an order while the server ran; it is kept in the state directory.
    Enrolled,
}

/// What a replacement of the clients of one origin has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Keys that are new.
    pub added: Vec<PublicKey>,
    /// Clients that are gone.
    pub removed: Vec<PublicKey>,
    /// Clients whose secret is another one: who knows the former is not to go on.
    pub rekeyed: Vec<PublicKey>,
    /// Clients with another name or fixed address.
    pub changed: Vec<PublicKey>,
}

/// Why a client is not listed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerError {
    /// Another has the name.
    #[error("the name `{name}` belongs to another client: choose another")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The key is listed.
    #[error("this key is listed already, as `{name}`")]
    KeyTaken {
        /// Under which name.
        name: String,
    },
    /// There is no such client.
    #[error("there is no such client")]
    Unknown,
}

impl Peers {
    /// Lists the clients of a configuration, whose names and keys are unique.
    pub fn new(clients: Vec<ClientEntry>) -> Self {
        let peers = Self::default();
        peers.write().extend(clients.into_iter().map(of_file));
        peers
    }

    /// Replaces the clients of the file; those that were enrolled stay.
    ///
    /// A key that is enrolled and now stands in the file belongs to the file.
    ///
    /// # Errors
    ///
    /// One has the name of an enrolled client; nothing has changed then.
    pub fn replace(&self, clients: Vec<ClientEntry>) -> Result<Change, PeerError> {
        let mut peers = self.write();
        let read: HashSet<PublicKey> = clients.iter().map(|client| client.public_key).collect();
        let enrolled: HashSet<&str> = peers
            .values()
            .filter(|peer| peer.origin == Origin::Enrolled && !read.contains(&peer.key()))
            .map(|peer| peer.entry.name.as_str())
            .collect();
        if let Some(taken) = clients
            .iter()
            .find(|it| enrolled.contains(it.name.as_str()))
        {
            let name = taken.name.clone();
            return Err(PeerError::NameTaken { name });
        }
        let mut change = Change::default();
        peers.retain(|key, peer| {
            let stays = peer.origin == Origin::Enrolled || read.contains(key);
            if !stays {
                change.removed.push(*key);
            }
            stays
        });
        for client in clients {
            let key = client.public_key;
            match peers.get(&key) {
                None => change.added.push(key),
                Some(peer) if psk(&peer.entry) != psk(&client) => change.rekeyed.push(key),
                Some(peer) if differ(&peer.entry, &client) => change.changed.push(key),
                Some(_) => {}
            }
            peers.extend([of_file(client)]);
        }
        Ok(change)
    }

    /// Lists one more client.
    ///
    /// # Errors
    ///
    /// Its key or its name is listed.
    pub fn insert(&self, entry: ClientEntry, origin: Origin) -> Result<(), PeerError> {
        let mut peers = self.write();
        if let Some(known) = peers.get(&entry.public_key) {
            let name = known.entry.name.clone();
            return Err(PeerError::KeyTaken { name });
        }
        if peers.values().any(|peer| peer.entry.name == entry.name) {
            return Err(PeerError::NameTaken { name: entry.name });
        }
        let entry = Arc::new(entry);
        peers.insert(entry.public_key, Peer { entry, origin });
        Ok(())
    }

    /// Takes a client out. Its sessions go on: whoever calls this ends them.
    pub fn remove(&self, key: &PublicKey) -> Option<Peer> {
        self.write().remove(key)
    }

    /// Gives a client another name.
    ///
    /// # Errors
    ///
    /// Another has the name, or there is no such client.
    pub fn rename(&self, key: &PublicKey, name: &str) -> Result<(), PeerError> {
        let mut peers = self.write();
        let taken = |peer: &Peer| peer.entry.name == name && peer.key() != *key;
        if peers.values().any(taken) {
            let name = name.to_owned();
            return Err(PeerError::NameTaken { name });
        }
        let peer = peers.get_mut(key).ok_or(PeerError::Unknown)?;
        Arc::make_mut(&mut peer.entry).name = name.to_owned();
        Ok(())
    }

    /// Denies these clients and no others, listed or not.
    pub fn deny(&self, denied: HashSet<PublicKey>) {
        *self.denied.write().unwrap_or_else(PoisonError::into_inner) = denied;
    }

    /// Remembers that these clients and no others had enrolled and were revoked.
    pub fn remember(&self, former: HashSet<PublicKey>) {
        *self.former.write().unwrap_or_else(PoisonError::into_inner) = former;
    }

    /// Returns whether the client with this key was revoked, as far as that is remembered.
    pub fn was_revoked(&self, key: &PublicKey) -> bool {
        let has = |keys: &RwLock<HashSet<PublicKey>>| {
            let keys = keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.contains(key)
        };
        if self.lists(key) {
            has(&self.denied)
        } else {
            has(&self.former)
        }
    }

    /// Returns the client with this key, denied or not.
    pub fn listed(&self, key: &PublicKey) -> Option<Peer> {
        self.read().get(key).cloned()
    }

    /// Returns whether a client with this key is listed, denied or not.
    pub fn lists(&self, key: &PublicKey) -> bool {
        self.read().contains_key(key)
    }

    /// Returns the client with this key, if it may connect.
    pub fn find(&self, key: &PublicKey) -> Option<Peer> {
        let denied = self.denied.read().unwrap_or_else(PoisonError::into_inner);
        let peer = self.read().get(key).cloned();
        peer.filter(|_| !denied.contains(key))
    }

    /// Returns the client with this name.
    pub fn named(&self, name: &str) -> Option<Peer> {
        let peers = self.read();
        peers.values().find(|peer| peer.entry.name == name).cloned()
    }

    /// Lists all clients, by name.
    pub fn list(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.read().values().cloned().collect();
        peers.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        peers
    }

    /// Returns the name of the client with this key, for logs.
    pub fn name(&self, key: &PublicKey) -> String {
        let peers = self.read();
        let peer = peers.get(key);
        peer.map_or_else(|| "?".to_owned(), |peer| peer.entry.name.clone())
    }

    /// Returns the number of clients.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<PublicKey, Peer>> {
        self.listed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<PublicKey, Peer>> {
        self.listed.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Returns its key.
    pub fn key(&self) -> PublicKey {
        self.entry.public_key
    }
}

fn of_file(client: ClientEntry) -> (PublicKey, Peer) {
    let entry = Arc::new(client);
    let origin = Origin::File;
    (entry.public_key, Peer { entry, origin })
}

fn psk(client: &ClientEntry) -> Option<Zeroizing<String>> {
    let psk = client.preshared_key.as_ref();
    psk.map(PresharedKey::to_base64)
}

/// Whether two entries of one key and secret differ.
fn differ(a: &ClientEntry, b: &ClientEntry) -> bool {
    let ClientEntry {
        name,
        public_key: _,
        address,
        address6,
        preshared_key: _,
    } = a;
    *name != b.name || *address != b.address || *address6 != b.address6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    fn client(name: &str, number: u8) -> ClientEntry {
        ClientEntry {
            name: name.to_owned(),
            public_key: key(number),
            address: None,
            address6: None,
            preshared_key: None,
        }
    }

    #[test]
    fn reload_replaces_the_clients_of_the_file_and_says_what_has_changed() {
        let peers = Peers::new(vec![client("a", 1), client("b", 2), client("c", 3)]);
        peers.insert(client("d", 4), Origin::Enrolled).unwrap();
        let secret = ClientEntry {
            preshared_key: Some(PresharedKey::from_bytes([7; 32])),
            ..client("c", 3)
        };
        let read = vec![client("renamed", 1), secret, client("e", 5)];
        let change = peers.replace(read.clone()).unwrap();
        let expected = Change {
            added: vec![key(5)],
            removed: vec![key(2)],
            rekeyed: vec![key(3)],
            changed: vec![key(1)],
        };
        assert_eq!(change, expected);
        assert_eq!(peers.replace(read).unwrap(), Change::default());
        let names: Vec<String> = (peers.list().iter())
            .map(|peer| peer.entry.name.clone())
            .collect();
        assert_eq!(names, ["c", "d", "e", "renamed"]);
    }

    #[test]
    fn enrolled_client_belongs_to_the_file_once_that_lists_its_key() {
        let peers = Peers::new(Vec::new());
        peers.insert(client("a", 1), Origin::Enrolled).unwrap();
        let change = peers.replace(vec![client("a", 1)]).unwrap();
        assert_eq!(change, Change::default());
        assert_eq!(peers.find(&key(1)).unwrap().origin, Origin::File);
        assert_eq!(peers.replace(Vec::new()).unwrap().removed, [key(1)]);
        assert!(peers.is_empty());
    }

    #[test]
    fn file_with_the_name_of_an_enrolled_client_changes_nothing() {
        let peers = Peers::new(vec![client("a", 1)]);
        peers.insert(client("b", 2), Origin::Enrolled).unwrap();
        let error = peers.replace(vec![client("b", 3)]).unwrap_err();
        assert!(matches!(error, PeerError::NameTaken { name } if name == "b"));
        assert!(peers.find(&key(1)).is_some() && peers.find(&key(3)).is_none());
    }

    #[test]
    fn names_and_keys_stay_unique() {
        let peers = Peers::new(vec![client("a", 1)]);
        let taken = |error| matches!(error, Err(PeerError::NameTaken { .. }));
        assert!(taken(peers.insert(client("a", 2), Origin::Enrolled)));
        let again = peers.insert(client("b", 1), Origin::Enrolled);
        assert!(matches!(again, Err(PeerError::KeyTaken { name }) if name == "a"));
        peers.insert(client("b", 2), Origin::Enrolled).unwrap();
        assert!(taken(peers.rename(&key(2), "a")));
        peers.rename(&key(2), "c").unwrap();
        assert_eq!(peers.named("c").unwrap().key(), key(2));
        assert!(peers.named("b").is_none());
        assert_eq!(peers.rename(&key(9), "z"), Err(PeerError::Unknown));
        assert!(peers.remove(&key(2)).is_some() && peers.remove(&key(2)).is_none());
    }
}
