//! One family's addresses: which are leased, and which is free next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::table::Owner;

/// The addresses of one family, as numbers.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) network: IpNet,
    pub(super) gateway: u128,
    first: u128,
    last: u128,
    /// Fixed addresses, which are not leased otherwise.
    pub(super) reserved: BTreeSet<u128>,
    pub(super) used: BTreeMap<u128, Owner>,
    /// No address below is free.
    hint: u128,
}

impl Pool {
    pub(super) fn new(network: IpNet, reserved: impl Iterator<Item = u128>) -> Self {
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
    pub(super) fn contains(&self, address: u128) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// How many clients there is room for.
    pub(super) fn usable(&self) -> u128 {
        if self.last < self.first {
            0
        } else {
            (self.last - self.first).saturating_add(1)
        }
    }

    /// Walks up from the hint; amortised constant, since the hint goes down only to what is given back.
    pub(super) fn lowest_free(&mut self) -> Option<u128> {
        while self.contains(self.hint)
            && (self.used.contains_key(&self.hint) || self.reserved.contains(&self.hint))
        {
            self.hint = self.hint.checked_add(1)?;
        }
        self.contains(self.hint).then_some(self.hint)
    }

    /// Keeps these addresses for their clients, and no others.
    pub(super) fn reserve(&mut self, reserved: impl Iterator<Item = u128>) {
        self.reserved = reserved.collect();
        // What is no longer kept may be the lowest that is free.
        self.hint = self.first;
    }

    pub(super) fn take(&mut self, address: u128, owner: Owner) {
        self.used.insert(address, owner);
    }

    pub(super) fn give_back(&mut self, address: u128) {
        self.used.remove(&address);
        self.hint = self.hint.min(address.max(self.first));
    }
}

/// Whether a saved address is still right: in its pool, free, and nobody else's fixed one.
pub(super) fn fits(pool: Option<&Pool>, address: Option<IpAddr>, fixed: Option<IpAddr>) -> bool {
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

pub(super) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The other way round, for a number of an IPv4 pool.
pub(super) fn to_v4(number: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits((number & 0xffff_ffff) as u32)
}
