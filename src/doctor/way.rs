//! Which ways lead to the server, and in what order a client takes them.

use std::time::Duration;

use super::finding::{Check, Finding, Verdict};
use crate::client::connect::ConnectFailure;
use crate::config::LaneAddr;
use crate::io::dial::DialError;
use crate::proto::PublicKey;

/// One entry of `server:`, and what came of an attempt at it.
#[derive(Clone, Debug)]
pub struct Way {
    /// Where it leads.
    pub server: LaneAddr,
    /// How long the answer took, name, connection and handshake together; or why there is none.
    pub outcome: Result<Duration, Unreached>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// What kind of trouble it is.
    pub trouble: Trouble,
    /// What was said of it.
    pub words: String,
}

/// What stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The name leads nowhere.
    Name,
    /// The host says that nothing listens there.
    Refused,
    /// Nothing at all is heard, by a connection that does not come about or by datagrams.
    Silence,
    /// A connection stands, and whoever is at its end does not answer us.
    Unanswered,
    /// Whoever answers speaks something else.
    Stranger,
    /// TLS cannot be had.
    Tls,
    /// The proxy that leads there does not let us through.
    Proxy,
    /// The server says that it lets this client in no more.
    Revoked,
    /// The answer is wrong: the secret shared beside the keys, or the version.
    Answer,
    /// This host has no way there.
    Host,
}

impl Unreached {
    /// Reads it from what an attempt says.
    pub fn of(failure: &ConnectFailure) -> Self {
        let trouble = match failure {
            ConnectFailure::Dial(error) => trouble(error),
            ConnectFailure::Io { .. } | ConnectFailure::Closed { .. } => Trouble::Stranger,
            ConnectFailure::Silent { server, .. } if server.scheme.is_stream() => {
                Trouble::Unanswered
            }
            ConnectFailure::Silent { .. } => Trouble::Silence,
            ConnectFailure::Frame { .. } => Trouble::Stranger,
            ConnectFailure::Handshake { .. } if failure.is_revocation() => Trouble::Revoked,
            ConnectFailure::Handshake { .. } => Trouble::Answer,
        };
        Self {
            trouble,
            words: failure.to_string(),
        }
    }
}

fn trouble(error: &DialError) -> Trouble {
    match error {
        DialError::Resolve { .. }
        | DialError::ResolveTimedOut { .. }
        | DialError::NoAddress { .. } => Trouble::Name,
        DialError::Connect { attempts, .. } if attempts.any_refused() => Trouble::Refused,
        DialError::Connect { .. } if error.is_silence() => Trouble::Silence,
        DialError::Connect { .. } => Trouble::Host,
        DialError::Proxy { .. }
        | DialError::Via { .. }
        | DialError::ViaTimedOut { .. }
        | DialError::NoDatagrams { .. } => Trouble::Proxy,
        DialError::WebSocket { .. } | DialError::WebSocketTimedOut { .. } => Trouble::Stranger,
        DialError::Tls { .. } | DialError::TlsTimedOut { .. } => Trouble::Tls,
        DialError::Broken { .. } | DialError::Gone(_) => Trouble::Stranger,
    }
}

/// Returns which way a client takes of those that answer: the first of the list.
pub fn best(ways: &[Way]) -> Option<&Way> {
    ways.iter().find(|way| way.outcome.is_ok())
}

/// Judges whether what is looked at would go through the tunnel of the whole host, if a client leads it through one, or
/// nowhere, while that is not `up` and has a kill switch.
///
/// Only who may mark sockets leaves it as the client does.
pub fn enclosed(led: bool, up: bool, administers: bool) -> Option<Finding> {
    (led && !administers).then(|| {
        let words = if up {
            "this host goes through the tunnel, and so does what this user looks at: what follows tells of the way through \
             the tunnel, not of the way to the server"
        } else {
            "a client leads this host, and its tunnel is not up: with a kill switch, nothing that this user looks at \
             leaves the host, and what follows tells nothing of the way to the server"
        };
        let next = "look as root (CAP_NET_ADMIN), or while the client does not run";
        Finding::warning(Check::Running, words, next)
    })
}

/// Judges the ways; `key` is this client's, and `known_revoked` what a program that runs was told by the server.
///
/// A way that does not lead there is a failure only where none does: a client takes the next of its list. Of a client that
/// was revoked nothing else is guessed.
pub fn judge(ways: &[Way], key: &PublicKey, known_revoked: bool) -> Vec<Finding> {
    let best = best(ways);
    let says_so = |way: &Way| matches!(&way.outcome, Err(it) if it.trouble == Trouble::Revoked);
    let is_revoked = best.is_none() && (known_revoked || ways.iter().any(says_so));
    // A connection that stands and is not answered, and a datagram that is not, have one cause where no way is answered.
    let unheard = best.is_none()
        && ways.iter().any(|way| {
            matches!(&way.outcome, Err(unreached) if unreached.trouble == Trouble::Unanswered)
        });
    let finding = |way: &Way| match &way.outcome {
        Ok(took) => {
            let ms = millis(*took);
            Finding::ok(Check::Reach, format!("the server answers, after {ms} ms"))
                .figure("milliseconds", ms)
        }
        Err(unreached) => {
            let next = match (unreached.trouble, best) {
                (Trouble::Silence | Trouble::Unanswered, None) if is_revoked => {
                    remedy(Trouble::Revoked, &way.server, None, key)
                }
                (Trouble::Silence, None) if unheard => compare_keys(key),
                (trouble, best) => remedy(trouble, &way.server, best, key),
            };
            let verdict = match best {
                Some(_) => Verdict::Warning,
                None => Verdict::Failed,
            };
            let is_silent = matches!(unreached.trouble, Trouble::Silence | Trouble::Unanswered);
            let words = if unreached.trouble == Trouble::Revoked {
                "the server answers: this client was revoked".to_owned()
            } else if is_silent && is_revoked {
                "no answer, of a server that has revoked this client".to_owned()
            } else {
                without_address(&unreached.words, &way.server)
            };
            Finding::failed(Check::Reach, words, next)
                .judged(verdict)
                .figure("trouble", unreached.trouble.as_str())
        }
    };
    ways.iter()
        .map(|way| finding(way).about(&way.server))
        .collect()
}

impl Trouble {
    /// The word for machines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Refused => "refused",
            Self::Silence => "silence",
            Self::Unanswered => "unanswered",
            Self::Stranger => "stranger",
            Self::Tls => "tls",
            Self::Proxy => "proxy",
            Self::Answer => "answer",
            Self::Revoked => "revoked",
            Self::Host => "host",
        }
    }
}

fn remedy(trouble: Trouble, server: &LaneAddr, best: Option<&Way>, key: &PublicKey) -> String {
    let port = server.port;
    match (trouble, best) {
        (Trouble::Name, _) => "compare the name in `server` with what the server's operator gave you, and see \
             /etc/resolv.conf; an address may stand in its place"
            .to_owned(),
        (Trouble::Refused, _) => format!(
            "start the server there, or compare port {port} with its `listen`"
        ),
        (Trouble::Silence, Some(best)) if !server.scheme.is_stream() => format!(
            "let UDP to port {port} through the firewalls of the server and of this network; until then the client goes \
             by {}, where losses cost more",
            best.server
        ),
        (Trouble::Silence, None) if !server.scheme.is_stream() => format!(
            "see at the server with `adit doctor` whether it runs, let UDP to port {port} through on the way, and compare \
             `server_key`; list a tls:// or wss:// address of it too, for networks that drop UDP"
        ),
        (Trouble::Silence, _) => format!(
            "compare the address, see whether the server's host is up, and let TCP to port {port} through on the way"
        ),
        (Trouble::Unanswered, None) => compare_keys(key),
        (Trouble::Unanswered | Trouble::Stranger, _) => format!(
            "another program may listen there: compare scheme, port {port} and path with `listen` of the server"
        ),
        (Trouble::Tls, _) => "compare scheme and port with `listen` of the server, `tls` with its certificate, and this \
             host's clock"
            .to_owned(),
        (Trouble::Proxy, _) => {
            "compare `via` with what other programs here use, or set it to off".to_owned()
        }
        (Trouble::Revoked, _) => "ask whoever runs the server to say `adit clients restore`, or to invite this client anew \
             (adit join LINK takes the link)"
            .to_owned(),
        (Trouble::Answer, _) => "compare `preshared_key_file` with what the server has for this client, and the versions \
             of both ends"
            .to_owned(),
        (Trouble::Host, _) => {
            "see whether this host has a network at all, and of the address's family (ip route)".to_owned()
        }
    }
}

/// What to do about a server that hears us and says nothing.
fn compare_keys(key: &PublicKey) -> String {
    format!(
        "compare `server_key` with what `adit pubkey` prints for the server's key file, and see that it knows this \
         client's key {key} (adit clients list); a new invitation sets both right"
    )
}

/// What was said, without the address that the line begins with.
fn without_address(words: &str, server: &LaneAddr) -> String {
    let words = words.strip_prefix("cannot connect to ").unwrap_or(words);
    let address = format!("{server}: ");
    words.strip_prefix(&address).unwrap_or(words).to_owned()
}

/// Milliseconds to a tenth.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SecretKey;

    fn way(server: &str, outcome: Result<u64, Trouble>) -> Way {
        Way {
            server: server.parse().unwrap(),
            outcome: outcome
                .map(Duration::from_millis)
                .map_err(|trouble| Unreached {
                    trouble,
                    words: format!("{server}: what was said"),
                }),
        }
    }

    fn judged(ways: &[Way]) -> Vec<(Verdict, String)> {
        let key = SecretKey::from_bytes([3; 32]).public();
        let judged = judge(ways, &key, false).into_iter();
        judged
            .map(|one| (one.verdict, one.next.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn way_that_fails_is_a_warning_while_another_answers() {
        for trouble in [
            Trouble::Name,
            Trouble::Refused,
            Trouble::Silence,
            Trouble::Unanswered,
            Trouble::Stranger,
            Trouble::Tls,
            Trouble::Proxy,
            Trouble::Answer,
            Trouble::Host,
        ] {
            for server in ["udp://h:7443", "tls://h:7443"] {
                let alone = judged(&[way(server, Err(trouble))]);
                assert_eq!(alone[0].0, Verdict::Failed, "{trouble:?}");
                assert!(!alone[0].1.is_empty(), "{trouble:?}");
                let beside = judged(&[way(server, Err(trouble)), way("tcp://h:1", Ok(5))]);
                assert_eq!(beside[0].0, Verdict::Warning, "{trouble:?}");
                assert_eq!(beside[1].0, Verdict::Ok, "{trouble:?}");
            }
        }
    }

    #[test]
    fn silence_by_udp_is_the_network_where_tcp_answers_and_the_key_where_tcp_is_not_answered() {
        let udp = || way("udp://h:7443", Err(Trouble::Silence));
        let blocked = judged(&[udp(), way("tcp://h:7443", Ok(5))]);
        assert!(blocked[0].1.contains("UDP to port 7443"), "{blocked:?}");
        assert!(blocked[0].1.contains("by tcp://h:7443"), "{blocked:?}");
        let wrong = judged(&[udp(), way("tcp://h:7443", Err(Trouble::Unanswered))]);
        for (_, next) in &wrong {
            assert!(next.contains("server_key"), "{wrong:?}");
        }
    }

    #[test]
    fn client_that_was_revoked_is_told_that_alone() {
        let key: PublicKey = SecretKey::generate(&mut rand::rng()).public();
        for (ways, known) in [
            (
                [
                    way("udp://h:1", Err(Trouble::Silence)),
                    way("tcp://h:2", Err(Trouble::Revoked)),
                ],
                false,
            ),
            // A server that has forgotten whom it revoked is silent, and has told the program that runs.
            (
                [
                    way("udp://h:1", Err(Trouble::Silence)),
                    way("tcp://h:2", Err(Trouble::Unanswered)),
                ],
                true,
            ),
        ] {
            for finding in judge(&ways, &key, known) {
                let text = finding.to_string();
                assert!(
                    text.contains("revoked") && text.contains("invite"),
                    "{text}"
                );
                for guess in ["firewall", "server_key", "let UDP", "does not list"] {
                    assert!(!text.contains(guess), "{guess}: {text}");
                }
            }
        }
        // Another server of the list lets it in.
        let ways = [
            way("tcp://h:1", Err(Trouble::Revoked)),
            way("tcp://h:2", Ok(3)),
        ];
        let judged = judge(&ways, &key, false);
        assert_eq!(judged[0].verdict, Verdict::Warning);
        assert_eq!(judged[1].verdict, Verdict::Ok);
    }

    #[test]
    fn host_that_goes_through_the_tunnel_is_told_where_this_user_cannot_leave_it() {
        for (led, up, administers, told) in [
            (false, false, false, None),
            (false, false, true, None),
            (true, true, true, None),
            (true, false, true, None),
            (true, true, false, Some("goes through the tunnel")),
            (true, false, false, Some("its tunnel is not up")),
        ] {
            let words = enclosed(led, up, administers).map(|finding| finding.words);
            match (&words, told) {
                (Some(words), Some(told)) => assert!(words.contains(told), "{words}"),
                (words, told) => assert_eq!(words.as_deref(), told, "{led} {up} {administers}"),
            }
        }
    }

    #[test]
    fn best_way_is_the_first_that_answers_not_the_fastest() {
        let ways = [
            way("udp://h:1", Err(Trouble::Silence)),
            way("tls://h:2", Ok(90)),
            way("tcp://h:3", Ok(3)),
        ];
        assert_eq!(best(&ways).unwrap().server, ways[1].server);
    }
}
