//! The guest frames that are RAM, and their dense numbering.

use crate::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex, GPA_LIMIT, Gfn, Gpa};
use thiserror::Error;

/// Maximum number of RAM regions, more than any real machine has; bounds the work that a hostile
/// image header can cause.
const MAX_REGIONS: usize = 4096;

/// One contiguous run of RAM frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRegion {
    /// First frame.
    pub start: Gfn,
    /// Number of frames, at least one.
    pub frames: u32,
    /// Index of the first frame.
    pub first_index: FrameIndex,
}

/// Why a set of RAM regions is not a valid layout.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// An address or a size is not a multiple of 4 KiB.
    #[error("RAM region at {gpa}, {bytes:#x} bytes: address and size must be multiples of 4096")]
    Unaligned {
        /// First address of the region.
        gpa: Gpa,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The region has no frames, or reaches past the 52-bit physical address space.
    #[error("RAM region at {gpa}, {bytes:#x} bytes: empty, or past the physical address space")]
    OutOfRange {
        /// First address of the region.
        gpa: Gpa,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Two regions share frames.
    #[error("RAM region at {gpa} overlaps the region before it")]
    Overlap {
        /// First address of the later region.
        gpa: Gpa,
    },
    /// There is no RAM at all, too many regions, or more than 2^32 - 1 frames.
    #[error(
        "{regions} RAM regions with {frames} frames: 1 to 4096 regions and fewer than 2^32 \
         frames are supported"
    )]
    Size {
        /// Number of regions given.
        regions: usize,
        /// Total number of frames.
        frames: u64,
    },
}

/// The guest's RAM: sorted, disjoint regions, and the mapping between frame numbers and frame
/// indices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryLayout {
    regions: Vec<RamRegion>,
    frames: u32,
}

impl MemoryLayout {
    /// A layout of `(first address, bytes)` regions, in any order. Adjacent regions are merged.
    ///
    /// # Errors
    /// [`LayoutError`] if regions are unaligned, empty, overlapping, out of range or too many.
    pub fn new(regions: &[(Gpa, u64)]) -> Result<Self, LayoutError> {
        let total: u64 = regions.iter().fold(0, |sum, r| sum.saturating_add(r.1 / FRAME_SIZE));
        let size = LayoutError::Size { regions: regions.len(), frames: total };
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(size);
        }
        let total = u32::try_from(total).map_err(|_| size.clone())?;
        if total == u32::MAX {
            return Err(size);
        }
        let mut sorted = regions.to_vec();
        sorted.sort_by_key(|r| r.0);
        let mut out: Vec<RamRegion> = Vec::with_capacity(sorted.len());
        let mut end = Gpa(0);
        let mut next = 0u32;
        for (gpa, bytes) in sorted {
            if gpa.0 % FRAME_SIZE != 0 || bytes % FRAME_SIZE != 0 {
                return Err(LayoutError::Unaligned { gpa, bytes });
            }
            let region_end = gpa.checked_add(bytes).filter(|e| bytes > 0 && e.0 <= GPA_LIMIT);
            let region_end = region_end.ok_or(LayoutError::OutOfRange { gpa, bytes })?;
            if gpa < end {
                return Err(LayoutError::Overlap { gpa });
            }
            let frames = u32::try_from(bytes / FRAME_SIZE).map_err(|_| size.clone())?;
            match out.last_mut().filter(|_| gpa == end) {
                Some(last) => last.frames += frames,
                None => {
                    out.push(RamRegion { start: gpa.gfn(), frames, first_index: FrameIndex(next) });
                }
            }
            next += frames;
            end = region_end;
        }
        Ok(Self { regions: out, frames: total })
    }

    /// RAM without holes, from address 0.
    ///
    /// # Errors
    /// [`LayoutError`] if `bytes` is zero, unaligned or too large.
    pub fn contiguous(bytes: u64) -> Result<Self, LayoutError> {
        Self::new(&[(Gpa(0), bytes)])
    }

    /// Number of RAM frames.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Size of RAM in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.frames) * FRAME_SIZE
    }

    /// The regions, by ascending address.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// One past the highest RAM frame number.
    #[must_use]
    pub fn end_gfn(&self) -> Gfn {
        self.regions.last().map_or(Gfn(0), |r| Gfn(r.start.0 + u64::from(r.frames)))
    }

    /// Index of a frame, or `None` if the frame is not RAM.
    #[must_use]
    pub fn index_of(&self, gfn: Gfn) -> Option<FrameIndex> {
        let at = self.regions.partition_point(|r| r.start <= gfn).checked_sub(1)?;
        let region = self.regions.get(at)?;
        let offset = u32::try_from(gfn.0 - region.start.0).ok().filter(|&o| o < region.frames)?;
        Some(FrameIndex(region.first_index.0 + offset))
    }

    /// Frame number at an index, or `None` past the end.
    #[must_use]
    pub fn gfn_of(&self, index: FrameIndex) -> Option<Gfn> {
        if index.0 >= self.frames {
            return None;
        }
        let at = self.regions.partition_point(|r| r.first_index <= index).checked_sub(1)?;
        let region = self.regions.get(at)?;
        Some(Gfn(region.start.0 + u64::from(index.0 - region.first_index.0)))
    }

    /// The region that holds `gpa`, with the number of RAM bytes from `gpa` to the region's end.
    #[must_use]
    pub fn span_at(&self, gpa: Gpa) -> Option<(RamRegion, u64)> {
        let at = self.regions.partition_point(|r| r.start.gpa() <= gpa).checked_sub(1)?;
        let region = *self.regions.get(at)?;
        let end = region.start.gpa().0 + u64::from(region.frames) * FRAME_SIZE;
        (gpa.0 < end).then(|| (region, end - gpa.0))
    }

    /// Byte range of the `len` bytes at `gpa` in all RAM in frame-index order; `None` unless they
    /// lie in one region.
    #[must_use]
    pub fn bytes_at(&self, gpa: Gpa, len: usize) -> Option<std::ops::Range<usize>> {
        let (region, left) = self.span_at(gpa)?;
        if u64::try_from(len).ok()? > left {
            return None;
        }
        let in_region = usize::try_from(gpa.0 - region.start.gpa().0).ok()?;
        let start =
            region.first_index.as_usize().checked_mul(FRAME_BYTES)?.checked_add(in_region)?;
        Some(start..start.checked_add(len)?)
    }

    /// The RAM among the `frames` frames from `first` on, as parts of regions, by ascending
    /// address. Ranges without RAM cost nothing, whatever their length.
    pub fn parts(&self, first: Gfn, frames: u64) -> impl Iterator<Item = RamRegion> + '_ {
        let end = first.0.saturating_add(frames);
        let from = self.regions.partition_point(|r| r.start.0 + u64::from(r.frames) <= first.0);
        let regions = self.regions.get(from..).unwrap_or_default().iter();
        regions.take_while(move |r| r.start.0 < end).filter_map(move |r| {
            let skipped = u32::try_from(first.0.saturating_sub(r.start.0)).ok()?;
            let start = Gfn(r.start.0 + u64::from(skipped));
            let kept = u32::try_from(end.checked_sub(start.0)?).unwrap_or(u32::MAX);
            let frames = r.frames.checked_sub(skipped)?.min(kept);
            let first_index = FrameIndex(r.first_index.0 + skipped);
            (frames > 0).then_some(RamRegion { start, frames, first_index })
        })
    }

    /// The frames with these indices, as parts of regions, by ascending index. Indices past the end
    /// are ignored.
    pub fn parts_of(&self, frames: std::ops::Range<u32>) -> impl Iterator<Item = RamRegion> + '_ {
        let end = |r: &RamRegion| r.first_index.0.saturating_add(r.frames);
        let from = self.regions.partition_point(|r| end(r) <= frames.start);
        let regions = self.regions.get(from..).unwrap_or_default().iter();
        regions.take_while(move |r| r.first_index.0 < frames.end).filter_map(move |r| {
            let skipped = frames.start.saturating_sub(r.first_index.0);
            let first_index = FrameIndex(r.first_index.0.saturating_add(skipped));
            let frames = end(r).min(frames.end).checked_sub(first_index.0)?;
            let start = Gfn(r.start.0.saturating_add(u64::from(skipped)));
            (frames > 0).then_some(RamRegion { start, frames, first_index })
        })
    }

    /// Every frame in index order.
    pub fn iter(&self) -> impl Iterator<Item = (FrameIndex, Gfn)> + '_ {
        self.regions.iter().flat_map(|r| {
            (0..r.frames).map(|i| (FrameIndex(r.first_index.0 + i), Gfn(r.start.0 + u64::from(i))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn holes_are_skipped() {
        let layout = MemoryLayout::new(&[(Gpa(0x1_0000_0000), 0x2000), (Gpa(0), 0x3000)]).unwrap();
        assert_eq!(layout.frames(), 5);
        assert_eq!(layout.index_of(Gfn(2)), Some(FrameIndex(2)));
        assert_eq!(layout.index_of(Gfn(3)), None);
        assert_eq!(layout.index_of(Gfn(0x10_0001)), Some(FrameIndex(4)));
        assert_eq!(layout.gfn_of(FrameIndex(3)), Some(Gfn(0x10_0000)));
        assert_eq!(layout.gfn_of(FrameIndex(5)), None);
        assert_eq!(layout.span_at(Gpa(0x2fff)).map(|s| s.1), Some(1));
        assert_eq!(layout.span_at(Gpa(0x3000)), None);
    }

    #[test]
    fn touching_regions_become_one() {
        let layout = MemoryLayout::new(&[(Gpa(0x1000), 0x1000), (Gpa(0), 0x1000)]).unwrap();
        assert_eq!(layout.regions().len(), 1);
        assert_eq!(layout.span_at(Gpa(0)).map(|s| s.1), Some(0x2000));
    }

    #[test]
    fn bad_regions_are_named() {
        let unaligned = MemoryLayout::new(&[(Gpa(0x10), 0x1000)]);
        assert!(matches!(unaligned, Err(LayoutError::Unaligned { gpa: Gpa(0x10), .. })));
        let overlap = MemoryLayout::new(&[(Gpa(0), 0x2000), (Gpa(0x1000), 0x1000)]);
        assert_eq!(overlap, Err(LayoutError::Overlap { gpa: Gpa(0x1000) }));
        assert!(matches!(MemoryLayout::new(&[]), Err(LayoutError::Size { .. })));
        assert!(matches!(MemoryLayout::contiguous(!0xfff), Err(LayoutError::Size { .. })));
        let high = MemoryLayout::new(&[(Gpa(GPA_LIMIT), 0x1000)]);
        assert!(matches!(high, Err(LayoutError::OutOfRange { .. })));
    }

    proptest! {
        #[test]
        fn index_and_gfn_are_inverse(gaps in prop::collection::vec((0u64..50, 1u64..50), 1..8)) {
            let mut at = 0;
            let mut regions = Vec::new();
            for (gap, frames) in gaps {
                at += gap;
                regions.push((Gfn(at).gpa(), frames * FRAME_SIZE));
                at += frames;
            }
            let layout = MemoryLayout::new(&regions).unwrap();
            for gfn in 0..at + 3 {
                // The oracle: the number of RAM frames below.
                let inside = |g: u64| {
                    let holds = |start: u64, frames: u64| g >= start && g < start + frames;
                    regions.iter().any(|r| holds(r.0.gfn().0, r.1 / FRAME_SIZE))
                };
                let expected = inside(gfn).then(|| (0..gfn).filter(|&g| inside(g)).count());
                prop_assert_eq!(layout.index_of(Gfn(gfn)).map(FrameIndex::as_usize), expected);
            }
            for first in 0..at + 3 {
                for frames in [0, 1, 2, 30, u64::MAX] {
                    let parts = layout.parts(Gfn(first), frames);
                    let frames_of = |p: RamRegion| {
                        (0..p.frames).map(move |i| (p.start.0 + u64::from(i), p.first_index.0 + i))
                    };
                    let found: Vec<_> = parts.flat_map(frames_of).collect();
                    let last = first.saturating_add(frames).min(at);
                    let expected = (first..last)
                        .filter_map(|g| Some((g, layout.index_of(Gfn(g))?.0)))
                        .collect::<Vec<_>>();
                    prop_assert_eq!(found, expected);
                }
            }
            for (index, gfn) in layout.iter() {
                prop_assert_eq!(layout.gfn_of(index), Some(gfn));
                prop_assert_eq!(layout.index_of(gfn), Some(index));
            }
        }
    }
}
