//! The server's own nftables table, spoken to the kernel directly: no `nft` program is needed.
//!
//! One table of family `inet` for each tunnel, named after it. With `tun: {name: adit0, masquerade: true}`:
//!
//! ```text
//! table inet adit_adit0 {                                  # flags owner: ends with the process, kernels since 5.12
//!   chain prerouting {
//!     type filter hook prerouting priority raw; policy accept;
//!     iifname "adit0" ip saddr != 10.86.0.0/24 counter drop         # foreign sources never leave the tunnel
//!     iifname "adit0" ip6 saddr != fd86::/64 counter drop
//!     iifname != "adit0" iifname != "lo" ip saddr 10.86.0.0/24 counter drop     # and nobody borrows a client's
//!     iifname != "adit0" iifname != "lo" ip6 saddr fd86::/64 counter drop
//!   }
//!   chain forward {
//!     type filter hook forward priority filter; policy accept;
//!     iifname "adit0" oifname "adit0" counter drop         # client to client is the router's business
//!     iifname "adit0" ct state invalid counter drop        # these would not be masqueraded
//!     oifname "adit0" ct state established,related accept
//!     oifname "adit0" ct status dnat accept                # what the host's owner forwards to a client
//!     oifname "adit0" counter drop                         # nobody outside opens a connection to a client
//!   }
//!   chain postrouting {
//!     type nat hook postrouting priority srcnat; policy accept;
//!     oifname != "adit0" ip saddr 10.86.0.0/24 masquerade
//!     oifname != "adit0" ip6 saddr fd86::/64 masquerade
//!   }
//! }
//! ```
//!
//! With `masquerade: false` there is no postrouting chain, and the forward chain holds the first rule alone: the host
//! is an ordinary router then, and replies may come back another way. A family without a network has no rules but the
//! first: all its packets from the tunnel are dropped.
//!
//! No clamping of the MSS: the inner MTU is a constant of the session that both ends' stacks know, and the interface
//! has it, so the kernel answers what is too big as it does on any link.
//!
//! # Other tables
//!
//! A packet passes every chain of a hook. Our `accept`, and our policy, cannot save it from a `drop` in somebody
//! else's chain: Docker, ufw and firewalld each have one. [`obstacles`] finds base chains at the forward hook that end
//! in a drop and hold no rule that accepts our interface, and names the command that adds one; we do not touch
//! foreign tables ourselves, for their owners rewrite them at will.
//!
//! Needs Linux 5.2 (masquerading in the `inet` family).

#[cfg(test)]
mod foreign;
pub mod host;
mod legacy;
pub mod lock;
mod message;
mod obstacle;
mod rules;
mod socket;

pub use self::obstacle::{Obstacle, has_table, is_loaded, obstacles};
pub use self::rules::{NftError, Rules, Table, delete_leftover, table_name};

#[cfg(test)]
pub(crate) use self::foreign::{Step, chains, load_foreign};
