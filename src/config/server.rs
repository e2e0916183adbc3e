//! The configuration of a server.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::address::{Host, LaneAddr, Scheme};
use super::dns::{self, StaticRecord};
use super::error::ConfigError;
use super::forward::{self, ControlSocket};
use super::link::MAX_SERVERS;
use super::process::{self, ProcessConfig};
use super::repair::{self, Repair};
use super::settings::{Inputs, Settings};
use super::shared::{Unique, values};
use super::{Loaded, clients, files, log_level, parse, shared};
use crate::proto::{AeadKind, PresharedKey, PublicKey, SecretKey, budget};

/// Everything that a server is told, checked: addresses are inside their networks, names and keys are unique.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where lanes are accepted; at least one, none twice.
    pub listen: Vec<ListenAddr>,
    /// The server's identities, the current one first, former ones (in rotation) behind it; at least one.
    pub secret_keys: Vec<SecretKey>,
    /// The pool of inner IPv4 addresses; at least one of the two pools is there.
    pub network: Option<Ipv4Net>,
    /// The pool of inner IPv6 addresses.
    pub network6: Option<Ipv6Net>,
    /// Where packets leave.
    pub egress: EgressKind,
    /// The TUN device of [`EgressKind::Tun`].
    pub tun: TunConfig,
    /// The inner MTU in bytes, 1280 to 9000.
    pub mtu: u16,
    /// Networks that clients may reach beside the public Internet.
    pub allow: Vec<IpNet>,
    /// Who may connect.
    pub clients: Vec<ClientEntry>,
    /// The certificate of `tls` lanes; without, one is generated and kept in the state folder.
    pub tls: Option<TlsFiles>,
    /// The host names and addresses that a generated certificate is made out to; empty: `localhost`.
    pub tls_names: Vec<String>,
    /// Where clients reach it, for the links of invitations; empty: where it listens.
    pub public: Vec<LaneAddr>,
    /// Resolvers that answer the clients' queries; empty: those of the host.
    pub dns: Vec<SocketAddr>,
    /// Records of names that clients are given; together they fit a Config frame.
    pub dns_records: Vec<StaticRecord>,
    /// Whether clients may send packets to one another.
    pub client_to_client: bool,
    /// The folder of what outlives the process: leases, replay times, certificate, journal.
    pub state_dir: PathBuf,
    /// Most sessions at once.
    pub max_clients: u32,
    /// Bounds for each client.
    pub limits: Limits,
    /// Ciphers in the order of preference; empty: what this processor is best at.
    pub aead: Vec<AeadKind>,
    /// What this end spends on repairing losses of what it sends.
    pub repair: Repair,
    /// How many threads the program runs on, 1 to [`MOST_THREADS`](super::MOST_THREADS); `None` leaves it to the program.
    pub threads: Option<usize>,
    /// Where it takes orders while it runs.
    pub control: ControlSocket,
    /// Where metrics and health are served: on loopback, if anywhere.
    pub admin: Option<SocketAddr>,
    /// What is logged, where the command line does not say.
    pub log_level: Option<String>,
    /// What is done before the start.
    pub process: ProcessConfig,
}

/// An address on which a server accepts lanes. Port 0 takes any free one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddr {
    /// How the lanes are carried.
    pub scheme: Scheme,
    /// The address to bind.
    pub address: SocketAddr,
    /// The path at which WebSockets are; empty where the scheme has none.
    pub path: String,
}

impl ListenAddr {
    /// Makes an address to listen on; WebSockets are at the path `/`.
    pub fn new(scheme: Scheme, address: SocketAddr) -> Self {
        let host = Host::Ip(address.ip());
        Self {
            scheme,
            address,
            path: LaneAddr::new(scheme, host, address.port()).path,
        }
    }
}

/// Where packets leave the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressKind {
    /// A TUN device, the kernel's routing and masquerading; needs CAP_NET_ADMIN.
    Tun,
    /// A userspace stack that opens ordinary sockets; needs no privilege.
    User,
}

/// The TUN device of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// The name of the interface, 1 to 15 bytes.
    pub name: String,
    /// Whether packets leave the host under its own address.
    pub masquerade: bool,
}

/// The files of a certificate, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with its chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A client that may connect.
#[derive(Clone, Debug)]
pub struct ClientEntry {
    /// The name, unique, for logs and metrics.
    pub name: String,
    /// The identity, unique.
    pub public_key: PublicKey,
    /// The IPv4 address of its first instance, inside the pool.
    pub address: Option<Ipv4Addr>,
    /// The IPv6 address of its first instance, inside the pool.
    pub address6: Option<Ipv6Addr>,
    /// A secret shared with it beside the identities.
    pub preshared_key: Option<PresharedKey>,
}

/// Bounds for each session of a client with the `user` egress, and for the memory of all; a client has one session for each
/// of its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most TCP flows that one session may have open. UDP and ICMP echo have bounds of their own:
    /// [`MAX_MAPPINGS`](crate::server::egress::udp::MAX_MAPPINGS) and
    /// [`MAX_ECHOES`](crate::server::egress::echo::MAX_ECHOES).
    pub flows_per_client: u32,
    /// Most TCP flows of one session whose origin has not answered yet.
    pub half_open_per_client: u32,
    /// Most bytes that the flows of all sessions may hold; from half of it on new ones are refused. At least
    /// [`LEAST`](budget::LEAST).
    pub memory: usize,
    /// Most bytes that the flows of one session may hold, as much as of all at most; from half of it on new ones are
    /// refused.
    pub memory_per_client: usize,
}

impl ServerConfig {
    /// Reads and checks the configuration of a server.
    ///
    /// # Errors
    /// The file is unreadable, or any setting is wrong; all wrong settings are told at once.
    pub fn load(inputs: Inputs<'_>) -> Result<Loaded<Self>, ConfigError> {
        let mut settings = Settings::open(inputs)?;
        let config = Self::read(&mut settings, inputs.environment);
        let warnings = settings.finish()?;
        config
            .map(|config| Loaded { config, warnings })
            .ok_or_else(|| ConfigError::Invalid(Vec::new()))
    }

    /// Reads as much as finding the server needs that runs with it: its keys, its state folder and its control socket. What
    /// else is wrong, such as a certificate that is gone, is the running server's to say.
    ///
    /// # Errors
    /// As [`ServerConfig::load`], where one of these is wrong.
    pub fn sketch(inputs: Inputs<'_>) -> Result<Loaded<Self>, ConfigError> {
        let mut settings = Settings::open(inputs)?;
        let config = Self::read(&mut settings, inputs.environment);
        let needed = ["key_file", "state_dir", "control"];
        match config {
            Some(config) if !needed.iter().any(|key| settings.has_problem(key)) => Ok(Loaded {
                config,
                warnings: Vec::new(),
            }),
            Some(_) | None => Err(settings
                .finish()
                .err()
                .unwrap_or_else(|| ConfigError::Invalid(Vec::new()))),
        }
    }

    /// `None` only after a problem was added.
    pub(super) fn read(
        settings: &mut Settings<'_>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Self> {
        let listen = read_listen(settings);
        let mut process = ProcessConfig {
            user: process::read_user(settings),
            new_key: None,
        };
        let secret_keys = read_keys(settings, &mut process);
        let (network, network6) = read_pools(settings);
        let egress = settings.value("egress", parse::egress);
        let tun = TunConfig {
            name: settings
                .value("tun.name", parse::interface)
                .map_or_else(|| DEFAULT_TUN.to_owned(), |at| at.value),
            masquerade: settings
                .value("tun.masquerade", parse::boolean)
                .is_none_or(|at| at.value),
        };
        let mtu = settings.value("mtu", |text| {
            parse::number(text, MIN_MTU.into(), MAX_MTU.into())
        });
        let allow = values(settings.list("allow", parse::allow));
        let clients = clients::read(settings, network, network6, &secret_keys);
        let tls = read_tls(settings, &listen);
        let tls_names = read_tls_names(settings, tls.is_some());
        let public = read_public(settings);
        let dns = values(settings.list("dns", parse::upstream));
        let dns_records = dns::read_pushed(settings);
        let client_to_client = settings
            .value("client_to_client", parse::boolean)
            .is_some_and(|at| at.value);
        let state_dir = settings.path("state_dir").map(|at| at.value);
        let max_clients =
            settings.value("max_clients", |text| parse::number(text, 1, MOST_CLIENTS));
        let limits = read_limits(settings);
        let aead = shared::read_aead(settings);
        let repair = repair::read(settings);
        let threads = shared::read_threads(settings);
        let control = forward::read_control(settings);
        let admin = shared::read_admin(settings);
        let log_level = log_level::read(settings);
        let state_dir = match (state_dir, secret_keys.first()) {
            (Some(folder), _) => Some(folder),
            (None, Some(key)) => {
                let folder = default_state_dir(environment, &key.public());
                if folder.is_none() {
                    settings.missing(
                        "state_dir",
                        "name a folder that this user can write, since HOME is not set",
                    );
                }
                folder
            }
            // Without a key there is a problem already.
            (None, None) => None,
        };
        Some(Self {
            listen,
            secret_keys,
            network,
            network6,
            egress: egress.map_or(EgressKind::Tun, |at| at.value),
            tun,
            mtu: mtu
                .and_then(|at| u16::try_from(at.value).ok())
                .unwrap_or(DEFAULT_MTU),
            allow,
            clients,
            tls,
            tls_names,
            public,
            dns,
            dns_records,
            client_to_client,
            state_dir: state_dir?,
            max_clients: max_clients.map_or(DEFAULT_CLIENTS, |at| at.value),
            limits,
            aead,
            repair,
            threads,
            control,
            admin,
            log_level,
            process,
        })
    }
}

impl fmt::Display for ServerConfig {
    /// One line for `adit check`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listen: Vec<String> = self.listen.iter().map(ListenAddr::to_string).collect();
        let (count, plural) = (
            self.clients.len(),
            if self.clients.len() == 1 { "" } else { "s" },
        );
        write!(
            f,
            "server on {}, {count} client{plural}, egress {}",
            listen.join(", "),
            self.egress
        )
    }
}

impl fmt::Display for EgressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tun => "tun",
            Self::User => "user",
        })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.address, self.path)
    }
}

impl Default for TunConfig {
    fn default() -> Self {
        Self {
            name: DEFAULT_TUN.to_owned(),
            masquerade: true,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows_per_client: DEFAULT_FLOWS,
            half_open_per_client: DEFAULT_HALF_OPEN,
            memory: budget::PROCESS,
            memory_per_client: budget::SESSION,
        }
    }
}

fn read_listen(settings: &mut Settings<'_>) -> Vec<ListenAddr> {
    let Some(listen) = settings.list("listen", parse::listen) else {
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), DEFAULT_PORT);
        return [Scheme::Udp, Scheme::Tcp]
            .map(|scheme| ListenAddr::new(scheme, address))
            .into();
    };
    if listen.is_empty() {
        settings.missing(
            "listen",
            "write at least one address such as tcp://0.0.0.0:7443, or leave the key out",
        );
    }
    let mut seen = Unique::default();
    for at in &listen {
        // Streams cannot share a port, datagrams have their own; any free port is free for all.
        let address = at.value.address;
        if address.port() != 0 {
            let stream = at.value.scheme.is_stream();
            seen.insert(settings, at, (stream, address), address);
        }
    }
    values(Some(listen))
}

/// Reads the keys; the first of them is made where that is wanted and its file is not there.
fn read_keys(settings: &mut Settings<'_>, process: &mut ProcessConfig) -> Vec<SecretKey> {
    let generate = process::read_generate(settings);
    let given = settings.paths("key_file");
    let given = given.or_else(|| Some(vec![process::default_key(settings, generate)?]));
    let Some(paths) = given else {
        settings.missing(
            "key_file",
            "write the name of a file made by `adit keygen -o FILE`",
        );
        return Vec::new();
    };
    let mut keys = Vec::new();
    for (number, at) in paths.iter().enumerate() {
        keys.extend(process::read_key(
            settings,
            at,
            generate && number == 0,
            process,
        ));
    }
    if keys.is_empty() {
        settings.missing(
            "key_file",
            "write the name of a file made by `adit keygen -o FILE`",
        );
    }
    keys
}

fn read_pools(settings: &mut Settings<'_>) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
    let network = settings.value("network", parse::pool4);
    let network6 = settings.value("network6", parse::pool6);
    if let (Some(first), Some(second)) = (&network, &network6)
        && first.value.is_none()
        && second.value.is_none()
    {
        let message = "is off, and `network` is off too: clients need an address of one family";
        settings.problem_at(second, message);
    }
    (
        network.map_or(Some(DEFAULT_POOL4), |at| at.value),
        network6.map_or(Some(DEFAULT_POOL6), |at| at.value),
    )
}

fn read_tls(settings: &mut Settings<'_>, listen: &[ListenAddr]) -> Option<TlsFiles> {
    let certificate = settings.path("tls.certificate");
    let key = settings.path("tls.key");
    for at in [&certificate, &key].into_iter().flatten() {
        settings.read_file(at, files::probe);
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            if !listen.iter().any(|listen| listen.scheme.is_tls()) {
                settings.warn(
                    "tls: the certificate is not used, since no tls:// or wss:// address is listened on"
                        .to_owned(),
                );
            }
            Some(TlsFiles {
                certificate: certificate.value,
                key: key.value,
            })
        }
        (Some(at), None) => {
            settings.problem(
                "tls.key",
                at.place,
                "is missing: a certificate needs its private key beside it",
            );
            None
        }
        (None, Some(at)) => {
            settings.problem(
                "tls.certificate",
                at.place,
                "is missing: a private key needs its certificate beside it",
            );
            None
        }
        (None, None) => None,
    }
}

fn read_tls_names(settings: &mut Settings<'_>, has_files: bool) -> Vec<String> {
    let names = settings.list("tls.names", parse::host).unwrap_or_default();
    if let Some(at) = names.first().filter(|_| has_files) {
        let message = "stands beside tls.certificate, which has names of its own: leave it out";
        settings.problem_at(at, message);
    }
    values(Some(names))
}

fn read_public(settings: &mut Settings<'_>) -> Vec<LaneAddr> {
    let public = settings.list("public", parse::server).unwrap_or_default();
    let mut seen = Unique::default();
    for at in &public {
        seen.insert(settings, at, at.value.clone(), &at.value);
    }
    if let Some(at) = public.get(MAX_SERVERS) {
        let message = format!("is one more than the {MAX_SERVERS} that fit into a link");
        settings.problem_at(at, message);
    }
    values(Some(public))
}

fn read_limits(settings: &mut Settings<'_>) -> Limits {
    let flows = settings.value("limits.flows_per_client", |text| {
        parse::number(text, 1, MOST_FLOWS)
    });
    let half_open = settings.value("limits.half_open_per_client", |text| {
        parse::number(text, 1, MOST_FLOWS)
    });
    let memory = settings.value("limits.memory", |text| parse::size(text, budget::LEAST));
    let of_client = settings.value("limits.memory_per_client", |text| {
        parse::size(text, budget::LEAST)
    });
    // A default never contradicts what was written.
    let flows_per_client = flows.map_or(DEFAULT_FLOWS, |at| at.value);
    let memory = memory.map_or(budget::PROCESS, |at| at.value);
    let limits = Limits {
        flows_per_client,
        half_open_per_client: DEFAULT_HALF_OPEN.min(flows_per_client),
        memory,
        memory_per_client: budget::SESSION.min(memory),
    };
    if let Some(at) = half_open.as_ref().filter(|at| at.value > flows_per_client) {
        let message = format!(
            "`{}` is more than flows_per_client, {flows_per_client}: write less",
            at.value
        );
        settings.problem_at(at, message);
    }
    if let Some(at) = of_client.as_ref().filter(|at| at.value > memory) {
        let message = format!(
            "`{}MiB` is more than memory, {}MiB: write less",
            at.value >> 20,
            memory >> 20
        );
        settings.problem_at(at, message);
    }
    Limits {
        half_open_per_client: half_open.map_or(limits.half_open_per_client, |at| at.value),
        memory_per_client: of_client.map_or(limits.memory_per_client, |at| at.value),
        ..limits
    }
}

/// The folder that systemd gives, else that of the system (root) or of the user; below it one folder per identity,
/// so that two servers of one host do not meet.
pub(super) fn default_state_dir(
    environment: &dyn Fn(&str) -> Option<String>,
    key: &PublicKey,
) -> Option<PathBuf> {
    let folders = environment("STATE_DIRECTORY").filter(|text| text.starts_with('/'));
    if let Some(folders) = folders {
        // systemd.exec(5): several folders are separated by colons.
        return folders.split(':').next().map(PathBuf::from);
    }
    Some(state_base(environment)?.join(state_name(key)))
}

/// What the state folder of this identity is called.
pub fn state_name(key: &PublicKey) -> String {
    let bytes = key.as_bytes().iter().take(STATE_NAME_LEN);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

/// Where the state folders of this user are, one for each identity.
pub fn state_base(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let variable = |name: &str| environment(name).filter(|text| text.starts_with('/'));
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else if let Some(folder) = variable("XDG_STATE_HOME") {
        PathBuf::from(folder)
    } else {
        Path::new(&variable("HOME")?).join(".local/state")
    };
    Some(base.join("adit"))
}

/// The port of lanes where none is said.
const DEFAULT_PORT: u16 = 7443;
/// A network of RFC 1918 that home routers and clouds seldom take.
const DEFAULT_POOL4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 86, 0, 0), 24);
/// A unique local network (RFC 4193), beside the IPv4 one.
const DEFAULT_POOL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 0), 64);
/// The name of the TUN device where none is said.
const DEFAULT_TUN: &str = "adit0";
/// Fits into one TCP segment or datagram of a path of 1500 bytes with all headers of a lane.
const DEFAULT_MTU: u16 = 1400;
/// The least that IPv6 requires of a link (RFC 8200, section 5).
const MIN_MTU: u16 = 1280;
/// The largest common size of a frame on Ethernet.
const MAX_MTU: u16 = 9000;
/// Sessions at once where no number is said: more than the clients of a large office.
const DEFAULT_CLIENTS: u32 = 4096;
/// More sessions than one process can have descriptors for.
const MOST_CLIENTS: u32 = 1_000_000;
/// Flows of one client where no number is said: 10,000 idle connections and room for busy ones.
const DEFAULT_FLOWS: u32 = 16_384;
/// Half-open flows of one client where no number is said: a scan is slowed, a browser or a load test never.
const DEFAULT_HALF_OPEN: u32 = 2_048;
/// Flows that one client could ever have: one per port of one address and family.
const MOST_FLOWS: u32 = 1_000_000;
/// Bytes of the public key in the name of the state folder: enough to never meet another by chance on one host.
const STATE_NAME_LEN: usize = 6;
