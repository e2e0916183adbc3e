//! A network in front of a server that holds up or cuts one connection and not the others.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::flow::in_time;

/// One connection through the network.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) frozen: Arc<AtomicBool>,
    pub(crate) cut: Arc<AtomicBool>,
    /// Bytes carried, both ways.
    carried: Arc<AtomicU64>,
}

impl Connection {
    pub(crate) fn is_over(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Carries bytes one way until there is an end of it.
    async fn carry(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 16 * 1024];
        let tick = Duration::from_millis(1);
        while !self.is_over() {
            if self.frozen.load(Ordering::Relaxed) {
                tokio::time::sleep(tick).await;
                continue;
            }
            let Ok(read) = tokio::time::timeout(5 * tick, from.read(&mut buffer)).await else {
                continue;
            };
            let len = read.unwrap_or(0);
            // Frozen meanwhile: what was read stays here, as it would in a network.
            while self.frozen.load(Ordering::Relaxed) && !self.is_over() {
                tokio::time::sleep(tick).await;
            }
            if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
                break;
            }
            self.carried.fetch_add(len as u64, Ordering::Relaxed);
        }
        self.cut.store(true, Ordering::Relaxed);
    }
}

/// A network that carries connections to one server.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    connections: Arc<Mutex<Vec<Connection>>>,
    task: JoinHandle<()>,
}

impl Network {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Connection>>> = Arc::default();
        let known = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else {
                    continue;
                };
                let connection = Connection {
                    frozen: Arc::default(),
                    cut: Arc::default(),
                    carried: Arc::default(),
                };
                known.lock().unwrap().push(connection.clone());
                let (from_client, to_client) = near.into_split();
                let (from_server, to_server) = far.into_split();
                tokio::spawn(connection.clone().carry(from_client, to_server));
                tokio::spawn(connection.carry(from_server, to_client));
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }

    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.connections.lock().unwrap().clone()
    }

    /// Waits until so many connections have carried more than their handshakes.
    pub(crate) async fn has(&self, count: usize) -> Vec<Connection> {
        in_time("the lanes", async {
            loop {
                let living = self.connections().into_iter();
                let living: Vec<_> = living.filter(|one| !one.is_over()).collect();
                if living.len() >= count {
                    return living;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}
