//! Other users of frames: modules, vmalloc, kernel buffers, hugetlb pools, the balloon.

use super::KernelStyle;
use super::boot::PerCpu;
use super::image::Section;
use super::kernel::{Compound, Kernel, Object, PageRecord};
use super::memory::frames::LateTables;
use super::style::{NO_MAPPINGS, PageType};
use super::truth::Role;
use crate::MockError;
use crate::paging::{Attributes, PageSize, Rights};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gva};

/// Base of the module area without randomization (`MODULES_VADDR`).
const MODULES: u64 = 0xffff_ffff_c000_0000;

/// Base of the CPUs' entry areas (`CPU_ENTRY_AREA_BASE`).
const CPU_ENTRY: u64 = 0xffff_fe00_0000_0000;

/// Order of a 2 MiB block.
const HUGE_ORDER: u32 = 9;

impl Kernel {
    /// Loads a module: code, constants, and data with its `struct module`.
    pub(super) fn load_module(&mut self, name: &str, at: &mut u64) -> Result<(), MockError> {
        let text = 2 + self.rng.below(4);
        let start = *at;
        self.map_kernel(Gva(start), text, Role::ModuleText, |_| Rights::KERNEL_TEXT)?;
        let data = start + text * FRAME_SIZE;
        let rights = |i| if i == 0 { Rights::KERNEL_RODATA } else { Rights::KERNEL_DATA };
        self.map_kernel(Gva(data), 3, Role::ModuleData, rights)?;
        *at = data + 4 * FRAME_SIZE;
        let module = self.object(Gva(data + FRAME_SIZE + 0x40), "module")?;
        self.set_text(module, "name", name)?;
        let (all, node) = (self.image.symbol("modules")?, self.address(module, "list")?);
        self.list_append(all.0, node)
    }

    /// Creates the list of modules, and loads the modules.
    pub(super) fn load_modules(&mut self, names: &[&str]) -> Result<(), MockError> {
        let list = self.image.place(Section::Data, "modules", 16, 8)?;
        self.list_init(list.0)?;
        let mut at = MODULES + (1 + self.rng.below(1024)) * FRAME_SIZE;
        names.iter().try_for_each(|name| self.load_module(name, &mut at))
    }

    /// Maps the start of each CPU's entry area, read-only like the kernel's mapping of the GDT.
    pub(super) fn map_cpu_entries(&mut self, per_cpu: &PerCpu) -> Result<(), MockError> {
        let first = if self.style.zero_based_per_cpu() {
            0
        } else {
            self.image.symbol("__per_cpu_start")?.0
        };
        for (cpu, offset) in (0u64..).zip(&per_cpu.offsets) {
            let area = self.physical(first.wrapping_add(*offset))?;
            let at = (Gva(CPU_ENTRY + FRAME_SIZE + cpu * 0x3_b000), area);
            let attributes = Attributes::kernel(Rights::KERNEL_RODATA);
            let mut source = LateTables(&mut self.frames);
            self.tables.map(&mut self.memory, &mut source, at, PageSize::Small, attributes)?;
        }
        Ok(())
    }

    /// Allocates frames for the kernel itself, which only a reference count marks as used.
    pub(super) fn kernel_buffers(&mut self, frames: u64) -> Result<(), MockError> {
        let mut left = frames;
        while left > 0 {
            let order = if left >= 8 && self.rng.one_in(10) {
                1 + u32::try_from(self.rng.below(3)).unwrap_or(0)
            } else {
                0
            };
            let head = self.frames.take(order, |_| Role::KernelAlloc)?;
            // Larger blocks are not compound pages: only their first frame has a reference count.
            let private = if self.rng.one_in(3) { self.direct(head.gpa()) } else { 0 };
            self.write_page(head, &PageRecord { private, refcount: 1, ..PageRecord::default() })?;
            for i in 0..1u64 << order {
                if i > 0 {
                    self.write_page(Gfn(head.0 + i), &PageRecord::default())?;
                }
                self.fill_unique(Gfn(head.0 + i))?;
            }
            left = left.saturating_sub(1 << order);
        }
        Ok(())
    }

    /// Allocates large kmalloc blocks.
    pub(super) fn large_objects(&mut self, blocks: u64) -> Result<(), MockError> {
        for _ in 0..blocks {
            let order = 2 + u32::try_from(self.rng.below(2)).unwrap_or(0);
            let record = PageRecord {
                word: self.style.page_type_word(PageType::LargeKmalloc).unwrap_or(NO_MAPPINGS),
                refcount: self.style.slab_references(),
                ..PageRecord::default()
            };
            let head =
                self.take_compound(order, &record, Compound::Plain, |_| Role::LargeKmalloc)?;
            self.fill_unique(head)?;
        }
        Ok(())
    }

    /// Creates a pool of 2 MiB pages, the first of them in use; fewer if there are not enough free
    /// blocks.
    pub(super) fn hugetlb_pool(
        &mut self,
        pages: u32,
        mapping: Option<Object>,
    ) -> Result<(), MockError> {
        for number in 0..pages {
            let in_use = number == 0;
            let word = self.style.page_type_word(PageType::Hugetlb).unwrap_or(NO_MAPPINGS);
            let mapping = mapping.filter(|_| in_use).map_or(0, |m| m.gva.0);
            let record = PageRecord {
                flags: if in_use { self.style.flag("PG_uptodate") } else { 0 },
                mapping,
                index: u64::from(number),
                word,
                refcount: u32::from(in_use),
                ..PageRecord::default()
            };
            let taken = self.take_compound(HUGE_ORDER, &record, Compound::Hugetlb, |_| {
                Role::Hugetlb { in_use }
            });
            match taken {
                Ok(head) if in_use => self.fill_unique(head)?,
                Ok(_) => {}
                Err(MockError::OutOfFrames { .. }) => break,
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    /// Takes pages out of the guest like a balloon.
    pub(super) fn balloon(&mut self, frames: u64) -> Result<(), MockError> {
        let word = self.style.page_type_word(PageType::Offline).unwrap_or(NO_MAPPINGS);
        // Until 6.15, the balloon gives its pages a mapping, marked as movable.
        let mapping = match self.style {
            KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => {
                let gpa = self.new_bytes("inode_cache", self.types.size_of("inode")?)?;
                self.direct(gpa) | 2
            }
            KernelStyle::V7_2 => 0,
        };
        for _ in 0..frames {
            let gfn = self.frames.take(0, |_| Role::Offline)?;
            let lru = self.linked(gfn);
            let flags = self.style.flag("PG_private");
            self.write_page(
                gfn,
                &PageRecord { flags, lru, mapping, word, refcount: 1, ..PageRecord::default() },
            )?;
        }
        Ok(())
    }

    /// Adds slabs of caches without meaningful contents.
    pub(super) fn filler_slabs(&mut self, frames: u64) -> Result<(), MockError> {
        let caches = [
            ("vm_area_struct", 200),
            ("kmalloc-64", 64),
            ("filp", 256),
            ("skbuff_head_cache", 224),
            ("kmalloc-4k", 4096),
            ("proc_inode_cache", 680),
            ("kernfs_node_cache", 128),
        ];
        let mut left = frames;
        while left > 0 {
            let Some(&(name, size)) = caches.get(self.rng.index(caches.len())) else { break };
            left = left.saturating_sub(self.fill_slab(name, size)?.into());
        }
        Ok(())
    }

    /// Writes the records of the kernel's page tables that came from the page allocator.
    pub(super) fn kernel_table_records(&mut self) -> Result<(), MockError> {
        for table in self.tables.table_frames() {
            if matches!(self.frames.role(table.gfn), Some(Role::PageTable { .. })) {
                // Before 7.2 the kernel's own tables carry no type.
                let record = match self.style {
                    KernelStyle::V7_2 => self.table_record(table.level),
                    KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => {
                        PageRecord { refcount: 1, ..PageRecord::default() }
                    }
                };
                self.write_page(table.gfn, &record)?;
            }
        }
        Ok(())
    }
}
