//! Changes single keys in the text of a configuration, and leaves all else in it as somebody has written it.
//!
//! # Theory of operation
//!
//! ```text
//!  text ──parse──▶ lines of each key ──▶ those of the keys to be changed are replaced ──▶ text
//!    └────────────────── all other keys are to read the same in both ◀──parse──────────────┘
//! ```
//!
//! A key is changed where it stands on lines of its own: from its line to the line of the next key beside it, but for blank
//! lines and comments before that. Comments between are kept behind what is written anew. What is found to be written
//! otherwise, such as a group in braces, is not changed but told, and so is every text that would not read as it is meant to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::error::{ConfigError, Source};
use super::files;
use super::yaml::{self, Entry, Node, Value};

/// What a key is to be.
#[derive(Clone, Debug)]
pub struct Change {
    /// The key; one in a group with a point: `tls.pin`.
    pub key: &'static str,
    /// What stands behind its colon, beginning with a blank or a line end; `None` takes the key out.
    pub to: Option<String>,
}

/// A text in which keys were changed.
#[derive(Debug)]
pub struct Edited {
    /// The text as it was.
    pub before: String,
    /// The text.
    pub text: String,
    /// The keys that were something else before.
    pub changed: Vec<&'static str>,
}

/// Why a configuration is not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EditError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ConfigError),
    /// It is written in a way that is not for programs to change.
    #[error(
        "{}: `{key}` stands there in a way that only its author should change: have it say this, and nothing else need change:\n{wanted}",
        path.display()
    )]
    ByHand {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Lines that say what is wanted.
        wanted: String,
    },
}

/// Changes keys of the configuration in a file, which stays as it is; a key that is there already as it is to be is passed over.
///
/// # Errors
/// [`EditError`].
pub fn edit_file(path: &Path, changes: &[Change]) -> Result<Edited, EditError> {
    let text = files::read_text(path)?.unwrap_or_default();
    edit(path, text, changes)
}

fn edit(path: &Path, text: String, changes: &[Change]) -> Result<Edited, EditError> {
    let before = parse(path, &text)?;
    let mut edited = Edited {
        before: text.clone(),
        text,
        changed: Vec::new(),
    };
    for change in changes {
        let by_hand = || EditError::ByHand {
            path: path.to_owned(),
            key: change.key,
            wanted: wanted(changes),
        };
        let entries = parse(path, &edited.text).map_err(|_| by_hand())?;
        let wanted = match &change.to {
            Some(to) => parse(path, &whole(change.key, to))?,
            None => Vec::new(),
        };
        if said(&entries, change.key) == said(&wanted, change.key) {
            continue;
        }
        edited.text = applied(&edited.text, &entries, change).ok_or_else(by_hand)?;
        edited.changed.push(change.key);
        let after = parse(path, &edited.text).map_err(|_| by_hand())?;
        if said(&after, change.key) != said(&wanted, change.key) {
            return Err(by_hand());
        }
    }
    let after = parse(path, &edited.text)?;
    if let Some(change) = changes.first()
        && others(&before, changes) != others(&after, changes)
    {
        return Err(EditError::ByHand {
            path: path.to_owned(),
            key: change.key,
            wanted: wanted(changes),
        });
    }
    Ok(edited)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let source = Arc::new(Source {
        path: path.to_owned(),
        text: text.to_owned(),
    });
    yaml::parse(&source).map_err(|problem| ConfigError::Invalid(vec![problem]))
}

/// The text with one change; `None` where it is not to be made on whole lines.
fn applied(text: &str, entries: &[Entry], change: &Change) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let top = Block {
        entries,
        column: 1,
        // Behind the last line.
        end: lines.len() + 1,
    };
    let Some((group, inner)) = change.key.split_once('.') else {
        return top.applied(&lines, change.key, change.to.as_deref());
    };
    let at = entries.iter().position(|entry| entry.key == group);
    let value = at.and_then(|at| entries.get(at)).map(|it| &it.node.value);
    match (value, &change.to) {
        (Some(Value::Map(inside)), to) if to.is_some() || inside.len() > 1 => {
            let first = inside.first()?;
            let block = Block {
                entries: inside,
                column: first.key_spot.column(),
                end: top.end_of(at?),
            };
            // In braces it begins on the line of its group.
            let own_lines = first.key_spot.line() > entries.get(at?)?.key_spot.line();
            own_lines
                .then(|| block.applied(&lines, inner, to.as_deref()))
                .flatten()
        }
        (Some(Value::Map(_) | Value::Null) | None, to) => {
            let to = to.as_ref().map(|to| format!("\n  {inner}:{to}"));
            top.applied(&lines, group, to.as_deref())
        }
        (Some(Value::Text(_) | Value::List(_)), _) => None,
    }
}

/// Keys beside each other, each on lines of its own.
struct Block<'a> {
    entries: &'a [Entry],
    /// Where each begins, counted from 1.
    column: usize,
    /// The line behind the last one, counted from 1.
    end: usize,
}

impl Block<'_> {
    /// The line behind the last one of a key, and of all that stands before the next.
    fn end_of(&self, at: usize) -> usize {
        let next = self.entries.get(at + 1);
        next.map_or(self.end, |next| next.key_spot.line())
    }

    fn applied(&self, lines: &[&str], key: &str, to: Option<&str>) -> Option<String> {
        let indent = " ".repeat(self.column - 1);
        let written = to.map(|to| format!("{indent}{key}:{to}\n"));
        let written = written.unwrap_or_default();
        let Some(at) = self.entries.iter().position(|entry| entry.key == key) else {
            // In a group first, where the lines of a last key may end anywhere.
            let before = match self.entries.first() {
                Some(first) if self.column > 1 => first.key_spot.line() - 1,
                Some(_) | None => lines.len(),
            };
            let (head, tail) = lines.split_at_checked(before)?;
            let head = ended(head.concat());
            return Some(format!("{head}{written}{}", tail.concat()));
        };
        let first = self.entries.get(at)?.key_spot.clone();
        let (start, end) = (first.line() - 1, self.end_of(at) - 1);
        if first.column() != self.column || end <= start {
            return None;
        }
        let (head, rest) = lines.split_at_checked(start)?;
        let (block, tail) = rest.split_at_checked(end - start)?;
        let own = block.iter().rposition(|line| !is_comment(line))? + 1;
        let (block, between) = block.split_at_checked(own)?;
        let comments: String = (block
            .iter()
            .filter(|line| line.trim_start().starts_with('#')))
        .copied()
        .collect();
        let head = head.concat();
        let rest = [between, tail].concat().concat();
        Some(format!("{head}{written}{comments}{rest}"))
    }
}

/// The text, with an end to its last line.
fn ended(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Whether a line says nothing.
fn is_comment(line: &&str) -> bool {
    let text = line.trim();
    text.is_empty() || text.starts_with('#')
}

/// Lines that say what is wanted.
fn wanted(changes: &[Change]) -> String {
    let lines = changes.iter().map(|change| match &change.to {
        Some(to) => whole(change.key, to),
        None => format!("# without {}\n", change.key),
    });
    let lines: String = lines.collect();
    lines.trim_end().to_owned()
}

/// A text of one key alone.
fn whole(key: &str, to: &str) -> String {
    match key.split_once('.') {
        Some((group, inner)) => format!("{group}:\n  {inner}:{to}\n"),
        None => format!("{key}:{to}\n"),
    }
}

/// What is said of a key: nothing, or its value without places.
fn said(entries: &[Entry], key: &str) -> Option<Plain> {
    let find = |entries: &[Entry], key: &str| {
        let entry = entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| entry.node.clone())
    };
    let node = match key.split_once('.') {
        Some((group, inner)) => match find(entries, group)?.value {
            Value::Map(inside) => find(&inside, inner)?,
            Value::Null | Value::Text(_) | Value::List(_) => return None,
        },
        None => find(entries, key)?,
    };
    Some(plain(&node))
}

/// All that is said of other keys, in its order; a group of which nothing is left counts as not there.
fn others(entries: &[Entry], changes: &[Change]) -> Vec<(String, Plain)> {
    let is_changed = |key: &str| changes.iter().any(|change| change.key == key);
    let mut all = Vec::new();
    for entry in entries.iter().filter(|entry| !is_changed(&entry.key)) {
        let prefix = format!("{}.", entry.key);
        let is_group = changes.iter().any(|it| it.key.starts_with(&prefix));
        match &entry.node.value {
            Value::Map(inside) if is_group => {
                let inside = inside.iter().map(|it| (format!("{prefix}{}", it.key), it));
                let others = inside.filter(|(key, _)| !is_changed(key));
                all.extend(others.map(|(key, it)| (key, plain(&it.node))));
            }
            Value::Null if is_group => {}
            Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                all.push((entry.key.clone(), plain(&entry.node)));
            }
        }
    }
    all
}

/// A value without places. A text alone and a list of it are two.
#[derive(Debug, PartialEq, Eq)]
enum Plain {
    Null,
    Text(String),
    List(Vec<Plain>),
    Map(Vec<(String, Plain)>),
}

fn plain(node: &Node) -> Plain {
    match &node.value {
        Value::Null => Plain::Null,
        Value::Text(text) => Plain::Text(text.clone()),
        Value::List(nodes) => Plain::List(nodes.iter().map(plain).collect()),
        Value::Map(entries) => {
            let entries = entries.iter();
            Plain::Map(
                entries
                    .map(|it| (it.key.clone(), plain(&it.node)))
                    .collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pin: Option<&str>) -> Vec<Change> {
        let change = |key, to: Option<&str>| Change {
            key,
            to: to.map(str::to_owned),
        };
        vec![
            change("server", Some("\n  - udp://new:1\n  - tls://new:2")),
            change("server_key", Some(" NEW")),
            change("preshared_key_file", None),
            change("tls.pin", pin),
        ]
    }

    fn edited(text: &str, pin: Option<&str>) -> Result<Edited, EditError> {
        edit(Path::new("client.yaml"), text.to_owned(), &changes(pin))
    }

    #[test]
    fn keys_are_changed_and_every_other_line_stays_as_it_was() {
        let text = "\
# my own client
server:            # the best first
  - udp://old:1
  # - tcp://old:1    not from the office
  - tls://old:2

# as the admin told me
server_key: OLD
preshared_key_file: psk

rules:
  - direct 192.168.0.0/16   # the printer
tls:
  pin: OLD
dns: {block: [ads.txt]}
# the end";
        let expected = "\
# my own client
server:
  - udp://new:1
  - tls://new:2
  # - tcp://old:1    not from the office

# as the admin told me
server_key: NEW

rules:
  - direct 192.168.0.0/16   # the printer
tls:
  pin: PIN
dns: {block: [ads.txt]}
# the end";
        let done = edited(text, Some(" PIN")).unwrap();
        assert_eq!(done.text, expected);
        let keys = ["server", "server_key", "preshared_key_file", "tls.pin"];
        assert_eq!(done.changed, keys);
        // What is so already is not touched, however it is written.
        let again = edited(expected, Some(" \"PIN\"")).unwrap();
        assert_eq!((again.text.as_str(), again.changed.len()), (expected, 0));
        let flow = "{server: [udp://new:1, tls://new:2], server_key: NEW, tls: {pin: PIN}}";
        assert_eq!(edited(flow, Some(" PIN")).unwrap().text, flow);
    }

    #[test]
    fn keys_that_are_not_there_are_added_and_taken_out_of_their_group() {
        for (text, pin, expected) in [
            (
                "",
                None,
                "server:\n  - udp://new:1\n  - tls://new:2\nserver_key: NEW\n",
            ),
            (
                "proxy: 127.0.0.1:1",
                Some(" P"),
                "proxy: 127.0.0.1:1\nserver:\n  - udp://new:1\n  - tls://new:2\nserver_key: NEW\ntls:\n  pin: P\n",
            ),
            (
                "tls:\n    # of the firm\n    name: a\n",
                Some(" P"),
                "tls:\n    # of the firm\n    pin: P\n    name: a\nserver:\n  - udp://new:1\n  - tls://new:2\nserver_key: NEW\n",
            ),
            (
                "tls:\n  name: a\n  pin:\n    - O\n    - U\nlanes: 2\n",
                None,
                "tls:\n  name: a\nlanes: 2\nserver:\n  - udp://new:1\n  - tls://new:2\nserver_key: NEW\n",
            ),
            (
                "tls:\n  pin: O\nlanes: 2\n",
                None,
                "lanes: 2\nserver:\n  - udp://new:1\n  - tls://new:2\nserver_key: NEW\n",
            ),
        ] {
            let done = edited(text, pin).unwrap();
            let lines = |text: &str| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            assert_eq!(lines(&done.text), lines(expected), "{text}");
            assert!(edited(&done.text, pin).unwrap().changed.is_empty());
        }
    }

    #[test]
    fn what_only_its_author_should_change_is_told_with_what_is_wanted() {
        for text in [
            "{server: [udp://old:1], server_key: OLD}",
            "server: &here [udp://old:1]\nproxies:\n  - {listen: \"127.0.0.1:1\", rules: *here}\n",
            "server: udp://old:1\nserver_key: OLD\ntls: {pin: OLD, ca_file: x}\n",
            "lanes: 2\n...\n",
        ] {
            let error = edited(text, Some(" PIN")).expect_err(text);
            assert!(matches!(error, EditError::ByHand { .. }), "{text}: {error}");
            let told = error.to_string();
            assert!(
                told.contains("  - udp://new:1\n  - tls://new:2\nserver_key: NEW"),
                "{told}"
            );
            assert!(
                told.contains("# without preshared_key_file\ntls:\n  pin: PIN"),
                "{told}"
            );
        }
        let broken = edited("server: [udp://old:1\n", None).unwrap_err();
        assert!(matches!(broken, EditError::Read(_)), "{broken}");
    }
}
