//! Evidence about frames that a kernel's structures provide.

use crate::color::FrameKind;

/// Use of a frame according to the guest kernel's own structures.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum FrameUse {
    /// No structure describes the frame, or the structure is damaged.
    #[default]
    Unknown = 0,
    /// In the page allocator's free lists.
    Free = 1,
    /// Freed, and cached on a per-CPU list for the next allocation.
    FreePerCpu = 2,
    /// Holds objects of a slab cache.
    Slab = 3,
    /// A large `kmalloc` block, allocated from the page allocator directly.
    LargeKmalloc = 4,
    /// A page table.
    PageTable = 5,
    /// Anonymous memory of a process.
    Anonymous = 6,
    /// In the swap cache, and mapped by no process.
    SwapCache = 7,
    /// Page cache of a file.
    File = 8,
    /// Page cache of a memory file.
    Shared = 9,
    /// Page cache of a block device.
    BlockDevice = 10,
    /// Never given to the page allocator: kernel image, firmware, boot memory.
    Reserved = 11,
    /// A page of a hugetlb pool.
    Hugetlb = 12,
    /// Given back to the host by the guest.
    Offline = 13,
    /// Allocated for a purpose that the allocator does not record.
    Allocated = 14,
}

impl FrameUse {
    /// Every use, in numeric order.
    pub const ALL: [Self; 15] = [
        Self::Unknown,
        Self::Free,
        Self::FreePerCpu,
        Self::Slab,
        Self::LargeKmalloc,
        Self::PageTable,
        Self::Anonymous,
        Self::SwapCache,
        Self::File,
        Self::Shared,
        Self::BlockDevice,
        Self::Reserved,
        Self::Hugetlb,
        Self::Offline,
        Self::Allocated,
    ];

    /// The coarse kind.
    #[must_use]
    pub const fn kind(self) -> FrameKind {
        match self {
            Self::Unknown => FrameKind::Unknown,
            Self::Free | Self::FreePerCpu => FrameKind::Free,
            Self::Slab => FrameKind::Slab,
            Self::PageTable => FrameKind::PageTable,
            Self::Anonymous | Self::SwapCache => FrameKind::Anonymous,
            Self::File => FrameKind::File,
            Self::Shared => FrameKind::Shared,
            Self::BlockDevice => FrameKind::BlockDevice,
            Self::LargeKmalloc | Self::Reserved | Self::Allocated => FrameKind::Kernel,
            Self::Hugetlb => FrameKind::Hugetlb,
            Self::Offline => FrameKind::Offline,
        }
    }
}

/// The part of the kernel's address space, besides the direct map, that maps a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum KernelArea {
    /// None.
    #[default]
    None = 0,
    /// The kernel image's executable part.
    Text = 1,
    /// The kernel image's read-only part.
    Rodata = 2,
    /// The kernel image's writable part.
    Data = 3,
    /// Code and data of modules.
    Module = 4,
    /// Per-CPU variables.
    PerCpu = 5,
    /// The frame table.
    FrameTable = 6,
    /// A task's kernel stack.
    Stack = 7,
    /// Other memory in the vmalloc area.
    Vmalloc = 8,
}

impl KernelArea {
    /// Every area, in numeric order.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Text,
        Self::Rodata,
        Self::Data,
        Self::Module,
        Self::PerCpu,
        Self::FrameTable,
        Self::Stack,
        Self::Vmalloc,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_lists() {
        assert!(FrameUse::ALL.into_iter().enumerate().all(|(i, u)| u as usize == i));
        assert!(KernelArea::ALL.into_iter().enumerate().all(|(i, a)| a as usize == i));
    }
}
