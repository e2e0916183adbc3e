//! `-R` over TCP: whoever connects to a port of the inner address reaches a host near the client.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::counters::{Counters, State};
use super::local::MAX_PENDING;
use super::near;
use crate::client::tunnel::{ConnectError, IncomingFlow, Listener, Tunnel};
use crate::config::NearTarget;

/// Serves those who come to the inner `port` until `stop`.
pub(super) async fn serve(
    port: u16,
    target: NearTarget,
    tunnel: Tunnel,
    counters: Arc<Counters>,
    stop: CancellationToken,
) {
    let target = Arc::new(target);
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    let mut tasks = JoinSet::new();
    loop {
        let listening = listen(&tunnel, port, &counters);
        let Some(mut listener) = stop.run_until_cancelled(listening).await else {
            break;
        };
        let serving = accept(&mut listener, &target, &counters, &pending, &mut tasks);
        if stop.run_until_cancelled(serving).await.is_none() {
            break;
        }
        // The netstack was made anew, or has ended for good.
        counters.set(State::Waiting);
    }
    tasks.shutdown().await;
}

/// Listens on `port`, as soon as that can be had.
async fn listen(tunnel: &Tunnel, port: u16, counters: &Counters) -> Listener {
    loop {
        session(tunnel).await;
        match tunnel.listen(port).await {
            Ok(listener) => {
                counters.set(State::Listening);
                return listener;
            }
            Err(error) => failed(error, counters).await,
        }
    }
}

/// Waits until the client has had a session.
pub(super) async fn session(tunnel: &Tunnel) {
    let mut inner = tunnel.inner();
    if inner.wait_for(Option::is_some).await.is_err() {
        // There will be none any more; who waits is told to stop.
        std::future::pending::<()>().await;
    }
}

/// Says why there is no inner port, and waits before the next attempt.
pub(super) async fn failed(error: ConnectError, counters: &Counters) {
    let state = if matches!(error, ConnectError::TunnelDown(_)) {
        State::Waiting
    } else {
        State::Failed(error.to_string())
    };
    counters.set(state);
    sleep(RETRY).await;
}

/// Serves those who come, until there is no listener any more.
async fn accept(
    listener: &mut Listener,
    target: &Arc<NearTarget>,
    counters: &Arc<Counters>,
    pending: &Arc<Semaphore>,
    tasks: &mut JoinSet<()>,
) {
    loop {
        // Without a place, those who come wait in the backlog.
        let Ok(permit) = Arc::clone(pending).acquire_owned().await else {
            return;
        };
        let flow = loop {
            tokio::select! {
                Some(done) = tasks.join_next() => {
                    if done.is_err() {
                        counters.refuse("a fault of the client");
                        warn!("a connection to an inner port ended by a panic");
                    }
                }
                flow = listener.accept() => break flow,
            }
        };
        let Some(flow) = flow else { return };
        let (target, counters) = (Arc::clone(target), Arc::clone(counters));
        tasks.spawn(open(flow, target, counters, permit));
    }
}

async fn open(
    flow: IncomingFlow,
    target: Arc<NearTarget>,
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
) {
    match near::connect(&target).await {
        Ok(endpoint) => flow.accept(endpoint, counters.open()),
        Err(error) => {
            counters.refuse(&error);
            flow.refuse(near::refusal(&error));
        }
    }
}

/// How long to wait before an inner port is asked for again.
const RETRY: Duration = Duration::from_secs(1);
