//! What hashing a set of guests has saved.

use super::GuestNumber;
use crate::addr::FrameIndex;
use crate::color::Color;
use crate::fingerprint::Fingerprint;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Counts of frames and pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Frames of which some lines were read and hashed.
    pub glanced: u64,
    /// Frames that were hashed.
    pub hashed: u64,
    /// Pages that can be dropped because an equal one is kept: n equal pages count n - 1.
    pub shared: u64,
    /// Of these, pages whose equal one is in the same guest.
    pub within: u64,
    /// Of the shared pages, those that were needed again because clones wrote to them.
    pub diverged: u64,
    /// Frames that were read and hold nothing but zeros. They are neither hashed nor shared.
    pub zero: u64,
}

impl Tally {
    /// Pages that stay saved.
    #[must_use]
    pub fn net(&self) -> u64 {
        self.shared.saturating_sub(self.diverged)
    }
}

/// A color's part in a [`Tally`]. A saved page counts with the frame that was hashed later.
pub type ColorTally = Tally;

/// Equal pages.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// The first one of them.
    first: (GuestNumber, FrameIndex),
    copies: u32,
    /// Copies that are written to later.
    written: u32,
    /// One bit for each guest that has one; guests past 63 share bits.
    guests: u64,
}

impl Group {
    /// Pages saved by sharing, and those of them that writing takes back: a copy that is written to
    /// needs a page of its own, and the others go on sharing one.
    fn saved_and_lost(&self) -> (u32, u32) {
        let saved = self.copies.saturating_sub(1);
        (saved, self.written.min(saved))
    }
}

/// Hashed frames of several guests by their bytes, and what sharing them saves.
#[derive(Clone, Debug, Default)]
pub struct SharingStatistics {
    groups: HashMap<Fingerprint, Group, RandomState>,
    total: Tally,
    colors: [Tally; Color::ALL.len()],
}

impl SharingStatistics {
    /// A sharing without frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a hashed frame, which is written to later or not. Returns how many copies of its page
    /// there are now, and the first one of them.
    pub fn add(
        &mut self,
        frame: (GuestNumber, FrameIndex),
        color: Color,
        page: Fingerprint,
        is_written: bool,
    ) -> (u32, (GuestNumber, FrameIndex)) {
        let group = self.groups.entry(page).or_insert(Group {
            first: frame,
            copies: 0,
            written: 0,
            guests: 0,
        });
        let (saved, lost) = group.saved_and_lost();
        let guest = 1 << (frame.0.0 % 64);
        let is_within = group.guests & guest != 0;
        group.guests |= guest;
        group.copies = group.copies.saturating_add(1);
        group.written = group.written.saturating_add(u32::from(is_written));
        let (now_saved, now_lost) = group.saved_and_lost();
        let change = Tally {
            hashed: 1,
            shared: u64::from(now_saved.saturating_sub(saved)),
            within: u64::from(is_within),
            diverged: u64::from(now_lost.saturating_sub(lost)),
            ..Tally::default()
        };
        let found = (group.copies, group.first);
        self.count(color, &change);
        found
    }

    /// Counts a frame of which some lines were read and hashed.
    pub fn add_glanced(&mut self, color: Color) {
        self.count(color, &Tally { glanced: 1, ..Tally::default() });
    }

    /// Counts a frame that was read and is zero.
    pub fn add_zero(&mut self, color: Color) {
        self.count(color, &Tally { zero: 1, ..Tally::default() });
    }

    fn count(&mut self, color: Color, change: &Tally) {
        let of_color = self.colors.get_mut(color as usize);
        for tally in of_color.into_iter().chain([&mut self.total]) {
            tally.glanced += change.glanced;
            tally.hashed += change.hashed;
            tally.shared += change.shared;
            tally.within += change.within;
            tally.diverged += change.diverged;
            tally.zero += change.zero;
        }
    }

    /// All frames.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.total
    }

    /// Colors of which a frame was read.
    pub fn colors(&self) -> impl Iterator<Item = (Color, ColorTally)> + '_ {
        let tallies = Color::ALL.into_iter().zip(self.colors);
        tallies.filter(|(_, tally)| *tally != Tally::default())
    }

    /// How many copies of a page are known.
    #[must_use]
    pub fn copies(&self, page: Fingerprint) -> u32 {
        self.groups.get(&page).map_or(0, |group| group.copies)
    }

    /// The most that any choice of `hashes` frames could have saved, by who knows all pages before:
    /// those with the most copies first.
    #[must_use]
    pub fn bound(&self, hashes: u64) -> u64 {
        let mut groups: Vec<_> = self.groups.values().map(|g| (g.copies, g.written)).collect();
        // A written copy is a hash in vain; who knows it leaves it out.
        let mut sizes: Vec<u64> = groups
            .drain(..)
            .map(|(copies, written)| u64::from(copies - written.min(copies)))
            .collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut left = hashes;
        let mut saved = 0;
        for size in sizes {
            let taken = size.min(left);
            if taken < 2 {
                break;
            }
            saved += taken - 1;
            left -= taken;
        }
        saved
    }
}
