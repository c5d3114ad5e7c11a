//! Bits of page-table entries that say how a page is encrypted, and are no part of its address.
//!
//! AMD's SME and SEV set the *C-bit* (bit 47 or 51) in CR3 and in every entry that leads to
//! encrypted memory; pages that the guest shares with its host lack it. Intel's TDX does the
//! opposite: entries of shared pages carry a *shared bit* (bit 47 or 51 as well), all others do
//! not. Memory images are decrypted, the bits stay in the tables.
//!
//! Linux names the C-bit in VMCOREINFO (`NUMBER(sme_mask)`), but a register set comes without that
//! note, and nothing names the shared bit. Both show in the tables: such an entry leads out of RAM
//! until the bit is taken off.
//!
//! Source: AMD64 APM volume 2, section 7.10; Intel TDX Module Base Architecture Specification,
//! "GPA space".

use super::kernel_space::KernelSpace;
use super::spec::PagingSpec;
use crate::addr::{FRAME_BYTES, Gpa, Gva};
use crate::memory::{GuestMemory, MemoryLayout};

/// The lowest bit that is taken for one of encryption without a hint. An entry that leads beyond
/// the image by less (1 TiB) may well lead to RAM that the image lacks.
const LOWEST_BIT: u32 = 40;

/// The lowest bit that a hint may name.
const LOWEST_HINT: u32 = 32;

/// The bit that the tables at `root` carry beside addresses, or 0 if there is none. `root` may be a
/// root register's value that carries the bit; `hint` is the guest's own word for the bit.
pub(crate) fn find_mask<M>(memory: &M, spec: &PagingSpec, root: Gpa, hint: Option<u64>) -> u64
where
    M: GuestMemory + ?Sized,
{
    let layout = memory.layout();
    let may_be_hint = |hint: &u64| {
        hint.is_power_of_two() && hint & bits_without_ram(spec, layout, LOWEST_HINT) != 0
    };
    let hint = hint.filter(may_be_hint);
    let candidates = bits_without_ram(spec, layout, LOWEST_BIT) | hint.unwrap_or(0);
    let bits_of_root = root.0 & spec.root_mask & candidates;
    let by_entries = most_carry(memory, spec, Gpa(root.0 & !candidates), candidates);
    let by_root = Some(bits_of_root).filter(|bits| bits.is_power_of_two());
    by_entries.or(hint).or(by_root).unwrap_or(0)
}

/// The bit out of `candidates` that most of a root table's entries carry and that is all that keeps
/// them from leading to RAM.
fn most_carry<M>(memory: &M, spec: &PagingSpec, root: Gpa, candidates: u64) -> Option<u64>
where
    M: GuestMemory + ?Sized,
{
    let mut copy = [0; FRAME_BYTES];
    let table = copy.get_mut(..spec.table_bytes(spec.levels.first()?))?;
    memory.read(Gpa(root.0 & spec.root_mask), table).ok()?;
    let mut votes = Votes::default();
    let mut present = 0_u32;
    for (_, entry) in spec.entries(table).filter(|(_, e)| e & PagingSpec::PRESENT != 0) {
        present = present.saturating_add(1);
        let bits = entry & spec.address_mask & candidates;
        let rest = Gpa(entry & spec.address_mask & !candidates);
        if memory.layout().index_of(rest.gfn()).is_some() {
            votes.add(bits);
        }
    }
    votes.winner().filter(|&(_, count)| count.saturating_mul(2) > present).map(|(bit, _)| bit)
}

/// The address bits from `lowest` up that no RAM address has.
fn bits_without_ram(spec: &PagingSpec, layout: &MemoryLayout, lowest: u32) -> u64 {
    let last = layout.end_gfn().gpa().0.saturating_sub(1);
    let used = 64_u32.saturating_sub(last.leading_zeros()).max(lowest);
    spec.address_mask & u64::MAX.checked_shl(used).unwrap_or(0)
}

/// How often each bit was seen alone.
#[derive(Clone, Debug, Default)]
struct Votes {
    of_bit: Vec<(u64, u32)>,
}

impl Votes {
    fn add(&mut self, bits: u64) {
        if !bits.is_power_of_two() {
            return;
        }
        match self.of_bit.iter_mut().find(|(bit, _)| *bit == bits) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.of_bit.push((bits, 1)),
        }
    }

    /// The most frequent bit and its count; of equals the highest bit.
    fn winner(&self) -> Option<(u64, u32)> {
        self.of_bit.iter().copied().max_by_key(|&(bit, count)| (count, bit))
    }
}

/// Finds TDX's shared bit in mappings that come by ascending address.
///
/// A page that is shared lies in the middle of private ones in the map of all memory: its address
/// continues its neighbor's but for one bit.
#[derive(Clone, Debug)]
pub(crate) struct SharedBit<'a> {
    layout: &'a MemoryLayout,
    candidates: u64,
    /// Where the last mapping ends, virtually and physically.
    end: Option<(u64, u64)>,
    votes: Votes,
}

impl<'a> SharedBit<'a> {
    pub(crate) fn new(spec: &PagingSpec, layout: &'a MemoryLayout) -> Self {
        let candidates = bits_without_ram(spec, layout, LOWEST_BIT);
        Self { layout, candidates, end: None, votes: Votes::default() }
    }

    /// Looks at a mapping of `bytes`.
    #[inline]
    pub(crate) fn see(&mut self, gva: Gva, gpa: Gpa, bytes: u64) {
        let end = Some((gva.0.wrapping_add(bytes), gpa.0.wrapping_add(bytes)));
        let Some((end_gva, end_gpa)) = std::mem::replace(&mut self.end, end) else { return };
        let difference = end_gpa ^ gpa.0;
        // What continues the last mapping without a difference is the usual case.
        if end_gva != gva.0 || difference == 0 || difference & !self.candidates != 0 {
            return;
        }
        // Behind the last page of RAM there may be something else, so both sides must be RAM.
        let inside = |at: u64| self.layout.index_of(Gpa(at & !self.candidates).gfn()).is_some();
        if inside(gpa.0) && inside(end_gpa.wrapping_sub(1)) {
            self.votes.add(difference);
        }
    }

    /// The bit and all above it, or 0. The shared bit is the highest of a guest-physical address;
    /// the entry's bits above it are reserved.
    pub(crate) fn mask(&self) -> u64 {
        self.votes.winner().map_or(0, |(bit, _)| bit.wrapping_neg() & self.candidates)
    }

    /// The mask of the shared bit in the kernel's own mappings, or 0.
    pub(crate) fn of_space(
        spec: &PagingSpec,
        layout: &'a MemoryLayout,
        space: &KernelSpace,
    ) -> u64 {
        let mut found = Self::new(spec, layout);
        for run in space.runs() {
            found.see(run.gva, run.gpa, run.bytes);
        }
        found.mask()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;

    const C_BIT: u64 = 1 << 47;
    const SPEC: PagingSpec = PagingSpec::X86_64_4LEVEL;

    fn with_root(entries: &[u64]) -> VecMemory {
        let mut memory = VecMemory::zeroed(MemoryLayout::contiguous(0x10_0000).unwrap());
        for (slot, entry) in (0..).zip(entries) {
            memory.write(Gpa(0x1000 + slot * 8), &entry.to_le_bytes()).unwrap();
        }
        memory
    }

    #[test]
    fn the_bit_of_most_entries_is_found() {
        let memory = with_root(&[C_BIT | 0x2003, C_BIT | 0x3003, 0x4003]);
        assert_eq!(find_mask(&memory, &SPEC, Gpa(0x1000), None), C_BIT);
        assert_eq!(find_mask(&memory, &SPEC, Gpa(C_BIT | 0x1000), None), C_BIT);
        assert_eq!(find_mask(&memory, &SPEC, Gpa(C_BIT | 0x1000), Some(0)), C_BIT);
        // A hint that the tables contradict is wrong.
        assert_eq!(find_mask(&memory, &SPEC, Gpa(0x1000), Some(1 << 51)), C_BIT);
    }

    #[test]
    fn plain_tables_have_none() {
        let plain = with_root(&[0x2003, 0x3003]);
        assert_eq!(find_mask(&plain, &SPEC, Gpa(0x1000), None), 0);
        // RAM that the image lacks, and entries that lead nowhere whatever is taken off.
        let lacking = with_root(&[1 << 32 | 0x2003, 1 << 39 | 0x3003]);
        assert_eq!(find_mask(&lacking, &SPEC, Gpa(0x1000), None), 0);
        let nowhere = with_root(&[C_BIT | 0x20_0003, C_BIT | 0x30_0003]);
        assert_eq!(find_mask(&nowhere, &SPEC, Gpa(0x1000), None), 0);
        let few = with_root(&[C_BIT | 0x2003, 0x3003, 0x4003]);
        assert_eq!(find_mask(&few, &SPEC, Gpa(0x1000), None), 0);
        assert_eq!(find_mask(&plain, &PagingSpec::X86_32, Gpa(0x1000), None), 0);
    }

    #[test]
    fn a_hint_names_one_bit_above_ram() {
        let plain = with_root(&[0x2003]);
        for (hint, mask) in [(1 << 33, 1 << 33), (1 << 20, 0), (3 << 47, 0), (0, 0)] {
            assert_eq!(find_mask(&plain, &SPEC, Gpa(0x1000), Some(hint)), mask, "{hint:#x}");
        }
    }

    #[test]
    fn a_shared_page_continues_its_neighbors() {
        let layout = MemoryLayout::contiguous(0x10_0000).unwrap();
        let mask = |pages: &[(u64, u64)]| {
            let mut found = SharedBit::new(&SPEC, &layout);
            pages.iter().for_each(|&(gva, gpa)| found.see(Gva(gva), Gpa(gpa), 0x1000));
            found.mask()
        };
        let from_47 = 0x000f_8000_0000_0000;
        assert_eq!(mask(&[(0x1000, 0x5000), (0x2000, C_BIT | 0x6000)]), from_47);
        assert_eq!(mask(&[(0x1000, C_BIT | 0x5000), (0x2000, 0x6000)]), from_47);
        // A device's memory, and what continues RAM behind its end.
        assert_eq!(mask(&[(0x1000, 0x5000), (0x2000, C_BIT | 0x7000)]), 0);
        assert_eq!(mask(&[(0x1000, 0x5000), (0x4000, C_BIT | 0x6000)]), 0);
        assert_eq!(mask(&[(0x1000, 0xf_f000), (0x2000, C_BIT | 0x10_0000)]), 0);
    }
}
