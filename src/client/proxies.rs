//! The local proxies of a client: each listens, asks for a password and follows rules of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ports;
use super::proxy::{Credentials, ProxySettings, ProxyStats, serve};
use super::rules::{InForce, Replace, Rules};
use super::run::{Client, StartError};
use super::tunnel::Tunnel;
use crate::config::{ClientConfig, ProxyConfig};

/// Local proxies that listen.
#[derive(Debug)]
pub struct Proxies {
    bound: Vec<Bound>,
}

/// One of them.
#[derive(Debug)]
struct Bound {
    listener: tokio::net::TcpListener,
    address: SocketAddr,
    settings: ProxySettings,
    /// Where it was told to listen.
    configured: SocketAddr,
    replace: Replace,
}

impl Proxies {
    /// Binds the proxies of `config`.
    ///
    /// # Errors
    ///
    /// When an address cannot be had or a password cannot be used.
    pub fn bind(config: &ClientConfig) -> Result<Self, StartError> {
        let listeners = config.listeners();
        let bound = listeners.iter().map(Bound::new);
        Ok(Self {
            bound: bound.collect::<Result<_, _>>()?,
        })
    }

    /// Returns where they listen, in the order of the configuration, with the ports that they were given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.bound.iter().map(|proxy| proxy.address).collect()
    }

    /// Returns what each of them counts.
    pub fn stats(&self) -> Vec<Arc<ProxyStats>> {
        let proxies = self.bound.iter();
        proxies.map(|proxy| proxy.settings.stats.clone()).collect()
    }

    /// Returns what replaces their rules while they serve `client`.
    pub fn rule_book(&self, client: &Client) -> RuleBook {
        let replace = |proxy: &Bound| (proxy.configured, proxy.replace.clone());
        RuleBook {
            proxies: self.bound.iter().map(replace).collect(),
            tunnel: client.tunnel(),
        }
    }

    /// Returns the rules of the first one, which are those of the client where nothing else is said.
    pub fn rules(&self) -> InForce {
        let first = self.bound.first();
        first
            .map(|proxy| proxy.settings.rules.clone())
            .unwrap_or_default()
    }

    /// Serves applications through `client` until `stop`, or until one of them fails.
    pub fn serve(
        self,
        client: &Client,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (tunnel, resolver, direct) = (client.tunnel(), client.resolver(), client.direct());
        async move {
            let mut serving = JoinSet::new();
            for mut proxy in self.bound {
                proxy.settings.direct = direct.clone();
                let (tunnel, resolver) = (tunnel.clone(), resolver.clone());
                serving.spawn(serve(
                    proxy.listener,
                    proxy.settings,
                    tunnel,
                    resolver,
                    stop.clone(),
                ));
            }
            while serving.join_next().await.is_some() && stop.is_cancelled() {}
            tracing::debug!(direct = ?direct.stats(), "counters");
        }
    }
}

impl Bound {
    fn new(config: &ProxyConfig) -> Result<Self, StartError> {
        let bind = |error| StartError::Bind {
            address: config.listen,
            error,
        };
        let listener = ports::listen(config.listen).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let (replace, rules) = InForce::new(Rules::new(&config.rules));
        let mut settings = ProxySettings {
            rules,
            ..ProxySettings::default()
        };
        if let Some(auth) = &config.auth {
            settings.credentials = Some(Credentials::new(&auth.user, &auth.password)?);
        }
        Ok(Self {
            listener,
            address,
            settings,
            configured: config.listen,
            replace,
        })
    }
}

/// Replaces the rules of proxies while they serve.
#[derive(Clone, Debug)]
pub struct RuleBook {
    proxies: Vec<(SocketAddr, Replace)>,
    tunnel: Tunnel,
}

impl RuleBook {
    /// Puts the rules of `config` into force at those proxies that it still has, and ends the flows that these send
    /// another way than they went. No other flow notices.
    pub async fn replace(&self, config: &ClientConfig) {
        let listeners = config.listeners();
        for (index, (configured, replace)) in self.proxies.iter().enumerate() {
            let is_it = |proxy: &&ProxyConfig| proxy.listen == *configured;
            // Of several with a port that the system chooses, the order tells.
            let same = listeners.get(index).filter(is_it);
            if let Some(proxy) = same.or_else(|| listeners.iter().find(is_it)) {
                replace.put(Rules::new(&proxy.rules));
            }
        }
        self.tunnel.judge_again().await;
    }
}
