//! Resolves names for the driver, which may not wait: UDP headers of SOCKS5 carry names.

use std::net::IpAddr;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Host, Known, ResolveError, Resolver};
use crate::client::direct::Direct;
use crate::client::rules::ResolvedBy;
use crate::client::tunnel::Tunnel;

/// One name that the driver wants resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameQuery {
    /// The driver's own number, given back with the answer.
    pub query: u64,
    /// The name.
    pub host: Host,
    /// Whose resolver is to be asked.
    pub by: ResolvedBy,
}

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// At least one, best first.
    pub addresses: Vec<IpAddr>,
    /// Who has said them: who was asked, or nobody had to be.
    pub by: ResolvedBy,
}

/// The driver's end of the name service.
pub type NameQueries = mpsc::Sender<NameQuery>;

/// Makes the name service: a bounded queue, and the task that answers what is put into
/// it by [`Tunnel::resolved`].
///
/// Addresses come IPv4 first, as datagrams cannot race. The driver uses `try_send`: when the queue is full, it drops the datagram and counts
/// it. The task ends when the queue's sender is dropped or `stop` is cancelled.
pub fn name_service(
    resolver: Resolver,
    direct: Direct,
    tunnel: Tunnel,
    stop: CancellationToken,
) -> (NameQueries, impl Future<Output = ()> + Send) {
    let (sender, queries) = mpsc::channel(QUEUE);
    (sender, serve(resolver, direct, tunnel, queries, stop))
}

async fn serve(
    resolver: Resolver,
    direct: Direct,
    tunnel: Tunnel,
    mut queries: mpsc::Receiver<NameQuery>,
    stop: CancellationToken,
) {
    let mut lookups: JoinSet<(u64, Result<Found, ResolveError>)> = JoinSet::new();
    loop {
        let room = lookups.len() < CONCURRENT;
        tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = lookups.join_next() => {
                // A lookup that panicked has no answer: its datagrams time out.
                if let Ok((query, answer)) = done {
                    tunnel.resolved(query, answer).await;
                }
            }
            query = queries.recv(), if room => {
                let Some(NameQuery { query, host, by }) = query else { return };
                let (resolver, direct) = (resolver.clone(), direct.clone());
                lookups.spawn(async move {
                    (query, find(&resolver, &direct, &host, by).await)
                });
            }
        }
    }
}

async fn find(
    resolver: &Resolver,
    direct: &Direct,
    host: &Host,
    by: ResolvedBy,
) -> Result<Found, ResolveError> {
    let (addresses, by) = match resolver.known(host, by)? {
        (Known::Addresses(addresses), by) => (addresses, by),
        (known @ Known::Ask(_), ResolvedBy::Host) => (direct.lookup(known).await?, by),
        (Known::Ask(_), ResolvedBy::Tunnel | ResolvedBy::Record) => {
            (resolver.lookup(host).await?, by)
        }
    };
    Ok(Found {
        addresses: ipv4_first(addresses),
        by,
    })
}

/// Orders addresses for datagrams, which cannot race: nobody hears of one that got lost,
/// and IPv4 is the family that more often works where only one does.
fn ipv4_first(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

/// Names that wait to be looked at; a UDP application has few destinations by name.
const QUEUE: usize = 256;

/// Lookups at once.
const CONCURRENT: usize = 64;
