//! What the command sees of the file system that the host's programs do not: another /run, and files about names.
//!
//! ```text
//!  /run              tmpfs, read-only
//!  ├ user, lock, …   the host's, as they were there at the start
//!  ├ nscd …          not there: see HIDDEN
//!  └ adit-run
//!    ├ resolv.conf   ──▶ over what /etc/resolv.conf leads to; written by the tunnel process
//!    └ nsswitch.conf ──▶ over what /etc/nsswitch.conf leads to
//! ```

use std::fs::{self, File, FileType, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount,
};

use super::enter::EnterError;
use super::names::with_hosts_by_dns;

/// Makes the command's view in the mount namespace that the process is in; gives its resolv.conf, empty and writable.
///
/// # Errors
/// [`ViewError`].
pub fn view() -> Result<OwnedFd, ViewError> {
    let run = Path::new(RUN);
    replace(run)?;
    // Where it is not a link to /run.
    let old = Path::new(OLD_RUN);
    if fs::symlink_metadata(old).is_ok_and(|found| found.is_dir()) {
        replace(old)?;
        read_only(old)?;
    }
    let own = run.join(OWN);
    make_dir(&own).map_err(|error| mount_error(&own, error))?;

    let resolv_conf = own.join("resolv.conf");
    make_readable(&resolv_conf).map_err(|error| mount_error(&resolv_conf, error))?;
    let file =
        open_aside(&own, &resolv_conf).map_err(|error| mount_error(&resolv_conf, error.into()))?;
    cover(Path::new(RESOLV_CONF), &resolv_conf)?;

    let nsswitch = own.join("nsswitch.conf");
    match fs::read_to_string(NSSWITCH_CONF) {
        Ok(text) => {
            make_readable(&nsswitch)
                .and_then(|mut file| file.write_all(with_hosts_by_dns(&text).as_bytes()))
                .map_err(|error| mount_error(&nsswitch, error))?;
            cover(Path::new(NSSWITCH_CONF), &nsswitch)?;
        }
        // The C library asks name servers and files without it, or does not know such a file at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(mount_error(Path::new(NSSWITCH_CONF), error)),
    }
    read_only(run)?;
    Ok(file)
}

/// Puts an empty folder in the place of `dir`, and in it all that was there but [`HIDDEN`].
fn replace(dir: &Path) -> Result<(), ViewError> {
    let failed = |error: io::Error| mount_error(dir, error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let before = match open(dir, flags, Mode::empty()) {
        Ok(before) => before,
        Err(error) if error == rustix::io::Errno::NOENT => {
            return Err(ViewError::NoFolder {
                folder: dir.to_owned(),
            });
        }
        Err(error) => return Err(failed(error.into())),
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("adit", dir, "tmpfs", flags, Some(c"mode=0755,size=1m"))
        .map_err(|error| failed(error.into()))?;
    let below = PathBuf::from(format!("/proc/self/fd/{}", before.as_raw_fd()));
    let hidden: Vec<&Path> = HIDDEN.iter().map(Path::new).collect();
    fill(&below, dir, &hidden).map_err(failed)
}

/// Shows in `to` all that is in `from` but `hidden`, of paths below it. What cannot be shown is not there.
fn fill(from: &Path, to: &Path, hidden: &[&Path]) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let (source, target) = (from.join(&name), to.join(&name));
        let below: Vec<&Path> = hidden
            .iter()
            .filter_map(|path| path.strip_prefix(&name).ok())
            .collect();
        let shown = if below.iter().any(|rest| rest.as_os_str().is_empty()) {
            Ok(())
        } else if below.is_empty() {
            entry
                .file_type()
                .and_then(|kind| show(&source, &target, kind))
        } else {
            make_dir(&target).and_then(|()| fill(&source, &target, &below))
        };
        if let Err(error) = shown {
            tracing::debug!(path = %target.display(), %error, "is not there for the command");
        }
    }
    Ok(())
}

fn show(source: &Path, target: &Path, kind: FileType) -> io::Result<()> {
    if kind.is_symlink() {
        symlink(fs::read_link(source)?, target)
    } else if kind.is_dir() {
        make_dir(target)?;
        // A folder with mounts below it can only be shown with them.
        Ok(mount_bind_recursive(source, target)?)
    } else {
        File::create_new(target)?;
        Ok(mount_bind(source, target)?)
    }
}

/// Opens `file` below `dir` for writing by a mount of its own, which nobody else has: a mount that something is open
/// for writing on does not become one that is read only.
fn open_aside(dir: &Path, file: &Path) -> rustix::io::Result<OwnedFd> {
    mount_bind(dir, dir)?;
    let opened = open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    unmount(dir, UnmountFlags::DETACH)?;
    opened
}

/// Puts `own` over what `path` leads to, to be read only.
fn cover(path: &Path, own: &Path) -> Result<(), ViewError> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // It led to what is hidden now: there, a file is as good as the one there was.
            let target = end_of_links(path);
            let made = [RUN, OLD_RUN].iter().any(|run| target.starts_with(run))
                && make_file(&target).is_ok();
            if !made {
                return Err(ViewError::NoFile {
                    file: path.to_owned(),
                });
            }
            target
        }
        Err(error) => return Err(mount_error(path, error)),
    };
    let failed = |error: rustix::io::Errno| mount_error(&target, error.into());
    mount_bind(own, &target).map_err(failed)?;
    read_only(&target)
}

/// Where links lead from `path`, the last of them to nothing.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&path) else {
            break;
        };
        let mut target = path.parent().unwrap_or(Path::new("/")).to_owned();
        for part in next.components() {
            match part {
                std::path::Component::ParentDir => {
                    target.pop();
                }
                std::path::Component::CurDir => {}
                std::path::Component::RootDir
                | std::path::Component::Prefix(_)
                | std::path::Component::Normal(_) => target.push(part),
            }
        }
        path = target;
    }
    path
}

fn make_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(path).map(drop)
}

/// Makes a folder that everybody may look into, whatever the caller's umask is.
fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Makes a file that everybody may read.
fn make_readable(path: &Path) -> io::Result<File> {
    let file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// Keeps the command from writing where a mount of ours is.
fn read_only(path: &Path) -> Result<(), ViewError> {
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    mount_remount(path, flags, c"").map_err(|error| mount_error(path, error.into()))
}

fn mount_error(path: &Path, error: io::Error) -> ViewError {
    match EnterError::of("mount files of its own for a command", error) {
        error @ EnterError::Refused { .. } => ViewError::Refused(error),
        EnterError::Failed { source, .. } => ViewError::Mount {
            path: path.to_owned(),
            source,
        },
    }
}

/// Why there is no view for a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The system does not let this user mount.
    #[error(transparent)]
    Refused(EnterError),
    /// A mount failed.
    #[error("cannot put a view of its own over {}: {source}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to mount on.
    #[error(
        "there is no {} to put the command's over: make an empty one, as root: mkdir {}",
        folder.display(), folder.display()
    )]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// There is nothing to mount on.
    #[error(
        "there is no {} to put the command's over: make an empty one, as root: touch {}",
        file.display(), file.display()
    )]
    NoFile {
        /// The file.
        file: PathBuf,
    },
}

/// What answers names in the host's network for whoever asks, below /run: systemd-resolved, the name service cache,
/// Avahi; and the system's message bus, by which the first and the last answer too.
pub const HIDDEN: [&str; 4] = [
    "systemd/resolve",
    "nscd",
    "avahi-daemon",
    "dbus/system_bus_socket",
];

const RUN: &str = "/run";
const OLD_RUN: &str = "/var/run";
/// The folder of our files in the command's /run.
const OWN: &str = "adit-run";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";
/// The kernel's own limit.
const MAX_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_nothing_are_followed_to_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("etc")).unwrap();
        symlink("../run/./a/stub", path("etc/resolv.conf")).unwrap();
        let end = end_of_links(&path("etc/resolv.conf"));
        assert_eq!(end, path("run/a/stub"));
        assert_eq!(end_of_links(&path("etc/none")), path("etc/none"));
        symlink(path("etc/loop"), path("etc/loop")).unwrap();
        assert_eq!(end_of_links(&path("etc/loop")), path("etc/loop"));
    }
}
