//! The sans-IO session: handshake, keys, lanes, scheduling and timers.

pub mod identity;
