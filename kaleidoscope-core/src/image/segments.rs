//! The guest-physical ranges that an image file holds.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::addr::{FRAME_SIZE, Gpa};
use std::ops::Range;

/// A run of guest-physical memory that is contiguous in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Length in bytes, at least one.
    pub bytes: u64,
    /// File offset of the first byte, in bytes. It need not be aligned.
    pub file_offset: u64,
}

impl Segment {
    /// One past the last address. Segments in a table never reach past the address space.
    pub(super) fn end(&self) -> u64 {
        self.gpa.0.saturating_add(self.bytes)
    }

    /// One past the last byte in the file.
    pub(super) fn file_end(&self) -> u64 {
        self.file_offset.saturating_add(self.bytes)
    }
}

/// Sorted, disjoint segments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct SegmentTable {
    segments: Vec<Segment>,
}

impl SegmentTable {
    /// A table of segments that are sorted by address and do not overlap.
    pub(super) fn from_sorted(segments: Vec<Segment>) -> Self {
        let mut table = Self::default();
        segments.into_iter().for_each(|segment| table.push(segment));
        table
    }

    /// Appends a segment. Callers add by ascending address, without overlap; a segment that
    /// continues the last one both in memory and in the file extends it.
    pub(super) fn push(&mut self, next: Segment) {
        if next.bytes == 0 {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.end() == next.gpa.0 && last.file_end() == next.file_offset => {
                last.bytes = last.bytes.saturating_add(next.bytes);
            }
            Some(last) => {
                debug_assert!(last.end() <= next.gpa.0, "segments are added in order");
                self.segments.push(next);
            }
            None => self.segments.push(next),
        }
    }

    pub(super) fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment that holds `gpa`, and how far into it `gpa` is.
    #[inline]
    fn find(&self, gpa: Gpa) -> Option<(&Segment, u64)> {
        let segment = match self.segments.as_slice() {
            [only] => only,
            many => many.get(many.partition_point(|s| s.gpa <= gpa).checked_sub(1)?)?,
        };
        let into = gpa.0.checked_sub(segment.gpa.0)?;
        (into < segment.bytes).then_some((segment, into))
    }

    /// File range of the bytes from `gpa` on, at most `len` bytes and up to the end of the segment.
    #[inline]
    pub(super) fn locate(&self, gpa: Gpa, len: usize) -> Option<Range<usize>> {
        let (segment, into) = self.find(gpa)?;
        let left = usize::try_from(segment.bytes.checked_sub(into)?).unwrap_or(usize::MAX);
        let start = usize::try_from(segment.file_offset.checked_add(into)?).ok()?;
        Some(start..start.checked_add(len.min(left))?)
    }

    /// Offset in the file of the frame at `gpa`, if one segment holds all of it.
    pub(super) fn frame_offset(&self, gpa: Gpa) -> Option<u64> {
        let (segment, into) = self.find(gpa)?;
        if segment.bytes.checked_sub(into)? < FRAME_SIZE {
            return None;
        }
        segment.file_offset.checked_add(into)
    }

    /// Whether every byte of the frame at `gpa` is held, possibly by several segments.
    pub(super) fn holds_frame(&self, gpa: Gpa) -> bool {
        let Some(end) = gpa.checked_add(FRAME_SIZE) else { return false };
        let mut at = gpa;
        while at < end {
            match self.find(at) {
                Some((segment, _)) => at = Gpa(segment.end()),
                None => return false,
            }
        }
        true
    }

    /// Number of frames that are held completely.
    pub(super) fn held_frames(&self) -> u64 {
        let mut frames = 0u64;
        let mut segments = self.segments.iter().peekable();
        while let Some(first) = segments.next() {
            let mut end = first.end();
            while let Some(next) = segments.next_if(|s| s.gpa.0 == end) {
                end = next.end();
            }
            let first_frame = first.gpa.0.div_ceil(FRAME_SIZE);
            frames = frames.saturating_add((end / FRAME_SIZE).saturating_sub(first_frame));
        }
        frames
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(segments: &[(u64, u64, u64)]) -> SegmentTable {
        let mut table = SegmentTable::default();
        for &(gpa, bytes, file_offset) in segments {
            table.push(Segment { gpa: Gpa(gpa), bytes, file_offset });
        }
        table
    }

    #[test]
    fn continued_segments_become_one() {
        let joined = table(&[(0, 0x1000, 0x40), (0x1000, 0x1000, 0x1040)]);
        assert_eq!(joined.as_slice().len(), 1);
        assert_eq!(joined.locate(Gpa(0xfff), 2), Some(0x103f..0x1041));
        let apart = table(&[(0, 0x1000, 0x40), (0x1000, 0x1000, 0x2000)]);
        assert_eq!(apart.as_slice().len(), 2);
        assert_eq!(apart.locate(Gpa(0xfff), 2), Some(0x103f..0x1040));
    }

    #[test]
    fn a_frame_in_two_pieces_is_held_but_has_no_single_offset() {
        let split = table(&[(0, 0x800, 0), (0x800, 0x800, 0x4000)]);
        assert!(split.holds_frame(Gpa(0)));
        assert_eq!(split.frame_offset(Gpa(0)), None);
        assert_eq!(split.held_frames(), 1);
        let tail = table(&[(0, 0x1800, 0)]);
        assert!(!tail.holds_frame(Gpa(0x1000)));
        assert_eq!(tail.held_frames(), 1);
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_byte_map(
            pieces in prop::collection::vec((0u64..3, 1u64..5, 0u64..50), 0..6),
        ) {
            // Units of 2 KiB, so that frames get split.
            let mut map = vec![None; 64];
            let mut segments = Vec::new();
            let mut at = 0;
            for (gap, len, offset) in pieces {
                at += gap;
                segments.push((at * 0x800, len * 0x800, offset * 0x800));
                for i in 0..len {
                    map[usize::try_from(at + i).unwrap()] = Some((offset + i) * 0x800);
                }
                at += len;
            }
            let table = table(&segments);
            let mut held = 0;
            for (unit, expected) in map.iter().enumerate() {
                let gpa = Gpa(unit as u64 * 0x800);
                let found = table.locate(gpa, 1).map(|r| r.start as u64);
                prop_assert_eq!(found, *expected);
                if unit % 2 == 0 {
                    let whole = expected.is_some() && map[unit + 1].is_some();
                    prop_assert_eq!(table.holds_frame(gpa), whole);
                    held += u64::from(whole);
                }
            }
            prop_assert_eq!(table.held_frames(), held);
        }
    }
}
