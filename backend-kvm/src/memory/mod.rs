//! A guest's RAM: memory files, snapshot images of them, and the mapping that a VM uses.

mod file;
#[cfg(feature = "machine")]
mod freeze;
mod image;
mod page_size;
#[cfg(feature = "machine")]
mod ram;
pub(crate) mod runs;
mod store;

pub(crate) use file::{MemoryFile, UnfitFile};
#[cfg(feature = "cloud-hypervisor")]
pub(crate) use file::{TMPFS, file_system};
#[cfg(feature = "machine")]
pub(crate) use file::{bytes_of, frames_of};
#[cfg(feature = "machine")]
pub(crate) use freeze::Prepared;
pub use image::{Shared, SnapshotMemory};
pub use page_size::{PageSize, Ram};
#[cfg(feature = "machine")]
pub(crate) use ram::GuestRam;
pub use store::ContentStore;
pub(crate) use store::{Pins, StoreFileError};

use kaleidoscope_core::memory::MemoryLayout;

/// Bytes of a guest's RAM, as a length of a mapping. No layout is larger than the address space.
pub(crate) fn bytes(layout: &MemoryLayout) -> usize {
    usize::try_from(layout.bytes()).unwrap_or(usize::MAX)
}
