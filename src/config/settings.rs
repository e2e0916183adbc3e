//! Reads settings by key: a flag wins over the environment, the environment over the file.
//!
//! A key at the top or in a group (`tun.name`) can be given in all three places; its variable is the key in
//! capitals behind `ADIT_`, with the dot as an underscore (`ADIT_TUN_NAME`), and a list is separated by commas
//! there. Lists of groups (`clients`) live in the file only. Reading never stops at a mistake: problems are
//! collected, and [`Settings::finish`] adds the keys that nobody asked for.

mod groups;
mod unknown;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dns::ListSource;
use super::error::{ConfigError, Place, Problem, Source};
use super::files;
use super::yaml::{self, Entry, Node, Value};
pub(super) use groups::Group;
pub(super) use unknown::nearest;

/// Where the settings of a program come from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The configuration file. One that does not exist counts as empty.
    pub file: Option<&'a Path>,
    /// Looks up an environment variable.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// What the command line says.
    pub flags: &'a [FlagValue],
}

/// A setting given on the command line.
#[derive(Clone, Debug)]
pub struct FlagValue {
    /// The key that it sets, as in the file.
    pub key: &'static str,
    /// The flag as it was typed, for messages: `--proxy`.
    pub flag: &'static str,
    /// The values in their order; the last one counts unless the key is a list.
    pub values: Vec<String>,
}

/// A value and where it was found.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    /// The key with its path: `clients[0].name`.
    pub(super) key: String,
    pub(super) place: Place,
}

/// The settings while they are being read.
pub(super) struct Settings<'a> {
    inputs: Inputs<'a>,
    path: Option<PathBuf>,
    entries: Vec<Entry>,
    absent: bool,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
    /// Problems beyond [`MAX_PROBLEMS`].
    untold: usize,
    warnings: Vec<String>,
    /// Whether files that the values name are opened.
    opens_files: bool,
}

impl<'a> Settings<'a> {
    /// Takes no file into account.
    pub(super) fn new(inputs: Inputs<'a>) -> Self {
        Self {
            inputs,
            path: None,
            entries: Vec::new(),
            absent: false,
            known: BTreeSet::new(),
            problems: Vec::new(),
            untold: 0,
            warnings: Vec::new(),
            opens_files: true,
        }
    }

    /// Takes the text of a file, and opens none of those that it names: each is a problem instead.
    ///
    /// # Errors
    /// The text is not YAML.
    pub(super) fn of_text(
        inputs: Inputs<'a>,
        path: &Path,
        text: &str,
    ) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let source = Arc::new(Source {
            path: path.clone(),
            text: text.to_owned(),
        });
        let entries =
            yaml::parse(&source).map_err(|problem| ConfigError::Invalid(vec![problem]))?;
        Ok(Self {
            path: Some(path),
            entries,
            opens_files: false,
            ..Self::new(inputs)
        })
    }

    /// Takes the text of a file as it would be at `path`.
    ///
    /// # Errors
    /// The text is not YAML.
    pub(super) fn of_file(
        inputs: Inputs<'a>,
        path: &Path,
        text: &str,
    ) -> Result<Self, ConfigError> {
        let settings = Self::of_text(inputs, path, text)?;
        Ok(Self {
            opens_files: true,
            ..settings
        })
    }

    /// Reads and parses the file, if there is one.
    ///
    /// # Errors
    /// The file is unreadable, too large, not text, or not YAML.
    pub(super) fn open(inputs: Inputs<'a>) -> Result<Self, ConfigError> {
        let mut settings = Self {
            path: inputs.file.map(Path::to_owned),
            ..Self::new(inputs)
        };
        let Some(path) = inputs.file else {
            return Ok(settings);
        };
        match files::read_text(path)? {
            Some(text) => {
                let source = Arc::new(Source {
                    path: path.to_owned(),
                    text,
                });
                settings.entries =
                    yaml::parse(&source).map_err(|problem| ConfigError::Invalid(vec![problem]))?;
            }
            None => {
                settings.absent = true;
                settings
                    .warnings
                    .push(format!("{}: there is no such file", path.display()));
            }
        }
        Ok(settings)
    }

    /// Returns what looks up environment variables.
    pub(super) fn environment(&self) -> &'a dyn Fn(&str) -> Option<String> {
        self.inputs.environment
    }

    /// Reads one value by `parse`, whose error says what was found and what would be right.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let (text, place) = self.text(key)?;
        self.parsed(key, &text, place, parse)
    }

    /// Reads a value that may stand alone (`key: value`) or in a group of that name, under
    /// `inner` (`key: {inner: value, …}`).
    pub(super) fn choice<T>(
        &mut self,
        key: &str,
        inner: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let inside = format!("{key}.{inner}");
        self.known.insert(inside.clone());
        let outside = self.flag(key).is_some() || self.variable(key).is_some();
        if !outside && (self.is_group(key) || self.variable(&inside).is_some()) {
            self.known.insert(key.to_owned());
            return self.value(&inside, parse);
        }
        self.value(key, parse)
    }

    /// Reads a value of a group that may be a single value instead, which is no problem.
    pub(super) fn detail<T>(
        &mut self,
        key: &str,
        inner: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let inside = self.inside(key, inner)?;
        self.value(&inside, parse)
    }

    /// Reads a list of a group that may be a single value instead, which is no problem.
    pub(super) fn details<T>(
        &mut self,
        key: &str,
        inner: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        let inside = self.inside(key, inner)?;
        self.list(&inside, parse)
    }

    /// Reads a path of a group that may be a single value instead, which is no problem.
    pub(super) fn detail_path(&mut self, key: &str, inner: &str) -> Option<Located<PathBuf>> {
        let inside = self.inside(key, inner)?;
        self.path(&inside)
    }

    /// Reads a list of what is a path unless `parse` takes it, in a group that may be a single value instead. Files
    /// are opened, and those that cannot be are problems.
    pub(super) fn sources(
        &mut self,
        key: &str,
        inner: &str,
        parse: impl Fn(&str) -> Option<Result<ListSource, String>>,
    ) -> Option<Vec<Located<ListSource>>> {
        let inside = self.inside(key, inner)?;
        let mut items = Vec::new();
        for (path, text, place) in self.texts(&inside)? {
            if let Some(outcome) = parse(&text) {
                items.extend(self.parsed(&path, &text, place, |_| outcome.clone()));
            } else if let Some(at) = self.parsed_path(&path, &text, place)
                && self.read_file(&at, files::probe_list).is_some()
            {
                items.push(Located {
                    value: ListSource::File(at.value),
                    key: at.key,
                    place: at.place,
                });
            }
        }
        Some(items)
    }

    /// The path of a key in a group, where there is one to read it from; known in any case.
    fn inside(&mut self, key: &str, inner: &str) -> Option<String> {
        let inside = format!("{key}.{inner}");
        self.known.insert(inside.clone());
        let outside = self.flag(&inside).is_some() || self.variable(&inside).is_some();
        (self.is_group(key) || outside).then_some(inside)
    }

    /// Whether the file has a group of that name.
    pub(super) fn is_group(&self, key: &str) -> bool {
        let is_it = |entry: &Entry| entry.key == key && matches!(entry.node.value, Value::Map(_));
        self.entries.iter().any(is_it)
    }

    /// Like [`Self::value`], for a value that must never be shown.
    pub(super) fn secret<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let (text, place) = self.text(key)?;
        self.parsed(key, &text, hide(place), parse)
    }

    /// Reads a list; a single value is a list of one. `None` where the key is not set.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<Located<T>>> {
        let mut items = Vec::new();
        for (path, text, place) in self.texts(key)? {
            items.extend(self.parsed(&path, &text, place, &parse));
        }
        Some(items)
    }

    /// Reads a list to which flags add, rather than replacing it; theirs come first.
    pub(super) fn list_with_flags<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Located<T>> {
        let given = self.flag_texts(key).unwrap_or_default();
        let said = self.said_texts(key).unwrap_or_default();
        let mut items = Vec::new();
        for (path, text, place) in given.into_iter().chain(said) {
            items.extend(self.parsed(&path, &text, place, &parse));
        }
        items
    }

    /// Reads a path; in a file it is relative to the file's folder, elsewhere to the working folder.
    pub(super) fn path(&mut self, key: &str) -> Option<Located<PathBuf>> {
        let (text, place) = self.text(key)?;
        self.parsed_path(key, &text, place)
    }

    /// Reads a list of paths.
    pub(super) fn paths(&mut self, key: &str) -> Option<Vec<Located<PathBuf>>> {
        let mut items = Vec::new();
        for (path, text, place) in self.texts(key)? {
            items.extend(self.parsed_path(&path, &text, place));
        }
        Some(items)
    }

    /// Adds a problem.
    pub(super) fn problem(&mut self, key: &str, place: Place, message: impl Into<String>) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        self.problems.push(Problem {
            place,
            key: key.to_owned(),
            message: message.into(),
        });
    }

    /// Adds a problem with a value that was read.
    pub(super) fn problem_at<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        self.problem(&at.key, at.place.clone(), message);
    }

    /// Reads the file that a value names, by a function whose error becomes a problem with the value.
    pub(super) fn read_file<T>(
        &mut self,
        at: &Located<PathBuf>,
        read: impl FnOnce(&Path) -> Result<T, files::KeyFileError>,
    ) -> Option<T> {
        if !self.opens_files {
            self.problem_at(at, "is not opened");
            return None;
        }
        read(&at.value)
            .map_err(|error| self.problem_at(at, error.to_string()))
            .ok()
    }

    /// Adds the problem that a key, which has no default, is not set; `right` says what to write.
    pub(super) fn missing(&mut self, key: &str, right: &str) {
        // A mistyped value was already reported; it is not missing.
        if self.has_problem(key) {
            return;
        }
        let message = format!("is missing: {right} (or set {})", variable(key));
        self.problem(key, Place::Missing(self.path.clone()), message);
    }

    /// Adds something that should be looked at but does not stop the start.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Ends the reading: unknown keys are problems; without problems the warnings are handed out.
    ///
    /// # Errors
    /// All problems found.
    pub(super) fn finish(mut self) -> Result<Vec<String>, ConfigError> {
        let entries = std::mem::take(&mut self.entries);
        self.unknown_keys(&entries, "", "");
        if self.problems.is_empty() {
            return Ok(self.warnings);
        }
        self.problems.sort_by_key(|problem| match &problem.place {
            Place::File(spot) => (0, spot.line(), spot.column()),
            Place::Variable(_) => (1, 0, 0),
            Place::Flag(_) => (2, 0, 0),
            Place::Missing(_) => (3, 0, 0),
        });
        if self.untold > 0 {
            self.problems.push(Problem {
                place: Place::Missing(self.path.clone()),
                key: String::new(),
                message: format!("and {} more mistakes", self.untold),
            });
        }
        if self.absent {
            // It may well have what is missing.
            (self.problems).retain(|problem| !matches!(problem.place, Place::Missing(_)));
            let message = "there is no such file".to_owned();
            self.problems.insert(
                0,
                Problem {
                    place: Place::Missing(self.path),
                    key: String::new(),
                    message,
                },
            );
        }
        Err(ConfigError::Invalid(self.problems))
    }

    /// Every key that was asked for, `clients[].name` among them.
    pub(super) fn known(&self) -> &BTreeSet<String> {
        &self.known
    }

    /// The keys at the top of the file.
    pub(super) fn top_keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_str())
    }

    /// Whether a problem with this key, or with an item of its list, was found.
    pub(super) fn has_problem(&self, key: &str) -> bool {
        let is_item = |rest: &str| rest.is_empty() || rest.starts_with('[');
        self.problems
            .iter()
            .any(|problem| problem.key.strip_prefix(key).is_some_and(is_item))
    }

    /// The text of a single value with its place.
    fn text(&mut self, key: &str) -> Option<(String, Place)> {
        self.known.insert(key.to_owned());
        if let Some((values, place)) = self.flag(key) {
            return values.last().map(|text| (text.clone(), place));
        }
        if let Some((text, place)) = self.variable(key) {
            return Some((text, place));
        }
        let node = self.lookup(key)?;
        self.scalar(key, node)
    }

    /// The texts of a list with their keys and places.
    fn texts(&mut self, key: &str) -> Option<Vec<Text>> {
        self.known.insert(key.to_owned());
        match self.flag_texts(key) {
            None => self.said_texts(key),
            given => given,
        }
    }

    /// Those that flags say.
    fn flag_texts(&self, key: &str) -> Option<Vec<Text>> {
        let (values, place) = self.flag(key)?;
        let items = values.iter().flat_map(|text| split(text));
        Some(
            items
                .map(|it| (key.to_owned(), it, place.clone()))
                .collect(),
        )
    }

    /// Those that the environment says, or else the file.
    fn said_texts(&mut self, key: &str) -> Option<Vec<Text>> {
        self.known.insert(key.to_owned());
        if let Some((text, place)) = self.variable(key) {
            let items = split(&text).into_iter();
            return Some(
                items
                    .map(|it| (key.to_owned(), it, place.clone()))
                    .collect(),
            );
        }
        let node = self.lookup(key)?;
        self.items(key, node)
    }

    /// The texts of a list in a file, or of a single value that stands for a list of one.
    fn items(&mut self, key: &str, node: Node) -> Option<Vec<Text>> {
        match node.value {
            Value::List(items) => {
                let mut texts = Vec::new();
                for (index, item) in items.into_iter().enumerate() {
                    let path = format!("{key}[{index}]");
                    let place = Place::File(item.spot.clone());
                    match item.value {
                        Value::Text(text) => texts.push((path, text, place)),
                        Value::Null | Value::List(_) | Value::Map(_) => {
                            let message = format!(
                                "found {}, where a single value is expected",
                                item.value.kind()
                            );
                            self.problem(&path, place, message);
                        }
                    }
                }
                Some(texts)
            }
            Value::Null | Value::Text(_) | Value::Map(_) => {
                let (text, place) = self.scalar(key, node)?;
                Some(vec![(key.to_owned(), text, place)])
            }
        }
    }

    fn flag(&self, key: &str) -> Option<(Vec<String>, Place)> {
        let given = self.inputs.flags.iter().find(|flag| flag.key == key)?;
        Some((given.values.clone(), Place::Flag(given.flag)))
    }

    /// A variable that is set but empty counts as not set, as `${NAME:-}` makes it in scripts.
    fn variable(&self, key: &str) -> Option<(String, Place)> {
        let name = variable(key);
        let text = (self.inputs.environment)(&name).filter(|text| !text.is_empty())?;
        Some((text, Place::Variable(name)))
    }

    /// Finds `key` or `group.key` in the file.
    fn lookup(&mut self, key: &str) -> Option<Node> {
        let Some((group, inner)) = key.split_once('.') else {
            return find(&self.entries, key);
        };
        let node = find(&self.entries, group)?;
        match node.value {
            Value::Map(entries) => find(&entries, inner),
            Value::Null => None,
            Value::Text(_) | Value::List(_) => {
                let place = Place::File(node.spot);
                if !self.problems.iter().any(|problem| problem.key == group) {
                    let message = format!(
                        "found {}, where a group such as {{{inner}: …}} is expected",
                        node.value.kind()
                    );
                    self.problem(group, place, message);
                }
                None
            }
        }
    }

    fn scalar(&mut self, key: &str, node: Node) -> Option<(String, Place)> {
        let kind = node.value.kind();
        match node.value {
            Value::Text(text) => Some((text, Place::File(node.spot))),
            Value::Null => None,
            Value::List(_) | Value::Map(_) => {
                self.problem(
                    key,
                    Place::File(node.spot),
                    format!("found {kind}, where a single value is expected"),
                );
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        text: &str,
        place: Place,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        match parse(text) {
            Ok(value) => Some(Located {
                value,
                key: key.to_owned(),
                place,
            }),
            Err(message) => {
                self.problem(key, place, message);
                None
            }
        }
    }

    fn parsed_path(&mut self, key: &str, text: &str, place: Place) -> Option<Located<PathBuf>> {
        if text.is_empty() || text.contains('\0') {
            self.problem(
                key,
                place,
                format!("`{text}` is not a path: write the name of a file"),
            );
            return None;
        }
        let folder = match &place {
            Place::File(spot) => spot.path().parent().unwrap_or(Path::new("")).to_owned(),
            Place::Variable(_) | Place::Flag(_) | Place::Missing(_) => PathBuf::new(),
        };
        Some(Located {
            value: folder.join(text),
            key: key.to_owned(),
            place,
        })
    }
}

/// A text with its key and place.
type Text = (String, String, Place);

/// The items of a list on one line.
fn split(text: &str) -> Vec<String> {
    let items = text.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Names the environment variable of a key: `ADIT_TUN_NAME` for `tun.name`.
pub fn variable(key: &str) -> String {
    format!("ADIT_{}", key.to_uppercase().replace('.', "_"))
}

fn find(entries: &[Entry], key: &str) -> Option<Node> {
    entries
        .iter()
        .find(|entry| entry.key == key)
        .map(|entry| entry.node.clone())
}

fn hide(place: Place) -> Place {
    match place {
        Place::File(spot) => Place::File(spot.secret()),
        Place::Variable(_) | Place::Flag(_) | Place::Missing(_) => place,
    }
}

/// Mistakes told at once: more than anybody corrects before the next check.
const MAX_PROBLEMS: usize = 30;
