//! Links shaped by the kernel's own `tc netem`, on this kernel or on one that is booted for it.
//!
//! Not every kernel has `sch_netem`. Where the running one lacks it, [`run`] starts the same test once more inside
//! User Mode Linux, a Linux kernel that is an ordinary program: Debian's package `user-mode-linux` brings it with its
//! modules. It boots in about two seconds on this machine's own files, read-only, and ends with the test.
//!
//! ```text
//!   test ──▶ netem::run ──┬── the kernel has netem ─────────────────────────────▶ body
//!                         └── it has not ──▶ linux.uml ──▶ the same test binary ──▶ body
//! ```
//!
//! A system call costs about 50 µs in there, on one emulated processor: links of such tests are 10 to 20 Mbit/s.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use crate::{
    adit,
    process::{self, Process},
    skip::in_path,
};

/// Runs `body`, the whole of the test called `test`, where `tc netem` shapes links: here, or in a kernel of its own.
///
/// `test` is the name that `cargo test` prints, with the modules in front of it.
///
/// # Panics
///
/// If the test fails in there, or the kernel does not come up or down in time.
pub fn run(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() || kernel_has_it() {
        body();
    } else {
        boot(test);
    }
}

/// Why no link can be shaped by netem here, if that is so.
pub(crate) fn missing() -> Option<String> {
    if std::env::var_os(INSIDE).is_some() || kernel_has_it() {
        return None;
    }
    let absent = ["linux.uml", "modprobe"]
        .into_iter()
        .find(|program| !in_path(program))?;
    Some(format!(
        "needs sch_netem in the kernel, or the program {absent}"
    ))
}

fn kernel_has_it() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        Command::new("unshare")
            .args(["-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

fn boot(test: &str) {
    let folder = tempfile::Builder::new()
        .prefix("adit-uml.")
        .tempdir()
        .expect("a folder for temporary files");
    let out = folder.path();
    let program = std::env::current_exe().expect("a test knows its own program");
    let script = out.join("init");
    fs::write(&script, init(out, &program, test)).expect("writes into its own folder");
    process::run(
        {
            let mut chmod = Command::new("chmod");
            chmod.arg("755").arg(&script);
            chmod
        },
        Duration::from_secs(30),
    );
    let mut kernel = Command::new("linux.uml");
    kernel
        .args(["mem=1024M", "rootfstype=hostfs", "rootflags=/", "ro"])
        .arg(format!("init={}", script.display()))
        .args(["con=null", "con0=null,fd:1"])
        // what it keeps beside its memory goes where the test's files go, and with them
        .arg(format!("uml_dir={}", out.display()))
        .env("TMPDIR", out);
    let mut kernel = Process::spawn("linux.uml", kernel);
    let ended = kernel.wait(LIMIT);
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    println!("{}", read("log"));
    assert!(
        ended.is_some(),
        "{test} did not end in {} s under User Mode Linux; its console:\n{}",
        LIMIT.as_secs(),
        kernel.text()
    );
    assert_eq!(
        read("status").trim(),
        "0",
        "{test} under User Mode Linux; its console:\n{}",
        kernel.text()
    );
}

/// What runs in the kernel in place of an init system.
fn init(out: &Path, program: &Path, test: &str) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let variable = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(format!("export {name}={}\n", quoted(&value)))
    };
    let passed: String = ["PATH", "ADIT_CI", "ADIT_MESSAGES"]
        .into_iter()
        .filter_map(variable)
        .collect();
    // built out here: in there is no toolchain, and it would take long
    let adit = quoted(&adit::binary().display().to_string());
    let modules = MODULES.join(" ");
    let program = quoted(&program.display().to_string());
    let folder = quoted(&std::env::current_dir().map_or("/".into(), |at| at.display().to_string()));
    format!(
        "#!/bin/sh
{passed}export ADIT_BIN={adit} PATH=$PATH:/usr/sbin:/sbin LC_ALL=C HOME=/run {INSIDE}=1 TMPDIR=/run/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /run
mkdir -p /run/out /run/tmp /run/m/lib/modules
chmod 1777 /run/tmp
mount -t hostfs -o {out} none /run/out
version=$(uname -r)
cp -r /usr/lib/uml/modules/$version /run/m/lib/modules/
for module in {modules}; do modprobe -d /run/m $module; done
ip link set lo up
cd {folder}
{program} --exact {test} --nocapture --test-threads 1 > /run/out/log 2>&1
echo $? > /run/out/status
sync
halt -f
",
        out = out.display(),
        test = quoted(test),
    )
}

/// Tells the test binary that it runs in the kernel that [`boot`] made.
const INSIDE: &str = "ADIT_INSIDE_UML";

/// What the labs need of the kernel, and what its package leaves to modules.
const MODULES: &[&str] = &[
    "ipv6",
    "veth",
    "bridge",
    "tun",
    "sch_netem",
    "sch_fq_codel",
    "nf_tables",
    "nft_masq",
    "nft_ct",
    "tcp_bbr",
];

/// A test takes seconds, and on a busy machine a minute.
const LIMIT: Duration = Duration::from_secs(300);
