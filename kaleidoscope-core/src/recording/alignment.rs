//! Aligns the address space of a process with that of its counterpart in another guest.
//!
//! Executable, heap, mapped files and stack move independently (address-space randomization), but
//! each keeps its internal order and most of its sizes and gaps. So the stretches of resident pages
//! are aligned by sequence alignment, as two texts are: the pairing with the highest score wins,
//! where a pair scores for similar sizes, for the same gap to the previous pair, and most for the
//! same address.

use super::region::PageRange;

/// Score of a pair at the same address: more than any other pair can have.
const SAME_ADDRESS: f32 = 8.0;

/// Score of a pair whose gap to the previous pair is the same in both guests.
const SAME_GAP: f32 = 2.0;

/// Maps the stretches of a recorded process to those of another.
#[derive(Clone, Debug)]
pub(super) struct Alignment {
    from: Vec<PageRange>,
    /// The counterpart of each stretch.
    moved_to: Vec<Option<Moved>>,
}

#[derive(Clone, Copy, Debug)]
struct Moved {
    to: PageRange,
    /// Offset to add to a position, modulo 2^64.
    shift: u64,
}

impl Alignment {
    /// Aligns two lists of ascending stretches, each with at most
    /// [`MAX_STRETCHES`](super::region::MAX_STRETCHES) of them.
    pub(super) fn new(from: &[PageRange], to: &[PageRange]) -> Self {
        let mut moved_to = vec![None; from.len()];
        let pairs = best_pairs(from, to);
        for (k, &(i, j)) in pairs.iter().enumerate() {
            let (Some(a), Some(b)) = (from.get(i), to.get(j)) else { continue };
            let neighbor = |at: Option<usize>| {
                let &(i, j) = pairs.get(at?)?;
                Some((from.get(i)?, to.get(j)?))
            };
            let starts = b.start.wrapping_sub(a.start);
            let ends = b.end().wrapping_sub(a.end());
            let next = neighbor(k.checked_add(1));
            let previous = neighbor(k.checked_sub(1));
            let same_gap_before =
                previous.is_some_and(|(p, q)| q.end().wrapping_sub(p.end()) == starts);
            let same_gap_after = next.is_some_and(|(p, q)| q.start.wrapping_sub(p.start) == ends);
            // A stretch that grows keeps one end: a heap its start, a stack its end. The stack is
            // the last stretch.
            let by_end = !same_gap_before && (same_gap_after || next.is_none()) && starts != 0;
            let shift = if by_end { ends } else { starts };
            if let Some(slot) = moved_to.get_mut(i) {
                *slot = Some(Moved { to: *b, shift });
            }
        }
        Self { from: from.to_vec(), moved_to }
    }

    /// The counterpart of a position, if its stretch has one that covers it.
    pub(super) fn position(&self, position: u64) -> Option<u64> {
        let after = self.from.partition_point(|s| s.start <= position);
        let moved_to = (*self.moved_to.get(after.checked_sub(1)?)?)?;
        let translated = position.wrapping_add(moved_to.shift);
        (translated >= moved_to.to.start && translated < moved_to.to.end()).then_some(translated)
    }
}

/// The pairs with the highest total score, ascending on both sides.
fn best_pairs(from: &[PageRange], to: &[PageRange]) -> Vec<(usize, usize)> {
    let width = to.len().saturating_add(1);
    let cells = width.saturating_mul(from.len().saturating_add(1));
    // Best score of the first i and first j stretches; and the best if the last two are a pair.
    let (mut best, mut paired) = (vec![0.0f32; cells], vec![0.0f32; cells]);
    let at = |i: usize, j: usize| i.saturating_mul(width).saturating_add(j);
    let get = |scores: &[f32], i, j| scores.get(at(i, j)).copied().unwrap_or(0.0);
    for (i, a) in from.iter().enumerate() {
        for (j, b) in to.iter().enumerate() {
            let before = i.checked_sub(1).and_then(|p| from.get(p));
            let before = before.zip(j.checked_sub(1).and_then(|q| to.get(q)));
            let same_gap = before.is_some_and(|(p, q)| {
                a.start.wrapping_sub(p.end()) == b.start.wrapping_sub(q.end())
            });
            let follows = if same_gap { get(&paired, i, j) + SAME_GAP } else { 0.0 };
            let pair = score(a, b) + follows.max(get(&best, i, j));
            let skip = get(&best, i, j + 1).max(get(&best, i + 1, j));
            let here = at(i + 1, j + 1);
            if let (Some(best), Some(paired)) = (best.get_mut(here), paired.get_mut(here)) {
                *paired = pair;
                *best = pair.max(skip);
            }
        }
    }
    let (mut i, mut j) = (from.len(), to.len());
    let mut pairs = Vec::new();
    while i > 0 && j > 0 {
        let here = get(&best, i, j);
        if get(&best, i - 1, j) >= here {
            i -= 1;
        } else if get(&best, i, j - 1) >= here {
            j -= 1;
        } else {
            i -= 1;
            j -= 1;
            pairs.push((i, j));
        }
    }
    pairs.reverse();
    pairs
}

/// Score of a pair: by the similarity of their sizes, more for large stretches, most at the same
/// address.
fn score(a: &PageRange, b: &PageRange) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "a score")]
    let (small, large) = (a.pages.min(b.pages) as f32, a.pages.max(b.pages).max(1) as f32);
    let likeness = small / large;
    let same_address = if a.start == b.start { SAME_ADDRESS } else { 0.0 };
    likeness * likeness * (1.0 + small.ln_1p() * 0.5) + same_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(list: &[(u64, u64)]) -> Vec<PageRange> {
        list.iter().map(|&(start, pages)| PageRange { start, pages }).collect()
    }

    #[test]
    fn parts_move_independently() {
        // Executable, heap, libraries, stack.
        let from = [(0x946, 98), (0x22800, 2320), (0x7eff0, 10), (0x7f003, 34), (0x7ff00, 7)];
        let to = [(0x946, 98), (0x5ef7, 2330), (0x7fbb0, 10), (0x7fbc3, 34), (0x7ffd0, 9)];
        let alignment = Alignment::new(&stretches(&from), &stretches(&to));
        assert_eq!(alignment.position(0x94a), Some(0x94a), "the same address");
        assert_eq!(alignment.position(0x22800 + 5), Some(0x5ef7 + 5), "the heap grows at its end");
        assert_eq!(alignment.position(0x7f004), Some(0x7fbc4));
        assert_eq!(alignment.position(0x7ff06), Some(0x7ffd8), "the stack's end stays");
        assert_eq!(alignment.position(0x7ff07), None, "not resident");
        assert_eq!(alignment.position(5), None, "before everything");
    }

    #[test]
    fn new_stretches_are_skipped() {
        let from = [(100, 5), (200, 9), (300, 3)];
        let to = [(1100, 5), (1150, 1), (1200, 9), (1300, 3)];
        let alignment = Alignment::new(&stretches(&from), &stretches(&to));
        for (position, expected) in [(104, 1104), (208, 1208), (301, 1301)] {
            assert_eq!(alignment.position(position), Some(expected));
        }
        assert_eq!(Alignment::new(&stretches(&from), &[]).position(100), None);
    }
}
