//! What 64 KiB of a bulk transfer cost the programs in system calls.
//!
//! A download and an upload of [`BYTES`] go through a client and a server, each watched by `strace -f -c` meanwhile,
//! and the calls of each are divided by the number of 64 KiB that have passed.
//!
//! Per 64 KiB a side needs at least one call that reads and one that writes, less where a read of the lane brings
//! several super-packets or a write takes several. The acknowledgements are a small write on one side and a small read
//! on the other, and once the sockets have no more to give there are reads that say so and an `epoll_wait`. How often
//! depends on how much a wake-up finds; under strace a call takes many times as long, so that a wake-up finds plenty
//! however slow the machine is. That makes the numbers steady enough for a bound, and is why they are no estimate of
//! what an untraced program does. One more call for each super-packet on either side is beyond the bound.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use adit_integration::{
    adit::{Adit, ClientConfig, Pair, ServerConfig, User, Workdir},
    flows, meters,
    namespaces::{Lab, ORIGIN4, Place, SERVER4},
    origin::Origin,
    process::{Process, Signal},
    scene::{Couple, PROXY},
    skip::{Need, can_run},
    socks, stream,
};

/// Four thousand times 64 KiB: what is not for each of them vanishes.
const BYTES: u64 = 256 << 20;

/// The hang guard of what takes no time.
const SOON: Duration = Duration::from_secs(20);

/// The hang guard of a transfer, in which every call of both programs takes a detour.
const HANG: Duration = Duration::from_secs(180);

/// Transfers of which one must keep the bounds.
const ATTEMPTS: usize = 3;

/// One program may trace another, and the lab can be made.
const NEEDS: &[Need] = &[Need::Root, Need::Tool("strace")];

/// The most calls per 64 KiB, of client and server. Each is less than one above what is seen.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    download: (f64, f64),
    upload: (f64, f64),
}

#[test]
fn user_egress_over_a_tcp_lane_makes_few_system_calls() {
    if can_run(NEEDS) {
        pair(
            "tcp",
            Bounds {
                download: (1.4, 1.4),
                upload: (1.3, 1.5),
            },
        );
    }
}

#[test]
fn user_egress_over_a_tls_lane_makes_few_system_calls() {
    if can_run(NEEDS) {
        pair(
            "tls",
            Bounds {
                // A read for each record of 16 KiB, and one to see that there is no more.
                download: (5.8, 2.4),
                upload: (2.4, 6.2),
            },
        );
    }
}

#[test]
fn tun_egress_makes_few_system_calls() {
    if !can_run(NEEDS) || !can_run(&[Need::Tun, Need::Tool("ip"), Need::Tool("nft")]) {
        return;
    }
    let lab = Lab::new();
    let origin = Origin::http(&lab.internet, (ORIGIN4, 80).into());
    let workdir = Workdir::new();
    let lanes = [format!("tcp://{SERVER4}:7443")];
    let server = ServerConfig {
        listen: lanes.to_vec(),
        ..ServerConfig::tun_egress()
    };
    let files = Couple::write(&workdir, [User::Same; 2], server, ClientConfig::to(&lanes));
    let mut server = workdir.start_server(&lab.server, User::Same, &files.server);
    let mut client = workdir.start_client(&lab.client, User::Same, &files.client);
    Scene {
        place: &lab.client,
        folder: workdir.path(),
        client: &mut client,
        server: &mut server,
        proxy: PROXY,
        origin: origin.address(),
    }
    .check(Bounds {
        // The device takes and gives one packet a call, acknowledgements among them.
        download: (1.4, 2.9),
        upload: (1.3, 3.9),
    });
}

/// A pair on loopback must keep the bounds.
fn pair(scheme: &str, bounds: Bounds) {
    let here = Place::here();
    let origin = Origin::http(&here, (Ipv4Addr::LOCALHOST, 0).into());
    let mut pair = Pair::start(scheme);
    Scene {
        place: &here,
        folder: pair.workdir.path(),
        client: &mut pair.client,
        server: &mut pair.server,
        proxy: pair.proxy,
        origin: origin.address(),
    }
    .check(bounds);
}

struct Scene<'a> {
    place: &'a Place,
    folder: &'a Path,
    client: &'a mut Adit,
    server: &'a mut Adit,
    proxy: SocketAddr,
    origin: SocketAddr,
}

impl Scene<'_> {
    fn check(&mut self, bounds: Bounds) {
        let (proxy, origin) = (self.proxy, self.origin);
        self.transfer("download", bounds.download, move || async move {
            let stream = socks::connect(proxy, origin).await.expect("a connection");
            let download = flows::Download::start(stream, &format!("/bytes/{BYTES}?seed=1")).await;
            let (length, hash) = download.expect("an answer").finish().await.expect("a body");
            assert_eq!((length, hash), (BYTES, stream::sha256(1, BYTES)));
        });
        self.transfer("upload", bounds.upload, move || async move {
            let mut stream = socks::connect(proxy, origin).await.expect("a connection");
            let answer = flows::upload(&mut stream, 1, BYTES).await;
            assert!(answer.is_ok(), "{answer:?}");
        });
    }

    /// A wake-up finds less to do where another program has the processor at the wrong moment; a call too many for
    /// each 64 KiB is there every time. So the bound holds if it does so for one transfer of [`ATTEMPTS`].
    fn transfer<F: Future<Output = ()>>(
        &mut self,
        what: &str,
        bound: (f64, f64),
        run: impl Fn() -> F + Clone + Send + 'static,
    ) {
        let mut broken = Vec::new();
        for _ in 0..ATTEMPTS {
            let client = Trace::start(self.folder, self.client);
            let server = Trace::start(self.folder, self.server);
            let run = run.clone();
            self.place.block_on(move || async move {
                let ended = tokio::time::timeout(HANG, run()).await;
                assert!(ended.is_ok(), "the transfer is not over after {HANG:?}");
            });
            let kept = broken.len();
            for (who, trace, most) in [("client", client, bound.0), ("server", server, bound.1)] {
                let calls = trace.end();
                let per_unit = |count: &u64| *count as f64 / (BYTES / 65_536) as f64;
                let all = per_unit(&calls.values().sum());
                println!("{what}, {who}: {all:.2} per 64 KiB");
                if all > most {
                    broken.push(format!(
                        "{what}, {who}: {all:.2} system calls per 64 KiB, {most} at most: {calls:?}"
                    ));
                }
            }
            if broken.len() == kept {
                return;
            }
        }
        panic!("{broken:#?}");
    }
}

/// Counts the system calls of a running program.
struct Trace {
    strace: Process,
    summary: std::path::PathBuf,
}

impl Trace {
    fn start(folder: &Path, adit: &mut Adit) -> Self {
        let pid = adit.process().pid();
        let summary = folder.join(format!("strace.{pid}"));
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(&summary);
        command.args(["-p", &pid.to_string()]);
        let strace = Process::spawn("strace", command);
        meters::wait_for(SOON, || is_traced(pid).then_some(())).expect("strace attaches");
        Self { strace, summary }
    }

    /// Stops counting; returns the number of calls by name.
    fn end(mut self) -> BTreeMap<String, u64> {
        self.strace.signal(Signal::Interrupt);
        assert!(self.strace.wait(SOON).is_some(), "strace has not ended");
        let summary = fs::read_to_string(&self.summary).expect("a summary");
        // % time, seconds, µs per call, calls, perhaps errors, name
        let calls: BTreeMap<_, _> = summary
            .lines()
            .filter_map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let name = *fields.last().filter(|name| **name != "total")?;
                Some((name.to_owned(), fields.get(3)?.parse().ok()?))
            })
            .collect();
        assert!(!calls.is_empty(), "{summary}");
        calls
    }
}

/// Whether every thread of a process is traced.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        fs::read_to_string(thread.path().join("status"))
            .is_ok_and(|status| !status.contains("TracerPid:\t0"))
    })
}
