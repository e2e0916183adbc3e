//! The sessions there are: by number, by owner, and what they lease.
//!
//! # Theory of operation
//!
//! A session enters the registry when its first sealed frame has opened, not before: a
//! handshake alone changes nothing. It then takes the place of an older session of the same
//! key and instance, whose driver is told to end, and gets its lease. New lanes find their
//! session here by the number in their join frame.
//!
//! # Limits
//!
//! One entry per confirmed session; their number is bounded by the leases.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::io::lane::StreamLane;
use crate::server::leases::{Lease, LeaseError, Leases, Owner};
use crate::server::router::{Downlink, Router};
use crate::wire::{CloseReason, SessionId};

/// What is said to a session's driver from outside.
#[derive(Debug)]
pub enum ToSession {
    /// A new lane asks to join; it comes back if its proof does not hold.
    Join {
        /// The join frame.
        frame: Vec<u8>,
        /// The lane it arrived on.
        lane: Box<StreamLane>,
        /// Where the lane goes if it may not join.
        back: oneshot::Sender<Box<StreamLane>>,
    },
    /// The session is to end.
    Close(CloseReason),
}

/// Every confirmed session of a server.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    router: Arc<Router>,
    capacity: usize,
}

#[derive(Debug)]
struct Inner {
    sessions: HashMap<SessionId, Entry>,
    owners: HashMap<Owner, SessionId>,
    leases: Leases,
}

#[derive(Debug)]
struct Entry {
    owner: Owner,
    orders: mpsc::Sender<ToSession>,
    downlink: Arc<Downlink>,
    addresses: Vec<IpAddr>,
}

impl Registry {
    /// Makes an empty registry for at most `capacity` sessions, which hands out these leases.
    pub fn new(router: Arc<Router>, leases: Leases, capacity: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                sessions: HashMap::new(),
                owners: HashMap::new(),
                leases,
            }),
            router,
            capacity,
        }
    }

    /// Enters a confirmed session, ends the one it replaces, and leases its addresses.
    ///
    /// # Errors
    ///
    /// The server is full, or why there is no lease for it.
    pub fn enter(
        &self,
        id: SessionId,
        owner: Owner,
        orders: mpsc::Sender<ToSession>,
        downlink: &Arc<Downlink>,
        now: SystemTime,
    ) -> Result<Lease, EnterError> {
        let mut inner = self.lock();
        if let Some(old) = inner.owners.get(&owner).copied() {
            if let Some(entry) = self.take_out(&mut inner, old) {
                inner.leases.release(now, &entry.owner);
                // A driver whose queue is full is busy with joins of a session that has just
                // been replaced; its lanes will starve and it ends by itself.
                let _ = entry
                    .orders
                    .try_send(ToSession::Close(CloseReason::Superseded));
            }
        }
        if inner.sessions.len() >= self.capacity {
            return Err(EnterError::Full {
                capacity: self.capacity,
            });
        }
        let lease = inner.leases.acquire(now, owner)?;
        let addresses = addresses(&lease);
        for address in &addresses {
            self.router.insert(*address, downlink.clone());
        }
        inner.owners.insert(owner, id);
        inner.sessions.insert(
            id,
            Entry {
                owner,
                orders,
                downlink: downlink.clone(),
                addresses,
            },
        );
        Ok(lease)
    }

    /// Removes a session that has ended; `left` tells that its client said goodbye, so that its
    /// next instance may have the lease.
    pub fn remove(&self, id: SessionId, now: SystemTime, left: bool) {
        let mut inner = self.lock();
        if let Some(entry) = self.take_out(&mut inner, id) {
            if left {
                inner.leases.leave(now, &entry.owner);
            } else {
                inner.leases.release(now, &entry.owner);
            }
        }
    }

    /// Returns where to send orders for session `id`.
    pub fn find(&self, id: SessionId) -> Option<mpsc::Sender<ToSession>> {
        self.lock().sessions.get(&id).map(|e| e.orders.clone())
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Returns whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns what is to be kept on disk of the leases, if it has changed since the last
    /// call.
    pub fn changed_leases(&self, now: SystemTime) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        inner.leases.take_changed().then(|| inner.leases.save(now))
    }

    fn take_out(&self, inner: &mut Inner, id: SessionId) -> Option<Entry> {
        let entry = inner.sessions.remove(&id)?;
        if inner.owners.get(&entry.owner) == Some(&id) {
            inner.owners.remove(&entry.owner);
        }
        for address in &entry.addresses {
            self.router.remove(*address, &entry.downlink);
        }
        Some(entry)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a confirmed session is not served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnterError {
    /// There are as many sessions as the configuration lets in.
    #[error("all {capacity} sessions of `max_clients` are in use")]
    Full {
        /// How many that is.
        capacity: usize,
    },
    /// There is no address for it.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

impl EnterError {
    /// Returns what the client is told.
    pub fn close_reason(&self) -> CloseReason {
        match self {
            EnterError::Full { .. } | EnterError::Lease(LeaseError::Exhausted { .. }) => {
                CloseReason::PoolExhausted
            }
            EnterError::Lease(LeaseError::TooManyInstances { .. }) => CloseReason::TooManyInstances,
        }
    }
}

/// The addresses of a lease, of either family.
pub fn addresses(lease: &Lease) -> Vec<IpAddr> {
    let v4 = lease.v4.map(IpAddr::V4);
    v4.into_iter().chain(lease.v6.map(IpAddr::V6)).collect()
}
