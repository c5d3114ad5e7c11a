//! A reference page-table walker with one `if` per rule of the manual: slow, but simple enough to
//! be trusted.

use super::{Mode, PageSize, Rights};
use crate::ram::{read_u32, read_u64};
use kaleidoscope_core::addr::{Gpa, Gva};
use kaleidoscope_core::memory::VecMemory;

/// Result of translating a virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address of the byte.
    pub gpa: Gpa,
    /// Size of the page.
    pub size: PageSize,
    /// Effective rights. NX in top-level entries counts, even where Linux sets it only for
    /// page-table isolation.
    pub rights: Rights,
    /// The accessed bit of the entry that maps the page.
    pub accessed: bool,
    /// The dirty bit of that entry.
    pub dirty: bool,
}

/// Translates `gva` as the processor would with `root` in CR3; `None` when it is not mapped or a
/// table is not in RAM.
#[must_use]
pub fn translate(memory: &VecMemory, mode: Mode, root: Gpa, gva: Gva) -> Option<Translation> {
    translate_without(memory, mode, root, gva, 0)
}

/// Like [`translate`], ignoring address bits that memory encryption sets in entries and the
/// processor strips.
#[must_use]
pub fn translate_without(
    memory: &VecMemory,
    mode: Mode,
    root: Gpa,
    gva: Gva,
    ignored: u64,
) -> Option<Translation> {
    match mode {
        Mode::Bits32 => translate_32(memory, root, gva),
        Mode::Pae => translate_pae(memory, root, gva, ignored),
        Mode::FourLevel => translate_long(memory, root, gva, 4, ignored),
        Mode::FiveLevel => translate_long(memory, root, gva, 5, ignored),
    }
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

fn rights_of(entry: u64) -> Rights {
    Rights { user: entry >> 2 & 1 == 1, write: entry >> 1 & 1 == 1, exec: entry >> 63 == 0 }
}

fn found(entry: u64, gpa: u64, size: PageSize, rights: Rights) -> Option<Translation> {
    let (accessed, dirty) = (entry >> 5 & 1 == 1, entry >> 6 & 1 == 1);
    Some(Translation { gpa: Gpa(gpa), size, rights, accessed, dirty })
}

fn translate_32(memory: &VecMemory, root: Gpa, gva: Gva) -> Option<Translation> {
    if gva.0 >> 32 != 0 {
        return None;
    }
    let pde = u64::from(read_u32(memory, Gpa((root.0 & 0xffff_f000) + (gva.0 >> 22) * 4)).ok()?);
    if pde & 1 == 0 {
        return None;
    }
    if pde & 0x80 != 0 {
        let gpa = (pde & 0xffc0_0000) + ((pde >> 13 & 0xff) << 32) + (gva.0 & 0x3f_ffff);
        return found(pde, gpa, PageSize::Mega4, rights_of(pde));
    }
    let pte =
        u64::from(read_u32(memory, Gpa((pde & 0xffff_f000) + (gva.0 >> 12 & 0x3ff) * 4)).ok()?);
    if pte & 1 == 0 {
        return None;
    }
    found(
        pte,
        (pte & 0xffff_f000) + (gva.0 & 0xfff),
        PageSize::Small,
        rights_of(pde).and(rights_of(pte)),
    )
}

fn translate_pae(memory: &VecMemory, root: Gpa, gva: Gva, ignored: u64) -> Option<Translation> {
    if gva.0 >> 32 != 0 {
        return None;
    }
    let pdpte = read_u64(memory, Gpa((root.0 & 0xffff_ffe0) + (gva.0 >> 30) * 8)).ok()?;
    if pdpte & 1 == 0 {
        return None;
    }
    let pde =
        read_u64(memory, Gpa((pdpte & ADDRESS & !ignored) + (gva.0 >> 21 & 0x1ff) * 8)).ok()?;
    last_levels(memory, pde, Rights::ALL, gva, ignored)
}

/// Walks the page-directory entry and, unless it maps 2 MiB, the page-table entry.
fn last_levels(
    memory: &VecMemory,
    pde: u64,
    above: Rights,
    gva: Gva,
    ignored: u64,
) -> Option<Translation> {
    let address = ADDRESS & !ignored;
    if pde & 1 == 0 {
        return None;
    }
    let rights = above.and(rights_of(pde));
    if pde & 0x80 != 0 {
        return found(
            pde,
            (pde & address & !0x1f_ffff) + (gva.0 & 0x1f_ffff),
            PageSize::Mega2,
            rights,
        );
    }
    let pte = read_u64(memory, Gpa((pde & address) + (gva.0 >> 12 & 0x1ff) * 8)).ok()?;
    if pte & 1 == 0 {
        return None;
    }
    found(pte, (pte & address) + (gva.0 & 0xfff), PageSize::Small, rights.and(rights_of(pte)))
}

fn translate_long(
    memory: &VecMemory,
    root: Gpa,
    gva: Gva,
    levels: u32,
    ignored: u64,
) -> Option<Translation> {
    let address = ADDRESS & !ignored;
    let unused = 64 - (12 + 9 * levels);
    if (gva.0 << unused).cast_signed() >> unused != gva.0.cast_signed() {
        return None;
    }
    let mut table = root.0 & address;
    let mut rights = Rights::ALL;
    for level in (3..=levels).rev() {
        let index = gva.0 >> (12 + 9 * (level - 1)) & 0x1ff;
        let entry = read_u64(memory, Gpa(table + index * 8)).ok()?;
        if entry & 1 == 0 {
            return None;
        }
        rights = rights.and(rights_of(entry));
        if level == 3 && entry & 0x80 != 0 {
            return found(
                entry,
                (entry & address & !0x3fff_ffff) + (gva.0 & 0x3fff_ffff),
                PageSize::Giga,
                rights,
            );
        }
        table = entry & address;
    }
    let pde = read_u64(memory, Gpa(table + (gva.0 >> 21 & 0x1ff) * 8)).ok()?;
    last_levels(memory, pde, rights, gva, ignored)
}
