//! The configuration of a client.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::address::{Host, LaneAddr};
use super::dns::{self, DnsConfig};
use super::error::ConfigError;
use super::forward::{self, ControlSocket, Forward};
use super::host::{self, HostTunnel};
use super::process::{self, ProcessConfig};
use super::proxies::{self, ProxyAuth, ProxyConfig};
use super::repair::{self, Repair};
use super::rule::Rule;
use super::settings::{FlagValue, Inputs, Located, Settings};
use super::shared::{Unique, read_admin, read_aead, read_threads, values};
use super::via::{self, Via};
use super::{Loaded, files, log_level, parse};
use crate::proto::{AeadKind, PresharedKey, PublicKey, SecretKey, budget};

/// Everything that a client is told, checked.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the server is reached, tried in turn; at least one, none twice.
    pub servers: Vec<LaneAddr>,
    /// The server's identity.
    pub server_key: PublicKey,
    /// The client's identity.
    pub secret_key: SecretKey,
    /// A secret shared with the server beside the identities.
    pub preshared_key: Option<PresharedKey>,
    /// Where the local proxy listens; port 0 takes any free one. Loopback, unless there is a password or it was
    /// said that none is wanted.
    pub proxy: SocketAddr,
    /// What the proxy asks of whoever uses it.
    pub proxy_auth: Option<ProxyAuth>,
    /// Where the requests of that proxy go, the first rule that concerns one decides; beyond them all, the tunnel.
    pub rules: Vec<Rule>,
    /// Further proxies beside that one, each with rules of its own.
    pub proxies: Vec<ProxyConfig>,
    /// How names are found, by the proxies and by the local resolver.
    pub dns: DnsConfig,
    /// How the certificate of a `tls` or `wss` lane is checked.
    pub tls: CertificateCheck,
    /// The proxy through which the servers are reached; those of [`Scheme::Udp`](super::Scheme::Udp) are not, and are
    /// not listed where it is for their host.
    pub via: Option<Via>,
    /// How long one attempt at one server may take, until the session stands.
    pub connect_timeout: Duration,
    /// How many lanes carry the session side by side where it goes by TCP or TLS, 1 to 8.
    pub lanes: usize,
    /// Ciphers in the order of preference; empty: what this processor is best at.
    pub aead: Vec<AeadKind>,
    /// What this end spends on repairing losses of what it sends.
    pub repair: Repair,
    /// How many threads the program runs on, 1 to [`MOST_THREADS`](super::MOST_THREADS); `None` leaves it to the program.
    pub threads: Option<usize>,
    /// Ports here that lead beyond the server, and inner ports that lead here; no two collide.
    pub forwards: Vec<Forward>,
    /// Where it takes orders while it runs.
    pub control: ControlSocket,
    /// Where metrics and health are served: on loopback, if anywhere.
    pub admin: Option<SocketAddr>,
    /// What is logged, where the command line does not say.
    pub log_level: Option<String>,
    /// Most bytes that all flows may hold; from half of it on new ones are refused. At least [`LEAST`](budget::LEAST).
    pub memory: usize,
    /// How the whole host goes through the tunnel, if it does.
    pub tun: Option<HostTunnel>,
    /// What is done before the start.
    pub process: ProcessConfig,
}

/// How the certificate of a `tls` lane is checked, beside the server's identity, which always is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CertificateCheck {
    /// Not at all: the session's handshake decides alone.
    #[default]
    Unchecked,
    /// Its public key is one of these; never empty.
    Pins(Vec<CertificatePin>),
    /// It names the host, and an authority in this PEM file vouches for it.
    CaFile(PathBuf),
    /// It names the host, and an authority that the system trusts vouches for it.
    System,
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469, section 2.4), shown as 44 base64 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CertificatePin(pub [u8; 32]);

impl fmt::Display for CertificatePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl ClientConfig {
    /// Reads and checks the configuration of a client.
    ///
    /// # Errors
    /// The file is unreadable, or any setting is wrong; all wrong settings are told at once.
    pub fn load(inputs: Inputs<'_>) -> Result<Loaded<Self>, ConfigError> {
        Self::loaded(Settings::open(inputs)?)
    }

    /// Reads and checks `text` as [`ClientConfig::load`] would if it stood in the file at `path`.
    ///
    /// # Errors
    /// As there.
    pub fn load_text(
        inputs: Inputs<'_>,
        path: &Path,
        text: &str,
    ) -> Result<Loaded<Self>, ConfigError> {
        Self::loaded(Settings::of_file(inputs, path, text)?)
    }

    fn loaded(mut settings: Settings<'_>) -> Result<Loaded<Self>, ConfigError> {
        let config = Self::read(&mut settings);
        let warnings = settings.finish()?;
        config
            .map(|config| Loaded { config, warnings })
            .ok_or_else(|| ConfigError::Invalid(Vec::new()))
    }

    /// Reads as much as finding the client needs that runs with it: its keys and its control socket. What else is wrong, such
    /// as a list that is gone, is the running client's to say.
    ///
    /// # Errors
    /// As [`ClientConfig::load`], where one of these is wrong.
    pub fn sketch(inputs: Inputs<'_>) -> Result<Loaded<Self>, ConfigError> {
        let mut settings = Settings::open(inputs)?;
        match Self::read(&mut settings) {
            Some(config) if !settings.has_problem("control") => Ok(Loaded {
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
    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let via = via::read(settings);
        let servers = read_servers(settings, via.as_ref());
        let server_key = settings.value("server_key", parse::public_key);
        if server_key.is_none() {
            settings.missing(
                "server_key",
                "write what `adit pubkey` prints for the server's key file",
            );
        }
        let mut process = ProcessConfig {
            user: process::read_user(settings),
            new_key: None,
        };
        let secret_key = read_key(settings, &mut process);
        let preshared_key = read_preshared(settings);
        if let (Some(at), Some(own)) = (&server_key, &secret_key)
            && own.public() == at.value
        {
            let message = "this is the key of the client itself: write the server's public key";
            settings.problem_at(at, message);
        }
        let (proxy, proxies) = proxies::read(settings);
        if let Some(at) = &via {
            for own in std::iter::once(&proxy).chain(&proxies) {
                refuse_loop(settings, at, own.listen);
            }
        }
        let dns = dns::read(settings);
        let tls = read_tls(settings, &servers);
        let connect_timeout = settings.value("connect_timeout", |text| {
            parse::duration(text, MIN_TIMEOUT, MAX_TIMEOUT)
        });
        let lanes = read_lanes(settings, &servers);
        let aead = read_aead(settings);
        let repair = repair::read(settings);
        let threads = read_threads(settings);
        let forwards = forward::read(settings);
        let control = forward::read_control(settings);
        let admin = read_admin(settings);
        let log_level = log_level::read(settings);
        let memory = settings.value("limits.memory", |text| parse::size(text, budget::LEAST));
        let identity = secret_key.as_ref().map(SecretKey::public);
        let tun = host::read(settings, identity.as_ref());
        Some(Self {
            servers,
            server_key: server_key?.value,
            secret_key: secret_key?,
            preshared_key,
            proxy: proxy.listen,
            proxy_auth: proxy.auth,
            rules: proxy.rules,
            proxies,
            dns,
            tls,
            via: via.map(|at| at.value),
            connect_timeout: connect_timeout.map_or(DEFAULT_TIMEOUT, |at| at.value),
            lanes,
            aead,
            repair,
            threads,
            forwards,
            control,
            admin,
            log_level,
            memory: memory.map_or(budget::CLIENT, |at| at.value),
            tun,
            process,
        })
    }
}

impl ClientConfig {
    /// What the flag `--tun` says.
    pub(crate) fn with_tunnel() -> [FlagValue; 1] {
        [FlagValue {
            key: "tun",
            flag: "--tun",
            values: vec!["true".to_owned()],
        }]
    }

    /// Every proxy: that of `proxy`, and behind it those of `proxies`.
    pub fn listeners(&self) -> Vec<ProxyConfig> {
        let first = ProxyConfig {
            listen: self.proxy,
            auth: self.proxy_auth.clone(),
            rules: self.rules.clone(),
        };
        std::iter::once(first)
            .chain(self.proxies.iter().cloned())
            .collect()
    }
}

impl fmt::Display for ClientConfig {
    /// One line for `adit check`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(LaneAddr::to_string).collect();
        let listeners = self.listeners();
        let proxies: Vec<String> = (listeners.iter())
            .map(|proxy| match proxy.rules.len() {
                0 => proxy.listen.to_string(),
                1 => format!("{} with 1 rule", proxy.listen),
                rules => format!("{} with {rules} rules", proxy.listen),
            })
            .collect();
        write!(f, "client of {}", servers.join(", "),)?;
        if let Some(via) = &self.via {
            write!(f, " through {}", via.proxy)?;
        }
        write!(f, ", proxy on {}", proxies.join(", "))?;
        if let Some(address) = self.dns.listen {
            write!(f, ", dns on {address}")?;
        }
        match &self.tun {
            Some(tun) => write!(f, ", {tun}"),
            None => Ok(()),
        }
    }
}

fn read_servers(settings: &mut Settings<'_>, via: Option<&Located<Via>>) -> Vec<LaneAddr> {
    let mut servers = settings.list("server", parse::server).unwrap_or_default();
    if servers.is_empty() {
        settings.missing(
            "server",
            "write where the server is reached, such as udp://vpn.example.com:7443",
        );
    }
    let mut seen = Unique::default();
    for at in &servers {
        seen.insert(settings, at, at.value.clone(), &at.value);
    }
    if let Some(via) = via {
        leave_datagrams_out(settings, &mut servers, via);
    }
    values(Some(servers))
}

/// Leaves out what no proxy carries; past it nothing may go.
fn leave_datagrams_out(
    settings: &mut Settings<'_>,
    servers: &mut Vec<Located<LaneAddr>>,
    via: &Located<Via>,
) {
    let before = servers.len();
    servers.retain(|at| {
        let stays = at.value.scheme.is_stream() || via.value.proxy_for(&at.value.host).is_none();
        if !stays {
            settings.warn(format!(
                "server: {} is left out, since `via` is set and no proxy carries datagrams",
                at.value
            ));
        }
        stays
    });
    if servers.is_empty() && before > 0 {
        let message = "no proxy carries datagrams, and every server is udp://: add one by tls:// or wss:// to `server`";
        settings.problem_at(via, message);
    }
}

/// Refuses a client that would connect through itself.
fn refuse_loop(settings: &mut Settings<'_>, via: &Located<Via>, own: SocketAddr) {
    let proxy = &via.value.proxy;
    let here = match &proxy.host {
        Host::Ip(ip) => *ip == own.ip() || (own.ip().is_unspecified() && ip.is_loopback()),
        Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
    };
    if here && proxy.port == own.port() {
        let message = format!(
            "{proxy} is this client's own proxy: name the one that leads out of this network, or off"
        );
        settings.problem_at(via, message);
    }
}

fn read_key(settings: &mut Settings<'_>, process: &mut ProcessConfig) -> Option<SecretKey> {
    let generate = process::read_generate(settings);
    let given = settings.path("key_file");
    let given = given.or_else(|| process::default_key(settings, generate));
    let Some(at) = given else {
        settings.missing(
            "key_file",
            "write the name of a file made by `adit keygen -o FILE`",
        );
        return None;
    };
    process::read_key(settings, &at, generate, process)
}

fn read_preshared(settings: &mut Settings<'_>) -> Option<PresharedKey> {
    let at = settings.path("preshared_key_file")?;
    settings.read_file(&at, files::read_key)
}

fn read_tls(settings: &mut Settings<'_>, servers: &[LaneAddr]) -> CertificateCheck {
    let pins = settings
        .list("tls.pin", parse::pin)
        .filter(|pins| !pins.is_empty());
    let ca_file = settings.path("tls.ca_file");
    let system = settings
        .value("tls.system", parse::boolean)
        .filter(|at| at.value);
    if let Some(at) = &ca_file {
        settings.read_file(at, files::probe);
    }
    let pinned = pins
        .as_ref()
        .and_then(|pins| pins.first())
        .map(|at| ("tls.pin", at.place.clone()));
    let signed = ca_file.as_ref().map(|at| ("tls.ca_file", at.place.clone()));
    let trusted = system.as_ref().map(|at| ("tls.system", at.place.clone()));
    let given: Vec<_> = [pinned, signed, trusted].into_iter().flatten().collect();
    if let [(first, _), (second, place), ..] = given.as_slice() {
        let message = format!(
            "stands beside {first}, and a certificate is checked in one way: keep one of them"
        );
        settings.problem(second, place.clone(), message);
    }
    if !given.is_empty()
        && !servers.is_empty()
        && !servers.iter().any(|server| server.scheme.is_tls())
    {
        settings.warn(
            "tls: nothing of it is used, since no server is reached by tls:// or wss://".to_owned(),
        );
    }
    match (pins, ca_file, system) {
        (Some(pins), _, _) => CertificateCheck::Pins(values(Some(pins))),
        (None, Some(at), _) => CertificateCheck::CaFile(at.value),
        (None, None, Some(_)) => CertificateCheck::System,
        (None, None, None) => CertificateCheck::Unchecked,
    }
}

fn read_lanes(settings: &mut Settings<'_>, servers: &[LaneAddr]) -> usize {
    let Some(at) = settings.value("lanes", |text| parse::number(text, 1, MAX_LANES)) else {
        return 1;
    };
    let streams = servers.iter().any(|server| server.scheme.is_stream());
    if at.value > 1 && !servers.is_empty() && !streams {
        settings.warn(
            "lanes: not used, since no server is reached by tcp://, tls:// or wss://: one lane of datagrams serves".to_owned(),
        );
    }
    usize::try_from(at.value).unwrap_or(1)
}

/// Each lane is a connection and its handshake; of more than three copies are not made, and flows that share more than
/// eight are many.
const MAX_LANES: u32 = 8;
/// Three losses of a SYN on a path of a few hundred milliseconds, and the handshakes after it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Less than a satellite's round trips for TCP, TLS and the session would never connect.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
/// More than the kernel's own patience with a SYN has no effect.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
