//! Temperature: hints that a frame was used recently, observed when the guest was frozen, and hints
//! that a frame will be used regardless of the workload.

use std::fmt;
use std::ops::BitOr;

/// A set of usage hints. These are facts, not a prediction; policies weigh them.
///
/// All hints except the last two were observed in this guest. [`FREQUENT`](Self::FREQUENT) and
/// [`COMMON`](Self::COMMON) depend only on the kernel symbols that the frame holds and on how often
/// clones of other guests used these symbols.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Temperature(u8);

impl Temperature {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// A page-table entry that maps the frame has its accessed bit set (direct map not counted).
    pub const ACCESSED: Self = Self(1);
    /// A page-table entry that maps the frame has its dirty bit set (direct map not counted).
    pub const DIRTY: Self = Self(1 << 1);
    /// The kernel lists the page as active (`PG_active`).
    pub const ACTIVE: Self = Self(1 << 2);
    /// The kernel recorded a reference to the page (`PG_referenced`).
    pub const REFERENCED: Self = Self(1 << 3);
    /// Mapped by two or more processes.
    pub const SHARED: Self = Self(1 << 4);
    /// Belongs to one of the most recently run tasks: its structures, stack, page tables, or
    /// accessed memory.
    pub const RECENT_TASK: Self = Self(1 << 5);
    /// Holds kernel image symbols that many workloads use. Derived from the symbols that the frame
    /// holds, not observed in this guest; see `linux::common_symbols`.
    pub const FREQUENT: Self = Self(1 << 6);
    /// Holds kernel image symbols that most workloads use; implies [`FREQUENT`](Self::FREQUENT).
    /// Not observed in this guest.
    pub const COMMON: Self = Self(1 << 7);

    /// Every hint with its name.
    pub const NAMES: [(Self, &'static str); 8] = [
        (Self::ACCESSED, "accessed"),
        (Self::DIRTY, "dirty"),
        (Self::ACTIVE, "active"),
        (Self::REFERENCED, "referenced"),
        (Self::SHARED, "shared"),
        (Self::RECENT_TASK, "recent-task"),
        (Self::FREQUENT, "frequent"),
        (Self::COMMON, "common"),
    ];

    /// The set as bits, as stored in the manifest.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these bits, or `None` if an unnamed bit is set.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (u16::from(bits) < 1 << Self::NAMES.len()).then_some(Self(bits))
    }

    /// Whether this set contains all hints of `other`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The hints in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The hints of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Adds the hints of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitOr for Temperature {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Temperature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (sign, name) in Self::NAMES {
            if self.contains(sign) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Temperature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Temperature({self})")
    }
}
