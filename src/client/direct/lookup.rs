//! Asks this host's resolver, as every program of it does.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Direct;
use crate::client::resolve::{Host, Known, LOOKUP_LIMIT, ResolveError};

impl Direct {
    /// Finds the addresses of a host, in the order in which this one would try them.
    ///
    /// # Errors
    /// There is none, or no answer in [`LOOKUP_LIMIT`].
    pub async fn lookup(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        match host.known()? {
            Known::Addresses(addresses) => Ok(addresses),
            Known::Ask(name) => self.ask(name).await,
        }
    }

    async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let ask = async {
            if self.outside.is_marked() {
                let permit = Arc::clone(&self.lookups).acquire_owned().await;
                let answer = self.outside.resolve(name, 0).await;
                drop(permit);
                return Ok(answer.map(|found| found.into_iter().map(|found| found.ip()).collect()));
            }
            // Never closed. It goes with the thread, which cannot be stopped: so many there are at most.
            let permit = Arc::clone(&self.lookups).acquire_owned().await;
            let name = name.to_owned();
            let asked = spawn_blocking(move || {
                let _permit = permit;
                let answer = (name.as_str(), 0).to_socket_addrs()?;
                Ok::<_, std::io::Error>(answer.map(|address| address.ip()).collect::<Vec<_>>())
            });
            asked.await
        };
        match timeout(LOOKUP_LIMIT, ask).await {
            Ok(Ok(Ok(addresses))) if !addresses.is_empty() => Ok(addresses),
            Ok(Ok(Ok(_) | Err(_)) | Err(_)) => Err(ResolveError::Host),
            Err(_elapsed) => Err(ResolveError::TimedOut),
        }
    }
}

/// Names that this host's resolver is asked for at once: each is a thread while it is.
pub const MAX_LOOKUPS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

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
        let lookup = async |name: &str| direct.lookup(&Host::parse(name.as_bytes()).unwrap()).await;
        assert!(lookup("dev.localhost").await.is_ok());
        assert_eq!(lookup("a.onion").await, Err(ResolveError::Onion));
        assert_eq!(lookup("a.invalid").await, Err(ResolveError::NotFound));
    }
}
