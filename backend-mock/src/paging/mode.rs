//! The paging modes as data: levels, index widths, entry sizes, page sizes.

use kaleidoscope_core::addr::Gva;

/// Present.
pub(super) const P: u64 = 1;
/// Writable.
pub(super) const RW: u64 = 1 << 1;
/// Accessible in user mode.
pub(super) const US: u64 = 1 << 2;
/// Accessed.
pub(super) const A: u64 = 1 << 5;
/// Dirty; only in entries that map a page.
pub(super) const D: u64 = 1 << 6;
/// Page size: the entry maps a page although it is not at the last level.
pub(super) const PS: u64 = 1 << 7;
/// Global; only in entries that map a page.
pub(super) const G: u64 = 1 << 8;
/// The page-attribute-table bit of entries with [`PS`].
pub(super) const LARGE_PAT: u64 = 1 << 12;
/// No execution.
pub(super) const NX: u64 = 1 << 63;

/// A paging mode of x86.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// 32-bit paging with 4 MiB pages (CR4.PSE).
    Bits32,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging (CR4.LA57).
    FiveLevel,
}

/// Size of a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB; PAE and long mode.
    Mega2,
    /// 4 MiB; 32-bit paging.
    Mega4,
    /// 1 GiB; long mode.
    Giga,
}

/// Access rights of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rights {
    /// User mode may access it.
    pub user: bool,
    /// It may be written.
    pub write: bool,
    /// It may be executed.
    pub exec: bool,
}

/// Bits of the entry that maps a page, besides the address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// Rights in this entry; entries of upper levels restrict them further.
    pub rights: Rights,
    /// The accessed bit.
    pub accessed: bool,
    /// The dirty bit.
    pub dirty: bool,
    /// The global bit.
    pub global: bool,
}

impl Rights {
    /// Everything is allowed.
    pub const ALL: Self = Self { user: true, write: true, exec: true };
    /// Supervisor, read-only, executable.
    pub const KERNEL_TEXT: Self = Self { user: false, write: false, exec: true };
    /// Supervisor, read-only.
    pub const KERNEL_RODATA: Self = Self { user: false, write: false, exec: false };
    /// Supervisor, writable.
    pub const KERNEL_DATA: Self = Self { user: false, write: true, exec: false };
    /// User, executable.
    pub const USER_TEXT: Self = Self { user: true, write: false, exec: true };
    /// User, read-only.
    pub const USER_READ: Self = Self { user: true, write: false, exec: false };
    /// User, writable.
    pub const USER_WRITE: Self = Self { user: true, write: true, exec: false };

    /// The rights that both grant.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            user: self.user && other.user,
            write: self.write && other.write,
            exec: self.exec && other.exec,
        }
    }
}

impl Attributes {
    /// These rights, accessed, not dirty, not global.
    #[must_use]
    pub fn accessed(rights: Rights) -> Self {
        Self { rights, accessed: true, dirty: false, global: false }
    }

    /// A kernel mapping as Linux makes it: accessed, dirty, global.
    #[must_use]
    pub fn kernel(rights: Rights) -> Self {
        Self { rights, accessed: true, dirty: true, global: true }
    }
}

impl PageSize {
    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Small => 1 << 12,
            Self::Mega2 => 1 << 21,
            Self::Mega4 => 1 << 22,
            Self::Giga => 1 << 30,
        }
    }
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Bits32, Self::Pae, Self::FourLevel, Self::FiveLevel];

    /// Number of levels; the root is at this level, tables of 4 KiB mappings at level 1.
    #[must_use]
    pub fn levels(self) -> u8 {
        match self {
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::FourLevel => 4,
            Self::FiveLevel => 5,
        }
    }

    /// Bytes of an entry.
    #[must_use]
    pub fn entry_bytes(self) -> u64 {
        match self {
            Self::Bits32 => 4,
            Self::Pae | Self::FourLevel | Self::FiveLevel => 8,
        }
    }

    /// Page sizes of the mode.
    #[must_use]
    pub fn page_sizes(self) -> &'static [PageSize] {
        match self {
            Self::Bits32 => &[PageSize::Small, PageSize::Mega4],
            Self::Pae => &[PageSize::Small, PageSize::Mega2],
            Self::FourLevel | Self::FiveLevel => {
                &[PageSize::Small, PageSize::Mega2, PageSize::Giga]
            }
        }
    }

    /// The level whose entries map pages of this size, or `None` when the mode has no such pages.
    #[must_use]
    pub fn leaf_level(self, size: PageSize) -> Option<u8> {
        let level = match size {
            PageSize::Small => 1,
            PageSize::Mega2 | PageSize::Mega4 => 2,
            PageSize::Giga => 3,
        };
        self.page_sizes().contains(&size).then_some(level)
    }

    /// Bytes that one entry of a level covers.
    #[must_use]
    pub fn coverage(self, level: u8) -> u64 {
        let index_bits = if self == Self::Bits32 { 10 } else { 9 };
        1 << (12 + index_bits * (u32::from(level) - 1))
    }

    /// Number of entries in a table of a level.
    #[must_use]
    pub fn entries(self, level: u8) -> u64 {
        match self {
            Self::Bits32 => 1024,
            Self::Pae if level == 3 => 4,
            Self::Pae | Self::FourLevel | Self::FiveLevel => 512,
        }
    }

    /// Position of `gva`'s entry in the table of a level.
    #[must_use]
    pub fn index(self, gva: Gva, level: u8) -> u64 {
        gva.0 / self.coverage(level) % self.entries(level)
    }

    /// Whether the virtual address is valid in the mode: 32 bits wide, or canonical.
    #[must_use]
    pub fn names(self, gva: Gva) -> bool {
        match self {
            Self::Bits32 | Self::Pae => gva.0 < 1 << 32,
            Self::FourLevel => (gva.0 << 16).cast_signed() >> 16 == gva.0.cast_signed(),
            Self::FiveLevel => (gva.0 << 7).cast_signed() >> 7 == gva.0.cast_signed(),
        }
    }

    /// One past the highest physical address that an entry of this page size can hold.
    #[must_use]
    pub fn physical_limit(self, size: PageSize) -> u64 {
        match (self, size) {
            (Self::Bits32, PageSize::Mega4) => 1 << 40,
            (Self::Bits32, PageSize::Small | PageSize::Mega2 | PageSize::Giga) => 1 << 32,
            (Self::Pae | Self::FourLevel | Self::FiveLevel, _) => 1 << 52,
        }
    }

    /// Whether entries of this level have rights bits; those of PAE's root do not.
    #[must_use]
    pub fn has_rights(self, level: u8) -> bool {
        !(self == Self::Pae && level == 3)
    }

    /// Whether entries have an NX bit (EFER.NXE is assumed to be set).
    #[must_use]
    pub fn has_nx(self) -> bool {
        self != Self::Bits32
    }

    /// CR0 of a guest in this mode: paging, write protection, protected mode.
    #[must_use]
    pub fn cr0(self) -> u64 {
        0x8005_0033
    }

    /// CR4 of a guest in this mode.
    #[must_use]
    pub fn cr4(self) -> u64 {
        let (pse, pae, global, la57) = (1 << 4, 1 << 5, 1 << 7, 1 << 12);
        match self {
            Self::Bits32 => pse | global,
            Self::Pae => pse | pae | global,
            Self::FourLevel => pse | pae | global | 0x600,
            Self::FiveLevel => pse | pae | global | 0x600 | la57,
        }
    }

    /// EFER of a guest in this mode: system calls, long mode, NX.
    #[must_use]
    pub fn efer(self) -> u64 {
        match self {
            Self::Bits32 => 0,
            Self::Pae => 1 << 11,
            Self::FourLevel | Self::FiveLevel => 0xd01,
        }
    }
}
