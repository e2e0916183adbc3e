//! Sets of addresses, asked by a binary search.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A set of addresses as sorted ranges that do not overlap.
///
/// IPv4 and IPv6 are apart: whoever asks decides what an IPv6 address that carries an IPv4 one stands for.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Networks {
    /// Makes the set of these addresses alone; IPv4 in an IPv6 coat counts as IPv4.
    pub fn of(addresses: &[IpAddr]) -> Self {
        addresses
            .iter()
            .map(|ip| IpNet::from(ip.to_canonical()))
            .collect()
    }

    /// Whether `ip` is in one of the networks.
    pub fn contains4(&self, ip: Ipv4Addr) -> bool {
        holds(&self.v4, ip.to_bits())
    }

    /// Whether `ip` is in one of the networks.
    pub fn contains6(&self, ip: Ipv6Addr) -> bool {
        holds(&self.v6, ip.to_bits())
    }

    /// Whether `ip` is in one of the networks.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.contains4(ip),
            IpAddr::V6(ip) => self.contains6(ip),
        }
    }

    /// Whether no address is in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut ranges = Self::default();
        for net in nets {
            match net {
                IpNet::V4(net) => ranges
                    .v4
                    .push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => ranges
                    .v6
                    .push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        merge(&mut ranges.v4);
        merge(&mut ranges.v6);
        ranges
    }
}

fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

fn holds<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|range| range.0 <= value);
    after
        .checked_sub(1)
        .and_then(|index| ranges.get(index))
        .is_some_and(|range| value <= range.1)
}
