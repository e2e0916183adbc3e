//! A query as it came off the wire, and what is said of it before anybody looks a name up.
//!
//! A response is met with silence, since two servers would talk to each other for ever; what is no query of ours gets its
//! code; the rest is one question, with what the asker can take (RFC 6891).

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

/// What a message asks of us.
#[derive(Debug)]
pub(crate) enum Reading {
    /// A lookup.
    Lookup(Asked),
    /// An answer that needs none.
    Refuse(Answer),
    /// No answer.
    Silence,
}

/// A query that is to be answered by a lookup.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The message, whose questions were taken out.
    pub(crate) header: Message,
    /// The one question, in the case in which it was written.
    pub(crate) query: Query,
    /// Whether an answer has an OPT record (RFC 6891, section 6.1.1).
    pub(crate) edns: bool,
    /// Bytes that an answer in a datagram may have.
    pub(crate) udp_limit: usize,
}

impl Reading {
    /// Reads one message.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let Ok(mut message) = Message::from_vec(bytes) else {
            return malformed(bytes);
        };
        // A response is never answered: two servers would talk to each other for ever.
        if message.metadata.message_type == MessageType::Response {
            return Self::Silence;
        }
        let offered = message
            .edns
            .as_ref()
            .map(|edns| usize::from(edns.max_payload()));
        let edns = offered.is_some();
        let udp_limit = offered
            .unwrap_or(0)
            .clamp(PLAIN_UDP, usize::from(UDP_PAYLOAD));
        let version = message.edns.as_ref().map_or(0, Edns::version);
        let queries = std::mem::take(&mut message.queries);
        if message.metadata.op_code != OpCode::Query {
            let response = response(&message, None, edns, ResponseCode::NotImp);
            return Self::Refuse(Answer {
                response,
                udp_limit,
            });
        }
        let Ok([query]) = <[Query; 1]>::try_from(queries) else {
            let response = response(&message, None, edns, ResponseCode::FormErr);
            return Self::Refuse(Answer {
                response,
                udp_limit,
            });
        };
        let wrong = if version > 0 {
            Some(ResponseCode::BADVERS)
        } else if query.query_class() != DNSClass::IN {
            Some(ResponseCode::Refused)
        } else {
            // Whole zones are not what a resolver hands out.
            matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
                .then_some(ResponseCode::Refused)
        };
        let asked = Asked {
            header: message,
            query,
            edns,
            udp_limit,
        };
        match wrong {
            Some(code) => Self::Refuse(Answer {
                response: asked.response(code),
                udp_limit,
            }),
            None => Self::Lookup(asked),
        }
    }
}

impl Asked {
    /// Begins the response.
    pub(crate) fn response(&self, code: ResponseCode) -> Message {
        response(&self.header, Some(&self.query), self.edns, code)
    }
}

/// A response, and how long it may be in a datagram.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Message,
    pub(crate) udp_limit: usize,
}

impl Answer {
    /// Writes the response in at most `limit` bytes, truncated where it is longer.
    pub(crate) fn encode(&self, limit: usize) -> Option<Vec<u8>> {
        match self.response.to_vec() {
            Ok(bytes) if bytes.len() <= limit => Some(bytes),
            // Too long, or longer than any message can be.
            Ok(_) | Err(_) => self
                .response
                .truncate()
                .to_vec()
                .ok()
                .filter(|bytes| bytes.len() <= limit),
        }
    }
}

/// Begins a response to `header`.
fn response(header: &Message, query: Option<&Query>, edns: bool, code: ResponseCode) -> Message {
    let mut response = Message::response(header.metadata.id, header.metadata.op_code);
    response.metadata.recursion_desired = header.metadata.recursion_desired;
    response.metadata.checking_disabled = header.metadata.checking_disabled;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries.extend(query.cloned());
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD)
            .set_version(0)
            .set_rcode_high(code.high())
            .set_dnssec_ok(dnssec_ok(header));
        response.set_edns(edns);
    }
    response
}

/// FORMERR, where there is at least the header of a query to answer; else silence.
fn malformed(bytes: &[u8]) -> Reading {
    let Some([id_high, id_low, flags, ..]) = bytes.first_chunk::<12>() else {
        return Reading::Silence;
    };
    let is_response = flags & 0x80 != 0;
    if is_response {
        return Reading::Silence;
    }
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let mut response = Message::response(u16::from_be_bytes([*id_high, *id_low]), op_code);
    response.metadata.recursion_desired = flags & 0x01 != 0;
    response.metadata.response_code = ResponseCode::FormErr;
    Reading::Refuse(Answer {
        response,
        udp_limit: PLAIN_UDP,
    })
}

/// What a datagram is refused with, if it is refused: `None` inside where that cannot be written.
pub(crate) fn refusal(message: &[u8]) -> Option<Option<Vec<u8>>> {
    match Reading::of(message) {
        Reading::Refuse(answer) => Some(answer.encode(answer.udp_limit)),
        Reading::Lookup(_) | Reading::Silence => None,
    }
}

/// Whether the asker wants signatures (RFC 3225).
fn dnssec_ok(header: &Message) -> bool {
    (header.edns.as_ref()).is_some_and(|edns| edns.flags().dnssec_ok)
}

/// Bytes of an answer in a datagram to a client without EDNS (RFC 1035, section 4.2.1).
pub(crate) const PLAIN_UDP: usize = 512;
/// Bytes of a datagram that pass every path unfragmented: 1280 less the headers of IPv6 and UDP.
pub(crate) const UDP_PAYLOAD: u16 = 1232;
