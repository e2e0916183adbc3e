//! Keeps the interface of the egress `tun` as it was set up, for as long as the server runs.
//!
//! Somebody may switch it off, or take its addresses: it is mended at once, as whoever did that by mistake wants it, or its
//! clients' packets would go nowhere and nobody would be told. Where somebody has *deleted* it, the server ends with an
//! error: rules and routes of others that named the interface are gone with it, so whoever restarts servers has to see it.
//! The device of the next start is a new one.
//!
//! A host may have its IPv6 switched off altogether, which takes the interface's addresses, too: that is not for us to undo.
//! It is told, IPv4 is looked after as before, and IPv6 is set up again once the host has it.

use tracing::{debug, warn};

use super::super::run::RunError;
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::network::NetworkWatch;
use crate::io::sysctl;
use crate::io::tun::{TunSettings, calm_interface};

/// Looks at the interface whenever something of the host's network changes; ends when it is gone.
pub async fn keep(settings: &TunSettings) -> RunError {
    let mut network = NetworkWatch::new();
    let mut index = None;
    let mut told = String::new();
    loop {
        // First, too: something may have changed since it was set up.
        match look(settings, &mut index).await {
            Ok(Seen::AsItWas) => told.clear(),
            Ok(Seen::Mended) => warn!(
                interface = %settings.name,
                "somebody has changed the interface of this server: it is as it was again"
            ),
            Ok(Seen::WithoutIpv6) => tell(&mut told, NO_IPV6.to_owned()),
            Err(Trouble::Gone) => return deleted(settings),
            Err(Trouble::Netlink(error)) => tell(
                &mut told,
                format!("the interface of this server cannot be looked after: {error}"),
            ),
        }
        network.changed().await;
    }
}

/// Tells what is wrong once, as long as it stays so: a host of containers changes its network all the time.
fn tell(told: &mut String, text: String) {
    if text != *told {
        warn!("{text}");
        *told = text;
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

/// How the interface was found.
enum Seen {
    AsItWas,
    /// It is as it was now.
    Mended,
    /// As it was, but for IPv6, which the host has no more.
    WithoutIpv6,
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

/// Mends the interface where that is needed; `index` is the one it had at the first look.
async fn look(settings: &TunSettings, index: &mut Option<u32>) -> Result<Seen, Trouble> {
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
    let ipv6 = gateway6.filter(|_| sysctl::has_ipv6());
    match netlink.check(name, *mtu, *gateway4, ipv6).await {
        Ok(()) if ipv6 == *gateway6 => return Ok(Seen::AsItWas),
        Ok(()) => return Ok(Seen::WithoutIpv6),
        Err(NetlinkError::Mismatch { what, .. }) => debug!(what, "changed by somebody"),
        Err(error) => return Err(error.into()),
    }
    if ipv6.is_some() {
        // It may be switched off for this interface alone, or have begun anew with what the host has by default.
        calm_interface(name, true);
    }
    netlink.configure(name, *mtu, *gateway4, ipv6).await?;
    Ok(Seen::Mended)
}

const NO_IPV6: &str = "IPv6 has been switched off on this host: that of clients leads nowhere, until net.ipv6.conf.all.disable_ipv6 is 0 again";
