//! Introspection of Linux, stage by stage.

use super::assemble::{Gathered, assemble};
use super::btf::Btf;
use super::files::Files;
use super::frame_reader::{FrameRecords, Owner, OwnerKind};
use super::frame_table::{FrameTable, FrameTableError};
use super::kallsyms::{Kallsyms, KallsymsHints};
use super::kernel_areas::KernelAreas;
use super::locate::{IMAGE_BASE, ImageSpan, LocateError, Located, locate, read_note, scan_notes};
use super::profile::Profile;
use super::regions::OwnerName;
use super::symbols::Symbols;
use super::tasks::Tasks;
use super::user_spaces::{
    RootSignature, UserMappings, UserSpace, find_roots, find_twin, read_mappings,
};
use super::view::{DirectMap, KernelView};
use super::vmcoreinfo::VmcoreInfo;
use crate::addr::{Gpa, Gva};
use crate::color::{FrameKind, KernelIdentity};
use crate::guest_os::{GuestFacts, Introspect, Note, Stage};
use crate::memory::GuestMemory;
use crate::paging::{KernelSpace, TableBudget};
use crate::registers::VcpuRegisters;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// How many of the tasks that ran last count as recent. Of the guests studied, the structures of the last eight predicted
/// the first touches of a clone best.
pub(crate) const RECENT_TASKS: usize = 8;

/// Page tables read beside one for every frame.
const SPARE_TABLES: u64 = 4096;

/// Why a guest's memory could not be introspected as Linux.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// No kernel was found.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A kernel was found, but not its frame table.
    #[error(transparent)]
    FrameTable(#[from] FrameTableError),
}

/// Introspection of x86-64 Linux, 5.4 and later, without symbols, profile or help from the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl Introspect for Linux {
    type Error = LinuxError;

    fn introspect(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
        begin: &mut dyn FnMut(Stage),
    ) -> Result<GuestFacts, LinuxError> {
        let mut notes = Vec::new();
        let mut budget = TableBudget::new(u64::from(memory.layout().frames()) + SPARE_TABLES);
        begin(Stage::Locate);
        let Located { spec, root, space, image, note } = locate(memory, registers, &mut budget)?;
        let mut view = KernelView::new(memory, space);
        if let Some(direct_map) = find_direct_map(&view) {
            view.set_direct_map(direct_map);
        }
        let view = view;

        begin(Stage::Symbols);
        let bytes = image_bytes(memory, &image);
        let kallsyms = find_symbols(&view, &image, &bytes, note.as_ref(), &mut notes);
        let note = note.or_else(|| find_note(&view, kallsyms.as_ref()));
        let symbols = Symbols::collect(kallsyms.as_ref(), note.as_ref());

        begin(Stage::Types);
        let btf = find_types(&image, &bytes, &symbols, &mut notes);
        let types = btf.as_ref().map(|btf| btf.index(Profile::type_names()));
        let profile = Profile::collect(types.as_ref(), note.as_ref());

        begin(Stage::FrameTable);
        let base = find_frame_table(&view, &symbols, note.as_ref());
        let table = FrameTable::new(base.ok_or(FrameTableError::NoAddress)?, &profile)?;
        let mut records = table.read(&view);

        begin(Stage::Tasks);
        let tasks = Tasks::read(&view, &profile, &symbols);

        begin(Stage::UserSpaces);
        let own_root = symbols.root().and_then(|r| view.translate(r)).map_or(root, |(gpa, _)| gpa);
        let users = read_users(&view, &spec, own_root, &records, &tasks, &mut budget);
        resolve_types(&mut records, &users, profile.types.and_then(|t| t.table));
        let isolated = users.spaces.iter().any(|s| s.twin.is_some());
        let twin = isolated.then(|| Gpa(own_root.0 | 0x1000));
        let twin = twin.map(|twin| KernelSpace::read(memory, &spec, twin, &mut budget));

        begin(Stage::KernelAreas);
        let areas = KernelAreas::read(&view, &table, &image, &symbols, &tasks);

        begin(Stage::Names);
        let owners = name_owners(&view, &profile, &records);

        begin(Stage::Facts);
        let kernel = identify(&view, &symbols, note.as_ref(), spec.name);
        let twin_tables = twin.as_ref().map_or(&[][..], KernelSpace::tables);
        let gathered = Gathered {
            view: &view,
            records,
            tasks,
            users,
            areas,
            owners,
            twin_tables,
            kernel,
            notes,
        };
        Ok(assemble(gathered))
    }
}

/// The image's bytes: borrowed where the memory is mapped, else copied. Empty when they cannot be read.
fn image_bytes<'m>(memory: &'m dyn GuestMemory, image: &ImageSpan) -> Cow<'m, [u8]> {
    let left = memory.layout().span_at(image.gpa).map_or(0, |(_, left)| left);
    let len = usize::try_from(image.bytes.min(left)).unwrap_or(0);
    if let Some(bytes) = memory.slice(image.gpa, len) {
        return Cow::Borrowed(bytes);
    }
    let mut copy = vec![0; len];
    match memory.read(image.gpa, &mut copy) {
        Ok(()) => Cow::Owned(copy),
        Err(_) => Cow::Borrowed(&[]),
    }
}

fn find_symbols<'b, M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    image: &ImageSpan,
    bytes: &'b [u8],
    note: Option<&VmcoreInfo>,
    notes: &mut Vec<Note>,
) -> Option<Kallsyms<'b>> {
    let last = Gva(image.gva.0.saturating_add(image.bytes));
    let mut runs = view.space().runs_in(image.gva, last).iter();
    let read_only = runs.find(|r| !r.rights.execute && !r.rights.write).map(|r| r.gva);
    let token_table = note.and_then(|n| n.symbol("kallsyms_token_table"));
    let hints = KallsymsHints { token_table, read_only_data: read_only };
    let found = Kallsyms::find(bytes, image.gva, &hints);
    found.map_err(|e| notes.push(Note { subject: "symbols", text: e.to_string() })).ok()
}

fn find_types<'b>(
    image: &ImageSpan,
    bytes: &'b [u8],
    symbols: &Symbols,
    notes: &mut Vec<Note>,
) -> Option<Btf<'b>> {
    let offset = |gva: Gva| usize::try_from(gva.0.checked_sub(image.gva.0)?).ok();
    let known = symbols.__start_BTF.and_then(offset).zip(symbols.__stop_BTF.and_then(offset));
    let section = known.and_then(|(start, stop)| bytes.get(start..stop));
    let by_symbol = section.and_then(|s| Btf::parse(s).ok());
    let found = by_symbol.map_or_else(|| Btf::find(bytes), Ok);
    found.map_err(|e| notes.push(Note { subject: "types", text: e.to_string() })).ok()
}

/// VMCOREINFO, by the kernel's own pointer to it, else by looking at every page's start.
fn find_note<M>(view: &KernelView<'_, M>, kallsyms: Option<&Kallsyms<'_>>) -> Option<VmcoreInfo>
where
    M: GuestMemory + ?Sized,
{
    let by_symbol = || {
        let variable = kallsyms?.lookup(&["vmcoreinfo_data"]).into_iter().next()??;
        let (gpa, _) = view.translate(view.read_pointer(variable)?)?;
        read_note(view.memory(), gpa)
    };
    by_symbol().or_else(|| scan_notes(view.memory()).next())
}

/// The direct map: the distance between virtual and physical addresses that most memory is mapped at.
fn find_direct_map<M: GuestMemory + ?Sized>(view: &KernelView<'_, M>) -> Option<DirectMap> {
    let mut bytes_at = HashMap::<u64, u64>::new();
    for run in view.space().runs().iter().filter(|r| r.gva < IMAGE_BASE) {
        if let Some(base) = run.gva.0.checked_sub(run.gpa.0) {
            let bytes = bytes_at.entry(base).or_default();
            *bytes = bytes.saturating_add(run.bytes);
        }
    }
    // Of equal candidates the lowest, so that the result does not depend on the order of a hash table.
    let (base, _) = bytes_at.into_iter().max_by_key(|&(base, bytes)| (bytes, u64::MAX - base))?;
    Some(DirectMap { base: Gva(base), end: view.memory().layout().end_gfn().gpa() })
}

/// Address of the frame table: the kernel's variable, or VMCOREINFO's word for it, or what the memory sections say.
fn find_frame_table<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    symbols: &Symbols,
    note: Option<&VmcoreInfo>,
) -> Option<Gva> {
    let is_mapped = |gva: &Gva| view.space().translate(*gva).is_some();
    let by_variable = symbols.vmemmap_base.and_then(|v| view.read_pointer(v)).filter(is_mapped);
    let by_note = || note?.symbol("vmemmap").filter(is_mapped);
    // Each section's word is the frame table's address, as seen from frame 0, and flags in the low bits.
    let by_section = || {
        let roots = note?.symbol("mem_section")?;
        let section = view.read_pointer(roots)?;
        let offset = note?.offset("mem_section.section_mem_map").unwrap_or(0);
        let word = view.read_field(section, offset)?;
        Some(Gva(word & !0x3f)).filter(is_mapped)
    };
    by_variable.or_else(by_note).or_else(by_section)
}

/// Finds and walks processes' address spaces, those of the lowest process ids first.
fn read_users<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    spec: &crate::paging::PagingSpec,
    kernel_root: Gpa,
    records: &FrameRecords,
    tasks: &Tasks,
    budget: &mut TableBudget,
) -> UserMappings {
    let memory = view.memory();
    let signature = RootSignature::read(memory, spec, kernel_root);
    let roots = signature.map(|s| find_roots(memory, &s, records, kernel_root)).unwrap_or_default();
    let mut pids = HashMap::<Gpa, u32>::new();
    for task in &tasks.tasks {
        if let Some(root) = task.root {
            let pid = pids.entry(root).or_insert(task.pid);
            *pid = task.pid.min(*pid);
        }
    }
    let recent: HashSet<Gpa> = tasks.recent().iter().filter_map(|t| t.root).collect();
    let mut roots: Vec<_> = roots.into_iter().map(|r| (pids.get(&r).copied(), r)).collect();
    roots.sort_by_key(|&(pid, root)| (pid.unwrap_or(u32::MAX), root));
    let spaces = roots.into_iter().map(|(_, root)| UserSpace {
        root,
        twin: find_twin(memory, spec, root),
        recent: recent.contains(&root),
        mapped_frames: 0,
    });
    read_mappings(memory, spec, spaces.collect(), budget)
}

/// Types that no table names: the one that most last-level page tables carry is the page tables'.
fn resolve_types(records: &mut FrameRecords, users: &UserMappings, known: Option<u32>) {
    if known.is_some() {
        return;
    }
    let numbers: HashMap<_, _> = records.typed.iter().copied().collect();
    let mut counts = HashMap::<u32, u64>::new();
    for table in users.tables.iter().filter(|t| t.is_last_level) {
        if let Some(number) = numbers.get(&table.frame) {
            *counts.entry(*number).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|&(number, count)| (count, number));
    if let Some((number, _)) = most {
        records.set_typed(number, crate::guest_os::FrameUse::PageTable);
    }
}

/// Names of all mappings and slab caches; `None` for what is not what it says it is.
fn name_owners<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    profile: &Profile,
    records: &FrameRecords,
) -> Vec<Option<OwnerName>> {
    let mut files = Files::new(view, &profile.fields);
    let in_slab = |address: Gva| {
        let (gpa, _) = view.translate(address)?;
        let record = records.record(view.memory().layout().index_of(gpa.gfn())?)?;
        (record.usage.kind() == FrameKind::Slab).then_some(())
    };
    let mut name = |owner: &Owner| match owner.kind {
        OwnerKind::Mapping if profile.has_files() => {
            let file = files.identify(owner.address)?;
            Some(OwnerName { is_block_device: file.is_block_device(), name: file.to_string() })
        }
        // Without types a mapping is believed when it lies where the kernel keeps inodes.
        OwnerKind::Mapping => in_slab(owner.address).map(|()| OwnerName {
            is_block_device: false,
            name: format!("mapping@{}", owner.address),
        }),
        OwnerKind::SlabCache => {
            let field = profile.fields.cache_name;
            let text = field.and_then(|o| view.read_pointer_field(owner.address, o));
            let text = text.and_then(|t| view.read_string(t)).filter(|t| !t.is_empty());
            let name = text.unwrap_or_else(|| format!("cache@{}", owner.address));
            Some(OwnerName { is_block_device: false, name })
        }
    };
    records.owners.iter().map(&mut name).collect()
}

fn identify<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    symbols: &Symbols,
    note: Option<&VmcoreInfo>,
    paging: &str,
) -> KernelIdentity {
    let banner = symbols.linux_banner.and_then(|b| view.read_string(b)).unwrap_or_default();
    let from_banner = || banner.strip_prefix("Linux version ")?.split(' ').next();
    let release = note.map(VmcoreInfo::os_release).or_else(from_banner).unwrap_or_default();
    KernelIdentity {
        os: "linux".to_owned(),
        release: release.to_owned(),
        banner: banner.trim_end().to_owned(),
        build_id: note.and_then(VmcoreInfo::build_id).unwrap_or_default().to_owned(),
        paging: paging.to_owned(),
    }
}
