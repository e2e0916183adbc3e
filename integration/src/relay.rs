//! A TCP relay between client and server that records, cuts, freezes and bends what passes: the hostile network.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{oneshot, watch},
};

use crate::namespaces::{Place, runtime};

/// What the relay does to connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes.
    #[default]
    Fair,
    /// Nothing passes, but nothing ends: bytes are left unread. New connections are accepted and stay silent.
    Frozen,
    /// Connections are reset, and new ones too.
    Broken,
    /// What the caller sends first is sent back to it, and nothing reaches the server.
    Mirror,
    /// As [`Weather::Fair`], with this bit mask applied to the byte at this offset of what the caller sends first.
    Bend(usize, u8),
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    records: Arc<Mutex<Vec<Record>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// The beginning of one connection, both ways, at most 64 KiB each.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// What the caller sent.
    pub up: Vec<u8>,
    /// What the server sent.
    pub down: Vec<u8>,
}

impl Relay {
    /// Starts a relay to `server` on a free port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If it cannot listen.
    pub fn start(server: SocketAddr) -> Self {
        let (weather, current) = watch::channel(Weather::default());
        let records = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (answer, bound) = std::sync::mpsc::channel();
        let log = Arc::clone(&records);
        let thread = Place::here().spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime(), async move {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                    .await
                    .expect("loopback has free ports");
                let _ = answer.send(listener.local_addr().expect("it is bound"));
                let accept = async {
                    loop {
                        let Ok((caller, _)) = listener.accept().await else {
                            continue;
                        };
                        tokio::task::spawn_local(connection(
                            caller,
                            server,
                            current.clone(),
                            Arc::clone(&log),
                        ));
                    }
                };
                tokio::select! { () = accept => {} _ = stopped => {} }
            });
        });
        let address = bound.recv().expect("the relay's thread answers");
        Self {
            address,
            weather,
            records,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where the relay listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what is done to connections, those that are open included.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// What has passed, by connection.
    pub fn records(&self) -> Vec<Record> {
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn connection(
    caller: TcpStream,
    server: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    log: Arc<Mutex<Vec<Record>>>,
) {
    let _ = caller.set_nodelay(true);
    let first = *weather.borrow_and_update();
    if first == Weather::Broken {
        return reset(&caller);
    }
    if first == Weather::Mirror {
        return mirror(caller, weather).await;
    }
    if wait_fair(&mut weather).await.is_none() {
        return reset(&caller);
    }
    let Ok(callee) = TcpStream::connect(server).await else {
        return reset(&caller);
    };
    let _ = callee.set_nodelay(true);
    let index = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(Record::default());
        log.len() - 1
    };
    let bend = if let Weather::Bend(offset, mask) = first {
        Some((offset, mask))
    } else {
        None
    };
    let (caller_read, caller_write) = caller.into_split();
    let (callee_read, callee_write) = callee.into_split();
    let note = |up: bool, bytes: &[u8]| {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = log.get_mut(index) {
            let kept = if up { &mut record.up } else { &mut record.down };
            let room = RECORDED.saturating_sub(kept.len()).min(bytes.len());
            kept.extend_from_slice(&bytes[..room]);
        }
    };
    let broken = {
        let up = pump(caller_read, callee_write, weather.clone(), bend, |bytes| {
            note(true, bytes)
        });
        let down = pump(callee_read, caller_write, weather, None, |bytes| {
            note(false, bytes)
        });
        tokio::join!(up, down)
    };
    // dropping what is unread resets both connections
    drop(broken);
}

type Ends = (tcp::OwnedReadHalf, tcp::OwnedWriteHalf);

async fn pump(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    mut bend: Option<(usize, u8)>,
    note: impl Fn(&[u8]),
) -> Ends {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if wait_fair(&mut weather).await.is_none() {
            reset(from.as_ref());
            reset(to.as_ref());
            return (from, to);
        }
        let length = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(length) if length > 0 => length,
                _ => break,
            },
            _ = weather.changed() => continue,
        };
        if let Some((offset, mask)) = bend.take()
            && let Some(byte) = buffer[..length].get_mut(offset)
        {
            *byte ^= mask;
        }
        note(&buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    (from, to)
}

/// Waits until bytes may pass; `None` if the connection is to be reset.
async fn wait_fair(weather: &mut watch::Receiver<Weather>) -> Option<()> {
    let settled = weather
        .wait_for(|weather| *weather != Weather::Frozen)
        .await
        .ok()?;
    (*settled != Weather::Broken).then_some(())
}

async fn mirror(mut caller: TcpStream, mut weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 64 * 1024];
    tokio::select! {
        () = async {
            while let Ok(length) = caller.read(&mut buffer).await {
                if length == 0 || caller.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        } => {}
        _ = weather.wait_for(|weather| *weather != Weather::Mirror) => {}
    }
}

fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Enough for any handshake and some frames after it.
const RECORDED: usize = 64 * 1024;

/// How long a test waits for something to pass a relay.
pub const PASSES_WITHIN: Duration = Duration::from_secs(30);
