//! How clients reach this server, for the links of invitations.

use std::net::IpAddr;

use thiserror::Error;

use crate::config::address::Host;
use crate::config::{CertificatePin, LaneAddr, MAX_SERVERS, Scheme};
use crate::proto::PublicKey;

/// What is known of the ways to this server.
#[derive(Clone, Debug)]
pub struct Reach {
    /// What the operator says.
    pub public: Vec<LaneAddr>,
    /// Where it listens, with the ports it was given.
    pub listening: Vec<LaneAddr>,
    /// Its identity.
    pub key: PublicKey,
    /// The pin of its certificate, if it has made that itself and so keeps it.
    pub pin: Option<CertificatePin>,
}

impl Reach {
    /// Names the addresses for a link: those that were asked for, or the operator's, or where the server listens. What was
    /// asked for is whole addresses, or hosts that stand in for where the server listens.
    ///
    /// # Errors
    /// [`ReachError`], with what helps.
    pub fn servers(&self, asked: &[String]) -> Result<Vec<LaneAddr>, ReachError> {
        let mut servers = Vec::new();
        for text in asked {
            for server in self.asked(text)? {
                if !servers.contains(&server) {
                    servers.push(server);
                }
            }
        }
        if asked.is_empty() {
            servers = self.known()?;
        }
        if servers.len() > MAX_SERVERS {
            return Err(ReachError::TooMany {
                found: servers.len(),
            });
        }
        Ok(servers)
    }

    /// The pin, where a client would meet this server's own certificate at one of these addresses: at the ports where it
    /// shows one. What stands before it shows another.
    pub fn pin_for(&self, servers: &[LaneAddr]) -> Option<CertificatePin> {
        let shown = |server: &LaneAddr| {
            self.listening
                .iter()
                .any(|own| own.scheme == server.scheme && own.port == server.port)
        };
        let mut by_tls = servers.iter().filter(|server| server.scheme.is_tls());
        let all_shown = by_tls.clone().all(shown);
        self.pin.filter(|_| by_tls.next().is_some() && all_shown)
    }

    fn asked(&self, text: &str) -> Result<Vec<LaneAddr>, ReachError> {
        let wrong = |reason: String| ReachError::Asked { reason };
        if text.contains("://") {
            let server = text.parse::<LaneAddr>();
            return Ok(vec![server.map_err(|error| wrong(error.to_string()))?]);
        }
        if let Some(scheme) = self.scheme_of(text) {
            return Err(wrong(format!(
                "`{text}` has a port, which needs a way there: say {scheme}://{text}"
            )));
        }
        // An IPv6 address may come without its brackets here, where no port follows.
        let host = match text.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => text
                .parse::<Host>()
                .map_err(|error| wrong(error.to_string()))?,
        };
        let mut servers = Vec::new();
        for own in &self.listening {
            let fits = match (&host, &own.host) {
                // One family does not reach the other's socket; a socket for all addresses has both.
                (Host::Ip(IpAddr::V6(_)), Host::Ip(IpAddr::V4(_))) => false,
                (Host::Ip(_) | Host::Name(_), _) => true,
            };
            // Behind a reverse proxy, which the operator has to name.
            if fits && own.scheme != Scheme::Ws {
                let host = host.clone();
                servers.push(LaneAddr {
                    host,
                    ..own.clone()
                });
            }
        }
        if servers.is_empty() {
            return Err(ReachError::Nothing {
                host: text.to_owned(),
            });
        }
        Ok(servers)
    }

    /// By which way a host and a port without one may be meant: that which this server has on the port, else datagrams.
    fn scheme_of(&self, text: &str) -> Option<Scheme> {
        let address = format!("udp://{text}").parse::<LaneAddr>().ok()?;
        let has_port = text.parse::<IpAddr>().is_err() && text.rsplit_once(':').is_some();
        let own = self.listening.iter().find(|own| own.port == address.port);
        has_port.then(|| own.map_or(Scheme::Udp, |own| own.scheme))
    }

    fn known(&self) -> Result<Vec<LaneAddr>, ReachError> {
        if !self.public.is_empty() {
            return Ok(self.public.clone());
        }
        let exact = self.listening.iter().filter(|own| match &own.host {
            // Without TLS, for a reverse proxy beside it.
            Host::Ip(ip) if own.scheme == Scheme::Ws => !ip.is_loopback() && !ip.is_unspecified(),
            Host::Ip(ip) => !ip.is_unspecified(),
            Host::Name(_) => true,
        });
        let exact: Vec<LaneAddr> = exact.cloned().collect();
        if exact.is_empty() {
            return Err(ReachError::Unknown {
                listening: self
                    .listening
                    .first()
                    .map_or_else(String::new, ToString::to_string),
            });
        }
        Ok(exact)
    }
}

/// Whether none of the addresses can be reached from another host.
pub fn is_local(servers: &[LaneAddr]) -> bool {
    servers.iter().all(|server| match &server.host {
        Host::Ip(ip) => ip.is_loopback(),
        Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
    })
}

/// Why there is no address for a link.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReachError {
    /// The server does not know its own name.
    #[error(
        "where this server listens ({listening}) does not tell by which name it is reached from outside: say --address vpn.example.com, or write `public:` into its configuration"
    )]
    Unknown {
        /// One of the addresses it listens on.
        listening: String,
    },
    /// What was asked for is no address.
    #[error("--address: {reason}")]
    Asked {
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing listens for that host.
    #[error(
        "--address: this server listens on nothing that `{host}` could stand for: give a whole address, such as udp://{host}:7443"
    )]
    Nothing {
        /// The host.
        host: String,
    },
    /// There are more addresses than fit.
    #[error("{found} addresses, and a link names {MAX_SERVERS} at most: say which by --address")]
    TooMany {
        /// How many there are.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(texts: &[&str]) -> Vec<LaneAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn reach(public: &[&str], listening: &[&str]) -> Reach {
        Reach {
            public: lanes(public),
            listening: lanes(listening),
            key: PublicKey::from_bytes([1; 32]),
            pin: Some(CertificatePin([2; 32])),
        }
    }

    fn servers(reach: &Reach, asked: &[&str]) -> Result<Vec<String>, ReachError> {
        let asked: Vec<String> = asked.iter().map(ToString::to_string).collect();
        let servers = reach.servers(&asked)?;
        Ok(servers.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_was_asked_for_goes_before_what_is_configured_and_that_before_where_it_listens() {
        let exact = ["udp://203.0.113.7:7443", "tcp://203.0.113.7:7443"];
        assert_eq!(servers(&reach(&[], &exact), &[]).unwrap(), exact);
        let named = reach(&["wss://vpn.example.com:443/adit"], &exact);
        assert_eq!(
            servers(&named, &[]).unwrap(),
            ["wss://vpn.example.com:443/adit"]
        );
        let asked = ["tls://h:1", "tls://h:1"];
        assert_eq!(servers(&named, &asked).unwrap(), ["tls://h:1"]);
    }

    #[test]
    fn port_without_a_way_is_told_the_way() {
        let reach = reach(&[], &["udp://0.0.0.0:7443", "tls://0.0.0.0:8443"]);
        let told = |text: &str| servers(&reach, &[text]).unwrap_err().to_string();
        assert!(told("h.example:7443").ends_with("say udp://h.example:7443"));
        assert!(told("h.example:8443").ends_with("say tls://h.example:8443"));
        assert!(told("[2001:db8::1]:9").ends_with("say udp://[2001:db8::1]:9"));
        assert!(servers(&reach, &["2001:db8::1"]).is_err() || servers(&reach, &["h"]).is_ok());
    }

    #[test]
    fn host_stands_in_for_every_address_that_is_listened_on() {
        let reach = reach(
            &[],
            &[
                "udp://0.0.0.0:7443",
                "tcp://[::]:7443",
                "wss://0.0.0.0:443/adit",
                "ws://127.0.0.1:8080/adit",
            ],
        );
        let by_name = ["udp://h:7443", "tcp://h:7443", "wss://h:443/adit"];
        assert_eq!(servers(&reach, &["h"]).unwrap(), by_name);
        assert_eq!(
            servers(&reach, &["2001:db8::1"]).unwrap(),
            ["tcp://[2001:db8::1]:7443"]
        );
        assert_eq!(
            servers(&reach, &["[2001:db8::1]"]).unwrap(),
            ["tcp://[2001:db8::1]:7443"]
        );
        let error = servers(&reach, &[]).unwrap_err().to_string();
        assert!(
            error.contains("--address") && error.contains("udp://0.0.0.0:7443"),
            "{error}"
        );
        let error = servers(&reach, &["a b"]).unwrap_err().to_string();
        assert!(error.contains("a b"), "{error}");
    }

    #[test]
    fn pin_is_told_only_of_the_servers_own_certificate() {
        let reach = reach(&[], &["tls://0.0.0.0:8443", "udp://0.0.0.0:7443"]);
        assert!(
            reach
                .pin_for(&lanes(&["udp://h:7443", "tls://h:8443"]))
                .is_some()
        );
        assert!(reach.pin_for(&lanes(&["udp://h:7443"])).is_none());
        assert!(
            reach
                .pin_for(&lanes(&["tls://h:8443", "wss://proxy:443/x"]))
                .is_none()
        );
    }

    #[test]
    fn addresses_of_this_host_alone_are_known_as_such() {
        assert!(is_local(&lanes(&[
            "udp://127.0.0.1:1",
            "tcp://[::1]:1",
            "tcp://localhost:1"
        ])));
        assert!(!is_local(&lanes(&[
            "udp://127.0.0.1:1",
            "udp://192.0.2.1:1"
        ])));
    }
}
