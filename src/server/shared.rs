//! What the sessions of one server share.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use adit_netstack::Packet;
use ipnet::IpNet;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::accept::AcceptStats;
use super::datagrams::{DatagramStats, Inboxes};
use super::dns::DnsService;
use super::egress::Egress;
use super::enrolment::Enrolment;
use super::filter::DestinationPolicy;
use super::leases::Lease;
use super::ledger::Ledger;
use super::local::LocalLimits;
use super::peers::Peers;
use super::reach::Reach;
use super::registry::Registry;
use super::router::Router;
use super::unlisted::Unlisted;
use crate::config::{LaneAddr, ServerConfig};
use crate::io::control::ControlStats;
use crate::io::pool::Pool;
use crate::io::tls::ServerTls;
use crate::proto::budget::{Budget, HARD};
use crate::proto::{self, PublicKey, Responder};
use crate::reload::ReloadCounts;
use crate::wire::{InnerConfig, RefuseReason};

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
    pub(super) policy: RwLock<Arc<DestinationPolicy>>,
    /// How clients reach this server.
    pub(super) reach: RwLock<Reach>,
    pub(super) offer: RwLock<Arc<Offer>>,
    /// The certificate, where a listener needs one.
    pub(super) tls: RwLock<Option<ServerTls>>,
    pub(super) networks: Vec<IpNet>,
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
    pub(super) fn set_own_addresses(&self, own: &[IpAddr]) {
        let mut policy = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *policy = Arc::new(policy.with_own(own));
    }

    /// Returns what a handshake needs to know of the client with this key.
    pub fn handshake_entry(&self, key: &PublicKey) -> Option<proto::ClientEntry> {
        let (peer, revoked) = match self.peers.find(key) {
            Some(peer) => (Some(peer), false),
            None if self.peers.was_revoked(key) => (self.peers.listed(key), true),
            None => return None,
        };
        Some(proto::ClientEntry {
            psk: peer.and_then(|peer| peer.entry.preshared_key.clone()),
            id: 0,
            revoked,
        })
    }

    /// Tells the log that a client was refused; one that was revoked asks for ever.
    pub fn tell_refused(&self, key: &PublicKey, reason: RefuseReason) {
        let client = self.client_name(key);
        match reason {
            RefuseReason::Revoked => debug!(client, %reason, "refused a client"),
            RefuseReason::Version
            | RefuseReason::Aead
            | RefuseReason::EncapsulationKey
            | RefuseReason::Unknown(_) => info!(client, %reason, "refused a client"),
        }
    }

    /// Returns the name of the client with this key, for logs.
    pub fn client_name(&self, key: &PublicKey) -> String {
        self.peers.name(key)
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

/// Guests at once: each has some kilobytes and five seconds.
pub(super) const MAX_GUESTS: usize = 64;
