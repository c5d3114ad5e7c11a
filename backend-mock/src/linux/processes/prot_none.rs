//! Inaccessible pages of processes (`PROT_NONE` and NUMA balancing), and entries that look alike.

use crate::MockError;
use crate::linux::encryption::Encryption;
use crate::linux::guest::MockGuest;
use crate::linux::truth::Role;
use crate::ram::{read_u64, write_uint};
use kaleidoscope_core::addr::{Gfn, Gpa};
use std::collections::BTreeMap;

/// Bits besides the address that `pte_modify` keeps: cache modes, accessed, dirty, soft-dirty and
/// special.
const KEPT_BITS: u64 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11;

/// `_PAGE_PROTNONE`.
const PROT_NONE: u64 = 1 << 8;

/// The page-size bit.
const LARGE: u64 = 1 << 7;

/// Depends on the position alone, so that guests with and without this differ in nothing else.
fn one_in_four(table: Gfn, slot: u64) -> bool {
    (table.0 * 512 + slot).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0
}

impl MockGuest {
    /// Makes every fourth page, and every huge page, inaccessible among those that processes map
    /// and may not execute. Adds entries of swapped-out and migrating pages where last-level tables
    /// have empty slots.
    ///
    /// With `encryption`, the tables carry its bit already. The bit is not part of the address,
    /// which Linux inverts.
    pub(in crate::linux) fn revoke(
        &mut self,
        encryption: Option<Encryption>,
    ) -> Result<(), MockError> {
        let physical = match encryption {
            None => (1 << 52) - 1,
            Some(bit @ Encryption::Encrypted(_)) => ((1 << 52) - 1) & !bit.mask(),
            Some(bit @ Encryption::Shared(_)) => bit.mask() - 1,
        };
        let carried = encryption.map_or(0, Encryption::sme_mask);
        let tables: BTreeMap<Gfn, u8> = self
            .truth
            .spaces
            .iter()
            .flat_map(|s| s.tables.iter().map(|t| (t.gfn, t.level)))
            .filter(|&(_, level)| level <= 2)
            .collect();
        let roles = self.truth.layout.iter().zip(&self.truth.roles);
        let free: Vec<u64> = roles
            .filter(|(_, role)| matches!(role, Role::Free { .. }))
            .map(|((_, gfn), _)| gfn.0)
            .collect();
        let mut decoys = free.iter().cycle();
        for (table, level) in tables {
            // All of the huge pages, since there are few.
            for slot in (0..512).filter(|&slot| level == 2 || one_in_four(table, slot)) {
                let at = Gpa(table.gpa().0 + slot * 8);
                let entry = read_u64(&self.memory, at)?;
                let is_page = level == 1 || entry & LARGE != 0;
                let new = if entry & 1 != 0 && is_page && entry >> 63 == 1 {
                    let (address, size) =
                        if level == 1 { (!0xfff, 0) } else { (!0x1f_ffff, LARGE) };
                    let inverted = !entry & physical & address;
                    let flags = entry & (KEPT_BITS | size | carried);
                    self.revoked += if level == 1 { 1 } else { 512 };
                    inverted | flags | PROT_NONE
                } else if entry == 0 && level == 1 && slot % 2 == 0 {
                    let Some(&gfn) = decoys.next() else { continue };
                    not_mapped(gfn, slot % 4 == 0)
                } else {
                    continue;
                };
                write_uint(&mut self.memory, at, 8, new)?;
            }
        }
        Ok(())
    }
}

/// `__swp_entry`: a swapped-out or migrating page. Its offset is chosen such that a reader that
/// takes the entry for an inaccessible page would get `gfn`.
fn not_mapped(gfn: u64, migrating: bool) -> u64 {
    let (kind, bits, offset) = (if migrating { 30 } else { 1 }, 5, gfn << 3);
    (!offset << (9 + bits) >> bits) | kind << 59
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_entries_are_decoys() {
        for migrating in [false, true] {
            let entry = not_mapped(0x1234, migrating);
            assert_eq!(!entry & 0x000f_ffff_ffff_f000, 0x1234 << 12);
            assert_eq!(entry & 0x1ff, 0, "neither present nor PROT_NONE");
        }
    }
}
