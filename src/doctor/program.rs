//! A program that runs: what it says of itself over its control socket, and that in words.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::finding::{Check, Finding};
use crate::client::down::Down;
use crate::config::Kind;
use crate::io::control::{CallError, Caller, Request};
use crate::status::{Port, Uses};

/// A program that runs.
#[derive(Clone, Debug)]
pub struct Program {
    /// Which it is; a trial is a client, since that is what takes orders.
    pub kind: Kind,
    /// Whether it is `adit try`.
    pub trial: bool,
    /// Where it takes orders.
    pub socket: PathBuf,
    /// Its number; 0 where it does not say.
    pub pid: u32,
    /// Whether it does its work.
    pub ready: bool,
    /// The same in words.
    pub state: String,
    /// Why its tunnel is down, in one word, if so.
    pub down: Option<String>,
    /// What it has of its host; one of an older version does not say.
    pub uses: Option<Uses>,
    /// Descriptors that it has open, and how many it may have.
    pub descriptors: Option<(u64, u64)>,
}

impl fmt::Display for Program {
    /// Names it among others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.trial {
            f.write_str("adit try (")?;
        } else {
            write!(f, "the {} (", self.kind)?;
        }
        if self.pid > 0 {
            write!(f, "process {}, ", self.pid)?;
        }
        match &self.uses {
            Some(Uses {
                file: Some(file), ..
            }) => write!(f, "{})", file.display()),
            Some(_) if self.trial => f.write_str("without a file)"),
            Some(_) => f.write_str("started without a file)"),
            None => f.write_str("of an older version)"),
        }
    }
}

impl Program {
    /// Says what it has of its host.
    pub(super) fn possessions(&self) -> Vec<String> {
        let Some(uses) = &self.uses else {
            return Vec::new();
        };
        let folder = uses.state_dir.as_ref();
        let folder = folder.map(|folder| format!("state folder {}", folder.display()));
        let tun = uses.tun.as_ref().map(|name| match self.kind {
            Kind::Client => self.leading(name),
            Kind::Server => format!("TUN device {name}"),
        });
        let ports: Vec<String> = uses.listens.iter().map(Port::to_string).collect();
        let ports = (!ports.is_empty()).then(|| format!("listens on {}", ports.join(", ")));
        [folder, tun, ports].into_iter().flatten().collect()
    }

    /// Says how a host is that it leads through the device of this name.
    pub(super) fn leading(&self, name: &str) -> String {
        let stays = self.uses.as_ref().is_some_and(|uses| uses.kill_switch);
        match (self.ready, stays) {
            (true, _) => format!("the whole host goes through {name}"),
            (false, true) => format!(
                "the whole host is to go through {name}, and its kill switch lets nothing else out until it does"
            ),
            (false, false) => format!("the whole host is to go through {name}"),
        }
    }

    /// Whether the server has told it that it lets it in no more.
    pub fn is_revoked(&self) -> bool {
        self.down.as_deref() == Some(Down::Revoked.word())
    }

    /// Whether it is a client that leads its host through the tunnel.
    pub fn leads(&self) -> bool {
        let has_device = self.uses.as_ref().is_some_and(|uses| uses.tun.is_some());
        self.kind == Kind::Client && has_device
    }

    /// Tells of it where there is no configuration to compare it with.
    pub fn finding(&self) -> Finding {
        let mut words = format!("{self} runs: {}", self.state);
        for what in self.possessions() {
            words += &format!("; {what}");
        }
        let finding = if self.ready {
            Finding::ok(Check::Running, words)
        } else {
            Finding::warning(Check::Running, words, "see its log for the reason")
        };
        self.figures(finding)
    }

    pub(super) fn figures(&self, finding: Finding) -> Finding {
        finding
            .figure("kind", self.kind.as_str())
            .figure("pid", self.pid)
            .figure("control", self.socket.display().to_string())
    }

    /// What it and a configuration cannot both have.
    pub(super) fn collisions(&self, wants: &Uses) -> Vec<String> {
        let Some(uses) = &self.uses else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if let Some(folder) = &wants.state_dir
            && uses.state_dir.as_ref() == Some(folder)
        {
            found.push(format!("its state folder {}", folder.display()));
        }
        // Each network namespace has devices and ports of its own.
        if uses.network == wants.network {
            if let Some(name) = &wants.tun
                && uses.tun.as_ref() == Some(name)
            {
                found.push(format!("its TUN device {name}"));
            }
            let taken = |port: &&Port| uses.listens.iter().any(|other| other.collides(port));
            found.extend((wants.listens.iter().filter(taken)).map(Port::to_string));
        }
        found
    }
}

/// Asks who takes orders at each of these sockets, all at a time; returns the programs, each once, and places that this user may
/// not look into. Whoever does not answer within [`PATIENCE`] is left out.
pub fn ask(sockets: Vec<PathBuf>) -> (Vec<Program>, Vec<CallError>) {
    let (answer, answers) = mpsc::channel();
    for socket in sockets {
        let answer = answer.clone();
        // One that hangs holds up nobody but its own thread, which ends with this process.
        thread::spawn(move || {
            let _gone = answer.send(ask_one(&socket));
        });
    }
    drop(answer);
    let until = Instant::now() + PATIENCE;
    let (mut programs, mut closed): (Vec<Program>, _) = (Vec::new(), Vec::new());
    while let Ok(answer) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        match answer {
            Ok(program) if program.pid == 0 || programs.iter().all(|it| it.pid != program.pid) => {
                programs.push(program);
            }
            Err(error) if error.is_closed() => closed.push(error),
            Ok(_) | Err(_) => {}
        }
    }
    programs.sort_by(|a, b| a.socket.cmp(&b.socket));
    (programs, closed)
}

fn ask_one(socket: &Path) -> Result<Program, CallError> {
    let mut caller = Caller::connect(socket)?;
    let status = caller.call(&Request::new("status", Map::new()), None, PATIENCE)?;
    Ok(Program::read(socket, &status))
}

impl Program {
    /// Reads what it says of itself.
    fn read(socket: &Path, status: &Value) -> Self {
        let name = socket.file_name().unwrap_or_default().to_string_lossy();
        let process = |name: &str| status["process"][name].as_u64();
        let kind = if status["kind"] == "server" {
            Kind::Server
        } else {
            Kind::Client
        };
        Self {
            kind,
            trial: name.starts_with(crate::client::control::TRIAL),
            socket: socket.to_owned(),
            pid: process("pid")
                .and_then(|pid| pid.try_into().ok())
                .unwrap_or(0),
            ready: status["ready"].as_bool().unwrap_or(false),
            state: status["state"].as_str().unwrap_or_default().to_owned(),
            down: status["down"]["why"].as_str().map(str::to_owned),
            uses: serde_json::from_value(status["uses"].clone()).ok(),
            descriptors: process("open_fds").zip(process("max_fds")),
        }
    }
}

/// How long programs may take to say how they are, all together: a report of thousands of sessions takes a part of a second.
const PATIENCE: Duration = Duration::from_secs(3);
