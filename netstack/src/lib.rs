//! Placeholder.

mod offload;

pub use offload::{Checksum, Gso, Offload, VirtioFields};
