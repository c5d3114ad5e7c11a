//! ELF core dumps of a machine: QEMU's `dump-guest-memory`, `virsh dump --memory-only`, the
//! kernel's `/proc/vmcore`, and what `makedumpfile -E` makes of it.
//!
//! Memory that a dump describes without holding it (`p_memsz` beyond `p_filesz`) is missing, not
//! zero: makedumpfile leaves out pages by content. QEMU's dumps also describe firmware and video
//! memory; these frames count as RAM here. A dump made with `paging=true` describes what the guest
//! has mapped: RAM that is not mapped is absent from it, and mapped holes may count as RAM.

mod build_id;
mod error;
mod fields;
mod header;
mod loads;
mod notes;
mod skipped;
mod vcpu_note;

pub(crate) use build_id::{build_id, note_segments};
pub use error::ElfError;
pub use skipped::{Skipped, SkippedPart};

use super::segments::SegmentTable;
use super::source::Source;
use crate::addr::Gpa;
use crate::registers::VcpuRegisters;
use header::{ET_CORE, Header, PT_LOAD, PT_NOTE};
use loads::Loads;
use notes::Notes;
use skipped::SkipList;

/// What an ELF dump describes.
#[derive(Clone, Debug)]
pub struct ElfCore {
    pub(super) segments: SegmentTable,
    /// First address and size of each run of RAM, by ascending address, in whole frames and
    /// disjoint.
    pub ram: Vec<(Gpa, u64)>,
    /// The vCPUs, numbered in the order of their notes. Control registers are there if QEMU wrote
    /// the dump.
    pub vcpus: Vec<VcpuRegisters>,
    /// The first VMCOREINFO note's text, of at most 64 KiB.
    pub vmcoreinfo: Option<Vec<u8>>,
    /// What was passed over, for people: parts that the memory can be read without.
    pub skipped: Vec<Skipped>,
}

/// Whether a file starts as an ELF file does.
#[must_use]
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

/// Reads the headers and notes of an ELF dump. Memory itself is read only where two segments
/// describe it.
///
/// Parts that need not be understood are passed over: segments without a physical address, and
/// notes that are damaged or of an unknown size. [`ElfCore::skipped`] tells of them.
///
/// # Errors
/// [`ElfError`] when the file is no dump of an x86 machine, is cut, or contradicts itself.
pub fn parse(file: &[u8]) -> Result<ElfCore, ElfError> {
    parse_source(file)
}

/// As [`parse`], of bytes that may have to be read.
pub(super) fn parse_source<S: Source + ?Sized>(file: &S) -> Result<ElfCore, ElfError> {
    let header = Header::parse(file, &[ET_CORE])?;
    let mut loads = Loads::default();
    let mut notes = Notes::default();
    let mut skipped = SkipList::default();
    for program_header in header.program_headers() {
        match program_header.kind {
            PT_LOAD => loads.add(file.len(), &program_header, &mut skipped)?,
            PT_NOTE => notes.add(file, &program_header, header.long_mode, &mut skipped)?,
            _ => {}
        }
    }
    let memory = loads.finish(file, &skipped)?;
    let vmcoreinfo = notes.vmcoreinfo.take();
    Ok(ElfCore {
        segments: memory.held,
        ram: memory.ram,
        vcpus: notes.into_vcpus(),
        vmcoreinfo,
        skipped: skipped.into_list(),
    })
}

#[cfg(test)]
mod tests;
