//! What a frame's record means.
//!
//! In words, for the frames in ascending order: A free block's first record says how long the block
//! is. A tail of a compound page is what its head is. A record with a type is of that type; a
//! reserved one is the kernel's; one with a mapping is page cache or anonymous memory; any other
//! with a reference count was allocated for purposes that only its user knows. What is left has no
//! references, type or mapping: pages on a CPU's free list, which are linked into a list that links
//! back, and tails of plain high-order blocks, which share the use of the record at the start of
//! their block.

use super::frame_table::{FrameTable, RawPage};
use super::free_lists::{FreeBlock, FreeLists, ListKind};
use super::view::KernelView;
use crate::addr::{FrameIndex, Gfn, Gva};
use crate::color::Temperature;
use crate::guest_os::FrameUse;
use crate::memory::{GuestMemory, MemoryLayout};
use std::collections::HashMap;
use std::fmt;

/// No owner.
pub(crate) const NO_OWNER: u32 = u32::MAX;

/// Low bits of a mapping pointer: 0 file, 1 anonymous, 2 movable kernel page, 3 anonymous and
/// merged by KSM.
const MAPPING_FLAGS: u64 = 3;

/// Frames of the largest compound page, a 1 GiB huge page.
const MAX_COMPOUND: u64 = 1 << 18;

/// What plain high-order blocks are used for.
const BLOCK_USES: [FrameUse; 5] = [
    FrameUse::Allocated,
    FrameUse::PageTable,
    FrameUse::FreePerCpu,
    FrameUse::LargeKmalloc,
    FrameUse::Slab,
];

/// What one frame's record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Index in the file, or in the process's memory; 0 for other frames.
    pub(crate) position: u64,
    /// Number of the object in [`FrameRecords::owners`] that the frame belongs to, or
    /// [`NO_OWNER`].
    pub(crate) owner: u32,
    pub(crate) usage: FrameUse,
    pub(crate) temperature: Temperature,
    /// Whether the kernel's reclaim lists hold it.
    pub(crate) on_lru: bool,
}

impl Record {
    /// Of a frame of which nothing is known.
    const UNKNOWN: Self = Self {
        position: 0,
        owner: NO_OWNER,
        usage: FrameUse::Unknown,
        temperature: Temperature::NONE,
        on_lru: false,
    };
}

// There is one for every frame.
const _: () = assert!(size_of::<Record>() == 16);

/// What kind of object owns frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum OwnerKind {
    /// A `struct address_space`.
    Mapping,
    /// A `struct kmem_cache`.
    SlabCache,
}

/// A kernel object that frames belong to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Owner {
    pub(crate) kind: OwnerKind,
    pub(crate) address: Gva,
}

/// By address: what is left to say of an owner that has no name.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            OwnerKind::Mapping => "mapping",
            OwnerKind::SlabCache => "cache",
        };
        write!(f, "{kind}@{}", self.address)
    }
}

/// Frames of one kind of trouble: how many, and the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Trouble {
    pub(crate) count: u64,
    pub(crate) first: Option<Gfn>,
}

impl Trouble {
    pub(super) fn add(&mut self, gfn: Gfn) {
        self.add_many(gfn, 1);
    }

    /// Adds consecutive frames.
    pub(super) fn add_many(&mut self, first: Gfn, frames: u32) {
        self.count = self.count.saturating_add(frames.into());
        self.first.get_or_insert(first);
    }
}

/// What was wrong in the frame table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Damage {
    /// Frames without a readable record.
    pub(crate) unreadable: Trouble,
    /// Free blocks whose order, alignment or content contradicts itself.
    pub(crate) blocks: Trouble,
    /// Tails whose head is not where a head can be.
    pub(crate) tails: Trouble,
}

/// Everything read from the frame table.
#[derive(Clone, Debug)]
pub(crate) struct FrameRecords {
    /// In frame-index order.
    pub(crate) records: Vec<Record>,
    pub(crate) owners: Vec<Owner>,
    /// Frames with a type whose meaning is not known, and the type's number.
    pub(crate) typed: Vec<(FrameIndex, u32)>,
    /// In which order the free ones are given away.
    pub(crate) free: FreeLists,
    pub(crate) damage: Damage,
}

impl FrameRecords {
    pub(crate) fn record(&self, index: FrameIndex) -> Option<&Record> {
        self.records.get(index.as_usize())
    }

    /// Gives all frames of a type, whose meaning has become known, their use.
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

/// Judges records one after the other.
pub(super) struct FrameReader<'a> {
    table: &'a FrameTable,
    layout: &'a MemoryLayout,
    out: FrameRecords,
    numbers: HashMap<Owner, u32>,
    last_owner: Option<(Owner, u32)>,
    /// One past the last frame of the free block being passed.
    block_end: Gfn,
    /// The allocator's blocks, by ascending frame.
    blocks: Vec<FreeBlock>,
    unreferenced: Vec<Unreferenced>,
}

impl<'a> FrameReader<'a> {
    pub(super) fn new(table: &'a FrameTable, layout: &'a MemoryLayout) -> Self {
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

    /// The next `frames` frames, of which this is the first, have no readable record.
    pub(super) fn unreadable(&mut self, gfn: Gfn, frames: u32) {
        self.out.damage.unreadable.add_many(gfn, frames);
        let known = self.out.records.len().saturating_add(frames as usize);
        self.out.records.resize(known.min(self.layout.frames() as usize), Record::UNKNOWN);
    }

    /// The next frame's record, and the one after it where it was read along.
    #[inline]
    pub(super) fn frame(
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
                self.judge(gfn, index, page, after, &mut record);
            } else if let Some(tail) = self.tail(gfn, compound) {
                record = tail;
            } else {
                self.out.damage.tails.add(gfn);
            }
        }
        self.out.records.push(record);
    }

    /// Whether a record inside a free block may be part of it.
    fn is_block_member(&self, flags: u64, page: RawPage<'_>) -> bool {
        let (o, f) = (&self.table.offsets, &self.table.flags);
        let typed = self.table.types.is_some_and(|t| t.is_typed(page.u32(o.mapcount)));
        page.u32(o.refcount) == 0 && !typed && flags & (f.lru | f.reserved | f.slab) == 0
    }

    /// A tail of a compound page: what its head is, further on.
    fn tail(&self, gfn: Gfn, compound: u64) -> Option<Record> {
        let pointer = compound & !1;
        let head = match self.table.gfn_at(pointer) {
            Some(head) if head < gfn && self.table.record_address(head) == Some(Gva(pointer)) => {
                head
            }
            // On 7.2 the word is a mask for the record's own address.
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

    /// What a record that is neither a tail nor inside a free block says.
    fn judge(
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

    /// The first frame of a free block.
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

    /// A record's links: the next and the previous in its list.
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

    /// A page with a mapping. Whether a file's is what it says is verified later, once per mapping.
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

    /// Whether a compound page is a huge page, by its first tail (until 6.8; later ones have a
    /// type).
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

    /// Decides what has no references, and hands everything over.
    pub(super) fn finish<M: GuestMemory + ?Sized>(
        mut self,
        view: &KernelView<'_, M>,
    ) -> FrameRecords {
        let waiting = std::mem::take(&mut self.unreferenced);
        let zones = self.blocks.len();
        for page in &waiting {
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
        for page in &waiting {
            if let Some(next) = heads.next_if(|block| block.first == page.index) {
                head = Some(next);
            }
            let usage = self.out.record(page.index).map(|r| r.usage);
            if usage == Some(FrameUse::Unknown)
                && let Some(usage) = self.usage_of_block(page.gfn)
            {
                self.set_usage(page.index, usage);
                // A tail is given away with the frames before it.
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

    /// Whether a page is linked into a list whose neighbors point back to it: a CPU's free list.
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

    /// What a tail of a plain high-order block is used for: what the first record of its block
    /// says. The block starts at the nearest aligned frame below that has a use of its own,
    /// since tails have none.
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
