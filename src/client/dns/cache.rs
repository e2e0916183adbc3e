//! Answers that are kept for as long as they hold.
//!
//! Bounded by [`CACHE_ENTRIES`] and [`CACHE_BYTES`]; beyond either, what was not used since the last time around goes (the
//! clock algorithm: a hand passes over the entries, and each that was used since is spared once). An answer that is asked
//! for in the last tenth of its time is given, and the asker told to ask the upstream anew meanwhile, so that names in
//! use never have to be waited for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Kept, Question};

/// Answers by their questions.
#[derive(Debug)]
pub(super) struct Cache {
    index: HashMap<Question, usize>,
    slots: Vec<Slot>,
    hand: usize,
    bytes: usize,
    limits: CacheLimits,
    /// How often it was cleared.
    generation: u64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheLimits {
    /// Answers.
    pub(super) entries: usize,
    /// Their bytes.
    pub(super) bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: CACHE_ENTRIES,
            bytes: CACHE_BYTES,
        }
    }
}

#[derive(Debug)]
struct Slot {
    question: Question,
    kept: Arc<Kept>,
    stored: Instant,
    /// Used since the hand came by.
    used: bool,
    /// Somebody was told to ask anew.
    refreshing: bool,
}

/// What the cache has.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    /// The answer.
    pub(super) kept: Arc<Kept>,
    /// For how many whole seconds it has been kept.
    pub(super) age: u32,
    /// Whether the asker shall ask the upstream anew; one asker is told.
    pub(super) refresh: bool,
}

impl Cache {
    /// Makes an empty cache.
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            hand: 0,
            bytes: 0,
            limits,
            generation: 0,
        }
    }

    /// Finds an answer that still holds.
    pub(super) fn find(&mut self, question: &Question, now: Instant) -> Option<Hit> {
        let index = *self.index.get(question)?;
        let slot = self.slots.get_mut(index)?;
        let age = now.saturating_duration_since(slot.stored);
        let lifetime = slot.kept.lifetime();
        if age >= lifetime {
            self.remove(index);
            return None;
        }
        slot.used = true;
        let soon = lifetime >= LEAST_PREFETCHED && age >= lifetime * 9 / 10;
        let refresh = soon && !slot.refreshing;
        slot.refreshing |= refresh;
        Some(Hit {
            kept: Arc::clone(&slot.kept),
            age: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
            refresh,
        })
    }

    /// Keeps an answer, if it may be kept at all.
    pub(super) fn insert(&mut self, question: Question, kept: Arc<Kept>, now: Instant) {
        if let Some(index) = self.index.get(&question) {
            self.remove(*index);
        }
        let size = weight(&kept);
        if kept.lifetime().is_zero() || size > self.limits.bytes {
            return;
        }
        while self.slots.len() >= self.limits.entries || self.bytes + size > self.limits.bytes {
            self.evict();
        }
        self.bytes += size;
        self.index.insert(question.clone(), self.slots.len());
        self.slots.push(Slot {
            question,
            kept,
            stored: now,
            used: false,
            refreshing: false,
        });
    }

    /// Lets the next asker be told again to ask anew, since that has failed.
    pub(super) fn refresh_failed(&mut self, question: &Question) {
        let slot = self.index.get(question).copied();
        if let Some(slot) = slot.and_then(|index| self.slots.get_mut(index)) {
            slot.refreshing = false;
        }
    }

    /// Forgets everything, and returns the generation that begins.
    pub(super) fn clear(&mut self) -> u64 {
        *self = Self {
            generation: self.generation + 1,
            ..Self::new(self.limits)
        };
        self.generation
    }

    /// Which generation of answers it holds: one that was asked for in a former one is not to be kept in this.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    fn evict(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            match self.slots.get_mut(self.hand) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.hand += 1;
                }
                Some(_) => return self.remove(self.hand),
                None => return,
            }
        }
    }

    fn remove(&mut self, index: usize) {
        if index >= self.slots.len() {
            return;
        }
        let gone = self.slots.swap_remove(index);
        self.bytes -= weight(&gone.kept);
        self.index.remove(&gone.question);
        if let Some(moved) = self.slots.get(index) {
            self.index.insert(moved.question.clone(), index);
        }
    }
}

/// Bytes of an entry, with its question twice and its place in the index.
fn weight(kept: &Kept) -> usize {
    kept.memory() + 2 * size_of::<Question>() + size_of::<Slot>()
}

/// How many answers are kept.
pub const CACHE_ENTRIES: usize = 16_384;
/// How much they may take in all: about 1 KiB each.
pub const CACHE_BYTES: usize = 16 << 20;
/// What lives shorter is asked for again when it is wanted: it would be asked for all the time.
const LEAST_PREFETCHED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::super::answer::tests::answer_for;
    use super::*;

    fn question(number: usize) -> Question {
        let name = Name::from_ascii(format!("n{number}.test.")).unwrap();
        Question::new(&name, RecordType::A)
    }

    fn kept(question: &Question, ttl: u32) -> Arc<Kept> {
        Arc::new(answer_for(question, ttl))
    }

    fn small(entries: usize) -> Cache {
        Cache::new(CacheLimits {
            entries,
            ..CacheLimits::default()
        })
    }

    #[test]
    fn answer_holds_for_its_time_and_grows_old() {
        let (start, mut cache) = (Instant::now(), small(8));
        let asked = question(1);
        cache.insert(asked.clone(), kept(&asked, 30), start);
        let hit =
            |cache: &mut Cache, millis| cache.find(&asked, start + Duration::from_millis(millis));
        assert_eq!(hit(&mut cache, 0).unwrap().age, 0);
        assert_eq!(hit(&mut cache, 12_999).unwrap().age, 12);
        assert_eq!(hit(&mut cache, 29_999).unwrap().age, 29);
        assert!(hit(&mut cache, 30_000).is_none());
        assert!(cache.slots.is_empty() && cache.index.is_empty() && cache.bytes == 0);
    }

    #[test]
    fn bits_that_change_the_answer_are_a_part_of_the_question() {
        let (now, mut cache) = (Instant::now(), small(8));
        let plain = question(1);
        cache.insert(plain.clone(), kept(&plain, 30), now);
        let signed = Question {
            dnssec_ok: true,
            ..plain.clone()
        };
        let unchecked = Question {
            checking_disabled: true,
            ..plain.clone()
        };
        let capitals = Question::new(&Name::from_ascii("N1.Test").unwrap(), RecordType::A);
        assert!(cache.find(&signed, now).is_none());
        assert!(cache.find(&unchecked, now).is_none());
        assert!(cache.find(&capitals, now).is_some());
    }

    #[test]
    fn what_may_not_be_kept_is_not_and_takes_the_place_of_what_was() {
        let (now, mut cache) = (Instant::now(), small(8));
        let asked = question(1);
        cache.insert(asked.clone(), kept(&asked, 30), now);
        cache.insert(asked.clone(), kept(&asked, 0), now);
        assert!(cache.find(&asked, now).is_none());
    }

    #[test]
    fn least_used_goes_and_bounds_hold() {
        let (now, mut cache) = (Instant::now(), small(4));
        for number in 0..4 {
            cache.insert(question(number), kept(&question(number), 30), now);
        }
        for number in [0, 1, 3] {
            assert!(cache.find(&question(number), now).is_some());
        }
        cache.insert(question(9), kept(&question(9), 30), now);
        assert!(cache.find(&question(2), now).is_none());
        for number in [0, 1, 3, 9] {
            assert!(cache.find(&question(number), now).is_some(), "{number}");
        }
        // By their bytes: half of them fit.
        let room = 2 * weight(&kept(&question(1), 30));
        let mut cache = Cache::new(CacheLimits {
            entries: 100,
            bytes: room,
        });
        for number in 0..50 {
            cache.insert(question(number), kept(&question(number), 30), now);
            assert!(cache.bytes <= room && cache.slots.len() <= 2);
            assert_eq!(cache.index.len(), cache.slots.len());
        }
        assert!(cache.find(&question(49), now).is_some());
    }

    #[test]
    fn one_asker_is_told_to_ask_anew_in_the_last_tenth_of_the_time() {
        let (start, mut cache) = (Instant::now(), small(8));
        let asked = question(1);
        cache.insert(asked.clone(), kept(&asked, 100), start);
        let refresh = |cache: &mut Cache, after| {
            let at = start + Duration::from_secs(after);
            cache.find(&asked, at).unwrap().refresh
        };
        assert!(!refresh(&mut cache, 89));
        assert!(refresh(&mut cache, 90));
        assert!(!refresh(&mut cache, 91));
        cache.refresh_failed(&asked);
        assert!(refresh(&mut cache, 92));
        // What lives shortly is not worth it.
        let brief = question(2);
        cache.insert(brief.clone(), kept(&brief, 9), start);
        assert!(
            !cache
                .find(&brief, start + Duration::from_millis(8900))
                .unwrap()
                .refresh
        );
    }
}
