use super::*;
use crate::client::proxy::fake::{NameAnswer, Route};
use std::process::Command;

/// An origin for curl: 1 MiB for GET, the length of what was sent for PUT.
async fn web() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let head = read_head(&mut stream).await.to_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|rest| rest.lines().next()).unwrap_or("0");
                let mut body = vec![0; length.parse().unwrap()];
                if head.contains("expect: 100-continue") {
                    stream
                        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                        .await
                        .unwrap();
                }
                stream.read_exact(&mut body).await.unwrap();
                let answer = if body.is_empty() {
                    "x".repeat(1 << 20)
                } else {
                    body.len().to_string()
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    answer.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    address
}

/// Runs curl; `None` where there is no curl.
async fn curl(arguments: &[&str]) -> Option<Vec<u8>> {
    let mut command = Command::new("curl");
    command
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--noproxy",
            "",
        ])
        .args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = match output.unwrap() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "curl is missing in CI");
            eprintln!("skipped: curl is not installed");
            return None;
        }
        output => output.unwrap(),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {arguments:?}: {stderr}");
    Some(output.stdout)
}

#[tokio::test]
async fn curl_works_with_every_protocol() {
    let proxy = Proxy::with_password().await;
    let open = Proxy::start().await;
    let web = web().await;
    for proxy in [&proxy, &open] {
        proxy
            .net
            .name("web.test", NameAnswer::of(&["203.0.113.80"]));
        proxy.net.route("203.0.113.80:80", Route::To(web));
        proxy.net.route("203.0.113.80:8080", Route::To(web));
    }
    let upload = "y".repeat(3 << 20);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &upload).unwrap();
    let file = file.path().to_str().unwrap();
    let (with, without) = (proxy.address, open.address);
    for via in [
        format!("socks5h://user:secret@{with}"),
        format!("http://user:secret@{with}"),
        format!("socks5h://{without}"),
        format!("socks4a://{without}"),
        format!("http://{without}"),
    ] {
        for extra in [&[][..], &["--proxytunnel"][..]] {
            let get = [&["-x", &via, "http://web.test/"], extra].concat();
            let Some(got) = curl(&get).await else { return };
            assert_eq!(got.len(), 1 << 20, "{via}");
            let put = [&["-x", &via, "-T", file, "http://web.test:8080/up"], extra].concat();
            let Some(got) = curl(&put).await else { return };
            assert_eq!(got, upload.len().to_string().as_bytes(), "{via}");
        }
    }
    proxy.finish().await;
    open.finish().await;
}
