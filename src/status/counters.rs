//! Counters as they are exported: by part and name, and of which kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Counters of several parts, sums of several sessions perhaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(Kind, &'static str, &'static str), u64>);

/// What a number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Something was dropped or refused, for the reason that the name tells.
    Drop,
    /// Something else happened.
    Event,
    /// How much there is now.
    Level,
}

/// One number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// What it says.
    pub kind: Kind,
    /// The part of the program that counts it: `session`, `queue`.
    pub part: &'static str,
    /// Its name there: for a drop, the reason.
    pub name: &'static str,
    /// The number.
    pub value: u64,
}

/// Something that counts.
pub trait Counted {
    /// Names each number, under `part`, but for those that belong to a part of their own.
    fn each(&self, part: &'static str, tell: &mut dyn FnMut(Counter));
}

/// A number as counters have it.
pub(super) trait Number {
    fn number(&self) -> u64;
}

impl Number for u64 {
    fn number(&self) -> u64 {
        *self
    }
}

impl Number for usize {
    fn number(&self) -> u64 {
        u64::try_from(*self).unwrap_or(u64::MAX)
    }
}

impl Number for AtomicU64 {
    fn number(&self) -> u64 {
        self.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Adds what `counted` has counted as `part`.
    pub fn add(&mut self, part: &'static str, counted: &impl Counted) {
        counted.each(part, &mut |counter| self.insert(counter));
    }

    /// Adds one number.
    pub fn insert(&mut self, counter: Counter) {
        let Counter {
            kind,
            part,
            name,
            value,
        } = counter;
        let sum = self.0.entry((kind, part, name)).or_default();
        *sum = sum.saturating_add(value);
    }

    /// Adds a reason for which something was dropped.
    pub fn drops(&mut self, part: &'static str, name: &'static str, value: u64) {
        let kind = Kind::Drop;
        self.insert(Counter {
            kind,
            part,
            name,
            value,
        });
    }

    /// Adds how much there is of something.
    pub fn level(&mut self, part: &'static str, name: &'static str, value: u64) {
        let kind = Kind::Level;
        self.insert(Counter {
            kind,
            part,
            name,
            value,
        });
    }

    /// Adds how many there are of something.
    pub fn count_now(&mut self, part: &'static str, name: &'static str, count: usize) {
        self.level(part, name, count.number());
    }

    /// Adds those of another to these.
    pub fn merge(&mut self, other: &Self) {
        for counter in other.iter() {
            self.insert(counter);
        }
    }

    /// Adds what outlives a session that has ended: all but what there is no more.
    pub fn merge_ended(&mut self, other: &Self) {
        for counter in other.iter() {
            match counter.kind {
                Kind::Drop | Kind::Event => self.insert(counter),
                Kind::Level => {}
            }
        }
    }

    /// Lists them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = Counter> + '_ {
        self.0.iter().map(|((kind, part, name), value)| Counter {
            kind: *kind,
            part,
            name,
            value: *value,
        })
    }

    /// Returns one number; those that are not there are 0.
    pub fn value(&self, kind: Kind, part: &'static str, name: &'static str) -> u64 {
        self.0.get(&(kind, part, name)).copied().unwrap_or_default()
    }

    /// Keeps what is not 0, of one kind.
    pub fn nonzero(&self, kind: Kind) -> Self {
        let kept = self.0.iter();
        let kept = kept.filter(|((of, _, _), value)| *of == kind && **value > 0);
        Self(kept.map(|(key, value)| (*key, *value)).collect())
    }
}

impl Serialize for Counters {
    /// One map, `part.name` to the number.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for counter in self.iter() {
            map.serialize_entry(
                &format!("{}.{}", counter.part, counter.name),
                &counter.value,
            )?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_grow_by_what_has_ended_and_levels_do_not() {
        let mut session = Counters::default();
        session.drops("queue", "overflow", 3);
        session.level("stack", "flows_now", 7);
        let mut ended = Counters::default();
        ended.merge_ended(&session);
        ended.merge_ended(&session);
        assert_eq!(ended.value(Kind::Drop, "queue", "overflow"), 6);
        assert_eq!(ended.value(Kind::Level, "stack", "flows_now"), 0);
        ended.merge(&session);
        assert_eq!(ended.value(Kind::Level, "stack", "flows_now"), 7);
        let shown = serde_json::to_string(&ended.nonzero(Kind::Drop)).unwrap();
        assert_eq!(shown, r#"{"queue.overflow":9}"#);
    }
}
