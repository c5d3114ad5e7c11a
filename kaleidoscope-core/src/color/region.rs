//! Regions: related frames in their natural order, the unit of locality for prefetch.

use super::FrameKind;
use crate::addr::FrameIndex;
use std::fmt;

/// Maximum number of regions in a map. A 1 TiB guest full of small cached files has about 10
/// million.
pub(crate) const MAX_REGIONS: u32 = 1 << 24;

/// Index of a region in its [`ColorMap`](super::ColorMap).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RegionId(pub u32);

/// Natural order of a region's frames, which defines the unit of their positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum Order {
    /// By frame number, if no better order is known. Position: the gfn.
    FrameNumber = 0,
    /// By kernel-virtual address. Position: pages from the start of the part of the kernel's
    /// address space that contains the region (image, vmalloc area, frame table), which makes
    /// positions independent of randomized base addresses.
    KernelAddress = 1,
    /// By user-virtual address in one process. Position: address / 4096.
    UserAddress = 2,
    /// By offset in a file. Position: offset / 4096.
    FileOffset = 3,
    /// In the order in which the guest's allocator will hand the frames out, according to its free
    /// lists. Position: the list's number times 2^32, plus the number of frames of the list that
    /// are allocated earlier. Frames found on no list have the list number
    /// [`NO_LIST`](Self::NO_LIST) and are counted in frame-index order.
    Allocation = 4,
}

impl Order {
    /// Every order, in numeric order.
    pub const ALL: [Self; 5] = [
        Self::FrameNumber,
        Self::KernelAddress,
        Self::UserAddress,
        Self::FileOffset,
        Self::Allocation,
    ];

    /// List number in an [`Allocation`](Self::Allocation) position for frames that are on no list.
    pub const NO_LIST: u32 = u32::MAX;

    /// The name used in files and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FrameNumber => "frame-number",
            Self::KernelAddress => "kernel-address",
            Self::UserAddress => "user-address",
            Self::FileOffset => "file-offset",
            Self::Allocation => "allocation",
        }
    }

    /// The order with this number, or `None`.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// A position in [`Allocation`](Self::Allocation) order. `before` is the number of frames of
    /// the list that are allocated earlier.
    #[must_use]
    pub const fn position_on_list(list: u32, before: u32) -> u64 {
        (list as u64) << 32 | before as u64
    }

    /// The list number of an [`Allocation`](Self::Allocation) position; `None` for frames on no
    /// list.
    #[must_use]
    pub fn list_of(position: u64) -> Option<u32> {
        u32::try_from(position >> 32).ok().filter(|list| *list != Self::NO_LIST)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Related frames in their natural order: the cache of one file, the anonymous memory of one
/// process, one slab cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Its number in the map that has it; 0 before it is in one.
    pub id: RegionId,
    /// Use of the frames in the guest kernel; the same for all frames of the region.
    pub kind: FrameKind,
    /// What the positions of the frames count.
    pub order: Order,
    /// A name that stays the same across boots: `ext4:65024:1234:/usr/bin/python3` for a file
    /// (type, device and inode; [`path`](Self::path) is the rest), `python3[812]` for a process's anonymous memory, the cache's name for a slab cache.
    pub name: String,
    /// Number of frames.
    pub frames: u32,
    /// The frame that holds the kernel object that owns the region: a file's inode, a slab cache's
    /// descriptor. The kernel reads this object before it reads the region. `None` if no such
    /// object exists or if its frame is unknown.
    pub anchor: Option<FrameIndex>,
}
