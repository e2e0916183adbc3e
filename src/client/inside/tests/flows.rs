//! Flows of the client's own: how they end, and what of them is left.

use tokio::io::AsyncWriteExt;

use super::*;
use crate::client::down::Down;
use crate::client::rules::{InForce, Judged, Rules, Way, listed};
use crate::client::tunnel::ConnectError;
use crate::io::relay::Endpoint;

fn attach(inside: &mut Inside, socket: TcpStream, early: &[u8]) {
    let attachment = Attachment::Tcp(socket);
    inside.attach(Instant::now(), FIRST, attachment, early.to_vec(), None);
}

#[test]
fn flow_that_times_out_says_whose_fault_it_was() {
    for (linked, expected) in [
        (true, ConnectError::TimedOut),
        (false, ConnectError::TunnelDown(Down::Ended)),
    ] {
        let (mut inside, _asked) = inside();
        let (now, mut wire) = (Instant::now(), Wire::default());
        let (reply, mut answer) = Reply::pair();
        inside.connect(now, FIRST, origin(), reply);
        turn(&mut inside, now, &mut wire, linked);
        let later = now + CONNECT_TIMEOUT;
        inside.handle_timeout(later);
        turn(&mut inside, later, &mut wire, linked);
        assert_eq!(answer.try_recv(), Ok(Err(expected)));
        assert!(inside.flows.is_empty() && inside.handles.is_empty());
        assert!(inside.stack.is_empty());
    }
}

#[test]
fn flow_whose_asker_goes_leaves_nothing_behind() {
    let (mut inside, _asked) = inside();
    let (now, mut wire) = (Instant::now(), Wire::default());
    inside.connect(now, FIRST, origin(), Reply::pair().0);
    turn(&mut inside, now, &mut wire, true);
    inside.abort(now, FIRST);
    turn(&mut inside, now, &mut wire, true);
    assert!(inside.flows.is_empty() && inside.handles.is_empty());
    assert!(inside.stack.is_empty());
}

#[tokio::test]
async fn attached_flow_moves_bytes_and_ends_with_both_halves() {
    let mut path = Path::new();
    let far = path.open();
    let (socket, mut application) = tcp_pair().await;
    attach(&mut path.inside, socket, b"early ");
    application.write_all(b"bytes").await.unwrap();
    application.shutdown().await.unwrap();
    let mut received = Vec::new();
    while received != b"early bytes" {
        tokio::task::yield_now().await;
        path.settle();
        let _ = path.origin.recv(path.now, far, |ring| {
            received.extend_from_slice(ring);
            (ring.len(), ())
        });
    }
    path.origin
        .send(path.now, far, |ring| {
            ring[..6].copy_from_slice(b"answer");
            (6, ())
        })
        .unwrap();
    path.origin.finish(path.now, far);
    while !path.inside.relay.is_empty() {
        tokio::task::yield_now().await;
        path.settle();
    }
    let mut answer = Vec::new();
    application.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert!(path.inside.flows.is_empty() && path.inside.handles.is_empty());
    assert!(path.asked.try_recv().is_err());
}

#[tokio::test]
async fn flow_that_the_origin_resets_is_reset_for_the_application() {
    let mut path = Path::new();
    let far = path.open();
    let (socket, mut application) = tcp_pair().await;
    attach(&mut path.inside, socket, b"");
    path.settle();
    path.origin.abort(path.now, far);
    path.settle();
    let error = application.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(path.inside.stack.is_empty() && path.inside.relay.is_empty());
}

#[tokio::test]
async fn application_that_resets_resets_the_flow() {
    let mut path = Path::new();
    let far = path.open();
    let (socket, application) = tcp_pair().await;
    attach(&mut path.inside, socket, b"");
    path.settle();
    Endpoint::Tcp(application).reset();
    let closed = |event: &Event| matches!(event, Event::Closed { flow, .. } if *flow == far);
    while !path.settle().iter().any(closed) {
        tokio::task::yield_now().await;
    }
    assert!(path.inside.relay.is_empty() && path.inside.stack.is_empty());
}

#[tokio::test]
async fn flow_that_ended_before_it_was_attached_shows_as_a_reset() {
    let (mut inside, _asked) = inside();
    let (socket, mut application) = tcp_pair().await;
    attach(&mut inside, socket, b"");
    let error = application.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn changed_rules_reset_the_flows_that_they_concern_at_both_ends_and_no_others() {
    let (replace, rules) = InForce::new(Rules::default());
    for (attached_after, list, goes_on) in [
        (false, &["block 192.0.2.2", "direct 10.0.0.0/8"][..], true),
        (false, &["block 192.0.2.1 port 80"], false),
        (false, &["direct *"], false),
        (true, &["block a.example"], true),
        (true, &["block 192.0.2.1"], false),
    ] {
        replace.put(Rules::default());
        let mut path = Path::new();
        let far = path.open();
        let judged = Box::new(Judged::new(&rules, None, origin(), Way::Tunnel));
        let (socket, mut application) = tcp_pair().await;
        if attached_after {
            replace.put(listed(list));
        }
        let attachment = Attachment::Tcp(socket);
        (path.inside).attach(path.now, FIRST, attachment, Vec::new(), Some(judged));
        replace.put(listed(list));
        path.inside.end_unfit(path.now);
        let closed = |event: &Event| matches!(event, Event::Closed { flow, .. } if *flow == far);
        let ended = path.settle().iter().any(closed);
        assert_eq!(ended, !goes_on, "{list:?}");
        if goes_on {
            application.write_all(b"on").await.unwrap();
            let mut received = Vec::new();
            while received != b"on" {
                tokio::task::yield_now().await;
                path.settle();
                let _ = path.origin.recv(path.now, far, |ring| {
                    received.extend_from_slice(ring);
                    (ring.len(), ())
                });
            }
        } else {
            let error = application.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(path.inside.relay.is_empty() && path.inside.stack.is_empty());
            assert!(path.inside.flows.is_empty() && path.inside.handles.is_empty());
        }
    }
}

#[test]
fn flow_without_any_address_is_told_that_the_tunnel_is_down_and_of_another_family_that_there_is_none()
 {
    let (mut inside, _asked) = inside();
    let now = Instant::now();
    let ask = |inside: &mut Inside, remote: &str| {
        let (reply, mut answer) = Reply::pair();
        let remote = remote.parse().unwrap();
        inside.connect(now, HandleId::numbered(9), remote, reply);
        answer.try_recv().unwrap()
    };
    let six = "[2001:db8::1]:80";
    assert_eq!(ask(&mut inside, six), Err(ConnectError::NoAddress));
    inside.end_all(now);
    assert_eq!(
        ask(&mut inside, six),
        Err(ConnectError::TunnelDown(Down::Ended))
    );
    assert_eq!(
        ask(&mut inside, "192.0.2.1:80"),
        Err(ConnectError::TunnelDown(Down::Ended))
    );
}
