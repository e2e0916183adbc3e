//! Reads the leases that a former run has left in the state folder.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::leases::{Leases, RestoreError, Restored};
use crate::proto::PublicKey;

/// The file of a server's leases.
#[derive(Clone, Debug)]
pub struct LeaseStore {
    path: PathBuf,
}

/// What came of loading the file.
#[derive(Debug)]
pub enum LoadedLeases {
    /// There is no file yet.
    New,
    /// The leases are back.
    Restored(Restored),
    /// The file makes no sense; it was moved aside, and the server starts without leases.
    SetAside {
        /// Where it is now.
        to: PathBuf,
        /// What is wrong with it.
        reason: RestoreError,
    },
}

impl LeaseStore {
    /// Names the file in a state folder, which exists.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join("leases.json"),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file into `leases`. One that makes no sense is moved aside, not lost, and is not an error.
    ///
    /// # Errors
    /// The file cannot be read or moved.
    pub fn load(
        &self,
        now: SystemTime,
        leases: &mut Leases,
        known: impl Fn(&PublicKey) -> bool,
    ) -> io::Result<LoadedLeases> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LoadedLeases::New),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        // A longer file is cut, and so makes no sense.
        file.take(MAX_FILE_LEN).read_to_end(&mut bytes)?;
        match leases.restore(now, &bytes, known) {
            Ok(restored) => Ok(LoadedLeases::Restored(restored)),
            Err(reason) => {
                let to = self.path.with_extension("json.broken");
                fs::rename(&self.path, &to)?;
                Ok(LoadedLeases::SetAside { to, reason })
            }
        }
    }
}

/// Bytes in the largest file that is read: some 200,000 leases.
const MAX_FILE_LEN: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::state::write_atomically;
    use crate::server::leases::{Owner, Settings};

    fn leases() -> Leases {
        Leases::new("10.86.0.0/24".parse().ok(), None, [], Settings::default())
    }

    fn owner() -> Owner {
        Owner {
            key: PublicKey::from_bytes([1; 32]),
            instance: [2; 8],
        }
    }

    #[test]
    fn leases_come_back_from_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = LeaseStore::new(folder.path());
        let now = SystemTime::now();
        let mut old = leases();
        assert!(matches!(
            store.load(now, &mut old, |_| true),
            Ok(LoadedLeases::New)
        ));
        let lease = old.acquire(now, owner()).expect("a lease");
        let file = folder.path().join("leases.json");
        write_atomically(&file, &old.save(now)).expect("saved");
        write_atomically(&file, &old.save(now)).expect("saved over");
        let mut new = leases();
        let loaded = store.load(now, &mut new, |_| true).expect("loaded");
        assert!(
            matches!(
                loaded,
                LoadedLeases::Restored(Restored {
                    kept: 1,
                    dropped: 0
                })
            ),
            "{loaded:?}"
        );
        assert_eq!(new.lease(&owner()), Some(lease));
        assert_eq!(
            fs::read_dir(folder.path()).expect("a folder").count(),
            1,
            "nothing half-written is left"
        );
    }

    #[test]
    fn a_broken_file_is_moved_aside_and_the_server_starts() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = LeaseStore::new(folder.path());
        fs::write(folder.path().join("leases.json"), "{\"version\":1,").expect("written");
        let mut leases = leases();
        let loaded = store
            .load(SystemTime::now(), &mut leases, |_| true)
            .expect("loaded");
        let LoadedLeases::SetAside { to, reason } = loaded else {
            panic!("{loaded:?}")
        };
        assert_eq!(fs::read_to_string(to).expect("kept"), "{\"version\":1,");
        assert!(
            reason.to_string().contains("not a list of leases (line 1"),
            "{reason}"
        );
        assert!(leases.is_empty());
    }
}
