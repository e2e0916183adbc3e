//! Unix sockets that are listened on: made with the right mode, taken over from the dead, removed at the end.
//!
//! A socket's file outlives the process that made it. Whoever finds one asks it: where a connection is refused, nobody
//! listens any more, and the file is replaced; where it is taken, somebody does, and the file stays his. Two processes
//! that do this at once take turns by a lock on the folder, which lasts from the question until the new socket listens.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// A Unix socket that is listened on. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file that is ours.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`, for the own user alone.
    ///
    /// To be called inside a tokio runtime. Does not wait for longer than a second.
    ///
    /// # Errors
    ///
    /// [`UnixError`]: somebody listens there, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, UnixError> {
        let failed = |error| UnixError::Io {
            path: path.to_owned(),
            error,
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        };
        // Without a lock (a folder that may be searched and not read) the question alone decides.
        let _turn = turn(folder).ok();
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(failed)?;
        // The file gets the mode of the socket: nobody else can connect even for a moment.
        let file = File::from(OwnedFd::from(socket));
        file.set_permissions(Permissions::from_mode(MODE))
            .map_err(failed)?;
        let socket = Socket::from(OwnedFd::from(file));
        SockAddr::unix(path)
            .and_then(|address| socket.bind(&address))
            .and_then(|()| socket.listen(BACKLOG))
            .map_err(failed)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into()).map_err(failed)?;
        Ok(Self {
            listener,
            file: identity(path),
            path: path.to_owned(),
        })
    }

    /// Waits for a connection. Safe to cancel.
    ///
    /// # Errors
    ///
    /// What accept(2) answers.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        Ok(stream)
    }

    /// Returns where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another may have taken the place of a file that somebody had removed.
        if self.file.is_some() && identity(&self.path) == self.file {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Why a Unix socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnixError {
    /// Somebody listens there.
    #[error("{}: another process listens there", path.display())]
    Held {
        /// The socket.
        path: PathBuf,
    },
    /// There is something that is no socket.
    #[error("{}: there is a file that is no socket: remove it, or choose another path", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
}

/// Removes the file of a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> Result<(), UnixError> {
    let failed = |error| UnixError::Io {
        path: path.to_owned(),
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(UnixError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match ask(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(()) | Err(_) => Err(UnixError::Held {
            path: path.to_owned(),
        }),
    }
}

/// Asks who listens there, without waiting: a full backlog is somebody's, too.
fn ask(path: &Path) -> io::Result<()> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)
        .and_then(|socket| socket.connect(&SockAddr::unix(path)?))
}

/// Whether nobody listens on that socket any more; to be asked with the folder [`locked`], or one that is about to be
/// listened on seems so, too.
pub(super) fn is_dead(path: &Path) -> bool {
    ask(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Has our turn in `folder`, if nobody else has it for the moment; it ends when the file is dropped.
pub(super) fn locked(folder: &Path) -> io::Result<Option<File>> {
    let file = File::open(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits for our turn in `folder`.
fn turn(folder: &Path) -> io::Result<Option<File>> {
    for _ in 0..TURNS {
        match locked(folder)? {
            Some(file) => return Ok(Some(file)),
            None => thread::sleep(TURN),
        }
    }
    // A lock that is never given back is no reason not to serve: the question alone is nearly as good.
    Ok(None)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// For the owner alone.
const MODE: u32 = 0o600;

/// Connections that may wait to be accepted; the kernel bounds it too (`net.core.somaxconn`).
const BACKLOG: i32 = 1024;

/// How often a turn is asked for: for a second in all.
const TURNS: u32 = 50;

/// How long between two times.
const TURN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use super::*;

    #[tokio::test]
    async fn socket_of_the_dead_is_replaced_and_that_of_the_living_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists(), "it outlives its listener");
        let first = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(UnixError::Held { .. })));
        let (near, far) = tokio::join!(UnixStream::connect(&path), first.accept());
        assert!(near.is_ok() && far.is_ok(), "it was not touched");
        drop(first);
        assert!(!path.exists());
        Listener::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn socket_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = Listener::bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o600, 0, "{mode:o}");
    }

    #[tokio::test]
    async fn file_that_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "mine").unwrap();
        let refused = Listener::bind(&path);
        assert!(matches!(refused, Err(UnixError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn file_that_has_been_replaced_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = StdListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }
}
