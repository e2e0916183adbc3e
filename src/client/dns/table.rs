//! A set of domain names that takes eight to sixteen bytes for each, and tells which list a name came from.
//!
//! # Theory of operation
//!
//! Lists have half a million names, and each query asks for the name and for every suffix of it. So the names themselves
//! are not kept: an open-addressing table of 64-bit words has, of each, 54 bits of a hash with a key of this process, and
//! ten bits that say where it came from and what it covers.
//!
//! ```text
//!  63                                          10 9           2  1   0
//! ┌──────────────────────────────────────────────┬─────────────┬───┬───┐
//! │ hash of the name                             │ list        │ 1 │ S │   S: its subdomains too
//! └──────────────────────────────────────────────┴─────────────┴───┴───┘
//! ```
//!
//! The place where a search begins is a part of those 54 bits, so that the table can grow without the names. Two names
//! that share all of them are taken for one: with a million names in the table a query of five labels finds a wrong one
//! with a probability of 3·10⁻¹⁰; whoever writes a list cannot aim at it, since the key is random.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::quality::RandomState;
use thiserror::Error;

use super::domain::Domain;

/// What an entry of a list covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The name alone, as in a hosts file.
    Name,
    /// The name and every name below it.
    Subdomains,
}

/// Which entry a name was found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The number of the list.
    pub list: u8,
    /// Bytes at the end of the name that the entry has.
    pub suffix: usize,
}

/// Names with the numbers of their lists.
#[derive(Clone, Debug)]
pub struct NameTable {
    /// A power of two of them, or none; 0 is free.
    slots: Vec<u64>,
    len: usize,
    most: usize,
    state: RandomState,
}

impl Default for NameTable {
    fn default() -> Self {
        Self::new(MAX_NAMES)
    }
}

impl NameTable {
    /// Makes an empty table for at most `most` names.
    pub fn new(most: usize) -> Self {
        Self {
            slots: Vec::new(),
            len: 0,
            most,
            state: RandomState::default(),
        }
    }

    /// Makes an empty table that can take names over from this one.
    pub fn successor(&self) -> Self {
        Self {
            slots: Vec::new(),
            len: 0,
            most: self.most,
            state: self.state.clone(),
        }
    }

    /// Takes the names of one list over from the table that this one is a [successor](Self::successor) of, as far as there
    /// is room.
    pub fn take_over(&mut self, former: &Self, list: u8) {
        let of_list = |word: &&u64| **word != 0 && (**word >> LIST_SHIFT) & 0xff == u64::from(list);
        for word in former.slots.iter().filter(of_list) {
            let _full = self.insert_word(*word);
        }
    }

    /// Adds a name in lower case without a final dot. One that is there already keeps its list, unless the new entry
    /// covers more.
    ///
    /// # Errors
    /// The table is full.
    pub fn insert(&mut self, name: &[u8], scope: Scope, list: u8) -> Result<(), TableFull> {
        let hash = self.hash(name);
        self.insert_word(hash | (u64::from(list) << LIST_SHIFT) | OCCUPIED | scope.bit())
    }

    fn insert_word(&mut self, word: u64) -> Result<(), TableFull> {
        if (self.len + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let index = self.place(word & HASH);
        let Some(slot) = self.slots.get_mut(index) else {
            return Ok(());
        };
        if *slot == 0 {
            if self.len >= self.most {
                return Err(TableFull { most: self.most });
            }
            *slot = word;
            self.len += 1;
        } else if *slot & SUBDOMAINS < word & SUBDOMAINS {
            *slot = word;
        }
        Ok(())
    }

    /// Finds the longest entry that covers `name`.
    pub fn find(&self, name: &Domain) -> Option<Found> {
        if self.len == 0 {
            return None;
        }
        let whole = name.as_bytes().len();
        name.suffixes().find_map(|suffix| {
            let slot = *self.slots.get(self.place(self.hash(suffix)))?;
            let covers = slot != 0 && (suffix.len() == whole || slot & SUBDOMAINS != 0);
            covers.then_some(Found {
                list: ((slot >> LIST_SHIFT) & 0xff) as u8,
                suffix: suffix.len(),
            })
        })
    }

    /// The number of names.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the table takes.
    pub fn memory(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    fn hash(&self, name: &[u8]) -> u64 {
        let mut hasher = self.state.build_hasher();
        hasher.write(name);
        hasher.finish() & HASH
    }

    /// Where `hash` is, or would be.
    fn place(&self, hash: u64) -> usize {
        let mask = self.slots.len().wrapping_sub(1);
        let mut index = (hash >> FLAGS) as usize & mask;
        // Ends: a quarter of the slots is free.
        while let Some(slot) = self.slots.get(index)
            && *slot != 0
            && *slot & HASH != hash
        {
            index = (index + 1) & mask;
        }
        index
    }

    fn grow(&mut self) {
        let larger = (self.slots.len() * 2).max(LEAST_SLOTS);
        let former = std::mem::replace(&mut self.slots, vec![0; larger]);
        for word in former.into_iter().filter(|word| *word != 0) {
            let index = self.place(word & HASH);
            if let Some(slot) = self.slots.get_mut(index) {
                *slot = word;
            }
        }
    }
}

/// Whether a table that has nothing but `entry` finds `name`, for a fuzzer.
pub(crate) fn is_listed(entry: super::list::Entry<'_>, name: &str) -> bool {
    let mut table = NameTable::default();
    let inserted = table.insert(entry.name.as_bytes(), entry.scope, 0);
    let name = hickory_proto::rr::Name::from_ascii(name).map(|name| Domain::new(&name));
    inserted.is_ok() && name.is_ok_and(|name| table.find(&name).is_some())
}

impl Scope {
    fn bit(self) -> u64 {
        match self {
            Self::Name => 0,
            Self::Subdomains => SUBDOMAINS,
        }
    }
}

/// A table has as many names as it may have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("more than {most} names")]
pub struct TableFull {
    /// How many that is.
    pub most: usize,
}

/// Names of all lists of a kind: 32 to 64 MiB of table, and eight times the largest list that is in wide use.
pub const MAX_NAMES: usize = 4 << 20;

const FLAGS: u32 = 10;
const HASH: u64 = !((1 << FLAGS) - 1);
const LIST_SHIFT: u32 = 2;
const OCCUPIED: u64 = 0b10;
const SUBDOMAINS: u64 = 0b01;
/// The first table: a page.
const LEAST_SLOTS: usize = 512;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::new(&Name::from_ascii(text).unwrap())
    }

    #[test]
    fn name_covers_itself_and_subdomains_only_where_it_says_so() {
        let mut table = NameTable::default();
        table.insert(b"exact.test", Scope::Name, 3).unwrap();
        table.insert(b"wide.test", Scope::Subdomains, 7).unwrap();
        let list = |text: &str| table.find(&domain(text)).map(|found| found.list);
        assert_eq!(list("exact.test."), Some(3));
        assert_eq!(list("EXACT.test"), Some(3));
        assert_eq!(list("below.exact.test."), None);
        assert_eq!(list("wide.test."), Some(7));
        assert_eq!(list("a.b.wide.test."), Some(7));
        assert_eq!(list("notwide.test."), None);
        assert_eq!(list("test."), None);
        assert_eq!(table.find(&Domain::new(&Name::root())), None);
    }

    #[test]
    fn longest_entry_is_the_one_told_and_the_wider_of_two_stays() {
        let mut table = NameTable::default();
        table.insert(b"test", Scope::Subdomains, 1).unwrap();
        table.insert(b"a.test", Scope::Name, 2).unwrap();
        table.insert(b"a.test", Scope::Name, 3).unwrap();
        let found = table.find(&domain("a.test")).unwrap();
        assert_eq!((found.list, found.suffix), (2, 6));
        table.insert(b"a.test", Scope::Subdomains, 4).unwrap();
        table.insert(b"a.test", Scope::Name, 5).unwrap();
        assert_eq!(table.find(&domain("x.a.test")).unwrap().list, 4);
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn full_table_refuses_and_stays_as_it_was() {
        let mut table = NameTable::new(2);
        table.insert(b"a", Scope::Name, 0).unwrap();
        table.insert(b"b", Scope::Name, 0).unwrap();
        assert_eq!(
            table.insert(b"c", Scope::Name, 0),
            Err(TableFull { most: 2 })
        );
        // What is there can still be widened.
        table.insert(b"b", Scope::Subdomains, 1).unwrap();
        assert_eq!(table.find(&domain("x.b")).unwrap().list, 1);
        assert_eq!(table.find(&domain("c")), None);
    }

    #[test]
    fn million_slots_hold_half_a_million_names_in_8_mib() {
        let mut table = NameTable::default();
        for number in 0..500_000 {
            let name = format!("host{number}.example{}.test", number % 977);
            table.insert(name.as_bytes(), Scope::Subdomains, 0).unwrap();
        }
        assert_eq!(table.len(), 500_000);
        assert_eq!(table.memory(), 8 << 20);
        let listed = format!("x.host77777.example{}.test", 77_777 % 977);
        assert!(table.find(&domain(&listed)).is_some());
        assert!(table.find(&domain("host500000.example0.test")).is_none());
    }

    proptest! {
        /// Whatever is inserted, the table says what a map of suffixes says.
        #[test]
        fn table_agrees_with_a_map(
            entries in prop::collection::vec(("[ab]{1,2}(\\.[ab]{1,2}){0,3}", any::<bool>()), 0..80),
            asked in prop::collection::vec("[ab]{1,2}(\\.[ab]{1,2}){0,4}", 1..40),
        ) {
            let mut table = NameTable::default();
            let mut map: HashMap<String, bool> = HashMap::new();
            for (name, wide) in &entries {
                let scope = if *wide { Scope::Subdomains } else { Scope::Name };
                table.insert(name.as_bytes(), scope, 0).unwrap();
                *map.entry(name.clone()).or_default() |= *wide;
            }
            prop_assert_eq!(table.len(), map.len());
            for name in &asked {
                let mut rest = Some(name.as_str());
                let mut expected = None;
                while let Some(suffix) = rest {
                    if map.get(suffix).is_some_and(|wide| *wide || suffix == name) {
                        expected = Some(suffix.len());
                        break;
                    }
                    rest = suffix.split_once('.').map(|(_, rest)| rest);
                }
                let found = table.find(&domain(name)).map(|found| found.suffix);
                prop_assert_eq!(found, expected, "{}", name);
            }
        }
    }
}
