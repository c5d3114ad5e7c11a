//! ELF core dumps of a machine: QEMU's `dump-guest-memory`, `virsh dump --memory-only`, the kernel's `/proc/vmcore`, and
//! what `makedumpfile -E` makes of it.
//!
//! Memory that a dump describes without holding it (`p_memsz` beyond `p_filesz`) is missing, not zero: makedumpfile
//! leaves out pages by content. QEMU's dumps also describe firmware and video memory; these frames count as RAM here.
//! A dump made with `paging=true` describes what the guest has mapped: RAM that is not mapped is absent from it, and
//! mapped holes may count as RAM.

mod build_id;
mod error;
mod fields;
mod header;
mod loads;
mod notes;
mod vcpu_note;

pub(crate) use build_id::{build_id, note_segments};
pub use error::ElfError;

use super::segments::SegmentTable;
use crate::addr::Gpa;
use crate::registers::VcpuRegisters;
use header::{ET_CORE, Header, PT_LOAD, PT_NOTE};
use loads::Loads;
use notes::Notes;
use std::ops::Range;

/// What an ELF dump describes.
#[derive(Clone, Debug)]
pub struct ElfCore {
    pub(super) segments: SegmentTable,
    /// First address and size of each run of RAM, by ascending address, in whole frames and disjoint.
    pub ram: Vec<(Gpa, u64)>,
    /// The vCPUs, numbered in the order of their notes. Control registers are there if QEMU wrote the dump.
    pub vcpus: Vec<VcpuRegisters>,
    /// Where in the file the text of the VMCOREINFO note is.
    pub vmcoreinfo: Option<Range<usize>>,
}

/// Whether a file starts as an ELF file does.
#[must_use]
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

/// Reads the headers and notes of an ELF dump. Memory itself is read only where two segments describe it.
///
/// # Errors
/// [`ElfError`] when the file is no dump of an x86 machine, is cut, or contradicts itself.
pub fn parse(file: &[u8]) -> Result<ElfCore, ElfError> {
    let header = Header::parse(file, &[ET_CORE])?;
    let mut loads = Loads::default();
    let mut notes = Notes::default();
    for program_header in header.program_headers() {
        match program_header.kind {
            PT_LOAD => loads.add(file, &program_header)?,
            PT_NOTE => notes.add(file, &program_header, header.long_mode)?,
            _ => {}
        }
    }
    let memory = loads.finish(file)?;
    let vmcoreinfo = notes.vmcoreinfo.clone();
    Ok(ElfCore { segments: memory.held, ram: memory.ram, vcpus: notes.into_vcpus(), vmcoreinfo })
}

#[cfg(test)]
mod tests;
