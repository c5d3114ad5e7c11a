//! `/proc/kpageflags`: one word of flags per frame, and the class of a frame by its flags.
//!
//! Flag numbers are Linux's `KPF_*` (`include/uapi/linux/kernel-page-flags.h` and
//! `include/linux/kernel-page-flags.h`), meanings are those of
//! `Documentation/admin-guide/mm/pagemap.rst` and of `stable_page_flags()` in `fs/proc/page.c`.
use std::fmt;

use serde::Serialize;

use crate::check::coloring::Kind;

const LRU: u64 = 1 << 5;
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const ANON: u64 = 1 << 12;
const SWAPCACHE: u64 = 1 << 13;
const SWAPBACKED: u64 = 1 << 14;
const COMPOUND_HEAD: u64 = 1 << 15;
const COMPOUND_TAIL: u64 = 1 << 16;
const HUGE: u64 = 1 << 17;
const UNEVICTABLE: u64 = 1 << 18;
const NOPAGE: u64 = 1 << 20;
const OFFLINE: u64 = 1 << 23;
const ZERO_PAGE: u64 = 1 << 24;
const PGTABLE: u64 = 1 << 26;
const RESERVED: u64 = 1 << 32;

/// Flags of a compound page as a whole. Kernels before 6.10 read most flags of a tail from the
/// tail's own descriptor, where they are never set. A tail therefore takes these from its head.
const COMPOUND_FLAGS: u64 =
    LRU | SLAB | ANON | SWAPCACHE | SWAPBACKED | HUGE | UNEVICTABLE | ZERO_PAGE;

/// Names of the flags, by bit.
const NAMES: [&str; 42] = [
    "LOCKED",
    "ERROR",
    "REFERENCED",
    "UPTODATE",
    "DIRTY",
    "LRU",
    "ACTIVE",
    "SLAB",
    "WRITEBACK",
    "RECLAIM",
    "BUDDY",
    "MMAP",
    "ANON",
    "SWAPCACHE",
    "SWAPBACKED",
    "COMPOUND_HEAD",
    "COMPOUND_TAIL",
    "HUGE",
    "UNEVICTABLE",
    "HWPOISON",
    "NOPAGE",
    "KSM",
    "THP",
    "OFFLINE",
    "ZERO_PAGE",
    "IDLE",
    "PGTABLE",
    "27",
    "28",
    "29",
    "30",
    "31",
    "RESERVED",
    "MLOCKED",
    "MAPPEDTODISK",
    "PRIVATE",
    "PRIVATE_2",
    "OWNER_PRIVATE",
    "ARCH",
    "UNCACHED",
    "SOFTDIRTY",
    "ARCH_2",
];

/// Flags of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u64);

impl Flags {
    fn any(self, mask: u64) -> bool {
        self.0 & mask != 0
    }

    fn all(self, mask: u64) -> bool {
        self.0 & mask == mask
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("-");
        }
        let set = (0..u64::BITS).filter(|bit| (self.0 >> bit) & 1 == 1);
        for (nth, bit) in set.enumerate() {
            let separator = if nth == 0 { "" } else { "|" };
            match usize::try_from(bit).ok().and_then(|bit| NAMES.get(bit)) {
                Some(name) => write!(f, "{separator}{name}")?,
                None => write!(f, "{separator}{bit}")?,
            }
        }
        Ok(())
    }
}

/// The class of a frame by its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    /// On a free list of the buddy allocator.
    Free,
    /// Slab.
    Slab,
    /// Page table.
    PageTable,
    /// Anonymous, or in the swap cache.
    Anonymous,
    /// Swap-backed but not anonymous: tmpfs, memfd, System V.
    Shared,
    /// Page cache of a file or of a block device; the flags do not tell them apart.
    File,
    /// Reserved at boot (kernel image, memory map, firmware), or a shared page of zeros.
    Kernel,
    /// Of the hugetlb pool.
    Hugetlb,
    /// Balloon or unplugged.
    Offline,
    /// Unknown by the flags: kernel allocations without a type, per-CPU free lists, pages between
    /// two lists.
    Untyped,
    /// No page descriptor: not memory of this guest.
    Absent,
}

impl Class {
    /// Classes that determine the kind of a frame.
    pub(crate) const JUDGED: [Self; 9] = [
        Self::Free,
        Self::Slab,
        Self::PageTable,
        Self::Anonymous,
        Self::Shared,
        Self::File,
        Self::Kernel,
        Self::Hugetlb,
        Self::Offline,
    ];

    /// The name used in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Slab => "slab",
            Self::PageTable => "page-table",
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
            Self::File => "file",
            Self::Kernel => "kernel",
            Self::Hugetlb => "hugetlb",
            Self::Offline => "offline",
            Self::Untyped => "untyped",
            Self::Absent => "absent",
        }
    }

    /// Whether `kind` is right for a frame of this class; `None` if the class does not decide it.
    pub(crate) fn accepts(self, kind: Kind) -> Option<bool> {
        Some(match self {
            Self::Free => kind == Kind::Free,
            Self::Slab => kind == Kind::Slab,
            Self::PageTable => kind == Kind::PageTable,
            Self::Anonymous => kind == Kind::Anonymous,
            Self::Shared => kind == Kind::Shared,
            Self::File => matches!(kind, Kind::File | Kind::BlockDevice),
            Self::Kernel => kind == Kind::Kernel,
            Self::Hugetlb => kind == Kind::Hugetlb,
            Self::Offline => kind == Kind::Offline,
            Self::Untyped | Self::Absent => return None,
        })
    }

    /// The first matching rule decides. The order matters: a slab's descriptor has other data in
    /// place of a page's mapping, so that kernels since 6.11 report some slabs as anonymous, too.
    /// `KSM` is ignored: a merged page is anonymous in any case, and kernel 6.12 sets the flag on
    /// every anonymous page.
    fn of(flags: Flags) -> Self {
        let rules: [(bool, Self); 10] = [
            (flags.any(NOPAGE), Self::Absent),
            (flags.any(BUDDY), Self::Free),
            (flags.any(HUGE), Self::Hugetlb),
            (flags.any(SLAB), Self::Slab),
            (flags.any(PGTABLE), Self::PageTable),
            (flags.any(OFFLINE), Self::Offline),
            (flags.any(RESERVED | ZERO_PAGE), Self::Kernel),
            (flags.any(ANON) || flags.all(SWAPCACHE | SWAPBACKED), Self::Anonymous),
            (flags.any(SWAPBACKED), Self::Shared),
            (flags.any(LRU | UNEVICTABLE), Self::File),
        ];
        rules.into_iter().find_map(|(holds, class)| holds.then_some(class)).unwrap_or(Self::Untyped)
    }
}

/// Classifies all frames. A tail of a compound page takes flags from its head, the nearest one
/// before it.
pub(crate) fn classify(flags: &[Flags]) -> Vec<Class> {
    let mut head = Flags(0);
    let each = |&own: &Flags| {
        if own.any(COMPOUND_HEAD) {
            head = own;
        } else if !own.any(COMPOUND_TAIL) {
            head = Flags(0);
        }
        Class::of(Flags(own.0 | head.0 & COMPOUND_FLAGS))
    };
    flags.iter().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(flags: u64) -> Class {
        Class::of(Flags(flags))
    }

    #[test]
    fn the_first_flag_that_decides_wins() {
        assert_eq!(class(NOPAGE), Class::Absent);
        assert_eq!(class(BUDDY), Class::Free);
        assert_eq!(class(SLAB | ANON), Class::Slab);
        assert_eq!(class(HUGE | ANON), Class::Hugetlb);
        assert_eq!(class(PGTABLE), Class::PageTable);
        assert_eq!(class(OFFLINE), Class::Offline);
        assert_eq!(class(RESERVED), Class::Kernel);
        assert_eq!(class(ZERO_PAGE), Class::Kernel);
        assert_eq!(
            class(ANON | LRU),
            Class::Anonymous,
            "freed lazily: anonymous without a claim to swap"
        );
        assert_eq!(class(SWAPCACHE | SWAPBACKED), Class::Anonymous);
        assert_eq!(class(SWAPBACKED | LRU), Class::Shared);
        assert_eq!(class(LRU), Class::File);
        assert_eq!(class(UNEVICTABLE), Class::File);
        assert_eq!(class(COMPOUND_HEAD), Class::Untyped);
        assert_eq!(class(0), Class::Untyped);
    }

    #[test]
    fn a_tail_takes_compound_flags_from_its_head() {
        let flags = [
            COMPOUND_HEAD | LRU | SWAPBACKED,
            COMPOUND_TAIL,
            0,
            COMPOUND_TAIL,
            COMPOUND_HEAD,
            COMPOUND_TAIL,
        ];
        let expected = [
            Class::Shared,
            Class::Shared,
            Class::Untyped,
            Class::Untyped,
            Class::Untyped,
            Class::Untyped,
        ];
        assert_eq!(classify(&flags.map(Flags)), expected);
    }

    #[test]
    fn flags_are_decoded() {
        assert_eq!(Flags(LRU | RESERVED | 1 << 60).to_string(), "LRU|RESERVED|60");
        assert_eq!(Flags(0).to_string(), "-");
    }
}
