//! Where else a server with this identity may have kept who has enrolled: whoever runs it as another user has another state
//! folder, in which nobody is known.
//!
//! Places are looked at, and nothing in a user's folder is opened: what lies there is that user's to say, and may be made for
//! us to find. So it is told whose it is. In the folder of the package's unit the key is read, as a regular file and not waited
//! for: the unit's user can put anything there.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::cleanup::homes;
use crate::config::{ServerConfig, read_key, shell_word, state_name};
use crate::proto::SecretKey;
use crate::server::enrolment::{self, Enrolment};
use crate::status::whole;

/// Warns where this server knows nobody by its state folder, and another folder of its identity does, in words.
pub(super) fn warning(config: &ServerConfig) -> Option<String> {
    // One that cannot be read is told when it is opened.
    let has_clients = !matches!(Enrolment::look(&config.state_dir), Ok(None | Some(0)));
    let key = config.secret_keys.first()?;
    if has_clients {
        return None;
    }
    let name = state_name(&key.public());
    let bases = [SYSTEM.into()].into_iter().chain(own_base()).chain(homes());
    let folders = bases.map(|base: PathBuf| base.join(&name));
    let found = found(folders.chain(of_unit(key)), &config.state_dir);
    let shown: Vec<String> = found.iter().map(in_words).collect();
    if shown.is_empty() {
        return None;
    }
    Some(format!(
        "no client has enrolled that is kept in {}, the state folder that this user's server has; there are clients of a server \
         with this key in {}: if that was yours, go on with it by --state-dir (or `state_dir:`), else they are not let in",
        shell_word(&config.state_dir),
        shown.join(" and in ")
    ))
}

/// Another state folder, and the user that it belongs to.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    folder: PathBuf,
    owner: u32,
}

/// Those of the folders in which a list of clients is to be seen, each once, but for `own`.
fn found(folders: impl Iterator<Item = PathBuf>, own: &Path) -> Vec<Found> {
    let mut seen = HashSet::from([whole(own)]);
    let clients = |folder: PathBuf| {
        let file = fs::symlink_metadata(folder.join(enrolment::FILE)).ok()?;
        let owner = file.uid();
        (file.is_file() && seen.insert(whole(&folder))).then_some(Found { folder, owner })
    };
    folders.filter_map(clients).take(MOST_TOLD).collect()
}

fn in_words(found: &Found) -> String {
    let word = shell_word(&found.folder);
    if found.owner == geteuid().as_raw() {
        word
    } else {
        format!("{word} (of user {})", found.owner)
    }
}

/// That of the package's unit, where the key in it is this server's.
fn of_unit(key: &SecretKey) -> Option<PathBuf> {
    let folder = PathBuf::from(SYSTEM);
    let names = ["server.key", "key"].into_iter();
    let is_file = |file: &PathBuf| fs::symlink_metadata(file).is_ok_and(|it| it.is_file());
    let files = names.map(|name| folder.join(name)).filter(is_file);
    let mut keys = files.filter_map(|file| read_key::<SecretKey>(&file).ok());
    keys.any(|it| it.public() == key.public()).then_some(folder)
}

/// Where this user's own are, as the environment has it.
fn own_base() -> Option<PathBuf> {
    let folder = env::var_os("XDG_STATE_HOME").map(PathBuf::from)?;
    folder.is_absolute().then(|| folder.join("adit"))
}

/// Where those of root are, and of the package's unit.
const SYSTEM: &str = "/var/lib/adit";
/// More than a person reads about.
const MOST_TOLD: usize = 3;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn other_folders_with_a_list_of_clients_are_found_once_each() {
        let base = tempfile::tempdir().unwrap();
        let folder = |name: &str| base.path().join(name);
        for name in ["own", "other", "empty", "trap"] {
            fs::create_dir(folder(name)).unwrap();
        }
        for name in ["own", "other"] {
            fs::write(folder(name).join(enrolment::FILE), "{}").unwrap();
        }
        symlink(folder("other"), folder("link")).unwrap();
        symlink("/etc/passwd", folder("trap").join(enrolment::FILE)).unwrap();
        let names = ["own", "empty", "trap", "link", "other", "gone"];
        let found = found(names.map(folder).into_iter(), &folder("own"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].folder, folder("link"));
        assert_eq!(found[0].owner, geteuid().as_raw());
    }
}
