//! Reads and writes the files that a configuration names: texts and keys.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use super::dns::MAX_LIST;
use super::error::{ConfigError, MAX_FILE_LEN, explain_io};
use super::shell::shell_word;
use crate::io::file::{open_at_once, open_regular};
use crate::io::state::{write_atomically, write_new};
use crate::proto::SecretKey;

/// Reads a configuration file; `None` where there is none.
///
/// # Errors
/// It is unreadable, longer than 4 MiB, or not UTF-8.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = match open_at_once(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_LEN + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => Err(ConfigError::NotText {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        }),
    }
}

/// Reads a file that holds one secret key: 44 base64 characters, white space around them.
///
/// As OpenSSH does, a file that belongs to the user of this process is refused when its group or others may
/// use it; one that belongs to somebody else (root, in a container's secret) is that owner's to guard.
///
/// # Errors
/// It is missing, unreadable, open to others, or holds no key. No error repeats what the file holds.
pub fn read_key<K>(path: &Path) -> Result<K, KeyFileError>
where
    K: FromStr,
    K::Err: fmt::Display,
{
    let unreadable = |source| KeyFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = open_at_once(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if let Some(mode) = open_mode(&metadata) {
        return Err(KeyFileError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    let text = read_secret(file).map_err(unreadable)?;
    text.trim()
        .parse()
        .map_err(|error: K::Err| KeyFileError::Malformed {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// Returns the permission bits of a file of this user's that others may use too; `None` where they may not, or
/// where that cannot be seen.
pub(super) fn mode_for_others(path: &Path) -> Option<u32> {
    open_mode(&fs::metadata(path).ok()?)
}

fn open_mode(metadata: &fs::Metadata) -> Option<u32> {
    let mode = metadata.mode() & 0o777;
    let own = metadata.uid() == rustix::process::geteuid().as_raw();
    (metadata.is_file() && own && mode & 0o077 != 0).then_some(mode)
}

/// Reads a short secret, such as a password, from a file: its first line.
///
/// # Errors
/// As [`read_key`], but any text is accepted.
pub(super) fn read_password(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let unreadable = |source| KeyFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let text = read_secret(open_at_once(path).map_err(unreadable)?).map_err(unreadable)?;
    Ok(Zeroizing::new(
        text.lines().next().unwrap_or_default().to_owned(),
    ))
}

/// Tells whether a file of certificates can be opened for reading, without reading it.
///
/// # Errors
/// It cannot, is no regular file, or is longer than 4 MiB.
pub(super) fn probe(path: &Path) -> Result<(), KeyFileError> {
    probe_up_to(path, MAX_FILE_LEN)
}

/// The same of a list of names.
///
/// # Errors
/// As [`probe`], but it may have [`MAX_LIST`] bytes.
pub(super) fn probe_list(path: &Path) -> Result<(), KeyFileError> {
    probe_up_to(path, MAX_LIST)
}

fn probe_up_to(path: &Path, most: u64) -> Result<(), KeyFileError> {
    match open_regular(path, most) {
        Ok(_file) => Ok(()),
        Err(source) => Err(KeyFileError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Parses a secret key that was read from a stream: 44 base64 characters, white space around them.
///
/// # Errors
/// Reading fails, or the text is no key.
pub fn read_key_from(stream: impl io::Read, name: &Path) -> Result<SecretKey, KeyFileError> {
    let text = read_secret(stream).map_err(|source| KeyFileError::Unreadable {
        path: name.to_owned(),
        source,
    })?;
    text.trim()
        .parse::<SecretKey>()
        .map_err(|error| KeyFileError::Malformed {
            path: name.to_owned(),
            reason: error.to_string(),
        })
}

/// Writes a secret key to a new file of mode 0600, in one step: the file is there whole, or not at all.
///
/// # Errors
/// The file exists (unless `replace`), or cannot be written.
pub fn write_key(path: &Path, key: &SecretKey, replace: bool) -> Result<(), KeyFileError> {
    let unwritable = |source| KeyFileError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let mut line = Zeroizing::new(Vec::with_capacity(64));
    line.extend_from_slice(key.to_base64().as_bytes());
    line.push(b'\n');
    let written = if replace {
        write_atomically(path, &line)
    } else {
        write_new(path, &line)
    };
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            KeyFileError::Exists {
                path: path.to_owned(),
            }
        } else {
            unwritable(error)
        }
    })
}

/// Why a file of a secret cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {}", path.display(), explain_io(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may use the file.
    #[error("{} may be used by others than you (its mode is {mode:04o}): run chmod 600 {}", path.display(), shell_word(path))]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key.
    #[error("{} holds no key: {reason}; `adit keygen` makes one", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text, without the text.
        reason: String,
    },
    /// The file is there already, and keys are not overwritten.
    #[error("{} exists already: name another file, or say --force to lose the key in it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {}", path.display(), explain_write(source))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads at most [`MAX_SECRET_LEN`] bytes of text into memory that is erased.
fn read_secret(stream: impl io::Read) -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_LEN));
    stream.take(MAX_SECRET_LEN as u64).read_to_end(&mut bytes)?;
    // Bytes that are no text are no key either, and are told as such by whoever parses.
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

fn explain_write(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        "there is no such folder".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "this user may not write there (permission denied)".to_owned()
    } else {
        explain_io(error)
    }
}

/// Bytes read of a file with one secret: a key has 45, a password at most 255 and its line end.
const MAX_SECRET_LEN: usize = 4096;
