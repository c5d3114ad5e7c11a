//! Regions of a recording, and how their frames are addressed.

use crate::addr::FrameIndex;
use crate::color::{FrameKind, Order, Region, RegionId};
use crate::prefetch::LocalityOrder;

/// Most stretches kept per region. If there are more, those with the smallest gaps between them are
/// joined.
pub(super) const MAX_STRETCHES: usize = 256;

/// Consecutive pages: positions `start..start + pages`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRange {
    /// First position, in pages.
    pub start: u64,
    /// Number of pages.
    pub pages: u64,
}

impl PageRange {
    /// One past the last position.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.pages)
    }
}

/// A region that a recording has entries in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordedRegion {
    /// How the guest kernel uses its frames.
    pub kind: FrameKind,
    /// The unit of its positions.
    pub order: Order,
    /// Its name in the color map, or the hash that [`Recording::hashed`](super::Recording::hashed)
    /// replaced it with.
    pub name: String,
    /// Number of frames in the recorded guest, accessed or not.
    pub frames: u32,
    /// For the memory of a process: the positions that had frames, accessed or not, in ascending
    /// order. This layout identifies the process's parts at other addresses. Empty for other
    /// regions.
    pub stretches: Vec<PageRange>,
}

impl RecordedRegion {
    /// A region of a map.
    pub(super) fn of(locality: &LocalityOrder, id: RegionId, region: &Region) -> Self {
        Self {
            kind: region.kind,
            order: region.order,
            name: region.name.clone(),
            frames: region.frames,
            stretches: if has_shape(region.kind, region.order) {
                stretches(members(locality, id).positions())
            } else {
                Vec::new()
            },
        }
    }
}

/// Whether frames are identified by their rank in the region, because positions are meaningless in
/// another guest: frame numbers, positions on free lists, and the addresses that page tables of a
/// process translate (several levels share one address).
pub(super) fn is_ranked(kind: FrameKind, order: Order) -> bool {
    matches!(order, Order::FrameNumber | Order::Allocation)
        || (order == Order::UserAddress && kind == FrameKind::PageTable)
}

/// Whether the region's positions are randomized addresses.
pub(super) fn has_shape(kind: FrameKind, order: Order) -> bool {
    order == Order::UserAddress && !is_ranked(kind, order)
}

/// Joins ascending positions into stretches.
pub(super) fn stretches(positions: impl Iterator<Item = u64>) -> Vec<PageRange> {
    let mut all: Vec<PageRange> = Vec::new();
    for position in positions {
        match all.last_mut() {
            Some(last) if position < last.end() => {}
            Some(last) if position == last.end() => last.pages = last.pages.saturating_add(1),
            _ => all.push(PageRange { start: position, pages: 1 }),
        }
    }
    let mut gap = 1u64;
    while all.len() > MAX_STRETCHES {
        gap = gap.saturating_mul(2);
        all.dedup_by(|next, last| {
            let joins = next.start.saturating_sub(last.end()) < gap;
            if joins {
                last.pages = next.end().saturating_sub(last.start);
            }
            joins
        });
    }
    all
}

/// The frames of a region of a map, by position.
#[derive(Clone, Copy)]
pub(super) struct Members<'a> {
    locality: &'a LocalityOrder,
    frames: &'a [FrameIndex],
    start: u32,
}

pub(super) fn members(locality: &LocalityOrder, id: RegionId) -> Members<'_> {
    let range = locality.range(id.0);
    Members { locality, start: range.start, frames: locality.run(range) }
}

impl<'a> Members<'a> {
    fn position(&self, frame: FrameIndex) -> u64 {
        self.locality.map().frame(frame).map_or(0, |f| f.position)
    }

    pub(super) fn positions(self) -> impl Iterator<Item = u64> + use<'a> {
        self.frames.iter().map(move |frame| self.position(*frame))
    }

    /// Number of frames with a lower position.
    pub(super) fn before(&self, position: u64) -> usize {
        self.frames.partition_point(|frame| self.position(*frame) < position)
    }

    /// Number of frames of the region before this one.
    pub(super) fn rank(&self, frame: FrameIndex) -> usize {
        let place = self.locality.position(frame).unwrap_or(self.start);
        place.saturating_sub(self.start) as usize
    }

    /// The frame with this rank.
    pub(super) fn at_rank(&self, rank: u32) -> Option<FrameIndex> {
        self.frames.get(rank as usize).copied()
    }

    /// The n-th frame at this position.
    pub(super) fn at(&self, position: u64, nth: u32) -> Option<FrameIndex> {
        let at = self.before(position).saturating_add(nth as usize);
        self.frames.get(at).copied().filter(|frame| self.position(*frame) == position)
    }
}
