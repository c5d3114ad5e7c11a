//! Regions: related frames in their natural order, the unit of locality for prefetch.

use super::FrameKind;
use crate::addr::FrameIndex;
use std::fmt;

/// Most regions of a map. A guest of 1 TiB full of small cached files has about 10 million.
pub(crate) const MAX_REGIONS: u32 = 1 << 24;

/// Number of a region in its [`ColorMap`](super::ColorMap).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub u32);

/// What holds a region's frames together, and so what their positions count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum Order {
    /// By frame number; nothing better is known. Position: gfn.
    FrameNumber = 0,
    /// By kernel-virtual address. Position: pages from the start of the part of the kernel's
    /// address space that the region lies in (image, vmalloc area, frame table), so that
    /// randomized bases do not matter.
    KernelAddress = 1,
    /// By user-virtual address in one process. Position: address / 4096.
    UserAddress = 2,
    /// By offset in a file. Position: offset / 4096.
    FileOffset = 3,
    /// In the order in which the guest's allocator will give them away, as far as its lists of free
    /// frames say. Position: the list's number times 2^32, plus how many frames of the list are
    /// given away before. Frames that were found on no list have the number
    /// [`NO_LIST`](Self::NO_LIST), and are counted by frame index.
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

    /// In [`Allocation`](Self::Allocation), the number in place of a list's for frames that are on
    /// none.
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

    /// A position in [`Allocation`](Self::Allocation): so many frames of the list are given away
    /// before.
    #[must_use]
    pub const fn position_on_list(list: u32, before: u32) -> u64 {
        (list as u64) << 32 | before as u64
    }

    /// The list that a position in [`Allocation`](Self::Allocation) is on; `None` where it is on
    /// none.
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

/// Related frames in their natural order: one file's cache, one process's anonymous memory, one
/// slab cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// What the guest kernel uses the frames for; the same for all of them.
    pub kind: FrameKind,
    /// What a frame's position counts.
    pub order: Order,
    /// A name that means the same on another boot: `ext4:65024:1234:/usr/bin/python3` for a file,
    /// `python3[812]` for a process's anonymous memory, a slab cache's name.
    pub name: String,
    /// Number of frames.
    pub frames: u32,
    /// The frame that holds the kernel object which owns the region: a file's inode, a slab
    /// cache's descriptor. Whoever goes to the region goes there first. `None` when there is
    /// no such object, or it is not known.
    pub anchor: Option<FrameIndex>,
}
