//! The client: a local proxy, a userspace stack and one session to the server.

pub mod associate;
mod beside;
pub mod connect;
pub mod control;
pub mod device;
pub mod direct;
pub mod dns;
pub mod driver;
pub mod enclosed;
pub mod enclosure;
pub mod enrol;
pub mod forwards;
pub mod host;
pub(crate) mod inside;
mod lanes;
mod link;
mod notices;
mod peers;
pub mod proxies;
pub mod proxy;
pub mod reload;
pub mod resolve;
pub mod rules;
pub mod run;
pub mod shared;
pub mod status;
pub mod tunnel;
