//! README.md and docs/ say what the program understands, and link to what is there.

use std::fs;
use std::path::{Path, PathBuf};

use adit::cli::Args;
use clap::Parser as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The pages, each with its folder.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(root().join("docs")).expect("the folder of docs");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a page");
        (path, text)
    };
    let pages: Vec<_> = [root().join("README.md")]
        .into_iter()
        .chain(docs.filter(|path| path.extension().is_some_and(|it| it == "md")))
        .map(read)
        .collect();
    assert!(pages.len() >= 4);
    pages
}

/// The lines of the blocks of a page that a shell runs; what a backslash continues is one line.
fn shell_lines(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for block in page.split("```sh\n").skip(1) {
        let block = block.split("```").next().expect("a block");
        lines.extend(block.replace("\\\n", " ").lines().map(str::to_owned));
    }
    lines
}

/// The words of a command of the shell, as far as these pages need it.
fn words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in command.chars() {
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().expect("one at least").push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The command of ours that a shell's command is, if it is one.
fn ours(command: &str) -> Option<String> {
    let command = command.trim().trim_start_matches("sudo ");
    let command = command.trim_start_matches("docker exec adit ");
    let command = command.replace("cargo run --release -- ", "adit ");
    command.starts_with("adit ").then_some(command)
}

/// Where the links of a page lead, but for those to other sites.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1);
    targets
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .filter(|target| !target.contains("://"))
        .collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    let headings = page.lines().filter(|line| line.starts_with("##"));
    headings
        .map(|heading| {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            let text = text.replace(' ', "-");
            text.replace(|it: char| !it.is_alphanumeric() && it != '-', "")
        })
        .collect()
}

#[test]
fn every_command_of_the_pages_is_understood() {
    let mut understood = 0;
    for (path, page) in pages() {
        for line in shell_lines(&page) {
            let code = line.split(" # ").next().expect("a line");
            let commands = code.split([';', '|']).flat_map(|it| it.split("&&"));
            for command in commands.filter_map(ours) {
                if let Err(error) = Args::try_parse_from(words(&command)) {
                    panic!("{}: {command}: {error}", path.display());
                }
                understood += 1;
            }
        }
    }
    assert!(understood > 40, "{understood} commands found");
}

#[test]
fn every_link_of_the_pages_leads_somewhere() {
    for (path, page) in pages() {
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().expect("a folder").join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let page = fs::read_to_string(&target).expect("a page");
                let anchors = anchors(&page);
                assert!(
                    anchors.iter().any(|it| it == anchor),
                    "{}: {link}: of {anchors:?}",
                    path.display()
                );
            }
        }
    }
}
