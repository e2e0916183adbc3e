//! A lab with a server, and a client host that has a way out of its own.

use std::path::PathBuf;

use adit_integration::{
    adit::{Adit, ClientConfig, ServerConfig, User, Workdir, path},
    dns::Dns,
    namespaces::{Lab, SERVER4, SERVER6},
    origin::Origin,
    process::{self, Finished},
    scene::{Couple, Internet},
};

use crate::{PORT, SOON, wait_for};

/// A lab with a server, and a client host whose own way to the Internet leads nowhere, and is watched.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    _server: Adit,
    pub(crate) client_config: PathBuf,
    pub(crate) workdir: Workdir,
    pub(crate) dns: Dns,
    pub(crate) four: Origin,
    pub(crate) six: Origin,
}

impl Scene {
    /// `lane` is where the server is reached, `more` are further lines of the client's configuration.
    pub(crate) fn new(lane: &str, more: &str) -> Self {
        Self::with(lane, more, ServerConfig::tun_egress())
    }

    pub(crate) fn with(lane: &str, more: &str, config: ServerConfig) -> Self {
        let lab = Lab::new();
        let Internet { dns, four, six } = Internet::of(&lab, |zone| zone);
        let workdir = Workdir::new();
        let scheme = lane.split("://").next().expect("a scheme");
        let server = ServerConfig {
            listen: vec![format!("{scheme}://0.0.0.0:{PORT}")],
            ..config
        };
        let client = ClientConfig {
            more: more.to_owned(),
            ..ClientConfig::to(&[lane.to_owned()])
        };
        let files = Couple::write(&workdir, [User::Same; 2], server, client);
        // its own /etc and state folder; a way out by which leaks would leave; a name server that is not the tunnel's
        lab.client.shell(&format!(
            "mkdir {0}/etc; cp -a /etc/. {0}/etc; mount --bind {0}/etc /etc; mount -t tmpfs tmpfs /var/lib
             printf 'nameserver {SERVER4}\\noptions timeout:1 attempts:1\\n' > /etc/resolv.conf
             ip route add default via {SERVER4} dev c0; ip -6 route add default via {SERVER6} dev c0",
            lab.client.folder().expect("a host of the lab").display()
        ));
        // its own link-local addresses are not there at once
        wait_for("duplicates are looked for", || {
            let addresses = lab.client.run("ip -6 address show dev c0 scope link");
            addresses.contains("fe80") && !addresses.contains("tentative")
        });
        let server = workdir.start_server(&lab.server, User::Same, &files.server);
        Self {
            lab,
            _server: server,
            client_config: files.client,
            workdir,
            dns,
            four,
            six,
        }
    }

    pub(crate) fn udp(more: &str) -> Self {
        Self::new(&format!("udp://{SERVER4}:{PORT}"), more)
    }

    /// Starts the client, and returns it when the host goes through the tunnel.
    pub(crate) fn client(&self) -> Adit {
        let mut adit = self.begin();
        adit.expect_ready();
        adit
    }

    /// The inner addresses that the host has.
    pub(crate) fn addresses(&self) -> String {
        let shown = "ip -brief address show dev adit0 scope global";
        self.lab.client.run(shown)
    }

    pub(crate) fn begin(&self) -> Adit {
        self.workdir.start(
            &self.lab.client,
            User::Same,
            "client",
            &[
                "client",
                "--tun",
                "-c",
                path(&self.client_config),
                "--log-level",
                "debug",
            ],
        )
    }

    pub(crate) fn adit(&self, arguments: &[&str]) -> Finished {
        self.workdir.run_as(&self.lab.client, User::Same, arguments)
    }

    /// What a program of the client host sees at the origin; empty if it does not get there.
    pub(crate) fn seen(&self, url: &str) -> String {
        let mut curl = self.lab.client.command("curl");
        curl.args(["-sS", "-m", "15", url]);
        process::run(curl, SOON).stdout
    }

    /// Everything of the client host that a tunnel changes, as it is told byte for byte.
    pub(crate) fn host(&self) -> String {
        self.lab.client.shell(
            "for f in -4 -6; do ip $f rule; ip $f route show table all; done; ip -o link; nft list ruleset
             ls -lai --time-style=full-iso /etc | grep resolv; cat /etc/resolv.conf
             cat /proc/sys/net/ipv4/conf/all/src_valid_mark /proc/sys/net/ipv4/ip_forward",
        )
    }
}
