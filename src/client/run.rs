//! The client as a whole: its tunnel and its resolver.
//!
//! [`Client::start`] makes a tunnel that connects by itself and stays connected; what wants
//! to use it, a [proxy](super::proxies) or a caller of this library, takes handles from it:
//!
//! ```no_run
//! # async fn example(config: adit::config::ClientConfig) -> anyhow::Result<()> {
//! use adit::client::resolve::Host;
//! use tokio::io::AsyncWriteExt;
//!
//! let client = adit::client::run::Client::start(&config)?;
//! let host = Host::parse(b"example.com")?;
//! let mut stream = client.resolver().connect(&host, 80).await?.into_stream();
//! stream.write_all(b"GET / HTTP/1.0\r\nHost: example.com\r\n\r\n").await?;
//! # client.close().await;
//! # Ok(())
//! # }
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connect::Connector;
use super::control::{Opener, Orders};
use super::direct::Direct;
use super::dns::lists::{ListService, ListStore, tell};
use super::dns::{Dns, DnsError, ListenError, LocalResolver};
use super::driver::{Driver, Exit};
use super::enclosure::{Book, Enclosures, MAX_ENCLOSURES};
use super::forwards::{ForwardError, Forwards};
use super::instance::Instance;
use super::ports;
use super::proxies::RuleBook;
use super::proxy::{Context, CredentialsError, ProxySettings, ProxyStats};
use super::reload::{Names, Reloader};
use super::resolve::{Resolver, name_service};
use super::rules::InForce;
use super::status::{Listening, Reporter};
use super::tunnel::{Tunnel, tunnel};
use crate::config::{CertificateCheck, ClientConfig};
use crate::io::admin::{Admin, AdminError};
use crate::io::control::serve;
use crate::io::dial::Dialer;
use crate::io::journal::network;
use crate::io::limits::raise_open_files;
use crate::io::network::NetworkWatch;
use crate::io::outside::Outside;
use crate::io::pool::Pool;
use crate::io::tls::{ClientTls, ClientTlsError, Pin, Verify};
use crate::io::unix::Listener;
use crate::proto;
use crate::proto::budget::{HARD, Share};
use crate::reload::{Asker, ReloadCounts};
use crate::status::{Port, Uses, whole};
use crate::wire::InnerConfig;

/// A tunnel that keeps itself connected, and the resolver that asks through it.
///
/// Dropping it ends the tunnel, whoever else holds a handle of it; [`Client::close`] waits until the
/// goodbye has left.
#[derive(Debug)]
pub struct Client {
    tunnel: Tunnel,
    /// Tells how the session of the whole host is, where it has one.
    host: Option<Tunnel>,
    resolver: Resolver,
    direct: Direct,
    dns: Dns,
    /// What all flows may hold, of which those of other commands have a part.
    share: Share,
    pool: Arc<Pool>,
    /// Ends what fetches lists of names.
    lists: CancellationToken,
    driver: JoinHandle<Exit>,
    /// Cancelled when the driver is gone, however it went.
    over: CancellationToken,
    stop: CancellationToken,
}

impl Client {
    /// Starts to connect to the servers of `config`; must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the settings of TLS cannot be used.
    pub fn start(config: &ClientConfig) -> Result<Self, StartError> {
        Self::leaving(config, Outside::default(), &Instance::new(), None)
    }

    /// The same as that instance, on a host that may go through a tunnel of ours itself: its sockets leave as `outside` says,
    /// and the host's session is the first, so that this one is not asked for before `turn` is cancelled.
    ///
    /// # Errors
    ///
    /// As [`Client::start`].
    pub fn leaving(
        config: &ClientConfig,
        outside: Outside,
        instance: &Instance,
        turn: Option<CancellationToken>,
    ) -> Result<Self, StartError> {
        match raise_open_files() {
            Ok(limit) => debug!(limit, "descriptors"),
            Err(error) => warn!(%error, "the limit of open files stays as it was"),
        }
        // A session that may move to datagrams, or has copies of thin packets on lanes side by side, needs packets.
        let relayed =
            config.lanes == 1 && (config.servers.iter()).all(|server| server.scheme.is_stream());
        let mut connector = connector(config, relayed, outside.clone())?;
        connector.handshake.instance = instance.id();
        let (configured, inner) = watch::channel(None);
        let (tunnel, commands) = tunnel(inner);
        let stop = CancellationToken::new();
        let direct = Direct::leaving(outside.clone());
        let (dns, resolver, lists) = names(config, &tunnel, outside, &stop)?;
        let (names, service) = name_service(
            resolver.clone(),
            direct.clone(),
            tunnel.clone(),
            stop.clone(),
        );
        tokio::spawn(service);
        let pool = connector.pool.clone();
        let share = Share::alone(config.memory / HARD);
        let mut driver = Driver::new(
            Arc::new(connector),
            commands,
            configured,
            names,
            NetworkWatch::new(),
            share.part(),
            stop.clone(),
        );
        if let Some(turn) = turn {
            driver = driver.after(turn.cancelled_owned());
        }
        let over = CancellationToken::new();
        let guard = over.clone().drop_guard();
        let driver = tokio::spawn(async move {
            let _guard = guard;
            driver.run().await
        });
        Ok(Self {
            tunnel,
            host: None,
            resolver,
            direct,
            dns,
            share,
            pool,
            lists,
            driver,
            over,
            stop,
        })
    }

    /// Has the session of the whole host shown beside this client's own.
    #[must_use]
    pub fn beside_host(mut self, host: Option<Tunnel>) -> Self {
        self.host = host;
        self
    }

    /// Returns a handle for flows to addresses.
    pub fn tunnel(&self) -> Tunnel {
        self.tunnel.clone()
    }

    /// Returns a handle for flows to names.
    pub fn resolver(&self) -> Resolver {
        self.resolver.clone()
    }

    /// Returns what opens flows beside the tunnel, for those that rules send there.
    pub fn direct(&self) -> Direct {
        self.direct.clone()
    }

    /// Returns what answers names, for a local resolver.
    pub fn dns(&self) -> Dns {
        self.dns.clone()
    }

    /// Returns what opens connections by `rules`.
    pub fn opener(&self, rules: InForce) -> Opener {
        let settings = ProxySettings {
            rules,
            direct: self.direct(),
            ..ProxySettings::default()
        };
        Opener(Arc::new(Context {
            settings,
            tunnel: self.tunnel(),
            resolver: self.resolver(),
        }))
    }

    /// Returns what lets other commands share this client, by `rules`, until `stop`.
    /// They are written down in `book`.
    pub fn enclosures(
        &self,
        rules: InForce,
        book: Arc<Book>,
        stop: &CancellationToken,
    ) -> Enclosures {
        let Opener(proxy) = self.opener(rules);
        Enclosures {
            proxy,
            dns: self.dns(),
            share: self.share.part(),
            pool: self.pool.clone(),
            slots: Arc::new(Semaphore::new(MAX_ENCLOSURES)),
            book,
            stop: stop.clone(),
        }
    }

    /// Returns what puts another configuration than `config`, which it was started with, into force; `book` replaces the
    /// rules of its proxies.
    pub fn reloader(&self, config: ClientConfig, book: RuleBook, services: &Services) -> Reloader {
        let names = Names {
            dns: self.dns.clone(),
            resolver: self.resolver.clone(),
            tunnel: self.tunnel.clone(),
            stop: self.stop.clone(),
            lists: self.lists.clone(),
        };
        Reloader::new(config, book, services.forwards(), names, services.reloads())
    }

    /// Waits until the server has given the first session its addresses.
    ///
    /// `None` when the tunnel ended before.
    pub async fn connected(&self) -> Option<InnerConfig> {
        let mut inner = self.tunnel.inner();
        let config = inner.wait_for(Option::is_some).await.ok()?;
        config.clone()
    }

    /// Waits until the tunnel has ended by itself, which only a fault makes it do.
    pub async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// Closes the session in order and ends the tunnel.
    pub async fn close(mut self) {
        self.stop.cancel();
        // The driver bounds its own goodbye; the time-out is for a runtime that stalls.
        let _ = timeout(CLOSE_TIMEOUT, &mut self.driver).await;
        debug!(dns = ?self.dns.stats(), "counters");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The name service and the driver hold each other's handles: nothing else ends them.
        self.stop.cancel();
    }
}

/// What a client with this configuration has of its host; `reload` reads its file again, if there is one.
pub fn uses(config: &ClientConfig, reload: Option<&Asker>) -> Uses {
    let proxies = config.listeners().into_iter().map(|proxy| proxy.listen);
    let port = |address, datagrams| Port { address, datagrams };
    let resolver = config.dns.listen.into_iter();
    Uses {
        file: reload.map(|asker| asker.file().to_owned()),
        state_dir: config.tun.as_ref().map(|tunnel| whole(&tunnel.state_dir)),
        tun: config.tun.as_ref().map(|tunnel| tunnel.name.clone()),
        kill_switch: config.tun.as_ref().is_some_and(|tunnel| tunnel.kill_switch),
        listens: (proxies.map(|address| port(address, false)))
            .chain(resolver.flat_map(|address| [port(address, false), port(address, true)]))
            .collect(),
        network: network(),
    }
}

/// The forwards of a client, its control socket, and its admin address.
pub struct Services {
    forwards: Forwards,
    serving: Vec<JoinHandle<()>>,
    admin: Option<SocketAddr>,
    reloads: Arc<ReloadCounts>,
}

impl Services {
    /// Adds the forwards of `config` to `client`, and takes orders for it over `listener` until `stop`; commands that share
    /// it and single connections go by `rules`. `proxies` is what its proxies count, `reload` what reads its configuration again.
    ///
    /// # Errors
    ///
    /// A port or socket cannot be had.
    pub fn start(
        client: &Client,
        config: &ClientConfig,
        rules: InForce,
        proxies: Vec<Arc<ProxyStats>>,
        (listener, reload): (Option<Listener>, Option<Asker>),
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let forwards = Forwards::new(client.tunnel(), client.resolver(), stop);
        for forward in &config.forwards {
            forwards.add(forward.clone())?;
        }
        let (control_stats, reloads) = (Arc::default(), Arc::default());
        let book = Arc::<Book>::default();
        let admin = config.admin.map(Admin::bind).transpose()?;
        let address = admin.as_ref().map(Admin::address);
        let of = |is: bool| usize::from(is);
        let has_resolver = config.dns.listen.is_some();
        let listening = Listening {
            tcp: proxies.len() + of(has_resolver) + of(admin.is_some()),
            udp: of(has_resolver),
            unix: of(listener.is_some()),
        };
        let reporter = Arc::new(Reporter::new(
            (client.tunnel(), client.host.clone()),
            (client.dns(), client.direct()),
            forwards.clone(),
            (proxies, listening),
            (Arc::clone(&book), uses(config, reload.as_ref())),
            Arc::clone(&control_stats),
            Arc::clone(&reloads),
        ));
        let mut serving = Vec::new();
        if let Some(admin) = admin {
            info!(address = %admin.address(), "metrics and health");
            serving.push(tokio::spawn(admin.serve(reporter.clone(), stop.clone())));
        }
        if let Some(listener) = listener {
            debug!(socket = %listener.path().display(), "takes orders");
            let orders = Arc::new(Orders {
                forwards: forwards.clone(),
                opener: client.opener(rules.clone()),
                enclosures: client.enclosures(rules, book, stop),
                reporter,
                reload,
                open: Arc::default(),
            });
            let stop = stop.clone();
            serving.push(tokio::spawn(serve(listener, orders, control_stats, stop)));
        }
        Ok(Self {
            forwards,
            serving,
            admin: address,
            reloads,
        })
    }

    /// Returns the forwards.
    pub fn forwards(&self) -> Forwards {
        self.forwards.clone()
    }

    /// Returns where it is counted how often the configuration was read again.
    pub fn reloads(&self) -> Arc<ReloadCounts> {
        self.reloads.clone()
    }

    /// Returns where metrics and health are served.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Waits until each forward listens or has failed to.
    pub async fn settled(&self) {
        self.forwards.settled().await;
    }

    /// Waits until no order is taken any more and the control socket is gone, after `stop`.
    pub async fn ended(self) {
        for serving in self.serving {
            // A fault of it has been told by the runtime.
            let _ = timeout(CLOSE_TIMEOUT, serving).await;
        }
    }
}

/// Why a client does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] ClientTlsError),
    /// The proxy's address cannot be had.
    #[error(
        "cannot listen on {address} for the proxy: {error}{}",
        ports::hint(error, TAKEN)
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The local resolver's address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Name servers cannot be asked as configured.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// Fetched lists have nowhere to be.
    #[error("no folder for fetched lists of names: {0}; set dns.cache_dir")]
    Lists(#[source] io::Error),
    /// The proxy's user or password cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A forward of the configuration cannot be had.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The admin address cannot be had.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// Makes what answers names, with its lists read, and starts what keeps both up to date.
fn names(
    config: &ClientConfig,
    tunnel: &Tunnel,
    outside: Outside,
    stop: &CancellationToken,
) -> Result<(Dns, Resolver, CancellationToken), StartError> {
    let dns = Dns::leaving(&config.dns, tunnel.clone(), outside)?;
    let resolver = Resolver::over(tunnel.clone(), dns.clone());
    let store = ListStore::new(&config.dns).map_err(StartError::Lists)?;
    let following = stop.child_token();
    if !store.is_empty() {
        let seen = store.look();
        let (lists, outcomes) = store.read();
        tell(&outcomes);
        dns.change_policy(|policy| policy.with_lists(lists));
        let (dns, resolver, tunnel) = (dns.clone(), resolver.clone(), tunnel.clone());
        let service = ListService::new(&config.dns, store, seen, dns, resolver, tunnel);
        tokio::spawn(service.run(following.clone()));
    }
    // Whoever asks others does not let the server answer.
    if config.dns.upstream.is_empty() {
        let (dns, tunnel, stop) = (dns.clone(), tunnel.clone(), stop.clone());
        tokio::spawn(async move { dns.follow_pushed(tunnel, stop).await });
    }
    let (prefetching, stop) = (dns.clone(), stop.clone());
    tokio::spawn(async move { prefetching.prefetch(stop).await });
    Ok((dns, resolver, following))
}

/// Binds the local resolver of `config`, if it has one.
///
/// # Errors
///
/// When the address cannot be had.
pub fn local_resolver(config: &ClientConfig) -> Result<Option<LocalResolver>, StartError> {
    let bound = config.dns.listen.map(LocalResolver::bind).transpose();
    Ok(bound?)
}

/// What to do about a port for the proxy that another program has.
const TAKEN: &str = "; another program, perhaps another client, listens there: stop it or let the proxy listen on another port";

/// Prepares the ways to the servers of `config`; `relayed` asks for flows that are relayed, beside packets.
///
/// # Errors
///
/// When the settings of TLS cannot be used.
pub(crate) fn connector(
    config: &ClientConfig,
    relayed: bool,
    outside: Outside,
) -> Result<Connector, ClientTlsError> {
    let mut handshake = proto::ClientConfig::new(
        config.secret_key.clone(),
        config.server_key,
        rand::rng().random(),
    );
    handshake.psk = config.preshared_key.clone();
    handshake.aead = config.aead.clone();
    handshake.settings.repair = config.repair.mode();
    handshake.settings.relayed = relayed;
    Ok(Connector {
        servers: config.servers.clone(),
        dialer: dialer(config)?.leaving(outside),
        handshake,
        time: config.connect_timeout,
        lanes: config.lanes,
        source: None,
        doubted: Arc::default(),
        pool: Pool::new("client", POOL_SMALL, POOL_LARGE),
    })
}

/// Prepares to connect as `config` says: by TLS, and through its proxy.
///
/// # Errors
///
/// The authorities that it names are of no use.
pub(crate) fn dialer(config: &ClientConfig) -> Result<Dialer, ClientTlsError> {
    let dialer = Dialer::new(ClientTls::new(&verify(&config.tls))?);
    match &config.via {
        Some(via) => dialer.through(via.clone()),
        None => Ok(dialer),
    }
}

fn verify(check: &CertificateCheck) -> Verify {
    match check {
        CertificateCheck::Unchecked => Verify::Unchecked,
        CertificateCheck::Pins(pins) => {
            Verify::Pins(pins.iter().map(|pin| Pin::from(pin.0)).collect())
        }
        CertificateCheck::CaFile(file) => Verify::CaFile(file.clone()),
        CertificateCheck::System => Verify::System,
    }
}

/// How long the goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Free small buffers kept.
const POOL_SMALL: usize = 64;

/// Free large buffers kept: what one lane's write queue takes for frames of 8 KiB, which have one each. 2 MiB.
const POOL_LARGE: usize = 32;
