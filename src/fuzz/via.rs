//! What proxies and the other end of a WebSocket send.

use zeroize::Zeroizing;

use crate::config::{Host, ProxyAuth};
use crate::io::via::socks::{Negotiation, SocksError};
use crate::io::websocket::Decoder;
use crate::io::websocket::frame::{FrameError, MAX_CONTROL, Role};

/// Reads `which end (1) ‖ what the other end of a WebSocket sends`, whole and byte by byte.
///
/// # Panics
///
/// The pieces change what comes out, or more comes out than went in.
pub fn websocket(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else {
        return;
    };
    let role = if first & 1 == 1 {
        Role::Server
    } else {
        Role::Client
    };
    let whole = decode(role, bytes, bytes.len().max(1));
    assert_eq!(whole, decode(role, bytes, 1));
    assert!(whole.0.len() <= bytes.len());
}

/// Returns the payload, and how the messages ended.
fn decode(role: Role, bytes: &[u8], size: usize) -> (Vec<u8>, Result<bool, FrameError>) {
    let mut decoder = Decoder::new(role);
    let mut payload = Vec::new();
    for piece in bytes.chunks(size) {
        let mut piece = piece.to_vec();
        match decoder.decode(&mut piece) {
            Ok(len) => payload.extend_from_slice(&piece[..len]),
            Err(error) => return (payload, Err(error)),
        }
        if let Some(ping) = decoder.take_ping() {
            assert!(ping.payload().len() <= MAX_CONTROL);
        }
    }
    let ended = decoder.failure().map_or(Ok(decoder.is_closed()), Err);
    (payload, ended)
}

/// Negotiates with a proxy that says `with a password? (1) ‖ anything`.
///
/// # Panics
///
/// The negotiation wants more than the longest answer, or goes on when it is over.
pub fn socks_via(data: &[u8]) {
    let Some((&first, mut bytes)) = data.split_first() else {
        return;
    };
    let login = (first & 1 == 1).then(|| ProxyAuth {
        user: "alice".to_owned(),
        password: Zeroizing::new("secret".to_owned()),
    });
    let host = Host::Name("vpn.example.com".to_owned());
    let mut negotiation = Negotiation::new(login.as_ref(), &host, 443);
    for _ in 0..=MAX_ANSWERS {
        let _ = negotiation.poll_transmit();
        let wanted = negotiation.wants();
        assert!(wanted <= usize::from(u8::MAX) + 2);
        let Some((answer, rest)) = bytes.split_at_checked(wanted) else {
            return;
        };
        if wanted == 0 {
            assert_eq!(negotiation.handle(&[]), Err(SocksError::NotSocks));
            return;
        }
        bytes = rest;
        if negotiation.handle(answer).is_err() {
            return;
        }
    }
    panic!("more than {MAX_ANSWERS} answers");
}

/// A choice, a password's acceptance, the answer and the rest of it.
const MAX_ANSWERS: usize = 4;
