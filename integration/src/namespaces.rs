//! Where a test's sockets and programs live: this machine, or one host of a lab of network namespaces.
//!
//! ```text
//!   client ─────────────── server ─────────────── internet
//!      c0   10.77.1.0/24   s0  s1   11.0.0.0/24   i0        counts as public
//!           fd77:1::/64             2600:1f00::/64          counts as public
//!                                   10.77.2.0/24            private: needs `allow:`
//!                                   fd77:2::/64             private: needs `allow:`
//!      .1                  .2  .1                 .2
//! ```
//!
//! The client has no route to the Internet host, and the Internet host none to the client: a tunnel that does not
//! carry the traffic cannot seem to work. The server host forwards nothing until told to.
//!
//! With [`Lab::over`] a router stands between client and server, a bridge whose two ports are shaped by `tc netem`:
//!
//! ```text
//!   client ──────── router ──────── server ───────── internet
//!      c0 ──── r0 ══ br0 ══ r1 ──── s0  s1
//! ```
//!
//! A host is a process that does nothing in a network and a mount namespace of its own. It ends when this process does,
//! or when the `Host` is dropped, and the namespaces go with it: they have no name, so that several labs run side by
//! side and nothing is left to clean.

use std::{
    fs::{self, File},
    future::Future,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    link::{Link, WireLink, without_offload},
    process::{self, Finished},
};

/// A place where sockets are opened and programs are run.
#[derive(Clone, Debug)]
pub struct Place(Option<Arc<Host>>);

/// The three hosts of a lab.
#[derive(Debug)]
pub struct Lab {
    /// Where the client runs.
    pub client: Place,
    /// Where the server runs.
    pub server: Place,
    /// Where the origins are.
    pub internet: Place,
    /// What stands between client and server in a lab with a link.
    pub router: Option<Place>,
    /// The link in it, where this process emulates it.
    pub wire: Option<WireLink>,
}

/// One host: a process that holds namespaces open.
#[derive(Debug)]
struct Host {
    name: &'static str,
    holder: Child,
    network: File,
    mounts: File,
    folder: tempfile::TempDir,
}

impl Place {
    /// This machine, as it is.
    pub fn here() -> Self {
        Self(None)
    }

    /// A host with nothing but itself: no link leads to or from it.
    ///
    /// # Panics
    ///
    /// If it is refused; see [`crate::skip::Need::Root`].
    pub fn alone(name: &'static str) -> Self {
        Self(Some(Arc::new(Host::new(name))))
    }

    /// A command that will run in this place.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(host) = &self.0 {
            process::run_inside(
                &mut command,
                host.network.as_raw_fd(),
                host.mounts.as_raw_fd(),
            );
        }
        command
    }

    /// Runs a command line, split at blanks, to its end in this place, and returns what it printed.
    ///
    /// # Panics
    ///
    /// If it fails or takes longer than 30 s.
    pub fn run(&self, line: &str) -> String {
        let finished = self.try_run(line);
        assert!(
            finished.status.success(),
            "{} on {}: {}",
            line,
            self.name(),
            finished.text().trim()
        );
        finished.stdout
    }

    /// Runs a command line, split at blanks, to its end in this place, whether it succeeds or not.
    ///
    /// # Panics
    ///
    /// If it cannot be started or takes longer than 30 s.
    pub fn try_run(&self, line: &str) -> Finished {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line names a program");
        let mut command = self.command(program);
        command.args(words);
        process::run(command, COMMAND_LIMIT)
    }

    /// Runs a shell script to its end in this place and returns what it printed.
    ///
    /// # Panics
    ///
    /// If it fails or takes longer than 30 s.
    pub fn shell(&self, script: &str) -> String {
        let mut command = self.command("sh");
        command.args(["-ec", script]);
        let finished = process::run(command, COMMAND_LIMIT);
        assert!(
            finished.status.success(),
            "{} on {}: {}",
            script,
            self.name(),
            finished.text().trim()
        );
        finished.stdout
    }

    /// Starts a thread whose sockets are this place's.
    ///
    /// # Panics
    ///
    /// In the thread, if the namespace cannot be entered.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let host = self.0.clone();
        thread::spawn(move || {
            if let Some(host) = &host {
                process::enter_network(&host.network).expect("root may enter a namespace it made");
            }
            work()
        })
    }

    /// Runs a future to its end on a thread whose sockets are this place's.
    ///
    /// # Panics
    ///
    /// If the future does.
    pub fn block_on<F, T>(&self, make: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let thread = self.spawn(move || runtime().block_on(make()));
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A folder that both the test and the programs of this place see, readable by everyone; `None` on this machine.
    pub fn folder(&self) -> Option<&Path> {
        self.0.as_ref().map(|host| host.folder.path())
    }

    /// Makes `server` the only name server that programs of this place find in /etc/resolv.conf.
    ///
    /// # Panics
    ///
    /// On this machine, whose files are not ours to change.
    pub fn set_resolver(&self, server: IpAddr) {
        let host = self
            .0
            .as_ref()
            .expect("only a host of a lab has a resolver of its own");
        fs::write(
            host.folder.path().join("resolv.conf"),
            format!("nameserver {server}\noptions timeout:2\n"),
        )
        .expect("writes into its own folder");
    }

    /// What this place is called in messages.
    pub fn name(&self) -> &'static str {
        self.0.as_ref().map_or("this machine", |host| host.name)
    }

    /// Loads nftables rules in this place.
    ///
    /// # Panics
    ///
    /// If they are refused.
    pub fn nft(&self, rules: &str) {
        let file = self
            .folder()
            .expect("rules are loaded on hosts of a lab only")
            .join("rules.nft");
        fs::write(&file, rules).expect("writes into its own folder");
        self.run(&format!("nft -f {}", file.display()));
    }

    /// Drops every TCP segment to and from `port` in this place, both ways, silently, until [`Place::mend`].
    pub fn cut(&self, port: u16) {
        self.replace_cut(&format!(
            "table inet cut {{
                chain in {{ type filter hook input priority -300; tcp dport {port} drop; tcp sport {port} drop; }}
                chain out {{ type filter hook output priority -300; tcp dport {port} drop; tcp sport {port} drop; }}
            }}\n"
        ));
    }

    /// Drops every UDP datagram to and from `port` in this place, both ways, silently, until [`Place::mend`].
    pub fn cut_datagrams(&self, port: u16) {
        self.replace_cut(&format!(
            "table inet cut {{
                chain in {{ type filter hook input priority -300; udp dport {port} drop; udp sport {port} drop; }}
                chain out {{ type filter hook output priority -300; udp dport {port} drop; udp sport {port} drop; }}
            }}\n"
        ));
    }

    /// Drops every UDP datagram to `port` that arrives in this place, silently, until [`Place::mend`]; those from it pass.
    pub fn cut_datagrams_to(&self, port: u16) {
        self.replace_cut(&format!(
            "table inet cut {{
                chain in {{ type filter hook input priority -300; udp dport {port} drop; }}
            }}\n"
        ));
    }

    /// Answers every TCP segment that arrives here from or to `port` with a reset, and lets none out, until
    /// [`Place::mend`]: what a middlebox does that ends connections. Connections opened meanwhile are refused.
    pub fn reset(&self, port: u16) {
        self.replace_cut(&format!(
            "table inet cut {{
                chain in {{
                    type filter hook input priority 0;
                    tcp flags & rst == 0 tcp dport {port} reject with tcp reset;
                    tcp flags & rst == 0 tcp sport {port} reject with tcp reset;
                }}
            }}\n"
        ));
    }

    /// Puts this table in the place of the one that is there, with no moment between them.
    fn replace_cut(&self, table: &str) {
        self.nft(&format!(
            "add table inet cut\ndelete table inet cut\n{table}"
        ));
    }

    /// Undoes [`Place::cut`], [`Place::cut_datagrams`], [`Place::cut_datagrams_to`] and [`Place::reset`].
    pub fn mend(&self) {
        self.run("nft delete table inet cut");
    }
}

impl Lab {
    /// Makes the three hosts.
    ///
    /// # Panics
    ///
    /// If something is refused; see [`crate::skip::Need::Root`].
    pub fn new() -> Self {
        Self::make(|_, _| None)
    }

    /// Makes the three hosts, and between client and server a router with this link.
    ///
    /// # Panics
    ///
    /// If something is refused, if the link has knobs that netem has not, or if this kernel has no netem; see
    /// [`crate::netem::run`].
    pub fn over(link: &Link) -> Self {
        Self::make(|client, server| Some((route_over(link, client, server), None)))
    }

    /// The same with the link emulated by a thread of this process: what this kernel's own TCP makes of it, at full
    /// speed, with losses that come from the seed.
    ///
    /// # Panics
    ///
    /// As [`Lab::new`], or if `ethtool` is missing.
    pub fn emulated(link: &Link, seed: u64) -> Self {
        Self::make(|client, server| {
            let router = routed(client, server);
            for device in ["r0", "r1"] {
                router.run(&format!("ip link set {device} up"));
            }
            let wire = WireLink::start(&router, *link, seed, "r0", "r1");
            Some((router, Some(wire)))
        })
    }

    fn make(between: impl FnOnce(&Place, u32) -> Option<(Place, Option<WireLink>)>) -> Self {
        let hosts = ["client", "server", "internet"].map(|name| Arc::new(Host::new(name)));
        let [client, server, internet] = hosts.clone().map(|host| Place(Some(host)));
        let pid = |index: usize| hosts[index].holder.id();
        let (router, wire) = between(&client, pid(1)).unzip();
        let wire = wire.flatten();
        if router.is_none() {
            client.run(&format!(
                "ip link add c0 type veth peer name s0 netns {}",
                pid(1)
            ));
        }
        server.run(&format!(
            "ip link add s1 type veth peer name i0 netns {}",
            pid(2)
        ));
        for (place, device, addresses) in [
            (
                &client,
                "c0",
                [net4(CLIENT4, 24), net6(CLIENT6, 64)].as_slice(),
            ),
            (&server, "s0", &[net4(SERVER4, 24), net6(SERVER6, 64)]),
            (
                &server,
                "s1",
                &[
                    net4(EGRESS4, 24),
                    net6(EGRESS6, 64),
                    "10.77.2.1/24".into(),
                    "fd77:2::1/64".into(),
                ],
            ),
            (
                &internet,
                "i0",
                &[
                    net4(ORIGIN4, 24),
                    net6(ORIGIN6, 64),
                    net4(PRIVATE4, 24),
                    net6(PRIVATE6, 64),
                ],
            ),
        ] {
            for address in addresses {
                // duplicate address detection would keep an IPv6 address unusable for a second
                let more = if address.contains(':') { " nodad" } else { "" };
                place.run(&format!("ip address add {address} dev {device}{more}"));
            }
            place.run(&format!("ip link set {device} up"));
        }
        for place in [&client, &server, &internet] {
            place.run("ip link set lo up");
        }
        // by route and not by sysctl: a namespace may only take what the machine allows to everyone
        for (place, device, prefixes) in [
            (&client, "c0", ["10.77.1.0/24", "fd77:1::/64"].as_slice()),
            (&server, "s0", &["10.77.1.0/24", "fd77:1::/64"]),
            (
                &server,
                "s1",
                &[
                    "11.0.0.0/24",
                    "10.77.2.0/24",
                    "2600:1f00::/64",
                    "fd77:2::/64",
                ],
            ),
            (
                &internet,
                "i0",
                &[
                    "11.0.0.0/24",
                    "10.77.2.0/24",
                    "2600:1f00::/64",
                    "fd77:2::/64",
                ],
            ),
        ] {
            for prefix in prefixes {
                let metric = if prefix.contains(':') {
                    " metric 256"
                } else {
                    ""
                };
                place.run(&format!("ip route change {prefix} dev {device} proto kernel scope link{metric} congctl cubic"));
            }
        }
        // the server's way out, so that it has a default route as servers do
        server.run(&format!("ip route add default via {ORIGIN4}"));
        server.run(&format!("ip -6 route add default via {ORIGIN6}"));
        if router.is_some() {
            // the router must see packets, not super-packets, or netem would lose 64 KiB at a time
            client.run("ip link set c0 gso_max_segs 1");
            server.run("ip link set s0 gso_max_segs 1");
            // while a lost question for an address waits to be asked again, the kernel drops most of what is sent
            knows(
                &client,
                "c0",
                &server,
                "s0",
                [SERVER4.into(), SERVER6.into()],
            );
            knows(
                &server,
                "s0",
                &client,
                "c0",
                [CLIENT4.into(), CLIENT6.into()],
            );
        }
        if wire.is_some() {
            without_offload(&client, "c0");
            without_offload(&server, "s0");
        }
        Self {
            client,
            server,
            internet,
            router,
            wire,
        }
    }
}

/// Makes the router and joins it to the client and the server's process.
fn routed(client: &Place, server_pid: u32) -> Place {
    let host = Arc::new(Host::new("router"));
    let router_pid = host.holder.id();
    let router = Place(Some(host));
    client.run(&format!(
        "ip link add c0 type veth peer name r0 netns {router_pid}"
    ));
    router.run(&format!(
        "ip link add r1 type veth peer name s0 netns {server_pid}"
    ));
    router
}

/// Tells a host at which link address another has its addresses.
fn knows(place: &Place, device: &str, other: &Place, its: &str, addresses: [IpAddr; 2]) {
    let link = other.shell(&format!("cat /sys/class/net/{its}/address"));
    for address in addresses {
        place.run(&format!(
            "ip neigh replace {address} lladdr {} dev {device} nud permanent",
            link.trim()
        ));
    }
}

/// The same with a link that the kernel shapes.
fn route_over(link: &Link, client: &Place, server_pid: u32) -> Place {
    let router = routed(client, server_pid);
    router.run("ip link add br0 type bridge");
    let (up, down) = link.netem_arguments();
    // what a port sends is shaped: the uplink leaves by r1, the downlink by r0
    for (device, path) in [("r1", up), ("r0", down)] {
        assert!(
            path.left_out.is_empty(),
            "netem cannot do {:?}",
            path.left_out
        );
        router.run(&format!("ip link set {device} master br0 up"));
        router.run(&format!("tc qdisc add dev {device} root {path}"));
    }
    router.run("ip link set br0 up");
    router
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    fn new(name: &'static str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("adit-host.")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("a folder for temporary files");
        let resolv = folder.path().join("resolv.conf");
        fs::write(&resolv, "").expect("writes into its own folder");
        let mut command = Command::new("sh");
        process::run_unshared(&mut command);
        // /sys must show the devices of the new namespace; a resolv.conf that is a link is replaced where it leads
        let script = format!(
            "mount -t sysfs sysfs /sys
             mount --bind {} \"$(readlink -f /etc/resolv.conf)\"
             echo up > {}
             exec cat",
            resolv.display(),
            folder.path().join("up").display()
        );
        command
            .args(["-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let holder = process::fork(command, Vec::new()).expect("root may make namespaces");
        let deadline = Instant::now() + COMMAND_LIMIT;
        while !fs::read(folder.path().join("up")).is_ok_and(|text| text == b"up\n") {
            assert!(
                Instant::now() < deadline,
                "the namespaces of {name} were not ready in time"
            );
            thread::sleep(Duration::from_millis(2));
        }
        let open = |kind| {
            File::open(format!("/proc/{}/ns/{kind}", holder.id())).expect("the holder lives")
        };
        Self {
            name,
            network: open("net"),
            mounts: open("mnt"),
            holder,
            folder,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // the holder reads until its input ends
        if let Some(mut input) = self.holder.stdin.take() {
            let _ = input.flush();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The runtime of one thread: what it opens belongs to the namespace that the thread is in.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

fn net4(address: Ipv4Addr, prefix: u8) -> String {
    format!("{address}/{prefix}")
}

fn net6(address: Ipv6Addr, prefix: u8) -> String {
    format!("{address}/{prefix}")
}

/// The client host.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
/// The client host.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);
/// The server host, as the client sees it.
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
/// The server host, as the client sees it.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2);
/// The server host, as the Internet sees it.
pub const EGRESS4: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
/// The server host, as the Internet sees it.
pub const EGRESS6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f00, 0, 0, 0, 0, 0, 1);
/// The Internet host, in address space that is really public; documentation prefixes would not count as such.
pub const ORIGIN4: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 2);
/// The Internet host, in address space that is really public.
pub const ORIGIN6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1f00, 0, 0, 0, 0, 0, 2);
/// The Internet host under an address that clients may reach only by `allow:`.
pub const PRIVATE4: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
/// The Internet host under an address that clients may reach only by `allow:`.
pub const PRIVATE6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2);

/// Far beyond what any command here needs, also on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
