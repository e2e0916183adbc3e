//! What a check has come to.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// It does not work.
    Failed,
    /// It was not looked at, and the words say why.
    Skipped,
}

impl Verdict {
    /// Every verdict, in the order in which a summary counts them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Warning, Self::Failed, Self::Skipped];

    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words are in `as_str`")]
pub enum Check {
    Configuration,
    Key,
    Running,
    Left,
    Name,
    Reach,
    Clock,
    RoundTrip,
    Loss,
    PathMtu,
    Bufferbloat,
    Choice,
    State,
    Clients,
    Port,
    Certificate,
    Ping,
    Tun,
    Forwarding,
    Nftables,
    Conntrack,
    Descriptors,
    Buffers,
}

impl Check {
    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Key => "key",
            Self::Running => "running",
            Self::Left => "left behind",
            Self::Name => "name",
            Self::Reach => "reach",
            Self::Clock => "clock",
            Self::RoundTrip => "round trip",
            Self::Loss => "loss",
            Self::PathMtu => "path MTU",
            Self::Bufferbloat => "bufferbloat",
            Self::Choice => "choice",
            Self::State => "state folder",
            Self::Clients => "clients",
            Self::Port => "port",
            Self::Certificate => "certificate",
            Self::Ping => "ping",
            Self::Tun => "TUN",
            Self::Forwarding => "forwarding",
            Self::Nftables => "nftables",
            Self::Conntrack => "conntrack",
            Self::Descriptors => "descriptors",
            Self::Buffers => "buffers",
        }
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What one check has come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Of several of the kind, which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// How it stands.
    pub verdict: Verdict,
    /// The same in words.
    pub words: String,
    /// What to do next, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// What was measured, for machines.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub figures: Map<String, Value>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: Check, words: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, words.into(), None)
    }

    /// It works, and somebody should look.
    pub fn warning(check: Check, words: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warning, words.into(), Some(next.into()))
    }

    /// It does not work.
    pub fn failed(check: Check, words: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(check, Verdict::Failed, words.into(), Some(next.into()))
    }

    /// It was not looked at.
    pub fn skipped(check: Check, why: impl Into<String>) -> Self {
        Self::new(check, Verdict::Skipped, why.into(), None)
    }

    /// Says which of several it is about.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        self.about = Some(what.to_string());
        self
    }

    /// Adds what was measured.
    #[must_use]
    pub fn figure(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(name.to_owned(), value.into());
        self
    }

    /// Judges it otherwise: what fails one way may do where another serves.
    #[must_use]
    pub(super) fn judged(self, verdict: Verdict) -> Self {
        Self { verdict, ..self }
    }

    fn new(check: Check, verdict: Verdict, words: String, next: Option<String>) -> Self {
        Self {
            check,
            about: None,
            verdict,
            words,
            next,
            figures: Map::new(),
        }
    }
}

impl fmt::Display for Finding {
    /// A line for people, and a second one with what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8} {:14}", self.verdict, self.check.as_str())?;
        if let Some(about) = &self.about {
            write!(f, "{about}: ")?;
        }
        f.write_str(&self.words.replace('\n', &format!("\n{INDENT}")))?;
        if let Some(next) = &self.next {
            write!(f, "\n{INDENT}do: {next}")?;
        }
        Ok(())
    }
}

/// What stands in front of a line that continues another.
const INDENT: &str = "                       ";

/// How many findings there are of each verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// As they should be.
    pub ok: usize,
    /// Somebody should look.
    pub warnings: usize,
    /// Do not work.
    pub failed: usize,
    /// Were not looked at.
    pub skipped: usize,
}

impl Summary {
    /// Counts.
    pub fn of(findings: &[Finding]) -> Self {
        let count = |verdict| findings.iter().filter(|one| one.verdict == verdict).count();
        let [ok, warnings, failed, skipped] = Verdict::ALL.map(count);
        Self {
            ok,
            warnings,
            failed,
            skipped,
        }
    }

    /// The worst that there is of anything.
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self { failed: 1.., .. } => Verdict::Failed,
            Self { warnings: 1.., .. } => Verdict::Warning,
            Self { .. } => Verdict::Ok,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ok,
            warnings,
            failed,
            skipped,
        } = self;
        let told = match self.verdict() {
            Verdict::Failed => "something does not work",
            Verdict::Warning => "it works; somebody should look at the warnings",
            Verdict::Ok | Verdict::Skipped => "all is well",
        };
        let s = if *warnings == 1 { "" } else { "s" };
        write!(
            f,
            "{told}: {ok} ok, {warnings} warning{s}, {failed} failed, {skipped} skipped"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_as_bad_as_the_worst_finding() {
        let ok = Finding::ok(Check::Key, "is there");
        let warning = Finding::warning(Check::Clock, "is off", "set it");
        let failed = Finding::failed(Check::Reach, "no", "start it");
        let skipped = Finding::skipped(Check::Loss, "no way");
        for (findings, verdict) in [
            (vec![], Verdict::Ok),
            (vec![ok.clone(), skipped.clone()], Verdict::Ok),
            (vec![ok.clone(), warning.clone()], Verdict::Warning),
            (
                vec![warning.clone(), failed.clone(), ok.clone()],
                Verdict::Failed,
            ),
        ] {
            assert_eq!(Summary::of(&findings).verdict(), verdict);
        }
        let all = Summary::of(&[ok, warning, failed, skipped]);
        assert_eq!(
            all.to_string(),
            "something does not work: 1 ok, 1 warning, 1 failed, 1 skipped"
        );
    }

    #[test]
    fn line_names_verdict_check_and_what_to_do() {
        let finding = Finding::failed(Check::Reach, "a\nb", "c").about("udp://h:1");
        assert_eq!(
            finding.to_string(),
            "failed   reach         udp://h:1: a\n                       b\n                       do: c"
        );
        let json = serde_json::to_value(finding.figure("x", 1)).unwrap();
        assert_eq!(json["check"], "reach");
        assert_eq!(json["verdict"], "failed");
        assert_eq!(json["figures"]["x"], 1);
    }
}
