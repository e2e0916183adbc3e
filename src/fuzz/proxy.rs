//! What applications and their resolvers send.

use std::net::{Ipv4Addr, SocketAddr};

use crate::client::proxy::Credentials;
use crate::client::proxy::socks::{Negotiation, ReplyCode};
use crate::client::proxy::udp_header as header;
use crate::dns;

/// Negotiates `with a password? (1) ‖ what the application sends`, whole and byte by byte.
///
/// # Panics
///
/// The pieces change the outcome.
pub fn socks(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else {
        return;
    };
    let credentials = (first & 1 == 1)
        .then(|| Credentials::new("alice", "secret").expect("a user and a password"));
    let whole = negotiate(credentials.clone(), bytes, bytes.len().max(1));
    let pieces = negotiate(credentials, bytes, 1);
    assert_eq!(whole, pieces);
}

/// Returns the answers, the outcome in words, and the bytes left over.
fn negotiate(
    credentials: Option<Credentials>,
    bytes: &[u8],
    size: usize,
) -> (Vec<u8>, String, Vec<u8>) {
    let mut negotiation = Negotiation::new(credentials);
    let mut sent = Vec::new();
    let mut outcome = String::from("unfinished");
    let mut taken = 0;
    for piece in bytes.chunks(size) {
        taken += piece.len();
        let result = negotiation.handle_bytes(piece);
        while let Some(answer) = negotiation.poll_transmit() {
            sent.extend(answer);
        }
        match result {
            Ok(None) => continue,
            Ok(Some(request)) => {
                let bound = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
                sent.extend(request.reply(ReplyCode::Succeeded, bound));
                sent.extend(request.refusal(ReplyCode::ConnectionRefused));
                outcome = format!("{request:?}");
            }
            Err(error) => return (sent, error.to_string(), Vec::new()),
        }
        break;
    }
    let mut left = negotiation.into_early();
    left.extend(bytes.iter().skip(taken));
    (sent, outcome, left)
}

/// Reads the header of a datagram to the UDP relay.
///
/// # Panics
///
/// The payload is not the end of the datagram.
pub fn udp_header(datagram: &[u8]) {
    if let Ok((_, _, payload)) = header::decode(datagram) {
        assert!(datagram.ends_with(payload));
        assert!(payload.len() + header::MIN_LEN <= datagram.len());
    }
}

/// Reads a query as the inner resolver does, without asking anybody.
///
/// # Panics
///
/// A refusal cannot be written within what the client takes.
pub fn dns_query(message: &[u8]) {
    if let Some(refusal) = dns::refusal(message) {
        let bytes = refusal.expect("a refusal can be written");
        assert!(bytes.len() <= dns::UDP_PAYLOAD.into());
    }
}
