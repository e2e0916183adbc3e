//! The server: peers, leases, routing and egress.

pub mod accept;
pub mod control;
pub mod datagrams;
pub mod dns;
pub mod egress;
pub mod enrolment;
pub mod filter;
pub mod lease_store;
pub mod leases;
pub mod ledger;
pub mod listening;
pub mod local;
pub mod orders;
pub mod peers;
pub mod reach;
pub mod registry;
pub mod reload;
pub mod roll;
pub mod router;
pub mod run;
pub mod session;
pub mod shared;
pub mod start;
pub mod status;
pub mod unconfirmed;
pub mod unlisted;
