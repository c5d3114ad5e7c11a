//! PT_LOAD segments: which memory there is, and which of it the file holds.
//!
//! Dumps describe the same memory more than once: the kernel's own dump has its image in the direct map and again at
//! its link address, with a second copy in the file; QEMU with `paging=true` has one segment a virtual mapping. Both are
//! accepted where the copies agree.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ElfError;
use super::fields::bytes_at;
use super::header::ProgramHeader;
use crate::addr::{FRAME_SIZE, GPA_LIMIT, Gpa};
use crate::image::Segment;
use crate::image::segments::SegmentTable;

/// Segments as they are found.
#[derive(Default)]
pub(super) struct Loads {
    /// What the file holds, in the order of the program headers; it may overlap.
    held: Vec<Segment>,
    /// All memory as `start..end`; it may overlap.
    memory: Vec<(u64, u64)>,
}

/// Segments after overlaps are resolved, by ascending address.
pub(super) struct Memory {
    pub(super) held: SegmentTable,
    /// First address and size of each run of RAM, in whole frames: one that a segment covers in part is RAM.
    pub(super) ram: Vec<(Gpa, u64)>,
}

impl Loads {
    pub(super) fn add(&mut self, file: &[u8], load: &ProgramHeader) -> Result<(), ElfError> {
        let ProgramHeader { number: header, paddr, filesz, memsz, .. } = *load;
        // QEMU describes mappings of device memory so: they have no bytes, and are no RAM.
        if memsz == 0 || (filesz == 0 && load.offset.is_none()) {
            return Ok(());
        }
        if filesz > memsz {
            return Err(ElfError::FileLarger { header, file: filesz, memory: memsz });
        }
        let end = paddr.checked_add(memsz).filter(|&end| end <= GPA_LIMIT);
        let end = end.ok_or(ElfError::OutOfRange { header, gpa: Gpa(paddr), bytes: memsz })?;
        self.memory.push((paddr, end));
        if filesz > 0 {
            let (file_offset, _) = load.contents(file)?;
            self.held.push(Segment { gpa: Gpa(paddr), bytes: filesz, file_offset });
        }
        Ok(())
    }

    pub(super) fn finish(self, file: &[u8]) -> Result<Memory, ElfError> {
        let ram = union_of_frames(self.memory);
        if ram.is_empty() {
            return Err(ElfError::NoMemory);
        }
        Ok(Memory { held: resolve_overlaps(file, self.held)?, ram })
    }
}

/// The frames that ranges touch, as disjoint runs.
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

/// Makes segments disjoint. Where they overlap, their bytes must be the same.
fn resolve_overlaps(file: &[u8], mut held: Vec<Segment>) -> Result<SegmentTable, ElfError> {
    held.sort_unstable_by_key(|s| (s.gpa, s.file_offset));
    let mut table = SegmentTable::default();
    let mut covered_to = 0u64;
    // Every copy takes place in the file, so comparing more than the file has is never needed.
    let mut budget = file.len() as u64;
    for segment in held {
        // Segments come by ascending address, so that whatever lies below `covered_to` is in the table.
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

/// Fails unless the table has the same bytes as `again`. Takes what it compares off the budget.
fn compare(
    file: &[u8],
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
        let same_place = first.start as u64 == file_offset;
        let cost = if same_place { 1 } else { len };
        *budget = budget.checked_sub(cost).ok_or(ElfError::TooMuchOverlap { gpa })?;
        if !same_place && file.get(first) != bytes_at(file, file_offset, len) {
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
