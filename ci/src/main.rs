//! Runs every check of the project: `cargo ci`.
//!
//! ```text
//! cargo ci                     everything, in the order of `--list`
//! cargo ci --list              the steps
//! cargo ci --only STEP         one step; may be repeated
//! ```
//!
//! A step that fails does not keep the others from running; the summary says which failed, and how
//! long each took. Steps that nothing needs at once (the packages, the program as it is released) run beside the others
//! from the beginning, as compilers and package managers seldom fill two cores; what they print is shown when they are
//! waited for. With `CI=true` in the environment nothing may be skipped: a test that needs what
//! is not there fails. Elsewhere it is skipped, and the summary says why.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    sync::Mutex,
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

mod deb;
mod licences;
mod packages;
mod release;
mod service;
mod suites;

/// One step.
struct Step {
    name: &'static str,
    what: &'static str,
    /// Begins with the first step, and is waited for when its turn comes.
    early: bool,
    run: fn(&Context) -> Result<(), String>,
}

/// What a step knows.
struct Context {
    /// The root of the workspace.
    root: PathBuf,
    /// Where cargo puts what it builds.
    target: PathBuf,
    /// The cargo that runs this.
    cargo: PathBuf,
    /// Where tests that are skipped write why.
    skipped: PathBuf,
    /// Nothing may be skipped.
    strict: bool,
    /// Where output lies that is not printed yet: what there is when the run is ended from outside.
    logs: PathBuf,
    /// What a step printed while others had the terminal.
    kept: Option<Mutex<String>>,
}

/// In the order in which they run: what fails soonest comes first.
const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        what: "cargo fmt --check",
        early: false,
        run: fmt,
    },
    Step {
        name: "licences",
        what: "licences of all dependencies, and advisories where they are at hand",
        early: false,
        run: licences::check,
    },
    Step {
        name: "clippy",
        what: "cargo clippy, warnings denied",
        early: false,
        run: clippy,
    },
    Step {
        name: "doc",
        what: "cargo doc, warnings denied",
        early: false,
        run: doc,
    },
    Step {
        name: "packages",
        what: "installs what the tests need (root on Debian or Ubuntu)",
        early: true,
        run: packages::install,
    },
    Step {
        name: "test",
        what: "unit, property and documentation tests",
        early: false,
        run: suites::unit,
    },
    Step {
        name: "build",
        what: "the program, as it is released",
        early: true,
        run: release::build,
    },
    Step {
        name: "release",
        what: "that program with its pages and completions, in a tarball with checksums (dist/)",
        early: false,
        run: release::release,
    },
    Step {
        name: "deb",
        what: "the Debian package: lintian; installed, upgraded, removed, purged; ADIT_SERVICES=1: under systemd, too",
        early: false,
        run: deb::check,
    },
    Step {
        name: "integration",
        what: "end-to-end tests of that program",
        early: false,
        run: suites::integration,
    },
];

fn main() -> ExitCode {
    let mut only = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), argument.as_str().strip_prefix("--only=")) {
            ("--list", _) => {
                for step in STEPS {
                    println!("{:12} {}", step.name, step.what);
                }
                return ExitCode::SUCCESS;
            }
            ("--only", _) => only.extend(arguments.next()),
            (_, Some(name)) => only.push(name.to_owned()),
            ("-h" | "--help", _) => {
                println!("cargo ci [--list] [--only STEP]...");
                return ExitCode::SUCCESS;
            }
            (other, None) => return usage(&format!("unknown argument {other}")),
        }
    }
    if let Some(unknown) = only
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != **name))
    {
        return usage(&format!("unknown step {unknown}"));
    }
    match run(&only) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cargo ci: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("cargo ci: {problem}; --list shows the steps");
    ExitCode::from(2)
}

/// Runs the steps named, or all, and prints the summary; returns whether all succeeded.
fn run(only: &[String]) -> io::Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned();
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let logs = target.join("ci");
    fs::create_dir_all(&logs)?;
    let context = |kept| Context {
        root: root.clone(),
        target: target.clone(),
        cargo: env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from),
        skipped: target.join("skipped-tests.txt"),
        logs: logs.clone(),
        strict: env::var("CI").is_ok_and(|value| value == "true" || value == "1"),
        kept,
    };
    let shared = context(None);
    fs::write(&shared.skipped, "")?;
    let began = Instant::now();
    let wanted: Vec<_> = STEPS
        .iter()
        .filter(|step| only.is_empty() || only.iter().any(|name| name == step.name))
        .collect();
    let results = thread::scope(|scope| {
        let mut early: Vec<_> = wanted
            .iter()
            .filter(|step| step.early)
            .map(|step| {
                let context = context(Some(Mutex::default()));
                scope.spawn(move || {
                    let (took, result) = step.timed(&context);
                    (took, result, context.printed())
                })
            })
            .collect();
        early.reverse();
        let mut results = Vec::new();
        for step in &wanted {
            println!("\n━━━━ {}: {}", step.name, step.what);
            let (took, result) = if step.early {
                let (took, result, printed) = early
                    .pop()
                    .map(ScopedJoinHandle::join)
                    .expect("as many as there are early steps")
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                print!("{printed}");
                (took, result)
            } else {
                step.timed(&shared)
            };
            if let Err(error) = &result {
                println!("━━━━ {} failed: {error}", step.name);
            }
            results.push((step.name, took, result));
        }
        results
    });
    println!("\n━━━━ summary");
    for (name, took, result) in &results {
        let outcome = match result {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("FAILED: {error}"),
        };
        println!("{name:12} {:>8}  {outcome}", seconds(*took));
    }
    println!("{:12} {:>8}", "all", seconds(began.elapsed()));
    let skipped = fs::read_to_string(&shared.skipped)?;
    if !skipped.is_empty() {
        println!("\n{} tests were skipped:", skipped.lines().count());
        print!("{skipped}");
    }
    Ok(results.iter().all(|(_, _, result)| result.is_ok()))
}

impl Step {
    fn timed(&self, context: &Context) -> (Duration, Result<(), String>) {
        let began = Instant::now();
        let result = (self.run)(context);
        (began.elapsed(), result)
    }
}

fn fmt(context: &Context) -> Result<(), String> {
    context.cargo(&["fmt", "--all", "--check"], &[])
}

fn clippy(context: &Context) -> Result<(), String> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "--deny",
        "warnings",
    ];
    context.cargo(&arguments, &[])
}

fn doc(context: &Context) -> Result<(), String> {
    let arguments = ["doc", "--workspace", "--no-deps", "--locked"];
    context.cargo(&arguments, &[("RUSTDOCFLAGS", "--deny warnings")])
}

impl Context {
    /// Runs cargo in the workspace, its output passed on.
    fn cargo(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Result<(), String> {
        let mut command = Command::new(&self.cargo);
        command.args(arguments).envs(variables.iter().copied());
        self.run(command)
    }

    /// Runs a command in the workspace, its output passed on.
    fn run(&self, mut command: Command) -> Result<(), String> {
        command.current_dir(&self.root);
        self.equip(&mut command);
        let shown = show(&command);
        self.say(&format!("$ {shown}"));
        let status = match &self.kept {
            None => command.status(),
            Some(_) => self.captured(&shown, command).map(|(printed, status)| {
                self.say(printed.trim_end());
                status
            }),
        };
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{shown}: {status}")),
            Err(error) => Err(format!("{shown}: {error}")),
        }
    }

    /// Runs a command; returns what it printed, both streams as they came, and how it ended. A file takes it meanwhile,
    /// and no pipe, which what the command leaves behind might hold open.
    fn captured(&self, name: &str, mut command: Command) -> io::Result<(String, ExitStatus)> {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = self.logs.join(name).with_extension("txt");
        let file = File::create(&path)?;
        let status = command.stdout(file.try_clone()?).stderr(file).status()?;
        let printed = fs::read(&path)?;
        Ok((String::from_utf8_lossy(&printed).into_owned(), status))
    }

    /// Prints a line, now or when the step's turn has come.
    fn say(&self, line: &str) {
        match &self.kept {
            None => println!("{line}"),
            Some(kept) => {
                let mut kept = kept.lock().expect("nobody panics while holding it");
                writeln!(kept, "{line}").expect("a string takes all");
            }
        }
    }

    /// What was kept back.
    fn printed(self) -> String {
        self.kept
            .map(|kept| kept.into_inner().expect("nobody panics while holding it"))
            .unwrap_or_default()
    }

    /// Tells tests whether they may be skipped, and where to write why; and has cargo leave out what only a later build
    /// of the same folder would use, which is half of what it writes.
    fn equip(&self, command: &mut Command) {
        command.env("ADIT_SKIPPED", &self.skipped);
        command.env("CARGO_INCREMENTAL", "0");
        if self.strict {
            command.env("ADIT_CI", "1");
        }
    }

    /// Runs a command in the workspace and returns what it prints.
    fn output(&self, mut command: Command) -> Result<String, String> {
        let shown = show(&command);
        self.equip(&mut command);
        let output = command.current_dir(&self.root).output();
        let output = output.map_err(|error| format!("{shown}: {error}"))?;
        if !output.status.success() {
            return Err(format!(
                "{shown}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        String::from_utf8(output.stdout).map_err(|error| format!("{shown}: {error}"))
    }
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}
