//! Runs the tests: cargo builds their programs, and this runs two of them at a time.
//!
//! Most end-to-end tests wait, for time-outs that users would wait for as well; one after the other they take twice as
//! long. Those that measure shares or count system calls run alone at the end: beside others they would measure the
//! machine. The programs of all packages are built together, as cargo would otherwise build what they share once for each
//! set of features.

use std::{
    collections::VecDeque,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::Instant,
};

use crate::{Context, seconds, show};

/// The package of the end-to-end tests, which need the program as it is released.
const END_TO_END: &str = "integration";
/// Those that take longest begin first, so that none is left for the end.
const LONG: &[&str] = &[
    "client_tun",
    "namespaces",
    "load",
    "netem",
    "lanes",
    "bad_input",
    "doctor",
];
/// Those that have the machine to themselves.
const ALONE: &[&str] = &["fairness", "syscalls"];
/// As many programs as there are cores on the smallest machine that this is for.
const AT_A_TIME: usize = 2;

/// A program of tests.
#[derive(Debug, PartialEq, Eq)]
struct Suite {
    name: String,
    program: PathBuf,
    /// The folder of its package, in which it runs.
    folder: PathBuf,
}

/// Runs what needs nothing but itself, and the examples of the documentation.
pub(crate) fn unit(context: &Context) -> Result<(), String> {
    let end_to_end = context.root.join(END_TO_END);
    let mut suites = build(context)?;
    suites.retain(|suite| suite.folder != end_to_end);
    if suites.is_empty() {
        return Err("cargo has built no unit test".to_owned());
    }
    let run = run_all(context, suites);
    run.and(context.cargo(&["test", "--workspace", "--doc", "--locked"], &[]))
}

/// Runs what starts the program as it is released.
pub(crate) fn integration(context: &Context) -> Result<(), String> {
    let end_to_end = context.root.join(END_TO_END);
    let mut suites = build(context)?;
    suites.retain(|suite| suite.folder == end_to_end);
    if let Some(missing) = LONG
        .iter()
        .chain(ALONE)
        .find(|name| suites.iter().all(|suite| suite.name != **name))
    {
        return Err(format!("cargo has built no {missing} in {END_TO_END}"));
    }
    run_all(context, suites)
}

/// Has cargo build the programs, and the binaries that they start.
fn build(context: &Context) -> Result<Vec<Suite>, String> {
    let mut command = Command::new(&context.cargo);
    command.args([
        "test",
        "--workspace",
        "--no-run",
        "--locked",
        "--message-format=json-render-diagnostics",
    ]);
    println!("$ {}", show(&command));
    command.stderr(Stdio::inherit());
    suites(&context.output(command)?)
}

/// Runs the programs.
fn run_all(context: &Context, suites: Vec<Suite>) -> Result<(), String> {
    let (alone, mut beside): (Vec<_>, Vec<_>) = suites
        .into_iter()
        .partition(|suite| ALONE.contains(&suite.name.as_str()));
    beside.sort_by_key(|suite| {
        LONG.iter()
            .position(|name| *name == suite.name)
            .unwrap_or(LONG.len())
    });
    let mut failed = run(context, beside, AT_A_TIME);
    failed.extend(run(context, alone, 1));
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("failed: {}", failed.join(", ")))
    }
}

/// Reads the programs out of what cargo says, a JSON object in each line.
fn suites(messages: &str) -> Result<Vec<Suite>, String> {
    let mut suites = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("cargo said {line}: {error}"))?;
        let program = message["executable"].as_str();
        if let (Some(program), Some(true)) = (program, message["profile"]["test"].as_bool()) {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let manifest = text(&message["manifest_path"]);
            let folder = Path::new(&manifest).parent().map(Path::to_owned);
            suites.push(Suite {
                name: text(&message["target"]["name"]),
                program: program.into(),
                folder: folder.ok_or_else(|| format!("no manifest in {line}"))?,
            });
        }
    }
    if suites.is_empty() {
        return Err("cargo has built no test".to_owned());
    }
    Ok(suites)
}

/// Runs the programs, so many at a time; returns the names of those that failed.
fn run(context: &Context, suites: Vec<Suite>, at_a_time: usize) -> Vec<String> {
    let waiting = Mutex::new(VecDeque::from(suites));
    let failed = Mutex::new(Vec::new());
    let next = || {
        waiting
            .lock()
            .expect("no panic while it is held")
            .pop_front()
    };
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(suite) = next() {
                    if !suite.run(context) {
                        let mut failed = failed.lock().expect("no panic while it is held");
                        failed.push(suite.to_string());
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no panic while it is held")
}

impl fmt::Display for Suite {
    /// The folder of its package, and its name there.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let package = self.folder.file_name().unwrap_or_default();
        write!(formatter, "{}/{}", package.display(), self.name)
    }
}

impl Suite {
    /// Runs all its tests, prints what it said when it is over, and returns whether all passed.
    fn run(&self, context: &Context) -> bool {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.folder);
        context.equip(&mut command);
        let began = Instant::now();
        println!("running {self}");
        let (printed, passed) = match context.captured(&self.to_string(), command) {
            Ok((printed, status)) => (printed, status.success()),
            Err(error) => (format!("{}: {error}\n", self.program.display()), false),
        };
        println!("\n{self} ({}){printed}", seconds(began.elapsed()));
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_found_and_others_are_not() {
        let messages = concat!(
            r#"{"manifest_path":"/a/integration/Cargo.toml","target":{"name":"sweep"},"profile":{"test":false},"executable":"/t/sweep"}"#,
            "\n",
            r#"{"manifest_path":"/a/integration/Cargo.toml","target":{"name":"lanes"},"profile":{"test":true},"executable":"/t/lanes-1"}"#,
            "\n",
            r#"{"manifest_path":"/a/Cargo.toml","target":{"name":"cli"},"profile":{"test":true},"executable":"/t/cli-1"}"#,
            "\n",
            r#"{"manifest_path":"/r/Cargo.toml","target":{"name":"libc"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let suite = |name: &str, folder: &str| Suite {
            name: name.into(),
            program: format!("/t/{name}-1").into(),
            folder: folder.into(),
        };
        let both = vec![suite("lanes", "/a/integration"), suite("cli", "/a")];
        assert_eq!(suites(messages), Ok(both));
        assert!(suites("").is_err());
    }
}
