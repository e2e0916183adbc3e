//! Looks at a server: what a start would refuse, and what this host gives it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::{Access, access};

use super::clock::{self as clocks, Clock, FarEnd};
use super::finding::{Check, Finding};
use super::host::{self, Descriptors, Filter, Situation};
use crate::config::{EgressKind, Scheme, ServerConfig};
use crate::io::limits::most_open_files;
use crate::io::privilege::administers_network;
use crate::io::tls::{Certificate, ServerTls};
use crate::io::udp::SOCKET_BUFFER;
use crate::io::{clock, listen, nft, sysctl, tun};
use crate::server::egress::echo;
use crate::server::enrolment::Enrolment;

/// What a server of the configuration that runs says of its descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Open ones.
    pub open: u64,
    /// How many may be.
    pub most: u64,
}

/// Looks at a server of this configuration, which may run; each finding is told as it is made.
pub fn examine(config: &ServerConfig, running: Option<Running>, tell: &mut impl FnMut(Finding)) {
    let situation = Situation {
        running: running.is_some(),
        administers: administers_network(),
    };
    let folder = &config.state_dir;
    let there = folder.is_dir();
    tell(host::state(folder, there, writable(folder), situation));
    let enrolled = Enrolment::look(folder);
    tell(host::clients(config.clients.len(), enrolled));
    ports(config, situation, tell);
    certificate(config, tell);
    tell(clocks::judge(&Clock {
        now: clock::unix(),
        in_step: clock::in_step(),
        far: FarEnd::None,
        certificates: false,
    }));
    match config.egress {
        EgressKind::User => {
            let why = "the egress `user` needs none";
            for check in [
                Check::Tun,
                Check::Forwarding,
                Check::Nftables,
                Check::Conntrack,
            ] {
                tell(Finding::skipped(check, why));
            }
            tell(host::ping(echo::permitted()));
        }
        EgressKind::Tun => egress(config, situation, tell),
    }
    tell(host::descriptors(Descriptors {
        open: running.map(|running| running.open),
        most: running.map_or_else(most_open_files, |running| Some(running.most)),
        sessions: config.max_clients.into(),
        flows: config.egress == EgressKind::User,
    }));
    if config.listen.iter().any(|at| !at.scheme.is_stream()) {
        for (name, key) in [
            ("net.core.rmem_max", "net/core/rmem_max"),
            ("net.core.wmem_max", "net/core/wmem_max"),
        ] {
            tell(host::buffers(name, number(key), SOCKET_BUFFER as u64));
        }
    }
}

fn ports(config: &ServerConfig, situation: Situation, tell: &mut impl FnMut(Finding)) {
    for at in &config.listen {
        let same = |other: &&crate::config::ListenAddr| {
            other.scheme.is_stream() == at.scheme.is_stream() && other.address != at.address
        };
        let siblings: Vec<SocketAddr> = (config.listen.iter().filter(same))
            .map(|other| other.address)
            .collect();
        let datagrams = at.scheme == Scheme::Udp;
        let free = listen::look(at.address, datagrams, &siblings);
        let shown = format!("{}://{}", at.scheme.as_str(), at.address);
        tell(host::port(&shown, free, situation));
    }
}

fn certificate(config: &ServerConfig, tell: &mut impl FnMut(Finding)) {
    if !config.listen.iter().any(|at| at.scheme.is_tls()) {
        return;
    }
    let wrong = |error: &dyn std::fmt::Display| {
        let next =
            "correct `tls`: a chain with the server's certificate first, and its key, both PEM";
        Finding::failed(Check::Certificate, error.to_string(), next)
    };
    let chain = match &config.tls {
        Some(files) => {
            let usable = Certificate::from_files(&files.certificate, &files.key)
                .map_err(|error| wrong(&error))
                .and_then(|both| ServerTls::new(both).map_err(|error| wrong(&error)));
            if let Err(finding) = usable {
                return tell(finding);
            }
            files.certificate.clone()
        }
        None => Certificate::kept_chain(&config.state_dir),
    };
    if config.tls.is_none() && !matches!(chain.try_exists(), Ok(true)) {
        let why = "one is made at the first start, or is not to be seen by this user";
        return tell(Finding::skipped(Check::Certificate, why));
    }
    tell(match Certificate::validity(&chain) {
        Ok(dates) => host::certificate(&chain, dates, clock::unix()),
        Err(error) => wrong(&error),
    });
}

fn egress(config: &ServerConfig, situation: Situation, tell: &mut impl FnMut(Finding)) {
    let name = &config.tun.name;
    let (v4, v6) = (config.network.is_some(), config.network6.is_some());
    tell(host::tun(
        name,
        tun::look(Path::new(tun::DEVICE)),
        situation,
    ));
    match sysctl::switches(v4, v6 && sysctl::has_ipv6()) {
        Ok(switches) => {
            for switch in &switches {
                tell(host::forwarding(switch, situation));
            }
        }
        Err(error) => tell(Finding::skipped(
            Check::Forwarding,
            format!("the kernel does not tell: {error}"),
        )),
    }
    if v6 && !sysctl::has_ipv6() {
        tell(Finding::warning(
            Check::Forwarding,
            "this host has no IPv6: clients get IPv4 only",
            "set `network6: off`, or net.ipv6.conf.all.disable_ipv6=0 where that keeps it away",
        ));
    }
    let filter = nft::obstacles(name, v4, v6).and_then(|obstacles| {
        Ok(Filter {
            own: nft::is_loaded(name)?,
            obstacles: obstacles.iter().map(ToString::to_string).collect(),
        })
    });
    for finding in host::nftables(filter, situation) {
        tell(finding);
    }
    let count = number("net/netfilter/nf_conntrack_count");
    tell(host::conntrack(
        count,
        number("net/netfilter/nf_conntrack_max"),
    ));
    tell(Finding::skipped(
        Check::Ping,
        "the kernel forwards clients' pings as any other packet",
    ));
}

/// Whether this user may write to the folder, or make it.
fn writable(folder: &Path) -> bool {
    let nearest = folder.ancestors().find(|at| at.exists());
    let nearest = match nearest {
        Some(at) if !at.as_os_str().is_empty() => at,
        Some(_) | None => Path::new("."),
    };
    access(nearest, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// A number below /proc/sys.
fn number(key: &str) -> Option<u64> {
    let read: io::Result<String> = fs::read_to_string(Path::new("/proc/sys").join(key));
    read.ok()?.trim().parse().ok()
}
