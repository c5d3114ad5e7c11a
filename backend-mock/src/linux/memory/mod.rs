//! Frames and their owners: the page allocator, slabs, the page cache, hot-plugged memory.

pub(super) mod buddy;
pub(super) mod frames;
pub(super) mod free_lists;
pub(super) mod page_cache;
pub(super) mod slab;
pub(super) mod virtio_mem;
