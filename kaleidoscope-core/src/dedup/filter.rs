//! A filter that finds frames with equal partial hashes.

use super::GuestNumber;
use crate::addr::FrameIndex;
use crate::fingerprint::PartialHash;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A frame of one of the host's guests.
type Frame = (GuestNumber, FrameIndex);

/// Ends a group's list.
const NONE: u32 = u32::MAX;

/// Frames of a host's guests by the [partial hashes](PartialHash) of their pages. A frame with a
/// unique partial hash has no equal page and needs no full hash until another frame with the same
/// partial hash is added. All partial hashes must be of one [`Domain`](crate::fingerprint::Domain).
/// Takes about 32 bytes per frame.
#[derive(Clone, Debug, Default)]
pub struct PartialHashFilter {
    groups: HashMap<PartialHash, Group, RandomState>,
    members: Vec<Member>,
}

/// Frames with one partial hash, as a linked list in [`PartialHashFilter::members`].
#[derive(Clone, Copy, Debug)]
struct Group {
    first: u32,
    last: u32,
    frames: u32,
}

/// A frame, and the index of the next one in its group.
#[derive(Clone, Copy, Debug)]
struct Member {
    frame: Frame,
    next: u32,
}

/// The frames added so far that match a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialMatch {
    /// Number of frames with its partial hash, itself included.
    pub frames: u32,
    /// The first of these frames.
    pub first: (GuestNumber, FrameIndex),
}

impl PartialHashFilter {
    /// A filter without frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a frame and returns its matches. After 2^32 - 1 frames, further frames are matched but
    /// not stored.
    pub fn add(
        &mut self,
        guest: GuestNumber,
        frame: FrameIndex,
        hash: PartialHash,
    ) -> PartialMatch {
        let number = u32::try_from(self.members.len()).unwrap_or(NONE);
        let frame = (guest, frame);
        if number == NONE {
            let known = self.groups.get(&hash);
            let first = known.and_then(|known| self.members.get(known.first as usize));
            let frames = known.map_or(0, |known| known.frames).saturating_add(1);
            return PartialMatch { frames, first: first.map_or(frame, |first| first.frame) };
        }
        self.members.push(Member { frame, next: NONE });
        match self.groups.entry(hash) {
            Entry::Vacant(entry) => {
                entry.insert(Group { first: number, last: number, frames: 1 });
                PartialMatch { frames: 1, first: frame }
            }
            Entry::Occupied(mut entry) => {
                let group = entry.get_mut();
                if let Some(last) = self.members.get_mut(group.last as usize) {
                    last.next = number;
                }
                group.last = number;
                group.frames = group.frames.saturating_add(1);
                let first = self.members.get(group.first as usize);
                PartialMatch {
                    frames: group.frames,
                    first: first.map_or(frame, |first| first.frame),
                }
            }
        }
    }

    /// The frames whose partial hash occurs more than once, group by group. Larger groups come
    /// first, because n equal pages save n - 1; groups of equal size are in the order in which
    /// their first frames were added, which is the selector's order of expected savings.
    #[must_use]
    pub fn alike(&self) -> Vec<(GuestNumber, FrameIndex)> {
        let mut groups: Vec<Group> =
            self.groups.values().filter(|group| group.frames > 1).copied().collect();
        groups.sort_unstable_by_key(|group| (std::cmp::Reverse(group.frames), group.first));
        groups.iter().flat_map(|group| self.members_of(group)).collect()
    }

    fn members_of(&self, group: &Group) -> impl Iterator<Item = Frame> + '_ {
        let at = |number: u32| self.members.get(number as usize);
        let first = at(group.first);
        std::iter::successors(first, move |member| at(member.next)).map(|member| member.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(guest: u32, frame: u32) -> Frame {
        (GuestNumber(guest), FrameIndex(frame))
    }

    #[test]
    fn large_groups_come_first_and_single_frames_never() {
        let mut filter = PartialHashFilter::new();
        let mut add = |guest, at, page| {
            let (guest, at) = frame(guest, at);
            filter.add(guest, at, PartialHash(page))
        };
        assert_eq!(add(0, 1, 10), PartialMatch { frames: 1, first: frame(0, 1) });
        add(0, 2, 20);
        add(0, 3, 30);
        assert_eq!(add(1, 1, 10), PartialMatch { frames: 2, first: frame(0, 1) });
        add(1, 7, 30);
        assert_eq!(add(2, 7, 30), PartialMatch { frames: 3, first: frame(0, 3) });
        let expected = [(0, 3), (1, 7), (2, 7), (0, 1), (1, 1)].map(|(g, f)| frame(g, f));
        assert_eq!(filter.alike(), expected);
        assert!(PartialHashFilter::new().alike().is_empty());
    }

    proptest! {
        /// A frame is returned exactly if another frame has its hash.
        #[test]
        fn exactly_the_frames_with_an_equal_hash_are_returned(
            pages in proptest::collection::vec(0u64..40, 0..200),
        ) {
            let mut filter = PartialHashFilter::new();
            for (number, page) in (0..).zip(&pages) {
                let (guest, at) = frame(number % 3, number);
                let count = pages.iter().take(number as usize + 1).filter(|p| *p == page).count();
                prop_assert_eq!(filter.add(guest, at, PartialHash(*page)).frames as usize, count);
            }
            let mut found = filter.alike();
            found.sort_by_key(|frame| frame.1);
            let is_alike = |page: &u64| pages.iter().filter(|p| *p == page).count() > 1;
            let expected: Vec<_> = (0u32..)
                .zip(&pages)
                .filter(|(_, page)| is_alike(page))
                .map(|(number, _)| frame(number % 3, number))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
