//! The arguments, as clap reads them, and the settings that flags stand for.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::bench::BenchArgs;
use super::clients::ClientsArgs;
use super::doctor::DoctorArgs;
use super::forward::ForwardArgs;
use super::invite::InviteArgs;
use super::join::JoinArgs;
use super::nc::NcArgs;
use super::orders::{HealthArgs, ReloadArgs};
use super::status::StatusArgs;
use crate::config::{FlagValue, Kind};

/// A VPN whose client needs no root.
#[derive(Debug, Parser)]
#[command(
    name = "adit",
    version,
    about = "A VPN whose client needs no root: a local SOCKS5 and HTTP proxy, carried by one sealed session",
    after_help = "To see it work: adit try\nTo set it up:   adit keygen -o server.key, then adit server -c server.yaml; adit invite NAME there makes a link, adit join LINK a client",
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Args {
    /// What is logged: error, warn, info, debug, trace, off, or directives such as adit::server=debug; the default is info
    #[arg(
        long,
        global = true,
        help_heading = "Options of every command",
        display_order = 900,
        value_name = "LEVEL",
        env = "ADIT_LOG_LEVEL"
    )]
    pub(super) log_level: Option<String>,
    /// How it is logged, on standard error: text, lines for people; json, one object a line
    #[arg(
        long,
        global = true,
        help_heading = "Options of every command",
        display_order = 901,
        value_name = "FORMAT",
        env = "ADIT_LOG_FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub(super) log_format: LogFormat,
    /// Write the ready line to this descriptor too, then close it
    #[arg(
        long,
        global = true,
        help_heading = "Options of every command",
        display_order = 902,
        value_name = "N",
        env = "ADIT_READY_FD"
    )]
    pub(super) ready_fd: Option<RawFd>,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run both ends on this host, to see it work: throw-away keys, no root, nothing to configure
    Try(TryArgs),
    /// Run the server: give clients inner addresses and let their packets out
    Server(ServerArgs),
    /// Run the client: a proxy on this host, whose traffic leaves at the server
    Client(Box<ClientArgs>),
    /// Make a link by which one new client can join, once; to be run beside the server, while it runs
    Invite(InviteArgs),
    /// Become a client by the link of an invitation: make a key, enrol it, write the configuration, run the client
    Join(JoinArgs),
    /// List, revoke and rename the clients of a running server
    Clients(ClientsArgs),
    /// Run one command inside the VPN, without root: all its packets go through the tunnel, or nowhere (Linux)
    Run(RunArgs),
    /// Make a new secret key; with -o write it to a file (0600) and print its public key
    Keygen(KeygenArgs),
    /// Print the public key of a secret key
    Pubkey(PubkeyArgs),
    /// Check a configuration file and all it names, without starting anything
    ///
    /// What is read is the file, the environment and the files that they name. What only a start can find out is
    /// not checked: whether a port is free, whether this user may make a TUN device or write to the state
    /// folder, whether the server answers.
    Check(CheckArgs),
    /// Look at everything that a client or a server needs, and say in plain words what is wrong and what to do about it
    ///
    /// Of a client: names, each way to the server, clock, round trip, loss and its bursts both ways, path MTU, bufferbloat,
    /// and what a session would choose. Of a server: what a start would refuse, and what this host gives it. Nothing is
    /// changed, and it may be run beside the client or server of the same configuration; what it may not look at as this
    /// user is skipped, and told.
    Doctor(DoctorArgs),
    /// Undo what a killed server or client left in the system: routes, rules, firewall tables, sysctls, resolv.conf
    ///
    /// Without arguments, of all whose state folder is where such folders are. One that still runs is left alone: it undoes
    /// its changes when it ends, and the next start does so too.
    Cleanup(CleanupArgs),
    /// Show how the client would answer a name, and why, and which way `rules:` send what goes there
    ///
    /// What records, lists and `split` under `dns:` say of the name, and `rules:` of its addresses, is read from the
    /// configuration, also where no client runs; the answer is that of the local resolver (dns) of the client that runs, if
    /// it has one. Of an address it tells what `rules:` do to it, and asks for its name (PTR).
    Dns(DnsArgs),
    /// Show how a running server or client is: its sessions, lanes, losses and what repaired them
    Status(StatusArgs),
    /// Tell by the exit status whether a running server or client does its work, for health checks
    Health(HealthArgs),
    /// Have a running server or client read its configuration again
    ///
    /// What can be followed is in force at once, and no connection is touched that the change does not concern; what waits
    /// for a restart is named. A configuration that is wrong changes nothing: the mistake is printed, and the exit status
    /// is 1. SIGHUP does the same where the program has no terminal, and SIGUSR1 does anywhere.
    Reload(ReloadArgs),
    /// Add, remove and list forwards of single ports while a client runs
    Forward(ForwardArgs),
    /// Connect standard input and output to a port beyond the server, as ssh's ProxyCommand wants it
    ///
    /// Goes through the client that runs, if one does; else a session is made, by the configuration, for this
    /// connection alone. Its `rules:` hold, as for the proxy: ssh -o ProxyCommand="adit nc -c client.yaml %h %p" intranet.example
    Nc(NcArgs),
    /// Measure: a path with all its parts on this host, any SOCKS5 proxy, or a server with thousands of clients
    Bench(BenchArgs),
    /// Print the completions of a shell, for its folder of them: adit completions bash > /etc/bash_completion.d/adit
    Completions(CompletionsArgs),
    /// Print the manual page, adit man | man -l -, or write that of each command to a folder: adit man --out man1
    Man(ManArgs),
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The arguments of `adit try`.
#[derive(Debug, clap::Args)]
pub struct TryArgs {
    /// Where the proxy listens; on loopback only
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "ADIT_PROXY",
        default_value = "127.0.0.1:1080"
    )]
    pub(super) proxy: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct ServerArgs {
    /// The configuration file; every key of it but clients has an environment variable too (ADIT_LISTEN for listen)
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Accept lanes here; may be given several times
    #[arg(long, value_name = "SCHEME://ADDRESS:PORT[/PATH]")]
    listen: Vec<String>,
    /// The file of the server's secret key; may be given several times, the newest first
    #[arg(long, value_name = "FILE")]
    key_file: Vec<String>,
    /// The pool of inner IPv4 addresses, or off
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// The pool of inner IPv6 addresses, or off
    #[arg(long, value_name = "NETWORK")]
    network6: Option<String>,
    /// Where packets leave: tun or user
    #[arg(long, value_name = "EGRESS")]
    egress: Option<String>,
    /// The name of the TUN device
    #[arg(long, value_name = "NAME")]
    tun_name: Option<String>,
    /// The inner MTU in bytes
    #[arg(long, value_name = "BYTES")]
    mtu: Option<String>,
    /// A network that clients may reach beside the public Internet; may be given several times
    #[arg(long, value_name = "NETWORK")]
    allow: Vec<String>,
    /// Where clients reach this server, for the links of invitations; may be given several times
    #[arg(long, value_name = "SCHEME://HOST:PORT[/PATH]")]
    public: Vec<String>,
    /// A resolver to ask instead of the host's; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// The folder of what outlives the process
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<String>,
    /// Where the running server takes orders (adit status): a path, or off
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
    /// Where metrics and health are served, on loopback
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<String>,
    #[command(flatten)]
    process: ProcessArgs,
}

/// What both programs do before they serve.
#[derive(Debug, clap::Args)]
struct ProcessArgs {
    /// Whom it becomes where root has started it, keeping only the rights that it serves with
    #[arg(long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Make the secret key where its file is not there, and print its public key
    #[arg(long)]
    generate_key: bool,
}

impl ProcessArgs {
    /// The settings that were given as flags.
    fn settings(&self) -> impl Iterator<Item = FlagValue> {
        [
            flag("user", "--user", self.user.as_slice()),
            switch("generate_key", "--generate-key", self.generate_key),
        ]
        .into_iter()
        .flatten()
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ClientArgs {
    /// The configuration file; every key of it has an environment variable too (ADIT_SERVER for server). Without, what
    /// `adit join` has written
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Where the server is reached; may be given several times, tried in turn
    #[arg(long, value_name = "SCHEME://HOST:PORT[/PATH]")]
    server: Vec<String>,
    /// The server's public key
    #[arg(long, value_name = "KEY")]
    server_key: Option<String>,
    /// The file of the client's secret key
    #[arg(long, value_name = "FILE")]
    key_file: Option<String>,
    /// The file of a secret shared with the server, beside the keys
    #[arg(long, value_name = "FILE")]
    preshared_key_file: Option<String>,
    /// Where the proxy listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    proxy: Option<String>,
    /// The user name that the proxy asks for
    #[arg(long, value_name = "NAME")]
    proxy_user: Option<String>,
    /// The file of the password that the proxy asks for
    #[arg(long, value_name = "FILE")]
    proxy_password_file: Option<String>,
    /// Listen beyond this host without a password
    #[arg(long)]
    proxy_open: bool,
    /// The proxy through which the server is reached: a URL, env for what HTTPS_PROXY or ALL_PROXY says, or off
    #[arg(long, value_name = "URL")]
    via: Option<String>,
    /// The file of the password that this proxy asks for
    #[arg(long, value_name = "FILE")]
    via_password_file: Option<String>,
    /// Where requests of the proxy go, the first that fits decides: `direct 192.168.0.0/16`, `block *.ads.example`;
    /// may be given several times
    #[arg(long, value_name = "RULE")]
    rule: Vec<String>,
    /// Where the local resolver listens, UDP and TCP, whose answers come through the tunnel
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Option<String>,
    /// A name server to ask through the tunnel instead of the server's: 9.9.9.9, tls://…, https://…; may be given several times
    #[arg(long, value_name = "UPSTREAM")]
    dns_upstream: Vec<String>,
    /// How long one attempt to connect may take
    #[arg(long, value_name = "DURATION")]
    connect_timeout: Option<String>,
    /// How many connections to a tcp://, tls:// or wss:// server carry the session side by side
    #[arg(long, value_name = "NUMBER")]
    lanes: Option<String>,
    /// How losses of what is sent by udp:// are repaired: auto, off, fixed or fixed:20%
    #[arg(long, value_name = "MODE")]
    repair: Option<String>,
    /// A port here, or unix:/path, that leads to a host beyond the server, beside those of the file; may be given several times
    #[arg(
        short = 'L',
        long = "local-forward",
        value_name = "[ADDRESS:]PORT:HOST:PORT[/udp]"
    )]
    local_forward: Vec<String>,
    /// A port of the inner address that leads to a host near here, or to unix:/path, beside those of the file; may be given
    /// several times
    #[arg(
        short = 'R',
        long = "remote-forward",
        value_name = "PORT:HOST:PORT[/udp]"
    )]
    remote_forward: Vec<String>,
    /// Lead the whole host through the tunnel by a TUN device, not only what asks the proxy; needs CAP_NET_ADMIN (Linux)
    #[arg(long)]
    tun: bool,
    /// With --tun: lead these networks alone; may be given several times
    #[arg(long, value_name = "NETWORK")]
    tun_route: Vec<String>,
    /// With --tun: leave this network outside; may be given several times
    #[arg(long, value_name = "NETWORK")]
    tun_exclude: Vec<String>,
    /// With --tun: let nothing out past the tunnel, also while it is down or after a crash
    #[arg(long)]
    kill_switch: bool,
    /// Where the running client takes orders (adit forward): a path, or off
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
    /// Where metrics and health are served, on loopback
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<String>,
    #[command(flatten)]
    process: ProcessArgs,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: that of the command; 125 if adit itself failed before it or was used wrongly, 126 if the command cannot be run, 127 if there is none of that name.\nThe level of the log is warn by default here."
)]
pub(super) struct RunArgs {
    /// The configuration file of a client; every key of it has an environment variable too (ADIT_SERVER for server). Without,
    /// what `adit join` has written
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Join a client that runs instead of opening another session: that of the configuration, or the only one of this
    /// user; its rules and its resolver hold for the command, too
    #[arg(long)]
    pub(super) share: bool,
    /// The control socket of the client to join [env: ADIT_CONTROL=]
    #[arg(long, value_name = "SOCKET", requires = "share")]
    pub(super) control: Option<PathBuf>,
    /// How long to wait for the tunnel before giving up
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        conflicts_with = "no_wait"
    )]
    pub(super) wait: String,
    /// Start the command at once; until the tunnel is up it has loopback and no other network
    #[arg(long)]
    pub(super) no_wait: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(super) struct KeygenArgs {
    /// Write the secret key to this new file and print the public key; without it, print the secret key
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Overwrite the file; the key in it is lost
    #[arg(long, requires = "output")]
    pub(super) force: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Whose
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write the page of each command to this folder; without it, the main page goes to standard output
    #[arg(long, value_name = "FOLDER")]
    pub(super) out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct PubkeyArgs {
    /// The file of the secret key, or - for standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file; without one, what `adit join` has written
    #[arg(value_name = "FILE", env = "ADIT_CONFIG")]
    pub(super) file: Option<PathBuf>,
    /// Which program it is for, where its keys do not tell, or where there is no file and variables say it all
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    pub(super) kind: Option<Kind>,
}

#[derive(Debug, clap::Args)]
pub(super) struct CleanupArgs {
    /// The configuration file of the one that was killed
    #[arg(short, long, value_name = "FILE", conflicts_with = "state_dir")]
    pub(super) config: Option<PathBuf>,
    /// Its state folder
    #[arg(long, value_name = "FOLDER")]
    pub(super) state_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DnsArgs {
    /// The name, or an address
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The type of records; A if none is given
    #[arg(value_name = "TYPE")]
    pub(super) kind: Option<String>,
    /// The client's configuration file
    #[arg(short, long, value_name = "FILE", env = "ADIT_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Where its local resolver listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns: Option<String>,
}

impl DnsArgs {
    /// The settings that were given as flags.
    pub(super) fn settings(&self) -> Vec<FlagValue> {
        flag("dns", "--dns", self.dns.as_slice())
            .into_iter()
            .collect()
    }
}

impl ServerArgs {
    /// The settings that were given as flags.
    pub(super) fn settings(&self) -> Vec<FlagValue> {
        [
            flag("listen", "--listen", &self.listen),
            flag("key_file", "--key-file", &self.key_file),
            flag("network", "--network", self.network.as_slice()),
            flag("network6", "--network6", self.network6.as_slice()),
            flag("egress", "--egress", self.egress.as_slice()),
            flag("tun.name", "--tun-name", self.tun_name.as_slice()),
            flag("mtu", "--mtu", self.mtu.as_slice()),
            flag("allow", "--allow", &self.allow),
            flag("public", "--public", &self.public),
            flag("dns", "--dns", &self.dns),
            flag("state_dir", "--state-dir", self.state_dir.as_slice()),
            flag("control", "--control", self.control.as_slice()),
            flag("admin", "--admin", self.admin.as_slice()),
        ]
        .into_iter()
        .flatten()
        .chain(self.process.settings())
        .collect()
    }
}

impl ClientArgs {
    /// The settings that were given as flags.
    pub(super) fn settings(&self) -> Vec<FlagValue> {
        [
            flag("server", "--server", &self.server),
            flag("server_key", "--server-key", self.server_key.as_slice()),
            flag("key_file", "--key-file", self.key_file.as_slice()),
            flag(
                "preshared_key_file",
                "--preshared-key-file",
                self.preshared_key_file.as_slice(),
            ),
            flag("proxy", "--proxy", self.proxy.as_slice()),
            flag("proxy_user", "--proxy-user", self.proxy_user.as_slice()),
            flag(
                "proxy_password_file",
                "--proxy-password-file",
                self.proxy_password_file.as_slice(),
            ),
            switch("proxy_open", "--proxy-open", self.proxy_open),
            flag("via", "--via", self.via.as_slice()),
            flag(
                "via_password_file",
                "--via-password-file",
                self.via_password_file.as_slice(),
            ),
            flag("rules", "--rule", &self.rule),
            flag("dns", "--dns", self.dns.as_slice()),
            flag("dns.upstream", "--dns-upstream", &self.dns_upstream),
            flag(
                "connect_timeout",
                "--connect-timeout",
                self.connect_timeout.as_slice(),
            ),
            flag("lanes", "--lanes", self.lanes.as_slice()),
            flag("repair", "--repair", self.repair.as_slice()),
            flag("local_forwards", "-L", &self.local_forward),
            flag("remote_forwards", "-R", &self.remote_forward),
            switch("tun", "--tun", self.tun),
            flag("tun.routes", "--tun-route", &self.tun_route),
            flag("tun.exclude", "--tun-exclude", &self.tun_exclude),
            switch("tun.kill_switch", "--kill-switch", self.kill_switch),
            flag("control", "--control", self.control.as_slice()),
            flag("admin", "--admin", self.admin.as_slice()),
        ]
        .into_iter()
        .flatten()
        .chain(self.process.settings())
        .collect()
    }
}

fn flag(key: &'static str, flag: &'static str, values: &[String]) -> Option<FlagValue> {
    (!values.is_empty()).then(|| FlagValue {
        key,
        flag,
        values: values.to_vec(),
    })
}

/// A flag that says yes by being there.
fn switch(key: &'static str, flag: &'static str, given: bool) -> Option<FlagValue> {
    given.then(|| FlagValue {
        key,
        flag,
        values: vec!["true".to_owned()],
    })
}

pub(super) fn parse_kind(text: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| "write server or client".to_owned())
}
