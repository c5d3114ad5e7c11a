//! The atlas: a color map arranged for policies, so that related frames are neighbors.

use crate::addr::FrameIndex;
use crate::color::{Color, ColorMap, RegionId};
use crate::memory::MemoryLayout;
use std::ops::Range;

/// A place in the atlas: a frame's position when all frames are sorted by region and, within one, by its natural order.
pub type Place = u32;

/// A color map with every frame's neighbors in its region at hand.
///
/// All frames lie on one line: region by region, each in its natural order; last those without a region, by frame
/// number. A block of related frames is a range of this line. Built once per parent and shared by all of its clones
/// (16 bytes per frame beside the map).
#[derive(Clone, Debug)]
pub struct Atlas {
    map: ColorMap,
    /// Frames by place.
    order: Vec<FrameIndex>,
    /// Place of every frame.
    places: Vec<Place>,
    /// Stretch of the line that each frame belongs to: a region's number, or one past the last.
    stretches: Vec<u32>,
    /// Where each stretch begins, and the end of the line.
    starts: Vec<Place>,
}

impl Atlas {
    /// Arranges a color map.
    #[must_use]
    pub fn new(map: ColorMap) -> Self {
        let members = map.members();
        let (mut order, mut starts) = (Vec::with_capacity(map.len()), Vec::new());
        let rest = u32::try_from(map.regions().len()).unwrap_or(u32::MAX);
        let mut stretches = vec![rest; map.len()];
        for region in 0..rest {
            starts.push(length(&order));
            for frame in members.of(RegionId(region)) {
                order.push(*frame);
                if let Some(stretch) = stretches.get_mut(frame.as_usize()) {
                    *stretch = region;
                }
            }
        }
        starts.push(length(&order));
        order.extend(
            (0..).map(FrameIndex).zip(&stretches).filter(|(_, s)| **s == rest).map(|(f, _)| f),
        );
        starts.push(length(&order));
        let mut places = vec![0; map.len()];
        for (place, frame) in (0..).zip(&order) {
            if let Some(slot) = places.get_mut(frame.as_usize()) {
                *slot = place;
            }
        }
        Self { map, order, places, stretches, starts }
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

    /// Whether nobody needs the frame's bytes: the guest's allocator has it, or the guest gave it back.
    #[must_use]
    pub fn is_free(&self, frame: FrameIndex) -> bool {
        matches!(self.color(frame), Color::Free | Color::Offline)
    }

    /// A frame's place, or `None` past the end.
    #[must_use]
    pub fn place(&self, frame: FrameIndex) -> Option<Place> {
        self.places.get(frame.as_usize()).copied()
    }

    /// Number of the stretch that a frame lies in: its region's number, or one more than the last region's.
    #[must_use]
    pub fn stretch(&self, frame: FrameIndex) -> Option<u32> {
        self.stretches.get(frame.as_usize()).copied()
    }

    /// Number of stretches: the regions, and the frames without one.
    #[must_use]
    pub fn stretches(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Places of a stretch; empty for one that does not exist.
    #[must_use]
    pub fn range(&self, stretch: u32) -> Range<Place> {
        let at = stretch as usize;
        let bounds = self.starts.get(at).zip(self.starts.get(at.saturating_add(1)));
        bounds.map_or(0..0, |(start, end)| *start..*end)
    }

    /// Frames of a range of places, clipped to the line.
    #[must_use]
    pub fn run(&self, range: Range<Place>) -> &[FrameIndex] {
        let end = (range.end as usize).min(self.order.len());
        self.order.get(range.start as usize..end).unwrap_or(&[])
    }
}

fn length(order: &[FrameIndex]) -> Place {
    // A layout has fewer than 2^32 frames.
    Place::try_from(order.len()).unwrap_or(Place::MAX)
}
