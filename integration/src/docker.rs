//! A Docker engine of a test's own: `dockerd` in a place without any other network, with folders that go with it.
//!
//! ```text
//!   Place::alone ── its own network, mounts and processes
//!     dockerd ── containerd ── containers on a bridge 10.87.0.0/24, whose gateway .1 is the place itself;
//!         those that no network is named for are on the engine's own bridge, 10.88.0.0/24
//!     lo: 11.0.0.2, in address space that is really public: where origins of the test are
//! ```
//!
//! No registry can be reached from there, and so nothing is built that needs one. The engine's processes have a process
//! namespace of their own, and end with this one, however that ends.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    namespaces::Place,
    process::{self, Finished, Process},
};

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    /// Where it runs: what its containers reach at [`GATEWAY`] and [`PUBLIC`].
    pub place: Place,
    daemon: Process,
    folder: tempfile::TempDir,
    cgroup: String,
}

impl Engine {
    /// Starts one, with the network [`NETWORK`].
    ///
    /// # Panics
    ///
    /// If it does not begin to answer; see [`crate::skip::Need`] for what it needs.
    pub fn new() -> Self {
        let place = Place::alone("docker");
        let folder = tempfile::Builder::new()
            .prefix("adit-docker.")
            .tempdir()
            .expect("a folder for temporary files");
        place.shell(&format!(
            "ip link set lo up; ip address add {PUBLIC}/32 dev lo; {MOUNTS}"
        ));
        let cgroup = format!("adit-test-{}-{}", std::process::id(), next());
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut command = place.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "dockerd"])
            .args(["--host", &format!("unix://{}", at("sock"))])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args([
                "--pidfile",
                &at("pid"),
                "--cgroup-parent",
                &format!("/{cgroup}"),
            ])
            // the place has no firewall to share, and nobody to masquerade towards
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false"])
            .args(["--bip", DEFAULT_BRIDGE, "--log-level=warn"])
            .current_dir(folder.path());
        let engine = Self {
            daemon: Process::spawn("dockerd", command),
            place,
            folder,
            cgroup,
        };
        engine.wait_for_answer();
        engine.docker(&[
            "network",
            "create",
            "--subnet",
            "10.87.0.0/24",
            "--gateway",
            &GATEWAY.to_string(),
            NETWORK,
        ]);
        engine
    }

    fn wait_for_answer(&self) {
        let deadline = Instant::now() + LIMIT;
        while !self.try_docker(&["version"]).status.success() {
            assert!(
                Instant::now() < deadline,
                "dockerd does not answer:\n{}",
                self.daemon.text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Builds the image [`IMAGE`] out of the repository's Dockerfile and a static `program`, as its target `prebuilt`
    /// does it.
    ///
    /// # Panics
    ///
    /// If it cannot be built.
    pub fn build(&self, program: &Path) {
        let context = self.context(program).display().to_string();
        self.docker(&[
            "build", "--quiet", "--target", "prebuilt", "--tag", IMAGE, &context,
        ]);
    }

    /// Makes the folder that the image is built from, as a checkout is after `cargo ci --only release`.
    ///
    /// # Panics
    ///
    /// If something of it cannot be copied.
    pub fn context(&self, program: &Path) -> PathBuf {
        let root = repository();
        let context = self.folder.path().join("context");
        for folder in ["dist", "packaging/docker/state"] {
            fs::create_dir_all(context.join(folder)).expect("an own folder");
        }
        for name in ["Dockerfile", ".dockerignore"] {
            fs::copy(root.join(name), context.join(name)).expect("the repository has it");
        }
        fs::copy(program, context.join("dist/adit")).expect("the program can be copied");
        fs::copy(AUTHORITIES, context.join("dist/ca-certificates.crt"))
            .expect("the package ca-certificates is installed");
        context
    }

    /// A folder of the engine's, for files that a test makes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `docker` to its end and returns what it printed, without the last line's end.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let finished = self.try_docker(arguments);
        assert!(
            finished.status.success(),
            "docker {}: {}",
            arguments.join(" "),
            finished.text().trim()
        );
        finished.stdout.trim_end().to_owned()
    }

    /// Runs `docker` to its end, whether it succeeds or not.
    pub fn try_docker(&self, arguments: &[&str]) -> Finished {
        process::run(self.command(arguments), LIMIT)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command("docker");
        command.args(arguments).envs(self.surroundings());
        command
    }

    /// The variables by which `docker` finds this engine.
    pub fn surroundings(&self) -> [(&'static str, String); 3] {
        let folder = self.folder.path().display();
        [
            ("DOCKER_HOST", format!("unix://{folder}/sock")),
            // the builder that Debian's engine brings
            ("DOCKER_BUILDKIT", "0".to_owned()),
            ("DOCKER_CONFIG", folder.to_string()),
        ]
    }

    /// Starts a container in the background, in [`NETWORK`].
    pub fn start(&self, name: &str, options: &[&str], arguments: &[&str]) {
        let begin = ["run", "--detach", "--name", name, "--network", NETWORK];
        self.docker(&[&begin, options, &[IMAGE], arguments].concat());
    }

    /// What a container has printed so far, both streams, also in earlier runs of it.
    pub fn logs(&self, name: &str) -> String {
        self.try_docker(&["logs", name]).text()
    }

    /// Waits until a container has printed `count` lines with `text` in them, and returns the last.
    ///
    /// # Panics
    ///
    /// If it has ended before, or not printed them in a minute.
    pub fn wait_for(&self, name: &str, text: &str, count: usize) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let running = self.inspect(name, "{{.State.Running}}") == "true";
            let logs = self.logs(name);
            let found: Vec<_> = logs.lines().filter(|line| line.contains(text)).collect();
            if let Some(last) = found.last().filter(|_| found.len() >= count) {
                return (*last).to_owned();
            }
            assert!(
                running && Instant::now() < deadline,
                "{name} has not printed {text:?} {count} times:\n{logs}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for the end of a container; returns its exit status.
    pub fn wait_for_end(&self, name: &str) -> String {
        self.docker(&["wait", name])
    }

    /// One fact about a container or an image, by a template of Go.
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.docker(&["inspect", "--format", template, name])
    }

    /// The address of a container in [`NETWORK`].
    pub fn address(&self, name: &str) -> Ipv4Addr {
        let template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = self.inspect(name, template);
        address
            .parse()
            .expect("a container that runs has an address")
    }

    /// What the kernel says of the first process of a container: proc_pid_status(5).
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn status(&self, name: &str) -> String {
        let pid = self.inspect(name, "{{.State.Pid}}");
        let is_it = |status: &String| {
            let numbers = field(status, "NSpid:");
            // as this process sees it, as the engine does, as the container does
            matches!(numbers.as_slice(), [_, seen, "1"] if *seen == pid)
        };
        let processes = fs::read_dir("/proc").expect("proc is there").flatten();
        processes
            .filter_map(|process| fs::read_to_string(process.path().join("status")).ok())
            .find(is_it)
            .unwrap_or_else(|| panic!("no process of {name}, {pid}"))
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // the process namespace goes with it
        self.daemon.kill();
        // the kernel lets go of a cgroup some moments after its last process
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && self.leave_cgroups() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Engine {
    /// Removes the engine's cgroups; returns whether any is left.
    fn leave_cgroups(&self) -> bool {
        let script = format!(
            "find /sys/fs/cgroup -depth -type d -path '*/{}*' -exec rmdir {{}} + 2>/dev/null; \
             find /sys/fs/cgroup -type d -path '*/{}*'",
            self.cgroup, self.cgroup
        );
        let mut command = self.place.command("sh");
        command.args(["-c", &script]);
        !process::run(command, LIMIT).stdout.trim().is_empty()
    }
}

/// The numbers of a field of proc_pid_status(5).
pub fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().split_whitespace().collect()
}

/// The folder of the workspace.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("this crate lies in it").to_owned()
}

/// Tells engines of one process apart.
fn next() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What the containers' network is called.
pub const NETWORK: &str = "lab";
/// The engine's own address on the bridge of containers that no network is named for.
const DEFAULT_BRIDGE: &str = "10.88.0.1/24";
/// What the image is called.
pub const IMAGE: &str = "adit";
/// The engine's own address in that network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 1);
/// Another address of it, which counts as one of the Internet's.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 2);

/// What the engine wants to find mounted: folders for sockets of its own, and the machine's cgroups, version 1 or 2.
const MOUNTS: &str = "mount -t tmpfs tmpfs /run
    if grep -qv '^0::' /proc/self/cgroup; then
        mount -t tmpfs tmpfs /sys/fs/cgroup
        cut -d: -f2 /proc/self/cgroup | grep . | while read -r set; do
            case $set in name=*) options=none,$set;; *) options=$set;; esac
            mkdir \"/sys/fs/cgroup/${set#name=}\"
            mount -t cgroup -o \"$options\" cgroup \"/sys/fs/cgroup/${set#name=}\"
        done
    else
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi";

/// The authorities that Debian trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Far beyond what any step here needs, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
