//! Boot until the page allocator works: the image, the maps of memory, the frame table, per-CPU
//! areas.

use super::builder::Knobs;
use super::image::{IMAGE_MAP, IMAGE_START, Image, LARGE, Section};
use super::kernel::{Bases, Kernel, Object, PAGE_BYTES, PageFields, SECTION_FRAMES};
use super::memory::frames::{BootTables, Frames, ImageTables};
use super::memory::slab::Slabs;
use super::memory::virtio_mem;
use super::truth::Role;
use super::{KernelStyle, schema};
use crate::paging::{Attributes, FrameSource, Mode, PageSize, PageTables, Rights};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gpa, Gva};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a CPU's unit in the per-CPU chunk, and the part of it that is kept; the rest is freed.
const UNIT_BYTES: u64 = 0x2_0000;
const UNIT_USED: u64 = 0x1_4000;

/// Bytes of per-CPU variables that have symbols.
const STATIC_PER_CPU: u64 = 0x2000;

/// Entries of the array of per-CPU offsets (`NR_CPUS`).
pub(super) const MAX_CPUS: u32 = 64;

/// Bytes of a kernel stack.
pub(super) const STACK_BYTES: u64 = 4 * FRAME_SIZE;

/// The per-CPU areas.
#[derive(Clone, Debug)]
pub(super) struct PerCpu {
    /// Base that per-CPU addresses are relative to.
    start: u64,
    /// Offset from a per-CPU address to each CPU's copy.
    pub(super) offsets: Vec<u64>,
    /// Frames of all units, including the parts that were freed.
    pub(super) units: std::ops::Range<Gfn>,
    next: u64,
}

impl PerCpu {
    /// Allocates space in every CPU's dynamic area; returns the per-CPU address.
    pub(super) fn allocate(&mut self, bytes: u64) -> Result<u64, MockError> {
        let at = self.next.next_multiple_of(16);
        self.next = at + bytes;
        if self.next - self.start > UNIT_USED {
            return Err(MockError::TooLarge { what: "the per-CPU area", bytes: UNIT_USED });
        }
        Ok(at)
    }
}

/// The kernel when its page allocator takes over, with its per-CPU areas and its memory node.
pub(super) fn boot(knobs: &Knobs) -> Result<(Kernel, PerCpu, Object), MockError> {
    let mut rng = Rng::new(knobs.seed);
    let layout = layout(knobs)?;
    let mut types = schema::types(knobs.style, &mut rng, knobs.move_page_words)?;
    if knobs.kept.is_some() {
        virtio_mem::resource_type(&mut types, &mut rng)?;
    }
    let memory = VecMemory::zeroed(layout.clone());
    let mut frames = Frames::new(layout, Rng::new(rng.next_u64()));
    for gfn in [0].into_iter().chain(0x9f..0x100) {
        frames.claim(Gfn(gfn), Role::Reserved)?;
    }
    let image = place_image(knobs, &mut rng, &mut frames)?;
    let bases = bases(knobs, &mut rng);
    let mode = if knobs.five_level { Mode::FiveLevel } else { Mode::FourLevel };
    let page = PageFields::new(&types, knobs.style)?;
    let mut kernel = Kernel {
        style: knobs.style,
        rng,
        memory,
        types,
        frames,
        image,
        bases,
        tables: PageTables::new(mode, Gpa(0)),
        memmap: BTreeMap::new(),
        page,
        slabs: Slabs::default(),
        active: BTreeSet::new(),
        referenced: BTreeSet::new(),
        vmalloc_next: bases.vmalloc,
    };
    kernel.map_image(knobs)?;
    kernel.map_memory()?;
    kernel.map_frame_table()?;
    kernel.base_variables()?;
    kernel.memory_sections(knobs)?;
    // The rest of the initial ramdisk, and the node. Both come before per-CPU areas free frames, so
    // that no reserved frame lies inside a unit.
    let initrd = kernel.frames.layout().frames() / 512;
    kernel.frames.take_at_boot(initrd.into(), 1, Role::Reserved)?;
    let node = kernel.place_node(knobs)?;
    let per_cpu = kernel.per_cpu_areas(knobs)?;
    let list = kernel.image.place(Section::Data, "slab_caches", 16, 8)?;
    kernel.list_init(list.0)?;
    kernel.slabs.list = list;
    Ok((kernel, per_cpu, node))
}

fn layout(knobs: &Knobs) -> Result<MemoryLayout, MockError> {
    let regions = match knobs.hole_at {
        Some(hole) if hole < knobs.ram_bytes => {
            vec![(Gpa(0), hole), (Gpa(1 << 32), knobs.ram_bytes - hole)]
        }
        Some(_) | None => vec![(Gpa(0), knobs.ram_bytes)],
    };
    Ok(MemoryLayout::new(&regions)?)
}

fn bases(knobs: &Knobs, rng: &mut Rng) -> Bases {
    let mut shift = |limit: u64| if knobs.kaslr { rng.below(limit) << 30 } else { 0 };
    if knobs.five_level {
        Bases {
            page_offset: 0xff11_0000_0000_0000 + shift(1 << 16),
            vmalloc: 0xffa0_0000_0000_0000 + shift(1 << 16),
            vmemmap: 0xffd4_0000_0000_0000 + shift(1 << 14),
        }
    } else {
        Bases {
            page_offset: 0xffff_8880_0000_0000 + shift(1 << 14),
            vmalloc: 0xffff_c900_0000_0000 + shift(1 << 12),
            vmemmap: 0xffff_ea00_0000_0000 + shift(1 << 9),
        }
    }
}

/// Chooses the image's location, and claims the frames that it keeps.
fn place_image(knobs: &Knobs, rng: &mut Rng, frames: &mut Frames) -> Result<Image, MockError> {
    let small = knobs.ram_bytes < 32 << 20;
    let text = (4 << 20) + (1 + rng.below(if small { 64 } else { 512 })) * FRAME_SIZE;
    let sizes = [
        (Section::Text, text),
        (Section::Rodata, (0x90 + rng.below(0x40)) * FRAME_SIZE),
        (Section::Data, (0x60 + rng.below(0x20)) * FRAME_SIZE),
        (Section::Init, (0x30 + rng.below(0x10)) * FRAME_SIZE),
        (Section::Bss, (0x40 + rng.below(0x10)) * FRAME_SIZE),
    ];
    let bytes = Image::new(Gva(0), Gpa(0), &sizes).bytes().next_multiple_of(LARGE);
    let first_region =
        frames.layout().regions().first().map_or(0, |r| u64::from(r.frames) * FRAME_SIZE);
    let lowest = if first_region < (16 << 20) + 2 * bytes { LARGE } else { 16 << 20 };
    let room = first_region
        .checked_sub(lowest + bytes)
        .ok_or(MockError::Knobs("no room for the kernel image"))?;
    let slots = room / LARGE + 1;
    let physical = lowest + if knobs.kaslr { rng.below(slots) * LARGE } else { 0 };
    let random = if knobs.kaslr { rng.below(400) * LARGE } else { 0 };
    let image = Image::new(Gva(IMAGE_START + random), Gpa(physical), &sizes);
    for (section, role) in [
        (Section::Text, Role::KernelText),
        (Section::Rodata, Role::KernelRodata),
        (Section::Data, Role::KernelData),
        (Section::Bss, Role::KernelData),
    ] {
        image.frames(section).try_for_each(|gfn| frames.claim(gfn, role))?;
    }
    frames.kept_at_boot = physical / FRAME_SIZE..(physical + bytes) / FRAME_SIZE;
    Ok(image)
}

impl Kernel {
    /// Maps the image as it is after boot: code read-only, data not executable, freed parts
    /// unmapped under page-table isolation.
    fn map_image(&mut self, knobs: &Knobs) -> Result<(), MockError> {
        let mut table = |name: &str, bytes| self.image.place(Section::Data, name, bytes, bytes);
        let root = table("init_top_pgt", 2 * FRAME_SIZE)?;
        let mut below = Vec::new();
        if knobs.five_level {
            below.push(table("level4_kernel_pgt", FRAME_SIZE)?);
        }
        for name in
            ["level3_kernel_pgt", "level2_kernel_pgt", "level2_fixmap_pgt", "level1_fixmap_pgt"]
        {
            below.push(table(name, FRAME_SIZE)?);
        }
        let gfn = |gva: Gva| Gfn((gva.0 - self.image.offset()) / FRAME_SIZE);
        let mut image_tables = ImageTables(below.iter().map(|&t| gfn(t)).collect());
        // The tables for the fixed mappings stay empty.
        image_tables.0.truncate(if knobs.five_level { 3 } else { 2 });
        self.tables = PageTables::new(self.tables.mode(), gfn(root).gpa());
        let text_end = self.image.section(Section::Text).end;
        let data_start = self.image.section(Section::Data).start;
        let rights = |distance: u64| match distance {
            d if d < text_end => Rights::KERNEL_TEXT,
            d if d < data_start => Rights::KERNEL_RODATA,
            _ => Rights::KERNEL_DATA,
        };
        let start = self.image.gva.0;
        for large in (0..self.image.bytes().next_multiple_of(LARGE))
            .step_by(usize::try_from(LARGE).unwrap_or(1))
        {
            let smalls: Vec<u64> = (large..large + LARGE).step_by(0x1000).collect();
            let is_gone = |d: u64| knobs.isolated && self.image.is_freed(d);
            let pure = smalls.iter().all(|&d| rights(d) == rights(large) && !is_gone(d));
            let (pages, size) =
                if pure { (vec![large], PageSize::Mega2) } else { (smalls, PageSize::Small) };
            let pages: Vec<u64> = pages.into_iter().filter(|&d| pure || !is_gone(d)).collect();
            for distance in pages {
                let at = (Gva(start + distance), Gpa(self.image.gpa.0 + distance));
                let attributes = Attributes::kernel(rights(distance));
                let frames = &mut self.frames;
                let mut source = Either(&mut image_tables, BootTables(frames));
                self.tables.map(&mut self.memory, &mut source, at, size, attributes)?;
            }
        }
        Ok(())
    }

    /// Creates the direct map: 1 GiB pages where they fit, else 2 MiB pages, and small pages at the
    /// edges.
    fn map_memory(&mut self) -> Result<(), MockError> {
        let readonly_end = self.image.gpa.0 + self.image.section(Section::Rodata).end;
        let readonly = self.image.gpa.0..readonly_end / LARGE * LARGE;
        for region in self.frames.layout().regions().to_vec() {
            let (mut at, end) = (
                region.start.gpa().0,
                region.start.gpa().0 + u64::from(region.frames) * FRAME_SIZE,
            );
            while at < end {
                let fits = |size: PageSize| {
                    at % size.bytes() == 0 && at + size.bytes() <= end && at >= LARGE
                };
                let size = [PageSize::Giga, PageSize::Mega2].into_iter().find(|&s| fits(s));
                // A 1 GiB page would make the image's read-only alias writable.
                let size = match size {
                    Some(PageSize::Giga) if at < readonly.end => PageSize::Mega2,
                    other => other.unwrap_or(PageSize::Small),
                };
                let rights = if readonly.contains(&at) {
                    Rights::KERNEL_RODATA
                } else {
                    Rights::KERNEL_DATA
                };
                let gva = Gva(self.bases.page_offset + at);
                let mut source = BootTables(&mut self.frames);
                self.tables.map(
                    &mut self.memory,
                    &mut source,
                    (gva, Gpa(at)),
                    size,
                    Attributes::kernel(rights),
                )?;
                at += size.bytes();
            }
        }
        Ok(())
    }

    /// Allocates and maps the frame table: 2 MiB for every memory section that contains RAM.
    fn map_frame_table(&mut self) -> Result<(), MockError> {
        let sections: BTreeSet<u64> =
            self.frames.layout().iter().map(|(_, gfn)| gfn.0 / SECTION_FRAMES).collect();
        let chunk = SECTION_FRAMES * PAGE_BYTES;
        for section in sections {
            let frames = chunk / FRAME_SIZE;
            let first = self.frames.take_at_boot(frames, frames, Role::FrameTable)?;
            self.memmap.insert(section, first.gpa());
            let at = (Gva(self.bases.vmemmap + section * chunk), first.gpa());
            let attributes = Attributes::kernel(Rights::KERNEL_DATA);
            let mut source = BootTables(&mut self.frames);
            self.tables.map(&mut self.memory, &mut source, at, PageSize::Mega2, attributes)?;
        }
        Ok(())
    }

    /// Allocates a zeroed object at boot.
    pub(super) fn boot_object(&mut self, ty: &'static str) -> Result<Object, MockError> {
        let bytes = self.types.size_of(ty)?;
        let gfn = self.frames.take_at_boot(bytes.div_ceil(FRAME_SIZE), 1, Role::Reserved)?;
        Ok(Object { gva: Gva(self.direct(gfn.gpa())), gpa: gfn.gpa(), ty })
    }

    /// Adds a 64-bit variable to the image.
    pub(super) fn variable(&mut self, name: &str, value: u64) -> Result<Gva, MockError> {
        let gva = self.image.place(Section::Data, name, 8, 8)?;
        self.store(gva.0, value)?;
        Ok(gva)
    }

    fn base_variables(&mut self) -> Result<(), MockError> {
        let Bases { page_offset, vmalloc, vmemmap } = self.bases;
        self.variable("page_offset_base", page_offset)?;
        self.variable("vmalloc_base", vmalloc)?;
        self.variable("vmemmap_base", vmemmap)?;
        self.variable("phys_base", self.phys_base())?;
        self.image.place(Section::Bss, "empty_zero_page", FRAME_SIZE, FRAME_SIZE)?;
        self.image.place(Section::Data, "init_stack", STACK_BYTES, STACK_BYTES)?;
        Ok(())
    }

    /// `phys_base`: the physical address of the start of the image mapping; may be negative.
    pub(super) fn phys_base(&self) -> u64 {
        self.image.gpa.0.wrapping_sub(self.image.gva.0 - IMAGE_MAP)
    }

    /// The two-level table of memory sections (`CONFIG_SPARSEMEM_EXTREME`).
    fn memory_sections(&mut self, knobs: &Knobs) -> Result<(), MockError> {
        let per_root = FRAME_SIZE / self.types.size_of("mem_section")?;
        let roots = section_roots(knobs);
        let bytes = roots * 8;
        let table = self.frames.take_at_boot(bytes.div_ceil(FRAME_SIZE), 1, Role::Reserved)?;
        let table = self.direct(table.gpa());
        let place = self.image.place(Section::Bss, "mem_section", 8, 8)?;
        self.store(place.0, table)?;
        let sections: Vec<u64> = self.memmap.keys().copied().collect();
        for section in sections {
            let root = table + section / per_root * 8;
            if self.load(root)? == 0 {
                let frame = self.frames.take_at_boot(1, 1, Role::Reserved)?;
                let address = self.direct(frame.gpa());
                self.store(root, address)?;
            }
            let size = FRAME_SIZE / per_root;
            let at =
                self.object(Gva(self.load(root)? + section % per_root * size), "mem_section")?;
            // The frame table's base (the section's part minus its first frame number), and flags:
            // present, has a frame table, online, early.
            self.set(at, "section_mem_map", self.bases.vmemmap | 0xf)?;
        }
        Ok(())
    }

    fn per_cpu_areas(&mut self, knobs: &Knobs) -> Result<PerCpu, MockError> {
        let units = UNIT_BYTES * u64::from(knobs.cpus) / FRAME_SIZE;
        let load = self.image.place(Section::Init, "__per_cpu_load", STATIC_PER_CPU, FRAME_SIZE)?.0;
        let start = if self.style.zero_based_per_cpu() { 0 } else { load };
        let kind = if start == 0 { 'A' } else { 'D' };
        for (name, distance) in [
            ("__per_cpu_start", 0),
            ("fixed_percpu_data", 0),
            ("this_cpu_off", 0x40),
            ("cpu_number", 0x48),
            ("current_task", 0x50),
            ("__per_cpu_end", STATIC_PER_CPU),
        ] {
            self.image.name(name, kind, start + distance);
        }
        // All units are allocated together; their unused parts are freed.
        let first = self.find_units(units)?;
        let array =
            self.image.place(Section::Data, "__per_cpu_offset", u64::from(MAX_CPUS) * 8, 8)?;
        let mut offsets = Vec::new();
        for cpu in 0..u64::from(MAX_CPUS) {
            let mut offset = load;
            if cpu < knobs.cpus.into() {
                let unit = Gpa(first.gpa().0 + cpu * UNIT_BYTES);
                for frame in 0..UNIT_USED / FRAME_SIZE {
                    self.frames.claim(Gfn(unit.gfn().0 + frame), Role::PerCpu)?;
                }
                let area = self.direct(unit);
                offset = area.wrapping_sub(start);
                offsets.push(offset);
                self.store(area + 0x40, offset)?;
                self.store(area + 0x48, cpu)?;
            }
            self.store(array.0 + 8 * cpu, offset)?;
        }
        self.variable("pcpu_base_addr", self.direct(first.gpa()))?;
        for (name, value) in [
            ("pcpu_unit_size", UNIT_BYTES),
            ("pcpu_nr_units", knobs.cpus.into()),
            ("nr_cpu_ids", knobs.cpus.into()),
        ] {
            let gva = self.image.place(Section::Data, name, 4, 4)?;
            let value = u32::try_from(value).unwrap_or(0);
            self.store_bytes(gva.0, &value.to_le_bytes())?;
        }
        let range = first..Gfn(first.0 + units);
        Ok(PerCpu { start, offsets, units: range, next: start + STATIC_PER_CPU })
    }

    /// Contiguous unclaimed frames, aligned to a unit.
    fn find_units(&self, frames: u64) -> Result<Gfn, MockError> {
        let unit = UNIT_BYTES / FRAME_SIZE;
        let regions = self.frames.layout().regions().iter().rev();
        let starts = regions.flat_map(|r| {
            let (low, high) = (r.start.0 / unit, (r.start.0 + u64::from(r.frames)) / unit);
            (low..high).rev().map(|n| Gfn(n * unit))
        });
        let kept = &self.frames.kept_at_boot;
        let is_open = |g: u64| self.frames.is_left(Gfn(g)) && !kept.contains(&g);
        let mut free = starts.filter(|s| (s.0..s.0 + frames).all(is_open));
        free.next()
            .ok_or(MockError::OutOfFrames { order: frames.next_power_of_two().trailing_zeros() })
    }
}

/// Entries of the first level of the memory sections' table.
pub(super) fn section_roots(knobs: &Knobs) -> u64 {
    let physical_bits = if knobs.five_level { 52 } else { 46 };
    (1 << (physical_bits - 27)) / 256
}

/// Takes frames from the first source until it is empty.
struct Either<'a>(&'a mut ImageTables, BootTables<'a>);

impl FrameSource for Either<'_> {
    fn table_frame(&mut self, level: u8) -> Option<Gfn> {
        self.0.table_frame(level).or_else(|| self.1.table_frame(level))
    }
}

/// The kernel's version banner.
pub(super) fn banner(style: KernelStyle) -> String {
    format!(
        "Linux version {} (mock@example.org) (gcc (Mock 1.0) 14.2.0, GNU ld (Mock) 2.44) \
         #1 SMP PREEMPT_DYNAMIC Mock 1 (1970-01-01)\n",
        style.release()
    )
}
