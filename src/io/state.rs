//! The state directory: what a server or client remembers between two runs, held by one process at a time.
//!
//! ```text
//! <state directory>/        0700
//!   lock                    held by flock(2) for as long as a `StateDir` lives; holds the owner's process id
//!   <name>                  0600, replaced whole: temporary file, fsync, rename, fsync of the directory
//! ```
//!
//! The lock is the kernel's, so a killed process leaves nothing that would stop the next one. A reader sees the
//! former or the new content of a file and never a mixture, whatever moment the machine stopped at.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD};

use super::file::open_regular;

/// A state directory that this process holds the lock of; clones share the lock, and the last one releases it.
#[derive(Clone, Debug)]
pub struct StateDir {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// Open for as long as the lock is wanted: closing the last descriptor releases it.
    _lock: File,
}

impl StateDir {
    /// Creates the directory (0700, with its parents) if need be and takes its lock without waiting.
    ///
    /// # Errors
    /// [`StateError::Held`] when another process has the lock, with its process id where it could be read;
    /// [`StateError::Directory`] or [`StateError::File`] when the file system refuses.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| StateError::Directory {
                path: path.clone(),
                source,
            })?;
        let lock_path = path.join(LOCK_NAME);
        let failed = |source| StateError::File {
            path: lock_path.clone(),
            source,
        };
        // The content is not truncated here: until the lock is ours it is the holder's.
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock_path)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = holder(&mut lock);
                return Err(StateError::Held {
                    path,
                    holder: Holder(pid),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        lock.set_len(0).map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        sweep(&path);
        Ok(Self {
            held: Arc::new(Held { path, _lock: lock }),
        })
    }

    /// Writes `bytes` to the file `name` in the directory, whole or not at all, readable by the owner alone.
    ///
    /// When this returns, the new content outlives a power cut.
    ///
    /// # Errors
    /// [`StateError::File`] when the file system refuses; [`StateError::Name`] when `name` is not a plain name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.file(name)?;
        write_atomically(&path, bytes).map_err(|source| StateError::File { path, source })
    }

    /// Removes the file `name`; one that is not there counts as removed.
    ///
    /// # Errors
    /// As [`StateDir::write`].
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name)?;
        let removed = match fs::remove_file(&path) {
            Ok(()) => sync_directory(&self.held.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(|source| StateError::File { path, source })
    }

    /// Reads the file `name`: `None` when it does not exist.
    ///
    /// # Errors
    /// [`StateError::TooLarge`] above [`MAX_FILE_LEN`]; else as [`StateDir::write`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.file(name)?;
        // Root cleans up in folders of others, too.
        let file = match open_regular(&path, MAX_FILE_LEN) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(StateError::TooLarge {
                    path,
                    limit: MAX_FILE_LEN,
                });
            }
            Err(source) => return Err(StateError::File { path, source }),
        };
        let mut bytes = Vec::new();
        match file.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes) {
            Ok(length) if length as u64 > MAX_FILE_LEN => Err(StateError::TooLarge {
                path,
                limit: MAX_FILE_LEN,
            }),
            Ok(_) => Ok(Some(bytes)),
            Err(source) => Err(StateError::File { path, source }),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.held.path
    }

    /// The path of the file `name`, which must stay inside the directory and leave the lock alone.
    fn file(&self, name: &str) -> Result<PathBuf, StateError> {
        let plain =
            !name.is_empty() && !name.starts_with('.') && !name.contains('/') && name != LOCK_NAME;
        if plain {
            Ok(self.held.path.join(name))
        } else {
            Err(StateError::Name {
                name: name.to_owned(),
            })
        }
    }
}

/// Who may read a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner alone: mode 0600.
    Owner,
    /// Everybody: mode 0644, whatever the process's mask is.
    All,
}

impl Readers {
    /// Lets them read a file that has no name yet, or a passing one: by the name it will have, another file might be met
    /// where others can write to the folder.
    fn admit(self, file: &File) -> io::Result<()> {
        match self {
            Self::Owner => Ok(()),
            Self::All => file.set_permissions(fs::Permissions::from_mode(0o644)),
        }
    }
}

/// Replaces the file at `path` by `bytes`, whole or not at all, with mode 0600.
///
/// A temporary file in the same directory is written and flushed to the disk, renamed over `path`, and the directory
/// flushed, so that a crash at any point leaves the former content or the new one.
///
/// # Errors
/// Whatever the file system says; the temporary file is removed then.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically_for(Readers::Owner, path, bytes)
}

/// As [`write_atomically`], for these readers.
///
/// # Errors
/// As there.
pub fn write_atomically_for(readers: Readers, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = folder_of(path);
    write_beside(directory, readers, bytes)?
        .persist(path)
        .map_err(|error| error.error)?;
    sync_directory(directory)
}

/// Replaces the file at `path`, which is there, by `bytes`, whole or not at all; whose it is and who may use it stays.
///
/// # Errors
/// As [`write_atomically`], also where this user cannot make a file that is so.
pub fn rewrite_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = folder_of(path);
    let former = fs::metadata(path)?;
    let file = write_beside(directory, Readers::Owner, bytes)?;
    let made = file.as_file().metadata()?;
    if (former.uid(), former.gid()) != (made.uid(), made.gid()) {
        fchown(file.as_file(), Some(former.uid()), Some(former.gid()))?;
    }
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(former.mode() & 0o777))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_directory(directory)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Makes a file of these bytes at `path`, whole or not at all, with mode 0600, unless there is one.
///
/// It has no name before it is whole, so that a process that is killed meanwhile leaves nothing; but for file systems that
/// know no such files, where it may leave one of a name that begins with `.adit-`.
///
/// # Errors
/// `AlreadyExists`, and whatever else the file system says.
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new_for(Readers::Owner, path, bytes)
}

/// As [`write_new`], for these readers.
///
/// # Errors
/// As there.
pub fn write_new_for(readers: Readers, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = folder_of(path);
    match write_unnamed(directory, readers, path, bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // Not there, or no /proc to name it by; whatever else is wrong is said of the other way.
        Err(_) => {
            write_beside(directory, readers, bytes)?
                .persist_noclobber(path)
                .map_err(|error| error.error)?;
        }
    }
    sync_directory(directory)
}

/// Writes a file without a name, and gives it that of `path`.
fn write_unnamed(directory: &Path, readers: Readers, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .mode(FILE_MODE)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)?;
    file.write_all(bytes)?;
    readers.admit(&file)?;
    file.sync_all()?;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Writes a file of a passing name in `directory`.
fn write_beside(
    directory: &Path,
    readers: Readers,
    bytes: &[u8],
) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(fs::Permissions::from_mode(FILE_MODE))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    readers.admit(file.as_file())?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Removes what a killed write has left in a state folder, whose lock the caller has.
fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_unfinished = name.to_string_lossy().starts_with(UNFINISHED);
        if is_unfinished && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _gone = fs::remove_file(entry.path());
        }
    }
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another process works on this directory.
    #[error(
        "the state directory {} is in use by {holder}: stop it, or give this one a state directory of its own",
        path.display()
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The directory cannot be made or opened.
    #[error("cannot create the state directory {}: {source}{}", path.display(), remedy(path, source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file in it cannot be read or written.
    #[error("cannot use the state file {}: {source}{}", path.display(), remedy(path, source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is larger than anything this program writes.
    #[error("the state file {} is larger than {limit} bytes and was not written by this program", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A name that is not a plain file name.
    #[error("{name:?} is not a name of a state file")]
    Name {
        /// The name.
        name: String,
    },
}

/// What helps where a state folder, or the file at `path` in it, is another user's.
fn remedy(path: &Path, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let here = rustix::process::geteuid().as_raw();
    let mut owners = path
        .ancestors()
        .filter_map(|at| Some(fs::metadata(at).ok()?.uid()));
    let whose = match owners.next() {
        Some(owner) if owner != here => format!("it is user {owner}'s, and this is user {here}"),
        Some(_) | None => format!("this is user {here}"),
    };
    format!(
        "; {whose}: run it as the user who ran it before, give that folder to this one (chown -R), or name another by --state-dir"
    )
}

/// The process that holds a state directory, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(pub Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => write!(f, "another process"),
        }
    }
}

/// The process id in the lock file; none while its holder has not written it yet.
fn holder(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.rewind().ok()?;
    // A process id has at most ten digits.
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Looks who has the lock of a state folder, and takes nothing: in the moment that even a shared lock was held, its owner
/// could not start. `None` where nobody has it, as far as this user and process namespace can see.
pub fn locked_by(folder: &Path) -> Option<Holder> {
    let path = folder.join(LOCK_NAME);
    let file = fs::metadata(&path).ok()?;
    let written = open_regular(&path, MAX_FILE_LEN)
        .ok()
        .and_then(|mut lock| holder(&mut lock));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let mut owners = locks.lines().filter_map(|line| flock_on(line, file.ino()));
    let owner = owners.find(|(pid, device)| *device == file.dev() || written == Some(*pid))?;
    Some(Holder(Some(owner.0)))
}

/// Reads the process and the device of an exclusive flock(2) on this inode from a line of proc_locks(5). On some file
/// systems the device is not that of stat(2).
fn flock_on(line: &str, inode: u64) -> Option<(u32, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields.as_slice() else {
        return None;
    };
    let [major, minor, locked] = file.splitn(3, ':').collect::<Vec<_>>().try_into().ok()?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let device = rustix::fs::makedev(number(major)?, number(minor)?);
    (locked.parse() == Ok(inode)).then_some((pid.parse().ok()?, device))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(directory) => directory.sync_all(),
        // One that may be written to and not read still holds the file.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// The largest state file that is read, in bytes: a thousand times what ten thousand leases need is still below.
pub const MAX_FILE_LEN: u64 = 64 << 20;

/// What the names of files begin with that are being written.
const UNFINISHED: &str = ".adit-";

const LOCK_NAME: &str = "lock";

/// State may name users and their addresses: nobody but the owner reads it.
const FILE_MODE: u32 = 0o600;

/// Held for writing by a test that starts processes, for reading by one that must see a descriptor closed: a process
/// that is being started has a copy of every descriptor for a moment.
#[cfg(test)]
pub(crate) static PROCESSES: std::sync::RwLock<()> = std::sync::RwLock::new(());

#[cfg(test)]
mod tests {
    use rustix::fs::{FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn file_that_is_rewritten_is_as_others_may_use_it_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let root = rustix::process::geteuid().is_root();
        if root {
            std::os::unix::fs::chown(&path, Some(12_345), Some(54_321)).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let former = fs::metadata(&path).unwrap();
        rewrite_atomically(&path, b"new").unwrap();
        let now = fs::metadata(&path).unwrap();
        let whose = |it: &fs::Metadata| (it.uid(), it.gid(), it.mode());
        assert_eq!(whose(&now), whose(&former));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn second_holder_is_refused_and_told_the_process_id() {
        let _no_child = PROCESSES
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(
            matches!(error, StateError::Held { holder: Holder(Some(pid)), .. } if pid == std::process::id())
        );
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        let seen = locked_by(directory.path());
        assert_eq!(seen, Some(Holder(Some(std::process::id()))));
        drop(first);
        assert_eq!(locked_by(directory.path()), None);
        StateDir::open(directory.path()).unwrap();
    }

    #[test]
    fn exclusive_lock_on_the_file_is_told_from_other_locks() {
        let locks = [
            "1: POSIX  ADVISORY  WRITE 7 08:02:77 0 EOF",
            "2: FLOCK  ADVISORY  READ 8 08:02:77 0 EOF",
            "3: FLOCK  ADVISORY  WRITE 9 08:02:78 0 EOF",
            "4: FLOCK  ADVISORY  WRITE 10 08:1f:77 0 EOF",
            "5: FLOCK  ADVISORY  WRITE",
        ];
        let found: Vec<_> = locks.iter().filter_map(|it| flock_on(it, 77)).collect();
        assert_eq!(found, [(10, rustix::fs::makedev(8, 31))]);
    }

    #[test]
    fn lock_lives_as_long_as_the_last_clone() {
        let _no_child = PROCESSES
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        let clone = first.clone();
        drop(first);
        assert!(StateDir::open(directory.path()).is_err());
        drop(clone);
        assert!(StateDir::open(directory.path()).is_ok());
    }

    #[test]
    fn longer_process_id_of_a_former_holder_leaves_no_digits() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(LOCK_NAME), "99999999999999\n").unwrap();
        let _held = StateDir::open(directory.path()).unwrap();
        let text = fs::read_to_string(directory.path().join(LOCK_NAME)).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
    }

    #[test]
    fn files_are_private_replaced_whole_and_leave_no_temporary_ones() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path().join("a/b")).unwrap();
        assert_eq!(state.read("leases").unwrap(), None);
        state.write("leases", b"one").unwrap();
        state.write("leases", b"two").unwrap();
        assert_eq!(state.read("leases").unwrap().as_deref(), Some(&b"two"[..]));
        let mode = |name: &str| {
            fs::metadata(state.path().join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!(mode("leases"), 0o600);
        assert_eq!(mode(LOCK_NAME), 0o600);
        assert_eq!(
            fs::metadata(state.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let mut names: Vec<_> = fs::read_dir(state.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["leases", "lock"]);
        state.remove("leases").unwrap();
        state.remove("leases").unwrap();
        assert_eq!(state.read("leases").unwrap(), None);
    }

    #[test]
    fn what_a_killed_write_has_left_is_swept_by_the_next_owner() {
        let directory = tempfile::tempdir().unwrap();
        for name in [".adit-x1y2z3", ".adit", "leases.json"] {
            fs::write(directory.path().join(name), "half").unwrap();
        }
        fs::create_dir(directory.path().join(".adit-folder")).unwrap();
        drop(StateDir::open(directory.path()).unwrap());
        assert!(!directory.path().join(".adit-x1y2z3").exists());
        for name in [".adit", "leases.json", ".adit-folder"] {
            assert!(directory.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn new_file_is_private_and_the_only_one_and_never_replaces_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.key");
        write_new(&path, b"one").unwrap();
        let again = write_new(&path, b"two").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let nowhere = write_new(&directory.path().join("a/b"), b"").unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn file_for_all_is_theirs_to_read_when_it_has_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        write_new_for(Readers::All, &path, b"1").unwrap();
        assert_eq!(mode(), 0o644);
        write_atomically(&path, b"2").unwrap();
        assert_eq!(mode(), 0o600);
        write_atomically_for(Readers::All, &path, b"3").unwrap();
        assert_eq!(mode(), 0o644);
        assert_eq!(fs::read(&path).unwrap(), b"3");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let (fifo, mode) = (directory.path().join("fifo"), Mode::RUSR | Mode::WUSR);
        mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        let error = state.read("fifo").unwrap_err();
        assert!(error.to_string().contains("a FIFO"), "{error}");
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        for name in ["", "../x", "a/b", ".hidden", "..", LOCK_NAME] {
            assert!(
                matches!(state.write(name, b""), Err(StateError::Name { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn directory_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateDir::open(file.join("state")).unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
    }
}
