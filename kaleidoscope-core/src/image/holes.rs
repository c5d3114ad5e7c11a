//! Finds which parts of a file are stored, and so which frames of an image are holes.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::segments::SegmentTable;
use crate::addr::{FRAME_SIZE, Gfn};
use crate::memory::{Backing, Extent, ExtentTable, MemoryLayout};
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::ops::Range;

/// Number of lseek(2) queries after which the minimum size of a hole doubles. This bounds time and
/// memory for files in very many pieces.
const QUERIES_PER_STEP: u32 = if cfg!(test) { 8 } else { 1 << 16 };

/// Maximum number of extents of an image. Segments of a hostile file may overlap, and each may
/// cover all holes.
const MAX_EXTENTS: usize = 1 << 20;

/// The stored parts of a file of `len` bytes, ascending and disjoint. A part may contain holes;
/// outside of the parts the file stores nothing. If the file system cannot tell, the whole file is
/// one part.
pub(super) fn stored_parts(file: &File, len: u64) -> Vec<Range<u64>> {
    find_parts(len, |from| match seek(file, SeekFrom::Data(from)) {
        Ok(start) => seek(file, SeekFrom::Hole(start)).ok().map(|end| Some(start..end)),
        Err(rustix::io::Errno::NXIO) => Some(None),
        Err(_) => None,
    })
}

/// The same with a query function: `next` returns the first run of stored bytes that ends after an
/// offset, `Some(None)` if there is none, and `None` if it cannot tell.
fn find_parts(
    len: u64,
    mut next: impl FnMut(u64) -> Option<Option<Range<u64>>>,
) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let (mut at, mut queries, mut min_hole) = (0, 0_u32, 0_u64);
    while at < len {
        let run = match next(at) {
            // A run that does not advance is not an answer either.
            Some(Some(run)) if run.start >= at && run.start < run.end => run,
            Some(None) => break,
            Some(Some(_)) | None => {
                match parts.last_mut() {
                    Some(last) if last.end == at => last.end = len,
                    _ => parts.push(at..len),
                }
                break;
            }
        };
        if run.start >= len {
            break;
        }
        at = run.end.saturating_add(min_hole).min(len);
        match parts.last_mut() {
            Some(last) if last.end == run.start => last.end = at,
            _ => parts.push(run.start..at),
        }
        queries = queries.saturating_add(1);
        if queries.is_multiple_of(QUERIES_PER_STEP) {
            min_hole = min_hole.saturating_mul(2).max(FRAME_SIZE);
        }
    }
    parts
}

/// The extents of an image that are missing or holes, from the stored parts of its file.
pub(super) fn table(
    layout: &MemoryLayout,
    segments: &SegmentTable,
    stored: &[Range<u64>],
) -> ExtentTable {
    let mut extents = Vec::new();
    let mut add = |range: Range<u64>, backing| {
        let (first, end) = (range.start.div_ceil(FRAME_SIZE), range.end / FRAME_SIZE);
        for part in layout.parts(Gfn(first), end.saturating_sub(first)) {
            let frames = part.first_index.0..part.first_index.0.saturating_add(part.frames);
            // Frames past the limit count as data, which is always correct.
            if extents.len() < MAX_EXTENTS {
                extents.push(Extent { frames, backing });
            }
        }
        extents.len() < MAX_EXTENTS
    };
    let mut end = 0;
    for segment in segments.as_slice() {
        if !add(end..segment.gpa.0, Backing::Missing) {
            break;
        }
        end = segment.end();
        let gpa =
            |offset: u64| segment.gpa.0.saturating_add(offset.saturating_sub(segment.file_offset));
        let mut gaps = gaps(stored, segment.file_offset..segment.file_end());
        if !gaps.all(|gap| add(gpa(gap.start)..gpa(gap.end), Backing::Hole)) {
            break;
        }
    }
    add(end..layout.end_gfn().gpa().0, Backing::Missing);
    ExtentTable::new(layout, extents)
}

/// The parts of `range` outside these parts.
fn gaps(parts: &[Range<u64>], range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let from = parts.partition_point(|part| part.end <= range.start);
    let parts = parts.get(from..).unwrap_or_default().iter();
    let inside = parts.take_while(move |part| part.start < range.end).cloned();
    let mut at = range.start;
    inside.chain(std::iter::once(range.end..range.end)).filter_map(move |part| {
        let gap = at..part.start;
        at = part.end;
        (gap.start < gap.end).then_some(gap)
    })
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]
mod tests {
    use super::*;
    use crate::addr::{FrameIndex, Gpa};
    use crate::image::Segment;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    /// A query function for a list of 4 KiB blocks.
    fn runs(blocks: &[bool]) -> impl FnMut(u64) -> Option<Option<Range<u64>>> + '_ {
        |from| {
            let block = |at: u64| usize::try_from(at / FRAME_SIZE).unwrap();
            let start = (block(from)..blocks.len()).find(|at| blocks[*at]);
            Some(start.map(|start| {
                let end = (start..blocks.len()).find(|at| !blocks[*at]).unwrap_or(blocks.len());
                (start as u64 * FRAME_SIZE).max(from)..end as u64 * FRAME_SIZE
            }))
        }
    }

    proptest! {
        #[test]
        fn nothing_outside_the_parts_is_stored(
            blocks in prop::collection::vec(any::<bool>(), 1..300),
        ) {
            let mut queries = 0;
            let mut next = runs(&blocks);
            let parts = find_parts(blocks.len() as u64 * FRAME_SIZE, |from| {
                queries += 1;
                next(from)
            });
            prop_assert!(parts.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(parts.iter().all(|part| part.start < part.end));
            let covered = |block: usize| {
                let at = block as u64 * FRAME_SIZE;
                parts.iter().any(|part| part.contains(&at))
            };
            let lost = (0..blocks.len()).find(|block| blocks[*block] && !covered(*block));
            prop_assert_eq!(lost, None);
            // 300 blocks have up to 150 runs: 8 are found one by one, then the minimum hole grows
            // to one block, then to two.
            prop_assert!(queries <= 8 * 6 + 1, "{} queries", queries);
            if blocks.windows(2).filter(|pair| pair[0] != pair[1]).count() < 14 {
                let wrong = (0..blocks.len()).find(|block| blocks[*block] != covered(*block));
                prop_assert_eq!(wrong, None, "few runs are found exactly");
            }
        }

        #[test]
        fn extents_agree_with_the_bytes(
            pieces in prop::collection::vec((0u64..3, 1u64..6, 0u64..24), 0..6),
            blocks in prop::collection::vec(any::<bool>(), 8),
        ) {
            // Units of 2 KiB, so that frames get split; 48 units of memory in two regions.
            let layout = [(Gpa(0), 0x5000), (Gpa(0x6000), 0x1_2000)];
            let layout = MemoryLayout::new(&layout).unwrap();
            let mut segments = SegmentTable::default();
            let mut unit = [Backing::Missing; 80];
            let mut at = 0;
            for (gap, len, offset) in pieces {
                at += gap;
                let (gpa, bytes, file_offset) = (Gpa(at << 11), len << 11, offset << 11);
                segments.push(Segment { gpa, bytes, file_offset });
                for n in 0..len {
                    let block = usize::try_from((offset + n) / 2).unwrap();
                    let is_stored = blocks.get(block).copied().unwrap_or(true);
                    let of = if is_stored { Backing::Data } else { Backing::Hole };
                    unit[usize::try_from(at + n).unwrap()] = of;
                }
                at += len;
            }
            let mut stored = find_parts(8 * FRAME_SIZE, runs(&blocks));
            stored.push(8 * FRAME_SIZE..1 << 40);
            let table = table(&layout, &segments, &stored);
            for (frame, gfn) in layout.iter() {
                let at = usize::try_from(gfn.0 * 2).unwrap();
                let halves = [unit[at], unit[at + 1]];
                let backing = table.extent(frame).backing;
                if backing != Backing::Data {
                    prop_assert_eq!(halves, [backing; 2], "{:?}", gfn);
                }
                // Frames in one aligned piece of the file are known exactly; unaligned pieces may
                // share a block.
                let aligned = |offset: u64| offset.is_multiple_of(FRAME_SIZE);
                if segments.frame_offset(gfn.gpa()).is_some_and(aligned) {
                    prop_assert_eq!(backing, halves[0], "{:?}", gfn);
                }
            }
        }
    }

    #[test]
    fn file_systems_that_cannot_tell_store_everything() {
        let all = vec![Range { start: 0, end: 0x5000 }];
        assert_eq!(find_parts(0x5000, |_| None), all);
        assert_eq!(find_parts(0x5000, |at| Some(Some(at..at))), all);
        assert_eq!(find_parts(0x5000, |_| Some(Some(0..0x1000))), all);
        assert_eq!(find_parts(0x5000, |_| Some(None)), []);
        assert_eq!(find_parts(0x5000, |_| Some(Some(0x6000..0x7000))), []);
    }

    #[test]
    fn segments_over_the_same_holes_are_bounded() {
        let stored: Vec<_> = (0..2000_u64).map(|n| n * 0x2000..n * 0x2000 + 0x1000).collect();
        let mut segments = SegmentTable::default();
        for n in 0..1000 {
            segments.push(Segment { gpa: Gpa(n << 24), bytes: 2000 << 13, file_offset: 0 });
        }
        let layout = MemoryLayout::contiguous(1000 << 24).unwrap();
        let table = table(&layout, &segments, &stored);
        assert_eq!(table.extent(FrameIndex(1)).backing, Backing::Hole);
        assert_eq!(table.extent(FrameIndex(999 << 12 | 1)).backing, Backing::Data);
    }

    #[test]
    fn a_sparse_file_is_known() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 100], 0x10_0000).unwrap();
        file.write_all_at(&[1; 100], 0x200_0fff).unwrap();
        let parts = stored_parts(&file, 64 << 20);
        let stored: u64 = parts.iter().map(|part| part.end - part.start).sum();
        assert!(stored < 1 << 20, "the temporary folder's file system has holes: {parts:x?}");
        for at in [0x10_0000, 0x10_0063, 0x200_0fff, 0x200_1062] {
            assert!(parts.iter().any(|part| part.contains(&at)), "{at:#x} of {parts:x?}");
        }
    }
}
