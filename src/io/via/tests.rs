//! Proxies of a few lines, which say what real ones say.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

use super::socks::{Negotiation, SocksError};
use super::*;
use crate::config::ProxyAuth;

fn login() -> ProxyAuth {
    ProxyAuth {
        user: "alice".to_owned(),
        password: Zeroizing::new("s3cret".to_owned()),
    }
}

fn proxy(scheme: ProxyScheme, login: Option<ProxyAuth>) -> ProxyAddr {
    ProxyAddr {
        scheme,
        host: Host::Name("proxy".to_owned()),
        port: 3128,
        login,
    }
}

async fn pair() -> (LaneStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let near = LaneStream::Tcp(near.expect("connects"));
    (near, far.expect("accepts").0)
}

/// Asks a proxy that reads one request over HTTP and answers so; returns the outcome and the request.
async fn ask_http(
    with: Option<ProxyAuth>,
    answer: &str,
) -> (Result<LaneStream, ViaError>, String, TcpStream) {
    let (near, mut far) = pair().await;
    let answering = async {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            let byte = far.read_u8().await.expect("a request");
            request.push(char::from(byte));
        }
        far.write_all(answer.as_bytes()).await.expect("open");
        if answer.is_empty() {
            far.shutdown().await.expect("open");
        }
        (request, far)
    };
    let proxy = proxy(ProxyScheme::Http, with);
    let host = Host::Name("vpn.example.com".to_owned());
    let (outcome, (request, far)) = tokio::join!(ask(near, &proxy, &host, 8443), answering);
    (outcome, request, far)
}

#[tokio::test]
async fn connect_names_the_server_and_the_user_and_gives_the_connection() {
    for answer in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
        "HTTP/1.1 200 Connection established\r\nContent-Length: 0\r\n\r\n",
    ] {
        let (outcome, request, mut far) = ask_http(Some(login()), answer).await;
        assert!(
            request.starts_with("CONNECT vpn.example.com:8443 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.contains("\r\nHost: vpn.example.com:8443\r\n"),
            "{request}"
        );
        // alice:s3cret
        let basic = "\r\nProxy-Authorization: Basic YWxpY2U6czNjcmV0\r\n";
        assert!(request.contains(basic), "{request}");
        let mut near = outcome.expect(answer);
        far.write_all(b"from the server").await.expect("open");
        let mut got = [0; 15];
        near.read_exact(&mut got).await.expect("open");
        assert_eq!(&got, b"from the server");
    }
    let (_, request, _) = ask_http(None, "HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(!request.contains("Authorization"), "{request}");
}

#[tokio::test]
async fn each_answer_of_an_http_proxy_is_told_in_words() {
    let basic = "HTTP/1.1 407 Denied\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\
                 Content-Length: 900\r\n\r\n<html>";
    for (with, answer, words) in [
        (
            false,
            basic,
            "it wants a user and a password: write them in `via`",
        ),
        (true, basic, "it does not accept the user and the password"),
        (
            true,
            "HTTP/1.0 401 Unauthorized\r\n\r\n",
            "it does not accept the user and the password",
        ),
        (
            true,
            "HTTP/1.1 407 Denied\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",
            "takes passwords only by Negotiate or NTLM, and Adit gives them by Basic",
        ),
        (
            true,
            "HTTP/1.1 403 Forbidden\r\n\r\n",
            "does not allow connections to port 8443 of the server (403 Forbidden): most proxies allow 443",
        ),
        (
            true,
            "HTTP/1.1 405 No\r\n\r\n",
            "does not allow connections to port 8443",
        ),
        (
            true,
            "HTTP/1.0 502 Bad\r\n\r\n",
            "does not reach the server (502 Bad Gateway)",
        ),
        (
            false,
            "HTTP/1.0 501 Unsupported method ('CONNECT')\r\n\r\n",
            "it makes no connections for others (501 Not Implemented): is it a proxy",
        ),
        (true, "HTTP/1.1 418 Tea\r\n\r\n", "answers 418"),
        (true, "SSH-2.0-OpenSSH_9.2\r\n\r\n", "no HTTP proxy"),
        (true, "", "closed the connection without an answer"),
        (
            true,
            "HTTP/1.1 200 OK\r\n\r\nWelcome!",
            "sent 8 bytes behind its answer",
        ),
    ] {
        let (outcome, ..) = ask_http(with.then(login), answer).await;
        let error = outcome.err().expect(answer).to_string();
        assert!(error.contains(words), "{answer}: {error}");
        assert!(
            !error.contains("s3cret") && !error.contains("alice"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn answer_without_an_end_is_refused() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000));
    let (outcome, ..) = ask_http(None, &endless).await;
    assert!(outcome.is_err());
}

#[tokio::test]
async fn socks_connection_is_the_servers_from_the_first_byte_behind_the_answer() {
    let (near, mut far) = pair().await;
    let answering = async {
        let mut said = vec![0; 4];
        far.read_exact(&mut said).await.expect("open");
        assert_eq!(said, [5, 2, 0, 2]);
        far.write_all(&[5, 2]).await.expect("open");
        said = vec![0; 14];
        far.read_exact(&mut said).await.expect("open");
        assert_eq!(said, b"\x01\x05alice\x06s3cret");
        far.write_all(&[1, 0]).await.expect("open");
        said = vec![0; 22];
        far.read_exact(&mut said).await.expect("open");
        assert_eq!(said, b"\x05\x01\x00\x03\x0fvpn.example.com\x20\xfb");
        // The address is a name, and the server speaks at once.
        far.write_all(b"\x05\x00\x00\x03\x02ab\x00\x01from the server")
            .await
            .expect("open");
    };
    let proxy = proxy(ProxyScheme::Socks5, Some(login()));
    let host = Host::Name("vpn.example.com".to_owned());
    let (outcome, ()) = tokio::join!(ask(near, &proxy, &host, 8443), answering);
    let mut got = [0; 15];
    let mut near = outcome.expect("a connection");
    near.read_exact(&mut got).await.expect("open");
    assert_eq!(&got, b"from the server");
}

/// Feeds a negotiation with what a proxy says.
fn negotiate(login: Option<&ProxyAuth>, host: &str, answers: &[u8]) -> Result<usize, SocksError> {
    let mut negotiation = Negotiation::new(login, &host.parse().expect(host), 443);
    let mut at = 0;
    while negotiation.wants() > 0 {
        let Some(answer) = answers.get(at..at + negotiation.wants()) else {
            break;
        };
        at += answer.len();
        negotiation.handle(answer)?;
    }
    Ok(answers.len() - at)
}

#[test]
fn each_refusal_of_a_socks_proxy_is_told_in_words() {
    let login = login();
    for (login, answers, error) in [
        (None, &[5, 0xff][..], SocksError::WantsLogin),
        (None, &[5, 2], SocksError::WantsLogin),
        (Some(&login), &[5, 0xff], SocksError::NoMethod),
        (Some(&login), &[5, 2, 1, 1], SocksError::WrongLogin),
        (None, &[5, 1], SocksError::NotSocks),
        (None, b"HT", SocksError::NotSocks),
        (None, &[5, 0, 5, 2, 0, 1, 0], SocksError::Refused(2)),
        (None, &[5, 0, 4, 0, 0, 1, 0], SocksError::NotSocks),
        (None, &[5, 0, 5, 0, 0, 9, 0], SocksError::NotSocks),
    ] {
        assert_eq!(negotiate(login, "h", answers), Err(error), "{answers:?}");
    }
    let said = |code| SocksError::Refused(code).to_string();
    assert!(said(2).contains("does not allow"));
    assert!(said(4).contains("no such name"));
    assert!(said(77).contains("77"));
}

#[test]
fn socks_request_has_each_kind_of_address() {
    for (host, address) in [
        ("203.0.113.7", &[1, 203, 0, 113, 7][..]),
        ("h.example", b"\x03\x09h.example"),
        (
            "[::1]",
            &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        ),
    ] {
        let mut negotiation = Negotiation::new(None, &host.parse().expect(host), 443);
        assert_eq!(negotiation.poll_transmit().as_deref(), Some(&vec![5, 1, 0]));
        negotiation.handle(&[5, 0]).expect("chosen");
        let request = negotiation.poll_transmit().expect("the request");
        assert_eq!(*request, [&[5, 1, 0], address, &[1, 187]].concat());
    }
}

proptest! {
    #[test]
    fn any_answer_of_a_socks_proxy_ends(
        answers in prop::collection::vec(any::<u8>(), 0..600),
        with: bool,
    ) {
        let login = login();
        let _ = negotiate(with.then_some(&login), "vpn.example.com", &answers);
    }
}
