//! The services of the Debian package under a systemd that is process 1.
//!
//! ```text
//!  linux.uml ──▶ boot.sh: an overlay over the root file system ──▶ systemd ──▶ service.sh, a unit ──▶ log, status
//! ```
//!
//! User Mode Linux, a kernel that is an ordinary program, boots with this machine's own files, over which an overlay in
//! memory lies, and starts its systemd with a bare system and one unit: the script that does with the package what people
//! do. A folder of passing use is the only place outside that it writes to. It has no NAT and no network but loopback.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::Context;

/// A kernel that runs.
pub(crate) struct Service {
    kernel: Child,
    folder: PathBuf,
}

impl Service {
    /// Boots a copy of the machine whose files lie below `root`, with two revisions of the package.
    pub(crate) fn begin(
        context: &Context,
        first: &Path,
        second: &Path,
        root: &Path,
    ) -> Result<Self, String> {
        let folder = context.logs.join("service");
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        fs::create_dir_all(&folder).map_err(failed)?;
        fs::copy(first, folder.join("first.deb")).map_err(failed)?;
        fs::copy(second, folder.join("second.deb")).map_err(failed)?;
        fs::write(folder.join("life"), LIFE).map_err(failed)?;
        let init = folder.join("init");
        fs::write(&init, BOOT).map_err(failed)?;
        fs::set_permissions(&init, Permissions::from_mode(0o755)).map_err(failed)?;
        let console = File::create(folder.join("console")).map_err(failed)?;
        let shown = folder.display();
        let kernel = Command::new("timeout")
            .args(["--kill-after=10", LIMIT, "linux.uml", "mem=1024M", "quiet"])
            .args(["rootfstype=hostfs", "rootflags=/", "ro"])
            .arg(format!("init={}", init.display()))
            .arg(format!("ADIT_OUT={shown}"))
            .arg(format!("ADIT_ROOT={}", root.display()))
            .args(["con=null", "con0=null,fd:1"])
            .arg(format!("uml_dir={shown}"))
            .env("TMPDIR", &folder)
            .stdin(Stdio::null())
            .stderr(console.try_clone().map_err(failed)?)
            .stdout(console)
            .spawn()
            .map_err(|error| format!("timeout: {error}"))?;
        Ok(Self { kernel, folder })
    }

    /// Waits for the end, and says what happened.
    pub(crate) fn end(mut self, context: &Context) -> Result<(), String> {
        let ended = self.kernel.wait();
        let read = |name: &str| {
            let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        context.say(read("log").trim_end());
        if read("status").trim() == "0" {
            return Ok(());
        }
        let console = read("console");
        let last: Vec<_> = console.lines().rev().take(20).collect();
        for line in last.iter().rev() {
            context.say(line);
        }
        Err(format!("the services under systemd; the kernel: {ended:?}"))
    }
}

/// The first process of the kernel.
const BOOT: &str = include_str!("boot.sh");
/// What is done with the package.
const LIFE: &str = include_str!("service.sh");
/// Seconds after which it stands still: it takes one minute, and a few on a busy machine.
const LIMIT: &str = "600";
