//! Memory encryption bits in page-table entries. Memory itself is plaintext, as in a decrypted
//! dump.

use super::guest::MockGuest;
use super::truth::Role;
use crate::MockError;
use crate::ram::{read_u64, write_uint};
use kaleidoscope_core::addr::{Gfn, Gpa};
use std::collections::{BTreeMap, BTreeSet};

/// Which entries carry the encryption bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Encryption {
    /// AMD SME and SEV: all entries that point to tables, and to pages that are not shared with the
    /// host.
    Encrypted(u32),
    /// Intel TDX: entries that point to shared pages.
    Shared(u32),
}

impl Encryption {
    /// The mask of the bit.
    pub(super) fn mask(self) -> u64 {
        match self {
            Self::Encrypted(bit) | Self::Shared(bit) => 1_u64.checked_shl(bit).unwrap_or(0),
        }
    }

    /// The value of `sme_mask` in VMCOREINFO, which CR3 carries as well.
    pub(super) fn sme_mask(self) -> u64 {
        match self {
            Self::Encrypted(_) => self.mask(),
            Self::Shared(_) => 0,
        }
    }
}

impl MockGuest {
    /// Whether the kernel shares this page with its host: about every eighth page, none of its
    /// image.
    fn is_shared(&self, gfn: Gfn) -> bool {
        let in_image = matches!(
            self.truth.role(gfn),
            Some(Role::KernelText | Role::KernelRodata | Role::KernelData)
        );
        !in_image && gfn.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 == 0
    }

    /// Sets the bits in the guest's page tables. This is the last step of building a guest.
    pub(super) fn encrypt(&mut self, encryption: Encryption) -> Result<(), MockError> {
        let kernel: BTreeMap<Gfn, u8> =
            self.truth.kernel.tables.iter().map(|t| (t.gfn, t.level)).collect();
        let top = self.truth.kernel.mode.levels();
        let mut tables = BTreeMap::new();
        for space in &self.truth.spaces {
            tables.extend(space.tables.iter().map(|t| (t.gfn, t.level)));
            tables.insert(space.user_root.gfn(), top);
        }
        let kernel_only: BTreeSet<Gfn> = kernel.keys().copied().collect();
        tables.extend(kernel);
        for (table, level) in tables {
            for slot in 0..512 {
                let at = Gpa(table.gpa().0 + slot * 8);
                let entry = read_u64(&self.memory, at)?;
                if entry & 1 == 0 {
                    continue;
                }
                let is_leaf = level == 1 || (level <= 3 && entry & 0x80 != 0);
                let offset = if level == 1 { 0 } else { 0x1f_ffff };
                let leads_to = Gpa(entry & 0x000f_ffff_ffff_f000 & !offset).gfn();
                let shared = is_leaf && kernel_only.contains(&table) && self.is_shared(leads_to);
                let carries = match encryption {
                    Encryption::Encrypted(_) => !shared,
                    Encryption::Shared(_) => shared,
                };
                if carries {
                    write_uint(&mut self.memory, at, 8, entry | encryption.mask())?;
                }
            }
        }
        for registers in &mut self.registers {
            registers.cr3 = registers.cr3.map(|cr3| cr3 | encryption.sme_mask());
        }
        self.ignored = encryption.mask();
        Ok(())
    }
}
