//! Handles and the driver's end of them, without a driver.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn pair() -> (Tunnel, Commands) {
    tunnel(watch::channel(None).1)
}

fn remote() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 80))
}

async fn connected(tunnel: &Tunnel, commands: &mut Commands) -> (Flow, HandleId) {
    let (flow, id) = tokio::join!(tunnel.connect(remote()), async {
        match commands.recv().await {
            Some(Command::Connect { flow, reply, .. }) => {
                reply.send(Ok(()));
                flow
            }
            other => panic!("expected Connect, got {other:?}"),
        }
    });
    (flow.unwrap(), id)
}

#[tokio::test]
async fn dropped_flow_is_aborted() {
    let (tunnel, mut commands) = pair();
    let (flow, id) = connected(&tunnel, &mut commands).await;
    drop(flow);
    let Some(Command::Abort { flow }) = commands.recv().await else {
        panic!("no abort");
    };
    assert_eq!(flow, id);
}

#[tokio::test]
async fn caller_gone_before_the_driver_looked_leaves_only_an_unknown_id() {
    let (tunnel, mut commands) = pair();
    let mut connect = Box::pin(tunnel.connect(remote()));
    assert!(futures_util::poll!(connect.as_mut()).is_pending());
    drop(connect);
    assert!(matches!(commands.recv().await, Some(Command::Abort { .. })));
    drop(tunnel);
    assert!(commands.recv().await.is_none());
}

#[tokio::test]
async fn caller_gone_between_request_and_reply_is_followed_by_an_abort() {
    let (tunnel, mut commands) = pair();
    let mut connect = Box::pin(tunnel.connect(remote()));
    assert!(futures_util::poll!(connect.as_mut()).is_pending());
    let Some(Command::Connect { flow, reply, .. }) = commands.recv().await else {
        panic!("no request");
    };
    // The reply is on its way when the caller goes.
    reply.send(Ok(()));
    drop(connect);
    let Some(Command::Abort { flow: aborted }) = commands.recv().await else {
        panic!("no abort");
    };
    assert_eq!(aborted, flow);
}

#[tokio::test]
async fn last_words_pass_a_full_queue() {
    let (tunnel, mut commands) = pair();
    let (flow, id) = connected(&tunnel, &mut commands).await;
    let port = {
        let (port, ()) = tokio::join!(tunnel.bind_udp(), async {
            let Some(Command::BindUdp { reply, .. }) = commands.recv().await else {
                panic!("no request");
            };
            reply.send(Ok(()));
        });
        port.unwrap()
    };
    let mut sent = 0;
    while port.try_send_to(b"x", remote()).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, COMMAND_QUEUE);
    drop(flow);
    let Some(Command::Abort { flow }) = commands.recv().await else {
        panic!("no abort");
    };
    assert_eq!(flow, id);
}

#[tokio::test]
async fn everything_fails_with_tunnel_down_once_the_driver_has_gone() {
    let (tunnel, mut commands) = pair();
    let (flow, _) = connected(&tunnel, &mut commands).await;
    drop(commands);
    assert_eq!(
        tunnel.connect(remote()).await.unwrap_err(),
        ConnectError::TunnelDown(Down::Ended)
    );
    let mut stream = flow.into_stream();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn driver_that_goes_while_asked_is_tunnel_down() {
    let (tunnel, commands) = pair();
    let (outcome, ()) = tokio::join!(tunnel.connect(remote()), async { drop(commands) });
    assert_eq!(outcome.unwrap_err(), ConnectError::TunnelDown(Down::Ended));
}

async fn stream(tunnel: &Tunnel, commands: &mut Commands) -> (FlowStream, Pipe) {
    let (flow, _) = connected(tunnel, commands).await;
    let stream = flow.into_stream();
    let Some(Command::Attach {
        attachment: Attachment::Pipe(pipe),
        ..
    }) = commands.recv().await
    else {
        panic!("no attach");
    };
    (stream, pipe)
}

#[tokio::test]
async fn stream_dropped_without_shutdown_aborts_and_with_it_does_not() {
    let (tunnel, mut commands) = pair();
    let (dropped, _pipe) = stream(&tunnel, &mut commands).await;
    drop(dropped);
    assert!(matches!(commands.recv().await, Some(Command::Abort { .. })));

    let (mut ended, mut pipe) = stream(&tunnel, &mut commands).await;
    ended.write_all(b"tail").await.unwrap();
    ended.shutdown().await.unwrap();
    drop(ended);
    drop(tunnel);
    let mut all = Vec::new();
    pipe.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"tail");
    assert!(commands.recv().await.is_none());
}

#[tokio::test]
async fn failed_pipe_is_an_error_and_dropped_pipe_an_end() {
    let (tunnel, mut commands) = pair();
    let (mut reader, mut pipe) = stream(&tunnel, &mut commands).await;
    pipe.write_all(b"half").await.unwrap();
    pipe.fail(io::ErrorKind::ConnectionReset);
    let mut all = Vec::new();
    let error = reader.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(all, b"half");

    let (mut reader, pipe) = stream(&tunnel, &mut commands).await;
    drop(pipe);
    assert_eq!(reader.read_to_end(&mut all).await.unwrap(), 0);
}

#[tokio::test]
async fn association_ends_with_its_lifeline_and_dissociates_when_dropped() {
    let (tunnel, mut commands) = pair();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (association, alive) = tokio::join!(
        tunnel.associate(
            socket,
            std::net::Ipv4Addr::LOCALHOST.into(),
            InForce::default()
        ),
        async {
            let Some(Command::Associate { alive, reply, .. }) = commands.recv().await else {
                panic!("no request");
            };
            reply.send(Ok(()));
            alive
        }
    );
    let mut association = association.unwrap();
    drop(alive);
    association.ended().await;
    drop(association);
    assert!(matches!(
        commands.recv().await,
        Some(Command::Dissociate { .. })
    ));
}
