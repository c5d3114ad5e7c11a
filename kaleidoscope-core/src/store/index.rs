//! Which page is in which slot of a store, and which one goes when there is no room.

use super::StoreStatistics;
use crate::fingerprint::Fingerprint;
use lru::LruCache;
use std::collections::{BTreeSet, HashMap};
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

/// The index of a store of so many slots. Pages are in one of two sets: pinned, or in the order of
/// their last use. Slots that follow each other are given out one after the other as long as none
/// was given back, so that pages that come together can be mapped together.
///
/// A store may outlive its process. Machines that map its slots may do so too, and which they map
/// nobody knows any more: whoever opens it again takes over what was in use
/// ([`adopt`](Self::adopt), [`reserve`](Self::reserve)), and none of those slots is given to
/// another page until all of those machines are gone ([`release_former`](Self::release_former)).
#[derive(Debug)]
pub struct Index {
    bound: u32,
    /// Slots from here on were never used, but for those that were taken over.
    fresh: u32,
    /// Slots from `fresh` on that were taken over.
    ahead: BTreeSet<u32>,
    /// Pages that were taken over, each with a pin of the former life.
    adopted: Vec<Fingerprint>,
    /// Slots that were taken over without knowing what they hold.
    reserved: Vec<u32>,
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
            ahead: BTreeSet::new(),
            adopted: Vec::new(),
            reserved: Vec::new(),
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
        let (slot, evicted) = match self.unused() {
            Some(slot) => (slot, None),
            None => {
                let (oldest, slot) = self.idle.pop_lru().ok_or(Full(self.bound))?;
                self.evicted = self.evicted.saturating_add(1);
                (slot, Some(oldest))
            }
        };
        self.idle.put(key, slot);
        Ok(Inserted { slot, evicted })
    }

    /// A slot that holds no page.
    fn unused(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        while self.fresh < self.bound {
            let slot = self.fresh;
            self.fresh += 1;
            if !self.ahead.remove(&slot) {
                return Some(slot);
            }
        }
        None
    }

    /// Takes a page over that is in this slot since a former life of the store. It is pinned until
    /// [`release_former`](Self::release_former).
    ///
    /// `false` when the page is here already, or the slot is not one that was never used: neither
    /// changes then.
    pub fn adopt(&mut self, key: Fingerprint, slot: u32) -> bool {
        if self.has(key) || !self.take_over(slot) {
            return false;
        }
        self.pinned.insert(key, Pinned { slot, pins: 1 });
        self.pins = self.pins.saturating_add(1);
        self.adopted.push(key);
        true
    }

    /// Takes a slot over that holds nobody knows what since a former life of the store: no page is
    /// there to be had, and none is put there until [`release_former`](Self::release_former).
    ///
    /// `false` when the slot is not one that was never used.
    pub fn reserve(&mut self, slot: u32) -> bool {
        let is_taken = self.take_over(slot);
        if is_taken {
            self.reserved.push(slot);
        }
        is_taken
    }

    fn take_over(&mut self, slot: u32) -> bool {
        (self.fresh..self.bound).contains(&slot) && self.ahead.insert(slot)
    }

    /// The machines of former lives are gone: what was taken over is as any other page from here
    /// on, and slots that hold nobody knows what are free.
    pub fn release_former(&mut self) {
        for key in std::mem::take(&mut self.adopted) {
            self.unpin(key);
        }
        self.reserved.sort_unstable();
        // The last one is given out first.
        self.free.extend(self.reserved.drain(..).rev());
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
            former: count(self.adopted.len()).saturating_add(count(self.reserved.len())),
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
    use std::collections::BTreeMap;

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

    #[test]
    fn what_a_former_life_left_stays_where_it_is() {
        let mut index = Index::new(6);
        assert!(index.adopt(key(1), 1) && index.adopt(key(2), 3) && index.reserve(4));
        assert!(!index.adopt(key(1), 2), "the page is here");
        assert!(!index.adopt(key(3), 3) && !index.reserve(3), "the slot is taken");
        assert!(!index.adopt(key(3), 6) && !index.reserve(u32::MAX), "past the end");
        let free: Vec<u32> = (10..13).map(|n| index.insert(key(n)).unwrap().slot).collect();
        assert_eq!(free, [0, 2, 5]);
        assert!(!index.reserve(0) && !index.adopt(key(3), 5), "given out in this life");
        // Others give way to each other, but not what was taken over.
        assert_eq!(index.insert(key(13)).unwrap().evicted, Some(key(10)));
        assert_eq!((index.get(key(1)), index.pin(key(2))), (Some(1), Some(3)));
        index.unpin(key(2));
        let statistics = index.statistics();
        assert_eq!((statistics.pages, statistics.pinned, statistics.former), (5, 2, 3));
        index.release_former();
        assert_eq!(index.insert(key(14)), Ok(Inserted { slot: 4, evicted: None }));
        assert_eq!(index.insert(key(15)).unwrap().evicted, Some(key(11)));
        let statistics = index.statistics();
        assert_eq!((statistics.pages, statistics.pins, statistics.former), (6, 0, 0));
        assert_eq!(index.get(key(1)), Some(1), "it is as any other now");
    }

    #[test]
    fn a_page_that_is_still_used_outlasts_the_former_life() {
        let mut index = Index::new(1);
        assert!(index.adopt(key(1), 0));
        assert_eq!(index.pin(key(1)), Some(0));
        index.release_former();
        assert_eq!(index.insert(key(2)), Err(Full(1)));
        index.unpin(key(1));
        assert_eq!(index.insert(key(2)), Ok(Inserted { slot: 0, evicted: Some(key(1)) }));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Adopt(u8, u32),
        Reserve(u32),
        Release,
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
            1 => (0u8..20, 0u32..14).prop_map(|(n, slot)| Step::Adopt(n, slot)),
            1 => (0u32..14).prop_map(Step::Reserve),
            1 => Just(Step::Release),
        ]
    }

    proptest! {
        /// Slots are never given to two, pinned pages never move, what was taken over stays until it is released, and pins return to
        /// none.
        #[test]
        fn a_slot_is_one_page_s(steps in prop::collection::vec(step(), 1..200), bound in 1u32..12) {
            let mut index = Index::new(bound);
            // What must be there at least, and with how many pins.
            let mut pinned: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
            let mut adopted: Vec<u8> = Vec::new();
            let mut reserved: BTreeSet<u32> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Adopt(n, slot) => {
                        let was_here = index.has(key(n));
                        if index.adopt(key(n), slot) {
                            prop_assert!(!was_here && slot < bound && !reserved.contains(&slot));
                            prop_assert!(!pinned.values().any(|(other, _)| *other == slot));
                            pinned.insert(n, (slot, 1));
                            adopted.push(n);
                        }
                    }
                    Step::Reserve(slot) => if index.reserve(slot) {
                        prop_assert!(slot < bound && reserved.insert(slot));
                        prop_assert!(!pinned.values().any(|(other, _)| *other == slot));
                    },
                    Step::Release => {
                        index.release_former();
                        reserved.clear();
                        for n in adopted.drain(..) {
                            let entry = pinned.get_mut(&n).unwrap();
                            entry.1 -= 1;
                            if entry.1 == 0 {
                                pinned.remove(&n);
                            }
                        }
                    }
                    Step::Insert(n) if !index.has(key(n)) => match index.insert(key(n)) {
                        Ok(inserted) => {
                            prop_assert!(inserted.slot < bound);
                            prop_assert!(!reserved.contains(&inserted.slot));
                            prop_assert!(!pinned.values().any(|(slot, _)| *slot == inserted.slot));
                            if let Some(evicted) = inserted.evicted {
                                prop_assert!(!pinned.contains_key(&evicted.0[0]));
                            }
                        }
                        Err(_) => {
                            prop_assert_eq!(pinned.len() + reserved.len(), bound as usize);
                        }
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
                    // The last pin of a page that was taken over is the former life's.
                    Step::Unpin(n) if adopted.contains(&n) && pinned[&n].1 == 1 => {}
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
                prop_assert!(statistics.pages as usize + reserved.len() <= bound as usize);
                prop_assert_eq!(statistics.former as usize, adopted.len() + reserved.len());
                prop_assert_eq!(statistics.pinned as usize, pinned.len());
                let pins: u32 = pinned.values().map(|(_, pins)| pins).sum();
                prop_assert_eq!(statistics.pins, u64::from(pins));
            }
            let slots: BTreeSet<u32> = (0..20).filter_map(|n| index.get(key(n))).collect();
            prop_assert_eq!(slots.len(), index.statistics().pages as usize);
        }
    }
}
