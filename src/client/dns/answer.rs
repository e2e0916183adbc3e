//! What is said to those who ask: an upstream's message as it came, or one made here.
//!
//! An upstream's message is kept as bytes. What belongs to one asker alone is written over a copy of it: the message's
//! number, the bits he set, the question as he wrote it (owners of records that point there follow), and the times to live,
//! less what has passed. The OPT record is between neighbours (RFC 6891, section 6.2.6): the upstream's is taken off, and
//! one of our own put on for those who speak EDNS. So records of any type, known here or not, come out as they went in.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, Record, RecordType};
use thiserror::Error;

use crate::dns::{Asked, UDP_PAYLOAD};

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

/// An upstream's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The message without its OPT record.
    bytes: Vec<u8>,
    /// Where the question's name lies, with the final zero.
    name: Range<usize>,
    /// Where the times to live are.
    ttls: Vec<usize>,
    code: ResponseCode,
    lifetime: Duration,
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

impl Kept {
    /// Reads what an upstream said to `question`.
    ///
    /// # Errors
    /// It is broken, or answers something else.
    pub fn read(mut bytes: Vec<u8>, question: &Question) -> Result<Self, BadAnswer> {
        let mut walk = Walk::of(&bytes)?;
        let counts = walk.counts;
        let name = walk.question(question)?;
        let mut found = Sections::default();
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                found.note(section, &walk.record()?);
            }
        }
        let opt = found.opt.clone();
        let high = opt.as_ref().map_or(0, |opt| opt.high);
        if let Some(opt) = opt {
            // In front of other records it cannot be cut out, as they may be pointed into: all of the section goes.
            let (cut, left) = if opt.end == walk.at {
                (opt.start, counts[2].saturating_sub(1))
            } else {
                (found.additionals.unwrap_or(opt.start), 0)
            };
            bytes.truncate(cut);
            found.ttls.retain(|ttl| *ttl < cut);
            if let Some(count) = bytes.get_mut(10..12) {
                count.copy_from_slice(&left.to_be_bytes());
            }
        } else {
            bytes.truncate(walk.at);
        }
        // The mixture of capitals in which it was asked is nobody's but ours.
        if let Some(room) = bytes.get_mut(name.clone()) {
            write_name(room, &question.name);
        }
        let code = ResponseCode::from(high, bytes.get(3).map_or(0, |byte| byte & 0x0f));
        Ok(Self {
            lifetime: found.lifetime(code, question.kind),
            name,
            ttls: found.ttls,
            code,
            bytes,
        })
    }

    /// How long it may be kept.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The response code.
    pub fn code(&self) -> ResponseCode {
        self.code
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity() + self.ttls.capacity() * size_of::<usize>()
    }

    /// The message, for those who need its records; times to live as they were at first.
    pub fn message(&self) -> Option<Message> {
        Message::from_vec(&self.bytes).ok()
    }

    /// Writes it for `asked`, in at most `limit` bytes, truncated where it is longer.
    fn encode(&self, asked: &Asked, age: u32, limit: usize) -> Option<Vec<u8>> {
        let opt = if asked.edns { OPT_LEN } else { 0 };
        let whole = self.bytes.len() + opt <= limit;
        let end = if whole {
            self.bytes.len()
        } else {
            // Its type and class follow the name.
            self.name.end + 4
        };
        let mut out = Vec::with_capacity(end + opt);
        out.extend_from_slice(self.bytes.get(..end)?);
        self.write_header(&mut out, asked, whole);
        write_name(out.get_mut(self.name.clone())?, asked.query.name());
        if whole {
            for ttl in &self.ttls {
                let field: &mut [u8; 4] = out.get_mut(*ttl..*ttl + 4)?.try_into().ok()?;
                *field = u32::from_be_bytes(*field).saturating_sub(age).to_be_bytes();
            }
        }
        if asked.edns {
            write_opt(&mut out, asked, self.code);
        }
        Some(out)
    }

    fn write_header(&self, out: &mut [u8], asked: &Asked, whole: bool) {
        let metadata = &asked.header.metadata;
        let Some([high, low, flags, more, counts @ ..]) = out.first_chunk_mut::<12>() else {
            return;
        };
        [*high, *low] = metadata.id.to_be_bytes();
        let truncated = if whole { 0 } else { TRUNCATED };
        *flags = RESPONSE | truncated | u8::from(metadata.recursion_desired);
        // Those who ask about it by either bit are told whether it is authentic (RFC 6840, section 5.7).
        let told = metadata.authentic_data
            || (asked.header.edns.as_ref()).is_some_and(|edns| edns.flags().dnssec_ok);
        let authentic = if told { *more & AUTHENTIC } else { 0 };
        let unchecked = if metadata.checking_disabled {
            UNCHECKED
        } else {
            0
        };
        *more = RECURSION_AVAILABLE | authentic | unchecked | self.code.low();
        let [_, _, records @ .., additional_high, additional_low] = counts;
        if !whole {
            records.fill(0);
            [*additional_high, *additional_low] = [0, 0];
        }
        if asked.edns {
            let count = u16::from_be_bytes([*additional_high, *additional_low]).saturating_add(1);
            [*additional_high, *additional_low] = count.to_be_bytes();
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
            option.extend(why.text.bytes().take(MAX_WHY));
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

/// Why an upstream's message is no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadAnswer {
    /// It ends within a field, or a name makes no sense.
    #[error("it is broken")]
    Broken,
    /// It does not say what it answers, or that was not asked.
    #[error("it answers another question")]
    OtherQuestion,
}

/// What the sections of a message have.
#[derive(Debug, Default)]
struct Sections {
    ttls: Vec<usize>,
    /// The least time to live in the answer section.
    least: Option<u32>,
    /// How long the name may be said not to have what was asked (RFC 2308, section 5).
    negative: Option<u32>,
    types: Vec<RecordType>,
    opt: Option<Opt>,
    additionals: Option<usize>,
}

#[derive(Clone, Debug)]
struct Opt {
    start: usize,
    end: usize,
    /// The upper bits of the response code.
    high: u8,
}

impl Sections {
    fn note(&mut self, section: usize, record: &Found) {
        if section == ADDITIONALS {
            self.additionals.get_or_insert(record.start);
        }
        if record.kind == RecordType::OPT {
            self.opt = Some(Opt {
                start: record.start,
                end: record.end,
                high: (record.ttl >> 24) as u8,
            });
            return;
        }
        self.ttls.push(record.ttl_at);
        if section == ANSWERS {
            self.types.push(record.kind);
            self.least = Some(self.least.map_or(record.ttl, |least| least.min(record.ttl)));
        } else if let Some(minimum) = record.minimum {
            self.negative.get_or_insert(record.ttl.min(minimum));
        }
    }

    /// How long the message may be kept; not at all where nothing says.
    fn lifetime(&self, code: ResponseCode, kind: RecordType) -> Duration {
        let there = kind == RecordType::ANY || self.types.contains(&kind);
        let positive = code == ResponseCode::NoError && there;
        if positive {
            self.least
                .map_or(Duration::ZERO, seconds)
                .min(POSITIVE_LIMIT)
        } else if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            let negative = self.negative.map_or(Duration::ZERO, seconds);
            negative
                .min(NEGATIVE_LIMIT)
                .min(self.least.map_or(Duration::MAX, seconds))
        } else {
            FAILURE_TIME
        }
    }
}

fn seconds(ttl: u32) -> Duration {
    // One with the top bit set is none (RFC 2181, section 8).
    Duration::from_secs(if ttl > i32::MAX as u32 { 0 } else { ttl.into() })
}

/// One record.
#[derive(Debug)]
struct Found {
    start: usize,
    end: usize,
    kind: RecordType,
    ttl: u32,
    ttl_at: usize,
    /// The last field of an SOA record.
    minimum: Option<u32>,
}

/// Goes over a message from its start to its end.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of answers, authorities and additionals.
    counts: [u16; 3],
}

impl<'a> Walk<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, BadAnswer> {
        let mut walk = Self {
            bytes,
            at: 4,
            counts: [0; 3],
        };
        let questions = walk.u16()?;
        for section in 0..3 {
            let count = walk.u16()?;
            if let Some(slot) = walk.counts.get_mut(section) {
                *slot = count;
            }
        }
        if questions == 1 {
            Ok(walk)
        } else {
            Err(BadAnswer::OtherQuestion)
        }
    }

    /// Checks the question, and says where its name is.
    fn question(&mut self, asked: &Question) -> Result<Range<usize>, BadAnswer> {
        let start = self.at;
        for label in asked.name.iter() {
            let len = usize::from(self.u8()?);
            let found = self.take(len)?;
            if len > MAX_LABEL || !found.eq_ignore_ascii_case(label) {
                return Err(BadAnswer::OtherQuestion);
            }
        }
        if self.u8()? != 0 {
            return Err(BadAnswer::OtherQuestion);
        }
        let name = start..self.at;
        let (kind, class) = (self.u16()?, self.u16()?);
        if kind == u16::from(asked.kind) && class == CLASS_IN {
            Ok(name)
        } else {
            Err(BadAnswer::OtherQuestion)
        }
    }

    fn record(&mut self) -> Result<Found, BadAnswer> {
        let start = self.at;
        self.skip_name()?;
        let kind = RecordType::from(self.u16()?);
        let _class = self.u16()?;
        let ttl_at = self.at;
        let ttl = u32::from_be_bytes(*self.array()?);
        let len = usize::from(self.u16()?);
        let data = self.take(len)?;
        let minimum = match (kind, data.last_chunk()) {
            (RecordType::SOA, Some(last)) => Some(u32::from_be_bytes(*last)),
            _ => None,
        };
        Ok(Found {
            start,
            end: self.at,
            kind,
            ttl,
            ttl_at,
            minimum,
        })
    }

    fn skip_name(&mut self) -> Result<(), BadAnswer> {
        loop {
            let len = self.u8()?;
            match len >> 6 {
                0 if len == 0 => return Ok(()),
                0 => drop(self.take(len.into())?),
                // It leads elsewhere, and ends here.
                3 => return self.u8().map(drop),
                _ => return Err(BadAnswer::Broken),
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BadAnswer> {
        let end = self.at.saturating_add(len);
        let taken = self.bytes.get(self.at..end).ok_or(BadAnswer::Broken)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], BadAnswer> {
        self.take(N)?.try_into().map_err(|_| BadAnswer::Broken)
    }

    fn u8(&mut self) -> Result<u8, BadAnswer> {
        self.array::<1>().map(|byte| byte[0])
    }

    fn u16(&mut self) -> Result<u16, BadAnswer> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }
}

/// Writes a name over one that differs in its capitals at most.
fn write_name(room: &mut [u8], name: &Name) {
    let mut room = room.iter_mut();
    for label in name.iter() {
        room.next();
        for (to, from) in room.by_ref().zip(label).take(label.len()) {
            *to = *from;
        }
    }
}

/// Appends our own OPT record.
fn write_opt(out: &mut Vec<u8>, asked: &Asked, code: ResponseCode) {
    let wants = (asked.header.edns.as_ref()).is_some_and(|edns| edns.flags().dnssec_ok);
    out.push(0);
    out.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
    out.extend_from_slice(&UDP_PAYLOAD.to_be_bytes());
    out.extend_from_slice(&[code.high(), 0, if wants { 0x80 } else { 0 }, 0]);
    out.extend_from_slice(&[0, 0]);
}

/// The question of a query, as an upstream is asked it.
pub(super) fn query(question: &Question) -> Query {
    Query::query(question.name.clone(), question.kind)
}

const ANSWERS: usize = 0;
const ADDITIONALS: usize = 2;
const MAX_LABEL: usize = 63;
const CLASS_IN: u16 = 1;
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const RECURSION_AVAILABLE: u8 = 0x80;
const AUTHENTIC: u8 = 0x20;
const UNCHECKED: u8 = 0x10;
/// Bytes of an OPT record without options.
const OPT_LEN: usize = 11;
/// The extended error of a name on a list (RFC 8914, section 4.16).
pub(super) const BLOCKED: u16 = 15;
/// The option of extended errors (RFC 8914, section 2).
const EXTENDED_ERROR: u16 = 15;
/// Bytes of words in it: a line.
const MAX_WHY: usize = 120;

/// No answer is kept longer: names of services move.
const POSITIVE_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// RFC 2308, section 5, advises hours at most; a name that was just made should not take so long to be seen.
const NEGATIVE_LIMIT: Duration = Duration::from_secs(300);
/// What an upstream could not say is not asked again by everybody at once (RFC 9520, section 3.2).
const FAILURE_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Edns, MessageType, OpCode};
    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};
    use proptest::prelude::*;

    use super::*;
    use crate::dns::Reading;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, 7))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let data = SOA::new(name("ns.test."), name("admin.test."), 7, 1, 1, 1, minimum);
        Record::from_rdata(name("test."), ttl, RData::SOA(data))
    }

    fn message(question: &Question) -> Message {
        let mut message = Message::response(0x7777, OpCode::Query);
        message.metadata.authentic_data = true;
        message.metadata.authoritative = true;
        message.add_query(query(question));
        message
    }

    fn read(message: &Message, question: &Question) -> Kept {
        Kept::read(message.to_vec().unwrap(), question).unwrap()
    }

    /// An answer with one address.
    pub(in super::super) fn answer_for(question: &Question, ttl: u32) -> Kept {
        let mut message = message(question);
        message.add_answer(a(&question.name.to_ascii(), ttl));
        read(&message, question)
    }

    fn question(text: &str) -> Question {
        Question::new(&name(text), RecordType::A)
    }

    /// A query as it comes, with EDNS of a size where there is one.
    fn asked(text: &str, edns: Option<u16>, change: impl Fn(&mut Message)) -> Asked {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), RecordType::A));
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size).set_version(0);
            message.set_edns(edns);
        }
        change(&mut message);
        match Reading::of(&message.to_vec().unwrap()) {
            Reading::Lookup(asked) => asked,
            other @ (Reading::Refuse(_) | Reading::Silence) => panic!("{other:?}"),
        }
    }

    fn encoded(kept: &Kept, asked: &Asked, age: u32) -> Message {
        let bytes = kept.encode(asked, age, asked.udp_limit).unwrap();
        assert!(bytes.len() <= asked.udp_limit);
        Message::from_vec(&bytes).unwrap()
    }

    #[test]
    fn answer_has_the_number_bits_and_capitals_of_whoever_asks() {
        let kept = answer_for(&question("www.example.test."), 300);
        let asked = asked("wWw.eXample.TEST.", None, |_| {});
        let answer = encoded(&kept, &asked, 100);
        assert_eq!(answer.metadata.id, 0x1234);
        assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
        assert!(!answer.metadata.authoritative && !answer.metadata.truncation);
        assert!(!answer.metadata.authentic_data, "nobody asked about it");
        assert!(answer.edns.is_none());
        assert!(answer.queries[0].name().eq_case(&name("wWw.eXample.TEST.")));
        assert!(answer.answers[0].name.eq_case(&name("wWw.eXample.TEST.")));
        assert_eq!(answer.answers[0].ttl, 200);
        assert_eq!(encoded(&kept, &asked, 500).answers[0].ttl, 0);
    }

    #[test]
    fn bits_about_dnssec_are_passed_on() {
        let kept = answer_for(&question("a.test."), 300);
        let told = |change: &dyn Fn(&mut Message), edns| {
            let metadata = encoded(&kept, &asked("a.test.", edns, change), 0).metadata;
            (metadata.authentic_data, metadata.checking_disabled)
        };
        assert_eq!(told(&|_| {}, Some(1232)), (false, false));
        assert_eq!(
            told(&|query| query.metadata.authentic_data = true, None),
            (true, false)
        );
        assert_eq!(
            told(&|query| query.metadata.checking_disabled = true, None),
            (false, true)
        );
        let wants = |query: &mut Message| {
            if let Some(edns) = &mut query.edns {
                edns.set_dnssec_ok(true);
            }
        };
        assert_eq!(told(&wants, Some(1232)), (true, false));
        let signed = asked("a.test.", Some(1232), wants);
        assert!(Question::of(&signed).dnssec_ok);
        let edns = encoded(&kept, &signed, 0).edns.unwrap();
        assert!(edns.flags().dnssec_ok);
    }

    #[test]
    fn opt_record_is_the_upstreams_to_us_and_ours_to_those_who_speak_edns() {
        let asked_for = question("a.test.");
        let mut message = message(&asked_for);
        message.add_answer(a("a.test.", 60));
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_version(0);
        message.set_edns(edns);
        let kept = read(&message, &asked_for);
        assert!(kept.message().unwrap().edns.is_none());
        assert!(
            encoded(&kept, &asked("a.test.", None, |_| {}), 0)
                .edns
                .is_none()
        );
        let edns = encoded(&kept, &asked("a.test.", Some(512), |_| {}), 0).edns;
        assert_eq!(edns.map(|edns| edns.max_payload()), Some(UDP_PAYLOAD));
    }

    #[test]
    fn opt_record_before_others_takes_its_section_with_it() {
        let asked_for = question("a.test.");
        let mut message = message(&asked_for);
        message.add_answer(a("a.test.", 60));
        let mut bytes = message.to_vec().unwrap();
        // OPT, then an address that points to the question.
        bytes.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 8]);
        bytes[11] = 2;
        let kept = Kept::read(bytes, &asked_for).unwrap();
        let left = kept.message().unwrap();
        assert_eq!((left.answers.len(), left.additionals.len()), (1, 0));
        // The upper bits of the code stand in the OPT record.
        assert_eq!(u16::from(kept.code()), 16);
    }

    #[test]
    fn answer_that_is_too_long_is_cut_to_its_question() {
        let asked_for = question("many.test.");
        let mut message = message(&asked_for);
        for _ in 0..60 {
            message.add_answer(a("many.test.", 60));
        }
        let kept = read(&message, &asked_for);
        let short = encoded(&kept, &asked("MANY.test.", None, |_| {}), 0);
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert!(short.queries[0].name().eq_case(&name("MANY.test.")));
        let short = encoded(&kept, &asked("many.test.", Some(600), |_| {}), 0);
        assert!(short.metadata.truncation && short.edns.is_some());
        let whole = encoded(&kept, &asked("many.test.", Some(1232), |_| {}), 0);
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 60);
    }

    #[test]
    fn answers_are_kept_for_as_long_as_their_records_say() {
        let asked_for = question("a.test.");
        let alias = || {
            let data = RData::CNAME(CNAME(name("b.test.")));
            Record::from_rdata(name("a.test."), 50, data)
        };
        type Change = Box<dyn Fn(&mut Message)>;
        let code = |code: ResponseCode| -> Change {
            Box::new(move |message| message.metadata.response_code = code)
        };
        let cases: Vec<(&str, Vec<Change>, u64)> = vec![
            (
                "one",
                vec![Box::new(|m| {
                    m.add_answer(a("a.test.", 60));
                })],
                60,
            ),
            (
                "the least of two",
                vec![Box::new(|m| {
                    m.add_answer(a("a.test.", 60)).add_answer(a("a.test.", 40));
                })],
                40,
            ),
            (
                "an alias that ends first",
                vec![Box::new(move |m| {
                    m.add_answer(alias()).add_answer(a("b.test.", 60));
                })],
                50,
            ),
            (
                "a day at most",
                vec![Box::new(|m| {
                    m.add_answer(a("a.test.", 1 << 20));
                })],
                86_400,
            ),
            (
                "no time to live",
                vec![Box::new(|m| {
                    m.add_answer(a("a.test.", 1 << 31));
                })],
                0,
            ),
            (
                "nothing of the type",
                vec![Box::new(|m| {
                    m.add_authority(soa(90, 30));
                })],
                30,
            ),
            (
                "nothing, by the SOA's own time",
                vec![Box::new(|m| {
                    m.add_authority(soa(20, 30));
                })],
                20,
            ),
            (
                "an alias to nothing",
                vec![Box::new(move |m| {
                    m.add_answer(alias()).add_authority(soa(90, 70));
                })],
                50,
            ),
            (
                "no such name",
                vec![
                    code(ResponseCode::NXDomain),
                    Box::new(|m| {
                        m.add_authority(soa(9000, 9000));
                    }),
                ],
                300,
            ),
            (
                "no such name, without SOA",
                vec![code(ResponseCode::NXDomain)],
                0,
            ),
            (
                "the upstream's own fault",
                vec![code(ResponseCode::ServFail)],
                1,
            ),
        ];
        for (case, changes, seconds) in cases {
            let mut message = message(&asked_for);
            for change in changes {
                change(&mut message);
            }
            let lifetime = read(&message, &asked_for).lifetime();
            assert_eq!(lifetime, Duration::from_secs(seconds), "{case}");
        }
    }

    #[test]
    fn answers_to_other_questions_are_refused() {
        let mut message = message(&question("a.test."));
        message.add_answer(a("a.test.", 60));
        let bytes = message.to_vec().unwrap();
        for other in ["b.test.", "a.a.test.", "test.", "."] {
            let outcome = Kept::read(bytes.clone(), &question(other));
            assert_eq!(outcome, Err(BadAnswer::OtherQuestion), "{other}");
        }
        let aaaa = Question::new(&name("a.test."), RecordType::AAAA);
        assert_eq!(
            Kept::read(bytes.clone(), &aaaa),
            Err(BadAnswer::OtherQuestion)
        );
        let cut = bytes[..bytes.len() - 1].to_vec();
        assert_eq!(
            Kept::read(cut, &question("a.test.")),
            Err(BadAnswer::Broken)
        );
    }

    #[test]
    fn records_of_unknown_types_come_out_as_they_went_in() {
        let asked_for = Question::new(&name("a.test."), RecordType::from(65_300));
        let mut bytes = message(&asked_for).to_vec().unwrap();
        let record = [0xc0, 12, 0xff, 0x14, 0, 1, 0, 0, 0, 60, 0, 5, 1, 2, 3, 4, 5];
        bytes.extend(record);
        bytes[7] = 1;
        let kept = Kept::read(bytes, &asked_for).unwrap();
        assert_eq!(kept.lifetime(), Duration::from_secs(60));
        let asked = asked("a.test.", None, |query| {
            query.queries[0].query_type = RecordType::from(65_300);
        });
        let out = kept.encode(&asked, 0, 512).unwrap();
        assert!(out.ends_with(&record));
    }

    #[test]
    fn made_answer_says_why_in_an_option() {
        let made = Made::empty(ResponseCode::NXDomain).because(BLOCKED, "ads.txt");
        let reply = Reply::Made(Box::new(made));
        assert!(reply.is_blocked());
        let asked = asked("a.test.", Some(1232), |_| {});
        let answer = Message::from_vec(&reply.encode(&asked, 1232).unwrap()).unwrap();
        let option = answer.edns.unwrap();
        let option = option.option(15.into()).unwrap();
        assert_eq!(Vec::<u8>::try_from(option).unwrap(), b"\0\x0fads.txt");
    }

    proptest! {
        /// Whatever an upstream says: it is refused, or can be given to whoever asks.
        #[test]
        fn any_message_is_refused_or_passed_on(
            tail in prop::collection::vec(any::<u8>(), 0..120),
            counts in prop::collection::vec(0_u8..3, 3),
            flip in any::<prop::sample::Index>(),
            edns in any::<bool>(),
        ) {
            let asked_for = question("a.test.");
            let mut bytes = message(&asked_for).to_vec().unwrap();
            bytes.extend(&tail);
            for (at, count) in [7, 9, 11].into_iter().zip(&counts) {
                bytes[at] = *count;
            }
            let mut other = bytes.clone();
            let index = flip.index(other.len());
            other[index] ^= 0x41;
            let asked = asked("a.test.", edns.then_some(1232), |_| {});
            for bytes in [bytes, other] {
                if let Ok(kept) = Kept::read(bytes, &asked_for) {
                    for limit in [512, 65_535] {
                        let out = kept.encode(&asked, 7, limit).unwrap();
                        prop_assert!(out.len() <= limit);
                        prop_assert_eq!(&out[..2], &[0x12, 0x34]);
                    }
                }
            }
        }
    }
}
