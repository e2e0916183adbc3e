//! The whole host in the tunnel: `adit client --tun`, for those who have CAP_NET_ADMIN.
//!
//! # Theory of operation
//!
//! ```text
//!  programs ──▶ routing ─┬─ table 6865, 6866 ──▶ adit0 (TUN) ──▶ device ──▶ session A ──┐ lanes, with
//!                        └─ main: excluded, split ──▶ eth0                              ├─ mark 0x1ad1 ──▶ eth0
//!  programs ──▶ proxy, local resolver, forwards ──▶ netstack ──▶ session B ─────────────┘
//! ```
//!
//! Packets of the host come from a TUN device and go straight into a session of their own, as those of a command under
//! `adit run` do ([`super::device`]). Proxy, local resolver and forwards work beside it as in every client, by a netstack and
//! a second session with an inner address of its own: so no packet has to be told from another, and the ports of the one
//! are not those of the other. The first session, to which a fixed `address` goes, is the host's.
//!
//! What is changed in the host, in this order; all of it is journaled before, and undone in reverse:
//!
//! 1. The nftables table ([`crate::io::nft::host`]): marks for reverse-path filters, and the kill switch if there is one.
//!    It is there before anything is connected to.
//! 2. `net.ipv4.conf.all.src_valid_mark`, for reverse-path filters too.
//! 3. With the server's first configuration: the device's addresses and MTU (which end with it, and are not journaled);
//!    routes and rules ([`Plan`]).
//! 4. The host's name servers: `resolvectl` where systemd-resolved serves `/etc/resolv.conf`, else that file
//!    ([`crate::io::resolv`]).
//!
//! What the server says later is followed; where it takes a family's address away, that family goes nowhere. So is what other
//! programs do to rules, routes and `/etc/resolv.conf`, of which the kernel tells ([`crate::io::network`],
//! [`crate::io::file_watch`]).
//!
//! # Routing
//!
//! As wg-quick(8) has it: nothing of the host's own routes is changed, so they may come and go as links do. With
//! `routes: [0.0.0.0/0, 10.8.0.0/16]` and `exclude: [192.168.0.0/16]`, of IPv4:
//!
//! ```text
//! 6865: not fwmark 0x1ad1 lookup 6865         10.8.0.0/16 dev adit0, name servers dev adit0, throw 192.168.0.0/16
//! 6866: lookup main suppress_prefixlength 0   networks that the host has routes to, but not its default route
//! 6867: not fwmark 0x1ad1 lookup 6866         default dev adit0, throw 192.168.0.0/16
//! ```
//!
//! Networks that are written go before the host's own routes, the default route behind them: a printer in the local network
//! is reached as ever. Who speaks to the host from outside is answered there, but for a kill switch. `throw` hands the
//! packet on, to the host's own routes in the end. A family of which the server gives no address has `unreachable` in place
//! of the device, so that IPv6 does not leak where the tunnel has none. What the client sends itself bears the mark and is
//! not concerned.
//!
//! # Failing
//!
//! While the tunnel is down its routes stay: packets wait for a lane, or are dropped, and go nowhere else. When the client
//! is killed, the device ends and its routes with it, and the host goes on without a tunnel: what is left is undone by the
//! next start or by `adit cleanup`. With the kill switch nothing but what [`crate::io::nft::host`] lists leaves the host
//! meanwhile: also not to the local network, unless it is excluded, nor by routes that a DHCP server has put there. The
//! same where a client that served ends by a fault of its own, or one that follows it cannot start: then all but the kill
//! switch is undone.
//!
//! # Limits
//!
//! One such client in a network namespace; another is refused in words. Of the device, those of [`super::device`].

mod names;
mod plan;
mod serve;

pub use plan::Plan;
pub use serve::{Host, HostTunnelError};
