//! The inside alone, and with an origin behind a lane that loses nothing.

mod datagrams;
mod flows;
mod incoming;

use std::io;
use std::task::Waker;

use adit_netstack::FlowId;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::client::resolve::NameQuery;
use crate::client::tunnel::Attachment;
use crate::io::carrier::wire::Wire;
use crate::proto::budget::{HARD, SESSION};

const FIRST: HandleId = HandleId::numbered(1);

fn inside() -> (Inside, mpsc::Receiver<NameQuery>) {
    let config = InnerConfig {
        v4: Some(([10, 86, 0, 2].into(), 24)),
        ..InnerConfig::default()
    };
    let (names, asked) = mpsc::channel(1);
    (
        Inside::new(&config, names, Share::alone(SESSION / HARD), 1),
        asked,
    )
}

fn origin() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 80))
}

fn turn(inside: &mut Inside, now: Instant, wire: &mut Wire, linked: bool) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let any = inside.poll(&mut cx, now, Turns::for_test(false), Some(wire), linked);
    inside.poll_transmit(now, wire);
    any
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// The inside and an origin that accepts, with nothing lost between them.
struct Path {
    inside: Inside,
    origin: Stack,
    now: Instant,
    asked: mpsc::Receiver<NameQuery>,
}

impl Path {
    fn new() -> Self {
        let (inside, asked) = inside();
        let config = Config {
            accept: Accept::Any,
            addresses: vec![[10, 86, 0, 1].into()],
            ..Config::default()
        };
        Self {
            inside,
            origin: Stack::new(config, 2),
            now: Instant::now(),
            asked,
        }
    }

    /// Lets both speak until neither has anything to say; returns what the origin was told.
    fn settle(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let mut up = Wire::default();
            turn(&mut self.inside, self.now, &mut up, true);
            let quiet = up.packets.is_empty();
            for (mut packet, offload) in up.packets {
                let _ = self.origin.handle_packet(self.now, &mut packet, offload);
            }
            while let Some(event) = self.origin.poll_event() {
                if let Event::Incoming { flow, .. } = event {
                    self.origin.accept(self.now, flow);
                }
                events.push(event);
            }
            let mut down = Wire::default();
            self.origin.poll_transmit(self.now, &mut down);
            if quiet && down.packets.is_empty() {
                return events;
            }
            for (mut packet, offload) in down.packets {
                self.inside.handle_packet(self.now, &mut packet, offload);
            }
        }
    }

    fn open(&mut self) -> FlowId {
        let (reply, mut answer) = Reply::pair();
        self.inside.connect(self.now, FIRST, origin(), reply);
        let events = self.settle();
        assert_eq!(answer.try_recv(), Ok(Ok(())));
        let flow = events.iter().find_map(|event| match event {
            Event::Established { flow } => Some(*flow),
            Event::Incoming { .. } | Event::Progress { .. } | Event::Closed { .. } => None,
        });
        flow.expect("the origin has the flow too")
    }
}

#[test]
fn turn_without_time_does_one_thing_and_the_next_does_the_rest() {
    let (mut inside, _asked) = inside();
    let (now, mut wire) = (Instant::now(), Wire::default());
    let mut answers = Vec::new();
    for number in 1..=3 {
        let (reply, answer) = Reply::pair();
        inside.connect(now, HandleId::numbered(number), origin(), reply);
        answers.push(answer);
    }
    turn(&mut inside, now, &mut wire, true);
    let later = now + CONNECT_TIMEOUT;
    inside.handle_timeout(later);
    let mut cx = Context::from_waker(Waker::noop());
    for done in 1..=3 {
        let turns = Turns::for_test(true);
        assert!(inside.poll(&mut cx, later, turns, Some(&mut wire), true));
        let answered = answers
            .iter_mut()
            .filter(|it| !it.is_empty() || it.is_terminated());
        assert_eq!(answered.count(), done);
    }
    assert!(!turn(&mut inside, later, &mut wire, true));
}

#[tokio::test]
async fn end_of_the_inside_shows_as_a_reset() {
    let mut path = Path::new();
    path.open();
    let (socket, mut application) = tcp_pair().await;
    path.inside.attach(
        Instant::now(),
        FIRST,
        Attachment::Tcp(socket),
        Vec::new(),
        None,
    );
    path.settle();
    drop(path);
    let error = application.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
