//! The server as a whole: what its sessions share, and its start and end.
//!
//! # Theory of operation
//!
//! [`Server::start`] takes the state directory's lock, undoes what a crashed predecessor
//! left in the system, sets the egress up, binds every listener, and only then says that the
//! server is there; any failure on the way undoes what was done. [`Server::run`] serves until
//! told to stop, then closes every session, keeps the leases and undoes the egress.
//!
//! ```text
//!  listeners ──▶ accept::serve ──▶ SessionDriver ──▶ egress
//!  sockets ────▶ datagrams::serve ──────┘
//!                     │                 ▲
//!                     └── registry ─────┘ joins          TUN ──▶ TunEgress::drain ──▶ router
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use adit_netstack::Packet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::accept::{self, AcceptStats, MAX_STRANGERS};
use super::control::{self, Orders};
use super::datagrams::{self, DatagramStats, Inboxes};
use super::dns::{DnsService, DnsServiceError};
use super::egress::tun::TunEgress;
use super::egress::{Egress, echo, watch};
use super::enrolment::{Enrolment, EnrolmentError};
use super::filter::DestinationPolicy;
use super::lease_store::{LeaseStore, LoadedLeases};
use super::leases::{Fixed, Lease, Leases, Settings as LeaseSettings};
use super::ledger::Ledger;
use super::local::LocalLimits;
use super::peers::{Peer, Peers};
use super::reach::Reach;
use super::registry::Registry;
use super::reload::Reloader;
use super::router::Router;
use super::status::Reporter;
use super::unlisted::Unlisted;
use crate::config::{
    CertificatePin, ClientEntry, EgressKind, Host, LaneAddr, ListenAddr, Scheme, ServerConfig,
    TlsFiles,
};
use crate::io::admin::{Admin, AdminError};
use crate::io::clock;
use crate::io::control::{self as io_control, ControlStats, PlaceError};
use crate::io::journal::network;
use crate::io::limits::raise_open_files;
use crate::io::listen::{BindError, Listener, bind_datagrams};
use crate::io::netlink::Netlink;
use crate::io::network::NetworkWatch;
use crate::io::pool::Pool;
use crate::io::state::{StateDir, StateError};
use crate::io::tls::{Certificate, CertificateError, ServerTls};
use crate::io::tun::{SetupError, TunSettings, Undo, UndoError, clean_up, setup};
use crate::io::udp::UdpIo;
use crate::io::unix;
use crate::proto::budget::{Budget, HARD};
use crate::proto::{self, KEY_LEN, PublicKey, Responder, SecretKey, Settings};
use crate::reload::{Asker, ReloadCounts};
use crate::status::{Counters, Port, Uses, whole};
use crate::wire::InnerConfig;

/// What the sessions of one server share.
#[derive(Debug)]
pub struct Shared {
    /// Inner addresses to sessions.
    pub router: Arc<Router>,
    /// The sessions and their leases.
    pub registry: Registry,
    /// Answers handshakes.
    pub responder: Arc<Responder>,
    /// Where sessions find their datagrams.
    pub inboxes: Arc<Inboxes>,
    /// Where their packets leave.
    pub egress: Egress,
    /// The inner gateway's addresses.
    pub gateways: Vec<IpAddr>,
    /// What the relayed flows of all sessions may hold.
    pub memory: Arc<Budget>,
    /// Answers names on the gateway.
    pub dns: Arc<DnsService>,
    /// Packet buffers.
    pub pool: Arc<Pool>,
    /// The inner MTU.
    pub mtu: u16,
    /// Whether clients may reach each other.
    pub client_to_client: AtomicBool,
    /// Ends everything.
    pub stop: CancellationToken,
    /// What became of connections before they were known.
    pub accept_stats: AcceptStats,
    /// What became of datagrams before they reached a session.
    pub datagram_stats: Arc<DatagramStats>,
    /// What became of sessions.
    pub stats: ServerStats,
    /// Clients that are not answered, in the log.
    pub unlisted: Unlisted,
    /// Who may connect.
    pub peers: Arc<Peers>,
    /// Who is invited, and who has enrolled.
    pub enrolment: Arc<Enrolment>,
    /// Places for guests.
    pub guests: Arc<Semaphore>,
    /// What became of guests.
    pub guest_stats: GuestStats,
    /// What sessions that have ended have counted.
    pub ledger: Ledger,
    /// What the control socket has counted.
    pub control_stats: Arc<ControlStats>,
    /// How often the configuration was read again.
    pub reloads: ReloadCounts,
    /// When the server began.
    pub started: Instant,
    policy: RwLock<Arc<DestinationPolicy>>,
    /// How clients reach this server.
    reach: RwLock<Reach>,
    offer: RwLock<Arc<Offer>>,
    /// The certificate, where a listener needs one.
    tls: RwLock<Option<ServerTls>>,
    networks: Vec<IpNet>,
}

/// What a session is given when it begins.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What it may hold open.
    pub limits: LocalLimits,
    /// The soft bound of what its flows may hold.
    pub memory: usize,
    /// Records of names that its client is given, in words.
    pub dns_records: Vec<String>,
}

impl Offer {
    /// Reads what a configuration gives.
    pub fn new(config: &ServerConfig) -> Self {
        Self {
            limits: LocalLimits {
                flows: config.limits.flows_per_client as usize,
                half_open: config.limits.half_open_per_client as usize,
            },
            memory: config.limits.memory_per_client / HARD,
            dns_records: config.dns_records.iter().map(ToString::to_string).collect(),
        }
    }
}

/// The sockets that a server listens on, for as long as they are open.
#[derive(Debug)]
pub struct Listening {
    streams: Vec<Weak<Listener>>,
    datagrams: Vec<Weak<UdpIo>>,
    has_admin: bool,
    has_control: bool,
}

impl Listening {
    fn of(sockets: &[Socket]) -> Self {
        let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
        for socket in sockets {
            match socket {
                Socket::Stream(_, listener) => streams.push(Arc::downgrade(listener)),
                Socket::Datagram(io) => datagrams.push(Arc::downgrade(io)),
            }
        }
        Self {
            streams,
            datagrams,
            has_admin: false,
            has_control: false,
        }
    }

    /// Adds what they have counted, and how many there are.
    pub(super) fn count(&self, counters: &mut Counters) {
        let (mut tcp, mut udp) = (usize::from(self.has_admin), 0);
        for listener in self.streams.iter().filter_map(Weak::upgrade) {
            counters.add("listen", &listener.stats());
            tcp += 1;
        }
        for io in self.datagrams.iter().filter_map(Weak::upgrade) {
            counters.add("datagram_sockets", &io.stats());
            udp += 1;
        }
        counters.count_now("listen", "tcp_now", tcp);
        counters.count_now("listen", "udp_now", udp);
        counters.count_now("listen", "unix_now", usize::from(self.has_control));
    }
}

/// What became of guests.
#[derive(Debug, Default)]
pub struct GuestStats {
    /// Tokens that made a client, or had made it before.
    pub enrolled: AtomicU64,
    /// Tokens that did not.
    pub refused: AtomicU64,
    /// Handshakes of guests that were dropped because all places were taken.
    pub crowded_out: AtomicU64,
}

/// What became of the sessions of a server.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Sessions that have ended.
    pub ended: AtomicU64,
    /// Sessions that were not served, for want of a place or an address.
    pub refused: AtomicU64,
}

impl Shared {
    /// Returns where clients may go, as things stand.
    pub fn policy(&self) -> Arc<DestinationPolicy> {
        self.policy
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Tells whether the server does its work, in words either way.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn ready(&self) -> Result<String, String> {
        if self.stop.is_cancelled() {
            Err("stopping".to_owned())
        } else {
            Ok("listening".to_owned())
        }
    }

    /// Returns what a session is given that begins now.
    pub fn offer(&self) -> Arc<Offer> {
        let offer = self.offer.read().unwrap_or_else(PoisonError::into_inner);
        offer.clone()
    }

    /// Returns what answers TLS handshakes, if anything does.
    pub fn tls(&self) -> Option<ServerTls> {
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner);
        tls.clone()
    }

    /// Returns how clients reach this server, for links.
    pub fn reach(&self) -> Reach {
        let reach = self.reach.read().unwrap_or_else(PoisonError::into_inner);
        reach.clone()
    }

    /// Has links name other addresses from now on.
    pub(super) fn set_public(&self, public: Vec<LaneAddr>) {
        let mut reach = self.reach.write().unwrap_or_else(PoisonError::into_inner);
        reach.public = public;
    }

    /// Gives sessions that begin from now on something else.
    pub(super) fn set_offer(&self, offer: Offer) {
        *self.offer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(offer);
    }

    /// Answers TLS handshakes by another certificate from now on.
    pub(super) fn set_tls(&self, tls: ServerTls) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(tls);
    }

    /// Lets clients go to other networks beside the public Internet.
    pub(super) fn set_allowed(&self, allow: &[IpNet]) {
        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *policy = Arc::new(policy.with_allow(allow));
    }

    /// Takes the host's present addresses out of what clients may reach.
    fn set_own_addresses(&self, own: &[IpAddr]) {
        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *policy = Arc::new(policy.with_own(own));
    }

    /// Returns what a handshake needs to know of the client with this key.
    pub fn handshake_entry(&self, key: &PublicKey) -> Option<proto::ClientEntry> {
        self.peers.find(key).map(|peer| proto::ClientEntry {
            psk: peer.entry.preshared_key.clone(),
            id: 0,
        })
    }

    /// Returns the name of the client with this key, for logs.
    pub fn client_name(&self, key: &PublicKey) -> String {
        self.peers.name(key)
    }

    /// Takes a client out and ends its sessions; returns it, and how many sessions it had.
    ///
    /// From now on its handshakes are not answered, and nothing reaches it: what its sessions had open ends with them.
    pub fn revoke(&self, key: &PublicKey) -> Option<(Peer, usize)> {
        let peer = self.peers.remove(key)?;
        let ended = self.cut_off(key);
        Some((peer, ended))
    }

    /// Returns whether `address` lies in the clients' networks.
    pub fn is_inner(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address))
    }

    /// Returns where a packet goes of the client that has `addresses`, as `policy` has it.
    pub fn way(&self, policy: &DestinationPolicy, addresses: &[IpAddr], packet: &Packet) -> Way {
        if !addresses.contains(&packet.source) {
            Way::Foreign
        } else if self.gateways.contains(&packet.destination) {
            Way::Gateway
        } else if self.is_inner(packet.destination) {
            Way::Client
        } else if policy.allows(packet.destination) {
            Way::Out
        } else {
            Way::Denied
        }
    }

    /// Returns what a session with this lease is told about its network.
    pub fn inner_config(&self, lease: &Lease, offer: &Offer) -> InnerConfig {
        let prefix = |want: fn(&IpNet) -> bool| {
            self.networks
                .iter()
                .find(|net| want(net))
                .map_or(0, IpNet::prefix_len)
        };
        let v4 = lease.v4.map(|a| (a, prefix(|n| matches!(n, IpNet::V4(_)))));
        let v6 = lease.v6.map(|a| (a, prefix(|n| matches!(n, IpNet::V6(_)))));
        let mut config = InnerConfig {
            v4,
            v6,
            gateway4: None,
            gateway6: None,
            dns: self.gateways.clone(),
            mtu: self.mtu,
            records: offer.dns_records.clone(),
        };
        for gateway in &self.gateways {
            match gateway {
                IpAddr::V4(address) => config.gateway4 = Some(*address),
                IpAddr::V6(address) => config.gateway6 = Some(*address),
            }
        }
        config
    }
}

/// Where a client's packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nowhere: its source is not the client's.
    Foreign,
    /// To the inner gateway.
    Gateway,
    /// To another client.
    Client,
    /// Nowhere: the policy lets nobody go there.
    Denied,
    /// Out by the egress.
    Out,
}

/// What lanes come in by.
#[derive(Debug)]
enum Socket {
    /// Connections, and what lanes are on them.
    Stream(Arc<ListenAddr>, Arc<Listener>),
    /// Datagrams.
    Datagram(Arc<UdpIo>),
}

impl Socket {
    fn port(&self) -> Port {
        match self {
            Self::Stream(_, listener) => Port {
                address: listener.local_addr(),
                datagrams: false,
            },
            Self::Datagram(io) => Port {
                address: io.local_addr(),
                datagrams: true,
            },
        }
    }

    fn address(&self) -> LaneAddr {
        let (scheme, path, address) = match self {
            Self::Stream(at, listener) => (at.scheme, at.path.as_str(), listener.local_addr()),
            Self::Datagram(io) => (Scheme::Udp, "", io.local_addr()),
        };
        LaneAddr {
            scheme,
            host: Host::Ip(address.ip()),
            port: address.port(),
            path: path.to_owned(),
        }
    }
}

/// The device of egress `tun`, and how it was set up.
#[derive(Debug)]
struct Device {
    egress: Arc<TunEgress>,
    settings: TunSettings,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    sockets: Vec<Socket>,
    tun: Option<Device>,
    undo: Option<Undo>,
    state: StateDir,
    control: Option<unix::Listener>,
    admin: Option<Admin>,
    reload: Option<Asker>,
}

impl Server {
    /// Brings a server up: state, listeners, egress.
    ///
    /// # Errors
    ///
    /// What kept it from starting; nothing that was set up on the way stays.
    pub async fn start(config: ServerConfig) -> Result<Self, StartError> {
        match raise_open_files() {
            Ok(limit) => debug!(limit, "descriptors"),
            Err(error) => warn!(%error, "the limit of open files stays as it was"),
        }
        let state = StateDir::open(&config.state_dir)?;
        let sockets = bind(&config.listen)?;
        let tls = server_tls(&config, &state)?;
        let dns = DnsService::new(&config.dns)?;
        let peers = Arc::new(Peers::new(config.clients.clone()));
        let enrolment = Arc::new(Enrolment::open(peers.clone(), &state)?);
        let leases = restore_leases(&config, &peers)?;
        let control = control::place(&config).listen()?;
        let admin = config.admin.map(Admin::bind).transpose()?;
        let gateways = gateways(&leases);
        // Last of all that can fail, so that nothing is to be undone when something does.
        let (egress, tun, undo) = match config.egress {
            EgressKind::User => {
                // A killed run may have had the other egress.
                clean_up(&state)?;
                if let Err(error) = echo::permitted() {
                    warn!(
                        %error,
                        "clients cannot ping: this system gives no ping sockets; {}",
                        echo::PING_REMEDY
                    );
                }
                (Egress::User, None, None)
            }
            EgressKind::Tun => {
                let mut settings = tun_settings(&config, &leases);
                let ready = setup(&settings, &state).await?;
                settings.gateway6 = settings.gateway6.filter(|_| ready.ipv6);
                let egress = Arc::new(TunEgress::new(Arc::new(ready.tun)));
                let tun = Device {
                    egress: egress.clone(),
                    settings,
                };
                (Egress::Tun(egress), Some(tun), Some(ready.undo))
            }
        };
        let reach = Reach {
            public: config.public.clone(),
            listening: sockets.iter().map(Socket::address).collect(),
            // There is one at least.
            key: (config.secret_keys.first())
                .map_or(PublicKey::from_bytes([0; KEY_LEN]), SecretKey::public),
            pin: (tls.as_ref())
                .filter(|_| config.tls.is_none())
                .map(|tls| CertificatePin(*tls.pin().as_bytes())),
        };
        let router = Arc::new(Router::new());
        let networks: Vec<IpNet> = config
            .network
            .map(IpNet::V4)
            .into_iter()
            .chain(config.network6.map(IpNet::V6))
            .collect();
        let inboxes = Arc::new(Inboxes::default());
        let (taken, inviting) = (inboxes.clone(), enrolment.clone());
        let responder = Responder::new(
            config.secret_keys.clone(),
            &config.aead,
            Settings {
                repair: config.repair.mode(),
                relayed: matches!(egress, Egress::User),
                ..Settings::default()
            },
            clock::unix(),
        )
        .avoiding(move |id| taken.is_taken(id))
        .inviting(move |id| inviting.knows(id));
        let shared = Arc::new(Shared {
            registry: Registry::new(router.clone(), leases, config.max_clients as usize),
            router,
            responder: Arc::new(responder),
            inboxes,
            policy: RwLock::new(Arc::new(DestinationPolicy::new(&config.allow, &[]))),
            egress,
            gateways,
            memory: Budget::new(config.limits.memory / HARD),
            offer: RwLock::new(Arc::new(Offer::new(&config))),
            dns,
            tls: RwLock::new(tls),
            pool: Pool::new("server", POOL_SMALL, POOL_LARGE),
            mtu: config.mtu,
            client_to_client: AtomicBool::new(config.client_to_client),
            stop: CancellationToken::new(),
            accept_stats: AcceptStats::default(),
            datagram_stats: Arc::default(),
            stats: ServerStats::default(),
            unlisted: Unlisted::new(clock::now()),
            peers,
            enrolment,
            reach: RwLock::new(reach),
            guests: Arc::new(Semaphore::new(MAX_GUESTS)),
            guest_stats: GuestStats::default(),
            ledger: Ledger::default(),
            control_stats: Arc::default(),
            reloads: ReloadCounts::default(),
            started: clock::now(),
            networks,
        });
        look_at_own_addresses(&shared).await;
        Ok(Self {
            shared,
            sockets,
            tun,
            undo,
            state,
            control,
            admin,
            reload: None,
        })
    }

    /// Returns where the server listens, with the ports it was given.
    pub fn listening(&self) -> Vec<LaneAddr> {
        self.sockets.iter().map(Socket::address).collect()
    }

    /// Returns the pin of the certificate that TLS lanes present, if there are any.
    pub fn tls_pin(&self) -> Option<String> {
        self.shared.tls().map(|tls| tls.pin().to_string())
    }

    /// Passes orders to read the configuration again to `asker`.
    #[must_use]
    pub fn reloaded_by(self, asker: Asker) -> Self {
        Self {
            reload: Some(asker),
            ..self
        }
    }

    /// Returns what puts another configuration than `config`, which it was started with, into force.
    pub fn reloader(&self, config: ServerConfig) -> Reloader {
        Reloader::new(self.shared.clone(), self.state.clone(), config)
    }

    /// Returns where metrics and health are served.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// Returns what the sessions share, for a look at the counters.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Serves until `stop`, then closes every session and undoes what was set up.
    ///
    /// # Errors
    ///
    /// When the TUN device is gone before, or what serves a socket has failed: what was set up has been undone all the
    /// same.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self {
            shared,
            sockets,
            tun,
            undo,
            state,
            control,
            admin,
            reload,
        } = self;
        let tasks = TaskTracker::new();
        let mut listeners = JoinSet::new();
        let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
        let listening = Listening {
            has_admin: admin.is_some(),
            has_control: control.is_some(),
            ..Listening::of(&sockets)
        };
        let uses = Uses {
            file: reload.as_ref().map(|asker| asker.file().to_owned()),
            state_dir: Some(whole(state.path())),
            tun: tun.as_ref().map(|device| device.settings.name.clone()),
            listens: sockets.iter().map(Socket::port).collect(),
            network: network(),
        };
        for socket in sockets {
            let (shared, strangers, all) = (shared.clone(), strangers.clone(), tasks.clone());
            match socket {
                Socket::Stream(at, listener) => {
                    listeners.spawn(accept_all(shared, at, listener, strangers, all));
                }
                Socket::Datagram(io) => {
                    listeners.spawn(datagrams::serve(shared, io, all));
                }
            }
        }
        let reporter = Arc::new(Reporter::new(shared.clone(), listening, uses));
        if let Some(admin) = admin {
            info!(address = %admin.address(), "metrics and health");
            tasks.spawn(admin.serve(reporter.clone(), shared.stop.clone()));
        }
        if let Some(listener) = control {
            debug!(socket = %listener.path().display(), "takes orders");
            let orders = Orders::new(shared.clone(), reporter.clone(), reload);
            tasks.spawn(io_control::serve(
                listener,
                Arc::new(orders),
                shared.control_stats.clone(),
                shared.stop.clone(),
            ));
        }
        let draining = drain(&shared, tun);
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = keep_leases(&shared, &state) => Ok(()),
            () = follow_own_addresses(&shared) => Ok(()),
            error = draining => Err(error),
            error = failure(&mut listeners) => Err(RunError::Listener(error)),
        };
        shared.stop.cancel();
        tasks.close();
        let ended = async {
            while listeners.join_next().await.is_some() {}
            tasks.wait().await;
        };
        if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            warn!(left = tasks.len(), "not everything ended in time");
        }
        write_leases(&shared, &state);
        if let Some(Err(error)) = undo.map(Undo::undo) {
            error!(%error, "not everything could be undone; the next start tries again");
        }
        debug!(
            accept = ?shared.accept_stats,
            datagrams = ?shared.datagram_stats,
            guests = ?shared.guest_stats,
            dns = ?shared.dns.stats(),
            no_route = shared.router.no_route(),
            still_queued = shared.router.queued_bytes(),
            tun = ?shared.egress.stats(),
            "counters"
        );
        info!("server stopped");
        result
    }
}

/// Why a server has stopped before it was told to.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The TUN device can no longer be read.
    #[error("the TUN device cannot be read any more: {0}")]
    Tun(std::io::Error),
    /// Somebody has deleted the TUN device.
    #[error(
        "somebody has deleted the interface {interface}, and no client's packet would leave any more: start the server again, which makes it anew"
    )]
    Deleted {
        /// Its name.
        interface: String,
    },
    /// A socket is no longer served: a defect of the program.
    #[error("a socket is no longer served ({0}); this is a defect: please report it")]
    Listener(JoinError),
}

/// Why a server does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Who is invited and who has enrolled cannot be put in force.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// The leases cannot be read.
    #[error("the leases of the former run cannot be read: {0}")]
    Leases(std::io::Error),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificate and its key are of no use for TLS 1.3.
    #[error("the certificate cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The files of the certificate and of its key are of no use together.
    #[error(
        "tls: {} and {} cannot be used together ({source}): is the key that of the certificate?",
        files.certificate.display(),
        files.key.display()
    )]
    TlsFiles {
        /// The files.
        files: TlsFiles,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The resolver cannot be set up.
    #[error(transparent)]
    Dns(#[from] DnsServiceError),
    /// What a killed run left in the system cannot be undone.
    #[error("cannot undo what a killed run has left: {0}")]
    Leftovers(#[from] UndoError),
    /// The control socket that the configuration names cannot be had.
    #[error(transparent)]
    Control(#[from] PlaceError),
    /// The admin address cannot be had.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The TUN device cannot be set up.
    #[error(transparent)]
    Egress(#[from] SetupError),
}

fn bind(listen: &[ListenAddr]) -> Result<Vec<Socket>, BindError> {
    let siblings = |datagrams: bool| -> Vec<SocketAddr> {
        let same = listen.iter().filter(|l| l.scheme.is_stream() != datagrams);
        same.map(|l| l.address).collect()
    };
    let (streams, datagrams) = (siblings(false), siblings(true));
    let bind = |l: &ListenAddr| match l.scheme {
        Scheme::Udp => Ok(Socket::Datagram(Arc::new(bind_datagrams(
            l.address, &datagrams,
        )?))),
        Scheme::Tcp | Scheme::Tls | Scheme::Wss | Scheme::Ws => Ok(Socket::Stream(
            Arc::new(l.clone()),
            Arc::new(Listener::bind(l.address, &streams)?),
        )),
    };
    listen.iter().map(bind).collect()
}

pub(super) fn server_tls(
    config: &ServerConfig,
    state: &StateDir,
) -> Result<Option<ServerTls>, StartError> {
    if !config.listen.iter().any(|l| l.scheme.is_tls()) {
        return Ok(None);
    }
    let certificate = match &config.tls {
        Some(files) => Certificate::from_files(&files.certificate, &files.key)?,
        None => Certificate::kept(state.path(), &config.tls_names)?,
    };
    match (ServerTls::new(certificate), &config.tls) {
        (Err(source), Some(files)) => Err(StartError::TlsFiles {
            files: files.clone(),
            source,
        }),
        (tls, _) => Ok(Some(tls?)),
    }
}

/// The addresses that the configuration gives to a client.
pub(super) fn fixed(client: &ClientEntry) -> Fixed {
    Fixed {
        key: client.public_key,
        lease: Lease {
            v4: client.address,
            v6: client.address6,
        },
    }
}

/// The leases as a former run left them.
fn restore_leases(config: &ServerConfig, peers: &Peers) -> Result<Leases, StartError> {
    let fixed = config.clients.iter().map(fixed);
    let mut leases = Leases::new(
        config.network,
        config.network6,
        fixed,
        LeaseSettings::default(),
    );
    let known = |key: &PublicKey| peers.lists(key);
    let loaded = LeaseStore::new(&config.state_dir)
        .load(clock::unix(), &mut leases, known)
        .map_err(StartError::Leases)?;
    match loaded {
        LoadedLeases::New => {}
        LoadedLeases::Restored(restored) => {
            info!(kept = restored.kept, dropped = restored.dropped, "leases");
        }
        LoadedLeases::SetAside { to, reason } => {
            warn!(%reason, file = %to.display(), "the leases make no sense and were set aside");
        }
    }
    Ok(leases)
}

/// The gateway's addresses: the first host of each network.
fn gateways(leases: &Leases) -> Vec<IpAddr> {
    let v4 = leases.gateway4().map(IpAddr::V4);
    let v6 = leases.gateway6().map(IpAddr::V6);
    v4.into_iter().chain(v6).collect()
}

fn tun_settings(config: &ServerConfig, leases: &Leases) -> TunSettings {
    TunSettings {
        name: config.tun.name.clone(),
        mtu: config.mtu,
        gateway4: config
            .network
            .zip(leases.gateway4())
            .and_then(|(net, gateway)| Ipv4Net::new(gateway, net.prefix_len()).ok()),
        gateway6: config
            .network6
            .zip(leases.gateway6())
            .and_then(|(net, gateway)| Ipv6Net::new(gateway, net.prefix_len()).ok()),
        masquerade: config.tun.masquerade,
    }
}

/// Drains the TUN device, where there is one, on a task of its own, and looks after its interface; ends only when that
/// fails.
async fn drain(shared: &Arc<Shared>, tun: Option<Device>) -> RunError {
    let Some(Device { egress, settings }) = tun else {
        return std::future::pending().await;
    };
    let (router, pool) = (shared.router.clone(), shared.pool.clone());
    let task = tokio::spawn(async move { egress.drain(&router, &pool).await });
    let _ended_with_us = AbortOnDrop(task.abort_handle());
    tokio::select! {
        ended = task => {
            let error = ended.unwrap_or_else(std::io::Error::other);
            watch::reason(&settings, error).await
        }
        error = watch::keep(&settings) => error,
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps the policy true to the host's addresses, for as long as it is polled.
async fn follow_own_addresses(shared: &Shared) {
    let mut network = NetworkWatch::new();
    loop {
        // First, too: something may have changed since the server's start.
        look_at_own_addresses(shared).await;
        network.changed().await;
    }
}

async fn look_at_own_addresses(shared: &Shared) {
    let own = match Netlink::open() {
        Ok(netlink) => netlink.host_addresses().await,
        Err(error) => Err(error),
    };
    match own {
        Ok(own) => shared.set_own_addresses(&own),
        // A sandbox without netlink. What is not public stays forbidden all the same.
        Err(error) => {
            warn!(%error, "this host's own addresses are not known, and not forbidden to clients")
        }
    }
}

/// Waits for a task that has panicked; those that end are no failure.
async fn failure(tasks: &mut JoinSet<()>) -> JoinError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return error,
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

async fn accept_all(
    shared: Arc<Shared>,
    at: Arc<ListenAddr>,
    listener: Arc<Listener>,
    strangers: Arc<Semaphore>,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept(&strangers) => accepted,
        };
        let Some(accepted) = accepted else { return };
        tasks.spawn(accept::serve(
            shared.clone(),
            at.clone(),
            accepted.stream,
            accepted.permit,
            strangers.available_permits() < MAX_STRANGERS / 2,
        ));
    }
}

/// Writes the leases to disk soon after they have changed, for as long as it is polled.
async fn keep_leases(shared: &Shared, state: &StateDir) {
    loop {
        write_leases(shared, state);
        shared.registry.changed().await;
        sleep(LEASES_INTERVAL).await;
    }
}

fn write_leases(shared: &Shared, state: &StateDir) {
    if let Some(bytes) = shared.registry.changed_leases(clock::unix())
        && let Err(error) = state.write(LEASES_FILE, &bytes)
    {
        warn!(%error, "the leases could not be kept; a restart may give other addresses");
    }
}

/// The file in the state directory that the leases are kept in.
const LEASES_FILE: &str = "leases.json";

/// Guests at once: each has some kilobytes and five seconds.
pub(super) const MAX_GUESTS: usize = 64;

/// How often changed leases are written: a crash loses at most this, and those clients get
/// another address once.
const LEASES_INTERVAL: Duration = Duration::from_secs(1);

/// How long sessions may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Free small buffers kept: 2 MiB.
const POOL_SMALL: usize = 1024;

/// Free large buffers kept: 8 MiB, twice what one client may have queued.
const POOL_LARGE: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_that_panics_is_noticed_and_one_that_ends_is_no_failure() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        let ended = timeout(Duration::from_millis(50), failure(&mut tasks)).await;
        assert!(ended.is_err());
        tasks.spawn(async { panic!("a defect") });
        assert!(failure(&mut tasks).await.is_panic());
    }
}
