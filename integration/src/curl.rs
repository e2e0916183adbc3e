//! Runs curl, the client that everybody has.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::SocketAddr,
    process::Stdio,
    thread,
    time::Duration,
};

use crate::{
    namespaces::Place,
    process::{self, Finished},
    stream::{CHUNK, Hasher, Stream},
};

/// A way to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// None: straight to the origin, to prove the scene.
    Direct,
    /// SOCKS5, names resolved by the proxy.
    Socks5h(SocketAddr),
    /// SOCKS4a.
    Socks4a(SocketAddr),
    /// HTTP: plain requests are forwarded, others tunnelled by CONNECT.
    Http(SocketAddr),
    /// HTTP, everything by CONNECT.
    HttpTunnel(SocketAddr),
}

/// What a transfer gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// curl's exit code; 0 is success.
    pub code: i32,
    /// How many bytes came.
    pub length: u64,
    /// Their SHA-256.
    pub sha256: String,
    /// What curl said about it.
    pub stderr: String,
}

/// Runs curl for `url` with further arguments, and returns what it printed.
///
/// # Panics
///
/// If curl cannot be run, or has not ended in two minutes.
pub fn get(place: &Place, via: Via, url: &str, more: &[&str]) -> Finished {
    let mut command = place.command("curl");
    command
        .args(arguments(via))
        .args(["--max-time", "90"])
        .args(more)
        .arg(url);
    process::run(command, Duration::from_secs(120))
}

/// Downloads `url` and hashes what comes, holding none of it.
///
/// # Panics
///
/// If curl cannot be run.
pub fn download(place: &Place, via: Via, url: &str) -> Transfer {
    let mut command = place.command("curl");
    command
        .args(arguments(via))
        .args(["--max-time", "240"])
        .arg(url);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = process::fork(command, Vec::new()).expect("curl runs");
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut output = child.stdout.take().expect("it was piped");
    while let Ok(length) = output.read(&mut buffer) {
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
    }
    let mut stderr = String::new();
    let _ = child
        .stderr
        .take()
        .expect("it was piped")
        .read_to_string(&mut stderr);
    let status = child.wait().expect("an own child");
    Transfer {
        code: status.code().unwrap_or(-1),
        length: hasher.length(),
        sha256: hasher.finish(),
        stderr,
    }
}

/// Uploads the first `length` bytes of the stream of `seed` to `url`, and returns what the origin answered.
///
/// # Panics
///
/// If curl cannot be run.
pub fn upload(place: &Place, via: Via, url: &str, seed: u64, length: u64) -> Finished {
    let mut command = place.command("curl");
    command.args(arguments(via)).args([
        "--max-time",
        "240",
        "--header",
        "Expect:",
        "--request",
        "POST",
    ]);
    // -T streams; --data-binary would hold the whole body
    command.args(["--upload-file", "-"]).arg(url);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = process::fork(command, Vec::new()).expect("curl runs");
    let input = child.stdin.take().expect("it was piped");
    let feeder = thread::spawn(move || feed(input, seed, length));
    let output = child.wait_with_output().expect("an own child");
    // a broken pipe is told by curl's own exit code
    let _ = feeder.join().expect("feeding does not panic");
    Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn feed(mut input: impl Write, seed: u64, length: u64) -> io::Result<()> {
    let mut stream = Stream::new(seed);
    let mut buffer = vec![0; CHUNK];
    while stream.position() < length {
        let left = usize::try_from(length - stream.position()).unwrap_or(usize::MAX);
        let part = &mut buffer[..left.min(CHUNK)];
        stream.fill(part);
        input.write_all(part)?;
    }
    Ok(())
}

fn arguments(via: Via) -> Vec<String> {
    // no configuration of the user's, no progress meter, and no exception for local addresses
    let mut list: Vec<String> = [
        "--disable",
        "--silent",
        "--show-error",
        "--globoff",
        "--http1.1",
    ]
    .map(String::from)
    .into();
    let (proxy, tunnel) = match via {
        Via::Direct => {
            list.extend(["--noproxy".to_owned(), "*".to_owned()]);
            return list;
        }
        Via::Socks5h(address) => (format!("socks5h://{address}"), false),
        Via::Socks4a(address) => (format!("socks4a://{address}"), false),
        Via::Http(address) => (format!("http://{address}"), false),
        Via::HttpTunnel(address) => (format!("http://{address}"), true),
    };
    list.extend([
        "--noproxy".to_owned(),
        String::new(),
        "--proxy".to_owned(),
        proxy,
    ]);
    if tunnel {
        list.push("--proxytunnel".to_owned());
    }
    list
}

/// Writes the certificate of an authority where curl can read it.
///
/// # Errors
///
/// What writing says.
pub fn write_authority(path: &std::path::Path, pem: &str) -> io::Result<()> {
    File::create(path)?.write_all(pem.as_bytes())
}
