//! Beside the tunnel: what a [rule](super::rules) with `direct` sends goes by ordinary sockets of this host.
//!
//! # Theory of operation
//!
//! ```text
//!  name ──▶ Direct::lookup (getaddrinfo on a thread) ──▶ addresses ──▶ judged again, one by one
//!  address ──▶ Direct::connect ──▶ DirectFlow ──▶ relay: the application's socket ⇄ the origin's
//!  datagram ──▶ DirectUdp ──▶ one socket of each family for an association, whoever it speaks with
//! ```
//!
//! A [`Direct`] is asked only after the rules have said so: it judges nothing itself. TCP is copied by the task that
//! served the application's request, through two buffers, and ends as it ended at the other side: in order, or by a reset.
//! Datagrams are the driver's, as those of the tunnel are, since one association may send to both.
//!
//! # Limits
//!
//! [`MAX_FLOWS`] TCP flows of a client at once, each with two buffers of [`BUFFER`] bytes; [`CONNECT_TIMEOUT`] for each
//! attempt; [`MAX_LOOKUPS`] names at once, beyond which questions wait for as long as a lookup may take. What
//! a flow ended by is counted in [`DirectStats`].

mod lookup;
mod tcp;
mod udp;

pub use lookup::MAX_LOOKUPS;
pub use tcp::{BUFFER, CONNECT_TIMEOUT, DirectFlow, DirectStats, MAX_FLOWS};
pub(super) use udp::DirectUdp;

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::io::outside::Outside;

/// Opens what goes beside the tunnel; cheap to clone.
#[derive(Clone, Debug)]
pub struct Direct {
    flows: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    stats: Arc<DirectStats>,
    outside: Outside,
}

impl Direct {
    /// Makes the one that all proxies of a client share.
    pub fn new() -> Self {
        Self::leaving(Outside::default())
    }

    /// Makes it for a host that goes through the tunnel itself.
    pub fn leaving(outside: Outside) -> Self {
        Self {
            outside,
            flows: Arc::new(Semaphore::new(MAX_FLOWS)),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            stats: Arc::default(),
        }
    }

    /// Returns how its sockets leave the host.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Returns how many TCP flows there are, with those that are being connected.
    pub fn flows(&self) -> usize {
        MAX_FLOWS.saturating_sub(self.flows.available_permits())
    }

    /// Returns what was counted.
    pub fn stats(&self) -> &DirectStats {
        &self.stats
    }
}

impl Default for Direct {
    fn default() -> Self {
        Self::new()
    }
}
