//! The bounded page-table walker.
//!
//! The walker reads a table, and for every present entry that overlaps the range, it either passes
//! the page to the visitor or descends. Rights are the AND over all levels. The budget makes walks
//! of hostile tables safe: every table read consumes budget, so cycles and shared subtrees
//! terminate.

use super::spec::{LevelSpec, PagingSpec};
use crate::addr::{FRAME_BYTES, Gpa, Gva};
use crate::memory::GuestMemory;

/// Effective access rights of a mapping: the AND of the rights at every level of the path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rights {
    /// User mode may access the page.
    pub user: bool,
    /// The page is writable.
    pub write: bool,
    /// The page is executable.
    pub execute: bool,
}

impl Rights {
    /// All rights: the initial value of the AND over the levels.
    pub const ALL: Self = Self { user: true, write: true, execute: true };

    fn and(self, other: Self) -> Self {
        Self {
            user: self.user & other.user,
            write: self.write & other.write,
            execute: self.execute & other.execute,
        }
    }
}

/// One page-table mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First virtual address.
    pub gva: Gva,
    /// First physical address; not necessarily RAM.
    pub gpa: Gpa,
    /// Size in bytes: 4 KiB, 2 or 4 MiB, 1 GiB.
    pub bytes: u64,
    /// Effective rights.
    pub rights: Rights,
    /// Accessed bit of the leaf entry.
    pub accessed: bool,
    /// Dirty bit of the leaf entry.
    pub dirty: bool,
}

/// Virtual addresses `first..=last`, both canonical and in the same half of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GvaRange {
    /// First address.
    pub first: Gva,
    /// Last address, inclusive.
    pub last: Gva,
}

impl GvaRange {
    /// The half of the address space that Linux gives to processes.
    #[must_use]
    pub fn user_half(spec: &PagingSpec) -> Self {
        let last = if spec.has_canonical_addresses() { !spec.sign_bits() } else { 0xbfff_ffff };
        Self { first: Gva(0), last: Gva(last) }
    }

    /// The half of the address space that Linux keeps for the kernel.
    #[must_use]
    pub fn kernel_half(spec: &PagingSpec) -> Self {
        if spec.has_canonical_addresses() {
            Self { first: Gva(spec.sign_bits()), last: Gva(u64::MAX) }
        } else {
            Self { first: Gva(0xc000_0000), last: Gva(0xffff_ffff) }
        }
    }
}

/// Number of tables that may still be read; every read costs one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableBudget {
    left: u64,
}

impl TableBudget {
    /// A budget of `tables` reads.
    #[must_use]
    pub fn new(tables: u64) -> Self {
        Self { left: tables }
    }

    /// Number of reads left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Moves at most `tables` reads into a new budget, for a walk that must not consume this budget
    /// entirely. Return unused reads with [`put_back`](Self::put_back).
    #[must_use]
    pub fn take(&mut self, tables: u64) -> Self {
        let part = tables.min(self.left);
        self.left = self.left.saturating_sub(part);
        Self { left: part }
    }

    /// Adds the reads that are left in another budget.
    pub fn put_back(&mut self, rest: Self) {
        self.left = self.left.saturating_add(rest.left);
    }

    /// Consumes one read; false if none is left.
    fn consume(&mut self) -> bool {
        let available = self.left > 0;
        self.left = self.left.saturating_sub(1);
        available
    }
}

/// Receives the results of a walk, in ascending order of virtual address.
pub trait Visitor {
    /// A page is mapped.
    fn leaf(&mut self, leaf: &Leaf);

    /// A nonzero entry that is not present, `depth` levels below the root, which covers addresses
    /// from `gva` up. The processor ignores its bits; their meaning is up to the operating system.
    fn not_present(&mut self, entry: u64, depth: usize, gva: Gva) {
        let _ = (entry, depth, gva);
    }

    /// A table at `gpa`, `depth` levels below the root (the root is 0), which covers addresses from
    /// `gva` up.
    fn table(&mut self, gpa: Gpa, depth: usize, gva: Gva) {
        let _ = (gpa, depth, gva);
    }

    /// Whether to end the walk early, as if the budget were exhausted. Called before every table.
    fn has_enough(&self) -> bool {
        false
    }
}

/// Statistics of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalkReport {
    /// Tables read.
    pub tables: u64,
    /// Entries whose table could not be read (not RAM, or not in the image).
    pub unreadable: u64,
    /// The first such table.
    pub first_unreadable: Option<Gpa>,
    /// Whether the walk ended early because of its budget or visitor, so that mappings are missing.
    pub cut: bool,
}

/// Visits every mapping in `range` of the address space with the root register value `root`.
///
/// Ignores the no-execute bit of root entries in the user half: with page-table isolation, Linux
/// sets it there in the kernel's copy of a process's tables.
pub fn walk<M, V>(
    memory: &M,
    spec: &PagingSpec,
    root: Gpa,
    range: GvaRange,
    budget: &mut TableBudget,
    visitor: &mut V,
) -> WalkReport
where
    M: GuestMemory + ?Sized,
    V: Visitor,
{
    let mut walker = Walker { memory, spec, range, budget, visitor, report: WalkReport::default() };
    walker.table(Gpa(root.0 & spec.root_mask), spec.levels, 0, Rights::ALL);
    walker.report
}

struct Walker<'a, M: ?Sized, V> {
    memory: &'a M,
    spec: &'a PagingSpec,
    range: GvaRange,
    budget: &'a mut TableBudget,
    visitor: &'a mut V,
    report: WalkReport,
}

impl<M: GuestMemory + ?Sized, V: Visitor> Walker<'_, M, V> {
    /// Walks one table. `base` holds the address bits that the levels above selected, not yet
    /// sign-extended.
    fn table(&mut self, gpa: Gpa, levels: &[LevelSpec], base: u64, rights: Rights) {
        let Some((level, below)) = levels.split_first() else { return };
        if self.visitor.has_enough() || !self.budget.consume() {
            self.report.cut = true;
            return;
        }
        let bytes = self.spec.table_bytes(level).min(FRAME_BYTES);
        let memory = self.memory;
        let mut copy = [0; FRAME_BYTES];
        let table = match memory.slice(gpa, bytes) {
            Some(table) => table,
            None => {
                let copy = copy.get_mut(..bytes).unwrap_or_default();
                if memory.read(gpa, copy).is_err() {
                    self.report.unreadable = self.report.unreadable.saturating_add(1);
                    self.report.first_unreadable.get_or_insert(gpa);
                    return;
                }
                copy
            }
        };
        self.report.tables = self.report.tables.saturating_add(1);
        let depth = self.spec.levels.len().saturating_sub(levels.len());
        self.visitor.table(gpa, depth, self.spec.canonical(base));
        for (index, entry) in self.spec.entries(table) {
            if entry == 0 {
                continue;
            }
            let base = base | index << level.shift;
            let gva = self.spec.canonical(base);
            let last = gva.0 | level.offset_mask();
            if last < self.range.first.0 || gva > self.range.last {
                continue;
            }
            if entry & PagingSpec::PRESENT == 0 {
                self.visitor.not_present(entry, depth, gva);
                continue;
            }
            let rights = rights.and(self.entry_rights(entry, level, depth == 0, gva));
            if PagingSpec::is_leaf(entry, level, below.is_empty()) {
                self.visitor.leaf(&Leaf {
                    gva,
                    gpa: self.spec.leaf_address(entry, level),
                    bytes: 1 << level.shift,
                    rights,
                    accessed: entry & PagingSpec::ACCESSED != 0,
                    dirty: entry & PagingSpec::DIRTY != 0,
                });
            } else {
                self.table(Gpa(entry & self.spec.address_mask), below, base, rights);
                if self.report.cut {
                    return;
                }
            }
        }
    }

    fn entry_rights(&self, entry: u64, level: &LevelSpec, is_root: bool, gva: Gva) -> Rights {
        if !level.has_rights {
            return Rights::ALL;
        }
        // With page-table isolation, Linux sets no-execute in the user-half root entries of the
        // kernel's tables as a safeguard. The bit does not apply to the pages below.
        let is_isolation = is_root && gva <= GvaRange::user_half(self.spec).last;
        let no_execute = self.spec.no_execute.filter(|_| !is_isolation).unwrap_or(0);
        Rights {
            user: entry & PagingSpec::USER != 0,
            write: entry & PagingSpec::WRITABLE != 0,
            execute: entry & no_execute == 0,
        }
    }
}
