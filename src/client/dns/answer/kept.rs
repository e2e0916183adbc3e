//! An upstream's message, as it came, and how it is written for one asker.
//!
//! It is kept as bytes. What belongs to one asker alone is written over a copy of it: the message's number, the bits he
//! set, the question as he wrote it (owners of records that point there follow), and the times to live, less what has
//! passed. The OPT record is between neighbours (RFC 6891, section 6.2.6): the upstream's is taken off, and one of our own
//! put on for those who speak EDNS. So records of any type, known here or not, come out as they went in.

use std::ops::Range;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use thiserror::Error;

use super::Question;
use super::lifetime::Sections;
use super::walk::Walk;
use crate::dns::{Asked, UDP_PAYLOAD};

/// An upstream's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The message without its OPT record.
    bytes: Vec<u8>,
    /// Where the question's name lies, with the final zero.
    name: Range<usize>,
    /// Where the times to live are.
    ttls: Vec<usize>,
    pub(super) code: ResponseCode,
    lifetime: Duration,
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
                found.note(section, &walk.record()?)?;
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
        // It was read into room for the longest message.
        bytes.shrink_to_fit();
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
    pub(super) fn encode(&self, asked: &Asked, age: u32, limit: usize) -> Option<Vec<u8>> {
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

const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const RECURSION_AVAILABLE: u8 = 0x80;
const AUTHENTIC: u8 = 0x20;
const UNCHECKED: u8 = 0x10;
/// Bytes of an OPT record without options.
const OPT_LEN: usize = 11;
