//! Paging modes as constants.
//!
//! Source: Intel SDM volume 3A, chapter 4 (tables 4-2 to 4-20); AMD64 APM volume 2, chapter 5.

use crate::addr::{Gpa, Gva};

/// One level of tables. Levels are listed from the root down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LevelSpec {
    /// Name of the tables of this level.
    pub name: &'static str,
    /// The lowest address bit of the index into the table; an entry covers `1 << shift` bytes.
    pub shift: u32,
    /// Number of address bits in the index into the table.
    pub index_bits: u32,
    /// Whether an entry whose page-size bit is set maps a page.
    pub large_pages: bool,
    /// Whether entries carry access rights and accessed bits (root entries of PAE do not).
    pub has_rights: bool,
}

impl LevelSpec {
    /// The address bits below the index: the offset within the range that an entry covers.
    pub(super) const fn offset_mask(&self) -> u64 {
        !(u64::MAX << self.shift)
    }

    /// Index of the entry that covers an address.
    pub(super) const fn index(&self, address: u64) -> u64 {
        (address >> self.shift) & !(u64::MAX << self.index_bits)
    }
}

/// A page-table format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingSpec {
    /// Name for display.
    pub name: &'static str,
    /// Bytes in an entry, 4 or 8.
    pub entry_bytes: usize,
    /// Levels, root first; the last one maps 4 KiB pages.
    pub levels: &'static [LevelSpec],
    /// Bits of an entry that hold a physical address.
    pub address_mask: u64,
    /// Bits of the root register that hold the root table's address.
    pub root_mask: u64,
    /// The no-execute bit, if the format has one.
    pub no_execute: Option<u64>,
    /// Whether 4 MiB pages keep address bits 32 to 39 in entry bits 13 to 20 (PSE-36).
    pub pse36: bool,
    /// Number of significant address bits; bits above them in a canonical address repeat the
    /// highest.
    pub address_bits: u32,
}

const fn level(name: &'static str, shift: u32, index_bits: u32, large_pages: bool) -> LevelSpec {
    LevelSpec { name, shift, index_bits, large_pages, has_rights: true }
}

const LONG_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const NO_EXECUTE: u64 = 1 << 63;

impl PagingSpec {
    /// Present bit of an entry, the same in all x86 formats.
    pub const PRESENT: u64 = 1;
    /// Writable bit of an entry.
    pub const WRITABLE: u64 = 1 << 1;
    /// User bit of an entry.
    pub const USER: u64 = 1 << 2;
    /// Accessed bit of an entry.
    pub const ACCESSED: u64 = 1 << 5;
    /// Dirty bit of a leaf entry.
    pub const DIRTY: u64 = 1 << 6;
    /// Page-size bit of an entry in a level with large pages.
    pub const LARGE: u64 = 1 << 7;

    /// Long mode with four levels.
    pub const X86_64_4LEVEL: Self = Self {
        name: "x86-64 4-level",
        entry_bytes: 8,
        levels: &[
            level("PML4", 39, 9, false),
            level("PDPT", 30, 9, true),
            level("PD", 21, 9, true),
            level("PT", 12, 9, false),
        ],
        address_mask: LONG_ADDRESS,
        root_mask: LONG_ADDRESS,
        no_execute: Some(NO_EXECUTE),
        pse36: false,
        address_bits: 48,
    };

    /// Long mode with five levels (CR4.LA57).
    pub const X86_64_5LEVEL: Self = Self {
        name: "x86-64 5-level",
        levels: &[
            level("PML5", 48, 9, false),
            level("PML4", 39, 9, false),
            level("PDPT", 30, 9, true),
            level("PD", 21, 9, true),
            level("PT", 12, 9, false),
        ],
        address_bits: 57,
        ..Self::X86_64_4LEVEL
    };

    /// 32-bit addresses with 64-bit entries (CR4.PAE).
    pub const X86_PAE: Self = Self {
        name: "x86 PAE",
        levels: &[
            LevelSpec {
                name: "PDPT",
                shift: 30,
                index_bits: 2,
                large_pages: false,
                has_rights: false,
            },
            level("PD", 21, 9, true),
            level("PT", 12, 9, false),
        ],
        root_mask: 0xffff_ffe0,
        address_bits: 32,
        ..Self::X86_64_4LEVEL
    };

    /// 32-bit addresses with 32-bit entries, 4 MiB pages (CR4.PSE) included.
    pub const X86_32: Self = Self {
        name: "x86 32-bit",
        entry_bytes: 4,
        levels: &[level("PD", 22, 10, true), level("PT", 12, 10, false)],
        address_mask: 0xffff_f000,
        root_mask: 0xffff_f000,
        no_execute: None,
        pse36: true,
        address_bits: 32,
    };

    /// The same format with the bits of `mask` removed from addresses, because they control memory
    /// encryption.
    #[must_use]
    pub(crate) fn without_bits(mut self, mask: u64) -> Self {
        self.address_mask &= !mask;
        self.root_mask &= !mask;
        self
    }

    /// Bytes in a table of this level.
    #[must_use]
    pub fn table_bytes(&self, level: &LevelSpec) -> usize {
        self.entry_bytes << level.index_bits
    }

    /// The entries of a table, with their indices.
    pub(crate) fn entries<'t>(
        &self,
        table: &'t [u8],
    ) -> impl Iterator<Item = (u64, u64)> + use<'t> {
        (0..).zip(table.chunks_exact(self.entry_bytes)).map(|(index, bytes)| {
            let entry = match (bytes.first_chunk(), bytes.first_chunk()) {
                (Some(&long), _) => u64::from_le_bytes(long),
                (None, Some(&short)) => u64::from(u32::from_le_bytes(short)),
                (None, None) => 0,
            };
            (index, entry)
        })
    }

    /// Whether addresses repeat their highest significant bit up to bit 63.
    #[must_use]
    pub fn has_canonical_addresses(&self) -> bool {
        self.address_bits > 32
    }

    /// The highest significant address bit and all bits above it. They are set in the kernel half
    /// and clear in the user half.
    pub(super) fn sign_bits(&self) -> u64 {
        u64::MAX << self.address_bits.clamp(1, 64).saturating_sub(1)
    }

    /// The address in canonical form: in long mode, sign-extended from its highest significant bit;
    /// in 32-bit modes, with the upper bits cleared.
    #[must_use]
    pub fn canonical(&self, address: u64) -> Gva {
        let unused = 64_u32.saturating_sub(self.address_bits.clamp(1, 64));
        let shifted = address << unused;
        if self.has_canonical_addresses() {
            #[expect(clippy::cast_sign_loss, reason = "the sign bit is meant to be repeated")]
            #[expect(clippy::cast_possible_wrap, reason = "the sign bit is meant to be repeated")]
            let extended = ((shifted as i64) >> unused) as u64;
            Gva(extended)
        } else {
            Gva(shifted >> unused)
        }
    }

    /// Physical address of the page that a leaf entry of this level maps.
    pub(crate) fn leaf_address(&self, entry: u64, level: &LevelSpec) -> Gpa {
        let mut address = entry & self.address_mask & !level.offset_mask();
        if self.pse36 && level.shift > crate::addr::FRAME_SHIFT {
            address |= (entry >> 13 & 0xff) << 32;
        }
        Gpa(address)
    }

    /// Whether an entry of this level maps a page. `last` is true for the last level.
    pub(crate) fn is_leaf(entry: u64, level: &LevelSpec, last: bool) -> bool {
        last || (level.large_pages && entry & Self::LARGE != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_cover_the_address() {
        let specs = [
            PagingSpec::X86_64_4LEVEL,
            PagingSpec::X86_64_5LEVEL,
            PagingSpec::X86_PAE,
            PagingSpec::X86_32,
        ];
        for spec in specs {
            let mut top = spec.address_bits;
            for level in spec.levels {
                assert_eq!(level.shift + level.index_bits, top, "{}", spec.name);
                top = level.shift;
            }
            assert_eq!(top, 12);
        }
    }

    #[test]
    fn canonical_addresses() {
        let high = PagingSpec::X86_64_4LEVEL.canonical(0x8000_0000_0000);
        assert_eq!(high, Gva(0xffff_8000_0000_0000));
        assert_eq!(PagingSpec::X86_64_5LEVEL.canonical(0x8000_0000_0000), Gva(0x8000_0000_0000));
        assert_eq!(PagingSpec::X86_32.canonical(0xc000_0000), Gva(0xc000_0000));
    }
}
