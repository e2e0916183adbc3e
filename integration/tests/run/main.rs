//! `adit run`: commands of an ordinary user, whose packets go through the tunnel or nowhere.

mod command;
mod leaks;
mod programs;
mod refused;
mod scene;
mod sessions;
mod shared;

use std::time::Duration;

use adit_integration::skip::Need;

/// What all of these need.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tun,
    Need::Tool("ip"),
    Need::Tool("curl"),
    Need::Tool("setpriv"),
];
/// What users run.
const PROGRAMS: &[Need] = &[
    Need::Tool("dig"),
    Need::Tool("ping"),
    Need::Tool("git"),
    Need::Tool("iperf3"),
];
/// The hang guard of one step.
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7443;
