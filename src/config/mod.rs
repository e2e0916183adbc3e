//! Configuration: file, then environment, then flags, into validated types.

pub mod address;

pub use address::{AddressError, Host, LaneAddr, Scheme};
