//! The kernel under construction: its memory, and writing of its structures.

use super::KernelStyle;
use super::image::Image;
use super::memory::frames::Frames;
use super::memory::slab::Slabs;
use super::style::NO_MAPPINGS;
use super::truth::Role;
use super::types::{Field, Types};
use crate::paging::{PageTables, translate};
use crate::ram::{read_u64, write_uint};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gpa, Gva};
use kaleidoscope_core::memory::VecMemory;
use std::collections::{BTreeMap, BTreeSet};

/// Frames of a memory section (128 MiB).
pub(super) const SECTION_FRAMES: u64 = 1 << 15;

/// Bytes of a `struct page`.
pub(super) const PAGE_BYTES: u64 = 64;

/// Value of `mapping` in tails of compound pages (`TAIL_MAPPING`).
const TAIL_MAPPING: u64 = 0xdead_0000_0000_0400;

/// Base addresses of the kernel's areas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bases {
    pub(super) page_offset: u64,
    pub(super) vmalloc: u64,
    pub(super) vmemmap: u64,
}

/// A structure in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Object {
    pub(super) gva: Gva,
    pub(super) gpa: Gpa,
    pub(super) ty: &'static str,
}

/// Contents of a frame's `struct page`.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageRecord {
    /// Page flags, without the zone bits.
    pub(super) flags: u64,
    pub(super) lru: [u64; 2],
    pub(super) mapping: u64,
    pub(super) index: u64,
    pub(super) private: u64,
    /// Number of mappings minus one, or the page type.
    pub(super) word: u32,
    pub(super) refcount: u32,
}

impl Default for PageRecord {
    fn default() -> Self {
        let word = NO_MAPPINGS;
        Self { flags: 0, lru: [0; 2], mapping: 0, index: 0, private: 0, word, refcount: 0 }
    }
}

/// Offsets in `struct page`, looked up once.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageFields {
    pub(super) lru: u64,
    mapping: u64,
    index: u64,
    pub(super) private: u64,
    word: u64,
    refcount: u64,
    slab_cache: u64,
}

/// Use of a compound page, which its first tail records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compound {
    Plain,
    Hugetlb,
    Folio,
}

/// The kernel under construction.
pub(super) struct Kernel {
    pub(super) style: KernelStyle,
    pub(super) rng: Rng,
    pub(super) memory: VecMemory,
    pub(super) types: Types,
    pub(super) frames: Frames,
    pub(super) image: Image,
    pub(super) bases: Bases,
    /// The kernel's own tables.
    pub(super) tables: PageTables,
    /// Location of each memory section's part of the frame table.
    pub(super) memmap: BTreeMap<u64, Gpa>,
    pub(super) page: PageFields,
    pub(super) slabs: Slabs,
    pub(super) active: BTreeSet<Gfn>,
    pub(super) referenced: BTreeSet<Gfn>,
    /// First unused address of the vmalloc area.
    pub(super) vmalloc_next: u64,
}

impl PageFields {
    pub(super) fn new(types: &Types, style: KernelStyle) -> Result<Self, MockError> {
        let at = |name| types.offset("page", name);
        let index = if style >= KernelStyle::V7_2 { "__folio_index" } else { "index" };
        let slab_cache = match style {
            KernelStyle::V5_10 => at("slab_cache")?,
            KernelStyle::V6_1 | KernelStyle::V6_12 | KernelStyle::V7_2 => {
                types.offset("slab", "slab_cache")?
            }
        };
        Ok(Self {
            lru: at("lru")?,
            mapping: at("mapping")?,
            index: at(index)?,
            private: at("private")?,
            word: at("page_type")?,
            refcount: at("_refcount")?,
            slab_cache,
        })
    }
}

impl Kernel {
    /// Direct-map address of a physical address.
    pub(super) fn direct(&self, gpa: Gpa) -> u64 {
        self.bases.page_offset + gpa.0
    }

    /// The physical address of a kernel address.
    pub(super) fn physical(&self, gva: u64) -> Result<Gpa, MockError> {
        if let Some(gpa) = self.image.physical(gva) {
            return Ok(gpa);
        }
        let direct = Gpa(gva.wrapping_sub(self.bases.page_offset));
        if self.frames.layout().index_of(direct.gfn()).is_some() {
            return Ok(direct);
        }
        let found = translate(&self.memory, self.tables.mode(), self.tables.root(), Gva(gva));
        let not_ram = kaleidoscope_core::memory::MemoryError::NotRam { gpa: direct, len: 8 };
        found.map(|t| t.gpa).ok_or(MockError::Memory(not_ram))
    }

    /// The object of a type at a kernel address.
    pub(super) fn object(&self, gva: Gva, ty: &'static str) -> Result<Object, MockError> {
        Ok(Object { gva, gpa: self.physical(gva.0)?, ty })
    }

    /// A member of an object that is itself a structure.
    pub(super) fn part(
        &self,
        object: Object,
        path: &str,
        ty: &'static str,
    ) -> Result<Object, MockError> {
        let offset = self.types.offset(object.ty, path)?;
        Ok(Object { gva: Gva(object.gva.0 + offset), gpa: Gpa(object.gpa.0 + offset), ty })
    }

    /// The address of a member.
    pub(super) fn address(&self, object: Object, path: &str) -> Result<u64, MockError> {
        Ok(object.gva.0 + self.types.offset(object.ty, path)?)
    }

    /// Writes a number of at most eight bytes to a member.
    pub(super) fn set(&mut self, object: Object, path: &str, value: u64) -> Result<(), MockError> {
        let Field { offset, size } = self.types.field(object.ty, path)?;
        let size = usize::try_from(size).unwrap_or(8).min(8);
        write_uint(&mut self.memory, Gpa(object.gpa.0 + offset), size, value)
    }

    /// Writes a string to a character-array member, truncated to leave room for the terminator.
    pub(super) fn set_text(
        &mut self,
        object: Object,
        path: &str,
        text: &str,
    ) -> Result<(), MockError> {
        let Field { offset, size } = self.types.field(object.ty, path)?;
        let fits = usize::try_from(size).unwrap_or(0).saturating_sub(1).min(text.len());
        let bytes = text.as_bytes().get(..fits).unwrap_or_default();
        self.memory.write(Gpa(object.gpa.0 + offset), bytes)?;
        Ok(())
    }

    /// Reads the 64-bit number at a kernel address.
    pub(super) fn load(&self, gva: u64) -> Result<u64, MockError> {
        read_u64(&self.memory, self.physical(gva)?)
    }

    /// Writes a 64-bit number to a kernel address.
    pub(super) fn store(&mut self, gva: u64, value: u64) -> Result<(), MockError> {
        let gpa = self.physical(gva)?;
        write_uint(&mut self.memory, gpa, 8, value)
    }

    /// Writes bytes to a kernel address; they must lie in one mapping.
    pub(super) fn store_bytes(&mut self, gva: u64, bytes: &[u8]) -> Result<(), MockError> {
        self.memory.write(self.physical(gva)?, bytes)?;
        Ok(())
    }

    /// Initializes an empty `list_head`.
    pub(super) fn list_init(&mut self, head: u64) -> Result<(), MockError> {
        self.store(head, head)?;
        self.store(head + 8, head)
    }

    /// Appends to a doubly linked list (`list_add_tail`).
    pub(super) fn list_append(&mut self, head: u64, node: u64) -> Result<(), MockError> {
        let last = self.load(head + 8)?;
        self.store(node, head)?;
        self.store(node + 8, last)?;
        self.store(last, node)?;
        self.store(head + 8, node)
    }

    /// Inserts a node at the head of a hash list (`hlist_add_head`).
    pub(super) fn hlist_prepend(&mut self, head: u64, node: u64) -> Result<(), MockError> {
        let first = self.load(head)?;
        self.store(node, first)?;
        self.store(node + 8, head)?;
        if first != 0 {
            self.store(first + 8, node)?;
        }
        self.store(head, node)
    }

    /// Address of a frame's `struct page`.
    pub(super) fn page_address(&self, gfn: Gfn) -> u64 {
        self.bases.vmemmap + gfn.0 * PAGE_BYTES
    }

    /// Physical address of a frame's `struct page`.
    pub(super) fn page_gpa(&self, gfn: Gfn) -> Result<Gpa, MockError> {
        let chunk = self.memmap.get(&(gfn.0 / SECTION_FRAMES)).ok_or(MockError::Taken { gfn })?;
        Ok(Gpa(chunk.0 + gfn.0 % SECTION_FRAMES * PAGE_BYTES))
    }

    /// Bits above the flags in the flags word: node 0, the zone, and the last CPU and process.
    fn zone_bits(gfn: Gfn) -> u64 {
        let zone = match gfn.0 {
            0..0x1000 => 0,
            0x1000..0x10_0000 => 1,
            _ => 2,
        };
        zone << 51 | 0x1f_ffff << 30
    }

    /// Writes a frame's `struct page`.
    pub(super) fn write_page(&mut self, gfn: Gfn, record: &PageRecord) -> Result<(), MockError> {
        let at = self.page_gpa(gfn)?;
        let f = self.page;
        let put = |memory: &mut VecMemory, offset: u64, size, value| {
            write_uint(memory, Gpa(at.0 + offset), size, value)
        };
        let memory = &mut self.memory;
        put(memory, 0, 8, record.flags | Self::zone_bits(gfn))?;
        put(memory, f.lru, 8, record.lru[0])?;
        put(memory, f.lru + 8, 8, record.lru[1])?;
        put(memory, f.mapping, 8, record.mapping)?;
        put(memory, f.index, 8, record.index)?;
        put(memory, f.private, 8, record.private)?;
        put(memory, f.word, 4, record.word.into())?;
        put(memory, f.refcount, 4, record.refcount.into())
    }

    /// Writes one member of a frame's `struct page`.
    pub(super) fn page_set(&mut self, gfn: Gfn, path: &str, value: u64) -> Result<(), MockError> {
        let object =
            Object { gva: Gva(self.page_address(gfn)), gpa: self.page_gpa(gfn)?, ty: "page" };
        self.set(object, path, value)
    }

    /// Writes the slab cache in a frame's `struct page`.
    pub(super) fn page_set_cache(&mut self, gfn: Gfn, cache: Gva) -> Result<(), MockError> {
        let at = self.page_gpa(gfn)?;
        write_uint(&mut self.memory, Gpa(at.0 + self.page.slab_cache), 8, cache.0)
    }

    /// Adds mappings by page tables: to the mapping count and to the reference count.
    pub(super) fn page_mapped(&mut self, gfn: Gfn, mappings: u32) -> Result<(), MockError> {
        let at = self.page_gpa(gfn)?;
        let f = self.page;
        let references = crate::ram::read_u32(&self.memory, Gpa(at.0 + f.refcount))?;
        write_uint(&mut self.memory, Gpa(at.0 + f.word), 4, mappings.wrapping_sub(1).into())?;
        write_uint(&mut self.memory, Gpa(at.0 + f.refcount), 4, (references + mappings).into())
    }

    /// Writes the records of a compound page: `record` for its head, and its tails.
    pub(super) fn write_compound(
        &mut self,
        head: Gfn,
        order: u32,
        record: &PageRecord,
        kind: Compound,
    ) -> Result<(), MockError> {
        let flags = record.flags | if order > 0 { self.style.flag("PG_head") } else { 0 };
        self.write_page(head, &PageRecord { flags, ..*record })?;
        // Until 7.2, a tail points to its head; since then, it holds a mask that leads there.
        let link = match self.style {
            KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => {
                self.page_address(head) | 1
            }
            KernelStyle::V7_2 => !((PAGE_BYTES << order) - 1) | 1,
        };
        for i in 1..1u64 << order {
            let tail =
                PageRecord { lru: [link, 0], mapping: TAIL_MAPPING, ..PageRecord::default() };
            self.write_page(Gfn(head.0 + i), &tail)?;
        }
        if order == 0 {
            return Ok(());
        }
        let first = Gfn(head.0 + 1);
        match self.style {
            KernelStyle::V5_10 | KernelStyle::V6_1 => {
                let dtor = match kind {
                    Compound::Plain => 1,
                    Compound::Hugetlb => 2,
                    Compound::Folio => 3,
                };
                self.page_set(first, "compound_dtor", dtor)?;
                self.page_set(first, "compound_order", order.into())?;
                self.page_set(first, "compound_mapcount", u64::from(NO_MAPPINGS))?;
                self.page_set(first, "compound_nr", 1 << order)
            }
            KernelStyle::V6_12 | KernelStyle::V7_2 => {
                // The order is the lowest byte of the first tail's flags.
                let rmappable = if kind == Compound::Folio { 1 << 9 } else { 0 };
                let flags = u64::from(order) | rmappable | Self::zone_bits(first);
                self.page_set(first, "flags", flags)?;
                let pages =
                    if self.style == KernelStyle::V7_2 { "_nr_pages" } else { "_folio_nr_pages" };
                let head_object = Object {
                    gva: Gva(self.page_address(head)),
                    gpa: self.page_gpa(head)?,
                    ty: "folio",
                };
                self.set(head_object, pages, 1 << order)
            }
        }
    }

    /// Takes a block and writes its records as a compound page.
    pub(super) fn take_compound(
        &mut self,
        order: u32,
        record: &PageRecord,
        kind: Compound,
        role: impl Fn(u64) -> Role,
    ) -> Result<Gfn, MockError> {
        let head = self.frames.take(order, role)?;
        self.write_compound(head, order, record, kind)?;
        Ok(head)
    }

    /// Writes random bytes to the start of a frame, so that it is neither zero nor equal to
    /// another.
    pub(super) fn fill_unique(&mut self, gfn: Gfn) -> Result<(), MockError> {
        let mut bytes = [0; 64];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.rng.next_u64().to_le_bytes());
        }
        self.memory.write(gfn.gpa(), &bytes)?;
        self.memory.write(Gpa(gfn.gpa().0 + FRAME_SIZE - 8), &gfn.0.to_le_bytes())?;
        Ok(())
    }

    /// Marks a page of user memory as recently used, at random.
    pub(super) fn recency(&mut self, gfn: Gfn) -> u64 {
        let mut flags = 0;
        if self.rng.one_in(3) {
            flags |= self.style.flag("PG_active");
            self.active.insert(gfn);
        }
        if self.rng.one_in(4) {
            flags |= self.style.flag("PG_referenced");
            self.referenced.insert(gfn);
        }
        flags
    }
}
