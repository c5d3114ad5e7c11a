//! PT_NOTE segments: vCPU registers and VMCOREINFO.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ElfError;
use super::fields::{bytes_at, u32_at};
use super::header::ProgramHeader;
use super::vcpu_note;
use crate::registers::{MAX_VCPUS, VcpuRegisters};
use std::ops::Range;

/// Most bytes of notes: [`MAX_VCPUS`] vCPUs with several notes of a few hundred bytes each.
const MAX_NOTE_BYTES: u64 = 64 << 20;

const NT_PRSTATUS: u32 = 1;

/// What is read from the notes.
#[derive(Default)]
pub(super) struct Notes {
    /// vCPUs from QEMU's own notes, which have control registers.
    qemu: Vec<VcpuRegisters>,
    /// vCPUs from the notes that every core dump has.
    prstatus: Vec<VcpuRegisters>,
    /// Where the first VMCOREINFO note has its contents in the file.
    pub(super) vmcoreinfo: Option<Range<usize>>,
    bytes: u64,
}

impl Notes {
    /// Reads one segment of notes.
    pub(super) fn add(
        &mut self,
        file: &[u8],
        header: &ProgramHeader,
        long_mode: bool,
    ) -> Result<(), ElfError> {
        let too_many = ElfError::TooManyNotes { header: header.number, max: MAX_NOTE_BYTES };
        self.bytes = self.bytes.saturating_add(header.filesz);
        if self.bytes > MAX_NOTE_BYTES {
            return Err(too_many);
        }
        let (base, data) = header.contents(file)?;
        let mut at = 0;
        while let Some(note) = next_note(base, data, at)? {
            self.take(&note, long_mode)?;
            at = note.end;
        }
        Ok(())
    }

    /// The vCPUs, from the better source.
    pub(super) fn into_vcpus(self) -> Vec<VcpuRegisters> {
        if self.qemu.is_empty() { self.prstatus } else { self.qemu }
    }

    fn take(&mut self, note: &Note<'_>, long_mode: bool) -> Result<(), ElfError> {
        let short = ElfError::VcpuNoteShort { offset: note.offset, bytes: note.contents.len() };
        match (note.name, note.kind) {
            (b"QEMU", 0) => {
                let Some(cpu) = vcpu_note::parse_qemu(note.contents, long_mode).ok_or(short)?
                else {
                    return Ok(());
                };
                push_vcpu(&mut self.qemu, note, cpu)
            }
            (b"CORE", NT_PRSTATUS) => {
                let cpu = vcpu_note::parse_prstatus(note.contents).ok_or(short)?;
                push_vcpu(&mut self.prstatus, note, cpu)
            }
            (b"VMCOREINFO", _) if self.vmcoreinfo.is_none() => {
                let start = usize::try_from(note.contents_offset).ok();
                let end = start.and_then(|start| start.checked_add(note.contents.len()));
                self.vmcoreinfo = start.zip(end).map(|(start, end)| start..end);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn push_vcpu(
    list: &mut Vec<VcpuRegisters>,
    note: &Note<'_>,
    mut cpu: VcpuRegisters,
) -> Result<(), ElfError> {
    let too_many = ElfError::TooManyVcpus { offset: note.offset };
    if list.len() >= MAX_VCPUS {
        return Err(too_many);
    }
    cpu.cpu = u32::try_from(list.len()).map_err(|_| too_many)?;
    list.push(cpu);
    Ok(())
}

/// One note.
pub(super) struct Note<'a> {
    /// Where it starts in the file.
    offset: u64,
    /// Who defines the kind, without the trailing zeros.
    pub(super) name: &'a [u8],
    pub(super) kind: u32,
    pub(super) contents: &'a [u8],
    /// Where the contents start in the file.
    contents_offset: u64,
    /// Where the next note starts in the segment.
    pub(super) end: u64,
}

/// The note at `at` in a segment that starts at `base` in the file; `None` at the end, or where only padding follows.
///
/// Name and contents are padded to 4 bytes, in both classes.
pub(super) fn next_note(base: u64, data: &[u8], at: u64) -> Result<Option<Note<'_>>, ElfError> {
    let offset = base.saturating_add(at);
    let note = || {
        let name_size = u64::from(u32_at(data, at)?);
        let size = u64::from(u32_at(data, at.checked_add(4)?)?);
        let kind = u32_at(data, at.checked_add(8)?)?;
        let name_at = at.checked_add(12)?;
        let name = bytes_at(data, name_at, name_size)?;
        let contents_at = name_at.checked_add(name_size)?.checked_next_multiple_of(4)?;
        let contents = bytes_at(data, contents_at, size)?;
        let end = contents_at.checked_add(size)?.checked_next_multiple_of(4)?;
        let name_end = name.iter().rposition(|&b| b != 0).map_or(0, |last| last.saturating_add(1));
        let name = name.get(..name_end)?;
        Some(Note {
            offset,
            name,
            kind,
            contents,
            contents_offset: base.checked_add(contents_at)?,
            end,
        })
    };
    let rest = usize::try_from(at).ok().and_then(|at| data.get(at..)).unwrap_or(&[]);
    let header = rest.get(..12).unwrap_or(rest);
    if header.iter().all(|&b| b == 0) {
        return Ok(None);
    }
    note().map(Some).ok_or(ElfError::NoteCut { offset })
}
