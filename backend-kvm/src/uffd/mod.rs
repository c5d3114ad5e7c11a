//! Clones whose memory comes page by page: from a page server, or from anywhere else.
//!
//! The kernel says which page a vCPU waits for (userfaultfd), the clone engine fetches it and what
//! belongs to it, and fills it in.

mod blocks;
mod frame_set;
mod memory;
mod page_writer;
mod running;
#[cfg(feature = "vm-memory")]
mod rust_vmm;
mod shared_cache;
#[cfg(test)]
mod shared_cache_tests;
#[cfg(test)]
mod tests;

pub(crate) use memory::Part;
pub use running::OnDemand;
pub(crate) use running::Running;
#[cfg(feature = "vm-memory")]
pub use rust_vmm::{Filling, SnapshotMmap};
pub use shared_cache::SharedPageCache;
