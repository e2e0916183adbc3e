//! `adit client --tun`: the whole host in the tunnel, and as it was when that is over.

mod leaks;
mod names;
mod network;
mod scene;
mod whole;

use std::time::Duration;

use adit_integration::skip::Need;

/// What all of these need.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Tun,
    Need::Tool("ip"),
    Need::Tool("nft"),
    Need::Tool("curl"),
    Need::Tool("ping"),
    Need::Tool("dig"),
];
/// The hang guard of one step.
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7443;

/// An address of the server host that the client has no route to but the default one.
const FAR: &str = "12.0.0.1";

#[track_caller]
fn wait_for(what: &str, done: impl FnMut() -> bool) {
    adit_integration::scene::wait_for(what, SOON, done);
}
