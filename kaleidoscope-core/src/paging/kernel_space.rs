//! The kernel's address space as sorted runs, for translating many addresses.

use super::spec::PagingSpec;
use super::walk::{GvaRange, Leaf, Rights, TableBudget, Visitor, WalkReport, walk};
use crate::addr::{Gpa, Gva};
use crate::memory::GuestMemory;

/// Contiguous virtual addresses that map contiguous physical addresses with the same rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First virtual address.
    pub gva: Gva,
    /// First physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub bytes: u64,
    /// Access rights of all its pages.
    pub rights: Rights,
}

impl Run {
    /// Last virtual address, inclusive.
    #[must_use]
    pub fn last(&self) -> Gva {
        Gva(self.gva.0.wrapping_add(self.bytes).wrapping_sub(1))
    }

    fn is_continued_by(&self, leaf: &Leaf) -> bool {
        self.rights == leaf.rights
            && self.gva.0.wrapping_add(self.bytes) == leaf.gva.0
            && self.gpa.0.wrapping_add(self.bytes) == leaf.gpa.0
    }
}

/// All kernel-half mappings of one root table, and the tables that hold them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KernelSpace {
    runs: Vec<Run>,
    /// Maximum number of runs to keep; hostile tables could define 512 for each table.
    max_runs: usize,
    tables: Vec<Gpa>,
    report: WalkReport,
}

/// Maximum number of runs in addition to one per frame of RAM.
const SPARE_RUNS: usize = 65_536;

impl Visitor for KernelSpace {
    fn leaf(&mut self, leaf: &Leaf) {
        if let Some(run) = self.runs.last_mut().filter(|run| run.is_continued_by(leaf)) {
            run.bytes = run.bytes.saturating_add(leaf.bytes);
        } else if self.runs.len() < self.max_runs {
            let Leaf { gva, gpa, bytes, rights, .. } = *leaf;
            self.runs.push(Run { gva, gpa, bytes, rights });
        } else {
            self.report.cut = true;
        }
    }

    fn table(&mut self, gpa: Gpa, _depth: usize, _gva: Gva) {
        self.tables.push(gpa);
    }
}

impl KernelSpace {
    /// Walks the kernel half of the tables at `root`. Keeps at most one run per frame of RAM plus
    /// 65,536.
    pub fn read<M>(memory: &M, spec: &PagingSpec, root: Gpa, budget: &mut TableBudget) -> Self
    where
        M: GuestMemory + ?Sized,
    {
        let max_runs = (memory.layout().frames() as usize).saturating_add(SPARE_RUNS);
        let mut space = Self { max_runs, ..Self::default() };
        let report = walk(memory, spec, root, GvaRange::kernel_half(spec), budget, &mut space);
        space.report = WalkReport { cut: report.cut || space.report.cut, ..report };
        space
    }

    /// The runs in ascending order of virtual address.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The runs that overlap `first..=last`.
    #[must_use]
    pub fn runs_in(&self, first: Gva, last: Gva) -> &[Run] {
        let start = self.runs.partition_point(|r| r.last() < first);
        let end = self.runs.partition_point(|r| r.gva <= last);
        self.runs.get(start..end).unwrap_or(&[])
    }

    /// Every table that was read, the root first.
    #[must_use]
    pub fn tables(&self) -> &[Gpa] {
        &self.tables
    }

    /// The report of the walk.
    #[must_use]
    pub fn report(&self) -> &WalkReport {
        &self.report
    }

    /// Start of the first run after `gva`; `None` if there is none.
    pub(crate) fn next_after(&self, gva: Gva) -> Option<Gva> {
        self.runs.get(self.runs.partition_point(|r| r.gva <= gva)).map(|run| run.gva)
    }

    /// The physical address of `gva`, and for how many bytes from there the mapping stays
    /// contiguous.
    #[must_use]
    pub fn translate(&self, gva: Gva) -> Option<(Gpa, u64)> {
        let at = self.runs.partition_point(|r| r.gva <= gva).checked_sub(1)?;
        let run = self.runs.get(at)?;
        let offset = gva.0.checked_sub(run.gva.0)?;
        let left = run.bytes.checked_sub(offset).filter(|&left| left > 0)?;
        Some((run.gpa.checked_add(offset)?, left))
    }
}
