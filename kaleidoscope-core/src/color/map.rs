//! The color map: one record per frame of a guest.

use super::trusted::FreeFrameTrust;
use super::{Color, FrameKind, Order, Region, RegionId, Temperature};
use crate::addr::{FrameIndex, Gfn};
use crate::memory::{MemoryLayout, SnapshotId};
use std::sync::Arc;
use thiserror::Error;

/// Region number of frames that are in no region.
const NO_REGION: u32 = u32::MAX;

/// Attributes of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Use of the frame in the guest kernel.
    pub kind: FrameKind,
    /// The frame's color.
    pub color: Color,
    /// The region that contains the frame, if any.
    pub region: Option<RegionId>,
    /// The frame's position in the region's order; see [`Order`]. 0 outside a region.
    pub position: u64,
    /// Hints of recent use.
    pub temperature: Temperature,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            kind: FrameKind::Unknown,
            color: Color::Unknown,
            region: None,
            position: 0,
            temperature: Temperature::NONE,
        }
    }
}

/// Identity of the guest kernel, as found in memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KernelIdentity {
    /// Operating system family, `linux` or empty when none was recognized.
    pub os: String,
    /// Release, such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The version banner; empty if not found.
    pub banner: String,
    /// Build ID of the kernel image in hexadecimal; empty if not found.
    pub build_id: String,
    /// Paging mode, such as `x86-64 4-level`.
    pub paging: String,
}

/// Why per-frame records do not form a map.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum MapError {
    /// The number of frame records differs from the layout's.
    #[error("{records} frame records for {frames} frames of RAM")]
    Length {
        /// Records given.
        records: usize,
        /// Frames of the layout.
        frames: u32,
    },
    /// A frame names a region that does not exist, or a region of another kind.
    #[error("frame {gfn} of kind {kind} cannot be in region {region}")]
    Region {
        /// The frame.
        gfn: Gfn,
        /// Its kind.
        kind: FrameKind,
        /// The region number in the frame's record.
        region: u32,
    },
}

/// Kind, color, region, position and temperature of every frame of a guest.
///
/// Takes 15 bytes per frame. A map is immutable, so clones share its storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColorMap {
    inner: Arc<Inner>,
    contradictions: u32,
    free_frames: FreeFrameTrust,
}

#[derive(PartialEq, Eq, Debug)]
struct Inner {
    layout: MemoryLayout,
    kernel: KernelIdentity,
    kinds: Vec<FrameKind>,
    colors: Vec<Color>,
    region_of: Vec<u32>,
    positions: Vec<u64>,
    temperatures: Vec<Temperature>,
    regions: Vec<Region>,
}

impl ColorMap {
    /// Builds a map from frame records in frame-index order. The regions' `id` and `frames` are
    /// computed here; the caller's values are overwritten.
    ///
    /// # Errors
    /// [`MapError`] when the number of records differs from the layout's, or a record names a
    /// region that does not exist or is of another kind.
    pub fn new(
        layout: MemoryLayout,
        kernel: KernelIdentity,
        frames: impl IntoIterator<Item = Frame>,
        mut regions: Vec<Region>,
    ) -> Result<Self, MapError> {
        let n = layout.frames() as usize;
        let (mut kinds, mut colors) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut region_of, mut positions) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut temperatures = Vec::with_capacity(n);
        for (id, region) in (0..).zip(&mut regions) {
            (region.id, region.frames) = (RegionId(id), 0);
        }
        for frame in frames {
            if kinds.len() == n {
                return Err(MapError::Length { records: n + 1, frames: layout.frames() });
            }
            let region = frame.region.map_or(NO_REGION, |r| r.0);
            if frame.region.is_some() {
                let target = regions.get_mut(region as usize).filter(|r| r.kind == frame.kind);
                let Some(target) = target else {
                    let index = FrameIndex(u32::try_from(kinds.len()).unwrap_or(u32::MAX));
                    let gfn = layout.gfn_of(index).unwrap_or_default();
                    return Err(MapError::Region { gfn, kind: frame.kind, region });
                };
                target.frames += 1;
            }
            kinds.push(frame.kind);
            colors.push(frame.color);
            region_of.push(region);
            positions.push(frame.position);
            temperatures.push(frame.temperature);
        }
        if kinds.len() != n {
            return Err(MapError::Length { records: kinds.len(), frames: layout.frames() });
        }
        let columns =
            Inner { layout, kernel, kinds, colors, region_of, positions, temperatures, regions };
        Ok(Self::of(columns))
    }

    /// A map of a guest of which nothing is known: every frame is unknown, in no region. What a
    /// clone is served by when coloring fails; a policy then goes by frame numbers.
    #[must_use]
    pub fn unknown(layout: MemoryLayout) -> Self {
        let n = layout.frames() as usize;
        let frame = Frame::default();
        let columns = Inner {
            layout,
            kernel: KernelIdentity::default(),
            kinds: vec![frame.kind; n],
            colors: vec![frame.color; n],
            region_of: vec![NO_REGION; n],
            positions: vec![frame.position; n],
            temperatures: vec![frame.temperature; n],
            regions: Vec::new(),
        };
        Self::of(columns)
    }

    fn of(columns: Inner) -> Self {
        let free_frames = FreeFrameTrust::default();
        Self { inner: Arc::new(columns), contradictions: 0, free_frames }
    }

    /// Records the number of contradictions among the facts that the map was made from.
    #[must_use]
    pub fn with_contradictions(self, contradictions: u32) -> Self {
        Self { contradictions, ..self }
    }

    /// Number of contradictions among the facts that the map was made from. If it is not 0, free
    /// frames must be fetched like all other frames; see
    /// [`FreeFrames::allowed_by`](crate::clone::FreeFrames::allowed_by).
    #[must_use]
    pub fn contradictions(&self) -> u32 {
        self.contradictions
    }

    /// Whether the free frames of the snapshot that this map was made from may be filled with
    /// zeros. Set by [`color()`](crate::coloring::color) if the evidence allows it, and by
    /// [`Manifest::verify`](crate::manifest::Manifest::verify); `false` for all other maps, such as
    /// those of a manifest that was read and not verified.
    #[must_use]
    pub fn has_trusted_free_frames(&self) -> bool {
        self.contradictions == 0 && self.free_frames.is_established()
    }

    /// Whether the free frames of this snapshot may be filled with zeros: the map was made from it,
    /// or verified against it, and [has trusted free frames](Self::has_trusted_free_frames).
    #[must_use]
    pub fn trusts_free_frames_of(&self, snapshot: SnapshotId) -> bool {
        self.contradictions == 0 && self.free_frames.is_of(snapshot)
    }

    /// Records that the free frames of this snapshot may be filled with zeros. The caller vouches
    /// that the map was made from it, and that its kernel relies on no free frame's contents
    /// ([`trust`](crate::coloring::trust)). `None` stands for a snapshot without an id.
    #[must_use]
    pub fn with_trusted_free_frames(self, snapshot: Option<SnapshotId>) -> Self {
        Self { free_frames: FreeFrameTrust::established(snapshot), ..self }
    }

    /// The same map with another record of what may be done with free frames.
    pub(crate) fn with_free_frames(self, free_frames: FreeFrameTrust) -> Self {
        Self { free_frames, ..self }
    }

    pub(crate) fn free_frames(&self) -> FreeFrameTrust {
        self.free_frames
    }

    /// The guest's RAM.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.inner.layout
    }

    /// The guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> &KernelIdentity {
        &self.inner.kernel
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.kinds.len()
    }

    /// Whether the map has no frames. Always false, since a layout has at least one frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.kinds.is_empty()
    }

    /// The record of one frame, or `None` past the end.
    #[must_use]
    pub fn frame(&self, index: FrameIndex) -> Option<Frame> {
        let i = index.as_usize();
        Some(Frame {
            kind: *self.inner.kinds.get(i)?,
            color: *self.inner.colors.get(i)?,
            region: self.inner.region_of.get(i).filter(|&&r| r != NO_REGION).map(|&r| RegionId(r)),
            position: *self.inner.positions.get(i)?,
            temperature: *self.inner.temperatures.get(i)?,
        })
    }

    /// Every frame in index order.
    pub fn iter(&self) -> impl Iterator<Item = (FrameIndex, Gfn, Frame)> + '_ {
        self.inner.layout.iter().filter_map(|(i, gfn)| Some((i, gfn, self.frame(i)?)))
    }

    /// Kinds in frame-index order.
    #[must_use]
    pub fn kinds(&self) -> &[FrameKind] {
        &self.inner.kinds
    }

    /// Colors in frame-index order.
    #[must_use]
    pub fn colors(&self) -> &[Color] {
        &self.inner.colors
    }

    /// Region numbers in frame-index order, and `u32::MAX` outside a region.
    pub(crate) fn region_numbers(&self) -> &[u32] {
        &self.inner.region_of
    }

    /// Positions in frame-index order; 0 outside a region.
    #[must_use]
    pub fn positions(&self) -> &[u64] {
        &self.inner.positions
    }

    /// Temperatures in frame-index order.
    #[must_use]
    pub fn temperatures(&self) -> &[Temperature] {
        &self.inner.temperatures
    }

    /// All regions; a [`RegionId`] is a position in this slice.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.inner.regions
    }

    /// One region, or `None` if no region has this number.
    #[must_use]
    pub fn region(&self, id: RegionId) -> Option<&Region> {
        self.inner.regions.get(id.0 as usize)
    }

    /// The frames of every region in its natural order.
    #[must_use]
    pub fn members(&self) -> Members {
        Members::new(self)
    }
}

/// The frames of every region, sorted by position (ties by frame index).
#[derive(Clone, Debug)]
pub struct Members {
    starts: Vec<usize>,
    frames: Vec<FrameIndex>,
}

impl Members {
    fn new(map: &ColorMap) -> Self {
        let mut starts = Vec::with_capacity(map.inner.regions.len() + 1);
        let mut total = 0usize;
        for region in &map.inner.regions {
            starts.push(total);
            total += region.frames as usize;
        }
        starts.push(total);
        let mut next = starts.clone();
        let mut frames = vec![FrameIndex(0); total];
        for (index, &region) in (0u32..).zip(&map.inner.region_of) {
            // ColorMap::new counted the frames, so each slot exists; NO_REGION has no slot.
            if let Some(slot) = next.get_mut(region as usize) {
                if let Some(frame) = frames.get_mut(*slot) {
                    *frame = FrameIndex(index);
                }
                *slot += 1;
            }
        }
        let key =
            |f: &FrameIndex| (map.inner.positions.get(f.as_usize()).copied().unwrap_or(0), *f);
        for window in starts.windows(2) {
            let (&[start, end], frames) = (window.first_chunk().unwrap_or(&[0, 0]), &mut frames);
            if let Some(run) = frames.get_mut(start..end)
                && !run.is_sorted_by_key(key)
            {
                sort_runs(run, key);
            }
        }
        Self { starts, frames }
    }

    /// The frames of one region in its natural order; empty for a region that does not exist.
    #[must_use]
    pub fn of(&self, region: RegionId) -> &[FrameIndex] {
        let at = region.0 as usize;
        let range = self.starts.get(at).zip(self.starts.get(at.saturating_add(1)));
        range.and_then(|(&start, &end)| self.frames.get(start..end)).unwrap_or(&[])
    }
}

/// Sorting moves whole runs of consecutive positions, such as the allocator's blocks, if runs are
/// longer than this many frames on average.
const LONG_RUN: usize = 8;

/// Sorts frames by position, then by frame index.
fn sort_runs(frames: &mut [FrameIndex], key: impl Fn(&FrameIndex) -> (u64, FrameIndex)) {
    let are_neighbors = |a: &FrameIndex, b: &FrameIndex| key(a).0.checked_add(1) == Some(key(b).0);
    if frames.chunk_by(are_neighbors).count() < frames.len() / LONG_RUN {
        let mut runs: Vec<_> = frames.chunk_by(are_neighbors).collect();
        runs.sort_unstable_by_key(|run| run.first().map(&key));
        let sorted = runs.concat();
        frames.copy_from_slice(&sorted);
    }
    // Runs that overlap are not sorted yet.
    if !frames.is_sorted_by_key(&key) {
        frames.sort_unstable_by_key(key);
    }
}

impl Region {
    /// A region without frames yet.
    #[must_use]
    pub fn new(kind: FrameKind, order: Order, name: impl Into<String>) -> Self {
        let id = RegionId::default();
        Self { id, kind, order, name: name.into(), frames: 0, anchor: None }
    }

    /// Path of a cached file in its file system, without what precedes it in the name:
    /// `/usr/bin/python3`. `None` for regions that are no file's, and for files without a known
    /// path.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        if self.order != Order::FileOffset {
            return None;
        }
        self.name.splitn(4, ':').nth(3).filter(|path| !path.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;

    fn layout() -> MemoryLayout {
        MemoryLayout::new(&[(Gpa(0), 0x3000), (Gpa(0x10000), 0x1000)]).unwrap()
    }

    fn file(region: u32, position: u64) -> Frame {
        let region = Some(RegionId(region));
        Frame {
            kind: FrameKind::File,
            color: Color::FileCache,
            region,
            position,
            ..Frame::default()
        }
    }

    #[test]
    fn members_are_in_natural_order() {
        let regions = vec![
            Region::new(FrameKind::File, Order::FileOffset, "a"),
            Region::new(FrameKind::File, Order::FileOffset, "b"),
        ];
        let frames = [file(1, 7), file(0, 0), file(1, 3), Frame::default()];
        let map = ColorMap::new(layout(), KernelIdentity::default(), frames, regions).unwrap();
        assert_eq!(map.regions()[1].frames, 2);
        let members = map.members();
        assert_eq!(members.of(RegionId(0)), [FrameIndex(1)]);
        assert_eq!(members.of(RegionId(1)), [FrameIndex(2), FrameIndex(0)]);
        assert!(members.of(RegionId(2)).is_empty());
        assert!(members.of(RegionId(u32::MAX)).is_empty());
        assert_eq!(map.frame(FrameIndex(0)), Some(frames[0]));
        assert_eq!(map.frame(FrameIndex(4)), None);
    }

    #[test]
    fn members_are_sorted_however_they_lie() {
        // Blocks of 64 frames in permuted order. The last blocks may overlap, which is unusual but
        // possible.
        for overlaps in [false, true] {
            let positions = (0..1024_u64).map(|frame| {
                let block = frame / 64 * 7 % 16;
                let start = if overlaps && block > 12 { 12 * 64 + 10 } else { block * 64 };
                start + frame % 64
            });
            let positions: Vec<u64> = positions.collect();
            let frames = positions.iter().map(|position| file(0, *position));
            let regions = vec![Region::new(FrameKind::File, Order::FileOffset, "a")];
            let layout = MemoryLayout::contiguous(1024 << 12).unwrap();
            let map = ColorMap::new(layout, KernelIdentity::default(), frames, regions).unwrap();
            let mut expected: Vec<_> = (0..1024).map(FrameIndex).collect();
            expected.sort_by_key(|frame| (positions[frame.as_usize()], *frame));
            assert_eq!(map.members().of(RegionId(0)), expected);
        }
    }

    #[test]
    fn records_must_fit() {
        let build = |frames: Vec<Frame>| {
            let regions = vec![Region::new(FrameKind::Slab, Order::KernelAddress, "dentry")];
            ColorMap::new(layout(), KernelIdentity::default(), frames, regions)
        };
        let default = Frame::default();
        assert!(matches!(build(vec![default; 3]), Err(MapError::Length { records: 3, .. })));
        assert!(matches!(build(vec![default; 5]), Err(MapError::Length { .. })));
        let wrong_kind = build(vec![default, file(0, 0), default, default]);
        assert!(matches!(wrong_kind, Err(MapError::Region { gfn: Gfn(1), region: 0, .. })));
        let missing = build(vec![file(u32::MAX, 0), default, default, default]);
        assert!(matches!(missing, Err(MapError::Region { gfn: Gfn(0), .. })));
    }

    #[test]
    fn regions_have_their_number_and_files_their_path() {
        let names = ["ext4:65024:1234:/usr/bin/a:b", "ext4:65024:77:", "short"];
        let file = |name| Region::new(FrameKind::File, Order::FileOffset, name);
        let mut regions: Vec<Region> = names.map(file).into();
        regions.push(Region::new(FrameKind::Anonymous, Order::UserAddress, "a:b:c:/d[812]"));
        let frames = (0..4).map(|_| Frame::default());
        let map = ColorMap::new(layout(), KernelIdentity::default(), frames, regions).unwrap();
        let paths: Vec<_> = map.regions().iter().map(Region::path).collect();
        assert_eq!(paths, [Some("/usr/bin/a:b"), None, None, None]);
        for region in map.regions() {
            assert_eq!(map.region(region.id), Some(region));
        }
        assert_eq!(map.regions()[3].id, RegionId(3));
    }
}
