//! `adit cleanup`: undoes what a server or client left in the system that was killed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use rustix::process::geteuid;

use super::args::CleanupArgs;
use super::{Failure, print};
use crate::config::{ClientConfig, Inputs, Kind, ServerConfig, guess_kind, state_base};
use crate::io::host::{HostError, clean_up};
use crate::io::journal::JOURNAL;
use crate::io::state::StateError;

/// Undoes what the named state folder has noted, or that of a configuration, or every one in the place where they are.
pub(super) fn run(args: &CleanupArgs) -> Result<(), Failure> {
    let named = match (&args.state_dir, &args.config) {
        (Some(folder), _) => Some(folder.clone()),
        (None, Some(file)) => Some(folder_of(file)?),
        (None, None) => None,
    };
    if let Some(folder) = named {
        if !folder.exists() {
            return Err(Failure::Usage(format!(
                "{}: there is no such folder",
                folder.display()
            )));
        }
        return match clean_up(&folder) {
            Ok(undone) => tell(&folder, &undone),
            Err(error) => Err(Failure::Run(error.into())),
        };
    }
    let environment = |name: &str| env::var(name).ok();
    let base = state_base(&environment).ok_or_else(|| {
        Failure::Usage("no place for state folders is known: name one by --state-dir".to_owned())
    })?;
    let mut failed = Vec::new();
    for base in places(base) {
        let folders = journals(&base);
        if folders.is_empty() {
            let found = if base.exists() {
                "nothing was left behind"
            } else {
                "there is no such folder, so nothing was left behind"
            };
            print(&format!("looked in {}: {found}", base.display()))?;
            continue;
        }
        print(&format!("looked in {}:", base.display()))?;
        for folder in folders {
            match clean_up(&folder) {
                Ok(undone) => tell(&folder, &undone)?,
                // Whoever lives undoes it at the end.
                Err(HostError::State(error @ StateError::Held { .. })) => {
                    print(&format!("left as it is: {error}"))?;
                }
                Err(error) => failed.push(format!("{}: {error}", folder.display())),
            }
        }
    }
    point_to_others()?;
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Run(anyhow!(failed.join("; "))))
    }
}

/// Where state folders may be: in `base`, and as root in those that units have besides.
fn places(base: PathBuf) -> Vec<PathBuf> {
    let mut places = vec![base];
    if geteuid().is_root() {
        let entries = fs::read_dir(UNITS_STATE).into_iter().flatten().flatten();
        let of_units = entries.filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("adit-")
        });
        let mut of_units: Vec<PathBuf> = of_units.map(|entry| entry.path()).collect();
        of_units.retain(|folder| folder.is_dir());
        of_units.sort();
        places.extend(of_units);
    }
    places
}

/// Says where else something may lie, and who undoes it.
fn point_to_others() -> Result<(), Failure> {
    if !geteuid().is_root() {
        return point_to_root();
    }
    // What is written there is its user's to say, and root must not do whatever a user says: nor is a name that he has given
    // part of a command, or of what the terminal obeys.
    for folder in homes().into_iter().flat_map(|home| journals(&home)) {
        print(&format!(
            "{folder:?}: belongs to a user, whose `adit cleanup` undoes what is noted there; or name it by --state-dir, if you trust it"
        ))?;
    }
    Ok(())
}

/// Where users have their state folders.
pub(super) fn homes() -> Vec<PathBuf> {
    let entries = fs::read_dir(HOMES).into_iter().flatten().flatten();
    let mut homes: Vec<PathBuf> = entries
        .take(MOST_HOMES)
        .map(|entry| entry.path().join(".local/state/adit"))
        .collect();
    homes.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local/state/adit")));
    homes.sort();
    homes.dedup();
    homes
}

/// Says who undoes what programs of root have left: theirs are other folders, which this user may not even see.
fn point_to_root() -> Result<(), Failure> {
    if geteuid().is_root() || !Path::new(ROOTS_STATE).exists() {
        return Ok(());
    }
    print(&format!(
        "{ROOTS_STATE} is root's: what programs of root have left behind, `sudo adit cleanup` undoes"
    ))
}

/// The state folder that a program with this configuration would have.
fn folder_of(file: &Path) -> Result<PathBuf, Failure> {
    let shown = file.display();
    if !file.exists() {
        return Err(Failure::Usage(format!("{shown}: there is no such file")));
    }
    let environment = |name: &str| env::var(name).ok();
    let inputs = Inputs {
        file: Some(file),
        environment: &environment,
        flags: &[],
    };
    match guess_kind(file)? {
        Some(Kind::Server) => Ok(ServerConfig::load(inputs)?.config.state_dir),
        Some(Kind::Client) | None => {
            // Whether it was `tun:` or --tun that it was started with.
            let flags = ClientConfig::with_tunnel();
            let config = ClientConfig::load(Inputs {
                flags: &flags,
                ..inputs
            })?;
            let tunnel = config.config.tun;
            let folder = tunnel.map(|tunnel| tunnel.state_dir);
            folder.ok_or_else(|| Failure::Usage(format!("{shown}: names no state folder")))
        }
    }
}

/// The folders below `base`, and `base` itself, as a unit has it, in which something is noted.
fn journals(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .take(MOST_FOLDERS)
        .map(|entry| entry.path())
        .chain([base.to_owned()])
        .filter(|folder| folder.join(JOURNAL).exists())
        .collect();
    folders.sort();
    folders
}

fn tell(folder: &Path, undone: &[String]) -> Result<(), Failure> {
    if undone.is_empty() {
        return print(&format!("{}: nothing was left behind", folder.display()));
    }
    for change in undone {
        print(&format!("undone: {change}"))?;
    }
    Ok(())
}

/// Where units have folders of their own.
const UNITS_STATE: &str = "/var/lib";
/// Where users have theirs.
const HOMES: &str = "/home";
/// More homes than a person reads about are not looked at.
const MOST_HOMES: usize = 1000;
/// Nor more folders in one place: more programs than anybody runs.
const MOST_FOLDERS: usize = 1000;

/// Where root's programs have their state folders.
const ROOTS_STATE: &str = "/var/lib/adit";
