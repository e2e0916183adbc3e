//! The commented examples hold every key, and load.

use super::*;

#[test]
fn examples_load_with_their_keys_in_place() {
    for (name, key) in [("server.yaml", "server.key"), ("client.yaml", "client.key")] {
        let bench = Bench::new();
        fs::copy(bench.path("own.key"), bench.path(key)).expect("copied");
        let example = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples")
            .join(name);
        let path = bench.path(name);
        fs::copy(example, &path).expect("copied");
        let kind = guess_kind(&path).expect("read");
        let warnings = match kind.expect("a kind") {
            Kind::Server => {
                bench
                    .load(Some(&path), ServerConfig::load)
                    .expect(name)
                    .warnings
            }
            Kind::Client => {
                bench
                    .load(Some(&path), ClientConfig::load)
                    .expect(name)
                    .warnings
            }
        };
        assert_eq!(kind.map(Kind::as_str), name.strip_suffix(".yaml"));
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn examples_hold_every_key_and_their_comments_load_too() {
    for kind in Kind::ALL {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{kind}.yaml"));
        let text = fs::read_to_string(path).expect("an example");
        for key in kind.keys() {
            let name = key
                .rsplit('.')
                .next()
                .unwrap_or(&key)
                .trim_end_matches("[]");
            let stands = text.lines().any(|line| {
                let line = line
                    .trim_start()
                    .trim_start_matches("# ")
                    .trim_start()
                    .trim_start_matches("- ");
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(':'))
            });
            assert!(stands, "examples/{kind}.yaml lacks {key}");
        }
        // Every commented key that begins its line is a right one once the mark is taken away.
        let opened: String = text
            .lines()
            .map(|line| format!("{}\n", opened(kind, line)))
            .collect();
        let more = opened.lines().filter(|line| !line.starts_with('#')).count();
        let before = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(
            more >= before + 8,
            "{more} lines of examples/{kind}.yaml are open, {before} before"
        );
        let bench = Bench::new();
        for file in [
            "server.key",
            "client.key",
            "laptop.psk",
            "fullchain.pem",
            "privkey.pem",
            "ca.pem",
            "proxy.password",
            "via.password",
            "blocklist.txt",
            "allowlist.txt",
        ] {
            fs::copy(bench.path("own.key"), bench.path(file)).expect("copied");
        }
        let error = match kind {
            Kind::Server => bench.server(&opened).err(),
            Kind::Client => bench.client(&opened).err(),
        };
        // The example shows ways that exclude each other; nothing else may be wrong.
        let allowed = [
            "stands beside proxy_password",
            "stands beside a password in via",
            "a certificate is checked in one way",
            "stands beside tls.certificate",
        ];
        let problems: Vec<&str> = error
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| line.starts_with(kind.as_str()))
            .collect();
        for problem in problems {
            assert!(
                allowed.iter().any(|words| problem.contains(words)),
                "{problem}\n{opened}"
            );
        }
    }
}

/// The line with its comment mark taken away where a key stands behind it.
fn opened(kind: Kind, line: &str) -> String {
    let names: Vec<String> = kind
        .keys()
        .iter()
        .flat_map(|key| {
            key.split('.')
                .map(|part| part.trim_end_matches("[]").to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let Some((indent, rest)) = line.split_once("# ") else {
        return line.to_owned();
    };
    let item = rest.trim_start();
    let is_rule = item.strip_prefix("- ").is_some_and(|rule| {
        let first = rule.split(' ').next().unwrap_or_default();
        Action::ALL.iter().any(|action| action.as_str() == first)
    });
    if is_rule {
        return format!("{indent}{rest}");
    }
    let item = item.trim_start_matches("- ");
    let word = item.split(':').next().unwrap_or_default();
    let is_value = item
        .strip_prefix(word)
        .is_some_and(|rest| rest == ":" || rest.starts_with(": "));
    // Sentences about a key (`pin: SHA-256 of …`) stand inside a paragraph and end in a stop.
    let is_sentence = rest.ends_with('.') || rest.contains(". ");
    if names.iter().any(|name| name == word) && is_value && !is_sentence {
        format!("{indent}{rest}")
    } else {
        line.to_owned()
    }
}

#[test]
fn kinds_are_told_apart_by_their_keys() {
    let bench = Bench::new();
    for (text, kind) in [
        ("listen: []\nkey_file: a\n", Some(Kind::Server)),
        ("proxy: x\n", Some(Kind::Client)),
        ("key_file: a\n", None),
        ("", None),
        ("servr: x\nnetwork: y\n", Some(Kind::Server)),
    ] {
        assert_eq!(
            guess_kind(&bench.write("some.yaml", text)).expect("read"),
            kind,
            "{text}"
        );
    }
}
