//! Whatever is thrown at a listener, a configuration or a dialling client gets the silence or the
//! clear words that it should; nothing panics, nothing leaks, and those who behave notice nothing.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use adit_integration::{
    adit::{Adit, ClientConfig, Key, ServerConfig, User, Workdir, free_port, path},
    flows,
    meters::{self, wait_for},
    namespaces::{Place, runtime},
    origin::Origin,
    relay::Relay,
    socks,
    stream::Stream,
};
use case::{Case, Listener, first_frame, frame, hello_of_tls12, noise, run};
use lanes::Recorded;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task,
    time::{sleep, timeout},
};

mod case;
mod config;
mod lanes;
mod misled;
mod proxy;
mod refusals;

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// The hang guard of those who behave.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any listener has patience with a caller that says nothing, or a byte now and then.
const SILENCE: Duration = Duration::from_secs(45);
/// Between the bytes of a caller that drips.
const DRIP: Duration = Duration::from_millis(400);

/// A server with both kinds of lane, a client of it that behaves, and an origin.
struct Scene {
    server: Adit,
    client: Adit,
    proxy: SocketAddr,
    tcp: SocketAddr,
    tls: SocketAddr,
    echo: Origin,
    server_key: Key,
    client_key: Key,
    /// Known to the server as `other`.
    other_key: Key,
    workdir: Workdir,
}

impl Scene {
    fn new() -> Self {
        let workdir = Workdir::new();
        let [tcp, tls, proxy] =
            [(); 3].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let [server_key, client_key, other_key] =
            ["server.key", "client.key", "other.key"].map(|name| workdir.key(name, User::Same));
        let server_config = workdir.server(
            "server.yaml",
            &server_key,
            User::Same,
            &ServerConfig {
                listen: vec![format!("tcp://{tcp}"), format!("tls://{tls}")],
                clients: vec![
                    ("laptop".into(), client_key.public.clone()),
                    ("other".into(), other_key.public.clone()),
                ],
                ..ServerConfig::user_egress()
            },
        );
        let client_config = workdir.client(
            "client.yaml",
            &client_key,
            &ClientConfig {
                server: vec![format!("tcp://{tcp}")],
                server_key: server_key.public.clone(),
                proxy,
                more: String::new(),
            },
        );
        let here = Place::here();
        let server = workdir.start_server(&here, User::Same, &server_config);
        let client = workdir.start_client(&here, User::Same, &client_config);
        let echo = Origin::echo(&here, LOOPBACK.into());
        Self {
            server,
            client,
            proxy,
            tcp,
            tls,
            echo,
            server_key,
            client_key,
            other_key,
            workdir,
        }
    }

    fn address(&self, listener: Listener) -> SocketAddr {
        match listener {
            Listener::Tcp => self.tcp,
            Listener::Tls | Listener::InsideTls => self.tls,
            Listener::Proxy => self.proxy,
        }
    }

    /// What a client that connects anew says, and what the server answers.
    fn recorded(&self) -> Recorded {
        let relay = Relay::start(self.tcp);
        let lane = format!("tcp://{}", relay.address());
        let (mut other, proxy) = self.other(&lane, &self.server_key.public, &self.other_key);
        other.expect_ready();
        served(proxy, self.echo.address());
        // in good order, so that nothing of it is held when descriptors are counted
        other.stop();
        let records = relay.records();
        let record = records
            .iter()
            .find(|record| !record.down.is_empty())
            .expect("bytes passed");
        Recorded {
            init: first_frame(&record.up).to_vec(),
            reply: first_frame(&record.down).to_vec(),
            up: record.up.clone(),
        }
    }

    /// Starts a client with that key, of a server with that address and key; not waited for.
    fn other(&self, server: &str, server_key: &str, key: &Key) -> (Adit, SocketAddr) {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let config = self.workdir.client(
            &format!("client-{}.yaml", proxy.port()),
            key,
            &ClientConfig {
                server: vec![server.to_owned()],
                server_key: server_key.to_owned(),
                proxy,
                more: String::new(),
            },
        );
        let arguments = ["client", "-c", path(&config), "--log-level", "debug"];
        (
            self.workdir
                .start(&Place::here(), User::Same, "misled client", &arguments),
            proxy,
        )
    }
}

#[test]
fn listeners_answer_bad_input_as_they_should_and_lose_nothing() {
    let mut scene = Scene::new();
    let cases = cases(&scene.recorded());
    let count = cases.len();
    let (proxy, target) = (scene.proxy, scene.echo.address());
    let addresses: Vec<_> = cases.iter().map(|case| scene.address(case.to)).collect();
    // a caller that behaves, before; also warms up what the first callers pay for
    warm_up(&scene);
    let before = [scene.server.meters(), scene.client.meters()];

    let local = task::LocalSet::new();
    let failures = local.block_on(&runtime(), async move {
        let mut witness = socks::connect(proxy, target).await.expect("connects");
        let mut tasks = task::JoinSet::new();
        for (case, address) in cases.into_iter().zip(addresses) {
            tasks.spawn_local(async move {
                run(&case, address)
                    .await
                    .map_err(|error| format!("{}: {error}", case.name))
            });
        }
        let mut failures = Vec::new();
        loop {
            tokio::select! {
                done = tasks.join_next() => match done {
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(failure))) => failures.push(failure),
                    Some(Err(panic)) => failures.push(panic.to_string()),
                    None => break,
                },
                () = sleep(Duration::from_millis(100)) => {
                    // those who behave notice nothing: neither on an open flow nor on a new one
                    flows::echo(&mut witness, b"open", PATIENCE).await.expect("is served");
                    let mut new = socks::connect(proxy, target).await.expect("is served");
                    flows::echo(&mut new, b"new", PATIENCE).await.expect("is served");
                }
            }
        }
        failures
    });
    assert!(
        failures.is_empty(),
        "{} of {count} cases:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert_eq!(
        (scene.server.panics(), scene.client.panics()),
        (vec![], vec![])
    );

    for (adit, before) in [
        (&mut scene.server, before[0]),
        (&mut scene.client, before[1]),
    ] {
        let settled = wait_for(PATIENCE, || {
            let now = adit.meters();
            (now.descriptors == before.descriptors && now.memory_is_back_at(&before)).then_some(())
        });
        if settled.is_none() {
            let list = meters::descriptors(adit.process().pid());
            panic!("{before} → {}\n{list:#?}", adit.meters());
        }
    }
    for adit in [&mut scene.client, &mut scene.server] {
        let (status, _) = adit.stop();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn bad_datagrams_to_an_association_are_dropped_and_the_good_pass() {
    let mut scene = Scene::new();
    let udp = Origin::udp_echo(&Place::here(), LOOPBACK.into());
    let (proxy, target) = (scene.proxy, udp.address());
    runtime().block_on(async move {
        let association = socks::associate(proxy).await.expect("associates");
        let port = target.port().to_be_bytes();
        let random = {
            let mut bytes = vec![0; 2000];
            Stream::new(77).fill(&mut bytes);
            bytes
        };
        for bad in [
            &b""[..],
            &[0],
            &[0, 0, 0],
            &[0, 0, 0, 1],
            &[0, 0, 0, 1, 127, 0, 0, 1],
            &[0, 0, 0, 1, 127, 0, 0, 1, 0, 0, b'x'],
            // a fragment, which nobody has to reassemble (RFC 1928, section 7)
            &[0, 0, 1, 1, 127, 0, 0, 1, port[0], port[1], b'x'],
            // reserved bytes, an unknown kind of address, a name longer than the datagram, a name of no length
            &[1, 2, 0, 9, 127, 0, 0, 1, port[0], port[1], b'x'],
            &[0, 0, 0, 9, 127, 0, 0, 1, port[0], port[1], b'x'],
            &[0, 0, 0, 3, 255, b'a', b'b'],
            &[0, 0, 0, 3, 0, port[0], port[1], b'x'],
            &[0, 0, 0, 4, 0, 0, 0, 0],
            &random,
        ] {
            association.send_raw(bad).await.expect("sends");
        }
        association.send_to(b"good", target).await.expect("sends");
        let got = timeout(PATIENCE, association.recv_from())
            .await
            .expect("the good one passes")
            .expect("receives");
        assert_eq!(got, (b"good".to_vec(), target));
    });
    assert_eq!(udp.total(), 1, "only the good one arrived");
    assert_eq!(
        (scene.server.panics(), scene.client.panics()),
        (vec![], vec![])
    );
    scene.client.stop();
}

/// One good and one bad caller at each listener, and a burst of flows, so that pools and caches are filled.
fn warm_up(scene: &Scene) {
    let (proxy, target) = (scene.proxy, scene.echo.address());
    let addresses = [scene.tcp, scene.tls, scene.proxy];
    runtime().block_on(async move {
        for address in addresses {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            let _ = stream.write_all(&[0xFF; 64]).await;
            let _ = timeout(SILENCE, stream.read_to_end(&mut Vec::new())).await;
        }
        let mut held = Vec::new();
        for _ in 0..50 {
            let mut stream = socks::connect(proxy, target).await.expect("connects");
            flows::echo(&mut stream, &[1; 1000], PATIENCE)
                .await
                .expect("echoes");
            held.push(stream);
        }
    });
    // flows linger for a moment after their end
    std::thread::sleep(Duration::from_secs(3));
}

#[test]
fn replay_into_a_living_session_changes_nothing() {
    let scene = Scene::new();
    let relay = Relay::start(scene.tcp);
    let lane = format!("tcp://{}", relay.address());
    let (mut other, proxy) = scene.other(&lane, &scene.server_key.public, &scene.other_key);
    other.expect_ready();
    let (server, target) = (scene.tcp, scene.echo.address());
    runtime().block_on(async {
        let mut held = socks::connect(proxy, target).await.expect("connects");
        flows::echo(&mut held, b"before", PATIENCE)
            .await
            .expect("echoes");
        let recorded = relay
            .records()
            .into_iter()
            .map(|record| record.up)
            .max_by_key(Vec::len);
        let recorded = recorded.expect("bytes passed");
        for _ in 0..20 {
            let mut replay = TcpStream::connect(server).await.expect("connects");
            let _ = replay.write_all(&recorded).await;
            let _ = replay.shutdown().await;
            let mut answer = Vec::new();
            let _ = timeout(SILENCE, replay.read_to_end(&mut answer)).await;
            assert!(
                answer.is_empty() || answer.get(4) == Some(&3),
                "{answer:02x?}"
            );
            flows::echo(&mut held, b"during", PATIENCE)
                .await
                .expect("the flow goes on");
        }
    });
    assert_eq!(relay.records().len(), 1, "the client had to connect again");
    assert_eq!((scene.server.panics(), other.panics()), (vec![], vec![]));
}

#[test]
fn table_has_60_cases_and_no_name_twice() {
    let cases = cases(&Recorded {
        init: frame(1, &noise(1300)),
        reply: frame(2, &noise(1200)),
        up: frame(1, &noise(2000)),
    });
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len());
    // what a TLS 1.2 client sends is well-formed
    let hello = hello_of_tls12();
    assert_eq!(
        usize::from(u16::from_be_bytes([hello[3], hello[4]])) + 5,
        hello.len()
    );
}

/// Every bad input to a listener.
fn cases(recorded: &Recorded) -> Vec<Case> {
    let mut all = lanes::tcp(recorded);
    all.extend(lanes::tls());
    all.extend(proxy::cases());
    all
}

/// # Panics
///
/// If an echo through `proxy` does not work.
fn served(proxy: SocketAddr, target: SocketAddr) {
    runtime().block_on(async {
        let mut stream = socks::connect(proxy, target).await.expect("connects");
        flows::echo(&mut stream, b"served", PATIENCE)
            .await
            .expect("echoes");
    });
}
