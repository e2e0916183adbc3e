//! Goodput of the whole path in one process: an application, the client, a lane, the server with
//! egress `user`, an origin, all on loopback and sharing the processors.
//!
//! ```text
//! cargo bench --bench path                    every lane, relayed and in packets, 1 and 64 flows, down and up
//! cargo bench --bench path -- udp 1 down      of these, what is named
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adit::config::Scheme;

#[path = "../tests/path/mod.rs"]
mod path;

fn main() {
    // cargo adds flags of its own
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_wanted = |all: &[&str], this: &str| {
        wanted.iter().any(|word| word == this)
            || !wanted.iter().any(|word| all.contains(&word.as_str()))
    };
    for (lane, scheme, by) in [
        ("tcp", Scheme::Tcp, "relayed"),
        ("tcp", Scheme::Tcp, "packets"),
        ("tls", Scheme::Tls, "relayed"),
        ("tls", Scheme::Tls, "packets"),
        ("wss", Scheme::Wss, "relayed"),
        ("udp", Scheme::Udp, "packets"),
    ] {
        for (flows, count) in [("1", 1), ("64", 64)] {
            for (way, up) in [("down", false), ("up", true)] {
                if is_wanted(&["tcp", "tls", "wss", "udp"], lane)
                    && is_wanted(&["relayed", "packets"], by)
                    && is_wanted(&["1", "64"], flows)
                    && is_wanted(&["down", "up"], way)
                {
                    let rate = goodput(scheme, by == "relayed", count, up);
                    println!("{lane} lane, {by}, {flows:2} flows {way:4}: {rate:6.0} Mbit/s");
                }
            }
        }
    }
}

/// Moves bytes by `flows` flows for [`WARM`] and [`MEASURED`]; returns Mbit/s of the latter.
fn goodput(scheme: Scheme, relayed: bool, flows: usize, up: bool) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let origin = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let proxy = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let target = origin.local_addr().expect("bound");
    let path = runtime.block_on(async {
        let path = if relayed {
            path::Path::start(scheme).await
        } else {
            path::Path::start_by_packets(scheme).await
        };
        path.connected().await;
        path
    });
    let (stop, moved) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    for _ in 0..flows {
        let application = TcpStream::connect(proxy.local_addr().expect("bound")).expect("connects");
        let proxied = proxy.accept().expect("accepts").0;
        proxied.set_nonblocking(true).expect("a fresh socket");
        runtime.block_on(async {
            let flow = path.client.tunnel().connect(target).await.expect("a flow");
            let proxied = tokio::net::TcpStream::from_std(proxied).expect("non-blocking");
            flow.attach(proxied, Vec::new());
        });
        let origin = origin.accept().expect("accepts").0;
        let (mut from, mut to) = if up {
            (application, origin)
        } else {
            (origin, application)
        };
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) && from.write_all(&[7; 65_536]).is_ok() {}
        });
        let (stopped, moved) = (stop.clone(), moved.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 65_536];
            while let Ok(read @ 1..) = to.read(&mut bytes) {
                moved.fetch_add(read as u64, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
    }
    std::thread::sleep(WARM);
    let (began, before) = (Instant::now(), moved.load(Ordering::Relaxed));
    std::thread::sleep(MEASURED);
    let bytes = moved.load(Ordering::Relaxed) - before;
    let rate = bytes as f64 * 8e-6 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(path.end());
    rate
}

/// Until every window is open.
const WARM: Duration = Duration::from_secs(1);

/// Long enough that the scheduler's whims even out.
const MEASURED: Duration = Duration::from_secs(4);
