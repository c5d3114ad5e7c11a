//! Introspection of guests with an unknown operating system, from page tables alone.
//!
//! Page tables must be readable by the processor, so a guest cannot hide which frames are page
//! tables, which frames user mode may access, and which are executable. They do not show which
//! frames are free or which file a frame caches, but reading them requires no knowledge of the
//! operating system. The root tables come from the vCPUs' registers; a process that no vCPU was
//! running when its registers were captured is not found, and its frames are unknown.

use crate::addr::{FRAME_BYTES, FRAME_SIZE, Gpa, Gva};
use crate::color::{FrameKind, KernelIdentity, Order, Region, RegionId, Temperature};
use crate::guest_os::{
    FrameFacts, FrameUse, GuestFacts, Introspect, IntrospectError, IntrospectErrorKind, KernelArea,
    Note, Phase, Process,
};
use crate::memory::{GuestMemory, MemoryLayout};
use crate::paging::{
    GvaRange, Leaf, PagingSpec, SharedBit, TableBudget, Visitor, WalkReport, find_mask, walk,
};
use crate::registers::{PagingMode, VcpuRegisters};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Maximum number of address spaces to walk.
const MAX_SPACES: usize = 4096;

/// Maximum number of table reads in addition to one per frame: some tables are read once for every
/// address space.
const SPARE_TABLES: u64 = 1 << 16;

/// Why page tables could not be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum PageTablesError {
    /// No vCPU's registers locate page tables.
    #[error(
        "no vCPU's registers tell of page tables; \
         this needs CR0, CR3, CR4 and EFER of one that has paging on"
    )]
    NoRoots,
}

/// Gathers facts from page tables alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageTables;

fn spec(mode: PagingMode) -> Option<PagingSpec> {
    match mode {
        PagingMode::None => None,
        PagingMode::Legacy32 => Some(PagingSpec::X86_32),
        PagingMode::Pae => Some(PagingSpec::X86_PAE),
        PagingMode::Long4 => Some(PagingSpec::X86_64_4LEVEL),
        PagingMode::Long5 => Some(PagingSpec::X86_64_5LEVEL),
    }
}

impl Introspect for PageTables {
    /// The same vCPU may appear several times, with registers captured at different times.
    fn introspect(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
        begin: &mut dyn FnMut(Phase),
    ) -> Result<GuestFacts, IntrospectError> {
        begin(Phase::UserSpaces);
        let with_paging = |r: &VcpuRegisters| Some((spec(r.paging_mode()?)?, r.cr3?));
        let known: Vec<_> = registers.iter().filter_map(with_paging).collect();
        let (spec, _) = known
            .first()
            .copied()
            .ok_or(PageTablesError::NoRoots)
            .map_err(|e| IntrospectError::new(IntrospectErrorKind::NotFound, e))?;
        let same_mode = known.iter().filter(|(other, _)| other.name == spec.name);
        let values: BTreeSet<u64> = same_mode.map(|&(_, cr3)| cr3).collect();
        let mask = values.iter().map(|&cr3| find_mask(memory, &spec, Gpa(cr3), None));
        let spec = spec.without_bits(mask.max().unwrap_or(0));
        let mut results = walk_spaces(memory, &spec, &values);
        if results.shared_bit != 0 {
            results = walk_spaces(memory, &spec.without_bits(results.shared_bit), &values);
        }
        let WalkResults { frames, owners, processes, notes, .. } = results;
        begin(Phase::Facts);
        let names: Vec<String> = processes.iter().map(|process| process.name.clone()).collect();
        let layout = memory.layout();
        let (frames, regions) = classify(layout, frames, owners, &names);
        let kernel = KernelIdentity { paging: spec.name.to_owned(), ..KernelIdentity::default() };
        let layout = layout.clone();
        Ok(GuestFacts { layout, kernel, frames, regions, processes, notes })
    }
}

/// Results of walking all address spaces.
struct WalkResults {
    frames: Vec<FrameFacts>,
    /// The first address space that maps the frame for user mode.
    owners: Vec<u16>,
    processes: Vec<Process>,
    notes: Vec<Note>,
    /// The bit that entries of shared pages carry (TDX), or 0. If it is not 0, the walks must be
    /// repeated with this bit masked.
    shared_bit: u64,
}

/// Walks the tables of these CR3 values.
fn walk_spaces(memory: &dyn GuestMemory, spec: &PagingSpec, values: &BTreeSet<u64>) -> WalkResults {
    let roots: BTreeSet<u64> = values.iter().map(|cr3| cr3 & spec.root_mask).collect();
    let layout = memory.layout();
    let mut visitor = FactVisitor {
        layout,
        space: 0,
        mapped: 0,
        frames: vec![FrameFacts::default(); layout.frames() as usize],
        owners: vec![NO_OWNER; layout.frames() as usize],
        shared_bit: SharedBit::new(spec, layout),
    };
    let mut budget = TableBudget::new(u64::from(layout.frames()).saturating_add(SPARE_TABLES));
    let (mut processes, mut notes) = (Vec::new(), Vec::new());
    let mut spaces = BTreeMap::new();
    for root in roots.iter().copied().map(Gpa).take(MAX_SPACES) {
        let next = u16::try_from(processes.len()).unwrap_or(NO_OWNER);
        let known = user_tables(memory, spec, root).map(|tables| spaces.entry(tables));
        let is_new = !matches!(known, Some(Entry::Occupied(_)));
        let space = known.map_or(next, |entry| *entry.or_insert(next));
        (visitor.space, visitor.mapped) = (space, 0);
        let mut read = |half| walk(memory, spec, root, half, &mut budget, &mut visitor);
        let user = if is_new { read(GvaRange::user_half(spec)) } else { WalkReport::default() };
        let reports = [user, read(GvaRange::kernel_half(spec))];
        let unreadable = reports.iter().fold(0u64, |sum, r| sum.saturating_add(r.unreadable));
        let cut = reports.iter().any(|report| report.cut);
        if cut || unreadable > 0 {
            let rest = if cut { "; the others were skipped, since there are too many" } else { "" };
            let text =
                format!("{unreadable} tables of the address space at {root} cannot be read{rest}");
            notes.push(Note::incomplete("page tables", text));
        }
        if !is_new {
            continue;
        }
        processes.push(Process {
            pid: None,
            name: format!("address space {root}"),
            mapped_frames: visitor.mapped,
            anonymous_frames: 0,
            table_frames: 0,
            threads: 0,
            recency: None,
            root,
        });
    }
    if roots.len() > MAX_SPACES {
        let text = format!("{} address spaces; {MAX_SPACES} were walked", roots.len());
        notes.push(Note::incomplete("page tables", text));
    }
    let FactVisitor { frames, owners, shared_bit, .. } = visitor;
    WalkResults { frames, owners, processes, notes, shared_bit: shared_bit.mask() }
}

/// The user-half root entries that are present, as pairs of first address and table address; `None`
/// if there are none.
///
/// Two roots may belong to one process: an operating system with page-table isolation (against
/// Meltdown) has one root for user mode and one for kernel mode, and both refer to the process's
/// own tables.
fn user_tables(memory: &dyn GuestMemory, spec: &PagingSpec, root: Gpa) -> Option<Vec<(Gva, u64)>> {
    let level = spec.levels.first()?;
    let mut copy = [0; FRAME_BYTES];
    let table = copy.get_mut(..spec.table_bytes(level))?;
    memory.read(root, table).ok()?;
    let half = GvaRange::user_half(spec);
    let entries =
        spec.entries(table).map(|(index, entry)| (spec.canonical(index << level.shift), entry));
    let present =
        entries.filter(|(gva, entry)| *gva <= half.last && entry & PagingSpec::PRESENT != 0);
    let tables: Vec<_> = present.map(|(gva, entry)| (gva, entry & spec.address_mask)).collect();
    (!tables.is_empty()).then_some(tables)
}

/// No address space maps the frame for user mode.
const NO_OWNER: u16 = u16::MAX;

struct FactVisitor<'a> {
    layout: &'a MemoryLayout,
    space: u16,
    mapped: u64,
    frames: Vec<FrameFacts>,
    /// The first address space that maps the frame for user mode.
    owners: Vec<u16>,
    shared_bit: SharedBit<'a>,
}

impl Visitor for FactVisitor<'_> {
    fn leaf(&mut self, leaf: &Leaf) {
        self.shared_bit.observe(leaf.gva, leaf.gpa, leaf.bytes);
        let (first, page) = (leaf.gpa.gfn(), leaf.gva.0 / FRAME_SIZE);
        for part in self.layout.parts(first, leaf.bytes / FRAME_SIZE) {
            let page = page.saturating_add(part.start.0.saturating_sub(first.0));
            let at = part.first_index.as_usize();
            let frames = self.frames.get_mut(at..).unwrap_or_default();
            let owners = self.owners.get_mut(at..).unwrap_or_default();
            for ((frame, owner), n) in frames.iter_mut().zip(owners).zip(0..part.frames) {
                let page = page.saturating_add(u64::from(n));
                let hints = [
                    (leaf.accessed, Temperature::ACCESSED),
                    (leaf.dirty, Temperature::DIRTY),
                    (*owner != NO_OWNER && *owner != self.space, Temperature::SHARED),
                ];
                for (_, hint) in hints.into_iter().filter(|(holds, _)| *holds) {
                    frame.temperature = frame.temperature | hint;
                }
                if leaf.rights.user {
                    if *owner == NO_OWNER {
                        (*owner, frame.position) = (self.space, page);
                    }
                    frame.user_mapped = true;
                    frame.user_executable |= leaf.rights.execute;
                    self.mapped = self.mapped.saturating_add(1);
                } else if !frame.user_mapped && leaf.bytes == FRAME_SIZE {
                    // Large kernel pages belong to the direct map, which says nothing about a
                    // frame's use.
                    if frame.area == KernelArea::None {
                        frame.position = page;
                    }
                    frame.area = match (leaf.rights.execute, leaf.rights.write, frame.area) {
                        (true, _, _) | (_, _, KernelArea::Text) => KernelArea::Text,
                        (false, true, _) | (_, _, KernelArea::Data) => KernelArea::Data,
                        (false, false, _) => KernelArea::Rodata,
                    };
                }
            }
        }
    }

    fn table(&mut self, gpa: Gpa, _depth: usize, _gva: Gva) {
        let index = self.layout.index_of(gpa.gfn());
        if let Some(frame) = index.and_then(|index| self.frames.get_mut(index.as_usize())) {
            frame.is_table = true;
        }
    }
}

/// Determines the use of each frame and its region: the memory of one address space, memory shared
/// by several, or the kernel's.
fn classify(
    layout: &MemoryLayout,
    mut frames: Vec<FrameFacts>,
    owners: Vec<u16>,
    spaces: &[String],
) -> (Vec<FrameFacts>, Vec<Region>) {
    let region = |kind, order, name: String| Region::new(kind, order, name);
    let mut regions: Vec<Region> = spaces
        .iter()
        .map(|name| region(FrameKind::Anonymous, Order::UserAddress, name.clone()))
        .collect();
    let shared = regions.len();
    regions.push(region(FrameKind::Shared, Order::UserAddress, "shared memory".into()));
    regions.push(region(FrameKind::Kernel, Order::KernelAddress, "kernel".into()));
    regions.push(region(FrameKind::Kernel, Order::FrameNumber, "page tables".into()));
    for ((index, frame), owner) in (0u32..).zip(&mut frames).zip(owners) {
        let number = if frame.is_table {
            frame.usage = FrameUse::Reserved;
            let gfn = layout.gfn_of(crate::addr::FrameIndex(index));
            frame.position = gfn.map_or(0, |gfn| gfn.0);
            Some(shared.saturating_add(2))
        } else if owner != NO_OWNER {
            let is_shared = frame.temperature.contains(Temperature::SHARED);
            frame.usage = if is_shared { FrameUse::Shared } else { FrameUse::Anonymous };
            Some(if is_shared { shared } else { usize::from(owner) })
        } else if frame.area != KernelArea::None {
            frame.usage = FrameUse::Reserved;
            Some(shared.saturating_add(1))
        } else {
            None
        };
        if let Some(region) = number.and_then(|number| regions.get_mut(number)) {
            region.frames = region.frames.saturating_add(1);
        }
        frame.region = number.and_then(|number| u32::try_from(number).ok()).map(RegionId);
    }
    (frames, regions)
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;
    use proptest::prelude::*;

    fn registers(cr3: u64) -> VcpuRegisters {
        VcpuRegisters {
            cr0: Some(1 << 31),
            cr3: Some(cr3),
            cr4: Some(1 << 5),
            efer: Some(1 << 10),
            ..VcpuRegisters::default()
        }
    }

    fn introspect(memory: &VecMemory, cr3: &[u64]) -> Result<GuestFacts, IntrospectError> {
        let registers: Vec<_> = cr3.iter().copied().map(registers).collect();
        PageTables.introspect(memory, &registers, &mut |_| {})
    }

    #[test]
    fn without_registers_nothing_is_known() {
        let memory = VecMemory::zeroed(MemoryLayout::contiguous(0x4000).unwrap());
        let error = introspect(&memory, &[]).unwrap_err();
        assert_eq!(error.kind(), IntrospectErrorKind::NotFound);
        assert_eq!(error.to_string(), PageTablesError::NoRoots.to_string());
        let off = VcpuRegisters { cr0: Some(0), ..registers(0) };
        assert!(PageTables.introspect(&memory, &[off], &mut |_| {}).is_err());
        // An empty root table is not an error: nothing is mapped.
        let facts = introspect(&memory, &[0x1000]).unwrap();
        assert_eq!(facts.frames.iter().filter(|f| f.is_table).count(), 1);
        let beyond = introspect(&memory, &[0x8000_0000]).unwrap();
        assert_eq!(beyond.notes.len(), 1, "{:?}", beyond.notes);
    }

    #[test]
    fn two_roots_of_one_process_are_one_address_space() {
        const MAPPED: u64 = 0x7;
        let mut memory = VecMemory::zeroed(MemoryLayout::contiguous(0x10000).unwrap());
        let mut write = |at: u64, entry: u64| memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
        // A process with one root per mode; one of the roots also maps kernel memory, frame 9.
        write(0x2000, 0x4000 | MAPPED | 1 << 63);
        write(0x3000, 0x4000 | MAPPED);
        write(0x2000 + 511 * 8, 0xa000 | 0x3);
        // Another process, which maps one frame of the first process.
        write(0x1000, 0xd000 | MAPPED);
        for (table, next) in
            [(0x4000, 0x5000), (0x5000, 0x6000), (0xd000, 0xe000), (0xe000, 0xf000)]
        {
            write(table, next | MAPPED);
        }
        for (table, next) in [(0xa000, 0xb000), (0xb000, 0xc000), (0xc000, 0x9000)] {
            write(table, next | 0x3);
        }
        write(0x6000, 0x7000 | MAPPED);
        write(0x6008, 0x8000 | MAPPED);
        write(0xf000, 0x8000 | MAPPED);
        let facts = introspect(&memory, &[0x3000, 0x2000, 0x1000]).unwrap();
        let roots: Vec<_> = facts.processes.iter().map(|process| process.root).collect();
        assert_eq!(roots, [Gpa(0x1000), Gpa(0x2000)]);
        assert_eq!(facts.processes[1].mapped_frames, 2);
        let usage = |frame: usize| facts.frames[frame].usage;
        assert_eq!((usage(7), usage(8)), (FrameUse::Anonymous, FrameUse::Shared));
        assert!(facts.frames[7].user_executable && facts.frames[2].is_table);
        assert!(facts.frames[3].is_table, "tables of both roots are known");
        assert_eq!(facts.frames[9].area, KernelArea::Text);
    }

    proptest! {
        /// Tables may point anywhere, including at themselves. A walk terminates, and every frame
        /// is counted in its region.
        #[test]
        fn tables_may_be_anything(
            entries in prop::collection::vec(
                (0u64..16 * 512, 0u64..24, 0u64..0x1000, any::<bool>()),
                0..400,
            ),
            roots in prop::collection::vec(0u64..20, 1..4),
        ) {
            let layout = MemoryLayout::contiguous(16 << 12).unwrap();
            let mut memory = VecMemory::zeroed(layout.clone());
            for (at, frame, flags, no_execute) in entries {
                let entry = frame << 12 | flags | u64::from(no_execute) << 63;
                memory.write(Gpa(at * 8), &entry.to_le_bytes()).unwrap();
            }
            let roots: Vec<u64> = roots.into_iter().map(|frame| frame << 12).collect();
            let facts = introspect(&memory, &roots).unwrap();
            let in_regions: u32 = facts.regions.iter().map(|region| region.frames).sum();
            let with_region = facts.frames.iter().filter(|frame| frame.region.is_some()).count();
            prop_assert_eq!(in_regions as usize, with_region);
        }
    }
}
