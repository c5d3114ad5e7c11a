//! Frames that look like a kernel's root table.
//!
//! The last entry of a root table leads to the table that maps the kernel image, which all
//! processes of one kernel share. This table, the *top*, identifies the family of roots that belong
//! to one kernel. For each family, the root with the most kernel entries is kept.

use super::{IMAGE_BASE, IMAGE_LAST};
use crate::addr::{FRAME_SIZE, Gpa};
use crate::memory::GuestMemory;
use crate::paging::{PagingSpec, Translation, find_mask, translate};
use std::collections::HashMap;

/// Maximum number of families to keep apart. Pages whose last word is by chance an entry that leads
/// to a mapped image are rare.
const MAX_FAMILIES: usize = 64;

/// Byte offset of the last entry of a table.
const LAST_ENTRY: u64 = FRAME_SIZE - 8;

/// Byte offset of the entry for the image's 1 GiB in its table: the second to last.
const IMAGE_ENTRY: u64 = FRAME_SIZE - 16;

/// First byte of a root table's kernel half.
const KERNEL_HALF: usize = 2048;

/// Roots by family.
#[derive(Debug, Default)]
pub(super) struct Roots {
    families: HashMap<Gpa, Family>,
    /// The last entry that led to no image. Free memory often holds many copies of the same words.
    rejected: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Family {
    spec: PagingSpec,
    root: Gpa,
    kernel_entries: usize,
}

impl Roots {
    /// The spec, fullest root, and top of every family, in ascending order of root address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PagingSpec, Gpa, Gpa)> {
        let mut all: Vec<_> = self.families.iter().map(|(top, f)| (f.spec, f.root, *top)).collect();
        all.sort_unstable_by_key(|&(_, root, _)| root);
        all.into_iter()
    }

    /// Examines a page whose last word is `last`.
    pub(super) fn examine<M>(&mut self, memory: &M, gpa: Gpa, page: &[u8], last: u64)
    where
        M: GuestMemory + ?Sized,
    {
        if !may_lead_to_image(last) || self.rejected == Some(last) {
            return;
        }
        let is_full = self.families.len() >= MAX_FAMILIES;
        let specs = [PagingSpec::X86_64_4LEVEL, PagingSpec::X86_64_5LEVEL];
        let found = specs.into_iter().find_map(|spec| {
            let spec = without_encryption(memory, spec, gpa, last)?;
            let top = top_of(memory, &spec, gpa)?;
            let is_known = self.families.contains_key(&top);
            (is_known || !is_full && maps_image(memory, &spec, gpa)).then_some((spec, top))
        });
        let Some((spec, top)) = found else {
            self.rejected = Some(last);
            return;
        };
        let kernel = page.get(KERNEL_HALF..).unwrap_or_default().chunks_exact(8);
        let is_present = |entry: &&[u8]| entry.first().is_some_and(|low| low & 1 != 0);
        let kernel_entries = kernel.filter(is_present).count();
        let family = Family { spec, root: gpa, kernel_entries };
        match self.families.get_mut(&top) {
            Some(known) if known.kernel_entries < kernel_entries => *known = family,
            Some(_) => {}
            None => {
                self.families.insert(top, family);
            }
        }
    }
}

/// Whether an entry may lead from a root table to the image: present, refers to a table,
/// executable.
fn may_lead_to_image(entry: u64) -> bool {
    let executable = PagingSpec::X86_64_4LEVEL.no_execute.is_none_or(|nx| entry & nx == 0);
    executable && entry & (PagingSpec::PRESENT | PagingSpec::LARGE) == PagingSpec::PRESENT
}

/// The format with which a root's last entry refers to RAM: without the encryption bit, if the
/// entry has one.
fn without_encryption<M>(memory: &M, spec: PagingSpec, root: Gpa, last: u64) -> Option<PagingSpec>
where
    M: GuestMemory + ?Sized,
{
    let layout = memory.layout();
    let address = last & spec.address_mask;
    if layout.index_of(Gpa(address).gfn()).is_some() {
        return Some(spec);
    }
    // Exactly one bit above all RAM is set, or the word is not an entry.
    let end = layout.end_gfn().gpa().0.checked_next_power_of_two()?;
    let high = address & !end.saturating_sub(1);
    let rest = Gpa(address ^ high).gfn();
    if !high.is_power_of_two() || layout.index_of(rest).is_none() {
        return None;
    }
    let bits = find_mask(memory, &spec, root, None);
    (bits == high).then(|| spec.without_bits(bits))
}

/// The table that maps the image's last 512 GiB, through a root's last entry.
pub(super) fn top_of<M>(memory: &M, spec: &PagingSpec, root: Gpa) -> Option<Gpa>
where
    M: GuestMemory + ?Sized,
{
    let mut table = root;
    // All levels above the level with 1 GiB entries.
    for _ in 0..spec.levels.len().checked_sub(3)? {
        let entry = read_entry(memory, table.checked_add(LAST_ENTRY)?)?;
        table = Some(Gpa(entry & spec.address_mask)).filter(|_| may_lead_to_image(entry))?;
    }
    memory.layout().index_of(table.gfn())?;
    Some(table)
}

/// Whether a root's tables map something executable at a 2 MiB step of the image area. A cheap
/// check; the walk of all tables that follows finds its errors.
fn maps_image<M: GuestMemory + ?Sized>(memory: &M, spec: &PagingSpec, root: Gpa) -> bool {
    let Some(top) = top_of(memory, spec, root) else { return false };
    let entry = top.checked_add(IMAGE_ENTRY).and_then(|at| read_entry(memory, at));
    if !entry.is_some_and(may_lead_to_image) {
        return false;
    }
    let step = 2 << 20;
    let mut gva = IMAGE_BASE;
    while gva <= IMAGE_LAST {
        match translate(memory, spec, root, gva) {
            Translation::Mapped { gpa, .. } => {
                return memory.layout().index_of(gpa.gfn()).is_some();
            }
            Translation::NotPresent { .. } => {}
            Translation::Unreadable { .. } | Translation::NotCanonical => return false,
        }
        let Some(next) = gva.checked_add(step) else { return false };
        gva = next;
    }
    false
}

fn read_entry<M: GuestMemory + ?Sized>(memory: &M, at: Gpa) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}
