//! Bad input to the client's proxy, which speaks SOCKS and HTTP on one port.

use crate::case::{
    Answer::{Any, Begins, Refusal, Silence, Status, StatusOrSilence},
    Case, Listener, Table, hello_of_tls12, noise,
};

/// Programs that mean something else, or nothing good.
pub(crate) fn cases() -> Vec<Case> {
    let mut t = Table::new(Listener::Proxy);
    t.wait("proxy: says nothing", b"", StatusOrSilence(&[408]));
    t.wait(
        "proxy: noise",
        noise(65_536),
        StatusOrSilence(&[400, 414, 431]),
    );
    t.wait("proxy: zeros", [0; 1000], StatusOrSilence(&[400]));
    t.wait(
        "proxy: TLS hello",
        hello_of_tls12(),
        StatusOrSilence(&[400]),
    );
    socks5(&mut t);
    socks4(&mut t);
    http(&mut t);
    t.cases
}

fn socks5(t: &mut Table) {
    // a greeting, and then a request
    let greeted = |rest: &[u8]| [&[5, 1, 0][..], rest].concat();
    // a CONNECT to an address and a port
    let connect = |ip: [u8; 4], port: u8| greeted(&[&[5, 1, 0, 1][..], &ip, &[0, port]].concat());
    let other = |command: u8, kind: u8| greeted(&[5, command, 0, kind, 127, 0, 0, 1, 0, 80]);
    let named = |name: &[u8]| {
        let length = u8::try_from(name.len()).expect("short");
        greeted(&[&[5, 1, 0, 3, length][..], name, &[0, 80]].concat())
    };
    let half = greeted(&[5, 1, 0, 1, 127]);
    let long = [&[5, 255][..], &[0x80; 200]].concat();
    let accepted = Begins(&[5, 0]);

    t.wait("SOCKS5: no methods", [5, 0], Begins(&[5, 0xFF]));
    t.wait(
        "SOCKS5: unknown methods",
        [5, 2, 0x80, 0x81],
        Begins(&[5, 0xFF]),
    );
    t.finish("SOCKS5: greeting cut short", [5, 9, 0], Silence);
    t.drip("SOCKS5: greeting, a byte now and then", long, Silence);
    t.wait(
        "SOCKS5: request of another version",
        greeted(&[4, 1, 0, 1]),
        accepted.clone(),
    );
    t.wait("SOCKS5: BIND", other(2, 1), Refusal(&[7]));
    t.wait("SOCKS5: unknown command", other(9, 1), Refusal(&[7]));
    t.wait(
        "SOCKS5: unknown kind of address",
        other(1, 9),
        Refusal(&[8]),
    );
    t.wait("SOCKS5: name of no length", named(b""), Refusal(&[1, 4, 8]));
    t.wait(
        "SOCKS5: name that is none",
        named(b"\0\xFF /"),
        Refusal(&[1, 4, 8]),
    );
    t.wait(
        "SOCKS5: port 0",
        connect([127, 0, 0, 1], 0),
        Refusal(&[1, 2, 3, 4, 5]),
    );
    t.wait(
        "SOCKS5: address of nobody",
        connect([0, 0, 0, 0], 80),
        Refusal(&[1, 2, 3, 4]),
    );
    t.wait(
        "SOCKS5: multicast",
        connect([224, 0, 0, 1], 80),
        Refusal(&[1, 2, 3, 4]),
    );
    t.finish(
        "SOCKS5: request cut short, then the end",
        &half,
        accepted.clone(),
    );
    t.reset("SOCKS5: request cut short, then a reset", &half, Any);
    t.wait("SOCKS5: request cut short, then nothing", &half, accepted);
}

fn socks4(t: &mut Table) {
    let head = |command: u8, ip: [u8; 4]| [&[4, command, 0, 80][..], &ip].concat();
    let user = [head(1, [127, 0, 0, 1]), vec![b'u'; 65_536]].concat();
    let name = [head(1, [0, 0, 0, 1]), vec![0], vec![b'n'; 65_536]].concat();
    let refused = Begins(&[0, 91]);

    t.wait(
        "SOCKS4: BIND",
        [head(2, [127, 0, 0, 1]), vec![0]].concat(),
        refused.clone(),
    );
    t.wait(
        "SOCKS4: unknown command",
        [head(9, [127, 0, 0, 1]), vec![0]].concat(),
        refused,
    );
    // whether with a refusal or without a word: the connection ends
    t.wait("SOCKS4: user that never ends", user, Any);
    t.wait("SOCKS4a: name that never ends", &name, Any);
    t.drip("SOCKS4a: name, a byte now and then", &name[..200], Any);
}

fn http(t: &mut Table) {
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\n{headers}\r\n");
    let post = |headers: &str, body: &str| {
        format!("POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{body}")
    };
    let connect =
        |target: &str| format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let begun = "GET http://a.example/ HTTP/1.1\r\nX: ";
    let long = format!("{begun}{}\r\n\r\n", "x".repeat(1 << 20));
    let many = get("http://a.example/", &"X: y\r\n".repeat(20_000));
    let wrong = || Status(&[400]);

    t.finish("HTTP: no request", "\r\n\r\n", StatusOrSilence(&[400]));
    t.wait("HTTP: not a request", "HELLO\r\n\r\n", wrong());
    t.wait(
        "HTTP: CONNECT without a port",
        connect("a.example"),
        wrong(),
    );
    t.wait(
        "HTTP: CONNECT to port 99999",
        connect("a.example:99999"),
        wrong(),
    );
    t.wait(
        "HTTP: path of a server",
        get("/etc/passwd", CLOSE),
        Status(&[400, 404]),
    );
    t.wait(
        "HTTP: scheme not forwarded",
        get("ftp://a/", CLOSE),
        Status(&[400, 501]),
    );
    t.wait(
        "HTTP: https in the clear",
        get("https://a/", CLOSE),
        Status(&[400, 501]),
    );
    t.wait(
        "HTTP: header beyond every limit",
        long,
        StatusOrSilence(&[400, 431]),
    );
    t.wait(
        "HTTP: thousands of headers",
        many,
        StatusOrSilence(&[400, 431]),
    );
    t.wait(
        "HTTP: header that never ends",
        begun,
        StatusOrSilence(&[400, 408]),
    );
    t.drip(
        "HTTP: header, a byte now and then",
        format!("{begun}{}", "x".repeat(200)),
        StatusOrSilence(&[400, 408]),
    );
    t.wait(
        "HTTP: two lengths",
        post("Content-Length: 1\r\nContent-Length: 2", "ab"),
        wrong(),
    );
    t.wait(
        "HTTP: length that is none",
        post("Content-Length: -1", ""),
        wrong(),
    );
    t.wait(
        "HTTP: unknown coding",
        post("Transfer-Encoding: rot13", ""),
        Status(&[400, 501]),
    );
    t.wait(
        "HTTP: version 9",
        "GET http://a/ HTTP/9.9\r\n\r\n",
        StatusOrSilence(&[400, 505]),
    );
    t.wait(
        "HTTP: blank in a header's name",
        get("http://a/", "Bad Name: x\r\n"),
        wrong(),
    );
    t.wait(
        "HTTP: port that is none",
        get("http://u:p@a:b/", CLOSE),
        wrong(),
    );
}

/// Ends the connection with the answer.
const CLOSE: &str = "Host: a\r\nConnection: close\r\n";
