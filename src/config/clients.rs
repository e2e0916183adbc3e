//! The clients in a server's configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::server::ClientEntry;
use super::settings::{Group, Located, Settings};
use super::shared::Unique;
use super::{files, parse};
use crate::proto::{PublicKey, SecretKey};

/// Reads the clients; `own` are the server's keys.
pub(super) fn read(
    settings: &mut Settings<'_>,
    network: Option<Ipv4Net>,
    network6: Option<Ipv6Net>,
    own: &[SecretKey],
) -> Vec<ClientEntry> {
    let mut reader = Reader {
        network: network.map(IpNet::from),
        network6: network6.map(IpNet::from),
        own: own.iter().map(SecretKey::public).collect(),
        names: Unique::default(),
        keys: Unique::default(),
        addresses: Unique::default(),
    };
    let groups = settings.groups("clients", &KEYS);
    groups
        .iter()
        .filter_map(|group| reader.read(settings, group))
        .collect()
}

/// What was read of earlier clients, and what they are checked against.
struct Reader {
    network: Option<IpNet>,
    network6: Option<IpNet>,
    own: Vec<PublicKey>,
    names: Unique<String>,
    keys: Unique<PublicKey>,
    addresses: Unique<IpAddr>,
}

impl Reader {
    /// `None` only after a problem was added.
    fn read(&mut self, settings: &mut Settings<'_>, group: &Group) -> Option<ClientEntry> {
        let name = self.name(settings, group);
        let public_key = self.public_key(settings, group);
        let address = settings.value_in(group, "address", parse::ipv4);
        let address6 = settings.value_in(group, "address6", parse::ipv6);
        if let Some(at) = &address {
            self.address(settings, at, self.network);
        }
        if let Some(at) = &address6 {
            self.address(settings, at, self.network6);
        }
        let preshared = settings.path_in(group, "preshared_key_file");
        let preshared_key = preshared.and_then(|at| settings.read_file(&at, files::read_key));
        Some(ClientEntry {
            name: name?,
            public_key: public_key?,
            address: address.map(|at| at.value),
            address6: address6.map(|at| at.value),
            preshared_key,
        })
    }

    fn name(&mut self, settings: &mut Settings<'_>, group: &Group) -> Option<String> {
        let Some(at) = settings.value_in(group, "name", parse::client_name) else {
            settings.missing_in(
                group,
                "name",
                "give the client a name, which is shown in logs",
            );
            return None;
        };
        self.names.insert(
            settings,
            &at,
            at.value.clone(),
            format_args!("the name {}", at.value),
        );
        Some(at.value)
    }

    fn public_key(&mut self, settings: &mut Settings<'_>, group: &Group) -> Option<PublicKey> {
        let Some(at) = settings.value_in(group, "public_key", parse::public_key) else {
            let right = "write what `adit pubkey` prints for the client's key file";
            settings.missing_in(group, "public_key", right);
            return None;
        };
        self.keys.insert(
            settings,
            &at,
            at.value,
            format_args!("the key {}", at.value),
        );
        if self.own.contains(&at.value) {
            let message = "this is the key of the server itself: write the client's public key";
            settings.problem_at(&at, message);
        }
        Some(at.value)
    }

    /// A fixed address is one that the pool could lease.
    fn address<A: Copy + Into<IpAddr>>(
        &mut self,
        settings: &mut Settings<'_>,
        at: &Located<A>,
        pool: Option<IpNet>,
    ) {
        let address: IpAddr = at.value.into();
        self.addresses
            .insert(settings, at, address, format_args!("the address {address}"));
        let message = match pool {
            None => {
                format!("`{address}` has no network to be in: the network of its family is off")
            }
            Some(pool) if !pool.contains(&address) => {
                format!("`{address}` is outside {pool}: write an address inside it")
            }
            Some(pool) if gateway(pool) == address => {
                format!("`{address}` is the gateway, the server's own: write another of {pool}")
            }
            Some(pool)
                if pool.network() == address
                    || (address.is_ipv4() && pool.broadcast() == address) =>
            {
                format!("`{address}` is not a host's address in {pool}: write another")
            }
            Some(_) => return,
        };
        settings.problem_at(at, message);
    }
}

/// The server's own address in a pool: the first after the network's.
fn gateway(pool: IpNet) -> IpAddr {
    match pool {
        IpNet::V4(net) => Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1)).into(),
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits().saturating_add(1)).into(),
    }
}

/// The keys of one client.
const KEYS: [&str; 5] = [
    "name",
    "public_key",
    "address",
    "address6",
    "preshared_key_file",
];
