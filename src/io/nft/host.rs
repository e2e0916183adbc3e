//! The table of a client that leads its whole host through the tunnel.
//!
//! With the interface `adit0`, the inner address 10.86.0.2, `exclude: [192.168.0.0/16]` and the kill switch:
//!
//! ```text
//! table inet adit_client {
//!   chain arriving {
//!     type filter hook prerouting priority raw; policy accept;
//!     iifname != "adit0" iifname != "lo" ip daddr 10.86.0.2 counter drop   # nobody outside speaks to the inner address
//!     iifname "adit0" ip daddr != 10.86.0.2 counter drop               # nor the server to any but it
//!     iifname "adit0" meta nfproto ipv6 counter drop
//!   }
//!   chain answers {
//!     type filter hook prerouting priority mangle; policy accept;
//!     iifname != "adit0" iifname != "lo" fib daddr type local ct direction original ct mark 0 ct mark set 0x1ad2
//!     ct mark 0x1ad2 meta mark set 0x1ad1
//!     ct mark 0x1ad1 meta mark set ct mark     # so that rp_filter finds the way back that the lanes took
//!   }
//!   chain answering {
//!     type route hook output priority mangle; policy accept;
//!     ct mark 0x1ad2 meta mark set 0x1ad1
//!   }
//!   chain lanes {
//!     type filter hook postrouting priority mangle; policy accept;
//!     ct mark != 0x1ad2 meta mark 0x1ad1 ct mark set meta mark
//!   }
//!   chain leaving {                            # the kill switch; made here or forwarded, all pass it
//!     type filter hook postrouting priority filter; policy accept;
//!     oifname "lo" accept
//!     oifname "adit0" accept
//!     meta mark 0x1ad1 accept                  # the lanes, and what rules of the proxy send directly
//!     iifname "adit0" accept                   # from the tunnel to those whom the host forwards for
//!     ip daddr 192.168.0.0/16 accept
//!     udp sport 68 udp dport 67 accept         # DHCP
//!     udp sport 546 udp dport 547 accept
//!     icmpv6 type 131-133, 135, 136, 143 accept      # neighbours, routers, multicast groups
//!     counter drop
//!   }
//! }
//! ```
//!
//! Who speaks to the host from outside, such as its administrator by ssh, is answered there: a conversation that others
//! begin with one of the host's own addresses is marked 0x1ad2, and the host's packets in it bear the lanes' mark and are
//! routed once more for it. What the host begins is never marked so, nor what it forwards. All that speaks of 0x1ad2 is
//! there without the kill switch only: with one nobody is answered outside who is not excluded.
//!
//! The table belongs to no process: the kill switch stays when the client crashes. Another takes its place, or its
//! end, in one transaction, so that there is no moment without it.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use tracing::warn;

use super::message::{
    Batch, Expression, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING, NFPROTO_INET,
    NFPROTO_IPV4, NFPROTO_IPV6, NFT_CT_DIRECTION, NFT_CT_MARK, NFT_META_L4PROTO, NFT_META_MARK,
    NFT_MSG_NEWTABLE, NFTA_TABLE_NAME, NLM_F_CREATE,
};
use super::rules::{
    Chain, FILTER, NftError, RAW, delete, destination, dropped, family, interface, is_family,
    push_deletion, push_table,
};
use super::socket::NftSocket;

/// What the table is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRules {
    /// The tunnel's interface.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What sockets bear that leave outside the tunnel.
    pub mark: u32,
    /// With a kill switch, what may leave outside all the same.
    pub kill_switch: Option<Vec<IpNet>>,
}

impl HostRules {
    /// Loads the table, in the place of the one there is.
    ///
    /// # Errors
    /// [`NftError`]; nothing has changed then.
    pub fn load(&self) -> Result<(), NftError> {
        let failed = |source| NftError::of(HOST_TABLE, source);
        let socket = NftSocket::open().map_err(failed)?;
        let is_answering = self.kill_switch.is_none();
        match socket.run(self.batch(is_answering)) {
            Err(error) if is_answering && error.raw_os_error() == Some(libc::ENOENT) => {
                warn!(
                    "this kernel has no nft_fib_inet: connections from outside are answered through the tunnel, unless their network is excluded"
                );
                socket.run(self.batch(false)).map_err(failed)
            }
            result => result.map_err(failed),
        }
    }

    /// Says what makes the table; with `is_answering` whoever speaks to the host from outside is answered there.
    fn batch(&self, is_answering: bool) -> Batch {
        let mut batch = Batch::new(NFPROTO_INET);
        // What is there or not, it can be deleted after this.
        batch.push(NFT_MSG_NEWTABLE, NLM_F_CREATE, |to| {
            to.text(NFTA_TABLE_NAME, HOST_TABLE);
        });
        push_deletion(&mut batch, HOST_TABLE);
        push_table(&mut batch, HOST_TABLE, 0, &self.chains(is_answering));
        batch
    }

    fn chains(&self, is_answering: bool) -> Vec<Chain> {
        let tunnel = self.interface.as_str();
        let elsewhere = || [interface(true, false, tunnel), interface(true, false, "lo")].concat();
        let arriving = self.addresses.iter().map(|address| {
            let address = IpNet::from(*address);
            [
                elsewhere(),
                is_family(family(&address)),
                destination(true, &address),
                dropped(),
            ]
            .concat()
        });
        let arriving = arriving.chain([false, true].map(|v6| self.inward(v6)));
        let mark = || self.mark.to_ne_bytes().to_vec();
        let is = |load, value| vec![load, equals(value)];
        let bears = |load| is(load, mark());
        let begun_outside = [
            elsewhere(),
            is(
                Expression::DestinationKind,
                RTN_LOCAL.to_ne_bytes().to_vec(),
            ),
            is(Expression::Ct(NFT_CT_DIRECTION), vec![ORIGINAL]),
            is(Expression::Ct(NFT_CT_MARK), vec![0; 4]),
            vec![
                Expression::Load(self.incoming()),
                Expression::SetCt(NFT_CT_MARK),
            ],
        ];
        let answering = [
            is(Expression::Ct(NFT_CT_MARK), self.incoming()),
            vec![Expression::Load(mark()), Expression::SetMeta(NFT_META_MARK)],
        ]
        .concat();
        let answers = [
            bears(Expression::Ct(NFT_CT_MARK)),
            vec![Expression::SetMeta(NFT_META_MARK)],
        ]
        .concat();
        let lanes = [
            vec![
                Expression::Ct(NFT_CT_MARK),
                Expression::Compare {
                    equal: false,
                    value: self.incoming(),
                },
            ],
            bears(Expression::Meta(NFT_META_MARK)),
            vec![Expression::SetCt(NFT_CT_MARK)],
        ];
        let chain = |name, hook, priority, rules| Chain {
            name,
            // One that routes anew what it has marked.
            kind: if hook == NF_INET_LOCAL_OUT {
                "route"
            } else {
                "filter"
            },
            hook,
            priority,
            rules,
        };
        let answered = if is_answering {
            vec![begun_outside.concat(), answering.clone(), answers]
        } else {
            vec![answers]
        };
        let mut chains = vec![
            chain("arriving", NF_INET_PRE_ROUTING, RAW, arriving.collect()),
            chain("answers", NF_INET_PRE_ROUTING, MANGLE, answered),
            chain("lanes", NF_INET_POST_ROUTING, MANGLE, vec![lanes.concat()]),
        ];
        if is_answering {
            let answering = vec![answering];
            chains.push(chain("answering", NF_INET_LOCAL_OUT, MANGLE, answering));
        }
        if let Some(exclude) = &self.kill_switch {
            let leaving = self.leaving(exclude);
            chains.push(chain("leaving", NF_INET_POST_ROUTING, FILTER, leaving));
        }
        chains
    }

    /// Drops what comes out of the tunnel for any but its own address: a server must not reach into the local network by a
    /// host that forwards, nor services of the host that listen on other addresses of it alone.
    fn inward(&self, v6: bool) -> Vec<Expression> {
        let family = if v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        let own = self.addresses.iter().find(|own| own.is_ipv6() == v6);
        let other = own.map(|own| destination(false, &IpNet::from(*own)));
        [
            interface(true, true, &self.interface),
            is_family(family),
            other.unwrap_or_default(),
            dropped(),
        ]
        .concat()
    }

    /// The mark of conversations that others have begun with the host.
    fn incoming(&self) -> Vec<u8> {
        (self.mark + 1).to_ne_bytes().to_vec()
    }

    fn leaving(&self, exclude: &[IpNet]) -> Vec<Vec<Expression>> {
        let tunnel = self.interface.as_str();
        let mark = vec![
            Expression::Meta(NFT_META_MARK),
            equals(self.mark.to_ne_bytes().to_vec()),
        ];
        let mut passes = vec![
            interface(false, true, "lo"),
            interface(false, true, tunnel),
            mark,
            interface(true, true, tunnel),
        ];
        for network in exclude {
            passes.push([is_family(family(network)), destination(true, network)].concat());
        }
        for (family, client, server) in [(NFPROTO_IPV4, 68_u16, 67_u16), (NFPROTO_IPV6, 546, 547)] {
            let ports = [client.to_be_bytes(), server.to_be_bytes()].concat();
            passes.push([is_family(family), transport(UDP, ports)].concat());
        }
        for kind in NEIGHBOURHOOD {
            passes.push([is_family(NFPROTO_IPV6), transport(ICMP6, vec![kind])].concat());
        }
        let accept = |rule: Vec<Expression>| [rule, vec![Expression::Accept]].concat();
        let passes = passes.into_iter().map(accept);
        passes.chain([dropped()]).collect()
    }
}

/// Deletes the table; one that is gone counts as deleted.
///
/// # Errors
/// What the kernel says.
pub fn delete_host_table(name: &str) -> io::Result<()> {
    // A journal is a file: no other table is deleted on its word.
    if name != HOST_TABLE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    delete(&NftSocket::open()?, name)
}

fn equals(value: Vec<u8>) -> Expression {
    Expression::Compare { equal: true, value }
}

/// Goes on if the packet is of this protocol and its header begins with these bytes.
fn transport(protocol: u8, bytes: Vec<u8>) -> Vec<Expression> {
    vec![
        Expression::Meta(NFT_META_L4PROTO),
        equals(vec![protocol]),
        Expression::Transport {
            offset: 0,
            length: bytes.len() as u32,
        },
        equals(bytes),
    ]
}

/// The table's name: a network namespace has one such client at a time.
pub const HOST_TABLE: &str = "adit_client";

/// Where packets are marked, behind connection tracking (linux/netfilter_ipv4.h, `NF_IP_PRI_MANGLE`).
const MANGLE: i32 = -150;

/// A destination that is the host's own (linux/rtnetlink.h).
const RTN_LOCAL: u32 = 2;

/// The direction of whoever began a conversation (`IP_CT_DIR_ORIGINAL`).
const ORIGINAL: u8 = 0;

const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// Types of ICMPv6 that a link needs (RFC 4861, RFC 3810): listeners to multicast groups, and what neighbours and
/// routers are asked and told. None leaves the link.
const NEIGHBOURHOOD: [u8; 6] = [131, 132, 133, 135, 136, 143];
