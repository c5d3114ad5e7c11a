//! Why a guest could not be built.

use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::memory::{LayoutError, MemoryError};
use thiserror::Error;

/// Why a guest could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MockError {
    /// The RAM regions make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A write fell outside RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest has no free block of this order left: give it more RAM or less to hold.
    #[error("no free block of 2^{order} frames left")]
    OutOfFrames {
        /// Order of the block that was wanted.
        order: u32,
    },
    /// Something needs more room than was set aside for it.
    #[error("{what} does not fit into its {bytes} bytes")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
        /// The room that it has.
        bytes: u64,
    },
    /// A frame was claimed twice; each frame has one truth.
    #[error("frame {gfn} is already taken")]
    Taken {
        /// The frame.
        gfn: Gfn,
    },
    /// The address is already mapped, or a larger page is in the way.
    #[error("{gva} is already mapped")]
    Mapped {
        /// The address.
        gva: Gva,
    },
    /// The paging mode cannot express the mapping: page size, alignment or address width.
    #[error("{gva} to {gpa} cannot be mapped by pages of {bytes:#x} bytes in this mode")]
    Unmappable {
        /// The virtual address.
        gva: Gva,
        /// The physical address.
        gpa: Gpa,
        /// Size of the page in bytes.
        bytes: u64,
    },
    /// A structure or a member that the kernel style does not have.
    #[error("this kernel has no `{name}`")]
    NoSuchType {
        /// The structure, or `structure.member`.
        name: String,
    },
    /// The combination of knobs describes no machine.
    #[error("{0}")]
    Knobs(&'static str),
}
