//! Translation of a single address.

use super::spec::PagingSpec;
use crate::addr::{Gpa, Gva};
use crate::memory::GuestMemory;

/// Result of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// The address is mapped.
    Mapped {
        /// Physical address of the translated address.
        gpa: Gpa,
        /// Size of the page that maps it, in bytes.
        page_bytes: u64,
    },
    /// A present bit on the path is clear.
    NotPresent {
        /// Depth at which the walk ended; the root is 0.
        depth: usize,
    },
    /// A table on the path could not be read.
    Unreadable {
        /// Physical address of the entry.
        entry: Gpa,
    },
    /// The address is not canonical in this paging mode.
    NotCanonical,
}

impl Translation {
    /// The physical address, if mapped.
    #[must_use]
    pub fn gpa(self) -> Option<Gpa> {
        match self {
            Self::Mapped { gpa, .. } => Some(gpa),
            Self::NotPresent { .. } | Self::Unreadable { .. } | Self::NotCanonical => None,
        }
    }
}

/// Translates one virtual address with the tables of the root register value `root`.
pub fn translate<M>(memory: &M, spec: &PagingSpec, root: Gpa, gva: Gva) -> Translation
where
    M: GuestMemory + ?Sized,
{
    if spec.canonical(gva.0) != gva {
        return Translation::NotCanonical;
    }
    let mut table = Gpa(root.0 & spec.root_mask);
    for (depth, level) in spec.levels.iter().enumerate() {
        let offset = level.index(gva.0).wrapping_mul(spec.entry_bytes as u64);
        let entry_gpa = Gpa(table.0.wrapping_add(offset));
        let mut bytes = [0; 8];
        let read = bytes.get_mut(..spec.entry_bytes).map(|buf| memory.read(entry_gpa, buf));
        if !matches!(read, Some(Ok(()))) {
            return Translation::Unreadable { entry: entry_gpa };
        }
        let entry = u64::from_le_bytes(bytes);
        if entry & PagingSpec::PRESENT == 0 {
            return Translation::NotPresent { depth };
        }
        if PagingSpec::is_leaf(entry, level, depth.saturating_add(1) == spec.levels.len()) {
            let page_bytes = 1u64 << level.shift;
            let offset = gva.0 & level.offset_mask();
            let gpa = Gpa(spec.leaf_address(entry, level).0 | offset);
            return Translation::Mapped { gpa, page_bytes };
        }
        table = Gpa(entry & spec.address_mask);
    }
    // Reached only if the format has no levels.
    Translation::NotCanonical
}
