//! Whether and how a client leads its whole host through the tunnel: `tun:`, `true` or a group of keys.
//!
//! What the keys bring about is told by [`crate::client::host`].

use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;

use super::error::Place;
use super::parse;
use super::server::default_state_dir;
use super::settings::Settings;
use super::shared::{Unique, values};
use crate::proto::PublicKey;

/// How a client leads its host through the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTunnel {
    /// Name of the TUN device.
    pub name: String,
    /// What goes into the tunnel; the longest prefix wins over `exclude`.
    pub routes: Vec<IpNet>,
    /// What stays outside.
    pub exclude: Vec<IpNet>,
    /// Whether what is not for the tunnel, nor excluded, goes nowhere.
    pub kill_switch: bool,
    /// Whether the host's names are asked through the tunnel.
    pub dns: bool,
    /// Where it is noted what was changed in the system.
    pub state_dir: PathBuf,
}

impl HostTunnel {
    /// Whether everything of a family goes into the tunnel that is not excluded.
    pub fn is_full(&self, v4: bool) -> bool {
        let mut of_family = self.routes.iter().filter(|net| net.addr().is_ipv4() == v4);
        of_family.any(|net| net.prefix_len() == 0)
    }
}

impl fmt::Display for HostTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.is_full(true), self.is_full(false)) {
            (true, true) => "the whole host".to_owned(),
            (true, false) | (false, true) | (false, false) => match self.routes.as_slice() {
                [network] => network.to_string(),
                networks => format!("{} networks", networks.len()),
            },
        };
        write!(f, "{what} through {}", self.name)?;
        if self.kill_switch {
            f.write_str(" with a kill switch")?;
        }
        Ok(())
    }
}

/// Reads `tun:`; `None` where it is off, or after a problem was added.
pub(super) fn read(
    settings: &mut Settings<'_>,
    identity: Option<&PublicKey>,
) -> Option<HostTunnel> {
    let is_group = settings.is_group("tun");
    let enabled = settings.choice("tun", "enabled", parse::boolean);
    let name = settings.detail("tun", "name", parse::interface);
    let routes = settings.details("tun", "routes", network);
    let exclude = settings.details("tun", "exclude", network);
    let kill_switch = settings.detail("tun", "kill_switch", parse::boolean);
    let dns = settings.detail("tun", "dns", parse::boolean);
    let state_dir = settings.detail_path("tun", "state_dir");
    for list in [&routes, &exclude].into_iter().flatten() {
        let mut seen = Unique::default();
        for at in list {
            seen.insert(settings, at, at.value, at.value);
        }
    }
    if !enabled.map_or(is_group, |at| at.value) {
        if let Some(at) = kill_switch.as_ref().filter(|at| at.value && !is_group) {
            let message = "a kill switch belongs to a tunnel of the whole host: add --tun, or tun: in the file";
            settings.problem_at(at, message);
        }
        for at in [&routes, &exclude].into_iter().flatten().flatten() {
            // Of a group that says `enabled: false` they wait for another day.
            if !is_group || matches!(at.place, Place::Flag(_)) {
                let message =
                    "belongs to a tunnel of the whole host: add --tun, or tun: in the file";
                settings.problem_at(at, message);
            }
        }
        return None;
    }
    if let (Some(routes), Some(exclude)) = (&routes, &exclude)
        && let Some(at) = (exclude.iter()).find(|at| routes.iter().any(|r| r.value == at.value))
    {
        let message = format!("{} stands in tun.routes too: keep one of them", at.value);
        settings.problem_at(at, message);
    }
    let routes = match values(routes) {
        list if list.is_empty() => EVERYTHING.to_vec(),
        list => list,
    };
    let is_whole =
        |v4: bool| (routes.iter()).any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == v4);
    let (whole4, whole6) = (is_whole(true), is_whole(false));
    let is_killing = kill_switch.as_ref().is_some_and(|at| at.value);
    if let Some(at) = kill_switch.filter(|at| at.value && !(whole4 && whole6)) {
        let message = "a kill switch lets nothing past the tunnel, and tun.routes leads a part of the Internet into it: leave routes out, and write to tun.exclude what stays outside";
        settings.problem_at(&at, message);
    } else if whole4 && !whole6 {
        let message = "tun.routes: IPv6 goes beside the tunnel, since ::/0 is not among them";
        settings.warn(message.to_owned());
    }
    let state_dir = match (state_dir, identity) {
        (Some(at), _) => Some(at.value),
        (None, Some(key)) => {
            let folder = default_state_dir(settings.environment(), key);
            if folder.is_none() {
                settings.missing(
                    "tun.state_dir",
                    "write a folder where it is noted what was changed in the system",
                );
            }
            folder
        }
        // That the key is missing was told.
        (None, None) => None,
    };
    Some(HostTunnel {
        name: name.map_or_else(|| DEFAULT_NAME.to_owned(), |at| at.value),
        routes,
        exclude: values(exclude),
        kill_switch: is_killing,
        dns: dns.map_or(whole4 || whole6, |at| at.value),
        state_dir: state_dir?,
    })
}

/// Reads a network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let right = "write a network such as 192.168.0.0/16 or fd00::/8, or one address";
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => IpNet::from(
            text.parse::<std::net::IpAddr>()
                .map_err(|_| format!("`{text}` is not a network: {right}"))?,
        ),
    };
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(format!(
            "`{net}` has bits behind its prefix: write {}",
            net.trunc()
        ))
    }
}

/// The name of the TUN device where none is said.
const DEFAULT_NAME: &str = "adit0";

/// What goes into the tunnel where nothing is said.
const EVERYTHING: [IpNet; 2] = [
    IpNet::V4(ipnet::Ipv4Net::new_assert(
        std::net::Ipv4Addr::UNSPECIFIED,
        0,
    )),
    IpNet::V6(ipnet::Ipv6Net::new_assert(
        std::net::Ipv6Addr::UNSPECIFIED,
        0,
    )),
];
