//! The memory files of a clone, which its VMM maps.

use super::guest_ram::{GuestRam, RamSlot};
use crate::error::{Asked, Error};
use crate::memory::MemoryFile;
use crate::sys::{Mapping, Sharing};
use crate::uffd::{FilePart, UserfaultMemory};
use kaleidoscope_core::addr::{FRAME_SIZE, Gpa};
use kaleidoscope_core::memory::MemoryLayout;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A file for each memory slot, without any pages yet. This process touches no page of them: pages
/// are added by userfaultfd, each as a whole and once, so that a page that the guest has written is
/// never overwritten. The VMM cannot change the size of a file.
#[derive(Debug)]
pub(super) struct MemoryFiles {
    /// By ascending guest-physical address.
    all: Vec<SlotFile>,
}

#[derive(Debug)]
struct SlotFile {
    slot: RamSlot,
    frames: Range<u32>,
    file: MemoryFile,
}

impl MemoryFiles {
    /// Files for the RAM of a layout, and the memory that fills them.
    pub(super) fn new(
        ram: &GuestRam,
        layout: &MemoryLayout,
    ) -> Result<(Self, UserfaultMemory), Error> {
        let (mut all, mut parts) = (Vec::new(), Vec::new());
        for (slot, frames) in ram.slots().iter().zip(ram.frames_of(layout)?) {
            let end = slot.file_offset.saturating_add(slot.bytes);
            let file = MemoryFile::new(usize::try_from(end).unwrap_or(usize::MAX))?;
            let mapping = Mapping::of_file(file.as_fd(), file.len(), Sharing::Shared);
            let mapping = Arc::new(mapping.asked("mapping a clone's memory file")?);
            parts.push(FilePart { mapping, start: slot.file_offset, frames: frames.clone() });
            all.push(SlotFile { slot: *slot, frames, file });
        }
        Ok((Self { all }, UserfaultMemory::of_files(parts)?))
    }

    /// The number and the file of each slot.
    pub(super) fn slots(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.all.iter().map(|file| (file.slot.slot, file.file.as_fd()))
    }

    /// Number of frames.
    pub(super) fn frames(&self) -> u32 {
        self.all.iter().map(|file| file.frames.end).max().unwrap_or(0)
    }

    fn of(&self, gpa: Gpa, length: u64) -> Option<(&SlotFile, u64)> {
        let at = self.all.partition_point(|file| file.slot.gpa <= gpa);
        let file = self.all.get(at.checked_sub(1)?)?;
        let offset = gpa.0.checked_sub(file.slot.gpa.0)?;
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= file.slot.bytes);
        is_inside.then_some((file, offset))
    }

    /// The frames at an address, which lie in one slot. All numbers are of whole frames.
    pub(super) fn frames_at(&self, gpa: Gpa, length: u64) -> Option<Range<u32>> {
        let (file, offset) = self.of(gpa, length)?;
        let frame = |bytes: u64| u32::try_from(bytes / FRAME_SIZE).ok();
        let start = file.frames.start.checked_add(frame(offset)?)?;
        Some(start..start.checked_add(frame(length)?)?)
    }

    /// Copies memory that is resident.
    pub(super) fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Error> {
        let found = self.of(gpa, bytes.len() as u64);
        let (file, offset) =
            found.ok_or_else(|| Error::input(format!("the guest has no RAM at {gpa}")))?;
        let offset = file.slot.file_offset.saturating_add(offset);
        file.file.read(usize::try_from(offset).unwrap_or(usize::MAX), bytes)
    }
}
