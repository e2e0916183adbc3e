//! Adit: a VPN whose client needs no root.
//!
//! This page is the architecture page of the project.

pub mod cli;
pub mod client;
pub mod config;
pub mod io;
pub mod proto;
pub mod server;
pub mod wire;
