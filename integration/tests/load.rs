//! Two thousand connections, and then none: everything is given back.

use std::{
    cell::Cell,
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Adit, Pair},
    flows::{self, Download},
    meters::{self, Meters, wait_for},
    namespaces::{Place, runtime},
    origin::Origin,
    process::{Signal, raise_descriptor_limit},
    relay::{Relay, Weather},
    socks, stream,
};
use tokio::{
    net::TcpStream,
    task,
    time::{sleep, timeout},
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// Connections held at once.
const CONNECTIONS: usize = 2000;
/// For how long.
const LOADED: Duration = Duration::from_secs(30);
/// How long after the load memory and descriptors are looked at, at the latest.
const SETTLES: Duration = Duration::from_secs(30);
/// The hang guard of one exchange among thousands on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Tally {
    exchanges: Cell<u64>,
    failures: Cell<u64>,
    first: Cell<Option<String>>,
}

impl Tally {
    fn note(&self, what: &str, result: io::Result<()>) {
        match result {
            Ok(()) => self.exchanges.set(self.exchanges.get() + 1),
            Err(error) => {
                self.failures.set(self.failures.get() + 1);
                let first = self
                    .first
                    .take()
                    .unwrap_or_else(|| format!("{what}: {error}"));
                self.first.set(Some(first));
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Scene {
    proxy: SocketAddr,
    http: SocketAddr,
    echo: SocketAddr,
}

#[test]
fn two_thousand_connections_leave_nothing_behind() {
    let limit = raise_descriptor_limit();
    assert!(
        limit > 2 * CONNECTIONS as u64 + 500,
        "only {limit} descriptors allowed"
    );
    let here = Place::here();
    let (http, echo) = (
        Origin::http(&here, LOOPBACK.into()),
        Origin::echo(&here, LOOPBACK.into()),
    );
    let mut pair = Pair::start("tcp");
    let scene = Scene {
        proxy: pair.proxy,
        http: http.address(),
        echo: echo.address(),
    };

    // code paged in, pools and caches filled as any use fills them
    load(scene, 50, Duration::from_secs(2));
    thread::sleep(Duration::from_secs(2));
    let before = [pair.server.meters(), pair.client.meters()];

    let tally = load(scene, CONNECTIONS, LOADED);
    println!(
        "{} exchanges; before: {} | {}",
        tally.exchanges.get(),
        before[0],
        before[1]
    );
    assert_eq!(tally.failures.get(), 0, "first: {:?}", tally.first.take());
    assert!(
        tally.exchanges.get() > 10 * CONNECTIONS as u64,
        "only {} exchanges",
        tally.exchanges.get()
    );

    let settled = wait_for(SETTLES, || {
        let is_back = |adit: &mut Adit, before: &Meters| {
            let now = adit.meters();
            now.memory_is_back_at(before) && now.descriptors == before.descriptors
        };
        (is_back(&mut pair.server, &before[0]) && is_back(&mut pair.client, &before[1]))
            .then_some(())
    });
    let after = [pair.server.meters(), pair.client.meters()];
    println!("after: {} | {}", after[0], after[1]);
    if settled.is_none() {
        for adit in [&mut pair.server, &mut pair.client] {
            eprintln!("{:#?}", meters::descriptors(adit.process().pid()));
        }
        panic!(
            "server: {} → {}; client: {} → {}",
            before[0], after[0], before[1], after[1]
        );
    }
    assert_eq!(
        (pair.server.panics(), pair.client.panics()),
        (vec![], vec![])
    );
}

#[test]
fn session_of_a_client_killed_in_silence_is_freed() {
    let echo = Origin::echo(&Place::here(), LOOPBACK.into());
    let mut pair = Pair::start("tcp");
    // one more client behind a relay that will swallow the news of its end
    let relay = Relay::start((Ipv4Addr::LOCALHOST, pair.port).into());
    let (mut killed, proxy) = pair.other("tcp", relay.address().port());
    killed.expect_ready();
    let before_flows = pair.server.meters();
    let held = 40;
    let address = echo.address();
    let streams = Place::here().block_on(move || async move {
        let mut streams = Vec::new();
        for _ in 0..held {
            let mut stream = socks::connect(proxy, address).await.expect("connects");
            flows::echo(&mut stream, b"held", PATIENCE)
                .await
                .expect("echoes");
            streams.push(stream.into_std().expect("an open socket"));
        }
        streams
    });
    assert_eq!(echo.open(), held);
    relay.set(Weather::Frozen);
    killed.process().signal(Signal::Kill);
    let freed = wait_for(Duration::from_secs(120), || {
        let now = pair.server.meters();
        (echo.open() == 0 && now.descriptors < before_flows.descriptors).then_some(())
    });
    assert!(
        freed.is_some(),
        "{} of {held} flows are still open, {} → {}",
        echo.open(),
        before_flows,
        pair.server.meters()
    );
    drop(streams);
    // and the other client noticed nothing
    runtime().block_on(async {
        let mut stream = socks::connect(pair.proxy, address).await.expect("connects");
        flows::echo(&mut stream, b"x", PATIENCE)
            .await
            .expect("echoes");
    });
}

/// Keeps `connections` open for `duration`, of all kinds, each reopened when it has done its work.
fn load(scene: Scene, connections: usize, duration: Duration) -> Rc<Tally> {
    let tally = Rc::new(Tally::default());
    let local = task::LocalSet::new();
    local.block_on(&runtime(), async {
        let end = Instant::now() + duration;
        let mut tasks = task::JoinSet::new();
        for index in 0..connections {
            let tally = Rc::clone(&tally);
            tasks.spawn_local(async move {
                // not all in the same millisecond
                sleep(Duration::from_millis(index as u64 / 2)).await;
                while Instant::now() < end {
                    one(scene, index, end, &tally).await;
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("a task does not panic");
        }
    });
    tally
}

/// One connection's life, by its index: echo, download, upload, idle, or leaving in the middle of something.
async fn one(scene: Scene, index: usize, end: Instant, tally: &Tally) {
    let target = if matches!(index % 5, 0 | 3) {
        scene.echo
    } else {
        scene.http
    };
    let stream = match timeout(PATIENCE, socks::connect(scene.proxy, target)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tally.note("connecting", Err(io::Error::other(error))),
        Err(_) => return tally.note("connecting", Err(io::ErrorKind::TimedOut.into())),
    };
    let left = || end.saturating_duration_since(Instant::now());
    match index % 5 {
        0 => echoes(stream, 20, left, tally).await,
        1 => {
            let got = timeout(PATIENCE, download(stream, 20_000 + index as u64 * 37)).await;
            tally.note(
                "downloading",
                got.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            );
            sleep(Duration::from_millis(900).min(left())).await;
        }
        2 => {
            let sent = timeout(PATIENCE, upload(stream, 10_000 + index as u64 * 11)).await;
            tally.note(
                "uploading",
                sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            );
            sleep(Duration::from_millis(900).min(left())).await;
        }
        3 => {
            sleep(Duration::from_secs(5).min(left())).await;
            echoes(stream, 1, left, tally).await;
        }
        // leaves while bytes are on the way: the flow ends by a reset
        _ => {
            let began = Download::start(stream, "/slow/500000?pause=5").await;
            sleep(Duration::from_secs(2).min(left())).await;
            tally.note("leaving", began.map(drop));
        }
    }
}

async fn echoes(mut stream: TcpStream, rounds: usize, left: impl Fn() -> Duration, tally: &Tally) {
    for round in 0..rounds {
        let bytes = vec![u8::try_from(round).unwrap_or(0); 200];
        tally.note("echoing", flows::echo(&mut stream, &bytes, PATIENCE).await);
        if left().is_zero() {
            return;
        }
        sleep(Duration::from_millis(150).min(left())).await;
    }
}

async fn download(stream: TcpStream, length: u64) -> io::Result<()> {
    let got = Download::start(stream, &format!("/bytes/{length}?seed={length}"))
        .await?
        .finish()
        .await?;
    if got == (length, stream::sha256(length, length)) {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

async fn upload(mut stream: TcpStream, length: u64) -> io::Result<()> {
    let answer = flows::upload(&mut stream, length, length).await?;
    let right = format!("{length} {}", stream::sha256(length, length));
    if answer == right {
        Ok(())
    } else {
        Err(io::Error::other(answer))
    }
}
