//! Flows of peers, from the call of one to the answer.

use adit_netstack::{Cause, FlowId, Unreachable};
use tokio::sync::watch;

use super::*;
use crate::client::tunnel::{Command, Commands, ConnectError, Listener, Refusal, Tunnel, tunnel};
use crate::io::outside::Outside;
use crate::io::relay::{Endpoint, FlowWatch};

/// The inside of a path, a port on which somebody listens, and a peer who has called it.
struct Called {
    path: Path,
    listener: Listener,
    commands: Commands,
    tunnel: Tunnel,
    peers: FlowId,
}

impl Called {
    async fn new() -> Self {
        let mut path = Path::new();
        let (tunnel, mut commands) = tunnel(watch::channel(None).1);
        let listening = tunnel.listen(8080);
        let (listener, ()) = tokio::join!(listening, async {
            let command = commands.recv().await.expect("asked");
            order(&mut path, command);
        });
        let remote = SocketAddr::from(([10, 86, 0, 2], 8080));
        let peers = path.origin.connect(path.now, remote).unwrap();
        assert!(path.settle().is_empty(), "nothing is answered yet");
        Self {
            path,
            listener: listener.unwrap(),
            commands,
            tunnel,
            peers,
        }
    }

    /// Does what was ordered last, and returns what the peer hears.
    async fn obey(&mut self) -> Vec<Event> {
        let command = self.commands.recv().await.expect("ordered");
        order(&mut self.path, command);
        self.path.settle()
    }

    fn refused(&self) -> Event {
        Event::Closed {
            flow: self.peers,
            cause: Cause::Refused,
        }
    }
}

fn order(path: &mut Path, command: Command) {
    path.inside.obey(path.now, &Outside::default(), command);
}

#[tokio::test]
async fn peer_is_answered_when_there_is_a_socket_for_it() {
    let mut called = Called::new().await;
    let flow = called.listener.accept().await.unwrap();
    assert_eq!(flow.remote().ip(), IpAddr::from([10, 86, 0, 1]));
    let (socket, mut service) = tcp_pair().await;
    let open = Arc::default();
    let mut watch = FlowWatch::new(Arc::clone(&open));
    let mut fate = watch.fate();
    flow.accept(Endpoint::Tcp(socket), watch);
    let events = called.obey().await;
    let flow = called.peers;
    assert!(events.contains(&Event::Established { flow }), "{events:?}");
    let Called {
        mut path, peers, ..
    } = called;
    let sent = path.origin.send(path.now, peers, |ring| {
        ring[..5].copy_from_slice(b"hello");
        (5, ())
    });
    sent.unwrap();
    path.origin.finish(path.now, peers);
    path.settle();
    let mut heard = String::new();
    service.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
    assert_eq!(open.load(std::sync::atomic::Ordering::Relaxed), 1);
    drop(service);
    while fate.try_recv().is_err() {
        tokio::task::yield_now().await;
        path.settle();
    }
    assert_eq!(open.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(path.inside.flows.is_empty() && path.inside.handles.is_empty());
}

#[tokio::test]
async fn peer_hears_why_there_is_no_socket_for_it() {
    for refusal in [Some(Refusal::Refused), Some(Refusal::Unreachable), None] {
        let mut called = Called::new().await;
        let flow = called.listener.accept().await.unwrap();
        match refusal {
            Some(refusal) => flow.refuse(refusal),
            None => drop(flow),
        }
        let events = called.obey().await;
        let unreachable = Event::Closed {
            flow: called.peers,
            cause: Cause::Unreachable(Unreachable::Host),
        };
        let heard = if refusal == Some(Refusal::Unreachable) {
            unreachable
        } else {
            called.refused()
        };
        assert!(events.contains(&heard), "{refusal:?}: {events:?}");
        let inside = &called.path.inside;
        assert!(inside.flows.is_empty() && inside.handles.is_empty());
        assert!(inside.stack.is_empty());
    }
}

#[tokio::test]
async fn peer_that_has_gone_costs_the_socket_that_was_made_for_it() {
    let mut called = Called::new().await;
    let flow = called.listener.accept().await.unwrap();
    called.path.origin.abort(called.path.now, called.peers);
    called.path.settle();
    let (socket, mut service) = tcp_pair().await;
    flow.accept(Endpoint::Tcp(socket), FlowWatch::new(Arc::default()));
    called.obey().await;
    let error = service.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn port_is_listened_on_once_and_refuses_when_its_listener_has_gone() {
    let mut called = Called::new().await;
    let (again, ()) = tokio::join!(called.tunnel.listen(8080), async {
        let command = called.commands.recv().await.expect("asked");
        order(&mut called.path, command);
    });
    assert_eq!(again.unwrap_err(), ConnectError::PortTaken);
    let Called {
        mut path,
        listener,
        mut commands,
        tunnel: _tunnel,
        peers,
    } = called;
    // The one who waits was offered to it.
    drop(listener);
    let mut events = Vec::new();
    for _ in 0..2 {
        order(&mut path, commands.recv().await.expect("last words"));
        events.extend(path.settle());
    }
    let refused = |flow| Event::Closed {
        flow,
        cause: Cause::Refused,
    };
    assert!(events.contains(&refused(peers)), "{events:?}");
    let remote = SocketAddr::from(([10, 86, 0, 2], 8080));
    let late = path.origin.connect(path.now, remote).unwrap();
    assert!(path.settle().contains(&refused(late)));
    assert!(path.inside.listeners.is_empty() && path.inside.arrivals.is_empty());
}
