//! Clients whose server is not there, not theirs, or not reached as it is.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use adit_integration::{
    adit::{Key, User, free_port},
    flows,
    meters::wait_for,
    namespaces::{Place, runtime},
    origin::Origin,
    relay::{Relay, Weather},
    socks,
};
use tokio::{io::AsyncWriteExt, net::TcpListener, task, time::timeout};

use crate::{LOOPBACK, PATIENCE, Scene};

#[test]
fn client_of_a_bad_server_says_so_and_tries_on() {
    let scene = Scene::new();
    let mute = Origin::mute(&Place::here(), LOOPBACK.into());
    let http = Origin::http(&Place::here(), LOOPBACK.into());
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let garbage = Babbler::start(vec![0xFF; 4096]);
    let oversize = Babbler::start([&0x0010_0000_u32.to_be_bytes()[..], &[2; 4096]].concat());
    let challenges = Babbler::start([&[0, 0, 0, 35, 3, 1, 1][..], &[7; 32]].concat().repeat(100));
    let relays: Vec<_> = [
        Weather::Mirror,
        Weather::Bend(5, 0x02),
        Weather::Bend(6, 0x70),
        Weather::Bend(200, 0x01),
    ]
    .into_iter()
    .map(|weather| {
        let relay = Relay::start(scene.tcp);
        relay.set(weather);
        relay
    })
    .collect();
    let stranger = scene.workdir.key("stranger.key", User::Same);
    let (right, wrong) = (scene.server_key.public.clone(), stranger.public.clone());
    let tcp = |address: SocketAddr| format!("tcp://{address}");
    let tls = |address: SocketAddr| format!("tls://{address}");
    let mut clients = Vec::new();
    let mut misled = |name: &'static str, server: String, server_key: &str, key: &Key| {
        let (adit, proxy) = scene.other(&server, server_key, key);
        clients.push((name, adit, proxy));
    };
    let mut known = |name, server| misled(name, server, &right, &scene.other_key);
    known("nobody listens", tcp(closed));
    known(
        "name that does not exist",
        "tcp://no-such-host.invalid:7443".into(),
    );
    known("server says nothing", tcp(mute.address()));
    known("server says nothing, TLS", tls(mute.address()));
    known("server is another program", tcp(http.address()));
    known("server is another program, TLS", tls(http.address()));
    known("server sends garbage", tcp(garbage.address));
    known(
        "server sends a frame beyond every limit",
        tcp(oversize.address),
    );
    known("server challenges for ever", tcp(challenges.address));
    known("tcp lane to a tls listener", tcp(scene.tls));
    known("tls lane to a tcp listener", tls(scene.tcp));
    known("handshake is reflected", tcp(relays[0].address()));
    known("version is bent on the way", tcp(relays[1].address()));
    known("suite is bent on the way", tcp(relays[2].address()));
    known("handshake is bent on the way", tcp(relays[3].address()));
    misled(
        "server has another key",
        tcp(scene.tcp),
        &wrong,
        &scene.other_key,
    );
    misled("client is not known", tcp(scene.tcp), &right, &stranger);
    // whether it listens before it has a session or not: nothing is promised that cannot be kept
    let target = scene.echo.address();
    std::thread::sleep(Duration::from_secs(5));
    let attempt = |proxy| {
        runtime().block_on(async { timeout(PATIENCE, socks::connect(proxy, target)).await })
    };
    // all at once, since each may wait as long as a flow may wait for a session
    let results: Vec<_> = std::thread::scope(|scope| {
        let attempts: Vec<_> = clients
            .iter()
            .map(|&(_, _, proxy)| scope.spawn(move || attempt(proxy)))
            .collect();
        attempts.into_iter().map(|each| each.join()).collect()
    });
    for ((name, adit, _), result) in clients.iter_mut().zip(results) {
        let result = result.expect("an attempt to connect does not panic");
        assert!(matches!(result, Ok(Err(_))), "{name}: {result:?}");
        assert!(
            adit.process().exited().is_none(),
            "{name}: the client gave up\n{}",
            adit.process().text()
        );
        let log = adit.process().text();
        assert!(
            log.contains("WARN") || log.contains("ERROR"),
            "{name}: nobody is told\n{log}"
        );
        assert_eq!(adit.panics(), Vec::<String>::new(), "{name}");
    }
    // those that were only misled on the way connect once the way is clear
    for relay in &relays {
        relay.set(Weather::Fair);
    }
    for (name, adit, proxy) in clients
        .iter_mut()
        .filter(|(name, ..)| name.contains("reflected") || name.contains("bent"))
    {
        let proxy = *proxy;
        let served = wait_for(PATIENCE, || {
            runtime().block_on(async {
                let mut stream = timeout(PATIENCE, socks::connect(proxy, target))
                    .await
                    .ok()?
                    .ok()?;
                flows::echo(&mut stream, b"x", PATIENCE).await.ok()
            })
        });
        assert!(
            served.is_some(),
            "{name}: not served once the way is clear\n{}",
            adit.process().text()
        );
    }
    for (name, adit, _) in &mut clients {
        let (status, took) = adit.stop();
        assert!(
            status.success() && took < Duration::from_secs(4),
            "{name}: {status} after {took:?}"
        );
    }
    let proxy = scene.proxy;
    runtime().block_on(async {
        let mut stream = socks::connect(proxy, target)
            .await
            .expect("the good client is served");
        flows::echo(&mut stream, b"x", PATIENCE)
            .await
            .expect("the good client is served");
    });
    assert_eq!(scene.server.panics(), Vec::<String>::new());
}

/// A server that sends the same bytes to everyone, whatever they say.
struct Babbler {
    address: SocketAddr,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Babbler {
    fn start(bytes: Vec<u8>) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        Place::here().spawn(move || {
            let local = task::LocalSet::new();
            local.block_on(&runtime(), async move {
                let listener = TcpListener::bind(LOOPBACK).await.expect("binds");
                tell.send(listener.local_addr().expect("is bound"))
                    .expect("the test waits");
                let serve = async {
                    while let Ok((mut caller, _)) = listener.accept().await {
                        let bytes = bytes.clone();
                        task::spawn_local(async move {
                            let _ = caller.write_all(&bytes).await;
                            let _ = tokio::io::copy(&mut caller, &mut tokio::io::sink()).await;
                        });
                    }
                };
                tokio::select! { () = serve => {} _ = stopped => {} }
            });
        });
        Self {
            address: told.recv().expect("the thread listens"),
            _stop: stop,
        }
    }
}
