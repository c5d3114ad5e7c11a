//! Colors and frame kinds, and the mapping to the paper's coarser colors.

use std::fmt;
use std::str::FromStr;

/// Use of a frame in the guest kernel, according to the kernel's own structures. A kind is
/// evidence, not yet a color.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum FrameKind {
    /// No structure describes the frame, or the structure is damaged. Fetched like data, which is
    /// always correct.
    #[default]
    Unknown = 0,
    /// In the page allocator's free lists, per-CPU lists included.
    Free = 1,
    /// Holds objects of a slab cache.
    Slab = 2,
    /// A page table, of the kernel or of a process.
    PageTable = 3,
    /// Anonymous memory of a process, the swap cache included.
    Anonymous = 4,
    /// Page cache of a memory file: tmpfs, memfd, System V shared memory.
    Shared = 5,
    /// Page cache of a file on a real file system.
    File = 6,
    /// Page cache of a block device (file system metadata, mostly).
    BlockDevice = 7,
    /// The kernel image, its reserved memory, and pages the kernel took from the page allocator for
    /// itself.
    Kernel = 8,
    /// A page of a hugetlb pool, in use or not.
    Hugetlb = 9,
    /// Given up by the guest: ballooned or unplugged.
    Offline = 10,
}

/// Color of a frame. The paper's six colors are [`PaperColor`]; these are finer and fold into them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
#[non_exhaustive]
pub enum Color {
    /// Nothing is known; treated like data.
    #[default]
    Unknown = 0,
    /// Free in the guest; the contents need not be preserved.
    Free = 1,
    /// The kernel image's executable part.
    KernelText = 2,
    /// The kernel image's read-only data.
    KernelRodata = 3,
    /// The kernel image's writable data.
    KernelData = 4,
    /// Loaded modules, BPF programs: executable kernel mappings outside the image.
    KernelModule = 5,
    /// Per-CPU variables.
    PerCpu = 6,
    /// The frame table itself (`struct page` array).
    FrameTable = 7,
    /// Page tables.
    PageTable = 8,
    /// Kernel stacks.
    KernelStack = 9,
    /// Slab caches and large `kmalloc` blocks.
    Slab = 10,
    /// Other memory mapped in the kernel's vmalloc area.
    Vmalloc = 11,
    /// Pages that the kernel allocated for itself in other ways (buffers, ring pages, pipes).
    KernelAlloc = 12,
    /// Reserved at boot outside the kernel image: firmware tables, the initial ramdisk, bootmem.
    Reserved = 13,
    /// Anonymous memory.
    Anonymous = 14,
    /// Anonymous memory that is mapped executable (JIT code).
    AnonymousCode = 15,
    /// Memory files: tmpfs, memfd, System V shared memory.
    Shared = 16,
    /// File page cache that at least one process maps executable.
    FileCode = 17,
    /// File page cache that at least one process maps, but none maps executable.
    FileMapped = 18,
    /// File page cache that no process maps.
    FileCache = 19,
    /// Page cache of block devices.
    BlockCache = 20,
    /// Pages of a hugetlb pool.
    Hugetlb = 21,
    /// Ballooned or unplugged: the guest returned the frame to the host.
    Offline = 22,
}

/// The six colors of the Kaleidoscope paper (Bryant et al., EuroSys 2011, section 3), plus unknown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum PaperColor {
    /// Nothing is known.
    Unknown = 0,
    /// Free memory.
    Free = 1,
    /// Kernel code.
    KernelCode = 2,
    /// Kernel data.
    KernelData = 3,
    /// User code.
    UserCode = 4,
    /// User data.
    UserData = 5,
    /// Page cache.
    PageCache = 6,
}

/// A name, or other text, that names no value of a type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownName {
    what: &'static str,
    name: String,
    /// What to write instead.
    advice: Option<&'static str>,
}

impl std::error::Error for UnknownName {}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, name, advice } = self;
        match advice {
            None => write!(f, "no {what} is called `{name}`"),
            Some(advice) => write!(f, "`{name}` is no {what}: write {advice}"),
        }
    }
}

impl UnknownName {
    /// A name that does not exist among the values of type `what`.
    pub(crate) fn new(what: &'static str, name: &str) -> Self {
        Self { what, name: name.to_owned(), advice: None }
    }

    /// Text that is no value of type `what`, and what to write instead.
    pub(crate) fn with_advice(what: &'static str, name: &str, advice: &'static str) -> Self {
        Self { what, name: name.to_owned(), advice: Some(advice) }
    }
}

macro_rules! named {
    ($type:ident, $what:literal, $count:literal, [$($variant:ident => $name:literal),+ $(,)?]) => {
        impl $type {
            /// Every value, in numeric order.
            pub const ALL: [Self; $count] = [$(Self::$variant),+];

            /// The name used in files and tables: lower case, words joined by hyphens.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// The value with this number, or `None`.
            #[must_use]
            pub fn from_u8(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                let found = Self::ALL.into_iter().find(|v| v.name() == name);
                found.ok_or_else(|| UnknownName::new($what, name))
            }
        }
    };
}

named!(FrameKind, "frame kind", 11, [
    Unknown => "unknown",
    Free => "free",
    Slab => "slab",
    PageTable => "page-table",
    Anonymous => "anonymous",
    Shared => "shared",
    File => "file",
    BlockDevice => "block-device",
    Kernel => "kernel",
    Hugetlb => "hugetlb",
    Offline => "offline",
]);

named!(Color, "color", 23, [
    Unknown => "unknown",
    Free => "free",
    KernelText => "kernel-text",
    KernelRodata => "kernel-rodata",
    KernelData => "kernel-data",
    KernelModule => "kernel-module",
    PerCpu => "per-cpu",
    FrameTable => "frame-table",
    PageTable => "page-table",
    KernelStack => "kernel-stack",
    Slab => "slab",
    Vmalloc => "vmalloc",
    KernelAlloc => "kernel-alloc",
    Reserved => "reserved",
    Anonymous => "anonymous",
    AnonymousCode => "anonymous-code",
    Shared => "shared",
    FileCode => "file-code",
    FileMapped => "file-mapped",
    FileCache => "file-cache",
    BlockCache => "block-cache",
    Hugetlb => "hugetlb",
    Offline => "offline",
]);

named!(PaperColor, "paper color", 7, [
    Unknown => "unknown",
    Free => "free",
    KernelCode => "kernel-code",
    KernelData => "kernel-data",
    UserCode => "user-code",
    UserData => "user-data",
    PageCache => "page-cache",
]);

impl Color {
    /// The paper's color that this color folds into.
    #[must_use]
    pub const fn paper(self) -> PaperColor {
        match self {
            Self::Unknown => PaperColor::Unknown,
            Self::Free | Self::Offline => PaperColor::Free,
            Self::KernelText | Self::KernelModule => PaperColor::KernelCode,
            Self::KernelRodata
            | Self::KernelData
            | Self::PerCpu
            | Self::FrameTable
            | Self::PageTable
            | Self::KernelStack
            | Self::Slab
            | Self::Vmalloc
            | Self::KernelAlloc
            | Self::Reserved => PaperColor::KernelData,
            Self::AnonymousCode | Self::FileCode => PaperColor::UserCode,
            Self::Anonymous | Self::Shared | Self::Hugetlb => PaperColor::UserData,
            Self::FileMapped | Self::FileCache | Self::BlockCache => PaperColor::PageCache,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_round_trip() {
        for (number, color) in Color::ALL.into_iter().enumerate() {
            assert_eq!(color as usize, number);
            assert_eq!(color.name().parse(), Ok(color));
        }
        for (number, kind) in FrameKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        for (number, color) in PaperColor::ALL.into_iter().enumerate() {
            assert_eq!(color as usize, number);
        }
        assert_eq!(Color::from_u8(23), None);
        assert!("mauve".parse::<Color>().is_err());
    }
}
