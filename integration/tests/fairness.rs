//! Sixty-four downloads and two hundred echo connections share one lane, and none starves.

use std::{cell::Cell, net::Ipv4Addr, rc::Rc, time::Duration};

use adit_integration::{
    adit::Pair,
    flows::{self, Download},
    namespaces::{Place, runtime},
    origin::Origin,
    process::raise_descriptor_limit,
    socks,
};
use tokio::{task, time::timeout};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const DOWNLOADS: usize = 64;
const ECHOES: usize = 200;
/// The downloads together, after which everything is counted.
const TOTAL: u64 = 1 << 30;
/// The hang guard.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn no_flow_starves_beside_264() {
    share("tcp");
}

#[test]
fn no_flow_starves_beside_264_over_tls() {
    share("tls");
}

/// Measures shares and not seconds: when the downloads have `TOTAL` bytes together, each must have a fair part of it,
/// and each echo connection must have been served at least half as often as the others: how often that is depends on the
/// machine.
fn share(scheme: &str) {
    raise_descriptor_limit();
    let here = Place::here();
    let (http, echo) = (
        Origin::http(&here, LOOPBACK.into()),
        Origin::echo(&here, LOOPBACK.into()),
    );
    let pair = Pair::start(scheme);
    let (proxy, http, echo) = (pair.proxy, http.address(), echo.address());
    let local = task::LocalSet::new();
    let (downloaded, echoed) = local.block_on(&runtime(), async move {
        let downloaded: Rc<Vec<Cell<u64>>> =
            Rc::new((0..DOWNLOADS).map(|_| Cell::new(0)).collect());
        let echoed: Rc<Vec<Cell<u64>>> = Rc::new((0..ECHOES).map(|_| Cell::new(0)).collect());
        let done = |counts: &[Cell<u64>]| counts.iter().map(Cell::get).sum::<u64>() >= TOTAL;
        // all are open before any begins
        let mut streams = Vec::new();
        for target in [vec![http; DOWNLOADS], vec![echo; ECHOES]].concat() {
            streams.push(socks::connect(proxy, target).await.expect("connects"));
        }
        let mut tasks = task::JoinSet::new();
        for (index, mut stream) in streams.into_iter().enumerate() {
            let (downloaded, echoed) = (Rc::clone(&downloaded), Rc::clone(&echoed));
            tasks.spawn_local(async move {
                if index < DOWNLOADS {
                    let mut download = Download::start(stream, &format!("/bytes/{TOTAL}"))
                        .await
                        .expect("the download begins");
                    while !done(&downloaded) {
                        let count = download.read_some().await.expect("the download goes on");
                        assert_ne!(count, 0, "download {index} ended");
                        downloaded[index].set(downloaded[index].get() + count as u64);
                    }
                } else {
                    let count = &echoed[index - DOWNLOADS];
                    while !done(&downloaded) {
                        flows::echo(&mut stream, &[0x55; 64], PATIENCE)
                            .await
                            .expect("the echo comes");
                        count.set(count.get() + 1);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            });
        }
        let all = async {
            while let Some(task) = tasks.join_next().await {
                task.expect("a flow goes on to the end");
            }
        };
        let finished = timeout(PATIENCE, all).await;
        let counts = |cells: &[Cell<u64>]| cells.iter().map(Cell::get).collect::<Vec<_>>();
        let (downloaded, echoed) = (counts(&downloaded), counts(&echoed));
        assert!(
            finished.is_ok(),
            "not done in time: downloads {downloaded:?}, echoes {echoed:?}"
        );
        (downloaded, echoed)
    });
    let least = downloaded.iter().min().copied().unwrap_or(0);
    let rounds = echoed.iter().min().copied().unwrap_or(0);
    let mean = downloaded.iter().sum::<u64>() / DOWNLOADS as u64;
    let mean_rounds = echoed.iter().sum::<u64>() / ECHOES as u64;
    println!(
        "{scheme}: downloads: least {least} of {mean} on average; echoes: least {rounds} of {mean_rounds}"
    );
    assert!(
        least * 4 >= mean,
        "one download has {least} bytes where {mean} is the average: {downloaded:?}"
    );
    assert!(
        rounds >= 1 && rounds * 2 >= mean_rounds,
        "one echo connection was served {rounds} times where {mean_rounds} is the average: {echoed:?}"
    );
}
