//! What a guest's RAM is: which frames exist, and how their bytes are read.

mod guest_memory;
mod layout;
mod page;

pub use guest_memory::{GuestMemory, MemoryError, VecMemory};
pub use layout::{LayoutError, MemoryLayout, RamRegion};
pub use page::{Page, ZERO_PAGE, is_zero};
