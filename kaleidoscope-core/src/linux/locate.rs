//! Finding the kernel: its page tables, its image in memory, its own notes.
//!
//! With vCPU registers the root is CR3. Without, it is the VMCOREINFO page: a page that starts with `OSRELEASE=` and names
//! the address of the kernel's root table. Only page starts are looked at, so that a copy of the text in the middle of a
//! log or a file is not mistaken for it; a copy at a page start must still name a root that maps itself.

use super::vmcoreinfo::VmcoreInfo;
use crate::addr::{FRAME_BYTES, Gfn, Gpa, Gva};
use crate::memory::{GuestMemory, MemoryLayout};
use crate::paging::{KernelSpace, PagingSpec, TableBudget, translate};
use crate::registers::{PagingMode, VcpuRegisters};
use thiserror::Error;

/// Where x86-64 Linux maps its image, before the random offset (`__START_KERNEL_map`).
pub(crate) const IMAGE_BASE: Gva = Gva(0xffff_ffff_8000_0000);

/// End of the area that the image is mapped in (`KERNEL_IMAGE_SIZE` with a random offset), inclusive.
pub(crate) const IMAGE_LAST: Gva = Gva(0xffff_ffff_bfff_ffff);

/// The smallest executable part that a kernel image has.
const MIN_TEXT: u64 = 4 << 20;

/// The largest image that is looked at.
const MAX_IMAGE: u64 = 256 << 20;

/// First bytes of the VMCOREINFO text.
const NOTE_START: &[u8] = b"OSRELEASE=";

/// How many pages that look like VMCOREINFO are tried.
const MAX_NOTES: usize = 64;

/// Frames for each of which a kernel's own page tables may have one table, and tables beside.
const FRAMES_PER_TABLE: u64 = 8;
const SPARE_TABLES: u64 = 2048;

/// Why no Linux kernel was found.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LocateError {
    /// The registers name no address space that maps a kernel image, and no VMCOREINFO page names one either.
    #[error(
        "no Linux kernel found: {roots} page-table roots from registers and {notes} VMCOREINFO pages were tried"
    )]
    NoKernel {
        /// Roots tried.
        roots: usize,
        /// Pages that start like VMCOREINFO.
        notes: usize,
    },
}

/// The kernel image as mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ImageSpan {
    /// First virtual address: the image starts with executable code.
    pub(crate) gva: Gva,
    /// First physical address.
    pub(crate) gpa: Gpa,
    /// Length in bytes, gaps left by freed parts included.
    pub(crate) bytes: u64,
}

impl ImageSpan {
    /// Whether an address lies in the image.
    pub(crate) fn contains(&self, gva: Gva) -> bool {
        gva.0.checked_sub(self.gva.0).is_some_and(|offset| offset < self.bytes)
    }
}

/// A kernel found in memory.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) spec: PagingSpec,
    pub(crate) root: Gpa,
    pub(crate) space: KernelSpace,
    pub(crate) image: ImageSpan,
    /// VMCOREINFO, if it was needed to find the kernel.
    pub(crate) note: Option<VmcoreInfo>,
}

/// Tables that one root may cost while the kernel is looked for: so many serve a kernel that maps every frame 64 times. A root
/// that is none, or a decoy, thus leaves enough for the others.
fn read_space<M>(memory: &M, spec: &PagingSpec, root: Gpa, budget: &mut TableBudget) -> KernelSpace
where
    M: GuestMemory + ?Sized,
{
    let tables = u64::from(memory.layout().frames()) / FRAMES_PER_TABLE;
    let mut part = budget.take(tables.saturating_add(SPARE_TABLES));
    let space = KernelSpace::read(memory, spec, root, &mut part);
    budget.put_back(part);
    space
}

/// Finds the kernel by registers if they lead to one, else by its VMCOREINFO page.
pub(crate) fn locate<M>(
    memory: &M,
    registers: &[VcpuRegisters],
    budget: &mut TableBudget,
) -> Result<Located, LocateError>
where
    M: GuestMemory + ?Sized,
{
    let mut roots = 0_usize;
    for (spec, pair) in registers.iter().filter_map(roots_of) {
        roots = roots.saturating_add(pair.len());
        // Under page-table isolation one of the two maps little of the kernel.
        let tried = pair.into_iter().filter_map(|root| by_root(memory, spec, root, budget));
        if let Some((_, located)) = tried.max_by_key(|(mapped, _)| *mapped) {
            return Ok(located);
        }
    }
    let mut notes = 0_usize;
    for note in scan_notes(memory) {
        notes = notes.saturating_add(1);
        if let Some(located) = by_note(memory, note, budget) {
            return Ok(located);
        }
    }
    Err(LocateError::NoKernel { roots, notes })
}

/// The root table that a vCPU uses, and under page-table isolation its twin: the two halves of an 8 KiB pair.
fn roots_of(vcpu: &VcpuRegisters) -> Option<(PagingSpec, [Gpa; 2])> {
    let spec = match vcpu.paging_mode()? {
        PagingMode::Long4 => PagingSpec::X86_64_4LEVEL,
        PagingMode::Long5 => PagingSpec::X86_64_5LEVEL,
        PagingMode::None | PagingMode::Legacy32 | PagingMode::Pae => return None,
    };
    let cr3 = vcpu.cr3? & spec.root_mask;
    Some((spec, [Gpa(cr3 & !0x1000), Gpa(cr3 | 0x1000)]))
}

/// The kernel that a root maps, and how many bytes of its image's area.
fn by_root<M>(
    memory: &M,
    spec: PagingSpec,
    root: Gpa,
    budget: &mut TableBudget,
) -> Option<(u64, Located)>
where
    M: GuestMemory + ?Sized,
{
    let space = read_space(memory, &spec, root, budget);
    let image = image_span(&space)?;
    let runs = space.runs_in(IMAGE_BASE, IMAGE_LAST).iter();
    let mapped = runs.fold(0_u64, |sum, r| sum.saturating_add(r.bytes));
    Some((mapped, Located { spec, root, space, image, note: None }))
}

/// The kernel image: the first executable mapping of at least 4 MiB in its area, and all that continues it with the same
/// distance between virtual and physical addresses.
fn image_span(space: &KernelSpace) -> Option<ImageSpan> {
    let runs = space.runs_in(IMAGE_BASE, IMAGE_LAST);
    let first = runs.iter().find(|r| r.rights.execute && r.bytes >= MIN_TEXT)?;
    let continues = |r: &&crate::paging::Run| {
        let distance = r.gva.0.checked_sub(first.gva.0);
        distance.is_some_and(|d| d == r.gpa.0.wrapping_sub(first.gpa.0))
    };
    let last = runs.iter().filter(continues).map(|r| r.last()).max()?;
    let bytes = last.0.checked_sub(first.gva.0)?.saturating_add(1).min(MAX_IMAGE);
    Some(ImageSpan { gva: first.gva, gpa: first.gpa, bytes })
}

/// Every page that starts like VMCOREINFO and parses.
pub(crate) fn scan_notes<M: GuestMemory + ?Sized>(memory: &M) -> impl Iterator<Item = VmcoreInfo> {
    let layout = memory.layout();
    let starts_like_note = |&gfn: &Gfn| {
        let mut start = [0; NOTE_START.len()];
        match memory.slice(gfn.gpa(), start.len()) {
            Some(bytes) => bytes == NOTE_START,
            None => memory.read(gfn.gpa(), &mut start).is_ok() && start == NOTE_START,
        }
    };
    let pages = from_region_ends(layout).filter(starts_like_note).take(MAX_NOTES);
    pages.filter_map(|gfn| read_note(memory, gfn.gpa()))
}

/// Every frame, those near an end of their RAM region first: the kernel allocates the note at boot, and boot allocations
/// lie near the ends. In a mapped image every page that is not looked at spares a page fault.
fn from_region_ends(layout: &MemoryLayout) -> impl Iterator<Item = Gfn> + '_ {
    let longest = layout.regions().iter().map(|r| r.frames).max().unwrap_or(0);
    (0..longest.div_ceil(2)).flat_map(move |step| {
        let regions = layout.regions().iter().filter(move |r| step < r.frames.div_ceil(2));
        regions.flat_map(move |region| {
            let mirrored = region.frames.saturating_sub(1).saturating_sub(step);
            let second = Some(mirrored).filter(|&offset| offset != step);
            let offsets = std::iter::once(step).chain(second);
            offsets.map(|offset| Gfn(region.start.0.saturating_add(u64::from(offset))))
        })
    })
}

/// Parses the VMCOREINFO text at `gpa`.
pub(crate) fn read_note<M: GuestMemory + ?Sized>(memory: &M, gpa: Gpa) -> Option<VmcoreInfo> {
    let mut page = [0; FRAME_BYTES];
    memory.read(gpa, &mut page).ok()?;
    VmcoreInfo::parse(&page).ok()
}

/// The kernel that a VMCOREINFO page describes, if its root table really maps itself where the page says.
fn by_note<M>(memory: &M, note: VmcoreInfo, budget: &mut TableBudget) -> Option<Located>
where
    M: GuestMemory + ?Sized,
{
    let root_gva = note.symbol("init_top_pgt").or_else(|| note.symbol("swapper_pg_dir"))?;
    let phys_base = note.phys_base().unwrap_or(0);
    let offset = root_gva.0.checked_sub(IMAGE_BASE.0)?;
    let root = Gpa(offset.checked_add_signed(phys_base)?);
    let five_levels = note.number("pgtable_l5_enabled").is_some_and(|n| n != 0);
    let spec = if five_levels { PagingSpec::X86_64_5LEVEL } else { PagingSpec::X86_64_4LEVEL };
    // Following one address costs little, so a page that lies is not worth a walk of all tables.
    if translate(memory, &spec, root, root_gva).gpa() != Some(root) {
        return None;
    }
    let space = read_space(memory, &spec, root, budget);
    let image = image_span(&space)?;
    Some(Located { spec, root, space, image, note: Some(note) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_is_looked_at_once(regions in prop::collection::vec((1u64..5, 1u64..40), 1..4)) {
            let mut at = 0;
            let mut ranges = Vec::new();
            for (gap, frames) in regions {
                at += gap;
                ranges.push((Gfn(at).gpa(), frames << 12));
                at += frames;
            }
            let layout = MemoryLayout::new(&ranges).unwrap();
            let mut seen: Vec<_> = from_region_ends(&layout).collect();
            prop_assert_eq!(seen.first(), Some(&layout.regions()[0].start));
            seen.sort();
            prop_assert_eq!(seen, layout.iter().map(|(_, gfn)| gfn).collect::<Vec<_>>());
        }
    }
}
