//! Combines the results of all phases into facts about every frame.

use super::frames::reader::{Damage, DamageCount, FrameRecords, NO_OWNER, Record};
use super::introspect::RECENT_TASKS;
use super::kernel_areas::{AreaOfFrame, KernelAreas};
use super::regions::{OwnerName, RegionKey, Regions};
use super::tasks::{Task, Tasks};
use super::user_spaces::{NO_SPACE, SpaceId, UserMapping, UserMappings, UserTable};
use super::view::KernelView;
use crate::addr::{FRAME_SIZE, FrameIndex, Gpa, Gva};
use crate::color::{KernelIdentity, Order, Temperature};
use crate::guest_os::{FrameFacts, FrameUse, GuestFacts, KernelArea, Note, NoteKind, Process};
use crate::memory::GuestMemory;
use std::collections::HashMap;

/// Bytes of a `task_struct` that are marked as recently used; the tail of a larger one is rarely
/// touched.
const TASK_BYTES: u64 = 8192;

/// Results of all phases.
pub(super) struct PhaseResults<'g, 'm, M: ?Sized> {
    pub(super) view: &'g KernelView<'m, M>,
    pub(super) records: FrameRecords,
    pub(super) tasks: Tasks,
    pub(super) users: UserMappings,
    pub(super) areas: KernelAreas,
    /// The common-symbol hints of each page of the kernel image; may be empty.
    pub(super) page_hints: Vec<Temperature>,
    /// Names of the records' owners; `None` for an owner that is not what its pages claim.
    pub(super) owners: Vec<Option<OwnerName>>,
    /// The root table of the kernel, and the tables of its twin with page-table isolation.
    pub(super) kernel_tables: &'g [Gpa],
    pub(super) kernel: KernelIdentity,
    pub(super) notes: Vec<Note>,
}

/// Role of a frame in page tables.
#[derive(Clone, Copy)]
struct TableUse {
    is_table: bool,
    space: SpaceId,
    page: u64,
}

impl TableUse {
    const NONE: Self = Self { is_table: false, space: NO_SPACE, page: 0 };
}

pub(super) fn assemble<M: GuestMemory + ?Sized>(results: PhaseResults<'_, '_, M>) -> GuestFacts {
    let PhaseResults { view, records, tasks, users, areas, page_hints, .. } = results;
    let PhaseResults { owners, kernel_tables, kernel, mut notes, .. } = results;
    let layout = view.memory().layout();
    describe_damage(view, &records.damage, &tasks, &users, &areas, &mut notes);
    let recent = recent_frames(view, &tasks);
    let tables = table_uses(view, &users, kernel_tables);
    let mut processes = list_processes(&users, &tasks);
    let names: Vec<String> = processes.iter().map(space_name).collect();
    let mut regions = Regions::new(owners, &names);
    let mut frames = Vec::with_capacity(records.records.len());
    let mut tables = tables.into_iter().peekable();
    let mut free = records.free.cursor();
    for ((index, gfn), record) in layout.iter().zip(&records.records) {
        let user = users.frames.made(index.as_usize()).unwrap_or(&UserMapping::NONE);
        let area = areas.frames.made(index.as_usize()).unwrap_or(&AreaOfFrame::NONE);
        let table = tables.next_if(|(frame, _)| *frame == index).map_or(TableUse::NONE, |(_, t)| t);
        let mut facts = FrameFacts {
            usage: usage_of(record, table, &regions),
            area: area.area,
            is_table: table.is_table,
            user_mapped: user.space != NO_SPACE,
            user_executable: user.execute,
            inaccessible: user.space != NO_SPACE && !user.accessible,
            temperature: temperature_of(record, user),
            region: None,
            position: 0,
        };
        if is_image(&facts) {
            let hints = usize::try_from(area.page).ok().and_then(|page| page_hints.get(page));
            facts.temperature.insert(adjusted(hints.copied().unwrap_or_default(), facts.area));
        }
        let space = if facts.usage == FrameUse::PageTable { table.space } else { user.space };
        let owner = record.owner;
        let key = RegionKey { usage: facts.usage, area: area.area, owner, space };
        facts.region = regions.region(&key);
        let order = facts.region.map_or(Order::FrameNumber, |id| regions.order(id));
        facts.position = match order {
            Order::FrameNumber => gfn.0,
            Order::FileOffset => record.position,
            Order::KernelAddress => area.page,
            Order::UserAddress if facts.usage == FrameUse::PageTable => table.page,
            Order::UserAddress => user.page,
            Order::Allocation => free.position(index),
        };
        if let Some(process) = processes.get_mut(space as usize) {
            let count = |frames: &mut u64, of: FrameUse| {
                *frames = frames.saturating_add(u64::from(facts.usage == of));
            };
            count(&mut process.anonymous_frames, FrameUse::Anonymous);
            count(&mut process.table_frames, FrameUse::PageTable);
        }
        frames.push(facts);
    }
    for index in recent {
        if let Some(facts) = frames.get_mut(index.as_usize()) {
            facts.temperature.insert(Temperature::RECENT_TASK);
        }
    }
    let regions = regions.finish();
    processes.sort_by_key(|p| p.pid.unwrap_or(u32::MAX));
    GuestFacts { layout: layout.clone(), kernel, frames, regions, processes, notes }
}

/// The record's use, corrected with the record's owner and with page-table walks.
fn usage_of(record: &Record, table: TableUse, regions: &Regions<'_>) -> FrameUse {
    let is_cache = matches!(record.usage, FrameUse::File | FrameUse::Shared);
    if is_cache && record.owner != NO_OWNER {
        return match regions.owner(record.owner) {
            Some(owner) if owner.is_block_device => FrameUse::BlockDevice,
            Some(_) => record.usage,
            // The mapping is invalid: the page is page cache only if it is on an LRU list.
            None if record.on_lru || record.usage == FrameUse::Shared => record.usage,
            None => FrameUse::Allocated,
        };
    }
    match record.usage == FrameUse::Allocated && table.is_table {
        true => FrameUse::PageTable,
        false => record.usage,
    }
}

/// Whether a frame holds a part of the kernel image. The kernel frees some of the image after boot
/// and reuses the frames.
fn is_image(facts: &FrameFacts) -> bool {
    let in_image = matches!(facts.area, KernelArea::Text | KernelArea::Rodata | KernelArea::Data);
    facts.usage == FrameUse::Reserved && in_image
}

/// Adjusts the common-symbol hints of an image page to its area. Only half of the read-only data
/// pages with the most common symbols are touched: they hold many small constants, and the kernel
/// reads few of them.
fn adjusted(hints: Temperature, area: KernelArea) -> Temperature {
    match (area == KernelArea::Rodata, hints.contains(Temperature::COMMON)) {
        (false, _) => hints,
        (true, true) => Temperature::FREQUENT,
        (true, false) => Temperature::NONE,
    }
}

fn temperature_of(record: &Record, user: &UserMapping) -> Temperature {
    let mut temperature = record.temperature;
    let hints = [
        (user.accessed, Temperature::ACCESSED),
        (user.dirty, Temperature::DIRTY),
        (user.shared, Temperature::SHARED),
        (user.recent, Temperature::RECENT_TASK),
    ];
    for (is_set, hint) in hints {
        if is_set {
            temperature.insert(hint);
        }
    }
    temperature
}

/// Frames that page-table walks visited as tables, in ascending order: those of every process and
/// of the kernel. A frame that several walks visited belongs to the first process.
fn table_uses<M>(
    view: &KernelView<'_, M>,
    users: &UserMappings,
    kernel_tables: &[Gpa],
) -> Vec<(FrameIndex, TableUse)>
where
    M: GuestMemory + ?Sized,
{
    let layout = view.memory().layout();
    let of_user = |user: &UserTable| {
        (user.frame, TableUse { is_table: true, space: user.space, page: user.page })
    };
    let of_kernel = |gpa: &Gpa| {
        let table = TableUse { is_table: true, ..TableUse::NONE };
        layout.index_of(gpa.gfn()).map(|frame| (frame, table))
    };
    let kernel = view.space().tables().iter().chain(kernel_tables).filter_map(of_kernel);
    let mut tables: Vec<_> = users.tables.iter().map(of_user).chain(kernel).collect();
    tables.sort_by_key(|(frame, _)| *frame);
    tables.dedup_by_key(|(frame, _)| *frame);
    tables
}

/// One process per address space, in the order of the address spaces.
fn list_processes(users: &UserMappings, tasks: &Tasks) -> Vec<Process> {
    let mut of_root = HashMap::<Gpa, Vec<&Task>>::new();
    for task in &tasks.tasks {
        if let Some(root) = task.root {
            of_root.entry(root).or_default().push(task);
        }
    }
    let ranks = tasks.ranks();
    let describe = |space: &super::user_spaces::UserSpace| {
        let threads = of_root.get(&space.root).map_or(&[][..], Vec::as_slice);
        let leader = threads.iter().min_by_key(|t| t.pid);
        let recency = threads.iter().filter_map(|t| ranks.get(&t.address)).min().copied();
        Process {
            pid: leader.map(|t| t.pid),
            name: leader.map(|t| t.name.clone()).unwrap_or_default(),
            mapped_frames: space.mapped_frames,
            anonymous_frames: 0,
            table_frames: 0,
            threads: u32::try_from(threads.len()).unwrap_or(u32::MAX),
            recency,
            root: space.root,
        }
    };
    users.spaces.iter().map(describe).collect()
}

fn space_name(process: &Process) -> String {
    match process.pid {
        Some(pid) => format!("{}[{pid}]", process.name),
        None => "unnamed process".to_owned(),
    }
}

/// Frames of the structures, stacks and root tables of the most recently run tasks.
fn recent_frames<M>(view: &KernelView<'_, M>, tasks: &Tasks) -> Vec<FrameIndex>
where
    M: GuestMemory + ?Sized,
{
    let layout = view.memory().layout();
    let mut frames = Vec::with_capacity(RECENT_TASKS * 8);
    let mut mark = |gva: Gva, bytes: u64| {
        for offset in (0..bytes).step_by(usize::try_from(FRAME_SIZE).unwrap_or(4096)) {
            let gpa = gva.checked_add(offset).and_then(|gva| view.translate(gva));
            frames.extend(gpa.and_then(|(gpa, _)| layout.index_of(gpa.gfn())));
        }
    };
    for task in tasks.recent() {
        mark(task.address, TASK_BYTES);
        if let Some(stack) = task.stack {
            mark(stack, 4 * FRAME_SIZE);
        }
    }
    frames.extend(tasks.recent().iter().filter_map(|t| layout.index_of(t.root?.gfn())));
    frames
}

fn describe_damage<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    damage: &Damage,
    tasks: &Tasks,
    users: &UserMappings,
    areas: &KernelAreas,
    notes: &mut Vec<Note>,
) {
    let mut report = |kind: NoteKind, what: &str, damage: DamageCount| {
        if let Some(first) = damage.first {
            let text = format!("{} {what}, the first at frame {first}", damage.count);
            notes.push(match kind {
                NoteKind::Incomplete => Note::incomplete("frame table", text),
                NoteKind::Contradiction => Note::contradiction("frame table", text),
            });
        }
    };
    // Memory that was never brought online has no records.
    report(NoteKind::Incomplete, "frames without a readable record", damage.unreadable);
    report(NoteKind::Contradiction, "free blocks that contradict themselves", damage.blocks);
    report(NoteKind::Contradiction, "tails without a head", damage.tails);
    let mut note = |subject, is_wrong: bool, text: String| {
        if is_wrong {
            notes.push(Note::contradiction(subject, text));
        }
    };
    let kernel = view.space().report();
    let unreadable = |report: &crate::paging::WalkReport| {
        let first = report.first_unreadable.unwrap_or_default();
        format!("{} tables are not in memory, the first at {first}", report.unreadable)
    };
    note("kernel page tables", kernel.cut, "too many tables; the rest was left out".to_owned());
    note("kernel page tables", kernel.unreadable > 0, unreadable(kernel));
    note("user page tables", users.report.cut, "too many tables; the rest was left out".to_owned());
    note("user page tables", users.report.unreadable > 0, unreadable(&users.report));
    let many = "too many roots or mappings; the rest was left out".to_owned();
    note("user page tables", users.cut, many);
    note("kernel areas", areas.cut, "too many mappings; the rest was left out".to_owned());
    let broken = "the list of tasks is broken; processes may be missing".to_owned();
    note("tasks", tasks.damaged, broken);
}
