//! Where control sockets are, and which of them is meant.
//!
//! ```text
//! RUNTIME_DIRECTORY           what systemd has made for the unit
//! XDG_RUNTIME_DIR/adit        what a login has
//! /run/adit                   root's
//! /tmp/adit-<user's number>   where there is nothing else
//! ```
//!
//! A program listens in the first of these that its surroundings have; a command looks in all of them, since the shell it
//! was started from has others than the unit of the program. Root looks one folder deeper in /run/adit, too: a unit's
//! `RuntimeDirectory=adit/server` is there, which belongs to the unit's own user.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use thiserror::Error;
use tracing::{debug, warn};

use super::sweep::{SUFFIX, sweep};
use crate::io::clock;
use crate::io::unix::{Listener, UnixError};
use crate::proto::PublicKey;

/// Where a program is to listen for orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nowhere.
    Nowhere,
    /// Here, or the program does not start.
    At(PathBuf),
    /// At a place that follows from the surroundings, or nowhere.
    Usual {
        /// In the first of these that can be had; where somebody else listens by the same name, in none.
        listen: Vec<PathBuf>,
        /// Else here, where nobody else may be.
        own: Option<PathBuf>,
        /// Who wants to give it orders asks here, in this order.
        ask: Vec<PathBuf>,
    },
}

/// Why there is no control socket.
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
    #[error("{}: this folder must belong to this user, and nobody else may write to it (its mode is {mode:04o})", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It cannot be listened on.
    #[error("control: {0}")]
    Socket(#[from] UnixError),
}

/// The folders that there may be for sockets.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// What systemd has made for this unit.
    pub unit: Option<PathBuf>,
    /// What the user has while he is logged in.
    pub login: Option<PathBuf>,
    /// What root has, and where units have theirs.
    pub system: Option<PathBuf>,
    /// What there is when all else is missing.
    pub last: Option<PathBuf>,
}

impl Wanted {
    /// Where it may be listening, in the order in which to ask.
    pub fn paths(&self) -> &[PathBuf] {
        match self {
            Self::Nowhere => &[],
            Self::At(path) => std::slice::from_ref(path),
            Self::Usual { ask, .. } => ask,
        }
    }

    /// Listens there; `None` where nothing is to be listened on, or no usual place can be had, which is warned of.
    ///
    /// To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// The socket that was named cannot be had.
    pub fn listen(&self) -> Result<Option<Listener>, PlaceError> {
        let (paths, own) = match self {
            Self::Nowhere => return Ok(None),
            Self::At(path) => return Ok(Some(Listener::bind(path)?)),
            Self::Usual { listen, own, .. } => (listen, own),
        };
        let mut last = None;
        let mut is_held = false;
        for path in paths.iter().chain(own) {
            if is_held && own.as_ref() != Some(path) {
                continue;
            }
            match prepare(path).and_then(|()| Ok(Listener::bind(path)?)) {
                Ok(listener) => {
                    sweep_beside(path);
                    return Ok(Some(listener));
                }
                Err(error) => {
                    debug!(%error, "not a place for the control socket");
                    is_held |= matches!(error, PlaceError::Socket(UnixError::Held { .. }));
                    last = Some(error);
                }
            }
        }
        if let Some(error) = last {
            warn!(
                "no control socket: {error}; `adit status` and the like do not reach this program: set `control` to another path, or to off"
            );
        }
        Ok(None)
    }
}

impl Surroundings {
    /// Asks the environment of this process.
    pub fn here() -> Self {
        let user = geteuid();
        // As the specification of the variables says: a relative path counts as none.
        let folder = |name| {
            let folder = env::var_os(name).map(PathBuf::from);
            folder.filter(|folder: &PathBuf| folder.is_absolute())
        };
        // systemd.exec(5): several folders are separated by colons.
        let unit = env::var("RUNTIME_DIRECTORY").ok().and_then(|folders| {
            let first = PathBuf::from(folders.split(':').next()?);
            // Of a dynamic user it is a link to a folder that only root and the unit can reach.
            let first = fs::canonicalize(&first).unwrap_or(first);
            first.is_absolute().then_some(first)
        });
        Self {
            unit,
            login: folder("XDG_RUNTIME_DIR").map(|folder| folder.join("adit")),
            system: user.is_root().then(|| PathBuf::from("/run/adit")),
            last: (!user.is_root()).then(|| PathBuf::from(format!("/tmp/adit-{}", user.as_raw()))),
        }
    }

    /// Names where a program listens in these surroundings by the name `name`, the best first.
    pub fn usual(&self, name: &str) -> Vec<PathBuf> {
        self.folders()
            .map(|folder| folder.join(file_name(name)))
            .collect()
    }

    /// Names where a program of that name may listen, also one with other surroundings.
    pub fn everywhere(&self, name: &str) -> Vec<PathBuf> {
        let units = self.units().map(|folder| folder.join(file_name(name)));
        self.usual(name).into_iter().chain(units).collect()
    }

    /// Lists the control sockets whose name begins with `kind`, those of the dead among them.
    pub fn find(&self, kind: &str) -> Vec<PathBuf> {
        let is_one = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(kind)
                && name.ends_with(SUFFIX)
                && entry.file_type().is_ok_and(|kind| kind.is_socket())
        };
        let folders = self.folders().map(Path::to_owned).chain(self.units());
        let mut found: Vec<PathBuf> = folders
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flat_map(|entries| entries.filter_map(Result::ok))
            .filter(is_one)
            .take(MAX_FOUND)
            .map(|entry| entry.path())
            .collect();
        found.sort();
        found.dedup();
        found
    }

    fn folders(&self) -> impl Iterator<Item = &Path> {
        [&self.unit, &self.login, &self.system, &self.last]
            .into_iter()
            .filter_map(|folder| folder.as_deref())
    }

    /// The folders of units, where this user may look for them.
    fn units(&self) -> impl Iterator<Item = PathBuf> {
        let entries = self.system.as_deref().map(fs::read_dir);
        let entries = entries.and_then(Result::ok).into_iter().flatten();
        entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            // Or a link to one, as above.
            .filter(|path| path.is_dir())
            .take(MAX_FOUND)
    }
}

/// Makes the folder of `socket`, if it is the usual one, and makes sure that nobody else can change what is in it.
///
/// # Errors
///
/// [`PlaceError`].
fn prepare(socket: &Path) -> Result<(), PlaceError> {
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
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || mode & 0o022 != 0 {
        return Err(PlaceError::Foreign {
            folder: folder.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Removes what others of the same kind have left beside `socket`: `client-…`, `server-…`, `try-…`.
fn sweep_beside(socket: &Path) {
    let name = socket.file_name().and_then(|name| name.to_str());
    let kind = name.and_then(|name| name.split_inclusive('-').next());
    let (Some(folder), Some(kind)) = (socket.parent(), kind.filter(|kind| kind.ends_with('-')))
    else {
        return;
    };
    match sweep(folder, kind, clock::unix()) {
        Ok(0) => {}
        Ok(files) => debug!(
            files,
            "what the dead have left beside the control socket is gone"
        ),
        Err(error) => debug!(%error, "what the dead have left stays"),
    }
}

fn file_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// Shortens a key for a socket's name.
pub fn short_key(key: &PublicKey) -> String {
    let plain = |c| match c {
        '/' => '_',
        '+' => '-',
        c => c,
    };
    key.to_string().chars().take(SHORT).map(plain).collect()
}

/// Characters of a key in a socket's name: 48 bits, since a path is short and nobody has many keys.
const SHORT: usize = 8;

/// Sockets looked at, and folders: more programs than anybody runs.
const MAX_FOUND: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn login(folder: &Path) -> Surroundings {
        Surroundings {
            login: Some(folder.join("adit")),
            ..Surroundings::default()
        }
    }

    fn usual(folder: &Path, name: &str) -> PathBuf {
        login(folder).usual(name).remove(0)
    }

    #[test]
    fn folder_is_made_for_the_user_alone_and_a_wider_one_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let socket = usual(runtime.path(), "client-a");
        prepare(&socket).unwrap();
        prepare(&socket).unwrap();
        let folder = socket.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(folder, fs::Permissions::from_mode(0o770)).unwrap();
        let refused = prepare(&socket).unwrap_err();
        assert!(matches!(refused, PlaceError::Foreign { mode: 0o770, .. }));
    }

    #[test]
    fn link_in_place_of_the_folder_is_refused() {
        let runtime = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), runtime.path().join("adit")).unwrap();
        let refused = prepare(&usual(runtime.path(), "client-a"));
        assert!(matches!(refused, Err(PlaceError::Foreign { .. })));
    }

    #[test]
    fn sockets_of_a_kind_are_found_and_nothing_else() {
        let runtime = tempfile::tempdir().unwrap();
        assert!(login(runtime.path()).find("client-").is_empty());
        let place = |name| usual(runtime.path(), name);
        prepare(&place("client-b")).unwrap();
        let _sockets: Vec<_> = ["client-b", "client-a", "server-a"]
            .map(|name| UnixListener::bind(place(name)).unwrap())
            .into();
        fs::write(place("client-c"), "no socket").unwrap();
        let found = login(runtime.path()).find("client-");
        assert_eq!(found, [place("client-a"), place("client-b")]);
    }

    #[test]
    fn root_finds_the_sockets_of_units_that_have_another_user() {
        let run = tempfile::tempdir().unwrap();
        let unit = run.path().join("server");
        fs::create_dir(&unit).unwrap();
        let of_unit = Surroundings {
            unit: Some(unit),
            ..Surroundings::default()
        };
        let root = Surroundings {
            system: Some(run.path().to_owned()),
            ..Surroundings::default()
        };
        let path = of_unit.usual("server-a").remove(0);
        let _socket = UnixListener::bind(&path).unwrap();
        assert_eq!(root.find("server-"), std::slice::from_ref(&path));
        assert!(root.everywhere("server-a").contains(&path));
        // of a unit with a dynamic user there is a link
        let link = run.path().join("client");
        let private = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(private.path(), &link).unwrap();
        let _other = UnixListener::bind(private.path().join("client-a.sock")).unwrap();
        assert_eq!(root.find("client-"), [link.join("client-a.sock")]);
        assert!(!root.usual("server-a").contains(&path));
    }

    #[tokio::test]
    async fn next_place_serves_where_the_first_cannot_be_had() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("no-folder"), "").unwrap();
        let own = folder.path().join("own");
        let listen = vec![
            folder.path().join("no-folder/server-a.sock"),
            own.join("control.sock"),
        ];
        let ask = listen.clone();
        let state = folder.path().join("state");
        let wanted = Wanted::Usual {
            listen,
            own: Some(state.join("control.sock")),
            ask,
        };
        let listener = wanted.listen().unwrap().unwrap();
        assert_eq!(listener.path(), own.join("control.sock"));
        // Somebody has the name: nobody looks for him elsewhere, so only a place of one's own is of use.
        let second = wanted.listen().unwrap().unwrap();
        assert_eq!(second.path(), state.join("control.sock"));
        assert!(wanted.listen().unwrap().is_none());
        assert!(Wanted::Nowhere.listen().unwrap().is_none());
        let named = Wanted::At(folder.path().join("no-folder/control.sock"));
        assert!(matches!(named.listen(), Err(PlaceError::Socket(_))));
    }
}
