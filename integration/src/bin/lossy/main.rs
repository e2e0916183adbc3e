//! What a download or upload and a stream of messages come to over a lossy link, with repair and without. As root.
//!
//!   cargo run --release -p adit-integration --bin lossy -- [loss=0,1,3,5,10] [burst=1] [repair=auto,off] [way=down]
//!       [lane=udp] [egress=tun] [secs=15] [seed=1] [counters=0] [link=delay=25,rate=50,limit=100ms]
//!
//! The real programs in network namespaces, the server with a `tun` egress and the client an ordinary user, over a link
//! that this process emulates between their devices, with losses both ways; the kernel's TCP, with CUBIC, at both
//! ends of the tunnel. Prints a row of a table for each loss, setting and way:
//!
//! - goodput of one download, or upload, after two seconds, counted where it arrives, and the bytes on the wire in its
//!   direction for each byte of it;
//! - the round trip of 200 bytes each 20 ms by TCP beside it, median and 99th percentile;
//! - the same with nothing beside it, by TCP and by UDP, with how many were lost.
//!
//! Messages that have not all come back ten seconds after the last was sent are called stalled.
//!
//! With `counters=1` what client and server counted follows on standard error.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{ClientConfig, ServerConfig, User, Workdir},
    flows::Download,
    link::Link,
    messages::{self, APART, RoundTrips},
    namespaces::{Lab, ORIGIN4, SERVER4},
    origin::Origin,
    socks,
};
use tokio::{io::AsyncWriteExt, time::sleep};

const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);
/// After this what is measured has found its pace.
const WARM_UP: Duration = Duration::from_secs(2);
/// More than any link here carries.
const LENGTH: u64 = 1 << 40;
/// How long the last messages may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked for.
struct Options {
    losses: Vec<String>,
    burst: String,
    repairs: Vec<String>,
    ways: Vec<String>,
    lane: String,
    egress: String,
    secs: u32,
    seed: u64,
    counters: bool,
    link: String,
}

fn main() {
    let mut options = Options {
        losses: ["0", "1", "3", "5", "10"].map(String::from).into(),
        burst: "1".into(),
        repairs: ["auto", "off"].map(String::from).into(),
        ways: ["down".into()].into(),
        lane: "udp".into(),
        egress: "tun".into(),
        secs: 15,
        seed: 1,
        counters: false,
        link: "delay=25,rate=50,limit=100ms".into(),
    };
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
        let list = || value.split(',').map(String::from).collect();
        match name {
            "loss" => options.losses = list(),
            "burst" => value.clone_into(&mut options.burst),
            "repair" => options.repairs = list(),
            "way" if value.split(',').all(|way| way == "down" || way == "up") => {
                options.ways = list();
            }
            "lane" => value.clone_into(&mut options.lane),
            "counters" => options.counters = value == "1",
            "egress" => value.clone_into(&mut options.egress),
            "link" => value.clone_into(&mut options.link),
            "secs" if value.parse().is_ok_and(|secs: u32| secs > 0) => {
                options.secs = value.parse().unwrap_or_default();
            }
            "seed" if value.parse::<u64>().is_ok() => {
                options.seed = value.parse().unwrap_or_default();
            }
            _ => {
                eprintln!("{argument:?} is no argument; they stand at the head of this program");
                std::process::exit(2);
            }
        }
    }
    println!(
        "link {}, bursts of {}, {}",
        options.link, options.burst, options.lane
    );
    println!(
        "| loss | repair | way | Mbit/s | wire/byte | beside it p50/p99 | TCP p50/p99, lost | UDP |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for loss in &options.losses {
        for repair in &options.repairs {
            for way in &options.ways {
                let found = options.measure(loss, repair, way == "up");
                println!("| {loss} % | {repair} | {way} | {found} |");
            }
        }
    }
}

impl Options {
    fn measure(&self, loss: &str, repair: &str, up: bool) -> String {
        let text = format!("loss={loss},burst={},{}", self.burst, self.link);
        let link: Link = text.parse().expect("the description of a link");
        let mut lab = Lab::emulated(&link, self.seed);
        for place in [&lab.client, &lab.server, &lab.internet] {
            place.shell("echo cubic > /proc/sys/net/ipv4/tcp_congestion_control");
        }
        let http = Origin::http(&lab.internet, (ORIGIN4, 80).into());
        let tcp = Origin::echo(&lab.internet, (ORIGIN4, 7).into());
        let udp = Origin::udp_echo(&lab.internet, (ORIGIN4, 7).into());
        let got = Arc::new(AtomicU64::new(0));
        let sink = Origin::sink(&lab.internet, (ORIGIN4, 9).into(), got.clone());
        let (tcp, udp) = (tcp.address(), udp.address());
        let origin = if up { sink.address() } else { http.address() };
        let workdir = Workdir::new();
        let as_server = if self.egress == "tun" {
            User::Same
        } else {
            User::Nobody
        };
        let server_key = workdir.key("server.key", as_server);
        let client_key = workdir.key("client.key", User::Nobody);
        let lane = format!("{}://{SERVER4}:7443", self.lane);
        let egress = if self.egress == "tun" {
            ServerConfig::tun_egress()
        } else {
            ServerConfig::user_egress()
        };
        let config = ServerConfig {
            listen: vec![lane.clone()],
            clients: vec![("laptop".into(), client_key.public.clone())],
            more: format!("repair: {repair}"),
            ..egress
        };
        let server = workdir.server("server.yaml", &server_key, as_server, &config);
        let config = ClientConfig {
            server: vec![lane],
            server_key: server_key.public,
            proxy: PROXY,
            more: format!("repair: {repair}"),
        };
        let client = workdir.client("client.yaml", &client_key, &config);
        let mut server = workdir.start_server(&lab.server, as_server, &server);
        let mut client = workdir.start_client(&lab.client, User::Nobody, &client);
        let count = (self.secs * 1_000) as usize / APART.as_millis() as usize;
        let marks = {
            let got = got.clone();
            let wire = lab.wire.take().expect("this process emulates the link");
            move || {
                let counters = wire.counters();
                let wire = if up { counters.up } else { counters.down };
                (got.load(Ordering::Relaxed), wire.sent_bytes, Instant::now())
            }
        };
        let (before, after, beside, alone) = lab.client.block_on(move || async move {
            let by_tcp = messages::over_tcp(PROXY, tcp, count, PATIENCE);
            let by_udp = messages::over_udp(PROXY, udp, count, PATIENCE);
            let alone = tokio::join!(by_tcp, by_udp);
            let mut stream = socks::connect(PROXY, origin).await.expect("connects");
            let bulk = async {
                if up {
                    while stream.write_all(&[0x5A; 1 << 16]).await.is_ok() {}
                    return;
                }
                let path = format!("/bytes/{LENGTH}?seed=5");
                let mut download = Download::start(stream, &path).await.expect("begins");
                while let Ok(more) = download.read_some().await {
                    got.fetch_add(more as u64, Ordering::Relaxed);
                }
            };
            let measure = async {
                sleep(WARM_UP).await;
                let before = marks();
                let beside = messages::over_tcp(PROXY, tcp, count, PATIENCE).await;
                (before, marks(), beside)
            };
            tokio::select! {
                biased;
                (before, after, beside) = measure => (before, after, beside, alone),
                () = bulk => panic!("the download or upload has ended"),
            }
        });
        client.stop();
        server.stop();
        if self.counters {
            for (side, program) in [("client", &mut client), ("server", &mut server)] {
                let text = program.process().text();
                for line in text
                    .lines()
                    .filter(|line| line.contains("counters") || line.contains("TRC"))
                {
                    eprintln!("{side}: {line}");
                }
            }
        }
        let bytes = (after.0 - before.0).max(1) as f64;
        format!(
            "{:.1} | {:.2} | {} | {} | {}",
            bytes * 8.0 / 1e6 / (after.2 - before.2).as_secs_f64(),
            (after.1 - before.1) as f64 / bytes,
            times(&beside),
            times(&alone.0),
            times(&alone.1)
        )
    }
}

fn times(found: &io::Result<RoundTrips>) -> String {
    let found = match found {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return "stalled".into(),
        Err(error) => return error.to_string(),
    };
    let millis = |percent| found.percentile(percent).as_secs_f64() * 1_000.0;
    format!(
        "{:.0}/{:.0} ms, {}",
        millis(50.0),
        millis(99.0),
        found.sent - found.came()
    )
}
