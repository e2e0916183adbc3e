//! Inner addresses and who holds them: leases from an IPv4 and an IPv6 pool.
//!
//! A lease belongs to an [`Owner`], a client's key and one of its instances, and stays its own across reconnects
//! and restarts until it has not been used for [`Settings::expiry`].
//!
//! ```text
//!            acquire                 release (last holder)           expiry, or its address is
//!  (none) ───────────▶ held by n ───────────────────────▶ idle ───▶ needed and nothing is free
//!                         ▲  ▲            acquire          │
//!                         │  └─────────────────────────────┘
//!                         └── away: held when the state was saved; kept for its owner for a minute
//! ```
//!
//! The pool's first host address is the gateway, the server's own. A dynamic lease takes the lowest free address; a
//! client's fixed address is never leased to others, and goes to the first of its instances that asks. When nothing
//! is free, the lease that has been idle longest is taken away. Memory is in proportion to leases, not to networks.
//!
//! The clock is the wall clock, since leases outlive the process; one that jumps back only prolongs leases.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::proto::PublicKey;

/// All leases of a server. Sans-IO: time is an argument, and [`Leases::save`] and [`Leases::restore`] speak bytes.
#[derive(Debug)]
pub struct Leases {
    pool4: Option<Pool>,
    pool6: Option<Pool>,
    fixed: HashMap<PublicKey, Lease>,
    settings: Settings,
    entries: HashMap<Owner, Entry>,
    instances: HashMap<PublicKey, BTreeSet<Instance>>,
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
struct Entry {
    lease: Lease,
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
}

impl Leases {
    /// Makes the pools, with nothing leased.
    pub fn new(
        network: Option<Ipv4Net>,
        network6: Option<Ipv6Net>,
        fixed: impl IntoIterator<Item = Fixed>,
        settings: Settings,
    ) -> Self {
        let fixed: HashMap<PublicKey, Lease> = fixed
            .into_iter()
            .map(|fixed| (fixed.key, fixed.lease))
            .collect();
        let reserved4 = fixed
            .values()
            .filter_map(|lease| lease.v4)
            .map(|ip| number(ip.into()));
        let reserved6 = fixed
            .values()
            .filter_map(|lease| lease.v6)
            .map(|ip| number(ip.into()));
        Self {
            pool4: network.map(|net| Pool::new(net.into(), reserved4)),
            pool6: network6.map(|net| Pool::new(net.into(), reserved6)),
            fixed,
            settings,
            entries: HashMap::new(),
            instances: HashMap::new(),
            idle: BTreeSet::new(),
            changed: false,
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
        let Some(entry) = self.entries.get_mut(owner) else {
            return;
        };
        match entry.hold {
            Hold::Held(holders) if holders > 1 => entry.hold = Hold::Held(holders - 1),
            Hold::Held(_) => {
                entry.hold = Hold::Idle { since: now };
                self.idle.insert((now, *owner));
                self.changed = true;
            }
            Hold::Away { .. } | Hold::Idle { .. } => {}
        }
    }

    /// Ends every lease of a client that may not connect any more.
    pub fn forget_client(&mut self, key: &PublicKey) {
        for instance in self.instances.get(key).cloned().unwrap_or_default() {
            self.remove(&Owner {
                key: *key,
                instance,
            });
        }
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
        let mut leases: Vec<SavedLease> = self
            .entries
            .iter()
            .map(|(owner, entry)| {
                let (held, last_used) = match entry.hold {
                    Hold::Held(_) => (true, now),
                    Hold::Away { until } if now < until => (true, now),
                    Hold::Away { until: since } | Hold::Idle { since } => (false, since),
                };
                SavedLease {
                    key: owner.key.to_string(),
                    instance: hex(&owner.instance),
                    address: entry.lease.v4,
                    address6: entry.lease.v6,
                    last_used: seconds(last_used),
                    held,
                }
            })
            .collect();
        leases.sort_by(|a, b| (&a.key, &a.instance).cmp(&(&b.key, &b.instance)));
        let mut bytes = serde_json::to_vec_pretty(&Saved {
            version: VERSION,
            leases,
        })
        .unwrap_or_default();
        bytes.push(b'\n');
        bytes
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
        let saved: Saved =
            serde_json::from_slice(bytes).map_err(|error| RestoreError::Malformed {
                line: error.line(),
                column: error.column(),
            })?;
        if saved.version != VERSION {
            return Err(RestoreError::Version {
                found: saved.version,
            });
        }
        let mut restored = Restored::default();
        for lease in saved.leases {
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
        let owner = Owner {
            key: saved.key.parse().ok()?,
            instance: unhex(&saved.instance)?,
        };
        let lease = Lease {
            v4: saved.address,
            v6: saved.address6,
        };
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
        let last_used = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(saved.last_used))?
            .min(now);
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
        } else {
            Hold::Idle { since: last_used }
        };
        self.insert(owner, Entry { lease, hold });
        Some(())
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
            Hold::Idle { since } => {
                self.idle.remove(&(since, *owner));
                entry.hold = Hold::Held(1);
                self.changed = true;
            }
        }
        Some(entry.lease)
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
            Hold::Away { until: since } | Hold::Idle { since } => Some(since),
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
            Hold::Away { until: since } | Hold::Idle { since } => {
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
            Hold::Away { until: since } | Hold::Idle { since } => {
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

/// The addresses of one family, as numbers.
#[derive(Debug)]
struct Pool {
    network: IpNet,
    gateway: u128,
    first: u128,
    last: u128,
    /// Fixed addresses, which are not leased otherwise.
    reserved: BTreeSet<u128>,
    used: BTreeMap<u128, Owner>,
    /// No address below is free.
    hint: u128,
}

impl Pool {
    fn new(network: IpNet, reserved: impl Iterator<Item = u128>) -> Self {
        let gateway = number(network.network()).saturating_add(1);
        let last = match network {
            IpNet::V4(net) => number(net.broadcast().into()).saturating_sub(1),
            IpNet::V6(net) => number(net.broadcast().into()),
        };
        let first = gateway.saturating_add(1);
        Self {
            network,
            gateway,
            first,
            last,
            reserved: reserved.collect(),
            used: BTreeMap::new(),
            hint: first,
        }
    }

    /// Whether the address can be a client's.
    fn contains(&self, address: u128) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// How many clients there is room for.
    fn usable(&self) -> u128 {
        if self.last < self.first {
            0
        } else {
            (self.last - self.first).saturating_add(1)
        }
    }

    /// Walks up from the hint; amortised constant, since the hint goes down only to what is given back.
    fn lowest_free(&mut self) -> Option<u128> {
        while self.contains(self.hint)
            && (self.used.contains_key(&self.hint) || self.reserved.contains(&self.hint))
        {
            self.hint = self.hint.checked_add(1)?;
        }
        self.contains(self.hint).then_some(self.hint)
    }

    fn take(&mut self, address: u128, owner: Owner) {
        self.used.insert(address, owner);
    }

    fn give_back(&mut self, address: u128) {
        self.used.remove(&address);
        self.hint = self.hint.min(address.max(self.first));
    }
}

/// Whether a saved address is still right: in its pool, free, and nobody else's fixed one.
fn fits(pool: Option<&Pool>, address: Option<IpAddr>, fixed: Option<IpAddr>) -> bool {
    match (pool, address) {
        (None, None) => true,
        (Some(pool), Some(address)) => {
            let bits = number(address);
            pool.network.contains(&address)
                && pool.contains(bits)
                && !pool.used.contains_key(&bits)
                && (fixed == Some(address) || !pool.reserved.contains(&bits))
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The other way round, for a number of an IPv4 pool.
fn to_v4(number: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits((number & 0xffff_ffff) as u32)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn hex(instance: &Instance) -> String {
    format!("{:016x}", u64::from_be_bytes(*instance))
}

fn unhex(text: &str) -> Option<Instance> {
    let plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain {
        u64::from_str_radix(text, 16).ok().map(u64::to_be_bytes)
    } else {
        None
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    leases: Vec<SavedLease>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedLease {
    key: String,
    instance: String,
    address: Option<Ipv4Addr>,
    address6: Option<Ipv6Addr>,
    last_used: u64,
    held: bool,
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

/// Why saved leases cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes are not JSON of the right shape.
    #[error("not a list of leases (line {line}, column {column})")]
    Malformed {
        /// The line of the mistake, counted from 1.
        line: usize,
        /// The column of the mistake, counted from 1.
        column: usize,
    },
    /// Another version of the program wrote them.
    #[error("leases of version {found}, where this program knows version {VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
}

/// The version of the saved state.
const VERSION: u32 = 1;
/// A laptop that comes to work every day keeps its address.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Clients are back within seconds of a server's restart; those on a bad link get a minute.
const GRACE: Duration = Duration::from_secs(60);
/// One user's devices and jobs; a leaked key cannot take a pool.
const INSTANCES: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        START + Duration::from_secs(1_000_000 + seconds)
    }

    fn owner(client: u8, instance: u8) -> Owner {
        Owner {
            key: PublicKey::from_bytes([client; 32]),
            instance: [instance; 8],
        }
    }

    fn v4(text: &str) -> Option<Ipv4Addr> {
        Some(text.parse().expect("an address"))
    }

    fn leases(network: &str, fixed: &[(u8, &str)]) -> Leases {
        let fixed = fixed.iter().map(|(client, ip)| Fixed {
            key: PublicKey::from_bytes([*client; 32]),
            lease: Lease {
                v4: v4(ip),
                v6: None,
            },
        });
        Leases::new(
            Some(network.parse().expect("a network")),
            None,
            fixed,
            Settings::default(),
        )
    }

    fn both() -> Leases {
        Leases::new(
            Some("10.86.0.0/24".parse().expect("a network")),
            Some("fd86::/64".parse().expect("a network")),
            [],
            Settings::default(),
        )
    }

    #[test]
    fn first_address_is_the_gateway_and_clients_follow() {
        let mut leases = both();
        assert_eq!(
            (
                leases.gateway4(),
                leases.gateway6().map(|ip| ip.to_string())
            ),
            (v4("10.86.0.1"), Some("fd86::1".to_owned()))
        );
        let first = leases.acquire(at(0), owner(1, 1)).expect("a lease");
        let second = leases.acquire(at(0), owner(2, 1)).expect("a lease");
        assert_eq!((first.v4, second.v4), (v4("10.86.0.2"), v4("10.86.0.3")));
        assert_eq!(
            (first.v6, second.v6),
            ("fd86::2".parse().ok(), "fd86::3".parse().ok())
        );
    }

    #[test]
    fn an_owner_keeps_its_address_until_the_lease_expires() {
        let mut leases = leases("10.86.0.0/24", &[]);
        let first = leases.acquire(at(0), owner(1, 1)).expect("a lease");
        leases.release(at(10), &owner(1, 1));
        assert_eq!(leases.acquire(at(10 + 86_399), owner(1, 1)), Ok(first));
        leases.release(at(100_000), &owner(1, 1));
        leases.acquire(at(100_001), owner(2, 1)).expect("a lease");
        leases.expire(at(100_000 + 86_400));
        assert_eq!(leases.lease(&owner(1, 1)), None);
        assert_eq!(
            leases
                .acquire(at(200_000), owner(3, 1))
                .map(|lease| lease.v4),
            Ok(first.v4)
        );
    }

    #[test]
    fn a_lease_is_held_until_its_last_session_ends() {
        let mut leases = leases("10.86.0.0/30", &[]);
        leases.acquire(at(0), owner(1, 1)).expect("a lease");
        // The session that supersedes the first comes before the first one ends.
        leases.acquire(at(1), owner(1, 1)).expect("the same");
        leases.release(at(2), &owner(1, 1));
        assert_eq!(leases.held(), 1);
        assert!(leases.acquire(at(3), owner(2, 1)).is_err());
        leases.release(at(4), &owner(1, 1));
        leases.release(at(5), &owner(1, 1));
        assert_eq!(leases.held(), 0);
        assert!(leases.acquire(at(6), owner(2, 1)).is_ok());
    }

    #[test]
    fn exhaustion_is_told_with_numbers() {
        let mut leases = leases("10.86.0.0/29", &[]);
        for client in 1..=5 {
            leases.acquire(at(0), owner(client, 1)).expect("a lease");
        }
        let error = leases.acquire(at(1), owner(6, 1)).expect_err("exhausted");
        assert_eq!(
            error,
            LeaseError::Exhausted {
                network: "10.86.0.0/29".parse().expect("a network"),
                usable: 5,
                held: 5
            }
        );
        assert!(
            error
                .to_string()
                .starts_with("no address is left in 10.86.0.0/29: 5 of 5 are held"),
            "{error}"
        );
    }

    #[test]
    fn the_longest_idle_lease_makes_room() {
        let mut leases = leases("10.86.0.0/29", &[]);
        for client in 1..=5 {
            leases.acquire(at(0), owner(client, 1)).expect("a lease");
        }
        leases.release(at(20), &owner(2, 1));
        leases.release(at(10), &owner(4, 1));
        assert_eq!(
            leases.acquire(at(30), owner(6, 1)).map(|lease| lease.v4),
            Ok(v4("10.86.0.5"))
        );
        assert_eq!(leases.lease(&owner(4, 1)), None);
        assert!(leases.lease(&owner(2, 1)).is_some());
    }

    #[test]
    fn a_fixed_address_goes_to_the_first_instance_and_to_nobody_else() {
        let mut leases = leases("10.86.0.0/29", &[(1, "10.86.0.2")]);
        assert_eq!(
            leases.acquire(at(0), owner(2, 1)).map(|lease| lease.v4),
            Ok(v4("10.86.0.3"))
        );
        assert_eq!(
            leases.acquire(at(0), owner(1, 1)).map(|lease| lease.v4),
            Ok(v4("10.86.0.2"))
        );
        assert_eq!(
            leases.acquire(at(0), owner(1, 2)).map(|lease| lease.v4),
            Ok(v4("10.86.0.4"))
        );
        // The first one is gone, and so the next new one is the first.
        leases.release(at(5), &owner(1, 1));
        assert_eq!(
            leases.acquire(at(6), owner(1, 3)).map(|lease| lease.v4),
            Ok(v4("10.86.0.2"))
        );
        assert_eq!(
            leases.acquire(at(7), owner(1, 1)).map(|lease| lease.v4),
            Ok(v4("10.86.0.5"))
        );
        // Even an exhausted pool keeps it.
        leases.release(at(8), &owner(1, 3));
        leases.acquire(at(9), owner(4, 1)).expect("the last one");
        assert!(leases.acquire(at(9), owner(5, 1)).is_err());
    }

    #[test]
    fn a_ninth_instance_takes_the_place_of_an_idle_one_or_is_refused() {
        let mut leases = leases("10.86.0.0/24", &[]);
        for instance in 1..=8 {
            leases.acquire(at(0), owner(1, instance)).expect("a lease");
        }
        assert_eq!(
            leases.acquire(at(1), owner(1, 9)),
            Err(LeaseError::TooManyInstances { limit: 8 })
        );
        assert!(leases.acquire(at(1), owner(2, 1)).is_ok());
        leases.release(at(2), &owner(1, 3));
        assert!(leases.acquire(at(3), owner(1, 9)).is_ok());
        assert_eq!(leases.lease(&owner(1, 3)), None);
    }

    #[test]
    fn leases_survive_a_restart_and_their_sessions_may_come_back_first() {
        let mut old = leases("10.86.0.0/29", &[]);
        for client in 1..=5 {
            old.acquire(at(0), owner(client, 1)).expect("a lease");
        }
        old.release(at(50), &owner(5, 1));
        let bytes = old.save(at(100));
        let mut new = leases("10.86.0.0/29", &[]);
        assert_eq!(
            new.restore(at(110), &bytes, |_| true),
            Ok(Restored {
                kept: 5,
                dropped: 0
            })
        );
        // Only the idle one gives way within the grace; then the others do.
        assert_eq!(
            new.acquire(at(111), owner(6, 1)).map(|lease| lease.v4),
            Ok(v4("10.86.0.6"))
        );
        assert!(new.acquire(at(112), owner(7, 1)).is_err());
        assert_eq!(
            new.acquire(at(113), owner(3, 1)).map(|lease| lease.v4),
            Ok(v4("10.86.0.4"))
        );
        assert!(new.acquire(at(110 + 60), owner(7, 1)).is_ok());
    }

    #[test]
    fn what_does_not_fit_the_configuration_is_not_restored() {
        let mut old = leases("10.86.0.0/24", &[]);
        for client in 1..=4 {
            old.acquire(at(0), owner(client, 1)).expect("a lease");
            old.release(at(u64::from(client)), &owner(client, 1));
        }
        let bytes = old.save(at(5));
        let restored = |leases: &mut Leases, now| {
            leases
                .restore(now, &bytes, |key| *key != owner(4, 1).key)
                .expect("JSON")
        };
        // 10.86.0.3 belongs to client 9 now, and client 4 is gone.
        assert_eq!(
            restored(&mut leases("10.86.0.0/24", &[(9, "10.86.0.3")]), at(10)),
            Restored {
                kept: 2,
                dropped: 2
            }
        );
        assert_eq!(
            restored(&mut leases("10.87.0.0/24", &[]), at(10)),
            Restored {
                kept: 0,
                dropped: 4
            }
        );
        assert_eq!(
            restored(&mut both(), at(10)),
            Restored {
                kept: 0,
                dropped: 4
            }
        );
        assert_eq!(
            restored(&mut leases("10.86.0.0/24", &[]), at(86_402)),
            Restored {
                kept: 1,
                dropped: 3
            }
        );
        let mut twice = leases("10.86.0.0/24", &[]);
        restored(&mut twice, at(10));
        assert_eq!(
            restored(&mut twice, at(10)),
            Restored {
                kept: 0,
                dropped: 4
            }
        );
    }

    #[test]
    fn a_state_that_makes_no_sense_is_refused_whole() {
        let mut leases = leases("10.86.0.0/24", &[]);
        for bytes in [
            &b""[..],
            b"{",
            b"[]",
            b"{\"version\":1}",
            b"\xff",
            b"{\"version\":1,\"leases\":[{}]}",
        ] {
            let error = leases
                .restore(at(0), bytes, |_| true)
                .expect_err("no state");
            assert!(matches!(error, RestoreError::Malformed { .. }), "{error}");
        }
        assert_eq!(
            leases.restore(at(0), b"{\"version\":2,\"leases\":[]}", |_| true),
            Err(RestoreError::Version { found: 2 })
        );
        assert!(leases.is_empty());
    }

    #[test]
    fn a_clock_that_jumps_back_takes_no_lease_away() {
        let mut leases = leases("10.86.0.0/24", &[]);
        let lease = leases.acquire(at(1000), owner(1, 1)).expect("a lease");
        leases.release(at(1000), &owner(1, 1));
        leases.expire(START);
        assert_eq!(leases.acquire(START, owner(1, 1)), Ok(lease));
        let bytes = leases.save(START);
        assert_eq!(
            leases
                .restore(START, &bytes, |_| true)
                .map(|restored| restored.dropped),
            Ok(1)
        );
    }

    #[test]
    fn a_client_that_may_not_connect_any_more_loses_all() {
        let mut leases = leases("10.86.0.0/24", &[]);
        leases.acquire(at(0), owner(1, 1)).expect("a lease");
        leases.acquire(at(0), owner(1, 2)).expect("a lease");
        leases.acquire(at(0), owner(2, 1)).expect("a lease");
        leases.forget_client(&owner(1, 1).key);
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn changes_are_noticed_once() {
        let mut leases = leases("10.86.0.0/24", &[]);
        assert!(!leases.take_changed());
        leases.acquire(at(0), owner(1, 1)).expect("a lease");
        assert!(leases.take_changed());
        assert!(!leases.take_changed());
        leases.release(at(1), &owner(1, 1));
        assert!(leases.take_changed());
    }

    #[test]
    fn a_huge_network_costs_no_more_than_its_leases() {
        let network = "2001:db8::/32".parse().expect("a network");
        let mut leases = Leases::new(None, Some(network), [], Settings::default());
        for client in 1..=200 {
            leases.acquire(at(0), owner(client, 1)).expect("a lease");
        }
        assert_eq!(
            leases.acquire(at(0), owner(201, 1)).map(|lease| lease.v6),
            Ok("2001:db8::ca".parse().ok())
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Acquire(u8, u8),
        Release(u8, u8),
        Wait(u32),
        Restart,
        Forget(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1_u8..6, 1_u8..11).prop_map(|(client, instance)| Step::Acquire(client, instance)),
            4 => (1_u8..6, 1_u8..11).prop_map(|(client, instance)| Step::Release(client, instance)),
            2 => (0_u32..50_000).prop_map(Step::Wait),
            1 => Just(Step::Restart),
            1 => (1_u8..6).prop_map(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners_and_held_leases_never_move(steps in prop::collection::vec(step(), 1..120)) {
            let make = || leases("10.86.0.0/28", &[(1, "10.86.0.2"), (2, "10.86.0.14")]);
            let mut leases = make();
            let mut held: HashMap<Owner, (Lease, u32)> = HashMap::new();
            let mut now = at(0);
            for step in steps {
                match step {
                    Step::Acquire(client, instance) => {
                        let owner = owner(client, instance);
                        if let Ok(lease) = leases.acquire(now, owner) {
                            let entry = held.entry(owner).or_insert((lease, 0));
                            prop_assert_eq!(entry.0, lease, "a held lease moved");
                            entry.1 += 1;
                        }
                    }
                    Step::Release(client, instance) => {
                        let owner = owner(client, instance);
                        if let Some(entry) = held.get_mut(&owner) {
                            leases.release(now, &owner);
                            entry.1 -= 1;
                            if entry.1 == 0 {
                                held.remove(&owner);
                            }
                        }
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                    Step::Restart => {
                        let bytes = leases.save(now);
                        leases = make();
                        let restored = leases.restore(now, &bytes, |_| true).expect("own state");
                        // Idle leases may have expired in the meantime; nothing else is lost.
                        prop_assert!(restored.kept >= held.len());
                        for (owner, (lease, _)) in held.drain() {
                            prop_assert_eq!(leases.lease(&owner), Some(lease));
                        }
                    }
                    Step::Forget(client) => {
                        leases.forget_client(&PublicKey::from_bytes([client; 32]));
                        held.retain(|owner, _| owner.key != PublicKey::from_bytes([client; 32]));
                    }
                }
                let mut seen = BTreeSet::new();
                for (owner, entry) in &leases.entries {
                    let address = entry.lease.v4.expect("an address");
                    prop_assert!(seen.insert(address), "{} has two owners", address);
                    prop_assert!(!matches!(address.octets()[3], 0 | 1 | 15), "{} is not a client's", address);
                    if address.octets()[3] == 2 {
                        prop_assert_eq!(owner.key, PublicKey::from_bytes([1; 32]));
                    }
                }
                for (owner, (lease, _)) in &held {
                    prop_assert_eq!(leases.lease(owner), Some(*lease));
                }
                for instances in leases.instances.values() {
                    prop_assert!(instances.len() <= INSTANCES);
                }
                prop_assert_eq!(leases.pool4.as_ref().map(|pool| pool.used.len()), Some(leases.len()));
            }
        }
    }
}
