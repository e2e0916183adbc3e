//! The rules of a proxy as they are now, and what was judged by them.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Destination, ResolvedBy, Rules, Way};
use crate::config::Transport;
use crate::io::relay::Terms;

/// The rules of one proxy, which may be replaced at any time; cheap to clone.
#[derive(Clone, Debug)]
pub struct InForce(watch::Receiver<Arc<Rules>>);

/// Replaces the rules of one proxy; cheap to clone.
#[derive(Clone, Debug)]
pub struct Replace(Arc<watch::Sender<Arc<Rules>>>);

impl InForce {
    /// Puts rules into force that [`Replace`] may take away.
    pub fn new(rules: Rules) -> (Replace, Self) {
        let (sender, receiver) = watch::channel(Arc::new(rules));
        (Replace(Arc::new(sender)), Self(receiver))
    }

    /// Waits until others are in force than when this was asked before; for ever where nobody can replace them.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Reads the rules that are in force now.
    pub fn now(&self) -> Arc<Rules> {
        Arc::clone(&self.0.borrow())
    }
}

impl Default for InForce {
    /// No rules, for ever: everything goes through the tunnel.
    fn default() -> Self {
        Self::new(Rules::default()).1
    }
}

impl Replace {
    /// Puts other rules into force, from the next request on.
    pub fn put(&self, rules: Rules) {
        self.0.send_replace(Arc::new(rules));
    }
}

/// What was judged of a TCP flow, to be judged again when the rules change.
#[derive(Clone, Debug)]
pub struct Judged {
    rules: InForce,
    name: Option<Box<str>>,
    remote: SocketAddr,
    way: Way,
}

impl Judged {
    /// Keeps what `rules` have judged: a flow to `remote`, asked for by `name` if that is not the address, goes by `way`.
    pub fn new(rules: &InForce, name: Option<&str>, remote: SocketAddr, way: Way) -> Self {
        Self {
            rules: rules.clone(),
            name: name.map(Into::into),
            remote,
            way,
        }
    }

    /// Returns the way that the flow takes.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Whether the rules that are in force now send the flow the same way.
    pub fn holds(&self) -> bool {
        let judged = self.rules.0.borrow().of_address(&Destination {
            // It has its address, whoever gave it.
            name: (self.name.as_deref()).map(|name| (name, ResolvedBy::Host)),
            ip: self.remote.ip(),
            port: self.remote.port(),
            transport: Transport::Tcp,
        });
        judged == Ok(self.way)
    }

    /// Waits until the rules in force send the flow another way, or none.
    pub async fn overruled(&self) {
        let mut rules = self.rules.0.clone();
        loop {
            rules.mark_unchanged();
            if !self.holds() {
                return;
            }
            if rules.changed().await.is_err() {
                // Nobody can replace them any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Terms for Judged {
    fn hold(&self) -> bool {
        self.holds()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::{FutureExt as _, poll};

    use super::*;
    use crate::client::rules::judge::listed;

    fn judged(rules: &InForce, name: Option<&str>, way: Way) -> Judged {
        Judged::new(rules, name, ([198, 51, 100, 7], 443).into(), way)
    }

    #[tokio::test]
    async fn flow_is_overruled_by_the_first_rules_that_judge_it_otherwise_and_by_no_others() {
        let (replace, rules) = InForce::new(Rules::default());
        let flow = judged(&rules, Some("a.example"), Way::Tunnel);
        let mut overruled = Box::pin(flow.overruled());
        for list in [
            &["block b.example", "direct 10.0.0.0/8"][..],
            &["tunnel a.example", "block *"],
            &["block a.example port 80", "direct udp *"],
        ] {
            replace.put(listed(list));
            assert_eq!(poll!(&mut overruled), Poll::Pending, "{list:?}");
            assert!(flow.holds());
        }
        replace.put(listed(&["direct 198.51.100.0/24"]));
        assert!(!flow.holds());
        assert_eq!(poll!(&mut overruled), Poll::Ready(()));
    }

    #[tokio::test]
    async fn flow_is_judged_by_its_name_and_its_address() {
        let (replace, rules) = InForce::new(listed(&["direct a.example"]));
        let named = judged(&rules, Some("a.example"), Way::Direct);
        let bare = judged(&rules, None, Way::Tunnel);
        assert!(named.holds() && bare.holds());
        replace.put(listed(&["direct 198.51.100.7"]));
        assert!(named.holds() && !bare.holds());
        replace.put(listed(&["block *.example"]));
        assert!(!named.holds() && bare.holds());
    }

    #[tokio::test]
    async fn change_between_judgement_and_waiting_is_seen() {
        let (replace, rules) = InForce::new(Rules::default());
        let flow = judged(&rules, None, Way::Tunnel);
        replace.put(listed(&["block *"]));
        assert!(flow.overruled().now_or_never().is_some());
    }

    #[tokio::test]
    async fn rules_that_nobody_can_replace_overrule_nothing() {
        let flow = judged(&InForce::default(), None, Way::Tunnel);
        assert!(flow.overruled().now_or_never().is_none());
    }
}
