//! What is wrong with a configuration: where it stands, which key, what was found and what would be right.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proto::SecretKey;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {}", path.display(), explain_io(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{}: a configuration has at most {MAX_FILE_LEN} bytes, and this file has more", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8 text.
    #[error("{}: not a text file in UTF-8 (first wrong byte at offset {offset})", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// How many bytes in front of it are text.
        offset: usize,
    },
    /// One or more settings are wrong; all that were found, in the order of the file.
    #[error("{}", Problems(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// Lends the wrong settings; empty where the file could not be read at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) => problems,
            Self::Unreadable { .. } | Self::TooLarge { .. } | Self::NotText { .. } => &[],
        }
    }

    /// Whether nothing is wrong but that settings are missing.
    pub fn is_all_missing(&self) -> bool {
        let missing = |problem: &Problem| matches!(problem.place, Place::Missing(_));
        !self.problems().is_empty() && self.problems().iter().all(missing)
    }
}

/// One wrong setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where the setting was found, or would have to be.
    pub place: Place,
    /// The key with its path (`clients[1].public_key`); empty where the document as a whole is meant.
    pub key: String,
    /// What was found and what would be right.
    pub message: String,
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a file.
    File(Spot),
    /// An environment variable.
    Variable(String),
    /// A flag of the command line, such as `--proxy`.
    Flag(&'static str),
    /// Nowhere: it is missing. The file that was looked at is named where there is one.
    Missing(Option<PathBuf>),
}

/// A stretch of one line of a file.
#[derive(Clone, Debug)]
pub struct Spot {
    source: Arc<Source>,
    line: usize,
    column: usize,
    len: usize,
    secret: bool,
}

/// A file's path and text.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl Spot {
    /// `line` and `column` count from 1, `column` and `len` in characters.
    pub(super) fn new(source: Arc<Source>, line: usize, column: usize, len: usize) -> Self {
        Self {
            source,
            line,
            column,
            len,
            secret: false,
        }
    }

    /// The same spot, whose line is never shown.
    pub(super) fn secret(self) -> Self {
        Self {
            secret: true,
            ..self
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// The line, counted from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column in characters, counted from 1.
    pub fn column(&self) -> usize {
        self.column
    }

    /// Writes the line with a mark under the stretch; nothing where the line is secret.
    fn write_snippet(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(line) = self.source.text.lines().nth(self.line.saturating_sub(1)) else {
            return Ok(());
        };
        // A key file given as a configuration is one line, which may be a secret key.
        if self.secret || line.trim().parse::<SecretKey>().is_ok() {
            return Ok(());
        }
        let before = self.column.saturating_sub(1);
        // Long lines are cut around the stretch, so that the mark stays in sight.
        let skip = before.saturating_sub(SNIPPET_BEFORE);
        let shown: String = line
            .chars()
            .skip(skip)
            .take(SNIPPET_LEN)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let room = shown.chars().count().saturating_sub(before - skip).max(1);
        let mark = "^".repeat(self.len.clamp(1, room));
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(before - skip);
        write!(
            f,
            "\n{gutter} |\n{number} | {}\n{gutter} | {indent}{mark}",
            shown.trim_end()
        )
    }
}

impl PartialEq for Spot {
    fn eq(&self, other: &Self) -> bool {
        self.source.path == other.source.path
            && self.line == other.line
            && self.column == other.column
    }
}

impl Eq for Spot {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(spot) => {
                write!(f, "{}:{}:{}", spot.path().display(), spot.line, spot.column)
            }
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
            Self::Missing(Some(path)) => write!(f, "{}", path.display()),
            Self::Missing(None) => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.place {
            Place::File(spot) => spot.write_snippet(f),
            Place::Variable(_) | Place::Flag(_) | Place::Missing(_) => Ok(()),
        }
    }
}

/// Several problems, one after the other.
struct Problems<'a>(&'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Says what the system said, without its number.
pub(super) fn explain_io(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        "there is no such file".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        "this user may not read it (permission denied)".to_owned()
    } else if kind == io::ErrorKind::IsADirectory {
        "this is a folder, not a file".to_owned()
    } else {
        let text = error.to_string();
        match text.split_once(" (os error ") {
            Some((words, _)) => words.to_lowercase(),
            None => text,
        }
    }
}

/// Bytes in the largest file that is read as a configuration: some ten thousand clients.
pub(super) const MAX_FILE_LEN: u64 = 4 << 20;

/// Characters of a line that are shown: a terminal's width less the gutter.
const SNIPPET_LEN: usize = 100;

/// Characters shown in front of the stretch that is marked.
const SNIPPET_BEFORE: usize = 60;
