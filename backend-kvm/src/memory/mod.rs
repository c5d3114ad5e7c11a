//! A guest's RAM: memory files, snapshot images of them, and the mapping that a VM uses.

mod file;
mod freeze;
mod image;
mod page_size;
mod ram;
pub(crate) mod runs;
mod store;

pub use file::UnfitFile;
pub(crate) use file::{MemoryFile, bytes_of, frames_of};
pub(crate) use freeze::Prepared;
pub use image::{Shared, SnapshotMemory};
pub use page_size::{PageSize, Ram};
pub(crate) use ram::GuestRam;
pub(crate) use store::Pins;
pub use store::{ContentStore, StoreFileError};

use kaleidoscope_core::memory::MemoryLayout;

/// Bytes of a guest's RAM, as a length of a mapping. No layout is larger than the address space.
pub(crate) fn bytes(layout: &MemoryLayout) -> usize {
    usize::try_from(layout.bytes()).unwrap_or(usize::MAX)
}
