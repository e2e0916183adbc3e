//! What a program does with itself before it serves: whom it becomes, and the key it makes.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::Place;
use super::files::{self, KeyFileError};
use super::parse;
use super::settings::{Located, Settings};
use crate::proto::SecretKey;

/// What is done between the reading of the configuration and the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessConfig {
    /// Whom a program that root has started becomes; one that somebody else has started stays who it is.
    pub user: Option<Account>,
    /// The file that the secret key is to be written to, since it was made just now.
    pub new_key: Option<PathBuf>,
}

/// An ordinary user and group, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's number, never 0.
    pub user: u32,
    /// The group's number, never 0.
    pub group: u32,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.user, self.group)
    }
}

/// Reads whom the program becomes.
pub(super) fn read_user(settings: &mut Settings<'_>) -> Option<Account> {
    settings.value("user", account).map(|at| at.value)
}

/// Reads whether a key is made where its file is not there.
pub(super) fn read_generate(settings: &mut Settings<'_>) -> bool {
    settings
        .value("generate_key", parse::boolean)
        .is_some_and(|at| at.value)
}

/// Where a key is made that is given no file: in the folder that systemd, or an image, gives for what outlives the
/// process.
pub(super) fn default_key(settings: &Settings<'_>, generate: bool) -> Option<Located<PathBuf>> {
    let folders = (settings.environment())("STATE_DIRECTORY").filter(|_| generate)?;
    // systemd.exec(5): several folders are separated by colons.
    let folder = folders
        .split(':')
        .next()
        .filter(|name| name.starts_with('/'))?;
    Some(Located {
        value: Path::new(folder).join("key"),
        key: "key_file".to_owned(),
        place: Place::Variable("STATE_DIRECTORY".to_owned()),
    })
}

/// Reads the secret key in the file `at`. Where there is none and `generate` is set, one is made, and its file noted:
/// reading a configuration writes nothing.
pub(super) fn read_key(
    settings: &mut Settings<'_>,
    at: &Located<PathBuf>,
    generate: bool,
    process: &mut ProcessConfig,
) -> Option<SecretKey> {
    let mut is_new = false;
    let key = settings.read_file(at, |path| match files::read_key(path) {
        Err(KeyFileError::Unreadable { source, .. })
            if generate && source.kind() == std::io::ErrorKind::NotFound =>
        {
            is_new = true;
            Ok(SecretKey::generate(&mut rand::rng()))
        }
        result => result,
    });
    if is_new {
        process.new_key = Some(at.value.clone());
    }
    key
}

/// `10001`, or `10001:10001` with another group.
fn account(text: &str) -> Result<Account, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        // The last one stands for "unchanged" in the system calls.
        digits
            .parse::<u32>()
            .ok()
            .filter(|number| plain && *number != 0 && *number != u32::MAX)
    };
    match (number(user), number(group)) {
        (Some(user), Some(group)) => Ok(Account { user, group }),
        _ => Err(format!(
            "`{text}` is not an ordinary user: write numbers other than root's 0, as 10001 or 10001:10001"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_numbers_and_never_roots() {
        let both = |user, group| Ok(Account { user, group });
        assert_eq!(account("10001"), both(10001, 10001));
        assert_eq!(account("65534:100"), both(65534, 100));
        for wrong in [
            "0",
            "0:5",
            "5:0",
            "adit",
            "",
            "5:",
            ":5",
            "+5",
            "4294967295",
            "1:2:3",
            "-1",
        ] {
            assert!(account(wrong).is_err(), "{wrong}");
        }
    }
}
