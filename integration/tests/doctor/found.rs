//! What a doctor has found, and whom it looks at.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use adit_integration::{
    adit::{ClientConfig, Key, ServerConfig, User, Workdir, free_port, path},
    namespaces::Place,
    process::{self, Finished},
};
use serde_json::Value;

/// The hang guard of one examination, which bounds itself to half of that.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What a doctor has found.
pub(crate) struct Found {
    pub(crate) document: Value,
    pub(crate) finished: Finished,
}

impl Found {
    /// Examines; the way is loaded only if the test is about that.
    pub(crate) fn by(
        workdir: &Workdir,
        place: &Place,
        user: User,
        config: &Path,
        more: &[&str],
    ) -> Self {
        Self::told(
            workdir,
            place,
            user,
            &[&["-c", path(config)], more].concat(),
        )
    }

    /// Asks a doctor who is told this.
    pub(crate) fn told(workdir: &Workdir, place: &Place, user: User, arguments: &[&str]) -> Self {
        let mut command = workdir.command(place, user);
        command.args(["doctor", "--json"]).args(arguments);
        let finished = process::run(command, LIMIT);
        let document = serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", finished.text()));
        Self { document, finished }
    }

    pub(crate) fn all(&self, check: &str) -> Vec<&Value> {
        let findings = self.document["findings"].as_array().expect("a list");
        findings
            .iter()
            .filter(|one| one["check"] == check)
            .collect()
    }

    /// The one finding of this check that is about that.
    pub(crate) fn about(&self, check: &str, about: &str) -> &Value {
        let all = self.all(check);
        let found = all.iter().find(|one| {
            one["about"].as_str().is_some_and(|at| at.contains(about)) || about.is_empty()
        });
        found.unwrap_or_else(|| panic!("no {check} about {about:?} in {:#}", self.document))
    }

    /// What is said in the one finding of this check that says so.
    pub(crate) fn says(&self, check: &str, words: &str) -> &Value {
        let all = self.all(check);
        let found = all
            .iter()
            .find(|one| one["words"].as_str().is_some_and(|at| at.contains(words)));
        found.unwrap_or_else(|| panic!("no {check} says {words:?} in {:#}", self.document))
    }

    pub(crate) fn verdict(&self, check: &str, about: &str) -> &str {
        self.about(check, about)["verdict"]
            .as_str()
            .expect("a word")
    }

    pub(crate) fn assert(&self, check: &str, about: &str, verdict: &str) {
        assert_eq!(
            self.verdict(check, about),
            verdict,
            "{check} {about}: {:#}",
            self.document
        );
    }

    pub(crate) fn assert_status(&self, status: i32) {
        assert_eq!(
            self.finished.status.code(),
            Some(status),
            "{:#}",
            self.document
        );
    }
}

/// Keys and files of a server and a client.
pub(crate) struct Files {
    pub(crate) workdir: Workdir,
    pub(crate) server: PathBuf,
    pub(crate) client: PathBuf,
    pub(crate) client_key: Key,
}

/// Writes them for these lanes; both run as an ordinary user.
pub(crate) fn files(lanes: &[String], server: ServerConfig, server_key: Option<String>) -> Files {
    let workdir = Workdir::new();
    let user = User::ordinary();
    let [own, client_key] = ["server.key", "client.key"].map(|name| workdir.key(name, user));
    let config = ServerConfig {
        listen: lanes.to_vec(),
        clients: vec![("laptop".into(), client_key.public.clone())],
        ..server
    };
    let server = workdir.server("server.yaml", &own, user, &config);
    let config = ClientConfig {
        server: lanes.to_vec(),
        server_key: server_key.unwrap_or(own.public),
        proxy: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
        more: String::new(),
    };
    let client = workdir.client("client.yaml", &client_key, &config);
    Files {
        workdir,
        server,
        client,
        client_key,
    }
}

/// A key that no server has.
pub(crate) fn strangers_key(workdir: &Workdir) -> String {
    workdir.key("stranger.key", User::Same).public
}

/// What the finding tells to do.
pub(crate) fn next(finding: &Value) -> &str {
    finding["next"].as_str().expect("what to do")
}
