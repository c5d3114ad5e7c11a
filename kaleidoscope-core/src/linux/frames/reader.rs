//! Interpretation of the records in the frame table.
//!
//! Frames are processed in ascending order. The first record of a free block holds the length of
//! the block. A tail of a compound page has the use of its head. A record with a page type has that
//! type; a reserved record belongs to the kernel; a record with a mapping is page cache or
//! anonymous memory; any other record with a reference count was allocated for a purpose that only
//! its user knows. The remaining records have no references, type or mapping. They are pages on a
//! per-CPU free list, whose list neighbors point back at them, and tails of plain high-order
//! blocks, which have the use of the first record of their block.

use crate::addr::{FrameIndex, Gfn, Gva};
use crate::color::Temperature;
use crate::guest_os::FrameUse;
use crate::linux::frames::free_lists::{FreeBlock, FreeLists, ListKind};
use crate::linux::frames::table::{FrameTable, RawPage};
use crate::linux::view::KernelView;
use crate::memory::{GuestMemory, MemoryLayout};
use std::collections::HashMap;
use std::fmt;

/// Owner number of frames without an owner.
pub(crate) const NO_OWNER: u32 = u32::MAX;

/// Low bits of a mapping pointer: 0 file, 1 anonymous, 2 movable kernel page, 3 anonymous and
/// merged by KSM.
const MAPPING_FLAGS: u64 = 3;

/// Frames of the largest compound page, a 1 GiB huge page.
const MAX_COMPOUND: u64 = 1 << 18;

/// Possible uses of plain high-order blocks.
const BLOCK_USES: [FrameUse; 5] = [
    FrameUse::Allocated,
    FrameUse::PageTable,
    FrameUse::FreePerCpu,
    FrameUse::LargeKmalloc,
    FrameUse::Slab,
];

/// The interpretation of one frame's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Page index in the file or in the process's memory; 0 for other frames.
    pub(crate) position: u64,
    /// Index in [`FrameRecords::owners`] of the object that owns the frame, or [`NO_OWNER`].
    pub(crate) owner: u32,
    pub(crate) usage: FrameUse,
    pub(crate) temperature: Temperature,
    /// Whether the page is on an LRU list.
    pub(crate) on_lru: bool,
}

impl Record {
    /// A frame without usable record.
    const UNKNOWN: Self = Self {
        position: 0,
        owner: NO_OWNER,
        usage: FrameUse::Unknown,
        temperature: Temperature::NONE,
        on_lru: false,
    };
}

// There is one record per frame, so the size matters.
const _: () = assert!(size_of::<Record>() == 16);

/// Kind of object that owns frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum OwnerKind {
    /// A `struct address_space`.
    Mapping,
    /// A `struct kmem_cache`.
    SlabCache,
}

/// A kernel object that owns frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Owner {
    pub(crate) kind: OwnerKind,
    pub(crate) address: Gva,
}

/// Displays the address, for an owner without a name.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            OwnerKind::Mapping => "mapping",
            OwnerKind::SlabCache => "cache",
        };
        write!(f, "{kind}@{}", self.address)
    }
}

/// Number of frames with one kind of damage, and the first such frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DamageCount {
    pub(crate) count: u64,
    pub(crate) first: Option<Gfn>,
}

impl DamageCount {
    pub(in crate::linux) fn add(&mut self, gfn: Gfn) {
        self.add_many(gfn, 1);
    }

    /// Adds consecutive frames.
    pub(in crate::linux) fn add_many(&mut self, first: Gfn, frames: u32) {
        self.count = self.count.saturating_add(frames.into());
        self.first.get_or_insert(first);
    }
}

/// Damage in the frame table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Damage {
    /// Frames without a readable record.
    pub(crate) unreadable: DamageCount,
    /// Free blocks with contradictory order, alignment or contents.
    pub(crate) blocks: DamageCount,
    /// Tails whose head is at an impossible place.
    pub(crate) tails: DamageCount,
}

/// Contents of the frame table.
#[derive(Clone, Debug)]
pub(crate) struct FrameRecords {
    /// In frame-index order.
    pub(crate) records: Vec<Record>,
    pub(crate) owners: Vec<Owner>,
    /// Frames with a type of unknown meaning, and the type's number.
    pub(crate) typed: Vec<(FrameIndex, u32)>,
    /// The allocation order of the free frames.
    pub(crate) free: FreeLists,
    pub(crate) damage: Damage,
}

impl FrameRecords {
    pub(crate) fn record(&self, index: FrameIndex) -> Option<&Record> {
        self.records.get(index.as_usize())
    }

    /// Sets the use of all frames of a type whose meaning has become known.
    pub(crate) fn set_typed(&mut self, number: u32, usage: FrameUse) {
        for (index, _) in self.typed.iter().filter(|(_, n)| *n == number) {
            if let Some(record) = self.records.get_mut(index.as_usize()) {
                record.usage = usage;
            }
        }
    }
}

/// A frame without references, type or mapping.
struct Unreferenced {
    index: FrameIndex,
    gfn: Gfn,
    next: u64,
    prev: u64,
}

/// Interprets records in frame order.
pub(in crate::linux) struct FrameReader<'a> {
    table: &'a FrameTable,
    layout: &'a MemoryLayout,
    out: FrameRecords,
    numbers: HashMap<Owner, u32>,
    last_owner: Option<(Owner, u32)>,
    /// One past the last frame of the current free block.
    block_end: Gfn,
    /// The allocator's free blocks, in ascending order of frame.
    blocks: Vec<FreeBlock>,
    unreferenced: Vec<Unreferenced>,
}

impl<'a> FrameReader<'a> {
    pub(in crate::linux) fn new(table: &'a FrameTable, layout: &'a MemoryLayout) -> Self {
        let out = FrameRecords {
            records: Vec::with_capacity(layout.frames() as usize),
            owners: Vec::new(),
            typed: Vec::new(),
            free: FreeLists::default(),
            damage: Damage::default(),
        };
        Self {
            table,
            layout,
            out,
            numbers: HashMap::new(),
            last_owner: None,
            block_end: Gfn(0),
            blocks: Vec::new(),
            unreferenced: Vec::new(),
        }
    }

    /// Records that the next `frames` frames, starting with `gfn`, have no readable record.
    pub(in crate::linux) fn unreadable(&mut self, gfn: Gfn, frames: u32) {
        self.out.damage.unreadable.add_many(gfn, frames);
        let known = self.out.records.len().saturating_add(frames as usize);
        self.out.records.resize(known.min(self.layout.frames() as usize), Record::UNKNOWN);
    }

    /// Interprets the next frame's record. `after` is the following record, if it was read in the
    /// same chunk.
    #[inline]
    pub(in crate::linux) fn frame(
        &mut self,
        gfn: Gfn,
        index: FrameIndex,
        page: RawPage<'_>,
        after: Option<RawPage<'_>>,
    ) {
        let mut record = Record::UNKNOWN;
        let flags = page.u64(self.table.offsets.flags);
        let compound = page.u64(self.table.offsets.compound);
        if gfn < self.block_end && self.is_block_member(flags, page) {
            record.usage = FrameUse::Free;
            if let Some(block) = self.blocks.last_mut() {
                block.frames = index.0.saturating_sub(block.first.0).saturating_add(1);
            }
        } else {
            if gfn < self.block_end {
                self.out.damage.blocks.add(gfn);
                self.block_end = gfn;
            }
            if compound & 1 == 0 {
                self.classify(gfn, index, page, after, &mut record);
            } else if let Some(tail) = self.tail(gfn, compound) {
                record = tail;
            } else {
                self.out.damage.tails.add(gfn);
            }
        }
        self.out.records.push(record);
    }

    /// Whether a record inside a free block is consistent with being part of the block.
    fn is_block_member(&self, flags: u64, page: RawPage<'_>) -> bool {
        let (o, f) = (&self.table.offsets, &self.table.flags);
        let typed = self.table.types.is_some_and(|t| t.is_typed(page.u32(o.mapcount)));
        page.u32(o.refcount) == 0 && !typed && flags & (f.lru | f.reserved | f.slab) == 0
    }

    /// The record of a compound page's tail: its head's record with the position advanced.
    fn tail(&self, gfn: Gfn, compound: u64) -> Option<Record> {
        let pointer = compound & !1;
        let head = match self.table.gfn_at(pointer) {
            Some(head) if head < gfn && self.table.record_address(head) == Some(Gva(pointer)) => {
                head
            }
            // In 7.2, the word is a mask to apply to the record's own address.
            _ => {
                let own = self.table.record_address(gfn)?;
                self.table.gfn_at(own.0 & pointer)?
            }
        };
        let distance = gfn.0.checked_sub(head.0).filter(|d| (1..MAX_COMPOUND).contains(d))?;
        let mut record = *self.out.record(self.layout.index_of(head)?)?;
        if matches!(record.usage, FrameUse::Free | FrameUse::Unknown | FrameUse::Reserved) {
            return None;
        }
        record.position = record.position.wrapping_add(distance);
        Some(record)
    }

    /// Interprets a record that is neither a tail nor inside a free block.
    fn classify(
        &mut self,
        gfn: Gfn,
        index: FrameIndex,
        page: RawPage<'_>,
        after: Option<RawPage<'_>>,
        record: &mut Record,
    ) {
        let (o, f) = (&self.table.offsets, &self.table.flags);
        let flags = page.u64(o.flags);
        let word = page.u32(o.mapcount);
        let types = self.table.types.filter(|t| t.is_typed(word));
        record.usage = if let Some(types) = types {
            if types.is(word, types.buddy) {
                self.begin_block(gfn, index, page)
            } else if types.is(word, types.slab) {
                self.slab(page, record)
            } else if types.is(word, types.table) {
                FrameUse::PageTable
            } else if types.is(word, types.offline) {
                FrameUse::Offline
            } else if types.is(word, types.hugetlb) {
                FrameUse::Hugetlb
            } else if types.is(word, types.large_kmalloc) {
                FrameUse::LargeKmalloc
            } else {
                self.out.typed.extend(types.number(word).map(|number| (index, number)));
                FrameUse::Allocated
            }
        } else if flags & f.slab != 0 {
            self.slab(page, record)
        } else if flags & f.reserved != 0 {
            FrameUse::Reserved
        } else if flags & f.head != 0 && self.is_hugetlb(after) {
            FrameUse::Hugetlb
        } else if page.u64(o.mapping) != 0 {
            self.mapped(page, record)
        } else if flags & f.swap_backed != 0 && flags & f.swap_cache != 0 {
            FrameUse::SwapCache
        } else if flags & f.swap_backed != 0 {
            FrameUse::Shared
        } else if flags & f.lru != 0 {
            FrameUse::File
        } else if page.u32(o.refcount) != 0 {
            FrameUse::Allocated
        } else {
            let (next, prev) = self.links(page);
            self.unreferenced.push(Unreferenced { index, gfn, next, prev });
            FrameUse::Unknown
        };
        record.on_lru = flags & f.lru != 0;
        if !matches!(record.usage, FrameUse::Free | FrameUse::Unknown) {
            if flags & f.active != 0 {
                record.temperature.insert(Temperature::ACTIVE);
            }
            if flags & f.referenced != 0 {
                record.temperature.insert(Temperature::REFERENCED);
            }
        }
    }

    /// Starts a free block at its first frame.
    fn begin_block(&mut self, gfn: Gfn, index: FrameIndex, page: RawPage<'_>) -> FrameUse {
        let order = u32::try_from(page.u64(self.table.offsets.private)).ok();
        let order = order.filter(|&o| o < self.table.buddy_orders);
        match order.filter(|&o| gfn.0.is_multiple_of(1 << o)) {
            Some(order) => {
                self.block_end = Gfn(gfn.0.saturating_add(1 << order));
                let (next, prev) = self.links(page);
                let kind = ListKind::Buddy(order);
                self.blocks.push(FreeBlock { first: index, frames: 1, kind, next, prev });
            }
            None => self.out.damage.blocks.add(gfn),
        }
        FrameUse::Free
    }

    /// A record's list links: next and previous.
    fn links(&self, page: RawPage<'_>) -> (u64, u64) {
        let lru = self.table.offsets.lru;
        (page.u64(lru), page.u64(lru.saturating_add(8)))
    }

    fn slab(&mut self, page: RawPage<'_>, record: &mut Record) -> FrameUse {
        let cache = self.table.offsets.slab_cache.map(|o| page.u64(o)).filter(|&c| c != 0);
        if let Some(address) = cache.map(Gva) {
            record.owner = self.number_of(Owner { kind: OwnerKind::SlabCache, address });
        }
        FrameUse::Slab
    }

    /// Interprets a page with a mapping. File mappings are verified later, once per mapping.
    fn mapped(&mut self, page: RawPage<'_>, record: &mut Record) -> FrameUse {
        let (o, f) = (&self.table.offsets, &self.table.flags);
        let mapping = page.u64(o.mapping);
        match mapping & MAPPING_FLAGS {
            0 => {
                record.position = page.u64(o.index);
                let owner = Owner { kind: OwnerKind::Mapping, address: Gva(mapping) };
                record.owner = self.number_of(owner);
                let is_shared = page.u64(o.flags) & f.swap_backed != 0;
                if is_shared { FrameUse::Shared } else { FrameUse::File }
            }
            1 | 3 => {
                record.position = page.u64(o.index);
                FrameUse::Anonymous
            }
            _ => FrameUse::Allocated,
        }
    }

    /// Whether a compound page is a hugetlb page, according to its first tail (until 6.8; later
    /// kernels use a page type).
    fn is_hugetlb(&self, after: Option<RawPage<'_>>) -> bool {
        let Some(tail) = after else { return false };
        let by_dtor = self.table.hugetlb_dtor.is_some_and(|(at, dtor)| tail.u8(at) == dtor);
        by_dtor || tail.u64(self.table.offsets.flags) & self.table.hugetlb_tail_flag != 0
    }

    fn number_of(&mut self, owner: Owner) -> u32 {
        if let Some((_, number)) = self.last_owner.filter(|(last, _)| *last == owner) {
            return number;
        }
        let next = u32::try_from(self.out.owners.len()).unwrap_or(NO_OWNER);
        let number = *self.numbers.entry(owner).or_insert(next);
        if number == next {
            self.out.owners.push(owner);
        }
        self.last_owner = Some((owner, number));
        number
    }

    /// Determines the use of the unreferenced frames and returns the results.
    pub(in crate::linux) fn finish<M: GuestMemory + ?Sized>(
        mut self,
        view: &KernelView<'_, M>,
    ) -> FrameRecords {
        let unreferenced = std::mem::take(&mut self.unreferenced);
        let zones = self.blocks.len();
        for page in &unreferenced {
            if self.is_on_list(view, page) {
                self.set_usage(page.index, FrameUse::FreePerCpu);
                let &Unreferenced { index: first, next, prev, .. } = page;
                let kind = ListKind::Cpu;
                self.blocks.push(FreeBlock { first, frames: 1, kind, next, prev });
            }
        }
        let mut blocks = std::mem::take(&mut self.blocks);
        let mut heads = blocks.get_mut(zones..).unwrap_or_default().iter_mut().peekable();
        let mut head: Option<&mut FreeBlock> = None;
        for page in &unreferenced {
            if let Some(next) = heads.next_if(|block| block.first == page.index) {
                head = Some(next);
            }
            let usage = self.out.record(page.index).map(|r| r.usage);
            if usage == Some(FrameUse::Unknown)
                && let Some(usage) = self.usage_of_block(page.gfn)
            {
                self.set_usage(page.index, usage);
                // A tail is allocated together with the frames before it.
                if usage == FrameUse::FreePerCpu
                    && let Some(head) = head.as_mut().filter(|head| head.end() == page.index.0)
                {
                    head.frames = head.frames.saturating_add(1);
                }
            }
        }
        blocks.sort_unstable_by_key(|block| block.first);
        self.out.free = FreeLists::follow(self.table, self.layout, &blocks);
        self.out
    }

    fn set_usage(&mut self, index: FrameIndex, usage: FrameUse) {
        if let Some(record) = self.out.records.get_mut(index.as_usize()) {
            record.usage = usage;
        }
    }

    /// Whether a page is on a list whose neighbors point back at it: a per-CPU free list.
    fn is_on_list<M: GuestMemory + ?Sized>(
        &self,
        view: &KernelView<'_, M>,
        page: &Unreferenced,
    ) -> bool {
        let Some(own) = self.table.link_address(page.gfn) else { return false };
        let back = || view.read_field(Gva(page.next), 8);
        let forth = || view.read_u64(Gva(page.prev));
        page.next != own.0 && back() == Some(own.0) && forth() == Some(own.0)
    }

    /// The use of a plain high-order block's tail: the use of the block's first record. The block
    /// starts at the nearest aligned frame below that has a use, since tails have none.
    fn usage_of_block(&self, gfn: Gfn) -> Option<FrameUse> {
        let starts = (1..self.table.buddy_orders).map(|order| gfn.0 & (u64::MAX << order));
        for start in starts.filter(|&start| start < gfn.0) {
            let usage = self.out.record(self.layout.index_of(Gfn(start))?)?.usage;
            if usage != FrameUse::Unknown {
                return Some(usage).filter(|usage| BLOCK_USES.contains(usage));
            }
        }
        None
    }
}
