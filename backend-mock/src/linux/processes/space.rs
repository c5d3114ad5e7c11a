//! Address spaces of processes: their page tables and mappings.

use crate::linux::kernel::{Compound, Kernel, Object, PageRecord};
use crate::linux::memory::frames::LateTables;
use crate::linux::style::{NO_MAPPINGS, PageType};
use crate::linux::truth::{Role, SpaceTruth};
use crate::linux::vfs::File;
use crate::paging::{Attributes, PageSize, PageTables, Rights};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gpa, Gva};
use std::collections::BTreeMap;

/// Order of a transparent huge page.
const HUGE_ORDER: u32 = 9;

/// An address space under construction.
pub(in crate::linux) struct Space {
    pub(in crate::linux) tables: PageTables,
    pub(in crate::linux) mm: Object,
    user_root: Gpa,
    /// Anonymous pages by virtual page number.
    pub(in crate::linux) anonymous: BTreeMap<u64, Gfn>,
    /// Number of small-page mappings of each frame.
    mappings: BTreeMap<Gfn, u32>,
}

impl Kernel {
    /// Creates an address space that shares the kernel's upper half.
    pub(in crate::linux) fn new_space(&mut self, isolated: bool) -> Result<Space, MockError> {
        let mode = self.tables.mode();
        let top = mode.levels();
        let role = move |i| if i == 0 { Role::PageTable { level: top } } else { Role::UserRoot };
        let root = self.frames.take(u32::from(isolated), role)?;
        let mm = self.new_object("mm_struct", "mm_struct")?;
        let pgd = self.direct(root.gpa());
        self.set(mm, "pgd", pgd)?;
        self.set(mm, "mm_users", 1)?;
        self.set(mm, "mm_count", 1)?;
        // The root's record points to its owner.
        let record = PageRecord { index: mm.gva.0, ..self.table_record(top) };
        self.write_page(root, &record)?;
        let noise = Rng::new(self.rng.next_u64());
        let mut tables = PageTables::new(mode, root.gpa()).with_noise(noise);
        tables.share_upper_half(&mut self.memory, &self.tables)?;
        let mut user_root = root.gpa();
        if isolated {
            // A block of two frames that is not a compound page: the second frame has no reference
            // count.
            self.write_page(Gfn(root.0 + 1), &PageRecord::default())?;
            user_root = Gfn(root.0 + 1).gpa();
        }
        Ok(Space { tables, mm, user_root, anonymous: BTreeMap::new(), mappings: BTreeMap::new() })
    }

    /// The record of a page table.
    pub(in crate::linux) fn table_record(&self, level: u8) -> PageRecord {
        let word = self
            .style
            .page_type_word(PageType::Table)
            .filter(|_| self.style.types_table_level(level));
        PageRecord { word: word.unwrap_or(NO_MAPPINGS), refcount: 1, ..PageRecord::default() }
    }

    /// Maps a page into a space and counts it.
    pub(in crate::linux) fn map_user(
        &mut self,
        space: &mut Space,
        (gva, gfn): (u64, Gfn),
        rights: Rights,
    ) -> Result<(), MockError> {
        let accessed = !self.rng.one_in(4);
        let dirty = rights.write && accessed && !self.rng.one_in(3);
        let attributes = Attributes { rights, accessed, dirty, global: false };
        let mut source = LateTables(&mut self.frames);
        let at = (Gva(gva), gfn.gpa());
        space.tables.map(&mut self.memory, &mut source, at, PageSize::Small, attributes)?;
        *space.mappings.entry(gfn).or_default() += 1;
        Ok(())
    }

    /// Maps the cached pages among `pages` of a file, starting at `gva`. Returns the number of
    /// pages mapped.
    pub(in crate::linux) fn map_file(
        &mut self,
        space: &mut Space,
        gva: u64,
        (file, pages): (&File, std::ops::Range<u64>),
        rights: Rights,
    ) -> Result<u64, MockError> {
        let mut mapped = 0;
        for (&first, &(head, order)) in &file.folios {
            for i in (0..1u64 << order).filter(|i| pages.contains(&(first + i))) {
                let at = gva + (first + i - pages.start) * FRAME_SIZE;
                self.map_user(space, (at, Gfn(head.0 + i)), rights)?;
                mapped += 1;
            }
        }
        Ok(mapped)
    }

    /// Maps new anonymous pages starting at `gva`, with occasional holes.
    pub(in crate::linux) fn map_anonymous(
        &mut self,
        space: &mut Space,
        (gva, pages): (u64, u64),
        rights: Rights,
    ) -> Result<(), MockError> {
        let family = self.new_bytes("anon_vma", 88)?;
        let family = self.direct(family);
        let mut at = gva;
        for _ in 0..pages {
            if self.rng.one_in(16) {
                at += self.rng.below(8) * FRAME_SIZE;
            }
            let index = at / FRAME_SIZE;
            let gfn = self.frames.take(0, |_| Role::Anonymous { index })?;
            self.write_anonymous(gfn, family | 1, index)?;
            self.map_user(space, (at, gfn), rights)?;
            space.anonymous.insert(index, gfn);
            at += FRAME_SIZE;
        }
        Ok(())
    }

    fn write_anonymous(&mut self, gfn: Gfn, mapping: u64, index: u64) -> Result<(), MockError> {
        let flag = |name| self.style.flag(name);
        let mut flags =
            flag("PG_uptodate") | flag("PG_lru") | flag("PG_swapbacked") | flag("PG_dirty");
        let (mut private, mut refcount) = (0, 0);
        if self.rng.one_in(20) {
            // Mapped, and in the swap cache as well.
            flags |= self.style.flag("PG_swapcache");
            (private, refcount) = (1 + self.rng.below(1 << 30), 1);
        }
        flags |= self.recency(gfn);
        let lru = self.linked(gfn);
        let record =
            PageRecord { flags, lru, mapping, index, private, refcount, ..PageRecord::default() };
        self.write_page(gfn, &record)?;
        self.fill_unique(gfn)
    }

    /// Stores the number of mappings by all spaces in the frames' records, except for frames of the
    /// image.
    pub(in crate::linux) fn count_mappings(&mut self, spaces: &[Space]) -> Result<(), MockError> {
        let mut total: BTreeMap<Gfn, u32> = BTreeMap::new();
        for (&gfn, &count) in spaces.iter().flat_map(|s| &s.mappings) {
            *total.entry(gfn).or_default() += count;
        }
        total.retain(|&gfn, _| self.frames.role(gfn).is_some_and(|r| !r.is_reserved()));
        total.into_iter().try_for_each(|(gfn, count)| self.page_mapped(gfn, count))
    }

    /// Maps a page merged by KSM, read-only, at `mappings` in these spaces.
    pub(in crate::linux) fn map_merged(
        &mut self,
        spaces: &mut [Space],
        mappings: &[(usize, u64)],
    ) -> Result<(), MockError> {
        let index = mappings.first().map_or(0, |p| p.1 / FRAME_SIZE);
        let gfn = self.frames.take(0, |_| Role::Merged { index })?;
        let node = self.new_bytes("ksm_stable_node", 64)?;
        let mapping = self.direct(node) | 3;
        self.write_anonymous(gfn, mapping, index)?;
        for &(space, gva) in mappings {
            if let Some(space) = spaces.get_mut(space) {
                self.map_user(space, (gva, gfn), Rights::USER_READ)?;
            }
        }
        Ok(())
    }

    /// Maps a transparent huge page; `false` if there is no free block.
    pub(in crate::linux) fn map_huge(
        &mut self,
        space: &mut Space,
        gva: u64,
    ) -> Result<bool, MockError> {
        let index = gva / FRAME_SIZE;
        let head = match self.frames.take(HUGE_ORDER, |i| Role::Anonymous { index: index + i }) {
            Ok(head) => head,
            Err(MockError::OutOfFrames { .. }) => return Ok(false),
            Err(other) => return Err(other),
        };
        let family = self.new_bytes("anon_vma", 88)?;
        let flag = |name| self.style.flag(name);
        let flags = flag("PG_uptodate") | flag("PG_lru") | flag("PG_swapbacked") | flag("PG_dirty");
        let flags = flags | self.recency(head);
        self.spread_recency(head, HUGE_ORDER);
        let mapping = self.direct(family) | 1;
        let lru = self.linked(head);
        let record =
            PageRecord { flags, lru, mapping, index, refcount: 1, ..PageRecord::default() };
        self.write_compound(head, HUGE_ORDER, &record, Compound::Folio)?;
        self.fill_unique(head)?;
        let attributes = Attributes { dirty: true, ..Attributes::accessed(Rights::USER_WRITE) };
        let mut source = LateTables(&mut self.frames);
        space.tables.map(
            &mut self.memory,
            &mut source,
            (Gva(gva), head.gpa()),
            PageSize::Mega2,
            attributes,
        )?;
        Ok(true)
    }

    /// Adds a page that is in the swap cache and not mapped.
    pub(in crate::linux) fn swap_cache_page(&mut self) -> Result<(), MockError> {
        let gfn = self.frames.take(0, |_| Role::SwapCache)?;
        let names = ["PG_uptodate", "PG_lru", "PG_swapbacked", "PG_swapcache", "PG_dirty"];
        let flags = names.iter().map(|n| self.style.flag(n)).sum::<u64>() | self.recency(gfn);
        let private = 1 + self.rng.below(1 << 30);
        let lru = self.linked(gfn);
        self.write_page(
            gfn,
            &PageRecord { flags, lru, private, refcount: 1, ..PageRecord::default() },
        )?;
        self.fill_unique(gfn)
    }

    /// Finishes a space: writes records of its tables, and the second root under page-table
    /// isolation.
    pub(in crate::linux) fn finish_space(
        &mut self,
        space: &Space,
    ) -> Result<SpaceTruth, MockError> {
        for table in space.tables.table_frames() {
            if table.gfn != space.tables.root().gfn() {
                let private = if table.level == 1 { 1 } else { 0 };
                let record = PageRecord { private, ..self.table_record(table.level) };
                self.write_page(table.gfn, &record)?;
            }
        }
        // The kernel's half may have gained entries meanwhile.
        let (mut tables, root) = (space.tables.clone(), space.tables.root());
        tables.share_upper_half(&mut self.memory, &self.tables)?;
        if space.user_root != root {
            tables.isolate_lower_half(&mut self.memory, space.user_root)?;
        }
        Ok(SpaceTruth {
            root,
            user_root: space.user_root,
            leaves: tables.leaves().collect(),
            tables: tables.table_frames(),
        })
    }
}
