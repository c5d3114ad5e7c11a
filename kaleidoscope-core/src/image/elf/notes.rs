//! PT_NOTE segments: vCPU registers and VMCOREINFO.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ElfError;
use super::fields::{bytes_at, u32_at};
use super::header::ProgramHeader;
use super::skipped::{SkipList, SkippedPart};
use super::vcpu_note;
use crate::image::source::Source;
use crate::registers::{MAX_VCPUS, VcpuRegisters};

/// Maximum bytes of notes: [`MAX_VCPUS`] vCPUs with several notes of a few hundred bytes each.
const MAX_NOTE_BYTES: u64 = 64 << 20;

/// Maximum bytes of a VMCOREINFO text; in Linux the note is one page.
const MAX_VMCOREINFO: usize = 64 << 10;

const NT_PRSTATUS: u32 = 1;

/// The notes of a dump. None of them is needed to read the memory, so damaged and unknown notes are
/// skipped.
#[derive(Default)]
pub(super) struct Notes {
    /// vCPUs from QEMU's own notes, which have control registers.
    qemu: Vec<VcpuRegisters>,
    /// vCPUs from the NT_PRSTATUS notes that every core dump has.
    prstatus: Vec<VcpuRegisters>,
    /// Text of the first VMCOREINFO note.
    pub(super) vmcoreinfo: Option<Vec<u8>>,
    bytes: u64,
}

impl Notes {
    /// Parses one PT_NOTE segment.
    pub(super) fn add<S: Source + ?Sized>(
        &mut self,
        file: &S,
        header: &ProgramHeader,
        long_mode: bool,
        skipped: &mut SkipList,
    ) -> Result<(), ElfError> {
        let (max, number) = (MAX_NOTE_BYTES, header.number);
        if self.bytes.saturating_add(header.filesz) > max {
            skipped.add(SkippedPart::TooManyNotes { header: number, max });
            return Ok(());
        }
        let base = header.offset.unwrap_or(u64::MAX);
        let Some(data) = file.bytes_at(base, header.filesz)? else {
            skipped.add(SkippedPart::NotesCut { header: number });
            return Ok(());
        };
        self.bytes = self.bytes.saturating_add(header.filesz);
        let mut at = 0;
        loop {
            match next_note(base, &data, at) {
                Ok(None) => return Ok(()),
                Ok(Some(note)) => {
                    self.take(&note, long_mode, skipped);
                    at = note.end;
                }
                Err(NoteCut { offset }) => {
                    skipped.add(SkippedPart::NoteCut { offset });
                    return Ok(());
                }
            }
        }
    }

    /// The vCPUs from QEMU's notes, or else from the NT_PRSTATUS notes.
    pub(super) fn into_vcpus(self) -> Vec<VcpuRegisters> {
        if self.qemu.is_empty() { self.prstatus } else { self.qemu }
    }

    fn take(&mut self, note: &Note<'_>, long_mode: bool, skipped: &mut SkipList) {
        let (offset, bytes) = (note.offset, note.contents.len());
        let unknown = SkippedPart::VcpuNote { offset, bytes };
        match (note.name, note.kind) {
            (b"QEMU", 0) => match vcpu_note::parse_qemu(note.contents, long_mode) {
                Some(Some(cpu)) => push_vcpu(&mut self.qemu, note, cpu, skipped),
                // An unknown version.
                Some(None) => {}
                None => skipped.add(unknown),
            },
            (b"CORE", NT_PRSTATUS) => match vcpu_note::parse_prstatus(note.contents) {
                Some(cpu) => push_vcpu(&mut self.prstatus, note, cpu, skipped),
                None => skipped.add(unknown),
            },
            (b"VMCOREINFO", _) if self.vmcoreinfo.is_none() => {
                let text = note.contents.get(..MAX_VMCOREINFO).unwrap_or(note.contents);
                self.vmcoreinfo = Some(text.to_vec());
            }
            _ => {}
        }
    }
}

fn push_vcpu(
    list: &mut Vec<VcpuRegisters>,
    note: &Note<'_>,
    mut cpu: VcpuRegisters,
    skipped: &mut SkipList,
) {
    match u32::try_from(list.len()) {
        Ok(number) if list.len() < MAX_VCPUS => {
            cpu.cpu = number;
            list.push(cpu);
        }
        _ => skipped.add(SkippedPart::TooManyVcpus { offset: note.offset }),
    }
}

/// A note reaches past the end of its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoteCut {
    /// File offset of the note.
    offset: u64,
}

/// One note.
pub(super) struct Note<'a> {
    /// File offset of the note.
    offset: u64,
    /// Owner, which defines the kind, without trailing zeros.
    pub(super) name: &'a [u8],
    pub(super) kind: u32,
    pub(super) contents: &'a [u8],
    /// Offset of the next note in the segment.
    pub(super) end: u64,
}

/// The note at `at` in a segment that starts at `base` in the file; `None` at the end, or if only
/// padding follows.
///
/// Name and contents are padded to 4 bytes, in both classes.
pub(super) fn next_note(base: u64, data: &[u8], at: u64) -> Result<Option<Note<'_>>, NoteCut> {
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
        Some(Note { offset, name, kind, contents, end })
    };
    let rest = usize::try_from(at).ok().and_then(|at| data.get(at..)).unwrap_or(&[]);
    let header = rest.get(..12).unwrap_or(rest);
    if header.iter().all(|&b| b == 0) {
        return Ok(None);
    }
    note().map(Some).ok_or(NoteCut { offset })
}
