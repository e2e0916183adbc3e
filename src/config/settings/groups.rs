//! Lists of groups, such as `clients`: each item has keys of its own, and only the file can hold them.

use std::path::PathBuf;

use super::{Located, Settings, find, hide};
use crate::config::error::Place;
use crate::config::yaml::{Entry, Value};

/// One group of keys in a list of groups.
#[derive(Clone, Debug)]
pub(in crate::config) struct Group {
    /// `clients[0]`.
    path: String,
    entries: Vec<Entry>,
    pub(in crate::config) place: Place,
}

impl Group {
    /// Names a key of the group with its path: `clients[0].name`.
    pub(in crate::config) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }
}

impl Settings<'_> {
    /// Reads a list of groups, which only a file can hold.
    ///
    /// `keys` are those of a group, which are known even where there is no group.
    pub(in crate::config) fn groups(&mut self, key: &str, keys: &[&str]) -> Vec<Group> {
        self.known
            .extend(keys.iter().map(|inner| format!("{key}[].{inner}")));
        self.known.insert(format!("{key}[]"));
        let Some(node) = find(&self.entries, key) else {
            return Vec::new();
        };
        let items = match node.value {
            Value::Null => return Vec::new(),
            Value::List(items) => items,
            Value::Text(_) | Value::Map(_) => {
                let message = format!(
                    "found {}, where a list is expected: begin each item with `- `",
                    node.value.kind()
                );
                self.problem(key, Place::File(node.spot), message);
                return Vec::new();
            }
        };
        let mut groups = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{key}[{index}]");
            let place = Place::File(item.spot);
            match item.value {
                Value::Map(entries) => groups.push(Group {
                    path,
                    entries,
                    place,
                }),
                Value::Null | Value::Text(_) | Value::List(_) => {
                    let message = format!(
                        "found {}, where a group of `key: value` is expected",
                        item.value.kind()
                    );
                    self.problem(&path, place, message);
                }
            }
        }
        groups
    }

    /// Reads one value of a group.
    pub(in crate::config) fn value_in<T>(
        &mut self,
        group: &Group,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let (text, place) = self.text_in(group, key)?;
        self.parsed(&group.key(key), &text, place, parse)
    }

    /// Like [`Self::value_in`], for a value that must never be shown.
    pub(in crate::config) fn secret_in<T>(
        &mut self,
        group: &Group,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let (text, place) = self.text_in(group, key)?;
        self.parsed(&group.key(key), &text, hide(place), parse)
    }

    /// Reads a list of a group; a single value is a list of one. `None` where the key is not set.
    pub(in crate::config) fn list_in<T>(
        &mut self,
        group: &Group,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        let node = find(&group.entries, key)?;
        let mut items = Vec::new();
        for (path, text, place) in self.items(&group.key(key), node)? {
            items.extend(self.parsed(&path, &text, place, &parse));
        }
        Some(items)
    }

    /// Reads one path of a group.
    pub(in crate::config) fn path_in(
        &mut self,
        group: &Group,
        key: &str,
    ) -> Option<Located<PathBuf>> {
        let (text, place) = self.text_in(group, key)?;
        self.parsed_path(&group.key(key), &text, place)
    }

    /// Adds the problem that a group lacks a key.
    pub(in crate::config) fn missing_in(&mut self, group: &Group, key: &str, right: &str) {
        let path = group.key(key);
        if self.has_problem(&path) {
            return;
        }
        self.problem(&path, group.place.clone(), format!("is missing: {right}"));
    }

    fn text_in(&mut self, group: &Group, key: &str) -> Option<(String, Place)> {
        let node = find(&group.entries, key)?;
        self.scalar(&group.key(key), node)
    }
}
