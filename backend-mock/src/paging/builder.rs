//! Writes page tables into guest memory, and records every mapping.

use super::mode::{A, D, G, LARGE_PAT, NX, P, PS, RW, US};
use super::{Attributes, Mode, PageSize, Rights};
use crate::ram::{read_u32, read_u64, write_uint};
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::memory::VecMemory;
use std::collections::BTreeMap;

/// Allocates frames for page tables.
pub trait FrameSource {
    /// Allocates a zeroed frame for a table of this level; `None` when there are none left.
    fn table_frame(&mut self, level: u8) -> Option<Gfn>;
}

/// Allocates the frames of a range in ascending order.
#[derive(Clone, Debug)]
pub struct FrameRange {
    next: u64,
    end: u64,
}

impl FrameRange {
    /// The `count` frames starting at `first`.
    #[must_use]
    pub fn new(first: Gfn, count: u64) -> Self {
        Self { next: first.0, end: first.0 + count }
    }
}

impl FrameSource for FrameRange {
    fn table_frame(&mut self, _level: u8) -> Option<Gfn> {
        (self.next < self.end).then(|| {
            self.next += 1;
            Gfn(self.next - 1)
        })
    }
}

/// One mapped page, as requested.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafTruth {
    /// First virtual address.
    pub gva: Gva,
    /// First physical address.
    pub gpa: Gpa,
    /// Size of the page.
    pub size: PageSize,
    /// Effective rights: the AND over all levels.
    pub rights: Rights,
    /// The accessed bit.
    pub accessed: bool,
    /// The dirty bit.
    pub dirty: bool,
}

/// A frame that holds a table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableFrame {
    /// Level of the table; the root has the highest.
    pub level: u8,
    /// The frame.
    pub gfn: Gfn,
}

#[derive(Clone, Copy, Debug)]
/// A table below the root.
struct Table {
    gfn: Gfn,
    rights: Rights,
}

/// A set of page tables under construction, and the truth about it.
#[derive(Clone, Debug)]
pub struct PageTables {
    mode: Mode,
    root: Gpa,
    /// Tables below the root, by level and first virtual address, with the rights of the entry
    /// that points to them.
    tables: BTreeMap<(u8, u64), Table>,
    leaves: BTreeMap<u64, (Gpa, PageSize, Attributes)>,
    noise: Option<Rng>,
}

impl PageTables {
    /// Empty tables whose root lies at `root`: zeroed memory, aligned to 4 KiB (32 bytes for PAE).
    #[must_use]
    pub fn new(mode: Mode, root: Gpa) -> Self {
        Self { mode, root, tables: BTreeMap::new(), leaves: BTreeMap::new(), noise: None }
    }

    /// From now on, sets bits that the processor ignores (software bits, protection keys, PAT) at
    /// random in written entries.
    #[must_use]
    pub fn with_noise(mut self, rng: Rng) -> Self {
        self.noise = Some(rng);
        self
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Address of the root table, as in CR3.
    #[must_use]
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// Maps one page. Missing tables are added; the entries that point to them grant the user right
    /// of `attributes`, and write and execute rights.
    ///
    /// # Errors
    /// [`MockError`] when the mode cannot express the mapping, the address is mapped already, or no
    /// frames are left.
    pub fn map(
        &mut self,
        memory: &mut VecMemory,
        frames: &mut dyn FrameSource,
        (gva, gpa): (Gva, Gpa),
        size: PageSize,
        attributes: Attributes,
    ) -> Result<(), MockError> {
        let upper = Rights { user: attributes.rights.user, ..Rights::ALL };
        self.map_under(memory, frames, (gva, gpa), size, attributes, upper)
    }

    /// Like [`map`](Self::map), with explicit rights for the entries that point to new tables.
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn map_under(
        &mut self,
        memory: &mut VecMemory,
        frames: &mut dyn FrameSource,
        (gva, gpa): (Gva, Gpa),
        size: PageSize,
        attributes: Attributes,
        upper: Rights,
    ) -> Result<(), MockError> {
        let bytes = size.bytes();
        let bad = || MockError::Unmappable { gva, gpa, bytes };
        let leaf_level = self.mode.leaf_level(size).ok_or_else(bad)?;
        let aligned = gva.0 % bytes == 0 && gpa.0 % bytes == 0;
        if !aligned || !self.mode.names(gva) || gpa.0 >= self.mode.physical_limit(size) {
            return Err(bad());
        }
        let mut table = self.root;
        for level in (leaf_level + 1..=self.mode.levels()).rev() {
            if level <= 3 && self.covered(gva, level) {
                return Err(MockError::Mapped { gva });
            }
            table = self.descend(memory, frames, table, gva, level, upper)?;
        }
        let slot = self.slot(table, gva, leaf_level);
        if self.read(memory, slot)? & P != 0 {
            return Err(MockError::Mapped { gva });
        }
        let entry = self.leaf_entry(gpa, size, attributes);
        self.write(memory, slot, entry)?;
        self.leaves.insert(gva.0, (gpa, size, attributes));
        Ok(())
    }

    /// Restricts the rights of the entry that points to the table of `level` covering `gva`. The
    /// root has no such entry. Does nothing if there is no such table.
    ///
    /// # Errors
    /// [`MockError::Memory`] when the tables are no longer in RAM.
    pub fn restrict(
        &mut self,
        memory: &mut VecMemory,
        gva: Gva,
        level: u8,
        rights: Rights,
    ) -> Result<(), MockError> {
        let parent = self.table_of(gva, level + 1);
        let key = (level, self.base(gva, level + 1));
        let Some((parent, table)) = parent.zip(self.tables.get_mut(&key)) else {
            return Ok(());
        };
        table.rights = table.rights.and(rights);
        let entry = Self::table_entry(self.mode, level + 1, *table);
        let slot = self.slot(parent, gva, level + 1);
        self.write(memory, slot, entry)
    }

    /// Copies the upper half of another root, as Linux shares the kernel's half among all
    /// processes. [`leaves`](Self::leaves) does not include the mappings reached that way; those of
    /// `from` does.
    ///
    /// # Errors
    /// [`MockError::Memory`] when a root is not in RAM.
    pub fn share_upper_half(
        &mut self,
        memory: &mut VecMemory,
        from: &Self,
    ) -> Result<(), MockError> {
        let half = self.mode.entries(self.mode.levels()) / 2;
        for index in half..2 * half {
            let offset = index * self.mode.entry_bytes();
            let entry = self.read(memory, Gpa(from.root.0 + offset))?;
            self.write(memory, Gpa(self.root.0 + offset), entry)?;
        }
        Ok(())
    }

    /// Copies the lower half of the root to `second`, and sets NX in the original's entries, as
    /// Linux does for page-table isolation. The recorded rights do not change: user mode runs on
    /// `second`.
    ///
    /// # Errors
    /// [`MockError::Memory`] when a root is not in RAM.
    pub fn isolate_lower_half(
        &mut self,
        memory: &mut VecMemory,
        second: Gpa,
    ) -> Result<(), MockError> {
        let half = self.mode.entries(self.mode.levels()) / 2;
        for index in 0..half {
            let offset = index * self.mode.entry_bytes();
            let entry = self.read(memory, Gpa(self.root.0 + offset))?;
            if entry & P != 0 {
                self.write(memory, Gpa(second.0 + offset), entry)?;
                self.write(memory, Gpa(self.root.0 + offset), entry | NX)?;
            }
        }
        Ok(())
    }

    /// All mapped pages, by ascending virtual address.
    pub fn leaves(&self) -> impl Iterator<Item = LeafTruth> + '_ {
        self.leaves.iter().map(|(&gva, &(gpa, size, attributes))| {
            let gva = Gva(gva);
            let mut rights = self.entry_rights(attributes.rights);
            let leaf_level = self.mode.leaf_level(size).unwrap_or(1);
            for level in leaf_level..self.mode.levels() {
                let table = self.tables.get(&(level, self.base(gva, level + 1)));
                if let Some(table) = table.filter(|_| self.mode.has_rights(level + 1)) {
                    rights = rights.and(self.entry_rights(table.rights));
                }
            }
            let Attributes { accessed, dirty, .. } = attributes;
            LeafTruth { gva, gpa, size, rights, accessed, dirty }
        })
    }

    /// All frames that hold a table, including the root, sorted by level and frame.
    #[must_use]
    pub fn table_frames(&self) -> Vec<TableFrame> {
        let below = self.tables.iter().map(|(&(level, _), t)| TableFrame { level, gfn: t.gfn });
        let root = TableFrame { level: self.mode.levels(), gfn: self.root.gfn() };
        let mut frames: Vec<_> = below.chain([root]).collect();
        frames.sort_unstable();
        frames
    }

    /// First address covered by the entry of `level` that covers `gva`.
    fn base(&self, gva: Gva, level: u8) -> u64 {
        gva.0 & !(self.mode.coverage(level) - 1)
    }

    fn table_of(&self, gva: Gva, level: u8) -> Option<Gpa> {
        if level == self.mode.levels() {
            return Some(self.root);
        }
        self.tables.get(&(level, self.base(gva, level + 1))).map(|t| t.gfn.gpa())
    }

    /// Whether an entry of `level` maps a large page over `gva`.
    fn covered(&self, gva: Gva, level: u8) -> bool {
        let base = self.base(gva, level);
        let is_large =
            |&(_, size, _): &(Gpa, PageSize, Attributes)| size.bytes() == self.mode.coverage(level);
        self.leaves.get(&base).is_some_and(is_large)
    }

    /// The table below `level` that covers `gva`; adds it if missing.
    fn descend(
        &mut self,
        memory: &mut VecMemory,
        frames: &mut dyn FrameSource,
        table: Gpa,
        gva: Gva,
        level: u8,
        rights: Rights,
    ) -> Result<Gpa, MockError> {
        let key = (level - 1, self.base(gva, level));
        if let Some(below) = self.tables.get(&key) {
            return Ok(below.gfn.gpa());
        }
        let gfn = frames.table_frame(level - 1).ok_or(MockError::OutOfFrames { order: 0 })?;
        let below = Table { gfn, rights };
        let slot = self.slot(table, gva, level);
        let noise = self.noise_bits(level, false);
        self.write(memory, slot, Self::table_entry(self.mode, level, below) | noise)?;
        self.tables.insert(key, below);
        Ok(gfn.gpa())
    }

    fn slot(&self, table: Gpa, gva: Gva, level: u8) -> Gpa {
        Gpa(table.0 + self.mode.index(gva, level) * self.mode.entry_bytes())
    }

    /// The rights as far as entries of this mode can express them.
    fn entry_rights(&self, rights: Rights) -> Rights {
        Rights { exec: rights.exec || !self.mode.has_nx(), ..rights }
    }

    fn rights_bits(mode: Mode, rights: Rights) -> u64 {
        let nx = !rights.exec && mode.has_nx();
        [(rights.write, RW), (rights.user, US), (nx, NX)].iter().filter(|b| b.0).map(|b| b.1).sum()
    }

    /// The entry of `level` that points to `table`.
    fn table_entry(mode: Mode, level: u8, table: Table) -> u64 {
        let flags =
            if mode.has_rights(level) { Self::rights_bits(mode, table.rights) | A } else { 0 };
        table.gfn.gpa().0 | P | flags
    }

    fn leaf_entry(&mut self, gpa: Gpa, size: PageSize, attributes: Attributes) -> u64 {
        let large = size != PageSize::Small;
        let bits =
            [(attributes.accessed, A), (attributes.dirty, D), (attributes.global, G), (large, PS)];
        let flags: u64 = bits.iter().filter(|b| b.0).map(|b| b.1).sum();
        let address = match size {
            // PSE-36: bits 13 to 20 of the entry hold bits 32 to 39 of the address.
            PageSize::Mega4 => (gpa.0 & 0xffc0_0000) | (gpa.0 >> 32 << 13),
            PageSize::Small | PageSize::Mega2 | PageSize::Giga => gpa.0,
        };
        let level = self.mode.leaf_level(size).unwrap_or(1);
        address
            | P
            | flags
            | Self::rights_bits(self.mode, attributes.rights)
            | self.noise_bits(level, large)
    }

    /// Random values in bits that the processor ignores: software bits, and in long mode the
    /// protection key.
    fn noise_bits(&mut self, level: u8, large: bool) -> u64 {
        let (mode, Some(rng)) = (self.mode, self.noise.as_mut()) else {
            return 0;
        };
        let mut ignored = 0b111 << 9;
        match mode {
            Mode::FourLevel | Mode::FiveLevel => ignored |= 0x7ff << 52,
            Mode::Pae | Mode::Bits32 => {}
        }
        if large {
            ignored |= LARGE_PAT;
        }
        if level == 1 {
            // The PAT bit of a 4 KiB entry is where larger entries have their page-size bit.
            ignored |= PS;
        }
        rng.next_u64() & ignored
    }

    fn read(&self, memory: &VecMemory, slot: Gpa) -> Result<u64, MockError> {
        if self.mode == Mode::Bits32 {
            read_u32(memory, slot).map(u64::from)
        } else {
            read_u64(memory, slot)
        }
    }

    fn write(&self, memory: &mut VecMemory, slot: Gpa, entry: u64) -> Result<(), MockError> {
        let size = if self.mode == Mode::Bits32 { 4 } else { 8 };
        write_uint(memory, slot, size, entry)
    }
}
