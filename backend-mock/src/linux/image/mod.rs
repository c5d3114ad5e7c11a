//! The kernel image: its sections, what they contain, and the symbols.

pub(super) mod btf;
pub(super) mod content;
pub(super) mod kallsyms;
pub(super) mod vmcoreinfo;

use crate::MockError;
use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kallsyms::Symbol;
use std::collections::BTreeMap;
use std::ops::Range;

/// Where x86-64 Linux maps its image before the random offset (`__START_KERNEL_map`).
pub(super) const IMAGE_MAP: u64 = 0xffff_ffff_8000_0000;

/// Where the image begins without the random offset (`__START_KERNEL`).
pub(super) const IMAGE_START: u64 = 0xffff_ffff_8100_0000;

/// Bytes of a large page; sections begin at multiples of it.
pub(super) const LARGE: u64 = 2 << 20;

/// A part of the image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Section {
    /// Code.
    Text,
    /// Read-only data.
    Rodata,
    /// Writable data with initial values.
    Data,
    /// Boot code and data; freed after boot.
    Init,
    /// Writable data that starts as zero, and the early heap.
    Bss,
}

/// The image and its symbols.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// Address of the first byte.
    pub(super) gva: Gva,
    pub(super) gpa: Gpa,
    /// Sections as offsets from the image's first byte, ends rounded up to frames.
    sections: BTreeMap<Section, Range<u64>>,
    cursors: BTreeMap<Section, u64>,
    pub(super) symbols: Vec<Symbol>,
}

impl Image {
    /// An image with sections of these sizes, in bytes. Text, rodata and data begin at large pages.
    pub(super) fn new(gva: Gva, gpa: Gpa, sizes: &[(Section, u64)]) -> Self {
        let mut at = 0u64;
        let mut sections = BTreeMap::new();
        for &(section, bytes) in sizes {
            at = match section {
                Section::Text | Section::Rodata | Section::Data => at.next_multiple_of(LARGE),
                Section::Init | Section::Bss => at,
            };
            let end = (at + bytes).next_multiple_of(0x1000);
            sections.insert(section, at..end);
            at = end;
        }
        let cursors = sections.iter().map(|(&s, r)| (s, r.start)).collect();
        Self { gva, gpa, sections, cursors, symbols: Vec::new() }
    }

    /// A section as offsets from the image's first byte.
    pub(super) fn section(&self, section: Section) -> Range<u64> {
        self.sections.get(&section).cloned().unwrap_or_default()
    }

    /// A section's addresses.
    pub(super) fn addresses(&self, section: Section) -> Range<Gva> {
        let Range { start, end } = self.section(section);
        Gva(self.gva.0 + start)..Gva(self.gva.0 + end)
    }

    /// A section's frames.
    pub(super) fn frames(&self, section: Section) -> impl Iterator<Item = Gfn> + use<> {
        let Range { start, end } = self.section(section);
        let first = self.gpa.gfn().0;
        (first + start / 0x1000..first + end / 0x1000).map(Gfn)
    }

    /// Bytes from the start of the first section to the end of the last.
    pub(super) fn bytes(&self) -> u64 {
        self.sections.values().map(|r| r.end).max().unwrap_or(0)
    }

    /// Virtual minus physical address.
    pub(super) fn offset(&self) -> u64 {
        self.gva.0.wrapping_sub(self.gpa.0)
    }

    /// The physical address of a virtual one, if it is in the image.
    pub(super) fn physical(&self, gva: u64) -> Option<Gpa> {
        let distance = gva.checked_sub(self.gva.0).filter(|&d| d < self.bytes())?;
        Some(Gpa(self.gpa.0 + distance))
    }

    /// Reserves space in a section, and adds a symbol for its first byte unless the name is empty.
    pub(super) fn place(
        &mut self,
        section: Section,
        name: &str,
        bytes: u64,
        align: u64,
    ) -> Result<Gva, MockError> {
        let range = self.section(section);
        let too_large =
            MockError::TooLarge { what: "the kernel image", bytes: range.end - range.start };
        let cursor = self.cursors.get_mut(&section).ok_or(MockError::Knobs("no such section"))?;
        let at = cursor.next_multiple_of(align);
        if at + bytes > range.end {
            return Err(too_large);
        }
        *cursor = at + bytes;
        let gva = Gva(self.gva.0 + at);
        if !name.is_empty() {
            let kind = match section {
                Section::Text => 'T',
                Section::Rodata => 'R',
                Section::Data => 'D',
                Section::Init => 't',
                Section::Bss => 'B',
            };
            self.name(name, kind, gva.0);
        }
        Ok(gva)
    }

    /// Whether the part of the image `distance` bytes after its start is freed after boot.
    pub(super) fn is_freed(&self, distance: u64) -> bool {
        let kept = self.sections.iter().filter(|(s, _)| **s != Section::Init);
        distance < self.bytes() && !kept.into_iter().any(|(_, r)| r.contains(&distance))
    }

    /// Bytes left in a section.
    pub(super) fn room(&self, section: Section) -> u64 {
        self.section(section).end - self.cursors.get(&section).copied().unwrap_or(0)
    }

    /// Adds a symbol.
    pub(super) fn name(&mut self, name: &str, kind: char, address: u64) {
        self.symbols.push(Symbol { address, kind, name: name.to_owned() });
    }

    /// The address of a symbol.
    pub(super) fn symbol(&self, name: &str) -> Result<Gva, MockError> {
        let found = self.symbols.iter().find(|s| s.name == name);
        found.map(|s| Gva(s.address)).ok_or_else(|| MockError::NoSuchType { name: name.to_owned() })
    }
}
