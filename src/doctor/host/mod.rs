//! What the host of a server gives it: judged from what was found, nothing is looked at here.
//!
//! What a start would refuse is in `service`; what lets clients' packets out, by either egress, in `egress`; how much there is
//! of what the kernel counts, in `resources`.

mod egress;
mod resources;
mod service;

pub use egress::{Device, Filter, Situation, conntrack, forwarding, nftables, ping, tun};
pub use resources::{Descriptors, backlog, buffers, descriptors};
pub use service::{certificate, clients, port, state};
