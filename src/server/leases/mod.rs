//! Inner addresses and who holds them: leases from an IPv4 and an IPv6 pool.
//!
//! A lease belongs to an [`Owner`], a client's key and one of its instances, and stays its own across reconnects
//! and restarts until it has not been used for [`Settings::expiry`].
//!
//! ```text
//!            acquire                 release (last holder)           expiry, or its address is
//!  (none) ───────────▶ held by n ───────────────────────▶ idle ───▶ needed and nothing is free
//!                       ▲  ▲  ▲           acquire          │
//!                       │  │  └────────────────────────────┘
//!                       │  └── left: its instance said goodbye; the client's next instance takes it over
//!                       └── away: held when the state was saved; kept for its owner for a minute
//! ```
//!
//! An instance lasts as long as its process, and that of a client which was killed goes on in the next one (`client::instance`).
//! So a client that ends and starts again has the same addresses, while one that is merely out of reach finds its own when
//! it is back.
//!
//! The pool's first host address is the gateway, the server's own. A dynamic lease takes the lowest free address; a
//! client's fixed address is never leased to others, and goes to the first of its instances that asks; once that one
//! has no lane left, the registry gives it to the next instance that comes. When nothing
//! is free, the lease that has been idle longest is taken away. Memory is in proportion to leases, not to networks.
//!
//! The clock is the wall clock, since leases outlive the process; one that jumps back only prolongs leases.

mod pool;
mod saved;
mod table;
#[cfg(test)]
mod tests;

pub use saved::RestoreError;
pub use table::{Fixed, Instance, Lease, LeaseError, Leases, Owner, Restored, Settings};
