//! The journal: what this program changed in the system, so that it can be undone, at exit or by the next start.
//!
//! A change is on the disk before it is made ([`Journal::record`]). All are undone newest first, and struck out after
//! that ([`Journal::undo`]). So whatever moment the process or the machine stops at, the file names every
//! change that may have been made; one that is named but was never made must be harmless to undo, and so must one
//! that was undone and not struck out yet.
//!
//! ```text
//! record(A) ─ make A ─ record(B) ─ make B ─ … run … ─ undo B ─ undo A ─ file gone
//! ```
//!
//! A journal belongs to a [`World`]: one boot of one machine and one network namespace. Tables and sysctls of the
//! network are properties of exactly that, so a journal from another world has nothing left to undo and is dropped.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::open_regular;
use super::netlink::policy::Rule;
use super::resolv::Replacement;
use super::state::{MAX_FILE_LEN, StateDir, StateError};

/// The changes made to the system and not undone yet, kept in the state directory.
#[derive(Debug)]
pub struct Journal {
    state: StateDir,
    content: Content,
}

impl Journal {
    /// Opens the journal of a state directory, with what a former process left in it.
    ///
    /// Changes that belong to another [`World`] are forgotten: they ended with it.
    ///
    /// # Errors
    /// [`JournalError::State`] when the file cannot be read, [`JournalError::Malformed`] when it makes no sense.
    pub fn open(state: &StateDir, world: &World) -> Result<Self, JournalError> {
        let fresh = Content {
            world: world.clone(),
            changes: Vec::new(),
        };
        let content = match state.read(JOURNAL)? {
            None => fresh,
            Some(bytes) => {
                let content = parse(state, &bytes)?;
                if content.world == *world {
                    content
                } else {
                    let changes = content.changes.into_iter();
                    Content {
                        changes: changes.filter(Change::outlives_world).collect(),
                        ..fresh
                    }
                }
            }
        };
        Ok(Self {
            state: state.clone(),
            content,
        })
    }

    /// The world that the journal of a state directory is about; none where there is no journal.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn world(state: &StateDir) -> Result<Option<World>, JournalError> {
        let read = state.read(JOURNAL)?;
        let content = read.map(|bytes| parse(state, &bytes)).transpose()?;
        Ok(content.map(|content| content.world))
    }

    /// Notes that `changes` are about to be made, in this order; all are on the disk when this returns.
    ///
    /// # Errors
    /// [`JournalError::State`] when they cannot be written, [`JournalError::Full`] above [`MAX_CHANGES`]: none of them
    /// must be made then.
    pub fn record(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<(), JournalError> {
        let before = self.content.changes.len();
        self.content.changes.extend(changes);
        let result = match self.content.changes.len() {
            after if after == before => Ok(()),
            after if after > MAX_CHANGES => Err(JournalError::Full { limit: MAX_CHANGES }),
            _ => self.save(),
        };
        result.inspect_err(|_| self.content.changes.truncate(before))
    }

    /// Undoes every change with `undo_one`, newest first, and strikes out those that succeeded.
    ///
    /// One that fails stays in the journal for the next start and does not keep the others from being undone. They are
    /// struck out together at the end, for an exit must not wait for the disk many times.
    ///
    /// # Errors
    /// [`JournalError::Undo`] with every failure, [`JournalError::State`] when the file cannot be written.
    pub fn undo(
        &mut self,
        undo_one: impl FnMut(&Change) -> io::Result<()>,
    ) -> Result<(), JournalError> {
        self.undo_some(|_| true, undo_one)
    }

    /// The same of those that `due` names; the others stay as they are.
    ///
    /// # Errors
    /// As [`Journal::undo`].
    pub fn undo_some(
        &mut self,
        due: impl Fn(&Change) -> bool,
        mut undo_one: impl FnMut(&Change) -> io::Result<()>,
    ) -> Result<(), JournalError> {
        if !self.content.changes.iter().any(&due) {
            return Ok(());
        }
        let mut failures = Vec::new();
        let mut left = Vec::new();
        for change in self.content.changes.drain(..).rev() {
            if !due(&change) {
                left.push(change);
            } else if let Err(source) = undo_one(&change) {
                left.push(change.clone());
                failures.push(UndoFailure { change, source });
            }
        }
        left.reverse();
        self.content.changes = left;
        self.save()?;
        if failures.is_empty() {
            Ok(())
        } else {
            Err(JournalError::Undo(Failures(failures)))
        }
    }

    /// The state folder that it is kept in.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// The changes that may have been made and were not undone, oldest first.
    pub fn changes(&self) -> &[Change] {
        &self.content.changes
    }

    fn save(&self) -> Result<(), JournalError> {
        if self.content.changes.is_empty() {
            return Ok(self.state.remove(JOURNAL)?);
        }
        let bytes = serde_json::to_vec_pretty(&self.content).map_err(JournalError::Encode)?;
        Ok(self.state.write(JOURNAL, &bytes)?)
    }
}

/// One thing this program changed in the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// An nftables table of family `inet`, made for a tunnel interface.
    Table {
        /// The table's name.
        name: String,
        /// The interface it serves.
        interface: String,
    },
    /// A value below /proc/sys.
    Sysctl {
        /// The path below /proc/sys, such as `net/ipv4/ip_forward`.
        key: String,
        /// What it was.
        was: String,
        /// What it was set to; none where another change of this journal moves it along, so that it is put back
        /// whatever it has become.
        set: Option<String>,
    },
    /// The nftables table of a client's host ([`crate::io::nft::host`]).
    HostTable {
        /// The table's name.
        name: String,
    },
    /// A rule that chooses a routing table.
    Rule(Rule),
    /// The routes of a routing table, of both families, which is ours alone.
    Routes {
        /// The table.
        table: u32,
    },
    /// A resolv.conf. It outlives the world: files stay when a machine or a network namespace ends.
    ResolvConf(Replacement),
}

impl Change {
    /// Whether it is there still when the machine was started anew.
    pub fn outlives_world(&self) -> bool {
        match self {
            Self::ResolvConf(_) => true,
            Self::Table { .. }
            | Self::Sysctl { .. }
            | Self::HostTable { .. }
            | Self::Rule(_)
            | Self::Routes { .. } => false,
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Table { name, .. } => write!(f, "nftables table inet {name}"),
            Self::Sysctl { key, was, .. } => {
                write!(f, "sysctl {} (was {was})", key.replace('/', "."))
            }
            Self::HostTable { name } => write!(f, "nftables table inet {name}"),
            Self::Rule(rule) => rule.fmt(f),
            Self::Routes { table } => write!(f, "routes of table {table}"),
            Self::ResolvConf(replacement) => replacement.path.display().fmt(f),
        }
    }
}

/// The boot of the machine and the network namespace that a journal is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// The kernel's identifier of this boot.
    pub boot: String,
    /// The network namespace: its cookie, which a boot never uses twice, or its inode on kernels before 5.14.
    pub network: String,
}

impl World {
    /// Finds out where the calling thread is.
    ///
    /// # Errors
    /// What /proc says when it cannot be read.
    pub fn current() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        let network = match super::sysctl::network_cookie() {
            Ok(cookie) => format!("cookie:{cookie}"),
            // The thread's own namespace, which need not be that of the process.
            Err(_) => fs::read_link("/proc/thread-self/ns/net")?
                .to_string_lossy()
                .into_owned(),
        };
        Ok(Self { boot, network })
    }
}

/// The network namespace of the calling thread, as [`World`] has it; empty where /proc does not say.
pub fn network() -> String {
    World::current().map_or_else(|_| String::new(), |world| world.network)
}

/// Looks at what the journal of a state folder names, and takes no lock: who has it may live.
///
/// # Errors
/// The file cannot be read, is no regular file, or is no journal.
pub fn look(folder: &Path) -> io::Result<Option<(World, Vec<Change>)>> {
    let file = match open_regular(&folder.join(JOURNAL), MAX_FILE_LEN) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let content: Content = serde_json::from_reader(io::BufReader::new(file.take(MAX_FILE_LEN)))?;
    Ok(Some((content.world, content.changes)))
}

/// Why the journal cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The state directory does not let it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file is not a journal.
    #[error(
        "the journal {} cannot be understood ({source}): see that the host's forwarding sysctls are as you want them, then delete it",
        path.display()
    )]
    Malformed {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The journal could not be put into text.
    #[error("cannot encode the journal: {0}")]
    Encode(serde_json::Error),
    /// Too many changes.
    #[error("more than {limit} changes to the system")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// Some changes could not be undone.
    #[error("cannot undo {0}")]
    Undo(Failures),
}

/// A change that could not be undone and why.
#[derive(Debug)]
pub struct UndoFailure {
    /// The change.
    pub change: Change,
    /// What the system said.
    pub source: io::Error,
}

/// All failures of one [`Journal::undo`], at least one.
#[derive(Debug)]
pub struct Failures(pub Vec<UndoFailure>);

impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, failure) in self.0.iter().enumerate() {
            if index > 0 {
                write!(f, "; ")?;
            }
            write!(f, "{}: {}", failure.change, failure.source)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    world: World,
    changes: Vec<Change>,
}

fn parse(state: &StateDir, bytes: &[u8]) -> Result<Content, JournalError> {
    serde_json::from_slice(bytes).map_err(|source| JournalError::Malformed {
        path: state.path().join(JOURNAL),
        source,
    })
}

/// The most changes one journal holds: two for each interface of a host with hundreds of them, and a few more.
pub const MAX_CHANGES: usize = 1024;

/// The name of its file in the state folder.
pub const JOURNAL: &str = "journal.json";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A system of named values in place of the kernel.
    type System = BTreeMap<String, String>;

    fn world() -> World {
        World {
            boot: "b".into(),
            network: "n".into(),
        }
    }

    fn change(key: &str, was: &str, set: &str) -> Change {
        Change::Sysctl {
            key: key.into(),
            was: was.into(),
            set: Some(set.into()),
        }
    }

    fn undo_in(system: &mut System, change: &Change) -> io::Result<()> {
        match change {
            Change::Sysctl { key, was, set } => {
                let value = system.get_mut(key).ok_or(io::ErrorKind::NotFound)?;
                if set.as_ref() == Some(value) {
                    *value = was.clone();
                }
                Ok(())
            }
            Change::Table { .. }
            | Change::HostTable { .. }
            | Change::Rule(_)
            | Change::Routes { .. }
            | Change::ResolvConf(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Where a process is killed: before or after one of the steps of a whole life.
    fn life(state: &StateDir, system: &mut System, mut steps_left: usize) {
        let mut step = || {
            steps_left = steps_left.checked_sub(1)?;
            Some(())
        };
        let mut run = || -> Option<()> {
            let mut journal = Journal::open(state, &world()).unwrap();
            journal.undo(|change| undo_in(system, change)).unwrap();
            for key in ["a", "b", "c"] {
                step()?;
                journal.record([change(key, "0", "1")]).unwrap();
                step()?;
                system.insert(key.into(), "1".into());
            }
            let mut killed = false;
            let _ = journal.undo(|change| {
                killed |= step().is_none();
                if killed {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                undo_in(system, change)
            });
            None
        };
        run();
    }

    #[test]
    fn killed_at_any_step_the_next_start_puts_all_back() {
        let before: System = ["a", "b", "c"]
            .map(|key| (key.to_owned(), "0".to_owned()))
            .into();
        for steps in 0..12 {
            let directory = tempfile::tempdir().unwrap();
            let state = StateDir::open(directory.path()).unwrap();
            let mut system = before.clone();
            life(&state, &mut system, steps);
            let changed = system != before;
            assert!(
                !changed
                    || !Journal::open(&state, &world())
                        .unwrap()
                        .changes()
                        .is_empty(),
                "after {steps} steps"
            );
            let mut journal = Journal::open(&state, &world()).unwrap();
            journal.undo(|change| undo_in(&mut system, change)).unwrap();
            assert_eq!(system, before, "after {steps} steps");
            assert_eq!(state.read(JOURNAL).unwrap(), None);
        }
    }

    #[test]
    fn undoing_twice_is_harmless_and_keeps_what_others_set_since() {
        let mut system: System = [("a".to_owned(), "7".to_owned())].into();
        undo_in(&mut system, &change("a", "0", "1")).unwrap();
        assert_eq!(system["a"], "7");
    }

    #[test]
    fn changes_are_undone_newest_first() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let mut journal = Journal::open(&state, &world()).unwrap();
        for key in ["a", "b", "c"] {
            journal.record([change(key, "0", "1")]).unwrap();
        }
        let mut order = Vec::new();
        journal
            .undo(|change| {
                order.push(change.to_string());
                Ok(())
            })
            .unwrap();
        assert_eq!(
            order,
            ["sysctl c (was 0)", "sysctl b (was 0)", "sysctl a (was 0)"]
        );
        assert!(journal.changes().is_empty());
    }

    #[test]
    fn failure_is_reported_kept_and_does_not_stop_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let mut journal = Journal::open(&state, &world()).unwrap();
        let table = Change::Table {
            name: "adit_adit0".into(),
            interface: "adit0".into(),
        };
        journal.record([change("a", "0", "1")]).unwrap();
        journal.record([table.clone()]).unwrap();
        let mut system: System = [("a".to_owned(), "1".to_owned())].into();
        let error = journal
            .undo(|change| undo_in(&mut system, change))
            .unwrap_err();
        assert!(
            error.to_string().contains("table inet adit_adit0"),
            "{error}"
        );
        assert_eq!(system["a"], "0");
        assert_eq!(Journal::open(&state, &world()).unwrap().changes(), [table]);
    }

    #[test]
    fn journal_of_another_boot_or_namespace_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        Journal::open(&state, &world())
            .unwrap()
            .record([change("a", "0", "1")])
            .unwrap();
        for other in [
            World {
                boot: "b2".into(),
                ..world()
            },
            World {
                network: "n2".into(),
                ..world()
            },
        ] {
            assert!(Journal::open(&state, &other).unwrap().changes().is_empty());
        }
        assert_eq!(Journal::open(&state, &world()).unwrap().changes().len(), 1);
    }

    #[test]
    fn files_outlive_the_boot_that_they_were_changed_in() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let path = Path::new("/etc/resolv.conf");
        let file = Change::ResolvConf(Replacement::renaming(path, "ours".into()));
        let mut journal = Journal::open(&state, &world()).unwrap();
        journal
            .record([
                change("a", "0", "1"),
                file.clone(),
                Change::Routes { table: 6865 },
            ])
            .unwrap();
        let later = World {
            boot: "b2".into(),
            ..world()
        };
        assert_eq!(Journal::open(&state, &later).unwrap().changes(), [file]);
        assert_eq!(Journal::world(&state).unwrap(), Some(world()));
    }

    #[test]
    fn only_what_is_due_is_undone_and_the_rest_keeps_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let mut journal = Journal::open(&state, &world()).unwrap();
        let table = |table| Change::Routes { table };
        let changes = [
            table(1),
            change("a", "0", "1"),
            table(2),
            change("b", "0", "1"),
        ];
        journal.record(changes.clone()).unwrap();
        let is_sysctl = |change: &Change| matches!(change, Change::Sysctl { .. });
        let refused = journal.undo_some(is_sysctl, |change| match change.to_string().as_str() {
            "sysctl a (was 0)" => Err(io::ErrorKind::Other.into()),
            _ => Ok(()),
        });
        assert!(refused.is_err());
        assert_eq!(journal.changes(), &changes[..3]);
    }

    #[test]
    fn malformed_journal_is_named_and_nothing_is_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        state.write(JOURNAL, b"{\"world\":").unwrap();
        let error = Journal::open(&state, &world()).unwrap_err();
        assert!(error.to_string().contains("journal.json"), "{error}");
    }

    #[test]
    fn full_journal_refuses_the_change() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let mut journal = Journal::open(&state, &world()).unwrap();
        journal.content.changes = vec![change("a", "0", "1"); MAX_CHANGES];
        assert!(matches!(
            journal.record([change("b", "0", "1")]),
            Err(JournalError::Full { limit: MAX_CHANGES })
        ));
    }

    #[test]
    fn world_is_stable_within_a_process() {
        assert_eq!(World::current().unwrap(), World::current().unwrap());
    }
}
