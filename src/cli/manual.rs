//! Completions and manual pages, made of the command line's own definition: what it has, they have.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::Failure;
use super::args::{Args, CompletionsArgs, ManArgs};

/// Prints the completions of a shell.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "adit", &mut script);
    put(&script)
}

/// Writes bytes to standard output; a reader that went away ends the program quietly.
fn put(bytes: &[u8]) -> Result<(), Failure> {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Run(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints the page of the program, or writes it and one for each of its commands.
pub(super) fn pages(args: &ManArgs) -> Result<(), Failure> {
    match &args.out {
        Some(folder) => write_pages(folder).map_err(Failure::Run),
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Args::command()).render(&mut page);
            rendered
                .context("cannot make the manual page")
                .map_err(Failure::Run)?;
            put(&page)
        }
    }
}

fn write_pages(out: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    clap_mangen::generate_to(Args::command(), out)
        .with_context(|| format!("cannot write manual pages to {}", out.display()))
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use clap_complete::Shell;

    use super::*;

    /// Every command that is shown, with the words that lead to it.
    fn commands(of: &Command, words: &[String], found: &mut Vec<(Vec<String>, Command)>) {
        found.push((words.to_vec(), of.clone()));
        for command in of.get_subcommands() {
            if !command.is_hide_set() && command.get_name() != "help" {
                let mut words = words.to_vec();
                words.push(command.get_name().to_owned());
                commands(command, &words, found);
            }
        }
    }

    fn all() -> Vec<(Vec<String>, Command)> {
        let mut command = Args::command();
        command.build();
        let mut found = Vec::new();
        commands(&command, &["adit".to_owned()], &mut found);
        assert!(found.len() > 12, "{}", found.len());
        found
    }

    fn flags(command: &Command) -> Vec<String> {
        let shown = command.get_arguments().filter(|flag| !flag.is_hide_set());
        let long = shown.filter_map(|flag| flag.get_long().map(|long| format!("--{long}")));
        long.collect()
    }

    #[test]
    fn every_shell_completes_every_command_and_flag() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "adit", &mut script);
            let script = String::from_utf8(script).expect("text");
            for (words, command) in all() {
                let name = words.last().expect("at least the program");
                assert!(script.contains(name.as_str()), "{shell}: {name}");
                for flag in flags(&command) {
                    // fish has names without the dashes: -l config
                    let in_fish = format!("-l {}", flag.trim_start_matches('-'));
                    let text = if shell == Shell::Fish {
                        &in_fish
                    } else {
                        &flag
                    };
                    assert!(script.contains(text.as_str()), "{shell}: {words:?} {flag}");
                }
            }
        }
    }

    #[test]
    fn every_command_has_a_page_with_every_flag() {
        let folder = tempfile::tempdir().expect("a folder");
        write_pages(folder.path()).expect("written");
        for (words, command) in all() {
            let page = folder.path().join(format!("{}.1", words.join("-")));
            let text =
                fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
            for flag in flags(&command) {
                // roff writes a dash that is one as \-
                let written = flag.replace('-', "\\-");
                assert!(text.contains(&written), "{page:?}: {flag}");
            }
        }
    }
}
