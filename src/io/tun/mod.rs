//! The `tun` egress: a TUN device with the host's kernel routing and masquerading behind it.
//!
//! ```text
//!                 this process                                 the kernel
//!  router ──▶ Tun::try_write  ──▶ /dev/net/tun ──▶ adit0 ──▶ routing ──▶ masquerade ──▶ eth0 ──▶ Internet
//!  router ◀── Tun::try_read   ◀── (super-packets)     ◀── conntrack, forward            ◀──
//! ```
//!
//! - [`Tun`] ([`device`]) is the descriptor: it reads and writes packets of up to 64 KiB behind a
//!   [`VirtioHeader`] ([`virtio`]), which says where a super-packet is to be cut and whether its checksum is owed.
//! - [`exchange`] moves packets between it and the buffers of frames, in place.
//! - [`setup`] ([`egress`]) brings the host into the state the tunnel needs, and gives back an [`Undo`].
//!
//! # What `setup` changes, in order
//!
//! 1. What a killed predecessor left is undone, by its journal.
//! 2. The network is compared with the host's addresses and routes; an overlap is an error.
//! 3. The TUN device is opened, and given the MTU, the gateway's addresses (the kernel adds the route to the network),
//!    and the state up. It is not persistent: it ends, with its addresses and routes, when its descriptor is closed,
//!    even by SIGKILL. Nothing about it needs a journal. Where it may, it also has the kernel share out its work over the
//!    processors ([`steering`]).
//! 4. The nftables table `adit_<name>` is loaded ([`crate::io::nft`]): it is there before the first packet is
//!    forwarded. Journaled; on kernels since 5.12 it also ends with the process.
//! 5. Forwarding is switched on where it is off ([`crate::io::sysctl`]). Journaled.
//! 6. Foreign rules that would drop what we forward are looked for, and reported with their remedy.
//!
//! # Restarts
//!
//! The addresses a client's flows were masqueraded under are kept by the kernel's connection tracking and not by our
//! table, so a flow goes on when the server is back, with its old numbers, if its client resumes its session. Only
//! while the server is away nobody translates: a packet of the origin that arrives then is for the host itself, which
//! answers it with a reset. An idle flow survives.
//!
//! # Errors and privilege
//!
//! An error at any step undoes what came before it. All of it needs CAP_NET_ADMIN and nothing more, and none of the
//! programs `ip`, `nft` or `sysctl`.

pub mod device;
pub mod egress;
pub mod exchange;
mod steering;
pub mod virtio;

pub use device::{DEVICE, OpenError, READ_LEN, Tun, create, exists, hold_node, look};
pub use egress::{
    SetupError, TunEgress, TunSettings, Undo, UndoError, Warning, calm_interface, clean_up, setup,
};
pub use virtio::{VirtioError, VirtioHeader};

#[cfg(test)]
pub(crate) mod tests;
