//! Determines the part of the kernel's address space, besides the direct map, that maps each frame.
//!
//! The parts, in ascending order of address (`Documentation/arch/x86/x86_64/mm.rst`): the direct
//! map, the vmalloc area, the frame table, the CPU entry area (per-CPU), the image, modules. Their
//! locations follow from the end of the direct map, the address of the frame table, and the image
//! as found; only the CPU entry area and the end of the modules are constants.

use super::frames::reader::FrameRecords;
use super::frames::table::FrameTable;
use super::locate::{IMAGE_LAST, ImageSpan};
use super::symbols::Symbols;
use super::tasks::Tasks;
use super::view::KernelView;
use crate::addr::{FRAME_SIZE, Gfn, Gva};
use crate::guest_os::{FrameUse, KernelArea};
use crate::memory::{GuestMemory, LazyTable, MemoryLayout};
use crate::paging::Run;

/// The CPU entry area (`CPU_ENTRY_AREA_BASE`), one top-level entry of 512 GiB.
const CPU_ENTRY_FIRST: Gva = Gva(0xffff_fe00_0000_0000);
const CPU_ENTRY_LAST: Gva = Gva(0xffff_fe7f_ffff_ffff);

/// End of the module area, exclusive (`MODULES_END`).
const MODULES_END: u64 = 0xffff_ffff_ff00_0000;

/// Pages of a kernel stack (`THREAD_SIZE`).
const STACK_PAGES: u64 = 4;

/// Maximum number of units in the first per-CPU chunk (`NR_CPUS`).
const MAX_CPU_UNITS: u64 = 8192;

/// Maximum number of kernel mappings besides the direct map, per frame on average. Further mappings
/// are ignored.
const MAPPINGS_PER_FRAME: u64 = 16;

/// The area that maps a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct AreaOfFrame {
    pub(crate) area: KernelArea,
    /// Page number relative to the area's first address.
    pub(crate) page: u64,
}

impl AreaOfFrame {
    /// A frame that the kernel maps only in the direct map.
    pub(crate) const NONE: Self = Self { area: KernelArea::None, page: 0 };
}

/// Kernel area of every frame, in frame-index order.
#[derive(Debug)]
pub(crate) struct KernelAreas {
    pub(crate) frames: LazyTable<AreaOfFrame>,
    /// Whether mappings were ignored because there were too many.
    pub(crate) cut: bool,
}

/// First and last address of each part.
struct Parts {
    vmalloc: (Gva, Gva),
    frame_table: (Gva, Gva),
    image: (Gva, Gva),
}

impl Parts {
    fn is_image(&self, run: &Run) -> bool {
        self.image.0 <= run.gva && run.gva <= self.image.1
    }

    /// The area that contains a run, and the first address of the area.
    fn of(&self, run: &Run) -> Option<(KernelArea, Gva)> {
        let within = |(first, last): (Gva, Gva)| first <= run.gva && run.gva <= last;
        let Run { gva, rights, .. } = *run;
        if self.is_image(run) {
            let area = match (rights.execute, rights.write) {
                (true, _) => KernelArea::Text,
                (false, false) => KernelArea::Rodata,
                (false, true) => KernelArea::Data,
            };
            Some((area, self.image.0))
        } else if within(self.frame_table) {
            Some((KernelArea::FrameTable, self.frame_table.0))
        } else if gva > IMAGE_LAST && gva.0 < MODULES_END {
            Some((KernelArea::Module, Gva(IMAGE_LAST.0.saturating_add(1))))
        } else if within((CPU_ENTRY_FIRST, CPU_ENTRY_LAST)) {
            Some((KernelArea::PerCpu, CPU_ENTRY_FIRST))
        } else if within(self.vmalloc) {
            let area = if rights.execute { KernelArea::Module } else { KernelArea::Vmalloc };
            Some((area, self.vmalloc.0))
        } else {
            None
        }
    }
}

impl KernelAreas {
    pub(crate) fn read<M: GuestMemory + ?Sized>(
        view: &KernelView<'_, M>,
        table: &FrameTable,
        image: &ImageSpan,
        symbols: &Symbols,
        records: &FrameRecords,
        tasks: &Tasks,
    ) -> Self {
        let layout = view.memory().layout();
        let frames = LazyTable::new(layout.frames() as usize);
        let mut areas = Self { frames, cut: false };
        let direct_last =
            view.direct_map().map_or(Gva(0), |d| Gva(d.base.0.saturating_add(d.end.0)));
        let table_end = table.record_address(layout.end_gfn()).unwrap_or(table.base);
        let parts = Parts {
            vmalloc: (direct_last, Gva(table.base.0.saturating_sub(1))),
            frame_table: (table.base, Gva(table_end.0.saturating_sub(1))),
            image: (image.gva, Gva(image.gva.0.saturating_add(image.bytes.saturating_sub(1)))),
        };
        let mut left = u64::from(layout.frames()).saturating_mul(MAPPINGS_PER_FRAME);
        // Freed parts of the image keep their image mapping in addition to the mapping of their new
        // use, which takes precedence: so process the image first.
        let runs = view.space().runs();
        let image = view.space().runs_in(parts.image.0, parts.image.1);
        for run in image.iter().chain(runs.iter().filter(|run| !parts.is_image(run))) {
            let Some((area, base)) = parts.of(run) else { continue };
            let (first, pages) = (run.gpa.gfn(), run.bytes / FRAME_SIZE);
            let page = run.gva.0.saturating_sub(base.0) / FRAME_SIZE;
            left = left.saturating_sub(areas.mark(layout, first, pages, area, page));
            areas.cut = left == 0;
            if areas.cut {
                break;
            }
        }
        areas.mark_per_cpu(view, symbols, records);
        areas.mark_stacks(view, tasks, parts.vmalloc.0);
        areas
    }

    /// Records that `pages` pages of an area, starting with `page`, map the frames from `first` up.
    /// Returns how many of these frames are RAM.
    fn mark(
        &mut self,
        layout: &MemoryLayout,
        first: Gfn,
        pages: u64,
        area: KernelArea,
        page: u64,
    ) -> u64 {
        let mut marked = 0_u64;
        for part in layout.parts(first, pages) {
            let page = page.saturating_add(part.start.0.saturating_sub(first.0));
            for (at, i) in (part.first_index.as_usize()..).zip(0..part.frames) {
                let Some(frame) = self.frames.get_mut(at) else { break };
                *frame = AreaOfFrame { area, page: page.saturating_add(u64::from(i)) };
            }
            marked = marked.saturating_add(u64::from(part.frames));
        }
        marked
    }

    /// Marks the first per-CPU chunk, which lies in the direct map.
    fn mark_per_cpu<M: GuestMemory + ?Sized>(
        &mut self,
        view: &KernelView<'_, M>,
        symbols: &Symbols,
        records: &FrameRecords,
    ) {
        let chunk = || {
            let base = view.read_pointer(symbols.pcpu_base_addr?)?;
            let unit = u64::from(view.read_u32(symbols.pcpu_unit_size?)?);
            let units = u64::from(view.read_u32(symbols.pcpu_nr_units?)?).min(MAX_CPU_UNITS);
            let (gpa, left) = view.translate(base)?;
            Some((gpa.gfn(), unit.checked_mul(units)?.min(left) / FRAME_SIZE))
        };
        let Some((first, pages)) = chunk() else { return };
        let layout = view.memory().layout();
        let last = first.0.saturating_add(pages.min(layout.frames().into()));
        for (page, gfn) in (0..).zip(first.0..last) {
            let Some(index) = layout.index_of(Gfn(gfn)) else { continue };
            // The kernel gave the unused end of each CPU's unit to the page allocator.
            let is_unit = records.record(index).is_some_and(|r| r.usage == FrameUse::Reserved);
            if is_unit && let Some(frame) = self.frames.get_mut(index.as_usize()) {
                *frame = AreaOfFrame { area: KernelArea::PerCpu, page };
            }
        }
    }

    fn mark_stacks<M>(&mut self, view: &KernelView<'_, M>, tasks: &Tasks, base: Gva)
    where
        M: GuestMemory + ?Sized,
    {
        let layout = view.memory().layout();
        for stack in tasks.tasks.iter().filter_map(|t| t.stack) {
            for i in 0..STACK_PAGES {
                let gva = stack.checked_add(i.saturating_mul(FRAME_SIZE));
                if let Some((gpa, _)) = gva.and_then(|gva| view.translate(gva)) {
                    let page = (stack.0.saturating_sub(base.0) / FRAME_SIZE).saturating_add(i);
                    self.mark(layout, gpa.gfn(), 1, KernelArea::Stack, page);
                }
            }
        }
    }
}
