//! Bad input to the server's listeners: below TLS, inside it, and without it.

use crate::case::{
    Answer::{Alert, Silence, SilenceOrFrame},
    Case, Listener, Table, frame, hello_of_tls12, noise,
};

/// What a real client and its server once said on a `tcp://` lane.
pub(crate) struct Recorded {
    /// The client's first frame: message 1.
    pub(crate) init: Vec<u8>,
    /// The server's answer to it: message 2.
    pub(crate) reply: Vec<u8>,
    /// Everything the client said.
    pub(crate) up: Vec<u8>,
}

/// The frame type that asks for proof that a message is fresh.
const CHALLENGE: u8 = 3;

/// Strangers to a `tcp://` lane.
pub(crate) fn tcp(recorded: &Recorded) -> Vec<Case> {
    let Recorded { init, reply, up } = recorded;
    let body = &init[5..];
    let (major, rest) = (body[0], &body[2..]);
    let clear = |major: u8, kind: u8, rest: &[u8]| frame(1, &[&[major, kind], rest].concat());
    let bent = |at: usize| {
        let mut bytes = init.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let sized = |length: u32, bytes: usize| [&length.to_be_bytes()[..], &noise(bytes)].concat();

    let mut t = Table::new(Listener::Tcp);
    t.wait("says nothing", b"", Silence);
    t.finish("says nothing and ends", b"", Silence);
    t.wait("one byte", b"\0", Silence);
    t.finish("half a length", b"\0\0", Silence);
    t.wait("frame of no length", [0; 4], Silence);
    t.wait("ten thousand frames of no length", [0; 40_000], Silence);
    t.wait("frame of unknown type", frame(0x7F, b"x"), Silence);
    t.wait(
        "frame of unknown type that may be skipped",
        frame(0xFF, b"x"),
        Silence,
    );
    t.wait("longest length there is", [0xFF; 5], Silence);
    t.wait(
        "length beyond that of a session",
        sized(66_001, 66_001),
        Silence,
    );
    t.wait(
        "length beyond that of a stranger",
        sized(2049, 2049),
        Silence,
    );
    t.wait(
        "longest frame of a stranger, noise",
        sized(2048, 2048),
        Silence,
    );
    t.wait("64 KiB of noise", noise(65_536), Silence);
    t.wait("HTTP request", HTTP, Silence);
    t.wait("TLS hello", hello_of_tls12(), Silence);
    t.wait("SSH banner", b"SSH-2.0-OpenSSH_9.6\r\n", Silence);
    t.wait("SOCKS greeting", [5, 1, 0], Silence);
    t.wait(
        "message 1 of noise",
        clear(major, body[1], &noise(rest.len())),
        Silence,
    );
    t.wait(
        "message 1 of zeros",
        clear(major, body[1], &vec![0; rest.len()]),
        Silence,
    );
    t.wait("message 1 of no body", frame(1, b""), Silence);
    t.wait(
        "message 1 of a later version",
        clear(major + 1, body[1], rest),
        Silence,
    );
    t.wait(
        "message 1 of an unknown suite",
        clear(major, 0x70, rest),
        Silence,
    );
    t.wait(
        "message 1 of a rekey in the clear",
        clear(major, 0x11, rest),
        Silence,
    );
    t.wait("message 1 with its key bent", bent(10), Silence);
    t.wait(
        "message 1 with its payload bent",
        bent(init.len() - 30),
        Silence,
    );
    t.wait("message 1 with its tag bent", bent(init.len() - 1), Silence);
    t.finish(
        "message 1 cut short, then the end",
        &init[..init.len() / 2],
        Silence,
    );
    t.reset(
        "message 1 cut short, then a reset",
        &init[..init.len() / 2],
        Silence,
    );
    t.wait(
        "message 1 cut short, then nothing",
        &init[..init.len() - 1],
        Silence,
    );
    t.wait(
        "message 1 one byte shorter",
        frame(1, &body[..body.len() - 1]),
        Silence,
    );
    t.wait(
        "message 1 with a byte more",
        frame(1, &[body, b"\0"].concat()),
        Silence,
    );
    t.wait("message 1 replayed", init, SilenceOrFrame(CHALLENGE));
    t.wait(
        "message 1 replayed twice at once",
        init.repeat(2),
        SilenceOrFrame(CHALLENGE),
    );
    t.wait("everything replayed", up, SilenceOrFrame(CHALLENGE));
    t.wait(
        "everything but message 1 replayed",
        &up[init.len()..],
        Silence,
    );
    t.wait("message 2 reflected", reply, Silence);
    t.wait("message 2 as message 1", frame(1, &reply[5..]), Silence);
    t.wait(
        "challenge to a server",
        frame(CHALLENGE, &[&body[..2], &[7; 32]].concat()),
        Silence,
    );
    t.wait("sealed frame of no session", frame(4, &noise(64)), Silence);
    t.wait("sealed frame that is too short", frame(4, b"\0"), Silence);
    t.wait("join of an unknown session", frame(5, &noise(70)), Silence);
    t.wait("join that is too short", frame(5, b"\x01"), Silence);
    t.wait("join of no body", frame(5, b""), Silence);
    t.drip("length, a byte now and then", [0; 200], Silence);
    t.drip("message 1, a byte now and then", init, Silence);
    t.cases
}

/// Strangers to a `tls://` lane.
pub(crate) fn tls() -> Vec<Case> {
    let hello = hello_of_tls12();
    let half = &hello[..hello.len() / 2];
    let long = [&[22, 3, 1, 0xFF, 0xFF][..], &noise(65_535)].concat();

    let mut t = Table::new(Listener::Tls);
    t.wait("TLS: says nothing", b"", Alert);
    t.wait("TLS: noise", noise(4096), Alert);
    t.wait("TLS: HTTP request", HTTP, Alert);
    t.wait("TLS: hello of TLS 1.2", &hello, Alert);
    t.wait("TLS: half a hello, then nothing", half, Alert);
    t.finish("TLS: half a hello, then the end", half, Alert);
    t.reset("TLS: half a hello, then a reset", half, Alert);
    t.wait("TLS: record beyond its limit", long, Alert);
    t.wait(
        "TLS: empty records without end",
        [22, 3, 1, 0, 0].repeat(5000),
        Alert,
    );
    t.drip("TLS: hello, a byte now and then", &hello, Alert);
    let mut all = t.cases;

    let mut t = Table::new(Listener::InsideTls);
    t.wait("inside TLS: says nothing", b"", Silence);
    t.finish("inside TLS: says nothing and ends", b"", Silence);
    t.wait("inside TLS: noise", noise(65_536), Silence);
    t.wait("inside TLS: HTTP request", HTTP, Silence);
    t.wait("inside TLS: frame of no length", [0; 4], Silence);
    t.wait("inside TLS: longest length there is", [0xFF; 5], Silence);
    t.wait(
        "inside TLS: message 1 of noise",
        frame(1, &noise(1300)),
        Silence,
    );
    t.drip(
        "inside TLS: a byte now and then",
        [0, 0, 4, 0, 1, 1, 1],
        Silence,
    );
    all.extend(t.cases);
    all
}

const HTTP: &str = "GET / HTTP/1.1\r\nHost: vpn.example\r\n\r\n";
