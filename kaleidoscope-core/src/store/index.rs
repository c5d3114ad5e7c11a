//! Which page is in which slot of a store, and which one goes when there is no room.

use super::StoreStatistics;
use crate::fingerprint::Fingerprint;
use lru::LruCache;
use std::collections::HashMap;
use thiserror::Error;

/// There is no room: every page is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("all {0} pages of the store are in use")]
pub struct Full(pub u32);

/// Where a page was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inserted {
    /// Its slot.
    pub slot: u32,
    /// The page that was there before, which nobody can ask for any more.
    pub evicted: Option<Fingerprint>,
}

/// The index of a store of so many slots. Pages are in one of two sets: pinned, or in the order of their last use. Slots that follow each
/// other are given out one after the other as long as none was given back, so that pages that come together can be mapped together.
#[derive(Debug)]
pub struct Index {
    bound: u32,
    /// Slots from here on were never used.
    fresh: u32,
    /// Slots that were given back.
    free: Vec<u32>,
    idle: LruCache<Fingerprint, u32>,
    pinned: HashMap<Fingerprint, Pinned>,
    pins: u64,
    hits: u64,
    misses: u64,
    evicted: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pinned {
    slot: u32,
    pins: u32,
}

impl Index {
    /// An empty index of so many slots. Takes memory as it is used.
    #[must_use]
    pub fn new(bound: u32) -> Self {
        Self {
            bound,
            fresh: 0,
            free: Vec::new(),
            idle: LruCache::unbounded(),
            pinned: HashMap::new(),
            pins: 0,
            hits: 0,
            misses: 0,
            evicted: 0,
        }
    }

    /// The slot of a page, which is used now.
    pub fn get(&mut self, key: Fingerprint) -> Option<u32> {
        let pinned = self.pinned.get(&key).map(|pinned| pinned.slot);
        let slot = pinned.or_else(|| self.idle.get(&key).copied());
        let count = if slot.is_some() { &mut self.hits } else { &mut self.misses };
        *count = count.saturating_add(1);
        slot
    }

    /// Whether a page is here. Is no use of it.
    #[must_use]
    pub fn has(&self, key: Fingerprint) -> bool {
        self.pinned.contains_key(&key) || self.idle.contains(&key)
    }

    /// A slot for a page that is not here; the page that was used longest ago gives way.
    ///
    /// # Errors
    /// [`Full`] when all are pinned.
    pub fn insert(&mut self, key: Fingerprint) -> Result<Inserted, Full> {
        let (slot, evicted) = match self.free.pop() {
            Some(slot) => (slot, None),
            None if self.fresh < self.bound => {
                self.fresh += 1;
                (self.fresh - 1, None)
            }
            None => {
                let (oldest, slot) = self.idle.pop_lru().ok_or(Full(self.bound))?;
                self.evicted = self.evicted.saturating_add(1);
                (slot, Some(oldest))
            }
        };
        self.idle.put(key, slot);
        Ok(Inserted { slot, evicted })
    }

    /// Forgets a page that nobody has pinned; its slot is free.
    pub fn remove(&mut self, key: Fingerprint) -> Option<u32> {
        let slot = self.idle.pop(&key)?;
        self.free.push(slot);
        Some(slot)
    }

    /// Keeps a page from being evicted, once more.
    pub fn pin(&mut self, key: Fingerprint) -> Option<u32> {
        let slot = match self.pinned.get_mut(&key) {
            Some(pinned) => {
                pinned.pins = pinned.pins.checked_add(1)?;
                pinned.slot
            }
            None => {
                let slot = self.idle.pop(&key)?;
                self.pinned.insert(key, Pinned { slot, pins: 1 });
                slot
            }
        };
        self.pins = self.pins.saturating_add(1);
        Some(slot)
    }

    /// Takes back a pin. After the last one a page is as one that was used now.
    pub fn unpin(&mut self, key: Fingerprint) {
        let Some(pinned) = self.pinned.get_mut(&key) else { return };
        self.pins = self.pins.saturating_sub(1);
        pinned.pins -= 1;
        if pinned.pins == 0 {
            let slot = pinned.slot;
            self.pinned.remove(&key);
            self.idle.put(key, slot);
        }
    }

    /// What it holds and has done.
    #[must_use]
    pub fn statistics(&self) -> StoreStatistics {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let pinned = count(self.pinned.len());
        StoreStatistics {
            bound: self.bound,
            pages: pinned.saturating_add(count(self.idle.len())),
            pinned,
            pins: self.pins,
            hits: self.hits,
            misses: self.misses,
            evicted: self.evicted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn key(n: u8) -> Fingerprint {
        Fingerprint([n; 16])
    }

    #[test]
    fn the_page_that_was_not_used_for_longest_goes() {
        let mut index = Index::new(3);
        let slots: Vec<u32> = (1..4).map(|n| index.insert(key(n)).unwrap().slot).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert_eq!(index.get(key(1)), Some(0));
        assert_eq!(index.insert(key(4)), Ok(Inserted { slot: 1, evicted: Some(key(2)) }));
        assert_eq!(index.pin(key(3)), Some(2));
        assert_eq!(index.insert(key(5)), Ok(Inserted { slot: 0, evicted: Some(key(1)) }));
        assert_eq!((index.pin(key(4)), index.pin(key(5))), (Some(1), Some(0)));
        assert_eq!(index.insert(key(6)), Err(Full(3)));
        index.unpin(key(4));
        assert_eq!(index.remove(key(5)), None, "it is pinned");
        assert_eq!(index.insert(key(6)), Ok(Inserted { slot: 1, evicted: Some(key(4)) }));
        assert_eq!(index.remove(key(6)), Some(1));
        assert_eq!(index.insert(key(7)), Ok(Inserted { slot: 1, evicted: None }));
        let statistics = index.statistics();
        assert_eq!((statistics.pages, statistics.pinned, statistics.evicted), (3, 2, 3));
        assert_eq!((statistics.hits, statistics.misses), (1, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8),
        Get(u8),
        Pin(u8),
        Unpin(u8),
        Remove(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..20).prop_map(Step::Insert),
            2 => (0u8..20).prop_map(Step::Get),
            2 => (0u8..20).prop_map(Step::Pin),
            2 => (0u8..20).prop_map(Step::Unpin),
            1 => (0u8..20).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// Slots are never given to two, pinned pages never move, and pins return to none.
        #[test]
        fn a_slot_is_one_page_s(steps in prop::collection::vec(step(), 1..200), bound in 1u32..12) {
            let mut index = Index::new(bound);
            // What must be there at least, and with how many pins.
            let mut pinned: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(n) if !index.has(key(n)) => match index.insert(key(n)) {
                        Ok(inserted) => {
                            prop_assert!(inserted.slot < bound);
                            prop_assert!(!pinned.values().any(|(slot, _)| *slot == inserted.slot));
                            if let Some(evicted) = inserted.evicted {
                                prop_assert!(!pinned.contains_key(&evicted.0[0]));
                            }
                        }
                        Err(_) => prop_assert_eq!(pinned.len(), bound as usize),
                    },
                    Step::Insert(_) => {}
                    Step::Get(n) => {
                        let slot = index.get(key(n));
                        if let Some((expected, _)) = pinned.get(&n) {
                            prop_assert_eq!(slot, Some(*expected));
                        }
                    }
                    Step::Pin(n) => if let Some(slot) = index.pin(key(n)) {
                        let entry = pinned.entry(n).or_insert((slot, 0));
                        entry.1 += 1;
                        prop_assert_eq!(entry.0, slot);
                    },
                    Step::Unpin(n) => {
                        index.unpin(key(n));
                        if let Some(entry) = pinned.get_mut(&n) {
                            entry.1 -= 1;
                            if entry.1 == 0 {
                                pinned.remove(&n);
                            }
                        }
                    }
                    Step::Remove(n) => {
                        let slot = index.remove(key(n));
                        prop_assert!(slot.is_none() || !pinned.contains_key(&n));
                    }
                }
                let statistics = index.statistics();
                prop_assert!(statistics.pages <= bound);
                prop_assert_eq!(statistics.pinned as usize, pinned.len());
                let pins: u32 = pinned.values().map(|(_, pins)| pins).sum();
                prop_assert_eq!(statistics.pins, u64::from(pins));
            }
            let slots: BTreeSet<u32> = (0..20).filter_map(|n| index.get(key(n))).collect();
            prop_assert_eq!(slots.len(), index.statistics().pages as usize);
        }
    }
}
