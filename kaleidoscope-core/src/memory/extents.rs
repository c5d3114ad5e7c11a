//! Which frames an image stores, and which are holes: known without reading them.
//!
//! Sparse images are common: a guest rarely touches all its RAM, and hot-pluggable memory is
//! described long before it is plugged in. Code that visits every frame should visit the [data
//! parts](data_parts) instead, so that its cost grows with the data and not with the address space.

use super::{GuestMemory, MemoryLayout, RamRegion};
use crate::addr::FrameIndex;
use std::ops::Range;

/// How an image holds a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Backing {
    /// The frame is stored, so its bytes must be read.
    Data,
    /// Nothing is stored for the frame, and every byte of it reads as zero.
    Hole,
    /// The image lacks every byte of the frame; reading fails with
    /// [`MemoryError::Missing`](super::MemoryError::Missing).
    Missing,
}

/// Consecutive frames that an image holds in the same way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The frames, by frame index; never empty.
    pub frames: Range<u32>,
    /// How the image holds them.
    pub backing: Backing,
}

/// The extents of these frames, in order, without gaps. Adjacent extents may have the same backing.
pub fn extents<M>(memory: &M, frames: Range<u32>) -> impl Iterator<Item = Extent> + '_
where
    M: GuestMemory + ?Sized,
{
    let end = frames.end.min(memory.layout().frames());
    let mut at = frames.start;
    std::iter::from_fn(move || {
        let start = Some(at).filter(|&start| start < end)?;
        let extent = memory.extent(FrameIndex(start));
        // Advance by at least one frame, whatever an implementation returns, so that the iteration
        // ends.
        at = extent.frames.end.clamp(start.saturating_add(1), end);
        Some(Extent { frames: start..at, backing: extent.backing })
    })
}

/// The runs of stored frames in `frames` (frame indices), ascending. Each run lies in one RAM
/// region.
pub fn data_parts<M>(memory: &M, frames: Range<u32>) -> impl Iterator<Item = RamRegion> + '_
where
    M: GuestMemory + ?Sized,
{
    let stored = extents(memory, frames).filter(|extent| extent.backing == Backing::Data);
    stored.flat_map(|extent| memory.layout().parts_of(extent.frames))
}

/// Every stored frame, by ascending frame index.
pub fn data_frames<M>(memory: &M) -> impl Iterator<Item = FrameIndex> + '_
where
    M: GuestMemory + ?Sized,
{
    let all = 0..memory.layout().frames();
    let stored = extents(memory, all).filter(|extent| extent.backing == Backing::Data);
    stored.flat_map(|extent| extent.frames.map(FrameIndex))
}

/// A table of extents, for implementations of [`GuestMemory`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ExtentTable {
    /// First frame and backing of each extent, ascending; the first one starts at frame 0.
    starts: Vec<(u32, Backing)>,
    frames: u32,
}

impl ExtentTable {
    /// A table with these extents, in ascending order, for the frames of a layout. All other frames
    /// are [`Backing::Data`]. If an extent overlaps its predecessor, the predecessor counts.
    pub(crate) fn new(layout: &MemoryLayout, extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut table = Self { starts: vec![(0, Backing::Data)], frames: layout.frames() };
        let mut end = 0;
        for Extent { frames, backing } in extents {
            let frames = frames.start.max(end)..frames.end.min(table.frames);
            if frames.is_empty() {
                continue;
            }
            table.begin(frames.start, backing);
            table.begin(frames.end, Backing::Data);
            end = frames.end;
        }
        table
    }

    /// Starts an extent at `frame`, unless the backing stays the same.
    fn begin(&mut self, frame: u32, backing: Backing) {
        if self.starts.last().is_some_and(|last| last.0 == frame) {
            self.starts.pop();
        }
        if self.starts.last().is_none_or(|last| last.1 != backing) {
            self.starts.push((frame, backing));
        }
    }

    /// The rest of the extent that holds a frame, from that frame on; past the end of RAM, one
    /// frame of data.
    pub(crate) fn extent(&self, frame: FrameIndex) -> Extent {
        let next = self.starts.partition_point(|start| start.0 <= frame.0);
        let of = next.checked_sub(1).and_then(|at| self.starts.get(at));
        let end = self.starts.get(next).map_or(self.frames, |start| start.0);
        let backing = of.filter(|_| frame.0 < self.frames).map_or(Backing::Data, |start| start.1);
        Extent { frames: frame.0..end.max(frame.0.saturating_add(1)), backing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Gfn, Gpa};
    use crate::memory::{MemoryError, VecMemory};
    use proptest::prelude::*;

    struct Sparse(VecMemory, ExtentTable);

    impl GuestMemory for Sparse {
        fn layout(&self) -> &MemoryLayout {
            self.0.layout()
        }
        fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
            self.0.read(gpa, buf)
        }
        fn extent(&self, frame: FrameIndex) -> Extent {
            self.1.extent(frame)
        }
    }

    fn backing(number: u8) -> Backing {
        [Backing::Data, Backing::Hole, Backing::Missing][usize::from(number) % 3]
    }

    proptest! {
        #[test]
        fn a_table_agrees_with_a_list_of_frames(
            runs in prop::collection::vec((0u32..6, 0u32..6, 0u8..3), 0..12),
            gap in 1u32..40,
        ) {
            let frames = 40;
            let first = u64::from(gap.min(frames - 1)) << 12;
            let rest = (u64::from(frames) << 12) - first;
            let regions = [(Gpa(0), first), (Gpa(first + 0x5000), rest)];
            let layout = MemoryLayout::new(&regions).unwrap();
            let mut expected = vec![Backing::Data; frames as usize];
            let (mut at, mut given) = (0, Vec::new());
            for (skip, len, kind) in runs {
                at += skip;
                given.push(Extent { frames: at..at + len, backing: backing(kind) });
                for frame in at..(at + len).min(frames) {
                    expected[frame as usize] = backing(kind);
                }
                at += len;
            }
            let table = ExtentTable::new(&layout, given);
            let memory = Sparse(VecMemory::zeroed(layout.clone()), table.clone());
            let seen = extents(&memory, 0..u32::MAX).flat_map(|e| e.frames.map(move |_| e.backing));
            prop_assert_eq!(&seen.collect::<Vec<_>>(), &expected);
            for (frame, expected) in (0..).zip(&expected) {
                let extent = table.extent(FrameIndex(frame));
                prop_assert_eq!(extent.backing, *expected);
                prop_assert!(extent.frames.contains(&frame));
            }
            let stored = |frame: &u32| expected[*frame as usize] == Backing::Data;
            let stored: Vec<u32> = (0..frames).filter(stored).collect();
            let found: Vec<_> = data_frames(&memory).map(|frame| frame.0).collect();
            prop_assert_eq!(&found, &stored);
            let parts = data_parts(&memory, 3..30).flat_map(|part| {
                let gfn = move |n: u32| Gfn(part.start.0 + u64::from(n));
                (0..part.frames).map(move |n| (part.first_index.0 + n, gfn(n)))
            });
            let gfn = |frame: &u32| layout.gfn_of(FrameIndex(*frame)).unwrap();
            let inside = stored.iter().filter(|frame| (3..30).contains(*frame));
            prop_assert_eq!(
                parts.collect::<Vec<_>>(),
                inside.map(|frame| (*frame, gfn(frame))).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn past_the_end_there_is_nothing_to_know() {
        let layout = MemoryLayout::contiguous(0x3000).unwrap();
        let hole = Extent { frames: 0..9, backing: Backing::Hole };
        let table = ExtentTable::new(&layout, [hole]);
        assert_eq!(table.extent(FrameIndex(1)), Extent { frames: 1..3, backing: Backing::Hole });
        assert_eq!(table.extent(FrameIndex(3)), Extent { frames: 3..4, backing: Backing::Data });
        let last = table.extent(FrameIndex(u32::MAX));
        assert_eq!(last.backing, Backing::Data);
        let memory = Sparse(VecMemory::zeroed(layout), table);
        assert_eq!(data_frames(&memory).count(), 0);
        assert_eq!(extents(&memory, 2..2).count(), 0);
        assert_eq!(extents(&memory, 5..u32::MAX).count(), 0);
    }
}
