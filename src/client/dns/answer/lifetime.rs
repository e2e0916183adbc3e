//! What the sections of a message have, and for how long it may be kept.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::BadAnswer;
use super::walk::Found;

/// What the sections of a message have.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) ttls: Vec<usize>,
    /// The least time to live in the answer section.
    least: Option<u32>,
    /// How long the name may be said not to have what was asked (RFC 2308, section 5).
    negative: Option<u32>,
    types: Vec<RecordType>,
    pub(super) opt: Option<Opt>,
    pub(super) additionals: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Opt {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The upper bits of the response code.
    pub(super) high: u8,
}

impl Sections {
    /// Takes note of a record of a section.
    ///
    /// # Errors
    /// It is an OPT record where there is one already, or outside the additional section (RFC 6891, section 6.1.1): what
    /// is passed on would have it still.
    pub(super) fn note(&mut self, section: usize, record: &Found) -> Result<(), BadAnswer> {
        if section == ADDITIONALS {
            self.additionals.get_or_insert(record.start);
        }
        if record.kind == RecordType::OPT {
            if section != ADDITIONALS || self.opt.is_some() {
                return Err(BadAnswer::Broken);
            }
            self.opt = Some(Opt {
                start: record.start,
                end: record.end,
                high: (record.ttl >> 24) as u8,
            });
            return Ok(());
        }
        self.ttls.push(record.ttl_at);
        if section == ANSWERS {
            self.types.push(record.kind);
            self.least = Some(self.least.map_or(record.ttl, |least| least.min(record.ttl)));
        } else if let Some(minimum) = record.minimum {
            self.negative.get_or_insert(record.ttl.min(minimum));
        }
        Ok(())
    }

    /// How long the message may be kept; not at all where nothing says.
    pub(super) fn lifetime(&self, code: ResponseCode, kind: RecordType) -> Duration {
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

const ANSWERS: usize = 0;
const ADDITIONALS: usize = 2;

/// No answer is kept longer: names of services move.
const POSITIVE_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// RFC 2308, section 5, advises hours at most; a name that was just made should not take so long to be seen.
const NEGATIVE_LIMIT: Duration = Duration::from_secs(300);

/// What an upstream could not say is not asked again by everybody at once (RFC 9520, section 3.2).
const FAILURE_TIME: Duration = Duration::from_secs(1);
