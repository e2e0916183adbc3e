//! Checks the licences of all dependencies against the list in `deny.toml`, and advisories where
//! `cargo deny` has their database.
//!
//! Where `cargo deny` is not installed, the licence expressions (SPDX, annex D) that cargo knows are
//! evaluated here, and `Cargo.lock` is searched for sources other than crates.io.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::Context;

/// The step.
pub(crate) fn check(context: &Context) -> Result<(), String> {
    let mut probe = Command::new(&context.cargo);
    probe
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !probe.status().is_ok_and(|status| status.success()) {
        println!(
            "cargo deny is not installed: licences and sources are checked here, advisories are not \
             (`cargo install cargo-deny --locked && cargo deny fetch` brings both)"
        );
        foreign_sources(context)?;
        return built_in(context);
    }
    context.cargo(&["deny", "check", "licenses", "bans", "sources"], &[])?;
    if advisories().is_dir() {
        return context.cargo(&["deny", "--offline", "check", "advisories"], &[]);
    }
    println!("advisories are not at hand: `cargo deny fetch` brings them");
    Ok(())
}

/// Where `cargo deny` keeps the database of advisories.
fn advisories() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    home.unwrap_or_default().join("advisory-dbs")
}

fn built_in(context: &Context) -> Result<(), String> {
    let text = fs::read_to_string(context.root.join("deny.toml"));
    let allowed = allow_list(&text.map_err(|error| format!("deny.toml: {error}"))?)?;
    let mut command = Command::new(&context.cargo);
    command.args([
        "tree",
        "--workspace",
        "--target",
        "all",
        "--edges",
        "normal,build,dev",
    ]);
    command.args([
        "--prefix",
        "none",
        "--no-dedupe",
        "--format",
        "{p}\t{l}",
        "--locked",
    ]);
    let mut packages: Vec<_> = context
        .output(command)?
        .lines()
        .map(str::to_owned)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    let mut refused = Vec::new();
    let mut count = 0;
    for line in &packages {
        let Some((package, licence)) = line.split_once('\t') else {
            continue;
        };
        count += 1;
        match is_allowed(licence, &allowed) {
            Ok(true) => {}
            Ok(false) => refused.push(format!("{package}: {licence} is not allowed by deny.toml")),
            Err(error) => refused.push(format!("{package}: {licence:?}: {error}")),
        }
    }
    println!("{count} packages, {} licences allowed", allowed.len());
    if count == 0 {
        return Err("cargo tree names no package".to_owned());
    }
    if refused.is_empty() {
        Ok(())
    } else {
        Err(refused.join("\n"))
    }
}

/// Refuses packages that come from elsewhere than crates.io, as `deny.toml` says.
fn foreign_sources(context: &Context) -> Result<(), String> {
    let text = fs::read_to_string(context.root.join("Cargo.lock"));
    let text = text.map_err(|error| format!("Cargo.lock: {error}"))?;
    let foreign = foreign(&text);
    if foreign.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "packages from elsewhere than crates.io:\n{}",
            foreign.join("\n")
        ))
    }
}

/// The sources in a `Cargo.lock` that are not crates.io; packages of the workspace have none.
fn foreign(lock: &str) -> Vec<&str> {
    lock.lines()
        .filter_map(|line| line.strip_prefix("source = "))
        .filter(|source| source.trim_matches('"') != CRATES_IO)
        .collect()
}

/// How `Cargo.lock` names crates.io.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The list `allow` of the table `licenses`; only the form in which that file is written.
fn allow_list(text: &str) -> Result<Vec<String>, String> {
    let table = text
        .split("\n[licenses]")
        .nth(1)
        .ok_or("deny.toml has no table [licenses]")?;
    let list = table
        .split("\nallow = [")
        .nth(1)
        .ok_or("deny.toml allows no licence")?;
    let list = list.split(']').next().unwrap_or_default();
    let quoted = |line: &str| {
        Some(
            line.split('#')
                .next()?
                .trim()
                .trim_matches([',', '"'])
                .to_owned(),
        )
    };
    Ok(list
        .lines()
        .filter_map(quoted)
        .filter(|name| !name.is_empty())
        .collect())
}

/// Evaluates a licence expression: `OR` needs one side, `AND` both; a slash is an old `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> Result<bool, String> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        allowed,
    };
    let result = parser.any()?;
    match parser.words.first() {
        None => Ok(result),
        Some(word) => Err(format!("unexpected {word}")),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl Parser<'_> {
    fn any(&mut self) -> Result<bool, String> {
        let mut result = self.all()?;
        while self.take("OR") {
            result |= self.all()?;
        }
        Ok(result)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let result = self.any()?;
            return if self.take(")") {
                Ok(result)
            } else {
                Err("a bracket is not closed".to_owned())
            };
        }
        let [name, rest @ ..] = self.words else {
            return Err("a licence is missing".to_owned());
        };
        if matches!(*name, "OR" | "AND" | "WITH" | ")") {
            return Err(format!("unexpected {name}"));
        }
        self.words = rest;
        let mut full = (*name).to_owned();
        if self.take("WITH") {
            let [exception, rest @ ..] = self.words else {
                return Err("an exception is missing".to_owned());
            };
            self.words = rest;
            full = format!("{full} WITH {exception}");
        }
        Ok(self.allowed.contains(&full))
    }

    fn take(&mut self, word: &str) -> bool {
        match self.words {
            [first, rest @ ..] if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated_as_spdx_says() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for (expression, result) in [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only", true),
            ("MIT/GPL-3.0-only", true),
            ("MIT AND GPL-3.0-only", false),
            // AND binds tighter than OR
            ("MIT OR ISC AND GPL-3.0-only", true),
            ("(MIT OR ISC) AND GPL-3.0-only", false),
            ("ISC AND (MIT OR GPL-3.0-only)", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), Ok(result), "{expression}");
        }
        for wrong in [
            "", "MIT OR", "(MIT", "MIT ISC", "AND MIT", "MIT)", "MIT WITH",
        ] {
            assert!(is_allowed(wrong, &allowed).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sources_other_than_crates_io_are_found() {
        let lock = format!(
            "name = \"a\"\nsource = \"{CRATES_IO}\"\nname = \"b\"\nsource = \"git+https://example.com/b#1\"\n"
        );
        assert_eq!(foreign(&lock), ["\"git+https://example.com/b#1\""]);
    }

    #[test]
    fn list_of_the_project_is_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("a workspace");
        let text = fs::read_to_string(root.join("deny.toml")).expect("it is there");
        let allowed = allow_list(&text).expect("it is well-formed");
        assert!(allowed.iter().any(|name| name == "MIT"), "{allowed:?}");
        assert!(
            allowed.iter().all(|name| !name.contains("GPL")),
            "{allowed:?}"
        );
    }
}
