//! The example `fetch` against a server and an origin of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use adit::config::{Inputs, ServerConfig, write_key};
use adit::proto::SecretKey;
use adit::server::run::{RunError, Server};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[path = "../examples/fetch.rs"]
#[expect(dead_code, reason = "its main is for the program")]
mod fetch;

/// A server with egress `user`, and the configuration file of a client of it.
struct World {
    client: PathBuf,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), RunError>>,
    folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (server_key, client_key) = (key(), key());
        write_key(&at("server.key"), &server_key, false).unwrap();
        write_key(&at("client.key"), &client_key, false).unwrap();
        let text = format!(
            "listen: [tcp://127.0.0.1:0]\nkey_file: server.key\negress: user\nallow: [127.0.0.0/8]\n\
             state_dir: state\ncontrol: off\nclients:\n  - {{name: test, public_key: \"{}\"}}\n",
            client_key.public()
        );
        fs::write(at("server.yaml"), text).unwrap();
        let loaded = ServerConfig::load(Inputs {
            file: Some(&at("server.yaml")),
            environment: &|_| None,
            flags: &[],
        });
        let server = Server::start(loaded.unwrap().config).await.unwrap();
        let text = format!(
            "server: {}\nserver_key: \"{}\"\nkey_file: client.key\n",
            server.listening()[0],
            server_key.public()
        );
        fs::write(at("client.yaml"), text).unwrap();
        let stop = CancellationToken::new();
        Self {
            client: at("client.yaml"),
            server: tokio::spawn(server.run(stop.clone())),
            stop,
            folder,
        }
    }

    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        match fetch::run(Some(&self.client), url, &mut body).await {
            Ok(length) => {
                assert_eq!(length, body.len() as u64);
                Ok(body)
            }
            Err(error) => Err(format!("{error:#}")),
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.server.await.unwrap().unwrap();
        drop(self.folder);
    }
}

fn key() -> SecretKey {
    SecretKey::generate(&mut rand::rng())
}

/// An origin that gives every connection the answer that its path asks for, and closes it.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut socket = BufReader::new(socket);
            let (mut first, mut line) = (String::new(), String::new());
            socket.read_line(&mut first).await.unwrap();
            while socket.read_line(&mut line).await.unwrap() > 2 {
                line.clear();
            }
            let answer = match first.split(' ').nth(1).unwrap() {
                "/large?size=3" => [
                    b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n".as_slice(),
                    &large(),
                ]
                .concat(),
                "/broken" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec(),
                "/moved" => {
                    b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n".to_vec()
                }
                _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            };
            socket.write_all(&answer).await.unwrap();
            socket.shutdown().await.unwrap();
        }
    });
    address
}

fn large() -> Vec<u8> {
    (0..3_000_000_u32).map(|i| (i % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn body_arrives_whole() {
    let world = World::start().await;
    let origin = origin().await;
    let url = format!("http://{origin}/large?size=3");
    let body = world.fetch(&url).await.unwrap();
    assert!(body == large(), "{} bytes", body.len());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said() {
    let world = World::start().await;
    let origin = origin().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = closed.local_addr().unwrap();
    drop(closed);
    for (url, said) in [
        (format!("http://{origin}/nothing"), "404 Not Found"),
        (format!("http://{origin}/moved"), "redirects to /there"),
        (format!("http://{origin}/broken"), "the body broke off"),
        (format!("http://{refusing}/"), "refused"),
        (format!("https://{origin}/"), "TLS with 127.0.0.1 failed"),
        ("ftp://example.com/".to_owned(), "only http:// and https://"),
        ("/a/path".to_owned(), "names no host"),
        ("http://a b/".to_owned(), "is no URL"),
    ] {
        let error = world.fetch(&url).await.unwrap_err();
        assert!(error.contains(said), "{url}: {error}");
    }
    world.end().await;
}
