//! The truth about a synthetic guest.

use super::KernelStyle;
use crate::paging::{LeafTruth, Mode, TableFrame};
use kaleidoscope_core::addr::{FrameIndex, Gfn, Gpa, Gva};
use kaleidoscope_core::color::{Color, FrameKind, Temperature};
use kaleidoscope_core::memory::MemoryLayout;
use std::collections::{BTreeMap, BTreeSet};

/// Use of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// In a free block of this order.
    Free {
        /// Base-2 logarithm of the block's frames.
        order: u32,
    },
    /// On a CPU's list of free pages.
    PerCpuFree {
        /// The CPU.
        cpu: u32,
    },
    /// Executable part of the kernel image.
    KernelText,
    /// Read-only part of the kernel image.
    KernelRodata,
    /// Writable part of the kernel image, including the root page table and the first tables below
    /// it.
    KernelData,
    /// Reserved at boot: firmware, the table of memory sections, the initial ramdisk.
    Reserved,
    /// Per-CPU variables.
    PerCpu,
    /// The frame table.
    FrameTable,
    /// A page table made before the page allocator worked; its record is marked reserved.
    BootTable {
        /// Its level.
        level: u8,
    },
    /// A page table.
    PageTable {
        /// Its level.
        level: u8,
    },
    /// The second half of an isolated process's root page table.
    UserRoot,
    /// A task's kernel stack.
    KernelStack {
        /// The task.
        pid: u32,
    },
    /// A module's code.
    ModuleText,
    /// A module's data.
    ModuleData,
    /// Other memory in the vmalloc area.
    Vmalloc,
    /// Allocated by the kernel for its own use.
    KernelAlloc,
    /// A large kmalloc block. Kernels before 7.2 do not mark these.
    LargeKmalloc,
    /// Objects of a slab cache.
    Slab {
        /// Index in [`Truth::caches`].
        cache: u32,
    },
    /// Anonymous memory.
    Anonymous {
        /// Virtual page number in the process that allocated it.
        index: u64,
    },
    /// Anonymous memory shared by content (KSM).
    Merged {
        /// Virtual page number in the process that allocated it.
        index: u64,
    },
    /// In the swap cache, and not mapped by any process.
    SwapCache,
    /// Page cache.
    Cache {
        /// Index in [`Truth::files`].
        file: u32,
        /// Page number in the file.
        index: u64,
    },
    /// In a hugetlb pool.
    Hugetlb {
        /// Whether it is in use.
        in_use: bool,
    },
    /// Taken by the balloon.
    Offline,
}

/// Kind of a file with page cache.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileKind {
    /// A file of a regular file system.
    Regular,
    /// A memory file.
    Memory,
    /// A block device.
    Block,
}

/// A file with page cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileTruth {
    /// Kind of file.
    pub kind: FileKind,
    /// Name of the file system's type.
    pub fs: String,
    /// The file system's device number, as the kernel encodes it (`major << 20 | minor`).
    pub device: u32,
    /// Inode number.
    pub inode: u64,
    /// Absolute path; `None` for deleted and nameless files.
    pub path: Option<String>,
    /// Address of its `struct address_space`.
    pub mapping: Gva,
    /// First frame and order of every cached folio, by page number in the file.
    pub folios: BTreeMap<u64, (Gfn, u32)>,
}

/// A task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskTruth {
    /// Process id.
    pub pid: u32,
    /// Thread group id.
    pub tgid: u32,
    /// Its name.
    pub comm: String,
    /// Time of its last run, in nanoseconds.
    pub last_ran: u64,
    /// Address of its kernel stack.
    pub stack: Gva,
    /// Index of its address space in [`Truth::spaces`]; `None` for kernel threads.
    pub space: Option<usize>,
}

/// A process's address space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpaceTruth {
    /// The root page table, as the kernel runs on it.
    pub root: Gpa,
    /// Root that user mode uses; differs from `root` under page-table isolation.
    pub user_root: Gpa,
    /// Pages mapped in the lower half.
    pub leaves: Vec<LeafTruth>,
    /// Frames of its page tables, including the root.
    pub tables: Vec<TableFrame>,
}

/// A range of virtual addresses; the end is exclusive.
pub type GvaRange = std::ops::Range<Gva>;

/// The truth about the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelTruth {
    /// Its version.
    pub style: KernelStyle,
    /// Its release string.
    pub release: String,
    /// Its banner, including the final newline.
    pub banner: String,
    /// The root page table.
    pub root: Gpa,
    /// Its paging mode.
    pub mode: Mode,
    /// Virtual minus physical address of the image.
    pub image_offset: u64,
    /// The image's executable part.
    pub text: GvaRange,
    /// The image's read-only part.
    pub rodata: GvaRange,
    /// First address of the direct map.
    pub page_offset: Gva,
    /// First address of the vmalloc area.
    pub vmalloc: Gva,
    /// First address of the frame table.
    pub vmemmap: Gva,
    /// Address of the VMCOREINFO text.
    pub vmcoreinfo: Gpa,
    /// Address and size of the type information.
    pub btf: (Gva, u64),
    /// Address and size of the symbol table.
    pub kallsyms: (Gva, u64),
    /// All symbols.
    pub symbols: BTreeMap<String, Gva>,
    /// Names of the loaded modules.
    pub modules: Vec<String>,
    /// Pages that the kernel maps in the upper half.
    pub leaves: Vec<LeafTruth>,
    /// Frames of its page tables.
    pub tables: Vec<TableFrame>,
}

/// The truth about a synthetic guest, known by construction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truth {
    pub(super) layout: MemoryLayout,
    pub(super) roles: Vec<Role>,
    /// The kernel.
    pub kernel: KernelTruth,
    /// Files with page cache.
    pub files: Vec<FileTruth>,
    /// Names of slab caches.
    pub caches: Vec<String>,
    /// Tasks.
    pub tasks: Vec<TaskTruth>,
    /// Address spaces of processes.
    pub spaces: Vec<SpaceTruth>,
    /// Frames whose record is marked active.
    pub active: BTreeSet<Gfn>,
    /// Frames whose record is marked referenced.
    pub referenced: BTreeSet<Gfn>,
    /// Free blocks: first frame and order.
    pub free_blocks: BTreeMap<Gfn, u32>,
    pub(super) users: BTreeMap<Gfn, Users>,
    pub(super) per_cpu_units: std::ops::Range<Gfn>,
}

/// Summary of all user mappings of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Users {
    /// Number of address spaces that map it.
    pub spaces: u32,
    /// Whether any of them is executable.
    pub exec: bool,
    /// Whether any of them is writable.
    pub write: bool,
    /// Whether any of them has the accessed bit set.
    pub accessed: bool,
    /// Whether any of them has the dirty bit set.
    pub dirty: bool,
}

impl Role {
    /// Whether the page allocator never owns the frame; its record is marked reserved.
    #[must_use]
    pub fn is_reserved(self) -> bool {
        match self {
            Self::KernelText
            | Self::KernelRodata
            | Self::KernelData
            | Self::Reserved
            | Self::PerCpu
            | Self::FrameTable
            | Self::BootTable { .. } => true,
            Self::Free { .. }
            | Self::PerCpuFree { .. }
            | Self::PageTable { .. }
            | Self::UserRoot
            | Self::KernelStack { .. }
            | Self::ModuleText
            | Self::ModuleData
            | Self::Vmalloc
            | Self::KernelAlloc
            | Self::LargeKmalloc
            | Self::Slab { .. }
            | Self::Anonymous { .. }
            | Self::Merged { .. }
            | Self::SwapCache
            | Self::Cache { .. }
            | Self::Hugetlb { .. }
            | Self::Offline => false,
        }
    }

    /// The frame's kind.
    #[must_use]
    pub fn kind(self, files: &[FileTruth]) -> FrameKind {
        match self {
            Self::Free { .. } | Self::PerCpuFree { .. } => FrameKind::Free,
            Self::KernelText
            | Self::KernelRodata
            | Self::KernelData
            | Self::Reserved
            | Self::PerCpu
            | Self::FrameTable
            | Self::BootTable { .. }
            | Self::KernelStack { .. }
            | Self::ModuleText
            | Self::ModuleData
            | Self::Vmalloc
            | Self::KernelAlloc
            | Self::LargeKmalloc => FrameKind::Kernel,
            Self::PageTable { .. } | Self::UserRoot => FrameKind::PageTable,
            Self::Slab { .. } => FrameKind::Slab,
            Self::Anonymous { .. } | Self::Merged { .. } | Self::SwapCache => FrameKind::Anonymous,
            Self::Cache { file, .. } => match files.get(file as usize).map(|f| f.kind) {
                Some(FileKind::Regular) => FrameKind::File,
                Some(FileKind::Memory) => FrameKind::Shared,
                Some(FileKind::Block) => FrameKind::BlockDevice,
                None => FrameKind::Unknown,
            },
            Self::Hugetlb { .. } => FrameKind::Hugetlb,
            Self::Offline => FrameKind::Offline,
        }
    }
}

impl Truth {
    /// The guest's RAM.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Roles of all frames, in frame-index order.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Role of a frame; `None` if it is not RAM.
    #[must_use]
    pub fn role(&self, gfn: Gfn) -> Option<Role> {
        self.layout.index_of(gfn).and_then(|i| self.roles.get(i.as_usize())).copied()
    }

    /// A frame's kind; `Unknown` past the end.
    #[must_use]
    pub fn kind(&self, index: FrameIndex) -> FrameKind {
        self.roles.get(index.as_usize()).map_or(FrameKind::Unknown, |r| r.kind(&self.files))
    }

    /// Frames of all CPUs' per-CPU units, including the parts that were freed.
    #[must_use]
    pub fn per_cpu_units(&self) -> &std::ops::Range<Gfn> {
        &self.per_cpu_units
    }

    /// Summary of all user mappings of a frame.
    #[must_use]
    pub fn users(&self, gfn: Gfn) -> Users {
        self.users.get(&gfn).copied().unwrap_or_default()
    }

    /// A frame's color, by the definitions of the palette; `Unknown` past the end.
    #[must_use]
    pub fn color(&self, index: FrameIndex) -> Color {
        let role = self.roles.get(index.as_usize());
        let users = self.layout.gfn_of(index).map(|gfn| self.users(gfn)).unwrap_or_default();
        match role {
            None => Color::Unknown,
            Some(Role::Free { .. } | Role::PerCpuFree { .. }) => Color::Free,
            Some(Role::KernelText) => Color::KernelText,
            Some(Role::KernelRodata) => Color::KernelRodata,
            Some(Role::KernelData) if self.holds_image_table(index) => Color::PageTable,
            Some(Role::KernelData) => Color::KernelData,
            Some(Role::Reserved) => Color::Reserved,
            Some(Role::PerCpu) => Color::PerCpu,
            Some(Role::FrameTable) => Color::FrameTable,
            Some(Role::BootTable { .. } | Role::PageTable { .. } | Role::UserRoot) => {
                Color::PageTable
            }
            Some(Role::KernelStack { .. }) => Color::KernelStack,
            Some(Role::ModuleText | Role::ModuleData) => Color::KernelModule,
            Some(Role::Vmalloc) => Color::Vmalloc,
            Some(Role::KernelAlloc) => Color::KernelAlloc,
            Some(Role::LargeKmalloc) if self.kernel.style < KernelStyle::V7_2 => Color::KernelAlloc,
            Some(Role::LargeKmalloc | Role::Slab { .. }) => Color::Slab,
            Some(Role::Anonymous { .. } | Role::Merged { .. } | Role::SwapCache) if users.exec => {
                Color::AnonymousCode
            }
            Some(Role::Anonymous { .. } | Role::Merged { .. } | Role::SwapCache) => {
                Color::Anonymous
            }
            Some(&Role::Cache { file, .. }) => {
                match self.files.get(file as usize).map(|f| f.kind) {
                    None => Color::Unknown,
                    Some(FileKind::Memory) => Color::Shared,
                    Some(FileKind::Block) => Color::BlockCache,
                    Some(FileKind::Regular) if users.exec => Color::FileCode,
                    Some(FileKind::Regular) if users.spaces > 0 => Color::FileMapped,
                    Some(FileKind::Regular) => Color::FileCache,
                }
            }
            Some(Role::Hugetlb { .. }) => Color::Hugetlb,
            Some(Role::Offline) => Color::Offline,
        }
    }

    /// Whether a frame of the image holds one of the kernel's page tables.
    fn holds_image_table(&self, index: FrameIndex) -> bool {
        let gfn = self.layout.gfn_of(index);
        self.kernel.tables.iter().any(|t| Some(t.gfn) == gfn)
    }

    /// Hints of page tables and the frame table on a frame's recent use.
    #[must_use]
    pub fn temperature(&self, gfn: Gfn) -> Temperature {
        let users = self.users(gfn);
        let mut out = Temperature::NONE;
        for (holds, sign) in [
            (users.accessed, Temperature::ACCESSED),
            (users.dirty, Temperature::DIRTY),
            (self.active.contains(&gfn), Temperature::ACTIVE),
            (self.referenced.contains(&gfn), Temperature::REFERENCED),
            (users.spaces > 1, Temperature::SHARED),
        ] {
            if holds {
                out.insert(sign);
            }
        }
        out
    }
}
