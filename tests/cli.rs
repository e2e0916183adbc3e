//! The program as a script sees it: what it prints where, and its exit status.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A folder to run the program in, with nothing of ours in the environment.
struct Shell {
    folder: TempDir,
}

impl Shell {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("run")).expect("an own folder");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path())
            // where control sockets are made: root's would stay in /run
            .env("XDG_RUNTIME_DIR", self.path().join("run"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program runs")
    }

    /// Makes a key and returns its public half.
    fn key(&self, name: &str) -> String {
        let output = self.run(&["keygen", "-o", name]);
        assert!(output.status.success(), "{output:?}");
        out(&output).trim_end().to_owned()
    }
}

/// Somebody else's public key.
const OTHER: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

#[test]
fn keygen_writes_a_private_file_and_prints_the_public_key() {
    let shell = Shell::new();
    let public = shell.key("a.key");
    assert_eq!(public.len(), 44);
    let path = shell.path().join("a.key");
    assert_eq!(
        fs::metadata(&path).expect("a file").permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(out(&shell.run(&["pubkey", "a.key"])).trim_end(), public);
    let before = fs::read(&path).expect("a key");
    let again = shell.run(&["keygen", "-o", "a.key"]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(
        err(&again),
        "adit: a.key exists already: name another file, or say --force to lose the key in it\n"
    );
    assert_eq!(fs::read(&path).expect("a key"), before);
    assert!(
        shell
            .run(&["keygen", "-o", "a.key", "--force"])
            .status
            .success()
    );
    assert_ne!(fs::read(&path).expect("a key"), before);
    assert_eq!(
        fs::metadata(&path).expect("a file").permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn keygen_and_pubkey_work_in_a_pipe() {
    let shell = Shell::new();
    let secret = shell.run(&["keygen"]);
    assert_eq!(out(&secret).len(), 45);
    let mut pubkey = shell
        .command(&["pubkey", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    pubkey
        .stdin
        .take()
        .expect("a pipe")
        .write_all(&secret.stdout)
        .expect("written");
    let public = pubkey.wait_with_output().expect("ends");
    assert_eq!((public.status.code(), out(&public).len()), (Some(0), 45));
    assert_ne!(public.stdout, secret.stdout);
}

#[test]
fn a_reader_that_is_gone_is_no_reason_to_complain() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let shell = Shell::new();
    let output = shell
        .command(&["keygen"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let output = output.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), err(&output)), (Some(0), ""));
}

#[test]
fn pubkey_tells_what_is_wrong_with_a_file() {
    let shell = Shell::new();
    shell.key("open.key");
    fs::set_permissions(
        shell.path().join("open.key"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("mode");
    fs::write(shell.path().join("no.key"), "words").expect("written");
    fs::set_permissions(
        shell.path().join("no.key"),
        fs::Permissions::from_mode(0o600),
    )
    .expect("mode");
    for (file, told) in [
        (
            "open.key",
            "adit: open.key may be used by others than you (its mode is 0644): run chmod 600 open.key\n",
        ),
        (
            "none.key",
            "adit: cannot read none.key: there is no such file\n",
        ),
        ("no.key", "adit: no.key holds no key: "),
    ] {
        let output = shell.run(&["pubkey", file]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(err(&output).starts_with(told), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn check_accepts_what_is_right_and_tells_which_kind_it_is() {
    let shell = Shell::new();
    let server = shell.key("server.key");
    shell.key("client.key");
    fs::write(
        shell.path().join("s.yaml"),
        format!("key_file: server.key\nlisten: tcp://127.0.0.1:7443\nclients: [{{name: a, public_key: {OTHER}}}]\n"),
    )
    .expect("written");
    let client =
        format!("server: tcp://127.0.0.1:7443\nserver_key: {server}\nkey_file: client.key\n");
    fs::write(shell.path().join("c.yaml"), client).expect("written");
    let output = shell.run(&["check", "s.yaml"]);
    assert_eq!(
        out(&output),
        "s.yaml: ok: server on tcp://127.0.0.1:7443, 1 client, egress tun\n",
        "{output:?}"
    );
    let output = shell.run(&["check", "c.yaml"]);
    assert_eq!(
        out(&output),
        "c.yaml: ok: client of tcp://127.0.0.1:7443, proxy on 127.0.0.1:1080\n",
        "{output:?}"
    );
    let output = shell
        .command(&["check", "c.yaml"])
        .env("ADIT_PROXY", "127.0.0.1:9")
        .env("ADIT_PROXI", "x")
        .output()
        .expect("runs");
    assert_eq!(
        out(&output),
        "c.yaml: warning: environment variable ADIT_PROXI means nothing: did you mean ADIT_PROXY?\nc.yaml: ok: client of tcp://127.0.0.1:7443, proxy on 127.0.0.1:9\n"
    );
}

/// A program of ours that runs until it is dropped.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Lines that nobody has asked for yet: the order of lines of different streams is chance.
    passed: RefCell<Vec<String>>,
}

impl Running {
    /// Starts the program; what it says on either stream is read line by line.
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let (sender, lines) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("piped")),
            Box::new(child.stderr.take().expect("piped")),
        ];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let passed = RefCell::default();
        Self {
            child,
            lines,
            passed,
        }
    }

    /// Waits for a line that has all of `parts`, and takes it.
    fn expect(&self, parts: &[&str]) -> String {
        let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
        let mut passed = self.passed.borrow_mut();
        if let Some(index) = passed.iter().position(has_all) {
            return passed.remove(index);
        }
        loop {
            let Ok(line) = self.lines.recv_timeout(HANG) else {
                panic!("no line with {parts:?} in {passed:#?}");
            };
            if has_all(&line) {
                return line;
            }
            passed.push(line);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The hang guard of a line.
const HANG: Duration = Duration::from_secs(30);

#[test]
fn both_ends_say_at_info_what_one_needs_first() {
    let shell = Shell::new();
    let server_key = shell.key("server.key");
    let listed = shell.key("listed.key");
    let text = format!(
        "key_file: server.key\nlisten: [tcp://127.0.0.1:0, udp://127.0.0.1:0]\negress: user\nstate_dir: state\nclients: [{{name: laptop, public_key: {listed}}}]\n"
    );
    fs::write(shell.path().join("s.yaml"), text).expect("written");
    let server = Running::start(shell.command(&["server", "-c", "s.yaml"]));
    let ready = server.expect(&["ready: listening on "]);
    let (_, addresses) = ready.split_once(" on ").expect("addresses");
    let addresses: Vec<&str> = addresses.split(", ").collect();
    assert_eq!(addresses.len(), 2, "{ready}");
    let client = |address: &str, key: &str| {
        Running::start(shell.command(&[
            "client",
            "--server",
            address,
            "--server-key",
            &server_key,
            "--key-file",
            key,
            "--proxy",
            "127.0.0.1:0",
        ]))
    };
    for address in addresses {
        let scheme = &address[..3];
        let name = format!("{scheme}.key");
        let key = shell.key(&name);
        let unlisted = client(address, &name);
        unlisted.expect(&["INFO", "connecting", address]);
        // What is to be pasted into `clients:`.
        server.expect(&["INFO", "not listed in `clients`", &key]);
        drop(unlisted);
        let client = client(address, "listed.key");
        client.expect(&["INFO", "session established", address]);
        client.expect(&["INFO", "configured", "10.86.0.", "fd86::"]);
        client.expect(&["ready: proxy on "]);
        server.expect(&["INFO", "session up", "laptop", "10.86.0.", "fd86::"]);
    }
}

#[test]
fn check_takes_a_server_that_lists_nobody() {
    let shell = Shell::new();
    shell.key("server.key");
    let text = "key_file: server.key\nlisten: tcp://127.0.0.1:7443\n";
    fs::write(shell.path().join("s.yaml"), text).expect("written");
    let output = shell.run(&["check", "s.yaml"]);
    assert!(
        out(&output).contains("0 clients") && !out(&output).contains("warning"),
        "{output:?}"
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn check_warns_of_a_password_that_others_may_read() {
    let shell = Shell::new();
    shell.key("client.key");
    let text = format!(
        "server: tcp://127.0.0.1:7443\nserver_key: {OTHER}\nkey_file: client.key\nproxy_user: a\nproxy_password: hush\n"
    );
    let file = shell.path().join("c.yaml");
    fs::write(&file, text).expect("written");
    for (mode, warned) in [(0o644, true), (0o640, true), (0o600, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("ours");
        let output = shell.run(&["check", "c.yaml"]);
        assert!(output.status.success(), "{output:?}");
        let warning = format!(
            "c.yaml: warning: proxy_password: others than you may read c.yaml (its mode is {mode:04o}): run chmod 600 c.yaml"
        );
        assert_eq!(out(&output).contains(&warning), warned, "{output:?}");
        assert!(!out(&output).contains("hush"), "{output:?}");
    }
}

#[test]
fn file_of_the_other_program_is_told_in_one_line() {
    let shell = Shell::new();
    shell.key("a.key");
    let client = format!(
        "server: tcp://127.0.0.1:7443\nserver_key: {OTHER}\nkey_file: a.key\nproxy: 127.0.0.1:0\n"
    );
    fs::write(shell.path().join("c.yaml"), client).expect("written");
    let server = format!(
        "key_file: a.key\nlisten: tcp://127.0.0.1:7443\nclients: [{{name: a, public_key: {OTHER}}}]\n"
    );
    fs::write(shell.path().join("s.yaml"), server).expect("written");
    for (args, told) in [
        (
            &["server", "-c", "c.yaml"][..],
            "adit: c.yaml: this is a client's file: adit client -c c.yaml\n",
        ),
        (
            &["client", "-c", "s.yaml"],
            "adit: s.yaml: this is a server's file: adit server -c s.yaml\n",
        ),
    ] {
        let output = shell.run(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(err(&output), told, "{output:?}");
    }
}

#[test]
fn state_folder_that_cannot_be_made_is_told_once() {
    let shell = Shell::new();
    shell.key("server.key");
    fs::write(shell.path().join("file"), "").expect("written");
    let text =
        "key_file: server.key\nlisten: tcp://127.0.0.1:0\negress: user\nstate_dir: file/state\n";
    fs::write(shell.path().join("s.yaml"), text).expect("written");
    let output = shell.run(&["server", "-c", "s.yaml", "--log-level", "off"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(
        err(&output).matches("Not a directory").count(),
        1,
        "{output:?}"
    );
}

#[test]
fn check_refuses_what_is_wrong_with_status_2() {
    let shell = Shell::new();
    shell.key("server.key");
    fs::write(
        shell.path().join("s.yaml"),
        "key_file: server.key\nmtu: 12\n",
    )
    .expect("written");
    fs::write(shell.path().join("unclear.yaml"), "key_file: server.key\n").expect("written");
    fs::write(shell.path().join("no.pem"), "no certificate\n").expect("written");
    fs::write(
        shell.path().join("t.yaml"),
        "key_file: server.key\nlisten: tls://127.0.0.1:8443\ntls: {certificate: no.pem, key: no.pem}\n",
    )
    .expect("written");
    let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let client = format!(
        "server: tls://127.0.0.1:8443\nserver_key: {public}\nkey_file: server.key\ntls: {{ca_file: no.pem}}\n"
    );
    fs::write(shell.path().join("ca.yaml"), client).expect("written");
    for (args, told) in [
        (
            &["check", "t.yaml"][..],
            "adit: t.yaml: tls: no.pem holds no certificate\n",
        ),
        (
            &["check", "ca.yaml"],
            "adit: ca.yaml: tls: no.pem holds no certificate authority that can be used\n",
        ),
        (
            &["check", "s.yaml"],
            "adit: s.yaml:2:6: mtu: `12` is out of range: write a number from 1280 to 9000\n",
        ),
        (
            &["check", "none.yaml"],
            "adit: none.yaml: there is no such file\n",
        ),
        (
            &["check", "unclear.yaml"],
            "adit: unclear.yaml: its keys do not tell",
        ),
        (
            &["check", "unclear.yaml", "--kind", "client"],
            "adit: unclear.yaml: server: is missing",
        ),
    ] {
        let output = shell.run(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(err(&output).starts_with(told), "{output:?}");
    }
    assert!(
        shell
            .run(&["check", "unclear.yaml", "--kind", "server"])
            .status
            .success()
    );
}

#[test]
fn wrong_usage_is_told_with_status_2() {
    let shell = Shell::new();
    for (args, told) in [
        (&[][..], "Usage: adit"),
        (&["serve"], "unrecognized subcommand 'serve'"),
        (&["server", "--mut", "1400"], "unexpected argument '--mut'"),
        (
            &["server"],
            "adit: no configuration: run `adit server -c server.yaml`",
        ),
        (
            &["client"],
            "adit: no configuration: `adit join LINK` makes one in ",
        ),
        (&["check"], "adit: no configuration: `adit join LINK` makes"),
        (
            &["client", "--tun-exclude", "10.0.0.0/8"],
            "--tun-exclude: tun.exclude: belongs to a tunnel of the whole host: add --tun",
        ),
        (
            &["client", "-c", "none.yaml"],
            "adit: none.yaml: there is no such file",
        ),
        (
            &["server", "--listen", "here"],
            "--listen: listen: `here` does not say how to connect",
        ),
        (
            &["try", "--proxy", "0.0.0.0:1080"],
            "adit: --proxy: `0.0.0.0:1080` can be reached from other hosts",
        ),
        (
            &["try", "--proxy", "x"],
            "adit: --proxy: `x` is not an address to listen on",
        ),
        (
            &["try", "--log-level", "loud"],
            "adit: `loud` is not a log level: write error, warn",
        ),
        (&["try", "--log-format", "xml"], "invalid value 'xml'"),
        (
            &["try", "--ready-fd", "1"],
            "adit: --ready-fd 1: 0, 1 and 2 are the standard streams",
        ),
        (
            &["try", "--ready-fd", "777"],
            "adit: --ready-fd 777: Bad file descriptor",
        ),
        (&["keygen", "--force"], "--output <FILE>"),
    ] {
        let output = shell.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(
            err(&output).contains(told),
            "{args:?} should say {told}: {output:?}"
        );
    }
    let output = shell.run(&["run", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(err(&output).contains("`adit join LINK` makes one in "));
    // Its exit status is the command's: what is wrong with the rest has one apart, too.
    for args in [&["run"][..], &["--log-level", "warn", "run", "--share=x"]] {
        let output = shell.run(args);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {output:?}");
        assert!(err(&output).contains("Usage: adit run"), "{output:?}");
    }
    assert_eq!(shell.run(&["run", "--help"]).status.code(), Some(0));
}

#[test]
fn check_without_a_file_checks_what_join_has_written_or_what_variables_say() {
    let shell = Shell::new();
    shell.key("client.key");
    let usual = shell.path().join(".config/adit/client.yaml");
    fs::create_dir_all(usual.parent().expect("a folder")).expect("an own folder");
    let key = shell.path().join("client.key");
    let text = format!(
        "server: udp://203.0.113.7:7443\nserver_key: {OTHER}\nkey_file: {}\n",
        key.display()
    );
    fs::write(&usual, text).expect("written");
    let output = shell.run(&["check"]);
    assert!(output.status.success(), "{output:?}");
    let ok = format!("{}: ok: client of udp://203.0.113.7:7443", usual.display());
    assert!(out(&output).starts_with(&ok), "{output:?}");
    let mut variables = shell.command(&["check", "--kind", "server"]);
    let output = variables
        .env("ADIT_KEY_FILE", &key)
        .env("ADIT_LISTEN", "tcp://127.0.0.1:7443")
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    assert!(out(&output).contains("environment: ok: "), "{output:?}");
}

#[test]
fn help_and_version_are_no_failure() {
    let shell = Shell::new();
    let version = shell.run(&["--version"]);
    assert_eq!(
        (version.status.code(), out(&version)),
        (Some(0), concat!("adit ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    for args in [
        &["--help"][..],
        &["server", "--help"],
        &["client", "--help"],
        &["help", "try"],
    ] {
        let output = shell.run(args);
        assert_eq!(output.status.code(), Some(0));
        assert!(out(&output).contains("Usage: adit"), "{output:?}");
    }
    let help = shell.run(&["--help"]);
    assert!(out(&help).contains("\n  man "), "{help:?}");
}

#[test]
fn log_lines_in_the_journal_have_the_time_of_the_journal_alone() {
    let shell = Shell::new();
    shell.key("server.key");
    let log = |stream: &dyn Fn(&fs::Metadata) -> Option<String>, format: &str| {
        let file = fs::File::create(shell.path().join("log")).expect("a file");
        let metadata = file.metadata().expect("an own file");
        // Nobody has this address: it ends by itself, once it has warned.
        let args = [
            "server",
            "--key-file",
            "server.key",
            "--egress",
            "user",
            "--state-dir",
            "state",
        ];
        let mut command = shell.command(&args);
        command.args(["--listen", "tcp://192.0.2.1:1", "--log-format", format]);
        command.env("ADIT_NONSENSE", "1").stderr(file);
        command.envs(stream(&metadata).map(|stream| ("JOURNAL_STREAM", stream)));
        assert!(!command.status().expect("the program runs").success());
        let text = fs::read_to_string(shell.path().join("log")).expect("a file");
        let line = text.lines().find(|line| line.contains("ADIT_NONSENSE"));
        line.unwrap_or_else(|| panic!("no warning: {text}"))
            .to_owned()
    };
    let to_it = |it: &fs::Metadata| Some(format!("{}:{}", it.dev(), it.ino()));
    let line = log(&to_it, "text");
    assert!(line.trim_start().starts_with("WARN"), "{line}");
    // A program that keeps lines apart from the journal has their time in them.
    assert!(log(&to_it, "json").contains("timestamp"));
    for other in [None, Some("1:2"), Some("")] {
        let line = log(&|_| other.map(str::to_owned), "text");
        assert!(line.starts_with("20"), "{other:?}: {line}");
    }
}
