//! Becomes an ordinary user: of root's rights a program keeps those it serves with, and no way back to the others.
//!
//! # Theory of operation
//!
//! A container, and whoever else starts programs as root, can give a right to root alone: Docker's `--cap-add` gives
//! nothing to a numbered user. So the program begins as root, and steps down before it opens a socket and before it
//! has a second thread:
//!
//! ```text
//!  root ─▶ folders handed over ─▶ /dev/net/tun opened ─▶ bounding set emptied ─▶ groups, group, user
//!       ─▶ capabilities: those kept, in the effective and permitted set ─▶ no_new_privs
//! ```
//!
//! What is kept is named by the caller; what of it the process does not have, it does not get. With an empty bounding
//! set and `no_new_privs` no program that it could be made to start gains more.
//!
//! Credentials belong to threads (credentials(7)); that is why there must be one only.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// The rights that a step down leaves.
pub type Rights = CapabilitySet;

/// Why the program is still who it was, or not wholly who it was to be: it must not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepDownError {
    /// A folder or a file cannot be handed over.
    #[error("cannot give {} to user {user}: {source}", path.display())]
    Folder {
        /// The folder or the file.
        path: PathBuf,
        /// Who should have it.
        user: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses the change.
    #[error(
        "cannot become user {user} ({what}: {source}): a container needs the capabilities SETUID, SETGID and SETPCAP for that, which Docker gives by default; or start it as that user"
    )]
    Refused {
        /// Who was to be.
        user: u32,
        /// The step that failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether root runs this process: only then there is something to step down from.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Whether this process may change interfaces, routes and firewall rules.
pub fn administers_network() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(Rights::NET_ADMIN))
}

/// Becomes user `user` of group `group`, with those of `keep` that this process has; to be called by the only thread.
///
/// # Errors
/// [`StepDownError::Refused`]: what became of the process is not known then, and it must end.
pub fn step_down(user: u32, group: u32, keep: Rights) -> Result<(), StepDownError> {
    let failed = |what| {
        move |error: Errno| StepDownError::Refused {
            user,
            what,
            source: error.into(),
        }
    };
    let has = capabilities(None)
        .map_err(failed("capabilities"))?
        .permitted;
    empty_bounding_set().map_err(failed("bounding set"))?;
    set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[]).map_err(failed("groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("user"))?;
    set_keep_capabilities(false).map_err(failed("keep capabilities"))?;
    clear_ambient_capability_set().map_err(failed("ambient set"))?;
    let kept = keep & has;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: Rights::empty(),
        },
    )
    .map_err(failed("capabilities"))?;
    set_no_new_privs(true).map_err(failed("no_new_privs"))
}

/// Takes every capability out of the bounding set. One that may not is in nobody's way: with `no_new_privs` no file
/// gives capabilities any more.
fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(Rights::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // This kernel has no more of them; or CAP_SETPCAP was taken from this root.
            Err(Errno::INVAL | Errno::PERM) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives a folder to a user, with the files in it; makes it (0700) where it is not there, in folders that it can be reached
/// through (0711).
///
/// One that is theirs already is left alone: what they have put into it meanwhile is not root's to touch. Of another's
/// folder only ordinary files with one name are given, and links are not followed.
///
/// # Errors
/// [`StepDownError::Folder`].
pub fn hand_over(folder: &Path, user: u32, group: u32) -> Result<(), StepDownError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StepDownError::Folder { path, user, source }
    };
    let make = |folder: &Path, mode| {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(mode).create(folder)
    };
    if let Some(parent) = folder.parent() {
        make(parent, 0o711).map_err(failed(parent))?;
    }
    make(folder, 0o700).map_err(failed(folder))?;
    let directory = File::open(folder).map_err(failed(folder))?;
    if directory.metadata().map_err(failed(folder))?.uid() == user {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        give(&path, user, group)?;
    }
    let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    rustix::fs::fchown(directory, owner.0, owner.1)
        .map_err(io::Error::from)
        .map_err(failed(folder))
}

/// Gives an ordinary file with one name to a user; anything else is left alone.
///
/// # Errors
/// [`StepDownError::Folder`].
pub fn give(path: &Path, user: u32, group: u32) -> Result<(), StepDownError> {
    give_file(path, user, group).map_err(|source| StepDownError::Folder {
        path: path.to_owned(),
        user,
        source,
    })
}

fn give_file(path: &Path, user: u32, group: u32) -> io::Result<()> {
    // A path alone: nothing is opened that could wait or act.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Ok(());
    }
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    rustix::fs::chownat(file.as_fd(), "", user, group, AtFlags::EMPTY_PATH)?;
    Ok(())
}

/// The lowest port that needs no right to be listened on.
pub fn first_free_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folder_and_its_files_change_hands_and_what_links_point_to_does_not() {
        if !is_root() {
            println!("skipped: needs root");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let (folder, other) = (place.path().join("a/state"), place.path().join("other"));
        fs::write(&other, "").unwrap();
        hand_over(&folder, 10001, 10002).unwrap();
        let owner = |path: &Path| {
            let file = fs::symlink_metadata(path).unwrap();
            (file.uid(), file.gid(), file.mode() & 0o777)
        };
        assert_eq!(owner(&folder), (10001, 10002, 0o700));
        assert_eq!(owner(&place.path().join("a")), (0, 0, 0o711));
        // Whoever has it already may have put anything there.
        fs::write(folder.join("leases"), "").unwrap();
        symlink(&other, folder.join("link")).unwrap();
        fs::hard_link(&other, folder.join("name")).unwrap();
        hand_over(&folder, 10001, 10002).unwrap();
        assert_eq!(owner(&folder.join("leases")).0, 0);
        hand_over(&folder, 10003, 10003).unwrap();
        assert_eq!(owner(&folder.join("leases")).0, 10003);
        assert_eq!(owner(&other).0, 0);
        assert_eq!(owner(&folder).0, 10003);
    }
}
