//! Page-table entry bits that control memory encryption and are not part of the address.
//!
//! AMD's SME and SEV set the *C-bit* (bit 47 or 51) in CR3 and in every entry that refers to
//! encrypted memory; pages that the guest shares with its host lack it. Intel's TDX does the
//! opposite: entries of shared pages carry a *shared bit* (also bit 47 or 51), and all other
//! entries do not. Memory images are decrypted, but their page tables keep these bits.
//!
//! Linux reports the C-bit in VMCOREINFO (`NUMBER(sme_mask)`), but a register set comes without
//! that note, and nothing reports the shared bit. Both can be detected in the tables: an entry with
//! such a bit refers to an address outside RAM until the bit is cleared.
//!
//! Source: AMD64 APM volume 2, section 7.10; Intel TDX Module Base Architecture Specification,
//! "GPA space".

use super::kernel_space::KernelSpace;
use super::spec::PagingSpec;
use crate::addr::{FRAME_BYTES, Gpa, Gva};
use crate::memory::{GuestMemory, MemoryLayout};

/// The lowest bit that is considered an encryption bit without a hint. An entry that refers to an
/// address less than 1 TiB beyond the image may refer to RAM that the image lacks.
const LOWEST_BIT: u32 = 40;

/// The lowest bit that a hint may denote.
const LOWEST_HINT: u32 = 32;

/// The encryption bit in the tables at `root`, or 0 if there is none. `root` may be the value of a
/// root register that carries the bit; `hint` is the bit that the guest reports.
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

/// The bit among `candidates` that most present entries of a root table carry and without which
/// they refer to RAM.
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

/// The address bits from `lowest` up that are clear in all RAM addresses.
fn bits_without_ram(spec: &PagingSpec, layout: &MemoryLayout, lowest: u32) -> u64 {
    let last = layout.end_gfn().gpa().0.saturating_sub(1);
    let used = 64_u32.saturating_sub(last.leading_zeros()).max(lowest);
    spec.address_mask & u64::MAX.checked_shl(used).unwrap_or(0)
}

/// How often each bit was the only candidate bit in an entry.
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

    /// The most frequent bit and its count; the highest bit if several are equally frequent.
    fn winner(&self) -> Option<(u64, u32)> {
        self.of_bit.iter().copied().max_by_key(|&(bit, count)| (count, bit))
    }
}

/// Finds TDX's shared bit in mappings that arrive in ascending order of virtual address.
///
/// In the direct map, a shared page lies between private pages: its physical address continues that
/// of the previous page, except for one bit.
#[derive(Clone, Debug)]
pub(crate) struct SharedBit<'a> {
    layout: &'a MemoryLayout,
    candidates: u64,
    /// Virtual and physical end of the last mapping, exclusive.
    end: Option<(u64, u64)>,
    votes: Votes,
}

impl<'a> SharedBit<'a> {
    pub(crate) fn new(spec: &PagingSpec, layout: &'a MemoryLayout) -> Self {
        let candidates = bits_without_ram(spec, layout, LOWEST_BIT);
        Self { layout, candidates, end: None, votes: Votes::default() }
    }

    /// Adds a mapping of `bytes` bytes.
    #[inline]
    pub(crate) fn observe(&mut self, gva: Gva, gpa: Gpa, bytes: u64) {
        let end = Some((gva.0.wrapping_add(bytes), gpa.0.wrapping_add(bytes)));
        let Some((end_gva, end_gpa)) = std::mem::replace(&mut self.end, end) else { return };
        let difference = end_gpa ^ gpa.0;
        // Fast path: most mappings continue the last one without a difference.
        if end_gva != gva.0 || difference == 0 || difference & !self.candidates != 0 {
            return;
        }
        // The addresses after the last page of RAM may belong to something else, so both sides must
        // be RAM.
        let inside = |at: u64| self.layout.index_of(Gpa(at & !self.candidates).gfn()).is_some();
        if inside(gpa.0) && inside(end_gpa.wrapping_sub(1)) {
            self.votes.add(difference);
        }
    }

    /// The shared bit and all candidate bits above it, or 0. The shared bit is the highest bit of a
    /// guest-physical address; the entry bits above it are reserved.
    pub(crate) fn mask(&self) -> u64 {
        self.votes.winner().map_or(0, |(bit, _)| bit.wrapping_neg() & self.candidates)
    }

    /// The mask of the shared bit in the kernel's mappings, or 0.
    pub(crate) fn of_space(
        spec: &PagingSpec,
        layout: &'a MemoryLayout,
        space: &KernelSpace,
    ) -> u64 {
        let mut found = Self::new(spec, layout);
        for run in space.runs() {
            found.observe(run.gva, run.gpa, run.bytes);
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
        // The tables override a contradicting hint.
        assert_eq!(find_mask(&memory, &SPEC, Gpa(0x1000), Some(1 << 51)), C_BIT);
    }

    #[test]
    fn plain_tables_have_none() {
        let plain = with_root(&[0x2003, 0x3003]);
        assert_eq!(find_mask(&plain, &SPEC, Gpa(0x1000), None), 0);
        // RAM that the image lacks, and entries that do not refer to RAM without the bit either.
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
            pages.iter().for_each(|&(gva, gpa)| found.observe(Gva(gva), Gpa(gpa), 0x1000));
            found.mask()
        };
        let from_47 = 0x000f_8000_0000_0000;
        assert_eq!(mask(&[(0x1000, 0x5000), (0x2000, C_BIT | 0x6000)]), from_47);
        assert_eq!(mask(&[(0x1000, C_BIT | 0x5000), (0x2000, 0x6000)]), from_47);
        // Device memory, and an address that continues RAM past its end.
        assert_eq!(mask(&[(0x1000, 0x5000), (0x2000, C_BIT | 0x7000)]), 0);
        assert_eq!(mask(&[(0x1000, 0x5000), (0x4000, C_BIT | 0x6000)]), 0);
        assert_eq!(mask(&[(0x1000, 0xf_f000), (0x2000, C_BIT | 0x10_0000)]), 0);
    }
}
