//! ELF core dumps of a machine, as written by QEMU's `dump-guest-memory`, `virsh dump
//! --memory-only`, the kernel's `/proc/vmcore`, and `makedumpfile -E`.
//!
//! Memory that a dump describes but does not hold (`p_memsz` beyond `p_filesz`) is missing, not
//! zero, because makedumpfile leaves out pages by content. QEMU's dumps also describe firmware and
//! video memory; these frames count as RAM here. A dump made with `paging=true` describes the
//! guest's mappings: unmapped RAM is absent from it, and mapped holes may count as RAM.
//!
//! # Why not the `object` crate
//! `object` returns references into a source that outlives them, and bounds neither the program
//! headers (up to 2^32) nor the bytes and number of notes. Here a file may be read in parts, and
//! each of these has a limit. `object` stops at a damaged note, as this parser does, but reports a
//! fixed text without offset or header number, so that [`ElfCore::skipped`] could not say what was
//! skipped. It rejects a note segment whose `p_align` is over 4 and not 8, and takes a remainder
//! shorter than a note header for damage, even if it is padding. It could replace the table of
//! field offsets in `header`, which is the smallest part.

mod build_id;
mod error;
mod fields;
mod header;
mod loads;
mod notes;
mod skipped;
mod vcpu_note;

pub(crate) use build_id::{build_id, note_segments};
pub(crate) use error::ElfError;
pub(crate) use skipped::Skipped;
#[cfg(test)]
pub(crate) use skipped::SkippedPart;

use super::segments::SegmentTable;
use super::source::Source;
use crate::addr::Gpa;
use crate::registers::VcpuRegisters;
use header::{ET_CORE, Header, PT_LOAD, PT_NOTE};
use loads::Loads;
use notes::Notes;
use skipped::SkipList;

/// A parsed ELF dump.
#[derive(Clone, Debug)]
pub(crate) struct ElfCore {
    pub(super) segments: SegmentTable,
    /// First address and size in bytes of each run of RAM: whole frames, disjoint, by ascending
    /// address.
    pub ram: Vec<(Gpa, u64)>,
    /// The vCPUs, numbered in the order of their notes. Control registers are present if QEMU wrote
    /// the dump.
    pub vcpus: Vec<VcpuRegisters>,
    /// The text of the first VMCOREINFO note, at most 64 KiB.
    pub vmcoreinfo: Option<Vec<u8>>,
    /// Skipped parts that are not needed to read the memory, for display.
    pub skipped: Vec<Skipped>,
}

/// Whether a file starts with the ELF magic.
#[must_use]
pub(crate) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

/// Parses the headers and notes of an ELF dump. Memory itself is read only where two segments
/// overlap.
///
/// Optional parts are skipped if they cannot be understood: segments without a physical address,
/// and notes that are damaged or of an unknown size. [`ElfCore::skipped`] lists them.
///
/// # Errors
/// [`ElfError`] if the file is not a dump of an x86 machine, is truncated, or contradicts itself.
#[cfg(test)]
pub(crate) fn parse(file: &[u8]) -> Result<ElfCore, ElfError> {
    parse_source(file)
}

/// As [`parse`], for a source whose bytes may have to be read.
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
