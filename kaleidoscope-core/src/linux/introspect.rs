//! Phases of Linux introspection.

use super::assemble::{PhaseResults, assemble};
use super::common_symbols::CommonSymbols;
use super::frames::reader::{FrameRecords, Owner, OwnerKind};
use super::frames::table::FrameTableError;
use super::frames::unplugged::unplugged;
use super::kallsyms::KallsymsError;
use super::kernel::Kernel;
use super::kernel_areas::KernelAreas;
use super::locate::{Hints, LocateError};
use super::names::budget::NameBudget;
use super::names::files::Files;
use super::profile::Profile;
use super::regions::OwnerName;
use super::tasks::Tasks;
use super::user_spaces::{
    RootSignature, UserMappings, UserSpace, find_roots, find_twin, read_mappings,
};
use super::view::KernelView;
use super::vmcoreinfo::VmcoreInfo;
use crate::addr::{Gpa, Gva};
use crate::color::FrameKind;
use crate::guest_os::{
    FrameUse, GuestFacts, Introspect, IntrospectError, IntrospectErrorKind, Note, Phase,
};
use crate::memory::GuestMemory;
use crate::paging::{KernelSpace, PagingSpec, TableBudget};
use crate::registers::VcpuRegisters;
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// Number of most recently run tasks that count as recent. In the guests studied, the structures of
/// the last eight tasks predicted a clone's first touches best.
pub(crate) const RECENT_TASKS: usize = 8;

/// Maximum number of page tables to read in addition to one per frame.
const SPARE_TABLES: u64 = 4096;

/// Why a guest could not be introspected as Linux.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// No kernel was found.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A kernel was found, but not its frame table.
    #[error(transparent)]
    FrameTable(#[from] FrameTableError),
    /// A kernel was found, but not its symbols. Coloring works without symbols;
    /// [`Linux::symbols_by_page`] does not.
    #[error(transparent)]
    Symbols(#[from] KallsymsError),
}

/// Introspection of x86-64 Linux 5.4 and later, without symbol files, profiles or a guest agent.
#[derive(Clone, Debug, Default)]
pub struct Linux {
    pub(super) common_symbols: CommonSymbols,
    /// Candidate texts that came with the memory.
    pub(super) vmcoreinfo: Vec<VmcoreInfo>,
}

impl Linux {
    /// The same with other symbols that most workloads use. The default is the list that ships
    /// with the library.
    #[must_use]
    pub fn common_symbols(mut self, common_symbols: CommonSymbols) -> Self {
        self.common_symbols = common_symbols;
        self
    }

    /// The same with a VMCOREINFO text that came with the memory, such as a dump's own note. Texts
    /// are only candidates: one may describe an earlier kernel or another machine.
    ///
    /// # Errors
    /// [`IntrospectErrorKind::Damaged`] if the bytes are no such text.
    pub fn vmcoreinfo(mut self, text: &[u8]) -> Result<Self, IntrospectError> {
        let text = VmcoreInfo::parse(text);
        let text = text.map_err(|e| IntrospectError::new(IntrospectErrorKind::Damaged, e))?;
        self.vmcoreinfo.push(text);
        Ok(self)
    }
}

impl From<LinuxError> for IntrospectError {
    fn from(error: LinuxError) -> Self {
        let kind = match &error {
            LinuxError::Locate(LocateError::Ambiguous { .. }) => IntrospectErrorKind::Ambiguous,
            LinuxError::Locate(_) => IntrospectErrorKind::NotFound,
            LinuxError::FrameTable(_) | LinuxError::Symbols(_) => IntrospectErrorKind::Damaged,
        };
        Self::new(kind, error)
    }
}

impl Introspect for Linux {
    fn introspect(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
        begin: &mut dyn FnMut(Phase),
    ) -> Result<GuestFacts, IntrospectError> {
        let mut notes = Vec::new();
        let mut budget = table_budget(memory);
        let common = &self.common_symbols;
        let hints = Hints { registers, notes: &self.vmcoreinfo };
        let opened = Kernel::open(memory, hints, &mut budget, common, begin, &mut notes)?;
        let own_root = opened.own_root();
        let kernel = opened.identity();
        let Kernel { view, spec, image, symbols, page_hints, profile, table, .. } = opened;

        begin(Phase::FrameTable);
        let mut records = table.read(&view);
        let kept = unplugged(&view, &symbols, &profile.fields);
        records.set_unplugged(&view, &table, &kept);

        begin(Phase::Tasks);
        let tasks = Tasks::read(&view, &profile, &symbols);

        begin(Phase::UserSpaces);
        let users = read_users(&view, &spec, own_root, &records, &tasks, &mut budget);
        resolve_types(&mut records, &users, profile.types.and_then(|t| t.table));
        // The kernel's own root may not have been walked, since a vCPU's CR3 refers to the root of
        // its process. With page-table isolation, the kernel's root has a twin whose tables all
        // processes share.
        let mut kernel_tables = vec![own_root];
        if users.spaces.iter().any(|s| s.twin.is_some()) {
            let twin = KernelSpace::read(memory, &spec, Gpa(own_root.0 | 0x1000), &mut budget);
            kernel_tables.extend(twin.tables());
        }

        begin(Phase::KernelAreas);
        let areas = KernelAreas::read(&view, &table, &image, &symbols, &records, &tasks);

        begin(Phase::Names);
        let owners = name_owners(&view, &profile, &records, &mut notes);

        begin(Phase::Facts);
        let results = PhaseResults {
            view: &view,
            records,
            tasks,
            users,
            areas,
            page_hints,
            owners,
            kernel_tables: &kernel_tables,
            kernel,
            notes,
        };
        Ok(assemble(results))
    }
}

/// Number of page tables that may be read: one per frame, in case all memory is page tables, plus a
/// few for tables that are read twice.
pub(super) fn table_budget(memory: &dyn GuestMemory) -> TableBudget {
    TableBudget::new(u64::from(memory.layout().frames()).saturating_add(SPARE_TABLES))
}

/// Finds and walks the address spaces of processes, lowest process ID first.
pub(super) fn read_users<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    spec: &PagingSpec,
    kernel_root: Gpa,
    records: &FrameRecords,
    tasks: &Tasks,
    budget: &mut TableBudget,
) -> UserMappings {
    let memory = view.memory();
    let signature = RootSignature::read(memory, spec, kernel_root);
    let found = signature.map(|s| find_roots(memory, &s, records, kernel_root));
    let (roots, cut) = found.unwrap_or_default();
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
    let mut users = read_mappings(memory, spec, spaces.collect(), budget);
    users.cut |= cut;
    users
}

/// If no source reports the type number of page tables, takes the type that most last-level page
/// tables carry.
pub(super) fn resolve_types(records: &mut FrameRecords, users: &UserMappings, known: Option<u32>) {
    if known.is_some() {
        return;
    }
    let numbers: HashMap<_, _> = records.typed.iter().copied().collect();
    let mut counts = HashMap::<u32, u64>::new();
    for table in users.tables.iter().filter(|t| t.is_last_level) {
        if let Some(number) = numbers.get(&table.frame) {
            let count = counts.entry(*number).or_default();
            *count = count.saturating_add(1);
        }
    }
    let most = counts.into_iter().max_by_key(|&(number, count)| (count, number));
    if let Some((number, _)) = most {
        records.set_typed(number, FrameUse::PageTable);
    }
}

/// Names of all mappings and slab caches; `None` for an owner that is not what its pages claim.
/// When the name budget is exhausted, the remaining owners are named by their addresses.
fn name_owners<M: GuestMemory + ?Sized>(
    view: &KernelView<'_, M>,
    profile: &Profile,
    records: &FrameRecords,
    notes: &mut Vec<Note>,
) -> Vec<Option<OwnerName>> {
    let budget = NameBudget::for_frames(view.memory().layout().frames());
    let mut files = Files::new(view, &profile.fields, budget);
    let in_slab = |address: Gva| {
        let (gpa, _) = view.translate(address)?;
        let record = records.record(view.memory().layout().index_of(gpa.gfn())?)?;
        (record.usage.kind() == FrameKind::Slab).then_some(())
    };
    let mut name = |owner: &Owner| {
        let (is_block_device, name) = match owner.kind {
            OwnerKind::Mapping if profile.has_files() => {
                let file = files.identify(owner.address)?;
                (file.is_block_device(), Some(file.to_string()))
            }
            // Without type information, a mapping is accepted if it lies in slab memory, where
            // inodes are.
            OwnerKind::Mapping => in_slab(owner.address).map(|()| (false, None))?,
            OwnerKind::SlabCache => {
                let field = profile.fields.cache_name;
                let text = field.and_then(|o| view.read_pointer_field(owner.address, o));
                (false, text.and_then(|t| view.read_string(t)).filter(|t| !t.is_empty()))
            }
        };
        let name = name.filter(|name| files.budget().charge_name(name).is_some());
        let name = name.unwrap_or_else(|| owner.to_string());
        let gpa = view.translate(owner.address).map(|(gpa, _)| gpa);
        let frame = gpa.and_then(|gpa| view.memory().layout().index_of(gpa.gfn()));
        Some(OwnerName { is_block_device, name, frame })
    };
    let names = records.owners.iter().map(&mut name).collect();
    if files.budget().is_exhausted() {
        let text = "names take too much time or memory; the rest was left out".to_owned();
        notes.push(Note::incomplete("files and caches", text));
    }
    names
}
