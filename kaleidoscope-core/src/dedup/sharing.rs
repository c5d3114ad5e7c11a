//! Statistics of hashing and sharing among a set of guests.

use super::GuestNumber;
use crate::addr::FrameIndex;
use crate::color::Color;
use crate::fingerprint::Fingerprint;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Counts of frames and pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Frames whose partial hash was computed.
    pub glanced: u64,
    /// Frames whose full hash was computed.
    pub hashed: u64,
    /// Pages that can be dropped because an equal one is kept: n equal pages count n - 1.
    pub shared: u64,
    /// Of these, pages whose equal page is in the same guest.
    pub within: u64,
    /// Of the shared pages, those that clones wrote to, which are no longer saved.
    pub diverged: u64,
    /// Frames that were read and are all zeros. They are neither hashed nor shared.
    pub zero: u64,
}

impl Tally {
    /// Pages that stay saved: shared and not diverged.
    #[must_use]
    pub fn net(&self) -> u64 {
        self.shared.saturating_sub(self.diverged)
    }
}

/// The part of a [`Tally`] for one color. A saved page counts for the frame that was hashed later.
pub type ColorTally = Tally;

/// Equal pages.
#[derive(Clone, Copy, Debug)]
struct Group {
    /// The frame that was added first.
    first: (GuestNumber, FrameIndex),
    copies: u32,
    /// Copies that are written to later.
    written: u32,
    /// One bit per guest that has a copy; guests 64 and up share bits (number modulo 64).
    guests: u64,
}

impl Group {
    /// Pages saved by sharing, and those of them lost to writes: a copy that is written to needs
    /// its own page, and the others go on sharing one.
    fn saved_and_lost(&self) -> (u32, u32) {
        let saved = self.copies.saturating_sub(1);
        (saved, self.written.min(saved))
    }
}

/// Hashed frames of several guests by fingerprint, and the pages that sharing them saves.
#[derive(Clone, Debug, Default)]
pub struct SharingStatistics {
    groups: HashMap<Fingerprint, Group, RandomState>,
    total: Tally,
    colors: [Tally; Color::ALL.len()],
}

impl SharingStatistics {
    /// Statistics without frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a hashed frame; `is_written` says whether a clone writes to it later. Returns the
    /// number of copies of its page so far, and the frame that was added first.
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

    /// Counts a frame whose partial hash was computed.
    pub fn add_glanced(&mut self, color: Color) {
        self.count(color, &Tally { glanced: 1, ..Tally::default() });
    }

    /// Counts a frame that was read and is all zeros.
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

    /// The counts of all frames.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.total
    }

    /// The colors with a nonzero count.
    pub fn colors(&self) -> impl Iterator<Item = (Color, ColorTally)> + '_ {
        let tallies = Color::ALL.into_iter().zip(self.colors);
        tallies.filter(|(_, tally)| *tally != Tally::default())
    }

    /// Number of known copies of a page.
    #[must_use]
    pub fn copies(&self, page: Fingerprint) -> u32 {
        self.groups.get(&page).map_or(0, |group| group.copies)
    }

    /// Upper bound of the pages saved with `hashes` full hashes: an oracle that knows all pages
    /// hashes those with the most copies first.
    #[must_use]
    pub fn bound(&self, hashes: u64) -> u64 {
        let mut groups: Vec<_> = self.groups.values().map(|g| (g.copies, g.written)).collect();
        // A copy that is written later wastes its hash; the oracle leaves it out.
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
