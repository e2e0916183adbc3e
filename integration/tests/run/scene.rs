//! A lab with a server, and a client host where an ordinary user may open a TUN device.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    dns::Dns,
    namespaces::{Lab, SERVER4},
    origin::Origin,
    process::{self, Finished, Process},
    scene::{self, Couple, Internet, open_tun},
};

use crate::{PORT, SOON};

/// A lab with a server, and a client host where an ordinary user may open a TUN device.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) server: Adit,
    pub(crate) server_config: PathBuf,
    pub(crate) client_config: PathBuf,
    /// Options of every `adit run`.
    pub(crate) options: Vec<String>,
    pub(crate) workdir: Workdir,
    pub(crate) dns: Dns,
    pub(crate) four: Origin,
    pub(crate) six: Origin,
}

impl Scene {
    fn new(scheme: &str, user: User, config: ServerConfig) -> Self {
        let lab = Lab::new();
        let Internet { dns, four, six } = Internet::of(&lab, |zone| zone);
        // what a command would ask if it came by it: nobody is there, and it would be seen
        lab.client.set_resolver(SERVER4.into());
        let workdir = Workdir::new();
        let lanes = [format!("{scheme}://{SERVER4}:{PORT}")];
        let server = ServerConfig {
            listen: lanes.to_vec(),
            ..config
        };
        let files = Couple::write(
            &workdir,
            [user, User::Nobody],
            server,
            ClientConfig::to(&lanes),
        );
        open_tun(&lab.client);
        // as systemd has it; without it the egress `user` has no sockets for pings
        lab.server
            .shell("echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range");
        let server = workdir.start_server(&lab.server, user, &files.server);
        Self {
            lab,
            server,
            server_config: files.server,
            client_config: files.client,
            options: Vec::new(),
            workdir,
            dns,
            four,
            six,
        }
    }

    pub(crate) fn user(scheme: &str) -> Self {
        let config = ServerConfig {
            allow: Vec::new(),
            ..ServerConfig::user_egress()
        };
        Self::new(scheme, User::Nobody, config)
    }

    pub(crate) fn tun(scheme: &str) -> Self {
        Self::new(scheme, User::Same, ServerConfig::tun_egress())
    }

    /// `adit run` with options before the command.
    pub(crate) fn command_with(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.workdir.command(&self.lab.client, User::Nobody);
        run.args(["run", "-c", path(&self.client_config)])
            .args(&self.options)
            .args(options)
            .arg("--")
            .args(command);
        run
    }

    /// Starts a client, with further lines in its configuration, that every `adit run` shares from then on.
    pub(crate) fn shared(&mut self, more: &str) -> Adit {
        let mut text = fs::read_to_string(&self.client_config).expect("the test wrote it");
        text.push_str(more);
        fs::write(&self.client_config, text).expect("the test's own file");
        self.options = vec!["--share".into()];
        self.workdir
            .start_client(&self.lab.client, User::Nobody, &self.client_config)
    }

    /// How many sessions the server has had.
    pub(crate) fn sessions(&mut self) -> usize {
        let text = self.server.process().text();
        text.lines()
            .filter(|line| line.contains("session up"))
            .count()
    }

    pub(crate) fn run(&self, command: &[&str]) -> Finished {
        process::run(self.command_with(&[], command), SOON)
    }

    pub(crate) fn shell(&self, script: &str) -> Finished {
        self.run(&["bash", "-c", script])
    }

    pub(crate) fn start(&self, script: &str) -> Process {
        let command = self.command_with(&[], &["bash", "-c", script]);
        Process::spawn("command", command)
    }

    /// A shell of the same user, which finds the program as `adit` and the configuration in `$C`.
    pub(crate) fn outside(&self) -> Command {
        let mut command = self
            .workdir
            .program_as(&self.lab.client, User::Nobody, "bash");
        let old = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{old}", self.workdir.path().display()))
            .env("C", &self.client_config);
        command
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_for(what: &str, done: impl FnMut() -> bool) {
    scene::wait_for(what, SOON, done);
}

/// Asserts success, and returns what was printed.
#[track_caller]
pub(crate) fn printed(finished: Finished) -> String {
    assert!(finished.status.success(), "{finished:?}");
    finished.stdout
}

/// The process of a tunnel with this configuration that is not a command yet.
pub(crate) fn tunnel_process(config: &Path) -> Option<u32> {
    let config = config.to_str()?;
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let folder = entry.ok()?.path();
        let name = fs::read_to_string(folder.join("comm")).ok()?;
        let arguments = fs::read_to_string(folder.join("cmdline")).ok()?;
        let ours = name.trim() == "adit-tunnel" && arguments.contains(config);
        ours.then(|| folder.file_name()?.to_str()?.parse().ok())?
    })
}
