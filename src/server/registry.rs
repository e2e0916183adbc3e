//! The sessions there are: by number, by owner, and what they lease.
//!
//! # Theory of operation
//!
//! A session enters the registry when its first sealed frame has opened, not before: a
//! handshake alone changes nothing. It then takes the place of an older session of the same
//! key and instance, whose driver is told to end, and gets its lease. New lanes find their
//! session here by the number in their join frame.
//!
//! A new instance of a client whose fixed address is held by another one takes that one's place,
//! too, if it has no lane: it was killed, or is out of reach, and the client's owner wants the
//! address to lead to the instance that is there.
//!
//! # Limits
//!
//! One entry per confirmed session; their number is bounded by the leases.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{info, warn};

use crate::io::lane::StreamLane;
use crate::proto::PublicKey;
use crate::server::leases::{Fixed, Lease, LeaseError, Leases, Owner};
use crate::server::router::{Downlink, Router};
use crate::server::status::Look;
use crate::wire::{CloseReason, SessionId};

/// A new lane that asks a session's driver to join.
#[derive(Debug)]
pub struct Join {
    /// The join frame.
    pub frame: Vec<u8>,
    /// The lane it arrived on.
    pub lane: Box<StreamLane>,
    /// Where the driver says what became of it.
    pub answer: oneshot::Sender<Joined>,
}

/// What a session's driver is asked for.
#[derive(Debug)]
pub enum Order {
    /// To take a lane.
    Join(Join),
    /// To say how it is.
    Look(oneshot::Sender<Box<Look>>),
}

/// What became of a lane that asked to join.
#[derive(Debug)]
pub enum Joined {
    /// It is a lane of the session.
    Taken,
    /// Its proof does not hold, and it is given back.
    Refused(Box<StreamLane>),
    /// It is gone: the session has ended, or has as many lanes as it may.
    Gone,
}

impl Join {
    /// Asks the driver behind `joins` to take `lane`, whose join frame is `frame`.
    pub async fn ask(joins: &mpsc::Sender<Order>, frame: Vec<u8>, lane: StreamLane) -> Joined {
        let (answer, answered) = oneshot::channel();
        let lane = Box::new(lane);
        let join = Self {
            frame,
            lane,
            answer,
        };
        // A session that ends takes with it what waits to join; the client dials again.
        match joins.send(Order::Join(join)).await {
            Ok(()) => answered.await.unwrap_or(Joined::Gone),
            Err(_) => Joined::Gone,
        }
    }
}

/// Tells a session's driver to end, and why.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    token: CancellationToken,
    reason: Arc<OnceLock<CloseReason>>,
}

impl Ending {
    /// Tells it to end; the first reason counts.
    pub fn end(&self, reason: CloseReason) {
        // Before the driver wakes.
        let _former = self.reason.set(reason);
        self.token.cancel();
    }

    /// Returns what resolves when it is to end.
    pub fn ended(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// Returns why it is to end, once it is.
    pub fn reason(&self) -> Option<CloseReason> {
        self.reason.get().copied()
    }
}

/// A confirmed session that asks to be entered.
#[derive(Clone, Debug)]
pub struct Entrant {
    /// Its number.
    pub id: SessionId,
    /// Whose it is.
    pub owner: Owner,
    /// Where its driver takes new lanes, and is asked how it is.
    pub joins: mpsc::Sender<Order>,
    /// How its driver is told to end.
    pub ending: Ending,
    /// Its packets.
    pub downlink: Arc<Downlink>,
    /// Its client's name, for logs.
    pub client: String,
    /// Whether it has no lane now, as its driver says.
    pub laneless: Arc<AtomicBool>,
}

/// Every confirmed session of a server.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    router: Arc<Router>,
    capacity: AtomicUsize,
    /// The leases may have changed.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    sessions: HashMap<SessionId, Entry>,
    owners: HashMap<Owner, SessionId>,
    leases: Leases,
}

#[derive(Debug)]
struct Entry {
    session: Entrant,
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
            capacity: AtomicUsize::new(capacity),
            changed: Notify::new(),
        }
    }

    /// Enters a confirmed session, ends the one it replaces, and leases its addresses.
    ///
    /// # Errors
    ///
    /// The server is full, or why there is no lease for it.
    pub fn enter(&self, session: Entrant, now: SystemTime) -> Result<Lease, EnterError> {
        let mut inner = self.lock();
        self.changed.notify_one();
        if let Some(old) = inner.owners.get(&session.owner).copied()
            && let Some(entry) = self.take_out(&mut inner, old)
        {
            inner.leases.release(now, &entry.session.owner);
            entry.session.ending.end(CloseReason::Superseded);
        }
        let capacity = self.capacity.load(Ordering::Relaxed);
        if inner.sessions.len() >= capacity {
            return Err(EnterError::Full { capacity });
        }
        self.take_fixed_address(&mut inner, &session, now);
        let lease = inner.leases.acquire(now, session.owner)?;
        let addresses = addresses(&lease);
        for address in &addresses {
            self.router.insert(*address, session.downlink.clone());
        }
        inner.owners.insert(session.owner, session.id);
        inner
            .sessions
            .insert(session.id, Entry { session, addresses });
        Ok(lease)
    }

    /// Removes a session that has ended; `left` tells that its client said goodbye, so that its
    /// next instance may have the lease.
    pub fn remove(&self, id: SessionId, now: SystemTime, left: bool) {
        let mut inner = self.lock();
        if let Some(entry) = self.take_out(&mut inner, id) {
            if left {
                inner.leases.leave(now, &entry.session.owner);
            } else {
                inner.leases.release(now, &entry.session.owner);
            }
            self.changed.notify_one();
        }
    }

    /// Ends every session of the client with this key, for `reason`, and returns how many there were. Nothing reaches
    /// them any more when this returns; their leases stay for the client, should it come back.
    pub fn end_all_of(&self, key: &PublicKey, reason: CloseReason, now: SystemTime) -> usize {
        let mut inner = self.lock();
        let of_client = |entry: &&Entry| entry.session.owner.key == *key;
        let theirs: Vec<SessionId> = (inner.sessions.values().filter(of_client))
            .map(|entry| entry.session.id)
            .collect();
        for id in &theirs {
            if let Some(entry) = self.take_out(&mut inner, *id) {
                inner.leases.release(now, &entry.session.owner);
                entry.session.ending.end(reason);
            }
        }
        if !theirs.is_empty() {
            self.changed.notify_one();
        }
        theirs.len()
    }

    /// Takes the leases of a client away, which is listed no more and has no session.
    pub fn forget(&self, key: &PublicKey) {
        self.lock().leases.forget(key);
        self.changed.notify_one();
    }

    /// Has the leases of a client that has no session taken over by whatever instance of it comes next.
    pub fn abandon(&self, key: &PublicKey) {
        self.lock().leases.abandon(key);
        self.changed.notify_one();
    }

    /// Replaces the addresses that clients are given by the configuration; sessions keep those that they have.
    pub fn set_fixed(&self, fixed: impl IntoIterator<Item = Fixed>) {
        self.lock().leases.set_fixed(fixed);
        self.changed.notify_one();
    }

    /// Lets in at most `capacity` sessions from now on. Those beyond it that are there stay.
    pub fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    /// Returns how many leases there are, held or not.
    pub fn leases(&self) -> usize {
        self.lock().leases.len()
    }

    /// Returns how many sessions the client with this key has.
    pub fn sessions_of(&self, key: &PublicKey) -> usize {
        let inner = self.lock();
        (inner.owners.keys())
            .filter(|owner| owner.key == *key)
            .count()
    }

    /// Returns where session `id` takes new lanes.
    pub fn find(&self, id: SessionId) -> Option<mpsc::Sender<Order>> {
        let inner = self.lock();
        inner.sessions.get(&id).map(|e| e.session.joins.clone())
    }

    /// Returns where each session's driver takes orders.
    pub fn orders(&self) -> Vec<mpsc::Sender<Order>> {
        let inner = self.lock();
        let sessions = inner.sessions.values();
        sessions.map(|entry| entry.session.joins.clone()).collect()
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Returns whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the leases may have changed since this was last waited for.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns what is to be kept on disk of the leases, if it has changed since the last
    /// call.
    pub fn changed_leases(&self, now: SystemTime) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        inner.leases.take_changed().then(|| inner.leases.save(now))
    }

    /// Ends the session that holds the client's fixed address, if it is another instance's that has no lane.
    fn take_fixed_address(&self, inner: &mut Inner, session: &Entrant, now: SystemTime) {
        let Some((holder, address)) = inner.leases.fixed_holder(&session.owner) else {
            return;
        };
        let client = &session.client;
        let laneless = inner
            .owners
            .get(&holder)
            .copied()
            .filter(|id| {
                let entry = inner.sessions.get(id);
                entry.is_some_and(|entry| entry.session.laneless.load(Ordering::Relaxed))
            })
            .and_then(|id| self.take_out(inner, id));
        match laneless {
            Some(old) => {
                info!(%client, %address, "a new instance takes the fixed address over: the one before has no lane");
                inner.leases.leave(now, &holder);
                old.session.ending.end(CloseReason::Superseded);
            }
            None => {
                warn!(%client, %address, "the fixed address is in use by another instance: this one gets another");
            }
        }
    }

    fn take_out(&self, inner: &mut Inner, id: SessionId) -> Option<Entry> {
        let entry = inner.sessions.remove(&id)?;
        if inner.owners.get(&entry.session.owner) == Some(&id) {
            inner.owners.remove(&entry.session.owner);
        }
        for address in &entry.addresses {
            self.router.remove(*address, &entry.session.downlink);
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::io::lane::LaneStream;
    use crate::io::pool::Pool;
    use crate::server::leases::Settings;

    const NOW: SystemTime = UNIX_EPOCH;

    fn registry(capacity: usize) -> Registry {
        let network = "10.86.0.0/24".parse().unwrap();
        let leases = Leases::new(Some(network), None, [], Settings::default());
        Registry::new(Arc::new(Router::new()), leases, capacity)
    }

    fn entrant(registry: &Registry, id: u64, client: u8) -> Entrant {
        Entrant {
            id: SessionId(id),
            owner: Owner {
                key: PublicKey::from_bytes([client; 32]),
                instance: [client; 8],
            },
            joins: mpsc::channel(1).0,
            ending: Ending::default(),
            downlink: registry.router.downlink(),
            client: "laptop".into(),
            laneless: Arc::default(),
        }
    }

    fn leads_to(registry: &Registry, lease: &Lease, session: &Entrant) -> bool {
        let address = lease.v4.map(IpAddr::V4).unwrap();
        registry
            .router
            .route(address)
            .is_some_and(|found| Arc::ptr_eq(&found, &session.downlink))
    }

    #[test]
    fn session_is_found_and_routed_to_until_it_is_removed() {
        let registry = registry(4);
        let session = entrant(&registry, 1, 1);
        let lease = registry.enter(session.clone(), NOW).unwrap();
        assert!(leads_to(&registry, &lease, &session));
        assert!(registry.find(SessionId(1)).is_some());
        registry.remove(SessionId(1), NOW, false);
        assert!(!leads_to(&registry, &lease, &session));
        assert!(registry.find(SessionId(1)).is_none());
        assert!(registry.is_empty());
        assert!(registry.lock().owners.is_empty());
    }

    #[test]
    fn newer_session_of_an_owner_takes_the_place_and_the_lease_of_the_older() {
        let registry = registry(1);
        let (old, new) = (entrant(&registry, 1, 1), entrant(&registry, 2, 1));
        let lease = registry.enter(old.clone(), NOW).unwrap();
        assert_eq!(registry.enter(new.clone(), NOW).unwrap(), lease);
        assert!(old.ending.reason().is_some() && new.ending.reason().is_none());
        assert!(leads_to(&registry, &lease, &new));
        // The older driver says its end later.
        registry.remove(SessionId(1), NOW, false);
        assert!(leads_to(&registry, &lease, &new));
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn sessions_of_a_client_that_is_taken_out_end_and_nothing_leads_to_them() {
        let registry = registry(4);
        let (one, other) = (entrant(&registry, 1, 1), entrant(&registry, 2, 2));
        let lease = registry.enter(one.clone(), NOW).unwrap();
        registry.enter(other.clone(), NOW).unwrap();
        let ended = registry.end_all_of(&one.owner.key, CloseReason::Revoked, NOW);
        assert_eq!(ended, 1);
        assert_eq!(one.ending.reason(), Some(CloseReason::Revoked));
        assert!(other.ending.reason().is_none());
        assert!(!leads_to(&registry, &lease, &one));
        assert!(registry.find(SessionId(1)).is_none() && registry.len() == 1);
        // Its driver says its end later.
        registry.remove(SessionId(1), NOW, false);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn replaced_session_hears_of_it_however_many_joins_wait() {
        let registry = registry(2);
        let (joins, _full) = mpsc::channel(1);
        let old = Entrant {
            joins: joins.clone(),
            ..entrant(&registry, 1, 1)
        };
        registry.enter(old.clone(), NOW).unwrap();
        let _waiting = joins.try_reserve().unwrap();
        registry.enter(entrant(&registry, 2, 1), NOW).unwrap();
        assert!(old.ending.reason().is_some());
    }

    #[test]
    fn fixed_address_goes_to_a_new_instance_once_the_old_one_has_no_lane() {
        let network = "10.86.0.0/24".parse().unwrap();
        let fixed = Lease {
            v4: "10.86.0.9".parse().ok(),
            v6: None,
        };
        let key = PublicKey::from_bytes([1; 32]);
        let fixed_to_one = [Fixed { key, lease: fixed }];
        let leases = Leases::new(Some(network), None, fixed_to_one, Settings::default());
        let registry = Registry::new(Arc::new(Router::new()), leases, 4);
        let instance = |id, instance| Entrant {
            owner: Owner {
                key,
                instance: [instance; 8],
            },
            ..entrant(&registry, id, 1)
        };
        let (first, second, third) = (instance(1, 1), instance(2, 2), instance(3, 3));
        assert_eq!(registry.enter(first.clone(), NOW).unwrap(), fixed);
        assert_ne!(registry.enter(second.clone(), NOW).unwrap(), fixed);
        assert!(first.ending.reason().is_none(), "it has a lane");
        first.laneless.store(true, Ordering::Relaxed);
        assert_eq!(registry.enter(third.clone(), NOW).unwrap(), fixed);
        assert!(leads_to(&registry, &fixed, &third));
        assert!(first.ending.reason().is_some() && second.ending.reason().is_none());
        // The older driver says its end later.
        registry.remove(SessionId(1), NOW, false);
        assert!(leads_to(&registry, &fixed, &third));
        assert_eq!(registry.len(), 2);
    }

    #[test]
    fn session_beyond_the_capacity_is_refused_and_changes_nothing() {
        let registry = registry(1);
        let first = entrant(&registry, 1, 1);
        let lease = registry.enter(first.clone(), NOW).unwrap();
        let error = registry.enter(entrant(&registry, 2, 2), NOW).unwrap_err();
        assert!(matches!(error, EnterError::Full { capacity: 1 }));
        assert_eq!(error.close_reason(), CloseReason::PoolExhausted);
        assert!(leads_to(&registry, &lease, &first));
        // The one that was refused ends, too.
        registry.remove(SessionId(2), NOW, false);
        assert_eq!(registry.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_keeps_the_leases_hears_of_changes_and_of_nothing_else() {
        let registry = registry(1);
        let quiet = tokio::time::timeout(Duration::from_secs(9), registry.changed());
        assert!(quiet.await.is_err());
        registry.enter(entrant(&registry, 1, 1), NOW).unwrap();
        registry.changed().await;
        assert!(registry.changed_leases(NOW).is_some());
        registry.remove(SessionId(1), NOW, true);
        registry.changed().await;
    }

    #[tokio::test]
    async fn lane_that_waits_for_a_session_that_ends_has_not_joined() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lane = async || {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            StreamLane::new(LaneStream::Tcp(stream), Pool::new("test", 1, 1))
        };
        let (joins, mut driver) = mpsc::channel(1);
        let ends = async {
            // It has been handed over, and nobody looks at it any more.
            drop(driver.recv().await.unwrap());
        };
        let (joined, ()) = tokio::join!(Join::ask(&joins, Vec::new(), lane().await), ends);
        assert!(matches!(joined, Joined::Gone), "{joined:?}");
        drop(driver);
        let joined = Join::ask(&joins, Vec::new(), lane().await).await;
        assert!(matches!(joined, Joined::Gone), "{joined:?}");
    }
}
