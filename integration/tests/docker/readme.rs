//! The first screen of the README, word for word: from nothing to the first page through the VPN, the server in a container.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use adit_integration::{
    adit::{User, Workdir, binary},
    curl::write_authority,
    dns::{Dns, Zone},
    docker::{Engine, PUBLIC, repository},
    origin::{Certificate, Origin},
    process::{self, Finished, Process},
    skip::can_run,
};

use crate::NEEDS;

/// What a terminal shows before anybody scrolls.
const FIRST_SCREEN: usize = 40;
/// The hang guard of each command.
const LIMIT: Duration = Duration::from_secs(90);
/// What stands for the link that the server prints.
const LINK: &str = "adit://…";
/// What is replaced, since no registry is at hand: how the image comes about.
const BUILT: (&str, &str) = (
    "docker build -t adit .",
    "docker build -t adit --target prebuilt .",
);
/// Names in the commands, which the test's own name server knows.
const NAMES: [&str; 2] = ["vpn.example.com", "example.com"];

/// The commands of the first screen that begin with a container, without their comments.
fn commands() -> Vec<String> {
    let text = fs::read_to_string(repository().join("README.md")).expect("the README");
    let screen: Vec<&str> = text.lines().take(FIRST_SCREEN).collect();
    let blocks = screen.split(|line| line.starts_with("```"));
    // what stands between two fences is every second one
    let mut blocks = blocks.skip(1).step_by(2);
    let block = blocks.find(|block| block.iter().any(|line| line.contains("docker run")));
    let lines = block.expect("a block of the first screen that runs a container");
    let command = |line: &&str| {
        line.split(" #")
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    };
    lines.iter().map(command).collect()
}

/// A machine with Docker, and a home of somebody who is not root.
struct Stranger {
    engine: Engine,
    workdir: Workdir,
    home: PathBuf,
    authority: PathBuf,
}

impl Stranger {
    fn new(certificate: &Certificate) -> Self {
        let (engine, workdir) = (Engine::new(), Workdir::new());
        engine.place.set_resolver(PUBLIC.into());
        let home = workdir.state("home", User::Nobody);
        let authority = workdir.path().join("authority.pem");
        write_authority(&authority, &certificate.authority).expect("a file");
        Self {
            engine,
            workdir,
            home,
            authority,
        }
    }

    /// One command line of the server's administrator.
    fn on_server(&self, line: &str) -> Finished {
        let mut command = self.engine.place.command("sh");
        // whoever enters a place begins at its root
        let checkout = self.engine.folder().join("context");
        let script = format!("cd {}; {line}", checkout.display());
        command
            .args(["-ec", &script])
            .envs(self.engine.surroundings());
        let finished = process::run(command, LIMIT);
        assert!(finished.status.success(), "{line}: {}", finished.text());
        finished
    }

    /// One command line of the client's user.
    fn on_client(&self, line: &str) -> Command {
        let mut command = self
            .workdir
            .program_as(&self.engine.place, User::Nobody, "sh");
        let path = std::env::var("PATH").unwrap_or_default();
        (command.args(["-ec", &format!("exec {line}")]))
            .env("HOME", &self.home)
            .env("PATH", format!("{}:{path}", self.workdir.path().display()))
            // as the system's own authorities would be found
            .env("CURL_CA_BUNDLE", &self.authority);
        command
    }
}

#[test]
fn four_commands_of_the_readme_lead_from_nothing_to_the_first_page() {
    if !can_run(&NEEDS) {
        return;
    }
    let commands = commands();
    let [serve, invite, join, fetch] = commands.as_slice() else {
        panic!("{} commands: {commands:#?}", commands.len());
    };
    let certificate = Certificate::new(&NAMES[1..]);
    let stranger = Stranger::new(&certificate);
    let engine = &stranger.engine;
    let zone = NAMES
        .iter()
        .fold(Zone::new(), |zone, name| zone.address(name, 60, PUBLIC));
    let _dns = Dns::start(&engine.place, SocketAddr::new(PUBLIC.into(), 53), zone);
    let at = SocketAddr::new(PUBLIC.into(), 443);
    let origin = Origin::https(&engine.place, at, &certificate);
    engine.context(binary());

    let began = Instant::now();
    assert!(serve.contains(BUILT.0), "{serve}");
    stranger.on_server(&serve.replace(BUILT.0, BUILT.1));
    // who reads and types takes longer than it
    engine.wait_for("adit", "ready: listening on", 1);
    let served = began.elapsed();
    let invited = stranger.on_server(invite);
    let link = invited.stdout.trim();
    assert!(
        link.starts_with("adit://") && !link.contains('\n'),
        "{}",
        invited.text()
    );
    assert!(join.contains(LINK), "{join}");
    let joining = stranger.on_client(&join.replace(LINK, link));
    let client = Process::spawn("adit join", joining);
    let ready = client.wait_for_line(LIMIT, |line| {
        line.contains("ready: proxy on 127.0.0.1:1080")
    });
    assert!(ready.is_some(), "{}", client.text());
    let joined = began.elapsed();
    let page = process::run(stranger.on_client(fetch), LIMIT);
    let took = began.elapsed();
    assert!(
        page.status.success() && page.stdout.contains("<html"),
        "{}",
        page.text()
    );
    // it came through the container, which this machine's own requests do not
    let server = engine.inspect("adit", "{{.NetworkSettings.IPAddress}}");
    let peer = origin.last_peer().expect("somebody has asked");
    assert_eq!((peer.ip().to_string(), origin.total()), (server, 1));
    println!(
        "from nothing to the first page: {:.1} s, of which {:.1} s until the server listened and {:.1} s until the client was ready",
        took.as_secs_f64(),
        served.as_secs_f64(),
        (joined - served).as_secs_f64(),
    );
}
