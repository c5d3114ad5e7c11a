//! Results of introspection: facts about every frame, and notes on what could not be read.

use super::{FrameUse, KernelArea};
use crate::addr::{FrameIndex, Gpa};
use crate::color::{KernelIdentity, Region, RegionId, Temperature};
use crate::memory::MemoryLayout;
use std::fmt;

/// Facts about one frame. Rules derive its color from them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameFacts {
    /// Use of the frame according to the kernel's frame table.
    pub usage: FrameUse,
    /// Where the kernel maps the frame, besides the direct map.
    pub area: KernelArea,
    /// Whether a page-table walk visited the frame as a table.
    pub is_table: bool,
    /// Whether at least one process maps the frame.
    pub user_mapped: bool,
    /// Whether at least one process maps the frame executable.
    pub user_executable: bool,
    /// Whether processes map the frame, but none may access it now: `PROT_NONE`, or a NUMA
    /// balancing hint fault is pending.
    pub inaccessible: bool,
    /// Hints of recent use.
    pub temperature: Temperature,
    /// The region that contains the frame.
    pub region: Option<RegionId>,
    /// The frame's position in the region's order.
    pub position: u64,
}

/// A process, as found in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Process ID; `None` if no task uses the address space.
    pub pid: Option<u32>,
    /// Command name; empty if unknown.
    pub name: String,
    /// Number of mappings in its page tables; a frame mapped twice counts twice.
    pub mapped_frames: u64,
    /// Number of anonymous frames for which this process is the first to map them.
    pub anonymous_frames: u64,
    /// Number of frames that hold its page tables.
    pub table_frames: u64,
    /// Number of threads.
    pub threads: u32,
    /// Rank among all tasks by last run time, 0 being the most recent; `None` if unknown.
    pub recency: Option<u32>,
    /// Physical address of its top-level page table, as in a vCPU's CR3. With page-table isolation
    /// on Linux, this is the kernel half of the pair.
    pub root: Gpa,
}

/// How a note affects trust in the facts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum NoteKind {
    /// Something is missing or was left out. The facts that were read are valid.
    Incomplete,
    /// Structures contradict each other, or the memory that holds them. Free frames must not be
    /// trusted; see [`trust`](crate::clone::trust).
    Contradiction,
}

/// Something that could not be read, was left out, or is contradictory.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Note {
    /// How the note affects trust in the facts.
    pub kind: NoteKind,
    /// The structure concerned, such as `frame table`.
    pub subject: &'static str,
    /// What was wrong, with the address where the problem began.
    pub text: String,
}

impl Note {
    /// A note on something missing.
    #[must_use]
    pub const fn incomplete(subject: &'static str, text: String) -> Self {
        Self { kind: NoteKind::Incomplete, subject, text }
    }

    /// A note on structures that contradict each other.
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

/// Everything that a guest's own structures say about its memory.
#[derive(Clone, Debug)]
pub struct GuestFacts {
    /// The guest's RAM.
    pub layout: MemoryLayout,
    /// The guest's kernel.
    pub kernel: KernelIdentity,
    /// One entry per frame, in frame-index order.
    pub frames: Vec<FrameFacts>,
    /// The regions that `frames` refers to.
    pub regions: Vec<Region>,
    /// Processes, ordered by process ID.
    pub processes: Vec<Process>,
    /// What could not be read; empty if everything was read.
    pub notes: Vec<Note>,
}

impl GuestFacts {
    /// Facts of one frame.
    #[must_use]
    pub fn frame(&self, index: FrameIndex) -> Option<&FrameFacts> {
        self.frames.get(index.as_usize())
    }
}
