//! Which of many attempts to reach a server are news for people.
//!
//! A client tries again every few seconds for as long as it takes, and that belongs into the log at
//! debug. What is told at the default level is, for each server of the list: that it is being
//! connected to, once; that it has not answered yet, once before there is a connection; that it cannot be reached, at
//! first and then each [`AGAIN_AFTER`] while that lasts, so that whoever looks at the end of the log sees why nothing
//! works.

use std::time::{Duration, Instant};

/// What has been told of each server.
#[derive(Debug)]
pub(super) struct Notices {
    servers: Vec<Told>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    connecting: bool,
    unanswered: bool,
    failed: Option<Instant>,
}

impl Notices {
    /// Begins with nothing told of so many servers.
    pub(super) fn new(servers: usize) -> Self {
        Self {
            servers: vec![Told::default(); servers],
        }
    }

    /// Returns whether it is news that `server` is connected to.
    pub(super) fn connecting(&mut self, server: usize) -> bool {
        self.servers
            .get_mut(server)
            .is_some_and(|told| !std::mem::replace(&mut told.connecting, true))
    }

    /// Returns whether it is news that `server` has not answered yet.
    pub(super) fn unanswered(&mut self, server: usize) -> bool {
        self.servers
            .get_mut(server)
            .is_some_and(|told| !std::mem::replace(&mut told.unanswered, true))
    }

    /// Returns whether it is news that `server` cannot be reached.
    pub(super) fn failed(&mut self, now: Instant, server: usize) -> bool {
        let Some(told) = self.servers.get_mut(server) else {
            return false;
        };
        let news = told.failed.is_none_or(|at| now >= at + AGAIN_AFTER);
        if news {
            told.failed = Some(now);
        }
        news
    }

    /// A server was reached: the next failure of any is news.
    pub(super) fn connected(&mut self) {
        for told in &mut self.servers {
            told.unanswered = false;
            told.failed = None;
        }
    }
}

/// How often a failure that lasts is told: a line a minute fills no log.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_told_at_once_and_then_each_minute() {
        let start = Instant::now();
        let mut notices = Notices::new(1);
        let told: Vec<u64> = (0..200)
            .filter(|second| notices.failed(start + Duration::from_secs(*second), 0))
            .collect();
        assert_eq!(told, [0, 60, 120, 180]);
    }

    #[test]
    fn failure_after_a_connection_is_news_again() {
        let now = Instant::now();
        let mut notices = Notices::new(1);
        assert!(notices.failed(now, 0) && !notices.failed(now, 0));
        assert!(notices.unanswered(0) && !notices.unanswered(0));
        notices.connected();
        assert!(notices.failed(now, 0) && notices.unanswered(0));
    }

    #[test]
    fn each_server_has_news_of_its_own() {
        let now = Instant::now();
        let mut notices = Notices::new(2);
        assert!(notices.failed(now, 0) && notices.failed(now, 1));
        assert!(notices.connecting(0) && notices.connecting(1));
        assert!(!notices.connecting(0) && !notices.connecting(1));
        // Of one that is not there, there is none.
        assert!(!notices.failed(now, 2) && !notices.connecting(2));
    }
}
