//! What a proxy must take out of and put into a message's header (RFC 9110 section 7.6).

use hyper::Version;
use hyper::header::{
    CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS, TE, TRANSFER_ENCODING,
    UPGRADE, VIA,
};

/// Removes the fields that are for this connection only, and all `Proxy-*` fields.
pub(super) fn strip(headers: &mut HeaderMap) {
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for token in tokens(value) {
            // Fields without which the message would mean something else stay.
            if let Ok(name) = HeaderName::from_bytes(token)
                && !PROTECTED.contains(&name.as_str())
            {
                named.push(name);
            }
        }
    }
    named.extend(
        headers
            .keys()
            .filter(|name| name.as_str().starts_with("proxy-"))
            .cloned(),
    );
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE] {
        headers.remove(name);
    }
}

/// Returns the protocol that a message wants to switch to, if it does.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    headers.get(UPGRADE).filter(|_| wanted).cloned()
}

/// Puts the wish to switch, or its acceptance, back in.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Says that the message came through here (RFC 9110 section 7.6.3).
pub(super) fn add_via(headers: &mut HeaderMap, received: Version) {
    let via = match received {
        Version::HTTP_10 => "1.0 adit",
        _ => "1.1 adit",
    };
    headers.append(VIA, HeaderValue::from_static(via));
}

/// Makes `Host` what the request's target says (RFC 9112 section 3.2.2), as the first
/// field.
pub(super) fn set_host(headers: &mut HeaderMap, host: HeaderValue) {
    headers.insert(HOST, host);
}

/// What `Max-Forwards` says about an OPTIONS or TRACE request (RFC 9110 section 7.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwards {
    /// Pass it on; the field is absent or has been counted down.
    On,
    /// The proxy is the last recipient.
    Here,
    /// The field is not a number.
    Malformed,
}

/// Reads `Max-Forwards` and counts it down.
pub(super) fn count_forwards(headers: &mut HeaderMap) -> Forwards {
    let Some(value) = headers.get(MAX_FORWARDS) else {
        return Forwards::On;
    };
    let digits = value.as_bytes().iter().all(u8::is_ascii_digit);
    let number = value
        .to_str()
        .ok()
        .and_then(|text| text.parse::<u64>().ok());
    match number.filter(|_| digits) {
        None => Forwards::Malformed,
        Some(0) => Forwards::Here,
        Some(number) => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(number - 1));
            Forwards::On
        }
    }
}

/// Splits a comma-separated list; empty elements are left out.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Naming these in `Connection` would change a message's length, target or rights, which
/// is an attack and not a wish (RFC 9110 section 7.6.1 forbids it).
const PROTECTED: [&str; 7] = [
    "authorization",
    "cache-control",
    "content-length",
    "cookie",
    "host",
    "max-forwards",
    "via",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn fields_of_the_connection_and_of_the_proxy_are_taken_out() {
        let mut headers = map(&[
            ("Connection", "keep-alive, X-Mine"),
            ("Connection", " ,x-also ,"),
            ("X-Mine", "1"),
            ("X-Also", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic eA=="),
            ("Proxy-Anything", "x"),
            ("TE", "trailers"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("Accept", "*/*"),
            ("Trailer", "X-Sum"),
        ]);
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "trailer"]);
    }

    #[test]
    fn connection_cannot_take_out_what_gives_a_message_its_meaning() {
        let mut headers = map(&[
            ("Connection", "Host, Content-Length, Cookie, Authorization"),
            ("Host", "a"),
            ("Content-Length", "3"),
            ("Cookie", "c"),
            ("Authorization", "x"),
        ]);
        strip(&mut headers);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn upgrade_counts_only_when_connection_names_it() {
        let both = map(&[
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
        ]);
        assert_eq!(upgrade(&both).unwrap(), "websocket");
        assert_eq!(upgrade(&map(&[("Upgrade", "websocket")])), None);
        assert_eq!(upgrade(&map(&[("Connection", "upgrade")])), None);
    }

    #[test]
    fn max_forwards_is_counted_down_to_here() {
        let mut headers = map(&[("Max-Forwards", "2")]);
        assert_eq!(count_forwards(&mut headers), Forwards::On);
        assert_eq!(count_forwards(&mut headers), Forwards::On);
        assert_eq!(headers.get(MAX_FORWARDS).unwrap(), "0");
        assert_eq!(count_forwards(&mut headers), Forwards::Here);
        assert_eq!(count_forwards(&mut HeaderMap::new()), Forwards::On);
        for bad in ["", "-1", "+1", "1x", "99999999999999999999999"] {
            let mut headers = map(&[("Max-Forwards", bad)]);
            assert_eq!(count_forwards(&mut headers), Forwards::Malformed, "{bad:?}");
        }
    }
}
