//! Address spaces of processes: the frames that they map, how, and which process maps a frame
//! first.
//!
//! A process's root table is recognized by its kernel half, which equals the kernel's own. This
//! requires neither symbols nor types, and finds processes that no list leads to. With page-table
//! isolation, each root has a twin in the next frame.
//!
//! A process may own pages that it must not access: `PROT_NONE` pages, and pages that NUMA
//! balancing has marked to learn which CPU accesses them next. Their entries are not present for
//! the processor, but keep the address; see [`PROT_NONE`].

use super::frames::reader::{FrameRecords, Record};
use crate::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex, Gfn, Gpa, Gva};
use crate::guest_os::FrameUse;
use crate::memory::{GuestMemory, LazyTable, MemoryLayout, data_parts};
use crate::paging::{GvaRange, Leaf, PagingSpec, Rights, TableBudget, Visitor, WalkReport, walk};

/// The first entry of a long-mode root table that belongs to the kernel.
const FIRST_KERNEL_ENTRY: usize = 256;

/// Minimum number of frames per process: one table of each level. Limits the number of processes in
/// a guest.
const FRAMES_PER_SPACE: usize = 4;

/// Maximum number of mappings per frame, on average, before walks end. Sharing between many
/// processes is real, but to reach this limit an eighth of memory must be page tables. The limit
/// bounds the cost of tables that map everything everywhere.
const MAPPINGS_PER_FRAME: u64 = 64;

/// The bit that distinguishes the entry of a page without access rights from the entry of a page
/// that is swapped out or migrated: `_PAGE_PROTNONE` of Linux, the global bit of present entries.
///
/// In entries that are not present, Linux inverts the address bits, so that a processor that
/// speculatively ignores the present bit (L1TF) accesses no real memory.
///
/// Source: Linux, `arch/x86/include/asm/pgtable_types.h`, `pgtable-invert.h` and `pgtable_64.h`.
const PROT_NONE: u64 = 1 << 8;

/// Index of an address space in [`UserMappings::spaces`].
pub(crate) type SpaceId = u32;

/// No address space.
pub(crate) const NO_SPACE: SpaceId = u32::MAX;

/// The mappings of one frame by processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UserMapping {
    /// The first address space that maps the frame, or [`NO_SPACE`].
    pub(crate) space: SpaceId,
    /// Page number at which that space maps the frame; at most 44 bits, since the user half has no
    /// more.
    pub(crate) page: u64,
    pub(crate) execute: bool,
    pub(crate) accessed: bool,
    pub(crate) dirty: bool,
    /// Whether a second address space maps the frame.
    pub(crate) shared: bool,
    /// Whether some mapping permits access.
    pub(crate) accessible: bool,
    /// Whether an address space with [`recent`](UserSpace::recent) set accessed the frame.
    pub(crate) recent: bool,
}

impl UserMapping {
    /// A frame that no process maps.
    pub(crate) const NONE: Self = Self {
        space: NO_SPACE,
        page: 0,
        execute: false,
        accessed: false,
        dirty: false,
        shared: false,
        accessible: false,
        recent: false,
    };
}

impl Default for UserMapping {
    fn default() -> Self {
        Self::NONE
    }
}

/// One process's address space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct UserSpace {
    /// Address of its root table.
    pub(crate) root: Gpa,
    /// The root's twin with page-table isolation.
    pub(crate) twin: Option<Gpa>,
    /// Whether one of its threads is among the most recently run tasks.
    pub(crate) recent: bool,
    pub(crate) mapped_frames: u64,
}

/// A page table of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UserTable {
    pub(crate) frame: FrameIndex,
    pub(crate) space: SpaceId,
    /// First page number that the table covers.
    pub(crate) page: u64,
    /// Whether its entries map 4 KiB pages.
    pub(crate) is_last_level: bool,
}

/// The mappings of all processes.
#[derive(Debug)]
pub(crate) struct UserMappings {
    /// By frame index; mostly empty for a large guest.
    pub(crate) frames: LazyTable<UserMapping>,
    pub(crate) spaces: Vec<UserSpace>,
    pub(crate) tables: Vec<UserTable>,
    pub(crate) report: WalkReport,
    /// Whether mappings or roots were ignored because there were too many.
    pub(crate) cut: bool,
}

/// The kernel half of a root table, which identifies the roots of processes.
pub(crate) struct RootSignature {
    /// `(byte offset, address bits)` of each present entry.
    entries: Vec<(usize, u64)>,
    mask: u64,
}

impl RootSignature {
    /// The signature of the kernel's own root.
    pub(crate) fn read<M>(memory: &M, spec: &PagingSpec, root: Gpa) -> Option<Self>
    where
        M: GuestMemory + ?Sized,
    {
        let mut table = [0; FRAME_BYTES];
        memory.read(root, &mut table).ok()?;
        let kernel = entries(&table).enumerate().skip(FIRST_KERNEL_ENTRY);
        let present = kernel.filter(|(_, e)| e & PagingSpec::PRESENT != 0);
        let offset_and_address =
            |(i, e): (usize, u64)| (i.saturating_mul(8), e & spec.address_mask);
        let entries: Vec<_> = present.map(offset_and_address).collect();
        // Compare the last entry first: it maps the image and differs in almost every other page.
        let entries: Vec<_> = entries.into_iter().rev().collect();
        (entries.len() >= 2).then_some(Self { entries, mask: spec.address_mask })
    }

    fn matches(&self, table: &[u8]) -> bool {
        self.entries.iter().all(|&(at, address)| {
            let entry =
                table.get(at..).and_then(|e| e.first_chunk()).map(|e| u64::from_le_bytes(*e));
            entry.is_some_and(|e| e & PagingSpec::PRESENT != 0 && e & self.mask == address)
        })
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> + '_ {
    table.chunks_exact(8).filter_map(|e| e.first_chunk()).map(|e| u64::from_le_bytes(*e))
}

/// Every frame whose contents are a process's root table, and whether the limit was exceeded.
pub(crate) fn find_roots<M>(
    memory: &M,
    signature: &RootSignature,
    records: &FrameRecords,
    kernel_root: Gpa,
) -> (Vec<Gpa>, bool)
where
    M: GuestMemory + ?Sized,
{
    let may_be_root = |record: &Record| {
        matches!(record.usage, FrameUse::Allocated | FrameUse::PageTable | FrameUse::Unknown)
    };
    let mut copy = [0; FRAME_BYTES];
    let mut roots = Vec::new();
    let max = memory.layout().frames() as usize / FRAMES_PER_SPACE;
    // A page of zeros is not a root table, so holes are skipped.
    for part in data_parts(memory, 0..memory.layout().frames()) {
        let of_part = records.records.get(part.first_index.as_usize()..).unwrap_or_default();
        let frames = (part.start.0..).map(Gfn).zip(of_part.iter().take(part.frames as usize));
        for (gfn, record) in frames {
            let root = gfn.gpa();
            if !may_be_root(record) || root == kernel_root {
                continue;
            }
            let matches = match memory.slice(root, FRAME_BYTES) {
                Some(table) => signature.matches(table),
                None => memory.read(root, &mut copy).is_ok() && signature.matches(&copy),
            };
            if matches {
                if roots.len() >= max {
                    return (roots, true);
                }
                roots.push(root);
            }
        }
    }
    (roots, false)
}

/// The twin of a root with page-table isolation: the next frame, with the same user entries.
pub(crate) fn find_twin<M: GuestMemory + ?Sized>(
    memory: &M,
    spec: &PagingSpec,
    root: Gpa,
) -> Option<Gpa> {
    if !root.gfn().0.is_multiple_of(2) {
        return None;
    }
    let twin = root.checked_add(FRAME_SIZE)?;
    let (mut kernel, mut user) = ([0; FRAME_BYTES], [0; FRAME_BYTES]);
    memory.read(root, &mut kernel).ok()?;
    memory.read(twin, &mut user).ok()?;
    let pairs = entries(&kernel).zip(entries(&user)).take(FIRST_KERNEL_ENTRY);
    let present = pairs.filter(|(k, _)| k & PagingSpec::PRESENT != 0);
    let mut is_used = false;
    for (kernel, user) in present {
        if (kernel ^ user) & spec.address_mask != 0 {
            return None;
        }
        is_used = true;
    }
    is_used.then_some(twin)
}

/// Walks the user half of every space in the given order. The first space that maps a frame owns
/// it.
pub(crate) fn read_mappings<M>(
    memory: &M,
    spec: &PagingSpec,
    spaces: Vec<UserSpace>,
    budget: &mut TableBudget,
) -> UserMappings
where
    M: GuestMemory + ?Sized,
{
    let layout = memory.layout();
    let frames = layout.frames();
    let mut visitor = UserVisitor {
        layout,
        spec,
        last_depth: spec.levels.len().saturating_sub(1),
        space: 0,
        recent: false,
        mapped: 0,
        left: u64::from(frames).saturating_mul(MAPPINGS_PER_FRAME),
        frames: LazyTable::new(frames as usize),
        tables: Vec::new(),
    };
    let mut spaces = spaces;
    let mut total = WalkReport::default();
    for (id, space) in (0..).zip(&mut spaces) {
        (visitor.space, visitor.recent, visitor.mapped) = (id, space.recent, 0);
        let range = GvaRange::user_half(spec);
        let report = walk(memory, spec, space.root, range, budget, &mut visitor);
        space.mapped_frames = visitor.mapped;
        total.tables = total.tables.saturating_add(report.tables);
        total.unreadable = total.unreadable.saturating_add(report.unreadable);
        total.first_unreadable = total.first_unreadable.or(report.first_unreadable);
        total.cut |= report.cut;
        if let Some(frame) = space.twin.and_then(|twin| layout.index_of(twin.gfn())) {
            visitor.tables.push(UserTable { frame, space: id, page: 0, is_last_level: false });
        }
    }
    let cut = visitor.left == 0;
    UserMappings { frames: visitor.frames, spaces, tables: visitor.tables, report: total, cut }
}

struct UserVisitor<'a> {
    layout: &'a MemoryLayout,
    spec: &'a PagingSpec,
    last_depth: usize,
    space: SpaceId,
    recent: bool,
    mapped: u64,
    left: u64,
    frames: LazyTable<UserMapping>,
    tables: Vec<UserTable>,
}

impl UserVisitor<'_> {
    /// Records a mapping of the current space. `accessible` is false for pages without access
    /// rights.
    fn map(&mut self, leaf: &Leaf, accessible: bool) {
        if self.left == 0 {
            return;
        }
        // Mappings outside RAM consume budget too.
        self.left = self.left.saturating_sub(1);
        let (first, page) = (leaf.gpa.gfn(), leaf.gva.0 / FRAME_SIZE);
        for part in self.layout.parts(first, leaf.bytes / FRAME_SIZE) {
            let page = page.saturating_add(part.start.0.saturating_sub(first.0));
            for (at, i) in (part.first_index.as_usize()..).zip(0..part.frames) {
                let Some(frame) = self.frames.get_mut(at) else { break };
                if frame.space == NO_SPACE {
                    (frame.space, frame.page) = (self.space, page.saturating_add(u64::from(i)));
                }
                frame.shared |= frame.space != self.space;
                frame.execute |= leaf.rights.execute;
                frame.accessible |= accessible;
                frame.accessed |= leaf.accessed;
                frame.dirty |= leaf.dirty;
                frame.recent |= self.recent & leaf.accessed;
            }
            let frames = u64::from(part.frames);
            self.mapped = self.mapped.saturating_add(frames);
            self.left = self.left.saturating_sub(frames.saturating_sub(1));
        }
    }
}

impl Visitor for UserVisitor<'_> {
    fn leaf(&mut self, leaf: &Leaf) {
        // An entry without the user bit maps kernel memory, even in the user half.
        if leaf.rights.user {
            self.map(leaf, true);
        }
    }

    fn not_present(&mut self, entry: u64, depth: usize, gva: Gva) {
        if entry & PROT_NONE == 0 {
            return;
        }
        let Some(level) = self.spec.levels.get(depth) else { return };
        if PagingSpec::is_leaf(entry, level, depth == self.last_depth) {
            let leaf = Leaf {
                gva,
                gpa: self.spec.leaf_address(!entry, level),
                bytes: 1 << level.shift,
                // The entry does not store the rights that the page will have once accessible
                // again.
                rights: Rights { user: true, write: false, execute: false },
                accessed: entry & PagingSpec::ACCESSED != 0,
                dirty: entry & PagingSpec::DIRTY != 0,
            };
            self.map(&leaf, false);
        }
    }

    fn has_enough(&self) -> bool {
        self.left == 0
    }

    fn table(&mut self, gpa: Gpa, depth: usize, gva: Gva) {
        if let Some(frame) = self.layout.index_of(gpa.gfn()) {
            let (space, page) = (self.space, gva.0 / FRAME_SIZE);
            let is_last_level = depth == self.last_depth;
            self.tables.push(UserTable { frame, space, page, is_last_level });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;

    const SPEC: PagingSpec = PagingSpec::X86_64_4LEVEL;
    const USER: u64 = 7;
    const LARGE: u64 = PagingSpec::LARGE;

    /// The mappings of one space: root at 1 MiB, then one table per level. `directory` and `table`
    /// are the first entries of the two lowest levels.
    fn read(directory: &[u64], table: &[u64]) -> UserMappings {
        let layout = MemoryLayout::contiguous(8 << 20).unwrap();
        let mut memory = VecMemory::zeroed(layout);
        let mut write = |table: u64, slot: usize, entry: u64| {
            memory.write(Gpa(table + slot as u64 * 8), &entry.to_le_bytes()).unwrap();
        };
        write(0x10_0000, 0, 0x10_1000 | USER);
        write(0x10_1000, 0, 0x10_2000 | USER);
        directory.iter().enumerate().for_each(|(slot, entry)| write(0x10_2000, slot, *entry));
        table.iter().enumerate().for_each(|(slot, entry)| write(0x10_3000, slot, *entry));
        let root = Gpa(0x10_0000);
        let space = UserSpace { root, twin: None, recent: false, mapped_frames: 0 };
        read_mappings(&memory, &SPEC, vec![space], &mut TableBudget::new(100))
    }

    /// An entry as Linux leaves it after revoking all rights of a page.
    fn revoked(gfn: u64, flags: u64) -> u64 {
        !(gfn << 12) & 0x000f_ffff_ffff_f000 | flags | PROT_NONE
    }

    fn frame(users: &UserMappings, gfn: u64) -> UserMapping {
        users.frames.made(usize::try_from(gfn).unwrap()).copied().unwrap_or_default()
    }

    #[test]
    fn pages_without_rights_have_an_owner() {
        let accessed = PagingSpec::ACCESSED;
        let users = read(&[0x10_3000 | USER], &[0x20_0000 | USER, revoked(0x300, accessed)]);
        let (plain, revoked) = (frame(&users, 0x200), frame(&users, 0x300));
        assert!(plain.accessible && plain.space == 0);
        assert!(!revoked.accessible && revoked.accessed && !revoked.execute && !revoked.dirty);
        assert_eq!((revoked.space, revoked.page), (0, 1));
        assert_eq!(users.spaces[0].mapped_frames, 2);
    }

    #[test]
    fn a_huge_page_without_rights_is_512_frames() {
        // Linux inverts the bits from 21 up; bit 12 is a cache mode.
        let entry = !0x40_0000 & 0x000f_ffff_ffe0_0000 | LARGE | 1 << 12 | PROT_NONE;
        let users = read(&[0, entry], &[]);
        assert_eq!(users.spaces[0].mapped_frames, 512);
        for gfn in [0x400, 0x5ff] {
            let found = frame(&users, gfn);
            assert_eq!(
                (found.space, found.page, found.accessible),
                (0, 0x200 + gfn - 0x400, false)
            );
        }
        assert_eq!(frame(&users, 0x600).space, NO_SPACE);
    }

    #[test]
    fn pages_in_swap_have_none() {
        // A type, and the inverted offset from bit 9 up; `PROT_NONE` is clear.
        let swap = |gfn: u64| 1 << 59 | !(gfn << 12) & 0x07ff_ffff_ffff_fe00;
        // An entry above the last level without the large bit is not a page's.
        let users =
            read(&[0x10_3000 | USER, revoked(0x400, 0)], &[swap(0x300), swap(0x301) | 0x1e]);
        assert_eq!(users.spaces[0].mapped_frames, 0);
        assert!(
            (0..u64::try_from(users.frames.len()).unwrap())
                .all(|gfn| frame(&users, gfn).space == NO_SPACE)
        );
    }
}
