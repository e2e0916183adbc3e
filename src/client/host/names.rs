//! Whom the host asks for names while it goes through the tunnel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::ClientConfig;
use crate::io::host::{HostChanges, HostError, RESOLV_CONF};
use crate::io::outside::{Outside, RESOLVED_CONF};
use crate::wire::InnerConfig;

/// What has been told to whom.
#[derive(Debug)]
pub(super) struct Names {
    /// Where the client's own resolver listens, if it has one.
    own: Option<SocketAddr>,
    /// Whether systemd-resolved is told, rather than a file written.
    resolved: bool,
    /// What was told last.
    told: Vec<SocketAddr>,
}

impl Names {
    /// Finds out whom to tell; a client that has a local resolver has names asked there.
    ///
    /// # Errors
    /// The local resolver has a port that a file has no word for.
    pub(super) fn new(config: &ClientConfig) -> Result<Self, NamesError> {
        let resolved = serves_resolv_conf(Path::new(RESOLV_CONF)) && has_resolvectl();
        let own = config.dns.listen.map(reachable);
        if let Some(own) = own
            && own.port() != DNS_PORT
            && !resolved
        {
            return Err(NamesError::Port { address: own });
        }
        Ok(Self {
            own,
            resolved,
            told: Vec::new(),
        })
    }

    /// Whom the host is to ask after `inner`.
    pub(super) fn servers(&self, inner: &InnerConfig) -> Vec<IpAddr> {
        match self.own {
            Some(own) => vec![own.ip()],
            None => inner.dns.clone(),
        }
    }

    /// Has the host ask through the tunnel.
    ///
    /// # Errors
    /// It cannot be told.
    pub(super) async fn follow(
        &mut self,
        changes: &mut HostChanges,
        outside: &Outside,
        interface: &str,
        inner: &InnerConfig,
    ) -> Result<(), HostError> {
        let servers = match self.own {
            Some(own) => vec![own],
            None => (inner.dns.iter())
                .map(|ip| SocketAddr::new(*ip, DNS_PORT))
                .collect(),
        };
        if servers.is_empty() {
            warn!(
                "the server names no name server: the host goes on asking its own, perhaps outside the tunnel; set `dns:`"
            );
            return changes.former_name_servers();
        }
        let ips: Vec<IpAddr> = servers.iter().map(SocketAddr::ip).collect();
        if self.resolved && !serves_resolv_conf(Path::new(RESOLV_CONF)) {
            warn!("{RESOLV_CONF} leads past systemd-resolved now: it is replaced");
            self.resolved = false;
        }
        if self.resolved {
            if self.told != servers {
                match tell_resolved(interface, &servers).await {
                    Ok(()) => {
                        outside.set_name_servers(RESOLVED_CONF.into(), ips);
                        self.told = servers;
                        return Ok(());
                    }
                    Err(error) => {
                        warn!(%error, "systemd-resolved cannot be told of the tunnel's name servers; {RESOLV_CONF} is written instead");
                        self.resolved = false;
                    }
                }
            } else {
                return Ok(());
            }
        }
        let original = changes.name_servers(Path::new(RESOLV_CONF), &ips)?;
        outside.set_name_servers(crate::io::outside::host_file(&original), ips);
        if self.told != servers {
            info!(file = RESOLV_CONF, "names are asked through the tunnel");
            self.told = servers;
        }
        Ok(())
    }
}

/// Why the host cannot be told whom to ask.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamesError {
    /// A file has no word for ports.
    #[error(
        "the host is to ask the local resolver, and {RESOLV_CONF} knows no ports but 53: set `dns: {}:53`, or `tun: {{dns: false}}`", address.ip()
    )]
    Port {
        /// Where it listens.
        address: SocketAddr,
    },
}

/// Where programs of this host reach what listens at `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Whether systemd-resolved is who answers there (systemd-resolved.service(8), "/etc/resolv.conf").
fn serves_resolv_conf(path: &Path) -> bool {
    path.canonicalize()
        .is_ok_and(|target| target.starts_with("/run/systemd/resolve"))
}

fn has_resolvectl() -> bool {
    let mut command = Command::new(RESOLVECTL);
    let quiet = command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    quiet
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Gives the link its name servers and all names; they end with it.
async fn tell_resolved(interface: &str, servers: &[SocketAddr]) -> io::Result<()> {
    for arguments in resolvectl(interface, servers) {
        let shown = format!("{RESOLVECTL} {}", arguments.join(" "));
        let run = spawn_blocking(move || {
            let mut command = Command::new(RESOLVECTL);
            command.args(&arguments).stdin(Stdio::null()).output()
        });
        let output = match timeout(RESOLVECTL_LIMIT, run).await {
            Ok(Ok(output)) => output?,
            Ok(Err(error)) => return Err(io::Error::other(error)),
            Err(_elapsed) => return Err(io::Error::other(format!("{shown}: no end in time"))),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("{shown}: {}", said.trim())));
        }
    }
    Ok(())
}

/// What resolvectl(1) is told: the servers of the link, that they are for all names, and that it is asked first.
fn resolvectl(interface: &str, servers: &[SocketAddr]) -> Vec<Vec<String>> {
    let servers = servers.iter().map(|server| match server.port() {
        DNS_PORT => server.ip().to_string(),
        _ => server.to_string(),
    });
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    vec![
        words(&["dns", interface])
            .into_iter()
            .chain(servers)
            .collect(),
        words(&["domain", interface, "~."]),
        words(&["default-route", interface, "true"]),
        words(&["flush-caches"]),
    ]
}

const RESOLVECTL: &str = "resolvectl";

/// Far longer than it takes where systemd-resolved runs.
const RESOLVECTL_LIMIT: Duration = Duration::from_secs(5);

/// RFC 1035, section 4.2.
const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_is_told_servers_with_ports_and_all_names() {
        let servers = [
            "10.86.0.1:53".parse().unwrap(),
            "127.0.0.1:5353".parse().unwrap(),
        ];
        let told: Vec<String> = (resolvectl("adit0", &servers).iter())
            .map(|words| words.join(" "))
            .collect();
        assert_eq!(
            told,
            [
                "dns adit0 10.86.0.1 127.0.0.1:5353",
                "domain adit0 ~.",
                "default-route adit0 true",
                "flush-caches"
            ]
        );
    }

    #[test]
    fn resolver_that_listens_everywhere_is_asked_on_loopback() {
        let is = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(is("0.0.0.0:53"), "127.0.0.1:53");
        assert_eq!(is("[::]:53"), "[::1]:53");
        assert_eq!(is("127.0.0.54:53"), "127.0.0.54:53");
    }
}
