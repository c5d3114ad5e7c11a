//! Partial hashes: names for a few lines of a page, by which pages that are certainly different are
//! told apart without reading all of them.

use crate::addr::FRAME_BYTES;
use crate::memory::Page;
use twox_hash::XxHash3_64;

/// Bytes of a line: what a processor reads from memory at once.
const LINE_BYTES: usize = 64;
const LINES: usize = FRAME_BYTES / LINE_BYTES;

/// Lines that are hashed of every page: the middle of each quarter. Headers, which many pages have
/// in common, are at the start of a page.
const FIXED: [usize; 4] = [7, 23, 39, 55];

/// Bytes that are hashed: the first line that is not zero and the last one, their places, and the
/// fixed lines.
const SAMPLE_BYTES: usize = (FIXED.len() + 2) * LINE_BYTES + 2;

/// A name for some lines of a page. Equal pages of a [`Domain`](super::Domain) have equal ones; of
/// pages with equal ones, on real guests, 92 to 99 of a hundred are equal. It decides only what is
/// worth a [`Fingerprint`](super::Fingerprint), never that pages are equal: who makes pages with
/// the same lines has the host make hashes in vain, and no more of them than its budget.
///
/// The first and the last line that are not zero tell pages apart that are nearly empty, such as
/// slabs and tables; both have to be found anyway, to know pages of zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartialHash(pub u64);

impl PartialHash {
    /// The hash of a page; `None` for one of zeros.
    pub(super) fn of(page: &Page, seed: u64) -> Option<Self> {
        let (lines, _) = page.as_chunks::<LINE_BYTES>();
        let is_used = |line: &[u8; LINE_BYTES]| line.iter().fold(0, |all, byte| all | byte) != 0;
        let first = lines.iter().position(is_used)?;
        let last = lines.iter().rposition(is_used)?;
        let mut sample = [0; SAMPLE_BYTES];
        let (places, rest) = sample.split_at_mut(2);
        for (place, line) in places.iter_mut().zip([first, last]) {
            *place = u8::try_from(line).unwrap_or(u8::MAX);
        }
        let (slots, _) = rest.as_chunks_mut::<LINE_BYTES>();
        for (slot, line) in slots.iter_mut().zip([first, last].iter().chain(&FIXED)) {
            if let Some(line) = lines.get(*line) {
                *slot = *line;
            }
        }
        Some(Self(XxHash3_64::oneshot_with_seed(seed, &sample)))
    }
}

const _: () = assert!(LINES <= u8::MAX as usize && FIXED[3] < LINES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::{Content, Domain};
    use proptest::prelude::*;

    #[test]
    fn zeros_have_no_hash_and_one_byte_is_found_anywhere() {
        let mut page = [0; FRAME_BYTES];
        assert_eq!(PartialHash::of(&page, 1), None);
        let mut seen = std::collections::HashSet::new();
        for at in 0..FRAME_BYTES {
            page[at] = 1;
            assert!(seen.insert(PartialHash::of(&page, 1)), "byte {at}");
            page[at] = 0;
        }
    }

    #[test]
    fn domains_do_not_meet() {
        let page = [5; FRAME_BYTES];
        let [one, same, other] = [1, 1, 2].map(|n| Domain::new([n; 32]).partial_content(&page));
        assert_eq!(one, same);
        assert_ne!(one, other);
        assert_eq!(Domain::new([1; 32]).partial_content(&[0; FRAME_BYTES]), Content::Zero);
    }

    proptest! {
        /// Only lines that are said to count do, and zero means zero as it does for fingerprints.
        #[test]
        fn a_page_is_judged_by_its_lines(
            used in proptest::collection::vec((0..LINES, 1u8..), 0..8),
            (line, byte) in (0..LINES, 1u8..),
        ) {
            let mut page = [0; FRAME_BYTES];
            for (line, byte) in &used {
                page[line * LINE_BYTES + usize::from(*byte) % LINE_BYTES] = *byte;
            }
            let domain = Domain::new([3; 32]);
            let before = domain.partial_content(&page);
            prop_assert_eq!(before == Content::Zero, domain.content(&page) == Content::Zero);
            let ends = [used.iter().map(|u| u.0).min(), used.iter().map(|u| u.0).max()];
            page[line * LINE_BYTES + 5] ^= byte;
            let counts = FIXED.contains(&line)
                || ends[0].is_none_or(|first| line <= first)
                || ends[1].is_none_or(|last| line >= last);
            prop_assert_eq!(before != domain.partial_content(&page), counts);
        }
    }
}
