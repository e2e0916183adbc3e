//! What is released: one static program for every Linux of a processor, its manual pages and completions, and a tarball
//! of all of it with checksums.
//!
//! ```text
//!  dist/adit  dist/ca-certificates.crt         what the Dockerfile's target `prebuilt` takes
//!  dist/man/  dist/completions/                made by the program itself
//!  dist/adit-VERSION-TARGET.tar.gz  dist/SHA256SUMS
//! ```
//!
//! The tarball is the same, byte by byte, wherever it is made of the same program: names are sorted, owners are
//! numbers, times are that of the commit.

use std::{fs, path::Path, process::Command};

use crate::Context;

/// Builds the program as it is released.
///
/// The flag has the C library inside the program, and stands behind `--`, for the last step alone: plug-ins of the
/// compiler cannot be static. The GNU library does as well as any, since names are not resolved by it.
pub(crate) fn build(context: &Context) -> Result<(), String> {
    let words = [
        "rustc",
        "--release",
        "--package",
        "adit",
        "--bin",
        "adit",
        "--locked",
    ];
    context.cargo(&[&words, STATIC].concat(), &[])
}

/// What makes a program static.
const STATIC: &[&str] = &["--", "-C", "target-feature=+crt-static"];

/// Fills `dist/`.
pub(crate) fn release(context: &Context) -> Result<(), String> {
    build(context)?;
    let program = context.target.join("release/adit");
    let dist = context.root.join("dist");
    let failed = |error: std::io::Error| format!("{}: {error}", dist.display());
    if dist.exists() {
        fs::remove_dir_all(&dist).map_err(failed)?;
    }
    fs::create_dir_all(dist.join("completions")).map_err(failed)?;
    fs::copy(&program, dist.join("adit")).map_err(failed)?;
    if Path::new(AUTHORITIES).exists() {
        fs::copy(AUTHORITIES, dist.join("ca-certificates.crt")).map_err(failed)?;
    }
    let mut pages = Command::new(&program);
    pages.args(["man", "--out"]).arg(dist.join("man"));
    context.output(pages)?;
    for (shell, name) in [
        ("bash", "adit.bash"),
        ("zsh", "_adit"),
        ("fish", "adit.fish"),
    ] {
        let mut script = Command::new(&program);
        script.args(["completions", shell]);
        fs::write(dist.join("completions").join(name), context.output(script)?).map_err(failed)?;
    }
    tarball(context, &dist)?;
    checksums(context)
}

/// Writes the tarball.
fn tarball(context: &Context, dist: &Path) -> Result<(), String> {
    let name = format!("adit-{}-{}", env!("CARGO_PKG_VERSION"), host(context)?);
    let stage = context.logs.join("tarball").join(&name);
    let failed = |error: std::io::Error| format!("{}: {error}", stage.display());
    if stage.exists() {
        fs::remove_dir_all(&stage).map_err(failed)?;
    }
    fs::create_dir_all(&stage).map_err(failed)?;
    let mut copy = Command::new("cp");
    copy.arg("-r");
    copy.args(["adit", "man", "completions"].map(|name| dist.join(name)));
    copy.args(FILES.map(|name| context.root.join(name)));
    context.output(arg(copy, &stage))?;
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--sort=name",
        "--format=ustar",
        "--mode=go=rX,u+rw",
    ])
    .args(["--owner=0", "--group=0", "--numeric-owner"])
    .arg(format!("--mtime=@{}", time_of_commit(context)))
    .args(["--use-compress-program", "gzip -9n", "--file"])
    .arg(dist.join(format!("{name}.tar.gz")))
    .arg("--directory")
    .arg(stage.parent().unwrap_or(&stage))
    .arg(&name);
    context.output(tar).map(drop)
}

/// Writes the checksums of all that is published.
pub(crate) fn checksums(context: &Context) -> Result<(), String> {
    let mut sums = Command::new("sh");
    sums.args([
        "-ec",
        "cd dist; sha256sum $(ls | grep -E '\\.(tar\\.gz|deb)$') > SHA256SUMS; cat SHA256SUMS",
    ]);
    context.say(context.output(sums)?.trim_end());
    Ok(())
}

/// When the commit was made; without one, the beginning of time.
fn time_of_commit(context: &Context) -> String {
    if let Ok(time) = std::env::var("SOURCE_DATE_EPOCH") {
        return time;
    }
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%ct"]);
    let time = context.output(log).unwrap_or_default();
    let time = time.trim();
    if time.is_empty() { "0" } else { time }.to_owned()
}

/// The target that this machine is, as rustc calls it.
fn host(context: &Context) -> Result<String, String> {
    let mut rustc = Command::new("rustc");
    rustc.arg("-vV");
    let text = context.output(rustc)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| "rustc does not say which host this is".to_owned())
}

fn arg(mut command: Command, last: &Path) -> Command {
    command.arg(last);
    command
}

/// What the tarball has beside what is made.
const FILES: [&str; 7] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs",
    "examples",
    "packaging",
];
/// The authorities that Debian trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
