//! One SOCKS5 UDP relay.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use adit_netstack::{PacketSink, Stack};
use tokio::net::UdpSocket;

use crate::client::direct::DirectUdp;
use crate::client::resolve::{Found, Host};
use crate::client::rules::{Destination, InForce, ResolvedBy, Way};
use crate::client::tunnel::{HandleId, Lifeline};
use crate::config::Transport;
use crate::io::outside::Outside;
use crate::io::relay::Notice;

/// Whom an association serves.
#[derive(Debug)]
pub(in crate::client) struct Application {
    /// The socket that it sends to.
    pub(in crate::client) socket: UdpSocket,
    /// The only address whose datagrams are taken from it.
    pub(in crate::client) client: IpAddr,
    /// Where each of them goes.
    pub(in crate::client) rules: InForce,
    /// What tells the application's proxy that the association is over.
    pub(in crate::client) alive: Lifeline,
    /// How its datagrams leave the host that go beside the tunnel.
    pub(in crate::client) outside: Outside,
}

/// One SOCKS5 UDP relay.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) handle: HandleId,
    pub(super) socket: UdpSocket,
    pub(super) waker: Waker,
    pub(super) notice: Arc<Notice>,
    /// The sockets beside the tunnel.
    pub(super) direct: DirectUdp,
    /// The only address that may use it.
    client: IpAddr,
    /// Where answers go: where the first datagram came from.
    application: Option<SocketAddr>,
    /// The inner port.
    pub(super) port: u16,
    rules: InForce,
    names: HashMap<Host, Known>,
    _alive: Lifeline,
}

/// The addresses of a name.
#[derive(Debug)]
struct Known {
    /// Who was asked.
    asked: ResolvedBy,
    found: Found,
    until: Instant,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// It is sent.
    Send(Way, SocketAddr),
    /// It waits until this resolver has told the addresses of its name.
    Ask(ResolvedBy),
    /// It is dropped.
    Blocked,
}

impl Association {
    pub(super) fn new(
        handle: HandleId,
        application: Application,
        port: u16,
        notice: Arc<Notice>,
    ) -> Self {
        Self {
            handle,
            socket: application.socket,
            waker: Waker::from(notice.clone()),
            notice,
            direct: DirectUdp::leaving(application.outside),
            client: application.client,
            application: None,
            port,
            rules: application.rules,
            names: HashMap::new(),
            _alive: application.alive,
        }
    }

    /// Tells whether a sender may use it; the first one keeps it for itself.
    pub(super) fn admit(&mut self, from: SocketAddr) -> bool {
        from.ip() == self.client && *self.application.get_or_insert(from) == from
    }

    /// Judges a datagram by the rules in force now.
    pub(super) fn route(&self, now: Instant, host: &Host, port: u16) -> Route {
        let rules = self.rules.now();
        let transport = Transport::Udp;
        let judge = |name, ip| {
            let to = Destination {
                name,
                ip,
                port,
                transport,
            };
            let way = rules.of_address(&to).ok()?;
            Some(Route::Send(way, SocketAddr::new(ip, port)))
        };
        let name = match host {
            Host::Ip(ip) => return judge(None, *ip).unwrap_or(Route::Blocked),
            Host::Name(name) => name,
        };
        let Ok(by) = rules.of_name(name, port, transport) else {
            return Route::Blocked;
        };
        let known = self.names.get(host);
        let Some(known) = known.filter(|known| now < known.until && known.asked == by) else {
            return Route::Ask(by);
        };
        let Found { addresses, by } = &known.found;
        (addresses.iter())
            .find_map(|ip| judge(Some((name, *by)), *ip))
            .unwrap_or(Route::Blocked)
    }

    /// Keeps the addresses of a name for a while.
    pub(super) fn remember(&mut self, now: Instant, host: Host, asked: ResolvedBy, found: Found) {
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        let known = Known {
            asked,
            found,
            until: now + NAME_TTL,
        };
        self.names.insert(host, known);
    }

    /// Sends a datagram through the tunnel; false where it is not taken.
    pub(super) fn send<S: PacketSink>(
        &self,
        stack: &mut Stack,
        sink: &mut S,
        to: SocketAddr,
        payload: &[u8],
    ) -> bool {
        stack.own_address(to.ip()).is_some_and(|own| {
            stack
                .send_udp(sink, SocketAddr::new(own, self.port), to, payload)
                .is_ok()
        })
    }

    /// Returns where its application is, once that has spoken.
    pub(super) fn application(&self) -> Option<SocketAddr> {
        self.application
    }

    /// Whether any datagram may go beside the tunnel now.
    pub(super) fn has_direct(&self) -> bool {
        self.rules.now().has_direct()
    }
}

/// Names that one association remembers.
const MAX_NAMES: usize = 64;

/// How long it remembers them: short, since it does not know their TTL.
const NAME_TTL: Duration = Duration::from_secs(30);
