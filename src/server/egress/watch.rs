//! Keeps the interface of the egress `tun` as it was set up, for as long as the server runs.
//!
//! Somebody may switch it off, or take its addresses: it is mended at once, as whoever did that by mistake wants it, or its
//! clients' packets would go nowhere and nobody would be told. Where somebody has *deleted* it, the server ends with an
//! error: rules and routes of others that named the interface are gone with it, so whoever restarts servers has to see it.
//! The device of the next start is a new one.

use tracing::{debug, warn};

use super::super::run::RunError;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::network::NetworkWatch;
use crate::io::tun::TunSettings;

/// Looks at the interface whenever something of the host's network changes; ends when it is gone.
pub async fn keep(settings: &TunSettings) -> RunError {
    let mut network = NetworkWatch::new();
    let mut index = None;
    let mut told = String::new();
    loop {
        // First, too: something may have changed since it was set up.
        match look(settings, &mut index).await {
            Ok(false) => told.clear(),
            Ok(true) => warn!(
                interface = %settings.name,
                "somebody has changed the interface of this server: it is as it was again"
            ),
            Err(Trouble::Gone) => return deleted(settings),
            Err(Trouble::Netlink(error)) => {
                // Once, as long as it stays so: a host of containers changes its network all the time.
                let text = error.to_string();
                if text != told {
                    warn!(%error, "the interface of this server cannot be looked after");
                    told = text;
                }
            }
        }
        network.changed().await;
    }
}

/// Says why reading the device has failed.
pub async fn reason(settings: &TunSettings, error: std::io::Error) -> RunError {
    match look(settings, &mut None).await {
        Err(Trouble::Gone) => deleted(settings),
        Ok(_) | Err(Trouble::Netlink(_)) => RunError::Tun(error),
    }
}

fn deleted(settings: &TunSettings) -> RunError {
    RunError::Deleted {
        interface: settings.name.clone(),
    }
}

/// Why the interface is not as it was.
enum Trouble {
    Gone,
    Netlink(NetlinkError),
}

impl From<NetlinkError> for Trouble {
    fn from(error: NetlinkError) -> Self {
        if matches!(error, NetlinkError::Missing { .. }) {
            Self::Gone
        } else {
            Self::Netlink(error)
        }
    }
}

/// Mends the interface where that is needed, and says whether it was; `index` is the one it had at the first look.
async fn look(settings: &TunSettings, index: &mut Option<u32>) -> Result<bool, Trouble> {
    let TunSettings {
        name,
        mtu,
        gateway4,
        gateway6,
        masquerade: _,
    } = settings;
    let netlink = Netlink::open()?;
    let now = netlink.link(name).await?.index;
    if *index.get_or_insert(now) != now {
        // Another one of that name.
        return Err(Trouble::Gone);
    }
    match netlink.check(name, *mtu, *gateway4, *gateway6).await {
        Ok(()) => return Ok(false),
        Err(NetlinkError::Mismatch { what, .. }) => debug!(what, "changed by somebody"),
        Err(error) => return Err(error.into()),
    }
    netlink.configure(name, *mtu, *gateway4, *gateway6).await?;
    Ok(true)
}
