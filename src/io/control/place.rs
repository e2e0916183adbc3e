//! Where control sockets are, and which of them is meant.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use thiserror::Error;

/// Why there is no control socket to be named.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The folder cannot be made.
    #[error("{}: {error}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The folder is not ours alone.
    #[error("{}: this folder must belong to this user, and nobody else may enter it (its mode is {mode:04o})", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Names the user's control socket `name` in `runtime`, the folder that `XDG_RUNTIME_DIR` names, or in one of the same
/// kind where there is none.
pub fn usual(runtime: Option<&Path>, name: &str) -> PathBuf {
    folder(runtime).join(format!("{name}{SUFFIX}"))
}

/// Makes the folder of `socket`, if it is the usual one, and makes sure that it is the user's alone.
///
/// # Errors
///
/// [`PlaceError`].
pub(crate) fn prepare(socket: &Path) -> Result<(), PlaceError> {
    let Some(folder) = socket.parent() else {
        return Ok(());
    };
    let failed = |error| PlaceError::Folder {
        folder: folder.to_owned(),
        error,
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    // Others can make folders in /tmp, links to folders among them.
    let metadata = fs::symlink_metadata(folder).map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || mode & 0o077 != 0 {
        return Err(PlaceError::Foreign {
            folder: folder.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Lists the user's control sockets whose name begins with `kind`, those of the dead among them.
pub fn find(runtime: Option<&Path>, kind: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder(runtime)) else {
        return Vec::new();
    };
    let is_one = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(kind)
            && name.ends_with(SUFFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_socket())
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(is_one)
        .take(MAX_FOUND)
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn folder(runtime: Option<&Path>) -> PathBuf {
    let user = geteuid();
    match runtime {
        Some(runtime) => runtime.join("adit"),
        None if user.is_root() => PathBuf::from("/run/adit"),
        None => PathBuf::from(format!("/tmp/adit-{}", user.as_raw())),
    }
}

const SUFFIX: &str = ".sock";

/// Sockets looked at: more clients than anybody runs.
const MAX_FOUND: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn folder_is_made_for_the_user_alone_and_a_wider_one_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let socket = usual(Some(runtime.path()), "client-a");
        prepare(&socket).unwrap();
        prepare(&socket).unwrap();
        let folder = socket.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(folder, fs::Permissions::from_mode(0o750)).unwrap();
        let refused = prepare(&socket).unwrap_err();
        assert!(matches!(refused, PlaceError::Foreign { mode: 0o750, .. }));
    }

    #[test]
    fn link_in_place_of_the_folder_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), runtime.path().join("adit")).unwrap();
        let refused = prepare(&usual(Some(runtime.path()), "client-a"));
        assert!(matches!(refused, Err(PlaceError::Foreign { .. })));
    }

    #[test]
    fn sockets_of_a_kind_are_found_and_nothing_else() {
        let runtime = tempfile::tempdir().unwrap();
        assert!(find(Some(runtime.path()), "client-").is_empty());
        let place = |name| usual(Some(runtime.path()), name);
        prepare(&place("client-b")).unwrap();
        let _sockets: Vec<_> = ["client-b", "client-a", "server-a"]
            .map(|name| UnixListener::bind(place(name)).unwrap())
            .into();
        fs::write(place("client-c"), "no socket").unwrap();
        let found = find(Some(runtime.path()), "client-");
        assert_eq!(found, [place("client-a"), place("client-b")]);
    }
}
