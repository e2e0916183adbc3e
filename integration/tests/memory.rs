//! Two thousand downloads that nobody reads: both ends stay within the memory they were given, refuse what is new, and
//! give everything back.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::Pair,
    flows::Download,
    meters::{Meters, wait_for},
    namespaces::{Place, runtime},
    origin::Origin,
    process::raise_descriptor_limit,
    socks::{self, SocksError},
    stream,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Downloads that begin and are not read.
const DOWNLOADS: usize = 2000;
/// What each would bring: several times a flow's rings.
const LENGTH: u64 = 4_000_000;
/// What both ends are told they may hold, of which half is for new flows.
const MEMORY: u64 = 16 << 20;
/// What each flow may hold beyond that, so that it never waits for another: two pages.
const FLOORS: u64 = DOWNLOADS as u64 * 2 * 4096;
/// The lane's queues and buffers, the allocator's slack, and what else does not depend on the flows.
const ELSE: u64 = 32 << 20;
/// What the proxy answers when nobody else did.
const TIMED_OUT: u8 = 6;
/// For how long it is watched that what is held stays so.
const WATCHED: Duration = Duration::from_secs(15);
/// The hang guard of what a busy machine does late.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn downloads_that_nobody_reads_stay_within_the_memory_given() {
    let limit = raise_descriptor_limit();
    assert!(
        limit > 4 * DOWNLOADS as u64 + 500,
        "only {limit} descriptors allowed"
    );
    let origin = Origin::http(&Place::here(), (Ipv4Addr::LOCALHOST, 0).into());
    let (target, url) = (origin.address(), format!("/bytes/{LENGTH}?seed=7"));
    // By datagrams: on stream lanes flows are relayed and have no netstack.
    let mut pair = Pair::start_with(
        "udp",
        "limits: {memory: 16MiB, memory_per_client: 16MiB}",
        "limits: {memory: 16MiB}",
    );
    let proxy = pair.proxy;
    let runtime = runtime();
    let download = || async {
        let stream = socks::connect(proxy, target).await.expect("connects");
        let begun = Download::start(stream, &url).await.expect("begins");
        begun.finish().await.expect("comes")
    };
    let right = (LENGTH, stream::sha256(7, LENGTH));
    assert_eq!(runtime.block_on(download()), right);
    let before = [pair.server.meters(), pair.client.meters()];

    let mut streams: Vec<TcpStream> = runtime.block_on(async {
        let mut streams = Vec::new();
        while streams.len() < DOWNLOADS {
            match socks::connect(proxy, target).await {
                Ok(stream) => streams.push(stream),
                // A machine that stood still meanwhile is no reason.
                Err(SocksError::Refused(TIMED_OUT)) => {}
                Err(error) => panic!("connection {}: {error}", streams.len()),
            }
        }
        streams
    });
    let open = [pair.server.meters(), pair.client.meters()];
    runtime.block_on(async {
        let request = format!("GET {url} HTTP/1.1\r\nHost: origin.example\r\n\r\n");
        for stream in &mut streams {
            stream.write_all(request.as_bytes()).await.expect("asks");
        }
    });
    let code = wait_for(PATIENCE, || {
        match runtime.block_on(socks::connect(proxy, target)) {
            Err(SocksError::Refused(code)) => Some(code),
            Ok(_) | Err(_) => None,
        }
    });
    // General failure where the client has no memory, a refused connection where the server has none.
    assert!(matches!(code, Some(1 | 5)), "{code:?}");

    let (begun, mut most) = (Instant::now(), [0, 0]);
    while begun.elapsed() < WATCHED {
        for (most, now) in most
            .iter_mut()
            .zip([pair.server.meters(), pair.client.meters()])
        {
            *most = now.resident.max(*most);
        }
        thread::sleep(Duration::from_millis(200));
    }
    for (end, most, open) in [("server", most[0], open[0]), ("client", most[1], open[1])] {
        println!("{end}: {} MiB of {open} with idle flows", most >> 20);
        let bound = open.resident + MEMORY + FLOORS + ELSE;
        assert!(most <= bound, "{end}: {most} bytes, beyond {bound}");
    }

    drop(streams);
    let settled = wait_for(PATIENCE, || {
        let back = |now: Meters, before: &Meters| {
            now.memory_is_back_at(before) && now.descriptors <= before.descriptors
        };
        (back(pair.server.meters(), &before[0]) && back(pair.client.meters(), &before[1]))
            .then_some(())
    });
    let after = [pair.server.meters(), pair.client.meters()];
    assert!(
        settled.is_some(),
        "server: {} → {}; client: {} → {}",
        before[0],
        after[0],
        before[1],
        after[1]
    );
    let taken = wait_for(PATIENCE, || {
        runtime.block_on(socks::connect(proxy, target)).ok()
    });
    assert!(taken.is_some(), "new flows are still refused");
    assert_eq!(runtime.block_on(download()), right);
    assert_eq!(
        (pair.server.panics(), pair.client.panics()),
        (vec![], vec![])
    );
}
