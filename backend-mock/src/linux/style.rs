//! Differences between kernel versions, as data.
//!
//! Sources: the kernels' own type information and VMCOREINFO pages (Debian's cloud kernels of these
//! versions), and Linux's `include/linux/page-flags.h` and `mm_types.h`.

/// The kernel version whose data structures a guest uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KernelStyle {
    /// Linux 5.10.
    V5_10,
    /// Linux 6.1.
    V6_1,
    /// Linux 6.12.
    V6_12,
    /// Linux 7.2.
    V7_2,
}

/// Type of a page, where the mapping count or `page_type` encodes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PageType {
    Buddy,
    Offline,
    Table,
    Hugetlb,
    Slab,
    LargeKmalloc,
}

/// Order of the symbol table's parts in memory, and encoding of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KallsymsLayout {
    /// Addresses first, relative to a base; 8-byte aligned.
    OffsetsFirst,
    /// Addresses last, relative to a base; 8-byte aligned.
    OffsetsLast,
    /// Addresses last, each relative to its own location; 4-byte aligned.
    SelfRelative,
}

/// The word of a page that has no type and is not mapped.
pub(super) const NO_MAPPINGS: u32 = u32::MAX;

/// Bits of `enum pageflags` in 5.10 and 6.1.
const FLAGS_OLD: &[(&str, u32)] = &[
    ("PG_locked", 0),
    ("PG_referenced", 1),
    ("PG_uptodate", 2),
    ("PG_dirty", 3),
    ("PG_lru", 4),
    ("PG_active", 5),
    ("PG_workingset", 6),
    ("PG_waiters", 7),
    ("PG_error", 8),
    ("PG_slab", 9),
    ("PG_owner_priv_1", 10),
    ("PG_arch_1", 11),
    ("PG_reserved", 12),
    ("PG_private", 13),
    ("PG_private_2", 14),
    ("PG_writeback", 15),
    ("PG_head", 16),
    ("PG_mappedtodisk", 17),
    ("PG_reclaim", 18),
    ("PG_swapbacked", 19),
    ("PG_unevictable", 20),
    ("PG_mlocked", 21),
    ("PG_uncached", 22),
    ("PG_arch_2", 23),
    ("__NR_PAGEFLAGS", 24),
    ("PG_checked", 10),
    ("PG_swapcache", 10),
];

/// Bits of `enum pageflags` in 6.12.
const FLAGS_6_12: &[(&str, u32)] = &[
    ("PG_locked", 0),
    ("PG_writeback", 1),
    ("PG_referenced", 2),
    ("PG_uptodate", 3),
    ("PG_dirty", 4),
    ("PG_lru", 5),
    ("PG_head", 6),
    ("PG_waiters", 7),
    ("PG_active", 8),
    ("PG_workingset", 9),
    ("PG_owner_priv_1", 10),
    ("PG_owner_2", 11),
    ("PG_arch_1", 12),
    ("PG_reserved", 13),
    ("PG_private", 14),
    ("PG_private_2", 15),
    ("PG_reclaim", 16),
    ("PG_swapbacked", 17),
    ("PG_unevictable", 18),
    ("PG_mlocked", 19),
    ("PG_hwpoison", 20),
    ("PG_young", 21),
    ("PG_idle", 22),
    ("PG_arch_2", 23),
    ("__NR_PAGEFLAGS", 24),
    ("PG_swapcache", 10),
    ("PG_checked", 10),
    ("PG_anon_exclusive", 11),
];

/// Bits of `enum pageflags` in 7.2.
const FLAGS_7_2: &[(&str, u32)] = &[
    ("PG_locked", 0),
    ("PG_writeback", 1),
    ("PG_referenced", 2),
    ("PG_uptodate", 3),
    ("PG_dirty", 4),
    ("PG_lru", 5),
    ("PG_head", 6),
    ("PG_waiters", 7),
    ("PG_active", 8),
    ("PG_workingset", 9),
    ("PG_owner_priv_1", 10),
    ("PG_owner_2", 11),
    ("PG_arch_1", 12),
    ("PG_reserved", 13),
    ("PG_private", 14),
    ("PG_private_2", 15),
    ("PG_reclaim", 16),
    ("PG_swapbacked", 17),
    ("PG_unevictable", 18),
    ("PG_dropbehind", 19),
    ("PG_mlocked", 20),
    ("PG_hwpoison", 21),
    ("PG_young", 22),
    ("PG_idle", 23),
    ("PG_arch_2", 24),
    ("__NR_PAGEFLAGS", 25),
    ("PG_swapcache", 10),
    ("PG_checked", 10),
    ("PG_anon_exclusive", 11),
];

/// `enum pagetype` of 6.12; 7.2 adds large kmalloc blocks.
const PAGE_TYPES: &[(&str, u32)] = &[
    ("PGTY_buddy", 0xf0),
    ("PGTY_offline", 0xf1),
    ("PGTY_table", 0xf2),
    ("PGTY_guard", 0xf3),
    ("PGTY_hugetlb", 0xf4),
    ("PGTY_slab", 0xf5),
    ("PGTY_zsmalloc", 0xf6),
    ("PGTY_unaccepted", 0xf7),
    ("PGTY_mapcount_underflow", 0xff),
    ("PGTY_large_kmalloc", 0xf8),
];

impl KernelStyle {
    /// Every style.
    pub const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7_2];

    /// The release string of the guest's kernel.
    #[must_use]
    pub fn release(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10.0-46-mock-amd64",
            Self::V6_1 => "6.1.0-56-mock-amd64",
            Self::V6_12 => "6.12.107+mock-amd64",
            Self::V7_2 => "7.2.13+mock-amd64",
        }
    }

    /// `enum pageflags`.
    pub(super) fn page_flags(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::V5_10 | Self::V6_1 => FLAGS_OLD,
            Self::V6_12 => FLAGS_6_12,
            Self::V7_2 => FLAGS_7_2,
        }
    }

    /// Mask of a page flag; 0 if the version does not have it.
    pub(super) fn flag(self, name: &str) -> u64 {
        let found = self.page_flags().iter().find(|f| f.0 == name);
        found.map_or(0, |&(_, bit)| 1 << bit)
    }

    /// `enum pagetype`; empty for versions without it.
    pub(super) fn page_types(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::V5_10 | Self::V6_1 => &[],
            Self::V6_12 => PAGE_TYPES.get(..PAGE_TYPES.len() - 1).unwrap_or(&[]),
            Self::V7_2 => PAGE_TYPES,
        }
    }

    /// Value of `page_type` for a kind of page; `None` if the version has no such type.
    pub(super) fn page_type_word(self, kind: PageType) -> Option<u32> {
        let (old_bit, name) = match kind {
            PageType::Buddy => (Some(0x80), "PGTY_buddy"),
            PageType::Offline => (Some(0x100), "PGTY_offline"),
            PageType::Table if self == Self::V5_10 => (Some(0x400), "PGTY_table"),
            PageType::Table => (Some(0x200), "PGTY_table"),
            PageType::Hugetlb => (None, "PGTY_hugetlb"),
            PageType::Slab => (None, "PGTY_slab"),
            PageType::LargeKmalloc => (None, "PGTY_large_kmalloc"),
        };
        match self {
            Self::V5_10 | Self::V6_1 => old_bit.map(|bit: u32| !bit),
            Self::V6_12 | Self::V7_2 => {
                self.page_types().iter().find(|t| t.0 == name).map(|t| t.1 << 24)
            }
        }
    }

    /// Order of the symbol table's parts.
    pub(super) fn kallsyms(self) -> KallsymsLayout {
        match self {
            Self::V5_10 | Self::V6_1 => KallsymsLayout::OffsetsFirst,
            Self::V6_12 => KallsymsLayout::OffsetsLast,
            Self::V7_2 => KallsymsLayout::SelfRelative,
        }
    }

    /// Whether per-CPU symbols start at 0, instead of being addresses in the image.
    pub(super) fn zero_based_per_cpu(self) -> bool {
        self < Self::V7_2
    }

    /// Whether page tables of this level have a page type; others can only be found by walking the
    /// tables.
    pub(super) fn types_table_level(self, level: u8) -> bool {
        match self {
            Self::V5_10 | Self::V6_1 => level <= 2,
            Self::V6_12 => level <= 3,
            Self::V7_2 => true,
        }
    }

    /// Whether the page cache of files has large folios.
    pub(super) fn large_folios(self) -> bool {
        self >= Self::V6_1
    }

    /// Reference count of pages of the slab allocator (slab, large kmalloc).
    pub(super) fn slab_references(self) -> u32 {
        u32::from(self < Self::V7_2)
    }

    /// Number of free lists per block order (migration types).
    pub(super) fn migrate_types(self) -> u32 {
        if self < Self::V7_2 { 5 } else { 6 }
    }

    /// Number of lists of free pages per CPU.
    pub(super) fn per_cpu_lists(self) -> u32 {
        if self == Self::V5_10 { 3 } else { 14 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values in real kernels' VMCOREINFO, in decimal.
    #[test]
    fn type_words_are_those_of_real_kernels() {
        let word = |style: KernelStyle, kind| style.page_type_word(kind).map(u32::cast_signed);
        assert_eq!(word(KernelStyle::V6_1, PageType::Buddy), Some(-129));
        assert_eq!(word(KernelStyle::V6_1, PageType::Offline), Some(-257));
        assert_eq!(word(KernelStyle::V6_1, PageType::Slab), None);
        assert_eq!(word(KernelStyle::V6_12, PageType::Buddy), Some(-268_435_456));
        assert_eq!(word(KernelStyle::V6_12, PageType::Slab), Some(-184_549_376));
        assert_eq!(word(KernelStyle::V6_12, PageType::Hugetlb), Some(-201_326_592));
        assert_eq!(word(KernelStyle::V6_12, PageType::Offline), Some(-251_658_240));
        assert_eq!(word(KernelStyle::V6_12, PageType::LargeKmalloc), None);
        assert_eq!(KernelStyle::V6_1.flag("PG_head"), 65536);
        assert_eq!(KernelStyle::V6_12.flag("PG_head"), 64);
    }
}
