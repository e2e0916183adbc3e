//! Asks whom every program of this host asks.

use std::io;
use std::net::IpAddr;

use tokio::time::timeout;

use super::Direct;
use crate::client::resolve::{Known, LOOKUP_LIMIT, ResolveError};

impl Direct {
    /// Finds the addresses of a host, in the order in which this one would try them.
    ///
    /// # Errors
    /// There is none, or no answer in [`LOOKUP_LIMIT`].
    pub(in crate::client) async fn lookup(
        &self,
        host: Known<'_>,
    ) -> Result<Vec<IpAddr>, ResolveError> {
        match host {
            Known::Addresses(addresses) => Ok(addresses),
            Known::Ask(name) => self.ask(&name).await,
        }
    }

    async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let ask = async {
            // Never closed.
            let _permit = self.lookups.acquire().await;
            let found = self.outside.resolve(name, 0).await?;
            let addresses = found.into_iter().map(|found| found.ip()).collect();
            Ok::<Vec<_>, io::Error>(addresses)
        };
        match timeout(LOOKUP_LIMIT, ask).await {
            Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
            Ok(Ok(_) | Err(_)) => Err(ResolveError::Host),
            Err(_elapsed) => Err(ResolveError::TimedOut),
        }
    }
}

/// Names that this host's resolver is asked for at once: each is a socket or two while it is.
pub const MAX_LOOKUPS: usize = 32;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::resolve::Host;

    #[tokio::test]
    async fn host_answers_for_its_own_names_and_refuses_what_nobody_has() {
        let direct = Direct::new();
        // In the hosts file of every machine.
        let addresses = direct.ask("localhost").await.expect("addresses");
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
        // Longer than a name can be, so that nobody is asked.
        let name = "x".repeat(300);
        assert_eq!(direct.ask(&name).await, Err(ResolveError::Host));
        assert_eq!(direct.lookups.available_permits(), MAX_LOOKUPS);
    }

    #[tokio::test]
    async fn names_that_must_not_be_asked_are_not() {
        let direct = Direct {
            // Whoever asked would wait for ever.
            lookups: Arc::new(tokio::sync::Semaphore::new(0)),
            ..Direct::new()
        };
        let lookup = async |name: &str| {
            let host = Host::parse(name.as_bytes()).unwrap();
            direct.lookup(host.known()?).await
        };
        assert!(lookup("dev.localhost").await.is_ok());
        assert_eq!(lookup("a.onion").await, Err(ResolveError::Onion));
        assert_eq!(lookup("a.invalid").await, Err(ResolveError::NotFound));
    }
}
