//! What the programs that run have of what a configuration wants.
//!
//! A program is known by the file that it was started with, not by its key: several may have one, and each has a state folder,
//! a device and ports of its own, or those of the file that is looked at. What it has, it says itself
//! ([`Uses`]).

use std::path::{Path, PathBuf};

use super::finding::{Check, Finding};
use super::program::Program;
use crate::config::Kind;
use crate::io::state::{Holder, locked_by};
use crate::status::{Port, Uses};

/// What a configuration wants.
#[derive(Clone, Debug)]
pub struct Wants {
    /// Which program it is for.
    pub kind: Kind,
    /// Where a program of its keys takes orders.
    pub sockets: Vec<PathBuf>,
    /// What it wants of the host, as the program would say it.
    pub uses: Uses,
}

/// Who has something that a configuration wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nobody, as far as this user can see.
    Free,
    /// The program of this configuration.
    Own,
    /// Another, in words.
    Other(String),
}

/// The programs that run, as they matter to a configuration.
#[derive(Clone, Debug)]
pub struct Running {
    wants: Wants,
    programs: Vec<Program>,
}

impl Running {
    /// Compares these programs with what a configuration wants.
    pub fn new(wants: Wants, programs: Vec<Program>) -> Self {
        Self { wants, programs }
    }

    /// Whether it was started by this configuration.
    fn is_own(&self, program: &Program) -> bool {
        if program.kind != self.wants.kind || program.trial {
            return false;
        }
        let known = self.wants.sockets.contains(&program.socket);
        match &program.uses {
            Some(uses) if uses.file.is_some() => uses.file == self.wants.uses.file,
            // What the environment says is known by its key alone.
            Some(_) => self.wants.uses.file.is_none() && known,
            None => known,
        }
    }

    /// The program of this configuration.
    pub fn own(&self) -> Option<&Program> {
        self.programs.iter().find(|program| self.is_own(program))
    }

    /// Whether a client runs that leads this host through the tunnel.
    pub fn leads(&self) -> bool {
        let here = &self.wants.uses.network;
        let is_here =
            |program: &Program| (program.uses.as_ref()).is_some_and(|uses| uses.network == *here);
        (self.programs.iter()).any(|program| program.leads() && is_here(program))
    }

    /// Tells of the program of this configuration, and of others that matter to it: of its key, or in its way.
    pub fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let kind = self.wants.kind;
        let this = match &self.wants.uses.file {
            Some(_) => "of this file",
            None => "of this environment",
        };
        if self.own().is_none() {
            let words = format!("no {kind} {this} runs, as far as this user can see");
            found.push(Finding::ok(Check::Running, words).figure("running", false));
        }
        for program in &self.programs {
            if self.is_own(program) {
                found.push(self.tell_own(program).figure("running", true));
                continue;
            }
            let collisions = program.collisions(&self.wants.uses);
            let same_key = program.kind == kind && self.wants.sockets.contains(&program.socket);
            if !collisions.is_empty() {
                let words = format!(
                    "{program} has what is wanted here: {}",
                    collisions.join(", ")
                );
                let next = "stop it before this one is started, or write others to one of the two";
                found.push(program.figures(Finding::warning(Check::Running, words, next)));
            } else if same_key {
                let mut words = format!("{program} runs with the same key, and is not in the way");
                for what in program.possessions() {
                    words += &format!("; {what}");
                }
                found.push(program.figures(Finding::ok(Check::Running, words)));
            }
        }
        found
    }

    fn tell_own(&self, program: &Program) -> Finding {
        let mut words = format!("{program} runs: {}", program.state);
        if let Some(name) = program.uses.as_ref().and_then(|uses| uses.tun.as_ref())
            && program.leads()
        {
            words += &format!("; {}", program.leading(name));
        }
        let differs = program
            .uses
            .as_ref()
            .map_or(Vec::new(), |uses| differences(uses, &self.wants.uses));
        if !differs.is_empty() {
            words += &format!("; otherwise than written: {}", differs.join(", "));
        }
        let finding = if program.ready {
            Finding::ok(Check::Running, words)
        } else {
            let next = "see below for the reason, or its log";
            Finding::warning(Check::Running, words, next)
        };
        program.figures(finding)
    }

    /// Who has the state folder.
    pub fn of_state(&self, folder: &Path) -> Held {
        let has = |uses: &Uses| uses.state_dir.as_deref() == Some(folder);
        match self.holder(has) {
            Held::Free => match locked_by(folder) {
                // Of a version that does not say, or that takes no orders.
                Some(Holder(Some(pid))) if self.own().is_some_and(|own| own.pid == pid) => {
                    Held::Own
                }
                Some(holder) => Held::Other(holder.to_string()),
                None => Held::Free,
            },
            held @ (Held::Own | Held::Other(_)) => held,
        }
    }

    /// Who has the TUN device.
    pub fn of_tun(&self, name: &str) -> Held {
        let network = &self.wants.uses.network;
        self.holder(|uses| uses.tun.as_deref() == Some(name) && uses.network == *network)
    }

    /// Who listens there.
    pub fn of_port(&self, port: Port) -> Held {
        let network = &self.wants.uses.network;
        self.holder(|uses| {
            uses.network == *network && uses.listens.iter().any(|other| other.collides(&port))
        })
    }

    fn holder(&self, has: impl Fn(&Uses) -> bool) -> Held {
        let found = self.programs.iter().find(|program| match &program.uses {
            Some(uses) => has(uses),
            // It is taken to have what is written.
            None => self.is_own(program),
        });
        match found {
            Some(program) if self.is_own(program) => Held::Own,
            Some(program) => Held::Other(program.to_string()),
            None => Held::Free,
        }
    }
}

/// What a program has otherwise than its file says: by flags, or because the file was changed meanwhile.
fn differences(has: &Uses, wants: &Uses) -> Vec<String> {
    let mut found = Vec::new();
    let missing = "none".to_owned();
    if has.tun != wants.tun {
        let name = has.tun.as_ref().unwrap_or(&missing);
        found.push(format!("TUN device {name}"));
    }
    if has.state_dir != wants.state_dir {
        let folder = has.state_dir.as_ref();
        let folder = folder.map_or(missing, |folder| folder.display().to_string());
        found.push(format!("state folder {folder}"));
    }
    let is_written = |port: &&Port| {
        let free = |wanted: &Port| wanted.address.port() == 0 && wanted.datagrams == port.datagrams;
        (wants.listens.iter())
            .any(|wanted| wanted == *port || wanted.collides(port) || free(wanted))
    };
    let others: Vec<String> = (has.listens.iter())
        .filter(|port| !is_written(port))
        .map(Port::to_string)
        .collect();
    if !others.is_empty() {
        found.push(format!("listens on {}", others.join(", ")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn uses(file: Option<&str>, folder: &str, tun: Option<&str>, port: u16) -> Uses {
        Uses {
            file: file.map(PathBuf::from),
            state_dir: Some(folder.into()),
            tun: tun.map(str::to_owned),
            listens: vec![Port {
                address: ([0, 0, 0, 0], port).into(),
                datagrams: true,
            }],
            kill_switch: false,
            network: "here".to_owned(),
        }
    }

    fn program(uses: Option<Uses>) -> Program {
        Program {
            kind: Kind::Server,
            trial: false,
            socket: "/run/adit/server-key.sock".into(),
            pid: 12,
            ready: true,
            state: "listening".to_owned(),
            down: None,
            uses,
            descriptors: None,
        }
    }

    /// A file with this state folder, `adit0` and port 7443, beside one program.
    fn beside(program: Program) -> Running {
        let wants = Wants {
            kind: Kind::Server,
            sockets: vec!["/run/adit/server-key.sock".into()],
            uses: uses(Some("/etc/a.yaml"), "/no/a", Some("adit0"), 7443),
        };
        Running::new(wants, vec![program])
    }

    fn held(running: &Running) -> [Held; 3] {
        let port = uses(None, "", None, 7443).listens[0];
        [
            running.of_state(Path::new("/no/a")),
            running.of_tun("adit0"),
            running.of_port(port),
        ]
    }

    #[test]
    fn program_of_the_same_file_has_what_the_file_says() {
        let own = uses(Some("/etc/a.yaml"), "/no/a", Some("adit0"), 7443);
        let running = beside(program(Some(own)));
        assert_eq!(held(&running), [Held::Own, Held::Own, Held::Own]);
        let found = running.findings();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].figures["running"], true);
        assert!(!found[0].words.contains("otherwise"), "{}", found[0].words);
    }

    #[test]
    fn program_of_the_same_key_and_another_file_has_none_of_it() {
        let other = uses(Some("/etc/b.yaml"), "/no/b", Some("adit1"), 7444);
        let running = beside(program(Some(other)));
        assert_eq!(held(&running), [Held::Free, Held::Free, Held::Free]);
        assert!(running.own().is_none());
        let found = running.findings();
        assert_eq!(found[0].figures["running"], false);
        for words in [
            "/etc/b.yaml",
            "process 12",
            "/no/b",
            "adit1",
            "udp 0.0.0.0:7444",
        ] {
            assert!(found[1].words.contains(words), "{}", found[1].words);
        }
        assert_eq!(found[1].verdict, Verdict::Ok);
    }

    #[test]
    fn another_program_that_has_what_is_wanted_is_named_with_it() {
        let flags_alone = uses(None, "/no/a", Some("adit1"), 7443);
        let running = beside(program(Some(flags_alone)));
        let [folder, tun, port] = held(&running);
        assert!(matches!(&folder, Held::Other(who) if who.contains("process 12")));
        assert!(matches!(&port, Held::Other(who) if who.contains("without a file")));
        assert_eq!(tun, Held::Free);
        let found = running.findings();
        assert_eq!(found[1].verdict, Verdict::Warning);
        assert!(
            found[1].words.contains("/no/a, udp 0.0.0.0:7443"),
            "{}",
            found[1].words
        );
    }

    #[test]
    fn ports_and_devices_of_another_network_namespace_are_in_nobodys_way() {
        let elsewhere = Uses {
            network: "there".to_owned(),
            ..uses(Some("/etc/b.yaml"), "/no/b", Some("adit0"), 7443)
        };
        let running = beside(program(Some(elsewhere)));
        assert_eq!(held(&running), [Held::Free, Held::Free, Held::Free]);
        assert_eq!(running.findings()[1].verdict, Verdict::Ok);
    }

    #[test]
    fn what_flags_have_changed_is_told_of_the_program_of_the_file() {
        let other = uses(Some("/etc/a.yaml"), "/no/c", None, 7445);
        let running = beside(program(Some(other)));
        assert_eq!(held(&running), [Held::Free, Held::Free, Held::Free]);
        let words = &running.findings()[0].words;
        for changed in ["TUN device none", "state folder /no/c", "udp 0.0.0.0:7445"] {
            assert!(words.contains(changed), "{words}");
        }
    }

    #[test]
    fn program_of_an_older_version_is_known_by_its_socket() {
        let running = beside(program(None));
        assert_eq!(held(&running), [Held::Own, Held::Own, Held::Own]);
        assert!(running.findings()[0].words.contains("older version"));
    }

    #[test]
    fn program_that_does_not_do_its_work_is_a_warning() {
        let ill = Program {
            ready: false,
            ..program(Some(uses(
                Some("/etc/a.yaml"),
                "/no/a",
                Some("adit0"),
                7443,
            )))
        };
        assert_eq!(beside(ill).findings()[0].verdict, Verdict::Warning);
    }
}
