//! What the scenes of many tests have in common: a server and its one client in a lab, and an Internet to reach.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{
    adit::{ClientConfig, ServerConfig, User, Workdir},
    dns::{Dns, Zone},
    meters,
    namespaces::{Lab, ORIGIN4, ORIGIN6, Place},
    origin::Origin,
};

/// The configurations of a server and of the one client that it knows, as `laptop`.
#[derive(Debug)]
pub struct Couple {
    /// The server's file.
    pub server: PathBuf,
    /// The client's.
    pub client: PathBuf,
}

impl Couple {
    /// Writes them and their keys. `users` are whoever runs the server and the client; keys and names are put in.
    pub fn write(
        workdir: &Workdir,
        users: [User; 2],
        server: ServerConfig,
        client: ClientConfig,
    ) -> Self {
        let server_key = workdir.key("server.key", users[0]);
        let client_key = workdir.key("client.key", users[1]);
        let server = ServerConfig {
            clients: vec![("laptop".into(), client_key.public.clone())],
            ..server
        };
        let client = ClientConfig {
            server_key: server_key.public.clone(),
            ..client
        };
        Self {
            server: workdir.server("server.yaml", &server_key, users[0], &server),
            client: workdir.client("client.yaml", &client_key, &client),
        }
    }
}

/// The Internet of a lab: a name server that the server's host asks, and a web server of either family.
#[derive(Debug)]
pub struct Internet {
    /// At [`ORIGIN4`]; it knows `both.example`, `four.example`, and what a test adds.
    pub dns: Dns,
    /// At [`ORIGIN4`].
    pub four: Origin,
    /// At [`ORIGIN6`].
    pub six: Origin,
}

impl Internet {
    /// Sets it up in `lab`, with what `more` adds to its zone.
    pub fn of(lab: &Lab, more: impl FnOnce(Zone) -> Zone) -> Self {
        let zone = Zone::new()
            .address("both.example", 60, ORIGIN4)
            .address("both.example", 60, ORIGIN6)
            .address("four.example", 60, ORIGIN4);
        let dns = Dns::start(&lab.internet, (ORIGIN4, 53).into(), more(zone));
        lab.server.set_resolver(ORIGIN4.into());
        Self {
            dns,
            four: Origin::http(&lab.internet, (ORIGIN4, 80).into()),
            six: Origin::http(&lab.internet, (ORIGIN6, 80).into()),
        }
    }
}

/// Lets everybody of a host open a TUN device, as distributions ship it; some machines let nobody else.
pub fn open_tun(place: &Place) {
    place.shell("mount -t tmpfs tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200");
}

/// Waits until something is so.
///
/// # Panics
///
/// If it is not within `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let so = meters::wait_for(limit, || done().then_some(()));
    assert!(so.is_some(), "{what}: not in {limit:?}");
}

/// Where the proxy of a client in a lab listens.
pub const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);
