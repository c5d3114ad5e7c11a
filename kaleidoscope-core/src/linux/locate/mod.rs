//! Finds kernels in memory: their page tables, images and VMCOREINFO notes.
//!
//! With vCPU registers, CR3 holds the root. Without registers, every kernel in memory is a
//! candidate: neither a reset nor kexec clears RAM, so a former kernel may be as complete as the
//! running one. Two kinds of evidence lead to a kernel, and one pass over memory ([`scan`]) finds
//! both: the VMCOREINFO page, which contains the address of the root table, and root tables
//! themselves, whose last entry leads to a mapped image. The choice of the running kernel among the
//! candidates is made in [`running`](super::running).

mod roots;
mod scan;

use self::roots::Roots;
use self::scan::{ScanResults, scan};
use super::vmcoreinfo::VmcoreInfo;
use crate::addr::{FRAME_BYTES, Gpa, Gva};
use crate::memory::GuestMemory;
use crate::paging::{
    GvaRange, KernelSpace, Leaf, PagingSpec, SharedBit, TableBudget, Visitor, find_mask, translate,
    walk,
};
use crate::registers::{PagingMode, VcpuRegisters};
use thiserror::Error;

/// Lowest address of the x86-64 Linux image, before the random offset (`__START_KERNEL_map`).
pub(crate) const IMAGE_BASE: Gva = Gva(0xffff_ffff_8000_0000);

/// Last address of the area that contains the image (`KERNEL_IMAGE_SIZE` with a random offset),
/// inclusive.
pub(crate) const IMAGE_LAST: Gva = Gva(0xffff_ffff_bfff_ffff);

/// Minimum size of a kernel image's executable part, in bytes.
const MIN_TEXT: u64 = 4 << 20;

/// Maximum size of a kernel image, in bytes.
const MAX_IMAGE: u64 = 256 << 20;

/// Maximum number of kernels to keep apart. A machine that was reset many times holds remains of a
/// few.
const MAX_KERNELS: usize = 16;

/// A kernel's own page tables may consist of one table per this many frames, plus spare tables.
const FRAMES_PER_TABLE: u64 = 8;
const SPARE_TABLES: u64 = 2048;

/// Why no Linux kernel was found.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LocateError {
    /// No evidence leads to a kernel image.
    #[error(
        "no Linux kernel found: {roots} page-table roots and {notes} VMCOREINFO pages were tried; \
         if the guest runs Linux, give its vCPUs' registers"
    )]
    NoKernel {
        /// Roots tried: those from registers, and frames that look like a kernel's root table.
        roots: usize,
        /// Pages that start like VMCOREINFO.
        notes: usize,
    },
    /// The memory holds several kernels, and the evidence does not determine which one runs.
    #[error(
        "{count} kernels are in this memory and nothing says which one runs: {first}; {second}; \
         give the vCPUs' registers"
    )]
    Ambiguous {
        /// Number of kernels that may be the running one.
        count: usize,
        /// One of them: its release and its root table.
        first: String,
        /// Another one.
        second: String,
    },
}

/// The virtual and physical location of the kernel image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ImageSpan {
    /// First virtual address; the image starts with executable code.
    pub(crate) gva: Gva,
    /// First physical address.
    pub(crate) gpa: Gpa,
    /// Length in bytes, including gaps left by freed parts.
    pub(crate) bytes: u64,
}

impl ImageSpan {
    /// Whether an address lies in the image.
    pub(crate) fn contains(&self, gva: Gva) -> bool {
        gva.0.checked_sub(self.gva.0).is_some_and(|offset| offset < self.bytes)
    }
}

/// A kernel found in memory, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) spec: PagingSpec,
    pub(crate) root: Gpa,
    pub(crate) space: KernelSpace,
    pub(crate) image: ImageSpan,
    /// The VMCOREINFO note that led to the kernel, if any.
    pub(crate) note: Option<VmcoreInfo>,
    /// The evidence that led to the kernel.
    pub(crate) root_hint: RootHint,
}

/// Evidence that leads to a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RootHint {
    /// A vCPU's registers.
    Registers,
    /// A VMCOREINFO text.
    Note,
    /// A frame whose contents look like a root table.
    RootTable,
}

impl Located {
    /// Whether `image` belongs to the same kernel, that is, has the same virtual and physical
    /// address.
    fn is_same_kernel(&self, image: &ImageSpan) -> bool {
        (self.image.gva, self.image.gpa) == (image.gva, image.gpa)
    }
}

/// Inputs besides the memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hints<'a> {
    /// The vCPUs' registers; may be empty.
    pub(crate) registers: &'a [VcpuRegisters],
    /// VMCOREINFO texts that the image file carries.
    pub(crate) notes: &'a [VmcoreInfo],
}

/// Reads the kernel half of the tables at `root`. Limits the cost of one root to the tables of a
/// kernel that maps every frame 64 times, so that a false root or a decoy leaves budget for the
/// others.
///
/// If entries of shared pages carry a shared bit (TDX), the returned format excludes the bit from
/// addresses.
fn read_space<M>(
    memory: &M,
    spec: PagingSpec,
    root: Gpa,
    budget: &mut TableBudget,
) -> (PagingSpec, KernelSpace)
where
    M: GuestMemory + ?Sized,
{
    let tables = u64::from(memory.layout().frames()) / FRAMES_PER_TABLE;
    let mut part = budget.take(tables.saturating_add(SPARE_TABLES));
    let mut read = |spec| KernelSpace::read(memory, &spec, root, &mut part);
    let space = read(spec);
    let found = match SharedBit::of_space(&spec, memory.layout(), &space) {
        0 => (spec, space),
        shared => (spec.without_bits(shared), read(spec.without_bits(shared))),
    };
    budget.put_back(part);
    found
}

/// Finds every kernel that may be the running one: the kernels that registers lead to; else the
/// kernel whose crash the image documents; else all kernels with evidence in memory. Returns at
/// least one.
pub(crate) fn locate<M>(
    memory: &M,
    hints: Hints<'_>,
    budget: &mut TableBudget,
) -> Result<Vec<Located>, LocateError>
where
    M: GuestMemory + ?Sized,
{
    let mut found = Found::default();
    for vcpu in hints.registers {
        found.add_registers(memory, vcpu, budget);
    }
    for kernel in &mut found.kernels {
        kernel.note = hints.notes.iter().find(|note| describes(note, &kernel.image)).cloned();
    }
    if !found.kernels.is_empty() {
        return Ok(found.kernels);
    }
    // A crash dump documents the kernel that crashed, not the kernel that ran when the dump was
    // written.
    let (crashed, others): (Vec<_>, Vec<_>) =
        hints.notes.iter().partition(|note| note.crash_time().is_some());
    for note in crashed {
        found.add_note(memory, note.clone(), budget);
    }
    if !found.kernels.is_empty() {
        return Ok(found.kernels);
    }
    let ScanResults { notes, roots } = scan(memory);
    for note in others.into_iter().cloned().chain(notes) {
        found.add_note(memory, note, budget);
    }
    found.add_roots(memory, &roots, budget);
    match found {
        Found { kernels, .. } if !kernels.is_empty() => Ok(kernels),
        Found { roots, notes, .. } => Err(LocateError::NoKernel { roots, notes }),
    }
}

/// Kernels found so far, and the number of roots and notes tried.
#[derive(Debug, Default)]
struct Found {
    kernels: Vec<Located>,
    roots: usize,
    notes: usize,
}

impl Found {
    fn add_registers<M>(&mut self, memory: &M, vcpu: &VcpuRegisters, budget: &mut TableBudget)
    where
        M: GuestMemory + ?Sized,
    {
        let Some((spec, pair)) = roots_of(memory, vcpu) else { return };
        // One walk suffices for all vCPUs of a kernel. A vCPU that was abandoned in a crash still
        // has the former kernel's tables.
        let leads_to = |root: Gpa, kernel: &Located| {
            let image = kernel.image;
            translate(memory, &spec, root, image.gva).gpa() == Some(image.gpa)
        };
        if self.kernels.iter().any(|k| pair.into_iter().any(|root| leads_to(root, k))) {
            return;
        }
        self.roots = self.roots.saturating_add(pair.len());
        // With page-table isolation, one of the two roots maps little of the kernel.
        let tried = pair
            .into_iter()
            .filter_map(|root| by_root(memory, spec, root, RootHint::Registers, budget));
        if let Some((_, located)) = tried.max_by_key(|(mapped, _)| *mapped) {
            self.add(located);
        }
    }

    fn add_note<M>(&mut self, memory: &M, note: VmcoreInfo, budget: &mut TableBudget)
    where
        M: GuestMemory + ?Sized,
    {
        self.notes = self.notes.saturating_add(1);
        if self.kernels.len() < MAX_KERNELS
            && let Some(located) = by_note(memory, note, budget)
        {
            self.add(located);
        }
    }

    fn add_roots<M>(&mut self, memory: &M, roots: &Roots, budget: &mut TableBudget)
    where
        M: GuestMemory + ?Sized,
    {
        for (spec, root, top) in roots.iter() {
            self.roots = self.roots.saturating_add(1);
            let is_known = |k: &Located| {
                let known = roots::top_of(memory, &k.spec, k.root);
                known == Some(top)
            };
            if self.kernels.len() >= MAX_KERNELS || self.kernels.iter().any(is_known) {
                continue;
            }
            if let Some((_, located)) = by_root(memory, spec, root, RootHint::RootTable, budget) {
                self.add(located);
            }
        }
    }

    /// Adds a kernel that is not known yet. For a known kernel, keeps the note with the latest
    /// crash time.
    fn add(&mut self, located: Located) {
        let Some(known) = self.kernels.iter_mut().find(|k| k.is_same_kernel(&located.image)) else {
            self.kernels.push(located);
            return;
        };
        let crash = |k: &Located| k.note.as_ref().and_then(VmcoreInfo::crash_time);
        let note = match (known.note.take(), located.note.clone()) {
            (None, note) | (note, None) => note,
            (known_note, note) if crash(&located) > crash(known) => note.or(known_note),
            (note, _) => note,
        };
        // With page-table isolation, the user-mode root maps only a part of the same kernel.
        if mapped_bytes(&located.space) > mapped_bytes(&known.space) {
            *known = located;
        }
        known.note = note;
    }
}

/// The root table that a vCPU uses and its twin with page-table isolation: the two halves of an 8
/// KiB pair.
fn roots_of<M>(memory: &M, vcpu: &VcpuRegisters) -> Option<(PagingSpec, [Gpa; 2])>
where
    M: GuestMemory + ?Sized,
{
    let spec = match vcpu.paging_mode()? {
        PagingMode::Long4 => PagingSpec::X86_64_4LEVEL,
        PagingMode::Long5 => PagingSpec::X86_64_5LEVEL,
        PagingMode::None | PagingMode::Legacy32 | PagingMode::Pae => return None,
    };
    let cr3 = vcpu.cr3?;
    let spec = spec.without_bits(find_mask(memory, &spec, Gpa(cr3), None));
    let cr3 = cr3 & spec.root_mask;
    Some((spec, [Gpa(cr3 & !0x1000), Gpa(cr3 | 0x1000)]))
}

/// The kernel that a root maps, and the number of bytes mapped in the image area.
fn by_root<M>(
    memory: &M,
    spec: PagingSpec,
    root: Gpa,
    root_hint: RootHint,
    budget: &mut TableBudget,
) -> Option<(u64, Located)>
where
    M: GuestMemory + ?Sized,
{
    let (spec, space) = read_space(memory, spec, root, budget);
    let image = image_span(&space)?;
    let runs = space.runs_in(IMAGE_BASE, IMAGE_LAST).iter();
    let mapped = runs.fold(0_u64, |sum, r| sum.saturating_add(r.bytes));
    Some((mapped, Located { spec, root, space, image, note: None, root_hint }))
}

fn mapped_bytes(space: &KernelSpace) -> u64 {
    space.runs().iter().fold(0, |sum, run| sum.saturating_add(run.bytes))
}

/// The kernel's address space through another root of the same kernel; `None` if that root maps a
/// different image.
pub(crate) fn reread<M>(
    memory: &M,
    spec: &PagingSpec,
    root: Gpa,
    image: &ImageSpan,
    budget: &mut TableBudget,
) -> Option<KernelSpace>
where
    M: GuestMemory + ?Sized,
{
    let (_, space) = read_space(memory, *spec, root, budget);
    let found = image_span(&space)?;
    ((found.gva, found.gpa) == (image.gva, image.gpa)).then_some(space)
}

/// The tables on the path from a root to the page at `gva`, the root first.
pub(crate) fn tables_to_image<M>(memory: &M, spec: &PagingSpec, root: Gpa, gva: Gva) -> Vec<Gpa>
where
    M: GuestMemory + ?Sized,
{
    #[derive(Default)]
    struct Path(Vec<Gpa>);
    impl Visitor for Path {
        fn leaf(&mut self, _leaf: &Leaf) {}
        fn table(&mut self, gpa: Gpa, _depth: usize, _gva: Gva) {
            self.0.push(gpa);
        }
    }
    let mut path = Path::default();
    let range = GvaRange { first: gva, last: gva };
    walk(memory, spec, root, range, &mut TableBudget::new(spec.levels.len() as u64), &mut path);
    path.0
}

/// Every VMCOREINFO text in memory.
pub(crate) fn notes_in<M: GuestMemory + ?Sized>(memory: &M) -> Vec<VmcoreInfo> {
    scan(memory).notes
}

/// The kernel image: the first executable mapping of at least 4 MiB in the image area, and all
/// mappings above it with the same offset between virtual and physical addresses.
fn image_span(space: &KernelSpace) -> Option<ImageSpan> {
    let runs = space.runs_in(IMAGE_BASE, IMAGE_LAST);
    let first = runs.iter().find(|r| r.rights.execute && r.bytes >= MIN_TEXT)?;
    let continues = |r: &&crate::paging::Run| {
        let distance = r.gva.0.checked_sub(first.gva.0);
        distance.is_some_and(|d| d == r.gpa.0.wrapping_sub(first.gpa.0))
    };
    let last = runs.iter().filter(continues).map(|r| r.last()).max()?;
    let bytes = last.0.checked_sub(first.gva.0)?.saturating_add(1).min(MAX_IMAGE);
    Some(ImageSpan { gva: first.gva, gpa: first.gpa, bytes })
}

/// Whether a note describes the kernel at this image. The check is needed because any program in
/// the guest can write a page that looks like a note.
pub(crate) fn describes(note: &VmcoreInfo, image: &ImageSpan) -> bool {
    let distance = image.gpa.0.wrapping_sub(image.gva.0);
    let base = note.phys_base().unwrap_or(0).cast_unsigned();
    let start = note.symbol("_stext").is_some_and(|s| image.contains(s));
    start && distance == base.wrapping_sub(IMAGE_BASE.0)
}

/// Parses the VMCOREINFO text at `gpa`.
pub(crate) fn read_note<M: GuestMemory + ?Sized>(memory: &M, gpa: Gpa) -> Option<VmcoreInfo> {
    let mut page = [0; FRAME_BYTES];
    memory.read(gpa, &mut page).ok()?;
    VmcoreInfo::parse(&page).ok()
}

/// The kernel that a VMCOREINFO page describes, if its root table maps itself at the address in the
/// page.
fn by_note<M>(memory: &M, note: VmcoreInfo, budget: &mut TableBudget) -> Option<Located>
where
    M: GuestMemory + ?Sized,
{
    let root_gva = note.symbol("init_top_pgt").or_else(|| note.symbol("swapper_pg_dir"))?;
    let phys_base = note.phys_base().unwrap_or(0);
    let offset = root_gva.0.checked_sub(IMAGE_BASE.0)?;
    let root = Gpa(offset.checked_add_signed(phys_base)?);
    let five_levels = note.number("pgtable_l5_enabled").is_some_and(|n| n != 0);
    let spec = if five_levels { PagingSpec::X86_64_5LEVEL } else { PagingSpec::X86_64_4LEVEL };
    let sme_mask = note.number("sme_mask").map(i64::cast_unsigned);
    let spec = spec.without_bits(find_mask(memory, &spec, root, sme_mask));
    // Translating one address is cheap and rejects false notes before all tables are walked.
    if translate(memory, &spec, root, root_gva).gpa() != Some(root) {
        return None;
    }
    let (spec, space) = read_space(memory, spec, root, budget);
    let image = image_span(&space)?;
    Some(Located { spec, root, space, image, note: Some(note), root_hint: RootHint::Note })
}
