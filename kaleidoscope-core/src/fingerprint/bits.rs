//! A set of frames with constant-time rank.
//!
//! `bitvec` has no rank index: each lookup would count all bits before the frame.

use crate::addr::FrameIndex;

/// Frames per word.
const WORD: u32 = 64;

/// A set of frames: one bit per frame of the guest, and one count per 64 frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bits {
    frames: u32,
    words: Vec<u64>,
    /// Number of members before each word.
    before: Vec<u32>,
}

impl Bits {
    /// A set of these frames of a guest with `frames` frames; frames past the end are ignored.
    pub(super) fn of(frames: u32, members: impl IntoIterator<Item = FrameIndex>) -> Self {
        let mut words = vec![0u64; frames.div_ceil(WORD) as usize];
        for member in members.into_iter().filter(|member| member.0 < frames) {
            if let Some(word) = words.get_mut((member.0 / WORD) as usize) {
                *word |= 1 << (member.0 % WORD);
            }
        }
        Self::counted(frames, words)
    }

    fn counted(frames: u32, words: Vec<u64>) -> Self {
        let mut count = 0u32;
        let before = words.iter().map(|word| {
            let before = count;
            count = count.saturating_add(word.count_ones());
            before
        });
        Self { frames, before: before.collect(), words }
    }

    /// The set as bytes: bit n of byte m is frame 8 m + n.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(byte_len(self.frames));
        bytes
    }

    /// The set in these bytes, or `None` if the number of bytes is wrong or a bit past the end is
    /// set.
    pub(super) fn from_bytes(frames: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != byte_len(frames) {
            return None;
        }
        let word = |bytes: &[u8]| {
            bytes.iter().rev().fold(0u64, |word, byte| (word << 8) | u64::from(*byte))
        };
        let words: Vec<u64> = bytes.chunks(8).map(word).collect();
        let past = match frames % WORD {
            0 => 0,
            used => words.last().map_or(0, |last| last >> used),
        };
        (past == 0).then(|| Self::counted(frames, words))
    }

    pub(super) fn contains(&self, frame: FrameIndex) -> bool {
        let word = self.words.get((frame.0 / WORD) as usize);
        word.is_some_and(|word| word & (1 << (frame.0 % WORD)) != 0)
    }

    /// Number of members before this member; `None` if it is not a member.
    pub(super) fn rank(&self, frame: FrameIndex) -> Option<usize> {
        let at = (frame.0 / WORD) as usize;
        let (word, before) = (self.words.get(at)?, self.before.get(at)?);
        let bit = 1u64 << (frame.0 % WORD);
        (word & bit != 0).then(|| *before as usize + (word & (bit - 1)).count_ones() as usize)
    }

    pub(super) fn len(&self) -> u32 {
        let last = self.words.last().map_or(0, |word| word.count_ones());
        self.before.last().map_or(0, |before| before.saturating_add(last))
    }

    pub(super) fn is_disjoint(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).all(|(one, other)| one & other == 0)
    }

    /// The members in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = FrameIndex> + '_ {
        (0u32..).zip(&self.words).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(FrameIndex(at * WORD + bit))
            })
        })
    }
}

fn byte_len(frames: u32) -> usize {
    frames.div_ceil(8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn sets_agree_with_a_tree(
            frames in 1u32..300,
            members in prop::collection::btree_set(0u32..330, 0..80),
        ) {
            let bits = Bits::of(frames, members.iter().copied().map(FrameIndex));
            let expected: BTreeSet<u32> = members.into_iter().filter(|m| *m < frames).collect();
            prop_assert_eq!(bits.len() as usize, expected.len());
            prop_assert!(bits.iter().map(|f| f.0).eq(expected.iter().copied()));
            for frame in 0..frames + 70 {
                let rank = expected.contains(&frame).then(|| expected.range(..frame).count());
                prop_assert_eq!(bits.rank(FrameIndex(frame)), rank);
                prop_assert_eq!(bits.contains(FrameIndex(frame)), rank.is_some());
            }
            prop_assert_eq!(Bits::from_bytes(frames, &bits.to_bytes()), Some(bits));
        }
    }

    #[test]
    fn bytes_of_another_set_are_refused() {
        assert!(Bits::from_bytes(9, &[0xff, 1]).is_some());
        for wrong in [&[0xff][..], &[0xff, 2], &[0, 0, 0], &[]] {
            assert_eq!(Bits::from_bytes(9, wrong), None, "{wrong:?}");
        }
    }
}
