//! Who holds which addresses, and until when.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::pool::{Pool, fits, number, to_v4};
use super::saved::{self, RestoreError, SavedLease};
use crate::proto::PublicKey;

/// All leases of a server. Sans-IO: time is an argument, and [`Leases::save`] and [`Leases::restore`] speak bytes.
#[derive(Debug)]
pub struct Leases {
    pub(super) pool4: Option<Pool>,
    pool6: Option<Pool>,
    fixed: HashMap<PublicKey, Lease>,
    settings: Settings,
    pub(super) entries: HashMap<Owner, Entry>,
    pub(super) instances: HashMap<PublicKey, BTreeSet<Instance>>,
    /// Leases that nobody holds, the longest idle first.
    idle: BTreeSet<(SystemTime, Owner)>,
    changed: bool,
}

/// Tells the instances of one client apart: 8 random bytes of its own choice.
pub type Instance = [u8; 8];

/// Whom a lease belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The client's identity.
    pub key: PublicKey,
    /// Which of the client's instances.
    pub instance: Instance,
}

/// The inner addresses of one owner; at least one is there when it was leased.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

/// The addresses that the configuration gives to one client.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// The client's identity.
    pub key: PublicKey,
    /// Its addresses; a family that is `None` is leased from the pool.
    pub lease: Lease,
}

/// How leases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long an idle lease is kept for its owner.
    pub expiry: Duration,
    /// How long after a restart a lease that was held stays untouched, for its session to come back.
    pub grace: Duration,
    /// Most instances of one client.
    pub instances: usize,
}

/// What [`Leases::restore`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Leases that are back.
    pub kept: usize,
    /// Leases that do not fit the configuration any more: outside the pools, of unknown clients, or expired.
    pub dropped: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) lease: Lease,
    hold: Hold,
}

/// Who uses a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// So many sessions of its owner; two while one supersedes the other.
    Held(u32),
    /// Nobody, since its session was alive when the state was saved; untouchable until then.
    Away { until: SystemTime },
    /// Nobody, since then.
    Idle { since: SystemTime },
    /// Nobody, since its instance ended then, never to come back.
    Left { since: SystemTime },
}

impl Leases {
    /// Makes the pools, with nothing leased.
    pub fn new(
        network: Option<Ipv4Net>,
        network6: Option<Ipv6Net>,
        fixed: impl IntoIterator<Item = Fixed>,
        settings: Settings,
    ) -> Self {
        let mut leases = Self {
            pool4: network.map(|net| Pool::new(net.into(), std::iter::empty())),
            pool6: network6.map(|net| Pool::new(net.into(), std::iter::empty())),
            fixed: HashMap::new(),
            settings,
            entries: HashMap::new(),
            instances: HashMap::new(),
            idle: BTreeSet::new(),
            changed: false,
        };
        leases.set_fixed(fixed);
        leases
    }

    /// Replaces the addresses that the configuration gives to clients. Leases that are held stay as they are.
    pub fn set_fixed(&mut self, fixed: impl IntoIterator<Item = Fixed>) {
        let fixed = fixed.into_iter().map(|fixed| (fixed.key, fixed.lease));
        self.fixed = fixed.collect();
        let fixed = self.fixed.values();
        if let Some(pool) = &mut self.pool4 {
            let reserved = fixed.clone().filter_map(|lease| lease.v4);
            pool.reserve(reserved.map(|ip| number(ip.into())));
        }
        if let Some(pool) = &mut self.pool6 {
            let reserved = fixed.filter_map(|lease| lease.v6);
            pool.reserve(reserved.map(|ip| number(ip.into())));
        }
    }

    /// Takes all leases of a client away, which is not to come back.
    pub fn forget(&mut self, key: &PublicKey) {
        for owner in self.owners(key) {
            self.remove(&owner);
        }
    }

    /// Counts every instance of a client as gone that holds nothing: the next one takes its lease over.
    pub fn abandon(&mut self, key: &PublicKey) {
        for owner in self.owners(key) {
            let entry = self.entries.get_mut(&owner);
            if let Some((entry, since)) = entry.and_then(|entry| match entry.hold {
                Hold::Away { until: since } | Hold::Idle { since } => Some((entry, since)),
                Hold::Held(_) | Hold::Left { .. } => None,
            }) {
                entry.hold = Hold::Left { since };
                self.changed = true;
            }
        }
    }

    /// Gives `owner` its addresses: those it had, else its client's fixed ones, else free ones. Every success is to
    /// be answered by one [`Self::release`].
    ///
    /// # Errors
    /// A pool is exhausted, or the client has too many instances; no lease that is held has changed then.
    pub fn acquire(&mut self, now: SystemTime, owner: Owner) -> Result<Lease, LeaseError> {
        self.expire(now);
        if let Some(lease) = self.hold(&owner) {
            return Ok(lease);
        }
        if let Some(lease) = self.take_over(now, owner) {
            return Ok(lease);
        }
        self.make_room_for_instance(now, &owner.key)?;
        let lease = self.choose(now, &owner)?;
        self.insert(
            owner,
            Entry {
                lease,
                hold: Hold::Held(1),
            },
        );
        Ok(lease)
    }

    /// Ends one use of a lease; after the last one it is kept for its owner. An unknown owner is ignored.
    pub fn release(&mut self, now: SystemTime, owner: &Owner) {
        self.end_use(owner, now, Hold::Idle { since: now });
    }

    /// Like [`Self::release`], for a client that closed its session itself: after the last use its next instance
    /// takes the lease over.
    pub fn leave(&mut self, now: SystemTime, owner: &Owner) {
        self.end_use(owner, now, Hold::Left { since: now });
    }

    /// Ends leases that have been idle for too long, and the grace of those that were held before a restart.
    pub fn expire(&mut self, now: SystemTime) {
        while let Some((since, owner)) = self.idle.first().copied() {
            if now.duration_since(since).unwrap_or_default() < self.settings.expiry {
                break;
            }
            self.remove(&owner);
        }
    }

    /// Whether something has changed since this was asked last, so that the state is to be saved.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The lease of an owner, held or not.
    pub fn lease(&self, owner: &Owner) -> Option<Lease> {
        self.entries.get(owner).map(|entry| entry.lease)
    }

    /// The other instance of the same client that holds one of the client's fixed addresses, and which; none where
    /// `owner` has a lease already, which is its own.
    pub fn fixed_holder(&self, owner: &Owner) -> Option<(Owner, IpAddr)> {
        let fixed = self.fixed.get(&owner.key)?;
        if self.entries.contains_key(owner) {
            return None;
        }
        let holder = |pool: Option<&Pool>, address: Option<IpAddr>| {
            let address = address?;
            let holder = *pool?.used.get(&number(address))?;
            match self.entries.get(&holder)?.hold {
                Hold::Held(_) => Some((holder, address)),
                Hold::Away { .. } | Hold::Idle { .. } | Hold::Left { .. } => None,
            }
        };
        holder(self.pool4.as_ref(), fixed.v4.map(IpAddr::from))
            .or_else(|| holder(self.pool6.as_ref(), fixed.v6.map(IpAddr::from)))
    }

    /// How many leases there are, held or not.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many leases are held.
    pub fn held(&self) -> usize {
        self.entries.len() - self.idle.len()
    }

    /// The server's own IPv4 address in the pool.
    pub fn gateway4(&self) -> Option<Ipv4Addr> {
        self.pool4.as_ref().map(|pool| to_v4(pool.gateway))
    }

    /// The server's own IPv6 address in the pool.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.pool6
            .as_ref()
            .map(|pool| Ipv6Addr::from_bits(pool.gateway))
    }

    /// Writes all leases as JSON.
    pub fn save(&self, now: SystemTime) -> Vec<u8> {
        let leases = self.entries.iter().map(|(owner, entry)| {
            let saved = |last_used| SavedLease::new(owner, &entry.lease, last_used);
            match entry.hold {
                Hold::Held(_) => SavedLease {
                    held: true,
                    ..saved(now)
                },
                Hold::Away { until } if now < until => SavedLease {
                    held: true,
                    ..saved(now)
                },
                Hold::Away { until: since } | Hold::Idle { since } => saved(since),
                Hold::Left { since } => SavedLease {
                    left: true,
                    ..saved(since)
                },
            }
        });
        saved::write(leases.collect())
    }

    /// Takes leases back from what [`Self::save`] wrote; `known` tells whether a client may still connect.
    ///
    /// # Errors
    /// The bytes are not a saved state; nothing is restored then.
    pub fn restore(
        &mut self,
        now: SystemTime,
        bytes: &[u8],
        known: impl Fn(&PublicKey) -> bool,
    ) -> Result<Restored, RestoreError> {
        let mut restored = Restored::default();
        for lease in saved::read(bytes)? {
            if self.restore_one(now, &lease, &known).is_some() {
                restored.kept += 1;
            } else {
                restored.dropped += 1;
                self.changed = true;
            }
        }
        Ok(restored)
    }

    fn restore_one(
        &mut self,
        now: SystemTime,
        saved: &SavedLease,
        known: &impl Fn(&PublicKey) -> bool,
    ) -> Option<()> {
        let (owner, lease) = (saved.owner()?, saved.lease());
        let fixed = self.fixed.get(&owner.key).copied().unwrap_or_default();
        // A family that was switched on or off since makes the lease incomplete, and a new one is made.
        let fits4 = fits(
            self.pool4.as_ref(),
            lease.v4.map(IpAddr::from),
            fixed.v4.map(IpAddr::from),
        );
        let fits6 = fits(
            self.pool6.as_ref(),
            lease.v6.map(IpAddr::from),
            fixed.v6.map(IpAddr::from),
        );
        let instances = self.instances.get(&owner.key).map_or(0, BTreeSet::len);
        let last_used = saved.last_used()?.min(now);
        let idle_for = now.duration_since(last_used).unwrap_or_default();
        let alive = saved.held || idle_for < self.settings.expiry;
        if !(known(&owner.key) && fits4 && fits6 && alive && instances < self.settings.instances)
            || self.entries.contains_key(&owner)
        {
            return None;
        }
        let hold = if saved.held {
            Hold::Away {
                until: now.checked_add(self.settings.grace)?,
            }
        } else if saved.left {
            Hold::Left { since: last_used }
        } else {
            Hold::Idle { since: last_used }
        };
        self.insert(owner, Entry { lease, hold });
        Some(())
    }

    fn owners(&self, key: &PublicKey) -> Vec<Owner> {
        let instances = self.instances.get(key).into_iter().flatten();
        let owner = |instance: &Instance| Owner {
            key: *key,
            instance: *instance,
        };
        instances.map(owner).collect()
    }

    /// Takes up a lease that `owner` has already.
    fn hold(&mut self, owner: &Owner) -> Option<Lease> {
        let entry = self.entries.get_mut(owner)?;
        match entry.hold {
            Hold::Held(holders) => entry.hold = Hold::Held(holders.saturating_add(1)),
            Hold::Away { until } => {
                self.idle.remove(&(until, *owner));
                entry.hold = Hold::Held(1);
            }
            Hold::Idle { since } | Hold::Left { since } => {
                self.idle.remove(&(since, *owner));
                entry.hold = Hold::Held(1);
                self.changed = true;
            }
        }
        Some(entry.lease)
    }

    /// Gives a new instance the lease of one that has left, preferably the one with the client's fixed addresses.
    fn take_over(&mut self, now: SystemTime, owner: Owner) -> Option<Lease> {
        let fixed = self.fixed.get(&owner.key).copied().unwrap_or_default();
        let holds_fixed = |lease: &Lease| {
            (fixed.v4.is_none() || fixed.v4 == lease.v4)
                && (fixed.v6.is_none() || fixed.v6 == lease.v6)
        };
        let left = self
            .instances
            .get(&owner.key)?
            .iter()
            .filter_map(|instance| {
                let former = Owner {
                    key: owner.key,
                    instance: *instance,
                };
                let entry = self.entries.get(&former)?;
                match entry.hold {
                    Hold::Left { since } => Some((holds_fixed(&entry.lease), since, former)),
                    Hold::Held(_) | Hold::Away { .. } | Hold::Idle { .. } => None,
                }
            });
        let (has_fixed, _, former) = left.max()?;
        // Where the fixed addresses can be had, a new lease has them.
        if !has_fixed && self.can_have_fixed(now, &fixed) {
            return None;
        }
        let lease = self.lease(&former)?;
        self.remove(&former);
        self.insert(
            owner,
            Entry {
                lease,
                hold: Hold::Held(1),
            },
        );
        Some(lease)
    }

    /// Whether nobody holds one of these addresses.
    fn can_have_fixed(&self, now: SystemTime, fixed: &Lease) -> bool {
        let free = |pool: Option<&Pool>, address: Option<IpAddr>| {
            let (Some(pool), Some(address)) = (pool, address) else {
                return false;
            };
            match pool.used.get(&number(address)) {
                Some(holder) => self.free_since(now, holder).is_some(),
                None => true,
            }
        };
        free(self.pool4.as_ref(), fixed.v4.map(IpAddr::from))
            || free(self.pool6.as_ref(), fixed.v6.map(IpAddr::from))
    }

    /// Ends one use; after the last one the lease is `then`.
    fn end_use(&mut self, owner: &Owner, now: SystemTime, then: Hold) {
        let Some(entry) = self.entries.get_mut(owner) else {
            return;
        };
        match entry.hold {
            Hold::Held(holders) if holders > 1 => entry.hold = Hold::Held(holders - 1),
            Hold::Held(_) => {
                entry.hold = then;
                self.idle.insert((now, *owner));
                self.changed = true;
            }
            Hold::Away { .. } | Hold::Idle { .. } | Hold::Left { .. } => {}
        }
    }

    /// Sees to it that a client may have one more instance: its longest idle one makes room.
    fn make_room_for_instance(
        &mut self,
        now: SystemTime,
        key: &PublicKey,
    ) -> Result<(), LeaseError> {
        let Some(instances) = self.instances.get(key) else {
            return Ok(());
        };
        if instances.len() < self.settings.instances {
            return Ok(());
        }
        let oldest = instances
            .iter()
            .map(|instance| Owner {
                key: *key,
                instance: *instance,
            })
            .filter_map(|owner| Some((self.free_since(now, &owner)?, owner)))
            .min();
        match oldest {
            Some((_, owner)) => {
                self.remove(&owner);
                Ok(())
            }
            None => Err(LeaseError::TooManyInstances {
                limit: self.settings.instances,
            }),
        }
    }

    /// Finds an address in each pool.
    fn choose(&mut self, now: SystemTime, owner: &Owner) -> Result<Lease, LeaseError> {
        let fixed = self.fixed.get(&owner.key).copied().unwrap_or_default();
        let v4 = self.choose_in(now, owner, Family::V4, fixed.v4.map(IpAddr::from))?;
        let v6 = self.choose_in(now, owner, Family::V6, fixed.v6.map(IpAddr::from))?;
        Ok(Lease {
            v4: v4.map(to_v4),
            v6: v6.map(Ipv6Addr::from_bits),
        })
    }

    fn choose_in(
        &mut self,
        now: SystemTime,
        owner: &Owner,
        family: Family,
        fixed: Option<IpAddr>,
    ) -> Result<Option<u128>, LeaseError> {
        let Some(pool) = self.pool(family) else {
            return Ok(None);
        };
        if let Some(fixed) = fixed.map(number).filter(|fixed| pool.contains(*fixed)) {
            match pool.used.get(&fixed).copied() {
                None => return Ok(Some(fixed)),
                // An earlier instance that is gone gives way, and starts anew should it come back.
                Some(holder) if holder != *owner && self.free_since(now, &holder).is_some() => {
                    self.remove(&holder);
                    return Ok(Some(fixed));
                }
                Some(_) => {}
            }
        }
        loop {
            let Some(pool) = self.pool_mut(family) else {
                return Ok(None);
            };
            if let Some(free) = pool.lowest_free() {
                return Ok(Some(free));
            }
            let error = LeaseError::Exhausted {
                network: pool.network,
                usable: pool.usable(),
                held: pool.used.len(),
            };
            // Leases idle on an address that this pool cannot lease again (a fixed one) would not help.
            let victim = self
                .idle
                .iter()
                .map(|(_, owner)| *owner)
                .find(|owner| self.frees_dynamic(now, owner, family));
            match victim {
                Some(owner) => self.remove(&owner),
                None => return Err(error),
            }
        }
    }

    fn frees_dynamic(&self, now: SystemTime, owner: &Owner, family: Family) -> bool {
        let (Some(pool), Some(entry)) = (self.pool(family), self.entries.get(owner)) else {
            return false;
        };
        let address = match family {
            Family::V4 => entry.lease.v4.map(|ip| number(ip.into())),
            Family::V6 => entry.lease.v6.map(|ip| number(ip.into())),
        };
        address.is_some_and(|address| !pool.reserved.contains(&address))
            && self.free_since(now, owner).is_some()
    }

    /// Since when a lease may be taken away; `None` while it may not.
    fn free_since(&self, now: SystemTime, owner: &Owner) -> Option<SystemTime> {
        match self.entries.get(owner)?.hold {
            Hold::Held(_) => None,
            Hold::Away { until } if now < until => None,
            Hold::Away { until: since } | Hold::Idle { since } | Hold::Left { since } => {
                Some(since)
            }
        }
    }

    fn insert(&mut self, owner: Owner, entry: Entry) {
        if let (Some(pool), Some(ip)) = (&mut self.pool4, entry.lease.v4) {
            pool.take(number(ip.into()), owner);
        }
        if let (Some(pool), Some(ip)) = (&mut self.pool6, entry.lease.v6) {
            pool.take(number(ip.into()), owner);
        }
        match entry.hold {
            Hold::Held(_) => {}
            Hold::Away { until: since } | Hold::Idle { since } | Hold::Left { since } => {
                self.idle.insert((since, owner));
            }
        }
        self.instances
            .entry(owner.key)
            .or_default()
            .insert(owner.instance);
        self.entries.insert(owner, entry);
        self.changed = true;
    }

    fn remove(&mut self, owner: &Owner) {
        let Some(entry) = self.entries.remove(owner) else {
            return;
        };
        if let (Some(pool), Some(ip)) = (&mut self.pool4, entry.lease.v4) {
            pool.give_back(number(ip.into()));
        }
        if let (Some(pool), Some(ip)) = (&mut self.pool6, entry.lease.v6) {
            pool.give_back(number(ip.into()));
        }
        match entry.hold {
            Hold::Held(_) => {}
            Hold::Away { until: since } | Hold::Idle { since } | Hold::Left { since } => {
                self.idle.remove(&(since, *owner));
            }
        }
        if let Some(instances) = self.instances.get_mut(&owner.key) {
            instances.remove(&owner.instance);
            if instances.is_empty() {
                self.instances.remove(&owner.key);
            }
        }
        self.changed = true;
    }

    fn pool(&self, family: Family) -> Option<&Pool> {
        match family {
            Family::V4 => self.pool4.as_ref(),
            Family::V6 => self.pool6.as_ref(),
        }
    }

    fn pool_mut(&mut self, family: Family) -> Option<&mut Pool> {
        match family {
            Family::V4 => self.pool4.as_mut(),
            Family::V6 => self.pool6.as_mut(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            expiry: EXPIRY,
            grace: GRACE,
            instances: INSTANCES,
        }
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

/// Why an owner gets no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// Every address of a pool is held or reserved.
    #[error(
        "no address is left in {network}: {held} of {usable} are held or kept for fixed clients; a larger network would help"
    )]
    Exhausted {
        /// The pool.
        network: IpNet,
        /// Addresses that it has for clients.
        usable: u128,
        /// Addresses of it that are leased.
        held: usize,
    },
    /// The client's other instances hold as many leases as one client may.
    #[error("the client has {limit} instances already, and may not have more")]
    TooManyInstances {
        /// How many one client may have.
        limit: usize,
    },
}

/// A laptop that comes to work every day keeps its address.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Clients are back within seconds of a server's restart; those on a bad link get a minute.
const GRACE: Duration = Duration::from_secs(60);
/// One user's devices and jobs; a leaked key cannot take a pool.
pub(super) const INSTANCES: usize = 8;
