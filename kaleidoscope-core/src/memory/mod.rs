//! A guest's RAM: which frames exist, and how their bytes are read.

mod extents;
mod guest_memory;
mod layout;
mod lazy_table;
mod page;
mod snapshot_id;

pub(crate) use extents::ExtentTable;
pub use extents::{Backing, Extent, data_frames, data_parts, extents};
pub(crate) use guest_memory::read_page;
pub use guest_memory::{GuestMemory, MemoryError, VecMemory};
pub use layout::{LayoutError, MemoryLayout, RamRegion};
pub use lazy_table::LazyTable;
pub use page::{Page, ZERO_PAGE, is_zero};
pub use snapshot_id::SnapshotId;
