//! The interface's MTU, addresses and state, and the comparison of its network with those of the host, by rtnetlink.
//!
//! The kernel adds the route to the network by itself with the gateway's address; nothing is ever put in the place of a
//! default route. All of it ends with the interface.
//!
//! The inner end of `adit run` ([`inner`]) is another matter: its interface lives in a network namespace that has nothing else, so
//! it gets the default routes.

//!
//! A client that leads its whole host through the tunnel has rules and routing tables of its own ([`policy`]).

mod inner;
pub mod policy;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

/// A connection to the kernel's routing tables; ends when dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Opens a netlink socket in the network namespace of the calling thread; needs a tokio runtime, and no privilege.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Sets MTU and addresses of `interface`, those that it lacks, switches it on, and reads it back.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`NetlinkError::Mismatch`] when the kernel took something else than was asked.
    pub async fn configure(
        &self,
        interface: &str,
        mtu: u16,
        gateway4: Option<Ipv4Net>,
        gateway6: Option<Ipv6Net>,
    ) -> Result<(), NetlinkError> {
        let index = self.link(interface).await?.index;
        self.set_mtu(interface, index, mtu).await?;
        let gateways = [gateway4.map(IpNet::V4), gateway6.map(IpNet::V6)];
        let there = self.addresses(index).await?;
        let missing = gateways.into_iter().flatten();
        for gateway in missing.filter(|gateway| !there.contains(gateway)) {
            self.add_address(interface, index, gateway).await?;
        }
        self.switch_on(interface, index).await?;
        self.read_back(interface, mtu, &gateways).await
    }

    /// Says whether `interface` is as [`Netlink::configure`] has left it.
    ///
    /// # Errors
    /// [`NetlinkError::Mismatch`] where it is not, [`NetlinkError::Missing`] where it is gone; [`NetlinkError::Look`] and
    /// [`NetlinkError::List`].
    pub async fn check(
        &self,
        interface: &str,
        mtu: u16,
        gateway4: Option<Ipv4Net>,
        gateway6: Option<Ipv6Net>,
    ) -> Result<(), NetlinkError> {
        let gateways = [gateway4.map(IpNet::V4), gateway6.map(IpNet::V6)];
        self.read_back(interface, mtu, &gateways).await
    }

    /// Sets the MTU of an interface, and how many segments a super-packet of its may have.
    async fn set_mtu(&self, interface: &str, index: u32, mtu: u16) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .mtu(u32::from(mtu))
            .build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(refused(interface, "set the MTU"))?;
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(MAX_SEGMENTS))
            .build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(refused(interface, "limit the super-packets"))
    }

    async fn add_address(
        &self,
        interface: &str,
        index: u32,
        address: IpNet,
    ) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // Nobody else can have it: without this it would not be usable for a second.
            let flags = rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
            request.message_mut().header.flags |= flags;
        }
        let added = request.execute().await;
        added.map_err(refused(interface, "add the address"))
    }

    async fn switch_on(&self, interface: &str, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(refused(interface, "set the state"))
    }

    /// Compares the network with the addresses and routes of every interface but `own`.
    ///
    /// Default routes, and the halves of the address space that VPN clients put in their place, are no overlap: a longer
    /// prefix goes before them.
    ///
    /// # Errors
    /// [`CheckError::Overlap`] names the interface and proposes a free network; [`CheckError::Netlink`].
    pub async fn check_overlap(
        &self,
        own: &str,
        network4: Option<Ipv4Net>,
        network6: Option<Ipv6Net>,
    ) -> Result<(), CheckError> {
        let networks = self.networks(own).await?;
        for wanted in [network4.map(IpNet::V4), network6.map(IpNet::V6)]
            .into_iter()
            .flatten()
        {
            if let Some(found) = networks
                .iter()
                .find(|found| overlaps(&found.network, &wanted))
            {
                let proposal = propose(wanted, networks.iter().map(|found| found.network));
                return Err(Overlap {
                    wanted,
                    found: found.clone(),
                    proposal,
                }
                .into());
            }
        }
        Ok(())
    }

    /// The networks of the host: of its addresses and of its routes through an interface, but the default ones.
    ///
    /// # Errors
    /// [`NetlinkError::List`].
    pub async fn networks(&self, without: &str) -> Result<Vec<HostNetwork>, NetlinkError> {
        let mut names = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(NetlinkError::List)? {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(link.header.index, name);
                }
            }
        }
        let mut found = Vec::new();
        let mut push = |network: Option<IpNet>, index: u32, kind| {
            let interface = names
                .get(&index)
                .cloned()
                .unwrap_or_else(|| format!("#{index}"));
            if let Some(network) = network
                && interface != without
            {
                found.push(HostNetwork {
                    network,
                    interface,
                    kind,
                });
            }
        };
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(NetlinkError::List)? {
            for attribute in &message.attributes {
                // On point-to-point links `Address` is the far end; both count.
                if let AddressAttribute::Address(address) | AddressAttribute::Local(address) =
                    attribute
                {
                    let network = IpNet::new(*address, message.header.prefix_len).ok();
                    push(
                        network.map(|network| network.trunc()),
                        message.header.index,
                        Kind::Address,
                    );
                }
            }
        }
        let families = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        for family in families {
            let mut routes = self.handle.route().get(family).execute();
            while let Some(route) = routes.try_next().await.map_err(NetlinkError::List)? {
                if let Some((network, index)) = route_network(&route) {
                    push(Some(network), index, Kind::Route);
                }
            }
        }
        Ok(found)
    }

    /// What the kernel says about an interface.
    ///
    /// # Errors
    /// [`NetlinkError::Missing`] when there is none of that name; [`NetlinkError::Look`] where it does not tell.
    pub async fn link(&self, interface: &str) -> Result<Link, NetlinkError> {
        let interface = interface.to_owned();
        let mut links = self
            .handle
            .link()
            .get()
            .match_name(interface.clone())
            .execute();
        let message = match links.try_next().await {
            Ok(Some(message)) => message,
            // The kernel answers in any case, but not over a connection that is broken.
            Ok(None) => return Err(unseen(interface, rtnetlink::Error::RequestFailed)),
            Err(source) => return Err(unseen(interface, source)),
        };
        let mut link = Link {
            index: message.header.index,
            is_up: message.header.flags.contains(LinkFlags::Up),
            mtu: 0,
        };
        for attribute in message.attributes {
            if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = mtu;
            }
        }
        Ok(link)
    }

    /// The addresses of an interface.
    ///
    /// # Errors
    /// [`NetlinkError::List`].
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let mut found = Vec::new();
        let mut addresses = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        while let Some(message) = addresses.try_next().await.map_err(NetlinkError::List)? {
            let prefix_len = message.header.prefix_len;
            for attribute in message.attributes {
                if let AddressAttribute::Address(address) = attribute
                    && let Ok(network) = IpNet::new(address, prefix_len)
                {
                    found.push(network);
                }
            }
        }
        Ok(found)
    }

    /// Every address of the host, on whatever interface.
    ///
    /// # Errors
    /// [`NetlinkError::List`].
    pub async fn host_addresses(&self) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(NetlinkError::List)? {
            // `Address` is the far end's on a point-to-point link, where `Local` is ours.
            for attribute in message.attributes {
                if let AddressAttribute::Address(address) | AddressAttribute::Local(address) =
                    attribute
                {
                    found.push(address);
                }
            }
        }
        Ok(found)
    }

    async fn read_back(
        &self,
        interface: &str,
        mtu: u16,
        gateways: &[Option<IpNet>],
    ) -> Result<(), NetlinkError> {
        let mismatch = |what| NetlinkError::Mismatch {
            interface: interface.to_owned(),
            what,
        };
        let link = self.link(interface).await?;
        if link.mtu != u32::from(mtu) {
            return Err(mismatch("MTU"));
        }
        if !link.is_up {
            return Err(mismatch("state"));
        }
        let addresses = self.addresses(link.index).await?;
        let all = gateways
            .iter()
            .flatten()
            .all(|gateway| addresses.contains(gateway));
        if all {
            Ok(())
        } else {
            Err(mismatch("address"))
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What the kernel says about an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Whether it is switched on.
    pub is_up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A network that the host has already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNetwork {
    /// The network.
    pub network: IpNet,
    /// The interface it is reached through.
    pub interface: String,
    /// How the host knows it.
    pub kind: Kind,
}

/// How the host knows a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By an address of its own.
    Address,
    /// By a route.
    Route,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "an address",
            Self::Route => "a route",
        })
    }
}

/// The clients' network is in use on the host already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The network that was asked for.
    pub wanted: IpNet,
    /// What it overlaps with.
    pub found: HostNetwork,
    /// A network of the same size that is free on this host.
    pub proposal: Option<IpNet>,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            wanted,
            found,
            proposal,
        } = self;
        let key = if wanted.addr().is_ipv4() {
            "network"
        } else {
            "network6"
        };
        let HostNetwork {
            network,
            interface,
            kind,
        } = found;
        write!(
            f,
            "{key} {wanted} overlaps with {network}, for which interface {interface} has {kind}: choose another"
        )?;
        match proposal {
            Some(proposal) => write!(f, ", such as {key}: {proposal}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Overlap {}

/// Why the comparison with the host's networks failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The network is in use.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The kernel did not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Why the kernel's routing tables cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(std::io::Error),
    /// Links, addresses or routes cannot be listed.
    #[error("cannot list the host's networks: {0}")]
    List(rtnetlink::Error),
    /// There is no such interface.
    #[error("there is no interface {interface}")]
    Missing {
        /// The interface.
        interface: String,
    },
    /// What an interface is like is not told.
    #[error("cannot look at the interface {interface}: {source}")]
    Look {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A change was refused.
    #[error("cannot {step} of the interface {interface}: {source}")]
    Configure {
        /// The interface.
        interface: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The kernel has something else than was asked for.
    #[error(
        "the interface {interface} did not get the {what} it was given: something else on this host changes it"
    )]
    Mismatch {
        /// The interface.
        interface: String,
        /// What differs.
        what: &'static str,
    },
}

/// Says why an interface cannot be seen: for want of memory, too, and only one that is not there is missing.
fn unseen(interface: String, source: rtnetlink::Error) -> NetlinkError {
    if let rtnetlink::Error::NetlinkError(message) = &source
        && message.raw_code() == -libc::ENODEV
    {
        NetlinkError::Missing { interface }
    } else {
        NetlinkError::Look { interface, source }
    }
}

/// Says of which interface the kernel refused what.
fn refused(
    interface: &str,
    step: &'static str,
) -> impl FnOnce(rtnetlink::Error) -> NetlinkError + use<> {
    let interface = interface.to_owned();
    move |source| NetlinkError::Configure {
        interface,
        step,
        source,
    }
}

/// The network of a route that carries packets somewhere, with its interface; none for default routes and their like.
fn route_network(route: &RouteMessage) -> Option<(IpNet, u32)> {
    let header = &route.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let shortest = if header.address_family == AddressFamily::Inet {
        DEFAULT_LIKE4
    } else {
        DEFAULT_LIKE6
    };
    if header.destination_prefix_length <= shortest {
        return None;
    }
    let mut network = None;
    let mut index = 0;
    for attribute in &route.attributes {
        if let RouteAttribute::Destination(destination) = attribute {
            let address: IpAddr = if let RouteAddress::Inet(address) = destination {
                (*address).into()
            } else if let RouteAddress::Inet6(address) = destination {
                (*address).into()
            } else {
                return None;
            };
            network = IpNet::new(address, header.destination_prefix_length).ok();
        } else if let RouteAttribute::Oif(oif) = attribute {
            index = *oif;
        }
    }
    Some((network?.trunc(), index))
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    // For other families this is false.
    a.contains(b) || b.contains(a)
}

/// A private network of the same prefix length as `wanted` that overlaps with none of `taken`.
fn propose(wanted: IpNet, taken: impl Iterator<Item = IpNet> + Clone) -> Option<IpNet> {
    let free = |candidate: &IpNet| taken.clone().all(|network| !overlaps(&network, candidate));
    let candidates: Vec<IpNet> = match wanted {
        IpNet::V4(_) => {
            // 10.86.0.0 is the default; the neighbours are the least used of the private space (RFC 1918).
            let ten = (86..=255).chain(1..86).map(|second| [10, second, 0, 0]);
            let others = (16..32)
                .map(|second| [172, second, 0, 0])
                .chain((0..=255).map(|third| [192, 168, third, 0]));
            ten.chain(others)
                .map(|octets| (IpAddr::from(octets), wanted.prefix_len()))
                .filter_map(to_network)
                .collect()
        }
        IpNet::V6(_) => {
            // Locally assigned unique local addresses (RFC 4193).
            let seconds = (0x86..=0xff_u16).chain(0..0x86);
            seconds
                .map(|second| [0xfd00 | second, 0, 0, 0, 0, 0, 0, 0])
                .map(|groups| (IpAddr::from(groups), wanted.prefix_len()))
                .filter_map(to_network)
                .collect()
        }
    };
    candidates.into_iter().find(free)
}

/// The network, if the address is its first one: a shorter prefix would leave the private space.
fn to_network((address, prefix_len): (IpAddr, u8)) -> Option<IpNet> {
    let network = IpNet::new(address, prefix_len).ok()?;
    let shortest = match address {
        IpAddr::V4(address) if address.octets()[0] == 192 => 16,
        IpAddr::V4(address) if address.octets()[0] == 172 => 12,
        IpAddr::V4(_) | IpAddr::V6(_) => 8,
    };
    (network.network() == address && prefix_len >= shortest).then_some(network)
}

/// 0.0.0.0/0 and its halves.
const DEFAULT_LIKE4: u8 = 1;

/// ::/0, its halves, and 2000::/3, all of the public Internet.
const DEFAULT_LIKE6: u8 = 3;

/// The most segments of one super-packet, as the session's rules for super-packets have it.
const MAX_SEGMENTS: u32 = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rtnetlink::packet_core::ErrorMessage;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn interface_that_cannot_be_seen_for_a_moment_is_not_missing() {
        let said = |errno: i32| {
            let mut message = ErrorMessage::default();
            message.code = std::num::NonZeroI32::new(-errno);
            unseen("adit0".to_owned(), rtnetlink::Error::NetlinkError(message))
        };
        assert!(matches!(
            said(libc::ENODEV),
            NetlinkError::Missing { interface } if interface == "adit0"
        ));
        let broken = unseen("adit0".to_owned(), rtnetlink::Error::RequestFailed);
        assert!(matches!(broken, NetlinkError::Look { .. }));
        for errno in [libc::ENOBUFS, libc::ENOMEM, libc::EPERM] {
            assert!(matches!(said(errno), NetlinkError::Look { .. }), "{errno}");
        }
    }

    #[test]
    fn proposal_is_the_nearest_free_neighbour() {
        let propose =
            |wanted, taken: &[&str]| propose(net(wanted), taken.iter().map(|text| net(text)));
        assert_eq!(
            propose("10.86.0.0/24", &["10.86.0.0/16"]),
            Some(net("10.87.0.0/24"))
        );
        assert_eq!(
            propose("10.86.0.0/24", &["10.0.0.0/8"]),
            Some(net("172.16.0.0/24"))
        );
        assert_eq!(
            propose("10.86.0.0/24", &["10.0.0.0/8", "172.16.0.0/12"]),
            Some(net("192.168.0.0/24"))
        );
        assert_eq!(
            propose("fd86::/64", &["fd86::/16", "fd87::1/128"]),
            Some(net("fd88::/64"))
        );
        // No private network is as large as that.
        assert_eq!(propose("10.0.0.0/7", &["10.0.0.0/8"]), None);
        let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
        assert_eq!(propose("10.86.0.0/24", &all), None);
    }

    #[test]
    fn networks_overlap_when_one_holds_the_other() {
        assert!(overlaps(&net("10.0.0.0/8"), &net("10.86.0.0/24")));
        assert!(overlaps(&net("10.86.0.9/32"), &net("10.86.0.0/24")));
        assert!(!overlaps(&net("10.85.0.0/24"), &net("10.86.0.0/24")));
        assert!(!overlaps(&net("::/0"), &net("10.86.0.0/24")));
    }

    #[test]
    fn overlap_without_a_free_network_proposes_none() {
        let found = HostNetwork {
            network: net("10.0.0.0/8"),
            interface: "eth0".into(),
            kind: Kind::Route,
        };
        let overlap = Overlap {
            wanted: net("10.86.0.0/24"),
            found,
            proposal: None,
        };
        assert_eq!(
            overlap.to_string(),
            "network 10.86.0.0/24 overlaps with 10.0.0.0/8, for which interface eth0 has a route: choose another"
        );
    }

    proptest! {
        #[test]
        fn proposal_overlaps_with_nothing_and_is_private(
            prefix_len in 8_u8..=30,
            taken in proptest::collection::vec((any::<u32>(), 8_u8..=32), 0..50),
        ) {
            let wanted = IpNet::new(Ipv4Addr::new(10, 86, 0, 0).into(), prefix_len).unwrap().trunc();
            let taken: Vec<_> = taken
                .into_iter()
                // Into the private space, where it matters.
                .map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits & 0x00ff_ffff | 0x0a00_0000).into(), length).unwrap())
                .map(|net| net.trunc())
                .collect();
            if let Some(proposal) = propose(wanted, taken.iter().copied()) {
                prop_assert_eq!(proposal.prefix_len(), prefix_len);
                prop_assert_eq!(proposal.network(), proposal.addr());
                prop_assert!(taken.iter().all(|net| !overlaps(net, &proposal)));
                let IpAddr::V4(address) = proposal.addr() else { panic!("{proposal}") };
                prop_assert!(address.is_private());
            }
        }
    }
}
