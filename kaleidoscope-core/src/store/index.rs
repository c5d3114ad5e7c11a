//! The index of a store: which page is in which slot, and which page is evicted next.

use super::StoreStatistics;
use crate::fingerprint::Fingerprint;
use lru::LruCache;
use std::collections::{BTreeSet, HashMap};
use thiserror::Error;

/// The store is full: every page is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("all {0} pages of the store are in use")]
pub struct Full(pub u32);

/// The slot of an inserted page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inserted {
    /// Its slot.
    pub slot: u32,
    /// The page evicted from the slot, which can no longer be found.
    pub evicted: Option<Fingerprint>,
}

/// The index of a store with a fixed number of slots. A page is either pinned or in the
/// least-recently-used list. Until a slot is freed, slots are allocated in ascending order, so that
/// pages inserted together can be mapped together.
///
/// A store may outlive its process, and so may the machines that map its slots. A process that
/// opens such a store does not know which slots are mapped. It takes over all slots that were in
/// use ([`adopt`](Self::adopt), [`reserve`](Self::reserve)). None of them is reused until all of
/// those machines are gone ([`release_former`](Self::release_former)).
#[derive(Debug)]
pub struct Index {
    bound: u32,
    /// Slots from here on were never used, except those taken over.
    fresh: u32,
    /// Slots from `fresh` on that were taken over.
    taken_ahead: BTreeSet<u32>,
    /// Adopted pages, each with one pin for the former machines.
    adopted: Vec<Fingerprint>,
    /// Slots taken over without known contents.
    reserved: Vec<u32>,
    /// Slots that were freed.
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
    /// An empty index of `bound` slots. Memory is allocated as slots are used.
    #[must_use]
    pub fn new(bound: u32) -> Self {
        Self {
            bound,
            fresh: 0,
            taken_ahead: BTreeSet::new(),
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

    /// The slot of a page. Counts as a use of the page.
    pub fn get(&mut self, key: Fingerprint) -> Option<u32> {
        let pinned = self.pinned.get(&key).map(|pinned| pinned.slot);
        let slot = pinned.or_else(|| self.idle.get(&key).copied());
        let count = if slot.is_some() { &mut self.hits } else { &mut self.misses };
        *count = count.saturating_add(1);
        slot
    }

    /// Whether a page is in the store. Does not count as a use.
    #[must_use]
    pub fn has(&self, key: Fingerprint) -> bool {
        self.pinned.contains_key(&key) || self.idle.contains(&key)
    }

    /// Allocates a slot for a page that is not in the store; if there is no free slot, evicts the
    /// least recently used page.
    ///
    /// # Errors
    /// [`Full`] when all pages are pinned.
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

    /// Allocates a slot that holds no page.
    fn unused(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        while self.fresh < self.bound {
            let slot = self.fresh;
            self.fresh += 1;
            if !self.taken_ahead.remove(&slot) {
                return Some(slot);
            }
        }
        None
    }

    /// Takes over a page that a former process put into `slot`. The page is pinned until
    /// [`release_former`](Self::release_former).
    ///
    /// Returns `false` and changes nothing if the page is in the store already, or the slot was
    /// used or taken over before.
    pub fn adopt(&mut self, key: Fingerprint, slot: u32) -> bool {
        if self.has(key) || !self.take_over(slot) {
            return false;
        }
        self.pinned.insert(key, Pinned { slot, pins: 1 });
        self.pins = self.pins.saturating_add(1);
        self.adopted.push(key);
        true
    }

    /// Takes over a slot of a former process whose contents are unknown. No page is found in it or
    /// put into it until [`release_former`](Self::release_former).
    ///
    /// Returns `false` if the slot was used or taken over before.
    pub fn reserve(&mut self, slot: u32) -> bool {
        let is_taken = self.take_over(slot);
        if is_taken {
            self.reserved.push(slot);
        }
        is_taken
    }

    fn take_over(&mut self, slot: u32) -> bool {
        (self.fresh..self.bound).contains(&slot) && self.taken_ahead.insert(slot)
    }

    /// Call this when the machines of former processes are gone. Adopted pages lose their extra
    /// pin, and reserved slots become free.
    pub fn release_former(&mut self) {
        for key in std::mem::take(&mut self.adopted) {
            self.unpin(key);
        }
        self.reserved.sort_unstable();
        // Popped from the end, so the lowest slot comes first.
        self.free.extend(self.reserved.drain(..).rev());
    }

    /// Removes a page that is not pinned and frees its slot. Returns the slot.
    pub fn remove(&mut self, key: Fingerprint) -> Option<u32> {
        let slot = self.idle.pop(&key)?;
        self.free.push(slot);
        Some(slot)
    }

    /// Pins a page once more, so that it is not evicted. Returns its slot, or `None` if the page is
    /// not in the store or has `u32::MAX` pins.
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

    /// Removes a pin. After the last one, the page counts as just used.
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

    /// The statistics.
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
    fn the_least_recently_used_page_is_evicted() {
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
    fn adopted_pages_and_reserved_slots_stay_in_place() {
        let mut index = Index::new(6);
        assert!(index.adopt(key(1), 1) && index.adopt(key(2), 3) && index.reserve(4));
        assert!(!index.adopt(key(1), 2), "the page is here");
        assert!(!index.adopt(key(3), 3) && !index.reserve(3), "the slot is taken");
        assert!(!index.adopt(key(3), 6) && !index.reserve(u32::MAX), "past the end");
        let free: Vec<u32> = (10..13).map(|n| index.insert(key(n)).unwrap().slot).collect();
        assert_eq!(free, [0, 2, 5]);
        assert!(!index.reserve(0) && !index.adopt(key(3), 5), "given out in this life");
        // Other pages evict each other, but not pages and slots that were taken over.
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
    fn a_page_that_is_pinned_again_outlasts_release_former() {
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
        /// No slot holds two pages, pinned pages never move, slots taken over stay until they are
        /// released, and the number of pins returns to 0.
        #[test]
        fn a_slot_holds_one_page(
            steps in prop::collection::vec(step(), 1..200),
            bound in 1u32..12,
        ) {
            let mut index = Index::new(bound);
            // Pages that must be in the store, with their slots and pins.
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
                    // The last pin of an adopted page belongs to the former machines.
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
