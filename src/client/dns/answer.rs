//! What is said to those who ask: an upstream's message as it [came](kept), or one made here.

mod kept;
mod lifetime;
#[cfg(test)]
pub(super) mod tests;
mod walk;

use std::sync::Arc;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, Record, RecordType};

pub(crate) use self::kept::{BadAnswer, Kept};
use crate::dns::Asked;

/// What is asked, and what an answer is kept under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name, in lower case, with its final dot.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// Whether signatures are wanted (DO, RFC 3225).
    pub dnssec_ok: bool,
    /// Whether the upstream shall not validate (CD, RFC 4035, section 3.2.2).
    pub checking_disabled: bool,
}

/// An answer to a question, whoever asks it.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An upstream's, and for how many seconds it has been kept.
    Kept(Arc<Kept>, u32),
    /// One made here.
    Made(Box<Made>),
}

/// An answer that is made here.
#[derive(Clone, Debug)]
pub struct Made {
    /// The response code.
    pub code: ResponseCode,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// Why, for those who speak EDNS.
    pub why: Option<Why>,
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The code of its section 4.
    pub code: u16,
    /// More in words.
    pub text: String,
}

impl Question {
    /// The question of a query as it came.
    pub(crate) fn of(asked: &Asked) -> Self {
        let dnssec_ok = (asked.header.edns.as_ref()).is_some_and(|edns| edns.flags().dnssec_ok);
        Self {
            dnssec_ok,
            checking_disabled: asked.header.metadata.checking_disabled,
            ..Self::new(asked.query.name(), asked.query.query_type())
        }
    }

    /// A question without any bits.
    pub fn new(name: &Name, kind: RecordType) -> Self {
        let mut name = name.to_lowercase();
        name.set_fqdn(true);
        Self {
            name,
            kind,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }
}

impl Reply {
    /// Writes the answer for `asked`, in at most `limit` bytes, truncated where it is longer.
    pub(crate) fn encode(&self, asked: &Asked, limit: usize) -> Option<Vec<u8>> {
        match self {
            Self::Kept(kept, age) => kept.encode(asked, *age, limit),
            Self::Made(made) => made.encode(asked, limit),
        }
    }

    /// The response code.
    pub fn code(&self) -> ResponseCode {
        match self {
            Self::Kept(kept, _) => kept.code,
            Self::Made(made) => made.code,
        }
    }

    /// Whether a list is why there is no other answer.
    pub fn is_blocked(&self) -> bool {
        match self {
            Self::Kept(..) => false,
            Self::Made(made) => made.why.as_ref().is_some_and(|why| why.code == BLOCKED),
        }
    }

    /// The records of the answer section.
    pub fn answers(&self) -> Vec<Record> {
        match self {
            Self::Kept(kept, age) => {
                let mut answers = kept
                    .message()
                    .map_or_else(Vec::new, |message| message.answers);
                for record in &mut answers {
                    record.ttl = record.ttl.saturating_sub(*age);
                }
                answers
            }
            Self::Made(made) => made.answers.clone(),
        }
    }

    /// The records of the authority section.
    pub fn authorities(&self) -> Vec<Record> {
        match self {
            Self::Kept(kept, _) => {
                (kept.message()).map_or_else(Vec::new, |message| message.authorities)
            }
            Self::Made(made) => made.authorities.clone(),
        }
    }
}

impl Made {
    /// An answer without records.
    pub fn empty(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            authorities: Vec::new(),
            why: None,
        }
    }

    /// Says why, for those who speak EDNS.
    #[must_use]
    pub fn because(self, code: u16, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            why: Some(Why { code, text }),
            ..self
        }
    }

    fn encode(&self, asked: &Asked, limit: usize) -> Option<Vec<u8>> {
        let mut response = asked.response(self.code);
        response.add_answers(self.answers.iter().cloned());
        response.add_authorities(self.authorities.iter().cloned());
        if let (Some(edns), Some(why)) = (&mut response.edns, &self.why) {
            let mut option = why.code.to_be_bytes().to_vec();
            let end = why.text.floor_char_boundary(MAX_WHY);
            option.extend(why.text.as_bytes().get(..end).unwrap_or_default());
            edns.options_mut()
                .insert(EdnsOption::Unknown(EXTENDED_ERROR, option));
        }
        crate::dns::Answer {
            response,
            udp_limit: limit,
        }
        .encode(limit)
    }
}

/// The question of a query, as an upstream is asked it.
pub(super) fn query(question: &Question) -> Query {
    Query::query(question.name.clone(), question.kind)
}

/// The extended error of a name on a list (RFC 8914, section 4.16).
pub(super) const BLOCKED: u16 = 15;
/// The option of extended errors (RFC 8914, section 2).
const EXTENDED_ERROR: u16 = 15;
/// Bytes of words in it: a line.
const MAX_WHY: usize = 120;
