//! The namespaces that share a client, and what each is offered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::book::Book;
use super::serve::Enclosure;
use crate::client::dns::Dns;
use crate::client::enclosed::INTERFACE;
use crate::client::proxy::Context;
use crate::io::pool::Pool;
use crate::io::tun::{OpenError, Tun};
use crate::proto::budget::Share;
use crate::wire::InnerConfig;

/// Lets commands share a client.
#[derive(Debug)]
pub struct Enclosures {
    pub(in crate::client) proxy: Arc<Context>,
    pub(in crate::client) dns: Dns,
    /// What all flows of the client may hold.
    pub(in crate::client) share: Share,
    pub(in crate::client) pool: Arc<Pool>,
    pub(in crate::client) slots: Arc<Semaphore>,
    /// Who they are.
    pub(in crate::client) book: Arc<Book>,
    pub(in crate::client) stop: CancellationToken,
}

/// What the interface of a namespace is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The name servers to ask.
    pub dns: Vec<IpAddr>,
    /// The largest packet, in bytes.
    pub mtu: u16,
}

/// Why a command cannot share this client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnclosureError {
    /// Too many do.
    #[error("{MAX_ENCLOSURES} commands share this client already")]
    Full,
    /// The descriptor is of no use.
    #[error("the TUN device is of no use: {0}")]
    Tun(#[from] OpenError),
}

impl Enclosures {
    /// Ends the packets of the namespace that `tun` belongs to, until what is returned last is dropped; that is ready when it
    /// has ended by itself. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`EnclosureError`].
    pub fn open(
        &self,
        tun: OwnedFd,
    ) -> Result<(Offer, impl Future<Output = ()> + Send + use<>), EnclosureError> {
        let permit = Arc::clone(&self.slots).try_acquire_owned();
        let permit = permit.map_err(|_| {
            self.book.refuse();
            EnclosureError::Full
        })?;
        let offer = Offer::of(self.proxy.tunnel.inner().borrow().as_ref());
        let tun = Tun::from_fd(tun, INTERFACE)?;
        let leave = CancellationToken::new();
        let (page, asked) = self.book.begin();
        let enclosure = Enclosure::new(tun, &offer, self, asked, leave.clone());
        info!("a command shares this client");
        let stop = self.stop.clone();
        let serving = tokio::spawn(async move {
            if let Some(counters) = stop.run_until_cancelled(enclosure.run()).await {
                debug!(?counters, "counters of a command");
                page.end(counters);
            }
            drop(permit);
        });
        let guard = leave.drop_guard();
        Ok((offer, async move {
            // A fault of it has been told by the runtime.
            let _ = serving.await;
            drop(guard);
        }))
    }

    /// Waits until the client has a session.
    pub async fn connected(&self) -> bool {
        let mut inner = self.proxy.tunnel.inner();
        inner.wait_for(Option::is_some).await.is_ok()
    }
}

impl Offer {
    /// Offers the families that the session has, or both while there is none.
    fn of(inner: Option<&InnerConfig>) -> Self {
        let has = |of: fn(&InnerConfig) -> bool| inner.is_none_or(of);
        let both: [(bool, IpAddr, IpAddr); 2] = [
            (has(|it| it.v4.is_some()), OWN4.into(), GATEWAY4.into()),
            (has(|it| it.v6.is_some()), OWN6.into(), GATEWAY6.into()),
        ];
        let here = both.into_iter().filter(|(has, ..)| *has);
        let (addresses, gateways): (Vec<IpAddr>, Vec<IpAddr>) =
            here.map(|(_, own, gateway)| (own, gateway)).unzip();
        Self {
            addresses,
            dns: gateways.into_iter().take(1).collect(),
            mtu: inner.map_or(InnerConfig::default().mtu, |it| it.mtu),
        }
    }

    /// The same as a session would give it.
    pub fn to_config(&self) -> InnerConfig {
        let mut config = InnerConfig {
            dns: self.dns.clone(),
            mtu: self.mtu,
            ..InnerConfig::default()
        };
        for address in &self.addresses {
            match address {
                IpAddr::V4(ip) => config.v4 = Some((*ip, 32)),
                IpAddr::V6(ip) => config.v6 = Some((*ip, 128)),
            }
        }
        config
    }
}

/// The gateways' addresses, on which names are answered.
pub(super) const GATEWAYS: [IpAddr; 2] = [IpAddr::V4(GATEWAY4), IpAddr::V6(GATEWAY6)];

/// Of the network that is set aside for the inside of a host (RFC 7335).
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
const OWN4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);

/// Of a network of our own making (RFC 4193), the same in each namespace, since none is reached from another.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd61, 0x6469, 0x7400, 0, 0, 0, 0, 1);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd61, 0x6469, 0x7400, 0, 0, 0, 0, 2);

/// Commands that share one client: what a build with many jobs starts, and a bound on descriptors.
pub const MAX_ENCLOSURES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_those_of_the_session_and_both_while_there_is_none() {
        let four = InnerConfig {
            v4: Some(([10, 86, 0, 2].into(), 24)),
            mtu: 1300,
            ..InnerConfig::default()
        };
        let offer = Offer::of(Some(&four));
        assert_eq!(offer.addresses, [IpAddr::from(OWN4)]);
        assert_eq!((offer.dns, offer.mtu), (vec![IpAddr::from(GATEWAY4)], 1300));
        let none = Offer::of(None);
        assert_eq!(none.addresses, [IpAddr::from(OWN4), OWN6.into()]);
        assert_eq!(none.to_config().addresses(), none.addresses);
        let six = InnerConfig {
            v6: Some(([0xfd86, 0, 0, 0, 0, 0, 0, 2].into(), 64)),
            ..InnerConfig::default()
        };
        assert_eq!(Offer::of(Some(&six)).dns, [IpAddr::from(GATEWAY6)]);
    }

    #[test]
    fn offer_survives_a_round_trip_as_json() {
        let offer = Offer::of(None);
        let text = serde_json::to_string(&offer).unwrap();
        assert_eq!(serde_json::from_str::<Offer>(&text).unwrap(), offer);
    }
}
