//! Goes over the bytes of a message, record by record, without taking any apart.

use std::ops::Range;

use hickory_proto::rr::RecordType;

use super::{BadAnswer, Question};

/// One record.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: RecordType,
    pub(super) ttl: u32,
    pub(super) ttl_at: usize,
    /// The last field of an SOA record.
    pub(super) minimum: Option<u32>,
}

/// Goes over a message from its start to its end.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// Of answers, authorities and additionals.
    pub(super) counts: [u16; 3],
}

impl<'a> Walk<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, BadAnswer> {
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
    pub(super) fn question(&mut self, asked: &Question) -> Result<Range<usize>, BadAnswer> {
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

    pub(super) fn record(&mut self) -> Result<Found, BadAnswer> {
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

const MAX_LABEL: usize = 63;
const CLASS_IN: u16 = 1;
