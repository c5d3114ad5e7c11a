//! The frame table: one `struct page` per frame, read in one pass.
//!
//! This file locates records and their fields; [`FrameReader`] interprets them.

use crate::addr::{FRAME_BYTES, FrameIndex, Gfn, Gva};
use crate::linux::frames::page_types::{PageFlags, PageTypes};
use crate::linux::frames::reader::{FrameReader, FrameRecords};
use crate::linux::profile::Profile;
use crate::linux::view::KernelView;
use crate::memory::{GuestMemory, RamRegion};
use thiserror::Error;

/// Maximum number of bytes of records to read at a time, so that a copy stays in the CPU cache.
const CHUNK_BYTES: usize = 16 * FRAME_BYTES;

/// Why the frame table cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum FrameTableError {
    /// Neither a symbol nor a note locates the frame table.
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

/// Location and layout of the frame table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameTable {
    pub(crate) base: Gva,
    stride: u64,
    pub(in crate::linux) offsets: Offsets,
    pub(in crate::linux) flags: PageFlags,
    pub(in crate::linux) types: Option<PageTypes>,
    /// Offset of the compound page destructor in the first tail, and the destructor number of
    /// hugetlb.
    pub(in crate::linux) hugetlb_dtor: Option<(usize, u8)>,
    pub(in crate::linux) hugetlb_tail_flag: u64,
    pub(in crate::linux) buddy_orders: u32,
    /// Distance between the list heads of consecutive orders, in bytes.
    pub(in crate::linux) free_area_bytes: Option<u64>,
}

/// Offsets in a record, all verified to lie inside the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::linux) struct Offsets {
    pub(in crate::linux) flags: usize,
    pub(in crate::linux) refcount: usize,
    pub(in crate::linux) mapcount: usize,
    pub(in crate::linux) mapping: usize,
    pub(in crate::linux) index: usize,
    pub(in crate::linux) private: usize,
    pub(in crate::linux) compound: usize,
    pub(in crate::linux) lru: usize,
    pub(in crate::linux) slab_cache: Option<usize>,
}

/// The bytes of one record. The offsets were verified when the table was set up, so the fallback of
/// zero for a read outside the record is never used.
#[derive(Clone, Copy)]
pub(in crate::linux) struct RawPage<'a>(&'a [u8]);

impl RawPage<'_> {
    #[inline]
    pub(in crate::linux) fn u64(self, offset: usize) -> u64 {
        let bytes = self.0.get(offset..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u64::from_le_bytes(*b))
    }

    #[inline]
    pub(in crate::linux) fn u32(self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(|b| b.first_chunk());
        bytes.map_or(0, |b| u32::from_le_bytes(*b))
    }

    pub(in crate::linux) fn u8(self, offset: usize) -> u8 {
        self.0.get(offset).copied().unwrap_or(0)
    }
}

impl FrameTable {
    pub(crate) fn new(base: Gva, profile: &Profile) -> Result<Self, FrameTableError> {
        let bytes = profile.page_bytes;
        let usable = (8..=512).contains(&bytes) && bytes.is_multiple_of(8);
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
            free_area_bytes: profile.free_area_bytes,
        })
    }

    /// Address of a frame's record.
    pub(crate) fn record_address(&self, gfn: Gfn) -> Option<Gva> {
        self.base.checked_add(gfn.0.checked_mul(self.stride)?)
    }

    /// The frame whose record is at `address` (or contains it).
    pub(in crate::linux) fn gfn_at(&self, address: u64) -> Option<Gfn> {
        Some(Gfn(address.checked_sub(self.base.0)?.checked_div(self.stride)?))
    }

    /// Address of the list link in a frame's record.
    pub(in crate::linux) fn link_address(&self, gfn: Gfn) -> Option<Gva> {
        self.record_address(gfn)?.checked_add(u64::try_from(self.offsets.lru).ok()?)
    }

    /// The frame whose list link is at `address`.
    pub(in crate::linux) fn gfn_of_link(&self, address: u64) -> Option<Gfn> {
        self.gfn_at(address).filter(|gfn| self.link_address(*gfn) == Some(Gva(address)))
    }

    /// Reads every frame's record.
    pub(crate) fn read<M: GuestMemory + ?Sized>(&self, view: &KernelView<'_, M>) -> FrameRecords {
        let layout = view.memory().layout();
        let mut reader = FrameReader::new(self, layout);
        for region in layout.regions() {
            self.read_region(view, region, &mut reader);
        }
        reader.finish(view)
    }

    /// Reads the records of one RAM region, in chunks that are contiguous in memory.
    fn read_region<M: GuestMemory + ?Sized>(
        &self,
        view: &KernelView<'_, M>,
        region: &RamRegion,
        reader: &mut FrameReader<'_>,
    ) {
        let stride = usize::try_from(self.stride).unwrap_or(usize::MAX);
        let mut copy = vec![0; CHUNK_BYTES];
        let mut done = 0_u32;
        while let Some(left) = region.frames.checked_sub(done).filter(|&left| left > 0) {
            let gfn = Gfn(region.start.0.saturating_add(done.into()));
            let index = FrameIndex(region.first_index.0.saturating_add(done));
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let records = self.chunk(view, gfn, wanted.saturating_mul(stride), &mut copy);
            let mut pages = records.chunks_exact(stride).map(RawPage).peekable();
            if pages.peek().is_none() {
                let frames = self.unmapped(view, gfn).min(left);
                reader.unreadable(gfn, frames);
                done = done.saturating_add(frames);
            }
            for (gfn, index) in (gfn.0..).map(Gfn).zip((index.0..).map(FrameIndex)) {
                let Some(page) = pages.next() else { break };
                reader.frame(gfn, index, page, pages.peek().copied());
                done = done.saturating_add(1);
            }
        }
    }

    /// The records from `gfn` up that are contiguous in memory, at least one; empty if the first
    /// record cannot be read.
    fn chunk<'c, M: GuestMemory + ?Sized>(
        &self,
        view: &KernelView<'c, M>,
        gfn: Gfn,
        wanted: usize,
        copy: &'c mut [u8],
    ) -> &'c [u8] {
        let stride = usize::try_from(self.stride).unwrap_or(usize::MAX);
        let Some(address) = self.record_address(gfn) else { return &[] };
        let Some((_, left)) = view.translate(address) else { return &[] };
        let left = usize::try_from(left).unwrap_or(usize::MAX).min(wanted).min(CHUNK_BYTES);
        // A record that straddles two mappings is read alone.
        let rest = left.checked_rem(stride).unwrap_or(0);
        let bytes = left.saturating_sub(rest).max(stride);
        if let Some(records) = view.slice(address, bytes) {
            return records;
        }
        let Some(copy) = copy.get_mut(..bytes) else { return &[] };
        if view.read(address, copy).is_some() {
            return copy;
        }
        // A dump may lack a page of the chunk. Fall back to the records that end in the first page,
        // or to a single record.
        let to_page_end = FRAME_BYTES.saturating_sub(address.offset_in_frame());
        let rest = to_page_end.checked_rem(stride).unwrap_or(0);
        let bytes = to_page_end.saturating_sub(rest).max(stride).min(bytes);
        let Some(copy) = copy.get_mut(..bytes) else { return &[] };
        if view.read(address, copy).is_some() { copy } else { &[] }
    }

    /// Whether a frame that starts a free block is on a list whose neighbors point back at it;
    /// `None` if the frame does not start a free block.
    pub(crate) fn is_linked<M>(&self, view: &KernelView<'_, M>, gfn: Gfn) -> Option<bool>
    where
        M: GuestMemory + ?Sized,
    {
        let types = self.types?;
        let field =
            |offset: usize| self.record_address(gfn)?.checked_add(u64::try_from(offset).ok()?);
        let word = view.read_u32(field(self.offsets.mapcount)?)?;
        if !types.is_typed(word) || !types.is(word, types.buddy) {
            return None;
        }
        let own = self.link_address(gfn)?;
        let next = view.read_u64(own)?;
        let prev = view.read_field(own, 8)?;
        let back = view.read_field(Gva(next), 8);
        Some(back == Some(own.0) && view.read_u64(Gva(prev)) == Some(own.0))
    }

    /// Number of frames from `gfn` up whose records are unmapped; at least one, since the caller
    /// failed to read the first. A kernel maps no records for memory that is not plugged in, which
    /// may be large.
    fn unmapped<M: GuestMemory + ?Sized>(&self, view: &KernelView<'_, M>, gfn: Gfn) -> u32 {
        let records = || {
            let bytes = view.unmapped(self.record_address(gfn)?)?;
            u32::try_from(bytes.div_ceil(self.stride)).ok()
        };
        records().unwrap_or(1).max(1)
    }

    /// The words of one frame's record for display, as `(field, value)`.
    pub(crate) fn describe<M>(
        &self,
        view: &KernelView<'_, M>,
        gfn: Gfn,
    ) -> Option<Vec<(&'static str, u64)>>
    where
        M: GuestMemory + ?Sized,
    {
        let address = self.record_address(gfn)?;
        let mut bytes = vec![0; usize::try_from(self.stride).ok()?];
        view.read(address, &mut bytes)?;
        let page = RawPage(&bytes);
        let o = &self.offsets;
        let mut words = vec![
            ("address", address.0),
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
