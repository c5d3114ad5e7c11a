//! Everything introspection found: facts for every frame, and what it could not read.

use super::{FrameUse, KernelArea};
use crate::addr::{FrameIndex, Gpa};
use crate::color::{KernelIdentity, Region, RegionId, Temperature};
use crate::memory::MemoryLayout;
use std::fmt;

/// Facts of one frame. A color is a rule applied to these.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameFacts {
    /// What the kernel's frame table says.
    pub usage: FrameUse,
    /// Where the kernel maps it, beside the map of all memory.
    pub area: KernelArea,
    /// Whether a page-table walk went through it as a table.
    pub is_table: bool,
    /// Whether a process maps it.
    pub user_mapped: bool,
    /// Whether a process maps it executable.
    pub user_executable: bool,
    /// Whether processes map it and none of them may touch it now: `PROT_NONE`, or a page that
    /// NUMA balancing watches.
    pub inaccessible: bool,
    /// Signs of recent use.
    pub temperature: Temperature,
    /// Its region.
    pub region: Option<RegionId>,
    /// Its place in the region's order.
    pub position: u64,
}

/// A process, as found in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Process id; `None` when no task uses the address space.
    pub pid: Option<u32>,
    /// Command name; empty when not known.
    pub name: String,
    /// Frames that its page tables map, each mapping counted.
    pub mapped_frames: u64,
    /// Frames of anonymous memory that it is the first to map.
    pub anonymous_frames: u64,
    /// Frames of its page tables.
    pub table_frames: u64,
    /// Threads.
    pub threads: u32,
    /// Place among all tasks by when they last ran, 0 the most recent; `None` when not known.
    pub recency: Option<u32>,
    /// Where its page tables begin, as a vCPU's CR3 has it; with page-table isolation that is the
    /// kernel's half of the pair in Linux.
    pub root: Gpa,
}

/// What a note means for the trust in what was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum NoteKind {
    /// Something is missing or was left out. What was read holds.
    Incomplete,
    /// Structures disagree with each other, or with the memory that holds them. What they say of
    /// free frames is not to be trusted: see [`trust`](crate::clone::trust).
    Contradiction,
}

/// Something that could not be read, was left out, or contradicts itself.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Note {
    /// What it means for the rest.
    pub kind: NoteKind,
    /// What it concerns, such as `frame table`.
    pub subject: &'static str,
    /// What was wrong, with the address where it began.
    pub text: String,
}

impl Note {
    /// A note of something that is missing.
    #[must_use]
    pub const fn incomplete(subject: &'static str, text: String) -> Self {
        Self { kind: NoteKind::Incomplete, subject, text }
    }

    /// A note of structures that disagree.
    #[must_use]
    pub const fn contradiction(subject: &'static str, text: String) -> Self {
        Self { kind: NoteKind::Contradiction, subject, text }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}

/// What a guest's own structures say of all its memory.
#[derive(Clone, Debug)]
pub struct GuestFacts {
    /// The guest's RAM.
    pub layout: MemoryLayout,
    /// The guest's kernel.
    pub kernel: KernelIdentity,
    /// In frame-index order.
    pub frames: Vec<FrameFacts>,
    /// Regions that the frames name.
    pub regions: Vec<Region>,
    /// Processes, by process id.
    pub processes: Vec<Process>,
    /// What could not be read; empty when all went well.
    pub notes: Vec<Note>,
}

impl GuestFacts {
    /// Facts of one frame.
    #[must_use]
    pub fn frame(&self, index: FrameIndex) -> Option<&FrameFacts> {
        self.frames.get(index.as_usize())
    }
}
