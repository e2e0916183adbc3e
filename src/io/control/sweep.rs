//! Removes what programs that were killed have left in a folder of control sockets.
//!
//! A socket's file outlives its process, and where a program has its place by its keys, the next one there is another's as
//! a rule: the files of the dead would become ever more. So whoever has begun to listen looks at the others of its kind.
//!
//! ```text
//! client-K-S.sock             refuses a connection: nobody listens, removed
//! client-K-S.sock.instance    without a socket beside it: removed once it is KEPT old, since the next process of these
//!                             keys goes on with it, for as long as the server holds what the dead one had
//! ```
//!
//! It is done under the lock of the folder, which whoever listens anew has from the question for the old socket until the
//! new one listens ([`crate::io::unix`]): without it, a socket that is about to be listened on would be taken for a dead
//! one's. Where the lock is not to be had, nothing is swept. Files of other users, and what is neither a socket nor such a
//! companion, stay.

use std::fs::{self, DirEntry, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::geteuid;

use crate::io::unix::{is_dead, locked};

/// What is added to a socket's name for what the next process of the same keys goes on with.
pub const COMPANION: &str = ".instance";

/// Sweeps `folder` of the dead whose names begin with `kind`; returns how many files are gone.
///
/// # Errors
///
/// The folder cannot be read.
pub(super) fn sweep(folder: &Path, kind: &str, now: SystemTime) -> io::Result<usize> {
    let Some(_turn) = locked(folder)? else {
        return Ok(0);
    };
    let is_ours = |entry: &DirEntry| {
        let is_of_user =
            (entry.metadata()).is_ok_and(|metadata| metadata.uid() == geteuid().as_raw());
        is_of_user && entry.file_name().to_string_lossy().starts_with(kind)
    };
    let mut entries: Vec<DirEntry> = (fs::read_dir(folder)?.filter_map(Result::ok))
        .filter(is_ours)
        .take(MAX_SWEPT)
        .collect();
    // A socket before its companion, which begins with its name.
    entries.sort_by_key(DirEntry::file_name);
    let mut gone = 0;
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(of) = entry.file_type() else { continue };
        let is_over = match name.strip_suffix(COMPANION) {
            None => {
                let is_over = name.ends_with(SUFFIX) && of.is_socket() && is_dead(&path);
                if is_over {
                    // It is of use from the kill on, not from the start.
                    let _ = touch(&folder.join(format!("{name}{COMPANION}")), now);
                }
                is_over
            }
            Some(socket) => of.is_file() && !folder.join(socket).exists() && is_old(&entry, now),
        };
        if is_over && fs::remove_file(&path).is_ok() {
            gone += 1;
        }
    }
    Ok(gone)
}

/// Whether nobody goes on with it any more.
fn is_old(entry: &DirEntry, now: SystemTime) -> bool {
    let written = entry.metadata().and_then(|metadata| metadata.modified());
    // One of the future is of a clock that was wrong.
    written.is_ok_and(|written| now.duration_since(written).map_or(true, |age| age >= KEPT))
}

fn touch(file: &Path, now: SystemTime) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(file)?;
    file.set_times(FileTimes::new().set_modified(now))
}

/// What the names of control sockets end in.
pub(super) const SUFFIX: &str = ".sock";

/// A server holds a session that it does not hear of for a minute; and somebody has to start the client again.
const KEPT: Duration = Duration::from_secs(10 * 60);

/// Files looked at in one sweep; the next start takes the others.
const MAX_SWEPT: usize = 256;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_of_the_dead_go_and_those_of_the_living_and_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let _living = UnixListener::bind(at("client-living.sock")).unwrap();
        fs::write(at("client-living.sock.instance"), "one").unwrap();
        drop(UnixListener::bind(at("client-dead.sock")).unwrap());
        fs::write(at("client-dead.sock.instance"), "two").unwrap();
        drop(UnixListener::bind(at("server-dead.sock")).unwrap());
        fs::write(at("client-file.sock"), "no socket").unwrap();
        fs::write(at("client-notes"), "mine").unwrap();
        let stay = [
            "client-file.sock",
            "client-living.sock",
            "client-living.sock.instance",
            "client-notes",
            "server-dead.sock",
        ];
        // The next process of the dead one's keys goes on with its instance, if it comes soon; all files here are old.
        let now = SystemTime::now() + 2 * KEPT;
        assert_eq!(sweep(folder.path(), "client-", now).unwrap(), 1);
        let mut with_instance = stay.to_vec();
        with_instance.insert(0, "client-dead.sock.instance");
        assert_eq!(names(folder.path()), with_instance);
        let soon = now + KEPT / 2;
        assert_eq!(sweep(folder.path(), "client-", soon).unwrap(), 0);
        assert_eq!(sweep(folder.path(), "client-", now + KEPT).unwrap(), 1);
        assert_eq!(names(folder.path()), stay);
    }

    #[test]
    fn nothing_is_swept_while_somebody_else_begins_to_listen() {
        let folder = tempfile::tempdir().unwrap();
        // Bound and not listened on yet: to whoever asks it seems dead.
        drop(UnixListener::bind(folder.path().join("client-a.sock")).unwrap());
        let turn = locked(folder.path()).unwrap().unwrap();
        assert_eq!(
            sweep(folder.path(), "client-", SystemTime::now()).unwrap(),
            0
        );
        drop(turn);
        assert_eq!(
            sweep(folder.path(), "client-", SystemTime::now()).unwrap(),
            1
        );
    }
}
