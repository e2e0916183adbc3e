//! `adit join`: from a link to a running client.
//!
//! # Theory of operation
//!
//! ```text
//!  link ──▶ checked as a configuration would be ──▶ key file ──▶ enrolled ──▶ configuration file ──▶ adit client
//! ```
//!
//! The key is on the disk before the server hears of it, and the configuration is written once the server has taken it, each
//! whole or not at all, and neither has a name before it is whole. Wherever this ends in between, the same command goes on with the same key, which the server answers
//! as it did before. Others may read the configuration that root has written, unless there is a password in it. A key file
//! that is there is used and never overwritten. A configuration that is there is changed only by --force, and only in what the
//! link brings ([`edit_file`]): what will be written is known, and was read as it will be, before the server is asked.

use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;
use zeroize::Zeroizing;

use super::{Failure, print};
use crate::client::enrol::{EnrolError, enrol};
use crate::config::{
    Change, ClientConfig, EditError, Edited, FlagValue, Inputs, LaneAddr, Link, MAX_LINK_LEN,
    edit_file, read_key, write_key,
};
use crate::io::privilege::is_root;
use crate::io::state::{Readers, rewrite_atomically, write_new_for};
use crate::proto::SecretKey;
use crate::wire::Verdict;

/// The arguments of `adit join`.
#[derive(Debug, Args)]
#[command(
    after_help = "Afterwards the client is started by: adit client -c FILE\nIf this is interrupted, the same command goes on where it was.\nadit join - keeps the link out of the list of processes and the shell's history."
)]
pub(super) struct JoinArgs {
    /// The link that `adit invite` has printed on the server; or - to be asked for it, or read it from standard input, since
    /// others on this host see what stands on a command line
    #[arg(value_name = "LINK")]
    link: String,
    /// The configuration file to write; the key is put beside it, as FILE with .key in place of .yaml. By default
    /// client.yaml in $XDG_CONFIG_HOME/adit or ~/.config/adit
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the proxy listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    proxy: Option<String>,
    /// The proxy through which the server is reached: a URL, env for what HTTPS_PROXY or ALL_PROXY says, or off
    #[arg(long, value_name = "URL")]
    via: Option<String>,
    /// Have a configuration file that is there lead to this server: its server, keys and pin are changed, and what is said
    /// here; all else in it stays
    #[arg(long)]
    force: bool,
    /// Do not start the client
    #[arg(long)]
    pub(super) no_start: bool,
}

/// Enrols this client and writes its configuration; returns the file.
pub(super) fn run(args: &JoinArgs) -> Result<PathBuf, Failure> {
    let link = read_link(&args.link)?;
    let file = match &args.config {
        Some(file) => file.clone(),
        None => usual_file().ok_or_else(|| {
            Failure::Usage(
                "no folder for the configuration: HOME is not set; say -c FILE".to_owned(),
            )
        })?,
    };
    if !args.force && file.symlink_metadata().is_ok() {
        return Err(Failure::Usage(format!(
            "{} exists already: name another file by -c FILE, or say --force to have it lead to this server (all else in it stays)",
            file.display()
        )));
    }
    make_folder(&file)?;
    let key_file = file.with_extension("key");
    let made = ensure_key(&key_file)?;
    let (config, text) = match prepare(args, &link, &file, &key_file) {
        Ok(prepared) => prepared,
        Err(failure) => {
            if made {
                let _ = fs::remove_file(&key_file);
            }
            return Err(failure);
        }
    };
    note(&format!("asking {} …", in_a_row(&link.servers)));
    let name = match ask(&config, &link) {
        Ok(name) => name,
        Err(error) => {
            let refused = matches!(error, EnrolError::Refused(_));
            if made && refused {
                // The server knows nothing of it, and the next link makes another.
                let _ = fs::remove_file(&key_file);
            }
            return Err(Failure::Run(in_words(error, &link)));
        }
    };
    let changed = text.write(args, &file)?;
    let enrolled = match name {
        Some(name) => format!("enrolled as {name}"),
        None => "the server knows this key already: nothing was to be enrolled, and the link is as good as before".to_owned(),
    };
    let file_shown = file.display();
    print(&format!("{enrolled}; configuration: {file_shown}{changed}"))?;
    Ok(file)
}

/// What the configuration file will hold.
enum Text {
    /// All of it, where there is none.
    New(String),
    /// What is there, changed; the file that is meant, also behind a link.
    Changed(PathBuf, Edited),
}

impl Text {
    /// Writes it; returns what is to be said of that.
    fn write(self, args: &JoinArgs, file: &Path) -> Result<String, Failure> {
        match self {
            Self::New(text) => {
                // Root's configuration is that of a service, which runs as another user.
                let readers = if is_root() && !has_secret(args) {
                    Readers::All
                } else {
                    Readers::Owner
                };
                write(file, text.as_bytes(), readers)?;
                Ok(String::new())
            }
            Self::Changed(_, edited) if edited.changed.is_empty() => {
                Ok(", which says so already".to_owned())
            }
            Self::Changed(file, edited) => {
                // The server was waited for: whoever had it open in an editor may have saved it.
                if fs::read(&file).is_ok_and(|now| now != edited.before.as_bytes()) {
                    return Err(Failure::Usage(format!(
                        "{} was changed meanwhile, and is as it was left: the same command again has it lead to this server",
                        file.display()
                    )));
                }
                rewrite_atomically(&file, edited.text.as_bytes())
                    .with_context(|| format!("cannot write {}", file.display()))
                    .map_err(Failure::Run)?;
                let changed = edited.changed.join(", ");
                Ok(format!("; changed in it: {changed}; all else stays"))
            }
        }
    }
}

/// Makes what will be written, and reads it as it will be read, before anything else is done.
fn prepare(
    args: &JoinArgs,
    link: &Link,
    file: &Path,
    key_file: &Path,
) -> Result<(ClientConfig, Text), Failure> {
    let config = check(args, link, key_file)?;
    if file.symlink_metadata().is_err() {
        return Ok((config, Text::New(configuration(args, link, key_file))));
    }
    // A link that leads nowhere is told before the server is asked, too.
    let meant = (file.canonicalize())
        .with_context(|| file.display().to_string())
        .map_err(Failure::Run)?;
    if !meant.is_file() {
        return Err(Failure::Usage(format!(
            "{} is not a file, so that there is nothing in it to change",
            file.display()
        )));
    }
    let changes = changes(args, link, key_file);
    let edited = edit_file(file, &changes).map_err(|error| match error {
        EditError::Read(error) => error.into(),
        error @ EditError::ByHand { .. } => Failure::Usage(error.to_string()),
    })?;
    let inputs = Inputs {
        file: None,
        environment: &surroundings,
        flags: &[],
    };
    let loaded = ClientConfig::load_text(inputs, file, &edited.text)?;
    for warning in loaded.warnings {
        note(&format!("warning: {warning}"));
    }
    Ok((loaded.config, Text::Changed(meant, edited)))
}

/// What a configuration that is there is to say from now on.
fn changes(args: &JoinArgs, link: &Link, key_file: &Path) -> Vec<Change> {
    let value = |text: &str| format!(" {}", quoted(text));
    let change = |key, to| Change { key, to };
    let servers = link.servers.iter().map(|server| {
        let server = quoted(&server.to_string());
        format!("\n  - {server}")
    });
    let key_name = key_file.file_name().unwrap_or_default().to_string_lossy();
    let mut changes = vec![
        change("server", Some(servers.collect())),
        change("server_key", Some(format!(" {}", link.server_key))),
        change("key_file", Some(value(&key_name))),
        // It was agreed on with another server.
        change("preshared_key_file", None),
        change("tls.pin", link.pin.as_ref().map(|pin| format!(" {pin}"))),
    ];
    if let Some(proxy) = &args.proxy {
        changes.push(change("proxy", Some(value(proxy))));
    }
    if let Some(via) = &args.via {
        changes.push(change("via", Some(value(via))));
    }
    changes
}

/// Names the configuration that `adit join` writes where no other is named.
pub(super) fn usual_file() -> Option<PathBuf> {
    let folder = |name| {
        let folder = env::var_os(name).map(PathBuf::from);
        // As the specification of the variable says: a relative path counts as none.
        folder.filter(|folder| folder.is_absolute())
    };
    let base = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(base.join("adit/client.yaml"))
}

fn read_link(text: &str) -> Result<Link, Failure> {
    let link = if text == "-" {
        let mut read = Zeroizing::new(String::new());
        let is_asked = io::stdin().is_terminal();
        let mut stdin = BufReader::new(io::stdin().lock().take(2 * MAX_LINK_LEN as u64));
        let outcome = if is_asked {
            note("paste the link, then press Enter:");
            stdin.read_line(&mut read)
        } else {
            stdin.read_to_string(&mut read)
        };
        outcome.map_err(|error| Failure::Usage(format!("standard input: {error}")))?;
        read.trim().parse::<Link>()
    } else {
        text.parse()
    };
    link.map_err(|error| Failure::Usage(error.to_string()))
}

/// Makes the folder for a configuration, for this user alone.
fn make_folder(file: &Path) -> Result<(), Failure> {
    let Some(folder) = file.parent().filter(|it| !it.as_os_str().is_empty()) else {
        return Ok(());
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make the folder {}", folder.display()))
        .map_err(Failure::Run)
}

/// Makes the key, unless it is there; returns whether it was made.
fn ensure_key(file: &Path) -> Result<bool, Failure> {
    if file.symlink_metadata().is_ok() {
        let key: SecretKey = read_key(file)?;
        note(&format!(
            "using the key that is in {}: {}",
            file.display(),
            key.public()
        ));
        return Ok(false);
    }
    write_key(file, &SecretKey::generate(&mut rand::rng()), false)?;
    Ok(true)
}

/// Reads what the configuration will say as it will be read, before anything else is done.
fn check(args: &JoinArgs, link: &Link, key_file: &Path) -> Result<ClientConfig, Failure> {
    let flag = |key, flag, values: Vec<String>| FlagValue { key, flag, values };
    let absolute = std::path::absolute(key_file).unwrap_or_else(|_| key_file.to_owned());
    let servers = link.servers.iter().map(ToString::to_string).collect();
    let mut flags = vec![
        flag("server", "LINK", servers),
        flag("server_key", "LINK", vec![link.server_key.to_string()]),
        flag("key_file", "-c", vec![absolute.display().to_string()]),
    ];
    if let Some(pin) = &link.pin {
        flags.push(flag("tls.pin", "LINK", vec![pin.to_string()]));
    }
    if let Some(proxy) = &args.proxy {
        flags.push(flag("proxy", "--proxy", vec![proxy.clone()]));
    }
    if let Some(via) = &args.via {
        flags.push(flag("via", "--via", vec![via.clone()]));
    }
    let loaded = ClientConfig::load(Inputs {
        file: None,
        environment: &surroundings,
        flags: &flags,
    })?;
    for warning in loaded.warnings {
        note(&format!("warning: {warning}"));
    }
    Ok(loaded.config)
}

/// The environment, but for what would say other things than the file that is to be written.
fn surroundings(name: &str) -> Option<String> {
    let ours = name.starts_with("ADIT_");
    env::var(name).ok().filter(|_| !ours)
}

/// Asks the server; `None` where it knows the key already.
fn ask(config: &ClientConfig, link: &Link) -> Result<Option<String>, EnrolError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(EnrolError::Runtime)?;
    let enrolled = runtime.block_on(enrol(config, &link.token));
    // A name being resolved by the system must not hold this up.
    runtime.shutdown_background();
    match enrolled {
        Ok(name) => Ok(Some(name)),
        Err(EnrolError::Refused(Verdict::KnownKey)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_words(error: EnrolError, link: &Link) -> anyhow::Error {
    let over = SystemTime::now().duration_since(link.ends);
    let unanswered = matches!(error, EnrolError::Unanswered(_));
    let error = error.to_string();
    match over {
        Ok(over) if unanswered => anyhow::Error::msg(format!(
            "{error}\nBy this host's clock the invitation ended {} minutes ago.",
            over.as_secs() / 60
        )),
        Ok(_) | Err(_) => anyhow::Error::msg(error),
    }
}

/// Writes the configuration: what is not in it has its default.
fn configuration(args: &JoinArgs, link: &Link, key_file: &Path) -> String {
    let key_name = key_file.file_name().unwrap_or_default().to_string_lossy();
    let mut text = String::from(
        "# Made by `adit join`. Started by: adit client -c THIS_FILE\n# Further keys, and what they do: examples/client.yaml of the project.\n",
    );
    text.push_str("server:\n");
    for server in &link.servers {
        text.push_str(&format!("  - {}\n", quoted(&server.to_string())));
    }
    text.push_str(&format!("server_key: {}\n", link.server_key));
    text.push_str(&format!("key_file: {}\n", quoted(&key_name)));
    if let Some(proxy) = &args.proxy {
        text.push_str(&format!("proxy: {}\n", quoted(proxy)));
    }
    if let Some(via) = &args.via {
        text.push_str(&format!("via: {}\n", quoted(via)));
    }
    if let Some(pin) = &link.pin {
        text.push_str(&format!("tls:\n  pin: {pin}\n"));
    }
    text
}

/// Whether what is written holds a password: that of the proxy on the way, if anything's.
fn has_secret(args: &JoinArgs) -> bool {
    args.via.as_deref().is_some_and(|via| via.contains('@'))
}

/// A text as YAML has it, whatever is in it: JSON is YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write(file: &Path, text: &[u8], readers: Readers) -> Result<(), Failure> {
    let context = || format!("cannot write {}", file.display());
    match write_new_for(readers, file, text) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Usage(format!(
            "{} was made meanwhile: the same command with --force has it lead to this server",
            file.display()
        ))),
        written => written.with_context(context).map_err(Failure::Run),
    }
}

fn in_a_row(servers: &[LaneAddr]) -> String {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    servers.join(", ")
}

fn note(line: &str) {
    // Nothing is left to be done for whoever closed standard error.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CertificatePin;
    use crate::wire::Token;

    fn args(proxy: Option<&str>, via: Option<&str>) -> JoinArgs {
        JoinArgs {
            link: String::new(),
            config: None,
            proxy: proxy.map(str::to_owned),
            via: via.map(str::to_owned),
            force: false,
            no_start: true,
        }
    }

    #[test]
    fn what_is_written_is_read_as_what_was_checked() {
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("a \"b\".key");
        assert!(ensure_key(&key_file).unwrap() && !ensure_key(&key_file).unwrap());
        let link = Link {
            server_key: SecretKey::from_bytes([3; 32]).public(),
            servers: vec![
                "tls://[2001:db8::1]:8443".parse().unwrap(),
                "wss://h:443/a:b".parse().unwrap(),
            ],
            pin: Some(CertificatePin([5; 32])),
            ends: SystemTime::UNIX_EPOCH,
            token: Token::from_bytes([1; 32]),
        };
        let args = args(Some("127.0.0.1:0"), Some("socks5://127.0.0.1:9"));
        let checked = check(&args, &link, &key_file).unwrap();
        let file = folder.path().join("client.yaml");
        let text = configuration(&args, &link, &key_file);
        write(&file, text.as_bytes(), Readers::Owner).unwrap();
        let read = ClientConfig::load(Inputs {
            file: Some(&file),
            environment: &surroundings,
            flags: &[],
        });
        let read = read.unwrap().config;
        assert_eq!(format!("{read:?}"), format!("{checked:?}"));
        assert!(write(&file, b"", Readers::Owner).is_err());
        // To say it again changes nothing, and what somebody has added stays.
        let more = format!("{text}# mine\nrules: [direct 192.0.2.0/24]\n");
        fs::write(
            &file,
            more.replace("key_file", "preshared_key_file: gone\nkey_file"),
        )
        .unwrap();
        let (config, text) = prepare(&args, &link, &file, &key_file).unwrap();
        assert_eq!(config.rules.len(), 1);
        let told = text.write(&args, &file).unwrap();
        assert_eq!(told, "; changed in it: preshared_key_file; all else stays");
        assert_eq!(fs::read_to_string(&file).unwrap(), more);
        // What somebody saves while the server is asked is not lost.
        let other = Link {
            servers: vec!["tls://other.example:1".parse().unwrap()],
            token: Token::from_bytes([2; 32]),
            ..link
        };
        let (_, text) = prepare(&args, &other, &file, &key_file).unwrap();
        fs::write(&file, format!("{more}# saved\n")).unwrap();
        let refused = text.write(&args, &file).unwrap_err();
        assert!(
            matches!(&refused, Failure::Usage(why) if why.contains("meanwhile")),
            "{refused:?}"
        );
        assert!(fs::read_to_string(&file).unwrap().ends_with("# saved\n"));
        // Nor is anything asked for a file that cannot be written.
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("gone", &file).unwrap();
        assert!(prepare(&args, &other, &file, &key_file).is_err());
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(matches!(
            prepare(&args, &other, &file, &key_file),
            Err(Failure::Usage(_))
        ));
    }

    #[test]
    fn wrong_option_is_named_before_anybody_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("client.key");
        ensure_key(&key_file).unwrap();
        let link = Link {
            server_key: SecretKey::from_bytes([3; 32]).public(),
            servers: vec!["udp://h:1".parse().unwrap()],
            pin: None,
            ends: SystemTime::UNIX_EPOCH,
            token: Token::from_bytes([1; 32]),
        };
        let error = check(&args(Some("1080"), None), &link, &key_file).unwrap_err();
        assert!(error.message().contains("--proxy"), "{}", error.message());
    }
}
