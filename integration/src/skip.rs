//! Tests that need more than they are given say so; where nothing may be skipped, they fail.

use std::{fs::File, io::Write, path::Path};

use crate::{chromium, netem, process};

/// What a test needs beside a Rust toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The rights of root: to make network namespaces and to drop rights.
    Root,
    /// A program in the path.
    Tool(&'static str),
    /// Chromium or Chrome.
    Browser,
    /// A /dev/net/tun that can be opened.
    Tun,
    /// `tc netem`, in this kernel or in one that can be booted.
    Netem,
}

/// What a lab of network namespaces needs in which an ordinary user runs the program, and curl fetches.
pub const LAB: &[Need] = &[
    Need::Root,
    Need::Tool("ip"),
    Need::Tool("nft"),
    Need::Tool("curl"),
    Need::Tool("setpriv"),
];

/// Returns whether everything in `needs` is there; if not, prints `skipped: <reason>`.
///
/// # Panics
///
/// If something is missing while the environment variable `ADIT_CI` is 1: there, nothing may be skipped.
pub fn can_run(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else {
        return true;
    };
    assert!(
        std::env::var("ADIT_CI").as_deref() != Ok("1"),
        "cannot be skipped here: {reason}"
    );
    println!("skipped: {reason}");
    note(&reason);
    false
}

/// Adds test and reason to the file of `ADIT_SKIPPED`, from which `cargo ci` makes its summary.
fn note(reason: &str) {
    let Some(path) = std::env::var_os("ADIT_SKIPPED") else {
        return;
    };
    let thread = std::thread::current();
    let line = format!("{}: {reason}\n", thread.name().unwrap_or("a test"));
    // the summary is a service; a test does not fail because it cannot be written
    if let Ok(mut file) = File::options().append(true).create(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}

impl Need {
    /// Why this need is not met, if it is not.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root if !process::is_root() => Some("needs root".to_owned()),
            Self::Tool(name) if !in_path(name) => Some(format!("needs the program {name}")),
            Self::Browser if chromium::program().is_none() => Some("needs Chromium".to_owned()),
            Self::Tun if !tun_opens() => Some("needs /dev/net/tun".to_owned()),
            Self::Netem => netem::missing(),
            Self::Root | Self::Tool(_) | Self::Browser | Self::Tun => None,
        }
    }
}

/// Whether a program of this name is in the path.
pub(crate) fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // where Debian keeps what only root runs is often missing from the path of others
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(name).is_file())
}

fn tun_opens() -> bool {
    File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev/net/tun"))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_is_named() {
        let need = Need::Tool("no-such-program-anywhere");
        assert!(
            need.missing()
                .is_some_and(|reason| reason.contains("no-such-program-anywhere"))
        );
        assert_eq!(Need::Tool("sh").missing(), None);
    }
}
