//! Starts the program under test as child processes, as a script would: keys, configuration files, signals.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    meters::Meters,
    namespaces::Place,
    process::{self, Finished, Process, Signal},
};

/// A folder of one test: keys, configurations, state, and a copy of the program that any user may run.
#[derive(Debug)]
pub struct Workdir {
    folder: tempfile::TempDir,
    program: PathBuf,
}

/// A key made by `adit keygen`.
#[derive(Clone, Debug)]
pub struct Key {
    /// The file with the secret key.
    pub file: PathBuf,
    /// The public key, 44 base64 characters.
    pub public: String,
}

/// As whom the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// As the test does.
    Same,
    /// As an ordinary user without any capability, who can gain none. Needs root.
    Nobody,
    /// As an ordinary user with CAP_NET_ADMIN and nothing else. Needs root.
    NetAdmin,
}

/// A configuration file of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Lanes listened on, such as `tcp://127.0.0.1:7443`.
    pub listen: Vec<String>,
    /// `tun` or `user`.
    pub egress: &'static str,
    /// Networks that clients may reach beside the public Internet.
    pub allow: Vec<String>,
    /// Names and public keys.
    pub clients: Vec<(String, String)>,
    /// Fixed addresses of the first clients, in their order.
    pub addresses: Vec<Ipv4Addr>,
    /// The pool of IPv4 addresses.
    pub network: String,
    /// The pool of IPv6 addresses.
    pub network6: String,
    /// Further lines, as they are.
    pub more: String,
}

/// A configuration file of a client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Lanes tried in turn.
    pub server: Vec<String>,
    /// The server's public key.
    pub server_key: String,
    /// Where the proxy listens.
    pub proxy: SocketAddr,
    /// Further lines, as they are.
    pub more: String,
}

/// A running `adit`.
#[derive(Debug)]
pub struct Adit {
    process: Process,
    ready: mpsc::Receiver<Vec<u8>>,
}

/// A server and one client on loopback, both as the user of the test.
#[derive(Debug)]
pub struct Pair {
    /// The server, with egress `user`.
    pub server: Adit,
    /// The client.
    pub client: Adit,
    /// The client's proxy.
    pub proxy: SocketAddr,
    /// The port of the server's first lane, on 127.0.0.1.
    pub port: u16,
    /// The server's configuration, to start it again.
    pub server_config: PathBuf,
    /// The client's configuration, to start it again.
    pub client_config: PathBuf,
    /// The key of the server.
    pub server_key: Key,
    /// The key of the client.
    pub client_key: Key,
    /// The key of a second client that the server knows as `other`, for a test to start.
    pub other_key: Key,
    /// Where all of it lives; dropped last.
    pub workdir: Workdir,
}

impl Workdir {
    /// Makes a folder, with the program in it.
    ///
    /// # Panics
    ///
    /// If the program cannot be built.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("adit-test.")
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("a folder for temporary files");
        // the checkout may lie where only its owner can look, such as /root
        let program = folder.path().join("adit");
        if fs::hard_link(binary(), &program).is_err() {
            fs::copy(binary(), &program).expect("the program can be copied");
        }
        let runtime = folder.path().join(RUNTIME);
        fs::create_dir(&runtime).expect("a folder can be made in its own folder");
        // whoever the program runs as
        fs::set_permissions(&runtime, PermissionsExt::from_mode(0o1777)).expect("an own folder");
        Self { folder, program }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file that everybody may read and returns its path.
    ///
    /// # Panics
    ///
    /// If it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).expect("a file can be written in its own folder");
        path
    }

    /// Makes a key with `adit keygen`, readable by the user that will run as `user`.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn key(&self, name: &str, user: User) -> Key {
        let file = self.path().join(name);
        let made = self.run(&["keygen", "-o", path(&file)]);
        assert!(made.status.success(), "adit keygen: {}", made.text());
        let shown = self.run(&["pubkey", path(&file)]);
        assert!(shown.status.success(), "adit pubkey: {}", shown.text());
        let public = shown.stdout.trim().to_owned();
        assert_eq!(public.len(), 44, "adit pubkey printed {:?}", shown.stdout);
        self.give(&file, user);
        Key { file, public }
    }

    /// Makes `file` belong to the user that will run as `user`.
    ///
    /// # Panics
    ///
    /// If that is not allowed.
    pub fn give(&self, file: &Path, user: User) {
        match user {
            User::Same => {}
            User::Nobody | User::NetAdmin => {
                chown(file, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
            }
        }
    }

    /// Makes a folder for the state of a server that runs as `user`.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn state(&self, name: &str, user: User) -> PathBuf {
        let folder = self.path().join(name);
        fs::create_dir_all(&folder).expect("a folder can be made in its own folder");
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).expect("an own folder");
        self.give(&folder, user);
        folder
    }

    /// Writes a server's configuration.
    pub fn server(&self, name: &str, key: &Key, user: User, config: &ServerConfig) -> PathBuf {
        let state = self.state(&format!("{name}.state"), user);
        let clients: String = config
            .clients
            .iter()
            .enumerate()
            .map(|(index, (name, public))| {
                let fixed = config
                    .addresses
                    .get(index)
                    .map(|address| format!(", address: {address}"));
                format!(
                    "\n  - {{name: {name}, public_key: \"{public}\"{}}}",
                    fixed.unwrap_or_default()
                )
            })
            .collect();
        self.file(
            name,
            &format!(
                "listen: [{}]\nkey_file: {}\nnetwork: {}\nnetwork6: {}\negress: {}\nallow: [{}]\n\
                 {STATE_KEY}: {}\n{}\nclients:{clients}\n",
                quoted(&config.listen),
                key.file.display(),
                config.network,
                config.network6,
                config.egress,
                quoted(&config.allow),
                state.display(),
                config.more,
            ),
        )
    }

    /// Writes a client's configuration.
    pub fn client(&self, name: &str, key: &Key, config: &ClientConfig) -> PathBuf {
        self.file(
            name,
            &format!(
                "server: [{}]\nserver_key: \"{}\"\nkey_file: {}\nproxy: \"{}\"\n{}\n",
                quoted(&config.server),
                config.server_key,
                key.file.display(),
                config.proxy,
                config.more,
            ),
        )
    }

    /// Runs `adit` with `arguments` to its end, here.
    ///
    /// # Panics
    ///
    /// If it has not ended after 30 s.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.run_as(&Place::here(), User::Same, arguments)
    }

    /// Runs `adit` with `arguments` to its end, in a place, as a user.
    ///
    /// # Panics
    ///
    /// If it has not ended after 30 s.
    pub fn run_as(&self, place: &Place, user: User, arguments: &[&str]) -> Finished {
        let mut command = self.command(place, user);
        command.args(arguments);
        process::run(command, ENDS_WITHIN)
    }

    /// Starts `adit` with `arguments`, and `--ready-fd`.
    pub fn start(&self, place: &Place, user: User, name: &str, arguments: &[&str]) -> Adit {
        let mut command = self.command(place, user);
        command.args(arguments);
        self.start_command(name, command)
    }

    /// Starts a command made by [`Workdir::command`], and gives it `--ready-fd`.
    pub fn start_command(&self, name: &str, mut command: Command) -> Adit {
        let (mut reader, writer) = io::pipe().expect("a pipe can be made");
        let writer = File::from(OwnedFd::from(writer));
        command.args(["--ready-fd", "3"]);
        let process = Process::spawn_with_fds(name, command, &[(&writer, 3)]);
        drop(writer);
        let (send, ready) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut buffer = [0; 256];
            // one message however it is cut: what comes up to the first line's end, or to the end of all
            while !bytes.contains(&b'\n') {
                match reader.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                }
            }
            let _ = send.send(bytes);
            // or the program would be told that nobody listens
            let _ = reader.read_to_end(&mut Vec::new());
        });
        Adit { process, ready }
    }

    /// Starts `adit try` with a proxy on a free port, and waits until it is ready; returns it with that proxy.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn start_try(&self, user: User) -> (Adit, SocketAddr) {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let shown = proxy.to_string();
        let mut adit = self.start(
            &Place::here(),
            user,
            "adit try",
            &["try", "--proxy", &shown],
        );
        adit.expect_ready();
        (adit, proxy)
    }

    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn start_server(&self, place: &Place, user: User, config: &Path) -> Adit {
        let mut adit = self.start(
            place,
            user,
            "server",
            &["server", "-c", path(config), "--log-level", "debug"],
        );
        adit.expect_ready();
        adit
    }

    /// Starts a client and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn start_client(&self, place: &Place, user: User, config: &Path) -> Adit {
        let mut adit = self.start(
            place,
            user,
            "client",
            &["client", "-c", path(config), "--log-level", "debug"],
        );
        adit.expect_ready();
        adit
    }

    /// The command that runs the program in a place, as a user, without arguments yet.
    pub fn command(&self, place: &Place, user: User) -> Command {
        self.program_as(place, user, &self.program)
    }

    /// The command that runs another program in a place, as a user, in this folder.
    pub fn program_as(&self, place: &Place, user: User, program: impl AsRef<OsStr>) -> Command {
        let mut command = match user {
            User::Same => place.command(program),
            User::Nobody | User::NetAdmin => {
                let mut command = place.command("setpriv");
                let id = NOBODY.to_string();
                // a change of user clears the signal set at the fork
                command.args([
                    "--reuid",
                    &id,
                    "--regid",
                    &id,
                    "--clear-groups",
                    "--no-new-privs",
                ]);
                command.args(["--pdeathsig", "KILL"]);
                if user == User::NetAdmin {
                    command.args(["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]);
                    command.args(["--bounding-set", "-all,+net_admin"]);
                } else {
                    command.args(["--inh-caps", "-all", "--bounding-set", "-all"]);
                }
                command.arg(program);
                command
            }
        };
        // settings of whoever runs the tests are not those of the test
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("ADIT_")
                || name.to_lowercase().ends_with("_proxy")
                || name == "NOTIFY_SOCKET"
            {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.path())
            // where control sockets are made: those of one test know nothing of another's
            .env("XDG_RUNTIME_DIR", self.path().join(RUNTIME))
            .env("RUST_BACKTRACE", "1")
            .current_dir(self.path());
        command
    }
}

impl Default for Workdir {
    fn default() -> Self {
        Self::new()
    }
}

impl Adit {
    /// Waits for the message on `--ready-fd`; `None` if there is none within `limit`, or the program has ended.
    pub fn ready(&mut self, limit: Duration) -> Option<String> {
        let bytes = self
            .ready
            .recv_timeout(limit)
            .ok()
            .filter(|bytes| !bytes.is_empty())?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Waits until the program is ready.
    ///
    /// # Panics
    ///
    /// If it has ended, or has not become ready in a minute.
    pub fn expect_ready(&mut self) {
        if self.ready(READY_WITHIN).is_none() {
            panic!(
                "adit did not become ready (ended: {:?})\n{}",
                self.process.exited(),
                self.process.text()
            );
        }
    }

    /// Sends SIGTERM and waits for the end; returns how it ended and how long that took.
    ///
    /// # Panics
    ///
    /// If it has not ended in 30 s.
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.process.signal(Signal::Terminate);
        match self.process.wait(ENDS_WITHIN) {
            Some(status) => (status, began.elapsed()),
            None => panic!(
                "adit had not ended {ENDS_WITHIN:?} after SIGTERM\n{}",
                self.process.text()
            ),
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What the process costs now.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn meters(&mut self) -> Meters {
        match Meters::read(self.process.pid()) {
            Some(meters) if self.process.exited().is_none() => meters,
            _ => panic!(
                "adit has ended: {:?}\n{}",
                self.process.exited(),
                self.process.text()
            ),
        }
    }

    /// The process, for its output and its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything logged so far that tells of a panic; what every test of misbehaviour asserts to be empty.
    pub fn panics(&self) -> Vec<String> {
        self.process
            .lines()
            .into_iter()
            .filter(|line| line.contains("panicked at"))
            .collect()
    }
}

impl Pair {
    /// Starts a server with egress `user` that allows loopback, and a client of it, over a `scheme` lane.
    ///
    /// # Panics
    ///
    /// If either does not become ready.
    pub fn start(scheme: &str) -> Self {
        Self::start_with(scheme, "", "")
    }

    /// As [`Pair::start`], with further lines of configuration for server and client.
    ///
    /// # Panics
    ///
    /// If either does not become ready.
    pub fn start_with(scheme: &str, more_server: &str, more_client: &str) -> Self {
        let (workdir, port) = (Workdir::new(), free_port());
        let lane = format!("{scheme}://127.0.0.1:{port}");
        let [server_key, client_key, other_key] =
            ["server.key", "client.key", "other.key"].map(|name| workdir.key(name, User::Same));
        let server_config = workdir.server(
            "server.yaml",
            &server_key,
            User::Same,
            &ServerConfig {
                listen: vec![lane.clone()],
                clients: vec![
                    ("laptop".into(), client_key.public.clone()),
                    ("other".into(), other_key.public.clone()),
                ],
                more: more_server.into(),
                ..ServerConfig::user_egress()
            },
        );
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let client_config = workdir.client(
            "client.yaml",
            &client_key,
            &ClientConfig {
                server: vec![lane],
                server_key: server_key.public.clone(),
                proxy,
                more: more_client.into(),
            },
        );
        let here = Place::here();
        let server = workdir.start_server(&here, User::Same, &server_config);
        let client = workdir.start_client(&here, User::Same, &client_config);
        Self {
            server,
            client,
            proxy,
            port,
            server_config,
            client_config,
            server_key,
            client_key,
            other_key,
            workdir,
        }
    }

    /// Writes and starts one more client, known to the server as `other`, whose server is at `port` of 127.0.0.1.
    ///
    /// Returns it with its proxy's address; it is not waited for.
    pub fn other(&self, scheme: &str, port: u16) -> (Adit, SocketAddr) {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let config = self.workdir.client(
            &format!("other-{}.yaml", proxy.port()),
            &self.other_key,
            &ClientConfig {
                server: vec![format!("{scheme}://127.0.0.1:{port}")],
                server_key: self.server_key.public.clone(),
                proxy,
                more: String::new(),
            },
        );
        let arguments = ["client", "-c", path(&config), "--log-level", "debug"];
        (
            self.workdir
                .start(&Place::here(), User::Same, "other client", &arguments),
            proxy,
        )
    }
}

impl User {
    /// An ordinary user without rights, where this process may become one; itself, where it is one.
    pub fn ordinary() -> Self {
        if process::is_root() {
            Self::Nobody
        } else {
            Self::Same
        }
    }
}

impl ServerConfig {
    /// Egress `user` with loopback allowed; lanes and clients are still to be given.
    pub fn user_egress() -> Self {
        Self {
            listen: Vec::new(),
            egress: "user",
            allow: vec!["127.0.0.0/8".into(), "::1/128".into()],
            clients: Vec::new(),
            addresses: Vec::new(),
            network: "10.86.0.0/24".into(),
            network6: "fd86::/64".into(),
            more: String::new(),
        }
    }

    /// Egress `tun` to the public Internet only; lanes and clients are still to be given.
    pub fn tun_egress() -> Self {
        Self {
            egress: "tun",
            allow: Vec::new(),
            ..Self::user_egress()
        }
    }
}

impl ClientConfig {
    /// A client of a server that is reached by `lanes`; the server's key is still to be given.
    pub fn to(lanes: &[String]) -> Self {
        Self {
            server: lanes.to_vec(),
            server_key: String::new(),
            proxy: crate::scene::PROXY,
            more: String::new(),
        }
    }
}

/// The program under test: that of `ADIT_BIN`, or the one built from this workspace.
///
/// # Panics
///
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("ADIT_BIN") {
            return fs::canonicalize(path).expect("ADIT_BIN names a file");
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("this crate lies in the workspace");
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args(["rustc", "--release", "--package", "adit", "--bin", "adit"])
            // as it is released: with the C library inside
            .args(["--", "-C", "target-feature=+crt-static"])
            .current_dir(root);
        let built = process::run(command, BUILT_WITHIN);
        assert!(
            built.status.success(),
            "adit cannot be built:\n{}",
            built.text()
        );
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        target.join("release/adit")
    })
}

/// A TCP port that nobody listens on, outside the range that outgoing connections take.
///
/// # Panics
///
/// If there is none.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<std::sync::Mutex<u32>> = OnceLock::new();
    let next = NEXT.get_or_init(|| std::sync::Mutex::new(std::process::id().wrapping_mul(4001)));
    for _ in 0..PORTS {
        let mut next = next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *next = next.wrapping_add(1);
        let port = FIRST_PORT + u16::try_from(*next % u32::from(PORTS)).unwrap_or(0);
        if TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).is_ok() {
            return port;
        }
    }
    panic!("no free TCP port");
}

/// `path` as text: every path of a test is.
///
/// # Panics
///
/// If it is not UTF-8.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn quoted(items: &[String]) -> String {
    items
        .iter()
        .map(|item| format!("\"{item}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The user and group `nobody` and `nogroup` of Debian.
pub const NOBODY: u32 = 65534;
/// The folder of what lives as long as the programs do.
const RUNTIME: &str = "run";
/// The key that names the folder of a server's state.
const STATE_KEY: &str = "state_dir";
/// The hang guard of everything that should take a moment.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// The hang guard of a start: a client that was refused asks again after up to 20 s.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// The hang guard of a release build from nothing on a small machine.
const BUILT_WITHIN: Duration = Duration::from_secs(1200);
/// Below the range of ephemeral ports, which begins at 32768.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
