//! Keys that nobody has asked for: what was meant, as far as that can be told.

use std::collections::BTreeSet;

use super::Settings;
use crate::config::error::Place;
use crate::config::yaml::{Entry, Value};

impl Settings<'_> {
    /// Walks the file beside the keys that were asked for.
    pub(super) fn unknown_keys(&mut self, entries: &[Entry], path: &str, pattern: &str) {
        for entry in entries {
            let path = join(path, &entry.key);
            let pattern = join(pattern, &entry.key);
            let group = format!("{pattern}.");
            let list = format!("{pattern}[]");
            match &entry.node.value {
                Value::Map(inner) if self.known.iter().any(|known| known.starts_with(&group)) => {
                    self.unknown_keys(inner, &path, &pattern);
                }
                Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_)
                    if self.known.contains(&pattern) => {}
                Value::List(items) if self.known.contains(&list) => {
                    for (index, item) in items.iter().enumerate() {
                        if let Value::Map(inner) = &item.value {
                            self.unknown_keys(inner, &format!("{path}[{index}]"), &list);
                        }
                    }
                }
                Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                    let is_known = |known: &String| known.starts_with(&group) || *known == list;
                    if !self.known.iter().any(is_known) {
                        let message = self.unknown_key(&pattern);
                        self.problem(&path, Place::File(entry.key_spot.clone()), message);
                    }
                }
            }
        }
    }

    /// Words the answer to an unknown key: the nearest known one, or all.
    fn unknown_key(&self, pattern: &str) -> String {
        let (parent, name) = pattern.rsplit_once('.').unwrap_or(("", pattern));
        let siblings: BTreeSet<&str> = self
            .known
            .iter()
            .filter_map(|known| sibling(known, parent))
            .collect();
        if let Some(near) = nearest(name, siblings.iter().copied()) {
            return format!("unknown key `{name}`: did you mean `{near}`?");
        }
        let meant =
            (OTHER_WORDS.iter()).find(|(word, key)| *word == name && siblings.contains(key));
        if let Some((_, key)) = meant {
            return format!("unknown key `{name}`: it is called `{key}` here");
        }
        // A key that exists elsewhere is named with its place.
        if let Some(elsewhere) = self
            .known
            .iter()
            .find(|known| known.rsplit('.').next() == Some(name))
        {
            return format!("unknown key `{name}` in this place: there is `{elsewhere}`");
        }
        let all: Vec<&str> = siblings.into_iter().collect();
        format!("unknown key `{name}`: the keys here are {}", all.join(", "))
    }
}

/// Finds the nearest of some words, if one is near enough to be meant.
pub(in crate::config) fn nearest<'w>(
    word: &str,
    words: impl Iterator<Item = &'w str>,
) -> Option<&'w str> {
    let flat = |text: &str| text.to_lowercase().replace('-', "_");
    let word = flat(word);
    // One slip in three characters; more would guess.
    let most = (word.chars().count() / 3).clamp(1, 3);
    words
        .map(|known| (strsim::damerau_levenshtein(&word, &flat(known)), known))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// The name that `known` has directly below `parent`, if it is there.
fn sibling<'k>(known: &'k str, parent: &str) -> Option<&'k str> {
    let rest = if parent.is_empty() {
        known
    } else {
        known.strip_prefix(parent)?.strip_prefix('.')?
    };
    rest.split(['.', '['])
        .next()
        .filter(|name| !name.is_empty())
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// What other programs call a key, and the other one of ours, where no slip of the hand explains it.
const OTHER_WORDS: [(&str, &str); 6] = [
    ("listen", "proxy"),
    ("socks5", "proxy"),
    ("forwards", "local_forwards"),
    ("private_key", "key_file"),
    ("endpoint", "server"),
    ("peers", "clients"),
];
