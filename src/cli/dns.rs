//! `adit dns NAME`: how a client would answer a name, and why, and which way its `rules:` send what goes there.
//!
//! The decision is made from the configuration and the lists as they lie on the disk, whether or not a client runs; the
//! answer comes from the local resolver of the client that runs, if one does.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

use super::args::DnsArgs;
use super::serve::load_client;
use super::{Failure, print};
use crate::client::dns::lists::{ListError, ListStore};
use crate::client::dns::policy::Policy;
use crate::client::dns::{Domain, Own};
use crate::client::rules::{Subject, explain};
use crate::config::ClientConfig;

/// Shows the decisions about a name or an address, and the answer.
pub(super) fn run(args: &DnsArgs) -> Result<(), Failure> {
    let asked = Asked::read(args).map_err(Failure::Usage)?;
    let flags = args.settings();
    let config = load_client(args.config.as_deref(), &flags)?.0.config;
    let domain = Domain::new(&asked.name);
    let store = ListStore::new(&config.dns)
        .context("no folder for fetched lists of names")
        .map_err(Failure::Run)?;
    let (lists, outcomes) = store.read();
    for told in &outcomes {
        match &told.outcome {
            Ok(_) => {}
            Err(ListError::NotFetched) => {
                print(&format!("note: {} is not fetched yet", told.source))?;
            }
            Err(error) => print(&format!("note: {}: {error}", told.source))?,
        }
    }
    let policy = Policy::new(&config.dns).with_lists(lists);
    let Asked { name, kind, .. } = &asked;
    if let Some(address) = asked.address {
        print(&format!("{address}, an address: no name is resolved"))?;
        judged(&config, &[Subject::Address(address)])?;
        print(&format!("its name: {} {kind}", written(name)))?;
        print(&format!("  {}", policy.explain(&domain)))?;
    } else {
        print(&format!("{} {kind}", args.name))?;
        print(&format!("  {}", policy.explain(&domain)))?;
        let lower = written(name).to_lowercase();
        match policy.own(name) {
            Own::Addresses(addresses) => {
                let records = addresses.iter().map(|ip| Subject::Record(&lower, *ip));
                judged(&config, &records.collect::<Vec<_>>())?;
            }
            Own::Blocked | Own::Never => judged(&config, &[])?,
            Own::Alias(_) | Own::Nothing => judged(&config, &[Subject::Name(&lower)])?,
        }
    }
    let Some(resolver) = config.dns.listen else {
        return print(
            "  not asked: there is no local resolver: set dns: 127.0.0.1:5353 to have one",
        );
    };
    match ask(resolver, name, *kind) {
        Ok(answer) => tell(&answer, resolver),
        Err(error) => print(&format!(
            "  not asked: no client answers on {resolver} ({error}); what is written above is from its file"
        )),
    }
}

/// What is to be looked at.
#[derive(Debug)]
struct Asked {
    name: Name,
    kind: RecordType,
    /// The address that the name stands for, where it is one.
    address: Option<IpAddr>,
}

impl Asked {
    fn read(args: &DnsArgs) -> Result<Self, String> {
        let kind = match &args.kind {
            Some(text) => Some(
                text.to_ascii_uppercase()
                    .parse::<RecordType>()
                    .map_err(|_| format!("`{text}` is not a type: write A, AAAA, TXT, …"))?,
            ),
            None => None,
        };
        if let Some(address) = literal(&args.name) {
            if let Some(other) = kind.filter(|kind| *kind != RecordType::PTR) {
                return Err(format!(
                    "{address} is an address, which has no {other} record: leave the type out, and its name (PTR) is asked for"
                ));
            }
            let mut name = Name::from(address);
            name.set_fqdn(true);
            return Ok(Self {
                name,
                kind: RecordType::PTR,
                address: Some(address),
            });
        }
        let mut name = Name::from_utf8(&args.name)
            .map_err(|error| format!("`{}` is not a name: {error}", args.name))?;
        name.set_fqdn(true);
        Ok(Self {
            name,
            kind: kind.unwrap_or(RecordType::A),
            address: None,
        })
    }
}

/// Reads an address as applications write it, an IPv6 one perhaps in brackets.
fn literal(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    bare.unwrap_or(text).parse().ok()
}

/// A name without its final dot.
fn written(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// Prints what the rules of each proxy do to what is known of a destination; to a name that has no address, where nothing is.
fn judged(config: &ClientConfig, subjects: &[Subject<'_>]) -> Result<(), Failure> {
    let listeners = config.listeners();
    for listener in &listeners {
        let of = match listeners.len() {
            1 => "rules".to_owned(),
            _ => format!("rules of the proxy on {}", listener.listen),
        };
        if subjects.is_empty() {
            print(&format!("  {of}: none decides, since it has no address"))?;
        }
        for subject in subjects {
            let told = explain(&listener.rules, *subject);
            match subject {
                Subject::Record(_, ip) => print(&format!("  {of}: {ip}: {told}"))?,
                Subject::Name(_) | Subject::Address(_) => print(&format!("  {of}: {told}"))?,
            }
        }
    }
    Ok(())
}

/// Prints an answer as dig would, in short.
fn tell(answer: &Message, resolver: SocketAddr) -> Result<(), Failure> {
    // As dig writes it: NXDOMAIN.
    let code = format!("{:?}", answer.metadata.response_code).to_uppercase();
    let nothing = if answer.answers.is_empty() {
        ", no record"
    } else {
        ""
    };
    print(&format!("  the client on {resolver} says: {code}{nothing}"))?;
    let why = (answer.edns.as_ref())
        .and_then(|edns| edns.option(EXTENDED_ERROR.into()))
        .and_then(|option| Vec::<u8>::try_from(option).ok());
    if let Some(text) = why.as_deref().and_then(|option| option.get(2..))
        && !text.is_empty()
    {
        print(&format!("  because of: {}", String::from_utf8_lossy(text)))?;
    }
    for record in &answer.answers {
        let (kind, data) = (record.record_type(), &record.data);
        print(&format!("  {} {} {kind} {data}", record.name, record.ttl))?;
    }
    Ok(())
}

/// Asks by UDP, and by TCP for what was cut off.
fn ask(resolver: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut query = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    query.set_edns(edns);
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let own = match resolver {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(own)?;
    socket.connect(resolver)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&bytes)?;
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer)?;
    let read = |bytes: &[u8]| Message::from_vec(bytes).map_err(io::Error::other);
    let answer = read(buffer.get(..length).unwrap_or_default())?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect_timeout(&resolver, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&bytes)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    read(&answer)
}

/// The client itself holds a question for 4.5 s.
const PATIENCE: Duration = Duration::from_secs(6);
/// The option of extended errors (RFC 8914, section 2).
const EXTENDED_ERROR: u16 = 15;
