//! Tests that need more than they are given say so; where nothing may be skipped, they fail.

use std::path::Path;

use crate::process;

/// What a test needs beside a Rust toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The rights of root: to make network namespaces and to drop rights.
    Root,
    /// A program in the path.
    Tool(&'static str),
    /// A /dev/net/tun that can be opened.
    Tun,
}

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
    false
}

impl Need {
    /// Why this need is not met, if it is not.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root if !process::is_root() => Some("needs root".to_owned()),
            Self::Tool(name) if !in_path(name) => Some(format!("needs the program {name}")),
            Self::Tun if !tun_opens() => Some("needs /dev/net/tun".to_owned()),
            Self::Root | Self::Tool(_) | Self::Tun => None,
        }
    }
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // where Debian keeps what only root runs is often missing from the path of others
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(name).is_file())
}

fn tun_opens() -> bool {
    std::fs::File::options()
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
