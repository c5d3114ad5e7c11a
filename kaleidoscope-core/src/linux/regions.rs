//! Assignment of frames to regions.

use super::frames::reader::NO_OWNER;
use super::user_spaces::{NO_SPACE, SpaceId};
use crate::addr::FrameIndex;
use crate::color::{FrameKind, MAX_REGIONS, Order, Region, RegionId};
use crate::guest_os::{FrameUse, KernelArea};

/// Name of a kernel object that owns frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OwnerName {
    pub(crate) is_block_device: bool,
    pub(crate) name: String,
    /// The frame that holds the object.
    pub(crate) frame: Option<FrameIndex>,
}

/// The properties of a frame that determine its region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionKey {
    pub(crate) usage: FrameUse,
    pub(crate) area: KernelArea,
    pub(crate) owner: u32,
    pub(crate) space: SpaceId,
}

/// Regions, created when the first frame is assigned to them.
pub(crate) struct Regions<'a> {
    owners: Vec<Option<OwnerName>>,
    spaces: &'a [String],
    regions: Vec<Region>,
    /// Once there are this many, frames of further owners share the regions of unowned frames.
    max_owned: usize,
    /// Region of each owner, of each space's anonymous memory, of each space's tables, and of each
    /// use and area.
    of_owner: Vec<Option<RegionId>>,
    of_anonymous: Vec<Option<RegionId>>,
    of_tables: Vec<Option<RegionId>>,
    fixed: [[Option<RegionId>; AREAS]; USES],
}

/// Number of values of [`FrameUse`] and [`KernelArea`].
const USES: usize = FrameUse::ALL.len();
const AREAS: usize = KernelArea::ALL.len();

/// Maximum number of regions with owners. Together with the fixed ones, they fit into a map.
const MAX_OWNED: usize = MAX_REGIONS as usize - USES * AREAS;

impl<'a> Regions<'a> {
    pub(crate) fn new(owners: Vec<Option<OwnerName>>, spaces: &'a [String]) -> Self {
        Self {
            spaces,
            regions: Vec::new(),
            max_owned: MAX_OWNED,
            of_owner: vec![None; owners.len()],
            owners,
            of_anonymous: vec![None; spaces.len()],
            of_tables: vec![None; spaces.len()],
            fixed: [[None; AREAS]; USES],
        }
    }

    /// The name of an owner; `None` for an owner that is not what its pages claim.
    pub(crate) fn owner(&self, number: u32) -> Option<&OwnerName> {
        self.owners.get(number as usize)?.as_ref()
    }

    pub(crate) fn finish(self) -> Vec<Region> {
        self.regions
    }

    /// What a region's positions count.
    pub(crate) fn order(&self, id: RegionId) -> Order {
        self.regions.get(id.0 as usize).map_or(Order::FrameNumber, |r| r.order)
    }

    /// The region of a frame; unknown frames have none.
    pub(crate) fn region(&mut self, key: &RegionKey) -> Option<RegionId> {
        let owned = matches!(
            key.usage,
            FrameUse::Slab | FrameUse::File | FrameUse::Shared | FrameUse::BlockDevice
        );
        if key.usage == FrameUse::Unknown {
            None
        } else if owned && key.owner != NO_OWNER {
            self.by_owner(key)
        } else if key.usage == FrameUse::Anonymous && key.space != NO_SPACE {
            self.by_space(key, |regions| &mut regions.of_anonymous)
        } else if key.usage == FrameUse::PageTable && key.space != NO_SPACE {
            self.by_space(key, |regions| &mut regions.of_tables)
        } else {
            self.fixed(key)
        }
    }

    fn by_space(
        &mut self,
        key: &RegionKey,
        slots: fn(&mut Self) -> &mut Vec<Option<RegionId>>,
    ) -> Option<RegionId> {
        let space = key.space as usize;
        let known = *slots(self).get(space)?;
        if known.is_some() {
            return known;
        }
        if self.regions.len() >= self.max_owned {
            return self.fixed(key);
        }
        let name = self.spaces.get(space)?.clone();
        let id = push(&mut self.regions, key.usage.kind(), Order::UserAddress, name);
        slots(self).get_mut(space)?.replace(id);
        Some(id)
    }

    fn by_owner(&mut self, key: &RegionKey) -> Option<RegionId> {
        let known = *self.of_owner.get(key.owner as usize)?;
        let kind = key.usage.kind();
        if let Some(id) = known {
            // All pages of an object are of one kind. A page of another kind is in transition, or
            // damaged.
            let agrees = self.regions.get(id.0 as usize).is_some_and(|r| r.kind == kind);
            return if agrees { Some(id) } else { self.fixed(key) };
        }
        if self.regions.len() >= self.max_owned {
            return self.fixed(key);
        }
        // Move the name, since names may be long and each is used once.
        let owner = self.owners.get_mut(key.owner as usize)?.as_mut();
        let (name, anchor) =
            owner.map_or_else(Default::default, |o| (std::mem::take(&mut o.name), o.frame));
        let order = if kind == FrameKind::Slab { Order::FrameNumber } else { Order::FileOffset };
        let id = push(&mut self.regions, kind, order, name);
        if let Some(region) = self.regions.get_mut(id.0 as usize) {
            region.anchor = anchor;
        }
        self.of_owner.get_mut(key.owner as usize)?.replace(id);
        Some(id)
    }

    /// The region of frames without an owning object or process.
    fn fixed(&mut self, key: &RegionKey) -> Option<RegionId> {
        let (usage, area) = fixed_key(key.usage, key.area);
        let slot = self.fixed.get_mut(usage as usize)?.get_mut(area as usize)?;
        let (name, order) = fixed_name(usage, area);
        let id = slot.get_or_insert_with(|| push(&mut self.regions, usage.kind(), order, name));
        Some(*id)
    }
}

/// The key of the region of unowned frames. Outside the image, frames that the kernel reserved at
/// boot and frames that it allocated later share a region.
fn fixed_key(usage: FrameUse, area: KernelArea) -> (FrameUse, KernelArea) {
    let in_image = matches!(area, KernelArea::Text | KernelArea::Rodata | KernelArea::Data);
    match usage {
        FrameUse::Reserved if in_image || area == KernelArea::None => (usage, area),
        FrameUse::Allocated if in_image => (usage, KernelArea::None),
        FrameUse::Reserved | FrameUse::Allocated => (FrameUse::Allocated, area),
        FrameUse::Unknown
        | FrameUse::Free
        | FrameUse::FreePerCpu
        | FrameUse::Slab
        | FrameUse::LargeKmalloc
        | FrameUse::PageTable
        | FrameUse::Anonymous
        | FrameUse::SwapCache
        | FrameUse::File
        | FrameUse::Shared
        | FrameUse::BlockDevice
        | FrameUse::Hugetlb
        | FrameUse::Offline => (usage, KernelArea::None),
    }
}

fn push(
    regions: &mut Vec<Region>,
    kind: FrameKind,
    order: Order,
    name: impl Into<String>,
) -> RegionId {
    let id = RegionId(u32::try_from(regions.len()).unwrap_or(u32::MAX));
    regions.push(Region::new(kind, order, name));
    id
}

fn fixed_name(usage: FrameUse, area: KernelArea) -> (&'static str, Order) {
    use KernelArea as A;
    let frame_number = |name| (name, Order::FrameNumber);
    let address = |name| (name, Order::KernelAddress);
    let allocation = |name| (name, Order::Allocation);
    match (usage, area) {
        (FrameUse::Reserved, A::Text) => address("kernel-text"),
        (FrameUse::Reserved, A::Rodata) => address("kernel-rodata"),
        (FrameUse::Reserved, A::Data) => address("kernel-data"),
        (_, A::Module) => address("modules"),
        (_, A::PerCpu) => address("per-cpu"),
        (_, A::FrameTable) => address("frame-table"),
        (_, A::Stack) => address("kernel-stacks"),
        (_, A::Vmalloc) => address("vmalloc"),
        (FrameUse::Reserved, A::None) => frame_number("reserved"),
        (FrameUse::Allocated, _) => frame_number("kernel-alloc"),
        (FrameUse::Free, _) => allocation("free"),
        (FrameUse::FreePerCpu, _) => allocation("free-per-cpu"),
        (FrameUse::Slab, _) => frame_number("slab"),
        (FrameUse::LargeKmalloc, _) => frame_number("kmalloc-large"),
        (FrameUse::PageTable, _) => frame_number("page-tables"),
        (FrameUse::Anonymous, _) => frame_number("anonymous"),
        (FrameUse::SwapCache, _) => frame_number("swap-cache"),
        (FrameUse::File, _) => frame_number("file"),
        (FrameUse::Shared, _) => frame_number("shared"),
        (FrameUse::BlockDevice, _) => frame_number("block-device"),
        (FrameUse::Hugetlb, _) => frame_number("hugetlb"),
        (FrameUse::Offline, _) => frame_number("offline"),
        (FrameUse::Unknown, _) => frame_number("unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_frames_share_regions() {
        let owner = |n: u32| {
            let name = format!("file {n}");
            Some(OwnerName { is_block_device: false, name, frame: None })
        };
        let spaces = ["one".to_owned(), "two".to_owned()];
        let mut regions = Regions::new((0..5).map(owner).collect(), &spaces);
        regions.max_owned = 3;
        let (file, space) = (FrameUse::File, NO_SPACE);
        let key = |usage, owner, space| RegionKey { usage, area: KernelArea::None, owner, space };
        let mut ids: Vec<_> = (0..5).map(|n| regions.region(&key(file, n, space))).collect();
        ids.push(regions.region(&key(FrameUse::Anonymous, NO_OWNER, 0)));
        ids.push(regions.region(&key(FrameUse::PageTable, NO_OWNER, 1)));
        ids.push(regions.region(&key(file, 1, space)));
        let ids: Vec<u32> = ids.into_iter().map(|id| id.unwrap().0).collect();
        assert_eq!(ids, [0, 1, 2, 3, 3, 4, 5, 1]);
        let names: Vec<_> = regions.finish().into_iter().map(|region| region.name).collect();
        assert_eq!(names, ["file 0", "file 1", "file 2", "file", "anonymous", "page-tables"]);
    }
}
