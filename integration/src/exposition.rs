//! Metrics as a scraper reads them: Prometheus' text format 0.0.4.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

/// A sample: its name, its labels, its value.
pub type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// Reads metrics as the text format has them, strictly: each family once and together, HELP and TYPE before its samples,
/// names and labels well-formed, nothing twice, counters named `_total` and never below zero. Returns types and samples.
///
/// # Panics
///
/// If they are anything else.
pub fn parse_metrics(text: &str) -> (BTreeMap<String, String>, Samples) {
    let name = |text: &str| {
        let mut chars = text.chars();
        let first = chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut types, mut samples) = (BTreeMap::new(), Samples::new());
    let (mut helped, mut family) = (BTreeSet::new(), String::new());
    assert!(text.ends_with('\n'), "the last line has an end");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (of, sentence) = help.split_once(' ').expect("a help");
            assert!(name(of) && sentence.ends_with('.'), "{line}");
            assert!(helped.insert(of.to_owned()), "twice: {line}");
            family = of.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (of, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(of, family, "behind its help");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", of.ends_with("_total"), "{line}");
            types.insert(of.to_owned(), kind.to_owned());
        } else {
            let (what, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().expect("a number");
            let (of, labels) = match what.split_once('{') {
                Some((of, labels)) => (of, labels.strip_suffix('}').expect("closed")),
                None => (what, ""),
            };
            assert_eq!(of, family, "families stand together: {line}");
            assert!(
                value.is_finite() && (types[of] != "counter" || value >= 0.0),
                "{line}"
            );
            let mut read = BTreeMap::new();
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (key, text) = label.split_once('=').expect("a label");
                assert!(name(key), "{line}");
                let text = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
                let text = text.expect("quoted").to_owned();
                assert!(!text.contains(['"', '\\']), "{line}");
                assert!(read.insert(key.to_owned(), text).is_none(), "{line}");
            }
            assert!(
                samples.insert((of.to_owned(), read), value).is_none(),
                "twice: {line}"
            );
        }
    }
    (types, samples)
}

/// The value of the sample with exactly these labels.
///
/// # Panics
///
/// If there is none.
pub fn sample(samples: &Samples, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels = labels
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
    let key = (name.to_owned(), labels.collect());
    *samples.get(&key).unwrap_or_else(|| panic!("{key:?}"))
}

/// Asks an admin address; returns the status and the body.
///
/// # Panics
///
/// If nobody answers.
pub fn get(address: SocketAddr, what: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    write!(
        stream,
        "GET {what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    // hyper sends the length of what it knows as a whole
    assert!(head.to_lowercase().contains("content-length:"), "{head}");
    (status.expect("a status"), body.to_owned())
}
