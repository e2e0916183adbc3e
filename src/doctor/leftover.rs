//! What programs that were killed have left in the system, and what undoes it.
//!
//! It is noted in the journals of state folders, which are their users' own; rules and routes of a client that led its host
//! can be seen by anybody, also where the folder cannot, or is not known: whoever says `--tun` on the command line writes it
//! in no file.

use std::fs;
use std::path::{Path, PathBuf};

use super::finding::{Check, Finding};
use crate::config::shell_word;
use crate::io::host::Traces;
use crate::io::journal::{self, Change, JOURNAL, World};
use crate::io::state::locked_by;

/// What the journal of a state folder names that nobody has.
#[derive(Clone, Debug)]
pub struct Left {
    /// The folder.
    pub folder: PathBuf,
    /// What was changed, and was not undone.
    pub changes: Vec<Change>,
    /// Whether in another network namespace.
    pub elsewhere: bool,
}

/// Looks into the folders, and into those below `base`; what this user may not read is left out.
pub fn look(folders: &[PathBuf], base: Option<&Path>) -> Vec<Left> {
    let Ok(world) = World::current() else {
        return Vec::new();
    };
    let below = base.and_then(|base| fs::read_dir(base).ok());
    let below = below.into_iter().flatten().flatten().take(MAX_FOLDERS);
    let mut all: Vec<PathBuf> = folders.to_vec();
    all.extend(below.map(|entry| entry.path()));
    all.sort();
    all.dedup();
    let left = |folder: PathBuf| {
        let (of, changes) = journal::look(&folder).ok()??;
        // Whoever has the lock undoes them at its end.
        (!changes.is_empty() && locked_by(&folder).is_none())
            .then(|| still(folder, &of, changes, &world))?
    };
    all.into_iter().filter_map(left).collect()
}

/// What is there still of changes that were made in the world `of`.
fn still(folder: PathBuf, of: &World, mut changes: Vec<Change>, now: &World) -> Option<Left> {
    if of.boot != now.boot {
        changes.retain(Change::outlives_world);
    }
    (!changes.is_empty()).then(|| Left {
        folder,
        changes,
        elsewhere: of.boot == now.boot && of.network != now.network,
    })
}

/// Judges it; `leads` says whether a client runs, as far as this user can see, that leads this host.
pub fn judge(left: &[Left], traces: Traces, leads: bool) -> Vec<Finding> {
    let mut found: Vec<Finding> = left.iter().map(of_folder).collect();
    let here = left.iter().any(|left| {
        !left.elsewhere
            && left
                .changes
                .iter()
                .any(|it| !matches!(it, Change::Table { .. }))
    });
    // A device ends with its client, and so do the routes into it.
    // A client that has just been started has its table first, and the rest with its first session.
    let ownerless = (traces.routing || traces.table) && !traces.device && !traces.led && !leads;
    if ownerless && !here {
        let what = match (traces.routing, traces.table) {
            (true, true) => "rules and the nftables table",
            (true, false) => "rules",
            (false, _) => "the nftables table",
        };
        let words = format!(
            "{what} of a client that leads this host are there, and its tunnel is not: it was killed, or has just been started"
        );
        let next = "where none runs, undo it as root: adit cleanup (with --state-dir FOLDER if it had one of its own)";
        found.push(Finding::warning(Check::Left, words, next));
    }
    found
}

fn of_folder(left: &Left) -> Finding {
    let Left {
        folder,
        changes,
        elsewhere,
    } = left;
    let shown: Vec<String> = changes.iter().map(Change::to_string).collect();
    let folder = shell_word(folder);
    let mut words = format!("a program that was killed has left: {}", shown.join(", "));
    if changes
        .iter()
        .any(|it| matches!(it, Change::HostTable { .. }))
    {
        words += "; if it had a kill switch, nothing leaves this host until that is undone";
    }
    let next = if *elsewhere {
        format!(
            "it was in another network namespace, perhaps a container's: there, adit cleanup --state-dir {folder}; if that is \
             gone, so is what was left, and {JOURNAL} in it may be deleted"
        )
    } else {
        format!(
            "adit cleanup --state-dir {folder} undoes it, as the user who ran the program; so does the program's next start"
        )
    };
    Finding::warning(Check::Left, words, next)
        .about(folder)
        .figure("changes", shown)
}

/// Folders looked at: more programs than anybody runs.
const MAX_FOLDERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn world(boot: &str, network: &str) -> World {
        World {
            boot: boot.into(),
            network: network.into(),
        }
    }

    fn table() -> Change {
        Change::HostTable {
            name: "adit_client".into(),
        }
    }

    fn seen(routing: bool, device: bool, table: bool) -> Traces {
        Traces {
            routing,
            device,
            table,
            led: false,
        }
    }

    #[test]
    fn journal_without_an_owner_names_what_was_left_and_what_undoes_it() {
        let folder = Path::new("/var/lib/adit/k");
        let left = still(
            folder.into(),
            &world("b", "n"),
            vec![table()],
            &world("b", "n"),
        );
        let found = judge(&[left.unwrap()], seen(true, false, true), false);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].words.contains("nftables table inet adit_client"));
        let next = found[0].next.as_deref().unwrap();
        assert!(
            next.contains("adit cleanup --state-dir /var/lib/adit/k"),
            "{next}"
        );
    }

    #[test]
    fn folder_whose_name_somebody_has_chosen_is_one_word_of_the_command() {
        for boot in ["n", "m"] {
            let left = Left {
                folder: PathBuf::from("/home/x/a; rm -rf $HOME\u{1b}[2J\n"),
                changes: vec![table()],
                elsewhere: boot == "m",
            };
            let found = judge(&[left], seen(true, false, true), false);
            let shown = found[0].to_string();
            let word = r"--state-dir $'/home/x/a; rm -rf $HOME\033[2J\012'";
            assert!(shown.contains(word), "{shown}");
            assert!(!shown.contains('\u{1b}'), "{shown}");
        }
    }

    #[test]
    fn what_was_left_before_the_machine_was_started_anew_is_gone() {
        let folder = || PathBuf::from("/var/lib/adit/k");
        let left = still(folder(), &world("a", "n"), vec![table()], &world("b", "n"));
        assert!(left.is_none());
        let left = still(folder(), &world("b", "m"), vec![table()], &world("b", "n"));
        let found = judge(&[left.unwrap()], Traces::default(), false);
        assert!(
            found[0]
                .next
                .as_deref()
                .unwrap()
                .contains("another network namespace")
        );
    }

    #[test]
    fn rules_without_a_tunnel_are_told_where_no_journal_can_be_seen() {
        for (traces, leads, told) in [
            (seen(false, false, false), false, false),
            (seen(true, true, true), false, false),
            (seen(true, false, false), true, false),
            (seen(true, false, false), false, true),
            (seen(false, false, true), false, true),
        ] {
            let found = judge(&[], traces, leads);
            assert_eq!(!found.is_empty(), told, "{traces:?} {leads}");
            let led = judge(
                &[],
                Traces {
                    led: true,
                    ..traces
                },
                leads,
            );
            assert!(led.is_empty(), "its client lives: {traces:?}");
            for finding in &found {
                assert!(finding.next.as_deref().unwrap().contains("adit cleanup"));
            }
        }
    }
}
