//! Errors of building a guest.

use kaleidoscope_core::addr::{Gfn, Gpa, Gva};
use kaleidoscope_core::memory::{LayoutError, MemoryError};
use thiserror::Error;

/// Why a guest could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MockError {
    /// The RAM regions do not form a valid layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A write fell outside RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest has no free block of this order left. It needs more RAM or less content.
    #[error("no free block of 2^{order} frames left")]
    OutOfFrames {
        /// Order of the requested block.
        order: u32,
    },
    /// Something is larger than the space reserved for it.
    #[error("{what} does not fit into its {bytes} bytes")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
        /// Size of the reserved space in bytes.
        bytes: u64,
    },
    /// A frame was claimed twice; each frame has one role.
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
    /// The paging mode does not support the mapping's page size, alignment or address width.
    #[error("{gva} to {gpa} cannot be mapped by pages of {bytes:#x} bytes in this mode")]
    Unmappable {
        /// The virtual address.
        gva: Gva,
        /// The physical address.
        gpa: Gpa,
        /// Size of the page in bytes.
        bytes: u64,
    },
    /// The kernel style does not have this structure or member.
    #[error("this kernel has no `{name}`")]
    NoSuchType {
        /// The structure, or `structure.member`.
        name: String,
    },
    /// The combination of knobs is invalid.
    #[error("{0}")]
    Knobs(&'static str),
}
