//! The locality: a color map arranged for policies, so that related frames are neighbors.

use super::Class;
use super::class::{Classes, SMALL_FILE};
use crate::addr::FrameIndex;
use crate::color::{Color, ColorMap, FrameKind, Members, RegionId};
use crate::memory::MemoryLayout;
use std::ops::Range;
use std::sync::Arc;

/// A place in the locality: a frame's position when all frames are sorted by region and, within
/// one, by its natural order.
pub type Position = u32;

/// A color map with every frame's neighbors in its region at hand.
///
/// All frames lie on one line: first the small files, in the order in which their inodes lie in
/// memory, which is about that in which they were first opened; then the other regions; last the
/// frames without a region. Each region's frames are in its natural order. A block of related
/// frames is a range of this line. Built once per parent and shared by all of its clones (13 bytes
/// per frame beside the map).
#[derive(Clone, Debug)]
pub struct LocalityOrder {
    map: ColorMap,
    /// Frames by place.
    order: Vec<FrameIndex>,
    /// Place of every frame.
    places: Vec<Position>,
    /// Stretch of the line that each frame belongs to: a region's number, or one past the last.
    stretches: Vec<u32>,
    /// Places of each stretch.
    ranges: Vec<Range<Position>>,
    /// Places of all small files.
    small_files: Range<Position>,
    classes: Classes,
}

/// The map's order, for as many users as share it.
impl From<ColorMap> for Arc<LocalityOrder> {
    fn from(map: ColorMap) -> Self {
        Arc::new(LocalityOrder::new(map))
    }
}

impl LocalityOrder {
    /// Arranges a color map.
    #[must_use]
    pub fn new(map: ColorMap) -> Self {
        let members = map.members();
        let regions = line_of_regions(&map, &members);
        let rest = to_u32(map.regions().len());
        let mut locality = Self {
            order: Vec::with_capacity(map.len()),
            places: vec![0; map.len()],
            stretches: vec![rest; map.len()],
            ranges: vec![0..0; map.regions().len() + 1],
            small_files: 0..0,
            classes: Classes::default(),
            map,
        };
        for region in regions {
            locality.append(region.0, members.of(region));
            if is_small_file(&locality.map, region) {
                locality.small_files.end = to_u32(locality.order.len());
            }
        }
        let without = (0..).map(FrameIndex).zip(&locality.stretches).filter(|(_, s)| **s == rest);
        let without: Vec<_> = without.map(|(frame, _)| frame).collect();
        locality.append(rest, &without);
        locality.classes = Classes::new(&locality);
        locality
    }

    fn append(&mut self, stretch: u32, frames: &[FrameIndex]) {
        let start = to_u32(self.order.len());
        self.order.extend_from_slice(frames);
        for (place, frame) in (start..).zip(frames) {
            if let Some(slot) = self.places.get_mut(frame.as_usize()) {
                *slot = place;
            }
            if let Some(slot) = self.stretches.get_mut(frame.as_usize()) {
                *slot = stretch;
            }
        }
        if let Some(range) = self.ranges.get_mut(stretch as usize) {
            *range = start..to_u32(self.order.len());
        }
    }
    /// The color map.
    #[must_use]
    pub fn map(&self) -> &ColorMap {
        &self.map
    }

    /// The guest's RAM.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        self.map.layout()
    }

    /// Number of frames.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.layout().frames()
    }

    /// A frame's color; unknown past the end.
    #[must_use]
    pub fn color(&self, frame: FrameIndex) -> Color {
        self.map.colors().get(frame.as_usize()).copied().unwrap_or_default()
    }

    /// Whether nobody needs the frame's bytes: the guest's allocator has it, or the guest gave it
    /// back.
    #[must_use]
    pub fn is_free(&self, frame: FrameIndex) -> bool {
        matches!(self.color(frame), Color::Free | Color::Offline)
    }

    /// A frame's place, or `None` past the end.
    #[must_use]
    pub fn position(&self, frame: FrameIndex) -> Option<Position> {
        self.places.get(frame.as_usize()).copied()
    }

    /// Number of the stretch that a frame lies in: its region's number, or one more than the last
    /// region's.
    #[must_use]
    pub fn stretch(&self, frame: FrameIndex) -> Option<u32> {
        self.stretches.get(frame.as_usize()).copied()
    }

    /// Number of stretches: the regions, and the frames without one.
    #[must_use]
    pub fn stretches(&self) -> usize {
        self.ranges.len()
    }

    /// Places of a stretch; empty for one that does not exist.
    #[must_use]
    pub fn range(&self, stretch: u32) -> Range<Position> {
        self.ranges.get(stretch as usize).cloned().unwrap_or(0..0)
    }

    /// Places of all small files, one after the other.
    #[must_use]
    pub fn small_files(&self) -> Range<Position> {
        self.small_files.clone()
    }

    /// A frame's class.
    #[must_use]
    pub fn class(&self, frame: FrameIndex) -> Class {
        self.classes.of(frame)
    }

    /// Whether a frame shows signs that tell it from others of its class.
    #[must_use]
    pub fn is_hot(&self, frame: FrameIndex) -> bool {
        self.classes.is_hot(frame)
    }

    /// The frame at a place.
    #[must_use]
    pub fn at(&self, place: Position) -> Option<FrameIndex> {
        self.order.get(place as usize).copied()
    }

    /// Frames of a range of places, clipped to the line.
    #[must_use]
    pub fn run(&self, range: Range<Position>) -> &[FrameIndex] {
        let end = (range.end as usize).min(self.order.len());
        self.order.get(range.start as usize..end).unwrap_or(&[])
    }
}

/// The regions in the order of the line.
fn line_of_regions(map: &ColorMap, members: &Members) -> Vec<RegionId> {
    let mut regions: Vec<_> = (0..to_u32(map.regions().len())).map(RegionId).collect();
    regions.sort_by_cached_key(|id| {
        let anchor = map.region(*id).and_then(|region| region.anchor);
        let first = anchor.or_else(|| members.of(*id).first().copied());
        let is_small = is_small_file(map, *id);
        (!is_small, first.filter(|_| is_small), *id)
    });
    regions
}

fn is_small_file(map: &ColorMap, id: RegionId) -> bool {
    map.region(id).is_some_and(|r| r.kind == FrameKind::File && r.frames <= SMALL_FILE)
}

/// Numbers of frames and regions, of which a layout has fewer than 2^32.
fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
