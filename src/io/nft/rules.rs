//! Our table: its rules, how it is loaded and how it is deleted.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::message::{
    Batch, Expression, NF_ACCEPT, NF_INET_FORWARD, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING,
    NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFT_CT_STATE, NFT_CT_STATUS, NFT_META_IIFNAME,
    NFT_META_NFPROTO, NFT_META_OIFNAME, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE, NFT_TABLE_F_OWNER, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME, NLM_F_APPEND,
    NLM_F_CREATE, NLM_F_EXCL,
};
use super::socket::NftSocket;

/// What the table is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The tunnel's interface.
    pub interface: String,
    /// The clients' IPv4 network.
    pub network4: Option<Ipv4Net>,
    /// The clients' IPv6 network.
    pub network6: Option<Ipv6Net>,
    /// Whether clients leave under the host's addresses.
    pub masquerade: bool,
}

impl Rules {
    /// The chains with their rules.
    fn chains(&self) -> Vec<Chain> {
        let tunnel = &self.interface;
        let networks = [self.network4.map(IpNet::V4), self.network6.map(IpNet::V6)];
        let present = || networks.iter().flatten();

        let mut prerouting = Vec::new();
        for (family, network) in [NFPROTO_IPV4, NFPROTO_IPV6].into_iter().zip(networks) {
            let source = network
                .map(|network| source(false, &network))
                .unwrap_or_default();
            prerouting.push(
                [
                    interface(true, true, tunnel),
                    is_family(family),
                    source,
                    dropped(),
                ]
                .concat(),
            );
        }
        for network in present() {
            let elsewhere = [interface(true, false, tunnel), interface(true, false, "lo")].concat();
            let rule = [
                elsewhere,
                is_family(family(network)),
                source(true, network),
                dropped(),
            ];
            prerouting.push(rule.concat());
        }

        let from_tunnel = || interface(true, true, tunnel);
        let to_tunnel = || interface(false, true, tunnel);
        let mut forward = vec![[from_tunnel(), to_tunnel(), dropped()].concat()];
        let mut postrouting = Vec::new();
        if self.masquerade {
            let accept = || vec![Expression::Accept];
            let known = connection(NFT_CT_STATE, CT_ESTABLISHED | CT_RELATED);
            forward.push(
                [
                    from_tunnel(),
                    connection(NFT_CT_STATE, CT_INVALID),
                    dropped(),
                ]
                .concat(),
            );
            forward.push([to_tunnel(), known, accept()].concat());
            forward.push(
                [
                    to_tunnel(),
                    connection(NFT_CT_STATUS, CT_STATUS_DNAT),
                    accept(),
                ]
                .concat(),
            );
            forward.push([to_tunnel(), dropped()].concat());
            for network in present() {
                let leaving = [
                    interface(false, false, tunnel),
                    is_family(family(network)),
                    source(true, network),
                ];
                postrouting.push([leaving.concat(), vec![Expression::Masquerade]].concat());
            }
        }

        let mut chains = vec![
            Chain {
                name: "prerouting",
                kind: "filter",
                hook: NF_INET_PRE_ROUTING,
                priority: RAW,
                rules: prerouting,
            },
            Chain {
                name: "forward",
                kind: "filter",
                hook: NF_INET_FORWARD,
                priority: FILTER,
                rules: forward,
            },
        ];
        if self.masquerade {
            let (hook, priority) = (NF_INET_POST_ROUTING, SRCNAT);
            chains.push(Chain {
                name: "postrouting",
                kind: "nat",
                hook,
                priority,
                rules: postrouting,
            });
        }
        chains
    }

    /// The transaction that makes the table.
    fn batch(&self, is_owned: bool) -> Batch {
        let mut batch = Batch::new(NFPROTO_INET);
        let flags = if is_owned { NFT_TABLE_F_OWNER } else { 0 };
        push_table(
            &mut batch,
            &table_name(&self.interface),
            flags,
            &self.chains(),
        );
        batch
    }
}

/// Adds to a transaction what makes a table with its chains.
pub(super) fn push_table(batch: &mut Batch, table: &str, flags: u32, chains: &[Chain]) {
    batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, |to| {
        to.text(NFTA_TABLE_NAME, table);
        to.number(NFTA_TABLE_FLAGS, flags);
    });
    for chain in chains {
        batch.push(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, |to| {
            to.text(NFTA_CHAIN_TABLE, table);
            to.text(NFTA_CHAIN_NAME, chain.name);
            to.nested(NFTA_CHAIN_HOOK, |hook| {
                hook.number(NFTA_HOOK_HOOKNUM, chain.hook);
                hook.raw(NFTA_HOOK_PRIORITY, &chain.priority.to_be_bytes());
            });
            to.number(NFTA_CHAIN_POLICY, NF_ACCEPT);
            to.text(NFTA_CHAIN_TYPE, chain.kind);
        });
    }
    for chain in chains {
        for rule in &chain.rules {
            batch.push(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |to| {
                to.text(NFTA_RULE_TABLE, table);
                to.text(NFTA_RULE_CHAIN, chain.name);
                to.nested(NFTA_RULE_EXPRESSIONS, |list| list.expressions(rule));
            });
        }
    }
}

/// A base chain of our table; its policy is to accept.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) rules: Vec<Vec<Expression>>,
}

/// Our table in the kernel. Dropping it deletes an owned table, since its socket is closed, and leaves any other.
#[derive(Debug)]
pub struct Table {
    name: String,
    is_owned: bool,
    socket: NftSocket,
}

impl Table {
    /// Loads the table in one transaction, in the place of one of that name which a killed process left.
    ///
    /// The caller has the tunnel's interface, so no living server can have a table of its name.
    ///
    /// # Errors
    /// [`NftError`]; nothing was loaded then.
    pub fn load(rules: &Rules) -> Result<Self, NftError> {
        let name = table_name(&rules.interface);
        let failed = |source: io::Error| NftError::of(&name, source);
        let socket = NftSocket::open().map_err(failed)?;
        match socket.run(deletion(&name)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        // Kernels before 5.12 know no owner and refuse the flag.
        let is_owned = match socket.run(rules.batch(true)) {
            Ok(()) => true,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                socket.run(rules.batch(false)).map_err(failed)?;
                false
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            name,
            is_owned,
            socket,
        })
    }

    /// As [`Table::load`] on a kernel that knows no owners.
    #[cfg(test)]
    pub(crate) fn load_without_owner(rules: &Rules) -> io::Result<Self> {
        let socket = NftSocket::open()?;
        socket.run(rules.batch(false))?;
        Ok(Self {
            name: table_name(&rules.interface),
            is_owned: false,
            socket,
        })
    }

    /// Deletes the table; one that somebody else has deleted counts as deleted.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(self) -> io::Result<()> {
        delete(&self.socket, &self.name)
    }

    /// Whether the kernel deletes the table when the process ends.
    pub fn is_owned(&self) -> bool {
        self.is_owned
    }
}

/// Deletes the table a killed process left for `interface`, unless somebody living has that interface, or owns the
/// table: then it is not the one that was left.
///
/// # Errors
/// What the kernel says.
pub fn delete_leftover(name: &str, interface: &str) -> io::Result<()> {
    // A journal is a file: no other table is deleted on its word.
    if name != table_name(interface) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if interface_exists(interface) {
        return Ok(());
    }
    let socket = NftSocket::open()?;
    match delete(&socket, name) {
        // Another process owns it. Without CAP_NET_ADMIN the batch is refused as a whole, with the same number.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && has_net_admin(&socket) => Ok(()),
        other => other,
    }
}

/// Name of the table that serves an interface.
pub fn table_name(interface: &str) -> String {
    format!("adit_{interface}")
}

pub(super) fn delete(socket: &NftSocket, name: &str) -> io::Result<()> {
    match socket.run(deletion(name)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn deletion(name: &str) -> Batch {
    let mut batch = Batch::new(NFPROTO_INET);
    push_deletion(&mut batch, name);
    batch
}

/// Adds to a transaction what deletes a table.
pub(super) fn push_deletion(batch: &mut Batch, name: &str) {
    batch.push(NFT_MSG_DELTABLE, 0, |to| to.text(NFTA_TABLE_NAME, name));
}

/// Whether the kernel takes transactions from us: an empty one is refused only without CAP_NET_ADMIN.
pub(super) fn has_net_admin(socket: &NftSocket) -> bool {
    // A table that nobody has, for no interface has such a name, answers "no such table" to those who may ask.
    !matches!(socket.run(deletion("adit_\u{1}")), Err(error) if error.raw_os_error() == Some(libc::EPERM))
}

/// Whether this thread's network namespace has such an interface.
fn interface_exists(interface: &str) -> bool {
    let key = |family: &str| format!("/proc/sys/net/{family}/conf/{interface}");
    Path::new(&key("ipv4")).exists() || Path::new(&key("ipv6")).exists()
}

/// Why the table cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// CAP_NET_ADMIN is missing.
    #[error(
        "cannot load the nftables table {name} without CAP_NET_ADMIN: give it by `setcap cap_net_admin+ep` on the program, `AmbientCapabilities=CAP_NET_ADMIN` in a systemd unit, or `docker run --cap-add NET_ADMIN`"
    )]
    Privilege {
        /// The table.
        name: String,
    },
    /// The kernel lacks a part.
    #[error(
        "this kernel cannot load the nftables table {name} ({source}): it needs Linux 5.2 with the modules nf_tables, nft_ct, nft_masq and nft_chain_nat"
    )]
    Unsupported {
        /// The table.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another reason.
    #[error("cannot load the nftables table {name}: {source}")]
    Load {
        /// The table.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NftError {
    /// What the kernel meant when it refused the table.
    pub(super) fn of(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { name },
            Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT) => {
                Self::Unsupported { name, source }
            }
            Some(_) | None => Self::Load { name, source },
        }
    }
}

/// Goes on if the interface the packet came in by (or leaves by) is, or is not, the named one.
pub(super) fn interface(is_input: bool, equal: bool, name: &str) -> Vec<Expression> {
    let key = if is_input {
        NFT_META_IIFNAME
    } else {
        NFT_META_OIFNAME
    };
    // Compared whole, with the zeroes after it: a prefix would match adit01 too.
    let mut value = vec![0; libc::IFNAMSIZ];
    for (to, from) in value.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    vec![Expression::Meta(key), Expression::Compare { equal, value }]
}

pub(super) fn is_family(family: u8) -> Vec<Expression> {
    vec![
        Expression::Meta(NFT_META_NFPROTO),
        Expression::Compare {
            equal: true,
            value: vec![family],
        },
    ]
}

pub(super) fn family(network: &IpNet) -> u8 {
    match network {
        IpNet::V4(_) => NFPROTO_IPV4,
        IpNet::V6(_) => NFPROTO_IPV6,
    }
}

/// Goes on if the packet's source is, or is not, in the network; the family was compared before.
fn source(equal: bool, network: &IpNet) -> Vec<Expression> {
    // Offset of the source address: RFC 791 section 3.1, RFC 8200 section 3.
    let offset = match network {
        IpNet::V4(_) => 12,
        IpNet::V6(_) => 8,
    };
    address(equal, network, offset)
}

/// The same of its destination.
pub(super) fn destination(equal: bool, network: &IpNet) -> Vec<Expression> {
    let offset = match network {
        IpNet::V4(_) => 16,
        IpNet::V6(_) => 24,
    };
    address(equal, network, offset)
}

fn address(equal: bool, network: &IpNet, offset: u32) -> Vec<Expression> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = match network {
        IpNet::V4(_) => 4,
        IpNet::V6(_) => 16,
    };
    vec![
        Expression::Network { offset, length },
        Expression::Mask(bytes(network.netmask())),
        Expression::Compare {
            equal,
            value: bytes(network.network()),
        },
    ]
}

/// Goes on if any of the bits of the connection's state or status is set.
fn connection(key: u32, bits: u32) -> Vec<Expression> {
    vec![
        Expression::Ct(key),
        Expression::Mask(bits.to_ne_bytes().to_vec()),
        Expression::Compare {
            equal: false,
            value: vec![0; 4],
        },
    ]
}

pub(super) fn dropped() -> Vec<Expression> {
    vec![Expression::Counter, Expression::Drop]
}

/// Before connection tracking.
pub(super) const RAW: i32 = -300;
pub(super) const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// Bits of the connection's state (nf_conntrack_common.h, `NF_CT_STATE_*`).
const CT_INVALID: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;
/// `IPS_DST_NAT`.
const CT_STATUS_DNAT: u32 = 1 << 5;
