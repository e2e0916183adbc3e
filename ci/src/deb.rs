//! The Debian package: made, looked at by lintian, and led through its life in a copy of this machine.
//!
//! The copy is an overlay over the root file system in a mount namespace of its own: what dpkg does there is gone with
//! it. `ADIT_CHROOT` names another root, such as one that `debootstrap --include=adduser,curl,systemd` has made. Its services
//! are led through theirs under a systemd of that copy where `ADIT_SERVICES=1` asks for it ([`crate::service`]).

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Context, packages, release, service::Service};

/// Makes the package twice, the second a revision later, and does with them what people do.
pub(crate) fn check(context: &Context) -> Result<(), String> {
    if let Some(reason) = missing() {
        return if context.strict {
            Err(format!("cannot be skipped here: {reason}"))
        } else {
            skip(context, &reason)
        };
    }
    let cargo_deb = cargo_deb(context)?;
    let first = make(context, &cargo_deb, "1")?;
    release::checksums(context)?;
    let second = make(context, &cargo_deb, "2")?;
    let root = env::var_os("ADIT_CHROOT").unwrap_or_else(|| "/".into());
    // Beside the rest, on another processor; by request, as it takes minutes where both are busy.
    let service = env::var_os("ADIT_SERVICES")
        .map(|_| Service::begin(context, &first, &second, Path::new(&root)))
        .transpose()?;
    let mut lintian = Command::new("lintian");
    // root runs it in containers, too
    lintian
        .args(["--allow-root", "--fail-on", "error"])
        .arg(&first);
    let looked_at = context.run(lintian);
    let mut life = Command::new("unshare");
    life.args([
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-eu",
        "-c",
        LIFE,
        "sh",
    ])
    .arg(&first)
    .arg(&second)
    .arg(&root);
    let lived = context.run(life);
    let served = service.map_or(Ok(()), |service| service.end(context));
    fs::remove_file(&second).map_err(|error| format!("{}: {error}", second.display()))?;
    looked_at.and(lived).and(served)
}

/// Says what is not there of all that this needs.
fn missing() -> Option<String> {
    if !packages::is_root() {
        return Some("needs root, to install the package in a copy of this machine".to_owned());
    }
    let needed = ["dpkg", "lintian", "unshare"];
    let missing = needed
        .into_iter()
        .find(|program| packages::find(program).is_none())?;
    Some(format!("needs the program {missing}"))
}

/// Has the summary say why this was not done.
fn skip(context: &Context, reason: &str) -> Result<(), String> {
    let line = format!("deb: {reason}\n");
    context.say(&format!("skipped: {reason}"));
    let file = OpenOptions::new().append(true).open(&context.skipped);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|error| format!("{}: {error}", context.skipped.display()))
}

/// Makes the package of what `dist/` has; gives its path.
fn make(context: &Context, cargo_deb: &Path, revision: &str) -> Result<PathBuf, String> {
    let dist = context.root.join("dist");
    let mut command = Command::new(cargo_deb);
    command
        .args([
            "--no-build",
            "--no-strip",
            "--package",
            "adit",
            "--deb-revision",
            revision,
        ])
        .arg("--output")
        .arg(&dist)
        // the subcommand asks for it
        .env("CARGO", &context.cargo);
    let printed = context.output(command)?;
    let path = printed.lines().last().unwrap_or_default().trim();
    let path = PathBuf::from(path);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("cargo-deb has made no package:\n{printed}"))
    }
}

/// Finds `cargo-deb`, or installs it beside the build's results.
fn cargo_deb(context: &Context) -> Result<PathBuf, String> {
    if let Some(found) = packages::find("cargo-deb") {
        return Ok(found);
    }
    let root = context.target.join("tools");
    let program = root.join("bin/cargo-deb");
    if !program.is_file() {
        let root = root.display().to_string();
        context.cargo(
            &[
                "install",
                "cargo-deb",
                "--version",
                CARGO_DEB,
                "--locked",
                "--root",
                &root,
            ],
            &[],
        )?;
    }
    Ok(program)
}

/// The version of `cargo-deb` that is installed.
const CARGO_DEB: &str = "3.8.0";

/// What happens to a package.
const LIFE: &str = include_str!("deb.sh");
