//! Where the command line hands over to the programs.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::reload::Reload;
use crate::client::control;
use crate::client::dns::{Dns, LocalResolver};
use crate::client::host::Host;
use crate::client::instance::Instance;
use crate::client::proxies::Proxies;
use crate::client::run::{Client, Services, local_resolver};
use crate::client::tunnel::Tunnel;
use crate::config::{
    CertificateCheck, ClientConfig, ClientEntry, ControlSocket, DnsConfig, EgressKind, LaneAddr,
    Limits, ListenAddr, ProcessConfig, Repair, Scheme, ServerConfig, TunConfig,
};
use crate::io::host::MARK;
use crate::io::memory;
use crate::io::outside::Outside;
use crate::io::ready::Ready;
use crate::proto::{SecretKey, budget};
use crate::server::egress::echo::{self, PING_REMEDY};
use crate::server::run::Server;
use crate::wire::DEFAULT_MTU;

/// What `adit try` is told.
#[derive(Clone, Debug)]
pub struct TryOptions {
    /// Where the proxy listens: on loopback.
    pub proxy: SocketAddr,
}

/// Runs a server until `stop` is cancelled and its sessions are closed.
///
/// With `reload`, its configuration is read again whenever that is asked for.
///
/// # Errors
/// It cannot start.
pub async fn run_server(
    config: ServerConfig,
    mut ready: Ready,
    stop: CancellationToken,
    reload: Option<Reload>,
) -> anyhow::Result<()> {
    // What is read again is compared with what was written.
    let mut fitted = config.clone();
    fit(&mut fitted.limits, memory::allowed());
    let mut server = Server::start(fitted).await?;
    if config.egress == EgressKind::User
        && let Err(error) = echo::permitted()
    {
        warn!(%error, "clients cannot ping: this system gives no ping sockets; {PING_REMEDY}");
    }
    if let Some(pin) = server.tls_pin() {
        info!(%pin, "clients may pin this certificate");
    }
    ready.announce(&format!("listening on {}", Addresses(&server.listening())));
    let reloading = reload.map(|reload| {
        let (asker, reloader) = (reload.asker(), server.reloader(config));
        (asker, tokio::spawn(reload.serve_server(reloader)))
    });
    let (asker, reloading) = reloading.unzip();
    if let Some(asker) = asker {
        server = server.reloaded_by(asker);
    }
    let result = server.run(stop).await;
    ready.stopping();
    if let Some(reloading) = reloading {
        reloading.abort();
    }
    Ok(result?)
}

/// Keeps flows to half of what the kernel lets this process use: the rest is for the program itself, and for what the kernel
/// holds in its sockets' buffers, which counts too. Beyond the limit the kernel would kill, and every session with it.
fn fit(limits: &mut Limits, allowed: Option<usize>) {
    let Some(half) = allowed.map(|allowed| (allowed / 2).max(budget::LEAST)) else {
        return;
    };
    if half < limits.memory {
        info!(
            mebibytes = half >> 20,
            "limits.memory is half of what this process may use"
        );
        limits.memory = half;
        limits.memory_per_client = limits.memory_per_client.min(half);
    }
}

/// Runs a client until `stop` is cancelled and its session is closed. It is ready when the first session stands, and
/// where the whole host goes through the tunnel, when it does.
///
/// With `reload`, its configuration is read again whenever that is asked for.
///
/// # Errors
/// It cannot start, or its driver has failed.
pub async fn run_client(
    config: ClientConfig,
    mut ready: Ready,
    stop: CancellationToken,
    reload: Option<Reload>,
) -> anyhow::Result<()> {
    let proxies = Proxies::bind(&config)?;
    let resolver = local_resolver(&config)?;
    let mut address = format!("proxy on {}", Addresses(&proxies.addresses()));
    if let Some(resolver) = &resolver {
        address = format!("{address}, dns on {}", resolver.address());
    }
    let Some(tunnel) = config.tun.clone() else {
        let served = Served {
            proxies,
            resolver,
            reload,
            address,
            host: None,
        };
        return serve_client(config, Outside::default(), served, &mut ready, &stop).await;
    };
    let outside = Outside::marked(MARK);
    let mut host = Host::start(&config, &tunnel, outside.clone())?;
    let led = CancellationToken::new();
    let served = Served {
        proxies,
        resolver,
        reload,
        address: format!("the host goes through {}, {address}", tunnel.name),
        host: Some((host.handle(), led.clone())),
    };
    let following = async {
        if let Err(error) = host.up().await {
            return error;
        }
        led.cancel();
        host.serve().await
    };
    let result = {
        // Also before the host's session is up: whoever asks how it is is told, also why it is not.
        let mut serving = pin!(serve_client(config, outside, served, &mut ready, &stop));
        tokio::select! {
            // First: what cannot be served at all is no fault of the tunnel.
            biased;
            result = &mut serving => result,
            error = following => {
                stop.cancel();
                // Its session is closed in order, and its control socket goes; the tunnel's error is the one to tell.
                let _ended = serving.await;
                Err(error.into())
            }
        }
    };
    // Whatever it ended by: its own error is told first.
    match host.close(result.is_err()).await {
        Err(error) if result.is_ok() => Err(error.into()),
        Ok(()) | Err(_) => result,
    }
}

/// What a client serves, and what is said of it when it is ready.
struct Served {
    proxies: Proxies,
    resolver: Option<LocalResolver>,
    reload: Option<Reload>,
    address: String,
    /// With `tun`: tells how the host's session is; and is cancelled when the host goes through the tunnel, which is to be
    /// the first session: a fixed address is for it.
    host: Option<(Tunnel, CancellationToken)>,
}

/// Runs a client's proxies, resolver and forwards, whose sockets leave the host as `outside` says.
async fn serve_client(
    config: ClientConfig,
    outside: Outside,
    served: Served,
    ready: &mut Ready,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let Served {
        proxies,
        resolver,
        reload,
        address,
        host,
    } = served;
    let listener = control::place(&config).listen()?;
    let instance = listener.as_ref().map(Instance::of).unwrap_or_default();
    let (host, led) = host.unzip();
    let client = Client::leaving(&config, outside, &instance, led.clone())?.beside_host(host);
    let asker = reload.as_ref().map(Reload::asker);
    let services = Services::start(
        &client,
        &config,
        proxies.rules(),
        proxies.stats(),
        (listener, asker),
        stop,
    )?;
    let reloader = client.reloader(config, proxies.rule_book(&client), &services);
    let reloading = reload.map(|reload| tokio::spawn(reload.serve_client(reloader)));
    let proxies = proxies.serve(&client, stop.clone());
    let resolving = serve_names(resolver, client.dns(), stop.clone());
    ready.started(&format!("connecting; {address}"));
    let mut serving = tokio::spawn(async {
        tokio::join!(proxies, resolving);
    });
    let result = until_stopped(&client, &mut serving, stop, async || {
        if let Some(led) = led {
            led.cancelled().await;
        }
        services.settled().await;
        ready.announce(&address);
    })
    .await;
    ready.stopping();
    if let Some(reloading) = reloading {
        reloading.abort();
    }
    client.close().await;
    instance.forget();
    services.ended().await;
    // It only has its own listener and handshakes to drop.
    serving.abort();
    result
}

/// Serves the local resolver, if there is one; else waits for the end.
async fn serve_names(resolver: Option<LocalResolver>, dns: Dns, stop: CancellationToken) {
    match resolver {
        Some(resolver) => resolver.serve(dns, stop).await,
        None => stop.cancelled().await,
    }
}

/// Runs a server and a client of it in this process, until `stop` is cancelled.
///
/// Both ends have throw-away keys; the server listens on loopback, has the egress `user` and lets
/// its one client go wherever this user could go himself.
///
/// # Errors
/// One of them cannot start, or the client's driver has failed.
pub async fn run_try(
    options: TryOptions,
    mut ready: Ready,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let state = tempfile::tempdir().context("cannot make a folder for the trial's state")?;
    let (server_key, client_key) = (generate(), generate());
    let server = Server::start(try_server(&server_key, &client_key, state.path())).await?;
    if let Err(error) = echo::permitted() {
        info!(%error, "ping is not answered in this trial: this system gives no ping sockets; {PING_REMEDY}");
    }
    let config = try_client(server.listening(), &server_key, client_key, options.proxy);
    let proxies = Proxies::bind(&config)?;
    let address = Addresses(&proxies.addresses()).to_string();
    let server_stop = CancellationToken::new();
    let serving_clients = tokio::spawn(server.run(server_stop.clone()));
    // So that `adit status` and `adit run --share` find it.
    let port = proxies.addresses().first().map_or(0, SocketAddr::port);
    let listener = control::trial(port).listen()?;
    let client = Client::start(&config)?;
    let services = Services::start(
        &client,
        &config,
        proxies.rules(),
        proxies.stats(),
        (listener, None),
        &stop,
    )?;
    let mut serving_proxy = tokio::spawn(proxies.serve(&client, stop.clone()));
    let result = until_stopped(&client, &mut serving_proxy, &stop, async || {
        ready.announce(&format!("proxy on {address}"));
        println!("try it:  curl -x socks5h://{address} https://example.com/");
        println!("or:      adit run --share -- curl https://example.com/");
        println!("see it:  adit status");
        println!("stop it: Ctrl-C");
    })
    .await;
    ready.stopping();
    stop.cancel();
    client.close().await;
    services.ended().await;
    serving_proxy.abort();
    server_stop.cancel();
    serving_clients.await.context("the server failed")??;
    result
}

async fn until_stopped(
    client: &Client,
    proxy: &mut JoinHandle<()>,
    stop: &CancellationToken,
    connected: impl AsyncFnOnce(),
) -> anyhow::Result<()> {
    let up = async {
        if client.connected().await.is_some() {
            connected().await;
        }
        stop.cancelled().await;
    };
    tokio::select! {
        // First: the proxy ends in order then, too.
        biased;
        () = stop.cancelled() => Ok(()),
        () = up => Ok(()),
        _ = proxy => bail!("the proxy or the local resolver has failed; the log says more"),
        () = client.ended() => bail!("the tunnel's driver has failed; the log says more"),
    }
}

fn generate() -> SecretKey {
    SecretKey::generate(&mut rand::rng())
}

fn try_server(server: &SecretKey, client: &SecretKey, state: &Path) -> ServerConfig {
    ServerConfig {
        listen: vec![ListenAddr::new(
            Scheme::Tcp,
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        )],
        secret_keys: vec![server.clone()],
        network: Some(Ipv4Net::new_assert(Ipv4Addr::new(10, 86, 0, 0), 24)),
        network6: Some(Ipv6Net::new_assert(
            Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 0),
            64,
        )),
        egress: EgressKind::User,
        allow: vec![
            IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        ],
        clients: vec![ClientEntry {
            name: "try".to_owned(),
            public_key: client.public(),
            address: None,
            address6: None,
            preshared_key: None,
        }],
        tun: TunConfig {
            name: "adit0".to_owned(),
            masquerade: true,
        },
        mtu: DEFAULT_MTU,
        tls: None,
        tls_names: Vec::new(),
        public: Vec::new(),
        dns: Vec::new(),
        dns_records: Vec::new(),
        client_to_client: false,
        state_dir: state.to_path_buf(),
        max_clients: 1,
        limits: Limits {
            flows_per_client: 16_384,
            half_open_per_client: 1024,
            ..Limits::default()
        },
        aead: Vec::new(),
        repair: Repair::Auto,
        threads: None,
        control: ControlSocket::Off,
        admin: None,
        log_level: None,
        process: ProcessConfig::default(),
    }
}

fn try_client(
    servers: Vec<LaneAddr>,
    server: &SecretKey,
    secret_key: SecretKey,
    proxy: SocketAddr,
) -> ClientConfig {
    ClientConfig {
        servers,
        server_key: server.public(),
        secret_key,
        preshared_key: None,
        proxy,
        proxy_auth: None,
        rules: Vec::new(),
        proxies: Vec::new(),
        dns: DnsConfig::default(),
        tls: CertificateCheck::Unchecked,
        via: None,
        connect_timeout: Duration::from_secs(5),
        lanes: 1,
        aead: Vec::new(),
        repair: Repair::Auto,
        threads: None,
        forwards: Vec::new(),
        control: ControlSocket::Usual,
        admin: None,
        log_level: None,
        memory: budget::CLIENT,
        tun: None,
        process: ProcessConfig::default(),
    }
}

/// Addresses for people, separated by commas.
struct Addresses<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Addresses<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, address) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{address}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_flows_is_half_of_what_a_container_may_use_and_never_more_than_written() {
        let memory = |allowed, written| {
            let mut limits = Limits {
                memory: written,
                ..Limits::default()
            };
            fit(&mut limits, allowed);
            assert!(limits.memory_per_client <= limits.memory.max(budget::SESSION));
            limits.memory
        };
        assert_eq!(memory(None, budget::PROCESS), budget::PROCESS);
        assert_eq!(memory(Some(64 << 20), budget::PROCESS), 32 << 20);
        assert_eq!(memory(Some(64 << 20), 8 << 20), 8 << 20);
        assert_eq!(memory(Some(1 << 20), budget::PROCESS), budget::LEAST);
    }
}
