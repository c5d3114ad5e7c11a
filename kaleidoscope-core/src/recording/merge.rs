//! Merges several recordings into one.

use super::pairing::{Pair, pair};
use super::{
    Entry, Key, MAX_RUNS, MergeError, RANK_ONE, RecordedRegion, Recording, Similarity, to_u32,
};
use crate::addr::Gfn;
use crate::color::Color;
use std::collections::HashMap;

impl Recording {
    /// Merges the runs of several recordings. Frame numbers, addresses and kernel are those of the
    /// first recording. Entries of other guests are translated to it through their keys; entries
    /// that only they have are added. Every *run* has the same weight, however runs are distributed
    /// over the recordings. If some recordings are hashed and others are not, the result is hashed.
    ///
    /// # Errors
    /// [`MergeError`] if there is nothing to merge, if names are hashed with different salts, or if
    /// there are too many runs.
    pub fn merge(recordings: &[Self]) -> Result<Self, MergeError> {
        let mut salts = recordings.iter().filter_map(Self::salt);
        let salt = salts.next();
        if salts.any(|other| Some(other) != salt) {
            return Err(MergeError::Salts);
        }
        let alike = |recording: &Self| match salt {
            Some(salt) => recording.clone().hashed(salt),
            None => recording.clone(),
        };
        let (first, others) = recordings.split_first().ok_or(MergeError::Empty)?;
        let mut merged = alike(first);
        for other in others {
            merged.add(&alike(other))?;
        }
        merged.entries.sort_by(Entry::order);
        Ok(merged)
    }

    fn add(&mut self, other: &Self) -> Result<(), MergeError> {
        let runs = self.runs.checked_add(other.runs).filter(|runs| *runs <= MAX_RUNS);
        let runs = runs.ok_or(MergeError::Runs)?;
        let same_image = self.image == other.image;
        let likeness = if same_image {
            Similarity::Snapshot
        } else if self.kernel == other.kernel {
            Similarity::Kernel
        } else {
            Similarity::Other
        };
        let pairs = pair(other, self, likeness);
        let mut numbers = vec![None; other.regions.len()];
        let mut known: HashMap<(Key, Option<Gfn>), usize> = HashMap::new();
        for (place, entry) in self.entries.iter().enumerate() {
            known.insert(identity(entry, entry.key), place);
        }
        for entry in &other.entries {
            let gfn = entry.gfn.filter(|_| same_image);
            let Some(key) = self.key_of(entry, other, &pairs, &mut numbers) else { continue };
            let entry = Entry { gfn, key, ..*entry };
            match known.get(&identity(&entry, key)).and_then(|at| self.entries.get_mut(*at)) {
                Some(same) => {
                    // Only a damaged recording holds a frame twice.
                    same.runs = same.runs.saturating_add(entry.runs).min(runs);
                    let most = u64::from(same.runs).saturating_mul(RANK_ONE);
                    same.ranks = same.ranks.saturating_add(entry.ranks).min(most);
                    same.gfn = same.gfn.or(gfn);
                }
                None => {
                    known.insert(identity(&entry, key), self.entries.len());
                    self.entries.push(entry);
                }
            }
        }
        self.runs = runs;
        Ok(())
    }

    /// The key of another recording's entry in this one, to which its region is added if necessary.
    /// `None` for frames that cannot be identified in this guest.
    fn key_of(
        &mut self,
        entry: &Entry,
        other: &Self,
        pairs: &[Option<Pair>],
        numbers: &mut [Option<u32>],
    ) -> Option<Key> {
        let Some(number) = entry.key.region() else {
            // A bare frame number is meaningless in another guest.
            return (self.image == other.image).then_some(Key::Frame);
        };
        let pair = pairs.get(number as usize)?.as_ref();
        let region = match pair {
            Some(pair) => pair.to,
            None => self
                .add_region(numbers.get_mut(number as usize)?, other.regions.get(number as usize)?),
        };
        Some(match entry.key {
            Key::Frame => Key::Frame,
            Key::Position { position, nth, .. } => {
                let position = match pair {
                    Some(pair) => pair.position(position)?,
                    None => position,
                };
                Key::Position { region, position, nth }
            }
            // The n-th frame of a slab cache holds other objects in another guest.
            Key::Rank { .. } if self.image != other.image && entry.color != Color::PageTable => {
                return None;
            }
            Key::Rank { rank, .. } => Key::Rank { region, rank },
        })
    }

    /// The number of a region that this guest does not have; the first call adds the region.
    fn add_region(&mut self, number: &mut Option<u32>, region: &RecordedRegion) -> u32 {
        *number.get_or_insert_with(|| {
            self.regions.push(region.clone());
            to_u32(self.regions.len()).saturating_sub(1)
        })
    }
}

/// Identity of an entry: its key or, for bare frames, the frame number.
fn identity(entry: &Entry, key: Key) -> (Key, Option<Gfn>) {
    (key, entry.gfn.filter(|_| key == Key::Frame))
}
