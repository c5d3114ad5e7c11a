//! The layout of guest RAM: parses QEMU's `info mtree -f`, and writes the lab's `layout.txt`.
//!
//! The flat view of the address space "memory" lists what the guest sees at each address, with one
//! line per range: `START-END (prio N, KIND): NAME @OFFSET`. END is inclusive. OFFSET (omitted when
//! zero) is in the memory region NAME, which is the RAM file. Below 1 MiB the chipset may map parts
//! of the file read-only (shadowed ROM) or not at all. RAM that does not fit below the PCI hole is
//! mapped from 4 GiB on.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::{self, Display};

use super::error::{Error, Result};

/// A range of RAM that is contiguous both in guest-physical addresses and in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Byte offset in the RAM file.
    pub(crate) file_offset: u64,
    /// First guest-physical address.
    pub(crate) gpa: u64,
    /// Length in bytes.
    pub(crate) size: u64,
}

/// The RAM regions in order of address, with notes on where the guest sees something else or
/// cannot write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// RAM regions.
    pub(crate) regions: Vec<Region>,
    notes: Vec<String>,
}

struct Range {
    gpa: u64,
    /// Exclusive.
    end: u64,
    file_offset: u64,
    read_only: bool,
}

impl Layout {
    /// Parses the output of `info mtree -f` for the ranges of the memory region named `backend`,
    /// which has `length` bytes.
    ///
    /// # Errors
    /// If a range of that region cannot be understood, ranges overlap, or the regions do not
    /// cover the whole file exactly once.
    pub(crate) fn from_mtree(text: &str, backend: &str, length: u64) -> Result<Self> {
        let mut ranges = Vec::new();
        for line in system_view(text) {
            if let Some(range) = parse_range(line, backend)? {
                ranges.push(range);
            }
        }
        ranges.sort_by_key(|range| range.gpa);
        let layout = Self::merge(&ranges)?;
        let covered = layout.regions.iter().try_fold(0u64, |sum, r| sum.checked_add(r.size));
        if covered == Some(length) {
            return Ok(layout);
        }
        Err(Error::Layout(format!(
            "the ranges of {backend} cover {covered:?} of its {length} bytes"
        )))
    }

    /// Joins ranges with equal differences between address and file offset. A gap between two
    /// joined ranges is part of the file, but the guest does not see it as RAM.
    fn merge(ranges: &[Range]) -> Result<Self> {
        let mut layout = Self::default();
        let mut end = 0;
        for range in ranges {
            if range.gpa < end {
                return Err(Error::Layout(format!("ranges overlap at {:#x}", range.gpa)));
            }
            let distance = range.gpa.wrapping_sub(range.file_offset);
            let previous = layout
                .regions
                .last_mut()
                .filter(|region| region.gpa.wrapping_sub(region.file_offset) == distance);
            match previous {
                Some(region) => {
                    if range.gpa > end {
                        layout.notes.push(format!("{end:#x}-{:#x} not RAM", last(range.gpa)));
                    }
                    region.size = range.end.saturating_sub(region.gpa);
                }
                None => layout.regions.push(Region {
                    file_offset: range.file_offset,
                    gpa: range.gpa,
                    size: range.end.saturating_sub(range.gpa),
                }),
            }
            if range.read_only {
                let note = format!("{:#x}-{:#x} read-only shadow", range.gpa, last(range.end));
                layout.notes.push(note);
            }
            end = range.end;
        }
        Ok(layout)
    }
}

/// The inclusive end of a range.
fn last(exclusive: u64) -> u64 {
    exclusive.saturating_sub(1)
}

/// The lines of the flat view of the address space "memory".
fn system_view(text: &str) -> impl Iterator<Item = &str> {
    let mut wanted = false;
    text.lines().filter(move |line| {
        if line.starts_with("FlatView") {
            wanted = false;
        } else if line.trim_start().starts_with("AS \"memory\"") {
            wanted = true;
        }
        wanted
    })
}

fn parse_range(line: &str, backend: &str) -> Result<Option<Range>> {
    // START-END (prio N, KIND): NAME [@OFFSET] [more words]
    let Some((head, tail)) = line.split_once("): ") else { return Ok(None) };
    let mut words = tail.split_whitespace();
    if words.next() != Some(backend) {
        return Ok(None);
    }
    let bad = || Error::Layout(format!("cannot read the range {line:?}"));
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let (range, kind) = head.split_once('(').ok_or_else(bad)?;
    let (start, end) = range.trim().split_once('-').ok_or_else(bad)?;
    let gpa = hex(start).ok_or_else(bad)?;
    let end = hex(end).and_then(|end| end.checked_add(1)).ok_or_else(bad)?;
    let offset = words.find_map(|word| word.strip_prefix('@'));
    let file_offset = offset.map_or(Some(0), hex).ok_or_else(bad)?;
    let size = end.checked_sub(gpa).ok_or_else(bad)?;
    file_offset.checked_add(size).ok_or_else(bad)?;
    let read_only = kind.ends_with("rom");
    Ok(Some(Range { gpa, end, file_offset, read_only }))
}

/// `layout.txt`: hexadecimal file offset, address and size, a line per region; then notes.
impl Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# file_offset gpa size")?;
        for Region { file_offset, gpa, size } in &self.regions {
            writeln!(f, "{file_offset:#x} {gpa:#x} {size:#x}")?;
        }
        for note in &self.notes {
            writeln!(f, "# {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "\
FlatView #1
 AS \"cpu-smm-0\", root: memory
  0000000000000000-000000001fffffff (prio 0, ram): guest-ram
FlatView #2
 AS \"memory\", root: system
 AS \"cpu-memory-0\", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): guest-ram
  00000000000a0000-00000000000bffff (prio 2, ram): vga.vram
  00000000000c0000-00000000000c2fff (prio 0, ram): guest-ram @00000000000c0000
  00000000000c3000-00000000000fffff (prio 0, rom): guest-ram @00000000000c3000
  0000000000100000-000000001fffffff (prio 0, ram): guest-ram @0000000000100000
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios

";

    const LARGE: &str = "\
FlatView #0
 AS \"memory\", root: system
  0000000000000000-00000000bfffffff (prio 0, ram): guest-ram KVM
  0000000100000000-000000015fffffff (prio 0, ram): guest-ram @00000000c0000000 KVM
";

    #[test]
    fn a_small_guest_is_one_region_with_notes() {
        let layout = Layout::from_mtree(SMALL, "guest-ram", 512 << 20).unwrap();
        assert_eq!(
            layout.to_string(),
            "# file_offset gpa size\n0x0 0x0 0x20000000\n\
             # 0xa0000-0xbffff not RAM\n# 0xc3000-0xfffff read-only shadow\n"
        );
    }

    #[test]
    fn ram_past_the_pci_hole_is_its_own_region() {
        let layout = Layout::from_mtree(LARGE, "guest-ram", 0x1_2000_0000).unwrap();
        let expected = [
            Region { file_offset: 0, gpa: 0, size: 0xc000_0000 },
            Region { file_offset: 0xc000_0000, gpa: 1 << 32, size: 0x6000_0000 },
        ];
        assert_eq!(layout.regions, expected);
    }

    #[test]
    fn incomplete_overlapping_and_garbled_views_are_refused() {
        let read = |text: &str| Layout::from_mtree(text, "guest-ram", 0x1_2000_0000);
        assert!(read("").is_err());
        assert!(read(&LARGE.replace("bfffffff", "afffffff")).is_err());
        assert!(read(&LARGE.replace("0000000100000000", "0000000010000000")).is_err());
        assert!(read(&LARGE.replace("@00000000c0000000", "@zz")).is_err());
        assert!(read(&LARGE.replace("000000015fffffff", "ffffffffffffffff")).is_err());
    }
}
