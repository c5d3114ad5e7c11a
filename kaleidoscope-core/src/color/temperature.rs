//! Temperature: signs that a frame was used lately, observed at the freeze, and signs that it will
//! be used whatever the guest does.

use std::fmt;
use std::ops::BitOr;

/// A set of signs of use. Facts, not a prediction: policies weigh them.
///
/// All but the last two were observed in this guest. [`FREQUENT`](Self::FREQUENT) and
/// [`COMMON`](Self::COMMON) say nothing of what this guest did: they say which symbols the frame
/// holds, and that clones of other guests used those.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Temperature(u8);

impl Temperature {
    /// No sign of use.
    pub const NONE: Self = Self(0);
    /// A page-table entry that maps the frame has its accessed bit set (direct map not counted).
    pub const ACCESSED: Self = Self(1);
    /// A page-table entry that maps the frame has its dirty bit set (direct map not counted).
    pub const DIRTY: Self = Self(1 << 1);
    /// The kernel counts the page as active (`PG_active`).
    pub const ACTIVE: Self = Self(1 << 2);
    /// The kernel saw a reference to the page (`PG_referenced`).
    pub const REFERENCED: Self = Self(1 << 3);
    /// Mapped by two or more processes.
    pub const SHARED: Self = Self(1 << 4);
    /// Belongs to one of the tasks that ran last: their structures, stacks, page tables, accessed
    /// memory.
    pub const RECENT_TASK: Self = Self(1 << 5);
    /// Holds symbols of the kernel image of which many workloads use some. Not an observation of
    /// this guest's use, but a fact about which symbols the frame holds:
    /// [`common_symbols`](crate::linux::common_symbols).
    pub const FREQUENT: Self = Self(1 << 6);
    /// Holds symbols of the kernel image that most workloads use; [`FREQUENT`](Self::FREQUENT) too.
    /// Not an observation either.
    pub const COMMON: Self = Self(1 << 7);

    /// Every sign with its name.
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

    /// The set with these bits, or `None` when an unnamed bit is set.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (u16::from(bits) < 1 << Self::NAMES.len()).then_some(Self(bits))
    }

    /// Whether all signs of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The signs of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The signs of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Adds the signs of `other`.
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
