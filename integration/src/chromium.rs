//! Runs headless Chromium, the client that most people use.

use std::{net::SocketAddr, os::unix::process::CommandExt, time::Duration};

use crate::{
    namespaces::Place,
    process::{self, Finished},
    skip,
};

/// The proxy setting of the browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// None: straight to the origin, to prove the scene.
    Direct,
    /// SOCKS5.
    Socks5(SocketAddr),
    /// HTTP.
    Http(SocketAddr),
}

/// The name under which the browser is installed, if it is.
pub fn program() -> Option<&'static str> {
    [
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ]
    .into_iter()
    .find(|name| skip::in_path(name))
}

/// Loads `url`, waits for its scripts, and returns the document as it then was on standard output.
///
/// # Panics
///
/// If Chromium cannot be run, or has not ended in 90 s.
pub fn dump(place: &Place, proxy: Proxy, url: &str) -> Finished {
    let profile = tempfile::Builder::new()
        .prefix("adit-chromium.")
        .tempdir()
        .expect("a folder for temporary files");
    let mut command = place.command(program().unwrap_or("chromium"));
    command
        .args([
            "--headless",
            "--no-sandbox", // which would not run as root, nor in most containers
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-sync",
            "--no-pings",
            "--virtual-time-budget=20000",
            "--timeout=60000",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .env("HOME", profile.path());
    match proxy {
        Proxy::Direct => command.arg("--no-proxy-server"),
        // without the second, Chromium goes to loopback addresses itself
        Proxy::Socks5(address) => command.args([
            &format!("--proxy-server=socks5://{address}"),
            "--proxy-bypass-list=<-loopback>",
        ]),
        Proxy::Http(address) => command.args([
            &format!("--proxy-server=http://{address}"),
            "--proxy-bypass-list=<-loopback>",
        ]),
    };
    command.args(["--dump-dom", url]);
    // its helpers end with it; a group of its own keeps signals of the terminal away
    command.process_group(0);
    process::run(command, Duration::from_secs(90))
}
