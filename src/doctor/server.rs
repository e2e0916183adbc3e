//! Looks at a server: what a start would refuse, and what this host gives it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::{Access, access};

use super::clock::{self as clocks, Clock, FarEnd};
use super::finding::{Check, Finding};
use super::host::{self, Descriptors, Device, Filter, Situation};
use super::program::Program;
use super::running::{Held, Running, Wants};
use crate::config::{EgressKind, Kind, ListenAddr, Scheme, ServerConfig};
use crate::io::journal::network;
use crate::io::limits::most_open_files;
use crate::io::privilege::administers_network;
use crate::io::tls::{Certificate, ServerTls};
use crate::io::udp::SOCKET_BUFFER;
use crate::io::{clock, listen, nft, sysctl, tun};
use crate::server::control;
use crate::server::egress::echo;
use crate::server::enrolment::Enrolment;
use crate::status::{Port, Uses, whole};

/// What a server with this configuration, of this file, wants of its host.
pub fn wants(config: &ServerConfig, file: Option<&Path>) -> Wants {
    let port = |at: &ListenAddr| Port {
        address: at.address,
        datagrams: at.scheme == Scheme::Udp,
    };
    Wants {
        kind: Kind::Server,
        sockets: control::place(config).paths().to_vec(),
        uses: Uses {
            file: file.map(whole),
            state_dir: Some(whole(&config.state_dir)),
            tun: (config.egress == EgressKind::Tun).then(|| config.tun.name.clone()),
            listens: config.listen.iter().map(port).collect(),
            network: network(),
            kill_switch: false,
        },
    }
}

/// Looks at a server of this configuration, beside the programs that run; each finding is told as it is made.
pub fn examine(config: &ServerConfig, running: &Running, tell: &mut impl FnMut(Finding)) {
    let folder = &whole(&config.state_dir);
    let held = running.of_state(folder);
    tell(host::state(folder, folder.is_dir(), writable(folder), held));
    let enrolled = Enrolment::look(folder);
    tell(host::clients(config.clients.len(), enrolled));
    ports(config, running, tell);
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
        EgressKind::Tun => egress(config, running, tell),
    }
    let open = running.own().and_then(|own| own.descriptors);
    tell(host::descriptors(Descriptors {
        open: open.map(|(open, _)| open),
        most: open.map_or_else(most_open_files, |(_, most)| Some(most)),
        sessions: config.max_clients.into(),
        flows: config.egress == EgressKind::User,
    }));
    if config.listen.iter().any(|at| !at.scheme.is_stream()) {
        buffers(tell);
    }
}

/// Looks at what can be seen of a server without its configuration.
pub fn examine_unwritten(server: &Program, tell: &mut impl FnMut(Finding)) {
    let uses = server.uses.as_ref();
    if let Some(name) = uses.and_then(|uses| uses.tun.as_ref()) {
        let filter = nft::is_loaded(name).map(|own| Filter {
            own,
            obstacles: Vec::new(),
        });
        let situation = Situation {
            running: true,
            administers: administers_network(),
        };
        host::nftables(filter, situation)
            .into_iter()
            .for_each(&mut *tell);
        tell(conntrack());
        tell(backlog());
    }
    if let Some((open, most)) = server.descriptors {
        tell(host::descriptors(Descriptors {
            open: Some(open),
            most: Some(most),
            // How many there may be is not known; those that there are have theirs.
            sessions: 0,
            flows: false,
        }));
    }
    // Without a device it lets packets out by sockets; what those may do, its own network namespace says.
    if uses.is_some_and(|uses| uses.tun.is_none()) {
        let here = uses.is_some_and(|uses| uses.network == network());
        tell(if here {
            host::ping(echo::permitted())
        } else {
            let why = "the server is in another network namespace, and says so in its log where it cannot send clients' pings";
            Finding::skipped(Check::Ping, why)
        });
    }
    if uses.is_some_and(|uses| uses.listens.iter().any(|port| port.datagrams)) {
        buffers(tell);
    }
}

fn buffers(tell: &mut impl FnMut(Finding)) {
    for (name, key) in [
        ("net.core.rmem_max", "net/core/rmem_max"),
        ("net.core.wmem_max", "net/core/wmem_max"),
    ] {
        tell(host::buffers(name, number(key), SOCKET_BUFFER as u64));
    }
}

fn conntrack() -> Finding {
    let count = number("net/netfilter/nf_conntrack_count");
    host::conntrack(count, number("net/netfilter/nf_conntrack_max"))
}

fn backlog() -> Finding {
    let stat = fs::read_to_string("/proc/net/softnet_stat").ok();
    host::backlog(stat.as_deref(), number("net/core/netdev_max_backlog"))
}

fn ports(config: &ServerConfig, running: &Running, tell: &mut impl FnMut(Finding)) {
    for at in &config.listen {
        let same = |other: &&ListenAddr| {
            other.scheme.is_stream() == at.scheme.is_stream() && other.address != at.address
        };
        let siblings: Vec<SocketAddr> = (config.listen.iter().filter(same))
            .map(|other| other.address)
            .collect();
        let datagrams = at.scheme == Scheme::Udp;
        let free = listen::look(at.address, datagrams, &siblings);
        let port = Port {
            address: at.address,
            datagrams,
        };
        let shown = format!("{}://{}", at.scheme.as_str(), at.address);
        let own_runs = running.own().is_some();
        tell(host::port(free, running.of_port(port), own_runs).about(shown));
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

fn egress(config: &ServerConfig, running: &Running, tell: &mut impl FnMut(Finding)) {
    let name = &config.tun.name;
    let held = running.of_tun(name);
    let situation = Situation {
        running: held == Held::Own,
        administers: administers_network(),
    };
    let (v4, v6) = (config.network.is_some(), config.network6.is_some());
    let device = Device {
        name,
        node: tun::look(Path::new(tun::DEVICE)),
        there: tun::exists(name),
        held,
    };
    tell(host::tun(device, situation.administers));
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
    tell(conntrack());
    tell(backlog());
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
