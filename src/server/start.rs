//! The start of a server, and what may keep it from that.

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::accept::AcceptStats;
use super::control;
use super::datagrams::Inboxes;
use super::dns::{DnsService, DnsServiceError};
use super::egress::Egress;
use super::egress::tun::TunEgress;
use super::enrolment::{Enrolment, EnrolmentError};
use super::filter::DestinationPolicy;
use super::lease_store::{LeaseStore, LoadedLeases};
use super::leases::{Fixed, Lease, Leases, Settings as LeaseSettings};
use super::ledger::Ledger;
use super::listening::{Socket, bind};
use super::peers::Peers;
use super::reach::Reach;
use super::registry::Registry;
use super::router::Router;
use super::run::{Device, Server, look_at_own_addresses};
use super::shared::{GuestStats, MAX_GUESTS, Offer, ServerStats, Shared};
use super::unlisted::Unlisted;
use crate::config::{CertificatePin, ClientEntry, EgressKind, ServerConfig, TlsFiles};
use crate::io::admin::{Admin, AdminError};
use crate::io::clock;
use crate::io::control::PlaceError;
use crate::io::limits::raise_open_files;
use crate::io::listen::BindError;
use crate::io::pool::Pool;
use crate::io::state::{StateDir, StateError};
use crate::io::tls::{Certificate, CertificateError, ServerTls};
use crate::io::tun::{SetupError, TunSettings, UndoError, clean_up, setup};
use crate::proto::budget::{Budget, HARD};
use crate::proto::{KEY_LEN, PublicKey, Responder, SecretKey, Settings};
use crate::reload::ReloadCounts;

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
        let leases = restore_leases(&config, &peers, &enrolment)?;
        let control = control::place(&config).listen()?;
        let admin = config.admin.map(Admin::bind).transpose()?;
        let gateways = gateways(&leases);
        // Last of all that can fail, so that nothing is to be undone when something does.
        let (egress, tun, undo) = match config.egress {
            EgressKind::User => {
                // A killed run may have had the other egress.
                clean_up(&state)?;
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
fn restore_leases(
    config: &ServerConfig,
    peers: &Peers,
    enrolment: &Enrolment,
) -> Result<Leases, StartError> {
    let fixed = config.clients.iter().map(fixed);
    let mut leases = Leases::new(
        config.network,
        config.network6,
        fixed,
        LeaseSettings::default(),
    );
    // Those of a revoked client stay for it as long as those of any that is away: it may be restored.
    let known = |key: &PublicKey| peers.lists(key) || enrolment.remembers(key);
    let store = LeaseStore::new(&config.state_dir);
    let loaded = store.load(clock::unix(), &mut leases, known);
    let loaded = loaded.map_err(|source| StateError::File {
        path: store.path().to_owned(),
        source,
    })?;
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

/// Free small buffers kept: 2 MiB.
const POOL_SMALL: usize = 1024;

/// Free large buffers kept: 8 MiB, twice what one client may have queued.
const POOL_LARGE: usize = 128;
