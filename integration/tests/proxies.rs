//! Lanes through what stands between: nginx as a reverse proxy, tinyproxy, squid and SOCKS5 as the way out, each with a
//! password where it can have one.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{Adit, ClientConfig, Key, Pair, ServerConfig, User, Workdir, free_port, path},
    curl::{self, Via},
    namespaces::Place,
    origin::{Certificate, Origin},
    process::Process,
    skip::{Need, can_run},
    stream,
};

/// The hang guard of what takes no time.
const SOON: Duration = Duration::from_secs(20);

/// What crosses each kind of proxy.
const GIB: u64 = 1 << 30;

/// What shows that the other way works too.
const UPLOAD: u64 = 64 << 20;

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// A server that listens on one address, and a key of a client of it.
struct Scene {
    server: Adit,
    server_key: Key,
    client_key: Key,
    workdir: Workdir,
}

impl Scene {
    fn new(listen: &str) -> Self {
        let workdir = Workdir::new();
        let [server_key, client_key] =
            ["server.key", "client.key"].map(|name| workdir.key(name, User::Same));
        let config = workdir.server(
            "server.yaml",
            &server_key,
            User::Same,
            &ServerConfig {
                listen: vec![listen.to_owned()],
                clients: vec![("laptop".into(), client_key.public.clone())],
                ..ServerConfig::user_egress()
            },
        );
        let server = workdir.start_server(&Place::here(), User::Same, &config);
        Self {
            server,
            server_key,
            client_key,
            workdir,
        }
    }

    /// Writes the configuration of a client; returns it with the address of its proxy.
    fn client(&self, server: &str, more: &str) -> (PathBuf, SocketAddr) {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let config = ClientConfig {
            server: vec![server.to_owned()],
            server_key: self.server_key.public.clone(),
            proxy,
            more: more.to_owned(),
        };
        let name = format!("client-{}.yaml", proxy.port());
        (self.workdir.client(&name, &self.client_key, &config), proxy)
    }

    /// Downloads a GiB and uploads some through a client of this configuration.
    fn carries(&self, server: &str, more: &str) {
        self.carries_in(server, more, &[]);
    }

    /// The same in an environment.
    fn carries_in(&self, server: &str, more: &str, environment: &[(&str, &str)]) {
        let (config, proxy) = self.client(server, more);
        let mut command = self.workdir.command(&Place::here(), User::Same);
        command
            .args(["client", "-c", path(&config), "--log-level", "debug"])
            .envs(environment.iter().copied());
        let mut client = self.workdir.start_command("client", command);
        client.expect_ready();
        let origin = Origin::http(&Place::here(), LOOPBACK.into());
        let via = Via::Socks5h(proxy);
        let began = Instant::now();
        let url = origin.url(&format!("/bytes/{GIB}?seed=6"));
        let got = curl::download(&Place::here(), via, &url);
        assert_eq!((got.code, got.length), (0, GIB), "{}", got.stderr);
        assert_eq!(got.sha256, stream::sha256(6, GIB));
        println!("{server}: 1 GiB in {:.1} s", began.elapsed().as_secs_f32());
        let sent = curl::upload(&Place::here(), via, &origin.url("/sink"), 7, UPLOAD);
        let wanted = format!("{UPLOAD} {}", stream::sha256(7, UPLOAD));
        assert_eq!(sent.stdout.trim(), wanted, "{}", sent.stderr);
        client.stop();
        assert_eq!(client.panics(), Vec::<String>::new());
    }

    /// Starts a client that does not get through, and returns what its log says when one of its lines has these words.
    fn fails(&self, server: &str, more: &str, environment: &[(&str, &str)], words: &str) -> String {
        let (config, _) = self.client(server, more);
        let mut command = self.workdir.command(&Place::here(), User::Same);
        command
            .args(["client", "-c", path(&config)])
            .envs(environment.iter().copied());
        let mut client = self.workdir.start_command("client", command);
        let process = client.process();
        let line = process.wait_for_line(SOON, |line| line.contains(words));
        assert!(line.is_some(), "{}", process.text());
        let text = process.text();
        client.kill();
        text
    }

    fn end(mut self) {
        self.server.stop();
        assert_eq!(self.server.panics(), Vec::<String>::new());
    }
}

/// Starts a program that listens on `port` until it is dropped.
fn daemon(program: &str, arguments: &[&str], port: u16) -> Process {
    let mut command = Place::here().command(program);
    // Where Debian keeps them is often missing from the path of others than root.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let mut process = Process::spawn(program, command);
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(
            process.exited().is_none() && began.elapsed() < SOON,
            "{program} does not listen:\n{}",
            process.text()
        );
        thread::sleep(Duration::from_millis(20));
    }
    process
}

/// Starts nginx with the locations of the example, before a server at `behind`; returns it with its port.
fn nginx(workdir: &Workdir, certificate: &Certificate, behind: u16) -> (Process, u16) {
    let port = free_port();
    let (chain, key) = certificate.pem();
    workdir.file("chain.pem", &chain);
    workdir.file("key.pem", &key);
    let folder = workdir.path().display();
    let spare: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .concat();
    let config = workdir.file(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;
             events {{}}
             http {{
                 access_log off; {spare}
                 server {{
                     listen 127.0.0.1:{port} ssl;
                     ssl_certificate chain.pem;
                     ssl_certificate_key key.pem;
                     location /adit {{
                         proxy_pass http://127.0.0.1:{behind};
                         proxy_http_version 1.1;
                         proxy_set_header Upgrade $http_upgrade;
                         proxy_set_header Connection \"upgrade\";
                     }}
                     location /plain {{ proxy_pass http://127.0.0.1:{behind}/adit; }}
                 }}
             }}"
        ),
    );
    let prefix = workdir.path().to_string_lossy().into_owned();
    let arguments = ["-e", "stderr", "-p", &prefix, "-c", path(&config)];
    (daemon("nginx", &arguments, port), port)
}

#[test]
fn websocket_lane_passes_nginx_and_strangers_meet_a_web_server() {
    if !can_run(&[Need::Tool("nginx"), Need::Tool("curl")]) {
        return;
    }
    let behind = free_port();
    let scene = Scene::new(&format!("ws://127.0.0.1:{behind}/adit"));
    let certificate = Certificate::new(&["localhost"]);
    let authority = scene.workdir.file("ca.pem", &certificate.authority);
    let (nginx, port) = nginx(&scene.workdir, &certificate, behind);
    let checked = format!("tls: {{ca_file: {}}}", authority.display());
    scene.carries(&format!("wss://localhost:{port}/adit"), &checked);

    for (wrong, words) in [
        ("nowhere", "404 Not Found: either the path is not that"),
        ("plain", "404 Not Found: either the path is not that"),
    ] {
        let server = format!("wss://localhost:{port}/{wrong}");
        scene.fails(&server, &checked, &[], words);
    }
    scene.fails(
        &format!("wss://127.0.0.1:{port}/adit"),
        &checked,
        &[],
        "the certificate is not made out to 127.0.0.1",
    );
    let status = |url: &str| {
        let more = ["-k", "-o", "/dev/null", "-w", "%{http_code}"];
        curl::get(&Place::here(), Via::Direct, url, &more).stdout
    };
    assert_eq!(status(&format!("https://localhost:{port}/adit")), "404");
    assert_eq!(status(&format!("http://127.0.0.1:{behind}/adit")), "404");
    assert_eq!(status(&format!("http://127.0.0.1:{behind}/")), "404");
    scene.end();
    assert_eq!(status(&format!("https://localhost:{port}/adit")), "502");
    drop(nginx);
}

#[test]
fn lane_passes_tinyproxy_with_the_right_password_alone() {
    if !can_run(&[Need::Tool("tinyproxy"), Need::Tool("curl")]) {
        return;
    }
    let (port, lane) = (free_port(), free_port());
    let scene = Scene::new(&format!("tls://127.0.0.1:{lane}"));
    let config = scene.workdir.file(
        "tinyproxy.conf",
        &format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Warning\n\
             BasicAuth alice s3cret\nConnectPort {lane}\n"
        ),
    );
    let tinyproxy = daemon("tinyproxy", &["-d", "-c", path(&config)], port);
    let server = format!("tls://localhost:{lane}");
    let password = scene.workdir.file("via.password", "s3cret\n");
    let with_file = format!(
        "via: http://alice@127.0.0.1:{port}\nvia_password_file: {}",
        password.display()
    );
    scene.carries(&server, &with_file);

    let wrong = format!("via: http://alice:wr0ng@127.0.0.1:{port}");
    let log = scene.fails(
        &server,
        &wrong,
        &[],
        "does not accept the user and the password",
    );
    assert!(!log.contains("wr0ng"), "{log}");
    let asked = format!("http://localhost:{port}");
    scene.fails(
        &server,
        "via: env",
        &[
            ("HTTPS_PROXY", &asked),
            ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ],
        "it wants a user and a password",
    );
    let other = "tls://localhost:7";
    let right = format!("via: http://alice:s3cret@127.0.0.1:{port}");
    scene.fails(other, &right, &[], "does not allow connections to port 7");
    drop(tinyproxy);
    scene.fails(
        &server,
        &right,
        &[],
        "cannot connect to the proxy http://127.0.0.1",
    );
    scene.end();
}

/// Starts squid, which lets those with a password connect to `lane`, by http:// and https://; returns it with both ports.
fn squid(workdir: &Workdir, certificate: &Certificate, lane: u16) -> (Process, [u16; 2]) {
    let ports = [free_port(), free_port()];
    let (chain, key) = certificate.pem();
    workdir.file("chain.pem", &chain);
    workdir.file("key.pem", &key);
    // "s3cret", as crypt(3) has it.
    workdir.file("users", "alice:abhWCwoTZY2c6\n");
    let folder = workdir.path().display();
    let config = workdir.file(
        "squid.conf",
        &format!(
            "http_port 127.0.0.1:{}\nhttps_port 127.0.0.1:{} tls-cert={folder}/chain.pem tls-key={folder}/key.pem\n\
             pid_filename none\ncache_log stdio:/dev/stderr\naccess_log none\ncache deny all\nnetdb_filename none\n\
             coredump_dir {folder}\npinger_enable off\nshutdown_lifetime 0 seconds\nmax_filedescriptors 1024\n\
             auth_param basic program /usr/lib/squid/basic_ncsa_auth {folder}/users\nauth_param basic children 1\n\
             acl known proxy_auth REQUIRED\nacl lanes port {lane}\nacl CONNECT method CONNECT\n\
             http_access deny !known\nhttp_access allow CONNECT lanes\nhttp_access deny all\n",
            ports[0], ports[1],
        ),
    );
    let squid = daemon("squid", &["-N", "-d", "1", "-f", path(&config)], ports[0]);
    (squid, ports)
}

#[test]
fn lane_passes_squid_with_the_right_password_alone_also_by_https() {
    if !can_run(&[Need::Tool("squid"), Need::Tool("curl")]) {
        return;
    }
    let lane = free_port();
    let scene = Scene::new(&format!("wss://127.0.0.1:{lane}/adit"));
    let certificate = Certificate::new(&["localhost"]);
    let authority = scene.workdir.file("ca.pem", &certificate.authority);
    let (squid, [plain, sealed]) = squid(&scene.workdir, &certificate, lane);
    let server = format!("wss://127.0.0.1:{lane}/adit");
    let right = format!("via: http://alice:s3cret@127.0.0.1:{plain}");
    scene.carries(&server, &right);
    // By TLS to the proxy, and several at a time.
    let sealed = format!("via: https://alice:s3cret@localhost:{sealed}");
    let trusted = [("SSL_CERT_FILE", path(&authority))];
    scene.carries_in(&server, &format!("{sealed}\nlanes: 3"), &trusted);
    scene.fails(&server, &sealed, &[], "certificate");

    let wrong = right.replace("s3cret", "wr0ng");
    let words = "does not accept the user and the password";
    let log = scene.fails(&server, &wrong, &[], words);
    assert!(!log.contains("wr0ng"), "{log}");
    scene.fails(
        &server,
        &wrong.replace("alice:wr0ng@", ""),
        &[],
        "it wants a user and a password",
    );
    scene.fails(
        "tls://127.0.0.1:7",
        &right,
        &[],
        "does not allow connections to port 7",
    );
    drop(squid);
    scene.end();
}

#[test]
fn lane_passes_a_socks_proxy_with_the_right_password_alone() {
    if !can_run(&[Need::Tool("curl")]) {
        return;
    }
    // Another tunnel's proxy: a lane inside a lane.
    let outer = Pair::start_with("tcp", "", "proxy_user: alice\nproxy_password: s3cret");
    let lane = free_port();
    let scene = Scene::new(&format!("wss://127.0.0.1:{lane}/adit"));
    let server = format!("wss://127.0.0.1:{lane}/adit");
    scene.carries(
        &server,
        &format!("via: socks5://alice:s3cret@{}", outer.proxy),
    );
    scene.fails(
        &server,
        &format!("via: socks5://alice:wr0ng@{}", outer.proxy),
        &[],
        "does not accept the user and the password",
    );
    scene.fails(
        &server,
        &format!("via: socks5://{}", outer.proxy),
        &[],
        "it wants a user and a password",
    );
    scene.end();
}
