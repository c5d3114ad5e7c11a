//! Skipped parts of a dump.

use crate::addr::Gpa;
use std::fmt;
use std::mem::discriminant;

/// Skipped parts of one kind; the memory is read without them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub(crate) struct Skipped {
    /// The first such part.
    pub first: SkippedPart,
    /// Number of such parts.
    pub count: u32,
}

/// An optional part of a dump. Offsets are file offsets in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub(crate) enum SkippedPart {
    /// A segment without a physical address, such as those of the kernel's vmalloc area in
    /// `/proc/kcore`.
    Segment {
        /// Number of the program header, from 0.
        header: u32,
        /// `p_paddr`.
        gpa: Gpa,
        /// `p_memsz`.
        bytes: u64,
    },
    /// A PT_NOTE segment that reaches past the end of the file.
    NotesCut {
        /// Number of the program header, from 0.
        header: u32,
    },
    /// A note that reaches past the end of its segment, and all notes after it in the segment.
    NoteCut {
        /// File offset of the note.
        offset: u64,
    },
    /// A PT_NOTE segment beyond the limit on bytes of notes.
    TooManyNotes {
        /// Number of the program header, from 0.
        header: u32,
        /// The limit in bytes.
        max: u64,
    },
    /// A note with vCPU registers of an unknown size.
    VcpuNote {
        /// File offset of the note.
        offset: u64,
        /// Size of its contents in bytes.
        bytes: usize,
    },
    /// A vCPU note beyond the maximum number of vCPUs.
    TooManyVcpus {
        /// File offset of the note.
        offset: u64,
    },
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first {
            SkippedPart::Segment { header, gpa, bytes } => write!(
                f,
                "program header {header} is passed over: its {bytes:#x} bytes have no physical \
                 address (p_paddr is {gpa})"
            ),
            SkippedPart::NotesCut { header } => write!(
                f,
                "program header {header} is passed over: its notes reach past the end of the file"
            ),
            SkippedPart::NoteCut { offset } => write!(
                f,
                "the note at {offset:#x} and what follows it are passed over: it reaches past \
                 the end of its segment"
            ),
            SkippedPart::TooManyNotes { header, max } => write!(
                f,
                "program header {header} is passed over: more than {max:#x} bytes of notes"
            ),
            SkippedPart::VcpuNote { offset, bytes } => write!(
                f,
                "the vCPU note at {offset:#x} is passed over: registers of {bytes} bytes are of \
                 no known kind; give the vCPUs' registers otherwise if they are needed"
            ),
            SkippedPart::TooManyVcpus { offset } => write!(
                f,
                "the vCPU note at {offset:#x} is passed over: it is one more than the {} that \
                 are read",
                crate::registers::MAX_VCPUS
            ),
        }?;
        match self.count.saturating_sub(1) {
            0 => Ok(()),
            others => write!(f, " ({others} more like it)"),
        }
    }
}

/// Parts skipped so far: one entry per kind.
#[derive(Default)]
pub(super) struct SkipList(Vec<Skipped>);

impl SkipList {
    pub(super) fn add(&mut self, part: SkippedPart) {
        let same = |s: &&mut Skipped| discriminant(&s.first) == discriminant(&part);
        match self.0.iter_mut().find(same) {
            Some(entry) => entry.count = entry.count.saturating_add(1),
            None => self.0.push(Skipped { first: part, count: 1 }),
        }
    }

    /// Number of segments without a physical address.
    pub(super) fn segments(&self) -> u32 {
        let is_segment = |s: &&Skipped| matches!(s.first, SkippedPart::Segment { .. });
        self.0.iter().find(is_segment).map_or(0, |s| s.count)
    }

    pub(super) fn into_list(self) -> Vec<Skipped> {
        self.0
    }
}
