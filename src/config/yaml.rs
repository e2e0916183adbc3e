//! A YAML document as a small tree whose nodes know their place and their text as it was written.
//!
//! The document is read untyped, and typed by [`super::settings`]: so every scalar keeps its own words
//! (`off` is not turned into a boolean, nor a password of digits into a number), all mistakes of a file are
//! reported at once, and a value from the environment or a flag takes the same path as one from the file.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::error::{Place, Problem, Source, Spot};

/// One node of a document.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) spot: Spot,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing is written, or `null` or `~`.
    Null,
    /// A scalar: quoted, its contents; plain, the characters as they stand.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in its order.
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_spot: Spot,
    pub(super) node: Node,
}

impl Value {
    /// Names the kind for a message: `a list`.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a group of keys",
        }
    }
}

/// Reads a document whose top is a mapping. An empty document is an empty mapping.
pub(super) fn parse(source: &Arc<Source>) -> Result<Vec<Entry>, Problem> {
    // A byte order mark says nothing in UTF-8, and would shift every offset.
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        with_snippet: false,
    };
    let root = serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options)
        .map_err(|error| syntax(source, &error))?;
    let node = place(source, text, root)?;
    match node.value {
        Value::Map(entries) => Ok(entries),
        Value::Null => Ok(Vec::new()),
        Value::Text(_) | Value::List(_) => Err(Problem {
            message: format!(
                "found {}, where lines of `key: value` are expected",
                node.value.kind()
            ),
            place: Place::File(node.spot),
            key: String::new(),
        }),
    }
}

/// A node as the parser hands it over.
enum Raw {
    Null,
    Text(String),
    /// A plain scalar that the parser would turn into a number or a boolean.
    Plain,
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a group of keys")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Raw::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

/// Gives a node its place, and a plain scalar its own text.
fn place(source: &Arc<Source>, text: &str, raw: Spanned<Raw>) -> Result<Node, Problem> {
    let written = written(text, &raw.defined);
    let len = match &raw.value {
        Raw::Null => 1,
        Raw::Text(_) | Raw::Plain => written
            .and_then(|text| text.lines().next())
            .map_or(1, |line| line.chars().count()),
        Raw::List(_) | Raw::Map(_) => 1,
    };
    let spot = spot(source, &raw.referenced, len);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Text(text),
        Raw::Plain => match written {
            Some(text) => Value::Text(text.to_owned()),
            None => {
                return Err(Problem {
                    place: Place::File(spot),
                    key: String::new(),
                    message: "cannot tell what is written here: put it in quotes".to_owned(),
                });
            }
        },
        Raw::List(nodes) => Value::List(
            nodes
                .into_iter()
                .map(|node| place(source, text, node))
                .collect::<Result<_, _>>()?,
        ),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, node)| entry(source, text, key, node))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Node { value, spot })
}

fn entry(
    source: &Arc<Source>,
    text: &str,
    key: Spanned<Raw>,
    node: Spanned<Raw>,
) -> Result<Entry, Problem> {
    let key = place(source, text, key)?;
    match key.value {
        Value::Text(name) => Ok(Entry {
            key: name,
            key_spot: key.spot,
            node: place(source, text, node)?,
        }),
        Value::Null | Value::List(_) | Value::Map(_) => Err(Problem {
            message: format!(
                "found {} in the place of a key, which is one word",
                key.value.kind()
            ),
            place: Place::File(key.spot),
            key: String::new(),
        }),
    }
}

/// The characters of a scalar as they stand in the document.
fn written<'a>(text: &'a str, location: &Location) -> Option<&'a str> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let len = usize::try_from(location.span().byte_len()?).ok()?;
    text.get(start..start.checked_add(len)?)
}

fn spot(source: &Arc<Source>, location: &Location, len: usize) -> Spot {
    let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Spot::new(
        Arc::clone(source),
        number(location.line()),
        number(location.column()),
        len,
    )
}

/// Turns the parser's error into a problem: its words without the place, which is told once, in front.
fn syntax(source: &Arc<Source>, error: &serde_saphyr::Error) -> Problem {
    let error = error.without_snippet();
    let Some(location) = error.location() else {
        return Problem {
            place: Place::Missing(Some(source.path.clone())),
            key: String::new(),
            message: format!("not valid YAML: {error}"),
        };
    };
    let mut spot = spot(source, &location, 1);
    let message = if let serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } = error {
        format!("the key `{key}` stands here a second time: keep one of them")
    } else if let serde_saphyr::Error::MultipleDocuments { .. } = error {
        "a second document begins here (`---`): a configuration is one document".to_owned()
    } else {
        let text = error.to_string();
        let words = text
            .split_once(" at line ")
            .map_or(text.as_str(), |(words, _)| words);
        // The parser stops where it cannot go on, which is not always where the mistake was made.
        if let Some(quote) = open_quote(source, &spot).filter(|_| words.contains("quoted scalar")) {
            spot = quote;
            "not valid YAML: the quote that begins here does not end".to_owned()
        } else if let Some(tab) = next_tab(source, &spot).filter(|_| words.contains("tab")) {
            spot = tab;
            "not valid YAML: a tab stands here: indent with spaces".to_owned()
        } else {
            format!("not valid YAML: {words}")
        }
    };
    Problem {
        place: Place::File(spot),
        key: String::new(),
        message,
    }
}

/// The last quote without a partner in its line, at or before a place.
fn open_quote(source: &Arc<Source>, before: &Spot) -> Option<Spot> {
    let lines: Vec<&str> = source.text.lines().take(before.line()).collect();
    lines.iter().enumerate().rev().find_map(|(index, line)| {
        let is_open = |quote: &char| line.matches(*quote).count() % 2 == 1;
        let quote = ['"', '\''].into_iter().find(is_open)?;
        let column = line.chars().count() - line.chars().rev().position(|c| c == quote)?;
        Some(Spot::new(Arc::clone(source), index + 1, column, 1))
    })
}

/// The first tab in the indentation of a line, at or after a place.
fn next_tab(source: &Arc<Source>, after: &Spot) -> Option<Spot> {
    let lines = source
        .text
        .lines()
        .enumerate()
        .skip(after.line().saturating_sub(1));
    lines.into_iter().find_map(|(index, line)| {
        let blank = line.chars().take_while(|c| c.is_whitespace());
        let column = blank.into_iter().position(|c| c == '\t')?;
        Some(Spot::new(Arc::clone(source), index + 1, column + 1, 1))
    })
}

/// Groups and lists inside each other; three are needed, and each costs stack.
const MAX_DEPTH: usize = 16;
