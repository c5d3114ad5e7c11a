//! Colors with the values that C sees.

use kaleidoscope_core::color;

/// Use of a frame in the guest. The values are stable; later versions may add colors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Color {
    /// Nothing is known; treated like data.
    Unknown = 0,
    /// Free in the guest.
    Free = 1,
    /// The kernel image's executable part.
    KernelText = 2,
    /// The kernel image's read-only data.
    KernelRodata = 3,
    /// The kernel image's writable data.
    KernelData = 4,
    /// Executable kernel memory outside the image: modules, BPF programs.
    KernelModule = 5,
    /// Per-CPU variables.
    PerCpu = 6,
    /// The frame table (`struct page` array).
    FrameTable = 7,
    /// Page tables.
    PageTable = 8,
    /// Kernel stacks.
    KernelStack = 9,
    /// Slab caches and large `kmalloc` blocks.
    Slab = 10,
    /// Other memory in the kernel's vmalloc area.
    Vmalloc = 11,
    /// Pages that the kernel allocated for itself in other ways.
    KernelAlloc = 12,
    /// Reserved at boot outside the kernel image.
    Reserved = 13,
    /// Anonymous memory.
    Anonymous = 14,
    /// Anonymous memory that is mapped executable.
    AnonymousCode = 15,
    /// tmpfs, memfd, System V shared memory.
    Shared = 16,
    /// File page cache that a process maps executable.
    FileCode = 17,
    /// File page cache that a process maps, but none maps executable.
    FileMapped = 18,
    /// File page cache that no process maps.
    FileCache = 19,
    /// Page cache of block devices.
    BlockCache = 20,
    /// Pages of a hugetlb pool.
    Hugetlb = 21,
    /// Ballooned or unplugged.
    Offline = 22,
}

impl Color {
    /// Every color, in numeric order.
    const ALL: [Self; color::Color::ALL.len()] = [
        Self::Unknown,
        Self::Free,
        Self::KernelText,
        Self::KernelRodata,
        Self::KernelData,
        Self::KernelModule,
        Self::PerCpu,
        Self::FrameTable,
        Self::PageTable,
        Self::KernelStack,
        Self::Slab,
        Self::Vmalloc,
        Self::KernelAlloc,
        Self::Reserved,
        Self::Anonymous,
        Self::AnonymousCode,
        Self::Shared,
        Self::FileCode,
        Self::FileMapped,
        Self::FileCache,
        Self::BlockCache,
        Self::Hugetlb,
        Self::Offline,
    ];
}

// A color of the core has the same value here.
const _: () = {
    let mut n = 0;
    while n < Color::ALL.len() {
        assert!(Color::ALL[n] as usize == n);
        assert!(color::Color::ALL[n] as usize == n);
        n += 1;
    }
};

impl From<color::Color> for Color {
    fn from(color: color::Color) -> Self {
        Self::ALL.get(color as usize).copied().unwrap_or(Self::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_the_core() {
        for color in color::Color::ALL {
            assert_eq!(format!("{:?}", Color::from(color)), format!("{color:?}"));
        }
    }
}
