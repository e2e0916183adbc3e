//! Installs the Debian packages of the programs that the end-to-end tests run.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::Context;

/// A program, others that do as well, and the package that brings it.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("curl", &[], "curl"),
    (
        "chromium",
        &["chromium-browser", "google-chrome", "google-chrome-stable"],
        "chromium",
    ),
    ("dig", &[], "dnsutils"),
    ("openssl", &[], "openssl"),
    ("ping", &[], "iputils-ping"),
    ("git", &[], "git"),
    ("iperf3", &[], "iperf3"),
    ("perl", &[], "perl-base"),
    ("nft", &[], "nftables"),
    ("ip", &[], "iproute2"),
    ("ethtool", &[], "ethtool"),
    ("setpriv", &[], "util-linux"),
    ("mount", &[], "mount"),
    ("sysctl", &[], "procps"),
    ("strace", &[], "strace"),
    ("tc", &[], "iproute2"),
    ("linux.uml", &[], "user-mode-linux"),
    ("systemctl", &[], "systemd"),
    ("modprobe", &[], "kmod"),
    ("nginx", &[], "nginx-light"),
    ("tinyproxy", &[], "tinyproxy"),
    ("squid", &[], "squid"),
    ("sshd", &[], "openssh-server"),
    ("ssh", &[], "openssh-client"),
    ("dockerd", &[], "docker.io"),
    ("update-ca-certificates", &[], "ca-certificates"),
    ("lintian", &[], "lintian"),
    ("adduser", &[], "adduser"),
    ("qemu-x86_64", &["qemu-x86_64-static"], "qemu-user"),
];

/// Installs what is missing, and says what that is.
pub(crate) fn install(context: &Context) -> Result<(), String> {
    let missing = |(program, others, _): &&(&str, &[&str], &str)| {
        !std::iter::once(program)
            .chain(others.iter())
            .any(|name| in_path(name))
    };
    let packages: Vec<_> = PROGRAMS
        .iter()
        .filter(missing)
        .map(|(_, _, package)| *package)
        .collect();
    if packages.is_empty() {
        context.say("everything is there");
        return Ok(());
    }
    let wanted = packages.join(" ");
    let root = is_root();
    if !root || !in_path("apt-get") {
        let reason = if root {
            "there is no apt-get"
        } else {
            "this is not root"
        };
        context.say(&format!("{reason}, so please install: {wanted}"));
        return if context.strict {
            Err(format!("not installed: {wanted}"))
        } else {
            Ok(())
        };
    }
    context.say(&format!("installing {wanted}"));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        context.run(command)
    };
    apt(&["-qq", "update"])?;
    apt(&[
        &["-qq", "install", "--yes", "--no-install-recommends"],
        &packages[..],
    ]
    .concat())
}

/// Tells whether root runs this.
pub(crate) fn is_root() -> bool {
    output("id", &["-u"]).is_some_and(|id| id.trim() == "0")
}

fn in_path(name: &str) -> bool {
    find(name).is_some()
}

/// Finds a program, also where Debian keeps those that only root runs.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    String::from_utf8(output.stdout).ok()
}
