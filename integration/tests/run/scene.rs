//! A lab with a server, and a client host where an ordinary user may open a TUN device.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    dns::{Dns, Zone},
    namespaces::{Lab, ORIGIN4, ORIGIN6, SERVER4},
    origin::Origin,
    process::{self, Finished, Process},
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
        let zone = Zone::new()
            .address("both.example", 60, ORIGIN4)
            .address("both.example", 60, ORIGIN6)
            .address("four.example", 60, ORIGIN4);
        let dns = Dns::start(&lab.internet, (ORIGIN4, 53).into(), zone);
        lab.server.set_resolver(ORIGIN4.into());
        // what a command would ask if it came by it: nobody is there, and it would be seen
        lab.client.set_resolver(SERVER4.into());
        let four = Origin::http(&lab.internet, (ORIGIN4, 80).into());
        let six = Origin::http(&lab.internet, (ORIGIN6, 80).into());
        let workdir = Workdir::new();
        let server_key = workdir.key("server.key", user);
        let client_key = workdir.key("client.key", User::Nobody);
        let lane = format!("{scheme}://{SERVER4}:{PORT}");
        let server_config = workdir.server(
            "server.yaml",
            &server_key,
            user,
            &ServerConfig {
                listen: vec![lane.clone()],
                clients: vec![("laptop".into(), client_key.public.clone())],
                ..config
            },
        );
        let client_config = workdir.client(
            "client.yaml",
            &client_key,
            &ClientConfig {
                server: vec![lane],
                server_key: server_key.public,
                proxy: SocketAddr::from(([127, 0, 0, 1], 1080)),
                more: String::new(),
            },
        );
        // as distributions ship it; some machines let nobody else open it
        lab.client
            .shell("mount -t tmpfs tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200");
        // as systemd has it; without it the egress `user` has no sockets for pings
        lab.server
            .shell("echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range");
        let server = workdir.start_server(&lab.server, user, &server_config);
        Self {
            lab,
            server,
            server_config,
            client_config,
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

pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
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
