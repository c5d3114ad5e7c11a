//! PT_LOAD segments: which memory exists, and which of it the file holds.
//!
//! Dumps describe the same memory more than once. A kernel's own dump maps the kernel image in the
//! direct map and again at its link address, with a second copy in the file; QEMU with
//! `paging=true` writes one segment per virtual mapping. Duplicates are accepted if their bytes are
//! equal.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ElfError;
use super::header::ProgramHeader;
use super::skipped::{SkipList, SkippedPart};
use crate::addr::{FRAME_SIZE, GPA_LIMIT, Gpa};
use crate::image::Segment;
use crate::image::segments::SegmentTable;
use crate::image::source::Source;

/// Bytes compared at a time.
const COMPARE_BYTES: u64 = 1 << 20;

/// Segments in the order of the program headers.
#[derive(Default)]
pub(super) struct Loads {
    /// Segments with bytes in the file; they may overlap.
    held: Vec<Segment>,
    /// All memory as `start..end` ranges; they may overlap.
    memory: Vec<(u64, u64)>,
    /// The virtual address of the first segment.
    first_vaddr: Option<u64>,
    /// Whether a segment has another virtual address than the first one.
    has_other_vaddrs: bool,
    /// Whether a segment has a physical address other than 0.
    has_paddrs: bool,
}

/// Segments after overlaps are resolved, by ascending address.
pub(super) struct Memory {
    pub(super) held: SegmentTable,
    /// First address and size in bytes of each run of RAM, in whole frames. A frame that a segment
    /// covers in part is RAM.
    pub(super) ram: Vec<(Gpa, u64)>,
}

impl Loads {
    /// Adds a segment of a file of `file_bytes` bytes.
    pub(super) fn add(
        &mut self,
        file_bytes: u64,
        load: &ProgramHeader,
        skipped: &mut SkipList,
    ) -> Result<(), ElfError> {
        let ProgramHeader { number: header, paddr, filesz, memsz, .. } = *load;
        // QEMU writes such segments for mappings of device memory, which is not RAM.
        if memsz == 0 || (filesz == 0 && load.offset.is_none()) {
            return Ok(());
        }
        let end = paddr.checked_add(memsz).filter(|&end| load.has_paddr && end <= GPA_LIMIT);
        let Some(end) = end else {
            skipped.add(SkippedPart::Segment { header, gpa: Gpa(paddr), bytes: memsz });
            return Ok(());
        };
        if filesz > memsz {
            return Err(ElfError::FileLarger { header, file: filesz, memory: memsz });
        }
        self.has_paddrs |= paddr != 0;
        self.has_other_vaddrs |= *self.first_vaddr.get_or_insert(load.vaddr) != load.vaddr;
        self.memory.push((paddr, end));
        if filesz > 0 {
            let file_offset = load.file_range_start(file_bytes)?;
            self.held.push(Segment { gpa: Gpa(paddr), bytes: filesz, file_offset });
        }
        Ok(())
    }

    pub(super) fn finish<S>(self, file: &S, skipped: &SkipList) -> Result<Memory, ElfError>
    where
        S: Source + ?Sized,
    {
        // Only one page of a machine has physical address 0; in the core dump of a process all
        // segments have it.
        if !self.has_paddrs && self.has_other_vaddrs {
            return Err(ElfError::Process);
        }
        let ram = union_of_frames(self.memory);
        if ram.is_empty() {
            return Err(match skipped.segments() {
                0 => ElfError::NoMemory,
                segments => ElfError::NoPhysicalAddresses { segments },
            });
        }
        Ok(Memory { held: resolve_overlaps(file, self.held)?, ram })
    }
}

/// The frames that the ranges overlap, as disjoint runs.
fn union_of_frames(mut ranges: Vec<(u64, u64)>) -> Vec<(Gpa, u64)> {
    ranges.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        // Both are at most GPA_LIMIT, a multiple of the frame size.
        let start = start / FRAME_SIZE;
        let end = end.div_ceil(FRAME_SIZE);
        match runs.last_mut().filter(|(_, last)| start <= *last) {
            Some((_, last)) => *last = end.max(*last),
            None => runs.push((start, end)),
        }
    }
    let bytes = |start: u64, end: u64| end.saturating_sub(start).saturating_mul(FRAME_SIZE);
    runs.into_iter()
        .map(|(start, end)| (Gpa(start.saturating_mul(FRAME_SIZE)), bytes(start, end)))
        .collect()
}

/// Makes segments disjoint. Overlapping segments must hold equal bytes.
fn resolve_overlaps<S>(file: &S, mut held: Vec<Segment>) -> Result<SegmentTable, ElfError>
where
    S: Source + ?Sized,
{
    held.sort_unstable_by_key(|s| (s.gpa, s.file_offset));
    let mut table = SegmentTable::default();
    let mut covered_to = 0u64;
    // Every duplicate occupies bytes of the file, so a valid dump never compares more than the
    // file's length.
    let mut budget = file.len();
    for segment in held {
        // Segments are sorted by address, so everything below `covered_to` is in the table.
        let overlap = covered_to.min(segment.end()).saturating_sub(segment.gpa.0);
        compare(file, &table, Segment { bytes: overlap, ..segment }, &mut budget)?;
        table.push(Segment {
            gpa: Gpa(segment.gpa.0.saturating_add(overlap)),
            bytes: segment.bytes.saturating_sub(overlap),
            file_offset: segment.file_offset.saturating_add(overlap),
        });
        covered_to = covered_to.max(segment.end());
    }
    Ok(table)
}

/// Fails unless the table holds the same bytes as `again`. Bytes compared are subtracted from the
/// budget.
fn compare<S: Source + ?Sized>(
    file: &S,
    table: &SegmentTable,
    mut again: Segment,
    budget: &mut u64,
) -> Result<(), ElfError> {
    while again.bytes > 0 {
        let Segment { gpa, bytes, file_offset } = again;
        let first = table.locate(gpa, usize::try_from(bytes).unwrap_or(usize::MAX));
        let Some(first) = first.filter(|range| !range.is_empty()) else {
            return Err(ElfError::Conflict { gpa });
        };
        let len = first.len() as u64;
        let same_offset = first.start as u64 == file_offset;
        let cost = if same_offset { 1 } else { len };
        *budget = budget.checked_sub(cost).ok_or(ElfError::TooMuchOverlap { gpa })?;
        if !same_offset && !are_equal(file, first.start as u64, file_offset, len)? {
            return Err(ElfError::Conflict { gpa });
        }
        again = Segment {
            gpa: Gpa(gpa.0.saturating_add(len)),
            bytes: bytes.saturating_sub(len),
            file_offset: file_offset.saturating_add(len),
        };
    }
    Ok(())
}

/// Whether the file holds equal bytes at two offsets.
fn are_equal<S>(file: &S, mut one: u64, mut other: u64, len: u64) -> Result<bool, ElfError>
where
    S: Source + ?Sized,
{
    let mut left = len;
    while left > 0 {
        let now = left.min(COMPARE_BYTES);
        let (first, second) = (file.bytes_at(one, now)?, file.bytes_at(other, now)?);
        if first.is_none() || first != second {
            return Ok(false);
        }
        one = one.saturating_add(now);
        other = other.saturating_add(now);
        left = left.saturating_sub(now);
    }
    Ok(true)
}
