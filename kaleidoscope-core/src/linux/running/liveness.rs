//! Evidence from a candidate's structures of whether the kernel is running, as counts.

use crate::addr::{FRAME_SIZE, Gpa, Gva};
use crate::guest_os::FrameUse;
use crate::linux::frames::reader::{FrameRecords, OwnerKind};
use crate::linux::introspect::{read_users, resolve_types};
use crate::linux::kernel::Kernel;
use crate::linux::tasks::Tasks;
use crate::linux::vmcoreinfo::VmcoreInfo;
use crate::paging::TableBudget;
use std::collections::HashSet;

/// Bytes of kernel code that are never freed; every image has at least this much.
const TEXT_BYTES: u64 = 4 << 20;

/// Maximum number of frame table pages to sample.
const TABLE_SAMPLES: u64 = 4096;

/// Number of inconsistent structures that a running kernel may have: each CPU may have been stopped
/// in the middle of an update.
const TOLERATED: u64 = 4;

/// Beyond that, one in this many structures may be inconsistent.
const TOLERATED_SHARE: u64 = 100;

/// Number of structures examined, and number of these that are inconsistent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Count {
    seen: u64,
    wrong: u64,
}

impl Count {
    fn add(&mut self, is_right: bool) {
        self.seen = self.seen.saturating_add(1);
        self.wrong = self.wrong.saturating_add(u64::from(!is_right));
    }

    /// Whether more structures are wrong than stopping a running kernel at an arbitrary instruction
    /// explains.
    fn is_refuted(self) -> bool {
        let share = self.seen / TOLERATED_SHARE;
        // If few structures were seen, half of them being wrong is no accident.
        self.wrong > TOLERATED.max(share) || self.wrong > self.seen / 2
    }
}

/// Liveness evidence for one candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct LivenessEvidence {
    /// Pages that the kernel needs to run: its page tables, code, frame table. Wrong: its frame
    /// table marks the page as free or as process memory.
    own: Count,
    /// Page tables that lead to another candidate's image and are intact. Wrong: this candidate's
    /// frame table claims that the page was filled with something else.
    rivals: Count,
    /// Free blocks. Wrong: the list neighbors do not point back.
    free_blocks: Count,
    /// Address spaces of files. Wrong: the inode does not point back.
    mappings: Count,
    /// Root tables of tasks. Wrong: not a page table with this kernel's half.
    roots: Count,
    /// Page tables of processes. Wrong: the frame table marks the frame as free or as process
    /// memory. (Some kernels do not type page tables of every level.)
    tables: Count,
    /// Whether the list of tasks is not a closed ring.
    tasks_broken: bool,
    /// The reason why the kernel no longer runs, if it recorded one.
    pub(super) stop_reason: Option<&'static str>,
}

impl LivenessEvidence {
    /// Reads a candidate's structures, and its records of the pages that lead to rival kernels.
    pub(super) fn read(kernel: &Kernel<'_>, rivals: &[Gpa], budget: &mut TableBudget) -> Self {
        let view = &kernel.view;
        let layout = view.memory().layout();
        let mut records = kernel.table.read(view);
        let tasks = Tasks::read(view, &kernel.profile, &kernel.symbols);
        let users = read_users(view, &kernel.spec, kernel.own_root(), &records, &tasks, budget);
        resolve_types(&mut records, &users, kernel.profile.types.and_then(|t| t.table));
        let mut liveness = Self { tasks_broken: tasks.damaged, ..Self::default() };
        liveness.stop_reason = stop_reason(kernel);
        for page in own_pages(kernel) {
            if let Some(usage) = usage_of(kernel, &records, page) {
                liveness.own.add(!is_filled(usage) && !is_free(usage));
            }
        }
        for page in rivals {
            if let Some(usage) = usage_of(kernel, &records, *page) {
                liveness.rivals.add(!is_filled(usage));
            }
        }
        for (gfn, record) in (layout.iter()).map(|(_, gfn)| gfn).zip(&records.records) {
            if record.usage == FrameUse::Free
                && let Some(is_linked) = kernel.table.is_linked(view, gfn)
            {
                liveness.free_blocks.add(is_linked);
            }
        }
        liveness.mappings = mappings(kernel, &records);
        let roots: HashSet<Gpa> = users.spaces.iter().map(|s| s.root).collect();
        for root in tasks.tasks.iter().filter_map(|t| t.root) {
            liveness.roots.add(roots.contains(&root));
        }
        for table in &users.tables {
            if let Some(record) = records.record(table.frame) {
                liveness.tables.add(!is_filled(record.usage) && !is_free(record.usage));
            }
        }
        liveness
    }

    /// Why the candidate cannot be the running kernel.
    pub(super) fn refutation(&self) -> Option<String> {
        let of = |count: Count, what: &str| {
            count.is_refuted().then(|| format!("{} of {} {what}", count.wrong, count.seen))
        };
        if self.own.wrong > 0 {
            let Count { seen, wrong } = self.own;
            return Some(format!(
                "its frame table marks {wrong} of {seen} pages that it runs on as free or \
                 as process memory"
            ));
        }
        of(self.rivals, "page tables of another kernel are in pages that it claims to have filled")
            .or_else(|| of(self.free_blocks, "free blocks are not on its lists"))
            .or_else(|| of(self.mappings, "file mappings belong to no inode"))
            .or_else(|| of(self.roots, "tasks have an invalid root table"))
            .or_else(|| {
                of(
                    self.tables,
                    "page tables of processes are in pages that it uses for something else",
                )
            })
            .or_else(|| self.tasks_broken.then(|| "its list of tasks is broken".to_owned()))
    }
}

/// Whether the user of such pages overwrites them entirely, so that no former contents remain.
fn is_filled(usage: FrameUse) -> bool {
    match usage {
        FrameUse::Anonymous
        | FrameUse::SwapCache
        | FrameUse::File
        | FrameUse::Shared
        | FrameUse::BlockDevice
        | FrameUse::Hugetlb => true,
        FrameUse::Unknown
        | FrameUse::Free
        | FrameUse::FreePerCpu
        | FrameUse::Slab
        | FrameUse::LargeKmalloc
        | FrameUse::PageTable
        | FrameUse::Reserved
        | FrameUse::Offline
        | FrameUse::Allocated => false,
    }
}

fn is_free(usage: FrameUse) -> bool {
    matches!(usage, FrameUse::Free | FrameUse::FreePerCpu | FrameUse::Offline)
}

/// The use of a page in the candidate's frame table; `None` if the page has no record.
fn usage_of(kernel: &Kernel<'_>, records: &FrameRecords, page: Gpa) -> Option<FrameUse> {
    let index = kernel.view.memory().layout().index_of(page.gfn())?;
    kernel.table.record_address(page.gfn()).and_then(|at| kernel.view.translate(at))?;
    records.record(index).map(|r| r.usage)
}

/// Pages that the kernel needs to run.
fn own_pages(kernel: &Kernel<'_>) -> Vec<Gpa> {
    let view = &kernel.view;
    let layout = view.memory().layout();
    let mut pages: Vec<Gpa> = view.space().tables().to_vec();
    let text = TEXT_BYTES.min(kernel.image.bytes) / FRAME_SIZE;
    let of_text = |n: u64| kernel.image.gpa.checked_add(n.saturating_mul(FRAME_SIZE));
    pages.extend((0..text).filter_map(of_text));
    let page_of = |gva: Gva| view.translate(gva).map(|(gpa, _)| gpa);
    let step = u64::from(layout.frames()).div_ceil(TABLE_SAMPLES).max(1);
    let sampled = layout.iter().step_by(usize::try_from(step).unwrap_or(usize::MAX));
    pages.extend(sampled.filter_map(|(_, gfn)| page_of(kernel.table.record_address(gfn)?)));
    let symbols = &kernel.symbols;
    pages.extend(
        [symbols.init_task, symbols.linux_banner].into_iter().flatten().filter_map(page_of),
    );
    pages
}

/// Checks that the address spaces and inodes of files point at each other.
fn mappings(kernel: &Kernel<'_>, records: &FrameRecords) -> Count {
    let (view, fields) = (&kernel.view, &kernel.profile.fields);
    let mut count = Count::default();
    let Some((host, back)) = fields.mapping_host.zip(fields.inode_mapping) else { return count };
    for owner in records.owners.iter().filter(|o| o.kind == OwnerKind::Mapping) {
        let inode = view.read_pointer_field(owner.address, host);
        let points_back = inode.and_then(|inode| view.read_pointer_field(inode, back));
        count.add(points_back == Some(owner.address));
    }
    count
}

/// The reason why the kernel no longer runs, if it recorded a crash or a shutdown.
fn stop_reason(kernel: &Kernel<'_>) -> Option<&'static str> {
    if kernel.note.as_ref().and_then(VmcoreInfo::crash_time).is_some() {
        return Some("its VMCOREINFO has the time of its crash");
    }
    let word = |gva: Option<Gva>| kernel.view.read_u32(gva?);
    // Panic CPU is PANIC_CPU_INVALID (include/linux/panic.h) until a CPU panics.
    if word(kernel.symbols.panic_cpu).is_some_and(|cpu| cpu != u32::MAX && cpu < MAX_CPUS) {
        return Some("one of its CPUs panicked");
    }
    let state = word(kernel.symbols.system_state)?;
    kernel.profile.is_shut_down(state).then_some("it was shut down")
}

/// More CPUs than any kernel supports (`NR_CPUS` is at most 8192).
const MAX_CPUS: u32 = 1 << 16;
