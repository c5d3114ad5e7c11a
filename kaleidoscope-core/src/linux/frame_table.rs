//! The frame table: one `struct page` for every frame, read in one pass.
//!
//! In words: walk the RAM frames in order and read each one's record. A free block's first record says how long the block
//! is. A tail of a compound page is what its head is. A record with a type is of that type; a reserved one is the
//! kernel's; one with a mapping is page cache or anonymous memory; any other with a reference count was allocated for
//! purposes that only its user knows. What is left has no references and no type: pages on a CPU's free list, which are
//! linked into that list, and tails of plain high-order allocations, which belong to the allocated record at the start of
//! their block.

use super::page_types::{PageFlags, PageTypes};
use super::profile::Profile;
use super::view::KernelView;
use crate::addr::{FRAME_BYTES, FrameIndex, Gfn, Gva};
use crate::color::Temperature;
use crate::guest_os::FrameUse;
use crate::memory::{GuestMemory, MemoryLayout};
use std::collections::HashMap;
use thiserror::Error;

/// No owner.
pub(crate) const NO_OWNER: u32 = u32::MAX;

/// Low bits of a mapping pointer: 0 file, 1 anonymous, 2 movable kernel page, 3 anonymous and merged by KSM.
const MAPPING_FLAGS: u64 = 3;

/// Why the frame table cannot be read at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum FrameTableError {
    /// No symbol and no note says where the frame table is.
    #[error("the frame table's address is not known (neither vmemmap nor mem_section)")]
    NoAddress,
    /// The layout of `struct page` is not known.
    #[error("offset of struct page's {field} is not known or lies outside its {bytes} bytes")]
    NoField {
        /// The missing field.
        field: &'static str,
        /// Size of the structure.
        bytes: u64,
    },
}

/// What one frame's record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Record {
    pub(crate) position: u64,
    /// Number of the pointer in [`FrameRecords::owners`] that the frame belongs to, or [`NO_OWNER`].
    pub(crate) owner: u32,
    pub(crate) usage: FrameUse,
    pub(crate) temperature: Temperature,
}

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

/// What was wrong or left out, by number of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Damage {
    /// Frames without a readable record.
    pub(crate) unreadable: u64,
    /// The first of them.
    pub(crate) first_unreadable: Option<Gfn>,
    /// Free blocks whose order, alignment or content contradicts itself.
    pub(crate) bad_blocks: u64,
    /// The first of them.
    pub(crate) first_bad_block: Option<Gfn>,
    /// Tails whose head is not where a head can be.
    pub(crate) bad_tails: u64,
    /// The first of them.
    pub(crate) first_bad_tail: Option<Gfn>,
}

/// Everything read from the frame table.
#[derive(Clone, Debug)]
pub(crate) struct FrameRecords {
    /// In frame-index order.
    pub(crate) records: Vec<Record>,
    pub(crate) owners: Vec<Owner>,
    /// Frames with a type whose meaning is not known, and the word.
    pub(crate) typed: Vec<(FrameIndex, u32)>,
    pub(crate) damage: Damage,
}

/// Where the frame table is and how its records are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameTable {
    pub(crate) base: Gva,
    stride: u64,
    offsets: Offsets,
    flags: PageFlags,
    types: Option<PageTypes>,
    hugetlb_dtor: Option<(usize, u8)>,
    hugetlb_tail_flag: u64,
    buddy_orders: u32,
}

/// Offsets in a record, all checked to lie inside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Offsets {
    flags: usize,
    refcount: usize,
    mapcount: usize,
    mapping: usize,
    index: usize,
    private: usize,
    compound: usize,
    lru: usize,
    slab_cache: Option<usize>,
}

/// One record's bytes. Offsets were checked when the table was set up, so a read outside is a zero and does not happen.
#[derive(Clone, Copy)]
struct RawPage<'a>(&'a [u8]);

impl RawPage<'_> {
    #[inline]
    fn u64(self, offset: usize) -> u64 {
        let bytes = self.0.get(offset..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u64::from_le_bytes(*b))
    }

    #[inline]
    fn u32(self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u32::from_le_bytes(*b))
    }
}

impl FrameTable {
    pub(crate) fn new(base: Gva, profile: &Profile) -> Result<Self, FrameTableError> {
        let bytes = profile.page_bytes;
        let usable = (8..=512).contains(&bytes) && bytes % 8 == 0;
        let inside = |field: &'static str, offset: Option<u64>, len: u64| {
            let fits = |o: &u64| usable && o.checked_add(len).is_some_and(|end| end <= bytes);
            let offset = offset.filter(fits).and_then(|o| usize::try_from(o).ok());
            offset.ok_or(FrameTableError::NoField { field, bytes })
        };
        let fields = &profile.fields;
        let offsets = Offsets {
            flags: inside("flags", fields.page_flags, 8)?,
            refcount: inside("_refcount", fields.page_refcount, 4)?,
            mapcount: inside("_mapcount", fields.page_mapcount, 4)?,
            mapping: inside("mapping", fields.page_mapping, 8)?,
            index: inside("index", fields.page_index, 8)?,
            private: inside("private", fields.page_private, 8)?,
            compound: inside("compound_head", fields.page_compound, 8)?,
            lru: inside("lru", fields.page_lru, 16)?,
            slab_cache: inside("slab_cache", fields.slab_cache, 8).ok(),
        };
        let dtor_offset = inside("compound_dtor", fields.page_compound_dtor, 1).ok();
        Ok(Self {
            base,
            stride: bytes,
            offsets,
            flags: profile.flags,
            types: profile.types,
            hugetlb_dtor: dtor_offset.zip(profile.hugetlb_dtor),
            hugetlb_tail_flag: profile.hugetlb_tail_flag,
            buddy_orders: profile.buddy_orders,
        })
    }

    /// Address of a frame's record.
    pub(crate) fn record_address(&self, gfn: Gfn) -> Option<Gva> {
        self.base.checked_add(gfn.0.checked_mul(self.stride)?)
    }

    /// The frame whose record is at `address` (or contains it).
    fn gfn_at(&self, address: u64) -> Option<Gfn> {
        Some(Gfn(address.checked_sub(self.base.0)? / self.stride))
    }

    /// Reads every frame's record.
    pub(crate) fn read<M: GuestMemory + ?Sized>(&self, view: &KernelView<'_, M>) -> FrameRecords {
        let layout = view.memory().layout();
        let mut reader = Reader {
            table: self,
            layout,
            out: FrameRecords {
                records: vec![Record { owner: NO_OWNER, ..Record::default() }; layout.frames() as usize],
                owners: Vec::new(),
                typed: Vec::new(),
                damage: Damage::default(),
            },
            numbers: HashMap::new(),
            last_owner: (Owner { kind: OwnerKind::Mapping, address: Gva(0) }, NO_OWNER),
            free_block: None,
            unreferenced: Vec::new(),
            compound_tails: Vec::new(),
        };
        for region in layout.regions() {
            self.read_region(view, region.start, region.first_index, region.frames, &mut reader);
        }
        reader.resolve_unreferenced(view);
        reader.out
    }

    /// Reads a contiguous run of frames, as many records at a time as are contiguous in memory.
    fn read_region<M: GuestMemory + ?Sized>(
        &self,
        view: &KernelView<'_, M>,
        start: Gfn,
        first: FrameIndex,
        frames: u32,
        reader: &mut Reader<'_>,
    ) {
        let stride = usize::try_from(self.stride).unwrap_or(usize::MAX);
        let mut copy = Vec::new();
        let mut done = 0u32;
        while done < frames {
            let gfn = Gfn(start.0 + u64::from(done));
            let address = self.record_address(gfn);
            let span = address.and_then(|a| Some((a, view.translate(a)?.1)));
            // At most a few frames' worth at a time, so that a copy stays in the cache.
            let (bytes, address) = match span {
                Some((a, left)) => {
                    let want = u64::from(frames - done).saturating_mul(self.stride).min(left);
                    (usize::try_from(want).unwrap_or(usize::MAX).min(16 * FRAME_BYTES), a)
                }
                None => (0, Gva(0)),
            };
            let count = bytes / stride;
            if count == 0 {
                // Not mapped, or a record that straddles two mappings: one frame at a time.
                let mut record = vec![0; stride];
                match address.0 != 0 && view.read(address, &mut record).is_some() {
                    true => reader.frame(gfn, FrameIndex(first.0 + done), RawPage(&record), None),
                    false => reader.skip(gfn),
                }
                done += 1;
                continue;
            }
            let records = match view.slice(address, count * stride) {
                Some(records) => records,
                None => {
                    copy.resize(count * stride, 0);
                    if view.read(address, &mut copy).is_none() {
                        copy.clear();
                    }
                    copy.as_slice()
                }
            };
            if records.is_empty() {
                // The mapping leads outside RAM; a page's worth of records is lost.
                let lost = (FRAME_BYTES / stride).clamp(1, count);
                for i in 0..u32::try_from(lost).unwrap_or(1) {
                    reader.skip(Gfn(gfn.0 + u64::from(i)));
                }
                done = done.saturating_add(u32::try_from(lost).unwrap_or(1));
                continue;
            }
            let mut pages = records.chunks_exact(stride).map(RawPage).peekable();
            while let Some(page) = pages.next() {
                let gfn = Gfn(start.0 + u64::from(done));
                reader.frame(gfn, FrameIndex(first.0 + done), page, pages.peek().copied());
                done += 1;
            }
        }
    }

    /// The words of one frame's record, for explaining it: `(field, value)`.
    pub(crate) fn describe<M>(&self, view: &KernelView<'_, M>, gfn: Gfn) -> Option<Vec<(&'static str, u64)>>
    where
        M: GuestMemory + ?Sized,
    {
        let address = self.record_address(gfn)?;
        let mut bytes = vec![0; usize::try_from(self.stride).ok()?];
        view.read(address, &mut bytes)?;
        let page = RawPage(&bytes);
        let o = &self.offsets;
        let mut words = vec![
            ("struct page", address.0),
            ("flags", page.u64(o.flags)),
            ("_refcount", page.u32(o.refcount).into()),
            ("_mapcount or page_type", page.u32(o.mapcount).into()),
            ("mapping", page.u64(o.mapping)),
            ("index", page.u64(o.index)),
            ("private", page.u64(o.private)),
            ("compound_head", page.u64(o.compound)),
        ];
        if let Some(slab) = o.slab_cache {
            words.push(("slab_cache", page.u64(slab)));
        }
        Some(words)
    }
}

/// A free block being passed.
#[derive(Clone, Copy)]
struct FreeBlock {
    end: Gfn,
}

struct Reader<'a> {
    table: &'a FrameTable,
    layout: &'a MemoryLayout,
    out: FrameRecords,
    numbers: HashMap<Owner, u32>,
    last_owner: (Owner, u32),
    free_block: Option<FreeBlock>,
    /// Frames without references, type or mapping, and their list pointers.
    unreferenced: Vec<(FrameIndex, Gfn, [u64; 2])>,
    /// Heads seen, so that only real tails inherit: the last compound head and what it is.
    compound_tails: Vec<()>,
}

impl Reader<'_> {
    fn skip(&mut self, gfn: Gfn) {
        self.out.damage.unreadable += 1;
        self.out.damage.first_unreadable.get_or_insert(gfn);
    }

    fn set(&mut self, index: FrameIndex, record: Record) {
        if let Some(slot) = self.out.records.get_mut(index.as_usize()) {
            *slot = record;
        }
    }

    fn number_of(&mut self, owner: Owner) -> u32 {
        if self.last_owner.0 == owner && self.last_owner.1 != NO_OWNER {
            return self.last_owner.1;
        }
        let next = u32::try_from(self.out.owners.len()).unwrap_or(NO_OWNER);
        let number = *self.numbers.entry(owner).or_insert(next);
        if number == next {
            self.out.owners.push(owner);
        }
        self.last_owner = (owner, number);
        number
    }

    /// Judges one record. `after` is the next frame's record, where it was read along.
    fn frame(&mut self, gfn: Gfn, index: FrameIndex, page: RawPage<'_>, after: Option<RawPage<'_>>) {
        let table = self.table;
        let o = &table.offsets;
        let flags = page.u64(o.flags);
        let word = page.u32(o.mapcount);
        let refcount = page.u32(o.refcount);
        let typed = table.types.is_some_and(|t| t.is_typed(word));
        if let Some(block) = self.free_block {
            if gfn >= block.end {
                self.free_block = None;
            } else if refcount == 0 && !typed && flags & (table.flags.lru | table.flags.reserved | table.flags.slab) == 0 {
                self.set(index, Record { position: gfn.0, owner: NO_OWNER, usage: FrameUse::Free, temperature: Temperature::NONE });
                return;
            } else {
                self.bad_block(gfn);
            }
        }
        let compound = page.u64(o.compound);
        if compound & 1 != 0 && flags & table.flags.reserved == 0 && !typed {
            self.tail(gfn, index, compound);
            return;
        }
        let mut record = Record { position: gfn.0, owner: NO_OWNER, ..Record::default() };
        record.usage = self.usage(gfn, index, page, after, &mut record);
        match record.usage {
            FrameUse::Anonymous | FrameUse::SwapCache | FrameUse::File | FrameUse::Shared => {
                if flags & table.flags.active != 0 {
                    record.temperature.insert(Temperature::ACTIVE);
                }
                if flags & table.flags.referenced != 0 {
                    record.temperature.insert(Temperature::REFERENCED);
                }
            }
            _ => {}
        }
        self.set(index, record);
    }

    /// What a record that is no tail says.
    fn usage(
        &mut self,
        gfn: Gfn,
        index: FrameIndex,
        page: RawPage<'_>,
        after: Option<RawPage<'_>>,
        record: &mut Record,
    ) -> FrameUse {
        let table = self.table;
        let (o, f) = (&table.offsets, &table.flags);
        let flags = page.u64(o.flags);
        let word = page.u32(o.mapcount);
        let refcount = page.u32(o.refcount);
        if flags & f.slab != 0 {
            return self.slab(page, record);
        }
        if let Some(types) = table.types.filter(|t| t.is_typed(word)) {
            if types.is(word, types.buddy) {
                return self.begin_block(gfn, page.u64(o.private));
            }
            if types.is(word, types.slab) {
                return self.slab(page, record);
            }
            if types.is(word, types.table) {
                return FrameUse::PageTable;
            }
            if types.is(word, types.offline) {
                return FrameUse::Offline;
            }
            if types.is(word, types.hugetlb) {
                return FrameUse::Hugetlb;
            }
            if types.is(word, types.large_kmalloc) {
                return FrameUse::LargeKmalloc;
            }
            self.out.typed.push((index, word));
            return FrameUse::Allocated;
        }
        if flags & f.reserved != 0 {
            return FrameUse::Reserved;
        }
        if flags & f.head != 0 && self.is_old_hugetlb(after) {
            return FrameUse::Hugetlb;
        }
        let mapping = page.u64(o.mapping);
        if mapping != 0 && refcount != 0 {
            match mapping & MAPPING_FLAGS {
                1 | 3 => {
                    record.position = page.u64(o.index);
                    return FrameUse::Anonymous;
                }
                0 if flags & (f.lru | f.swap_backed) != 0 || self.looks_like_mapping(mapping) => {
                    record.position = page.u64(o.index);
                    let owner = Owner { kind: OwnerKind::Mapping, address: Gva(mapping) };
                    record.owner = self.number_of(owner);
                    return if flags & f.swap_backed != 0 { FrameUse::Shared } else { FrameUse::File };
                }
                _ => return FrameUse::Allocated,
            }
        }
        if flags & f.swap_backed != 0 && flags & f.swap_cache != 0 {
            return FrameUse::SwapCache;
        }
        if flags & f.swap_backed != 0 {
            return FrameUse::Shared;
        }
        if flags & f.lru != 0 {
            return FrameUse::File;
        }
        if refcount != 0 {
            return FrameUse::Allocated;
        }
        self.unreferenced.push((index, gfn, [page.u64(o.lru), page.u64(o.lru + 8)]));
        FrameUse::Unknown
    }
}
