//! `/etc/resolv.conf`, put in the place of the host's own for a while.
//!
//! ```text
//!  link resolv.conf → .resolv-conf-adit-1 ─ rename new → resolv.conf ─ … ─ rename .resolv-conf-adit-1 → resolv.conf
//! ```
//!
//! The host's own file, or symbolic link, is kept beside as it is, by a hard link; ours takes its name by a rename, and it
//! takes its name back by another. So there is a whole file at every moment, and what comes back is the very same one.
//! Where the file has a name that cannot be given to another, as in containers, whose engine has mounted it there, it is
//! written to instead, and what it held is kept in the journal.
//!
//! The other name is used once, and both names are in the journal before there is anything of them: what a replacement that
//! was never undone has kept is not taken for one's own, so that undoing both, in any order, brings the host's own back.
//!
//! What somebody else has put there meanwhile (a DHCP client, another VPN) is theirs, and stays.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How a resolv.conf is to be replaced, or was; it can be undone at any moment of that, and twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// The file.
    pub path: PathBuf,
    /// What we write.
    pub ours: String,
    /// Where its own content is meanwhile.
    pub kept: Kept,
}

/// Where the host's own content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// In the same file under another name; if there is none, there was no file.
    Beside(PathBuf),
    /// Here: the file keeps its name, and is written to.
    Here(Vec<u8>),
}

impl Replacement {
    /// Says how `path` would be replaced by a rename. Nothing is changed.
    pub fn renaming(path: &Path, ours: String) -> Self {
        Self {
            kept: Kept::Beside(
                path.with_file_name(format!("{BESIDE}{:016x}", rand::random::<u64>())),
            ),
            path: path.to_owned(),
            ours,
        }
    }

    /// Says how `path` would be replaced by writing to it. Nothing is changed.
    ///
    /// # Errors
    /// It cannot be read, or is too large for such a file.
    pub fn writing(path: &Path, ours: String) -> io::Result<Self> {
        let mut was = Vec::new();
        File::open(path)?.take(MAX_LEN + 1).read_to_end(&mut was)?;
        if was.len() as u64 > MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Self {
            path: path.to_owned(),
            ours,
            kept: Kept::Here(was),
        })
    }

    /// Whether it is about `path`, keeps nothing but that beside it, and puts nothing there but what we write: a journal may lie
    /// in a folder of somebody with less rights than whoever carries it out.
    pub fn is_of(&self, path: &Path) -> bool {
        let is_beside = |kept: &Path| {
            let name = kept.file_name().and_then(|name| name.to_str());
            kept.parent() == path.parent() && name.is_some_and(|name| name.starts_with(BESIDE))
        };
        self.path == path
            && self.ours.starts_with(HEAD)
            && match &self.kept {
                Kept::Beside(kept) => is_beside(kept),
                Kept::Here(_) => true,
            }
    }

    /// Puts ours there.
    ///
    /// # Errors
    /// What the file system says; [`Replacement::undo`] is due all the same.
    pub fn apply(&self) -> io::Result<()> {
        match &self.kept {
            Kept::Beside(beside) => {
                match fs::hard_link(&self.path, beside) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                let folder = self.path.parent().unwrap_or(Path::new("/"));
                let new = fresh(beside);
                let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
                file.write_all(self.ours.as_bytes())?;
                // Every program of the host reads it, and the process's mask must not keep others from it.
                file.set_permissions(fs::Permissions::from_mode(0o644))?;
                file.sync_all()?;
                fs::rename(&new, &self.path)?;
                File::open(folder)?.sync_all()
            }
            Kept::Here(_) => overwrite(&self.path, self.ours.as_bytes()),
        }
    }

    /// Puts back what was there, unless somebody else has put something there since.
    ///
    /// # Errors
    /// What the file system says.
    pub fn undo(&self) -> io::Result<()> {
        match &self.kept {
            Kept::Beside(beside) => {
                remove(&fresh(beside))?;
                let has_own = fs::symlink_metadata(beside).is_ok();
                match (self.is_there()?, has_own) {
                    (true, true) => fs::rename(beside, &self.path),
                    (true, false) => fs::remove_file(&self.path),
                    // Another client's, which has kept ours: it knows nothing better than what we have kept.
                    (false, true) if self.is_anothers()? => {
                        fs::rename(beside, &self.path)?;
                        // Two names of one file are left by a rename.
                        remove(beside)
                    }
                    // Not replaced yet, or by somebody else: its second name is all that is left of us.
                    (false, true) => fs::remove_file(beside),
                    (false, false) => Ok(()),
                }
            }
            Kept::Here(was) => {
                let now = match fs::read(&self.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    other => other?,
                };
                let ours = self.ours.as_bytes();
                // A crash may have left a part of ours, or ours with the rest of what was there behind it.
                let is_part = !now.is_empty() && ours.starts_with(&now);
                let has_rest = (now.strip_prefix(ours))
                    .is_some_and(|rest| Some(rest) == was.get(ours.len()..));
                if is_part || has_rest {
                    overwrite(&self.path, was)?;
                }
                Ok(())
            }
        }
    }

    /// Whether ours is what is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn is_there(&self) -> io::Result<bool> {
        let is_file = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata.is_file() || matches!(self.kept, Kept::Here(_)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(is_file && fs::read(&self.path)? == self.ours.as_bytes())
    }
}

impl Replacement {
    /// Whether what is there was written by a client like this one.
    fn is_anothers(&self) -> io::Result<bool> {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        let mut begin = Vec::new();
        let file = File::open(&self.path)?;
        file.take(HEAD.len() as u64).read_to_end(&mut begin)?;
        Ok(begin == HEAD.as_bytes())
    }
}

/// What `/etc/resolv.conf` says while the host's names go through the tunnel.
pub fn text(servers: &[IpAddr]) -> String {
    let mut text = String::from(HEAD);
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

/// The name of ours until it is whole.
fn fresh(beside: &Path) -> PathBuf {
    beside.with_extension("new")
}

/// Removes a file; one that is gone counts as removed.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()
}

/// What ours begins with.
const HEAD: &str = "# Written by adit client with a tunnel of the whole host. What was here comes back when it ends, and by `adit cleanup`.\n";

/// What the name of the host's own file begins with meanwhile.
const BESIDE: &str = ".resolv-conf-adit-";

/// Far beyond any resolv.conf.
const MAX_LEN: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Which file it is, and who may read it.
    fn identity(path: &Path) -> (u64, u32) {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.ino(), metadata.mode())
    }

    fn servers() -> String {
        text(&["10.86.0.1".parse().unwrap()])
    }

    #[test]
    fn file_comes_back_as_the_very_same_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let before = identity(&path);
        let replacement = Replacement::renaming(&path, servers());
        replacement.apply().unwrap();
        assert!(replacement.is_there().unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), servers());
        assert_eq!(identity(&path).1 & 0o777, 0o644);
        for _ in 0..2 {
            replacement.undo().unwrap();
            assert_eq!(identity(&path), before);
            assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn symbolic_link_comes_back_and_what_it_leads_to_was_never_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (
            folder.path().join("resolv.conf"),
            folder.path().join("stub"),
        );
        fs::write(&target, "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink("stub", &path).unwrap();
        let replacement = Replacement::renaming(&path, servers());
        replacement.apply().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"nameserver 127.0.0.53\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), servers());
        replacement.undo().unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("stub"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn host_without_the_file_has_none_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let replacement = Replacement::renaming(&path, servers());
        replacement.apply().unwrap();
        assert!(path.exists());
        replacement.undo().unwrap();
        replacement.undo().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_others_have_written_since_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        for replacement in [
            |path: &Path| Replacement::renaming(path, servers()),
            |path: &Path| Replacement::writing(path, servers()).unwrap(),
        ] {
            fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
            let replacement = replacement(&path);
            replacement.apply().unwrap();
            fs::write(&path, "nameserver 198.51.100.1\n").unwrap();
            assert!(!replacement.is_there().unwrap());
            replacement.undo().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"nameserver 198.51.100.1\n");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn killed_between_the_steps_it_is_undone_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let replacement = Replacement::renaming(&path, servers());
        replacement.undo().unwrap();
        let Kept::Beside(beside) = &replacement.kept else {
            panic!("it is to be renamed");
        };
        // Linked, and not renamed yet.
        fs::hard_link(&path, beside).unwrap();
        fs::write(fresh(beside), "half of o").unwrap();
        replacement.undo().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_another_has_kept_comes_back_in_whatever_order_they_are_undone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        for is_newest_first in [true, false] {
            fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
            // The first is never undone by its client, as where the machine stops and another folder's client comes up.
            let first = Replacement::renaming(&path, servers());
            let second = Replacement::renaming(&path, text(&["10.99.0.1".parse().unwrap()]));
            for replacement in [&first, &second] {
                replacement.apply().unwrap();
            }
            let order = if is_newest_first {
                [&second, &first]
            } else {
                [&first, &second]
            };
            for replacement in order {
                replacement.undo().unwrap();
            }
            assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn journal_speaks_of_one_file_alone() {
        let path = Path::new("/etc/resolv.conf");
        assert!(Replacement::renaming(path, servers()).is_of(path));
        let other = |path: &str, kept| Replacement {
            path: path.into(),
            ours: servers(),
            kept,
        };
        let foreign = Replacement {
            ours: "nameserver 192.0.2.9\n".into(),
            ..other("/etc/resolv.conf", Kept::Here(Vec::new()))
        };
        for replacement in [
            foreign,
            other("/etc/shadow", Kept::Here(Vec::new())),
            other("/etc/resolv.conf", Kept::Beside("/etc/shadow".into())),
            other(
                "/etc/resolv.conf",
                Kept::Beside("/tmp/.resolv-conf-adit-1".into()),
            ),
        ] {
            assert!(!replacement.is_of(path), "{replacement:?}");
        }
    }

    #[test]
    fn file_that_is_written_to_gets_its_content_back_also_when_that_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let before = identity(&path);
        let replacement = Replacement::writing(&path, servers()).unwrap();
        replacement.apply().unwrap();
        assert!(replacement.is_there().unwrap());
        replacement.undo().unwrap();
        replacement.undo().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
        fs::write(&path, &servers()[..20]).unwrap();
        replacement.undo().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"nameserver 192.0.2.1\n");
        assert_eq!(identity(&path), before);
    }
}
